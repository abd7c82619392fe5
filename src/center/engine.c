#include "center/checking.h"
#include "center/instances.h"
#include "center/notify.h"
#include "center/switching.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "base/str.h"

#define EXPIRED_DAYS 7
#define RESULT_MAX   (64u << 10) /* bytes of JSON; the longest an honest agent sends is about that */

void engine_wake(struct engine *en)
{
	if (en->api)
		api_wake(en->api);
	notify_wake(en);
}

struct live *engine_live(struct engine *en, const char *job)
{
	for (struct live *l = en->live; l; l = l->next)
		if (strcmp(l->job, job) == 0)
			return l;
	return NULL;
}

struct live *engine_live_of_source(struct engine *en, const char *source)
{
	for (struct live *l = en->live; l; l = l->next)
		if (strcmp(l->source, source) == 0)
			return l;
	return NULL;
}

void engine_step(struct live *l, const char *name, const char *fmt, ...)
{
	char text[sizeof(l->step_text)];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	str_utf8(text);
	ENGINE_LOCK(l->engine);
	if (strcmp(l->step_name, name) == 0 && strcmp(l->step_text, text) == 0)
		return;
	snprintf(l->step_name, sizeof(l->step_name), "%s", name);
	memcpy(l->step_text, text, sizeof(text));
	l->tick = ++l->engine->tick;
}

/* ---- changes of a job ---- */

static void stage_end(json_t *stages, double now)
{
	json_t *s;
	size_t i;

	json_array_foreach(stages, i, s)
	{
		if (json_is_null(json_object_get(s, "seconds")))
			json_object_set_new(s, "seconds",
					    json_real(MAX(0, now - json_number_value(json_object_get(s, "started")))));
	}
}

/* A stage that is done again has one entry, the last. */
static void stage_begin(json_t *stages, const char *name, double now)
{
	for (size_t i = json_array_size(stages); i-- > 0;)
		if (strcmp(json_string_value(json_object_get(json_array_get(stages, i), "name")) ?: "", name) == 0)
			json_array_remove(stages, i);
	json_array_append_new(stages, json_pack("{s:s, s:f, s:n}", "name", name, "started", now, "seconds"));
}

static void note_stages(struct model_job *job, const struct job_answer *a, double now)
{
	if (!job->stages)
		job->stages = json_array();
	stage_end(job->stages, now);
	if (a->state == JOB_RUNNING)
		stage_begin(job->stages, model_job_stages[a->stage], now);
}

static json_t *failure_json(const struct engine_failure *f)
{
	return json_pack("{s:s, s:s, s:b}", "code", f->code, "message", f->message, "temporary", f->temporary);
}

static int end_run(struct engine *en, struct model_job *job, double now, struct err *e)
{
	_cleanup_(model_run_release) struct model_run run = {0};
	struct store *s = en->store;
	int r;

	if (!job->run)
		return 0;
	r = s->ops->get(s, &model_runs, job->run, &run, e);
	if (r == -ENOENT || (r == 0 && run.state != RUN_ACTIVE))
		return 0;
	if (r < 0)
		return r;
	run.state = job->state == JOB_IN_ERROR ? RUN_FAILED : job->state == JOB_STOPPED ? RUN_CANCELLED : RUN_DONE;
	run.ended = now;
	run.bytes = (uint64_t)MAX(0, json_integer_value(json_object_get(job->progress, "bytes_written")));
	if (run.state == RUN_DONE && job->image && model_set(&run.image, job->image) < 0)
		return err_nomem(e);
	if (job->error)
		model_take_json(&run.error, json_incref(job->error));
	return s->ops->put(s, &model_runs, &run, e);
}

/* A run that failed behind its copy goes on, and may still end well. */
static int reopen_run(struct engine *en, const struct model_job *job, struct err *e)
{
	_cleanup_(model_run_release) struct model_run run = {0};
	struct store *s = en->store;
	int r = job->run ? s->ops->get(s, &model_runs, job->run, &run, e) : -ENOENT;

	if (r == -ENOENT || (r == 0 && run.state != RUN_FAILED))
		return 0;
	if (r < 0)
		return r;
	run.state = RUN_ACTIVE;
	run.ended = 0;
	model_take_json(&run.error, NULL);
	return s->ops->put(s, &model_runs, &run, e);
}

