#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/id.h"
#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

static enum out_colour job_source(struct str *b, const json_t *j)
{
	const char *name = get_str(j, "source_name");

	out_clean(b, *name ? name : get_str(j, "source"));
	return OUT_PLAIN;
}

static enum out_colour job_state(struct str *b, const json_t *j)
{
	const char *stage = get_str(j, "stage");
	enum out_colour c = cell_state(b, j);

	if (strcmp(get_str(j, "state"), "running") == 0 && *stage) {
		str_release(b);
		out_word(b, stage);
	}
	return c;
}

static enum out_colour job_percent(struct str *b, const json_t *j)
{
	double p = cli_percent(j);

	if (p >= 0 && strcmp(get_str(j, "state"), "running") == 0)
		str_addf(b, "%.0f %%", p > 99 && p < 100 ? 99 : p);
	return OUT_PLAIN;
}

static const struct out_col job_cols[] = {
    {"NAME", false, 1, cell_name},
    {"STATE", false, 0, job_state},
    {"DONE", true, 0, job_percent},
    {"SOURCE", false, 2, job_source},
    {"CREATED", false, 0, cell_created},
    {"ID", false, 0, cell_id},
    {0},
};

static void job_when(const char *label, const json_t *j, const char *key)
{
	_cleanup_(str_release) struct str b = {0};

	if (get_num(j, key, 0) <= 0)
		return;
	out_when(&b, get_num(j, key, 0));
	out_field(label, b.s ? b.s : "", OUT_PLAIN);
}

static void job_address(const json_t *j)
{
	const char *address = get_str(j, "parameters.address"), *gateway = get_str(j, "parameters.gateway");
	const char *servers = get_str(j, "parameters.nameservers");

	if (*address && strcmp(address, "dhcp") != 0)
		out_fieldf("Address", "%s%s%s%s%s", address, *gateway ? ", gateway " : "", gateway,
			   *servers ? ", name servers " : "", servers);
}

static void job_parameters(const json_t *j)
{
	_cleanup_(str_release) struct str b = {0};
	double rate = get_num(j, "parameters.rate_mbit", 0);

	if (!get(j, "parameters"))
		return;
	str_addf(&b, "%.0f connections, compression ", get_num(j, "parameters.connections", 0));
	if (*get_str(j, "parameters.compression"))
		str_addf(&b, "%s, ", get_str(j, "parameters.compression"));
	else
		str_addf(&b, "%.0f, ", get_num(j, "parameters.compression", 0));
	if (rate > 0)
		str_addf(&b, "at most %.0f Mbit/s, ", rate);
	str_addf(&b, "%s digests, %s, %s", get_true(j, "parameters.checksum") ? "SHA-256" : "XXH3-128",
		 strcmp(get_str(j, "parameters.on_read_error"), "zero") == 0 ? "unreadable sectors become zeros"
									     : "fails on unreadable sectors",
		 get_true(j, "parameters.test_boot") ? "test boot" : "no test boot");
	out_field("Parameters", b.s ? b.s : "", OUT_PLAIN);
	cli_show_checks(get(j, "parameters.checks"));
	if (strcmp(get_str(j, "parameters.license"), "none") != 0)
		out_fieldf("Licence", "%s", get_str(j, "parameters.license"));
	if (strcmp(get_str(j, "parameters.encryption"), "off") == 0)
		out_fieldf("Encryption", "off");
	if (strcmp(get_str(j, "parameters.network"), "private") == 0)
		out_fieldf("Network", "private");
	job_address(j);
}

static const struct out_col stage_cols[] = {
    {"STAGE", false, 0, NULL}, {"STARTED", false, 0, NULL}, {"TOOK", true, 0, NULL}, {0}};

static void job_stages(const json_t *j)
{
	_cleanup_table_ struct out_table t;
	const json_t *stage;
	struct str b = {0};
	size_t i;

	out_table_init(&t, stage_cols, 2);
	if (json_array_size(get(j, "stages")) == 0)
		return;
	out_section("Stages");
	json_array_foreach(get(j, "stages"), i, stage)
	{
		out_word(&b, get_str(stage, "name"));
		out_table_cell(&t, &b, OUT_PLAIN);
		out_when(&b, get_num(stage, "started", 0));
		out_table_cell(&t, &b, OUT_PLAIN);
		if (get(stage, "seconds"))
			out_duration(&b, get_num(stage, "seconds", 0));
		out_table_cell(&t, &b, OUT_PLAIN);
	}
	(void)out_table_print(&t, NULL);
}

