/* Frames over a socket pair: whole ones pass, anything else ends the connection. TLS: only the key opens it. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <cmocka.h>

#include "base/endian.h"
#include "base/err.h"
#include "base/id.h"
#include "base/str.h"
#include "base/util.h"
#include "codec/codec.h"
#include "wire/wire_int.h"

struct pair {
	struct wire_link *sender, *receiver;
	int fds[2];
};

static void pair_open(struct pair *p)
{
	struct wire_env env = {.stall = 1};

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, p->fds), 0);
	assert_int_equal(wire_plain(p->fds[0], false, &env, &p->sender, NULL), 0);
	assert_int_equal(wire_plain(p->fds[1], true, &env, &p->receiver, NULL), 0);
}

static void pair_close(struct pair *p)
{
	wire_close(p->sender);
	wire_close(p->receiver);
}

/* The bytes of a frame the sender's half makes, with its n-th number. */
static size_t frame_bytes(uint8_t *out, size_t size, enum wire_type type, const void *payload, size_t len,
			  unsigned number)
{
	struct pair p;
	ssize_t n = 0;

	pair_open(&p);
	for (unsigned i = 0; i <= number; i++) {
		assert_int_equal(wire_say(p.sender, type, payload, (uint32_t)len, NULL), 0);
		n = recv(p.fds[1], out, size, MSG_WAITALL | MSG_DONTWAIT);
		assert_int_equal(n, 32 + len);
	}
	pair_close(&p);
	return (size_t)n;
}

static int receive_bytes(const uint8_t *bytes, size_t n, bool close_after, struct wire_frame *f)
{
	static struct pair p;
	struct err e;
	int r;

	pair_open(&p);
	assert_int_equal(send(p.fds[0], bytes, n, 0), n);
	if (close_after)
		shutdown(p.fds[0], SHUT_WR);
	r = wire_recv(p.receiver, 0.2, f, &e);
	if (r == -EBADMSG) /* and nothing more is read from it */
		assert_int_equal(wire_recv(p.receiver, 0.2, f, &e), -EBADMSG);
	pair_close(&p);
	return r;
}

static void test_vectors(void **state)
{
	struct wire_hello m = {.min_version = 1, .max_version = 1, .role = WIRE_CONTROL};
	struct wire_ask ask = {.disk = 1, .window = 7};
	uint8_t payload[64], frame[128];
	char hex[257];
	size_t n;

	for (unsigned i = 0; i < 16; i++)
		m.session[i] = (uint8_t)i;
	n = frame_bytes(frame, sizeof(frame), WIRE_HELLO, payload, wire_put_hello(&m, payload), 0);
	str_hex(frame, n, hex);
	assert_string_equal(hex, "52504c310100000018000000000000000000000000000000204a79bce70deaa4010001000100000000010"
				 "2030405060708090a0b0c0d0e0f");
	n = frame_bytes(frame, sizeof(frame), WIRE_ASK, payload, wire_put_ask(&ask, payload), 2);
	str_hex(frame, n, hex);
	assert_string_equal(hex, "52504c31070000000800000000000000020000000000000021e8c266888cd05d0100000007000000");
}

