#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "survey/survey_int.h"

static const char *text_of(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key)) ?: "";
}

/* The entry of a list whose `key` is `value`. */
static json_t *entry(const json_t *survey, const char *list, const char *key, const char *value)
{
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(survey, list), i, o) if (strcmp(text_of(o, key), value) == 0) return o;
	return NULL;
}

static void put(const char *root, const char *name, const char *text)
{
	_cleanup_free_ char *path = str_printf("%s%s", root, name), *dir = strdup(path);

	*strrchr(dir, '/') = '\0';
	assert_int_equal(io_mkdirs(dir, 0755, NULL), 0);
	assert_int_equal(io_write_file_atomic(path, text, strlen(text), 0644, NULL), 0);
}

static void point(const char *root, const char *name, const char *target)
{
	_cleanup_free_ char *path = str_printf("%s%s", root, name), *dir = strdup(path);

	*strrchr(dir, '/') = '\0';
	assert_int_equal(io_mkdirs(dir, 0755, NULL), 0);
	assert_int_equal(symlink(target, path), 0);
}

static const char tcp[] =
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
    "   0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1001 1 0 100\n"
    "   1: 0100007F:0CEA 00000000:0000 0A 00000000:00000000 00:00000000 00000000   105        0 1002 1 0 100\n"
    "   2: 0A00020F:0050 0A000202:C350 01 00000000:00000000 00:00000000 00000000     0        0 1003 1 0 100\n"
    "   3: 0F02000A:01BB 00000000:0000 0A 00000000:00000000 00:00000000 00000000    33        0 1004 1 0 100\n";
static const char tcp6[] =
    "  sl  local_address                         remote_address                        st\n"
    "   0: 00000000000000000000000000000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 "
    "00:00000000 00000000     0        0 1005 1 0 100\n"
    "   1: 00000000000000000000000001000000:0277 00000000000000000000000000000000:0000 0A 00000000:00000000 "
    "00:00000000 00000000     0        0 1006 1 0 100\n"
    "   2: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 "
    "00:00000000 00000000     0        0 1007 1 0 100\n";
static const char udp[] =
    "   sl  local_address rem_address   st\n"
    "  10: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1008 2 0 0\n"
    "  11: 0F02000A:A3B1 0101A8C0:0035 01 00000000:00000000 00:00000000 00000000     0        0 1009 2 0 0\n";

static void test_sockets(void **state)
{
	struct survey_socket v[8];
	size_t n = survey_parse_sockets(tcp, false, false, v, 0, 8);

	assert_int_equal(n, 3);
	assert_int_equal(v[0].port, 22);
	assert_int_equal(v[0].reach, 2);
	assert_int_equal(v[1].port, 3306);
	assert_int_equal(v[1].reach, 0);
	assert_int_equal(v[2].port, 443);
	assert_int_equal(v[2].reach, 1);
	assert_int_equal(v[2].inode, 1004);
	n = survey_parse_sockets(tcp6, false, true, v, n, 8);
	assert_int_equal(n, 5); /* port 22 is there */
	assert_int_equal(v[3].port, 631);
	assert_int_equal(v[3].reach, 0);
	assert_int_equal(v[4].port, 8080);
	assert_int_equal(v[4].reach, 0);
	n = survey_parse_sockets(udp, true, false, v, n, 8);
	assert_int_equal(n, 6); /* one with a peer is a conversation */
	assert_int_equal(v[5].port, 68);
	assert_int_equal(survey_parse_sockets(tcp, false, false, v, 0, 2), 2);
	/* 32 digits in a table of 8, and the other way round, are no addresses. */
	assert_int_equal(survey_parse_sockets(tcp6, false, false, v, 0, 8), 0);
	assert_int_equal(survey_parse_sockets(tcp, false, true, v, 0, 8), 0);
}

