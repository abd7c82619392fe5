/*
 * Drives the tracker inside a virtual machine, for the tests: a command a line on stdin, an answer a line on stdout,
 * "ok ..." or "err NUMBER TEXT". Sets of blocks are given in hex, lowest block in the first byte's lowest bit.
 *
 *   start PIN|-|ringKIB DEVICE...
 *   collect I [TARGET [MS]]: what was given is copied to TARGET, MS later
 *   copy I TARGET: all of it   rounds I TARGET N MS: N such collects, MS apart
 *   audit live|frozen          drop SUBMIT COMPLETE: loses one event in so many of each kind
 *   grace on|off: off, what was in flight isn't given once more, which must be noticed
 *   again DEVICE...: what a later run does with a tracker that was left alone
 *   settle, restart, epoch, pending I, counts I, detach, close, remove PIN, quit
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>

#include "base/bitmap.h"
#include "base/err.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "track/track_int.h"

#define WORDS 24

struct disk {
	const char *path;
	uint64_t size;
};

static struct track *tracker;
static struct disk disks[TRACKER_DISKS];
static char *names;
static bool no_grace;

/* ledger_collect() is linked through here (-Wl,--wrap). */
void __real_ledger_collect(struct ledger *l, bool quiet, struct bitmap *into);
void __wrap_ledger_collect(struct ledger *l, bool quiet, struct bitmap *into);

void __wrap_ledger_collect(struct ledger *l, bool quiet, struct bitmap *into)
{
	if (no_grace) {
		for (uint64_t b = 0; b < l->blocks; b++) {
			bitmap_clear(&l->recent, b);
			bitmap_clear(&l->doubt, b);
		}
	}
	__real_ledger_collect(l, quiet, into);
}

static void pause_ms(uint64_t ms)
{
	nanosleep(&(struct timespec){.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000}, NULL);
}

static uint64_t number(const char *word)
{
	return word ? strtoull(word, NULL, 10) : 0;
}

static void answer(int r, const struct err *e)
{
	if (r)
		printf("err %d %s\n", -r, e->msg);
	else
		printf("ok\n");
}

static void print_set(const struct bitmap *b)
{
	printf("ok %llu ", (unsigned long long)bitmap_count(b));
	for (uint64_t byte = 0; byte < (b->nbits + 7) / 8; byte++)
		printf("%02x", (unsigned)(b->words[byte / 8] >> (byte % 8 * 8)) & 0xff);
	printf("\n");
}

static int open_disk(const char *path, uint64_t *ret_size, struct err *e)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t size;

	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &size))
		return err_sys(e, "cannot open '%s'", path);
	*ret_size = size;
	return 0;
}

static int start(char **words, size_t n, struct err *e)
{
	const char *devices[TRACKER_DISKS];
	const char *pin = strcmp(words[1], "-") == 0 ? NULL : words[1];
	int r = 0;

	if (tracker)
		return err_set(e, -EBUSY, "already started");
	for (size_t i = 2; i < n && !r; i++) {
		devices[i - 2] = disks[i - 2].path = words[i];
		r = open_disk(words[i], &disks[i - 2].size, e);
	}
	if (!r && pin && strncmp(pin, "ring", 4) == 0)
		return track_start_ring(devices, n - 2, number(pin + 4) << 10, &tracker, e);
	return r ?: track_start(devices, n - 2, pin, &tracker, e);
}

