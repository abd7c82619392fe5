/*
 * The door to the room smc: its requests come to "/", signed instead of with a bearer token. An access key is a token's
 * other half: its secret is made of the token's id by a key of the center's, so no secret is kept that could be read.
 * What such a request does goes through the same routes, rights and audit as every other.
 */
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>

#include "api/api_int.h"
#include "base/log.h"
#include "base/util.h"
#include "smc/smc.h"

_Static_assert(SMC_SECRET_MAX == STORE_SECRET_HEX, "secrets of keys have the length of all others");

int api_access_secret(const struct api *a, const char *key, char ret[STORE_SECRET_HEX])
{
	_cleanup_free_ char *text = str_printf("replant access key %s", key);
	unsigned char raw[EVP_MAX_MD_SIZE];
	unsigned int n = 0;

	if (!text ||
	    !HMAC(EVP_sha256(), a->s.access_key, API_ACCESS_KEY, (const unsigned char *)text, strlen(text), raw, &n) ||
	    n != 32)
		return -ENOMEM;
	str_hex(raw, n, ret);
	OPENSSL_cleanse(raw, sizeof(raw));
	return 0;
}

/* One request, and who asks once that is known. */
struct rpc {
	struct api_request *q;
	char who[ID_MAX], name[MODEL_NAME_MAX + 1];
	int role;
	json_t *scope; /* owned */
};

static int rpc_secret(void *arg, const char *key, char ret[SMC_SECRET_MAX])
{
	_cleanup_(model_token_release) struct model_token t = {0};
	struct rpc *r = arg;
	struct store *s = r->q->api->s.store;
	struct err e = {0};
	char id[ID_MAX];
	int n;

	n = snprintf(id, sizeof(id), "token-%s", key);
	if (n >= ID_MAX || !id_is("token", id))
		return -ENOENT;
	n = s->ops->get(s, &model_tokens, id, &t, &e);
	if (n < 0)
		return n;
	snprintf(r->who, sizeof(r->who), "%s", id);
	snprintf(r->name, sizeof(r->name), "%s", t.name);
	r->role = t.role;
	model_take_json(&r->scope, json_object_size(t.scope) ? json_incref(t.scope) : NULL);
	return api_access_secret(r->q->api, key, ret);
}

/* The signature was right: from here on it's known who asks. */
static int rpc_nonce(void *arg, const char *key, const char *nonce, double expires)
{
	struct rpc *r = arg;
	struct store *s = r->q->api->s.store;
	_cleanup_free_ char *text = str_printf("%s %s", key, nonce);
	char digest[STORE_SECRET_HEX];
	struct err e = {0};
	int n;

	snprintf(r->q->who, sizeof(r->q->who), "%s", r->who);
	snprintf(r->q->who_name, sizeof(r->q->who_name), "%s", r->name);
	r->q->role = r->role;
	model_take_json(&r->q->scope, json_incref(r->scope));
	api_visitor_known(r->q);
	if (!text)
		return -ENOMEM;
	store_digest(text, digest);
	n = s->ops->nonce_use(s, digest, id_now(), expires, &e);
	if (n < 0 && n != -EEXIST)
		log_error("a nonce can't be kept: %s", e.msg);
	return n;
}

static int add_value(struct api_request *in, const char *name, const json_t *value)
{
	if (in->nquery == API_QUERY_MAX)
		return api_refuse(in, 400, "bad_parameter", name, "these are too many filters");
	in->query[in->nquery++] = (struct api_pair){name, json_string_value(value)};
	return 0;
}

/* Strings and arrays of strings. */
static int lay_query(struct api_request *in, const json_t *query)
{
	const char *name;
	json_t *value, *one;
	size_t i;

	json_object_foreach((json_t *)query, name, value)
	{
		if (json_is_string(value) && add_value(in, name, value) < 0)
			return -1;
		json_array_foreach(value, i, one) if (add_value(in, name, one) < 0) return -1;
	}
	return 0;
}

static int run_inner(struct api_request *in, const json_t *query, const json_t *body)
{
	_cleanup_(str_release) struct str allow = {0};

	in->route = api_match(in->method, in->path, in->id, &allow);
	if (!in->route)
		return api_refuse(in, 404, "not_found", NULL, "there is nothing at '%.200s'", in->path);
	if (api_allowed(in) < 0 || lay_query(in, query) < 0 || api_scope_check(in) < 0)
		return -1;
	in->body = in->route->body == API_NO_BODY ? NULL : json_incref((json_t *)body);
	if (in->route->handler(in) < 0 && !in->fault.status)
		api_refuse(in, 500, "internal", NULL, "the request failed for no known reason");
	return in->fault.status ? -1 : 0;
}

