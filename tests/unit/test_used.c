#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "base/endian.h"
#include "base/err.h"
#include "base/util.h"
#include "disk/disk.h"
#include "stream/stream.h"

/* A swap header at `off`: the simplest content that leaves something free. */
static void put_swap(struct disk *d, uint64_t off, uint32_t pages)
{
	uint8_t h[4096] = {0};

	put_le32(h + 1024, 1);
	put_le32(h + 1028, pages - 1);
	memcpy(h + 4086, "SWAPSPACE2", 10);
	assert_int_equal(disk_write(d, h, sizeof(h), off, NULL), 0);
}

/* Primary MBR partitions as (start, count) in sectors of 512. */
static void put_mbr_at(struct disk *d, uint64_t off, const uint32_t (*parts)[2], size_t n)
{
	uint8_t s[512] = {0};

	for (size_t i = 0; i < n; i++) {
		s[446 + i * 16 + 4] = 0x82;
		put_le32(s + 446 + i * 16 + 8, parts[i][0]);
		put_le32(s + 446 + i * 16 + 12, parts[i][1]);
	}
	s[510] = 0x55;
	s[511] = 0xaa;
	assert_int_equal(disk_write(d, s, sizeof(s), off, NULL), 0);
}

static void put_mbr(struct disk *d, const uint32_t (*parts)[2], size_t n)
{
	put_mbr_at(d, 0, parts, n);
}

static struct disk *new_disk(uint64_t size)
{
	struct disk *d;

	assert_int_equal(disk_memory_new(size, 512, &d, NULL), 0);
	return d;
}

static void check_used(struct disk *d, const char *want)
{
	struct stream_used u = {0};
	struct err e = {0};

	assert_int_equal(stream_used_read(&d, 1, &u, &e), 0);
	assert_int_equal(u.n, 1);
	assert_int_equal(u.maps[0].nbits, strlen(want));
	for (size_t i = 0; want[i]; i++)
		assert_int_equal(bitmap_get(&u.maps[0], i), want[i] == 'U');
	stream_used_release(&u);
}

static void test_whole_disk(void **state)
{
	_cleanup_(disk_closep) struct disk *d = new_disk(8 * 65536);

	check_used(d, "UUUUUUUU"); /* nobody knows it */
	put_swap(d, 0, 8 * 16);
	check_used(d, "U.......");
	put_swap(d, 0, 6 * 16 + 1); /* ends within the seventh block */
	check_used(d, "U.....UU");
	put_swap(d, 0, 8 * 16 + 1); /* larger than its disk */
	check_used(d, "UUUUUUUU");
}

static void test_short_last_block(void **state)
{
	_cleanup_(disk_closep) struct disk *d = new_disk(3 * 65536 + 4096);

	put_swap(d, 0, 3 * 16 + 1);
	check_used(d, "U...");
	put_swap(d, 0, 3 * 16);
	check_used(d, "U..U");
}

static void test_block_shared_by_partitions(void **state)
{
	_cleanup_(disk_closep) struct disk *d = new_disk(8 * 65536);
	/* The boundary lies within block 4; both have it free but for the second's header. */
	uint32_t parts[2][2] = {{128, 128 * 3 + 64}, {128 * 4 + 64, 128 * 3 + 64}};

	put_mbr(d, parts, 2);
	put_swap(d, 128 * 512, 3 * 16 + 8);
	check_used(d, "UU..UUUU"); /* the second isn't known yet */
	put_swap(d, (128 * 4 + 64) * 512, 3 * 16 + 8);
	check_used(d, "UU..U...");
	parts[1][0] = 128 * 7; /* a gap that belongs to nobody; the boundary in block 4 too */
	parts[1][1] = 128;
	put_mbr(d, parts, 2);
	put_swap(d, 128 * 7 * 512, 16);
	check_used(d, "UU..UUUU");
}

static void test_free_halves_join(void **state)
{
	_cleanup_(disk_closep) struct disk *d = new_disk(8 * 65536);
	/* Block 4 is the tail of the first and the middle of nothing: the second's header lies in block 5. */
	uint32_t parts[2][2] = {{128, 128 * 3 + 64}, {128 * 5, 128 * 3}};

	put_mbr(d, parts, 2);
	put_swap(d, 128 * 512, 3 * 16 + 8);
	put_swap(d, 128 * 5 * 512, 3 * 16);
	check_used(d, "UU..UU.."); /* half of block 4 belongs to nobody */
}

static void test_overlap_is_used(void **state)
{
	_cleanup_(disk_closep) struct disk *d = new_disk(8 * 65536);
	uint32_t parts[2][2] = {{128, 128 * 4}, {128 * 3, 128 * 5}};

	put_mbr(d, parts, 2);
	put_swap(d, 128 * 512, 64);
	put_swap(d, 128 * 3 * 512, 80);
	check_used(d, "UUUUUUUU");
}

/* A volume that was swap space once and is a virtual machine's disk now. */
static void test_table_within(void **state)
{
	_cleanup_(disk_closep) struct disk *d = new_disk(8 * 65536);
	uint32_t parts[1][2] = {{128, 128 * 7}}, inner[1][2] = {{32, 128 * 6}};

	put_mbr(d, parts, 1);
	put_swap(d, 128 * 512, 7 * 16);
	check_used(d, "UU......");
	put_mbr_at(d, 128 * 512, inner, 1);
	check_used(d, "UUUUUUUU");
}

/* A disk that can't be read is taken as used: reporting the bad sector is the business of the copy. */
static void test_unreadable(void **state)
{
	_cleanup_(disk_closep) struct disk *d = new_disk(8 * 65536), *f = NULL;
	struct stream_used u = {0};
	struct err e = {0};
	uint32_t parts[1][2] = {{128, 128 * 7}};

	put_mbr(d, parts, 1);
	put_swap(d, 65536, 7 * 16);
	assert_int_equal(disk_fault_new(d, 65536 + 1024, 512, 0, &f, &e), 0);
	assert_int_equal(stream_used_read(&f, 1, &u, &e), 0);
	assert_int_equal(bitmap_count(&u.maps[0]), 8);
	assert_int_equal(u.nnotes, 1);
	assert_non_null(strstr(u.notes[0], "failure on request"));
	stream_used_release(&u);
	disk_close(f);
	assert_int_equal(disk_fault_new(d, 0, 512, 0, &f, &e), 0);
	assert_int_equal(stream_used_read(&f, 1, &u, &e), 0);
	assert_int_equal(bitmap_count(&u.maps[0]), 8);
	stream_used_release(&u);
}

static void test_no_disks(void **state)
{
	struct stream_used u = {0};

	assert_int_equal(stream_used_read(NULL, 0, &u, NULL), 0);
	assert_int_equal(u.n, 0);
	stream_used_release(&u);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_whole_disk),
	    cmocka_unit_test(test_short_last_block),
	    cmocka_unit_test(test_block_shared_by_partitions),
	    cmocka_unit_test(test_free_halves_join),
	    cmocka_unit_test(test_overlap_is_used),
	    cmocka_unit_test(test_table_within),
	    cmocka_unit_test(test_unreadable),
	    cmocka_unit_test(test_no_disks),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
