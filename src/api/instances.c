/* Machines that run in a region, and what their disks held at moments. */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

/* ---- settings ---- */

static int bad(struct api_request *q, const char *field, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static int bad(struct api_request *q, const char *field, const char *fmt, ...)
{
	char text[ERR_MSG_MAX], path[64];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	snprintf(path, sizeof(path), "settings.%s", field);
	return api_refuse(q, 400, "bad_field", path, "%s", text);
}

/* It becomes part of a command or a document at the hypervisor, which looks itself again. */
static int check_word(struct api_request *q, const char *field, const char *s)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-";

	if (!s || (strspn(s, letters) == strlen(s) && *s != '-' && *s != '.'))
		return 0;
	return bad(q, field, "'%s' has letters, digits, '.', '_' and '-' only, and begins with neither dot nor dash",
		   field);
}

/* That of one card: its first byte has no bit of a group. */
static int check_mac(struct api_request *q, const char *s)
{
	unsigned char bytes[6];
	char hex[13];

	for (size_t i = 0; s && i < 6; i++) {
		memcpy(hex + 2 * i, s + 3 * i, 2);
		hex[2 * i + 2] = '\0';
		if (i < 5 && s[3 * i + 2] != ':')
			return bad(q, "mac", "'%.32s' is not like 52:54:00:12:34:56", s);
	}
	if (!s)
		return 0;
	if (str_unhex(hex, bytes, sizeof(bytes)) < 0)
		return bad(q, "mac", "'%.32s' is not like 52:54:00:12:34:56", s);
	return bytes[0] & 1 ? bad(q, "mac", "'%.32s' is the address of a group, not of a card", s) : 0;
}

static int check_address(struct api_request *q, const char *s)
{
	struct in_addr a;
	uint32_t n;

	if (!s)
		return 0;
	if (inet_pton(AF_INET, s, &a) != 1)
		return bad(q, "address", "'%.32s' is not an IPv4 address", s);
	n = ntohl(a.s_addr);
	if (n >> 24 == 0 || n >> 24 == 127 || n >> 28 >= 14)
		return bad(q, "address", "'%s' is not the address of one machine on a network", s);
	return 0;
}

static int check_forwards(struct api_request *q, const struct model_instance_settings *in)
{
	struct model_forward f[32];
	char part[64];
	json_t *v;
	size_t i;

	json_array_foreach(in->forwards, i, v)
	{
		must(i < ARRAY_SIZE(f));
		snprintf(part, sizeof(part), "settings.forwards");
		if (api_read_part(q, part, model_forward, v, false, &f[i]) < 0)
			return -1;
		for (size_t k = 0; k < i; k++)
			if (f[k].host == f[i].host)
				return bad(q, "forwards", "port %llu of the host can't lead to two places",
					   (unsigned long long)f[i].host);
	}
	if (json_array_size(in->forwards) && in->network && strcmp(in->network, "user") != 0)
		return bad(q, "forwards", "ports are forwarded with the network 'user' only");
	return 0;
}

static int check_settings(struct api_request *q, const json_t *settings)
{
	struct model_instance_settings in;

	if (!settings)
		return 0;
	if (api_read_part(q, "settings", model_instance_settings, settings, false, &in) < 0 ||
	    check_word(q, "cpu", in.cpu) < 0 || check_word(q, "network", in.network) < 0 || check_mac(q, in.mac) < 0 ||
	    check_address(q, in.address) < 0)
		return -1;
	return check_forwards(q, &in);
}

/* ---- making ---- */

static int check_region(struct api_request *q, const char *id)
{
	_cleanup_(model_region_release) struct model_region region = {0};
	struct store *s = q->api->s.store;

	if (s->ops->get(s, &model_regions, id, &region, NULL) < 0)
		return api_refuse(q, 400, "bad_field", "region", "there is no region '%s'", id);
	return 0;
}

static int check_image(struct api_request *q, const char *id)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	struct store *s = q->api->s.store;

	if (!id_is("image", id) || s->ops->get(s, &model_images, id, &im, NULL) < 0 || !api_scope_sees(q, im.tags))
		return api_refuse(q, 400, "bad_field", "image", "there is no image '%s'", id);
	return 0;
}

static int fill(struct api_request *q, const struct model_instance_request *r, struct model_instance *in)
{
	char id[ID_MAX];

	in->tags = api_scope_tags(q, r->tags);
	if (!in->tags && *q->fault.code)
		return -1;
	id_new("instance", id);
	in->created = in->updated = id_now();
	if (model_set(&in->id, id) < 0 || model_set(&in->name, r->name) < 0 ||
	    model_set(&in->description, r->description) < 0 || model_set(&in->region, r->region ?: "local") < 0 ||
	    model_set(&in->image, r->image) < 0 || model_set(&in->ref, r->ref) < 0)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	in->settings = model_settings_over(NULL, r->settings);
	return in->settings ? 0 : api_refuse(q, 500, "internal", NULL, "out of memory");
}

