/*
 * XFS, versions 4 and 5: superblock, AGF and the by-block free space B+tree of each allocation group. Format: "XFS
 * Algorithms & Data Structures", 3rd edition. What the tree doesn't list is in use. An allocation group is believed
 * when the tree is ordered, whole, checksummed (version 5) and adds up to the AGF's count; else all of it counts as
 * used.
 */
#include "fs/fs_int.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/crc32.h"
#include "base/endian.h"
#include "base/err.h"
#include "base/util.h"
#include "disk/disk.h"
#include "fs/xfs_int.h"

#define SUPER_SIZE 512u /* the part that is read; its checksum covers a sector */
#define SECTOR_MAX 32768u
#define LEVELS_MAX 9
#define AGS_MAX    (1u << 20)

/* ftype, sparse inodes, meta_uuid, bigtime, large extent counters, exchange-range, parent pointers. Not: needs repair,
 * metadata directory, zoned. */
#define INCOMPAT_KNOWN  0x00efu
#define INCOMPAT_REPAIR 0x0010u
#define INCOMPAT_UUID   0x0004u
#define RO_COMPAT_KNOWN 0x000fu /* finobt, rmapbt, reflink, inobtcnt */

static int read_super(struct disk *d, uint8_t s[SUPER_SIZE], struct err *e)
{
	int r;

	if (d->size < SUPER_SIZE)
		return 0;
	r = disk_read(d, s, SUPER_SIZE, 0, e);
	return r < 0 ? r : !memcmp(s, "XFSB", 4);
}

static bool is_power_of_2(uint64_t v, uint64_t min, uint64_t max)
{
	return v >= min && v <= max && !(v & (v - 1));
}

/* The checksum at `at` (little-endian, counted as zero) over n bytes. */
static bool sum_is_right(const uint8_t *p, size_t n, size_t at)
{
	static const uint8_t zero[4];
	uint32_t c = crc32_castagnoli(~0u, p, at);

	c = crc32_castagnoli(c, zero, 4);
	c = crc32_castagnoli(c, p + at + 4, n - at - 4);
	return ~c == get_le32(p + at);
}

static int check_features(const uint8_t *s, struct err *e)
{
	unsigned version = get_be16(s + 100) & 0xf;
	uint32_t incompat = get_be32(s + 216), ro = get_be32(s + 212);

	if (version != 4 && version != 5)
		return fs_refuse(e, "the XFS superblock has version %u", version);
	if (s[126])
		return fs_refuse(e, "its XFS filesystem was not made to the end");
	if (get_be64(s + 16))
		return fs_refuse(e, "the XFS filesystem has a realtime section");
	if (get_be64(s + 48) == 0)
		return fs_refuse(e, "the XFS filesystem has an external log");
	if (version == 4)
		return 0;
	if (incompat & INCOMPAT_REPAIR)
		return fs_refuse(e, "the XFS filesystem needs repair (run xfs_repair)");
	if (incompat & ~INCOMPAT_KNOWN || ro & ~RO_COMPAT_KNOWN)
		return fs_refuse(e, "the XFS filesystem has features not known here (incompat 0x%x, ro_compat 0x%x)",
				 incompat & ~INCOMPAT_KNOWN, ro & ~RO_COMPAT_KNOWN);
	return 0;
}

static int check_super_sum(const struct xfs *x, struct err *e)
{
	_cleanup_free_ uint8_t *sector = malloc(x->sector_size);
	int r;

	if (!sector)
		return err_nomem(e);
	r = disk_read(x->d, sector, x->sector_size, 0, e);
	if (r < 0)
		return r;
	if (!sum_is_right(sector, x->sector_size, 224))
		return fs_refuse(e, "the checksum of the XFS superblock is wrong");
	return 0;
}

static int check_geometry(struct xfs *x, const uint8_t *s, struct err *e)
{
	uint64_t log = get_be64(s + 48), last;

	if (!is_power_of_2(x->block_size, 512, 65536) || 1u << (s[120] & 31) != x->block_size ||
	    !is_power_of_2(x->sector_size, 512, SECTOR_MAX) || x->sector_size > x->block_size ||
	    x->d->size < x->sector_size)
		return fs_refuse(e, "the XFS superblock has an impossible block or sector size");
	if (!x->ag_count || x->ag_count > AGS_MAX || x->ag_blocks < 16 || x->ag_blocks > 1u << 31 ||
	    x->blocks > x->d->size / x->block_size || util_div_up(x->blocks, x->ag_blocks) != x->ag_count)
		return fs_refuse(e, "the XFS superblock has an impossible number of blocks or allocation groups");
	if (x->ag_shift > 31 || UINT64_C(1) << x->ag_shift < x->ag_blocks)
		return fs_refuse(e, "the XFS superblock has impossible block numbers");
	x->log_ag = log >> x->ag_shift;
	x->log_block = log & ((UINT64_C(1) << x->ag_shift) - 1);
	last = x->log_ag * x->ag_blocks + x->log_block + x->log_blocks;
	if (x->log_ag >= x->ag_count || !x->log_blocks || x->log_block + x->log_blocks > x->ag_blocks ||
	    last > x->blocks)
		return fs_refuse(e, "the XFS superblock places its log outside the filesystem");
	return 0;
}

