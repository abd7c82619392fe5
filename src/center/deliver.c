/*
 * The thread that sends notices: of each subscription the oldest that is pending, of all subscriptions at the same
 * time, so that one that hangs holds up only itself. An attempt is claimed before it begins, and what came of it is
 * written before the next one; what a crash interrupts is sent again when the claim has run out.
 */
#include <errno.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "center/notify.h"
#include "center/pki.h"

#define LEASE "notices"
_Static_assert(WEBHOOK_KEY == PKI_KEY, "the key of web hooks is one of the center's");

#define LOOK_SECONDS  10.0 /* between looks without any news */
#define AGAIN_SECONDS 0.5  /* until the second look that news is worth */
#define TESTS_MAX     8u   /* at the same time */
#define TRIM_BATCH    1000u

/* From one attempt to the next, times the center's pause. */
static const double pauses[NOTIFY_PAUSES] = {1, 6, 60, 360, 2160};

struct test {
	struct test *next;
	char notice[ID_MAX];
};

struct notify {
	struct engine *engine;
	unsigned char key[WEBHOOK_KEY];
	CURLM *multi;
	pthread_t thread;
	bool runs;
	atomic_bool news, stopping;
	/* the thread's own */
	bool leased;
	struct errand *errands;
	double look; /* monotonic, when the next is due */

	pthread_mutex_t lock; /* the store's may be taken under it, nothing is waited for with the store's */
	pthread_cond_t ended; /* of a test; monotonic */
	struct test *tests;   /* wanted */
};

/* ---- what came of it ---- */

struct outcome {
	struct engine *engine;
	bool delivered;
	const char *error;
};

static double all_pauses(const struct engine *en)
{
	double sum = 0;

	for (size_t i = 0; i < NOTIFY_PAUSES; i++)
		sum += pauses[i] * en->s.notify_pause;
	return sum;
}

/* Each has one attempt at least; what is as old as the last would be then gets no more, or a target that was away for
 * a day would be told for weeks. */
static bool is_last(const struct engine *en, const struct model_notice *notice, double now)
{
	return notice->event == NOTICE_PING || notice->attempts > NOTIFY_PAUSES ||
	       now - notice->created >= all_pauses(en);
}

static int set_outcome(void *row, void *arg, struct err *e)
{
	struct model_notice *notice = row;
	const struct outcome *o = arg;
	double now = id_now();

	notice->attempts++;
	notice->next_try = 0;
	if (model_set(&notice->error, o->delivered ? NULL : o->error) < 0)
		return err_nomem(e);
	if (o->delivered)
		notice->state = NOTICE_DELIVERED;
	else if (is_last(o->engine, notice, now))
		notice->state = NOTICE_GIVEN_UP;
	else
		notice->next_try = now + pauses[notice->attempts - 1] * o->engine->s.notify_pause;
	if (notice->state != NOTICE_PENDING)
		notice->ended = now;
	return 0;
}

static int set_told(void *row, void *arg, struct err *e)
{
	struct model_subscription *sub = row;
	const struct outcome *o = arg;

	*(o->delivered ? &sub->delivered : &sub->failed) = id_now();
	return model_set(&sub->error, o->delivered ? NULL : o->error) < 0 ? err_nomem(e) : 0;
}

/* The subscription may have been deleted meanwhile, and all its notices. True when it may be told more. */
static bool record(struct notify *n, const char *id, const char *subscription, const char *error)
{
	_cleanup_(model_subscription_release) struct model_subscription sub = {0};
	_cleanup_(model_notice_release) struct model_notice notice = {0};
	struct outcome o = {n->engine, !error, error};
	struct store *s = n->engine->store;
	struct err e = {0};
	int r = store_change(s, &model_notices, id, NULL, set_outcome, &o, &notice, &e);

	if (r == 0)
		r = store_change(s, &model_subscriptions, subscription, NULL, set_told, &o, &sub, &e);
	pthread_mutex_lock(&n->lock);
	pthread_cond_broadcast(&n->ended);
	pthread_mutex_unlock(&n->lock);
	if (r == -ENOENT)
		return false;
	if (r < 0)
		log_warn("notice %s: %s", id, e.msg);
	else if (!error)
		log_info("notice %s (%s): delivered to %s", id, model_notice_events[notice.event], subscription);
	else if (notice.state == NOTICE_GIVEN_UP)
		log_error("notice %s (%s): given up after %llu attempts, %s wasn't told: %s", id,
			  model_notice_events[notice.event], (unsigned long long)notice.attempts, subscription, error);
	else
		log_warn("notice %s (%s): not delivered to %s, trying again: %s", id, model_notice_events[notice.event],
			 subscription, error);
	return r == 0 && sub.active;
}

