#include "center/instances.h"
#include "center/switching.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/str.h"

#define OURS "center" /* our part of `seen` */

/* As people are told of them: what is done, and what cannot be done. */
static const struct {
	const char *action, *doing;
} verbs[INSTANCE_VERBS] = {
    [INSTANCE_CREATE] = {"create", "made"},     [INSTANCE_START] = {"start", "started"},
    [INSTANCE_STOP] = {"stop", "stopped"},      [INSTANCE_RESTART] = {"restart", "restarted"},
    [INSTANCE_CHANGE] = {"change", "changed"},  [INSTANCE_SNAPSHOT] = {"snapshot", "given a snapshot"},
    [INSTANCE_REVERT] = {"revert", "reverted"}, [INSTANCE_TIDY] = {"tidy", "freed of a snapshot"},
    [INSTANCE_DELETE] = {"delete", "deleted"},
};

/* ---- our part of the row ---- */

const json_t *instance_noted(const struct model_instance *in, const char *key)
{
	return json_object_get(json_object_get(in->seen, OURS), key);
}

json_t *instance_doing(const struct model_instance *in)
{
	return (json_t *)(uintptr_t)instance_noted(in, "doing");
}

int instance_note(struct model_instance *in, const char *key, json_t *value)
{
	json_t *ours = json_object_get(in->seen, OURS);
	int r = -1;

	if (!in->seen)
		in->seen = json_object();
	if (!ours && in->seen && json_object_set_new(in->seen, OURS, json_object()) == 0)
		ours = json_object_get(in->seen, OURS);
	if (ours && value)
		r = json_object_set(ours, key, value);
	else if (ours)
		r = (json_object_del(ours, key), 0);
	json_decref(value);
	return r < 0 ? -ENOMEM : 0;
}

int instance_unneeded(struct model_instance *in, const char *set)
{
	const json_t *old = instance_noted(in, "unneeded");
	json_t *list = old ? json_copy((json_t *)(uintptr_t)old) : json_array();

	if (!id_is("set", set)) {
		json_decref(list);
		return 0;
	}
	if (json_array_append_new(list, json_string(set)) < 0) {
		json_decref(list);
		return -ENOMEM;
	}
	return instance_note(in, "unneeded", list);
}

bool instance_is_whole(const struct model_instance *in)
{
	return in->ref && in->disks && !in->deleting;
}

const char *instance_host(struct engine *en)
{
	return en->store->share ? en->data_host : "";
}

const char *instance_elsewhere(struct engine *en, const struct model_instance *in)
{
	const char *host = json_string_value(instance_noted(in, "host")), *ours = instance_host(en);

	return host && *host && *ours && strcmp(host, ours) != 0 ? host : NULL;
}

static int change_host(void *row, void *arg, struct err *e)
{
	return instance_note(row, "host", json_string(arg)) < 0 ? err_nomem(e) : 0;
}

int instance_start(struct engine *en, struct hypervisor *h, const struct model_instance *in, struct err *e)
{
	_cleanup_(model_instance_release) struct model_instance now = {0};
	_cleanup_(model_region_release) struct model_region region = {0};
	const char *host = instance_host(en);
	int r = en->store->ops->get(en->store, &model_regions, in->region, &region, e);

	if (r == 0 && *host && strcmp(region.provider, "local") == 0)
		r = store_change(en->store, &model_instances, in->id, NULL, change_host, (void *)(uintptr_t)host, &now,
				 e);
	return r < 0 ? r : h->ops->start(h, in->ref, e);
}

int instance_fault(struct api_fault *f, const struct err *e)
{
	switch (e->code) {
	case -ENOENT:
	case -EBUSY:
	case -EEXIST:
	case -ENOSPC:
		return api_fault_err(f, e);
	case -ETIMEDOUT:
		return api_fault_set(f, 409, "not_stopped", NULL, "%s", e->msg);
	case -EINVAL:
	case -ENOTSUP:
		return api_fault_set(f, 409, "not_possible", NULL, "%s", e->msg);
	case -ENOTCONN:
		return api_fault_set(f, 409, "invalid_state", NULL, "%s", e->msg);
	default:
		return api_fault_set(f, 502, "hypervisor_failed", NULL, "%s",
				     *e->msg ? e->msg : "the hypervisor failed");
	}
}

/* ---- what the hypervisor says ---- */