/* What the runner knew last becomes part of the row. */
static void keep_live(struct engine *en, struct model_job *job)
{
	json_t *progress;
	struct live *l;
	ENGINE_LOCK(en);

	l = engine_live(en, job->id);
	if (l && l->progress) {
		model_take_json(&job->progress, json_deep_copy(l->progress));
		return;
	}
	progress = l ? NULL : share_progress(en, job->id);
	if (progress)
		model_take_json(&job->progress, progress);
}

/* What people are told of a job's new state; no event leaves it finished or in error. */
static int tell_state(struct engine *en, const struct model_job *job, struct err *e)
{
	return job->state == JOB_FINISHED   ? notify_job(en, NOTICE_JOB_FINISHED, job, e)
	       : job->state == JOB_IN_ERROR ? notify_job(en, NOTICE_JOB_FAILED, job, e)
					    : 0;
}

static int apply(struct engine *en, struct model_job *job, const struct job_answer *a, enum job_event event, bool clock,
		 const struct engine_failure *failure, struct err *e)
{
	double now = id_now();
	int r = 0;

	keep_live(en, job);
	schedule_apply(en, job, a, event, clock, failure, now);
	note_stages(job, a, now);
	testing_apply(job, a, event, failure, now);
	if (job->state != JOB_RUNNING && a->state == JOB_RUNNING) {
		job->started = job->started > 0 ? job->started : now;
		if (a->stage == JOB_PROCESSING || a->stage == JOB_CLEANING)
			r = reopen_run(en, job, e);
	}
	if (r < 0)
		return r;
	job->state = (int)a->state;
	job->stage = (int)a->stage;
	job->updated = now;
	job->expires = a->state == JOB_EXPIRED ? now : model_job_expiry(job, now);
	if (a->state == JOB_FINISHED)
		job->finished = now;
	model_take_json(&job->error, failure ? failure_json(failure) : NULL);
	if (model_set(&job->step_name, NULL) < 0 || model_set(&job->step_text, NULL) < 0)
		return err_nomem(e);
	if (a->actions & JOB_DO_END_RUN)
		r = end_run(en, job, now, e);
	if (r == 0 && a->actions & JOB_DO_CANCEL)
		r = share_call(en, job->id, true, e);
	if (r == 0)
		r = en->store->ops->put(en->store, &model_jobs, job, e);
	if (r == 0)
		r = store_announce(en->store, &model_jobs, "updated", job, now, e);
	return r < 0 ? r : tell_state(en, job, e);
}

/* Behind the transaction. */
static void act(struct engine *en, const struct model_job *job, unsigned actions)
{
	if (actions & JOB_DO_CANCEL) {
		ENGINE_LOCK(en);
		struct live *l = engine_live(en, job->id);

		if (l)
			l->cancel = true;
	}
	if (actions & JOB_DO_RUN && runner_ensure(en, job->id, job->source) < 0)
		log_error("job %s: no thread for it now; trying again soon", job->id);
	if (actions & JOB_DO_REMOVE)
		task_start(en, TASK_REMOVE_JOB, job->id, NULL);
	seen_refresh(en, job->source);
	engine_wake(en);
}

/* What it goes on with must be there. */
static int check_image(struct engine *en, const struct model_job *job, enum job_event event, struct job_answer *a,
		       struct err *e)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	int r;

	if (a->refused || job->state == JOB_RUNNING || (a->stage != JOB_PROCESSING && a->stage != JOB_CLEANING))
		return 0;
	if (event == JOB_CUT_OVER && !job->image)
		a->refused = "the job's last image was deleted; cut it over with a last synchronization";
	if (!job->image || !schedule_has_image(job))
		return 0;
	r = en->store->ops->get(en->store, &model_images, job->image, &im, e);
	if (r == 0 && im.deleting)
		a->refused = "the job's image is being deleted; wait for its end";
	return r == -ENOENT ? 0 : r;
}

/* The clock acts on a list of a moment ago: a person may have come first. */
static bool is_due(const struct model_job *job, enum job_event event, double now)
{
	if (event == JOB_START)
		return job->next_run > 0 && job->next_run <= now;
	return now >= job->expires + (job->state == JOB_EXPIRED ? EXPIRED_DAYS * MODEL_DAY : 0);
}