/* ---- transfers ---- */

static struct errand *errand_of(struct notify *n, const char *subscription)
{
	for (struct errand *x = n->errands; x; x = x->next)
		if (strcmp(x->subscription, subscription) == 0)
			return x;
	return NULL;
}

static bool is_under_way(struct notify *n, const char *notice)
{
	for (struct errand *x = n->errands; x; x = x->next)
		if (strcmp(x->notice, notice) == 0)
			return true;
	return false;
}

struct claim {
	double next_try; /* as it was seen */
	double until;
};

static int claim_row(void *row, void *arg, struct err *e)
{
	struct model_notice *notice = row;
	const struct claim *c = arg;

	if (notice->state != NOTICE_PENDING || notice->next_try != c->next_try)
		return -ECANCELED;
	notice->next_try = c->until;
	return 0;
}

/* Whoever else serves this database leaves it alone for as long as an attempt can take. False when somebody was
 * quicker, or it is gone. */
static bool claim(struct notify *n, const struct model_notice *notice)
{
	_cleanup_(model_notice_release) struct model_notice row = {0};
	struct claim c = {notice->next_try, id_now() + 1.5 * n->engine->s.notify_timeout};
	struct err e = {0};
	int r = store_change(n->engine->store, &model_notices, notice->id, NULL, claim_row, &c, &row, &e);

	if (r < 0 && r != -ECANCELED && r != -ENOENT)
		log_warn("notice %s: %s", notice->id, e.msg);
	return r == 0;
}

static void begin(struct notify *n, const struct model_notice *notice)
{
	_cleanup_(model_subscription_release) struct model_subscription sub = {0};
	struct store *s = n->engine->store;
	struct errand *x = NULL;
	struct err e = {0};
	int r;

	if (!claim(n, notice))
		return;
	r = s->ops->get(s, &model_subscriptions, notice->subscription, &sub, &e);
	if (r == 0)
		r = errand_new(n->engine, n->key, notice, &sub, &x, &e);
	if (r == 0 && curl_multi_add_handle(n->multi, x->curl) != CURLM_OK) {
		errand_free(x);
		r = err_set(&e, -EIO, "libcurl refused it");
	}
	if (r < 0) {
		record(n, notice->id, notice->subscription, e.msg);
		return;
	}
	x->next = n->errands;
	n->errands = x;
}

static void end(struct notify *n, struct errand *x)
{
	struct errand **p = &n->errands;

	while (*p != x)
		p = &(*p)->next;
	*p = x->next;
	curl_multi_remove_handle(n->multi, x->curl);
	errand_free(x);
}

/* ---- what is due ---- */

/* The list is newest first: what stays is the oldest. */
static int keep_row(void *arg, void *row)
{
	struct model_notice *kept = arg;

	model_notice_release(kept);
	memcpy(kept, row, sizeof(*kept));
	memset(row, 0, sizeof(*kept));
	return 0;
}

struct old {
	struct engine_ids ids;
	size_t pending;
};

static int collect_old(void *arg, void *row)
{
	const struct model_notice *notice = row;
	struct old *old = arg;

	old->pending += notice->state == NOTICE_PENDING;
	return engine_ids_add(&old->ids, notice->id);
}

static int trim(struct notify *n, const char *subscription, struct err *e)
{
	struct store_filter f = {"subscription", subscription};
	struct store_query q = {.filters = &f, .nfilters = 1, .limit = TRIM_BATCH, .offset = NOTIFY_KEPT};
	struct store *s = n->engine->store;
	struct old old = {0};
	int r = s->ops->list(s, &model_notices, &q, collect_old, &old, NULL, e);

	for (size_t i = 0; i < old.ids.n && r == 0; i++)
		r = s->ops->remove(s, &model_notices, old.ids.v[i], e);
	if (r == 0 && old.pending)
		log_error("%s isn't told %zu notices: too many wait for it", subscription, old.pending);
	free(old.ids.v);
	return r == -ENOENT ? 0 : r;
}

