/*
 * A disk's copy: a sparse raw file, or a layer on an earlier one, and its manifest. A block's entry is zeroed before
 * the block changes and set after.
 *
 * A layer is a qcow2 file behind a server that keeps its tables in memory until it is flushed. So an entry is set only
 * after a flush: then a killed server leaves what the entries say, as a killed receiver does. The server doesn't sync
 * (cache.no-flush), which makes that cheap; replica_sync() does, on the file.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/endian.h"
#include "base/io.h"
#include "base/util.h"
#include "stream/stream_int.h"

/* The kernel is told to begin writing every so many bytes, so that the final sync has little left to do. */
#define REPLICA_WRITEBACK (32u * MIB)

int replica_file(char *buf, size_t size, unsigned index, const char *suffix)
{
	return snprintf(buf, size, "disk%u.%s", index, suffix);
}

static void replica_zero_digests(struct replica *r)
{
	static const uint8_t zero[STREAM_BLOCK];
	const struct codec_digest *d = r->manifest.digest;

	d->compute(zero, STREAM_BLOCK, r->zero_full);
	d->compute(zero, stream_block_bytes(r->size, r->manifest.nblocks - 1), r->zero_last);
}

/* Marks it as one whose file may not hold what was written. Returns code, for the caller to return. */
static int replica_break(struct replica *r, int code)
{
	/* Behind a lost server the file has all that the entries say. */
	if (r->layer && disk_nbd_is_lost(r->layer)) {
		r->broken = true;
		return code;
	}
	if (!atomic_exchange(&r->broken, true) && r->manifest.digest && r->manifest.fd >= 0)
		manifest_distrust(&r->manifest);
	return code;
}

/* A full disk refuses a write at once and has lost nothing. */
static int replica_write_failed(struct replica *r, int code)
{
	return code == -ENOSPC || code == -EDQUOT ? code : replica_break(r, code);
}

static int replica_usable(const struct replica *r, struct err *e)
{
	return r->broken ? err_set(e, -EIO, "the replica could not be written; start the receiver again to repair it")
			 : 0;
}

/* For drills: REPLANT_FAULT_SYNC=N makes the first N syncs fail. */
static bool replica_fault(void)
{
	static _Atomic unsigned failed;
	const char *text = getenv("REPLANT_FAULT_SYNC");

	return text && failed++ < (unsigned)strtoul(text, NULL, 10);
}

static int replica_sync_data(struct replica *r, struct err *e)
{
	if (replica_fault())
		return err_set(e, -EIO, "cannot sync the replica: failure on request");
	if (r->layer) {
		int k = disk_flush(r->layer, e);

		if (k < 0)
			return k;
	}
	return fdatasync(r->fd) < 0 ? err_sys(e, "cannot sync the replica") : 0;
}

/*
 * After a failed write the page cache may hold what the disk doesn't. An error of earlier times is told at the first
 * sync and means nothing here: what the disk has is read again.
 */
static int replica_uncache(struct replica *r, struct err *e)
{
	if (fdatasync(r->fd) < 0 && fdatasync(r->fd) < 0)
		return err_sys(e, "cannot sync the replica");
	posix_fadvise(r->fd, 0, 0, POSIX_FADV_DONTNEED);
	return 0;
}

static int replica_rebuild_block(struct replica *r, uint64_t i, uint8_t *buf, struct err *e)
{
	size_t n = stream_block_bytes(r->size, i);
	uint8_t digest[CODEC_DIGEST_MAX];

	if (r->layer) {
		int k = disk_read(r->layer, buf, n, i * STREAM_BLOCK, e);

		/* Most of them were never used. */
		if (k < 0 || codec_is_zero(buf, n))
			return k;
	} else if (io_pread_full(r->fd, buf, n, i * STREAM_BLOCK) != (ssize_t)n) {
		return err_sys(e, "cannot read the replica");
	}
	r->manifest.digest->compute(buf, n, digest);
	return manifest_put(&r->manifest, i, 1, digest, e);
}

static int replica_rebuild_layer(struct replica *r, uint8_t *buf, struct err *e)
{
	int k = 0;

	for (uint64_t i = 0; k == 0 && i < r->manifest.nblocks; i++)
		k = replica_rebuild_block(r, i, buf, e);
	return k;
}

