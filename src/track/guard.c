/*
 * Two processes stand behind a freeze. The *guard* listens to the agent and to the clock; the *freezer* makes the
 * FIFREEZE calls, which may block for as long as a sync takes, so that the guard can still thaw what is frozen when the
 * limit passes. Both hold the descriptors, both are locked into memory, and either thaws when the one it listens to is
 * gone. Should the guard be stopped (SIGSTOP), the freezer thaws a moment after the limit; should the freezer be, the
 * guard wakes it. The agent holds the descriptors as well and thaws itself should both have been killed or stopped.
 *
 * agent                       guard                          freezer
 *   | GUARD_FREEZE limit ------>|                              |
 *   |                           | one byte ------------------->| syncfs all, FIFREEZE one after the other
 *   |<------------------ reply  |<------------------- reply    |
 *   | GUARD_THAW -------------->| FITHAW in reverse order      |
 *   |<------------------ reply  |                              |
 *
 * A mount's state is in memory all three share; who moves it from GUARD_FROZEN to GUARD_THAWING makes the FITHAW call,
 * and who finds that one gone makes it again.
 * A killed freezer stays in its FIFREEZE until the writers that had begun have ended; till then FITHAW says EINVAL and
 * undoes nothing, and then it is frozen with nobody left. So nothing is done with before that process is gone. The
 * agent waits a while for it and leaves the rest to one more process, the *heir*.
 * After fork() only async-signal-safe functions are used: the agent has threads.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/str.h"
#include "base/util.h"
#include "track/track_int.h"

#define GUARD_MOUNTS_MAX   256
#define GUARD_TICK_MS      20
#define GUARD_END_SECONDS  10.0
#define GUARD_LATE         0.5 /* seconds after the limit until the freezer thaws in the guard's place */
#define GUARD_HEIR_MS      50
#define GUARD_LEFT_SECONDS 1.0 /* for what another agent left */
#define GUARD_LEFT_MAX     16
#define GUARD_SILENT       5.0 /* seconds without a sign of the guard, an answer being due, until it counts as gone */

enum guard_mount { GUARD_FREE, GUARD_TRYING, GUARD_FROZEN, GUARD_THAWING, GUARD_THAWED, GUARD_UNSUPPORTED };
enum guard_state { GUARD_IDLE, GUARD_FREEZING, GUARD_HOLDING, GUARD_EXPIRED, GUARD_ENDING };
enum guard_op { GUARD_FREEZE = 1, GUARD_THAW };

struct guard_request {
	enum guard_op op;
	double limit;
};

struct guard_reply {
	int code;       /* 0 or negative errno */
	int at;         /* the mount that failed */
	double seconds; /* frozen */
	bool intact;
};

/* In memory shared by agent, guard and freezer. */
struct guard_shared {
	_Atomic int state;
	_Atomic int stop;    /* the freezer is to give up */
	_Atomic int lost;    /* somebody else thawed, or a limit passed */
	_Atomic int began;   /* `since` is valid */
	_Atomic int freezer; /* its process */
	double since;        /* the first FIFREEZE */
	double limit;        /* seconds after it */
	_Atomic int mounts[GUARD_MOUNTS_MAX];
};

struct track_guard {
	struct guard_shared *shared;
	char **names;
	int *fds;
	size_t n;
	int sock;
	pid_t pid;
	int freezer; /* heir_open() */
};

/* What these processes work with; no pointer into the heap of the agent is followed after fork(). */
struct guard_child {
	struct guard_shared *shared;
	const struct settle_segments *segments;
	int fds[GUARD_MOUNTS_MAX];
	size_t n;
	int sock;    /* to the agent (guard) or the guard (freezer) */
	int freezer; /* guard: to the freezer, -1 when it is gone; heir: heir_open() */
	pid_t freezer_pid;
	bool left; /* heir of an agent that is gone: what is frozen before the freezer's end may be somebody else's */
	bool aborted; /* guard: the answer was given, the freezer is still at it */
};

