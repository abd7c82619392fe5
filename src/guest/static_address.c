/*
 * The text half of a static address: what each tool's file says. Everything in it is a number or ours, so nothing needs
 * quoting. Cards are matched without naming one, by the pattern that step_network.c uses, or by the card's own address.
 */
#include "guest/guest_int.h"

#include <string.h>

static void add_servers(const struct ip4_plan *p, const char *before, const char *between, const char *after,
			struct str *out)
{
	char t[IP4_TEXT_MAX];

	for (size_t i = 0; i < p->nnameservers; i++)
		str_addf(out, "%s%s%s", i ? between : before, ip4_format(p->nameservers[i], t),
			 i + 1 == p->nnameservers ? after : "");
}

void guest_static_networkd(const struct ip4_plan *p, struct str *out)
{
	char t[IP4_TEXT_MAX];

	str_add(out, "# Written by Replant: the address of this server in its new home.\n[Match]\n");
	if (*p->mac)
		str_addf(out, "MACAddress=%s\n", p->mac);
	else
		str_add(out, "Name=e*\n");
	str_addf(out, "\n[Network]\nAddress=%s/%u\n", ip4_format(p->address, t), p->prefix);
	if (p->gateway)
		str_addf(out, "Gateway=%s\n", ip4_format(p->gateway, t));
	add_servers(p, "DNS=", "\nDNS=", "\n", out);
}

void guest_static_netplan(const struct ip4_plan *p, struct str *out)
{
	char t[IP4_TEXT_MAX];

	str_add(out, "# Written by Replant: the address of this server in its new home.\n"
		     "network:\n  version: 2\n  ethernets:\n    replant:\n");
	if (*p->mac)
		str_addf(out, "      match: {macaddress: \"%s\"}\n", p->mac);
	else
		str_add(out, "      match: {name: \"e*\"}\n");
	str_addf(out, "      dhcp4: false\n      addresses: [\"%s/%u\"]\n", ip4_format(p->address, t), p->prefix);
	/* Not "default", which older ones don't know, and not gateway4, which newer ones advise against. */
	if (p->gateway)
		str_addf(out, "      routes: [{to: \"0.0.0.0/0\", via: \"%s\"}]\n", ip4_format(p->gateway, t));
	add_servers(p, "      nameservers: {addresses: [\"", "\", \"", "\"]}\n", out);
}

void guest_static_manager(const struct ip4_plan *p, struct str *out)
{
	char t[IP4_TEXT_MAX];

	/* Of the profiles that fit a card the one with the highest priority is taken. */
	str_add(out, "# Written by Replant: the address of this server in its new home.\n"
		     "[connection]\nid=replant\nuuid=5d1a2a36-8f6c-4c43-9d0e-7265706c616e\ntype=ethernet\n"
		     "autoconnect=true\nautoconnect-priority=999\n\n[ethernet]\n");
	if (*p->mac)
		str_addf(out, "mac-address=%s\n", p->mac);
	str_addf(out, "\n[ipv4]\nmethod=manual\naddress1=%s/%u", ip4_format(p->address, t), p->prefix);
	if (p->gateway)
		str_addf(out, ",%s", ip4_format(p->gateway, t));
	str_add(out, "\n");
	add_servers(p, "dns=", ";", ";\n", out);
	str_add(out, "\n[ipv6]\nmethod=auto\n");
}

/* How the card comes by the name that the files of ifcfg and wicked go by. */
void guest_pin_card(const struct ip4_plan *p, struct str *out)
{
	str_add(out, "# Written by Replant: the card that ifcfg-" GUEST_CARD " is about.\n[Match]\n");
	if (p && *p->mac)
		str_addf(out, "MACAddress=%s\n", p->mac);
	else
		str_add(out, "OriginalName=e*\n");
	str_add(out, "\n[Link]\nName=" GUEST_CARD "\n");
}

void guest_static_ifcfg(const struct ip4_plan *p, struct str *out)
{
	char t[IP4_TEXT_MAX];

	str_add(out, "# Written by Replant: the address of this server in its new home.\n"
		     "DEVICE=" GUEST_CARD "\nNAME=" GUEST_CARD "\nTYPE=Ethernet\nONBOOT=yes\n");
	if (!p) {
		str_add(out, "BOOTPROTO=dhcp\n");
		return;
	}
	if (*p->mac)
		str_addf(out, "HWADDR=%s\n", p->mac);
	str_addf(out, "BOOTPROTO=none\nIPADDR=%s\nPREFIX=%u\n", ip4_format(p->address, t), p->prefix);
	if (p->gateway)
		str_addf(out, "GATEWAY=%s\n", ip4_format(p->gateway, t));
	for (size_t i = 0; i < p->nnameservers; i++)
		str_addf(out, "DNS%zu=%s\n", i + 1, ip4_format(p->nameservers[i], t));
}

void guest_static_wicked(const struct ip4_plan *p, struct str *out)
{
	char t[IP4_TEXT_MAX];

	str_add(out, "# Written by Replant: the address of this server in its new home.\nSTARTMODE='auto'\n");
	if (p)
		str_addf(out, "BOOTPROTO='static'\nIPADDR='%s/%u'\n", ip4_format(p->address, t), p->prefix);
	else
		str_add(out, "BOOTPROTO='dhcp'\n");
}

void guest_rewrite_resolv(const struct ip4_plan *p, struct guest_span text, struct str *out)
{
	struct guest_span line, word;
	char t[IP4_TEXT_MAX];

	while (guest_next_line(&text, &line)) {
		struct guest_span rest = line;

		if (guest_next_word(&rest, &word) && guest_span_is(word, "nameserver"))
			continue;
		str_add_mem(out, line.s, line.n);
		str_add(out, "\n");
	}
	for (size_t i = 0; i < p->nnameservers; i++)
		str_addf(out, "nameserver %s\n", ip4_format(p->nameservers[i], t));
}

void guest_rewrite_netconfig(const struct ip4_plan *p, struct guest_span text, struct str *out)
{
	static const char key[] = "NETCONFIG_DNS_STATIC_SERVERS=";
	struct guest_span line;

	while (guest_next_line(&text, &line)) {
		if (line.n >= strlen(key) && memcmp(line.s, key, strlen(key)) == 0)
			continue;
		str_add_mem(out, line.s, line.n);
		str_add(out, "\n");
	}
	str_addf(out, "%s\"", key);
	add_servers(p, "", " ", "", out);
	str_add(out, "\"\n");
}
