/*
 * Who asks: signature version 1.0 (HMAC-SHA1 over the sorted parameters, which hold it) and ACS3-HMAC-SHA256 (over
 * method, path, parameters, chosen headers and the body's digest; in the Authorization header). Both carry a time,
 * which must be near, and a nonce, which serves once.
 */
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "base/util.h"
#include "smc/smc_int.h"

#define ACS3         "ACS3-HMAC-SHA256"
#define CLOCK_OFF    900.0 /* seconds that the caller's clock may be wrong by */
#define HEADERS_MAX  32u
#define NONCE_MAX    128u
#define KEY_TEXT_MAX 64u

static const char *header(const struct smc *c, const char *name)
{
	return c->in->header(c->in->header_arg, name);
}

static bool is_acs3(const struct smc *c)
{
	const char *h = header(c, "authorization");

	return h && str_starts(h, ACS3 " ");
}

const char *smc_action(const struct smc *c)
{
	return is_acs3(c) ? header(c, "x-acs-action") : smc_param(c, "Action");
}

const char *smc_version(const struct smc *c)
{
	return is_acs3(c) ? header(c, "x-acs-version") : smc_param(c, "Version");
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct smc_pair *)a)->name, ((const struct smc_pair *)b)->name);
}

/* Sorted by name, encoded, joined. `but` is left out. */
static void add_canonical(struct str *b, const struct smc_pair *pairs, size_t n, const char *but)
{
	struct smc_pair *v = n ? malloc(n * sizeof(*v)) : NULL;
	bool first = true;

	if (n && !v) {
		b->failed = true;
		return;
	}
	if (n) {
		memcpy(v, pairs, n * sizeof(*v));
		qsort(v, n, sizeof(*v), by_name);
	}
	for (size_t i = 0; i < n; i++) {
		if (but && strcmp(v[i].name, but) == 0)
			continue;
		str_add(b, first ? "" : "&");
		smc_encode(b, v[i].name);
		str_add(b, "=");
		smc_encode(b, v[i].value);
		first = false;
	}
	free(v);
}

static int mac(const EVP_MD *md, const char *secret, const char *text, unsigned char ret[EVP_MAX_MD_SIZE])
{
	unsigned int n = 0;

	return HMAC(md, secret, (int)strlen(secret), (const unsigned char *)text, strlen(text), ret, &n) ? (int)n : -1;
}

static bool same(const char *a, const char *b)
{
	size_t n = strlen(b);

	return strlen(a) == n && CRYPTO_memcmp(a, b, n) == 0;
}

/* The two texts that the signature is made of, and the signature there is. */
struct signature {
	struct str text;
	const char *given;
	char key[KEY_TEXT_MAX], given_buf[128];
	const char *time, *nonce;
	bool acs3;
};

static void signature_release(struct signature *s)
{
	str_release(&s->text);
}

static int missing(struct smc *c, const char *what)
{
	return smc_fail(c, 400, "MissingParameter", "the parameter %s is mandatory for this action", what);
}

/* ---- version 1.0 ---- */

static int need(struct smc *c, const char *name, const char **ret)
{
	*ret = smc_param(c, name);
	return *ret ? 0 : missing(c, name);
}

static int read_v1(struct smc *c, struct signature *s)
{
	_cleanup_(str_release) struct str query = {0};
	const char *key, *method, *version;

	if (need(c, "AccessKeyId", &key) < 0 || need(c, "SignatureMethod", &method) < 0 ||
	    need(c, "SignatureVersion", &version) < 0 || need(c, "Timestamp", &s->time) < 0 ||
	    need(c, "SignatureNonce", &s->nonce) < 0 || need(c, "Signature", &s->given) < 0)
		return -1;
	if (strcasecmp(method, "HMAC-SHA1") != 0)
		return smc_fail(c, 400, "InvalidParameter.SignatureMethod",
				"SignatureMethod must be HMAC-SHA1, not '%.32s'", method);
	if (strcmp(version, "1.0") != 0)
		return smc_fail(c, 400, "InvalidParameter.SignatureVersion",
				"SignatureVersion must be 1.0, not '%.32s'", version);
	snprintf(s->key, sizeof(s->key), "%s", key);
	add_canonical(&query, (const struct smc_pair *)c->params, c->n, "Signature");
	str_add(&s->text, c->in->method);
	str_add(&s->text, "&%2F&");
	if (str_ok(&query))
		smc_encode(&s->text, query.s ? query.s : "");
	return str_ok(&query) && str_ok(&s->text) ? 0 : smc_nomem(c);
}

