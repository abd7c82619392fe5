/* Tags of sources and jobs. */
#include <string.h>
#include <strings.h>

#include "base/util.h"
#include "smc/smc_int.h"

#define TAGS_MAX  20u
#define LIST_PAGE 50u

struct kind {
	const char *name, *noun, *path, *type;
};

static int read_kind(struct smc *c, struct kind *ret)
{
	static const struct kind kinds[] = {{"sourceserver", "source", "/v1/sources", "ALIYUN::SMC::SOURCESERVER"},
					    {"replicationjob", "job", "/v1/jobs", "ALIYUN::SMC::REPLICATIONJOB"}};
	const char *type = smc_param(c, "ResourceType");

	if (!type)
		return smc_fail(c, 400, "MissingParameter.ResourceType",
				"the parameter ResourceType is mandatory for this action");
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		if (strcasecmp(kinds[i].name, type) == 0) {
			*ret = kinds[i];
			return 0;
		}
	return smc_fail(c, 400, "InvalidResourceType.NotFound",
			"ResourceType must be sourceserver or replicationjob, not '%.32s'", type);
}

/* The ids, as rows: each is known to be there before anything is changed. */
static int read_rows(struct smc *c, const struct kind *k, bool required, json_t **ret)
{
	_cleanup_json_ json_t *ids = NULL, *rows = json_array();
	json_t *id;
	size_t i;

	if (smc_ids(c, "ResourceId", k->noun, &ids) < 0) {
		if (strcmp(c->fault.code, "InvalidResourceId.NotFound") == 0)
			c->fault.status = 400;
		return -1;
	}
	if (!ids && required)
		return smc_fail(c, 400, "MissingParameter", "the parameter ResourceId.1 is mandatory for this action");
	json_array_foreach(ids, i, id)
	{
		json_t *row = NULL;

		if (smc_call(c, "GET", NULL, NULL, &row, "%s/%s", k->path, json_string_value(id)) < 0) {
			if (c->refusal.status == 404)
				c->fault.status = 400;
			return -1;
		}
		json_array_append_new(rows, row);
	}
	*ret = ids ? take_ptr(&rows) : NULL;
	return 0;
}

static json_t *tags_of(const json_t *row)
{
	return json_copy(json_object_get(row, "tags"));
}

/* Puts the new tags of each row; `lay` changes them. */
static int change(struct smc *c, const struct kind *k, const json_t *rows, void (*lay)(json_t *tags, const json_t *arg),
		  const json_t *arg)
{
	_cleanup_json_ json_t *all = json_array();
	json_t *row;
	size_t i;

	json_array_foreach(rows, i, row)
	{
		json_t *tags = tags_of(row);
		char buf[ID_MAX];

		lay(tags, arg);
		json_array_append_new(all, tags);
		if (json_object_size(tags) > TAGS_MAX)
			return smc_fail(c, 400, "NumberExceed.Tags", "%s would have more than %u tags",
					smc_their_id(json_object_get(row, "id"), buf), TAGS_MAX);
	}
	json_array_foreach(rows, i,
			   row) if (smc_call(c, "PATCH", NULL, json_pack("{s:O}", "tags", json_array_get(all, i)), NULL,
					     "%s/%s", k->path, smc_text(row, "id")) < 0) return -1;
	return 0;
}

static void lay_over(json_t *tags, const json_t *more)
{
	json_object_update(tags, (json_t *)more);
}

int smc_tag_resources(struct smc *c)
{
	_cleanup_json_ json_t *rows = NULL, *tags = NULL;
	struct kind k;

	if (read_kind(c, &k) < 0 || smc_tags(c, &tags) < 0 || read_rows(c, &k, true, &rows) < 0)
		return -1;
	if (!tags)
		return smc_fail(c, 400, "MissingParameter", "the parameter Tag.1.Key is mandatory for this action");
	return change(c, &k, rows, lay_over, tags);
}

/* keys: an array, or JSON true for all. */
static void take_away(json_t *tags, const json_t *keys)
{
	json_t *key;
	size_t i;

	if (json_is_true(keys))
		json_object_clear(tags);
	json_array_foreach(keys, i, key) json_object_del(tags, json_string_value(key));
}

static int read_keys(struct smc *c, json_t **ret)
{
	_cleanup_json_ json_t *keys = json_array();
	bool all = false;

	for (unsigned i = 1;; i++) {
		const char *key;
		char name[32];

		snprintf(name, sizeof(name), "TagKey.%u", i);
		key = smc_param(c, name);
		if (!key)
			break;
		if (i > TAGS_MAX)
			return smc_fail(c, 400, "NumberExceed.Tags", "at most %u keys", TAGS_MAX);
		json_array_append_new(keys, json_string(key));
	}
	if (smc_bool(c, "All", &all) < 0)
		return -1;
	if (!json_array_size(keys) && !all)
		return smc_fail(c, 400, "MissingParameter", "either TagKey.1 or All is mandatory for this action");
	*ret = json_array_size(keys) ? take_ptr(&keys) : json_true();
	return 0;
}

int smc_untag_resources(struct smc *c)
{
	_cleanup_json_ json_t *rows = NULL, *keys = NULL;
	struct kind k;

	if (read_kind(c, &k) < 0 || read_keys(c, &keys) < 0 || read_rows(c, &k, true, &rows) < 0)
		return -1;
	return change(c, &k, rows, take_away, keys);
}

static void add_tags(json_t *items, const struct kind *k, const json_t *row)
{
	const char *key;
	json_t *value;
	char buf[ID_MAX];

	json_object_foreach(json_object_get(row, "tags"), key, value) json_array_append_new(
	    items, json_pack("{s:s, s:s, s:s, s:O}", "ResourceId", smc_their_id(json_object_get(row, "id"), buf),
			     "ResourceType", k->type, "TagKey", key, "TagValue", value));
}

/* A page of all of them; NextToken is how many came before. */
static int list_page(struct smc *c, const struct kind *k, json_t *query, json_t **ret)
{
	struct smc_page p = {1, LIST_PAGE};
	uint64_t from = 0, total = 0;
	char next[24];

	if (smc_uint(c, "NextToken", 0, 10000000, &from) < 0)
		return -1;
	if (from % LIST_PAGE)
		return smc_bad(c, "NextToken", "is not one that this action gave");
	p.number = from / LIST_PAGE + 1;
	if (smc_list(c, k->path, json_copy(query), NULL, NULL, &p, ret, &total) < 0)
		return -1;
	snprintf(next, sizeof(next), "%llu", (unsigned long long)(from + LIST_PAGE));
	smc_put(c->answer, "NextToken", from + LIST_PAGE < total ? next : "");
	return 0;
}

int smc_list_tags(struct smc *c)
{
	_cleanup_json_ json_t *rows = NULL, *query = json_object();
	json_t *items = json_array(), *row;
	struct kind k;
	size_t i;

	smc_put_list(c->answer, "TagResources", "TagResource", items);
	if (read_kind(c, &k) < 0 || smc_tag_filter(c, query) < 0 || read_rows(c, &k, false, &rows) < 0)
		return -1;
	if (!rows && list_page(c, &k, query, &rows) < 0)
		return -1;
	json_array_foreach(rows, i, row) if (smc_passes(row, query)) add_tags(items, &k, row);
	return 0;
}
