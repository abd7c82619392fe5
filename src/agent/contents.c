/*
 * What is on the disks: partition tables and LVM by the layout room, filesystems by the fs room, read from the disks
 * themselves; which of it is mounted, and how full, by the kernel's word. All of it read-only.
 */
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "agent/agent_int.h"
#include "base/endian.h"
#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"
#include "disk/disk.h"
#include "fs/fs.h"
#include "layout/layout.h"
#include "track/track.h"

#define CONTENTS_ALIASES_MAX 8u /* as many as a conversion looks at */
#define CONTENTS_PARTS       256

struct contents {
	const struct agent_disk *disks;
	size_t n;
	struct disk **open; /* NULL where a disk can't be read */
	/* The layout knows only the disks that could be opened; which is which. */
	struct disk **given;
	size_t *index;
	size_t ngiven;
	struct layout *layout;
	struct track_mount *mounts;
	size_t nmounts;
	bool *mount_told;     /* its filesystem is in the list */
	uint64_t *free_bytes; /* per disk, known to be unused */
	json_t *filesystems, *volumes, *warnings;
};

static void contents_warn(struct contents *c, const char *text)
{
	json_t *s = json_string(text);

	if (s)
		json_array_append_new(c->warnings, s);
}

static json_t *contents_string(const char *s)
{
	json_t *j = *s ? json_string(s) : json_null();

	return j ? j : json_string("?");
}

/* ---- kernel names ---- */

static bool contents_dev_of(const char *kname, dev_t *ret)
{
	_cleanup_free_ char *path = str_printf("/sys/class/block/%s/dev", kname);
	unsigned major, minor;
	char buf[32];

	if (!path || sscanf(sysinfo_line(path, buf, sizeof(buf)), "%u:%u", &major, &minor) != 2)
		return false;
	*ret = makedev(major, minor);
	return true;
}

/* device-mapper's name of an LV: "-" within the names is doubled. */
static void contents_dm_name(const char *lv, char *out, size_t size)
{
	size_t n = 0;

	for (; *lv && n + 2 < size; lv++) {
		if (*lv == '-')
			out[n++] = '-';
		out[n++] = *lv == '/' ? '-' : *lv;
	}
	out[n] = '\0';
}

static bool contents_find_dm(const char *lv, char *out, size_t size)
{
	struct dirent *de;
	char name[600], line[300];
	bool found = false;
	DIR *d = opendir("/sys/block");

	contents_dm_name(lv, name, sizeof(name));
	while (d && !found && (de = readdir(d))) {
		_cleanup_free_ char *path = str_printf("/sys/block/%s/dm/name", de->d_name);

		if (!str_starts(de->d_name, "dm-") || !path || strlen(de->d_name) >= size)
			continue;
		found = strcmp(sysinfo_line(path, line, sizeof(line)), name) == 0;
		if (found)
			strcpy(out, de->d_name);
	}
	if (d)
		closedir(d);
	return found;
}

/* The kernel's name of a volume; false when it has none (not active, or its table isn't read). */
static bool contents_kname(const struct contents *c, const struct layout_volume *v, char *out, size_t size)
{
	struct disklist_part parts[CONTENTS_PARTS];
	size_t n;

	out[0] = '\0';
	if (v->kind == LAYOUT_LV)
		return contents_find_dm(v->name, out, size);
	if (v->kind == LAYOUT_WHOLE_DISK) {
		snprintf(out, size, "%s", c->disks[c->index[v->disk]].name);
		return true;
	}
	disklist_parts(&c->disks[c->index[v->disk]], parts, CONTENTS_PARTS, &n);
	for (size_t i = 0; i < n; i++)
		if (parts[i].number == v->number) {
			snprintf(out, size, "%s", parts[i].name);
			return true;
		}
	return false;
}

/* ---- one filesystem ---- */

struct contents_sum {
	uint64_t bytes;
};

static int contents_count(void *arg, uint64_t off, uint64_t len)
{
	struct contents_sum *s = arg;

	return util_add_overflows(s->bytes, len, &s->bytes) ? -EOVERFLOW : 0;
}

static bool contents_mount_is(const struct track_mount *m, dev_t dev)
{
	struct stat st;

	if (m->dev == dev)
		return true;
	return major(m->dev) == 0 && m->source[0] == '/' && strcmp(m->type, "btrfs") == 0 &&
	       stat(m->source, &st) == 0 && S_ISBLK(st.st_mode) && st.st_rdev == dev;
}

