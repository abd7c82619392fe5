/* `jobs doctor`: what is the matter with a job, in a sentence each, and what to do. Only looks. */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/id.h"
#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

struct doctor {
	struct cli *c;
	const json_t *job;
	json_t *findings; /* {"code", "text", "remedy"} */
};

static void find(struct doctor *d, const char *code, const char *remedy, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
static void find(struct doctor *d, const char *code, const char *remedy, const char *fmt, ...)
{
	_cleanup_(str_release) struct str b = {0};
	va_list ap;

	va_start(ap, fmt);
	out_vclean(&b, fmt, ap);
	va_end(ap);
	json_array_append_new(d->findings,
			      json_pack("{s:s, s:s, s:s?}", "code", code, "text", b.s ?: "", "remedy", remedy));
}

/* *ret is a new reference, NULL when there is no such thing. */
static int fetch(struct doctor *d, const char *noun, const char *id, json_t **ret, struct err *e)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *path = cli_is_id(id) ? str_printf("/v1/%s/%s", noun, id) : NULL;
	int x = path ? cli_http(d->c, "GET", path, NULL, &r, e) : err_nomem(e);

	if (x == 0)
		*ret = json_incref(r.json);
	return r.status == 404 ? 0 : x;
}

static bool job_is(const struct doctor *d, const char *state)
{
	return strcmp(get_str(d->job, "state"), state) == 0;
}

static void look_at_error(struct doctor *d)
{
	const char *remedy = cli_remedy(d->job);

	if (get(d->job, "error"))
		find(d, get_str(d->job, "error.code"), remedy, "%s", get_str(d->job, "error.message"));
}

static void look_at_state(struct doctor *d)
{
	if (job_is(d, "ready") && !get(d->job, "next_run"))
		find(d, "not_started", "Start it: replant jobs start", "the job was never started");
	else if (job_is(d, "stopped"))
		find(d, "stopped", "Start it: it goes on with what it has.", "somebody stopped the job");
	else if (job_is(d, "expired"))
		find(d, "expired", "Make a new job; give it more --valid-days.",
		     "the job expired and will be removed with all it has");
}

static int look_at_source(struct doctor *d, struct err *e)
{
	_cleanup_(str_release) struct str b = {0};
	_cleanup_json_ json_t *s = NULL;
	int r = job_is(d, "finished") ? 1 : fetch(d, "sources", get_str(d->job, "source"), &s, e);

	if (r != 0)
		return MIN(r, 0);
	if (!s) {
		find(d, "source_gone", "Enrol the server again and make a new job.",
		     "the server was removed from the center");
		return 0;
	}
	out_duration(&b, MAX(id_now() - get_num(s, "last_seen", 0), 0.0));
	if (strcmp(get_str(s, "state"), "unavailable") == 0)
		find(d, "source_offline",
		     "On the server: systemctl status replant-agent, and replant-agent status. It must reach the "
		     "center.",
		     "nothing was heard of the server '%s' for %s", get_str(s, "name"), b.s ?: "");
	return 0;
}

static int look_at_room(struct doctor *d, struct err *e)
{
	_cleanup_(str_release) struct str b = {0};
	_cleanup_json_ json_t *region = NULL;
	int r = fetch(d, "regions", "local", &region, e); /* images are made there, wherever they run */
	double free = get_num(region, "capacity.free", -1), total = get_num(region, "capacity.total", 0);

	if (r < 0 || job_is(d, "finished") || free < 0 || free > total / 20)
		return r;
	out_size(&b, free);
	find(d, "no_space", "Remove images or exports that nobody needs: replant images rm, replant exports rm.",
	     "region 'local' has only %s left", b.s ?: "");
	return 0;
}

static void look_at_pace(struct doctor *d)
{
	static const struct {
		const char *what, *remedy;
	} rows[] = {{"link", "Give it more of the line (replant jobs set --rate), or start it at a quieter time."},
		    {"disk", "The server's disk is the limit: start the job at a quieter time."},
		    {"cpu", "The server's processors are the limit: try --compression 0 or 1."}};
	const json_t *converges = get(d->job, "progress.converges");

	if (!job_is(d, "running") || !json_is_false(converges))
		return;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		if (strcmp(get_str(d->job, "progress.bottleneck"), rows[i].what) == 0)
			find(d, "does_not_converge", rows[i].remedy,
			     "the server writes faster than is sent: the last freeze will be long (expected %.1f s)",
			     get_num(d->job, "progress.expected_freeze_seconds", 0));
}

/* Of the newest run, as often as it was tried. */
static void look_at_attempts(struct doctor *d)
{
	size_t i, failed = 0;
	const json_t *run;
	double newest = 0;

	json_array_foreach(get(d->job, "runs"), i, run)
	{
		newest = i == 0 ? get_num(run, "number", 0) : newest;
		failed += get_num(run, "number", 0) == newest && strcmp(get_str(run, "state"), "failed") == 0;
	}
	if (failed > 2 && !job_is(d, "finished"))
		find(d, "tried_often", "See what the attempts failed with: replant jobs runs --json",
		     "this run failed %zu times already", failed);
}

static void doctor_print(const struct doctor *d)
{
	const json_t *f;
	size_t i;

	out_title(get_str(d->job, "name"), get_str(d->job, "id"));
	if (!json_array_size(d->findings))
		out_field("Finding", "nothing is wrong with it", OUT_GREEN);
	json_array_foreach(d->findings, i, f)
	{
		out_field("Finding", get_str(f, "text"), OUT_YELLOW);
		out_field("What to do", get_str(f, "remedy"), OUT_PLAIN);
		out_fieldf("Code", "%s", get_str(f, "code"));
	}
	if (json_array_size(d->findings))
		out_fieldf("More", "replant jobs logs %s, or, for somebody who is to help, replant jobs bundle %s",
			   get_str(d->job, "id"), get_str(d->job, "id"));
}

CLI_COMMAND(jobs_doctor)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_json_ json_t *findings = json_array(), *all = NULL;
	struct doctor d = {.c = c, .findings = findings};
	_cleanup_free_ char *id = NULL, *text = NULL;
	int x = cli_item(c, &cli_job, argv[0], "GET", "", NULL, &id, &r, e);

	if (x < 0)
		return x;
	d.job = r.json;
	look_at_error(&d);
	look_at_state(&d);
	x = look_at_source(&d, e);
	if (x == 0)
		x = look_at_room(&d, e);
	if (x < 0)
		return x;
	look_at_pace(&d);
	look_at_attempts(&d);
	if (c->json) {
		all = json_pack("{s:s, s:O}", "job", id, "findings", findings);
		text = all ? json_dumps(all, JSON_COMPACT) : NULL;
		if (!text)
			return err_nomem(e);
		puts(text);
	} else {
		doctor_print(&d);
	}
	return json_array_size(findings) ? CLI_FAILED : CLI_OK;
}
