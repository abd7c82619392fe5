/* What a block event means, for the programs in the kernel (tracker.bpf.c) and for who reads it from a ring (page.c).
 */
#pragma once

#include <linux/types.h>

#define TRACKER_INLINE static inline __attribute__((always_inline))

enum tracker_op { TRACKER_NONE, TRACKER_WRITE, TRACKER_DISCARD, TRACKER_OTHER };

/*
 * Of the first letters of "rwbs", as in "FWFS": an optional F for a flush first, then the operation. What has no letter
 * of its own is N: write zeroes and zone operations on older kernels, and passthrough. What isn't known is taken for a
 * write.
 */
TRACKER_INLINE enum tracker_op tracker_op(__u8 c, __u8 next, __u8 third)
{
	if (c == 'F') {
		c = next;
		next = third;
	}
	if (c == 'R' || c == 'F' || c == 0)
		return TRACKER_NONE;
	if (c == 'N')
		return TRACKER_OTHER;
	return c == 'D' && next != 'E' ? TRACKER_DISCARD
				       : TRACKER_WRITE; /* DE, secure erase, is accounted as a write */
}

#define TRACKER_ATA 0x85 /* ATA PASS-THROUGH (16) */

/*
 * SCSI commands that only ask. None of them is what the kernel uses to read and write itself: such a command,
 * dispatched in between, mustn't excuse another.
 */
TRACKER_INLINE int tracker_asks(__u32 opcode)
{
	switch (opcode) {
	case 0x00: /* TEST UNIT READY */
	case 0x03: /* REQUEST SENSE */
	case 0x12: /* INQUIRY */
	case 0x1a: /* MODE SENSE */
	case 0x5a:
	case 0x1c: /* RECEIVE DIAGNOSTIC RESULTS */
	case 0x25: /* READ CAPACITY */
	case 0x9e: /* SERVICE ACTION IN */
	case 0x37: /* READ DEFECT DATA */
	case 0xb7:
	case 0x4d: /* LOG SENSE */
	case 0x5e: /* PERSISTENT RESERVE IN */
	case 0xa0: /* REPORT LUNS */
	case 0xa3: /* MAINTENANCE IN */
		return 1;
	default:
		return 0;
	}
}

/* TRACKER_ATA: data in by PIO; no data, and CHECK POWER MODE or SMART. */
TRACKER_INLINE int tracker_ata_asks(const __u8 cdb[16])
{
	__u8 protocol = cdb[1] >> 1 & 15, command = cdb[14];

	return cdb[0] == TRACKER_ATA && (protocol == 4 || (protocol == 3 && (command == 0xe5 || command == 0xb0)));
}
