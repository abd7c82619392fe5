/* Inside the receiver: who is connected, which session is current, what it has open. */
#pragma once

#include "stream/stream_int.h"

#define RECEIVER_HANDSHAKE   10.0 /* seconds from the connection until the peer has said who it is */
#define RECEIVER_REFUSED     15.0 /* seconds for a sender to come back that was refused and can mend it */
#define RECEIVER_UNKNOWN_MAX 8u   /* connections that haven't yet */
#define RECEIVER_SUPERSEDED  8u   /* sessions remembered as taken over */

struct receiver;

/*
 * One connection, one thread. Owned by its thread, except for the link of those below. Members marked (lock) belong to
 * receiver.lock.
 */
struct receiver_conn {
	struct receiver *rv;
	struct receiver_conn *next; /* (lock) */
	pthread_t thread;           /* the accepting thread's, as is has_thread */
	bool has_thread;
	int fd;                 /* until the link has it */
	struct wire_link *link; /* (lock) for kicking */
	bool known;             /* (lock) authenticated, counted as one of the run's */
	unsigned kicked;        /* (lock) a WIRE_E_*: what the peer is told */
	struct wire_hello hello;
	uint16_t version; /* of the protocol, as agreed */
	/* data connections */
	struct codec_unpacker *unpacker;
	uint8_t *unpacked;
	uint64_t since_check; /* bytes written since the free space was looked at */
};

struct receiver {
	const struct stream_receive_params *p;
	stream_event_fn event;
	void *event_arg;
	pthread_mutex_t event_lock;
	int dirfd, listenfd;
	struct wire_auth auth;
	struct wire_env env;
	atomic_bool stop;
	_Atomic uint64_t bytes_sent, bytes_received, bytes_written;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	struct receiver_conn *conns; /* (lock) */
	struct receiver_conn *ended; /* (lock) to be joined and freed */
	atomic_bool have_session;
	uint8_t session[WIRE_SESSION_SIZE];
	uint8_t superseded[RECEIVER_SUPERSEDED][WIRE_SESSION_SIZE]; /* (lock) a ring */
	unsigned nsuperseded;                                       /* (lock) ever */
	atomic_bool opened;   /* disks are open: data connections may come; set under the lock */
	atomic_bool finished; /* set under the lock */
	int result;
	struct err error;
	struct err refused;   /* (lock) what its sender was told, and until when it may come back; 0: at any time */
	double refused_until; /* (lock) */
	bool told_space;      /* (lock) the event of a full destination was given in this session */

	/* Changed by the control connection's thread while there are no data connections; read by theirs. */
	struct replica *disks[WIRE_DISKS_MAX];
	struct bitmap used[WIRE_DISKS_MAX];
	size_t ndisks;
	struct disk *layers[WIRE_DISKS_MAX]; /* of earlier replicas, from start to end; NULL: none */
};

/* ---- receiver.c ---- */
void receiver_event(struct receiver *rv, const char *json);
void receiver_event_error(struct receiver *rv, unsigned code, const char *message);
/* Ends stream_receive() with result (0: committed, which stays) and error. */
void receiver_finish(struct receiver *rv, int result, const struct err *e);
/* Closes connections of the run other than `me` for which `which` says so, and waits until they are gone. */
int receiver_kick(struct receiver *rv, struct receiver_conn *me, unsigned reason,
		  bool (*which)(const struct receiver_conn *c, const struct receiver_conn *me), struct err *e);
/* Bytes that may still be written: free space less what is to stay free. */
uint64_t receiver_free(struct receiver *rv);
int receiver_no_space(struct receiver *rv, uint64_t needed, struct err *e);
void receiver_close_disks(struct receiver *rv, bool clean);

/* ---- control.c, data.c: serve a connection until it ends; the error is what the peer is told ---- */
int control_serve(struct receiver_conn *c, struct err *e);
int data_serve(struct receiver_conn *c, struct err *e);

/* For fuzzing: serves connections over the plain transport in this thread, one after the other. Takes the descriptors.
 */
int receiver_serve_plain(const struct stream_receive_params *p, const int *fds, size_t n, stream_event_fn event,
			 void *arg);
