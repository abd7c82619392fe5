/* A download is there whole or not at all: into a temporary beside it, checked, synced, renamed. Zeros become holes. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/id.h"
#include "base/io.h"
#include "base/util.h"
#include "cli/cli_int.h"

struct download {
	int fd;
	uint64_t at, size;
	int error;        /* of writing, -errno */
	const char *what; /* NULL: no progress */
	double drawn, started;
	uint64_t from; /* where this attempt began */
};

static void download_draw(struct download *d, bool last)
{
	_cleanup_(str_release) struct str b = {0};
	double now = id_now_mono();

	if (!d->what || !isatty(STDERR_FILENO) || (!last && now - d->drawn < 0.25))
		return;
	d->drawn = now;
	out_size(&b, (double)d->at);
	if (d->size != UINT64_MAX && d->size > 0) {
		str_add(&b, " of ");
		out_size(&b, (double)d->size);
		str_addf(&b, "  %u %%", (unsigned)(d->at / (double)d->size * 100));
	}
	if (now - d->started > 1) {
		str_add(&b, "  ");
		out_size(&b, (double)(d->at - d->from) / (now - d->started));
		str_add(&b, "/s");
	}
	fprintf(stderr, "\r%s: %s\033[K%s", d->what, b.s ? b.s : "", last ? "\n" : "");
}

static bool download_is_zero(const char *p, size_t n)
{
	return n == 0 || (p[0] == 0 && memcmp(p, p + 1, n - 1) == 0);
}

static size_t download_write(char *p, size_t size, size_t n, void *arg)
{
	struct download *d = arg;

	if (d->size != UINT64_MAX && d->at + n > d->size) {
		d->error = -EMSGSIZE;
		return 0;
	}
	if (!(n >= 4096 && download_is_zero(p, n))) {
		d->error = io_pwrite_full(d->fd, p, n, d->at);
		if (d->error < 0)
			return 0;
	}
	d->at += n;
	download_draw(d, false);
	return n;
}

static int download_failed(const struct download *d, const char *file, int r, struct err *e)
{
	if (d->error == -EMSGSIZE)
		return err_set(e, -EPROTO, "more than the %llu bytes that were announced arrived",
			       (unsigned long long)d->size);
	if (d->error < 0)
		return err_set(e, d->error, "cannot write '%s': %s", file, strerror(-d->error));
	return r;
}

/* Goes on after a lost connection from the byte it had. */
static int download_get(struct cli *c, const char *path, const char *file, struct download *d, struct err *e)
{
	struct cli_patience patience = {0};
	int r;

	for (;;) {
		d->started = id_now_mono();
		d->from = d->at;
		r = cli_http_stream(c, path, d->at, download_write, d, e);
		if (r == 0 && d->size != UINT64_MAX && d->at < d->size)
			r = err_set(e, -EAGAIN, "the download ended after %llu of %llu bytes",
				    (unsigned long long)d->at, (unsigned long long)d->size);
		if (d->at > d->from)
			cli_patience_ok(&patience);
		if (r != -EAGAIN || d->size == UINT64_MAX || cli_patience_wait(c, &patience, e) < 0)
			break;
	}
	return r < 0 ? download_failed(d, file, r, e) : 0;
}

static int download_check_target(const char *file, const char *dir, uint64_t size, struct err *e)
{
	struct statvfs fs;
	struct stat st;

	if (lstat(file, &st) == 0 && !S_ISREG(st.st_mode))
		return err_set(e, -EEXIST, "'%s' is there and is no regular file (choose another name)", file);
	if (size != UINT64_MAX && statvfs(dir, &fs) == 0 && (double)fs.f_bavail * (double)fs.f_frsize < (double)size) {
		_cleanup_(str_release) struct str need = {0}, have = {0};

		out_size(&need, (double)size);
		out_size(&have, (double)fs.f_bavail * (double)fs.f_frsize);
		return err_set(e, -ENOSPC, "'%s' needs %s, but '%s' has only %s free", file, need.s ? need.s : "", dir,
			       have.s ? have.s : "");
	}
	return 0;
}

/* Who gives up is not left with a part of a disk. */
static char download_part[PATH_MAX];

static void download_interrupted(int sig)
{
	unlink(download_part);
	signal(sig, SIG_DFL);
	raise(sig);
}

static void download_watch(const char *tmp)
{
	static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
	struct sigaction sa = {.sa_handler = tmp ? download_interrupted : SIG_DFL}, old;

	if (tmp)
		snprintf(download_part, sizeof(download_part), "%s", tmp);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++)
		if (sigaction(signals[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN) /* nohup */
			sigaction(signals[i], &sa, NULL);
}

/* A disk has its server's secrets: it is for nobody else. */
static int download_into(struct cli *c, const char *path, const char *file, const char *tmp, struct download *d,
			 struct err *e)
{
	_cleanup_close_ int fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	int r;

	if (fd < 0)
		return err_sys(e, "cannot create '%s'", tmp);
	d->fd = fd;
	download_watch(tmp);
	r = download_get(c, path, file, d, e);
	if (r < 0)
		return r;
	if (ftruncate(fd, (off_t)d->at) < 0 || fsync(fd) < 0)
		return err_sys(e, "cannot write '%s'", file);
	if (rename(tmp, file) < 0)
		return err_sys(e, "cannot give the download its name '%s'", file);
	return 0;
}

int cli_download(struct cli *c, const char *path, const char *file, uint64_t size, const char *what, struct err *e)
{
	_cleanup_free_ char *copy = strdup(file), *tmp = str_printf("%s.part-%d", file, (int)getpid());
	struct download d = {.size = size, .what = what};
	int r;

	if (!copy || !tmp)
		return err_nomem(e);
	r = download_check_target(file, dirname(copy), size, e);
	if (r < 0)
		return r;
	if (strlen(tmp) >= sizeof(download_part))
		return err_set(e, -ENAMETOOLONG, "'%s' is too long a name", file);
	r = download_into(c, path, file, tmp, &d, e);
	if (r < 0)
		unlink(tmp);
	download_watch(NULL);
	if (r < 0) {
		return r;
	}
	download_draw(&d, true);
	return 0;
}