/* The mounts of a device; *ret_used is statvfs' word, if it is mounted. */
static json_t *contents_mounts(struct contents *c, dev_t dev, uint64_t *ret_size, uint64_t *ret_used, bool *ret_mounted)
{
	json_t *out = json_array();
	struct statvfs vfs;

	*ret_mounted = false;
	for (size_t i = 0; i < c->nmounts; i++) {
		const struct track_mount *m = &c->mounts[i];

		if (!contents_mount_is(m, dev))
			continue;
		c->mount_told[i] = true;
		json_array_append_new(out, json_pack("{s:o, s:o, s:o, s:b}", "point", contents_string(m->point),
						     "options", contents_string(m->options), "super_options",
						     contents_string(m->super), "writable", m->writable));
		if (!*ret_mounted && statvfs(m->point, &vfs) == 0) {
			*ret_mounted = true;
			*ret_size = (uint64_t)vfs.f_blocks * vfs.f_frsize;
			*ret_used = (uint64_t)(vfs.f_blocks - vfs.f_bfree) * vfs.f_frsize;
		}
	}
	return out;
}

/* What the fs room doesn't know but the reports should name. */
static const char *contents_magic(struct disk *d)
{
	static const struct {
		uint64_t off;
		const char *bytes;
		size_t len;
		const char *name;
	} magics[] = {{1024, "\x10\x20\xf5\xf2", 4, "f2fs"},
		      {65588, "ReIsEr", 6, "reiserfs"},
		      {32768, "JFS1", 4, "jfs"},
		      {0, "-FVE-FS-", 8, "bitlocker"},
		      {3, "-FVE-FS-", 8, "bitlocker"}};
	char buf[16];

	for (size_t i = 0; i < ARRAY_SIZE(magics); i++)
		if (magics[i].off + magics[i].len <= d->size &&
		    disk_read(d, buf, magics[i].len, magics[i].off, NULL) == 0 &&
		    memcmp(buf, magics[i].bytes, magics[i].len) == 0)
			return magics[i].name;
	return "unknown";
}

/* The view of a volume whose mapping is complete; NULL otherwise. */
static struct disk *contents_view(struct contents *c, const struct layout_volume *v)
{
	_cleanup_free_ struct disk_extent *map = NULL;
	struct disk *d = NULL;

	if (!v->linear || !v->nmap)
		return NULL;
	map = calloc(v->nmap, sizeof(*map));
	for (size_t i = 0; map && i < v->nmap; i++)
		map[i] = (struct disk_extent){v->map[i].logical, v->map[i].length, c->given[v->map[i].disk],
					      v->map[i].offset};
	if (!map || disk_view_new(v->name, map, v->nmap, &d, NULL) < 0)
		return NULL;
	return d;
}

static uint64_t contents_volume_size(const struct layout_volume *v)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < v->nmap; i++)
		sum += v->map[i].length;
	return sum;
}

/* Books `bytes` as unused on the disks of v, shared by how much of v each disk holds. */
static void contents_book_free(struct contents *c, const struct layout_volume *v, uint64_t size, uint64_t bytes)
{
	for (size_t i = 0; size && i < v->nmap; i++)
		c->free_bytes[c->index[v->map[i].disk]] +=
		    (uint64_t)((double)bytes * ((double)v->map[i].length / (double)size));
}

static json_t *contents_filesystem(const char *device, const char *type, const struct fs_info *info)
{
	return json_pack("{s:o, s:s, s:o, s:o, s:I, s:b, s:n, s:n}", "device", contents_string(device), "type", type,
			 "uuid", contents_string(info->uuid), "label", contents_string(info->label), "block_size",
			 (json_int_t)info->block_size, "clean", info->clean, "size", "used");
}

static json_t *contents_disk_names(const struct contents *c, const struct layout_volume *v)
{
	json_t *out = json_array();
	uint64_t seen = 0;

	for (size_t i = 0; i < v->nmap; i++) {
		size_t d = c->index[v->map[i].disk];

		if (d < 64 && !(seen & UINT64_C(1) << d)) {
			seen |= UINT64_C(1) << d;
			json_array_append_new(out, json_string(c->disks[d].name));
		}
	}
	return out;
}

