/*
 * The network cards of the new home have other names and addresses. Whatever is configured for a card of the old one is
 * switched off (kept as a comment where the file has to stay), and every ethernet card comes up by DHCP.
 *
 * systemd-networkd does it: it comes with systemd itself, so nothing has to be installed. Its file sorts last, so that
 * a file of the server's own that matches the new card wins. NetworkManager brings new cards up by DHCP unasked.
 */
#include "guest/guest_int.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/util.h"

#define NETWORKD_FILE "/etc/systemd/network/99-replant-dhcp.network"
#define NETPLAN_FILE  "/etc/netplan/99-replant-dhcp.yaml"
#define MARK          "#replant# "

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
		if (guest_exists(g, target))
			rc = guest_symlink(g, r, target, link, e);
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
static void network_note_lost(struct guest_result *r, const char *path, struct guest_span text,
			      const char *const *fixed, const char *const *joined)
{
	if (network_mentions(text, fixed))
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

	if (guest_read(g, "/etc/resolv.conf", &text, &len, NULL) == 0 &&
	    network_mentions((struct guest_span){text, len}, servers))
		guest_note(r, "'/etc/resolv.conf' stays as it is: the name servers in it are asked, not those that "
			      "DHCP names (see that the new home reaches them)");
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
	network_note_lost(r, path, (struct guest_span){text, len}, fixed, joined);
	return guest_write(g, r, path, out.s, out.len, 0644, e);
}

static int network_ifupdown(struct guest *g, struct guest_result *r, struct err *e)
{
	_cleanup_(guest_names_release) struct guest_names names = {0};
	unsigned stripped = 0;
	int rc = ifupdown_file(g, r, "/etc/network/interfaces", &stripped, e);

	if (rc == 0)
		rc = guest_list(g, "/etc/network/interfaces.d", "", &names, e);
	for (size_t i = 0; rc == 0 && i < names.n; i++) {
		char path[512];

		snprintf(path, sizeof(path), "/etc/network/interfaces.d/%s", names.v[i]);
		rc = ifupdown_file(g, r, path, &stripped, e);
	}
	if (rc < 0)
		return rc;
	if (stripped)
		str_addf(&r->summary, "%u lines about old network cards became comments; ", stripped);
	rc = guest_write(g, r, NETWORKD_FILE, networkd_text, strlen(networkd_text), 0644, e);
	if (rc == 0)
		rc = network_enable_networkd(g, r, e);
	if (rc == 0 && r->state == GUEST_DONE)
		str_add(&r->summary, "every ethernet card comes up by DHCP (systemd-networkd)");
	return rc;
}

/* ---- netplan ---- */

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
		if (strcmp(path, NETPLAN_FILE) == 0)
			continue;
		rc = guest_read(g, path, &text, &len, e);
		if (rc == 0)
			rc = guest_write(g, r, kept, text, len, 0600, e);
		if (rc == 0)
			network_note_lost(r, path, (struct guest_span){text, len}, fixed, joined);
		if (rc == 0)
			rc = guest_discard(g, r, path, e); /* it may hold the keys of networks */
	}
	if (rc == 0)
		rc = guest_write(g, r, NETPLAN_FILE, netplan_text, strlen(netplan_text), 0600, e);
	if (rc == 0 && r->state == GUEST_DONE)
		str_add(&r->summary,
			"every ethernet card comes up by DHCP (netplan); the old files are kept as *.replant");
	return rc;
}

/* ---- systemd-networkd and NetworkManager ---- */

static int network_networkd(struct guest *g, struct guest_result *r, struct err *e)
{
	int rc = guest_write(g, r, NETWORKD_FILE, networkd_text, strlen(networkd_text), 0644, e);

	if (rc == 0)
		rc = network_enable_networkd(g, r, e);
	if (rc == 0 && r->state == GUEST_DONE)
		str_add(&r->summary, "a card that no file of the server matches comes up by DHCP (systemd-networkd)");
	return rc;
}

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

static int network_run(struct guest *g, struct guest_result *r, struct err *e)
{
	if (!network_has_netplan(g) && network_has_manager(g)) {
		str_add(&r->summary, "NetworkManager brings new cards up by DHCP");
		return 0;
	}
	network_note_resolv(g, r);
	if (network_has_netplan(g))
		return network_netplan(g, r, e);
	if (guest_exists(g, "/sbin/ifup") && guest_exists(g, "/etc/network/interfaces"))
		return network_ifupdown(g, r, e);
	return network_networkd(g, r, e);
}

const struct guest_step guest_step_network = {"network", NULL, network_run};