static int parse_super(struct xfs *x, const uint8_t *s, struct err *e)
{
	int r = check_features(s, e);

	if (r)
		return r;
	x->v5 = (get_be16(s + 100) & 0xf) == 5;
	x->block_size = get_be32(s + 4);
	x->sector_size = get_be16(s + 102);
	x->blocks = get_be64(s + 8);
	x->ag_blocks = get_be32(s + 84);
	x->ag_count = get_be32(s + 88);
	x->ag_shift = s[124];
	x->log_blocks = get_be32(s + 96);
	memcpy(x->uuid, s + (x->v5 && get_be32(s + 216) & INCOMPAT_UUID ? 248 : 32), 16);
	r = check_geometry(x, s, e);
	return r || !x->v5 ? r : check_super_sum(x, e);
}

static int xfs_probe(struct disk *d, struct fs_info *ret, struct err *e)
{
	struct xfs x = {.d = d};
	uint8_t s[SUPER_SIZE];
	const char *why;
	int r = read_super(d, s, e);

	if (r <= 0)
		return r;
	ret->type = "xfs";
	fs_uuid(s + 32, ret->uuid);
	fs_label(s + 108, 12, ret->label);
	ret->block_size = get_be32(s + 4);
	if (util_mul_overflows(get_be64(s + 8), ret->block_size, &ret->size))
		ret->size = UINT64_MAX;
	r = parse_super(&x, s, NULL);
	if (r == 0)
		r = xfs_log_is_clean(&x, &why, e);
	else
		r = r < 0 ? r : 0;
	ret->clean = r > 0;
	return r < 0 ? r : 1;
}

/* One allocation group while its tree is walked. */
struct walk {
	const struct xfs *x;
	uint32_t ag, length; /* blocks */
	uint32_t header;     /* blocks of superblock, AGF, AGI, AGFL */
	uint64_t next;       /* behind the last free extent */
	uint64_t free;       /* blocks, so far */
	uint8_t *blocks[LEVELS_MAX];
	fs_extent_fn fn;
	void *arg;
	const char *why;
	struct err *e;
};

static void walk_release(struct walk *w)
{
	for (size_t i = 0; i < LEVELS_MAX; i++)
		free(w->blocks[i]);
}

/* 1: the group is not to be believed. */
static int distrust(struct walk *w, const char *why)
{
	w->why = why;
	return 1;
}

static int report(const struct walk *w, uint64_t block, uint64_t n)
{
	return n ? w->fn(w->arg, xfs_byte(w->x, w->ag, block), n * w->x->block_size) : 0;
}

static int take_record(struct walk *w, uint32_t start, uint32_t count)
{
	const struct xfs *x = w->x;
	int r;

	if (start < w->header || start < w->next || !count || start >= w->length || count > w->length - start)
		return distrust(w, "its free extents are out of order or out of bounds");
	if (w->ag == x->log_ag && start < x->log_block + x->log_blocks && x->log_block < (uint64_t)start + count)
		return distrust(w, "its free extents reach into the log");
	r = report(w, w->next, start - w->next);
	w->next = (uint64_t)start + count;
	w->free += count;
	return r;
}

static size_t header_size(const struct xfs *x)
{
	return x->v5 ? 56 : 16;
}

static bool block_is_sound(const struct walk *w, const uint8_t *p, uint32_t block, unsigned level)
{
	const struct xfs *x = w->x;

	if (memcmp(p, x->v5 ? "AB3B" : "ABTB", 4) || get_be16(p + 4) != level)
		return false;
	if (!x->v5)
		return true;
	return sum_is_right(p, x->block_size, 52) && get_be32(p + 48) == w->ag && !memcmp(p + 32, x->uuid, 16) &&
	       get_be64(p + 16) == xfs_byte(x, w->ag, block) / 512;
}

static int walk_leaf(struct walk *w, const uint8_t *p, unsigned n)
{
	for (unsigned i = 0; i < n; i++, p += 8) {
		int r = take_record(w, get_be32(p), get_be32(p + 4));

		if (r)
			return r;
	}
	return 0;
}

