/* Who may come in: activation codes for servers, tokens for people and programs. Secrets are shown once, on stdout
 * alone. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

static enum out_colour code_uses(struct str *b, const json_t *j)
{
	str_addf(b, "%.0f of %.0f", get_num(j, "used", 0), get_num(j, "uses", 0));
	return OUT_PLAIN;
}

static enum out_colour code_expires(struct str *b, const json_t *j)
{
	out_when(b, get_num(j, "expires", 0));
	return OUT_PLAIN;
}

static const struct out_col code_cols[] = {
    {"NAME", false, 1, cell_name},
    {"STATE", false, 0, cell_state},
    {"USED", false, 0, code_uses},
    {"EXPIRES", false, 0, code_expires},
    {"CREATED", false, 0, cell_created},
    {"ID", false, 0, cell_id},
    {0},
};

const struct cli_noun cli_code = {"code", "codes", "/v1/codes", code_cols, NULL, "'replant codes create' makes one.",
				  NULL};

static enum out_colour record_who(struct str *b, const json_t *r)
{
	out_clean(b, *get_str(r, "name") ? get_str(r, "name") : get(r, "who") ? get_str(r, "who") : "an agent");
	return OUT_BOLD;
}

static enum out_colour record_action(struct str *b, const json_t *r)
{
	out_clean(b, get_str(r, "action"));
	return OUT_PLAIN;
}

static enum out_colour record_object(struct str *b, const json_t *r)
{
	out_clean(b, get_str(r, "object"));
	return OUT_PLAIN;
}

static enum out_colour record_outcome(struct str *b, const json_t *r)
{
	bool refused = get_num(r, "status", 0) >= 400;

	out_word(b, refused ? get_str(r, "code") : "done");
	return refused ? OUT_RED : OUT_GREEN;
}

static enum out_colour record_from(struct str *b, const json_t *r)
{
	out_clean(b, get_str(r, "address"));
	return OUT_DIM;
}

static const struct out_col record_cols[] = {
    {"WHEN", false, 0, cell_created},
    {"WHO", false, 1, record_who},
    {"ACTION", false, 0, record_action},
    {"OBJECT", false, 0, record_object},
    {"OUTCOME", false, 0, record_outcome},
    {"FROM", false, 2, record_from},
    {0},
};

const struct cli_noun cli_record = {"record", "records", "/v1/audit", record_cols, NULL, "Nothing was changed yet.",
				    NULL};

CLI_COMMAND(audit_ls)
{
	return cli_ls(c, &cli_record, e);
}

CLI_COMMAND(codes_create)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_(str_release) struct str b = {0};
	_cleanup_json_ json_t *body = json_object();
	int x;

	if (!body)
		return err_nomem(e);
	if (c->name)
		json_object_set_new(body, "name", json_string(c->name));
	if (c->uses != CLI_UNSET)
		json_object_set_new(body, "uses", json_integer((json_int_t)c->uses));
	if (c->days != CLI_UNSET)
		json_object_set_new(body, "valid_days", json_integer((json_int_t)c->days));
	x = cli_http(c, "POST", cli_code.path, body, &r, e);
	if (x < 0 || c->json) {
		out_json(&r.body);
		return x;
	}
	if (!*get_str(r.json, "command"))
		return err_set(e, -EIO, "code %s was made, but not the command: %s", get_str(r.json, "id"),
			       get_str(r.json, "command_error"));
	out_when(&b, get_num(r.json, "expires", 0));
	out_error(
	    "run this as root on the server to migrate; it works %.0f times and expires %s; it is shown only now:",
	    get_num(r.json, "uses", 0), b.s ? b.s : "");
	str_release(&b);
	out_clean(&b, get_str(r.json, "command"));
	printf("%s\n", b.s ? b.s : "");
	return CLI_OK;
}

CLI_COMMAND(codes_revoke)
{
	for (int i = 0; i < argc; i++) {
		_cleanup_reply_ struct cli_reply r = {0};
		_cleanup_free_ char *id = NULL;
		int x = cli_item(c, &cli_code, argv[i], "POST", "/revoke", NULL, &id, &r, e);

		if (id && (x == 0 || c->json))
			cli_done(c, &r, "code %s is revoked: no further server can enrol with it", id);
		if (x < 0)
			return x;
	}
	return CLI_OK;
}

static enum out_colour token_role(struct str *b, const json_t *j)
{
	out_word(b, get_str(j, "role"));
	return OUT_PLAIN;
}

/* The tags that limit it. */
static enum out_colour token_scope(struct str *b, const json_t *t)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)get(t, "scope"), key, value)
	{
		str_add(b, b->len ? " " : "");
		out_clean(b, key);
		str_add(b, "=");
		out_clean(b, json_string_value(value) ?: "");
	}
	return OUT_PLAIN;
}

static const struct out_col token_cols[] = {
    {"NAME", false, 1, cell_name},       {"ROLE", false, 0, token_role}, {"SCOPE", false, 2, token_scope},
    {"CREATED", false, 0, cell_created}, {"ID", false, 0, cell_id},      {0},
};

const struct cli_noun cli_token = {
    "token", "tokens", "/v1/tokens", token_cols, NULL, "'replant tokens create NAME --role operator' makes one.", NULL};

CLI_COMMAND(tokens_create)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_(str_release) struct str b = {0};
	_cleanup_json_ json_t *body = json_pack("{s:s, s:s}", "name", argv[0], "role", c->role);
	json_t *scope = json_object();
	int x = scope ? 0 : err_nomem(e);

	for (size_t i = 0; x == 0 && i < c->tags.n; i++)
		x = cli_tag_add(scope, c->tags.v[i], e);
	if (c->tags.n)
		json_object_set(body, "scope", scope);
	json_decref(scope);
	if (!body)
		return err_nomem(e);
	if (x < 0)
		return x;
	x = cli_http(c, "POST", cli_token.path, body, &r, e);
	if (x < 0 || c->json) {
		out_json(&r.body);
		return x;
	}
	out_error("token for '%s' (%s), shown only now:", argv[0], c->role);
	out_clean(&b, get_str(r.json, "token"));
	printf("%s\n", b.s ? b.s : "");
	return CLI_OK;
}
