/*
 * What a job may do: a pure function of state, stage and event. It does no I/O and knows no clock; the engine
 * carries out what it answers and writes down the new state in the same transaction. docs/job-states.md is
 * its table, printed by the test. Below: the same of an instance that is migrated onto.
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

/*
 * ---- switching an instance over, and back ----
 * What its disks hold before is the set "old", what they hold afterwards is "new". Each step is written down before it
 * is carried out, and may be carried out any number of times. docs/switch-states.md is the table.
 */
enum switch_step {
	SWITCH_NONE,          /* nothing is under way: the instance has one system */
	SWITCH_PREPARING,     /* the set "new" is made; the instance goes on with "old" */
	SWITCH_STOPPING,      /* the instance is turned off */
	SWITCH_USING,         /* "new" takes the place of "old" */
	SWITCH_STARTING,      /* the instance is turned on */
	SWITCH_JUDGING,       /* does the new system come up? */
	SWITCH_SWITCHED,      /* a person looks at it: both systems are there, nothing happens by itself */
	SWITCH_CONFIRMING,    /* "old" is removed */
	SWITCH_BACK_STOPPING, /* the way back: turned off */
	SWITCH_BACK_USING,    /* "old" takes its place again */
	SWITCH_BACK_STARTING, /* turned on, if it ran before */
	SWITCH_BACK_DROPPING, /* "new" is removed */
	SWITCH_STEPS,         /* how many */
};
extern const char *const switch_steps[]; /* "", "preparing", ... NULL */

enum switch_event {
	SWITCH_DONE,      /* the step was carried out */
	SWITCH_FAILED,    /* it can't be */
	SWITCH_ROLL_BACK, /* a person wants the old system */
	SWITCH_CONFIRM,   /* a person wants the new one, for good */
	SWITCH_EVENTS,    /* how many */
};
extern const char *const switch_events[];

struct switch_facts {
	bool ran;         /* the instance was on before */
	bool keep_failed; /* a new system that doesn't come up stays, for somebody to look at */
};

struct switch_answer {
	enum switch_step step;
	const char *refused; /* NULL, or why nothing changes: a sentence that says what to do */
};

struct switch_answer switch_next(enum switch_step step, enum switch_event event, struct switch_facts facts);
/* Is there something to carry out in it, or does it wait for a person? */
bool switch_is_work(enum switch_step step);
/* On the way to the old system. */
bool switch_is_back(enum switch_step step);
