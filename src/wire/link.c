#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/tcp.h> /* glibc's tcp_info ends before what link_line() wants */
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/err.h"
#include "base/id.h"
#include "base/util.h"
#include "wire/wire_int.h"

int link_new(int fd, bool server, const struct wire_env *env, struct wire_link **ret, struct err *e)
{
	struct wire_link *l = calloc(1, sizeof(*l));
	int flags = fcntl(fd, F_GETFL);

	if (!l)
		return err_nomem(e);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0) {
		free(l);
		return err_sys(e, "cannot prepare a connection");
	}
	l->fd = fd;
	l->server = server;
	if (env)
		l->env = *env;
	if (l->env.stall <= 0)
		l->env.stall = WIRE_STALL;
	*ret = l;
	return 0;
}

void wire_close(struct wire_link *l)
{
	if (!l)
		return;
	if (l->transport)
		l->transport->release(l);
	if (l->fd >= 0)
		close(l->fd);
	free(l->rx);
	free(l->out);
	free(l);
}

void wire_shutdown(struct wire_link *l, bool reading_only)
{
	if (!reading_only)
		l->shut = true;
	shutdown(l->fd, reading_only ? SHUT_RD : SHUT_RDWR);
}

void wire_linger(struct wire_link *l, double seconds)
{
	double deadline = id_now_mono() + seconds;
	uint8_t buf[16384];

	shutdown(l->fd, SHUT_WR);
	for (;;) {
		ssize_t r = link_raw_recv(l, buf, sizeof(buf));

		if (r == 0 || (r < 0 && r != -EAGAIN) || id_now_mono() > deadline)
			return;
		if (r < 0 && link_wait(l, POLLIN, deadline, NULL) < 0)
			return;
	}
}

bool wire_is_network(int code)
{
	static const int codes[] = {EPIPE,        ECONNRESET,  ECONNREFUSED, ECONNABORTED,  ETIMEDOUT,
				    EHOSTUNREACH, ENETUNREACH, ENETDOWN,     EHOSTDOWN,     EBADMSG,
				    ESTALE,       EBUSY,       ENETRESET,    EADDRNOTAVAIL, EPROTO};

	for (size_t i = 0; i < ARRAY_SIZE(codes); i++)
		if (code == -codes[i])
			return true;
	return false;
}

int link_wait(struct wire_link *l, short events, double deadline, struct err *e)
{
	struct pollfd p = {.fd = l->fd, .events = events};

	for (;;) {
		double left = deadline > 0 ? deadline - id_now_mono() : WIRE_POLL;
		int r;

		if (l->env.stop && *l->env.stop)
			return err_set(e, -ECANCELED, "cancelled");
		if (l->shut)
			return err_set(e, -ECONNABORTED, "connection was shut down");
		if (left <= 0)
			return err_set(e, -ETIMEDOUT, "the peer does not answer");
		r = poll(&p, 1, (int)(MIN(left, WIRE_POLL) * 1000) + 1);
		if (r < 0 && errno != EINTR)
			return err_sys(e, "cannot wait for a connection");
		if (r > 0)
			return 0;
	}
}

/* What n bytes are on the cable. */
static size_t link_cost(const struct wire_link *l, size_t n)
{
	socklen_t len = sizeof(int);
	int mss = 0;

	/* Each record of up to 16 KiB costs 5 bytes of header, 1 of type, 16 of seal. */
	if (l->ssl)
		n += (n + 16383) / 16384 * 22;
	/* And each segment 32 bytes of TCP with its time stamps, 20 of IP (IPv6: 40), 14 of Ethernet. */
	if (getsockopt(l->fd, IPPROTO_TCP, TCP_MAXSEG, &mss, &len) == 0 && mss > 0)
		n += (n + (size_t)mss - 1) / (size_t)mss * 66;
	return n;
}

static bool link_may_send(struct wire_link *l, size_t n)
{
	double begun = id_now_mono();
	bool r = !l->env.rate || wire_rate_take(l->env.rate, link_cost(l, n), l->env.stop);

	l->rated += id_now_mono() - begun;
	return r;
}

static int link_wait_to_write(struct wire_link *l, struct err *e)
{
	double begun = id_now_mono();
	int r = link_wait(l, l->want, begun + l->env.stall, e);

	l->waited += id_now_mono() - begun;
	return r;
}

/* Seconds per byte that are the kernels' own work, on a loopback say, and no line's: 4 connections have 2.7 Gbit/s. */
#define LINK_OWN 12e-9

