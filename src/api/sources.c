/* Sources as people see them. */
#include <errno.h>
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

#define LISTED_INVENTORY (32u << 10)

/* A page of sources with surveys and huge inventories would be huge: those are left to GET of the one source. */
static void trim(struct api_request *q, void *row)
{
	struct model_source *src = row;
	json_t *copy = json_object_get(src->inventory, "survey") ? json_copy(src->inventory) : NULL;

	json_object_del(copy, "survey");
	if (copy)
		model_take_json(&src->inventory, copy);
	if (src->inventory && json_dumpb(src->inventory, NULL, 0, JSON_COMPACT) > LISTED_INVENTORY)
		model_take_json(&src->inventory, NULL);
}

int api_list_sources(struct api_request *q)
{
	return api_list(q, &model_sources, trim);
}

int api_get_source(struct api_request *q)
{
	_cleanup_(model_source_release) struct model_source src = {0};
	_cleanup_(model_job_release) struct model_job job = {0};
	struct store *s = q->api->s.store;
	json_t *o;

	if (api_row(q, &model_sources, &src) < 0)
		return -1;
	o = model_json(&model_sources, &src, false, id_now());
	if (o)
		json_object_set_new(o, "job",
				    s->ops->unfinished_job(s, src.id, &job, NULL) == 0 && api_scope_sees(q, job.tags)
					? json_string(job.id)
					: json_null());
	return api_answer(q, 200, o);
}

static int change_source(void *row, void *arg, struct err *e)
{
	const struct model_rename_request *in = arg;
	struct model_source *src = row;

	if ((in->name && model_set(&src->name, in->name) < 0) ||
	    (in->description && model_set(&src->description, in->description) < 0) ||
	    (in->workgroup && model_set(&src->workgroup, *in->workgroup ? in->workgroup : NULL) < 0))
		return err_nomem(e);
	if (in->tags)
		model_take_json(&src->tags, json_incref(in->tags));
	return 0;
}

int api_patch_source(struct api_request *q)
{
	_cleanup_(model_source_release) struct model_source src = {0};
	struct model_rename_request in;
	struct err e = {0};
	int r;

	if (api_read(q, model_source_patch, q->body, false, &in) < 0 || api_scope_keeps(q, in.tags) < 0)
		return -1;
	if (in.workgroup && *in.workgroup && api_scope_row(q, &model_workgroups, in.workgroup) < 0)
		return api_refuse(q, 400, "bad_field", "workgroup", "there is no workgroup '%s'", in.workgroup);
	r = store_change(q->api->s.store, &model_sources, q->id, "updated", change_source, &in, &src, &e);
	if (r == -EBUSY && in.workgroup) /* the foreign key's */
		return api_refuse(q, 400, "bad_field", "workgroup", "there is no workgroup '%s'", in.workgroup);
	return r < 0 ? api_fail(q, &e) : api_answer_row(q, 200, &model_sources, &src);
}

static int remove_source(struct api_request *q, struct err *e)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	struct store *s = q->api->s.store;
	int r = s->ops->unfinished_job(s, q->id, &job, NULL);

	if (r == 0 && !api_scope_sees(q, job.tags))
		return err_set(e, -EBUSY, "the source has a job that your token may not see");
	if (r == 0)
		return err_set(e, -EBUSY, "the source has job '%s', which is %s; delete that first", job.id,
			       model_job_states[job.state]);
	r = s->ops->remove(s, &model_sources, q->id, e);
	return r < 0 ? r : store_announce_gone(s, &model_sources, q->id, id_now(), e);
}

/* ?force=true: its job goes first, as if that had been deleted. */
static int remove_job(struct api_request *q)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	const struct api_engine *en = &q->api->s.engine;
	struct store *s = q->api->s.store;
	const char *force = api_query(q, "force");

	if (!force || strcmp(force, "false") == 0)
		return 0;
	if (strcmp(force, "true") != 0)
		return api_refuse(q, 400, "bad_parameter", "force", "'force' must be true or false, not '%.32s'",
				  force);
	if (s->ops->unfinished_job(s, q->id, &job, NULL) < 0 || !api_scope_sees(q, job.tags))
		return 0; /* the removal says what is in its way */
	return en->job_event(en->arg, job.id, JOB_DELETE, &q->fault);
}

int api_delete_source(struct api_request *q)
{
	const struct api_engine *en = &q->api->s.engine;
	struct store *s = q->api->s.store;
	struct err e = {0};

	if (remove_job(q) < 0)
		return -1;
	if (s->ops->begin(s, &e) < 0)
		return api_fail(q, &e);
	if (remove_source(q, &e) < 0) {
		s->ops->rollback(s);
		return api_fail(q, &e);
	}
	if (s->ops->commit(s, &e) < 0)
		return api_fail(q, &e);
	en->source_forget(en->arg, q->id);
	return api_done(q);
}
