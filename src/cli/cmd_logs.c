/* `jobs logs` and `jobs bundle`: what was said in the runs of a job. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/id.h"
#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

#define LOGS_TEXTS 64u

/* One text, and how much of it has been printed. */
struct text {
	char part[16];
	double run, at;
};

struct logs {
	struct cli *c;
	char *id; /* of the job */
	struct text v[LOGS_TEXTS];
	size_t n, last; /* last: whose lines were printed, n: nobody's */
	bool many;
};

static size_t collect(char *p, size_t size, size_t n, void *arg)
{
	struct str *b = arg;

	if (b->len + n > CLI_BODY_MAX)
		return 0;
	str_add_mem(b, p, n);
	return str_ok(b) ? n : 0;
}

/* Line by line: each is cleaned, none is cut. */
static void print_text(struct logs *l, size_t i, struct str *text)
{
	char *line = text->s, *end;

	if (!text->len)
		return;
	if (l->many && l->last != i)
		printf("%s==> %s, run %.0f <==\n", l->last == LOGS_TEXTS ? "" : "\n", l->v[i].part, l->v[i].run);
	l->last = i;
	for (; line < text->s + text->len; line = end + 1) {
		_cleanup_(str_release) struct str b = {0};

		end = line + strcspn(line, "\n");
		*end = '\0';
		out_clean(&b, line);
		puts(b.s ?: "");
	}
}

/* What has come since. */
static int print_news(struct logs *l, size_t i, struct err *e)
{
	struct text *t = &l->v[i];
	_cleanup_free_ char *path =
	    str_printf("/v1/jobs/%s/log?part=%s&run=%.0f&since=%.0f", l->id, t->part, t->run, t->at);
	_cleanup_(str_release) struct str text = {0};
	struct curl_header *h;
	uint64_t end;
	int r = path ? cli_http_stream(l->c, path, 0, collect, &text, e) : err_nomem(e);

	if (r == -ENOENT) /* gone as an old run's */
		return 0;
	if (r < 0)
		return r;
	if (curl_easy_header(l->c->curl, "Replant-Log-End", 0, CURLH_HEADER, -1, &h) != CURLHE_OK ||
	    str_u64(h->value, 0, INT64_MAX, &end) < 0)
		return err_set(e, -EPROTO, "what answers at '%s' is not a Replant center", l->c->url);
	print_text(l, i, &text);
	t->at = (double)end;
	return 0;
}

static bool is_wanted(const struct cli *c, const json_t *item, double newest)
{
	double run = get_num(item, "run", 0);

	return (!c->part || strcmp(c->part, get_str(item, "part")) == 0) &&
	       run == (c->run == CLI_UNSET ? newest : (double)c->run);
}

static void add_text(struct logs *l, const json_t *item)
{
	const char *part = get_str(item, "part");
	double run = get_num(item, "run", 0);

	for (size_t i = 0; i < l->n; i++)
		if (l->v[i].run == run && strcmp(l->v[i].part, part) == 0)
			return;
	/* It becomes part of a path. */
	if (l->n == LOGS_TEXTS || strspn(part, "abcdefghijklmnopqrstuvwxyz") != strlen(part) || strlen(part) > 15)
		return;
	snprintf(l->v[l->n].part, sizeof(l->v->part), "%s", part);
	l->v[l->n].run = run;
	l->n++;
}

/* Of the newest run, or the one that was asked for. */
static int find_texts(struct logs *l, const json_t *items)
{
	double newest = 0;
	const json_t *item;
	size_t i;

	json_array_foreach(items, i, item)
	{
		if (!l->c->part || strcmp(l->c->part, get_str(item, "part")) == 0)
			newest = MAX(newest, get_num(item, "run", 0));
	}
	json_array_foreach(items, i, item)
	{
		if (is_wanted(l->c, item, newest))
			add_text(l, item);
	}
	return 0;
}

/* Once more: what there is, and its news. */
static int look(struct logs *l, struct cli_reply *r, struct err *e)
{
	_cleanup_free_ char *path = str_printf("/v1/jobs/%s/logs", l->id);
	int x = path ? cli_http(l->c, "GET", path, NULL, r, e) : err_nomem(e);

	if (x == 0)
		x = find_texts(l, get(r->json, "items"));
	for (size_t i = 0; x == 0 && i < l->n; i++)
		x = print_news(l, i, e);
	fflush(stdout);
	return x;
}

/* Until the job rests. Its state is asked first, so that what was said last is printed. */
static int follow(struct logs *l, struct err *e)
{
	struct cli_patience patience = {0};
	bool running = true;
	int x = 0;

	while (running) {
		_cleanup_reply_ struct cli_reply job = {0}, list = {0};
		_cleanup_free_ char *path = cli_path(&cli_job, l->id, "");

		x = path ? cli_http(l->c, "GET", path, NULL, &job, e) : err_nomem(e);
		if (x == 0)
			x = look(l, &list, e);
		if (x == -EAGAIN && cli_patience_wait(l->c, &patience, e) == 0)
			continue;
		if (x < 0)
			return x;
		cli_patience_ok(&patience);
		running = strcmp(get_str(job.json, "state"), "running") == 0;
		if (running)
			cli_sleep(1);
	}
	return x;
}

static bool options_fit(const struct cli *c)
{
	static const char *const parts[] = {"agent", "receiver", "conversion", "boot"};

	for (size_t i = 0; c->part && i < ARRAY_SIZE(parts); i++)
		if (strcmp(c->part, parts[i]) == 0)
			return true;
	if (c->part)
		out_error("--part '%s' is not agent, receiver, conversion or boot", c->part);
	return !c->part;
}

CLI_COMMAND(jobs_logs)
{
	_cleanup_reply_ struct cli_reply list = {0};
	_cleanup_free_ char *id = NULL;
	struct logs l = {.c = c, .last = LOGS_TEXTS, .many = !c->part};
	int x;

	if (!options_fit(c))
		return CLI_USAGE;
	x = cli_find(c, &cli_job, argv[0], &id, e);
	if (x < 0)
		return x;
	l.id = id;
	if (c->json) {
		_cleanup_free_ char *path = cli_path(&cli_job, id, "/logs");

		x = path ? cli_http(c, "GET", path, NULL, &list, e) : err_nomem(e);
		out_json(&list.body);
		return x;
	}
	x = c->follow ? follow(&l, e) : look(&l, &list, e);
	if (x == 0 && !l.n)
		fprintf(stderr, "There are no such logs of the job.\n");
	return x;
}

CLI_COMMAND(jobs_bundle)
{
	_cleanup_free_ char *id = NULL, *path = NULL, *file = NULL;
	int x = cli_find(c, &cli_job, argv[0], &id, e);

	if (x < 0)
		return x;
	path = cli_path(&cli_job, id, "/bundle");
	file = c->output ? strdup(c->output) : str_printf("replant-%s.tar.gz", id);
	if (!path || !file)
		return err_nomem(e);
	x = cli_download(c, path, file, UINT64_MAX, "bundle", e);
	if (x == 0)
		fprintf(stderr, "%s has what is known of the job, without secrets.\n", file);
	return x;
}
