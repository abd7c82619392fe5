/* Many jobs from a table: a line for each, its first line the names of what is given. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/csv.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

#define IMPORT_MAX (4u << 20)

/* Of the job itself; every other column is one of its parameters. */
static const char *const members[] = {"name", "description", "image_name", "region", "client_token", "execution", NULL};

struct import {
	struct cli *c;
	struct csv csv;
	size_t source; /* that column */
	json_t *sources, *templates;
};

static void import_release(struct import *im)
{
	csv_release(&im->csv);
	json_decref(im->sources);
	json_decref(im->templates);
}

static bool is_member(const char *name)
{
	for (const char *const *m = members; *m; m++)
		if (strcmp(*m, name) == 0)
			return true;
	return false;
}

static int read_table(struct import *im, const char *path, struct err *e)
{
	_cleanup_free_ char *text = NULL;
	size_t len = 0;
	int r = io_read_file(strcmp(path, "-") == 0 ? "/dev/stdin" : path, IMPORT_MAX, &text, &len, e);

	if (r < 0)
		return r;
	r = csv_parse(text, len, &im->csv, e);
	if (r < 0)
		return err_prefix(e, "'%s'", path);
	for (im->source = 0; im->source < im->csv.columns; im->source++)
		if (strcmp(csv_cell(&im->csv, 0, im->source), "source") == 0)
			return 0;
	return err_set(e, -EINVAL, "'%s': the first line has no column 'source'", path);
}

/* As people write them in a table; the center knows what it should be. */
static json_t *value_of(const char *text)
{
	uint64_t n;

	if (strcmp(text, "true") == 0 || strcmp(text, "yes") == 0)
		return json_true();
	if (strcmp(text, "false") == 0 || strcmp(text, "no") == 0)
		return json_false();
	return str_u64(text, 0, INT64_MAX, &n) == 0 ? json_integer((json_int_t)n) : json_string(text);
}

/* "env=prod;wave=2" */
static int put_tags(json_t *job, const char *text, struct err *e)
{
	_cleanup_free_ char *copy = strdup(text);
	json_t *tags = json_object();
	char *rest = NULL;

	if (json_object_set_new(job, "tags", tags) < 0 || !copy)
		return err_nomem(e);
	for (const char *tag = strtok_r(copy, ";", &rest); tag; tag = strtok_r(NULL, ";", &rest)) {
		int r = cli_tag_add(tags, tag + strspn(tag, " "), e);

		if (r < 0)
			return r;
	}
	return 0;
}

static int put_id(json_t *job, const char *key, const struct cli_noun *n, const json_t *items, const char *word,
		  struct err *e)
{
	const json_t *item = NULL;
	int r = cli_match(n, items, word, &item, e);

	return r < 0 ? r : json_object_set_new(job, key, json_string(get_str(item, "id"))) < 0 ? err_nomem(e) : 0;
}

static int put_at(json_t *job, const char *text, struct err *e)
{
	uint64_t t = cli_time(text);

	if (!t)
		return err_set(e, -EINVAL, "'%s' is no time such as 2027-01-31T03:00 or +2h", text);
	json_object_set_new(job, "execution", json_string("migrate_later"));
	return json_object_set_new(job, "start_at", json_integer((json_int_t)t)) < 0 ? err_nomem(e) : 0;
}

static int put_cell(const struct import *im, json_t *job, const char *name, const char *text, struct err *e)
{
	json_t *where = is_member(name) || strcmp(name, "valid_days") == 0 ? job : json_object_get(job, "parameters");
	json_t *value;

	if (!*text)
		return 0;
	if (strcmp(name, "source") == 0)
		return put_id(job, name, &cli_source, im->sources, text, e);
	if (strcmp(name, "template") == 0)
		return put_id(job, name, &cli_template, im->templates, text, e);
	if (strcmp(name, "tags") == 0)
		return put_tags(job, text, e);
	if (strcmp(name, "at") == 0)
		return put_at(job, text, e);
	value = is_member(name) ? json_string(text) : value_of(text);
	return json_object_set_new(where, name, value) < 0 ? err_set(e, -EINVAL, "'%s' is not valid UTF-8", name) : 0;
}

/* The job of a row; NULL with the error. */
static json_t *job_of(const struct import *im, size_t row, struct err *e)
{
	json_t *job = json_pack("{s:{}}", "parameters");

	for (size_t i = 0; i < im->csv.columns; i++)
		if (!job || put_cell(im, job, csv_cell(&im->csv, 0, i), csv_cell(&im->csv, row, i), e) < 0) {
			json_decref(job);
			return NULL;
		}
	if (!json_object_get(job, "source")) {
		err_set(e, -EINVAL, "no source is named");
		json_decref(job);
		return NULL;
	}
	if (im->c->start && !json_object_get(job, "execution"))
		json_object_set_new(job, "execution", json_string("migrate_now"));
	return job;
}

/* Names are looked up, all of them, before anything is made. */
static int prepare(struct import *im, json_t *jobs, struct err *e)
{
	size_t failed = 0;
	int r = cli_list(im->c, &cli_source, &im->sources, e);

	if (r == 0)
		r = cli_list(im->c, &cli_template, &im->templates, e);
	if (r < 0)
		return r;
	for (size_t row = 1; row < im->csv.rows; row++) {
		struct err why = {0};
		json_t *job = job_of(im, row, &why);

		if (!job)
			out_error("line %zu: %s", im->csv.lines[row], why.msg);
		failed += !job;
		if (job && json_array_append_new(jobs, job) < 0)
			return err_nomem(e);
	}
	return failed ? err_set(e, -EINVAL, "%zu of %zu lines are wrong; no job was made", failed, im->csv.rows - 1)
		      : 0;
}

static bool make(const struct import *im, size_t row, json_t *job)
{
	_cleanup_reply_ struct cli_reply r = {0};
	struct cli *c = im->c;
	struct err e = {0};
	int x = cli_http(c, "POST", cli_job.path, job, &r, &e);

	if (x < 0)
		out_error("line %zu: %s", im->csv.lines[row], e.msg);
	else if (c->json)
		out_json(&r.body);
	else
		cli_done(c, &r, "job '%s' %s: %s", get_str(r.json, "name"),
			 r.status == 200           ? "was there already"
			 : get(r.json, "next_run") ? "created, it starts by itself"
			 : c->start                ? "created and started"
						   : "created",
			 get_str(r.json, "id"));
	return x == 0;
}

CLI_COMMAND(jobs_import)
{
	_cleanup_(import_release) struct import im = {.c = c};
	_cleanup_json_ json_t *jobs = json_array();
	size_t row, failed = 0;
	json_t *job;
	int r = read_table(&im, argv[0], e);

	if (r == 0)
		r = prepare(&im, jobs, e);
	if (r < 0)
		return r;
	if (c->dry_run) {
		printf("%zu jobs would be made\n", json_array_size(jobs));
		return CLI_OK;
	}
	json_array_foreach(jobs, row, job) failed += !make(&im, row + 1, job);
	return failed ? err_set(e, -EBUSY, "%zu of %zu jobs were not made", failed, json_array_size(jobs)) : CLI_OK;
}
