/* /etc/fstab: names that change with the hardware become UUIDs; what isn't in this set of disks may not stop the boot.
 */
#include "guest/guest_int.h"

#include <string.h>
#include <strings.h>

#include "base/err.h"
#include "base/util.h"

#define NOFAIL "nofail,x-systemd.device-timeout=10s"

struct fstab_line {
	struct guest_span all, spec, file, type, options;
};

static bool fstab_split(struct guest_span line, struct fstab_line *f)
{
	struct guest_span rest = line;

	*f = (struct fstab_line){.all = line};
	if (!guest_next_word(&rest, &f->spec) || *f->spec.s == '#')
		return false;
	return guest_next_word(&rest, &f->file) && guest_next_word(&rest, &f->type) &&
	       (guest_next_word(&rest, &f->options) || true);
}

/* Does the boot go on without it? */
static bool fstab_may_fail(const struct fstab_line *f)
{
	return guest_has_option(f->options, "nofail") || guest_has_option(f->options, "noauto");
}

static bool fstab_is_network(const struct fstab_line *f, const char *spec)
{
	static const char *const types[] = {"nfs",  "nfs4",      "cifs",       "smb3",           "smbfs",
					    "ceph", "glusterfs", "fuse.sshfs", "fuse.glusterfs", "davfs",
					    "9p",   "virtiofs",  "lustre",     "beegfs"};

	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		if (guest_span_is(f->type, types[i]))
			return true;
	return guest_has_option(f->options, "_netdev") || str_starts(spec, "//");
}

/* A mapping that the system itself opens at boot. */
static bool fstab_is_crypt(const struct guest *g, const char *spec)
{
	_cleanup_free_ char *text = NULL;
	struct guest_span rest, line, word;
	size_t len;

	if (!str_starts(spec, "/dev/mapper/") || guest_read(g, "/etc/crypttab", &text, &len, NULL) < 0)
		return false;
	rest = (struct guest_span){text, len};
	while (guest_next_line(&rest, &line))
		if (guest_next_word(&line, &word) && guest_span_is(word, spec + strlen("/dev/mapper/")))
			return true;
	return false;
}

/* The line again with another first field, and `more` in front of its options. */
static void fstab_put(const struct fstab_line *f, const char *spec, const char *more, struct str *out)
{
	const char *end = f->all.s + f->all.n, *at = f->all.s;

	str_add_mem(out, at, (size_t)(f->spec.s - at));
	if (spec)
		str_add(out, spec);
	else
		str_add_mem(out, f->spec.s, f->spec.n);
	at = f->spec.s + f->spec.n;
	if (more && !f->options.n) {
		const char *type_end = f->type.s + f->type.n;

		str_add_mem(out, at, (size_t)(type_end - at));
		str_addf(out, " %s", more);
		at = type_end;
	} else if (more) {
		str_add_mem(out, at, (size_t)(f->options.s - at));
		str_addf(out, "%s,", more);
		at = f->options.s;
	}
	str_add_mem(out, at, (size_t)(end - at));
}

static void fstab_line(struct guest *g, struct guest_result *r, struct guest_span line, struct str *out,
		       unsigned *renamed)
{
	const struct guest_volume *v = NULL;
	struct fstab_line f;
	char spec[512], file[512], name[128];
	enum guest_spec kind;
	bool may_fail;

	if (!fstab_split(line, &f) || !guest_span_copy(f.spec, true, spec, sizeof(spec)) ||
	    !guest_span_copy(f.file, true, file, sizeof(file))) {
		str_add_mem(out, line.s, line.n);
		return;
	}
	kind = guest_device_find(g, spec, &v);
	may_fail = fstab_may_fail(&f);
	if (strcmp(file, "/") == 0 && kind == GUEST_SPEC_UNKNOWN && g->root_volume) {
		v = g->root_volume;
		kind = GUEST_SPEC_FRAGILE;
	}
	if (kind == GUEST_SPEC_FRAGILE && guest_device_name(v, name, sizeof(name))) {
		fstab_put(&f, name, NULL, out);
		(*renamed)++;
	} else if (may_fail) {
		str_add_mem(out, line.s, line.n);
	} else if (kind == GUEST_SPEC_OTHER && fstab_is_network(&f, spec)) {
		guest_note(r, "'%s' comes over the network; the boot no longer waits for it (nofail)", file);
		fstab_put(&f, NULL, "nofail", out);
	} else if (kind == GUEST_SPEC_UNKNOWN && !fstab_is_crypt(g, spec)) {
		guest_note(r, "'%s' on '%s' is not among the copied disks; the boot no longer needs it (nofail)", file,
			   spec);
		fstab_put(&f, NULL, NOFAIL, out);
	} else {
		str_add_mem(out, line.s, line.n);
	}
}

unsigned guest_rewrite_fstab(struct guest *g, struct guest_result *r, struct guest_span text, struct str *out)
{
	struct guest_span line;
	unsigned renamed = 0;

	while (guest_next_line(&text, &line)) {
		fstab_line(g, r, line, out, &renamed);
		guest_end_line(line, text, out);
	}
	return renamed;
}

/* ---- the check of the same file ---- */

