/*
 * A large, mostly empty disk from a small input. Byte 0: bit 0 sectors of 4096 bytes, bit 1 make checksums right (a
 * target may), bits 2.. free for the target. Then 8 bytes of size (little-endian, cut to SPARSE_MAX). Then records:
 * offset (8 bytes), length (4), data; the last may be cut short, and what lies outside the disk is left out.
 */
#pragma once

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/endian.h"
#include "base/util.h"
#include "disk/disk.h"

#define SPARSE_MAX      (512 * MIB)
#define SPARSE_4K       1u
#define SPARSE_CHECKSUM 2u

/* NULL when the input is too short. */
static struct disk *sparse_disk(const uint8_t *p, size_t n, uint8_t *ret_flags)
{
	struct disk *d;
	uint64_t size;

	if (n < 9)
		return NULL;
	size = get_le64(p + 1) % (SPARSE_MAX + 1);
	must(disk_memory_new(size, *p & SPARSE_4K ? 4096 : 512, &d, NULL) == 0);
	*ret_flags = *p;
	for (p += 9, n -= 9; n > 12;) {
		uint64_t off = get_le64(p);
		size_t len = MIN((size_t)get_le32(p + 8), n - 12);

		p += 12;
		n -= 12;
		if (off < size)
			disk_write(d, p, MIN((uint64_t)len, size - off), off, NULL);
		p += len;
		n -= len;
	}
	return d;
}

/* Adds to the checksum's place whatever makes it right: fuzzers don't find these. */
static inline void sparse_put32(struct disk *d, uint64_t off, uint32_t v)
{
	uint8_t b[4];

	put_le32(b, v);
	disk_write(d, b, 4, off, NULL);
}
