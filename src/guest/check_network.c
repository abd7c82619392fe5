/* The check's items about the network: whether the image gets an address in its new home, and who may get to it. */
#include "guest/guest_int.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/util.h"

#define ADDRESSES_MAX 256

/* "192.0.2.5/24" -> 192.0.2.5; what is no address, or the loopback's, is none. */
static void net_add(struct guest_span word, json_t *addresses)
{
	unsigned char raw[16];
	char text[64];

	while (word.n && strchr("\"'[],-", *word.s))
		word.s++, word.n--;
	while (word.n && strchr("\"'[],", word.s[word.n - 1]))
		word.n--;
	if (!guest_span_copy(word, false, text, sizeof(text)))
		return;
	text[strcspn(text, "/,")] = '\0';
	if (json_array_size(addresses) < ADDRESSES_MAX &&
	    (inet_pton(AF_INET, text, raw) == 1 || inet_pton(AF_INET6, text, raw) == 1) && !str_starts(text, "127.") &&
	    strcmp(text, "::1") != 0)
		json_array_append_new(addresses, json_string(text));
}

static bool net_word(struct guest_span *line, struct guest_span *word)
{
	return guest_next_word(line, word) && *word->s != '#';
}

static void net_ifupdown(struct guest_span text, json_t *addresses, bool *dhcp)
{
	struct guest_span line, word;
	bool fixed = false;

	while (guest_next_line(&text, &line)) {
		if (!net_word(&line, &word))
			continue;
		if (guest_span_is(word, "iface")) {
			fixed = false;
			while (guest_next_word(&line, &word)) {
				fixed |= guest_span_is(word, "static");
				*dhcp |= guest_span_is(word, "dhcp");
			}
		} else if (fixed && guest_span_is(word, "address") && guest_next_word(&line, &word)) {
			net_add(word, addresses);
		}
	}
}

static size_t net_indent(struct guest_span line)
{
	size_t n = 0;

	while (n < line.n && line.s[n] == ' ')
		n++;
	return n;
}

static bool net_is_true(struct guest_span word)
{
	return guest_span_is(word, "true") || guest_span_is(word, "yes") || guest_span_is(word, "on");
}

/* As much of YAML as people and installers write there. Name servers have addresses, too. */
static void net_netplan(struct guest_span text, json_t *addresses, bool *dhcp)
{
	size_t list = SIZE_MAX, servers = SIZE_MAX;
	struct guest_span line, word;

	while (guest_next_line(&text, &line)) {
		size_t indent = net_indent(line);

		if (!net_word(&line, &word))
			continue;
		if (servers != SIZE_MAX && indent <= servers && *word.s != '-')
			servers = SIZE_MAX;
		if (list != SIZE_MAX && (*word.s != '-' || indent < list))
			list = SIZE_MAX;
		if (guest_span_is(word, "nameservers:"))
			servers = indent;
		if (list != SIZE_MAX && *word.s == '-') {
			if (word.n == 1)
				guest_next_word(&line, &word);
			net_add(word, addresses);
		} else if (guest_span_is(word, "addresses:") && servers == SIZE_MAX) {
			list = indent;
			while (guest_next_word(&line, &word))
				net_add(word, addresses);
		} else if (guest_span_is(word, "dhcp4:") && guest_next_word(&line, &word)) {
			*dhcp |= net_is_true(word);
		}
	}
}

/* "Address=192.0.2.5/24": the value when the line assigns that key. */
static bool net_value(struct guest_span line, const char *key, struct guest_span *ret)
{
	struct guest_span word;
	const char *equal;

	if (!net_word(&line, &word))
		return false;
	line.n += (size_t)(line.s - word.s);
	line.s = word.s;
	equal = memchr(line.s, '=', line.n);
	if (!equal)
		return false;
	word.n = (size_t)(equal - line.s);
	while (word.n && word.s[word.n - 1] == ' ')
		word.n--;
	if (word.n < strlen(key) || memcmp(word.s, key, strlen(key)) != 0)
		return false;
	/* "address1", "IPADDR0" */
	for (size_t i = strlen(key); i < word.n; i++)
		if (word.s[i] < '0' || word.s[i] > '9')
			return false;
	line.n -= (size_t)(equal + 1 - line.s);
	line.s = equal + 1;
	return guest_next_word(&line, ret);
}

