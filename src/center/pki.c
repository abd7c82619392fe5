#include "center/pki.h"

#include <arpa/inet.h>
#include <errno.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <string.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"

#define CA_DAYS     3652
#define SERVER_DAYS 397 /* what browsers accept */
#define RENEW_DAYS  30
#define PEM_MAX     65536

static void pkey_freep(EVP_PKEY **k)
{
	EVP_PKEY_free(*k);
}
static void x509_freep(X509 **x)
{
	X509_free(*x);
}
static void bio_freep(BIO **b)
{
	BIO_free(*b);
}
#define _cleanup_pkey_ _cleanup_(pkey_freep)
#define _cleanup_x509_ _cleanup_(x509_freep)
#define _cleanup_bio_  _cleanup_(bio_freep)

static int crypto_error(struct err *e, const char *what)
{
	return err_set(e, -EIO, "cannot %s: the crypto library failed", what);
}

static int pem_path(char *buf, size_t size, const char *state, const char *name, struct err *e)
{
	if ((size_t)snprintf(buf, size, "%s/%s", state, name) >= size)
		return err_set(e, -ENAMETOOLONG, "path '%s' is too long", state);
	return 0;
}

static int write_bio(const char *state, const char *name, BIO *bio, struct err *e)
{
	char path[4096];
	char *data;
	long n = BIO_get_mem_data(bio, &data);
	int r = pem_path(path, sizeof(path), state, name, e);

	return r < 0 ? r : io_write_file_atomic(path, data, (size_t)n, 0600, e);
}

static int write_key(const char *state, const char *name, EVP_PKEY *key, struct err *e)
{
	_cleanup_bio_ BIO *bio = BIO_new(BIO_s_secmem());

	if (!bio || !PEM_write_bio_PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL))
		return crypto_error(e, "write a key");
	return write_bio(state, name, bio, e);
}

static int write_cert(const char *state, const char *name, X509 *x, struct err *e)
{
	_cleanup_bio_ BIO *bio = BIO_new(BIO_s_mem());

	if (!bio || !PEM_write_bio_X509(bio, x))
		return crypto_error(e, "write a certificate");
	return write_bio(state, name, bio, e);
}

static int read_pem(const char *state, const char *name, char **ret, struct err *e)
{
	char path[4096];
	int r = pem_path(path, sizeof(path), state, name, e);

	return r < 0 ? r : io_read_file(path, PEM_MAX, ret, NULL, e);
}

static int read_key(const char *state, const char *name, EVP_PKEY **ret, struct err *e)
{
	_cleanup_free_ char *pem = NULL;
	_cleanup_bio_ BIO *bio = NULL;
	int r = read_pem(state, name, &pem, e);

	if (r < 0)
		return r;
	bio = BIO_new_mem_buf(pem, -1);
	*ret = bio ? PEM_read_bio_PrivateKey(bio, NULL, NULL, NULL) : NULL;
	return *ret ? 0 : err_set(e, -EINVAL, "'%s/%s' holds no private key", state, name);
}

static int read_cert(const char *state, const char *name, X509 **ret, struct err *e)
{
	_cleanup_free_ char *pem = NULL;
	_cleanup_bio_ BIO *bio = NULL;
	int r = read_pem(state, name, &pem, e);

	if (r < 0)
		return r;
	bio = BIO_new_mem_buf(pem, -1);
	*ret = bio ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;
	return *ret ? 0 : err_set(e, -EINVAL, "'%s/%s' holds no certificate", state, name);
}

/* Version, serial, validity, subject, key. A day of grace for clocks that are behind. */
static X509 *cert_new(EVP_PKEY *key, const char *cn, int days)
{
	X509 *x = X509_new();
	unsigned char raw[16];
	BIGNUM *serial;
	bool ok;

	if (!x)
		return NULL;
	id_random(raw, sizeof(raw));
	raw[0] &= 0x7f;
	serial = BN_bin2bn(raw, sizeof(raw), NULL);
	ok = serial && BN_to_ASN1_INTEGER(serial, X509_get_serialNumber(x)) && X509_set_version(x, 2) &&
	     X509_gmtime_adj(X509_getm_notBefore(x), -86400) &&
	     X509_time_adj_ex(X509_getm_notAfter(x), days, 0, NULL) && X509_set_pubkey(x, key) &&
	     X509_NAME_add_entry_by_txt(X509_get_subject_name(x), "CN", MBSTRING_UTF8, (const unsigned char *)cn, -1,
					-1, 0);
	BN_free(serial);
	if (ok)
		return x;
	X509_free(x);
	return NULL;
}

