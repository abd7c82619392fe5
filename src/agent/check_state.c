/* Checks of how the server is right now, and of what lies in its files. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "agent/agent_int.h"
#include "agent/check_int.h"
#include "base/io.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/util.h"

#define STATE_CPU_PERCENT   90.0
#define STATE_FULL_PERCENT  99.0
#define STATE_FILE_MAX      (1u << 20)
#define STATE_KERNEL_MIN    (64 * KIB)
#define STATE_PROCESSES_MAX 65536u

/* ---- processors ---- */

/* Jiffies since the boot: all, and those in which nothing was to be done. */
static bool cpu_read(double *ret_all, double *ret_idle)
{
	_cleanup_free_ char *text = NULL;
	unsigned long long v[8] = {0};

	if (io_read_file("/proc/stat", STATE_FILE_MAX, &text, NULL, NULL) < 0 ||
	    sscanf(text, "cpu %llu %llu %llu %llu %llu %llu %llu %llu", &v[0], &v[1], &v[2], &v[3], &v[4], &v[5], &v[6],
		   &v[7]) < 5)
		return false;
	*ret_all = 0;
	for (size_t i = 0; i < ARRAY_SIZE(v); i++)
		*ret_all += (double)v[i];
	*ret_idle = (double)(v[3] + v[4]);
	return true;
}

void check_cpu(struct check_ctx *c)
{
	double all, idle, all_then, idle_then, percent;

	if (!cpu_read(&all_then, &idle_then))
		return;
	nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
	if (!cpu_read(&all, &idle) || all <= all_then)
		return;
	percent = 100 * (1 - (idle - idle_then) / (all - all_then));
	percent = MIN(MAX(percent, 0.0), 100.0);
	if (percent > STATE_CPU_PERCENT)
		check_say(c, CHECK_WARNING, "stop processes that aren't needed, or migrate at a quieter time",
			  "%.0f %% of the processors are in use", percent);
	else
		check_say(c, CHECK_OK, NULL, "%.0f %% of the processors are in use", percent);
}

/* ---- space and inodes ---- */

/* As df(1) counts it: of what everybody may use. */
static double used_percent(uint64_t total, uint64_t spare, uint64_t available)
{
	double used = (double)(total - MIN(spare, total)), of = used + (double)available;

	return total && of > 0 ? 100 * used / of : 0;
}

static void usage_say(struct check_ctx *c, const char *point, const char *what, double percent)
{
	static const char *const vital[] = {"/", "/boot", "/boot/efi", NULL};
	bool full = percent >= 100 && check_is(point, vital);

	if (percent > STATE_FULL_PERCENT)
		check_say(c, full ? CHECK_FAILED : CHECK_WARNING, "delete files that aren't needed",
			  "%.1f %% of the %s of '%s' are in use", percent, what, point);
}

void check_usage(struct check_ctx *c)
{
	size_t i, n = 0;
	json_t *f;

	json_array_foreach(check_get(c, "filesystems"), i, f)
	{
		const json_t *mount = json_array_get(json_object_get(f, "mounts"), 0);
		const char *point = check_text(mount, "point");
		struct statvfs vfs;

		if (!*point || !json_is_true(json_object_get(mount, "writable")) || statvfs(point, &vfs) < 0)
			continue;
		n++;
		usage_say(c, point, "space", used_percent(vfs.f_blocks, vfs.f_bfree, vfs.f_bavail));
		usage_say(c, point, "inodes", used_percent(vfs.f_files, vfs.f_ffree, vfs.f_favail));
	}
	if (!c->said)
		check_say(c, CHECK_OK, NULL, "space and inodes are left on all of %zu mounted filesystem(s)", n);
}

/* ---- what stands between it and the network ---- */

/* A line of the file that begins so, after blanks; upper and lower case are the same. */
static bool file_has_line(const char *path, const char *start)
{
	_cleanup_free_ char *text = NULL;
	char *save = NULL;

	if (io_read_file(path, STATE_FILE_MAX, &text, NULL, NULL) < 0)
		return false;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		if (strncasecmp(line + strspn(line, " \t"), start, strlen(start)) == 0)
			return true;
	return false;
}

static bool unit_is_active(const char *unit)
{
	_cleanup_free_ char *text = NULL;

	return service_systemd() &&
	       proc_run((const char *[]){"timeout", "-k", "1", "5", "systemctl", "is-active", "--quiet", unit, NULL},
			4096, &text, NULL) == 0;
}

void check_firewall(struct check_ctx *c)
{
	const char *which = file_has_line("/etc/ufw/ufw.conf", "ENABLED=yes")      ? "ufw"
			    : unit_is_active("firewalld.service")                  ? "firewalld"
			    : unit_is_active("nftables.service")                   ? "nftables"
			    : file_has_line("/proc/net/ip_tables_names", "filter") ? "iptables"
										   : NULL;

	if (which)
		check_say(c, CHECK_WARNING,
			  "see that it lets this server reach the center, and the copy what the copy needs",
			  "a firewall (%s) is active; the copy will have it, too", which);
	else
		check_say(c, CHECK_OK, NULL, "no firewall was found at work");
}

/* Other settings of Acquire::http are none. */
static bool apt_file_has_proxy(const char *path)
{
	return file_has_line(path, "Acquire::http::Proxy") || file_has_line(path, "Acquire::https::Proxy");
}

static bool apt_has_proxy(void)
{
	struct dirent **names = NULL;
	bool has = apt_file_has_proxy("/etc/apt/apt.conf");
	int n = scandir("/etc/apt/apt.conf.d", &names, NULL, alphasort);

	for (int i = 0; i < n; i++) {
		_cleanup_free_ char *path = str_printf("/etc/apt/apt.conf.d/%s", names[i]->d_name);

		has = has || (path && names[i]->d_name[0] != '.' && apt_file_has_proxy(path));
		free(names[i]);
	}
	free(names);
	return has;
}

