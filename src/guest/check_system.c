/* The check's items about the system as such: what it is, its clock, what is left of its old home. */
#include "guest/guest_int.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/utsname.h>

#include "base/err.h"
#include "base/io.h"
#include "base/util.h"

static int system_image(struct guest *g, struct guest_finding *f, struct err *e)
{
	json_t *warning;
	size_t i;

	json_array_foreach(g->warnings, i, warning)
	    guest_find(f, GUEST_WARNING, "%s", json_string_value(warning) ?: "");
	guest_find(f, GUEST_PASSED, "a Linux system is installed on the disks");
	return 0;
}

static int system_platform(struct guest *g, struct guest_finding *f, struct err *e)
{
	f->value = json_string(g->id);
	if (!guest_is_debian(g)) {
		guest_find(f, GUEST_WARNING, "the system is '%s'; only Debian and Ubuntu are converted and repaired",
			   g->id[0] ? g->id : "unknown");
		guest_advise(f, "look at the items of this report yourself");
	}
	guest_find(f, GUEST_PASSED, "%s", g->id);
	return 0;
}

static int system_version(struct guest *g, struct guest_finding *f, struct err *e)
{
	f->value = json_string(g->version);
	if (!g->version[0])
		guest_find(f, GUEST_WARNING, "the system does not say its version (VERSION_ID in /etc/os-release)");
	guest_find(f, GUEST_PASSED, "%s", g->pretty[0] ? g->pretty : g->version);
	return 0;
}

