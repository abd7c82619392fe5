/*
 * What is being done to an instance, from its row: each step can be done again, so a center that finds the row after a
 * crash does all of them. Before a hypervisor changes anything, the lease is asked for (the store's fence).
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/err.h"
#include "base/log.h"
#include "base/str.h"
#include "center/instances.h"

struct work {
	struct task *task;
	struct engine *engine;
	struct hypervisor *h;
	struct model_instance in; /* as it was when we began, and what is known since */
	const json_t *doing;      /* of it */
	json_t *got;              /* what the hypervisor said first */
	bool again;               /* another start of a center began it */
	struct provider_watch watch;
	const char *snapshot_gone; /* that never came to be */
	bool snapshot_made;
	const char *set;  /* in use from now on */
	json_t *unneeded; /* sets */
	double noted;
};

static const char *word(const struct work *w, const char *key)
{
	return json_string_value(json_object_get(w->doing, key)) ?: "";
}

static bool is_up(const struct work *w)
{
	const char *state = json_string_value(json_object_get(w->got, "state")) ?: "";

	return strcmp(state, "running") == 0 || strcmp(state, "paused") == 0;
}

static bool has_set(const struct work *w, const char *set)
{
	json_t *s;
	size_t i;

	json_array_foreach(json_object_get(w->got, "sets"), i,
			   s) if (strcmp(json_string_value(json_object_get(s, "set")) ?: "", set) == 0) return true;
	return false;
}

static const char *in_use(const struct work *w)
{
	return json_string_value(json_object_get(w->got, "set")) ?: "";
}

/* ---- steps that are written down ---- */

static int change_ref(void *row, void *arg, struct err *e)
{
	struct model_instance *in = row;

	return model_set(&in->ref, arg) < 0 ? err_nomem(e) : 0;
}

static int change_disks(void *row, void *arg, struct err *e)
{
	struct model_instance *in = row;

	return model_set(&in->disks, arg) < 0 ? err_nomem(e) : 0;
}

static int change_percent(void *row, void *arg, struct err *e)
{
	json_t *doing = instance_doing(row);

	if (!doing)
		return -ECANCELED;
	json_object_set_new(doing, "percent", json_real(*(double *)arg));
	return 0;
}

static int save(struct work *w, const char *verb, int (*change)(void *row, void *arg, struct err *e), void *arg,
		struct err *e)
{
	_cleanup_(model_instance_release) struct model_instance in = {0};
	struct store *s = w->engine->store;
	int r = store_change(s, &model_instances, w->in.id, verb, change, arg, &in, e);

	if (r == 0)
		engine_wake(w->engine);
	return r;
}

static void on_event(void *arg, const json_t *event)
{
	json_t *percent = json_object_get(event, "percent");
	double value = MIN(100.0, MAX(0.0, json_number_value(percent)));
	struct work *w = arg;

	if (!json_is_number(percent) || id_now_mono() - w->noted < 1)
		return;
	w->noted = id_now_mono();
	save(w, "updated", change_percent, &value, NULL);
}

static bool cancelled(void *arg)
{
	return task_cancelled(((struct work *)arg)->task);
}

/* ---- start and stop ---- */

static int start(struct work *w, struct err *e)
{
	return instance_start(w->engine, w->h, &w->in, e);
}

static int stop(struct work *w, double seconds, struct err *e)
{
	int r = w->h->ops->stop(w->h, w->in.ref, seconds, &w->watch, e);

	if (r == -ETIMEDOUT)
		err_set(e, r, "instance '%s' didn't go off within %g s; it may still do, or stop it by force",
			w->in.name, seconds);
	return r;
}

static int do_start(struct work *w, struct err *e)
{
	if (is_up(w))
		return w->again ? 0 : err_set(e, -ENOTCONN, "instance '%s' is running", w->in.name);
	return start(w, e);
}