static double guard_now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* Thaws mount i if it is frozen by us and nobody else is just doing it. */
static void guard_thaw_one(struct guard_shared *s, const int *fds, size_t i)
{
	int expected = GUARD_FROZEN;

	if (!atomic_compare_exchange_strong(&s->mounts[i], &expected, GUARD_THAWING))
		return;
	if (ioctl(fds[i], FITHAW, 0) < 0)
		atomic_store(&s->lost, 1); /* EINVAL: somebody else had thawed it */
	expected = GUARD_THAWING;
	atomic_compare_exchange_strong(&s->mounts[i], &expected, GUARD_THAWED);
}

static void guard_thaw_all(struct guard_shared *s, const int *fds, size_t n)
{
	for (size_t i = n; i-- > 0;)
		guard_thaw_one(s, fds, i);
}

/*
 * Another one is gone. If it was between FIFREEZE and its note, or between the claim of a thaw and FITHAW, it has left
 * a mount frozen. `trying`: it may have been the freezer.
 */
static void guard_thaw_doubtful(struct guard_shared *s, const int *fds, size_t n, bool trying)
{
	for (size_t i = n; i-- > 0;) {
		int expected = GUARD_THAWING;

		atomic_compare_exchange_strong(&s->mounts[i], &expected, GUARD_FROZEN);
		expected = GUARD_TRYING;
		if (trying)
			atomic_compare_exchange_strong(&s->mounts[i], &expected, GUARD_FROZEN);
	}
	guard_thaw_all(s, fds, n);
}

static int guard_settle(const struct guard_child *c, const char *name)
{
	int keep[GUARD_MOUNTS_MAX + 2] = {c->sock, c->freezer};

	memcpy(keep + 2, c->fds, c->n * sizeof(*keep));
	return settle_process(c->segments, keep, c->n + 2, name);
}

static void guard_send(int sock, const struct guard_reply *r)
{
	while (send(sock, r, sizeof(*r), MSG_NOSIGNAL) < 0 && errno == EINTR)
		;
}

/* ---- when a freezer may have been killed in its call ---- */

/*
 * Thaws what it has frozen so far. Returns whether it is gone: then nothing can become frozen any more. `trying`: also
 * asks for what it may be freezing at this moment, which can take as long as that: nothing for who has more to do.
 */
static bool guard_thaw_after(struct guard_shared *s, const int *fds, size_t n, int freezer, bool trying)
{
	bool gone = !heir_alive(freezer); /* looked at before */

	for (size_t i = n; trying && !gone && i-- > 0;) {
		int expected = GUARD_TRYING;

		if (atomic_load(&s->mounts[i]) == GUARD_TRYING && ioctl(fds[i], FITHAW, 0) == 0)
			atomic_compare_exchange_strong(&s->mounts[i], &expected, GUARD_THAWED);
	}
	guard_thaw_doubtful(s, fds, n, gone);
	return gone;
}

static bool guard_outlive(const struct guard_child *c, bool trying, double until)
{
	while (!guard_thaw_after(c->shared, c->fds, c->n, c->freezer, trying)) {
		if (guard_now() > until)
			return false;
		nanosleep(&(struct timespec){.tv_nsec = GUARD_HEIR_MS * 1000000}, NULL);
	}
	return true;
}

static _Noreturn void heir_main(struct guard_child *c)
{
	pid_t pid = fork();

	if (pid != 0)
		_exit(pid < 0); /* the agent needn't wait for the other */
	setsid();
	settle_leave_unit();
	guard_settle(c, "replant-heir"); /* better one that isn't locked into memory than none */
	guard_outlive(c, !c->left, INFINITY);
	_exit(0);
}

