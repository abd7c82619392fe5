/* The end of a migration onto an instance: kept, or taken back. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

/* For finding one; what they look like is another command's. */
const struct cli_noun cli_destination = {
    "instance", "instances", "/v1/instances", NULL, NULL, "'replant instances create' makes one.", NULL};

static int switch_post(struct cli *c, const struct cli_noun *n, const char *word, const char *suffix, const char *done,
		       struct err *e)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *id = NULL;
	int x = cli_item(c, n, word, "POST", suffix, NULL, &id, &r, e);

	if (id && (x == 0 || c->json))
		cli_done(c, &r, "%s %s: %s", n->noun, id, done);
	return x;
}

static int rollback(struct cli *c, const struct cli_noun *n, const char *word, struct err *e)
{
	return switch_post(c, n, word, "/rollback", "gets its earlier system back", e);
}

/* There is no way back behind it. */
static int confirm(struct cli *c, const struct cli_noun *n, const char *word, struct err *e)
{
	char answer[16];

	if (!c->yes && !(isatty(STDIN_FILENO) && isatty(STDERR_FILENO))) {
		out_error("nobody can be asked whether to remove the earlier system (give --yes)");
		return CLI_USAGE;
	}
	if (!c->yes) {
		fprintf(stderr, "Remove the earlier system, so that nothing leads back? [y/N] ");
		fflush(stderr);
		if (!fgets(answer, sizeof(answer), stdin) ||
		    (strcasecmp(answer, "y\n") != 0 && strcasecmp(answer, "yes\n") != 0))
			return err_set(e, -ECANCELED, "nothing was confirmed");
	}
	return switch_post(c, n, word, "/confirm", "confirmed, its earlier system goes", e);
}

CLI_COMMAND(instances_rollback)
{
	return rollback(c, &cli_destination, argv[0], e);
}

CLI_COMMAND(instances_confirm)
{
	return confirm(c, &cli_destination, argv[0], e);
}

CLI_COMMAND(jobs_rollback)
{
	return rollback(c, &cli_job, argv[0], e);
}

CLI_COMMAND(jobs_confirm)
{
	return confirm(c, &cli_job, argv[0], e);
}

CLI_COMMAND(jobs_screenshot)
{
	_cleanup_free_ char *id = NULL, *path = NULL;
	int r = cli_find(c, &cli_job, argv[0], &id, e);

	if (r < 0)
		return r;
	path = cli_path(&cli_job, id, "/screenshot");
	return path ? cli_download(c, path, c->output, UINT64_MAX, NULL, e) : err_nomem(e);
}

int cli_put_destination(struct cli *c, json_t *body, struct err *e)
{
	_cleanup_free_ char *id = NULL;
	int r;

	if (!c->onto)
		return 0;
	r = cli_find(c, &cli_destination, c->onto, &id, e);
	if (r < 0)
		return r;
	json_object_set_new(body, "destination", json_string("instance"));
	json_object_set_new(body, "instance", json_string(id));
	return 0;
}
