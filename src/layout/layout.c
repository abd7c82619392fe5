#include "layout/layout_int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "base/util.h"
#include "disk/disk.h"

void layout_free_all(struct layout *l)
{
	if (!l)
		return;
	for (size_t i = 0; i < l->nvolumes; i++)
		free(l->volumes[i].map);
	for (size_t i = 0; i < l->nwarnings; i++)
		free(l->warnings[i]);
	free(l->disks);
	free(l->volumes);
	free(l->free);
	free(l->warnings);
	free(l);
}

/* Room for one more element of `size` bytes behind n; doubles. */
static int grow(void *array, size_t n, size_t *cap, size_t size, struct err *e)
{
	size_t want = *cap ? *cap * 2 : 8;
	void *p;

	if (n < *cap)
		return 0;
	p = reallocarray(*(void **)array, want, size);
	if (!p)
		return err_nomem(e);
	*(void **)array = p;
	*cap = want;
	return 0;
}

int layout_warn(struct layout_build *b, struct err *e, const char *fmt, ...)
{
	char text[512];
	va_list ap;
	int r = grow(&b->l->warnings, b->l->nwarnings, &b->warnings_cap, sizeof(char *), e);

	if (r < 0)
		return r;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	b->l->warnings[b->l->nwarnings] = strdup(text);
	if (!b->l->warnings[b->l->nwarnings])
		return err_nomem(e);
	b->l->nwarnings++;
	return 0;
}

int layout_add_volume(struct layout_build *b, struct layout_volume **ret, struct err *e)
{
	int r;

	if (b->l->nvolumes >= LAYOUT_VOLUMES_MAX)
		return err_set(e, -E2BIG, "there are more than %u partitions and logical volumes", LAYOUT_VOLUMES_MAX);
	r = grow(&b->l->volumes, b->l->nvolumes, &b->volumes_cap, sizeof(struct layout_volume), e);
	if (r < 0)
		return r;
	*ret = &b->l->volumes[b->l->nvolumes++];
	**ret = (struct layout_volume){0};
	return 0;
}

int layout_add_extent(struct layout_volume *v, size_t *cap, size_t disk, uint64_t offset, uint64_t length,
		      struct err *e)
{
	struct layout_extent *last = v->nmap ? &v->map[v->nmap - 1] : NULL;
	int r;

	if (last && last->disk == disk && last->offset + last->length == offset) {
		last->length += length;
		return 0;
	}
	r = grow(&v->map, v->nmap, cap, sizeof(*v->map), e);
	if (r < 0)
		return r;
	last = v->nmap ? &v->map[v->nmap - 1] : NULL;
	v->map[v->nmap++] = (struct layout_extent){
	    .logical = last ? last->logical + last->length : 0, .length = length, .disk = disk, .offset = offset};
	return 0;
}

int layout_add_free(struct layout_build *b, size_t disk, uint64_t offset, uint64_t length, struct err *e)
{
	int r = grow(&b->l->free, b->l->nfree, &b->free_cap, sizeof(struct layout_free), e);

	if (r < 0)
		return r;
	b->l->free[b->l->nfree++] = (struct layout_free){.disk = disk, .offset = offset, .length = length};
	return 0;
}

int layout_add_partition(struct layout_build *b, size_t disk, unsigned number, uint64_t start, uint64_t count,
			 uint32_t sector, struct layout_volume **ret, struct err *e)
{
	uint64_t sectors = b->disks[disk]->size / sector;
	struct layout_volume *v;
	size_t cap = 0;
	int r = layout_add_volume(b, &v, e);

	if (r < 0)
		return r;
	v->kind = LAYOUT_PARTITION;
	v->disk = disk;
	v->number = number;
	snprintf(v->name, sizeof(v->name), "%u", number);
	*ret = v;
	if (!count || start >= sectors || count > sectors - start)
		return layout_warn(b, e, "partition %u of '%s' reaches beyond the end of the disk", number,
				   b->disks[disk]->name);
	v->linear = true;
	return layout_add_extent(v, &cap, disk, start * sector, count * sector, e);
}

