/*
 * Every interleaving of a few writes with the tracker's steps, with events lost, writes delayed, and the agent killed:
 * each path must end in a replica equal to the disk, or tainted. The ledger is the tracker's own. And each of its rules
 * is left out once, which must be found out.
 *
 * A write is submitted (event), reaches the medium, is accounted, completes (event), in steps of their own. A reader
 * reads a block in one step. The replica is what was sent; a killed agent falls back to what was committed.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/util.h"
#include "track/track_int.h"

#define BLOCKS 2
#define WRITES 3
#define ALL    ((1u << BLOCKS) - 1)

enum rule {
	RULE_NONE, /* nothing is left out */
	RULE_GRACE,
	RULE_DOUBT,
	RULE_EXCHANGE_FIRST,
	RULE_TAKEN,
	RULE_SETTLE_KEEPS,
	RULE_AUDIT,
	RULE_SUBMIT_ACCOUNT, /* the audit looks at completions only ... */
	RULE_TRUST_SHORT     /* ... or takes less than the account for right */
};

struct scene {
	uint8_t block[WRITES]; /* where each write goes */
	uint8_t size[WRITES];  /* sectors: equal sizes let errors meet, different ones don't */
	uint8_t discard;       /* write 2 is one */
	uint8_t lost, crashes, phantoms;
	enum rule without;
};

enum write_step { WRITE_IDLE, WRITE_SUBMITTED, WRITE_MEDIUM, WRITE_DONE };

/* All bytes, so that states are compared and hashed as memory. */
struct state {
	uint8_t write[WRITES];
	uint8_t disk[BLOCKS], sent[BLOCKS], committed[BLOCKS];
	uint8_t marks, taken, recent, doubt, to_read, late_clear;
	uint8_t started, baseline, frozen, audited, collected;
	uint8_t lost, crashes, phantoms, faults;
	uint8_t submit[2], complete[2], account[2]; /* of writes, of discards */
	uint8_t base_known, base_discards;
	int8_t base_submit[2], base_complete;
};

#define TABLE (1u << 22)

static struct state *table;
static uint8_t *used;
static uint32_t *parent, current; /* how a state was come to, to tell a failure's story */
static size_t nstates;
static uint32_t *stack; /* of places in the table */
static size_t depth, stack_size;
static struct ledger ledger;
static uint8_t marks_mem[TRACKER_REGION], big_mem[8];
static uint64_t taken_mem[8];

struct outcome {
	size_t states, ends, tainted, wrong, false_taints;
};

static uint64_t hash(const struct state *s)
{
	const uint8_t *p = (const uint8_t *)s;
	uint64_t h = 1469598103934665603u;

	for (size_t i = 0; i < sizeof(*s); i++)
		h = (h ^ p[i]) * 1099511628211u;
	return h ^ h >> 29;
}

static void visit(const struct state *s)
{
	uint64_t at = hash(s) & (TABLE - 1);

	while (used[at]) {
		if (!memcmp(&table[at], s, sizeof(*s)))
			return;
		at = (at + 1) & (TABLE - 1);
	}
	assert_true(++nstates < TABLE / 4 * 3);
	used[at] = 1;
	table[at] = *s;
	parent[at] = current;
	if (depth == stack_size) {
		stack_size = stack_size ? stack_size * 2 : 1024;
		stack = realloc(stack, stack_size * sizeof(*stack));
		assert_non_null(stack);
	}
	stack[depth++] = (uint32_t)at;
}

static void tell(void)
{
	uint32_t path[256];
	size_t n = 0;

	for (uint32_t at = current; n < ARRAY_SIZE(path); at = parent[at]) {
		path[n++] = at;
		if (parent[at] == at)
			break;
	}
	while (n) {
		const struct state *s = &table[path[--n]];

		print_message(
		    "write %d%d%d disk %d%d sent %d%d marks %x taken %x recent %x doubt %x to read %x started %d "
		    "frozen %d audited %d collected %d submit %d/%d complete %d/%d account %d/%d base %d %d/%d\n",
		    s->write[0], s->write[1], s->write[2], s->disk[0], s->disk[1], s->sent[0], s->sent[1], s->marks,
		    s->taken, s->recent, s->doubt, s->to_read, s->started, s->frozen, s->audited, s->collected,
		    s->submit[0], s->submit[1], s->complete[0], s->complete[1], s->account[0], s->account[1],
		    s->base_known, s->base_submit[0], s->base_submit[1]);
	}
}