static void test_round_trip(void **state)
{
	static uint8_t big[WIRE_BLOCKS_HEAD + 16 * 16 + 65536];
	struct wire_blocks m = {.disk = 3, .first = 160, .data = 0x8001, .zero = 0x0ff0, .encoding = WIRE_RAW}, got;
	struct iovec iov[3];
	uint8_t head[16];
	struct wire_frame f;
	struct pair p;

	pair_open(&p);
	id_random(big, sizeof(big));
	iov[0] = (struct iovec){head, wire_put_blocks_head(&m, head)};
	iov[1] = (struct iovec){big, 32};
	iov[2] = (struct iovec){big + 32, 65536};
	for (int i = 0; i < 3; i++) {
		assert_int_equal(wire_send(p.sender, WIRE_BLOCKS, iov, 3, NULL), 0);
		assert_int_equal(wire_recv(p.receiver, 1, &f, NULL), 0);
		assert_int_equal(f.type, WIRE_BLOCKS);
		assert_int_equal(wire_get_blocks(&f, 16, &got, NULL), 0);
		assert_int_equal(got.disk, 3);
		assert_int_equal(got.first, 160);
		assert_int_equal(got.data, 0x8001);
		assert_int_equal(got.zero, 0x0ff0);
		assert_int_equal(got.npacked, 65536);
		assert_memory_equal(got.digests, big, 32);
		assert_memory_equal(got.packed, big + 32, 65536);
	}
	/* Nothing comes: the link is still good afterwards. */
	assert_int_equal(wire_recv(p.receiver, 0.05, &f, NULL), -ETIMEDOUT);
	assert_int_equal(wire_send(p.sender, WIRE_SYNC, NULL, 0, NULL), 0);
	assert_int_equal(wire_recv(p.receiver, 1, &f, NULL), 0);
	assert_int_equal(f.type, WIRE_SYNC);
	wire_close(p.sender);
	assert_int_equal(wire_recv(p.receiver, 1, &f, NULL), -EPIPE);
	wire_close(p.receiver);
}

static void test_cut(void **state)
{
	uint8_t frame[128], payload[8] = {1};
	size_t n = frame_bytes(frame, sizeof(frame), WIRE_ASK, payload, 8, 0);
	struct wire_frame f;

	assert_int_equal(receive_bytes(frame, n, false, &f), 0);
	for (size_t i = 1; i < n; i++)
		assert_int_equal(receive_bytes(frame, i, true, &f), -ECONNRESET);
	assert_int_equal(receive_bytes(frame, n - 1, false, &f), -ETIMEDOUT); /* it never comes: the link is over */
}

/* What comes after a time-out within a frame is not taken for the next one. */
static void test_late(void **state)
{
	uint8_t frame[128], payload[8] = {1};
	size_t n = frame_bytes(frame, sizeof(frame), WIRE_ASK, payload, 8, 0);
	const size_t cuts[] = {1, 31, 33, n - 1};

	for (size_t i = 0; i < ARRAY_SIZE(cuts); i++) {
		struct wire_frame f;
		struct pair p;

		pair_open(&p);
		wire_set_stall(p.receiver, 0.02);
		assert_int_equal(send(p.fds[0], frame, cuts[i], 0), cuts[i]);
		assert_int_equal(wire_recv(p.receiver, 0.02, &f, NULL), -ETIMEDOUT);
		assert_int_equal(send(p.fds[0], frame, n, 0), n);
		assert_int_equal(wire_recv(p.receiver, 0.02, &f, NULL), -EBADMSG);
		assert_true(p.receiver->broken);
		pair_close(&p);
	}
}

/* Each single bit of a frame matters. */
static void test_flipped(void **state)
{
	uint8_t frame[128], bad[128], payload[8] = {1};
	size_t n = frame_bytes(frame, sizeof(frame), WIRE_ASK, payload, 8, 0);
	struct wire_frame f;

	for (size_t bit = 0; bit < 8 * n; bit++) {
		int r;

		memcpy(bad, frame, n);
		bad[bit / 8] ^= (uint8_t)(1u << bit % 8);
		r = receive_bytes(bad, n, true, &f);
		assert_true(r == -EBADMSG || r == -ECONNRESET);
	}
}

static void seal(uint8_t *frame, size_t n)
{
	put_le64(frame + 24, codec_check64(frame + 32, n - 32, codec_check64(frame, 24, 0)));
}

