/*
 * The service. One loop talks with the center: it says how things are and learns what is wanted (level-triggered: the
 * center repeats a task for as long as it wants it, so nothing here needs to be remembered over a restart). One worker
 * thread does the task.
 *
 * Threads: the loop and the worker share struct run under `lock`. The *gate*: whoever touches files, logs or talks HTTP
 * passes it; while filesystems are frozen it is closed, because any of that could wait for a frozen filesystem, and
 * with it the thaw. Lock order: none, `lock` is the only one, and it is never held over I/O.
 */
#include <errno.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/log.h"
#include "base/str.h"
#include "base/util.h"
#include "disk/disk.h"
#include "track/track.h"
#include "version.h"

#define RUN_INVENTORY_SECONDS 600.0
#define RUN_ACTIVE_SECONDS    2.0 /* between syncs while a task is at work */
#define RUN_BACKOFF_MAX       30.0
#define RUN_HOLD_BACK         10.0 /* without a sync, when a freeze is about to come */
#define RUN_MOMENT            10.0 /* within which even a freeze of a moment has to end */

enum run_state { RUN_SENDING, RUN_DONE, RUN_FAILED };

struct run {
	const struct agent_options *opts;
	struct conf conf;
	struct http *http;
	char boot_id[64];

	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool quiet;       /* the gate is closed: frozen */
	unsigned busy;    /* who is inside the gate */
	double hold_back; /* monotonic; until then no sync begins */

	/* The worker; what it writes is under lock. */
	bool has_worker;
	pthread_t thread;
	struct task task;
	enum run_state state;
	bool ended;
	_Atomic uint64_t rate_mbit, compression; /* what may change of the task while it is sent */
	atomic_bool cancel;
	struct stream_progress progress;
	struct err error;
	json_t *result;
	char tracked[16], untracked[256]; /* how, or why not */
	char *unfrozen;                   /* "/boot/efi,..." that could not be frozen */
	struct tasklog log;               /* its own lock, within which nothing else is done */
	struct freeze freeze;             /* the worker's alone, as are: */
	char *hooks;
	char *note; /* a file that says what is about to be frozen */
	struct tracking tracking;
	struct trial trial;
	char **disk_paths;
	const char **devices; /* those of them that are devices, which alone can be frozen and tracked */
	size_t ndisks, ndevices;
	double expected_freeze;

	/* The loop's alone. */
	int wake; /* eventfd: the worker has ended */
	double interval, last_sync, inventory_at;
	bool inventory_due; /* with the word of a task's end: what ran when the copy was made */
	json_t *inventory;  /* taken at `surveyed`, kept until the center has it */
	double surveyed;
	unsigned failures;
	char trouble[ERR_MSG_MAX]; /* the last one, so that it is logged once */
};

/* ---- the gate ---- */

static void run_enter(struct run *r)
{
	pthread_mutex_lock(&r->lock);
	while (r->quiet)
		pthread_cond_wait(&r->cond, &r->lock);
	r->busy++;
	pthread_mutex_unlock(&r->lock);
}

static void run_leave(struct run *r)
{
	pthread_mutex_lock(&r->lock);
	r->busy--;
	pthread_cond_broadcast(&r->cond);
	pthread_mutex_unlock(&r->lock);
}

/* Closes the gate when everybody is out. */
static void run_quiet(struct run *r)
{
	pthread_mutex_lock(&r->lock);
	while (r->quiet || r->busy)
		pthread_cond_wait(&r->cond, &r->lock);
	r->quiet = true;
	pthread_mutex_unlock(&r->lock);
}

static void run_unquiet(struct run *r)
{
	pthread_mutex_lock(&r->lock);
	r->quiet = false;
	pthread_cond_broadcast(&r->cond);
	pthread_mutex_unlock(&r->lock);
}

