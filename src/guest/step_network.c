/*
 * The network cards of the new home have other names and addresses. Whatever is configured for a card of the old one is
 * switched off (kept as a comment where the file has to stay), and every ethernet card comes up by DHCP, or has the
 * address that the job gives.
 *
 * systemd-networkd does it: it comes with systemd itself, so nothing has to be installed. Its file for DHCP sorts last,
 * so that a file of the server's own that matches the new card wins; that with an address sorts first. NetworkManager
 * brings new cards up by DHCP unasked.
 */
#include "guest/guest_int.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/util.h"

#define NETWORKD_FILE   "/etc/systemd/network/99-replant-dhcp.network"
#define NETWORKD_STATIC "/etc/systemd/network/00-replant-static.network"
#define NETPLAN_FILE    "/etc/netplan/99-replant-dhcp.yaml"
#define NETPLAN_STATIC  "/etc/netplan/99-replant-static.yaml"
#define MANAGER_FILE    "/etc/NetworkManager/system-connections/replant.nmconnection"
#define LINK_FILE       "/etc/systemd/network/00-replant.link"
#define IFCFG_DIR       "/etc/sysconfig/network-scripts"
#define WICKED_DIR      "/etc/sysconfig/network"
#define RESOLV_FILE     "/etc/resolv.conf"
#define MARK            "#replant# "

/* By name, as netplan's below: Type=ether matches no card before systemd 245, and bridges, taps and veths as well where
 * Kind= (later still) is not known to keep them out. */
static const char networkd_text[] =
    "# Written by Replant: every ethernet card that nothing else configures comes up by DHCP.\n"
    "[Match]\nName=e*\n\n"
    "[Network]\nDHCP=yes\n\n"
    "[DHCPv4]\nClientIdentifier=mac\n";

static const char netplan_text[] = "# Written by Replant: every ethernet card comes up by DHCP.\n"
				   "network:\n  version: 2\n  ethernets:\n    replant:\n      match: {name: \"e*\"}\n"
				   "      dhcp4: true\n      dhcp-identifier: mac\n      optional: true\n";

static const char *network_unit_dir(const struct guest *g)
{
	return guest_exists(g, "/usr/lib/systemd/system/systemd-networkd.service") ? "/usr/lib/systemd/system"
	       : guest_exists(g, "/lib/systemd/system/systemd-networkd.service")   ? "/lib/systemd/system"
										   : NULL;
}

/* 'systemctl mask', as those do who go back to ifupdown: it would never start. */
static int network_unmask(struct guest *g, struct guest_result *r, const char *unit, struct err *e)
{
	char path[256];

	snprintf(path, sizeof(path), "/etc/systemd/system/%s", unit);
	return guest_unit_is_masked(g, unit) ? guest_remove(g, r, path, e) : 0;
}

static int network_enable_networkd(struct guest *g, struct guest_result *r, struct err *e)
{
	static const struct {
		const char *link, *unit;
	} links[] = {
	    {"multi-user.target.wants/systemd-networkd.service", "systemd-networkd.service"},
	    {"dbus-org.freedesktop.network1.service", "systemd-networkd.service"},
	    {"sockets.target.wants/systemd-networkd.socket", "systemd-networkd.socket"},
	    {"network-online.target.wants/systemd-networkd-wait-online.service",
	     "systemd-networkd-wait-online.service"},
	};
	const char *dir = network_unit_dir(g);
	int rc = 0;

	if (!dir)
		return err_set(e, -ENOENT,
			       "systemd-networkd is not there, so no network can be configured "
			       "(configure the first network card for DHCP on the source)");
	for (size_t i = 0; rc == 0 && i < ARRAY_SIZE(links); i++) {
		char link[256], target[256];

		snprintf(link, sizeof(link), "/etc/systemd/system/%s", links[i].link);
		snprintf(target, sizeof(target), "%s/%s", dir, links[i].unit);
		if (!guest_exists(g, target))
			continue;
		rc = network_unmask(g, r, links[i].unit, e);
		rc = rc ?: guest_symlink(g, r, target, link, e);
	}
	return rc;
}

/* ---- what DHCP doesn't bring back, said to who has to ---- */

