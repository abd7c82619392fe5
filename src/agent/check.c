/*
 * Can this server be migrated? Every check is a row of one table and looks only at the inventory, so that what it
 * judges is what the center sees; the few that must try something say so. Nothing is changed on the server.
 */
#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "agent/agent_int.h"
#include "agent/check_int.h"
#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"

#define CHECK_MEMORY_MIN     (128 * MIB)
#define CHECK_MEMORY_PERCENT 95.0
#define CHECK_STATE_MIN      (16 * MIB)
#define CHECK_LOAD_PER_CPU   4.0
#define CHECK_KERNEL_MAJOR   3
#define CHECK_KERNEL_MINOR   10

static const char *const check_names[] = {[CHECK_OK] = "ok", [CHECK_WARNING] = "warning", [CHECK_FAILED] = "failed"};

void check_say(struct check_ctx *c, enum check_result result, const char *remedy, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	c->said = true;
	c->failed = c->failed || result == CHECK_FAILED;
	json_array_append_new(c->items, json_pack("{s:s, s:s, s:o, s:s?}", "check", c->name, "result",
						  check_names[result], "message", task_text(text), "remedy", remedy));
}

const json_t *check_get(const struct check_ctx *c, const char *key)
{
	return json_object_get(c->inventory, key);
}

const char *check_text(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "";
}

bool check_is(const char *s, const char *const list[])
{
	for (; *list; list++)
		if (strcmp(s, *list) == 0)
			return true;
	return false;
}

/* ---- the checks ---- */

static void check_root(struct check_ctx *c)
{
	if (geteuid() == 0)
		check_say(c, CHECK_OK, NULL, "running as root");
	else
		check_say(c, CHECK_FAILED, "run this command as root; what follows is incomplete",
			  "not running as root: disks can't be read and filesystems can't be frozen");
}

static void check_platform(struct check_ctx *c)
{
	const char *arch = check_text(c->inventory, "arch"), *kernel = check_text(c->inventory, "kernel");
	unsigned major = 0, minor = 0;

	if (strcmp(arch, "x86_64") != 0)
		check_say(c, CHECK_FAILED, NULL, "architecture '%s' is not supported, only x86_64", arch);
	else if (sscanf(kernel, "%u.%u", &major, &minor) != 2)
		check_say(c, CHECK_WARNING, NULL, "kernel '%s' is of an unknown kind", kernel);
	else if (major < CHECK_KERNEL_MAJOR || (major == CHECK_KERNEL_MAJOR && minor < CHECK_KERNEL_MINOR))
		check_say(c, CHECK_FAILED, "update the kernel", "kernel %s is older than %d.%d", kernel,
			  CHECK_KERNEL_MAJOR, CHECK_KERNEL_MINOR);
	else
		check_say(c, CHECK_OK, NULL, "%s, kernel %s", arch, kernel);
}

static void check_system(struct check_ctx *c)
{
	static const char *const known[] = {"debian", "ubuntu", NULL};
	const json_t *os = check_get(c, "os");
	const char *id = check_text(os, "id"), *name = check_text(os, "pretty_name");

	if (check_is(id, known))
		check_say(c, CHECK_OK, NULL, "%s", name);
	else
		check_say(c, CHECK_WARNING, "migrate, then look at the report of the conversion and the test boot",
			  "the conversion knows Debian and Ubuntu; '%s' is copied, but may need work before it boots",
			  *name ? name : "an unnamed system");
}