static unsigned kind_of(const struct model_job *job)
{
	return (model_is_incremental(job) && !job->last ? JOB_INCREMENTAL : 0u) |
	       (job->testing == NO_TEST ? 0u : JOB_TESTING) | (job->testing == TEST_AND_MIGRATE ? JOB_MIGRATES : 0u);
}

int engine_job_event(struct engine *en, const char *id, int expected, enum job_event event,
		     const struct engine_failure *failure, struct api_fault *f)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	struct store *s = en->store;
	struct job_answer a = {0};
	struct err e = {0};
	int r = s->ops->begin(s, &e);

	if (r < 0)
		return api_fault_err(f, &e);
	r = s->ops->get(s, &model_jobs, id, &job, &e);
	if (r == 0) {
		a = job_step(job.state, job.stage, kind_of(&job), event);
		if (!a.refused && expected == ENGINE_CLOCK && !is_due(&job, event, id_now()))
			a.refused = "the job's time has not come";
		r = check_image(en, &job, event, &a, &e);
	}
	if (r == 0) {
		if (a.refused || (expected >= 0 && (job.state != JOB_RUNNING || job.stage != expected))) {
			s->ops->rollback(s);
			return api_fault_set(f, 409, "invalid_state", NULL, "%s",
					     a.refused ? a.refused : "the job has moved on");
		}
		r = apply(en, &job, &a, event, expected == ENGINE_CLOCK, failure, &e);
	}
	if (r < 0) {
		s->ops->rollback(s);
		return api_fault_err(f, &e);
	}
	if (s->ops->commit(s, &e) < 0)
		return api_fault_err(f, &e);
	log_info("job %s: %s -> %s%s%s%s%s", id, job_events[event], model_job_states[job.state], job.stage ? " " : "",
		 model_job_stages[job.stage], failure ? ": " : "", failure ? failure->message : "");
	act(en, &job, a.actions);
	return 0;
}

struct job_change {
	int stage;
	void (*change)(struct model_job *job, void *arg);
	void *arg;
};

static int change_in_stage(void *row, void *arg, struct err *e)
{
	const struct job_change *c = arg;
	struct model_job *job = row;

	if (job->state != JOB_RUNNING || job->stage != c->stage)
		return err_set(e, -ECANCELED, "the job has moved on");
	c->change(job, c->arg);
	return 0;
}

int engine_job_change(struct engine *en, const char *id, int stage, void (*change)(struct model_job *job, void *arg),
		      void *arg, struct err *e)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	struct job_change c = {stage, change, arg};

	return store_change(en->store, &model_jobs, id, NULL, change_in_stage, &c, &job, e);
}

/* ---- what the API asks ---- */

static int api_job_event(void *arg, const char *job, enum job_event event, struct api_fault *f)
{
	return engine_job_event(arg, job, ENGINE_ANYBODY, event, NULL, f);
}

static void api_job_live(void *arg, struct model_job *job)
{
	struct engine *en = arg;
	struct live *l;
	ENGINE_LOCK(en);

	l = job->state == JOB_RUNNING ? engine_live(en, job->id) : NULL;
	if (!l && job->state == JOB_RUNNING)
		share_overlay(en, job);
	if (!l)
		return;
	if (l->progress)
		model_take_json(&job->progress, json_deep_copy(l->progress));
	if (!*l->step_name || model_set(&job->step_name, l->step_name) < 0 ||
	    model_set(&job->step_text, l->step_text) < 0)
		return;
	if (l->stage == job->stage)
		job->step_paced = pace_look(l, &job->step_percent, &job->step_left);
}

static void api_job_parameters(void *arg, const char *job, const json_t *parameters)
{
	struct engine *en = arg;
	struct err e = {0};
	struct live *l;

	schedule_replan(en, job);
	joblog_want(en, job, parameters);
	pthread_mutex_lock(&en->lock);
	l = engine_live(en, job);
	if (l)
		model_take_json(&l->parameters,
				testing_offer(parameters, json_is_true(json_object_get(l->parameters, "boot_only"))));
	pthread_mutex_unlock(&en->lock);
	if (!l && share_call(en, job, false, &e) < 0)
		log_warn("job %s: %s", job, e.msg);
}

