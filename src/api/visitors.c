/*
 * Who is connected. Agents keep their connection between heartbeats, so there are thousands that prove who they are and
 * sit idle; strangers, who proved nothing yet, are few and short. So the strangers are bounded: each address may have
 * some, and when there are too many from everywhere the oldest goes for the newest. They can't take anybody's place who
 * is known.
 */
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

#include "api/api_int.h"
#include "base/util.h"

struct api_visitor {
	struct api_visitor *older, *newer; /* among strangers */
	uint8_t address[16];
	int fd; /* -1: told to go */
	bool known;
};

struct api_visitors {
	pthread_mutex_t lock;
	struct api_visitor *oldest, *newest;
	unsigned strangers, all, limit;
};

struct api_visitors *api_visitors_new(unsigned limit)
{
	struct api_visitors *v = calloc(1, sizeof(*v));

	if (!v)
		return NULL;
	pthread_mutex_init(&v->lock, NULL);
	v->limit = limit;
	return v;
}

void api_visitors_free(struct api_visitors *v)
{
	if (!v)
		return;
	pthread_mutex_destroy(&v->lock);
	free(v);
}

/* A host has a whole /64 of IPv6. */
static void address_of(const struct sockaddr *sa, uint8_t out[16])
{
	const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;

	memset(out, 0, 16);
	if (sa && sa->sa_family == AF_INET)
		memcpy(out, &((const struct sockaddr_in *)sa)->sin_addr, 4);
	else if (sa && sa->sa_family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr))
		memcpy(out, in6->sin6_addr.s6_addr + 12, 4);
	else if (sa && sa->sa_family == AF_INET6)
		memcpy(out, in6->sin6_addr.s6_addr, 8);
}

/* Under the lock. */
static void leave_strangers(struct api_visitors *v, struct api_visitor *one)
{
	*(one->older ? &one->older->newer : &v->oldest) = one->newer;
	*(one->newer ? &one->newer->older : &v->newest) = one->older;
	one->older = one->newer = NULL;
	v->strangers--;
}

enum MHD_Result api_visitor_admit(void *cls, const struct sockaddr *sa, socklen_t len)
{
	struct api *a = cls;
	struct api_visitors *v = a->visitors;
	uint8_t address[16];
	unsigned n = 0;

	address_of(sa, address);
	pthread_mutex_lock(&v->lock);
	for (const struct api_visitor *one = v->oldest; one; one = one->newer)
		n += memcmp(one->address, address, sizeof(address)) == 0;
	pthread_mutex_unlock(&v->lock);
	return n < API_STRANGERS_PER_ADDRESS ? MHD_YES : MHD_NO;
}

/* Its own thread finds the end of it. A descriptor is open as long as its visitor is in the list. Under the lock. */
static void send_oldest_away(struct api_visitors *v)
{
	struct api_visitor *first = v->oldest;

	leave_strangers(v, first);
	shutdown(first->fd, SHUT_RDWR);
	first->fd = -1;
}

static void visitor_enter(struct api_visitors *v, struct MHD_Connection *conn, void **context)
{
	struct api_visitor *one = calloc(1, sizeof(*one));

	if (!one)
		return; /* it is nobody's then, and MHD's own limits are left */
	address_of(MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CLIENT_ADDRESS)->client_addr, one->address);
	one->fd = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CONNECTION_FD)->connect_fd;
	*context = one;
	pthread_mutex_lock(&v->lock);
	one->older = v->newest;
	*(v->newest ? &v->newest->newer : &v->oldest) = one;
	v->newest = one;
	v->strangers++;
	v->all++;
	/* MHD accepts nobody at its limit, so there is always some room below it. */
	if (v->strangers > v->limit / 2 || v->all > v->limit - v->limit / 8)
		send_oldest_away(v);
	pthread_mutex_unlock(&v->lock);
}

static void visitor_leave(struct api_visitors *v, struct api_visitor *one)
{
	if (!one)
		return;
	pthread_mutex_lock(&v->lock);
	if (!one->known && one->fd >= 0)
		leave_strangers(v, one);
	v->all--;
	pthread_mutex_unlock(&v->lock);
	free(one);
}

void api_visitor_notify(void *cls, struct MHD_Connection *conn, void **context,
			enum MHD_ConnectionNotificationCode code)
{
	struct api *a = cls;

	if (code == MHD_CONNECTION_NOTIFY_STARTED)
		visitor_enter(a->visitors, conn, context);
	else
		visitor_leave(a->visitors, *context);
}

void api_visitor_known(struct api_request *q)
{
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(q->conn, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	struct api_visitor *one = info ? info->socket_context : NULL;
	struct api_visitors *v = q->api->visitors;

	if (!one || one->known) /* only this connection's thread changes it */
		return;
	pthread_mutex_lock(&v->lock);
	if (one->fd >= 0)
		leave_strangers(v, one);
	one->known = true;
	pthread_mutex_unlock(&v->lock);
}