static void check_boot(struct check_ctx *c)
{
	const json_t *boot = check_get(c, "boot");
	const char *mode = check_text(boot, "mode"), *loader = check_text(boot, "loader");

	if (strcmp(mode, "bios") == 0 && strcmp(loader, "grub") == 0)
		check_say(c, CHECK_OK, NULL, "boots by BIOS and GRUB");
	else if (strcmp(mode, "bios") != 0)
		check_say(c, CHECK_WARNING, "migrate, then look at the test boot",
			  "boots by UEFI (loader %s): the disks are copied whole, but the conversion adapts only BIOS "
			  "and GRUB yet",
			  *loader ? loader : "unknown");
	else
		check_say(c, CHECK_WARNING, "migrate, then look at the test boot",
			  "no GRUB configuration found (loader %s): the conversion adapts only GRUB",
			  *loader ? loader : "unknown");
	if (json_is_true(json_object_get(boot, "secure_boot")))
		check_say(c, CHECK_WARNING, NULL, "secure boot is on; the copy will boot without it");
}

static void check_disks(struct check_ctx *c)
{
	const json_t *disks = check_get(c, "disks");
	uint64_t sum = 0;
	char size[16];
	json_t *d;
	size_t i;

	json_array_foreach(disks, i, d)
	{
		sum += (uint64_t)json_integer_value(json_object_get(d, "size"));
		if (json_is_null(json_object_get(d, "used")))
			check_say(c, CHECK_FAILED, "run as root; look for errors of this device in the kernel's log",
				  "disk '%s' can't be read", check_text(d, "path"));
	}
	json_array_foreach(check_get(c, "warnings"), i, d)
	    check_say(c, CHECK_WARNING, NULL, "%s", json_string_value(d));
	if (!json_array_size(disks))
		check_say(c, CHECK_FAILED, NULL, "no disk found");
	else if (!c->said)
		check_say(c, CHECK_OK, NULL, "%zu disk(s), %s in all", json_array_size(disks),
			  str_bytes(sum, size, sizeof(size)));
}

static void check_filesystems(struct check_ctx *c)
{
	static const char *const swap[] = {"swap", NULL};
	size_t i, good = 0;
	json_t *f;

	json_array_foreach(check_get(c, "filesystems"), i, f)
	{
		const char *type = check_text(f, "type"), *dev = check_text(f, "device");

		if (!json_is_false(json_object_get(f, "understood")) || check_is(type, swap)) {
			good++;
			continue;
		}
		if (strcmp(type, "linux_raid_member") == 0 || strcmp(type, "crypto_LUKS") == 0)
			continue; /* told by the checks of volumes */
		check_say(c, CHECK_WARNING, NULL,
			  "'%s' holds %s: its free space is not told apart, so it is copied whole", dev, type);
	}
	if (!c->said)
		check_say(c, CHECK_OK, NULL, "%zu filesystem(s), all understood", good);
}

/* These have no way to be frozen. */
static void check_freeze(struct check_ctx *c)
{
	static const char *const cannot[] = {"vfat",    "msdos", "exfat",   "ntfs", "ntfs3",
					     "iso9660", "udf",   "fuseblk", NULL};
	size_t i, k, good = 0;
	json_t *f, *m;

	json_array_foreach(check_get(c, "filesystems"), i, f) json_array_foreach(json_object_get(f, "mounts"), k, m)
	{
		if (k || !json_is_true(json_object_get(m, "writable")))
			continue;
		if (check_is(check_text(f, "type"), cannot))
			check_say(c, CHECK_WARNING, "avoid writing there during the migration",
				  "'%s' (%s) can't be frozen: it is only synced before the last copy",
				  check_text(m, "point"), check_text(f, "type"));
		else
			good++;
	}
	if (!c->said)
		check_say(c, CHECK_OK, NULL, "%zu mounted filesystem(s) can be frozen", good);
}

