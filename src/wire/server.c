/* The receiver's half: requests it reads (nothing in them is believed), answers it writes. */
#include <errno.h>
#include <string.h>

#include "base/endian.h"
#include "base/err.h"
#include "base/util.h"
#include "wire/wire_int.h"

static int server_malformed(const char *name, struct err *e)
{
	return err_set(e, -EBADMSG, "a malformed %s message came", name);
}

int wire_get_hello(const struct wire_frame *f, struct wire_hello *ret, struct err *e)
{
	const uint8_t *p = f->payload;

	if (f->type != WIRE_HELLO || (p[4] != WIRE_CONTROL && p[4] != WIRE_DATA) || p[5] >= WIRE_CONNECTIONS_MAX ||
	    get_le16(p + 6))
		return server_malformed("HELLO", e);
	ret->min_version = get_le16(p);
	ret->max_version = get_le16(p + 2);
	ret->role = (enum wire_role)p[4];
	ret->index = p[5];
	memcpy(ret->session, p + 8, WIRE_SESSION_SIZE);
	return 0;
}

int wire_get_open(const struct wire_frame *f, struct wire_open *ret, struct err *e)
{
	const uint8_t *p = f->payload;
	uint64_t blocks = 0;

	if (p[1] == 0 || p[1] > WIRE_DISKS_MAX || f->length != 8 + 16u * p[1] || get_le16(p + 2) ||
	    get_le32(p + 4) != WIRE_BLOCK)
		return server_malformed("OPEN", e);
	ret->digest = p[0];
	ret->ndisks = p[1];
	for (size_t i = 0; i < ret->ndisks; i++) {
		struct wire_disk *d = &ret->disks[i];

		d->size = get_le64(p + 8 + 16 * i);
		d->sector = get_le32(p + 16 + 16 * i);
		if (get_le32(p + 20 + 16 * i) || d->sector < 512 || d->sector > WIRE_BLOCK ||
		    (d->sector & (d->sector - 1)) || d->size == 0 || d->size % 512)
			return server_malformed("OPEN", e);
		if (d->size > WIRE_BLOCKS_MAX * WIRE_BLOCK)
			return err_set(e, -EFBIG, "disk %zu is larger than this receiver can take", i);
		blocks += util_div_up(d->size, WIRE_BLOCK);
	}
	if (blocks > WIRE_BLOCKS_MAX)
		return err_set(e, -EFBIG, "the disks together are larger than this receiver can take");
	return 0;
}

int wire_get_used(const struct wire_frame *f, struct wire_used *ret, struct err *e)
{
	const uint8_t *p = f->payload;

	ret->disk = get_le16(p);
	ret->last = get_le16(p + 2) & 1;
	ret->nbits = get_le32(p + 4);
	ret->first = get_le64(p + 8);
	ret->bits = p + 16;
	if (get_le16(p + 2) > 1 || ret->nbits > WIRE_USED_BYTES * 8 || f->length != 16 + (ret->nbits + 7) / 8)
		return server_malformed("USED", e);
	return 0;
}

int wire_get_ask(const struct wire_frame *f, struct wire_ask *ret, struct err *e)
{
	ret->disk = get_le16(f->payload);
	ret->window = get_le32(f->payload + 4);
	return get_le16(f->payload + 2) ? server_malformed("ASK", e) : 0;
}

int wire_get_blocks(const struct wire_frame *f, size_t digest_size, struct wire_blocks *ret, struct err *e)
{
	const uint8_t *p = f->payload;
	size_t digests;

	ret->disk = get_le16(p);
	ret->data = get_le16(p + 2);
	ret->zero = get_le16(p + 4);
	ret->encoding = p[6];
	ret->first = get_le64(p + 8);
	digests = (size_t)__builtin_popcount(ret->data) * digest_size;
	if (p[7] || (ret->encoding != WIRE_RAW && ret->encoding != WIRE_ZSTD) || (ret->data & ret->zero) ||
	    !(ret->data | ret->zero) || ret->first % WIRE_CHUNK || f->length < WIRE_BLOCKS_HEAD + digests)
		return server_malformed("BLOCKS", e);
	ret->digests = p + WIRE_BLOCKS_HEAD;
	ret->packed = ret->digests + digests;
	ret->npacked = (uint32_t)(f->length - WIRE_BLOCKS_HEAD - digests);
	if (!ret->data && ret->npacked)
		return server_malformed("BLOCKS", e);
	return 0;
}

int wire_get_commit(const struct wire_frame *f, size_t ndisks, struct wire_commit *ret, struct err *e)
{
	if (f->length != 40 * ndisks)
		return server_malformed("COMMIT", e);
	ret->n = ndisks;
	for (size_t i = 0; i < ndisks; i++) {
		ret->disks[i].used = get_le64(f->payload + 40 * i);
		memcpy(ret->disks[i].statement, f->payload + 40 * i + 8, 32);
	}
	return 0;
}

uint32_t wire_put_welcome(uint16_t version, uint8_t *buf)
{
	memset(buf, 0, 8);
	put_le16(buf, version);
	return 8;
}

uint32_t wire_put_opened(uint64_t free_bytes, const uint8_t statements[][WIRE_STATEMENT_SIZE], size_t ndisks,
			 uint8_t *buf)
{
	size_t bytes = statements ? ndisks * WIRE_STATEMENT_SIZE : 0;

	put_le64(buf, free_bytes);
	if (bytes)
		memcpy(buf + 8, statements, bytes);
	return (uint32_t)(8 + bytes);
}

uint32_t wire_put_used_ok(uint64_t needed, uint64_t free_bytes, uint8_t *buf)
{
	put_le64(buf, needed);
	put_le64(buf + 8, free_bytes);
	return 16;
}

uint32_t wire_put_digests_head(const struct wire_ask *m, uint8_t *buf)
{
	put_le16(buf, m->disk);
	put_le16(buf + 2, 0);
	put_le32(buf + 4, m->window);
	return 8;
}
