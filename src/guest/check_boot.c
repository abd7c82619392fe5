/* The check's items about the way from the firmware to the root filesystem. */
#include "guest/guest_int.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <strings.h>

#include "base/err.h"
#include "base/io.h"
#include "base/util.h"

static const char *boot_cfg_path(const struct guest *g)
{
	return !guest_exists(g, "/boot/grub/grub.cfg") && guest_exists(g, "/boot/grub2/grub.cfg")
		   ? "/boot/grub2/grub.cfg"
		   : "/boot/grub/grub.cfg";
}

/* ---- what the firmware finds ---- */

static bool boot_table_has(const struct guest *g, const char *key)
{
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(g->found, "tables"), i,
			   o) if (json_is_true(json_object_get(o, key))) return true;
	return false;
}

/* Is GRUB in a boot sector, with the stage behind it? */
static bool boot_has_grub(const struct guest *g)
{
	if (g->found)
		return boot_table_has(g, "core");
	for (size_t i = 0; i < g->volumes->ndisks; i++)
		if (g->volumes->disks[i].grub)
			return true;
	return false;
}

/* Which disk GRUB is to be put on again: the one that /boot is on, else one made for it. -1: not known. */
static int boot_disk(const struct guest *g)
{
	const struct guest_volume *v = g->boot_volume ?: g->root_volume;
	json_t *o;
	size_t i;

	if (v && v->disk >= 0 && (size_t)v->disk < g->volumes->ndisks)
		return v->disk;
	json_array_foreach(json_object_get(g->found, "tables"), i,
			   o) if (json_is_true(json_object_get(o, "bios_boot")) &&
				  i < g->volumes->ndisks) return (int)i;
	return g->volumes->ndisks == 1 ? 0 : -1;
}

/* Is another loader's code in the boot sector that counts, or in any where that isn't known? */
static bool boot_is_foreign(const struct guest *g)
{
	int disk = boot_disk(g);
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(g->found, "tables"), i,
			   o) if ((disk < 0 || i == (size_t)disk) && json_is_true(json_object_get(o, "boot_code")) &&
				  !json_is_true(json_object_get(o, "grub"))) return true;
	return false;
}

/* Is there an EFI partition, and nothing of it is mounted? */
static bool boot_has_unseen_esp(const struct guest *g)
{
	for (size_t i = 0; i < g->nmounted; i++)
		if (str_ends(g->mounted[i].at, "/efi"))
			return false;
	return boot_table_has(g, "esp") && !guest_exists(g, "/boot/efi/EFI") && !guest_exists(g, "/efi/EFI");
}

/* Whether something starts the system that isn't looked at here; false, and nothing said, when nothing can. */
static bool boot_may_start(const struct guest *g, struct guest_finding *f)
{
	bool unseen = boot_has_unseen_esp(g), foreign = boot_is_foreign(g);

	if (unseen) {
		guest_find(f, GUEST_WARNING,
			   "the EFI partition can't be looked at: /etc/fstab doesn't mount it at /boot/efi or /efi");
		guest_advise(f, "see on the source that EFI/BOOT/BOOTX64.EFI is on it");
	}
	if (foreign) {
		guest_find(f, GUEST_WARNING, "the code in the boot sector isn't GRUB's, and can't be looked at");
		guest_advise(f, "try whether it starts (test boot), or install GRUB on the source");
	}
	return unseen || foreign;
}

static bool boot_is_gpt(const struct guest *g)
{
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(g->found, "tables"), i,
			   o) if (json_is_true(json_object_get(o, "core")) &&
				  strcmp(json_string_value(json_object_get(o, "table")) ?: "", "gpt") == 0) return true;
	return false;
}

static void boot_repair_sector(struct guest *g, struct guest_finding *f);