static void check_volumes(struct check_ctx *c)
{
	size_t i, lvs = 0;
	json_t *v;

	json_array_foreach(check_get(c, "volumes"), i, v)
	{
		const char *kind = check_text(v, "kind"), *name = check_text(v, "name");

		if (strcmp(kind, "lv") == 0 && json_is_true(json_object_get(v, "linear")))
			lvs++;
		else if (strcmp(kind, "lv") == 0)
			check_say(c, CHECK_WARNING, NULL,
				  "volume '%s' is neither linear nor striped (a mirror, thin pool, snapshot or cache): "
				  "it is copied whole",
				  name);
		else if (strcmp(kind, "md") == 0)
			check_say(c, CHECK_WARNING, NULL,
				  "'%s' is a software RAID (%s): its members are copied whole, as they are", name,
				  check_text(v, "level"));
		else if (strcmp(kind, "crypt") == 0)
			check_say(c, CHECK_WARNING, "have its passphrase at hand for the copy's boot",
				  "'%s' is encrypted: it is copied whole and stays encrypted", name);
		else if (strcmp(kind, "multipath") == 0)
			check_say(c, CHECK_FAILED, "name one path of each disk when starting the migration",
				  "'%s' is a multipath device: its disk would be taken once for every path", name);
	}
	json_array_foreach(check_get(c, "filesystems"), i, v) if (strcmp(check_text(v, "type"), "crypto_LUKS") == 0)
	    check_say(c, CHECK_WARNING, NULL, "'%s' is encrypted (LUKS): it is copied whole and stays encrypted",
		      check_text(v, "device"));
	if (!c->said)
		check_say(c, CHECK_OK, NULL,
			  lvs ? "%zu logical volume(s), all linear or striped" : "no volumes that need care", lvs);
}

/* fstab(5): device, mount point, type, options. A device that is missing holds up the boot, of the copy too. */
static void check_fstab_line(struct check_ctx *c, const char *line)
{
	static const char *const tags[] = {"UUID=", "LABEL=", "PARTUUID=", "PARTLABEL="};
	static const char *const dirs[] = {"by-uuid", "by-label", "by-partuuid", "by-partlabel"};
	char spec[256], point[256], type[64], options[512], path[400] = "";

	if (sscanf(line, "%255s %255s %63s %511s", spec, point, type, options) != 4 || *spec == '#' ||
	    strstr(options, "noauto") || strstr(options, "nofail"))
		return;
	if (str_starts(spec, "/dev/"))
		snprintf(path, sizeof(path), "%s", spec);
	for (size_t i = 0; i < ARRAY_SIZE(tags); i++)
		if (str_starts(spec, tags[i]) && access("/dev/disk", F_OK) == 0) {
			const char *value = spec + strlen(tags[i]);
			size_t n = strlen(value);

			if (n > 2 && *value == '"' && value[n - 1] == '"')
				snprintf(path, sizeof(path), "/dev/disk/%s/%.*s", dirs[i], (int)n - 2, value + 1);
			else
				snprintf(path, sizeof(path), "/dev/disk/%s/%s", dirs[i], value);
		}
	if (*path && access(path, F_OK) < 0)
		check_say(c, CHECK_WARNING, "correct /etc/fstab, or add 'nofail' to the line",
			  "'%s' for '%s' in /etc/fstab does not exist: the copy would wait for it when booting", spec,
			  point);
	else if (str_starts(spec, "/dev/sd") || str_starts(spec, "/dev/hd") || str_starts(spec, "/dev/xvd") ||
		 str_starts(spec, "/dev/vd") || str_starts(spec, "/dev/nvme"))
		check_say(c, CHECK_WARNING, "nothing to do: the conversion puts the UUID there",
			  "'%s' in /etc/fstab is named by a kernel name, which the copy's disks won't have", spec);
}

static void check_fstab(struct check_ctx *c)
{
	_cleanup_free_ char *text = NULL;
	char *save = NULL;

	if (io_read_file("/etc/fstab", 1u << 20, &text, NULL, NULL) < 0) {
		check_say(c, CHECK_WARNING, NULL, "/etc/fstab can't be read");
		return;
	}
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		check_fstab_line(c, line + strspn(line, " \t"));
	if (!c->said)
		check_say(c, CHECK_OK, NULL, "all devices of /etc/fstab exist");
}

