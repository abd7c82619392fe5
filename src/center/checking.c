#include "center/checking.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "base/str.h"

/*
 * images.checked: {"state":"running"|"finished"|"in_error","started","finished","repair":bool,"name","repaired":image
 * that is made, or null,"report","error"}. The id of a repaired image is fixed before it's made, so that a killed
 * center makes no second.
 */
bool checking_is_due(const struct model_image *im)
{
	const char *state = json_string_value(json_object_get(im->checked, "state"));

	return state && strcmp(state, "running") == 0;
}

static int set_checked(void *row, void *arg, struct err *e)
{
	struct model_image *im = row;

	model_take_json(&im->checked, json_incref(arg));
	return 0;
}

static int save_checked(struct engine *en, const char *image, json_t *checked, struct err *e)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	int r = checked ? store_change(en->store, &model_images, image, "updated", set_checked, checked, &im, e)
			: err_nomem(e);

	if (r == 0)
		engine_wake(en);
	return r;
}

static json_t *checked_new(bool repair, const char *name, const char *repaired)
{
	return json_pack("{s:s, s:f, s:b, s:s?, s:s?}", "state", "running", "started", id_now(), "repair", repair,
			 "name", name, "repaired", repaired);
}

/* The end of it: a copy of what it was, with what came of it. */
static json_t *checked_end(const json_t *was, const json_t *report, const struct err *failure)
{
	json_t *o = was ? json_copy((json_t *)(uintptr_t)was) : checked_new(false, NULL, NULL);

	if (!o)
		return NULL;
	json_object_set_new(o, "state", json_string(failure ? "in_error" : "finished"));
	json_object_set_new(o, "finished", json_real(id_now()));
	if (report)
		json_object_set(o, "report", (json_t *)(uintptr_t)report);
	if (failure)
		json_object_set_new(o, "error",
				    json_pack("{s:s, s:s}", "code",
					      failure->code == -ENOSPC ? "no_space" : "image_check_failed", "message",
					      failure->msg));
	if (failure)
		json_object_set_new(o, "repaired", json_null());
	return o;
}

/* What the image was made to be: its address. */
static json_t *check_options(const struct model_image *im)
{
	json_t *network = json_object_get(json_object_get(im->manifest, "meta"), "network");

	return json_is_object(network) ? json_pack("{s:O}", "network", network) : json_object();
}

/* Its id, to where `arg` points. */
static int find_standing(void *arg, void *row)
{
	snprintf(arg, ID_MAX, "%s", ((struct model_image *)row)->id);
	return 0;
}

int checking_refuses_removal(struct engine *en, const struct model_image *im, struct api_fault *f)
{
	struct store_filter on = {"base", im->id};
	struct store_query q = {.filters = &on, .nfilters = 1};
	char standing[ID_MAX] = "";
	struct err e = {0};

	if (en->store->ops->list(en->store, &model_images, &q, find_standing, standing, NULL, &e) < 0)
		return api_fault_err(f, &e);
	if (*standing)
		return api_fault_set(f, 409, "in_use", NULL,
				     "image '%s', which was repaired, stands on it; delete that first", standing);
	if (checking_is_due(im))
		return api_fault_set(f, 409, "in_use", NULL, "the image is being checked; wait for its end");
	return 0;
}

/* ---- repair ---- */

/* What the first image is told of it: how it was. */
static json_t *report_before(const json_t *report)
{
	json_t *o = json_copy((json_t *)(uintptr_t)report), *before = json_object_get(report, "before");

	if (!o || !json_is_array(before))
		return o;
	json_object_set(o, "items", before);
	json_object_set(o, "verdict", json_object_get(report, "verdict_before"));
	json_object_del(o, "before");
	json_object_del(o, "steps");
	return o;
}

static bool has_repaired(const json_t *report)
{
	json_t *step;
	size_t i;

	json_array_foreach(json_object_get(report, "steps"), i,
			   step) if (strcmp(json_string_value(json_object_get(step, "state")) ?: "", "done") ==
				     0) return true;
	return false;
}

