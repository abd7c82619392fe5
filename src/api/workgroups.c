/* Workgroups: sources that move together, in a wave. What a group is like follows from its sources' newest jobs. */
#include <errno.h>
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

/* What the newest job of each of its sources says. */
struct wave {
	struct api_request *q;
	size_t sources, begun, last, over;
	json_t *in_error, *unrelated, *not_passed; /* ids of sources */
};

static int take_job(void *arg, void *row)
{
	struct model_job *job = arg, *found = row;

	*job = *found;
	*found = (struct model_job){0};
	return 1;
}

/* 1: it has one. */
static int newest_job(struct api_request *q, const char *source, struct model_job *ret, struct err *e)
{
	struct store_filter f[1 + MODEL_TAGS_MAX] = {{"source", source, STORE_EQUAL}};
	const struct store_query sq = {.filters = f, .nfilters = api_scope_filters(q, f, 1, ARRAY_SIZE(f)), .limit = 1};
	struct store *s = q->api->s.store;

	return s->ops->list(s, &model_jobs, &sq, take_job, ret, NULL, e);
}

static void note(json_t *list, const char *id)
{
	json_array_append_new(list, json_string(id));
}

static int look_at(struct wave *w, const char *source, struct err *e)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	int r = newest_job(w->q, source, &job, e);
	const char *code = json_string_value(json_object_get(job.error, "code")) ?: "";

	if (r < 0)
		return r;
	w->sources++;
	if (r == 0)
		note(w->unrelated, source);
	if (r == 0)
		return 0;
	w->begun += job.started > 0;
	w->last += job.state == JOB_FINISHED || job.last;
	w->over += job.state == JOB_FINISHED;
	if (job.state == JOB_IN_ERROR)
		note(strcmp(code, "test_boot_failed") == 0 ? w->not_passed : w->in_error, source);
	return 0;
}

/* Sources of a group, which are read to the end before anything else is asked. */
struct ids {
	char (*v)[ID_MAX];
	size_t n;
};

static int add_id(void *arg, void *row)
{
	struct ids *l = arg;
	char(*v)[ID_MAX] = realloc(l->v, (l->n + 1) * sizeof(*v));

	if (!v)
		return -ENOMEM;
	l->v = v;
	snprintf(l->v[l->n++], ID_MAX, "%s", ((struct model_source *)row)->id);
	return 0;
}

/* Those that the token sees. */
static int sources_of(struct api_request *q, const char *group, struct ids *ret, struct err *e)
{
	struct store_filter f[1 + MODEL_TAGS_MAX] = {{"workgroup", group, STORE_EQUAL}};
	struct store_query sq = {.filters = f, .nfilters = 1};
	struct store *s = q->api->s.store;

	sq.nfilters = api_scope_filters(q, f, 1, ARRAY_SIZE(f));
	return s->ops->list(s, &model_sources, &sq, add_id, ret, NULL, e);
}

static const char *status_of(const struct wave *w)
{
	if (w->sources && w->over == w->sources)
		return "completed";
	if (w->sources && w->last == w->sources)
		return "cut_over";
	return w->begun ? "in_progress" : "not_started";
}

static void add_warning(json_t *warnings, const char *type, const json_t *sources)
{
	if (json_array_size(sources))
		json_array_append_new(warnings, json_pack("{s:s, s:O}", "type", type, "sources", sources));
}

/* Adds what follows from its sources. */
static int add_wave(struct api_request *q, const char *group, json_t *o, struct err *e)
{
	_cleanup_json_ json_t *in_error = json_array(), *unrelated = json_array(), *not_passed = json_array();
	struct wave w = {.q = q, .in_error = in_error, .unrelated = unrelated, .not_passed = not_passed};
	json_t *warnings = json_array();
	struct ids l = {0};
	int r = sources_of(q, group, &l, e);

	for (size_t i = 0; i < l.n && r == 0; i++)
		r = look_at(&w, l.v[i], e);
	free(l.v);
	add_warning(warnings, "in_error", in_error);
	add_warning(warnings, "unrelated", unrelated);
	add_warning(warnings, "not_passed", not_passed);
	json_object_set_new(o, "status", json_string(status_of(&w)));
	json_object_set_new(o, "sources", json_integer((json_int_t)w.sources));
	json_object_set_new(o, "warnings", warnings);
	return r;
}

static int answer_group(struct api_request *q, int status, const struct model_workgroup *g)
{
	json_t *o = model_json(&model_workgroups, g, false, id_now());
	struct err e = {0};

	if (o && add_wave(q, g->id, o, &e) < 0) {
		json_decref(o);
		return api_fail(q, &e);
	}
	return api_answer(q, status, o);
}

