/* What the agent reads from outside: codes, addresses, os-release, the center's answers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"

#define FINGERPRINT "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"

static void test_code(void **state)
{
	static const char *const bad[] = {"",
					  ".",
					  "..",
					  "a.b",
					  "a.b.c",
					  "a.b." FINGERPRINT "00",
					  ".b." FINGERPRINT,
					  "a.." FINGERPRINT,
					  "a b.c." FINGERPRINT,
					  "a.b.c." FINGERPRINT,
					  "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.b." FINGERPRINT,
					  "a\n.b." FINGERPRINT};
	struct conf_code c = {0};
	struct err e = {0};

	assert_int_equal(conf_code_parse("0123456789abcdef.s3cret." FINGERPRINT, &c, &e), 0);
	assert_string_equal(c.id, "0123456789abcdef");
	assert_string_equal(c.secret, "s3cret");
	assert_int_equal(c.ca[31], 0x1f);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(conf_code_parse(bad[i], &c, &e), -EINVAL);
	assert_null(strstr(e.msg, FINGERPRINT)); /* a code has no business in a log */
}

static void test_url(void **state)
{
	static const char *const bad[] = {"",
					  "http://a",
					  "https://",
					  "https://a:0",
					  "https://a:70000",
					  "https://a:x",
					  "https://a/b",
					  "https://[::1",
					  "https://a b",
					  "https://a\r\nX: y",
					  "https://a@b",
					  "ftp://a"};
	struct conf_url u = {0};

	assert_int_equal(conf_url_parse("https://center.example", &u, NULL), 0);
	assert_string_equal(u.host, "center.example");
	assert_int_equal(u.port, 8443);
	assert_false(u.numeric);
	assert_int_equal(conf_url_parse("10.1.2.3:443", &u, NULL), 0);
	assert_int_equal(u.port, 443);
	assert_true(u.numeric);
	assert_int_equal(conf_url_parse("https://[fd00::1]:9/", &u, NULL), 0);
	assert_string_equal(u.host, "fd00::1");
	assert_int_equal(u.port, 9);
	assert_true(u.numeric);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(conf_url_parse(bad[i], &u, NULL), -EINVAL);
	assert_string_equal(u.host, "fd00::1");
}

static const char *os(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key));
}

static void test_os_release(void **state)
{
	_cleanup_json_ json_t *o =
	    sysinfo_os_parse("PRETTY_NAME=\"Debian \\\"x\\\" 12\"\nNAME='A B'\n#ID=no\nVERSION_ID=12 # tail\n"
			     "ID=debian\nVARIANT_ID=server\nID_LIKE=");

	assert_string_equal(os(o, "pretty_name"), "Debian \"x\" 12");
	assert_string_equal(os(o, "name"), "A B");
	assert_string_equal(os(o, "version_id"), "12");
	assert_string_equal(os(o, "id"), "debian");
	assert_string_equal(os(o, "id_like"), "");
	assert_null(json_object_get(o, "codename"));
}

static int reply(const char *text, struct task_reply *ret, struct err *e)
{
	_cleanup_json_ json_t *o = json_loads(text, 0, NULL);

	assert_non_null(o);
	return task_reply_parse(o, ret, e);
}

#define TASK(rest)                                                                                                     \
	"{\"interval_seconds\": 2.5, \"task\": {\"job\": \"job-0123456789abcdef\", \"run\": "                          \
	"\"run-0123456789abcdef\", "                                                                                   \
	"\"action\": \"send\", \"port\": 7000, \"psk\": \"" FINGERPRINT "\"" rest "}}"

