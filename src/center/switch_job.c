/* What a job, a person and the clockwork want of a migration onto an instance. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/err.h"
#include "base/log.h"
#include "base/str.h"
#include "center/compatible.h"
#include "center/instances.h"
#include "center/switch_int.h"

/* ---- the job's part ---- */

static int fail_err(struct engine_failure *f, const char *code, const struct err *e)
{
	return e->code == -ENOSPC ? runner_no_space(f, e->msg) : runner_fail(f, code, e->code == -EBUSY, "%s", e->msg);
}

struct begin {
	const struct model_job *job;
	const json_t *seen;
	char set[ID_MAX];
};

static int set_begun(void *arg_row, void *arg, struct err *e)
{
	struct model_instance *row = arg_row;
	const struct begin *b = arg;
	const char *state = json_string_value(json_object_get(b->seen, "state")) ?: "";

	if (row->deleting)
		return err_set(e, -ENOENT, "the instance '%s' is being deleted", row->name);
	if (row->switching)
		return err_set(e, -EEXIST, "another migration onto the instance waits to be confirmed or rolled back");
	model_take_json(&row->switching,
			json_pack("{s:s, s:s, s:s, s:O, s:s, s:b, s:b, s:f, s:f, s:s*, s:s*}", "job", b->job->id,
				  "image", b->job->image, "step", switch_steps[SWITCH_PREPARING], "from",
				  json_object_get(b->seen, "set"), "to", b->set, "ran", strcmp(state, "running") == 0,
				  "keep_failed",
				  json_is_false(json_object_get(b->job->parameters, "rollback_on_failure")), "started",
				  id_now(), "since", id_now(), "was_image", row->image, "was_job", row->job));
	return row->switching ? 0 : err_nomem(e);
}

/* What was looked at when the job was made may have changed; room for the copy is no question any more. */
static int check_again(struct ride *d, const struct model_job *job, const json_t *seen, struct engine_failure *f)
{
	_cleanup_(model_source_release) struct model_source src = {0};
	_cleanup_(str_release) struct str why = {0};
	_cleanup_json_ json_t *found = NULL;
	const json_t *finding;
	struct err e = {0};
	size_t i;
	int r = d->en->store->ops->get(d->en->store, &model_sources, job->source, &src, &e);

	if (r == -ENOENT)
		return 0;
	found = r == 0 ? compatible_check(src.inventory, seen, NULL) : NULL;
	json_array_foreach(found, i,
			   finding) if (strcmp(json_string_value(json_object_get(finding, "level")), "passed") != 0)
	    joblog_say(d->live->feed, "%s: %s", json_string_value(json_object_get(finding, "level")),
		       json_string_value(json_object_get(finding, "message")));
	if (compatible_passed(found))
		return 0;
	compatible_summary(found, &why);
	return why.s ? runner_fail(f, "not_compatible", false, "%.600s", why.s)
		     : runner_fail(f, "internal", true, "%s", e.msg);
}

static int begin(struct ride *d, const struct model_job *job, const struct model_instance *row,
		 struct engine_failure *f)
{
	_cleanup_(model_instance_release) struct model_instance now = {0};
	_cleanup_json_ json_t *seen = NULL;
	struct begin b = {.job = job};
	struct err e = {0};

	if (switch_check_host(d->en, row, &e) < 0 || engine_hypervisor(d->en, row->region, &d->h, &e) < 0 ||
	    d->h->ops->get(d->h, row->ref, &seen, &e) < 0)
		return fail_err(f, "switch_failed", &e);
	if (check_again(d, job, seen, f) < 0)
		return -1;
	b.seen = seen;
	id_new("set", b.set);
	/* One whose disks came from elsewhere has them as a set as well, or there would be no way back. */
	if (!json_is_string(json_object_get(seen, "set")))
		return runner_fail(f, "switch_failed", false, "the instance has no disks that could be kept");
	if (store_change(d->en->store, &model_instances, d->instance, "updated", set_begun, &b, &now, &e) < 0)
		return fail_err(f, e.code == -EEXIST ? "instance_in_use" : "switch_failed", &e);
	engine_wake(d->en);
	return 0;
}

static int clear_error(void *row, void *arg, struct err *e)
{
	json_object_del(((struct model_instance *)row)->switching, "error");
	return 0;
}

/* A system that stayed although it hadn't come up: somebody may have helped it. */
static int judge_again(struct ride *d, const struct model_instance *row, struct engine_failure *f)
{
	_cleanup_(model_instance_release) struct model_instance now = {0};
	struct err e = {0};

	d->step = SWITCH_SWITCHED;
	if (switch_check_host(d->en, row, &e) < 0 || engine_hypervisor(d->en, row->region, &d->h, &e) < 0 ||
	    switch_judge(d, row, &e) < 0)
		return fail_err(f, "system_not_up", &e);
	return store_change(d->en->store, &model_instances, d->instance, "updated", clear_error, NULL, &now, &e) < 0
		   ? fail_err(f, "internal", &e)
		   : 0;
}

