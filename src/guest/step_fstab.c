/* /etc/fstab: names that change with the hardware become UUIDs; what isn't in this set of disks may not stop the boot.
 */
#include "guest/guest_int.h"

#include <string.h>

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
	may_fail = guest_has_option(f.options, "nofail") || guest_has_option(f.options, "noauto");
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
