/* Inside the sender: one struct for a run of stream_send(), one per worker. */
#pragma once

#include "disk/disk.h"
#include "stream/stream_int.h"

#define SENDER_RETRIES   3u     /* of a read that failed */
#define SENDER_BAD_MAX   65536u /* unreadable ranges listed */
#define SENDER_DIAL      10.0   /* seconds for a connection */
#define SENDER_FROZEN    5.0    /* seconds without an answer while frozen */
#define SENDER_CHUNK     (WIRE_CHUNK * (size_t)STREAM_BLOCK)
#define SENDER_UNFLUSHED 16u /* held chunks sent between two flushes */

struct sender;

struct window {
	uint32_t disk;
	uint32_t index;   /* of the window on the disk */
	uint64_t counted; /* bytes of it that are in the pass's `done` */
};

enum pass_kind {
	PASS_LIVE,    /* what differs is sent */
	PASS_FROZEN,  /* what differs is held, beyond the arena it is sent */
	PASS_HELD,    /* what is held is sent */
	PASS_GRAB,    /* candidates are read into the arena, frozen, and nothing else */
	PASS_DELIVER, /* what was grabbed is compared, and sent where it differs */
	PASS_PROBE,   /* nothing: each worker has a connection that answers */
	PASS_QUIT,
};

/* A chunk that differed while frozen. */
struct held {
	struct wire_blocks head; /* digests and packed are set when it is sent; grabbed: `data` says what is there */
	uint32_t bytes;
	uint8_t *data; /* in the arena */
	uint8_t digests[WIRE_CHUNK * CODEC_DIGEST_MAX];
};

struct worker {
	struct sender *s;
	pthread_t thread;
	bool started;
	uint8_t index;
	struct wire_link *link; /* set under s->lock, so that others may shut it down */
	double last_good;       /* monotonic time of the receiver's last answer */
	double stall;           /* seconds that an answer may take in this pass */
	struct codec_packer *packer;
	struct codec_sum *sum;
	uint8_t *buf;     /* a chunk, aligned for direct reading */
	uint8_t *digests; /* of the window in work, as the receiver has them */
	/* windows to be done again after the connection was lost */
	struct window redo[4];
	unsigned nredo;
	/* held chunks that were sent but not flushed, or are to be sent again */
	size_t unflushed[SENDER_UNFLUSHED], resend[SENDER_UNFLUSHED];
	unsigned nunflushed, nresend;
};

struct sender {
	const struct stream_send_params *p;
	const struct stream_send_ops *ops;
	struct disk *const *disks;
	size_t ndisks;
	const struct codec_digest *digest;
	uint8_t zero_full[CODEC_DIGEST_MAX];
	uint8_t session[WIRE_SESSION_SIZE];
	double reconnect, stall;
	struct wire_auth auth;
	struct wire_env env;
	struct wire_rate *rate;
	_Atomic uint64_t rate_mbit; /* as last set */
	_Atomic unsigned compression;
	atomic_bool stop; /* cancelled or failed: all links end */
	_Atomic uint64_t sent, received;

	pthread_mutex_t lock;
	pthread_cond_t changed;
	/* the first failure; (lock) */
	bool failed;
	struct err error;

	/* the control connection: the thread of stream_send() alone */
	struct wire_link *control;
	unsigned version; /* of the protocol, as agreed */
	/* what the receiver's replicas were last committed as; zeros: nothing */
	uint8_t committed[WIRE_DISKS_MAX][WIRE_STATEMENT_SIZE];
	atomic_bool established;     /* the receiver has let us in once: refusals from now on are the network's */
	atomic_bool control_suspect; /* a worker was told that there is no session */
	double last_good, last_ping;
	bool pinging;
	struct stream_used used; /* as of the pass */
	bool have_used;

