/* Regions: where images are made, and the addresses that data reaches them by. */
#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

int api_list_regions(struct api_request *q)
{
	return api_list(q, &model_regions, NULL);
}

static int answer_region(struct api_request *q, const struct model_region *r)
{
	const struct api_engine *en = &q->api->s.engine;
	json_t *o = model_json(&model_regions, r, false, id_now()), *info = en->region_info(en->arg, r->id);

	if (o)
		json_object_set_new(o, "capacity", info ? info : json_null());
	else
		json_decref(info);
	return api_answer(q, 200, o);
}

int api_get_region(struct api_request *q)
{
	_cleanup_(model_region_release) struct model_region r = {0};

	return api_row(q, &model_regions, &r) < 0 ? -1 : answer_region(q, &r);
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

static int change_region(void *row, void *arg, struct err *e)
{
	const struct model_region_request *in = arg;
	struct model_region *r = row;
	json_t *settings = r->settings ? json_copy(r->settings) : json_object();

	if (!settings)
		return err_nomem(e);
	if (in->public_address)
		json_object_set_new(settings, "public_address", json_string(in->public_address));
	if (in->private_address)
		json_object_set_new(settings, "private_address", json_string(in->private_address));
	model_take_json(&r->settings, settings);
	return 0;
}

int api_patch_region(struct api_request *q)
{
	_cleanup_(model_region_release) struct model_region r = {0};
	struct model_region_request in;
	struct err e = {0};

	if (api_read(q, model_region_patch, q->body, false, &in) < 0 ||
	    check_host(q, "public_address", in.public_address) < 0 ||
	    check_host(q, "private_address", in.private_address) < 0)
		return -1;
	if (store_change(q->api->s.store, &model_regions, q->id, NULL, change_region, &in, &r, &e) < 0)
		return api_fail(q, &e);
	return answer_region(q, &r);
}
