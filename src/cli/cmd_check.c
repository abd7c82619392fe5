/* replant images check: asks for a check or a repair, waits for its end, and shows what was found. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

static enum out_colour check_colour(const char *level)
{
	return strcmp(level, "passed") == 0 ? OUT_GREEN : strcmp(level, "warning") == 0 ? OUT_YELLOW : OUT_RED;
}

/* What isn't well, first and in full; the rest in a line. */
static void check_items(const json_t *items)
{
	_cleanup_(str_release) struct str passed = {0};
	const json_t *item;
	size_t i;

	json_array_foreach(items, i, item)
	{
		_cleanup_(str_release) struct str name = {0}, text = {0}, remedy = {0};
		const char *level = get_str(item, "level");

		if (strcmp(level, "passed") == 0) {
			str_add(&passed, passed.len ? ", " : "");
			out_word(&passed, get_str(item, "item"));
			continue;
		}
		out_word(&name, get_str(item, "item"));
		out_word(&text, level);
		str_add(&text, ": ");
		out_clean(&text, get_str(item, "message"));
		out_clean(&remedy, get_str(item, "remedy"));
		out_field(name.s ? name.s : "", text.s ? text.s : "", check_colour(level));
		if (remedy.len)
			out_fieldf("", "%s%s", remedy.s, get_true(item, "repairable") ? " (or: --repair)" : "");
	}
	if (passed.len)
		out_fieldf("passed", "%s", passed.s);
}

static void check_show(const json_t *check)
{
	_cleanup_(str_release) struct str verdict = {0};
	const json_t *report = get(check, "report"), *one;
	const char *level = get_str(report, "verdict");
	size_t i;

	out_title("Image check", get_str(check, "image"));
	out_fieldf("Error", "%s", get_str(check, "error.message"));
	if (!report)
		return;
	out_word(&verdict, level);
	out_field("Verdict", verdict.s ? verdict.s : "", check_colour(level));
	out_fieldf("System", "%s", get_str(report, "system.name"));
	check_items(get(report, "items"));
	json_array_foreach(get(report, "repaired"), i, one)
	{
		out_fieldf(get_true(one, "repaired") ? "repaired" : "not repaired", "%s", get_str(one, "item"));
	}
	if (*get_str(check, "repaired"))
		out_fieldf("New image", "%s", get_str(check, "repaired"));
}

static int check_get(struct cli *c, const char *id, struct cli_reply *r, struct err *e)
{
	_cleanup_free_ char *path = cli_path(&cli_image, id, "/check");

	return path ? cli_http(c, "GET", path, NULL, r, e) : err_nomem(e);
}

/* Its end, however long that takes. */
static int check_wait(struct cli *c, const char *id, struct cli_reply *ret, struct err *e)
{
	struct cli_patience patience = {0};

	for (;;) {
		_cleanup_reply_ struct cli_reply r = {0};
		int x = check_get(c, id, &r, e);

		if (x == -EAGAIN && cli_patience_wait(c, &patience, e) == 0)
			continue;
		if (x < 0)
			return x;
		cli_patience_ok(&patience);
		if (strcmp(get_str(r.json, "state"), "running") != 0) {
			*ret = r;
			r = (struct cli_reply){0};
			return 0;
		}
		cli_sleep(1);
	}
}

/* The image whose state counts in the end: the repaired one, when there is one. */
static int check_final(struct cli *c, struct cli_reply *r, struct err *e)
{
	_cleanup_free_ char *repaired = strdup(get_str(r->json, "repaired"));

	if (!repaired)
		return err_nomem(e);
	if (!*repaired)
		return 0;
	if (!cli_is_id(repaired))
		return err_set(e, -EPROTO, "the center names a repaired image that is none (is it another version?)");
	cli_reply_release(r);
	return check_get(c, repaired, r, e);
}

CLI_COMMAND(images_check)
{
	_cleanup_reply_ struct cli_reply begun = {0}, r = {0};
	_cleanup_free_ char *id = NULL, *page = NULL;
	_cleanup_json_ json_t *body = json_object();
	int x;

	if (c->name && !c->repair) {
		out_error("--name is for the repaired image (give --repair, too)");
		return CLI_USAGE;
	}
	if (body && c->repair)
		json_object_set_new(body, "repair", json_true());
	if (body && c->name)
		json_object_set_new(body, "name", json_string(c->name));
	x = cli_item(c, &cli_image, argv[0], "POST", "/check", body, &id, &begun, e);
	x = x < 0 ? x : check_wait(c, id, &r, e);
	x = x < 0 ? x : check_final(c, &r, e);
	if (x < 0)
		return x;
	if (c->html) {
		const char *image = get_str(r.json, "image");

		if (!cli_is_id(image))
			return err_set(e, -EPROTO, "the center's check names no image (is it another version?)");
		page = cli_path(&cli_image, image, "/check.html");
		x = page ? cli_download(c, page, c->html, UINT64_MAX, NULL, e) : err_nomem(e);
		if (x < 0)
			return x;
	}
	if (c->json)
		out_json(&r.body);
	else
		check_show(r.json);
	if (strcmp(get_str(r.json, "state"), "finished") != 0)
		return CLI_FAILED;
	return strcmp(get_str(r.json, "report.verdict"), "critical") == 0 ? CLI_FAILED : CLI_OK;
}
