/* What runs beside the jobs: boots of images, exports, removal of deleted jobs. Each has a thread; what is
 * under way is marked in the store, so that a restarted center does it again. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/err.h"
#include "base/io.h"
#include "base/log.h"
#include "base/str.h"
#include "center/instances.h"
#include "center/checking.h"
#include "center/notify.h"
#include "center/switching.h"
#include "center/verify.h"

#define REMOVE_WAIT 2 /* seconds a removal is waited for before it's left to itself */

#define TRIM_WAIT     30.0 /* seconds until a trim that failed is tried again; then twice that, and so on */
#define TRIM_WAIT_MAX 900.0

static struct task *find(struct engine *en, enum task_kind kind, const char *id)
{
	for (struct task *t = en->tasks; t; t = t->next)
		if (t->kind == kind && strcmp(t->id, id) == 0)
			return t;
	return NULL;
}

bool task_runs(struct engine *en, enum task_kind kind, const char *id)
{
	ENGINE_LOCK(en);

	return find(en, kind, id);
}

bool task_cancelled(void *arg)
{
	struct task *t = arg;
	ENGINE_LOCK(t->engine);

	return t->cancel || t->engine->stopping || share_over(t->engine);
}

/* ---- boot ---- */

bool task_boot_passed(const json_t *report)
{
	return json_is_true(json_object_get(report, "verified"));
}

/* The path of the picture is ours alone. */
static json_t *boot_json(const char *state, double started, const json_t *report, const struct err *failure)
{
	json_t *copy = report ? json_copy((json_t *)report) : NULL, *o;

	if (copy)
		json_object_del(copy, "screenshot");
	o = json_pack("{s:s, s:f, s:o?}", "state", state, "started", started, "report", copy);
	if (o && strcmp(state, "running") != 0)
		json_object_set_new(o, "finished", json_real(id_now()));
	if (o && failure)
		json_object_set_new(o, "error",
				    json_pack("{s:s, s:s}", "code", "test_boot_failed", "message", failure->msg));
	return o;
}

struct boot_news {
	struct engine *engine;
	const char *state, *picture;
	double started;
	const json_t *report;
	const struct err *failure;
	const json_t *checks;
};

static int set_boot(void *row, void *arg, struct err *e)
{
	const struct boot_news *b = arg;
	struct model_image *im = row;

	if (b->picture && model_set(&im->screenshot, b->picture) < 0)
		return err_nomem(e);
	model_take_json(&im->boot, boot_json(b->state, b->started, b->report, b->failure));
	if (b->checks && im->boot)
		json_object_set(im->boot, "checks", (json_t *)(uintptr_t)b->checks);
	if (strcmp(b->state, "failed") != 0 && strcmp(b->state, "in_error") != 0)
		return 0;
	return notify_image(b->engine, NOTICE_IMAGE_NOT_VERIFIED, im, e);
}

int task_save_boot(struct engine *en, const char *image, const char *state, double started, const json_t *report,
		   const struct err *failure, struct err *e)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	struct boot_news b = {en,      state,  json_string_value(json_object_get(report, "screenshot")),
			      started, report, failure};
	int r = store_change(en->store, &model_images, image, "updated", set_boot, &b, &im, e);

	if (r == 0)
		engine_wake(en);
	return r;
}

static void ignore_event(void *arg, const json_t *event)
{
}

json_t *task_boot_options(struct engine *en, const char *source)
{
	_cleanup_(model_source_release) struct model_source src = {0};
	json_t *units = NULL;

	if (source && en->store->ops->get(en->store, &model_sources, source, &src, NULL) == 0)
		units = json_object_get(src.inventory, "failed_units");
	return json_is_array(units) ? json_pack("{s:O}", "known_failed_units", units) : json_object();
}

