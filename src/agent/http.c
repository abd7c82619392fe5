/*
 * HTTPS to one center: libevent's HTTP client over its OpenSSL stream and its own DNS resolver, so that nothing here
 * needs a shared library or glibc's name service. One call at a time; the connection stays open between calls and is
 * made anew when it turns out to be closed.
 *
 * Whom we trust is one certificate: the center's CA, kept since enrolment, or on first contact the certificate of the
 * presented chain whose SHA-256 is in the activation code. The system's own authorities play no part.
 */
#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent_ssl.h>
#include <event2/dns.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/keyvalq_struct.h>
#include <event2/util.h>
#include <netdb.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <string.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"
#include "version.h"

#define HTTP_IDLE_SECONDS  15 /* without a byte */
#define HTTP_TOTAL_SECONDS 30 /* a whole call */
#define HTTP_HEADERS_MAX   65536
#define HTTP_ADDRESSES_MAX 8

struct http_addresses {
	char text[HTTP_ADDRESSES_MAX][64];
	size_t n;
};

struct http {
	struct conf_url url;
	SSL_CTX *ctx;
	X509 *ca; /* NULL until found by fingerprint */
	uint8_t fingerprint[32];
	bool by_fingerprint;
	int verify_error; /* X509_V_ERR_..., of the last handshake */
	bool not_listed;  /* no certificate of the chain has the fingerprint */

	struct event_base *base;
	char address[64]; /* the one of the host's that is tried */
	struct evhttp_connection *con;
	struct bufferevent *bev; /* owned by con */
	bool closed;             /* the center closed con */

	/* of the call under way */
	bool done, failed, late;
	enum evhttp_request_error why;
	int sock_errno;
	unsigned long ssl_error;
	int status;
	char *body;
	size_t len;
};

/* ---- trust ---- */

static bool http_has_fingerprint(const X509 *x, const uint8_t fingerprint[32])
{
	uint8_t md[EVP_MAX_MD_SIZE];
	unsigned len = 0;

	return X509_digest(x, EVP_sha256(), md, &len) == 1 && len == 32 && CRYPTO_memcmp(md, fingerprint, 32) == 0;
}

/* The certificate of the presented chain that has the fingerprint; borrowed. */
static X509 *http_find_ca(struct http *h, X509_STORE_CTX *x)
{
	STACK_OF(X509) *chain = X509_STORE_CTX_get0_untrusted(x);

	for (int i = 0; chain && i < sk_X509_num(chain); i++) {
		X509 *one = sk_X509_value(chain, i);

		if (http_has_fingerprint(one, h->fingerprint))
			return one;
	}
	return NULL;
}

/* Takes the place of OpenSSL's own: the one trusted certificate goes in, the rest of the checks stay as they are. */
static int http_verify(X509_STORE_CTX *x, void *arg)
{
	struct http *h = arg;
	X509 *ca = h->ca ? h->ca : http_find_ca(h, x);
	STACK_OF(X509) * trusted;
	int ok = 0;

	h->not_listed = !ca;
	if (!ca) {
		X509_STORE_CTX_set_error(x, X509_V_ERR_CERT_UNTRUSTED);
		h->verify_error = X509_V_ERR_CERT_UNTRUSTED;
		return 0;
	}
	trusted = sk_X509_new_null();
	if (trusted && sk_X509_push(trusted, ca) > 0) {
		X509_STORE_CTX_set0_trusted_stack(x, trusted);
		ok = X509_verify_cert(x);
		h->verify_error = X509_STORE_CTX_get_error(x);
	}
	if (ok == 1 && !h->ca && X509_up_ref(ca))
		h->ca = ca;
	sk_X509_free(trusted);
	return ok == 1;
}