static int boot_mode(struct guest *g, struct guest_finding *f, struct err *e)
{
	bool bios = boot_has_grub(g) || boot_table_has(g, "grub"), fallback = guest_has_fallback(g);
	char loader[256] = "";
	bool uefi = guest_find_loader(g, loader, sizeof(loader)) || fallback;

	f->value = json_pack("{s:b, s:b, s:b}", "bios", bios, "uefi", uefi, "fallback", fallback);
	if (!bios && !uefi && !boot_may_start(g, f)) {
		guest_find(f, GUEST_CRITICAL,
			   "nothing on the disks can be started: no boot code, and no loader for UEFI");
		guest_advise(f, "copy all disks of the server, or install GRUB");
		boot_repair_sector(g, f);
	}
	if (uefi && !fallback) {
		guest_find(
		    f, bios ? GUEST_WARNING : GUEST_CRITICAL,
		    "the loader '%s' is only found by firmware that remembers it: EFI/BOOT/BOOTX64.EFI is missing",
		    loader);
		guest_advise(f, "copy the loader there: 'grub-install --removable' on the source");
		f->repair[0] = &guest_step_loader;
	}
	if (boot_is_gpt(g) && !uefi && !boot_table_has(g, "bios_boot")) {
		guest_find(f, GUEST_WARNING,
			   "the disk has a GPT without a BIOS boot partition, so GRUB's code lies unprotected");
		guest_advise(f, "make such a partition on the source and install GRUB again");
	}
	guest_find(f, GUEST_PASSED, "%s",
		   bios && uefi ? "starts by BIOS and by UEFI"
		   : bios       ? "starts by BIOS"
				: "starts by UEFI");
	return 0;
}

/* ---- grub.cfg ---- */

static bool grub_uuid_is_known(const struct guest *g, struct guest_span uuid)
{
	const struct guest_volume *v;
	char spec[128] = "UUID=";

	return !guest_span_copy(uuid, false, spec + 5, sizeof(spec) - 5) ||
	       guest_device_find(g, spec, &v) != GUEST_SPEC_UNKNOWN;
}

/* "(hd0,1)/vmlinuz", "/@/boot/vmlinuz", with and without /boot: as far as it can be said, is it there? */
static bool grub_file_exists(const struct guest *g, struct guest_span word)
{
	char path[1024], *p = path;
	char full[1100];

	if (!guest_span_copy(word, false, path, sizeof(path)) || strchr(path, '$'))
		return true;
	if (*p == '(' && strchr(p, ')'))
		p = strchr(p, ')') + 1;
	snprintf(full, sizeof(full), "/boot%s", p);
	if (guest_exists(g, p) || guest_exists(g, full))
		return true;
	return str_starts(p, "/@") && strchr(p + 1, '/') && guest_exists(g, strchr(p + 1, '/'));
}

static void grub_root(const struct guest *g, const char *spec, bool first, bool alone, struct guest_finding *f,
		      struct guest_grub_faults *n)
{
	enum guest_level level = first ? GUEST_CRITICAL : GUEST_WARNING;
	const struct guest_volume *v = NULL;
	enum guest_spec kind = guest_device_find(g, spec, &v);

	if (kind == GUEST_SPEC_UNKNOWN) {
		guest_find(f, level, "the kernel is told that its root is '%s', which is not on the disks", spec);
		n->names++;
	} else if (kind == GUEST_SPEC_FRAGILE) {
		guest_find(f, str_starts(spec, "/dev/vd") ? GUEST_WARNING : level,
			   "the kernel is told that its root is '%s', a name that changes with the hardware", spec);
		n->names++;
	} else if (kind == GUEST_SPEC_STABLE && first && g->root_volume && v != g->root_volume &&
		   strcasecmp(v->uuid, g->root_volume->uuid) != 0) {
		guest_find(f, level,
			   "the kernel is told that its root is '%s', but the system is on another filesystem", spec);
	}
	if (alone && (str_starts(spec, "UUID=") || str_starts(spec, "LABEL="))) {
		guest_find(f, level, "the entry loads no initramfs, and without one the kernel can't find '%s'", spec);
		n->alone++;
	}
}

static void grub_entry(const struct guest *g, struct guest_span line, struct guest_span rest, bool first,
		       struct guest_finding *f, struct guest_grub_faults *n)
{
	bool alone = !guest_entry_has_initrd(rest), kernel = false, root = false;
	struct guest_span word;
	char spec[300];

