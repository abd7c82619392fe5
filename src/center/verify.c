#include "center/verify.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"

#define LISTED_MAX     200u /* differences of each level */
#define TEXT_MAX       200  /* bytes of what is quoted */
#define EPHEMERAL_PORT 32768

enum level { EXPLAINED, FLAGGED, CRITICAL, LEVELS };

struct verify {
	const json_t *source, *copy, *conversion, *failed; /* surveys; units that had failed on the source */
	json_t *units;                                     /* those that are explained: name -> why */
	json_t *lists[LEVELS];
	json_int_t counts[LEVELS], same;
};

static const char *text_of(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key)) ?: "";
}

static json_t *cut_text(const char *s)
{
	return json_stringn(s, str_cut(s, TEXT_MAX)) ?: json_string("?");
}

static bool list_has(const json_t *list, const char *s)
{
	json_t *o;
	size_t i;

	json_array_foreach(list, i, o) if (json_is_string(o) && strcmp(json_string_value(o), s) == 0) return true;
	return false;
}

static const char *const cut_lists[][2] = {{"service", "units"}, {"port", "listening"}, {"mount", "mounts"},
					   {"user", "users"},    {"group", "groups"},   {"package", "packages"}};

static bool is_cut(const json_t *survey, const char *kind)
{
	for (size_t i = 0; i < ARRAY_SIZE(cut_lists); i++)
		if (strcmp(kind, cut_lists[i][0]) == 0)
			return list_has(json_object_get(survey, "cut"), cut_lists[i][1]);
	return false;
}

static void differ(struct verify *v, enum level level, const char *kind, const char *what, const char *source,
		   const char *copy, const char *fmt, ...) __attribute__((format(printf, 7, 8)));
static void differ(struct verify *v, enum level level, const char *kind, const char *what, const char *source,
		   const char *copy, const char *fmt, ...)
{
	bool unknown = level == FLAGGED && !*source && is_cut(v->source, kind);
	char why[512];
	va_list ap;
	json_t *o;

	/* What a list that was cut doesn't have may be there. */
	if (level == CRITICAL && !*copy && is_cut(v->copy, kind))
		level = FLAGGED;
	if (unknown)
		level = EXPLAINED;
	v->counts[level]++;
	if (json_array_size(v->lists[level]) >= LISTED_MAX)
		return;
	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	if (unknown)
		snprintf(why, sizeof(why), "the source's list was cut, so it may have it as well");
	str_utf8(why);
	o = json_pack("{s:s, s:o, s:o, s:o, s:s, s:b, s:s}", "kind", kind, "what", cut_text(what), "source",
		      *source ? cut_text(source) : json_null(), "copy", *copy ? cut_text(copy) : json_null(), "level",
		      level == EXPLAINED ? "explained" : "flagged", "critical", level == CRITICAL, "why", why);
	if (o)
		json_array_append_new(v->lists[level], o);
}

/* name -> entry, of a list of objects; borrowed entries. New reference. */
static json_t *index_by(const json_t *list, const char *key)
{
	json_t *o = json_object(), *entry;
	size_t i;

	json_array_foreach(list, i, entry) if (*text_of(entry, key)) json_object_set(o, text_of(entry, key), entry);
	return o;
}

static bool begins_with_one(const char *s, const char *const *words)
{
	for (; *words; words++)
		if (str_starts(s, *words))
			return true;
	return false;
}

/* The conversion's step that speaks of this file or thing: its name, or NULL. */
static const char *step_of(const struct verify *v, const char *name)
{
	json_t *step, *o;
	size_t i, k;

	json_array_foreach(json_object_get(v->conversion, "steps"), i, step)
	{
		json_array_foreach(json_object_get(step, "files"), k,
				   o) if (str_ends(text_of(o, "path"), name)) return text_of(step, "name");
		json_array_foreach(json_object_get(step, "notes"), k,
				   o) if (strstr(json_string_value(o) ?: "", name)) return text_of(step, "name");
	}
	return NULL;
}

