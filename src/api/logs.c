/* What was said in a job's runs: for people who look, and as one file for people who help. */
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

int api_list_logs(struct api_request *q)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	const struct api_engine *en = &q->api->s.engine;
	json_t *list;

	if (api_row(q, &model_jobs, &job) < 0)
		return -1;
	list = en->job_logs(en->arg, q->id);
	return api_answer(q, 200,
			  list ? json_pack("{s:o, s:i}", "items", list, "total", (int)json_array_size(list)) : NULL);
}

int api_get_log(struct api_request *q)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	_cleanup_(str_release) struct str text = {0};
	const struct api_engine *en = &q->api->s.engine;
	const char *part = api_query(q, "part");
	uint64_t run = 0, since = 0, end = 0;

	if (api_row(q, &model_jobs, &job) < 0 || api_query_number(q, "run", 1, INT64_MAX, &run) < 0 ||
	    api_query_number(q, "since", 0, INT64_MAX, &since) < 0 ||
	    en->job_log(en->arg, q->id, run, part ? part : "agent", since, &text, &end, &q->fault) < 0)
		return -1;
	return api_answer_log(q, &text, end);
}

int api_get_bundle(struct api_request *q)
{
	const struct api_engine *en = &q->api->s.engine;
	char name[ID_MAX + 32];
	int fd;

	if (en->job_bundle(en->arg, q->id, q->scope, api_scope_has, &fd, &q->fault) < 0)
		return -1;
	snprintf(name, sizeof(name), "replant-%s.tar.gz", q->id);
	return api_answer_fd(q, fd, "application/gzip", name);
}
