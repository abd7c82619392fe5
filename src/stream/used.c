/* The used map: layout and filesystems combined. Everything is used until somebody who was understood says otherwise.
 */
#include "stream/stream.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "base/util.h"
#include "disk/disk.h"
#include "fs/fs.h"
#include "layout/layout.h"

#define NOTES_MAX 1000u

/* Bytes of a disk that somebody knows about: a filesystem that was understood, unallocated extents. */
struct known {
	uint64_t start, end;
};

struct disk_state {
	struct known *known;
	size_t n, cap;
	struct bitmap touched; /* blocks with a byte that is in use */
};

struct reading {
	struct disk *const *disks;
	size_t n;
	bool estimate;                        /* whatever journals say */
	const struct stream_settled *settled; /* NULL: nothing is */
	const struct layout *layout;
	struct disk_state *states;
	struct stream_used *used;
};

/* What the callback of fs_used() gets: where the volume's bytes lie. */
struct target {
	struct reading *r;
	const struct layout_volume *v;
};

void stream_used_release(struct stream_used *u)
{
	for (size_t i = 0; u->maps && i < u->n; i++)
		bitmap_release(&u->maps[i]);
	for (size_t i = 0; i < u->nnotes; i++)
		free(u->notes[i]);
	free(u->maps);
	free(u->notes);
	*u = (struct stream_used){0};
}

__attribute__((format(printf, 3, 4))) static int note(struct reading *r, struct err *e, const char *fmt, ...)
{
	char text[ERR_MSG_MAX + 512];
	va_list ap;
	char **p;

	if (r->used->nnotes >= NOTES_MAX)
		return 0;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	p = reallocarray(r->used->notes, r->used->nnotes + 1, sizeof(*p));
	if (!p)
		return err_nomem(e);
	r->used->notes = p;
	p[r->used->nnotes] = strdup(text);
	if (!p[r->used->nnotes])
		return err_nomem(e);
	r->used->nnotes++;
	return 0;
}

static int add_known(struct disk_state *s, uint64_t start, uint64_t length, struct err *e)
{
	if (s->n == s->cap) {
		size_t want = s->cap ? 2 * s->cap : 16;
		struct known *p = reallocarray(s->known, want, sizeof(*p));

		if (!p)
			return err_nomem(e);
		s->known = p;
		s->cap = want;
	}
	s->known[s->n++] = (struct known){start, start + length};
	return 0;
}

static void touch(struct disk_state *s, uint64_t start, uint64_t length)
{
	uint64_t first = start / STREAM_BLOCK;

	if (length)
		bitmap_set_range(&s->touched, first, (start + length - 1) / STREAM_BLOCK - first + 1);
}

/* The extent of the volume that holds logical byte `at`. */
static size_t find_extent(const struct layout_volume *v, uint64_t at)
{
	size_t lo = 0, hi = v->nmap;

	while (hi - lo > 1) {
		size_t mid = lo + (hi - lo) / 2;

		if (v->map[mid].logical <= at)
			lo = mid;
		else
			hi = mid;
	}
	return lo;
}

/* A range in use within a volume, carried over to the disks. */
static int on_used(void *arg, uint64_t offset, uint64_t length)
{
	const struct target *t = arg;

	for (size_t i = find_extent(t->v, offset); length && i < t->v->nmap; i++) {
		const struct layout_extent *x = &t->v->map[i];
		uint64_t skip = offset - x->logical, n;

		if (skip >= x->length)
			return -ERANGE;
		n = MIN(length, x->length - skip);
		touch(&t->r->states[x->disk], x->offset + skip, n);
		offset += n;
		length -= n;
	}
	return length ? -ERANGE : 0;
}

static int open_volume(const struct reading *r, const struct layout_volume *v, struct disk **ret, struct err *e)
{
	_cleanup_free_ struct disk_extent *map = calloc(v->nmap + 1, sizeof(*map));

	if (!map)
		return err_nomem(e);
	for (size_t i = 0; i < v->nmap; i++)
		map[i] = (struct disk_extent){.logical = v->map[i].logical,
					      .length = v->map[i].length,
					      .lower = r->disks[v->map[i].disk],
					      .offset = v->map[i].offset};
	return disk_view_new(v->name, map, v->nmap, ret, e);
}

/* For notes: "partition 1 of '/dev/sda'". */
static void describe(const struct reading *r, const struct layout_volume *v, char *buf, size_t size)
{
	if (v->kind == LAYOUT_LV)
		snprintf(buf, size, "logical volume '%s'", v->name);
	else if (v->kind == LAYOUT_PARTITION)
		snprintf(buf, size, "partition %s of '%s'", v->name, r->disks[v->disk]->name);
	else
		snprintf(buf, size, "'%s'", r->disks[v->disk]->name);
}

static struct stream_settled_volume identity(const struct layout_volume *v)
{
	struct stream_settled_volume id = {v->map[0].disk, v->map[0].offset, 0};

