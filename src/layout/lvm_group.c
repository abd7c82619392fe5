/* A volume group's metadata turned into logical volumes and free extents. All of it is checked before any is added. */
#include "layout/layout_int.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/err.h"
#include "base/util.h"
#include "disk/disk.h"
#include "layout/lvm_int.h"

#define SECTOR      512u
#define LVS_MAX     16384u
#define STRIPES_MAX 128u
#define EXTENTS_MAX (1u << 20) /* of a striped volume's mapping; beyond, its content is not read */

/* A physical volume of the group, under the name its segments use. */
struct member {
	const char *name;
	const struct lvm_pv *pv;
	uint64_t start; /* bytes on the disk: physical extent 0 */
	uint64_t count; /* extents */
};

struct lv {
	const char *name;
	const struct lvm_node *node;
	bool linear;
};

/* Physical extents in use. */
struct range {
	size_t member;
	uint64_t first, count;
};

struct group {
	const struct lvm_node *node;
	uint64_t extent; /* bytes */
	struct member *members;
	size_t nmembers;
	struct lv *lvs; /* sorted by name */
	size_t nlvs;
	struct range *used;
	size_t nused, cap;
	const char *why;
};

struct segment {
	uint64_t start, count; /* extents */
	const char *type;
	const struct lvm_node *node;
	const struct lvm_node *stripes; /* of "striped" */
	uint64_t nstripes, stripe;      /* bytes of one */
};

static void group_release(struct group *g)
{
	free(g->members);
	free(g->lvs);
	free(g->used);
}

/* 1: the group is not understood. */
static int doubt(struct group *g, const char *why)
{
	g->why = why;
	return 1;
}

static size_t count_children(const struct lvm_node *n)
{
	size_t count = 0;

	for (n = n ? n->child : NULL; n; n = n->next)
		count++;
	return count;
}

