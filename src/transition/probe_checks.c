/* Programs that people gave, run in the copy of the server once it is up: are its services really there? */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/util.h"
#include "transition/transition_int.h"

#define CHECK_PATH   "/usr/lib/replant/check-%zu"
#define CHECKS_MAX   16u
#define OUTPUT_TAIL  4096u
#define TIMEOUT_MAX  600.0
#define LAST_WORDS   1.0 /* seconds for what is still in the pipe: a child in the background may keep it open */
#define STATUS_START 127 /* it could not be started */

struct check {
	pid_t pid;
	int fd; /* what it writes */
	bool ended, timed_out;
	int status;
	char tail[OUTPUT_TAIL + 1];
	size_t n;
};

static void check_keep(struct check *c, const char *p, size_t n)
{
	if (n > OUTPUT_TAIL) {
		p += n - OUTPUT_TAIL;
		n = OUTPUT_TAIL;
	}
	if (c->n + n > OUTPUT_TAIL) {
		size_t drop = c->n + n - OUTPUT_TAIL;

		memmove(c->tail, c->tail + drop, c->n - drop);
		c->n -= drop;
	}
	memcpy(c->tail + c->n, p, n);
	c->n += n;
}

/* False at the end of the pipe. */
static bool check_read(struct check *c, double seconds)
{
	struct pollfd p = {.fd = c->fd, .events = POLLIN};
	char buf[4096];
	ssize_t n;

	if (poll(&p, 1, (int)(seconds * 1000)) <= 0)
		return true;
	n = read(c->fd, buf, sizeof(buf));
	if (n > 0)
		check_keep(c, buf, (size_t)n);
	return n > 0 || (n < 0 && errno == EINTR);
}

static bool check_reap(struct check *c)
{
	int status;

	if (!c->ended && waitpid(c->pid, &status, WNOHANG) == c->pid) {
		c->ended = true;
		c->status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
	}
	return c->ended;
}

/* Until it has ended, or its time has. */
static void check_watch(struct check *c, double timeout)
{
	double end = id_now_mono() + timeout, last;
	bool open = true;

	while (!check_reap(c) && id_now_mono() < end) {
		if (open)
			open = check_read(c, 0.1);
		else
			usleep(50000);
	}
	if (!c->ended) {
		c->timed_out = true;
		kill(-c->pid, SIGKILL);
		kill(c->pid, SIGKILL);
		proc_wait(c->pid, &c->status, NULL);
	}
	for (last = id_now_mono() + LAST_WORDS; open && id_now_mono() < last;)
		open = check_read(c, 0.1);
	/* What it left in the background. */
	kill(-c->pid, SIGKILL);
}

static void check_start(struct check *c, const char *path)
{
	struct proc_opts o = PROC_OPTS_INIT;
	struct err e = {0};
	int p[2];

	c->fd = -1;
	if (pipe2(p, O_CLOEXEC) < 0)
		return;
	o.stdout_fd = o.stderr_fd = p[1];
	o.session = true;
	o.cwd = "/";
	if (proc_spawn((const char *[]){path, NULL}, &o, &c->pid, &e) == 0)
		c->fd = p[0];
	else
		close(p[0]);
	close(p[1]);
	if (c->fd < 0)
		check_keep(c, e.msg, strlen(e.msg));
}

static json_t *check_run(size_t i, const char *name, double timeout)
{
	struct check c = {.status = STATUS_START};
	double start = id_now_mono();
	char path[64];

	snprintf(path, sizeof(path), CHECK_PATH, i);
	check_start(&c, path);
	if (c.fd >= 0) {
		check_watch(&c, timeout);
		close(c.fd);
	}
	c.tail[c.n] = '\0';
	for (size_t k = 0; k < c.n; k++)
		if (!c.tail[k])
			c.tail[k] = '?';
	str_utf8(c.tail);
	return json_pack("{s:s, s:i, s:b, s:f, s:s}", "name", name, "status", c.status, "timed_out", c.timed_out,
			 "seconds", id_now_mono() - start, "output", c.tail);
}

json_t *probe_run_checks(const json_t *checks)
{
	json_t *list = json_array(), *o;
	size_t i;

	setenv("HOME", "/root", 1);
	json_array_foreach(checks, i, o)
	{
		const char *name = json_string_value(json_object_get(o, "name")) ?: "";
		double timeout = json_number_value(json_object_get(o, "timeout"));

		if (i < CHECKS_MAX)
			json_array_append_new(list, check_run(i, name, MIN(MAX(timeout, 1.0), TIMEOUT_MAX)));
	}
	return list;
}
