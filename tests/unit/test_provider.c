#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "provider/local_int.h"

static void check_stage(const char *serial, bool ended, const char *stage, bool final)
{
	const char *got, *text;

	assert_int_equal(local_boot_stage(serial, ended, &got, &text), final);
	assert_string_equal(got, stage);
}

/* Lines as real machines wrote them: tests/boot breaks such machines. */
static void test_boot_stage(void **state)
{
	check_stage("", false, "firmware", false);
	check_stage("", true, "powered_off", true);
	check_stage("SeaBIOS (version 1.16.2)\nBooting from Hard Disk...\nBoot failed\nNo bootable device.\n", false,
		    "firmware", true);
	check_stage("SeaBIOS\nBooting from Hard Disk...\n", false, "boot_loader", false);
	check_stage("Booting from Hard Disk...\nGRUB loading.\nerror: no such partition.\ngrub rescue> ", false,
		    "boot_loader", true);
	check_stage("GRUB loading.\nLoading Linux 6.1.0 ...\nLoading initial ramdisk ...\n", false, "kernel", false);
	check_stage("GRUB\n[    0.000000] Linux version 6.1.0\n[    3.0] x\n", false, "hang", false);
	check_stage(
	    "[    0.000000] Linux version 6.1.0\n[    3.3] Kernel panic - not syncing: VFS: Unable to mount root fs\n",
	    false, "kernel_panic", true);
	check_stage("Linux version 5\nALERT!  UUID=x does not exist.  Dropping to a shell!\n(initramfs) ", false,
		    "initramfs_shell", true);
	check_stage("Linux version 5\nsystemd[1]: x\nYou are in emergency mode. After logging in\n", false, "emergency",
		    true);
}

static void test_lines(void **state)
{
	struct qemu_lines l = {0};
	struct err e = {0};
	json_t *o = NULL;

	qemu_lines_add(&l, "{\"a\":", 5);
	assert_int_equal(qemu_lines_next(&l, &o, &e), 0);
	qemu_lines_add(&l, "1}\nnonsense\n[2]\n", 16);
	assert_int_equal(qemu_lines_next(&l, &o, &e), 1);
	assert_int_equal(json_integer_value(json_object_get(o, "a")), 1);
	json_decref(o);
	assert_int_equal(qemu_lines_next(&l, &o, &e), -EPROTO);
	assert_int_equal(qemu_lines_next(&l, &o, &e), 1);
	json_decref(o);
	assert_int_equal(qemu_lines_next(&l, &o, &e), 0);
	qemu_lines_release(&l);
}

static void test_line_without_end(void **state)
{
	static char much[1u << 20];
	struct qemu_lines l = {0};
	json_t *o = NULL;

	memset(much, 'x', sizeof(much));
	for (int i = 0; i < 5; i++)
		qemu_lines_add(&l, much, sizeof(much));
	assert_int_equal(qemu_lines_next(&l, &o, NULL), -EPROTO);
	for (int i = 0; i < 100; i++)
		qemu_lines_add(&l, much, sizeof(much));
	assert_true(l.cap <= 4 * QEMU_LINE_MAX);
	qemu_lines_release(&l);
}

/* The copied system may be an enemy: what it says can be no path, no verdict and no flood. */
static void test_boot_report(void **state)
{
	json_t *probe =
	    json_pack("{s:s, s:s, s:b, s:s, s:[s,i,{}], s:[{s:s,s:s,s:s}, s], s:[i,i,s,i], s:s, s:[], s:i}", "event",
		      "report", "screenshot", "/etc/shadow", "verified", 1, "state", "running", "failed_units",
		      "a.service", 1, "mounts", "source", "/dev/vda1", "target", "/", "path", "/etc/shadow", "x",
		      "listening", 22, 70000, "80", -1, "addresses", "none", "problems", "hostname", 7);
	json_t *much = json_array(), *report;

	assert_non_null(probe);
	for (int i = 0; i < 1000; i++)
		json_array_append_new(much, json_string("x"));
	json_object_set_new(probe, "missing_mounts", much);
	json_object_set_new(probe, "kernel", json_sprintf("%300d", 1));
	report = local_boot_report(probe);
	assert_non_null(report);
	assert_null(json_object_get(report, "screenshot"));
	assert_null(json_object_get(report, "verified"));
	assert_null(json_object_get(report, "problems"));
	assert_null(json_object_get(report, "event"));
	assert_null(json_object_get(report, "hostname"));
	assert_null(json_object_get(report, "kernel"));
	assert_string_equal(json_string_value(json_object_get(report, "state")), "running");
	assert_int_equal(json_array_size(json_object_get(report, "failed_units")), 1);
	assert_int_equal(json_array_size(json_object_get(report, "mounts")), 1);
	assert_int_equal(json_object_size(json_array_get(json_object_get(report, "mounts"), 0)), 2);
	assert_int_equal(json_array_size(json_object_get(report, "listening")), 1);
	assert_int_equal(json_array_size(json_object_get(report, "addresses")), 0);
	assert_int_equal(json_array_size(json_object_get(report, "missing_mounts")), 500);
	json_decref(report);
	json_decref(probe);
}

