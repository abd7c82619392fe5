/*
 * Several centers on one store: what this one has the lease of, what others say of theirs. The keeper's thread renews,
 * listens and tells, once a beat. Without a shared store all of this does nothing.
 *
 * A center has to be out of a job before its lease can be another's. So it gives up long before that (share_over()),
 * its threads can write nothing more (the store's fence), and a process of its own watches that it is running at all:
 * when it stands still for too long, it is killed with all that it started, which might go on by themselves.
 */
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>

#include "base/err.h"
#include "base/io.h"
#include "base/log.h"
#include "base/str.h"
#include "center/engine.h"
#include "center/notify.h"

#define OVER_PART    0.25 /* of a lease, without a renewal: then all that needs one ends */
#define KILL_PART    0.75 /* standing still: then it is killed */
#define BEATS        40   /* of a lease */
#define BEAT_MAX     1.0
#define HEARING_PAST 10.0 /* seconds; more than between two looks */

struct hold {
	struct hold *next;
	char name[ID_MAX];
	unsigned count; /* of those that rely on it */
	bool lost;
	uint64_t serial, stops, news;
};

struct remote {
	struct remote *next;
	char name[ID_MAX], source[ID_MAX]; /* source: "" when nothing is under way for one */
	json_t *view;
	uint64_t tick;
	bool here; /* was told in the last beat */
};

static double beat_seconds(const struct engine *en)
{
	return MIN(BEAT_MAX, en->s.lease / BEATS);
}

/* ---- holds ---- */

static struct hold **hold_find(struct engine *en, const char *name)
{
	struct hold **p = &en->holds;

	while (*p && strcmp((*p)->name, name) != 0)
		p = &(*p)->next;
	return p;
}

