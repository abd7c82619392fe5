/*
 * The receiver: listens, lets in who holds the run's key, and gives each connection a thread. One session at a time: a
 * new one closes the connections of the old one and waits until their threads are gone, so that nothing old is written
 * after.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/statvfs.h>
#include <time.h>

#include "base/id.h"
#include "base/jsn.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/util.h"
#include "stream/receiver_int.h"

#define RECEIVER_TICK 500 /* milliseconds between progress events */

/* ---- events ---- */
void receiver_event(struct receiver *rv, const char *json)
{
	pthread_mutex_lock(&rv->event_lock);
	if (json && rv->event)
		rv->event(rv->event_arg, json);
	pthread_mutex_unlock(&rv->event_lock);
}

static void receiver_event_take(struct receiver *rv, json_t *j)
{
	_cleanup_free_ char *text = j ? jsn_text(j) : NULL;

	json_decref(j);
	receiver_event(rv, text);
}

void receiver_event_error(struct receiver *rv, unsigned code, const char *message)
{
	receiver_event_take(rv, json_pack("{s:s, s:s, s:s, s:b}", "event", "error", "code", wire_code_name(code),
					  "message", message, "temporary", wire_code_temporary(code)));
}

static void receiver_event_progress(struct receiver *rv)
{
	receiver_event_take(rv,
			    json_pack("{s:s, s:I, s:I}", "event", "progress", "bytes_written",
				      (json_int_t)rv->bytes_written, "bytes_received", (json_int_t)rv->bytes_received));
}

void receiver_finish(struct receiver *rv, int result, const struct err *e)
{
	pthread_mutex_lock(&rv->lock);
	/* What is committed is: a connection that gave up beside it changes nothing. */
	if (!rv->finished || result == 0) {
		rv->result = result;
		if (result < 0 && e)
			rv->error = *e;
		rv->finished = true;
		shutdown(rv->listenfd, SHUT_RD); /* receiver_loop() looks up at once */
	}
	pthread_cond_broadcast(&rv->changed);
	pthread_mutex_unlock(&rv->lock);
}

/* ---- space ---- */
uint64_t receiver_free(struct receiver *rv)
{
	struct statvfs v;
	uint64_t n;

	if (fstatvfs(rv->dirfd, &v) < 0)
		return UINT64_MAX;
	n = (uint64_t)v.f_bavail * v.f_frsize;
	return n > rv->p->min_free ? n - rv->p->min_free : 0;
}

int receiver_no_space(struct receiver *rv, uint64_t needed, struct err *e)
{
	uint64_t left = receiver_free(rv);
	char a[32], b[32], c[32], kept[64] = "";

	if (rv->p->min_free)
		snprintf(kept, sizeof(kept), ", %s of the rest are to stay free",
			 str_bytes(rv->p->min_free, c, sizeof(c)));
	err_set(e, -ENOSPC,
		"the destination is full: '%s' needs %s (%llu bytes) more and has %s (%llu bytes) to give%s; make room "
		"there, "
		"then go on: what has arrived is kept",
		rv->p->dir, str_bytes(needed, a, sizeof(a)), (unsigned long long)needed, str_bytes(left, b, sizeof(b)),
		(unsigned long long)left, kept);
	return -ENOSPC;
}

/* ---- connections ---- */
static double receiver_deadline(double seconds, struct timespec *ret)
{
	clock_gettime(CLOCK_MONOTONIC, ret);
	ret->tv_sec += (time_t)seconds;
	return seconds;
}

int receiver_kick(struct receiver *rv, struct receiver_conn *me, unsigned reason,
		  bool (*which)(const struct receiver_conn *c, const struct receiver_conn *me), struct err *e)
{
	struct timespec until;
	int waited = 0;
	bool any = true;

	receiver_deadline(30, &until);
	pthread_mutex_lock(&rv->lock);
	while (any && waited == 0 && !me->kicked) {
		any = false;
		for (struct receiver_conn *c = rv->conns; c; c = c->next) {
			if (c == me || !c->known || !which(c, me))
				continue;
			any = true;
			if (c->link && !c->kicked) {
				c->kicked = reason;
				wire_shutdown(c->link, true);
			}
		}
		if (any)
			waited = pthread_cond_timedwait(&rv->changed, &rv->lock, &until);
	}
	/* Somebody may have taken over from us while we waited. */
	any |= me->kicked != 0;
	pthread_mutex_unlock(&rv->lock);
	return any ? err_set(e, -EBUSY, "earlier connections of this run are still busy; try again") : 0;
}

