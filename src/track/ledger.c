/*
 * What is done with marks, in plain memory: the tracker runs it on maps shared with the kernel, the explorer of the
 * tests on arrays of its own. No mark is lost at any point, should the process die there: it is in `taken` before it
 * leaves `marks`.
 */
#include <string.h>

#include "base/err.h"
#include "base/util.h"
#include "track/track_int.h"

int ledger_init(struct ledger *l, uint64_t blocks, struct err *e)
{
	int r = bitmap_init(&l->recent, blocks, e);

	if (!r)
		r = bitmap_init(&l->doubt, blocks, e);
	l->blocks = blocks;
	return r;
}

void ledger_release(struct ledger *l)
{
	bitmap_release(&l->recent);
	bitmap_release(&l->doubt);
}

void ledger_mark(struct ledger *l, uint64_t first, uint64_t last)
{
	for (uint64_t b = first; b <= last && b < l->blocks; b++)
		__atomic_store_n(&l->marks[b], 1, __ATOMIC_RELEASE);
}

static void take(struct ledger *l, uint64_t block)
{
	__atomic_fetch_or(&l->taken[block / 64], UINT64_C(1) << (block % 64), __ATOMIC_SEQ_CST);
	bitmap_set(&l->recent, block);
}

static void take_big(struct ledger *l)
{
	uint64_t regions = (l->blocks + TRACKER_REGION - 1) / TRACKER_REGION;

	for (uint64_t r = 0; r < regions; r++) {
		if (!__atomic_load_n(&l->big[r], __ATOMIC_RELAXED))
			continue;
		for (uint64_t b = r * TRACKER_REGION; b < MIN((r + 1) * TRACKER_REGION, l->blocks); b++)
			take(l, b);
		__atomic_exchange_n(&l->big[r], 0, __ATOMIC_SEQ_CST);
	}
}

/* Eight marks at a look: the map is whole regions, so that the last look stays within it. */
static void take_marks(struct ledger *l)
{
	for (uint64_t at = 0; at < l->blocks; at += 8) {
		if (!__atomic_load_n((uint64_t *)(void *)(l->marks + at), __ATOMIC_RELAXED))
			continue;
		for (uint64_t b = at; b < MIN(at + 8, l->blocks); b++) {
			if (!__atomic_load_n(&l->marks[b], __ATOMIC_RELAXED))
				continue;
			take(l, b);
			__atomic_exchange_n(&l->marks[b], 0, __ATOMIC_SEQ_CST);
		}
	}
}

static void or_into(uint64_t *into, const uint64_t *from, uint64_t bits)
{
	for (uint64_t w = 0; w < (bits + 63) / 64; w++)
		into[w] |= from[w];
}

static void clear(struct bitmap *b)
{
	memset(b->words, 0, (b->nbits / 64 + 1) * sizeof(*b->words));
}

void ledger_collect(struct ledger *l, bool quiet, struct bitmap *into)
{
	must(into->nbits == l->blocks);
	or_into(into->words, l->recent.words, l->blocks);
	if (quiet || l->calm) {
		or_into(into->words, l->doubt.words, l->blocks);
		clear(&l->doubt);
	} else {
		or_into(l->doubt.words, l->recent.words, l->blocks);
	}
	l->calm = false;
	clear(&l->recent);
	take_big(l);
	take_marks(l);
	/* Whatever reads the blocks now reads after the marks were taken. */
	__atomic_thread_fence(__ATOMIC_SEQ_CST);
	or_into(into->words, l->recent.words, l->blocks);
}

void ledger_settle(struct ledger *l)
{
	for (uint64_t w = 0; w < (l->blocks + 63) / 64; w++)
		__atomic_store_n(&l->taken[w], l->recent.words[w] | l->doubt.words[w], __ATOMIC_SEQ_CST);
}