/* Goes on while the machine sleeps. */
static double lease_clock(void)
{
	struct timespec ts;

	must(clock_gettime(CLOCK_BOOTTIME, &ts) == 0);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

bool share_over(const struct engine *en)
{
	return en->store->share && lease_clock() > en->lease_until;
}

int share_confirm(struct engine *en, struct err *e)
{
	int r = 0;

	if (!en->store->share)
		return 0;
	/* A transaction begins only where the fence lets it. */
	r = en->store->ops->begin(en->store, e);
	if (r == 0)
		en->store->ops->rollback(en->store);
	return r;
}

bool share_holds(struct engine *en, const char *name)
{
	struct hold *h;
	ENGINE_LOCK(en);

	if (!en->store->share)
		return true;
	h = *hold_find(en, name);
	return h && !h->lost && !share_over(en);
}

static struct remote *remote_find(struct engine *en, const char *name)
{
	struct remote *r = en->remotes;

	while (r && strcmp(r->name, name) != 0)
		r = r->next;
	return r;
}

bool share_is_remote(struct engine *en, const char *name)
{
	return remote_find(en, name);
}

/* 1: counted, 0: ask the store, -EBUSY: not now. */
static int hold_again(struct engine *en, const char *name)
{
	struct hold *h;
	ENGINE_LOCK(en);

	h = *hold_find(en, name);
	if (share_over(en) || (h && h->lost) || (!h && remote_find(en, name)))
		return -EBUSY;
	if (h)
		h->count++;
	return h ? 1 : 0;
}

static int hold_add(struct engine *en, const char *name)
{
	struct hold *h = calloc(1, sizeof(*h));
	ENGINE_LOCK(en);

	if (!h)
		return -ENOMEM;
	snprintf(h->name, sizeof(h->name), "%s", name);
	h->count = 1;
	h->serial = ++en->hold_serial;
	h->next = en->holds;
	en->holds = h;
	return 0;
}

int share_take(struct engine *en, const char *name)
{
	const struct store_share_ops *share = en->store->share;
	struct err e = {0};
	int r;

	if (!share)
		return 0;
	pthread_mutex_lock(&en->share_lock);
	r = hold_again(en, name);
	if (r == 0) {
		r = share->take(en->store, name, &e);
		if (r == 0)
			r = hold_add(en, name);
		if (r == -ENOMEM)
			share->drop(en->store, name, NULL);
		if (r < 0 && r != -EBUSY)
			log_warn("%s", e.msg);
	}
	pthread_mutex_unlock(&en->share_lock);
	return MIN(r, 0);
}

/* Under the lock. Who works under it notices soon, and nothing is written meanwhile. */
static void hold_lose(struct engine *en, struct hold *h)
{
	if (h->lost)
		return;
	h->lost = true;
	log_warn("%s: the lease is lost; what is under way for it ends here", h->name);
	for (struct live *l = en->live; l; l = l->next)
		if (strcmp(l->job, h->name) == 0)
			l->lost = true;
	for (struct task *t = en->tasks; t; t = t->next)
		if (strcmp(t->lease, h->name) == 0 || strcmp(t->image, h->name) == 0)
			t->cancel = true;
}

/* True when it was the last that relied on it. */
static bool hold_leave(struct engine *en, const char *name)
{
	struct hold **p, *h;
	ENGINE_LOCK(en);

	p = hold_find(en, name);
	h = *p;
	must(h && h->count);
	/* Who worked under it may notice before the keeper does. */
	if (share_over(en))
		hold_lose(en, h);
	if (--h->count)
		return false;
	*p = h->next;
	free(h);
	return true;
}

void share_drop(struct engine *en, const char *name)
{
	const struct store_share_ops *share = en->store->share;

	if (!share)
		return;
	pthread_mutex_lock(&en->share_lock);
	/* What can't be dropped runs out. */
	if (hold_leave(en, name) && !share_over(en))
		share->drop(en->store, name, NULL);
	pthread_mutex_unlock(&en->share_lock);
}

void share_fence(struct engine *en, const char *name)
{
	if (en->store->share)
		en->store->share->fence(en->store, name);
}

int share_call(struct engine *en, const char *name, bool stop, struct err *e)
{
	if (!en->store->share || share_holds(en, name))
		return 0;
	return en->store->share->call(en->store, name, stop, e);
}

/* ---- what others carry ---- */

/* Under the lock: the view of a job that another center carries, borrowed. */
static const json_t *view_of(struct engine *en, const char *job)
{
	struct remote *r = en->store->share ? remote_find(en, job) : NULL;

	return r ? r->view : NULL;
}

json_t *share_progress(struct engine *en, const char *job)
{
	json_t *progress = json_object_get(view_of(en, job), "progress");

	return json_is_object(progress) ? json_deep_copy(progress) : NULL;
}

void share_overlay(struct engine *en, struct model_job *job)
{
	const json_t *view = view_of(en, job->id), *step = json_object_get(view, "step");
	const char *name = json_string_value(json_object_get(step, "name")),
		   *stage = json_string_value(json_object_get(view, "stage"));
	json_t *progress = json_object_get(view, "progress"), *percent = json_object_get(step, "percent");

	if (!view)
		return;
	if (json_is_object(progress))
		model_take_json(&job->progress, json_deep_copy(progress));
	if (!name || !*name || model_set(&job->step_name, name) < 0 ||
	    model_set(&job->step_text, json_string_value(json_object_get(step, "text"))) < 0)
		return;
	job->step_paced = json_is_number(percent) && stage && strcmp(stage, model_job_stages[job->stage]) == 0;
	if (job->step_paced) {
		json_t *left = json_object_get(step, "seconds_left");

		job->step_percent = json_number_value(percent);
		job->step_left = json_is_number(left) ? json_number_value(left) : -1;
	}
}

void share_ticks(struct engine *en, uint64_t since, json_t *list)
{
	for (struct remote *r = en->remotes; r; r = r->next)
		if (r->view && r->tick > since) {
			json_t *tick = json_copy(r->view);

			json_object_del(tick, "offer");
			json_array_append_new(list, tick);
		}
}

/* Of a run: all centers can tell it, the database can't. */
void share_psk(const struct engine *en, const char *run, char ret[65])
{
	unsigned char mac[32];
	unsigned int n = 0;

	must(HMAC(EVP_sha256(), en->psk_key, sizeof(en->psk_key), (const unsigned char *)run, strlen(run), mac, &n) &&
	     n == sizeof(mac));
	str_hex(mac, sizeof(mac), ret);
}

/* The job that another center carries for this source: its name, and a copy of its offer. */
static bool find_offer(struct engine *en, const char *source, char job[ID_MAX], json_t **ret)
{
	ENGINE_LOCK(en);

	for (struct remote *r = en->remotes; r; r = r->next)
		if (*r->source && strcmp(r->source, source) == 0) {
			snprintf(job, ID_MAX, "%s", r->name);
			*ret = json_deep_copy(json_object_get(r->view, "offer"));
			return true;
		}
	return false;
}

static json_t *error_json(const struct model_task_request *task, const struct model_error_request *error)
{
	if (task->state != TASK_FAILED)
		return NULL;
	return json_pack("{s:s, s:s, s:b}", "code", error->code, "message", error->message, "temporary",
			 error->temporary);
}

static int forward(struct engine *en, const char *job, const struct model_task_request *task,
		   const struct model_error_request *error)
{
	_cleanup_json_ json_t *body = json_pack("{s:s, s:O*, s:o*}", "run", task->run, "progress", task->progress,
						"error", error_json(task, error));
	struct err e = {0};
	int r = body ? en->store->share->report(en->store, job, body, &e) : err_nomem(&e);

	if (r < 0)
		log_warn("job %s: what its agent reported is lost: %s", job, e.msg);
	return r;
}

static json_t *offer_task(struct engine *en, const char *job, const json_t *offer)
{
	const char *run = json_string_value(json_object_get(offer, "run"));
	json_t *parameters = json_object_get(offer, "parameters"), *at = NULL, *task;
	uint64_t number = (uint64_t)json_integer_value(json_object_get(offer, "number"));
	char psk[65];

	if (!run || !json_is_integer(json_object_get(offer, "port")))
		return NULL;
	if (joblog_is_wanted(parameters))
		at = json_integer((json_int_t)joblog_end(en, job, number, JOBLOG_AGENT));
	share_psk(en, run, psk);
	task = json_pack("{s:s, s:s, s:s, s:O?, s:O, s:s, s:n, s:O?, s:o?}", "job", job, "run", run, "action", "send",
			 "host", json_object_get(offer, "host"), "port", json_object_get(offer, "port"), "psk", psk,
			 "disks", "parameters", parameters, "log_at", at);
	explicit_bzero(psk, sizeof(psk));
	return task;
}

bool share_sync(struct engine *en, const char *source, const struct model_task_request *task,
		const struct model_error_request *error, json_t **ret_task)
{
	_cleanup_json_ json_t *offer = NULL;
	char job[ID_MAX];
	const char *run;

	if (!en->store->share || !find_offer(en, source, job, &offer))
		return false;
	run = json_string_value(json_object_get(offer, "run"));
	if (task && run && strcmp(task->run, run) == 0 && forward(en, job, task, error) == 0 &&
	    task->state == TASK_FAILED)
		return true; /* its center withdraws the offer when it hears that */
	*ret_task = offer ? offer_task(en, job, offer) : NULL;
	return true;
}

/* ---- a beat ---- */

/* What another center needs to offer it to the agent; the run's number tells it where its log is. */
static json_t *offer_json(const struct engine *en, const struct live *l)
{
	const char *host = *l->host ? l->host : *en->data_host ? en->data_host : NULL;

	if (!l->port || l->cancel || l->agent_failed)
		return NULL;
	return json_pack("{s:s, s:i, s:s*, s:O?, s:I}", "run", l->run, "port", (int)l->port, "host", host, "parameters",
			 l->parameters, "number", (json_int_t)l->number);
}

/* What we have, each with what others may see of it, and the serial of the newest. */
static json_t *holds_json(struct engine *en, uint64_t *ret_serial)
{
	json_t *list = json_array();
	ENGINE_LOCK(en);

	*ret_serial = en->hold_serial;
	for (struct hold *h = en->holds; h; h = h->next) {
		struct live *l = engine_live(en, h->name);
		json_t *view = l ? engine_tick_json(l) : NULL;

		if (h->lost) {
			json_decref(view);
			continue;
		}
		if (view)
			json_object_set_new(view, "offer", offer_json(en, l));
		json_array_append_new(list, json_pack("{s:s, s:o?}", "name", h->name, "view", view));
	}
	return list;
}

struct renewal {
	struct engine *en;
	json_t *kept;           /* {name: null} */
	struct engine_ids news; /* jobs to look at again */
};

static void on_renewed(void *arg, const char *name, uint64_t stops, uint64_t news)
{
	struct renewal *rn = arg;
	struct live *l;
	struct hold *h;
	ENGINE_LOCK(rn->en);

	json_object_set_new(rn->kept, name, json_null());
	h = *hold_find(rn->en, name);
	l = h ? engine_live(rn->en, name) : NULL;
	if (!h)
		return;
	if (l && h->stops != stops)
		l->cancel = true;
	if (l && h->news != news)
		engine_ids_add(&rn->news, name);
	h->stops = stops;
	h->news = news;
}

static void take_news(struct engine *en, const char *id)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	struct live *l;

	if (en->store->ops->get(en->store, &model_jobs, id, &job, NULL) < 0)
		return;
	pthread_mutex_lock(&en->lock);
	l = engine_live(en, id);
	if (l) {
		model_take_json(&l->parameters, testing_offer(job.parameters, testing_is_test(&job)));
		l->logs = joblog_is_wanted(job.parameters);
		l->log_at = l->logs ? l->log_at : 0;
	}
	pthread_mutex_unlock(&en->lock);
	joblog_want(en, id, job.parameters);
}