/* Probes a volume that can be read; returns what it holds and adds a filesystem to the list. */
static const char *contents_probe(struct contents *c, const struct layout_volume *v, const char *device, dev_t dev,
				  bool known)
{
	_cleanup_(disk_closep) struct disk *view = contents_view(c, v);
	uint64_t size = contents_volume_size(v), used = size, vfs_size = 0;
	struct fs_info info = {.type = "unknown"};
	struct contents_sum sum = {0};
	bool mounted = false, counted = false, understood;
	const char *type;
	json_t *fs, *mounts;

	if (!view || fs_probe(view, &info, NULL) < 0)
		return "unreadable";
	understood = info.readable;
	type = strcmp(info.type, "unknown") != 0 ? info.type : contents_magic(view);
	if (strcmp(type, "unknown") == 0)
		return type;
	mounts = known ? contents_mounts(c, dev, &vfs_size, &used, &mounted) : json_array();
	if (understood && !mounted && fs_used(view, FS_LIVE, contents_count, &sum, NULL, NULL) == 0) {
		counted = true;
		used = MIN(sum.bytes, size);
	}
	if (understood && (mounted || counted) && used < size)
		contents_book_free(c, v, size, size - used);
	fs = contents_filesystem(device, type, &info);
	if (!fs)
		return type;
	json_object_set_new(fs, "size", json_integer((json_int_t)(info.size ? info.size : size)));
	if (mounted || counted)
		json_object_set_new(fs, "used", json_integer((json_int_t)used));
	json_object_set_new(fs, "understood", json_boolean(understood));
	json_object_set_new(fs, "mounts", mounts);
	json_object_set_new(fs, "disks", contents_disk_names(c, v));
	json_array_append_new(c->filesystems, fs);
	return type;
}

/* ---- volumes ---- */

static json_t *contents_lv(struct contents *c, const struct layout_volume *v, const char *kname, const char *content)
{
	_cleanup_free_ char *path = str_printf("/dev/%s", v->name);

	return json_pack("{s:s, s:o, s:o, s:o, s:I, s:o, s:b, s:s, s:o}", "kind", "lv", "name",
			 contents_string(v->name), "path", path ? contents_string(path) : json_null(), "uuid",
			 contents_string(v->uuid), "size", (json_int_t)contents_volume_size(v), "kernel_name",
			 contents_string(kname), "linear", v->linear, "content", content, "disks",
			 contents_disk_names(c, v));
}

static json_t *contents_partition(const struct layout_volume *v, const char *kname, const char *content,
				  uint32_t sector)
{
	uint64_t start = v->nmap ? v->map[0].offset : 0;
	_cleanup_free_ char *path = *kname ? str_printf("/dev/%s", kname) : NULL;

	return json_pack("{s:I, s:o, s:o, s:I, s:I, s:I, s:o, s:o, s:s, s:b}", "number", (json_int_t)v->number, "name",
			 contents_string(kname), "path", path ? contents_string(path) : json_null(), "start",
			 (json_int_t)start, "start_sector", (json_int_t)(start / (sector ? sector : 512)), "size",
			 (json_int_t)contents_volume_size(v), "type", contents_string(v->type), "uuid",
			 contents_string(v->uuid), "content", content, "lvm", v->is_pv);
}

static void contents_volume(struct contents *c, const struct layout_volume *v, json_t *partitions[])
{
	_cleanup_free_ char *device = NULL;
	const char *content;
	bool known;
	char kname[80];
	dev_t dev = 0;

	known = contents_kname(c, v, kname, sizeof(kname)) && contents_dev_of(kname, &dev);
	if (v->kind == LAYOUT_LV)
		device = str_printf("/dev/%s", v->name);
	else if (*kname)
		device = str_printf("/dev/%s", kname);
	else
		device = str_printf("%s partition %u", c->disks[c->index[v->disk]].path, v->number);
	content = v->is_pv ? "LVM2_member" : contents_probe(c, v, device ? device : "", dev, known);
	if (v->kind == LAYOUT_LV)
		json_array_append_new(c->volumes, contents_lv(c, v, kname, content));
	else if (v->kind == LAYOUT_PARTITION)
		json_array_append_new(partitions[c->index[v->disk]],
				      contents_partition(v, kname, content, c->disks[c->index[v->disk]].logical));
}

/* ---- what only the kernel knows: md arrays, opened LUKS and other mappings ---- */

static json_t *contents_slaves(const char *kname)
{
	_cleanup_free_ char *dir = str_printf("/sys/class/block/%s/slaves", kname);
	struct dirent **names = NULL;
	json_t *out = json_array();
	int n = dir ? scandir(dir, &names, NULL, alphasort) : -1;

	for (int i = 0; i < n; i++) {
		if (names[i]->d_name[0] != '.')
			json_array_append_new(out, contents_string(names[i]->d_name));
		free(names[i]);
	}
	free(names);
	return out;
}

static const char *contents_sysfs(const char *kname, const char *file, char *buf, size_t size)
{
	_cleanup_free_ char *path = str_printf("/sys/class/block/%s/%s", kname, file);

	buf[0] = '\0';
	return path ? sysinfo_line(path, buf, size) : buf;
}

