/*
 * Every bootable kernel must find its root on virtio: the drivers are built in, or in its initramfs. They nearly always
 * are, so each is read first; only one that lacks something is built anew (minutes without hardware virtualization).
 */
#include "guest/guest_int.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/err.h"
#include "base/util.h"

#define REBUILD_SECONDS 1800

static void needs_add(struct guest_drivers *n, const char *module, bool must)
{
	must(n->n < ARRAY_SIZE(n->v));
	n->v[n->n++] = (struct guest_driver){.module = module, .must = must};
}

void guest_drivers_needed(const struct guest *g, struct guest_drivers *n)
{
	const struct guest_volume *v = g->root_volume;
	const char *fstype = v ? v->fstype : "";

	needs_add(n, "virtio_pci", true);
	needs_add(n, "virtio_blk", true);
	needs_add(n, "virtio_scsi", false);
	needs_add(n, "sd_mod", false);
	if (strcmp(fstype, "ext4") == 0 || strcmp(fstype, "ext3") == 0 || strcmp(fstype, "ext2") == 0)
		needs_add(n, "ext4", true);
	else if (strcmp(fstype, "xfs") == 0)
		needs_add(n, "xfs", true);
	else if (strcmp(fstype, "btrfs") == 0)
		needs_add(n, "btrfs", true);
	if (v && v->mapper[0])
		needs_add(n, "dm_mod", true);
	if (g->wants_nvme)
		needs_add(n, "nvme", false);
}

/* Is the last component of `path` that module's file: "virtio_blk.ko", "virtio-blk.ko.xz"? */
static bool is_module(const char *path, size_t len, const char *module)
{
	const char *name = memrchr(path, '/', len);
	size_t n = strlen(module);

	name = name ? name + 1 : path;
	len -= (size_t)(name - path);
	if (len < n + 3 || memcmp(name + n, ".ko", 3) != 0)
		return false;
	for (size_t i = 0; i < n; i++)
		if ((name[i] == '-' ? '_' : name[i]) != module[i])
			return false;
	return true;
}

static void needs_found(void *arg, const char *name, size_t len)
{
	struct guest_drivers *n = arg;

	for (size_t i = 0; i < n->n; i++)
		n->v[i].packed |= is_module(name, len, n->v[i].module);
}

/* modules.builtin and modules.dep: one path a line (a colon behind it in the latter). */
static int needs_from_list(struct guest *g, const char *kernel, const char *file, bool builtin, struct guest_drivers *n)
{
	_cleanup_free_ char *text = NULL;
	struct guest_span rest, line;
	char path[400];
	size_t len;

	snprintf(path, sizeof(path), "/lib/modules/%s/%s", kernel, file);
	if (guest_read(g, path, &text, &len, NULL) < 0)
		return -ENOENT;
	rest = (struct guest_span){text, len};
	while (guest_next_line(&rest, &line)) {
		const char *colon = memchr(line.s, ':', line.n);
		size_t end = colon ? (size_t)(colon - line.s) : line.n;

		for (size_t i = 0; i < n->n; i++) {
			bool is = is_module(line.s, end, n->v[i].module);

			n->v[i].builtin |= builtin && is;
			n->v[i].available |= is;
		}
	}
	return 0;
}

bool guest_initramfs_path(const struct guest *g, const char *kernel, char *out, size_t size)
{
	static const char *const names[] = {"/boot/initrd.img-%s", "/boot/initramfs-%s.img", "/boot/initrd-%s"};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		const char *at = strstr(names[i], "%s");

		snprintf(out, size, "%.*s%s%s", (int)(at - names[i]), names[i], kernel, at + 2);
		if (guest_exists(g, out))
			return true;
	}
	snprintf(out, size, "/boot/initrd.img-%s", kernel);
	return false;
}

/* After an error nothing counts as packed: the kernel will not get further in a damaged file than we did. */
int guest_read_drivers(struct guest *g, const char *kernel, struct guest_drivers *n, struct err *e)
{
	_cleanup_close_ int fd = -1;
	char path[400];
	int r;

	needs_from_list(g, kernel, "modules.builtin", true, n);
	needs_from_list(g, kernel, "modules.dep", false, n);
	guest_initramfs_path(g, kernel, path, sizeof(path));
	fd = guest_openat(g, path, O_RDONLY | O_NONBLOCK, 0);
	if (fd < 0)
		return 0; /* everything built in, or it will be missed below */
	r = initrd_list(fd, needs_found, n, e);
	for (size_t i = 0; r < 0 && i < n->n; i++)
		n->v[i].packed = false;
	return r;
}

static int needs_read(struct guest *g, const char *kernel, struct guest_drivers *n, struct err *e)
{
	*n = (struct guest_drivers){0};
	guest_drivers_needed(g, n);
	return guest_read_drivers(g, kernel, n, e);
}

