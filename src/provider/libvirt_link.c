/*
 * The connection. Everybody shares one, and makes it anew when it was lost; a thread of its own dials, because the
 * library may wait for minutes where a host is silent, and whoever asks waits only for some seconds. On a connection
 * that exists keepalives see to it that no call waits for ever: they are sent by a thread that serves libvirt's events.
 */
#include "provider/libvirt_int.h"

#include <errno.h>
#include <openssl/evp.h>
#include <stdarg.h>
#include <string.h>

#include "base/err.h"
#include "base/id.h"
#include "base/str.h"

#define LIBVIRT_ALIVE      4 /* seconds between keepalives, and how many may stay unanswered */
#define LIBVIRT_ALIVE_LOST 4
#define LIBVIRT_URI_MAX    512

struct libvirt_dial {
	int refs; /* of the thread, of who waits, of the table of functions (lock) */
	pthread_mutex_t lock;
	pthread_cond_t changed;
	char *uri;
	virConnectPtr conn;
	bool done;
	double began;
	struct err err;
};

struct libvirt_patience libvirt_patience = {.caller = 10, .dial = 60, .dials = 16};

static _Atomic unsigned dialling; /* threads, those that were given up among them */

static void link_quiet(void *arg, virErrorPtr error)
{
}

static void *link_events(void *arg)
{
	for (;;)
		if (virEventRunDefaultImpl() < 0)
			sleep(1);
	return NULL;
}

static void link_tick(int timer, void *arg)
{
}

static int link_begun;

static void link_begin_once(void)
{
	pthread_t thread;

	virSetErrorFunc(NULL, link_quiet); /* it would print */
	/* A timer of its own: without anything to wait for, the loop would not wait. */
	if (virInitialize() < 0 || virEventRegisterDefaultImpl() < 0 ||
	    virEventAddTimeout(60000, link_tick, NULL, NULL) < 0 ||
	    pthread_create(&thread, NULL, link_events, NULL) != 0)
		return;
	pthread_detach(thread);
	link_begun = 1;
}

static int link_begin(struct err *e)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;

	pthread_once(&once, link_begin_once);
	return link_begun ? 0 : err_set(e, -ENOMEM, "libvirt's library can't be started");
}

/* ---- errors ---- */

static int link_errno(const virError *v)
{
	switch (v->code) {
	case VIR_ERR_NO_DOMAIN:
	case VIR_ERR_NO_STORAGE_VOL:
	case VIR_ERR_NO_STORAGE_POOL:
	case VIR_ERR_NO_NETWORK:
		return -ENOENT;
	case VIR_ERR_DOM_EXIST:
	case VIR_ERR_STORAGE_VOL_EXIST:
		return -EEXIST;
	case VIR_ERR_OPERATION_INVALID:
		return -EBUSY;
	case VIR_ERR_OPERATION_TIMEOUT:
		return -ETIMEDOUT;
	case VIR_ERR_NO_SUPPORT:
	case VIR_ERR_CONFIG_UNSUPPORTED:
	case VIR_ERR_ARGUMENT_UNSUPPORTED:
	case VIR_ERR_OPERATION_UNSUPPORTED:
		return -ENOTSUP;
	case VIR_ERR_AUTH_FAILED:
	case VIR_ERR_AUTH_CANCELLED:
	case VIR_ERR_ACCESS_DENIED:
		return -EACCES;
	case VIR_ERR_NO_CONNECT:
	case VIR_ERR_INVALID_CONN:
		return -ENOTCONN;
	case VIR_ERR_NO_MEMORY:
		return -ENOMEM;
	case VIR_ERR_SYSTEM_ERROR: /* its number is in int1 */
		return v->int1 > 0 && v->int1 < 4096 ? -v->int1 : -EIO;
	default:
		/* What a program on that host said is all there is. */
		return v->message && strstr(v->message, "No space left on device") ? -ENOSPC : -EIO;
	}
}

