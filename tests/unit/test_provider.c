#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"
#include "provider/local_int.h"
#include "provider/qemu.h"

/* Lines as real machines wrote them: tests/boot breaks such machines. */
static void test_boot_stage(void **state)
{
	static const struct {
		const char *serial;
		bool ended;
		const char *stage;
		bool final;
	} rows[] = {
	    {"", false, "firmware", false},
	    {"", true, "powered_off", true},
	    {"SeaBIOS (version 1.16.2)\nBooting from Hard Disk...\nBoot failed\nNo bootable device.\n", false,
	     "no_boot_loader", true},
	    {"BdsDxe: failed to load Boot0001 \"UEFI Misc Device\" from PciRoot(0x0)/Pci(0x3,0x0): Not Found\n"
	     "BdsDxe: No bootable option or device was found.\n",
	     false, "no_boot_loader", true},
	    {"UEFI Interactive Shell v2.2\nEDK II\nShell> ", false, "no_boot_loader", true},
	    {"SeaBIOS\nBooting from Hard Disk...\n", false, "silent", false},
	    {"Booting from Hard Disk...\nGRUB loading.\nerror: no such partition.\ngrub rescue> ", false, "boot_loader",
	     true},
	    {"Booting from Hard Disk...\nGRUB loading.\nEnter passphrase for hd0,msdos1 (8f0b): ", false, "passphrase",
	     true},
	    {"GRUB loading.\nLoading Linux 6.1.0 ...\nLoading initial ramdisk ...\n", false, "kernel", false},
	    {"GRUB\n[    0.000000] Linux version 6.1.0\n[    3.0] x\n", false, "hang", false},
	    {"[    0.000000] Linux version 6.1.0\n[    1.5] Run /init as init process\n", false, "initramfs_hang",
	     false},
	    {"[ 0.0] Linux version 6.1.0\nBegin: Mounting root file system ... Begin: Running /scripts/local-block\n",
	     false, "initramfs_hang", false},
	    {"[ 0.0] Linux version 6.1.0\nBegin: Mounting root file system ... done.\n[    3.9] systemd[1]: Detected\n",
	     false, "hang", false},
	    {"[ 0.0] Linux version 6.1.0\n[    3.3] Kernel panic - not syncing: VFS: Unable to mount root fs\n", false,
	     "kernel_panic", true},
	    {"[ 0.0] Linux version 6.1.0\n[    3.3] Kernel panic - not syncing: Attempted to kill init!\n", true,
	     "kernel_panic", true},
	    {"[ 0.0] Linux version 6.1.0\nPlease unlock disk sda2_crypt (/dev/sda2): ", false, "passphrase", true},
	    {"[ 0.0] Linux version 6.1.0\nsystemd[1]: x\nPlease enter passphrase for disk VBOX (data): \n", false,
	     "passphrase", false},
	    {"Linux version 5\nPlease enter passphrase for disk x (y): \nYou are in emergency mode. After\n", false,
	     "passphrase", true},
	    {"Linux version 5\nALERT!  UUID=x does not exist.  Dropping to a shell!\n(initramfs) ", false,
	     "initramfs_shell", true},
	    {"Linux version 5\nsystemd[1]: x\nYou are in emergency mode. After logging in\n", false, "emergency", true},
	    {"Linux version 5\nsystemd[1]: x\nCannot open access to console, the root account is locked.\n", false,
	     "emergency", true},
	    {"Linux version 5\nsystemd[1]: x\n", true, "powered_off", true},
	    {"Linux version 5\nx\nLinux version 5\nx\nLinux version 5\n", false, "reboot_loop", true},
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		const char *got, *text;

		assert_int_equal(local_boot_stage(rows[i].serial, rows[i].ended, &got, &text), rows[i].final);
		assert_string_equal(got, rows[i].stage);
		assert_true(strchr(text, '(') && str_ends(text, ")")); /* what to do */
	}
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

static void test_survey_in_the_boot_report(void **state)
{
	json_t *probe =
	    json_pack("{s:{s:s,s:s,s:[{s:s,s:s,s:s,s:i},s,[]],s:[{s:s,s:i},{s:s,s:f},{s:s,s:i}],s:i},"
		      "s:[{s:s,s:i,s:b,s:f,s:s,s:s},{s:s,s:i}]}",
		      "survey", "hostname", "web", "evil", "x", "units", "name", "a.service", "state", "running", "x",
		      "y", "enabled", 1, "z", "listening", "proto", "tcp", "port", 22, "proto", "tcp", "port", 22.5,
		      "proto", "udp", "port", 70000, "swaps", -1, "checks", "name", "web", "status", 1, "timed_out", 0,
		      "seconds", 1.5, "output", "no", "path", "/etc/shadow", "name", "huge", "status", 1000);
	json_t *much = json_array(), *report, *survey, *l;

	assert_non_null(probe);
	for (int i = 0; i < 9000; i++)
		json_array_append_new(much, json_string("p:amd64=1"));
	json_object_set_new(json_object_get(probe, "survey"), "packages",
			    json_pack("{s:i, s:o, s:{}}", "count", 9000, "list", much, "digest"));
	json_object_set_new(json_array_get(json_object_get(probe, "checks"), 1), "output", json_sprintf("%9000d", 1));
	report = local_boot_report(probe);
	survey = json_object_get(report, "survey");
	assert_string_equal(json_string_value(json_object_get(survey, "hostname")), "web");
	assert_null(json_object_get(survey, "evil"));
	assert_null(json_object_get(survey, "swaps"));
	assert_int_equal(json_array_size(json_object_get(survey, "units")), 1);
	assert_int_equal(json_object_size(json_array_get(json_object_get(survey, "units"), 0)), 2);
	l = json_object_get(survey, "listening");
	assert_int_equal(json_integer_value(json_object_get(json_array_get(l, 0), "port")), 22);
	assert_null(json_object_get(json_array_get(l, 1), "port"));
	assert_null(json_object_get(json_array_get(l, 2), "port"));
	assert_int_equal(json_array_size(json_object_get(json_object_get(survey, "packages"), "list")), 6000);
	assert_null(json_object_get(json_object_get(survey, "packages"), "digest"));
	l = json_array_get(json_object_get(report, "checks"), 0);
	assert_int_equal(json_object_size(l), 5);
	l = json_array_get(json_object_get(report, "checks"), 1);
	assert_int_equal(json_object_size(l), 1);
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

static void check_judge(const char *serial, const char *screen, enum local_boot how, const char *stage)
{
	const char *got, *text;

	assert_int_equal(local_boot_judge(serial, screen, &got, &text), how);
	assert_string_equal(got, stage);
}

/* A boot that failed is told from one that is slow, and an earlier boot from this one. */
static void test_boot_judge(void **state)
{
	static const char up[] = "Linux version 6.1\nDebian GNU/Linux 12 web ttyS0\n\nweb login: ";
	static const char dead[] = "Linux version 6.1\n[ 3.3] Kernel panic - not syncing: VFS\n";
	char both[512];

	check_judge("", "", LOCAL_BOOT_COMING, "firmware");
	check_judge(up, "", LOCAL_BOOT_UP, "up");
	check_judge("GRUB\nLoading initial ramdisk ...\n", "", LOCAL_BOOT_COMING, "kernel");
	check_judge(dead, "", LOCAL_BOOT_FAILED, "kernel_panic");
	snprintf(both, sizeof(both), "SeaBIOS (version 1)\n%sSeaBIOS (version 1)\n%s", dead, up);
	check_judge(both, "", LOCAL_BOOT_UP, "up");
	snprintf(both, sizeof(both), "SeaBIOS (version 1)\n%sSeaBIOS (version 1)\n", up);
	check_judge(both, "", LOCAL_BOOT_COMING, "firmware");
	snprintf(both, sizeof(both), "BdsDxe: loading Boot0001\n%s%s", up, dead);
	check_judge(both, "", LOCAL_BOOT_FAILED, "kernel_panic");
	/* A kernel that only writes on the screen. */
	check_judge("Booting from Hard Disk...\n", "web login: ", LOCAL_BOOT_UP, "up");
	check_judge("GRUB\nLoading initial ramdisk ...\n", "(initramfs) _", LOCAL_BOOT_FAILED, "initramfs_shell");
	check_judge("BdsDxe: No bootable option or device was found.\n", "", LOCAL_BOOT_FAILED, "no_boot_loader");
}

/* A QEMU that answers each command after answers to others; of the last one, nothing at all. */
struct qmp {
	int server;
	json_int_t ids[16];
	size_t n;
};

static bool qmp_answer(struct qmp *q, FILE *f, const char *line)
{
	json_t *o = json_loads(line, 0, NULL), *id = json_object_get(o, "id");
	bool on = strcmp(json_string_value(json_object_get(o, "execute")) ?: "", "quit") != 0;

	if (q->n < ARRAY_SIZE(q->ids) && json_is_integer(id))
		q->ids[q->n++] = json_integer_value(id);
	fprintf(f, "{\"return\":{\"status\":\"late\"},\"id\":%lld}\n", (long long)json_integer_value(id) - 1);
	fprintf(f, "{\"error\":{\"desc\":\"nobody's\"}}\n{\"return\":{\"status\":\"text\"},\"id\":\"1\"}\n");
	if (on) {
		fprintf(f, "{\"return\":{\"status\":\"running\"},\"id\":%lld}\n", (long long)json_integer_value(id));
		fprintf(f, "{\"return\":{\"status\":\"twice\"},\"id\":%lld}\n", (long long)json_integer_value(id));
	}
	fflush(f);
	json_decref(o);
	return on;
}

static void *qmp_serve(void *arg)
{
	struct qmp *q = arg;

	for (int i = 0; i < 2; i++) {
		int fd = accept(q->server, NULL, NULL);
		FILE *f = fd >= 0 ? fdopen(fd, "r+") : NULL;
		char line[4096];

		if (!f)
			break;
		fputs("{\"QMP\":{}}\n", f);
		fflush(f);
		while (fgets(line, sizeof(line), f) && qmp_answer(q, f, line))
			fseek(f, 0, SEEK_CUR);
		fclose(f);
	}
	return NULL;
}

static void test_answers_are_known_by_their_number(void **state)
{
	char dir[] = "/tmp/replant-qmp-XXXXXX", status[32];
	struct qmp q = {.server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	struct qemu *vm = NULL;
	pthread_t thread;

	assert_non_null(mkdtemp(dir));
	snprintf(at.sun_path, sizeof(at.sun_path), "%s/qmp", dir);
	assert_int_equal(bind(q.server, (struct sockaddr *)&at, sizeof(at)), 0);
	assert_int_equal(listen(q.server, 2), 0);
	assert_int_equal(pthread_create(&thread, NULL, qmp_serve, &q), 0);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(qemu_attach(dir, &vm, NULL), 0);
		for (int k = 0; k < 2; k++) {
			assert_int_equal(qemu_status(vm, status, sizeof(status), NULL), 0);
			assert_string_equal(status, "running");
		}
		/* A connection that owes an answer is none any more. */
		assert_int_equal(qemu_command(vm, "quit", NULL, NULL, NULL), -EIO);
		assert_true(qemu_ended(vm));
		assert_int_equal(qemu_status(vm, status, sizeof(status), NULL), -EPIPE);
		qemu_stop(vm);
	}
	pthread_join(thread, NULL);
	close(q.server);
	assert_int_equal(q.n, 8);
	for (size_t i = 1; i < q.n; i++)
		assert_true(q.ids[i] > q.ids[i - 1]);
	assert_int_equal(io_remove_tree(dir, NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_answers_are_known_by_their_number),
	    cmocka_unit_test(test_boot_stage),
	    cmocka_unit_test(test_boot_judge),
	    cmocka_unit_test(test_lines),
	    cmocka_unit_test(test_line_without_end),
	    cmocka_unit_test(test_boot_report),
	    cmocka_unit_test(test_survey_in_the_boot_report),
	    cmocka_unit_test(test_layers_are_dropped_once),
	    cmocka_unit_test(test_receiver_may_not_tell_all),
	    cmocka_unit_test(test_what_a_receiver_complains_of),
	    cmocka_unit_test(test_image_without_digests),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