/* With a right checksum, too. */
static void test_refused(void **state)
{
	static uint8_t frame[2 << 20];
	uint8_t payload[8] = {0};
	size_t n = frame_bytes(frame, sizeof(frame), WIRE_ASK, payload, 8, 0);
	static const unsigned types[] = {0, WIRE_DIGESTS, WIRE_WAIT, WIRE_TYPES, 0xffff};
	struct wire_frame f;

	seal(frame, n);
	assert_int_equal(receive_bytes(frame, n, true, &f), 0);
	for (size_t i = 0; i < ARRAY_SIZE(types); i++) { /* unknown, or of the other direction */
		put_le16(frame + 4, (uint16_t)types[i]);
		seal(frame, n);
		assert_int_equal(receive_bytes(frame, n, true, &f), -EBADMSG);
	}
	put_le16(frame + 4, WIRE_ASK);
	put_le64(frame + 16, 1); /* one is missing */
	seal(frame, n);
	assert_int_equal(receive_bytes(frame, n, true, &f), -EBADMSG);
	put_le64(frame + 16, 0);
	put_le16(frame + 6, 1); /* reserved bits */
	seal(frame, n);
	assert_int_equal(receive_bytes(frame, n, true, &f), -EBADMSG);
	put_le16(frame + 6, 0);
	put_le32(frame + 8, 9); /* too long for its type: refused by its header alone */
	assert_int_equal(receive_bytes(frame, 32, false, &f), -EBADMSG);
	put_le16(frame + 4, WIRE_BLOCKS);
	put_le32(frame + 8, 0xffffffff);
	assert_int_equal(receive_bytes(frame, 32, false, &f), -EBADMSG);
	put_le32(frame + 8, 16 + 16 * 32 + (1 << 20) + 1);
	assert_int_equal(receive_bytes(frame, 32, false, &f), -EBADMSG);
}

static void test_replayed_and_reordered(void **state)
{
	uint8_t frames[3][64], payload[8] = {0}, all[192];
	struct wire_frame f;
	struct pair p;

	for (unsigned i = 0; i < 3; i++)
		frame_bytes(frames[i], sizeof(frames[i]), WIRE_ASK, payload, 8, i);
	for (int again = 0; again < 2; again++) {
		memcpy(all, frames[0], 40);
		memcpy(all + 40, again ? frames[0] : frames[2], 40);
		memcpy(all + 80, frames[1], 40);
		pair_open(&p);
		assert_int_equal(send(p.fds[0], all, 120, 0), 120);
		assert_int_equal(wire_recv(p.receiver, 1, &f, NULL), 0);
		assert_int_equal(wire_recv(p.receiver, 1, &f, NULL), -EBADMSG);
		assert_int_equal(wire_recv(p.receiver, 1, &f, NULL), -EBADMSG);
		pair_close(&p);
	}
}

/* ---- messages ---- */
static struct wire_frame frame_of(enum wire_type type, const uint8_t *p, uint32_t n)
{
	return (struct wire_frame){.type = type, .payload = p, .length = n};
}

static void test_blocks_message(void **state)
{
	struct wire_blocks m = {.data = 3, .zero = 4, .first = 16}, got;
	uint8_t buf[200] = {0};
	struct wire_frame f = frame_of(WIRE_BLOCKS, buf, 16 + 2 * 16 + 5);

	wire_put_blocks_head(&m, buf);
	assert_int_equal(wire_get_blocks(&f, 16, &got, NULL), 0);
	assert_int_equal(got.npacked, 5);
	f.length = 16 + 31;
	assert_int_equal(wire_get_blocks(&f, 16, &got, NULL), -EBADMSG);
	f.length = 16 + 32 + 5;
	m.zero = 2; /* both */
	wire_put_blocks_head(&m, buf);
	assert_int_equal(wire_get_blocks(&f, 16, &got, NULL), -EBADMSG);
	m.zero = m.data = 0; /* nothing */
	wire_put_blocks_head(&m, buf);
	assert_int_equal(wire_get_blocks(&f, 16, &got, NULL), -EBADMSG);
	m.zero = 1; /* zeros with data */
	wire_put_blocks_head(&m, buf);
	assert_int_equal(wire_get_blocks(&f, 16, &got, NULL), -EBADMSG);
	m.data = 2;
	m.first = 17;
	wire_put_blocks_head(&m, buf);
	assert_int_equal(wire_get_blocks(&f, 16, &got, NULL), -EBADMSG);
	m.first = 32;
	m.encoding = 2;
	wire_put_blocks_head(&m, buf);
	assert_int_equal(wire_get_blocks(&f, 16, &got, NULL), -EBADMSG);
}