/* ---- services ---- */

static const char *const units_of_logins[] = {
    "user@",         "user-runtime-dir@", "session-", "run-",          "getty@",
    "serial-getty@", "console-getty",     "autovt@",  "replant-probe", NULL};
static const char *const units_of_clouds[] = {"qemu-guest-agent", "qemu-ga",      "open-vm-tools", "vmtoolsd",
					      "vgauth",           "vboxadd",      "vboxservice",   "virtualbox-guest",
					      "xe-linux",         "xe-daemon",    "xen",           "hv-",
					      "hypervkvpd",       "hypervvssd",   "hypervfcopyd",  "walinuxagent",
					      "waagent",          "google-",      "gce-",          "amazon-",
					      "snap.amazon-",     "ec2-",         "aliyun",        "aegis",
					      "cloudmonitor",     "argusagent",   "tat_agent",     "qcloud",
					      "cloud-init",       "cloud-config", "cloud-final",   "do-agent",
					      "droplet-agent",    "hc-utils",     "spice-vdagent", NULL};
static const char *const units_of_networks[] = {"systemd-networkd-wait-online",
						"NetworkManager-wait-online",
						"ntp",
						"chrony",
						"systemd-timesyncd",
						"openntpd",
						"systemd-time-wait-sync",
						"nfs-",
						"rpc-",
						"autofs",
						"ypbind",
						"ddclient",
						"dhclient",
						"dhcpcd",
						"isc-dhcp-client",
						NULL};
static const char *const units_of_hardware[] = {"smartd",
						"smartmontools",
						"mdmonitor",
						"thermald",
						"irqbalance",
						"multipathd",
						"iscsid",
						"open-iscsi",
						"rngd",
						"rng-tools",
						"bluetooth",
						"ModemManager",
						"wpa_supplicant",
						"upower",
						"fwupd",
						"lm-sensors",
						"fancontrol",
						"mcelog",
						"rasdaemon",
						"acpid",
						"numad",
						"ipmi",
						"lldpd",
						"nvme",
						"power-profiles-daemon",
						"switcheroo-control",
						NULL};

/* Why a service that runs on the source need not run in the copy; NULL: no reason is known. */
static const char *unit_reason(const struct verify *v, const json_t *unit, const json_t *copy)
{
	const char *name = text_of(unit, "name"), *enabled = text_of(unit, "enabled");

	if (str_starts(name, "replant-agent"))
		return "the agent stays on the source";
	if (list_has(v->failed, name))
		return "it had failed on the source, too";
	if (begins_with_one(name, units_of_logins))
		return "it belongs to a login or a console";
	if (begins_with_one(name, units_of_clouds))
		return "it is a tool of the source's cloud or hypervisor";
	if (begins_with_one(name, units_of_networks))
		return "it needs a network that a test boot doesn't have";
	if (begins_with_one(name, units_of_hardware))
		return "it serves hardware that the copy's machine may not have";
	if (step_of(v, name))
		return "the conversion has changed it (its report says how)";
	if (json_is_false(json_object_get(copy, "condition")))
		return "its conditions are not met on the copy's machine";
	if (strcmp(enabled, "disabled") == 0 || strcmp(enabled, "transient") == 0 || strcmp(enabled, "masked") == 0)
		return "a boot of the source wouldn't start it either: it is not enabled";
	if (*enabled && !str_starts(enabled, "enabled") && strcmp(enabled, "generated") != 0)
		return "it is started when something needs it";
	return NULL;
}

static void compare_unit(struct verify *v, const json_t *unit, const json_t *copy)
{
	const char *name = text_of(unit, "name"), *state = text_of(copy, "state"), *why;

	if (strcmp(text_of(unit, "state"), "running") != 0)
		return;
	if (strcmp(state, "running") == 0) {
		v->same++;
		return;
	}
	why = unit_reason(v, unit, copy);
	if (why)
		json_object_set_new(v->units, name, json_string(why));
	differ(v, why ? EXPLAINED : CRITICAL, "service", name, "running", *state ? state : "missing", "%s",
	       why ? why : "it runs on the source and is started at boot, and doesn't run in the copy");
}

