/* `center holdings` and `center sweep`: what the center keeps, for whom, and what is left of what was killed. */
#include <errno.h>
#include <string.h>

#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

static enum out_colour holding_kind(struct str *b, const json_t *j)
{
	out_clean(b, get_str(j, "kind"));
	return OUT_PLAIN;
}

static enum out_colour holding_owner(struct str *b, const json_t *j)
{
	out_clean(b, *get_str(j, "owner") ? get_str(j, "owner") : "-");
	return OUT_PLAIN;
}

static enum out_colour holding_size(struct str *b, const json_t *j)
{
	out_size(b, get_num(j, "bytes", 0));
	return OUT_PLAIN;
}

static enum out_colour holding_since(struct str *b, const json_t *j)
{
	out_when(b, get_num(j, "since", 0));
	return OUT_PLAIN;
}

static enum out_colour holding_state(struct str *b, const json_t *j)
{
	bool orphan = get_true(j, "orphan");

	str_add(b, get_true(j, "removable") ? "goes with the next sweep" : orphan ? "nobody's" : "");
	return orphan ? OUT_YELLOW : OUT_PLAIN;
}

static enum out_colour holding_path(struct str *b, const json_t *j)
{
	out_clean(b, get_str(j, "path"));
	return OUT_PLAIN;
}

static const struct out_col holding_cols[] = {{"KIND", false, 0, holding_kind},
					      {"OWNER", false, 0, holding_owner},
					      {"SIZE", true, 0, holding_size},
					      {"CHANGED", false, 2, holding_since},
					      {"STATE", false, 1, holding_state},
					      {"PATH", false, 1, holding_path},
					      {0}};

static int holdings_table(const json_t *items, struct err *e)
{
	_cleanup_table_ struct out_table t;
	const json_t *item;
	size_t i;

	out_table_init(&t, holding_cols, 0);
	json_array_foreach(items, i, item) out_table_item(&t, item);
	return out_table_print(&t, e);
}

/* A word that may be part of a URL, as all kinds and ids are. */
static int query_add(struct str *path, const char *key, const char *word, struct err *e)
{
	if (!word)
		return 0;
	if (!*word || strspn(word, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(word))
		return err_set(e, -EINVAL, "'%.64s' is no %s", word, key);
	str_addf(path, "%s%s=%s", strchr(path->s, '?') ? "&" : "?", key, word);
	return 0;
}

static int as_it_is(struct cli *c, const struct cli_reply *r, int x)
{
	if (c->json)
		out_json(&r->body);
	return x;
}

CLI_COMMAND(center_holdings)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_(str_release) struct str path = {0}, sum = {0};
	int x;

	str_add(&path, "/v1/holdings");
	if (!str_ok(&path))
		return err_nomem(e);
	x = query_add(&path, "owner", c->owner, e);
	x = x ?: query_add(&path, "kind", c->kind, e);
	if (x == 0 && !str_ok(&path))
		return err_nomem(e);
	x = x ?: cli_http(c, "GET", path.s, NULL, &r, e);
	if (c->json || x != 0)
		return as_it_is(c, &r, x);
	x = holdings_table(get(r.json, "items"), e);
	out_size(&sum, get_num(r.json, "bytes", 0));
	printf("%.0f things, %s, %.0f of them nobody's\n", get_num(r.json, "total", 0), sum.s ? sum.s : "",
	       get_num(r.json, "orphans", 0));
	return x;
}

CLI_COMMAND(center_sweep)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_json_ json_t *body = json_pack("{s:b}", "dry_run", c->dry_run);
	const json_t *failed;
	size_t i;
	int x;

	if (!body)
		return err_nomem(e);
	x = cli_http(c, "POST", "/v1/holdings/sweep", body, &r, e);
	if (c->json || x != 0)
		return as_it_is(c, &r, x ?: json_array_size(get(r.json, "failed")) ? CLI_FAILED : 0);
	if (json_array_size(get(r.json, "removed")))
		x = holdings_table(get(r.json, "removed"), e);
	printf("%zu things %s\n", json_array_size(get(r.json, "removed")),
	       c->dry_run ? "would be removed" : "were removed");
	json_array_foreach(get(r.json, "failed"), i, failed)
	    out_error("'%s' can't be removed: %s", get_str(failed, "path"), get_str(failed, "message"));
	if (json_array_size(get(r.json, "orphans"))) {
		printf("\nNobody owns these, and they stay, for they may be somebody's data:\n");
		x = x ?: holdings_table(get(r.json, "orphans"), e);
	}
	return x ?: json_array_size(get(r.json, "failed")) ? CLI_FAILED : 0;
}