static enum out_colour run_number(struct str *b, const json_t *run)
{
	str_addf(b, "%.0f", get_num(run, "number", 0));
	return OUT_PLAIN;
}

static enum out_colour run_trigger(struct str *b, const json_t *run)
{
	out_word(b, get_str(run, "trigger"));
	return OUT_PLAIN;
}

static enum out_colour run_started(struct str *b, const json_t *run)
{
	out_when(b, get_num(run, "started", 0));
	return OUT_PLAIN;
}

static enum out_colour run_took(struct str *b, const json_t *run)
{
	if (get_num(run, "ended", 0) > 0)
		out_duration(b, get_num(run, "ended", 0) - get_num(run, "started", 0));
	return OUT_PLAIN;
}

static enum out_colour run_bytes(struct str *b, const json_t *run)
{
	if (get_num(run, "bytes", 0) > 0)
		out_size(b, get_num(run, "bytes", 0));
	return OUT_PLAIN;
}

static enum out_colour run_image(struct str *b, const json_t *run)
{
	out_clean(b, get_str(run, "image"));
	return OUT_PLAIN;
}

static const struct out_col run_cols[] = {{"RUN", true, 0, run_number},        {"STATE", false, 0, cell_state},
					  {"BEGUN BY", false, 0, run_trigger}, {"STARTED", false, 0, run_started},
					  {"TOOK", true, 0, run_took},         {"WRITTEN", true, 0, run_bytes},
					  {"IMAGE", false, 0, run_image},      {0}};

static int job_print_runs(const json_t *runs, size_t indent, struct err *e)
{
	_cleanup_table_ struct out_table t;
	const json_t *run;
	size_t i;

	out_table_init(&t, run_cols, indent);
	json_array_foreach(runs, i, run) out_table_item(&t, run);
	return json_array_size(runs) ? out_table_print(&t, e) : 0;
}

CLI_COMMAND(jobs_runs)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *id = NULL, *path = NULL;
	int x = cli_find(c, &cli_job, argv[0], &id, e);

	path = x == 0 ? cli_path(&cli_job, id, "/runs?limit=500") : NULL;
	if (x == 0)
		x = path ? cli_http(c, "GET", path, NULL, &r, e) : err_nomem(e);
	if (c->json && r.json)
		out_json(&r.body);
	return x < 0 || c->json ? x : job_print_runs(get(r.json, "items"), 0, e);
}

/* An incremental job, as such. */
static void job_plan(const json_t *j)
{
	_cleanup_(str_release) struct str b = {0};

	if (!get_true(j, "parameters.incremental"))
		return;
	str_addf(&b, "every %.0f h, the last %.0f images stay", get_num(j, "parameters.interval_hours", 0),
		 get_num(j, "parameters.max_images", 0));
	out_field("Incremental", b.s ? b.s : "", OUT_PLAIN);
	if (get_num(j, "number", 0) > 0)
		out_fieldf("Run", "%.0f%s", get_num(j, "number", 0), get_true(j, "last") ? ", the last" : "");
}

static void job_bytes(const json_t *j, const char *key, const char *label)
{
	_cleanup_(str_release) struct str b = {0};

	if (get_num(j, key, 0) <= 0)
		return;
	out_size(&b, get_num(j, key, 0));
	out_field(label, b.s ? b.s : "", OUT_PLAIN);
}

static void job_progress(const json_t *j)
{
	_cleanup_(str_release) struct str b = {0};
	double froze = get_num(j, "progress.freeze_ms", 0);

	job_percent(&b, j);
	out_field("Done", b.s ? b.s : "", OUT_PLAIN);
	job_bytes(j, "progress.bytes_read", "Read");
	job_bytes(j, "progress.bytes_sent", "Sent");
	job_bytes(j, "progress.bytes_written", "Written");
	str_release(&b);
	if (froze > 0)
		out_duration(&b, froze / 1000);
	out_field("Frozen", b.s ? b.s : "", OUT_PLAIN);
}

