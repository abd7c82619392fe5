/* Activation codes, which sources enrol with, and the tokens of people. */
#include <fcntl.h>
#include <openssl/evp.h>
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

/* SHA-256 of the agent's program, hex. */
static int program_digest(const char *path, char ret[65], struct err *e)
{
	_cleanup_fclose_ FILE *f = fopen(path, "rbe");
	EVP_MD_CTX *ctx = EVP_MD_CTX_new();
	unsigned char buf[16384], digest[32];
	unsigned int len = 0;
	bool ok = f && ctx && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL);
	size_t n;

	while (ok && (n = fread(buf, 1, sizeof(buf), f)) > 0)
		ok = EVP_DigestUpdate(ctx, buf, n);
	ok = ok && !ferror(f) && EVP_DigestFinal_ex(ctx, digest, &len) && len == sizeof(digest);
	EVP_MD_CTX_free(ctx);
	if (!ok)
		return err_sys(e, "cannot read the agent's program '%s'", path);
	str_hex(digest, sizeof(digest), ret);
	return 0;
}

/* It becomes part of a shell command. */
static bool host_is_plain(const char *s)
{
	return *s && strlen(s) <= 255 &&
	       strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:[]") == strlen(s);
}

static char *base_url(struct api_request *q)
{
	const char *host = MHD_lookup_connection_value(q->conn, MHD_HEADER_KIND, "Host");

	if (q->api->s.public_url)
		return strdup(q->api->s.public_url);
	return host && host_is_plain(host) ? str_printf("https://%s", host) : NULL;
}

/*
 * One line for root's shell on the source. The transport is not trusted (the center's CA is its own): what is
 * run is what has the digest in the line. The code goes by the environment: other users can read the
 * arguments of processes. /var/lib is never mounted noexec as /tmp may be.
 */
static char *enroll_command(const char *url, const char *code, const char *digest)
{
	return str_printf(
	    "REPLANT_CODE=%s REPLANT_URL=%s sh -c '"
	    "set -e; umask 077; d=$(mktemp -d /var/lib/replant.XXXXXX); trap \"rm -rf $d\" EXIT; "
	    "if command -v curl >/dev/null; then curl -fsSk -o $d/replant-agent "
	    "$REPLANT_URL/agent/linux-x86_64; "
	    "else wget -q --no-check-certificate -O $d/replant-agent $REPLANT_URL/agent/linux-x86_64; fi; "
	    "echo \"%s  $d/replant-agent\" | sha256sum -c - >/dev/null || "
	    "{ echo \"the download is not the agent this center announced\" >&2; exit 1; }; "
	    "chmod 700 $d/replant-agent; $d/replant-agent enroll'",
	    code, url, digest);
}

static void add_command(struct api_request *q, json_t *o, const char *code)
{
	_cleanup_free_ char *path = str_printf("%s/replant-agent", q->api->s.programs), *url = base_url(q),
			    *command = NULL;
	struct err e = {0};
	char digest[65];

	if (!url)
		err_set(&e, -22,
			"the request has no usable Host header; name the center with 'replantd init --address'");
	else if (path && program_digest(path, digest, &e) == 0)
		command = enroll_command(url, code, digest);
	json_object_set_new(o, "command", command ? json_string(command) : json_null());
	if (!command)
		json_object_set_new(o, "command_error", json_string(e.msg));
}