static bool kick_all(const struct receiver_conn *c, const struct receiver_conn *me)
{
	return true;
}

static bool kick_same_index(const struct receiver_conn *c, const struct receiver_conn *me)
{
	return c->hello.role == WIRE_DATA && c->hello.index == me->hello.index;
}

/* A new control connection: of a new session, or of the current one come back. All others go. */
static int conn_admit_control(struct receiver_conn *c, struct err *e)
{
	struct receiver *rv = c->rv;
	bool taken_over = false, same;
	int r;

	pthread_mutex_lock(&rv->lock);
	for (unsigned i = 0; i < MIN(rv->nsuperseded, RECEIVER_SUPERSEDED); i++)
		taken_over |= memcmp(rv->superseded[i], c->hello.session, WIRE_SESSION_SIZE) == 0;
	same = rv->have_session && memcmp(rv->session, c->hello.session, WIRE_SESSION_SIZE) == 0;
	if (!taken_over) {
		if (rv->have_session && !same)
			memcpy(rv->superseded[rv->nsuperseded++ % RECEIVER_SUPERSEDED], rv->session, WIRE_SESSION_SIZE);
		memcpy(rv->session, c->hello.session, WIRE_SESSION_SIZE);
		rv->have_session = true;
		rv->opened = false;
		rv->told_space = false;
		c->known = true;
	}
	pthread_mutex_unlock(&rv->lock);
	if (taken_over)
		return err_set(e, wire_code_errno(WIRE_E_TAKEN_OVER), "another sender has taken this run over");
	r = receiver_kick(rv, c, same ? WIRE_E_NO_SESSION : WIRE_E_TAKEN_OVER, kick_all, e);
	/* Not before: one of those that had to go may have been refused just then. */
	pthread_mutex_lock(&rv->lock);
	if (r == 0)
		rv->refused_until = 0;
	pthread_mutex_unlock(&rv->lock);
	return r;
}

static int conn_admit_data(struct receiver_conn *c, struct err *e)
{
	struct receiver *rv = c->rv;
	bool fits;
	int r;

	pthread_mutex_lock(&rv->lock);
	fits = rv->opened && memcmp(rv->session, c->hello.session, WIRE_SESSION_SIZE) == 0;
	c->known = fits;
	pthread_mutex_unlock(&rv->lock);
	r = fits ? receiver_kick(rv, c, WIRE_E_NO_SESSION, kick_same_index, e) : 0;
	if (!fits)
		return err_set(e, -ESTALE, "this session has no control connection yet");
	return r;
}

static int conn_hello(struct receiver_conn *c, double deadline, struct err *e)
{
	struct wire_frame f;
	uint8_t buf[WIRE_SMALL_MAX];
	int r = wire_recv(c->link, MAX(deadline - id_now_mono(), 0.1), &f, e);

	if (r == 0)
		r = wire_get_hello(&f, &c->hello, e);
	if (r < 0)
		return r;
	c->version = (uint16_t)MIN(WIRE_VERSION, c->hello.max_version);
	if (c->hello.min_version > c->version || c->version < WIRE_VERSION_MIN)
		return err_set(e, -EPROTONOSUPPORT, "the receiver speaks versions %u to %u of the protocol only",
			       WIRE_VERSION_MIN, WIRE_VERSION);
	r = c->hello.role == WIRE_CONTROL ? conn_admit_control(c, e) : conn_admit_data(c, e);
	return r < 0 ? r : wire_say(c->link, WIRE_WELCOME, buf, wire_put_welcome(c->version, buf), e);
}

/* The server of a layer was killed: another receiver goes on with another one, and nothing is broken. */
static bool conn_lost_a_layer(const struct receiver *rv)
{
	for (size_t i = 0; i < WIRE_DISKS_MAX; i++)
		if (rv->layers[i] && disk_nbd_is_lost(rv->layers[i]))
			return true;
	return false;
}

