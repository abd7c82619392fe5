/* Network interfaces, addresses, default routes and resolvers. */
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/agent_int.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"

#define NETINFO_FILE_MAX   (1u << 20)
#define NETINFO_INTERFACES 256

static int netinfo_prefix(const struct sockaddr *mask)
{
	const uint8_t *p = mask->sa_family == AF_INET6
			       ? (const uint8_t *)&((const struct sockaddr_in6 *)(const void *)mask)->sin6_addr
			       : (const uint8_t *)&((const struct sockaddr_in *)(const void *)mask)->sin_addr;
	size_t n = mask->sa_family == AF_INET6 ? 16 : 4;
	int bits = 0;

	for (size_t i = 0; i < n; i++)
		bits += __builtin_popcount(p[i]);
	return bits;
}

static json_t *netinfo_address(const struct ifaddrs *a)
{
	const void *raw = a->ifa_addr->sa_family == AF_INET6
			      ? (const void *)&((const struct sockaddr_in6 *)(const void *)a->ifa_addr)->sin6_addr
			      : (const void *)&((const struct sockaddr_in *)(const void *)a->ifa_addr)->sin_addr;
	char text[INET6_ADDRSTRLEN];

	if (!inet_ntop(a->ifa_addr->sa_family, raw, text, sizeof(text)))
		return NULL;
	return json_pack("{s:s, s:s, s:i}", "family", a->ifa_addr->sa_family == AF_INET6 ? "inet6" : "inet", "address",
			 text, "prefix", a->ifa_netmask ? netinfo_prefix(a->ifa_netmask) : 0);
}

static json_t *netinfo_addresses(const struct ifaddrs *list, const char *name)
{
	json_t *out = json_array();

	for (const struct ifaddrs *a = list; a; a = a->ifa_next)
		if (a->ifa_addr && (a->ifa_addr->sa_family == AF_INET || a->ifa_addr->sa_family == AF_INET6) &&
		    strcmp(a->ifa_name, name) == 0) {
			json_t *one = netinfo_address(a);

			if (one)
				json_array_append_new(out, one);
		}
	return out;
}

static const char *netinfo_read(const char *name, const char *file, char *buf, size_t size)
{
	_cleanup_free_ char *path = str_printf("/sys/class/net/%s/%s", name, file);

	buf[0] = '\0';
	return path ? sysinfo_line(path, buf, size) : buf;
}

static bool netinfo_has(const char *name, const char *file)
{
	_cleanup_free_ char *path = str_printf("/sys/class/net/%s/%s", name, file);

	return path && access(path, F_OK) == 0;
}

static const char *netinfo_kind(const char *name)
{
	char type[16];

	if (strcmp(netinfo_read(name, "type", type, sizeof(type)), "772") == 0)
		return "loopback";
	if (netinfo_has(name, "bridge"))
		return "bridge";
	if (netinfo_has(name, "bonding"))
		return "bond";
	return netinfo_has(name, "device") ? "physical" : "virtual";
}

static json_t *netinfo_interface(const struct ifaddrs *list, const char *name)
{
	char mac[64], state[32], mtu[32], speed[32];
	long mbit = strtol(netinfo_read(name, "speed", speed, sizeof(speed)), NULL, 10);
	json_t *addresses = netinfo_addresses(list, name);

	return json_pack("{s:s, s:s, s:s, s:s, s:I, s:o, s:o}", "name", name, "kind", netinfo_kind(name), "mac",
			 netinfo_read(name, "address", mac, sizeof(mac)), "state",
			 netinfo_read(name, "operstate", state, sizeof(state)), "mtu",
			 (json_int_t)strtol(netinfo_read(name, "mtu", mtu, sizeof(mtu)), NULL, 10), "speed_mbit",
			 mbit > 0 ? json_integer(mbit) : json_null(), "addresses", addresses);
}

