/*
 * ext2, ext3 and ext4: superblock, group descriptors and block bitmaps. Format: the Linux kernel's
 * Documentation/filesystems/ext4. A group is believed when its descriptor's checksum, its bitmap's checksum (where the
 * filesystem has them) and its count of free clusters agree; else all of it counts as used.
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

#define SUPER_OFFSET 1024u
#define SUPER_SIZE   1024u

#define COMPAT_HAS_JOURNAL   0x0004u
#define COMPAT_SPARSE_SUPER2 0x0200u
#define INCOMPAT_RECOVER     0x0004u
#define INCOMPAT_JOURNAL_DEV 0x0008u
#define INCOMPAT_META_BG     0x0010u
#define INCOMPAT_64BIT       0x0080u
#define INCOMPAT_CSUM_SEED   0x2000u
/* filetype, recover, meta_bg, extents, 64bit, mmp, flex_bg, ea_inode, dirdata, csum_seed, largedir, inline_data,
 * encrypt, casefold: none but those named above changes where blocks are counted. */
#define INCOMPAT_KNOWN   0x3f7d6u
#define RO_SPARSE_SUPER  0x0001u
#define RO_GDT_CSUM      0x0010u
#define RO_BIGALLOC      0x0200u
#define RO_METADATA_CSUM 0x0400u
/* sparse_super, large_file, btree_dir, huge_file, gdt_csum, dir_nlink, extra_isize, quota, bigalloc, metadata_csum,
 * readonly, project, shared_blocks, verity, orphan_present. */
#define RO_KNOWN 0x1f77fu

#define STATE_VALID     0x0001u
#define STATE_ERROR     0x0002u
#define BG_BLOCK_UNINIT 0x0002u

#define GROUPS_MAX (UINT64_C(1) << 26) /* 8 PiB of 4 KiB blocks */
#define WINDOW     (1u << 18)          /* bytes read at once: bitmaps of a flex_bg lie together */

struct ext4 {
	struct disk *d;
	uint32_t compat, incompat, ro;
	uint32_t block_size;
	uint32_t ratio; /* blocks per cluster; 1 without bigalloc */
	uint64_t blocks, groups;
	uint32_t first_block, blocks_per_group, clusters_per_group;
	uint32_t desc_size, desc_per_block, first_meta_bg, reserved_gdt;
	uint64_t gdt_blocks, itable_blocks;
	uint32_t backup_bgs[2];
	uint32_t csum_seed;
	uint16_t gdt_seed; /* CRC-16 of the UUID */
	uint8_t *gdt;      /* groups * desc_size bytes, padded to whole blocks */
	uint8_t *window;   /* WINDOW bytes of the disk from window_off, or fewer */
	uint64_t window_off;
	size_t window_len;
	fs_extent_fn fn;
	void *arg;
	struct fs_usage *usage;
};

static void ext4_release(struct ext4 *x)
{
	free(x->gdt);
	free(x->window);
}

struct group {
	uint64_t number;
	const uint8_t *desc;
	uint64_t first;  /* block */
	uint32_t blocks; /* the last group may be short */
	uint32_t clusters;
	uint64_t bitmap, inode_bitmap, itable;
	uint32_t free; /* clusters, as the descriptor says */
	uint16_t flags;
};

static int read_super(struct disk *d, uint8_t s[SUPER_SIZE], struct err *e)
{
	int r;

	if (d->size < SUPER_OFFSET + SUPER_SIZE)
		return 0;
	r = disk_read(d, s, SUPER_SIZE, SUPER_OFFSET, e);
	return r < 0 ? r : get_le16(s + 0x38) == 0xef53;
}

static uint64_t count_blocks(const uint8_t *s)
{
	uint64_t n = get_le32(s + 0x04);

	if (get_le32(s + 0x60) & INCOMPAT_64BIT)
		n |= (uint64_t)get_le32(s + 0x150) << 32;
	return n;
}

