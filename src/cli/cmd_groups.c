/* Templates, which many jobs are made by, and workgroups, whose sources move together. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

/* ---- templates ---- */

static enum out_colour template_region(struct str *b, const json_t *t)
{
	out_clean(b, *get_str(t, "job.region") ? get_str(t, "job.region") : "local");
	return OUT_PLAIN;
}

static const struct out_col template_cols[] = {
    {"NAME", false, 1, cell_name},
    {"REGION", false, 0, template_region},
    {"CREATED", false, 0, cell_created},
    {"ID", false, 0, cell_id},
    {0},
};

static void template_parameters(const json_t *t)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)get(t, "job.parameters"), key, value)
	{
		_cleanup_free_ char *text = json_dumps(value, JSON_ENCODE_ANY);
		_cleanup_(str_release) struct str b = {0}, label = {0};

		out_clean(&b, json_is_string(value) ? json_string_value(value) : text ?: "");
		out_word(&label, key);
		out_field(label.s ? label.s : "", b.s ? b.s : "", OUT_PLAIN);
	}
}

static void template_show(struct cli *c, json_t *t)
{
	_cleanup_(str_release) struct str b = {0};

	out_title(get_str(t, "name"), get_str(t, "id"));
	out_fieldf("Description", "%s", get_str(t, "description"));
	out_when(&b, get_num(t, "created", 0));
	out_field("Created", b.s ? b.s : "", OUT_PLAIN);
	out_section("What jobs get");
	out_fieldf("Region", "%s", get_str(t, "job.region"));
	out_fieldf("Description", "%s", get_str(t, "job.description"));
	cli_show_tags(get(t, "job"));
	if (get_num(t, "job.valid_days", 0) > 0)
		out_fieldf("Valid days", "%.0f", get_num(t, "job.valid_days", 0));
	template_parameters(t);
}

const struct cli_noun cli_template = {"template",    "templates",   "/v1/templates",
				      template_cols, template_show, "'replant templates create' makes one.",
				      NULL};

/* What jobs get, from the options of `jobs create`. */
static json_t *template_job(const struct cli *c)
{
	static const char *const of_one_job[] = {"name",      "description", "image_name", "client_token",
						 "execution", "start_at",    "template"};
	json_t *o = cli_job_request(c, NULL);

	for (size_t i = 0; o && i < ARRAY_SIZE(of_one_job); i++)
		json_object_del(o, of_one_job[i]);
	return o;
}

CLI_COMMAND(templates_create)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_json_ json_t *job = template_job(c), *body = NULL;
	int x;

	if (!cli_job_options_fit(c))
		return CLI_USAGE;
	body = json_pack("{s:s, s:s*, s:O}", "name", argv[0], "description", c->description, "job", job);
	if (!body)
		return err_set(e, -EINVAL, "the name '%s' is not valid UTF-8", argv[0]);
	x = cli_http(c, "POST", cli_template.path, body, &r, e);
	if (x == 0 || c->json)
		cli_done(c, &r, "template '%s' created: %s", argv[0], get_str(r.json, "id"));
	return x;
}

/* Options change what they name; the rest of the template stays. */
static void lay_over(json_t *under, json_t *over)
{
	const char *key;
	json_t *value;

	json_object_foreach(over, key, value)
	{
		if (json_is_object(value) && json_is_object(json_object_get(under, key)))
			json_object_update(json_object_get(under, key), value);
		else
			json_object_set(under, key, value);
	}
}

CLI_COMMAND(templates_set)
{
	_cleanup_reply_ struct cli_reply now = {0}, r = {0};
	_cleanup_json_ json_t *over = template_job(c), *body = NULL;
	_cleanup_free_ char *id = NULL, *path = NULL;
	json_t *job;
	int x;

	if (!cli_job_options_fit(c))
		return CLI_USAGE;
	x = cli_item(c, &cli_template, argv[0], "GET", "", NULL, &id, &now, e);
	if (x < 0)
		return x;
	job = json_object_get(now.json, "job");
	lay_over(job, over);
	body = json_pack("{s:s*, s:O}", "description", c->description, "job", job);
	path = body ? cli_path(&cli_template, id, "") : NULL;
	x = path ? cli_http(c, "PATCH", path, body, &r, e) : err_nomem(e);
	if (x == 0 || c->json)
		cli_done(c, &r, "template %s changed", id);
	return x;
}

/* ---- workgroups ---- */

static enum out_colour group_status(struct str *b, const json_t *g)
{
	const char *status = get_str(g, "status");

	out_word(b, status);
	return json_array_size(get(g, "warnings")) ? OUT_YELLOW
	       : strcmp(status, "completed") == 0  ? OUT_GREEN
						   : OUT_PLAIN;
}

