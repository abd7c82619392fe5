/* Machines that run in a region, and their snapshots. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/id.h"
#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

#define FORWARDS_MAX 32u

/* ---- lists ---- */

/* What is being done to it says more than how it was before. */
static enum out_colour instance_state(struct str *b, const json_t *i)
{
	const char *action = get_str(i, "action"), *state = get_str(i, "state");

	out_word(b, *action ? action : state);
	if (*action && get(i, "percent") && !json_is_null(get(i, "percent")))
		str_addf(b, " %.0f %%", get_num(i, "percent", 0));
	return *action                                                          ? OUT_CYAN
	       : strcmp(state, "running") == 0                                  ? OUT_GREEN
	       : strcmp(state, "crashed") == 0 || strcmp(state, "missing") == 0 ? OUT_RED
										: OUT_PLAIN;
}

static enum out_colour instance_addresses(struct str *b, const json_t *i)
{
	const json_t *a;
	size_t k;

	json_array_foreach(get(i, "seen.addresses"), k, a)
	{
		str_add(b, k ? ", " : "");
		out_clean(b, json_string_value(a) ?: "");
	}
	return OUT_PLAIN;
}

static enum out_colour instance_region(struct str *b, const json_t *i)
{
	out_clean(b, get_str(i, "region"));
	return OUT_PLAIN;
}

static const struct out_col instance_cols[] = {
    {"NAME", false, 1, cell_name},
    {"STATE", false, 0, instance_state},
    {"ADDRESS", false, 2, instance_addresses},
    {"REGION", false, 0, instance_region},
    {"CREATED", false, 0, cell_created},
    {"ID", false, 0, cell_id},
    {0},
};

static const struct out_col snapshot_cols[] = {
    {"NAME", false, 1, cell_name}, {"CREATED", false, 0, cell_created}, {"ID", false, 0, cell_id}, {0}};

static enum out_colour there_instance(struct str *b, const json_t *i)
{
	out_clean(b, get_str(i, "instance"));
	return OUT_DIM;
}

static enum out_colour there_ref(struct str *b, const json_t *i)
{
	out_clean(b, get_str(i, "ref"));
	return OUT_PLAIN;
}

static const struct out_col there_cols[] = {{"NAME", false, 1, cell_name},
					    {"STATE", false, 0, instance_state},
					    {"REF", false, 0, there_ref},
					    {"INSTANCE", false, 0, there_instance},
					    {0}};

/* ---- one ---- */

static void show_settings(const json_t *settings)
{
	const char *key;
	json_t *value;

	if (json_object_size(settings))
		out_section("Settings");
	json_object_foreach((json_t *)settings, key, value)
	{
		_cleanup_free_ char *text = json_dumps(value, JSON_ENCODE_ANY);
		_cleanup_(str_release) struct str b = {0}, label = {0};

		if (strcmp(key, "name") == 0 || strcmp(key, "forwards") == 0 || json_is_null(value))
			continue;
		out_clean(&b, json_is_string(value) ? json_string_value(value) : text ?: "");
		out_word(&label, key);
		out_field(label.s ? label.s : "", b.s ? b.s : "", OUT_PLAIN);
	}
	const json_t *f;
	size_t i;

	json_array_foreach(get(settings, "forwards"), i, f)
	    out_fieldf("forward", "port %.0f of the host to %.0f", get_num(f, "host", 0), get_num(f, "guest", 0));
}

static void show_disks(const json_t *seen)
{
	const json_t *d;
	size_t i;

	if (json_array_size(get(seen, "disks")))
		out_section("Disks");
	json_array_foreach(get(seen, "disks"), i, d)
	{
		_cleanup_(str_release) struct str b = {0};
		char label[32];

		snprintf(label, sizeof(label), "Disk %zu", i);
		out_size(&b, get_num(d, "size", 0));
		str_add(&b, ", ");
		out_size(&b, get_num(d, "allocated", 0));
		str_add(&b, " stored");
		out_field(label, b.s ? b.s : "", OUT_PLAIN);
	}
}

