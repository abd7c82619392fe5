/* The partition table in a master boot record, with its chain of extended boot records. Sectors are the disk's own. */
#include "layout/layout_int.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/endian.h"
#include "base/err.h"
#include "base/util.h"
#include "disk/disk.h"

#define RECORD       512u
#define ENTRIES      446u
#define ENTRY        16u
#define LOGICALS_MAX 252u /* partitions 5 to 256, as many as Linux shows */

struct entry {
	uint8_t status, type;
	uint32_t start, count;
};

static struct entry get_entry(const uint8_t *record, unsigned i)
{
	const uint8_t *p = record + ENTRIES + i * ENTRY;

	return (struct entry){.status = p[0], .type = p[4], .start = get_le32(p + 8), .count = get_le32(p + 12)};
}

static bool is_extended(uint8_t type)
{
	return type == 0x05 || type == 0x0f || type == 0x85;
}

static bool has_signature(const uint8_t *record)
{
	return record[510] == 0x55 && record[511] == 0xaa;
}

/* A boot sector of a filesystem has the signature too; its "entries" are code or text, seldom like a table. */
static enum mbr_verdict judge(const struct disk *d, const uint8_t *record)
{
	enum mbr_verdict v = MBR_NONE;

	if (!has_signature(record))
		return MBR_NONE;
	for (unsigned i = 0; i < 4; i++) {
		struct entry n = get_entry(record, i);

		if (n.status & 0x7f)
			return MBR_NONE;
		if (n.type == 0xee && n.count)
			return MBR_PROTECTIVE;
		if (n.type && n.count && n.start && n.start < d->size / d->sector)
			v = MBR_TABLE;
	}
	return v;
}

int mbr_look(struct disk *d, enum mbr_verdict *ret, struct err *e)
{
	uint8_t record[RECORD];
	int r;

	*ret = MBR_NONE;
	if (d->size < RECORD)
		return 0;
	r = disk_read(d, record, RECORD, 0, e);
	if (r >= 0)
		*ret = judge(d, record);
	return r;
}

/* What the walk along the extended boot records needs. */
struct chain {
	struct layout_build *b;
	size_t disk;
	uint32_t id;
	uint64_t first, count; /* the extended partition */
	unsigned number;       /* the next logical partition's */
};

static int add_entry(struct layout_build *b, size_t disk, unsigned number, uint32_t id, uint64_t start,
		     const struct entry *n, struct err *e)
{
	struct layout_volume *v;
	int r = layout_add_partition(b, disk, number, start, n->count, b->disks[disk]->sector, &v, e);

	if (r < 0)
		return r;
	snprintf(v->type, sizeof(v->type), "0x%02x", n->type);
	snprintf(v->uuid, sizeof(v->uuid), "%08" PRIx32 "-%02x", id, number);
	return 0;
}

static int broken(struct chain *c, const char *what, struct err *e)
{
	return layout_warn(c->b, e,
			   "the chain of logical partitions of '%s' is broken (%s): the rest of the extended "
			   "partition is taken whole",
			   c->b->disks[c->disk]->name, what);
}

/* One extended boot record: its logical partition, and in *ret_next where the next one is (0: none). 1: chain broken.
 */
static int read_link(struct chain *c, uint64_t at, uint64_t *ret_next, struct err *e)
{
	struct disk *d = c->b->disks[c->disk];
	uint8_t record[RECORD];
	struct entry own, next;
	uint64_t start;
	int r = disk_read(d, record, RECORD, at * d->sector, e);

	if (r < 0)
		return r;
	if (!has_signature(record))
		return broken(c, "a link has no signature", e) ?: 1;
	own = get_entry(record, 0);
	next = get_entry(record, 1);
	*ret_next = is_extended(next.type) && next.count ? c->first + next.start : 0;
	if (!own.type || !own.count || is_extended(own.type))
		return 0;
	start = at + own.start;
	if (!own.start || start >= c->first + c->count || own.count > c->first + c->count - start)
		return broken(c, "a logical partition lies outside", e) ?: 1;
	return add_entry(c->b, c->disk, c->number++, c->id, start, &own, e);
}

/* Links that go backwards are refused, so no loop can last. */
static int read_chain(struct chain *c, struct err *e)
{
	uint64_t at = c->first;

	for (unsigned i = 0; i < LOGICALS_MAX; i++) {
		uint64_t next = 0;
		int r;

		if (at >= c->first + c->count || at >= c->b->disks[c->disk]->size / c->b->disks[c->disk]->sector)
			return broken(c, "a link lies outside", e);
		r = read_link(c, at, &next, e);
		if (r || !next)
			return r < 0 ? r : 0;
		if (next <= at)
			return broken(c, "a link points backwards", e);
		at = next;
	}
	return broken(c, "it is too long", e);
}

static int read_primary(struct chain *c, unsigned number, const struct entry *n, struct err *e)
{
	size_t at = c->b->l->nvolumes;
	int r = add_entry(c->b, c->disk, number, c->id, n->start, n, e);

	if (r < 0 || !is_extended(n->type))
		return r;
	/* A frame around others, not a volume: neither read nor compared with what is in it. */
	free(take_ptr(&c->b->l->volumes[at].map));
	c->b->l->volumes[at].nmap = 0;
	c->b->l->volumes[at].linear = false;
	if (c->count)
		return layout_warn(c->b, e, "'%s' has more than one extended partition: only the first is read",
				   c->b->disks[c->disk]->name);
	c->first = n->start;
	c->count = n->count;
	return 0;
}

int mbr_read(struct layout_build *b, size_t disk, struct err *e)
{
	struct chain c = {.b = b, .disk = disk, .number = 5};
	uint8_t record[RECORD];
	int r = disk_read(b->disks[disk], record, RECORD, 0, e);

	if (r < 0)
		return r;
	c.id = get_le32(record + 440);
	b->l->disks[disk].table = "dos";
	snprintf(b->l->disks[disk].uuid, sizeof(b->l->disks[disk].uuid), "%08" PRIx32, c.id);
	for (unsigned i = 0; r >= 0 && i < 4; i++) {
		struct entry n = get_entry(record, i);

		if (n.type && n.count)
			r = read_primary(&c, i + 1, &n, e);
	}
	if (r >= 0 && c.count)
		r = read_chain(&c, e);
	return r;
}
