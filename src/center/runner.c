/* The thread of a job: it does what the job's stage asks for, and tells the state machine how it went. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/err.h"
#include "base/log.h"
#include "base/str.h"
#include "center/checking.h"
#include "center/switching.h"
#include "center/verify.h"

#define RESERVE (UINT64_C(64) << 20) /* beside the data: manifests, overlays' headers */

static int fail_err(struct engine_failure *f, const char *code, const struct err *e)
{
	if (e->code == -ENOSPC)
		return runner_no_space(f, e->msg);
	return runner_fail(f, code, e->code == -EAGAIN || e->code == -EBUSY, "%s", e->msg);
}

/* ---- preparing: is there room? ---- */

static int prepare(struct live *l, struct model_job *job, struct engine_failure *f)
{
	_cleanup_(model_source_release) struct model_source src = {0};
	_cleanup_json_ json_t *capacity = NULL, *network = NULL;
	struct engine *en = l->engine;
	uint64_t used, have, written;
	char a[16], b[16];
	struct err e = {0};
	json_t *space;

	engine_step(l, "checking", "looking whether the region has room");
	pace_begin(l, PACE_CHECK);
	if (en->store->ops->get(en->store, &model_sources, job->source, &src, &e) < 0)
		return runner_fail(f, "source_gone", false, "%s", e.msg);
	/* Better said now than after all was sent. */
	if (address_resolve(en, job, src.inventory, &network, &e) < 0)
		return runner_fail(f, "address_unknown", false, "%s", e.msg);
	/* What a later run brings is known to nobody yet: its receiver looks. */
	if (job->number > 1)
		return 0;
	if (en->provider->ops->capacity(en->provider, &capacity, &e) < 0)
		return fail_err(f, "region_failed", &e);
	pace_end(l, true);
	space = json_object_get(capacity, "free");
	if (!json_is_integer(space) || !src.inventory)
		return 0;
	/* What earlier attempts have written is there already. */
	written = (uint64_t)json_integer_value(json_object_get(job->progress, "bytes_written"));
	used = model_inventory_used(src.inventory);
	written = MAX(written, testing_kept(job));
	used = used > written ? used - written : 0;
	have = (uint64_t)MAX(0, json_integer_value(space));
	if (have >= RESERVE && have - RESERVE >= used)
		return 0;
	if (testing_is_test(job))
		return 0; /* that is for its report to say; what it copies itself may well fit */
	return runner_fail(f, "no_space", true,
			   "the region has %s free, the source still needs %s; free space in the region, "
			   "then start the job again",
			   str_bytes(have, a, sizeof(a)), str_bytes(used, b, sizeof(b)));
}

/* A store that can't be read or written (a full disk) is waited for: nothing else would carry the job on. */
static void store_pause(struct live *l, const char *why)
{
	double end = id_now_mono() + ENGINE_STORE_PAUSE;

	log_error("job %s: %s; trying again", l->job, why);
	while (id_now_mono() < end && !runner_cancelled(l))
		nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
}

/* Before the next step changes what lies in the region: is the job still ours? */
static bool confirm(struct live *l)
{
	struct engine *en = l->engine;
	struct err e = {0};
	int r;

	while ((r = share_confirm(en, &e)) < 0 && r != -ECANCELED) {
		store_pause(l, e.msg);
		if (runner_cancelled(l))
			return false;
	}
	if (r < 0) {
		ENGINE_LOCK(en);
		l->lost = true;
	}
	return r == 0 && !runner_cancelled(l);
}

/* ---- processing: convert, make the image, boot it ---- */

/* What a machine says on its serial line. */
static void on_log(void *arg, const char *text, size_t n)
{
	struct live *l = arg;

	joblog_console(l->feed, text, n);
}

static void on_event(void *arg, const json_t *event)
{
	_cleanup_free_ char *text = NULL;
	const char *name = json_string_value(json_object_get(event, "event"));
	const char *step = json_string_value(json_object_get(event, "name"));
	json_int_t index = json_integer_value(json_object_get(event, "index"));
	json_int_t count = json_integer_value(json_object_get(event, "count"));
	struct live *l = arg;

	text = name ? jsn_text(event) : NULL;
	if (text)
		joblog_say(l->feed, "%s", text);
	if (!name || !step || strcmp(name, "step") != 0)
		return;
	l->converted = true;
	if (index > 0 && index <= count && count < 1000)
		engine_step(l, "convert", "step %d of %d: %.40s", (int)index, (int)count, step);
	else
		engine_step(l, "convert", "%.40s", step);
}