static int make(struct api_request *q, const struct model_instance_request *r)
{
	_cleanup_(model_instance_release) struct model_instance in = {0};
	const struct api_engine *en = &q->api->s.engine;
	int x;

	if (fill(q, r, &in) < 0)
		return -1;
	x = en->instance_create(en->arg, &in, r->start, &q->fault);
	if (x < 0 && strcmp(q->fault.code, "exists") == 0 && r->ref && !strstr(q->fault.message, "name"))
		return api_refuse(q, 409, "exists", "ref", "'%s' of region '%s' is an instance already", r->ref,
				  in.region);
	if (x < 0)
		return api_name_taken(q, &model_instances, r->name);
	return api_answer_row(q, x == 0 ? 201 : 202, &model_instances, &in);
}

int api_post_instance(struct api_request *q)
{
	struct model_instance_request in;

	if (api_read(q, model_instance_request, q->body, false, &in) < 0 || check_region(q, in.region ?: "local") < 0 ||
	    check_image(q, in.image) < 0 || check_settings(q, in.settings) < 0)
		return -1;
	in.ref = NULL;
	return make(q, &in);
}

int api_import_instance(struct api_request *q)
{
	struct model_instance_request in = {0};

	if (api_read(q, model_instance_import, q->body, false, &in) < 0 || check_region(q, in.region ?: "local") < 0)
		return -1;
	return make(q, &in);
}

/* ---- looking ---- */

int api_list_instances(struct api_request *q)
{
	return api_list(q, &model_instances, NULL);
}

int api_get_instance(struct api_request *q)
{
	_cleanup_(model_instance_release) struct model_instance in = {0};
	const struct api_engine *en = &q->api->s.engine;

	if (api_row(q, &model_instances, &in) < 0)
		return -1;
	en->instance_see(en->arg, &in);
	return api_answer_row(q, 200, &model_instances, &in);
}

static int name_one(void *arg, void *row)
{
	const struct model_instance *in = row;

	return in->ref ? MIN(0, json_object_set_new(arg, in->ref, json_string(in->id))) : 0;
}

/* What runs there, and which of it is an instance here. */
int api_list_region_instances(struct api_request *q)
{
	const struct api_engine *en = &q->api->s.engine;
	struct store_filter f = {"region", q->id};
	struct store_query sq = {.filters = &f, .nfilters = 1};
	_cleanup_(model_region_release) struct model_region region = {0};
	_cleanup_json_ json_t *list = NULL, *known = json_object();
	struct store *s = q->api->s.store;
	struct err e = {0};
	json_t *one;
	size_t i;

	if (api_row(q, &model_regions, &region) < 0 || en->instance_list(en->arg, q->id, &list, &q->fault) < 0)
		return -1;
	if (s->ops->list(s, &model_instances, &sq, name_one, known, NULL, &e) < 0)
		return api_fail(q, &e);
	json_array_foreach(list, i, one)
	{
		json_t *id = json_object_get(known, json_string_value(json_object_get(one, "ref")) ?: "");

		json_object_set_new(one, "instance", id ? json_incref(id) : json_null());
	}
	return api_answer(q, 200, json_pack("{s:O, s:i}", "items", list, "total", (int)json_array_size(list)));
}

int api_get_instance_screenshot(struct api_request *q)
{
	_cleanup_(model_instance_release) struct model_instance in = {0};
	const struct api_engine *en = &q->api->s.engine;
	int fd;

	if (api_row(q, &model_instances, &in) < 0 || en->instance_screen(en->arg, &in, &fd, &q->fault) < 0)
		return -1;
	return api_answer_fd(q, fd, "image/png", NULL);
}

int api_get_instance_serial(struct api_request *q)
{
	_cleanup_(model_instance_release) struct model_instance in = {0};
	_cleanup_(str_release) struct str text = {0};
	const struct api_engine *en = &q->api->s.engine;
	uint64_t since = 0, end = 0;

	if (api_query_number(q, "since", 0, INT64_MAX, &since) < 0 || api_row(q, &model_instances, &in) < 0 ||
	    en->instance_serial(en->arg, &in, since, &text, &end, &q->fault) < 0)
		return -1;
	return api_answer_log(q, &text, end);
}

/* ---- doing ---- */

/* The row as it is then: done, or under way. */
static int act(struct api_request *q, const struct api_instance_do *a)
{
	_cleanup_(model_instance_release) struct model_instance in = {0};
	const struct api_engine *en = &q->api->s.engine;
	int r = en->instance_do(en->arg, q->id, a, &q->fault);

	if (r < 0 || api_row(q, &model_instances, &in) < 0)
		return -1;
	return api_answer_row(q, r == 0 ? 200 : 202, &model_instances, &in);
}

static int change(void *row, void *arg, struct err *e)
{
	const struct model_instance_request *r = arg;
	struct model_instance *in = row;

	if ((r->name && model_set(&in->name, r->name) < 0) ||
	    (r->description && model_set(&in->description, r->description) < 0))
		return err_nomem(e);
	if (r->tags)
		model_take_json(&in->tags, json_incref(r->tags));
	return 0;
}