/* One that only the copy runs. */
static void compare_new_unit(struct verify *v, const json_t *unit, const json_t *source)
{
	const char *name = text_of(unit, "name");

	if (strcmp(text_of(unit, "state"), "running") != 0 || strcmp(text_of(source, "state"), "running") == 0 ||
	    str_starts(name, "replant-probe"))
		return;
	if (step_of(v, name))
		differ(v, EXPLAINED, "service", name, "", "running", "the conversion's step '%s' has it started",
		       step_of(v, name));
	else if (begins_with_one(name, units_of_logins) || !str_starts(text_of(unit, "enabled"), "enabled"))
		differ(v, EXPLAINED, "service", name, "", "running", "it is started when something needs it");
	else
		differ(v, FLAGGED, "service", name, text_of(source, "state"), "running",
		       "a boot starts it, and on the source it didn't run: somebody had stopped it there");
}

static void compare_services(struct verify *v)
{
	const json_t *source = json_object_get(v->source, "units"), *copy = json_object_get(v->copy, "units");
	_cleanup_json_ json_t *here = index_by(source, "name"), *there = index_by(copy, "name");
	json_t *o;
	size_t i;

	json_array_foreach(source, i, o) compare_unit(v, o, json_object_get(there, text_of(o, "name")));
	json_array_foreach(copy, i, o) compare_new_unit(v, o, json_object_get(here, text_of(o, "name")));
}

/* ---- ports ---- */

static int port_of(const json_t *o)
{
	return (int)json_integer_value(json_object_get(o, "port"));
}

static void port_name(const json_t *o, char *out, size_t size)
{
	snprintf(out, size, "%.8s/%d", text_of(o, "proto"), port_of(o));
}

static json_t *index_ports(const json_t *list)
{
	json_t *o = json_object(), *entry;
	char name[32];
	size_t i;

	json_array_foreach(list, i, entry)
	{
		port_name(entry, name, sizeof(name));
		json_object_set(o, name, entry);
	}
	return o;
}

/* The same program has another port that the kernel chose for it. */
static bool port_has_moved(const struct verify *v, const json_t *port)
{
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(v->copy, "listening"), i, o)
	{
		if (port_of(o) >= EPHEMERAL_PORT && strcmp(text_of(o, "proto"), text_of(port, "proto")) == 0 &&
		    strcmp(text_of(o, "program"), text_of(port, "program")) == 0)
			return true;
	}
	return false;
}

static const char *udp_reason(int port)
{
	switch (port) {
	case 68:
	case 546:
		return "a DHCP client's; how addresses are had is another matter in the test network";
	case 123:
	case 323:
		return "of a clock's service, which needs a network that a test boot doesn't have";
	case 137:
	case 138:
	case 5353:
	case 5355:
		return "for finding names in a network, which the test boot's is not";
	default:
		return port >= EPHEMERAL_PORT ? "a port that the kernel chose; it is another one each time" : NULL;
	}
}

static const char *port_reason(const struct verify *v, const json_t *port)
{
	const char *unit = text_of(port, "unit"), *why = json_string_value(json_object_get(v->units, unit));

	if (why)
		return why;
	if (str_ends(unit, ".scope") ? strcmp(unit, "init.scope") != 0 : str_starts(unit, "user@"))
		return "somebody's login session had it";
	if (strcmp(text_of(port, "proto"), "udp") == 0 && udp_reason(port_of(port)))
		return udp_reason(port_of(port));
	if (port_of(port) >= EPHEMERAL_PORT && port_has_moved(v, port))
		return "a port that the kernel chose; it is another one each time";
	if (strcmp(text_of(port, "address"), "one") == 0)
		return "it listens on an address of the source alone, which the copy doesn't have in the test network";
	return NULL;
}