static int went_back(const struct ride *d, const struct model_job *job, struct engine_failure *f)
{
	_cleanup_(model_job_release) struct model_job now = {0};
	const char *why = "";

	if (d->en->store->ops->get(d->en->store, &model_jobs, job->id, &now, NULL) == 0 && now.step_text)
		why = now.step_text;
	if (!*why)
		return runner_fail(f, "rolled_back", false,
				   "somebody rolled the instance back; it is as it was before");
	return runner_fail(f, "switch_failed", false, "the instance was rolled back and is as it was before: %.500s",
			   why);
}

static const char *error_of(const struct model_instance *row)
{
	return json_string_value(json_object_get(json_object_get(row->switching, "error"), "message"));
}

/* How it ended, by the row. */
static int outcome(struct ride *d, const struct model_job *job, struct engine_failure *f)
{
	_cleanup_(model_instance_release) struct model_instance row = {0};
	struct err e = {0};

	if (d->en->store->ops->get(d->en->store, &model_instances, d->instance, &row, &e) < 0)
		return fail_err(f, "switch_failed", &e);
	/* Confirmed in this very moment, or never begun again. */
	if (!row.switching)
		return row.job && strcmp(row.job, job->id) == 0 ? 0 : went_back(d, job, f);
	if (error_of(&row))
		return runner_fail(f, "system_not_up", false,
				   "%.500s; the new system stays, for you to look at: roll the instance back, or start "
				   "the job again when it is up",
				   error_of(&row));
	joblog_say(
	    d->live->feed,
	    "the instance '%s' runs the new system. Next steps: look at it, then confirm the migration ('replant "
	    "instances confirm %s'), or take it back ('replant instances rollback %s'); the source may be shut "
	    "down",
	    row.name, row.name, row.name);
	return 0;
}

static int run_held(struct ride *d, const struct model_job *job, struct engine_failure *f)
{
	_cleanup_(model_instance_release) struct model_instance row = {0};
	struct err e = {0};

	if (d->en->store->ops->get(d->en->store, &model_instances, d->instance, &row, &e) < 0)
		return fail_err(f, "switch_failed", &e);
	/* Before the center was killed. */
	if (job->step_name && strcmp(job->step_name, SWITCHING_BACK) == 0)
		return went_back(d, job, f);
	if (!row.switching && row.job && strcmp(row.job, job->id) == 0)
		return 0;
	if (row.switching && !switch_is_of(&row, job->id))
		return runner_fail(f, "instance_in_use", false,
				   "another migration onto the instance waits to be confirmed or rolled back");
	if (switching_step(&row) == SWITCH_SWITCHED && error_of(&row))
		return judge_again(d, &row, f);
	if (!row.switching && begin(d, job, &row, f) < 0)
		return -1;
	if (switch_carry(d, &e) < 0)
		return fail_err(f, "switch_failed", &e);
	return outcome(d, job, f);
}

int switching_run(struct live *l, const struct model_job *job, struct engine_failure *f)
{
	struct ride d = {.en = l->engine, .live = l, .instance = job->instance};
	struct joblog_feed feed;
	struct err e = {0};
	int r;

	while (!image_mark(d.en, d.instance, IMAGE_REMOVE)) {
		engine_step(l, "switch", "waiting for what is being done with the instance");
		nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
		if (runner_cancelled(l))
			return -1;
	}
	joblog_open(&feed, l, JOBLOG_BOOT);
	r = switch_take(&d, job->id, &e);
	if (r == 0) {
		r = run_held(&d, job, f);
		switch_leave(&d);
	} else if (!runner_cancelled(l)) {
		fail_err(f, "switch_failed", &e);
	}
	joblog_say(&feed, "%s", r < 0 ? f->message : "the instance is switched over");
	joblog_close(&feed);
	image_unmark(d.en, d.instance, IMAGE_REMOVE);
	return r;
}

bool switching_has_begun(struct engine *en, const struct model_job *job)
{
	_cleanup_(model_instance_release) struct model_instance row = {0};

	if (job->step_name && strcmp(job->step_name, SWITCHING_BACK) == 0)
		return true;
	return job->instance && en->store->ops->get(en->store, &model_instances, job->instance, &row, NULL) == 0 &&
	       (switch_is_of(&row, job->id) || (row.job && strcmp(row.job, job->id) == 0));
}

void switching_boot_options(struct engine *en, const struct model_job *job, json_t *options)
{
	_cleanup_(model_instance_release) struct model_instance row = {0};
	json_t *settings;

	if (job->destination != DESTINATION_INSTANCE ||
	    en->store->ops->get(en->store, &model_instances, job->instance, &row, NULL) < 0)
		return;
	/* As the hypervisor has them, with what nobody said. */
	settings = json_object_get(row.seen, "settings") ?: row.settings;
	if (settings)
		json_object_set(options, "settings", settings);
}