static void instance_show(struct cli *c, json_t *i)
{
	_cleanup_(str_release) struct str b = {0};
	enum out_colour colour;

	out_title(get_str(i, "name"), get_str(i, "id"));
	out_fieldf("Description", "%s", get_str(i, "description"));
	colour = instance_state(&b, i);
	out_field("State", b.s ? b.s : "", colour);
	str_release(&b);
	if (*get_str(i, "error.message"))
		out_fieldf("Error", "%s (%s)", get_str(i, "error.message"), get_str(i, "error.action"));
	out_fieldf("Region", "%s", get_str(i, "region"));
	out_fieldf("Image", "%s", *get_str(i, "image") ? get_str(i, "image") : "none, it was imported");
	out_fieldf("Job", "%s", get_str(i, "job"));
	instance_addresses(&b, i);
	out_field("Addresses", b.s ? b.s : "", OUT_PLAIN);
	str_release(&b);
	cli_show_tags(i);
	out_when(&b, get_num(i, "created", 0));
	out_field("Created", b.s ? b.s : "", OUT_PLAIN);
	show_settings(get(i, "settings"));
	show_disks(get(i, "seen"));
}

const struct cli_noun cli_instance = {"instance",    "instances",   "/v1/instances",
				      instance_cols, instance_show, "'replant instances create' makes one of an image.",
				      NULL};

CLI_COMMAND(instances_ls)
{
	return cli_ls(c, &cli_instance, e);
}

CLI_COMMAND(instances_show)
{
	return cli_show(c, &cli_instance, argv[0], e);
}

CLI_COMMAND(instances_rename)
{
	return cli_rename(c, &cli_instance, argv[0], argv[1], e);
}

CLI_COMMAND(instances_rm)
{
	if (c->keep && c->force) {
		out_error("--keep and --force exclude each other");
		return CLI_USAGE;
	}
	return cli_rm(c, &cli_instance, argc, argv, e);
}

CLI_COMMAND(regions_instances)
{
	_cleanup_free_ char *id = NULL, *path = NULL;
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_table_ struct out_table t = {0};
	const json_t *item;
	size_t i;
	int x = cli_find(c, &cli_region, argv[0], &id, e);

	if (x < 0)
		return x;
	path = cli_path(&cli_region, id, "/instances");
	x = path ? cli_http(c, "GET", path, NULL, &r, e) : err_nomem(e);
	if (c->json)
		out_json(&r.body);
	if (x < 0 || c->json)
		return x;
	if (json_array_size(get(r.json, "items")) == 0) {
		fprintf(stderr, "Nothing runs in region %s.\n", id);
		return CLI_OK;
	}
	out_table_init(&t, there_cols, 0);
	json_array_foreach(get(r.json, "items"), i, item) out_table_item(&t, item);
	return out_table_print(&t, e);
}

/* ---- waiting ---- */

static int wait_error(const json_t *i, const char *done, struct err *e)
{
	_cleanup_(str_release) struct str b = {0};

	if (!*get_str(i, "error.message"))
		return 0;
	out_clean(&b, get_str(i, "error.message"));
	return err_set(e, -EIO, "instance %s was not %s: %s", get_str(i, "id"), done, b.s ? b.s : "");
}

/* Until nothing is being done to it. *ret has the row then. */
static int instance_wait(struct cli *c, const char *id, const char *done, struct cli_reply *ret, struct err *e)
{
	_cleanup_(str_release) struct str said = {0};
	struct cli_patience patience = {0};

	for (;;) {
		_cleanup_reply_ struct cli_reply r = {0};
		_cleanup_(str_release) struct str b = {0};
		_cleanup_free_ char *path = cli_path(&cli_instance, id, "");
		int x = path ? cli_http(c, "GET", path, NULL, &r, e) : err_nomem(e);

		if (x == -EAGAIN && cli_patience_wait(c, &patience, e) == 0)
			continue;
		if (x < 0)
			return x;
		cli_patience_ok(&patience);
		if (!*get_str(r.json, "action")) {
			cli_reply_release(ret);
			*ret = r;
			r = (struct cli_reply){0};
			return wait_error(ret->json, done, e);
		}
		instance_state(&b, r.json);
		if (b.s && !c->json && (!said.s || strcmp(said.s, b.s) != 0))
			fprintf(stderr, "%s\n", b.s);
		str_release(&said);
		str_add(&said, b.s ? b.s : "");
		cli_sleep(1);
	}
}