static void net_assigned(struct guest_span text, const char *address, const char *dynamic, const char *const *words,
			 const char *section, json_t *addresses, bool *dhcp)
{
	struct guest_span line, value, head;
	bool in = section == NULL;

	while (guest_next_line(&text, &line)) {
		struct guest_span words_of = line;

		if (section && guest_next_word(&words_of, &head) && *head.s == '[')
			in = guest_span_is(head, section);
		if (in && net_value(line, address, &value))
			net_add(value, addresses);
		if (in && net_value(line, dynamic, &value))
			for (const char *const *w = words; *w; w++)
				*dhcp |= guest_span_is(value, *w);
	}
}

void guest_net_read(enum guest_net kind, struct guest_span text, json_t *addresses, bool *dhcp)
{
	static const char *const networkd[] = {"yes", "true", "ipv4", "both", "on", "1", NULL},
				 *const ifcfg[] = {"dhcp", "\"dhcp\"", "'dhcp'", NULL},
				 *const manager[] = {"auto", NULL};

	switch (kind) {
	case GUEST_NET_IFUPDOWN:
		net_ifupdown(text, addresses, dhcp);
		break;
	case GUEST_NET_NETPLAN:
		net_netplan(text, addresses, dhcp);
		break;
	case GUEST_NET_NETWORKD:
		net_assigned(text, "Address", "DHCP", networkd, NULL, addresses, dhcp);
		break;
	case GUEST_NET_IFCFG:
		net_assigned(text, "IPADDR", "BOOTPROTO", ifcfg, NULL, addresses, dhcp);
		break;
	case GUEST_NET_MANAGER:
		net_assigned(text, "address", "method", manager, "[ipv4]", addresses, dhcp);
		break;
	}
}

/* ---- the item ---- */

struct net_found {
	json_t *addresses;
	bool dhcp;
	bool by_hand; /* some are where the conversion leaves what the server says */
};

static void net_file(struct guest *g, enum guest_net kind, const char *path, struct net_found *n)
{
	size_t before = json_array_size(n->addresses), len;
	_cleanup_free_ char *text = NULL;

	if (guest_read(g, path, &text, &len, NULL) < 0)
		return;
	guest_net_read(kind, (struct guest_span){text, len}, n->addresses, &n->dhcp);
	if (json_array_size(n->addresses) > before && kind != GUEST_NET_IFUPDOWN && kind != GUEST_NET_NETPLAN)
		n->by_hand = true;
}

static void net_dir(struct guest *g, enum guest_net kind, const char *dir, const char *suffix, struct net_found *n)
{
	_cleanup_(guest_names_release) struct guest_names names = {0};

	if (guest_list(g, dir, suffix, &names, NULL) < 0)
		return;
	for (size_t i = 0; i < names.n; i++) {
		char path[512];

		snprintf(path, sizeof(path), "%s/%s", dir, names.v[i]);
		if (kind != GUEST_NET_IFCFG ||
		    (str_starts(names.v[i], "ifcfg-") && strcmp(names.v[i], "ifcfg-lo") != 0))
			net_file(g, kind, path, n);
	}
}

#define WANTS "/etc/systemd/system/multi-user.target.wants/"