static void set_pending(struct model_job *job, void *arg)
{
	char **id = arg;

	free(job->image_pending);
	job->image_pending = *id;
	*id = NULL;
}

/* The image's id is written down before anything is made under it, and stays until the image has a row: after
 * a crash between the provider's image_create and the row, both calls are made again with it. */
static int pending_id(struct live *l, const struct model_job *job, char id[ID_MAX], struct engine_failure *f)
{
	_cleanup_free_ char *copy = NULL;
	struct err e = {0};

	if (job->image_pending) {
		snprintf(id, ID_MAX, "%s", job->image_pending);
		return 0;
	}
	id_new("image", id);
	copy = strdup(id);
	if (!copy)
		return runner_fail(f, "internal", true, "out of memory");
	if (engine_job_change(l->engine, l->job, JOB_PROCESSING, set_pending, &copy, &e) < 0)
		return fail_err(f, "internal", &e);
	return 0;
}

/* The disk of the inventory that was copied under this path. */
static json_t *inventory_disk(const json_t *inventory, const char *path)
{
	json_t *disk;
	size_t i;

	json_array_foreach(json_object_get(inventory, "disks"), i, disk)
	{
		if (strcmp(json_string_value(json_object_get(disk, "path")) ?: "", path) == 0)
			return disk;
	}
	return NULL;
}

/* One disk by the kernel's name of it on the source, and its other names there. */
static json_t *request_disk(const json_t *inventory, const char *path)
{
	json_t *disk = inventory_disk(inventory, path), *aliases = json_array(), *alias, *source;
	const char *name = json_string_value(json_object_get(disk, "name"));
	size_t i;

	if (name && str_starts(path, "/dev/disk/")) {
		source = json_sprintf("/dev/%.*s", (int)str_cut(name, 200), name);
		json_array_append_new(aliases, json_string(path));
	} else {
		source = json_string(path);
	}
	json_array_foreach(json_object_get(disk, "aliases"), i, alias)
	{
		if (json_is_string(alias) && strcmp(json_string_value(alias), path) != 0)
			json_array_append(aliases, alias);
	}
	return json_pack("{s:o, s:o}", "source", source, "aliases", aliases);
}

/* The disks in the order they were copied: the agent's last word names them; its inventory lists the same ones
 * when that word isn't there yet. */
static json_t *request_disks(struct live *l, const struct model_job *job, const json_t *inventory)
{
	_cleanup_(model_run_release) struct model_run run = {0};
	json_t *copied = NULL, *out = json_array(), *v;
	struct store *s = l->engine->store;
	size_t i;

	if (job->run && s->ops->get(s, &model_runs, job->run, &run, NULL) == 0)
		copied = json_object_get(run.result, "disks");
	if (!json_array_size(copied))
		copied = json_object_get(inventory, "disks");
	json_array_foreach(copied, i, v)
	{
		const char *path = json_string_value(json_is_object(v) ? json_object_get(v, "path") : v);

		if (i < 64)
			json_array_append_new(out, request_disk(inventory, path ? path : ""));
	}
	return out;
}

/* Each run's image has a name of its own. */
static void name_of(const struct model_job *job, char name[MODEL_NAME_MAX + 1])
{
	const char *base = job->image_name ? job->image_name : job->name;

	if (model_is_incremental(job))
		snprintf(name, MODEL_NAME_MAX + 1, "%.*s-run%llu", (int)str_cut(base, 100), base,
			 (unsigned long long)job->number);
	else
		snprintf(name, MODEL_NAME_MAX + 1, "%s", base);
}

/* What the image's manifest keeps of it; each boot of it is judged by the network. */
static json_t *meta_of(const struct model_job *job, const struct model_source *src, const char *image,
		       const json_t *network)
{
	char name[MODEL_NAME_MAX + 1];

	name_of(job, name);
	return json_pack("{s:s, s:s*, s:s, s:s, s:s, s:s*, s:O*, s:O*}", "job", job->id, "image", image, "name", name,
			 "region", job->region, "source", job->source, "hostname", src->hostname, "license",
			 json_object_get(job->parameters, "license"), "network", network);
}

