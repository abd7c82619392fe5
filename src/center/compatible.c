#include "center/compatible.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/jsn.h"
#include "base/util.h"

#define QEMU_MAC   "52:54:00:12:34:56" /* what QEMU gives who says nothing: many have it */
#define DISKS_MAX  64u
#define MEMORY_MIB 1048576.0

enum level { PASSED, WARNING, CRITICAL };
static const char *const levels[] = {"passed", "warning", "critical"};

struct check {
	const json_t *source, *instance, *capacity;
	json_t *findings;
	const char *item;
};

static void find(struct check *c, enum level level, const char *remedy, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static void find(struct check *c, enum level level, const char *remedy, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	str_utf8(text);
	json_array_append_new(c->findings, json_pack("{s:s, s:s, s:s, s:s?}", "item", c->item, "level", levels[level],
						     "message", text, "remedy", remedy));
}

static const char *text(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key)) ?: "";
}

static double number(const json_t *o, const char *key)
{
	return MAX(0, json_number_value(json_object_get(o, key)));
}

static const json_t *settings(const struct check *c)
{
	return json_object_get(c->instance, "settings");
}

/* ---- one item each ---- */

static void check_state(struct check *c)
{
	const char *state = text(c->instance, "state");

	if (!c->instance || strcmp(state, "missing") == 0)
		find(c, CRITICAL, "make an instance, or name another one", "the hypervisor has no such instance");
	else if (strcmp(state, "paused") == 0)
		find(c, CRITICAL, "resume it, or turn it off", "the instance is paused");
	else if (strcmp(state, "crashed") == 0)
		find(c, WARNING, "see what is the matter with it, if it is to be rolled back to",
		     "the instance has crashed; after a rollback it stays off");
	else
		find(c, PASSED, NULL, "the instance is %.32s", *state ? state : "off");
}

static void check_os(struct check *c)
{
	const char *os = text(json_object_get(c->source, "os"), "id");

	if (strcmp(os, "windows") == 0)
		find(c, CRITICAL, "migrate it to an image of its own",
		     "only Linux systems are migrated onto an instance");
	else
		find(c, PASSED, NULL, "the source runs Linux");
}

/* A 64-bit machine runs what was made for its ancestors. */
static bool runs_on(const char *source, const char *machine)
{
	if (strcmp(source, machine) == 0)
		return true;
	return strcmp(machine, "x86_64") == 0 && strlen(source) == 4 && source[0] == 'i' &&
	       strcmp(source + 2, "86") == 0;
}

static void check_arch(struct check *c)
{
	const char *source = text(c->source, "arch"), *machine = text(c->instance, "arch");

	if (!*source || !*machine)
		find(c, WARNING, "see for yourself that both have the same architecture",
		     "the architecture of the %s is not known", *source ? "instance" : "source");
	else if (!runs_on(source, machine))
		find(c, CRITICAL, "name an instance of the source's architecture",
		     "the source's architecture is '%.32s', the instance's '%.32s'", source, machine);
	else
		find(c, PASSED, NULL, "both are '%.32s'", machine);
}

static void check_firmware(struct check *c)
{
	const char *source = text(json_object_get(c->source, "boot"), "mode"), *machine = text(settings(c), "firmware");

	if (!*source || !*machine)
		find(c, WARNING, "see for yourself that both boot by BIOS, or both by UEFI",
		     "the firmware of the %s is not known", *source ? "instance" : "source");
	else if (strcmp(source, machine) != 0)
		find(c, CRITICAL, "change the instance's firmware while it is off, or name another one",
		     "the source boots by '%.16s', the instance by '%.16s'", source, machine);
	else
		find(c, PASSED, NULL, "both boot by '%.16s'", machine);
}

static void check_disk_count(struct check *c)
{
	size_t source = json_array_size(json_object_get(c->source, "disks"));
	size_t machine = json_array_size(json_object_get(c->instance, "disks"));
	char remedy[96];

	snprintf(remedy, sizeof(remedy), "give the instance %zu disks, or name one that has them", source);
	if (source == 0)
		find(c, WARNING, "run the source's agent once", "the source has not told of its disks yet");
	else if (machine < source)
		find(c, CRITICAL, remedy, "the source has %zu disk%s, the instance %zu", source, source == 1 ? "" : "s",
		     machine);
	else
		find(c, PASSED, NULL, "the source has %zu disk%s, the instance %zu", source, source == 1 ? "" : "s",
		     machine);
}

static void check_disk_sizes(struct check *c)
{
	json_t *mine = json_object_get(c->source, "disks"), *theirs = json_object_get(c->instance, "disks");
	size_t n = MIN(MIN(json_array_size(mine), json_array_size(theirs)), (size_t)DISKS_MAX), small = 0;

	for (size_t i = 0; i < n; i++) {
		const json_t *disk = json_array_get(mine, i);
		uint64_t want = (uint64_t)number(disk, "size"),
			 have = (uint64_t)number(json_array_get(theirs, i), "size");
		char a[16], b[16], remedy[128];

		if (have >= want)
			continue;
		small++;
		snprintf(remedy, sizeof(remedy), "make disk %zu of the instance at least %llu bytes big", i + 1,
			 (unsigned long long)want);
		find(c, CRITICAL, remedy,
		     "disk %zu of the instance has %s, the source's '%.64s' has %s, and whole disks are copied", i + 1,
		     str_bytes(have, a, sizeof(a)), text(disk, "path"), str_bytes(want, b, sizeof(b)));
	}
	if (!small)
		find(c, PASSED, NULL, "each of the source's disks fits the instance's");
}