static void contents_add_mapped(struct contents *c, const char *kname)
{
	char name[300], uuid[200], size[32], level[32];
	const char *kind = NULL;

	contents_sysfs(kname, "size", size, sizeof(size));
	if (str_starts(kname, "md")) {
		kind = "md";
		snprintf(name, sizeof(name), "%s", kname);
		contents_sysfs(kname, "md/uuid", uuid, sizeof(uuid));
	} else if (str_starts(kname, "dm-")) {
		contents_sysfs(kname, "dm/name", name, sizeof(name));
		contents_sysfs(kname, "dm/uuid", uuid, sizeof(uuid));
		kind = str_starts(uuid, "CRYPT-") ? "crypt" : str_starts(uuid, "mpath-") ? "multipath" : NULL;
	}
	if (!kind || !strtoull(size, NULL, 10))
		return;
	json_array_append_new(c->volumes,
			      json_pack("{s:s, s:o, s:o, s:I, s:s, s:o, s:o}", "kind", kind, "name",
					contents_string(name), "uuid", contents_string(uuid), "size",
					(json_int_t)(strtoull(size, NULL, 10) * 512), "kernel_name", kname, "level",
					contents_string(contents_sysfs(kname, "md/level", level, sizeof(level))),
					"members", contents_slaves(kname)));
}

static void contents_mapped(struct contents *c)
{
	struct dirent **names = NULL;
	int n = scandir("/sys/block", &names, NULL, versionsort);

	for (int i = 0; i < n; i++) {
		contents_add_mapped(c, names[i]->d_name);
		free(names[i]);
	}
	free(names);
}

/* Filesystems mounted from block devices that no volume showed: on LUKS, md, or a disk we could not read. */
static void contents_other_mounts(struct contents *c)
{
	for (size_t i = 0; i < c->nmounts; i++) {
		const struct track_mount *m = &c->mounts[i];
		uint64_t size = 0, used = 0;
		bool mounted;
		struct stat st;
		json_t *mounts;

		if (c->mount_told[i] || (major(m->dev) == 0 && strcmp(m->type, "btrfs") != 0) ||
		    str_starts(m->source, "/dev/loop"))
			continue;
		mounts = contents_mounts(c, major(m->dev) || stat(m->source, &st) < 0 ? m->dev : st.st_rdev, &size,
					 &used, &mounted);
		json_array_append_new(c->filesystems,
				      json_pack("{s:o, s:o, s:n, s:n, s:n, s:o, s:o, s:n, s:o, s:n}", "device",
						contents_string(m->source), "type", contents_string(m->type), "uuid",
						"label", "block_size", "size",
						mounted ? json_integer((json_int_t)size) : json_null(), "used",
						mounted ? json_integer((json_int_t)used) : json_null(), "understood",
						"mounts", mounts, "disks"));
	}
}

/* proc_swaps(5): Filename Type Size Used Priority */
static json_t *contents_swaps(void)
{
	_cleanup_free_ char *text = NULL;
	json_t *out = json_array();
	char path[256], type[32];
	unsigned long size, used;

	if (io_read_file("/proc/swaps", 1u << 20, &text, NULL, NULL) < 0)
		return out;
	for (const char *p = strchr(text, '\n'); p && *++p; p = strchr(p, '\n'))
		if (sscanf(p, "%255s %31s %lu %lu", path, type, &size, &used) == 4)
			json_array_append_new(out,
					      json_pack("{s:o, s:o, s:I, s:I}", "path", contents_string(path), "type",
							contents_string(type), "size", (json_int_t)(size * KIB), "used",
							(json_int_t)(used * KIB)));
	return out;
}

/* ---- all together ---- */

static int contents_open(struct contents *c)
{
	c->open = calloc(c->n + 1, sizeof(*c->open));
	c->given = calloc(c->n + 1, sizeof(*c->given));
	c->index = calloc(c->n + 1, sizeof(*c->index));
	c->free_bytes = calloc(c->n + 1, sizeof(*c->free_bytes));
	if (!c->open || !c->given || !c->index || !c->free_bytes)
		return -ENOMEM;
	for (size_t i = 0; i < c->n; i++) {
		struct err e = {0};

		if (disk_open(c->disks[i].path, DISK_DIRECT, &c->open[i], &e) < 0) {
			contents_warn(c, e.msg);
			continue;
		}
		c->given[c->ngiven] = c->open[i];
		c->index[c->ngiven++] = i;
	}
	return 0;
}