static void load(const struct state *s)
{
	for (int b = 0; b < BLOCKS; b++)
		marks_mem[b] = s->marks >> b & 1;
	taken_mem[0] = s->taken;
	ledger.recent.words[0] = s->recent;
	ledger.doubt.words[0] = s->doubt;
}

static void store(struct state *s)
{
	s->marks = 0;
	for (int b = 0; b < BLOCKS; b++)
		s->marks |= (uint8_t)(marks_mem[b] << b);
	s->taken = (uint8_t)taken_mem[0];
	s->recent = (uint8_t)ledger.recent.words[0];
	s->doubt = (uint8_t)ledger.doubt.words[0];
}

static struct tally tally_of(const struct state *s)
{
	return (struct tally){.submit = {s->submit[0], s->submit[1]},
			      .complete = {s->complete[0], s->complete[1]},
			      .account = {s->account[0], s->account[1]}};
}

static struct tally_base base_of(const struct state *s)
{
	return (struct tally_base){
	    .submit_known = s->base_known,
	    .submit = {(uint64_t)(int64_t)s->base_submit[0], (uint64_t)(int64_t)s->base_submit[1]},
	    .complete = (uint64_t)(int64_t)s->base_complete,
	    .discards = s->base_discards,
	};
}

static void set_base(struct state *s, bool quiet)
{
	struct tally t = tally_of(s);
	struct tally_base b;

	ledger_base(&b, &t, quiet);
	s->base_known = b.submit_known;
	s->base_submit[0] = (int8_t)b.submit[0];
	s->base_submit[1] = (int8_t)b.submit[1];
	s->base_complete = (int8_t)b.complete;
	s->base_discards = (uint8_t)b.discards;
}

/* ---- the disk's steps ---- */

static void step_write(const struct scene *sc, const struct state *from, int w)
{
	struct state s = *from;
	const int class = sc->discard && w == 2;
	const uint8_t b = sc->block[w];

	s.write[w]++;
	if (s.write[w] == WRITE_MEDIUM) {
		s.disk[b] = (uint8_t)(w + 1);
		visit(&s);
		return;
	}
	if (s.write[w] == WRITE_SUBMITTED && s.frozen)
		return;
	if (s.write[w] == WRITE_DONE)
		s.account[class] = (uint8_t)(s.account[class] + sc->size[w]);
	if (s.started && s.lost) { /* the event is lost */
		struct state l = s;

		l.lost--;
		l.faults = 1;
		visit(&l);
	}
	if (s.started) {
		uint8_t *count = s.write[w] == WRITE_SUBMITTED ? s.submit : s.complete;

		count[class] = (uint8_t)(count[class] + sc->size[w]);
		if (!(class && s.write[w] == WRITE_DONE)) /* a discard's completion may name another range */
			s.marks |= (uint8_t)(1u << b);
	}
	visit(&s);
}

/* A submission that never comes to be accounted. */
static void step_phantom(const struct state *from)
{
	struct state s = *from;

	if (!s.started || !s.phantoms || s.frozen)
		return;
	s.phantoms--;
	s.faults = 1;
	s.submit[0] = (uint8_t)(s.submit[0] + 8);
	visit(&s);
}

static bool in_flight(const struct state *s)
{
	for (int w = 0; w < WRITES; w++)
		if (s->write[w] == WRITE_SUBMITTED || s->write[w] == WRITE_MEDIUM)
			return true;
	return false;
}

/* ---- the agent's steps ---- */

static void step_start(const struct state *from)
{
	for (int quiet = 0; quiet < 2; quiet++) {
		struct state s = *from;

		/* What waits before the queue isn't shown as in flight: it may be taken for quiet when it isn't. */
		if (!quiet && !in_flight(&s))
			continue;
		s.started = 1;
		s.to_read = ALL;
		s.faults = in_flight(&s); /* a discard that was under way may taint */
		set_base(&s, quiet);
		visit(&s);
	}
}

static void collect_as(const struct scene *sc, const struct state *from, bool quiet, bool certain)
{
	struct bitmap into = {BLOCKS, (uint64_t[]){0, 0}};
	struct state s = *from;

	if (sc->without == RULE_EXCHANGE_FIRST) {
		s.to_read |= (uint8_t)(s.marks | s.recent | s.doubt);
		s.late_clear = 1;
		s.collected = s.audited;
		visit(&s);
		return;
	}
	load(&s);
	if (sc->without == RULE_GRACE)
		ledger.recent.words[0] = ledger.doubt.words[0] = 0;
	ledger.calm = from->audited;
	ledger_collect(&ledger, quiet || sc->without == RULE_DOUBT, &into);
	if (certain)
		ledger_certain(&ledger);
	store(&s);
	s.to_read |= (uint8_t)into.words[0];
	s.collected = s.audited;
	visit(&s);
}