/* Asked, and waited for: the answer says that it isn't done yet, or how it is. */
static int instance_finish(struct cli *c, const char *id, const char *done, struct cli_reply *r, struct err *e)
{
	int x = 0;

	if (*get_str(r->json, "action") || r->status == 202)
		x = instance_wait(c, id, done, r, e);
	if (x == 0 || c->json)
		cli_done(c, r, "instance %s %s%s", id, done,
			 strcmp(get_str(r->json, "state"), "running") == 0 ? ", it runs" : "");
	return x;
}

static int instance_act(struct cli *c, const char *word, const char *verb, json_t *body, const char *done,
			struct err *e)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_json_ json_t *own = body;
	_cleanup_free_ char *id = NULL;
	int x = cli_item(c, &cli_instance, word, "POST", verb, body, &id, &r, e);

	if (x < 0) {
		if (id && c->json)
			out_json(&r.body);
		return x;
	}
	return instance_finish(c, id, done, &r, e);
}

static int act_all(struct cli *c, int argc, char **argv, const char *verb, const char *done, struct err *e)
{
	int r = 0;

	for (int i = 0; i < argc && r == 0; i++) {
		json_t *body = json_object();

		if (c->force)
			json_object_set_new(body, "force", json_true());
		if (c->seconds != CLI_UNSET)
			json_object_set_new(body, "seconds", json_integer((json_int_t)c->seconds));
		r = instance_act(c, argv[i], verb, body, done, e);
	}
	return r;
}

CLI_COMMAND(instances_start)
{
	return act_all(c, argc, argv, "/start", "started", e);
}

CLI_COMMAND(instances_stop)
{
	return act_all(c, argc, argv, "/stop", "stopped", e);
}

CLI_COMMAND(instances_restart)
{
	return act_all(c, argc, argv, "/restart", "restarted", e);
}

/* ---- making and changing ---- */

static int put_forwards(json_t *settings, const struct cli *c, struct err *e)
{
	json_t *list = json_array();

	json_object_set_new(settings, "forwards", list);
	for (size_t i = 0; i < c->forwards.n; i++) {
		const char *text = c->forwards.v[i], *colon = strchr(text, ':');
		_cleanup_free_ char *host = colon ? strndup(text, (size_t)(colon - text)) : NULL;
		uint64_t from, to;

		/* "none" takes them away. */
		if (strcmp(text, "none") == 0 && c->forwards.n == 1)
			return 0;
		if (!host || str_u64(host, 1, 65535, &from) < 0 || str_u64(colon + 1, 1, 65535, &to) < 0)
			return err_set(e, -EINVAL, "--forward '%s' is not HOST:GUEST, two ports", text);
		json_array_append_new(list, json_pack("{s:I, s:I}", "host", (json_int_t)from, "guest", (json_int_t)to));
	}
	return 0;
}

/* "" takes it back to the default. */
static void put_text(json_t *o, const char *key, const char *value)
{
	if (value)
		json_object_set_new(o, key, *value ? json_string(value) : json_null());
}

/* Those that were given; *ret is NULL when none was. */
static int settings_of(const struct cli *c, json_t **ret, struct err *e)
{
	json_t *o = json_object();
	int r = 0;

	if (c->cpus != CLI_UNSET)
		json_object_set_new(o, "cpus", json_integer((json_int_t)c->cpus));
	if (c->memory != CLI_UNSET)
		json_object_set_new(o, "memory_mib", json_integer((json_int_t)c->memory));
	put_text(o, "cpu", c->cpu);
	put_text(o, "firmware", c->firmware);
	put_text(o, "bus", c->bus);
	put_text(o, "network", c->network);
	put_text(o, "mac", c->mac);
	put_text(o, "address", c->address);
	if (c->forwards.n)
		r = put_forwards(o, c, e);
	if (r < 0 || json_object_size(o) == 0) {
		json_decref(o);
		o = NULL;
	}
	*ret = o;
	return r;
}

static int make(struct cli *c, const char *path, json_t *body, struct err *e)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *id = NULL;
	json_t *tags = json_object();
	int x = 0;

	for (size_t i = 0; i < c->tags.n && x == 0; i++)
		x = cli_tag_add(tags, c->tags.v[i], e);
	if (json_object_size(tags))
		json_object_set(body, "tags", tags);
	json_decref(tags);
	if (x == 0)
		x = cli_http(c, "POST", path, body, &r, e);
	if (x < 0) {
		if (c->json && r.body.s)
			out_json(&r.body);
		return x;
	}
	if (!cli_is_id(get_str(r.json, "id")))
		return err_set(e, -EPROTO, "the center gave the instance an id that is none");
	id = strdup(get_str(r.json, "id"));
	return id ? instance_finish(c, id, "made", &r, e) : err_nomem(e);
}

