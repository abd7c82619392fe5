/*
 * Tokens that are limited to what has certain tags. To such a token nothing else is there: a thing without the tags
 * isn't found, isn't listed and isn't told of, and what the token makes gets them. Each route says how that is seen to;
 * one that says nothing is closed to limited tokens.
 */
#include <errno.h>
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

bool api_scope_has(const json_t *scope, const json_t *tags)
{
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)scope, key,
			    value) if (!json_equal(value, json_object_get(tags, key))) return false;
	return true;
}

bool api_scope_sees(const struct api_request *q, const json_t *tags)
{
	return !q->scope || api_scope_has(q->scope, tags);
}

size_t api_scope_filters(const struct api_request *q, struct store_filter *f, size_t n, size_t max)
{
	const char *key;
	json_t *value;

	must(n + json_object_size(q->scope) <= max);
	json_object_foreach(q->scope, key, value) f[n++] =
	    (struct store_filter){key, json_string_value(value), STORE_TAG};
	return n;
}

static const struct model_noun *noun_of(const char *name)
{
	for (size_t i = 0; model_nouns[i]; i++)
		if (strcmp(model_nouns[i]->name, name) == 0)
			return model_nouns[i];
	return NULL;
}

static size_t tags_offset(const struct model_noun *n)
{
	for (const struct model_field *f = n->fields; f->name; f++)
		if (f->kind == MODEL_TAGS && strcmp(f->name, "tags") == 0)
			return f->offset;
	return 0;
}

bool api_scope_noun(const struct model_noun *n)
{
	return tags_offset(n) != 0;
}

/* Does the row have the tags? What isn't there is left to the handler, who says so. */
static int check_row(struct api_request *q, const struct model_noun *n, const char *id)
{
	_cleanup_free_ void *row = calloc(1, n->size);
	struct store *s = q->api->s.store;
	struct err e = {0};
	bool has;
	int r;

	if (!row)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	r = s->ops->get(s, n, id, row, &e);
	if (r < 0)
		return api_fail(q, &e);
	has = api_scope_has(q->scope, *(json_t **)((char *)row + tags_offset(n)));
	model_release(n, row);
	return has ? 0 : api_refuse(q, 404, "not_found", NULL, "there is no %s '%s'", n->name, id);
}

int api_scope_row(struct api_request *q, const struct model_noun *n, const char *id)
{
	return q->scope ? check_row(q, n, id) : 0;
}

/* A file of an image is seen by who sees the image. */
static int check_export(struct api_request *q)
{
	_cleanup_(model_export_release) struct model_export x = {0};

	return api_row(q, &model_exports, &x) < 0 ? -1 : check_row(q, &model_images, x.image);
}

/* What its disks held is seen by who sees the instance. */
static int check_snapshot(struct api_request *q)
{
	_cleanup_(model_snapshot_release) struct model_snapshot sn = {0};

	return api_row(q, &model_snapshots, &sn) < 0 ? -1 : check_row(q, &model_instances, sn.instance);
}

int api_scope_check(struct api_request *q)
{
	const struct model_noun *n = q->route->noun ? noun_of(q->route->noun) : NULL;

	if (!q->scope || q->route->scope == API_SCOPE_SHARED || q->route->scope == API_SCOPE_HANDLER)
		return 0;
	if (q->route->scope == API_SCOPE_ROW && n == &model_exports)
		return check_export(q);
	if (q->route->scope == API_SCOPE_ROW && n == &model_snapshots)
		return check_snapshot(q);
	if (q->route->scope == API_SCOPE_ROW && n && api_scope_noun(n))
		return check_row(q, n, q->id);
	return api_refuse(q, 403, "forbidden", NULL,
			  "this token is limited to things with certain tags, and may not do this");
}

json_t *api_scope_tags(struct api_request *q, json_t *tags)
{
	json_t *all;

	if (!q->scope)
		return json_incref(tags);
	all = tags ? json_copy(tags) : json_object();
	if (!all || json_object_update(all, q->scope) < 0) {
		json_decref(all);
		api_refuse(q, 500, "internal", NULL, "out of memory");
		return NULL;
	}
	if (json_object_size(all) > MODEL_TAGS_MAX) {
		json_decref(all);
		api_refuse(q, 400, "bad_field", "tags",
			   "with those that your token is limited to there are more than %u tags", MODEL_TAGS_MAX);
		return NULL;
	}
	return all;
}

int api_scope_keeps(struct api_request *q, const json_t *tags)
{
	if (!q->scope || !tags || api_scope_has(q->scope, tags))
		return 0;
	return api_refuse(q, 403, "forbidden", "tags", "the tags that your token is limited to have to stay");
}
