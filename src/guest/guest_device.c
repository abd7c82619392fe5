/* Which volume a device name of the source means, and by which name it will be found everywhere. */
#include "guest/guest_int.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/util.h"

enum field { BY_UUID, BY_LABEL, BY_PARTUUID, BY_PARTLABEL };

static const char *field_of(const struct guest_volume *v, enum field f)
{
	switch (f) {
	case BY_UUID:
		return v->uuid;
	case BY_LABEL:
		return v->label;
	case BY_PARTUUID:
		return v->partuuid;
	case BY_PARTLABEL:
		return v->partlabel;
	}
	never("field");
}

static const struct guest_volume *find_by(const struct guest *g, enum field f, const char *value)
{
	bool fold = f == BY_UUID || f == BY_PARTUUID;

	for (size_t i = 0; i < g->volumes->n; i++) {
		const char *have = field_of(&g->volumes->v[i], f);

		if (*have && (fold ? strcasecmp(have, value) : strcmp(have, value)) == 0)
			return &g->volumes->v[i];
	}
	return NULL;
}

static const struct guest_volume *find_part(const struct guest *g, size_t disk, unsigned part)
{
	for (size_t i = 0; i < g->volumes->n; i++)
		if (g->volumes->v[i].disk == (int)disk && g->volumes->v[i].part == part)
			return &g->volumes->v[i];
	return NULL;
}

static const struct guest_volume *find_mapper(const struct guest *g, const char *name)
{
	for (size_t i = 0; i < g->volumes->n; i++)
		if (g->volumes->v[i].mapper[0] && strcmp(g->volumes->v[i].mapper, name) == 0)
			return &g->volumes->v[i];
	return NULL;
}

/* /dev/VG/LV is /dev/mapper/VG-LV, hyphens inside the names doubled. */
static const struct guest_volume *find_lv(const struct guest *g, const char *vg_lv)
{
	char name[256];
	size_t n = 0;
	bool slash = false;

	for (const char *p = vg_lv; *p && n + 3 < sizeof(name); p++) {
		if (*p == '/' && slash)
			return NULL;
		slash |= *p == '/';
		name[n++] = *p == '/' ? '-' : *p;
		if (*p == '-')
			name[n++] = '-';
	}
	name[n] = '\0';
	return slash ? find_mapper(g, name) : NULL;
}

/* "1" or "p1" or "-part1" behind a disk's name, or nothing for the disk itself. */
static bool part_suffix(const char *s, const char *before, unsigned *ret)
{
	unsigned n = 0;

	if (!*s) {
		*ret = 0;
		return true;
	}
	if (strncmp(s, before, strlen(before)) != 0)
		return false;
	s += strlen(before);
	for (; isdigit((unsigned char)*s) && n < 100000; s++)
		n = n * 10 + (unsigned)(*s - '0');
	*ret = n;
	return !*s && n;
}

/* "sda1" -> "sda", 1. */
static bool kernel_name(const char *name, char disk[32], unsigned *ret_part)
{
	static const char *const letters[] = {"sd", "hd", "vd", "xvd"};
	unsigned index, ns;
	int used = 0;

	for (size_t i = 0; i < ARRAY_SIZE(letters); i++) {
		size_t n = strlen(letters[i]), end = n;

		if (strncmp(name, letters[i], n) != 0)
			continue;
		while (name[end] >= 'a' && name[end] <= 'z' && end < n + 3)
			end++;
		if (end == n)
			continue;
		snprintf(disk, 32, "%.*s", (int)end, name);
		return part_suffix(name + end, "", ret_part);
	}
	if ((sscanf(name, "nvme%3un%2u%n", &index, &ns, &used) == 2 ||
	     sscanf(name, "mmcblk%2u%n", &index, &used) == 1) &&
	    used) {
		snprintf(disk, 32, "%.*s", used, name);
		return part_suffix(name + used, "p", ret_part);
	}
	return false;
}

/* The only disk of a machine, under any driver. */
static bool kernel_name_first(const char *disk)
{
	static const char *const letters[] = {"sd", "hd", "vd", "xvd"};

	for (size_t i = 0; i < ARRAY_SIZE(letters); i++)
		if (str_starts(disk, letters[i]) && strcmp(disk + strlen(letters[i]), "a") == 0)
			return true;
	return strcmp(disk, "nvme0n1") == 0 || strcmp(disk, "mmcblk0") == 0;
}

/*
 * What the source called its disks decides. Where nobody said, a single disk was the first one; of several it can't be
 * known which was which, and a wrong guess would mount one in place of another.
 */
static const struct guest_volume *find_kernel_name(const struct guest *g, const char *name)
{
	char disk[32];
	unsigned part;
	bool named = false;

	if (!kernel_name(name, disk, &part))
		return NULL;
	for (size_t i = 0; i < g->volumes->ndisks; i++) {
		const char *source = g->volumes->disks[i].source;

		named |= source[0] != '\0';
		if (str_starts(source, "/dev/") && strcmp(source + 5, disk) == 0)
			return find_part(g, i, part);
	}
	return !named && g->volumes->ndisks == 1 && kernel_name_first(disk) ? find_part(g, 0, part) : NULL;
}

/* /dev/disk/by-id/..., by-path/...: an alias of a disk, or the only disk there is. */
static const struct guest_volume *find_alias(const struct guest *g, const char *spec)
{
	const char *tail = strstr(spec, "-part");
	unsigned part;

	for (size_t i = 0; i < g->volumes->ndisks; i++) {
		const struct guest_disk *d = &g->volumes->disks[i];

		for (unsigned a = 0; a < d->naliases; a++) {
			size_t n = strlen(d->aliases[a]);

			if (n && strncmp(spec, d->aliases[a], n) == 0 && part_suffix(spec + n, "-part", &part))
				return find_part(g, i, part);
		}
	}
	if (g->volumes->ndisks == 1 && tail && part_suffix(tail, "-part", &part) && !strstr(spec, "/dm-"))
		return find_part(g, 0, part);
	return NULL;
}

