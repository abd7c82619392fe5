/*
 * A migration test: the run of a job that makes no image. It goes through the same stages as a migration; here is what
 * it does in the last two, and what becomes of its report.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/io.h"
#include "base/log.h"
#include "base/str.h"
#include "center/compatible.h"
#include "center/engine.h"
#include "center/findings.h"

#define PICTURE_MAX (16u << 20)

bool testing_is_test(const struct model_job *job)
{
	return job->testing != NO_TEST;
}

json_t *testing_offer(const json_t *parameters, bool test)
{
	json_t *o = json_deep_copy(parameters);

	if (o && test)
		json_object_set_new(o, "boot_only", json_true());
	return o;
}

uint64_t testing_kept(const struct model_job *job)
{
	const json_t *copy = json_object_get(job->test, "copy");
	double bytes = json_number_value(json_object_get(copy, "copied_bytes"));

	return json_is_true(json_object_get(copy, "kept")) && bytes > 0 && bytes < 1e18 ? (uint64_t)bytes : 0;
}

/* ---- the report, as the job moves on ---- */

static void set_state(struct model_job *job, const char *state, double now)
{
	if (!job->test)
		return;
	json_object_set_new(job->test, "state", json_string(state));
	json_object_set_new(job->test, "finished", json_real(now));
}

static void apply_test(struct model_job *job, const struct job_answer *a, bool over,
		       const struct engine_failure *failure, double now)
{
	if (job->state != JOB_RUNNING && a->state == JOB_RUNNING)
		model_take_json(&job->test, json_pack("{s:s, s:s, s:f, s:n}", "method", model_testings[job->testing],
						      "state", "running", "started", now, "finished"));
	else if (over || (failure && strcmp(failure->code, "test_failed") == 0))
		set_state(job, "done", now);
	else if (a->state == JOB_IN_ERROR || a->state == JOB_STOPPED)
		set_state(job, a->state == JOB_STOPPED ? "stopped" : "failed", now);
	if (over)
		job->testing = NO_TEST;
}

void testing_apply(struct model_job *job, const struct job_answer *a, enum job_event event,
		   const struct engine_failure *failure, double now)
{
	bool over = testing_is_over(job, event);

	if (testing_is_test(job)) {
		apply_test(job, a, over, failure, now);
		return;
	}
	if (!json_object_get(job->test, "prediction") || json_object_get(job->test, "actual") ||
	    job->state != JOB_RUNNING)
		return;
	if (a->state == JOB_IN_ERROR || a->state == JOB_STOPPED)
		json_object_set_new(job->test, "interrupted", json_true());
	if (a->state == JOB_FINISHED || a->state == JOB_WAITING)
		findings_conclude(job->test, job->stages, job->progress);
}

bool testing_is_over(const struct model_job *job, enum job_event event)
{
	return testing_is_test(job) && job->state == JOB_RUNNING && job->stage == JOB_CLEANING &&
	       event == JOB_STAGE_DONE;
}

/* ---- the picture: it stays with the job ---- */

void testing_picture(void *arg, const char *job, char *path, size_t size)
{
	const struct engine *en = arg;

	snprintf(path, size, "%s/tests/%s.png", en->state, job);
}

void testing_forget(struct engine *en, const char *job)
{
	char path[4300];

	testing_picture(en, job, path, sizeof(path));
	if (unlink(path) < 0 && errno != ENOENT)
		log_warn("cannot remove '%s'", path);
}

static bool keep_picture(struct live *l, const json_t *boot)
{
	const char *from = json_string_value(json_object_get(boot, "screenshot"));
	_cleanup_free_ char *png = NULL;
	struct err e = {0};
	char path[4300], dir[4200];
	size_t n;

	testing_forget(l->engine, l->job);
	if (!from || io_read_file(from, PICTURE_MAX, &png, &n, &e) < 0)
		return false;
	snprintf(dir, sizeof(dir), "%s/tests", l->engine->state);
	testing_picture(l->engine, l->job, path, sizeof(path));
	if (io_mkdirs(dir, 0700, &e) == 0 && io_write_file_atomic(path, png, n, 0600, &e) == 0)
		return true;
	log_warn("job %s: the picture of its test isn't kept: %s", l->job, e.msg);
	return false;
}