static void step_collect(const struct scene *sc, const struct state *from)
{
	struct tally t = tally_of(from);
	struct tally_base b = base_of(from);

	if (!from->audited)
		collect_as(sc, from, false, false);
	if (!from->audited && !ledger_quiet(&b, &t))
		return;
	collect_as(sc, from, true, false);
	collect_as(sc, from, true, true);
}

static void step_read(const struct scene *sc, const struct state *from, int b)
{
	struct state s = *from;

	s.sent[b] = s.disk[b];
	s.to_read &= (uint8_t) ~(1u << b);
	if (!s.to_read && s.late_clear) {
		struct bitmap into = {BLOCKS, (uint64_t[]){0, 0}};

		s.late_clear = 0;
		load(&s);
		ledger_collect(&ledger, true, &into);
		ledger_certain(&ledger);
		store(&s);
	}
	visit(&s);
}

static void step_settle(const struct scene *sc, const struct state *from)
{
	struct state s = *from;

	memcpy(s.committed, s.sent, sizeof(s.sent));
	load(&s);
	ledger_settle(&ledger);
	if (sc->without == RULE_SETTLE_KEEPS)
		taken_mem[0] = 0;
	store(&s);
	s.baseline = 1;
	s.frozen = s.audited = s.collected = 0; /* and thawed, if it was frozen */
	visit(&s);
}

/* Killed and started again; the tracking goes on in the kernel. Without a commit there's no baseline: read all. */
static void step_crash(const struct scene *sc, const struct state *from)
{
	struct state s = *from;

	s.crashes--;
	memcpy(s.sent, s.committed, sizeof(s.sent));
	load(&s);
	if (sc->without == RULE_TAKEN)
		taken_mem[0] = 0;
	ledger_resume(&ledger);
	store(&s);
	s.to_read = s.baseline ? 0 : ALL;
	s.late_clear = s.frozen = s.audited = s.collected = 0;
	visit(&s);
}

static enum ledger_verdict judge(const struct scene *sc, const struct state *s)
{
	struct tally t = tally_of(s);
	struct tally_base b = base_of(s);

	if (sc->without == RULE_AUDIT)
		return LEDGER_BALANCED;
	if (sc->without == RULE_TRUST_SHORT && t.submit[0] + t.submit[1] + 1 >= t.account[0] + t.account[1])
		return LEDGER_BALANCED;
	if (sc->without == RULE_SUBMIT_ACCOUNT) {
		t.submit[0] = t.account[0] + b.submit[0];
		t.submit[1] = t.account[1] + b.submit[1];
	}
	return ledger_judge(&b, &t, true);
}

static void step_audit(const struct scene *sc, const struct state *from, struct outcome *o)
{
	struct state s = *from;
	struct tally t = tally_of(&s);
	struct tally_base b = base_of(&s);

	if (judge(sc, &s) != LEDGER_BALANCED) {
		o->tainted++;
		o->false_taints += !s.faults;
		return;
	}
	load(&s);
	ledger_audited(&ledger, ledger_completed(&b, &t));
	ledger.calm = false; /* kept as s.audited */
	store(&s);
	set_base(&s, true);
	s.audited = 1;
	visit(&s);
}

static void step_all(const struct scene *sc, const struct state *s, struct outcome *o)
{
	for (int w = 0; w < WRITES; w++)
		if (s->write[w] < WRITE_DONE)
			step_write(sc, s, w);
	step_phantom(s);
	if (!s->started) {
		step_start(s);
		return;
	}
	for (int b = 0; b < BLOCKS; b++)
		if (s->to_read >> b & 1)
			step_read(sc, s, b);
	if (s->crashes)
		step_crash(sc, s);
	if (s->to_read || s->late_clear)
		return;
	if (s->frozen && !s->audited) {
		step_audit(sc, s, o);
		return;
	}
	if (!s->collected)
		step_collect(sc, s);
	if (s->collected || !s->frozen) {
		if (s->frozen) { /* the promise */
			o->ends++;
			if (memcmp(s->sent, s->disk, sizeof(s->disk)) != 0 && !o->wrong++ && sc->without == RULE_NONE)
				tell();
		}
		step_settle(sc, s);
	}
	if (!s->frozen && !in_flight(s)) {
		struct state f = *s;

		f.frozen = 1;
		visit(&f);
	}
}