static void renew(struct engine *en)
{
	struct renewal rn = {.en = en, .kept = json_object()};
	double asked = lease_clock();
	uint64_t serial;
	_cleanup_json_ json_t *leases = holds_json(en, &serial);
	struct err e = {0};
	int r = leases && rn.kept ? en->store->share->renew(en->store, leases, on_renewed, &rn, &e) : err_nomem(&e);

	if (r < 0)
		log_warn("the leases can't be renewed: %s", e.msg);
	pthread_mutex_lock(&en->lock);
	for (struct hold *h = en->holds; h; h = h->next)
		if (h->serial <= serial && (share_over(en) || (r == 0 && !json_object_get(rn.kept, h->name))))
			hold_lose(en, h);
	if (r == 0)
		en->lease_until = asked + OVER_PART * en->s.lease;
	pthread_cond_broadcast(&en->changed);
	pthread_mutex_unlock(&en->lock);
	for (size_t i = 0; i < rn.news.n; i++)
		take_news(en, rn.news.v[i]);
	free(rn.news.v);
	json_decref(rn.kept);
}

static void on_other(void *arg, const char *name, const json_t *view)
{
	const char *source = json_string_value(json_object_get(view, "source"));
	struct engine *en = arg;
	struct remote *r;
	ENGINE_LOCK(en);

	r = remote_find(en, name);
	if (!r) {
		r = calloc(1, sizeof(*r));
		if (!r)
			return;
		snprintf(r->name, sizeof(r->name), "%s", name);
		r->next = en->remotes;
		en->remotes = r;
	}
	r->here = true;
	if ((!view && !r->view) || (view && r->view && json_equal(view, r->view)))
		return;
	snprintf(r->source, sizeof(r->source), "%s", source ? source : "");
	model_take_json(&r->view, json_deep_copy(view));
	r->tick = ++en->tick;
}