/* The sockets are closed once: what gets their numbers later is somebody else's. */
static void test_layers_are_dropped_once(void **state)
{
	struct local_layers ly = {.pid = -1, .n = 2};
	int stranger;

	ly.fd[0] = -1;
	ly.fd[1] = open("/dev/null", O_RDONLY | O_CLOEXEC);
	assert_true(ly.fd[1] >= 0);
	local_layers_drop(&ly);
	stranger = open("/dev/null", O_RDONLY | O_CLOEXEC);
	assert_true(stranger >= 0);
	local_layers_stop(&ly);
	assert_true(fcntl(stranger, F_GETFD) >= 0);
	close(stranger);
}

static void heard(void *arg, const json_t *event)
{
	json_array_append(arg, (json_t *)(uintptr_t)event);
}

static bool never_cancelled(void *arg)
{
	return false;
}

/* A receiver that was taken over tells what isn't its own: nobody hears of it. */
static void test_receiver_may_not_tell_all(void **state)
{
	static const char script[] =
	    "#!/bin/sh\ncat <<'E'\n"
	    "{\"event\":\"listening\",\"port\":7}\n"
	    "{\"event\":\"image_changed\",\"image\":\"image-0123456789abcdef\",\"manifest\":{}}\n"
	    "{\"event\":\"step\"}\n{\"event\":1}\n{}\n"
	    "{\"event\":\"progress\",\"bytes_written\":1}\n"
	    "{\"event\":\"committed\"}\nE\n";
	static const char *const want[] = {"listening", "progress", "committed"};
	struct provider_receive receive = {.run = "run-0123456789abcdef", .psk_hex = "00", .listen = "127.0.0.1"};
	char dir[] = "/tmp/replant-provider-XXXXXX", program[64];
	struct provider_settings settings = {.dir = dir, .cache = dir, .programs = dir};
	json_t *events = json_array();
	struct provider_watch watch = {events, heard, never_cancelled};
	struct provider *p = NULL;
	struct err e = {0};

	assert_non_null(mkdtemp(dir));
	snprintf(program, sizeof(program), "%s/replant-transition", dir);
	assert_int_equal(io_write_file_atomic(program, script, strlen(script), 0755, &e), 0);
	assert_int_equal(provider_open("local", &settings, &p, &e), 0);
	assert_int_equal(p->ops->receive(p, "job-0123456789abcdef", &receive, &watch, &e), 0);
	assert_int_equal(json_array_size(events), ARRAY_SIZE(want));
	for (size_t i = 0; i < ARRAY_SIZE(want); i++)
		assert_string_equal(json_string_value(json_object_get(json_array_get(events, i), "event")), want[i]);
	p->ops->close(p);
	json_decref(events);
	assert_int_equal(io_remove_tree(dir, &e), 0);
}

static void heard_nothing(void *arg, const json_t *event)
{
}

static void heard_text(void *arg, const char *text, size_t n)
{
	str_add_mem(arg, text, n);
}

