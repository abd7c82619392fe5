#include "base/proc.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"

static bool proc_keeps(const struct proc_opts *o, int fd)
{
	for (size_t i = 0; i < o->nkeep; i++)
		if (o->keep[i] == fd)
			return true;
	return false;
}

/* Between fork and exec only async-signal-safe calls: another thread may have held any lock. */
static void proc_close_others(const struct proc_opts *o, int report_fd)
{
	int max = 3;

	for (size_t i = 0; i < o->nkeep; i++)
		max = MAX(max, o->keep[i] + 1);
	max = MAX(max, report_fd + 1);
	for (int fd = 3; fd < max; fd++) {
		if (fd == report_fd)
			continue;
		if (proc_keeps(o, fd))
			fcntl(fd, F_SETFD, 0);
		else
			close(fd);
	}
	syscall(SYS_close_range, (unsigned)max, ~0u, 0);
}

struct proc_user {
	uid_t uid;
	gid_t gid, kvm; /* kvm: the group that may use /dev/kvm; 0: none */
};

static int proc_user(const char *name, struct proc_user *ret, struct err *e)
{
	struct passwd pw, *found = NULL;
	char buf[16384];
	struct stat st;

	if (getpwnam_r(name, &pw, buf, sizeof(buf), &found) != 0 || !found)
		return err_set(e, -ENOENT, "user '%s' does not exist (make it, or name another)", name);
	*ret = (struct proc_user){.uid = pw.pw_uid, .gid = pw.pw_gid};
	/* Without it QEMU would have to do without KVM. Only a group made for it: never root's. */
	if (stat("/dev/kvm", &st) == 0 && S_ISCHR(st.st_mode) && (st.st_mode & 0060) == 0060)
		ret->kvm = st.st_gid;
	return 0;
}

/* glibc's wrappers would tell the threads that fork() left behind; the child has only itself. */
static int proc_become(const struct proc_user *u)
{
	if (syscall(SYS_setgroups, u->kvm ? 1 : 0, &u->kvm) < 0 || syscall(SYS_setresgid, u->gid, u->gid, u->gid) < 0 ||
	    syscall(SYS_setresuid, u->uid, u->uid, u->uid) < 0 || prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return -1;
	return 0;
}

static void proc_child(const char *const argv[], const struct proc_opts *o, const struct proc_user *user, int null_fd,
		       int report_fd, pid_t parent)
{
	sigset_t none;
	int code;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	/* Its parent ends at once; who forks by the system call has nothing to do with locks of others. */
	if (o->detached) {
		long second = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);

		if (second < 0)
			goto fail;
		if (second > 0)
			_exit(0);
	}
	if (user && proc_become(user) < 0)
		goto fail;
	/* After the change of user, which would clear it. */
	if (o->die_with_us) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(127);
	}
	if (dup2(o->stdin_fd >= 0 ? o->stdin_fd : null_fd, 0) < 0 ||
	    dup2(o->stdout_fd >= 0 ? o->stdout_fd : null_fd, 1) < 0 || (o->stderr_fd >= 0 && dup2(o->stderr_fd, 2) < 0))
		goto fail;
	if (o->cwd && chdir(o->cwd) < 0)
		goto fail;
	if (o->session || o->detached)
		setsid();
	proc_close_others(o, report_fd);
	execvp(argv[0], (char *const *)(uintptr_t)argv);
fail:
	code = errno;
	if (write(report_fd, &code, sizeof(code)) < 0)
		_exit(126);
	_exit(127);
}

int proc_spawn(const char *const argv[], const struct proc_opts *o, pid_t *ret, struct err *e)
{
	_cleanup_close_ int null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	_cleanup_close_ int report_r = -1, report_w = -1;
	struct proc_user user;
	bool drop = o->user && geteuid() == 0;
	pid_t pid, self = getpid();
	int p[2], code = 0;

	if (drop && proc_user(o->user, &user, e) < 0)
		return -ENOENT;
	if (null_fd < 0 || pipe2(p, O_CLOEXEC) < 0)
		return err_sys(e, "cannot start '%s'", argv[0]);
	report_r = p[0];
	/* Above the standard descriptors, or dup2() in the child would run over it. */
	report_w = fcntl(p[1], F_DUPFD_CLOEXEC, 3);
	close(p[1]);
	if (report_w < 0)
		return err_sys(e, "cannot start '%s'", argv[0]);
	pid = fork();
	if (pid < 0)
		return err_sys(e, "cannot start '%s'", argv[0]);
	if (pid == 0)
		proc_child(argv, o, drop ? &user : NULL, null_fd, report_w, self);
	close(take_fd(&report_w));
	if (io_read_full(report_r, &code, sizeof(code)) == (ssize_t)sizeof(code)) {
		waitpid(pid, NULL, 0);
		errno = code;
		return err_sys(e, "cannot start '%s'", argv[0]);
	}
	if (o->detached)
		waitpid(pid, NULL, 0);
	*ret = o->detached ? 0 : pid;
	return 0;
}

static int proc_status(int status)
{
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int proc_wait(pid_t pid, int *ret_status, struct err *e)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return err_sys(e, "cannot wait for process %d", (int)pid);
	*ret_status = proc_status(status);
	return 0;
}

void proc_stop(pid_t pid, double grace)
{
	double end = id_now_mono() + grace;

	kill(pid, SIGTERM);
	while (id_now_mono() < end) {
		struct timespec ts = {.tv_nsec = 20 * 1000 * 1000};

		if (waitpid(pid, NULL, WNOHANG) != 0)
			return;
		nanosleep(&ts, NULL);
	}
	kill(pid, SIGKILL);
	while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
		;
}

