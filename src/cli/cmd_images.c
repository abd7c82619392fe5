#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/id.h"
#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

static double image_bytes(const json_t *i, const char *key)
{
	const json_t *disk;
	double sum = 0;
	size_t k;

	json_array_foreach(get(i, "manifest.disks"), k, disk) sum += get_num(disk, key, 0);
	return sum;
}

static enum out_colour image_size(struct str *b, const json_t *i)
{
	double size = get_num(i, "size", image_bytes(i, "size"));

	if (size > 0)
		out_size(b, size);
	return OUT_PLAIN;
}

static enum out_colour image_boot_state(struct str *b, const json_t *i)
{
	const char *state = get_str(i, "boot.state");

	if (!*state)
		str_add(b, "not booted");
	out_word(b, state);
	return *state ? out_state_colour(state) : OUT_DIM;
}

static enum out_colour image_source(struct str *b, const json_t *i)
{
	const char *name = get_str(i, "source_name");

	out_clean(b, *name ? name : get_str(i, "source"));
	return OUT_PLAIN;
}

static const struct out_col image_cols[] = {
    {"NAME", false, 1, cell_name},
    {"SIZE", true, 0, image_size},
    {"TEST BOOT", false, 0, image_boot_state},
    {"SOURCE", false, 2, image_source},
    {"CREATED", false, 0, cell_created},
    {"ID", false, 0, cell_id},
    {0},
};

/* ---- the manifest: what lies there ---- */
static const struct out_col image_disk_cols[] = {{"DISK", true, 0, NULL},     {"SIZE", true, 0, NULL},
						 {"STORED", true, 0, NULL},   {"FORMAT", false, 0, NULL},
						 {"SHA-256", false, 2, NULL}, {0}};

static void image_disk(struct out_table *t, const json_t *disk, size_t i)
{
	struct str b = {0};

	str_addf(&b, "%zu", i);
	out_table_cell(t, &b, OUT_PLAIN);
	out_size(&b, get_num(disk, "size", 0));
	out_table_cell(t, &b, OUT_PLAIN);
	if (get(disk, "allocated"))
		out_size(&b, get_num(disk, "allocated", 0));
	out_table_cell(t, &b, OUT_PLAIN);
	out_clean(&b, get_str(disk, "format"));
	out_table_cell(t, &b, OUT_PLAIN);
	out_clean(&b, get_str(disk, "sha256"));
	out_table_cell(t, &b, OUT_DIM);
}

static void image_disks(const json_t *image)
{
	_cleanup_table_ struct out_table t;
	const json_t *disks = get(image, "manifest.disks"), *disk;
	size_t i;

	out_table_init(&t, image_disk_cols, 2);
	if (json_array_size(disks) == 0)
		return;
	out_section("Disks");
	json_array_foreach(disks, i, disk) image_disk(&t, disk, i);
	(void)out_table_print(&t, NULL);
}

/* ---- the report: what was verified, what conversion changed ---- */

static void image_texts(const char *title, const json_t *list, enum out_colour c)
{
	const json_t *v;
	size_t i;

	if (json_array_size(list))
		out_section(title);
	json_array_foreach(list, i, v)
	{
		_cleanup_(str_release) struct str b = {0};

		out_clean(&b, json_is_string(v) ? json_string_value(v) : get_str(v, "message"));
		printf("  %s%s%s\n", out_on(c), b.s ? b.s : "", out_off());
	}
}

static void image_step_files(const json_t *step)
{
	const json_t *file;
	size_t i;

	json_array_foreach(get(step, "files"), i, file)
	{
		_cleanup_(str_release) struct str b = {0};

		out_word(&b, get_str(file, "action"));
		str_add(&b, *get_str(file, "action") ? " " : "");
		out_clean(&b, json_is_string(file) ? json_string_value(file) : get_str(file, "path"));
		printf("  %-18s   %s\n", "", b.s ? b.s : "");
	}
}