/* ---- people, and what nobody carries ---- */

static int start(struct engine *en, const char *instance)
{
	return task_start_marked(en, TASK_SWITCH, instance, instance, IMAGE_REMOVE);
}

static int person_says(struct engine *en, const char *instance, enum switch_event event, struct api_fault *f)
{
	_cleanup_(model_instance_release) struct model_instance row = {0};
	struct news n = {.step = SWITCH_STEPS, .event = event, .by = switch_events[event]};
	struct err e = {0};

	if (en->store->ops->get(en->store, &model_instances, instance, &row, &e) < 0)
		return api_fault_err(f, &e);
	if (instance_check_host(en, &row, f) < 0)
		return -1;
	model_instance_release(&row);
	if (switch_record(en, instance, &n, &row, &e) < 0)
		return n.refused ? api_fault_set(f, 409, "invalid_state", NULL, "%s", n.refused) : api_fault_err(f, &e);
	/* Where it is carried already, or can't be now, the row says what is to be done. */
	if (start(en, instance) < 0)
		log_warn("instance %s: no thread for it now; trying again soon", instance);
	return 0;
}

int switching_rollback(void *arg, const char *instance, struct api_fault *f)
{
	return person_says(arg, instance, SWITCH_ROLL_BACK, f);
}

int switching_confirm(void *arg, const char *instance, struct api_fault *f)
{
	return person_says(arg, instance, SWITCH_CONFIRM, f);
}

static int collect_work(void *arg, void *row)
{
	const struct model_instance *instance = row;

	return switch_is_work(switching_step(instance)) ? engine_ids_add(arg, instance->id) : 0;
}

/* One whose job has ended without carrying it through goes back. */
static int resume_one(struct engine *en, const char *instance, struct err *e)
{
	_cleanup_(model_instance_release) struct model_instance row = {0}, now = {0};
	_cleanup_(model_job_release) struct model_job job = {0};
	struct err why = {.code = -ECANCELED, .msg = "the job ended before the instance was switched over"};
	struct news n = {.event = SWITCH_FAILED, .code = "switch_failed", .failure = &why};
	int r = en->store->ops->get(en->store, &model_instances, instance, &row, e);

	/* Where it runs it is carried. */
	if (r < 0 || instance_elsewhere(en, &row))
		return r;
	n.step = switching_step(&row);
	r = en->store->ops->get(en->store, &model_jobs, switch_word(&row, "job"), &job, e);
	if (r < 0 && r != -ENOENT)
		return r;
	if (r == 0 && job.state == JOB_RUNNING)
		return 0;
	if (!switch_is_back(n.step) && n.step != SWITCH_CONFIRMING)
		r = switch_record(en, instance, &n, &now, e);
	return r < 0 && r != -ECANCELED && r != -ENOENT ? r : MIN(start(en, instance), 0);
}

int switching_resume(struct engine *en, struct err *e)
{
	struct store_query all = {0};
	struct engine_ids work = {0};
	int r = en->store->ops->list(en->store, &model_instances, &all, collect_work, &work, NULL, e);

	for (size_t i = 0; i < work.n && r >= 0; i++)
		r = resume_one(en, work.v[i], e);
	free(work.v);
	switch_reserve_make(en);
	return MIN(r, 0);
}

/* ---- does it fit? ---- */

int switching_check(void *arg, const json_t *inventory, const char *instance, struct api_fault *f)
{
	_cleanup_(model_instance_release) struct model_instance row = {0};
	_cleanup_json_ json_t *seen = NULL, *capacity = NULL, *found = NULL;
	_cleanup_(str_release) struct str why = {0};
	struct api_fault ignored = {0};
	struct engine *en = arg;
	struct err e = {0};
	int r = en->store->ops->get(en->store, &model_instances, instance, &row, &e);

	if (r < 0 && r != -ENOENT)
		return api_fault_err(f, &e);
	if (r == 0 && row.ref && instance_ask_get(en, row.region, row.ref, &seen, f) < 0 && f->status != 404)
		return -1;
	*f = (struct api_fault){0};
	if (r == 0)
		instance_ask_capacity(en, row.region, &capacity, &ignored);
	found = compatible_check(inventory, seen, capacity);
	if (compatible_passed(found))
		return 0;
	compatible_summary(found, &why);
	return api_fault_set(f, 409, "not_compatible", "instance", "%s", why.s ? why.s : "out of memory");
}

void switching_forget(struct engine *en, const char *job)
{
	char path[4300];

	switching_picture(en, job, path, sizeof(path));
	unlink(path);
}