/*
 * Nothing to replay? Freezing flushes the journal and clears the flag. Without a journal only a clean unmount says so.
 */
static bool is_clean(const uint8_t *s)
{
	if (get_le32(s + 0x5c) & COMPAT_HAS_JOURNAL)
		return !(get_le32(s + 0x60) & INCOMPAT_RECOVER);
	return get_le16(s + 0x3a) & STATE_VALID;
}

static const char *name_of(const uint8_t *s)
{
	uint32_t incompat = get_le32(s + 0x60), ro = get_le32(s + 0x64);

	if (incompat & INCOMPAT_JOURNAL_DEV)
		return "jbd";
	if (incompat & ~0x16u ||
	    ro & ~0x7u) /* more than filetype, recover, meta_bg; sparse_super, large_file, btree_dir */
		return "ext4";
	return get_le32(s + 0x5c) & COMPAT_HAS_JOURNAL ? "ext3" : "ext2";
}

static int ext4_probe(struct disk *d, struct fs_info *ret, struct err *e)
{
	uint8_t s[SUPER_SIZE];
	int r = read_super(d, s, e);

	if (r <= 0)
		return r;
	ret->type = name_of(s);
	fs_uuid(s + 0x68, ret->uuid);
	fs_label(s + 0x78, 16, ret->label);
	ret->clean = is_clean(s);
	if (get_le32(s + 0x18) <= 6) {
		ret->block_size = UINT64_C(1024) << get_le32(s + 0x18);
		if (util_mul_overflows(count_blocks(s), ret->block_size, &ret->size))
			ret->size = UINT64_MAX;
	}
	return 1;
}

static int check_features(const struct ext4 *x, const uint8_t *s, struct err *e)
{
	if (get_le32(s + 0x4c) > 1)
		return fs_refuse(e, "the ext4 superblock has revision %u", get_le32(s + 0x4c));
	if (x->incompat & INCOMPAT_JOURNAL_DEV)
		return fs_refuse(e, "it is the journal of another filesystem");
	if (x->incompat & ~INCOMPAT_KNOWN || x->ro & ~RO_KNOWN)
		return fs_refuse(e, "the ext4 filesystem has features not known here (incompat 0x%x, ro_compat 0x%x)",
				 x->incompat & ~INCOMPAT_KNOWN, x->ro & ~RO_KNOWN);
	if (x->ro & RO_METADATA_CSUM && crc32_castagnoli(~0u, s, 0x3fc) != get_le32(s + 0x3fc))
		return fs_refuse(e, "the checksum of the ext4 superblock is wrong");
	return 0;
}

/* Sizes that everything else is computed from. */
static int parse_geometry(struct ext4 *x, const uint8_t *s, struct err *e)
{
	uint32_t log_block = get_le32(s + 0x18), log_cluster = get_le32(s + 0x1c);
	bool bigalloc = x->ro & RO_BIGALLOC, wide = x->incompat & INCOMPAT_64BIT;
	uint64_t inodes = get_le32(s + 0x28), inode_size = get_le32(s + 0x4c) ? get_le16(s + 0x58) : 128;

	if (log_block > 6 || (bigalloc && (log_cluster < log_block || log_cluster - log_block > 20)))
		return fs_refuse(e, "the ext4 superblock has an impossible block or cluster size");
	x->block_size = 1024u << log_block;
	x->ratio = bigalloc ? 1u << (log_cluster - log_block) : 1;
	x->blocks = count_blocks(s);
	x->first_block = get_le32(s + 0x14);
	x->blocks_per_group = get_le32(s + 0x20);
	x->clusters_per_group = bigalloc ? get_le32(s + 0x24) : x->blocks_per_group;
	x->desc_size = wide ? get_le16(s + 0xfe) : 32;
	if (x->desc_size < (wide ? 64u : 32u) || x->desc_size > 1024 || x->desc_size & (x->desc_size - 1))
		return fs_refuse(e, "the ext4 superblock has an impossible group descriptor size of %u", x->desc_size);
	if (x->first_block > 1 || (x->first_block == 1 && x->block_size != 1024) ||
	    (x->first_block == 0 && x->block_size == 1024 && !bigalloc) || x->blocks <= x->first_block)
		return fs_refuse(e, "the ext4 superblock has an impossible first block or number of blocks");
	if (!x->clusters_per_group || x->clusters_per_group > 8 * x->block_size || x->clusters_per_group % 8 ||
	    (uint64_t)x->clusters_per_group * x->ratio != x->blocks_per_group)
		return fs_refuse(e, "the ext4 superblock has an impossible number of blocks per group");
	if (inode_size < 128 || inode_size > x->block_size || inode_size & (inode_size - 1) || !inodes ||
	    inodes > 8 * (uint64_t)x->block_size)
		return fs_refuse(e, "the ext4 superblock has an impossible inode size or number");
	x->itable_blocks = util_div_up(inodes * inode_size, x->block_size);
	return 0;
}

