/* Jobs: made and changed here, carried out by the engine. */
#include <errno.h>
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

#define START_SOONEST (10 * 60.0)
#define START_LATEST  (30 * MODEL_DAY)

static void job_live(struct api_request *q, void *row)
{
	q->api->s.engine.job_live(q->api->s.engine.arg, row);
}

/* Reports can be long, and scripts. */
static void brief_job(struct api_request *q, void *row)
{
	struct model_job *job = row;

	job_live(q, job);
	model_take_json(&job->test, NULL);
	if (json_object_get(job->parameters, "checks"))
		model_take_json(&job->parameters, model_parameters_brief(job->parameters));
}

int api_list_jobs(struct api_request *q)
{
	return api_list(q, &model_jobs, brief_job);
}

static int add_run(void *arg, void *row)
{
	return json_array_append_new(arg, model_json(&model_runs, row, false, id_now())) < 0 ? -ENOMEM : 0;
}

/* With its last runs. */
static int answer_job(struct api_request *q, int status, struct model_job *job)
{
	struct store_filter mine = {"job", job->id};
	struct store_query sq = {.filters = &mine, .nfilters = 1, .limit = 20};
	struct store *s = q->api->s.store;
	json_t *o, *runs = json_array();
	struct err e = {0};

	job_live(q, job);
	o = model_json(&model_jobs, job, false, id_now());
	if (!o || !runs || s->ops->list(s, &model_runs, &sq, add_run, runs, NULL, &e) < 0) {
		json_decref(o);
		json_decref(runs);
		return api_refuse(q, 500, "internal", NULL, "%s", *e.msg ? e.msg : "out of memory");
	}
	json_object_set_new(o, "runs", runs);
	return api_answer(q, status, o);
}

int api_get_job(struct api_request *q)
{
	_cleanup_(model_job_release) struct model_job job = {0};

	const struct api_engine *en = &q->api->s.engine;
	json_t *holds;

	if (api_row(q, &model_jobs, &job) < 0 || answer_job(q, 200, &job) < 0)
		return -1;
	holds = en->job_holds(en->arg, &job);
	json_object_set_new(q->json, "holds", holds ? holds : json_null());
	return 0;
}

/* Over what is in `p` already. */
static int lay_parameters(struct api_request *q, const json_t *given, const char *field, struct model_parameters *p)
{
	return given ? api_read_part(q, field, model_parameters, given, true, p) : 0;
}

static int check_address(struct api_request *q, const json_t *parameters, const char *in)
{
	enum model_address kind;
	struct ip4_plan plan;
	const char *field;
	struct err e = {0};
	char path[64];

	if (model_read_address(parameters, &kind, &plan, &field, &e) == 0)
		return 0;
	snprintf(path, sizeof(path), "%s.%s", in, field);
	return api_refuse(q, 400, "bad_field", path, "%s", e.msg);
}

int api_check_parameters(struct api_request *q, const json_t *given, const char *field)
{
	struct model_parameters p = {0};

	return lay_parameters(q, given, field, &p) < 0 ? -1 : check_address(q, given, field);
}

/* A job on a network that its region isn't on would wait for data that never comes. */
static int check_network(struct api_request *q, const json_t *parameters)
{
	_cleanup_(model_region_release) struct model_region r = {0};
	struct store *s = q->api->s.store;
	struct err e = {0};

	if (model_word(model_networks, json_string_value(json_object_get(parameters, "network"))) != NETWORK_PRIVATE)
		return 0;
	if (s->ops->get(s, &model_regions, "local", &r, &e) < 0)
		return api_fail(q, &e);
	return model_region_address(&r, NETWORK_PRIVATE)
		   ? 0
		   : api_refuse(q, 400, "bad_field", "parameters.network",
				"region 'local' has no private address; an admin can give it one");
}

