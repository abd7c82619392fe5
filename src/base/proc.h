/* Child processes without a shell, and giving up privileges. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct err;

struct proc_opts {
	int stdin_fd;     /* -1: /dev/null */
	int stdout_fd;    /* -1: /dev/null */
	int stderr_fd;    /* -1: inherited */
	bool die_with_us; /* SIGKILL when the thread that started it ends: start it from a thread that stays */
	bool detached;    /* nobody's child, in a session of its own: it stays when we end; *ret is 0 */
	bool session;     /* of its own: kill(-pid) reaches what it starts, too */
	const char *cwd;  /* NULL: ours */
	const char *user; /* when we are root: the child becomes that user, with no groups but /dev/kvm's and no way
			     back; NULL: ours */
	const int *keep;  /* further descriptors the child gets under the same number */
	size_t nkeep;
};
#define PROC_OPTS_INIT                                                                                                 \
	{                                                                                                              \
		.stdin_fd = -1, .stdout_fd = -1, .stderr_fd = -1                                                       \
	}

/* argv is NULL-terminated; argv[0] is looked up in PATH. All other descriptors are closed in the child. */
int proc_spawn(const char *const argv[], const struct proc_opts *o, pid_t *ret, struct err *e);
/* Waits; *ret_status is the exit code, or 128 + signal. */
int proc_wait(pid_t pid, int *ret_status, struct err *e);
/* SIGTERM, up to grace seconds, then SIGKILL; reaps. */
void proc_stop(pid_t pid, double grace);
/*
 * Runs to the end; what it wrote to stdout (at most max bytes) in *ret_out if ret_out is not NULL. A non-zero exit is
 * an error whose message has the last line of its stderr.
 */
int proc_run(const char *const argv[], size_t max, char **ret_out, struct err *e);
/* The same, asked a few times a second whether to give up: SIGTERM then, and -ECANCELED. The program has to end what it
 * started itself. */
int proc_run_unless(const char *const argv[], bool (*cancelled)(void *arg), void *arg, size_t max, char **ret_out,
		    struct err *e);
/* The same as proc_run() as `user` (proc_opts). */
int proc_run_as(const char *const argv[], const char *user, size_t max, char **ret_out, struct err *e);

/* Becomes `user` for good (groups too) and sets no_new_privs; a parent death signal stays. Not being root is fine and
 * does only the latter. */
int proc_drop(const char *user, struct err *e);
/* The directory our own program lies in, for finding its companions; buf holds PATH_MAX. */
int proc_self_dir(char *buf, size_t size, struct err *e);
