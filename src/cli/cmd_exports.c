/* Images as files: the center makes one in the format asked for, it is fetched, and the center's copy removed. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

static enum out_colour export_format(struct str *b, const json_t *j)
{
	out_clean(b, get_str(j, "format"));
	return OUT_PLAIN;
}

static enum out_colour export_image(struct str *b, const json_t *j)
{
	out_clean(b, get_str(j, "image"));
	return OUT_PLAIN;
}

static enum out_colour export_disk(struct str *b, const json_t *j)
{
	str_addf(b, "%.0f", get_num(j, "disk", 0));
	return OUT_PLAIN;
}

static enum out_colour export_size(struct str *b, const json_t *j)
{
	if (strcmp(get_str(j, "state"), "running") == 0)
		str_addf(b, "%.0f %%", get_num(j, "percent", 0));
	else
		out_size(b, get_num(j, "size", 0));
	return OUT_PLAIN;
}

static const struct out_col export_cols[] = {
    {"IMAGE", false, 0, export_image},   {"DISK", true, 0, export_disk},
    {"FORMAT", false, 0, export_format}, {"STATE", false, 0, cell_state},
    {"SIZE", true, 0, export_size},      {"CREATED", false, 0, cell_created},
    {"ID", false, 0, cell_id},           {0},
};

const struct cli_noun cli_export = {
    "export", "exports", "/v1/exports", export_cols, NULL, "'replant images export' makes and fetches one.", NULL};

static void export_draw(const struct cli *c, double percent, bool last)
{
	if (isatty(STDERR_FILENO))
		fprintf(stderr, "\rconverting to %s: %.0f %%\033[K%s", c->format, percent, last ? "\n" : "");
}

/* Until the center has made it; r holds the finished export. */
static int export_wait(struct cli *c, const char *path, struct cli_reply *r, struct err *e)
{
	struct cli_patience patience = {0};

	for (;;) {
		int x = cli_http(c, "GET", path, NULL, r, e);
		const char *state = get_str(r->json, "state");

		if (x == -EAGAIN && cli_patience_wait(c, &patience, e) == 0)
			continue;
		if (x < 0)
			return x;
		cli_patience_ok(&patience);
		if (strcmp(state, "running") != 0) {
			export_draw(c, get_num(r->json, "percent", 0), true);
			return strcmp(state, "finished") == 0
				   ? 0
				   : err_set(e, -EIO, "the export failed: %s", get_str(r->json, "error.message"));
		}
		export_draw(c, get_num(r->json, "percent", 0), false);
		cli_sleep(0.5);
	}
}

static int export_fetch(struct cli *c, const char *id, const char *path, struct err *e)
{
	_cleanup_reply_ struct cli_reply r = {0}, gone = {0};
	_cleanup_free_ char *data = cli_path(&cli_export, id, "/data");
	_cleanup_(str_release) struct str b = {0};
	double size;
	int x;

	if (!data)
		return err_nomem(e);
	x = export_wait(c, path, &r, e);
	if (x < 0)
		return x;
	size = get_num(r.json, "size", -1);
	if (size < 0 || size > 9e18)
		return err_set(e, -EPROTO, "the center doesn't say how large the export is");
	x = cli_download(c, data, c->output, (uint64_t)size, c->output, e);
	if (x < 0)
		return err_prefix(e, "export %s is made but was not fetched", id);
	if (!c->keep && cli_http(c, "DELETE", path, NULL, &gone, e) < 0)
		out_error("warning: the center keeps its copy %s: %s", id, e->msg);
	out_size(&b, size);
	cli_done(c, &r, "'%s' written, %s", c->output, b.s ? b.s : "");
	return CLI_OK;
}

CLI_COMMAND(images_export)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_json_ json_t *body = json_pack("{s:s}", "format", c->format);
	_cleanup_free_ char *image = NULL, *post = NULL, *id = NULL, *path = NULL;
	int x;

	if (!body)
		return err_nomem(e);
	if (c->disk != CLI_UNSET)
		json_object_set_new(body, "disk", json_integer((json_int_t)c->disk));
	x = cli_find(c, &cli_image, argv[0], &image, e);
	if (x < 0)
		return x;
	post = cli_path(&cli_image, image, "/exports");
	if (!post)
		return err_nomem(e);
	x = cli_http(c, "POST", post, body, &r, e);
	if (x < 0) {
		if (c->json)
			out_json(&r.body);
		return x;
	}
	x = cli_find(c, &cli_export, get_str(r.json, "id"), &id, e);
	if (x < 0)
		return x;
	path = cli_path(&cli_export, id, "");
	return path ? export_fetch(c, id, path, e) : err_nomem(e);
}