/* Those that were not told are nobody's. Under the lock. */
static void forget_gone(struct engine *en)
{
	for (struct remote **p = &en->remotes, *r; (r = *p);) {
		if (r->here) {
			r->here = false;
			p = &r->next;
			continue;
		}
		*p = r->next;
		json_decref(r->view);
		free(r);
	}
}

static void look_at_others(struct engine *en)
{
	struct err e = {0};

	if (en->store->share->others(en->store, on_other, en, &e) < 0) {
		log_warn("%s", e.msg);
		return;
	}
	pthread_mutex_lock(&en->lock);
	forget_gone(en);
	pthread_mutex_unlock(&en->lock);
}

static void on_report(void *arg, const char *job, const json_t *body)
{
	const char *run = json_string_value(json_object_get(body, "run"));
	const json_t *error = json_object_get(body, "error");
	struct model_task_request task = {.run = run, .progress = json_object_get(body, "progress")};
	struct model_error_request failure = {json_string_value(json_object_get(error, "code")),
					      json_string_value(json_object_get(error, "message")),
					      json_is_true(json_object_get(error, "temporary"))};
	struct engine *en = arg;
	struct live *l;
	ENGINE_LOCK(en);

	l = engine_live(en, job);
	if (failure.code && failure.message)
		task.state = TASK_FAILED;
	else
		task.state = TASK_SENDING;
	if (l && run && strcmp(run, l->run) == 0)
		engine_take_report(l, &task, &failure);
}

