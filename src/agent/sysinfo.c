/* What the machine and its system are: from /proc, /sys and /etc, nothing else. Whatever is missing is left out or
 * null. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "agent/agent_int.h"
#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/util.h"

#define SYSINFO_FILE_MAX  (1u << 20)
#define SYSINFO_UNITS_MAX 100u

/* A string of somebody else's: what isn't UTF-8 must not make the whole inventory fail. */
static json_t *sysinfo_string(const char *s)
{
	json_t *j = json_string(s);

	return j ? j : json_string("?");
}

const char *sysinfo_line(const char *path, char *buf, size_t size)
{
	_cleanup_free_ char *text = NULL;
	size_t n;

	buf[0] = '\0';
	if (io_read_file(path, SYSINFO_FILE_MAX, &text, NULL, NULL) < 0)
		return buf;
	n = MIN(strcspn(text, "\n"), size - 1);
	memcpy(buf, text, n);
	while (n && (buf[n - 1] == ' ' || buf[n - 1] == '\t'))
		n--;
	buf[n] = '\0';
	return buf;
}

/* os-release(5): a shell-like assignment per line, the value bare or in quotes. */
static size_t sysinfo_os_value(const char *p, const char *end, char *out, size_t size)
{
	char quote = p < end && (*p == '"' || *p == '\'') ? *p++ : '\0';
	size_t n = 0;

	for (; p < end && n + 1 < size; p++) {
		if (quote ? *p == quote : (*p == ' ' || *p == '\t'))
			break;
		if (*p == '\\' && quote != '\'' && p + 1 < end)
			p++;
		out[n++] = *p;
	}
	out[n] = '\0';
	return n;
}

json_t *sysinfo_os_parse(const char *text)
{
	static const struct {
		const char *name, *key;
	} keys[] = {{"ID=", "id"},
		    {"ID_LIKE=", "id_like"},
		    {"NAME=", "name"},
		    {"VERSION_ID=", "version_id"},
		    {"VERSION_CODENAME=", "codename"},
		    {"PRETTY_NAME=", "pretty_name"}};
	json_t *o = json_object();
	char value[256];

	for (const char *p = text; o && *p;) {
		const char *end = p + strcspn(p, "\n");

		for (size_t i = 0; i < ARRAY_SIZE(keys); i++)
			if (str_starts(p, keys[i].name)) {
				sysinfo_os_value(p + strlen(keys[i].name), end, value, sizeof(value));
				json_object_set_new(o, keys[i].key, sysinfo_string(value));
			}
		p = *end ? end + 1 : end;
	}
	return o;
}

static json_t *sysinfo_os(void)
{
	_cleanup_free_ char *text = NULL;

	if (io_read_file("/etc/os-release", SYSINFO_FILE_MAX, &text, NULL, NULL) < 0 &&
	    io_read_file("/usr/lib/os-release", SYSINFO_FILE_MAX, &text, NULL, NULL) < 0)
		return json_object();
	return sysinfo_os_parse(text);
}

/* The value of "Key:   value" in a text of such lines; 0 when absent. */
static uint64_t sysinfo_kib(const char *text, const char *key)
{
	for (const char *p = text; *p; p += strcspn(p, "\n"), p += *p == '\n')
		if (str_starts(p, key) && p[strlen(key)] == ':')
			return strtoull(p + strlen(key) + 1, NULL, 10) * KIB;
	return 0;
}

static json_t *sysinfo_memory(void)
{
	_cleanup_free_ char *text = NULL;

	if (io_read_file("/proc/meminfo", SYSINFO_FILE_MAX, &text, NULL, NULL) < 0)
		return json_object();
	return json_pack("{s:I, s:I, s:I}", "total", (json_int_t)sysinfo_kib(text, "MemTotal"), "available",
			 (json_int_t)sysinfo_kib(text, "MemAvailable"), "swap_total",
			 (json_int_t)sysinfo_kib(text, "SwapTotal"));
}

static void sysinfo_cpu_model(const char *cpuinfo, char *out, size_t size)
{
	const char *p = strstr(cpuinfo, "model name");
	size_t n;

	out[0] = '\0';
	if (!p || !(p = strchr(p, ':')))
		return;
	p += 1 + strspn(p + 1, " \t");
	n = MIN(strcspn(p, "\n"), size - 1);
	memcpy(out, p, n);
	out[n] = '\0';
}

static json_t *sysinfo_cpu(bool *ret_hypervisor)
{
	_cleanup_free_ char *text = NULL;
	double load[3] = {0};
	char model[128] = "";

	*ret_hypervisor = false;
	if (io_read_file("/proc/cpuinfo", 16 * SYSINFO_FILE_MAX, &text, NULL, NULL) == 0) {
		sysinfo_cpu_model(text, model, sizeof(model));
		*ret_hypervisor = strstr(text, " hypervisor");
	}
	if (getloadavg(load, 3) != 3)
		load[0] = load[1] = load[2] = 0;
	return json_pack("{s:i, s:o, s:[f,f,f]}", "count", (int)sysconf(_SC_NPROCESSORS_ONLN), "model",
			 sysinfo_string(model), "load", load[0], load[1], load[2]);
}

/* 1 on, 0 off, -1 unknown. The variable is four bytes of attributes and one of value. */
static int sysinfo_secure_boot(void)
{
	_cleanup_free_ char *data = NULL;
	size_t len;

	if (io_read_file("/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c", 64, &data, &len,
			 NULL) < 0)
		return -1;
	return len == 5 ? data[4] == 1 : -1;
}

