/*
 * GRUB on BIOS: its code lies where it lay, because whole disks were copied. What the kernel is told changes: the root
 * by UUID (by the partition's where no initramfs looks it up), and a serial console beside the screen. grub.cfg is
 * edited, not generated anew (that takes long and may find other things); /etc/default gets the same, so that the next
 * update-grub keeps it.
 */
#include "guest/guest_int.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/util.h"

#define GRUB_CFG     "/boot/grub/grub.cfg"
#define GRUB_DEFAULT "/etc/default/grub"
#define GRUB_DROP_IN GUEST_CONVERTED
#define GRUB_SECONDS 600

static const char grub_drop_in[] =
    "# Written by Replant: a serial console beside the screen, where clouds show the boot.\n"
    "case \" $GRUB_CMDLINE_LINUX $GRUB_CMDLINE_LINUX_DEFAULT \" in\n"
    "*\" console=ttyS\"*) ;;\n"
    "*\" console=\"*) GRUB_CMDLINE_LINUX=\"console=ttyS0,115200 $GRUB_CMDLINE_LINUX\" ;;\n"
    "*) GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX console=tty0 console=ttyS0,115200\" ;;\n"
    "esac\n";

/* Where the first word with that beginning stands; line.n when there is none. */
static size_t grub_find_word(struct guest_span line, const char *prefix)
{
	struct guest_span rest = line, word;
	size_t n = strlen(prefix);

	while (guest_next_word(&rest, &word))
		if (word.n >= n && memcmp(word.s, prefix, n) == 0)
			return (size_t)(word.s - line.s);
	return line.n;
}

static bool grub_has_word(struct guest_span line, const char *prefix)
{
	return grub_find_word(line, prefix) < line.n;
}

/* Does the entry that goes on with `rest` load an initramfs? */
bool guest_entry_has_initrd(struct guest_span rest)
{
	struct guest_span line, word;

	while (guest_next_line(&rest, &line) && !guest_is_linux(line)) {
		struct guest_span words = line;

		if (!guest_next_word(&words, &word))
			continue;
		if (guest_span_is(word, "}"))
			return false;
		if (guest_is_initrd(word))
			return true;
	}
	return false;
}

bool guest_search_uuid(struct guest_span line, struct guest_span *ret)
{
	bool uuid = false, any = false;
	struct guest_span word;

	if (!guest_next_word(&line, &word) || !guest_span_is(word, "search"))
		return false;
	while (guest_next_word(&line, &word)) {
		uuid |= guest_span_is(word, "--fs-uuid") || guest_span_is(word, "-u");
		any = *word.s != '-' && *word.s != '$';
		*ret = word;
	}
	return uuid && any;
}

/* GRUB looks for the filesystem that its files and the kernels are on. False: nothing is wrong with the line. */
static bool grub_search_line(const struct guest *g, struct guest_span line, struct str *out)
{
	const struct guest_volume *v, *boot = g->boot_volume ?: g->root_volume;
	struct guest_span uuid;
	char spec[128] = "UUID=";

	if (!boot || !boot->uuid[0] || !guest_search_uuid(line, &uuid) ||
	    !guest_span_copy(uuid, false, spec + 5, sizeof(spec) - 5) ||
	    guest_device_find(g, spec, &v) != GUEST_SPEC_UNKNOWN)
		return false;
	str_add_mem(out, line.s, (size_t)(uuid.s - line.s));
	str_add(out, boot->uuid);
	str_add_mem(out, uuid.s + uuid.n, (size_t)(line.s + line.n - uuid.s - uuid.n));
	return true;
}

static void grub_linux_line(const struct guest *g, struct guest_span line, bool alone, struct str *out)
{
	_cleanup_(str_release) struct str fixed = {0};
	bool serial = grub_has_word(line, "console=ttyS");
	bool resume = g->resume[0] && !grub_has_word(line, "resume=") && !grub_has_word(line, "noresume");
	struct guest_span now;
	size_t console;

	if (!guest_fix_cmdline(g, line, alone, &fixed) && serial && !resume) {
		str_add_mem(out, line.s, line.n);
		return;
	}
	now = (struct guest_span){fixed.s, fixed.len};
	while (now.n && (now.s[now.n - 1] == ' ' || now.s[now.n - 1] == '\r'))
		now.n--;
	/* The last console becomes /dev/console: where one was chosen, it stays the last. */
	console = grub_find_word(now, "console=");
	str_add_mem(out, now.s, console);
	if (!serial && console < now.n)
		str_add(out, "console=ttyS0,115200 ");
	str_add_mem(out, now.s + console, now.n - console);
	if (!serial && console == now.n)
		str_add(out, " console=tty0 console=ttyS0,115200");
	if (resume)
		str_addf(out, " %s", g->resume);
}

