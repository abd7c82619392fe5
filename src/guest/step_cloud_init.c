/*
 * cloud-init would take the new home for a new instance: new host keys, another hostname, the network written anew.
 * With the datasource None it still would, and lock the password of the default user. It stays installed and is
 * switched off by the file it documents for that; removing it gives the system back to a cloud.
 */
#include "guest/guest_int.h"

#define CLOUD_INIT_OFF "/etc/cloud/cloud-init.disabled"

static int cloud_init_run(struct guest *g, struct guest_result *r, struct err *e)
{
	/* Empty is what it is when people make it by hand. */
	return guest_exists(g, CLOUD_INIT_OFF) ? 0 : guest_write(g, r, CLOUD_INIT_OFF, "", 0, 0644, e);
}

static bool cloud_init_applies(struct guest *g)
{
	return guest_exists(g, "/usr/bin/cloud-init");
}

const struct guest_step guest_step_cloud_init = {"cloud_init", cloud_init_applies, cloud_init_run};