static void test_cgroup(void **state)
{
	static const struct {
		const char *text, *unit;
	} rows[] = {
	    {"0::/system.slice/ssh.service\n", "ssh.service"},
	    {"0::/system.slice/docker.service/deep/er.service\n", "docker.service"},
	    {"0::/user.slice/user-0.slice/session-3.scope\n", "session-3.scope"},
	    {"0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.service\n", "user@1000.service"},
	    {"2:cpu:/\n1:name=systemd:/system.slice/cron.service\n", "cron.service"},
	    {"0::/init.scope\n", "init.scope"},
	    {"0::/\n", ""},
	    {"", ""},
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		char unit[128];

		survey_parse_cgroup(rows[i].text, unit, sizeof(unit));
		assert_string_equal(unit, rows[i].unit);
	}
}

static void test_units(void **state)
{
	_cleanup_json_ json_t *o = json_object();
	json_t *u;

	survey_parse_units(o, "Id=ssh.service\nSubState=running\nUnitFileState=enabled\nConditionResult=yes\n\n"
			      "Id=off.service\nSubState=dead\nUnitFileState=disabled\nConditionResult=no\n\n"
			      "Id=wanted.service\nSubState=dead\nUnitFileState=enabled\nConditionResult=no\n\n"
			      "SubState=running\n\n"
			      "Id=last.service\nSubState=exited\nUnitFileState=\n");
	assert_int_equal(json_array_size(json_object_get(o, "units")), 3);
	u = entry(o, "units", "name", "ssh.service");
	assert_string_equal(text_of(u, "state"), "running");
	assert_string_equal(text_of(u, "enabled"), "enabled");
	assert_null(json_object_get(u, "condition"));
	assert_true(json_is_false(json_object_get(entry(o, "units", "name", "wanted.service"), "condition")));
	assert_string_equal(text_of(entry(o, "units", "name", "last.service"), "state"), "exited");
}

static void test_accounts(void **state)
{
	_cleanup_json_ json_t *o = json_object();
	_cleanup_free_ char *all = NULL;

	survey_parse_accounts(o, "users",
			      "root:$6$hash$hash:0:0:root:/root:/bin/bash\nbad\n+::::::\nn:x:nine:9::/:\n"
			      "# x:x:1:1\nbig:x:4294967296:1::/:\nweb:x:33:33:a,b:/var/www:/x");
	assert_int_equal(json_array_size(json_object_get(o, "users")), 2);
	assert_int_equal(json_integer_value(json_object_get(entry(o, "users", "name", "web"), "id")), 33);
	all = jsn_text(o);
	assert_null(strstr(all, "hash"));
}

static void test_dpkg(void **state)
{
	static const char some[] =
	    "Package: b\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2-1\nDescription: x\n y\n .\n\n"
	    "Package: gone\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n\n"
	    "Package: a\nStatus: hold ok installed\nArchitecture: all\nVersion: 1:1.0\n";
	static const char turned[] = "Package: a\nStatus: install ok installed\nVersion: 1:1.0\nArchitecture: all\n\n"
				     "Package: b\nStatus: install ok installed\nArchitecture: amd64\nVersion: 2-1\n\n";
	_cleanup_json_ json_t *o = json_object(), *p = json_object();
	const json_t *got, *other;

	survey_parse_dpkg(o, some);
	survey_parse_dpkg(p, turned);
	got = json_object_get(o, "packages");
	other = json_object_get(p, "packages");
	assert_int_equal(json_integer_value(json_object_get(got, "count")), 2);
	assert_string_equal(json_string_value(json_array_get(json_object_get(got, "list"), 0)), "a:all=1:1.0");
	assert_string_equal(json_string_value(json_array_get(json_object_get(got, "list"), 1)), "b:amd64=2-1");
	assert_string_equal(text_of(got, "digest"), text_of(other, "digest"));
	/* printf 'a:all=1:1.0\nb:amd64=2-1\n' | sha256sum */
	assert_string_equal(text_of(got, "digest"), "420d66fdc5b9b61a86a953b00ca1e19f30ce07a1f843ea3ba19265b057d13d45");
}