/* One that was asked to stop before a crash isn't asked again: it may have been started on purpose since. */
static int do_stop(struct work *w, struct err *e)
{
	if (w->again)
		return 0;
	if (!is_up(w))
		return err_set(e, -ENOTCONN, "instance '%s' is off", w->in.name);
	return stop(w, json_number_value(json_object_get(w->doing, "seconds")), e);
}

static int do_restart(struct work *w, struct err *e)
{
	int r = 0;

	if (is_up(w) && w->again)
		return 0;
	if (is_up(w))
		r = stop(w, json_number_value(json_object_get(w->doing, "seconds")), e);
	return r < 0 ? r : start(w, e);
}

/* ---- making ---- */

static json_t *settings_of(const struct work *w, const json_t *settings)
{
	json_t *o = settings ? json_copy((json_t *)(uintptr_t)settings) : json_object();

	if (o && json_object_set_new(o, "name", json_string(w->in.name)) < 0) {
		json_decref(o);
		return NULL;
	}
	return o;
}

static int define(struct work *w, const json_t *wanted, struct err *e)
{
	_cleanup_json_ json_t *settings = settings_of(w, wanted);
	char ref[HYPERVISOR_REF_MAX];
	/* What was there before it was an instance is known by its reference alone. */
	int r = settings ? w->h->ops->define(w->h, w->in.ref ?: w->in.id, settings, ref, e) : err_nomem(e);

	if (r < 0 || w->in.ref)
		return r;
	r = save(w, NULL, change_ref, ref, e);
	return r < 0 ? r : model_set(&w->in.ref, ref) < 0 ? err_nomem(e) : 0;
}

/* The same name each time: of the instance's own. */
static void first_set(const struct work *w, char set[ID_MAX])
{
	const char *hex = strchr(w->in.id, '-');

	must(hex);
	snprintf(set, ID_MAX, "set%s", hex);
}

/* It stays while it is read, and so does what is made of it on the way; another center may have it meanwhile. */
static int hold_image(struct work *w, struct model_image *im, struct err *e)
{
	struct store *s = w->engine->store;

	for (;;) {
		int r = s->ops->get(s, &model_images, w->in.image, im, e);

		if (r < 0)
			return r;
		if (im->deleting)
			return err_set(e, -ENOENT, "the image '%s' is being deleted", im->id);
		if (image_mark(w->engine, im->id, IMAGE_EXPORT))
			return 0;
		if (cancelled(w))
			return err_set(e, -ECANCELED, "given up");
		model_image_release(im);
		nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
	}
}

static int make_disks(struct work *w, struct err *e)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	char set[ID_MAX];
	int r = hold_image(w, &im, e);

	first_set(w, set);
	if (r == 0) {
		r = w->h->ops->set_add(w->h, w->in.ref, set, im.id, json_object_get(im.manifest, "disks"), NULL,
				       &w->watch, e);
		image_unmark(w->engine, im.id, IMAGE_EXPORT);
	}
	if (r == 0)
		r = w->h->ops->set_use(w->h, w->in.ref, set, e);
	return r < 0 ? r : save(w, NULL, change_disks, set, e);
}

/* With its disks in the row all that is left is the start. */
static int do_create(struct work *w, struct err *e)
{
	int r = w->in.disks ? 0 : define(w, w->in.settings, e);

	if (r == 0 && !w->in.disks)
		r = make_disks(w, e);
	if (r == 0 && json_is_true(json_object_get(w->doing, "start")) && !is_up(w))
		r = start(w, e);
	return r;
}

static int do_change(struct work *w, struct err *e)
{
	_cleanup_json_ json_t *wanted = NULL;

	if (is_up(w))
		return err_set(e, -ENOTCONN, "instance '%s' is running; stop it first", w->in.name);
	wanted = model_settings_over(w->in.settings, json_object_get(w->doing, "settings"));
	return wanted ? define(w, wanted, e) : err_nomem(e);
}

/* ---- disks ---- */

