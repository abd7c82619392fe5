/*
 * Bytes as a peer would send them, to either side's frame reader and to every message parser. First byte: which side,
 * and whether checksums are made right, so that what lies behind them is reached.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/endian.h"
#include "base/util.h"
#include "codec/codec.h"
#include "wire/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Sequence numbers and checksums of the frames in the input, as far as their lengths go. */
static void repair(uint8_t *p, size_t size)
{
	uint64_t number = 0;

	while (size >= WIRE_HEADER) {
		size_t len = get_le32(p + 8), n = MIN(len, size - WIRE_HEADER);

		put_le32(p, WIRE_MAGIC);
		put_le64(p + 16, number++);
		put_le64(p + 24, codec_check64(p + WIRE_HEADER, n, codec_check64(p, 24, 0)));
		p += WIRE_HEADER + n;
		size -= WIRE_HEADER + n;
	}
}

static void parse(const struct wire_frame *f)
{
	static const struct wire_ask asked = {.disk = 1, .window = 7};
	struct wire_commit commit;
	struct wire_blocks blocks;
	struct wire_error error;
	struct wire_hello hello;
	struct wire_open open;
	struct wire_used used;
	const uint8_t *digests;
	struct wire_ask ask;
	uint64_t a, b;
	uint16_t version;
	uint8_t statements[WIRE_DISKS_MAX][WIRE_STATEMENT_SIZE];

	switch (f->type) {
	case WIRE_HELLO:
		if (wire_get_hello(f, &hello, NULL) == 0)
			must(hello.index < WIRE_CONNECTIONS_MAX);
		break;
	case WIRE_OPEN:
		if (wire_get_open(f, &open, NULL) == 0)
			must(open.ndisks > 0 && open.ndisks <= WIRE_DISKS_MAX && open.disks[0].size > 0);
		break;
	case WIRE_USED:
		if (wire_get_used(f, &used, NULL) == 0)
			must(used.bits + (used.nbits + 7) / 8 == f->payload + f->length);
		break;
	case WIRE_ASK:
		wire_get_ask(f, &ask, NULL);
		break;
	case WIRE_BLOCKS:
		if (wire_get_blocks(f, 32, &blocks, NULL) == 0)
			must(blocks.packed + blocks.npacked == f->payload + f->length);
		break;
	case WIRE_COMMIT:
		for (size_t n = 1; n <= WIRE_DISKS_MAX; n++)
			if (wire_get_commit(f, n, &commit, NULL) == 0)
				must(f->length == 40 * n);
		break;
	case WIRE_WELCOME:
		wire_get_welcome(f, &version, NULL);
		break;
	case WIRE_OPENED:
		for (unsigned n = 1; n <= WIRE_DISKS_MAX; n++)
			if (wire_get_opened(f, 1 + n % 2, n, &a, statements, NULL) == 0)
				must(f->length == 8 + (n % 2 ? 32 * n : 0));
		break;
	case WIRE_USED_OK:
		wire_get_used_ok(f, &a, &b, NULL);
		break;
	case WIRE_DIGESTS:
		wire_get_digests(f, &asked, 4096, &digests, NULL);
		break;
	case WIRE_ERROR:
		wire_get_error(f, &error, NULL);
		must(strlen(error.message) <= WIRE_MESSAGE_MAX);
		break;
	default:
		break;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct wire_env env = {.stall = 1};
	struct wire_link *l;
	struct wire_frame f;
	uint8_t *copy;
	int fds[2];

	/* More than fits a socket's buffer isn't needed to reach everything. */
	if (size < 1 || size > 60000 || socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
		return 0;
	copy = malloc(size);
	must(copy);
	memcpy(copy, data, size);
	if (copy[0] & 2)
		repair(copy + 1, size - 1);
	must(size == 1 || send(fds[0], copy + 1, size - 1, MSG_DONTWAIT) == (ssize_t)size - 1);
	shutdown(fds[0], SHUT_WR);
	must(wire_plain(fds[1], copy[0] & 1, &env, &l, NULL) == 0);
	while (wire_recv(l, 1, &f, NULL) == 0)
		parse(&f);
	wire_close(l);
	close(fds[0]);
	free(copy);
	return 0;
}