/* ---- ACS3 ---- */

/* What stands behind "NAME=" in the header's list. */
static bool credential_part(const char *h, const char *name, char *buf, size_t size)
{
	for (const char *p = h; p; p = strchr(p, ',')) {
		size_t n;

		p += strspn(p, ", ");
		if (!str_starts(p, name) || p[strlen(name)] != '=')
			continue;
		p += strlen(name) + 1;
		n = strcspn(p, ",");
		if (n >= size)
			return false;
		snprintf(buf, size, "%.*s", (int)n, p);
		return true;
	}
	return false;
}

static void sha256_hex(const void *p, size_t n, char ret[65])
{
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned int len = 0;

	must(EVP_Digest(p, n, digest, &len, EVP_sha256(), NULL) == 1 && len == 32);
	str_hex(digest, len, ret);
}

static bool in_list(const char *list, const char *name)
{
	size_t n = strlen(name);

	for (const char *p = list; *p; p += strcspn(p, ";"), p += *p == ';')
		if (strcspn(p, ";") == n && strncmp(p, name, n) == 0)
			return true;
	return false;
}

/* Each header of the list as "name:value\n", spaces around the value gone. */
static int add_headers(struct smc *c, const char *list, struct str *b)
{
	unsigned count = 0;

	for (const char *p = list; *p; p += strcspn(p, ";"), p += *p == ';') {
		char name[64];
		size_t n = strcspn(p, ";");
		const char *v;

		if (!n || n >= sizeof(name) || ++count > HEADERS_MAX)
			return smc_fail(c, 400, "SignatureDoesNotMatch", "SignedHeaders is too long");
		snprintf(name, sizeof(name), "%.*s", (int)n, p);
		v = header(c, name);
		if (!v)
			return smc_fail(c, 400, "SignatureDoesNotMatch", "the header '%s' is signed but not there",
					name);
		v += strspn(v, " \t");
		for (n = strlen(v); n && strchr(" \t", v[n - 1]);)
			n--;
		str_addf(b, "%s:%.*s\n", name, (int)n, v);
	}
	return 0;
}

/* What is signed must include all that this room goes by. */
static int check_signed_headers(struct smc *c, const char *list)
{
	static const char *const needed[] = {"host",       "x-acs-action",          "x-acs-version",
					     "x-acs-date", "x-acs-signature-nonce", "x-acs-content-sha256"};

	for (size_t i = 0; i < ARRAY_SIZE(needed); i++)
		if (!header(c, needed[i]))
			return missing(c, needed[i]);
		else if (!in_list(list, needed[i]))
			return smc_fail(c, 400, "SignatureDoesNotMatch", "the header '%s' must be signed", needed[i]);
	return 0;
}

static int read_acs3(struct smc *c, struct signature *s)
{
	_cleanup_(str_release) struct str b = {0};
	const char *h = header(c, "authorization") + strlen(ACS3 " ");
	char list[1024], digest[65];

	s->acs3 = true;
	if (!credential_part(h, "Credential", s->key, sizeof(s->key)) ||
	    !credential_part(h, "SignedHeaders", list, sizeof(list)) ||
	    !credential_part(h, "Signature", s->given_buf, sizeof(s->given_buf)))
		return smc_fail(c, 400, "IncompleteSignature",
				"the Authorization header must be '" ACS3
				" Credential=..,SignedHeaders=..,Signature=..'");
	s->given = s->given_buf;
	if (check_signed_headers(c, list) < 0)
		return -1;
	s->time = header(c, "x-acs-date");
	s->nonce = header(c, "x-acs-signature-nonce");
	sha256_hex(c->in->body ? c->in->body : "", c->in->len, digest);
	if (strcasecmp(header(c, "x-acs-content-sha256"), digest) != 0)
		return smc_fail(c, 400, "InvalidContentSha256", "x-acs-content-sha256 is not the body's digest");
	str_addf(&b, "%s\n/\n", c->in->method);
	add_canonical(&b, c->in->query, c->in->nquery, NULL);
	str_add(&b, "\n");
	if (add_headers(c, list, &b) < 0)
		return -1;
	str_addf(&b, "\n%s\n%s", list, digest);
	if (!str_ok(&b))
		return smc_nomem(c);
	sha256_hex(b.s, b.len, digest);
	str_addf(&s->text, ACS3 "\n%s", digest);
	return str_ok(&s->text) ? 0 : smc_nomem(c);
}