int instance_apply(struct model_instance *in, const json_t *got, struct err *e)
{
	json_t *ours = json_incref(json_object_get(in->seen, OURS));
	const char *set = json_string_value(json_object_get(got, "set"));
	int state = model_word(model_instance_states, json_string_value(json_object_get(got, "state")) ?: "");
	json_t *seen, *settings = json_object_get(got, "settings");

	in->state = got ? MAX(state, 0) : INSTANCE_MISSING;
	in->updated = id_now();
	if (!got) {
		json_decref(ours);
		return 0;
	}
	seen = json_copy((json_t *)(uintptr_t)got);
	if (seen && ours)
		json_object_set(seen, OURS, ours);
	json_decref(ours);
	if (!seen)
		return err_nomem(e);
	model_take_json(&in->seen, seen);
	if (json_is_object(settings))
		model_take_json(&in->settings, json_incref(settings));
	/* A killed center may not have come to write down what it put in use. */
	return set && in->disks && model_set(&in->disks, set) < 0 ? err_nomem(e) : 0;
}

static int look_change(void *row, void *arg, struct err *e)
{
	return instance_apply(row, arg, e);
}

int instance_look(struct engine *en, const char *id, struct err *e)
{
	_cleanup_(model_instance_release) struct model_instance in = {0}, after = {0};
	_cleanup_json_ json_t *got = NULL;
	struct hypervisor *h;
	int r = en->store->ops->get(en->store, &model_instances, id, &in, e), x;

	if (r == 0 && !in.ref)
		return err_set(e, -ENOENT, "instance '%s' was never made", in.name);
	if (r == 0 && instance_elsewhere(en, &in))
		return err_set(e, -EBUSY, "instance '%s' runs on another host", in.name);
	if (r == 0)
		r = engine_hypervisor(en, in.region, &h, e);
	if (r < 0)
		return r;
	r = h->ops->get(h, in.ref, &got, e);
	if (r < 0 && r != -ENOENT)
		return r;
	x = store_change(en->store, &model_instances, id, "updated", look_change, got, &after, r < 0 ? NULL : e);
	engine_wake(en);
	return r < 0 ? r : x;
}

/* ---- one at a time ---- */

static const char *doing_words(const struct model_instance *in)
{
	const char *action = json_string_value(json_object_get(instance_doing(in), "action"));

	for (size_t i = 0; action && i < INSTANCE_VERBS; i++)
		if (strcmp(action, verbs[i].action) == 0)
			return verbs[i].doing;
	return in->deleting ? "deleted" : "migrated onto";
}

/* Another one's, or one that was left by a center that died, which goes on soon. */
static int refuse_busy(const struct model_instance *in, struct err *e)
{
	const char *job = json_string_value(json_object_get(instance_doing(in), "job"));

	return err_set(e, -EBUSY, "instance '%s' is being %s%s%s; wait for its end", in->name, doing_words(in),
		       job ? " by job " : "", job ?: "");
}

struct taking {
	struct engine *engine;
	const char *action, *job;
};

static int take_change(void *row, void *arg, struct err *e)
{
	struct model_instance *in = row;
	const json_t *doing = instance_doing(in);
	const char *job = json_string_value(json_object_get(doing, "job"));
	const struct taking *t = arg;

	if (in->deleting || (doing && !(job && t->job && strcmp(job, t->job) == 0)))
		return refuse_busy(in, e);
	if (!instance_is_whole(in))
		return err_set(e, -EBUSY, "instance '%s' was never made; delete it", in->name);
	if (instance_note(in, "doing",
			  json_pack("{s:s, s:s, s:s*}", "action", t->action, "by", t->engine->start, "job", t->job)) <
	    0)
		return err_nomem(e);
	in->updated = id_now();
	return 0;
}

int instance_take(struct engine *en, const char *id, const char *action, const char *job, struct err *e)
{
	_cleanup_(model_instance_release) struct model_instance in = {0};
	struct taking t = {en, action, job};
	int r = share_take(en, id);

	if (r == -EBUSY)
		return err_set(e, r, "another center is at work on instance '%s'; wait for its end", id);
	if (r < 0)
		return err_set(e, r, "the right to work on instance '%s' can't be had now", id);
	r = store_change(en->store, &model_instances, id, "updated", take_change, &t, &in, e);
	if (r < 0)
		share_drop(en, id);
	engine_wake(en);
	return r;
}

