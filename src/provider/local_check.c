/*
 * Checks of images, and repairs. A check reads the image in the appliance on throw-away overlays. A repair writes to
 * overlays that stay and become an image of their own, DIR/images/NEW/diskN.qcow2 on ../IMAGE/diskN.qcow2: the first is
 * left as it was, and stays as long as the other stands on it.
 */
#include "provider/local_int.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"

const char *local_image_base(const json_t *manifest)
{
	const char *base = json_string_value(json_object_get(manifest, "base"));

	return base && id_is("image", base) ? base : NULL;
}

static int stands_on(void *arg, const char *image, json_t *manifest, struct err *e)
{
	const char *base = local_image_base(manifest), *wanted = arg;

	return base && strcmp(base, wanted) == 0
		   ? err_set(e, -EBUSY, "image '%s', which was repaired, stands on '%s' (delete it first)", image,
			     wanted)
		   : 0;
}

int local_image_is_free(const struct local *l, const char *image, struct err *e)
{
	return local_images(l, stands_on, (void *)(uintptr_t)image, e);
}

static json_t *check_request(const char *mode, const json_t *options)
{
	return json_pack("{s:s, s:O*}", "mode", mode, "options", (json_t *)(uintptr_t)options);
}

/* `backing`: with the number of the disk in place of %zu, as it is written into the overlays. */
static int check_overlays(const struct local *l, const char *dir, const char *backing_dir, size_t n, char **disks,
			  struct err *e)
{
	for (size_t i = 0; i < n; i++) {
		char backing[PATH_MAX + 32];
		int r;

		snprintf(backing, sizeof(backing), "%s/disk%zu.qcow2", backing_dir, i);
		disks[i] = str_printf("%s/disk%zu.qcow2", dir, i);
		if (!disks[i])
			return err_nomem(e);
		r = local_overlay(l, disks[i], backing, "qcow2", e);
		if (r < 0)
			return r;
	}
	return 0;
}

/* Its directory, and how many disks it has. */
static int check_image_dir(const struct local *l, const char *image, struct local_path *dir, size_t *ret_n,
			   struct err *e)
{
	struct local_path manifest;
	int r = local_check_id("image", image, e);

	r = r ?: local_path(l, dir, e, "images/%s", image);
	r = r ?: local_path(l, &manifest, e, "images/%s/manifest.json", image);
	r = r ?: local_exists(manifest.s, e);
	if (r <= 0)
		return r < 0 ? r : err_set(e, -ENOENT, "image '%s' does not exist", image);
	*ret_n = local_disks(dir->s);
	return *ret_n ? 0 : err_set(e, -ENOENT, "image '%s' has no disks", image);
}

/* What the appliance says, or why it says nothing. */
static int check_ask(struct local *l, const char *run, char *const *disks, size_t n, const char *mode,
		     const json_t *options, const struct provider_watch *w, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *request = check_request(mode, options);

	return request ? local_appliance(l, run, disks, n, request, w, ret, e) : err_nomem(e);
}

static int check_shared(struct local *l, const char *image, const struct local_path *dir, size_t n,
			const json_t *options, const struct provider_watch *w, json_t **ret, struct err *e)
{
	char *disks[LOCAL_DISKS_MAX] = {NULL}, run[ID_MAX + 16];
	struct local_path place;
	int r = local_path(l, &place, e, "runs/%s-check", image);

	r = r ?: local_fresh_dir(l, place.s, e);
	r = r ?: check_overlays(l, place.s, dir->s, n, disks, e);
	snprintf(run, sizeof(run), "%s-look", image);
	r = r ?: check_ask(l, run, disks, n, "check", options, w, ret, e);
	io_remove_tree(place.s, NULL);
	local_free_list(disks, n);
	return r;
}

int local_image_check(struct provider *p, const char *image, const json_t *options, const struct provider_watch *w,
		      json_t **ret, struct err *e)
{
	struct local *l = local_of(p);
	struct local_path dir;
	char chain[ID_MAX];
	size_t n = 0;
	int r = check_image_dir(l, image, &dir, &n, e);

	r = r ?: local_chain_share_image(l, image, chain, w, e);
	if (r < 0)
		return r;
	r = check_shared(l, image, &dir, n, options, w, ret, e);
	local_chain_unshare(l, chain);
	return r;
}

/* ---- repair ---- */

struct repair {
	const char *image, *repaired;
	struct local_path from, to; /* their directories */
	char backing[ID_MAX + 8];   /* from `to` to `from` */
	size_t n;
	char *disks[LOCAL_DISKS_MAX];
};