/* Request and defaults -> what the job will use. inventory: of the source, NULL when that is gone. */
static int read_parameters(struct api_request *q, const json_t *given, const json_t *old, const json_t *inventory,
			   json_t **ret)
{
	struct model_parameters p;
	const char *field;
	_cleanup_json_ json_t *empty = json_object(), *laid = NULL;
	struct err e = {0};

	if (model_read(model_parameters, old ? old : empty, false, &p, &field, NULL) < 0)
		return api_refuse(q, 500, "internal", NULL, "the job's parameters are broken");
	if (lay_parameters(q, given, "parameters", &p) < 0)
		return -1;
	if (inventory && json_object_get(given, "license") &&
	    model_check_license((enum model_license)p.license, inventory, &e) < 0)
		return api_refuse(q, 400, "bad_field", "parameters.license", "%s", e.msg);
	laid = model_parameters_json(&p);
	if (!laid)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	if (check_address(q, laid, "parameters") < 0)
		return -1;
	*ret = take_ptr(&laid);
	return 0;
}

/* The rules a new job has to keep; inside the transaction. */
static int check_new_job(struct api_request *q, const struct model_source *src, const char *region)
{
	_cleanup_(model_job_release) struct model_job other = {0};
	_cleanup_(model_region_release) struct model_region r = {0};
	struct store *s = q->api->s.store;

	if (s->ops->unfinished_job(s, src->id, &other, NULL) == 0 && !api_scope_sees(q, other.tags))
		return api_refuse(q, 409, "source_in_use", "source",
				  "source '%s' has a job that your token may not see", src->id);
	if (other.id)
		return api_refuse(q, 409, "source_in_use", "source",
				  "source '%s' already has job '%s', which is %s; "
				  "finish or delete it first",
				  src->id, other.id, model_job_states[other.state]);
	if (s->ops->get(s, &model_regions, region, &r, NULL) < 0)
		return api_refuse(q, 400, "bad_field", "region", "there is no region '%s'", region);
	return 0;
}

/* When a job that waits for it is to start; 0: when somebody says so. */
static int read_start(struct api_request *q, const struct model_job_request *in, double expires, double *ret)
{
	const double now = id_now(), at = (double)in->start_at;

	*ret = 0;
	if (in->execution != MIGRATE_LATER)
		return in->start_at ? api_refuse(q, 400, "bad_field", "start_at", "'start_at' goes with migrate_later")
				    : 0;
	if (at < now + START_SOONEST || at > now + START_LATEST)
		return api_refuse(q, 400, "bad_field", "start_at",
				  "'start_at' must be at least 10 minutes and at most 30 days from now");
	if (at >= expires)
		return api_refuse(q, 400, "bad_field", "start_at",
				  "the job expires before it would start; give it more 'valid_days'");
	*ret = at;
	return 0;
}

static int fill_job(struct api_request *q, const struct model_job_request *in, const struct model_source *src,
		    struct model_job *job)
{
	_cleanup_free_ char *default_name = strndup(src->name, str_cut(src->name, 100));
	char id[ID_MAX];

	id_new("job", id);
	job->created = job->updated = id_now();
	job->valid_days = in->valid_days;
	job->expires = model_job_expiry(job, job->created);
	job->state = JOB_READY;
	job->testing = api_testing_of(in->execution);
	if (read_start(q, in, job->expires, &job->next_run) < 0)
		return -1;
	if (!default_name || model_set(&job->id, id) < 0 ||
	    model_set(&job->name, in->name ? in->name : default_name) < 0 ||
	    model_set(&job->description, in->description) < 0 || model_set(&job->source, src->id) < 0 ||
	    model_set(&job->region, in->region ? in->region : "local") < 0 ||
	    model_set(&job->image_name, in->image_name) < 0 || model_set(&job->template, in->template) < 0)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	job->stages = json_array();
	job->tags = api_scope_tags(q, in->tags);
	if (q->fault.status)
		return -1;
	if (read_parameters(q, in->parameters, NULL, src->inventory, &job->parameters) < 0 ||
	    api_onto_fill(q, in, job) < 0)
		return -1;
	return check_network(q, job->parameters);
}

static int take_first(void *arg, void *row)
{
	struct model_job *job = arg, *found = row;

	*job = *found;
	*found = (struct model_job){0};
	return 1;
}