static void image_steps(const json_t *steps, bool all)
{
	const json_t *step;
	size_t i;

	json_array_foreach(steps, i, step)
	{
		_cleanup_(str_release) struct str label = {0}, b = {0};
		const char *state = get_str(step, "state");
		bool idle = strcmp(state, "skipped") == 0 || strcmp(state, "not_needed") == 0;

		if (idle && !all)
			continue;
		out_word(&label, get_str(step, "name"));
		out_word(&b, state);
		str_add(&b, b.len ? ": " : "");
		out_clean(&b, get_str(step, "summary"));
		if (label.s && b.s)
			out_field(label.s, b.s, strcmp(state, "failed") == 0 ? OUT_RED : idle ? OUT_DIM : OUT_PLAIN);
		image_step_files(step);
	}
}

static void image_conversion(const json_t *conversion, bool all)
{
	if (!json_object_size(conversion))
		return;
	out_section("Conversion");
	out_fieldf("System", "%s", get_str(conversion, "system.name"));
	out_fieldf("Boots by", "%s", get_str(conversion, "firmware"));
	image_steps(get(conversion, "steps"), all);
	image_texts("Look at", get(conversion, "warnings"), OUT_YELLOW);
}

/* What sender and receiver computed independently and found equal, when the copy was committed. */
static void image_verified(const json_t *replica)
{
	const char *digest = get_str(replica, "digest");
	const json_t *disk;
	size_t i;

	if (json_array_size(get(replica, "disks")))
		out_section("Verified");
	json_array_foreach(get(replica, "disks"), i, disk)
	{
		_cleanup_(str_release) struct str b = {0};
		char label[32];

		snprintf(label, sizeof(label), "Disk %zu", i);
		out_size(&b, get_num(disk, "used_bytes", 0));
		str_addf(&b, " by %s of every block; both sides state ", *digest ? digest : "digest");
		str_add(&b, get_str(disk, "statement"));
		out_fieldf(label, "%s", b.s ? b.s : "");
	}
}

static void image_boot_facts(const json_t *report)
{
	static const struct {
		const char *key, *label;
	} texts[] = {
	    {"hostname", "Host name"}, {"kernel", "Kernel"}, {"state", "System state"}, {"accelerator", "Accelerator"}};
	_cleanup_(str_release) struct str b = {0};
	const json_t *a;
	size_t i;

	json_array_foreach(get(report, "problems"), i, a) out_fieldf("Problem", "%s", get_str(a, "message"));
	if (get(report, "boot_seconds")) {
		out_duration(&b, get_num(report, "boot_seconds", 0));
		out_field("Up after", b.s ? b.s : "", OUT_PLAIN);
	}
	for (i = 0; i < ARRAY_SIZE(texts); i++)
		out_fieldf(texts[i].label, "%s", get_str(report, texts[i].key));
	json_array_foreach(get(report, "addresses"), i, a)
	{
		out_fieldf("Address", "%s %s", get_str(a, "address"), get_str(a, "interface"));
	}
	cli_show_verification(report);
}

/* The report alone, without when it was made: what the image's /report has of it. */
static void image_report_boot(const json_t *report)
{
	bool passed = json_is_true(get(report, "verified"));

	if (!json_object_size(report))
		return;
	out_section("Test boot");
	out_field("State", passed ? "passed" : "failed", out_state_colour(passed ? "passed" : "failed"));
	image_boot_facts(report);
}

/* The boot's own report: problems first, then facts; the serial console's end is for --json. */
static void image_test_boot(const json_t *boot)
{
	_cleanup_(str_release) struct str b = {0};

	if (!json_object_size(boot))
		return;
	out_section("Test boot");
	out_word(&b, get_str(boot, "state"));
	out_field("State", b.s ? b.s : "", out_state_colour(get_str(boot, "state")));
	out_fieldf("Error", "%s", get_str(boot, "error.message"));
	image_boot_facts(get(boot, "report"));
	str_release(&b);
	if (get(boot, "finished")) {
		out_when(&b, get_num(boot, "finished", 0));
		out_field("Booted", b.s ? b.s : "", OUT_PLAIN);
	}
}

static int image_get(struct cli *c, const char *id, const char *suffix, struct cli_reply *r, struct err *e)
{
	_cleanup_free_ char *path = cli_path(&cli_image, id, suffix);

	return path ? cli_http(c, "GET", path, NULL, r, e) : err_nomem(e);
}