/* Waits until then for the end of the freezer; false: an heir does, for as long as it takes. */
static bool guard_bequeath(const struct guard_child *c, double until)
{
	struct guard_child heir = *c;
	int status = -1;
	pid_t pid;

	if (guard_outlive(c, false, until))
		return true;
	pid = fork();
	if (pid == 0)
		heir_main(&heir);
	while (pid > 0 && waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	/* No memory for a process: then it's on us. */
	return status != 0 && guard_outlive(c, false, INFINITY);
}

/* ---- the freezer ---- */

/* Writes back what is dirty while writers still run: what FIFREEZE then has to write is little. */
static void freezer_sync(struct guard_child *c, bool unsupported_only)
{
	for (size_t i = 0; i < c->n && !atomic_load(&c->shared->stop); i++)
		if (!unsupported_only || atomic_load(&c->shared->mounts[i]) == GUARD_UNSUPPORTED)
			syncfs(c->fds[i]);
}

static int freezer_freeze_one(struct guard_child *c, size_t i)
{
	struct guard_shared *s = c->shared;

	atomic_store(&s->mounts[i], GUARD_TRYING);
	if (ioctl(c->fds[i], FIFREEZE, 0) == 0) {
		atomic_store(&s->mounts[i], GUARD_FROZEN);
		if (!atomic_load(&s->stop))
			return 0;
		guard_thaw_one(s, c->fds, i); /* too late, nobody waits for it */
		return -ECANCELED;
	}
	if (errno == EOPNOTSUPP || errno == ENOTTY) {
		atomic_store(&s->mounts[i], GUARD_UNSUPPORTED);
		return 0;
	}
	atomic_store(&s->mounts[i], GUARD_FREE);
	return -errno;
}

static void freezer_work(struct guard_child *c, struct guard_reply *reply)
{
	freezer_sync(c, false);
	c->shared->since = guard_now();
	atomic_store(&c->shared->began, 1);
	for (size_t i = 0; i < c->n && reply->code == 0; i++) {
		reply->code = atomic_load(&c->shared->stop) ? -ECANCELED : freezer_freeze_one(c, i);
		if (reply->code < 0)
			reply->at = (int)i;
	}
	if (reply->code == 0)
		freezer_sync(c, true);
}

/* Waits for the guard. When it lets the limit pass by it can't be running. */
static void freezer_wait(struct guard_child *c)
{
	struct guard_shared *s = c->shared;
	struct pollfd p = {.fd = c->sock, .events = POLLIN};
	bool held = false;
	double left;

	for (size_t i = 0; i < c->n; i++)
		held |= atomic_load(&s->mounts[i]) == GUARD_FROZEN;
	left = held ? s->since + s->limit + GUARD_LATE - guard_now() : 0;
	if (!held || poll(&p, 1, (int)(MAX(left, 0) * 1000) + 1) != 0)
		return;
	if (atomic_load(&s->state) != GUARD_ENDING) /* else it was asked to thaw in time */
		atomic_store(&s->lost, 1);
	guard_thaw_all(s, c->fds, c->n);
}

static _Noreturn void freezer_main(struct guard_child *c)
{
	struct guard_reply hello = {.code = guard_settle(c, "replant-freezer")};
	char go;

	guard_send(c->sock, &hello);
	for (;;) {
		struct guard_reply reply = {0};
		ssize_t got;

		freezer_wait(c);
		got = recv(c->sock, &go, 1, 0);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			break;
		freezer_work(c, &reply);
		guard_send(c->sock, &reply);
	}
	/* The guard is gone. When it ended in order there is nothing left to do here. */
	guard_thaw_doubtful(c->shared, c->fds, c->n, false);
	_exit(0);
}

/* ---- the guard ---- */

static void guard_answer(struct guard_child *c, int code, int at)
{
	struct guard_reply r = {.code = code, .at = at};

	if (atomic_load(&c->shared->began))
		r.seconds = guard_now() - c->shared->since;
	r.intact = !atomic_load(&c->shared->lost);
	guard_send(c->sock, &r);
}

static void guard_begin(struct guard_child *c, double limit)
{
	struct guard_shared *s = c->shared;

	if (atomic_load(&s->state) != GUARD_IDLE || c->freezer < 0) {
		guard_answer(c, c->freezer < 0 ? -EOWNERDEAD : -EALREADY, 0);
		return;
	}
	for (size_t i = 0; i < c->n; i++)
		atomic_store(&s->mounts[i], GUARD_FREE);
	atomic_store(&s->lost, 0);
	atomic_store(&s->stop, 0);
	atomic_store(&s->began, 0);
	s->limit = limit;
	c->aborted = false;
	atomic_store(&s->state, GUARD_FREEZING);
	if (send(c->freezer, "", 1, MSG_NOSIGNAL) < 0) {
		atomic_store(&s->state, GUARD_IDLE);
		guard_answer(c, -EOWNERDEAD, 0);
	}
}

static void guard_end(struct guard_child *c)
{
	if (atomic_load(&c->shared->state) == GUARD_FREEZING) {
		guard_answer(c, -EALREADY, 0);
		return;
	}
	if (atomic_load(&c->shared->state) == GUARD_IDLE)
		atomic_store(&c->shared->lost, 1); /* nothing was held */
	atomic_store(&c->shared->state, GUARD_ENDING);
	guard_thaw_all(c->shared, c->fds, c->n);
	atomic_store(&c->shared->state, GUARD_IDLE);
	guard_answer(c, 0, 0);
	atomic_store(&c->shared->began, 0);
}

/* Returns false when the agent is gone. */
static bool guard_on_agent(struct guard_child *c)
{
	struct guard_request q;
	ssize_t got = recv(c->sock, &q, sizeof(q), 0);

	if (got < 0 && errno == EINTR)
		return true;
	if (got != (ssize_t)sizeof(q))
		return false;
	if (q.op == GUARD_FREEZE)
		guard_begin(c, q.limit);
	else
		guard_end(c);
	return true;
}

static void guard_on_freezer(struct guard_child *c)
{
	struct guard_shared *s = c->shared;
	struct guard_reply r;
	ssize_t got = recv(c->freezer, &r, sizeof(r), 0);
	bool gone = got != (ssize_t)sizeof(r);

	if (got < 0 && errno == EINTR)
		return;
	if (gone) {
		close(c->freezer);
		c->freezer = -1;
		guard_thaw_doubtful(s, c->fds, c->n, true);
		atomic_store(&s->lost, 1);
	}
	if (atomic_load(&s->state) != GUARD_FREEZING) {
		if (gone && atomic_load(&s->state) == GUARD_HOLDING)
			atomic_store(&s->state, GUARD_EXPIRED);
		return;
	}
	if (!gone && r.code == 0 && !c->aborted) {
		atomic_store(&s->state, GUARD_HOLDING);
		guard_answer(c, 0, 0);
		return;
	}
	guard_thaw_all(s, c->fds, c->n);
	atomic_store(&s->state, GUARD_IDLE);
	if (!c->aborted)
		guard_answer(c, gone ? -EOWNERDEAD : r.code, gone ? 0 : r.at);
	c->aborted = false;
}

/* The limit counts from the first FIFREEZE, also while later ones still block. */
static void guard_on_limit(struct guard_child *c)
{
	struct guard_shared *s = c->shared;
	int at = 0;

	if (atomic_load(&s->state) == GUARD_HOLDING) {
		atomic_store(&s->lost, 1); /* before: nobody may think it frozen while it changes */
		guard_thaw_all(s, c->fds, c->n);
		atomic_store(&s->state, GUARD_EXPIRED);
		return;
	}
	while ((size_t)at + 1 < c->n && atomic_load(&s->mounts[at]) != GUARD_TRYING)
		at++;
	atomic_store(&s->stop, 1);
	guard_thaw_all(s, c->fds, c->n);
	/* If it was stopped, then maybe with one frozen that it has not noted yet. It thaws that now. */
	kill(c->freezer_pid, SIGCONT);
	c->aborted = true;
	guard_answer(c, -ETIME, at);
}

/* Milliseconds to the limit; 0: it has passed; -1: nothing to wait for. */
static int guard_left(const struct guard_child *c)
{
	int state = atomic_load(&c->shared->state);
	double left;

	if ((state != GUARD_FREEZING && state != GUARD_HOLDING) || c->aborted)
		return -1;
	if (!atomic_load(&c->shared->began))
		return GUARD_TICK_MS;
	left = c->shared->since + c->shared->limit - guard_now();
	if (left <= 0)
		return 0;
	if (state == GUARD_FREEZING)
		return MIN(GUARD_TICK_MS, (int)(left * 1000) + 1);
	return (int)(left * 1000) + 1;
}

/* The agent is gone: thaw, and wait for a freezer that is still in a call, which thaws what it then gets. */
static _Noreturn void guard_finish(struct guard_child *c)
{
	atomic_store(&c->shared->stop, 1);
	guard_thaw_all(c->shared, c->fds, c->n);
	if (c->freezer_pid > 0)
		kill(c->freezer_pid, SIGCONT);
	while (c->freezer >= 0 && atomic_load(&c->shared->state) == GUARD_FREEZING)
		guard_on_freezer(c);
	guard_thaw_all(c->shared, c->fds, c->n);
	/* Its descriptors would keep the mount points busy after our end. */
	if (c->freezer >= 0)
		close(c->freezer);
	if (c->freezer_pid > 0)
		waitpid(c->freezer_pid, NULL, 0);
	_exit(0);
}

static void guard_loop(struct guard_child *c)
{
	for (;;) {
		struct pollfd p[2] = {{.fd = c->sock, .events = POLLIN}, {.fd = c->freezer, .events = POLLIN}};
		int left = guard_left(c);

		if (left == 0) {
			guard_on_limit(c);
			continue;
		}
		if (poll(p, 2, left) <= 0)
			continue;
		if (p[1].revents)
			guard_on_freezer(c);
		if (p[0].revents && !guard_on_agent(c))
			return;
	}
}

static int guard_fork_freezer(struct guard_child *c)
{
	struct guard_reply hello;
	int p[2];
	pid_t pid;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, p) < 0)
		return -errno;
	pid = fork();
	if (pid < 0)
		return -errno;
	if (pid == 0) {
		c->sock = p[1];
		c->freezer = -1;
		freezer_main(c);
	}
	close(p[1]);
	c->freezer = p[0];
	c->freezer_pid = pid;
	atomic_store(&c->shared->freezer, pid);
	if (recv(c->freezer, &hello, sizeof(hello), 0) != (ssize_t)sizeof(hello))
		return -EIO;
	return hello.code;
}