/* What went wrong, for the peer; and for the center when it is more than a broken connection. */
static void conn_tell(struct receiver_conn *c, int code, struct err *e)
{
	unsigned wire = wire_code_of(code), kicked;
	uint8_t buf[WIRE_SMALL_MAX];
	bool tell = false;

	/* To the sender it is as if this receiver had been killed. */
	if (wire == WIRE_E_IO && conn_lost_a_layer(c->rv)) {
		receiver_finish(c->rv, -EAGAIN, e);
		return;
	}

	pthread_mutex_lock(&c->rv->lock);
	kicked = c->kicked;
	if (!kicked && code == -ENOSPC) {
		tell = !c->rv->told_space;
		c->rv->told_space = true;
	}
	pthread_mutex_unlock(&c->rv->lock);
	if (kicked) {
		wire = kicked;
		err_set(e, -ECONNABORTED, "%s",
			kicked == WIRE_E_TAKEN_OVER ? "another sender has taken this run over"
						    : "the connection was replaced");
	} else if (code == -ECANCELED || code == -ECONNABORTED || code == -EPIPE || code == -ETIMEDOUT ||
		   code == -ECONNRESET) {
		return;
	}
	if (tell)
		receiver_event_error(c->rv, wire, e->msg);
	if (wire_say(c->link, WIRE_ERROR, buf, wire_put_error(wire, e->msg, buf), NULL) == 0)
		wire_linger(c->link, 2.0);
	/* The destination itself is broken: no sender can help that. */
	if (!kicked && (wire == WIRE_E_IO || wire == WIRE_E_INTERNAL))
		receiver_finish(c->rv, code, e);
}

static bool conn_is_kicked(struct receiver_conn *c)
{
	bool r;

	pthread_mutex_lock(&c->rv->lock);
	r = c->kicked != 0;
	pthread_mutex_unlock(&c->rv->lock);
	return r;
}

/*
 * A sender whose statement was refused comes back to compare everything; and one that was told we are busy, with what
 * it asked for on an earlier connection, comes back for the answer.
 */
static void receiver_left(struct receiver *rv, int result, const struct err *e)
{
	if (result != -EILSEQ && result != -EBUSY) {
		receiver_finish(rv, result, e);
		return;
	}
	pthread_mutex_lock(&rv->lock);
	rv->refused = *e;
	rv->refused.code = result;
	rv->refused_until = id_now_mono() + RECEIVER_REFUSED;
	pthread_mutex_unlock(&rv->lock);
}

static void receiver_refused(struct receiver *rv)
{
	struct err e;
	bool over;

	pthread_mutex_lock(&rv->lock);
	over = rv->refused_until > 0 && id_now_mono() > rv->refused_until;
	e = rv->refused;
	pthread_mutex_unlock(&rv->lock);
	if (over)
		receiver_finish(rv, e.code, &e);
}

static void conn_serve(struct receiver_conn *c, double deadline)
{
	struct err e = {0};
	int r = conn_hello(c, deadline, &e);
	bool kicked;

	if (r == 0)
		r = c->hello.role == WIRE_CONTROL ? control_serve(c, &e) : data_serve(c, &e);
	kicked = conn_is_kicked(c);
	if (r < 0 || kicked)
		conn_tell(c, r < 0 ? r : -ECONNABORTED, &e);
	if (c->hello.role == WIRE_CONTROL && c->rv->p->once && c->known && !kicked)
		receiver_left(c->rv, r < 0 ? r : -ECONNABORTED,
			      r < 0 ? &e : &(struct err){-ECONNABORTED, "the sender left"});
}

/* The last thing its thread does. */
static void conn_end(struct receiver_conn *c)
{
	struct receiver *rv = c->rv;
	struct wire_link *link;

	codec_unpacker_free(c->unpacker);
	free(c->unpacked);
	pthread_mutex_lock(&rv->lock);
	link = c->link;
	for (struct receiver_conn **p = &rv->conns; *p; p = &(*p)->next) {
		if (*p == c) {
			*p = c->next;
			break;
		}
	}
	wire_close(link);
	c->next = rv->ended;
	rv->ended = c;
	pthread_cond_broadcast(&rv->changed);
	pthread_mutex_unlock(&rv->lock);
}

/* Waits for the threads of connections that have ended: none outlives the receiver it works on. */
static void receiver_reap(struct receiver *rv)
{
	struct receiver_conn *c, *next;

	pthread_mutex_lock(&rv->lock);
	c = rv->ended;
	rv->ended = NULL;
	pthread_mutex_unlock(&rv->lock);
	for (; c; c = next) {
		next = c->next;
		if (c->has_thread)
			pthread_join(c->thread, NULL);
		free(c);
	}
}

static void *conn_main(void *arg)
{
	struct receiver_conn *c = arg;
	struct receiver *rv = c->rv;
	double deadline = id_now_mono() + RECEIVER_HANDSHAKE;
	struct wire_link *link = NULL;

	if (wire_accept(take_fd(&c->fd), &rv->auth, &rv->env, RECEIVER_HANDSHAKE, &link, NULL) == 0) {
		pthread_mutex_lock(&rv->lock);
		c->link = link;
		pthread_mutex_unlock(&rv->lock);
		conn_serve(c, deadline);
	}
	conn_end(c);
	return NULL;
}

