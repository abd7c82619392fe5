#include "base/ip4.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/str.h"

#define PREFIX_MIN 8
#define PREFIX_MAX 30

bool ip4_parse(const char *s, uint32_t *ret)
{
	struct in_addr a;

	if (inet_pton(AF_INET, s, &a) != 1)
		return false;
	*ret = ntohl(a.s_addr);
	return true;
}

const char *ip4_format(uint32_t a, char buf[IP4_TEXT_MAX])
{
	snprintf(buf, IP4_TEXT_MAX, "%u.%u.%u.%u", a >> 24, a >> 16 & 255, a >> 8 & 255, a & 255);
	return buf;
}

uint32_t ip4_mask(unsigned prefix)
{
	return prefix ? ~UINT32_C(0) << (32 - prefix) : 0;
}

/* Can a card have it? Not 0.*, 127.*, 169.254.*, multicast and what lies behind. */
static bool is_host(uint32_t a)
{
	return a >> 24 && a >> 24 != 127 && a >> 24 < 224 && a >> 16 != (169u << 8 | 254);
}

static int check_in_network(const struct ip4_plan *p, uint32_t a, const char *what, struct err *e)
{
	uint32_t mask = ip4_mask(p->prefix);
	char t[IP4_TEXT_MAX], n[IP4_TEXT_MAX];

	ip4_format(a, t);
	ip4_format(p->address & mask, n);
	if (!is_host(a))
		return err_set(e, -EINVAL, "%s '%s' is no address that a server's card can have", what, t);
	if ((a & mask) != (p->address & mask))
		return err_set(e, -EINVAL, "%s '%s' is not in the network %s/%u", what, t, n, p->prefix);
	if ((a & ~mask) == 0 || (a & ~mask) == ~mask)
		return err_set(e, -EINVAL, "%s '%s' is that of the network %s/%u, or its broadcast address", what, t, n,
			       p->prefix);
	return 0;
}

static int check_nameservers(const struct ip4_plan *p, struct err *e)
{
	char t[IP4_TEXT_MAX];

	for (size_t i = 0; i < p->nnameservers; i++) {
		ip4_format(p->nameservers[i], t);
		/* One of its own is asked by 127.0.0.1. */
		if (!is_host(p->nameservers[i]) && p->nameservers[i] >> 24 != 127)
			return err_set(e, -EINVAL, "name server '%s' is no address that can be asked", t);
		for (size_t k = 0; k < i; k++)
			if (p->nameservers[k] == p->nameservers[i])
				return err_set(e, -EINVAL, "name server '%s' is there twice", t);
	}
	return 0;
}

int ip4_plan_check(const struct ip4_plan *p, const char **ret_field, struct err *e)
{
	int r = 0;

	*ret_field = "address";
	if (p->prefix < PREFIX_MIN || p->prefix > PREFIX_MAX)
		return err_set(e, -EINVAL, "the network's length must be %u to %u, not %u", PREFIX_MIN, PREFIX_MAX,
			       p->prefix);
	r = check_in_network(p, p->address, "address", e);
	if (r < 0)
		return r;
	*ret_field = "gateway";
	if (p->gateway)
		r = check_in_network(p, p->gateway, "gateway", e);
	if (r == 0 && p->gateway == p->address)
		r = err_set(e, -EINVAL, "the gateway can't be the server itself");
	if (r < 0)
		return r;
	*ret_field = "nameservers";
	return check_nameservers(p, e);
}

static int read_address(const json_t *j, const char *key, bool required, uint32_t *ret, struct err *e)
{
	const json_t *v = json_object_get(j, key);

	if (!required && (!v || json_is_null(v)))
		return 0;
	return json_is_string(v) && ip4_parse(json_string_value(v), ret)
		   ? 0
		   : err_set(e, -EINVAL, "'%s' of the network is no IPv4 address", key);
}

static int read_mac(const json_t *v, char out[18], struct err *e)
{
	const char *s = json_string_value(v);

	if (!v || json_is_null(v))
		return 0;
	for (size_t i = 0; s && i < 17; i++)
		if (i % 3 == 2 ? s[i] != ':' : !s[i] || !strchr("0123456789abcdefABCDEF", s[i]))
			s = NULL;
	if (!s || s[17])
		return err_set(e, -EINVAL, "'mac' of the network is no address of a card");
	memcpy(out, s, 18);
	return 0;
}

int ip4_plan_read(const json_t *j, struct ip4_plan *ret, struct err *e)
{
	const json_t *list = json_object_get(j, "nameservers");
	struct ip4_plan p = {0};
	const char *field;
	uint64_t prefix = 0;
	int r = read_address(j, "address", true, &p.address, e);

	r = r ?: jsn_get_u64(j, "prefix", true, PREFIX_MIN, PREFIX_MAX, &prefix, e);
	r = r ?: read_address(j, "gateway", false, &p.gateway, e);
	r = r ?: read_mac(json_object_get(j, "mac"), p.mac, e);
	if (r == 0 && json_array_size(list) > IP4_NAMESERVERS)
		r = err_set(e, -EINVAL, "at most %u name servers can be asked", IP4_NAMESERVERS);
	for (size_t i = 0; r == 0 && i < json_array_size(list); i++)
		if (!ip4_parse(json_string_value(json_array_get(list, i)) ?: "", &p.nameservers[p.nnameservers++]))
			r = err_set(e, -EINVAL, "a name server of the network is no IPv4 address");
	p.prefix = (unsigned)prefix;
	r = r ?: ip4_plan_check(&p, &field, e);
	if (r == 0)
		*ret = p;
	return r;
}

json_t *ip4_plan_json(const struct ip4_plan *p)
{
	char address[IP4_TEXT_MAX], gateway[IP4_TEXT_MAX], server[IP4_TEXT_MAX];
	json_t *o = json_pack("{s:s, s:i, s:s?, s:[], s:s?}", "address", ip4_format(p->address, address), "prefix",
			      (int)p->prefix, "gateway", p->gateway ? ip4_format(p->gateway, gateway) : NULL,
			      "nameservers", "mac", *p->mac ? p->mac : NULL);

	for (size_t i = 0; o && i < p->nnameservers; i++)
		json_array_append_new(json_object_get(o, "nameservers"),
				      json_string(ip4_format(p->nameservers[i], server)));
	return o;
}
