/*
 * The one place that starts QEMU and talks to it: QMP, a JSON-lines port to a program inside (virtio-serial), the
 * serial console. All three are socket pairs: no names in the filesystem, nobody else can connect. Nothing the guest
 * says is kept without bound.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct err;
struct qemu;

#define QEMU_DISKS_MAX 66

struct qemu_disk {
	const char *path;
	const char *format; /* "raw", "qcow2" */
	const char *serial; /* what the guest sees; at most 20 characters */
	bool readonly;      /* read through a descriptor of ours: its folder may be closed to the user */
	bool boot;          /* the firmware starts from it */
};

struct qemu_settings {
	const char *user;  /* QEMU runs as, when we are root; NULL: us */
	const char *accel; /* from qemu_accelerator() */
	unsigned memory_mib, cpus;
	const char *kernel, *initrd, *append; /* direct boot; NULL: firmware */
	const struct qemu_disk *disks;
	size_t ndisks;
	const char *port; /* name of the virtio-serial port */
	bool screen;      /* a VGA card, for screenshots */
	bool network;     /* a card that reaches nothing (restricted user network) */
	/* Is told what comes out of the serial line, and what QEMU complains about, as it comes; may be NULL. */
	void (*console)(void *arg, const char *p, size_t n);
	void *console_arg;
};

/*
 * "kvm" or "tcg", decided by running a guest of a few instructions for at most two seconds: a /dev/kvm that opens may
 * still not run anything. A success is remembered in `cache` until the host is restarted. *ret is static; any thread
 * may ask.
 */
int qemu_accelerator(const char *cache, const char *user, const char **ret, struct err *e);

/* Dies with the thread that calls this. */
int qemu_start(const struct qemu_settings *s, struct qemu **ret, struct err *e);
/* Ends it at once and reaps it. NULL is fine. */
void qemu_stop(struct qemu *vm);

/* Serves all channels for up to `timeout` seconds or until something arrived on the port or the machine ended. */
int qemu_pump(struct qemu *vm, double timeout, struct err *e);
bool qemu_ended(const struct qemu *vm);
/* QEMU has stopped the guest because a write found the host's disk full. */
bool qemu_no_space(const struct qemu *vm);
/* The next JSON line of the port: 1 and a new reference, 0 when none is waiting, -EPROTO for anything that isn't JSON.
 */
int qemu_next_event(struct qemu *vm, json_t **ret, struct err *e);
/* Sends one JSON line into the port (taken when the guest opens it). */
int qemu_send(struct qemu *vm, const json_t *request, struct err *e);
/* A QMP command; *ret_return (may be NULL) is a new reference. */
int qemu_command(struct qemu *vm, const char *command, json_t *arguments, json_t **ret_return, struct err *e);
/* The screen as a PNG file, which QEMU writes. */
int qemu_screenshot(struct qemu *vm, const char *path, struct err *e);

/* The end of what came out of the serial line (bounded, NUL-terminated, borrowed until the next pump). */
const char *qemu_serial(const struct qemu *vm);
/* What QEMU itself complained about, or "". */
const char *qemu_complaint(const struct qemu *vm);

/* Splits a stream into lines; for the port and QMP. Exposed for the fuzzer. */
struct qemu_lines {
	char *s;
	size_t len, cap;
	bool failed; /* a line was longer than allowed */
};
#define QEMU_LINE_MAX (4u << 20)
void qemu_lines_add(struct qemu_lines *l, const char *p, size_t n);
/* Takes the next complete line out: 1 and an object or array, 0, or -EPROTO. */
int qemu_lines_next(struct qemu_lines *l, json_t **ret, struct err *e);
void qemu_lines_release(struct qemu_lines *l);