/* Does a line that isn't a comment have one of the words in it? */
static bool network_mentions(struct guest_span text, const char *const *words)
{
	struct guest_span line, first;

	while (guest_next_line(&text, &line)) {
		struct guest_span rest = line;

		if (!guest_next_word(&rest, &first) || *first.s == '#')
			continue;
		for (const char *const *w = words; *w; w++)
			if (memmem(line.s, line.n, *w, strlen(*w)))
				return true;
	}
	return false;
}

/* Of a file whose cards are switched off, as it was. */
static void network_note_lost(const struct guest *g, struct guest_result *r, const char *path, struct guest_span text,
			      const char *const *fixed, const char *const *joined)
{
	if (!g->has_address && network_mentions(text, fixed))
		guest_note(
		    r,
		    "the fixed addresses of '%s' are not used any more: the server gets its address by DHCP (give "
		    "it one by hand, or a reservation for its new card)",
		    path);
	if (network_mentions(text, joined))
		guest_note(r,
			   "the bonds, bridges or VLANs of '%s' are not set up any more: each card comes up by itself "
			   "(set them up for the new cards by hand if they are needed)",
			   path);
}

/* A file, not a link into /run that whoever runs there keeps up to date. */
static void network_note_resolv(struct guest *g, struct guest_result *r)
{
	static const char *const servers[] = {"nameserver", NULL};
	_cleanup_free_ char *text = NULL;
	size_t len;

	if (guest_read(g, RESOLV_FILE, &text, &len, NULL) == 0 &&
	    network_mentions((struct guest_span){text, len}, servers))
		guest_note(r, "'/etc/resolv.conf' stays as it is: the name servers in it are asked, not those that "
			      "DHCP names (see that the new home reaches them)");
}

/* ---- what several tools have in common ---- */

/* Those of the plan, where nothing but this file names them; a link is somebody's who gets them from the tool. */
static int network_resolv(struct guest *g, struct guest_result *r, struct err *e)
{
	_cleanup_(str_release) struct str out = {0};
	_cleanup_free_ char *text = NULL;
	char target[200];
	size_t len = 0;

	if (!g->has_address || !g->address.nnameservers) {
		network_note_resolv(g, r);
		return 0;
	}
	if (guest_link(g, RESOLV_FILE, target, sizeof(target))) {
		if (!strstr(target, "systemd/resolve"))
			guest_note(r,
				   "'/etc/resolv.conf' is a link to '%s', which may not hear of the name servers given "
				   "(see that it names them)",
				   target);
		return 0;
	}
	guest_read(g, RESOLV_FILE, &text, &len, NULL);
	guest_rewrite_resolv(&g->address, (struct guest_span){text, len}, &out);
	return str_ok(&out) ? guest_write(g, r, RESOLV_FILE, out.s, out.len, 0644, e) : err_nomem(e);
}

static int network_write(struct guest *g, struct guest_result *r, const char *path, struct str *text, mode_t mode,
			 struct err *e)
{
	return str_ok(text) ? guest_write(g, r, path, text->s, text->len, mode, e) : err_nomem(e);
}

/* One of the two; a server that was moved before may have the other. */
static int network_write_networkd(struct guest *g, struct guest_result *r, struct err *e)
{
	_cleanup_(str_release) struct str text = {0};
	int rc = guest_remove(g, r, g->has_address ? NETWORKD_FILE : NETWORKD_STATIC, e);

	if (rc < 0)
		return rc;
	if (!g->has_address)
		return guest_write(g, r, NETWORKD_FILE, networkd_text, strlen(networkd_text), 0644, e);
	guest_static_networkd(&g->address, &text);
	return network_write(g, r, NETWORKD_STATIC, &text, 0644, e);
}

/* "... comes up by DHCP (tool)", or what it gets instead. */
static void network_tell(const struct guest *g, struct guest_result *r, const char *dhcp, const char *tool,
			 const char *more)
{
	char t[IP4_TEXT_MAX];

	if (r->state != GUEST_DONE)
		return;
	if (g->has_address)
		str_addf(&r->summary, "the card gets %s/%u (%s)%s", ip4_format(g->address.address, t),
			 g->address.prefix, tool, more);
	else
		str_addf(&r->summary, "%s comes up by DHCP (%s)%s", dhcp, tool, more);
}