static void test_mounts(void **state)
{
	_cleanup_json_ json_t *o = json_object();
	json_t *m;

	survey_parse_mounts(o,
			    "proc /proc proc rw 0 0\n/dev/vda1 / ext4 ro,relatime,discard 0 0\n"
			    "/dev/vdb /srv/a\\040b xfs rw,noexec,usrquota 0 0\ntmpfs /run/user/0 tmpfs rw 0 0\n"
			    "overlay /var/lib/docker/overlay2/x/merged overlay rw 0 0\n"
			    "nas:/x /mnt nfs4 rw,hard 0 0\n/dev/vdc /data btrfs rw,subvolid=5,subvol=/@ 0 0\nshort\n"
			    "/dev/vdd /by/hand ext4 rw 0 0\n/dev/vde /later ext4 rw 0 0\n/dev/vdf /auto ext4 rw 0 0\n",
			    "# UUID=1 /data ext4 defaults 0 0\nUUID=1 / ext4 defaults 0 1\nx /srv/a\\040b/ xfs\n"
			    "/dev/vdd /by/hand ext4 ro,noauto 0 0\n/dev/vde /later ext4 x-systemd.automount,ro 0 0\n"
			    "/dev/vdf /auto ext4 auto,x-noauto 0 0\n");
	assert_int_equal(json_array_size(json_object_get(o, "mounts")), 7);
	/* A person mounts it, or who goes there first: no boot does. */
	assert_true(json_is_false(json_object_get(entry(o, "mounts", "target", "/by/hand"), "fstab")));
	assert_true(json_is_false(json_object_get(entry(o, "mounts", "target", "/later"), "fstab")));
	assert_true(json_is_true(json_object_get(entry(o, "mounts", "target", "/auto"), "fstab")));
	m = entry(o, "mounts", "target", "/");
	assert_string_equal(text_of(m, "options"), "ro");
	assert_true(json_is_true(json_object_get(m, "fstab")));
	m = entry(o, "mounts", "target", "/srv/a\\040b");
	assert_string_equal(text_of(m, "options"), "noexec,usrquota");
	assert_true(json_is_true(json_object_get(m, "fstab")));
	m = entry(o, "mounts", "target", "/data");
	assert_string_equal(text_of(m, "options"), "subvol=/@");
	assert_true(json_is_false(json_object_get(m, "fstab")));
}

/* Whoever logs in stays unknown, and so does the password. */
static void test_mount_sources(void **state)
{
	static const struct {
		const char *mount, *source; /* NULL: isn't told of */
	} rows[] = {
	    {"curlftpfs#ftp://user:secret@host/ /m fuse rw", "curlftpfs#ftp://host/"},
	    {"https://u:p@secret@dav/x /m fuse.davfs rw", "https://dav/x"},
	    {"https://bucket/x?token=secret /m fuse.s3fs rw", "https://bucket/x"},
	    {"user:secret@host:/x /m fuse.sshfs rw", "host:/x"},
	    {"root@host:/x /m fuse.sshfs rw", "root@host:/x"},
	    {"/dev/mapper/a:b@c /m ext4 rw", "/dev/mapper/a:b@c"},
	    {"nas:/x@y /m nfs4 rw", "nas:/x@y"},
	    {"tank/data@monday /m zfs ro", "tank/data@monday"},
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		_cleanup_json_ json_t *o = json_object();

		survey_parse_mounts(o, rows[i].mount, "");
		assert_string_equal(text_of(entry(o, "mounts", "target", "/m"), "source"), rows[i].source);
	}
	{
		_cleanup_json_ json_t *o = json_object();
		_cleanup_free_ char *all = NULL;
		char mount[3000];

		memset(mount, 'a', sizeof(mount));
		strcpy(mount + 2030, "user:secretsecretsecret@host /m fuse rw");
		survey_parse_mounts(o, mount, "");
		all = jsn_text(o);
		assert_null(strstr(all, "secret"));
	}
}