/* A snapshot of another moment than it was asked for would be worse than none. */
static int do_snapshot(struct work *w, struct err *e)
{
	const char *set = word(w, "set");
	int r = 0;

	if (w->again && strcmp(in_use(w), set) != 0 && !has_set(w, set)) {
		w->snapshot_gone = word(w, "snapshot");
		json_array_append_new(w->unneeded, json_string(set)); /* what was begun of it */
		return 0;
	}
	/* It was written down as standing on what the row knew: after an answer that got lost that may be another. */
	if (!w->again && strcmp(in_use(w), w->in.disks ?: "") != 0) {
		w->snapshot_gone = word(w, "snapshot");
		return err_set(e, -EBUSY, "the disks of instance '%s' were others than known; try again", w->in.name);
	}
	if (strcmp(in_use(w), set) != 0)
		r = w->h->ops->set_snapshot(w->h, w->in.ref, set, e);
	if (r == 0) {
		w->set = set;
		w->snapshot_made = true;
		return 0;
	}
	w->snapshot_gone = word(w, "snapshot");
	json_array_append_new(w->unneeded, json_string(set));
	return r;
}

static int do_revert(struct work *w, struct err *e)
{
	const char *set = word(w, "set"), *from = word(w, "from");
	int r = 0;

	if (is_up(w) && strcmp(in_use(w), set) != 0)
		return err_set(e, -ENOTCONN, "instance '%s' is running; stop it first", w->in.name);
	if (strcmp(in_use(w), set) != 0) {
		r = w->h->ops->set_fork(w->h, w->in.ref, word(w, "on"), set, e);
		if (r == 0)
			r = w->h->ops->set_use(w->h, w->in.ref, set, e);
	}
	if (r == 0)
		w->set = set;
	json_array_append_new(w->unneeded, json_string(r == 0 ? from : set));
	return r;
}

static int change_kept(void *row, void *arg, struct err *e)
{
	struct model_instance *in = row;

	in->deleting = false;
	return 0;
}

/* It isn't deleted, nor tried again: `why` is for a person. */
static int keep(struct work *w, const struct err *why, struct err *e)
{
	int r = save(w, NULL, change_kept, NULL, e);

	return r < 0 ? r : err_set(e, why->code, "%s", why->msg);
}

/* As it was asked for, also when it is tried again. */
static bool is_forced(const struct work *w)
{
	return json_is_true(w->doing ? json_object_get(w->doing, "force") : instance_noted(&w->in, "force"));
}

/* -EINPROGRESS: there is no row any more. */
static int do_delete(struct work *w, struct err *e)
{
	const char *ref = w->in.ref ?: w->in.id;
	struct err why = {0};
	bool up = is_up(w);
	int r = 0;

	if (up && !is_forced(w)) {
		err_set(&why, -ENOTCONN, "instance '%s' is running; stop it first", w->in.name);
		return keep(w, &why, e);
	}
	if (up)
		r = w->h->ops->stop(w->h, ref, 0, &w->watch, e);
	if (r == 0)
		r = w->h->ops->remove(w->h, ref, e);
	/* Its disks have to be others first: that takes a person. */
	if (r == -EBUSY) {
		why = *e;
		return keep(w, &why, e);
	}
	if (r == 0 || r == -ENOENT)
		r = store_forget(w->engine->store, &model_instances, w->in.id, e);
	return r < 0 ? r : -EINPROGRESS;
}

/* ---- the end ---- */

struct ending {
	struct work *w;
	const json_t *got; /* what the hypervisor says at the end, NULL when it can't */
	bool missing;
	const struct err *failure; /* or NULL */
	const struct api_fault *fault;
};

static int end_snapshot(struct work *w, struct err *e)
{
	_cleanup_(model_snapshot_release) struct model_snapshot sn = {0};
	struct store *s = w->engine->store;
	int r;

	if (w->snapshot_gone) {
		r = s->ops->remove(s, &model_snapshots, w->snapshot_gone, e);
		return r == -ENOENT ? 0 : r;
	}
	if (!w->snapshot_made)
		return 0;
	r = s->ops->get(s, &model_snapshots, word(w, "snapshot"), &sn, e);
	if (r < 0)
		return r;
	sn.created = id_now();
	r = s->ops->put(s, &model_snapshots, &sn, e);
	return r < 0 ? r : store_announce(s, &model_snapshots, "created", &sn, id_now(), e);
}