/*
 * *ret_flown: seconds in which data was on its way and the peer had room for it. On a busy machine being woken late is
 * a wait, too, but none of the line's. *ret_pace: seconds per byte lately, beyond LINK_OWN; 0 while the line waits for
 * us. Or false: a kernel before 4.9 doesn't know.
 */
static bool link_line(const struct wire_link *l, double *ret_flown, double *ret_pace)
{
	struct tcp_info info = {0};
	socklen_t len = sizeof(info);

	if (getsockopt(l->fd, IPPROTO_TCP, TCP_INFO, &info, &len) < 0 ||
	    len < offsetof(struct tcp_info, tcpi_sndbuf_limited))
		return false;
	*ret_flown = (double)(info.tcpi_busy_time - MIN(info.tcpi_rwnd_limited, info.tcpi_busy_time)) / 1e6;
	*ret_pace = 0;
	if (!info.tcpi_delivery_rate_app_limited && info.tcpi_delivery_rate > 0)
		*ret_pace = MAX(1 / (double)info.tcpi_delivery_rate - LINK_OWN, 0.0);
	return true;
}

void wire_set_stall(struct wire_link *l, double seconds)
{
	l->env.stall = seconds;
}

void wire_waited(struct wire_link *l, uint64_t *ret_bytes, double *ret_seconds)
{
	double flown, pace, line = l->waited;

	/* What a deep buffer takes is not waited for here, but behind it, for the answer to what comes next: hence the
	 * pace. */
	if (link_line(l, &flown, &pace)) {
		line = MAX(MIN(line, flown - l->flown), (double)l->written * pace);
		l->flown = flown;
	}
	*ret_bytes = l->written;
	*ret_seconds = l->rated + line;
	l->written = 0;
	l->waited = l->rated = 0;
}

int link_flush(struct wire_link *l, struct err *e)
{
	for (;;) {
		int r = l->transport->flush(l, e);

		if (r != -EAGAIN)
			return r;
		r = link_wait_to_write(l, e);
		if (r < 0)
			return r;
	}
}

static int link_write_slice(struct wire_link *l, const uint8_t *p, size_t n, struct err *e)
{
	while (n) {
		ssize_t r = l->transport->write(l, p, n, e);

		if (r == -EAGAIN)
			r = link_wait_to_write(l, e);
		if (r < 0)
			return (int)r;
		p += r;
		n -= (size_t)r;
	}
	return 0;
}

int link_write_all(struct wire_link *l, const void *p, size_t n, struct err *e)
{
	bool limited = l->env.rate && wire_rate_is_limited(l->env.rate);
	const uint8_t *b = p;

	l->written += n;
	while (n) {
		size_t k = limited ? MIN(n, WIRE_SLICE) : n;
		int r;

		if (limited && !link_may_send(l, k))
			return err_set(e, -ECANCELED, "cancelled");
		r = link_write_slice(l, b, k, e);
		if (r == 0 && limited)
			r = link_flush(l, e);
		if (r < 0)
			return r;
		b += k;
		n -= k;
	}
	return 0;
}

int link_read_all(struct wire_link *l, void *p, size_t n, double first_wait, struct err *e)
{
	double deadline = first_wait > 0 ? id_now_mono() + first_wait : 0;
	uint8_t *b = p;
	size_t got = 0;

	while (got < n) {
		ssize_t r = l->transport->read(l, b + got, n - got, e);

		if (r == 0 && got == 0)
			return err_set(e, -EPIPE, "the peer closed the connection");
		if (r == 0)
			return err_set(e, -ECONNRESET, "the connection was cut within a frame");
		if (r == -EAGAIN) {
			r = link_wait(l, l->want, deadline, e);
			if (r < 0) {
				l->broken |= got > 0; /* nobody knows where the next frame begins */
				return (int)r;
			}
			continue;
		}
		if (r < 0)
			return (int)r;
		got += (size_t)r;
		deadline = id_now_mono() + l->env.stall;
	}
	return 0;
}

ssize_t link_raw_recv(struct wire_link *l, void *p, size_t n)
{
	ssize_t r;

	do
		r = recv(l->fd, p, n, 0);
	while (r < 0 && errno == EINTR);
	if (r > 0 && l->env.received)
		*l->env.received += (uint64_t)r;
	return r < 0 ? -errno : r;
}

ssize_t link_raw_send(struct wire_link *l, const void *p, size_t n)
{
	ssize_t r;

	do
		r = send(l->fd, p, n, MSG_NOSIGNAL);
	while (r < 0 && errno == EINTR);
	if (r > 0 && l->env.sent)
		*l->env.sent += (uint64_t)r;
	return r < 0 ? -errno : r;
}