static void net_look(struct guest *g, struct net_found *n)
{
	bool manager = guest_exists(g, WANTS "NetworkManager.service");

	if (guest_exists(g, "/sbin/ifup")) {
		net_file(g, GUEST_NET_IFUPDOWN, "/etc/network/interfaces", n);
		net_dir(g, GUEST_NET_IFUPDOWN, "/etc/network/interfaces.d", "", n);
	}
	if (guest_exists(g, "/usr/sbin/netplan") || guest_exists(g, "/usr/libexec/netplan/generate") ||
	    guest_exists(g, "/usr/lib/netplan/generate"))
		net_dir(g, GUEST_NET_NETPLAN, "/etc/netplan", ".yaml", n);
	if (guest_exists(g, WANTS "systemd-networkd.service") && !guest_unit_is_masked(g, "systemd-networkd.service"))
		net_dir(g, GUEST_NET_NETWORKD, "/etc/systemd/network", ".network", n);
	net_dir(g, GUEST_NET_IFCFG, "/etc/sysconfig/network-scripts", "", n);
	net_dir(g, GUEST_NET_IFCFG, "/etc/sysconfig/network", "", n);
	if (manager)
		net_dir(g, GUEST_NET_MANAGER, "/etc/NetworkManager/system-connections", "", n);
	n->dhcp |= manager; /* a card without a profile */
}

/* That one must be there; others may belong to cards that aren't. */
static void net_wanted(const struct guest *g, const json_t *addresses, struct guest_finding *f)
{
	char want[IP4_TEXT_MAX];
	bool there = false;
	size_t i;
	json_t *o;

	ip4_format(g->address.address, want);
	json_array_foreach(addresses, i, o) there |= strcmp(json_string_value(o), want) == 0;
	json_array_foreach(addresses, i,
			   o) if (!strchr(json_string_value(o), ':') && strcmp(json_string_value(o), want) != 0)
	    guest_find(f, GUEST_WARNING, "another fixed address, '%s', is configured beside '%s'", json_string_value(o),
		       want);
	if (!there) {
		guest_find(f, GUEST_CRITICAL, "the address '%s' was asked for and is not configured", want);
		guest_advise(f, "configure it for the first network card, or ask for none");
		f->repair[0] = &guest_step_network;
		f->repair[1] = &guest_step_net_names;
	}
	guest_find(f, GUEST_PASSED, "the address is '%s', as asked for", want);
}

static void net_judge(const struct guest *g, const struct net_found *n, struct guest_finding *f)
{
	_cleanup_(str_release) struct str list = {0};
	json_t *o;
	size_t i;

	if (g->has_address) {
		net_wanted(g, n->addresses, f);
		return;
	}
	json_array_foreach(n->addresses, i, o) if (i < 8) str_addf(&list, "%s%s", i ? ", " : "", json_string_value(o));
	if (json_array_size(n->addresses)) {
		guest_find(f, GUEST_WARNING, "fixed addresses are configured (%s), which the new home may not have",
			   list.s ? list.s : "");
		guest_advise(f, "configure the first network card for DHCP");
	} else if (!n->dhcp) {
		guest_find(f, GUEST_CRITICAL, "no network card is configured: the server would not be reached");
		guest_advise(f, "configure the first network card for DHCP");
	}
	if (f->level != GUEST_PASSED && !n->by_hand) {
		f->repair[0] = &guest_step_network;
		f->repair[1] = &guest_step_net_names;
	}
	guest_find(f, GUEST_PASSED, "network cards get their addresses by DHCP");
}

static int network_dhcp(struct guest *g, struct guest_finding *f, struct err *e)
{
	static const char *const rules[] = {"/etc/udev/rules.d/70-persistent-net.rules",
					    "/etc/udev/rules.d/z25_persistent-net.rules"};
	struct net_found n = {.addresses = json_array()};

	if (!n.addresses)
		return err_nomem(e);
	net_look(g, &n);
	net_judge(g, &n, f);
	for (size_t i = 0; i < ARRAY_SIZE(rules); i++)
		if (guest_exists(g, rules[i])) {
			guest_find(f, GUEST_WARNING, "'%s' keeps the name of the first card for the old one", rules[i]);
			guest_advise(f, "remove the file");
			f->repair[f->repair[0] != NULL] = &guest_step_net_names;
		}
	f->value = json_pack("{s:o, s:b}", "fixed", n.addresses, "dhcp", n.dhcp);
	return 0;
}

