/* Who has been heard of when. Kept in memory and written at most once a minute, many in one transaction: a heartbeat
 * costs no disk write. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/log.h"
#include "center/notify.h"

#define MISSED_INTERVALS 3
#define STORE_SECONDS    60.0
#define STORE_SPREAD     32 /* seconds more, by source: not all of them in the same second */
#define SEEN_BATCH       32 /* rows written in one transaction: others wait that long for the store */
#define NEVER            1e12

static unsigned seen_bucket(const char *source)
{
	unsigned h = 5381;

	for (; *source; source++)
		h = h * 33 + (unsigned char)*source;
	return h % ENGINE_SEEN_BUCKETS;
}

/* Under the lock. */
static struct seen *seen_find(struct engine *en, const char *source)
{
	for (struct seen *s = en->seen[seen_bucket(source)]; s; s = s->next)
		if (strcmp(s->source, source) == 0)
			return s;
	return NULL;
}

static struct seen *seen_add(struct engine *en, const char *source)
{
	struct seen *s = seen_find(en, source), **bucket = &en->seen[seen_bucket(source)];

	if (s)
		return s;
	s = calloc(1, sizeof(*s));
	if (!s)
		return NULL;
	snprintf(s->source, sizeof(s->source), "%s", source);
	s->next = *bucket;
	*bucket = s;
	return s;
}

void seen_touch(struct engine *en, const char *source)
{
	struct seen *s;
	ENGINE_LOCK(en);

	s = seen_add(en, source);
	if (!s)
		return; /* out of memory: the source is late, no more */
	s->mono = id_now_mono();
	s->wall = id_now();
	s->fresh = true;
}

void seen_hear(struct engine *en, const char *source, double ago)
{
	struct seen *s;
	ENGINE_LOCK(en);

	s = seen_add(en, source);
	if (!s)
		return;
	s->mono = MAX(s->mono, id_now_mono() - ago);
	s->wall = MAX(s->wall, id_now() - ago);
}

json_t *seen_take_fresh(struct engine *en)
{
	json_t *list = json_array();
	double now = id_now_mono();
	ENGINE_LOCK(en);

	for (size_t i = 0; i < ENGINE_SEEN_BUCKETS; i++)
		for (struct seen *s = en->seen[i]; s; s = s->next) {
			if (!s->fresh)
				continue;
			s->fresh = false;
			json_array_append_new(list, json_pack("{s:s, s:f}", "source", s->source, "ago", now - s->mono));
		}
	return list;
}

double seen_ago(struct engine *en, const char *source)
{
	struct seen *s;
	ENGINE_LOCK(en);

	s = seen_find(en, source);
	return s && s->mono > 0 ? id_now_mono() - s->mono : NEVER;
}

bool seen_online(struct engine *en, const char *source)
{
	return seen_ago(en, source) <= MISSED_INTERVALS * en->s.heartbeat;
}

void seen_forget(struct engine *en, const char *source)
{
	struct seen **p;
	ENGINE_LOCK(en);

	for (p = &en->seen[seen_bucket(source)]; *p; p = &(*p)->next) {
		struct seen *s = *p;

		if (strcmp(s->source, source) != 0)
			continue;
		*p = s->next;
		free(s);
		return;
	}
}

/* What the source's state should be; inside a transaction. */
static int state_of(struct engine *en, const struct model_source *src)
{
	_cleanup_(model_job_release) struct model_job job = {0};

	if (!seen_online(en, src->id))
		return SOURCE_UNAVAILABLE;
	return en->store->ops->unfinished_job(en->store, src->id, &job, NULL) == 0 ? SOURCE_IN_USE : SOURCE_AVAILABLE;
}

static double seen_wall(struct engine *en, const char *source)
{
	struct seen *s;
	ENGINE_LOCK(en);

	s = seen_find(en, source);
	return s ? s->wall : 0;
}