static double used_of(const json_t *inventory)
{
	const json_t *disk;
	double sum = 0;
	size_t i;

	json_array_foreach(json_object_get(inventory, "disks"), i, disk) sum +=
	    json_is_number(json_object_get(disk, "used")) ? number(disk, "used") : number(disk, "size");
	return sum;
}

static void check_space(struct check *c)
{
	double used = used_of(c->source), room;
	char a[16], b[16];

	if (!json_is_number(json_object_get(c->capacity, "free"))) {
		find(c, PASSED, NULL,
		     "the region doesn't say how much room it has; it is looked for when disks are made");
		return;
	}
	room = number(c->capacity, "free");
	str_bytes((uint64_t)room, a, sizeof(a));
	str_bytes((uint64_t)used, b, sizeof(b));
	if (room < used)
		find(c, CRITICAL, "free space in the region", "the instance's region has %s free, the source uses %s",
		     a, b);
	else
		find(c, PASSED, NULL, "the instance's region has %s free, the source uses %s", a, b);
}

static void check_memory(struct check *c)
{
	double source = number(json_object_get(c->source, "memory"), "total") / MEMORY_MIB;
	double machine = number(settings(c), "memory_mib");

	if (source > 0 && machine > 0 && machine < source / 2)
		find(c, WARNING, "give the instance more memory while it is off",
		     "the source has %.0f MiB of memory, the instance %.0f MiB", source, machine);
	else
		find(c, PASSED, NULL, "the instance has %.0f MiB of memory", machine);
}

/* ---- are they one machine? ---- */

/* Addresses that many machines have at the same time. */
static bool is_everybodys(const char *address)
{
	return !*address || str_starts(address, "127.") || strcmp(address, "::1") == 0 || str_starts(address, "fe80") ||
	       str_starts(address, "169.254.");
}

static bool has(const json_t *list, const char *value)
{
	const json_t *v;
	size_t i;

	json_array_foreach(list, i, v) if (strcasecmp(json_string_value(v) ?: "", value) == 0) return true;
	return false;
}

static const char *shared_address(const struct check *c, const json_t *interface)
{
	const json_t *a, *theirs = json_object_get(c->instance, "addresses");
	size_t i;

	/* Behind QEMU's own network each machine has the same one. */
	if (strcmp(text(settings(c), "network"), "user") == 0)
		return NULL;
	json_array_foreach(json_object_get(interface, "addresses"), i, a)
	{
		const char *s = text(a, "address");

		if (!is_everybodys(s) && has(theirs, s))
			return s;
	}
	return NULL;
}

static void check_other(struct check *c)
{
	const char *mac = text(settings(c), "mac"), *id = text(c->source, "machine_id"),
		   *ref = text(c->instance, "ref");
	const char *remedy = "name another instance: what is migrated can't be written over";
	const json_t *interface;
	size_t i;

	json_array_foreach(json_object_get(json_object_get(c->source, "network"), "interfaces"), i, interface)
	{
		const char *shared = shared_address(c, interface);

		if (*mac && strcmp(mac, QEMU_MAC) != 0 && strcasecmp(text(interface, "mac"), mac) == 0) {
			find(c, CRITICAL, remedy, "source and instance have the same network card, '%.32s'", mac);
			return;
		}
		if (shared) {
			find(c, CRITICAL, remedy, "source and instance have the same address, '%.64s'", shared);
			return;
		}
	}
	if (*id && *ref && strcasecmp(id, ref) == 0)
		find(c, CRITICAL, remedy, "source and instance are the same machine, '%.64s'", ref);
	else
		find(c, PASSED, NULL, "nothing says that source and instance are the same machine");
}

json_t *compatible_check(const json_t *inventory, const json_t *instance, const json_t *capacity)
{
	static const struct {
		const char *item;
		void (*check)(struct check *c);
		bool alone; /* without an instance there is nothing to compare */
	} items[] = {
	    {"instance_state", check_state, true},   {"os_family", check_os, true},
	    {"architecture", check_arch, false},     {"firmware", check_firmware, false},
	    {"disk_count", check_disk_count, false}, {"disk_sizes", check_disk_sizes, false},
	    {"space", check_space, false},           {"memory", check_memory, false},
	    {"other_machine", check_other, false},
	};
	struct check c = {.source = inventory, .instance = instance, .capacity = capacity, .findings = json_array()};

	for (size_t i = 0; c.findings && i < ARRAY_SIZE(items); i++) {
		c.item = items[i].item;
		if (items[i].alone || instance)
			items[i].check(&c);
	}
	return c.findings;
}

bool compatible_passed(const json_t *findings)
{
	const json_t *f;
	size_t i;

	json_array_foreach(findings, i, f) if (strcmp(text(f, "level"), levels[CRITICAL]) == 0) return false;
	return findings;
}

void compatible_summary(const json_t *findings, struct str *ret)
{
	const json_t *f;
	size_t i;

	json_array_foreach(findings, i, f)
	{
		const char *remedy = text(f, "remedy");

		if (strcmp(text(f, "level"), levels[CRITICAL]) == 0)
			str_addf(ret, "%s%s (%s)", ret->len ? "; " : "", text(f, "message"), remedy);
	}
}