static int http_explain_trust(struct http *h, struct err *e)
{
	const char *host = h->url.host;

	if (h->not_listed)
		return err_set(e, -EKEYREJECTED,
			       "'%s' is not the center of this activation code: none of its certificates has the "
			       "fingerprint in the "
			       "code (is the address right? somebody may be in between)",
			       host);
	switch (h->verify_error) {
	case X509_V_ERR_HOSTNAME_MISMATCH:
	case X509_V_ERR_IP_ADDRESS_MISMATCH:
		return err_set(
		    e, -EKEYREJECTED,
		    "the center's certificate does not name '%s' (use an address it names, or add this one with "
		    "'replantd init --address')",
		    host);
	case X509_V_ERR_CERT_NOT_YET_VALID:
		return err_set(e, -EKEYREJECTED,
			       "the certificate of '%s' is not valid yet: is the clock of this server right?", host);
	case X509_V_ERR_CERT_HAS_EXPIRED:
		return err_set(e, -EKEYREJECTED,
			       "the certificate of '%s' has expired: is the clock of this server right?", host);
	default:
		return err_set(
		    e, -EKEYREJECTED,
		    "'%s' can't prove to be the center: %s (was the center set up anew? somebody may be in between)",
		    host, X509_verify_cert_error_string(h->verify_error));
	}
}

static X509 *http_read_pem(const char *pem)
{
	BIO *bio = BIO_new_mem_buf(pem, -1);
	X509 *x = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;

	BIO_free(bio);
	return x;
}

bool http_is_ca(const char *pem, const uint8_t fingerprint[32])
{
	X509 *x = http_read_pem(pem);
	bool is = x && http_has_fingerprint(x, fingerprint);

	X509_free(x);
	return is;
}

char *http_ca_pem(struct http *h)
{
	BIO *bio = h->ca ? BIO_new(BIO_s_mem()) : NULL;
	char *data, *out = NULL;
	long len;

	if (bio && PEM_write_bio_X509(bio, h->ca) == 1) {
		len = BIO_get_mem_data(bio, &data);
		out = strndup(data, (size_t)len);
	}
	BIO_free(bio);
	return out;
}

/* ---- the connection ---- */

static void http_drop(struct http *h)
{
	if (h->con)
		evhttp_connection_free(h->con);
	h->con = NULL;
	h->bev = NULL;
}

static void http_on_close(struct evhttp_connection *con, void *arg)
{
	struct http *h = arg;

	h->closed = true;
}

static SSL *http_new_ssl(struct http *h)
{
	SSL *ssl = SSL_new(h->ctx);

	if (!ssl)
		return NULL;
	if (h->url.numeric ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), h->url.host) != 1
			   : SSL_set1_host(ssl, h->url.host) != 1 || SSL_set_tlsext_host_name(ssl, h->url.host) != 1) {
		SSL_free(ssl);
		return NULL;
	}
	return ssl;
}

static int http_connect(struct http *h, struct err *e)
{
	SSL *ssl = http_new_ssl(h);

	if (!ssl)
		return err_nomem(e);
	h->bev = bufferevent_openssl_socket_new(h->base, -1, ssl, BUFFEREVENT_SSL_CONNECTING,
						BEV_OPT_CLOSE_ON_FREE | BEV_OPT_DEFER_CALLBACKS);
	if (!h->bev) {
		SSL_free(ssl);
		return err_nomem(e);
	}
	bufferevent_openssl_set_allow_dirty_shutdown(h->bev, 1); /* HTTP says where a body ends */
	h->con = evhttp_connection_base_bufferevent_new(h->base, NULL, h->bev, h->address, h->url.port);
	if (!h->con) {
		bufferevent_free(h->bev);
		h->bev = NULL;
		return err_nomem(e);
	}
	h->closed = false;
	evhttp_connection_set_closecb(h->con, http_on_close, h);
	evhttp_connection_set_timeout(h->con, HTTP_IDLE_SECONDS);
	evhttp_connection_set_max_body_size(h->con, JSN_MAX_SIZE);
	evhttp_connection_set_max_headers_size(h->con, HTTP_HEADERS_MAX);
	return 0;
}

int http_new(const struct conf_url *url, const char *ca_pem, const uint8_t *fingerprint, struct http **ret,
	     struct err *e)
{
	struct http *h = calloc(1, sizeof(*h));

	must(!ca_pem != !fingerprint);
	if (!h)
		return err_nomem(e);
	h->url = *url;
	if (ca_pem && !(h->ca = http_read_pem(ca_pem))) {
		http_free(h);
		return err_set(e, -EINVAL, "the stored certificate of the center can't be read: enrol again");
	}
	if (fingerprint)
		memcpy(h->fingerprint, fingerprint, sizeof(h->fingerprint));
	h->ctx = SSL_CTX_new(TLS_client_method());
	h->base = event_base_new();
	if (!h->ctx || !h->base || SSL_CTX_set_min_proto_version(h->ctx, TLS1_2_VERSION) != 1) {
		http_free(h);
		return err_nomem(e);
	}
	SSL_CTX_set_verify(h->ctx, SSL_VERIFY_PEER, NULL);
	SSL_CTX_set_cert_verify_callback(h->ctx, http_verify, h);
	*ret = h;
	return 0;
}

