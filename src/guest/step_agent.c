/* The copy is no source: our agent, which was on the server when it was copied, does not go with it. */
#include "guest/guest_int.h"

#include "base/util.h"

static const char *const agent_files[] = {
	"/etc/systemd/system/multi-user.target.wants/replant-agent.service",
	"/etc/systemd/system/replant-agent.service",
	"/etc/init.d/replant-agent",
	"/usr/local/bin/replant-agent",
	"/usr/local/sbin/replant-agent",
	"/usr/bin/replant-agent",
	"/usr/sbin/replant-agent",
};
/* Files only: what else lies there isn't ours. The secret with which the source speaks to its center is among them. */
static const char *const agent_dirs[] = {"/var/lib/replant-agent", "/etc/replant-agent", "/opt/replant-agent", "/opt/replant",
					 "/etc/replant", "/var/lib/replant"};

static int agent_run(struct guest *g, struct guest_result *r, struct err *e)
{
	for (size_t i = 0; i < ARRAY_SIZE(agent_files); i++) {
		int rc = guest_remove(g, r, agent_files[i], e);

		if (rc < 0)
			return rc;
	}
	for (size_t i = 0; i < ARRAY_SIZE(agent_dirs); i++) {
		_cleanup_(guest_names_release) struct guest_names names = {0};
		int rc = guest_list(g, agent_dirs[i], "", &names, e);

		for (size_t k = 0; rc == 0 && k < names.n; k++) {
			char path[512];

			if (!str_starts(names.v[k], "agent") && !str_starts(names.v[k], "replant-agent"))
				continue;
			snprintf(path, sizeof(path), "%s/%s", agent_dirs[i], names.v[k]);
			rc = guest_remove(g, r, path, e);
		}
		if (rc < 0)
			return rc;
	}
	return 0;
}

const struct guest_step guest_step_agent = {"agent", NULL, agent_run};
