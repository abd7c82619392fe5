/*
 * A run whose source's writes are tracked: rounds read what was marked, until the rest can be read within the freeze
 * budget. Correctness doesn't rest on it alone: a window is believed only while the receiver has what we stated of it,
 * and an audit that fails makes everything a candidate again.
 */
#include <errno.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include "base/id.h"
#include "base/str.h"
#include "base/util.h"
#include "stream/sender_int.h"
#include "track/track.h"

#define TRACKED_FREEZE   1.0    /* seconds a freeze should last at most, by default */
#define TRACKED_PATIENCE 1800.0 /* seconds of rounds that don't get smaller, by default */
#define TRACKED_SPEED    1e8    /* bytes per second read, as long as nothing was measured */
#define TRACKED_TAINTS   2u     /* after so many the run compares */
#define TRACKED_GROWN    16384u /* blocks (1 GiB) by which marks may let the used map grow before it is read again */
#define TRACKED_LAST     3u     /* rounds between preparing and the freeze, at most */
#define TRACKED_STATIC   0.9    /* of the shortest freeze expected so far: shorter is progress */

_Static_assert(TRACK_BLOCK == STREAM_BLOCK, "a mark stands for a block");

static double tracked_max_freeze(const struct sender *s)
{
	return s->p->max_freeze > 0 ? s->p->max_freeze : TRACKED_FREEZE;
}

/* ---- what is known ---- */
static int tracked_alloc(struct sender *s, struct err *e)
{
	for (size_t i = 0; i < s->ndisks; i++) {
		uint64_t n = stream_blocks(s->disks[i]->size);
		int k = s->candidates[i].words ? 0 : bitmap_init(&s->candidates[i], n, e);

		if (k == 0 && !s->stated[i].words)
			k = bitmap_init(&s->stated[i], n, e);
		if (k < 0)
			return k;
	}
	return 0;
}

static void tracked_clear(struct bitmap *b)
{
	memset(b->words, 0, (b->nbits / 64 + 1) * sizeof(*b->words));
}

/* Nothing is stated: windows of no blocks at all. */
int tracked_reset(struct sender *s, struct err *e)
{
	_cleanup_(codec_sum_freep) struct codec_sum *sum = NULL;
	uint8_t nothing[32];
	int k = tracked_alloc(s, e);

	if (k == 0)
		k = codec_sum_new(&sum, e);
	if (k < 0)
		return k;
	codec_sum_start(sum);
	codec_sum_finish(sum, nothing);
	for (size_t i = 0; i < s->ndisks; i++) {
		uint64_t windows = stream_windows(s->disks[i]->size);

		tracked_clear(&s->candidates[i]);
		tracked_clear(&s->stated[i]);
		for (uint64_t w = 0; w < windows; w++)
			memcpy(s->sums[i] + w * 32, nothing, 32);
	}
	return 0;
}

int tracked_disbelieve(struct sender *s, struct err *e)
{
	int k = tracked_reset(s, e);

	if (k == 0 && s->p->baseline && unlink(s->p->baseline) < 0 && errno != ENOENT)
		k = err_sys(e, "cannot remove '%s'", s->p->baseline);
	/* Now, for the receiver waits seconds, and reading what is used may take longer. */
	return k < 0 ? k : control_ready(s, e);
}

static uint64_t tracked_count(const struct bitmap *maps, size_t n)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < n; i++)
		sum += bitmap_count(&maps[i]);
	return sum;
}

static uint64_t tracked_pending(const struct sender *s)
{
	const struct stream_tracker *t = s->ops->tracker;
	uint64_t sum = 0;

	for (size_t i = 0; i < s->ndisks; i++)
		if (!s->p->leave_out || !s->p->leave_out[i])
			sum += t->pending(t->arg, i);
	return sum;
}

/* ---- the tracker ---- */
/* Whatever goes wrong with it: its marks can't be relied on any more. */
static int tracked_taint(struct rounds *r, int k, const struct err *why, struct err *e)
{
	*e = *why;
	if (k == -ENOMEM)
		return k;
	r->tainted = true;
	return err_set(e, -ESTALE, "%s", *why->msg ? why->msg : "the tracker failed");
}