static struct receiver_conn *conn_new(struct receiver *rv, int fd)
{
	struct receiver_conn *c = calloc(1, sizeof(*c));
	unsigned unknown = 0, known = 0;

	pthread_mutex_lock(&rv->lock);
	for (struct receiver_conn *i = rv->conns; i; i = i->next)
		i->known ? known++ : unknown++;
	/* Replacing all of a run's connections at once needs twice their number for a moment. */
	if (c && !rv->finished && unknown < RECEIVER_UNKNOWN_MAX + WIRE_CONNECTIONS_MAX + 1 &&
	    known < 2 * (WIRE_CONNECTIONS_MAX + 1)) {
		*c = (struct receiver_conn){.rv = rv, .fd = fd, .next = rv->conns};
		rv->conns = c;
		pthread_mutex_unlock(&rv->lock);
		return c;
	}
	pthread_mutex_unlock(&rv->lock);
	free(c);
	return NULL;
}

static void receiver_accept(struct receiver *rv)
{
	struct receiver_conn *c;
	pthread_attr_t attr;
	int fd;

	receiver_reap(rv);
	fd = accept4(rv->listenfd, NULL, NULL, SOCK_CLOEXEC);
	if (fd < 0) {
		/* Out of descriptors, for instance: the connections there are will end. Don't spin. */
		if (errno != EINTR && errno != EAGAIN && errno != ECONNABORTED)
			nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
		return;
	}
	c = conn_new(rv, fd);
	if (!c) {
		close(fd);
		return;
	}
	pthread_attr_init(&attr);
	pthread_attr_setstacksize(&attr, 512 * 1024);
	c->has_thread = pthread_create(&c->thread, &attr, conn_main, c) == 0;
	pthread_attr_destroy(&attr);
	if (!c->has_thread) {
		close(fd);
		conn_end(c);
	}
}

/* ---- the whole ---- */
static void receiver_init(struct receiver *rv, const struct stream_receive_params *p, stream_event_fn event, void *arg)
{
	pthread_condattr_t attr;

	memset(rv, 0, sizeof(*rv));
	rv->p = p;
	rv->event = event;
	rv->event_arg = arg;
	rv->dirfd = rv->listenfd = -1;
	rv->auth = (struct wire_auth){.run = p->link.run, .psk = p->link.psk, .clear = p->link.clear};
	rv->env = (struct wire_env){.stop = &rv->stop, .sent = &rv->bytes_sent, .received = &rv->bytes_received};
	pthread_mutex_init(&rv->event_lock, NULL);
	pthread_mutex_init(&rv->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&rv->changed, &attr);
	pthread_condattr_destroy(&attr);
}

void receiver_close_disks(struct receiver *rv, bool clean)
{
	for (size_t i = 0; i < rv->ndisks; i++) {
		replica_close(rv->disks[i], clean, NULL);
		bitmap_release(&rv->used[i]);
		rv->disks[i] = NULL;
	}
	rv->ndisks = 0;
}

/* Everything that waits on the network ends; threads that write are waited for as long as they need. */
static void receiver_end(struct receiver *rv)
{
	rv->stop = true;
	pthread_mutex_lock(&rv->lock);
	while (rv->conns)
		pthread_cond_wait(&rv->changed, &rv->lock);
	pthread_mutex_unlock(&rv->lock);
	receiver_reap(rv);
}

static void receiver_release(struct receiver *rv)
{
	receiver_end(rv);
	receiver_close_disks(rv, true);
	for (size_t i = 0; i < WIRE_DISKS_MAX; i++)
		disk_close(rv->layers[i]);
	if (rv->listenfd >= 0)
		close(rv->listenfd);
	if (rv->dirfd >= 0)
		close(rv->dirfd);
	pthread_cond_destroy(&rv->changed);
	pthread_mutex_destroy(&rv->lock);
	pthread_mutex_destroy(&rv->event_lock);
}

