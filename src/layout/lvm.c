/*
 * LVM2: labels, headers and metadata areas of physical volumes. A group is only taken apart when all its physical
 * volumes are there and every copy of its metadata is right and says the same; else its physical volumes stay whole.
 * Format: lvm2's own writers (label at one of the first four sectors, ring buffer behind a 512-byte area header).
 */
#include "layout/layout_int.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/crc32.h"
#include "base/endian.h"
#include "base/err.h"
#include "base/util.h"
#include "disk/disk.h"
#include "layout/lvm_int.h"

#define SECTOR        512u
#define LABEL_SECTORS 4u
#define CRC_START     0xf597a6cfu
#define MD_MAGIC      0xa92b4efcu
#define AREA_HEADER   512u
#define AREA_MAGIC    " LVM2 x[5A%r0N*>"
#define LOCN_IGNORED  1u
#define AREAS_MAX     8

struct area {
	uint64_t offset, size; /* within the physical volume */
};

static void found_release(struct lvm_found *f)
{
	for (size_t i = 0; i < f->ncopies; i++)
		lvm_text_release(&f->copies[i].tree);
	free(f->copies);
	free(f->pvs);
}

/* 0 when the range is not within it. */
static int pv_read(struct layout_build *b, const struct lvm_pv *pv, void *p, size_t n, uint64_t off, struct err *e)
{
	int r;

	if (off > pv->length || n > pv->length - off)
		return 0;
	r = disk_read(b->disks[pv->disk], p, n, pv->offset + off, e);
	return r < 0 ? r : 1;
}

/* One pair of a list that a zero pair ends: 1 and the pair, 0 at its end, -1 when the sector is over. */
static int next_area(const uint8_t *sector, size_t *at, struct area *ret)
{
	if (*at + 16 > SECTOR)
		return -1;
	ret->offset = get_le64(sector + *at);
	ret->size = get_le64(sector + *at + 8);
	*at += 16;
	return ret->offset || ret->size;
}

/* The metadata areas of the header: behind uuid, size and the list of data areas. -1 when the lists don't end. */
static int parse_header(const uint8_t *sector, size_t at, struct lvm_pv *pv, struct area areas[AREAS_MAX])
{
	struct area a;
	int n = 0, r;

	if (at < 32 || at + 40 > SECTOR)
		return -1;
	memcpy(pv->uuid, sector + at, 32);
	pv->uuid[32] = '\0';
	at += 40;
	while ((r = next_area(sector, &at, &a)) > 0)
		;
	while (r == 0 && (r = next_area(sector, &at, &a)) > 0 && n < AREAS_MAX) {
		areas[n++] = a;
		r = 0;
	}
	return r ? -1 : n;
}

/* Is there an LVM2 label in the sector? 1: a right one; -1: one that is damaged. */
static int check_label(const uint8_t *sector, unsigned number)
{
	if (memcmp(sector, "LABELONE", 8))
		return 0;
	if (get_le64(sector + 8) != number || crc32(CRC_START, sector + 20, SECTOR - 20) != get_le32(sector + 16) ||
	    memcmp(sector + 24, "LVM2 001", 8))
		return -1;
	return 1;
}

/* The text of an area, gathered from its ring. NULL in *ret with 1: the area is not right; with 0: nothing in it. */
static int read_text(struct layout_build *b, const struct lvm_pv *pv, struct area a, char **ret, size_t *ret_len,
		     uint32_t *ret_sum, struct err *e)
{
	uint64_t offset, size, first;
	_cleanup_free_ char *text = NULL;
	uint8_t h[AREA_HEADER];
	int r = pv_read(b, pv, h, sizeof(h), a.offset, e);

	*ret = NULL;
	if (r <= 0)
		return r < 0 ? r : 1;
	if (memcmp(h + 4, AREA_MAGIC, 16) || get_le32(h + 20) != 1 || get_le64(h + 24) != a.offset ||
	    get_le64(h + 32) != a.size || crc32(CRC_START, h + 4, AREA_HEADER - 4) != get_le32(h))
		return 1;
	offset = get_le64(h + 40);
	size = get_le64(h + 48);
	if (get_le32(h + 60) & LOCN_IGNORED)
		return 0;
	if (!offset || !size)
		return 1;
	if (get_le64(h + 64)) /* metadata that was prepared and not committed */
		return 1;
	if (a.size <= AREA_HEADER || offset < AREA_HEADER || offset >= a.size || size > a.size - AREA_HEADER ||
	    size > LVM_TEXT_MAX)
		return 1;
	text = malloc(size + 1);
	if (!text)
		return err_nomem(e);
	first = MIN(size, a.size - offset);
	r = pv_read(b, pv, text, first, a.offset + offset, e);
	if (r > 0 && size > first)
		r = pv_read(b, pv, text + first, size - first, a.offset + AREA_HEADER, e);
	if (r <= 0)
		return r < 0 ? r : 1;
	*ret_sum = crc32(CRC_START, text, size);
	if (*ret_sum != get_le32(h + 56))
		return 1;
	*ret = take_ptr(&text);
	*ret_len = size;
	return 0;
}