static int look_at(struct notify *n, const char *subscription, struct err *e)
{
	struct store_filter f[] = {{"subscription", subscription}, {"state", "pending"}};
	struct store_query q = {.filters = f, .nfilters = ARRAY_SIZE(f)};
	_cleanup_(model_notice_release) struct model_notice oldest = {0};
	struct store *s = n->engine->store;
	double wait;
	int r;

	if (errand_of(n, subscription))
		return 0;
	r = trim(n, subscription, e);
	if (r == 0)
		r = s->ops->list(s, &model_notices, &q, keep_row, &oldest, NULL, e);
	if (r < 0 || !oldest.id)
		return r;
	wait = oldest.next_try - id_now();
	/* Further off than any pause is: the clock was set back. */
	if (wait <= 0 || wait > all_pauses(n->engine))
		begin(n, &oldest);
	else
		n->look = MIN(n->look, id_now_mono() + wait);
	return 0;
}

static int collect_active(void *arg, void *row)
{
	const struct model_subscription *sub = row;

	return sub->active ? engine_ids_add(arg, sub->id) : 0;
}

/* Of several centers on a store one sends. */
static bool is_ours(struct notify *n)
{
	if (n->leased && !share_holds(n->engine, LEASE)) {
		share_drop(n->engine, LEASE);
		n->leased = false;
	}
	n->leased = n->leased || share_take(n->engine, LEASE) == 0;
	return n->leased;
}

static void look(struct notify *n)
{
	struct store *s = n->engine->store;
	struct store_query q = {0};
	struct engine_ids subs = {0};
	struct err e = {0};
	int r;

	n->look = id_now_mono() + LOOK_SECONDS;
	if (!is_ours(n))
		return;
	r = s->ops->list(s, &model_subscriptions, &q, collect_active, &subs, NULL, &e);
	for (size_t i = 0; i < subs.n && r == 0; i++)
		r = look_at(n, subs.v[i], &e);
	if (r < 0)
		log_warn("notices can't be looked at: %s", e.msg);
	free(subs.v);
}

static void finish_errands(struct notify *n)
{
	CURLMsg *m;
	int left;

	while ((m = curl_multi_info_read(n->multi, &left))) {
		char subscription[ID_MAX];
		struct errand *x = NULL;
		struct err e = {0};
		bool more;

		if (m->msg != CURLMSG_DONE)
			continue;
		curl_easy_getinfo(m->easy_handle, CURLINFO_PRIVATE, &x);
		snprintf(subscription, sizeof(subscription), "%s", x->subscription);
		more = record(n, x->notice, subscription, errand_result(x, m->data.result, &e) < 0 ? e.msg : NULL);
		end(n, x);
		if (more && n->leased && look_at(n, subscription, &e) < 0)
			log_warn("notices can't be looked at: %s", e.msg);
	}
}

/* ---- tests ---- */

static struct test *take_test(struct notify *n)
{
	struct test *t;

	pthread_mutex_lock(&n->lock);
	t = n->tests;
	if (t)
		n->tests = t->next;
	pthread_mutex_unlock(&n->lock);
	return t;
}

static void begin_tests(struct notify *n)
{
	struct store *s = n->engine->store;
	struct test *t;

	while ((t = take_test(n))) {
		_cleanup_(model_notice_release) struct model_notice notice = {0};

		/* A look may have been quicker. */
		if (!is_under_way(n, t->notice) && s->ops->get(s, &model_notices, t->notice, &notice, NULL) == 0 &&
		    notice.state == NOTICE_PENDING)
			begin(n, &notice);
		free(t);
	}
}

/* False when too many are wanted already. */
static bool queue_test(struct notify *n, const char *notice)
{
	struct test *t = calloc(1, sizeof(*t));
	size_t wanted = 0;
	bool room;

	if (!t)
		return false;
	snprintf(t->notice, sizeof(t->notice), "%s", notice);
	pthread_mutex_lock(&n->lock);
	for (struct test *i = n->tests; i; i = i->next)
		wanted++;
	room = wanted < TESTS_MAX;
	if (room) {
		t->next = n->tests;
		n->tests = t;
	}
	pthread_mutex_unlock(&n->lock);
	if (!room)
		free(t);
	return room;
}

static bool has_ended(struct notify *n, const char *id)
{
	_cleanup_(model_notice_release) struct model_notice notice = {0};
	struct store *s = n->engine->store;

	return s->ops->get(s, &model_notices, id, &notice, NULL) < 0 || notice.state != NOTICE_PENDING;
}