/* What the conversion wants to know, which is more. */
static json_t *request_of(struct live *l, const struct model_job *job, const struct model_source *src,
			  const json_t *meta)
{
	json_t *o = json_copy((json_t *)meta), *disks = request_disks(l, job, src->inventory);

	if (src->inventory) {
		json_object_set_new(o, "inventory", json_copy(src->inventory));
		json_object_del(json_object_get(o, "inventory"), "survey");
	}
	json_object_set_new(o, "machine",
			    json_pack("{s:O*, s:O*}", "cpus", json_object_get(job->parameters, "transition_cpus"),
				      "memory_mib", json_object_get(job->parameters, "transition_memory")));
	if (json_object_set_new(o, "disks", disks) < 0) {
		json_decref(o);
		return NULL;
	}
	return o;
}

static int save_image(struct live *l, struct model_job *job, const char *id, json_t *manifest, json_t *report,
		      struct err *e)
{
	_cleanup_(model_image_release) struct model_image im = {.created = id_now()};
	_cleanup_(model_job_release) struct model_job now = {0};
	struct store *s = l->engine->store;
	char name[MODEL_NAME_MAX + 1];
	int r;

	name_of(job, name);
	if (model_set(&im.id, id) < 0 || model_set(&im.name, name) < 0 || model_set(&im.job, job->id) < 0 ||
	    model_set(&im.source, job->source) < 0 || model_set(&im.region, job->region) < 0)
		return err_nomem(e);
	model_take_json(&im.manifest, json_incref(manifest));
	model_take_json(&im.report, json_incref(report));
	r = s->ops->begin(s, e);
	if (r < 0)
		return r;
	r = s->ops->get(s, &model_jobs, l->job, &now, e);
	model_take_json(&im.tags, json_incref(now.tags)); /* as they are now: who may see it goes by them */
	if (r == 0)
		r = s->ops->put(s, &model_images, &im, e);
	if (r == 0 && (model_set(&now.image, id) < 0 || model_set(&now.image_pending, id) < 0 ||
		       model_set(&job->image, id) < 0 || model_set(&job->image_pending, id) < 0))
		r = err_nomem(e);
	if (r == 0)
		r = s->ops->put(s, &model_jobs, &now, e);
	if (r == 0)
		r = store_announce(s, &model_images, "created", &im, id_now(), e);
	if (r < 0) {
		s->ops->rollback(s);
		return r;
	}
	return s->ops->commit(s, e);
}

/* Which steps did what to which files; the report itself is kept with the image. */
static void log_report(struct live *l, const json_t *report)
{
	json_t *step, *file;
	size_t i, k;

	json_array_foreach(json_object_get(report, "steps"), i, step)
	{
		joblog_say(l->feed, "%s: %s, %s", json_string_value(json_object_get(step, "name")) ?: "?",
			   json_string_value(json_object_get(step, "state")) ?: "?",
			   json_string_value(json_object_get(step, "summary")) ?: "");
		json_array_foreach(json_object_get(step, "files"), k, file)
		    joblog_say(l->feed, "  %s %s", json_string_value(json_object_get(file, "action")) ?: "?",
			       json_string_value(json_object_get(file, "path")) ?: "?");
	}
}

static int convert(struct live *l, const json_t *request, json_t **ret, struct err *e)
{
	const struct provider_watch watch = {l, on_event, runner_cancelled, on_log};
	struct provider *p = l->engine->provider;
	struct joblog_feed feed;
	int r;

	engine_step(l, "convert", "preparing the system for its new home");
	l->converted = false;
	pace_begin(l, PACE_CONVERT);
	joblog_open(&feed, l, JOBLOG_CONVERSION);
	joblog_say(&feed, "the conversion begins");
	r = p->ops->convert(p, l->job, request, &watch, ret, e);
	log_report(l, *ret);
	joblog_say(&feed, "%s", r < 0 ? e->msg : "the conversion is complete");
	joblog_close(&feed);
	if (r == 0)
		pace_end(l, l->converted); /* one that was found done says nothing */
	return r;
}

