/* Subscriptions: whom the center tells of what by itself, and how that went. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/id.h"
#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

#define TEST_SECONDS 15.0 /* a test is over by then */

static enum out_colour target_cell(struct str *b, const json_t *sub)
{
	out_clean(b, get_str(sub, "target"));
	return OUT_PLAIN;
}

static enum out_colour events_cell(struct str *b, const json_t *sub)
{
	const json_t *v;
	size_t i;

	json_array_foreach(get(sub, "events"), i, v)
	{
		str_add(b, i ? ", " : "");
		out_clean(b, json_string_value(v) ?: "");
	}
	return OUT_PLAIN;
}

static enum out_colour health_cell(struct str *b, const json_t *sub)
{
	if (!get_true(sub, "active")) {
		str_add(b, "paused");
		return OUT_YELLOW;
	}
	if (*get_str(sub, "error")) {
		str_add(b, "failing");
		return OUT_RED;
	}
	str_add(b, get_num(sub, "delivered", 0) > 0 ? "works" : "new");
	return OUT_GREEN;
}

static const struct out_col subscription_cols[] = {
    {"NAME", false, 1, cell_name},
    {"STATE", false, 0, health_cell},
    {"TARGET", false, 2, target_cell},
    {"EVENTS", false, 2, events_cell},
    {"CREATED", false, 0, cell_created},
    {"ID", false, 0, cell_id},
    {0},
};

static void show_when(const char *label, double t)
{
	_cleanup_(str_release) struct str b = {0};

	if (t > 0)
		out_when(&b, t);
	out_field(label, b.s ?: "", OUT_PLAIN);
}

static void subscription_show(struct cli *c, json_t *sub)
{
	_cleanup_(str_release) struct str b = {0};
	enum out_colour colour;

	out_title(get_str(sub, "name"), get_str(sub, "id"));
	out_fieldf("Target", "%s", get_str(sub, "target"));
	events_cell(&b, sub);
	out_field("Events", b.s ?: "", OUT_PLAIN);
	str_release(&b);
	colour = health_cell(&b, sub);
	out_field("State", b.s ?: "", colour);
	show_when("Created", get_num(sub, "created", 0));
	show_when("Last delivered", get_num(sub, "delivered", 0));
	show_when("Last failed", get_num(sub, "failed", 0));
	out_fieldf("Error", "%s", get_str(sub, "error"));
}

const struct cli_noun cli_subscription = {
    "subscription",
    "subscriptions",
    "/v1/subscriptions",
    subscription_cols,
    subscription_show,
    "'replant subscriptions create NAME TARGET' makes one.",
    NULL,
};

static json_t *events_json(const struct cli *c)
{
	json_t *list = c->events.n ? json_array() : NULL;

	for (size_t i = 0; list && i < c->events.n; i++)
		json_array_append_new(list, json_string(c->events.v[i]));
	return list;
}

CLI_COMMAND(subscriptions_create)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_(str_release) struct str b = {0};
	_cleanup_json_ json_t *body =
	    json_pack("{s:s, s:s, s:o*}", "name", argv[0], "target", argv[1], "events", events_json(c));
	int x;

	if (!body)
		return err_set(e, -EINVAL, "the name or target is not valid UTF-8");
	x = cli_http(c, "POST", cli_subscription.path, body, &r, e);
	if (x < 0 || c->json) {
		out_json(&r.body);
		return x;
	}
	if (!*get_str(r.json, "secret")) {
		cli_done(c, &r, "subscription '%s' created: %s", argv[0], get_str(r.json, "id"));
		return CLI_OK;
	}
	out_error("subscription '%s' created: %s; the secret its messages are signed with, shown only now:", argv[0],
		  get_str(r.json, "id"));
	out_clean(&b, get_str(r.json, "secret"));
	printf("%s\n", b.s ?: "");
	return CLI_OK;
}

static int change(struct cli *c, const char *word, json_t *body, const char *done, struct err *e)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *id = NULL;
	int x = body ? cli_item(c, &cli_subscription, word, "PATCH", "", body, &id, &r, e) : err_nomem(e);

	if (id && (x == 0 || c->json))
		cli_done(c, &r, "subscription %s %s", id, done);
	return x;
}

