/* Runs a program of the copied system, inside its root. Only in the appliance: there it can hurt nothing but the copy.
 */
#include "guest/guest_int.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/wait.h>

#include "base/err.h"
#include "base/id.h"
#include "base/proc.h"
#include "base/util.h"

static const char *const run_binds[] = {"/dev", "/proc", "/sys"};

#define TAIL_MAX 4096

#define RUN_BINDS ARRAY_SIZE(run_binds)

/* `at`: where they are, "" for what could not be mounted. */
static int run_mount(struct guest *g, char at[][PATH_MAX], struct err *e)
{
	for (size_t i = 0; i < RUN_BINDS; i++)
		at[i][0] = '\0';
	for (size_t i = 0; i < RUN_BINDS; i++) {
		_cleanup_close_ int dir = guest_openat(g, run_binds[i], O_PATH | O_DIRECTORY, 0);
		char fd_path[64], path[PATH_MAX];

		/* By descriptor: a link in the copy must not lead the mount elsewhere. */
		snprintf(fd_path, sizeof(fd_path), "/proc/self/fd/%d", dir);
		if (dir < 0 || guest_fd_path(dir, path, sizeof(path)) < 0 ||
		    mount(run_binds[i], fd_path, NULL, MS_BIND | MS_REC, NULL) < 0)
			return err_sys(e, "cannot bind '%s' into the copy", run_binds[i]);
		memcpy(at[i], path, sizeof(path));
	}
	return 0;
}

static void run_unmount(char at[][PATH_MAX])
{
	for (size_t i = RUN_BINDS; i-- > 0;)
		if (at[i][0])
			umount2(at[i], MNT_DETACH | UMOUNT_NOFOLLOW);
}

/* Keeps the last of what the program says; false when the time is over. */
static bool run_gather(int fd, double end, struct str *tail)
{
	char buf[1024];

	for (;;) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		double left = end - id_now_mono();
		ssize_t n;

		if (left <= 0)
			return false;
		if (poll(&p, 1, (int)(left * 1000) + 1) <= 0)
			continue;
		n = read(fd, buf, sizeof(buf));
		if (n <= 0)
			return true;
		str_add_mem(tail, buf, (size_t)n);
		if (tail->s && tail->len > 2 * TAIL_MAX) {
			memmove(tail->s, tail->s + tail->len - TAIL_MAX, TAIL_MAX + 1);
			tail->len = TAIL_MAX;
		}
	}
}

static int run_spawn(struct guest *g, const char *const argv[], double timeout, struct str *tail, struct err *e)
{
	const char *full[24] = {"chroot",
				g->path,
				"/usr/bin/env",
				"-i",
				"PATH=/usr/sbin:/usr/bin:/sbin:/bin",
				"HOME=/root",
				"LC_ALL=C.UTF-8",
				"DEBIAN_FRONTEND=noninteractive"};
	_cleanup_close_ int out_r = -1, out_w = -1;
	struct proc_opts o = PROC_OPTS_INIT;
	size_t n = 8;
	int p[2], status, r;
	bool in_time;
	pid_t pid;

	for (size_t i = 0; argv[i]; i++) {
		must(n + 1 < ARRAY_SIZE(full));
		full[n++] = argv[i];
	}
	if (pipe2(p, O_CLOEXEC) < 0)
		return err_sys(e, "cannot start '%s'", argv[0]);
	out_r = p[0];
	out_w = p[1];
	o.stdout_fd = o.stderr_fd = out_w;
	o.session = true;
	r = proc_spawn(full, &o, &pid, e);
	if (r < 0)
		return r;
	close(take_fd(&out_w));
	in_time = run_gather(out_r, id_now_mono() + timeout, tail);
	if (!in_time) {
		kill(-pid, SIGKILL); /* with all it has started, which would keep the copy's filesystems in use */
		proc_stop(pid, 5);
		return err_set(e, -ETIMEDOUT, "'%s' took longer than %.0f s in the copy", argv[0], timeout);
	}
	r = proc_wait(pid, &status, e);
	if (r == 0 && status != 0)
		return err_set(e, -EIO, "'%s' failed in the copy with status %d: %s", argv[0], status,
			       tail->s ? tail->s : "");
	return r;
}

int guest_run(struct guest *g, const char *const argv[], double timeout, char **ret_tail, struct err *e)
{
	_cleanup_(str_release) struct str tail = {0};
	char binds[RUN_BINDS][PATH_MAX];
	int r;

	if (!g->can_run)
		return err_set(e, -EPERM, "'%s' of the copy may not be run here", argv[0]);
	r = run_mount(g, binds, e);
	if (r == 0)
		r = run_spawn(g, argv, timeout, &tail, e);
	run_unmount(binds);
	if (r == 0 && ret_tail)
		*ret_tail = str_take(&tail);
	return r;
}
