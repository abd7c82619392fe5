/*
 * Shows what the used map says about disks or images, as one line of JSON per program run: for tests and for people who
 * wonder why something is copied. Changes nothing.
 */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/err.h"
#include "base/jsn.h"
#include "base/opt.h"
#include "base/util.h"
#include "disk/disk.h"
#include "fs/fs.h"
#include "layout/layout.h"
#include "stream/stream.h"

struct options {
	bool direct, live, fs;
};

static int on_used(void *arg, uint64_t offset, uint64_t length)
{
	struct bitmap *map = ((void **)arg)[0];
	uint64_t unit = *(uint64_t *)((void **)arg)[1], first = offset / unit;

	if (length)
		bitmap_set_range(map, first, (offset + length - 1) / unit - first + 1);
	return 0;
}

/* Runs of bits with that value as [[first, count], ...]. */
static json_t *runs_of(const struct bitmap *map, bool value)
{
	json_t *runs = json_array();

	for (uint64_t i = 0; i < map->nbits;) {
		uint64_t from = i;

		while (i < map->nbits && bitmap_get(map, i) == value)
			i++;
		if (i > from)
			json_array_append_new(runs, json_pack("[I,I]", (json_int_t)from, (json_int_t)(i - from)));
		while (i < map->nbits && bitmap_get(map, i) != value)
			i++;
	}
	return runs;
}

static int view_of(struct disk **disks, const struct layout_volume *v, struct disk **ret, struct err *e)
{
	_cleanup_free_ struct disk_extent *map = calloc(v->nmap + 1, sizeof(*map));

	if (!map)
		return err_nomem(e);
	for (size_t i = 0; i < v->nmap; i++)
		map[i] =
		    (struct disk_extent){v->map[i].logical, v->map[i].length, disks[v->map[i].disk], v->map[i].offset};
	return disk_view_new(v->name, map, v->nmap, ret, e);
}

/* The filesystem's own units: what is compared with its own tools. */
static void add_fs(json_t *o, struct disk *d, const struct options *opt)
{
	struct bitmap map = {0};
	struct fs_info info;
	struct fs_usage usage;
	struct err e = {0};
	void *arg[2];
	uint64_t unit;
	int r = fs_probe(d, &info, &e);

	if (r == 0) {
		json_object_set_new(o, "type", json_string(info.type));
		json_object_set_new(o, "fs_uuid", json_string(info.uuid));
		json_object_set_new(o, "label", json_string(info.label));
		json_object_set_new(o, "clean", json_boolean(info.clean));
		unit = info.block_size ? info.block_size : 512;
		arg[0] = &map;
		arg[1] = &unit;
		if (bitmap_init(&map, util_div_up(d->size, unit), &e) < 0)
			return;
		r = fs_used(d, opt->live ? FS_LIVE : 0, on_used, arg, &usage, &e);
		if (r == 0) {
			json_object_set_new(o, "unit", json_integer((json_int_t)unit));
			json_object_set_new(o, "used_bytes", json_integer((json_int_t)(bitmap_count(&map) * unit)));
			json_object_set_new(o, "parts", json_integer((json_int_t)usage.parts));
			json_object_set_new(o, "parts_whole", json_integer((json_int_t)usage.parts_whole));
			json_object_set_new(o, "why", json_string(usage.why));
			if (opt->fs)
				json_object_set_new(o, "free", runs_of(&map, false));
		}
	}
	if (r)
		json_object_set_new(o, r < 0 ? "error" : "refused", json_string(e.msg));
	bitmap_release(&map);
}

static json_t *show_volume(struct disk **disks, const struct layout_volume *v, const struct options *opt)
{
	static const char *const kinds[] = {"partition", "lv", "whole_disk"};
	_cleanup_(disk_closep) struct disk *d = NULL;
	json_t *o = json_pack("{s:s,s:s,s:s,s:s,s:I,s:I,s:b,s:b}", "name", v->name, "kind", kinds[v->kind], "uuid",
			      v->uuid, "part_type", v->type, "disk", (json_int_t)v->disk, "number",
			      (json_int_t)v->number, "linear", v->linear, "is_pv", v->is_pv);
	json_t *map = json_array();

	for (size_t i = 0; i < v->nmap && i < 4096; i++)
		json_array_append_new(map, json_pack("[I,I,I,I]", (json_int_t)v->map[i].logical,
						     (json_int_t)v->map[i].length, (json_int_t)v->map[i].disk,
						     (json_int_t)v->map[i].offset));
	json_object_set_new(o, "map", map);
	if (v->linear && !v->is_pv && view_of(disks, v, &d, NULL) == 0)
		add_fs(o, d, opt);
	return o;
}

