/*
 * Workers: each has a connection, a thread and buffers of its own. A worker takes a window, asks for its digests one
 * window ahead, reads and digests the used blocks and sends (or, frozen, holds) those that differ. An answer to a
 * question acknowledges everything that was sent before the question.
 */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/endian.h"
#include "base/id.h"
#include "base/util.h"
#include "stream/sender_int.h"

static bool pass_is_frozen(enum pass_kind kind)
{
	return kind == PASS_FROZEN || kind == PASS_GRAB;
}

/* ---- windows ---- */
static size_t window_blocks(struct sender *s, const struct window *w)
{
	uint64_t nblocks = stream_blocks(s->disks[w->disk]->size);

	return (size_t)MIN(nblocks - (uint64_t)w->index * WIRE_WINDOW, (uint64_t)WIRE_WINDOW);
}

/* entries: the window's digests; NULL: none of its blocks is in the map. */
static void window_digest(struct worker *w, const struct window *win, const struct bitmap *used, const uint8_t *entries,
			  uint8_t out[32])
{
	struct sender *s = w->s;
	uint64_t first = (uint64_t)win->index * WIRE_WINDOW;
	size_t n = window_blocks(s, win);
	uint8_t index[8];

	codec_sum_start(w->sum);
	for (size_t i = 0; entries && i < n; i++) {
		if (!bitmap_get(used, first + i))
			continue;
		put_le64(index, first + i);
		codec_sum_add(w->sum, index, sizeof(index));
		codec_sum_add(w->sum, entries + i * s->digest->size, s->digest->size);
	}
	codec_sum_finish(w->sum, out);
}

static uint8_t *window_place(struct sender *s, const struct window *win)
{
	return s->sums[win->disk] + (size_t)win->index * 32;
}

/* A window is 4 words of a bitmap, fewer at the end of the disk. */
static uint64_t window_words(const struct bitmap *b, const struct window *win, uint64_t *ret_first)
{
	uint64_t first = (uint64_t)win->index * (WIRE_WINDOW / 64), end = b->nbits / 64 + 1;

	*ret_first = first;
	return MIN(end - first, (uint64_t)WIRE_WINDOW / 64);
}

static void window_sum(struct worker *w, const struct window *win, const uint8_t *entries)
{
	struct sender *s = w->s;
	const struct bitmap *used = &s->used.maps[win->disk];
	uint64_t first, n;

	window_digest(w, win, used, entries, window_place(s, win));
	if (!s->tracked)
		return;
	n = window_words(used, win, &first);
	memcpy(s->stated[win->disk].words + first, used->words + first, n * sizeof(uint64_t));
}

/* In a tracked run: is there something to read, or to state anew? */
static bool window_calls(struct sender *s, const struct window *win)
{
	const struct bitmap *used = &s->used.maps[win->disk], *stated = &s->stated[win->disk];
	uint64_t first, n = window_words(used, win, &first), any = 0;

	for (uint64_t i = first; i < first + n; i++)
		any |= s->candidates[win->disk].words[i] | (used->words[i] ^ stated->words[i]);
	return any != 0;
}

/* Are all its used blocks candidates? */
static bool window_is_whole(struct sender *s, const struct window *win)
{
	const struct bitmap *used = &s->used.maps[win->disk];
	uint64_t first, n = window_words(used, win, &first);

	return memcmp(s->candidates[win->disk].words + first, used->words + first, n * sizeof(uint64_t)) == 0;
}

/* All its used blocks become candidates. */
static void window_distrust(struct sender *s, const struct window *win)
{
	const struct bitmap *used = &s->used.maps[win->disk];
	uint64_t first, n = window_words(used, win, &first);

	memcpy(s->candidates[win->disk].words + first, used->words + first, n * sizeof(uint64_t));
}

/* Does the receiver have what we last stated of it? */
static bool window_holds(struct worker *w, const struct window *win)
{
	uint8_t sum[32];

	window_digest(w, win, &w->s->stated[win->disk], w->digests, sum);
	return memcmp(sum, window_place(w->s, win), sizeof(sum)) == 0;
}

