/*
 * The data plane: disks of a source become replicas at a receiver, over TLS 1.3 (docs/protocol.md). The receiver's
 * manifest (a digest per block) makes first copy, later rounds, resume and comparison one mechanism. The sender keeps
 * no state that matters; where a tracker tells what was written, it reads less.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/bitmap.h"

struct disk;
struct err;

#define STREAM_BLOCK           65536u /* bytes; the unit of digests, the used map and transfer */
#define STREAM_PSK_SIZE        32u
#define STREAM_CONNECTIONS_MAX 16u

#define STREAM_COMPRESSION_MAX  10u
#define STREAM_COMPRESSION_AUTO 11u /* what the line makes worth while */

struct stream_link {
	char run[48]; /* run id; the TLS PSK identity */
	uint8_t psk[STREAM_PSK_SIZE];
	bool clear; /* authenticated, but not encrypted; both sides must want it */
};

/* ---- used map (used.c): layout and filesystems combined, a bit per block of each disk ---- */
struct stream_used {
	struct bitmap *maps; /* one per disk */
	size_t n;
	char **notes; /* what was taken whole and why, a sentence each */
	size_t nnotes;
};
/*
 * For disks that don't change: filesystems unmounted or frozen. A block is only left out when each of its bytes is
 * known to be free; a filesystem whose journal has something to replay is used whole. What can't be read or parsed is
 * used, with a note: it fails only for want of memory.
 */
int stream_used_read(struct disk *const *disks, size_t n, struct stream_used *ret, struct err *e);
/* For disks in use, as an estimate that a later stream_used_read() corrects: pending journals are overlooked. */
int stream_used_estimate(struct disk *const *disks, size_t n, struct stream_used *ret, struct err *e);
/*
 * For disks in use whose writes are tracked. `settled` is what stream_settled_look() found since the tracking began:
 * such a filesystem's metadata were all in place then, and what it came to use since is known as written. Any other is
 * taken as stream_used_read() takes it: nobody froze it, so its journal may hold what no mark tells of.
 */
struct stream_settled {
	struct stream_settled_volume {
		size_t disk;
		uint64_t offset, size; /* where it begins on that disk, bytes in all */
	} * volumes;
	size_t n;
};
/* Which filesystems have nothing to replay at this moment: unmounted in good order, or frozen while this runs. */
int stream_settled_look(struct disk *const *disks, size_t n, struct stream_settled *ret, struct err *e);
void stream_settled_release(struct stream_settled *s);
int stream_used_read_tracked(struct disk *const *disks, size_t n, const struct stream_settled *settled,
			     struct stream_used *ret, struct err *e);
void stream_used_release(struct stream_used *u);

/* ---- sender ---- */
enum stream_phase {
	STREAM_CONNECTING,
	STREAM_FULL,
	STREAM_COMPARE,
	STREAM_FREEZING,
	STREAM_FROZEN,
	STREAM_FINISHING,
	STREAM_DONE
};

enum stream_mode { STREAM_COMPARING, STREAM_TRACKED };
enum stream_bottleneck { STREAM_NOTHING, STREAM_LINK, STREAM_RATE, STREAM_DISK, STREAM_CPU };

const char *stream_bottleneck_name(enum stream_bottleneck b);

/* Why rounds get smaller, or don't; of the last round. Negative: unknown. */
struct stream_gauges {
	double churn; /* bytes per second that the source marks as written */
	double link;  /* bytes per second on the wire */
	double disk;  /* bytes per second the workers could read */
	double cpu;   /* 0..1 of the processor time the workers could have used */
	enum stream_bottleneck bottleneck;
	double converge_seconds; /* until the rest fits the freeze; infinite: never, as things are */
};

struct stream_progress {
	enum stream_phase phase;
	enum stream_mode mode;
	unsigned round;              /* 1.. */
	uint64_t bytes_total;        /* used bytes this round covers */
	uint64_t bytes_done;         /* of those, handled in this round */
	uint64_t bytes_read;         /* from the source, all rounds */
	uint64_t bytes_sent;         /* on the wire, all rounds */
	uint64_t bytes_changed;      /* uncompressed bytes that differed, all rounds */
	double speed;                /* bytes_done per second, lately */
	double seconds_left;         /* of this round; < 0: unknown */
	double expected_freeze;      /* seconds; < 0: unknown */
	double freeze_seconds;       /* measured; < 0: not yet */
	uint64_t live_bytes;         /* handled by all passes so far that weren't frozen, and */
	double live_seconds;         /* how long these took: what the whole path from disk to disk carries */
	struct stream_gauges gauges; /* of a tracked run */
};

struct stream_send_params {
	struct stream_link link;
	const char *host; /* numeric address, or a name that `resolve` of the caller turned into one */
	uint16_t port;
	unsigned connections;     /* 1..STREAM_CONNECTIONS_MAX */
	unsigned compression;     /* 0: none .. 10, or STREAM_COMPRESSION_AUTO */
	uint64_t rate_mbit;       /* on the wire; 0: no limit */
	bool checksum;            /* SHA-256 instead of XXH3-128 */
	bool zero_unreadable;     /* else an unreadable source block fails the job */
	uint64_t frozen_memory;   /* bytes of differing blocks held while frozen; 0: default */
	double reconnect_seconds; /* how long a lost receiver is tried again, from the first failure on; 0: 60 */
	double stall_seconds;     /* without an answer until a connection counts as lost; 0: 20 */
	double max_freeze;        /* seconds the freeze of a tracked run should last at most; 0: 1 */
	const bool *leave_out;    /* a flag per disk: it is sent as if it were empty; NULL: none is */
	double patience;          /* seconds of rounds that get no smaller until it may last longer; 0: 1800 */
	/*
	 * With a tracker: the file of what the next run may rely on (stream/baseline.c); NULL: none. There must be one
	 * for all that take a tracker's marks, for settled marks are gone for everybody.
	 */
	const char *baseline;
};

