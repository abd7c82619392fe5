/* HTTPS to the center. Trust is the given certificate and nothing else: no system store, no redirects, no other scheme.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"
#include "version.h"

void cli_reply_release(struct cli_reply *r)
{
	str_release(&r->body);
	json_decref(r->json);
	*r = (struct cli_reply){0};
}

void cli_http_release(struct cli *c)
{
	curl_easy_cleanup(c->curl);
	curl_slist_free_all(c->headers);
	c->curl = NULL;
	c->headers = NULL;
}

static int http_header(struct cli *c, const char *line)
{
	struct curl_slist *l = curl_slist_append(c->headers, line);

	if (!l)
		return -ENOMEM;
	c->headers = l;
	return 0;
}

static int http_headers(struct cli *c)
{
	_cleanup_free_ char *auth = c->token ? str_printf("Authorization: Bearer %s", c->token) : NULL;
	int r = http_header(c, "Content-Type: application/json");

	if (r == 0)
		r = http_header(c, "Expect:");
	if (r == 0 && c->token)
		r = auth ? http_header(c, auth) : -ENOMEM;
	return r;
}

/* Each request starts from the same options. */
static int http_options(struct cli *c, CURL *curl, const char *path, struct err *e)
{
	_cleanup_free_ char *url = str_printf("%s%s", c->url, path);

	if (!url || (!c->headers && http_headers(c) < 0))
		return err_nomem(e);
	curl_easy_reset(curl);
	curl_easy_setopt(curl, CURLOPT_URL, url);
	curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "https");
	curl_easy_setopt(curl, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2);
	curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 1L);
	curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 2L);
	curl_easy_setopt(curl, CURLOPT_CAPATH, NULL);
	curl_easy_setopt(curl, CURLOPT_CAINFO, c->ca);
	curl_easy_setopt(curl, CURLOPT_HTTPHEADER, c->headers);
	curl_easy_setopt(curl, CURLOPT_USERAGENT, "replant/" REPLANT_VERSION);
	curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT, 10L);
	curl_easy_setopt(curl, CURLOPT_TCP_KEEPALIVE, 1L);
	curl_easy_setopt(curl, CURLOPT_TCP_KEEPIDLE, 20L);
	curl_easy_setopt(curl, CURLOPT_TCP_KEEPINTVL, 10L);
	return 0;
}

/* The handle is reused, so that a watch keeps its connection. */
static int http_handle(struct cli *c, const char *path, struct err *e)
{
	if (!c->curl)
		c->curl = curl_easy_init();
	return c->curl ? http_options(c, c->curl, path, e) : err_nomem(e);
}

int cli_http_open(struct cli *c, const char *path, CURL **ret, struct err *e)
{
	CURL *curl = curl_easy_init();
	int r = curl ? http_options(c, curl, path, e) : err_nomem(e);

	if (r < 0) {
		curl_easy_cleanup(curl);
		return r;
	}
	*ret = curl;
	return 0;
}

static int http_failed(const struct cli *c, CURLcode code, const char *detail, struct err *e)
{
	switch (code) {
	case CURLE_PEER_FAILED_VERIFICATION:
		return err_set(e, -EACCES,
			       "the center at '%s' is not the one whose certificate is in '%s': %s (check --server and "
			       "--ca)",
			       c->url, c->ca, detail);
	case CURLE_SSL_CACERT_BADFILE:
		return err_set(e, -EINVAL, "'%s' is not a certificate in PEM form (give the center's ca.pem with --ca)",
			       c->ca);
	case CURLE_URL_MALFORMAT:
		return err_set(e, -EINVAL, "'%s' is not a valid address for a center", c->url);
	case CURLE_OUT_OF_MEMORY:
		return err_nomem(e);
	case CURLE_WRITE_ERROR:
		return err_set(e, -ECANCELED, "the answer of the center at '%s' was refused", c->url);
	case CURLE_FILESIZE_EXCEEDED:
		return err_set(e, -EFBIG, "the center at '%s' answered with more than is allowed", c->url);
	default:
		return err_set(e, -EAGAIN, "cannot reach the center at '%s': %s", c->url, detail);
	}
}

static int http_status(const struct cli *c, const struct cli_reply *r, struct err *e)
{
	const char *message = get_str(r->json, "error.message"), *field = get_str(r->json, "error.field");
	long s = r->status;
	int code = -EPROTO;

	if (s >= 200 && s < 300)
		return 0;
	if (s == 429 || (s >= 502 && s <= 504))
		code = -EAGAIN;
	else if (s == 401 || s == 403)
		code = -EACCES;
	else if (s == 404)
		code = -ENOENT;
	else if (s == 409)
		code = -EBUSY;
	else if (s >= 400 && s < 500)
		code = -EINVAL;
	else if (s >= 500)
		code = -EIO;
	if (s == 401)
		return err_set(e, code, "%s (%s)", *message ? message : "the center refused the token",
			       c->token ? "check the token: it may be revoked, or another center's"
					: "give one with --token-file or REPLANT_TOKEN");
	if (!*message)
		return err_set(e, code, "the center at '%s' answered with HTTP status %ld and no explanation", c->url,
			       s);
	if (*field && !strstr(message, field))
		return err_set(e, code, "'%s': %s", field, message);
	return err_set(e, code, "%s", message);
}

