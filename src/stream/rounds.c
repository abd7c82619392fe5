/*
 * From the first copy to the commit. Live passes bring the replica close; the final pass sees the source frozen, holds
 * what differs in memory, lets the source go on and sends the rest then.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/id.h"
#include "base/str.h"
#include "base/util.h"
#include "stream/sender_int.h"
#include "track/track.h"

#define ROUNDS_MAX       6u          /* live passes before the first freeze */
#define ROUNDS_SMALL     (64 * MIB)  /* less changed than this is little */
#define ROUNDS_TRIES     3u          /* of the final pass */
#define ROUNDS_LIMIT_MIN 10.0        /* seconds the guard grants at least */
#define ROUNDS_ARENA     (256 * MIB) /* held at most, by default */

struct rounds {
	struct sender *s;
	unsigned round;
	double speed;    /* bytes per second of the last live pass */
	double map_time; /* seconds the used map took last */
	uint64_t changed, changed_before;
};

/* ---- the used map ---- */
/* `live`: writers are at work, so journals are pending and the map is an estimate; the frozen pass reads it exactly. */
static int rounds_read_used(struct rounds *r, bool live, struct err *e)
{
	struct sender *s = r->s;
	struct stream_used used = {0};
	double began = id_now_mono();
	int k = (live ? stream_used_read_live : stream_used_read)(s->disks, s->ndisks, &used, e);

	if (k < 0)
		return k;
	stream_used_release(&s->used);
	s->used = used;
	r->map_time = id_now_mono() - began;
	return 0;
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
static int rounds_live(struct rounds *r, struct err *e)
{
	struct sender *s = r->s;
	double began;
	int k;

	pthread_mutex_lock(&s->lock);
	s->progress.round = ++r->round;
	pthread_mutex_unlock(&s->lock);
	k = rounds_read_used(r, s->ops->freeze != NULL, e);
	if (k == 0)
		k = control_used_map(s, e);
	if (k < 0)
		return k;
	sender_phase(s, r->round == 1 ? STREAM_FULL : STREAM_COMPARE);
	began = id_now_mono();
	k = pass_run(s, PASS_LIVE, 0, e);
	r->speed = (double)s->total / MAX(id_now_mono() - began, 1e-3);
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
static uint64_t rounds_memory_available(void)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/meminfo", "re");
	unsigned long long kib = 0;
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
			break;
	return kib * 1024;
}

/* Every page is there before the freeze: what holds the source's writers must not wait for memory. */
static int rounds_arena_map(struct sender *s, struct err *e)
{
	uint64_t size = s->p->frozen_memory, blocks;
	void *p;

	if (!size)
		size = MIN(ROUNDS_ARENA, rounds_memory_available() / 4);
	size = MAX(size / STREAM_BLOCK, UINT64_C(1)) * STREAM_BLOCK;
	blocks = size / STREAM_BLOCK;
	p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (p == MAP_FAILED)
		return err_nomem(e);
	mlock(p, size); /* where it is allowed */
	s->arena = p;
	s->arena_size = size;
	s->held_max = blocks + 1024;
	s->held = calloc(s->held_max, sizeof(*s->held));
	if (!s->held)
		return err_nomem(e);
	/* calloc() of this size is untouched memory: touch it. */
	for (size_t i = 0; i < s->held_max; i++)
		s->held[i].head.encoding = WIRE_RAW;
	s->arena_used = s->nheld = 0;
	return 0;
}

static void rounds_arena_unmap(struct sender *s)
{
	if (s->arena)
		munmap(s->arena, s->arena_size);
	s->arena = NULL;
	s->arena_size = 0;
	free(s->held);
	s->held = NULL;
	s->held_max = 0;
	s->arena_used = s->nheld = 0;
}

static double rounds_expect(const struct rounds *r)
{
	return r->speed > 0 ? r->map_time + (double)r->s->total / r->speed : -1;
}

/* Frozen from begin to end; what differs is held afterwards. -EAGAIN: void, for `e`'s reason. */
static int rounds_frozen(struct rounds *r, double limit, struct err *e)
{
	struct sender *s = r->s;
	double seconds = 0, deadline;
	struct err te = {0};
	bool intact = false;
	int k, t;

	k = s->ops->freeze(s->ops->arg, limit, e);
	if (k < 0)
		return k;
	deadline = id_now_mono() + limit;
	k = rounds_read_used(r, false, e);
	if (k == 0)
		k = pass_run(s, PASS_FROZEN, deadline, e);
	t = s->ops->thaw(s->ops->arg, &seconds, &intact, &te);
	if (k == 0 && t < 0) {
		if (e)
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
	k = rounds_arena_map(s, e);
	if (k < 0)
		return k;
	pthread_mutex_lock(&s->lock);
	s->progress.expected_freeze = expect;
	s->progress.round = ++r->round;
	pthread_mutex_unlock(&s->lock);
	sender_phase(s, STREAM_FREEZING);
	if (!sender_sleep(s, 0.25)) /* the news of the freeze goes out before it begins */
		return err_set(e, -ECANCELED, "cancelled");
	k = pass_run(s, PASS_PROBE, 0, e);
	if (k < 0)
		return k;
	sender_quiet(s, true);
	sender_phase(s, STREAM_FROZEN);
	k = rounds_frozen(r, limit, e);
	sender_phase(s, STREAM_FINISHING);
	sender_quiet(s, false);
	if (k == 0)
		k = control_used_map(s, e);
	return k == 0 ? pass_run(s, PASS_HELD, 0, e) : k;
}

static int rounds_final(struct rounds *r, struct err *e)
{
	for (unsigned i = 0;; i++) {
		int k = rounds_final_try(r, e);

		rounds_arena_unmap(r->s);
		if (k != -EAGAIN)
			return k;
		if (i + 1 == ROUNDS_TRIES) {
			struct err last = *e;

			return err_set(e, -ETIMEDOUT,
				       "the source changes too much to be read while frozen (tried %u times, last: "
				       "%.400s); migrate it at a quieter time",
				       ROUNDS_TRIES, last.msg);
		}
		k = rounds_live(r, e);
		if (k < 0)
			return k;
	}
}

int rounds_run(struct sender *s, struct err *e)
{
	struct rounds r = {.s = s};
	int k;

	do
		k = rounds_live(&r, e);
	while (k == 0 && s->ops->freeze && !rounds_enough(&r));
	if (k == 0 && s->ops->freeze)
		k = rounds_final(&r, e);
	if (k < 0)
		return k;
	sender_phase(s, STREAM_FINISHING);
	k = rounds_notes(s, e);
	return k < 0 ? k : control_finish(s, e);
}
