/* What xfs.c and xfs_log.c share. */
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct disk;
struct err;

/* From the superblock, checked. A "filesystem block number" is an allocation group and a block in it. */
struct xfs {
	struct disk *d;
	uint32_t block_size, sector_size;
	uint64_t blocks;
	uint32_t ag_blocks, ag_count;
	unsigned ag_shift; /* bits of the block number within the group */
	bool v5;
	uint8_t uuid[16];           /* of metadata blocks */
	uint64_t log_ag, log_block; /* the internal log: group and first block in it */
	uint32_t log_blocks;
};

static inline uint64_t xfs_byte(const struct xfs *x, uint64_t ag, uint64_t block)
{
	return (ag * x->ag_blocks + block) * x->block_size;
}

/*
 * Reads the log. 1: nothing but superblock updates would be replayed, so what is on the disk is complete (unmounted or
 * frozen); 0: more, or it can't be told, with the reason in *why; negative: reading failed.
 */
int xfs_log_is_clean(const struct xfs *x, const char **why, struct err *e);