static int tracked_collect(struct rounds *r, struct err *e)
{
	struct sender *s = r->s;
	const struct stream_tracker *t = s->ops->tracker;
	struct err why = {0};

	for (size_t i = 0; i < s->ndisks; i++) {
		struct bitmap *c = &s->candidates[i];
		int k = t->collect(t->arg, i, c, &why);

		c->words[c->nbits / 64] &= (UINT64_C(1) << (c->nbits % 64)) - 1;
		if (k < 0)
			return tracked_taint(r, k, &why, e);
	}
	/* The marks of these are taken and lost: nothing of them is stated either, so the next run reads all of them.
	 */
	sender_leave_out(s, s->candidates);
	r->collected = tracked_pending(s);
	return 0;
}

/* What was written is used. */
static void tracked_use(struct sender *s)
{
	for (size_t i = 0; i < s->ndisks; i++)
		for (uint64_t k = 0; k <= s->candidates[i].nbits / 64; k++)
			s->used.maps[i].words[k] |= s->candidates[i].words[k];
}

static int tracked_audit(struct rounds *r, bool frozen, struct err *e)
{
	const struct stream_tracker *t = r->s->ops->tracker;
	struct err why = {0};
	int k = t->audit(t->arg, frozen, &why);

	if (k == 0 || (k == -EBUSY && !frozen))
		return 0;
	return tracked_taint(r, k, &why, e);
}

/* ---- the used map ---- */
struct look {
	struct sender *s;
	struct stream_settled settled;
	double seconds;
};

static void look_release(struct look *l)
{
	stream_settled_release(&l->settled);
}

/* For that moment of freeze: which filesystems it has put in order. */
static int tracked_look(void *arg, struct err *e)
{
	struct look *l = arg;
	double began = id_now_mono();
	int k = stream_settled_look(l->s->disks, l->s->ndisks, &l->settled, e);

	l->seconds = id_now_mono() - began;
	return k;
}

/*
 * What is used now, and to be read of it: what was marked, and what wasn't stated yet. The journals are put in order
 * first; what becomes used after that is written, hence marked. Marks are taken before and not after, twice because a
 * collect gives once more what the one before took: of what was written and is free again nothing need be read.
 */
static int tracked_map(struct rounds *r, struct err *e)
{
	struct sender *s = r->s;
	_cleanup_(look_release) struct look look = {.s = s};
	bool intact = false;
	int k = tracked_collect(r, e);

	if (k == 0)
		k = tracked_collect(r, e);
	if (k == 0)
		k = s->ops->checkpoint(s->ops->arg, tracked_look, &look, &r->flush, &intact, e);
	if (k == 0) {
		r->flush = MAX(r->flush - look.seconds, 0);
		stream_used_release(&s->used);
		k = stream_used_read_tracked(s->disks, s->ndisks, intact ? &look.settled : NULL, &s->used, e);
	}
	if (k < 0)
		return k;
	sender_leave_out(s, s->used.maps);
	for (size_t i = 0; i < s->ndisks; i++) {
		uint64_t *c = s->candidates[i].words, *used = s->used.maps[i].words, *stated = s->stated[i].words;

		for (uint64_t n = 0; n <= s->candidates[i].nbits / 64; n++)
			c[n] = (c[n] & used[n]) | (used[n] & ~stated[n]);
	}
	r->used_mapped = tracked_count(s->used.maps, s->ndisks);
	return control_used_map(s, e);
}

/* Marks are in part of what was written and deleted again, or discarded. */
static bool tracked_grown(const struct rounds *r)
{
	uint64_t n = tracked_count(r->s->used.maps, r->s->ndisks);

	return n > r->used_mapped + r->used_mapped / 10 + TRACKED_GROWN;
}

/* ---- live rounds ---- */
static int tracked_pass(struct rounds *r, struct err *e)
{
	struct sender *s = r->s;
	int k = rounds_pass(r, &r->handled_seconds, e);

	if (k < 0)
		return k;
	r->handled = s->total;
	for (size_t i = 0; i < s->ndisks; i++)
		tracked_clear(&s->candidates[i]);
	return 0;
}

