/* Every step x event, and a world in which steps are half done and done twice: one system always stays.
 * docs/switch-states.md is what this prints, and must be up to date. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "job/job.h"

static struct switch_facts facts_of(int bits)
{
	return (struct switch_facts){.ran = bits & 1, .keep_failed = bits & 2};
}

static void add_row(struct str *b, int step, int event, int bits, const char *when)
{
	struct switch_answer a = switch_next(step, event, facts_of(bits));

	str_addf(b, "| %s | %s%s | ", step ? switch_steps[step] : "(none)", switch_events[event], when);
	if (a.refused)
		str_addf(b, "refused: %s |\n", a.refused);
	else
		str_addf(b, "%s |\n", a.step ? switch_steps[a.step] : "(none)");
}

static char *make_table(void)
{
	struct str b = {0};

	str_add(
	    &b,
	    "# Steps of a migration onto an instance\n\n"
	    "What each event does in each step; printed by `tests/unit/test_switching.c` from `src/job/switching.c`\n"
	    "(`REPLANT_UPDATE=1` writes it anew). A step is written down before it is carried out. *ran*: the instance "
	    "was on before;\n"
	    "*keep*: `rollback_on_failure` is off.\n\n"
	    "| step | event | next |\n| --- | --- | --- |\n");
	for (int step = 0; step < SWITCH_STEPS; step++)
		for (int event = 0; event < SWITCH_EVENTS; event++) {
			enum switch_step off = switch_next(step, event, facts_of(0)).step;

			add_row(&b, step, event, 0, "");
			if (switch_next(step, event, facts_of(1)).step != off)
				add_row(&b, step, event, 1, " (ran)");
			if (switch_next(step, event, facts_of(2)).step != off)
				add_row(&b, step, event, 2, " (keep)");
		}
	return str_take(&b);
}

static void test_document(void **state)
{
	_cleanup_free_ char *table = make_table(), *path = str_printf("%s/switch-states.md", REPLANT_DOCS),
			    *text = NULL;

	assert_non_null(table);
	if (getenv("REPLANT_UPDATE"))
		assert_int_equal(io_write_file_atomic(path, table, strlen(table), 0644, NULL), 0);
	assert_int_equal(io_read_file(path, 1 << 20, &text, NULL, NULL), 0);
	assert_string_equal(text, table);
}

/* What holds for every answer, reachable or not. */
static void test_rules(void **state)
{
	for (int step = 0; step < SWITCH_STEPS; step++)
		for (int event = 0; event < SWITCH_EVENTS; event++)
			for (int bits = 0; bits < 4; bits++) {
				struct switch_answer a = switch_next(step, event, facts_of(bits));

				if (a.refused) {
					assert_true(strlen(a.refused) > 10);
					assert_int_equal(a.step, step);
					continue;
				}
				/* It ends only behind what removes the other system. */
				if (a.step == SWITCH_NONE) {
					assert_true(step == SWITCH_CONFIRMING || step == SWITCH_BACK_DROPPING);
					assert_int_equal(event, SWITCH_DONE);
				}
				/* Nobody decides for good but a person. */
				if (a.step == SWITCH_CONFIRMING && step != SWITCH_CONFIRMING)
					assert_true(step == SWITCH_SWITCHED && event == SWITCH_CONFIRM);
				/* Who is on the way back doesn't turn round. */
				if (switch_is_back(step))
					assert_true(a.step == SWITCH_NONE || switch_is_back(a.step));
			}
}

/* Until somebody confirmed there is a way back, whatever happens. */
static void test_way_back(void **state)
{
	for (int step = SWITCH_PREPARING; step < SWITCH_STEPS; step++)
		for (int bits = 0; bits < 4; bits++) {
			struct switch_answer a = switch_next(step, SWITCH_ROLL_BACK, facts_of(bits));

			if (step == SWITCH_CONFIRMING) {
				assert_non_null(a.refused);
				continue;
			}
			assert_null(a.refused);
			for (int n = 0; a.step != SWITCH_NONE; n++) {
				assert_true(n < 6 && switch_is_back(a.step));
				a = switch_next(a.step, SWITCH_DONE, facts_of(bits));
			}
		}
}

/* ---- a world ---- */

struct world {
	bool old_there, new_there, new_in_use, on, confirmed;
};

static void carry_out(struct world *w, enum switch_step step)
{
	switch (step) {
	case SWITCH_PREPARING:
		w->new_there = true;
		break;
	case SWITCH_STOPPING:
	case SWITCH_BACK_STOPPING:
		w->on = false;
		break;
	case SWITCH_USING:
		/* A hypervisor refuses both. */
		assert_false(w->on);
		assert_true(w->new_there);
		w->new_in_use = true;
		break;
	case SWITCH_BACK_USING:
		assert_false(w->on);
		assert_true(w->old_there);
		w->new_in_use = false;
		break;
	case SWITCH_STARTING:
	case SWITCH_BACK_STARTING:
		assert_true(w->new_in_use ? w->new_there : w->old_there);
		w->on = true;
		break;
	case SWITCH_CONFIRMING:
		assert_true(w->confirmed && w->new_in_use);
		w->old_there = false;
		break;
	case SWITCH_BACK_DROPPING:
		assert_false(w->new_in_use);
		w->new_there = false;
		break;
	case SWITCH_JUDGING:
	case SWITCH_NONE:
	case SWITCH_SWITCHED:
	case SWITCH_STEPS:
		break;
	}
	assert_true(w->new_in_use ? w->new_there : w->old_there);
	/* What wasn't confirmed can be taken back. */
	assert_true(w->old_there || w->confirmed);
}

/* A kill behind the deed and before the event makes it be done again; one before it, not at all. */
static void walk(unsigned seed)
{
	struct switch_facts facts = facts_of(seed & 3);
	struct world w = {.old_there = true, .on = facts.ran};
	enum switch_step step = SWITCH_PREPARING;

	srand(seed);
	for (unsigned n = 0; n < 10000 && step != SWITCH_NONE; n++) {
		/* What can't fail in this world without having been asked for: a power that is off. */
		enum switch_event event = rand() % 8 == 0 ? (enum switch_event)(rand() % SWITCH_EVENTS) : SWITCH_DONE;
		struct switch_answer a;

		for (int times = event == SWITCH_DONE ? 1 + rand() % 2 : rand() % 2; times > 0; times--)
			carry_out(&w, step);
		if (step == SWITCH_SWITCHED && rand() % 4 == 0)
			event = rand() % 2 ? SWITCH_CONFIRM : SWITCH_ROLL_BACK;
		a = switch_next(step, event, facts);
		if (a.refused)
			continue;
		w.confirmed |= a.step == SWITCH_CONFIRMING;
		step = a.step;
	}
	assert_int_equal(step, SWITCH_NONE);
	/* One system is left, the one that was wanted, and no remains of the other. */
	assert_int_equal(w.new_in_use, w.confirmed);
	assert_int_equal(w.new_there, w.confirmed);
	assert_int_equal(w.old_there, !w.confirmed);
	if (!w.confirmed)
		assert_int_equal(w.on, facts.ran);
}

static void test_walks(void **state)
{
	for (unsigned seed = 0; seed < 20000; seed++)
		walk(seed);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_document),
	    cmocka_unit_test(test_rules),
	    cmocka_unit_test(test_way_back),
	    cmocka_unit_test(test_walks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