/* The next window with work; empty ones are stated on the way. False: there is none. */
static bool window_take(struct worker *w, struct window *ret)
{
	struct sender *s = w->s;
	bool found = false;

	if (w->nredo) {
		*ret = w->redo[0];
		memmove(w->redo, w->redo + 1, --w->nredo * sizeof(*w->redo));
		return true;
	}
	pthread_mutex_lock(&s->lock);
	while (!found && s->next_disk < s->ndisks) {
		struct window win = {.disk = s->next_disk, .index = s->next_window};
		const struct bitmap *used = &s->used.maps[win.disk];
		uint64_t first = (uint64_t)win.index * WIRE_WINDOW;

		if (first >= used->nbits) {
			s->next_disk++;
			s->next_window = 0;
			continue;
		}
		s->next_window++;
		if (s->tracked) {
			found = window_calls(s, &win);
			*ret = win;
		} else if (bitmap_next(used, first) < MIN(first + WIRE_WINDOW, used->nbits)) {
			*ret = win;
			found = true;
		} else {
			window_sum(w, &win, NULL);
		}
	}
	pthread_mutex_unlock(&s->lock);
	return found;
}

static void window_again(struct worker *w, struct window win)
{
	must(w->nredo < ARRAY_SIZE(w->redo));
	w->s->done -= win.counted;
	win.counted = 0;
	w->redo[w->nredo++] = win;
}

/* ---- the conversation ---- */
/* Within a frame as between two: a network that dies in the middle of an answer must not hold the freeze any longer. */
static void worker_set_stall(struct worker *w, double seconds)
{
	w->stall = seconds;
	if (w->link)
		wire_set_stall(w->link, seconds);
}

static int worker_recv(struct worker *w, enum wire_type want, struct wire_frame *ret, struct err *e)
{
	int r = wire_recv(w->link, w->stall, ret, e);

	if (r < 0)
		return r;
	if (ret->type == WIRE_ERROR)
		return dial_error(ret, e);
	if (ret->type != want)
		return err_set(e, -EBADMSG, "the receiver answered something else");
	w->last_good = id_now_mono();
	return 0;
}

static int worker_ask(struct worker *w, const struct window *win, struct err *e)
{
	struct wire_ask m = {.disk = (uint16_t)win->disk, .window = win->index};
	uint8_t buf[16];

	return wire_say(w->link, WIRE_ASK, buf, wire_put_ask(&m, buf), e);
}

/* Into w->digests; zeros where nothing is known. */
static int worker_digests(struct worker *w, const struct window *win, struct err *e)
{
	struct wire_ask m = {.disk = (uint16_t)win->disk, .window = win->index};
	size_t bytes = window_blocks(w->s, win) * w->s->digest->size;
	const uint8_t *digests = NULL;
	struct wire_frame f;
	int r = worker_recv(w, WIRE_DIGESTS, &f, e);

	if (r == 0)
		r = wire_get_digests(&f, &m, bytes, &digests, e);
	if (r < 0)
		return r;
	if (digests)
		memcpy(w->digests, digests, bytes);
	else
		memset(w->digests, 0, bytes);
	return 0;
}

static int worker_flush(struct worker *w, struct err *e)
{
	uint8_t buf[16];
	struct wire_frame f;
	int r = wire_say(w->link, WIRE_FLUSH, buf, wire_put_cookie(1, buf), e);

	return r < 0 ? r : worker_recv(w, WIRE_FLUSHED, &f, e);
}

/* The packer learns how fast the line is. */
static int worker_send_frame(struct worker *w, const struct iovec iov[3], struct err *e)
{
	int r = wire_send(w->link, WIRE_BLOCKS, iov, 3, e);
	uint64_t bytes;
	double seconds;

	wire_waited(w->link, &bytes, &seconds);
	codec_packer_line(w->packer, bytes, seconds);
	return r;
}

/* head's digests are given, its encoding is decided here. */
static int worker_send(struct worker *w, struct wire_blocks head, const uint8_t *digests, const uint8_t *data,
		       size_t bytes, struct err *e)
{
	size_t ndigests = (size_t)__builtin_popcount(head.data) * w->s->digest->size, packed;
	uint8_t buf[WIRE_BLOCKS_HEAD];
	const void *out = data;
	struct iovec iov[3];

	codec_packer_set(w->packer, w->s->compression);
	packed = codec_pack(w->packer, data, bytes, &out);
	head.encoding = packed ? WIRE_ZSTD : WIRE_RAW;
	iov[0] = (struct iovec){buf, wire_put_blocks_head(&head, buf)};
	iov[1] = (struct iovec){(void *)(uintptr_t)digests, ndigests};
	iov[2] = (struct iovec){(void *)(uintptr_t)(packed ? out : data), packed ? packed : bytes};
	return worker_send_frame(w, iov, e);
}