/* Somebody may have ended it for us, and another one begun. */
static int leave_change(void *row, void *arg, struct err *e)
{
	struct model_instance *in = row;
	const json_t *doing = instance_doing(in);
	const char *action = json_string_value(json_object_get(doing, "action"));
	const char *job = json_string_value(json_object_get(doing, "job"));
	const struct taking *t = arg;

	if (strcmp(action ?: "", t->action) != 0 || strcmp(job ?: "", t->job ?: "") != 0)
		return -ECANCELED;
	in->updated = id_now();
	return instance_note(in, "doing", NULL) < 0 ? err_nomem(e) : 0;
}

void instance_leave(struct engine *en, const char *id, const char *action, const char *job)
{
	_cleanup_(model_instance_release) struct model_instance in = {0};
	struct taking t = {en, action, job};
	struct err e = {0};
	int r = store_change(en->store, &model_instances, id, "updated", leave_change, &t, &in, &e);

	if (r < 0 && r != -ECANCELED)
		log_warn("instance %s: %s", id, e.msg);
	share_drop(en, id);
	engine_wake(en);
}

/* ---- what images bear ---- */

struct standing {
	const char *image;
	char *name;
};

static bool stands_on(const struct model_instance *in, const char *image)
{
	const char *to = json_string_value(json_object_get(in->switching, "image"));
	json_t *set;
	size_t i;

	if ((in->image && strcmp(in->image, image) == 0) || (to && strcmp(to, image) == 0))
		return true;
	json_array_foreach(json_object_get(in->seen, "sets"), i, set)
	{
		const char *on = json_string_value(json_object_get(set, "image"));

		if (on && strcmp(on, image) == 0)
			return true;
	}
	return false;
}

static int look_for_image(void *arg, void *row)
{
	const struct model_instance *in = row;
	struct standing *s = arg;

	if (!stands_on(in, s->image))
		return 0;
	snprintf(s->name, MODEL_NAME_MAX + 1, "%s", in->name);
	return 1;
}

int instance_on_image(struct engine *en, const char *image, char name[MODEL_NAME_MAX + 1], struct err *e)
{
	struct standing s = {image, name};
	struct store_query all = {0};

	return en->store->ops->list(en->store, &model_instances, &all, look_for_image, &s, NULL, e);
}

/* ---- something is asked for ---- */

struct asked {
	struct engine *engine;
	const struct api_instance_do *a;
	struct api_fault *f;
	json_t *doing;
	bool forgotten;
};

static int count_unfinished(void *arg, void *row)
{
	*(size_t *)arg += job_is_unfinished(((struct model_job *)row)->state);
	return 0;
}

/* What another host runs can't be had from here. */
int instance_check_host(struct engine *en, const struct model_instance *in, struct api_fault *f)
{
	const char *host = instance_elsewhere(en, in);

	return host ? api_fault_set(f, 409, "another_host", NULL,
				    "instance '%s' runs on the host of center '%s'; ask that center", in->name, host)
		    : 0;
}

/* Is it imported: made by somebody else, who may need its disks? It may have an image since: by a migration. */
static bool is_imported(const struct model_instance *in)
{
	return !in->image || json_is_true(instance_noted(in, "imported"));
}

static int check_jobs(const struct asked *q, const struct model_instance *in)
{
	struct store_filter f = {"instance", in->id};
	struct store_query sq = {.filters = &f, .nfilters = 1};
	struct store *s = q->engine->store;
	struct err e = {0};
	size_t n = 0;

	if (q->a->force)
		return 0;
	if (s->ops->list(s, &model_jobs, &sq, count_unfinished, &n, NULL, &e) < 0)
		return api_fault_err(q->f, &e);
	return n ? api_fault_set(q->f, 409, "in_use", NULL, "%zu jobs migrate onto instance '%s'; delete them first", n,
				 in->name)
		 : 0;
}

/* Only forgotten: then nothing of ours may be below it. */
static int ask_forget(struct asked *q, const struct model_instance *in)
{
	json_t *set;
	size_t i;

	if (!is_imported(in))
		return api_fault_set(q->f, 409, "not_possible", "keep",
				     "instance '%s' was made here; only imported ones can be kept", in->name);
	json_array_foreach(json_object_get(in->seen, "sets"), i, set)
	{
		const char *image = json_string_value(json_object_get(set, "image"));

		if (image)
			return api_fault_set(q->f, 409, "in_use", "keep",
					     "the disks of instance '%s' stand on image '%s'", in->name, image);
	}
	q->forgotten = true;
	return 0;
}