static int receiver_open_dir(struct receiver *rv, struct err *e)
{
	rv->dirfd = open(rv->p->dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (rv->dirfd < 0)
		return err_sys(e, "cannot open the directory '%s'", rv->p->dir);
	if (flock(rv->dirfd, LOCK_EX | LOCK_NB) == 0)
		return 0;
	if (errno == EWOULDBLOCK)
		return err_set(e, -EBUSY, "another receiver uses the directory '%s'", rv->p->dir);
	return err_sys(e, "cannot lock the directory '%s'", rv->p->dir);
}

/* At once, because a server may not wait for long until its client has said what it wants. */
static int receiver_open_layers(struct receiver *rv, struct err *e)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < MIN(rv->p->nlayers, (size_t)WIRE_DISKS_MAX); i++) {
		char name[32];

		snprintf(name, sizeof(name), "disk%zu", i);
		if (rv->p->layers[i] >= 0)
			r = disk_nbd_new(rv->p->layers[i], name, &rv->layers[i], e);
	}
	return r;
}

static int receiver_listen(struct receiver *rv, uint16_t *ret_port, struct err *e)
{
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV | AI_PASSIVE, .ai_socktype = SOCK_STREAM};
	struct addrinfo *ai = NULL;
	struct sockaddr_storage at;
	socklen_t len = sizeof(at);
	char service[8];
	int one = 1, r;

	snprintf(service, sizeof(service), "%u", rv->p->port);
	if (getaddrinfo(rv->p->listen, service, &hints, &ai) != 0)
		return err_set(e, -EINVAL, "'%s' is not a numeric address", rv->p->listen);
	rv->listenfd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	r = rv->listenfd < 0;
	if (!r)
		setsockopt(rv->listenfd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	r = r || bind(rv->listenfd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(rv->listenfd, 64) < 0 ||
	    getsockname(rv->listenfd, (struct sockaddr *)&at, &len) < 0;
	freeaddrinfo(ai);
	if (r)
		return err_sys(e, "cannot listen on '%s' port %u", rv->p->listen, rv->p->port);
	*ret_port = ntohs(at.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&at)->sin6_port
						   : ((struct sockaddr_in *)&at)->sin_port);
	return 0;
}

/* What a receiver needs, and not more: files for disks and connections, no core that would hold the key. */
static void receiver_limits(void)
{
	struct rlimit files = {512, 512}, core = {0, 0};

	setrlimit(RLIMIT_NOFILE, &files);
	setrlimit(RLIMIT_CORE, &core);
}

static void receiver_loop(struct receiver *rv)
{
	double next = id_now_mono();
	uint64_t told = UINT64_MAX;

	while (!rv->finished) {
		struct pollfd p = {.fd = rv->listenfd, .events = POLLIN};

		if (poll(&p, 1, 100) > 0 && !rv->finished)
			receiver_accept(rv);
		if (id_now_mono() < next)
			continue;
		next = id_now_mono() + RECEIVER_TICK / 1000.0;
		receiver_refused(rv);
		if (rv->bytes_received != told && rv->have_session) {
			told = rv->bytes_received;
			receiver_event_progress(rv);
		}
	}
}

int stream_receive(const struct stream_receive_params *p, stream_event_fn event, void *arg, struct err *e)
{
	struct receiver rv;
	uint16_t port = 0;
	int r;

	receiver_init(&rv, p, event, arg);
	r = receiver_open_dir(&rv, e);
	if (r == 0)
		r = receiver_listen(&rv, &port, e);
	if (r == 0)
		r = proc_drop(p->user, e);
	if (r == 0)
		r = receiver_open_layers(&rv, e);
	if (r == 0) {
		receiver_limits();
		receiver_event_take(&rv, json_pack("{s:s, s:i}", "event", "listening", "port", (int)port));
		receiver_loop(&rv);
		receiver_end(&rv); /* one that commits may be among the connections */
		receiver_event_progress(&rv);
		r = rv.result;
		if (r < 0 && e)
			*e = rv.error;
	}
	receiver_release(&rv);
	return r;
}

int receiver_serve_plain(const struct stream_receive_params *p, const int *fds, size_t n, stream_event_fn event,
			 void *arg)
{
	struct receiver rv;
	int r;

	receiver_init(&rv, p, event, arg);
	r = receiver_open_dir(&rv, NULL);
	for (size_t i = 0; i < n; i++) {
		struct receiver_conn *c = r == 0 ? conn_new(&rv, -1) : NULL;

		if (!c) {
			close(fds[i]);
			continue;
		}
		if (wire_plain(fds[i], true, &rv.env, &c->link, NULL) == 0)
			conn_serve(c, id_now_mono() + RECEIVER_HANDSHAKE);
		conn_end(c);
	}
	receiver_release(&rv);
	return r;
}