CLI_COMMAND(instances_create)
{
	_cleanup_json_ json_t *body = NULL;
	_cleanup_free_ char *image = NULL;
	json_t *settings = NULL;
	int r = cli_find(c, &cli_image, argv[0], &image, e);

	if (r == 0)
		r = settings_of(c, &settings, e);
	if (r < 0)
		return r;
	body = json_pack("{s:s, s:s, s:b, s:s*, s:s*, s:o*}", "name", argv[1], "image", image, "start", !c->no_start,
			 "region", c->region, "description", c->description, "settings", settings);
	return body ? make(c, "/v1/instances", body, e)
		    : err_set(e, -EINVAL, "the name '%s' is not valid UTF-8", argv[1]);
}

CLI_COMMAND(instances_import)
{
	_cleanup_json_ json_t *body = json_pack("{s:s, s:s, s:s*, s:s*}", "ref", argv[0], "name", argv[1], "region",
						c->region, "description", c->description);

	return body ? make(c, "/v1/instances/import", body, e)
		    : err_set(e, -EINVAL, "the name '%s' is not valid UTF-8", argv[1]);
}

CLI_COMMAND(instances_set)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_json_ json_t *body = NULL;
	_cleanup_free_ char *id = NULL;
	json_t *settings = NULL;
	int x = settings_of(c, &settings, e);

	if (x < 0)
		return x;
	body = json_pack("{s:s*, s:o*}", "description", c->description, "settings", settings);
	if (json_object_size(body) == 0) {
		out_error("nothing to change was given");
		return CLI_USAGE;
	}
	x = cli_item(c, &cli_instance, argv[0], "PATCH", "", body, &id, &r, e);
	if (x < 0) {
		if (id && c->json)
			out_json(&r.body);
		return x;
	}
	return instance_finish(c, id, "changed", &r, e);
}

/* ---- looking ---- */

CLI_COMMAND(instances_screenshot)
{
	_cleanup_free_ char *id = NULL, *path = NULL;
	int r = cli_find(c, &cli_instance, argv[0], &id, e);

	if (r < 0)
		return r;
	path = cli_path(&cli_instance, id, "/screenshot");
	return path ? cli_download(c, path, c->output, UINT64_MAX, NULL, e) : err_nomem(e);
}

static size_t collect(char *p, size_t size, size_t n, void *arg)
{
	struct str *b = arg;

	if (b->len + n > CLI_BODY_MAX)
		return 0;
	str_add_mem(b, p, n);
	return str_ok(b) ? n : 0;
}

/* What a console says would move a terminal about. */
static void print_serial(struct str *text)
{
	if (!out_tty()) {
		fwrite(text->s ? text->s : "", 1, text->len, stdout);
		return;
	}
	for (char *p = text->s; p && p < text->s + text->len;) {
		size_t left = text->len - (size_t)(p - text->s), n = 0;
		_cleanup_(str_release) struct str b = {0};
		bool whole;

		while (n < left && p[n] != '\n')
			n++;
		whole = n < left;
		for (size_t i = 0; i < n; i++)
			if (!p[i])
				p[i] = '?';
		p[n] = '\0'; /* there is a NUL behind the text */
		if (n && p[n - 1] == '\r')
			p[n - 1] = '\0';
		out_clean(&b, p);
		printf("%s%s", b.s ? b.s : "", whole ? "\n" : "");
		p += n + 1;
	}
}