json_t *engine_tick_json(const struct live *l)
{
	json_t *step = json_pack("{s:s, s:s}", "name", l->step_name, "text", l->step_text);
	double percent, left;

	if (step && pace_look(l, &percent, &left)) {
		json_object_set_new(step, "percent", json_real(percent));
		json_object_set_new(step, "seconds_left", left < 0 ? json_null() : json_real(left));
	}
	return json_pack("{s:s, s:s, s:s, s:o, s:o?}", "id", l->job, "source", l->source, "stage",
			 model_job_stages[l->stage], "step", step, "progress", json_deep_copy(l->progress));
}

static json_t *api_job_ticks(void *arg, uint64_t *tick)
{
	struct engine *en = arg;
	json_t *list = json_array();
	ENGINE_LOCK(en);

	for (struct live *l = en->live; l && list; l = l->next)
		if (l->tick > *tick)
			json_array_append_new(list, engine_tick_json(l));
	if (list)
		share_ticks(en, *tick, list);
	*tick = en->tick;
	return list;
}

/* What leaves the lock is a copy: a value that two threads hold may change under one of them. */
static json_t *task_json(const struct live *l)
{
	/* Who is on another center's line comes to ours by its name. */
	return json_pack("{s:s, s:s, s:s, s:s?, s:i, s:s, s:n, s:o, s:o}", "job", l->job, "run", l->run, "action",
			 "send", "host",
			 *l->host                ? l->host
			 : *l->engine->data_host ? l->engine->data_host
						 : NULL,
			 "port", (int)l->port, "psk", l->psk, "disks", "parameters", json_deep_copy(l->parameters),
			 "log_at", l->logs ? json_integer((json_int_t)l->log_at) : json_null());
}

static void merge_progress(struct live *l, const json_t *report)
{
	json_t *p = model_progress(report);

	if (!p)
		return;
	if (!l->progress)
		l->progress = json_object();
	json_object_update(l->progress, p);
	json_decref(p);
	l->tick = ++l->engine->tick;
}

void engine_take_report(struct live *l, const struct model_task_request *t, const struct model_error_request *error)
{
	l->active = id_now_mono();
	if (t->progress)
		merge_progress(l, t->progress);
	if (t->state == TASK_FAILED && !l->agent_failed) {
		l->agent_failed = true;
		runner_fail(&l->agent_failure, error->code, error->temporary, "%s", error->message);
	}
}

/* The figures alone, for they are of a known length. */
static json_t *bounded_live(const json_t *live)
{
	static const char *const keys[] = {"bytes", "seconds"};
	json_t *o = json_is_object(live) ? json_object() : NULL;

	for (size_t i = 0; o && i < ARRAY_SIZE(keys); i++) {
		json_t *v = json_object_get(live, keys[i]);

		if (json_is_number(v))
			json_object_set(o, keys[i], v);
	}
	return o;
}

/* An agent sends what it likes: what is too much loses what only people read. */
static json_t *bounded_result(const json_t *result)
{
	json_t *o;

	if (!result)
		return json_object();
	if (json_dumpb(result, NULL, 0, JSON_COMPACT) <= RESULT_MAX)
		return json_incref((json_t *)(uintptr_t)result);
	o = json_pack("{s:[s], s:O*, s:O*, s:O*, s:o*, s:O*}", "notes",
		      "the agent's report was too long, its notes are not kept", "totals",
		      json_object_get(result, "totals"), "disks", json_object_get(result, "disks"), "zeroed",
		      json_object_get(result, "zeroed"), "live", bounded_live(json_object_get(result, "live")), "test",
		      json_object_get(result, "test"));
	if (o && json_dumpb(o, NULL, 0, JSON_COMPACT) > RESULT_MAX) {
		json_object_del(o, "zeroed");
		json_object_del(o, "test");
		json_object_del(o, "totals");
		json_object_del(o, "disks");
	}
	return o;
}

/* The agent says when it sent it: how far its clock is ahead. */
static void note_clock(json_t *result, double now)
{
	const json_t *sent = json_object_get(json_object_get(result, "test"), "time");

	if (json_is_number(sent))
		json_object_set_new(result, "clock_skew", json_real(json_number_value(sent) - now));
}

