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

#define SEC(name)     __attribute__((section(name), used))
#define always_inline inline __attribute__((always_inline))

static void *(*const map_lookup)(void *map, const void *key) = (void *)BPF_FUNC_map_lookup_elem;
static __u32 (*const random_u32)(void) = (void *)BPF_FUNC_get_prandom_u32;

/* tools/bpf2c.py replaces the address of each by the map of that name. */
SEC("maps") char slots;
SEC("maps") char marks;
SEC("maps") char big;
SEC("maps") char counts;

struct event {
	char before[0x400]; /* EVENT_BASE */
	__u64 sector;
	__u32 dev;
	__u32 nr_sector;
	__u32 bytes;
	__u8 rwbs[4];
};

enum op { OP_NONE, OP_WRITE, OP_DISCARD, OP_OTHER };

/*
 * "FWFS": an optional F for a flush first, then the operation. What has no letter of its own is N: write zeroes and
 * zone operations on older kernels, and passthrough. What isn't known is taken for a write.
 */
static always_inline enum op event_op(volatile struct event *e)
{
	__u8 c = e->rwbs[0], next = e->rwbs[1];

	if (c == 'F') {
		c = next;
		next = e->rwbs[2];
	}
	if (c == 'R' || c == 'F' || c == 0)
		return OP_NONE;
	if (c == 'N')
		return OP_OTHER;
	return c == 'D' && next != 'E' ? OP_DISCARD : OP_WRITE; /* DE, secure erase, is accounted as a write */
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

static always_inline void mark(const struct tracker_slot *s, struct tracker_counts *c, __u64 sector, __u32 nr)
{
	__u64 first = sector >> TRACKER_BLOCK_SHIFT, last = (sector + nr - 1) >> TRACKER_BLOCK_SHIFT;
	__u32 r, end;

	if (last >= s->blocks) {
		__sync_fetch_and_add(&c->outside, 1);
		last = s->blocks - 1;
		if (first > last)
			return;
	}
	r = s->region + (__u32)(first >> TRACKER_REGION_SHIFT);
	end = s->region + (__u32)(last >> TRACKER_REGION_SHIFT);
	if (r == end) {
		mark_region(r, first & (TRACKER_REGION - 1), last & (TRACKER_REGION - 1));
		return;
	}
	mark_region(r, first & (TRACKER_REGION - 1), TRACKER_REGION - 1);
	mark_region(end, 0, last & (TRACKER_REGION - 1));
	r++;
	for (__u32 i = 0; i < TRACKER_SPAN; i++) {
		if (r + i >= end)
			break;
		mark_big(r + i);
	}
}

static always_inline int dropped(__u32 one_in, struct tracker_counts *c)
{
	if (!one_in || random_u32() % one_in)
		return 0;
	__sync_fetch_and_add(&c->dropped, 1);
	return 1;
}

SEC("tp/submit") int submit(volatile struct event *e)
{
	__u32 dev = e->dev, nr = e->nr_sector;
	enum op op = event_op(e);
	const struct tracker_slot *s;
	struct tracker_counts *c;

	if (op == OP_NONE || !nr)
		return 0;
	s = map_lookup(&slots, &dev);
	c = s ? map_lookup(&counts, &s->index) : 0;
	if (!c || dropped(s->drop_submit, c))
		return 0;
	mark(s, c, e->sector, nr);
	__sync_fetch_and_add(op == OP_DISCARD ? &c->submit_discard : &c->submit_write, nr);
	__sync_fetch_and_add(&c->events, 1);
	return 0;
}

SEC("tp/complete") int complete(volatile struct event *e)
{
	__u32 dev = e->dev, nr = e->nr_sector;
	enum op op = event_op(e);
	const struct tracker_slot *s;
	struct tracker_counts *c;

	if (op == OP_NONE || !nr)
		return 0;
	s = map_lookup(&slots, &dev);
	c = s ? map_lookup(&counts, &s->index) : 0;
	if (!c || dropped(s->drop_complete, c))
		return 0;
	mark(s, c, e->sector, nr);
	if (op == OP_DISCARD)
		__sync_fetch_and_add(&c->complete_discard, nr);
	else if (op == OP_WRITE)
		__sync_fetch_and_add(&c->complete_write, nr);
	else
		__sync_fetch_and_add(&c->complete_other, nr);
	return 0;
}

/* A passthrough request has no sectors; whether it wrote can't be seen. */
SEC("tp/issue") int issue(volatile struct event *e)
{
	__u32 dev = e->dev, nr = e->nr_sector, bytes = e->bytes;
	const struct tracker_slot *s;
	struct tracker_counts *c;

	if (nr || e->rwbs[0] != 'N')
		return 0;
	s = map_lookup(&slots, &dev);
	c = s ? map_lookup(&counts, &s->index) : 0;
	if (!c)
		return 0;
	__sync_fetch_and_add(bytes ? &c->pass_data : &c->pass_bare, 1);
	return 0;
}
