/* Inside of the center: the engine that carries jobs. One thread per running job (runner.c), one per
 * background task, and a clockwork. What is only in memory can be lost at any time; everything else is in the
 * store before anybody hears of it. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "api/api.h"
#include "base/id.h"
#include "base/jsn.h"
#include "base/redact.h"
#include "base/str.h"
#include "base/util.h"
#include "center/center.h"
#include "store/store.h"

#define ENGINE_SEEN_BUCKETS 1024u
#define ENGINE_RETRIES      5u  /* of a transfer that brings nothing new */
#define ENGINE_ATTEMPTS     20u /* that failed, of one run, are remembered */
#define ENGINE_STORE_PAUSE  5.0 /* seconds until a store that failed is asked again */

/* What one stage failed with. */
struct engine_failure {
	char code[48];
	char message[ERR_MSG_MAX];
	bool temporary;
};

/* What a stage whose work can't be counted consists of (pace.c). */
enum pace_part { PACE_CHECK, PACE_CONVERT, PACE_IMAGE, PACE_IMAGE_CHECK, PACE_TEST_BOOT, PACE_CLEANING, PACE_PARTS };

struct pace {
	double expected[PACE_PARTS]; /* seconds; 0: not part of the stage */
	unsigned done;               /* bits */
	enum pace_part part;         /* under way, or PACE_PARTS */
	double began;                /* monotonic */
};

/* ---- joblog.c: what is said in a job's runs. STATE/logs/JOB/NUMBER-PART-START.log are pieces of a text, START is
 * where in it the piece begins. ---- */
enum joblog_part { JOBLOG_AGENT, JOBLOG_RECEIVER, JOBLOG_CONVERSION, JOBLOG_BOOT, JOBLOG_PARTS };
extern const char *const joblog_parts[]; /* "agent" ... */
#define JOBLOG_LINE 1024u

/* Lines out of what comes from a console, and of our own, on their way into one text. One thread's. */
struct joblog_feed {
	struct live *live;
	enum joblog_part part;
	struct redact redact;
	int escape; /* inside of an escape sequence of a terminal */
	char line[JOBLOG_LINE];
	size_t n;
	struct str out; /* whole lines */
	double told;    /* monotonic: progress, last */
};

/* A job that has a runner. Fields below `lock` belong to the engine's lock. */
struct live {
	struct engine *engine;
	struct live *next;
	char job[ID_MAX], source[ID_MAX];
	bool converted;           /* the runner's: steps of the conversion were seen */
	struct joblog_feed *feed; /* the runner's: of what it does now, or NULL */
	atomic_bool logs;         /* its logs are wanted */

	/* -- lock -- */
	bool cancel; /* the current call is to give up */
	bool again;  /* started once more while the runner was leaving */
	bool lost;   /* the job may be another center's; nothing more is done here */
	char step_name[32], step_text[160];
	int stage; /* that step and pace are of */
	struct pace pace;
	json_t *progress;
	double saved; /* monotonic, when progress last went to the store */
	uint64_t tick;
	/* the run's offer to the agent; port 0: nothing to send yet */
	char run[ID_MAX], psk[65], host[256]; /* host "": the center's own */
	uint16_t port;
	json_t *parameters;
	double active; /* monotonic, when anybody reported progress of the run */
	double absent; /* monotonic, when the source was seen to be away last; 0: never */
	uint64_t received;
	uint64_t number;         /* of the run; the runner's to change */
	uint64_t log_at;         /* how long the agent's text of it is */
	uint64_t written_before; /* by earlier attempts: what a replica holds already */
	bool agent_failed, receiver_failed, gave_up;
	struct engine_failure agent_failure, receiver_failure, give_up;
};

struct seen {
	struct seen *next;
	char source[ID_MAX];
	double mono, wall; /* last heartbeat */
	double stored;     /* wall time that the store knows */
	bool online;       /* as last announced */
	bool again;        /* the row couldn't be written */
	bool fresh;        /* other centers don't know of it yet */
};

struct hold;
struct hyper;
struct ask;
struct remote;