void layout_guid(const uint8_t *p, char out[40])
{
	char hex[33];
	uint8_t g[16] = {p[3], p[2], p[1], p[0], p[5], p[4], p[7], p[6]};

	memcpy(g + 8, p + 8, 8);
	str_hex(g, 16, hex);
	snprintf(out, 40, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
}

static int add_whole_disk(struct layout_build *b, size_t disk, struct err *e)
{
	struct layout_volume *v;
	size_t cap = 0;
	int r;

	b->l->disks[disk].table = "none";
	if (!b->disks[disk]->size)
		return 0;
	r = layout_add_volume(b, &v, e);
	if (r < 0)
		return r;
	v->kind = LAYOUT_WHOLE_DISK;
	v->disk = disk;
	v->linear = true;
	snprintf(v->name, sizeof(v->name), "whole disk");
	return layout_add_extent(v, &cap, disk, 0, b->disks[disk]->size, e);
}

int layout_has_table(struct disk *d, bool *ret, struct err *e)
{
	enum mbr_verdict verdict;
	bool gpt = false;
	int r = mbr_look(d, &verdict, e);

	if (r >= 0)
		r = gpt_look(d, &gpt, e);
	*ret = r >= 0 && (verdict != MBR_NONE || gpt);
	return MIN(r, 0);
}

static int read_disk(struct layout_build *b, size_t disk, struct err *e)
{
	enum mbr_verdict verdict;
	bool gpt = false;
	int r = mbr_look(b->disks[disk], &verdict, e);

	if (r >= 0)
		r = gpt_look(b->disks[disk], &gpt, e);
	if (r < 0)
		return r;
	if (verdict == MBR_PROTECTIVE)
		return gpt_read(b, disk, e);
	if (gpt) {
		/* Linux goes by the protective MBR: whether this table means anything can't be told. */
		b->l->disks[disk].table = "gpt";
		return layout_warn(b, e, "'%s' has a GPT but no protective MBR: it is taken whole",
				   b->disks[disk]->name);
	}
	return verdict == MBR_TABLE ? mbr_read(b, disk, e) : add_whole_disk(b, disk, e);
}

struct piece {
	uint64_t start, end;
	size_t volume;
};

static int by_start(const void *a, const void *b)
{
	const struct piece *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

static int drop_pair(struct layout_build *b, size_t one, size_t two, struct err *e)
{
	struct layout_volume *v = &b->l->volumes[one], *w = &b->l->volumes[two];

	if (!v->linear && !w->linear)
		return 0;
	v->linear = w->linear = false;
	return layout_warn(b, e, "partitions %s and %s of '%s' overlap: both are taken whole", v->name, w->name,
			   b->disks[v->disk]->name);
}

/* Partitions of a disk that overlap can't both be believed: what one has free the other may use. */
static int drop_overlaps(struct layout_build *b, size_t disk, struct err *e)
{
	_cleanup_free_ struct piece *p = calloc(b->l->nvolumes + 1, sizeof(*p));
	size_t n = 0, longest = 0;
	int r = 0;

	if (!p)
		return err_nomem(e);
	for (size_t i = 0; i < b->l->nvolumes; i++) {
		const struct layout_volume *v = &b->l->volumes[i];

		if (v->disk == disk && v->nmap)
			p[n++] = (struct piece){v->map[0].offset, v->map[0].offset + v->map[0].length, i};
	}
	qsort(p, n, sizeof(*p), by_start);
	for (size_t i = 1; r >= 0 && i < n; i++) {
		if (p[i].start < p[longest].end)
			r = drop_pair(b, p[longest].volume, p[i].volume, e);
		if (p[i].end > p[longest].end)
			longest = i;
	}
	return r;
}

static int read_all(struct layout_build *b, struct err *e)
{
	for (size_t i = 0; i < b->l->ndisks; i++) {
		int r = read_disk(b, i, e);

		if (r >= 0)
			r = drop_overlaps(b, i, e);
		if (r < 0)
			return r;
	}
	b->l->ntable_warnings = b->l->nwarnings;
	return lvm_read(b, e);
}

int layout_read(struct disk *const *disks, size_t n, struct layout **ret, struct err *e)
{
	_cleanup_(layout_freep) struct layout *l = calloc(1, sizeof(*l));
	struct layout_build b = {.l = l, .disks = disks};
	int r;

	if (!l)
		return err_nomem(e);
	l->disks = calloc(n + 1, sizeof(*l->disks));
	if (!l->disks)
		return err_nomem(e);
	l->ndisks = n;
	r = read_all(&b, e);
	if (r < 0)
		return r;
	*ret = take_ptr(&l);
	return 0;
}
