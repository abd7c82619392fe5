/* Frames: a header of 32 bytes, a payload bounded by its type, a sequence number and a checksum. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#define XXH_STATIC_LINKING_ONLY /* the state on the stack */
#include <xxhash.h>

#include "base/endian.h"
#include "base/err.h"
#include "base/util.h"
#include "wire/wire_int.h"

#define TO_SERVER (1u << 0)
#define TO_CLIENT (1u << 1)
#define TO_BOTH   (TO_SERVER | TO_CLIENT)

/* The longest payloads: digests of a window, and a chunk of blocks with their digests. */
#define FRAME_DIGESTS_MAX (8u + WIRE_WINDOW * 32u)
#define FRAME_BLOCKS_MAX  (WIRE_BLOCKS_HEAD + WIRE_CHUNK * 32u + WIRE_CHUNK * WIRE_BLOCK)

static const struct {
	const char *name;
	uint32_t min, max;
	unsigned to;
} frame_types[WIRE_TYPES] = {
    [WIRE_HELLO] = {"HELLO", 24, 24, TO_SERVER},
    [WIRE_WELCOME] = {"WELCOME", 8, 8, TO_CLIENT},
    [WIRE_OPEN] = {"OPEN", 8 + 16, 8 + 16 * WIRE_DISKS_MAX, TO_SERVER},
    [WIRE_OPENED] = {"OPENED", 8, 8 + WIRE_STATEMENT_SIZE *WIRE_DISKS_MAX, TO_CLIENT},
    [WIRE_USED] = {"USED", 16, 16 + WIRE_USED_BYTES, TO_SERVER},
    [WIRE_USED_OK] = {"USED_OK", 16, 16, TO_CLIENT},
    [WIRE_ASK] = {"ASK", 8, 8, TO_SERVER},
    [WIRE_DIGESTS] = {"DIGESTS", 8, FRAME_DIGESTS_MAX, TO_CLIENT},
    [WIRE_BLOCKS] = {"BLOCKS", WIRE_BLOCKS_HEAD, FRAME_BLOCKS_MAX, TO_SERVER},
    [WIRE_FLUSH] = {"FLUSH", 8, 8, TO_SERVER},
    [WIRE_FLUSHED] = {"FLUSHED", 8, 8, TO_CLIENT},
    [WIRE_SYNC] = {"SYNC", 0, 0, TO_SERVER},
    [WIRE_SYNCED] = {"SYNCED", 0, 0, TO_CLIENT},
    [WIRE_COMMIT] = {"COMMIT", 40, 40 * WIRE_DISKS_MAX, TO_SERVER},
    [WIRE_COMMITTED] = {"COMMITTED", 0, 0, TO_CLIENT},
    [WIRE_PING] = {"PING", 8, 8, TO_SERVER},
    [WIRE_PONG] = {"PONG", 8, 8, TO_CLIENT},
    [WIRE_WAIT] = {"WAIT", 0, 0, TO_CLIENT},
    [WIRE_ERROR] = {"ERROR", 4, 4 + WIRE_MESSAGE_MAX, TO_BOTH},
    [WIRE_BYE] = {"BYE", 0, 0, TO_SERVER},
};

/*
 * The checksum covers the first 24 bytes of the header and the payload: XXH3-64 of the payload, seeded with the XXH3-64
 * of those 24 bytes.
 */
static uint64_t frame_check(const uint8_t *header, const struct iovec *iov, size_t n)
{
	uint64_t seed = XXH3_64bits(header, 24);
	XXH3_state_t s;

	if (n == 1)
		return XXH3_64bits_withSeed(iov->iov_base, iov->iov_len, seed);
	memset(&s, 0, sizeof(s));
	XXH3_64bits_reset_withSeed(&s, seed);
	for (size_t i = 0; i < n; i++)
		XXH3_64bits_update(&s, iov[i].iov_base, iov[i].iov_len);
	return XXH3_64bits_digest(&s);
}

int wire_send(struct wire_link *l, enum wire_type type, const struct iovec *iov, size_t n, struct err *e)
{
	uint8_t h[WIRE_HEADER] = {0};
	uint64_t len = 0;
	int r;

	must(type > 0 && type < WIRE_TYPES && n <= 4);
	for (size_t i = 0; i < n; i++)
		len += iov[i].iov_len;
	must(len >= frame_types[type].min && len <= frame_types[type].max);
	put_le32(h, WIRE_MAGIC);
	put_le16(h + 4, (uint16_t)type);
	put_le32(h + 8, (uint32_t)len);
	put_le64(h + 16, l->tx_seq++);
	put_le64(h + 24, frame_check(h, iov, n));
	r = link_write_all(l, h, sizeof(h), e);
	for (size_t i = 0; r == 0 && i < n; i++)
		r = link_write_all(l, iov[i].iov_base, iov[i].iov_len, e);
	return r < 0 ? r : link_flush(l, e);
}

int wire_say(struct wire_link *l, enum wire_type type, const uint8_t *buf, uint32_t n, struct err *e)
{
	struct iovec iov = {.iov_base = (void *)(uintptr_t)buf, .iov_len = n};

	return wire_send(l, type, &iov, 1, e);
}

