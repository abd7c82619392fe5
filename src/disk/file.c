/* Regular files and block devices, with or without the page cache. */
#include "disk/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/util.h"

#define BOUNCE_MAX (1u << 20)
#define FILE_ALIGN 4096u /* what direct I/O on any filesystem of ours is content with */

struct file {
	struct disk disk;
	int fd;     /* direct when `align` is not 0 */
	int cached; /* for writes that direct I/O can't do; -1 without DISK_WRITE or direct I/O */
	uint32_t align;
};

static int fail(int code, const char *what, size_t len, uint64_t off, struct err *e)
{
	return err_set(e, code, "cannot %s %zu bytes at offset %" PRIu64 ": %s", what, len, off, strerror(-code));
}

/*
 * The block layer has many words for a bad spot (ENODATA, EILSEQ, EREMOTEIO, ENOLINK, ETIMEDOUT ...), some of which
 * mean a broken connection elsewhere. Here they all are -EIO; the message keeps the word.
 */
static int read_failed(int code, size_t len, uint64_t off, struct err *e)
{
	fail(-code, "read", len, off, e);
	if (code == ENOMEM)
		return -ENOMEM;
	if (e)
		e->code = -EIO;
	return -EIO;
}

/* Reads exactly len bytes; the last `spare` of them may lie behind the end of the file. */
static int pread_all(int fd, uint8_t *p, size_t len, size_t spare, uint64_t off, struct err *e)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = pread(fd, p + done, len - done, (off_t)(off + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return read_failed(errno, len - done, off + done, e);
		done += (size_t)n;
		if (done >= len - spare)
			return 0;
		if (n == 0)
			return err_set(e, -EIO, "ends at offset %" PRIu64 ": it became smaller while in use",
				       off + done);
	}
	return 0;
}

static int pwrite_all(int fd, const uint8_t *p, size_t len, uint64_t off, struct err *e)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = pwrite(fd, p + done, len - done, (off_t)(off + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return fail(n < 0 ? -errno : -EIO, "write", len - done, off + done, e);
		done += (size_t)n;
	}
	return 0;
}

static bool is_aligned(const struct file *f, const void *p, size_t len, uint64_t off)
{
	return !((uintptr_t)p % f->align) && !(len % f->align) && !(off % f->align);
}

/* Through an aligned buffer, a piece at a time. */
static int read_bounced(struct file *f, uint8_t *p, size_t len, uint64_t off, struct err *e)
{
	size_t cap = MIN((size_t)BOUNCE_MAX, len + 2 * (size_t)f->align);
	_cleanup_free_ uint8_t *buf = NULL;

	cap += (f->align - cap % f->align) % f->align;
	if (posix_memalign((void **)&buf, MAX(f->align, FILE_ALIGN), cap))
		return err_nomem(e);
	while (len) {
		size_t head = off % f->align, want = MIN(len, cap - head), tail, all;
		int r;

		tail = (f->align - (head + want) % f->align) % f->align;
		all = head + want + tail;
		r = pread_all(f->fd, buf, all, tail, off - head, e);
		if (r < 0)
			return r;
		memcpy(p, buf + head, want);
		p += want;
		off += want;
		len -= want;
	}
	return 0;
}

static int file_read(struct disk *d, void *p, size_t len, uint64_t off, struct err *e)
{
	struct file *f = (struct file *)d;

	if (!f->align || is_aligned(f, p, len, off))
		return pread_all(f->fd, p, len, 0, off, e);
	return read_bounced(f, p, len, off, e);
}

static int file_write(struct disk *d, const void *p, size_t len, uint64_t off, struct err *e)
{
	struct file *f = (struct file *)d;
	bool direct = !f->align || is_aligned(f, p, len, off);

	return pwrite_all(direct ? f->fd : f->cached, p, len, off, e);
}

static int file_flush(struct disk *d, struct err *e)
{
	struct file *f = (struct file *)d;

	/* The cached descriptor is of the same inode: its dirty pages are flushed too. */
	if (fdatasync(f->fd) < 0)
		return err_sys(e, "cannot flush");
	return 0;
}

static void file_close(struct disk *d)
{
	struct file *f = (struct file *)d;

	util_closep(&f->fd);
	util_closep(&f->cached);
	free(f);
}

static int measure_device(struct file *f, struct err *e)
{
	uint64_t size;
	int sector;

	if (ioctl(f->fd, BLKGETSIZE64, &size) < 0 || ioctl(f->fd, BLKSSZGET, &sector) < 0)
		return err_sys(e, "cannot tell the size of '%s'", f->disk.name);
	if (sector < 512 || sector > 65536 || (sector & (sector - 1)))
		return err_set(e, -ENOTSUP, "'%s' has sectors of %d bytes, which is not supported", f->disk.name,
			       sector);
	f->disk.size = size;
	f->disk.sector = (uint32_t)sector;
	return 0;
}

static int measure(struct file *f, struct err *e)
{
	struct stat st;

	if (fstat(f->fd, &st) < 0)
		return err_sys(e, "cannot look at '%s'", f->disk.name);
	if (S_ISBLK(st.st_mode))
		return measure_device(f, e);
	if (!S_ISREG(st.st_mode))
		return err_set(e, -ENOTBLK, "'%s' is neither a block device nor a regular file", f->disk.name);
	f->disk.size = (uint64_t)st.st_size;
	f->disk.sector = 512;
	return 0;
}

static int file_measure(struct disk *d, uint64_t *ret_size, struct err *e)
{
	struct file now = *(struct file *)d;
	int r = measure(&now, e);

	if (r == 0)
		*ret_size = now.disk.size;
	return r;
}

static const struct disk_ops file_ops_ro = {
    .read = file_read, .flush = NULL, .measure = file_measure, .close = file_close};
static const struct disk_ops file_ops_rw = {
    .read = file_read, .write = file_write, .flush = file_flush, .measure = file_measure, .close = file_close};

static int open_fds(struct file *f, const char *path, unsigned flags, struct err *e)
{
	int mode = (flags & DISK_WRITE ? O_RDWR : O_RDONLY) | O_CLOEXEC;

	if (flags & DISK_DIRECT) {
		f->fd = open(path, mode | O_DIRECT);
		if (f->fd >= 0)
			f->align = FILE_ALIGN;
		else if (errno != EINVAL)
			return err_sys(e, "cannot open '%s'", path);
	}
	if (f->fd < 0) /* not asked for, or the filesystem has no direct I/O */
		f->fd = open(path, mode);
	else if (flags & DISK_WRITE)
		f->cached = open(path, mode);
	if (f->fd < 0 || (f->align && flags & DISK_WRITE && f->cached < 0))
		return err_sys(e, "cannot open '%s'", path);
	return 0;
}

int disk_open(const char *path, unsigned flags, struct disk **ret, struct err *e)
{
	struct file *f;
	int r;

	if (strlen(path) >= sizeof(f->disk.name))
		return err_set(e, -ENAMETOOLONG, "the path '%.60s...' is too long for a disk", path);
	f = calloc(1, sizeof(*f));
	if (!f)
		return err_nomem(e);
	f->fd = f->cached = -1;
	snprintf(f->disk.name, sizeof(f->disk.name), "%s", path);
	r = open_fds(f, path, flags, e);
	if (r >= 0)
		r = measure(f, e);
	if (r < 0) {
		file_close(&f->disk);
		return r;
	}
	f->align = f->align ? MAX(f->align, f->disk.sector) : 0;
	f->disk.ops = flags & DISK_WRITE ? &file_ops_rw : &file_ops_ro;
	*ret = &f->disk;
	return 0;
}
