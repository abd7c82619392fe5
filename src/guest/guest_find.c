/*
 * Which of the copied filesystems is the server's root. There may be several systems: an old one beside the new, a
 * snapshot, the root of a container or a virtual machine. What the server itself had mounted decides; where nobody said
 * that, what each system says of itself.
 */
#include "guest/guest_int.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/err.h"
#include "base/util.h"

/* How strongly something speaks for a filesystem; each outweighs all below it. */
enum candidate_weight {
	BOOTS = 1,       /* its /boot is on a disk with GRUB */
	GRUB_NAMES = 2,  /* its grub.cfg starts it */
	FSTAB_NAMES = 4, /* its fstab says it is "/" */
	CONVERTED = 8,   /* that is what is looked for, and it was */
	ROOT_UUID = 16,  /* the server's root had its UUID */
	ROOT_DEVICE = 32 /* and was this device */
};

struct candidate {
	const struct guest_volume *v;
	const char *options; /* a subvolume, or NULL */
	char pretty[128];
	unsigned weight;
};

struct candidates {
	struct candidate *v; /* room for one of each volume */
	size_t n;
	struct err first; /* why the first filesystem that might have held a system could not be looked at */
	struct err own;   /* the same of the server's root */
};

void guest_root_from_inventory(const json_t *inventory, struct guest_root *ret)
{
	json_t *fs, *mount;
	size_t i, k;

	*ret = (struct guest_root){0};
	json_array_foreach(json_object_get(inventory, "filesystems"), i, fs)
	{
		json_array_foreach(json_object_get(fs, "mounts"), k, mount)
		{
			const char *point = json_string_value(json_object_get(mount, "point"));
			const char *super = json_string_value(json_object_get(mount, "super_options"));
			const char *device = json_string_value(json_object_get(fs, "device"));
			const char *uuid = json_string_value(json_object_get(fs, "uuid"));

			if (!point || strcmp(point, "/") != 0)
				continue;
			*ret = (struct guest_root){0};
			if (device && strlen(device) < sizeof(ret->device))
				snprintf(ret->device, sizeof(ret->device), "%s", device);
			if (uuid && strlen(uuid) < sizeof(ret->uuid))
				snprintf(ret->uuid, sizeof(ret->uuid), "%s", uuid);
			if (super)
				guest_subvolume((struct guest_span){super, strlen(super)}, ret->subvolume,
						sizeof(ret->subvolume));
		}
	}
}

static bool same_uuid(const struct guest_volume *v, const char *uuid)
{
	return uuid[0] && strcasecmp(v->uuid, uuid) == 0;
}

/* Does this name of the source mean the volume, or another with the same filesystem on it? */
static bool names_volume(const struct guest_volumes *set, const char *spec, const struct guest_volume *v)
{
	const struct guest g = {.volumes = set};
	const struct guest_volume *found = NULL;

	guest_device_find(&g, spec, &found);
	return found && (found == v || (str_starts(spec, "UUID=") && same_uuid(v, found->uuid)));
}

static unsigned weigh_root(const struct guest_volumes *set, const struct guest_root *root, const struct guest_volume *v)
{
	bool uuid = same_uuid(v, root->uuid);

	if (root->uuid[0] && !uuid)
		return 0;
	if (root->device[0] && names_volume(set, root->device, v))
		return ROOT_DEVICE | ROOT_UUID;
	return uuid ? ROOT_UUID : 0;
}

/* ---- what a system says of itself ---- */

/* The first field of fstab's line for "/", false when there is none. */
static bool fstab_root(const struct guest *g, char *spec, size_t size)
{
	_cleanup_free_ char *text = NULL;
	struct guest_span rest, line, word, file;
	size_t len;

	if (guest_read(g, "/etc/fstab", &text, &len, NULL) < 0)
		return false;
	rest = (struct guest_span){text, len};
	while (guest_next_line(&rest, &line))
		if (guest_next_word(&line, &word) && *word.s != '#' && guest_next_word(&line, &file) &&
		    guest_span_is(file, "/"))
			return guest_span_copy(word, true, spec, size);
	return false;
}

