/*
 * Freezing this server's filesystems, with the administrator's hooks around it: executables in hooks.d that are told
 * "pre-freeze", "post-freeze" (all is frozen: only reading is possible) and "post-thaw".
 */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/util.h"
#include "track/track.h"

#define HOOK_SECONDS 30.0 /* for each, less while frozen */
#define HOOKS_MAX    256
#define HOOK_END     10.0 /* for one that was killed, once nothing is frozen */
#define NOTE_MAX     (1u << 20)

/* ---- hooks ---- */
/* As run-parts(8) has it: what package managers and editors leave behind is no hook. */
static int hook_select(const struct dirent *d)
{
	for (const char *p = d->d_name; *p; p++)
		if (!isalnum((unsigned char)*p) && *p != '-' && *p != '_')
			return 0;
	return d->d_name[0] != '\0';
}

/* They run as root: nobody else may have written them. */
static int hook_check(const char *path, bool dir, struct err *e)
{
	struct stat st;

	if (lstat(path, &st) < 0)
		return err_sys(e, "cannot look at '%s'", path);
	if (dir ? !S_ISDIR(st.st_mode) : !S_ISREG(st.st_mode))
		return err_set(e, -EPERM, "'%s' is not a %s; links are not followed", path, dir ? "directory" : "file");
	if (st.st_uid != 0 || st.st_mode & 022)
		return err_set(
		    e, -EPERM,
		    "'%s' may be written by others than root (chown root '%s'; chmod go-w '%s'), so no hook is "
		    "run and nothing is frozen",
		    path, path, path);
	return 0;
}

/* Waits up to that long for its end. */
static bool hook_ended(pid_t pid, double seconds)
{
	double end = id_now_mono() + seconds;

	while (waitpid(pid, NULL, WNOHANG) == 0) {
		if (id_now_mono() > end)
			return false;
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	}
	return true;
}

/* Frozen, it may be writing to what is: then it ends after the thaw only, and is left until then. */
static void hook_kill(pid_t pid, pid_t *left)
{
	if (!left) {
		proc_stop(pid, 0.2);
		return;
	}
	kill(pid, SIGKILL);
	if (!hook_ended(pid, 0.2))
		*left = pid;
}

