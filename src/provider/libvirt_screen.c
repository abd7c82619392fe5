/*
 * What people see of a domain: screen, serial line, addresses. libvirt gives the line only while somebody listens, so
 * it is listened to from power-on, by libvirt's event thread, and the end of it is kept.
 */
#include "provider/libvirt_int.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/io.h"
#include "base/str.h"
#include "provider/local_int.h"

#define CONSOLE_KEPT (1u << 20)
#define BOOT_TAIL    (256u << 10)

struct libvirt_console {
	struct libvirt_console *next; /* (libvirt's lock), as `ref` */
	char ref[HYPERVISOR_REF_MAX];
	pthread_mutex_t lock; /* of the rest */
	int refs;             /* of the list, of the stream's callback */
	virStreamPtr stream;  /* NULL: it has ended */
	char *buf;
	size_t len;
	uint64_t start; /* of what is kept, in all that came */
	uint64_t boot;  /* where in it the last start was, as far as we saw one */
};

static void console_unref(void *arg)
{
	struct libvirt_console *c = arg;
	bool last;

	pthread_mutex_lock(&c->lock);
	last = --c->refs == 0;
	pthread_mutex_unlock(&c->lock);
	if (!last)
		return;
	pthread_mutex_destroy(&c->lock);
	free(c->buf);
	free(c);
}

static void console_add(struct libvirt_console *c, const char *p, size_t n)
{
	size_t drop;

	if (c->len + n > CONSOLE_KEPT) {
		drop = MIN(c->len, c->len + n - CONSOLE_KEPT);
		memmove(c->buf, c->buf + drop, c->len - drop);
		c->len -= drop;
		c->start += drop;
	}
	memcpy(c->buf + c->len, p, n);
	c->len += n;
}

/* Whoever takes the stream out ends it. */
static void console_end(struct libvirt_console *c)
{
	virStreamPtr st;

	pthread_mutex_lock(&c->lock);
	st = take_ptr(&c->stream);
	pthread_mutex_unlock(&c->lock);
	if (!st)
		return;
	virStreamEventRemoveCallback(st);
	virStreamAbort(st);
	virStreamFree(st);
}

static void console_event(virStreamPtr st, int events, void *arg)
{
	struct libvirt_console *c = arg;
	char buf[16384];
	int n;

	while ((n = virStreamRecv(st, buf, sizeof(buf))) > 0) {
		pthread_mutex_lock(&c->lock);
		console_add(c, buf, (size_t)n);
		pthread_mutex_unlock(&c->lock);
	}
	if (n != -2) /* not that there is nothing now */
		console_end(c);
}

static int console_listen(struct libvirt_console *c, virDomainPtr dom, struct err *e)
{
	_cleanup_stream_ virStreamPtr st = virStreamNew(virDomainGetConnect(dom), VIR_STREAM_NONBLOCK);

	if (!st || virDomainOpenConsole(dom, NULL, st, 0) < 0)
		return libvirt_fail(e, "the domain's serial line can't be listened to");
	pthread_mutex_lock(&c->lock);
	if (c->stream) { /* another was faster */
		pthread_mutex_unlock(&c->lock);
		virStreamAbort(st);
		return 0;
	}
	c->refs++;
	virStreamRef(st);
	c->stream = st;
	pthread_mutex_unlock(&c->lock);
	if (virStreamEventAddCallback(st, VIR_STREAM_EVENT_READABLE | VIR_STREAM_EVENT_HANGUP | VIR_STREAM_EVENT_ERROR,
				      console_event, c, console_unref) == 0)
		return 0;
	libvirt_fail(e, "the domain's serial line can't be listened to");
	console_end(c);
	console_unref(c);
	return e ? e->code : -EIO;
}

/* That of the domain, made when there is none; borrowed, it stays until the end. NULL: out of memory. */
static struct libvirt_console *console_of(struct libvirt *lv, const char *ref)
{
	struct libvirt_console *c;

