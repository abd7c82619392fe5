/* Memory for what is read while the source is frozen: taken before, so that nobody's writers wait for it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/util.h"
#include "stream/sender_int.h"

#define ARENA_DEFAULT (256 * MIB) /* held at most */
#define ARENA_LEAST   (32 * MIB)

static uint64_t arena_memory_available(void)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/meminfo", "re");
	unsigned long long kib = 0;
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
			break;
	return kib * 1024;
}

/* Every page is there before the freeze: what holds the source's writers must not wait for memory. */
int arena_map(struct sender *s, uint64_t needed, struct err *e)
{
	uint64_t size = s->p->frozen_memory, blocks;
	size_t all;
	void *p;

	if (!size)
		size = MIN(ARENA_DEFAULT, arena_memory_available() / 4);
	size = MIN(size, MAX(needed, ARENA_LEAST));
	blocks = MAX(size / STREAM_BLOCK, UINT64_C(1));
	size = blocks * STREAM_BLOCK;
	s->held_max = blocks + 1024;
	all = size + s->held_max * sizeof(*s->held);
	p = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (p == MAP_FAILED)
		return err_nomem(e);
	/* Shared with the guard, which is forked from us, each page would have to be copied when it is written to. */
	madvise(p, all, MADV_DONTFORK);
	mlock(p, all); /* where it is allowed */
	s->arena = p;
	s->arena_size = size;
	s->held = (struct held *)(s->arena + size);
	s->arena_used = s->nheld = 0;
	return 0;
}

void arena_unmap(struct sender *s)
{
	if (s->arena)
		munmap(s->arena, s->arena_size + s->held_max * sizeof(*s->held));
	s->arena = NULL;
	s->arena_size = 0;
	s->held = NULL;
	s->held_max = 0;
	s->arena_used = s->nheld = 0;
}

static struct held *arena_alloc(struct sender *s, size_t bytes)
{
	size_t at = s->arena_used, i, room = (size_t)util_div_up(bytes, STREAM_BLOCK) * STREAM_BLOCK;

	do {
		if (room > s->arena_size - at)
			return NULL;
	} while (!atomic_compare_exchange_weak(&s->arena_used, &at, at + room));
	i = s->nheld;
	do {
		if (i >= s->held_max)
			return NULL;
	} while (!atomic_compare_exchange_weak(&s->nheld, &i, i + 1));
	s->held[i].bytes = (uint32_t)bytes;
	s->held[i].data = s->arena + at;
	return &s->held[i];
}

bool arena_hold(struct sender *s, const struct wire_blocks *head, const uint8_t *digests, const uint8_t *data,
		size_t bytes)
{
	struct held *h = arena_alloc(s, bytes);

	if (!h)
		return false;
	h->head = *head;
	memcpy(h->digests, digests, (size_t)__builtin_popcount(head->data) * s->digest->size);
	memcpy(h->data, data, bytes);
	return true;
}

struct held *arena_take(struct sender *s, uint32_t disk, uint64_t first, unsigned mask, size_t bytes)
{
	struct held *h = arena_alloc(s, bytes);

	if (h)
		h->head = (struct wire_blocks){.disk = (uint16_t)disk, .first = first, .data = (uint16_t)mask};
	return h;
}

static int arena_compare(const void *a, const void *b)
{
	const struct wire_blocks *x = &((const struct held *)a)->head, *y = &((const struct held *)b)->head;

	if (x->disk != y->disk)
		return x->disk < y->disk ? -1 : 1;
	return x->first < y->first ? -1 : x->first > y->first;
}

void arena_sort(struct sender *s)
{
	if (s->nheld)
		qsort(s->held, s->nheld, sizeof(*s->held), arena_compare);
}

const struct held *arena_find(const struct sender *s, uint32_t disk, uint64_t first)
{
	size_t lo = 0, hi = s->nheld;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;
		const struct wire_blocks *h = &s->held[mid].head;

		if (h->disk == disk && h->first == first)
			return &s->held[mid];
		if (h->disk < disk || (h->disk == disk && h->first < first))
			lo = mid + 1;
		else
			hi = mid;
	}
	return NULL;
}