static int ask_delete(struct asked *q, struct model_instance *in)
{
	const struct api_instance_do *a = q->a;

	if (check_jobs(q, in) < 0)
		return -1;
	if (in->switching && !a->force)
		return api_fault_set(q->f, 409, "in_use", NULL,
				     "the migration onto instance '%s' is neither confirmed nor taken back", in->name);
	if (a->keep)
		return ask_forget(q, in);
	if (is_imported(in) && !a->force)
		return api_fault_set(q->f, 409, "imported", NULL,
				     "instance '%s' was imported: 'keep' forgets it, 'force' deletes its disks",
				     in->name);
	if (in->state != INSTANCE_OFF && in->state != INSTANCE_MISSING && in->disks && !a->force)
		return api_fault_set(q->f, 409, "invalid_state", NULL, "instance '%s' is %s; stop it first", in->name,
				     model_instance_states[in->state]);
	in->deleting = true;
	json_object_set_new(q->doing, "force", json_boolean(a->force));
	return 0;
}

/* The snapshot that the request is about, of that very instance. */
static int get_snapshot(struct asked *q, const struct model_instance *in, struct model_snapshot *sn)
{
	struct store *s = q->engine->store;
	struct err e = {0};

	if (s->ops->get(s, &model_snapshots, q->a->snapshot, sn, &e) < 0)
		return api_fault_err(q->f, &e);
	return strcmp(sn->instance, in->id) == 0
		   ? 0
		   : api_fault_set(q->f, 409, "invalid_state", NULL, "it is another one's");
}

/* The row comes first: with the set that is in use until the hypervisor has made another. */
static int ask_snapshot(struct asked *q, const struct model_instance *in)
{
	_cleanup_(model_snapshot_release) struct model_snapshot sn = {.created = id_now()};
	struct store *s = q->engine->store;
	struct err e = {0};
	char set[ID_MAX];

	id_new("set", set);
	json_object_set_new(q->doing, "snapshot", json_string(q->a->snapshot));
	json_object_set_new(q->doing, "set", json_string(set));
	if (model_set(&sn.id, q->a->snapshot) < 0 || model_set(&sn.name, q->a->name) < 0 ||
	    model_set(&sn.instance, in->id) < 0 || model_set(&sn.disks, in->disks) < 0)
		err_nomem(&e);
	return e.code < 0 || s->ops->put(s, &model_snapshots, &sn, &e) < 0 ? api_fault_err(q->f, &e) : 0;
}

static int ask_revert(struct asked *q, const struct model_instance *in)
{
	_cleanup_(model_snapshot_release) struct model_snapshot sn = {0};
	char set[ID_MAX];

	if (get_snapshot(q, in, &sn) < 0)
		return -1;
	if (in->state != INSTANCE_OFF && in->state != INSTANCE_CRASHED)
		return api_fault_set(q->f, 409, "invalid_state", NULL, "instance '%s' is %s; stop it first", in->name,
				     model_instance_states[in->state]);
	id_new("set", set);
	json_object_set_new(q->doing, "from", json_string(in->disks));
	json_object_set_new(q->doing, "on", json_string(sn.disks));
	json_object_set_new(q->doing, "set", json_string(set));
	return 0;
}

static int ask_tidy(struct asked *q, struct model_instance *in)
{
	_cleanup_(model_snapshot_release) struct model_snapshot sn = {0};
	struct store *s = q->engine->store;
	struct err e = {0};

	if (get_snapshot(q, in, &sn) < 0)
		return -1;
	if (instance_unneeded(in, sn.disks) < 0)
		err_nomem(&e);
	if (e.code < 0 || s->ops->remove(s, &model_snapshots, sn.id, &e) < 0 ||
	    store_announce_gone(s, &model_snapshots, sn.id, id_now(), &e) < 0)
		return api_fault_err(q->f, &e);
	return 0;
}

static int ask_change(struct asked *q, const struct model_instance *in)
{
	if (is_imported(in))
		return api_fault_set(q->f, 409, "not_possible", "settings",
				     "instance '%s' was imported; its settings are changed where it was made",
				     in->name);
	if (in->state != INSTANCE_OFF && in->state != INSTANCE_CRASHED)
		return api_fault_set(q->f, 409, "invalid_state", "settings", "instance '%s' is %s; stop it first",
				     in->name, model_instance_states[in->state]);
	json_object_set(q->doing, "settings", (json_t *)(uintptr_t)q->a->settings);
	return 0;
}

