/*
 * TLS 1.3 with an external pre-shared key and nothing else: no certificates, no tickets, no early data. Whoever doesn't
 * hold the run's key is refused by the handshake itself. Where a job is not to be encrypted it is TLS 1.2 with one
 * suite that has no cipher (RFC 5489), for this OpenSSL has none for TLS 1.3 (RFC 9150): the key is proved and each
 * record has its MAC all the same. Neither side takes the one for the other.
 */
#include <errno.h>
#include <openssl/err.h>
#include <poll.h>
#include <string.h>

#include "base/err.h"
#include "base/id.h"
#include "base/util.h"
#include "wire/wire_int.h"

#define TLS_SUITES      "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256"
#define TLS_CLEAR_SUITE "ECDHE-PSK-NULL-SHA256"
/* AES-GCM is safe for 2^24.5 full records (RFC 8446 5.5), 380 GiB: new keys come long before. */
#define TLS_REKEY_AFTER (UINT64_C(64) << 30)

static pthread_once_t tls_once = PTHREAD_ONCE_INIT;
static BIO_METHOD *tls_bio;
static int tls_auth_index;

/* ---- the socket below TLS: counts, never raises SIGPIPE, gathers records ---- */
static int tls_bio_read(BIO *b, char *p, int n)
{
	struct wire_link *l = BIO_get_data(b);
	ssize_t r = link_raw_recv(l, p, (size_t)n);

	BIO_clear_retry_flags(b);
	if (r == -EAGAIN)
		BIO_set_retry_read(b);
	else if (r < 0)
		l->sys_errno = (int)-r;
	return r < 0 ? -1 : (int)r;
}

/* 1: all out; -1: would block or broken. */
static int tls_bio_flush(BIO *b, struct wire_link *l)
{
	BIO_clear_retry_flags(b);
	while (l->out_off < l->out_len) {
		ssize_t r = link_raw_send(l, l->out + l->out_off, l->out_len - l->out_off);

		if (r < 0) {
			if (r == -EAGAIN)
				BIO_set_retry_write(b);
			else
				l->sys_errno = (int)-r;
			return -1;
		}
		l->out_off += (size_t)r;
	}
	l->out_off = l->out_len = 0;
	return 1;
}

static int tls_bio_write(BIO *b, const char *p, int n)
{
	struct wire_link *l = BIO_get_data(b);

	BIO_clear_retry_flags(b);
	if (l->out_len + (size_t)n > WIRE_OUT_BUFFER && tls_bio_flush(b, l) < 0)
		return -1;
	n = (int)MIN((size_t)n, WIRE_OUT_BUFFER - l->out_len);
	memcpy(l->out + l->out_len, p, (size_t)n);
	l->out_len += (size_t)n;
	return n;
}

/*
 * What would block stays in our buffer and counts as flushed: OpenSSL's own buffering BIO above us loses the retry flag
 * of a flush. link_flush() is what makes sure that all is out.
 */
static long tls_bio_ctrl(BIO *b, int cmd, long num, void *p)
{
	if (cmd != BIO_CTRL_FLUSH)
		return 0;
	if (tls_bio_flush(b, BIO_get_data(b)) < 0 && !BIO_should_retry(b))
		return -1;
	BIO_clear_retry_flags(b);
	return 1;
}

static int tls_bio_create(BIO *b)
{
	BIO_set_init(b, 1);
	return 1;
}

static void tls_init(void)
{
	OPENSSL_init_ssl(OPENSSL_INIT_NO_LOAD_CONFIG, NULL);
	tls_bio = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK | BIO_TYPE_DESCRIPTOR, "replant");
	must(tls_bio);
	BIO_meth_set_read(tls_bio, tls_bio_read);
	BIO_meth_set_write(tls_bio, tls_bio_write);
	BIO_meth_set_ctrl(tls_bio, tls_bio_ctrl);
	BIO_meth_set_create(tls_bio, tls_bio_create);
	tls_auth_index = SSL_get_ex_new_index(0, NULL, NULL, NULL, NULL);
	must(tls_auth_index >= 0);
}

/* ---- the key ---- */
static SSL_SESSION *tls_session(SSL *ssl, const struct wire_auth *a)
{
	static const unsigned char suite[] = {0x13, 0x01}; /* stands for its hash, SHA-256 */
	const SSL_CIPHER *cipher = SSL_CIPHER_find(ssl, suite);
	SSL_SESSION *s = SSL_SESSION_new();

	if (s && cipher && SSL_SESSION_set1_master_key(s, a->psk, WIRE_PSK_SIZE) && SSL_SESSION_set_cipher(s, cipher) &&
	    SSL_SESSION_set_protocol_version(s, TLS1_3_VERSION))
		return s;
	SSL_SESSION_free(s);
	return NULL;
}