	pthread_mutex_lock(&lv->lock);
	for (c = lv->consoles; c && strcmp(c->ref, ref) != 0;)
		c = c->next;
	if (!c && (c = calloc(1, sizeof(*c)))) {
		c->buf = malloc(CONSOLE_KEPT);
		snprintf(c->ref, sizeof(c->ref), "%s", ref);
		pthread_mutex_init(&c->lock, NULL);
		c->refs = 1;
		if (c->buf) {
			c->next = lv->consoles;
			lv->consoles = c;
		} else {
			console_unref(c);
			c = NULL;
		}
	}
	pthread_mutex_unlock(&lv->lock);
	return c;
}

int libvirt_console_open(struct libvirt *lv, virDomainPtr dom, const char *ref, struct err *e)
{
	struct libvirt_console *c = console_of(lv, ref);
	bool open;

	if (!c)
		return err_nomem(e);
	pthread_mutex_lock(&c->lock);
	open = c->stream;
	pthread_mutex_unlock(&c->lock);
	return open ? 0 : console_listen(c, dom, e);
}

void libvirt_console_begin(struct libvirt *lv, const char *ref)
{
	struct libvirt_console *c = console_of(lv, ref);

	if (!c)
		return;
	pthread_mutex_lock(&c->lock);
	c->boot = c->start + c->len;
	pthread_mutex_unlock(&c->lock);
}

void libvirt_consoles_close(struct libvirt *lv)
{
	struct libvirt_console *c;

	while ((c = lv->consoles)) {
		lv->consoles = c->next;
		console_end(c);
		console_unref(c);
	}
}

int libvirt_serial(struct hypervisor *h, const char *ref, uint64_t since, struct str *ret, uint64_t *ret_end,
		   struct err *e)
{
	struct libvirt *lv = libvirt_of(h);
	_cleanup_domain_ virDomainPtr dom = NULL;
	struct libvirt_console *c;
	int r = libvirt_domain(lv, ref, &dom, e);

	if (r == 0 && virDomainIsActive(dom) == 1)
		r = libvirt_console_open(lv, dom, ref, e);
	if (r < 0)
		return r;
	c = console_of(lv, ref);
	if (!c)
		return err_nomem(e);
	pthread_mutex_lock(&c->lock);
	since = MAX(since, c->start);
	if (since < c->start + c->len)
		str_add_mem(ret, c->buf + (since - c->start), c->len - (size_t)(since - c->start));
	*ret_end = c->start + c->len;
	pthread_mutex_unlock(&c->lock);
	return str_ok(ret) ? 0 : err_nomem(e);
}

/* What came of it since it was started, without NULs, which would end it. */
static char *console_boot(struct libvirt_console *c)
{
	_cleanup_(str_release) struct str s = {0};
	size_t at;

	pthread_mutex_lock(&c->lock);
	at = c->boot > c->start ? (size_t)(c->boot - c->start) : 0;
	at = MAX(MIN(at, c->len), c->len > BOOT_TAIL ? c->len - BOOT_TAIL : 0);
	str_add_mem(&s, c->buf + at, c->len - at);
	pthread_mutex_unlock(&c->lock);
	for (size_t i = 0; i < s.len; i++)
		if (!s.s[i])
			s.s[i] = '?';
	return str_take(&s);
}

json_t *libvirt_boot(struct libvirt *lv, virDomainPtr dom, const char *ref, bool active)
{
	const char *stage, *text;
	struct libvirt_console *c;
	_cleanup_free_ char *serial = NULL;
	enum local_boot how;

	if (!active)
		return json_pack("{s:s, s:b, s:s}", "stage", "off", "failed", false, "text", "it is off");
	if (libvirt_console_open(lv, dom, ref, NULL) < 0 || !(c = console_of(lv, ref)))
		return json_pack("{s:s, s:b, s:s}", "stage", "unknown", "failed", false, "text",
				 "the domain has no serial line that could be listened to");
	serial = console_boot(c);
	how = local_boot_judge(serial ? serial : "", "", &stage, &text);
	return json_pack("{s:s, s:b, s:s}", "stage", stage, "failed", how == LOCAL_BOOT_FAILED, "text", text);
}