static bool grub_names(const struct guest *g, const struct guest_volume *v)
{
	_cleanup_free_ char *text = NULL;
	struct guest_span rest, line, word;
	char spec[300];
	size_t len;

	if (guest_read(g, "/boot/grub/grub.cfg", &text, &len, NULL) < 0)
		return false;
	rest = (struct guest_span){text, len};
	while (guest_next_line(&rest, &line)) {
		if (!guest_is_linux(line))
			continue;
		while (guest_next_word(&line, &word))
			if (word.n > 5 && memcmp(word.s, "root=", 5) == 0)
				/* Of the first entry: further ones may start other systems. */
				return guest_span_copy((struct guest_span){word.s + 5, word.n - 5}, false, spec,
						       sizeof(spec)) &&
				       names_volume(g->volumes, spec, v);
	}
	return false;
}

static bool boots(const struct guest *g)
{
	const struct guest_volume *v = g->boot_volume ?: g->root_volume;

	return v->disk >= 0 && (size_t)v->disk < g->volumes->ndisks && g->volumes->disks[v->disk].grub;
}

static void weigh(struct candidate *c, const struct guest_volumes *set, const struct guest_root *root, const char *at)
{
	struct guest *g = NULL;
	char spec[512];

	c->weight = weigh_root(set, root, c->v);
	if (guest_mount_root(set, c->v, at, c->options, true, &g, NULL) < 0)
		return;
	if (root->converted && guest_exists(g, GUEST_CONVERTED))
		c->weight |= CONVERTED;
	/* What can't be mounted speaks against it, no more. */
	guest_mount_below(g, "/boot", NULL);
	if (fstab_root(g, spec, sizeof(spec)) && names_volume(set, spec, c->v))
		c->weight |= FSTAB_NAMES;
	if (grub_names(g, c->v))
		c->weight |= GRUB_NAMES;
	if (boots(g))
		c->weight |= BOOTS;
	guest_close(g, NULL);
}

/* ---- all of them ---- */

static bool can_hold_root(const struct guest_volume *v)
{
	static const char *const types[] = {"ext4", "ext3", "ext2", "xfs", "btrfs"};

	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		if (strcmp(v->fstype, types[i]) == 0)
			return true;
	return false;
}

static void look_at(struct candidates *c, const struct guest_volumes *set, const struct guest_volume *v,
		    const struct guest_root *root, const char *at)
{
	const char *const subvolumes[] = {
	    weigh_root(set, root, v) ? root->subvolume : "", NULL, "subvol=@", "subvol=@rootfs", "subvol=root",
	};
	size_t tries = strcmp(v->fstype, "btrfs") == 0 ? ARRAY_SIZE(subvolumes) : 2;

	for (size_t i = 0; i < tries; i++) {
		const char *options = tries > 2 ? subvolumes[i] : NULL;
		struct guest *g = NULL;
		struct err e = {0};
		int r;

		if (i == 0 && (!options || !*options))
			continue;
		r = guest_mount_root(set, v, at, options, true, &g, &e);
		if (r == 0) {
			c->v[c->n] = (struct candidate){.v = v, .options = options};
			snprintf(c->v[c->n].pretty, sizeof(c->v->pretty), "%s", g->pretty[0] ? g->pretty : g->id);
			c->n++;
			guest_close(g, NULL);
			return;
		}
		if (r != -ENOENT && !c->first.code)
			c->first = e;
		if (r != -ENOENT && !c->own.code && weigh_root(set, root, v))
			c->own = e;
	}
}

/* As its owner knows it. */
static void describe(const struct guest_volumes *set, const struct candidate *c, struct str *out)
{
	const struct guest_volume *v = c->v;

	if (v->mapper[0])
		str_addf(out, "'/dev/mapper/%s'", v->mapper);
	else if (v->disk >= 0 && (size_t)v->disk < set->ndisks && set->disks[v->disk].source[0])
		str_addf(out, "partition %u of '%s'", v->part, set->disks[v->disk].source);
	else
		str_addf(out, "'%s'", v->device);
	str_addf(out, " (%s)", c->pretty);
}