static int fill_repaired(struct model_image *new, const struct model_image *of, const char *name, json_t *report,
			 json_t *manifest, json_t *checked, struct err *e)
{
	if (model_set(&new->name, name) < 0 || model_set(&new->job, of->job) < 0 ||
	    model_set(&new->source, of->source) < 0 || model_set(&new->region, of->region) < 0 ||
	    model_set(&new->base, of->id) < 0)
		return err_nomem(e);
	new->created = id_now();
	model_take_json(&new->manifest, json_incref(manifest));
	model_take_json(&new->report, of->report ? json_incref(of->report) : NULL);
	model_take_json(&new->tags, of->tags ? json_incref(of->tags) : NULL);
	model_take_json(&new->checked, checked_end(checked, report, NULL));
	/* As if it had been asked for: whoever finds it so boots it. */
	model_take_json(&new->boot,
			json_pack("{s:s, s:f, s:n}", "state", "running", "started", new->created, "report"));
	if (!new->checked || !new->boot)
		return err_nomem(e);
	json_object_set_new(new->checked, "repaired", json_null());
	return 0;
}

static int both_rows(struct engine *en, struct model_image *of, struct model_image *new, json_t *checked, struct err *e)
{
	struct store *s = en->store;
	int r;

	model_take_json(&of->checked, json_incref(checked));
	r = s->ops->put(s, &model_images, new, e);
	r = r ?: store_announce(s, &model_images, "created", new, id_now(), e);
	r = r ?: s->ops->put(s, &model_images, of, e);
	return r ?: store_announce(s, &model_images, "updated", of, id_now(), e);
}

/* The repaired image's row, and in the same transaction what the first one says of it. */
static int save_repaired(struct engine *en, const char *image, const char *repaired, json_t *report, json_t *manifest,
			 struct err *e)
{
	_cleanup_(model_image_release) struct model_image of = {0}, new = {0};
	_cleanup_json_ json_t *before = report_before(report), *checked = NULL;
	char name[MODEL_NAME_MAX + 1];
	struct store *s = en->store;
	const char *asked;
	int r = s->ops->begin(s, e);

	if (r < 0)
		return r;
	r = s->ops->get(s, &model_images, image, &of, e);
	asked = json_string_value(json_object_get(of.checked, "name"));
	if (r == 0 && !asked)
		snprintf(name, sizeof(name), "%.*s-repaired", (int)str_cut(of.name, 100), of.name);
	else
		snprintf(name, sizeof(name), "%s", asked ?: "");
	if (r == 0 && model_set(&new.id, repaired) < 0)
		r = err_nomem(e);
	r = r ?: fill_repaired(&new, &of, name, report, manifest, of.checked, e);
	checked = r == 0 ? checked_end(of.checked, before, NULL) : NULL;
	if (r == 0 && !checked)
		r = err_nomem(e);
	r = r ?: both_rows(en, &of, &new, checked, e);
	if (r < 0) {
		s->ops->rollback(s);
		return r;
	}
	return s->ops->commit(s, e);
}

/* Nothing had to be changed, so there is nothing to be kept. */
static int nothing_repaired(struct engine *en, const struct model_image *im, const char *repaired, json_t *report,
			    struct err *e)
{
	_cleanup_json_ json_t *checked = checked_end(im->checked, report, NULL);
	int r = en->provider->ops->image_remove(en->provider, repaired, e);

	if (checked)
		json_object_set_new(checked, "repaired", json_null());
	return r < 0 && r != -ENOENT ? r : save_checked(en, im->id, checked, e);
}

static int repair(struct engine *en, const struct model_image *im, const struct provider_watch *w, struct err *e)
{
	const char *repaired = json_string_value(json_object_get(im->checked, "repaired")) ?: "";
	_cleanup_json_ json_t *report = NULL, *manifest = NULL, *options = check_options(im);
	int r = share_confirm(en, e);

	r = r ?: en->provider->ops->image_repair(en->provider, im->id, repaired, options, w, &report, &manifest, e);
	if (r < 0)
		return r;
	if (!has_repaired(report))
		return nothing_repaired(en, im, repaired, report, e);
	r = save_repaired(en, im->id, repaired, report, manifest, e);
	engine_wake(en);
	/* The clockwork boots what is marked as booting, should this not be the time for it. */
	if (r == 0)
		task_start_marked(en, TASK_BOOT, repaired, repaired, IMAGE_BOOT);
	return r;
}

/* ---- check ---- */

static int look(struct engine *en, const struct model_image *im, const struct provider_watch *w, struct err *e)
{
	_cleanup_json_ json_t *report = NULL, *checked = NULL, *options = check_options(im);
	int r = share_confirm(en, e);

	r = r ?: en->provider->ops->image_check(en->provider, im->id, options, w, &report, e);
	if (r < 0)
		return r;
	checked = checked_end(im->checked, report, NULL);
	return save_checked(en, im->id, checked, e);
}

