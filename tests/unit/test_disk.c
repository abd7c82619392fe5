#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/crc32.h"
#include "base/err.h"
#include "base/proc.h"
#include "base/util.h"
#include "disk/disk.h"

static void test_crc(void **state)
{
	/* The check values of the catalogue of parametrised CRC algorithms. */
	assert_int_equal(~crc32(~0u, "123456789", 9), 0xcbf43926);
	assert_int_equal(~crc32_castagnoli(~0u, "123456789", 9), 0xe3069283);
	assert_int_equal(crc16(0, "123456789", 9), 0xbb3d);
	/* In pieces it is the same. */
	assert_int_equal(~crc32_castagnoli(crc32_castagnoli(~0u, "12345", 5), "6789", 4), 0xe3069283);
}

/* A file in the build folder (tmpfs may lack direct I/O) with byte i = i * 7 + i / 256. */
static void make_file(char *path, size_t path_size, size_t size)
{
	int fd;

	snprintf(path, path_size, "test_disk_XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	for (size_t i = 0; i < size; i++) {
		uint8_t b = (uint8_t)(i * 7 + i / 256);

		if (i % 65536 == 0)
			assert_int_equal(lseek(fd, (off_t)i, SEEK_SET), (off_t)i);
		assert_int_equal(write(fd, &b, 1), 1);
	}
	close(fd);
}

static void check_bytes(const uint8_t *p, size_t n, uint64_t off)
{
	for (size_t i = 0; i < n; i++)
		assert_int_equal(p[i], (uint8_t)((off + i) * 7 + (off + i) / 256));
}

static void try_reads(const char *path, unsigned flags, size_t size)
{
	static const struct {
		size_t off, len;
	} cases[] = {
	    {0, 1},       {0, 4096},  {1, 4095},  {4095, 2},     {511, 8193},
	    {4096, 8192}, {0, 70001}, {69999, 2}, {65536, 4465}, {70001, 0},
	};
	_cleanup_(disk_closep) struct disk *d = NULL;
	_cleanup_free_ uint8_t *buf = NULL;
	struct err e = {0};

	assert_int_equal(posix_memalign((void **)&buf, 4096, 131072), 0);
	assert_int_equal(disk_open(path, flags, &d, &e), 0);
	assert_int_equal(d->size, size);
	assert_string_equal(d->name, path);
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		for (size_t shift = 0; shift < 2; shift++) {
			memset(buf, 0xee, 131072);
			assert_int_equal(disk_read(d, buf + shift, cases[i].len, cases[i].off, &e), 0);
			check_bytes(buf + shift, cases[i].len, cases[i].off);
			assert_int_equal(buf[shift + cases[i].len], 0xee);
		}
	}
	assert_int_equal(disk_read(d, buf, 2, size - 1, &e), -ERANGE);
	assert_int_equal(disk_read(d, buf, 1, UINT64_MAX, &e), -ERANGE);
	assert_non_null(strstr(e.msg, path));
	if (!(flags & DISK_WRITE))
		assert_int_equal(disk_write(d, buf, 1, 0, &e), -EROFS);
}

static void test_file_reads(void **state)
{
	char path[32];

	make_file(path, sizeof(path), 70001);
	try_reads(path, 0, 70001);
	try_reads(path, DISK_DIRECT, 70001);
	try_reads(path, DISK_DIRECT | DISK_WRITE, 70001);
	unlink(path);
}