/* ---- ifupdown ---- */

enum ifupdown_line {
	IFUPDOWN_INSIDE, /* of a stanza, or between them */
	IFUPDOWN_OTHER,  /* begins a stanza that stays */
	IFUPDOWN_CARD,   /* begins one about a card */
	IFUPDOWN_MIXED   /* names the loopback and cards */
};

/* One line of the file as ifupdown reads it: a backslash at the end, not of a comment, joins it with the next. */
static bool ifupdown_next(struct guest_span *text, struct guest_span *line)
{
	struct guest_span words, more;

	if (!guest_next_line(text, line))
		return false;
	words = *line;
	if (guest_next_word(&words, &more) && *more.s == '#')
		return true;
	while (line->n && line->s[line->n - 1] == '\\' && guest_next_line(text, &more))
		line->n = (size_t)(more.s + more.n - line->s);
	return true;
}

/* The next word of a line that may be joined from several. */
static bool ifupdown_word(struct guest_span *line, struct guest_span *word)
{
	for (;;) {
		size_t n = line->n >= 2 && memcmp(line->s, "\\\n", 2) == 0 ? 2 : line->n && strchr(" \t\r\n", *line->s);

		if (!n)
			break;
		line->s += n;
		line->n -= n;
	}
	word->s = line->s;
	for (word->n = 0; line->n && !strchr(" \t\r\n", *line->s); word->n++, line->s++, line->n--)
		if (line->n >= 2 && memcmp(line->s, "\\\n", 2) == 0)
			break;
	return word->n;
}

static enum ifupdown_line ifupdown_kind(struct guest_span line)
{
	static const char *const others[] = {"source", "source-directory", "no-auto-down", "no-scripts"};
	struct guest_span word, name;
	bool loopback = false, card = false, first;

	if (!ifupdown_word(&line, &word) || *word.s == '#')
		return IFUPDOWN_INSIDE;
	for (size_t i = 0; i < ARRAY_SIZE(others); i++)
		if (guest_span_is(word, others[i]))
			return IFUPDOWN_OTHER;
	first = guest_span_is(word, "iface");
	if (!first && !guest_span_is(word, "auto") && !guest_span_is(word, "mapping") &&
	    !guest_span_is(word, "rename") && !(word.n > 6 && memcmp(word.s, "allow-", 6) == 0))
		return IFUPDOWN_INSIDE;
	while (ifupdown_word(&line, &name)) {
		if (guest_span_is(name, "lo"))
			loopback = true;
		else
			card = true;
		if (first)
			break;
	}
	return loopback && card ? IFUPDOWN_MIXED : loopback ? IFUPDOWN_OTHER : IFUPDOWN_CARD;
}

/* Returns how many of its lines weren't comments. */
static unsigned ifupdown_comment_out(struct guest_span joined, struct str *out)
{
	struct guest_span line, word;
	unsigned stripped = 0;

	while (guest_next_line(&joined, &line)) {
		struct guest_span words = line;

		if (guest_next_word(&words, &word) && *word.s != '#') {
			str_add(out, MARK);
			stripped++;
		}
		str_add_mem(out, line.s, line.n);
		guest_end_line(line, joined, out);
	}
	return stripped;
}

/* Comments out every stanza of a card with the lines that belong to it. */
unsigned guest_rewrite_interfaces(struct guest_span text, struct str *out)
{
	struct guest_span line, rest, verb;
	bool card = false;
	unsigned stripped = 0;

	while (ifupdown_next(&text, &line)) {
		enum ifupdown_line kind = ifupdown_kind(line);

		if (kind != IFUPDOWN_INSIDE)
			card = kind == IFUPDOWN_CARD;
		if (kind == IFUPDOWN_MIXED) {
			rest = line;
			ifupdown_word(&rest, &verb);
			str_add_mem(out, verb.s, verb.n);
			str_add(out, " lo\n");
		}
		if (card || kind == IFUPDOWN_MIXED)
			stripped += ifupdown_comment_out(line, out);
		else
			str_add_mem(out, line.s, line.n);
		guest_end_line(line, text, out);
	}
	return stripped;
}