void check_proxy(struct check_ctx *c)
{
	static const char *const files[] = {"/etc/environment", "/etc/profile", "/etc/sysconfig/proxy", NULL};
	static const char *const starts[] = {
	    "http_proxy=", "https_proxy=", "export http_proxy=", "export https_proxy=", "PROXY_ENABLED=\"yes\"", NULL};
	const char *where = apt_has_proxy() ? "/etc/apt" : NULL;

	for (const char *const *f = files; *f; f++)
		for (const char *const *s = starts; *s && !where; s++)
			where = file_has_line(*f, *s) ? *f : NULL;
	if (where)
		check_say(c, CHECK_WARNING, "see that the copy can reach it, or take it out there",
			  "a proxy is set in '%s'; the agent doesn't use it, programs of the copy will", where);
	else
		check_say(c, CHECK_OK, NULL, "no proxy is set");
}

/* ---- kernels ---- */

/* One that is there, and isn't a stump. */
static bool boot_has(const char *prefix, const char *release, const char *suffix)
{
	_cleanup_free_ char *path = str_printf("/boot/%s%s%s", prefix, release, suffix);
	struct stat st;

	return path && stat(path, &st) == 0 && S_ISREG(st.st_mode) && (uint64_t)st.st_size >= STATE_KERNEL_MIN;
}

static void kernel_look(struct check_ctx *c, const char *release, const char *which)
{
	if (!boot_has("vmlinuz-", release, "") && !boot_has("vmlinux-", release, ""))
		check_say(c, CHECK_WARNING, "install the kernel's package again",
			  "'/boot' has no kernel %s, which is %s: the copy would boot another one", release, which);
	else if (!boot_has("initrd.img-", release, "") && !boot_has("initramfs-", release, ".img") &&
		 !boot_has("initrd-", release, ""))
		check_say(c, CHECK_WARNING, "build it anew, with 'update-initramfs -c -k all' or 'dracut --force'",
			  "'/boot' has no initramfs of kernel %s, which is %s", release, which);
}

/* What the boot loader takes when nobody chooses: where the link of the newest leads to. */
static bool kernel_default(char *out, size_t size)
{
	static const char *const links[] = {"/boot/vmlinuz", "/vmlinuz", "/boot/vmlinuz.old"};
	char to[512];

	for (size_t i = 0; i < 2; i++) {
		ssize_t n = readlink(links[i], to, sizeof(to) - 1);
		const char *name;

		if (n <= 0)
			continue;
		to[n] = '\0';
		name = strstr(to, "vmlinuz-");
		if (name && strlen(name + 8) < size) {
			strcpy(out, name + 8);
			return true;
		}
	}
	return false;
}

void check_kernel(struct check_ctx *c)
{
	const char *running = check_text(c->inventory, "kernel");
	char standard[256] = "";

	if (access("/boot", F_OK) < 0) {
		check_say(c, CHECK_WARNING, "mount it", "there is no '/boot'");
		return;
	}
	if (*running)
		kernel_look(c, running, "the one that runs");
	if (kernel_default(standard, sizeof(standard)) && strcmp(standard, running) != 0)
		kernel_look(c, standard, "the one that is booted by default");
	if (!c->said)
		check_say(c, CHECK_OK, NULL, "'/boot' has kernel and initramfs of %s%s%s", running,
			  *standard && strcmp(standard, running) != 0 ? ", and of " : "",
			  *standard && strcmp(standard, running) != 0 ? standard : "");
}

/* ---- licences ---- */

static const struct {
	const char *process, *file, *name;
} licensed[] = {
    {"lmgrd", "/usr/local/flexlm", "FlexLM / FlexNet"},      {"hasplmd", "/etc/init.d/aksusbd", "Sentinel HASP"},
    {"aksusbd", "/usr/sbin/hasplmd", "Sentinel HASP"},       {"rlm", "/opt/rlm", "Reprise RLM"},
    {"CodeMeterLin", "/usr/sbin/CodeMeterLin", "CodeMeter"}, {"lmx-serv", "/opt/lmx", "LM-X"},
};

static bool process_runs(const char *name)
{
	DIR *d = opendir("/proc");
	unsigned looked = 0;
	bool found = false;

	for (struct dirent *de; d && !found && looked < STATE_PROCESSES_MAX && (de = readdir(d)); looked++) {
		_cleanup_free_ char *path = NULL;
		char comm[64];

		if (de->d_name[0] < '1' || de->d_name[0] > '9')
			continue;
		path = str_printf("/proc/%s/comm", de->d_name);
		found = path && strcmp(sysinfo_line(path, comm, sizeof(comm)), name) == 0;
	}
	if (d)
		closedir(d);
	return found;
}

/* Their keys name the machine: its network card, disk or board, which are others in the copy. */
void check_licence(struct check_ctx *c)
{
	const char *told = "";

	for (size_t i = 0; i < ARRAY_SIZE(licensed); i++) {
		if (strcmp(told, licensed[i].name) == 0 ||
		    (access(licensed[i].file, F_OK) < 0 && !process_runs(licensed[i].process)))
			continue;
		told = licensed[i].name;
		check_say(c, CHECK_WARNING,
			  "ask the software's maker for a key for the new machine, or see that it has the same "
			  "network address",
			  "a licence manager (%s) is installed: its keys are often bound to the hardware", told);
	}
	if (!c->said)
		check_say(c, CHECK_OK, NULL, "no licence manager was found");
}
