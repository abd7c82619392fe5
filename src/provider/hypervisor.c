/* Where instances run: one of several kinds. */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/util.h"
#include "provider/libvirt.h"
#include "provider/local_int.h"

int hypervisor_open(const char *kind, const struct provider_settings *s, const json_t *settings,
		    struct hypervisor **ret, struct err *e)
{
	static const struct {
		const char *kind;
		int (*open)(const struct provider_settings *s, const json_t *settings, struct hypervisor **ret,
			    struct err *e);
	} kinds[] = {
	    {"local", local_vm_open},
	    {"libvirt", libvirt_open},
	};

	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		if (strcmp(kind, kinds[i].kind) == 0)
			return kinds[i].open(s, settings, ret, e);
	return err_set(e, -ENOENT, "there is no hypervisor '%s' (there are 'local' and 'libvirt')", kind);
}
