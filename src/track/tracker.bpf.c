// SPDX-License-Identifier: (GPL-2.0-only OR BSD-2-Clause)
/*
 * The programs on the kernel's block tracepoints: they set marks and count, nothing else. A mark is a byte, stored
 * without looking: a store is atomic on every kernel, and the tracker takes it by exchange. Whole regions of a huge
 * discard are marked by one byte each in "big".
 *
 * Where an event's fields are differs between kernels. The loads below name places from EVENT_BASE on; bpf.c puts in
 * those of the running kernel's `format` file before it loads the programs.
 */
#include <linux/bpf.h>

#include "tracker_bpf.h"
#include "tracker_event.h"

#define SEC(name)     __attribute__((section(name), used))
#define always_inline inline __attribute__((always_inline))

static void *(*const map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static long (*const probe_read)(void *to, __u32 n, const void *from) = (void *)BPF_FUNC_probe_read_kernel;
static __u32 (*const random_u32)(void) = (void *)BPF_FUNC_get_prandom_u32;

/* tools/bpf2c.py replaces the address of each by the map of that name. */
SEC("maps") char slots;
SEC("maps") char marks;
SEC("maps") char big;
SEC("maps") char counts;
SEC("maps") char passing;

struct event {
	char before[0x400]; /* EVENT_BASE */
	__u64 sector;
	__u32 dev;
	__u32 nr_sector;
	__u32 bytes;
	__u8 rwbs[4];
	__u32 opcode; /* SCSI's */
	__u32 cdb;    /* where it lies, in the lower half */
};

static always_inline enum tracker_op event_op(volatile struct event *e)
{
	__u8 c = e->rwbs[0], next = e->rwbs[1], third = e->rwbs[2];

	return tracker_op(c, next, third);
}

static always_inline void mark_region(__u32 region, __u32 from, __u32 to)
{
	volatile __u8 *v = map_lookup(&marks, &region); /* volatile: no call of memset */

	if (!v)
		return;
	/* In this form, counting from a constant, older verifiers follow it. */
	for (__u32 i = 0; i < TRACKER_REGION; i++) {
		__u32 at = from + i;

		if (at > to)
			break;
		__asm__ volatile("" : "+r"(at)); /* the compiler knows it small enough, the verifier wants to see it */
		v[at & (TRACKER_REGION - 1)] = 1;
	}
}

static always_inline void mark_big(__u32 region)
{
	__u32 at = region >> TRACKER_BIG_SHIFT;
	__u8 *v = map_lookup(&big, &at);

	if (v)
		v[region & (TRACKER_BIG - 1)] = 1;
}

/* Says whether it lies behind the end the disk had at the start; what is before that is marked. */
static always_inline int mark(const struct tracker_slot *s, __u64 sector, __u32 nr)
{
	__u64 first = sector >> TRACKER_BLOCK_SHIFT, last = (sector + nr - 1) >> TRACKER_BLOCK_SHIFT;
	int outside = last >= s->blocks || first > last;
	__u32 r, end;

	if (outside)
		last = s->blocks - 1;
	if (first > last)
		return outside;
	r = s->region + (__u32)(first >> TRACKER_REGION_SHIFT);
	end = s->region + (__u32)(last >> TRACKER_REGION_SHIFT);
	if (r == end) {
		mark_region(r, first & (TRACKER_REGION - 1), last & (TRACKER_REGION - 1));
		return outside;
	}
	mark_region(r, first & (TRACKER_REGION - 1), TRACKER_REGION - 1);
	mark_region(end, 0, last & (TRACKER_REGION - 1));
	r++;
	for (__u32 i = 0; i < TRACKER_SPAN; i++) {
		if (r + i >= end)
			break;
		mark_big(r + i);
	}
	return outside;
}

static always_inline int dropped(__u32 one_in, struct tracker_counts *c)
{
	if (!one_in || random_u32() % one_in)
		return 0;
	__sync_fetch_and_add(&c->dropped, 1);
	return 1;
}

/* The slot of the disk the event is of, and where it counts; 0: not one of ours. */
static always_inline const struct tracker_slot *slot_of(volatile struct event *e, struct tracker_counts **c)
{
	__u32 dev = e->dev;
	const struct tracker_slot *s = map_lookup(&slots, &dev);

	*c = s ? map_lookup(&counts, &s->index) : 0;
	return *c ? s : 0;
}

SEC("tp/submit") int submit(volatile struct event *e)
{
	__u32 nr = e->nr_sector;
	enum tracker_op op = event_op(e);
	const struct tracker_slot *s;
	struct tracker_counts *c;

	if (op == TRACKER_NONE || !nr)
		return 0;
	s = slot_of(e, &c);
	if (!s || dropped(s->drop_submit, c))
		return 0;
	if (mark(s, e->sector, nr))
		__sync_fetch_and_add(&c->outside, 1);
	__sync_fetch_and_add(op == TRACKER_DISCARD ? &c->submit_discard : &c->submit_write, nr);
	__sync_fetch_and_add(&c->events, 1);
	return 0;
}

SEC("tp/complete") int complete(volatile struct event *e)
{
	__u32 nr = e->nr_sector;
	enum tracker_op op = event_op(e);
	const struct tracker_slot *s;
	struct tracker_counts *c;

	if (op == TRACKER_NONE || !nr)
		return 0;
	s = slot_of(e, &c);
	if (!s || dropped(s->drop_complete, c))
		return 0;
	mark(s, e->sector, nr); /* anywhere, if it was a passthrough: too many marks do no harm */
	if (op == TRACKER_DISCARD)
		__sync_fetch_and_add(&c->complete_discard, nr);
	else if (op == TRACKER_WRITE)
		__sync_fetch_and_add(&c->complete_write, nr);
	else
		__sync_fetch_and_add(&c->complete_other, nr);
	return 0;
}

/*
 * A passthrough request has no sectors; whether it wrote can't be seen here. So each counts, and those that come by
 * scsi() next on this CPU and turn out to be harmless are taken back.
 */
SEC("tp/issue") int issue(volatile struct event *e)
{
	__u32 nr = e->nr_sector, bytes = e->bytes, zero = 0, *p;
	const struct tracker_slot *s;
	struct tracker_counts *c;

	if (nr || e->rwbs[0] != 'N')
		return 0;
	s = slot_of(e, &c);
	p = map_lookup(&passing, &zero);
	if (!s || !p || (s->virtio && bytes < 512))
		return 0;
	__sync_fetch_and_add(&c->passthrough, 1);
	*p = s->index + 1;
	return 0;
}

static always_inline int harmless(volatile struct event *e)
{
	__u32 opcode = e->opcode;
	__u8 cdb[16] = {0};

	if (opcode != TRACKER_ATA)
		return tracker_asks(opcode);
	probe_read(cdb, sizeof(cdb), (const char *)(__u64)e + (e->cdb & 0xffff));
	return tracker_ata_asks(cdb);
}

SEC("tp/scsi") int scsi(volatile struct event *e)
{
	__u32 zero = 0, index, *p = map_lookup(&passing, &zero);
	struct tracker_counts *c;

	if (!p || !*p || !harmless(e))
		return 0;
	index = *p - 1;
	*p = 0;
	c = map_lookup(&counts, &index);
	if (c)
		__sync_fetch_and_add(&c->passthrough, -1);
	return 0;
}