/* ---- the screen ---- */

static int read_stream(virStreamPtr st, struct str *b, struct err *e)
{
	_cleanup_free_ char *buf = malloc(64 * KIB);
	int n;

	if (!buf)
		return err_nomem(e);
	while ((n = virStreamRecv(st, buf, 64 * KIB)) > 0) {
		str_add_mem(b, buf, (size_t)n);
		if (b->len > LIBVIRT_PIC_MAX || !str_ok(b)) {
			virStreamAbort(st);
			return err_set(e, -EFBIG, "the host's picture of the screen is too big");
		}
	}
	if (n < 0 || virStreamFinish(st) < 0)
		return libvirt_fail(e, "the picture of the screen can't be read");
	return 0;
}

int libvirt_screenshot(struct hypervisor *h, const char *ref, const char *path, struct err *e)
{
	struct libvirt *lv = libvirt_of(h);
	_cleanup_domain_ virDomainPtr dom = NULL;
	_cleanup_stream_ virStreamPtr st = NULL;
	_cleanup_(str_release) struct str got = {0}, png = {0};
	_cleanup_free_ char *type = NULL;
	int r = libvirt_domain(lv, ref, &dom, e);

	if (r < 0)
		return r;
	if (virDomainIsActive(dom) != 1)
		return err_set(e, -ENOTCONN, "the instance is off; it has no picture");
	st = virStreamNew(virDomainGetConnect(dom), 0);
	type = st ? virDomainScreenshot(dom, st, 0, 0) : NULL;
	if (!type)
		return libvirt_fail(e, "the instance's screen can't be pictured");
	r = read_stream(st, &got, e);
	if (r < 0)
		return r;
	/* By what it is, not by what it is called. */
	if (got.len > 8 && memcmp(got.s, "\x89PNG\r\n\x1a\n", 8) == 0)
		return io_write_file_atomic(path, got.s, got.len, 0644, e);
	r = libvirt_png(got.s ?: "", got.len, &png, e);
	return r ?: io_write_file_atomic(path, png.s, png.len, 0644, e);
}

/* ---- addresses ---- */

static void add_address(json_t *a, const char *text)
{
	json_t *have;
	size_t i;

	if (!text || strlen(text) > 63 || str_starts(text, "127.") || strcmp(text, "::1") == 0 ||
	    json_array_size(a) >= 64)
		return;
	json_array_foreach(a, i, have) if (strcmp(json_string_value(have), text) == 0) return;
	json_array_append_new(a, json_string(text));
}

/* An agent that isn't there would be waited for. */
static bool agent_answers(xmlNodePtr domain)
{
	for (xmlNodePtr n = libvirt_xml_at(domain, "devices/channel"); n; n = libvirt_xml_next(n, "channel")) {
		xmlNodePtr target = libvirt_xml_first(n, "target");

		if (libvirt_xml_attr_is(target, "name", "org.qemu.guest_agent.0") &&
		    libvirt_xml_attr_is(target, "state", "connected"))
			return true;
	}
	return false;
}

json_t *libvirt_addresses(virDomainPtr dom, xmlNodePtr domain)
{
	static const unsigned sources[] = {VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE,
					   VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP,
					   VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_AGENT};
	size_t n = ARRAY_SIZE(sources) - !agent_answers(domain);
	json_t *a = json_array();

	for (size_t i = 0; i < n; i++) {
		virDomainInterfacePtr *nics = NULL;
		int k = virDomainInterfaceAddresses(dom, &nics, sources[i], 0);

		for (int x = 0; x < k; x++) {
			for (unsigned y = 0; y < nics[x]->naddrs; y++)
				add_address(a, nics[x]->addrs[y].addr);
			virDomainInterfaceFree(nics[x]);
		}
		free(nics);
	}
	return a;
}
