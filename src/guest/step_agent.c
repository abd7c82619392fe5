/*
 * The copy is no source: our agent, which was on the server when it was copied, does not go with it. Its settings hold
 * the secret by which the source proves itself, so the report keeps none of it.
 */
#include "guest/guest_int.h"

#include "base/err.h"
#include "base/util.h"

/* What `replant-agent uninstall` removes on the source. */
static const char *const agent_files[] = {
    "/etc/systemd/system/multi-user.target.wants/replant-agent.service",
    "/etc/systemd/system/replant-agent.service",
    "/usr/local/sbin/replant-agent",
    "/etc/replant/agent.json",
    "/etc/replant/ca.pem",
};

/* A write that was cut off left its part, with the secret: "agent.json.tmp-...". */
static int agent_parts(struct guest *g, struct guest_result *r, struct err *e)
{
	_cleanup_(guest_names_release) struct guest_names names = {0};
	int rc = guest_list(g, "/etc/replant", "", &names, e);

	for (size_t i = 0; rc >= 0 && i < names.n; i++) {
		_cleanup_free_ char *path = str_printf("/etc/replant/%s", names.v[i]);

		if (!path)
			return err_nomem(e);
		if (str_starts(names.v[i], "agent.json.tmp-") || str_starts(names.v[i], "ca.pem.tmp-"))
			rc = guest_discard(g, r, path, e);
	}
	return MIN(rc, 0);
}

static int agent_run(struct guest *g, struct guest_result *r, struct err *e)
{
	int rc = 0;

	for (size_t i = 0; rc >= 0 && i < ARRAY_SIZE(agent_files); i++)
		rc = guest_discard(g, r, agent_files[i], e);
	if (rc >= 0)
		rc = agent_parts(g, r, e);
	if (rc < 0)
		return rc;
	guest_remove_dir(g, "/etc/replant");
	if (r->state == GUEST_DONE)
		str_add(&r->summary, "removed from the copy; the source keeps it");
	return 0;
}

const struct guest_step guest_step_agent = {"agent", NULL, agent_run};