/* 1: the job that this very request has made is in *ret. */
static int find_made(struct api_request *q, const char *token, const char *digest, struct model_job *ret)
{
	const struct store_filter f = {"client_token", token, STORE_EQUAL};
	const struct store_query sq = {.filters = &f, .nfilters = 1};
	struct store *s = q->api->s.store;
	struct err e = {0};
	int r = s->ops->list(s, &model_jobs, &sq, take_first, ret, NULL, &e);

	if (r < 0)
		return api_fail(q, &e);
	if (r && !api_scope_sees(q, ret->tags))
		return api_refuse(q, 409, "token_reused", "client_token",
				  "another request came with this token before");
	if (r && strcmp(ret->client_digest, digest) != 0)
		return api_refuse(q, 409, "token_reused", "client_token",
				  "another request came with this token before, and made job '%s'", ret->id);
	return r;
}

/* Without the time of the start: who says "in two hours" again says another. */
static int digest_of(struct api_request *q, char ret[STORE_SECRET_HEX])
{
	_cleanup_json_ json_t *body = json_copy(q->body);
	_cleanup_free_ char *text = NULL;

	json_object_del(body, "start_at");
	text = body ? json_dumps(body, JSON_COMPACT | JSON_SORT_KEYS) : NULL;
	if (!text)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	store_digest(text, ret);
	return 0;
}

static int put_job(struct api_request *q, const struct model_job_request *in, struct model_job *job);

/* With what its template says. */
static int make_job(struct api_request *q, const struct model_job_request *in, struct model_job *job)
{
	_cleanup_json_ json_t *whole = in->template ? api_template_apply(q, q->body) : NULL;
	struct model_job_request all;

	if (!in->template)
		return put_job(q, in, job);
	return !whole || api_read(q, model_job_request, whole, false, &all) < 0 ? -1 : put_job(q, &all, job);
}

/* 1: it was there already. */
static int create_job(struct api_request *q, const struct model_job_request *in, struct model_job *job)
{
	char digest[STORE_SECRET_HEX];
	int r;

	if (!in->client_token)
		return make_job(q, in, job);
	if (digest_of(q, digest) < 0)
		return -1;
	r = find_made(q, in->client_token, digest, job);
	if (r != 0)
		return r;
	if (model_set(&job->client_token, in->client_token) < 0 || model_set(&job->client_digest, digest) < 0)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	return make_job(q, in, job);
}

static int put_job(struct api_request *q, const struct model_job_request *in, struct model_job *job)
{
	_cleanup_(model_source_release) struct model_source src = {0};
	struct store *s = q->api->s.store;
	struct err e = {0};
	int r;

	if (!id_is("source", in->source))
		return api_refuse(q, 400, "bad_field", "source", "'%.64s' is not the id of a source", in->source);
	r = s->ops->get(s, &model_sources, in->source, &src, &e);
	if (r == -ENOENT || (r == 0 && !api_scope_sees(q, src.tags)))
		return api_refuse(q, 400, "bad_field", "source", "there is no source '%s'", in->source);
	if (r < 0)
		return api_fail(q, &e);
	if (check_new_job(q, &src, in->region ? in->region : "local") < 0 || fill_job(q, in, &src, job) < 0)
		return -1;
	if (s->ops->put(s, &model_jobs, job, &e) < 0 ||
	    store_announce(s, &model_jobs, "created", job, id_now(), &e) < 0)
		return api_fail(q, &e);
	return 0;
}

static int send_event(struct api_request *q, enum job_event event, int status)
{
	_cleanup_(model_job_release) struct model_job before = {0}, job = {0};
	const struct api_engine *en = &q->api->s.engine;

	if (event == JOB_START && q->scope && (api_row(q, &model_jobs, &before) < 0 || api_onto_seen(q, &before) < 0))
		return -1;
	if (en->job_event(en->arg, q->id, event, &q->fault) < 0)
		return -1;
	return api_row(q, &model_jobs, &job) < 0 ? -1 : answer_job(q, status, &job);
}

