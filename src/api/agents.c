/* What agents say: enrolment with a code, then one exchange per heartbeat. */
#include <errno.h>
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

static int code_refused(struct api_request *q)
{
	api_limit_count(q->api->limit, q->address);
	return api_refuse(q, 403, "code_refused", NULL,
			  "the activation code is wrong, used up, expired or revoked; make a new one at the center");
}

/* Is it a code of ours that could still be used? One answer for every reason: guessing learns nothing. */
static int check_code(struct api_request *q, const struct model_enroll_request *in, char id[ID_MAX])
{
	_cleanup_(model_code_release) struct model_code c = {0};
	struct store *s = q->api->s.store;
	struct err e = {0};
	int r;

	snprintf(id, ID_MAX, "%s%s", str_starts(in->code_id, "code-") ? "" : "code-", in->code_id);
	if (!id_is("code", id))
		return code_refused(q);
	r = s->ops->get(s, &model_codes, id, &c, &e);
	if (r == -ENOENT || (r == 0 && !store_secret_matches(in->code_secret, c.secret_hash)))
		return code_refused(q);
	return r < 0 ? api_fail(q, &e) : 0;
}

static int fill_source(const struct model_enroll_request *in, const char *hash, struct model_source *src)
{
	char id[ID_MAX];

	if (!src->id) {
		id_new("source", id);
		src->created = id_now();
		if (model_set(&src->id, id) < 0 || model_set(&src->name, in->hostname) < 0 ||
		    model_set(&src->machine_id, in->machine_id) < 0)
			return -ENOMEM;
	}
	src->last_seen = id_now();
	if (in->inventory)
		model_take_json(&src->inventory, json_incref(in->inventory));
	if (model_set(&src->hostname, in->hostname) < 0 || model_set(&src->agent_version, in->agent_version) < 0 ||
	    model_set(&src->secret_hash, hash) < 0 || model_set(&src->boot_id, NULL) < 0)
		return -ENOMEM;
	return 0;
}

#define ENROLLED_LATELY 300.0

/*
 * A machine that is known gets a new secret and stays the same source: its agent was installed anew. Unless
 * somebody holds that place: then it's a clone with the same machine id, or somebody who wants it. (An agent
 * that still has its secret proves itself with that and doesn't come here.)
 */
static int check_place(struct api_request *q, const struct model_source *src)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	const struct api_engine *en = &q->api->s.engine;
	struct store *s = q->api->s.store;

	if (s->ops->unfinished_job(s, src->id, &job, NULL) == 0)
		return api_refuse(q, 409, "machine_id_in_use", "machine_id",
				  "this machine is source '%s' already and has job '%s', which is %s; finish or delete "
				  "that job and delete the source, then enrol again",
				  src->id, job.id, model_job_states[job.state]);
	if (en->source_online(en->arg, src->id) || (!src->boot_id && id_now() - src->last_seen < ENROLLED_LATELY))
		return api_refuse(
		    q, 409, "machine_id_in_use", "machine_id",
		    "this machine is source '%s' already, and it enrolled or was heard of just now; delete "
		    "the source first, or stop its agent and wait some minutes (machines cloned from one "
		    "image need machine ids of their own)",
		    src->id);
	return 0;
}

static int enroll(struct api_request *q, const struct model_enroll_request *in, const char *hash,
		  struct model_source *src)
{
	struct store *s = q->api->s.store;
	struct err e = {0};
	char code[ID_MAX];
	bool known;
	int r;

	if (check_code(q, in, code) < 0)
		return -1;
	r = s->ops->source_by_machine(s, in->machine_id, src, &e);
	if (r < 0 && r != -ENOENT)
		return api_fail(q, &e);
	known = r == 0;
	if (known && check_place(q, src) < 0)
		return -1;
	r = s->ops->code_use(s, code, id_now(), &e);
	if (r == -EACCES)
		return code_refused(q);
	if (r == 0 && fill_source(in, hash, src) < 0)
		r = err_nomem(&e);
	if (r == 0)
		r = s->ops->put(s, &model_sources, src, &e);
	if (r == 0)
		r = store_announce(s, &model_sources, known ? "updated" : "created", src, id_now(), &e);
	return r < 0 ? api_fail(q, &e) : 0;
}

int api_agent_enroll(struct api_request *q)
{
	_cleanup_(model_source_release) struct model_source src = {0};
	char secret[STORE_SECRET_HEX], hash[STORE_SECRET_HEX];
	const struct api_engine *en = &q->api->s.engine;
	struct store *s = q->api->s.store;
	struct model_enroll_request in;
	_cleanup_free_ char *text = NULL;
	struct err e = {0};

	if (api_limit_exceeded(q->api->limit, q->address))
		return api_refuse(q, 429, "too_many_failures", NULL,
				  "too many wrong codes from this address; wait a minute");
	if (api_read(q, model_enroll_request, q->body, false, &in) < 0)
		return -1;
	store_secret_new(secret, hash);
	if (s->ops->begin(s, &e) < 0)
		return api_fail(q, &e);
	if (enroll(q, &in, hash, &src) < 0) {
		s->ops->rollback(s);
		return -1;
	}
	if (s->ops->commit(s, &e) < 0)
		return api_fail(q, &e);
	snprintf(q->who, sizeof(q->who), "%s", src.id);
	en->source_sync(en->arg, src.id, NULL, NULL, NULL, NULL, NULL);
	en->source_refresh(en->arg, src.id);
	text = str_printf("%s.%s", src.id + strlen("source-"), secret);
	return api_answer(q, 201, text ? json_pack("{s:s, s:s}", "source", src.id, "secret", text) : NULL);
}

