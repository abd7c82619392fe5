/* The sender's connections: dialling with patience, and the conversation on the control connection. */
#include <errno.h>
#include <string.h>

#include "base/id.h"
#include "base/util.h"
#include "stream/sender_int.h"

#define DIAL_PING 5.0 /* seconds between pings */

int dial_error(const struct wire_frame *f, struct err *e)
{
	struct wire_error m;
	int r = wire_get_error(f, &m, e);

	if (r < 0)
		return r;
	return err_set(e, wire_code_errno(m.code), "%s", *m.message ? m.message : "the receiver gave up");
}

/* The answer of that type; WAIT frames and the answers to pings pass by. *good: the time of the last one. */
static int dial_await(struct sender *s, struct wire_link *l, enum wire_type want, double *good, struct wire_frame *ret,
		      struct err *e)
{
	for (;;) {
		int r = wire_recv(l, s->stall, ret, e);

		if (r < 0)
			return r;
		if (s->stop) /* a peer that never pauses keeps us from waiting, where it would be seen */
			return err_set(e, -ECANCELED, "cancelled");
		if (ret->type == WIRE_ERROR)
			return dial_error(ret, e);
		*good = id_now_mono();
		if (ret->type == want)
			return 0;
		if (ret->type != WIRE_WAIT && ret->type != WIRE_PONG)
			return err_set(e, -EBADMSG, "the receiver answered something else");
	}
}

static int control_answer(struct sender *s, enum wire_type want, struct wire_frame *ret, struct err *e)
{
	return dial_await(s, s->control, want, &s->last_good, ret, e);
}

int dial_hello(struct sender *s, enum wire_role role, uint8_t index, struct wire_link **ret, struct err *e)
{
	struct wire_hello m = {
	    .min_version = WIRE_VERSION_MIN, .max_version = WIRE_VERSION, .role = role, .index = index};
	_cleanup_(wire_closep) struct wire_link *l = NULL;
	uint8_t buf[WIRE_SMALL_MAX];
	struct wire_frame f;
	uint16_t version;
	double good;
	int r;

	memcpy(m.session, s->session, sizeof(m.session));
	r = wire_dial(s->p->host, s->p->port, &s->auth, &s->env, MIN(SENDER_DIAL, s->stall), &l, e);
	if (r == 0)
		r = wire_say(l, WIRE_HELLO, buf, wire_put_hello(&m, buf), e);
	if (r == 0)
		r = dial_await(s, l, WIRE_WELCOME, &good, &f, e);
	if (r == 0)
		r = wire_get_welcome(&f, &version, e);
	if (r == 0 && (version < WIRE_VERSION_MIN || version > WIRE_VERSION))
		r = err_set(e, -EPROTONOSUPPORT, "the receiver chose version %u of the protocol", version);
	if (r < 0)
		return r;
	if (role == WIRE_CONTROL)
		s->version = version;
	*ret = take_ptr(&l);
	return 0;
}

static void control_drop(struct sender *s)
{
	wire_close(s->control);
	s->control = NULL;
	s->pinging = false;
}

static int control_open_disks(struct sender *s, struct err *e)
{
	struct wire_open m = {.digest = (uint8_t)s->digest->id, .ndisks = (uint8_t)s->ndisks};
	uint8_t buf[WIRE_SMALL_MAX];
	struct wire_frame f;
	uint64_t left;
	int r;

	for (size_t i = 0; i < s->ndisks; i++)
		m.disks[i] = (struct wire_disk){.size = s->disks[i]->size, .sector = s->disks[i]->sector};
	r = wire_say(s->control, WIRE_OPEN, buf, wire_put_open(&m, buf), e);
	if (r == 0)
		r = control_answer(s, WIRE_OPENED, &f, e);
	return r < 0 ? r : wire_get_opened(&f, s->version, s->ndisks, &left, s->committed, e);
}

static int control_send_map(struct sender *s, struct err *e)
{
	_cleanup_free_ uint8_t *bits = malloc(WIRE_USED_BYTES);
	struct wire_frame f;
	uint64_t needed, left;
	int r = 0;

	if (!bits)
		return err_nomem(e);
	for (size_t i = 0; i < s->ndisks; i++) {
		const struct bitmap *map = &s->used.maps[i];
		uint8_t head[16];

		for (uint64_t at = 0; r == 0 && at < map->nbits; at += WIRE_USED_BYTES * 8) {
			uint32_t n = (uint32_t)MIN(map->nbits - at, (uint64_t)WIRE_USED_BYTES * 8);
			struct wire_used m = {.disk = (uint16_t)i, .first = at, .nbits = n};
			struct iovec iov[2];

			m.last = i + 1 == s->ndisks && at + n == map->nbits;
			memset(bits, 0, WIRE_USED_BYTES);
			for (uint32_t k = 0; k < n; k++)
				if (bitmap_get(map, at + k))
					bits[k / 8] |= (uint8_t)(1u << (k % 8));
			iov[0] = (struct iovec){head, wire_put_used_head(&m, head)};
			iov[1] = (struct iovec){bits, (n + 7) / 8};
			r = wire_send(s->control, WIRE_USED, iov, 2, e);
		}
	}
	if (r == 0)
		r = control_answer(s, WIRE_USED_OK, &f, e);
	return r < 0 ? r : wire_get_used_ok(&f, &needed, &left, e);
}