static void run_boot(struct task *t)
{
	const struct provider_watch watch = {t, ignore_event, task_cancelled};
	_cleanup_(model_image_release) struct model_image im = {0};
	_cleanup_json_ json_t *report = NULL, *prepared = NULL;
	struct engine *en = t->engine;
	double started = id_now();
	struct err e = {0}, store_e = {0};
	int r = en->store->ops->get(en->store, &model_images, t->id, &im, &e);

	prepared = verify_prepare(en, t->id, json_object_get(im.boot, "checks"));
	if (r == 0)
		r = en->provider->ops->test_boot(en->provider, t->id, json_object_get(prepared, "options"), &watch,
						 &report, &e);
	if (r == 0)
		verify_finish(prepared, report);
	if (r < 0 && task_cancelled(t))
		return; /* still marked as running: done again after the restart */
	if (task_save_boot(en, t->id,
			   r < 0                      ? "in_error"
			   : task_boot_passed(report) ? "passed"
						      : "failed",
			   started, report, r < 0 ? &e : NULL, &store_e) < 0)
		log_error("image %s: %s", t->id, store_e.msg);
}

bool task_image_in_job(struct engine *en, const struct model_image *im)
{
	_cleanup_(model_job_release) struct model_job job = {0};

	return en->store->ops->get(en->store, &model_jobs, im->job, &job, NULL) == 0 && job.state == JOB_RUNNING &&
	       schedule_has_image(&job) && strcmp(job.image, im->id) == 0;
}

static bool is_whole(struct engine *en, const char *image)
{
	_cleanup_(model_image_release) struct model_image im = {0};

	return en->store->ops->get(en->store, &model_images, image, &im, NULL) == 0 && !im.deleting;
}

bool task_mark_whole(struct engine *en, const char *image, enum image_use use)
{
	if (!image_mark(en, image, use))
		return false;
	if (is_whole(en, image))
		return true;
	image_unmark(en, image, use);
	return false;
}

/* The scripts stay with the boot until it is over, as it may have to be done again. */
static int save_boot_wish(struct engine *en, const char *image, const json_t *checks, struct err *e)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	struct boot_news b = {.engine = en, .state = "running", .started = id_now(), .checks = checks};
	int r = store_change(en->store, &model_images, image, "updated", set_boot, &b, &im, e);

	if (r == 0)
		engine_wake(en);
	return r;
}

int task_boot(void *arg, const char *image, const json_t *checks, struct api_fault *f)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	struct engine *en = arg;
	struct err e = {0};

	if (en->store->ops->get(en->store, &model_images, image, &im, &e) < 0)
		return api_fault_err(f, &e);
	if (task_image_in_job(en, &im) || !task_mark_whole(en, image, IMAGE_BOOT))
		return api_fault_set(f, 409, "invalid_state", NULL,
				     "the image is being booted, made or removed; wait for its end");
	if (save_boot_wish(en, image, checks, &e) < 0) {
		image_unmark(en, image, IMAGE_BOOT);
		return api_fault_err(f, &e);
	}
	if (task_start(en, TASK_BOOT, image, image) != 0) {
		image_unmark(en, image, IMAGE_BOOT);
		return api_fault_set(f, 503, "busy", NULL, "the center can't start another task now; try again");
	}
	return 0;
}

/* ---- removal of images ---- */

static int detach_job(struct store *s, const struct model_image *im, struct err *e)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	int r = s->ops->get(s, &model_jobs, im->job, &job, e);

	if (r == -ENOENT || (r == 0 && (!job.image || strcmp(job.image, im->id) != 0)))
		return 0;
	if (r == 0 && job_is_unfinished(job.state)) {
		/* A job that failed behind its image would else never make another. The replica became the image and
		 * went with it, so the job begins with the copy; that of an incremental one is still there, and is
		 * brought up to date. */
		if (schedule_has_image(&job)) {
			if (model_set(&job.image_pending, NULL) < 0)
				return err_nomem(e);
			job.stage = JOB_NO_STAGE;
			model_take_json(&job.progress, NULL);
		}
		if (model_set(&job.image, NULL) < 0)
			return err_nomem(e);
		r = s->ops->put(s, &model_jobs, &job, e);
		if (r == 0)
			r = store_announce(s, &model_jobs, "updated", &job, id_now(), e);
	}
	return r;
}