/* One name for the drivers of the same filesystem; `type` is of fstab or of blkid. */
static const char *fstab_family(struct guest_span type)
{
	static const char *const names[][2] = {
	    {"ext2", "ext"},          {"ext3", "ext"},         {"ext4", "ext"},        {"ntfs", "ntfs"},
	    {"ntfs3", "ntfs"},        {"ntfs-3g", "ntfs"},     {"lowntfs-3g", "ntfs"}, {"fuse.ntfs", "ntfs"},
	    {"fuse.ntfs-3g", "ntfs"}, {"vfat", "vfat"},        {"msdos", "vfat"},      {"umsdos", "vfat"},
	    {"exfat", "exfat"},       {"fuse.exfat", "exfat"}, {"exfat-fuse", "exfat"}};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (guest_span_is(type, names[i][0]))
			return names[i][1];
	return NULL;
}

/* mount(8) takes several types, between commas, and tries them. */
static bool fstab_type_fits(struct guest_span types, const char *fstype)
{
	const char *family = fstab_family((struct guest_span){fstype, strlen(fstype)}), *other;

	while (types.n) {
		const char *comma = memchr(types.s, ',', types.n);
		struct guest_span one = {types.s, comma ? (size_t)(comma - types.s) : types.n};

		other = fstab_family(one);
		if (guest_span_is(one, "auto") || guest_span_is(one, "none") || guest_span_is(one, "fuseblk") ||
		    guest_span_is(one, fstype) || (family && other && strcmp(family, other) == 0))
			return true;
		types.s += one.n + (comma != NULL);
		types.n -= one.n + (comma != NULL);
	}
	return false;
}

/* What it says of the root, and of types, must be true of what is on the disks. */
static void judge_volume(const struct guest *g, const struct fstab_line *f, const char *spec, const char *file,
			 const struct guest_volume *v, struct guest_finding *out)
{
	bool root = strcmp(file, "/") == 0;

	if (root && g->root_volume && v != g->root_volume && strcasecmp(v->uuid, g->root_volume->uuid) != 0)
		guest_find(out, GUEST_CRITICAL, "'/' is '%s' there, but the system is on another filesystem", spec);
	if (v->fstype[0] && !fstab_type_fits(f->type, v->fstype))
		guest_find(out, fstab_may_fail(f) || guest_span_is(f->type, "swap") ? GUEST_WARNING : GUEST_CRITICAL,
			   "'%s' is said to be %.*s and is %s", file, (int)MIN(f->type.n, (size_t)32), f->type.s,
			   v->fstype);
}

static void judge_line(const struct guest *g, const struct fstab_line *f, const char *spec, const char *file,
		       struct guest_finding *out)
{
	bool may_fail = fstab_may_fail(f), swap = guest_span_is(f->type, "swap");
	const struct guest_volume *v = NULL;
	enum guest_spec kind = guest_device_find(g, spec, &v);

	if (kind == GUEST_SPEC_FRAGILE)
		guest_find(out, may_fail || swap || str_starts(spec, "/dev/vd") ? GUEST_WARNING : GUEST_CRITICAL,
			   "'%s' is on '%s', a name that changes with the hardware", file, spec);
	else if (kind == GUEST_SPEC_UNKNOWN && !may_fail && swap && !fstab_is_crypt(g, spec))
		guest_find(out, GUEST_WARNING, "swap is on '%s', which is not on the disks: the boot waits for it",
			   spec);
	else if (kind == GUEST_SPEC_UNKNOWN && !may_fail && !fstab_is_crypt(g, spec))
		guest_find(out, GUEST_CRITICAL, "'%s' is on '%s', which is not on the disks: the boot stops there",
			   file, spec);
	else if (kind == GUEST_SPEC_OTHER && !may_fail && fstab_is_network(f, spec))
		guest_find(out, GUEST_WARNING, "'%s' comes over the network, and the boot waits for it", file);
	if (v)
		judge_volume(g, f, spec, file, v, out);
}

void guest_judge_fstab(const struct guest *g, struct guest_span text, struct guest_finding *out)
{
	struct guest_span line, rest, word;
	char spec[512], file[512];
	struct fstab_line f;

	while (guest_next_line(&text, &line)) {
		rest = line;
		if (!guest_next_word(&rest, &word) || *word.s == '#')
			continue;
		if (!fstab_split(line, &f) || !guest_span_copy(f.spec, true, spec, sizeof(spec)) ||
		    !guest_span_copy(f.file, true, file, sizeof(file)))
			guest_find(out, GUEST_WARNING, "a line is not complete: '%.*s'", (int)MIN(line.n, (size_t)100),
				   line.s);
		else
			judge_line(g, &f, spec, file, out);
	}
}

static int fstab_run(struct guest *g, struct guest_result *r, struct err *e)
{
	_cleanup_(str_release) struct str out = {0};
	_cleanup_free_ char *text = NULL;
	unsigned renamed;
	size_t len;
	int rc = guest_read(g, "/etc/fstab", &text, &len, e);

	if (rc < 0)
		return rc;
	renamed = guest_rewrite_fstab(g, r, (struct guest_span){text, len}, &out);
	if (!str_ok(&out))
		return err_nomem(e);
	rc = guest_write(g, r, "/etc/fstab", out.s ? out.s : "", out.len, 0644, e);
	if (rc == 0 && r->state == GUEST_DONE)
		str_addf(&r->summary, "%u device names became UUIDs, %zu entries may now be missing", renamed,
			 json_array_size(r->notes));
	return rc;
}

static bool fstab_applies(struct guest *g)
{
	return guest_exists(g, "/etc/fstab");
}

const struct guest_step guest_step_fstab = {"fstab", fstab_applies, fstab_run};