static int change_end(void *row, void *arg, struct err *e)
{
	const struct ending *x = arg;
	struct model_instance *in = row;
	json_t *set;
	int r = 0;
	size_t i;

	if (x->w->set && model_set(&in->disks, x->w->set) < 0)
		return err_nomem(e);
	if (x->got || x->missing)
		r = instance_apply(in, x->got, e);
	if (in->state == INSTANCE_OFF)
		instance_note(in, "host", NULL);
	json_array_foreach(x->w->unneeded, i, set) instance_unneeded(in, json_string_value(set));
	in->updated = id_now();
	instance_note(in, "doing", NULL);
	instance_note(in, "force", in->deleting && is_forced(x->w) ? json_true() : NULL);
	model_take_json(&in->error, !x->failure
					? NULL
					: json_pack("{s:s, s:s, s:s, s:f}", "code", x->fault->code, "message",
						    x->failure->msg, "action", word(x->w, "action"), "time", id_now()));
	return r < 0 ? r : end_snapshot(x->w, e);
}

/* What is in use, or has a name, stays whatever our list says. */
static bool is_needed(const struct model_instance *in, const json_t *got, const json_t *kept, const char *set)
{
	_cleanup_free_ char *switching = in->switching ? jsn_text(in->switching) : NULL;

	return strcmp(in->disks ?: "", set) == 0 ||
	       strcmp(json_string_value(json_object_get(got, "set")) ?: "", set) == 0 || json_object_get(kept, set) ||
	       (in->switching && (!switching || strstr(switching, set)));
}

static int collect_set(void *arg, void *row)
{
	return MIN(0, json_object_set_new(arg, ((struct model_snapshot *)row)->disks, json_null()));
}

static int change_unneeded(void *row, void *arg, struct err *e)
{
	return instance_note(row, "unneeded", json_array_size(arg) ? json_incref(arg) : NULL) < 0 ? err_nomem(e) : 0;
}

/* True when something went, so that what it stood on may go, too. */
static bool drop_some(struct work *w, const struct model_instance *in, const json_t *kept, json_t *list)
{
	bool went = false;

	for (size_t i = json_array_size(list); i-- > 0;) {
		const char *set = json_string_value(json_array_get(list, i));
		struct err e = {0};
		int r = is_needed(in, w->got, kept, set) ? -EBUSY : w->h->ops->set_drop(w->h, in->ref, set, &e);

		if (r == 0 || r == -ENOENT) {
			json_array_remove(list, i);
			went = true;
		} else if (r != -EBUSY) {
			log_warn("instance %s: set %s stays for now: %s", in->id, set, e.msg);
		}
	}
	return went;
}

/* Before the end is told: what is noted and not in use any more. */
static void tidy(struct work *w)
{
	_cleanup_(model_instance_release) struct model_instance in = {0};
	struct store *s = w->engine->store;
	struct store_filter f = {"instance", w->in.id};
	struct store_query q = {.filters = &f, .nfilters = 1};
	_cleanup_json_ json_t *list = NULL, *kept = json_object();
	struct err e = {0};
	size_t before;

	if (s->ops->get(s, &model_instances, w->in.id, &in, &e) < 0 || !instance_is_whole(&in) ||
	    s->ops->list(s, &model_snapshots, &q, collect_set, kept, NULL, &e) < 0)
		return;
	list = json_deep_copy(instance_noted(&in, "unneeded"));
	before = json_array_size(list);
	while (json_array_size(list) && drop_some(w, &in, kept, list))
		;
	if (json_array_size(list) != before && save(w, NULL, change_unneeded, list, &e) < 0)
		log_warn("instance %s: %s", w->in.id, e.msg);
}

