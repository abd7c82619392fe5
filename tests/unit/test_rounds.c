/*
 * Tracked runs, sender and receiver in one process: a disk whose writer is at work all the time and marks what it
 * writes, frozen by a lock. The oracle is a copy of the disk made while it was frozen.
 */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <cmocka.h>

#include "base/endian.h"
#include "base/id.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "stream/sender_int.h"

#define BLOCKS    1300u /* the last one is short */
#define SIZE      (BLOCKS * (uint64_t)STREAM_BLOCK - 3 * 512)
#define FIRST     16u  /* of the first partition, whose contents nobody knows */
#define PARTITION 900u /* blocks of it */
#define SWAP      (FIRST + PARTITION)
#define USED      (SWAP + 1) /* of swap space only the header */

struct source {
	struct disk disk;
	uint8_t *bytes, *frozen; /* frozen: the copy */
	pthread_rwlock_t gate;   /* writers read-lock it; frozen: write-locked */
	atomic_bool stop;
	pthread_t writer;
	bool writing, inside; /* inside: only within the partition */
	unsigned pause_us, area;
	uint64_t seed;
	_Atomic uint64_t written, reads;

	/* the tracker */
	_Atomic uint64_t marks[BLOCKS / 64 + 1];
	uint64_t before[BLOCKS / 64 + 1], taken[BLOCKS / 64 + 1];
	unsigned collects, settles, audits, restarts, freezes, checkpoints;
	unsigned taint_audit[2];    /* these audits fail, counted from 1 */
	bool taint_frozen;          /* the first frozen audit fails */
	_Atomic unsigned lose_mark; /* in N; 0: none is lost */
	bool thaw_early;            /* the guard does, once */
	uint64_t forget;            /* the receiver does of this block in the thaw, once; 0: it doesn't */
	atomic_bool cancelled;
	unsigned cancel; /* in this collect; 0: never */
	char epoch[40];
	double flush; /* seconds a checkpoint claims */
};

static char dir[64], baseline[64];

/* ---- the disk ---- */
/* Reading what is being written is what happens here: not a race to tell of. Lengths and places are those of words. */
__attribute__((no_sanitize("thread"))) static void raw_copy(void *to, const void *from, size_t n)
{
	volatile uint64_t *t = to;
	const volatile uint64_t *f = from;

	for (size_t i = 0; i < n / 8; i++)
		t[i] = f[i];
}

__attribute__((no_sanitize("thread"))) static void raw_fill(void *to, unsigned what, size_t n)
{
	volatile uint64_t *t = to;

	for (size_t i = 0; i < n / 8; i++)
		t[i] = what * UINT64_C(0x0101010101010101);
}

static int source_read_(struct disk *d, void *p, size_t len, uint64_t off, struct err *e)
{
	struct source *s = (struct source *)d;

	if ((len | off) % 8) /* of headers */
		memcpy(p, s->bytes + off, len);
	else
		raw_copy(p, s->bytes + off, len);
	s->reads += len;
	return 0;
}

static const struct disk_ops source_ops = {.read = source_read_};

static void mark(struct source *s, uint64_t block)
{
	if (s->lose_mark && block % s->lose_mark == 0)
		return;
	atomic_fetch_or(&s->marks[block / 64], UINT64_C(1) << (block % 64));
}

static uint64_t dice(struct source *s)
{
	s->seed ^= s->seed << 13;
	s->seed ^= s->seed >> 7;
	return s->seed ^= s->seed << 17;
}

/* As a device does: marked when it is submitted, written some time, marked when it is done. */
static void write_block(struct source *s, uint64_t block, unsigned what)
{
	size_t n = stream_block_bytes(SIZE, block);

	mark(s, block);
	raw_fill(s->bytes + block * STREAM_BLOCK + (what % 7) * 512, what, n - 7 * 512);
	mark(s, block);
	s->written++;
}

static void *writer_main(void *arg)
{
	struct source *s = arg;

	while (!s->stop) {
		uint64_t block = FIRST + dice(s) % (s->inside ? PARTITION : s->area ? s->area : BLOCKS - FIRST);

		if (block == SWAP)
			continue;

		pthread_rwlock_rdlock(&s->gate);
		write_block(s, block, (unsigned)dice(s) % 3 == 0 ? 0 : (unsigned)dice(s) & 0xff);
		pthread_rwlock_unlock(&s->gate);
		if (s->pause_us)
			nanosleep(&(struct timespec){.tv_nsec = s->pause_us * 1000L}, NULL);
	}
	return NULL;
}