/* Reads past the page cache, as the sender does, what is set in the map; NULL: everything. */
static int copy_blocks(const struct disk *d, const char *target, const struct bitmap *which, struct err *e)
{
	_cleanup_close_ int in = open(d->path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	_cleanup_close_ int out = open(target, O_WRONLY | O_DIRECT | O_CLOEXEC);
	_cleanup_free_ void *buf = aligned_alloc(4096, TRACK_BLOCK);

	if (in < 0 || out < 0 || !buf)
		return err_sys(e, "cannot copy '%s' to '%s'", d->path, target);
	for (uint64_t b = 0; b * TRACK_BLOCK < d->size; b++) {
		uint64_t at = b * TRACK_BLOCK, len = MIN(TRACK_BLOCK, d->size - at);

		if (which && !bitmap_get(which, b))
			continue;
		if (io_pread_full(in, buf, len, at) != (ssize_t)len)
			return err_set(e, -EIO, "cannot read block %llu", (unsigned long long)b);
		if (io_pwrite_full(out, buf, len, at))
			return err_set(e, -EIO, "cannot write block %llu", (unsigned long long)b);
	}
	return 0;
}

static int collect(size_t i, const char *target, uint64_t ms, struct bitmap *into, struct err *e)
{
	int r = bitmap_init(into, util_div_up(disks[i].size, TRACK_BLOCK), e);

	if (!r)
		r = track_collect(tracker, i, into, e);
	if (r || !target)
		return r;
	pause_ms(ms);
	return copy_blocks(&disks[i], target, into, e);
}

static int do_collect(size_t i, char **words, struct err *e)
{
	_cleanup_(bitmap_release) struct bitmap given = {0};
	int r = collect(i, words[2], number(words[3]), &given, e);

	if (!r)
		print_set(&given);
	return r;
}

static int do_rounds(size_t i, char **words, struct err *e)
{
	_cleanup_(bitmap_release) struct bitmap all = {0};
	int r = bitmap_init(&all, util_div_up(disks[i].size, TRACK_BLOCK), e);

	for (uint64_t n = number(words[3]); n && !r; n--) {
		_cleanup_(bitmap_release) struct bitmap given = {0};

		r = collect(i, words[2], 0, &given, e);
		for (uint64_t b = 0; !r && b < given.nbits; b++)
			if (bitmap_get(&given, b))
				bitmap_set(&all, b);
		pause_ms(number(words[4]));
	}
	if (!r)
		print_set(&all);
	return r;
}

static void print_counts(size_t i, struct err *e)
{
	struct tracker_counts c;
	int r = track_counts(tracker, i, &c, e);

	if (r) {
		answer(r, e);
		return;
	}
	printf("ok submit_write=%llu submit_discard=%llu complete_write=%llu complete_discard=%llu complete_other=%llu "
	       "passthrough=%llu outside=%llu dropped=%llu events=%llu\n",
	       c.submit_write, c.submit_discard, c.complete_write, c.complete_discard, c.complete_other, c.passthrough,
	       c.outside, c.dropped, c.events);
}

/* Commands about one disk. -ENOSYS: it is none of them. */
static int of_disk(char **words, size_t n, struct err *e)
{
	size_t i = number(words[1]);
	int r = -ENOSYS;

	if (n < 2 || i >= TRACKER_DISKS || !disks[i].path)
		return -ENOSYS;
	if (strcmp(words[0], "collect") == 0)
		return do_collect(i, words, e);
	if (strcmp(words[0], "rounds") == 0 && n == 5)
		return do_rounds(i, words, e);
	if (strcmp(words[0], "copy") == 0 && n == 3) {
		r = copy_blocks(&disks[i], words[2], NULL, e);
		if (!r)
			answer(0, NULL);
	} else if (strcmp(words[0], "pending") == 0) {
		printf("ok %llu\n", (unsigned long long)track_pending(tracker, i));
		r = 0;
	} else if (strcmp(words[0], "counts") == 0) {
		print_counts(i, e);
		r = 0;
	}
	return r;
}

static int other(char **words, size_t n, struct err *e)
{
	int r = 0;

	if (strcmp(words[0], "audit") == 0 && n == 2) {
		r = track_audit(tracker, strcmp(words[1], "frozen") == 0, e);
	} else if (strcmp(words[0], "drop") == 0 && n == 3) {
		r = track_drop(tracker, (uint32_t)number(words[1]), (uint32_t)number(words[2]), e);
	} else if (strcmp(words[0], "grace") == 0 && n == 2) {
		no_grace = strcmp(words[1], "off") == 0;
	} else if (strcmp(words[0], "settle") == 0) {
		track_settle(tracker);
	} else if (strcmp(words[0], "restart") == 0) {
		r = track_restart(tracker, e);
	} else if (strcmp(words[0], "again") == 0) {
		r = track_go_on(tracker, (const char *const *)words + 1, n - 1, e);
	} else if (strcmp(words[0], "detach") == 0) {
		track_detach(tracker);
	} else if (strcmp(words[0], "close") == 0) {
		track_close(tracker);
		tracker = NULL;
	} else if (strcmp(words[0], "epoch") == 0) {
		printf("ok %s\n", track_epoch(tracker));
		return 0;
	} else {
		return err_set(e, -ENOSYS, "no such command: '%s'", words[0]);
	}
	if (!r)
		answer(0, NULL);
	return r;
}

static int run(char **words, size_t n, struct err *e)
{
	int r;

	if (strcmp(words[0], "start") == 0 && n > 2 && n - 2 <= TRACKER_DISKS)
		r = start(words, n, e);
	else if (strcmp(words[0], "remove") == 0 && n == 2)
		r = track_remove(words[1], e);
	else if (!tracker)
		return err_set(e, -EINVAL, "start first");
	else if ((r = of_disk(words, n, e)) != -ENOSYS)
		return r;
	else
		return other(words, n, e);
	if (!r)
		answer(0, NULL);
	return r;
}

int main(void)
{
	_cleanup_free_ char *line = NULL;
	size_t room = 0;

	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	while (getline(&line, &room, stdin) > 0) {
		char *words[WORDS] = {0}, *rest = NULL, *text;
		struct err e = {0};
		size_t n = 0;
		int r;

		text = strdup(line); /* the disks' names stay */
		for (char *w = strtok_r(text, " \n", &rest); w && n < WORDS - 1; w = strtok_r(NULL, " \n", &rest))
			words[n++] = w;
		if (n && strcmp(words[0], "quit") == 0) {
			printf("ok\n");
			free(text);
			break;
		}
		r = n ? run(words, n, &e) : err_set(&e, -EINVAL, "no command");
		if (r)
			answer(r, &e);
		fflush(stdout);
		if (n && strcmp(words[0], "start") == 0 && !r) {
			free(names);
			names = text;
		} else {
			free(text);
		}
	}
	track_close(tracker);
	free(names);
	return 0;
}
