/* Jobs whose destination is an instance that is there: what is asked when they are made, and a person's word when they
 * are done. */
#include <errno.h>
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

/* ---- a new job ---- */

static const char *text(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key)) ?: "";
}

static int read_instance(struct api_request *q, const char *id, struct model_instance *row)
{
	struct store *s = q->api->s.store;
	struct err e = {0};
	int r = id_is("instance", id) ? s->ops->get(s, &model_instances, id, row, &e) : -ENOENT;

	if (r == -ENOENT || (r == 0 && !api_scope_sees(q, row->tags)))
		return api_refuse(q, 400, "bad_field", "instance", "there is no instance '%.64s'", id);
	return r < 0 ? api_fail(q, &e) : 0;
}

static int look(struct api_request *q, const struct model_job_request *in)
{
	_cleanup_(model_instance_release) struct model_instance row = {0};
	_cleanup_(model_source_release) struct model_source src = {0};
	const struct api_engine *en = &q->api->s.engine;
	struct store *s = q->api->s.store;

	if (!in->instance)
		return api_refuse(q, 400, "bad_field", "instance",
				  "'instance' is missing: the id of the one to migrate onto");
	if (read_instance(q, in->instance, &row) < 0)
		return -1;
	/* That there is a source is asked for later; what isn't there has no wishes. */
	if (!id_is("source", in->source) || s->ops->get(s, &model_sources, in->source, &src, NULL) < 0)
		return 0;
	return en->instance_check(en->arg, src.inventory, row.id, &q->fault);
}

void api_onto_look(struct api_request *q, const struct model_job_request *in)
{
	if (in->destination == DESTINATION_INSTANCE)
		look(q, in);
	q->onto = q->fault;
	q->fault = (struct api_fault){0};
}

static int take_busy(void *arg, void *row)
{
	struct model_job *found = arg, *job = row;

	if (!job_is_unfinished((enum model_job_state)job->state))
		return 0;
	*found = *job;
	*job = (struct model_job){0};
	return 1;
}

/* The database has the rule as well; here it gets a sentence. */
static int check_free(struct api_request *q, const struct model_instance *row)
{
	_cleanup_(model_job_release) struct model_job other = {0};
	const struct store_filter f = {"instance", row->id, STORE_EQUAL};
	const struct store_query sq = {.filters = &f, .nfilters = 1};
	struct store *s = q->api->s.store;
	struct err e = {0};
	bool seen;

	if (row->deleting)
		return api_refuse(q, 409, "instance_in_use", "instance", "instance '%s' is being deleted", row->name);
	if (row->switching)
		return api_refuse(q, 409, "instance_in_use", "instance",
				  "an earlier migration onto instance '%s' waits to be confirmed or rolled back",
				  row->name);
	if (s->ops->list(s, &model_jobs, &sq, take_busy, &other, NULL, &e) < 0)
		return api_fail(q, &e);
	seen = other.id && api_scope_sees(q, other.tags);
	return other.id ? api_refuse(q, 409, "instance_in_use", "instance",
				     "instance '%s' is the destination of %s%s%s; finish or delete that first",
				     row->name, seen ? "job '" : "another job", seen ? other.id : "", seen ? "'" : "")
			: 0;
}

int api_onto_keeps(struct api_request *q, const struct model_job *job)
{
	if (job->destination != DESTINATION_INSTANCE || !model_is_incremental(job))
		return 0;
	return api_refuse(q, 400, "bad_field", "parameters.incremental",
			  "an incremental job makes images; to get onto an instance let a job run that isn't");
}

int api_onto_fill(struct api_request *q, const struct model_job_request *in, struct model_job *job)
{
	_cleanup_(model_instance_release) struct model_instance row = {0};

	job->destination = in->destination;
	if (in->destination != DESTINATION_INSTANCE)
		return in->instance
			   ? api_refuse(q, 400, "bad_field", "instance", "'instance' goes with destination 'instance'")
			   : 0;
	if (q->onto.status) {
		q->fault = q->onto;
		return -1;
	}
	if (read_instance(q, in->instance, &row) < 0 || check_free(q, &row) < 0 || api_onto_keeps(q, job) < 0)
		return -1;
	return model_set(&job->instance, row.id) < 0 ? api_refuse(q, 500, "internal", NULL, "out of memory") : 0;
}

/* ---- a person's word ---- */

static int answer_instance(struct api_request *q, const char *id)
{
	_cleanup_(model_instance_release) struct model_instance row = {0};
	struct store *s = q->api->s.store;
	struct err e = {0};

	return s->ops->get(s, &model_instances, id, &row, &e) < 0 ? api_fail(q, &e)
								  : api_answer_row(q, 202, &model_instances, &row);
}

static int say(struct api_request *q, const char *instance,
	       int (*word)(void *arg, const char *instance, struct api_fault *f))
{
	if (word(q->api->s.engine.arg, instance, &q->fault) < 0)
		return -1;
	return answer_instance(q, instance);
}

int api_rollback_instance(struct api_request *q)
{
	return api_read_nothing(q) < 0 ? -1 : say(q, q->id, q->api->s.engine.instance_rollback);
}

int api_confirm_instance(struct api_request *q)
{
	return api_read_nothing(q) < 0 ? -1 : say(q, q->id, q->api->s.engine.instance_confirm);
}

/* The same by the job, as long as it is its migration that waits. */
static int say_of_job(struct api_request *q, int (*word)(void *arg, const char *instance, struct api_fault *f))
{
	_cleanup_(model_instance_release) struct model_instance row = {0};
	_cleanup_(model_job_release) struct model_job job = {0};
	struct store *s = q->api->s.store;

	if (api_read_nothing(q) < 0 || api_row(q, &model_jobs, &job) < 0)
		return -1;
	if (!job.instance || s->ops->get(s, &model_instances, job.instance, &row, NULL) < 0 || !row.switching ||
	    strcmp(text(row.switching, "job"), job.id) != 0)
		return api_refuse(q, 409, "invalid_state", NULL,
				  "no migration of the job waits for that; it was confirmed or "
				  "rolled back before, or there was none");
	if (!api_scope_sees(q, row.tags))
		return api_refuse(q, 404, "not_found", NULL, "there is no instance '%s'", row.id);
	return say(q, row.id, word);
}

int api_rollback_job(struct api_request *q)
{
	return say_of_job(q, q->api->s.engine.instance_rollback);
}

int api_confirm_job(struct api_request *q)
{
	return say_of_job(q, q->api->s.engine.instance_confirm);
}

int api_onto_seen(struct api_request *q, const struct model_job *job)
{
	return job->instance ? api_scope_row(q, &model_instances, job->instance) : 0;
}

int api_get_job_screenshot(struct api_request *q)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	const struct api_engine *en = &q->api->s.engine;
	char path[4300];

	if (api_row(q, &model_jobs, &job) < 0 || api_onto_seen(q, &job) < 0)
		return -1;
	en->job_picture(en->arg, job.id, path, sizeof(path));
	return api_answer_picture(q, path, "job", job.id, "picture of an instance");
}
