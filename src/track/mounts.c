/* Which mounted filesystems lie on which disks: mountinfo on one side, /sys/dev/block on the other. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/btrfs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/err.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "track/track_int.h"

#define MOUNTS_DEPTH 12 /* LVM on md on partitions is 3 */

/* Reads "8:1" from <dir>/<name>/<file>. */
static int mounts_read_dev(const char *dir, const char *name, const char *file, dev_t *ret)
{
	_cleanup_free_ char *path = str_printf("%s/%s/%s", dir, name, file), *text = NULL;
	unsigned major, minor;

	if (!path || io_read_file(path, 64, &text, NULL, NULL) < 0 || sscanf(text, "%u:%u", &major, &minor) != 2)
		return -EINVAL;
	*ret = makedev(major, minor);
	return 0;
}

static bool mounts_on(const char *sys, dev_t dev, const dev_t *disks, size_t n, int depth);

static bool mounts_slaves_on(const char *sys, const char *dir, const dev_t *disks, size_t n, int depth)
{
	char slaves[300];
	bool found = false;
	dev_t dev;
	DIR *d;

	snprintf(slaves, sizeof(slaves), "%s/slaves", dir);
	d = opendir(slaves);
	if (!d)
		return false;
	for (struct dirent *de; !found && (de = readdir(d));) {
		if (de->d_name[0] == '.')
			continue;
		found =
		    mounts_read_dev(slaves, de->d_name, "dev", &dev) == 0 && mounts_on(sys, dev, disks, n, depth + 1);
	}
	closedir(d);
	return found;
}

static bool mounts_on(const char *sys, dev_t dev, const dev_t *disks, size_t n, int depth)
{
	char dir[256], path[300];
	dev_t parent;

	for (size_t i = 0; i < n; i++)
		if (disks[i] == dev)
			return true;
	if (depth >= MOUNTS_DEPTH)
		return false;
	snprintf(dir, sizeof(dir), "%s/dev/block/%u:%u", sys, major(dev), minor(dev));
	snprintf(path, sizeof(path), "%s/partition", dir);
	if (access(path, F_OK) == 0 && mounts_read_dev(dir, "..", "dev", &parent) == 0 &&
	    mounts_on(sys, parent, disks, n, depth + 1))
		return true;
	return mounts_slaves_on(sys, dir, disks, n, depth);
}

bool mounts_dev_on(const char *sys, dev_t dev, const dev_t *disks, size_t n)
{
	return mounts_on(sys, dev, disks, n, 0);
}

/* Does the path lead to this very mount, or has another one been mounted over it? */
static bool mounts_reachable(const struct track_mount *m)
{
	_cleanup_close_ int fd = open(m->point, O_PATH | O_CLOEXEC);
	_cleanup_free_ char *text = NULL;
	char path[64];
	const char *id;

	if (fd < 0)
		return false;
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	if (io_read_file(path, 4096, &text, NULL, NULL) < 0 || !(id = strstr(text, "mnt_id:")))
		return false;
	return strtoul(id + strlen("mnt_id:"), NULL, 10) == m->id;
}

static bool mounts_source_dev(const char *source, dev_t *ret)
{
	struct stat st;

	if (source[0] != '/' || stat(source, &st) < 0 || !S_ISBLK(st.st_mode))
		return false;
	*ret = st.st_rdev;
	return true;
}

/* A source that names several devices, as bcachefs does: "/dev/sda:/dev/sdb". */
static bool mounts_sources_on(const char *sources, const dev_t *disks, size_t n)
{
	_cleanup_free_ char *copy = strdup(sources);
	char *rest = copy, *one;
	bool found = false;
	dev_t dev;

	if (!copy)
		return true; /* to freeze too much does no harm */
	while (!found && (one = strsep(&rest, ":")))
		found = mounts_source_dev(one, &dev) && mounts_dev_on("/sys", dev, disks, n);
	return found;
}

/* ---- btrfs: it may span devices, of which mountinfo names one, by the name that one once had ---- */

enum mounts_btrfs {
	BTRFS_OTHER, /* not the one that was asked for */
	BTRFS_AWAY,
	BTRFS_ON /* a device of it lies on the disks */
};

/* `dir` is /sys/fs/btrfs/UUID/devices. *dev: the one that has this device; NULL: any. */
static enum mounts_btrfs mounts_btrfs_dir(const char *dir, const dev_t *dev, const dev_t *disks, size_t n)
{
	bool asked = false, on = false;
	dev_t one;
	DIR *d = opendir(dir);