/* ---- a chunk ---- */
/* Reads the blocks of a chunk into their places in `buf`, or `packed` one after the other. */
static int chunk_read(struct worker *w, const struct window *win, uint64_t first, unsigned used, bool packed,
		      uint8_t *buf, struct err *e)
{
	double began = id_now_mono();
	size_t at = 0;

	for (unsigned i = 0, n; i < WIRE_CHUNK; i += n) {
		int r;

		for (n = 0; i + n < WIRE_CHUNK && (used & (1u << (i + n))); n++)
			;
		if (!n) {
			n = 1;
			continue;
		}
		r = source_read(w->s, win->disk, first + i, n, buf + (packed ? at : i) * (size_t)STREAM_BLOCK, e);
		if (r < 0)
			return r;
		at += n;
	}
	w->s->read_ns += (uint64_t)((id_now_mono() - began) * 1e9);
	return 0;
}

/* What was read while frozen, into the places of w->buf; the blocks there are. */
static unsigned chunk_recall(struct worker *w, const struct window *win, uint64_t first)
{
	const struct held *h = arena_find(w->s, win->disk, first);
	size_t at = 0;

	for (unsigned i = 0; h && i < WIRE_CHUNK; i++) {
		size_t n = stream_block_bytes(w->s->disks[win->disk]->size, first + i);

		if (!(h->head.data & (1u << i)))
			continue;
		memcpy(w->buf + i * (size_t)STREAM_BLOCK, h->data + at, n);
		at += n;
	}
	return h ? h->head.data : 0;
}

/*
 * Digests the used blocks and compares them with `theirs` (which becomes ours). What differs moves to the front of
 * w->buf, its digests to `digests`.
 */
static size_t chunk_compare(struct worker *w, const struct window *win, unsigned used, uint8_t *theirs,
			    struct wire_blocks *head, uint8_t *digests)
{
	const struct codec_digest *d = w->s->digest;
	uint64_t size = w->s->disks[win->disk]->size;
	size_t out = 0, ndigests = 0;

	for (unsigned i = 0; i < WIRE_CHUNK; i++) {
		uint8_t *block = w->buf + i * (size_t)STREAM_BLOCK, ours[CODEC_DIGEST_MAX];
		size_t n;
		bool zero;

		if (!(used & (1u << i)))
			continue;
		n = stream_block_bytes(size, head->first + i);
		zero = codec_is_zero(block, n);
		if (zero && n == STREAM_BLOCK)
			memcpy(ours, w->s->zero_full, d->size);
		else
			d->compute(block, n, ours);
		if (memcmp(ours, theirs + i * d->size, d->size) == 0)
			continue;
		memcpy(theirs + i * d->size, ours, d->size);
		w->s->changed_now += n;
		if (zero) {
			head->zero |= (uint16_t)(1u << i);
			continue;
		}
		head->data |= (uint16_t)(1u << i);
		memcpy(digests + ndigests, ours, d->size);
		ndigests += d->size;
		if (out != (size_t)(block - w->buf))
			memmove(w->buf + out, block, n);
		out += n;
	}
	return out;
}

static unsigned chunk_used(const struct bitmap *used, uint64_t first)
{
	unsigned mask = 0;

	for (unsigned i = 0; i < WIRE_CHUNK && first + i < used->nbits; i++)
		if (bitmap_get(used, first + i))
			mask |= 1u << i;
	return mask;
}

static uint64_t chunk_bytes(uint64_t size, uint64_t first, unsigned used)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < WIRE_CHUNK; i++)
		if (used & (1u << i))
			n += stream_block_bytes(size, first + i);
	return n;
}

/* whole: all used blocks, not only the candidates. */
static int chunk_do(struct worker *w, struct window *win, uint64_t first, bool whole, uint8_t *theirs, struct err *e)
{
	struct sender *s = w->s;
	struct wire_blocks head = {.disk = (uint16_t)win->disk, .first = first};
	uint8_t digests[WIRE_CHUNK * CODEC_DIGEST_MAX];
	const struct bitmap *map = whole ? &s->used.maps[win->disk] : &s->candidates[win->disk];
	unsigned used = s->kind == PASS_DELIVER ? chunk_recall(w, win, first) : chunk_used(map, first);
	uint64_t bytes = chunk_bytes(s->disks[win->disk]->size, first, used);
	size_t n;
	int r = 0;

	if (!used)
		return 0;
	if (s->kind != PASS_DELIVER)
		r = chunk_read(w, win, first, used, false, w->buf, e);
	if (r < 0)
		return r;
	n = chunk_compare(w, win, used, theirs, &head, digests);
	if ((head.data | head.zero) && !(s->kind == PASS_FROZEN && arena_hold(s, &head, digests, w->buf, n))) {
		worker_set_stall(w, s->stall); /* the receiver has something to write before it answers */
		r = worker_send(w, head, digests, w->buf, n, e);
	}
	if (r < 0)
		return r;
	win->counted += bytes;
	s->done += bytes;
	return 0;
}

