/* Workgroups. */
#include <string.h>

#include "base/util.h"
#include "smc/smc_int.h"

static int not_found(struct smc *c)
{
	if (c->refusal.status == 404)
		smc_fail(c, 404, "InvalidWorkgroupId.NotFound", "the specified WorkgroupId does not exist");
	else if (smc_was(c, "exists"))
		smc_fail(c, 400, "WorkgroupName.Duplicate", "%s", c->refusal.message);
	return -1;
}

int smc_create_group(struct smc *c)
{
	_cleanup_json_ json_t *got = NULL, *tags = NULL, *body = json_object();
	const char *name = smc_param(c, "Name"), *about = smc_param(c, "Description");

	if (!name)
		return smc_fail(c, 400, "MissingParameter", "the parameter Name is mandatory for this action");
	/* ClientToken needs nothing: a name has one group. */
	if (smc_tags(c, &tags) < 0)
		return -1;
	smc_put(body, "name", name);
	if (about)
		smc_put(body, "description", about);
	if (tags)
		json_object_set(body, "tags", tags);
	if (smc_call(c, "POST", NULL, take_ptr(&body), &got, "/v1/workgroups") < 0)
		return not_found(c);
	smc_put_id(c->answer, "WorkgroupId", json_object_get(got, "id"));
	return 0;
}

int smc_modify_group(struct smc *c)
{
	const char *name = smc_param(c, "Name"), *about = smc_param(c, "Description");
	char id[ID_MAX];

	if (smc_id(c, "WorkgroupId", "workgroup", id) < 0)
		return -1;
	return smc_call(c, "PATCH", NULL, json_pack("{s:s*, s:s*}", "name", name, "description", about), NULL,
			"/v1/workgroups/%s", id) < 0
		   ? not_found(c)
		   : 0;
}

static const struct {
	const char *ours, *theirs;
} statuses[] = {{"not_started", "NotStarted"},
		{"in_progress", "InProgress"},
		{"cut_over", "Cutover"},
		{"completed", "Completed"}},
  warnings[] = {{"in_error", "InError"}, {"unrelated", "UnRelated"}, {"not_passed", "NotPassed"}};

static const char *status_of(const json_t *row)
{
	const char *status = smc_text(row, "status");

	for (size_t i = 0; i < ARRAY_SIZE(statuses); i++)
		if (strcmp(statuses[i].ours, status) == 0)
			return statuses[i].theirs;
	return "";
}

static json_t *warnings_json(const json_t *row)
{
	json_t *out = json_array(), *w, *id;
	char buf[ID_MAX];
	size_t i, k;

	json_array_foreach(json_object_get(row, "warnings"), i, w)
	{
		json_t *o = json_object(), *ids = json_array();

		for (size_t j = 0; j < ARRAY_SIZE(warnings); j++)
			if (strcmp(warnings[j].ours, smc_text(w, "type")) == 0)
				smc_put(o, "WarningType", warnings[j].theirs);
		json_array_foreach(json_object_get(w, "sources"), k, id)
		    json_array_append_new(ids, json_string(smc_their_id(id, buf)));
		smc_put_list(o, "SourceIds", "SourceId", ids);
		json_array_append_new(out, o);
	}
	return out;
}

static json_t *group_json(const json_t *row)
{
	json_t *o = json_object();

	smc_put_id(o, "WorkgroupId", json_object_get(row, "id"));
	smc_put(o, "Name", smc_text(row, "name"));
	smc_put(o, "Description", smc_text(row, "description"));
	smc_put(o, "Status", status_of(row));
	smc_put_tags(o, json_object_get(row, "tags"));
	smc_put_list(o, "Warnings", "Warning", warnings_json(row));
	return o;
}

static int check_status(struct smc *c, const char *status)
{
	for (size_t i = 0; i < ARRAY_SIZE(statuses); i++)
		if (!status || strcmp(statuses[i].theirs, status) == 0)
			return 0;
	return smc_bad(c, "Status", "must be NotStarted, InProgress, Cutover or Completed, not '%.32s'", status);
}

