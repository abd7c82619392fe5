/* Migration tests: begun, and their reports, on the terminal and as a page. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/io.h"
#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

#define PICTURE_MAX (16u << 20)

/* ---- on the terminal ---- */

static enum out_colour level_colour(const char *level)
{
	return strcmp(level, "critical") == 0 ? OUT_RED : strcmp(level, "warning") == 0 ? OUT_YELLOW : OUT_GREEN;
}

static void add_seconds(struct str *b, const json_t *o, const char *key, const char *what)
{
	double v = get_num(o, key, -1);

	if (v < 0)
		return;
	if (b->len)
		str_add(b, ", ");
	if (*what)
		str_addf(b, "%s ", what);
	if (v < 10)
		str_addf(b, "%.1f s", v);
	else
		out_duration(b, v);
}

static void field_seconds(const char *label, const json_t *o, const char *key)
{
	_cleanup_(str_release) struct str b = {0};

	add_seconds(&b, o, key, "");
	out_field(label, b.s ? b.s : "", OUT_PLAIN);
}

static void field_rate(const char *label, const json_t *o, const char *key)
{
	_cleanup_(str_release) struct str b = {0};

	if (get_num(o, key, 0) <= 0)
		return;
	out_size(&b, get_num(o, key, 0));
	str_add(&b, "/s");
	out_field(label, b.s, OUT_PLAIN);
}

static void field_size(const char *label, const json_t *o, const char *key)
{
	_cleanup_(str_release) struct str b = {0};

	if (get_num(o, key, 0) <= 0)
		return;
	out_size(&b, get_num(o, key, 0));
	out_field(label, b.s, OUT_PLAIN);
}

static void print_items(const json_t *items)
{
	static const char *const order[] = {"critical", "warning", "passed"};
	const json_t *item;
	size_t i;

	/* The worst first. */
	for (size_t k = 0; k < ARRAY_SIZE(order); k++)
		json_array_foreach(items, i, item)
		{
			_cleanup_(str_release) struct str name = {0}, text = {0}, remedy = {0};

			if (strcmp(get_str(item, "level"), order[k]) != 0)
				continue;
			out_clean(&name, get_str(item, "item"));
			out_clean(&text, get_str(item, "message"));
			out_clean(&remedy, get_str(item, "remedy"));
			printf("  %s%-8s%s  %-12s  %s\n", out_on(level_colour(order[k])), order[k], out_off(),
			       name.s ? name.s : "", text.s ? text.s : "");
			if (remedy.len)
				printf("  %-8s  %-12s  -> %s\n", "", "", remedy.s);
		}
}

static void print_copy(const json_t *copy)
{
	if (!copy)
		return;
	out_section("The copy");
	field_size("In use", copy, "used_bytes");
	field_size("Copied", copy, "copied_bytes");
	field_size("Sent", copy, "sent_bytes");
	field_seconds("Took", copy, "seconds");
	field_rate("Speed", copy, "rate");
	field_rate("On the wire", copy, "wire_rate");
	field_seconds("Frozen", copy, "freeze_seconds");
	out_fieldf("Tracking", "%s", get_str(copy, "tracking"));
}

static void print_prediction(const json_t *test)
{
	const json_t *p = get(test, "prediction"), *a = get(test, "actual");

	if (!p)
		return;
	out_section("The migration will take");
	field_size("Data", p, "bytes");
	field_size("There already", p, "bytes_there");
	field_seconds("Transfer", p, "transfer_seconds");
	field_seconds("Conversion", p, "conversion_seconds");
	field_seconds("Test boot", p, "test_boot_seconds");
	field_seconds("In all", p, "total_seconds");
	field_seconds("Freeze", p, "freeze_seconds");
	if (get_num(p, "saved_bytes", 0) > 0)
		field_seconds("The test saves", p, "saved_seconds");
	if (!a)
		return;
	out_section("It took");
	field_seconds("Transfer", a, "transfer_seconds");
	field_seconds("In all", a, "total_seconds");
	field_seconds("Freeze", a, "freeze_seconds");
	if (get(a, "error_percent"))
		out_fieldf("Error", "%+.0f %%", get_num(a, "error_percent", 0));
	else if (get_true(a, "interrupted"))
		out_fieldf("Error", "it was interrupted, which no prediction knows of");
}

static void print_report(const json_t *job)
{
	const json_t *test = get(job, "test");
	_cleanup_(str_release) struct str b = {0};

	out_title(get_str(job, "name"), get_str(job, "id"));
	out_word(&b, *get_str(test, "verdict") ? get_str(test, "verdict") : get_str(test, "state"));
	out_field("Migration test", b.s ? b.s : "", level_colour(get_str(test, "verdict")));
	str_release(&b);
	out_when(&b, get_num(test, "started", 0));
	out_field("Begun", b.s ? b.s : "", OUT_PLAIN);
	if (json_array_size(get(test, "items"))) {
		out_section("Items");
		print_items(get(test, "items"));
	}
	print_copy(get(test, "copy"));
	print_prediction(test);
}

