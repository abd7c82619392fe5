/*
 * A disk that another process serves over NBD (github.com/NetworkBlockDevice/nbd, doc/proto.md). The small subset that
 * a layer needs: fixed newstyle, NBD_OPT_GO, READ, WRITE, FLUSH, WRITE_ZEROES with simple replies, one request at a
 * time. libnbd can't be linked into a static program (it wants GnuTLS and p11-kit, of which there are no archives).
 */
#include "disk/disk.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>

#include "base/endian.h"
#include "base/err.h"
#include "base/util.h"

#define NBD_MAGIC        UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define NBD_ANSWER_MAGIC UINT64_C(0x0003e889045565a9)
#define NBD_REQUEST      0x25609513u
#define NBD_REPLY        0x67446698u
#define NBD_OPT_GO       7u
#define NBD_REP_ACK      1u
#define NBD_REP_INFO     3u
#define NBD_NEWSTYLE     (1u << 0 | 1u << 1) /* fixed newstyle, no zeroes */
#define NBD_CAN          (1u << 0)           /* the flags are valid */
#define NBD_READ_ONLY    (1u << 1)
#define NBD_CAN_FLUSH    (1u << 2)
#define NBD_CAN_ZERO     (1u << 6)
#define NBD_ANSWER_MAX   4096u /* bytes of an answer to an option */
#define NBD_PIECE        (4u * MIB)
#define NBD_ZERO_PIECE   (512u * MIB)

enum nbd_command { NBD_READ, NBD_WRITE, NBD_DISC, NBD_FLUSH, NBD_ZEROES = 6 };

struct nbd {
	struct disk disk;
	pthread_mutex_t lock; /* one request at a time */
	int fd;
	bool lost; /* the conversation can't go on */
	uint64_t cookie;
};

static int nbd_lose(struct nbd *n, const char *why, struct err *e)
{
	n->lost = true;
	return err_set(e, -EIO, "the server of this disk is gone: %s", why);
}

static int nbd_send(struct nbd *n, const void *p, size_t len, int flags, struct err *e)
{
	const char *c = p;

	while (len) {
		ssize_t k = send(n->fd, c, len, MSG_NOSIGNAL | flags);

		if (k < 0 && errno == EINTR)
			continue;
		if (k <= 0)
			return nbd_lose(n, strerror(errno), e);
		c += k;
		len -= (size_t)k;
	}
	return 0;
}

static int nbd_recv(struct nbd *n, void *p, size_t len, struct err *e)
{
	char *c = p;

	while (len) {
		ssize_t k = recv(n->fd, c, len, 0);

		if (k < 0 && errno == EINTR)
			continue;
		if (k <= 0)
			return nbd_lose(n, k ? strerror(errno) : "it closed the connection", e);
		c += k;
		len -= (size_t)k;
	}
	return 0;
}

/* ---- negotiation ---- */

static int nbd_greet(struct nbd *n, struct err *e)
{
	uint8_t hello[18], flags[4];
	int r = nbd_recv(n, hello, sizeof(hello), e);

	if (r < 0)
		return r;
	if (get_be64(hello) != NBD_MAGIC || get_be64(hello + 8) != NBD_OPTION_MAGIC ||
	    (get_be16(hello + 16) & NBD_NEWSTYLE) != NBD_NEWSTYLE)
		return err_set(e, -EPROTO, "this is no NBD server of the fixed newstyle");
	put_be32(flags, NBD_NEWSTYLE);
	return nbd_send(n, flags, sizeof(flags), MSG_MORE, e);
}

static int nbd_ask(struct nbd *n, const char *export, struct err *e)
{
	uint8_t head[20], tail[2] = {0, 0}; /* no further information wanted */
	uint32_t len = (uint32_t)strlen(export);
	int r;

	put_be64(head, NBD_OPTION_MAGIC);
	put_be32(head + 8, NBD_OPT_GO);
	put_be32(head + 12, 4 + len + 2);
	put_be32(head + 16, len);
	r = nbd_send(n, head, sizeof(head), MSG_MORE, e);
	r = r ?: nbd_send(n, export, len, MSG_MORE, e);
	return r ?: nbd_send(n, tail, sizeof(tail), 0, e);
}

static int nbd_export(struct nbd *n, const uint8_t *info, struct err *e)
{
	uint16_t flags = get_be16(info + 10);

	n->disk.size = get_be64(info + 2);
	if (n->disk.size == 0 || n->disk.size > INT64_MAX)
		return err_set(e, -EPROTO, "a disk of %" PRIu64 " bytes can't be", n->disk.size);
	if (!(flags & NBD_CAN) || flags & NBD_READ_ONLY || !(flags & NBD_CAN_FLUSH) || !(flags & NBD_CAN_ZERO))
		return err_set(e, -EPROTO, "its server can't write, flush or zero it");
	return 0;
}