static void test_file_writes(void **state)
{
	char path[32];

	make_file(path, sizeof(path), 20000);
	for (unsigned flags = DISK_WRITE; flags <= (DISK_WRITE | DISK_DIRECT); flags += DISK_DIRECT) {
		_cleanup_(disk_closep) struct disk *d = NULL;
		_cleanup_free_ uint8_t *buf = NULL;
		uint8_t small[3] = {1, 2, 3}, back[5000];
		struct err e = {0};

		assert_int_equal(posix_memalign((void **)&buf, 4096, 8192), 0);
		memset(buf, 0x55, 8192);
		assert_int_equal(disk_open(path, flags, &d, &e), 0);
		assert_int_equal(disk_write(d, small, 3, 19997, &e), 0);
		assert_int_equal(disk_write(d, buf, 4096, 4096, &e), 0);
		assert_int_equal(disk_write(d, buf + 1, 4096, 8193, &e), 0);
		assert_int_equal(disk_flush(d, &e), 0);
		assert_int_equal(disk_read(d, back, 5000, 4095, &e), 0);
		check_bytes(back, 1, 4095);
		assert_memory_equal(back + 1, buf, 4096);
		assert_int_equal(disk_read(d, back, 3, 19997, &e), 0);
		assert_memory_equal(back, small, 3);
		assert_int_equal(disk_read(d, back, 5, 8191, &e), 0);
		check_bytes(back + 1, 1, 8192);
		assert_int_equal(back[2], 0x55);
		assert_int_equal(disk_write(d, buf, 10, 19995, &e), -ERANGE);
	}
	unlink(path);
}

static void test_open_fails(void **state)
{
	struct disk *d = NULL;
	struct err e = {0};

	assert_int_equal(disk_open("/nowhere/sda", 0, &d, &e), -ENOENT);
	assert_non_null(strstr(e.msg, "'/nowhere/sda'"));
	assert_int_equal(disk_open("/dev/null", 0, &d, &e), -ENOTBLK);
	assert_int_equal(disk_open("/tmp", 0, &d, &e), -ENOTBLK);
	assert_null(d);
}

static void test_shrunk_file(void **state)
{
	_cleanup_(disk_closep) struct disk *d = NULL;
	struct err e = {0};
	uint8_t b[100];
	char path[32];

	make_file(path, sizeof(path), 9000);
	assert_int_equal(disk_open(path, 0, &d, &e), 0);
	assert_int_equal(truncate(path, 100), 0);
	assert_int_equal(disk_read(d, b, 100, 50, &e), -EIO);
	assert_non_null(strstr(e.msg, path));
	unlink(path);
}

static void test_memory_is_sparse(void **state)
{
	_cleanup_(disk_closep) struct disk *d = NULL;
	uint8_t b[4] = {1, 2, 3, 4}, back[6];

	assert_int_equal(disk_memory_new(UINT64_C(1) << 40, 4096, &d, NULL), 0);
	assert_int_equal(disk_write(d, b, 4, (UINT64_C(1) << 40) - 5, NULL), 0);
	assert_int_equal(disk_read(d, back, 6, (UINT64_C(1) << 40) - 6, NULL), 0);
	assert_memory_equal(back, "\0\1\2\3\4\0", 6);
}

static void test_view(void **state)
{
	_cleanup_(disk_closep) struct disk *a = NULL, *b = NULL, *v = NULL;
	struct disk *bad = NULL;
	struct disk_extent map[3];
	struct err e = {0};
	uint8_t buf[10] = "abcdefghi", back[10] = {0};

	assert_int_equal(disk_memory_new(100, 512, &a, NULL), 0);
	assert_int_equal(disk_memory_new(100, 4096, &b, NULL), 0);
	map[0] = (struct disk_extent){0, 3, a, 97};
	map[1] = (struct disk_extent){3, 2, b, 0};
	map[2] = (struct disk_extent){5, 5, a, 10};
	assert_int_equal(disk_view_new("v", map, 3, &v, &e), 0);
	assert_int_equal(v->size, 10);
	assert_int_equal(v->sector, 4096);
	assert_int_equal(disk_write(v, buf, 10, 0, &e), 0);
	assert_int_equal(disk_read(a, back, 3, 97, &e), 0);
	assert_memory_equal(back, "abc", 3);
	assert_int_equal(disk_read(b, back, 2, 0, &e), 0);
	assert_memory_equal(back, "de", 2);
	for (size_t off = 0; off < 10; off++) {
		assert_int_equal(disk_read(v, back, 10 - off, off, &e), 0);
		assert_memory_equal(back, buf + off, 10 - off);
	}
	assert_int_equal(disk_read(v, back, 2, 9, &e), -ERANGE);
	map[1].logical = 4; /* a gap */
	assert_int_equal(disk_view_new("v", map, 3, &bad, &e), -EINVAL);
	map[1].logical = 3;
	map[2].offset = 96; /* beyond the lower disk */
	assert_int_equal(disk_view_new("v", map, 3, &bad, &e), -ERANGE);
	map[2].offset = UINT64_MAX;
	assert_int_equal(disk_view_new("v", map, 3, &bad, &e), -ERANGE);
}