static void source_init(struct source *s, uint64_t seed)
{
	pthread_rwlockattr_t attr;

	memset(s, 0, sizeof(*s));
	s->disk = (struct disk){.ops = &source_ops, .size = SIZE, .sector = 512, .name = "source"};
	s->bytes = calloc(1, SIZE);
	s->frozen = calloc(1, SIZE);
	assert_true(s->bytes && s->frozen);
	s->seed = seed;
	strcpy(s->epoch, "epoch 0");
	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&s->gate, &attr);
	for (uint64_t i = FIRST; i < FIRST + PARTITION; i++)
		if (i % 3)
			memset(s->bytes + i * STREAM_BLOCK, (int)(dice(s) & 0xff), STREAM_BLOCK);
	s->bytes[446 + 4] = 0x83;
	put_le32(s->bytes + 446 + 8, FIRST * (STREAM_BLOCK / 512));
	put_le32(s->bytes + 446 + 12, PARTITION * (STREAM_BLOCK / 512));
	s->bytes[462 + 4] = 0x82;
	put_le32(s->bytes + 462 + 8, SWAP * (STREAM_BLOCK / 512));
	put_le32(s->bytes + 462 + 12, (uint32_t)(SIZE / 512 - SWAP * (STREAM_BLOCK / 512)));
	put_le32(s->bytes + SWAP * STREAM_BLOCK + 1024, 1);
	put_le32(s->bytes + SWAP * STREAM_BLOCK + 1028, (uint32_t)(SIZE / 4096) - SWAP * 16 - 2);
	memcpy(s->bytes + SWAP * STREAM_BLOCK + 4086, "SWAPSPACE2", 10);
	s->bytes[510] = 0x55;
	s->bytes[511] = 0xaa;
}

static void source_start(struct source *s)
{
	s->stop = false;
	s->writing = true;
	assert_int_equal(pthread_create(&s->writer, NULL, writer_main, s), 0);
}

static void source_stop(struct source *s)
{
	s->stop = true;
	if (s->writing)
		pthread_join(s->writer, NULL);
	s->writing = false;
}

static void source_release(struct source *s)
{
	source_stop(s);
	free(s->bytes);
	free(s->frozen);
}

/* ---- its tracker ---- */
static int track_collect_(void *arg, size_t disk, struct bitmap *into, struct err *e)
{
	struct source *s = arg;

	assert_int_equal(disk, 0);
	s->collects++;
	if (s->collects == s->cancel) {
		s->cancelled = true;
		nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
	}
	for (size_t i = 0; i <= BLOCKS / 64; i++) {
		uint64_t m = atomic_exchange(&s->marks[i], 0);

		into->words[i] |= m | s->before[i];
		s->before[i] = m;
		s->taken[i] |= m;
	}
	return 0;
}

static uint64_t track_pending_(void *arg, size_t disk)
{
	struct source *s = arg;
	uint64_t n = 0;

	for (size_t i = 0; i <= BLOCKS / 64; i++)
		n += (uint64_t)__builtin_popcountll(s->marks[i] | s->before[i]);
	return n;
}

static int track_audit_(void *arg, bool frozen, struct err *e)
{
	struct source *s = arg;

	s->audits++;
	if (s->audits == s->taint_audit[0] || s->audits == s->taint_audit[1])
		return err_set(e, -ESTALE, "3 writes were not seen");
	if (frozen && s->taint_frozen) {
		s->taint_frozen = false;
		return err_set(e, -ESTALE, "1 write was not seen");
	}
	return frozen ? 0 : -EBUSY;
}

static int track_restart_(void *arg, struct err *e)
{
	struct source *s = arg;

	s->restarts++;
	snprintf(s->epoch, sizeof(s->epoch), "epoch %u", s->restarts);
	for (size_t i = 0; i <= BLOCKS / 64; i++)
		s->marks[i] = s->before[i] = s->taken[i] = 0;
	return 0;
}

static const char *track_epoch_(void *arg)
{
	return ((struct source *)arg)->epoch;
}

static void track_settle_(void *arg)
{
	struct source *s = arg;

	s->settles++;
	memset(s->taken, 0, sizeof(s->taken));
}