static int tracked_live(struct rounds *r, struct err *e)
{
	rounds_next(r, r->round == 0 && !r->recalled ? STREAM_FULL : STREAM_COMPARE);
	return tracked_pass(r, e);
}

static uint64_t tracked_arena(const struct sender *s)
{
	return s->p->frozen_memory ? s->p->frozen_memory : 256 * MIB;
}

static double tracked_speed(const struct sender *s)
{
	return s->progress.gauges.disk > 0 ? s->progress.gauges.disk : TRACKED_SPEED;
}

static double tracked_expect(const struct rounds *r, uint64_t blocks)
{
	return r->flush + (double)blocks * STREAM_BLOCK / tracked_speed(r->s);
}

/* Bytes that may be left to read: the freeze should end after half of what is allowed. The flush is no round's affair.
 */
static double tracked_budget(const struct rounds *r)
{
	double max = tracked_max_freeze(r->s);

	return MIN(MAX(max / 2 - r->flush, max / 10) * tracked_speed(r->s), (double)tracked_arena(r->s) / 2);
}

/* How long it would be frozen now, measured and told. */
static double tracked_measure(struct rounds *r, uint64_t pending)
{
	struct sender *s = r->s;
	struct stream_gauges g = s->progress.gauges;
	double expect, converge;

	gauge_look(&r->gauge, s, pending, r->collected, &g);
	pthread_mutex_lock(&s->lock);
	s->progress.gauges = g;
	pthread_mutex_unlock(&s->lock);
	expect = tracked_expect(r, pending);
	converge = gauge_converge((double)pending * STREAM_BLOCK, tracked_budget(r),
				  (double)r->handled / r->handled_seconds, g.churn);
	pthread_mutex_lock(&s->lock);
	s->progress.expected_freeze = expect;
	s->progress.gauges.converge_seconds = converge;
	pthread_mutex_unlock(&s->lock);
	return expect;
}

static int tracked_give_up(struct rounds *r, double expect, struct err *e)
{
	const struct stream_gauges *g = &r->s->progress.gauges;
	char churn[32], link[32], disk[32];

	return err_set(e, -ETIME,
		       "the source writes faster than it can be followed: it changes %s, the link carries %s and the "
		       "disk gives %s per second, and %.0f %% of the processors are used; the bottleneck is the %s; "
		       "freezing now would take %.1f s, %.1f s are wanted (allow a longer freeze, a higher rate, or "
		       "migrate at a quieter time)",
		       str_bytes((uint64_t)MAX(g->churn, 0), churn, sizeof(churn)),
		       str_bytes((uint64_t)MAX(g->link, 0), link, sizeof(link)),
		       str_bytes((uint64_t)MAX(g->disk, 0), disk, sizeof(disk)), 100 * MAX(g->cpu, 0),
		       stream_bottleneck_name(g->bottleneck), expect, tracked_max_freeze(r->s));
}

/*
 * 1: time to freeze, 0: another round. What doesn't fit the budget within the patience is frozen for longer, as long as
 * the guard would grant by default, and else given up: an administrator has to choose.
 */
static int tracked_enough(struct rounds *r, struct err *e)
{
	struct sender *s = r->s;
	double patience = s->p->patience > 0 ? s->p->patience : TRACKED_PATIENCE, now = id_now_mono(), expect;
	uint64_t pending = tracked_pending(s);

	expect = tracked_measure(r, pending);
	if ((double)pending * STREAM_BLOCK <= tracked_budget(r))
		return 1;
	if (!(r->best > 0) || expect < TRACKED_STATIC * r->best) {
		r->best = expect;
		r->best_at = now;
	}
	if (now - r->best_at < patience)
		return 0;
	return expect <= ROUNDS_LIMIT_MIN ? 1 : tracked_give_up(r, expect, e);
}

static int tracked_rounds(struct rounds *r, struct err *e)
{
	for (;;) {
		int k = tracked_live(r, e);

		if (k == 0)
			k = tracked_enough(r, e);
		if (k != 0)
			return MIN(k, 0);
		k = tracked_audit(r, false, e);
		if (k == 0)
			k = tracked_grown(r) ? tracked_map(r, e) : tracked_collect(r, e);
		if (k < 0)
			return k;
		tracked_use(r->s);
	}
}