/* ---- processing ---- */

/* Trouble of ours says nothing about the server. */
static bool is_ours(int r)
{
	return r == -ENOSPC || r == -EAGAIN || r == -EBUSY || r == -ENOMEM || r == -ECANCELED;
}

static double stage_seconds(const struct model_job *job, const char *name)
{
	json_t *v;
	size_t i;

	json_array_foreach(job->stages, i, v) if (strcmp(json_string_value(json_object_get(v, "name")) ?: "", name) ==
						  0) return json_number_value(json_object_get(v, "seconds"));
	return 0;
}

static json_t *instance_findings(struct live *l, const struct model_job *job, const json_t *inventory)
{
	_cleanup_(model_instance_release) struct model_instance in = {0};
	struct store *s = l->engine->store;

	if (job->destination != DESTINATION_INSTANCE || !job->instance)
		return NULL;
	return compatible_check(inventory,
				s->ops->get(s, &model_instances, job->instance, &in, NULL) == 0 ? in.seen : NULL, NULL);
}

static uint64_t region_free(struct live *l)
{
	struct provider *p = l->engine->provider;
	_cleanup_json_ json_t *capacity = NULL;
	json_t *v;

	if (p->ops->capacity(p, &capacity, NULL) < 0)
		return UINT64_MAX;
	v = json_object_get(capacity, "free");
	return json_is_integer(v) ? (uint64_t)MAX(json_integer_value(v), (json_int_t)0) : UINT64_MAX;
}

static void put_report(struct model_job *job, void *arg)
{
	json_t *report = arg, *v;
	const char *key;

	if (!job->test)
		job->test = json_object();
	json_object_foreach(report, key, v) json_object_set(job->test, key, v);
}

struct trial {
	struct model_source source;
	json_t *conversion, *boot;
	struct err conversion_error, boot_error;
	double converting, booting;
	json_t *network; /* it was converted for; NULL: none of its own */
	bool picture;
};

static void trial_release(struct trial *t)
{
	model_source_release(&t->source);
	json_decref(t->conversion);
	json_decref(t->boot);
	json_decref(t->network);
}

static int try_conversion(struct live *l, struct model_job *job, struct trial *t, struct engine_failure *f)
{
	_cleanup_json_ json_t *request = NULL;
	double began = id_now_mono();
	struct err e = {0};
	int r;

	if (address_resolve(l->engine, job, t->source.inventory, &t->network, &e) < 0)
		return runner_fail(f, "address_unknown", false, "%s", e.msg);
	request = runner_request(l, job, &t->source, t->network);
	if (!request)
		return runner_fail(f, "internal", true, "out of memory");
	r = runner_convert(l, request, &t->conversion, &t->conversion_error);
	t->converting = id_now_mono() - began;
	if (r < 0 && (runner_cancelled(l) || is_ours(r)))
		return runner_fail_err(f, "convert_failed", &t->conversion_error);
	return 0;
}

static int try_boot(struct live *l, struct model_job *job, struct trial *t, struct engine_failure *f)
{
	_cleanup_json_ json_t *options = task_boot_options(l->engine, job->source);
	double began = id_now_mono();
	int r;

	if (t->network)
		json_object_set(options, "network", t->network);
	engine_step(l, "test_boot", "booting the copy");
	pace_begin(l, PACE_TEST_BOOT);
	r = runner_boot_copy(l, options, &t->boot, &t->boot_error);
	t->booting = id_now_mono() - began;
	if (r < 0 && (runner_cancelled(l) || is_ours(r)))
		return runner_fail_err(f, "test_boot_failed", &t->boot_error);
	pace_end(l, r == 0 && task_boot_passed(t->boot));
	t->picture = keep_picture(l, t->boot);
	return 0;
}