/* A process that dies and comes back: what was taken and not settled is marked. */
static void track_again(struct source *s)
{
	for (size_t i = 0; i <= BLOCKS / 64; i++) {
		atomic_fetch_or(&s->marks[i], s->taken[i]);
		s->before[i] = 0;
	}
}

/* ---- the receiver's memory ---- */
/* What it knows of a block becomes something else. */
static void forget(uint64_t block)
{
	_cleanup_free_ char *path = str_printf("%s/disk0.manifest", dir);
	_cleanup_close_ int fd = open(path, O_RDWR);
	uint8_t entry[16];

	assert_true(fd >= 0);
	assert_int_equal(io_pread_full(fd, entry, 16, MANIFEST_HEADER + block * 16), 16);
	entry[3] ^= 0x10;
	assert_int_equal(io_pwrite_full(fd, entry, 16, MANIFEST_HEADER + block * 16), 0);
}

/* ---- freezing ---- */
static int freeze(void *arg, double limit, struct err *e)
{
	struct source *s = arg;

	s->freezes++;
	pthread_rwlock_wrlock(&s->gate);
	raw_copy(s->frozen, s->bytes, SIZE);
	return 0;
}

static int thaw(void *arg, double *ret_seconds, bool *ret_intact, struct err *e)
{
	struct source *s = arg;

	pthread_rwlock_unlock(&s->gate);
	*ret_seconds = 0.01;
	if (s->forget)
		forget(s->forget);
	s->forget = 0;
	*ret_intact = !s->thaw_early;
	s->thaw_early = false;
	return 0;
}

static int checkpoint(void *arg, int (*look)(void *look_arg, struct err *e), void *look_arg, double *ret_seconds,
		      bool *ret_intact, struct err *e)
{
	struct source *s = arg;
	int k;

	s->checkpoints++;
	pthread_rwlock_wrlock(&s->gate);
	k = look(look_arg, e);
	pthread_rwlock_unlock(&s->gate);
	*ret_seconds = s->flush > 0 ? s->flush : 0.001;
	*ret_intact = true;
	return k;
}

static bool cancelled(void *arg)
{
	return ((struct source *)arg)->cancelled;
}

/* ---- the receiver ---- */
struct receiving {
	struct stream_receive_params p;
	pthread_t thread;
	atomic_int port;
	int result;
	struct err error;
};

static void receiving_event(void *arg, const char *json)
{
	struct receiving *r = arg;
	const char *at = strstr(json, "\"port\":");

	if (strstr(json, "listening") && at)
		r->port = atoi(at + 7);
}

static void *receiving_main(void *arg)
{
	struct receiving *r = arg;

	r->result = stream_receive(&r->p, receiving_event, r, &r->error);
	return NULL;
}

static const struct stream_link the_link = {.run = "run-0123456789abcdef", .psk = {1, 2, 3}};

static void receiving_start(struct receiving *r)
{
	memset(r, 0, sizeof(*r));
	r->p = (struct stream_receive_params){.link = the_link, .dir = dir, .listen = "127.0.0.1", .once = true};
	assert_int_equal(pthread_create(&r->thread, NULL, receiving_main, r), 0);
	while (!r->port)
		nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
}

/* ---- a run ---- */
static void params(struct stream_send_params *p, const struct receiving *r)
{
	*p = (struct stream_send_params){.link = the_link,
					 .host = "127.0.0.1",
					 .port = (uint16_t)r->port,
					 .connections = 3,
					 .baseline = baseline,
					 .compression = 1,
					 .frozen_memory = 40 * MIB};
}

static int run(struct source *s, const struct stream_send_params *change, struct stream_result *ret, struct err *e)
{
	const struct stream_tracker tracker = {.arg = s,
					       .collect = track_collect_,
					       .pending = track_pending_,
					       .audit = track_audit_,
					       .epoch = track_epoch_,
					       .restart = track_restart_,
					       .settle = track_settle_};
	const struct stream_send_ops ops = {.arg = s,
					    .freeze = freeze,
					    .thaw = thaw,
					    .checkpoint = checkpoint,
					    .cancelled = cancelled,
					    .tracker = &tracker};
	struct disk *disks[] = {&s->disk};
	struct stream_send_params p;
	struct receiving r;
	int k;

	receiving_start(&r);
	params(&p, &r);
	if (change) {
		p.max_freeze = change->max_freeze;
		p.patience = change->patience;
		p.rate_mbit = change->rate_mbit;
		p.frozen_memory = change->frozen_memory ? change->frozen_memory : p.frozen_memory;
	}
	k = stream_send(&p, disks, 1, &ops, ret, e);
	pthread_join(r.thread, NULL);
	assert_int_equal(r.result == 0, k == 0);
	return k;
}