	guest_next_word(&line, &word);
	while (guest_next_word(&line, &word)) {
		if (!kernel && !grub_file_exists(g, word)) {
			guest_find(f, first ? GUEST_CRITICAL : GUEST_WARNING, "the kernel '%.*s' is missing",
				   (int)MIN(word.n, (size_t)200), word.s);
			n->kernels++;
		}
		kernel = true;
		if (word.n > 5 && memcmp(word.s, "root=", 5) == 0 &&
		    guest_span_copy((struct guest_span){word.s + 5, word.n - 5}, false, spec, sizeof(spec))) {
			grub_root(g, spec, first, alone, f, n);
			root = true;
		}
	}
	if (!root && first)
		guest_find(f, GUEST_WARNING, "the kernel is not told which filesystem is its root");
}

static void grub_initrd(const struct guest *g, struct guest_span line, bool first, struct guest_finding *f,
			struct guest_grub_faults *n)
{
	struct guest_span word;

	while (guest_next_word(&line, &word))
		if (!grub_file_exists(g, word)) {
			guest_find(f, first ? GUEST_CRITICAL : GUEST_WARNING, "the initramfs '%.*s' is missing",
				   (int)MIN(word.n, (size_t)200), word.s);
			n->initrds++;
		}
}

/* A wrong one in an entry leaves GRUB where it happened to look before. */
static void grub_search(const struct guest *g, struct guest_span line, bool first, struct guest_finding *f,
			struct guest_grub_faults *n)
{
	struct guest_span uuid;

	if (!guest_search_uuid(line, &uuid) || grub_uuid_is_known(g, uuid))
		return;
	guest_find(f, first ? GUEST_CRITICAL : GUEST_WARNING,
		   "GRUB looks for the filesystem '%.*s', which is not on the disks", (int)MIN(uuid.n, (size_t)100),
		   uuid.s);
	n->names++;
}

void guest_judge_grub_cfg(const struct guest *g, struct guest_span text, struct guest_finding *f,
			  struct guest_grub_faults *ret)
{
	struct guest_grub_faults n = {0};
	struct guest_span line, word;
	unsigned entries = 0;

	while (guest_next_line(&text, &line)) {
		struct guest_span words = line;

		if (guest_is_linux(line)) {
			grub_entry(g, line, text, entries == 0, f, &n);
			entries++;
		} else if (!guest_next_word(&words, &word)) {
			continue;
		} else if (guest_is_initrd(word)) {
			grub_initrd(g, words, entries <= 1, f, &n);
		} else {
			grub_search(g, line, entries == 0, f, &n);
		}
	}
	n.entries = entries;
	*ret = n;
}

static void boot_repair_sector(struct guest *g, struct guest_finding *f)
{
	if (!g->can_run || boot_disk(g) < 0 || boot_is_foreign(g) || boot_has_unseen_esp(g) ||
	    !guest_exists(g, "/usr/sbin/grub-install") || !guest_exists(g, "/usr/lib/grub/i386-pc/boot.img"))
		return;
	g->grub_device = g->volumes->disks[boot_disk(g)].device;
	f->repair[0] = &guest_step_grub;
}

/* GRUB in the boot sector, unless UEFI's loader does without. */
static void grub_sector(struct guest *g, struct guest_finding *f)
{
	char loader[256];

	if (boot_has_grub(g) || guest_find_loader(g, loader, sizeof(loader)) || guest_has_fallback(g))
		return;
	if (!boot_table_has(g, "grub") && boot_may_start(g, f))
		return;
	guest_find(f, GUEST_CRITICAL, "no disk has GRUB in its boot sector%s",
		   boot_table_has(g, "grub") ? ", or the part behind it is missing" : "");
	guest_advise(f, "install it on the source ('grub-install /dev/sda')");
	boot_repair_sector(g, f);
}

/* By doing it: what the steps would make of the file is judged in turn. */
static void grub_repair(struct guest *g, struct guest_span text, const struct guest_grub_faults *n,
			struct guest_finding *f)
{
	_cleanup_(str_release) struct str out = {0};
	struct guest_finding again = {0};
	struct guest_grub_faults after;
	size_t k = f->repair[0] != NULL;

	guest_rewrite_grub_cfg(g, text, &out);
	guest_judge_grub_cfg(g, (struct guest_span){out.s ? out.s : "", out.len}, &again, &after);
	if (!f->repair[0] && n->names && after.names < n->names)
		f->repair[k++] = &guest_step_grub;
	if (n->initrds && !n->kernels && json_array_size(g->kernels))
		f->repair[k] = &guest_step_initramfs;
	str_release(&again.message);
	str_release(&again.remedy);
}