static int load(struct walk *w, uint32_t block, unsigned level)
{
	const struct xfs *x = w->x;
	int r;

	if (block < w->header || block >= w->length)
		return distrust(w, "its free space tree points outside the group");
	if (!w->blocks[level])
		w->blocks[level] = malloc(x->block_size);
	if (!w->blocks[level])
		return err_nomem(w->e);
	r = disk_read(x->d, w->blocks[level], x->block_size, xfs_byte(x, w->ag, block), w->e);
	if (r < 0)
		return r;
	if (!block_is_sound(w, w->blocks[level], block, level))
		return distrust(w, "a block of its free space tree is damaged");
	return 0;
}

/* Each leaf below the root brings at least one record, and records must rise: so a loop can't last. */
static int walk_tree(struct walk *w, uint32_t block, unsigned level, bool root)
{
	size_t room, hdr = header_size(w->x);
	const uint8_t *p;
	unsigned n;
	int r = load(w, block, level);

	if (r)
		return r;
	p = w->blocks[level];
	n = get_be16(p + 6);
	room = (w->x->block_size - hdr) / (level ? 12 : 8);
	if (n > room || (!n && (level || !root)))
		return distrust(w, "a block of its free space tree has an impossible number of records");
	if (level == 0)
		return walk_leaf(w, p + hdr, n);
	for (unsigned i = 0; i < n; i++) {
		uint64_t before = w->free;

		r = walk_tree(w, get_be32(p + hdr + room * 8 + (size_t)i * 4), level - 1, false);
		if (!r && w->free == before)
			r = distrust(w, "a block of its free space tree has no records");
		if (r)
			return r;
	}
	return 0;
}

static int check_agf(struct walk *w, const uint8_t *p)
{
	const struct xfs *x = w->x;

	if (memcmp(p, "XAGF", 4) || get_be32(p + 4) != 1)
		return distrust(w, "its header (AGF) is not one");
	if (x->v5 && (!sum_is_right(p, x->sector_size, 216) || memcmp(p + 64, x->uuid, 16)))
		return distrust(w, "the checksum of its header (AGF) is wrong");
	if (get_be32(p + 8) != w->ag || get_be32(p + 12) != w->length)
		return distrust(w, "its header (AGF) has another number or length");
	if (!get_be32(p + 28) || get_be32(p + 28) > LEVELS_MAX)
		return distrust(w, "its free space tree has an impossible height");
	return 0;
}

static int walk_group(struct walk *w)
{
	const struct xfs *x = w->x;
	_cleanup_free_ uint8_t *agf = malloc(x->sector_size);
	int r;

	if (!agf)
		return err_nomem(w->e);
	if (w->length <= w->header)
		return distrust(w, "it is too short");
	r = disk_read(x->d, agf, x->sector_size, xfs_byte(x, w->ag, 0) + x->sector_size, w->e);
	if (r >= 0)
		r = check_agf(w, agf);
	if (!r)
		r = walk_tree(w, get_be32(agf + 16), get_be32(agf + 28) - 1, true);
	if (r)
		return r;
	/* The AGF's longest extent is a hint that mkfs itself gets wrong around the log: not compared. */
	if (w->free != get_be32(agf + 52))
		return distrust(w, "its free extents and its count of free blocks differ");
	return report(w, w->next, w->length - w->next);
}

static int used_group(const struct xfs *x, uint32_t ag, fs_extent_fn fn, void *arg, struct fs_usage *usage,
		      struct err *e)
{
	_cleanup_(walk_release) struct walk w = {.x = x, .ag = ag, .fn = fn, .arg = arg, .e = e};
	int r;

	w.length = (uint32_t)MIN((uint64_t)x->ag_blocks, x->blocks - (uint64_t)ag * x->ag_blocks);
	w.header = (uint32_t)util_div_up(4 * (uint64_t)x->sector_size, x->block_size);
	r = walk_group(&w);
	if (r <= 0)
		return r;
	fs_whole(usage, "allocation group %" PRIu32 ": %s", ag, w.why);
	return report(&w, 0, w.length);
}

static int xfs_used(struct disk *d, unsigned flags, fs_extent_fn fn, void *arg, struct fs_usage *ret, struct err *e)
{
	struct xfs x = {.d = d};
	uint8_t s[SUPER_SIZE];
	const char *why;
	int r = read_super(d, s, e);

	if (r < 0)
		return r;
	r = r ? parse_super(&x, s, e) : fs_refuse(e, "the XFS superblock has gone");
	if (r)
		return r;
	r = flags & FS_LIVE ? 1 : xfs_log_is_clean(&x, &why, e);
	if (r < 0)
		return r;
	if (r == 0)
		return fs_refuse(e, "%s", why);
	ret->parts = x.ag_count;
	r = 0;
	for (uint32_t ag = 0; !r && ag < x.ag_count; ag++)
		r = used_group(&x, ag, fn, arg, ret, e);
	return r;
}

const struct fs_format fs_xfs = {.probe = xfs_probe, .used = xfs_used};