/* The agent's last word goes to the store at once: the job may be over before it comes. */
static int save_result(struct engine *en, const char *source, const struct model_task_request *t, struct err *e)
{
	_cleanup_(model_run_release) struct model_run run = {0};
	_cleanup_(model_job_release) struct model_job job = {0};
	_cleanup_json_ json_t *progress = t->progress ? model_progress(t->progress) : NULL;
	struct store *s = en->store;
	int r = s->ops->get(s, &model_runs, t->run, &run, e);

	if (r == 0)
		r = s->ops->get(s, &model_jobs, run.job, &job, e);
	if (r < 0 || run.result || strcmp(job.source, source) != 0 || !job.run || strcmp(job.run, run.id) != 0)
		return r;
	model_take_json(&run.result, bounded_result(t->result));
	if (!run.result)
		return err_nomem(e);
	note_clock(run.result, id_now());
	if (!job.progress)
		job.progress = json_object();
	if (progress)
		json_object_update(job.progress, progress);
	r = s->ops->put(s, &model_runs, &run, e);
	if (r == 0)
		r = s->ops->put(s, &model_jobs, &job, e);
	return r < 0 ? r : store_announce(s, &model_jobs, "updated", &job, id_now(), e);
}

static int keep_result(struct engine *en, const char *source, const struct model_task_request *t, struct api_fault *f)
{
	struct store *s = en->store;
	struct err e = {0};
	int r = s->ops->begin(s, &e);

	if (r < 0)
		return api_fault_err(f, &e);
	r = save_result(en, source, t, &e);
	if (r == 0)
		r = s->ops->commit(s, &e);
	else
		s->ops->rollback(s);
	if (r == 0)
		engine_wake(en);
	/* A run that was deleted meanwhile is no fault of the agent's. */
	return r < 0 && r != -ENOENT ? api_fault_err(f, &e) : 0;
}

static int api_source_sync(void *arg, const char *source, const struct model_task_request *task,
			   const struct model_error_request *error, json_t **ret_task, double *ret_interval,
			   struct api_fault *f)
{
	struct engine *en = arg;
	bool busy = false;
	json_t *next = NULL;
	struct live *l;

	/* One that was away is announced by the clockwork: thousands may come back at once. */
	seen_touch(en, source);
	if (!ret_task)
		return 0;
	pthread_mutex_lock(&en->lock);
	l = engine_live_of_source(en, source);
	/* A report on a run that is over, or of a job stopped meanwhile, is old news. */
	if (l && task && strcmp(task->run, l->run) == 0)
		engine_take_report(l, task, error);
	busy = l;
	if (l && l->port && !l->cancel && !l->agent_failed)
		next = task_json(l);
	pthread_mutex_unlock(&en->lock);
	if (!l)
		busy = share_sync(en, source, task, error, &next);
	if (task && task->state == TASK_DONE && keep_result(en, source, task, f) < 0) {
		json_decref(next);
		return -1;
	}
	*ret_task = next ? next : json_null();
	*ret_interval = busy ? en->s.heartbeat_busy : en->s.heartbeat;
	return 0;
}

static void api_source_log(void *arg, const char *source, const struct model_log_request *log)
{
	joblog_of_agent(arg, source, log);
}

static json_t *api_job_logs(void *arg, const char *job)
{
	return joblog_list(arg, job);
}

static int api_job_log(void *arg, const char *job, uint64_t run, const char *part, uint64_t since, struct str *ret,
		       uint64_t *ret_end, struct api_fault *f)
{
	struct err e = {0};
	int p = joblog_part_of(part);

	if (p < 0)
		return api_fault_set(f, 400, "bad_parameter", "part",
				     "'part' must be one of agent, receiver, conversion, boot");
	return joblog_read(arg, job, run, (enum joblog_part)p, since, ret, ret_end, &e) < 0 ? api_fault_err(f, &e) : 0;
}

static void api_source_refresh(void *arg, const char *source)
{
	seen_refresh(arg, source);
}

static bool api_source_online(void *arg, const char *source)
{
	return seen_online(arg, source);
}

static void api_source_forget(void *arg, const char *source)
{
	seen_forget(arg, source);
}

/* Memory is that of the machine that converts or boots its copy, while there is one. */
static json_t *api_job_holds(void *arg, const struct model_job *job)
{
	bool machine = job->state == JOB_RUNNING && job->stage == JOB_PROCESSING;
	json_int_t mib = json_integer_value(json_object_get(job->parameters, "transition_memory"));
	struct engine *en = arg;
	uint64_t disk = 0;

	if (en->provider->ops->job_holds(en->provider, job->id, &disk, NULL) < 0)
		return NULL;
	return json_pack("{s:I, s:I}", "disk", (json_int_t)disk, "memory", machine ? mib << 20 : 0);
}