static int boot_grub(struct guest *g, struct guest_finding *f, struct err *e)
{
	const char *path = boot_cfg_path(g);
	_cleanup_free_ char *text = NULL;
	struct guest_grub_faults n;
	size_t len;
	int r = guest_read(g, path, &text, &len, e);

	grub_sector(g, f);
	if (r < 0 && r != -ENOENT && r != -EINVAL)
		return r; /* GRUB may well read it */
	if (r < 0) {
		guest_find(f, GUEST_CRITICAL, "%s: GRUB would open its shell", e->msg);
		guest_advise(f, "run 'update-grub' on the source");
		return 0;
	}
	guest_judge_grub_cfg(g, (struct guest_span){text, len}, f, &n);
	if (!n.entries && !memmem(text, len, "blscfg", 6)) {
		guest_find(f, GUEST_CRITICAL, "'%s' starts no kernel", path);
		guest_advise(f, "run 'update-grub' on the source");
	}
	if (f->level != GUEST_PASSED && !n.initrds)
		guest_advise(f, "run 'update-grub' on the source");
	if (n.initrds)
		guest_advise(f, "run 'update-initramfs -c -k all' on the source");
	grub_repair(g, (struct guest_span){text, len}, &n, f);
	guest_find(f, GUEST_PASSED, "GRUB finds the kernel, and the kernel its root");
	return 0;
}

/* ---- kernels ---- */

static bool kernel_is_known(const struct guest *g, const char *name)
{
	json_t *o;
	size_t i;

	json_array_foreach(g->kernels, i, o) if (strcmp(json_string_value(o), name) == 0) return true;
	return false;
}

/* Of the first entry in grub.cfg; where that says nothing that is there, the newest. */
static const char *kernel_default(struct guest *g, char *out, size_t size)
{
	_cleanup_free_ char *text = NULL;
	struct guest_span rest, line, word;
	const char *best = NULL;
	size_t len = 0, i;
	json_t *o;

	if (guest_read(g, boot_cfg_path(g), &text, &len, NULL) == 0) {
		rest = (struct guest_span){text, len};
		while (guest_next_line(&rest, &line)) {
			const char *at;

			if (!guest_is_linux(line))
				continue;
			guest_next_word(&line, &word);
			if (!guest_next_word(&line, &word) || !guest_span_copy(word, false, out, size))
				break;
			at = strstr(out, "vmlinuz-");
			if (at && kernel_is_known(g, at + strlen("vmlinuz-"))) {
				memmove(out, at + strlen("vmlinuz-"), strlen(at + strlen("vmlinuz-")) + 1);
				return out;
			}
			break;
		}
	}
	json_array_foreach(g->kernels, i, o) if (!best || strverscmp(json_string_value(o), best) > 0) best =
	    json_string_value(o);
	if (best)
		snprintf(out, size, "%s", best);
	return best ? out : NULL;
}

static bool kernels_there(struct guest *g)
{
	return json_array_size(g->kernels) > 0;
}

static int kernel_version(struct guest *g, struct guest_finding *f, struct err *e)
{
	char name[256];

	if (!kernel_default(g, name, sizeof(name))) {
		guest_find(f, GUEST_CRITICAL, "'/boot' holds no kernel whose modules are there");
		guest_advise(f,
			     "install a kernel on the source (linux-image-amd64), or copy the disk that /boot is on");
		return 0;
	}
	f->value = json_pack("{s:s, s:O}", "default", name, "kernels", g->kernels);
	if (strverscmp(name, "3.10") < 0) {
		guest_find(f, GUEST_WARNING, "kernel '%s' is older than 3.10, and its drivers as well", name);
		guest_advise(f, "install a newer kernel on the source");
	}
	guest_find(f, GUEST_PASSED, "%s", name);
	return 0;
}

