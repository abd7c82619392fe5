/* What the kernel says of mounts, devices and trace events, read from text. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/err.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "track/track_int.h"

static void test_mountinfo_parse(void **state)
{
	static const char text[] =
	    "27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n"
	    "36 35 98:1 /a\\040b /mnt/x\\011y\\134z ro,noatime master:1 shared:7 - ext3 /dev/root rw,errors=continue\n"
	    "37 27 0:44 / /empty rw shared:2 -  tmpfs  rw\n"
	    "nonsense\n"
	    "38 27 0:45 /only six fields rw\n"
	    "39 27 8:x / /bad rw - ext4 /dev/sda rw\n"
	    "40 27 8:3 / /last ro - xfs /dev/sda3 ro,seclabel";
	struct track_mount *m = NULL;
	size_t n = 0;

	assert_int_equal(track_mountinfo_parse(text, strlen(text), &m, &n, NULL), 0);
	assert_int_equal(n, 4);
	assert_string_equal(m[0].source, "/dev/vda");
	assert_true(m[0].writable);
	assert_int_equal(m[1].id, 36);
	assert_int_equal(major(m[1].dev), 98);
	assert_string_equal(m[1].root, "/a b");
	assert_string_equal(m[1].point, "/mnt/x\ty\\z");
	assert_string_equal(m[1].options, "ro,noatime");
	assert_string_equal(m[1].type, "ext3");
	assert_true(m[1].writable); /* the mount is read-only, the filesystem isn't */
	assert_string_equal(m[2].source, "");
	assert_false(m[3].writable);
	track_mountinfo_free(m, n);
}

/* A mount that is left out may be one that isn't frozen. */
static void test_mountinfo_large(void **state)
{
	static const char line[] = "36 35 98:1 / /m rw - ext4 /dev/root rw\n";
	const size_t lines = 65536;
	_cleanup_(str_release) struct str s = {0};
	struct track_mount *m = NULL;
	size_t n = 0;
	struct err e = {0};

	str_add(&s, "36 35 98:1 / /long rw - ext4 /dev/root rw,");
	for (size_t i = 0; i < 20000; i++)
		str_add_mem(&s, "x", 1);
	str_add(&s, "\n");
	assert_true(str_ok(&s));
	assert_int_equal(track_mountinfo_parse(s.s, s.len, &m, &n, NULL), 0);
	assert_int_equal(n, 1);
	assert_string_equal(m[0].point, "/long");
	assert_int_equal(strlen(m[0].super), 20003);
	track_mountinfo_free(m, n);
	for (size_t i = 1; i < lines; i++)
		str_add(&s, line);
	assert_int_equal(track_mountinfo_parse(s.s, s.len, &m, &n, NULL), 0);
	assert_int_equal(n, lines);
	track_mountinfo_free(m, n);
	str_add(&s, "nonsense\n");
	assert_int_equal(track_mountinfo_parse(s.s, s.len, &m, &n, NULL), 0);
	track_mountinfo_free(m, n);
	str_add(&s, line);
	assert_int_equal(track_mountinfo_parse(s.s, s.len, &m, &n, &e), -E2BIG);
	assert_non_null(strstr(e.msg, "65536"));
}

static void test_event_parse(void **state)
{
	/* Linux 5.10, 6.18 and a SCSI one of 6.1, shortened */
	static const char older[] = "name: block_rq_complete\nID: 1107\nformat:\n"
				    "\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n"
				    "\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;\n\n"
				    "\tfield:dev_t dev;\toffset:8;\tsize:4;\tsigned:0;\n"
				    "\tfield:sector_t sector;\toffset:16;\tsize:8;\tsigned:0;\n"
				    "\tfield:unsigned int nr_sector;\toffset:24;\tsize:4;\tsigned:0;\n"
				    "\tfield:int error;\toffset:28;\tsize:4;\tsigned:1;\n"
				    "\tfield:char rwbs[8];\toffset:32;\tsize:8;\tsigned:0;\n"
				    "\tfield:__data_loc char[] cmd;\toffset:40;\tsize:4;\tsigned:0;\n\n"
				    "print fmt: \"%d,%d %s\", REC->rwbs\n";
	static const char newer[] = "\tfield:unsigned int bytes;\toffset:28;\tsize:4;\tsigned:0;\n"
				    "\tfield:char rwbs[10];\toffset:34;\tsize:10;\tsigned:0;\n";
	static const char scsi[] = "\tfield:unsigned int opcode;\toffset:24;\tsize:4;\tsigned:0;\n"
				   "\tfield:__data_loc unsigned char[] cmnd;\toffset:52;\tsize:4;\tsigned:0;\n";
	struct bpf_insn code[] = {
	    {.code = BPF_LDX | BPF_MEM | BPF_W, .off = EVENT_BASE + 12},
	    {.code = BPF_LDX | BPF_MEM | BPF_B, .off = EVENT_BASE + 21},
	    {.code = BPF_LDX | BPF_MEM | BPF_B, .off = 21},
	};
	struct event ev = {.id = 7};
	struct err e = {0};

	assert_int_equal(event_parse(older, &ev, NULL), 0);
	assert_int_equal(ev.id, 7);
	assert_int_equal(ev.offset[EVENT_DEV], 8);
	assert_int_equal(ev.offset[EVENT_SECTOR], 16);
	assert_int_equal(ev.offset[EVENT_NR_SECTOR], 24);
	assert_int_equal(ev.offset[EVENT_RWBS], 32);
	assert_int_equal(ev.offset[EVENT_BYTES], 0);
	assert_int_equal(event_patch(&ev, code, 3, NULL), 0);
	assert_int_equal(code[0].off, 24);
	assert_int_equal(code[1].off, 33);
	assert_int_equal(code[2].off, 21);

	assert_int_equal(event_parse(newer, &ev, NULL), 0);
	assert_int_equal(ev.offset[EVENT_BYTES], 28);
	assert_int_equal(ev.offset[EVENT_RWBS], 34);
	code[0].off = EVENT_BASE; /* the sector, which it lacks */
	assert_int_equal(event_patch(&ev, code, 3, &e), -EOPNOTSUPP);
	assert_non_null(strstr(e.msg, "'sector'"));

	assert_int_equal(event_parse(scsi, &ev, NULL), 0);
	assert_int_equal(ev.offset[EVENT_OPCODE], 24);
	assert_int_equal(ev.offset[EVENT_CDB], 52);

	assert_int_equal(event_parse("\tfield:sector_t sector;\toffset:16;\tsize:4;\tsigned:0;\n", &ev, NULL),
			 -EOPNOTSUPP);
	assert_int_equal(event_parse("\tfield:dev_t dev;\toffset:8;\n", &ev, NULL), -EOPNOTSUPP);
}