static void on_hearing(void *arg, const char *source, double ago)
{
	seen_hear(arg, source, MAX(ago, 0.0));
}

static void exchange_hearings(struct engine *en)
{
	_cleanup_json_ json_t *fresh = seen_take_fresh(en);
	struct store *s = en->store;
	struct err e = {0};
	int r = json_array_size(fresh) ? s->share->heard(s, fresh, &e) : 0;

	if (r == 0)
		r = s->share->hearings(s, HEARING_PAST, on_hearing, en, &e);
	if (r < 0)
		log_warn("%s", e.msg);
}

/* Others' events: whoever follows ours wants them, too. */
static void look_for_events(struct engine *en)
{
	uint64_t first, last;

	if (en->store->ops->event_range(en->store, &first, &last, NULL) < 0 || last == en->last_event)
		return;
	en->last_event = last;
	notify_news(en);
	engine_wake(en);
}

static bool keeper_sleep(struct engine *en)
{
	double end = id_now_mono() + beat_seconds(en);
	bool go_on;

	do {
		pthread_mutex_lock(&en->lock);
		go_on = !en->share_ending;
		pthread_mutex_unlock(&en->lock);
		if (go_on)
			nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	} while (go_on && id_now_mono() < end);
	return go_on;
}

static void *keeper_main(void *arg)
{
	struct engine *en = arg;

	do {
		renew(en);
		look_at_others(en);
		if (en->store->share->reports(en->store, on_report, en, NULL) < 0)
			log_warn("what agents told other centers can't be read now");
		exchange_hearings(en);
		look_for_events(en);
	} while (keeper_sleep(en));
	return NULL;
}

/* ---- the watch ---- */

/* In a process of its own: nothing that stops us stops it. */
_Noreturn static void watch_main(int fd, pid_t center, double seconds)
{
	char buf[64];

	/* The directory's lock, the database. */
	if (fd > 3)
		close_range(3, (unsigned)fd - 1, 0);
	close_range((unsigned)fd + 1, ~0U, 0);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setpgid(0, 0);
	if (getppid() != center)
		_exit(0);
	/* Until it is fed for the first time the center only starts. */
	for (bool fed = false;; fed = true) {
		struct pollfd p = {.fd = fd, .events = POLLIN};
		int r = poll(&p, 1, fed ? (int)(seconds * 1000) : -1);

		if (r == 0) {
			dprintf(2, "replantd: the center stood still for %.0f s and is killed\n", seconds);
			kill(center, SIGKILL);
			_exit(1);
		}
		if (r > 0 && read(fd, buf, sizeof(buf)) <= 0)
			_exit(0);
	}
}

/* Before there are threads. */
int share_watch(struct engine *en, struct err *e)
{
	pid_t self = getpid();
	int p[2];

	if (pipe2(p, O_CLOEXEC) < 0)
		return err_sys(e, "cannot make a pipe");
	en->watch = fork();
	if (en->watch < 0) {
		close(p[0]);
		close(p[1]);
		return err_sys(e, "cannot start a process");
	}
	if (en->watch == 0) {
		close(p[1]);
		watch_main(p[0], self, KILL_PART * en->s.lease);
	}
	close(p[0]);
	en->watch_fd = p[1];
	return 0;
}

/* Not the keeper's: what it waits for is the database, and may take long. */
static void *feeder_main(void *arg)
{
	struct engine *en = arg;

	do {
		if (write(en->watch_fd, "", 1) < 0)
			log_error("nobody watches this center any more");
	} while (keeper_sleep(en));
	return NULL;
}

/* ---- start and end ---- */