/* What it costs as long as it is there. */
static void job_holds(const json_t *j)
{
	double disk = get_num(j, "holds.disk", 0), memory = get_num(j, "holds.memory", 0);
	char a[32], b[32];

	if (memory > 0)
		out_fieldf("Holds", "%s of disk, %s of memory", str_bytes((uint64_t)disk, a, sizeof(a)),
			   str_bytes((uint64_t)memory, b, sizeof(b)));
	else if (disk > 0)
		out_fieldf("Holds", "%s of disk", str_bytes((uint64_t)disk, a, sizeof(a)));
}

static void job_show(struct cli *c, json_t *j)
{
	_cleanup_(str_release) struct str b = {0};
	const char *remedy = cli_remedy(j), *step = get_str(j, "step.text");

	out_title(get_str(j, "name"), get_str(j, "id"));
	cell_state(&b, j);
	if (*get_str(j, "stage") && strcmp(get_str(j, "state"), "finished") != 0) {
		str_add(&b, ", ");
		out_word(&b, get_str(j, "stage"));
	}
	out_field("State", b.s ? b.s : "", out_state_colour(get_str(j, "state")));
	out_fieldf("Step", "%s", *step ? step : get_str(j, "step.name"));
	str_release(&b);
	out_clean(&b, get_str(j, "error.message"));
	out_field("Error", b.s ? b.s : "", OUT_RED);
	out_field("What to do", remedy ? remedy : "", OUT_PLAIN);
	out_fieldf("Description", "%s", get_str(j, "description"));
	if (*get_str(j, "source_name"))
		out_fieldf("Source", "%s (%s)", get_str(j, "source_name"), get_str(j, "source"));
	else
		out_fieldf("Source", "%s", get_str(j, "source"));
	out_fieldf("Region", "%s", get_str(j, "region"));
	out_fieldf("Instance", "%s", get_str(j, "instance"));
	out_fieldf("Image name", "%s", get_str(j, "image_name"));
	out_fieldf("Image", "%s", get_str(j, "image"));
	cli_show_tags(j);
	job_parameters(j);
	job_plan(j);
	job_progress(j);
	cli_test_summary(j);
	job_holds(j);
	job_when("Created", j, "created");
	job_when("Started", j, "started");
	job_when("Finished", j, "finished");
	job_when(strcmp(get_str(j, "state"), "ready") == 0 ? "Starts" : "Next run", j, "next_run");
	if (!get(j, "finished"))
		job_when("Expires", j, "expires");
	job_stages(j);
	if (get_true(j, "parameters.incremental") && json_array_size(get(j, "runs"))) {
		out_section("Runs");
		(void)job_print_runs(get(j, "runs"), 2, NULL);
	}
}

/* Shown alone, a job's source has its name, too. */
static void job_show_named(struct cli *c, json_t *j)
{
	_cleanup_json_ json_t *one = json_array();

	if (one && json_array_append(one, j) == 0)
		cli_name_sources(c, one);
	job_show(c, j);
}

const struct cli_noun cli_job = {"job",           "jobs",
				 "/v1/jobs",      job_cols,
				 job_show_named,  "'replant jobs create SOURCE --start --watch' makes one.",
				 cli_name_sources};

static int job_post_body(struct cli *c, const char *id, const char *suffix, json_t *body, const char *done,
			 struct err *e)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *path = cli_path(&cli_job, id, suffix);
	int x;

	if (!path)
		return err_nomem(e);
	x = cli_http(c, "POST", path, body, &r, e);
	if ((x == 0 && !c->watch) || c->json)
		cli_done(c, &r, "job %s %s", id, done);
	return x;
}

static int job_post(struct cli *c, const char *id, const char *suffix, const char *done, struct err *e)
{
	return job_post_body(c, id, suffix, NULL, done, e);
}

static void job_put(json_t *o, const char *key, json_t *value)
{
	if (value)
		json_object_set_new(o, key, value);
}

static void job_put_str(json_t *o, const char *key, const char *s)
{
	if (s)
		json_object_set_new(o, key, json_string(s));
}

static void job_put_num(json_t *o, const char *key, uint64_t n)
{
	if (n != CLI_UNSET)
		json_object_set_new(o, key, json_integer((json_int_t)n));
}

/* "24h", "7d" or hours; CLI_UNSET when it is none of them. */
static uint64_t job_hours(const char *text)
{
	char *end;
	unsigned long long n = strtoull(text, &end, 10);

	if (end == text || *text == '-' || n > 1000)
		return CLI_UNSET;
	if (strcmp(end, "d") == 0)
		return n * 24;
	return *end == '\0' || strcmp(end, "h") == 0 ? n : CLI_UNSET;
}