	for (size_t i = 0; i < v->nmap; i++)
		id.size += v->map[i].length;
	return id;
}

static bool is_settled(const struct stream_settled *s, const struct layout_volume *v)
{
	struct stream_settled_volume id = identity(v);

	for (size_t i = 0; s && i < s->n; i++)
		if (s->volumes[i].disk == id.disk && s->volumes[i].offset == id.offset && s->volumes[i].size == id.size)
			return true;
	return false;
}

/* A superblock may be left from before the volume became the disk of a virtual machine: nothing of it is believed. */
static int find_table(struct disk *d, const struct layout_volume *v, struct err *e)
{
	bool has = false;
	int res = v->kind == LAYOUT_WHOLE_DISK ? 0 : layout_has_table(d, &has, e);

	return res == 0 && has ? err_set(e, -EUCLEAN, "it has a partition table of its own") : res;
}

static int read_volume(struct reading *r, const struct layout_volume *v, struct err *e)
{
	unsigned flags = r->estimate || is_settled(r->settled, v) ? FS_LIVE : 0;
	_cleanup_(disk_closep) struct disk *d = NULL;
	struct target target = {.r = r, .v = v};
	struct fs_usage usage = {0};
	struct err why = {0};
	char what[600];
	int res = open_volume(r, v, &d, &why);

	describe(r, v, what, sizeof(what));
	if (res == 0)
		res = find_table(d, v, &why);
	if (res == 0)
		res = fs_used(d, flags, on_used, &target, &usage, &why);
	if (res == -ENOMEM)
		return err_nomem(e);
	if (res)
		return note(r, e, "%s is copied whole: %s", what, why.msg);
	for (size_t i = 0; i < v->nmap; i++) {
		res = add_known(&r->states[v->map[i].disk], v->map[i].offset, v->map[i].length, e);
		if (res < 0)
			return res;
	}
	if (usage.parts_whole)
		return note(r, e, "%" PRIu64 " of %" PRIu64 " parts of %s are copied whole: %s", usage.parts_whole,
			    usage.parts, what, usage.why);
	return 0;
}

/*
 * A filesystem or container that begins where the disk begins, on a disk with a partition table: one of the two is a
 * leftover, and which can't be told. `*ret` is the stranger's type then.
 */
static int find_ambivalence(struct disk *d, const char **ret)
{
	struct fs_info info;
	struct err ignored;
	int r = fs_probe(d, &info, &ignored);

	*ret = NULL;
	if (r == -ENOMEM)
		return r;
	/* Boot sectors of these make up hybrid images, and they are never read as filesystems anyway. */
	if (r < 0 || (strcmp(info.type, "unknown") && strcmp(info.type, "iso9660") && strcmp(info.type, "vfat") &&
		      strcmp(info.type, "ntfs")))
		*ret = r < 0 ? "unreadable" : info.type;
	return 0;
}

static int find_ambivalent_disks(struct reading *r, bool *whole, struct err *e)
{
	for (size_t i = 0; i < r->n; i++) {
		const char *type;
		int res;

		if (!strcmp(r->layout->disks[i].table, "none"))
			continue;
		if (find_ambivalence(r->disks[i], &type) < 0)
			return err_nomem(e);
		whole[i] = type != NULL;
		res = type ? note(r, e, "'%s' is copied whole: it has a partition table, yet begins like %s",
				  r->disks[i]->name, type)
			   : 0;
		if (res < 0)
			return res;
	}
	return 0;
}

static bool lies_on(const struct layout_volume *v, const bool *whole)
{
	for (size_t i = 0; i < v->nmap; i++)
		if (whole[v->map[i].disk])
			return true;
	return false;
}

static int read_layout(struct reading *r, struct err *e)
{
	const struct layout *l = r->layout;
	_cleanup_free_ bool *whole = calloc(r->n + 1, sizeof(*whole));
	int res;

	if (!whole)
		return err_nomem(e);
	res = find_ambivalent_disks(r, whole, e);
	for (size_t i = 0; res >= 0 && i < l->nwarnings; i++)
		res = note(r, e, "%s", l->warnings[i]);
	for (size_t i = 0; res >= 0 && i < l->nvolumes; i++) {
		const struct layout_volume *v = &l->volumes[i];

		if (v->is_pv || lies_on(v, whole))
			continue;
		if (v->linear)
			res = read_volume(r, v, e);
		else if (v->kind == LAYOUT_LV)
			res =
			    note(r, e, "logical volume '%s' is copied whole: it is not a plain one, or part of another",
				 v->name);
	}
	for (size_t i = 0; res >= 0 && i < l->nfree; i++)
		if (!whole[l->free[i].disk])
			res = add_known(&r->states[l->free[i].disk], l->free[i].offset, l->free[i].length, e);
	return res;
}

static int by_start(const void *a, const void *b)
{
	const struct known *x = a, *y = b;

	return x->start < y->start ? -1 : x->start > y->start;
}