static int frame_check_header(const struct wire_link *l, const uint8_t *h, struct err *e)
{
	unsigned type = get_le16(h + 4);
	uint32_t len = get_le32(h + 8);

	if (get_le32(h) != WIRE_MAGIC)
		return err_set(e, -EBADMSG, "what came is not a frame of this protocol");
	if (type == 0 || type >= WIRE_TYPES || !(frame_types[type].to & (l->server ? TO_SERVER : TO_CLIENT)))
		return err_set(e, -EBADMSG, "a frame of unknown type '%u' came", type);
	if (get_le16(h + 6) || get_le32(h + 12))
		return err_set(e, -EBADMSG, "reserved bits are set in a %s frame", frame_types[type].name);
	if (len < frame_types[type].min || len > frame_types[type].max)
		return err_set(e, -EBADMSG, "a %s frame of %u bytes came", frame_types[type].name, len);
	if (get_le64(h + 16) != l->rx_seq)
		return err_set(e, -EBADMSG, "frames came out of order or again");
	return 0;
}

static int frame_grow(struct wire_link *l, size_t want, struct err *e)
{
	uint8_t *p;

	if (want <= l->rx_size)
		return 0;
	p = realloc(l->rx, want);
	if (!p)
		return err_nomem(e);
	l->rx = p;
	l->rx_size = want;
	return 0;
}

static int frame_recv(struct wire_link *l, double wait, struct wire_frame *ret, struct err *e)
{
	uint8_t h[WIRE_HEADER];
	struct iovec iov;
	unsigned type;
	uint32_t len;
	int r;

	r = link_read_all(l, h, sizeof(h), wait, e);
	if (r < 0)
		return r;
	r = frame_check_header(l, h, e);
	if (r < 0)
		return r;
	type = get_le16(h + 4);
	len = get_le32(h + 8);
	/* Small types share what small needs; only BLOCKS and USED grow it, to their own bound. */
	r = frame_grow(l, len <= WIRE_SMALL_MAX ? WIRE_SMALL_MAX : frame_types[type].max, e);
	if (r == 0 && len)
		r = link_read_all(l, l->rx, len, l->env.stall, e);
	if (r == -EPIPE)
		return err_set(e, -ECONNRESET, "the connection was cut within a frame");
	l->broken |= r < 0;
	if (r < 0)
		return r;
	iov = (struct iovec){.iov_base = l->rx, .iov_len = len};
	if (get_le64(h + 24) != frame_check(h, &iov, 1))
		return err_set(e, -EBADMSG, "a %s frame came damaged", frame_types[type].name);
	l->rx_seq++;
	*ret = (struct wire_frame){.type = (enum wire_type)type, .payload = l->rx, .length = len};
	return 0;
}

int wire_recv(struct wire_link *l, double wait, struct wire_frame *ret, struct err *e)
{
	int r;

	if (l->broken)
		return err_set(e, -EBADMSG, "the connection has already failed");
	r = frame_recv(l, wait, ret, e);
	/* After a time-out before the first byte the link is still whole, otherwise we don't know where a frame begins.
	 */
	if (r < 0 && r != -ETIMEDOUT)
		l->broken = true;
	return r;
}

/* ---- what both halves say ---- */
static const struct {
	const char *name;
	int code;
	bool temporary;
} frame_codes[WIRE_CODES] = {
    [WIRE_E_PROTOCOL] = {"protocol", EPROTO, false},
    [WIRE_E_VERSION] = {"version", EPROTONOSUPPORT, false},
    [WIRE_E_NO_SESSION] = {"no_session", ESTALE, true},
    [WIRE_E_BUSY] = {"busy", EBUSY, true},
    [WIRE_E_DISKS] = {"disks", EFBIG, false},
    [WIRE_E_NO_SPACE] = {"no_space", ENOSPC, true},
    [WIRE_E_IO] = {"io", EREMOTEIO, false},
    [WIRE_E_MISMATCH] = {"mismatch", EILSEQ, false},
    [WIRE_E_TAKEN_OVER] = {"taken_over", EALREADY, false},
    [WIRE_E_INTERNAL] = {"internal", ENOMEM, true},
};

const char *wire_code_name(unsigned code)
{
	return code < WIRE_CODES ? frame_codes[code].name : NULL;
}

int wire_code_errno(unsigned code)
{
	return code && code < WIRE_CODES ? -frame_codes[code].code : -EPROTO;
}

bool wire_code_temporary(unsigned code)
{
	return code < WIRE_CODES && frame_codes[code].temporary;
}

unsigned wire_code_of(int errno_code)
{
	for (unsigned i = 1; i < WIRE_CODES; i++)
		if (frame_codes[i].code == -errno_code)
			return i;
	if (errno_code == -EBADMSG)
		return WIRE_E_PROTOCOL;
	if (errno_code == -EDQUOT || errno_code == -EFBIG)
		return WIRE_E_NO_SPACE;
	return WIRE_E_IO;
}

uint32_t wire_put_error(unsigned code, const char *message, uint8_t *buf)
{
	size_t n = strnlen(message, WIRE_MESSAGE_MAX);

	put_le16(buf, (uint16_t)code);
	put_le16(buf + 2, wire_code_temporary(code));
	memcpy(buf + 4, message, n);
	return (uint32_t)(4 + n);
}

/* The text will be shown to people and written to logs: control characters don't pass. */
int wire_get_error(const struct wire_frame *f, struct wire_error *ret, struct err *e)
{
	size_t n = f->length - 4;

	ret->code = get_le16(f->payload);
	ret->temporary = get_le16(f->payload + 2) & 1;
	memcpy(ret->message, f->payload + 4, n);
	ret->message[n] = '\0';
	for (size_t i = 0; i < n; i++)
		if ((unsigned char)ret->message[i] < 0x20 || ret->message[i] == 0x7f)
			ret->message[i] = '?';
	return 0;
}

uint32_t wire_put_cookie(uint64_t cookie, uint8_t *buf)
{
	put_le64(buf, cookie);
	return 8;
}

uint64_t wire_get_cookie(const struct wire_frame *f)
{
	return get_le64(f->payload);
}
