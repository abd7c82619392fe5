/* Programs of the source's own cloud or hypervisor: named, not removed, because removing packages needs their manager.
 */
#include "guest/guest_int.h"

#include "base/util.h"

static const struct {
	const char *path, *what;
} guest_tools[] = {
    {"/usr/bin/vmtoolsd", "VMware tools"},
    {"/usr/sbin/VBoxService", "VirtualBox additions"},
    {"/usr/sbin/xe-daemon", "Xen tools"},
    {"/usr/sbin/hv_kvp_daemon", "Hyper-V daemons"},
    {"/usr/sbin/waagent", "Azure agent"},
    {"/usr/bin/google_guest_agent", "Google guest agent"},
    {"/usr/bin/amazon-ssm-agent", "AWS Systems Manager agent"},
    {"/snap/amazon-ssm-agent", "AWS Systems Manager agent"},
    {"/usr/local/cloudmonitor", "Alibaba Cloud monitor"},
    {"/usr/local/share/aliyun-assist", "Alibaba Cloud assistant"},
    {"/usr/local/qcloud", "Tencent Cloud agents"},
};

static int guest_tools_run(struct guest *g, struct guest_result *r, struct err *e)
{
	for (size_t i = 0; i < ARRAY_SIZE(guest_tools); i++)
		if (guest_exists(g, guest_tools[i].path))
			guest_note(r, "%s are installed ('%s') and can be removed when the new home is somewhere else",
				   guest_tools[i].what, guest_tools[i].path);
	return 0;
}

const struct guest_step guest_step_guest_tools = {"guest_tools", NULL, guest_tools_run};