/* Each used block is what it was while frozen. */
static void check(struct source *s, uint64_t blocks)
{
	_cleanup_free_ char *path = str_printf("%s/disk0.raw", dir), *bytes = NULL;
	struct err e = {0};
	uint64_t checked;
	size_t len;

	assert_int_equal(io_read_file(path, SIZE + 1, &bytes, &len, &e), 0);
	assert_int_equal(len, SIZE);
	for (uint64_t i = 0; i < USED; i++)
		if (memcmp(bytes + i * STREAM_BLOCK, s->frozen + i * STREAM_BLOCK, STREAM_BLOCK))
			fail_msg("block %llu differs", (unsigned long long)i);
	if (stream_verify(dir, &checked, &e) < 0)
		fail_msg("%s", e.msg);
	if (blocks)
		assert_int_equal(checked, blocks);
}

static bool noted(const struct stream_result *res, const char *text)
{
	for (size_t i = 0; i < res->nnotes; i++)
		if (strstr(res->notes[i], text))
			return true;
	return false;
}

static int setup(void **state)
{
	strcpy(dir, "/tmp/test_rounds.XXXXXX");
	assert_non_null(mkdtemp(dir));
	snprintf(baseline, sizeof(baseline), "%s.base", dir);
	unlink(baseline);
	return 0;
}

static int teardown(void **state)
{
	unlink(baseline);
	return io_remove_tree(dir, NULL);
}

static void good(struct source *s, const struct stream_send_params *change, struct stream_result *res)
{
	struct err e = {0};

	if (run(s, change, res, &e) < 0)
		fail_msg("%s", e.msg);
}

/* ---- tests ---- */
static void test_quiet(void **state)
{
	struct stream_result res;
	struct source s;

	source_init(&s, 1);
	good(&s, NULL, &res);
	check(&s, USED + 1); /* the last block of the disk is short, and taken, too */
	assert_int_equal(res.totals.mode, STREAM_TRACKED);
	assert_int_equal(s.settles, 1);
	assert_int_equal(s.freezes, 1);
	assert_int_equal(s.checkpoints, 1);
	/* Nothing is read twice. */
	assert_int_equal(res.totals.bytes_read, USED * (uint64_t)STREAM_BLOCK + stream_block_bytes(SIZE, BLOCKS - 1));
	stream_result_release(&res);
	source_release(&s);
}

static void test_writers(void **state)
{
	uint64_t seed =
	    getenv("REPLANT_SEED") ? strtoull(getenv("REPLANT_SEED"), NULL, 10) : (uint64_t)(id_now() * 1000) | 1;

	for (unsigned i = 0; i < 8; i++, seed += 2) {
		struct stream_result res;
		struct source s;

		print_message("seed %llu\n", (unsigned long long)seed);
		source_init(&s, seed);
		s.pause_us = i % 4 * 300;
		s.inside = i % 3 == 0;
		s.area = i % 5 == 0 ? 40 : 0;
		source_start(&s);
		good(&s, i % 2 ? NULL : &(struct stream_send_params){.max_freeze = 0.05, .patience = 0.5}, &res);
		assert_true(s.written > 0);
		source_stop(&s);
		check(&s, 0);
		assert_int_equal(s.settles, 1);
		assert_int_equal(s.restarts, 0);
		assert_int_equal(io_remove_tree(dir, NULL), 0);
		assert_int_equal(io_mkdirs(dir, 0700, NULL), 0);
		unlink(baseline);
		stream_result_release(&res);
		source_release(&s);
	}
}

/* More is left than memory holds: it is compared while frozen. */
static void test_small_arena(void **state)
{
	struct stream_result res;
	struct source s;

	source_init(&s, 5);
	s.inside = true;
	source_start(&s);
	good(&s, &(struct stream_send_params){.patience = 0.2, .frozen_memory = 4 * STREAM_BLOCK}, &res);
	source_stop(&s);
	check(&s, 0);
	stream_result_release(&res);
	source_release(&s);
}

