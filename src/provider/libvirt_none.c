/* Instead of libvirt.c where its headers were missing. */
#include <errno.h>

#include "base/err.h"
#include "provider/libvirt.h"

int libvirt_open(const struct provider_settings *s, const json_t *settings, struct hypervisor **ret, struct err *e)
{
	return err_set(
	    e, -ENOSYS,
	    "this program was built without libvirt; install libvirt's headers (libvirt-dev, libxml2-dev) and "
	    "build it again");
}