/* What it ended with, when it didn't end well. */
static void save_failure(struct engine *en, const struct model_image *im, const struct err *failure)
{
	_cleanup_json_ json_t *checked = checked_end(im->checked, NULL, failure);
	struct err e = {0};

	if (save_checked(en, im->id, checked, &e) < 0)
		log_error("image %s: %s", im->id, e.msg);
}

/* A repair that failed: what was made goes before its id is forgotten, or nobody would know whose it is. */
static int discard_repaired(struct engine *en, const struct model_image *im, struct err *e)
{
	const char *repaired = json_string_value(json_object_get(im->checked, "repaired"));
	_cleanup_(model_image_release) struct model_image now = {0};
	int r = share_confirm(en, e);

	r = r ?: en->store->ops->get(en->store, &model_images, im->id, &now, e);
	/* Both rows may be there although the store failed to say so. */
	if (r == 0 && !checking_is_due(&now))
		r = err_set(e, -EALREADY, "the repair is over");
	if (r < 0 || !repaired)
		return r;
	r = en->provider->ops->image_remove(en->provider, repaired, e);
	return r == -ENOENT ? 0 : r;
}

static void ignore_event(void *arg, const json_t *event)
{
}

void checking_run(struct task *t)
{
	const struct provider_watch watch = {t, ignore_event, task_cancelled};
	_cleanup_(model_image_release) struct model_image im = {0};
	struct engine *en = t->engine;
	struct err e = {0};
	int r = en->store->ops->get(en->store, &model_images, t->id, &im, &e);

	if (r < 0) {
		log_error("image %s: %s", t->id, e.msg);
		return;
	}
	r = json_is_true(json_object_get(im.checked, "repair")) ? repair(en, &im, &watch, &e)
								: look(en, &im, &watch, &e);
	/* Still marked as running: done again after the restart, or when that can be removed. */
	if (r < 0 && !task_cancelled(t)) {
		struct err why = {0};

		if (discard_repaired(en, &im, &why) == 0)
			save_failure(en, &im, &e);
		else
			log_warn("image %s: %s; what failed: %s", im.id, why.msg, e.msg);
	}
}

int checking_of_job(struct live *l, const char *image, const struct provider_watch *w)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	_cleanup_json_ json_t *checked = checked_new(false, NULL, NULL);
	struct engine *en = l->engine;
	struct err e = {0};
	const char *state;
	int r = en->store->ops->get(en->store, &model_images, image, &im, &e);

	state = json_string_value(json_object_get(im.checked, "state"));
	if (r == 0 && state && strcmp(state, "running") != 0)
		return 0; /* before a restart */
	r = r ?: save_checked(en, image, checked, &e);
	if (r < 0) {
		log_warn("image %s is not checked: %s", image, e.msg);
		return 0;
	}
	model_take_json(&im.checked, json_incref(checked));
	r = look(en, &im, w, &e);
	if (r < 0 && runner_cancelled(l))
		return -1;
	if (r < 0)
		save_failure(en, &im, &e);
	return 0;
}

int checking_start(void *arg, const char *image, bool repair_too, const char *name, struct api_fault *f)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	_cleanup_json_ json_t *checked = NULL;
	struct engine *en = arg;
	char id[ID_MAX] = "";
	struct err e = {0};

	if (en->store->ops->get(en->store, &model_images, image, &im, &e) < 0)
		return api_fault_err(f, &e);
	if (task_image_in_job(en, &im) || !task_mark_whole(en, image, IMAGE_BOOT))
		return api_fault_set(f, 409, "invalid_state", NULL,
				     "the image is being checked, booted, made or removed; wait for its end");
	if (repair_too)
		id_new("image", id);
	checked = checked_new(repair_too, name, repair_too ? id : NULL);
	if (save_checked(en, image, checked, &e) < 0) {
		image_unmark(en, image, IMAGE_BOOT);
		return api_fault_err(f, &e);
	}
	if (task_start(en, TASK_CHECK, image, image) != 0) {
		image_unmark(en, image, IMAGE_BOOT);
		return api_fault_set(f, 503, "busy", NULL, "the center can't start another task now; try again");
	}
	return 0;
}