static _Noreturn void guard_main(struct guard_child *c)
{
	struct guard_reply hello = {0};
	const int nowhere = -1;

	setsid();
	settle_leave_unit();
	signal(SIGCHLD, SIG_DFL);
	hello.code = guard_fork_freezer(c);
	if (hello.code == 0)
		hello.code = guard_settle(c, "replant-guard");
	/* Once through the calls that matter, so that a first time isn't during a freeze. */
	ioctl(nowhere, FITHAW, 0);
	poll(NULL, 0, 0);
	guard_now();
	guard_send(c->sock, &hello);
	if (hello.code == 0)
		guard_loop(c);
	guard_finish(c);
}

/* ---- the agent's side ---- */

static int guard_open_mounts(struct track_guard *g, const char *const *mounts, size_t n, struct err *e)
{
	g->names = calloc(n + 1, sizeof(*g->names));
	g->fds = calloc(n + 1, sizeof(*g->fds));
	if (!g->names || !g->fds)
		return err_nomem(e);
	for (size_t i = 0; i < n; i++) {
		int fd = open(mounts[i], O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);

		if (fd < 0)
			return err_sys(e, "cannot open mount point '%s'", mounts[i]);
		g->fds[g->n] = fd;
		g->names[g->n] = strdup(mounts[i]);
		if (!g->names[g->n++])
			return err_nomem(e);
	}
	return 0;
}