static int tls_use_psk(SSL *ssl, const EVP_MD *md, const unsigned char **id, size_t *idlen, SSL_SESSION **sess)
{
	const struct wire_auth *a = SSL_get_ex_data(ssl, tls_auth_index);

	*sess = NULL;
	if (md && !EVP_MD_is_a(md, "SHA256"))
		return 0;
	*sess = tls_session(ssl, a);
	*id = (const unsigned char *)a->run;
	*idlen = strlen(a->run);
	return *sess != NULL;
}

static int tls_find_psk(SSL *ssl, const unsigned char *id, size_t idlen, SSL_SESSION **sess)
{
	const struct wire_auth *a = SSL_get_ex_data(ssl, tls_auth_index);

	*sess = NULL;
	if (idlen != strlen(a->run) || CRYPTO_memcmp(id, a->run, idlen) != 0)
		return 1; /* not ours: the handshake fails, for there is no other way in */
	*sess = tls_session(ssl, a);
	return *sess != NULL;
}

static unsigned tls_clear_client(SSL *ssl, const char *hint, char *id, unsigned max_id, unsigned char *psk,
				 unsigned max)
{
	const struct wire_auth *a = SSL_get_ex_data(ssl, tls_auth_index);

	if (strlen(a->run) >= max_id || max < WIRE_PSK_SIZE)
		return 0;
	strcpy(id, a->run);
	memcpy(psk, a->psk, WIRE_PSK_SIZE);
	return WIRE_PSK_SIZE;
}

static unsigned tls_clear_server(SSL *ssl, const char *id, unsigned char *psk, unsigned max)
{
	const struct wire_auth *a = SSL_get_ex_data(ssl, tls_auth_index);

	if (!id || strcmp(id, a->run) != 0 || max < WIRE_PSK_SIZE)
		return 0;
	memcpy(psk, a->psk, WIRE_PSK_SIZE);
	return WIRE_PSK_SIZE;
}

/* Level 0 because no other has suites without a cipher; there is no other suite to fall back to. */
static bool tls_set_clear(SSL_CTX *c, bool server)
{
	if (server)
		SSL_CTX_set_psk_server_callback(c, tls_clear_server);
	else
		SSL_CTX_set_psk_client_callback(c, tls_clear_client);
	SSL_CTX_set_security_level(c, 0);
	return SSL_CTX_set_min_proto_version(c, TLS1_2_VERSION) && SSL_CTX_set_max_proto_version(c, TLS1_2_VERSION) &&
	       SSL_CTX_set_cipher_list(c, TLS_CLEAR_SUITE);
}

static bool tls_set_encrypted(SSL_CTX *c, bool server)
{
	if (server)
		SSL_CTX_set_psk_find_session_callback(c, tls_find_psk);
	else
		SSL_CTX_set_psk_use_session_callback(c, tls_use_psk);
	return SSL_CTX_set_min_proto_version(c, TLS1_3_VERSION) && SSL_CTX_set_max_proto_version(c, TLS1_3_VERSION) &&
	       SSL_CTX_set_ciphersuites(c, TLS_SUITES) && SSL_CTX_set_num_tickets(c, 0);
}

