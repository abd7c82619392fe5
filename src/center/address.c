/* The address that a job's conversion gives the system, as numbers. */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "center/engine.h"

/* QEMU's own network for one machine, as provider/qemu_args.c makes it: all of it follows from the address. */
#define USER_PREFIX     24
#define USER_GATEWAY    2
#define USER_NAMESERVER 3
#define USER_OTHER      254 /* where the machine itself has the number */

static uint32_t user_host(uint32_t address, uint32_t number)
{
	return (address & ip4_mask(USER_PREFIX)) | ((address & 255) == number ? USER_OTHER : number);
}

/* "A.B.C.D" or "A.B.C.D/len". */
static bool read_seen(const char *s, uint32_t *ret, unsigned *ret_prefix)
{
	char address[IP4_TEXT_MAX] = "";
	const char *slash = strchr(s, '/');
	size_t n = slash ? (size_t)(slash - s) : strlen(s);
	uint64_t prefix = 0;

	if (n >= sizeof(address) || (slash && str_u64(slash + 1, 1, 32, &prefix) < 0))
		return false;
	memcpy(address, s, n);
	*ret_prefix = (unsigned)prefix;
	return ip4_parse(address, ret);
}

/* What it was last seen with; before that what its network is told to give it. */
static bool instance_address(const struct model_instance *in, uint32_t *ret, unsigned *ret_prefix)
{
	const char *s = json_string_value(json_object_get(in->settings, "address"));
	json_t *v;
	size_t i;

	json_array_foreach(json_object_get(in->seen, "addresses"), i,
			   v) if (json_is_string(v) && read_seen(json_string_value(v), ret, ret_prefix)) return true;
	return s && read_seen(s, ret, ret_prefix);
}

static int keep_instance(struct engine *en, const char *id, struct ip4_plan *p, struct err *e)
{
	_cleanup_(model_instance_release) struct model_instance in = {0};
	int r = en->store->ops->get(en->store, &model_instances, id, &in, e);
	const char *network, *field;
	bool user;

	if (r < 0)
		return r;
	network = json_string_value(json_object_get(in.settings, "network")) ?: "user";
	user = strcmp(network, "user") == 0;
	if (!instance_address(&in, &p->address, &p->prefix))
		return err_set(e, -EINVAL,
			       "no IPv4 address of instance '%s' is known (start it once, or give the address by hand)",
			       in.name);
	if (user)
		p->prefix = USER_PREFIX;
	if (!p->prefix)
		return err_set(
		    e, -EINVAL,
		    "how long the network of instance '%s' is isn't known (give the address by hand, such as "
		    "192.0.2.7/24)",
		    in.name);
	if (user && !p->gateway)
		p->gateway = user_host(p->address, USER_GATEWAY);
	if (user && !p->nnameservers)
		p->nameservers[p->nnameservers++] = user_host(p->address, USER_NAMESERVER);
	return ip4_plan_check(p, &field, e);
}

int address_resolve(struct engine *en, const struct model_job *job, const json_t *inventory, json_t **ret,
		    struct err *e)
{
	enum model_address kind;
	struct ip4_plan p;
	const char *field;
	int r = model_read_address(job->parameters, &kind, &p, &field, e);

	if (r == 0 && kind == ADDRESS_KEEP)
		r = job->instance && *job->instance ? keep_instance(en, job->instance, &p, e)
						    : model_keep_address(inventory, &p, e);
	if (r < 0)
		return r;
	*ret = kind == ADDRESS_DHCP ? NULL : ip4_plan_json(&p);
	return kind == ADDRESS_DHCP || *ret ? 0 : err_nomem(e);
}