static void compare_port(struct verify *v, const json_t *port, const json_t *copy)
{
	const char *program = *text_of(port, "program") ? text_of(port, "program") : "listening", *why;
	char name[32];

	port_name(port, name, sizeof(name));
	if (copy && strcmp(text_of(port, "address"), "any") == 0 && strcmp(text_of(copy, "address"), "loopback") == 0) {
		differ(v, FLAGGED, "port", name, "any address", "loopback only",
		       "on the source others could reach it, in the copy they can't");
		return;
	}
	if (copy) {
		v->same++;
		return;
	}
	why = port_reason(v, port);
	differ(v, why ? EXPLAINED : CRITICAL, "port", name, program, "", "%s",
	       why ? why : "the source listens on it, and the copy doesn't");
}

static void compare_new_port(struct verify *v, const json_t *port)
{
	const char *program = *text_of(port, "program") ? text_of(port, "program") : "listening";
	char name[32];

	port_name(port, name, sizeof(name));
	if (strcmp(text_of(port, "proto"), "udp") == 0 || port_of(port) >= EPHEMERAL_PORT ||
	    strcmp(text_of(port, "address"), "loopback") == 0)
		differ(v, EXPLAINED, "port", name, "", program,
		       "nobody reaches it from outside, or it is another one each time");
	else
		differ(v, FLAGGED, "port", name, "", program, "the copy listens on it, and the source didn't");
}

static void compare_ports(struct verify *v)
{
	const json_t *source = json_object_get(v->source, "listening"), *copy = json_object_get(v->copy, "listening");
	_cleanup_json_ json_t *here = index_ports(source), *there = index_ports(copy);
	char name[32];
	json_t *o;
	size_t i;

	json_array_foreach(source, i, o)
	{
		port_name(o, name, sizeof(name));
		compare_port(v, o, json_object_get(there, name));
	}
	json_array_foreach(copy, i, o)
	{
		port_name(o, name, sizeof(name));
		if (!json_object_get(here, name))
			compare_new_port(v, o);
	}
}

/* ---- mounts ---- */

static bool mount_is_remote(const char *type)
{
	static const char *const types[] = {"nfs",        "cifs",         "smb",  "ceph",      "glusterfs",
					    "fuse.sshfs", "fuse.gluster", "9p",   "lustre",    "virtiofs",
					    "afs",        "ocfs2",        "gfs2", "fuse.s3fs", NULL};

	return begins_with_one(type, types);
}

static void compare_missing_mount(struct verify *v, const json_t *m)
{
	_cleanup_free_ char *quoted = str_printf("'%s'", text_of(m, "target"));
	const char *target = text_of(m, "target"), *type = text_of(m, "type");
	bool boot = json_is_true(json_object_get(m, "fstab")) || strcmp(target, "/") == 0;

	if (mount_is_remote(type))
		differ(v, EXPLAINED, "mount", target, text_of(m, "source"), "",
		       "it comes over the network, which a test boot doesn't have");
	else if (boot && quoted && step_of(v, quoted))
		differ(v, FLAGGED, "mount", target, text_of(m, "source"), "",
		       "the conversion's step '%s' says that its disk was not copied", step_of(v, quoted));
	else if (boot)
		differ(v, CRITICAL, "mount", target, text_of(m, "source"), "",
		       "it is mounted on the source, and not in the copy");
	else if (strcmp(type, "tmpfs") == 0 || str_starts(type, "fuse"))
		differ(v, EXPLAINED, "mount", target, text_of(m, "source"), "",
		       "it is not in /etc/fstab: a program had made it");
	else
		differ(v, FLAGGED, "mount", target, text_of(m, "source"), "",
		       "it is not in /etc/fstab, so a boot of the source wouldn't mount it either");
}

static bool has_option(const json_t *m, const char *word)
{
	_cleanup_free_ char *all = str_printf(",%s,", text_of(m, "options")), *one = str_printf(",%s,", word);

	return all && one && strstr(all, one);
}