/* Names that mean the same filesystem wherever its disk is attached. */
static bool stable_spec(const struct guest *g, const char *spec, const struct guest_volume **ret)
{
	static const struct {
		const char *prefix;
		enum field field;
	} names[] = {
	    {"UUID=", BY_UUID},
	    {"LABEL=", BY_LABEL},
	    {"PARTUUID=", BY_PARTUUID},
	    {"PARTLABEL=", BY_PARTLABEL},
	    {"/dev/disk/by-uuid/", BY_UUID},
	    {"/dev/disk/by-label/", BY_LABEL},
	    {"/dev/disk/by-partuuid/", BY_PARTUUID},
	    {"/dev/disk/by-partlabel/", BY_PARTLABEL},
	};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		char value[300];
		size_t n;

		if (!str_starts(spec, names[i].prefix))
			continue;
		snprintf(value, sizeof(value), "%s", spec + strlen(names[i].prefix));
		n = strlen(value);
		if (n >= 2 && value[0] == '"' && value[n - 1] == '"') {
			memmove(value, value + 1, n - 2);
			value[n - 2] = '\0';
		}
		*ret = find_by(g, names[i].field, value);
		return true;
	}
	if (str_starts(spec, "/dev/mapper/")) {
		*ret = find_mapper(g, spec + strlen("/dev/mapper/"));
		return true;
	}
	return false;
}

static const struct guest_volume *find_md(const struct guest *g, const char *name)
{
	for (size_t i = 0; i < g->volumes->n; i++)
		if (g->volumes->v[i].md[0] && strcmp(g->volumes->v[i].md, name) == 0)
			return &g->volumes->v[i];
	return NULL;
}

enum guest_spec guest_device_find(const struct guest *g, const char *spec, const struct guest_volume **ret)
{
	const struct guest_volume *v = NULL;

	*ret = NULL;
	if (stable_spec(g, spec, ret))
		return *ret ? GUEST_SPEC_STABLE : GUEST_SPEC_UNKNOWN;
	if (!str_starts(spec, "/dev/"))
		return GUEST_SPEC_OTHER;
	v = find_lv(g, spec + 5);
	if (!v && str_starts(spec, "/dev/md"))
		v = find_md(g, spec + 5);
	if (v) {
		*ret = v;
		return GUEST_SPEC_STABLE;
	}
	v = str_starts(spec, "/dev/disk/") ? find_alias(g, spec) : find_kernel_name(g, spec + 5);
	*ret = v;
	return v ? GUEST_SPEC_FRAGILE : GUEST_SPEC_UNKNOWN;
}

bool guest_device_name(const struct guest_volume *v, char *out, size_t size)
{
	if (v->uuid[0])
		return (size_t)snprintf(out, size, "UUID=%s", v->uuid) < size;
	if (v->partuuid[0])
		return (size_t)snprintf(out, size, "PARTUUID=%s", v->partuuid) < size;
	return false;
}

/* A kernel that is alone knows partitions only, and only by the table they are in. */
static bool cmdline_name(const struct guest_volume *v, bool alone, char *out, size_t size)
{
	if (!alone)
		return guest_device_name(v, out, size);
	return v->part && v->partuuid[0] && (size_t)snprintf(out, size, "PARTUUID=%s", v->partuuid) < size;
}

static bool is_edge(char c)
{
	return c == ' ' || c == '\t' || c == '\r' || c == '"' || c == '\'' || c == '\n';
}

/* Length of "root=" or "resume=" when a word of that kind begins here. */
static size_t cmdline_key(struct guest_span text, size_t at)
{
	static const char *const keys[] = {"root=", "resume="};

	if (at && !is_edge(text.s[at - 1]) && text.s[at - 1] != '=')
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		size_t n = strlen(keys[i]);

		if (text.n - at > n && memcmp(text.s + at, keys[i], n) == 0)
			return n;
	}
	return 0;
}

unsigned guest_fix_cmdline(const struct guest *g, struct guest_span text, bool alone, struct str *out)
{
	unsigned fixed = 0;

	for (size_t i = 0; i < text.n;) {
		size_t key = cmdline_key(text, i), end = i + key;
		const struct guest_volume *v = NULL;
		char spec[300], name[128];
		enum guest_spec kind;

		if (!key) {
			str_add_mem(out, text.s + i++, 1);
			continue;
		}
		while (end < text.n && !is_edge(text.s[end]))
			end++;
		kind = GUEST_SPEC_OTHER;
		if (guest_span_copy((struct guest_span){text.s + i + key, end - i - key}, false, spec, sizeof(spec)))
			kind = guest_device_find(g, spec, &v);
		/* The root is the one we found the system on, whatever it was called. */
		if (kind == GUEST_SPEC_UNKNOWN && text.s[i + 1] == 'o' && g->root_volume) {
			v = g->root_volume;
			kind = GUEST_SPEC_FRAGILE;
		}
		if (kind == GUEST_SPEC_FRAGILE && cmdline_name(v, alone, name, sizeof(name))) {
			str_add_mem(out, text.s + i, key);
			str_add(out, name);
			fixed++;
		} else {
			str_add_mem(out, text.s + i, end - i);
		}
		i = end;
	}
	return fixed;
}