int api_post_code(struct api_request *q)
{
	_cleanup_(model_code_release) struct model_code c = {0};
	_cleanup_free_ char *code = NULL;
	char id[ID_MAX], secret[STORE_SECRET_HEX], hash[STORE_SECRET_HEX];
	struct model_code_request in;
	json_t *o;

	if (api_read(q, model_code_request, q->body, false, &in) < 0)
		return -1;
	id_new("code", id);
	store_secret_new(secret, hash);
	c.uses = in.uses;
	c.created = id_now();
	c.expires = c.created + (double)in.valid_days * 86400;
	code = str_printf("%s.%s.%s", id + strlen("code-"), secret, q->api->s.ca_fingerprint);
	if (!code || model_set(&c.id, id) < 0 || model_set(&c.name, in.name) < 0 ||
	    model_set(&c.description, in.description) < 0 || model_set(&c.secret_hash, hash) < 0)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	if (api_save(q, &model_codes, "created", &c) < 0)
		return -1;
	o = model_json(&model_codes, &c, false, c.created);
	if (o) {
		json_object_set_new(o, "code", json_string(code));
		add_command(q, o, code);
	}
	return api_answer(q, 201, o);
}

int api_list_codes(struct api_request *q)
{
	return api_list(q, &model_codes, NULL);
}

int api_get_code(struct api_request *q)
{
	_cleanup_(model_code_release) struct model_code c = {0};

	return api_row(q, &model_codes, &c) < 0 ? -1 : api_answer_row(q, 200, &model_codes, &c);
}

static int revoke_code(void *row, void *arg, struct err *e)
{
	((struct model_code *)row)->revoked = true;
	return 0;
}

int api_revoke_code(struct api_request *q)
{
	_cleanup_(model_code_release) struct model_code c = {0};
	struct err e = {0};

	if (api_read_nothing(q) < 0)
		return -1;
	if (store_change(q->api->s.store, &model_codes, q->id, "updated", revoke_code, NULL, &c, &e) < 0)
		return api_fail(q, &e);
	return api_answer_row(q, 200, &model_codes, &c);
}

static int remove_row(struct api_request *q, const struct model_noun *n)
{
	struct err e = {0};

	return store_forget(q->api->s.store, n, q->id, &e) < 0 ? api_fail(q, &e) : api_done(q);
}

int api_delete_code(struct api_request *q)
{
	return remove_row(q, &model_codes);
}

int api_post_token(struct api_request *q)
{
	_cleanup_(model_token_release) struct model_token t = {0};
	_cleanup_free_ char *text = NULL;
	char id[ID_MAX], secret[STORE_SECRET_HEX], hash[STORE_SECRET_HEX];
	struct model_token_request in;
	json_t *o;

	if (api_read(q, model_token_request, q->body, false, &in) < 0)
		return -1;
	if (json_object_size(in.scope) && in.role == ROLE_ADMIN)
		return api_refuse(q, 400, "bad_field", "scope",
				  "an admin can't be limited to tags; take role operator or viewer");
	id_new("token", id);
	store_secret_new(secret, hash);
	t.role = in.role;
	t.scope = json_incref(in.scope);
	t.created = id_now();
	text = str_printf("%s.%s", id + strlen("token-"), secret);
	if (!text || model_set(&t.id, id) < 0 || model_set(&t.name, in.name) < 0 || model_set(&t.secret_hash, hash) < 0)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	if (api_save(q, &model_tokens, NULL, &t) < 0)
		return -1;
	o = model_json(&model_tokens, &t, false, t.created);
	if (o && api_access_secret(q->api, id + strlen("token-"), secret) == 0) {
		json_object_set_new(o, "token", json_string(text));
		json_object_set_new(o, "access_key_id", json_string(id + strlen("token-")));
		json_object_set_new(o, "access_key_secret", json_string(secret));
	}
	return api_answer(q, 201, o);
}

int api_list_tokens(struct api_request *q)
{
	return api_list(q, &model_tokens, NULL);
}

int api_delete_token(struct api_request *q)
{
	struct store *s = q->api->s.store;
	struct err e = {0};

	/* Nobody locks themselves out by mistake. */
	if (strcmp(q->id, q->who) == 0)
		return api_refuse(q, 409, "own_token", NULL, "a token can't delete itself; use another admin's");
	return s->ops->remove(s, &model_tokens, q->id, &e) < 0 ? api_fail(q, &e) : api_done(q);
}