static struct guard_child guard_child(const struct track_guard *g, const struct settle_segments *segments)
{
	struct guard_child c = {
	    .shared = g->shared, .segments = segments, .n = g->n, .sock = -1, .freezer = g->freezer};

	if (g->n > 0)
		memcpy(c.fds, g->fds, g->n * sizeof(*c.fds));
	return c;
}

static int guard_spawn(struct track_guard *g, const struct settle_segments *segments, struct err *e)
{
	struct guard_child c = guard_child(g, segments);
	int p[2];

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, p) < 0)
		return err_sys(e, "cannot start the freeze guard");
	g->pid = fork();
	if (g->pid < 0) {
		close(p[0]);
		close(p[1]);
		return err_sys(e, "cannot start the freeze guard");
	}
	if (g->pid == 0) {
		c.sock = p[1];
		guard_main(&c);
	}
	close(p[1]);
	g->sock = p[0];
	return 0;
}

/*
 * Is an answer so late that the guard can't be running? The sync before the first FIFREEZE may take any time, and so
 * may a FITHAW: ext4 writes its superblock in it. *moved: when the guard was last seen at work.
 */
static bool guard_is_late(const struct track_guard *g, enum guard_op op, unsigned *seen, double *moved)
{
	const struct guard_shared *s = g->shared;
	double now = guard_now();
	unsigned states = 0;

	for (size_t i = 0; i < g->n; i++)
		states += (unsigned)atomic_load(&s->mounts[i]);
	if (states != *seen || heir_in_kernel(g->pid))
		*moved = now;
	*seen = states;
	if (op == GUARD_THAW)
		return now > *moved + GUARD_SILENT;
	return atomic_load(&s->began) && now > MAX(*moved, s->since + s->limit) + GUARD_SILENT;
}

