/*
 * What a tracked run leaves to the next one: the statement the receiver committed, and what it was made of. It lives
 * below /run, as long as the tracker's marks do. Little endian:
 *
 *      0   8  RPLBASE1
 *      8   1  digest algorithm
 *      9   1  number of disks
 *     10   6  zero
 *     16  40  epoch of the tracking, NUL-padded
 *     56   8  bytes of the file
 *     64      for each disk: its size (8), statement (32), name (256, NUL-padded)
 *             for each disk: used map (8 bytes for every 64 blocks), sums of its windows (32 each)
 *    -32  32  SHA-256 of all before
 *
 * Nothing in it is believed that doesn't follow from what the reader expects, and it is only ever of use when the
 * receiver says the same statement.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/endian.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "stream/sender_int.h"

#define BASELINE_MAGIC "RPLBASE1"
#define BASELINE_HEAD  64u
#define BASELINE_DISK  (8u + 32u + BASELINE_NAME)
#define BASELINE_HEADS (BASELINE_HEAD + BASELINE_DISK * WIRE_DISKS_MAX)
#define BASELINE_PIECE 4096u

/* A file read or written from begin to end, and the sum of what went through. */
struct baseline_io {
	int fd;
	struct codec_sum *sum;
};

static uint64_t baseline_words(uint64_t size)
{
	return util_div_up(stream_blocks(size), 64);
}

static uint64_t baseline_bytes(const struct baseline *b)
{
	uint64_t n = BASELINE_HEAD + b->n * BASELINE_DISK + 32;

	for (size_t i = 0; i < b->n; i++)
		n += baseline_words(b->disks[i].size) * 8 + stream_windows(b->disks[i].size) * 32;
	return n;
}

static bool baseline_fits(const struct baseline *b)
{
	bool fits = b->epoch && *b->epoch && strlen(b->epoch) < BASELINE_EPOCH && b->n > 0 && b->n <= WIRE_DISKS_MAX;

	for (size_t i = 0; fits && i < b->n; i++)
		fits = strlen(b->disks[i].name) < BASELINE_NAME;
	return fits;
}

static size_t baseline_head(const struct baseline *b, uint8_t *h)
{
	memset(h, 0, BASELINE_HEAD + b->n * BASELINE_DISK);
	memcpy(h, BASELINE_MAGIC, 8);
	h[8] = (uint8_t)b->digest->id;
	h[9] = (uint8_t)b->n;
	strcpy((char *)h + 16, b->epoch);
	put_le64(h + 56, baseline_bytes(b));
	for (size_t i = 0; i < b->n; i++) {
		uint8_t *d = h + BASELINE_HEAD + i * BASELINE_DISK;

		put_le64(d, b->disks[i].size);
		memcpy(d + 8, b->disks[i].statement, 32);
		strcpy((char *)d + 40, b->disks[i].name);
	}
	return BASELINE_HEAD + b->n * BASELINE_DISK;
}

/* ---- writing ---- */
static int baseline_put(struct baseline_io *f, const void *p, size_t n)
{
	codec_sum_add(f->sum, p, n);
	return io_write_full(f->fd, p, n);
}

static int baseline_put_map(struct baseline_io *f, const struct bitmap *map, uint64_t words)
{
	uint8_t piece[BASELINE_PIECE];
	int r = 0;

	for (uint64_t at = 0; r == 0 && at < words; at += sizeof(piece) / 8) {
		size_t n = (size_t)MIN(words - at, sizeof(piece) / 8);

		for (size_t i = 0; i < n; i++)
			put_le64(piece + 8 * i, map->words[at + i]);
		r = baseline_put(f, piece, n * 8);
	}
	return r;
}

static int baseline_put_all(struct baseline_io *f, const struct baseline *b)
{
	_cleanup_free_ uint8_t *head = malloc(BASELINE_HEADS);
	uint8_t sum[32];
	int r = head ? baseline_put(f, head, baseline_head(b, head)) : -ENOMEM;

	for (size_t i = 0; r == 0 && i < b->n; i++) {
		const struct baseline_disk *d = &b->disks[i];

		r = baseline_put_map(f, d->used, baseline_words(d->size));
		if (r == 0)
			r = baseline_put(f, d->sums, stream_windows(d->size) * 32);
	}
	codec_sum_finish(f->sum, sum);
	if (r == 0)
		r = io_write_full(f->fd, sum, sizeof(sum));
	return r;
}

int baseline_write(const char *path, const struct baseline *b, struct err *e)
{
	_cleanup_(codec_sum_freep) struct codec_sum *sum = NULL;
	_cleanup_free_ char *temporary = str_printf("%s.new", path);
	_cleanup_close_ int fd = -1;
	int r = temporary ? codec_sum_new(&sum, e) : err_nomem(e);

	if (r < 0)
		return r;
	if (!baseline_fits(b))
		return err_set(e, -ENAMETOOLONG, "a disk's name is too long");
	unlink(temporary);
	fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return err_sys(e, "cannot write '%s'", temporary);
	codec_sum_start(sum);
	r = baseline_put_all(&(struct baseline_io){fd, sum}, b);
	if (r == 0 && (fsync(fd) < 0 || rename(temporary, path) < 0))
		r = -errno;
	if (r == 0)
		return 0;
	unlink(temporary);
	errno = -r;
	return err_sys(e, "cannot write '%s'", path);
}

