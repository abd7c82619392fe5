/* Manifests and replicas: what a crash leaves at each point, what is trusted and what is made again. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <cmocka.h>

#include "base/id.h"
#include "base/io.h"
#include "base/util.h"
#include "stream/stream_int.h"

#define SIZE (300 * (uint64_t)STREAM_BLOCK + 1024)

static char dir[64];
static int dirfd_ = -1;

static int setup(void **state)
{
	strcpy(dir, "/tmp/test_manifest.XXXXXX");
	assert_non_null(mkdtemp(dir));
	dirfd_ = open(dir, O_RDONLY | O_DIRECTORY);
	return dirfd_ < 0;
}

static int teardown(void **state)
{
	close(dirfd_);
	return io_remove_tree(dir, NULL);
}

static bool open_manifest(const char *boot, uint64_t size, unsigned digest, struct manifest *m)
{
	bool trusted;

	assert_int_equal(manifest_open(dirfd_, "m", codec_digest(digest), size, 512, boot, m, &trusted, NULL), 0);
	if (!trusted)
		assert_int_equal(manifest_set_state(m, MANIFEST_OPEN, NULL), 0);
	return trusted;
}

static void test_trust(void **state)
{
	uint8_t entry[32], got[32];
	struct manifest m;

	memset(entry, 5, sizeof(entry));
	assert_false(open_manifest("boot-a", SIZE, CODEC_XXH3_128, &m));
	assert_int_equal(m.nblocks, 301);
	assert_int_equal(manifest_put(&m, 300, 1, entry, NULL), 0);
	manifest_release(&m);

	/* The process was killed: under the same boot the entries hold. */
	assert_true(open_manifest("boot-a", SIZE, CODEC_XXH3_128, &m));
	assert_int_equal(manifest_get(&m, 300, 1, got, NULL), 0);
	assert_memory_equal(got, entry, 16);
	manifest_release(&m);

	/* The machine died: they don't, and are gone. */
	assert_false(open_manifest("boot-b", SIZE, CODEC_XXH3_128, &m));
	assert_int_equal(manifest_get(&m, 300, 1, got, NULL), 0);
	assert_false(manifest_known(&m, got));
	assert_int_equal(manifest_put(&m, 300, 1, entry, NULL), 0);
	assert_int_equal(manifest_set_state(&m, MANIFEST_CLEAN, NULL), 0);
	manifest_release(&m);

	/* Closed in order: any boot will do. */
	assert_true(open_manifest("boot-c", SIZE, CODEC_XXH3_128, &m));
	manifest_release(&m);
	/* A machine that doesn't tell its boot id is never the same. */
	assert_false(open_manifest("", SIZE, CODEC_XXH3_128, &m));
	manifest_release(&m);
	assert_false(open_manifest("", SIZE, CODEC_XXH3_128, &m));
	manifest_release(&m);
	/* Another size, another algorithm. */
	assert_false(open_manifest("boot-c", SIZE + 512, CODEC_XXH3_128, &m));
	manifest_release(&m);
	assert_false(open_manifest("boot-c", SIZE + 512, CODEC_SHA256, &m));
	manifest_release(&m);
	assert_true(open_manifest("boot-c", SIZE + 512, CODEC_SHA256, &m));
	manifest_release(&m);
}

/* The statement of the last commit outlives sessions, and goes with the entries it was made of. */
static void test_statement_kept(void **state)
{
	static const uint8_t none[WIRE_STATEMENT_SIZE];
	uint8_t said[WIRE_STATEMENT_SIZE];
	struct replica *r;

	memset(said, 7, sizeof(said));
	assert_int_equal(replica_open(dirfd_, 0, codec_digest(1), SIZE, 512, NULL, &r, NULL), 0);
	assert_memory_equal(r->manifest.statement, none, sizeof(none));
	assert_int_equal(replica_stated(r, said, NULL), 0);
	assert_int_equal(replica_close(r, false, NULL), 0);
	assert_int_equal(replica_open(dirfd_, 0, codec_digest(1), SIZE, 512, NULL, &r, NULL), 0);
	assert_memory_equal(r->manifest.statement, said, sizeof(said));
	assert_int_equal(replica_close(r, true, NULL), 0);
	assert_int_equal(replica_open(dirfd_, 0, codec_digest(1), SIZE, 512, NULL, &r, NULL), 0);
	assert_memory_equal(r->manifest.statement, said, sizeof(said));
	manifest_distrust(&r->manifest);
	r->broken = true;
	replica_close(r, false, NULL);
	assert_int_equal(replica_open(dirfd_, 0, codec_digest(1), SIZE, 512, NULL, &r, NULL), 0);
	assert_memory_equal(r->manifest.statement, none, sizeof(none));
	assert_int_equal(replica_stated(r, said, NULL), 0);
	assert_int_equal(replica_close(r, true, NULL), 0);
	/* Another size is another disk. */
	assert_int_equal(replica_open(dirfd_, 0, codec_digest(1), SIZE + 512, 512, NULL, &r, NULL), 0);
	assert_memory_equal(r->manifest.statement, none, sizeof(none));
	assert_int_equal(replica_close(r, true, NULL), 0);
}