	/* the pass; (lock) */
	enum pass_kind kind;
	unsigned generation; /* grows with each pass */
	unsigned busy;       /* workers in it */
	uint32_t next_disk, next_window;
	size_t next_held;
	atomic_bool abort; /* a frozen pass that can't be finished in time */
	_Atomic uint64_t done, read, changed_now, changed_all;
	uint64_t total;
	double pass_began;
	/* Each window of these belongs to the worker that has it: */
	uint8_t *sums[WIRE_DISKS_MAX]; /* statement digests of windows */
	/*
	 * A tracked run: only windows with candidates, or whose used bits aren't those stated, are visited, and only
	 * candidates are read in them, provided that the receiver still has what `sums` says of the stated ones.
	 */
	bool tracked;
	struct bitmap candidates[WIRE_DISKS_MAX]; /* of the used blocks */
	struct bitmap stated[WIRE_DISKS_MAX];     /* the used bits that `sums` was made of */
	atomic_bool stale;                        /* a window was found otherwise when it could not be read whole */
	_Atomic uint64_t read_ns;                 /* all workers spent reading */
	struct worker workers[WIRE_CONNECTIONS_MAX];

	/* what is held */
	uint8_t *arena;
	size_t arena_size;
	struct held *held;
	size_t held_max;
	_Atomic size_t arena_used, nheld;

	/* unreadable ranges and notes; (lock) */
	struct stream_bad *bad;
	size_t nbad;
	char **notes;
	size_t nnotes;

	/* telling the caller */
	pthread_t ticker;
	bool ticker_started;
	pthread_mutex_t tell_lock;       /* a callback is running, or none may */
	bool quiet;                      /* (tell_lock) frozen: no callbacks but cancelled() */
	bool tell_now;                   /* (lock) */
	bool quit;                       /* (lock) */
	struct stream_progress progress; /* (lock) phase, round, the seconds */
};

/* ---- sender.c ---- */
/* The first failure wins; everything ends. Returns code. */
int sender_fail(struct sender *s, int code, const struct err *e);
int sender_note(struct sender *s, const char *text, struct err *e);
void sender_phase(struct sender *s, enum stream_phase phase);
/* While quiet no callback runs but cancelled(). */
void sender_quiet(struct sender *s, bool quiet);
/* Disks that are to be left out have no bits set in `maps`, one of each disk. */
void sender_leave_out(const struct sender *s, struct bitmap *maps);
/* Sleeps; false when everything is to end. */
bool sender_sleep(struct sender *s, double seconds);
double sender_backoff(unsigned attempt);
/* -ETIMEDOUT, with what e says as the reason. */
int sender_lost(struct sender *s, struct err *e);

/* ---- dial.c: connections and the control conversation ---- */
int dial_hello(struct sender *s, enum wire_role role, uint8_t index, struct wire_link **ret, struct err *e);
/* The error an ERROR frame tells of. */
int dial_error(const struct wire_frame *f, struct err *e);
/* Connected, disks open, map told; connects again while there is time. */
int control_ready(struct sender *s, struct err *e);
/* Tells s->used. */
int control_used_map(struct sender *s, struct err *e);
int control_finish(struct sender *s, struct err *e);
/* What we state of a disk. */
int dial_statement(struct sender *s, size_t disk, uint8_t out[32], struct err *e);
/* Called often while workers work: pings, and repairs the connection. */
int control_tick(struct sender *s, struct err *e);

/* ---- source.c ---- */
/* Reads blocks [first, first + n) of a disk. Unreadable sectors fail or are zeroed and listed. */
int source_read(struct sender *s, size_t disk, uint64_t first, size_t n, uint8_t *buf, struct err *e);

/* ---- pass.c ---- */
void *worker_main(void *arg);
/* Runs one pass over s->used with all workers. deadline: monotonic, for a frozen one. */
int pass_run(struct sender *s, enum pass_kind kind, double deadline, struct err *e);

/* ---- arena.c: memory for what is read while frozen ---- */
/* As large as the parameters say or memory allows; needed: bytes that will do, 0: unknown. All of it is there at once.
 */
int arena_map(struct sender *s, uint64_t needed, struct err *e);
void arena_unmap(struct sender *s);
/* False: no room. A chunk that differs; data: its blocks one after the other. */
bool arena_hold(struct sender *s, const struct wire_blocks *head, const uint8_t *digests, const uint8_t *data,
		size_t bytes);