/* ---- who gets to it ---- */

static bool network_any(const struct guest *g, const char *const *paths)
{
	for (; *paths; paths++)
		if (guest_exists(g, *paths))
			return true;
	return false;
}

static bool network_has_names(const struct guest *g, const char *dir, const char *prefix, const char *suffix)
{
	_cleanup_(guest_names_release) struct guest_names names = {0};

	if (guest_list(g, dir, suffix, &names, NULL) < 0)
		return false;
	for (size_t i = 0; i < names.n; i++)
		if (str_starts(names.v[i], prefix))
			return true;
	return false;
}

static int network_ssh(struct guest *g, struct guest_finding *f, struct err *e)
{
	static const char *const enabled[] = {WANTS "ssh.service",
					      WANTS "sshd.service",
					      "/etc/systemd/system/sockets.target.wants/ssh.socket",
					      "/etc/systemd/system/sockets.target.wants/sshd.socket",
					      "/etc/systemd/system/ssh.service.requires/ssh.socket",
					      NULL};

	if (!guest_exists(g, "/usr/sbin/sshd")) {
		guest_find(f, GUEST_WARNING, "no SSH server is installed");
		guest_advise(f, "install openssh-server, or use the console");
		return 0;
	}
	if (!network_any(g, enabled) && !network_has_names(g, "/etc/rc2.d", "S", "ssh") &&
	    !network_has_names(g, "/etc/rc3.d", "S", "sshd")) {
		guest_find(f, GUEST_WARNING, "the SSH server is installed and doesn't start at boot");
		guest_advise(f, "'systemctl enable ssh' on the source");
	}
	if (!network_has_names(g, "/etc/ssh", "ssh_host_", "_key")) {
		guest_find(f, GUEST_WARNING, "the SSH server has no host keys, and doesn't start without");
		guest_advise(f, "'ssh-keygen -A' on the source");
	}
	guest_find(f, GUEST_PASSED, "the SSH server starts at boot and has its keys");
	return 0;
}

static bool network_ufw(struct guest *g)
{
	_cleanup_free_ char *text = NULL;
	char word[16];
	size_t len;

	return guest_read(g, "/etc/ufw/ufw.conf", &text, &len, NULL) == 0 &&
	       guest_assignment(text, len, "ENABLED", word, sizeof(word)) && strcmp(word, "yes") == 0;
}

static int network_firewall(struct guest *g, struct guest_finding *f, struct err *e)
{
	static const struct {
		const char *path, *name;
	} known[] = {
	    {WANTS "firewalld.service", "firewalld"},
	    {WANTS "nftables.service", "nftables"},
	    {"/etc/systemd/system/sysinit.target.wants/nftables.service", "nftables"},
	    {WANTS "netfilter-persistent.service", "iptables-persistent"},
	    {WANTS "iptables.service", "iptables"},
	};

	f->value = json_array();
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (guest_exists(g, known[i].path))
			json_array_append_new(f->value, json_string(known[i].name));
	if (network_ufw(g))
		json_array_append_new(f->value, json_string("ufw"));
	if (json_array_size(f->value)) {
		guest_find(f, GUEST_WARNING, "a firewall is on (%s): its rules may name the old cards and addresses",
			   json_string_value(json_array_get(f->value, 0)));
		guest_advise(f, "see that it lets in what has to come in");
	}
	guest_find(f, GUEST_PASSED, "no firewall is on");
	return 0;
}

const struct guest_check guest_checks_network[] = {
    {"dhcp", "network", true, NULL, network_dhcp},
    {"sshd", "network", false, NULL, network_ssh},
    {"firewall", "network", false, NULL, network_firewall},
    {0},
};
