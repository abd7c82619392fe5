/*
 * A migration test sends what the server boots from and leaves out the disks that hold only data, as if they were
 * empty. Everything is needed until it is known for sure that it isn't: what is left out by mistake makes a copy that
 * doesn't boot, and a test that finds fault with a server that has none.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"

#define TRIAL_ESP "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"

static const char *trial_text(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key)) ?: "";
}

/* Where the system itself lies: that directory, or all below it as well. */
static bool trial_is_system(const char *point)
{
	static const struct {
		const char *dir;
		bool below;
	} dirs[] = {{"/", false},    {"/boot", true},     {"/efi", true},     {"/usr", true},       {"/etc", true},
		    {"/bin", true},  {"/sbin", true},     {"/lib", true},     {"/lib64", true},     {"/root", true},
		    {"/var", false}, {"/var/lib", false}, {"/var/log", true}, {"/var/tmp", false},  {"/tmp", false},
		    {"/nix", true},  {"/ostree", true},   {"/sysroot", true}, {"/var/cache", false}};

	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		size_t n = strlen(dirs[i].dir);

		if (strcmp(point, dirs[i].dir) == 0 ||
		    (dirs[i].below && strncmp(point, dirs[i].dir, n) == 0 && point[n] == '/'))
			return true;
	}
	return false;
}

static bool trial_is_named(const json_t *names, const char *name)
{
	json_t *v;
	size_t i;

	json_array_foreach(names, i, v) if (json_is_string(v) && strcmp(json_string_value(v), name) == 0) return true;
	return false;
}

/* Is the filesystem only somebody's data? What nobody mounted must at least be understood. */
static bool trial_fs_is_data(const json_t *fs)
{
	json_t *mounts = json_object_get(fs, "mounts"), *m;
	size_t i;

	if (!json_array_size(mounts))
		return json_is_true(json_object_get(fs, "understood")) || strcmp(trial_text(fs, "type"), "swap") == 0;
	json_array_foreach(mounts, i, m) if (trial_is_system(trial_text(m, "point"))) return false;
	return true;
}

static bool trial_partition_is_plain(const json_t *p)
{
	const char *content = trial_text(p, "content");

	return strcmp(content, "unknown") != 0 && strcmp(content, "unreadable") != 0 &&
	       strcasecmp(trial_text(p, "type"), TRIAL_ESP) != 0;
}

/* By itself; what a volume group adds is another matter. */
static bool trial_disk_is_data(const json_t *inventory, const json_t *disk)
{
	const char *name = trial_text(disk, "name");
	json_t *v;
	size_t i;

	if (!json_is_integer(json_object_get(disk, "used")))
		return false;
	json_array_foreach(json_object_get(disk, "partitions"), i, v) if (!trial_partition_is_plain(v)) return false;
	json_array_foreach(json_object_get(inventory, "filesystems"), i,
			   v) if (trial_is_named(json_object_get(v, "disks"), name) &&
				  !trial_fs_is_data(v)) return false;
	json_array_foreach(json_object_get(inventory, "volumes"), i,
			   v) if (trial_is_named(json_object_get(v, "disks"), name) &&
				  !json_is_true(json_object_get(v, "linear"))) return false;
	return true;
}

static bool trial_has_lvm(const json_t *inventory, const json_t *disk)
{
	const char *name = trial_text(disk, "name");
	json_t *v;
	size_t i;

	json_array_foreach(json_object_get(disk, "partitions"), i,
			   v) if (json_is_true(json_object_get(v, "lvm"))) return true;
	json_array_foreach(json_object_get(inventory, "volumes"), i,
			   v) if (trial_is_named(json_object_get(v, "disks"), name)) return true;
	return false;
}

/* A plain device that is on none of these disks is on another, which isn't sent at all. */
static bool trial_is_elsewhere(const char *device)
{
	static const char *const plain[] = {"/dev/sd",   "/dev/hd",   "/dev/vd",     "/dev/xvd",
					    "/dev/nvme", "/dev/loop", "/dev/mmcblk", "/dev/ram"};

	for (size_t i = 0; i < ARRAY_SIZE(plain); i++)
		if (str_starts(device, plain[i]))
			return true;
	return false;
}

/* The system on something whose disks aren't told (encrypted, a RAID): all may be needed. */
static bool trial_is_hidden(const json_t *inventory)
{
	json_t *fs;
	size_t i;

	json_array_foreach(json_object_get(inventory, "filesystems"), i, fs)
	{
		if (!json_array_size(json_object_get(fs, "disks")) && !trial_fs_is_data(fs) &&
		    !trial_is_elsewhere(trial_text(fs, "device")))
			return true;
	}
	return false;
}

static const json_t *trial_disk(const json_t *inventory, const char *path)
{
	json_t *disk;
	size_t i;

	json_array_foreach(json_object_get(inventory, "disks"), i,
			   disk) if (strcmp(trial_text(disk, "path"), path) == 0 ||
				     trial_is_named(json_object_get(disk, "aliases"), path)) return disk;
	return NULL;
}

void trial_choose(const json_t *inventory, const char *const *disks, size_t n, bool *ret_leave_out)
{
	bool hidden = trial_is_hidden(inventory), lvm = false;

	/* BIOS boots from the first disk, whatever else is on it. */
	for (size_t i = 0; i < n; i++) {
		const json_t *disk = trial_disk(inventory, disks[i]);

		ret_leave_out[i] = i > 0 && disk && !hidden && trial_disk_is_data(inventory, disk);
		lvm = lvm || (!ret_leave_out[i] && disk && trial_has_lvm(inventory, disk));
	}
	/* A volume group with a disk missing may not be activated; which disk is in which group isn't asked. */
	for (size_t i = 0; i < n && lvm; i++) {
		const json_t *disk = trial_disk(inventory, disks[i]);

		if (ret_leave_out[i] && trial_has_lvm(inventory, disk))
			ret_leave_out[i] = false;
	}
}

int trial_begin(const struct agent_options *o, const char *const *disks, size_t n, struct trial *ret, struct err *e)
{
	_cleanup_json_ json_t *inventory = NULL;
	json_t *left_out;
	int r;

	trial_end(ret);
	if (n > TASK_DISKS_MAX)
		return err_set(e, -EINVAL, "at most %d disks can be sent at once", TASK_DISKS_MAX);
	left_out = json_array();
	r = discover_inventory(disks, n, &inventory, e);
	if (r < 0 || !left_out) {
		json_decref(left_out);
		return r < 0 ? r : err_nomem(e);
	}
	trial_choose(inventory, disks, n, ret->leave_out);
	for (size_t i = 0; i < n; i++)
		if (ret->leave_out[i])
			json_array_append_new(left_out, task_text(disks[i]));
	ret->report = json_pack("{s:o, s:o}", "checks", check_server(o, inventory), "left_out", left_out);
	return ret->report ? 0 : err_nomem(e);
}

void trial_end(struct trial *t)
{
	json_decref(t->report);
	*t = (struct trial){0};
}