static int window_do(struct worker *w, struct window *win, struct err *e)
{
	struct sender *s = w->s;
	uint64_t first = (uint64_t)win->index * WIRE_WINDOW;
	size_t n = window_blocks(s, win);
	bool holds = !s->tracked || window_is_whole(s, win) || window_holds(w, win);
	bool whole = !s->tracked || !holds;
	uint8_t before[32];

	for (size_t i = 0; i < n; i += WIRE_CHUNK) {
		int r;

		if (s->stop || s->abort)
			return err_set(e, -ECANCELED, "cancelled");
		r = chunk_do(w, win, first + i, whole, w->digests + i * s->digest->size, e);
		if (r < 0)
			return r;
	}
	memcpy(before, window_place(s, win), sizeof(before));
	window_sum(w, win, w->digests);
	/* Done once before the connection was lost, it is in part new already; what came of it must be the same. */
	if (s->kind == PASS_DELIVER && !holds && memcmp(before, window_place(s, win), sizeof(before)) != 0) {
		window_distrust(s, win);
		s->stale = true;
	}
	return 0;
}

/* Frozen: the candidates go to memory as they are; nobody else's answer is waited for. */
static int window_grab(struct worker *w, struct window *win, struct err *e)
{
	struct sender *s = w->s;
	uint64_t size = s->disks[win->disk]->size, first = (uint64_t)win->index * WIRE_WINDOW;
	size_t n = window_blocks(s, win);

	for (size_t i = 0; i < n; i += WIRE_CHUNK) {
		unsigned mask = chunk_used(&s->candidates[win->disk], first + i);
		uint64_t bytes = chunk_bytes(size, first + i, mask);
		struct held *h;
		int r;

		if (s->stop || s->abort)
			return err_set(e, -ECANCELED, "cancelled");
		if (!mask)
			continue;
		h = arena_take(s, win->disk, first + i, mask, (size_t)bytes);
		if (!h)
			return err_set(e, -ENOBUFS, "more has changed than there is memory for");
		r = chunk_read(w, win, first + i, mask, true, h->data, e);
		if (r < 0)
			return r;
		s->done += bytes;
	}
	return 0;
}

static int worker_grab(struct worker *w, struct err *e)
{
	struct window win;
	int r = 0;

	while (r == 0 && window_take(w, &win))
		r = window_grab(w, &win, e);
	return r;
}

/* ---- a pass on one connection ---- */
/* p: the last two windows done, the one in work and the one asked for; sent[i]: it is one of ours. */
struct pipeline {
	struct window w[4];
	bool have[4];
};
enum { PIPE_BEFORE, PIPE_LAST, PIPE_NOW, PIPE_NEXT };

static void pipeline_shift(struct pipeline *p)
{
	memmove(p->w, p->w + 1, 3 * sizeof(*p->w));
	memmove(p->have, p->have + 1, 3 * sizeof(*p->have));
	p->have[PIPE_NEXT] = false;
}

static int pipeline_step(struct worker *w, struct pipeline *p, struct err *e)
{
	int r = 0;

	p->have[PIPE_NEXT] = window_take(w, &p->w[PIPE_NEXT]);
	if (p->have[PIPE_NEXT])
		r = worker_ask(w, &p->w[PIPE_NEXT], e);
	if (r == 0)
		r = worker_digests(w, &p->w[PIPE_NOW], e);
	if (r < 0)
		return r;
	/* This answer was asked for after PIPE_BEFORE was sent: that one has arrived. */
	p->have[PIPE_BEFORE] = false;
	return window_do(w, &p->w[PIPE_NOW], e);
}

static int worker_windows(struct worker *w, struct err *e)
{
	struct pipeline p = {0};
	int r = 0;

	p.have[PIPE_NOW] = window_take(w, &p.w[PIPE_NOW]);
	if (p.have[PIPE_NOW])
		r = worker_ask(w, &p.w[PIPE_NOW], e);
	while (r == 0 && p.have[PIPE_NOW]) {
		r = pipeline_step(w, &p, e);
		if (r == 0)
			pipeline_shift(&p);
	}
	if (r == 0)
		r = worker_flush(w, e);
	if (r == 0)
		return 0;
	for (unsigned i = 0; i < ARRAY_SIZE(p.have); i++)
		if (p.have[i])
			window_again(w, p.w[i]);
	return r;
}