static int ifupdown_file(struct guest *g, struct guest_result *r, const char *path, unsigned *stripped, struct err *e)
{
	static const char *const fixed[] = {" static", "\tstatic", NULL};
	static const char *const joined[] = {"bond", "bridge", "vlan", NULL};
	_cleanup_(str_release) struct str out = {0};
	_cleanup_free_ char *text = NULL;
	size_t len;
	unsigned n;
	int rc = guest_read(g, path, &text, &len, e);

	if (rc < 0)
		return rc;
	n = guest_rewrite_interfaces((struct guest_span){text, len}, &out);
	if (!n)
		return 0;
	*stripped += n;
	if (!str_ok(&out))
		return err_nomem(e);
	network_note_lost(g, r, path, (struct guest_span){text, len}, fixed, joined);
	return guest_write(g, r, path, out.s, out.len, 0644, e);
}

static int network_ifupdown(struct guest *g, struct guest_result *r, struct err *e)
{
	_cleanup_(guest_names_release) struct guest_names names = {0};
	struct err why = {0};
	unsigned stripped = 0;
	/* What shall work is there before what worked is switched off. */
	int rc = network_write_networkd(g, r, e);

	rc = rc ?: network_enable_networkd(g, r, e);
	rc = rc ?: ifupdown_file(g, r, "/etc/network/interfaces", &stripped, e);
	rc = rc ?: guest_list(g, "/etc/network/interfaces.d", "", &names, e);
	for (size_t i = 0; rc == 0 && i < names.n; i++) {
		char path[512];

		snprintf(path, sizeof(path), "/etc/network/interfaces.d/%s", names.v[i]);
		/* A folder, a link to nothing: ifupdown doesn't read it either. */
		if (ifupdown_file(g, r, path, &stripped, &why) < 0)
			guest_note(r, "'%s' was left as it is: %s", path, why.msg);
	}
	if (rc < 0)
		return rc;
	if (stripped)
		str_addf(&r->summary, "%u lines about old network cards became comments; ", stripped);
	if (rc == 0)
		network_tell(g, r, "every ethernet card", "systemd-networkd", "");
	return rc;
}

/* ---- netplan ---- */

static int network_write_netplan(struct guest *g, struct guest_result *r, struct err *e)
{
	_cleanup_(str_release) struct str text = {0};

	if (!g->has_address)
		return guest_write(g, r, NETPLAN_FILE, netplan_text, strlen(netplan_text), 0600, e);
	guest_static_netplan(&g->address, &text);
	return network_write(g, r, NETPLAN_STATIC, &text, 0600, e);
}

/* Old files stay under a name netplan doesn't read. */
static int network_netplan(struct guest *g, struct guest_result *r, struct err *e)
{
	static const char *const fixed[] = {"addresses:", NULL};
	static const char *const joined[] = {"bonds:", "bridges:", "vlans:", NULL};
	_cleanup_(guest_names_release) struct guest_names names = {0};
	int rc = guest_list(g, "/etc/netplan", ".yaml", &names, e);

	for (size_t i = 0; rc == 0 && i < names.n; i++) {
		_cleanup_free_ char *text = NULL;
		char path[512], kept[512 + 8];
		size_t len;

		snprintf(path, sizeof(path), "/etc/netplan/%s", names.v[i]);
		snprintf(kept, sizeof(kept), "%s.replant", path);
		if (strcmp(path, g->has_address ? NETPLAN_STATIC : NETPLAN_FILE) == 0)
			continue;
		rc = guest_read(g, path, &text, &len, e);
		if (rc == 0)
			rc = guest_write(g, r, kept, text, len, 0600, e);
		if (rc == 0)
			network_note_lost(g, r, path, (struct guest_span){text, len}, fixed, joined);
		if (rc == 0)
			rc = guest_discard(g, r, path, e); /* it may hold the keys of networks */
	}
	if (rc == 0)
		rc = network_write_netplan(g, r, e);
	if (rc == 0)
		network_tell(g, r, "every ethernet card", "netplan", "; the old files are kept as *.replant");
	return rc;
}

/* ---- systemd-networkd and NetworkManager ---- */