static int parse_super(struct ext4 *x, const uint8_t *s, unsigned flags, struct err *e)
{
	int r;

	x->compat = get_le32(s + 0x5c);
	x->incompat = get_le32(s + 0x60);
	x->ro = get_le32(s + 0x64);
	if (!get_le32(s + 0x4c)) /* revision 0 has no features */
		x->compat = x->incompat = x->ro = 0;
	r = check_features(x, s, e);
	if (!r)
		r = parse_geometry(x, s, e);
	if (r)
		return r;
	if (get_le16(s + 0x3a) & STATE_ERROR)
		return fs_refuse(e, "the kernel has found errors in it (repair it with e2fsck)");
	if (!(flags & FS_LIVE) && !is_clean(s))
		return fs_refuse(e, "it is neither frozen nor cleanly unmounted: its journal has to be replayed first");
	if (x->blocks > x->d->size / x->block_size)
		return fs_refuse(e, "the ext4 filesystem is larger than what it lies on");
	x->groups = util_div_up(x->blocks - x->first_block, x->blocks_per_group);
	if (x->groups > GROUPS_MAX)
		return fs_refuse(e, "the ext4 filesystem has %" PRIu64 " block groups, more than is supported",
				 x->groups);
	x->desc_per_block = x->block_size / x->desc_size;
	x->gdt_blocks = util_div_up(x->groups, x->desc_per_block);
	x->first_meta_bg = x->incompat & INCOMPAT_META_BG ? get_le32(s + 0x104) : 0;
	if (x->first_meta_bg > x->gdt_blocks)
		return fs_refuse(e, "the ext4 superblock has an impossible first meta block group");
	x->reserved_gdt = get_le16(s + 0xce);
	x->backup_bgs[0] = get_le32(s + 0x24c);
	x->backup_bgs[1] = get_le32(s + 0x250);
	x->csum_seed = x->incompat & INCOMPAT_CSUM_SEED ? get_le32(s + 0x270) : crc32_castagnoli(~0u, s + 0x68, 16);
	x->gdt_seed = crc16(0xffff, s + 0x68, 16);
	return 0;
}

static bool is_power_of(uint64_t n, uint64_t base)
{
	while (n % base == 0)
		n /= base;
	return n == 1;
}

static bool has_super(const struct ext4 *x, uint64_t group)
{
	if (group == 0)
		return true;
	if (x->compat & COMPAT_SPARSE_SUPER2)
		return group == x->backup_bgs[0] || group == x->backup_bgs[1];
	if (group == 1 || !(x->ro & RO_SPARSE_SUPER))
		return true;
	return group % 2 && (is_power_of(group, 3) || is_power_of(group, 5) || is_power_of(group, 7));
}

static bool is_meta_bg(const struct ext4 *x, uint64_t gdt_block)
{
	return x->incompat & INCOMPAT_META_BG && gdt_block >= x->first_meta_bg;
}

