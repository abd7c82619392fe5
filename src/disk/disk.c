#include "disk/disk.h"

#include <errno.h>
#include <inttypes.h>

#include "base/err.h"
#include "base/util.h"

static int check_range(const struct disk *d, const char *what, uint64_t len, uint64_t off, struct err *e)
{
	if (off <= d->size && len <= d->size - off)
		return 0;
	return err_set(e, -ERANGE,
		       "%s: cannot %s %" PRIu64 " bytes at offset %" PRIu64 ": it has only %" PRIu64 " bytes", d->name,
		       what, len, off, d->size);
}

static int with_name(const struct disk *d, int r, struct err *e)
{
	if (r < 0 && e)
		err_prefix(e, "%s", d->name);
	return r;
}

int disk_read(struct disk *d, void *p, size_t len, uint64_t off, struct err *e)
{
	int r = check_range(d, "read", len, off, e);

	if (r < 0 || !len)
		return r;
	return with_name(d, d->ops->read(d, p, len, off, e), e);
}

int disk_write(struct disk *d, const void *p, size_t len, uint64_t off, struct err *e)
{
	int r = check_range(d, "write", len, off, e);

	if (r < 0 || !len)
		return r;
	if (!d->ops->write)
		return err_set(e, -EROFS, "%s: it was opened for reading only", d->name);
	return with_name(d, d->ops->write(d, p, len, off, e), e);
}

static int write_zeros(struct disk *d, uint64_t len, uint64_t off, struct err *e)
{
	static const char zeros[65536];
	int r = 0;

	for (uint64_t done = 0; r == 0 && done < len; done += sizeof(zeros))
		r = d->ops->write(d, zeros, (size_t)MIN(len - done, (uint64_t)sizeof(zeros)), off + done, e);
	return r;
}

int disk_zero(struct disk *d, uint64_t len, uint64_t off, struct err *e)
{
	int r = check_range(d, "zero", len, off, e);

	if (r < 0 || !len)
		return r;
	if (!d->ops->write)
		return err_set(e, -EROFS, "%s: it was opened for reading only", d->name);
	return with_name(d, (d->ops->zero ? d->ops->zero : write_zeros)(d, len, off, e), e);
}

int disk_flush(struct disk *d, struct err *e)
{
	return d->ops->flush ? with_name(d, d->ops->flush(d, e), e) : 0;
}

int disk_same_size(struct disk *d, struct err *e)
{
	uint64_t now = 0;
	int r = d->ops->measure ? d->ops->measure(d, &now, e) : 0;

	if (r < 0 || !d->ops->measure || now == d->size)
		return r;
	return err_set(e, -EAGAIN,
		       "'%s' had %" PRIu64 " bytes when this began and has %" PRIu64
		       " now; begin again, and what is there already is not sent again",
		       d->name, d->size, now);
}

void disk_close(struct disk *d)
{
	if (d)
		d->ops->close(d);
}