/* A thread of the API serves many: it waits only for what is quick. */
static void wait_for_test(struct notify *n, const char *notice)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += ERRAND_ANSWER_WAIT;
	pthread_mutex_lock(&n->lock);
	while (!has_ended(n, notice) && pthread_cond_timedwait(&n->ended, &n->lock, &until) == 0)
		;
	pthread_mutex_unlock(&n->lock);
}

int notify_test(void *arg, const char *subscription, char *notice, struct api_fault *f)
{
	_cleanup_(model_subscription_release) struct model_subscription sub = {0};
	_cleanup_(model_notice_release) struct model_notice ping = {0};
	_cleanup_json_ json_t *data = json_object();
	struct engine *en = arg;
	struct store *s = en->store;
	struct err e = {0};
	int r = s->ops->get(s, &model_subscriptions, subscription, &sub, &e);

	if (r == 0)
		r = notify_fill(&ping, subscription, NOTICE_PING, data, &e);
	if (r == 0)
		r = s->ops->put(s, &model_notices, &ping, &e);
	if (r < 0)
		return api_fault_err(f, &e);
	if (!queue_test(en->notify, ping.id)) {
		s->ops->remove(s, &model_notices, ping.id, NULL);
		return api_fault_set(f, 503, "busy", NULL, "too many tests at the same time; try again");
	}
	snprintf(notice, ID_MAX, "%s", ping.id);
	notify_news(en);
	notify_wake(en);
	wait_for_test(en->notify, ping.id);
	return 0;
}

/* ---- the thread ---- */

static void *deliver_main(void *arg)
{
	struct notify *n = arg;
	int running;

	while (!atomic_load(&n->stopping)) {
		bool news = atomic_exchange(&n->news, false);
		double now = id_now_mono();

		begin_tests(n);
		if (news || now >= n->look)
			look(n);
		/* News is told from within a transaction, and may be heard before that is complete. */
		if (news)
			n->look = MIN(n->look, now + AGAIN_SECONDS);
		curl_multi_perform(n->multi, &running);
		finish_errands(n);
		now = MIN(MAX(n->look - id_now_mono(), 0.0), LOOK_SECONDS);
		curl_multi_poll(n->multi, NULL, 0, (int)(now * 1000), NULL);
	}
	while (n->errands)
		end(n, n->errands);
	if (n->leased)
		share_drop(n->engine, LEASE);
	return NULL;
}

void notify_news(struct engine *en)
{
	atomic_store(&en->notify->news, true);
}

void notify_wake(struct engine *en)
{
	if (en->notify && atomic_load(&en->notify->news))
		curl_multi_wakeup(en->notify->multi);
}

void notify_changed(void *arg)
{
	notify_news(arg);
	notify_wake(arg);
}

void notify_secret(void *arg, const char *subscription, char *ret)
{
	const struct engine *en = arg;
	unsigned char secret[WEBHOOK_SECRET];

	webhook_secret(en->notify->key, subscription, secret);
	webhook_secret_text(secret, ret);
	OPENSSL_cleanse(secret, sizeof(secret));
}

int notify_new(struct engine *en, struct err *e)
{
	struct notify *n = calloc(1, sizeof(*n));
	int r = n ? pki_key(en->state, "webhook.key", n->key, e) : err_nomem(e);

	if (r == 0 && (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK || !(n->multi = curl_multi_init())))
		r = err_set(e, -EIO, "cannot set up libcurl");
	if (r < 0) {
		free(n);
		return r;
	}
	n->engine = en;
	pthread_mutex_init(&n->lock, NULL);
	engine_cond_init(&n->ended);
	en->notify = n;
	return 0;
}

int notify_start(struct engine *en, struct err *e)
{
	if (pthread_create(&en->notify->thread, NULL, deliver_main, en->notify) != 0)
		return err_set(e, -EAGAIN, "cannot start a thread");
	en->notify->runs = true;
	return 0;
}

void notify_stop(struct engine *en)
{
	struct notify *n = en->notify;

	if (!n->runs)
		return;
	atomic_store(&n->stopping, true);
	curl_multi_wakeup(n->multi);
	pthread_join(n->thread, NULL);
	n->runs = false;
}

void notify_free(struct engine *en)
{
	struct notify *n = take_ptr(&en->notify);
	struct test *t;

	if (!n)
		return;
	while ((t = take_test(n)))
		free(t);
	curl_multi_cleanup(n->multi);
	curl_global_cleanup();
	pthread_cond_destroy(&n->ended);
	pthread_mutex_destroy(&n->lock);
	OPENSSL_cleanse(n->key, sizeof(n->key));
	free(n);
}