static void test_open_message(void **state)
{
	struct wire_open m = {.digest = 1, .ndisks = 2, .disks = {{512, 512}, {UINT64_C(1) << 40, 4096}}}, got;
	uint8_t buf[WIRE_SMALL_MAX];
	struct wire_frame f = frame_of(WIRE_OPEN, buf, wire_put_open(&m, buf));

	assert_int_equal(wire_get_open(&f, &got, NULL), 0);
	assert_int_equal(got.ndisks, 2);
	assert_int_equal(got.disks[1].size, UINT64_C(1) << 40);
	f.length -= 16;
	assert_int_equal(wire_get_open(&f, &got, NULL), -EBADMSG);
	f.length += 16;
	buf[1] = 65;
	assert_int_equal(wire_get_open(&f, &got, NULL), -EBADMSG);
	buf[1] = 0;
	assert_int_equal(wire_get_open(&f, &got, NULL), -EBADMSG);
	static const struct wire_disk bad[] = {{0, 512}, {511, 512}, {512, 0}, {512, 513}, {512, 131072}};
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		m.disks[1] = bad[i];
		wire_put_open(&m, buf);
		assert_int_equal(wire_get_open(&f, &got, NULL), -EBADMSG);
	}
	m.disks[1] = (struct wire_disk){UINT64_C(1) << 46, 512}; /* with the first: one block more than 64 TiB */
	wire_put_open(&m, buf);
	assert_int_equal(wire_get_open(&f, &got, NULL), -EFBIG);
	m.disks[1] = (struct wire_disk){UINT64_MAX - 511, 512};
	wire_put_open(&m, buf);
	assert_int_equal(wire_get_open(&f, &got, NULL), -EFBIG);
}

static void test_error_message(void **state)
{
	uint8_t buf[WIRE_SMALL_MAX];
	struct wire_error got;
	char longer[2000];
	struct wire_frame f = frame_of(WIRE_ERROR, buf, wire_put_error(WIRE_E_NO_SPACE, "full\033[2J", buf));

	assert_int_equal(wire_get_error(&f, &got, NULL), 0);
	assert_int_equal(got.code, WIRE_E_NO_SPACE);
	assert_true(got.temporary);
	assert_string_equal(got.message, "full?[2J");
	memset(longer, 'x', sizeof(longer));
	longer[1999] = '\0';
	f.length = wire_put_error(WIRE_E_IO, longer, buf);
	assert_int_equal(f.length, 4 + WIRE_MESSAGE_MAX);
	assert_int_equal(wire_get_error(&f, &got, NULL), 0);
	assert_int_equal(strlen(got.message), WIRE_MESSAGE_MAX);
	for (unsigned i = 1; i < WIRE_CODES; i++) {
		assert_non_null(wire_code_name(i));
		assert_int_equal(wire_code_of(wire_code_errno(i)), i);
	}
}

/* ---- TLS over a socket pair ---- */
struct peer {
	int fd;
	struct wire_auth auth;
	struct wire_link *link;
	struct err e;
	int result;
};

static void *peer_accept(void *arg)
{
	struct peer *p = arg;
	struct wire_env env = {.stall = 2};

	p->result = wire_accept(p->fd, &p->auth, &env, 2, &p->link, &p->e);
	return NULL;
}

/* What stands between two peers: passes all on, can look for a text, and can flip a bit far into what comes from `a`.
 */
struct relay {
	int a, b;
	size_t passed, flip; /* 0: never */
	const char *look_for;
	bool seen;
};