static void compare_mount(struct verify *v, const json_t *m, const json_t *copy)
{
	const char *target = text_of(m, "target");

	if (strcmp(text_of(m, "type"), text_of(copy, "type")) != 0)
		differ(v, CRITICAL, "mount", target, text_of(m, "type"), text_of(copy, "type"),
		       "another filesystem is mounted there");
	else if (!has_option(m, "ro") && has_option(copy, "ro"))
		differ(v, CRITICAL, "mount", target, "writable", "read-only", "it can't be written in the copy");
	else if (strcmp(text_of(m, "options"), text_of(copy, "options")) != 0)
		differ(v, FLAGGED, "mount", target, text_of(m, "options"), text_of(copy, "options"),
		       "it is mounted with other options");
	else if (strcmp(text_of(m, "source"), text_of(copy, "source")) != 0)
		differ(v, EXPLAINED, "mount", target, text_of(m, "source"), text_of(copy, "source"),
		       "disks have other names on another machine");
	else
		v->same++;
}

static void compare_mounts(struct verify *v)
{
	const json_t *source = json_object_get(v->source, "mounts");
	_cleanup_json_ json_t *there = index_by(json_object_get(v->copy, "mounts"), "target");
	json_t *o, *copy;
	size_t i;

	json_array_foreach(source, i, o)
	{
		copy = json_object_get(there, text_of(o, "target"));
		if (copy)
			compare_mount(v, o, copy);
		else
			compare_missing_mount(v, o);
	}
}

/* ---- accounts ---- */

static void compare_accounts(struct verify *v, const char *list, const char *kind)
{
	const json_t *source = json_object_get(v->source, list), *copy = json_object_get(v->copy, list);
	_cleanup_json_ json_t *here = index_by(source, "name"), *there = index_by(copy, "name");
	json_t *o, *other;
	char a[24], b[24];
	size_t i;

	/* Lists that were cut have the same first entries, when the files are the same. */
	json_array_foreach(source, i, o)
	{
		other = json_object_get(there, text_of(o, "name"));
		snprintf(a, sizeof(a), "%lld", (long long)json_integer_value(json_object_get(o, "id")));
		snprintf(b, sizeof(b), "%lld", (long long)json_integer_value(json_object_get(other, "id")));
		if (!other)
			differ(v, CRITICAL, kind, text_of(o, "name"), a, "", "the copy doesn't have it");
		else if (strcmp(a, b) != 0)
			differ(v, CRITICAL, kind, text_of(o, "name"), a, b, "its files belong to somebody else");
		else
			v->same++;
	}
	json_array_foreach(copy, i, o) if (!json_object_get(here, text_of(o, "name")))
	    differ(v, FLAGGED, kind, text_of(o, "name"), "", "new", "the copy alone has it");
}

/* ---- packages ---- */

/* "name:arch=version" -> version by "name:arch". */
static json_t *index_packages(const json_t *packages)
{
	json_t *o = json_object(), *entry;
	size_t i;

	json_array_foreach(json_object_get(packages, "list"), i, entry)
	{
		const char *text = json_string_value(entry) ?: "", *equal = strchr(text, '=');

		if (equal)
			json_object_setn_new(o, text, (size_t)(equal - text), json_string(equal + 1));
	}
	return o;
}

static void compare_package_lists(struct verify *v, const json_t *source, const json_t *copy)
{
	_cleanup_json_ json_t *here = index_packages(source), *there = index_packages(copy);
	const char *name;
	json_t *version;

	json_object_foreach(here, name, version)
	{
		const char *other = json_string_value(json_object_get(there, name));

		if (!other)
			differ(v, CRITICAL, "package", name, json_string_value(version), "",
			       "it is installed on the source, and not in the copy");
		else if (strcmp(other, json_string_value(version)) != 0)
			differ(v, CRITICAL, "package", name, json_string_value(version), other,
			       "the copy has another version");
		else
			v->same++;
	}
	json_object_foreach(there, name, version) if (!json_object_get(here, name))
	    differ(v, FLAGGED, "package", name, "", json_string_value(version), "the copy alone has it");
}