static bool held_take(struct worker *w, size_t *ret)
{
	struct sender *s = w->s;
	bool found;

	if (w->nresend) {
		*ret = w->resend[--w->nresend];
		return true;
	}
	pthread_mutex_lock(&s->lock);
	found = s->next_held < s->nheld;
	if (found)
		*ret = s->next_held++;
	pthread_mutex_unlock(&s->lock);
	return found;
}

static int held_flush(struct worker *w, struct err *e)
{
	int r = worker_flush(w, e);

	for (unsigned i = 0; r == 0 && i < w->nunflushed; i++)
		w->s->done += w->s->held[w->unflushed[i]].bytes;
	if (r == 0)
		w->nunflushed = 0;
	return r;
}

static int worker_held(struct worker *w, struct err *e)
{
	struct sender *s = w->s;
	size_t i;
	int r = 0;

	while (r == 0 && held_take(w, &i)) {
		struct held *h = &s->held[i];

		w->unflushed[w->nunflushed++] = i;
		r = worker_send(w, h->head, h->digests, h->data, h->bytes, e);
		if (r == 0 && w->nunflushed == SENDER_UNFLUSHED)
			r = held_flush(w, e);
	}
	if (r == 0)
		r = held_flush(w, e);
	while (r < 0 && w->nunflushed) {
		must(w->nresend < SENDER_UNFLUSHED);
		w->resend[w->nresend++] = w->unflushed[--w->nunflushed];
	}
	return r;
}

/* ---- connecting ---- */
static void worker_set_link(struct worker *w, struct wire_link *l)
{
	struct wire_link *old;

	pthread_mutex_lock(&w->s->lock);
	old = w->link;
	w->link = l;
	pthread_mutex_unlock(&w->s->lock);
	wire_close(old);
}

static int worker_connect(struct worker *w, struct err *e)
{
	struct wire_link *l;
	int r = dial_hello(w->s, WIRE_DATA, w->index, &l, e);

	if (r == -ESTALE)
		w->s->control_suspect = true;
	if (r == 0) {
		wire_set_stall(l, w->stall);
		worker_set_link(w, l);
	}
	return r;
}

/* A connection that broke while we wrote may still hold what the receiver said last. */
static int worker_last_words(struct worker *w, int code, struct err *e)
{
	struct wire_frame f;

	while (wire_is_network(code) && wire_readable(w->link) && wire_recv(w->link, 0.1, &f, NULL) == 0)
		if (f.type == WIRE_ERROR)
			return dial_error(&f, e);
	return code;
}

static int worker_do(struct worker *w, enum pass_kind kind, struct err *e)
{
	if (kind == PASS_PROBE)
		return worker_flush(w, e);
	return kind == PASS_HELD ? worker_held(w, e) : worker_windows(w, e);
}

/* One pass, on as many connections as it takes. */
static int worker_pass(struct worker *w, enum pass_kind kind, struct err *e)
{
	struct sender *s = w->s;
	double since = 0; /* the first failure after the last answer */

	if (kind == PASS_GRAB)
		return worker_grab(w, e);

	w->last_good = id_now_mono();
	worker_set_stall(w, kind == PASS_FROZEN || kind == PASS_PROBE ? MIN(SENDER_FROZEN, s->stall) : s->stall);
	for (unsigned attempt = 0;; attempt++) {
		double good = w->last_good;
		int r = 0;

		/* While frozen there is no time for connecting and patience. */
		if (!w->link)
			r = kind == PASS_FROZEN ? err_set(e, -ENOTCONN, "not connected") : worker_connect(w, e);
		if (r == 0)
			r = worker_do(w, kind, e);
		if (r == 0)
			return 0;
		if (w->link && !s->stop && !s->abort)
			r = worker_last_words(w, r, e);
		worker_set_link(w, NULL);
		if (s->stop || s->abort)
			return err_set(e, -ECANCELED, "cancelled");
		if (kind == PASS_FROZEN && (wire_is_network(r) || r == -ENOTCONN)) {
			s->abort = true;
			return r;
		}
		if (!wire_is_network(r) && !(r == -EACCES && s->established))
			return r;
		if (w->last_good > good) {
			attempt = 0;
			since = 0;
		}
		since = since > 0 ? since : id_now_mono();
		if (id_now_mono() - since > s->reconnect)
			return sender_lost(s, e);
		if (!sender_sleep(s, sender_backoff(attempt)))
			return err_set(e, -ECANCELED, "cancelled");
	}
}

