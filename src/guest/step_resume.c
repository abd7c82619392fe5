/*
 * The device a hibernated system resumes from (initramfs-tools): a name that is gone costs half a minute at every boot.
 * The initramfs holds a copy of the setting, so the kernel command line, which wins over it, says it too.
 */
#include "guest/guest_int.h"

#include <string.h>

#include "base/err.h"
#include "base/util.h"

#define RESUME_FILE "/etc/initramfs-tools/conf.d/resume"

static int resume_run(struct guest *g, struct guest_result *r, struct err *e)
{
	const struct guest_volume *v = NULL;
	_cleanup_(str_release) struct str out = {0};
	_cleanup_free_ char *text = NULL;
	char value[300], name[128] = "none";
	enum guest_spec kind;
	size_t len;
	int rc = guest_read(g, RESUME_FILE, &text, &len, e);

	if (rc < 0)
		return rc;
	if (!guest_assignment(text, len, "RESUME", value, sizeof(value)) || !value[0])
		return 0;
	kind = guest_device_find(g, value, &v);
	if (kind == GUEST_SPEC_STABLE || kind == GUEST_SPEC_OTHER)
		return 0;
	if (kind == GUEST_SPEC_FRAGILE)
		guest_device_name(v, name, sizeof(name));
	str_addf(&out, "RESUME=%s\n", name);
	if (!str_ok(&out))
		return err_nomem(e);
	snprintf(g->resume, sizeof(g->resume), "%s%s", v ? "resume=" : "noresume", v ? name : "");
	str_addf(&r->summary, "'%s' became '%s'", value, name);
	return guest_write(g, r, RESUME_FILE, out.s, out.len, 0644, e);
}

static bool resume_applies(struct guest *g)
{
	return guest_exists(g, RESUME_FILE);
}

const struct guest_step guest_step_resume = {"resume", resume_applies, resume_run};