/* The next answer of the guard; -EPIPE when it is gone, or as good as gone. */
static int guard_receive(struct track_guard *g, enum guard_op op, struct guard_reply *ret)
{
	double moved = guard_now();
	unsigned seen = 0;

	for (;;) {
		struct pollfd p = {.fd = g->sock, .events = POLLIN};
		ssize_t got;

		if (poll(&p, 1, 200) <= 0) {
			if (guard_is_late(g, op, &seen, &moved))
				return -EPIPE;
			continue;
		}
		got = recv(g->sock, ret, sizeof(*ret), 0);
		if (got == (ssize_t)sizeof(*ret))
			return 0;
		if (got < 0 && errno == EINTR)
			continue;
		return -EPIPE;
	}
}

static int guard_ask(struct track_guard *g, enum guard_op op, double limit, struct guard_reply *ret)
{
	struct guard_request q = {.op = op, .limit = limit};

	if (send(g->sock, &q, sizeof(q), MSG_NOSIGNAL) < 0)
		return -EPIPE;
	return guard_receive(g, op, ret);
}

int track_guard_start(const char *const *mounts, size_t n, struct track_guard **ret, struct err *e)
{
	struct settle_segments segments;
	struct guard_reply hello;
	struct track_guard *g;
	int r;

	if (n > GUARD_MOUNTS_MAX)
		return err_set(e, -E2BIG, "%zu mounted filesystems are more than the %d a freeze can hold", n,
			       GUARD_MOUNTS_MAX);
	g = calloc(1, sizeof(*g));
	if (!g)
		return err_nomem(e);
	g->sock = -1;
	g->pid = -1;
	g->freezer = -1;
	g->shared = mmap(NULL, sizeof(*g->shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (g->shared == MAP_FAILED) {
		g->shared = NULL;
		r = err_sys(e, "cannot start the freeze guard");
		goto fail;
	}
	settle_collect(&segments);
	r = guard_open_mounts(g, mounts, n, e);
	if (r == 0)
		r = guard_spawn(g, &segments, e);
	if (r < 0)
		goto fail;
	if (guard_receive(g, GUARD_FREEZE, &hello) < 0)
		hello.code = -EPIPE;
	if (hello.code == -EPIPE || hello.code == -EIO) {
		r = err_set(e, -ENOMEM, "the freeze guard was killed while it started (is there enough memory?)");
		goto fail;
	}
	if (hello.code < 0) {
		errno = -hello.code;
		r = err_sys(e, "cannot lock the freeze guard into memory (it needs root or CAP_IPC_LOCK)");
		goto fail;
	}
	r = heir_open(atomic_load(&g->shared->freezer), &g->freezer, e);
	if (r < 0)
		goto fail;
	*ret = g;
	return 0;
fail:
	track_guard_free(g);
	return r;
}

static int guard_explain(const struct track_guard *g, const struct guard_reply *r, double limit, struct err *e)
{
	const char *name = r->at >= 0 && (size_t)r->at < g->n ? g->names[r->at] : "?";

	switch (r->code) {
	case -EBUSY:
		return err_set(e, r->code,
			       "cannot freeze '%s': somebody else holds it frozen (thaw it with 'fsfreeze -u %s')",
			       name, name);
	case -ETIME:
		return err_set(
		    e, r->code,
		    "freezing took longer than the limit of %.1f s (at '%s') and was undone; try again when fewer "
		    "writes are going on",
		    limit, name);
	case -EALREADY:
		return err_set(e, r->code, "a freeze is already on or still being undone");
	case -EOWNERDEAD:
		return err_set(e, r->code, "the freeze guard was killed or stopped; what was frozen is thawed");
	case -EPERM:
	case -ENOMEM:
		errno = -r->code;
		return err_sys(e, "cannot freeze '%s'", name);
	default:
		/* Whatever the filesystem says, it isn't the network's, nor a read's. */
		return err_set(e, -ENOTRECOVERABLE, "cannot freeze '%s': %s", name, strerror(-r->code));
	}
}

/* Guard and freezer may both have been killed, or stopped: then it is on us. What is left of them ends. */
static void guard_take_over(struct track_guard *g)
{
	if (g->sock >= 0)
		close(g->sock);
	g->sock = -1;
	atomic_store(&g->shared->lost, 1);
	atomic_store(&g->shared->stop, 1);
	if (g->pid > 0)
		kill(-g->pid, SIGCONT); /* its process group: the freezer too */
	guard_thaw_after(g->shared, g->fds, g->n, g->freezer, false);
	atomic_store(&g->shared->state, GUARD_IDLE);
}

static char *guard_unfrozen(const struct track_guard *g)
{
	struct str s = {0};

	str_add(&s, "");
	for (size_t i = 0; i < g->n; i++)
		if (atomic_load(&g->shared->mounts[i]) == GUARD_UNSUPPORTED)
			str_addf(&s, "%s%s", s.len ? "," : "", g->names[i]);
	if (!str_ok(&s)) {
		str_release(&s);
		return NULL;
	}
	return str_take(&s);
}

int track_guard_freeze(struct track_guard *g, double limit_seconds, char **ret_unfrozen, struct err *e)
{
	struct guard_reply r = {0};
	char *unfrozen;

	if (!(limit_seconds > 0) || limit_seconds > TRACK_LIMIT_MAX)
		return err_set(e, -EINVAL, "a freeze limit of %g s is not between 0 and %g s", limit_seconds,
			       TRACK_LIMIT_MAX);
	if (guard_ask(g, GUARD_FREEZE, limit_seconds, &r) < 0) {
		guard_take_over(g);
		r.code = -EOWNERDEAD;
	}
	if (r.code < 0)
		return guard_explain(g, &r, limit_seconds, e);
	unfrozen = guard_unfrozen(g);
	if (!unfrozen) {
		track_guard_thaw(g, NULL, NULL, NULL);
		return err_nomem(e);
	}
	*ret_unfrozen = unfrozen;
	return 0;
}

int track_guard_thaw(struct track_guard *g, double *ret_seconds, bool *ret_intact, struct err *e)
{
	struct guard_reply r = {0};

	if (guard_ask(g, GUARD_THAW, 0, &r) < 0) {
		guard_take_over(g);
		r = (struct guard_reply){.seconds =
					     atomic_load(&g->shared->began) ? guard_now() - g->shared->since : 0};
	}
	if (r.code < 0)
		return guard_explain(g, &r, 0, e);
	if (ret_seconds)
		*ret_seconds = r.seconds;
	if (ret_intact)
		*ret_intact = r.intact;
	return 0;
}

bool track_guard_holds(struct track_guard *g)
{
	struct pollfd p = {.fd = g->sock};

	if (poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR)))
		return false; /* guard gone: its freezer has thawed */
	return atomic_load(&g->shared->state) == GUARD_HOLDING && !atomic_load(&g->shared->lost);
}