static bool add_ext(X509 *x, X509 *issuer, int nid, const char *value)
{
	X509_EXTENSION *ext;
	X509V3_CTX ctx;
	bool ok;

	X509V3_set_ctx(&ctx, issuer, x, NULL, NULL, 0);
	ext = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
	ok = ext && X509_add_ext(x, ext, -1);
	X509_EXTENSION_free(ext);
	return ok;
}

static X509 *make_ca(EVP_PKEY *key)
{
	char cn[64], id[ID_MAX];
	X509 *x;

	/* Two centers' CAs have different names, so that a client may trust both. */
	id_new("ca", id);
	snprintf(cn, sizeof(cn), "Replant %s", id);
	x = cert_new(key, cn, CA_DAYS);
	if (x && X509_set_issuer_name(x, X509_get_subject_name(x)) &&
	    add_ext(x, x, NID_basic_constraints, "critical,CA:TRUE,pathlen:0") &&
	    add_ext(x, x, NID_key_usage, "critical,keyCertSign,cRLSign") &&
	    add_ext(x, x, NID_subject_key_identifier, "hash") && X509_sign(x, key, EVP_sha256()))
		return x;
	X509_free(x);
	return NULL;
}

static GENERAL_NAME *general_name(const char *name)
{
	GENERAL_NAME *g = GENERAL_NAME_new();
	unsigned char addr[16];
	ASN1_STRING *s;
	size_t n = inet_pton(AF_INET, name, addr) == 1 ? 4 : inet_pton(AF_INET6, name, addr) == 1 ? 16 : 0;

	if (!g)
		return NULL;
	s = n ? ASN1_OCTET_STRING_new() : ASN1_IA5STRING_new();
	if (!s || !ASN1_STRING_set(s, n ? (const void *)addr : name, n ? (int)n : (int)strlen(name))) {
		ASN1_STRING_free(s);
		GENERAL_NAME_free(g);
		return NULL;
	}
	GENERAL_NAME_set0_value(g, n ? GEN_IPADD : GEN_DNS, s);
	return g;
}

static GENERAL_NAMES *alt_names(const char *const *names, size_t n)
{
	GENERAL_NAMES *list = GENERAL_NAMES_new();

	for (size_t i = 0; list && i < n; i++) {
		GENERAL_NAME *g = general_name(names[i]);

		if (!g || !sk_GENERAL_NAME_push(list, g)) {
			GENERAL_NAME_free(g);
			GENERAL_NAMES_free(list);
			return NULL;
		}
	}
	return list;
}

/* A new key and certificate of the server, written with the key first: a crash between leaves a pair that
 * doesn't match, which pki_load() sees. */
static int make_server(const char *state, const GENERAL_NAMES *names, struct err *e)
{
	_cleanup_pkey_ EVP_PKEY *ca_key = NULL, *key = EVP_EC_gen("P-256");
	_cleanup_x509_ X509 *ca = NULL, *x = key ? cert_new(key, "replantd", SERVER_DAYS) : NULL;
	int r = read_key(state, "ca.key", &ca_key, e);

	if (r == 0)
		r = read_cert(state, "ca.pem", &ca, e);
	if (r < 0)
		return r;
	if (!x || !X509_set_issuer_name(x, X509_get_subject_name(ca)) ||
	    !X509_add1_ext_i2d(x, NID_subject_alt_name, (void *)names, 0, 0) ||
	    !add_ext(x, ca, NID_basic_constraints, "critical,CA:FALSE") ||
	    !add_ext(x, ca, NID_key_usage, "critical,digitalSignature") ||
	    !add_ext(x, ca, NID_ext_key_usage, "serverAuth") ||
	    !add_ext(x, ca, NID_authority_key_identifier, "keyid") || !X509_sign(x, ca_key, EVP_sha256()))
		return crypto_error(e, "make the server's certificate");
	r = write_key(state, "server.key", key, e);
	return r < 0 ? r : write_cert(state, "server.pem", x, e);
}

