/*
 * From the first copy to the commit. Live passes bring the replica close; the final pass sees the source frozen, holds
 * what differs in memory, lets the source go on and sends the rest then. Here for sources that are compared, in
 * tracked.c for those whose writes are tracked.
 */
#include <errno.h>
#include <string.h>

#include "base/id.h"
#include "base/str.h"
#include "base/util.h"
#include "stream/sender_int.h"
#include "track/track.h"

#define ROUNDS_MAX   6u         /* live passes before the first freeze */
#define ROUNDS_SMALL (64 * MIB) /* less changed than this is little */

/* ---- the used map ---- */
static int rounds_read_used(struct rounds *r, bool estimate, struct err *e)
{
	struct sender *s = r->s;
	double began = id_now_mono();
	int k;

	stream_used_release(&s->used);
	k = (estimate ? stream_used_estimate : stream_used_read)(s->disks, s->ndisks, &s->used, e);
	if (k == 0)
		sender_leave_out(s, s->used.maps);
	r->map_time = id_now_mono() - began;
	return k;
}

static int rounds_notes(struct sender *s, struct err *e)
{
	for (size_t i = 0; i < s->used.nnotes; i++) {
		int k = sender_note(s, s->used.notes[i], e);

		if (k < 0)
			return k;
	}
	return 0;
}

/* ---- live ---- */
void rounds_next(struct rounds *r, enum stream_phase phase)
{
	pthread_mutex_lock(&r->s->lock);
	r->s->progress.round = ++r->round;
	pthread_mutex_unlock(&r->s->lock);
	sender_phase(r->s, phase);
}

int rounds_pass(struct rounds *r, double *ret_seconds, struct err *e)
{
	struct sender *s = r->s;
	double began = id_now_mono();
	int k = pass_run(s, PASS_LIVE, 0, e);

	*ret_seconds = MAX(id_now_mono() - began, 1e-3);
	pthread_mutex_lock(&s->lock);
	s->progress.live_bytes += s->total;
	s->progress.live_seconds += *ret_seconds;
	pthread_mutex_unlock(&s->lock);
	return k;
}

static int rounds_live(struct rounds *r, struct err *e)
{
	struct sender *s = r->s;
	double seconds;
	int k;

	k = rounds_read_used(r, s->ops->freeze != NULL, e);
	if (k == 0)
		k = control_used_map(s, e);
	if (k < 0)
		return k;
	rounds_next(r, r->round == 0 ? STREAM_FULL : STREAM_COMPARE);
	k = rounds_pass(r, &seconds, e);
	r->speed = (double)s->total / seconds;
	r->changed_before = r->changed;
	r->changed = s->changed_now;
	return k;
}

static bool rounds_enough(const struct rounds *r)
{
	uint64_t small = MAX(ROUNDS_SMALL, r->s->total / 50);

	if (r->changed < small || r->round >= ROUNDS_MAX)
		return true;
	return r->round > 1 && r->changed > r->changed_before / 2;
}

/* ---- final ---- */
int rounds_announce(struct rounds *r, double expect, struct err *e)
{
	struct sender *s = r->s;

	pthread_mutex_lock(&s->lock);
	s->progress.expected_freeze = expect;
	s->progress.round = ++r->round;
	pthread_mutex_unlock(&s->lock);
	sender_phase(s, STREAM_FREEZING);
	if (!sender_sleep(s, 0.25)) /* the news of the freeze goes out before it begins */
		return err_set(e, -ECANCELED, "cancelled");
	return s->ops->prepare ? s->ops->prepare(s->ops->arg, false, e) : 0;
}

int rounds_hush(struct rounds *r, struct err *e)
{
	struct sender *s = r->s;
	int k = pass_run(s, PASS_PROBE, 0, e);

	if (k == 0 && s->ops->prepare)
		k = s->ops->prepare(s->ops->arg, true, e);
	if (k < 0)
		return k;
	sender_quiet(s, true);
	sender_phase(s, STREAM_FROZEN);
	return 0;
}

int rounds_thaw(struct rounds *r, int k, struct err *e)
{
	struct sender *s = r->s;
	struct err te = {0};
	double seconds = 0;
	bool intact = false;
	int t = s->ops->thaw(s->ops->arg, &seconds, &intact, &te);

	sender_phase(s, STREAM_FINISHING);
	sender_quiet(s, false);
	if (k == 0 && t < 0) {
		*e = te;
		return t;
	}
	pthread_mutex_lock(&s->lock);
	s->progress.freeze_seconds = seconds;
	pthread_mutex_unlock(&s->lock);
	if (k == 0 && !intact)
		return err_set(e, -EAGAIN, "the guard thawed the source after %.1f seconds, before all was read",
			       seconds);
	return k;
}