static SSL_CTX *tls_context(bool server, bool clear)
{
	SSL_CTX *c = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());

	if (!c)
		return NULL;
	SSL_CTX_set_options(c, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_IGNORE_UNEXPECTED_EOF);
	SSL_CTX_set_mode(c, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_session_cache_mode(c, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_verify(c, SSL_VERIFY_NONE, NULL); /* tls_start() insists on the key instead */
	SSL_CTX_set_read_ahead(c, 1);
	SSL_CTX_set_default_read_buffer_len(c, WIRE_OUT_BUFFER);
	if (clear ? tls_set_clear(c, server) : tls_set_encrypted(c, server))
		return c;
	SSL_CTX_free(c);
	return NULL;
}

/* ---- results of OpenSSL as errno ---- */
static int tls_broken(struct wire_link *l, const char *what, struct err *e)
{
	unsigned long code = ERR_peek_error();
	const char *reason = code ? ERR_reason_error_string(code) : NULL;

	ERR_clear_error();
	if (l->sys_errno) {
		errno = l->sys_errno;
		return err_sys(e, "%s", what);
	}
	if (reason)
		return err_set(e, -EBADMSG, "%s: TLS: %s", what, reason);
	return err_set(e, -ECONNRESET, "%s: the peer closed the connection", what);
}

static ssize_t tls_result(struct wire_link *l, int r, const char *what, struct err *e)
{
	switch (SSL_get_error(l->ssl, r)) {
	case SSL_ERROR_WANT_READ:
		l->want = POLLIN;
		return -EAGAIN;
	case SSL_ERROR_WANT_WRITE:
		l->want = POLLOUT;
		return -EAGAIN;
	case SSL_ERROR_ZERO_RETURN:
		return 0;
	default:
		return tls_broken(l, what, e);
	}
}

static ssize_t tls_read(struct wire_link *l, void *p, size_t n, struct err *e)
{
	size_t got;
	int r;

	ERR_clear_error();
	r = SSL_read_ex(l->ssl, p, n, &got);
	return r > 0 ? (ssize_t)got : tls_result(l, r, "connection broken", e);
}

static ssize_t tls_write(struct wire_link *l, const void *p, size_t n, struct err *e)
{
	size_t put;
	ssize_t r;

	/* Not in the middle of a record that waits for the socket. */
	if (l->since_key >= l->rekey_after && !l->half_written && SSL_key_update(l->ssl, SSL_KEY_UPDATE_NOT_REQUESTED))
		l->since_key = 0;
	ERR_clear_error();
	r = SSL_write_ex(l->ssl, p, n, &put);
	l->half_written = r <= 0;
	if (r > 0) {
		l->since_key += put;
		return (ssize_t)put;
	}
	r = tls_result(l, (int)r, "connection broken", e);
	return r == 0 ? err_set(e, -EPIPE, "the peer closed the connection") : r;
}

static int tls_flush(struct wire_link *l, struct err *e)
{
	BIO *b = SSL_get_wbio(l->ssl);

	if (tls_bio_flush(b, l) > 0)
		return 0;
	if (BIO_should_retry(b)) {
		l->want = POLLOUT;
		return -EAGAIN;
	}
	return tls_broken(l, "connection broken", e);
}

static bool tls_pending(struct wire_link *l)
{
	return SSL_has_pending(l->ssl) == 1;
}

static void tls_release(struct wire_link *l)
{
	SSL_free(l->ssl);
}

const struct wire_transport wire_transport_tls = {tls_read, tls_write, tls_flush, tls_pending, tls_release};

/* ---- handshake ---- */
static int tls_setup(struct wire_link *l, const struct wire_auth *a, struct err *e)
{
	SSL_CTX *ctx = tls_context(l->server, a->clear);
	BIO *b = ctx ? BIO_new(tls_bio) : NULL;

	l->out = malloc(WIRE_OUT_BUFFER);
	l->ssl = ctx && b && l->out ? SSL_new(ctx) : NULL;
	SSL_CTX_free(ctx); /* the SSL holds it */
	if (!l->ssl) {
		BIO_free(b);
		return err_nomem(e);
	}
	BIO_set_data(b, l);
	SSL_set_bio(l->ssl, b, b);
	SSL_set_ex_data(l->ssl, tls_auth_index, (void *)(uintptr_t)a);
	l->rekey_after = a->clear ? UINT64_MAX : TLS_REKEY_AFTER; /* a MAC wears nothing out */
	l->transport = &wire_transport_tls;
	return 0;
}

static int tls_handshake(struct wire_link *l, double deadline, struct err *e)
{
	for (;;) {
		ssize_t r;
		short want;
		int k;

		ERR_clear_error();
		k = l->server ? SSL_accept(l->ssl) : SSL_connect(l->ssl);
		if (k == 1)
			return 0;
		r = tls_result(l, k, "handshake failed", e);
		if (r == 0)
			return err_set(e, -ECONNRESET, "the peer closed the connection during the handshake");
		/* Not the network but the peer, or whoever sits between: the key is wrong, the run is, or it isn't a
		 * receiver. */
		if (r == -EBADMSG && e)
			e->code = -EACCES;
		if (r != -EAGAIN)
			return r == -EBADMSG ? -EACCES : (int)r;
		want = l->want;
		r = link_flush(l, e);
		if (r == 0)
			r = link_wait(l, want, deadline, e);
		if (r < 0)
			return (int)r;
	}
}

/* Without certificates OpenSSL would take a handshake without the key only from a server that has one: insist. The
 * suite without a cipher can't be had without the key. */
static bool tls_is_proved(const SSL *ssl, bool clear)
{
	if (SSL_get0_peer_certificate(ssl))
		return false;
	if (clear)
		return SSL_version(ssl) == TLS1_2_VERSION && strcmp(SSL_get_cipher_name(ssl), TLS_CLEAR_SUITE) == 0;
	return SSL_session_reused(ssl) && SSL_version(ssl) == TLS1_3_VERSION;
}

int tls_start(struct wire_link *l, const struct wire_auth *a, double deadline, struct err *e)
{
	int r;

	pthread_once(&tls_once, tls_init);
	r = tls_setup(l, a, e);
	if (r == 0)
		r = tls_handshake(l, deadline, e);
	if (r < 0)
		return r;
	if (!tls_is_proved(l->ssl, a->clear))
		return err_set(e, -EACCES, "the peer did not prove that it holds the run's key");
	/* The key isn't looked at again, and the caller may forget it. */
	SSL_set_ex_data(l->ssl, tls_auth_index, NULL);
	return link_flush(l, e);
}