static void test_killed_while_made_again(void **state)
{
	struct manifest m;
	bool trusted;

	assert_int_equal(manifest_open(dirfd_, "m", codec_digest(1), SIZE, 512, "boot", &m, &trusted, NULL), 0);
	assert_false(trusted);
	manifest_release(&m); /* before it was said to hold */
	assert_int_equal(manifest_open(dirfd_, "m", codec_digest(1), SIZE, 512, "boot", &m, &trusted, NULL), 0);
	assert_false(trusted);
	manifest_release(&m);
}

static void test_damaged(void **state)
{
	struct manifest m;
	char path[128];
	uint8_t b;

	snprintf(path, sizeof(path), "%s/m", dir);
	for (unsigned at = 0; at < MANIFEST_HEADER; at += at < 100 ? 1 : 500) {
		int fd;

		open_manifest("boot", SIZE, CODEC_XXH3_128, &m);
		manifest_set_state(&m, MANIFEST_CLEAN, NULL);
		manifest_release(&m);
		fd = open(path, O_RDWR);
		assert_int_equal(pread(fd, &b, 1, at), 1);
		b ^= 1;
		assert_int_equal(pwrite(fd, &b, 1, at), 1);
		close(fd);
		assert_false(open_manifest("boot", SIZE, CODEC_XXH3_128, &m));
		manifest_release(&m);
	}
	/* Cut. */
	open_manifest("boot", SIZE, CODEC_XXH3_128, &m);
	manifest_set_state(&m, MANIFEST_CLEAN, NULL);
	manifest_release(&m);
	assert_int_equal(truncate(path, MANIFEST_HEADER + 100), 0);
	assert_int_equal(manifest_open_existing(dirfd_, "m", &m, NULL), -EBADMSG);
	assert_false(open_manifest("boot", SIZE, CODEC_XXH3_128, &m));
	manifest_release(&m);
	/* A link somewhere else isn't followed. */
	assert_int_equal(unlink(path), 0);
	assert_int_equal(symlink("elsewhere", path), 0);
	assert_int_equal(manifest_open(dirfd_, "m", codec_digest(1), SIZE, 512, "boot", &m, &(bool){0}, NULL), -ELOOP);
	assert_int_equal(unlink(path), 0);
}

/* ---- replicas ---- */
static struct replica *open_replica(uint64_t size)
{
	struct replica *r = NULL;
	struct err e = {0};

	if (replica_open(dirfd_, 0, codec_digest(CODEC_XXH3_128), size, 512, NULL, &r, &e) < 0)
		fail_msg("%s", e.msg);
	return r;
}

static void write_block(struct replica *r, uint64_t i, int value)
{
	static uint8_t data[STREAM_BLOCK];
	uint8_t digest[CODEC_DIGEST_MAX];
	struct wire_blocks m = {.first = i / 16 * 16, .digests = digest};
	size_t n = stream_block_bytes(r->size, i), bytes;

	memset(data, value, n);
	r->manifest.digest->compute(data, n, digest);
	*(value ? &m.data : &m.zero) = (uint16_t)(1u << i % 16);
	assert_int_equal(replica_span(r, &m, &bytes, NULL), 0);
	assert_int_equal(bytes, value ? n : 0);
	assert_int_equal(replica_check(r, &m, data, NULL), 0);
	assert_int_equal(replica_write(r, &m, data, NULL), 0);
}

