/* Private to the agent: its commands, where it keeps things, and the parts the commands share. */
#pragma once

#include <jansson.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/log.h"
#include "base/opt.h"
#include "base/redact.h"
#include "stream/stream.h"

struct err;

/* ---- command line (main.c) ---- */
#define AGENT_CONFIG_DIR  "/etc/replant"
#define AGENT_RUNTIME_DIR "/run/replant"
#define AGENT_PIN         "/sys/fs/bpf/replant" /* where a tracking outlives the agent */
#define AGENT_PROGRAM     "/usr/local/sbin/replant-agent"
#define AGENT_UNIT        "replant-agent.service"
#define AGENT_UNIT_PATH   "/etc/systemd/system/" AGENT_UNIT

struct agent_options {
	const char *config_dir, *runtime_dir;
	bool json, verbose, log_json;
	const char *center; /* check, enroll */
	const char *code;   /* enroll */
	bool no_service;
	/* send */
	const char *to, *run, *psk_file, *on_read_error;
	struct opt_list disks;
	uint64_t connections, compress, rate;
	bool checksum, clear, no_freeze, no_tracking, keep_tracking;
	const char *max_freeze;
	uint64_t patience;
};

/* The commands; exit codes 0, 1 failed, 2 usage, 75 temporary. */
int agent_check(void *options, int argc, char **argv);
int agent_discover(void *options, int argc, char **argv);
int agent_enroll(void *options, int argc, char **argv);
int agent_run(void *options, int argc, char **argv);
int agent_status(void *options, int argc, char **argv);
int agent_uninstall(void *options, int argc, char **argv);
int agent_send(void *options, int argc, char **argv);

/* ---- what a server has (discover.c and its parts): new references, never NULL but when out of memory ---- */
struct agent_disk {
	char name[64]; /* "sda" */
	char path[80]; /* "/dev/sda" */
	uint64_t size; /* bytes */
	uint32_t logical, physical;
	bool rotational, removable, read_only;
	char model[128], serial[128];
};
/* The disks that a migration takes: no loop, ram, zram, floppy, optical, device-mapper or md devices. *ret is freed by
 * the caller. */
int disklist_read(struct agent_disk **ret, size_t *ret_n, struct err *e);
/* One disk by its path; any block device, or a file that holds an image. */
int disklist_one(const char *path, struct agent_disk *ret, struct err *e);
/* The partitions the kernel has of a disk, by number and kernel name ("sda1"). */
struct disklist_part {
	unsigned number;
	char name[80];
};
int disklist_parts(const struct agent_disk *d, struct disklist_part *out, size_t max, size_t *ret_n);
/* Fills `inventory` with disks, volumes and filesystems; what can't be read becomes a warning. */
int contents_add(json_t *inventory, json_t *warnings, const struct agent_disk *disks, size_t n);
int sysinfo_add(json_t *inventory); /* os, kernel, cpu, memory, boot ... */
int netinfo_add(json_t *inventory);
/* paths: only these disks; n 0: all of the server's. */
int discover_inventory(const char *const *paths, size_t n, json_t **ret, struct err *e);

/* /etc/os-release as an object of id, name, version_id, version_codename, pretty_name. */
json_t *sysinfo_os_parse(const char *text);
/* First line of a small file without its newline; "" when it can't be read. */
const char *sysinfo_line(const char *path, char *buf, size_t size);

/* ---- the center (conf.c, http.c) ---- */
struct conf_code {
	char id[24]; /* "0123456789abcdef" */
	char secret[65];
	uint8_t ca[32]; /* SHA-256 of the DER of the center's CA */
};
/* "<id>.<secret>.<fingerprint in hex>" */
int conf_code_parse(const char *s, struct conf_code *ret, struct err *e);

struct conf_url {
	char host[256]; /* name or address, without brackets */
	uint16_t port;
	bool numeric;
};
/* "https://host[:port][/]"; the scheme may be left out. Default port 8443. */
int conf_url_parse(const char *s, struct conf_url *ret, struct err *e);

#define CONF_CA_MAX    65536
#define CONF_DISKS_MAX 64
struct conf {
	char center[300]; /* normalised URL */
	struct conf_url url;
	char source[48];
	char secret[130];
	char *ca_pem;
	char *disks[CONF_DISKS_MAX]; /* paths; none: all of this server */
	size_t ndisks;
};
int conf_load(const char *dir, struct conf *ret, struct err *e);
int conf_add_disk(struct conf *c, const char *path, struct err *e);
int conf_store(const char *dir, const struct conf *c, struct err *e);
void conf_release(struct conf *c);

