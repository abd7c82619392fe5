/*
 * Figures for a monitoring system, in the text format of Prometheus (its "Exposition formats", version 0.0.4). Names
 * end in their unit; what only grows ends in _total.
 */
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "api/api_int.h"
#include "base/io.h"
#include "base/util.h"
#include "version.h"

static const double bounds[API_SECONDS] = {0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10};

void api_count(struct api *a, int status, double seconds)
{
	struct api_counts *c = &a->counts;

	atomic_fetch_add(&c->answers[status / 100 < 6 ? status / 100 : 0], 1);
	atomic_fetch_add(&c->microseconds, (uint64_t)(MAX(seconds, 0.0) * 1e6));
	for (size_t i = 0; i < API_SECONDS; i++)
		if (seconds <= bounds[i]) {
			atomic_fetch_add(&c->within[i], 1);
			break;
		}
}

static void describe(struct str *b, const char *name, const char *type, const char *help)
{
	str_addf(b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

static void add_answers(struct str *b, struct api_counts *c)
{
	uint64_t all = 0, within = 0;

	describe(b, "replant_http_answers_total", "counter", "Answers of the API by the first digit of their status.");
	for (int i = 1; i < 6; i++) {
		uint64_t n = atomic_load(&c->answers[i]);

		str_addf(b, "replant_http_answers_total{status=\"%dxx\"} %llu\n", i, (unsigned long long)n);
		all += n;
	}
	describe(b, "replant_http_request_duration_seconds", "histogram", "From a request's head to its answer.");
	for (size_t i = 0; i < API_SECONDS; i++) {
		within += atomic_load(&c->within[i]);
		str_addf(b, "replant_http_request_duration_seconds_bucket{le=\"%g\"} %llu\n", bounds[i],
			 (unsigned long long)within);
	}
	str_addf(b,
		 "replant_http_request_duration_seconds_bucket{le=\"+Inf\"} %llu\n"
		 "replant_http_request_duration_seconds_sum %.6f\nreplant_http_request_duration_seconds_count %llu\n",
		 (unsigned long long)MAX(all, within), (double)atomic_load(&c->microseconds) / 1e6,
		 (unsigned long long)MAX(all, within));
}

static int no_row(void *arg, void *row)
{
	return 0;
}

static int count_rows(struct store *s, const struct model_noun *n, const char *column, const char *value, uint64_t *ret,
		      struct err *e)
{
	const struct store_filter f = {column, value, STORE_EQUAL};
	const struct store_query sq = {.filters = &f, .nfilters = column != NULL, .limit = 1};

	return s->ops->list(s, n, &sq, no_row, NULL, ret, e);
}

static int add_rows(struct str *b, struct store *s, const struct model_noun *n, const char *name, const char *column,
		    const char *const *words, struct err *e)
{
	for (const char *const *w = words; *w; w++) {
		uint64_t count = 0;
		int r = **w ? count_rows(s, n, column, *w, &count, e) : 0;

		if (r < 0)
			return r;
		if (**w)
			str_addf(b, "%s{%s=\"%s\"} %llu\n", name, column, *w, (unsigned long long)count);
	}
	return 0;
}

static int add_nouns(struct str *b, struct store *s, struct err *e)
{
	uint64_t images = 0, first = 0, last = 0;
	int r;

	describe(b, "replant_sources", "gauge", "Servers that are enrolled.");
	r = add_rows(b, s, &model_sources, "replant_sources", "state", model_source_states, e);
	describe(b, "replant_jobs", "gauge", "Jobs by state.");
	if (r == 0)
		r = add_rows(b, s, &model_jobs, "replant_jobs", "state", model_job_states, e);
	describe(b, "replant_jobs_in_stage", "gauge", "Jobs that run, or stopped with an error, by stage.");
	if (r == 0)
		r = add_rows(b, s, &model_jobs, "replant_jobs_in_stage", "stage", model_job_stages, e);
	describe(b, "replant_runs_kept", "gauge", "Runs of the jobs that are there, by outcome.");
	if (r == 0)
		r = add_rows(b, s, &model_runs, "replant_runs_kept", "state", model_run_states, e);
	if (r == 0)
		r = count_rows(s, &model_images, NULL, NULL, &images, e);
	if (r == 0)
		r = s->ops->event_range(s, &first, &last, e);
	describe(b, "replant_images", "gauge", "Images.");
	str_addf(b, "replant_images %llu\n", (unsigned long long)images);
	describe(b, "replant_events_total", "counter", "Events of this center's whole life.");
	str_addf(b, "replant_events_total %llu\n", (unsigned long long)last);
	return r;
}

static void add_region(struct api_request *q, struct str *b)
{
	const struct api_engine *en = &q->api->s.engine;
	_cleanup_json_ json_t *info = en->region_info(en->arg, "local");

	if (!info)
		return;
	describe(b, "replant_region_free_bytes", "gauge", "Room for replicas and images.");
	str_addf(b, "replant_region_free_bytes{region=\"local\"} %lld\n",
		 (long long)json_integer_value(json_object_get(info, "free")));
	describe(b, "replant_region_size_bytes", "gauge", "That, and what is used of it.");
	str_addf(b, "replant_region_size_bytes{region=\"local\"} %lld\n",
		 (long long)json_integer_value(json_object_get(info, "total")));
}

/* The names that client libraries give. */
static void add_process(struct str *b)
{
	_cleanup_free_ char *statm = NULL;
	unsigned long pages = 0;
	struct rusage u = {0};

	if (io_read_file("/proc/self/statm", 256, &statm, NULL, NULL) == 0)
		sscanf(statm, "%*u %lu", &pages);
	getrusage(RUSAGE_SELF, &u);
	describe(b, "process_resident_memory_bytes", "gauge", "Memory of the center.");
	str_addf(b, "process_resident_memory_bytes %llu\n",
		 (unsigned long long)pages * (unsigned long long)sysconf(_SC_PAGESIZE));
	describe(b, "process_cpu_seconds_total", "counter", "Processor time of the center.");
	str_addf(b, "process_cpu_seconds_total %.3f\n",
		 (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
		     (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6);
}

int api_get_metrics(struct api_request *q)
{
	struct str b = {0};
	struct err e = {0};
	int r;

	describe(&b, "replant_build_info", "gauge", "Always 1.");
	str_addf(&b, "replant_build_info{version=\"%s\"} 1\n", REPLANT_VERSION);
	r = add_nouns(&b, q->api->s.store, &e);
	add_region(q, &b);
	api_metrics_holdings(q, &b);
	add_answers(&b, &q->api->counts);
	add_process(&b);
	if (r < 0 || !str_ok(&b)) {
		str_release(&b);
		return r < 0 ? api_fail(q, &e) : api_refuse(q, 500, "internal", NULL, "out of memory");
	}
	q->response = MHD_create_response_from_buffer(b.len, b.s, MHD_RESPMEM_MUST_FREE);
	if (!q->response) {
		str_release(&b);
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	}
	MHD_add_response_header(q->response, "Content-Type", "text/plain; version=0.0.4; charset=utf-8");
	q->status = 200;
	return 0;
}