static int make_image(struct live *l, struct model_job *job, struct engine_failure *f)
{
	_cleanup_(model_source_release) struct model_source src = {0};
	_cleanup_json_ json_t *report = NULL, *manifest = NULL, *request = NULL, *meta = NULL, *network = NULL;
	struct provider *p = l->engine->provider;
	struct err e = {0};
	char id[ID_MAX];

	/* A source that was deleted meanwhile is no reason to lose its copy. */
	if (l->engine->store->ops->get(l->engine->store, &model_sources, job->source, &src, &e) < 0 &&
	    e.code != -ENOENT)
		return fail_err(f, "internal", &e);
	if (pending_id(l, job, id, f) < 0)
		return -1;
	if (address_resolve(l->engine, job, src.inventory, &network, &e) < 0)
		return runner_fail(f, "address_unknown", false, "%s", e.msg);
	meta = meta_of(job, &src, id, network);
	request = meta ? request_of(l, job, &src, meta) : NULL;
	if (!request)
		return runner_fail(f, "internal", true, "out of memory");
	engine_step(l, "convert", "preparing the system for its new home");
	l->converted = false;
	pace_begin(l, PACE_CONVERT);
	if (!confirm(l))
		return -1;
	if (convert(l, request, &report, &e) < 0)
		return fail_err(f, "convert_failed", &e);
	engine_step(l, "image", "making the image");
	pace_begin(l, PACE_IMAGE);
	if (!confirm(l))
		return -1;
	if (p->ops->image_create(p, l->job, id, meta, &manifest, &e) < 0)
		return fail_err(f, "image_failed", &e);
	pace_end(l, true);
	verify_keep(report, src.inventory);
	if (save_image(l, job, id, manifest, report, &e) < 0)
		return fail_err(f, "internal", &e);
	engine_wake(l->engine);
	return 0;
}

/* A person's boot of the same image is waited for. */
static bool mark_for_boot(struct live *l, const char *image)
{
	while (!image_mark(l->engine, image, IMAGE_BOOT)) {
		if (runner_cancelled(l))
			return false;
		nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
	}
	return true;
}

/* image: NULL for the converted copy. */
static int boot(struct live *l, const char *image, const json_t *prepared, json_t **ret, struct err *e)
{
	const struct provider_watch watch = {l, on_event, runner_cancelled, on_log};
	struct provider *p = l->engine->provider;
	struct joblog_feed feed;
	json_t *problem;
	size_t i;
	int r;

	joblog_open(&feed, l, JOBLOG_BOOT);
	joblog_say(&feed, "the test boot of '%s' begins", image ? image : l->job);
	r = image ? p->ops->test_boot(p, image, json_object_get(prepared, "options"), &watch, ret, e)
		  : p->ops->copy_boot(p, l->job, json_object_get(prepared, "options"), &watch, ret, e);
	if (r == 0)
		verify_finish(prepared, *ret);
	json_array_foreach(json_object_get(*ret, "problems"), i, problem)
	    joblog_say(&feed, "problem: %s", json_string_value(json_object_get(problem, "message")) ?: "?");
	joblog_say(&feed, "%s", r < 0 ? e->msg : task_boot_passed(*ret) ? "the test boot passed" : "it failed");
	joblog_close(&feed);
	return r;
}

static int boot_marked(struct live *l, const struct model_job *job, struct engine_failure *f)
{
	_cleanup_json_ json_t *report = NULL, *prepared = verify_prepare(l->engine, job->image, NULL);
	struct engine *en = l->engine;
	double started = id_now();
	struct err e = {0}, store_e = {0};
	const char *problem;
	bool passed;
	int r;

	switching_boot_options(en, job, json_object_get(prepared, "options"));
	engine_step(l, "test_boot", "booting the image");
	pace_begin(l, PACE_TEST_BOOT);
	if (task_save_boot(en, job->image, "running", started, NULL, NULL, &store_e) < 0)
		return fail_err(f, "internal", &store_e);
	r = boot(l, job->image, prepared, &report, &e);
	if (r < 0 && runner_cancelled(l))
		return -1;
	passed = r == 0 && task_boot_passed(report);
	pace_end(l, passed); /* one that failed may have waited for its time limit */
	problem = json_string_value(json_object_get(json_array_get(json_object_get(report, "problems"), 0), "message"));
	if (task_save_boot(en, job->image,
			   r < 0    ? "in_error"
			   : passed ? "passed"
				    : "failed",
			   started, report, r < 0 ? &e : NULL, &store_e) < 0)
		return fail_err(f, "internal", &store_e);
	if (r < 0)
		return fail_err(f, "test_boot_failed", &e);
	if (!passed)
		return runner_fail(
		    f, "test_boot_failed", false,
		    "the image was made but did not pass its test boot%s%.*s; see its report and screenshot, then "
		    "start the job again to repeat the boot",
		    problem ? ": " : "", problem ? (int)str_cut(problem, 300) : 0, problem ? problem : "");
	return 0;
}

static int boot_image(struct live *l, const struct model_job *job, struct engine_failure *f)
{
	int r;

	if (!mark_for_boot(l, job->image))
		return -1;
	r = boot_marked(l, job, f);
	image_unmark(l->engine, job->image, IMAGE_BOOT);
	return r;
}

