/* The center's own certificate authority: two PEM files for it, two for the HTTPS server. P-256 throughout.
 */
#pragma once

#include <stddef.h>

struct err;

/* Makes STATE/ca.pem, ca.key, server.pem, server.key. `names`: DNS names and addresses of the server. */
int pki_init(const char *state, const char *const *names, size_t n, struct err *e);

struct pki {
	char *key_pem;           /* of the server */
	char *chain_pem;         /* server's certificate, then the CA's: a client that knows the fingerprint finds the
				    CA there */
	char ca_fingerprint[65]; /* SHA-256 of its DER, hex */
};
/* Loads them; a server certificate with less than 30 days left is made anew for the same names first. May be called
 * again at any time. */
int pki_load(const char *state, struct pki *ret, struct err *e);
void pki_release(struct pki *p);

#define PKI_KEY 32u
/* A random key of the center in the file STATE/`name` (0600, hex), which is made when it isn't there. Other secrets are
 * derived from it. */
int pki_key(const char *state, const char *name, unsigned char ret[PKI_KEY], struct err *e);
