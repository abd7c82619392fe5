/* Secrets of web hooks, and signatures with them. The secret follows from a key file of the center's and the
 * subscription's id: whoever has only the database can't sign. */
#include <errno.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <string.h>

#include "base/err.h"
#include "base/io.h"
#include "center/notify.h"

_Static_assert(6 + (WEBHOOK_SECRET + 2) / 3 * 4 + 1 <= API_HOOK_SECRET, "the secret's text fits");

void webhook_secret(const unsigned char key[WEBHOOK_KEY], const char *subscription, unsigned char ret[WEBHOOK_SECRET])
{
	unsigned int n = 0;

	must(HMAC(EVP_sha256(), key, (int)WEBHOOK_KEY, (const unsigned char *)subscription, strlen(subscription), ret,
		  &n) &&
	     n == WEBHOOK_SECRET);
}

void webhook_secret_text(const unsigned char secret[WEBHOOK_SECRET], char *ret)
{
	memcpy(ret, "whsec_", 6);
	EVP_EncodeBlock((unsigned char *)ret + 6, secret, (int)WEBHOOK_SECRET);
}

int webhook_sign(const unsigned char secret[WEBHOOK_SECRET], const char *id, int64_t time, const char *body,
		 char ret[WEBHOOK_SIGNATURE])
{
	_cleanup_(str_release) struct str text = {0};
	unsigned char mac[WEBHOOK_SECRET];
	unsigned int n = 0;

	str_addf(&text, "%s.%lld.%s", id, (long long)time, body);
	if (!str_ok(&text))
		return -ENOMEM;
	must(HMAC(EVP_sha256(), secret, (int)WEBHOOK_SECRET, (const unsigned char *)text.s, text.len, mac, &n) &&
	     n == sizeof(mac));
	memcpy(ret, "v1,", 3);
	EVP_EncodeBlock((unsigned char *)ret + 3, mac, (int)sizeof(mac));
	return 0;
}