/* Linux for x86 has "HdrS" behind its boot sector (Documentation/arch/x86/boot.rst); those for UEFI begin with "MZ". */
static bool kernel_is_one(struct guest *g, const char *path)
{
	_cleanup_close_ int fd = guest_openat(g, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
	uint8_t head[0x206];

	if (fd < 0 || io_read_full(fd, head, sizeof(head)) != sizeof(head))
		return false;
	return memcmp(head + 0x202, "HdrS", 4) == 0 || memcmp(head, "MZ", 2) == 0;
}

static void count_name(void *arg, const char *name, size_t len)
{
	(*(size_t *)arg)++;
}

/* guest_read_drivers(); an error only where the initramfs may be sound, and nothing here can read it. */
static int kernel_drivers(struct guest *g, const char *name, struct guest_drivers *n, struct err *e)
{
	int r = guest_read_drivers(g, name, n, e);

	return r == -EPROTO ? 0 : r;
}

/* Does the first entry of grub.cfg load one, or is a driver outside of the kernel? */
static bool kernel_wants_initramfs(struct guest *g, const char *name)
{
	_cleanup_free_ char *text = NULL;
	struct guest_drivers n = {0};
	struct guest_span rest, line;
	size_t len;

	if (guest_read(g, boot_cfg_path(g), &text, &len, NULL) == 0) {
		rest = (struct guest_span){text, len};
		while (guest_next_line(&rest, &line))
			if (guest_is_linux(line)) {
				if (guest_entry_has_initrd(rest))
					return true;
				break;
			}
	}
	guest_drivers_needed(g, &n);
	guest_read_drivers(g, name, &n, NULL);
	for (size_t i = 0; i < n.n; i++)
		if (n.v[i].must && !n.v[i].builtin)
			return true;
	return false;
}

static int kernel_initramfs(struct guest *g, const char *name, struct guest_finding *f, struct err *e)
{
	_cleanup_close_ int fd = -1;
	char path[400];
	size_t files = 0;
	int r;

	guest_initramfs_path(g, name, path, sizeof(path));
	fd = guest_openat(g, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
	if (fd < 0) {
		if (kernel_wants_initramfs(g, name)) {
			guest_find(f, GUEST_WARNING, "kernel '%s' has no initramfs", name);
			guest_advise(f, "run 'update-initramfs -c -k all' on the source");
			f->repair[0] = &guest_step_initramfs;
		}
		guest_find(f, GUEST_PASSED, "kernel '%s' can be read, and needs no initramfs", name);
		return 0;
	}
	r = initrd_list(fd, count_name, &files, e);
	if (r < 0 && r != -EPROTO)
		return r;
	if (r < 0 || !files) {
		guest_find(f, GUEST_CRITICAL, "'%s' can't be read: %s", path, r < 0 ? e->msg : "it is empty");
		guest_advise(f, "run 'update-initramfs -u -k all' on the source");
		f->repair[0] = &guest_step_initramfs;
	}
	guest_find(f, GUEST_PASSED, "kernel '%s' and its initramfs can be read", name);
	return 0;
}

static int kernel_files(struct guest *g, struct guest_finding *f, struct err *e)
{
	char name[256], path[400];

	kernel_default(g, name, sizeof(name));
	snprintf(path, sizeof(path), "/boot/vmlinuz-%s", name);
	if (!kernel_is_one(g, path)) {
		guest_find(f, GUEST_CRITICAL, "'%s' is no kernel", path);
		guest_advise(f, "install the package of the kernel again on the source");
	}
	return kernel_initramfs(g, name, f, e);
}

/* Those that `n` lacks, as words; *ret_all: each could be put in. */
static bool drivers_lack(const struct guest_drivers *n, bool must, struct str *out, bool *ret_all)
{
	*ret_all = true;
	for (size_t i = 0; i < n->n; i++) {
		const struct guest_driver *d = &n->v[i];

		if (d->must != must || d->builtin || d->packed || (!must && !d->available))
			continue;
		str_addf(out, "%s%s", out->len ? " " : "", d->module);
		*ret_all &= d->available;
	}
	return out->len > 0;
}

static int boot_virtio(struct guest *g, struct guest_finding *f, struct err *e)
{
	_cleanup_(str_release) struct str must = {0}, may = {0};
	struct guest_drivers n = {0}, net = {.v = {{.module = "virtio_net", .must = true}}, .n = 1};
	bool all = true, all_may = true;
	char name[256];
	int r;

	kernel_default(g, name, sizeof(name));
	guest_drivers_needed(g, &n);
	r = kernel_drivers(g, name, &n, e);
	guest_read_drivers(g, name, &net, NULL);
	if (r < 0) {
		all = false; /* what it has isn't known */
	} else if (drivers_lack(&n, true, &must, &all)) {
		guest_find(f, GUEST_CRITICAL,
			   "kernel '%s' and its initramfs lack %s, without which the root is not found", name, must.s);
		guest_advise(
		    f, all ? "add them to /etc/initramfs-tools/modules and run 'update-initramfs -u' on the source"
			   : "install another kernel on the source");
	} else if (drivers_lack(&n, false, &may, &all_may)) {
		guest_find(f, GUEST_WARNING, "the initramfs of kernel '%s' lacks %s, for disks on a SCSI bus", name,
			   may.s);
		guest_advise(f, "set MODULES=most for initramfs-tools and run 'update-initramfs -u' on the source");
	}
	if (f->level != GUEST_PASSED && all)
		f->repair[0] = &guest_step_initramfs;
	if (!net.v[0].builtin && !net.v[0].available) {
		guest_find(f, GUEST_CRITICAL, "kernel '%s' has no driver for the network (virtio_net)", name);
		guest_advise(f, "install another kernel on the source");
	}
	guest_find(f, GUEST_PASSED, "kernel '%s' has the drivers for virtio", name);
	return drivers_lack(&n, true, &must, &all) ? r : 0;
}

static int boot_nvme(struct guest *g, struct guest_finding *f, struct err *e)
{
	struct guest_drivers n = {.v = {{.module = "nvme", .must = true}}, .n = 1};
	char name[256];
	int r;

	kernel_default(g, name, sizeof(name));
	r = kernel_drivers(g, name, &n, e);
	if (r < 0 && !n.v[0].builtin)
		return r;
	if (!n.v[0].builtin && !n.v[0].packed) {
		guest_find(f, GUEST_WARNING, "kernel '%s' and its initramfs lack nvme: on such disks it does not start",
			   name);
		guest_advise(f, n.v[0].available
				    ? "add nvme to /etc/initramfs-tools/modules and run 'update-initramfs -u' "
				      "on the source"
				    : "install another kernel on the source, if it is to run on such disks");
		if (n.v[0].available)
			f->repair[0] = &guest_step_initramfs;
	}
	guest_find(f, GUEST_PASSED, "kernel '%s' has the driver for NVMe", name);
	return 0;
}

/* ---- fstab ---- */

static int boot_fstab(struct guest *g, struct guest_finding *f, struct err *e)
{
	struct guest_result r = {.files = json_array(), .notes = json_array()};
	_cleanup_(str_release) struct str out = {0};
	struct guest_finding again = {0};
	_cleanup_free_ char *text = NULL;
	size_t len;
	int rc = r.files && r.notes ? guest_read(g, "/etc/fstab", &text, &len, e) : err_nomem(e);

	if (rc == 0) {
		guest_judge_fstab(g, (struct guest_span){text, len}, f);
		guest_rewrite_fstab(g, &r, (struct guest_span){text, len}, &out);
		guest_judge_fstab(g, (struct guest_span){out.s ? out.s : "", out.len}, &again);
		if (again.level < f->level)
			f->repair[0] = &guest_step_fstab;
		if (f->level != GUEST_PASSED)
			guest_advise(
			    f, "name it by its UUID (see blkid) in /etc/fstab on the source, or give it the option "
			       "nofail");
		guest_find(f, GUEST_PASSED, "what /etc/fstab names is on the disks");
	}
	str_release(&again.message);
	str_release(&again.remedy);
	json_decref(r.files);
	json_decref(r.notes);
	return rc;
}

const struct guest_check guest_checks_boot[] = {
    {"boot_mode", "boot", false, NULL, boot_mode},
    {"grub", "boot", true, NULL, boot_grub},
    {"kernel_version", "boot", false, NULL, kernel_version},
    {"kernel_files", "boot", false, kernels_there, kernel_files},
    {"virtio", "boot", true, kernels_there, boot_virtio},
    {"nvme", "boot", true, kernels_there, boot_nvme},
    {"fstab", "boot", true, NULL, boot_fstab},
    {0},
};