int api_post_job(struct api_request *q)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	const struct api_engine *en = &q->api->s.engine;
	struct store *s = q->api->s.store;
	struct model_job_request in;
	struct err e = {0};
	int r;

	if (api_read(q, model_job_request, q->body, false, &in) < 0)
		return -1;
	api_onto_look(q, &in);
	if (s->ops->begin(s, &e) < 0)
		return api_fail(q, &e);
	r = create_job(q, &in, &job);
	if (r != 0)
		s->ops->rollback(s);
	else if (s->ops->commit(s, &e) < 0)
		return api_fail(q, &e);
	if (r < 0)
		return -1;
	if (r == 0)
		en->source_refresh(en->arg, job.source);
	/* Also when the center was killed between both, and was asked again. */
	if ((in.execution != MIGRATE_NOW && api_testing_of(in.execution) == NO_TEST) || job.state != JOB_READY ||
	    job.started > 0)
		return answer_job(q, r ? 200 : 201, &job);
	snprintf(q->id, sizeof(q->id), "%s", job.id);
	return send_event(q, JOB_START, r ? 200 : 201);
}

/* Name and description: always. When it runs and what stays of it: until it is over. Whether it is incremental: until
 * the first start. Image name and other parameters: while nothing is under way; those that are live also while sending.
 */
static bool may_change(const struct model_job *job, const char *key)
{
	bool resting = job->state == JOB_READY || job->state == JOB_STOPPED || job->state == JOB_IN_ERROR ||
		       job->state == JOB_WAITING;
	bool sending = job->state == JOB_RUNNING && (job->stage == JOB_SYNCING || job->stage == JOB_PREPARING);

	if (strcmp(key, "image_name") == 0)
		return resting || sending;
	if (strcmp(key, "incremental") == 0)
		return job->state == JOB_READY;
	return resting || (job->state == JOB_RUNNING && model_parameter_is_plan(key)) ||
	       (sending && model_parameter_is_live(key));
}

static int check_patch(struct api_request *q, const struct model_job_request *in, const struct model_job *job)
{
	const char *key;
	json_t *value;

	if (in->image_name && !may_change(job, "image_name"))
		return api_refuse(q, 409, "invalid_state", "image_name",
				  "the image's name can't change any more: the job is %s",
				  model_job_states[job->state]);
	json_object_foreach(in->parameters, key, value)
	{
		if (!may_change(job, key))
			return api_refuse(q, 409, "invalid_state", "parameters",
					  "'%.64s' can't change while the job is %s", key,
					  model_job_states[job->state]);
	}
	return 0;
}

static bool given(const struct api_request *q, const char *member)
{
	const json_t *v = json_object_get(q->body, member);

	return v && !json_is_null(v);
}

/* How long it lives, and when it starts. */
static int patch_times(struct api_request *q, const struct model_job_request *in, struct model_job *job)
{
	bool start = given(q, "execution") || given(q, "start_at");

	if (given(q, "valid_days") && (job->state == JOB_FINISHED || job->state == JOB_EXPIRED))
		return api_refuse(q, 409, "invalid_state", "valid_days",
				  "'valid_days' can't change any more: the job is %s", model_job_states[job->state]);
	if (given(q, "valid_days"))
		job->valid_days = in->valid_days;
	job->updated = id_now();
	if (job->state != JOB_EXPIRED)
		job->expires = model_job_expiry(job, job->updated);
	if (!start && job->state == JOB_READY && job->next_run >= job->expires)
		return api_refuse(q, 400, "bad_field", "valid_days", "the job would expire before it starts");
	if (!start)
		return 0;
	if (job->state != JOB_READY)
		return api_refuse(q, 409, "invalid_state", "execution",
				  "when the job is to start can't change any more: it is %s",
				  model_job_states[job->state]);
	if (in->execution == MIGRATE_NOW)
		return api_refuse(q, 400, "bad_field", "execution", "to start the job now, start it");
	if (api_set_testing(q, job, api_testing_of(in->execution)) < 0)
		return -1;
	return read_start(q, in, job->expires, &job->next_run);
}