/*
 * A freezer in a call that doesn't return keeps the guard waiting. It holds no filesystem frozen then and thaws the one
 * it may still get: the agent needn't wait with it, and must not, for it has news for the center.
 */
static void guard_await_end(pid_t pid, double until)
{
	pid_t got = 0;

	while (pid > 0 && got == 0 && guard_now() < until) {
		got = waitpid(pid, NULL, WNOHANG);
		if (got < 0 && errno == EINTR)
			got = 0;
		if (got == 0)
			nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
	}
}

bool track_guard_free(struct track_guard *g)
{
	double until = guard_now() + GUARD_END_SECONDS;
	bool certain = true;

	if (!g)
		return true;
	if (g->sock >= 0)
		close(g->sock); /* the guard takes this as our end: thaws and exits */
	guard_await_end(g->pid, until);
	if (g->shared) {
		struct settle_segments segments;
		struct guard_child c = guard_child(g, &segments);

		settle_collect(&segments);
		certain = guard_bequeath(&c, until);
		munmap(g->shared, sizeof(*g->shared));
	}
	for (size_t i = 0; i < g->n; i++) {
		close(g->fds[i]);
		free(g->names[i]);
	}
	if (g->freezer >= 0)
		close(g->freezer);
	free(g->names);
	free(g->fds);
	free(g);
	return certain;
}