/* Sets that are to go are in the row before they go. */
static int change_dropped(void *row, void *arg, struct err *e)
{
	const struct work *w = arg;
	struct model_instance *in = row;
	json_t *set;
	size_t i;

	if (w->set && model_set(&in->disks, w->set) < 0)
		return err_nomem(e);
	json_array_foreach(w->unneeded, i,
			   set) if (instance_unneeded(in, json_string_value(set)) < 0) return err_nomem(e);
	return 0;
}

static int look(struct work *w, struct err *e)
{
	json_decref(w->got);
	w->got = NULL;
	return w->h->ops->get(w->h, w->in.ref ?: w->in.id, &w->got, e);
}

static void finish(struct work *w, int r, const struct err *failure)
{
	struct ending x = {.w = w, .failure = r < 0 ? failure : NULL, .fault = &w->task->outcome.fault};
	struct err e = {0};
	int end;

	if (w->h && w->in.ref) {
		x.missing = look(w, &e) == -ENOENT;
		if (json_array_size(w->unneeded) && save(w, NULL, change_dropped, w, &e) == 0)
			json_array_clear(w->unneeded);
		if (w->got)
			tidy(w);
		if (w->got && look(w, &e) < 0)
			log_warn("instance %s: %s", w->in.id, e.msg);
		x.got = w->got;
	}
	if (r < 0)
		log_warn("instance %s: %s: %s", w->in.id, word(w, "action"), failure->msg);
	/* What isn't written down as done would be done again, and as if for the first time. */
	while ((end = save(w, "updated", change_end, &x, &e)) < 0 && end != -ENOENT && !task_cancelled(w->task)) {
		log_error("instance %s: %s; trying again", w->in.id, e.msg);
		nanosleep(&(struct timespec){.tv_nsec = 500000000}, NULL);
	}
}

static int perform(struct work *w, struct err *e)
{
	static const struct {
		const char *action;
		int (*fn)(struct work *w, struct err *e);
	} table[] = {{"create", do_create}, {"start", do_start},       {"stop", do_stop},     {"restart", do_restart},
		     {"change", do_change}, {"snapshot", do_snapshot}, {"revert", do_revert}, {"delete", do_delete}};
	const char *action = w->in.deleting ? "delete" : word(w, "action");
	int r;

	r = engine_hypervisor(w->engine, w->in.region, &w->h, e);
	if (r == 0 && (w->in.ref || w->in.deleting))
		r = look(w, e);
	if (r == -ENOENT && w->in.deleting)
		r = 0;
	if (r == -ENOENT)
		r = err_set(e, -ENOTCONN, "its region doesn't know instance '%s' any more", w->in.name);
	if (r == 0)
		r = share_confirm(w->engine, e);
	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(table); i++)
		if (strcmp(action, table[i].action) == 0)
			return table[i].fn(w, e);
	return r; /* tidying is what every end does; a job's that is over only ends */
}

void instance_run(struct task *t)
{
	struct work w = {.task = t, .engine = t->engine, .unneeded = json_array()};
	struct store *s = t->engine->store;
	struct err e = {0};
	int r = s->ops->get(s, &model_instances, t->id, &w.in, &e);

	w.watch = (struct provider_watch){&w, on_event, cancelled};
	w.doing = instance_doing(&w.in);
	w.again = strcmp(word(&w, "by"), t->engine->start) != 0;
	if (r == 0 && (w.doing || w.in.deleting)) {
		r = perform(&w, &e);
		if (r < 0 && r != -EINPROGRESS) {
			t->outcome.r = instance_fault(&t->outcome.fault, &e);
			/* Else it is as it was, and done again after the restart. */
			if (!task_cancelled(t))
				finish(&w, r, &e);
		} else if (r == 0) {
			finish(&w, 0, NULL);
		}
	}
	engine_wake(t->engine);
	json_decref(w.got);
	json_decref(w.unneeded);
	model_instance_release(&w.in);
}