int api_patch_instance(struct api_request *q)
{
	_cleanup_(model_instance_release) struct model_instance in = {0};
	struct api_instance_do a = {.verb = INSTANCE_CHANGE};
	struct model_instance_request r;
	struct err e = {0};

	if (api_read(q, model_instance_patch, q->body, false, &r) < 0 || api_scope_keeps(q, r.tags) < 0 ||
	    check_settings(q, r.settings) < 0)
		return -1;
	if (r.name || r.description || r.tags || !r.settings) {
		if (store_change(q->api->s.store, &model_instances, q->id, "updated", change, &r, &in, &e) < 0) {
			api_fail(q, &e);
			return api_name_taken(q, &model_instances, r.name ?: "");
		}
	}
	if (!r.settings)
		return api_answer_row(q, 200, &model_instances, &in);
	a.settings = r.settings;
	return act(q, &a);
}

static int query_flag(struct api_request *q, const char *name, bool *ret)
{
	const char *s = api_query(q, name);

	if (s && strcmp(s, "true") != 0 && strcmp(s, "false") != 0)
		return api_refuse(q, 400, "bad_parameter", name, "'%s' must be true or false", name);
	*ret = s && strcmp(s, "true") == 0;
	return 0;
}

int api_delete_instance(struct api_request *q)
{
	struct api_instance_do a = {.verb = INSTANCE_DELETE};
	const struct api_engine *en = &q->api->s.engine;
	int r;

	if (query_flag(q, "keep", &a.keep) < 0 || query_flag(q, "force", &a.force) < 0)
		return -1;
	r = en->instance_do(en->arg, q->id, &a, &q->fault);
	if (r < 0)
		return -1;
	return r == 0 ? api_done(q) : api_answer(q, 202, json_pack("{s:s, s:s}", "id", q->id, "state", "deleting"));
}

int api_start_instance(struct api_request *q)
{
	struct api_instance_do a = {.verb = INSTANCE_START};

	return api_read_nothing(q) < 0 ? -1 : act(q, &a);
}

static int stop(struct api_request *q, enum instance_verb verb)
{
	struct model_instance_stop in;
	struct api_instance_do a = {.verb = verb};

	if (api_read(q, model_instance_stop, q->body, false, &in) < 0)
		return -1;
	a.seconds = in.force ? 0 : (double)in.seconds;
	return act(q, &a);
}

int api_stop_instance(struct api_request *q)
{
	return stop(q, INSTANCE_STOP);
}

int api_restart_instance(struct api_request *q)
{
	return stop(q, INSTANCE_RESTART);
}

/* ---- snapshots ---- */

int api_post_snapshot(struct api_request *q)
{
	_cleanup_(model_snapshot_release) struct model_snapshot sn = {0};
	struct api_instance_do a = {.verb = INSTANCE_SNAPSHOT};
	const struct api_engine *en = &q->api->s.engine;
	struct model_snapshot_request in;
	struct store *s = q->api->s.store;
	struct err e = {0};
	char id[ID_MAX];
	int r;

	if (api_read(q, model_snapshot_request, q->body, false, &in) < 0)
		return -1;
	id_new("snapshot", id);
	a.snapshot = id;
	a.name = in.name;
	r = en->instance_do(en->arg, q->id, &a, &q->fault);
	if (r < 0)
		return -1;
	if (s->ops->get(s, &model_snapshots, id, &sn, &e) < 0)
		return api_fail(q, &e);
	return api_answer_row(q, r == 0 ? 201 : 202, &model_snapshots, &sn);
}

int api_list_snapshots(struct api_request *q)
{
	_cleanup_(model_instance_release) struct model_instance in = {0};
	struct store_filter of = {"instance", q->id};

	return api_row(q, &model_instances, &in) < 0 ? -1 : api_list_of(q, &model_snapshots, &of, NULL);
}

int api_get_snapshot(struct api_request *q)
{
	_cleanup_(model_snapshot_release) struct model_snapshot sn = {0};

	return api_row(q, &model_snapshots, &sn) < 0 ? -1 : api_answer_row(q, 200, &model_snapshots, &sn);
}

int api_delete_snapshot(struct api_request *q)
{
	_cleanup_(model_snapshot_release) struct model_snapshot sn = {0};
	struct api_instance_do a = {.verb = INSTANCE_TIDY, .snapshot = q->id};
	const struct api_engine *en = &q->api->s.engine;

	if (api_row(q, &model_snapshots, &sn) < 0)
		return -1;
	/* Its row is gone when this is begun; what of its disks nobody needs goes behind it. */
	return en->instance_do(en->arg, sn.instance, &a, &q->fault) < 0 ? -1 : api_done(q);
}

int api_revert_snapshot(struct api_request *q)
{
	_cleanup_(model_snapshot_release) struct model_snapshot sn = {0};
	struct api_instance_do a = {.verb = INSTANCE_REVERT};
	char id[ID_MAX];

	if (api_read_nothing(q) < 0 || api_row(q, &model_snapshots, &sn) < 0)
		return -1;
	memcpy(id, q->id, sizeof(id));
	a.snapshot = id;
	snprintf(q->id, sizeof(q->id), "%s", sn.instance);
	return act(q, &a);
}