/* What is lacking, as words; what can't be had is only fatal where it must be there. */
static void needs_lacking(const struct guest_drivers *n, struct str *rebuild, struct str *impossible)
{
	for (size_t i = 0; i < n->n; i++) {
		const struct guest_driver *d = &n->v[i];

		if (d->builtin || d->packed)
			continue;
		if (d->available)
			str_addf(rebuild, "%s%s", rebuild->len ? " " : "", d->module);
		else if (d->must)
			str_addf(impossible, "%s%s", impossible->len ? " " : "", d->module);
	}
}

/* MODULES=most because "dep" would look at the appliance's own hardware. */
static int initramfs_configure(struct guest *g, struct guest_result *r, const char *modules, struct err *e)
{
	_cleanup_(str_release) struct str text = {0};
	struct guest_span rest = {modules, strlen(modules)}, word;
	_cleanup_free_ char *old = NULL;
	size_t len = 0;
	int rc = guest_write(g, r, "/etc/initramfs-tools/conf.d/zz-replant", "MODULES=most\n", strlen("MODULES=most\n"),
			     0644, e);

	if (rc < 0)
		return rc;
	guest_read(g, "/etc/initramfs-tools/modules", &old, &len, NULL);
	str_add_mem(&text, old ? old : "", len);
	if (len && old[len - 1] != '\n')
		str_add(&text, "\n");
	while (guest_next_word(&rest, &word)) {
		struct guest_span all = {old ? old : "", len}, line;
		bool there = false;

		while (guest_next_line(&all, &line))
			there |= line.n == word.n && memcmp(line.s, word.s, word.n) == 0;
		if (!there)
			str_addf(&text, "%.*s\n", (int)word.n, word.s);
	}
	return str_ok(&text) ? guest_write(g, r, "/etc/initramfs-tools/modules", text.s, text.len, 0644, e)
			     : err_nomem(e);
}

static int initramfs_rebuild(struct guest *g, struct guest_result *r, const char *kernel, const char *modules,
			     struct err *e)
{
	char path[400];
	const char *const argv[] = {
	    "update-initramfs", guest_initramfs_path(g, kernel, path, sizeof(path)) ? "-u" : "-c", "-k", kernel, NULL};
	_cleanup_(str_release) struct str rebuild = {0}, impossible = {0};
	struct guest_drivers n;
	int rc = initramfs_configure(g, r, modules, e);

	if (rc == 0)
		rc = guest_run(g, argv, REBUILD_SECONDS, NULL, e);
	if (rc == 0)
		rc = needs_read(g, kernel, &n, e);
	if (rc < 0)
		return rc;
	needs_lacking(&n, &rebuild, &impossible);
	if (rebuild.len)
		return err_set(e, -EIO, "the initramfs of kernel '%s' was built anew and still lacks %s", kernel,
			       rebuild.s);
	r->state = GUEST_DONE;
	str_addf(&r->summary, "%s: built anew%s%s; ", kernel, *modules ? " for " : "", modules);
	return 0;
}

static int initramfs_kernel(struct guest *g, struct guest_result *r, const char *kernel, struct err *e)
{
	_cleanup_(str_release) struct str rebuild = {0}, impossible = {0};
	struct err read_error = {0};
	struct guest_drivers n;
	int rc = needs_read(g, kernel, &n, &read_error);
	bool damaged = rc < 0 && rc != -ENOTSUP;

	if (rc < 0)
		guest_note(r, "kernel '%s': %s%s", kernel, read_error.msg, damaged ? "; it is built anew" : "");
	needs_lacking(&n, &rebuild, &impossible);
	if (impossible.len)
		return err_set(e, -ENOENT, "kernel '%s' has no driver for %s (install another kernel on the source)",
			       kernel, impossible.s);
	/* A damaged one also where no driver is lacking: it is what knows the root by its UUID. */
	if (rebuild.len || damaged)
		return initramfs_rebuild(g, r, kernel, rebuild.len ? rebuild.s : "", e);
	str_addf(&r->summary, "%s: has what it needs; ", kernel);
	return 0;
}

/* All kernels are looked at, also when one fails: the others may still boot. */
static int initramfs_run(struct guest *g, struct guest_result *r, struct err *e)
{
	json_t *kernel;
	size_t i, good = 0;
	int rc = 0;

	json_array_foreach(g->kernels, i, kernel)
	{
		struct err ke = {0};
		int krc = initramfs_kernel(g, r, json_string_value(kernel), &ke);

		if (krc == 0) {
			good++;
			continue;
		}
		guest_note(r, "%s", ke.msg);
		rc = err_set(e, krc, "%s", ke.msg);
	}
	return good ? 0 : rc;
}

static bool initramfs_applies(struct guest *g)
{
	return json_array_size(g->kernels) > 0;
}

const struct guest_step guest_step_initramfs = {"initramfs", initramfs_applies, initramfs_run};
