/* Inside the wire room: what a link is made of. */
#pragma once

#include <openssl/ssl.h>
#include <pthread.h>
#include <sys/types.h>

#include "wire/wire.h"

#define WIRE_OUT_BUFFER 131072u /* records gathered for one send(2) */
#define WIRE_SLICE      16384u  /* what is written at once when the rate is limited */
#define WIRE_STALL      60.0
#define WIRE_POLL       0.2 /* how often a waiting link looks whether it shall stop */

/* Neither function blocks. > 0: bytes; 0: the peer closed; -EAGAIN: l->want (POLLIN/POLLOUT) is to be waited for. */
struct wire_transport {
	ssize_t (*read)(struct wire_link *l, void *p, size_t n, struct err *e);
	ssize_t (*write)(struct wire_link *l, const void *p, size_t n, struct err *e);
	int (*flush)(struct wire_link *l, struct err *e); /* 0 or -EAGAIN or worse */
	bool (*pending)(struct wire_link *l);
	void (*release)(struct wire_link *l);
};
extern const struct wire_transport wire_transport_plain, wire_transport_tls;

struct wire_link {
	const struct wire_transport *transport;
	struct wire_env env;
	int fd;
	bool server;
	short want; /* poll events after -EAGAIN */
	/* for wire_waited() */
	uint64_t written;     /* bytes */
	double rated, waited; /* seconds for the rate, and for room in the socket */
	double flown;         /* what link_in_flight() said last */
	atomic_bool shut;
	int sys_errno; /* of the socket, kept for messages */
	uint64_t tx_seq, rx_seq;
	/* what the peer's frame is read into */
	uint8_t *rx;
	size_t rx_size;
	bool broken; /* a frame was refused: nothing more is read */
	/* TLS */
	SSL *ssl;
	uint8_t *out; /* sealed bytes on their way into the socket */
	size_t out_len, out_off;
	uint64_t rekey_after, since_key;
	bool half_written; /* the last write is to be repeated */
};

int link_new(int fd, bool server, const struct wire_env *env, struct wire_link **ret, struct err *e);
/* Until l->want is possible. deadline: monotonic seconds, or 0. */
int link_wait(struct wire_link *l, short events, double deadline, struct err *e);
int link_write_all(struct wire_link *l, const void *p, size_t n, struct err *e);
int link_flush(struct wire_link *l, struct err *e);
/* Reads exactly n; `first_wait`: seconds for the first byte (0: for ever). -EPIPE when closed before it. */
int link_read_all(struct wire_link *l, void *p, size_t n, double first_wait, struct err *e);
ssize_t link_raw_recv(struct wire_link *l, void *p, size_t n);
ssize_t link_raw_send(struct wire_link *l, const void *p, size_t n);
int tls_start(struct wire_link *l, const struct wire_auth *a, double deadline, struct err *e);