static bool relay_pass(struct relay *r, int from, int to)
{
	uint8_t buf[4096];
	ssize_t n = read(from, buf, sizeof(buf));

	if (n <= 0)
		return false;
	if (from == r->a && r->flip && r->passed <= r->flip && r->flip < r->passed + (size_t)n)
		buf[r->flip - r->passed] ^= 1;
	if (from == r->a)
		r->passed += (size_t)n;
	if (r->look_for && memmem(buf, (size_t)n, r->look_for, strlen(r->look_for)))
		r->seen = true;
	return send(to, buf, (size_t)n, MSG_NOSIGNAL) == n;
}

static void *relay_main(void *arg)
{
	struct relay *r = arg;
	struct pollfd p[] = {{r->a, POLLIN, 0}, {r->b, POLLIN, 0}};

	while (poll(p, 2, 5000) > 0)
		if ((p[0].revents && !relay_pass(r, r->a, r->b)) || (p[1].revents && !relay_pass(r, r->b, r->a)))
			break;
	close(r->a);
	close(r->b);
	return NULL;
}

static int tls_meet(const char *run, uint8_t key, struct peer *server, struct wire_link **ret, struct err *e)
{
	static uint8_t psk[32], other[32];
	struct wire_auth a = {.run = run, .psk = other};
	struct wire_env env = {.stall = 2};
	struct wire_link *l;
	pthread_t thread;
	int fds[2], r;

	memset(psk, 7, sizeof(psk));
	memset(other, key, sizeof(other));
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	*server = (struct peer){.fd = fds[1], .auth = {.run = "run-1", .psk = psk}};
	pthread_create(&thread, NULL, peer_accept, server);
	assert_int_equal(link_new(fds[0], false, &env, &l, NULL), 0);
	r = tls_start(l, &a, id_now_mono() + 2, e);
	if (r < 0)
		wire_close(l);
	else
		*ret = l;
	pthread_join(thread, NULL);
	return r;
}

static void test_tls_key(void **state)
{
	struct wire_link *l = NULL;
	struct peer server;
	struct wire_frame f;
	struct err e;

	assert_int_equal(tls_meet("run-1", 7, &server, &l, &e), 0);
	assert_int_equal(server.result, 0);
	assert_string_equal(SSL_get_version(l->ssl), "TLSv1.3");
	assert_string_equal(SSL_get_cipher_name(l->ssl), "TLS_AES_128_GCM_SHA256");
	assert_int_equal(wire_send(l, WIRE_SYNC, NULL, 0, NULL), 0);
	assert_int_equal(wire_recv(server.link, 1, &f, NULL), 0);
	assert_int_equal(f.type, WIRE_SYNC);
	wire_close(l);
	wire_close(server.link);

	assert_int_equal(tls_meet("run-1", 8, &server, &l, &e), -EACCES);
	assert_true(server.result < 0);
	assert_int_equal(tls_meet("run-2", 7, &server, &l, &e), -EACCES);
	assert_true(server.result < 0);
	assert_int_equal(tls_meet("run-", 7, &server, &l, &e), -EACCES);
	assert_int_equal(tls_meet("run-11", 7, &server, &l, &e), -EACCES);
}

/* Two that want the same, or not, with somebody between them. 1: what was said came, 0: it was noticed that it hadn't.
 */
static int meet_between(struct relay *r, bool client_clear, bool server_clear)
{
	static const char said[] = "a line that anybody may read";
	static uint8_t psk[32] = {3};
	struct wire_auth a = {.run = "run-1", .psk = psk, .clear = client_clear};
	struct peer server = {.auth = {.run = "run-1", .psk = psk, .clear = server_clear}};
	struct wire_env env = {.stall = 2};
	pthread_t accepts, relays;
	struct wire_frame f;
	struct wire_link *l;
	int left[2], right[2], got = -1;

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, left), 0);
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, right), 0);
	r->a = left[1];
	r->b = right[0];
	r->look_for = said;
	server.fd = right[1];
	pthread_create(&relays, NULL, relay_main, r);
	pthread_create(&accepts, NULL, peer_accept, &server);
	assert_int_equal(link_new(left[0], false, &env, &l, NULL), 0);
	if (tls_start(l, &a, id_now_mono() + 2, NULL) == 0) {
		uint8_t buf[2000];

		got = 0;
		memset(buf, 'x', sizeof(buf));
		memcpy(buf + 1000, said, sizeof(said));
		assert_int_equal(wire_say(l, WIRE_BLOCKS, buf, sizeof(buf), NULL), 0);
		pthread_join(accepts, NULL);
		if (server.result == 0 && wire_recv(server.link, 2, &f, NULL) == 0)
			got = memcmp(f.payload + 1000, said, sizeof(said)) == 0;
	} else {
		pthread_join(accepts, NULL);
	}
	wire_close(l);
	wire_close(server.link);
	pthread_join(relays, NULL);
	return got;
}