/* Clears the blocks that [start, end) covers wholly and nobody touches. */
static void clear_blocks(struct bitmap *map, const struct disk_state *s, uint64_t size, uint64_t start, uint64_t end)
{
	uint64_t first = util_div_up(start, STREAM_BLOCK), last = end == size ? map->nbits : end / STREAM_BLOCK;

	for (uint64_t i = first; i < last; i++)
		if (!bitmap_get(&s->touched, i))
			bitmap_clear(map, i);
}

static void conclude(struct bitmap *map, struct disk_state *s, uint64_t size)
{
	if (s->n)
		qsort(s->known, s->n, sizeof(*s->known), by_start);
	for (size_t i = 0; i < s->n;) {
		uint64_t start = s->known[i].start, end = s->known[i].end;

		for (i++; i < s->n && s->known[i].start <= end; i++)
			end = MAX(end, s->known[i].end);
		clear_blocks(map, s, size, start, end);
	}
}

static int start_disks(struct reading *r, struct err *e)
{
	r->used->maps = calloc(r->n + 1, sizeof(*r->used->maps));
	r->states = calloc(r->n + 1, sizeof(*r->states));
	if (!r->used->maps || !r->states)
		return err_nomem(e);
	r->used->n = r->n;
	for (size_t i = 0; i < r->n; i++) {
		uint64_t blocks = util_div_up(r->disks[i]->size, STREAM_BLOCK);
		int res = bitmap_init(&r->used->maps[i], blocks, e);

		if (res >= 0)
			res = bitmap_init(&r->states[i].touched, blocks, e);
		if (res < 0)
			return res;
		bitmap_set_range(&r->used->maps[i], 0, blocks);
	}
	return 0;
}

static void reading_release(struct reading *r)
{
	for (size_t i = 0; r->states && i < r->n; i++) {
		bitmap_release(&r->states[i].touched);
		free(r->states[i].known);
	}
	free(r->states);
}

static int used_read(const struct reading *how, struct stream_used *ret, struct err *e)
{
	struct disk *const *disks = how->disks;
	size_t n = how->n;
	_cleanup_(stream_used_release) struct stream_used used = {0};
	_cleanup_(reading_release) struct reading r = *how;
	_cleanup_(layout_freep) struct layout *layout = NULL;
	struct err why = {0};
	int res;

	r.used = &used;
	res = start_disks(&r, e);
	if (res < 0)
		return res;
	res = layout_read(disks, n, &layout, &why);
	if (res == -ENOMEM)
		return err_nomem(e);
	r.layout = layout;
	res = res < 0 ? note(&r, e, "all disks are copied whole: %s", why.msg) : read_layout(&r, e);
	if (res < 0)
		return res;
	for (size_t i = 0; i < n; i++)
		conclude(&used.maps[i], &r.states[i], disks[i]->size);
	*ret = used;
	used = (struct stream_used){0};
	return 0;
}

int stream_used_read(struct disk *const *disks, size_t n, struct stream_used *ret, struct err *e)
{
	return used_read(&(struct reading){.disks = disks, .n = n}, ret, e);
}

int stream_used_estimate(struct disk *const *disks, size_t n, struct stream_used *ret, struct err *e)
{
	return used_read(&(struct reading){.disks = disks, .n = n, .estimate = true}, ret, e);
}

int stream_used_read_tracked(struct disk *const *disks, size_t n, const struct stream_settled *settled,
			     struct stream_used *ret, struct err *e)
{
	return used_read(&(struct reading){.disks = disks, .n = n, .settled = settled}, ret, e);
}

/* ---- journals with nothing in them ---- */
void stream_settled_release(struct stream_settled *s)
{
	free(s->volumes);
	*s = (struct stream_settled){0};
}

int stream_settled_look(struct disk *const *disks, size_t n, struct stream_settled *ret, struct err *e)
{
	_cleanup_(stream_settled_release) struct stream_settled found = {0};
	_cleanup_(layout_freep) struct layout *l = NULL;
	struct reading r = {.disks = disks, .n = n};
	struct err why = {0};
	int res = layout_read(disks, n, &l, &why);

	if (res == 0)
		found.volumes = calloc(l->nvolumes + 1, sizeof(*found.volumes));
	if (res == -ENOMEM || (res == 0 && !found.volumes))
		return err_nomem(e);
	/* What can't be read isn't settled; reading it as used will say why. */
	for (size_t i = 0; res == 0 && i < l->nvolumes; i++) {
		_cleanup_(disk_closep) struct disk *d = NULL;
		struct fs_info info = {0};

		if (l->volumes[i].is_pv || !l->volumes[i].linear)
			continue;
		if (open_volume(&r, &l->volumes[i], &d, &why) == 0 && fs_probe(d, &info, &why) == 0 && info.readable &&
		    info.clean)
			found.volumes[found.n++] = identity(&l->volumes[i]);
	}
	*ret = found;
	found = (struct stream_settled){0};
	return 0;
}