static int control_connect(struct sender *s, struct err *e)
{
	int r = dial_hello(s, WIRE_CONTROL, 0, &s->control, e);

	if (r == 0)
		r = control_open_disks(s, e);
	if (r == 0 && s->have_used)
		r = control_send_map(s, e);
	if (r < 0) {
		control_drop(s);
		return r;
	}
	s->established = true;
	s->control_suspect = false;
	s->last_good = id_now_mono();
	return 0;
}

/* A refused key is final for one that never got in, and perhaps a damaged handshake for one that did. */
static bool control_try_again(struct sender *s, int r, unsigned attempt)
{
	if (s->stop)
		return false;
	if (r == -EACCES)
		return s->established || attempt < 2;
	return wire_is_network(r);
}

int control_ready(struct sender *s, struct err *e)
{
	double since = 0; /* the first failure */

	for (unsigned attempt = 0; !s->control; attempt++) {
		int r = control_connect(s, e);

		if (r == 0)
			return 0;
		if (!control_try_again(s, r, attempt))
			return r;
		since = since > 0 ? since : id_now_mono();
		if (id_now_mono() - since > s->reconnect)
			return r == -EACCES ? r : sender_lost(s, e);
		if (!sender_sleep(s, sender_backoff(attempt)))
			return err_set(e, -ECANCELED, "cancelled");
	}
	return 0;
}

/* Does something on the control connection, again on a new one when that was lost. */
static int control_do(struct sender *s, int (*run)(struct sender *s, struct err *e), struct err *e)
{
	double since = 0; /* the first failure after the last answer to `run`; that it connects again says little */

	for (unsigned attempt = 0;; attempt++) {
		int r = control_ready(s, e);
		double good = s->last_good;

		if (r < 0)
			return r;
		r = run(s, e);
		if (r == 0) {
			s->last_good = id_now_mono();
			return 0;
		}
		control_drop(s);
		if (s->last_good > good)
			since = 0;
		since = since > 0 ? since : id_now_mono();
		if (!wire_is_network(r) || s->stop || id_now_mono() - since > s->reconnect)
			return r;
		if (!sender_sleep(s, sender_backoff(attempt)))
			return err_set(e, -ECANCELED, "cancelled");
	}
}

int control_used_map(struct sender *s, struct err *e)
{
	s->have_used = true;
	return control_do(s, control_send_map, e);
}

static int finish_sync(struct sender *s, struct err *e)
{
	struct wire_frame f;
	int r = wire_send(s->control, WIRE_SYNC, NULL, 0, e);

	return r < 0 ? r : control_answer(s, WIRE_SYNCED, &f, e);
}

int dial_statement(struct sender *s, size_t disk, uint8_t out[32], struct err *e)
{
	_cleanup_(codec_sum_freep) struct codec_sum *sum = NULL;
	int r = codec_sum_new(&sum, e);

	if (r < 0)
		return r;
	codec_sum_start(sum);
	codec_sum_add(sum, s->sums[disk], stream_windows(s->disks[disk]->size) * 32);
	codec_sum_finish(sum, out);
	return 0;
}

static int finish_commit(struct sender *s, struct err *e)
{
	uint8_t buf[WIRE_SMALL_MAX];
	struct wire_commit m = {.n = s->ndisks};
	struct wire_frame f;
	int r;

	for (size_t i = 0; i < s->ndisks; i++) {
		r = dial_statement(s, i, m.disks[i].statement, e);
		if (r < 0)
			return r;
		m.disks[i].used = bitmap_count(&s->used.maps[i]);
	}
	r = wire_say(s->control, WIRE_COMMIT, buf, wire_put_commit(&m, buf), e);
	if (r == 0)
		r = control_answer(s, WIRE_COMMITTED, &f, e);
	if (r == 0)
		wire_send(s->control, WIRE_BYE, NULL, 0, NULL);
	return r;
}

int control_finish(struct sender *s, struct err *e)
{
	int r = 0;

	/* A filesystem may have grown into what its disk gained, and been frozen so. */
	for (size_t i = 0; r == 0 && i < s->ndisks; i++)
		r = disk_same_size(s->disks[i], e);
	if (r == 0)
		r = control_do(s, finish_sync, e);
	return r < 0 ? r : control_do(s, finish_commit, e);
}

/* What came unasked, and whether the receiver still answers. */
static int control_listen(struct sender *s, struct err *e)
{
	uint8_t buf[16];
	struct wire_frame f;
	int r;

	while (!s->stop && wire_readable(s->control)) {
		r = wire_recv(s->control, s->stall, &f, e);
		if (r < 0)
			return r;
		if (f.type == WIRE_ERROR)
			return dial_error(&f, e);
		s->last_good = id_now_mono();
		s->pinging = false;
	}
	if (s->pinging)
		return id_now_mono() - s->last_ping > s->stall ? err_set(e, -ETIMEDOUT, "the receiver does not answer")
							       : 0;
	if (id_now_mono() - s->last_ping < DIAL_PING)
		return 0;
	s->last_ping = id_now_mono();
	s->pinging = true;
	return wire_say(s->control, WIRE_PING, buf, wire_put_cookie(1, buf), e);
}

int control_tick(struct sender *s, struct err *e)
{
	int r;

	if (s->control && s->control_suspect) {
		/* Ask at once: the receiver may be a new one that knows nothing of us. */
		s->control_suspect = false;
		if (!s->pinging)
			s->last_ping = 0;
	}
	r = s->control ? control_listen(s, e) : 0;
	if (r < 0 && !wire_is_network(r))
		return r;
	if (r < 0)
		control_drop(s);
	return control_ready(s, e);
}