static int forget_image(struct engine *en, const struct model_image *im, struct err *e)
{
	struct store *s = en->store;
	int r = s->ops->begin(s, e);

	if (r < 0)
		return r;
	r = detach_job(s, im, e);
	if (r == 0)
		r = s->ops->remove(s, &model_images, im->id, e);
	if (r == 0)
		r = store_announce_gone(s, &model_images, im->id, id_now(), e);
	if (r < 0) {
		s->ops->rollback(s);
		return r;
	}
	return s->ops->commit(s, e);
}

static int count_row(void *arg, void *row)
{
	(*(size_t *)arg)++;
	return 0;
}

/* From here there is no way back: a part of an image is none. Inside a transaction. */
static int note_removal(struct engine *en, const char *image, struct model_image *im, struct api_fault *f)
{
	struct store_filter filter = {"image", image};
	struct store_query q = {.filters = &filter, .nfilters = 1};
	struct store *s = en->store;
	char user[MODEL_NAME_MAX + 1];
	struct err e = {0};
	size_t exports = 0;
	int r;

	if (s->ops->get(s, &model_images, image, im, &e) < 0 ||
	    s->ops->list(s, &model_exports, &q, count_row, &exports, NULL, &e) < 0)
		return api_fault_err(f, &e);
	if (exports)
		return api_fault_set(f, 409, "in_use", NULL, "the image has %zu exports; delete them first", exports);
	if (task_image_in_job(en, im))
		return api_fault_set(f, 409, "in_use", NULL, "the image is being made; wait for its end");
	if (checking_refuses_removal(en, im, f) < 0)
		return -1;
	r = instance_on_image(en, image, user, &e);
	if (r != 0)
		return r < 0 ? api_fault_err(f, &e)
			     : api_fault_set(f, 409, "in_use", NULL,
					     "the disks of instance '%s' stand on the image; delete the instance first",
					     user);
	im->deleting = true;
	return s->ops->put(s, &model_images, im, &e) < 0 ? api_fault_err(f, &e) : 0;
}

static int remove_marked(struct engine *en, const char *image, struct api_fault *f)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	struct store *s = en->store;
	struct err e = {0};

	if (s->ops->begin(s, &e) < 0)
		return api_fault_err(f, &e);
	if (note_removal(en, image, &im, f) < 0) {
		s->ops->rollback(s);
		return -1;
	}
	if (s->ops->commit(s, &e) < 0)
		return api_fault_err(f, &e);
	/* Files first: what is left of them is taken up again by the row. */
	if (en->provider->ops->image_remove(en->provider, image, &e) < 0 || forget_image(en, &im, &e) < 0)
		return api_fault_err(f, &e);
	return 0;
}

static void run_remove_image(struct task *t)
{
	t->outcome.r = remove_marked(t->engine, t->id, &t->outcome.fault);
	if (t->outcome.r < 0)
		log_warn("image %s: %s", t->id, t->outcome.fault.message);
	else
		task_trim(t->engine);
	engine_wake(t->engine);
}

bool task_wait(struct engine *en, enum task_kind kind, const char *id, struct task_outcome *o)
{
	struct timespec end;
	struct task *t;
	ENGINE_LOCK(en);

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += REMOVE_WAIT;
	while (!o->ended && pthread_cond_timedwait(&en->changed, &en->lock, &end) == 0)
		;
	t = o->ended ? NULL : find(en, kind, id);
	if (t)
		t->waiter = NULL;
	return o->ended;
}

/* Removing much takes long, and a thread of the API serves many: it waits only for what is quick. */
int task_image_remove(void *arg, const char *image, struct api_fault *f)
{
	struct task_outcome o = {0};
	struct engine *en = arg;

	if (!image_mark(en, image, IMAGE_REMOVE))
		return api_fault_set(f, 409, "in_use", NULL,
				     "the image is being booted, exported or removed; wait for its end");
	if (task_start_for(en, TASK_REMOVE_IMAGE, image, image, &o) != 0) {
		image_unmark(en, image, IMAGE_REMOVE);
		return api_fault_set(f, 503, "busy", NULL, "the center can't start another task now; try again");
	}
	if (!task_wait(en, TASK_REMOVE_IMAGE, image, &o))
		return 1;
	*f = o.fault;
	return o.r;
}