static void check_memory(struct check_ctx *c)
{
	uint64_t have = (uint64_t)json_integer_value(json_object_get(check_get(c, "memory"), "available"));
	uint64_t total = (uint64_t)json_integer_value(json_object_get(check_get(c, "memory"), "total"));
	char text[16];

	str_bytes(have, text, sizeof(text));
	if (have < CHECK_MEMORY_MIN)
		check_say(c, CHECK_WARNING, "use fewer connections for the migration",
			  "only %s of memory are available", text);
	else if (total && 100.0 * (double)(total - MIN(have, total)) / (double)total > CHECK_MEMORY_PERCENT)
		check_say(c, CHECK_WARNING, "stop processes that aren't needed, or migrate at a quieter time",
			  "more than %.0f %% of the memory are in use, %s are available", CHECK_MEMORY_PERCENT, text);
	else
		check_say(c, CHECK_OK, NULL, "%s of memory available", text);
}

static void check_load(struct check_ctx *c)
{
	const json_t *cpu = check_get(c, "cpu");
	double load = json_number_value(json_array_get(json_object_get(cpu, "load"), 0));
	json_int_t count = MAX(json_integer_value(json_object_get(cpu, "count")), (json_int_t)1);

	if (load > CHECK_LOAD_PER_CPU * (double)count)
		check_say(c, CHECK_WARNING, "migrate at a quieter time, or limit the rate",
			  "the load is %.1f on %d CPU(s)", load, (int)count);
	else
		check_say(c, CHECK_OK, NULL, "load %.1f on %d CPU(s)", load, (int)count);
}

static void check_space_at(struct check_ctx *c, const char *dir)
{
	struct statvfs vfs;
	char path[256], text[16];

	/* The directory itself may not exist yet. */
	snprintf(path, sizeof(path), "%s", dir);
	while (statvfs(path, &vfs) < 0 && strrchr(path, '/') > path)
		*strrchr(path, '/') = '\0';
	if (statvfs(path, &vfs) < 0)
		return;
	if ((uint64_t)vfs.f_bavail * vfs.f_frsize < CHECK_STATE_MIN || (vfs.f_files && !vfs.f_favail))
		check_say(c, CHECK_FAILED, "make room there", "only %s are free in '%s'",
			  str_bytes((uint64_t)vfs.f_bavail * vfs.f_frsize, text, sizeof(text)), path);
	else if (vfs.f_flag & ST_RDONLY)
		check_say(c, CHECK_FAILED, "mount it writable", "'%s' is on a read-only filesystem", path);
}

static void check_space(struct check_ctx *c)
{
	check_space_at(c, c->opts->config_dir);
	check_space_at(c, c->opts->runtime_dir);
	check_space_at(c, "/usr/local/sbin");
	if (!c->said)
		check_say(c, CHECK_OK, NULL, "room for the agent's program and state");
}

/* Certificates are valid from the center's founding on; no center was founded before this program was. */
static void check_clock(struct check_ctx *c)
{
	if (id_now() < 1735689600.0 /* 2025-01-01 */)
		check_say(c, CHECK_FAILED, "set the clock", "the clock of this server is years behind");
	else
		check_say(c, CHECK_OK, NULL, "the clock is plausible");
}

/* Tries to reach the center. Whether it is the right one is proved at enrolment; a stored certificate is used when
 * there is one. */
static void check_center(struct check_ctx *c)
{
	static const uint8_t nobody[32];
	_cleanup_(conf_release) struct conf conf = {0};
	_cleanup_json_ json_t *answer = NULL;
	bool enrolled = conf_load(c->opts->config_dir, &conf, NULL) == 0;
	struct http *h = NULL;
	struct conf_url url;
	struct err e = {0};
	int status = 0, r;

	if (!c->opts->center && !enrolled)
		return;
	if (c->opts->center && conf_url_parse(c->opts->center, &url, &e) < 0) {
		check_say(c, CHECK_FAILED, NULL, "%s", e.msg);
		return;
	}
	if (!c->opts->center)
		url = conf.url;
	enrolled = enrolled && strcmp(url.host, conf.url.host) == 0;
	r = http_new(&url, enrolled ? conf.ca_pem : NULL, enrolled ? NULL : nobody, &h, &e);
	if (r == 0)
		r = http_call(h, "/v1/version", NULL, NULL, &status, &answer, &e);
	http_free(h);
	if (r == 0)
		check_say(c, CHECK_OK, NULL, "center '%s' answers, version %s", url.host,
			  check_text(answer, "version"));
	else if (r == -EKEYREJECTED && !enrolled)
		check_say(c, CHECK_OK, NULL,
			  "something that speaks TLS answers at '%s' port %u; who it is shows at enrolment", url.host,
			  url.port);
	else
		check_say(c, CHECK_FAILED, "check the address, routes and firewalls", "%s", e.msg);
}

