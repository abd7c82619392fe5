/* The receiver's side of a data connection: digests asked for, blocks written, flushes answered, strictly in order. */
#include <errno.h>
#include <string.h>

#include "base/str.h"
#include "base/util.h"
#include "stream/receiver_int.h"

#define DATA_SPACE_EVERY (16u * MIB) /* bytes between looks at the free space */

static int data_disk(struct receiver_conn *c, unsigned disk, struct replica **ret, struct err *e)
{
	if (disk >= c->rv->ndisks)
		return err_set(e, -EBADMSG, "disk '%u' is not one of this run's", disk);
	*ret = c->rv->disks[disk];
	return 0;
}

static int data_ask(struct receiver_conn *c, const struct wire_frame *f, struct err *e)
{
	uint8_t head[16], digests[WIRE_WINDOW * CODEC_DIGEST_MAX];
	struct iovec iov[2];
	struct wire_ask m;
	struct replica *d = NULL;
	size_t n;
	bool known;
	int r = wire_get_ask(f, &m, e);

	if (r == 0)
		r = data_disk(c, m.disk, &d, e);
	if (r == 0)
		r = replica_digests(d, m.window, digests, &n, &known, e);
	if (r < 0)
		return r;
	iov[0] = (struct iovec){head, wire_put_digests_head(&m, head)};
	iov[1] = (struct iovec){digests, known ? n : 0};
	return wire_send(c->link, WIRE_DIGESTS, iov, known ? 2 : 1, e);
}

/* The blocks as they are on the disk, in c->unpacked or in the frame. */
static int data_unpack(struct receiver_conn *c, const struct wire_blocks *m, size_t bytes, const uint8_t **ret,
		       struct err *e)
{
	if (m->encoding == WIRE_RAW || bytes == 0) {
		if (m->npacked != bytes)
			return err_set(e, -EBADMSG, "a BLOCKS message of the wrong size came");
		*ret = m->packed;
		return 0;
	}
	*ret = c->unpacked;
	return codec_unpack(c->unpacker, m->packed, m->npacked, c->unpacked, bytes, e);
}

/* Full means full or too close to it; either way the error names needed and free bytes. */
static int data_space(struct receiver_conn *c, uint64_t bytes, struct err *e)
{
	c->since_check += bytes;
	if (!c->rv->p->min_free || c->since_check < DATA_SPACE_EVERY)
		return 0;
	c->since_check = 0;
	return receiver_free(c->rv) < DATA_SPACE_EVERY ? receiver_no_space(c->rv, DATA_SPACE_EVERY, e) : 0;
}

static int data_full(struct receiver_conn *c, struct err *e)
{
	uint64_t needed = 0, n;

	for (size_t i = 0; i < c->rv->ndisks; i++)
		if (c->rv->used[i].nbits && replica_needs(c->rv->disks[i], &c->rv->used[i], &n, NULL) == 0)
			needed += n;
	return receiver_no_space(c->rv, needed, e);
}

static int data_blocks(struct receiver_conn *c, const struct wire_frame *f, struct err *e)
{
	struct wire_blocks m = {.disk = f->length >= 2 ? (uint16_t)(f->payload[0] | f->payload[1] << 8) : 0};
	const uint8_t *data = NULL;
	struct replica *d = NULL;
	size_t bytes;
	int r = data_disk(c, m.disk, &d, e);

	if (r == 0)
		r = wire_get_blocks(f, d->manifest.digest->size, &m, e);
	if (r == 0)
		r = replica_span(d, &m, &bytes, e);
	if (r == 0)
		r = data_unpack(c, &m, bytes, &data, e);
	if (r == 0)
		r = replica_check(d, &m, data, e);
	if (r == 0)
		r = data_space(c, bytes, e);
	if (r < 0)
		return r;
	r = replica_write(d, &m, data, e);
	if (r == -ENOSPC || r == -EDQUOT)
		return data_full(c, e);
	if (r == 0)
		c->rv->bytes_written += bytes;
	return r;
}

static int data_frame(struct receiver_conn *c, const struct wire_frame *f, struct err *e)
{
	uint8_t buf[16];

	switch (f->type) {
	case WIRE_ASK:
		return data_ask(c, f, e);
	case WIRE_BLOCKS:
		return data_blocks(c, f, e);
	case WIRE_FLUSH:
		return wire_say(c->link, WIRE_FLUSHED, buf, wire_put_cookie(wire_get_cookie(f), buf), e);
	default:
		return err_set(e, -EBADMSG, "a frame came that has no place on a data connection");
	}
}

int data_serve(struct receiver_conn *c, struct err *e)
{
	int r = codec_unpacker_new(&c->unpacker, e);

	if (r < 0)
		return r;
	c->unpacked = malloc(WIRE_CHUNK * WIRE_BLOCK);
	if (!c->unpacked)
		return err_nomem(e);
	for (;;) {
		struct wire_frame f;

		r = wire_recv(c->link, 0, &f, e);
		if (r == -EPIPE)
			return 0;
		if (r == 0 && f.type == WIRE_BYE)
			return 0;
		if (r == 0)
			r = data_frame(c, &f, e);
		if (r < 0)
			return r;
	}
}
