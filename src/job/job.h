/*
 * What a job may do: a pure function of state, stage and event. It does no I/O and knows no clock; the engine
 * carries out what it answers and writes down the new state in the same transaction. docs/job-states.md is
 * its table, printed by the test.
 */
#pragma once

#include <stdbool.h>

#include "model/model.h"

enum job_event {
	JOB_START,         /* a person, or a schedule */
	JOB_STOP,          /* a person: pause */
	JOB_STAGE_DONE,    /* the runner: the stage is complete */
	JOB_FAIL,          /* the runner: the stage can't go on */
	JOB_EXPIRE,        /* the clock: the job's time is over */
	JOB_CUT_OVER,      /* a person: an incremental job ends with what it has */
	JOB_CUT_OVER_SYNC, /* a person: it ends after one more run */
	JOB_DELETE,        /* a person, or the clock some days after expiry */
	JOB_EVENTS,        /* how many */
};
extern const char *const job_events[]; /* "start", ... NULL */

enum job_action {
	JOB_DO_RUN = 1 << 0,     /* see that a runner carries the job on from its stage */
	JOB_DO_CANCEL = 1 << 1,  /* the runner's current call is to give up */
	JOB_DO_END_RUN = 1 << 2, /* the run is over: close its row */
	JOB_DO_REMOVE = 1 << 3,  /* free what the job holds, then forget it */
};

/* What a job is, as far as its way depends on it; several at once. */
enum job_kind {
	JOB_INCREMENTAL = 1 << 0, /* waits for the next run where others clean up; in its last run it is like them */
	JOB_TESTING = 1 << 1,     /* its run is a migration test: at the end the job is ready again, */
	JOB_MIGRATES = 1 << 2,    /* or goes on with the migration */
};

struct job_answer {
	enum model_job_state state;
	enum model_job_stage stage;
	unsigned actions;    /* enum job_action */
	const char *refused; /* NULL, or why nothing changes: a sentence that says what to do */
};

/* kind: enum job_kind */
struct job_answer job_step(enum model_job_state state, enum model_job_stage stage, unsigned kind, enum job_event event);
/* Does a job in that state keep its source busy? */
bool job_is_unfinished(enum model_job_state state);