static void test_tls_clear(void **state)
{
	struct relay r = {0};
	size_t end;

	assert_int_equal(meet_between(&r, false, false), 1);
	assert_false(r.seen);
	r = (struct relay){0};
	assert_int_equal(meet_between(&r, true, true), 1);
	assert_true(r.seen);
	end = r.passed;
	/* Neither takes the one for the other. */
	r = (struct relay){0};
	assert_int_equal(meet_between(&r, true, false), -1);
	r = (struct relay){0};
	assert_int_equal(meet_between(&r, false, true), -1);
	/* A bit of what was said, or of its MAC. */
	for (size_t back = 10; back < 2000; back += 311) {
		r = (struct relay){.flip = end - back};
		assert_int_equal(meet_between(&r, true, true), 0);
	}
}

struct pump {
	struct wire_link *link;
	unsigned n;
	int result;
	struct err e;
};

static void *pump_main(void *arg)
{
	static uint8_t buf[WIRE_BLOCKS_HEAD + 65536];
	struct pump *p = arg;

	for (unsigned i = 0; i < p->n && p->result == 0; i++)
		p->result = wire_say(p->link, WIRE_BLOCKS, buf, sizeof(buf), &p->e);
	return NULL;
}

/* New keys in mid-stream, many times. */
static void test_tls_rekey(void **state)
{
	struct wire_link *l = NULL;
	struct peer server;
	struct wire_frame f;
	struct err e = {0};
	struct pump pump;
	pthread_t thread;
	int r = 0;

	assert_int_equal(tls_meet("run-1", 7, &server, &l, NULL), 0);
	l->rekey_after = 100000;
	pump = (struct pump){.link = l, .n = 200};
	pthread_create(&thread, NULL, pump_main, &pump);
	for (unsigned i = 0; i < 200 && r == 0; i++)
		r = wire_recv(server.link, 2, &f, &e);
	pthread_join(thread, NULL);
	if (pump.result < 0 || r < 0)
		fail_msg("sender: %s; receiver: %s", pump.e.msg, e.msg);
	wire_close(l);
	wire_close(server.link);
}

static void test_stop(void **state)
{
	atomic_bool stop = true;
	struct wire_env env = {.stop = &stop};
	struct wire_frame f;
	struct wire_link *l;
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
	assert_int_equal(wire_plain(fds[0], true, &env, &l, NULL), 0);
	assert_int_equal(wire_recv(l, 10, &f, NULL), -ECANCELED);
	wire_close(l);
	close(fds[1]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_vectors),
	    cmocka_unit_test(test_round_trip),
	    cmocka_unit_test(test_cut),
	    cmocka_unit_test(test_late),
	    cmocka_unit_test(test_flipped),
	    cmocka_unit_test(test_refused),
	    cmocka_unit_test(test_replayed_and_reordered),
	    cmocka_unit_test(test_blocks_message),
	    cmocka_unit_test(test_open_message),
	    cmocka_unit_test(test_error_message),
	    cmocka_unit_test(test_tls_key),
	    cmocka_unit_test(test_tls_clear),
	    cmocka_unit_test(test_tls_rekey),
	    cmocka_unit_test(test_stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
