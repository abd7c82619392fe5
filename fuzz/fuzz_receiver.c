/*
 * The receiver's whole half of the conversation. The input is what senders say on up to four connections, one after the
 * other, over plain sockets. First byte: bits 0 and 1, connections less one; bit 2, numbers and checksums of frames and
 * digests of raw blocks are left as they are (else they are made right). Then two bytes of length before the bytes of
 * each. Nothing outside the directory may come of it, and afterwards every known entry of the manifests must hold.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/endian.h"
#include "base/io.h"
#include "base/util.h"
#include "stream/receiver_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The digests of raw blocks: XXH3-128 of 64 KiB each, of what is left for the last. */
static void repair_blocks(uint8_t *m, size_t n)
{
	size_t count, left, size;
	uint8_t *data;

	if (n < WIRE_BLOCKS_HEAD || m[6] != WIRE_RAW)
		return;
	count = (size_t)__builtin_popcount(get_le16(m + 2));
	if (n < WIRE_BLOCKS_HEAD + count * 16)
		return;
	data = m + WIRE_BLOCKS_HEAD + count * 16;
	left = n - WIRE_BLOCKS_HEAD - count * 16;
	for (size_t i = 0; i < count; i++, data += size, left -= size) {
		size = MIN(left, (size_t)STREAM_BLOCK);
		codec_digest(CODEC_XXH3_128)->compute(data, size, m + WIRE_BLOCKS_HEAD + i * 16);
	}
}

static void repair(uint8_t *p, size_t size)
{
	uint64_t number = 0;

	while (size >= WIRE_HEADER) {
		size_t len = get_le32(p + 8), n = MIN(len, size - WIRE_HEADER);

		if (get_le16(p + 4) == WIRE_BLOCKS)
			repair_blocks(p + WIRE_HEADER, n);
		put_le32(p, WIRE_MAGIC);
		put_le64(p + 16, number++);
		put_le64(p + 24, codec_check64(p + WIRE_HEADER, n, codec_check64(p, 24, 0)));
		p += WIRE_HEADER + n;
		size -= WIRE_HEADER + n;
	}
}

/* Big disks would make the files and maps big, and the runs slow: every OPEN is about small ones. */
static void tame(uint8_t *p, size_t size)
{
	while (size >= WIRE_HEADER) {
		size_t len = get_le32(p + 8), n = MIN(len, size - WIRE_HEADER);
		uint8_t *m = p + WIRE_HEADER;

		for (size_t at = 8; get_le16(p + 4) == WIRE_OPEN && at + 8 <= n; at += 16)
			put_le64(m + at, get_le64(m + at) % (64 * MIB));
		p += WIRE_HEADER + n;
		size -= WIRE_HEADER + n;
	}
}

static void check_replica(const char *dir)
{
	struct err e = {0};
	uint64_t blocks;
	int r = stream_verify(dir, &blocks, &e);

	if (r == 0 || r == -ENOENT)
		return;
	/* A manifest without its disk, for instance: fine, as long as no entry is wrong. */
	must(!strstr(e.msg, "differs from its manifest"));
	must(!strstr(e.msg, "is not the one that was committed"));
}

/* A socket from which those bytes will come, and then the end. */
static int say(const uint8_t *data, size_t size, bool as_is)
{
	uint8_t *copy = malloc(size + 1);
	int fds[2], big = 1 << 20;

	must(copy && socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
	setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &big, sizeof(big));
	memcpy(copy, data, size);
	tame(copy, size);
	if (!as_is)
		repair(copy, size);
	if (send(fds[0], copy, size, MSG_DONTWAIT) < 0)
		must(size == 0);
	close(fds[0]);
	free(copy);
	return fds[1];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char dir[] = "/dev/shm/fuzz_receiver.XXXXXX";
	struct stream_receive_params p = {.link = {.run = "run-fuzz"}, .dir = dir};
	int fds[4];
	size_t n;
	bool as_is;

	if (size < 3 || size > 150000 || !mkdtemp(dir))
		return 0;
	n = (data[0] & 3u) + 1;
	as_is = data[0] & 4;
	data++;
	size--;
	for (size_t i = 0; i < n; i++) {
		size_t len = size >= 2 ? MIN((size_t)get_le16(data), size - 2) : 0;

		fds[i] = say(data + 2, len, as_is);
		data += size >= 2 ? len + 2 : 0;
		size -= size >= 2 ? len + 2 : 0;
	}
	receiver_serve_plain(&p, fds, n, NULL, NULL);
	check_replica(dir);
	must(io_remove_tree(dir, NULL) == 0);
	return 0;
}