static void test_taint(void **state)
{
	struct stream_result res;
	struct source s;

	/* Between rounds (a writer keeps them going), and in the freeze. */
	for (unsigned i = 0; i < 2; i++) {
		source_init(&s, 7 + 2 * i);
		s.taint_audit[0] = i ? 0 : 1;
		s.taint_frozen = i;
		s.lose_mark = 5; /* what the audit found was true */
		s.pause_us = 200;
		source_start(&s);
		nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
		s.lose_mark = 0;
		good(&s, NULL, &res);
		source_stop(&s);
		check(&s, 0);
		assert_int_equal(s.restarts, 1);
		assert_int_equal(res.totals.mode, STREAM_TRACKED);
		assert_true(noted(&res, "not seen"));
		stream_result_release(&res);
		source_release(&s);
	}
}

/* Two taints: the rest of the run compares, marks or not. */
static void test_given_up(void **state)
{
	struct stream_result res;
	struct source s;

	source_init(&s, 11);
	s.taint_audit[0] = 1;
	s.taint_audit[1] = 2;
	s.lose_mark = 2;
	s.pause_us = 200;
	source_start(&s);
	good(&s, NULL, &res);
	source_stop(&s);
	check(&s, 0);
	assert_int_equal(res.totals.mode, STREAM_COMPARING);
	assert_int_equal(s.settles, 0);
	assert_true(noted(&res, "this run compares"));
	stream_result_release(&res);
	source_release(&s);
}

static void test_thawed_early(void **state)
{
	struct stream_result res;
	struct source s;

	source_init(&s, 13);
	s.thaw_early = true;
	s.pause_us = 100;
	source_start(&s);
	good(&s, NULL, &res);
	source_stop(&s);
	check(&s, 0);
	assert_int_equal(s.freezes, 2);
	stream_result_release(&res);
	source_release(&s);
}

/* A run after a run: reads what was written in between, and not more than `most` blocks. */
static void again(struct source *s, uint64_t least, uint64_t most, const char *note)
{
	struct stream_result res;

	good(s, NULL, &res);
	source_stop(s);
	check(s, 0);
	if (res.totals.bytes_read < least * STREAM_BLOCK || res.totals.bytes_read > most * STREAM_BLOCK)
		fail_msg("%llu blocks were read, not %llu to %llu",
			 (unsigned long long)res.totals.bytes_read / STREAM_BLOCK, (unsigned long long)least,
			 (unsigned long long)most);
	if (note && !noted(&res, note))
		fail_msg("not noted: %s (%s)", note, res.nnotes ? res.notes[res.nnotes - 1] : "nothing");
	if (!note)
		assert_false(noted(&res, "all is compared") || noted(&res, "everything"));
	stream_result_release(&res);
}

static void test_incremental(void **state)
{
	struct source s;

	source_init(&s, 17);
	again(&s, USED, BLOCKS, NULL);
	again(&s, 0, 0, NULL);
	/* Two blocks in use, and one of swap space, which isn't. */
	write_block(&s, FIRST + 3, 9);
	write_block(&s, FIRST + 700, 9);
	write_block(&s, SWAP + 50, 9);
	again(&s, 2, 2, NULL);
	for (unsigned i = 0; i < 5; i++) {
		s.pause_us = 500;
		source_start(&s);
		nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
		again(&s, 1, 10 * BLOCKS, NULL); /* it goes on writing */
	}
	write_block(&s, FIRST, 1);
	again(&s, 1, BLOCKS, NULL);
	again(&s, 0, 0, NULL);
	source_release(&s);
}

static void damage(size_t at, bool cut)
{
	_cleanup_free_ char *bytes = NULL;
	struct err e = {0};
	size_t len;

	assert_int_equal(io_read_file(baseline, 1 << 20, &bytes, &len, &e), 0);
	assert_true(at < len);
	bytes[at] ^= 0x40;
	assert_int_equal(io_write_file_atomic(baseline, bytes, cut ? at : len, 0600, &e), 0);
}