static void run_log(struct run *r, enum log_level level, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static void run_log(struct run *r, enum log_level level, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	run_enter(r);
	log_line(level, "%s", text);
	run_leave(r);
}

/* ---- what the sender asks of us ---- */

static void run_hold_back(struct run *r, double until)
{
	pthread_mutex_lock(&r->lock);
	r->hold_back = until;
	pthread_mutex_unlock(&r->lock);
}

/* The gate opens first: the guard may take a while to end, the filesystems are thawed by then. */
static void run_let_go(struct run *r)
{
	struct err e = {0};

	if (r->freeze.guard) {
		freeze_stop(&r->freeze);
		run_hold_back(r, 0);
		run_unquiet(r);
	}
	if (freeze_after(&r->freeze, &e) < 0)
		run_log(r, LOG_LEVEL_WARN, "%s", e.msg);
}

static int run_ready(struct run *r, bool hooks, struct err *e)
{
	int rc;

	run_enter(r); /* looks at files, and may take its time to write back what is dirty */
	rc = freeze_prepare(&r->freeze, hooks, e);
	run_leave(r);
	if (rc < 0)
		run_let_go(r);
	return rc;
}

static int run_prepare(void *arg, bool again, struct err *e)
{
	struct run *r = arg;

	if (!again)
		return run_ready(r, true, e);
	/* A center that hangs would keep the gate open for its time, and the last round would be an old one. */
	run_quiet(r);
	run_hold_back(r, id_now_mono() + RUN_HOLD_BACK);
	run_unquiet(r);
	run_enter(r);
	freeze_sync(&r->freeze);
	run_leave(r);
	return 0;
}

/* Freezes behind a closed gate, or opens it again. */
static int run_hold(struct run *r, double limit, char **ret_unfrozen, struct err *e)
{
	int rc;

	run_quiet(r);
	rc = freeze_hold(&r->freeze, limit, ret_unfrozen, e);
	if (rc < 0 && !r->freeze.guard)
		run_unquiet(r);
	if (rc < 0)
		run_let_go(r);
	return rc;
}

static int run_freeze(void *arg, double limit, struct err *e)
{
	struct run *r = arg;
	char *unfrozen = NULL;
	int rc;

	run_log(r, LOG_LEVEL_INFO, "freezing the filesystems, expected %.1f s, at most %.1f s", r->expected_freeze,
		limit);
	rc = run_hold(r, limit, &unfrozen, e);
	if (rc < 0)
		return rc;
	pthread_mutex_lock(&r->lock);
	free(r->unfrozen);
	r->unfrozen = unfrozen;
	pthread_mutex_unlock(&r->lock);
	return 0;
}

static int run_thaw(void *arg, double *ret_seconds, bool *ret_intact, struct err *e)
{
	struct run *r = arg;
	double seconds = 0;
	bool intact = false;
	int rc;

	must(r->freeze.guard);
	rc = freeze_thaw(&r->freeze, &seconds, &intact, e);
	run_let_go(r);
	if (rc < 0)
		return rc;
	run_log(r, intact ? LOG_LEVEL_INFO : LOG_LEVEL_WARN, "thawed after %.3f s%s", seconds,
		intact ? "" : ", not by us: this pass does not count");
	if (ret_seconds)
		*ret_seconds = seconds;
	if (ret_intact)
		*ret_intact = intact;
	return 0;
}

/* A moment of it puts the journals in order; the hooks are for the real one. */
static int run_checkpoint(void *arg, int (*look)(void *look_arg, struct err *e), void *look_arg, double *ret_seconds,
			  bool *ret_intact, struct err *e)
{
	struct run *r = arg;
	_cleanup_free_ char *unfrozen = NULL;
	int rc = run_ready(r, false, e);

	if (rc == 0)
		rc = run_hold(r, RUN_MOMENT, &unfrozen, e);
	if (rc < 0)
		return rc;
	rc = look(look_arg, e);
	if (rc == 0)
		rc = track_guard_thaw(r->freeze.guard, ret_seconds, ret_intact, e);
	run_let_go(r); /* thaws, if it hasn't yet */
	return rc;
}

static void run_progress(void *arg, const struct stream_progress *p)
{
	struct run *r = arg;

	pthread_mutex_lock(&r->lock);
	r->progress = *p;
	r->expected_freeze = p->expected_freeze;
	pthread_mutex_unlock(&r->lock);
	tasklog_progress(&r->log, p);
}

static bool run_cancelled(void *arg)
{
	struct run *r = arg;

	return atomic_load(&r->cancel);
}

/* ---- the worker ---- */

static void run_free_paths(struct run *r)
{
	for (size_t i = 0; i < r->ndisks; i++)
		free(r->disk_paths[i]);
	free(r->disk_paths);
	free(r->devices);
	r->disk_paths = NULL;
	r->devices = NULL;
	r->ndisks = r->ndevices = 0;
}

/* Who chose disks at enrolment has said that the center may have no others. */
static bool run_may_send(const struct run *r, dev_t dev)
{
	struct stat st;

	for (size_t i = 0; i < r->conf.ndisks; i++)
		if (stat(r->conf.disks[i], &st) == 0 && S_ISBLK(st.st_mode) && st.st_rdev == dev)
			return true;
	return r->conf.ndisks == 0;
}

/* The disks of the task, or those chosen at enrolment, or all of this server. A file that holds an image is only ever
 * chosen at enrolment: the center could name any file. */
static int run_choose_disks(struct run *r, struct err *e)
{
	_cleanup_free_ struct agent_disk *all = NULL;
	size_t n = r->task.ndisks ? r->task.ndisks : r->conf.ndisks;
	bool chosen = !r->task.ndisks && n;

	if (!n && disklist_read(&all, &n, e) < 0)
		return e->code;
	if (!n)
		return err_set(e, -ENODEV, "this server has no disk to migrate");
	r->disk_paths = calloc(n, sizeof(*r->disk_paths));
	r->devices = calloc(n, sizeof(*r->devices));
	if (!r->disk_paths || !r->devices)
		return err_nomem(e);
	for (size_t i = 0; i < n; i++) {
		const char *path = all ? all[i].path : r->task.ndisks ? r->task.disks[i] : r->conf.disks[i];
		struct stat st;

		if (stat(path, &st) < 0 ||
		    !(S_ISBLK(st.st_mode) || (chosen && S_ISREG(st.st_mode) && !str_starts(path, "/dev/"))))
			return err_set(e, -ENODEV, "this server has no disk '%s'", path);
		if (!chosen && !run_may_send(r, st.st_rdev))
			return err_set(
			    e, -EPERM,
			    "disk '%s' is not among those chosen when this server was enrolled; enrol it again with "
			    "that disk",
			    path);
		r->disk_paths[i] = strdup(path);
		if (!r->disk_paths[i])
			return err_nomem(e);
		r->ndisks++;
		if (S_ISBLK(st.st_mode))
			r->devices[r->ndevices++] = r->disk_paths[i];
	}
	return 0;
}

static int run_address(struct run *r, char out[64], struct err *e)
{
	const char *host = *r->task.host ? r->task.host : r->conf.url.host;
	struct conf_url u;
	int rc;

	/* An IPv6 address needs no brackets here, which a URL would. */
	if (strchr(host, ':') || (conf_url_parse(host, &u, NULL) == 0 && u.numeric)) {
		if (strlen(host) >= 64)
			return err_set(e, -EINVAL, "'%s' is not an address", host);
		strcpy(out, host);
		return 0;
	}
	run_enter(r); /* reads /etc/resolv.conf */
	rc = http_resolve(host, out, e);
	run_leave(r);
	return rc;
}

static void run_add_unfrozen(struct run *r, json_t *result)
{
	_cleanup_free_ char *note = NULL;

	if (!r->unfrozen || !*r->unfrozen)
		return;
	note = str_printf("these mounts can't be frozen and were only synced: %s", r->unfrozen);
	if (note)
		json_array_append_new(json_object_get(result, "notes"), task_text(note));
}

static uint64_t run_rate(void *arg)
{
	return ((struct run *)arg)->rate_mbit;
}

static unsigned run_compression(void *arg)
{
	return (unsigned)((struct run *)arg)->compression;
}

static int run_send(struct run *r, struct disk *const *disks, struct err *e)
{
	const struct task *t = &r->task;
	const struct stream_send_ops ops = {.arg = r,
					    .prepare = run_prepare,
					    .freeze = run_freeze,
					    .thaw = run_thaw,
					    .checkpoint = run_checkpoint,
					    .progress = run_progress,
					    .cancelled = run_cancelled,
					    .rate_mbit = run_rate,
					    .compression = run_compression,
					    .tracker = r->tracking.track ? &r->tracking.ops : NULL};
	struct stream_send_params p = {.port = t->port,
				       .connections = t->connections,
				       .compression = t->compression,
				       .rate_mbit = t->rate_mbit,
				       .max_freeze = (double)t->max_freeze,
				       .checksum = t->checksum,
				       .leave_out = t->boot_only ? r->trial.leave_out : NULL,
				       .zero_unreadable = t->zero_unreadable,
				       .baseline = r->tracking.baseline};
	struct stream_result result = {0};
	char host[64];
	int rc;

	rc = run_address(r, host, e);
	if (rc < 0)
		return rc;
	p.host = host;
	strcpy(p.link.run, t->run);
	memcpy(p.link.psk, t->psk, sizeof(p.link.psk));
	p.link.clear = t->clear;
	task_drill(&p);
	rc = stream_send(&p, disks, r->ndisks, &ops, &result, e);
	if (rc < 0)
		return rc;
	pthread_mutex_lock(&r->lock);
	r->progress = result.totals;
	r->result = task_result(&result, (const char *const *)r->disk_paths, r->ndisks);
	run_add_unfrozen(r, r->result);
	if (r->trial.report)
		json_object_set(r->result, "test", r->trial.report);
	pthread_mutex_unlock(&r->lock);
	stream_result_release(&result);
	return 0;
}

/* Before the disks are opened: what the tracker doesn't see must not be believed. */
static int run_watch(struct run *r, struct err *e)
{
	free(r->hooks);
	r->hooks = str_printf("%s/hooks.d", r->opts->config_dir);
	if (!r->hooks)
		return err_nomem(e);
	r->freeze = (struct freeze){
	    .disks = r->devices, .n = r->ndevices, .hooks = r->hooks, .note = r->note, .doubt = r->freeze.doubt};
	if (r->ndevices == r->ndisks)
		tracking_start(&r->tracking, r->devices, r->ndevices, r->opts->runtime_dir);
	else
		tracking_stop(&r->tracking);
	if (r->ndevices < r->ndisks)
		snprintf(r->tracking.why, sizeof(r->tracking.why),
			 "there is a file among the disks, and writes to files aren't seen");
	pthread_mutex_lock(&r->lock);
	snprintf(r->tracked, sizeof(r->tracked), "%s", tracking_name(&r->tracking));
	snprintf(r->untracked, sizeof(r->untracked), "%s", r->tracking.why);
	pthread_mutex_unlock(&r->lock);
	if (r->tracking.track)
		log_info("writes are tracked (%s)%s%s", r->tracked, *r->untracked ? ": " : "", r->untracked);
	else
		log_warn("writes can't be tracked, the freeze will be longer: %s", r->untracked);
	return 0;
}

static int run_work(struct run *r, struct err *e)
{
	_cleanup_free_ struct disk **disks = NULL;
	int rc;

	run_enter(r);
	rc = run_choose_disks(r, e);
	if (rc == 0 && r->task.boot_only)
		rc = trial_begin(r->opts, (const char *const *)r->disk_paths, r->ndisks, &r->trial, e);
	if (rc == 0)
		rc = run_watch(r, e);
	disks = calloc(r->ndisks + 1, sizeof(*disks));
	for (size_t i = 0; disks && rc == 0 && i < r->ndisks; i++)
		rc = disk_open(r->disk_paths[i], DISK_DIRECT, &disks[i], e);
	run_leave(r);
	if (!disks)
		rc = err_nomem(e);
	if (rc == 0)
		rc = run_send(r, disks, e);
	for (size_t i = 0; disks && i < r->ndisks; i++)
		disk_close(disks[i]);
	return rc;
}

static void *run_thread(void *arg)
{
	struct run *r = arg;
	struct err e = {0};
	const uint64_t one = 1;
	int rc = run_work(r, &e);

	run_let_go(r); /* should the sender have left without thawing */
	tracking_rest(&r->tracking);
	run_log(r, rc < 0 ? LOG_LEVEL_ERROR : LOG_LEVEL_INFO, "run '%s': %s", r->task.run,
		rc < 0 ? e.msg : "all was sent");
	pthread_mutex_lock(&r->lock);
	r->error = e;
	r->state = rc < 0 ? RUN_FAILED : RUN_DONE;
	r->ended = true;
	pthread_mutex_unlock(&r->lock);
	if (write(r->wake, &one, sizeof(one)) < 0) {
		/* the loop looks again anyway */
	}
	return NULL;
}

static void run_settings(struct run *r, const struct task *t)
{
	r->rate_mbit = t->rate_mbit;
	r->compression = t->compression;
}

static void run_start(struct run *r, const struct task *t)
{
	r->task = *t;
	run_settings(r, t);
	r->state = RUN_SENDING;
	r->ended = false;
	r->inventory_due = true;
	r->error = (struct err){0};
	r->progress = (struct stream_progress){.seconds_left = -1, .expected_freeze = -1, .freeze_seconds = -1};
	r->expected_freeze = -1;
	*r->tracked = *r->untracked = '\0';
	r->hold_back = 0;
	atomic_store(&r->cancel, false);
	tasklog_begin(&r->log, t);
	run_log(r, LOG_LEVEL_INFO, "run '%s' of '%s' begins", t->run, t->job);
	if (pthread_create(&r->thread, NULL, run_thread, r) != 0) {
		run_log(r, LOG_LEVEL_ERROR, "cannot start a thread for run '%s'", t->run);
		return; /* the center goes on asking */
	}
	r->has_worker = true;
}

static void run_forget(struct run *r)
{
	pthread_join(r->thread, NULL);
	r->has_worker = false;
	json_decref(r->result);
	r->result = NULL;
	json_decref(take_ptr(&r->inventory));
	free(take_ptr(&r->unfrozen));
	free(take_ptr(&r->hooks));
	trial_end(&r->trial);
	run_free_paths(r);
	memset(&r->task, 0, sizeof(r->task));
}

/* ---- the loop ---- */

static json_t *run_task_report(struct run *r)
{
	static const char *const states[] = {[RUN_SENDING] = "sending", [RUN_DONE] = "done", [RUN_FAILED] = "failed"};
	json_t *o;

	if (!r->has_worker)
		return NULL;
	pthread_mutex_lock(&r->lock);
	o = json_pack("{s:s, s:s, s:o}", "run", r->task.run, "state", states[r->state], "progress",
		      task_progress(&r->progress));
	if (o && *r->tracked)
		task_tracking(json_object_get(o, "progress"), r->tracked, r->untracked);
	if (o && r->state == RUN_FAILED)
		json_object_set_new(o, "error", task_error(&r->error));
	if (o && r->result) {
		json_object_set_new(json_object_get(r->result, "test"), "time", json_real(id_now()));
		json_object_set(o, "result", r->result);
	}
	pthread_mutex_unlock(&r->lock);
	return o;
}

static bool run_wants_inventory(const struct run *r, bool over)
{
	return !r->inventory_at || (over && r->inventory_due) ||
	       (!r->has_worker && id_now_mono() - r->inventory_at > RUN_INVENTORY_SECONDS);
}

/* No more will be logged of it; the thread's last word is. */
static bool run_is_over(struct run *r)
{
	bool over;

	pthread_mutex_lock(&r->lock);
	over = !r->has_worker || r->ended;
	pthread_mutex_unlock(&r->lock);
	return over;
}

/* Taking one costs the server something: not again with each try to send it. */
static json_t *run_inventory(struct run *r)
{
	if (r->inventory && !r->has_worker && id_now_mono() - r->surveyed > RUN_INVENTORY_SECONDS)
		json_decref(take_ptr(&r->inventory));
	if (!r->inventory &&
	    discover_inventory((const char *const *)r->conf.disks, r->conf.ndisks, &r->inventory, NULL) == 0)
		r->surveyed = id_now_mono();
	return r->inventory;
}

static json_t *run_request(struct run *r, bool inventory, bool over)
{
	json_t *o = json_pack("{s:s, s:s}", "agent_version", REPLANT_VERSION, "boot_id", r->boot_id), *task,
	       *log = o ? tasklog_report(&r->log, over) : NULL;

	if (o && inventory && run_inventory(r))
		json_object_set(o, "inventory", r->inventory);
	/* A cancelled task is no longer the center's. */
	task = o && !atomic_load(&r->cancel) ? run_task_report(r) : NULL;
	if (task)
		json_object_set_new(o, "task", task);
	if (log)
		json_object_set_new(o, "log", log);
	return o;
}

static int run_exchange(struct run *r, struct task_reply *ret, struct err *e)
{
	bool over = run_is_over(r), inventory = run_wants_inventory(r, over);
	_cleanup_(jsn_decrefp) json_t *request = run_request(r, inventory, over), *answer = NULL;
	int status = 0, rc;

	if (!request)
		return err_nomem(e);
	rc = http_call(r->http, "/v1/agent/sync", r->conf.secret, request, &status, &answer, e);
	if (rc < 0)
		return rc;
	if (status == 401)
		return err_set(e, -EACCES,
			       "the center does not know this server any more: enrol it again with a new code");
	if (status >= 400)
		return http_refusal(status, answer, e);
	if (inventory) {
		r->inventory_at = id_now_mono();
		json_decref(take_ptr(&r->inventory));
	}
	if (inventory && over)
		r->inventory_due = false;
	rc = task_reply_parse(answer, ret, e);
	if (rc < 0)
		return err_prefix(e, "answer of the center");
	if (ret->has_task && strcmp(ret->task.run, r->task.run) == 0)
		tasklog_heard(&r->log, &ret->task);
	else if (over)
		tasklog_end(&r->log); /* all was sent, and it has come */
	return 0;
}

static void run_write_state(struct run *r)
{
	_cleanup_free_ char *path = str_printf("%s/agent.json", r->opts->runtime_dir), *text = NULL;
	_cleanup_json_ json_t *o = NULL;
	json_t *task = run_task_report(r);

	o = json_pack("{s:s, s:s, s:s, s:i, s:b, s:f, s:s*, s:o}", "version", REPLANT_VERSION, "center", r->conf.center,
		      "source", r->conf.source, "pid", (int)getpid(), "connected", !r->failures, "last_sync",
		      r->last_sync, "error", r->failures ? r->trouble : NULL, "task", task ? task : json_null());
	text = o ? jsn_text(o) : NULL;
	if (path && text)
		io_write_file_atomic(path, text, strlen(text), 0644, NULL);
}

static void run_failed(struct run *r, const struct err *e)
{
	r->failures++;
	if (strcmp(r->trouble, e->msg) != 0)
		log_warn("%s", e->msg);
	snprintf(r->trouble, sizeof(r->trouble), "%s", e->msg);
}

/* What the center wants against what is going on. */
static void run_apply(struct run *r, const struct task_reply *reply)
{
	bool ended;

	r->interval = reply->interval;
	if (!r->has_worker) {
		if (reply->has_task)
			run_start(r, &reply->task);
		return;
	}
	if (reply->has_task && strcmp(reply->task.run, r->task.run) == 0) {
		run_settings(r, &reply->task);
		return;
	}
	pthread_mutex_lock(&r->lock);
	ended = r->ended;
	pthread_mutex_unlock(&r->lock);
	if (!ended && !atomic_exchange(&r->cancel, true))
		run_log(r, LOG_LEVEL_INFO, "run '%s' is no longer wanted", r->task.run);
	if (!ended)
		return;
	run_forget(r);
	if (reply->has_task)
		run_start(r, &reply->task);
}

static bool run_holds_back(struct run *r)
{
	bool yes;

	pthread_mutex_lock(&r->lock);
	yes = r->has_worker && !r->ended && id_now_mono() < r->hold_back;
	pthread_mutex_unlock(&r->lock);
	return yes;
}

static void run_sync(struct run *r)
{
	struct task_reply reply;
	struct err e = {0};
	int rc;

	run_enter(r);
	if (run_holds_back(r)) { /* asked inside: who was kept waiting by run_prepare() must not go on */
		run_leave(r);
		return;
	}
	rc = run_exchange(r, &reply, &e);
	if (rc < 0) {
		run_failed(r, &e);
	} else {
		if (r->failures || !r->last_sync)
			log_info("in contact with the center '%s'", r->conf.center);
		r->failures = 0;
		r->trouble[0] = '\0';
		r->last_sync = id_now();
	}
	run_write_state(r);
	run_leave(r);
	if (rc == 0) {
		run_apply(r, &reply);
		OPENSSL_cleanse(&reply, sizeof(reply));
	}
}

/* Seconds to the next sync: what the center asked for, less while a task runs, more after failures, never in step with
 * others. */
static double run_pause(const struct run *r)
{
	double pause = r->interval, jitter;
	uint32_t dice;

	id_random(&dice, sizeof(dice));
	jitter = 0.5 + 0.5 * (double)dice / UINT32_MAX;
	if (r->failures)
		return MIN((double)(UINT64_C(1) << MIN(r->failures, 5u)), RUN_BACKOFF_MAX) * jitter;
	if (r->has_worker)
		return MIN(pause, RUN_ACTIVE_SECONDS);
	return pause * (0.9 + 0.1 * jitter);
}

/* Waits; true when it's time to end. */
static bool run_wait(struct run *r, int signals, double seconds)
{
	struct pollfd p[2] = {{.fd = signals, .events = POLLIN}, {.fd = r->wake, .events = POLLIN}};
	uint64_t count;

	poll(p, 2, (int)(seconds * 1000) + 1);
	if (p[1].revents && read(r->wake, &count, sizeof(count)) < 0)
		return false;
	return p[0].revents;
}

/* A worker that was cancelled and has ended is put away without waiting for the center. */
static void run_tidy(struct run *r)
{
	bool ended;

	if (!r->has_worker || !atomic_load(&r->cancel))
		return;
	pthread_mutex_lock(&r->lock);
	ended = r->ended;
	pthread_mutex_unlock(&r->lock);
	if (ended) {
		run_forget(r);
		atomic_store(&r->cancel, false);
	}
}

static void run_loop(struct run *r, int signals)
{
	do {
		run_tidy(r);
		run_sync(r);
	} while (!run_wait(r, signals, run_pause(r)));
	run_log(r, LOG_LEVEL_INFO, "ending");
	if (r->has_worker) {
		atomic_store(&r->cancel, true);
		run_forget(r);
	}
}

/* ---- beginning and end ---- */

static int run_signals(void)
{
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	return signalfd(-1, &set, SFD_CLOEXEC);
}

static int run_service(struct run *r, struct err *e)
{
	_cleanup_close_ int signals = -1, claim = -1;
	int rc = conf_load(r->opts->config_dir, &r->conf, e);

	if (rc == 0)
		rc = claim_take(r->opts->runtime_dir, &claim, e);
	r->note = str_printf("%s/frozen", r->opts->runtime_dir);
	if (rc == 0 && !r->note)
		rc = err_nomem(e);
	if (rc == 0)
		freeze_recover(r->note);
	if (rc == 0)
		rc = http_new(&r->conf.url, r->conf.ca_pem, NULL, &r->http, e);
	if (rc < 0)
		return rc;
	signals = run_signals();
	r->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (signals < 0 || r->wake < 0)
		return err_sys(e, "cannot prepare to wait");
	r->interval = 10;
	sysinfo_line("/proc/sys/kernel/random/boot_id", r->boot_id, sizeof(r->boot_id));
	run_loop(r, signals);
	return 0;
}

int agent_run(void *options, int argc, char **argv)
{
	struct run r = {.opts = options,
			.lock = PTHREAD_MUTEX_INITIALIZER,
			.cond = PTHREAD_COND_INITIALIZER,
			.wake = -1,
			.log.lock = PTHREAD_MUTEX_INITIALIZER};
	struct err e = {0};
	int rc;

	log_set(r.opts->verbose ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO, r.opts->log_json);
	if (geteuid() != 0) {
		log_error("the agent needs root: it reads disks and freezes filesystems");
		return 1;
	}
	log_tap(tasklog_line, &r.log);
	rc = run_service(&r, &e);
	if (rc < 0)
		log_error("%s", e.msg);
	log_tap(NULL, NULL);
	tasklog_end(&r.log);
	tracking_stop(&r.tracking);
	http_free(r.http);
	free(r.note);
	json_decref(r.inventory);
	if (r.wake >= 0)
		close(r.wake);
	conf_release(&r.conf);
	return rc < 0 ? 1 : 0;
}