	if (!d)
		return BTRFS_OTHER;
	for (struct dirent *de; (de = readdir(d));) {
		if (de->d_name[0] == '.')
			continue;
		if (mounts_read_dev(dir, de->d_name, "dev", &one) < 0)
			continue;
		asked = asked || !dev || one == *dev;
		on = on || mounts_dev_on("/sys", one, disks, n);
	}
	closedir(d);
	return !asked ? BTRFS_OTHER : on ? BTRFS_ON : BTRFS_AWAY;
}

static enum mounts_btrfs mounts_btrfs_find(const dev_t *dev, const dev_t *disks, size_t n)
{
	enum mounts_btrfs found = BTRFS_OTHER;
	DIR *d = opendir("/sys/fs/btrfs");
	char path[320];

	if (!d)
		return BTRFS_OTHER;
	for (struct dirent *de; found != BTRFS_ON && (de = readdir(d));) {
		enum mounts_btrfs one;

		if (de->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/fs/btrfs/%s/devices", de->d_name);
		one = mounts_btrfs_dir(path, dev, disks, n);
		found = one != BTRFS_OTHER ? one : found;
	}
	closedir(d);
	return found;
}

/* As the filesystem itself says which one it is. */
static enum mounts_btrfs mounts_btrfs_itself(const struct track_mount *m, const dev_t *disks, size_t n)
{
	_cleanup_close_ int fd = open(m->point, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct btrfs_ioctl_fs_info_args info = {0};
	const uint8_t *u = info.fsid;
	char path[80];

	if (fd < 0 || !mounts_reachable(m) || ioctl(fd, BTRFS_IOC_FS_INFO, &info) < 0)
		return BTRFS_OTHER;
	snprintf(path, sizeof(path),
		 "/sys/fs/btrfs/%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x/devices", u[0],
		 u[1], u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
	return mounts_btrfs_dir(path, NULL, disks, n);
}

/*
 * The name of the source may be one that never was ("/dev/root"), that is gone, or another disk's by now. When nothing
 * tells which one it is, any of them that lies on the disks will do: to freeze too much does no harm.
 */
static bool mounts_btrfs_on(const struct track_mount *m, const dev_t *disks, size_t n)
{
	enum mounts_btrfs found = mounts_btrfs_itself(m, disks, n);
	dev_t dev;

	if (found == BTRFS_OTHER && mounts_source_dev(m->source, &dev))
		found = mounts_btrfs_find(&dev, disks, n);
	if (found == BTRFS_OTHER)
		found = mounts_btrfs_find(NULL, disks, n);
	return found == BTRFS_ON;
}

static bool mounts_is_on(const struct track_mount *m, const dev_t *disks, size_t n)
{
	dev_t dev = m->dev;

	if (strcmp(m->type, "btrfs") == 0)
		return mounts_btrfs_on(m, disks, n);
	/* Others that use an anonymous device number name their device as the source. */
	if (major(dev) == 0 && !mounts_source_dev(m->source, &dev))
		return mounts_sources_on(m->source, disks, n);
	return mounts_dev_on("/sys", dev, disks, n);
}

/* A point by which the filesystem of mount `first` can be reached: itself or a later mount of the same filesystem. */
static const char *mounts_point(const struct track_mount *list, size_t n, size_t first)
{
	for (size_t i = first; i < n; i++)
		if (list[i].dev == list[first].dev && mounts_reachable(&list[i]))
			return list[i].point;
	return NULL;
}

static bool mounts_seen_before(const struct track_mount *list, size_t i)
{
	for (size_t k = 0; k < i; k++)
		if (list[k].dev == list[i].dev)
			return true;
	return false;
}

/* ---- other mount namespaces: containers and services with mounts of their own ---- */
#define MOUNTS_OTHER      "/proc/"
#define MOUNTS_NAMESPACES 4096u

/* Is it one of another namespace, reached through a process there? */
static bool mounts_is_other(const struct track_mount *m)
{
	return str_starts(m->point, MOUNTS_OTHER) && strstr(m->point, "/root/");
}

static bool mounts_has_dev(const struct track_mount *list, size_t n, dev_t dev)
{
	for (size_t i = 0; i < n; i++)
		if (list[i].dev == dev)
			return true;
	return false;
}

/* Appends what only the namespace of process `pid` has, its points as seen from here. Takes `theirs`. */
static int mounts_add_new(struct track_mount **list, size_t *n, struct track_mount *theirs, size_t ntheirs,
			  const char *pid, struct err *e)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < ntheirs; i++) {
		struct track_mount *m = &theirs[i], *more;
		char *point;

		/* No device behind it (overlay, tmpfs ...), or known already. */
		if (!m->writable || (major(m->dev) == 0 && m->source[0] != '/') || mounts_has_dev(*list, *n, m->dev))
			continue;
		point = str_printf(MOUNTS_OTHER "%s/root%s", pid, m->point);
		more = point ? realloc(*list, (*n + 1) * sizeof(*more)) : NULL;
		if (!more) {
			free(point);
			r = err_nomem(e);
			break;
		}
		*list = more;
		free(m->point);
		m->point = point;
		more[(*n)++] = *m;
		*m = (struct track_mount){0};
	}
	track_mountinfo_free(theirs, ntheirs);
	return r;
}

/* What /proc says of a process that is ending just now. */
static bool mounts_is_gone(int error)
{
	return error == -ENOENT || error == -ESRCH || error == -EINVAL;
}

/* The namespace of a process; 0 when it can't be told: the process has ended, or we may not look into it. */
static ino_t mounts_namespace(const char *pid)
{
	char path[64];
	struct stat st;

	snprintf(path, sizeof(path), MOUNTS_OTHER "%.20s/ns/mnt", pid);
	return stat(path, &st) == 0 ? st.st_ino : 0;
}

/* 1; 0: the process has ended. */
static int mounts_add_process(struct track_mount **list, size_t *n, const char *pid, struct err *e)
{
	_cleanup_free_ char *text = NULL;
	struct track_mount *theirs = NULL;
	size_t len, ntheirs = 0;
	char path[64];
	int r;

	snprintf(path, sizeof(path), MOUNTS_OTHER "%.20s/mountinfo", pid);
	r = io_read_file(path, 8u << 20, &text, &len, e);
	if (r < 0)
		return mounts_is_gone(r) ? 0 : r;
	r = track_mountinfo_parse(text, len, &theirs, &ntheirs, e);
	if (r == 0)
		r = mounts_add_new(list, n, theirs, ntheirs, pid, e);
	return r < 0 ? r : 1;
}

/* The mount namespaces that were looked into. */
struct mounts_seen {
	ino_t ns[MOUNTS_NAMESPACES];
	size_t n;
};

static bool mounts_has_seen(const struct mounts_seen *s, ino_t ns)
{
	for (size_t i = 0; i < s->n; i++)
		if (s->ns[i] == ns)
			return true;
	return false;
}

/* What is mounted may be known even where the namespace can't be told. */
static int mounts_look_into(struct mounts_seen *s, struct track_mount **list, size_t *n, const char *pid, struct err *e)
{
	ino_t ns = mounts_namespace(pid);
	int r;

	if (ns && mounts_has_seen(s, ns))
		return 0;
	if (s->n == MOUNTS_NAMESPACES)
		return err_set(e, -E2BIG, "there are more than %u mount namespaces", MOUNTS_NAMESPACES);
	r = mounts_add_process(list, n, pid, e);
	if (r > 0 && ns)
		s->ns[s->n++] = ns; /* not before it was read: another process may have to stand in */
	return MIN(r, 0);
}

/* What is mounted in other namespaces only is written to all the same. */
static int mounts_add_others(struct track_mount **list, size_t *n, struct err *e)
{
	_cleanup_free_ struct mounts_seen *seen = calloc(1, sizeof(*seen));
	DIR *d = seen ? opendir("/proc") : NULL;
	int r = 0;

	if (!d)
		return seen ? err_sys(e, "cannot open '/proc'") : err_nomem(e);
	seen->ns[seen->n++] = mounts_namespace("self");
	for (struct dirent *de; r == 0 && (de = readdir(d));)
		if (de->d_name[0] >= '1' && de->d_name[0] <= '9')
			r = mounts_look_into(seen, list, n, de->d_name, e);
	closedir(d);
	return r;
}

static int mounts_devices(const char *const *devices, size_t n, dev_t **ret, struct err *e)
{
	dev_t *devs = calloc(n + 1, sizeof(*devs));

	if (!devs)
		return err_nomem(e);
	for (size_t i = 0; i < n; i++) {
		struct stat st;

		if (stat(devices[i], &st) < 0 || !S_ISBLK(st.st_mode)) {
			free(devs);
			return err_set(e, -ENOTBLK, "'%s' is not a block device", devices[i]);
		}
		devs[i] = st.st_rdev;
	}
	*ret = devs;
	return 0;
}

/* Mounts come in the order they were made: what lies on top of another filesystem is later, so it is frozen first. */
static int mounts_pick(const struct track_mount *list, size_t n, const dev_t *disks, size_t ndisks, char **out,
		       size_t *ret_n, struct err *e)
{
	for (size_t i = n; i-- > 0;) {
		const char *point;

		if (!list[i].writable || mounts_seen_before(list, i) || !mounts_is_on(&list[i], disks, ndisks))
			continue;
		point = mounts_point(list, n, i);
		if (!point && mounts_is_other(&list[i]) && access(list[i].point, F_OK) < 0 && !mounts_is_gone(-errno))
			return err_set(
			    e, -EPERM,
			    "cannot reach '%s', which must be frozen: %s; the agent needs CAP_SYS_PTRACE and "
			    "no confinement that keeps it from other processes",
			    list[i].point, strerror(errno));
		if (!point && mounts_is_other(&list[i]))
			return err_set(e, -EAGAIN, "the process that had '%s' mounted ended just now", list[i].point);
		if (!point)
			return err_set(e, -ENOENT,
				       "the filesystem mounted at '%s' can't be reached there, another mount hides it; "
				       "unmount the upper one",
				       list[i].point);
		out[*ret_n] = strdup(point);
		if (!out[(*ret_n)++])
			return err_nomem(e);
	}
	return 0;
}

/* A path by which the filesystem that stat(2) calls `dev` can be reached; NULL: no process has it mounted. */
static char *mounts_reach(dev_t dev)
{
	struct track_mount *list = NULL;
	char *found = NULL;
	size_t n = 0;
	int r = track_mountinfo_read(&list, &n, NULL);

	if (r == 0)
		mounts_add_others(&list, &n, NULL); /* what was found by then is worth a try */
	for (size_t i = 0; i < n && !found; i++) {
		struct stat st;

		/* Nothing that a server far away would have to answer for. */
		if (list[i].writable && (major(list[i].dev) != 0 || list[i].source[0] == '/') &&
		    stat(list[i].point, &st) == 0 && st.st_dev == dev)
			found = strdup(list[i].point);
	}
	track_mountinfo_free(list, n);
	return found;
}

/* Does the path still lead there? The process by which it went may be gone, or another one have its number. */
static int mounts_open_same(const char *point, dev_t dev)
{
	_cleanup_close_ int fd = open(point, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	struct stat st;

	return fd >= 0 && fstat(fd, &st) == 0 && st.st_dev == dev ? take_fd(&fd) : -1;
}

int mounts_open(const char *point, dev_t dev, struct err *e)
{
	int fd = mounts_open_same(point, dev);
	_cleanup_free_ char *other = fd < 0 ? mounts_reach(dev) : NULL;

	if (other)
		fd = mounts_open_same(other, dev);
	if (fd < 0)
		return err_set(e, -ENOENT,
			       "what was mounted at '%s' may be frozen still, but no process has it mounted any more "
			       "(mount it again and thaw it with 'fsfreeze -u')",
			       point);
	return fd;
}

int track_mounts(const char *const *devices, size_t n, char ***ret, size_t *ret_n, struct err *e)
{
	_cleanup_free_ dev_t *disks = NULL;
	struct track_mount *list = NULL;
	char **out = NULL;
	size_t nlist = 0, nout = 0;
	int r = mounts_devices(devices, n, &disks, e);

	if (r < 0)
		return r;
	r = track_mountinfo_read(&list, &nlist, e);
	if (r == 0)
		r = mounts_add_others(&list, &nlist, e);
	if (r < 0) {
		track_mountinfo_free(list, nlist);
		return r;
	}
	out = calloc(nlist + 1, sizeof(*out));
	r = out ? mounts_pick(list, nlist, disks, n, out, &nout, e) : err_nomem(e);
	track_mountinfo_free(list, nlist);
	if (r < 0) {
		track_mounts_free(out, nout);
		return r;
	}
	*ret = out;
	*ret_n = nout;
	return 0;
}

int track_mounts_same(const char *const *devices, size_t n, char *const *mounts, size_t nmounts, struct err *e)
{
	char **now = NULL;
	const char *fresh = NULL;
	size_t nnow = 0;
	int r = track_mounts(devices, n, &now, &nnow, e);

	if (r < 0)
		return r;
	for (size_t i = 0; i < nnow && !fresh; i++) {
		bool found = false;

		for (size_t k = 0; k < nmounts && !found; k++)
			found = strcmp(now[i], mounts[k]) == 0;
		fresh = found ? NULL : now[i];
	}
	if (fresh)
		r = err_set(e, -EAGAIN, "'%s' was mounted while the others were frozen", fresh);
	else if (nnow != nmounts)
		r = err_set(e, -EAGAIN, "a filesystem was unmounted while the others were frozen");
	track_mounts_free(now, nnow);
	return r;
}

void track_mounts_free(char **mounts, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(mounts[i]);
	free(mounts);
}
