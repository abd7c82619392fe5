#include <openssl/evp.h>
#include <openssl/sha.h>
#include <string.h>
#include <xxhash.h>

#include "base/err.h"
#include "base/util.h"
#include "codec/codec.h"

static void digest_xxh3_128(const void *p, size_t n, uint8_t *out)
{
	XXH128_canonical_t c;

	XXH128_canonicalFromHash(&c, XXH3_128bits(p, n));
	memcpy(out, c.digest, sizeof(c.digest));
}

static void digest_sha256(const void *p, size_t n, uint8_t *out)
{
	must(SHA256(p, n, out));
}

static const struct codec_digest digests[] = {
    {CODEC_XXH3_128, "xxh3-128", 16, digest_xxh3_128},
    {CODEC_SHA256, "sha-256", 32, digest_sha256},
};

const struct codec_digest *codec_digest(unsigned id)
{
	for (size_t i = 0; i < ARRAY_SIZE(digests); i++)
		if (digests[i].id == id)
			return &digests[i];
	return NULL;
}

uint64_t codec_check64(const void *p, size_t n, uint64_t seed)
{
	return XXH3_64bits_withSeed(p, n, seed);
}

/* When the first 16 bytes are zero and every byte equals the one 16 before it, all are: memcmp does that at memory
 * speed. */
bool codec_is_zero(const void *p, size_t n)
{
	static const uint8_t zero[16];
	const uint8_t *b = p;

	if (n <= sizeof(zero))
		return memcmp(b, zero, n) == 0;
	return memcmp(b, zero, sizeof(zero)) == 0 && memcmp(b, b + sizeof(zero), n - sizeof(zero)) == 0;
}

struct codec_sum {
	EVP_MD_CTX *ctx;
	EVP_MD *md;
};

int codec_sum_new(struct codec_sum **ret, struct err *e)
{
	struct codec_sum *s = calloc(1, sizeof(*s));

	if (!s)
		return err_nomem(e);
	s->ctx = EVP_MD_CTX_new();
	s->md = EVP_MD_fetch(NULL, "SHA256", NULL);
	if (!s->ctx || !s->md) {
		codec_sum_free(s);
		return err_nomem(e);
	}
	*ret = s;
	return 0;
}

void codec_sum_start(struct codec_sum *s)
{
	must(EVP_DigestInit_ex2(s->ctx, s->md, NULL));
}

void codec_sum_add(struct codec_sum *s, const void *p, size_t n)
{
	must(EVP_DigestUpdate(s->ctx, p, n));
}

void codec_sum_finish(struct codec_sum *s, uint8_t out[32])
{
	must(EVP_DigestFinal_ex(s->ctx, out, NULL));
}

void codec_sum_free(struct codec_sum *s)
{
	if (!s)
		return;
	EVP_MD_CTX_free(s->ctx);
	EVP_MD_free(s->md);
	free(s);
}
