/* Digests against known values, packing and its bounds, zeros. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "base/err.h"
#include "base/id.h"
#include "base/str.h"
#include "base/util.h"
#include "codec/codec.h"

static void check_digest(unsigned id, const void *p, size_t n, const char *want)
{
	uint8_t out[CODEC_DIGEST_MAX];
	char hex[2 * CODEC_DIGEST_MAX + 1];

	codec_digest(id)->compute(p, n, out);
	str_hex(out, codec_digest(id)->size, hex);
	assert_string_equal(hex, want);
}

static void test_digests(void **state)
{
	_cleanup_free_ uint8_t *zero = calloc(1, 65536);

	check_digest(CODEC_XXH3_128, "", 0, "99aa06d3014798d86001c324468d497f");
	check_digest(CODEC_SHA256, "abc", 3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	check_digest(CODEC_SHA256, zero, 65536, "de2f256064a0af797747c2b97505dc0b9f3df0de4f489eac731c23ae9ca9cc31");
	check_digest(CODEC_XXH3_128, zero, 65536, "fd5ee061c8433a0f33b202d302b65caa");
	assert_null(codec_digest(0));
	assert_null(codec_digest(3));
}

static void test_sum(void **state)
{
	struct codec_sum *s;
	uint8_t out[32];
	char hex[65];

	assert_int_equal(codec_sum_new(&s, NULL), 0);
	for (int i = 0; i < 2; i++) {
		codec_sum_start(s);
		codec_sum_add(s, "a", 1);
		codec_sum_add(s, "bc", 2);
		codec_sum_finish(s, out);
		str_hex(out, 32, hex);
		assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
	}
	codec_sum_free(s);
	codec_sum_free(NULL);
}

static void test_zero(void **state)
{
	uint8_t buf[700];

	for (size_t n = 0; n < sizeof(buf); n++) {
		memset(buf, 0, sizeof(buf));
		if (n < sizeof(buf))
			buf[n] = 1; /* behind the end */
		assert_true(codec_is_zero(buf, n));
		for (size_t i = 0; i < n; i += 1 + n / 50) {
			memset(buf, 0, sizeof(buf));
			buf[i] = 0x80;
			assert_false(codec_is_zero(buf, n));
		}
	}
}

static void fill(uint8_t *p, size_t n, bool packs)
{
	id_random(p, n);
	for (size_t i = 0; packs && i < n; i++)
		p[i] = (uint8_t)("replant "[i % 8] + (p[i] > 250));
}

static void test_pack(void **state)
{
	static uint8_t in[1 << 20], out[1 << 20];

	fill(in, sizeof(in), true);
	for (unsigned level = 0; level <= CODEC_LEVEL_MAX; level++) {
		struct codec_unpacker *u;
		struct codec_packer *c;
		const void *p = NULL;
		size_t n;

		assert_int_equal(codec_packer_new(level, sizeof(in), &c, NULL), 0);
		assert_int_equal(codec_unpacker_new(&u, NULL), 0);
		n = codec_pack(c, in, sizeof(in), &p);
		if (level == 0) {
			assert_int_equal(n, 0);
		} else {
			assert_in_range(n, 1, sizeof(in) / 2);
			memset(out, 0, sizeof(out));
			assert_int_equal(codec_unpack(u, p, n, out, sizeof(out), NULL), 0);
			assert_memory_equal(in, out, sizeof(in));
		}
		codec_packer_free(c);
		codec_unpacker_free(u);
	}
	assert_int_equal(codec_packer_new(CODEC_LEVEL_AUTO + 1, 1, NULL, NULL), -EINVAL);
}

/* Noise isn't packed, and soon isn't tried; text after noise is packed again before long. */
static void test_adapts(void **state)
{
	static uint8_t noise[65536], text[65536];
	struct codec_packer *c;
	const void *p;
	int tried = 0;

	fill(noise, sizeof(noise), false);
	fill(text, sizeof(text), true);
	assert_int_equal(codec_packer_new(1, sizeof(noise), &c, NULL), 0);
	for (int i = 0; i < 200; i++)
		assert_int_equal(codec_pack(c, noise, sizeof(noise), &p), 0);
	while (codec_pack(c, text, sizeof(text), &p) == 0)
		tried++;
	assert_in_range(tried, 1, 32);
	for (int i = 0; i < 10; i++)
		assert_int_not_equal(codec_pack(c, text, sizeof(text), &p), 0);
	codec_packer_free(c);
}

