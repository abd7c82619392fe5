/* Every state x stage x event; docs/job-states.md is what this prints, and must be up to date. */
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

static const char *const stage_names[] = {"", "preparing", "syncing", "processing", "cleaning"};

/* The stages a state can be in. */
static bool stage_fits(int state, int stage)
{
	if (state == JOB_RUNNING)
		return stage != JOB_NO_STAGE;
	return stage == JOB_NO_STAGE || state == JOB_IN_ERROR;
}

static void add_place(struct str *b, int state, int stage)
{
	str_addf(b, stage ? "%s (%s)" : "%s", model_job_states[state], stage_names[stage]);
}

static const struct {
	unsigned kind;
	const char *name;
} kinds[] = {{0, ""},
	     {JOB_INCREMENTAL, " (incremental)"},
	     {JOB_TESTING, " (test)"},
	     {JOB_TESTING | JOB_MIGRATES, " (test and migrate)"},
	     {JOB_INCREMENTAL | JOB_TESTING, " (incremental, test)"},
	     {JOB_INCREMENTAL | JOB_TESTING | JOB_MIGRATES, " (incremental, test and migrate)"}};

static bool same_answer(struct job_answer a, struct job_answer b)
{
	return a.state == b.state && a.stage == b.stage && a.actions == b.actions && !a.refused == !b.refused;
}

/* Is the row of that kind one that others have said already? What is incremental and tested is like what is tested. */
static bool is_told(int state, int stage, size_t k, int event)
{
	struct job_answer a = job_step(state, stage, kinds[k].kind, event);

	return k > 0 && same_answer(a, job_step(state, stage, kinds[k > 3 ? k - 2 : 0].kind, event));
}

static void add_row(struct str *b, int state, int stage, size_t k, int event)
{
	struct job_answer a = job_step(state, stage, kinds[k].kind, event);

	str_add(b, "| ");
	add_place(b, state, stage);
	str_addf(b, " | %s%s | ", job_events[event], kinds[k].name);
	if (a.refused) {
		str_addf(b, "refused: %s | |\n", a.refused);
		return;
	}
	add_place(b, a.state, a.stage);
	str_addf(b, " |%s%s%s%s |\n", a.actions & JOB_DO_RUN ? " run" : "", a.actions & JOB_DO_CANCEL ? " cancel" : "",
		 a.actions & JOB_DO_END_RUN ? " end_run" : "", a.actions & JOB_DO_REMOVE ? " remove" : "");
}

static char *make_table(void)
{
	struct str b = {0};

	str_add(&b, "# States of a job\n\n"
		    "What each event does in each state; printed by `tests/unit/test_job.c` from `src/job/job.c` "
		    "(`REPLANT_UPDATE=1` writes it anew).\nActions: run: a runner carries the job on; cancel: "
		    "its current "
		    "call gives up; end_run: the run is closed;\nremove: what the job holds is freed and the job "
		    "forgotten.\n\n"
		    "| state | event | next | actions |\n| --- | --- | --- | --- |\n");
	for (int state = 0; state < JOB_STATES; state++)
		for (int stage = 0; stage < JOB_STAGES; stage++)
			for (int event = 0; stage_fits(state, stage) && event < JOB_EVENTS; event++)
				for (size_t k = 0; k < ARRAY_SIZE(kinds); k++)
					if (!is_told(state, stage, k, event))
						add_row(&b, state, stage, k, event);
	return str_take(&b);
}

static void test_document(void **state)
{
	_cleanup_free_ char *table = make_table(), *path = str_printf("%s/job-states.md", REPLANT_DOCS), *text = NULL;

	assert_non_null(table);
	if (getenv("REPLANT_UPDATE"))
		assert_int_equal(io_write_file_atomic(path, table, strlen(table), 0644, NULL), 0);
	assert_int_equal(io_read_file(path, 1 << 20, &text, NULL, NULL), 0);
	assert_string_equal(text, table);
}

/* What holds for every answer, reachable or not. */
static void test_rules(void **state)
{
	for (int s = 0; s < JOB_STATES; s++)
		for (int stage = 0; stage < JOB_STAGES; stage++)
			for (int event = 0; event < JOB_EVENTS; event++)
				for (size_t k = 0; k < ARRAY_SIZE(kinds); k++) {
					struct job_answer a = job_step(s, stage, kinds[k].kind, event);
					bool goes_on = kinds[k].kind & JOB_MIGRATES && s == JOB_RUNNING &&
						       stage == JOB_CLEANING && event == JOB_STAGE_DONE;

					if (a.refused) {
						assert_true(strlen(a.refused) > 10);
						assert_int_equal(a.state, s);
						assert_int_equal(a.stage, stage);
						assert_int_equal(a.actions, 0);
						continue;
					}
					assert_true(stage_fits(a.state, a.stage));
					/* Whoever runs has a runner, and nobody else gets one. */
					assert_int_equal(a.state == JOB_RUNNING, !!(a.actions & JOB_DO_RUN));
					/* A run ends when running ends, or a test goes over into the migration. */
					assert_int_equal((s == JOB_RUNNING && a.state != JOB_RUNNING) || goes_on,
							 !!(a.actions & JOB_DO_END_RUN));
					/* A test makes nothing that would be the end of a job, and lets it wait for
					 * nothing. */
					assert_false(kinds[k].kind & JOB_TESTING &&
						     (a.state == JOB_FINISHED || (a.state == JOB_WAITING)));
					assert_int_equal(a.state == JOB_DELETING, !!(a.actions & JOB_DO_REMOVE));
				}
}

