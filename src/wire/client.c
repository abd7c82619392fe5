/* The sender's half: requests it writes, answers it reads. */
#include <errno.h>
#include <string.h>

#include "base/endian.h"
#include "base/err.h"
#include "base/util.h"
#include "wire/wire_int.h"

uint32_t wire_put_hello(const struct wire_hello *m, uint8_t *buf)
{
	put_le16(buf, m->min_version);
	put_le16(buf + 2, m->max_version);
	buf[4] = (uint8_t)m->role;
	buf[5] = m->index;
	put_le16(buf + 6, 0);
	memcpy(buf + 8, m->session, WIRE_SESSION_SIZE);
	return 24;
}

uint32_t wire_put_open(const struct wire_open *m, uint8_t *buf)
{
	must(m->ndisks > 0 && m->ndisks <= WIRE_DISKS_MAX);
	buf[0] = m->digest;
	buf[1] = m->ndisks;
	put_le16(buf + 2, 0);
	put_le32(buf + 4, WIRE_BLOCK);
	for (size_t i = 0; i < m->ndisks; i++) {
		uint8_t *p = buf + 8 + 16 * i;

		put_le64(p, m->disks[i].size);
		put_le32(p + 8, m->disks[i].sector);
		put_le32(p + 12, 0);
	}
	return 8 + 16u * m->ndisks;
}

uint32_t wire_put_used_head(const struct wire_used *m, uint8_t *buf)
{
	put_le16(buf, m->disk);
	put_le16(buf + 2, m->last);
	put_le32(buf + 4, m->nbits);
	put_le64(buf + 8, m->first);
	return 16;
}

uint32_t wire_put_ask(const struct wire_ask *m, uint8_t *buf)
{
	put_le16(buf, m->disk);
	put_le16(buf + 2, 0);
	put_le32(buf + 4, m->window);
	return 8;
}

uint32_t wire_put_blocks_head(const struct wire_blocks *m, uint8_t *buf)
{
	put_le16(buf, m->disk);
	put_le16(buf + 2, m->data);
	put_le16(buf + 4, m->zero);
	buf[6] = m->encoding;
	buf[7] = 0;
	put_le64(buf + 8, m->first);
	return WIRE_BLOCKS_HEAD;
}

uint32_t wire_put_commit(const struct wire_commit *m, uint8_t *buf)
{
	for (size_t i = 0; i < m->n; i++) {
		put_le64(buf + 40 * i, m->disks[i].used);
		memcpy(buf + 40 * i + 8, m->disks[i].statement, 32);
	}
	return (uint32_t)(40 * m->n);
}

int wire_get_welcome(const struct wire_frame *f, uint16_t *ret_version, struct err *e)
{
	*ret_version = get_le16(f->payload);
	return 0;
}

int wire_get_opened(const struct wire_frame *f, unsigned version, size_t ndisks, uint64_t *ret_free,
		    uint8_t statements[][WIRE_STATEMENT_SIZE], struct err *e)
{
	size_t bytes = version < 2 ? 0 : ndisks * WIRE_STATEMENT_SIZE;

	if (f->length != 8 + bytes)
		return err_set(e, -EBADMSG, "an OPENED message of the wrong size came");
	*ret_free = get_le64(f->payload);
	memset(statements, 0, ndisks * WIRE_STATEMENT_SIZE);
	memcpy(statements, f->payload + 8, bytes);
	return 0;
}

int wire_get_used_ok(const struct wire_frame *f, uint64_t *ret_needed, uint64_t *ret_free, struct err *e)
{
	*ret_needed = get_le64(f->payload);
	*ret_free = get_le64(f->payload + 8);
	return 0;
}

int wire_get_digests(const struct wire_frame *f, const struct wire_ask *asked, size_t bytes,
		     const uint8_t **ret_digests, struct err *e)
{
	if (get_le16(f->payload) != asked->disk || get_le16(f->payload + 2) ||
	    get_le32(f->payload + 4) != asked->window)
		return err_set(e, -EBADMSG, "the receiver answered about another window");
	if (f->length != 8 && f->length != 8 + bytes)
		return err_set(e, -EBADMSG, "the receiver answered with %u bytes of digests", f->length - 8);
	*ret_digests = f->length == 8 ? NULL : f->payload + 8;
	return 0;
}