static double rounds_expect(const struct rounds *r)
{
	return r->speed > 0 ? r->map_time + (double)r->s->total / r->speed : -1;
}

static int rounds_final_try(struct rounds *r, struct err *e)
{
	struct sender *s = r->s;
	double expect = rounds_expect(r), limit = MIN(MAX(ROUNDS_LIMIT_MIN, 2 * expect + 5), TRACK_LIMIT_MAX);
	int k;

	if (expect > TRACK_LIMIT_MAX)
		return err_set(
		    e, -EFBIG,
		    "reading the source frozen would take about %.0f minutes and a freeze may last %.0f at most; "
		    "migrate fewer disks at once, or unmounted ones",
		    expect / 60, TRACK_LIMIT_MAX / 60);
	k = arena_map(s, UINT64_MAX, e);
	if (k == 0)
		k = rounds_announce(r, expect, e);
	if (k == 0)
		k = rounds_hush(r, e);
	if (k < 0)
		return k;
	k = s->ops->freeze(s->ops->arg, limit, e);
	if (k == 0) {
		double deadline = id_now_mono() + limit;

		k = rounds_read_used(r, false, e);
		if (k == 0)
			k = pass_run(s, PASS_FROZEN, deadline, e);
		k = rounds_thaw(r, k, e);
	} else {
		sender_phase(s, STREAM_FINISHING);
		sender_quiet(s, false);
	}
	if (k == 0)
		k = control_used_map(s, e);
	return k == 0 ? pass_run(s, PASS_HELD, 0, e) : k;
}

int rounds_gave_up(const char *why, struct err *e)
{
	struct err last = *e;

	return err_set(e, -ETIME, "%s (tried %u times, last: %.400s); migrate it at a quieter time", why, ROUNDS_TRIES,
		       last.msg);
}

static int rounds_final(struct rounds *r, struct err *e)
{
	for (unsigned i = 0;; i++) {
		int k = rounds_final_try(r, e);

		arena_unmap(r->s);
		if (k != -EAGAIN)
			return k;
		if (i + 1 == ROUNDS_TRIES)
			return rounds_gave_up("the source changes too much to be read while frozen", e);
		k = rounds_live(r, e);
		if (k < 0)
			return k;
	}
}

static int rounds_compare(struct rounds *r, struct err *e)
{
	int k;

	do
		k = rounds_live(r, e);
	while (k == 0 && r->s->ops->freeze && !rounds_enough(r));
	return k == 0 && r->s->ops->freeze ? rounds_final(r, e) : k;
}

static int rounds_finish(struct rounds *r, struct err *e)
{
	int k;

	sender_phase(r->s, STREAM_FINISHING);
	k = rounds_notes(r->s, e);
	return k < 0 ? k : control_finish(r->s, e);
}

static void rounds_mode(struct rounds *r, enum stream_mode mode)
{
	pthread_mutex_lock(&r->s->lock);
	r->s->progress.mode = mode;
	pthread_mutex_unlock(&r->s->lock);
}

int rounds_run(struct sender *s, struct err *e)
{
	struct rounds r = {.s = s};
	bool again = false;
	int k;

	s->tracked = s->ops->tracker && s->ops->freeze && s->ops->checkpoint;
	for (;;) {
		rounds_mode(&r, s->tracked ? STREAM_TRACKED : STREAM_COMPARING);
		k = s->tracked ? tracked_run(&r, e) : rounds_compare(&r, e);
		if (k == -ENOTSUP && s->tracked) {
			s->tracked = false;
			continue;
		}
		if (k == 0)
			k = rounds_finish(&r, e);
		if (k != -EILSEQ || !s->tracked || again)
			break;
		/* What we took for the receiver's state wasn't. Once, everything is read and compared. */
		again = true;
		k = sender_note(s, "the replica was not what the last rounds took it for: everything was compared", e);
		if (k == 0)
			k = tracked_disbelieve(s, e);
		if (k < 0)
			break;
	}
	return k == 0 && s->tracked ? tracked_settle(s, e) : k;
}