static void image_show(struct cli *c, json_t *image)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_(str_release) struct str b = {0};
	_cleanup_json_ json_t *one = json_array();

	if (one && json_array_append(one, image) == 0)
		cli_name_sources(c, one);
	out_title(get_str(image, "name"), get_str(image, "id"));
	out_fieldf("Description", "%s", get_str(image, "description"));
	if (*get_str(image, "source_name"))
		out_fieldf("Source", "%s (%s)", get_str(image, "source_name"), get_str(image, "source"));
	else
		out_fieldf("Source", "%s", get_str(image, "source"));
	out_fieldf("Job", "%s", get_str(image, "job"));
	out_fieldf("Region", "%s", get_str(image, "region"));
	cli_show_tags(image);
	out_when(&b, get_num(image, "created", 0));
	out_field("Created", b.s ? b.s : "", OUT_PLAIN);
	image_disks(image);
	image_verified(get(image, "manifest.replica"));
	if (image_get(c, get_str(image, "id"), "/report", &r, NULL) == 0)
		image_conversion(get(r.json, "conversion"), false);
	image_test_boot(get(image, "boot"));
}

const struct cli_noun cli_image = {
    "image", "images", "/v1/images", image_cols, image_show, "A job that finishes makes one.", cli_name_sources};

CLI_COMMAND(images_report)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *id = NULL;
	int x = cli_find(c, &cli_image, argv[0], &id, e);

	if (x < 0)
		return x;
	x = image_get(c, id, "/report", &r, e);
	if (c->json) {
		out_json(&r.body);
	} else if (x == 0) {
		out_title("Report", id);
		image_conversion(get(r.json, "conversion"), true);
		image_report_boot(get(r.json, "test_boot"));
	}
	return x;
}

CLI_COMMAND(images_screenshot)
{
	_cleanup_free_ char *id = NULL, *path = NULL;
	int r = cli_find(c, &cli_image, argv[0], &id, e);

	if (r < 0)
		return r;
	path = cli_path(&cli_image, id, "/screenshot");
	if (!path)
		return err_nomem(e);
	return cli_download(c, path, c->output, UINT64_MAX, NULL, e);
}

/* Waits for the boot that was asked for; its end decides the exit code. */
static int image_watch_boot(struct cli *c, const char *id, struct err *e)
{
	_cleanup_(str_release) struct str said = {0};
	struct cli_patience patience = {0};

	for (;;) {
		_cleanup_reply_ struct cli_reply r = {0};
		_cleanup_(str_release) struct str b = {0};
		int x = image_get(c, id, "", &r, e);
		const char *state = get_str(r.json, "boot.state");

		if (x == -EAGAIN && cli_patience_wait(c, &patience, e) == 0)
			continue;
		if (x < 0)
			return x;
		cli_patience_ok(&patience);
		out_word(&b, state);
		if (b.s && !c->json && (!said.s || strcmp(said.s, b.s) != 0))
			printf("test boot %s\n", b.s);
		fflush(stdout);
		str_release(&said);
		str_add(&said, b.s ? b.s : "");
		if (strcmp(state, "running") != 0) {
			if (c->json)
				out_json(&r.body);
			else
				image_test_boot(get(r.json, "boot"));
			return strcmp(state, "passed") == 0 ? CLI_OK : CLI_FAILED;
		}
		cli_sleep(1);
	}
}

CLI_COMMAND(images_boot)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_json_ json_t *body = NULL, *checks = NULL;
	_cleanup_free_ char *id = NULL;
	int x;

	if (!cli_checks_fit(c))
		return CLI_USAGE;
	if (c->checks.n && cli_checks(c, &checks, e) == 0)
		body = json_pack("{s:O}", "checks", checks);
	x = cli_item(c, &cli_image, argv[0], "POST", "/boot", body, &id, &r, e);

	if (x < 0 || !c->watch) {
		if (id && (x == 0 || c->json))
			cli_done(c, &r,
				 "image %s is being booted in a throw-away copy ('replant images show' tells how it "
				 "went)",
				 id);
		return x;
	}
	return image_watch_boot(c, id, e);
}