static uint64_t group_first(const struct ext4 *x, uint64_t group)
{
	return x->first_block + group * x->blocks_per_group;
}

/* Where block i of the group descriptor table lies. */
static uint64_t gdt_location(const struct ext4 *x, uint64_t i)
{
	uint64_t group = i * x->desc_per_block;
	unsigned skip;

	if (!is_meta_bg(x, i))
		return (x->block_size == 1024 ? 1 : 0) + 1 + i;
	skip = has_super(x, group);
	if (x->block_size == 1024 && i == 0 && x->first_block == 0)
		skip++;
	return group_first(x, group) + skip;
}

static int read_blocks(struct ext4 *x, void *p, uint64_t block, uint64_t n, struct err *e)
{
	if (block >= x->blocks || n > x->blocks - block)
		return fs_refuse(e, "the ext4 group descriptors lie outside the filesystem");
	return disk_read(x->d, p, n * x->block_size, block * x->block_size, e);
}

/* Runs of descriptor blocks that follow each other are read at once, up to 1 MiB. */
static int read_gdt(struct ext4 *x, struct err *e)
{
	uint64_t max = MAX(MIB / x->block_size, UINT64_C(1));

	x->gdt = calloc(x->gdt_blocks, x->block_size);
	x->window = malloc(WINDOW);
	if (!x->gdt || !x->window)
		return err_nomem(e);
	for (uint64_t i = 0, n; i < x->gdt_blocks; i += n) {
		uint64_t at = gdt_location(x, i);
		int r;

		for (n = 1; n < max && i + n < x->gdt_blocks && gdt_location(x, i + n) == at + n;)
			n++;
		r = read_blocks(x, x->gdt + i * x->block_size, at, n, e);
		if (r)
			return r;
	}
	return 0;
}

static uint64_t desc_u64(const struct ext4 *x, const uint8_t *desc, unsigned lo, unsigned hi)
{
	uint64_t v = get_le32(desc + lo);

	return x->desc_size >= 64 ? v | (uint64_t)get_le32(desc + hi) << 32 : v;
}

static struct group get_group(const struct ext4 *x, uint64_t number)
{
	const uint8_t *desc = x->gdt + number * x->desc_size;
	struct group g = {.number = number, .desc = desc, .first = group_first(x, number)};

	g.blocks = (uint32_t)MIN((uint64_t)x->blocks_per_group, x->blocks - g.first);
	g.clusters = (uint32_t)util_div_up(g.blocks, x->ratio);
	g.bitmap = desc_u64(x, desc, 0x00, 0x20);
	g.inode_bitmap = desc_u64(x, desc, 0x04, 0x24);
	g.itable = desc_u64(x, desc, 0x08, 0x28);
	g.free = get_le16(desc + 0x0c);
	if (x->desc_size >= 64)
		g.free |= (uint32_t)get_le16(desc + 0x2c) << 16;
	/* Only a checksum protects the flags; a filesystem without has none. */
	g.flags = x->ro & (RO_GDT_CSUM | RO_METADATA_CSUM) ? get_le16(desc + 0x12) : 0;
	return g;
}

static bool desc_is_sound(const struct ext4 *x, const struct group *g)
{
	uint16_t want = get_le16(g->desc + 0x1e);
	uint8_t number[4], zero[2] = {0};

	put_le32(number, (uint32_t)g->number);
	if (x->ro & RO_METADATA_CSUM) {
		uint32_t c = crc32_castagnoli(crc32_castagnoli(x->csum_seed, number, 4), g->desc, 0x1e);

		c = crc32_castagnoli(c, zero, 2);
		return (uint16_t)crc32_castagnoli(c, g->desc + 0x20, x->desc_size - 0x20) == want;
	}
	if (x->ro & RO_GDT_CSUM) {
		uint16_t c = crc16(crc16(x->gdt_seed, number, 4), g->desc, 0x1e);

		return crc16(c, g->desc + 0x20, x->desc_size - 0x20) == want;
	}
	return true;
}