/* The group is the one section of the outermost level. */
static const struct lvm_node *find_group(const struct lvm_node *root)
{
	const struct lvm_node *found = NULL;

	for (const struct lvm_node *n = root->child; n; n = n->next) {
		if (n->kind != LVM_SECTION)
			continue;
		if (found)
			return NULL;
		found = n;
	}
	return found;
}

static int add_copy(struct lvm_found *f, struct lvm_copy *copy, struct err *e)
{
	if (f->ncopies == f->cap) {
		size_t want = f->cap ? 2 * f->cap : 8;
		struct lvm_copy *p = reallocarray(f->copies, want, sizeof(*p));

		if (!p)
			return err_nomem(e);
		f->copies = p;
		f->cap = want;
	}
	f->copies[f->ncopies++] = *copy;
	copy->tree = (struct lvm_tree){0};
	return 0;
}

static void copy_release(struct lvm_copy *c)
{
	lvm_text_release(&c->tree);
}

/* 1 when the area can't be relied on. */
static int read_area(struct layout_build *b, struct lvm_found *f, size_t pv, struct area a, struct err *e)
{
	_cleanup_(copy_release) struct lvm_copy copy = {.pv = pv};
	char *text;
	size_t len;
	int r = read_text(b, &f->pvs[pv], a, &text, &len, &copy.sum, e);

	if (r || !text)
		return r;
	r = lvm_text_parse(&copy.tree, text, len, e);
	if (r == -EBADMSG)
		return 1;
	if (r < 0)
		return r;
	copy.group = find_group(copy.tree.root);
	copy.id = lvm_text_string(copy.group, "id");
	if (!copy.id || !lvm_text_number(copy.group, "seqno", UINT32_MAX, &copy.seqno))
		return 1;
	return add_copy(f, &copy, e);
}

/* Is there an md superblock where 0.90 and 1.0 have theirs, at the end? Then the label is the array's, and where an
 * array's blocks lie on its members is md's affair. 1 yes. */
static int is_raid_member(struct layout_build *b, const struct lvm_pv *pv, struct err *e)
{
	const uint64_t places[] = {(pv->length & ~UINT64_C(0xffff)) - 0x10000,
				   ((pv->length / SECTOR - 16) & ~UINT64_C(7)) * SECTOR};
	uint8_t p[4];

	for (size_t i = 0; pv->length >= 2 * 0x10000 && i < ARRAY_SIZE(places); i++) {
		int r = pv_read(b, pv, p, sizeof(p), places[i], e);

		if (r < 0)
			return r;
		if (r > 0 && (get_le32(p) == MD_MAGIC || get_be32(p) == MD_MAGIC))
			return 1;
	}
	return 0;
}

/* A volume with a label becomes a physical volume. */
static int look_at(struct layout_build *b, struct lvm_found *f, size_t volume, struct err *e)
{
	const struct layout_extent *map = b->l->volumes[volume].map;
	struct lvm_pv pv = {.volume = volume, .disk = map->disk, .offset = map->offset, .length = map->length};
	uint8_t sectors[LABEL_SECTORS * SECTOR];
	struct area areas[AREAS_MAX];
	int r = pv_read(b, &pv, sectors, sizeof(sectors), 0, e), label = 0, n;
	unsigned i;

	if (r <= 0)
		return r;
	for (i = 0; i < LABEL_SECTORS && !label; i++)
		label = check_label(sectors + (size_t)i * SECTOR, i);
	if (!label)
		return 0;
	i--;
	r = is_raid_member(b, &pv, e);
	if (r < 0)
		return r;
	if (r > 0)
		return layout_warn(b, e, "partition %s of '%s' is a member of a RAID with LVM on it: it is taken whole",
				   b->l->volumes[volume].name, b->disks[pv.disk]->name);
	n = label < 0
		? -1
		: parse_header(sectors + (size_t)i * SECTOR, get_le32(sectors + (size_t)i * SECTOR + 20), &pv, areas);
	if (n < 0)
		return layout_warn(b, e, "the LVM label of partition %s of '%s' is damaged: it is taken whole",
				   b->l->volumes[volume].name, b->disks[pv.disk]->name);
	f->pvs[f->npvs++] = pv;
	for (int k = 0; k < n; k++) {
		r = read_area(b, f, f->npvs - 1, areas[k], e);
		if (r < 0)
			return r;
		if (r > 0)
			f->pvs[f->npvs - 1].broken = true;
	}
	return 0;
}

