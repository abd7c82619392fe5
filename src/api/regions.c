/* Regions: where instances run. Images are made on the center's own host, the region local, whose addresses data goes
 * to; the others are hosts of libvirt. */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

int api_list_regions(struct api_request *q)
{
	return api_list(q, &model_regions, NULL);
}

static int answer_region(struct api_request *q, int status, const struct model_region *r)
{
	const struct api_engine *en = &q->api->s.engine;
	json_t *o = model_json(&model_regions, r, false, id_now()), *info = en->region_info(en->arg, r->id);

	if (o)
		json_object_set_new(o, "capacity", info ? info : json_null());
	else
		json_decref(info);
	return api_answer(q, status, o);
}

int api_get_region(struct api_request *q)
{
	_cleanup_(model_region_release) struct model_region r = {0};

	return api_row(q, &model_regions, &r) < 0 ? -1 : answer_region(q, 200, &r);
}

/* A host's name or address, which agents are told; "" for none. */
static int check_host(struct api_request *q, const char *field, const char *host)
{
	struct in6_addr in6;

	/* With a colon it is no name, and no port belongs to it. */
	if (host && strchr(host, ':') && inet_pton(AF_INET6, host, &in6) != 1)
		return api_refuse(q, 400, "bad_field", field, "'%.64s' is no address; leave out port and brackets",
				  host);
	if (!host || strspn(host, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:") == strlen(host))
		return 0;
	return api_refuse(q, 400, "bad_field", field, "'%.64s' is neither a name nor an address", host);
}

/* What a request says of the host, over what is known of it. */
static int lay_settings(json_t *settings, const struct model_region_request *in)
{
	const struct {
		const char *key, *value;
	} given[] = {
	    {"uri", in->uri},
	    {"pool", in->pool},
	    {"network", in->network},
	    {"accelerator", in->accelerator},
	    {"public_address", in->public_address},
	    {"private_address", in->private_address},
	};

	for (size_t i = 0; i < ARRAY_SIZE(given); i++)
		if (given[i].value && json_object_set_new(settings, given[i].key, json_string(given[i].value)) < 0)
			return -ENOMEM;
	return 0;
}

static int check_settings(struct api_request *q, const char *provider, const struct model_region_request *in,
			  const json_t *settings)
{
	const struct api_engine *en = &q->api->s.engine;
	const char *a = in->accelerator;

	if (a && *a && strcmp(a, "tcg") != 0)
		return api_refuse(q, 400, "bad_field", "accelerator", "'%.8s' is not 'tcg', which is the only choice",
				  a);
	return en->region_check(en->arg, provider, settings, &q->fault);
}

static int change_region(void *row, void *arg, struct err *e)
{
	const struct model_region_request *in = arg;
	struct model_region *r = row;
	json_t *settings = r->settings ? json_copy(r->settings) : json_object();

	if (!settings || lay_settings(settings, in) < 0 || (in->name && model_set(&r->name, in->name) < 0)) {
		json_decref(settings);
		return err_nomem(e);
	}
	model_take_json(&r->settings, settings);
	return 0;
}

static bool has_instances(struct api_request *q)
{
	struct store_filter f = {"region", q->id};
	struct store_query query = {.filters = &f, .nfilters = 1, .limit = 1};
	struct store *s = q->api->s.store;
	size_t n = 0;

	/* What can't be counted might be there. */
	return s->ops->list(s, &model_instances, &query, NULL, NULL, &n, NULL) < 0 || n > 0;
}

/* Of a region elsewhere: data goes to the center all the same, and disks are found by their pool. */
static int check_patch(struct api_request *q, const struct model_region *now, const struct model_region_request *in)
{
	const char *pool = json_string_value(json_object_get(now->settings, "pool")) ?: "default";
	_cleanup_json_ json_t *settings = now->settings ? json_copy(now->settings) : json_object();
	bool host = in->uri || in->pool || in->network || in->accelerator;

	if (strcmp(now->provider, "local") == 0)
		return host ? api_refuse(q, 400, "bad_field",
					 in->uri       ? "uri"
					 : in->pool    ? "pool"
					 : in->network ? "network"
						       : "accelerator",
					 "region '%s' is the center's own host; only its addresses and name can be set",
					 now->id)
			    : 0;
	if (in->public_address || in->private_address)
		return api_refuse(q, 400, "bad_field", in->public_address ? "public_address" : "private_address",
				  "data goes to the center, whatever the region; set the address of region 'local'");
	if (in->pool && strcmp(in->pool, pool) != 0 && has_instances(q))
		return api_refuse(q, 409, "in_use", "pool",
				  "the disks of its instances are in pool '%.128s'; remove the instances first", pool);
	if (!settings || lay_settings(settings, in) < 0)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	return host ? check_settings(q, now->provider, in, settings) : 0;
}

int api_patch_region(struct api_request *q)
{
	_cleanup_(model_region_release) struct model_region now = {0}, r = {0};
	struct model_region_request in;
	struct err e = {0};

	if (api_read(q, model_region_patch, q->body, false, &in) < 0 ||
	    check_host(q, "public_address", in.public_address) < 0 ||
	    check_host(q, "private_address", in.private_address) < 0 || api_row(q, &model_regions, &now) < 0 ||
	    check_patch(q, &now, &in) < 0)
		return -1;
	if (store_change(q->api->s.store, &model_regions, q->id, NULL, change_region, &in, &r, &e) < 0)
		return api_fail(q, &e);
	return answer_region(q, 200, &r);
}

/* Writing a row would change one that is there. */
static int add_region(struct store *s, const struct model_region *r, struct err *e)
{
	_cleanup_(model_region_release) struct model_region there = {0};
	int k = s->ops->begin(s, e);

	if (k < 0)
		return k;
	k = s->ops->get(s, &model_regions, r->id, &there, e);
	if (k == 0)
		k = err_set(e, -EEXIST, "there is a region '%s' already", r->id);
	else if (k == -ENOENT)
		k = s->ops->put(s, &model_regions, r, e);
	if (k < 0) {
		s->ops->rollback(s);
		return k;
	}
	return s->ops->commit(s, e);
}

int api_post_region(struct api_request *q)
{
	_cleanup_(model_region_release) struct model_region r = {.created = id_now()};
	struct model_region_request in = {0}; /* a new one is told no addresses */
	struct err e = {0};

	if (api_read(q, model_region_request, q->body, false, &in) < 0)
		return -1;
	if (strspn(in.id, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(in.id) || in.id[0] == '-')
		return api_refuse(q, 400, "bad_field", "id",
				  "'%.64s' is no id of a region: lower-case letters, digits and '-'", in.id);
	if (strcmp(in.provider, "libvirt") != 0)
		return api_refuse(q, 400, "bad_field", "provider", "'%.16s' is not 'libvirt', which is the only choice",
				  in.provider);
	r.settings = json_object();
	if (!r.settings || lay_settings(r.settings, &in) < 0 || model_set(&r.id, in.id) < 0 ||
	    model_set(&r.name, in.name ?: in.id) < 0 || model_set(&r.provider, in.provider) < 0)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	if (check_settings(q, r.provider, &in, r.settings) < 0)
		return -1;
	if (add_region(q->api->s.store, &r, &e) < 0)
		return api_fail(q, &e);
	return answer_region(q, 201, &r);
}

int api_delete_region(struct api_request *q)
{
	_cleanup_(model_region_release) struct model_region r = {0};
	struct store *s = q->api->s.store;
	struct err e = {0};
	int k;

	if (api_row(q, &model_regions, &r) < 0)
		return -1;
	if (strcmp(r.provider, "local") == 0)
		return api_refuse(q, 409, "in_use", NULL, "region '%s' is the center's own host; it stays", r.id);
	k = store_forget(s, &model_regions, q->id, &e);
	if (k == -EBUSY)
		return api_refuse(q, 409, "in_use", NULL,
				  "jobs, images or instances belong to region '%s'; remove those first", r.id);
	return k < 0 ? api_fail(q, &e) : api_done(q);
}