/* Its own files for the cards are shadowed by one with an address. */
static int network_note_shadowed(struct guest *g, struct guest_result *r, struct err *e)
{
	static const char *const joined[] = {"Bridge=", "Bond=", "VLAN=", NULL}, *const none[] = {NULL};
	_cleanup_(guest_names_release) struct guest_names names = {0};
	int rc = guest_list(g, "/etc/systemd/network", ".network", &names, e);

	for (size_t i = 0; rc == 0 && i < names.n; i++) {
		_cleanup_free_ char *text = NULL;
		char path[512];
		size_t len;

		snprintf(path, sizeof(path), "/etc/systemd/network/%s", names.v[i]);
		if (guest_read(g, path, &text, &len, NULL) == 0)
			network_note_lost(g, r, path, (struct guest_span){text, len}, none, joined);
	}
	return rc;
}

static int network_networkd(struct guest *g, struct guest_result *r, struct err *e)
{
	int rc = g->has_address ? network_note_shadowed(g, r, e) : 0;

	if (rc == 0)
		rc = network_write_networkd(g, r, e);
	if (rc == 0)
		rc = network_enable_networkd(g, r, e);
	if (rc == 0)
		network_tell(g, r, "a card that no file of the server matches", "systemd-networkd", "");
	return rc;
}

static int network_manager(struct guest *g, struct guest_result *r, struct err *e)
{
	_cleanup_(str_release) struct str text = {0};
	int rc;

	if (!g->has_address) {
		str_add(&r->summary, "NetworkManager brings new cards up by DHCP");
		return guest_remove(g, r, MANAGER_FILE, e);
	}
	guest_static_manager(&g->address, &text);
	/* It reads no profile that others may read. */
	rc = network_write(g, r, MANAGER_FILE, &text, 0600, e);
	if (rc == 0)
		network_tell(g, r, "", "NetworkManager", "; the other profiles stay, this one goes before them");
	return rc;
}

/* ---- wicked, and ifcfg files of the network scripts: they name the card, so that gets a name ---- */

/* Where they aren't read, and can be had again. */
static int ifcfg_put_away(struct guest *g, struct guest_result *r, const char *dir, const char *prefix, struct err *e)
{
	static const char *const fixed[] = {"IPADDR", NULL}, *const joined[] = {"BOND", "BRIDGE", "VLAN", NULL};
	_cleanup_(guest_names_release) struct guest_names names = {0};
	int rc = guest_list(g, dir, "", &names, e);

	for (size_t i = 0; rc == 0 && i < names.n; i++) {
		const char *card = names.v[i] + strlen(prefix);
		_cleanup_free_ char *text = NULL;
		char path[512], kept[512 + 16];
		size_t len;

		if (!str_starts(names.v[i], prefix) || strcmp(card, "lo") == 0 || strcmp(card, GUEST_CARD) == 0)
			continue;
		snprintf(path, sizeof(path), "%s/%s", dir, names.v[i]);
		snprintf(kept, sizeof(kept), "%s/replant/%s", dir, names.v[i]);
		rc = guest_read(g, path, &text, &len, e);
		if (rc == 0)
			rc = guest_write(g, r, kept, text, len, 0600, e);
		if (rc == 0)
			network_note_lost(g, r, path, (struct guest_span){text, len}, fixed, joined);
		if (rc == 0)
			rc = guest_discard(g, r, path, e); /* it may hold the keys of networks */
	}
	return rc;
}

static int network_pin(struct guest *g, struct guest_result *r, struct err *e)
{
	_cleanup_(str_release) struct str text = {0};

	guest_pin_card(g->has_address ? &g->address : NULL, &text);
	return network_write(g, r, LINK_FILE, &text, 0644, e);
}

static int network_ifcfg(struct guest *g, struct guest_result *r, struct err *e)
{
	_cleanup_(str_release) struct str text = {0};
	int rc = ifcfg_put_away(g, r, IFCFG_DIR, "ifcfg-", e);

	rc = rc ?: ifcfg_put_away(g, r, IFCFG_DIR, "route-", e);
	guest_static_ifcfg(g->has_address ? &g->address : NULL, &text);
	rc = rc ?: network_pin(g, r, e);
	rc = rc ?: network_write(g, r, IFCFG_DIR "/ifcfg-" GUEST_CARD, &text, 0644, e);
	if (rc == 0)
		network_tell(g, r, "the first ethernet card", "ifcfg", "; the old files are kept in 'replant'");
	return rc;
}