/* Answers until the last one. */
static int nbd_go(struct nbd *n, const char *export, struct err *e)
{
	bool known = false;
	int r = nbd_ask(n, export, e);

	while (r == 0) {
		uint8_t head[20], body[NBD_ANSWER_MAX];
		uint32_t type, len;

		r = nbd_recv(n, head, sizeof(head), e);
		if (r < 0)
			return r;
		type = get_be32(head + 12);
		len = get_be32(head + 16);
		if (get_be64(head) != NBD_ANSWER_MAGIC || get_be32(head + 8) != NBD_OPT_GO || len > sizeof(body))
			return err_set(e, -EPROTO, "its server answers what is no NBD");
		r = nbd_recv(n, body, len, e);
		if (r < 0)
			return r;
		if (type == NBD_REP_ACK)
			return known ? 0 : err_set(e, -EPROTO, "its server doesn't say how big it is");
		if (type != NBD_REP_INFO)
			return err_set(e, -ENOENT, "its server refuses it (NBD reply %u)", type & 0x7fffffffu);
		if (len == 12 && get_be16(body) == 0) {
			r = nbd_export(n, body, e);
			known = r == 0;
		}
	}
	return r;
}

/* ---- requests ---- */

static int nbd_error(uint32_t code)
{
	switch (code) {
	case 12:
		return -ENOMEM;
	case 28:
		return -ENOSPC;
	default:
		return -EIO;
	}
}

static int nbd_talk(struct nbd *n, enum nbd_command cmd, const void *out, void *in, uint64_t off, uint32_t len,
		    struct err *e)
{
	uint8_t head[28], reply[16];
	uint32_t code;
	int r;

	if (n->lost)
		return err_set(e, -EIO, "the server of this disk is gone");
	put_be32(head, NBD_REQUEST);
	put_be16(head + 4, 0);
	put_be16(head + 6, (uint16_t)cmd);
	put_be64(head + 8, ++n->cookie);
	put_be64(head + 16, off);
	put_be32(head + 24, len);
	r = nbd_send(n, head, sizeof(head), out ? MSG_MORE : 0, e);
	if (r == 0 && out)
		r = nbd_send(n, out, len, 0, e);
	r = r ?: nbd_recv(n, reply, sizeof(reply), e);
	if (r < 0)
		return r;
	if (get_be32(reply) != NBD_REPLY || get_be64(reply + 8) != n->cookie)
		return nbd_lose(n, "it answers what was not asked", e);
	code = get_be32(reply + 4);
	if (code)
		return err_set(e, nbd_error(code), "its server can't do it: %s", strerror(-nbd_error(code)));
	return in ? nbd_recv(n, in, len, e) : 0;
}

static int nbd_request(struct nbd *n, enum nbd_command cmd, const void *out, void *in, uint64_t off, uint64_t len,
		       struct err *e)
{
	uint64_t piece = cmd == NBD_ZEROES ? NBD_ZERO_PIECE : NBD_PIECE, done = 0;
	int r = 0;

	pthread_mutex_lock(&n->lock);
	do {
		uint32_t k = (uint32_t)MIN(len - done, piece);

		r = nbd_talk(n, cmd, out ? (const char *)out + done : NULL, in ? (char *)in + done : NULL, off + done,
			     k, e);
		done += k;
	} while (r == 0 && done < len);
	pthread_mutex_unlock(&n->lock);
	return r;
}

static int nbd_read(struct disk *d, void *p, size_t len, uint64_t off, struct err *e)
{
	return nbd_request((struct nbd *)d, NBD_READ, NULL, p, off, len, e);
}

static int nbd_write(struct disk *d, const void *p, size_t len, uint64_t off, struct err *e)
{
	return nbd_request((struct nbd *)d, NBD_WRITE, p, NULL, off, len, e);
}

static int nbd_zero(struct disk *d, uint64_t len, uint64_t off, struct err *e)
{
	return nbd_request((struct nbd *)d, NBD_ZEROES, NULL, NULL, off, len, e);
}

static int nbd_flush(struct disk *d, struct err *e)
{
	return nbd_request((struct nbd *)d, NBD_FLUSH, NULL, NULL, 0, 0, e);
}

static void nbd_close(struct disk *d)
{
	struct nbd *n = (struct nbd *)d;
	uint8_t bye[28] = {0};

	put_be32(bye, NBD_REQUEST);
	put_be16(bye + 6, NBD_DISC);
	if (!n->lost)
		(void)nbd_send(n, bye, sizeof(bye), 0, NULL);
	util_closep(&n->fd);
	pthread_mutex_destroy(&n->lock);
	free(n);
}

static const struct disk_ops nbd_ops = {
    .read = nbd_read, .write = nbd_write, .zero = nbd_zero, .flush = nbd_flush, .close = nbd_close};

int disk_nbd_new(int fd, const char *export, struct disk **ret, struct err *e)
{
	struct nbd *n = calloc(1, sizeof(*n));
	int r;

	must(strlen(export) < sizeof(n->disk.name));
	if (!n)
		return err_nomem(e);
	n->fd = fd;
	pthread_mutex_init(&n->lock, NULL);
	n->disk.ops = &nbd_ops;
	n->disk.sector = 512;
	snprintf(n->disk.name, sizeof(n->disk.name), "%s", export);
	r = nbd_greet(n, e);
	r = r ?: nbd_go(n, export, e);
	if (r < 0) {
		err_prefix(e, "%s", export);
		n->lost = true; /* nothing to say goodbye to */
		nbd_close(&n->disk);
		return r;
	}
	*ret = &n->disk;
	return 0;
}

bool disk_nbd_is_lost(struct disk *d)
{
	struct nbd *n = (struct nbd *)d;
	bool lost;

	must(d->ops == &nbd_ops);
	pthread_mutex_lock(&n->lock);
	lost = n->lost;
	pthread_mutex_unlock(&n->lock);
	return lost;
}