void ledger_resume(struct ledger *l)
{
	for (uint64_t w = 0; w < (l->blocks + 63) / 64; w++) {
		uint64_t bits = l->taken[w];

		for (uint64_t b = w * 64; bits && b < l->blocks; b++, bits >>= 1)
			if (bits & 1)
				__atomic_store_n(&l->marks[b], 1, __ATOMIC_SEQ_CST);
		__atomic_store_n(&l->taken[w], 0, __ATOMIC_SEQ_CST);
	}
	clear(&l->recent);
	clear(&l->doubt);
	l->calm = false;
}

void ledger_certain(struct ledger *l)
{
	clear(&l->recent);
}

void ledger_audited(struct ledger *l, bool completed)
{
	if (completed)
		clear(&l->doubt);
	l->calm = true;
}

uint64_t ledger_pending(const struct ledger *l)
{
	uint64_t n = 0;

	for (uint64_t b = 0; b < l->blocks; b++) {
		if (b % 8 == 0 && !*(const uint64_t *)(const void *)(l->marks + b) && !l->big[b / TRACKER_REGION] &&
		    !l->recent.words[b / 64]) {
			b += 7;
			continue;
		}
		n += l->marks[b] || l->big[b / TRACKER_REGION] || bitmap_get(&l->recent, b);
	}
	return n;
}

/* ---- the accounts ---- */

static uint64_t ahead_submit(const struct tally *t, enum tally_class c)
{
	return t->submit[c] - t->account[c];
}

/* Older kernels name write zeroes like passthrough: with them or without, one of both is right. */
static bool complete_same(const struct tally_base *b, const struct tally *t)
{
	uint64_t d = t->complete[TALLY_WRITE] - t->account[TALLY_WRITE];

	return d == b->complete || d + t->complete_other == b->complete + b->complete_other;
}

static bool complete_short(const struct tally_base *b, const struct tally *t)
{
	uint64_t d = t->complete[TALLY_WRITE] + t->complete_other - t->account[TALLY_WRITE];

	return (int64_t)(d - b->complete - b->complete_other) < 0;
}

void ledger_base(struct tally_base *b, const struct tally *t, bool quiet)
{
	*b = (struct tally_base){
	    .submit_known = quiet,
	    .submit = {ahead_submit(t, TALLY_WRITE), ahead_submit(t, TALLY_DISCARD)},
	    .complete = t->complete[TALLY_WRITE] - t->account[TALLY_WRITE],
	    .complete_other = t->complete_other,
	    .discards = t->submit[TALLY_DISCARD],
	};
}

bool ledger_quiet(const struct tally_base *b, const struct tally *t)
{
	return b->submit_known && ahead_submit(t, TALLY_WRITE) == b->submit[TALLY_WRITE] &&
	       ahead_submit(t, TALLY_DISCARD) == b->submit[TALLY_DISCARD];
}

bool ledger_completed(const struct tally_base *b, const struct tally *t)
{
	return complete_same(b, t) && t->submit[TALLY_DISCARD] == b->discards &&
	       (!b->submit_known || ahead_submit(t, TALLY_DISCARD) == b->submit[TALLY_DISCARD]);
}

enum ledger_verdict ledger_judge(const struct tally_base *b, const struct tally *t, bool frozen)
{
	bool ok = true;

	for (int c = 0; c < TALLY_CLASSES; c++) {
		int64_t submit = (int64_t)(ahead_submit(t, (enum tally_class)c) - b->submit[c]);
		/* A discard's request may be of many ranges, of which its completion names the first only. */
		bool by_completion = c == TALLY_WRITE && complete_same(b, t);

		/* With writes in flight at the start `submit` can only come out too small, never right by chance. */
		if (by_completion || (submit == 0 && (frozen || b->submit_known)))
			continue;
		ok = false;
		if (submit < 0 && b->submit_known && (c == TALLY_DISCARD || complete_short(b, t)))
			return LEDGER_LOST;
	}
	if (ok)
		return LEDGER_BALANCED;
	return frozen ? LEDGER_LOST : LEDGER_BUSY;
}