/* Who does what with an image: boots one at a time, exports any number, removal alone. Under the lock. */
enum image_use { IMAGE_BOOT, IMAGE_EXPORT, IMAGE_REMOVE, IMAGE_USES };

struct image_mark {
	struct image_mark *next;
	char image[ID_MAX];
	unsigned uses[IMAGE_USES];
};

enum task_kind {
	TASK_BOOT,
	TASK_EXPORT,
	TASK_REMOVE_JOB,
	TASK_REMOVE_IMAGE,
	TASK_TRIM,
	TASK_INSTANCE,
	TASK_REFRESH,
	TASK_SWITCH,
	TASK_SWEEP,
	TASK_CHECK
};

/* How a task went, for who waits for its end. */
struct task_outcome {
	bool ended;
	int r;
	struct api_fault fault;
};

#define ENGINE_ANYBODY (-1) /* engine_job_event(): the job may be anywhere */
#define ENGINE_CLOCK   (-2) /* the same; it is the clock that asks, and the job must be due */

struct task {
	struct engine *engine;
	struct task *next;
	enum task_kind kind;
	char id[ID_MAX];
	char image[ID_MAX]; /* marked as used until the end, or "" */
	char lease[ID_MAX]; /* that is dropped at the end, or "" */
	double noted;       /* monotonic, last progress written */
	bool cancel;
	struct task_outcome outcome;
	struct task_outcome *waiter; /* gets a copy; NULL when nobody waits (any more) */
};

struct engine {
	struct center_settings s;
	struct store *store;
	struct provider *provider;
	struct api *api;
	char state[4096], exports[4096], logs[4096], listen[64];
	char dir[4200], cache[4200], programs[4200]; /* what provider and hypervisors get */
	pthread_mutex_t log_lock;                    /* files below `logs` */
	atomic_bool bundling;

	/* Order: log_lock, the store's, then this one. Nothing here calls the store while it holds this. */
	pthread_mutex_t lock;
	pthread_cond_t changed; /* a thread left, or stopping; monotonic */
	bool stopping;
	struct live *live;
	struct task *tasks;
	struct image_mark *marks;
	struct hyper *hypers;
	char start[ID_MAX]; /* of this run of the center; fixed */
	struct ask *asks;   /* of hypervisors, under way */
	struct seen *seen[ENGINE_SEEN_BUCKETS];
	bool trim_wanted;             /* layers may be free */
	double trim_after, trim_wait; /* one that failed is not tried again before; how long that was */
	uint64_t tick, tick_announced;
	json_t *held;            /* sums of what was kept at the last look; NULL: there was none */
	double pace[PACE_PARTS]; /* what parts take on this host; 0: not known */
	struct notify *notify;   /* notify.h */
	pthread_t clockwork;
	bool clockwork_runs;

	/* share.c; below the lock unless said otherwise */
	char id[ID_MAX], data_host[256]; /* fixed */
	unsigned char psk_key[32];       /* fixed */
	pthread_mutex_t share_lock;      /* of taking and dropping leases; before the store's lock */
	struct hold *holds;
	uint64_t hold_serial;
	struct remote *remotes;
	double lease_until; /* what we have a lease of is ours at least until then */
	unsigned leaving;   /* threads that are out of the lists but not gone */
	bool share_ending;
	uint64_t last_event; /* the keeper's */
	pthread_t keeper, feeder;
	bool keeper_runs;
	pid_t watch;
	int watch_fd;
};

static inline void engine_unlockp(struct engine **e)
{
	pthread_mutex_unlock(&(*e)->lock);
}
/* Until the end of the scope. */
#define ENGINE_LOCK(e)                                                                                                 \
	_cleanup_(engine_unlockp) struct engine *locked_ = (e);                                                        \
	pthread_mutex_lock(&locked_->lock)

/* serve.c: with the clock that nobody sets */
void engine_cond_init(pthread_cond_t *c);

/* engine.c */
int engine_start(struct engine *en, struct err *e);
void engine_stop(struct engine *en);
struct api_engine engine_api(struct engine *en);
/* One event of a job, from anybody; `expected` (a stage, or one of the above) refuses it when the job is in another
 * stage. 0, or -1 with the fault. */
