/*
 * Lists an initramfs: cpio archives in the "newc" format (kernel:
 * Documentation/driver-api/early-userspace/buffer-format.rst), any number of them one after the other with zeros
 * between, the last one usually compressed. The decompressors are programs; what they give is read with the same
 * reader. Sizes and names come from a stranger: each is bounded, nothing is kept.
 */
#include "guest/guest_int.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/err.h"
#include "base/io.h"
#include "base/proc.h"
#include "base/util.h"

#define CPIO_HEADER    110
#define CPIO_NAME_MAX  4096u
#define CPIO_FILES_MAX 200000u
#define INITRD_MAX     (UINT64_C(4) << 30)

/* Reads n bytes; -EPROTO when the stream ends before. NULL: throws them away. */
static int initrd_take(struct initrd_reader *r, void *buf, uint64_t n)
{
	uint8_t waste[4096];

	if (n > INITRD_MAX || r->pos > INITRD_MAX)
		return -EFBIG;
	while (n) {
		ssize_t got = r->read(r->arg, buf ? buf : waste, buf ? (size_t)n : (size_t)MIN(n, sizeof(waste)));

		if (got < 0)
			return (int)got;
		if (got == 0)
			return -EPROTO;
		if (buf)
			buf = (uint8_t *)buf + got;
		r->pos += (uint64_t)got;
		n -= (uint64_t)got;
	}
	return 0;
}

static int initrd_align(struct initrd_reader *r)
{
	return initrd_take(r, NULL, (4 - r->pos % 4) % 4);
}

static int initrd_hex8(const uint8_t *p, uint32_t *ret)
{
	uint32_t v = 0;

	for (int i = 0; i < 8; i++) {
		uint8_t c = p[i] | 0x20;

		if (p[i] >= '0' && p[i] <= '9')
			v = v << 4 | (uint32_t)(p[i] - '0');
		else if (c >= 'a' && c <= 'f')
			v = v << 4 | (uint32_t)(c - 'a' + 10);
		else
			return -EPROTO;
	}
	*ret = v;
	return 0;
}

/* One member behind its six bytes of magic. 1: the trailer. */
static int initrd_member(struct initrd_reader *r, initrd_name_fn fn, void *arg)
{
	uint8_t h[CPIO_HEADER - 6];
	char name[CPIO_NAME_MAX];
	uint32_t size, name_size;
	int rc = initrd_take(r, h, sizeof(h));

	if (rc == 0)
		rc = initrd_hex8(h + 48, &size);
	if (rc == 0)
		rc = initrd_hex8(h + 88, &name_size);
	if (rc == 0 && (name_size < 1 || name_size > CPIO_NAME_MAX))
		rc = -EPROTO;
	if (rc == 0)
		rc = initrd_take(r, name, name_size);
	if (rc < 0)
		return rc;
	if (name[name_size - 1])
		return -EPROTO;
	if (strcmp(name, "TRAILER!!!") == 0)
		return 1;
	fn(arg, name, strlen(name));
	rc = initrd_align(r);
	if (rc == 0)
		rc = initrd_take(r, NULL, size);
	return rc < 0 ? rc : initrd_align(r);
}

/* Zeros until something else; 0 at the end of the stream. */
static int initrd_skip_zeros(struct initrd_reader *r, uint8_t *ret)
{
	for (;;) {
		ssize_t got = r->read(r->arg, ret, 1);

		if (got <= 0)
			return (int)got;
		r->pos++;
		if (*ret)
			return 1;
		if (r->pos > INITRD_MAX)
			return -EFBIG;
	}
}

int initrd_read_archives(struct initrd_reader *r, initrd_name_fn fn, void *arg, uint8_t ret_magic[6], struct err *e)
{
	for (unsigned files = 0; files < CPIO_FILES_MAX; files++) {
		int rc = initrd_skip_zeros(r, ret_magic);

		if (rc == 0)
			return 0;
		if (rc == 1)
			rc = initrd_take(r, ret_magic + 1, 5);
		if (rc == 0 && memcmp(ret_magic, "070701", 6) != 0 && memcmp(ret_magic, "070702", 6) != 0)
			return 1;
		if (rc == 0)
			rc = initrd_member(r, fn, arg);
		if (rc < 0)
			return err_set(e, rc, "the initramfs is damaged at byte %llu", (unsigned long long)r->pos);
	}
	return err_set(e, -EFBIG, "the initramfs has more than %u files", CPIO_FILES_MAX);
}