static void compare_packages(struct verify *v)
{
	const json_t *source = json_object_get(v->source, "packages"), *copy = json_object_get(v->copy, "packages");
	json_int_t before = v->counts[CRITICAL] + v->counts[FLAGGED];

	if (!source)
		return;
	if (*text_of(source, "digest") && strcmp(text_of(source, "digest"), text_of(copy, "digest")) == 0) {
		v->same += json_integer_value(json_object_get(source, "count"));
		return;
	}
	compare_package_lists(v, source, copy);
	/* Lists that were cut may not hold what differs. */
	if (before == v->counts[CRITICAL] + v->counts[FLAGGED])
		differ(v, CRITICAL, "package", "all", text_of(source, "digest"), text_of(copy, "digest"),
		       "the packages differ, in what the lists don't have");
}

/* ---- what is loaded, timed, named ---- */

static bool module_is_hardware(const char *name, const char *kind)
{
	static const char *const kinds[] = {"drivers", "sound", "arch", "crypto", "lib", NULL};
	static const char *const software[] = {"dm_",    "dm-",  "raid", "md_",         "wireguard", "bonding",
					       "team",   "tun",  "veth", "vxlan",       "macvlan",   "ipvlan",
					       "geneve", "drbd", "zram", "target_core", NULL};

	return begins_with_one(kind, kinds) && !begins_with_one(name, software);
}

static void compare_modules(struct verify *v)
{
	_cleanup_json_ json_t *there = index_by(json_object_get(v->copy, "modules"), "name");
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(v->source, "modules"), i, o)
	{
		const char *name = text_of(o, "name"), *kind = text_of(o, "kind");

		if (json_object_get(there, name))
			v->same++;
		else if (module_is_hardware(name, kind))
			differ(
			    v, EXPLAINED, "module", name, *kind ? kind : "loaded", "",
			    "it drives hardware, or was chosen for a processor, that the copy's machine doesn't have");
		else
			differ(v, FLAGGED, "module", name, *kind ? kind : "loaded", "",
			       "nothing in the copy has needed it so far");
	}
}

static void compare_cron(struct verify *v)
{
	_cleanup_json_ json_t *there = index_by(json_object_get(v->copy, "cron"), "path");
	json_t *o, *copy;
	size_t i;

	json_array_foreach(json_object_get(v->source, "cron"), i, o)
	{
		copy = json_object_get(there, text_of(o, "path"));
		if (!copy)
			differ(v, FLAGGED, "cron", text_of(o, "path"), "there", "", "the copy doesn't have it");
		else if (strcmp(text_of(o, "digest"), text_of(copy, "digest")) != 0)
			differ(v, FLAGGED, "cron", text_of(o, "path"), "there", "changed", "it is another in the copy");
		else
			v->same++;
	}
}

static bool route_is_there(const struct verify *v, const json_t *route)
{
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(v->copy, "routes"), i, o)
	{
		if (strcmp(text_of(o, "destination"), text_of(route, "destination")) == 0 &&
		    strcmp(text_of(o, "gateway"), text_of(route, "gateway")) == 0)
			return true;
	}
	return false;
}

static void compare_routes(struct verify *v)
{
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(v->source, "routes"), i, o)
	{
		if (route_is_there(v, o))
			v->same++;
		else
			differ(v, EXPLAINED, "route", text_of(o, "destination"), text_of(o, "gateway"), "",
			       "addresses and routes are the test network's");
	}
}

static void compare_names(struct verify *v)
{
	static const char *const keys[] = {"hostname", "timezone", "init"};
	json_int_t here = json_integer_value(json_object_get(v->source, "swaps")),
		   there = json_integer_value(json_object_get(v->copy, "swaps"));
	char a[24], b[24];

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		if (!json_object_get(v->source, keys[i]))
			continue;
		if (strcmp(text_of(v->source, keys[i]), text_of(v->copy, keys[i])) == 0)
			v->same++;
		else
			differ(v, FLAGGED, keys[i], keys[i], text_of(v->source, keys[i]), text_of(v->copy, keys[i]),
			       "the copy has another one");
	}
	snprintf(a, sizeof(a), "%lld", (long long)here);
	snprintf(b, sizeof(b), "%lld", (long long)there);
	if (there < here)
		differ(v, FLAGGED, "swap", "swap", a, b, "the copy swaps to fewer places");
	else if (here)
		v->same++;
}

