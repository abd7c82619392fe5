/*
 * cloud-init would take the new home for a new instance: new host keys, another hostname, the network written anew.
 * With the datasource None it still would, and lock the password of the default user. It stays installed and is
 * switched off by the file it documents for that; removing it gives the system back to a cloud.
 */
#include "guest/guest_int.h"

#include <string.h>

#define CLOUD_INIT_OFF     "/etc/cloud/cloud-init.disabled"
#define CLOUD_INIT_NETWORK "/etc/cloud/cloud.cfg.d/99-replant-network.cfg"

/* An address given by hand stays, also when somebody switches it on again. */
static int cloud_init_keep_network(struct guest *g, struct guest_result *r, struct err *e)
{
	static const char text[] = "# Written by Replant: the address of this server was given by hand.\n"
				   "network: {config: disabled}\n";

	if (!g->has_address)
		return guest_remove(g, r, CLOUD_INIT_NETWORK, e);
	return guest_write(g, r, CLOUD_INIT_NETWORK, text, strlen(text), 0644, e);
}

static int cloud_init_run(struct guest *g, struct guest_result *r, struct err *e)
{
	/* Empty is what it is when people make it by hand. */
	int rc = guest_exists(g, CLOUD_INIT_OFF) ? 0 : guest_write(g, r, CLOUD_INIT_OFF, "", 0, 0644, e);

	return rc ?: cloud_init_keep_network(g, r, e);
}

static bool cloud_init_applies(struct guest *g)
{
	return guest_exists(g, "/usr/bin/cloud-init");
}

const struct guest_step guest_step_cloud_init = {"cloud_init", cloud_init_applies, cloud_init_run};