static int rpc_call(void *arg, const char *method, const char *path, const json_t *query, json_t *body, json_t **ret,
		    struct smc_refusal *why)
{
	struct api_request *q = ((struct rpc *)arg)->q;
	_cleanup_free_ struct api_request *in = calloc(1, sizeof(*in));
	int r;

	if (!in)
		return -ENOMEM;
	in->api = q->api;
	in->conn = q->conn;
	in->method = method;
	in->path = (char *)path;
	in->role = q->role;
	in->scope = q->scope;
	snprintf(in->address, sizeof(in->address), "%s", q->address);
	snprintf(in->who, sizeof(in->who), "%s", q->who);
	snprintf(in->who_name, sizeof(in->who_name), "%s", q->who_name);
	r = run_inner(in, query, body);
	if (r < 0) {
		in->status = in->fault.status;
		model_take_json(&in->json, NULL);
		why->status = in->fault.status;
		snprintf(why->code, sizeof(why->code), "%s", in->fault.code);
		snprintf(why->field, sizeof(why->field), "%s", in->fault.field);
		snprintf(why->message, sizeof(why->message), "%s", in->fault.message);
	}
	api_audit(in);
	if (strcmp(method, "GET") != 0)
		api_wake(q->api);
	*ret = take_ptr(&in->json);
	json_decref(in->body);
	if (in->response)
		MHD_destroy_response(in->response);
	return r;
}

static const char *rpc_header(void *arg, const char *name)
{
	return MHD_lookup_connection_value(((struct api_request *)arg)->conn, MHD_HEADER_KIND, name);
}

static int answer_text(struct api_request *q, struct smc_answer *a)
{
	q->status = a->status;
	q->response = a->text ? MHD_create_response_from_buffer(strlen(a->text), a->text, MHD_RESPMEM_MUST_FREE) : NULL;
	if (!q->response) {
		free(a->text);
		q->status = 500;
		return -1;
	}
	MHD_add_response_header(q->response, "Content-Type", a->type);
	MHD_add_response_header(q->response, "Cache-Control", "no-store");
	MHD_add_response_header(q->response, "X-Content-Type-Options", "nosniff");
	return 0;
}

struct pairs {
	struct smc_pair *v;
	size_t n;
	bool failed;
};

static enum MHD_Result add_pair(void *arg, enum MHD_ValueKind kind, const char *name, const char *value)
{
	struct pairs *p = arg;
	struct smc_pair *v = p->n < SMC_PARAMS_MAX ? realloc(p->v, (p->n + 1) * sizeof(*v)) : NULL;

	if (!v) {
		p->failed = true;
		return MHD_NO;
	}
	p->v = v;
	v[p->n++] = (struct smc_pair){name, value ? value : ""};
	return MHD_YES;
}

int api_rpc(struct api_request *q)
{
	struct rpc rpc = {.q = q};
	struct smc_service service = {&rpc, rpc_secret, rpc_nonce, rpc_call};
	struct smc_request r = {.method = strcmp(q->method, "HEAD") == 0 ? "GET" : q->method,
				.host = rpc_header(q, "Host"),
				.body = q->raw.s,
				.len = q->raw.len,
				.now = id_now(),
				.header = rpc_header,
				.header_arg = q};
	struct pairs pairs = {0};
	struct smc_answer a;

	MHD_get_connection_values(q->conn, MHD_GET_ARGUMENT_KIND, add_pair, &pairs);
	if (pairs.failed) {
		free(pairs.v);
		return api_refuse(q, 400, "bad_parameter", NULL, "more than %u parameters", SMC_PARAMS_MAX);
	}
	r.query = pairs.v;
	r.nquery = pairs.n;
	smc_serve(&service, &r, &a);
	free(pairs.v);
	json_decref(rpc.scope);
	if (a.denied)
		api_limit_count(q->api->limit, q->address);
	if (answer_text(q, &a) < 0)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	return 0;
}

bool api_rpc_refused(struct api_request *q)
{
	struct smc_refusal why = {.status = q->fault.status};
	struct smc_answer a;

	snprintf(why.code, sizeof(why.code), "%s", q->fault.code);
	snprintf(why.field, sizeof(why.field), "%s", q->fault.field);
	snprintf(why.message, sizeof(why.message), "%s", q->fault.message);
	smc_refuse_early(&why, rpc_header(q, "Host"), &a);
	return answer_text(q, &a) == 0;
}