static int patch_job(struct api_request *q, const struct model_job_request *in, struct model_job *job)
{
	_cleanup_(model_source_release) struct model_source src = {0};
	struct store *s = q->api->s.store;
	json_t *parameters = NULL;
	struct err e = {0};

	if (s->ops->get(s, &model_jobs, q->id, job, &e) < 0)
		return api_fail(q, &e);
	if (check_patch(q, in, job) < 0 || api_scope_keeps(q, in->tags) < 0)
		return -1;
	if (in->parameters) {
		s->ops->get(s, &model_sources, job->source, &src, NULL);
		if (read_parameters(q, in->parameters, job->parameters, src.inventory, &parameters) < 0)
			return -1;
		model_take_json(&job->parameters, parameters);
		if (check_network(q, job->parameters) < 0 || api_onto_keeps(q, job) < 0)
			return -1;
	}
	if ((in->name && model_set(&job->name, in->name) < 0) ||
	    (in->description && model_set(&job->description, in->description) < 0) ||
	    (in->image_name && model_set(&job->image_name, in->image_name) < 0))
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	if (in->tags)
		model_take_json(&job->tags, json_incref(in->tags));
	if (patch_times(q, in, job) < 0)
		return -1;
	if (s->ops->put(s, &model_jobs, job, &e) < 0 ||
	    store_announce(s, &model_jobs, "updated", job, id_now(), &e) < 0)
		return api_fail(q, &e);
	return 0;
}

int api_patch_job(struct api_request *q)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	const struct api_engine *en = &q->api->s.engine;
	struct model_job_request in = {0};
	struct store *s = q->api->s.store;
	struct err e = {0};

	if (api_read(q, model_job_patch, q->body, false, &in) < 0)
		return -1;
	if (s->ops->begin(s, &e) < 0)
		return api_fail(q, &e);
	if (patch_job(q, &in, &job) < 0) {
		s->ops->rollback(s);
		return -1;
	}
	if (s->ops->commit(s, &e) < 0)
		return api_fail(q, &e);
	if (!in.parameters)
		return answer_job(q, 200, &job);
	en->job_parameters(en->arg, job.id, job.parameters);
	/* The next run may be at another time now. */
	model_job_release(&job);
	return api_row(q, &model_jobs, &job) < 0 ? -1 : answer_job(q, 200, &job);
}

static int job_event(struct api_request *q, enum job_event event)
{

	if (api_read_nothing(q) < 0)
		return -1;
	return send_event(q, event, 202);
}

int api_cut_over_job(struct api_request *q)
{
	struct model_cut_over_request in;

	if (api_read(q, model_cut_over_request, q->body, false, &in) < 0)
		return -1;
	return send_event(q, in.sync ? JOB_CUT_OVER_SYNC : JOB_CUT_OVER, 202);
}

int api_list_runs(struct api_request *q)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	struct store_filter mine = {"job", q->id};

	return api_row(q, &model_jobs, &job) < 0 ? -1 : api_list_of(q, &model_runs, &mine, NULL);
}

int api_run_job(struct api_request *q)
{
	return job_event(q, JOB_START);
}

/* As the request says, and else as it was set before. */
static int choose_test(struct api_request *q, int test)
{
	static const enum model_testing meant[] = {
	    [START_UNTESTED] = NO_TEST, [START_TEST] = TEST_ONLY, [START_TEST_AND_MIGRATE] = TEST_AND_MIGRATE};
	_cleanup_(model_job_release) struct model_job job = {0};
	struct store *s = q->api->s.store;
	struct err e = {0};

	if (test == START_AS_SET)
		return 0;
	if (s->ops->begin(s, &e) < 0)
		return api_fail(q, &e);
	if (s->ops->get(s, &model_jobs, q->id, &job, &e) < 0 || api_set_testing(q, &job, meant[test]) < 0 ||
	    s->ops->put(s, &model_jobs, &job, &e) < 0 ||
	    store_announce(s, &model_jobs, "updated", &job, id_now(), &e) < 0) {
		s->ops->rollback(s);
		return q->fault.status ? -1 : api_fail(q, &e);
	}
	return s->ops->commit(s, &e) < 0 ? api_fail(q, &e) : 0;
}

int api_start_job(struct api_request *q)
{
	struct model_start_request in;

	if (api_read(q, model_start_request, q->body, false, &in) < 0 || choose_test(q, in.test) < 0)
		return -1;
	return send_event(q, JOB_START, 202);
}

int api_stop_job(struct api_request *q)
{
	return job_event(q, JOB_STOP);
}

int api_delete_job(struct api_request *q)
{
	const struct api_engine *en = &q->api->s.engine;

	if (en->job_event(en->arg, q->id, JOB_DELETE, &q->fault) < 0)
		return -1;
	return api_answer(q, 202, json_pack("{s:s, s:s}", "id", q->id, "state", "deleting"));
}
