/*
 * Is there anything in an XFS log that would have to be replayed? After a clean unmount the last record says so. A
 * freeze writes everything back and leaves a log in which only the superblock is logged again ("covering" the log).
 * Anything else, and anything not plainly one of these two, means that the disk alone doesn't tell what is in use.
 * Format: "XFS Algorithms & Data Structures", chapter "Journaling Log".
 */
#include "fs/xfs_int.h"

#include <errno.h>
#include <string.h>

#include "base/endian.h"
#include "base/err.h"
#include "base/util.h"
#include "disk/disk.h"

#define BB           512u /* the log's unit */
#define RECORD_MAGIC 0xfeedbabeu
#define RECORD_MAX   (256u * 1024) /* bytes of data */
#define HEADER_DATA  32768u        /* bytes of data one header block has cycle words for */
#define IN_FLIGHT    (8 * (RECORD_MAX / BB + RECORD_MAX / HEADER_DATA)) /* blocks that may be written out of order */
#define RECORDS_MAX  8                                                  /* between tail and head of a covered log */

#define OP_HEADER       12u
#define OP_CLIENT_TRANS 0x69u
#define OP_START        0x01u
#define OP_COMMIT       0x02u
#define OP_UNMOUNT      0x20u
#define TRANS_MAGIC     0x5452414eu
#define CHUNK           128u /* of a buffer, logged as a whole */
#define ITEM_EFI        0x1236u
#define ITEM_INODE      0x123bu
#define ITEM_BUF        0x123cu
#define ITEM_DQUOT      0x123du
#define ITEM_ICREATE    0x123fu
#define ITEM_RUI        0x1240u /* and its like, up to */
#define ITEM_LAST       0x1249u

struct log {
	const struct xfs *x;
	uint64_t off;    /* of the log on the disk */
	uint32_t blocks; /* of 512 bytes */
	uint32_t head;   /* where the next record would go */
	uint32_t cycle;  /* of the blocks before the head */
	struct err *e;
};

struct record {
	uint32_t block, cycle; /* its own place */
	uint32_t blocks;       /* with its headers */
	uint32_t headers;      /* blocks */
	uint32_t len, ops;
	uint32_t tail_cycle, tail_block;
};

static int read_bb(const struct log *l, uint32_t block, uint32_t n, uint8_t *p)
{
	block %= l->blocks;
	if (n > l->blocks - block) { /* around the end */
		uint32_t first = l->blocks - block;
		int r = read_bb(l, block, first, p);

		return r < 0 ? r : read_bb(l, 0, n - first, p + (size_t)first * BB);
	}
	return disk_read(l->x->d, p, (size_t)n * BB, l->off + (uint64_t)block * BB, l->e);
}

static uint32_t cycle_of(const uint8_t *bb)
{
	uint32_t v = get_be32(bb);

	return v == RECORD_MAGIC ? get_be32(bb + 4) : v;
}

static int read_cycle(const struct log *l, uint32_t block, uint32_t *ret)
{
	uint8_t bb[BB];
	int r = read_bb(l, block, 1, bb);

	if (r >= 0)
		*ret = cycle_of(bb);
	return r;
}

/* Blocks carry the number of the lap they were written in: the head is where it drops. */
static int find_head(struct log *l)
{
	uint32_t first, last, cycle, lo = 0, hi = l->blocks - 1;
	int r = read_cycle(l, 0, &first);

	if (r >= 0)
		r = read_cycle(l, l->blocks - 1, &last);
	if (r < 0)
		return r;
	l->cycle = first;
	l->head = 0;
	if (first == last)
		return 0;
	while (hi - lo > 1) { /* lo has the first's number, hi has not */
		uint32_t mid = lo + (hi - lo) / 2;

		r = read_cycle(l, mid, &cycle);
		if (r < 0)
			return r;
		if (cycle == first)
			lo = mid;
		else
			hi = mid;
	}
	l->head = hi;
	return 0;
}

/* 1 when no write near the head is missing: an interrupted one would leave older blocks before it. */
static int is_whole_before_head(const struct log *l)
{
	uint32_t n = MIN((uint32_t)IN_FLIGHT, l->blocks - 1);
	_cleanup_free_ uint8_t *buf = malloc((size_t)n * BB);
	int r;

	if (!buf)
		return err_nomem(l->e);
	r = read_bb(l, l->head + l->blocks - n, n, buf);
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < n; i++) {
		bool wrapped = l->head && i + l->head < n; /* at the end of the lap before */
		uint32_t want = l->cycle - wrapped;

		if (cycle_of(buf + (size_t)i * BB) != want && !(wrapped && want == 0))
			return 0;
	}
	return 1;
}