static bool time_offset(const char *text, double *ret)
{
	static const struct {
		char letter;
		double seconds;
	} units[] = {{'m', 60}, {'h', 3600}, {'d', 86400}};
	char *end;
	unsigned long long n = strtoull(text, &end, 10);

	for (size_t i = 0; end != text && n <= 100000 && i < ARRAY_SIZE(units); i++)
		if (end[0] == units[i].letter && !end[1]) {
			*ret = (double)n * units[i].seconds;
			return true;
		}
	return false;
}

uint64_t cli_time(const char *text)
{
	static const char *const forms[] = {"%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M%z", "%Y-%m-%dT%H:%M:%S",
					    "%Y-%m-%dT%H:%M", "%Y-%m-%d %H:%M"};
	double after;

	if (*text == '+')
		return time_offset(text + 1, &after) ? (uint64_t)(id_now() + after) : 0;
	for (size_t i = 0; i < ARRAY_SIZE(forms); i++) {
		struct tm tm = {.tm_isdst = -1};
		const char *end = strptime(text, forms[i], &tm);
		long zone = tm.tm_gmtoff;
		time_t t;

		if (!end || *end)
			continue;
		t = str_ends(forms[i], "%z") ? timegm(&tm) - zone : mktime(&tm);
		return t > 0 ? (uint64_t)t : 0;
	}
	return 0;
}

static bool job_tags_fit(const struct cli *c)
{
	_cleanup_json_ json_t *tags = json_object();
	struct err e = {0};

	for (size_t i = 0; i < c->tags.n; i++)
		if (cli_tag_add(tags, c->tags.v[i], &e) < 0) {
			out_error("%s", e.msg);
			return false;
		}
	return true;
}

bool cli_job_options_fit(const struct cli *c)
{
	if (c->checksum && c->no_checksum)
		out_error("--checksum and --no-checksum exclude each other");
	else if (c->interval && job_hours(c->interval) == CLI_UNSET)
		out_error("--interval '%s' is no time such as 24h or 7d", c->interval);
	else if (c->at && strcmp(c->at, "never") != 0 && !cli_time(c->at))
		out_error("--at '%s' is no time such as 2027-01-31T03:00, 2027-01-31T03:00+01:00 or +2h", c->at);
	else if (c->diagnostic_logs && strcmp(c->diagnostic_logs, "on") != 0 && strcmp(c->diagnostic_logs, "off") != 0)
		out_error("--diagnostic-logs '%s' is neither on nor off", c->diagnostic_logs);
	else if (c->at && (c->start || c->watch || c->test || c->test_only))
		out_error("--at and --start, --test or --watch exclude each other");
	else if (c->test + c->test_only + c->start > 1)
		out_error("--start, --test and --test-only exclude each other");
	else
		return job_tags_fit(c) && cli_checks_fit(c);
	return false;
}

static void job_put_servers(json_t *p, const struct opt_list *l)
{
	_cleanup_(str_release) struct str b = {0};

	for (size_t i = 0; i < l->n; i++)
		str_addf(&b, "%s%s", i ? "," : "", l->v[i]);
	job_put_str(p, "nameservers", b.s);
}