int smc_describe_groups(struct smc *c)
{
	_cleanup_json_ json_t *query = json_object(), *ids = NULL, *rows = json_array();
	const char *status = smc_param(c, "Status"), *name = smc_param(c, "Name");
	json_t *items = json_array(), *row;
	struct smc_page p;
	uint64_t total = 0;
	size_t i;

	smc_put_list(c->answer, "Workgroups", "Workgroup", items);
	if (name)
		smc_put(query, "name", name);
	if (smc_page(c, 10, &p) < 0 || check_status(c, status) < 0 ||
	    smc_ids(c, "WorkgroupId", "workgroup", &ids) < 0 || smc_tag_filter(c, query) < 0 ||
	    smc_list_all(c, "/v1/workgroups", query, ids, rows) < 0)
		return -1;
	json_array_foreach(rows, i, row)
	{
		if (status && strcmp(status_of(row), status) != 0)
			continue;
		if (total >= (p.number - 1) * p.size && total < p.number * p.size)
			json_array_append_new(items, group_json(row));
		total++;
	}
	smc_put_page(c, &p, total);
	return 0;
}

int smc_delete_group(struct smc *c)
{
	char id[ID_MAX];

	if (smc_id(c, "WorkgroupId", "workgroup", id) < 0)
		return -1;
	if (smc_call(c, "DELETE", NULL, NULL, NULL, "/v1/workgroups/%s", id) == 0)
		return 0;
	if (smc_was(c, "in_use"))
		return smc_fail(c, 400, "Workgroup.NotEmpty", "%s", c->refusal.message);
	return not_found(c);
}

/* All of them are looked at first, so that a wrong one stops the request before it has done anything. */
static int read_members(struct smc *c, char group[ID_MAX], json_t **ret, const char *needed)
{
	json_t *id;
	size_t i;

	if (smc_id(c, "WorkgroupId", "workgroup", group) < 0 || smc_ids(c, "SourceId", "source", ret) < 0)
		return -1;
	if (!*ret)
		return smc_fail(c, 400, "MissingParameter", "the parameter SourceId.1 is mandatory for this action");
	if (smc_call(c, "GET", NULL, NULL, NULL, "/v1/workgroups/%s", group) < 0)
		return not_found(c);
	json_array_foreach(*ret, i, id)
	{
		_cleanup_json_ json_t *source = NULL;
		const char *now;
		char buf[ID_MAX];

		if (smc_call(c, "GET", NULL, NULL, &source, "/v1/sources/%s", json_string_value(id)) < 0)
			return c->refusal.status == 404
				   ? smc_fail(c, 404, "InvalidSourceId.NotFound",
					      "the specified SourceId %s does not exist", smc_their_id(id, buf))
				   : -1;
		now = smc_text(source, "workgroup");
		if (strcmp(now, needed ? needed : group) != 0 && strcmp(now, group) != 0)
			return smc_fail(c, 400, "SourceServer.WorkgroupMismatch", "source %s is %s",
					smc_their_id(id, buf), *now ? "in another workgroup" : "in no workgroup");
	}
	return 0;
}

static int put_members(struct smc *c, const json_t *ids, const char *group)
{
	json_t *id;
	size_t i;

	json_array_foreach(ids, i, id) if (smc_call(c, "PATCH", NULL, json_pack("{s:s}", "workgroup", group), NULL,
						    "/v1/sources/%s", json_string_value(id)) < 0) return -1;
	return 0;
}

int smc_associate(struct smc *c)
{
	_cleanup_json_ json_t *ids = NULL;
	char group[ID_MAX];

	return read_members(c, group, &ids, "") < 0 ? -1 : put_members(c, ids, group);
}

int smc_disassociate(struct smc *c)
{
	_cleanup_json_ json_t *ids = NULL;
	char group[ID_MAX];

	return read_members(c, group, &ids, NULL) < 0 ? -1 : put_members(c, ids, "");
}