static size_t http_collect(char *p, size_t size, size_t n, void *arg)
{
	struct str *b = arg;

	if (b->len + n > CLI_BODY_MAX)
		return 0;
	str_add_mem(b, p, n);
	return str_ok(b) ? n : 0;
}

static int http_reply(const struct cli *c, struct cli_reply *r, struct err *e)
{
	struct err bad = {0};

	if (r->body.len > 0 && jsn_parse(r->body.s, r->body.len, CLI_BODY_MAX, &r->json, &bad) < 0 &&
	    r->status >= 200 && r->status < 300)
		return err_set(e, -EPROTO, "what answers at '%s' is not a Replant center: %s", c->url, bad.msg);
	return http_status(c, r, e);
}

int cli_http(struct cli *c, const char *method, const char *path, json_t *body, struct cli_reply *r, struct err *e)
{
	_cleanup_free_ char *text = body ? jsn_text(body) : NULL;
	char detail[CURL_ERROR_SIZE] = "";
	CURLcode code;
	int x;

	cli_reply_release(r);
	if (body && !text)
		return err_nomem(e);
	x = http_handle(c, path, e);
	if (x < 0)
		return x;
	curl_easy_setopt(c->curl, CURLOPT_CUSTOMREQUEST, method);
	if (text)
		curl_easy_setopt(c->curl, CURLOPT_POSTFIELDS, text);
	else if (strcmp(method, "POST") == 0)
		curl_easy_setopt(c->curl, CURLOPT_POSTFIELDS, "");
	curl_easy_setopt(c->curl, CURLOPT_TIMEOUT, c->timeout ? c->timeout : 60L);
	curl_easy_setopt(c->curl, CURLOPT_WRITEFUNCTION, http_collect);
	curl_easy_setopt(c->curl, CURLOPT_WRITEDATA, &r->body);
	curl_easy_setopt(c->curl, CURLOPT_ERRORBUFFER, detail);
	code = curl_easy_perform(c->curl);
	curl_easy_setopt(c->curl, CURLOPT_ERRORBUFFER, NULL);
	if (code != CURLE_OK)
		return http_failed(c, code, *detail ? detail : curl_easy_strerror(code), e);
	curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &r->status);
	return http_reply(c, r, e);
}

/* Only the body of a success goes to the caller; the body of a failure is its explanation. */
struct http_stream {
	CURL *curl;
	curl_write_callback write;
	void *arg;
	struct cli_reply failure;
};

static size_t http_stream_write(char *p, size_t size, size_t n, void *arg)
{
	struct http_stream *s = arg;

	curl_easy_getinfo(s->curl, CURLINFO_RESPONSE_CODE, &s->failure.status);
	if (s->failure.status >= 200 && s->failure.status < 300)
		return s->write(p, size, n, s->arg);
	return http_collect(p, size, n, &s->failure.body);
}

int cli_http_stream(struct cli *c, const char *path, uint64_t offset, curl_write_callback write, void *arg,
		    struct err *e)
{
	struct http_stream s = {.write = write, .arg = arg};
	char detail[CURL_ERROR_SIZE] = "";
	CURLcode code;
	int r = http_handle(c, path, e);

	if (r < 0)
		return r;
	s.curl = c->curl;
	if (offset)
		curl_easy_setopt(c->curl, CURLOPT_RESUME_FROM_LARGE, (curl_off_t)offset);
	curl_easy_setopt(c->curl, CURLOPT_LOW_SPEED_LIMIT, 1L);
	curl_easy_setopt(c->curl, CURLOPT_LOW_SPEED_TIME, 90L);
	curl_easy_setopt(c->curl, CURLOPT_WRITEFUNCTION, http_stream_write);
	curl_easy_setopt(c->curl, CURLOPT_WRITEDATA, &s);
	curl_easy_setopt(c->curl, CURLOPT_ERRORBUFFER, detail);
	code = curl_easy_perform(c->curl);
	curl_easy_setopt(c->curl, CURLOPT_ERRORBUFFER, NULL);
	curl_easy_getinfo(c->curl, CURLINFO_RESPONSE_CODE, &s.failure.status);
	if (code != CURLE_OK)
		r = http_failed(c, code, *detail ? detail : curl_easy_strerror(code), e);
	else
		r = s.failure.status >= 300 ? http_reply(c, &s.failure, e) : 0;
	cli_reply_release(&s.failure);
	return r;
}