/* Table 2.3 of the requirements, said the other way round: who may do what. */
static void test_allowed(void **state)
{
	static const struct {
		enum job_event event;
		const char *states; /* a letter each: r R s e f w x d */
	} rows[] = {
	    {JOB_START, "r-se-w--"},  {JOB_STOP, "-----w--"},          {JOB_EXPIRE, "r-se----"},
	    {JOB_DELETE, "r-sefwx-"}, {JOB_CUT_OVER, "-----w--"},      {JOB_STAGE_DONE, "--------"},
	    {JOB_FAIL, "--------"},   {JOB_CUT_OVER_SYNC, "-----w--"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		for (int s = 0; s < JOB_STATES; s++)
			if (s != JOB_RUNNING)
				assert_int_equal(!job_step(s, JOB_NO_STAGE, 0, rows[i].event).refused,
						 rows[i].states[s] != '-');
	for (int stage = JOB_PREPARING; stage < JOB_STAGES; stage++) {
		assert_int_equal(!job_step(JOB_RUNNING, stage, 0, JOB_STOP).refused, stage == JOB_SYNCING);
		assert_non_null(job_step(JOB_RUNNING, stage, 0, JOB_DELETE).refused);
		assert_non_null(job_step(JOB_RUNNING, stage, 0, JOB_EXPIRE).refused);
		assert_non_null(job_step(JOB_RUNNING, stage, 0, JOB_START).refused);
		assert_int_equal(job_step(JOB_RUNNING, stage, 0, JOB_FAIL).state, JOB_IN_ERROR);
		assert_int_equal(job_step(JOB_RUNNING, stage, 0, JOB_FAIL).stage, stage);
	}
}

/* From every state that can be reached a person can get to the end or get rid of it; no dead ends but
 * `finished`. */
static void test_ways(void **state)
{
	static const enum model_job_stage order[] = {JOB_PREPARING, JOB_SYNCING, JOB_PROCESSING, JOB_CLEANING};
	struct job_answer a = job_step(JOB_READY, JOB_NO_STAGE, 0, JOB_START);

	for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
		assert_int_equal(a.state, JOB_RUNNING);
		assert_int_equal(a.stage, order[i]);
		/* A failure here resumes at the stage, or at the copy's beginning. */
		struct job_answer failed = job_step(a.state, a.stage, 0, JOB_FAIL);
		struct job_answer again = job_step(failed.state, failed.stage, 0, JOB_START);

		assert_int_equal(again.stage, order[i] <= JOB_SYNCING ? JOB_PREPARING : order[i]);
		a = job_step(a.state, a.stage, 0, JOB_STAGE_DONE);
	}
	assert_int_equal(a.state, JOB_FINISHED);
	a = job_step(JOB_RUNNING, JOB_PROCESSING, JOB_INCREMENTAL, JOB_STAGE_DONE);
	assert_int_equal(a.state, JOB_WAITING);
	assert_int_equal(job_step(a.state, a.stage, JOB_INCREMENTAL, JOB_CUT_OVER).stage, JOB_CLEANING);
	assert_int_equal(job_step(a.state, a.stage, JOB_INCREMENTAL, JOB_CUT_OVER_SYNC).stage, JOB_PREPARING);
}

/* A test goes through the same stages; behind them the job is ready again, or begins the migration. It never goes on in
 * the middle: what it found last time is what it is to find out. */
static void test_tests(void **state)
{
	static const enum model_job_stage order[] = {JOB_PREPARING, JOB_SYNCING, JOB_PROCESSING, JOB_CLEANING};

	for (size_t k = 2; k < ARRAY_SIZE(kinds); k++) {
		unsigned kind = kinds[k].kind;
		struct job_answer a = job_step(JOB_READY, JOB_NO_STAGE, kind, JOB_START);

		for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
			struct job_answer failed = job_step(a.state, a.stage, kind, JOB_FAIL);

			assert_int_equal(a.state, JOB_RUNNING);
			assert_int_equal(a.stage, order[i]);
			assert_int_equal(failed.state, JOB_IN_ERROR);
			assert_int_equal(job_step(failed.state, failed.stage, kind, JOB_START).stage, JOB_PREPARING);
			a = job_step(a.state, a.stage, kind, JOB_STAGE_DONE);
		}
		assert_int_equal(a.state, kind & JOB_MIGRATES ? JOB_RUNNING : JOB_READY);
		assert_int_equal(a.stage, kind & JOB_MIGRATES ? JOB_PREPARING : JOB_NO_STAGE);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_document), cmocka_unit_test(test_rules), cmocka_unit_test(test_allowed),
	    cmocka_unit_test(test_ways),     cmocka_unit_test(test_tests),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