/* More ports than there is room for, and connections without end. */
static void test_many_sockets(void **state)
{
	char root[] = "/tmp/replant-survey-XXXXXX";
	_cleanup_(str_release) struct str text = {0};
	static const char row[] =
	    "%4d: 00000000:%04X 00000000:%04X %02X 00000000:00000000 00:00000000 00000000     0        0 %d 1 0 100\n";

	assert_non_null(mkdtemp(root));
	for (int i = 0; i < SURVEY_SOCKETS_MAX; i++)
		str_addf(&text, row, i, i + 1, 0, 10, 5000 + i);
	for (int i = 0; i < 200000; i++)
		str_addf(&text, row, i, 22, 1000, 1, 9000 + i);
	put(root, "/proc/net/tcp", text.s);
	for (int more = 0; more < 2; more++) {
		_cleanup_json_ json_t *o = json_object();

		if (more)
			put(root, "/proc/net/udp",
			    "0: 00000000:0044 00000000:0000 07 00000000:00000000 00:00000000 00000000 0 0 1008 2 0 "
			    "0\n");
		survey_listening(o, root);
		assert_int_equal(json_array_size(json_object_get(o, "listening")), SURVEY_SOCKETS_MAX);
		assert_int_equal(json_array_size(json_object_get(o, "cut")), more);
	}
	put(root, "/proc/net/udp", text.s);
	put(root, "/proc/net/tcp", "");
	{
		_cleanup_json_ json_t *o = json_object();

		survey_listening(o, root);
		assert_int_equal(json_array_size(json_object_get(o, "cut")), 1);
	}
	io_remove_tree(root, NULL);
}

static void test_modules(void **state)
{
	_cleanup_json_ json_t *o = json_object();

	survey_parse_modules(o, "ext4 1 2 - Live\ndm_mod 4 5 - Live\nvirtio_net 6 7\nmine 1 2\n",
			     "kernel/fs/ext4/ext4.ko.xz: kernel/lib/crc16.ko\nkernel/drivers/md/dm-mod.ko:\n"
			     "kernel/drivers/net/virtio_net.ko.zst:\nkernel/fs/ext4x.ko:\n");
	assert_string_equal(text_of(entry(o, "modules", "name", "ext4"), "kind"), "fs");
	assert_string_equal(text_of(entry(o, "modules", "name", "dm_mod"), "kind"), "drivers/md");
	assert_string_equal(text_of(entry(o, "modules", "name", "virtio_net"), "kind"), "drivers/net");
	assert_string_equal(text_of(entry(o, "modules", "name", "mine"), "kind"), "");
}

static void test_routes(void **state)
{
	_cleanup_json_ json_t *o = json_object();
	json_t *r;

	survey_parse_routes(o,
			    "Iface\tDestination\tGateway\nens3\t00000000\t0202000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
			    "ens3\t0002000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n");
	assert_int_equal(json_array_size(json_object_get(o, "routes")), 2);
	r = json_array_get(json_object_get(o, "routes"), 0);
	assert_string_equal(text_of(r, "destination"), "0.0.0.0/0");
	assert_string_equal(text_of(r, "gateway"), "10.0.2.2");
	assert_string_equal(text_of(json_array_get(json_object_get(o, "routes"), 1), "destination"), "10.0.2.0/24");
}

static void test_full_lists(void **state)
{
	_cleanup_json_ json_t *o = json_object();
	_cleanup_(str_release) struct str text = {0};

	for (int i = 0; i < 5000; i++)
		str_addf(&text, "u%d:x:%d:1::/:\n", i, i);
	survey_parse_accounts(o, "users", text.s);
	survey_parse_accounts(o, "groups", text.s);
	assert_int_equal(json_array_size(json_object_get(o, "users")), SURVEY_ACCOUNTS_MAX);
	assert_int_equal(json_array_size(json_object_get(o, "cut")), 2);
}