static void test_reply(void **state)
{
	static const char *const bad[] = {
	    "[]",
	    "{\"interval_seconds\": \"x\"}",
	    "{\"task\": 1}",
	    "{\"task\": {}}",
	    "{\"task\": {\"action\": \"format\"}}",
	    TASK(", \"disks\": []"),
	    TASK(", \"disks\": \"sda\""),
	    TASK(", \"disks\": [\"/etc/shadow\"]"),
	    TASK(", \"disks\": [\"/dev/../etc/shadow\"]"),
	    TASK(", \"disks\": [\"../x\"]"),
	    TASK(", \"disks\": [1]"),
	    TASK(", \"disks\": [\"sda b\"]"),
	    TASK(", \"host\": \"a b\""),
	    TASK(", \"host\": 5"),
	    TASK(", \"parameters\": []"),
	    TASK(", \"parameters\": {\"connections\": 17}"),
	    TASK(", \"parameters\": {\"connections\": 0}"),
	    TASK(", \"parameters\": {\"compression\": 11}"),
	    TASK(", \"parameters\": {\"on_read_error\": \"ignore\"}"),
	    TASK(", \"parameters\": {\"rate_mbit\": -1}"),
	    TASK(", \"parameters\": {\"checksum\": 1}"),
	    TASK(", \"parameters\": {\"max_freeze\": 0}"),
	    TASK(", \"parameters\": {\"max_freeze\": 3601}"),
	    TASK(", \"log_at\": -1"),
	    TASK(", \"log_at\": \"5\""),
	    TASK(", \"log_at\": 9007199254740992"),
	};
	struct task_reply r = {0};
	struct err e = {0};

	assert_int_equal(reply("{\"interval_seconds\": 10, \"task\": null}", &r, &e), 0);
	assert_false(r.has_task);
	assert_int_equal(reply("{\"interval_seconds\": -5}", &r, &e), 0);
	assert_true(r.interval == 1.0);
	assert_int_equal(reply("{\"interval_seconds\": 1e300}", &r, &e), 0);
	assert_true(r.interval == 3600.0);
	assert_int_equal(reply(TASK(", \"host\": null, \"disks\": null"), &r, &e), 0);
	assert_true(r.has_task);
	assert_string_equal(r.task.host, "");
	assert_int_equal(r.task.port, 7000);
	assert_int_equal(r.task.psk[31], 0x1f);
	assert_int_equal(r.task.connections, 4);
	assert_int_equal(r.task.ndisks, 0);
	assert_false(r.task.has_log);
	assert_int_equal(reply(TASK(", \"log_at\": null"), &r, &e), 0);
	assert_false(r.task.has_log);
	assert_int_equal(reply(TASK(", \"log_at\": 77"), &r, &e), 0);
	assert_true(r.task.has_log && r.task.log_at == 77);
	assert_int_equal(
	    reply(TASK(", \"disks\": [\"sda\", \"/dev/mapper/x-y\"], \"parameters\": {\"connections\": 2, "
		       "\"on_read_error\": \"zero\", \"checksum\": true, \"test_boot\": true, \"max_freeze\": 60}"),
		  &r, &e),
	    0);
	assert_string_equal(r.task.disks[0], "/dev/sda");
	assert_string_equal(r.task.disks[1], "/dev/mapper/x-y");
	assert_true(r.task.zero_unreadable && r.task.checksum);
	assert_int_equal(r.task.max_freeze, 60);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		if (reply(bad[i], &r, &e) == 0)
			fail_msg("taken: %s", bad[i]);
}

static void test_progress(void **state)
{
	const struct stream_progress p = {.phase = STREAM_COMPARE,
					  .round = 2,
					  .bytes_total = 200,
					  .bytes_done = 50,
					  .speed = 1.5,
					  .seconds_left = -1,
					  .expected_freeze = INFINITY,
					  .freeze_seconds = 0.25};
	_cleanup_json_ json_t *o = task_progress(&p);

	assert_non_null(o);
	assert_string_equal(os(o, "phase"), "compare");
	assert_true(json_number_value(json_object_get(o, "percent")) == 25.0);
	assert_true(json_is_null(json_object_get(o, "seconds_left")));
	assert_true(json_is_null(json_object_get(o, "expected_freeze_seconds")));
	assert_true(json_number_value(json_object_get(o, "freeze_ms")) == 250.0);
}

/* What a repeated run would only freeze the server for once more is no temporary failure. */
static void test_error(void **state)
{
	static const struct {
		int code;
		const char *name;
		bool temporary;
	} rows[] = {{-ETIME, "source_busy", false},
		    {-ECHILD, "hook_failed", false},
		    {-ETIMEDOUT, "timed_out", true},
		    {-EOWNERDEAD, "guard_lost", true},
		    {-ENOTRECOVERABLE, "freeze_failed", false},
		    {-EIO, "read_error", false},
		    {-EPIPE, "connection_failed", true},
		    {-EXDEV, "send_failed", false}};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		const struct err e = {.code = rows[i].code, .msg = "reason"};
		_cleanup_json_ json_t *o = task_error(&e);

		assert_string_equal(os(o, "code"), rows[i].name);
		assert_string_equal(os(o, "message"), "reason");
		assert_int_equal(json_is_true(json_object_get(o, "temporary")), rows[i].temporary);
	}
}