/* Which boot loader's configuration lies here; a hint, no promise. */
static const char *sysinfo_loader(void)
{
	static const struct {
		const char *path, *name;
	} loaders[] = {{"/boot/grub/grub.cfg", "grub"},
		       {"/boot/grub2/grub.cfg", "grub2"},
		       {"/boot/loader/entries", "systemd-boot"},
		       {"/efi/loader/entries", "systemd-boot"},
		       {"/boot/efi/loader/entries", "systemd-boot"},
		       {"/boot/extlinux/extlinux.conf", "extlinux"},
		       {"/boot/syslinux/syslinux.cfg", "syslinux"},
		       {"/etc/lilo.conf", "lilo"}};

	for (size_t i = 0; i < ARRAY_SIZE(loaders); i++)
		if (access(loaders[i].path, F_OK) == 0)
			return loaders[i].name;
	return NULL;
}

static json_t *sysinfo_boot(void)
{
	int secure = sysinfo_secure_boot();

	return json_pack("{s:s, s:s?, s:o}", "mode", access("/sys/firmware/efi", F_OK) == 0 ? "uefi" : "bios", "loader",
			 sysinfo_loader(), "secure_boot", secure < 0 ? json_null() : json_boolean(secure));
}

/* What kind of machine this is, by its firmware's own words. */
static const char *sysinfo_virtualization(const char *vendor, const char *product, bool hypervisor)
{
	static const struct {
		const char *word, *name;
	} known[] = {{"QEMU", "qemu"},
		     {"KVM", "kvm"},
		     {"VMware", "vmware"},
		     {"innotek", "virtualbox"},
		     {"VirtualBox", "virtualbox"},
		     {"Xen", "xen"},
		     {"Microsoft", "hyper-v"},
		     {"Amazon EC2", "amazon"},
		     {"Google", "google"},
		     {"Alibaba", "alibaba"},
		     {"OpenStack", "openstack"},
		     {"DigitalOcean", "digitalocean"},
		     {"Hetzner", "hetzner"},
		     {"Nutanix", "nutanix"},
		     {"Bochs", "bochs"},
		     {"Parallels", "parallels"},
		     {"oVirt", "ovirt"}};

	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (strstr(vendor, known[i].word) || strstr(product, known[i].word))
			/* Microsoft makes hardware too. */
			if (strcmp(known[i].name, "hyper-v") != 0 || hypervisor)
				return known[i].name;
	return hypervisor ? "unknown" : "none";
}

static int sysinfo_add_machine(json_t *o, bool hypervisor)
{
	char vendor[128], product[128];

	sysinfo_line("/sys/class/dmi/id/sys_vendor", vendor, sizeof(vendor));
	sysinfo_line("/sys/class/dmi/id/product_name", product, sizeof(product));
	json_object_set_new(
	    o, "machine",
	    json_pack("{s:o, s:o}", "vendor", sysinfo_string(vendor), "product", sysinfo_string(product)));
	return json_object_set_new(o, "virtualization",
				   json_string(sysinfo_virtualization(vendor, product, hypervisor)));
}

static void sysinfo_machine_id(char *buf, size_t size)
{
	static const char *const paths[] = {"/etc/machine-id", "/var/lib/dbus/machine-id",
					    "/sys/class/dmi/id/product_uuid"};

	for (size_t i = 0; i < ARRAY_SIZE(paths); i++)
		if (*sysinfo_line(paths[i], buf, size))
			return;
}

/* The units that systemd says have failed: a test boot of the copy that finds the same is no worse. */
static json_t *sysinfo_failed_units(void)
{
	_cleanup_free_ char *text = NULL;
	json_t *out;

	if (access("/run/systemd/system", F_OK) < 0)
		return NULL;
	/* coreutils' timeout: a system manager that hangs must not hang us. */
	if (proc_run((const char *[]){"timeout", "-k", "1", "5", "systemctl", "--failed", "--plain", "--no-legend",
				      "--no-pager", NULL},
		     SYSINFO_FILE_MAX, &text, NULL) < 0)
		return NULL;
	out = json_array();
	for (const char *p = text; p && *p && json_array_size(out) < SYSINFO_UNITS_MAX;
	     p += strcspn(p, "\n"), p += *p == '\n') {
		size_t n;

		p += strspn(p, " ");
		n = strcspn(p, " \t\n");
		if (n && n < 256 && memchr(p, '.', n))
			json_array_append_new(out, json_stringn(p, n));
	}
	return out;
}

int sysinfo_add(json_t *o)
{
	char host[256] = "", machine_id[64], boot_id[64], uptime[64];
	struct utsname u;
	bool hypervisor;
	json_t *units;

	gethostname(host, sizeof(host) - 1);
	sysinfo_machine_id(machine_id, sizeof(machine_id));
	json_object_set_new(o, "hostname", sysinfo_string(*host ? host : "localhost"));
	json_object_set_new(o, "machine_id", sysinfo_string(machine_id));
	json_object_set_new(o, "boot_id",
			    sysinfo_string(sysinfo_line("/proc/sys/kernel/random/boot_id", boot_id, sizeof(boot_id))));
	if (uname(&u) == 0) {
		json_object_set_new(o, "arch", sysinfo_string(u.machine));
		json_object_set_new(o, "kernel", sysinfo_string(u.release));
	}
	json_object_set_new(o, "os", sysinfo_os());
	json_object_set_new(o, "boot", sysinfo_boot());
	json_object_set_new(o, "cpu", sysinfo_cpu(&hypervisor));
	json_object_set_new(o, "memory", sysinfo_memory());
	json_object_set_new(o, "uptime_seconds",
			    json_real(strtod(sysinfo_line("/proc/uptime", uptime, sizeof(uptime)), NULL)));
	json_object_set_new(o, "time", json_real(id_now()));
	units = sysinfo_failed_units();
	if (units)
		json_object_set_new(o, "failed_units", units);
	return sysinfo_add_machine(o, hypervisor);
}