static int repair_disk(const struct local *l, const struct repair *b, size_t i, json_t *disks, struct err *e)
{
	char backing[ID_MAX + 40], name[32], hex[65];
	struct stat st;
	uint64_t size;
	int r = local_take_file(l, b->disks[i], e);

	snprintf(name, sizeof(name), "disk%zu.qcow2", i);
	snprintf(backing, sizeof(backing), "%s/%s", b->backing, name);
	r = r ?: local_check_overlay(l, b->disks[i], backing, "qcow2", &size, e);
	r = r ?: local_sync(b->disks[i], e);
	r = r ?: local_sha256(b->disks[i], hex, e);
	if (r == 0 && lstat(b->disks[i], &st) < 0)
		r = err_sys(e, "cannot look at '%s'", b->disks[i]);
	if (r < 0)
		return r;
	json_array_append_new(disks, json_pack("{s:s, s:s, s:s, s:I, s:I, s:s}", "file", name, "format", "qcow2",
					       "base", backing, "size", (json_int_t)size, "allocated",
					       (json_int_t)st.st_blocks * 512, "sha256", hex));
	return 0;
}

/* What a test boot wants to know of it stays true: which disk it starts from. */
static int repair_copy_report(const struct repair *b, struct err *e)
{
	char from[PATH_MAX + 32], to[PATH_MAX + 32];
	_cleanup_json_ json_t *report = NULL;

	snprintf(from, sizeof(from), "%s/report.json", b->from.s);
	snprintf(to, sizeof(to), "%s/report.json", b->to.s);
	if (local_read_json(from, &report, NULL) < 0)
		return 0;
	return local_write_json(to, report, e);
}

static int repair_manifest(const struct local *l, const struct repair *b, const json_t *report, json_t **ret,
			   struct err *e)
{
	_cleanup_json_ json_t *m = NULL, *disks = json_array();
	char path[PATH_MAX + 32];
	int r;

	snprintf(path, sizeof(path), "%s/manifest.json", b->from.s);
	r = local_read_json(path, &m, e);
	r = r ?: local_take_dir(l, b->to.s, e);
	if (r == 0 && !disks)
		r = err_nomem(e);
	for (size_t i = 0; r == 0 && i < b->n; i++)
		r = repair_disk(l, b, i, disks, e);
	r = r ?: repair_copy_report(b, e);
	snprintf(path, sizeof(path), "%s/repair.json", b->to.s);
	r = r ?: local_write_json(path, report, e);
	if (r < 0)
		return r;
	/* The chain below is the other one's: its layers change under that one, not under this. */
	json_object_del(m, "chain");
	json_object_del(m, "run");
	json_object_set(m, "disks", disks);
	json_object_set_new(m, "image", json_string(b->repaired));
	json_object_set_new(m, "base", json_string(b->image));
	snprintf(path, sizeof(path), "%s/manifest.json", b->to.s);
	r = local_write_json(path, m, e);
	if (r == 0)
		*ret = take_ptr(&m);
	return r;
}

/* It was repaired before a crash. 1: here is what came of it. */
static int repair_again(const struct local *l, const struct repair *b, json_t **ret, json_t **ret_manifest,
			struct err *e)
{
	struct local_path manifest, report;
	int r = local_path(l, &manifest, e, "images/%s/manifest.json", b->repaired);

	r = r ?: local_path(l, &report, e, "images/%s/repair.json", b->repaired);
	r = r ?: local_exists(manifest.s, e);
	if (r <= 0)
		return r;
	r = local_read_json(report.s, ret, e);
	r = r ?: local_read_json(manifest.s, ret_manifest, e);
	return r ?: 1;
}

static int repair_shared(struct local *l, struct repair *b, const json_t *options, const struct provider_watch *w,
			 json_t **ret, json_t **ret_manifest, struct err *e)
{
	_cleanup_json_ json_t *report = NULL;
	int r = local_fresh_dir(l, b->to.s, e);

	r = r ?: check_overlays(l, b->to.s, b->backing, b->n, b->disks, e);
	r = r ?: check_ask(l, b->repaired, b->disks, b->n, "repair", options, w, &report, e);
	r = r ?: repair_manifest(l, b, report, ret_manifest, e);
	if (r < 0)
		io_remove_tree(b->to.s, NULL); /* half of one is none */
	else
		*ret = take_ptr(&report);
	return r;
}

int local_image_repair(struct provider *p, const char *image, const char *repaired, const json_t *options,
		       const struct provider_watch *w, json_t **ret, json_t **ret_manifest, struct err *e)
{
	struct repair b = {.image = image, .repaired = repaired};
	struct local *l = local_of(p);
	char chain[ID_MAX];
	int r = check_image_dir(l, image, &b.from, &b.n, e);

	r = r ?: local_check_id("image", repaired, e);
	r = r ?: local_path(l, &b.to, e, "images/%s", repaired);
	if (r == 0 && strcmp(image, repaired) == 0)
		r = err_set(e, -EINVAL, "a repaired image is another one");
	snprintf(b.backing, sizeof(b.backing), "../%s", image);
	r = r ?: repair_again(l, &b, ret, ret_manifest, e);
	if (r == 0) {
		r = local_chain_share_image(l, image, chain, w, e);
		if (r < 0)
			return r;
		r = repair_shared(l, &b, options, w, ret, ret_manifest, e);
		local_chain_unshare(l, chain);
	}
	local_free_list(b.disks, b.n);
	if (r < 0)
		return r;
	local_image_add_paths(b.to.s, *ret_manifest);
	return 0;
}