/* ---- reading ---- */
static int baseline_get(struct baseline_io *f, void *p, size_t n, struct err *e)
{
	if (io_read_full(f->fd, p, n) != (ssize_t)n)
		return err_set(e, -EBADMSG, "what the last run left has been cut");
	codec_sum_add(f->sum, p, n);
	return 0;
}

static int baseline_get_map(struct baseline_io *f, struct bitmap *map, uint64_t words, struct err *e)
{
	uint8_t piece[BASELINE_PIECE];

	for (uint64_t at = 0; at < words; at += sizeof(piece) / 8) {
		size_t n = (size_t)MIN(words - at, sizeof(piece) / 8);
		int r = baseline_get(f, piece, n * 8, e);

		if (r < 0)
			return r;
		for (size_t i = 0; i < n; i++)
			map->words[at + i] = get_le64(piece + 8 * i);
	}
	if (map->nbits % 64 && map->words[map->nbits / 64] >> (map->nbits % 64))
		return err_set(e, -EBADMSG, "what the last run left tells of blocks behind the end of a disk");
	return 0;
}

/* The statements are the only thing in the heads that we don't know beforehand. */
static int baseline_get_heads(struct baseline_io *f, struct baseline *b, struct err *e)
{
	_cleanup_free_ uint8_t *got = malloc(BASELINE_HEADS), *want = malloc(BASELINE_HEADS);
	size_t n;
	int r;

	if (!got || !want)
		return err_nomem(e);
	r = baseline_get(f, got, BASELINE_HEAD + b->n * BASELINE_DISK, e);
	if (r < 0)
		return r;
	for (size_t i = 0; i < b->n; i++)
		memcpy(b->disks[i].statement, got + BASELINE_HEAD + i * BASELINE_DISK + 8, 32);
	n = baseline_head(b, want);
	if (memcmp(got, want, BASELINE_HEAD) != 0 && memcmp(got + 16, want + 16, BASELINE_EPOCH) != 0)
		return err_set(e, -ESTALE, "tracking had a gap since the last run");
	return memcmp(got, want, n) != 0 ? err_set(e, -ESTALE, "the last run was of other disks, or other digests") : 0;
}

/* Statement and sums must belong together. */
static int baseline_check(const struct baseline_disk *d, struct err *e)
{
	_cleanup_(codec_sum_freep) struct codec_sum *sum = NULL;
	uint8_t is[32];
	int r = codec_sum_new(&sum, e);

	if (r < 0)
		return r;
	codec_sum_start(sum);
	codec_sum_add(sum, d->sums, stream_windows(d->size) * 32);
	codec_sum_finish(sum, is);
	return memcmp(is, d->statement, 32) != 0 ? err_set(e, -EBADMSG, "what the last run left contradicts itself")
						 : 0;
}

static int baseline_get_all(struct baseline_io *f, struct baseline *b, struct err *e)
{
	uint8_t is[32], want[32];
	int r = baseline_get_heads(f, b, e);

	for (size_t i = 0; r == 0 && i < b->n; i++) {
		struct baseline_disk *d = &b->disks[i];

		r = baseline_get_map(f, d->used, baseline_words(d->size), e);
		if (r == 0)
			r = baseline_get(f, d->sums, stream_windows(d->size) * 32, e);
		if (r == 0)
			r = baseline_check(d, e);
	}
	if (r < 0)
		return r;
	codec_sum_finish(f->sum, is);
	if (io_read_full(f->fd, want, sizeof(want)) != (ssize_t)sizeof(want) || memcmp(is, want, sizeof(is)) != 0)
		return err_set(e, -EBADMSG, "what the last run left is damaged");
	return 0;
}

int baseline_parse(int fd, struct baseline *b, struct err *e)
{
	_cleanup_(codec_sum_freep) struct codec_sum *sum = NULL;
	struct stat st;
	int r;

	if (!baseline_fits(b))
		return err_set(e, -ENAMETOOLONG, "a disk's name is too long");
	if (fstat(fd, &st) < 0)
		return err_sys(e, "cannot look at what the last run left");
	if (!S_ISREG(st.st_mode) || st.st_uid != geteuid() || st.st_mode & 022)
		return err_set(e, -EPERM, "somebody else may have written what the last run left");
	r = codec_sum_new(&sum, e);
	if (r < 0)
		return r;
	codec_sum_start(sum);
	r = baseline_get_all(&(struct baseline_io){fd, sum}, b, e);
	/* Only now: another size has another reason, which is said first. */
	if (r == 0 && (uint64_t)st.st_size != baseline_bytes(b))
		r = err_set(e, -EBADMSG, "what the last run left has something behind its end");
	return r;
}

int baseline_read(const char *path, struct baseline *b, struct err *e)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);

	return fd < 0 ? err_sys(e, "cannot open '%s'", path) : baseline_parse(fd, b, e);
}