static void put(const char *root, const char *path, const char *text)
{
	_cleanup_free_ char *full = str_printf("%s/%s", root, path), *dir = strdup(full);

	*strrchr(dir, '/') = '\0';
	assert_int_equal(io_mkdirs(dir, 0755, NULL), 0);
	assert_int_equal(io_write_file_atomic(full, text, strlen(text), 0644, NULL), 0);
}

static void link_at(const char *root, const char *path, const char *target)
{
	_cleanup_free_ char *full = str_printf("%s/%s", root, path), *dir = strdup(full);

	*strrchr(dir, '/') = '\0';
	assert_int_equal(io_mkdirs(dir, 0755, NULL), 0);
	assert_int_equal(symlink(target, full), 0);
}

/* sda > sda1 > dm-0 (an LV that also uses sdb1); sdc > sdc1 > md0. */
static void test_dev_on(void **state)
{
	char root[] = "/tmp/replant-sys-XXXXXX";
	const dev_t sda = makedev(8, 0), sdb = makedev(8, 16), sdc = makedev(8, 32);

	assert_non_null(mkdtemp(root));
	put(root, "block/sda/dev", "8:0\n");
	put(root, "block/sda/sda1/dev", "8:1\n");
	put(root, "block/sda/sda1/partition", "1\n");
	put(root, "block/sdb/dev", "8:16\n");
	put(root, "block/sdb/sdb1/dev", "8:17\n");
	put(root, "block/sdb/sdb1/partition", "1\n");
	put(root, "block/sdc/dev", "8:32\n");
	put(root, "block/sdc/sdc1/dev", "8:33\n");
	put(root, "block/sdc/sdc1/partition", "1\n");
	put(root, "block/dm-0/dev", "253:0\n");
	put(root, "block/md0/dev", "9:0\n");
	link_at(root, "block/dm-0/slaves/sda1", "../../sda/sda1");
	link_at(root, "block/dm-0/slaves/sdb1", "../../sdb/sdb1");
	link_at(root, "block/md0/slaves/sdc1", "../../sdc/sdc1");
	link_at(root, "dev/block/8:0", "../../block/sda");
	link_at(root, "dev/block/8:1", "../../block/sda/sda1");
	link_at(root, "dev/block/8:16", "../../block/sdb");
	link_at(root, "dev/block/8:17", "../../block/sdb/sdb1");
	link_at(root, "dev/block/8:32", "../../block/sdc");
	link_at(root, "dev/block/8:33", "../../block/sdc/sdc1");
	link_at(root, "dev/block/253:0", "../../block/dm-0");
	link_at(root, "dev/block/9:0", "../../block/md0");

	assert_true(mounts_dev_on(root, makedev(8, 1), &sda, 1));
	assert_false(mounts_dev_on(root, makedev(8, 1), &sdb, 1));
	assert_true(mounts_dev_on(root, makedev(253, 0), &sda, 1));
	assert_true(mounts_dev_on(root, makedev(253, 0), &sdb, 1));
	assert_false(mounts_dev_on(root, makedev(253, 0), &sdc, 1));
	assert_true(mounts_dev_on(root, makedev(9, 0), &sdc, 1));
	assert_true(mounts_dev_on(root, sda, &sda, 1));
	assert_false(mounts_dev_on(root, makedev(99, 9), &sda, 1));
	io_remove_tree(root, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_mountinfo_parse),
	    cmocka_unit_test(test_mountinfo_large),
	    cmocka_unit_test(test_event_parse),
	    cmocka_unit_test(test_dev_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
