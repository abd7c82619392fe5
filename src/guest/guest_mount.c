/* Mounts the system with its own filesystems, and writes them back. Mounting replays journals; nothing is
 * repaired. */
#include "guest/guest_int.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/util.h"

/* In which the conversion looks or writes, parents first. */
static const char *const mount_points[] = {"/usr",     "/boot",      "/boot/efi", "/var",
					   "/var/lib", "/usr/local", "/opt",      "/efi"};

static const char *mount_type(const struct guest_volume *v)
{
	/* One driver for the three, which also replays a journal where there is one. */
	return str_starts(v->fstype, "ext") ? "ext4" : v->fstype;
}

static void mounted_release(struct guest_mounted *m)
{
	if (m->dir >= 0)
		close(m->dir);
	if (m->device >= 0)
		close(m->device);
	free(m->at);
}

/* `at` must be a path without links. */
static unsigned long mount_flags(bool look)
{
	return MS_NOATIME | MS_NODEV | (look ? MS_RDONLY : 0);
}

static int mount_remember(struct guest *g, const char *at, const char *device, struct err *e)
{
	struct guest_mounted m = {.dir = -1, .device = -1};
	int r = 0;

	if (g->nmounted == ARRAY_SIZE(g->mounted))
		return err_set(e, -ENOSPC, "more than %zu filesystems", ARRAY_SIZE(g->mounted));
	m.at = strdup(at);
	if (!m.at)
		return err_nomem(e);
	m.device = open(device, O_RDONLY | O_CLOEXEC);
	m.dir = m.device < 0 ? -1 : open(at, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (m.dir < 0) {
		r = err_sys(e, "cannot open '%s'", m.device < 0 ? device : at);
		mounted_release(&m);
		return r;
	}
	g->mounted[g->nmounted++] = m;
	return 0;
}

/* Each filesystem is written back before it is unmounted, because only that says what failed. */
static int mount_undo(struct guest_mounted *m, struct err *e)
{
	int r = 0;

	if (syncfs(m->dir) < 0)
		r = err_sys(e, "cannot write '%s' of the copy back", m->at);
	close(take_fd(&m->dir));
	if (umount2(m->at, UMOUNT_NOFOLLOW) < 0)
		r = r ?: err_sys(e, "cannot unmount '%s'", m->at);
	if (fsync(m->device) < 0)
		r = r ?: err_sys(e, "cannot write '%s' of the copy back", m->at);
	mounted_release(m);
	return r;
}

int guest_unmount(struct guest *g, struct err *e)
{
	int r = 0;

	while (g->nmounted) {
		struct err this = {0};
		int rc = mount_undo(&g->mounted[--g->nmounted], &this);

		if (rc < 0 && r == 0)
			r = err_set(e, rc, "%s", this.msg);
	}
	return r;
}

int guest_mount_root(const struct guest_volumes *set, const struct guest_volume *v, const char *at, const char *options,
		     bool look, struct guest **ret, struct err *e)
{
	struct guest_settings s = {.root = at, .volumes = set, .root_volume = v, .can_run = !look};
	struct guest *g = NULL;
	int r;

	if (mount(v->device, at, mount_type(v), mount_flags(look), options) < 0)
		return err_sys(e, "cannot mount '%s' (%s)", v->device, v->fstype);
	r = guest_open(&s, &g, e);
	if (r == 0 && !guest_exists(g, "/etc/fstab") && !guest_exists(g, "/sbin/init"))
		r = err_set(e, -ENOENT, "'%s' holds no complete system", v->device);
	if (r == 0)
		r = mount_remember(g, at, v->device, e);
	if (r < 0) {
		guest_close(g, NULL);
		umount2(at, UMOUNT_NOFOLLOW);
		return r;
	}
	g->looking = look;
	*ret = g;
	return 0;
}

static int mount_entry(struct guest *g, const char *where, const char *spec, struct guest_span options, struct err *e)
{
	_cleanup_close_ int at = guest_openat(g, where, O_PATH | O_DIRECTORY, 0);
	const struct guest_volume *v = NULL;
	char fd_path[64], full[PATH_MAX], data[512];
	bool btrfs;
	int r;

	guest_device_find(g, spec, &v);
	if (at < 0 || !v || !v->fstype[0])
		return err_set(e, -ENODEV, "'%s' of '/etc/fstab' is on '%s', which is not among the copied disks",
			       where, spec);
	btrfs = strcmp(v->fstype, "btrfs") == 0;
	if (btrfs && !guest_subvolume(options, data, sizeof(data)))
		return err_set(e, -EINVAL, "the options of '%s' in '/etc/fstab' are too long", where);
	if (guest_fd_path(at, full, sizeof(full)) < 0)
		return err_sys(e, "cannot find '%s' in the copy", where);
	snprintf(fd_path, sizeof(fd_path), "/proc/self/fd/%d", at);
	if (mount(v->device, fd_path, mount_type(v), mount_flags(g->looking), btrfs && *data ? data : NULL) < 0)
		return err_sys(e, "cannot mount '%s' (%s) at '%s'", v->device, v->fstype, where);
	r = mount_remember(g, full, v->device, e);
	if (r < 0)
		umount2(full, UMOUNT_NOFOLLOW);
	else if (strcmp(where, "/boot") == 0)
		g->boot_volume = v;
	return r;
}

/* "/boot/" is "/boot". */
static bool mount_is_at(struct guest_span file, const char *where)
{
	char path[PATH_MAX];
	size_t n;

	if (!guest_span_copy(file, true, path, sizeof(path)))
		return false;
	for (n = strlen(path); n > 1 && path[n - 1] == '/';)
		path[--n] = '\0';
	return strcmp(path, where) == 0;
}

int guest_mount_below(struct guest *g, const char *where, struct err *e)
{
	_cleanup_free_ char *fstab = NULL;
	struct guest_span rest, line, spec, file, type, options;
	char text[512];
	size_t len;

	if (guest_read(g, "/etc/fstab", &fstab, &len, NULL) < 0)
		return 0;
	rest = (struct guest_span){fstab, len};
	while (guest_next_line(&rest, &line)) {
		if (!guest_next_word(&line, &spec) || *spec.s == '#' || !guest_next_word(&line, &file))
			continue;
		if (!guest_next_word(&line, &type) || !guest_next_word(&line, &options))
			options = (struct guest_span){"", 0};
		if (mount_is_at(file, where) && guest_span_copy(spec, true, text, sizeof(text)))
			return mount_entry(g, where, text, options, e);
	}
	return 0;
}

int guest_mount_rest(struct guest *g, struct err *e)
{
	for (size_t i = 0; i < ARRAY_SIZE(mount_points); i++) {
		int r = guest_mount_below(g, mount_points[i], e);

		/* Without /boot and /usr nothing can be judged; an EFI partition that is gone must not stop us. */
		if (r < 0 && i < 2)
			return r;
	}
	return 0;
}

int guest_mount(const struct guest_volumes *v, const struct guest_root *root, const char *at, struct guest **ret,
		struct err *e)
{
	struct guest *g = NULL;
	int r = guest_find_root(v, root, at, &g, e);

	if (r == 0)
		r = guest_mount_rest(g, e);
	if (r < 0) {
		guest_close(g, NULL);
		return r;
	}
	*ret = g;
	return 0;
}