/* Only what was given: the center knows the defaults. */
json_t *cli_job_request(const struct cli *c, const char *source)
{
	json_t *o = json_pack("{s:s*, s:{}}", "source", source, "parameters"), *p = json_object_get(o, "parameters"),
	       *checks = NULL;

	if (!o)
		return NULL;
	job_put(p, "incremental", c->incremental ? json_true() : NULL);
	job_put_num(p, "interval_hours", c->interval ? job_hours(c->interval) : CLI_UNSET);
	job_put_num(p, "max_images", c->max_images);
	job_put_num(p, "max_freeze", c->max_freeze);
	job_put_str(o, "name", c->name);
	job_put_str(o, "description", c->description);
	job_put_str(o, "image_name", c->image_name);
	job_put_str(o, "region", c->region);
	if (c->compression == CLI_LEVEL_AUTO)
		job_put_str(p, "compression", "auto");
	else
		job_put_num(p, "compression", c->compression);
	job_put_num(p, "rate_mbit", c->rate);
	job_put_str(p, "license", c->license);
	job_put_str(p, "network", c->network);
	job_put_str(p, "encryption", c->encryption);
	job_put_str(p, "address", c->address);
	job_put_str(p, "gateway", c->gateway);
	job_put_servers(p, &c->nameservers);
	if (c->diagnostic_logs)
		job_put(p, "diagnostic_logs", json_boolean(strcmp(c->diagnostic_logs, "on") == 0));
	job_put_num(p, "transition_cpus", c->transition_cpus);
	job_put_num(p, "transition_memory", c->transition_memory);
	job_put_num(o, "valid_days", c->valid_days);
	job_put_str(o, "client_token", c->client_token);
	job_put_str(o, "template", c->template);
	if (c->at)
		job_put_str(o, "execution", strcmp(c->at, "never") == 0 ? "create_only" : "migrate_later");
	if (c->test || c->test_only)
		job_put_str(o, "execution", c->test ? "test_and_migrate" : "test_only");
	if (c->at && strcmp(c->at, "never") != 0)
		job_put_num(o, "start_at", cli_time(c->at));
	if (c->tags.n)
		json_object_set_new(o, "tags", json_object());
	for (size_t i = 0; i < c->tags.n; i++)
		cli_tag_add(json_object_get(o, "tags"), c->tags.v[i], NULL);
	job_put_num(p, "connections", c->connections);
	job_put_str(p, "on_read_error", c->on_read_error);
	job_put(p, "checksum", c->checksum ? json_true() : c->no_checksum ? json_false() : NULL);
	job_put(p, "test_boot", c->no_test_boot ? json_false() : NULL);
	job_put(p, "rollback_on_failure", c->no_rollback ? json_false() : NULL);
	job_put(p, "image_check", c->no_image_check ? json_false() : NULL);
	if (c->checks.n && cli_checks(c, &checks, NULL) == 0)
		job_put(p, "checks", checks);
	return o;
}

/* Starts the new job, if it is wanted, and watches it. */
static int job_go_on(struct cli *c, char *id, struct err *e)
{
	int r = 0;

	if ((c->start || c->watch) && !c->test && !c->test_only)
		r = job_post(c, id, "/start", "started", e);
	if (r < 0)
		return err_prefix(e, "job %s was created but could not be started", id);
	return c->watch ? cli_watch(c, &id, 1, e) : CLI_OK;
}

CLI_COMMAND(jobs_create)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *source = NULL, *id = NULL;
	_cleanup_json_ json_t *body = NULL;
	int x;

	if (!cli_job_options_fit(c))
		return CLI_USAGE;
	x = cli_find(c, &cli_source, argv[0], &source, e);
	if (x < 0)
		return x;
	body = cli_job_request(c, source);
	if (!body)
		return err_nomem(e);
	if (c->template) {
		_cleanup_free_ char *template = NULL;

		x = cli_find(c, &cli_template, c->template, &template, e);
		if (x < 0)
			return x;
		json_object_set_new(body, "template", json_string(template));
	}
	x = cli_put_destination(c, body, e);
	if (x < 0)
		return x;
	x = cli_http(c, "POST", "/v1/jobs", body, &r, e);
	if (x < 0) {
		if (c->json)
			out_json(&r.body);
		return x;
	}
	x = cli_find(c, &cli_job, get_str(r.json, "id"), &id, e);
	if (x < 0)
		return x;
	cli_done(c, &r, "job '%s' created: %s%s", get_str(r.json, "name"), id,
		 c->test || c->test_only   ? " (it is tested)"
		 : c->start || c->watch    ? ""
		 : get(r.json, "next_run") ? " (it starts by itself)"
					   : " (start it with 'replant jobs start')");
	fflush(stdout);
	/* The same command came before, and its job has gone on meanwhile. */
	if (r.status == 200 && strcmp(get_str(r.json, "state"), "ready") != 0)
		return c->watch ? cli_watch(c, &id, 1, e) : CLI_OK;
	return job_go_on(c, id, e);
}

static int job_find_all(struct cli *c, int n, char **words, char **ret_ids, struct err *e)
{
	for (int i = 0; i < n; i++) {
		int r = cli_find(c, &cli_job, words[i], &ret_ids[i], e);

		if (r < 0)
			return r;
	}
	return 0;
}

