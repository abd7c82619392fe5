/*
 * Which bytes of a filesystem are in use, from its metadata on the disk: one file per format, one table. A filesystem that
 * is mounted must be frozen (its metadata checkpointed) for the answer to be exact; on a live one it may lag behind.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct disk;
struct err;

/* Called with byte ranges in use; they may overlap and come in any order. Non-zero stops and is returned. */
typedef int (*fs_extent_fn)(void *arg, uint64_t offset, uint64_t length);

struct fs_info {
	const char *type;    /* "ext4", "xfs", "swap"; "unknown" */
	char uuid[40];	     /* "" when it has none */
	char label[64];
	uint64_t block_size; /* bytes; 0 when unknown */
	uint64_t size;	     /* bytes the filesystem covers */
	bool clean;	     /* no journal replay pending */
};

/* What is on the disk? Always answers (type "unknown") unless reading fails. */
int fs_probe(struct disk *d, struct fs_info *ret, struct err *e);

/*
 * Reports the used ranges. 0: done; 1: nothing reported, the content is unknown or its metadata inconsistent (reason in
 * e->msg) and the caller must take everything as used; negative: reading failed or fn stopped.
 */
int fs_used(struct disk *d, fs_extent_fn fn, void *arg, struct err *e);