/* Makes the entries of what the file holds; holes stay unknown, sending zeros for them costs nothing. */
static int replica_rebuild(struct replica *r, struct err *e)
{
	_cleanup_free_ uint8_t *buf = malloc(STREAM_BLOCK);
	off_t from = 0;

	if (!buf)
		return err_nomem(e);
	if (r->layer)
		return replica_rebuild_layer(r, buf, e);
	while ((from = lseek(r->fd, from, SEEK_DATA)) >= 0) {
		off_t end = lseek(r->fd, from, SEEK_HOLE);
		uint64_t last = end < 0 ? r->manifest.nblocks : util_div_up((uint64_t)end, STREAM_BLOCK);

		for (uint64_t i = (uint64_t)from / STREAM_BLOCK; i < last && i < r->manifest.nblocks; i++) {
			int k = replica_rebuild_block(r, i, buf, e);

			if (k < 0)
				return k;
		}
		from = (off_t)(last * STREAM_BLOCK);
	}
	return errno == ENXIO ? 0 : err_sys(e, "cannot read the replica");
}

static int replica_unlink(int dirfd, unsigned index, const char *suffix, struct err *e)
{
	char name[32];

	replica_file(name, sizeof(name), index, suffix);
	if (unlinkat(dirfd, name, 0) < 0 && errno != ENOENT)
		return err_sys(e, "cannot remove '%s'", name);
	return 0;
}

static int replica_open_file(int dirfd, unsigned index, const char *suffix, int flags, struct replica *r,
			     struct stat *st, struct err *e)
{
	char name[32];

