/*
 * cloud-init would take the new home for a new instance: new host keys, another hostname, the network written anew. It stays
 * installed and gets no datasource but "None"; removing the one file below gives it back to a cloud.
 */
#include "guest/guest_int.h"

#include <string.h>

#define CLOUD_INIT_FILE "/etc/cloud/cloud.cfg.d/99-replant.cfg"

static const char cloud_init_text[] = "# Written by Replant: this server was migrated and is no new instance.\n"
				      "# Remove this file to let cloud-init configure it from its cloud again.\n"
				      "datasource_list: [ None ]\n"
				      "preserve_hostname: true\n"
				      "ssh_deletekeys: false\n"
				      "network: {config: disabled}\n";

static int cloud_init_run(struct guest *g, struct guest_result *r, struct err *e)
{
	return guest_write(g, r, CLOUD_INIT_FILE, cloud_init_text, strlen(cloud_init_text), 0644, e);
}

static bool cloud_init_applies(struct guest *g)
{
	return guest_exists(g, "/usr/bin/cloud-init") && !guest_exists(g, "/etc/cloud/cloud-init.disabled");
}

const struct guest_step guest_step_cloud_init = {"cloud_init", cloud_init_applies, cloud_init_run};