static int hook_wait(pid_t pid, const char *path, const char *when, double seconds, pid_t *left, struct err *e)
{
	double end = id_now_mono() + seconds;
	int status;

	for (;;) {
		pid_t r = waitpid(pid, &status, WNOHANG);

		if (r == pid)
			break;
		if (r < 0 && errno != EINTR)
			return err_sys(e, "cannot wait for the hook '%s'", path);
		if (id_now_mono() > end) {
			hook_kill(pid, left);
			return err_set(e, -ECHILD, "the hook '%s %s' took longer than %.0f seconds", path, when,
				       seconds);
		}
		nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	}
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	return err_set(e, -ECHILD, "the hook '%s %s' failed with status %d", path, when,
		       WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static int hook_run(const char *path, const char *when, double seconds, pid_t *left, struct err *e)
{
	const char *const argv[] = {path, when, NULL};
	struct proc_opts o = PROC_OPTS_INIT;
	struct stat st;
	pid_t pid;
	int r = hook_check(path, false, e);

	if (r < 0)
		return r;
	if (stat(path, &st) == 0 && !(st.st_mode & 0100))
		return 0; /* switched off */
	o.die_with_us = true;
	r = proc_spawn(argv, &o, &pid, e);
	return r < 0 ? r : hook_wait(pid, path, when, seconds, left, e);
}

/* All in order of their names. `all`: also after one has failed; the first failure is returned. left: all is frozen,
 * this may be a process that could not be ended. */
static int hooks_run(const char *dir, const char *when, double seconds, bool all, pid_t *left, struct err *e)
{
	struct dirent **list = NULL;
	struct err first = {0}, why = {0};
	int n, r = 0;

	if (!dir || access(dir, F_OK) < 0)
		return 0;
	r = hook_check(dir, true, e);
	if (r < 0)
		return r;
	n = scandir(dir, &list, hook_select, alphasort);
	if (n < 0)
		return err_sys(e, "cannot read '%s'", dir);
	for (int i = 0; i < n; i++) {
		_cleanup_free_ char *path = str_printf("%s/%s", dir, list[i]->d_name);
		int k = r < 0 && !all    ? 0
			: i >= HOOKS_MAX ? -E2BIG
			: path           ? hook_run(path, when, seconds, left, &why)
					 : -ENOMEM;

		if (k < 0 && r == 0) {
			r = k;
			first = why;
		}
		free(list[i]);
	}
	free(list);
	return r < 0 ? err_set(e, r, "%s", *first.msg ? first.msg : "a hook could not be run") : 0;
}

/* ---- freezing ---- */
/* Written back now, it need not be while writers wait. */
void freeze_sync(const struct freeze *f)
{
	for (size_t i = 0; i < f->nmounts; i++) {
		_cleanup_close_ int fd = open(f->mounts[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);

		if (fd >= 0)
			syncfs(fd);
	}
}

/* "8:1 /mnt" with a NUL for each. Written before the freeze, on a filesystem that isn't frozen. */
static int freeze_write_note(const struct freeze *f, struct err *e)
{
	_cleanup_(str_release) struct str s = {0};

	if (!f->note)
		return 0;
	for (size_t i = 0; i < f->nmounts; i++) {
		struct stat st;

		if (stat(f->mounts[i], &st) < 0)
			return err_sys(e, "cannot look at '%s'", f->mounts[i]);
		str_addf(&s, "%u:%u %s", major(st.st_dev), minor(st.st_dev), f->mounts[i]);
		str_add_mem(&s, "", 1);
	}
	if (!str_ok(&s))
		return err_nomem(e);
	return io_write_file_atomic(f->note, s.s, s.len, 0600, e);
}

void freeze_recover(const char *note)
{
	_cleanup_free_ char *text = NULL;
	bool certain = true;
	size_t len = 0;

	if (io_read_file(note, NOTE_MAX, &text, &len, NULL) < 0)
		return;
	for (size_t at = 0; at < len; at += strlen(text + at) + 1) {
		struct err e = {0};
		unsigned maj, min;
		int path = 0, r;

		if (sscanf(text + at, "%u:%u %n", &maj, &min, &path) != 2 || !path) {
			log_warn("'%s' has a line that isn't understood: '%.200s'", note, text + at);
			certain = false;
			continue;
		}
		r = track_thaw(text + at + path, makedev(maj, min), &e);
		if (r > 0)
			log_warn("'%s' was frozen still, by an agent that was killed: it is thawed", text + at + path);
		else if (r < 0)
			log_warn("%s", e.msg);
		certain &= r != -EAGAIN;
	}
	if (certain)
		unlink(note);
}

int freeze_prepare(struct freeze *f, bool hooks, struct err *e)
{
	int r;

	freeze_after(f, NULL); /* of one that was prepared and not made */
	f->hooked = hooks;
	r = hooks ? hooks_run(f->hooks, "pre-freeze", HOOK_SECONDS, false, NULL, e) : 0;
	/* The mounts are looked up at every freeze: they may have changed since the last one. */
	if (r == 0)
		r = track_mounts(f->disks, f->n, &f->mounts, &f->nmounts, e);
	if (r == 0)
		r = freeze_write_note(f, e);
	if (r == 0)
		freeze_sync(f);
	return r;
}

int freeze_hold(struct freeze *f, double limit, char **ret_unfrozen, struct err *e)
{
	_cleanup_free_ char *unfrozen = NULL;
	int r = track_guard_start((const char *const *)f->mounts, f->nmounts, &f->guard, e);

	if (r == 0)
		r = track_guard_freeze(f->guard, limit, &unfrozen, e);
	if (r == 0 && f->hooked)
		r = hooks_run(f->hooks, "post-freeze", MIN(HOOK_SECONDS, limit / 2), false, &f->left, e);
	if (r < 0)
		return r;
	*ret_unfrozen = take_ptr(&unfrozen);
	return 0;
}

int freeze_thaw(struct freeze *f, double *ret_seconds, bool *ret_intact, struct err *e)
{
	int r = track_guard_thaw(f->guard, ret_seconds, ret_intact, e);

	/* What was mounted meanwhile was never frozen: the pass read it while it changed. Looked up after the thaw, for
	 * no file is opened before; one mounted just then costs another try. */
	return r < 0 ? r : track_mounts_same(f->disks, f->n, f->mounts, f->nmounts, e);
}

void freeze_stop(struct freeze *f)
{
	if (f->guard && track_guard_holds(f->guard))
		track_guard_thaw(f->guard, NULL, NULL, NULL);
}

int freeze_after(struct freeze *f, struct err *e)
{
	bool hooked = f->hooked;

	freeze_let_go(f);
	f->hooked = false;
	return hooked ? hooks_run(f->hooks, "post-thaw", HOOK_SECONDS, true, NULL, e) : 0;
}

void freeze_let_go(struct freeze *f)
{
	f->doubt |= !track_guard_free(f->guard);
	if (f->left > 0)
		hook_ended(f->left, HOOK_END);
	f->left = 0;
	if (!f->doubt && f->note && f->mounts)
		unlink(f->note);
	f->guard = NULL;
	track_mounts_free(f->mounts, f->nmounts);
	f->mounts = NULL;
	f->nmounts = 0;
}