/* 1 and *ret when a record begins at the block. */
static int read_record(const struct log *l, uint32_t block, struct record *ret)
{
	uint8_t h[BB];
	struct record rec = {.block = block % l->blocks};
	uint32_t size;
	int r = read_bb(l, block, 1, h);

	if (r < 0)
		return r;
	if (get_be32(h) != RECORD_MAGIC || get_be32(h + 20) != rec.block || get_be32(h + 16) != get_be32(h + 4))
		return 0;
	rec.cycle = get_be32(h + 4);
	rec.len = get_be32(h + 12);
	rec.tail_cycle = get_be32(h + 24);
	rec.tail_block = get_be32(h + 28);
	rec.ops = get_be32(h + 40);
	size = get_be32(h + 320);
	if (rec.len > RECORD_MAX || size > RECORD_MAX)
		return 0;
	rec.headers = get_be32(h + 8) & 2 && size > HEADER_DATA ? (uint32_t)util_div_up(size, HEADER_DATA) : 1;
	rec.blocks = rec.headers + (uint32_t)util_div_up(rec.len, BB);
	if (util_div_up(rec.len, BB) > (uint64_t)rec.headers * (HEADER_DATA / BB) || rec.blocks >= l->blocks)
		return 0;
	*ret = rec;
	return 1;
}

/* The record that ends at the head. */
static int find_last(const struct log *l, struct record *ret)
{
	uint32_t most = MIN((uint32_t)(RECORD_MAX / BB + RECORD_MAX / HEADER_DATA), l->blocks - 1);

	for (uint32_t back = 1; back <= most; back++) {
		int r = read_record(l, l->head + l->blocks - back, ret);

		if (r < 0)
			return r;
		if (r > 0)
			return ret->blocks == back;
	}
	return 0;
}

/* The record's data with the words that gave way to lap numbers put back. The caller frees. */
static int read_data(const struct log *l, const struct record *rec, uint8_t **ret)
{
	uint32_t n = rec->blocks - rec->headers;
	_cleanup_free_ uint8_t *buf = malloc((size_t)rec->blocks * BB);
	uint8_t *data;
	int r;

	if (!buf)
		return err_nomem(l->e);
	r = read_bb(l, rec->block, rec->blocks, buf);
	if (r < 0)
		return r;
	data = buf + (size_t)rec->headers * BB;
	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *header = buf + (size_t)(i / (HEADER_DATA / BB)) * BB;
		size_t at = (i < HEADER_DATA / BB ? 44 : 4) + (size_t)(i % (HEADER_DATA / BB)) * 4;

		memcpy(data + (size_t)i * BB, header + at, 4);
	}
	memmove(buf, data, (size_t)n * BB);
	*ret = take_ptr(&buf);
	return 0;
}

/* An operation's payload. */
struct op {
	const uint8_t *p; /* NULL for start and commit */
	uint32_t len;
};

/* Called with every item's format and its first region, if it has one. False: not to be relied on. */
typedef bool (*item_fn)(void *arg, const struct op *format, const struct op *first);

static bool next_op(const uint8_t **p, uint32_t *len, struct op *ret)
{
	uint32_t n;

	if (*len < OP_HEADER || get_be32(*p + 4) > *len - OP_HEADER)
		return false;
	/* Parts of operations that were divided among records are not put together here. */
	if ((*p)[8] != OP_CLIENT_TRANS || (*p)[9] & ~(OP_START | OP_COMMIT))
		return false;
	n = get_be32(*p + 4);
	*ret = (struct op){n ? *p + OP_HEADER : NULL, n};
	*p += OP_HEADER + n;
	*len -= OP_HEADER + n;
	return true;
}

/*
 * Goes through whole transactions: headers, then items of one format region and the number of regions it tells. Regions
 * are in the byte order of the machine that wrote them; only little-endian ones are recognised.
 */
static bool each_item(const uint8_t *p, uint32_t len, uint32_t ops, item_fn fn, void *arg)
{
	struct op format = {0}, op;
	unsigned more = 0, total = 0;

	for (; ops; ops--) {
		if (!next_op(&p, &len, &op))
			return false;
		if (!op.p)
			continue;
		if (more) {
			if (more-- == total && !fn(arg, &format, &op))
				return false;
			continue;
		}
		if (op.len == 16 && get_le32(op.p) == TRANS_MAGIC)
			continue;
		if (op.len < 8 || !get_le16(op.p + 2))
			return false;
		format = op;
		total = more = get_le16(op.p + 2) - 1u;
		if (!more && !fn(arg, &format, NULL))
			return false;
	}
	return !more;
}

static bool is_super_item(void *arg, const struct op *format, const struct op *first)
{
	return get_le16(format->p) == ITEM_BUF && format->len >= 24 && get_le64(format->p + 8) == 0;
}

static int record_logs_only_super(const struct log *l, const struct record *rec)
{
	_cleanup_free_ uint8_t *data = NULL;
	int r = read_data(l, rec, &data);

	return r < 0 ? r : each_item(data, rec->len, rec->ops, is_super_item, NULL);
}