/* ---- exports ---- */

static int set_export(void *row, void *arg, struct err *e)
{
	struct model_export *x = row, *news = arg;

	x->state = news->state;
	x->percent = news->percent;
	x->size = news->size;
	if (news->error)
		model_take_json(&x->error, json_incref(news->error));
	return 0;
}

/* False when there is none any more. */
static bool save_export(struct engine *en, const char *id, int state, double percent, uint64_t size,
			const struct err *failure, bool announce)
{
	_cleanup_(model_export_release) struct model_export x = {0};
	_cleanup_(model_export_release) struct model_export news = {.state = state, .percent = percent, .size = size};
	struct err e = {0};

	if (failure)
		news.error = json_pack("{s:s, s:s}", "code", failure->code == -ENOSPC ? "no_space" : "export_failed",
				       "message", failure->msg);
	if (store_change(en->store, &model_exports, id, announce ? "updated" : NULL, set_export, &news, &x, &e) < 0)
		log_error("export %s: %s", id, e.msg);
	engine_wake(en);
	return e.code != -ENOENT;
}

static void export_event(void *arg, const json_t *event)
{
	json_t *percent = json_object_get(event, "percent");
	struct task *t = arg;

	if (!json_is_number(percent) || id_now_mono() - t->noted < 1)
		return;
	t->noted = id_now_mono();
	if (!save_export(t->engine, t->id, EXPORT_RUNNING, MIN(100, MAX(0, json_number_value(percent))), 0, NULL,
			 false)) {
		/* Deleted, perhaps through another center. */
		ENGINE_LOCK(t->engine);
		t->cancel = true;
	}
}

static void run_export(struct task *t)
{
	const struct provider_watch watch = {t, export_event, task_cancelled};
	_cleanup_(model_export_release) struct model_export x = {0};
	struct engine *en = t->engine;
	struct err e = {0};
	char path[4200];
	struct stat st;
	int r = en->store->ops->get(en->store, &model_exports, t->id, &x, &e);

	if (r < 0) {
		log_error("export %s: %s", t->id, e.msg);
		return;
	}
	api_export_path(en->exports, &x, path, sizeof(path));
	unlink(path); /* half of one from before a crash */
	r = en->provider->ops->image_export(en->provider, x.image, (unsigned)x.disk, model_export_formats[x.format],
					    path, &watch, &e);
	if (r == 0 && stat(path, &st) < 0)
		r = err_sys(&e, "the exported file '%s' is not there", path);
	if (r < 0)
		unlink(path);
	if (r < 0 && task_cancelled(t))
		return;
	/* One that was removed by way of another center. */
	if (!save_export(en, t->id, r < 0 ? EXPORT_IN_ERROR : EXPORT_FINISHED, r < 0 ? x.percent : 100,
			 r < 0 ? 0 : (uint64_t)st.st_size, r < 0 ? &e : NULL, true))
		unlink(path);
}

int task_export(void *arg, const char *export, struct api_fault *f)
{
	_cleanup_(model_export_release) struct model_export x = {0};
	struct engine *en = arg;
	struct err e = {0};
	int r;

	if (en->store->ops->get(en->store, &model_exports, export, &x, &e) < 0)
		return api_fault_err(f, &e);
	if (!task_mark_whole(en, x.image, IMAGE_EXPORT)) {
		/* The center that has the image finds the row. */
		if (en->store->share && is_whole(en, x.image))
			return 0;
		/* Its row must not keep the image's. */
		if (store_forget(en->store, &model_exports, export, &e) < 0)
			return api_fault_err(f, &e);
		return api_fault_set(f, 409, "in_use", NULL, "the image is being removed");
	}
	r = task_start(en, TASK_EXPORT, export, x.image);
	if (r != 0)
		image_unmark(en, x.image, IMAGE_EXPORT);
	if (r < 0)
		return api_fault_set(f, 503, "busy", NULL, "the center can't start another task now; try again");
	return 0;
}

