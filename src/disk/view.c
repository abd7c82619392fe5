/* Logical bytes put together from ranges of other disks: a partition, a logical volume. */
#include "disk/disk.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/util.h"

struct view {
	struct disk disk;
	size_t n;
	struct disk_extent map[];
};

/* The extent that holds `off`; the caller has checked that off is within the disk. */
static const struct disk_extent *find(const struct view *v, uint64_t off)
{
	size_t lo = 0, hi = v->n;

	while (hi - lo > 1) {
		size_t mid = lo + (hi - lo) / 2;

		if (v->map[mid].logical <= off)
			lo = mid;
		else
			hi = mid;
	}
	return &v->map[lo];
}

static int view_read(struct disk *d, void *p, size_t len, uint64_t off, struct err *e)
{
	const struct disk_extent *x = find((struct view *)d, off);
	uint8_t *out = p;

	for (; len; x++) {
		size_t n = MIN(len, x->length - (off - x->logical));
		int r = disk_read(x->lower, out, n, x->offset + (off - x->logical), e);

		if (r < 0)
			return r;
		out += n;
		off += n;
		len -= n;
	}
	return 0;
}

static int view_write(struct disk *d, const void *p, size_t len, uint64_t off, struct err *e)
{
	const struct disk_extent *x = find((struct view *)d, off);
	const uint8_t *in = p;

	for (; len; x++) {
		size_t n = MIN(len, x->length - (off - x->logical));
		int r = disk_write(x->lower, in, n, x->offset + (off - x->logical), e);

		if (r < 0)
			return r;
		in += n;
		off += n;
		len -= n;
	}
	return 0;
}

static int view_flush(struct disk *d, struct err *e)
{
	struct view *v = (struct view *)d;

	for (size_t i = 0; i < v->n; i++) {
		int r = i && v->map[i].lower == v->map[i - 1].lower ? 0 : disk_flush(v->map[i].lower, e);

		if (r < 0)
			return r;
	}
	return 0;
}

static void view_close(struct disk *d)
{
	free(d);
}

static const struct disk_ops view_ops = {
    .read = view_read, .write = view_write, .flush = view_flush, .close = view_close};

static int check_map(const char *name, const struct disk_extent *map, size_t n, uint64_t *ret_size, struct err *e)
{
	uint64_t at = 0;

	for (size_t i = 0; i < n; i++) {
		const struct disk_extent *x = &map[i];

		if (x->logical != at || !x->length || util_add_overflows(at, x->length, &at))
			return err_set(e, -EINVAL, "%s: extent %zu of its mapping does not follow the one before", name,
				       i);
		if (x->offset > x->lower->size || x->length > x->lower->size - x->offset)
			return err_set(e, -ERANGE, "%s: extent %zu of its mapping is outside '%s'", name, i,
				       x->lower->name);
	}
	*ret_size = at;
	return 0;
}

int disk_view_new(const char *name, const struct disk_extent *map, size_t n, struct disk **ret, struct err *e)
{
	struct view *v;
	uint64_t size = 0;
	int r = check_map(name, map, n, &size, e);

	if (r < 0)
		return r;
	v = calloc(1, sizeof(*v) + n * sizeof(*map));
	if (!v)
		return err_nomem(e);
	v->disk = (struct disk){.ops = &view_ops, .size = size, .sector = 512};
	snprintf(v->disk.name, sizeof(v->disk.name), "%s", name);
	for (size_t i = 0; i < n; i++) {
		v->map[i] = map[i];
		v->disk.sector = MAX(v->disk.sector, map[i].lower->sector);
	}
	v->n = n;
	*ret = &v->disk;
	return 0;
}