struct initrd_fd {
	int fd;
	size_t at, n;
	uint8_t buf[65536];
};

static ssize_t initrd_read_fd(void *arg, void *buf, size_t n)
{
	struct initrd_fd *f = arg;

	if (f->at == f->n) {
		ssize_t got = io_read_full(f->fd, f->buf, sizeof(f->buf));

		if (got <= 0)
			return got;
		f->at = 0;
		f->n = (size_t)got;
	}
	n = MIN(n, f->n - f->at);
	memcpy(buf, f->buf + f->at, n);
	f->at += n;
	return (ssize_t)n;
}

static const char *initrd_decompressor(const uint8_t magic[6])
{
	static const struct {
		uint8_t magic[6];
		size_t n;
		const char *program;
	} known[] = {
	    {{0x1f, 0x8b}, 2, "gzip"},
	    {{0x28, 0xb5, 0x2f, 0xfd}, 4, "zstd"},
	    {{0xfd, '7', 'z', 'X', 'Z', 0}, 6, "xz"},
	    {{0x5d, 0, 0}, 3, "xz"}, /* the old lzma format, which xz reads too */
	    {{0x02, 0x21, 0x4c, 0x18}, 4, "lz4"},
	    {{'B', 'Z', 'h'}, 3, "bzip2"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (memcmp(magic, known[i].magic, known[i].n) == 0)
			return known[i].program;
	return NULL;
}

static int initrd_list_fd(int fd, initrd_name_fn fn, void *arg, uint8_t magic[6], uint64_t *ret_pos, struct err *e)
{
	_cleanup_free_ struct initrd_fd *f = calloc(1, sizeof(*f));
	struct initrd_reader r = {initrd_read_fd, f, 0};
	int rc;

	if (!f)
		return err_nomem(e);
	f->fd = fd;
	rc = initrd_read_archives(&r, fn, arg, magic, e);
	*ret_pos = r.pos;
	return rc;
}

static int initrd_list_packed(int fd, const char *program, initrd_name_fn fn, void *arg, struct err *e)
{
	const char *const argv[] = {program, "-dcq", NULL};
	_cleanup_close_ int out_r = -1, out_w = -1;
	struct proc_opts o = PROC_OPTS_INIT;
	uint8_t magic[6];
	uint64_t pos;
	pid_t pid;
	int p[2], r;

	if (pipe2(p, O_CLOEXEC) < 0)
		return err_sys(e, "cannot start '%s'", program);
	out_r = p[0];
	out_w = p[1];
	o.stdin_fd = fd;
	o.stdout_fd = out_w;
	r = proc_spawn(argv, &o, &pid, e);
	if (r < 0)
		return r;
	close(take_fd(&out_w));
	r = initrd_list_fd(out_r, fn, arg, magic, &pos, e);
	close(take_fd(&out_r));
	/* What follows the archives may be more than it could write: its status says nothing. */
	proc_stop(pid, 0);
	if (r == 1)
		r = err_set(e, -EPROTO, "the initramfs holds no cpio archive behind its compression ('%s')", program);
	return r;
}

int initrd_list(int fd, initrd_name_fn fn, void *arg, struct err *e)
{
	const char *program;
	uint8_t magic[6];
	uint64_t pos = 0;
	int r = initrd_list_fd(fd, fn, arg, magic, &pos, e);

	if (r <= 0)
		return r;
	program = initrd_decompressor(magic);
	if (!program)
		return err_set(e, -ENOTSUP,
			       "the initramfs is in a format that is not known (it begins with %02x%02x%02x%02x)",
			       magic[0], magic[1], magic[2], magic[3]);
	if (lseek(fd, (off_t)(pos - 6), SEEK_SET) < 0)
		return err_sys(e, "cannot read the initramfs");
	return initrd_list_packed(fd, program, fn, arg, e);
}