static json_t *netinfo_interfaces(void)
{
	struct ifaddrs *list = NULL;
	json_t *out = json_array();
	struct dirent **names = NULL;
	int n = scandir("/sys/class/net", &names, NULL, alphasort);

	if (getifaddrs(&list) < 0)
		list = NULL;
	for (int i = 0; i < n; i++) {
		json_t *one;

		if (names[i]->d_name[0] != '.' && netinfo_has(names[i]->d_name, "address") &&
		    json_array_size(out) < NETINFO_INTERFACES && (one = netinfo_interface(list, names[i]->d_name)))
			json_array_append_new(out, one);
		free(names[i]);
	}
	free(names);
	if (list)
		freeifaddrs(list);
	return out;
}

/* /proc/net/route: Iface Destination Gateway Flags RefCnt Use Metric Mask ..., numbers in hex, host byte order. */
static void netinfo_routes4(json_t *out)
{
	_cleanup_free_ char *text = NULL;
	char name[IF_NAMESIZE], gateway[INET_ADDRSTRLEN];
	unsigned dest, gw, flags, metric, mask;

	if (io_read_file("/proc/net/route", NETINFO_FILE_MAX, &text, NULL, NULL) < 0)
		return;
	for (const char *p = text; *p; p += strcspn(p, "\n"), p += *p == '\n') {
		struct in_addr a;

		if (sscanf(p, "%15s %x %x %x %*d %*u %u %x", name, &dest, &gw, &flags, &metric, &mask) != 6 || dest ||
		    mask)
			continue;
		a.s_addr = gw;
		inet_ntop(AF_INET, &a, gateway, sizeof(gateway));
		json_array_append_new(out, json_pack("{s:s, s:s, s:s, s:I}", "family", "inet", "gateway", gateway,
						     "interface", name, "metric", (json_int_t)metric));
	}
}

/* /proc/net/ipv6_route: dest prefixlen source prefixlen nexthop metric refcnt use flags device. */
static void netinfo_routes6(json_t *out)
{
	_cleanup_free_ char *text = NULL;
	char dest[33], hop[33], name[IF_NAMESIZE], gateway[INET6_ADDRSTRLEN];
	unsigned len, metric, flags;

	if (io_read_file("/proc/net/ipv6_route", NETINFO_FILE_MAX, &text, NULL, NULL) < 0)
		return;
	for (const char *p = text; *p; p += strcspn(p, "\n"), p += *p == '\n') {
		struct in6_addr a;

		if (sscanf(p, "%32s %x %*s %*x %32s %x %*x %*x %x %15s", dest, &len, hop, &metric, &flags, name) != 6 ||
		    len || strspn(dest, "0") != 32 || !(flags & 2 /* RTF_GATEWAY */) ||
		    str_unhex(hop, &a, sizeof(a)) < 0)
			continue;
		inet_ntop(AF_INET6, &a, gateway, sizeof(gateway));
		json_array_append_new(out, json_pack("{s:s, s:s, s:s, s:I}", "family", "inet6", "gateway", gateway,
						     "interface", name, "metric", (json_int_t)metric));
	}
}

/* resolv.conf(5): "nameserver ADDRESS" and "search DOMAIN..." */
static void netinfo_resolvers(json_t *dns, json_t *search)
{
	_cleanup_free_ char *text = NULL;
	char *line, *save = NULL;

	if (io_read_file("/etc/resolv.conf", NETINFO_FILE_MAX, &text, NULL, NULL) < 0)
		return;
	for (line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		char *words = NULL, *word = strtok_r(line, " \t", &words);
		json_t *into = !word                             ? NULL
			       : strcmp(word, "nameserver") == 0 ? dns
			       : strcmp(word, "search") == 0     ? search
								 : NULL;

		while (into && (word = strtok_r(NULL, " \t", &words)) && json_array_size(into) < 32)
			json_array_append_new(into, json_string(word));
	}
}

int netinfo_add(json_t *inventory)
{
	json_t *routes = json_array(), *dns = json_array(), *search = json_array();

	netinfo_routes4(routes);
	netinfo_routes6(routes);
	netinfo_resolvers(dns, search);
	return json_object_set_new(inventory, "network",
				   json_pack("{s:o, s:o, s:o, s:o}", "interfaces", netinfo_interfaces(),
					     "default_routes", routes, "dns", dns, "search", search));
}