static int ask_verb(struct asked *q, struct model_instance *in)
{
	enum instance_verb verb = q->a->verb;

	switch (verb) {
	case INSTANCE_STOP:
	case INSTANCE_RESTART:
		json_object_set_new(q->doing, "seconds", json_real(q->a->seconds));
		return 0;
	case INSTANCE_CHANGE:
		return ask_change(q, in);
	case INSTANCE_SNAPSHOT:
		return ask_snapshot(q, in);
	case INSTANCE_REVERT:
		return ask_revert(q, in);
	case INSTANCE_TIDY:
		return ask_tidy(q, in);
	case INSTANCE_DELETE:
		return ask_delete(q, in);
	case INSTANCE_CREATE:
	case INSTANCE_START:
	case INSTANCE_VERBS:
		break;
	}
	return 0;
}

/* What may be done to it at all. */
static int check_verb(struct asked *q, const struct model_instance *in)
{
	enum instance_verb verb = q->a->verb;
	bool deletes = verb == INSTANCE_DELETE,
	     disks = verb == INSTANCE_SNAPSHOT || verb == INSTANCE_REVERT || verb == INSTANCE_TIDY;
	struct err e = {0};

	if (instance_doing(in) || (in->deleting && !deletes)) {
		refuse_busy(in, &e);
		return api_fault_set(q->f, 409, "in_use", NULL, "%s", e.msg);
	}
	if (!deletes && !instance_is_whole(in))
		return api_fault_set(q->f, 409, "invalid_state", NULL, "instance '%s' could not be made; delete it",
				     in->name);
	if (!deletes && in->state == INSTANCE_MISSING)
		return api_fault_set(
		    q->f, 409, "invalid_state", NULL,
		    "its region doesn't know instance '%s' any more; delete it, and nothing but its row goes",
		    in->name);
	if (disks && in->switching)
		return api_fault_set(q->f, 409, "in_use", NULL,
				     "the migration onto instance '%s' is neither confirmed nor taken back", in->name);
	return instance_check_host(q->engine, in, q->f);
}

static int ask_change_row(struct asked *q, const char *id)
{
	_cleanup_(model_instance_release) struct model_instance in = {0};
	struct store *s = q->engine->store;
	struct err e = {0};

	if (s->ops->get(s, &model_instances, id, &in, &e) < 0)
		return api_fault_err(q->f, &e);
	if (check_verb(q, &in) < 0 || ask_verb(q, &in) < 0)
		return -1;
	if (q->forgotten) {
		if (s->ops->remove(s, &model_instances, id, &e) < 0 ||
		    store_announce_gone(s, &model_instances, id, id_now(), &e) < 0)
			return api_fault_err(q->f, &e);
		return 0;
	}
	in.updated = id_now();
	if (instance_note(&in, "doing", json_incref(q->doing)) < 0)
		err_nomem(&e);
	if (e.code < 0 || s->ops->put(s, &model_instances, &in, &e) < 0 ||
	    store_announce(s, &model_instances, "updated", &in, id_now(), &e) < 0)
		return api_fault_err(q->f, &e);
	return 0;
}

/* What is to be done stands in the row, or nothing does. */
static int ask(struct asked *q, const char *id)
{
	struct store *s = q->engine->store;
	struct err e = {0};

	if (s->ops->begin(s, &e) < 0)
		return api_fault_err(q->f, &e);
	if (ask_change_row(q, id) < 0) {
		s->ops->rollback(s);
		return -1;
	}
	return s->ops->commit(s, &e) < 0 ? api_fault_err(q->f, &e) : 0;
}

/* The row is written, so its end is certain: when it can't be begun now, the clockwork begins it. */
static int go(struct engine *en, const char *id, struct api_fault *f)
{
	struct task_outcome o = {0};

	if (task_start_for(en, TASK_INSTANCE, id, NULL, &o) != 0 || !task_wait(en, TASK_INSTANCE, id, &o))
		return 1;
	*f = o.fault;
	return o.r;
}