static void test_baseline_invalid(void **state)
{
	/* Magic, digest, disks, epoch, bytes, size, statement, name, map, sums, sum of all. */
	static const size_t at[] = {0, 8, 9, 20, 56, 64, 72, 104, 360 + 8, 360 + 168 + 40, 360 + 168 + 192 + 3};
	struct source s;

	source_init(&s, 19);
	again(&s, USED, BLOCKS, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(at); i++) {
		damage(at[i], i % 2);
		/* What nobody marked: a baseline that was believed would miss it. */
		memset(s.bytes + (FIRST + 20 + i) * STREAM_BLOCK, 77, 100);
		again(&s, USED, BLOCKS, "all is compared");
	}
	/* Whole, but of another epoch, of another replica, of nobody knows whom. */
	strcpy(s.epoch, "epoch x");
	again(&s, USED, BLOCKS, "gap");
	assert_int_equal(io_remove_tree(dir, NULL), 0);
	assert_int_equal(io_mkdirs(dir, 0700, NULL), 0);
	again(&s, USED, BLOCKS, "holds something else");
	assert_int_equal(chmod(baseline, 0666), 0);
	again(&s, USED, BLOCKS, "somebody else");
	again(&s, 0, 0, NULL);
	source_release(&s);
}

/* Killed between a collect and the commit: what was taken is marked again, and what had arrived is no trouble. */
static void test_killed(void **state)
{
	struct stream_result res;
	struct err e = {0};
	struct source s;

	for (unsigned i = 1; i <= 3; i++) {
		source_init(&s, 23 + 2 * i);
		again(&s, USED, BLOCKS, NULL);
		for (unsigned k = 0; k < 40; k++)
			write_block(&s, FIRST + k * 11, k + 3);
		s.cancel = s.collects + i;
		assert_int_equal(run(&s, NULL, &res, &e), -ECANCELED);
		s.cancelled = false;
		track_again(&s);
		write_block(&s, FIRST + 440, 200);
		again(&s, 41, USED, NULL);
		again(&s, 0, 0, NULL);
		source_release(&s);
		unlink(baseline);
	}
}

/* The receiver's memory is not what we think: where we look, where we don't, and while we don't look. */
static void test_mismatch(void **state)
{
	struct source s;

	source_init(&s, 29);
	again(&s, USED, BLOCKS, NULL);
	write_block(&s, FIRST + 3, 9);
	forget(FIRST + 5);
	again(&s, WIRE_WINDOW, WIRE_WINDOW, NULL); /* the window */
	write_block(&s, FIRST + 3, 10);
	forget(FIRST + 600);
	again(&s, USED, BLOCKS + 1, "was not what");
	write_block(&s, FIRST + 3, 11);
	s.forget = FIRST + 5;
	s.freezes = 0;
	s.pause_us = 100;
	s.area = 4;
	source_start(&s);
	again(&s, WIRE_WINDOW, 4 * WIRE_WINDOW, NULL);
	assert_int_equal(s.freezes, 2);
	source_release(&s);
}

/* A writer that can't be followed, and a freeze nobody has allowed: the reason is told with its figures. */
static void test_does_not_converge(void **state)
{
	const struct stream_send_params hasty = {.patience = 0.3, .frozen_memory = 4 * STREAM_BLOCK};
	struct stream_result res;
	struct err e = {0};
	struct source s;

	source_init(&s, 31);
	s.flush = 20;
	source_start(&s);
	assert_int_equal(run(&s, &hasty, &res, &e), -ETIME);
	assert_false(stream_is_temporary(-ETIME)); /* or it would be frozen again and again */
	assert_non_null(strstr(e.msg, "the bottleneck is the "));
	assert_non_null(strstr(e.msg, "allow a longer freeze"));
	assert_int_equal(s.freezes, 0);
	/* The same for a shorter one: frozen longer than wished, and right. */
	s.flush = 0.001;
	good(&s, &hasty, &res);
	source_stop(&s);
	check(&s, 0);
	stream_result_release(&res);
	source_release(&s);
}

static void test_gauge(void **state)
{
	assert_true(gauge_converge(100, 200, 10, 50) == 0);
	assert_true(gauge_converge(300, 100, 50, 10) == 5);
	assert_true(isinf(gauge_converge(300, 100, 50, 50)));
	assert_string_equal(stream_bottleneck_name(STREAM_CPU), "cpu");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test_setup_teardown(test_quiet, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_writers, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_small_arena, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_taint, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_given_up, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_thawed_early, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_incremental, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_baseline_invalid, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_killed, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_mismatch, setup, teardown),
	    cmocka_unit_test_setup_teardown(test_does_not_converge, setup, teardown),
	    cmocka_unit_test(test_gauge),
	};

	if (getenv("REPLANT_ONLY"))
		cmocka_set_test_filter(getenv("REPLANT_ONLY"));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
