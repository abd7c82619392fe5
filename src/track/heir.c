/* Freezers as /proc shows them: is one, though killed, still in its call? */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "track/track_int.h"

#define HEIR_FREEZER "(replant-freezer) "

/* After fork() only what is async-signal-safe. */
bool heir_alive(int proc)
{
	int fd = proc < 0 ? -1 : openat(proc, "stat", O_RDONLY | O_CLOEXEC), saved;
	char buf[128];
	const char *p;
	ssize_t got;

	if (fd < 0)
		return proc >= 0 && errno != ENOENT && errno != ESRCH;
	got = read(fd, buf, sizeof(buf) - 1);
	saved = errno;
	close(fd);
	if (got <= 0)
		return got == 0 || saved != ESRCH;
	buf[got] = '\0';
	/* A zombie has left its call. */
	p = strstr(buf, HEIR_FREEZER);
	return p && !memchr("ZXx", p[strlen(HEIR_FREEZER)], 3);
}

bool heir_in_kernel(pid_t pid)
{
	_cleanup_free_ char *text = NULL;
	const char *p;
	char path[32];

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	if (io_read_file(path, 4096, &text, NULL, NULL) < 0)
		return false;
	p = strrchr(text, ')');
	return p && str_starts(p, ") D");
}

int heir_open(pid_t pid, int *ret, struct err *e)
{
	char path[32];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d", (int)pid);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 && errno != ENOENT && errno != ESRCH)
		return err_sys(e, "cannot open '%s'", path);
	*ret = fd;
	return 0;
}

/* Has that process something of the filesystem open? */
static bool heir_has_open(int proc, dev_t filesystem)
{
	int fd = openat(proc, "fd", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd < 0 ? NULL : fdopendir(fd);
	bool found = false;
	struct stat st;

	if (!d) {
		found = errno != ENOENT && errno != ESRCH; /* it has ended; else who knows */
		if (fd >= 0)
			close(fd);
		return found;
	}
	for (struct dirent *de; !found && (de = readdir(d));)
		found = de->d_name[0] != '.' && fstatat(dirfd(d), de->d_name, &st, 0) == 0 && st.st_dev == filesystem;
	closedir(d);
	return found;
}

int heir_find(int mount, int *ret, size_t max, struct err *e)
{
	size_t n = 0;
	struct stat st;
	DIR *d;

	if (fstat(mount, &st) < 0)
		return err_sys(e, "cannot look at a mount point");
	d = opendir("/proc");
	if (!d)
		return err_sys(e, "cannot open '/proc'");
	for (struct dirent *de; n < max && (de = readdir(d));) {
		pid_t pid = (pid_t)atoi(de->d_name);
		int proc;

		if (pid <= 0 || heir_open(pid, &proc, NULL) < 0)
			continue;
		if (heir_alive(proc) && heir_has_open(proc, st.st_dev)) {
			kill(pid, SIGCONT); /* one that was stopped thaws by itself now */
			ret[n++] = proc;
		} else if (proc >= 0) {
			close(proc);
		}
	}
	closedir(d);
	return (int)n;
}
