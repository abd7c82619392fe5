#include <errno.h>
#include <zstd.h>

#include "base/err.h"
#include "base/util.h"
#include "codec/codec.h"

/* What the user's 0..10 means to zstd; 0 is "not at all". */
static const int pack_levels[CODEC_LEVEL_MAX + 1] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12};

/* After inputs that couldn't be packed the next 1, 2, 4 .. are taken as they are, untried. */
#define PACK_SKIP_MAX 32u

struct codec_packer {
	ZSTD_CCtx *ctx;
	unsigned level;
	size_t max, cap;
	uint8_t *out;
	unsigned backoff, skip;
};

int codec_packer_new(unsigned level, size_t max, struct codec_packer **ret, struct err *e)
{
	struct codec_packer *c;

	if (level > CODEC_LEVEL_MAX)
		return err_set(e, -EINVAL, "compression '%u' is not within 0 to %u", level, CODEC_LEVEL_MAX);
	c = calloc(1, sizeof(*c));
	if (!c)
		return err_nomem(e);
	c->level = level;
	c->max = max;
	c->cap = max - max / 16;
	if (level) {
		c->ctx = ZSTD_createCCtx();
		c->out = malloc(c->cap);
		if (!c->ctx || !c->out ||
		    ZSTD_isError(ZSTD_CCtx_setParameter(c->ctx, ZSTD_c_compressionLevel, pack_levels[level]))) {
			codec_packer_free(c);
			return err_nomem(e);
		}
	}
	*ret = c;
	return 0;
}

size_t codec_pack(struct codec_packer *c, const void *p, size_t n, const void **ret_p)
{
	size_t r;

	must(n <= c->max);
	if (!c->level || n == 0)
		return 0;
	if (c->skip) {
		c->skip--;
		return 0;
	}
	/* Less than a sixteenth saved isn't worth unpacking at the other end; the small output also makes zstd give up
	 * early. */
	r = ZSTD_compress2(c->ctx, c->out, n - n / 16, p, n);
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
