/*
 * What a tracked run left, as it may lie below /run. First byte: bit 0, the sum of all is made right; bit 1, the
 * statement of the first disk, too. What is accepted must say what it was accepted for.
 */
#include <openssl/evp.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/util.h"
#include "stream/sender_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SIZE_A (300 * (uint64_t)STREAM_BLOCK + 512)
#define SIZE_B (64 * (uint64_t)STREAM_BLOCK)
#define HEADS  (64 + 2 * 296u)

static void sha(const uint8_t *p, size_t n, uint8_t out[32])
{
	must(EVP_Digest(p, n, out, NULL, EVP_sha256(), NULL) == 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t sums_a[2 * 32], sums_b[32], is[32], *copy;
	struct bitmap a = {0}, b = {0};
	struct baseline base = {.digest = codec_digest(CODEC_XXH3_128), .epoch = "4a0b", .n = 2};
	int fd;

	if (size < 1 || size > 65536)
		return 0;
	copy = malloc(size);
	fd = memfd_create("baseline", MFD_CLOEXEC);
	must(copy && fd >= 0 && bitmap_init(&a, stream_blocks(SIZE_A), NULL) == 0 &&
	     bitmap_init(&b, stream_blocks(SIZE_B), NULL) == 0);
	memcpy(copy, data + 1, size - 1);
	size--;
	if (data[0] & 2 && size >= HEADS + 40 + 64)
		sha(copy + HEADS + 40, 64, copy + 64 + 8);
	if (data[0] & 1 && size >= 32)
		sha(copy, size - 32, copy + size - 32);
	must(fchmod(fd, 0600) == 0 && io_write_full(fd, copy, size) == 0 && lseek(fd, 0, SEEK_SET) == 0);
	base.disks[0] = (struct baseline_disk){.name = "/dev/a", .size = SIZE_A, .used = &a, .sums = sums_a};
	base.disks[1] = (struct baseline_disk){.name = "/dev/b", .size = SIZE_B, .used = &b, .sums = sums_b};
	if (baseline_parse(fd, &base, NULL) == 0) {
		must(size == HEADS + 40 + 64 + 8 + 32 + 32);
		sha(sums_a, sizeof(sums_a), is);
		must(memcmp(is, base.disks[0].statement, 32) == 0);
		must(bitmap_next(&a, 0) <= a.nbits && bitmap_count(&a) <= a.nbits && bitmap_count(&b) <= b.nbits);
	}
	close(fd);
	free(copy);
	bitmap_release(&a);
	bitmap_release(&b);
	return 0;
}