/* More than is listed is told as a sum. */
static void test_many_zeroed(void **state)
{
	struct stream_result r = {.nzeroed = 1000};
	_cleanup_json_ json_t *few = NULL, *many = NULL;

	r.zeroed = calloc(r.nzeroed, sizeof(*r.zeroed));
	assert_non_null(r.zeroed);
	for (size_t i = 0; i < r.nzeroed; i++)
		r.zeroed[i].length = 4096;
	many = task_result(&r, NULL, 0);
	r.nzeroed = 3;
	few = task_result(&r, NULL, 0);
	free(r.zeroed);
	assert_int_equal(json_array_size(json_object_get(few, "zeroed")), 3);
	assert_int_equal(json_array_size(json_object_get(few, "notes")), 0);
	assert_int_equal(json_array_size(json_object_get(many, "zeroed")), 200);
	assert_int_equal(json_array_size(json_object_get(many, "notes")), 1);
	assert_non_null(strstr(json_string_value(json_array_get(json_object_get(many, "notes"), 0)),
			       "1000 unreadable ranges, 4096000"));
}

static void test_refusal(void **state)
{
	_cleanup_json_ json_t *o = json_pack("{s:{s:s, s:s}}", "error", "code", "x", "message", "the code has expired");
	struct err e = {0};

	assert_int_equal(http_refusal(403, o, &e), -EACCES);
	assert_non_null(strstr(e.msg, "the code has expired"));
	assert_int_equal(http_refusal(503, NULL, &e), -EBUSY);
	assert_int_equal(http_refusal(500, NULL, &e), -EREMOTEIO);
}

static void test_conf(void **state)
{
	char dir[] = "/tmp/replant-conf-XXXXXX", ca[] = "PEM";
	_cleanup_free_ char *path = NULL;
	struct conf c = {.center = "https://a:1", .source = "source-0123456789abcdef", .secret = "s", .ca_pem = ca},
		    back = {0};
	struct err e = {0};
	struct stat st;

	assert_non_null(mkdtemp(dir));
	assert_int_equal(conf_load(dir, &back, &e), -ENOENT);
	assert_non_null(strstr(e.msg, "enroll"));
	assert_int_equal(conf_add_disk(&c, "sda", &e), -EINVAL);
	assert_int_equal(conf_add_disk(&c, "/dev/sda", &e), 0);
	assert_int_equal(conf_store(dir, &c, &e), 0);
	path = str_printf("%s/agent.json", dir);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 07777, 0600);
	assert_int_equal(conf_load(dir, &back, &e), 0);
	assert_string_equal(back.source, c.source);
	assert_string_equal(back.url.host, "a");
	assert_string_equal(back.ca_pem, "PEM");
	assert_int_equal(back.ndisks, 1);
	assert_string_equal(back.disks[0], "/dev/sda");
	conf_release(&back);
	assert_int_equal(io_write_file_atomic(path, "{", 1, 0600, NULL), 0);
	assert_int_equal(conf_load(dir, &back, &e), -EINVAL);
	free(c.disks[0]);
	io_remove_tree(dir, NULL);
}

/* ---- the log of a task ---- */

/* A center: its text, from `from` on. */
struct listener {
	struct task task;
	struct str text;
	uint64_t from;
};

/* Takes what the agent reports, as the center does; false: there was nothing. */
static bool listen_once(struct listener *l, struct tasklog *t, bool all)
{
	_cleanup_json_ json_t *o = tasklog_report(t, all);
	const char *text = json_string_value(json_object_get(o, "text"));
	uint64_t at = (uint64_t)json_integer_value(json_object_get(o, "at")), end = l->from + l->text.len;

	if (!o)
		return false;
	assert_string_equal(json_string_value(json_object_get(o, "run")), l->task.run);
	assert_true(text[strlen(text) - 1] == '\n' && (all || strlen(text) <= TASKLOG_PIECE));
	assert_true(at <= end); /* nothing is missing */
	if (at + strlen(text) > end)
		str_add(&l->text, text + (end - at));
	l->task.log_at = l->from + l->text.len;
	return true;
}

static struct listener listener(uint64_t from)
{
	return (struct listener){.task = {.run = "run-0123456789abcdef", .has_log = true, .log_at = from},
				 .from = from};
}