/* Is the entry of block i what lies there? 0 unknown, 1 right, -1 wrong */
static int entry_holds(struct replica *r, uint64_t i)
{
	static uint8_t data[STREAM_BLOCK];
	uint8_t entry[32], got[32];
	size_t n = stream_block_bytes(r->size, i);

	assert_int_equal(manifest_get(&r->manifest, i, 1, entry, NULL), 0);
	if (!manifest_known(&r->manifest, entry))
		return 0;
	assert_int_equal(io_pread_full(r->fd, data, n, i * STREAM_BLOCK), n);
	r->manifest.digest->compute(data, n, got);
	return memcmp(entry, got, 16) == 0 ? 1 : -1;
}

static void test_replica_writes(void **state)
{
	struct replica *r = open_replica(SIZE);
	struct stat st;

	for (uint64_t i = 0; i <= 300; i += 7)
		write_block(r, i, (int)(i % 250) + 1);
	write_block(r, 300, 9);
	write_block(r, 299, 0);
	write_block(r, 7, 0);
	write_block(r, 14, 77);
	for (uint64_t i = 0; i <= 300; i++)
		assert_int_equal(entry_holds(r, i), i % 7 == 0 || i >= 299);
	assert_int_equal(replica_close(r, true, NULL), 0);
	r = open_replica(SIZE);
	for (uint64_t i = 0; i <= 300; i++)
		assert_int_equal(entry_holds(r, i), i % 7 == 0 || i >= 299);
	assert_int_equal(fstat(r->fd, &st), 0);
	assert_int_equal(st.st_size, SIZE);
	replica_close(r, false, NULL);
}

/* Behind the end, by a block or by far. */
static void test_replica_bounds(void **state)
{
	struct replica *r = open_replica(SIZE);
	struct wire_blocks m = {.first = 288, .data = 1u << 13};
	uint8_t out[8192];
	size_t n;
	bool known;

	assert_int_equal(replica_span(r, &m, &n, NULL), -EBADMSG);
	m.data = 1u << 12;
	assert_int_equal(replica_span(r, &m, &n, NULL), 0);
	assert_int_equal(n, 1024);
	m.first = 304;
	assert_int_equal(replica_span(r, &m, &n, NULL), -EBADMSG);
	m.first = UINT64_MAX - 15;
	assert_int_equal(replica_span(r, &m, &n, NULL), -EBADMSG);
	assert_int_equal(replica_digests(r, 1, out, &n, &known, NULL), 0);
	assert_int_equal(n, 45 * 16);
	assert_int_equal(replica_digests(r, 2, out, &n, &known, NULL), -EBADMSG);
	assert_int_equal(replica_digests(r, UINT32_MAX, out, &n, &known, NULL), -EBADMSG);
	replica_close(r, false, NULL);
}

/*
 * The three points at which a write can be interrupted: before the entry is zeroed, between that and the block, between
 * the block and its entry. After each, nothing known is wrong.
 */
static void test_crash_points(void **state)
{
	static uint8_t fresh[STREAM_BLOCK];
	uint8_t zero[16] = {0};

	for (int point = 0; point < 3; point++) {
		struct replica *r = open_replica(SIZE);

		write_block(r, 5, 1);
		assert_int_equal(entry_holds(r, 5), 1);
		if (point >= 1)
			assert_int_equal(manifest_put(&r->manifest, 5, 1, zero, NULL), 0);
		memset(fresh, 2, sizeof(fresh));
		if (point >= 2)
			assert_int_equal(io_pwrite_full(r->fd, fresh, sizeof(fresh), 5 * STREAM_BLOCK), 0);
		replica_close(r, false, NULL); /* as if killed: nothing is written on the way out */
		r = open_replica(SIZE);
		assert_int_equal(entry_holds(r, 5), point == 0);
		replica_close(r, false, NULL);
	}
}

/* The machine died with the block on the disk and its entry not, and the other way round. */
static void test_other_boot(void **state)
{
	static uint8_t data[STREAM_BLOCK];
	struct replica *r = open_replica(SIZE);
	uint8_t entry[16];

	write_block(r, 1, 1);
	write_block(r, 2, 2);
	write_block(r, 300, 3);
	memset(data, 9, sizeof(data));
	assert_int_equal(io_pwrite_full(r->fd, data, sizeof(data), 2 * STREAM_BLOCK), 0); /* the entry is old */
	memset(entry, 8, sizeof(entry));
	assert_int_equal(manifest_put(&r->manifest, 100, 1, entry, NULL), 0); /* the block never came */
	strcpy(r->manifest.boot_id, "another");
	assert_int_equal(manifest_set_state(&r->manifest, MANIFEST_OPEN, NULL), 0);
	replica_close(r, false, NULL);

	r = open_replica(SIZE);
	for (uint64_t i = 0; i <= 300; i++)
		assert_true(entry_holds(r, i) >= 0);
	assert_int_equal(entry_holds(r, 1), 1);
	assert_int_equal(entry_holds(r, 2), 1);
	assert_int_equal(entry_holds(r, 100), 0);
	assert_int_equal(entry_holds(r, 300), 1);
	replica_close(r, false, NULL);
}