/* The agent's last word may come a moment after the receiver's. */
static json_t *wait_for_result(struct live *l, const struct model_job *job)
{
	double end = id_now_mono() + l->engine->s.last_word;
	struct store *s = l->engine->store;

	for (;;) {
		_cleanup_(model_run_release) struct model_run run = {0};

		if (job->run && s->ops->get(s, &model_runs, job->run, &run, NULL) == 0 && run.result)
			return json_incref(run.result);
		if (id_now_mono() >= end || runner_cancelled(l))
			return NULL;
		nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	}
}

static json_t *make_report(struct live *l, const struct model_job *job, const struct trial *t)
{
	_cleanup_json_ json_t *result = wait_for_result(l, job),
			      *instance = instance_findings(l, job, t->source.inventory);
	bool critical = t->conversion_error.code || t->boot_error.code;
	struct findings_facts f = {.inventory = t->source.inventory,
				   .result = result,
				   .progress = job->progress,
				   .conversion = t->conversion,
				   .boot = t->boot,
				   .instance = instance,
				   .preparing = stage_seconds(job, "preparing"),
				   .syncing = stage_seconds(job, "syncing"),
				   .converting = t->converting,
				   .booting = t->booting,
				   .image = pace_guess(l->engine, PACE_IMAGE),
				   .cleaning = pace_guess(l->engine, PACE_CLEANING),
				   .region_free = region_free(l),
				   .boots = json_is_true(json_object_get(job->parameters, "test_boot")),
				   .keeps =
				       job->testing == TEST_AND_MIGRATE && !model_is_incremental(job) && !critical};
	json_t *report;

	f.conversion_error = t->conversion_error.code ? t->conversion_error.msg : NULL;
	f.boot_error = t->boot_error.code ? t->boot_error.msg : NULL;
	report = findings_report(&f);
	if (report && f.keeps && findings_critical(report)) {
		json_decref(report);
		f.keeps = false;
		report = findings_report(&f);
	}
	if (report)
		json_object_set_new(report, "picture", json_boolean(t->picture));
	return report;
}

int testing_process(struct live *l, struct model_job *job, struct engine_failure *f)
{
	_cleanup_(trial_release) struct trial t = {0};
	_cleanup_json_ json_t *report = NULL;
	struct store *s = l->engine->store;
	struct err e = {0};

	if (s->ops->get(s, &model_sources, job->source, &t.source, &e) < 0 && e.code != -ENOENT)
		return runner_fail_err(f, "internal", &e);
	if (!runner_confirm(l) || try_conversion(l, job, &t, f) < 0)
		return -1;
	if (!t.conversion_error.code && (!runner_confirm(l) || try_boot(l, job, &t, f) < 0))
		return -1;
	report = make_report(l, job, &t);
	if (!report)
		return runner_fail(f, "internal", true, "out of memory");
	if (engine_job_change(l->engine, l->job, JOB_PROCESSING, put_report, report, &e) < 0)
		return runner_fail_err(f, "internal", &e);
	return 0;
}

/* ---- cleaning: of a test nothing remains but its report ---- */

static const char *first_critical(const json_t *report)
{
	json_t *v;
	size_t i;

	json_array_foreach(json_object_get(report, "items"), i,
			   v) if (strcmp(json_string_value(json_object_get(v, "level")) ?: "", "critical") ==
				  0) return json_string_value(json_object_get(v, "message"))
	    ?: "?";
	return "?";
}

int testing_clean(struct live *l, struct model_job *job, struct engine_failure *f)
{
	unsigned critical = findings_critical(job->test);
	struct provider *p = l->engine->provider;
	struct err e = {0};
	const char *first;

	engine_step(l, "cleaning", "removing what the test needed");
	pace_begin(l, PACE_CLEANING);
	if (!runner_confirm(l))
		return -1;
	if (!testing_kept(job) && p->ops->job_remove(p, l->job, &e) < 0)
		return runner_fail_err(f, "clean_failed", &e);
	if (job->testing != TEST_AND_MIGRATE || !critical)
		return 0;
	first = first_critical(job->test);
	return runner_fail(
	    f, "test_failed", false,
	    "the migration test found %u critical item(s), so the migration was not begun: %.*s; see the "
	    "report, then start the job again to repeat the test",
	    critical, (int)str_cut(first, 400), first);
}