/* ---- as a page ---- */

/* Whatever it says is text. */
static void html_text(struct str *b, const char *s)
{
	_cleanup_(str_release) struct str clean = {0};

	out_clean(&clean, s);
	str_add_html(b, clean.s);
}

static void html_base64(struct str *b, const unsigned char *p, size_t n)
{
	static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

	for (size_t i = 0; i < n; i += 3) {
		unsigned v = (unsigned)p[i] << 16 | (i + 1 < n ? (unsigned)p[i + 1] << 8 : 0) |
			     (i + 2 < n ? (unsigned)p[i + 2] : 0);
		char four[4] = {letters[v >> 18], letters[v >> 12 & 63], i + 1 < n ? letters[v >> 6 & 63] : '=',
				i + 2 < n ? letters[v & 63] : '='};

		str_add_mem(b, four, 4);
	}
}

static void html_row(struct str *b, const char *label, const json_t *o, const char *key, bool bytes)
{
	_cleanup_(str_release) struct str v = {0};

	if (get_num(o, key, -1) < 0)
		return;
	if (bytes)
		out_size(&v, get_num(o, key, 0));
	else
		add_seconds(&v, o, key, "");
	str_addf(b, "<tr><th>%s</th><td>%s</td></tr>\n", label, v.s ? v.s : "");
}

static void html_items(struct str *b, const json_t *items)
{
	const json_t *item;
	size_t i;

	str_add(b, "<table>\n<tr><th>Level</th><th>Group</th><th>Item</th><th>What was found</th></tr>\n");
	json_array_foreach(items, i, item)
	{
		str_add(b, "<tr class=\"");
		html_text(b, get_str(item, "level"));
		str_add(b, "\"><td>");
		html_text(b, get_str(item, "level"));
		str_add(b, "</td><td>");
		html_text(b, get_str(item, "group"));
		str_add(b, "</td><td>");
		html_text(b, get_str(item, "item"));
		str_add(b, "</td><td>");
		html_text(b, get_str(item, "message"));
		if (*get_str(item, "remedy")) {
			str_add(b, "<br><em>");
			html_text(b, get_str(item, "remedy"));
			str_add(b, "</em>");
		}
		str_add(b, "</td></tr>\n");
	}
	str_add(b, "</table>\n");
}

static void html_figures(struct str *b, const json_t *test)
{
	static const struct {
		const char *object, *label, *key;
		bool bytes;
	} rows[] = {{"copy", "Data in use", "used_bytes", true},
		    {"copy", "Copied for the test", "copied_bytes", true},
		    {"copy", "Bytes per second, over the whole path", "rate", true},
		    {"prediction", "Transfer, predicted", "transfer_seconds", false},
		    {"prediction", "Conversion, predicted", "conversion_seconds", false},
		    {"prediction", "Whole migration, predicted", "total_seconds", false},
		    {"prediction", "Freeze, predicted", "freeze_seconds", false},
		    {"actual", "Whole migration, taken", "total_seconds", false},
		    {"actual", "Freeze, taken", "freeze_seconds", false}};

	str_add(b, "<h2>Figures</h2>\n<table>\n");
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		html_row(b, rows[i].label, get(test, rows[i].object), rows[i].key, rows[i].bytes);
	str_add(b, "</table>\n");
}

static void html_page(struct str *b, const json_t *job, const struct str *picture)
{
	const json_t *test = get(job, "test");

	str_add(b, "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Migration test of ");
	html_text(b, get_str(job, "name"));
	str_add(b, "</title>\n<style>body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
		   "table{border-collapse:collapse;width:100%}td,th{border-bottom:1px solid #ccc;padding:.3em .6em;"
		   "text-align:left;vertical-align:top}.critical td:first-child{color:#b00;font-weight:bold}"
		   ".warning td:first-child{color:#960}.passed td:first-child{color:#070}img{max-width:100%}"
		   "</style></head>\n<body>\n<h1>Migration test of ");
	html_text(b, get_str(job, "name"));
	str_add(b, "</h1>\n<p>Job ");
	html_text(b, get_str(job, "id"));
	str_add(b, ", verdict: <strong>");
	html_text(b, *get_str(test, "verdict") ? get_str(test, "verdict") : get_str(test, "state"));
	str_add(b, "</strong></p>\n");
	html_items(b, get(test, "items"));
	html_figures(b, test);
	if (picture->len) {
		str_add(b, "<h2>The end of its boot</h2>\n<img alt=\"screen\" src=\"data:image/png;base64,");
		html_base64(b, (const unsigned char *)picture->s, picture->len);
		str_add(b, "\">\n");
	}
	str_add(b, "</body></html>\n");
}

