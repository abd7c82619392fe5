/*
 * The data plane's protocol (docs/protocol.md): links between sender and receiver, frames on links, messages in frames,
 * and the limiter of the rate on the wire. The transport below a link is a table of functions: TLS 1.3 with a
 * pre-shared key in production, plain sockets in tests.
 */
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct err;

/* ---- limits and numbers of the protocol ---- */
#define WIRE_VERSION         2u
#define WIRE_VERSION_MIN     1u          /* what we speak with older ones: OPENED without statements */
#define WIRE_MAGIC           0x314c5052u /* "RPL1" */
#define WIRE_HEADER          32u         /* bytes of a frame's header */
#define WIRE_BLOCK           65536u
#define WIRE_WINDOW          256u /* blocks of a window */
#define WIRE_CHUNK           16u  /* blocks of a chunk: the most one BLOCKS frame carries */
#define WIRE_DISKS_MAX       64u
#define WIRE_BLOCKS_MAX      (UINT64_C(1) << 30) /* of all disks of a run: 64 TiB */
#define WIRE_USED_BYTES      65536u              /* of the used map in one frame */
#define WIRE_MESSAGE_MAX     1024u
#define WIRE_PSK_SIZE        32u
#define WIRE_RUN_MAX         48u /* with its NUL */
#define WIRE_SESSION_SIZE    16u
#define WIRE_STATEMENT_SIZE  32u
#define WIRE_CONNECTIONS_MAX 16u

enum wire_type {
	WIRE_HELLO = 1,
	WIRE_WELCOME,
	WIRE_OPEN,
	WIRE_OPENED,
	WIRE_USED,
	WIRE_USED_OK,
	WIRE_ASK,
	WIRE_DIGESTS,
	WIRE_BLOCKS,
	WIRE_FLUSH,
	WIRE_FLUSHED,
	WIRE_SYNC,
	WIRE_SYNCED,
	WIRE_COMMIT,
	WIRE_COMMITTED,
	WIRE_PING,
	WIRE_PONG,
	WIRE_WAIT,
	WIRE_ERROR,
	WIRE_BYE,
	WIRE_TYPES
};

enum wire_role { WIRE_CONTROL = 1, WIRE_DATA = 2 };
enum wire_encoding { WIRE_RAW = 0, WIRE_ZSTD = 1 };

/* Codes of ERROR frames. */
enum wire_code {
	WIRE_E_PROTOCOL = 1, /* the peer said what it must not */
	WIRE_E_VERSION,
	WIRE_E_NO_SESSION, /* data connection without its control connection: come back after OPEN */
	WIRE_E_BUSY,
	WIRE_E_DISKS,    /* disks that can't be taken (too many, too large) */
	WIRE_E_NO_SPACE, /* the destination is full */
	WIRE_E_IO,       /* the destination can't be read or written */
	WIRE_E_MISMATCH, /* statements differ */
	WIRE_E_TAKEN_OVER,
	WIRE_E_INTERNAL,
	WIRE_CODES
};
/* "no_space"; NULL: unknown. */
const char *wire_code_name(unsigned code);
int wire_code_errno(unsigned code); /* negative */
bool wire_code_temporary(unsigned code);
unsigned wire_code_of(int errno_code);

/* ---- rate limiter: one for all links of a sender ---- */
struct wire_rate;
int wire_rate_new(uint64_t mbit, struct wire_rate **ret, struct err *e); /* 0: no limit */
void wire_rate_set(struct wire_rate *r, uint64_t mbit);                  /* at any time, from any thread */
/* Waits until n more bytes may go; false when *stop became true meanwhile. Waiters are served in order. */
bool wire_rate_take(struct wire_rate *r, uint64_t n, const atomic_bool *stop);
bool wire_rate_is_limited(struct wire_rate *r);
void wire_rate_free(struct wire_rate *r);

/* ---- links ---- */
struct wire_link;

