/* The GUID partition table: UEFI specification 2.10, chapter 5. */
#include "layout/layout_int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/crc32.h"
#include "base/endian.h"
#include "base/err.h"
#include "base/util.h"
#include "disk/disk.h"

#define HEADER_MIN  92u
#define ENTRY_MIN   128u
#define ENTRY_MAX   4096u
#define ENTRIES_MAX 4096u
#define TABLE_MAX   (1u << 20)

struct gpt {
	uint32_t sector;
	uint64_t sectors;     /* of the disk */
	uint64_t first, last; /* usable */
	uint8_t guid[16];
	uint32_t count, entry; /* entries, bytes of one */
	uint8_t *table;
};

static void gpt_release(struct gpt *g)
{
	free(g->table);
	*g = (struct gpt){0};
}

static int read_table(struct disk *d, struct gpt *g, uint64_t lba, uint32_t sum, struct err *e)
{
	uint64_t bytes = (uint64_t)g->count * g->entry;
	int r;

	if (g->count > ENTRIES_MAX || g->entry < ENTRY_MIN || g->entry > ENTRY_MAX || g->entry & (g->entry - 1) ||
	    bytes > TABLE_MAX || lba >= g->sectors || util_div_up(bytes, g->sector) > g->sectors - lba)
		return 0;
	g->table = malloc(bytes ? bytes : 1);
	if (!g->table)
		return err_nomem(e);
	r = disk_read(d, g->table, bytes, lba * g->sector, e);
	return r < 0 ? r : ~crc32(~0u, g->table, bytes) == sum;
}

/* 1 and *ret when a header that is right in every way lies at the sector, with its table. */
static int read_header(struct disk *d, uint32_t sector, uint64_t lba, struct gpt *ret, struct err *e)
{
	_cleanup_(gpt_release) struct gpt g = {.sector = sector, .sectors = d->size / sector};
	_cleanup_free_ uint8_t *h = malloc(sector);
	uint32_t size, sum;
	int r;

	if (!h)
		return err_nomem(e);
	if (lba >= g.sectors)
		return 0;
	r = disk_read(d, h, sector, lba * sector, e);
	if (r < 0)
		return r;
	size = get_le32(h + 12);
	sum = get_le32(h + 16);
	if (memcmp(h, "EFI PART", 8) || get_le32(h + 8) != 0x00010000 || size < HEADER_MIN || size > sector)
		return 0;
	put_le32(h + 16, 0);
	if (~crc32(~0u, h, size) != sum || get_le64(h + 24) != lba)
		return 0;
	g.first = get_le64(h + 40);
	g.last = get_le64(h + 48);
	memcpy(g.guid, h + 56, 16);
	g.count = get_le32(h + 80);
	g.entry = get_le32(h + 84);
	if (g.first > g.last)
		return 0;
	r = read_table(d, &g, get_le64(h + 72), get_le32(h + 88), e);
	if (r <= 0)
		return r;
	*ret = g;
	g.table = NULL;
	return 1;
}

/* The disk's own sector size first; an image of a disk may have come from one with another. */
static void sector_sizes(const struct disk *d, uint32_t out[3])
{
	out[0] = d->sector;
	out[1] = d->sector == 512 ? 4096 : 512;
	out[2] = d->sector == 512 || d->sector == 4096 ? 0 : 4096;
}

int gpt_look(struct disk *d, bool *ret, struct err *e)
{
	uint32_t sizes[3];

	*ret = false;
	sector_sizes(d, sizes);
	for (size_t i = 0; i < ARRAY_SIZE(sizes) && sizes[i] && !*ret; i++) {
		_cleanup_(gpt_release) struct gpt g = {0};
		int r = read_header(d, sizes[i], 1, &g, e);

		if (r < 0)
			return r;
		*ret = r > 0;
	}
	return 0;
}

/* The header at the start, or with a warning the one at the end. 0 when neither is right. */
static int find(struct layout_build *b, size_t disk, struct gpt *ret, struct err *e)
{
	struct disk *d = b->disks[disk];
	uint32_t sizes[3];

	sector_sizes(d, sizes);
	for (size_t i = 0; i < ARRAY_SIZE(sizes) && sizes[i]; i++) {
		int r = read_header(d, sizes[i], 1, ret, e);

		if (r)
			return r;
	}
	for (size_t i = 0; i < ARRAY_SIZE(sizes) && sizes[i]; i++) {
		int r = d->size < sizes[i] ? 0 : read_header(d, sizes[i], d->size / sizes[i] - 1, ret, e);

		if (r > 0)
			r = layout_warn(b, e, "the GPT at the start of '%s' is damaged: the copy at the end was used",
					d->name)
				?: 1;
		if (r)
			return r;
	}
	return 0;
}

static int add_entry(struct layout_build *b, size_t disk, const struct gpt *g, uint32_t i, struct err *e)
{
	static const uint8_t unused[16];
	const uint8_t *p = g->table + (size_t)i * g->entry;
	uint64_t first = get_le64(p + 32), last = get_le64(p + 40);
	struct layout_volume *v;
	int r;

	if (!memcmp(p, unused, 16))
		return 0;
	/* An impossible range becomes an empty one, which is warned about. */
	r = layout_add_partition(b, disk, i + 1, first, last < first || last >= g->sectors ? 0 : last - first + 1,
				 g->sector, &v, e);
	if (r < 0)
		return r;
	layout_guid(p, v->type);
	layout_guid(p + 16, v->uuid);
	if (v->linear && (first < g->first || last > g->last)) {
		v->linear = false;
		return layout_warn(b, e,
				   "partition %u of '%s' lies outside the range its GPT allows: it is taken whole",
				   i + 1, b->disks[disk]->name);
	}
	return 0;
}

int gpt_read(struct layout_build *b, size_t disk, struct err *e)
{
	_cleanup_(gpt_release) struct gpt g = {0};
	int r = find(b, disk, &g, e);

	b->l->disks[disk].table = "gpt";
	if (r < 0)
		return r;
	if (r == 0)
		return layout_warn(b, e, "both copies of the GPT of '%s' are damaged: it is taken whole",
				   b->disks[disk]->name);
	layout_guid(g.guid, b->l->disks[disk].uuid);
	for (uint32_t i = 0; r >= 0 && i < g.count; i++)
		r = add_entry(b, disk, &g, i, e);
	return r < 0 ? r : 0;
}
