/*
 * Which bytes of a filesystem are in use, from its metadata on the disk: one file per format, one table. A filesystem
 * that is mounted must be frozen (its metadata checkpointed) for the answer to be exact; on a live one it may lag
 * behind.
 */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct disk;
struct err;

/* Called with byte ranges in use; they may overlap and come in any order. 0, or a negative errno that stops and is
 * returned. */
typedef int (*fs_extent_fn)(void *arg, uint64_t offset, uint64_t length);

struct fs_info {
	const char
	    *type;     /* "ext2", "ext3", "ext4", "xfs", "swap"; what else was recognised ("btrfs", ...); "unknown" */
	char uuid[40]; /* "" when it has none */
	char label[64];
	uint64_t block_size; /* bytes; 0 when unknown */
	uint64_t size;       /* bytes the filesystem covers; 0 when unknown */
	bool clean;          /* no journal replay pending: unmounted or frozen */
	bool readable;       /* a format whose used ranges fs_used() knows */
};

/* What is on the disk? Always answers (type "unknown") unless reading fails. */
int fs_probe(struct disk *d, struct fs_info *ret, struct err *e);

/*
 * The filesystem is mounted and not frozen: don't refuse because of a pending journal, and expect parts that disagree.
 * Only where an exact answer will be asked for later, or there was nothing to replay once and all that was written
 * since is known. Without this flag the answer may be relied on.
 */
#define FS_LIVE (1u << 0)

/* How well the answer is founded. Parts are block groups (ext4) and allocation groups (XFS). */
struct fs_usage {
	uint64_t parts;
	uint64_t parts_whole; /* their metadata disagreed, so they were reported as used altogether */
	char why[200];        /* the first such part and its reason, "" when there is none */
};

/*
 * Reports the used ranges, with what the disk has behind the filesystem's end. 0: done; 1: the content is unknown or
 * its metadata inconsistent (reason in e->msg), nothing or only a part was reported and the caller must take everything
 * as used; negative: reading failed or fn stopped. `ret` may be NULL; it is written when 0 is returned.
 */
int fs_used(struct disk *d, unsigned flags, fs_extent_fn fn, void *arg, struct fs_usage *ret, struct err *e);