void http_free(struct http *h)
{
	if (!h)
		return;
	http_drop(h);
	if (h->base)
		event_base_free(h->base);
	SSL_CTX_free(h->ctx);
	X509_free(h->ca);
	free(h->body);
	free(h);
}

/* ---- names ---- */

struct http_lookup {
	struct event_base *base;
	struct http_addresses *out;
	int error;
	bool done;
};

static void http_on_lookup(int error, struct evutil_addrinfo *ai, void *arg)
{
	struct http_lookup *l = arg;

	l->done = true;
	l->error = error;
	for (struct evutil_addrinfo *a = ai; a && !error && l->out->n < HTTP_ADDRESSES_MAX; a = a->ai_next) {
		const void *raw = a->ai_family == AF_INET6
				      ? (void *)&((struct sockaddr_in6 *)(void *)a->ai_addr)->sin6_addr
				      : (void *)&((struct sockaddr_in *)(void *)a->ai_addr)->sin_addr;

		if (evutil_inet_ntop(a->ai_family, raw, l->out->text[l->out->n], sizeof(l->out->text[0])))
			l->out->n++;
	}
	if (ai)
		evutil_freeaddrinfo(ai);
	event_base_loopbreak(l->base);
}

static const char *http_lookup_error(const struct http_lookup *l)
{
	if (!l->done || l->error == EVUTIL_EAI_AGAIN)
		return "no name server answers";
	if (l->error == EVUTIL_EAI_NONAME || l->error == EVUTIL_EAI_NODATA || l->error == EVUTIL_EAI_ADDRFAMILY ||
	    !l->error)
		return "no such name";
	return evutil_gai_strerror(l->error);
}

static int http_lookup_name(struct event_base *base, const char *host, struct http_addresses *out, struct err *e)
{
	const struct evutil_addrinfo hints = {
	    .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM, .ai_protocol = IPPROTO_TCP};
	const struct timeval total = {.tv_sec = HTTP_TOTAL_SECONDS};
	struct http_lookup l = {.base = base, .out = out};
	struct evdns_base *dns = evdns_base_new(base, EVDNS_BASE_DISABLE_WHEN_INACTIVE);

	if (!dns)
		return err_nomem(e);
	evdns_base_resolv_conf_parse(dns, DNS_OPTIONS_ALL, "/etc/resolv.conf");
	evdns_getaddrinfo(dns, host, NULL, &hints, http_on_lookup, &l);
	if (!l.done) {
		event_base_loopexit(base, &total);
		event_base_dispatch(base);
	}
	evdns_base_free(dns, 1); /* a pending lookup is called back with an error */
	if (!l.done || l.error || !out->n)
		return err_set(e, -EHOSTUNREACH,
			       "cannot find the address of '%s': %s (check the name, /etc/hosts and /etc/resolv.conf)",
			       host, http_lookup_error(&l));
	return 0;
}

static int http_addresses(const char *host, struct http_addresses *ret, struct err *e)
{
	struct event_base *base = event_base_new();
	int r;

	if (!base)
		return err_nomem(e);
	r = http_lookup_name(base, host, ret, e);
	event_base_free(base);
	return r;
}

int http_resolve(const char *host, char out[64], struct err *e)
{
	struct http_addresses a = {0};
	int r = http_addresses(host, &a, e);

	if (r == 0)
		memcpy(out, a.text[0], sizeof(a.text[0]));
	return r;
}

/* ---- a call ---- */

static void http_on_error(enum evhttp_request_error why, void *arg)
{
	struct http *h = arg;

	h->failed = true;
	h->why = why;
	h->sock_errno = EVUTIL_SOCKET_ERROR();
}