/* ---- the freeze ---- */
/* Frozen. What is left fits the arena, or it has to be compared right now. */
static int tracked_frozen(struct rounds *r, double limit, enum pass_kind *ret_after, struct err *e)
{
	struct sender *s = r->s;
	double deadline = id_now_mono() + limit;
	uint64_t blocks;
	int k = tracked_audit(r, true, e);

	if (k == 0)
		k = tracked_collect(r, e);
	if (k < 0)
		return k;
	tracked_use(s);
	blocks = tracked_count(s->candidates, s->ndisks);
	*ret_after = blocks <= s->arena_size / STREAM_BLOCK ? PASS_DELIVER : PASS_HELD;
	return pass_run(s, *ret_after == PASS_DELIVER ? PASS_GRAB : PASS_FROZEN, deadline, e);
}

static int tracked_deliver(struct rounds *r, enum pass_kind after, struct err *e)
{
	struct sender *s = r->s;
	int k = control_used_map(s, e);

	s->stale = false;
	if (after == PASS_DELIVER)
		arena_sort(s);
	if (k == 0)
		k = pass_run(s, after, 0, e);
	if (k == 0 && s->stale)
		return err_set(e, -EAGAIN, "the receiver has lost something it had");
	for (size_t i = 0; k == 0 && i < s->ndisks; i++)
		tracked_clear(&s->candidates[i]);
	return k;
}

/* Preparing took time and wrote things: what that left is read while it may still take some. */
static int tracked_last(struct rounds *r, struct err *e)
{
	int k = 0;

	for (unsigned i = 0; i < TRACKED_LAST; i++) {
		/* What is only in the page cache isn't marked yet, and would be written while frozen. */
		if (i > 0 && r->s->ops->prepare)
			k = r->s->ops->prepare(r->s->ops->arg, true, e);
		if (k < 0 || (i > 0 && (double)tracked_pending(r->s) * STREAM_BLOCK <= tracked_budget(r) / 2))
			break;
		k = tracked_collect(r, e);
		if (k < 0)
			break;
		tracked_use(r->s);
		k = tracked_pass(r, e);
		if (k < 0)
			break;
	}
	return k;
}

static int tracked_final_try(struct rounds *r, struct err *e)
{
	struct sender *s = r->s;
	uint64_t pending = tracked_pending(s);
	double expect = tracked_expect(r, pending), limit = MIN(MAX(ROUNDS_LIMIT_MIN, 2 * expect + 5), TRACK_LIMIT_MAX);
	enum pass_kind after = PASS_DELIVER;
	int k = rounds_announce(r, expect, e);

	if (k == 0)
		k = tracked_last(r, e);
	/* What the page cache still holds of what writers do comes on top of what is marked. */
	if (k == 0)
		k = arena_map(s, 4 * tracked_pending(s) * STREAM_BLOCK, e);
	if (k == 0)
		k = rounds_hush(r, e);
	if (k < 0)
		return k;
	k = s->ops->freeze(s->ops->arg, limit, e);
	if (k == 0) {
		k = tracked_frozen(r, limit, &after, e);
		k = rounds_thaw(r, k, e);
	} else {
		sender_phase(s, STREAM_FINISHING);
		sender_quiet(s, false);
	}
	return k == 0 ? tracked_deliver(r, after, e) : k;
}

/* From the map to what is held being sent. */
static int tracked_cycle(struct rounds *r, struct err *e)
{
	struct gauge *g = &r->gauge;
	struct stream_gauges none;
	int k = tracked_map(r, e);

	*g = (struct gauge){.time = id_now_mono()};
	gauge_look(g, r->s, 0, 0, &none);
	for (unsigned i = 0; k == 0; i++) {
		r->best = 0;
		k = tracked_rounds(r, e);
		if (k < 0)
			return k;
		k = tracked_final_try(r, e);
		arena_unmap(r->s);
		if (k != -EAGAIN)
			return k;
		if (i + 1 == ROUNDS_TRIES)
			return rounds_gave_up("the source could not be read while frozen", e);
		k = 0;
	}
	return k;
}