unsigned guest_rewrite_grub_cfg(const struct guest *g, struct guest_span text, struct str *out)
{
	struct guest_span line;
	unsigned entries = 0;

	while (guest_next_line(&text, &line)) {
		if (guest_is_linux(line)) {
			grub_linux_line(g, line, !guest_entry_has_initrd(text), out);
			entries++;
		} else if (!grub_search_line(g, line, out)) {
			str_add_mem(out, line.s, line.n);
		}
		guest_end_line(line, text, out);
	}
	return entries;
}

static int grub_cfg(struct guest *g, struct guest_result *r, struct err *e)
{
	_cleanup_(str_release) struct str out = {0};
	_cleanup_free_ char *text = NULL;
	unsigned entries;
	size_t len;
	int rc = guest_read(g, GRUB_CFG, &text, &len, e);

	if (rc < 0)
		return rc;
	entries = guest_rewrite_grub_cfg(g, (struct guest_span){text, len}, &out);
	if (!str_ok(&out))
		return err_nomem(e);
	if (!entries)
		return err_set(e, -EINVAL, "'" GRUB_CFG "' in the copy starts no kernel");
	return guest_write(g, r, GRUB_CFG, out.s, out.len, 0600, e);
}

/* The defaults are for all kernels: one without an initramfs decides, because its name of the root suits them all. */
static bool grub_kernel_is_alone(const struct guest *g)
{
	json_t *kernel;
	size_t i;

	json_array_foreach(g->kernels, i, kernel)
	{
		char path[400];

		snprintf(path, sizeof(path), "/boot/initrd.img-%s", json_string_value(kernel));
		if (!guest_exists(g, path))
			return true;
	}
	return false;
}

static int grub_defaults(struct guest *g, struct guest_result *r, const char *path, struct err *e)
{
	_cleanup_(str_release) struct str out = {0};
	_cleanup_free_ char *text = NULL;
	bool alone = grub_kernel_is_alone(g);
	struct guest_span rest, line;
	size_t len;
	int rc = guest_read(g, path, &text, &len, e);

	if (rc < 0)
		return rc;
	rest = (struct guest_span){text, len};
	while (guest_next_line(&rest, &line)) {
		struct guest_span words = line, word;

		/* A comment may well say root=. */
		if (guest_next_word(&words, &word) && *word.s != '#')
			guest_fix_cmdline(g, line, alone, &out);
		else
			str_add_mem(&out, line.s, line.n);
		guest_end_line(line, rest, &out);
	}
	if (!out.len)
		return 0;
	return str_ok(&out) ? guest_write(g, r, path, out.s, out.len, 0644, e) : err_nomem(e);
}

static int grub_all_defaults(struct guest *g, struct guest_result *r, struct err *e)
{
	_cleanup_(guest_names_release) struct guest_names names = {0};
	int rc = guest_list(g, "/etc/default/grub.d", ".cfg", &names, e);

	if (rc == 0 && guest_exists(g, GRUB_DEFAULT))
		rc = grub_defaults(g, r, GRUB_DEFAULT, e);
	for (size_t i = 0; rc == 0 && i < names.n; i++) {
		char path[512];

		snprintf(path, sizeof(path), "/etc/default/grub.d/%s", names.v[i]);
		rc = grub_defaults(g, r, path, e);
	}
	if (rc == 0)
		rc = guest_write(g, r, GRUB_DROP_IN, grub_drop_in, strlen(grub_drop_in), 0644, e);
	return rc;
}

/* Only when the check found that it is missing. */
static int grub_install(struct guest *g, struct guest_result *r, struct err *e)
{
	const char *const argv[] = {"grub-install", "--target=i386-pc", "--no-floppy", g->grub_device, NULL};
	int rc = guest_run(g, argv, GRUB_SECONDS, NULL, e);

	if (rc == 0) {
		r->state = GUEST_DONE;
		str_add(&r->summary, "installed in the boot sector; ");
	}
	return rc;
}

static int grub_run(struct guest *g, struct guest_result *r, struct err *e)
{
	int rc = grub_cfg(g, r, e);

	if (rc == 0 && g->grub_device)
		rc = grub_install(g, r, e);

	if (rc == 0)
		rc = grub_all_defaults(g, r, e);
	if (rc == 0)
		rc = guest_remove(g, r, "/boot/grub/device.map", e);
	if (rc == 0 && r->state == GUEST_DONE)
		str_add(&r->summary, "root by UUID, serial console added, device.map removed where they were not so");
	return rc;
}

static bool grub_applies(struct guest *g)
{
	return guest_exists(g, GRUB_CFG);
}

const struct guest_step guest_step_grub = {"grub", grub_applies, grub_run};