/* What a freezer of an agent that is gone has frozen, or will have when its call ends. */
static bool guard_thaw_left(int fd, int freezer, const struct settle_segments *segments, bool *ret_thawed)
{
	struct guard_child c = {
	    .segments = segments, .fds = {fd}, .n = 1, .sock = -1, .freezer = freezer, .left = true};
	bool certain;

	c.shared = mmap(NULL, sizeof(*c.shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (c.shared == MAP_FAILED)
		return false;
	atomic_store(&c.shared->mounts[0], GUARD_TRYING);
	certain = guard_bequeath(&c, guard_now() + GUARD_LEFT_SECONDS);
	*ret_thawed = certain && !atomic_load(&c.shared->lost);
	munmap(c.shared, sizeof(*c.shared));
	return certain;
}

int track_thaw(const char *mount, dev_t dev, struct err *e)
{
	_cleanup_close_ int fd = mounts_open(mount, dev, e);
	bool certain = true, thawed = false;
	struct settle_segments segments;
	int freezers[GUARD_LEFT_MAX], n;

	if (fd < 0)
		return fd;
	n = heir_find(fd, freezers, GUARD_LEFT_MAX, e);
	if (n < 0)
		return n;
	settle_collect(&segments);
	for (int i = 0; i < n; i++) {
		bool one = false;

		certain &= guard_thaw_left(fd, freezers[i], &segments, &one);
		thawed |= one;
		close(freezers[i]);
	}
	if (ioctl(fd, FITHAW, 0) == 0)
		thawed = true;
	else if (errno != EINVAL && errno != EOPNOTSUPP && errno != ENOTTY)
		return err_sys(e, "cannot thaw '%s'", mount);
	if (!certain)
		return err_set(
		    e, -EAGAIN,
		    "'%s' is still being frozen by an agent that was killed; it is thawed as soon as that ends", mount);
	return thawed;
}