/* Whatever answers are lost, and however much is said meanwhile, each line comes once and in order. */
static void test_tasklog(void **state)
{
	struct tasklog t = {.lock = PTHREAD_MUTEX_INITIALIZER};
	struct listener l = listener(1000);
	char line[64], *at;
	unsigned n = 0;

	srand(7);
	tasklog_line(&t, LOG_LEVEL_INFO, "before"); /* nobody wants to know */
	tasklog_begin(&t, &l.task);
	for (unsigned i = 0; i < 2000; i++) {
		for (int k = rand() % 20; k > 0; k--) {
			snprintf(line, sizeof(line), "line %u", n++);
			tasklog_line(&t, LOG_LEVEL_WARN, line);
		}
		if (rand() % 3)
			listen_once(&l, &t, false);
		if (rand() % 3) /* else the answer was lost */
			tasklog_heard(&t, &l.task);
	}
	listen_once(&l, &t, true);
	tasklog_heard(&t, &l.task);
	assert_false(listen_once(&l, &t, true));
	assert_true(n > 15000 && str_ok(&l.text));
	at = l.text.s;
	for (unsigned i = 0; i < n; i++) {
		snprintf(line, sizeof(line), "Z warn  line %u\n", i);
		at = strchr(at, 'Z');
		assert_true(at && str_starts(at, line));
		at += strlen(line);
	}
	assert_int_equal(*at, '\0');
	/* Not wanted any more, then again. */
	l.task.has_log = false;
	tasklog_heard(&t, &l.task);
	tasklog_line(&t, LOG_LEVEL_INFO, "unheard");
	assert_false(listen_once(&l, &t, true));
	l.task.has_log = true;
	tasklog_heard(&t, &l.task);
	tasklog_line(&t, LOG_LEVEL_INFO, "heard; password=abc");
	assert_true(listen_once(&l, &t, true));
	assert_null(strstr(l.text.s, "unheard"));
	assert_non_null(strstr(l.text.s, "heard; password=***\n"));
	tasklog_end(&t);
	str_release(&l.text);
}

/* A center that can't be reached for long: the oldest goes, by whole lines, and `at` tells how much. */
static void test_tasklog_full(void **state)
{
	struct tasklog t = {.lock = PTHREAD_MUTEX_INITIALIZER};
	struct listener l = listener(0);
	_cleanup_json_ json_t *o = NULL;
	uint64_t each;
	const char *text;
	char line[64];

	tasklog_begin(&t, &l.task);
	for (unsigned i = 0; i < 20000; i++) {
		snprintf(line, sizeof(line), "line %05u", i);
		tasklog_line(&t, LOG_LEVEL_INFO, line);
	}
	o = tasklog_report(&t, true);
	text = json_string_value(json_object_get(o, "text"));
	each = (uint64_t)(strchr(text, '\n') + 1 - text);
	assert_true(strlen(text) > TASKLOG_MAX / 2 && strlen(text) <= TASKLOG_MAX && strlen(text) % each == 0);
	assert_int_equal(json_integer_value(json_object_get(o, "at")) + (json_int_t)strlen(text), 20000 * each);
	assert_string_equal(text + strlen(text) - 12, " line 19999\n");
	/* The center has more than we ever said, as after another agent's words for the same run. */
	l.task.log_at = 30000 * each;
	tasklog_heard(&t, &l.task);
	tasklog_line(&t, LOG_LEVEL_INFO, "more");
	json_decref(o);
	o = tasklog_report(&t, true);
	assert_int_equal(json_integer_value(json_object_get(o, "at")), 30000 * each);
	tasklog_end(&t);
}

/* Which of three disks a test leaves out: a digit for each. */
static void assert_left_out(const char *filesystems, const char *volumes, const char *partitions_of_c, const char *want)
{
	_cleanup_free_ char *text =
	    str_printf("{\"disks\":[{\"name\":\"sda\",\"path\":\"/dev/sda\",\"used\":5,\"partitions\":[]},"
		       "{\"name\":\"sdb\",\"path\":\"/dev/sdb\",\"used\":5,\"partitions\":[]},"
		       "{\"name\":\"sdc\",\"path\":\"/dev/sdc\",\"aliases\":[\"/dev/disk/by-id/c\"],\"used\":5,"
		       "\"partitions\":[%s]}],\"filesystems\":[%s],\"volumes\":[%s]}",
		       partitions_of_c, filesystems, volumes);
	static const char *const disks[] = {"/dev/sda", "/dev/sdb", "/dev/disk/by-id/c"};
	_cleanup_json_ json_t *inventory = NULL;
	bool out[3] = {true, false, false};
	char got[4] = "";
	struct err e = {0};

	assert_int_equal(jsn_parse(text, strlen(text), 1 << 20, &inventory, &e), 0);
	trial_choose(inventory, disks, 3, out);
	for (size_t i = 0; i < 3; i++)
		if (out[i])
			got[strlen(got)] = (char)('0' + i);
	assert_string_equal(got, want);
}

