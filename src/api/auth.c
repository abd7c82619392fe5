#include <errno.h>
#include <string.h>
#include <strings.h>

#include "api/api_int.h"
#include "base/util.h"

/* "<16 hex digits>.<secret>" -> "<noun>-<16 hex digits>" and the secret. */
bool api_token_split(const char *text, const char *noun, char id[ID_MAX], const char **ret_secret)
{
	if (strlen(text) != 16 + 1 + 64 || text[16] != '.')
		return false;
	snprintf(id, ID_MAX, "%s-%.16s", noun, text);
	*ret_secret = text + 17;
	return id_is(noun, id);
}

static int unauthorized(struct api_request *q)
{
	bool exceeded = api_limit_exceeded(q->api->limit, q->address);

	api_limit_count(q->api->limit, q->address);
	if (exceeded)
		return api_refuse(q, 429, "too_many_failures", NULL,
				  "too many wrong secrets from this address; wait a minute");
	return api_refuse(q, 401, "unauthorized", NULL,
			  "the bearer token is missing, wrong or was deleted; send 'Authorization: Bearer TOKEN'");
}

static const char *bearer(struct api_request *q)
{
	const char *h = MHD_lookup_connection_value(q->conn, MHD_HEADER_KIND, "Authorization");

	return h && strncasecmp(h, "Bearer ", 7) == 0 ? h + 7 : NULL;
}

static int authenticate_agent(struct api_request *q, const char *text)
{
	struct store *s = q->api->s.store;
	const char *secret;
	struct err e = {0};
	char id[ID_MAX];
	int r;

	if (!api_token_split(text, "source", id, &secret))
		return unauthorized(q);
	r = s->ops->get(s, &model_source_keys, id, &q->source, &e);
	if (r == -ENOENT || (r == 0 && !store_secret_matches(secret, q->source.secret_hash)))
		return unauthorized(q);
	if (r < 0)
		return api_fail(q, &e);
	snprintf(q->who, sizeof(q->who), "%s", id);
	return 0;
}

int api_allowed(struct api_request *q)
{
	static const int needed[] = {
	    [API_PUBLIC] = ROLE_VIEWER, [API_SIGNED] = MODEL_NO_ROLE,   [API_AGENT] = MODEL_NO_ROLE,
	    [API_VIEWER] = ROLE_VIEWER, [API_OPERATOR] = ROLE_OPERATOR, [API_ADMIN] = ROLE_ADMIN};
	int role = needed[q->route->access];

	if (q->role >= role)
		return 0;
	if (role == MODEL_NO_ROLE)
		return api_refuse(q, 403, "forbidden", NULL, "no role may do this");
	return api_refuse(q, 403, "forbidden", NULL, "role '%s' may not do this; it takes '%s'", model_roles[q->role],
			  model_roles[role]);
}

static int authenticate_person(struct api_request *q, const char *text)
{
	_cleanup_(model_token_release) struct model_token t = {0};
	struct store *s = q->api->s.store;
	const char *secret;
	struct err e = {0};
	char id[ID_MAX];
	int r;

	if (!api_token_split(text, "token", id, &secret))
		return unauthorized(q);
	r = s->ops->get(s, &model_tokens, id, &t, &e);
	if (r == -ENOENT || (r == 0 && !store_secret_matches(secret, t.secret_hash)))
		return unauthorized(q);
	if (r < 0)
		return api_fail(q, &e);
	snprintf(q->who, sizeof(q->who), "%s", id);
	snprintf(q->who_name, sizeof(q->who_name), "%s", t.name);
	q->role = t.role;
	q->scope = json_object_size(t.scope) ? json_incref(t.scope) : NULL;
	return api_allowed(q);
}

int api_authenticate(struct api_request *q)
{
	const char *text;

	if (q->route->access == API_PUBLIC || q->route->access == API_SIGNED)
		return 0;
	text = bearer(q);
	if (!text)
		return unauthorized(q);
	return q->route->access == API_AGENT ? authenticate_agent(q, text) : authenticate_person(q, text);
}

bool api_token_alive(struct api *a, const char *id)
{
	_cleanup_(model_token_release) struct model_token t = {0};

	return a->s.store->ops->get(a->s.store, &model_tokens, id, &t, NULL) == 0;
}
