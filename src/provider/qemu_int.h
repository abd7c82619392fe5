/* Inside the module that starts QEMU: its command line, and the channels to it. */
#pragma once

#include <sys/types.h>

#include "base/str.h"
#include "provider/qemu.h"

#define QEMU_PROGRAM     "qemu-system-x86_64"
#define QEMU_SERIAL_KEPT (1u << 20) /* a power of two */

enum { CH_QMP, CH_PORT, CH_SERIAL, CH_STDERR, CH_COUNT };

struct qemu {
	pid_t pid;
	bool ended, no_space, reset;
	int fd[CH_COUNT];
	struct qemu_lines qmp, port;
	struct str serial;
	struct str complaint;
	json_int_t asked; /* the number of the last QMP command */
	json_t *reply;    /* its answer, if that wasn't taken */
	void (*console)(void *arg, const char *p, size_t n);
	void *console_arg;
};

/* ---- qemu_args.c ---- */

/* Strings owned by the list, NULL at the end. */
struct qemu_args {
	char *v[128 + 4 * QEMU_DISKS_MAX];
	size_t n;
	bool failed;
	int opened[QEMU_DISKS_MAX]; /* files that QEMU gets open, which are ours */
	size_t nopened;
};
/* `child`: QEMU's ends of the channels; -1: it has no such channel. */
int qemu_args_build(struct qemu_args *a, const struct qemu_settings *s, const int child[CH_COUNT], struct err *e);
void qemu_args_release(struct qemu_args *a);

/* ---- qemu_life.c: a machine that outlives us ---- */

/* Its socket, connected already, and the lock: *ret_listen and *ret_alive are for QEMU, *ret_qmp is ours. -EBUSY: one
 * runs there. */
int qemu_life_prepare(const struct qemu_life *life, int *ret_listen, int *ret_alive, int *ret_qmp, struct err *e);

/* ---- qemu.c ---- */
struct qemu *qemu_new(void);
int qemu_greet(struct qemu *vm, struct err *e);
