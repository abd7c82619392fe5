/* The runs of a job: their numbers, when the next one is due, how many images stay. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "center/instances.h"

static double interval(struct engine *en, const struct model_job *job)
{
	json_int_t hours = json_integer_value(json_object_get(job->parameters, "interval_hours"));

	return (double)MAX(hours, (json_int_t)1) * en->s.hour;
}

bool schedule_has_image(const struct model_job *job)
{
	return job->image && job->image_pending && strcmp(job->image, job->image_pending) == 0;
}

/* What the last run left in memory says nothing of the new one. */
static void forget_live(struct engine *en, const char *job)
{
	struct live *l;
	ENGINE_LOCK(en);

	l = engine_live(en, job);
	if (l)
		model_take_json(&l->progress, NULL);
}

/* A test has no number: it is none of the job's runs. */
static void begin_anew(struct engine *en, struct model_job *job, int trigger)
{
	job->trigger = trigger;
	model_set(&job->image_pending, NULL);
	model_take_json(&job->progress, NULL);
	model_take_json(&job->stages, json_array());
	forget_live(en, job->id);
}

static void begin_run(struct engine *en, struct model_job *job, int trigger)
{
	job->number++;
	begin_anew(en, job, trigger);
}

void schedule_apply(struct engine *en, struct model_job *job, const struct job_answer *a, enum job_event event,
		    bool clock, const struct engine_failure *failure, double now)
{
	bool cut_over = event == JOB_CUT_OVER || event == JOB_CUT_OVER_SYNC;
	bool tested = testing_is_over(job, event);
	bool starts = (job->state != JOB_RUNNING || tested) && a->state == JOB_RUNNING && a->stage == JOB_PREPARING;

	/* A test that goes well leaves the migration to be started when it was to be; else somebody has to look. */
	if (job->testing != TEST_ONLY || (a->state != JOB_RUNNING && a->state != JOB_READY))
		job->next_run = 0;
	job->last |= cut_over;
	if (starts && testing_is_test(job) && !tested)
		begin_anew(en, job, TRIGGER_MANUAL);
	else if (starts && job->number == job->runs_done)
		begin_run(en, job, cut_over ? TRIGGER_CUT_OVER : clock ? TRIGGER_SCHEDULE : TRIGGER_MANUAL);
	if (event == JOB_STAGE_DONE && job->stage == JOB_PROCESSING)
		job->runs_done = job->number;
	if (a->state == JOB_WAITING || a->state == JOB_IN_ERROR)
		job->run_ended = now;
	/* A source that was away at the wrong moment doesn't end an incremental job: it is tried again next time. */
	if (a->state == JOB_WAITING ||
	    (a->state == JOB_IN_ERROR && failure && failure->temporary && model_is_incremental(job) && job->runs_done))
		job->next_run = now + interval(en, job);
}

/* ---- what is due ---- */

static int collect_due(void *arg, void *row)
{
	const struct model_job *job = row;
	struct engine_ids *l = arg;

	return job->next_run > 0 && job->next_run <= l->now ? engine_ids_add(l, job->id) : 0;
}

void schedule_tick(struct engine *en)
{
	static const char *const states[] = {"ready", "waiting", "in_error"};

	for (size_t i = 0; i < ARRAY_SIZE(states); i++) {
		struct store_filter f = {"state", states[i]};
		struct store_query q = {.filters = &f, .nfilters = 1};
		struct engine_ids d = {.now = id_now()};
		struct api_fault fault;

		if (en->store->ops->list(en->store, &model_jobs, &q, collect_due, &d, NULL, NULL) == 0)
			for (size_t k = 0; k < d.n; k++)
				engine_job_event(en, d.v[k], ENGINE_CLOCK, JOB_START, NULL, &fault);
		free(d.v);
	}
}

static int replan(void *row, void *arg, struct err *e)
{
	struct model_job *job = row;

	if (job->next_run <= 0 || job->state == JOB_READY)
		return -ECANCELED;
	job->next_run = job->run_ended + interval(arg, job);
	return 0;
}

void schedule_replan(struct engine *en, const char *id)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	struct err e = {0};
	int r = store_change(en->store, &model_jobs, id, NULL, replan, en, &job, &e);

	if (r < 0 && r != -ECANCELED)
		log_warn("job %s: %s", id, e.msg);
}

/* ---- images ---- */

static int collect_image(void *arg, void *row)
{
	const struct model_image *im = row;

	/* One that was repaired is a person's. */
	return im->deleting || im->base ? 0 : engine_ids_add(arg, im->id);
}

void schedule_keep_images(struct engine *en, const char *id)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	struct store_filter f = {"job", id};
	struct store_query q = {.filters = &f, .nfilters = 1};
	struct engine_ids d = {0};
	struct err e = {0};
	json_int_t max;
	size_t left;

	/* What a person says while the run is on counts, too. */
	if (en->store->ops->get(en->store, &model_jobs, id, &job, &e) < 0 ||
	    en->store->ops->list(en->store, &model_images, &q, collect_image, &d, NULL, &e) < 0) {
		log_warn("job %s: %s", id, e.msg);
		free(d.v);
		return;
	}
	max = json_integer_value(json_object_get(job.parameters, "max_images"));
	left = d.n;
	/* Newest first; the newest itself always stays. */
	for (size_t i = d.n; i-- > 1 && left > (size_t)MAX(max, (json_int_t)1);) {
		char user[MODEL_NAME_MAX + 1];
		struct api_fault fault = {0};

		if (instance_on_image(en, d.v[i], user, NULL) > 0)
			continue;
		if (task_image_remove(en, d.v[i], &fault) >= 0) {
			log_info("job %s: image %s is removed for a newer one", id, d.v[i]);
			left--;
		} else {
			log_info("job %s: image %s stays for now: %s", id, d.v[i], fault.message);
		}
	}
	free(d.v);
}

static int collect_incremental(void *arg, void *row)
{
	const struct model_job *job = row;

	return model_is_incremental(job) ? engine_ids_add(arg, job->id) : 0;
}

void schedule_tend(struct engine *en)
{
	struct store_filter f = {"state", "waiting"};
	struct store_query q = {.filters = &f, .nfilters = 1};
	struct engine_ids d = {0};
	struct err e = {0};

	if (en->store->ops->list(en->store, &model_jobs, &q, collect_incremental, &d, NULL, &e) < 0)
		log_warn("%s", e.msg);
	for (size_t i = 0; i < d.n; i++)
		schedule_keep_images(en, d.v[i]);
	free(d.v);
}
