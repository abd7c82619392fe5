#include "store/store.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <string.h>

#include "base/id.h"
#include "base/str.h"
#include "base/util.h"

void store_digest(const char *text, char ret[STORE_SECRET_HEX])
{
	unsigned char digest[32];
	unsigned int n = 0;

	must(EVP_Digest(text, strlen(text), digest, &n, EVP_sha256(), NULL) == 1 && n == sizeof(digest));
	str_hex(digest, sizeof(digest), ret);
}

void store_secret_new(char ret_secret[STORE_SECRET_HEX], char ret_hash[STORE_SECRET_HEX])
{
	unsigned char raw[32];

	id_random(raw, sizeof(raw));
	str_hex(raw, sizeof(raw), ret_secret);
	OPENSSL_cleanse(raw, sizeof(raw));
	store_digest(ret_secret, ret_hash);
}

bool store_secret_matches(const char *secret, const char *hash)
{
	char ours[STORE_SECRET_HEX];

	store_digest(secret, ours);
	return strlen(hash) == sizeof(ours) - 1 && CRYPTO_memcmp(ours, hash, sizeof(ours) - 1) == 0;
}