struct http;
/* Exactly one of ca_pem and fingerprint (32 bytes) is given: whom to trust. Nothing is connected yet. */
int http_new(const struct conf_url *url, const char *ca_pem, const uint8_t *fingerprint, struct http **ret,
	     struct err *e);
void http_free(struct http *h); /* NULL is fine */
/*
 * Sends `body` (NULL: a GET) and waits for the answer, a JSON object of at most 4 MiB, *ret NULL when it is empty. 0
 * with any HTTP status; errors: -ECONNREFUSED ..., -ETIMEDOUT, -EKEYREJECTED when the center can't prove who it is,
 * -EPROTO.
 */
int http_call(struct http *h, const char *path, const char *bearer, const json_t *body, int *ret_status, json_t **ret,
	      struct err *e);
/* The CA that was found by its fingerprint, as PEM; NULL before the first call went well. The caller frees. */
char *http_ca_pem(struct http *h);
/* Is that certificate the one with this fingerprint? */
bool http_is_ca(const char *pem, const uint8_t fingerprint[32]);
/* Turns a name into a numeric address by DNS, /etc/hosts included. out holds 64. */
int http_resolve(const char *host, char out[64], struct err *e);
/* Turns an answer with status >= 400 into an error: -EACCES 401 and 403, -ENOENT, -EBUSY 429 and 503 ... */
int http_refusal(int status, const json_t *answer, struct err *e);

/* ---- the task the center gives (task.c) ---- */
#define TASK_DISKS_MAX 64
struct task {
	char run[48], job[48];
	char host[256]; /* "" : the center's */
	uint16_t port;
	uint8_t psk[STREAM_PSK_SIZE];
	unsigned connections, compression;
	uint64_t rate_mbit, max_freeze; /* seconds; 0: the default */
	bool checksum, zero_unreadable, clear;
	bool boot_only;                 /* a migration test: only what is needed to boot, and a look at the server */
	bool has_log;                   /* the center wants to know what is logged, */
	uint64_t log_at;                /* and has so much of it */
	char disks[TASK_DISKS_MAX][80]; /* paths; none: all */
	size_t ndisks;
};
struct task_reply {
	double interval; /* seconds, 1..3600 */
	bool has_task;
	struct task task;
};
int task_reply_parse(const json_t *o, struct task_reply *ret, struct err *e);
const char *task_phase(enum stream_phase phase);
json_t *task_progress(const struct stream_progress *p);
json_t *task_result(const struct stream_result *r, const char *const *disks, size_t n);
/* {code, message, temporary} */
json_t *task_error(const struct err *e);
/* How writes are tracked ("bpf", "ring"), or "compare"; and why not better. */
void task_tracking(json_t *o, const char *how, const char *why);
/* A number of seconds as people write it: -EINVAL. */
int task_seconds(const char *text, double min, double max, double *ret);
json_t *task_text(const char *s); /* a string, also of bytes that aren't UTF-8 */
/* For drills: REPLANT_RECONNECT and REPLANT_STALL shorten the patience with the network; seconds. */
void task_drill(struct stream_send_params *p);

/* ---- a migration test: what of a run it changes (trial.c) ---- */
struct trial {
	bool leave_out[TASK_DISKS_MAX]; /* disks that nothing is booted from: sent as if they were empty */
	json_t *report;                 /* {"checks":[...],"left_out":[paths],"time"} */
};
/* What the server would boot from goes by the inventory of all its disks; what isn't known for sure is sent. */
void trial_choose(const json_t *inventory, const char *const *disks, size_t n, bool *ret_leave_out);
/* Looks at the server: takes a second or so. */
int trial_begin(const struct agent_options *o, const char *const *disks, size_t n, struct trial *ret, struct err *e);
void trial_end(struct trial *t);
/* The findings of `check` but those about agent and center, {check, result, message, remedy} each. New reference. */
json_t *check_server(const struct agent_options *o, const json_t *inventory);