/* How many of 300 chunks of text are packed when the line takes so many seconds for each MiB. */
static unsigned packed_on_line(struct codec_packer *c, const uint8_t *in, size_t n, double seconds)
{
	unsigned packed = 0;

	for (unsigned i = 0; i < 300; i++) {
		const void *p = NULL;
		size_t out = codec_pack(c, in, n, &p);

		packed += out != 0;
		out = out ? out : n;
		codec_packer_line(c, out, seconds * (double)out / (1 << 20));
	}
	return packed;
}

/* Packs what a slow line carries, all of it; next to nothing on a fast one; and follows the line when it changes. */
static void test_auto(void **state)
{
	static uint8_t text[1 << 18], noise[1 << 18];
	struct codec_packer *c;
	const void *p;

	fill(text, sizeof(text), true);
	fill(noise, sizeof(noise), false);
	assert_int_equal(codec_packer_new(CODEC_LEVEL_AUTO, sizeof(text), &c, NULL), 0);
	assert_in_range(packed_on_line(c, text, sizeof(text), 0), 1, 20);
	assert_in_range(packed_on_line(c, text, sizeof(text), 1), 290, 300);
	assert_int_equal(packed_on_line(c, noise, sizeof(noise), 1), 0);
	assert_int_not_equal(codec_pack(c, text, sizeof(text), &p), 0); /* at once: nothing is left untried */
	packed_on_line(c, noise, sizeof(noise), 0);
	assert_in_range(packed_on_line(c, text, sizeof(text), 0), 1, 20);
	codec_packer_set(c, 3);
	assert_int_equal(packed_on_line(c, text, sizeof(text), 0), 300);
	codec_packer_set(c, 0);
	assert_int_equal(packed_on_line(c, text, sizeof(text), 1), 0);
	codec_packer_set(c, CODEC_LEVEL_AUTO + 1);
	assert_int_equal(codec_pack(c, text, sizeof(text), &p), 0);
	codec_packer_free(c);
}

static void test_unpack_refuses(void **state)
{
	static uint8_t in[65536], out[65536], bad[70000];
	struct codec_unpacker *u;
	struct codec_packer *c;
	const void *p;
	size_t n;

	fill(in, sizeof(in), true);
	assert_int_equal(codec_packer_new(1, sizeof(in), &c, NULL), 0);
	assert_int_equal(codec_unpacker_new(&u, NULL), 0);
	n = codec_pack(c, in, sizeof(in), &p);
	assert_true(n > 0 && n < 60000);
	assert_int_equal(codec_unpack(u, p, n - 1, out, sizeof(out), NULL), -EBADMSG); /* cut */
	assert_int_equal(codec_unpack(u, p, n, out, sizeof(out) - 1, NULL), -EBADMSG); /* another size */
	assert_int_equal(codec_unpack(u, p, n, out, 0, NULL), -EBADMSG);
	assert_int_equal(codec_unpack(u, "", 0, out, sizeof(out), NULL), -EBADMSG);
	memcpy(bad, p, n);
	memset(bad + n, 0, 10);
	assert_int_equal(codec_unpack(u, bad, n + 10, out, sizeof(out), NULL), -EBADMSG); /* something behind it */
	/* A skippable frame in front. */
	memcpy(bad, "\x50\x2a\x4d\x18\x00\x00\x00\x00", 8);
	memcpy(bad + 8, p, n);
	assert_int_equal(codec_unpack(u, bad, n + 8, out, sizeof(out), NULL), -EBADMSG);
	for (size_t i = 0; i < n; i += 7) {
		memcpy(bad, p, n);
		bad[i] ^= 0x10;
		codec_unpack(u, bad, n, out, sizeof(out), NULL); /* whatever comes of it, within bounds */
	}
	codec_packer_free(c);
	codec_unpacker_free(u);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_digests),        cmocka_unit_test(test_sum),    cmocka_unit_test(test_zero),
	    cmocka_unit_test(test_pack),           cmocka_unit_test(test_adapts), cmocka_unit_test(test_auto),
	    cmocka_unit_test(test_unpack_refuses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
