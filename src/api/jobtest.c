/* Migration tests: what a job's next start does, and the picture of the last one. */

#include "api/api_int.h"
#include "base/util.h"

enum model_testing api_testing_of(int execution)
{
	return execution == TEST_NOW ? TEST_ONLY : execution == TEST_AND_MIGRATE_NOW ? TEST_AND_MIGRATE : NO_TEST;
}

/* A test comes before the migration: what that has copied, or is about to make an image of, is none of its business. */
int api_set_testing(struct api_request *q, struct model_job *job, enum model_testing testing)
{
	if (job->testing == (int)testing)
		return 0;
	if (job->state != JOB_READY && job->state != JOB_STOPPED && job->state != JOB_IN_ERROR)
		return api_refuse(q, 409, "invalid_state", "test",
				  "whether it is tested can't change any more: the job is %s",
				  model_job_states[job->state]);
	if (testing != NO_TEST && job->number > 0)
		return api_refuse(q, 409, "invalid_state", "test",
				  "the job's migration has begun; a test goes before it (make another job to test the "
				  "server)");
	job->testing = (int)testing;
	/* One way is never gone on with on the other. */
	job->stage = JOB_NO_STAGE;
	return 0;
}

int api_get_test_screenshot(struct api_request *q)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	const struct api_engine *en = &q->api->s.engine;
	char path[4300];

	if (api_row(q, &model_jobs, &job) < 0)
		return -1;
	en->test_picture(en->arg, job.id, path, sizeof(path));
	return api_answer_picture(q, path, "job", job.id, "picture of a migration test; test it first");
}