/* A sync failed: nothing is synced again to find out, nothing is written, and the next one reads what is there. */
static void test_broken(void **state)
{
	static uint8_t data[STREAM_BLOCK];
	struct replica *r = open_replica(SIZE);

	write_block(r, 1, 1);
	write_block(r, 2, 2);
	assert_int_equal(setenv("REPLANT_FAULT_SYNC", "1", 1), 0);
	assert_int_equal(replica_sync(r, NULL), -EIO);
	assert_int_equal(replica_sync(r, NULL), -EIO);
	assert_int_equal(unsetenv("REPLANT_FAULT_SYNC"), 0);
	assert_int_equal(replica_sync(r, NULL), -EIO);
	assert_int_equal(replica_write(r, &(struct wire_blocks){.first = 16, .zero = 1}, data, NULL), -EIO);
	memset(data, 7, sizeof(data));
	assert_int_equal(io_pwrite_full(r->fd, data, sizeof(data), 2 * STREAM_BLOCK), 0); /* what the disk really has */
	assert_int_equal(replica_close(r, true, NULL), 0);

	r = open_replica(SIZE);
	assert_int_equal(entry_holds(r, 1), 1);
	assert_int_equal(entry_holds(r, 2), 1);
	assert_int_equal(entry_holds(r, 16), 0);
	assert_int_equal(replica_sync(r, NULL), 0);
	assert_int_equal(replica_close(r, true, NULL), 0);
}

/* Somebody cut the replica, or took it away. */
static void test_replica_gone(void **state)
{
	struct replica *r = open_replica(SIZE);
	char path[128];

	write_block(r, 1, 1);
	write_block(r, 200, 1);
	replica_close(r, true, NULL);
	snprintf(path, sizeof(path), "%s/disk0.raw", dir);
	assert_int_equal(truncate(path, 10 * STREAM_BLOCK), 0);
	r = open_replica(SIZE);
	assert_int_equal(entry_holds(r, 1), 1);
	assert_int_equal(entry_holds(r, 200), 0);
	replica_close(r, true, NULL);
	assert_int_equal(unlink(path), 0);
	r = open_replica(SIZE);
	assert_int_equal(entry_holds(r, 1), 0);
	replica_close(r, true, NULL);
}

static void test_needs_trim_state(void **state)
{
	struct replica *r = open_replica(SIZE);
	uint8_t a[32], b[32];
	struct bitmap used;
	uint64_t n;

	assert_int_equal(bitmap_init(&used, 301, NULL), 0);
	bitmap_set(&used, 3);
	bitmap_set(&used, 270);
	write_block(r, 3, 1);
	write_block(r, 4, 1);
	assert_int_equal(replica_needs(r, &used, &n, NULL), 0);
	assert_int_equal(n, STREAM_BLOCK);
	assert_int_equal(replica_statement(&r->manifest, &used, a, &n, NULL), -EILSEQ);
	write_block(r, 270, 1);
	assert_int_equal(replica_trim(r, &used, NULL), 0);
	assert_int_equal(entry_holds(r, 4), 0);
	assert_int_equal(entry_holds(r, 3), 1);
	assert_int_equal(lseek(r->fd, 4 * STREAM_BLOCK, SEEK_DATA), 270 * STREAM_BLOCK);
	assert_int_equal(replica_statement(&r->manifest, &used, a, &n, NULL), 0);
	assert_int_equal(n, 2);
	assert_int_equal(replica_statement(&r->manifest, NULL, b, &n, NULL), 0);
	assert_memory_equal(a, b, 32);
	write_block(r, 3, 2);
	assert_int_equal(replica_statement(&r->manifest, NULL, b, &n, NULL), 0);
	assert_memory_not_equal(a, b, 32);
	bitmap_release(&used);
	replica_close(r, true, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(test_trust, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_statement_kept, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_killed_while_made_again, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_damaged, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_replica_writes, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_replica_bounds, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_crash_points, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_other_boot, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_broken, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_replica_gone, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_needs_trim_state, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
