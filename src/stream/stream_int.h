/* Inside the stream room: the receiver's replicas and manifests, statements, and small helpers of both sides. */
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "base/err.h"
#include "codec/codec.h"
#include "disk/disk.h"
#include "stream/stream.h"
#include "wire/wire.h"

_Static_assert(STREAM_BLOCK == WIRE_BLOCK, "a block is a block");
_Static_assert(STREAM_PSK_SIZE == WIRE_PSK_SIZE, "a key is a key");
_Static_assert(STREAM_CONNECTIONS_MAX == WIRE_CONNECTIONS_MAX, "connections");

/* Bytes of block i of a disk of `size` bytes: the last may be short. */
static inline size_t stream_block_bytes(uint64_t size, uint64_t i)
{
	uint64_t left = size - i * STREAM_BLOCK;

	return left < STREAM_BLOCK ? (size_t)left : STREAM_BLOCK;
}
static inline uint64_t stream_blocks(uint64_t size)
{
	return size / STREAM_BLOCK + (size % STREAM_BLOCK != 0);
}
static inline uint64_t stream_windows(uint64_t size)
{
	return (stream_blocks(size) + WIRE_WINDOW - 1) / WIRE_WINDOW;
}

/* ---- manifest.c: a digest per block in a file ---- */
#define MANIFEST_HEADER  4096u
#define MANIFEST_BOOT_ID 40u

enum manifest_state { MANIFEST_CLEAN, MANIFEST_OPEN, MANIFEST_REBUILDING };

struct manifest {
	int fd;
	const struct codec_digest *digest;
	uint64_t size; /* of the disk */
	uint32_t sector;
	uint64_t nblocks;
	char boot_id[MANIFEST_BOOT_ID];
	/* That of the last commit, zeros: none. What was written since differs from it, and nothing else. */
	uint8_t statement[WIRE_STATEMENT_SIZE];
};

void manifest_boot_id(char out[MANIFEST_BOOT_ID]);
/*
 * Opens or makes the manifest. *ret_trusted: its entries hold; otherwise it is empty, in state REBUILDING, and after
 * the entries are made from the replica (or there is none) manifest_set_state(OPEN) says that they hold.
 */
int manifest_open(int dirfd, const char *name, const struct codec_digest *digest, uint64_t size, uint32_t sector,
		  const char *boot_id, struct manifest *ret, bool *ret_trusted, struct err *e);
/* One that exists, for reading only: its geometry comes from its header. */
int manifest_open_existing(int dirfd, const char *name, struct manifest *ret, struct err *e);
int manifest_set_state(struct manifest *m, enum manifest_state state, struct err *e);
/* What it says may not be what the disk has: the next manifest_open() doesn't trust it, whatever it takes. */
void manifest_distrust(struct manifest *m);
int manifest_get(struct manifest *m, uint64_t first, size_t n, uint8_t *out, struct err *e);
int manifest_put(struct manifest *m, uint64_t first, size_t n, const uint8_t *digests, struct err *e);
int manifest_sync(struct manifest *m, struct err *e);
void manifest_release(struct manifest *m); /* zeroed is fine */
/* Is an entry known? */
bool manifest_known(const struct manifest *m, const uint8_t *entry);
/* For tests and fuzzing: is this header one of ours, and what does it say? */
int manifest_parse(const uint8_t header[MANIFEST_HEADER], struct manifest *ret, enum manifest_state *ret_state,
		   struct err *e);

/* ---- replica.c: a disk's copy with its manifest ---- */
#define REPLICA_LOCKS 64u

struct replica {
	int fd;             /* the file; a layer's is only synced through it */
	struct disk *layer; /* NULL: the file is raw and written to directly */
	uint64_t size;
	struct manifest manifest;
	uint8_t zero_full[CODEC_DIGEST_MAX], zero_last[CODEC_DIGEST_MAX]; /* digests of zero blocks */
	pthread_mutex_t locks[REPLICA_LOCKS]; /* of windows: block and entry change together */
	_Atomic uint64_t unflushed;           /* bytes since the kernel was last told to begin writing */
	/* A write or sync failed. The kernel says so once and then takes the lost pages for written: nothing is synced
	 * or written any more, and the next replica_open() reads what is really there. */
	atomic_bool broken;
};

/*
 * `layer` (borrowed, may be NULL) is what a server makes of diskN.qcow2: it is written to when it fits the size, and no
 * diskN.raw was begun instead; a disk of another size begins one.
 */
int replica_open(int dirfd, unsigned index, const struct codec_digest *digest, uint64_t size, uint32_t sector,
		 struct disk *layer, struct replica **ret, struct err *e);
/* With everything synced and the manifest marked clean when `clean`, unless it is broken. */
int replica_close(struct replica *r, bool clean, struct err *e); /* NULL is fine */
/* Digests of a window; *ret_known: is any known? */
int replica_digests(struct replica *r, uint64_t window, uint8_t *out, size_t *ret_n, bool *ret_known, struct err *e);
/* Writes the blocks; `data` holds those of m->data one after the other, already checked against their digests. */
int replica_write(struct replica *r, const struct wire_blocks *m, const uint8_t *data, struct err *e);
/* Digests the blocks of `data` and compares: -EBADMSG. *ret_bytes: how many `data` must be, also when NULL. */
int replica_check(struct replica *r, const struct wire_blocks *m, const uint8_t *data, struct err *e);
/* -EBADMSG when m is outside the disk. */
int replica_span(struct replica *r, const struct wire_blocks *m, size_t *ret_bytes, struct err *e);
int replica_sync(struct replica *r, struct err *e);
/* Bytes that used blocks we don't hold yet will take. */
int replica_needs(struct replica *r, const struct bitmap *used, uint64_t *ret, struct err *e);
/* Forgets blocks that aren't used any more and gives their space back. */
int replica_trim(struct replica *r, const struct bitmap *used, struct err *e);
/* used NULL: whatever is known is used. -EILSEQ when a used block isn't known. */
int replica_statement(struct manifest *m, const struct bitmap *used, uint8_t out[32], uint64_t *ret_used,
		      struct err *e);
/* It was committed with that statement: keeps it in the manifest. */
int replica_stated(struct replica *r, const uint8_t statement[WIRE_STATEMENT_SIZE], struct err *e);
int replica_file(char *buf, size_t size, unsigned index, const char *suffix);

/* ---- commit.c ---- */
int commit_write(int dirfd, const char *run, struct replica *const *disks, size_t n, const struct wire_commit *m,
		 char **ret_event, struct err *e);