static void http_note_transport(struct http *h)
{
	if (!h->bev)
		return;
	if (!h->sock_errno)
		h->sock_errno = EVUTIL_SOCKET_ERROR();
	h->ssl_error = bufferevent_get_openssl_error(h->bev);
	/* The stream mixes in its own marks for a failed connect(), which mean nothing to OpenSSL. */
	if (!ERR_reason_error_string(h->ssl_error))
		h->ssl_error = 0;
}

static void http_on_answer(struct evhttp_request *req, void *arg)
{
	struct http *h = arg;
	struct evbuffer *in;

	h->done = true;
	http_note_transport(h);
	if (!req || h->failed || evhttp_request_get_response_code(req) == 0) {
		h->failed = true;
	} else {
		in = evhttp_request_get_input_buffer(req);
		h->len = evbuffer_get_length(in);
		h->body = malloc(h->len + 1);
		if (h->body && evbuffer_copyout(in, h->body, h->len) == (ev_ssize_t)h->len)
			h->status = evhttp_request_get_response_code(req);
		else
			h->failed = true;
	}
	event_base_loopbreak(h->base);
}

static void http_on_late(evutil_socket_t fd, short what, void *arg)
{
	struct http *h = arg;

	h->late = true;
	event_base_loopbreak(h->base);
}

static int http_headers(struct http *h, struct evhttp_request *req, const char *bearer)
{
	struct evkeyvalq *out = evhttp_request_get_output_headers(req);
	bool v6 = strchr(h->url.host, ':');
	char text[512];

	snprintf(text, sizeof(text), "%s%s%s:%u", v6 ? "[" : "", h->url.host, v6 ? "]" : "", h->url.port);
	if (evhttp_add_header(out, "Host", text) < 0 ||
	    evhttp_add_header(out, "User-Agent", "replant-agent/" REPLANT_VERSION) < 0 ||
	    evhttp_add_header(out, "Accept", "application/json") < 0)
		return -ENOMEM;
	if (!bearer)
		return 0;
	snprintf(text, sizeof(text), "Bearer %s", bearer);
	return evhttp_add_header(out, "Authorization", text) < 0 ? -ENOMEM : 0;
}

static void http_reset(struct http *h)
{
	free(h->body);
	h->body = NULL;
	h->len = 0;
	h->status = 0;
	h->done = h->failed = h->late = h->not_listed = false;
	h->sock_errno = 0;
	h->ssl_error = 0;
	h->verify_error = X509_V_OK;
	h->why = EVREQ_HTTP_EOF;
	errno = 0;
}

/* One attempt; 0 when an answer came. */
static int http_try(struct http *h, const char *path, const char *bearer, const char *body, struct err *e)
{
	const struct timeval total = {.tv_sec = HTTP_TOTAL_SECONDS};
	struct evhttp_request *req;
	struct event *timer;

	http_reset(h);
	if (h->con)
		event_base_loop(h->base, EVLOOP_NONBLOCK); /* learns of a connection closed since */
	if (h->con && h->closed)
		return -EIO;
	if (!h->con && http_connect(h, e) < 0)
		return -ENOMEM;
	req = evhttp_request_new(http_on_answer, h);
	timer = evtimer_new(h->base, http_on_late, h);
	if (!req || !timer || http_headers(h, req, bearer) < 0 ||
	    (body &&
	     (evhttp_add_header(evhttp_request_get_output_headers(req), "Content-Type", "application/json") < 0 ||
	      evbuffer_add(evhttp_request_get_output_buffer(req), body, strlen(body)) < 0))) {
		if (req)
			evhttp_request_free(req);
		if (timer)
			event_free(timer);
		return err_nomem(e);
	}
	evhttp_request_set_error_cb(req, http_on_error);
	errno = 0;
	/* From here on the request belongs to the connection. */
	if (evhttp_make_request(h->con, req, body ? EVHTTP_REQ_POST : EVHTTP_REQ_GET, path) < 0)
		h->failed = true;
	else {
		evtimer_add(timer, &total);
		while (!h->done && !h->late && event_base_loop(h->base, EVLOOP_ONCE) == 0)
			;
	}
	event_free(timer);
	return h->done && !h->failed ? 0 : -EIO;
}

