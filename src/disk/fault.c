/* A disk with a bad spot, for tests and drills. */
#include "disk/disk.h"

#include <errno.h>
#include <inttypes.h>
#include <stdatomic.h>

#include "base/err.h"
#include "base/util.h"

struct fault {
	struct disk disk;
	struct disk *lower;
	uint64_t off, len;
	bool always;
	atomic_uint left;
};

/* Takes one failure from the rest, if there is one. */
static bool fails(struct fault *f)
{
	unsigned left = atomic_load(&f->left);

	while (left && !f->always)
		if (atomic_compare_exchange_weak(&f->left, &left, left - 1))
			return true;
	return f->always;
}

static int fault_read(struct disk *d, void *p, size_t len, uint64_t off, struct err *e)
{
	struct fault *f = (struct fault *)d;
	bool touches = f->len && off < f->off + f->len && f->off < off + len;

	if (touches && fails(f))
		return err_set(e, -EIO, "cannot read %zu bytes at offset %" PRIu64 ": failure on request", len, off);
	return disk_read(f->lower, p, len, off, e);
}

static int fault_write(struct disk *d, const void *p, size_t len, uint64_t off, struct err *e)
{
	return disk_write(((struct fault *)d)->lower, p, len, off, e);
}

static int fault_flush(struct disk *d, struct err *e)
{
	return disk_flush(((struct fault *)d)->lower, e);
}

static int fault_measure(struct disk *d, uint64_t *ret_size, struct err *e)
{
	struct disk *lower = ((struct fault *)d)->lower;

	*ret_size = lower->size;
	return lower->ops->measure ? lower->ops->measure(lower, ret_size, e) : 0;
}

static void fault_close(struct disk *d)
{
	free(d);
}

static const struct disk_ops fault_ops = {
    .read = fault_read, .write = fault_write, .flush = fault_flush, .measure = fault_measure, .close = fault_close};

int disk_fault_new(struct disk *lower, uint64_t bad_off, uint64_t bad_len, unsigned times, struct disk **ret,
		   struct err *e)
{
	struct fault *f;
	uint64_t end;

	if (util_add_overflows(bad_off, bad_len, &end))
		return err_set(e, -EINVAL, "the bad range at offset %" PRIu64 " is too long", bad_off);
	f = calloc(1, sizeof(*f));
	if (!f)
		return err_nomem(e);
	f->disk = *lower;
	f->disk.ops = &fault_ops;
	f->lower = lower;
	f->off = bad_off;
	f->len = bad_len;
	f->always = times == 0;
	atomic_init(&f->left, times);
	*ret = &f->disk;
	return 0;
}