static bool check_wanted(const struct model_job *job)
{
	return json_is_true(json_object_get(job->parameters, "image_check"));
}

/* Whatever comes of it, the job goes on. */
static int check_image(struct live *l, const struct model_job *job)
{
	const struct provider_watch watch = {l, on_event, runner_cancelled};
	int r;

	if (!mark_for_boot(l, job->image))
		return -1;
	engine_step(l, "image_check", "looking at the image");
	pace_begin(l, PACE_IMAGE_CHECK);
	r = checking_of_job(l, job->image, &watch);
	pace_end(l, r == 0);
	image_unmark(l->engine, job->image, IMAGE_BOOT);
	return r;
}

static bool boot_wanted(const struct model_job *job)
{
	return json_is_true(json_object_get(job->parameters, "test_boot"));
}

static int process(struct live *l, struct model_job *job, struct engine_failure *f)
{
	if (testing_is_test(job))
		return testing_process(l, job, f);
	if (!schedule_has_image(job) && make_image(l, job, f) < 0)
		return -1;
	if (check_wanted(job) && !switching_has_begun(l->engine, job) && check_image(l, job) < 0)
		return -1;
	if (boot_wanted(job) && !switching_has_begun(l->engine, job) && boot_image(l, job, f) < 0)
		return -1;
	if (job->destination == DESTINATION_INSTANCE && switching_run(l, job, f) < 0)
		return -1;
	if (model_is_incremental(job))
		schedule_keep_images(l->engine, job->id);
	return 0;
}

/* ---- what a test does of it ---- */

int runner_fail_err(struct engine_failure *f, const char *code, const struct err *e)
{
	return fail_err(f, code, e);
}

bool runner_confirm(struct live *l)
{
	return confirm(l);
}

json_t *runner_request(struct live *l, const struct model_job *job, const struct model_source *src,
		       const json_t *network)
{
	_cleanup_json_ json_t *meta = meta_of(job, src, NULL, network);

	return meta ? request_of(l, job, src, meta) : NULL;
}

int runner_convert(struct live *l, const json_t *request, json_t **ret, struct err *e)
{
	return convert(l, request, ret, e);
}

int runner_boot_copy(struct live *l, const json_t *options, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *prepared = json_pack("{s:O}", "options", options);

	return prepared ? boot(l, NULL, prepared, ret, e) : err_nomem(e);
}

/* ---- cleaning ---- */

static int clean(struct live *l, struct model_job *job, struct engine_failure *f)
{
	struct provider *p = l->engine->provider;
	struct err e = {0};

	if (testing_is_test(job))
		return testing_clean(l, job, f);
	engine_step(l, "cleaning", "removing what isn't needed any more");
	pace_begin(l, PACE_CLEANING);
	if (!confirm(l))
		return -1;
	if (p->ops->job_remove(p, l->job, &e) < 0)
		return fail_err(f, "clean_failed", &e);
	task_trim(l->engine);
	pace_end(l, true);
	return 0;
}

/* ---- the thread ---- */

/* What the stage will do, as far as time can be told from it. */
static unsigned stage_parts(const struct model_job *job)
{
	switch ((enum model_job_stage)job->stage) {
	case JOB_PREPARING:
		return 1u << PACE_CHECK;
	case JOB_PROCESSING:
		if (testing_is_test(job))
			return 1u << PACE_CONVERT | 1u << PACE_TEST_BOOT;
		return (schedule_has_image(job) ? 0 : 1u << PACE_CONVERT | 1u << PACE_IMAGE) |
		       (check_wanted(job) ? 1u << PACE_IMAGE_CHECK : 0) | (boot_wanted(job) ? 1u << PACE_TEST_BOOT : 0);
	case JOB_CLEANING:
		return 1u << PACE_CLEANING;
	case JOB_SYNCING:
	case JOB_NO_STAGE:
	case JOB_STAGES:
		break;
	}
	return 0;
}

static int run_stage(struct live *l, struct model_job *job, struct engine_failure *f)
{
	switch ((enum model_job_stage)job->stage) {
	case JOB_PREPARING:
		return prepare(l, job, f);
	case JOB_SYNCING:
		return runner_sync(l, job, f);
	case JOB_PROCESSING:
		return process(l, job, f);
	case JOB_CLEANING:
		return clean(l, job, f);
	case JOB_NO_STAGE:
	case JOB_STAGES:
		break;
	}
	return runner_fail(f, "internal", false, "the job runs but has no stage");
}

static bool is_stopping(struct engine *en)
{
	ENGINE_LOCK(en);

	return en->stopping;
}

