/* Tags: "KEY=VALUE" sets one, "KEY-" takes it away. The center keeps them as one object, so they are read, changed and
 * put back. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

int cli_tag_add(json_t *tags, const char *text, struct err *e)
{
	const char *equals = strchr(text, '=');
	_cleanup_free_ char *key = equals ? strndup(text, (size_t)(equals - text)) : NULL;

	if (!equals || equals == text)
		return err_set(e, -EINVAL, "'%s' is no tag such as env=production", text);
	if (!key)
		return err_nomem(e);
	return json_object_set_new(tags, key, json_string(equals + 1)) < 0
		   ? err_set(e, -EINVAL, "the tag '%s' is not valid UTF-8", text)
		   : 0;
}

static int tag_change(json_t *tags, const char *text, struct err *e)
{
	size_t n = strlen(text);
	_cleanup_free_ char *key = NULL;

	if (strchr(text, '=') || n < 2 || text[n - 1] != '-')
		return cli_tag_add(tags, text, e);
	key = strndup(text, n - 1);
	if (!key)
		return err_nomem(e);
	json_object_del(tags, key);
	return 0;
}

void cli_show_tags(const json_t *item)
{
	_cleanup_(str_release) struct str b = {0};
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)get(item, "tags"), key, value)
	{
		str_add(&b, b.len ? ", " : "");
		out_clean(&b, key);
		str_add(&b, "=");
		out_clean(&b, json_string_value(value) ?: "");
	}
	out_field("Tags", b.s ? b.s : "", OUT_PLAIN);
}

static int tag_item(struct cli *c, const struct cli_noun *n, int argc, char **argv, struct err *e)
{
	_cleanup_reply_ struct cli_reply now = {0}, r = {0};
	_cleanup_json_ json_t *body = json_object();
	_cleanup_free_ char *id = NULL, *path = NULL;
	json_t *tags = json_object();
	int x = cli_item(c, n, argv[0], "GET", "", NULL, &id, &now, e);

	json_object_update(tags, json_object_get(now.json, "tags"));
	if (json_object_set_new(body, "tags", tags) < 0)
		return err_nomem(e);
	for (int i = 1; i < argc && x == 0; i++)
		x = tag_change(tags, argv[i], e);
	if (x < 0)
		return x;
	path = cli_path(n, id, "");
	x = path ? cli_http(c, "PATCH", path, body, &r, e) : err_nomem(e);
	if (x == 0 || c->json)
		cli_done(c, &r, "%s %s has %zu tags", n->noun, id, json_object_size(tags));
	return x;
}

CLI_COMMAND(sources_tag)
{
	return tag_item(c, &cli_source, argc, argv, e);
}

CLI_COMMAND(jobs_tag)
{
	return tag_item(c, &cli_job, argc, argv, e);
}

CLI_COMMAND(instances_tag)
{
	return tag_item(c, &cli_instance, argc, argv, e);
}

CLI_COMMAND(images_tag)
{
	return tag_item(c, &cli_image, argc, argv, e);
}

CLI_COMMAND(workgroups_tag)
{
	return tag_item(c, &cli_workgroup, argc, argv, e);
}
