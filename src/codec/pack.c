#include <errno.h>
#include <zstd.h>

#include "base/err.h"
#include "base/id.h"
#include "base/util.h"
#include "codec/codec.h"

/* What the user's 0..10 means to zstd; 0 is "not at all". */
static const int pack_levels[CODEC_LEVEL_MAX + 1] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12};

/* After inputs that couldn't be packed the next 1, 2, 4 .. are taken as they are, untried. */
#define PACK_SKIP_MAX 32u

/*
 * CODEC_LEVEL_AUTO: one of PACK_PROBE inputs is packed with level 1 whatever the line does, so that its worth stays
 * known. When the line costs PACK_SLOW times as much as packing does, a better level hardly shows and pays.
 */
#define PACK_FAST   1u
#define PACK_BETTER 3u
#define PACK_PROBE  32u
#define PACK_SLOW   24.0
#define PACK_TRY    4.0                   /* and then nothing is left untried */
#define PACK_RECENT ((double)(16u << 20)) /* bytes that what was measured is mostly about */

/* Seconds that bytes took, lately. */
struct pace {
	double bytes, seconds;
};

struct codec_packer {
	ZSTD_CCtx *ctx;
	unsigned level, now; /* as asked for; as the context is set */
	/* CODEC_LEVEL_AUTO */
	struct pace line, fast; /* fast: inputs of PACK_FAST */
	double saved;           /* bytes that `fast` saved */
	unsigned count;
	size_t max, cap;
	uint8_t *out;
	unsigned backoff, skip;
};

static void pack_set(struct codec_packer *c, unsigned level)
{
	if (c->now != level)
		must(!ZSTD_isError(ZSTD_CCtx_setParameter(c->ctx, ZSTD_c_compressionLevel, pack_levels[level])));
	c->now = level;
}

static void pace_add(struct pace *p, double bytes, double seconds)
{
	if (p->bytes > PACK_RECENT) {
		p->bytes /= 2;
		p->seconds /= 2;
	}
	p->bytes += bytes;
	p->seconds += seconds;
}

/* Seconds per byte. */
static double pace_cost(const struct pace *p)
{
	return p->bytes > 0 ? p->seconds / p->bytes : 0;
}

/* The level for the next input; 0: as it is. */
static unsigned pack_choose(struct codec_packer *c)
{
	double line = pace_cost(&c->line), fast = pace_cost(&c->fast);

	bool probe = c->count++ % PACK_PROBE == 0;

	if (probe || line > PACK_TRY * fast)
		c->skip = 0;
	if (probe)
		return PACK_FAST;
	if (line * c->saved <= c->fast.seconds)
		return 0;
	return line > PACK_SLOW * fast ? PACK_BETTER : PACK_FAST;
}

/* Like ZSTD_compress2(), remembering what it cost and saved. */
static size_t pack_measured(struct codec_packer *c, const void *p, size_t n, size_t room)
{
	double begun = id_now_mono();
	size_t r = ZSTD_compress2(c->ctx, c->out, room, p, n);

	if (c->now == PACK_FAST) {
		if (c->fast.bytes > PACK_RECENT)
			c->saved /= 2;
		pace_add(&c->fast, (double)n, id_now_mono() - begun);
		c->saved += ZSTD_isError(r) ? 0 : (double)(n - r);
	}
	return r;
}

void codec_packer_set(struct codec_packer *c, unsigned level)
{
	if (level <= CODEC_LEVEL_MAX || level == CODEC_LEVEL_AUTO)
		c->level = level;
}

void codec_packer_line(struct codec_packer *c, uint64_t bytes, double seconds)
{
	pace_add(&c->line, (double)bytes, seconds);
}

int codec_packer_new(unsigned level, size_t max, struct codec_packer **ret, struct err *e)
{
	struct codec_packer *c;

	if (level > CODEC_LEVEL_MAX && level != CODEC_LEVEL_AUTO)
		return err_set(e, -EINVAL, "compression '%u' is not within 0 to %u", level, CODEC_LEVEL_MAX);
	c = calloc(1, sizeof(*c));
	if (!c)
		return err_nomem(e);
	c->level = level;
	c->max = max;
	c->cap = max - max / 16;
	c->ctx = ZSTD_createCCtx();
	c->out = malloc(c->cap);
	if (!c->ctx || !c->out) {
		codec_packer_free(c);
		return err_nomem(e);
	}
	*ret = c;
	return 0;
}

size_t codec_pack(struct codec_packer *c, const void *p, size_t n, const void **ret_p)
{
	unsigned level;
	size_t r;

	must(n <= c->max);
	if (n == 0)
		return 0;
	level = c->level == CODEC_LEVEL_AUTO ? pack_choose(c) : c->level;
	if (!level)
		return 0;
	pack_set(c, level);
	if (c->skip) {
		c->skip--;
		return 0;
	}
	/* Less than a sixteenth saved isn't worth unpacking at the other end; the small output also makes zstd give up
	 * early. */
	r = pack_measured(c, p, n, n - n / 16);
	if (ZSTD_isError(r)) {
		c->backoff = c->backoff ? MIN(c->backoff * 2, PACK_SKIP_MAX) : 1;
		c->skip = c->backoff;
		return 0;
	}
	c->backoff = 0;
	*ret_p = c->out;
	return r;
}

void codec_packer_free(struct codec_packer *c)
{
	if (!c)
		return;
	ZSTD_freeCCtx(c->ctx);
	free(c->out);
	free(c);
}

struct codec_unpacker {
	ZSTD_DCtx *ctx;
};

int codec_unpacker_new(struct codec_unpacker **ret, struct err *e)
{
	struct codec_unpacker *c = calloc(1, sizeof(*c));

	if (!c)
		return err_nomem(e);
	c->ctx = ZSTD_createDCtx();
	if (!c->ctx) {
		free(c);
		return err_nomem(e);
	}
	*ret = c;
	return 0;
}

int codec_unpack(struct codec_unpacker *c, const void *p, size_t n, void *out, size_t want, struct err *e)
{
	size_t r;

	/* The size is in the frame's header, and nothing follows the frame: no second frame, no skippable ones. */
	if (want == 0 || ZSTD_getFrameContentSize(p, n) != want || ZSTD_findFrameCompressedSize(p, n) != n)
		return err_set(e, -EBADMSG, "packed data is not one zstd frame of %zu bytes", want);
	r = ZSTD_decompressDCtx(c->ctx, out, want, p, n);
	if (ZSTD_isError(r) || r != want)
		return err_set(e, -EBADMSG, "packed data cannot be unpacked: %s",
			       ZSTD_isError(r) ? ZSTD_getErrorName(r) : "wrong size");
	return 0;
}

void codec_unpacker_free(struct codec_unpacker *c)
{
	if (!c)
		return;
	ZSTD_freeDCtx(c->ctx);
	free(c);
}
