#include "base/io.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/id.h"
#include "base/str.h"
#include "base/util.h"

ssize_t io_read_full(int fd, void *p, size_t n)
{
	size_t done = 0;

	while (done < n) {
		ssize_t got = read(fd, (char *)p + done, n - done);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			break;
		done += (size_t)got;
	}
	return (ssize_t)done;
}

ssize_t io_pread_full(int fd, void *p, size_t n, uint64_t off)
{
	size_t done = 0;

	while (done < n) {
		ssize_t got = pread(fd, (char *)p + done, n - done, (off_t)(off + done));

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			break;
		done += (size_t)got;
	}
	return (ssize_t)done;
}

int io_write_full(int fd, const void *p, size_t n)
{
	while (n) {
		ssize_t put = write(fd, p, n);

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return -errno;
		p = (const char *)p + put;
		n -= (size_t)put;
	}
	return 0;
}

int io_pwrite_full(int fd, const void *p, size_t n, uint64_t off)
{
	while (n) {
		ssize_t put = pwrite(fd, p, n, (off_t)off);

		if (put < 0 && errno == EINTR)
			continue;
		if (put < 0)
			return -errno;
		p = (const char *)p + put;
		off += (uint64_t)put;
		n -= (size_t)put;
	}
	return 0;
}

int io_read_file_at(int dirfd, const char *path, size_t max, char **ret, size_t *ret_len, struct err *e)
{
	_cleanup_close_ int fd = openat(dirfd, path, O_RDONLY | O_CLOEXEC);
	_cleanup_(str_release) struct str s = {0};
	char buf[16384];

	if (fd < 0)
		return err_sys(e, "cannot open '%s'", path);
	for (;;) {
		ssize_t n = io_read_full(fd, buf, sizeof(buf));

		if (n < 0) {
			errno = (int)-n;
			return err_sys(e, "cannot read '%s'", path);
		}
		if (n == 0)
			break;
		if (s.len + (size_t)n > max)
			return err_set(e, -EFBIG, "'%s' is larger than the %zu bytes allowed for it", path, max);
		str_add_mem(&s, buf, (size_t)n);
	}
	if (ret_len)
		*ret_len = s.len;
	*ret = str_take(&s);
	return *ret ? 0 : err_nomem(e);
}

int io_read_file(const char *path, size_t max, char **ret, size_t *ret_len, struct err *e)
{
	return io_read_file_at(AT_FDCWD, path, max, ret, ret_len, e);
}

static int io_sync_dir_of(const char *path, struct err *e)
{
	char copy[PATH_MAX];
	_cleanup_close_ int fd = -1;

	snprintf(copy, sizeof(copy), "%s", path);
	fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 || fsync(fd) < 0)
		return err_sys(e, "cannot sync the directory of '%s'", path);
	return 0;
}

int io_write_file_atomic(const char *path, const void *p, size_t n, mode_t mode, struct err *e)
{
	char tmp[PATH_MAX], suffix[ID_MAX];
	_cleanup_close_ int fd = -1;
	int r;

	id_new("tmp", suffix);
	if ((size_t)snprintf(tmp, sizeof(tmp), "%s.%s", path, suffix) >= sizeof(tmp))
		return err_set(e, -ENAMETOOLONG, "path '%s' is too long", path);
	fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
	if (fd < 0)
		return err_sys(e, "cannot create '%s'", tmp);
	r = io_write_full(fd, p, n);
	if (r == 0 && fsync(fd) < 0)
		r = -errno;
	if (r == 0 && rename(tmp, path) < 0)
		r = -errno;
	if (r < 0) {
		unlink(tmp);
		errno = -r;
		return err_sys(e, "cannot write '%s'", path);
	}
	return io_sync_dir_of(path, e);
}

int io_mkdirs(const char *path, mode_t mode, struct err *e)
{
	char copy[PATH_MAX];

	if ((size_t)snprintf(copy, sizeof(copy), "%s", path) >= sizeof(copy))
		return err_set(e, -ENAMETOOLONG, "path '%s' is too long", path);
	for (char *p = copy + 1; *p; p++) {
		if (*p != '/')
			continue;
		*p = '\0';
		if (mkdir(copy, mode) < 0 && errno != EEXIST)
			return err_sys(e, "cannot make directory '%s'", copy);
		*p = '/';
	}
	if (mkdir(copy, mode) < 0 && errno != EEXIST)
		return err_sys(e, "cannot make directory '%s'", copy);
	return 0;
}

int io_look_tree(const char *path, uint64_t *ret_bytes, double *ret_since, struct err *e)
{
	char *const paths[] = {(char *)(uintptr_t)path, NULL};
	FTS *f = fts_open(paths, FTS_PHYSICAL | FTS_NOCHDIR | FTS_XDEV, NULL);
	double since = 0;
	uint64_t sum = 0;
	FTSENT *one;

	if (!f)
		return err_sys(e, "cannot read '%s'", path);
	while ((errno = 0, one = fts_read(f))) {
		const struct stat *st = one->fts_statp;

		/* Directories come twice; what is gone by now says nothing. */
		if (one->fts_info == FTS_DP || one->fts_info == FTS_NS || one->fts_info == FTS_ERR)
			continue;
		sum += (uint64_t)st->st_blocks * 512;
		since = MAX(since, MAX((double)st->st_mtim.tv_sec, (double)st->st_ctim.tv_sec));
	}
	fts_close(f);
	*ret_bytes = sum;
	*ret_since = since;
	return 0;
}

#define REMOVE_DEPTH 32u

static int io_remove_at(int dir, const char *name, dev_t dev, unsigned depth)
{
	struct dirent *d;
	struct stat st;
	int fd, r = 0;
	DIR *list;

	if (unlinkat(dir, name, 0) == 0 || errno == ENOENT)
		return 0;
	if (errno != EISDIR && errno != EPERM)
		return -errno;
	fd = depth ? openat(dir, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
	if (fd < 0)
		return !depth ? -ELOOP : errno == ENOENT ? 0 : -errno; /* somebody else removes it, too */
	list = fstat(fd, &st) == 0 && (dev == 0 || st.st_dev == dev) ? fdopendir(fd) : NULL;
	if (!list) {
		close(fd);
		return -EBUSY;
	}
	while (r == 0 && (d = readdir(list)))
		if (strcmp(d->d_name, ".") != 0 && strcmp(d->d_name, "..") != 0)
			r = io_remove_at(fd, d->d_name, st.st_dev, depth - 1);
	closedir(list);
	if (r == 0 && unlinkat(dir, name, AT_REMOVEDIR) < 0 && errno != ENOENT)
		r = -errno;
	return r;
}

/* By descriptors: whoever may write in there while it goes can't lead it elsewhere. */
int io_remove_tree(const char *path, struct err *e)
{
	int r = io_remove_at(AT_FDCWD, path, 0, REMOVE_DEPTH);

	errno = -r;
	return r < 0 ? err_sys(e, "cannot remove '%s'", path) : 0;
}