struct api_engine engine_api(struct engine *en)
{
	return (struct api_engine){
	    .arg = en,
	    .job_event = api_job_event,
	    .job_live = api_job_live,
	    .job_holds = api_job_holds,
	    .job_parameters = api_job_parameters,
	    .job_ticks = api_job_ticks,
	    .source_sync = api_source_sync,
	    .source_log = api_source_log,
	    .job_logs = api_job_logs,
	    .job_log = api_job_log,
	    .job_bundle = bundle_make,
	    .source_refresh = api_source_refresh,
	    .source_online = api_source_online,
	    .source_forget = api_source_forget,
	    .image_boot = task_boot,
	    .image_check = checking_start,
	    .image_remove = task_image_remove,
	    .export_start = task_export,
	    .export_remove = task_export_remove,
	    .hook_secret = notify_secret,
	    .subscription_changed = notify_changed,
	    .subscription_test = notify_test,
	    .instance_create = instance_create,
	    .instance_do = instance_do,
	    .instance_see = instance_see,
	    .instance_list = instance_ask_list,
	    .instance_get = instance_ask_get,
	    .instance_screen = instance_ask_screen,
	    .instance_serial = instance_ask_serial,
	    .instance_check = switching_check,
	    .instance_rollback = switching_rollback,
	    .instance_confirm = switching_confirm,
	    .job_picture = switching_picture,
	    .test_picture = testing_picture,
	    .holdings = sweep_api_holdings,
	    .sweep = sweep_api,
	    .holdings_sums = sweep_api_sums,
	    .region_info = engine_region_info,
	    .region_check = instance_ask_try,
	};
}

/* ---- the clockwork ---- */

int engine_ids_add(struct engine_ids *l, const char *id)
{
	char(*v)[ID_MAX] = realloc(l->v, (l->n + 1) * sizeof(*v));

	if (!v)
		return -ENOMEM;
	l->v = v;
	snprintf(l->v[l->n++], ID_MAX, "%s", id);
	return 0;
}

static int collect_over(void *arg, void *row)
{
	const struct model_job *job = row;
	struct engine_ids *l = arg;

	return is_due(job, JOB_EXPIRE, l->now) ? engine_ids_add(l, job->id) : 0;
}

static void expire_jobs(struct engine *en)
{
	static const int states[] = {JOB_READY, JOB_STOPPED, JOB_IN_ERROR, JOB_EXPIRED};

	for (size_t i = 0; i < ARRAY_SIZE(states); i++) {
		struct store_filter f = {"state", model_job_states[states[i]]};
		struct store_query q = {.filters = &f, .nfilters = 1};
		struct engine_ids l = {.now = id_now()};
		struct api_fault fault;

		if (en->store->ops->list(en->store, &model_jobs, &q, collect_over, &l, NULL, NULL) == 0)
			for (size_t k = 0; k < l.n; k++)
				engine_job_event(en, l.v[k], ENGINE_CLOCK,
						 states[i] == JOB_EXPIRED ? JOB_DELETE : JOB_EXPIRE, NULL, &fault);
		free(l.v);
	}
}

static void set_progress(struct model_job *job, void *arg)
{
	model_take_json(&job->progress, json_incref(arg));
}

/* Progress is only a comfort, but a restarted center shouldn't show zero. */
static void save_progress(struct engine *en)
{
	for (;;) {
		_cleanup_json_ json_t *copy = NULL;
		char job[ID_MAX] = "";

		pthread_mutex_lock(&en->lock);
		for (struct live *l = en->live; l && !copy; l = l->next) {
			if (!l->progress || id_now_mono() - l->saved < 10)
				continue;
			l->saved = id_now_mono();
			copy = json_deep_copy(l->progress);
			snprintf(job, sizeof(job), "%s", l->job);
		}
		pthread_mutex_unlock(&en->lock);
		if (!copy)
			return;
		share_fence(en, job);
		engine_job_change(en, job, JOB_SYNCING, set_progress, copy, NULL);
		share_fence(en, NULL);
	}
}

