/*
 * A picture as PNG (RFC 2083) without zlib: bytes that repeat become deflate matches (RFC 1951, fixed codes),
 * which is what screens consist of; all else is literal. Older hosts give only PPM.
 */
#include "provider/libvirt_int.h"

#include <errno.h>
#include <string.h>

#include "base/crc32.h"
#include "base/err.h"
#include "base/str.h"

#define PNG_SIDE_MAX 16384u

struct bits {
	struct str *out;
	uint32_t hold;
	unsigned n;
};

static void be32(unsigned char *p, uint32_t v)
{
	p[0] = (unsigned char)(v >> 24), p[1] = (unsigned char)(v >> 16), p[2] = (unsigned char)(v >> 8),
	p[3] = (unsigned char)v;
}

static void put_bits(struct bits *b, uint32_t v, unsigned n)
{
	b->hold |= v << b->n;
	b->n += n;
	for (; b->n >= 8; b->n -= 8, b->hold >>= 8)
		str_add_mem(b->out, &(char){(char)b->hold}, 1);
}

/* Huffman codes go from their highest bit. */
static void put_code(struct bits *b, uint32_t v, unsigned n)
{
	uint32_t r = 0;

	for (unsigned i = 0; i < n; i++)
		r |= (v >> i & 1) << (n - 1 - i);
	put_bits(b, r, n);
}

static void put_literal(struct bits *b, unsigned char c)
{
	if (c < 144)
		put_code(b, 0x30u + c, 8);
	else
		put_code(b, 0x190u + c - 144, 9);
}

/* 258 bytes (code 285 has no extra bits) that repeat the last one (distance 1). */
static void put_run(struct bits *b)
{
	put_code(b, 0xc0 + 285 - 280, 8);
	put_code(b, 0, 5);
}

static void deflate_fixed(struct bits *b, const unsigned char *p, size_t n)
{
	put_bits(b, 1, 1); /* the last block, */
	put_bits(b, 1, 2); /* with fixed codes */
	for (size_t i = 0; i < n;) {
		size_t run = 0;

		while (i && run < 258 && i + run < n && p[i + run] == p[i - 1])
			run++;
		if (run == 258)
			put_run(b);
		else
			put_literal(b, p[i]);
		i += run == 258 ? 258 : 1;
	}
	put_code(b, 0, 7);
	if (b->n)
		put_bits(b, 0, 8 - b->n);
}

static uint32_t adler(const unsigned char *p, size_t n)
{
	uint32_t a = 1, c = 0;

	for (size_t i = 0; i < n; i++) {
		a = (a + p[i]) % 65521;
		c = (c + a) % 65521;
	}
	return c << 16 | a;
}

static void put_chunk(struct str *out, const char *type, const void *p, size_t n)
{
	unsigned char word[4];
	uint32_t crc = crc32(~0u, type, 4);

	be32(word, (uint32_t)n);
	str_add_mem(out, word, 4);
	str_add_mem(out, type, 4);
	str_add_mem(out, p, n);
	be32(word, ~crc32(crc, p, n));
	str_add_mem(out, word, 4);
}

/* "P6 WIDTH HEIGHT 255" and one blank, comments between them; *ret: where the pixels begin. */
static bool ppm_header(const unsigned char *p, size_t len, uint32_t ret[2], size_t *ret_at)
{
	uint32_t v[3] = {0};
	size_t i = 2;

	if (len < 2 || p[0] != 'P' || p[1] != '6')
		return false;
	for (int k = 0; k < 3; k++) {
		while (i < len && ((p[i] && strchr(" \t\r\n", p[i])) || p[i] == '#'))
			if (p[i++] == '#')
				while (i < len && p[i] != '\n')
					i++;
		if (i == len || p[i] < '0' || p[i] > '9')
			return false;
		for (; i < len && p[i] >= '0' && p[i] <= '9' && v[k] <= PNG_SIDE_MAX; i++)
			v[k] = v[k] * 10 + (uint32_t)(p[i] - '0');
	}
	ret[0] = v[0], ret[1] = v[1];
	*ret_at = i + 1;
	return i < len && v[2] == 255 && v[0] && v[1] && v[0] <= PNG_SIDE_MAX && v[1] <= PNG_SIDE_MAX &&
	       len - i - 1 >= (size_t)v[0] * v[1] * 3;
}

int libvirt_png(const void *ppm, size_t len, struct str *ret, struct err *e)
{
	static const unsigned char magic[] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
	_cleanup_(str_release) struct str raw = {0}, packed = {0};
	struct bits b = {.out = &packed};
	unsigned char ihdr[13] = {[8] = 8, [9] = 2}, word[4];
	uint32_t side[2];
	size_t at;

	if (!ppm_header(ppm, len, side, &at))
		return err_set(e, -EPROTO, "the host's picture of the screen isn't understood");
	for (uint32_t y = 0; y < side[1]; y++) {
		str_add_mem(&raw, "", 1); /* a line without filter */
		str_add_mem(&raw, (const char *)ppm + at + (size_t)y * side[0] * 3, (size_t)side[0] * 3);
	}
	str_add_mem(&packed, "\x78\x01", 2);
	if (str_ok(&raw))
		deflate_fixed(&b, (const unsigned char *)raw.s, raw.len);
	be32(word, adler((const unsigned char *)raw.s, raw.len));
	str_add_mem(&packed, word, 4);
	be32(ihdr, side[0]);
	be32(ihdr + 4, side[1]);
	str_add_mem(ret, magic, sizeof(magic));
	put_chunk(ret, "IHDR", ihdr, sizeof(ihdr));
	put_chunk(ret, "IDAT", packed.s, packed.len);
	put_chunk(ret, "IEND", "", 0);
	return str_ok(&raw) && str_ok(&packed) && str_ok(ret) ? 0 : err_nomem(e);
}