static const struct {
	const char *name;
	void (*run)(struct check_ctx *c);
	bool ours; /* of the agent and its center, not of the server: a running agent has its answer */
} checks[] = {
    {"root", check_root, true},
    {"platform", check_platform},
    {"system", check_system},
    {"boot", check_boot},
    {"disks", check_disks},
    {"volumes", check_volumes},
    {"filesystems", check_filesystems},
    {"freeze", check_freeze},
    {"fstab", check_fstab},
    {"memory", check_memory},
    {"cpu", check_cpu},
    {"load", check_load},
    {"usage", check_usage},
    {"kernel", check_kernel},
    {"firewall", check_firewall},
    {"proxy", check_proxy},
    {"licence", check_licence},
    {"space", check_space},
    {"clock", check_clock, true},
    {"center", check_center, true},
};

static json_t *check_all(const struct agent_options *o, const json_t *inventory, bool ours, bool *ret_failed)
{
	struct check_ctx c = {.opts = o, .inventory = inventory, .items = json_array()};

	for (size_t i = 0; c.items && i < ARRAY_SIZE(checks); i++) {
		if (checks[i].ours && !ours)
			continue;
		c.name = checks[i].name;
		c.said = false;
		checks[i].run(&c);
	}
	*ret_failed = c.failed;
	return c.items;
}

json_t *check_server(const struct agent_options *o, const json_t *inventory)
{
	bool failed;

	return check_all(o, inventory, false, &failed);
}

/* ---- the command ---- */

static void check_show(const json_t *items)
{
	static const char *const colors[] = {
	    [CHECK_OK] = "\033[32m", [CHECK_WARNING] = "\033[33m", [CHECK_FAILED] = "\033[31m"};
	bool color = isatty(STDOUT_FILENO) && !getenv("NO_COLOR");
	json_t *item;
	size_t i;

	json_array_foreach(items, i, item)
	{
		const char *result = check_text(item, "result"), *remedy = check_text(item, "remedy"), *start = "";

		for (size_t k = 0; color && k < ARRAY_SIZE(colors); k++)
			if (strcmp(result, check_names[k]) == 0)
				start = colors[k];
		printf("%s%-8s%s %-12s %s\n", start, result, color ? "\033[0m" : "", check_text(item, "check"),
		       check_text(item, "message"));
		if (*remedy)
			printf("%-21s -> %s\n", "", remedy);
	}
}

int agent_check(void *options, int argc, char **argv)
{
	_cleanup_(jsn_decrefp) json_t *inventory = NULL, *items = NULL, *all = NULL;
	const struct agent_options *o = options;
	_cleanup_free_ char *text = NULL;
	struct err e = {0};
	bool failed;

	if (discover_inventory(argc ? (const char *const *)argv : NULL, (size_t)argc, &inventory, &e) < 0) {
		fprintf(stderr, "replant-agent: %s\n", e.msg);
		return 1;
	}
	items = check_all(o, inventory, true, &failed);
	if (!o->json) {
		check_show(items);
		return failed;
	}
	all = json_pack("{s:b, s:O}", "ok", !failed, "checks", items);
	text = all ? json_dumps(all, JSON_INDENT(2)) : NULL;
	if (text)
		puts(text);
	return failed;
}