int engine_job_event(struct engine *en, const char *job, int expected, enum job_event event,
		     const struct engine_failure *failure, struct api_fault *f);
/* Reads, changes and writes a job in one transaction while it's in the stage. */
/* What other people see of it, under the lock. New reference. */
json_t *engine_tick_json(const struct live *l);
/* What an agent said of the run, under the lock. */
void engine_take_report(struct live *l, const struct model_task_request *t, const struct model_error_request *error);
int engine_job_change(struct engine *en, const char *job, int stage, void (*change)(struct model_job *job, void *arg),
		      void *arg, struct err *e);
void engine_wake(struct engine *en);

/* Rows to do something about when their listing is over: nothing may be written in it. */
struct engine_ids {
	char (*v)[ID_MAX];
	size_t n;
	double now;        /* for who collects; the next two as well */
	uint64_t number;   /* of runs */
	unsigned to_spare; /* that many are left alone */
};
int engine_ids_add(struct engine_ids *l, const char *id);
struct live *engine_live(struct engine *en, const char *job); /* under the lock */
struct live *engine_live_of_source(struct engine *en, const char *source);
void engine_step(struct live *l, const char *name, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* share.c: several centers on one store. Without a shared one all is ours. */
int share_watch(struct engine *en, struct err *e);
void share_unwatch(struct engine *en);
int share_start(struct engine *en, struct err *e);
void share_stop(struct engine *en);
/* The right to work on the job, the image or what else has the name: 0, and share_drop() is due, which counts. Not in a
 * transaction. */
int share_take(struct engine *en, const char *name);
void share_drop(struct engine *en, const char *name);
bool share_holds(struct engine *en, const char *name);
/* Under the lock: we may have no lease any more, because none could be renewed for too long. */
bool share_over(const struct engine *en);
/* The calling thread writes only as long as the lease is ours. */
void share_fence(struct engine *en, const char *name);
/* Asks whether the fence lets the calling thread write: -ECANCELED when it doesn't. Before what nobody else must do at
 * the same time. */
int share_confirm(struct engine *en, struct err *e);
/* To the center that has the lease, if it is another: stop what is under way, or only look at the row again. */
int share_call(struct engine *en, const char *name, bool stop, struct err *e);
/* Under the lock: as far as is heard, another center has it. */
bool share_is_remote(struct engine *en, const char *name);
/* Under the lock, of what another center carries: its progress (new reference, NULL), its steps. */
json_t *share_progress(struct engine *en, const char *job);
void share_overlay(struct engine *en, struct model_job *job);
void share_ticks(struct engine *en, uint64_t since, json_t *list);
/* A heartbeat of a source whose job another center carries: true, *ret_task may be set. */
bool share_sync(struct engine *en, const char *source, const struct model_task_request *task,
		const struct model_error_request *error, json_t **ret_task);
void share_psk(const struct engine *en, const char *run, char ret[65]);

/* hypervisors.c: the one of a region, opened when first asked for. */
int engine_hypervisor(struct engine *en, const char *region, struct hypervisor **ret, struct err *e);
/* One that is no region's yet, which the caller closes. */
int engine_hypervisor_try(struct engine *en, const char *provider, const json_t *settings, struct hypervisor **ret,
			  struct err *e);
void engine_hypervisors_close(struct engine *en);
/* For the API. */
json_t *engine_region_info(void *arg, const char *region);

/* schedule.c: the runs of a job */
/* Before the job takes the answer's state: numbers, what began the run, when the next is due. */
void schedule_apply(struct engine *en, struct model_job *job, const struct job_answer *a, enum job_event event,
		    bool clock, const struct engine_failure *failure, double now);
/* Starts what is due. */
void schedule_tick(struct engine *en);
/* The interval has changed. */
void schedule_replan(struct engine *en, const char *job);
/* More images than the job keeps: the oldest that nobody uses go. */
void schedule_keep_images(struct engine *en, const char *job);
/* What couldn't be removed behind its run, or a killed center had no time for. */
void schedule_tend(struct engine *en);
/* The image of the run that is on has been made. */
bool schedule_has_image(const struct model_job *job);

/* joblog.c */
/* How long the text is: what comes next belongs there. */
uint64_t joblog_end(struct engine *en, const char *job, uint64_t run, enum joblog_part part);
/* What there is, an array of {run, part, size, end, updated}; NULL when out of memory. */
json_t *joblog_list(struct engine *en, const char *job);
/* The text from `since` on, with a line where something is missing. run 0: the newest that has the part. -ENOENT. */
int joblog_read(struct engine *en, const char *job, uint64_t run, enum joblog_part part, uint64_t since,
		struct str *ret, uint64_t *ret_end, struct err *e);
int joblog_remove(struct engine *en, const char *job, struct err *e);
/* What belongs to no job any more. */
void joblog_sweep(struct engine *en);
/* -1: not a part. */
int joblog_part_of(const char *word);
/* The job's wish has changed. */
void joblog_want(struct engine *en, const char *job, const json_t *parameters);
bool joblog_is_wanted(const json_t *parameters);
/* What an agent sent, if the run is one of its source's; nothing else may fail for that. */
void joblog_of_agent(struct engine *en, const char *source, const struct model_log_request *log);

void joblog_open(struct joblog_feed *f, struct live *l, enum joblog_part part);
/* From a console: control characters and colours go. */
void joblog_console(struct joblog_feed *f, const char *p, size_t n);
/* One line; f may be NULL. */
void joblog_say(struct joblog_feed *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void joblog_close(struct joblog_feed *f);

/* bundle.c: all that is known of a job, without secrets, as a .tar.gz. */
int bundle_make(void *arg, const char *job, const json_t *scope, bool (*has)(const json_t *scope, const json_t *tags),
		int *ret_fd, struct api_fault *f);

/* runner.c: 0; 1 when another center carries the job; negative errno. */
int runner_ensure(struct engine *en, const char *job, const char *source);
void runner_free(struct live *l);

/* sweep.c: what is kept for whom, and what is left of a killed center. */
void sweep_task(struct task *t);
void sweep_start(struct engine *en);
bool sweep_is_wanted(void);
int sweep_run(struct engine *en, bool dry_run, json_t **ret, struct err *e);
int sweep_api_holdings(void *arg, json_t **ret, struct api_fault *f);
int sweep_api(void *arg, bool dry_run, json_t **ret, struct api_fault *f);
json_t *sweep_api_sums(void *arg);

/* address.c: *ret (new reference) is what the conversion is told of it, NULL when DHCP is to give one. -EINVAL: it is
 * to keep one that isn't known. */
int address_resolve(struct engine *en, const struct model_job *job, const json_t *inventory, json_t **ret,
		    struct err *e);

/* pace.c */
void pace_load(struct engine *en);
/* Seconds that the part took lately on this host. */
double pace_guess(struct engine *en, enum pace_part part);
/* Which parts (bits) the stage that begins has; none when its progress is counted. */
void pace_plan(struct live *l, int stage, unsigned parts);
void pace_begin(struct live *l, enum pace_part part);
/* `learn`: it did all its work, so that the next one will take about as long. */
void pace_end(struct live *l, bool learn);
/* Of a part that takes `expected` seconds: never falls, never gets to 1. */
double pace_fraction(double elapsed, double expected);
/* Under the lock. False without a plan; *ret_left < 0: takes longer than expected. */
bool pace_look(const struct live *l, double *ret_percent, double *ret_left);

/* syncing.c: the stage syncing */
int runner_sync(struct live *l, struct model_job *job, struct engine_failure *f);
int runner_fail(struct engine_failure *f, const char *code, bool temporary, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The same where space is missing. */
int runner_no_space(struct engine_failure *f, const char *message);
bool runner_cancelled(void *arg);

/* runner.c, for testing.c */
int runner_fail_err(struct engine_failure *f, const char *code, const struct err *e);
/* Before the next step changes what lies in the region: is the job still ours? */
bool runner_confirm(struct live *l);
/* What the conversion wants to know when there will be no image. New reference. */
json_t *runner_request(struct live *l, const struct model_job *job, const struct model_source *src,
		       const json_t *network);
int runner_convert(struct live *l, const json_t *request, json_t **ret, struct err *e);
int runner_boot_copy(struct live *l, const json_t *options, json_t **ret, struct err *e);

/* testing.c: migration tests */
bool testing_is_test(const struct model_job *job);
/* Does the event end a test that went through all its stages? */
bool testing_is_over(const struct model_job *job, enum job_event event);
/* What the agent gets of the parameters. New reference. */
json_t *testing_offer(const json_t *parameters, bool test);
/* Bytes of the source that a test has left in the region for the migration. */
uint64_t testing_kept(const struct model_job *job);
/* With a change of the job's state: begins the report, ends it, compares it with what the migration took. */
void testing_apply(struct model_job *job, const struct job_answer *a, enum job_event event,
		   const struct engine_failure *failure, double now);
int testing_process(struct live *l, struct model_job *job, struct engine_failure *f);
int testing_clean(struct live *l, struct model_job *job, struct engine_failure *f);
/* Where its picture is. */
void testing_picture(void *arg, const char *job, char *path, size_t size);
/* The picture goes. */
void testing_forget(struct engine *en, const char *job);

/* seen.c: heartbeats */
void seen_touch(struct engine *en, const char *source);
double seen_ago(struct engine *en, const char *source); /* seconds; big when never */
bool seen_online(struct engine *en, const char *source);
void seen_forget(struct engine *en, const char *source);
void seen_refresh(struct engine *en, const char *source);
/* Another center heard of it so many seconds ago; whom we heard of since the last call: [{"source","ago"}]. */
void seen_hear(struct engine *en, const char *source, double ago);
json_t *seen_take_fresh(struct engine *en);
/* Announces who went and who came, writes what the store should know. */
void seen_tick(struct engine *en);
int seen_load(struct engine *en, struct err *e);
void seen_free(struct engine *en);

/* marks.c: false when it can't be done beside what is done with the image now; else image_unmark() is due. */
bool image_mark(struct engine *en, const char *image, enum image_use use);
void image_unmark(struct engine *en, const char *image, enum image_use use);

/* tasks.c: what runs beside jobs. 0; 1 when that task runs already; negative errno. Its thread takes the mark of
 * `image` (may be NULL) over when it returns 0. */
int task_start(struct engine *en, enum task_kind kind, const char *id, const char *image);
int task_start_for(struct engine *en, enum task_kind kind, const char *id, const char *image,
		   struct task_outcome *waiter);
/* False when it goes on and nobody waits for it any more. */
bool task_wait(struct engine *en, enum task_kind kind, const char *id, struct task_outcome *o);
bool task_cancelled(void *task);
/* The same, taking the mark itself; 0 too when it can't be had now. */
int task_start_marked(struct engine *en, enum task_kind kind, const char *id, const char *image, enum image_use use);
bool task_runs(struct engine *en, enum task_kind kind, const char *id);
/* image_mark() of one that isn't partly gone. */
bool task_mark_whole(struct engine *en, const char *image, enum image_use use);
/* A running job boots and checks its image itself. */
bool task_image_in_job(struct engine *en, const struct model_image *im);
/* checks: scripts to run inside; NULL: those of the image's job. */
int task_boot(void *arg, const char *image, const json_t *checks, struct api_fault *f);
/* 0: it's gone; 1: that takes a while and goes on. */
int task_image_remove(void *arg, const char *image, struct api_fault *f);
int task_export(void *arg, const char *export, struct api_fault *f);
int task_export_remove(void *arg, const char *export, struct api_fault *f);
/* Layers that nobody needs are to go, now or when they can. */
void task_trim(struct engine *en);
/* The provider's event that an image's manifest is another. */
void task_image_changed(struct engine *en, const json_t *event);
/* After a start of the center: what was running, runs again. */
int task_resume_all(struct engine *en, struct err *e);
/* The boot's report as the image keeps it, in the same transaction as its event. */
int task_save_boot(struct engine *en, const char *image, const char *state, double started, const json_t *report,
		   const struct err *failure, struct err *e);
bool task_boot_passed(const json_t *report);
/* What a test boot should know of the source: units that had failed there, too. New reference. */
json_t *task_boot_options(struct engine *en, const char *source);