static struct outcome explore(const struct scene *sc)
{
	struct outcome o = {0};
	struct state first = {.lost = sc->lost, .crashes = sc->crashes, .phantoms = sc->phantoms};

	memset(used, 0, TABLE);
	nstates = depth = 0;
	current = (uint32_t)(hash(&first) & (TABLE - 1));
	visit(&first);
	while (depth) {
		struct state s = table[current = stack[--depth]];

		step_all(sc, &s, &o);
		if (o.wrong && sc->without != RULE_NONE)
			break;
	}
	o.states = nstates;
	return o;
}

/* Writes of one kind and size are interchangeable, and so are the blocks; what is left: */
static const struct scene scenes[] = {
    {.block = {0, 0, 1}, .size = {1, 1, 1}},
    {.block = {0, 1, 0}, .size = {1, 1, 1}, .discard = 1},
    {.block = {0, 0, 1}, .size = {1, 2, 4}},
    {.block = {0, 0, 0}, .size = {1, 1, 1}},
    {.block = {0, 0, 1}, .size = {1, 1, 1}, .discard = 1},
    {.block = {0, 0, 0}, .size = {1, 1, 1}, .discard = 1},
};

/* Faults up to these numbers, in the first `n` scenes. */
static struct outcome all(size_t n, uint8_t lost, uint8_t crashes, uint8_t phantoms, enum rule without)
{
	struct outcome sum = {0};

	for (size_t i = 0; i < n && (!sum.wrong || without == RULE_NONE); i++) {
		struct scene sc = scenes[i];
		struct outcome o;

		sc.lost = lost;
		sc.crashes = crashes;
		sc.phantoms = phantoms;
		sc.without = without;
		o = explore(&sc);
		sum.states += o.states;
		sum.ends += o.ends;
		sum.tainted += o.tainted;
		sum.wrong += o.wrong;
		sum.false_taints += o.false_taints;
	}
	print_message(
	    "lost <= %u, kills <= %u, phantoms <= %u, without rule %d: %zu states, %zu ends, %zu tainted, %zu wrong\n",
	    lost, crashes, phantoms, (int)without, sum.states, sum.ends, sum.tainted, sum.wrong);
	return sum;
}

static void holds(struct outcome o)
{
	assert_true(o.ends > 0);
	assert_int_equal(o.wrong, 0);
	assert_int_equal(o.false_taints, 0);
}

static void test_no_faults(void **state)
{
	holds(all(ARRAY_SIZE(scenes), 0, 0, 0, RULE_NONE));
}

static void test_lost_events_and_kills(void **state)
{
	holds(all(2, 2, 1, 0, RULE_NONE));
	holds(all(ARRAY_SIZE(scenes), 2, 0, 0, RULE_NONE));
}

/* A phantom is larger than all writes together: that an error and its opposite meet exactly is left to the digests. */
static void test_phantoms(void **state)
{
	holds(all(2, 1, 0, 1, RULE_NONE));
}

/* Each rule is needed: without it a path ends wrong. */
static void test_rules_are_needed(void **state)
{
	const size_t n = ARRAY_SIZE(scenes);

	assert_true(all(n, 1, 0, 0, RULE_GRACE).wrong > 0);
	assert_true(all(n, 1, 0, 0, RULE_DOUBT).wrong > 0);
	assert_true(all(n, 0, 0, 0, RULE_EXCHANGE_FIRST).wrong > 0);
	assert_true(all(n, 0, 1, 0, RULE_TAKEN).wrong > 0);
	assert_true(all(n, 1, 1, 0, RULE_SETTLE_KEEPS).wrong > 0);
	assert_true(all(n, 2, 0, 0, RULE_AUDIT).wrong > 0);
	assert_true(all(n, 2, 0, 0, RULE_SUBMIT_ACCOUNT).wrong > 0);
	assert_true(all(n, 2, 0, 0, RULE_TRUST_SHORT).wrong > 0);
}

static int setup(void **state)
{
	table = calloc(TABLE, sizeof(*table));
	parent = calloc(TABLE, sizeof(*parent));
	used = calloc(TABLE, 1);
	ledger = (struct ledger){.marks = marks_mem, .big = big_mem, .taken = taken_mem};
	return !table || !used || !parent || ledger_init(&ledger, BLOCKS, NULL);
}

static int teardown(void **state)
{
	free(table);
	free(used);
	free(parent);
	free(stack);
	ledger_release(&ledger);
	return 0;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_no_faults),
	    cmocka_unit_test(test_lost_events_and_kills),
	    cmocka_unit_test(test_phantoms),
	    cmocka_unit_test(test_rules_are_needed),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