/* What a record says about free space, beside what the disk says. */
struct written {
	const struct log *l;
	int intents; /* begun and not done */
	int error;
};

/* The group whose AGF lies at the 512-byte block, or -1. */
static int64_t agf_at(const struct xfs *x, uint64_t block)
{
	uint64_t group = (uint64_t)x->ag_blocks * x->block_size;
	uint64_t off = block > UINT64_MAX / BB ? 0 : block * BB;

	return off % group == x->sector_size && off / group < x->ag_count ? (int64_t)(off / group) : -1;
}

/*
 * Every change of free space logs its AGF, all of whose fields lie in the first 128 bytes. If these are on the disk,
 * the tree agrees with them or the group will not be believed anyway.
 */
static bool check_agf(struct written *w, const struct op *format, const struct op *first)
{
	uint64_t block = get_le64(format->p + 8);
	uint8_t disk[CHUNK];

	if (agf_at(w->l->x, block) < 0)
		return true;
	if (!(get_le32(format->p + 20) & 1)) /* not its first chunk: no field we use */
		return true;
	if (!first || first->len < CHUNK)
		return false;
	w->error = disk_read(w->l->x->d, disk, CHUNK, block * BB, w->l->e);
	return w->error == 0 && !memcmp(disk, first->p, CHUNK);
}

/* Intents (to free an extent, ...) have even numbers, what says that they are done the odd ones behind. */
static bool is_written(void *arg, const struct op *format, const struct op *first)
{
	struct written *w = arg;
	unsigned type = get_le16(format->p);

	if (type == ITEM_BUF)
		return format->len >= 24 && check_agf(w, format, first);
	if (type == ITEM_EFI || (type >= ITEM_RUI && type <= ITEM_LAST && type % 2 == 0))
		w->intents++;
	else if (type == ITEM_EFI + 1 || (type > ITEM_RUI && type <= ITEM_LAST))
		w->intents--;
	else if (type != ITEM_INODE && type != ITEM_DQUOT && type != ITEM_ICREATE)
		return false;
	return true;
}

/* 1 when everything the record says about free space is on the disk. */
static int record_is_written(const struct log *l, const struct record *rec)
{
	struct written w = {.l = l};
	_cleanup_free_ uint8_t *data = NULL;
	bool ok;
	int r = read_data(l, rec, &data);

	if (r < 0)
		return r;
	ok = each_item(data, rec->len, rec->ops, is_written, &w);
	return w.error < 0 ? w.error : ok && w.intents <= 0;
}

static int is_unmount(const struct log *l, const struct record *rec)
{
	_cleanup_free_ uint8_t *data = NULL;
	int r;

	if (rec->ops != 1 || rec->len < OP_HEADER)
		return 0;
	r = read_data(l, rec, &data);
	return r < 0 ? r : (data[9] & OP_UNMOUNT) != 0;
}

/* Every record from the tail to the head. */
static int is_covered(const struct log *l, const struct record *last)
{
	uint32_t at = last->tail_block;

	if (at >= l->blocks)
		return 0;
	for (unsigned i = 0; i < RECORDS_MAX; i++) {
		struct record rec;
		int r = read_record(l, at, &rec);

		if (r <= 0)
			return r;
		if (i == 0 ? rec.cycle != last->tail_cycle : rec.cycle != last->cycle && rec.cycle + 1 != last->cycle)
			return 0;
		r = record_logs_only_super(l, &rec);
		if (r == 0 && i == 0 && (rec.block + rec.blocks) % l->blocks == last->block)
			r = record_is_written(l, &rec);
		if (r <= 0)
			return r;
		if (rec.block == last->block)
			return rec.cycle == last->cycle;
		at = (rec.block + rec.blocks) % l->blocks;
	}
	return 0;
}

int xfs_log_is_clean(const struct xfs *x, const char **why, struct err *e)
{
	struct log l = {.x = x, .e = e};
	struct record last;
	int r;

	*why = "its log can't be read and may have to be replayed first";
	l.off = xfs_byte(x, x->log_ag, x->log_block);
	if ((uint64_t)x->log_blocks * x->block_size / BB > UINT32_MAX / 4)
		return 0;
	l.blocks = (uint32_t)((uint64_t)x->log_blocks * x->block_size / BB);
	if (l.blocks < 8)
		return 0;
	r = find_head(&l);
	if (r >= 0)
		r = is_whole_before_head(&l);
	if (r > 0)
		r = find_last(&l, &last);
	if (r > 0)
		r = is_unmount(&l, &last);
	else
		return r;
	if (r)
		return r;
	*why = "it is neither frozen nor cleanly unmounted: its log has to be replayed first";
	return is_covered(&l, &last);
}