static int wicked_route(struct guest *g, struct guest_result *r, struct err *e)
{
	static const char path[] = WICKED_DIR "/ifroute-" GUEST_CARD;
	_cleanup_(str_release) struct str text = {0};
	char t[IP4_TEXT_MAX];

	if (!g->has_address || !g->address.gateway)
		return guest_remove(g, r, path, e);
	str_addf(&text, "default %s - -\n", ip4_format(g->address.gateway, t));
	return network_write(g, r, path, &text, 0644, e);
}

static int wicked_servers(struct guest *g, struct guest_result *r, struct err *e)
{
	_cleanup_(str_release) struct str out = {0};
	_cleanup_free_ char *text = NULL;
	size_t len = 0;

	if (!g->has_address || !g->address.nnameservers)
		return 0;
	guest_read(g, WICKED_DIR "/config", &text, &len, NULL);
	guest_rewrite_netconfig(&g->address, (struct guest_span){text, len}, &out);
	return network_write(g, r, WICKED_DIR "/config", &out, 0644, e);
}

static int network_wicked(struct guest *g, struct guest_result *r, struct err *e)
{
	_cleanup_(str_release) struct str text = {0};
	int rc = ifcfg_put_away(g, r, WICKED_DIR, "ifcfg-", e);

	rc = rc ?: ifcfg_put_away(g, r, WICKED_DIR, "ifroute-", e);
	guest_static_wicked(g->has_address ? &g->address : NULL, &text);
	rc = rc ?: network_pin(g, r, e);
	rc = rc ?: network_write(g, r, WICKED_DIR "/ifcfg-" GUEST_CARD, &text, 0644, e);
	rc = rc ?: wicked_route(g, r, e);
	rc = rc ?: wicked_servers(g, r, e);
	if (rc == 0)
		network_tell(g, r, "the first ethernet card", "wicked", "; the old files are kept in 'replant'");
	return rc;
}

/* ---- which of them ---- */

static bool network_has_manager(const struct guest *g)
{
	return guest_exists(g, "/etc/systemd/system/multi-user.target.wants/NetworkManager.service");
}

static bool network_has_netplan(const struct guest *g)
{
	_cleanup_(guest_names_release) struct guest_names names = {0};

	if (!guest_exists(g, "/usr/sbin/netplan") && !guest_exists(g, "/usr/lib/netplan/generate") &&
	    !guest_exists(g, "/usr/libexec/netplan/generate"))
		return false;
	return guest_list(g, "/etc/netplan", ".yaml", &names, NULL) == 0 && names.n;
}

static bool network_has_wicked(const struct guest *g)
{
	return guest_exists(g, "/etc/systemd/system/multi-user.target.wants/wicked.service") ||
	       guest_exists(g, "/etc/systemd/system/network-online.target.wants/wicked.service");
}

static bool network_has_scripts(const struct guest *g)
{
	return guest_exists(g, IFCFG_DIR "/ifup") || guest_exists(g, "/etc/rc.d/init.d/network");
}

static int network_run(struct guest *g, struct guest_result *r, struct err *e)
{
	struct err why = {0};

	if (!network_has_netplan(g) && network_has_manager(g))
		return network_manager(g, r, e);
	if (!network_has_netplan(g) && network_has_wicked(g))
		return network_wicked(g, r, e);
	/* Name servers are the lesser thing: addresses come all the same. */
	if (network_resolv(g, r, &why) < 0)
		guest_note(r, "the name servers couldn't be written: %s (write them into '/etc/resolv.conf' by hand)",
			   why.msg);
	if (network_has_netplan(g))
		return network_netplan(g, r, e);
	if (guest_exists(g, "/sbin/ifup") && guest_exists(g, "/etc/network/interfaces"))
		return network_ifupdown(g, r, e);
	return network_has_scripts(g) ? network_ifcfg(g, r, e) : network_networkd(g, r, e);
}

const struct guest_step guest_step_network = {"network", NULL, network_run};