/* The inventory without what is different each time anybody looks: services and ports come and go. */
static json_t *lasting(const json_t *inventory)
{
	static const char *const parts[][2] = {{"cpu", "load"},         {"memory", "available"}, {"survey", "units"},
					       {"survey", "processes"}, {"survey", "listening"}, {"survey", "modules"},
					       {"survey", "routes"},    {"survey", "swaps"}};
	json_t *o = json_copy((json_t *)inventory);

	json_object_del(o, "time");
	json_object_del(o, "uptime_seconds");
	for (size_t i = 0; o && i < ARRAY_SIZE(parts); i++) {
		json_t *part = json_object_get(o, parts[i][0]);

		part = json_is_object(part) ? json_copy(part) : NULL;
		if (part) {
			json_object_del(part, parts[i][1]);
			json_object_set_new(o, parts[i][0], part);
		}
	}
	return o;
}

/* Only now and then is there one to compare; so it isn't read with every heartbeat. */
static int inventory_changed(struct api_request *q, const json_t *inventory, bool *ret)
{
	_cleanup_(model_source_release) struct model_source src = {0};
	_cleanup_json_ json_t *before = NULL, *now = NULL;
	struct store *s = q->api->s.store;
	struct err e = {0};

	if (s->ops->get(s, &model_sources, q->who, &src, &e) < 0)
		return api_fail(q, &e);
	before = src.inventory ? lasting(src.inventory) : NULL;
	now = lasting(inventory);
	*ret = !before || !now || !json_equal(before, now);
	return 0;
}

static int write_changes(struct api_request *q, const struct model_sync_request *in, bool visible, struct err *e)
{
	struct model_source *src = &q->source;
	struct store *s = q->api->s.store;
	int r = s->ops->get(s, &model_sources, q->who, src, e);

	if (r < 0)
		return r;
	if (in->inventory)
		model_take_json(&src->inventory, json_incref(in->inventory));
	if (model_set(&src->boot_id, in->boot_id) < 0 || model_set(&src->agent_version, in->agent_version) < 0)
		return err_nomem(e);
	src->last_seen = id_now();
	r = s->ops->put(s, &model_sources, src, e);
	return r < 0 || !visible ? r : store_announce(s, &model_sources, "updated", src, id_now(), e);
}

/* The row is written, and anybody told, only when something in it changes, not with every heartbeat. */
static int save_changes(struct api_request *q, const struct model_sync_request *in)
{
	struct model_source *src = &q->source;
	struct store *s = q->api->s.store;
	struct err e = {0};
	bool again = src->boot_id && strcmp(src->boot_id, in->boot_id) == 0;
	bool visible = strcmp(src->agent_version, in->agent_version) != 0;

	if (!visible && in->inventory && inventory_changed(q, in->inventory, &visible) < 0)
		return -1;
	/* Load and uptime of a minute ago are good enough. */
	if (again && !visible && (!in->inventory || id_now() - src->last_seen < 60))
		return 0;
	/* Read anew inside the transaction: a person may be renaming it. */
	if (s->ops->begin(s, &e) < 0)
		return api_fail(q, &e);
	model_source_release(src);
	if (write_changes(q, in, visible, &e) < 0) {
		s->ops->rollback(s);
		return api_fail(q, &e);
	}
	if (s->ops->commit(s, &e) < 0)
		return api_fail(q, &e);
	if (visible)
		api_wake(q->api);
	return 0;
}

static int read_task(struct api_request *q, const json_t *task, struct model_task_request *ret,
		     struct model_error_request *ret_error)
{
	if (api_read_part(q, "task", model_task_request, task, false, ret) < 0)
		return -1;
	if (!id_is("run", ret->run))
		return api_refuse(q, 400, "bad_field", "task.run", "'%.64s' is not the id of a run", ret->run);
	if (ret->error)
		return api_read_part(q, "task.error", model_error_request, ret->error, false, ret_error);
	*ret_error = (struct model_error_request){"agent_failed", "the agent failed and didn't say why", false};
	return 0;
}

static int read_log(struct api_request *q, const json_t *log, struct model_log_request *ret)
{
	if (api_read_part(q, "log", model_log_request, log, false, ret) < 0)
		return -1;
	return id_is("run", ret->run)
		   ? 0
		   : api_refuse(q, 400, "bad_field", "log.run", "'%.64s' is not the id of a run", ret->run);
}

int api_agent_sync(struct api_request *q)
{
	const struct api_engine *en = &q->api->s.engine;
	struct model_task_request task;
	struct model_log_request log;
	struct model_error_request error;
	struct model_sync_request in;
	json_t *next = NULL;
	double interval = 0;

	if (api_read(q, model_sync_request, q->body, false, &in) < 0)
		return -1;
	if (in.task && read_task(q, in.task, &task, &error) < 0)
		return -1;
	if (in.log && read_log(q, in.log, &log) < 0)
		return -1;
	if (save_changes(q, &in) < 0)
		return -1;
	if (in.log) /* before its task is answered, which says how much of it is there */
		en->source_log(en->arg, q->who, &log);
	if (en->source_sync(en->arg, q->who, in.task ? &task : NULL, in.task ? &error : NULL, &next, &interval,
			    &q->fault) < 0)
		return -1;
	return api_answer(q, 200, json_pack("{s:f, s:o}", "interval_seconds", interval, "task", next));
}
