/* Subscriptions: whom to tell of what, and the notices they are told. Not announced as events: every viewer sees those,
 * and the address of a web hook is a secret of its own. */
#include <errno.h>
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

static int check_target(struct api_request *q, const char *target)
{
	struct err e = {0};

	if (model_check_target(target, &e) < 0)
		return api_refuse(q, 400, "bad_field", "target", "%s", e.msg);
	if (model_target_is_mail(target) && !q->api->s.mail)
		return api_refuse(q, 400, "bad_field", "target",
				  "this center has no mail server (start it with replantd serve --mail-server)");
	return 0;
}

static json_t *all_events(void)
{
	json_t *list = json_array();

	for (const char *const *w = model_subscribable; list && *w; w++)
		json_array_append_new(list, json_string(*w));
	return list;
}

static int ignore_row(void *arg, void *row)
{
	return 0;
}

/* How many there are; UINT64_MAX when that can't be had. */
static uint64_t count(struct store *s)
{
	struct store_query q = {.limit = 1};
	uint64_t total = UINT64_MAX;
	struct err e = {0};

	return s->ops->list(s, &model_subscriptions, &q, ignore_row, NULL, &total, &e) < 0 ? UINT64_MAX : total;
}

static int fill(struct model_subscription *sub, const char *id, const struct model_subscription_request *in)
{
	sub->created = id_now();
	sub->active = in->active;
	sub->events = in->events ? json_incref(in->events) : all_events();
	return !sub->events || model_set(&sub->id, id) < 0 || model_set(&sub->name, in->name) < 0 ||
		       model_set(&sub->target, in->target) < 0
		   ? -ENOMEM
		   : 0;
}

int api_post_subscription(struct api_request *q)
{
	_cleanup_(model_subscription_release) struct model_subscription sub = {0};
	const struct api_engine *en = &q->api->s.engine;
	struct model_subscription_request in;
	char id[ID_MAX], secret[API_HOOK_SECRET];
	json_t *o;

	if (api_read(q, model_subscription_request, q->body, false, &in) < 0 || check_target(q, in.target) < 0)
		return -1;
	if (count(q->api->s.store) >= API_SUBSCRIPTIONS_MAX)
		return api_refuse(q, 409, "too_many_subscriptions", NULL, "there are %u subscriptions; delete one",
				  API_SUBSCRIPTIONS_MAX);
	id_new("subscription", id);
	if (fill(&sub, id, &in) < 0)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	if (api_save(q, &model_subscriptions, NULL, &sub) < 0)
		return api_name_taken(q, &model_subscriptions, in.name);
	o = model_json(&model_subscriptions, &sub, false, sub.created);
	if (o && !model_target_is_mail(sub.target))
		en->hook_secret(en->arg, id, secret);
	if (o)
		json_object_set_new(o, "secret", model_target_is_mail(sub.target) ? json_null() : json_string(secret));
	return api_answer(q, 201, o);
}

int api_list_subscriptions(struct api_request *q)
{
	return api_list(q, &model_subscriptions, NULL);
}

int api_get_subscription(struct api_request *q)
{
	_cleanup_(model_subscription_release) struct model_subscription sub = {0};

	return api_row(q, &model_subscriptions, &sub) < 0 ? -1 : api_answer_row(q, 200, &model_subscriptions, &sub);
}

struct change {
	struct model_subscription_request in;
	bool has_active;
};

/* What was a web hook stays one: its secret was shown when it was made. */
static int change(void *row, void *arg, struct err *e)
{
	struct model_subscription *sub = row;
	const struct change *c = arg;

	if (c->in.target && model_target_is_mail(c->in.target) != model_target_is_mail(sub->target))
		return err_set(e, -EINVAL,
			       "a web hook can't become a mail address, nor the other way round; make another "
			       "subscription");
	if ((c->in.name && model_set(&sub->name, c->in.name) < 0) ||
	    (c->in.target && model_set(&sub->target, c->in.target) < 0))
		return err_nomem(e);
	if (c->in.events)
		model_take_json(&sub->events, json_incref(c->in.events));
	if (c->has_active)
		sub->active = c->in.active;
	return 0;
}

int api_patch_subscription(struct api_request *q)
{
	_cleanup_(model_subscription_release) struct model_subscription sub = {0};
	const struct api_engine *en = &q->api->s.engine;
	struct change c = {.has_active = json_is_boolean(json_object_get(q->body, "active"))};
	struct err e = {0};
	int r;

	if (api_read(q, model_subscription_patch, q->body, false, &c.in) < 0 ||
	    (c.in.target && check_target(q, c.in.target) < 0))
		return -1;
	r = store_change(q->api->s.store, &model_subscriptions, q->id, NULL, change, &c, &sub, &e);
	if (r == -EINVAL)
		return api_refuse(q, 400, "bad_field", "target", "%s", e.msg);
	if (r < 0) {
		api_fail(q, &e);
		return api_name_taken(q, &model_subscriptions, c.in.name);
	}
	en->subscription_changed(en->arg);
	return api_answer_row(q, 200, &model_subscriptions, &sub);
}

int api_delete_subscription(struct api_request *q)
{
	struct store *s = q->api->s.store;
	struct err e = {0};

	return s->ops->remove(s, &model_subscriptions, q->id, &e) < 0 ? api_fail(q, &e) : api_done(q);
}

/* 202: it hasn't been answered yet; the notice tells the end. */
int api_test_subscription(struct api_request *q)
{
	_cleanup_(model_notice_release) struct model_notice notice = {0};
	const struct api_engine *en = &q->api->s.engine;
	struct store *s = q->api->s.store;
	struct err e = {0};
	char id[ID_MAX];

	if (api_read_nothing(q) < 0 || en->subscription_test(en->arg, q->id, id, &q->fault) < 0)
		return -1;
	if (s->ops->get(s, &model_notices, id, &notice, &e) < 0)
		return api_fail(q, &e);
	return api_answer_row(q, notice.state == NOTICE_PENDING ? 202 : 200, &model_notices, &notice);
}

int api_list_notices(struct api_request *q)
{
	return api_list(q, &model_notices, NULL);
}

int api_get_notice(struct api_request *q)
{
	_cleanup_(model_notice_release) struct model_notice notice = {0};

	return api_row(q, &model_notices, &notice) < 0 ? -1 : api_answer_row(q, 200, &model_notices, &notice);
}