/* Room for a chunk's blocks of `mask`; NULL: there is none. */
struct held *arena_take(struct sender *s, uint32_t disk, uint64_t first, unsigned mask, size_t bytes);
/* After a pass that grabbed: makes arena_find() work. */
void arena_sort(struct sender *s);
/* The chunk that was grabbed at that block, or NULL. */
const struct held *arena_find(const struct sender *s, uint32_t disk, uint64_t first);

/* ---- baseline.c: what a tracked run leaves to the next ---- */
#define BASELINE_EPOCH 40u /* with its NUL */
#define BASELINE_NAME  256u

struct baseline {
	const struct codec_digest *digest;
	const char *epoch;
	size_t n;
	struct baseline_disk {
		const char *name;
		uint64_t size;
		uint8_t statement[32];
		struct bitmap *used; /* those the statement was made of */
		uint8_t *sums;       /* of its windows, 32 bytes each */
	} disks[WIRE_DISKS_MAX];
};
/* Whole or not at all. */
int baseline_write(const char *path, const struct baseline *b, struct err *e);
/*
 * Reads the one that was made of b's digest, epoch and disks, into its statements, maps and sums; these are garbage
 * after a failure. -ENOENT: there is none.
 */
int baseline_read(const char *path, struct baseline *b, struct err *e);
/* The same from a file that is open. */
int baseline_parse(int fd, struct baseline *b, struct err *e);

/* ---- gauge.c: how fast things go ---- */
struct gauge {
	double time, cpu; /* of the last look; processor seconds of the process */
	uint64_t sent, read, read_ns;
};
/* What went on since the last look. pending, collected: blocks marked now, and when the last collect was done. */
void gauge_look(struct gauge *g, struct sender *s, uint64_t pending, uint64_t collected, struct stream_gauges *ret);
/* Seconds until `pending` bytes shrink to `target` when `done` bytes per second are handled; infinite: never. */
double gauge_converge(double pending, double target, double done, double churn);

/* ---- rounds.c ---- */
#define ROUNDS_TRIES     3u   /* of the final pass */
#define ROUNDS_LIMIT_MIN 10.0 /* seconds the guard grants at least */

/* Instead of a last try of the final pass: -ETIME, with what the try said. */
int rounds_gave_up(const char *why, struct err *e);

struct rounds {
	struct sender *s;
	unsigned round;
	double speed;    /* bytes per second of the last live pass */
	double map_time; /* seconds the used map took last */
	uint64_t changed, changed_before;
	/* tracked */
	double flush;         /* seconds the last freeze of a moment took */
	double best, best_at; /* the shortest freeze expected so far, and when that was */
	uint64_t collected;   /* blocks that the next collect will give again */
	uint64_t used_mapped; /* blocks, when the used map was last read */
	uint64_t handled;     /* candidate bytes of the last pass */
	double handled_seconds;
	bool recalled; /* what the run before left is what the receiver holds */
	unsigned taints;
	bool tainted; /* the tracker was found wanting: the reason of a failure */
	struct gauge gauge;
};

int rounds_run(struct sender *s, struct err *e);
/* A live pass; adds up how fast they go. */
int rounds_pass(struct rounds *r, double *ret_seconds, struct err *e);
/* Opens the next round in what is told. */
void rounds_next(struct rounds *r, enum stream_phase phase);
/* Tells of the freeze and has it prepared. */
int rounds_announce(struct rounds *r, double expect, struct err *e);
/* Right before it: each connection answers, and all callbacks are held back. */
int rounds_hush(struct rounds *r, struct err *e);
/* Thaws. k: how it went so far, and the result unless the thaw has a worse one. */
int rounds_thaw(struct rounds *r, int k, struct err *e);

/* ---- tracked.c ---- */
/*
 * Live rounds of what the tracker marked, and the freeze. 0: all that is left is to finish; -ENOTSUP: tracking was
 * given up, the run has to compare.
 */
int tracked_run(struct rounds *r, struct err *e);
/* Everything is a candidate again. */
int tracked_reset(struct sender *s, struct err *e);
/* The same after the receiver refused what we stated: that goes for later runs, too, and it is told we are here. */
int tracked_disbelieve(struct sender *s, struct err *e);
/* After the commit: the next run may rely on it. */
int tracked_settle(struct sender *s, struct err *e);