static int load_key(struct engine *en, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/ca.key", en->state), *text = NULL;
	static const char purpose[] = "replant: keys of runs";
	size_t len;
	unsigned int n = 0;
	int r = path ? io_read_file(path, 1 << 20, &text, &len, e) : err_nomem(e);

	if (r < 0)
		return r;
	must(HMAC(EVP_sha256(), text, (int)len, (const unsigned char *)purpose, strlen(purpose), en->psk_key, &n) &&
	     n == sizeof(en->psk_key));
	explicit_bzero(text, len);
	return 0;
}

/* Of this start: who we are, on which start of which machine, with which lock of the directory. */
static int identity(struct engine *en, char *buf, size_t size, const char *id, struct err *e)
{
	_cleanup_free_ char *lock = str_printf("%s/lock", en->state), *boot = NULL;
	struct stat st;
	int r;

	if (!lock)
		return err_nomem(e);
	if (stat(lock, &st) < 0)
		return err_sys(e, "cannot look at '%s'", lock);
	r = io_read_file("/proc/sys/kernel/random/boot_id", 256, &boot, NULL, e);
	if (r < 0)
		return r;
	boot[strcspn(boot, "\n")] = '\0';
	snprintf(buf, size, "%s %s %ju %ju\n", id, boot, (uintmax_t)st.st_dev, (uintmax_t)st.st_ino);
	return 0;
}

/*
 * Who was here before us had the directory's lock that we have now, so it has ended, and its leases needn't run out.
 * Unless the file came from elsewhere with a copy of the directory: then it says so, by another lock or another start
 * of a machine, and that center may be at work.
 */
static int follow(struct engine *en, char previous[ID_MAX], struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/center", en->state), *text = NULL;
	char expected[256], now[256];
	int r;

	if (!path)
		return err_nomem(e);
	*previous = '\0';
	if (access(path, F_OK) == 0) {
		r = io_read_file(path, sizeof(expected), &text, NULL, e);
		if (r < 0)
			return r;
		snprintf(previous, ID_MAX, "%.*s", (int)strcspn(text, " "), text);
		r = identity(en, expected, sizeof(expected), previous, e);
		if (r < 0)
			return r;
		if (strcmp(text, expected) != 0)
			*previous = '\0';
	}
	r = identity(en, now, sizeof(now), en->id, e);
	return r < 0 ? r : io_write_file_atomic(path, now, strlen(now), 0600, e);
}

int share_start(struct engine *en, struct err *e)
{
	struct store *s = en->store;
	char previous[ID_MAX];
	int r;

	if (!s->share)
		return 0;
	id_new("center", en->id);
	r = load_key(en, e);
	if (r == 0)
		r = follow(en, previous, e);
	if (r == 0)
		r = s->share->join(s, en->id, previous, en->s.lease, e);
	if (r < 0)
		return r;
	en->lease_until = lease_clock() + OVER_PART * en->s.lease;
	look_at_others(en);
	if (pthread_create(&en->feeder, NULL, feeder_main, en) != 0)
		return err_set(e, -EAGAIN, "cannot start a thread");
	if (pthread_create(&en->keeper, NULL, keeper_main, en) != 0) {
		en->share_ending = true;
		pthread_join(en->feeder, NULL);
		return err_set(e, -EAGAIN, "cannot start a thread");
	}
	en->keeper_runs = true;
	log_info("this is %s, one of those on the database", en->id);
	return 0;
}

void share_stop(struct engine *en)
{
	pthread_mutex_lock(&en->lock);
	en->share_ending = true;
	pthread_mutex_unlock(&en->lock);
	if (en->keeper_runs) {
		pthread_join(en->keeper, NULL);
		pthread_join(en->feeder, NULL);
	}
	pthread_mutex_lock(&en->lock);
	forget_gone(en);
	forget_gone(en);
	pthread_mutex_unlock(&en->lock);
}

void share_unwatch(struct engine *en)
{
	if (en->watch <= 0)
		return;
	close(en->watch_fd);
	kill(en->watch, SIGKILL); /* it may be stopped, and would never see the pipe's end */
	waitpid(en->watch, NULL, 0);
}