static void test_fault(void **state)
{
	_cleanup_(disk_closep) struct disk *m = NULL, *twice = NULL, *always = NULL;
	struct err e = {0};
	uint8_t b[100];

	assert_int_equal(disk_memory_new(1000, 512, &m, NULL), 0);
	assert_int_equal(disk_fault_new(m, 512, 10, 2, &twice, &e), 0);
	assert_int_equal(disk_read(twice, b, 100, 412, &e), 0);
	assert_int_equal(disk_read(twice, b, 100, 413, &e), -EIO);
	assert_non_null(strstr(e.msg, "offset 413"));
	assert_int_equal(disk_read(twice, b, 1, 521, &e), -EIO);
	assert_int_equal(disk_read(twice, b, 1, 521, &e), 0);
	assert_int_equal(disk_fault_new(m, 0, 1, 0, &always, &e), 0);
	for (int i = 0; i < 5; i++)
		assert_int_equal(disk_read(always, b, 1, 0, &e), -EIO);
	assert_int_equal(disk_read(always, b, 1, 1, &e), 0);
}

/* ---- NBD, against qemu-storage-daemon ---- */

#define LAYER_SIZE (64 * 1024 * 1024 + 512)

struct nbd_rig {
	char dir[64], base[96], layer[96];
	pid_t server;
};

static void rig_run(const char *const argv[])
{
	struct err e = {0};

	if (proc_run(argv, 65536, NULL, &e) < 0)
		fail_msg("%s", e.msg);
}

/* A base full of 0xaa and an empty layer on it. */
static void rig_make(struct nbd_rig *g)
{
	char fill[64];

	snprintf(g->dir, sizeof(g->dir), "test_nbd_XXXXXX");
	assert_non_null(mkdtemp(g->dir));
	snprintf(g->base, sizeof(g->base), "%s/base.raw", g->dir);
	snprintf(g->layer, sizeof(g->layer), "%s/layer.qcow2", g->dir);
	snprintf(fill, sizeof(fill), "write -P 0xaa 0 %d", LAYER_SIZE);
	int fd = open(g->base, O_RDWR | O_CREAT, 0600);
	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, LAYER_SIZE), 0);
	close(fd);
	rig_run((const char *const[]){"qemu-io", "-f", "raw", "-c", fill, g->base, NULL});
	rig_run((const char *const[]){"qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw",
				      g->layer, NULL});
}

/* Serves the layer; returns the connected socket. */
static int rig_serve(struct nbd_rig *g)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	int l = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), c = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char server[64], blockdev[256];
	const char *argv[] = {"qemu-storage-daemon",
			      "--blockdev",
			      blockdev,
			      "--nbd-server",
			      server,
			      "--export",
			      "nbd,id=disk0,node-name=disk0,name=disk0,writable=on",
			      NULL};
	struct proc_opts o = PROC_OPTS_INIT;
	struct err e = {0};

	snprintf(at.sun_path, sizeof(at.sun_path), "%s/socket", g->dir);
	assert_int_equal(bind(l, (struct sockaddr *)&at, sizeof(at)), 0);
	assert_int_equal(listen(l, 4), 0);
	assert_int_equal(connect(c, (struct sockaddr *)&at, sizeof(at)), 0);
	unlink(at.sun_path);
	snprintf(server, sizeof(server), "addr.type=fd,addr.str=%d", l);
	snprintf(blockdev, sizeof(blockdev),
		 "driver=qcow2,node-name=disk0,cache.no-flush=on,file.driver=file,file.filename=%s", g->layer);
	o.keep = &l;
	o.nkeep = 1;
	o.die_with_us = true;
	if (proc_spawn(argv, &o, &g->server, &e) < 0)
		fail_msg("%s", e.msg);
	close(l);
	return c;
}