int instance_do(void *arg, const char *id, const struct api_instance_do *a, struct api_fault *f)
{
	struct engine *en = arg;
	_cleanup_json_ json_t *doing = json_pack("{s:s, s:s}", "action", verbs[a->verb].action, "by", en->start);
	struct asked q = {en, a, f, doing, false};
	int r = share_take(en, id);

	if (r < 0 && r != -EBUSY)
		return api_fault_set(f, 503, "busy", NULL, "the right to work on the instance can't be had now");
	if (r == -EBUSY)
		return api_fault_set(f, 409, "in_use", NULL,
				     "another center is at work on the instance; wait for its end");
	r = ask(&q, id);
	engine_wake(en);
	if (r == 0 && !q.forgotten)
		r = go(en, id, f);
	share_drop(en, id);
	return r;
}

/* The image stays as long as there is a row that names it. */
static int insert(struct engine *en, const struct model_instance *in, struct api_fault *f)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	struct store *s = en->store;
	struct err e = {0};
	int r = in->image ? s->ops->get(s, &model_images, in->image, &im, &e) : 0;

	if (r < 0 || im.deleting)
		return api_fault_set(f, r < 0 ? 400 : 409, r < 0 ? "bad_field" : "in_use", "image", "%s",
				     r < 0 ? e.msg : "the image is being deleted");
	if (s->ops->put(s, &model_instances, in, &e) < 0 ||
	    store_announce(s, &model_instances, "created", in, id_now(), &e) < 0)
		return api_fault_err(f, &e);
	return 0;
}

static int insert_whole(struct engine *en, const struct model_instance *in, struct api_fault *f)
{
	struct store *s = en->store;
	struct err e = {0};

	if (s->ops->begin(s, &e) < 0)
		return api_fault_err(f, &e);
	if (insert(en, in, f) < 0) {
		s->ops->rollback(s);
		return -1;
	}
	if (s->ops->commit(s, &e) < 0)
		return api_fault_err(f, &e);
	engine_wake(en);
	return 0;
}

static int import(struct engine *en, struct model_instance *in, struct api_fault *f)
{
	_cleanup_json_ json_t *got = NULL;
	const char *set;
	struct err e = {0};

	if (instance_ask_get(en, in->region, in->ref, &got, f) < 0)
		return -1;
	set = json_string_value(json_object_get(got, "set"));
	if (!set)
		return api_fault_set(f, 409, "not_possible", "ref", "'%s' has no disks that could be migrated onto",
				     in->ref);
	if (model_set(&in->disks, set) < 0 || instance_apply(in, got, &e) < 0 ||
	    instance_note(in, "imported", json_true()) < 0)
		return api_fault_set(f, 500, "internal", NULL, "out of memory");
	return insert_whole(en, in, f);
}

int instance_create(void *arg, struct model_instance *in, bool start, struct api_fault *f)
{
	struct engine *en = arg;

	if (!in->image)
		return import(en, in, f);
	if (instance_note(in, "doing",
			  json_pack("{s:s, s:s, s:b}", "action", verbs[INSTANCE_CREATE].action, "by", en->start,
				    "start", start)) < 0)
		return api_fault_set(f, 500, "internal", NULL, "out of memory");
	if (insert_whole(en, in, f) < 0)
		return -1;
	/* The row is written, so it is made, now or by the clockwork. */
	task_start(en, TASK_INSTANCE, in->id, NULL);
	return 1;
}

/* ---- after a crash ---- */

static bool is_of_switch(const struct model_instance *in)
{
	const char *job = json_string_value(json_object_get(instance_doing(in), "job"));

	return job && strcmp(json_string_value(json_object_get(in->switching, "job")) ?: "", job) == 0;
}

static int resume_instance(void *arg, void *row)
{
	const struct model_instance *in = row;
	const char *job = json_string_value(json_object_get(instance_doing(in), "job"));
	struct engine *en = arg;
	_cleanup_(model_job_release) struct model_job j = {0};

	/* What runs on another host is off as seen from here, and would be started twice. */
	if ((!instance_doing(in) && !in->deleting) || instance_elsewhere(en, in))
		return 0;
	/* A migration onto it goes on by itself, and waits for the end of what else was being done. */
	if (switch_is_work(switching_step(in)) && !in->deleting && is_of_switch(in))
		return 0;
	/* Its own thread, or the job's, goes on with it. */
	if (job && (task_runs(en, TASK_SWITCH, in->id) ||
		    (en->store->ops->get(en->store, &model_jobs, job, &j, NULL) == 0 && j.state == JOB_RUNNING)))
		return 0;
	return MIN(0, task_start(en, TASK_INSTANCE, in->id, NULL));
}