static bool is_lost(struct live *l)
{
	ENGINE_LOCK(l->engine);

	return l->lost || share_over(l->engine);
}

/* Tells the state machine until it has heard, or has a reason not to listen. */
static void tell(struct live *l, int stage, enum job_event event, const struct engine_failure *failure)
{
	for (;;) {
		struct api_fault fault = {0};

		if (engine_job_event(l->engine, l->job, stage, event, failure, &fault) == 0 ||
		    strcmp(fault.code, "invalid_state") == 0 || strcmp(fault.code, "not_found") == 0 ||
		    is_stopping(l->engine) || is_lost(l))
			return;
		store_pause(l, fault.message);
	}
}

/* One stage; false when the thread has nothing more to do. */
static bool carry_on(struct live *l)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	struct engine_failure failure = {0};
	struct engine *en = l->engine;
	struct err e = {0};
	bool lost;
	int r;

	pthread_mutex_lock(&en->lock);
	l->cancel = l->again = false;
	lost = l->lost || share_over(en);
	pthread_mutex_unlock(&en->lock);
	if (lost)
		return false;
	r = en->store->ops->get(en->store, &model_jobs, l->job, &job, &e);
	if (r < 0 && r != -ENOENT) {
		store_pause(l, e.msg);
		return !is_stopping(en);
	}
	if (r < 0 || job.state != JOB_RUNNING)
		return false;
	pthread_mutex_lock(&en->lock);
	l->number = job.number;
	l->logs = joblog_is_wanted(job.parameters);
	pthread_mutex_unlock(&en->lock);
	pace_plan(l, job.stage, stage_parts(&job));
	engine_step(l, model_job_stages[job.stage], "%s", model_job_stages[job.stage]); /* until it says more */
	r = run_stage(l, &job, &failure);
	if (r < 0 && runner_cancelled(l))
		return !is_stopping(en); /* stopped by a person (the row says so), or going on after a restart */
	tell(l, job.stage, r < 0 ? JOB_FAIL : JOB_STAGE_DONE, r < 0 ? &failure : NULL);
	return !is_stopping(en);
}

void runner_free(struct live *l)
{
	json_decref(l->progress);
	json_decref(l->parameters);
	explicit_bzero(l->psk, sizeof(l->psk));
	free(l);
}

/* Out of the list, unless somebody started the job again just now. */
static bool leave(struct live *l)
{
	struct engine *en = l->engine;
	struct live **p;
	ENGINE_LOCK(en);

	if (l->again && !en->stopping && !l->lost && !share_over(en))
		return false;
	for (p = &en->live; *p != l; p = &(*p)->next)
		;
	*p = l->next;
	runner_free(l);
	en->leaving++;
	pthread_cond_broadcast(&en->changed);
	return true;
}

static void left(struct engine *en)
{
	ENGINE_LOCK(en);

	en->leaving--;
	pthread_cond_broadcast(&en->changed);
}

static void *runner_main(void *arg)
{
	struct live *l = arg;
	struct engine *en = l->engine;
	char job[ID_MAX];

	snprintf(job, sizeof(job), "%s", l->job);
	share_fence(en, job);
	do {
		while (carry_on(l))
			;
	} while (!leave(l));
	share_fence(en, NULL);
	share_drop(en, job);
	left(en);
	return NULL;
}

static int ensure(struct engine *en, const char *job, const char *source)
{
	pthread_attr_t attr;
	pthread_t thread;
	struct live *l;
	int r;
	ENGINE_LOCK(en);

	l = engine_live(en, job);
	if (l) {
		l->again = true;
		return 1;
	}
	l = en->stopping ? NULL : calloc(1, sizeof(*l));
	if (!l)
		return -ENOMEM;
	l->engine = en;
	snprintf(l->job, sizeof(l->job), "%s", job);
	snprintf(l->source, sizeof(l->source), "%s", source);
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	r = pthread_create(&thread, &attr, runner_main, l);
	pthread_attr_destroy(&attr);
	if (r != 0) {
		runner_free(l);
		return -r;
	}
	l->next = en->live;
	en->live = l;
	return 0;
}

int runner_ensure(struct engine *en, const char *job, const char *source)
{
	int r = share_take(en, job);

	/* Who has it looks for itself. */
	if (r < 0)
		return r == -EBUSY ? 1 : r;
	r = ensure(en, job, source);
	/* The runner that is there has the lease already. */
	if (r != 0)
		share_drop(en, job);
	return MIN(r, 0);
}