static void job_free_ids(char **ids, size_t n)
{
	for (size_t i = 0; ids && i < n; i++)
		free(ids[i]);
	free(ids);
}

static int job_start_all(struct cli *c, int argc, char **argv, const char *suffix, struct err *e)
{
	char **ids = calloc((size_t)argc, sizeof(*ids));
	int r = ids ? job_find_all(c, argc, argv, ids, e) : err_nomem(e);

	for (int i = 0; i < argc && r == 0; i++) {
		_cleanup_json_ json_t *body = c->no_test ? json_pack("{s:s}", "test", "none") : NULL;

		r = job_post_body(c, ids[i], suffix, body, "started", e);
	}
	if (r == 0 && c->watch)
		r = cli_watch(c, ids, (size_t)argc, e);
	job_free_ids(ids, (size_t)argc);
	return r;
}

CLI_COMMAND(jobs_start)
{
	return job_start_all(c, argc, argv, "/start", e);
}

CLI_COMMAND(jobs_run)
{
	return job_start_all(c, argc, argv, "/run", e);
}

CLI_COMMAND(jobs_cutover)
{
	_cleanup_free_ char *id = NULL;
	_cleanup_json_ json_t *body = json_pack("{s:b}", "sync", !c->no_sync);
	int r = body ? cli_find(c, &cli_job, argv[0], &id, e) : err_nomem(e);

	if (r == 0)
		r = job_post_body(c, id, "/cutover", body,
				  c->no_sync ? "ends with its last image" : "runs once more and ends", e);
	return r == 0 && c->watch ? cli_watch(c, &id, 1, e) : r;
}

CLI_COMMAND(jobs_set)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *id = NULL, *path = NULL;
	_cleanup_json_ json_t *body = cli_job_request(c, NULL);
	int x;

	if (!cli_job_options_fit(c))
		return CLI_USAGE;
	if (body && json_object_size(json_object_get(body, "parameters")) == 0)
		json_object_del(body, "parameters");
	if (!body || json_object_size(body) == 0) {
		out_error("nothing to change was given (see 'replant jobs set --help')");
		return CLI_USAGE;
	}
	x = cli_find(c, &cli_job, argv[0], &id, e);
	path = x == 0 ? cli_path(&cli_job, id, "") : NULL;
	if (x == 0)
		x = path ? cli_http(c, "PATCH", path, body, &r, e) : err_nomem(e);
	if (x == 0 || c->json)
		cli_done(c, &r, "job %s changed", id);
	return x;
}

CLI_COMMAND(jobs_stop)
{
	for (int i = 0; i < argc; i++) {
		_cleanup_free_ char *id = NULL;
		int r = cli_find(c, &cli_job, argv[i], &id, e);

		if (r == 0)
			r = job_post(c, id, "/stop", "stopped", e);
		if (r < 0)
			return r;
	}
	return CLI_OK;
}

/* Without operands: all that are at work now. */
static int job_running(struct cli *c, char ***ret_ids, size_t *ret_n, struct err *e)
{
	_cleanup_json_ json_t *items = NULL;
	json_t *item;
	size_t i, n = 0;
	char **ids;
	int r = cli_list(c, &cli_job, &items, e);

	if (r < 0)
		return r;
	ids = calloc(json_array_size(items) + 1, sizeof(*ids));
	if (!ids)
		return err_nomem(e);
	json_array_foreach(items, i, item)
	{
		if (strcmp(get_str(item, "state"), "running") == 0)
			ids[n++] = strdup(get_str(item, "id"));
		if (n && !ids[n - 1]) {
			job_free_ids(ids, n);
			return err_nomem(e);
		}
	}
	*ret_ids = ids;
	*ret_n = n;
	return 0;
}

CLI_COMMAND(jobs_watch)
{
	char **ids = NULL;
	size_t n = (size_t)argc;
	int r;

	if (argc > 0) {
		ids = calloc(n, sizeof(*ids));
		r = ids ? job_find_all(c, argc, argv, ids, e) : err_nomem(e);
	} else {
		r = job_running(c, &ids, &n, e);
	}
	if (r == 0 && n == 0)
		fprintf(stderr, "No job is running.\n");
	if (r == 0)
		r = cli_watch(c, ids, n, e);
	job_free_ids(ids, n);
	return r;
}
