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
struct ip4_plan;
struct qemu;
struct str;

#define QEMU_DISKS_MAX    66
#define QEMU_FORWARDS_MAX 32

enum qemu_bus { QEMU_VIRTIO, QEMU_SCSI, QEMU_SATA };

struct qemu_disk {
	const char *path;
	const char *format; /* "raw", "qcow2" */
	const char *serial; /* what the guest sees; at most 20 characters */
	bool readonly;      /* read through a descriptor of ours: its folder may be closed to the user */
	bool boot;          /* the firmware starts from it */
};

/* A card on a network of its own, from which the guest reaches what the host reaches. */
struct qemu_net {
	const char *mac;     /* "52:54:00:..." */
	const char *address; /* "A.B.C.D", which its DHCP gives; the network is A.B.C.0/24 */
	struct {
		unsigned host, guest; /* ports: on 127.0.0.1, and the guest's */
	} forwards[QEMU_FORWARDS_MAX];
	size_t nforwards;
};

/*
 * Of a machine that outlives us: nothing of it is connected to us but what asks for it. It stays when the guest turns
 * itself off (its status is "shutdown" then), so that this is told from QEMU's own death; and it begins stopped, until
 * "cont".
 */
struct qemu_life {
	const char
	    *dir; /* ours alone: its QMP socket is there, and a file that it holds a lock of as long as it lives */
	const char *scratch; /* QEMU's: its pid file, the pictures of its screen */
	const int *keep;     /* descriptors that it holds as long as it lives */
	size_t nkeep;
};

struct qemu_settings {
	const char *user;  /* QEMU runs as, when we are root; NULL: us */
	const char *accel; /* from qemu_accelerator() */
	unsigned memory_mib, cpus;
	const char *cpu; /* NULL: the best there is */
	enum qemu_bus bus;
	const char *uefi_code, *uefi_vars;    /* NULL: BIOS */
	bool durable;                         /* what the guest flushes is on the host's disk */
	const struct qemu_net *net;           /* NULL: see `network` */
	const struct qemu_life *life;         /* NULL: it dies with the thread */
	const char *kernel, *initrd, *append; /* direct boot; NULL: firmware */
	const struct qemu_disk *disks;
	size_t ndisks;
	const char *port;            /* name of the virtio-serial port; NULL: none */
	bool screen;                 /* a VGA card, for screenshots */
	bool network;                /* a card that reaches nothing (restricted user network) */
	const struct ip4_plan *plan; /* that network is the one in which this address works; NULL: QEMU's own */
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

/* Dies with the thread that calls this, or has a life of its own. */
int qemu_start(const struct qemu_settings *s, struct qemu **ret, struct err *e);
/* Ends it at once and reaps it; one with a life of its own only isn't connected any more. NULL is fine. */
void qemu_stop(struct qemu *vm);

/* Serves all channels for up to `timeout` seconds or until something arrived on the port or the machine ended. */
int qemu_pump(struct qemu *vm, double timeout, struct err *e);
bool qemu_ended(const struct qemu *vm);
/* QEMU has stopped the guest because a write found the host's disk full. */
bool qemu_no_space(const struct qemu *vm);
/* The guest has restarted itself, which a machine of ours takes as its end. */
bool qemu_was_reset(const struct qemu *vm);
/* The next JSON line of the port: 1 and a new reference, 0 when none is waiting, -EPROTO for anything that isn't JSON.
 */
int qemu_next_event(struct qemu *vm, json_t **ret, struct err *e);
/* Sends one JSON line into the port (taken when the guest opens it). */
int qemu_send(struct qemu *vm, const json_t *request, struct err *e);
/* A QMP command; *ret_return (may be NULL) is a new reference. */
int qemu_command(struct qemu *vm, const char *command, json_t *arguments, json_t **ret_return, struct err *e);
/* The screen as a PNG file, which QEMU writes. */
int qemu_screenshot(struct qemu *vm, const char *path, struct err *e);

/* Of a machine with a life of its own, by its qemu_life.dir: does it live? 1, 0. */
int qemu_is_alive(const char *dir, struct err *e);
/* Connects to it. Only QMP goes over it; its serial line is read by qemu_read_serial(). */
int qemu_attach(const char *dir, struct qemu **ret, struct err *e);
/* Asks it to end (`ask`: unless it is known not to answer), else kills it; it is gone at success. */
int qemu_end(const struct qemu_life *life, bool ask, struct err *e);
/* What came out of the serial line since the last call, as far as it was kept, is added to *ret. */
int qemu_read_serial(struct qemu *vm, struct str *ret, struct err *e);
/* "running", "shutdown", "io-error", ... */
int qemu_status(struct qemu *vm, char *buf, size_t size, struct err *e);
/* The name of the node that disk i is written to; a snapshot puts another on top. */
#define QEMU_NODE_MAX 32
int qemu_disk_node(struct qemu *vm, size_t i, char node[QEMU_NODE_MAX], struct err *e);

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
