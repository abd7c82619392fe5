/* What the programs in the kernel (tracker.bpf.c) and the tracker share: map values and units. Uses nothing. */
#pragma once

#include <linux/types.h>

#define TRACKER_BLOCK_SHIFT  7u   /* sectors of 512 bytes in a block of 64 KiB */
#define TRACKER_REGION_SHIFT 9u   /* blocks in a region, 32 MiB: a value of the map "marks" */
#define TRACKER_REGION       512u /* marks in a region, a byte each: old kernels give programs no atomic "or" */
#define TRACKER_BIG_SHIFT    12u  /* regions whose marks are one value of the map "big" */
#define TRACKER_BIG          4096u
#define TRACKER_SPAN         130u /* regions that 2^32 - 1 sectors of 4 GiB at most can touch, and a spare one */
#define TRACKER_DISKS        64u

/* Map "slots": device number as the kernel has it (major << 20 | minor) -> where its marks are. */
struct tracker_slot {
	__u32 index;  /* of its counts */
	__u32 region; /* first of its regions */
	__u64 blocks;
	__u32 virtio; /* its only passthrough asks for the disk's name, 20 bytes */
	__u32 unused;
	__u32 drop_submit;   /* for tests: treat one event in so many as if it had been lost */
	__u32 drop_complete; /* 0: none */
};

/* Map "counts", one per CPU and disk. Sectors, as /sys/block/X/stat counts them. */
struct tracker_counts {
	__u64 submit_write; /* whatever is accounted as a write: write zeroes, secure erase, zone operations as well */
	__u64 submit_discard;
	__u64 complete_write;
	__u64 complete_discard;
	__u64 complete_other; /* nameless: a write zeroes on older kernels, or a passthrough */
	__u64 passthrough;    /* commands past the block layer, but for those known to be harmless */
	__u64 outside;        /* writes behind the end the disk had at the start */
	__u64 dropped;        /* on purpose */
	__u64 events;
};