struct wire_auth {
	const char *run;    /* the PSK's identity */
	const uint8_t *psk; /* WIRE_PSK_SIZE bytes */
	bool clear;         /* authenticated and tamper-proof, but not encrypted: both sides must want that */
};

/* What a link reports to and obeys; all members may be NULL or 0. Borrowed by the link. */
struct wire_env {
	const atomic_bool *stop; /* true: everything on the link ends with -ECANCELED within 0.2 s */
	struct wire_rate *rate;  /* for what we send */
	_Atomic uint64_t *sent;  /* bytes on the wire, TLS and all */
	_Atomic uint64_t *received;
	double stall; /* seconds without a byte, where one is due, until the link counts as broken; 0: 60 */
};

struct wire_frame {
	enum wire_type type;
	const uint8_t *payload; /* borrowed until the next wire_recv() */
	uint32_t length;
};

/*
 * Connects and authenticates. host is numeric. -EACCES: the receiver doesn't accept the run and key (or isn't one);
 * network errors otherwise (see wire_is_network()).
 */
int wire_dial(const char *host, uint16_t port, const struct wire_auth *a, const struct wire_env *env, double timeout,
	      struct wire_link **ret, struct err *e);
/* The server's side of a connection just accepted. Takes fd, also on failure. */
int wire_accept(int fd, const struct wire_auth *a, const struct wire_env *env, double timeout, struct wire_link **ret,
		struct err *e);
/* Without TLS, over any stream socket, for tests. Takes fd. `server`: frames of which direction are accepted. */
int wire_plain(int fd, bool server, const struct wire_env *env, struct wire_link **ret, struct err *e);
/* Ends what another thread does on the link, now (`reading_only`: it may still write). */
void wire_shutdown(struct wire_link *l, bool reading_only);
/*
 * After the last frame: closes our direction and reads on for at most `seconds`, so that what we said last isn't lost
 * to a reset because of what the peer was still sending.
 */
void wire_linger(struct wire_link *l, double seconds);
/* From now on that many seconds without a byte, in place of env's; for the thread that sends and receives. */
void wire_set_stall(struct wire_link *l, double seconds);
/* Since the last call: bytes given to the link, and the seconds that the line, the rate limit included, takes for them.
 * Waiting for a peer that doesn't read is not counted, but one that reads slowly makes the line look slower. */
void wire_waited(struct wire_link *l, uint64_t *ret_bytes, double *ret_seconds);
/* Is there something to read at once? */
bool wire_readable(struct wire_link *l);
void wire_close(struct wire_link *l); /* NULL is fine */
static inline void wire_closep(struct wire_link **l)
{
	wire_close(*l);
}
/* Is this errno one after which connecting again may help? */
bool wire_is_network(int code);

/* ---- frames ---- */
/* One frame from up to 4 pieces. */
int wire_send(struct wire_link *l, enum wire_type type, const struct iovec *iov, size_t n, struct err *e);
/*
 * The next frame. wait: seconds until it must begin; <= 0: for ever. -EPIPE: closed between frames. -ETIMEDOUT: nothing
 * in time. -EBADMSG: not a frame that may come now; the link is of no use any more.
 */
int wire_recv(struct wire_link *l, double wait, struct wire_frame *ret, struct err *e);

/* ---- messages: encoders into buf (of WIRE_SMALL_MAX bytes unless said otherwise) return the length ---- */
#define WIRE_SMALL_MAX 4096u