/* From the first of these programs that is one. */
const char *guest_machine(struct guest *g)
{
	static const char *const programs[] = {"/bin/sh", "/usr/bin/sh", "/sbin/init", "/bin/ls", "/usr/bin/env"};

	for (size_t i = 0; i < ARRAY_SIZE(programs); i++) {
		_cleanup_close_ int fd = guest_openat(g, programs[i], O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
		uint8_t header[GUEST_ELF_HEADER];
		ssize_t n = fd < 0 ? fd : io_read_full(fd, header, sizeof(header));
		const char *machine = n > 0 ? guest_elf_machine(header, (size_t)n) : NULL;

		if (machine)
			return machine;
	}
	return NULL;
}

/* What is running this is what the region's machines are. */
static bool system_runs_here(const char *machine)
{
	struct utsname u;

	if (uname(&u) < 0 || strcmp(u.machine, machine) == 0)
		return true;
	if (strcmp(u.machine, "x86_64") == 0)
		return strcmp(machine, "i386") == 0 || strcmp(machine, "x32") == 0;
	return strcmp(u.machine, "aarch64") == 0 && strcmp(machine, "arm64") == 0;
}

static int system_architecture(struct guest *g, struct guest_finding *f, struct err *e)
{
	const char *machine = guest_machine(g);

	if (!machine) {
		guest_find(f, GUEST_CRITICAL, "none of the system's programs (/bin/sh ...) can be read");
		guest_advise(f, "copy the server again");
		return 0;
	}
	f->value = json_string(machine);
	if (!system_runs_here(machine)) {
		guest_find(f, GUEST_CRITICAL, "the system is for %s, which the machines here are not", machine);
		guest_advise(f, "export the image to a region with such machines");
	}
	guest_find(f, GUEST_PASSED, "%s", machine);
	return 0;
}

/* The third line of the file, which hwclock(8) writes. */
bool guest_adjtime_is_local(struct guest_span text)
{
	struct guest_span line, word;

	for (unsigned i = 0; i < 3; i++)
		if (!guest_next_line(&text, &line))
			return false;
	return guest_next_word(&line, &word) && guest_span_is(word, "LOCAL");
}

static int system_rtc(struct guest *g, struct guest_finding *f, struct err *e)
{
	_cleanup_free_ char *text = NULL;
	size_t len = 0;
	bool local = guest_read(g, "/etc/adjtime", &text, &len, NULL) == 0 &&
		     guest_adjtime_is_local((struct guest_span){text, len});

	f->value = json_string(local ? "LOCAL" : "UTC");
	if (local) {
		guest_find(f, GUEST_WARNING, "the hardware clock is taken for local time (LOCAL in /etc/adjtime)");
		guest_advise(f, "set it to UTC on the source: 'timedatectl set-local-rtc 0'");
	}
	guest_find(f, GUEST_PASSED, "the hardware clock has UTC");
	return 0;
}

static int system_selinux(struct guest *g, struct guest_finding *f, struct err *e)
{
	_cleanup_free_ char *text = NULL;
	char mode[32] = "";
	size_t len;

	if (guest_read(g, "/etc/selinux/config", &text, &len, NULL) == 0)
		guest_assignment(text, len, "SELINUX", mode, sizeof(mode));
	f->value = json_string(mode[0] ? mode : "absent");
	if (strcmp(mode, "enforcing") == 0) {
		guest_find(f, GUEST_WARNING,
			   "SELinux is enforcing: files written by the conversion have no labels until it labels anew");
		guest_advise(f, "set SELINUX=permissive in /etc/selinux/config for the first boot, and make the file "
				"/.autorelabel");
	}
	guest_find(f, GUEST_PASSED, "SELinux is not enforcing");
	return 0;
}

/* ---- cloud ---- */

#define CLOUD_OFF "/etc/cloud/cloud-init.disabled"

static bool cloud_has_init(const struct guest *g)
{
	return guest_exists(g, "/usr/bin/cloud-init");
}

static int cloud_init(struct guest *g, struct guest_finding *f, struct err *e)
{
	const char *state = !cloud_has_init(g) ? "absent" : guest_exists(g, CLOUD_OFF) ? "off" : "on";

	f->value = json_string(state);
	if (strcmp(state, "on") == 0) {
		guest_find(
		    f, GUEST_WARNING,
		    "cloud-init is on: it takes a new home for a new server, with new host keys and another name");
		guest_advise(f,
			     "switch it off (the file " CLOUD_OFF "), unless the image is for a cloud that needs it");
		f->repair[0] = &guest_step_cloud_init;
	}
	guest_find(f, GUEST_PASSED, "cloud-init is %s%s", strcmp(state, "off") == 0 ? "switched off" : "not installed",
		   strcmp(state, "off") == 0 ? " (remove " CLOUD_OFF " for a cloud that needs it)" : "");
	return 0;
}

static int cloud_resize(struct guest *g, struct guest_finding *f, struct err *e)
{
	bool grow = guest_exists(g, "/usr/bin/growpart"), init = cloud_has_init(g), off = guest_exists(g, CLOUD_OFF);

	f->value = json_pack("{s:b, s:b}", "cloud_init", init && !off, "growpart", grow);
	if (!init || !grow) {
		guest_find(f, GUEST_WARNING,
			   "%s not installed: the root filesystem does not grow with its disk by itself",
			   init   ? "growpart is"
			   : grow ? "cloud-init is"
				  : "cloud-init and growpart are");
		guest_advise(f, "install cloud-init and cloud-guest-utils on the source, or grow it by hand");
	} else if (off) {
		guest_find(f, GUEST_PASSED,
			   "growpart is installed; cloud-init, which would call it, is switched off: the root "
			   "filesystem grows by hand only");
		return 0;
	}
	guest_find(f, GUEST_PASSED, "cloud-init and growpart let the root filesystem grow with its disk");
	return 0;
}

static int cloud_agent(struct guest *g, struct guest_finding *f, struct err *e)
{
	static const char *const places[] = {"/usr/sbin/qemu-ga", "/usr/bin/qemu-ga", "/usr/local/bin/qemu-ga"};

	for (size_t i = 0; i < ARRAY_SIZE(places); i++)
		if (guest_exists(g, places[i])) {
			guest_find(f, GUEST_PASSED, "QEMU's guest agent is installed");
			return 0;
		}
	guest_find(
	    f, GUEST_WARNING,
	    "QEMU's guest agent is not installed: the hypervisor can't ask the system to freeze its filesystems");
	guest_advise(f, "install the package qemu-guest-agent");
	return 0;
}

/* ---- leftovers ---- */

/* The step that names them does so here, too. */
static int leftover_tools(struct guest *g, struct guest_finding *f, struct err *e)
{
	struct guest_result r = {.files = json_array(), .notes = json_array()};
	int rc = r.files && r.notes ? guest_step_guest_tools.run(g, &r, e) : err_nomem(e);
	json_t *note;
	size_t i;

	json_array_foreach(r.notes, i, note) guest_find(f, GUEST_WARNING, "%s", json_string_value(note) ?: "");
	guest_find(f, GUEST_PASSED, "no programs of another hypervisor or cloud are there");
	json_decref(r.files);
	json_decref(r.notes);
	return rc;
}

struct leftover {
	const char *path, *what;
};

static void leftover_look(struct guest *g, struct guest_finding *f, const struct leftover *v, size_t n,
			  const char *text)
{
	f->value = json_array();
	for (size_t i = 0; i < n; i++)
		if (guest_exists(g, v[i].path)) {
			guest_find(f, GUEST_WARNING, "%s ('%s')", v[i].what, v[i].path);
			json_array_append_new(f->value, json_string(v[i].what));
		}
	if (f->level != GUEST_PASSED)
		guest_advise(f, "%s", text);
}

static int leftover_security(struct guest *g, struct guest_finding *f, struct err *e)
{
	static const struct leftover known[] = {
	    {"/usr/local/aegis", "Alibaba Cloud security agent is installed"},
	    {"/usr/local/qcloud/YunJing", "Tencent Cloud security agent is installed"},
	    {"/usr/local/hostguard", "Huawei Cloud security agent is installed"},
	    {"/opt/CrowdStrike", "CrowdStrike Falcon is installed"},
	    {"/opt/ds_agent", "Trend Micro Deep Security is installed"},
	    {"/opt/sophos-spl", "Sophos is installed"},
	    {"/opt/sentinelone", "SentinelOne is installed"},
	    {"/opt/carbonblack", "Carbon Black is installed"},
	    {"/opt/McAfee", "McAfee is installed"},
	    {"/opt/eset", "ESET is installed"},
	    {"/opt/microsoft/mdatp", "Microsoft Defender is installed"},
	    {"/var/ossec", "OSSEC or Wazuh is installed"},
	};

	leftover_look(
	    g, f, known, ARRAY_SIZE(known),
	    "register it anew in the new home, or remove it: two servers with one identity confuse its center");
	guest_find(f, GUEST_PASSED, "no security software that is bound to its server is there");
	return 0;
}

static int leftover_nested(struct guest *g, struct guest_finding *f, struct err *e)
{
	static const struct leftover known[] = {
	    {"/usr/sbin/libvirtd", "libvirt is installed"},
	    {"/usr/bin/qemu-system-x86_64", "QEMU is installed"},
	    {"/usr/bin/VBoxManage", "VirtualBox is installed"},
	    {"/usr/bin/vmware", "VMware Workstation is installed"},
	    {"/usr/sbin/xl", "Xen is installed"},
	};

	leftover_look(g, f, known, ARRAY_SIZE(known),
		      "machines inside of this one need nested virtualization, which most clouds don't have");
	guest_find(f, GUEST_PASSED, "the system is no host of virtual machines");
	return 0;
}

/* Old systems whose kernel knows no recent hardware. */
static int system_metal(struct guest *g, struct guest_finding *f, struct err *e)
{
	if (strcmp(g->id, "centos") == 0 && str_starts(g->version, "5") && strcmp(g->version, "5.11") != 0) {
		guest_find(f, GUEST_WARNING, "CentOS before 5.11 does not start on bare metal");
		guest_advise(f, "update it to 5.11");
	}
	guest_find(f, GUEST_PASSED, "the system's age doesn't keep it from bare metal");
	return 0;
}

const struct guest_check guest_checks_system[] = {
    {"system_image", "system", true, NULL, system_image},
    {"platform", "system", false, NULL, system_platform},
    {"os_version", "system", false, NULL, system_version},
    {"architecture", "system", true, NULL, system_architecture},
    {"rtc", "system", false, NULL, system_rtc},
    {"selinux", "system", false, NULL, system_selinux},
    {"bare_metal", "system", false, NULL, system_metal},
    {"cloud_init", "cloud", false, NULL, cloud_init},
    {"online_resize", "cloud", false, NULL, cloud_resize},
    {"guest_agent", "cloud", false, NULL, cloud_agent},
    {"old_tools", "leftovers", false, NULL, leftover_tools},
    {"security_software", "leftovers", false, NULL, leftover_security},
    {"nested_virtualization", "leftovers", false, NULL, leftover_nested},
    {0},
};