static enum out_colour group_sources(struct str *b, const json_t *g)
{
	str_addf(b, "%.0f", get_num(g, "sources", 0));
	return OUT_PLAIN;
}

static const struct {
	const char *type, *text;
} group_warnings[] = {{"in_error", "job failed"}, {"unrelated", "no job"}, {"not_passed", "image did not boot"}};

static enum out_colour group_warning(struct str *b, const json_t *g)
{
	const json_t *w;
	size_t i;

	json_array_foreach(get(g, "warnings"), i, w)
	{
		for (size_t k = 0; k < ARRAY_SIZE(group_warnings); k++)
			if (strcmp(get_str(w, "type"), group_warnings[k].type) == 0)
				str_addf(b, "%s%zu: %s", i ? ", " : "", json_array_size(get(w, "sources")),
					 group_warnings[k].text);
	}
	return OUT_YELLOW;
}

static const struct out_col group_cols[] = {
    {"NAME", false, 1, cell_name},
    {"STATUS", false, 0, group_status},
    {"SOURCES", true, 0, group_sources},
    {"WARNINGS", false, 2, group_warning},
    {"CREATED", false, 0, cell_created},
    {"ID", false, 0, cell_id},
    {0},
};

static void group_show(struct cli *c, json_t *g)
{
	_cleanup_(str_release) struct str b = {0};

	out_title(get_str(g, "name"), get_str(g, "id"));
	out_fieldf("Description", "%s", get_str(g, "description"));
	cli_show_tags(g);
	group_status(&b, g);
	out_field("Status", b.s ? b.s : "", OUT_PLAIN);
	str_release(&b);
	group_warning(&b, g);
	out_field("Warnings", b.s ? b.s : "", OUT_YELLOW);
	out_fieldf("Sources", "%.0f", get_num(g, "sources", 0));
	cli_print_sources_of(c, get_str(g, "id"));
}

const struct cli_noun cli_workgroup = {"workgroup", "workgroups", "/v1/workgroups",
				       group_cols,  group_show,   "'replant workgroups create' makes one.",
				       NULL};

CLI_COMMAND(workgroups_create)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_json_ json_t *body = json_pack("{s:s, s:s*}", "name", argv[0], "description", c->description);
	int x;

	if (!body)
		return err_set(e, -EINVAL, "the name '%s' is not valid UTF-8", argv[0]);
	x = cli_http(c, "POST", cli_workgroup.path, body, &r, e);
	if (x == 0 || c->json)
		cli_done(c, &r, "workgroup '%s' created: %s", argv[0], get_str(r.json, "id"));
	return x;
}

/* group "": out of the one it is in. */
static int group_put(struct cli *c, const char *group, const char *word, struct err *e)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_json_ json_t *body = json_pack("{s:s}", "workgroup", group);
	_cleanup_free_ char *id = NULL;
	int x = body ? cli_item(c, &cli_source, word, "PATCH", "", body, &id, &r, e) : err_nomem(e);

	if (id && (x == 0 || c->json))
		cli_done(c, &r, *group ? "source %s is in workgroup %s" : "source %s is in no workgroup%s", id, group);
	return x;
}

CLI_COMMAND(workgroups_add)
{
	_cleanup_free_ char *group = NULL;
	int r = cli_find(c, &cli_workgroup, argv[0], &group, e);

	for (int i = 1; i < argc && r == 0; i++)
		r = group_put(c, group, argv[i], e);
	return r;
}

CLI_COMMAND(workgroups_remove)
{
	int r = 0;

	for (int i = 0; i < argc && r == 0; i++)
		r = group_put(c, "", argv[i], e);
	return r;
}

/* A line for each of its sources; fails when one did. */
static int group_all(struct cli *c, const char *word, const char *verb, const char *done, struct err *e)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *id = NULL, *suffix = str_printf("/%s", verb);
	size_t i, failed = 0;
	const json_t *item;
	int x = suffix ? cli_item(c, &cli_workgroup, word, "POST", suffix, NULL, &id, &r, e) : err_nomem(e);

	if (x < 0 || c->json) {
		if (c->json)
			out_json(&r.body);
		return x;
	}
	json_array_foreach(get(r.json, "items"), i, item)
	{
		_cleanup_(str_release) struct str b = {0};

		out_clean(&b, get_str(item, "error.message"));
		if (get(item, "error"))
			out_error("%s: %s", get_str(item, "source"), b.s ? b.s : "");
		else
			printf("job %s %s\n", get_str(item, "job"), done);
		failed += get(item, "error") != NULL;
	}
	return failed ? err_set(e, -EBUSY, "%zu of %zu jobs were not %s", failed, i, done) : 0;
}

CLI_COMMAND(workgroups_start)
{
	return group_all(c, argv[0], "start", "started", e);
}

CLI_COMMAND(workgroups_stop)
{
	return group_all(c, argv[0], "stop", "stopped", e);
}