static int look_everywhere(struct layout_build *b, struct lvm_found *f, struct err *e)
{
	int r = 0;

	f->pvs = calloc(b->l->nvolumes + 1, sizeof(*f->pvs));
	if (!f->pvs)
		return err_nomem(e);
	for (size_t i = 0; r >= 0 && i < b->l->nvolumes; i++)
		if (b->l->volumes[i].linear && b->l->volumes[i].nmap == 1)
			r = look_at(b, f, i, e);
	return r;
}

/* Text ids have dashes that labels don't. */
static bool same_id(const char *uuid, const char *id)
{
	for (; *id; id++) {
		if (*id == '-')
			continue;
		if (*id != *uuid++)
			return false;
	}
	return !*uuid;
}

struct lvm_pv *lvm_find_pv(const struct lvm_found *f, const struct lvm_node *pv, bool *ret_twice)
{
	const char *id = lvm_text_string(pv, "id");
	struct lvm_pv *found = NULL;

	*ret_twice = false;
	for (size_t i = 0; id && i < f->npvs; i++) {
		if (!same_id(f->pvs[i].uuid, id))
			continue;
		*ret_twice = found != NULL;
		found = &f->pvs[i];
	}
	return found;
}

/* Is this copy the first of its group with the newest sequence number? Others of the group must then agree with it. */
static bool is_newest(const struct lvm_found *f, size_t i)
{
	for (size_t k = 0; k < f->ncopies; k++)
		if (!strcmp(f->copies[k].id, f->copies[i].id) &&
		    (f->copies[k].seqno > f->copies[i].seqno || (f->copies[k].seqno == f->copies[i].seqno && k < i)))
			return false;
	return true;
}

static const char *find_doubt(const struct lvm_found *f, size_t newest)
{
	const struct lvm_copy *c = &f->copies[newest];
	const struct lvm_node *pvs = lvm_text_get(c->group, "physical_volumes", LVM_SECTION);

	for (size_t k = 0; k < f->ncopies; k++)
		if (!strcmp(f->copies[k].id, c->id) && (f->copies[k].seqno != c->seqno || f->copies[k].sum != c->sum))
			return "its physical volumes disagree about it";
	if (!pvs)
		return "its metadata is incomplete";
	for (const struct lvm_node *n = pvs->child; n; n = n->next) {
		bool twice;
		const struct lvm_pv *pv = lvm_find_pv(f, n, &twice);

		if (!pv)
			return "a physical volume is missing";
		if (twice)
			return "a physical volume is there twice";
		if (pv->broken)
			return "the metadata on a physical volume is damaged";
		if (pv->claims > 1)
			return "another group has one of its physical volumes too";
	}
	return NULL;
}

/* Every group counts the physical volumes it has, so that two groups with one in common are noticed. */
static void claim(struct lvm_found *f)
{
	for (size_t i = 0; i < f->ncopies; i++) {
		const struct lvm_node *pvs = lvm_text_get(f->copies[i].group, "physical_volumes", LVM_SECTION);
		bool twice;

		for (const struct lvm_node *n = pvs && is_newest(f, i) ? pvs->child : NULL; n; n = n->next) {
			struct lvm_pv *pv = lvm_find_pv(f, n, &twice);

			if (pv)
				pv->claims++;
		}
	}
}

static int add_groups(struct layout_build *b, struct lvm_found *f, struct err *e)
{
	for (size_t i = 0; i < f->ncopies; i++) {
		const char *why;
		int r = 0;

		if (!is_newest(f, i))
			continue;
		why = find_doubt(f, i);
		if (!why)
			r = lvm_group_add(b, f, &f->copies[i], &why, e);
		if (r >= 0 && why)
			r = layout_warn(b, e,
					"volume group '%.100s' was not understood (%s): its physical volumes "
					"are taken whole",
					f->copies[i].group->key, why);
		if (r < 0)
			return r;
	}
	return 0;
}

static int warn_unclaimed(struct layout_build *b, const struct lvm_found *f, struct err *e)
{
	int r = 0;

	for (size_t i = 0; r >= 0 && i < f->npvs; i++)
		if (!f->pvs[i].claims)
			r = layout_warn(b, e,
					"the LVM physical volume on partition %s of '%s' belongs to no volume group "
					"that could be read: it is taken whole",
					b->l->volumes[f->pvs[i].volume].name, b->disks[f->pvs[i].disk]->name);
	return r;
}

int lvm_read(struct layout_build *b, struct err *e)
{
	_cleanup_(found_release) struct lvm_found f = {0};
	int r = look_everywhere(b, &f, e);

	if (r < 0)
		return r;
	claim(&f);
	r = add_groups(b, &f, e);
	return r < 0 ? r : warn_unclaimed(b, &f, e);
}