CLI_COMMAND(subscriptions_set)
{
	_cleanup_json_ json_t *body = json_pack("{s:s*, s:o*}", "target", c->target, "events", events_json(c));

	return change(c, argv[0], body, "changed", e);
}

CLI_COMMAND(subscriptions_pause)
{
	_cleanup_json_ json_t *body = json_pack("{s:b}", "active", 0);

	return change(c, argv[0], body, "is paused", e);
}

CLI_COMMAND(subscriptions_resume)
{
	_cleanup_json_ json_t *body = json_pack("{s:b}", "active", 1);

	return change(c, argv[0], body, "goes on", e);
}

/* Asks until the attempt has ended: the center answers before. */
static int follow(struct cli *c, struct cli_reply *r, struct err *e)
{
	_cleanup_free_ char *path = NULL;
	double end = id_now_mono() + TEST_SECONDS;
	int x = 0;

	if (!cli_is_id(get_str(r->json, "id")))
		return err_set(e, -EPROTO, "the center gave the notice an id that is none");
	path = str_printf("/v1/notices/%s", get_str(r->json, "id"));
	if (!path)
		return err_nomem(e);
	while (x == 0 && strcmp(get_str(r->json, "state"), "pending") == 0 && id_now_mono() < end) {
		nanosleep(&(struct timespec){.tv_nsec = 500000000}, NULL);
		x = cli_http(c, "GET", path, NULL, r, e);
	}
	return x;
}

CLI_COMMAND(subscriptions_test)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *id = NULL;
	int x = cli_item(c, &cli_subscription, argv[0], "POST", "/test", NULL, &id, &r, e);
	bool told;

	if (x == 0)
		x = follow(c, &r, e);
	if (c->json)
		out_json(&r.body);
	if (x < 0)
		return x;
	told = strcmp(get_str(r.json, "state"), "delivered") == 0;
	if (told && !c->json)
		printf("subscription %s was told\n", id);
	return told ? CLI_OK
		    : err_set(e, -EIO, "subscription %s was not told: %s", id,
			      *get_str(r.json, "error") ? get_str(r.json, "error") : "there is no answer yet");
}

/* ---- notices ---- */

static enum out_colour event_cell(struct str *b, const json_t *notice)
{
	out_clean(b, get_str(notice, "event"));
	return OUT_BOLD;
}

static enum out_colour about_cell(struct str *b, const json_t *notice)
{
	const char *name = get_str(notice, "body.data.name");

	out_clean(b, *name ? name : get_str(notice, "body.data.id"));
	return OUT_PLAIN;
}

static enum out_colour notice_state(struct str *b, const json_t *notice)
{
	const char *s = get_str(notice, "state");

	out_word(b, s);
	return strcmp(s, "delivered") == 0 ? OUT_GREEN : strcmp(s, "given_up") == 0 ? OUT_RED : OUT_YELLOW;
}

static enum out_colour attempts_cell(struct str *b, const json_t *notice)
{
	str_addf(b, "%.0f", get_num(notice, "attempts", 0));
	return OUT_PLAIN;
}

static enum out_colour error_cell(struct str *b, const json_t *notice)
{
	out_clean(b, get_str(notice, "error"));
	return OUT_RED;
}

static const struct out_col notice_cols[] = {
    {"EVENT", false, 0, event_cell},     {"ABOUT", false, 1, about_cell},
    {"STATE", false, 0, notice_state},   {"TRIES", true, 0, attempts_cell},
    {"CREATED", false, 0, cell_created}, {"ERROR", false, 2, error_cell},
    {"ID", false, 0, cell_id},           {0},
};

const struct cli_noun cli_notice = {"notice", "notices", "/v1/notices", notice_cols, NULL, "Nothing was told yet.",
				    NULL};

CLI_COMMAND(subscriptions_notices)
{
	_cleanup_free_ char *id = NULL;
	int x = cli_find(c, &cli_subscription, argv[0], &id, e);

	c->subscription = id;
	return x < 0 ? x : cli_ls(c, &cli_notice, e);
}