struct wire_hello {
	uint16_t min_version, max_version;
	enum wire_role role;
	uint8_t index; /* of a data connection, 0..15 */
	uint8_t session[WIRE_SESSION_SIZE];
};
struct wire_disk {
	uint64_t size;
	uint32_t sector;
};
struct wire_open {
	uint8_t digest; /* codec_digest_id */
	uint8_t ndisks;
	struct wire_disk disks[WIRE_DISKS_MAX];
};
struct wire_used {
	uint16_t disk;
	bool last; /* of the maps of all disks: an answer is due */
	uint64_t first;
	uint32_t nbits;
	const uint8_t *bits; /* lowest bit of byte 0 is `first` */
};
struct wire_ask {
	uint16_t disk;
	uint32_t window;
};
#define WIRE_BLOCKS_HEAD 16u
struct wire_blocks {
	uint16_t disk;
	uint64_t first;      /* block, a multiple of WIRE_CHUNK */
	uint16_t data, zero; /* bit i: block first + i has data / is all zero */
	uint8_t encoding;
	const uint8_t *digests; /* one for each bit of data */
	const uint8_t *packed;
	uint32_t npacked;
};
struct wire_commit {
	size_t n;
	struct {
		uint64_t used;
		uint8_t statement[32];
	} disks[WIRE_DISKS_MAX];
};
struct wire_error {
	unsigned code;
	bool temporary;
	char message[WIRE_MESSAGE_MAX + 1];
};

/* Client half: requests it writes, answers it reads (-EBADMSG when malformed). */
uint32_t wire_put_hello(const struct wire_hello *m, uint8_t *buf);
uint32_t wire_put_open(const struct wire_open *m, uint8_t *buf);
uint32_t wire_put_used_head(const struct wire_used *m, uint8_t *buf);
uint32_t wire_put_ask(const struct wire_ask *m, uint8_t *buf);
uint32_t wire_put_blocks_head(const struct wire_blocks *m, uint8_t *buf);
uint32_t wire_put_commit(const struct wire_commit *m, uint8_t *buf);
int wire_get_welcome(const struct wire_frame *f, uint16_t *ret_version, struct err *e);
/* statements[i]: that of the last commit of disk i's replica; zeros: there is none (none at all before version 2). */
int wire_get_opened(const struct wire_frame *f, unsigned version, size_t ndisks, uint64_t *ret_free,
		    uint8_t statements[][WIRE_STATEMENT_SIZE], struct err *e);
int wire_get_used_ok(const struct wire_frame *f, uint64_t *ret_needed, uint64_t *ret_free, struct err *e);
/* *ret_digests: NULL when the receiver knows none of the window's, else nblocks * digest_size bytes. */
int wire_get_digests(const struct wire_frame *f, const struct wire_ask *asked, size_t bytes,
		     const uint8_t **ret_digests, struct err *e);

/* Server half: requests it reads, answers it writes. */
int wire_get_hello(const struct wire_frame *f, struct wire_hello *ret, struct err *e);
int wire_get_open(const struct wire_frame *f, struct wire_open *ret, struct err *e);
int wire_get_used(const struct wire_frame *f, struct wire_used *ret, struct err *e);
int wire_get_ask(const struct wire_frame *f, struct wire_ask *ret, struct err *e);
int wire_get_blocks(const struct wire_frame *f, size_t digest_size, struct wire_blocks *ret, struct err *e);
int wire_get_commit(const struct wire_frame *f, size_t ndisks, struct wire_commit *ret, struct err *e);
uint32_t wire_put_welcome(uint16_t version, uint8_t *buf);
/* Statements: NULL before version 2. */
uint32_t wire_put_opened(uint64_t free_bytes, const uint8_t statements[][WIRE_STATEMENT_SIZE], size_t ndisks,
			 uint8_t *buf);
uint32_t wire_put_used_ok(uint64_t needed, uint64_t free_bytes, uint8_t *buf);
uint32_t wire_put_digests_head(const struct wire_ask *m, uint8_t *buf);

/* Both. */
uint32_t wire_put_error(unsigned code, const char *message, uint8_t *buf);
int wire_get_error(const struct wire_frame *f, struct wire_error *ret, struct err *e);
/* FLUSH, FLUSHED, PING, PONG carry a number. */
uint32_t wire_put_cookie(uint64_t cookie, uint8_t *buf);
uint64_t wire_get_cookie(const struct wire_frame *f);
/* Sends a message of one piece. */
int wire_say(struct wire_link *l, enum wire_type type, const uint8_t *buf, uint32_t n, struct err *e);
