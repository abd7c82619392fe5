#include "job/job.h"

#include <stddef.h>

#include "base/util.h"

const char *const job_events[] = {"start",    "stop",          "stage_done", "fail", "expire",
				  "cut_over", "cut_over_sync", "delete",     NULL};

static struct job_answer go(enum model_job_state state, enum model_job_stage stage, unsigned actions)
{
	return (struct job_answer){state, stage, actions, NULL};
}

/* A job that failed while sending prepares again (the destination may be full by now); what comes after the
 * copy is not undone by its own failure, so the job goes on there. A test is for finding out: it begins anew. */
static enum model_job_stage stage_to_resume(enum model_job_stage stage, unsigned kind)
{
	if (kind & JOB_TESTING)
		return JOB_PREPARING;
	return stage == JOB_PROCESSING || stage == JOB_CLEANING ? stage : JOB_PREPARING;
}

static struct job_answer all_done(unsigned kind)
{
	if (!(kind & JOB_TESTING))
		return go(JOB_FINISHED, JOB_NO_STAGE, JOB_DO_END_RUN);
	return kind & JOB_MIGRATES ? go(JOB_RUNNING, JOB_PREPARING, JOB_DO_RUN | JOB_DO_END_RUN)
				   : go(JOB_READY, JOB_NO_STAGE, JOB_DO_END_RUN);
}

static struct job_answer stage_done(enum model_job_stage stage, unsigned kind, struct job_answer same)
{
	switch (stage) {
	case JOB_PREPARING:
		return go(JOB_RUNNING, JOB_SYNCING, JOB_DO_RUN);
	case JOB_SYNCING:
		return go(JOB_RUNNING, JOB_PROCESSING, JOB_DO_RUN);
	case JOB_PROCESSING:
		return kind & JOB_INCREMENTAL && !(kind & JOB_TESTING) ? go(JOB_WAITING, JOB_NO_STAGE, JOB_DO_END_RUN)
								       : go(JOB_RUNNING, JOB_CLEANING, JOB_DO_RUN);
	case JOB_CLEANING:
		return all_done(kind);
	case JOB_NO_STAGE:
	case JOB_STAGES:
		break;
	}
	same.refused = "the job has no stage that could end";
	return same;
}

static struct job_answer running_step(enum model_job_stage stage, unsigned kind, enum job_event event,
				      struct job_answer same)
{
	switch (event) {
	case JOB_START:
		same.refused = "the job is already running";
		return same;
	case JOB_STOP:
		if (stage == JOB_SYNCING)
			return go(JOB_STOPPED, JOB_NO_STAGE, JOB_DO_CANCEL | JOB_DO_END_RUN);
		same.refused = "a job can be stopped only while it is syncing; wait for the next stage or the end";
		return same;
	case JOB_STAGE_DONE:
		return stage_done(stage, kind, same);
	case JOB_FAIL:
		return go(JOB_IN_ERROR, stage, JOB_DO_END_RUN);
	case JOB_EXPIRE:
		same.refused = "a running job doesn't expire";
		return same;
	case JOB_CUT_OVER:
	case JOB_CUT_OVER_SYNC:
		same.refused = "a job can be cut over only while it is waiting";
		return same;
	case JOB_DELETE:
		same.refused = "a running job can't be deleted; stop it first";
		return same;
	case JOB_EVENTS:
		break;
	}
	never("job event");
}

/* START, CUT_OVER and DELETE of the states in which nothing happens by itself. */
static struct job_answer resting_step(enum model_job_state state, enum model_job_stage stage, unsigned kind,
				      enum job_event event, struct job_answer same)
{
	bool startable = state == JOB_READY || state == JOB_STOPPED || state == JOB_IN_ERROR || state == JOB_WAITING;

	switch (event) {
	case JOB_START:
		if (startable)
			return go(JOB_RUNNING, stage_to_resume(stage, kind), JOB_DO_RUN);
		same.refused = state == JOB_FINISHED ? "the job is finished; create a new one"
						     : "the job has expired; delete it and create a new one";
		return same;
	case JOB_STOP:
		if (state == JOB_WAITING)
			return go(JOB_STOPPED, JOB_NO_STAGE, 0);
		same.refused = "the job is not running";
		return same;
	case JOB_STAGE_DONE:
	case JOB_FAIL:
		same.refused = "the job is not running";
		return same;
	case JOB_EXPIRE:
		if (state == JOB_READY || state == JOB_STOPPED || state == JOB_IN_ERROR)
			return go(JOB_EXPIRED, JOB_NO_STAGE, 0);
		same.refused = "a job in this state doesn't expire";
		return same;
	case JOB_CUT_OVER:
	case JOB_CUT_OVER_SYNC:
		if (state == JOB_WAITING)
			return go(JOB_RUNNING, event == JOB_CUT_OVER ? JOB_CLEANING : JOB_PREPARING, JOB_DO_RUN);
		same.refused = "a job can be cut over only while it is waiting";
		return same;
	case JOB_DELETE:
		return go(JOB_DELETING, JOB_NO_STAGE, JOB_DO_REMOVE);
	case JOB_EVENTS:
		break;
	}
	never("job event");
}

struct job_answer job_step(enum model_job_state state, enum model_job_stage stage, unsigned kind, enum job_event event)
{
	struct job_answer same = {state, stage, 0, NULL};

	if (state == JOB_RUNNING)
		return running_step(stage, kind, event, same);
	if (state == JOB_DELETING) {
		same.refused = "the job is being deleted";
		return same;
	}
	return resting_step(state, stage, kind, event, same);
}

bool job_is_unfinished(enum model_job_state state)
{
	return state != JOB_FINISHED && state != JOB_DELETING;
}