#define LOOSE(disks, type, understood)                                                                                 \
	"{\"disks\":[" disks "],\"type\":\"" type "\",\"understood\":" understood ",\"mounts\":[]}"
#define FS(disks, type, point)                                                                                         \
	"{\"disks\":[" disks "],\"type\":\"" type "\",\"understood\":true,\"mounts\":[{\"point\":\"" point "\"}]}"
#define ROOT              FS("\"sda\"", "ext4", "/")
#define LV(linear, disks) "{\"kind\":\"lv\",\"linear\":" linear ",\"disks\":[" disks "]}"

static void test_trial_of_many(void **state)
{
	static const char *disks[TASK_DISKS_MAX + 1];
	struct trial t = {0};
	struct err e = {0};

	for (size_t i = 0; i < ARRAY_SIZE(disks); i++)
		disks[i] = "/dev/null";
	assert_int_equal(trial_begin(&(struct agent_options){0}, disks, ARRAY_SIZE(disks), &t, &e), -EINVAL);
	assert_non_null(strstr(e.msg, "at most 64 disks"));
	assert_null(t.report);
}

static void test_trial(void **state)
{
	assert_left_out(ROOT, "", "", "12"); /* nothing on them */
	assert_left_out(ROOT "," FS("\"sdb\"", "ext4", "/srv/data"), "", "", "12");
	assert_left_out(ROOT "," FS("\"sdb\"", "ext4", "/var"), "", "", "2");
	assert_left_out(ROOT "," FS("\"sdb\"", "ext4", "/var/lib/mysql"), "", "", "12");
	assert_left_out(ROOT "," FS("\"sdb\"", "ext4", "/usr/local"), "", "", "2");
	assert_left_out(ROOT "," FS("\"sdb\"", "ext4", "/user"), "", "", "12");
	/* BIOS may begin on the first all the same. */
	assert_left_out(FS("\"sdc\"", "ext4", "/"), "", "", "1");
	/* What nobody mounted is left out only when it is understood. */
	assert_left_out(ROOT "," LOOSE("\"sdb\"", "swap", "false") "," LOOSE("\"sdc\"", "ext4", "true"), "", "", "12");
	assert_left_out(ROOT "," LOOSE("\"sdb\"", "btrfs", "false") "," LOOSE("\"sdc\"", "crypto_LUKS", "false"), "",
			"", "");
	assert_left_out(ROOT, "", "{\"content\":\"unknown\"}", "1");
	assert_left_out(ROOT, "", "{\"content\":\"vfat\",\"type\":\"C12A7328-F81F-11D2-BA4B-00A0C93EC93B\"}", "1");
	/* Of a volume group all or nothing. */
	assert_left_out(FS("\"sda\"", "ext4", "/boot") "," FS("\"sdb\"", "xfs", "/"), LV("true", "\"sdb\""),
			"{\"content\":\"LVM2_member\",\"lvm\":true}", "");
	assert_left_out(ROOT "," FS("\"sdb\",\"sdc\"", "xfs", "/srv"), LV("true", "\"sdb\",\"sdc\""), "", "12");
	assert_left_out(ROOT, LV("false", "\"sdb\""), "", "2");
	/* A system on something whose disks aren't told. */
	assert_left_out("{\"disks\":null,\"device\":\"/dev/mapper/safe\",\"type\":\"ext4\","
			"\"mounts\":[{\"point\":\"/\"}]}",
			"", "", "");
	/* Removable media aren't it. */
	assert_left_out("{\"disks\":null,\"device\":\"/dev/mapper/stick\",\"type\":\"ext4\","
			"\"mounts\":[{\"point\":\"/run/media/me\"}]}",
			"", "", "12");
	assert_left_out("{\"disks\":null,\"device\":\"/dev/sdq1\",\"type\":\"ext4\","
			"\"mounts\":[{\"point\":\"/\"}]}",
			"", "", "12");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_code),          cmocka_unit_test(test_url),
	    cmocka_unit_test(test_os_release),    cmocka_unit_test(test_reply),
	    cmocka_unit_test(test_progress),      cmocka_unit_test(test_refusal),
	    cmocka_unit_test(test_conf),          cmocka_unit_test(test_error),
	    cmocka_unit_test(test_many_zeroed),   cmocka_unit_test(test_tasklog),
	    cmocka_unit_test(test_tasklog_full),  cmocka_unit_test(test_trial),
	    cmocka_unit_test(test_trial_of_many),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