	replica_file(name, sizeof(name), index, suffix);
	r->fd = openat(dirfd, name, flags | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (r->fd < 0 || fstat(r->fd, st) < 0)
		return err_sys(e, "cannot open '%s'", name);
	return S_ISREG(st->st_mode) ? 0 : err_set(e, -EINVAL, "'%s' is not a regular file", name);
}

static int replica_open_raw(int dirfd, unsigned index, struct replica *r, struct err *e)
{
	struct stat st;
	int k = replica_open_file(dirfd, index, "raw", O_RDWR | O_CREAT, r, &st, e);

	/* A replica that was cut or made new behind the manifest's back makes it worthless: the size is part of the
	 * match. */
	if (k < 0 || (uint64_t)st.st_size == r->size)
		return k;
	k = replica_unlink(dirfd, index, "manifest", e);
	/* It described a layer that doesn't fit any more. */
	k = k ?: replica_unlink(dirfd, index, "qcow2", e);
	if (k == 0 && ftruncate(r->fd, (off_t)r->size) < 0)
		k = err_sys(e, "cannot make a replica of %llu bytes", (unsigned long long)r->size);
	return k;
}

/* A raw file that was begun stays the replica, whatever size the source's disk takes next. */
static bool replica_layer_fits(int dirfd, unsigned index, const struct disk *layer, uint64_t size)
{
	char raw[32], qcow2[32];

	replica_file(raw, sizeof(raw), index, "raw");
	replica_file(qcow2, sizeof(qcow2), index, "qcow2");
	return layer && layer->size == size && faccessat(dirfd, raw, F_OK, AT_SYMLINK_NOFOLLOW) < 0 &&
	       faccessat(dirfd, qcow2, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

static int replica_open_files(int dirfd, unsigned index, const struct codec_digest *digest, uint32_t sector,
			      struct replica *r, struct err *e)
{
	char name[32], boot_id[MANIFEST_BOOT_ID];
	bool trusted;
	struct stat st;
	int k;

	k = r->layer ? replica_open_file(dirfd, index, "qcow2", O_RDONLY, r, &st, e)
		     : replica_open_raw(dirfd, index, r, e);
	if (k < 0)
		return k;
	manifest_boot_id(boot_id);
	replica_file(name, sizeof(name), index, "manifest");
	k = manifest_open(dirfd, name, digest, r->size, sector, boot_id, &r->manifest, &trusted, e);
	if (k < 0)
		return k;
	replica_zero_digests(r);
	if (trusted)
		return 0;
	k = replica_uncache(r, e);
	if (k == 0)
		k = replica_rebuild(r, e);
	if (k == 0)
		k = manifest_set_state(&r->manifest, MANIFEST_OPEN, e);
	return k < 0 ? replica_write_failed(r, k) : 0;
}

int replica_open(int dirfd, unsigned index, const struct codec_digest *digest, uint64_t size, uint32_t sector,
		 struct disk *layer, struct replica **ret, struct err *e)
{
	struct replica *r = calloc(1, sizeof(*r));
	int k;

	if (!r)
		return err_nomem(e);
	r->fd = -1;
	r->size = size;
	if (replica_layer_fits(dirfd, index, layer, size))
		r->layer = layer;
	for (size_t i = 0; i < REPLICA_LOCKS; i++)
		pthread_mutex_init(&r->locks[i], NULL);
	k = replica_open_files(dirfd, index, digest, sector, r, e);
	if (k < 0) {
		replica_close(r, false, NULL);
		return k;
	}
	*ret = r;
	return 0;
}

int replica_close(struct replica *r, bool clean, struct err *e)
{
	int k = 0;

	if (!r)
		return 0;
	if (clean && !r->broken) {
		k = replica_sync(r, e);
		if (k == 0)
			k = manifest_set_state(&r->manifest, MANIFEST_CLEAN, e);
		if (k < 0)
			replica_break(r, k);
	}
	if (r->fd >= 0)
		close(r->fd);
	manifest_release(&r->manifest);
	for (size_t i = 0; i < REPLICA_LOCKS; i++)
		pthread_mutex_destroy(&r->locks[i]);
	free(r);
	return k;
}

int replica_sync(struct replica *r, struct err *e)
{
	int k = replica_usable(r, e);

	if (k < 0)
		return k;
	k = replica_sync_data(r, e);
	if (k == 0)
		k = manifest_sync(&r->manifest, e);
	return k < 0 ? replica_break(r, k) : 0;
}

int replica_stated(struct replica *r, const uint8_t statement[WIRE_STATEMENT_SIZE], struct err *e)
{
	int k;

	memcpy(r->manifest.statement, statement, WIRE_STATEMENT_SIZE);
	k = manifest_set_state(&r->manifest, MANIFEST_OPEN, e);
	return k < 0 ? replica_break(r, k) : 0;
}

static size_t replica_window_blocks(const struct manifest *m, uint64_t window)
{
	return (size_t)MIN(m->nblocks - window * WIRE_WINDOW, (uint64_t)WIRE_WINDOW);
}

int replica_digests(struct replica *r, uint64_t window, uint8_t *out, size_t *ret_n, bool *ret_known, struct err *e)
{
	struct manifest *m = &r->manifest;
	size_t n;
	int k;

	if (window >= stream_windows(r->size))
		return err_set(e, -EBADMSG, "window '%llu' is behind the disk's end", (unsigned long long)window);
	n = replica_window_blocks(m, window);
	k = manifest_get(m, window * WIRE_WINDOW, n, out, e);
	if (k < 0)
		return k;
	*ret_n = n * m->digest->size;
	*ret_known = !codec_is_zero(out, *ret_n);
	return 0;
}

int replica_span(struct replica *r, const struct wire_blocks *m, size_t *ret_bytes, struct err *e)
{
	unsigned all = m->data | m->zero, top = 31u - (unsigned)__builtin_clz(all);
	size_t bytes = (size_t)__builtin_popcount(m->data) * STREAM_BLOCK;
	uint64_t last = r->manifest.nblocks - 1;

	if (m->first > last || top > last - m->first)
		return err_set(e, -EBADMSG, "blocks behind the disk's end came");
	if (last - m->first < WIRE_CHUNK && (m->data & (1u << (last - m->first))))
		bytes -= STREAM_BLOCK - stream_block_bytes(r->size, last);
	*ret_bytes = bytes;
	return 0;
}

int replica_check(struct replica *r, const struct wire_blocks *m, const uint8_t *data, struct err *e)
{
	const struct codec_digest *d = r->manifest.digest;
	const uint8_t *want = m->digests;

	for (unsigned i = 0; i < WIRE_CHUNK; i++) {
		uint8_t got[CODEC_DIGEST_MAX];
		size_t n;

		if (!(m->data & (1u << i)))
			continue;
		n = stream_block_bytes(r->size, m->first + i);
		d->compute(data, n, got);
		if (memcmp(got, want, d->size) != 0)
			return err_set(e, -EBADMSG, "block %llu came damaged", (unsigned long long)(m->first + i));
		data += n;
		want += d->size;
	}
	return 0;
}

static int replica_punch(struct replica *r, uint64_t off, uint64_t len, struct err *e)
{
	static const uint8_t zero[STREAM_BLOCK];

	/* Not a hole: that would show what the layer below has. */
	if (r->layer)
		return disk_zero(r->layer, len, off, e);
	if (fallocate(r->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) == 0)
		return 0;
	if (errno != EOPNOTSUPP && errno != ENOSYS)
		return err_sys(e, "cannot write zeros");
	for (uint64_t done = 0; done < len;) {
		size_t n = (size_t)MIN(len - done, sizeof(zero));
		int k = io_pwrite_full(r->fd, zero, n, off + done);

		if (k < 0) {
			errno = -k;
			return err_sys(e, "cannot write zeros");
		}
		done += n;
	}
	return 0;
}

static int replica_put(struct replica *r, const uint8_t *data, uint64_t len, uint64_t off, struct err *e)
{
	int k;

	if (r->layer)
		return disk_write(r->layer, data, len, off, e);
	k = io_pwrite_full(r->fd, data, len, off);
	if (k == 0)
		return 0;
	errno = -k;
	return err_sys(e, "cannot write the replica");
}

/* Runs of equal kind at once: one pwrite or one punch each. */
static int replica_write_runs(struct replica *r, const struct wire_blocks *m, const uint8_t *data, struct err *e)
{
	for (unsigned i = 0, n; i < WIRE_CHUNK; i += n) {
		unsigned mask = m->data & (1u << i) ? m->data : m->zero;
		uint64_t off = (m->first + i) * STREAM_BLOCK, len;
		int k;

		n = 1;
		if (!(mask & (1u << i)))
			continue;
		while (i + n < WIRE_CHUNK && (mask & (1u << (i + n))))
			n++;
		len = MIN((uint64_t)n * STREAM_BLOCK, r->size - off);
		if (mask != m->data) {
			k = replica_punch(r, off, len, e);
			if (k < 0)
				return k;
			continue;
		}
		k = replica_put(r, data, len, off, e);
		if (k < 0)
			return k;
		data += len;
	}
	return 0;
}

/* The entries as they shall be: new ones for what came (or none, before it is written). */
static void replica_set_entries(struct replica *r, const struct wire_blocks *m, size_t n, uint8_t *entries, bool known)
{
	const struct codec_digest *d = r->manifest.digest;
	const uint8_t *from = m->digests;

	for (unsigned i = 0; i < n; i++) {
		uint8_t *entry = entries + i * d->size;
		bool last = m->first + i == r->manifest.nblocks - 1;

		if (!((m->data | m->zero) & (1u << i)))
			continue;
		if (!known) {
			memset(entry, 0, d->size);
		} else if (m->data & (1u << i)) {
			memcpy(entry, from, d->size);
			from += d->size;
		} else {
			memcpy(entry, last ? r->zero_last : r->zero_full, d->size);
		}
	}
}

static bool replica_any_known(struct replica *r, const struct wire_blocks *m, size_t n, const uint8_t *entries)
{
	for (unsigned i = 0; i < n; i++)
		if (((m->data | m->zero) & (1u << i)) &&
		    manifest_known(&r->manifest, entries + i * r->manifest.digest->size))
			return true;
	return false;
}

static int replica_write_locked(struct replica *r, const struct wire_blocks *m, const uint8_t *data, struct err *e)
{
	size_t n = (size_t)MIN(r->manifest.nblocks - m->first, (uint64_t)WIRE_CHUNK);
	uint8_t entries[WIRE_CHUNK * CODEC_DIGEST_MAX];
	int k;

	k = manifest_get(&r->manifest, m->first, n, entries, e);
	if (k == 0 && replica_any_known(r, m, n, entries)) {
		replica_set_entries(r, m, n, entries, false);
		k = manifest_put(&r->manifest, m->first, n, entries, e);
	}
	if (k == 0)
		k = replica_write_runs(r, m, data, e);
	if (k == 0 && r->layer)
		k = disk_flush(r->layer, e);
	if (k < 0)
		return k;
	replica_set_entries(r, m, n, entries, true);
	return manifest_put(&r->manifest, m->first, n, entries, e);
}

int replica_write(struct replica *r, const struct wire_blocks *m, const uint8_t *data, struct err *e)
{
	pthread_mutex_t *lock = &r->locks[m->first / WIRE_WINDOW % REPLICA_LOCKS];
	uint64_t n = (uint64_t)__builtin_popcount(m->data) * STREAM_BLOCK;
	int k;

	pthread_mutex_lock(lock);
	k = replica_usable(r, e);
	if (k == 0)
		k = replica_write_locked(r, m, data, e);
	if (k < 0)
		replica_write_failed(r, k);
	pthread_mutex_unlock(lock);
	if (k == 0 && atomic_fetch_add(&r->unflushed, n) + n >= REPLICA_WRITEBACK) {
		r->unflushed = 0;
		sync_file_range(r->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
	}
	return k;
}

int replica_needs(struct replica *r, const struct bitmap *used, uint64_t *ret, struct err *e)
{
	struct manifest *m = &r->manifest;
	uint8_t entries[WIRE_WINDOW * CODEC_DIGEST_MAX];
	uint64_t blocks = 0;

	for (uint64_t first = 0; first < m->nblocks; first += WIRE_WINDOW) {
		size_t n = replica_window_blocks(m, first / WIRE_WINDOW);
		int k;

		if (bitmap_next(used, first) >= first + n)
			continue;
		k = manifest_get(m, first, n, entries, e);
		if (k < 0)
			return k;
		for (size_t i = 0; i < n; i++)
			blocks += bitmap_get(used, first + i) && !manifest_known(m, entries + i * m->digest->size);
	}
	*ret = blocks * STREAM_BLOCK;
	return 0;
}

static int replica_trim_window(struct replica *r, const struct bitmap *used, uint64_t first, size_t n, struct err *e)
{
	struct manifest *m = &r->manifest;
	uint8_t entries[WIRE_WINDOW * CODEC_DIGEST_MAX];
	int k = manifest_get(m, first, n, entries, e);

	for (size_t i = 0, run; k == 0 && i < n; i += run) {
		uint64_t off = (first + i) * STREAM_BLOCK;

		for (run = 0; i + run < n && !bitmap_get(used, first + i + run) &&
			      manifest_known(m, entries + (i + run) * m->digest->size);
		     run++)
			memset(entries + (i + run) * m->digest->size, 0, m->digest->size);
		if (!run) {
			run = 1;
			continue;
		}
		k = manifest_put(m, first + i, run, entries + i * m->digest->size, e);
		if (k == 0)
			k = replica_punch(r, off, MIN((uint64_t)run * STREAM_BLOCK, r->size - off), e);
	}
	return k;
}

int replica_trim(struct replica *r, const struct bitmap *used, struct err *e)
{
	for (uint64_t first = 0; first < r->manifest.nblocks; first += WIRE_WINDOW) {
		size_t n = replica_window_blocks(&r->manifest, first / WIRE_WINDOW);
		int k = replica_trim_window(r, used, first, n, e);

		if (k < 0)
			return replica_write_failed(r, k);
	}
	return 0;
}

static int replica_statement_sums(struct manifest *m, const struct bitmap *used, struct codec_sum *window,
				  struct codec_sum *all, uint64_t *ret_used, struct err *e)
{
	uint8_t entries[WIRE_WINDOW * CODEC_DIGEST_MAX], sum[32], index[8];
	uint64_t count = 0;

	for (uint64_t first = 0; first < m->nblocks; first += WIRE_WINDOW) {
		size_t n = replica_window_blocks(m, first / WIRE_WINDOW);
		int k = manifest_get(m, first, n, entries, e);

		if (k < 0)
			return k;
		codec_sum_start(window);
		for (size_t i = 0; i < n; i++) {
			const uint8_t *entry = entries + i * m->digest->size;
			bool known = manifest_known(m, entry);

			if (used ? !bitmap_get(used, first + i) : !known)
				continue;
			if (!known)
				return err_set(e, -EILSEQ, "block %llu never came", (unsigned long long)(first + i));
			put_le64(index, first + i);
			codec_sum_add(window, index, sizeof(index));
			codec_sum_add(window, entry, m->digest->size);
			count++;
		}
		codec_sum_finish(window, sum);
		codec_sum_add(all, sum, sizeof(sum));
	}
	*ret_used = count;
	return 0;
}

int replica_statement(struct manifest *m, const struct bitmap *used, uint8_t out[32], uint64_t *ret_used, struct err *e)
{
	_cleanup_(codec_sum_freep) struct codec_sum *window = NULL, *all = NULL;
	int k = codec_sum_new(&window, e);

	if (k == 0)
		k = codec_sum_new(&all, e);
	if (k < 0)
		return k;
	codec_sum_start(all);
	k = replica_statement_sums(m, used, window, all, ret_used, e);
	if (k == 0)
		codec_sum_finish(all, out);
	return k;
}