void *worker_main(void *arg)
{
	struct worker *w = arg;
	struct sender *s = w->s;
	unsigned seen = 0;

	for (;;) {
		struct err e = {0};
		enum pass_kind kind;
		int r;

		pthread_mutex_lock(&s->lock);
		while (s->generation == seen)
			pthread_cond_wait(&s->changed, &s->lock);
		seen = s->generation;
		kind = s->kind;
		pthread_mutex_unlock(&s->lock);
		if (kind == PASS_QUIT)
			break;
		r = worker_pass(w, kind, &e);
		if (r == -ENOBUFS && kind == PASS_GRAB)
			s->abort = true;
		if (r < 0 && !(pass_is_frozen(kind) && s->abort))
			sender_fail(s, r, &e);
		if (r < 0 && kind == PASS_FROZEN)
			w->nredo = 0;
		pthread_mutex_lock(&s->lock);
		s->busy--;
		pthread_cond_broadcast(&s->changed);
		pthread_mutex_unlock(&s->lock);
	}
	worker_set_link(w, NULL);
	return NULL;
}

/* ---- the pass as the thread of stream_send() sees it ---- */
/* Where the pass begins and what it covers; under the lock. */
static void pass_begin_work(struct sender *s, enum pass_kind kind)
{
	s->next_disk = s->next_window = 0;
	s->next_held = 0;
	s->done = 0;
	s->total = 0;
	for (size_t i = 0; kind != PASS_HELD && i < s->ndisks; i++) {
		const struct bitmap *map = s->tracked ? &s->candidates[i] : &s->used.maps[i];
		uint64_t n = bitmap_count(map), last = map->nbits - 1;

		s->total += n * STREAM_BLOCK;
		if (bitmap_get(map, last))
			s->total -= STREAM_BLOCK - stream_block_bytes(s->disks[i]->size, last);
	}
	for (size_t i = 0; kind == PASS_HELD && i < s->nheld; i++)
		s->total += s->held[i].bytes;
	s->pass_began = id_now_mono();
}

static void pass_begin(struct sender *s, enum pass_kind kind)
{
	pthread_mutex_lock(&s->lock);
	if (kind != PASS_PROBE)
		pass_begin_work(s, kind);
	s->kind = kind;
	s->abort = false;
	s->changed_all += s->changed_now;
	s->changed_now = 0;
	s->busy = s->p->connections;
	s->generation++;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
}

static void pass_abort(struct sender *s)
{
	pthread_mutex_lock(&s->lock);
	s->abort = true;
	for (unsigned i = 0; s->kind == PASS_FROZEN && i < s->p->connections; i++)
		if (s->workers[i].link)
			wire_shutdown(s->workers[i].link, false);
	pthread_mutex_unlock(&s->lock);
}

/* True while workers are busy; waits up to 0.1 s for a change. */
static bool pass_wait(struct sender *s)
{
	struct timespec until;
	bool busy;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += 100000000;
	if (until.tv_nsec >= 1000000000) {
		until.tv_sec++;
		until.tv_nsec -= 1000000000;
	}
	pthread_mutex_lock(&s->lock);
	if (s->busy)
		pthread_cond_timedwait(&s->changed, &s->lock, &until);
	busy = s->busy > 0;
	pthread_mutex_unlock(&s->lock);
	return busy;
}

int pass_run(struct sender *s, enum pass_kind kind, double deadline, struct err *e)
{
	bool aborted = false;

	pass_begin(s, kind);
	while (pass_wait(s)) {
		struct err te = {0};
		int r;

		if (pass_is_frozen(kind)) {
			if (!aborted && (s->abort || id_now_mono() > deadline)) {
				pass_abort(s);
				aborted = true;
			}
			continue;
		}
		r = s->stop ? 0 : control_tick(s, &te);
		if (r < 0)
			sender_fail(s, r, &te);
	}
	if (s->stop) {
		pthread_mutex_lock(&s->lock);
		*e = s->error;
		pthread_mutex_unlock(&s->lock);
		return e->code ? e->code : err_set(e, -ECANCELED, "cancelled");
	}
	return pass_is_frozen(kind) && s->abort ? err_set(e, -EAGAIN, "the pass could not be finished in time") : 0;
}
