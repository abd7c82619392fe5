/* Images, their reports and pictures, and files made of them. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

static void without(json_t **field, const char *key)
{
	json_t *copy = json_object_get(*field, key) ? json_copy(*field) : NULL;

	if (copy) {
		json_object_del(copy, key);
		model_take_json(field, copy);
	}
}

/* A page of images must not be a page of inventories and consoles: those are left to GET of the one image. */
static void brief_image(struct api_request *q, void *row)
{
	struct model_image *im = row;
	json_t *meta = json_incref(json_object_get(im->manifest, "meta"));

	without(&im->boot, "report");
	if (json_object_get(meta, "inventory")) {
		without(&im->manifest, "meta");
		without(&meta, "inventory");
		json_object_set(im->manifest, "meta", meta);
	}
	json_decref(meta);
}

int api_list_images(struct api_request *q)
{
	return api_list(q, &model_images, brief_image);
}

/* What conversion did, and what the test boot saw. */
static json_t *report_of(struct model_image *im)
{
	without(&im->report, "source"); /* as big as an inventory */
	return json_pack("{s:O?, s:O?}", "conversion", im->report, "test_boot", json_object_get(im->boot, "report"));
}

int api_get_image(struct api_request *q)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	json_t *o;

	if (api_row(q, &model_images, &im) < 0)
		return -1;
	o = model_json(&model_images, &im, false, id_now());
	if (o && json_object_set_new(o, "report", report_of(&im)) < 0) {
		json_decref(o);
		o = NULL;
	}
	return api_answer(q, 200, o);
}

int api_patch_image(struct api_request *q)
{
	_cleanup_(model_image_release) struct model_image im = {0};

	return api_rename(q, &model_images, &im);
}

int api_delete_image(struct api_request *q)
{
	const struct api_engine *en = &q->api->s.engine;

	int r = en->image_remove(en->arg, q->id, &q->fault);

	if (r < 0)
		return -1;
	return r == 0 ? api_done(q) : api_answer(q, 202, json_pack("{s:s, s:s}", "id", q->id, "state", "deleting"));
}

int api_get_report(struct api_request *q)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	json_t *o;

	if (api_row(q, &model_images, &im) < 0)
		return -1;
	o = report_of(&im);
	if (o)
		json_object_set_new(o, "image", json_string(im.id));
	return api_answer(q, 200, o);
}

int api_get_screenshot(struct api_request *q)
{
	_cleanup_(model_image_release) struct model_image im = {0};

	if (api_row(q, &model_images, &im) < 0)
		return -1;
	return api_answer_picture(q, im.screenshot, "image", im.id, "screenshot; boot it first");
}

int api_boot_image(struct api_request *q)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	const struct api_engine *en = &q->api->s.engine;
	struct model_boot_request in = {0};

	if (api_read(q, model_boot_request, q->body, false, &in) < 0)
		return -1;
	if (en->image_boot(en->arg, q->id, in.checks, &q->fault) < 0)
		return -1;
	return api_row(q, &model_images, &im) < 0 ? -1 : api_answer_row(q, 202, &model_images, &im);
}

/* ---- exports ---- */

void api_export_path(const char *dir, const struct model_export *x, char *buf, size_t size)
{
	snprintf(buf, size, "%s/%s.%s", dir, x->id, model_export_formats[x->format]);
}

int api_post_export(struct api_request *q)
{
	_cleanup_(model_export_release) struct model_export x = {0};
	_cleanup_(model_image_release) struct model_image im = {0};
	const struct api_engine *en = &q->api->s.engine;
	struct model_export_request in;
	char id[ID_MAX];
	size_t disks;

	if (api_read(q, model_export_request, q->body, false, &in) < 0 || api_row(q, &model_images, &im) < 0)
		return -1;
	disks = json_array_size(json_object_get(im.manifest, "disks"));
	if (disks && in.disk >= disks)
		return api_refuse(q, 400, "bad_field", "disk", "image '%s' has %zu disks, the first is 0", im.id,
				  disks);
	id_new("export", id);
	x.disk = in.disk;
	x.format = in.format;
	x.created = id_now();
	if (model_set(&x.id, id) < 0 || model_set(&x.image, im.id) < 0)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	if (api_save(q, &model_exports, "created", &x) < 0 || en->export_start(en->arg, id, &q->fault) < 0)
		return -1;
	return api_answer_row(q, 202, &model_exports, &x);
}

/* An export has no tags of its own. */
int api_list_exports(struct api_request *q)
{
	const char *image = api_query(q, "image");

	if (q->scope && !image)
		return api_refuse(
		    q, 403, "forbidden", "image",
		    "this token is limited to things with certain tags: name the image whose exports it wants");
	if (q->scope && api_scope_row(q, &model_images, image) < 0)
		return -1;
	return api_list(q, &model_exports, NULL);
}

int api_get_export(struct api_request *q)
{
	_cleanup_(model_export_release) struct model_export x = {0};

	return api_row(q, &model_exports, &x) < 0 ? -1 : api_answer_row(q, 200, &model_exports, &x);
}

int api_delete_export(struct api_request *q)
{
	const struct api_engine *en = &q->api->s.engine;

	return en->export_remove(en->arg, q->id, &q->fault) < 0 ? -1 : api_done(q);
}

int api_get_export_data(struct api_request *q)
{
	_cleanup_(model_export_release) struct model_export x = {0};
	char path[4096], name[ID_MAX + 8];
	int fd;

	if (api_row(q, &model_exports, &x) < 0)
		return -1;
	if (x.state != EXPORT_FINISHED)
		return api_refuse(q, 409, "not_ready", NULL,
				  "export '%s' is %s; its data can be had when it is finished", x.id,
				  model_export_states[x.state]);
	api_export_path(q->api->s.exports, &x, path, sizeof(path));
	fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return api_refuse(q, 404, "not_found", NULL, "the file of export '%s' is gone; export again", x.id);
	snprintf(name, sizeof(name), "%s.%s", x.id, model_export_formats[x.format]);
	return api_answer_fd(q, fd, "application/octet-stream", name);
}