/* Begins anew; -ENOTSUP: no more of it. */
static int tracked_recover(struct rounds *r, struct err *e)
{
	const struct stream_tracker *t = r->s->ops->tracker;
	struct err why = {0};
	char text[ERR_MSG_MAX + 200];
	bool over = ++r->taints >= TRACKED_TAINTS;
	int k;

	r->tainted = false;

	if (!over && t->restart(t->arg, &why) < 0) {
		over = true;
		*e = why;
	}
	snprintf(text, sizeof(text), "tracking was interrupted, %s: %s",
		 over ? "this run compares and its freeze is longer" : "everything was compared once more", e->msg);
	k = sender_note(r->s, text, e);
	if (k == 0)
		k = tracked_reset(r->s, e);
	return k == 0 && over ? err_set(e, -ENOTSUP, "tracking was given up") : k;
}

/* ---- what the run before left, and what this one leaves ---- */
static void tracked_baseline(struct sender *s, struct baseline *ret)
{
	const struct stream_tracker *t = s->ops->tracker;

	*ret = (struct baseline){.digest = s->digest, .epoch = t->epoch(t->arg), .n = s->ndisks};
	for (size_t i = 0; i < s->ndisks; i++)
		ret->disks[i] = (struct baseline_disk){
		    .name = s->disks[i]->name, .size = s->disks[i]->size, .used = &s->stated[i], .sums = s->sums[i]};
}

/* Does the receiver hold what the last run left there? */
static int tracked_recall(struct sender *s, struct err *e)
{
	struct baseline b;
	int k;

	tracked_baseline(s, &b);
	k = baseline_read(s->p->baseline, &b, e);
	for (size_t i = 0; k == 0 && i < s->ndisks; i++)
		if (memcmp(b.disks[i].statement, s->committed[i], sizeof(s->committed[i])) != 0)
			k = err_set(e, -ESTALE, "the receiver holds something else");
	return k;
}

static int tracked_begin(struct rounds *r, struct err *e)
{
	struct sender *s = r->s;
	struct err why = {0};
	char text[ERR_MSG_MAX + 100];
	int k = tracked_alloc(s, e);

	if (k < 0 || !s->p->baseline)
		return k < 0 ? k : tracked_reset(s, e);
	k = tracked_recall(s, &why);
	r->recalled = k == 0;
	if (k == 0)
		return 0;
	if (k != -ENOENT) {
		snprintf(text, sizeof(text), "all is compared, not only what has changed: %s", why.msg);
		k = sender_note(s, text, e);
	}
	return k == 0 || k == -ENOENT ? tracked_reset(s, e) : k;
}

/*
 * Settled marks are gone, so what an earlier run left must be gone first. A run that is committed doesn't fail because
 * the next one has to read more.
 */
int tracked_settle(struct sender *s, struct err *e)
{
	const struct stream_tracker *t = s->ops->tracker;
	struct err why = {0};
	char text[ERR_MSG_MAX + 100];
	struct baseline b;
	int k = 0;

	if (!s->p->baseline)
		return 0;
	tracked_baseline(s, &b);
	for (size_t i = 0; k == 0 && i < s->ndisks; i++)
		k = dial_statement(s, i, b.disks[i].statement, &why);
	if (k == 0)
		k = baseline_write(s->p->baseline, &b, &why);
	if (k < 0) {
		snprintf(text, sizeof(text), "the next run will read everything: %s", why.msg);
		k = sender_note(s, text, e);
		if (unlink(s->p->baseline) < 0 && errno != ENOENT)
			return k;
	}
	t->settle(t->arg);
	return k;
}

int tracked_run(struct rounds *r, struct err *e)
{
	int k = r->s->stated[0].words ? 0 : tracked_begin(r, e);

	while (k == 0) {
		k = tracked_cycle(r, e);
		if (!r->tainted)
			return k;
		k = tracked_recover(r, e);
	}
	return k;
}