/* ---- what is logged while a task runs, for the center (tasklog.c); any thread ---- */
#define TASKLOG_MAX   (256u << 10) /* kept for a center that can't be reached */
#define TASKLOG_PIECE (64u << 10)  /* sent at a time while the task runs */
struct tasklog {
	pthread_mutex_t lock;
	char run[48]; /* "": nothing is kept */
	char *text;
	size_t len;
	uint64_t at; /* where in the center's text ours begins */
	struct redact redact;
	bool told; /* the next two */
	enum stream_phase phase;
	unsigned round;
};
void tasklog_begin(struct tasklog *t, const struct task *task);
/* For log_tap(). */
void tasklog_line(void *tasklog, enum log_level level, const char *message);
/* A line when there is another phase or round. */
void tasklog_progress(struct tasklog *t, const struct stream_progress *p);
/* The center asks for the task again, and says how much of the log it has. */
void tasklog_heard(struct tasklog *t, const struct task *task);
/* What the center isn't known to have, or a piece of it; NULL when there is nothing. */
json_t *tasklog_report(struct tasklog *t, bool all);
void tasklog_end(struct tasklog *t);

/* ---- freezing (freeze.c) ---- */
struct track_guard;
struct freeze {
	const char *const *disks; /* borrowed */
	size_t n;
	const char *hooks; /* the directory of hooks, borrowed; NULL: there are none */
	const char *note;  /* a file that says what is about to be frozen, borrowed; NULL: none */
	/* its own */
	struct track_guard *guard;
	char **mounts;
	size_t nmounts;
	bool hooked;
	bool
	    doubt; /* something may still become frozen: the note stays, also after later freezes, for the next start */
	pid_t left; /* a hook that was killed and could not end */
};
/* While all is at work still: hooks "pre-freeze", if asked for; what is dirty is written back. */
int freeze_prepare(struct freeze *f, bool hooks, struct err *e);
/* Writes back what has become dirty since. */
void freeze_sync(const struct freeze *f);
/* Freezes, then runs the hooks "post-freeze". *ret_unfrozen: as track_guard_freeze(). */
int freeze_hold(struct freeze *f, double limit, char **ret_unfrozen, struct err *e);
/* Thaws. -EAGAIN: something was mounted meanwhile. */
int freeze_thaw(struct freeze *f, double *ret_seconds, bool *ret_intact, struct err *e);
/* Thaws if it is still frozen, and nothing else. */
void freeze_stop(struct freeze *f);
/* Whatever came of it: all is let go, and the hooks "post-thaw" run if those before did. */
int freeze_after(struct freeze *f, struct err *e);
void freeze_let_go(struct freeze *f);
/*
 * At the start: thaws what is in the note of an agent that was killed together with its guard. Not to be called while
 * another agent may freeze.
 */
void freeze_recover(const char *note);

/* ---- tracking (tracking.c) ---- */
struct track;
struct tracking {
	struct track *track; /* NULL: these disks can't be tracked, or weren't to be */
	struct stream_tracker ops;
	char *baseline; /* NULL: nothing is kept for the next run */
	char why[256];  /* there is none, or not the best */
};
/*
 * runtime: where to keep what the next run may rely on, and the tracking goes on after this one; NULL: nothing stays.
 * What tracking_rest() left is gone on with, if it is of these disks and to be trusted.
 */
void tracking_start(struct tracking *t, const char *const *disks, size_t n, const char *runtime);
const char *tracking_name(const struct tracking *t); /* "bpf", "ring", "compare" */
/* After a run: what is pinned goes on by itself; where nothing can be, the tracker stays with this process. */
void tracking_rest(struct tracking *t);
void tracking_stop(struct tracking *t);
/* Ends what an earlier run left going on. */
int tracking_remove(const char *runtime, struct err *e);

/* ---- one agent at a time (claim.c) ---- */
/* The descriptor holds the lock of the runtime directory until it is closed. -EBUSY: an agent runs. */
int claim_take(const char *runtime, int *ret_fd, struct err *e);
/* Does an agent hold it? 1, 0; negative: we may not know. */
int claim_look(const char *runtime);

/* ---- installing (service.c) ---- */
/* Stops the service, if it is systemd's. */
int service_stop(struct err *e);
int service_install(struct err *e);
bool service_systemd(void); /* is systemd running here? */
/* Removes unit and program of a service that was stopped; a line per thing done on stdout. */
int service_remove(struct err *e);