/* A system made up of files, without systemd. */
static void test_made_up_root(void **state)
{
	char root[] = "/tmp/replant-survey-XXXXXX";
	_cleanup_json_ json_t *o = NULL;
	json_t *l;

	assert_non_null(mkdtemp(root));
	put(root, "/proc/sys/kernel/hostname", "web1\n");
	put(root, "/proc/sys/kernel/osrelease", "6.1.0-x\n");
	put(root, "/proc/modules", "ext4 1 2\n");
	put(root, "/lib/modules/6.1.0-x/modules.dep", "kernel/fs/ext4/ext4.ko:\n");
	put(root, "/proc/net/tcp", tcp);
	put(root, "/proc/1/comm", "init\n");
	put(root, "/proc/1/cmdline", "/sbin/init");
	put(root, "/proc/1/cgroup", "0::/init.scope\n");
	point(root, "/proc/1/fd/5", "socket:[1001]");
	put(root, "/proc/2/comm", "kthreadd\n");
	put(root, "/proc/2/cmdline", "");
	put(root, "/proc/77/comm", "sshd\n");
	put(root, "/proc/77/cmdline", "/usr/sbin/sshd");
	put(root, "/proc/77/cgroup", "0::/system.slice/ssh.service\n");
	point(root, "/proc/77/fd/3", "socket:[1001]");
	point(root, "/proc/77/fd/4", "/dev/null");
	put(root, "/proc/78/comm", "sshd\n");
	put(root, "/proc/78/cmdline", "sshd: x");
	put(root, "/proc/swaps", "Filename Type\n/dev/vda2 partition 1 2 3\n");
	put(root, "/proc/self/mounts", "/dev/vda1 / ext4 rw 0 0\n");
	put(root, "/etc/fstab", "/dev/vda1 / ext4 defaults 0 1\n");
	put(root, "/etc/passwd", "root:x:0:0::/:\n");
	put(root, "/etc/crontab", "* * * * * root backup --password=secret\n");
	put(root, "/var/spool/cron/crontabs/web", "x\n");
	put(root, "/etc/cron.d/.placeholder", "x\n");
	point(root, "/etc/localtime", "/usr/share/zoneinfo/Europe/Berlin");
	o = survey_take(root);
	assert_non_null(o);
	assert_string_equal(text_of(o, "hostname"), "web1");
	assert_string_equal(text_of(o, "timezone"), "Europe/Berlin");
	assert_string_equal(text_of(o, "init"), "other");
	assert_int_equal(json_array_size(json_object_get(o, "processes")), 2);
	assert_int_equal(json_array_size(json_object_get(o, "listening")), 3);
	l = json_array_get(json_object_get(o, "listening"), 0);
	assert_int_equal(json_integer_value(json_object_get(l, "port")), 22);
	assert_string_equal(text_of(l, "program"), "sshd");
	assert_string_equal(text_of(l, "unit"), "ssh.service");
	assert_string_equal(text_of(l, "address"), "any");
	assert_int_equal(json_integer_value(json_object_get(o, "swaps")), 1);
	assert_string_equal(text_of(entry(o, "modules", "name", "ext4"), "kind"), "fs");
	assert_non_null(entry(o, "mounts", "target", "/"));
	assert_int_equal(json_array_size(json_object_get(o, "cron")), 2);
	assert_non_null(entry(o, "cron", "path", "/var/spool/cron/crontabs/web"));
	assert_null(json_object_get(o, "packages"));
	assert_null(json_object_get(o, "cut"));
	{
		_cleanup_free_ char *all = jsn_text(o);

		assert_null(strstr(all, "secret"));
		assert_null(strstr(all, root)); /* paths are the system's own */
	}
	io_remove_tree(root, NULL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_sockets),       cmocka_unit_test(test_cgroup),
	    cmocka_unit_test(test_units),         cmocka_unit_test(test_accounts),
	    cmocka_unit_test(test_dpkg),          cmocka_unit_test(test_mounts),
	    cmocka_unit_test(test_modules),       cmocka_unit_test(test_routes),
	    cmocka_unit_test(test_full_lists),    cmocka_unit_test(test_made_up_root),
	    cmocka_unit_test(test_mount_sources), cmocka_unit_test(test_many_sockets),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