/* A running one is told to end and waited for. */
static void task_end(struct engine *en, enum task_kind kind, const char *id)
{
	struct task *t;
	ENGINE_LOCK(en);

	while ((t = find(en, kind, id))) {
		t->cancel = true;
		pthread_cond_wait(&en->changed, &en->lock);
	}
}

int task_export_remove(void *arg, const char *export, struct api_fault *f)
{
	_cleanup_(model_export_release) struct model_export x = {0};
	struct engine *en = arg;
	struct store *s = en->store;
	struct err e = {0};
	char path[4200];

	if (s->ops->get(s, &model_exports, export, &x, &e) < 0)
		return api_fault_err(f, &e);
	task_end(en, TASK_EXPORT, export);
	api_export_path(en->exports, &x, path, sizeof(path));
	if (unlink(path) < 0 && errno != ENOENT) {
		err_sys(&e, "cannot remove '%s'", path);
		return api_fault_err(f, &e);
	}
	if (store_forget(s, &model_exports, export, &e) < 0)
		return api_fault_err(f, &e);
	/* As long as there was a row, the clockwork may have begun it again. */
	task_end(en, TASK_EXPORT, export);
	unlink(path);
	return 0;
}

/* ---- removal of jobs ---- */

static void wait_for_runner(struct task *t)
{
	struct engine *en = t->engine;
	ENGINE_LOCK(en);

	while (engine_live(en, t->id) && !en->stopping)
		pthread_cond_wait(&en->changed, &en->lock);
}

/* An image that was made, or begun, but never got its row: nobody else knows it. */
static int remove_pending(struct engine *en, const struct model_job *job, struct err *e)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	int r;

	if (!job->image_pending)
		return 0;
	r = en->store->ops->get(en->store, &model_images, job->image_pending, &im, e);
	if (r != -ENOENT)
		return r;
	if (job->image && strcmp(job->image, job->image_pending) == 0)
		return 0; /* it had a row and was deleted with its files */
	r = en->provider->ops->image_remove(en->provider, job->image_pending, e);
	return r == -ENOENT ? 0 : r;
}

static void run_remove_job(struct task *t)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	struct engine *en = t->engine;
	struct store *s = en->store;
	struct err e = {0};
	int r;

	wait_for_runner(t);
	if (task_cancelled(t))
		return;
	r = share_confirm(en, &e);
	if (r == 0)
		r = s->ops->get(s, &model_jobs, t->id, &job, &e);
	if (r == 0)
		r = remove_pending(en, &job, &e);
	if (r == 0)
		r = en->provider->ops->job_remove(en->provider, t->id, &e);
	if (r == 0)
		r = joblog_remove(en, t->id, &e);
	switching_forget(en, t->id);
	if (r == 0)
		testing_forget(en, t->id);
	if (r == 0)
		r = store_forget(s, &model_jobs, t->id, &e);
	if (r < 0) /* it stays in `deleting`, and the clockwork tries again */
		log_error("job %s can't be deleted: %s", t->id, e.msg);
	task_trim(en);
	if (job.source)
		seen_refresh(en, job.source);
	engine_wake(en);
}

/* ---- layers ---- */

static int set_manifest(void *row, void *arg, struct err *e)
{
	struct model_image *im = row;

	model_take_json(&im->manifest, json_deep_copy(arg));
	return im->manifest ? 0 : err_nomem(e);
}

void task_image_changed(struct engine *en, const json_t *event)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	const char *image = json_string_value(json_object_get(event, "image"));
	json_t *manifest = json_object_get(event, "manifest");
	struct err e = {0};

	if (!image || !json_is_object(manifest))
		return;
	if (store_change(en->store, &model_images, image, NULL, set_manifest, manifest, &im, &e) < 0 &&
	    e.code != -ENOENT)
		log_warn("image %s: %s", image, e.msg);
}