CLI_COMMAND(instances_serial)
{
	_cleanup_free_ char *id = NULL;
	uint64_t at = c->since == CLI_UNSET ? 0 : c->since;
	int r = cli_find(c, &cli_instance, argv[0], &id, e);

	do {
		_cleanup_(str_release) struct str text = {0};
		_cleanup_free_ char *path = NULL;
		struct curl_header *h;

		path = r == 0 ? str_printf("/v1/instances/%s/serial?since=%llu", id, (unsigned long long)at) : NULL;
		if (r == 0)
			r = path ? cli_http_stream(c, path, 0, collect, &text, e) : err_nomem(e);
		if (r < 0)
			return r;
		if (curl_easy_header(c->curl, "Replant-Log-End", 0, CURLH_HEADER, -1, &h) != CURLHE_OK ||
		    str_u64(h->value, 0, INT64_MAX, &at) < 0)
			return err_set(e, -EPROTO, "what answers at '%s' is not a Replant center", c->url);
		print_serial(&text);
		fflush(stdout);
		if (c->follow)
			cli_sleep(1);
	} while (c->follow);
	return r;
}

/* ---- snapshots ---- */

/* Those of one instance, as a noun of their own. */
static int snapshots_of(struct cli *c, const char *word, struct cli_noun *ret, char **ret_path, char **ret_id,
			struct err *e)
{
	int r = cli_find(c, &cli_instance, word, ret_id, e);

	if (r < 0)
		return r;
	*ret_path = cli_path(&cli_instance, *ret_id, "/snapshots");
	if (!*ret_path)
		return err_nomem(e);
	*ret = (struct cli_noun){
	    "snapshot", "snapshots", *ret_path, snapshot_cols, NULL, "'replant instances snapshot' makes one.", NULL};
	return 0;
}

CLI_COMMAND(instances_snapshots)
{
	_cleanup_free_ char *id = NULL, *path = NULL;
	struct cli_noun n;
	int r = snapshots_of(c, argv[0], &n, &path, &id, e);

	return r < 0 ? r : cli_ls(c, &n, e);
}

CLI_COMMAND(instances_snapshot)
{
	_cleanup_reply_ struct cli_reply r = {0}, end = {0};
	_cleanup_json_ json_t *body = json_pack("{s:s}", "name", argv[1]);
	_cleanup_free_ char *id = NULL;
	int x;

	if (!body)
		return err_set(e, -EINVAL, "the name '%s' is not valid UTF-8", argv[1]);
	x = cli_item(c, &cli_instance, argv[0], "POST", "/snapshots", body, &id, &r, e);
	if (x == 0 && r.status == 202)
		x = instance_wait(c, id, "given a snapshot", &end, e);
	if (id && (x == 0 || c->json))
		cli_done(c, &r, "snapshot '%s' of instance %s made: %s", argv[1], id, get_str(r.json, "id"));
	return x;
}

/* By its name or id, among those of this instance: the id of another's is a mistake, and reverting to it would be one
 * that can't be undone. */
static int snapshot_find(struct cli *c, char **argv, char **ret_instance, char **ret, struct err *e)
{
	_cleanup_json_ json_t *items = NULL;
	_cleanup_free_ char *path = NULL;
	const json_t *item = NULL;
	struct cli_noun n;
	int r = snapshots_of(c, argv[0], &n, &path, ret_instance, e);

	r = r < 0 ? r : cli_list(c, &n, &items, e);
	r = r < 0 ? r : cli_match(&n, items, argv[1], &item, e);
	if (r < 0)
		return r;
	*ret = strdup(get_str(item, "id"));
	return *ret ? 0 : err_nomem(e);
}

static const struct cli_noun snapshot_noun = {"snapshot", "snapshots", "/v1/snapshots", snapshot_cols, NULL, "", NULL};

CLI_COMMAND(instances_revert)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *instance = NULL, *id = NULL, *path = NULL;
	int x = snapshot_find(c, argv, &instance, &id, e);

	if (x < 0)
		return x;
	path = cli_path(&snapshot_noun, id, "/revert");
	x = path ? cli_http(c, "POST", path, NULL, &r, e) : err_nomem(e);
	if (x < 0) {
		if (c->json && r.body.s)
			out_json(&r.body);
		return x;
	}
	return instance_finish(c, instance, "reverted", &r, e);
}

CLI_COMMAND(instances_forget)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *instance = NULL, *id = NULL, *path = NULL;
	int x = snapshot_find(c, argv, &instance, &id, e);

	if (x < 0)
		return x;
	path = cli_path(&snapshot_noun, id, "");
	x = path ? cli_http(c, "DELETE", path, NULL, &r, e) : err_nomem(e);
	if (x == 0 || c->json)
		cli_done(c, &r, "snapshot %s removed", id);
	return x;
}