/* More than a pipe holds, while it works and at its end; and it fails. */
static void test_what_a_receiver_complains_of(void **state)
{
	static const char script[] = "#!/bin/sh\n"
				     "i=0; while [ $i -lt 3000 ]; do echo \"complaint $i of many ............\" >&2; "
				     "i=$((i+1)); done\n"
				     "echo '{\"event\":\"listening\",\"port\":7}'\nexec >&-\necho last >&2\nexit 3\n";
	struct provider_receive receive = {.run = "run-0123456789abcdef", .psk_hex = "00", .listen = "127.0.0.1"};
	char dir[] = "/tmp/replant-provider-XXXXXX", program[64];
	struct provider_settings settings = {.dir = dir, .cache = dir, .programs = dir};
	_cleanup_(str_release) struct str text = {0};
	struct provider_watch watch = {&text, heard_nothing, never_cancelled, heard_text};
	int saved = dup(2), null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	struct provider *p = NULL;
	struct err e = {0};
	int r;

	assert_non_null(mkdtemp(dir));
	snprintf(program, sizeof(program), "%s/replant-transition", dir);
	assert_int_equal(io_write_file_atomic(program, script, strlen(script), 0755, &e), 0);
	assert_int_equal(provider_open("local", &settings, &p, &e), 0);
	dup2(null_fd, 2);
	r = p->ops->receive(p, "job-0123456789abcdef", &receive, &watch, &e);
	dup2(saved, 2);
	close(saved);
	close(null_fd);
	assert_int_equal(r, -EIO);
	assert_true(str_ok(&text) && str_starts(text.s, "complaint 0 of"));
	assert_non_null(strstr(text.s, "complaint 2999 of"));
	assert_true(str_ends(text.s, "\nlast\n"));
	p->ops->close(p);
	assert_int_equal(io_remove_tree(dir, &e), 0);
}

static void put(const char *dir, const char *name, const char *text)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	assert_int_equal(io_write_file_atomic(path, text, strlen(text), 0755, NULL), 0);
}

/* Of what the receiver left, an image keeps what it needs; made again, it is the same. */
static void test_image_without_digests(void **state)
{
	static const char info[] =
	    "#!/bin/sh\necho '{\"backing-filename\":\"disk0.raw\",\"backing-filename-format\":\"raw\","
	    "\"virtual-size\":4096}'\n";
	static const char *const files[] = {"disk0.raw", "disk0.qcow2", "disk0.manifest", "report.json"};
	char dir[] = "/tmp/replant-provider-XXXXXX", replica[64], path[128], *before = strdup(getenv("PATH") ?: "");
	struct provider_settings settings = {.dir = dir, .cache = dir, .programs = dir};
	json_t *manifest = NULL, *again = NULL;
	struct provider *p = NULL;
	struct err e = {0};

	assert_non_null(mkdtemp(dir));
	put(dir, "qemu-img", info);
	snprintf(replica, sizeof(replica), "%s/jobs/job-0123456789abcdef/replica", dir);
	assert_int_equal(io_mkdirs(replica, 0755, &e), 0);
	for (size_t i = 0; i < ARRAY_SIZE(files); i++)
		put(replica, files[i], "{}");
	snprintf(path, sizeof(path), "%s:%s", dir, "/usr/bin:/bin");
	setenv("PATH", path, 1);
	assert_int_equal(provider_open("local", &settings, &p, &e), 0);
	assert_int_equal(p->ops->image_create(p, "job-0123456789abcdef", "image-0123456789abcdef", NULL, &manifest, &e),
			 0);
	for (size_t i = 0; i < ARRAY_SIZE(files); i++) {
		snprintf(path, sizeof(path), "%s/images/image-0123456789abcdef/%s", dir, files[i]);
		assert_int_equal(access(path, F_OK), strstr(files[i], ".manifest") ? -1 : 0);
	}
	assert_int_equal(p->ops->image_create(p, "job-0123456789abcdef", "image-0123456789abcdef", NULL, &again, &e),
			 0);
	assert_true(json_equal(manifest, again));
	assert_int_equal(json_array_size(json_object_get(manifest, "disks")), 1);
	setenv("PATH", before, 1);
	free(before);
	p->ops->close(p);
	json_decref(manifest);
	json_decref(again);
	assert_int_equal(io_remove_tree(dir, &e), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_boot_stage),
	    cmocka_unit_test(test_lines),
	    cmocka_unit_test(test_line_without_end),
	    cmocka_unit_test(test_boot_report),
	    cmocka_unit_test(test_layers_are_dropped_once),
	    cmocka_unit_test(test_receiver_may_not_tell_all),
	    cmocka_unit_test(test_what_a_receiver_complains_of),
	    cmocka_unit_test(test_image_without_digests),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