static void trim_event(void *arg, const json_t *event)
{
	const char *name = json_string_value(json_object_get(event, "event"));
	struct task *t = arg;

	if (name && strcmp(name, "image_changed") == 0)
		task_image_changed(t->engine, event);
}

static bool trim_take_wish(struct engine *en)
{
	ENGINE_LOCK(en);
	bool wanted = en->trim_wanted;

	en->trim_wanted = false;
	return wanted;
}

static void trim_wish(struct engine *en)
{
	ENGINE_LOCK(en);

	en->trim_wanted = true;
}

/* What is in use is asked for again soon; what failed (no space?) more and more seldom. */
static void trim_over(struct engine *en, bool failed, bool left)
{
	ENGINE_LOCK(en);

	en->trim_wait = failed ? MIN(MAX(2 * en->trim_wait, TRIM_WAIT), TRIM_WAIT_MAX) : 0;
	en->trim_after = id_now_mono() + en->trim_wait;
	en->trim_wanted |= failed || left;
}

/* What is in use now, or fails, is left to the clockwork. */
static void run_trim(struct task *t)
{
	const struct provider_watch watch = {t, trim_event, task_cancelled};
	struct engine *en = t->engine;

	while (trim_take_wish(en)) {
		struct err e = {0};
		bool left = false;
		int r = en->provider->ops->trim(en->provider, &watch, &left, &e);

		if (r < 0)
			log_warn("%s; trying again later", e.msg);
		trim_over(en, r < 0, left);
		if (r < 0 || left)
			return;
	}
}

void task_trim(struct engine *en)
{
	trim_wish(en);
	task_start(en, TASK_TRIM, "", NULL);
}

/* ---- threads ---- */

static void *task_main(void *arg)
{
	static const enum image_use uses[] = {
	    [TASK_BOOT] = IMAGE_BOOT,  [TASK_EXPORT] = IMAGE_EXPORT, [TASK_REMOVE_IMAGE] = IMAGE_REMOVE,
	    [TASK_CHECK] = IMAGE_BOOT, [TASK_SWITCH] = IMAGE_REMOVE,
	};
	struct task *t = arg, **p;
	struct engine *en = t->engine;

	share_fence(en, *t->lease ? t->lease : *t->image ? t->image : NULL);
	switch (t->kind) {
	case TASK_BOOT:
		run_boot(t);
		break;
	case TASK_EXPORT:
		run_export(t);
		break;
	case TASK_REMOVE_JOB:
		run_remove_job(t);
		break;
	case TASK_REMOVE_IMAGE:
		run_remove_image(t);
		break;
	case TASK_TRIM:
		run_trim(t);
		break;
	case TASK_INSTANCE:
		instance_run(t);
		break;
	case TASK_REFRESH:
		instance_refresh(t);
		break;
	case TASK_SWITCH:
		switching_task(t);
		break;
	case TASK_SWEEP:
		sweep_task(t);
		break;
	case TASK_CHECK:
		checking_run(t);
		break;
	}
	share_fence(en, NULL);
	if (*t->image)
		image_unmark(en, t->image, uses[t->kind]);
	if (*t->lease)
		share_drop(en, t->lease);
	pthread_mutex_lock(&en->lock);
	if (t->waiter) {
		*t->waiter = t->outcome;
		t->waiter->ended = true;
	}
	for (p = &en->tasks; *p != t; p = &(*p)->next)
		;
	*p = t->next;
	free(t);
	pthread_cond_broadcast(&en->changed);
	pthread_mutex_unlock(&en->lock);
	return NULL;
}

/* What no image's mark covers has a lease of its own. */
static int task_begin(struct engine *en, enum task_kind kind, const char *id, const char *image, const char *lease,
		      struct task_outcome *waiter)
{
	pthread_attr_t attr;
	pthread_t thread;
	struct task *t;
	int r;
	ENGINE_LOCK(en);

