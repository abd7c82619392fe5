/*
 * The disk plan of a job: disks are copied whole and as they are, so a plan is taken when it says what the source has,
 * and refused, with the figure that would be right, when it doesn't.
 */
#include <string.h>

#include "base/util.h"
#include "smc/smc_int.h"

#define DISK_MIN  1u
#define DISK_MAX  32768u
#define PARTS_MAX 32u

struct plan {
	struct smc *c;
	const json_t *source;
	struct smc_disk disks[SMC_DISKS_MAX];
	size_t n;
	bool seen[SMC_DISKS_MAX];
};

static int check_size(struct plan *p, const char *name, size_t disk)
{
	uint64_t gib = 0, is = smc_gib(p->disks[disk].size);
	int r = smc_uint(p->c, name, DISK_MIN, DISK_MAX, &gib);

	if (r <= 0)
		return r;
	return gib == is ? 0
			 : smc_bad(p->c, name,
				   "the disk keeps the size that the source's has, %llu GiB; say that, or nothing",
				   (unsigned long long)is);
}

static int check_flag(struct plan *p, const char *name, bool must_be, const char *why)
{
	bool v = must_be;

	if (smc_bool(p->c, name, &v) < 0)
		return -1;
	return v == must_be ? 0 : smc_bad(p->c, name, "%s", why);
}

/* The filesystem of that disk that is mounted there, and its size. */
static bool is_mounted(const struct plan *p, size_t disk, const char *path, uint64_t *ret_size)
{
	const json_t *inventory = json_object_get(p->source, "inventory");
	json_t *fs, *name;
	size_t i, k;

	json_array_foreach(json_object_get(inventory, "filesystems"), i, fs)
	{
		if (strcmp(smc_text(json_array_get(json_object_get(fs, "mounts"), 0), "point"), path) != 0)
			continue;
		json_array_foreach(json_object_get(fs, "disks"), k,
				   name) if (strcmp(json_string_value(name) ?: "", p->disks[disk].name) == 0)
		{
			*ret_size = (uint64_t)json_integer_value(json_object_get(fs, "size"));
			return true;
		}
	}
	return false;
}

/* PREFIX.N.Device or .Path, .SizeBytes, .Block */
static int check_parts(struct plan *p, const char *prefix, size_t disk)
{
	const json_t *parts = json_object_get(p->disks[disk].disk, "partitions");

	for (unsigned i = 1; i <= PARTS_MAX + 1; i++) {
		char name[80], device[80], path[80], *end;
		uint64_t size, index, is = 0;
		const char *s;
		int given;

		snprintf(name, sizeof(name), "%s.%u.", prefix, i);
		if (!smc_param_any(p->c, name))
			return 0;
		if (i > PARTS_MAX)
			return smc_bad(p->c, prefix, "at most %u partitions", PARTS_MAX);
		snprintf(name, sizeof(name), "%s.%u.Block", prefix, i);
		if (check_flag(p, name, true, "blocks are what is copied; there is no copy by files yet") < 0)
			return -1;
		snprintf(name, sizeof(name), "%s.%u.SizeBytes", prefix, i);
		snprintf(device, sizeof(device), "%s.%u.Device", prefix, i);
		s = smc_param(p->c, device);
		end = s ? strchr(s, '_') : NULL;
		if (s && (!end || (size_t)strtoull(s, NULL, 10) != disk ||
			  str_u64(end + 1, 0, json_array_size(parts) - (json_array_size(parts) > 0), &index) < 0))
			return smc_bad(p->c, device, "the source has no partition '%.32s' on that disk", s);
		snprintf(path, sizeof(path), "%s.%u.Path", prefix, i);
		if (smc_param(p->c, path) && !is_mounted(p, disk, smc_param(p->c, path), &is))
			return smc_bad(p->c, path, "the source has no filesystem there on that disk");
		if (s)
			is = (uint64_t)json_integer_value(json_object_get(json_array_get(parts, index), "size"));
		given = smc_uint(p->c, name, 1, UINT64_MAX, &size);
		if (given < 0)
			return -1;
		if (given && !s && !smc_param(p->c, path))
			return smc_bad(p->c, name, "goes with Device or Path");
		if (given && size != is)
			return smc_bad(p->c, name, "partitions keep their size, %llu; say that, or nothing",
				       (unsigned long long)is);
	}
	return 0;
}

/* DataDisk.N.Index, .Size, .Part */
static int check_data_disk(struct plan *p, unsigned i)
{
	char name[64];
	uint64_t index = 0;
	int r;

	snprintf(name, sizeof(name), "DataDisk.%u.Index", i);
	r = smc_uint(p->c, name, 1, 16, &index);
	if (r < 0)
		return -1;
	if (r == 0)
		return smc_fail(p->c, 400, "MissingParameter", "the parameter %s is mandatory with DataDisk.%u", name,
				i);
	if (index >= p->n)
		return smc_fail(p->c, 400, "ReplicationJobDataDiskIndex.Invalid", "the source has no data disk %llu",
				(unsigned long long)index);
	if (p->seen[index])
		return smc_fail(p->c, 400, "DataDisk.DuplicateIndex", "data disk %llu is given twice",
				(unsigned long long)index);
	p->seen[index] = true;
	snprintf(name, sizeof(name), "DataDisk.%u.Size", i);
	if (check_size(p, name, (size_t)index) < 0)
		return -1;
	snprintf(name, sizeof(name), "DataDisk.%u.Part", i);
	return check_parts(p, name, (size_t)index);
}

/* Disks.System and Disks.Data.N, the newer model. */
static int check_newer(struct plan *p, const char *prefix, size_t disk)
{
	char name[64];

	if (disk >= p->n)
		return smc_fail(p->c, 400, "ReplicationJobDataDiskIndex.Invalid", "the source has no data disk for %s",
				prefix);
	snprintf(name, sizeof(name), "%s.Size", prefix);
	if (check_size(p, name, disk) < 0)
		return -1;
	snprintf(name, sizeof(name), "%s.LVM", prefix);
	if (check_flag(p, name, false, "LVM is copied as it is, and not made anew") < 0)
		return -1;
	snprintf(name, sizeof(name), "%s.Part", prefix);
	return check_parts(p, name, disk);
}

int smc_check_plan(struct smc *c, const json_t *source)
{
	struct plan p = {.c = c, .source = source};
	char prefix[32];

	p.n = smc_disks(source, p.disks);
	if (!p.n) /* nothing is known of its disks, so nothing can be said about them */
		return smc_param_any(c, "DataDisk.") || smc_param_any(c, "SystemDisk") || smc_param_any(c, "Disks.")
			   ? smc_fail(c, 400, "SourceServerState.Invalid", "the source has not told its disks yet")
			   : 0;
	if (check_size(&p, "SystemDiskSize", 0) < 0 || check_parts(&p, "SystemDiskPart", 0) < 0)
		return -1;
	for (unsigned i = 1; i <= SMC_DISKS_MAX; i++) {
		snprintf(prefix, sizeof(prefix), "DataDisk.%u.", i);
		if (smc_param_any(c, prefix) && check_data_disk(&p, i) < 0)
			return -1;
	}
	if (smc_param_any(c, "Disks.System.") && check_newer(&p, "Disks.System", 0) < 0)
		return -1;
	for (unsigned i = 1; i <= SMC_DISKS_MAX; i++) {
		snprintf(prefix, sizeof(prefix), "Disks.Data.%u", i);
		if (smc_param_any(c, prefix) && check_newer(&p, prefix, i) < 0)
			return -1;
	}
	return 0;
}
