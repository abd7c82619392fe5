/* A disk as sysfs shows it: whether its writes can be seen whole, and its accounts. */
#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/err.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "track/track_int.h"

#define ATTR_MAX   4096
#define STAT_WRITE 6 /* sectors written, of the words of "stat" (from 0) */
#define STAT_TRIM  13
#define STAT_WORDS 15

static bool attr(int dir, const char *name, char **ret)
{
	if (io_read_file_at(dir, name, ATTR_MAX, ret, NULL, NULL))
		return false;
	(*ret)[strcspn(*ret, "\n")] = '\0';
	return true;
}

static bool attr_is(int dir, const char *name, const char *want)
{
	_cleanup_free_ char *s = NULL;

	return attr(dir, name, &s) && !strcmp(s, want);
}

static uint64_t attr_u64(int dir, const char *name)
{
	_cleanup_free_ char *s = NULL;
	uint64_t v;

	return attr(dir, name, &s) && !str_u64(s, 0, UINT64_MAX, &v) ? v : 0;
}

/* NULL: there is none */
static DIR *open_folder(int dir, const char *name)
{
	int fd = openat(dir, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;

	if (!d && fd >= 0)
		close(fd);
	return d;
}

/* Entries of a folder of sysfs. */
static bool has_entries(int dir, const char *name)
{
	DIR *d = open_folder(dir, name);
	bool found = false;

	if (!d)
		return false;
	for (const struct dirent *de; (de = readdir(d));)
		found = found || de->d_name[0] != '.';
	closedir(d);
	return found;
}

/* Multipath above: the disk's other paths take writes as well, and requests come without a bio of their own. */
static bool has_multipath(int dir)
{
	DIR *d = open_folder(dir, "holders");
	bool found = false;

	if (!d)
		return false;
	for (const struct dirent *de; (de = readdir(d));) {
		_cleanup_free_ char *path = str_printf("holders/%s/dm/uuid", de->d_name), *uuid = NULL;

		if (de->d_name[0] != '.' && path && attr(dir, path, &uuid))
			found = found || str_starts(uuid, "mpath-");
	}
	closedir(d);
	return found;
}

static int refuse(const struct leaf *l, const char *why, struct err *e)
{
	return err_set(e, -EOPNOTSUPP, "writes to '%s' can't be tracked: %s", l->name, why);
}

static int suitable(const struct leaf *l, struct err *e)
{
	_cleanup_free_ char *zoned = NULL;

	if (has_entries(l->dir, "slaves"))
		return refuse(l, "it is a volume on other disks (name those instead)", e);
	if (attr_is(l->dir, "queue/dax", "1"))
		return refuse(l, "it is memory that programs write directly (DAX), past the block layer", e);
	if (faccessat(l->dir, "mq", F_OK, 0))
		return refuse(l,
			      str_starts(l->name, "nvme")
				  ? "NVMe multipath hides its requests"
				  : "it has no request queue (a disk in memory, or a stacked one)",
			      e);
	if (attr(l->dir, "queue/zoned", &zoned) && strcmp(zoned, "none") != 0)
		return refuse(l, "it is a zoned disk", e);
	if (has_multipath(l->dir))
		return refuse(l, "it is one of several paths to a disk (multipath)", e);
	if (!attr_is(l->dir, "queue/iostats", "1"))
		return refuse(l, "its accounting is off (write 1 to its queue/iostats)", e);
	return 0;
}

static int open_sysfs(struct leaf *l, struct err *e)
{
	_cleanup_free_ char *path = str_printf("/sys/dev/block/%u:%u", major(l->dev), minor(l->dev));
	_cleanup_free_ char *real = path ? realpath(path, NULL) : NULL;

	if (!path)
		return err_nomem(e);
	l->dir = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (l->dir < 0 || !real)
		return err_sys(e, "cannot open '%s'", path);
	snprintf(l->name, sizeof(l->name), "%s", strrchr(real, '/') + 1);
	if (!faccessat(l->dir, "partition", F_OK, 0))
		return refuse(l, "it is a partition (name its disk)", e);
	l->stat = openat(l->dir, "stat", O_RDONLY | O_CLOEXEC);
	l->inflight = openat(l->dir, "inflight", O_RDONLY | O_CLOEXEC);
	if (l->stat < 0 || l->inflight < 0)
		return refuse(l, "the kernel shows no accounts of it", e);
	return 0;
}

static bool is_virtio(const struct leaf *l)
{
	char link[256];
	ssize_t n = readlinkat(l->dir, "device/driver", link, sizeof(link) - 1);

	if (n < 0)
		return false;
	link[n] = '\0';
	return str_ends(link, "/virtio_blk");
}

int leaf_open(const char *device, struct leaf *ret, struct err *e)
{
	struct leaf l = {.dir = -1, .stat = -1, .inflight = -1};
	uint64_t account[TALLY_CLASSES];
	struct stat st;
	bool inflight;
	int r;

	if (stat(device, &st))
		return err_sys(e, "cannot look at '%s'", device);
	if (!S_ISBLK(st.st_mode))
		return err_set(e, -ENOTBLK, "'%s' is no block device", device);
	l.dev = st.st_rdev;
	r = open_sysfs(&l, e);
	if (!r)
		r = suitable(&l, e);
	if (!r) {
		l.size = attr_u64(l.dir, "size") * 512;
		l.diskseq = attr_u64(l.dir, "diskseq");
		l.virtio = is_virtio(&l);
		r = l.size ? leaf_read(&l, account, &inflight, e) : refuse(&l, "it has no size", e);
	}
	if (r)
		leaf_close(&l);
	else
		*ret = l;
	return r;
}

void leaf_close(struct leaf *l)
{
	util_closep(&l->dir);
	util_closep(&l->stat);
	util_closep(&l->inflight);
	l->dir = l->stat = l->inflight = -1;
}

int leaf_same(const struct leaf *l, struct err *e)
{
	if (faccessat(l->dir, "stat", F_OK, 0))
		return err_set(e, -ESTALE, "disk '%s' is gone", l->name);
	if (attr_u64(l->dir, "size") * 512 != l->size)
		return err_set(e, -ESTALE, "the size of disk '%s' changed", l->name);
	if (attr_u64(l->dir, "diskseq") != l->diskseq)
		return err_set(e, -ESTALE, "there is another disk behind '%s' now", l->name);
	if (!attr_is(l->dir, "queue/iostats", "1"))
		return err_set(e, -ESTALE, "the accounting of disk '%s' was switched off (queue/iostats)", l->name);
	return 0;
}

static int words(int fd, uint64_t *out, size_t n)
{
	char buf[512];
	ssize_t len = pread(fd, buf, sizeof(buf) - 1, 0);
	char *p = buf, *end;

	if (len <= 0)
		return -EIO;
	buf[len] = '\0';
	for (size_t i = 0; i < n; i++, p = end) {
		out[i] = strtoull(p, &end, 10);
		if (end == p)
			return -EINVAL;
	}
	return 0;
}

int leaf_read(const struct leaf *l, uint64_t ret_account[TALLY_CLASSES], bool *ret_inflight, struct err *e)
{
	uint64_t stat[STAT_WORDS], inflight[2];

	if (words(l->stat, stat, STAT_WORDS) || words(l->inflight, inflight, 2))
		return err_set(e, -EOPNOTSUPP, "cannot read the accounts of disk '%s'", l->name);
	ret_account[TALLY_WRITE] = stat[STAT_WRITE];
	ret_account[TALLY_DISCARD] = stat[STAT_TRIM];
	*ret_inflight = inflight[1] != 0;
	return 0;
}

int leaf_boot_id(char ret[TRACK_EPOCH], struct err *e)
{
	_cleanup_free_ char *s = NULL;
	int r = io_read_file("/proc/sys/kernel/random/boot_id", ATTR_MAX, &s, NULL, e);

	if (r)
		return r;
	if (strlen(s) < TRACK_EPOCH - 1)
		return err_set(e, -EIO, "the kernel's boot id is too short");
	memcpy(ret, s, TRACK_EPOCH - 1);
	ret[TRACK_EPOCH - 1] = '\0';
	return 0;
}

int leaf_cpus(void)
{
	_cleanup_free_ char *s = NULL;
	const char *last;
	uint64_t v;

	if (io_read_file("/sys/devices/system/cpu/possible", ATTR_MAX, &s, NULL, NULL))
		return -EIO;
	s[strcspn(s, "\n")] = '\0';
	last = s + strlen(s);
	while (last > s && last[-1] != '-' && last[-1] != ',')
		last--;
	return str_u64(last, 0, LEAF_CPUS_MAX - 1, &v) ? -EIO : (int)v + 1;
}