int libvirt_fail(struct err *e, const char *fmt, ...)
{
	const virError *v = virGetLastError();
	char text[512], why[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	if (!v || v->code == VIR_ERR_OK)
		return err_set(e, -EIO, "%s", text);
	snprintf(why, sizeof(why), "%s", v->message ?: "no reason given");
	for (char *p = why; *p; p++)
		if ((unsigned char)*p < ' ')
			*p = ' ';
	for (size_t n = strlen(why); n && why[n - 1] == ' '; n--)
		why[n - 1] = '\0';
	return err_set(e, link_errno(v), "%s: %s", text, why);
}

/* ---- addresses ---- */

static int check_parameter(const char *p, size_t len, struct err *e)
{
	/* The others name programs that this host would run, or take the host's word for who it is. */
	static const char *const known[] = {"socket", "keyfile", "pkipath", "mode", "no_tty"};
	size_t name = strcspn(p, "=&");

	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (name == strlen(known[i]) && strncmp(p, known[i], name) == 0)
			return 0;
	return err_set(e, -EINVAL,
		       "'%.*s' may not be in the address of a host (parameters are socket, keyfile, pkipath, mode and "
		       "no_tty)",
		       (int)MIN(name, MIN(len, (size_t)64)), p);
}

int libvirt_check_uri(const char *uri, struct err *e)
{
	static const char *const schemes[] = {"qemu", "qemu+unix", "qemu+ssh", "qemu+tls"};
	const char *sep = strstr(uri, "://"), *host = sep ? sep + 3 : "", *slash = host + strcspn(host, "/?#"), *at;
	size_t n = strlen(uri);
	bool known = false;
	int r = 0;

	if (n > LIBVIRT_URI_MAX || strspn(uri, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
					       "+:/?&=.@-_%[]~") != n)
		return err_set(e, -EINVAL, "the address of a host has a character that can't be, or is longer than %d",
			       LIBVIRT_URI_MAX);
	if (strcmp(uri, "test:///default") == 0)
		return 0;
	for (size_t i = 0; sep && i < ARRAY_SIZE(schemes); i++)
		known |= (size_t)(sep - uri) == strlen(schemes[i]) && str_starts(uri, schemes[i]);
	if (!known || *slash != '/')
		return err_set(e, -EINVAL,
			       "'%.100s' is no address of a libvirt host (qemu:///system, qemu+ssh://root@HOST/system, "
			       "qemu+tls://HOST/system)",
			       uri);
	at = memchr(host, '@', (size_t)(slash - host));
	if (at && memchr(host, ':', (size_t)(at - host)))
		return err_set(
		    e, -EINVAL,
		    "the address of a host must not hold a password; let ssh use a key, or tls a certificate");
	/* The library decodes '%2D'. */
	if (strchr("-%", at ? at[1] : *host) || strchr("-%", *host))
		return err_set(e, -EINVAL, "'%.100s' names no host", uri);
	for (const char *p = strchr(slash, '?'); p && r == 0; p = strchr(p + 1, '&'))
		r = check_parameter(p + 1, strlen(p + 1), e);
	return r;
}

char *libvirt_full_uri(const char *uri)
{
	const char *query = strchr(uri, '?');

	if (!str_starts(uri, "qemu+ssh://") || (query && strstr(query, "no_tty=")))
		return strdup(uri);
	return str_printf("%s%sno_tty=1", uri, query ? "&" : "?");
}

/* ---- dialling ---- */

static void dial_unref(struct libvirt_dial *d)
{
	bool last;

	if (!d)
		return;
	pthread_mutex_lock(&d->lock);
	last = --d->refs == 0;
	pthread_mutex_unlock(&d->lock);
	if (!last)
		return;
	if (d->conn)
		virConnectClose(d->conn);
	pthread_cond_destroy(&d->changed);
	pthread_mutex_destroy(&d->lock);
	free(d->uri);
	free(d);
}

static void *dial_run(void *arg)
{
	struct libvirt_dial *d = arg;
	virConnectPtr conn = virConnectOpen(d->uri);
	struct err err = {0};

	if (!conn)
		libvirt_fail(&err, "cannot connect to '%.200s'", d->uri);
	else
		virConnectSetKeepAlive(conn, LIBVIRT_ALIVE, LIBVIRT_ALIVE_LOST); /* the test driver has none */
	pthread_mutex_lock(&d->lock);
	d->conn = conn;
	d->err = err;
	d->done = true;
	pthread_cond_broadcast(&d->changed);
	pthread_mutex_unlock(&d->lock);
	dial_unref(d);
	dialling--;
	return NULL;
}

static struct libvirt_dial *dial_start(const char *uri)
{
	struct libvirt_dial *d = calloc(1, sizeof(*d));
	pthread_condattr_t attr;
	pthread_attr_t detached;
	pthread_t thread;
	int r;

	if (!d)
		return NULL;
	pthread_mutex_init(&d->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&d->changed, &attr);
	pthread_condattr_destroy(&attr);
	d->refs = 2;
	d->began = id_now_mono();
	d->uri = libvirt_full_uri(uri);
	pthread_attr_init(&detached);
	pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
	dialling++;
	r = d->uri ? pthread_create(&thread, &detached, dial_run, d) : ENOMEM;
	pthread_attr_destroy(&detached);
	if (r == 0)
		return d;
	dialling--;
	d->refs = 1;
	dial_unref(d);
	return NULL;
}

static int dial_wait(struct libvirt_dial *d, virConnectPtr *ret, bool *ret_done, struct err *e)
{
	struct timespec until;
	int r = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += (time_t)libvirt_patience.caller;
	pthread_mutex_lock(&d->lock);
	while (!d->done && r == 0)
		r = pthread_cond_timedwait(&d->changed, &d->lock, &until);
	*ret_done = d->done;
	if (d->conn) {
		virConnectRef(d->conn);
		*ret = d->conn;
		r = 0;
	} else if (d->done) {
		r = err_set(e, d->err.code, "%s", d->err.msg);
	} else {
		r = err_set(e, -ETIMEDOUT, "'%.200s' hasn't answered for %u s", d->uri, libvirt_patience.caller);
	}
	pthread_mutex_unlock(&d->lock);
	return r;
}

/* One that hangs is left to itself: a host that was gone when it began would never be asked again. */
static bool dial_is_lost(struct libvirt_dial *d)
{
	bool lost;

	pthread_mutex_lock(&d->lock);
	lost = !d->done && id_now_mono() - d->began > libvirt_patience.dial && dialling < libvirt_patience.dials;
	pthread_mutex_unlock(&d->lock);
	return lost;
}

/* 1: *ret is a connection that lives; 0: *ret_dial is being made. */
static int link_join(struct libvirt *lv, virConnectPtr *ret, struct libvirt_dial **ret_dial, struct err *e)
{
	struct libvirt_dial *lost = NULL;
	virConnectPtr dead = NULL;
	int r = 0;

	pthread_mutex_lock(&lv->lock);
	if (lv->conn && virConnectIsAlive(lv->conn) != 1)
		dead = take_ptr(&lv->conn);
	if (lv->conn) {
		virConnectRef(lv->conn);
		*ret = lv->conn;
		r = 1;
	} else {
		if (lv->dial && dial_is_lost(lv->dial))
			lost = take_ptr(&lv->dial);
		if (!lv->dial)
			lv->dial = dial_start(lv->uri);
		if (lv->dial) {
			pthread_mutex_lock(&lv->dial->lock);
			lv->dial->refs++;
			pthread_mutex_unlock(&lv->dial->lock);
			*ret_dial = lv->dial;
		} else {
			r = err_nomem(e);
		}
	}
	pthread_mutex_unlock(&lv->lock);
	dial_unref(lost);
	if (dead)
		virConnectClose(dead);
	return r;
}

int libvirt_link(struct libvirt *lv, virConnectPtr *ret, struct err *e)
{
	struct libvirt_dial *d = NULL, *over = NULL;
	virConnectPtr conn = NULL;
	bool done = false;
	int r = link_begin(e);

	r = r ?: link_join(lv, ret, &d, e);
	if (r != 0)
		return r < 0 ? r : 0;
	r = dial_wait(d, &conn, &done, e);
	pthread_mutex_lock(&lv->lock);
	if (done && lv->dial == d) {
		over = take_ptr(&lv->dial);
		if (conn && !lv->conn) {
			virConnectRef(conn);
			lv->conn = conn;
		}
	}
	pthread_mutex_unlock(&lv->lock);
	dial_unref(over);
	dial_unref(d);
	if (r == 0)
		*ret = conn;
	return r;
}

void libvirt_unlink(struct libvirt *lv)
{
	dial_unref(lv->dial);
	if (lv->conn)
		virConnectClose(lv->conn);
	lv->dial = NULL;
	lv->conn = NULL;
}

void libvirt_uuid_of(const char *id, char out[37])
{
	unsigned char d[EVP_MAX_MD_SIZE];
	char hex[33];
	unsigned n = 0;

	must(EVP_Digest(id, strlen(id), d, &n, EVP_sha256(), NULL) == 1 && n >= 16);
	d[6] = (unsigned char)((d[6] & 0x0f) | 0x80);
	d[8] = (unsigned char)((d[8] & 0x3f) | 0x80);
	str_hex(d, 16, hex);
	snprintf(out, 37, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
}

int libvirt_domain(struct libvirt *lv, const char *ref, virDomainPtr *ret, struct err *e)
{
	_cleanup_conn_ virConnectPtr conn = NULL;
	char uuid[37];
	int r;

	/* One whose making was cut off is known by its instance alone. */
	if (id_is("instance", ref)) {
		libvirt_uuid_of(ref, uuid);
		ref = uuid;
	}
	if (strlen(ref) != 36 || strspn(ref, "0123456789abcdef-") != 36)
		return err_set(e, -EINVAL, "'%.64s' is no domain's UUID", ref);
	r = libvirt_link(lv, &conn, e);
	if (r < 0)
		return r;
	*ret = virDomainLookupByUUIDString(conn, ref);
	return *ret ? 0 : libvirt_fail(e, "domain '%s'", ref);
}