static size_t take_picture(char *p, size_t size, size_t n, void *arg)
{
	struct str *b = arg;

	if (b->len + size * n > PICTURE_MAX)
		return 0;
	str_add_mem(b, p, size * n);
	return size * n;
}

static int write_page(struct cli *c, const json_t *job, struct err *e)
{
	_cleanup_(str_release) struct str page = {0}, picture = {0};
	_cleanup_free_ char *path = NULL;
	const char *id = get_str(job, "id");
	int r = 0;

	if (!cli_is_id(id))
		return err_set(e, -EPROTO, "the center's job has no id (is it another version?)");
	path = cli_path(&cli_job, id, "/test/screenshot");
	if (!path)
		return err_nomem(e);
	if (get_true(job, "test.picture"))
		r = cli_http_stream(c, path, 0, take_picture, &picture, e);
	if (r < 0)
		return r;
	html_page(&page, job, &picture);
	if (!str_ok(&page))
		return err_nomem(e);
	return io_write_file_atomic(c->html, page.s, page.len, 0644, e);
}

CLI_COMMAND(jobs_report)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *id = NULL;
	const json_t *test;
	int x = cli_item(c, &cli_job, argv[0], "GET", "", NULL, &id, &r, e);

	if (x < 0)
		return x;
	test = get(r.json, "test");
	if (!test)
		return err_set(e, -ENOENT, "job %s was never tested ('replant jobs test %s' does)", id, id);
	if (c->html) {
		x = write_page(c, r.json, e);
		if (x < 0)
			return x;
	}
	if (c->json) {
		_cleanup_(str_release) struct str body = {0};
		_cleanup_free_ char *text = json_dumps(test, JSON_COMPACT);

		str_add(&body, text ? text : "");
		out_json(&body);
	} else if (!c->html) {
		print_report(r.json);
	}
	return strcmp(get_str(test, "verdict"), "critical") == 0 ? CLI_FAILED : CLI_OK;
}

/* ---- to begin one ---- */

static int test_all(struct cli *c, int argc, char **argv, char **ids, struct err *e)
{
	for (int i = 0; i < argc; i++) {
		_cleanup_json_ json_t *body = json_pack("{s:s}", "test", c->then_migrate ? "migrate" : "only");
		_cleanup_reply_ struct cli_reply r = {0};
		int x = body ? cli_item(c, &cli_job, argv[i], "POST", "/start", body, &ids[i], &r, e) : err_nomem(e);

		if (x < 0)
			return x;
		if (!c->watch || c->json)
			cli_done(c, &r, "job %s is tested%s", ids[i],
				 c->then_migrate ? ", and migrates when nothing critical is found" : "");
	}
	return c->watch ? cli_watch(c, ids, (size_t)argc, e) : CLI_OK;
}

CLI_COMMAND(jobs_test)
{
	char **ids = calloc((size_t)argc, sizeof(*ids));
	int r = ids ? test_all(c, argc, argv, ids, e) : err_nomem(e);

	for (int i = 0; ids && i < argc; i++)
		free(ids[i]);
	free(ids);
	return r;
}

/* ---- a line of it where a job is shown ---- */

void cli_test_summary(const json_t *job)
{
	const json_t *test = get(job, "test"), *counts = get(test, "counts");
	_cleanup_(str_release) struct str b = {0};

	if (!test)
		return;
	if (!*get_str(test, "verdict")) {
		out_word(&b, get_str(test, "state"));
		out_field("Test", b.s ? b.s : "", OUT_PLAIN);
		return;
	}
	str_addf(&b, "%.0f critical, %.0f warnings; see 'replant jobs report %s'", get_num(counts, "critical", 0),
		 get_num(counts, "warning", 0), get_str(job, "id"));
	out_field("Test", b.s ? b.s : "", level_colour(get_str(test, "verdict")));
	str_release(&b);
	add_seconds(&b, get(test, "prediction"), "total_seconds", "");
	add_seconds(&b, get(test, "prediction"), "freeze_seconds", "freeze");
	out_field("Predicted", b.s ? b.s : "", OUT_PLAIN);
	str_release(&b);
	add_seconds(&b, get(test, "actual"), "total_seconds", "");
	if (get(test, "actual.error_percent"))
		str_addf(&b, ", the prediction was %+.0f %% off", get_num(test, "actual.error_percent", 0));
	out_field("Taken", b.s ? b.s : "", OUT_PLAIN);
}
