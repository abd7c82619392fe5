/* What people are told: a notice for each subscription that wants to hear of it, written in the transaction of what it
 * is about. What isn't committed is told to nobody, what is committed survives a crash. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "center/notify.h"

#define TELL_BEFORE MODEL_DAY /* a job's end */

/* ---- whom ---- */

struct wanted {
	struct engine_ids ids;
	const char *event;
};

static int collect_wanting(void *arg, void *row)
{
	const struct model_subscription *sub = row;
	struct wanted *w = arg;
	json_t *v;
	size_t i;

	if (!sub->active)
		return 0;
	json_array_foreach(sub->events, i, v)
	{
		if (strcmp(json_string_value(v) ?: "", w->event) == 0)
			return engine_ids_add(&w->ids, sub->id);
	}
	return 0;
}

int notify_fill(struct model_notice *notice, const char *subscription, enum model_notice_event event, json_t *data,
		struct err *e)
{
	char id[ID_MAX];

	id_new("notice", id);
	notice->event = (int)event;
	notice->created = id_now();
	notice->next_try = notice->created;
	notice->body =
	    json_pack("{s:s, s:f, s:O}", "type", model_notice_events[event], "time", notice->created, "data", data);
	if (!notice->body || model_set(&notice->id, id) < 0 || model_set(&notice->subscription, subscription) < 0)
		return err_nomem(e);
	return 0;
}

static int put_notice(struct engine *en, const char *subscription, enum model_notice_event event, json_t *data,
		      struct err *e)
{
	_cleanup_(model_notice_release) struct model_notice notice = {0};
	int r = notify_fill(&notice, subscription, event, data, e);

	return r < 0 ? r : en->store->ops->put(en->store, &model_notices, &notice, e);
}

static int tell(struct engine *en, enum model_notice_event event, json_t *data, struct err *e)
{
	struct wanted w = {.event = model_notice_events[event]};
	struct store_query q = {0};
	int r;

	if (!data)
		return err_nomem(e);
	r = en->store->ops->list(en->store, &model_subscriptions, &q, collect_wanting, &w, NULL, e);
	if (r == -ENOMEM)
		err_nomem(e);
	for (size_t i = 0; i < w.ids.n && r == 0; i++)
		r = put_notice(en, w.ids.v[i], event, data, e);
	if (w.ids.n)
		notify_news(en);
	free(w.ids.v);
	return r;
}

/* ---- what ---- */

/* Outside text of at most `max` bytes, cut between characters. */
static json_t *bounded(const char *s, size_t max)
{
	return s ? json_stringn(s, str_cut(s, max)) : json_null();
}

/* Of a failure only what people may see: an agent's message is outside text. */
static json_t *error_json(const json_t *error)
{
	if (!error)
		return json_null();
	return json_pack("{s:o, s:o, s:b}", "code", bounded(json_string_value(json_object_get(error, "code")), 64),
			 "message", bounded(json_string_value(json_object_get(error, "message")), 1024), "temporary",
			 json_is_true(json_object_get(error, "temporary")));
}

static json_t *source_name(struct engine *en, const char *id)
{
	_cleanup_(model_source_release) struct model_source src = {0};

	if (!id || en->store->ops->get(en->store, &model_sources, id, &src, NULL) < 0)
		return json_null();
	return bounded(src.name, MODEL_NAME_MAX);
}

int notify_job(struct engine *en, enum model_notice_event event, const struct model_job *job, struct err *e)
{
	_cleanup_json_ json_t *data = json_pack(
	    "{s:s, s:o, s:s, s:o, s:s, s:I, s:s?, s:f, s:o}", "id", job->id, "name", bounded(job->name, MODEL_NAME_MAX),
	    "source", job->source, "source_name", source_name(en, job->source), "state", model_job_states[job->state],
	    "number", (json_int_t)job->number, "image", job->image, "expires", job->expires, "error",
	    error_json(job->error));

	return tell(en, event, data, e);
}

int notify_source(struct engine *en, enum model_notice_event event, const struct model_source *src, struct err *e)
{
	_cleanup_json_ json_t *data = json_pack(
	    "{s:s, s:o, s:o, s:s, s:f}", "id", src->id, "name", bounded(src->name, MODEL_NAME_MAX), "hostname",
	    bounded(src->hostname, 255), "state", model_source_states[src->state], "last_seen", src->last_seen);

	return tell(en, event, data, e);
}

/* The first thing that was wrong: of the boot, or of the attempt at one. */
static json_t *boot_problem(const json_t *boot)
{
	const json_t *problems = json_object_get(json_object_get(boot, "report"), "problems");
	const char *s = json_string_value(json_object_get(json_array_get(problems, 0), "message"));

	if (!s)
		s = json_string_value(json_object_get(json_object_get(boot, "error"), "message"));
	return bounded(s, 512);
}

int notify_image(struct engine *en, enum model_notice_event event, const struct model_image *im, struct err *e)
{
	_cleanup_json_ json_t *data = json_pack(
	    "{s:s, s:o, s:s?, s:s?, s:o, s:o}", "id", im->id, "name", bounded(im->name, MODEL_NAME_MAX), "job", im->job,
	    "source", im->source, "source_name", source_name(en, im->source), "problem", boot_problem(im->boot));

	return tell(en, event, data, e);
}

/* ---- ends of jobs, beforehand ---- */

static bool expires_soon(const struct model_job *job, double now)
{
	return job->expires > now && job->expires - now <= TELL_BEFORE && job->expiry_told != job->expires;
}

static int collect_expiring(void *arg, void *row)
{
	const struct model_job *job = row;
	struct engine_ids *l = arg;

	return expires_soon(job, l->now) ? engine_ids_add(l, job->id) : 0;
}

static int tell_expiring(void *row, void *arg, struct err *e)
{
	struct model_job *job = row;

	if (!expires_soon(job, id_now()) ||
	    (job->state != JOB_READY && job->state != JOB_STOPPED && job->state != JOB_IN_ERROR))
		return -ECANCELED;
	job->expiry_told = job->expires;
	return notify_job(arg, NOTICE_JOB_EXPIRING, job, e);
}

void notify_expiring(struct engine *en)
{
	static const char *const states[] = {"ready", "stopped", "in_error"};

	for (size_t i = 0; i < ARRAY_SIZE(states); i++) {
		struct store_filter f = {"state", states[i]};
		struct store_query q = {.filters = &f, .nfilters = 1};
		struct engine_ids l = {.now = id_now()};
		struct err e = {0};

		if (en->store->ops->list(en->store, &model_jobs, &q, collect_expiring, &l, NULL, &e) < 0)
			log_warn("jobs that expire soon: %s", e.msg);
		for (size_t k = 0; k < l.n; k++) {
			_cleanup_(model_job_release) struct model_job job = {0};
			int r = store_change(en->store, &model_jobs, l.v[k], NULL, tell_expiring, en, &job, &e);

			if (r < 0 && r != -ECANCELED)
				log_warn("job %s: %s", l.v[k], e.msg);
		}
		free(l.v);
	}
	notify_wake(en);
}
