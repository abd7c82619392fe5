/* The address a job gives to its destination: what its parameters say, and what a source has. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"
#include "model/model.h"

static const char *text_of(const json_t *parameters, const char *key)
{
	const char *s = json_string_value(json_object_get(parameters, key));

	return s && *s ? s : NULL;
}

/* "A.B.C.D/len" */
static int read_network(const char *s, struct ip4_plan *p, struct err *e)
{
	const char *slash = strchr(s, '/');
	char address[IP4_TEXT_MAX] = "";
	uint64_t prefix = 0;

	if (slash && (size_t)(slash - s) < sizeof(address))
		memcpy(address, s, (size_t)(slash - s));
	if (!ip4_parse(address, &p->address) || str_u64(slash + 1, 0, 32, &prefix) < 0)
		return err_set(e, -EINVAL,
			       "'address' must be dhcp, keep, or an IPv4 address and the length of its network such as "
			       "192.0.2.7/24, not '%.64s'",
			       s);
	p->prefix = (unsigned)prefix;
	return 0;
}

static int read_servers(const char *s, struct ip4_plan *p, struct err *e)
{
	while (s && *s) {
		size_t n = strcspn(s, ",");
		char one[IP4_TEXT_MAX] = "";

		if (n < sizeof(one))
			memcpy(one, s, n);
		if (p->nnameservers == IP4_NAMESERVERS || !ip4_parse(one, &p->nameservers[p->nnameservers]))
			return err_set(e, -EINVAL,
				       "'nameservers' must be at most %u IPv4 addresses with commas between them",
				       IP4_NAMESERVERS);
		p->nnameservers++;
		s += n + (s[n] == ',');
	}
	return 0;
}

int model_read_address(const json_t *parameters, enum model_address *ret, struct ip4_plan *ret_plan,
		       const char **ret_field, struct err *e)
{
	const char *address = text_of(parameters, "address") ?: "dhcp", *gateway = text_of(parameters, "gateway");
	const char *servers = text_of(parameters, "nameservers");
	struct ip4_plan p = {0};
	int r;

	*ret = strcmp(address, "dhcp") == 0   ? ADDRESS_DHCP
	       : strcmp(address, "keep") == 0 ? ADDRESS_KEEP
					      : ADDRESS_GIVEN;
	*ret_field = gateway ? "gateway" : "nameservers";
	if (*ret == ADDRESS_DHCP && (gateway || servers))
		return err_set(e, -EINVAL, "'%s' goes with an address that is kept or given; DHCP brings its own",
			       *ret_field);
	*ret_field = "address";
	r = *ret == ADDRESS_GIVEN ? read_network(address, &p, e) : 0;
	if (r < 0)
		return r;
	*ret_field = "gateway";
	if (gateway && !ip4_parse(gateway, &p.gateway))
		return err_set(e, -EINVAL, "'gateway' must be an IPv4 address, not '%.64s'", gateway);
	*ret_field = "nameservers";
	r = read_servers(servers, &p, e);
	if (r == 0 && *ret == ADDRESS_GIVEN)
		r = ip4_plan_check(&p, ret_field, e);
	if (r == 0)
		*ret_plan = p;
	return r;
}

/* ---- what a source has ---- */

/* That of the default route with the lowest metric; *ret_card is borrowed. */
static uint32_t find_gateway(const json_t *network, const char **ret_card)
{
	json_int_t best = INT64_MAX;
	uint32_t found = 0, a;
	json_t *route;
	size_t i;

	*ret_card = NULL;
	json_array_foreach(json_object_get(network, "default_routes"), i, route)
	{
		const char *gateway = text_of(route, "gateway"), *card = text_of(route, "interface");
		json_int_t metric = json_integer_value(json_object_get(route, "metric"));

		if (!gateway || !card || metric >= best || !ip4_parse(gateway, &a))
			continue;
		best = metric;
		found = a;
		*ret_card = card;
	}
	return found;
}

static bool find_address(const json_t *interface, struct ip4_plan *p)
{
	json_t *one;
	size_t i;

	json_array_foreach(json_object_get(interface, "addresses"), i, one)
	{
		json_int_t prefix = json_integer_value(json_object_get(one, "prefix"));
		const char *address = text_of(one, "address");

		if (!address || prefix < 0 || prefix > 32 || !ip4_parse(address, &p->address) ||
		    p->address >> 24 == 127)
			continue;
		p->prefix = (unsigned)prefix;
		return true;
	}
	return false;
}

/* Of the card that leads to the rest of the world; without one, of the only card that has any. */
static int keep_address(const json_t *network, struct ip4_plan *p, struct err *e)
{
	unsigned n = 0;
	const char *card;
	uint32_t gateway = find_gateway(network, &card);
	json_t *interface;
	size_t i;

	json_array_foreach(json_object_get(network, "interfaces"), i, interface)
	{
		const char *name = text_of(interface, "name"), *kind = text_of(interface, "kind");
		struct ip4_plan one = *p;

		if (card ? !name || strcmp(name, card) != 0 : !kind || strcmp(kind, "physical") != 0)
			continue;
		if (!find_address(interface, &one))
			continue;
		p->address = one.address;
		p->prefix = one.prefix;
		n++;
	}
	if (n != 1)
		return err_set(
		    e, -EINVAL,
		    n ? "the source has several addresses and no default route says which is meant (give the "
			"address by hand)"
		      : "the source has no IPv4 address that could be kept (give the address by hand)");
	if (!p->gateway)
		p->gateway = gateway;
	return 0;
}

int model_keep_address(const json_t *inventory, struct ip4_plan *p, struct err *e)
{
	const json_t *network = json_object_get(inventory, "network"), *v;
	bool own = !p->nnameservers;
	struct ip4_plan q = *p;
	const char *field;
	size_t i;
	int r = keep_address(network, &q, e);

	json_array_foreach(json_object_get(network, "dns"), i, v)
	{
		bool known = !own || q.nnameservers == IP4_NAMESERVERS ||
			     !ip4_parse(json_string_value(v) ?: "", &q.nameservers[q.nnameservers]);

		/* What answers there is the old system's; the tools that have one name it themselves. */
		known = known || q.nameservers[q.nnameservers] >> 24 == 127;
		for (size_t k = 0; !known && k < q.nnameservers; k++)
			known = q.nameservers[k] == q.nameservers[q.nnameservers];
		q.nnameservers += !known;
	}
	r = r ?: ip4_plan_check(&q, &field, e);
	if (r == 0)
		*p = q;
	return r < 0 ? err_prefix(e, "the source's address can't be kept") : 0;
}