/*
 * Which blocks were written lately, as a tracker knows it (src/track). Collecting and auditing is done in the thread of
 * stream_send(), collecting and a frozen audit while frozen, too.
 */
struct stream_tracker {
	void *arg;
	/* Takes marks: ORs them into `into`, a bit per block of the disk. What they stand for is read afterwards. */
	int (*collect)(void *arg, size_t disk, struct bitmap *into, struct err *e);
	/* How many blocks the next collect would give, about. */
	uint64_t (*pending)(void *arg, size_t disk);
	/* -EBUSY: can't be told now (not frozen); any other failure: marks are missing. */
	int (*audit)(void *arg, bool frozen, struct err *e);
	/* Names one tracking without a gap, at most 39 characters; borrowed until the next call. */
	const char *(*epoch)(void *arg);
	/* Begins anew after a failure. */
	int (*restart)(void *arg, struct err *e);
	/* What was collected is committed. */
	void (*settle)(void *arg);
};

/*
 * prepare, freeze, thaw and checkpoint are called in the thread that called stream_send(); the others in a thread of
 * its own, one at a time.
 */
struct stream_send_ops {
	void *arg;
	/*
	 * Before a freeze, while all is at work still: whatever takes its time and makes the freeze shorter. again: it
	 * was called before for the same freeze, only what has gathered since matters. NULL: there is nothing.
	 */
	int (*prepare)(void *arg, bool again, struct err *e);
	/* Freezes for at most `limit` seconds; NULL: the source doesn't change (files, unmounted disks). */
	int (*freeze)(void *arg, double limit, struct err *e);
	int (*thaw)(void *arg, double *ret_seconds, bool *ret_intact, struct err *e);
	/*
	 * Freezes for a moment, so that journals are on the disk, and calls `look` meanwhile. *ret_seconds: how long it
	 * was frozen, *ret_intact: until `look` had returned. Needed with a tracker only.
	 */
	int (*checkpoint)(void *arg, int (*look)(void *look_arg, struct err *e), void *look_arg, double *ret_seconds,
			  bool *ret_intact, struct err *e);
	/*
	 * NULL: all used blocks are compared while frozen. Else it has been at work since before stream_send() was
	 * called, and only what it marked is read then.
	 */
	const struct stream_tracker *tracker;
	void (*progress)(
	    void *arg,
	    const struct stream_progress *p); /* about every 0.5 s and at changes of phase; not while frozen */
	bool (*cancelled)(void *arg);         /* asked every 0.1 s, also while frozen: it must touch no file */
	uint64_t (*rate_mbit)(void *arg); /* the limit as it is now, asked every 0.5 s; NULL: that of the parameters */
	unsigned (*compression)(void *arg); /* likewise */
};

struct stream_result {
	struct stream_progress totals;
	char **notes; /* unknown contents, filesystems not frozen ... */
	size_t nnotes;
	struct stream_bad {
		size_t disk;
		uint64_t offset, length;
	} * zeroed; /* unreadable ranges that were zeroed */
	size_t nzeroed;
};

/*
 * 0 when the receiver has committed. -ECANCELED; -ENOSPC: the destination is full; -EIO: the source can't be read;
 * -EACCES: the receiver refuses run or key; -EALREADY: another sender took the run over; -ETIME: the source
 * is too busy to be frozen within the limits, trying again at once would freeze it again; stream_is_temporary() of the
 * rest. A later call goes on where this one ended.
 */
int stream_send(const struct stream_send_params *p, struct disk *const *disks, size_t n,
		const struct stream_send_ops *ops, struct stream_result *ret, struct err *e);
void stream_result_release(struct stream_result *r);

/* ---- receiver ---- */
struct stream_receive_params {
	struct stream_link link;
	const char *dir;    /* holds the replica: diskN.raw, diskN.manifest, replica.json */
	const char *listen; /* numeric address */
	uint16_t port;      /* 0: any */
	const char *user;   /* becomes that user after the directory and port are open; NULL: stays */
	uint64_t min_free;  /* bytes to leave free on the filesystem of dir */
	bool once;          /* ends (-ECONNABORTED) when the sender leaves without a commit, else waits for it */
	const int *layers;  /* sockets of NBD servers (taken), by number of the disk: each serves the dir's diskN.qcow2,
			     * a  layer on an earlier replica, as "diskN"; -1: none */
	size_t nlayers;
};
/* Called with each event as a JSON object (borrowed): listening, connected, progress, committed, error. */
typedef void (*stream_event_fn)(void *arg, const char *json);
/* Serves one run until it is committed (0), its peer asks to stop, or an error that can't be answered by reconnecting.
 */
int stream_receive(const struct stream_receive_params *p, stream_event_fn event, void *arg, struct err *e);
/* Reads the replica again and checks every entry of its manifests. */
int stream_verify(const char *dir, uint64_t *ret_blocks, struct err *e);

/* ---- both ---- */
/* Is this one of the errors after which the same call may well succeed later? */
bool stream_is_temporary(int code);
/* A key of 64 hex digits from a file, or from standard input (-). */
int stream_key_read(const char *path, uint8_t psk[STREAM_PSK_SIZE], struct err *e);
/* HOST:PORT or [HOST]:PORT. */
int stream_address_parse(const char *text, char *host, size_t size, uint16_t *ret_port, struct err *e);