int api_post_workgroup(struct api_request *q)
{
	_cleanup_(model_workgroup_release) struct model_workgroup g = {.created = id_now()};
	struct model_workgroup_request in;
	char id[ID_MAX];

	if (api_read(q, model_workgroup_request, q->body, false, &in) < 0)
		return -1;
	id_new("workgroup", id);
	if (model_set(&g.id, id) < 0 || model_set(&g.name, in.name) < 0 ||
	    model_set(&g.description, in.description) < 0)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	g.tags = api_scope_tags(q, in.tags);
	if (q->fault.status)
		return -1;
	return api_save(q, &model_workgroups, "created", &g) < 0 ? api_name_taken(q, &model_workgroups, in.name)
								 : answer_group(q, 201, &g);
}

int api_list_workgroups(struct api_request *q)
{
	json_t *item;
	size_t i;

	if (api_list(q, &model_workgroups, NULL) < 0)
		return -1;
	json_array_foreach(json_object_get(q->json, "items"), i, item)
	{
		struct err e = {0};

		if (add_wave(q, json_string_value(json_object_get(item, "id")), item, &e) < 0) {
			model_take_json(&q->json, NULL);
			return api_fail(q, &e);
		}
	}
	return 0;
}

int api_get_workgroup(struct api_request *q)
{
	_cleanup_(model_workgroup_release) struct model_workgroup g = {0};

	return api_row(q, &model_workgroups, &g) < 0 ? -1 : answer_group(q, 200, &g);
}

int api_patch_workgroup(struct api_request *q)
{
	_cleanup_(model_workgroup_release) struct model_workgroup g = {0};

	if (api_rename(q, &model_workgroups, &g) < 0)
		return api_name_taken(q, &model_workgroups, json_string_value(json_object_get(q->body, "name")));
	model_take_json(&q->json, NULL);
	return answer_group(q, 200, &g);
}

int api_delete_workgroup(struct api_request *q)
{
	struct store *s = q->api->s.store;
	struct err e = {0};
	int r = store_forget(s, &model_workgroups, q->id, &e);

	if (r == -EBUSY)
		return api_refuse(q, 409, "in_use", NULL, "the workgroup has sources; take them out of it first");
	return r < 0 ? api_fail(q, &e) : api_done(q);
}

/* One event to the unfinished jobs of all its sources; what came of each. */
static int all_jobs(struct api_request *q, enum job_event event)
{
	_cleanup_(model_workgroup_release) struct model_workgroup g = {0};
	const struct api_engine *en = &q->api->s.engine;
	struct store *s = q->api->s.store;
	_cleanup_json_ json_t *items = json_array();
	struct ids l = {0};
	struct err e = {0};
	int r;

	if (api_read_nothing(q) < 0 || api_row(q, &model_workgroups, &g) < 0)
		return -1;
	r = sources_of(q, q->id, &l, &e);
	for (size_t i = 0; i < l.n && r >= 0; i++) {
		_cleanup_(model_job_release) struct model_job job = {0};
		struct api_fault fault = {0};
		json_t *o = json_pack("{s:s, s:n, s:n}", "source", l.v[i], "job", "error");

		r = s->ops->unfinished_job(s, l.v[i], &job, &e);
		if (r == 0 && !api_scope_sees(q, job.tags)) {
			model_job_release(&job);
			r = -ENOENT;
		}
		if (r == -ENOENT)
			api_fault_set(&fault, 409, "no_job", NULL, "the source has no unfinished job");
		else if (r == 0 && event == JOB_START && api_onto_seen(q, &job) < 0) {
			fault = q->fault;
			q->fault = (struct api_fault){0};
		} else if (r == 0)
			en->job_event(en->arg, job.id, event, &fault);
		r = r == -ENOENT ? 0 : r;
		if (job.id)
			json_object_set_new(o, "job", json_string(job.id));
		if (fault.status)
			json_object_set_new(o, "error",
					    json_pack("{s:s, s:s}", "code", fault.code, "message", fault.message));
		json_array_append_new(items, o);
	}
	free(l.v);
	return r < 0 ? api_fail(q, &e) : api_answer(q, 200, json_pack("{s:O}", "items", items));
}

int api_start_workgroup(struct api_request *q)
{
	return all_jobs(q, JOB_START);
}

int api_stop_workgroup(struct api_request *q)
{
	return all_jobs(q, JOB_STOP);
}