/* 1: the row was written. */
static int refresh_row(struct engine *en, const char *source, bool *ret_announced, struct err *e)
{
	_cleanup_(model_source_release) struct model_source src = {0};
	struct store *s = en->store;
	int r = s->ops->get(s, &model_sources, source, &src, e), state;
	bool left;
	double wall;

	if (r < 0)
		return r;
	state = state_of(en, &src);
	wall = MAX(seen_wall(en, source), src.last_seen);
	*ret_announced = state != src.state;
	if (state == src.state && wall - src.last_seen < STORE_SECONDS)
		return 0;
	left = state == SOURCE_UNAVAILABLE && state != src.state;
	src.state = state;
	src.last_seen = wall;
	r = s->ops->put(s, &model_sources, &src, e);
	if (r == 0 && *ret_announced)
		r = store_announce(s, &model_sources, "updated", &src, id_now(), e);
	if (r == 0 && left)
		r = notify_source(en, NOTICE_SOURCE_OFFLINE, &src, e);
	return r < 0 ? r : 1;
}

/* One transaction for all. A source that was deleted meanwhile has no row any more. */
static int refresh_rows(struct engine *en, char ids[][ID_MAX], size_t n, bool *ret_announced, struct err *e)
{
	struct store *s = en->store;
	int r = s->ops->begin(s, e), written = 0;

	if (r < 0)
		return r;
	for (size_t i = 0; i < n; i++) {
		bool announced = false;

		r = refresh_row(en, ids[i], &announced, e);
		if (r < 0 && r != -ENOENT) {
			s->ops->rollback(s);
			return r;
		}
		written += r > 0;
		*ret_announced |= r > 0 && announced;
	}
	if (written)
		return s->ops->commit(s, e);
	s->ops->rollback(s);
	return 0;
}

static int refresh(struct engine *en, char ids[][ID_MAX], size_t n)
{
	bool announced = false;
	struct err e = {0};
	int r = refresh_rows(en, ids, n, &announced, &e);

	if (r < 0)
		log_warn("source %s: %s", ids[0], e.msg);
	else if (announced)
		engine_wake(en);
	return r;
}

/* What couldn't be written is due once more. */
static void seen_again(struct engine *en, char ids[][ID_MAX], size_t n)
{
	ENGINE_LOCK(en);

	for (size_t i = 0; i < n; i++) {
		struct seen *s = seen_find(en, ids[i]);

		if (s)
			s->again = true;
	}
}

void seen_refresh(struct engine *en, const char *source)
{
	char id[1][ID_MAX];

	snprintf(id[0], ID_MAX, "%s", source);
	refresh(en, id, 1);
}

/* The next sources whose state is to be looked at, or whose row is old. */
static size_t seen_due(struct engine *en, char ids[SEEN_BATCH][ID_MAX])
{
	double now = id_now_mono(), limit = MISSED_INTERVALS * en->s.heartbeat;
	size_t n = 0;
	ENGINE_LOCK(en);

	for (unsigned i = 0; i < ENGINE_SEEN_BUCKETS; i++)
		for (struct seen *s = en->seen[i]; s && n < SEEN_BATCH; s = s->next) {
			bool online = now - s->mono <= limit;

			if (!s->again && online == s->online && s->wall - s->stored < STORE_SECONDS + i % STORE_SPREAD)
				continue;
			s->online = online;
			s->stored = s->wall;
			s->again = false;
			snprintf(ids[n++], ID_MAX, "%s", s->source);
		}
	return n;
}

void seen_tick(struct engine *en)
{
	char ids[SEEN_BATCH][ID_MAX];
	size_t n;

	while ((n = seen_due(en, ids)))
		if (refresh(en, ids, n) < 0) {
			seen_again(en, ids, n);
			return; /* the next tick tries again */
		}
}

/* After a start everybody gets the time to be heard of again: the center was away, not they. */
static int load_row(void *arg, void *row)
{
	const struct model_source *src = row;
	struct engine *en = arg;
	struct seen *s;
	ENGINE_LOCK(en);

	s = seen_add(en, src->id);
	if (!s)
		return -ENOMEM;
	s->wall = s->stored = src->last_seen;
	s->online = src->state != SOURCE_UNAVAILABLE;
	s->mono = s->online ? id_now_mono() : 0;
	return 0;
}

int seen_load(struct engine *en, struct err *e)
{
	struct store_query q = {0};

	return en->store->ops->list(en->store, &model_sources, &q, load_row, en, NULL, e);
}

void seen_free(struct engine *en)
{
	for (size_t i = 0; i < ENGINE_SEEN_BUCKETS; i++)
		while (en->seen[i]) {
			struct seen *s = en->seen[i];

			en->seen[i] = s->next;
			free(s);
		}
}
