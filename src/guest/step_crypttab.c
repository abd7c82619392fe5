/* /etc/crypttab: the second field names the encrypted device. */
#include "guest/guest_int.h"

#include "base/err.h"
#include "base/util.h"

static void crypttab_line(struct guest *g, struct guest_result *r, struct guest_span line, struct str *out)
{
	const struct guest_volume *v = NULL;
	struct guest_span rest = line, name, source;
	enum guest_spec kind = GUEST_SPEC_OTHER;
	char spec[512], stable[128];
	const char *end = line.s + line.n;

	if (guest_next_word(&rest, &name) && *name.s != '#' && guest_next_word(&rest, &source) &&
	    guest_span_copy(source, true, spec, sizeof(spec)))
		kind = guest_device_find(g, spec, &v);
	if (kind == GUEST_SPEC_UNKNOWN)
		guest_note(r, "the encrypted device '%s' is not among the copied disks", spec);
	if (kind != GUEST_SPEC_FRAGILE || !guest_device_name(v, stable, sizeof(stable))) {
		str_add_mem(out, line.s, line.n);
		return;
	}
	str_add_mem(out, line.s, (size_t)(source.s - line.s));
	str_add(out, stable);
	str_add_mem(out, source.s + source.n, (size_t)(end - source.s - source.n));
}

void guest_rewrite_crypttab(struct guest *g, struct guest_result *r, struct guest_span text, struct str *out)
{
	struct guest_span line;

	while (guest_next_line(&text, &line)) {
		crypttab_line(g, r, line, out);
		guest_end_line(line, text, out);
	}
}

static int crypttab_run(struct guest *g, struct guest_result *r, struct err *e)
{
	_cleanup_(str_release) struct str out = {0};
	_cleanup_free_ char *text = NULL;
	size_t len;
	int rc = guest_read(g, "/etc/crypttab", &text, &len, e);

	if (rc < 0)
		return rc;
	guest_rewrite_crypttab(g, r, (struct guest_span){text, len}, &out);
	if (!str_ok(&out))
		return err_nomem(e);
	return guest_write(g, r, "/etc/crypttab", out.s ? out.s : "", out.len, 0600, e);
}

static bool crypttab_applies(struct guest *g)
{
	return guest_exists(g, "/etc/crypttab");
}

const struct guest_step guest_step_crypttab = {"crypttab", crypttab_applies, crypttab_run};
