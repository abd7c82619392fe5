/* Checks of images: asked for, read, and as a page for people. What a page says comes from an image's own files: all of
 * it is escaped, and nothing in it runs. */
#include <string.h>
#include <time.h>

#include "api/api_int.h"
#include "base/util.h"

int api_check_image(struct api_request *q)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	const struct api_engine *en = &q->api->s.engine;
	struct model_check_request in;

	if (api_read(q, model_check_request, q->body, false, &in) < 0)
		return -1;
	if (in.name && !in.repair)
		return api_refuse(q, 400, "bad_field", "name", "a name is for the repaired image: ask for repair, too");
	if (en->image_check(en->arg, q->id, in.repair, in.name, &q->fault) < 0)
		return -1;
	return api_row(q, &model_images, &im) < 0 ? -1 : api_answer_row(q, 202, &model_images, &im);
}

static int checked_of(struct api_request *q, struct model_image *im)
{
	if (api_row(q, &model_images, im) < 0)
		return -1;
	if (!im->checked)
		return api_refuse(q, 404, "not_found", NULL, "image '%s' has not been checked; check it first", im->id);
	return 0;
}

int api_get_check(struct api_request *q)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	json_t *o;

	if (checked_of(q, &im) < 0)
		return -1;
	o = json_copy(im.checked);
	if (o)
		json_object_set_new(o, "image", json_string(im.id));
	return api_answer(q, 200, o);
}

/* ---- the page ---- */

static const char *page_get(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key)) ?: "";
}

static void page_cell(struct str *b, const char *tag, const char *s)
{
	str_addf(b, "<%s>", tag);
	str_add_html(b, s);
	str_addf(b, "</%s>", tag);
}

/* Of the three words alone: it becomes the name of a class. */
static const char *page_level(const char *s)
{
	static const char *const levels[] = {"passed", "warning", "critical"};

	for (size_t i = 0; i < ARRAY_SIZE(levels); i++)
		if (strcmp(s, levels[i]) == 0)
			return levels[i];
	return "warning";
}

static void page_level_cell(struct str *b, const char *level)
{
	str_addf(b, "<td class=\"%s\">%s</td>", page_level(level), page_level(level));
}

static void page_items(struct str *b, const json_t *items)
{
	json_t *item;
	size_t i;

	str_add(b, "<table><tr><th>Item</th><th>Level</th><th>What was found</th><th>What to do</th></tr>\n");
	json_array_foreach(items, i, item)
	{
		str_add(b, "<tr>");
		page_cell(b, "td", page_get(item, "item"));
		page_level_cell(b, page_get(item, "level"));
		page_cell(b, "td", page_get(item, "message"));
		str_add(b, "<td>");
		str_add_html(b, page_get(item, "remedy"));
		if (json_is_true(json_object_get(item, "repairable")))
			str_add(b, " <b>can be repaired</b>");
		str_add(b, "</td></tr>\n");
	}
	str_add(b, "</table>\n");
}

static void page_boot(struct str *b, const struct model_image *im)
{
	const json_t *report = json_object_get(im->boot, "report");
	const char *state = page_get(im->boot, "state");
	json_t *problem;
	size_t i;

	str_add(b, "<h2>Test boot</h2>\n<p>");
	str_add_html(b, *state ? state : "not booted yet");
	if (im->screenshot)
		str_addf(b, " &middot; <a href=\"/v1/images/%s/screenshot\">picture of its screen</a>", im->id);
	str_add(b, "</p>\n");
	if (json_array_size(json_object_get(report, "problems")))
		str_add(b, "<ul>\n");
	json_array_foreach(json_object_get(report, "problems"), i, problem)
	{
		page_cell(b, "li", page_get(problem, "message"));
		if (i + 1 == json_array_size(json_object_get(report, "problems")))
			str_add(b, "</ul>\n");
	}
}

static void page_changed(struct str *b, const json_t *report)
{
	json_t *step, *file;
	size_t i, k;

	if (!json_array_size(json_object_get(report, "steps")))
		return;
	str_add(b, "<h2>What the repair changed</h2>\n");
	json_array_foreach(json_object_get(report, "steps"), i, step)
	{
		str_add(b, "<h3>");
		str_add_html(b, page_get(step, "name"));
		str_add(b, "</h3>\n<p>");
		str_add_html(b, page_get(step, "summary"));
		str_add(b, "</p>\n");
		json_array_foreach(json_object_get(step, "files"), k, file)
		{
			str_add(b, "<p>");
			str_add_html(b, page_get(file, "action"));
			str_add(b, " <code>");
			str_add_html(b, page_get(file, "path"));
			str_add(b, "</code></p>\n");
			if (json_object_get(file, "old"))
				page_cell(b, "pre", page_get(file, "old"));
		}
	}
}

static void page_when(struct str *b, const json_t *o)
{
	time_t t = (time_t)json_number_value(json_object_get(o, "finished"));
	char text[64];
	struct tm tm;

	if (t > 0 && gmtime_r(&t, &tm) && strftime(text, sizeof(text), "%Y-%m-%d %H:%M UTC", &tm))
		str_addf(b, " &middot; %s", text);
}

static void page_make(struct str *b, const struct model_image *im)
{
	const json_t *report = json_object_get(im->checked, "report");
	const char *state = page_get(im->checked, "state");

	str_add(b, "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n<title>Image check: ");
	str_add_html(b, im->name);
	str_add(b,
		"</title>\n<style>body{font:15px/1.5 sans-serif;margin:2em auto;max-width:70em;padding:0 1em}"
		"table{border-collapse:collapse;width:100%}td,th{border:1px solid #ccc;padding:.3em .6em;"
		"text-align:left;vertical-align:top}pre{background:#f4f4f4;padding:.6em;overflow:auto}"
		".passed{background:#dff2df}.warning{background:#fff1c9}.critical{background:#f9d3d3}</style></head>\n"
		"<body>\n<h1>Image check: ");
	str_add_html(b, im->name);
	str_add(b, "</h1>\n<p>");
	str_add_html(b, im->id);
	str_add(b, " &middot; ");
	str_add_html(b, page_get(json_object_get(report, "system"), "name"));
	page_when(b, im->checked);
	str_add(b, "</p>\n");
	if (strcmp(state, "finished") == 0) {
		str_addf(b, "<p class=\"%s\"><b>%s</b></p>\n", page_level(page_get(report, "verdict")),
			 page_level(page_get(report, "verdict")));
		page_items(b, json_object_get(report, "items"));
	} else {
		str_add(b, "<p>");
		str_add_html(b, strcmp(state, "running") == 0 ? "The check is under way."
							      : "The check could not be made: ");
		str_add_html(b, page_get(json_object_get(im->checked, "error"), "message"));
		str_add(b, "</p>\n");
	}
	page_boot(b, im);
	page_changed(b, report);
	str_add(b, "</body></html>\n");
}

int api_get_check_page(struct api_request *q)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	_cleanup_(str_release) struct str page = {0};

	if (checked_of(q, &im) < 0)
		return -1;
	page_make(&page, &im);
	q->response = str_ok(&page) ? MHD_create_response_from_buffer(page.len, page.s, MHD_RESPMEM_MUST_COPY) : NULL;
	if (!q->response)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	MHD_add_response_header(q->response, "Content-Type", "text/html; charset=utf-8");
	MHD_add_response_header(q->response, "X-Content-Type-Options", "nosniff");
	MHD_add_response_header(q->response, "Content-Security-Policy",
				"default-src 'none'; style-src 'unsafe-inline'");
	q->status = 200;
	return 0;
}
