/* Access tokens, which are activation codes here. */
#include <string.h>

#include "base/util.h"
#include "smc/smc_int.h"

#define CODES_PAGE 20u

int smc_create_code(struct smc *c)
{
	_cleanup_json_ json_t *got = NULL, *body = json_object();
	const char *name = smc_param(c, "Name"), *about = smc_param(c, "Description");
	uint64_t uses = 100, days = 30;

	if (smc_uint(c, "Count", 1, 1000, &uses) < 0 || smc_uint(c, "TimeToLiveInDays", 1, 90, &days) < 0)
		return -1;
	if (name)
		smc_put(body, "name", name);
	if (about)
		smc_put(body, "description", about);
	json_object_set_new(body, "uses", json_integer((json_int_t)uses));
	json_object_set_new(body, "valid_days", json_integer((json_int_t)days));
	if (smc_call(c, "POST", NULL, json_incref(body), &got, "/v1/codes") < 0)
		return -1;
	smc_put_id(c->answer, "AccessTokenId", json_object_get(got, "id"));
	smc_put(c->answer, "AccessTokenCode", smc_text(got, "code"));
	return 0;
}

/* Used up is still active to them: no more sources can come, but nobody stopped it. */
static const char *status_of(const json_t *code)
{
	const char *state = smc_text(code, "state");

	if (strcmp(state, "revoked") == 0)
		return "unactivated";
	return strcmp(state, "expired") == 0 ? "expired" : "activated";
}

static void put_number(json_t *o, const char *name, json_int_t n)
{
	char buf[24];

	snprintf(buf, sizeof(buf), "%lld", (long long)n);
	smc_put(o, name, buf);
}

/* Numbers are texts in this action. */
static json_t *token_json(const json_t *code)
{
	double life =
	    json_number_value(json_object_get(code, "expires")) - json_number_value(json_object_get(code, "created"));
	json_t *o = json_object();

	smc_put_id(o, "AccessTokenId", json_object_get(code, "id"));
	smc_put(o, "Name", smc_text(code, "name"));
	smc_put(o, "Description", smc_text(code, "description"));
	smc_put(o, "Status", status_of(code));
	put_number(o, "Count", json_integer_value(json_object_get(code, "uses")));
	put_number(o, "RegisteredCount", json_integer_value(json_object_get(code, "used")));
	put_number(o, "TimeToLiveInDays", (json_int_t)(life / 86400 + 0.5));
	smc_put_time(o, "CreationTime", json_object_get(code, "created"));
	return o;
}

static int check_status(struct smc *c, const char *status)
{
	static const char *const known[] = {"activated", "unactivated", "expired"};

	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (!status || strcmp(known[i], status) == 0)
			return 0;
	return smc_bad(c, "Status", "must be activated, unactivated or expired, not '%.32s'", status);
}

int smc_list_codes(struct smc *c)
{
	_cleanup_json_ json_t *query = json_object(), *ids = NULL, *rows = json_array();
	const char *status = smc_param(c, "Status"), *name = smc_param(c, "Name");
	json_t *items = json_array(), *row;
	struct smc_page p;
	uint64_t total = 0;
	size_t i;

	smc_put_list(c->answer, "AccessTokens", "AccessToken", items);
	if (name)
		smc_put(query, "name", name);
	if (smc_page(c, CODES_PAGE, &p) < 0 || check_status(c, status) < 0 ||
	    smc_ids(c, "AccessTokenId", "code", &ids) < 0 || smc_list_all(c, "/v1/codes", query, ids, rows) < 0)
		return -1;
	json_array_foreach(rows, i, row)
	{
		if (status && strcmp(status_of(row), status) != 0)
			continue;
		if (total >= (p.number - 1) * p.size && total < p.number * p.size)
			json_array_append_new(items, token_json(row));
		total++;
	}
	smc_put_page(c, &p, total);
	return 0;
}

static int not_found(struct smc *c)
{
	if (c->refusal.status == 404)
		smc_fail(c, 404, "InvalidAccessTokenId.NotFound", "the specified AccessTokenId does not exist");
	return -1;
}

int smc_disable_code(struct smc *c)
{
	char id[ID_MAX];

	if (smc_id(c, "AccessTokenId", "code", id) < 0)
		return -1;
	return smc_call(c, "POST", NULL, json_object(), NULL, "/v1/codes/%s/revoke", id) < 0 ? not_found(c) : 0;
}

int smc_delete_code(struct smc *c)
{
	char id[ID_MAX];

	if (smc_id(c, "AccessTokenId", "code", id) < 0)
		return -1;
	return smc_call(c, "DELETE", NULL, NULL, NULL, "/v1/codes/%s", id) < 0 ? not_found(c) : 0;
}