/* ---- both ---- */

static int sign(const struct signature *s, const char *secret, char *ret, size_t size)
{
	_cleanup_free_ char *key = str_printf("%s%s", secret, s->acs3 ? "" : "&");
	unsigned char raw[EVP_MAX_MD_SIZE];
	int n = key ? mac(s->acs3 ? EVP_sha256() : EVP_sha1(), key, s->text.s, raw) : -1;

	if (key)
		OPENSSL_cleanse(key, strlen(key));
	if (n < 0 || size < (size_t)n * 2 + 1)
		return -1;
	if (s->acs3)
		str_hex(raw, (size_t)n, ret);
	else
		EVP_EncodeBlock((unsigned char *)ret, raw, n);
	return 0;
}

static bool time_is_near(const struct smc *c, const char *text)
{
	struct tm tm = {0};
	const char *end = strptime(text, "%Y-%m-%dT%H:%M:%SZ", &tm);
	double t = end && !*end ? (double)timegm(&tm) : -1;

	return t >= 0 && t > c->in->now - CLOCK_OFF && t < c->in->now + CLOCK_OFF;
}

static bool check_nonce(struct smc *c, const struct signature *s)
{
	int r;

	if (strlen(s->nonce) > NONCE_MAX) {
		smc_fail(c, 400, "InvalidParameter.SignatureNonce", "the nonce has more than %u characters", NONCE_MAX);
		return false;
	}
	r = c->service->nonce(c->service->arg, c->key, s->nonce, c->in->now + 2 * CLOCK_OFF);
	if (r == -EEXIST)
		smc_fail(c, 400, "SignatureNonceUsed", "the nonce was used before");
	else if (r < 0)
		smc_fail(c, 500, "InternalError", "the nonce can't be kept");
	return r == 0;
}

bool smc_verify(struct smc *c, bool *ret_denied)
{
	_cleanup_(signature_release) struct signature s = {0};
	char secret[SMC_SECRET_MAX], ours[2 * EVP_MAX_MD_SIZE + 1];
	int r;

	*ret_denied = true; /* whoever has shown no right signature, for whatever reason */
	if ((is_acs3(c) ? read_acs3(c, &s) : read_v1(c, &s)) < 0)
		return false;
	r = strlen(s.key) < ID_MAX ? c->service->secret(c->service->arg, s.key, secret) : -ENOENT;
	if (r < 0 && r != -ENOENT) {
		*ret_denied = false;
		smc_fail(c, 500, "InternalError", "the access key can't be looked up");
		return false;
	}
	if (r < 0) {
		smc_fail(c, 404, "InvalidAccessKeyId.NotFound", "the specified access key is not found");
		return false;
	}
	r = sign(&s, secret, ours, sizeof(ours));
	OPENSSL_cleanse(secret, sizeof(secret));
	if (r < 0 || !same(s.given, ours)) {
		smc_fail(c, 400, "SignatureDoesNotMatch",
			 "the specified signature is not matched with our calculation, server string to sign is: %s",
			 s.text.s);
		return false;
	}
	*ret_denied = false;
	snprintf(c->key, sizeof(c->key), "%.47s", s.key);
	if (!time_is_near(c, s.time)) {
		smc_fail(c, 400, "InvalidTimeStamp.Expired",
			 "the time '%.32s' is no UTC time like 2026-01-31T12:00:00Z within 15 minutes of the server's",
			 s.time);
		return false;
	}
	return check_nonce(c, &s);
}
