/*
 * What is done to the bytes of blocks: digests, compression, finding zeros. One table of digest algorithms, one table
 * of compression levels.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

#define CODEC_DIGEST_MAX 32u /* bytes of the longest digest */
#define CODEC_LEVEL_MAX  10u
#define CODEC_LEVEL_AUTO 11u /* what suits the line: codec_packer_line() */

/* The ids are part of the protocol and of the manifest's header. */
enum codec_digest_id { CODEC_XXH3_128 = 1, CODEC_SHA256 = 2 };

struct codec_digest {
	enum codec_digest_id id;
	const char *name; /* "xxh3-128", "sha-256" */
	size_t size;      /* bytes */
	void (*compute)(const void *p, size_t n, uint8_t *out);
};

/* NULL when there is none of that id. */
const struct codec_digest *codec_digest(unsigned id);

/* XXH3-64 (canonical value as a number), as frames and headers carry it. */
uint64_t codec_check64(const void *p, size_t n, uint64_t seed);

/* Are all n bytes zero? */
bool codec_is_zero(const void *p, size_t n);

/* SHA-256 of pieces, for statements. */
struct codec_sum;
int codec_sum_new(struct codec_sum **ret, struct err *e);
void codec_sum_start(struct codec_sum *s);
void codec_sum_add(struct codec_sum *s, const void *p, size_t n);
void codec_sum_finish(struct codec_sum *s, uint8_t out[32]);
void codec_sum_free(struct codec_sum *s); /* NULL is fine */
static inline void codec_sum_freep(struct codec_sum **s)
{
	codec_sum_free(*s);
}

/*
 * A packer belongs to one thread. It remembers whether what it was given lately could be packed at all; while it
 * couldn't, only some inputs are tried. With CODEC_LEVEL_AUTO it packs while that takes less time than it saves on the
 * line, and better while the line is very slow.
 */
struct codec_packer;
/* level 0 (never packs) .. CODEC_LEVEL_MAX, or CODEC_LEVEL_AUTO; inputs of at most max bytes. */
int codec_packer_new(unsigned level, size_t max, struct codec_packer **ret, struct err *e);
/* Another level from now on; one that there isn't is not taken. */
void codec_packer_set(struct codec_packer *c, unsigned level);
/* Bytes of *ret_p (the packer's own memory, valid until the next call), or 0: better taken as it is. */
size_t codec_pack(struct codec_packer *c, const void *p, size_t n, const void **ret_p);
/* What the line did since the last call: the bytes it took, and the seconds one had to wait for it. */
void codec_packer_line(struct codec_packer *c, uint64_t bytes, double seconds);
void codec_packer_free(struct codec_packer *c);

struct codec_unpacker;
int codec_unpacker_new(struct codec_unpacker **ret, struct err *e);
/* -EBADMSG unless p holds exactly one frame that unpacks to exactly `want` bytes. */
int codec_unpack(struct codec_unpacker *c, const void *p, size_t n, void *out, size_t want, struct err *e);
void codec_unpacker_free(struct codec_unpacker *c);
