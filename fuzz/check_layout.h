/* What must hold of any layout, however broken the tables: nothing outside the disks, nothing both mapped and free. */
#pragma once

#include <errno.h>

#include "base/err.h"
#include "layout/layout.h"
#include "sparse.h"

static bool touches(const struct layout_free *f, const struct layout_extent *x)
{
	return f->disk == x->disk && f->offset < x->offset + x->length && x->offset < f->offset + f->length;
}

static void check_volume(const struct layout *l, struct disk *const *disks, const struct layout_volume *v)
{
	uint64_t at = 0;

	must(memchr(v->name, 0, sizeof(v->name)) && memchr(v->uuid, 0, sizeof(v->uuid)) &&
	     memchr(v->type, 0, sizeof(v->type)));
	must(!v->linear || v->nmap);
	for (size_t i = 0; i < v->nmap; i++) {
		const struct layout_extent *x = &v->map[i];

		must(x->disk < l->ndisks && x->length && x->logical == at);
		must(x->offset <= disks[x->disk]->size && x->length <= disks[x->disk]->size - x->offset);
		at += x->length;
		for (size_t k = 0; v->kind == LAYOUT_LV && i < 64 && k < l->nfree && k < 64; k++)
			must(!touches(&l->free[k], x));
	}
}

static void check_layout(struct disk *const *disks, size_t n)
{
	struct layout *l = NULL;
	struct err e = {0};
	int r = layout_read(disks, n, &l, &e);

	must(r == 0 || r == -ENOMEM || r == -E2BIG);
	if (r)
		return;
	for (size_t i = 0; i < l->nvolumes; i++)
		check_volume(l, disks, &l->volumes[i]);
	for (size_t i = 0; i < l->nfree; i++) {
		const struct layout_free *f = &l->free[i];

		must(f->disk < n && f->offset <= disks[f->disk]->size && f->length <= disks[f->disk]->size - f->offset);
	}
	layout_free_all(l);
}
