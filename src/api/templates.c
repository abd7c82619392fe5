/* Templates: what many jobs have in common, said once. A job takes what its template says when it is made; what becomes
 * of the template later is nothing to it. */
#include <errno.h>
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

static int check_job(struct api_request *q, const json_t *job)
{
	_cleanup_(model_region_release) struct model_region region = {0};
	struct store *s = q->api->s.store;
	struct model_job_request in;

	if (!job)
		return 0;
	if (api_read_part(q, "job", model_template_job, job, false, &in) < 0)
		return -1;
	if (in.region && s->ops->get(s, &model_regions, in.region, &region, NULL) < 0)
		return api_refuse(q, 400, "bad_field", "job.region", "there is no region '%s'", in.region);
	return in.parameters ? api_check_parameters(q, in.parameters, "job.parameters") : 0;
}

int api_post_template(struct api_request *q)
{
	_cleanup_(model_template_release) struct model_template t = {.created = id_now()};
	struct model_template_request in;
	char id[ID_MAX];

	if (api_read(q, model_template_request, q->body, false, &in) < 0 || check_job(q, in.job) < 0)
		return -1;
	id_new("template", id);
	if (model_set(&t.id, id) < 0 || model_set(&t.name, in.name) < 0 ||
	    model_set(&t.description, in.description) < 0)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	t.job = json_incref(in.job);
	return api_save(q, &model_templates, "created", &t) < 0 ? api_name_taken(q, &model_templates, in.name)
								: api_answer_row(q, 201, &model_templates, &t);
}

int api_list_templates(struct api_request *q)
{
	return api_list(q, &model_templates, NULL);
}

int api_get_template(struct api_request *q)
{
	_cleanup_(model_template_release) struct model_template t = {0};

	return api_row(q, &model_templates, &t) < 0 ? -1 : api_answer_row(q, 200, &model_templates, &t);
}

static int change(void *row, void *arg, struct err *e)
{
	const struct model_template_request *in = arg;
	struct model_template *t = row;

	if ((in->name && model_set(&t->name, in->name) < 0) ||
	    (in->description && model_set(&t->description, in->description) < 0))
		return err_nomem(e);
	if (in->job)
		model_take_json(&t->job, json_incref(in->job));
	return 0;
}

int api_patch_template(struct api_request *q)
{
	_cleanup_(model_template_release) struct model_template t = {0};
	struct model_template_request in;
	struct err e = {0};

	if (api_read(q, model_template_patch, q->body, false, &in) < 0 || check_job(q, in.job) < 0)
		return -1;
	if (store_change(q->api->s.store, &model_templates, q->id, "updated", change, &in, &t, &e) < 0) {
		api_fail(q, &e);
		return api_name_taken(q, &model_templates, in.name);
	}
	return api_answer_row(q, 200, &model_templates, &t);
}

int api_delete_template(struct api_request *q)
{
	struct err e = {0};

	return store_forget(q->api->s.store, &model_templates, q->id, &e) < 0 ? api_fail(q, &e) : api_done(q);
}

/* Of objects (parameters, tags) each member counts; null is what says nothing. */
static int lay_over(json_t *under, const json_t *over)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)over, key, value)
	{
		json_t *below = json_object_get(under, key);
		int r = 0;

		if (json_is_object(value) && json_is_object(below))
			r = lay_over(below, value);
		else if (!json_is_null(value))
			r = json_object_set(under, key, value);
		if (r < 0)
			return r;
	}
	return 0;
}

json_t *api_template_apply(struct api_request *q, const json_t *body)
{
	const char *id = json_string_value(json_object_get(body, "template"));
	_cleanup_(model_template_release) struct model_template t = {0};
	struct store *s = q->api->s.store;
	_cleanup_json_ json_t *o = NULL;
	struct err e = {0};
	int r;

	if (!id || !id_is("template", id)) {
		api_refuse(q, 400, "bad_field", "template", "'%.64s' is not the id of a template", id ?: "");
		return NULL;
	}
	r = s->ops->get(s, &model_templates, id, &t, &e);
	if (r == -ENOENT)
		api_refuse(q, 400, "bad_field", "template", "there is no template '%s'", id);
	else if (r < 0)
		api_fail(q, &e);
	if (r < 0)
		return NULL;
	o = json_deep_copy(t.job);
	if (!o || lay_over(o, body) < 0) {
		api_refuse(q, 500, "internal", NULL, "out of memory");
		return NULL;
	}
	return json_incref(o);
}
