/* Finds the system among the volumes and mounts it with its own filesystems. Mounting replays journals; nothing is
 * repaired. */
#include "guest/guest_int.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/util.h"

/* In which the conversion looks or writes, parents first. */
static const char *const mount_points[] = {"/usr", "/boot", "/boot/efi", "/var", "/var/lib", "/usr/local", "/opt"};

static bool mount_can_hold_root(const struct guest_volume *v)
{
	static const char *const types[] = {"ext4", "ext3", "ext2", "xfs", "btrfs"};

	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		if (strcmp(v->fstype, types[i]) == 0)
			return true;
	return false;
}

static const char *mount_type(const struct guest_volume *v)
{
	/* One driver for the three, which also replays a journal where there is one. */
	return str_starts(v->fstype, "ext") ? "ext4" : v->fstype;
}

static int mount_remember(struct guest *g, const char *at)
{
	if (g->nmounted == ARRAY_SIZE(g->mounted))
		return -ENOSPC;
	g->mounted[g->nmounted] = strdup(at);
	return g->mounted[g->nmounted] ? (int)g->nmounted++ : -ENOMEM;
}

/* The mount options of the root's own line: a subvolume is all that matters here. */
static int mount_root(const struct guest_volume *v, const char *at, const char *options, struct err *e)
{
	if (mount(v->device, at, mount_type(v), MS_NOATIME | MS_NODEV, options) < 0)
		return err_sys(e, "cannot mount '%s' (%s)", v->device, v->fstype);
	return 0;
}

/* Mounts the volume and opens the system on it; -ENOENT when there is none. */
static int mount_try(const struct guest_volumes *set, const struct guest_volume *v, const char *at, const char *options,
		     struct guest **ret, struct err *e)
{
	struct guest_settings s = {.root = at, .volumes = set, .root_volume = v, .can_run = true};
	struct guest *g = NULL;
	int r = mount_root(v, at, options, e);

	if (r < 0)
		return r;
	r = guest_open(&s, &g, e);
	if (r == 0 && !guest_exists(g, "/etc/fstab") && !guest_exists(g, "/sbin/init"))
		r = err_set(e, -ENOENT, "'%s' holds no complete system", v->device);
	if (r == 0)
		r = mount_remember(g, at) < 0 ? err_nomem(e) : 0;
	if (r < 0) {
		guest_close(g);
		umount2(at, 0);
		return r;
	}
	*ret = g;
	return 0;
}

static int mount_find_root(const struct guest_volumes *set, const char *at, struct guest **ret, struct err *e)
{
	static const char *const subvolumes[] = {NULL, "subvol=@", "subvol=@rootfs", "subvol=root"};
	struct err first = {.code = -ENOENT, .msg = "no filesystem on the copied disks holds a Linux system"};
	bool told = false;

	for (size_t i = 0; i < set->n; i++) {
		const struct guest_volume *v = &set->v[i];
		size_t tries = strcmp(v->fstype, "btrfs") == 0 ? ARRAY_SIZE(subvolumes) : 1;

		for (size_t k = 0; mount_can_hold_root(v) && k < tries; k++) {
			struct err te = {0};
			int r = mount_try(set, v, at, subvolumes[k], ret, &te);

			if (r == 0)
				return 0;
			if (r != -ENOENT && k == 0 && !told) {
				first = te;
				told = true;
			}
		}
	}
	return err_set(e, first.code, "%s", first.msg);
}

static int mount_entry(struct guest *g, const char *where, const char *spec, struct err *e)
{
	_cleanup_close_ int at = guest_openat(g, where, O_PATH | O_DIRECTORY, 0);
	const struct guest_volume *v = NULL;
	char fd_path[64], full[256];

	guest_device_find(g, spec, &v);
	if (at < 0 || !v || !v->fstype[0])
		return err_set(e, -ENODEV, "'%s' of '/etc/fstab' is on '%s', which is not among the copied disks",
			       where, spec);
	snprintf(fd_path, sizeof(fd_path), "/proc/self/fd/%d", at);
	if (mount(v->device, fd_path, mount_type(v), MS_NOATIME | MS_NODEV, NULL) < 0)
		return err_sys(e, "cannot mount '%s' (%s) at '%s'", v->device, v->fstype, where);
	snprintf(full, sizeof(full), "%s%s", g->path, where);
	return mount_remember(g, full) < 0 ? err_nomem(e) : 0;
}

/* Mounts what fstab says belongs at `where`; nothing said is fine. */
static int mount_point(struct guest *g, const char *fstab, size_t len, const char *where, struct err *e)
{
	struct guest_span rest = {fstab, len}, line, spec, file;
	char text[512];

	while (guest_next_line(&rest, &line)) {
		if (!guest_next_word(&line, &spec) || *spec.s == '#' || !guest_next_word(&line, &file))
			continue;
		if (guest_span_is(file, where) && guest_span_copy(spec, true, text, sizeof(text)))
			return mount_entry(g, where, text, e);
	}
	return 0;
}

static int mount_others(struct guest *g, struct err *e)
{
	_cleanup_free_ char *text = NULL;
	size_t len;

	if (guest_read(g, "/etc/fstab", &text, &len, NULL) < 0)
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(mount_points); i++) {
		int r = mount_point(g, text, len, mount_points[i], e);

		/* Without /boot and /usr nothing can be judged; an EFI partition that is gone must not stop us. */
		if (r < 0 && i < 2)
			return r;
	}
	return 0;
}

int guest_mount(const struct guest_volumes *v, const char *at, struct guest **ret, struct err *e)
{
	struct guest *g = NULL;
	int r = mount_find_root(v, at, &g, e);

	if (r < 0)
		return r;
	r = mount_others(g, e);
	if (r < 0) {
		guest_close(g);
		return r;
	}
	*ret = g;
	return 0;
}