/* ---- plain transport ---- */
static ssize_t plain_result(struct wire_link *l, ssize_t r, short want, struct err *e)
{
	if (r == -EAGAIN) {
		l->want = want;
		return r;
	}
	if (r < 0) {
		errno = (int)-r;
		return err_sys(e, "connection broken");
	}
	return r;
}

static ssize_t plain_read(struct wire_link *l, void *p, size_t n, struct err *e)
{
	return plain_result(l, link_raw_recv(l, p, n), POLLIN, e);
}

static ssize_t plain_write(struct wire_link *l, const void *p, size_t n, struct err *e)
{
	return plain_result(l, link_raw_send(l, p, n), POLLOUT, e);
}

static int plain_flush(struct wire_link *l, struct err *e)
{
	return 0;
}

static bool plain_pending(struct wire_link *l)
{
	return false;
}

static void plain_release(struct wire_link *l)
{
}

const struct wire_transport wire_transport_plain = {plain_read, plain_write, plain_flush, plain_pending, plain_release};

int wire_plain(int fd, bool server, const struct wire_env *env, struct wire_link **ret, struct err *e)
{
	struct wire_link *l;
	int r = link_new(fd, server, env, &l, e);

	if (r < 0) {
		close(fd);
		return r;
	}
	l->transport = &wire_transport_plain;
	*ret = l;
	return 0;
}

bool wire_readable(struct wire_link *l)
{
	struct pollfd p = {.fd = l->fd, .events = POLLIN};

	return l->transport->pending(l) || poll(&p, 1, 0) > 0;
}

/* ---- connecting ---- */
static void link_tune(int fd)
{
	int one = 1, idle = 20, interval = 10, count = 4;
	unsigned user = 60000;

	/* Advice to the kernel: a connection works without it, too. */
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &one, sizeof(one));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
	setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
	setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user, sizeof(user));
}

/*
 * A route that says blackhole or prohibit and a packet filter that refuses have codes of their own, which elsewhere
 * mean a wrong argument or a wrong key. Here they are the network, and may pass.
 */
static int link_connect_failed(int code, struct err *e)
{
	bool filtered = code == EINVAL || code == EACCES || code == EPERM;

	errno = code;
	err_sys(e, filtered ? "cannot connect, a route or packet filter of this host forbids it" : "cannot connect");
	if (filtered && e)
		e->code = -ENETUNREACH;
	return filtered ? -ENETUNREACH : -code;
}

static int link_connect(struct wire_link *l, const struct addrinfo *ai, double deadline, struct err *e)
{
	socklen_t len = sizeof(int);
	int r, code = 0;

	if (connect(l->fd, ai->ai_addr, ai->ai_addrlen) == 0)
		return 0;
	if (errno != EINPROGRESS)
		return link_connect_failed(errno, e);
	r = link_wait(l, POLLOUT, deadline, e);
	if (r < 0)
		return r;
	if (getsockopt(l->fd, SOL_SOCKET, SO_ERROR, &code, &len) < 0)
		return err_sys(e, "cannot connect");
	return code ? link_connect_failed(code, e) : 0;
}

int wire_dial(const char *host, uint16_t port, const struct wire_auth *a, const struct wire_env *env, double timeout,
	      struct wire_link **ret, struct err *e)
{
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM}, *ai = NULL;
	_cleanup_(wire_closep) struct wire_link *l = NULL;
	double deadline = id_now_mono() + timeout;
	char service[8];
	int fd, r;

	snprintf(service, sizeof(service), "%u", port);
	if (getaddrinfo(host, service, &hints, &ai) != 0)
		return err_set(e, -EINVAL, "'%s' is not a numeric address", host);
	fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	r = fd < 0 ? err_sys(e, "cannot open a socket") : link_new(fd, false, env, &l, e);
	if (fd >= 0 && r < 0)
		close(fd);
	if (r == 0) {
		link_tune(fd);
		r = link_connect(l, ai, deadline, e);
	}
	freeaddrinfo(ai);
	if (r == 0)
		r = tls_start(l, a, deadline, e);
	if (r < 0) {
		err_prefix(e, "receiver '%s' port %u", host, port);
		return r;
	}
	*ret = take_ptr(&l);
	return 0;
}

int wire_accept(int fd, const struct wire_auth *a, const struct wire_env *env, double timeout, struct wire_link **ret,
		struct err *e)
{
	_cleanup_(wire_closep) struct wire_link *l = NULL;
	int r = link_new(fd, true, env, &l, e);

	if (r < 0) {
		close(fd);
		return r;
	}
	link_tune(fd);
	r = tls_start(l, a, id_now_mono() + timeout, e);
	if (r < 0)
		return r;
	*ret = take_ptr(&l);
	return 0;
}