int pki_init(const char *state, const char *const *names, size_t n, struct err *e)
{
	_cleanup_pkey_ EVP_PKEY *key = EVP_EC_gen("P-256");
	_cleanup_x509_ X509 *ca = key ? make_ca(key) : NULL;
	GENERAL_NAMES *list = alt_names(names, n);
	int r;

	if (!ca || !list) {
		GENERAL_NAMES_free(list);
		return crypto_error(e, "make the certificate authority");
	}
	r = write_key(state, "ca.key", key, e);
	if (r == 0)
		r = write_cert(state, "ca.pem", ca, e);
	if (r == 0)
		r = make_server(state, list, e);
	GENERAL_NAMES_free(list);
	return r;
}

static bool is_due(X509 *x, EVP_PKEY *key)
{
	time_t limit = time(NULL) + RENEW_DAYS * 86400;

	return X509_cmp_time(X509_get0_notAfter(x), &limit) < 0 || X509_check_private_key(x, key) != 1;
}

static int renew_if_due(const char *state, struct err *e)
{
	_cleanup_pkey_ EVP_PKEY *key = NULL;
	_cleanup_x509_ X509 *x = NULL;
	GENERAL_NAMES *names;
	int r = read_cert(state, "server.pem", &x, e);

	if (r == 0)
		r = read_key(state, "server.key", &key, e);
	if (r < 0 || !is_due(x, key))
		return r;
	names = X509_get_ext_d2i(x, NID_subject_alt_name, NULL, NULL);
	r = names ? make_server(state, names, e) : err_set(e, -EINVAL, "'%s/server.pem' names no host", state);
	GENERAL_NAMES_free(names);
	return r;
}

int pki_load(const char *state, struct pki *ret, struct err *e)
{
	_cleanup_free_ char *server = NULL, *ca_pem = NULL;
	_cleanup_x509_ X509 *ca = NULL;
	unsigned char digest[32];
	struct pki p = {0};
	unsigned n = 0;
	int r = renew_if_due(state, e);

	if (r == 0)
		r = read_pem(state, "server.pem", &server, e);
	if (r == 0)
		r = read_pem(state, "ca.pem", &ca_pem, e);
	if (r == 0)
		r = read_cert(state, "ca.pem", &ca, e);
	if (r == 0)
		r = read_pem(state, "server.key", &p.key_pem, e);
	if (r < 0)
		return r;
	p.chain_pem = str_printf("%s%s", server, ca_pem);
	if (!p.chain_pem || X509_digest(ca, EVP_sha256(), digest, &n) != 1 || n != sizeof(digest)) {
		pki_release(&p);
		return err_nomem(e);
	}
	str_hex(digest, sizeof(digest), p.ca_fingerprint);
	*ret = p;
	return 0;
}

void pki_release(struct pki *p)
{
	if (p->key_pem)
		explicit_bzero(p->key_pem, strlen(p->key_pem));
	free(p->key_pem);
	free(p->chain_pem);
	*p = (struct pki){0};
}

/* ---- keys that others are derived from ---- */

static int key_make(const char *path, unsigned char ret[PKI_KEY], struct err *e)
{
	char text[2 * PKI_KEY + 2];
	int r;

	id_random(ret, PKI_KEY);
	str_hex(ret, PKI_KEY, text);
	memcpy(text + 2 * PKI_KEY, "\n", 2);
	r = io_write_file_atomic(path, text, sizeof(text) - 1, 0600, e);
	OPENSSL_cleanse(text, sizeof(text));
	return r;
}

int pki_key(const char *state, const char *name, unsigned char ret[PKI_KEY], struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/%s", state, name), *text = NULL;
	int r;

	if (!path)
		return err_nomem(e);
	if (access(path, F_OK) < 0 && errno == ENOENT)
		return key_make(path, ret, e);
	r = io_read_file(path, 256, &text, NULL, e);
	if (r < 0)
		return r;
	text[strcspn(text, "\r\n")] = '\0';
	r = str_unhex(text, ret, PKI_KEY);
	OPENSSL_cleanse(text, strlen(text));
	return r < 0 ? err_set(e, -EINVAL,
			       "'%s' is no key: %u bytes in hex (without the file a new one is made, and secrets that "
			       "came from the "
			       "old one are worth nothing any more)",
			       path, PKI_KEY)
		     : 0;
}
