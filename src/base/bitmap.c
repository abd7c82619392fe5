#include "base/bitmap.h"

#include <errno.h>
#include <stdlib.h>

#include "base/err.h"
#include "base/util.h"

int bitmap_init(struct bitmap *b, uint64_t nbits, struct err *e)
{
	uint64_t *words = calloc(nbits / 64 + 1, sizeof(*words));

	if (!words)
		return err_nomem(e);
	b->nbits = nbits;
	b->words = words;
	return 0;
}

void bitmap_release(struct bitmap *b)
{
	free(b->words);
	*b = (struct bitmap){0};
}

bool bitmap_get(const struct bitmap *b, uint64_t i)
{
	must(i < b->nbits);
	return b->words[i / 64] >> (i % 64) & 1;
}

void bitmap_set(struct bitmap *b, uint64_t i)
{
	must(i < b->nbits);
	b->words[i / 64] |= UINT64_C(1) << (i % 64);
}

void bitmap_clear(struct bitmap *b, uint64_t i)
{
	must(i < b->nbits);
	b->words[i / 64] &= ~(UINT64_C(1) << (i % 64));
}

void bitmap_set_range(struct bitmap *b, uint64_t first, uint64_t count)
{
	uint64_t end = first > b->nbits || count > b->nbits - first ? b->nbits : first + count;

	while (first < end) {
		if (first % 64 == 0 && end - first >= 64) {
			b->words[first / 64] = UINT64_MAX;
			first += 64;
		} else {
			bitmap_set(b, first++);
		}
	}
}

uint64_t bitmap_count(const struct bitmap *b)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i * 64 < b->nbits; i++)
		n += (uint64_t)__builtin_popcountll(b->words[i]);
	return n;
}

uint64_t bitmap_next(const struct bitmap *b, uint64_t from)
{
	while (from < b->nbits) {
		uint64_t w = b->words[from / 64] >> (from % 64);

		if (w) {
			from += (uint64_t)__builtin_ctzll(w);
			return from < b->nbits ? from : b->nbits;
		}
		from = (from / 64 + 1) * 64;
	}
	return b->nbits;
}
