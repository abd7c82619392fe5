/* Reading the source: what fails is tried again, then in smaller and smaller pieces down to the sector. */
#include <errno.h>
#include <string.h>

#include "base/util.h"
#include "stream/sender_int.h"

static int source_try(struct sender *s, struct disk *d, uint8_t *buf, size_t len, uint64_t off, struct err *e)
{
	int r = 0;

	for (unsigned i = 0; i <= SENDER_RETRIES; i++) {
		r = disk_read(d, buf, len, off, e);
		if (r == 0)
			s->read += len;
		if (r != -EIO || s->stop)
			break;
	}
	return r;
}

/* Adjacent ranges become one; a range found again in a later pass isn't listed twice. */
static int source_bad_add(struct sender *s, size_t disk, uint64_t off, uint64_t len, struct err *e)
{
	struct stream_bad *bad;

	for (size_t i = 0; i < s->nbad; i++) {
		bad = &s->bad[i];
		if (bad->disk != disk)
			continue;
		if (off >= bad->offset && off + len <= bad->offset + bad->length)
			return 0;
		if (off == bad->offset + bad->length) {
			bad->length += len;
			return 0;
		}
	}
	if (s->nbad == SENDER_BAD_MAX)
		return err_set(e, -EIO, "'%s' has too many unreadable places to go on", s->disks[disk]->name);
	if ((s->nbad & (s->nbad - 1)) == 0) {
		bad = realloc(s->bad, MAX(s->nbad * 2, (size_t)16) * sizeof(*bad));
		if (!bad)
			return err_nomem(e);
		s->bad = bad;
	}
	s->bad[s->nbad++] = (struct stream_bad){.disk = disk, .offset = off, .length = len};
	return 0;
}

/* `e` has the last failure. */
static int source_sector_bad(struct sender *s, size_t disk, uint8_t *buf, size_t len, uint64_t off, struct err *e)
{
	struct err last = *e;
	int r = disk_same_size(s->disks[disk], e);

	/* What is not there any more is no bad spot, whatever is to be done about those. */
	if (r < 0)
		return r;
	if (!s->p->zero_unreadable)
		return err_set(e, -EIO,
			       "cannot read '%s' at byte %llu (%.300s; tried %u times; replace the disk, or let "
			       "unreadable sectors become "
			       "zeros)",
			       s->disks[disk]->name, (unsigned long long)off, last.msg, SENDER_RETRIES + 1);
	memset(buf, 0, len);
	pthread_mutex_lock(&s->lock);
	r = source_bad_add(s, disk, off, len, e);
	pthread_mutex_unlock(&s->lock);
	return r;
}

static int source_pieces(struct sender *s, size_t disk, uint8_t *buf, size_t len, uint64_t off, size_t piece,
			 struct err *e)
{
	struct disk *d = s->disks[disk];

	for (size_t at = 0; at < len; at += piece) {
		size_t n = MIN(piece, len - at);
		int r = source_try(s, d, buf + at, n, off + at, e);

		if (r == -EIO && piece > d->sector)
			r = source_pieces(s, disk, buf + at, n, off + at,
					  piece > 4096 ? MAX(4096u, d->sector) : d->sector, e);
		else if (r == -EIO)
			r = source_sector_bad(s, disk, buf + at, n, off + at, e);
		if (r < 0)
			return r;
	}
	return 0;
}

int source_read(struct sender *s, size_t disk, uint64_t first, size_t n, uint8_t *buf, struct err *e)
{
	struct disk *d = s->disks[disk];
	uint64_t off = first * STREAM_BLOCK;
	size_t len = (size_t)MIN(n * (uint64_t)STREAM_BLOCK, d->size - off);
	int r = source_try(s, d, buf, len, off, e);

	return r == -EIO ? source_pieces(s, disk, buf, len, off, STREAM_BLOCK, e) : r;
}