int instance_resume_all(struct engine *en, struct err *e)
{
	struct store_query all = {0};

	return en->store->ops->list(en->store, &model_instances, &all, resume_instance, en, NULL, e);
}

/* ---- what they do by themselves ---- */

/* What is news. Sizes grow all the time. */
static json_t *essence(const struct model_instance *in)
{
	json_t *sets = json_array(), *set, *o;
	size_t i;

	json_array_foreach(json_object_get(in->seen, "sets"), i, set)
	    json_array_append_new(sets, json_pack("[O?, O?, O?]", json_object_get(set, "set"),
						  json_object_get(set, "on"), json_object_get(set, "image")));
	o = json_pack("{s:i, s:O?, s:O?, s:s?, s:o}", "state", in->state, "settings", in->settings, "addresses",
		      json_object_get(in->seen, "addresses"), "disks", in->disks, "sets", sets);
	return o;
}

struct refreshing {
	struct engine *engine;
	const char *id;
	const json_t *got; /* NULL: it isn't there */
	double asked;
};

/* What was done to it since we asked is newer than the answer. */
static int refresh_change(void *row, void *arg, struct err *e)
{
	const struct refreshing *rf = arg;
	struct model_instance *in = row;
	_cleanup_json_ json_t *before = essence(in), *after = NULL;
	int r;

	if (instance_doing(in) || !instance_is_whole(in) || in->updated >= rf->asked ||
	    instance_elsewhere(rf->engine, in))
		return -ECANCELED;
	r = instance_apply(in, rf->got, e);
	after = r == 0 ? essence(in) : NULL;
	if (r == 0 && in->state == INSTANCE_OFF)
		instance_note(in, "host", NULL);
	return r < 0 ? r : json_equal(before, after) ? -ECANCELED : 0;
}

static int collect(void *arg, void *row)
{
	const struct model_instance *in = row;

	return instance_is_whole(in) && !instance_doing(in)
		   ? MIN(0, json_object_set_new(arg, in->id, json_string(in->ref)))
		   : 0;
}

static json_t *find_ref(const json_t *list, const char *ref)
{
	json_t *o;
	size_t i;

	json_array_foreach(list, i,
			   o) if (strcmp(json_string_value(json_object_get(o, "ref")) ?: "", ref) == 0) return o;
	return NULL;
}

static void refresh_one(struct engine *en, const struct refreshing *rf)
{
	_cleanup_(model_instance_release) struct model_instance in = {0};
	struct err e = {0};
	int r = store_change(en->store, &model_instances, rf->id, "updated", refresh_change, (void *)(uintptr_t)rf, &in,
			     &e);

	if (r == 0)
		log_info("instance %s: %s", rf->id, model_instance_states[in.state]);
	else if (r != -ECANCELED && r != -ENOENT)
		log_warn("instance %s: %s", rf->id, e.msg);
}

void instance_refresh(struct task *t)
{
	struct engine *en = t->engine;
	struct store_filter f = {"region", t->id};
	struct store_query q = {.filters = &f, .nfilters = 1};
	_cleanup_json_ json_t *refs = json_object(), *list = NULL;
	double asked = id_now();
	struct hypervisor *h;
	struct err e = {0};
	const char *id;
	json_t *ref;
	int r = engine_hypervisor(en, t->id, &h, &e);

	if (r == 0)
		r = h->ops->list(h, &list, &e);
	if (r == 0)
		r = en->store->ops->list(en->store, &model_instances, &q, collect, refs, NULL, &e);
	if (r < 0) {
		log_warn("region %s: %s", t->id, e.msg);
		return;
	}
	json_object_foreach(refs, id, ref)
	{
		struct refreshing rf = {en, id, find_ref(list, json_string_value(ref)), asked};

		refresh_one(en, &rf);
	}
	engine_wake(en);
}

static int collect_region(void *arg, void *row)
{
	const struct model_instance *in = row;

	return MIN(0, json_object_set_new(arg, in->region, json_null()));
}

void instance_tick(struct engine *en)
{
	_cleanup_json_ json_t *regions = json_object();
	struct store_query all = {0};
	const char *region;
	json_t *unused;

	if (en->store->ops->list(en->store, &model_instances, &all, collect_region, regions, NULL, NULL) < 0)
		return;
	json_object_foreach(regions, region, unused) task_start(en, TASK_REFRESH, region, NULL);
}