/* False when the center stops. */
static bool clockwork_sleep(struct engine *en)
{
	struct timespec ts;
	bool go_on;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	ts.tv_sec += (time_t)en->s.tick;
	ts.tv_nsec += (long)((en->s.tick - (double)(time_t)en->s.tick) * 1e9);
	if (ts.tv_nsec >= 1000000000L) {
		ts.tv_nsec -= 1000000000L;
		ts.tv_sec++;
	}
	pthread_mutex_lock(&en->lock);
	if (!en->stopping)
		pthread_cond_timedwait(&en->changed, &en->lock, &ts);
	go_on = !en->stopping;
	pthread_mutex_unlock(&en->lock);
	return go_on;
}

/* What runs by its row but not here: at a start of the center everything, later what a thread was missing for. */
static bool has_runner(struct engine *en, const char *job)
{
	ENGINE_LOCK(en);

	return engine_live(en, job);
}

static int resume_job(void *arg, void *row)
{
	const struct model_job *job = row;
	struct engine *en = arg;
	int r;

	if (has_runner(en, job->id))
		return 0;
	r = runner_ensure(en, job->id, job->source);
	if (r == 0)
		log_info("job %s: goes on with %s", job->id, model_job_stages[job->stage]);
	return MIN(r, 0);
}

static int resume_jobs(struct engine *en, struct err *e)
{
	struct store_filter f = {"state", "running"};
	struct store_query q = {.filters = &f, .nfilters = 1};

	return en->store->ops->list(en->store, &model_jobs, &q, resume_job, en, NULL, e);
}

/* What couldn't be started, or ended without being able to write it down. */
static void resume_left(struct engine *en)
{
	struct err e = {0};

	if (resume_jobs(en, &e) < 0 || task_resume_all(en, &e) < 0)
		log_warn("the clockwork can't start what is to run: %s", *e.msg ? e.msg : "no thread");
}

static void *clockwork_main(void *arg)
{
	struct engine *en = arg;
	double pinged = id_now_mono(), minute = 0, resumed = pinged, paced = pinged, scheduled = 0, looked = 0;
	double swept = 0;

	while (clockwork_sleep(en)) {
		double now = id_now_mono();
		bool news;

		pthread_mutex_lock(&en->lock);
		for (struct live *l = en->live; l; l = l->next)
			if (l->pace.part < PACE_PARTS && now - paced >= 1)
				l->tick = ++en->tick;
		paced = now - paced >= 1 ? now : paced;
		news = en->tick != en->tick_announced;
		en->tick_announced = en->tick;
		pthread_mutex_unlock(&en->lock);
		seen_tick(en);
		save_progress(en);
		/* What another center left, soon. */
		if (now - resumed > (en->store->share ? MIN(10, en->s.lease / 20) : 10)) {
			resumed = now;
			resume_left(en);
		}
		if (now - looked > en->s.instances_tick) {
			looked = now;
			instance_tick(en);
		}
		if (now - scheduled > en->s.hour / 60) {
			scheduled = now;
			schedule_tick(en);
		}
		if (now - minute > en->s.hour / 60) {
			minute = now;
			schedule_tend(en);
			expire_jobs(en);
			notify_expiring(en);
		}
		if (swept == 0 || now - swept > en->s.hour || sweep_is_wanted()) {
			swept = now;
			sweep_start(en);
		}
		if (news || now - pinged > 15) {
			pinged = now;
			engine_wake(en);
		}
	}
	return NULL;
}

/* ---- start and stop ---- */

int engine_start(struct engine *en, struct err *e)
{
	int r = seen_load(en, e);

	id_new("start", en->start);
	if (r == 0)
		r = share_start(en, e);
	joblog_sweep(en);
	en->trim_wanted = true; /* what an earlier center couldn't do any more */
	pace_load(en);
	if (r == 0)
		r = task_resume_all(en, e);
	if (r == 0)
		r = resume_jobs(en, e);
	if (r < 0)
		return r;
	if (pthread_create(&en->clockwork, NULL, clockwork_main, en) != 0)
		return err_set(e, -EAGAIN, "cannot start a thread");
	en->clockwork_runs = true;
	return 0;
}

void engine_stop(struct engine *en)
{
	pthread_mutex_lock(&en->lock);
	en->stopping = true;
	pthread_cond_broadcast(&en->changed);
	while (en->live || en->tasks || en->leaving || en->asks)
		pthread_cond_wait(&en->changed, &en->lock);
	pthread_mutex_unlock(&en->lock);
	if (en->clockwork_runs)
		pthread_join(en->clockwork, NULL);
	share_stop(en);
}