static int http_explain(struct http *h, struct err *e)
{
	char where[300];

	snprintf(where, sizeof(where), "%s port %u", h->url.host, h->url.port);
	if (h->verify_error != X509_V_OK || h->not_listed)
		return http_explain_trust(h, e);
	if (h->late || (h->failed && h->why == EVREQ_HTTP_TIMEOUT && !h->sock_errno))
		return err_set(e, -ETIMEDOUT,
			       "the center '%s' does not answer (is the port open in every firewall on the way?)",
			       where);
	if (h->why == EVREQ_HTTP_DATA_TOO_LONG)
		return err_set(e, -EFBIG, "the answer of '%s' is larger than the %u bytes allowed", where,
			       JSN_MAX_SIZE);
	if (h->why == EVREQ_HTTP_INVALID_HEADER)
		return err_set(e, -EPROTO, "'%s' does not answer in HTTP", where);
	if (h->ssl_error)
		return err_set(e, -EPROTO, "no TLS connection with '%s': %s", where,
			       ERR_reason_error_string(h->ssl_error));
	if (h->sock_errno == ENOTCONN || h->sock_errno == ECONNREFUSED)
		return err_set(e, -ECONNREFUSED,
			       "cannot connect to the center '%s' (is it running? does a firewall refuse?)", where);
	if (h->sock_errno && h->sock_errno != EAGAIN && h->sock_errno != EINPROGRESS) {
		errno = h->sock_errno;
		return err_sys(e, "cannot reach the center '%s'", where);
	}
	return err_set(e, -ECONNRESET, "the center '%s' can't be reached or closed the connection", where);
}

/* On a new connection, to one address of the center after the other until one takes it. */
static int http_try_new(struct http *h, const char *path, const char *bearer, const char *body, struct err *e)
{
	struct http_addresses a = {0};
	int r = 0;

	if (h->url.numeric)
		snprintf(a.text[a.n++], sizeof(a.text[0]), "%.63s", h->url.host);
	else
		r = http_addresses(h->url.host, &a, e);
	if (r < 0)
		return r;
	for (size_t i = 0; i < a.n; i++) {
		http_drop(h);
		memcpy(h->address, a.text[i], sizeof(h->address));
		r = http_try(h, path, bearer, body, e);
		if (r != -EIO || h->verify_error != X509_V_OK || h->ssl_error ||
		    (h->why != EVREQ_HTTP_EOF && h->why != EVREQ_HTTP_TIMEOUT))
			break; /* this is the center, or claims to be */
	}
	return r == -EIO ? http_explain(h, e) : r;
}

int http_call(struct http *h, const char *path, const char *bearer, const json_t *body, int *ret_status, json_t **ret,
	      struct err *e)
{
	_cleanup_free_ char *text = body ? jsn_text(body) : NULL;
	json_t *answer = NULL;
	int r = -EIO;

	if (body && !text)
		return err_nomem(e);
	if (h->con)
		r = http_try(h, path, bearer, text, e);
	/* A kept connection may have gone stale: once more on a new one. */
	if (r == -EIO && !h->late)
		r = http_try_new(h, path, bearer, text, e);
	else if (r == -EIO)
		r = http_explain(h, e);
	if (r < 0) {
		http_drop(h);
		return r;
	}
	if (h->len) {
		r = jsn_parse(h->body, h->len, JSN_MAX_SIZE, &answer, e);
		if (r < 0 && h->status < 400)
			return err_prefix(e, "answer of the center '%s'", h->url.host);
	}
	*ret_status = h->status;
	*ret = answer;
	return 0;
}

int http_refusal(int status, const json_t *answer, struct err *e)
{
	const json_t *o = json_object_get(answer, "error");
	const char *message = json_string_value(json_object_get(o, "message"));
	char text[512];
	int code = -EPROTO;

	if (status == 401 || status == 403)
		code = -EACCES;
	else if (status == 404 || status == 410)
		code = -ENOENT;
	else if (status == 429 || status == 503)
		code = -EBUSY;
	else if (status >= 500)
		code = -EREMOTEIO;
	if (message) {
		snprintf(text, sizeof(text), "%s", message);
		for (char *p = text; *p; p++) /* it goes to a terminal */
			if ((unsigned char)*p < 0x20 || *p == 0x7f)
				*p = ' ';
		return err_set(e, code, "the center refuses: %s", text);
	}
	return err_set(e, code, "the center refuses (HTTP status %d)", status);
}
