/* Which disks are attached and what lies on them: sysfs for the devices, libblkid for the contents. */
#include "guest/guest.h"

#include <blkid.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"

void guest_volumes_release(struct guest_volumes *v)
{
	free(v->v);
	free(v->disks);
	*v = (struct guest_volumes){0};
}

static int volumes_init(struct guest_volumes *v, struct err *e)
{
	v->v = calloc(GUEST_VOLUMES_MAX, sizeof(*v->v));
	v->disks = calloc(GUEST_DISKS_MAX, sizeof(*v->disks));
	return v->v && v->disks ? 0 : err_nomem(e);
}

/* NULL: there are too many. */
static struct guest_volume *volumes_new(struct guest_volumes *v)
{
	if (v->n == GUEST_VOLUMES_MAX)
		return NULL;
	v->v[v->n] = (struct guest_volume){.disk = -1};
	return &v->v[v->n++];
}

static int volumes_too_many(struct err *e)
{
	return err_set(e, -E2BIG, "more than %d partitions and logical volumes on the copied disks", GUEST_VOLUMES_MAX);
}

static void volumes_take(blkid_probe p, const char *name, char *out, size_t size)
{
	const char *value;
	size_t len;

	if (blkid_probe_lookup_value(p, name, &value, &len) == 0 && strlen(value) < size)
		snprintf(out, size, "%s", value);
}

static void volumes_probe(struct guest_volume *v)
{
	blkid_probe p = blkid_new_probe_from_filename(v->device);

	if (!p)
		return;
	blkid_probe_enable_superblocks(p, 1);
	blkid_probe_set_superblocks_flags(p, BLKID_SUBLKS_TYPE | BLKID_SUBLKS_UUID | BLKID_SUBLKS_LABEL);
	blkid_probe_enable_partitions(p, 1);
	blkid_probe_set_partitions_flags(p, BLKID_PARTS_ENTRY_DETAILS);
	if (blkid_do_safeprobe(p) == 0) {
		volumes_take(p, "TYPE", v->fstype, sizeof(v->fstype));
		volumes_take(p, "UUID", v->uuid, sizeof(v->uuid));
		volumes_take(p, "LABEL", v->label, sizeof(v->label));
		volumes_take(p, "PART_ENTRY_UUID", v->partuuid, sizeof(v->partuuid));
		volumes_take(p, "PART_ENTRY_NAME", v->partlabel, sizeof(v->partlabel));
	}
	blkid_free_probe(p);
}

static bool sysfs_read(const char *dev, const char *file, char *out, size_t size)
{
	_cleanup_free_ char *text = NULL;
	char path[400];

	snprintf(path, sizeof(path), "/sys/block/%s/%s", dev, file);
	if (io_read_file(path, 4096, &text, NULL, NULL) < 0)
		return false;
	text[strcspn(text, "\n")] = '\0';
	return (size_t)snprintf(out, size, "%s", text) < size;
}

/* GRUB's boot.img has its name in the clear near the end of the code (offset 0x180 on). */
static void volumes_boot_sector(struct guest_disk *d)
{
	_cleanup_close_ int fd = open(d->device, O_RDONLY | O_CLOEXEC);
	char sector[1024];

	if (fd < 0 || io_pread_full(fd, sector, sizeof(sector), 0) != sizeof(sector))
		return;
	d->grub = memmem(sector, 440, "GRUB ", 5) != NULL;
	d->gpt = memcmp(sector + 512, "EFI PART", 8) == 0;
}

static bool volumes_add_parts(struct guest_volumes *v, const char *name, int disk)
{
	bool fits = true;
	char path[300];
	struct dirent *d;
	DIR *dir;

	snprintf(path, sizeof(path), "/sys/block/%s", name);
	dir = opendir(path);
	while (dir && (d = readdir(dir))) {
		struct guest_volume *p;
		char file[300], number[16];
		uint64_t part;

		if (!str_starts(d->d_name, name))
			continue;
		snprintf(file, sizeof(file), "%s/partition", d->d_name);
		if (!sysfs_read(name, file, number, sizeof(number)) || str_u64(number, 1, 100000, &part) < 0)
			continue;
		p = volumes_new(v);
		fits = p != NULL;
		if (!fits)
			break;
		p->disk = disk;
		p->part = (unsigned)part;
		snprintf(p->device, sizeof(p->device), "/dev/%.100s", d->d_name);
		volumes_probe(p);
	}
	if (dir)
		closedir(dir);
	return fits;
}

static bool volumes_add_disk(struct guest_volumes *v, const char *name, uint64_t index)
{
	struct guest_volume *whole = volumes_new(v);

	if (!whole)
		return false;
	whole->disk = (int)index;
	snprintf(whole->device, sizeof(whole->device), "/dev/%.100s", name);
	volumes_probe(whole);
	snprintf(v->disks[index].device, sizeof(v->disks[index].device), "/dev/%.50s", name);
	volumes_boot_sector(&v->disks[index]);
	v->ndisks = MAX(v->ndisks, (size_t)index + 1);
	return volumes_add_parts(v, name, (int)index);
}

static bool volumes_add(struct guest_volumes *v, const char *name)
{
	static const char serial_prefix[] = "replant-disk";
	struct guest_volume *o;
	char text[128];
	uint64_t index;
	bool mapper;

	if (str_starts(name, "vd"))
		return !sysfs_read(name, "serial", text, sizeof(text)) || !str_starts(text, serial_prefix) ||
		       str_u64(text + strlen(serial_prefix), 0, GUEST_DISKS_MAX - 1, &index) < 0 ||
		       volumes_add_disk(v, name, index);
	mapper = str_starts(name, "dm-") && sysfs_read(name, "dm/name", text, sizeof(text));
	if (!mapper && !str_starts(name, "md"))
		return true;
	o = volumes_new(v);
	if (!o)
		return false;
	if (mapper) {
		snprintf(o->mapper, sizeof(o->mapper), "%s", text);
		snprintf(o->device, sizeof(o->device), "/dev/mapper/%.100s", text);
	} else {
		snprintf(o->md, sizeof(o->md), "%.60s", name);
		snprintf(o->device, sizeof(o->device), "/dev/%.100s", name);
	}
	volumes_probe(o);
	return true;
}