/* The names below /dev/disk that mean this disk: a configuration on it may use them. */
static json_t *contents_aliases(const struct agent_disk *d)
{
	static const char *const dirs[] = {"/dev/disk/by-id", "/dev/disk/by-path"};
	json_t *out = json_array();
	struct stat disk, st;

	if (stat(d->path, &disk) < 0 || !S_ISBLK(disk.st_mode))
		return out;
	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		DIR *dp = opendir(dirs[i]);

		for (struct dirent *de; dp && json_array_size(out) < CONTENTS_ALIASES_MAX && (de = readdir(dp));) {
			_cleanup_free_ char *path = str_printf("%s/%s", dirs[i], de->d_name);

			if (path && de->d_name[0] != '.' && strlen(path) < 256 && stat(path, &st) == 0 &&
			    S_ISBLK(st.st_mode) && st.st_rdev == disk.st_rdev)
				json_array_append_new(out, contents_string(path));
		}
		if (dp)
			closedir(dp);
	}
	return out;
}

static json_t *contents_disk(const struct contents *c, size_t i, json_t *partitions)
{
	const struct agent_disk *d = &c->disks[i];
	const char *table = NULL, *uuid = "";

	for (size_t k = 0; c->layout && k < c->ngiven; k++)
		if (c->index[k] == i) {
			table = c->layout->disks[k].table;
			uuid = c->layout->disks[k].uuid;
		}
	return json_pack(
	    "{s:s, s:s, s:o, s:I, s:I, s:I, s:o, s:o, s:b, s:b, s:s?, s:o, s:O, s:o}", "name", d->name, "path", d->path,
	    "aliases", contents_aliases(d), "size", (json_int_t)d->size, "logical_sector", (json_int_t)d->logical,
	    "physical_sector", (json_int_t)d->physical, "model", contents_string(d->model), "serial",
	    contents_string(d->serial), "rotational", d->rotational, "read_only", d->read_only, "table", table,
	    "table_uuid", contents_string(uuid), "partitions", partitions, "used",
	    c->open[i] ? json_integer((json_int_t)(d->size - MIN(c->free_bytes[i], d->size))) : json_null());
}

static void contents_layout(struct contents *c, json_t *partitions[])
{
	struct err e = {0};

	if (layout_read(c->given, c->ngiven, &c->layout, &e) < 0) {
		contents_warn(c, e.msg);
		return;
	}
	for (size_t i = 0; i < c->layout->nwarnings; i++)
		contents_warn(c, c->layout->warnings[i]);
	for (size_t i = 0; i < c->layout->nfree; i++)
		c->free_bytes[c->index[c->layout->free[i].disk]] += c->layout->free[i].length;
	for (size_t i = 0; i < c->layout->nvolumes; i++)
		contents_volume(c, &c->layout->volumes[i], partitions);
}

static void contents_release(struct contents *c)
{
	layout_free_all(c->layout);
	for (size_t i = 0; c->open && i < c->n; i++)
		disk_close(c->open[i]);
	track_mountinfo_free(c->mounts, c->nmounts);
	free(c->open);
	free(c->given);
	free(c->index);
	free(c->free_bytes);
	free(c->mount_told);
}

int contents_add(json_t *inventory, json_t *warnings, const struct agent_disk *disks, size_t n)
{
	_cleanup_(contents_release) struct contents c = {.disks = disks, .n = n, .warnings = warnings};
	_cleanup_free_ json_t **partitions = calloc(n + 1, sizeof(*partitions));
	json_t *list = json_array();
	struct err e = {0};

	c.filesystems = json_array();
	c.volumes = json_array();
	json_object_set_new(inventory, "disks", list);
	json_object_set_new(inventory, "volumes", c.volumes);
	json_object_set_new(inventory, "filesystems", c.filesystems);
	json_object_set_new(inventory, "swaps", contents_swaps());
	if (!partitions || contents_open(&c) < 0)
		return -ENOMEM;
	if (track_mountinfo_read(&c.mounts, &c.nmounts, &e) < 0)
		contents_warn(&c, e.msg);
	c.mount_told = calloc(c.nmounts + 1, sizeof(*c.mount_told));
	if (!c.mount_told)
		return -ENOMEM;
	for (size_t i = 0; i < n; i++)
		partitions[i] = json_array();
	contents_layout(&c, partitions);
	contents_mapped(&c);
	contents_other_mounts(&c);
	for (size_t i = 0; i < n; i++) {
		json_array_append_new(list, contents_disk(&c, i, partitions[i]));
		json_decref(partitions[i]);
	}
	return 0;
}