static json_t *show(struct disk **disks, size_t n, const struct layout *l, const struct stream_used *u,
		    const struct options *opt)
{
	json_t *all = json_object(), *list = json_array(), *volumes = json_array(), *notes = json_array();
	json_t *free_list = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(list,
				      json_pack("{s:s,s:I,s:s,s:s,s:I,s:o}", "disk", disks[i]->name, "size",
						(json_int_t)disks[i]->size, "table", l->disks[i].table, "uuid",
						l->disks[i].uuid, "used_blocks", (json_int_t)bitmap_count(&u->maps[i]),
						"runs", runs_of(&u->maps[i], true)));
	for (size_t i = 0; i < l->nvolumes; i++)
		json_array_append_new(volumes, show_volume(disks, &l->volumes[i], opt));
	for (size_t i = 0; i < u->nnotes; i++)
		json_array_append_new(notes, json_stringn_nocheck(u->notes[i], strlen(u->notes[i])));
	for (size_t i = 0; i < l->nfree; i++)
		json_array_append_new(free_list,
				      json_pack("[I,I,I]", (json_int_t)l->free[i].disk, (json_int_t)l->free[i].offset,
						(json_int_t)l->free[i].length));
	json_object_set_new(all, "disks", list);
	json_object_set_new(all, "volumes", volumes);
	json_object_set_new(all, "free", free_list);
	json_object_set_new(all, "notes", notes);
	return all;
}

static int run(void *arg, int argc, char **argv)
{
	const struct options *opt = arg;
	struct disk **disks = calloc((size_t)argc + 1, sizeof(*disks));
	struct layout *l = NULL;
	struct stream_used u = {0};
	struct err e = {0};
	int r = disks ? 0 : err_nomem(&e);

	for (int i = 0; r >= 0 && i < argc; i++)
		r = disk_open(argv[i], opt->direct ? DISK_DIRECT : 0, &disks[i], &e);
	if (r >= 0)
		r = layout_read(disks, (size_t)argc, &l, &e);
	if (r >= 0)
		r = opt->live ? stream_used_estimate(disks, (size_t)argc, &u, &e)
			      : stream_used_read(disks, (size_t)argc, &u, &e);
	if (r >= 0) {
		_cleanup_json_ json_t *all = show(disks, (size_t)argc, l, &u, opt);
		_cleanup_free_ char *text = jsn_text(all);

		puts(text ? text : "");
	} else {
		fprintf(stderr, "used-map: %s\n", e.msg);
	}
	stream_used_release(&u);
	layout_free_all(l);
	for (int i = 0; disks && i < argc; i++)
		disk_close(disks[i]);
	free(disks);
	return r < 0;
}

static const struct opt options[] = {
    {.name = "direct",
     .kind = OPT_FLAG,
     .offset = offsetof(struct options, direct),
     .help = "read past the page cache"},
    {.name = "live",
     .kind = OPT_FLAG,
     .offset = offsetof(struct options, live),
     .help = "overlook journals that have to be replayed"},
    {.name = "fs",
     .kind = OPT_FLAG,
     .offset = offsetof(struct options, fs),
     .help = "list the free blocks of every filesystem"},
    {0},
};

static const struct opt_command commands[] = {
    {.name = "show",
     .args = "DISK...",
     .help = "print the used map of disks or images",
     .opts = options,
     .min_args = 1,
     .max_args = -1,
     .run = run},
    {0},
};

int main(int argc, char **argv)
{
	static const struct opt_program program = {
	    .name = "used-map", .summary = "what of a disk is in use", .commands = commands};
	struct options o = {0};

	return opt_main(&program, &o, argc, argv);
}