static json_t *tell(const struct guest_volumes *set, const struct guest_root *root, const struct candidates *c,
		    const struct candidate *taken)
{
	_cleanup_(str_release) struct str text = {0};

	if (c->n > 1) {
		str_add(&text, "system: the copied disks hold several systems: ");
		for (size_t i = 0; i < c->n; i++) {
			str_add(&text, i ? ", " : "");
			describe(set, &c->v[i], &text);
		}
	} else {
		str_addf(&text, "system: the server's root '%s' is not among the copied disks", root->device);
	}
	str_add(&text, "; converted is the one on ");
	describe(set, taken, &text);
	str_add(&text, " (see that it is the server's)");
	return json_string(str_ok(&text) ? text.s : "") ?: json_string("system: several systems were found");
}

/* The first of those with the greatest weight. *ret_sure: nothing has to be said about it. */
static const struct candidate *choose(const struct candidates *c, const struct guest_root *root, bool *ret_sure)
{
	const struct candidate *best = &c->v[0];
	size_t as_good = 0;

	for (size_t i = 1; i < c->n; i++)
		if (c->v[i].weight > best->weight)
			best = &c->v[i];
	for (size_t i = 0; i < c->n; i++)
		as_good += c->v[i].weight == best->weight;
	*ret_sure = as_good == 1 && best->weight >= ROOT_UUID;
	/* Alone, it is doubted only where the server's root had a name that doesn't change. */
	if (c->n == 1)
		*ret_sure |= !str_starts(root->device, "/dev/mapper/");
	return best;
}

/* A server's root whose UUID is known is that filesystem and no other. */
static int refuse_others(const struct candidates *c, const struct guest_volumes *set, const struct guest_root *root,
			 struct err *e)
{
	for (size_t i = 0; i < c->n; i++)
		if (!root->uuid[0] || weigh_root(set, root, c->v[i].v))
			return 0;
	if (c->own.code)
		return err_set(e, c->own.code, "%s", c->own.msg);
	if (!c->n && c->first.code)
		return err_set(e, c->first.code, "%s", c->first.msg);
	if (!c->n)
		return err_set(e, -ENOENT, "no filesystem on the copied disks holds a Linux system");
	return err_set(e, -ENOENT,
		       "the server's root filesystem '%s' (UUID %s) is not on the copied disks, only another system "
		       "(copy the disk it is on, too)",
		       root->device, root->uuid);
}

static int find(struct candidates *c, const struct guest_volumes *set, const struct guest_root *root, const char *at,
		struct guest **ret, struct err *e)
{
	const struct candidate *best;
	bool sure;
	int r;

	for (size_t i = 0; i < set->n; i++)
		if (can_hold_root(&set->v[i]))
			look_at(c, set, &set->v[i], root, at);
	r = refuse_others(c, set, root, e);
	if (r < 0)
		return r;
	for (size_t i = 0; i < c->n; i++)
		if (c->n > 1)
			weigh(&c->v[i], set, root, at);
		else
			c->v[i].weight = weigh_root(set, root, c->v[i].v);
	best = choose(c, root, &sure);
	r = guest_mount_root(set, best->v, at, best->options, false, ret, e);
	if (r == 0 && !sure)
		json_array_append_new((*ret)->warnings, tell(set, root, c, best));
	return r;
}

int guest_find_root(const struct guest_volumes *set, const struct guest_root *root, const char *at, struct guest **ret,
		    struct err *e)
{
	static const struct guest_root unknown;
	struct candidates c = {.v = calloc(set->n + 1, sizeof(*c.v))};
	int r;

	if (!c.v)
		return err_nomem(e);
	r = find(&c, set, root ?: &unknown, at, ret, e);
	free(c.v);
	return r;
}