static bool is_name(const char *s)
{
	return s && *s && strlen(s) < 128 &&
	       strspn(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+_.-") == strlen(s);
}

static int by_member(const void *a, const void *b)
{
	return strcmp(((const struct member *)a)->name, ((const struct member *)b)->name);
}

static int by_lv(const void *a, const void *b)
{
	return strcmp(((const struct lv *)a)->name, ((const struct lv *)b)->name);
}

static struct member *find_member(const struct group *g, const char *name)
{
	struct member key = {.name = name};

	return g->nmembers ? bsearch(&key, g->members, g->nmembers, sizeof(key), by_member) : NULL;
}

static struct lv *find_lv(const struct group *g, const char *name)
{
	struct lv key = {.name = name};

	return g->nlvs ? bsearch(&key, g->lvs, g->nlvs, sizeof(key), by_lv) : NULL;
}

static bool has_word(const struct lvm_node *array, const char *word)
{
	for (const struct lvm_node *n = array ? array->child : NULL; n; n = n->next)
		if (n->kind == LVM_STRING && !strcmp(n->string, word))
			return true;
	return false;
}

static int add_member(struct group *g, const struct lvm_found *f, const struct lvm_node *n)
{
	struct member *m = &g->members[g->nmembers];
	uint64_t start, bytes, end;
	bool twice;

	*m = (struct member){.name = n->key, .pv = lvm_find_pv(f, n, &twice)};
	if (!m->pv || n->kind != LVM_SECTION || !lvm_text_number(n, "pe_start", UINT64_MAX / SECTOR, &start) ||
	    !lvm_text_number(n, "pe_count", UINT64_MAX, &m->count))
		return doubt(g, "its metadata is incomplete");
	if (has_word(lvm_text_get(n, "flags", LVM_ARRAY), "MISSING"))
		return doubt(g, "a physical volume was missing and may be stale");
	if (util_mul_overflows(m->count, g->extent, &bytes) || util_add_overflows(start * SECTOR, bytes, &end) ||
	    end > m->pv->length)
		return doubt(g, "a physical volume is smaller than its metadata says");
	m->start = m->pv->offset + start * SECTOR;
	g->nmembers++;
	return 0;
}

static int read_members(struct group *g, const struct lvm_found *f, struct err *e)
{
	const struct lvm_node *pvs = lvm_text_get(g->node, "physical_volumes", LVM_SECTION);

	g->members = calloc(count_children(pvs) + 1, sizeof(*g->members));
	if (!g->members)
		return err_nomem(e);
	for (const struct lvm_node *n = pvs ? pvs->child : NULL; n; n = n->next) {
		int r = add_member(g, f, n);

		if (r)
			return r;
	}
	qsort(g->members, g->nmembers, sizeof(*g->members), by_member);
	return 0;
}

/* Only what is in plain use; hidden parts of other volumes and ones in some transition are not read through. */
static bool is_plain(const struct lvm_node *lv)
{
	const struct lvm_node *status = lvm_text_get(lv, "status", LVM_ARRAY);
	bool visible = false;

	for (const struct lvm_node *n = status ? status->child : NULL; n; n = n->next) {
		if (n->kind != LVM_STRING)
			return false;
		if (!strcmp(n->string, "VISIBLE"))
			visible = true;
		else if (strcmp(n->string, "READ") && strcmp(n->string, "WRITE") && strcmp(n->string, "FIXED_MINOR"))
			return false;
	}
	return visible;
}

static int read_lvs(struct group *g, struct err *e)
{
	const struct lvm_node *lvs = lvm_text_get(g->node, "logical_volumes", LVM_SECTION);
	size_t n = count_children(lvs);

	if (n > LVS_MAX)
		return doubt(g, "it has too many logical volumes");
	g->lvs = calloc(n + 1, sizeof(*g->lvs));
	if (!g->lvs)
		return err_nomem(e);
	for (const struct lvm_node *c = lvs ? lvs->child : NULL; c; c = c->next) {
		if (c->kind != LVM_SECTION || !is_name(c->key))
			return doubt(g, "a logical volume has an impossible name");
		g->lvs[g->nlvs++] = (struct lv){.name = c->key, .node = c, .linear = is_plain(c)};
	}
	qsort(g->lvs, g->nlvs, sizeof(*g->lvs), by_lv);
	return 0;
}

static int parse_striped(struct group *g, struct segment *s)
{
	uint64_t size = 0;

	s->stripes = lvm_text_get(s->node, "stripes", LVM_ARRAY);
	if (!s->stripes || !lvm_text_number(s->node, "stripe_count", STRIPES_MAX, &s->nstripes) || !s->nstripes ||
	    count_children(s->stripes) != 2 * s->nstripes || s->count % s->nstripes)
		return doubt(g, "a logical volume has impossible stripes");
	if (s->nstripes == 1)
		return 0;
	if (!lvm_text_number(s->node, "stripe_size", UINT32_MAX, &size) || !size || g->extent % (size * SECTOR))
		return doubt(g, "a logical volume has an impossible stripe size");
	s->stripe = size * SECTOR;
	return 0;
}

/* `next` is the extent at which the segment must start. */
static int parse_segment(struct group *g, const struct lvm_node *n, uint64_t next, struct segment *ret)
{
	struct segment s = {.node = n, .type = lvm_text_string(n, "type")};
	uint64_t end;

	if (!s.type || !lvm_text_number(n, "start_extent", UINT64_MAX, &s.start) ||
	    !lvm_text_number(n, "extent_count", UINT64_MAX, &s.count) || s.start != next || !s.count ||
	    util_add_overflows(s.start, s.count, &end) || util_mul_overflows(end, g->extent, &end))
		return doubt(g, "a logical volume has impossible segments");
	*ret = s;
	return strcmp(s.type, "striped") ? 0 : parse_striped(g, ret);
}

static int add_used(struct group *g, size_t member, uint64_t first, uint64_t count, struct err *e)
{
	uint64_t all = g->members[member].count;

	if (first > all || count > all - first)
		return doubt(g, "a logical volume reaches beyond a physical volume");
	if (g->nused == g->cap) {
		size_t want = g->cap ? 2 * g->cap : 16;
		struct range *p = reallocarray(g->used, want, sizeof(*p));

		if (!p)
			return err_nomem(e);
		g->used = p;
		g->cap = want;
	}
	g->used[g->nused++] = (struct range){.member = member, .first = first, .count = count};
	return 0;
}

/* A stripe lies on a physical volume, or on another logical volume, whose own segments then tell the extents. */
static int check_stripes(struct group *g, const struct segment *s, struct lv *lv, struct err *e)
{
	for (const struct lvm_node *n = s->stripes->child; n; n = n->next->next) {
		struct member *m;
		struct lv *other;
		int r = 0;

		if (n->kind != LVM_STRING || n->next->kind != LVM_NUMBER)
			return doubt(g, "a logical volume has impossible stripes");
		m = find_member(g, n->string);
		other = find_lv(g, n->string);
		if (m && !other) {
			r = add_used(g, (size_t)(m - g->members), n->next->number, s->count / s->nstripes, e);
		} else if (other && !m) {
			lv->linear = other->linear = false;
		} else {
			return doubt(g, "a logical volume lies on something that is not there");
		}
		if (r)
			return r;
	}
	return 0;
}

/*
 * Thin, snapshot, RAID, cache and whatever else there is: the logical volumes it names are its parts, and not to be
 * read as what they look like. One that lies directly on physical volumes is too strange to be told.
 */
static int check_other(struct group *g, const struct lvm_node *node)
{
	for (const struct lvm_node *n = node->child; n; n = n->next) {
		struct lv *other;
		int r;

		if (n->kind == LVM_STRING) {
			if (find_member(g, n->string))
				return doubt(g, "a segment of a type not known here lies on a physical volume");
			other = find_lv(g, n->string);
			if (other)
				other->linear = false;
		}
		r = n->child ? check_other(g, n) : 0;
		if (r)
			return r;
	}
	return 0;
}

static int check_lv(struct group *g, struct lv *lv, struct err *e)
{
	uint64_t want, next = 0, got = 0;

	if (!lvm_text_number(lv->node, "segment_count", UINT32_MAX, &want) || !lvm_text_string(lv->node, "id"))
		return doubt(g, "its metadata is incomplete");
	for (const struct lvm_node *n = lv->node->child; n; n = n->next) {
		struct segment s;
		int r;

		if (n->kind != LVM_SECTION)
			continue;
		r = parse_segment(g, n, next, &s);
		if (!r && s.stripes) {
			r = check_stripes(g, &s, lv, e);
		} else if (!r) {
			lv->linear = false;
			r = check_other(g, n);
		}
		if (r)
			return r;
		next = s.start + s.count;
		got++;
	}
	return got == want && got ? 0 : doubt(g, "a logical volume lacks segments");
}

static int by_place(const void *a, const void *b)
{
	const struct range *x = a, *y = b;

	if (x->member != y->member)
		return x->member < y->member ? -1 : 1;
	return x->first < y->first ? -1 : x->first > y->first;
}

static int check_used(struct group *g)
{
	if (g->nused)
		qsort(g->used, g->nused, sizeof(*g->used), by_place);
	for (size_t i = 1; i < g->nused; i++)
		if (g->used[i].member == g->used[i - 1].member &&
		    g->used[i].first - g->used[i - 1].first < g->used[i - 1].count)
			return doubt(g, "two logical volumes have the same extents");
	return 0;
}

static int read_group(struct group *g, const struct lvm_found *f, struct err *e)
{
	uint64_t sectors;
	int r;

	if (!is_name(g->node->key) || !lvm_text_number(g->node, "extent_size", UINT32_MAX, &sectors) || !sectors)
		return doubt(g, "its metadata is incomplete");
	g->extent = sectors * SECTOR;
	r = read_members(g, f, e);
	if (!r)
		r = read_lvs(g, e);
	for (size_t i = 0; !r && i < g->nlvs; i++)
		r = check_lv(g, &g->lvs[i], e);
	return r ? r : check_used(g);
}

/* The next part of a volume that lies at extent `first` of the stripe's physical volume. */
static int map_piece(const struct group *g, struct layout_volume *v, size_t *cap, const struct lvm_node *stripe,
		     uint64_t skip, uint64_t length, struct err *e)
{
	const struct member *m = find_member(g, stripe->string);

	return layout_add_extent(v, cap, m->pv->disk, m->start + stripe->next->number * g->extent + skip, length, e);
}

static int map_segment(const struct group *g, struct layout_volume *v, size_t *cap, const struct segment *s,
		       struct err *e)
{
	uint64_t each = s->count / s->nstripes * g->extent, step = s->nstripes > 1 ? s->stripe : each;

	if (each / step * s->nstripes > EXTENTS_MAX - MIN(v->nmap, EXTENTS_MAX)) {
		v->linear = false;
		return 0;
	}
	for (uint64_t skip = 0; skip < each; skip += step) {
		for (const struct lvm_node *n = s->stripes->child; n; n = n->next->next) {
			int r = map_piece(g, v, cap, n, skip, step, e);

			if (r < 0)
				return r;
		}
	}
	return 0;
}

static int map_lv(struct group *g, const struct lv *lv, struct layout_volume *v, struct err *e)
{
	uint64_t next = 0;
	size_t cap = 0;
	int r = 0;

	for (const struct lvm_node *n = lv->node->child; r >= 0 && v->linear && n; n = n->next) {
		struct segment s;

		if (n->kind != LVM_SECTION)
			continue;
		must(parse_segment(g, n, next, &s) == 0); /* it was so before */
		next = s.start + s.count;
		r = map_segment(g, v, &cap, &s, e);
	}
	if (!v->linear) {
		free(take_ptr(&v->map));
		v->nmap = 0;
	}
	return r;
}

static int add_lv(struct layout_build *b, struct group *g, const struct lv *lv, struct err *e)
{
	struct layout_volume *v;
	int r = layout_add_volume(b, &v, e);

	if (r < 0)
		return r;
	v->kind = LAYOUT_LV;
	snprintf(v->name, sizeof(v->name), "%.120s/%.127s", g->node->key, lv->name);
	snprintf(v->uuid, sizeof(v->uuid), "%s", lvm_text_string(lv->node, "id"));
	v->linear = lv->linear;
	return map_lv(g, lv, v, e);
}

/* The gaps between the extents in use, which are sorted. */
static int add_free(struct layout_build *b, const struct group *g, struct err *e)
{
	size_t k = 0;
	int r = 0;

	for (size_t i = 0; r >= 0 && i < g->nmembers; i++) {
		const struct member *m = &g->members[i];
		uint64_t next = 0;

		for (; r >= 0 && k < g->nused && g->used[k].member == i; k++) {
			if (g->used[k].first > next)
				r = layout_add_free(b, m->pv->disk, m->start + next * g->extent,
						    (g->used[k].first - next) * g->extent, e);
			next = g->used[k].first + g->used[k].count;
		}
		if (r >= 0 && next < m->count)
			r = layout_add_free(b, m->pv->disk, m->start + next * g->extent, (m->count - next) * g->extent,
					    e);
	}
	return r;
}

int lvm_group_add(struct layout_build *b, struct lvm_found *f, const struct lvm_copy *copy, const char **why,
		  struct err *e)
{
	_cleanup_(group_release) struct group g = {.node = copy->group};
	int r = read_group(&g, f, e);

	*why = g.why;
	if (r)
		return r;
	for (size_t i = 0; r >= 0 && i < g.nlvs; i++)
		r = add_lv(b, &g, &g.lvs[i], e);
	if (r >= 0)
		r = add_free(b, &g, e);
	for (size_t i = 0; i < g.nmembers; i++)
		b->l->volumes[g.members[i].pv->volume].is_pv = true;
	return r;
}
