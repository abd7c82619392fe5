/* A fixed-size bitmap, bit 0 in the lowest bit of word 0. The used map of a disk is one of these, a bit per block. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct err;

struct bitmap {
	uint64_t nbits;
	uint64_t *words;
};

int bitmap_init(struct bitmap *b, uint64_t nbits, struct err *e);
void bitmap_release(struct bitmap *b);
bool bitmap_get(const struct bitmap *b, uint64_t i);
void bitmap_set(struct bitmap *b, uint64_t i);
/* Sets [first, first + count), cut at the end of the map. */
void bitmap_set_range(struct bitmap *b, uint64_t first, uint64_t count);
void bitmap_clear(struct bitmap *b, uint64_t i);
uint64_t bitmap_count(const struct bitmap *b);
/* Index of the first set bit at or after `from`, or nbits. */
uint64_t bitmap_next(const struct bitmap *b, uint64_t from);
