/* The center itself: its regions, its version, what happens in it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"
#include "version.h"

static enum out_colour region_kind(struct str *b, const json_t *j)
{
	out_clean(b, get_str(j, "provider"));
	return OUT_PLAIN;
}

static enum out_colour region_free(struct str *b, const json_t *j)
{
	if (get(j, "capacity.total")) {
		out_size(b, get_num(j, "capacity.free", 0));
		str_add(b, " of ");
		out_size(b, get_num(j, "capacity.total", 0));
	}
	return OUT_PLAIN;
}

static enum out_colour region_accelerator(struct str *b, const json_t *j)
{
	out_clean(b, get_str(j, "capacity.accelerator"));
	return OUT_PLAIN;
}

static const struct out_col region_cols[] = {
    {"NAME", false, 1, cell_name},  {"PROVIDER", false, 0, region_kind},
    {"FREE", true, 0, region_free}, {"ACCELERATOR", false, 0, region_accelerator},
    {"ID", false, 0, cell_id},      {0},
};

static void region_show(struct cli *c, json_t *r)
{
	_cleanup_(str_release) struct str b = {0};

	out_title(get_str(r, "name"), get_str(r, "id"));
	out_fieldf("Provider", "%s", get_str(r, "provider"));
	region_free(&b, r);
	out_field("Free", b.s ? b.s : "", OUT_PLAIN);
	if (*get_str(r, "uri")) {
		out_fieldf("Host", "%s", get_str(r, "uri"));
		out_fieldf("Pool", "%s", *get_str(r, "pool") ? get_str(r, "pool") : "default");
		out_fieldf("Network", "%s", *get_str(r, "network") ? get_str(r, "network") : "default");
		out_fieldf("Instances", "%.0f", get_num(r, "capacity.instances", 0));
	}
	if (*get_str(r, "public_address"))
		out_fieldf("Public address", "%s", get_str(r, "public_address"));
	if (*get_str(r, "private_address"))
		out_fieldf("Private address", "%s", get_str(r, "private_address"));
	out_fieldf("Accelerator", "%s", get_str(r, "capacity.accelerator"));
	str_release(&b);
	out_when(&b, get_num(r, "created", 0));
	out_field("Created", b.s ? b.s : "", OUT_PLAIN);
}

/* How much room there is isn't in the list: asking takes a moment. */
static void region_prepare(struct cli *c, json_t *items)
{
	json_t *item;
	size_t i;

	json_array_foreach(items, i, item)
	{
		_cleanup_reply_ struct cli_reply r = {0};
		_cleanup_free_ char *path = NULL;

		if (!cli_is_id(get_str(item, "id")))
			continue;
		path = cli_path(&cli_region, get_str(item, "id"), "");
		if (path && cli_http(c, "GET", path, NULL, &r, NULL) == 0)
			json_object_set(item, "capacity", json_object_get(r.json, "capacity"));
	}
}

const struct cli_noun cli_region = {
    "region", "regions", "/v1/regions", region_cols, region_show, "The center's operator adds them.", region_prepare};

static json_t *region_body(const struct cli *c)
{
	return json_pack("{s:s*, s:s*, s:s*, s:s*, s:s*, s:s*}", "public_address", c->public_address, "private_address",
			 c->private_address, "uri", c->uri, "pool", c->pool, "network", c->network, "accelerator",
			 c->accelerator);
}

CLI_COMMAND(regions_add)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_json_ json_t *body = region_body(c);
	int x;

	if (!body || json_object_set_new(body, "id", json_string(argv[0])) < 0 ||
	    json_object_set_new(body, "provider", json_string("libvirt")) < 0)
		return err_set(e, -EINVAL, "a value is not valid UTF-8");
	x = cli_http(c, "POST", cli_region.path, body, &r, e);
	if (x == 0 || c->json)
		cli_done(c, &r, "region %s was added: %s, %.0f CPUs, %.0f instances", argv[0],
			 get_str(r.json, "capacity.accelerator"), get_num(r.json, "capacity.cpus", 0),
			 get_num(r.json, "capacity.instances", 0));
	return x;
}

