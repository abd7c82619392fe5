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

static void add_row(struct str *b, int state, int stage, bool incremental, int event)
{
	struct job_answer a = job_step(state, stage, incremental, event);

	str_add(b, "| ");
	add_place(b, state, stage);
	str_addf(b, " | %s%s | ", job_events[event], incremental ? " (incremental)" : "");
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
			for (int event = 0; stage_fits(state, stage) && event < JOB_EVENTS; event++) {
				struct job_answer once = job_step(state, stage, false, event);
				struct job_answer more = job_step(state, stage, true, event);

				add_row(&b, state, stage, false, event);
				if (once.state != more.state || once.stage != more.stage)
					add_row(&b, state, stage, true, event);
			}
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
				for (int inc = 0; inc < 2; inc++) {
					struct job_answer a = job_step(s, stage, inc, event);

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
					/* A run ends when running ends, and only then. */
					assert_int_equal(s == JOB_RUNNING && a.state != JOB_RUNNING,
							 !!(a.actions & JOB_DO_END_RUN));
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
				assert_int_equal(!job_step(s, JOB_NO_STAGE, false, rows[i].event).refused,
						 rows[i].states[s] != '-');
	for (int stage = JOB_PREPARING; stage < JOB_STAGES; stage++) {
		assert_int_equal(!job_step(JOB_RUNNING, stage, false, JOB_STOP).refused, stage == JOB_SYNCING);
		assert_non_null(job_step(JOB_RUNNING, stage, false, JOB_DELETE).refused);
		assert_non_null(job_step(JOB_RUNNING, stage, false, JOB_EXPIRE).refused);
		assert_non_null(job_step(JOB_RUNNING, stage, false, JOB_START).refused);
		assert_int_equal(job_step(JOB_RUNNING, stage, false, JOB_FAIL).state, JOB_IN_ERROR);
		assert_int_equal(job_step(JOB_RUNNING, stage, false, JOB_FAIL).stage, stage);
	}
}

/* From every state that can be reached a person can get to the end or get rid of it; no dead ends but
 * `finished`. */
static void test_ways(void **state)
{
	static const enum model_job_stage order[] = {JOB_PREPARING, JOB_SYNCING, JOB_PROCESSING, JOB_CLEANING};
	struct job_answer a = job_step(JOB_READY, JOB_NO_STAGE, false, JOB_START);

	for (size_t i = 0; i < ARRAY_SIZE(order); i++) {
		assert_int_equal(a.state, JOB_RUNNING);
		assert_int_equal(a.stage, order[i]);
		/* A failure here resumes at the stage, or at the copy's beginning. */
		struct job_answer failed = job_step(a.state, a.stage, false, JOB_FAIL);
		struct job_answer again = job_step(failed.state, failed.stage, false, JOB_START);

		assert_int_equal(again.stage, order[i] <= JOB_SYNCING ? JOB_PREPARING : order[i]);
		a = job_step(a.state, a.stage, false, JOB_STAGE_DONE);
	}
	assert_int_equal(a.state, JOB_FINISHED);
	a = job_step(JOB_RUNNING, JOB_PROCESSING, true, JOB_STAGE_DONE);
	assert_int_equal(a.state, JOB_WAITING);
	assert_int_equal(job_step(a.state, a.stage, true, JOB_CUT_OVER).stage, JOB_CLEANING);
	assert_int_equal(job_step(a.state, a.stage, true, JOB_CUT_OVER_SYNC).stage, JOB_PREPARING);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_document),
	    cmocka_unit_test(test_rules),
	    cmocka_unit_test(test_allowed),
	    cmocka_unit_test(test_ways),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