static void rig_kill(struct nbd_rig *g)
{
	int status;

	kill(g->server, SIGKILL);
	assert_int_equal(proc_wait(g->server, &status, NULL), 0);
}

static void rig_expect(const struct nbd_rig *g, const char *command)
{
	rig_run((const char *const[]){"qemu-io", "-r", "-f", "qcow2", "-c", command, g->layer, NULL});
}

static void rig_remove(struct nbd_rig *g)
{
	unlink(g->base);
	unlink(g->layer);
	rmdir(g->dir);
}

/* What was flushed survives SIGKILL of the server; zeros hide what the base has, up to a disk's odd end. */
static void test_nbd_layer(void **state)
{
	_cleanup_free_ char *buf = malloc(MIB);
	struct nbd_rig g = {0};
	struct disk *d = NULL;
	struct err e = {0};

	if (access("/usr/bin/qemu-storage-daemon", X_OK) < 0)
		skip();
	rig_make(&g);
	assert_int_equal(disk_nbd_new(rig_serve(&g), "disk0", &d, &e), 0);
	assert_int_equal(d->size, LAYER_SIZE);
	memset(buf, 0x55, MIB);
	assert_int_equal(disk_write(d, buf, MIB, 65536, &e), 0);
	assert_int_equal(disk_zero(d, 65536, 10 * MIB, &e), 0);
	assert_int_equal(disk_zero(d, 512, LAYER_SIZE - 512, &e), 0);
	assert_int_equal(disk_write(d, buf, 512, LAYER_SIZE - 511, &e), -ERANGE);
	assert_int_equal(disk_flush(d, &e), 0);
	assert_int_equal(disk_read(d, buf, MIB, MIB, &e), 0);
	assert_int_equal(buf[65535], 0x55);
	assert_int_equal((unsigned char)buf[65536], 0xaa);
	assert_false(disk_nbd_is_lost(d));
	rig_kill(&g);
	assert_int_equal(disk_write(d, buf, 65536, 0, &e), -EIO);
	assert_true(disk_nbd_is_lost(d));
	assert_int_equal(disk_flush(d, &e), -EIO);
	disk_close(d);
	rig_expect(&g, "read -P 0xaa 0 65536");
	rig_expect(&g, "read -P 0x55 65536 1M");
	rig_expect(&g, "read -P 0 10M 65536");
	rig_expect(&g, "read -P 0xaa 10551296 1M");
	rig_expect(&g, "read -P 0 64M 512");
	rig_remove(&g);
}

static void test_nbd_refused(void **state)
{
	struct nbd_rig g = {0};
	struct disk *d = NULL;
	struct err e = {0};
	int pair[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), 0);
	assert_int_equal(write(pair[1], "NBDMAGICIHAVEOPX\0\3", 18), 18);
	assert_int_equal(disk_nbd_new(pair[0], "disk0", &d, &e), -EPROTO);
	close(pair[1]);
	if (access("/usr/bin/qemu-storage-daemon", X_OK) < 0)
		skip();
	rig_make(&g);
	assert_int_equal(disk_nbd_new(rig_serve(&g), "disk1", &d, &e), -ENOENT);
	rig_kill(&g);
	rig_remove(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_crc),         cmocka_unit_test(test_file_reads),
	    cmocka_unit_test(test_file_writes), cmocka_unit_test(test_open_fails),
	    cmocka_unit_test(test_shrunk_file), cmocka_unit_test(test_memory_is_sparse),
	    cmocka_unit_test(test_view),        cmocka_unit_test(test_fault),
	    cmocka_unit_test(test_nbd_layer),   cmocka_unit_test(test_nbd_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