CLI_COMMAND(regions_set)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *id = NULL;
	_cleanup_json_ json_t *body = region_body(c);
	int x;

	if (!body)
		return err_set(e, -EINVAL, "a value is not valid UTF-8");
	if (!json_object_size(body)) {
		out_error("nothing to set (give --public-address or --private-address, or --uri and the like)");
		return CLI_USAGE;
	}
	x = cli_item(c, &cli_region, argv[0], "PATCH", "", body, &id, &r, e);
	if (id && (x == 0 || c->json))
		cli_done(c, &r, "region %s was changed", id);
	return x;
}

CLI_COMMAND(version)
{
	_cleanup_reply_ struct cli_reply r = {0};
	int x = cli_http(c, "GET", "/v1/version", NULL, &r, e);

	if (c->json) {
		out_json(&r.body);
		return x;
	}
	printf("replant  %s\n", REPLANT_VERSION);
	if (x == 0)
		cli_done(c, &r, "center   %s  %s", get_str(r.json, "version"), c->url);
	return x;
}

/* ---- events: text/event-stream ---- */
struct events {
	struct cli_events v; /* first */
	struct cli *c;
	uint64_t last; /* id of the last whole event */
};

static void event_stamp(const json_t *j)
{
	char stamp[32] = "";
	time_t t = (time_t)get_num(j, "time", (double)time(NULL));
	struct tm tm;

	if (localtime_r(&t, &tm))
		strftime(stamp, sizeof(stamp), "%H:%M:%S", &tm);
	printf("%s%s%s ", out_on(OUT_DIM), stamp, out_off());
}

/* "12:03:04 job.updated  web-1  running, syncing 43 %" */
static void event_text(struct str *b, const json_t *j)
{
	const char *name = get_str(j, "name"), *stage = get_str(j, "stage");

	out_clean(b, *name ? name : get_str(j, "id"));
	if (*get_str(j, "state")) {
		str_add(b, "  ");
		out_word(b, get_str(j, "state"));
	}
	if (*stage) {
		str_add(b, ", ");
		out_word(b, stage);
	}
	if (*stage && cli_percent(j) >= 0)
		str_addf(b, " %.0f %%", cli_percent(j));
	if (*get_str(j, "error.message")) {
		str_add(b, ": ");
		out_clean(b, get_str(j, "error.message"));
	}
}

static void event_print(struct cli_events *v)
{
	_cleanup_(str_release) struct str b = {0}, name = {0}, line = {0};
	_cleanup_json_ json_t *j = cli_events_json(v);
	struct events *all = (struct events *)(void *)v;

	all->last = v->id;
	if (!j)
		return;
	if (all->c->json) {
		out_json(&v->data);
	} else {
		event_text(&b, j);
		out_clean(&name, v->name);
		event_stamp(j);
		str_addf(&line, "%-16s %s", name.s ? name.s : "", b.s ? b.s : "");
		str_release(&b);
		if (line.s && out_width() > 20)
			out_fit(&b, line.s, out_width() - 10);
		printf("%s\n", b.s ? b.s : line.s ? line.s : "");
	}
	fflush(stdout);
}

static size_t events_write(char *p, size_t size, size_t n, void *arg)
{
	struct events *v = arg;
	size_t got = cli_events_write(p, size, n, &v->v);

	return ferror(stdout) ? 0 : got; /* whoever read us is gone */
}

static int events_stream(struct events *v, struct err *e)
{
	_cleanup_free_ char *path = v->last == CLI_UNSET
					? strdup("/v1/events")
					: str_printf("/v1/events?since=%llu", (unsigned long long)v->last);
	int r;

	if (!path)
		return err_nomem(e);
	cli_events_release(&v->v);
	r = cli_http_stream(v->c, path, 0, events_write, v, e);
	if (v->v.broken)
		return err_set(e, -EPROTO, "the center sent an event that is too large");
	return r < 0 ? r : err_set(e, -EAGAIN, "the center ended the stream");
}

CLI_COMMAND(events_follow)
{
	struct events v = {.c = c, .last = c->since, .v = {.event = event_print, .id = c->since}};
	struct cli_patience patience = {0};
	int r;

	do {
		uint64_t before = v.last;
		time_t began = time(NULL);

		r = events_stream(&v, e);
		if (v.last != before || time(NULL) - began > 5)
			cli_patience_ok(&patience);
		if (r == -EAGAIN && patience.failures == 0)
			out_error("%s (trying again)", e->msg);
	} while (r == -EAGAIN && cli_patience_wait(c, &patience, e) == 0);
	cli_events_release(&v.v);
	return r;
}
