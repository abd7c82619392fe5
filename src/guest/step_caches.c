/* What other programs remember about the source's disks: LVM's list of devices, blkid's and multipath's caches. */
#include "guest/guest_int.h"

#include "base/util.h"

static int caches_run(struct guest *g, struct guest_result *r, struct err *e)
{
	static const char *const paths[] = {
	    "/etc/lvm/devices/system.devices", "/etc/lvm/cache/.cache", "/etc/blkid.tab", "/etc/blkid.tab.old",
	    "/etc/multipath/bindings",         "/etc/multipath/wwids",
	};

	for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
		int rc = guest_remove(g, r, paths[i], e);

		if (rc < 0)
			return rc;
	}
	return 0;
}

const struct guest_step guest_step_caches = {"device_caches", NULL, caches_run};

/* Rules that older systems wrote about the network cards and drives they found once. */
static int net_names_run(struct guest *g, struct guest_result *r, struct err *e)
{
	static const char *const paths[] = {
	    "/etc/udev/rules.d/70-persistent-net.rules",
	    "/etc/udev/rules.d/70-persistent-cd.rules",
	    "/etc/udev/rules.d/z25_persistent-net.rules",
	};

	for (size_t i = 0; i < ARRAY_SIZE(paths); i++) {
		int rc = guest_remove(g, r, paths[i], e);

		if (rc < 0)
			return rc;
	}
	return 0;
}

const struct guest_step guest_step_net_names = {"persistent_names", NULL, net_names_run};