static int volumes_names(struct guest_volumes *v, const json_t *names, struct err *e)
{
	json_t *disk, *alias;
	size_t i, k;

	json_array_foreach(names, i, disk)
	{
		const char *source = "";
		int r;

		if (i >= GUEST_DISKS_MAX)
			return err_set(e, -EINVAL, "more than %d disks", GUEST_DISKS_MAX);
		if (!json_is_object(disk))
			return err_set(e, -EINVAL, "'disks' must be a list of objects");
		r = jsn_get_str(disk, "source", false, sizeof(v->disks->source) - 1, &source, e);
		if (r < 0)
			return r;
		snprintf(v->disks[i].source, sizeof(v->disks[i].source), "%s", source);
		json_array_foreach(json_object_get(disk, "aliases"), k, alias)
		{
			struct guest_disk *d = &v->disks[i];

			if (json_is_string(alias) && json_string_length(alias) < sizeof(d->aliases[0]) &&
			    d->naliases < ARRAY_SIZE(d->aliases))
				snprintf(d->aliases[d->naliases++], sizeof(d->aliases[0]), "%s",
					 json_string_value(alias));
		}
	}
	return 0;
}

/* sysfs lists in no order; names that are there twice mean the same volume each time. */
static int volumes_compare(const void *a, const void *b)
{
	const struct guest_volume *x = a, *y = b;

	if (x->disk != y->disk)
		return (unsigned)x->disk < (unsigned)y->disk ? -1 : 1; /* what lies across disks last */
	if (x->part != y->part)
		return x->part < y->part ? -1 : 1;
	return strcmp(x->device, y->device);
}

int guest_volumes_scan(const json_t *names, struct guest_volumes *ret, struct err *e)
{
	_cleanup_(guest_volumes_release) struct guest_volumes v = {0};
	struct dirent *d;
	int r = volumes_init(&v, e);
	DIR *dir;

	if (r == 0)
		r = volumes_names(&v, names, e);
	if (r < 0)
		return r;
	dir = opendir("/sys/block");
	if (!dir)
		return err_sys(e, "cannot list '/sys/block'");
	while (r == 0 && (d = readdir(dir)))
		r = volumes_add(&v, d->d_name) ? 0 : volumes_too_many(e);
	closedir(dir);
	if (r < 0)
		return r;
	qsort(v.v, v.n, sizeof(*v.v), volumes_compare);
	if (!v.ndisks)
		return err_set(e, -ENODEV, "no disk of the job is attached");
	*ret = v;
	v = (struct guest_volumes){0};
	return 0;
}

static int volumes_text(const json_t *o, const char *key, char *out, size_t size, struct err *e)
{
	const char *s = "";
	int r = jsn_get_str(o, key, false, size - 1, &s, e);

	if (r == 0)
		snprintf(out, size, "%s", s);
	return r;
}

static int volumes_one(const json_t *o, struct guest_volume *v, struct err *e)
{
	uint64_t part = 0, disk = UINT64_MAX;
	int r = volumes_text(o, "device", v->device, sizeof(v->device), e);

	r = r ?: volumes_text(o, "mapper", v->mapper, sizeof(v->mapper), e);
	r = r ?: volumes_text(o, "md", v->md, sizeof(v->md), e);
	r = r ?: volumes_text(o, "fstype", v->fstype, sizeof(v->fstype), e);
	r = r ?: volumes_text(o, "uuid", v->uuid, sizeof(v->uuid), e);
	r = r ?: volumes_text(o, "label", v->label, sizeof(v->label), e);
	r = r ?: volumes_text(o, "partuuid", v->partuuid, sizeof(v->partuuid), e);
	r = r ?: volumes_text(o, "partlabel", v->partlabel, sizeof(v->partlabel), e);
	r = r ?: jsn_get_u64(o, "part", false, 0, 100000, &part, e);
	r = r ?: jsn_get_u64(o, "disk", false, 0, GUEST_DISKS_MAX - 1, &disk, e);
	v->part = (unsigned)part;
	v->disk = disk == UINT64_MAX ? -1 : (int)disk;
	return r;
}

int guest_volumes_from_json(const json_t *j, struct guest_volumes *ret, struct err *e)
{
	_cleanup_(guest_volumes_release) struct guest_volumes v = {0};
	json_t *list = json_object_get(j, "disks"), *o;
	size_t i;
	int r = volumes_init(&v, e);

	if (r == 0)
		r = volumes_names(&v, list, e);
	v.ndisks = json_array_size(list);
	for (i = 0; r == 0 && i < v.ndisks; i++) {
		jsn_get_bool(json_array_get(list, i), "grub", false, &v.disks[i].grub, NULL);
		r = volumes_text(json_array_get(list, i), "device", v.disks[i].device, sizeof(v.disks[i].device), e);
	}
	json_array_foreach(json_object_get(j, "volumes"), i, o)
	{
		struct guest_volume *one = r == 0 ? volumes_new(&v) : NULL;

		if (r == 0)
			r = one ? volumes_one(o, one, e) : volumes_too_many(e);
	}
	if (r < 0)
		return r;
	*ret = v;
	v = (struct guest_volumes){0};
	return 0;
}
