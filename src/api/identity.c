/* The server's key and certificates, which change while connections go on: each handshake takes the newest. What was
 * used before is kept until the end, as handshakes may still hold it; there is about one a year. */
#include <errno.h>
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

#define CHAIN_MAX 8u

struct api_identity {
	struct api_identity *older;
	gnutls_pcert_st chain[CHAIN_MAX];
	unsigned n;
	gnutls_privkey_t key;
};

/* One server a process: the handshake's callback is told nothing that would lead to a struct api. */
static _Atomic(struct api_identity *) current;

static void identity_free(struct api_identity *id)
{
	while (id) {
		struct api_identity *older = id->older;

		for (unsigned i = 0; i < id->n; i++)
			gnutls_pcert_deinit(&id->chain[i]);
		if (id->key)
			gnutls_privkey_deinit(id->key);
		free(id);
		id = older;
	}
}

static void identity_freep(struct api_identity **id)
{
	identity_free(*id);
}

static gnutls_datum_t datum(const char *pem)
{
	return (gnutls_datum_t){.data = (unsigned char *)pem, .size = (unsigned)strlen(pem)};
}

/* Whether the key is the one of the first certificate. */
static bool identity_fits(const struct api_identity *id)
{
	unsigned char a[64], b[64];
	size_t na = sizeof(a), nb = sizeof(b);
	gnutls_pubkey_t pub = NULL;
	bool fits;

	if (gnutls_pubkey_init(&pub) < 0)
		return false;
	fits = gnutls_pubkey_import_privkey(pub, id->key, 0, 0) == 0 && gnutls_pubkey_get_key_id(pub, 0, a, &na) == 0 &&
	       gnutls_pubkey_get_key_id(id->chain[0].pubkey, 0, b, &nb) == 0 && na == nb && memcmp(a, b, na) == 0;
	gnutls_pubkey_deinit(pub);
	return fits;
}

int api_identity(const char *key_pem, const char *chain_pem, struct err *e)
{
	_cleanup_(identity_freep) struct api_identity *id = calloc(1, sizeof(*id));
	gnutls_datum_t key = datum(key_pem), chain = datum(chain_pem);
	unsigned n = CHAIN_MAX;

	if (!id)
		return err_nomem(e);
	if (gnutls_pcert_list_import_x509_raw(id->chain, &n, &chain, GNUTLS_X509_FMT_PEM, 0) < 0 || n == 0)
		return err_set(e, -EINVAL, "the server's certificate can't be read");
	id->n = n;
	if (gnutls_privkey_init(&id->key) < 0 ||
	    gnutls_privkey_import_x509_raw(id->key, &key, GNUTLS_X509_FMT_PEM, NULL, 0) < 0)
		return err_set(e, -EINVAL, "the server's key can't be read");
	if (!identity_fits(id))
		return err_set(e, -EINVAL, "the server's key doesn't belong to its certificate");
	id->older = atomic_load(&current);
	atomic_store(&current, take_ptr(&id));
	return 0;
}

int api_identity_choose(gnutls_session_t session, const struct gnutls_cert_retr_st *info, gnutls_pcert_st **ret_chain,
			unsigned *ret_n, gnutls_ocsp_data_st **ret_ocsp, unsigned *ret_nocsp, gnutls_privkey_t *ret_key,
			unsigned *ret_flags)
{
	struct api_identity *id = atomic_load(&current);

	if (!id)
		return -1;
	*ret_chain = id->chain;
	*ret_n = id->n;
	*ret_ocsp = NULL;
	*ret_nocsp = 0;
	*ret_key = id->key;
	*ret_flags = 0; /* they stay ours */
	return 0;
}

void api_identity_forget(void)
{
	identity_free(atomic_exchange(&current, NULL));
}