static bool bitmap_is_sound(const struct ext4 *x, const struct group *g, const uint8_t *bits)
{
	uint32_t sum;

	if (!(x->ro & RO_METADATA_CSUM))
		return true;
	sum = crc32_castagnoli(x->csum_seed, bits, x->clusters_per_group / 8);
	if (get_le16(g->desc + 0x18) != (sum & 0xffff))
		return false;
	return x->desc_size < 64 || get_le16(g->desc + 0x38) == sum >> 16;
}

static bool within(const struct ext4 *x, uint64_t block, uint64_t n)
{
	return block > x->first_block && block < x->blocks && n <= x->blocks - block;
}

/* The group's own metadata, which must be used whatever its bitmap says. */
static bool places_are_sound(const struct ext4 *x, const struct group *g)
{
	return within(x, g->bitmap, 1) && within(x, g->inode_bitmap, 1) && within(x, g->itable, x->itable_blocks);
}

static void set_blocks(const struct ext4 *x, const struct group *g, uint8_t *bits, uint64_t block, uint64_t n)
{
	uint64_t first = MAX(block, g->first), end = MIN(block + n, g->first + g->blocks);

	for (; first < end; first++) {
		uint64_t bit = (first - g->first) / x->ratio;

		bits[bit / 8] |= (uint8_t)(1u << (bit % 8));
	}
}

/* Blocks at the start of a group for superblock and descriptors. */
static uint64_t base_blocks(const struct ext4 *x, uint64_t group)
{
	uint64_t gdt_block = group / x->desc_per_block, in = group % x->desc_per_block, n = has_super(x, group);

	if (is_meta_bg(x, gdt_block))
		return n + (in == 0 || in == 1 || in == x->desc_per_block - 1);
	if (!n)
		return 0;
	return 1 + (x->incompat & INCOMPAT_META_BG ? x->first_meta_bg : x->gdt_blocks) + x->reserved_gdt;
}

/* The bitmap of a group that was never written: only metadata is in it. */
static void make_bitmap(const struct ext4 *x, const struct group *g, uint8_t *bits)
{
	memset(bits, 0, x->block_size);
	set_blocks(x, g, bits, g->first, base_blocks(x, g->number));
	set_blocks(x, g, bits, g->bitmap, 1);
	set_blocks(x, g, bits, g->inode_bitmap, 1);
	set_blocks(x, g, bits, g->itable, x->itable_blocks);
}

static uint32_t count_free(const uint8_t *bits, uint32_t n)
{
	uint32_t used = 0, i = 0;

	for (; i + 64 <= n; i += 64)
		used += (uint32_t)__builtin_popcountll(get_le64(bits + i / 8));
	for (; i < n; i++)
		used += bits[i / 8] >> (i % 8) & 1;
	return n - used;
}

/* One block through the window. The pointer is good until the next call. */
static int peek_block(struct ext4 *x, uint64_t block, const uint8_t **ret, struct err *e)
{
	uint64_t off = block * x->block_size;

	if (!x->window_len || off < x->window_off || off + x->block_size > x->window_off + x->window_len) {
		size_t len = (size_t)MIN((uint64_t)WINDOW, x->blocks * x->block_size - off);
		int r;

		x->window_len = 0;
		r = disk_read(x->d, x->window, len, off, e);
		if (r < 0)
			return r;
		x->window_off = off;
		x->window_len = len;
	}
	*ret = x->window + (off - x->window_off);
	return 0;
}

static int report(const struct ext4 *x, uint64_t block, uint64_t n)
{
	return x->fn(x->arg, block * x->block_size, n * x->block_size);
}