/* What the source's lists have no room for was compared with nothing; packages have a digest for that. */
static void compare_cut(struct verify *v)
{
	for (size_t i = 0; i < ARRAY_SIZE(cut_lists); i++)
		if (strcmp(cut_lists[i][0], "package") != 0 && is_cut(v->source, cut_lists[i][0]))
			differ(v, FLAGGED, cut_lists[i][0], "all", "more than the list holds", "",
			       "the source's list was cut: what it doesn't have was not compared");
}

/* ---- the whole ---- */

static void verify_begin(struct verify *v, const json_t *source, const json_t *survey, const json_t *conversion)
{
	*v = (struct verify){.source = json_object_get(source, "survey"),
			     .copy = survey,
			     .conversion = conversion,
			     .failed = json_object_get(source, "failed_units"),
			     .units = json_object()};
	for (size_t i = 0; i < LEVELS; i++)
		v->lists[i] = json_array();
}

static void verify_end(struct verify *v)
{
	json_decref(v->units);
	for (size_t i = 0; i < LEVELS; i++)
		json_decref(v->lists[i]);
}

static json_t *verify_sentence(const struct verify *v)
{
	if (v->counts[CRITICAL])
		return json_sprintf("not verified: missing or different in the copy: %lld; other differences: %lld "
				    "flagged, %lld explained; the same: %lld",
				    (long long)v->counts[CRITICAL], (long long)v->counts[FLAGGED],
				    (long long)v->counts[EXPLAINED], (long long)v->same);
	return json_sprintf("verified: the same as on the source: %lld; differences: %lld flagged, %lld explained",
			    (long long)v->same, (long long)v->counts[FLAGGED], (long long)v->counts[EXPLAINED]);
}

/* The worst first. */
static json_t *verify_result(struct verify *v)
{
	json_t *all = json_array();

	for (size_t i = LEVELS; i-- > 0;)
		json_array_extend(all, v->lists[i]);
	return json_pack("{s:b, s:o, s:{s:I, s:I, s:I, s:I}, s:o}", "verified", v->counts[CRITICAL] == 0, "sentence",
			 verify_sentence(v), "counts", "same", v->same, "explained", v->counts[EXPLAINED], "flagged",
			 v->counts[FLAGGED] + v->counts[CRITICAL], "critical", v->counts[CRITICAL], "differences", all);
}

json_t *verify_compare(const json_t *source, const json_t *survey, const json_t *conversion)
{
	struct verify v;
	json_t *result;

	verify_begin(&v, source, survey, conversion);
	compare_services(&v);
	compare_ports(&v);
	compare_mounts(&v);
	compare_accounts(&v, "users", "user");
	compare_accounts(&v, "groups", "group");
	compare_packages(&v);
	compare_modules(&v);
	compare_cron(&v);
	compare_routes(&v);
	compare_names(&v);
	compare_cut(&v);
	result = verify_result(&v);
	verify_end(&v);
	return result;
}

/* What an empty copy would be held to lack. */
json_t *verify_expect(const json_t *source, const json_t *conversion)
{
	json_t *units = json_array(), *ports = json_array(), *o;
	struct verify v;
	size_t i;

	verify_begin(&v, source, NULL, conversion);
	compare_services(&v);
	compare_ports(&v);
	json_array_foreach(v.lists[CRITICAL], i, o)
	    json_array_append(strcmp(text_of(o, "kind"), "service") == 0 ? units : ports, json_object_get(o, "what"));
	verify_end(&v);
	return json_pack("{s:o, s:o}", "units", units, "listening", ports);
}