	if (find(en, kind, id))
		return 1;
	t = en->stopping ? NULL : calloc(1, sizeof(*t));
	if (!t)
		return -ENOMEM;
	t->engine = en;
	t->kind = kind;
	snprintf(t->id, sizeof(t->id), "%s", id);
	snprintf(t->image, sizeof(t->image), "%s", image ? image : "");
	snprintf(t->lease, sizeof(t->lease), "%s", lease);
	t->waiter = waiter;
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	r = pthread_create(&thread, &attr, task_main, t);
	pthread_attr_destroy(&attr);
	if (r != 0) {
		free(t);
		return -r;
	}
	t->next = en->tasks;
	en->tasks = t;
	return 0;
}

int task_start_for(struct engine *en, enum task_kind kind, const char *id, const char *image,
		   struct task_outcome *waiter)
{
	bool own = kind == TASK_REMOVE_JOB || kind == TASK_INSTANCE;
	const char *lease = own ? id : kind == TASK_TRIM ? "trim" : "";
	int r = *lease ? share_take(en, lease) : 0;

	if (r < 0)
		return r == -EBUSY ? 1 : r;
	r = task_begin(en, kind, id, image, lease, waiter);
	if (r != 0 && *lease)
		share_drop(en, lease);
	return r;
}

int task_start(struct engine *en, enum task_kind kind, const char *id, const char *image)
{
	return task_start_for(en, kind, id, image, NULL);
}

static int resume_deleting(void *arg, void *row)
{
	return MIN(0, task_start(arg, TASK_REMOVE_JOB, ((struct model_job *)row)->id, NULL));
}

/* With the mark it takes; one that runs, or has just been asked for, is left alone. */
int task_start_marked(struct engine *en, enum task_kind kind, const char *id, const char *image, enum image_use use)
{
	int r;

	if (task_runs(en, kind, id) || !image_mark(en, image, use))
		return 0;
	r = task_start(en, kind, id, image);
	if (r != 0)
		image_unmark(en, image, use);
	return MIN(0, r);
}

static int resume_export(void *arg, void *row)
{
	const struct model_export *x = row;

	return task_start_marked(arg, TASK_EXPORT, x->id, x->image, IMAGE_EXPORT);
}

static int resume_image(void *arg, void *row)
{
	const struct model_image *im = row;
	const char *state = json_string_value(json_object_get(im->boot, "state"));

	if (im->deleting)
		return task_start_marked(arg, TASK_REMOVE_IMAGE, im->id, im->id, IMAGE_REMOVE);
	if (checking_is_due(im) && !task_image_in_job(arg, im))
		return task_start_marked(arg, TASK_CHECK, im->id, im->id, IMAGE_BOOT);
	if (!state || strcmp(state, "running") != 0 || task_image_in_job(arg, im))
		return 0;
	return task_start_marked(arg, TASK_BOOT, im->id, im->id, IMAGE_BOOT);
}

int task_resume_all(struct engine *en, struct err *e)
{
	struct store_filter deleting = {"state", "deleting"}, running = {"state", "running"};
	struct store_query jobs = {.filters = &deleting, .nfilters = 1}, exports = {.filters = &running, .nfilters = 1},
			   all = {0};
	struct store *s = en->store;
	int r = s->ops->list(s, &model_jobs, &jobs, resume_deleting, en, NULL, e);
	bool trim;

	pthread_mutex_lock(&en->lock);
	trim = en->trim_wanted && id_now_mono() >= en->trim_after;
	pthread_mutex_unlock(&en->lock);
	if (r == 0 && trim)
		r = MIN(0, task_start(en, TASK_TRIM, "", NULL));

	if (r == 0)
		r = s->ops->list(s, &model_exports, &exports, resume_export, en, NULL, e);
	if (r == 0)
		r = s->ops->list(s, &model_images, &all, resume_image, en, NULL, e);
	r = r ?: instance_resume_all(en, e);
	return r ?: switching_resume(en, e);
}