static int report_bitmap(const struct ext4 *x, const struct group *g, const uint8_t *bits)
{
	uint32_t i = 0;

	while (i < g->clusters) {
		uint32_t from = i;
		uint64_t first;
		int r;

		if (i % 8 == 0 && bits[i / 8] == 0) {
			i += 8;
			continue;
		}
		while (i < g->clusters && bits[i / 8] >> (i % 8) & 1)
			i++;
		first = g->first + (uint64_t)from * x->ratio;
		if (i > from) {
			r = report(x, first, MIN((uint64_t)(i - from) * x->ratio, g->first + g->blocks - first));
			if (r)
				return r;
		} else {
			i++;
		}
	}
	return 0;
}

/* What a group's bitmap must say about the group's metadata lying in it. */
static int report_metadata(const struct ext4 *x, const struct group *g)
{
	int r = report(x, g->bitmap, 1);

	if (!r)
		r = report(x, g->inode_bitmap, 1);
	if (!r)
		r = report(x, g->itable, x->itable_blocks);
	return r;
}

/* 0 with the group's bitmap, made or read; NULL in *ret and the reason in `why` when it is not believed. */
static int get_bitmap(struct ext4 *x, const struct group *g, uint8_t *made, const uint8_t **ret, const char **why,
		      struct err *e)
{
	const uint8_t *bits = made;
	int r;

	*ret = NULL;
	*why = "its descriptor has a wrong checksum";
	if (!desc_is_sound(x, g))
		return 0;
	*why = "its descriptor points outside the filesystem";
	if (!places_are_sound(x, g))
		return 0;
	if (g->flags & BG_BLOCK_UNINIT) {
		make_bitmap(x, g, made);
	} else {
		r = peek_block(x, g->bitmap, &bits, e);
		if (r < 0)
			return r;
		*why = "its bitmap has a wrong checksum";
		if (!bitmap_is_sound(x, g, bits))
			return 0;
	}
	*why = "its bitmap and its count of free blocks differ";
	if (count_free(bits, g->clusters) == g->free)
		*ret = bits;
	return 0;
}

static int used_group(struct ext4 *x, uint64_t number, uint8_t *made, struct err *e)
{
	struct group g = get_group(x, number);
	const uint8_t *bits;
	const char *why;
	int r = get_bitmap(x, &g, made, &bits, &why, e);

	if (r < 0)
		return r;
	if (!bits) {
		fs_whole(x->usage, "block group %" PRIu64 ": %s", number, why);
		r = report(x, g.first, g.blocks);
		/* Where its places are sound they may lie in other groups, which must not give them away. */
		return r || !places_are_sound(x, &g) ? r : report_metadata(x, &g);
	}
	r = report_bitmap(x, &g, bits);
	if (!r)
		r = report(x, g.first, MIN(base_blocks(x, number), (uint64_t)g.blocks));
	return r ? r : report_metadata(x, &g);
}

static int used_groups(struct ext4 *x, struct err *e)
{
	_cleanup_free_ uint8_t *made = malloc(x->block_size);
	int r = 0;

	if (!made)
		return err_nomem(e);
	/* The boot block, and the superblock behind it, whatever the block size. */
	r = x->fn(x->arg, 0, MIN(x->d->size, (uint64_t)SUPER_OFFSET + MAX(SUPER_SIZE, x->block_size)));
	x->usage->parts = x->groups;
	for (uint64_t i = 0; !r && i < x->groups; i++)
		r = used_group(x, i, made, e);
	return r;
}

static int ext4_used(struct disk *d, unsigned flags, fs_extent_fn fn, void *arg, struct fs_usage *ret, struct err *e)
{
	_cleanup_(ext4_release) struct ext4 x = {.d = d, .fn = fn, .arg = arg, .usage = ret};
	uint8_t s[SUPER_SIZE];
	int r = read_super(d, s, e);

	if (r < 0)
		return r;
	if (r == 0)
		return fs_refuse(e, "the ext4 superblock has gone");
	r = parse_super(&x, s, flags, e);
	if (!r)
		r = read_gdt(&x, e);
	return r ? r : used_groups(&x, e);
}

const struct fs_format fs_ext4 = {.probe = ext4_probe, .used = ext4_used};