#define PROC_ASK_MS 200
#define PROC_GRACE  15.0 /* between SIGTERM and SIGKILL of one that is given up */

/* Whether to give a program up; `cancelled` may be NULL. */
struct proc_watch {
	bool (*cancelled)(void *arg);
	void *arg;
};

/* Reads both pipes until their ends; output beyond its limit is dropped so that the child is never stuck. False when it
 * is to be given up. */
static bool proc_gather(int out_fd, int err_fd, const struct proc_watch *w, size_t max, struct str *out,
			struct str *err_text)
{
	struct pollfd fds[2] = {{.fd = out_fd, .events = POLLIN}, {.fd = err_fd, .events = POLLIN}};
	char buf[8192];

	while (fds[0].fd >= 0 || fds[1].fd >= 0) {
		if (poll(fds, 2, w->cancelled ? PROC_ASK_MS : -1) < 0 && errno != EINTR)
			return true;
		if (w->cancelled && w->cancelled(w->arg))
			return false;
		for (int i = 0; i < 2; i++) {
			struct str *s = i ? err_text : out;
			ssize_t n;

			if (fds[i].fd < 0 || !fds[i].revents)
				continue;
			n = read(fds[i].fd, buf, sizeof(buf));
			if (n < 0 && errno == EINTR)
				continue;
			if (n <= 0)
				fds[i].fd = -1;
			else if (s->len + (size_t)n <= (i ? 65536 : max))
				str_add_mem(s, buf, (size_t)n);
		}
	}
	return true;
}

static const char *proc_last_line(struct str *s)
{
	char *nl;

	if (!s->s)
		return "no message";
	while (s->len && (s->s[s->len - 1] == '\n' || s->s[s->len - 1] == ' '))
		s->s[--s->len] = '\0';
	nl = strrchr(s->s, '\n');
	return nl ? nl + 1 : s->s;
}

static int proc_run_watched(const char *const argv[], const char *user, const struct proc_watch *w, size_t max,
			    char **ret_out, struct err *e)
{
	_cleanup_(str_release) struct str out = {0}, err_text = {0};
	_cleanup_close_ int out_r = -1, out_w = -1, err_r = -1, err_w = -1;
	struct proc_opts o = PROC_OPTS_INIT;
	int p[2], q[2], status, r;
	pid_t pid;

	if (pipe2(p, O_CLOEXEC) < 0)
		return err_sys(e, "cannot start '%s'", argv[0]);
	out_r = p[0], out_w = p[1];
	if (pipe2(q, O_CLOEXEC) < 0)
		return err_sys(e, "cannot start '%s'", argv[0]);
	err_r = q[0], err_w = q[1];
	o.stdout_fd = out_w;
	o.stderr_fd = err_w;
	o.user = user;
	r = proc_spawn(argv, &o, &pid, e);
	if (r < 0)
		return r;
	close(take_fd(&out_w));
	close(take_fd(&err_w));
	if (!proc_gather(out_r, err_r, w, max, &out, &err_text)) {
		proc_stop(pid, PROC_GRACE);
		return err_set(e, -ECANCELED, "stopped");
	}
	r = proc_wait(pid, &status, e);
	if (r < 0)
		return r;
	if (status != 0)
		return err_set(e, -EIO, "'%s' failed with status %d: %s", argv[0], status, proc_last_line(&err_text));
	if (ret_out) {
		*ret_out = str_take(&out);
		if (!*ret_out)
			return err_nomem(e);
	}
	return 0;
}

int proc_run(const char *const argv[], size_t max, char **ret_out, struct err *e)
{
	return proc_run_as(argv, NULL, max, ret_out, e);
}

int proc_run_as(const char *const argv[], const char *user, size_t max, char **ret_out, struct err *e)
{
	return proc_run_watched(argv, user, &(struct proc_watch){0}, max, ret_out, e);
}

int proc_run_unless(const char *const argv[], bool (*cancelled)(void *arg), void *arg, size_t max, char **ret_out,
		    struct err *e)
{
	return proc_run_watched(argv, NULL, &(struct proc_watch){cancelled, arg}, max, ret_out, e);
}

int proc_drop(const char *user, struct err *e)
{
	pid_t parent = getppid();
	struct proc_user u;
	int sig = 0;

	if (geteuid() == 0 && user) {
		int r = proc_user(user, &u, e);

		if (r < 0)
			return r;
		prctl(PR_GET_PDEATHSIG, &sig);
		if (setgroups(0, NULL) < 0 || setresgid(u.gid, u.gid, u.gid) < 0 || setresuid(u.uid, u.uid, u.uid) < 0)
			return err_sys(e, "cannot become user '%s'", user);
		/* The kernel forgets it with the change of user; who was to die with its parent still is. */
		if (sig && (prctl(PR_SET_PDEATHSIG, sig) < 0 || getppid() != parent))
			return err_set(e, -ECANCELED, "the program that started this one has ended");
	}
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return err_sys(e, "cannot give up privileges");
	return 0;
}

int proc_self_dir(char *buf, size_t size, struct err *e)
{
	ssize_t n = readlink("/proc/self/exe", buf, size - 1);
	char *slash;

	if (n < 0)
		return err_sys(e, "cannot read '/proc/self/exe'");
	buf[n] = '\0';
	slash = strrchr(buf, '/');
	if (slash)
		*slash = '\0';
	return 0;
}
