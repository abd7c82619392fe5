#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "base/bitmap.h"
#include "base/err.h"
#include "base/id.h"
#include "base/jsn.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/redact.h"
#include "base/str.h"
#include "base/util.h"

static void test_err_prefix(void **state)
{
	struct err e = {0};

	errno = ENOENT;
	assert_int_equal(err_sys(&e, "cannot open '%s'", "/x"), -ENOENT);
	assert_int_equal(err_prefix(&e, "disk %d", 1), -ENOENT);
	assert_string_equal(e.msg, "disk 1: cannot open '/x': No such file or directory");
}

#define HEX64   "00112233445566778899aabbccddeeff00112233445566778899AABBCCDDEEFF"
#define STARS64 "****************************************************************"

static void test_redact_text(void **state)
{
	static const char *const rows[][2] = {
	    {"nothing of the kind, 12 blocks", "nothing of the kind, 12 blocks"},
	    {"password=hunter2 and more", "password=******* and more"},
	    {"DB_PASSWORD: 'a b\\'c' x", "DB_PASSWORD: '******' x"},
	    {"--password hunter2 --force", "--password ******* --force"},
	    {"--psk-file --once", "--psk-file --once"},
	    {"the password is wrong", "the password is wrong"},
	    {"{\"psk\": \"abc\", \"port\": 7}", "{\"psk\": \"***\", \"port\": 7}"},
	    {"{\"text\": \"{\\\"secret\\\": \\\"abc\\\", 1}\"}", "{\"text\": \"{\\\"secret\\\": \\\"***\\\", 1}\"}"},
	    {"GET /x?api_key=abc&n=1", "GET /x?api_key=***&n=1"},
	    {"Authorization: Basic cm9vdDpyb290", "Authorization: ******************"},
	    {"'Authorization: Bearer abc def' sent", "'Authorization: **************' sent"},
	    {"with bearer abcdefghijkl.m", "with bearer **************"},
	    {"bearer of news", "bearer of news"},
	    {"from https://root:hunter2@host/x@y", "from https://************@host/x@y"},
	    {"from https://host/x@y", "from https://host/x@y"},
	    {"token 0123456789abcdef." HEX64, "token 0123456789abcdef." STARS64},
	    {"0123456789abcdef." HEX64 "." HEX64 " enrols", "0123456789abcdef." STARS64 "." HEX64 " enrols"},
	    {"statement " HEX64, "statement " HEX64},
	    {"version 12345678.1234", "version 12345678.1234"},
	    {"a\n-----BEGIN RSA PRIVATE KEY-----\nMII\nAbc=\n-----END RSA PRIVATE KEY-----\nb",
	     "a\n-----BEGIN RSA PRIVATE KEY-----\n***\n****\n-----END RSA PRIVATE KEY-----\nb"},
	    {"x-----BEGIN PRIVATE KEY-----\\nMII-----END PRIVATE KEY-----y", "x-----BEGIN PRIVATE KEY----------"},
	    {"-----BEGIN CERTIFICATE-----\nMII", "-----BEGIN CERTIFICATE-----\nMII"},
	    {NULL}};

	for (size_t i = 0; rows[i][0]; i++) {
		char text[512];
		struct redact r = {0};

		snprintf(text, sizeof(text), "%s", rows[i][0]);
		redact_text(&r, text, strlen(text));
		assert_int_equal(strlen(text), strlen(rows[i][0]));
		if (strstr(rows[i][1], "----------"))
			assert_null(strstr(text, "MII"));
		else
			assert_string_equal(text, rows[i][1]);
	}
}

/* A key in pieces, and one without an end, which is believed for so long only. */
static void test_redact_keys(void **state)
{
	char begin[] = "-----BEGIN PRIVATE KEY-----\n", body[] = "MII\n", line[] = "line\n";
	struct redact r = {0};

	redact_text(&r, begin, strlen(begin));
	redact_text(&r, body, strlen(body));
	assert_string_equal(body, "***\n");
	for (unsigned i = 0; i < 300; i++) {
		strcpy(line, "line\n");
		redact_text(&r, line, strlen(line));
	}
	assert_string_equal(line, "line\n");
}

static void test_redact_json(void **state)
{
	_cleanup_json_ json_t *o = NULL, *clean = NULL;
	_cleanup_free_ char *text = NULL;
	const char *in = "{\"a\":{\"secret\":{\"x\":[\"y\",7,null,true]}},\"list\":[\"password=abc\"],\"n\":1}";

	assert_int_equal(jsn_parse(in, strlen(in), 1000, &o, NULL), 0);
	clean = redact_json(o);
	text = json_dumps(clean, JSON_COMPACT);
	assert_string_equal(text, "{\"a\":{\"secret\":{\"x\":[\"***\",\"***\",null,true]}},"
				  "\"list\":[\"password=***\"],\"n\":1}");
}

static void note_line(void *arg, enum log_level level, const char *message)
{
	char *out = arg;

	snprintf(out + strlen(out), 200 - strlen(out), "%d %s|", (int)level, message);
}

/* One object in one line whatever is said, for programs; who listens hears more than is printed. */
static void test_log_json(void **state)
{
	char path[] = "/tmp/test-log-XXXXXX", text[1000] = "", heard[200] = "";
	int fd = mkstemp(path), saved = dup(2);
	_cleanup_json_ json_t *o = NULL;
	const char *message;

	unlink(path);
	setenv("REPLANT_LOG", "json", 1);
	log_set(LOG_LEVEL_INFO, false);
	log_tap(note_line, heard);
	dup2(fd, 2);
	log_warn("two\nlines, \"quoted\", \xff and \xc3\xa4");
	log_debug("more");
	dup2(saved, 2);
	log_tap(NULL, NULL);
	unsetenv("REPLANT_LOG");
	log_set(LOG_LEVEL_INFO, false);
	assert_true(pread(fd, text, sizeof(text) - 1, 0) > 0);
	close(fd);
	close(saved);
	assert_int_equal(strchr(text, '\n') - text, strlen(text) - 1);
	assert_int_equal(jsn_parse(text, strlen(text) - 1, sizeof(text), &o, NULL), 0);
	message = json_string_value(json_object_get(o, "message"));
	assert_string_equal(message, "two lines, \"quoted\", ? and \xc3\xa4");
	assert_string_equal(json_string_value(json_object_get(o, "level")), "warning");
	assert_true(json_number_value(json_object_get(o, "time")) > 1e9);
	assert_string_equal(heard, "1 two lines, \"quoted\", ? and \xc3\xa4|3 more|");
}

static bool give_up(void *arg)
{
	return ++*(unsigned *)arg > 2;
}

static bool go_on(void *arg)
{
	return false;
}

/* With all it started, as timeout(1) does for its group. */
static void test_proc_run_unless(void **state)
{
	const char *const slow[] = {"timeout", "60", "sh", "-c", "sleep 50 & sleep 50", NULL};
	const char *const quick[] = {"echo", "hello", NULL};
	_cleanup_free_ char *out = NULL;
	double began = id_now_mono();
	struct err e = {0};
	unsigned times = 0;

	assert_int_equal(proc_run_unless(slow, give_up, &times, 100, NULL, &e), -ECANCELED);
	assert_string_equal(e.msg, "stopped");
	assert_true(id_now_mono() - began < 10);
	assert_int_equal(times, 3);
	assert_int_equal(proc_run_unless(quick, go_on, NULL, 100, &out, &e), 0);
	assert_string_equal(out, "hello\n");
}

static int asked;

static int ask(int value)
{
	asked++;
	return value;
}

static void test_min_max(void **state)
{
	int i = 0;

	asked = 0;
	assert_int_equal(MIN(ask(3), ask(7)), 3);
	assert_int_equal(MAX(ask(3), ask(7)), 7);
	assert_int_equal(asked, 4);
	assert_int_equal(MAX(MIN(ask(9), ask(5)), MIN(ask(8), MAX(ask(6), ask(1)))), 6);
	assert_int_equal(asked, 9);
	assert_int_equal(MIN(i++, 1), 0);
	assert_int_equal(i, 1);
	assert_true(MIN(1u, 0.5) < 0.6); /* two types: the one both fit in */
}

static void test_str_numbers(void **state)
{
	uint64_t v = 7;

	assert_int_equal(str_u64("12", 0, 20, &v), 0);
	assert_int_equal(v, 12);
	assert_int_equal(str_u64("21", 0, 20, &v), -ERANGE);
	assert_int_equal(str_u64("-1", 0, 20, &v), -EINVAL);
	assert_int_equal(str_u64("1x", 0, 20, &v), -EINVAL);
	assert_int_equal(str_u64("99999999999999999999", 0, UINT64_MAX, &v), -ERANGE);
	assert_int_equal(v, 12);
	assert_int_equal(str_size("1.5G", &v), 0);
	assert_int_equal(v, GIB + GIB / 2);
	assert_int_equal(str_size("1.5GB", &v), -EINVAL);
}

/* Jansson's own idea of UTF-8 decides. */
static bool json_takes(const char *s)
{
	_cleanup_json_ json_t *j = json_string(s);

	return j;
}

static void test_str_html(void **state)
{
	_cleanup_(str_release) struct str b = {0};

	str_add_html(&b, NULL);
	assert_null(b.s);
	str_add_html(&b, "<a href=\"x\" id='y'>&\xc3\xa4</a>");
	assert_string_equal(b.s, "&lt;a href=&quot;x&quot; id=&#39;y&#39;&gt;&amp;\xc3\xa4&lt;/a&gt;");
}

static void test_str_utf8(void **state)
{
	static const struct {
		const char *from, *to;
	} cases[] = {{"", ""},
		     {"plain", "plain"},
		     {"\u00fc\u20ac\U0001f600", "\u00fc\u20ac\U0001f600"},
		     {"a\xc3", "a"},
		     {"a\xe2\x82", "a"},
		     {"a\xf0\x9f\x98", "a"},
		     {"a\xc3 b", "a? b"},
		     {"a\xffz\xfe", "a?z?"},
		     {"\xed\xa0\x80", "???"},
		     {"\xc0\x80\x80", "???"}};
	static const unsigned char some[] = {0x41, 0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0,
					     0xc2, 0xdf, 0xe0, 0xed, 0xef, 0xf0, 0xf4, 0xf5, 0xff};
	const size_t n = sizeof(some);

	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		char text[32];

		snprintf(text, sizeof(text), "%s", cases[i].from);
		str_utf8(text);
		assert_string_equal(text, cases[i].to);
	}
	for (size_t i = 0; i < n * n * n * n * n; i++) {
		char text[6] = {(char)some[i % n], (char)some[i / n % n], (char)some[i / n / n % n],
				(char)some[i / n / n / n % n], (char)some[i / n / n / n / n]};
		char before[6];
		bool good = json_takes(text);

		memcpy(before, text, sizeof(text));
		str_utf8(text);
		assert_true(json_takes(text));
		assert_int_equal(good, strcmp(text, before) == 0);
	}
}

static void test_str_cut(void **state)
{
	const char *s = "a\u00fc\u20ac";

	assert_int_equal(str_cut(s, 0), 0);
	assert_int_equal(str_cut(s, 1), 1);
	assert_int_equal(str_cut(s, 2), 1);
	assert_int_equal(str_cut(s, 3), 3);
	assert_int_equal(str_cut(s, 5), 3);
	assert_int_equal(str_cut(s, 6), 6);
	assert_int_equal(str_cut(s, 60), 6);
}

/* A message that had to be cut, or quotes any bytes, can still be said in JSON. */
static void test_err_is_utf8(void **state)
{
	char text[2 * ERR_MSG_MAX];
	struct err e = {0};

	for (size_t i = 0; i < 2; i++) {
		memset(text, 0, sizeof(text));
		for (size_t k = 0; k < ERR_MSG_MAX; k += 2)
			memcpy(text + i + k, "\u00fc", 2);
		memcpy(text, "x", i);
		err_set(&e, -EIO, "%s", text);
		assert_true(json_takes(e.msg));
		assert_true(strlen(e.msg) >= ERR_MSG_MAX - 2);
		errno = ENOENT;
		err_sys(&e, "%s", text);
		assert_true(json_takes(e.msg));
		err_set(&e, -EIO, "%.700s", text);
		err_prefix(&e, "%.65s", text);
		assert_true(json_takes(e.msg));
	}
	err_set(&e, -EIO, "cannot open '%s'", "\xff.txt");
	assert_string_equal(e.msg, "cannot open '?.txt'");
}

static void test_str_hex(void **state)
{
	uint8_t raw[3];
	char hex[7];

	assert_int_equal(str_unhex("00ffA1", raw, 3), 0);
	str_hex(raw, 3, hex);
	assert_string_equal(hex, "00ffa1");
	assert_int_equal(str_unhex("00ffa", raw, 3), -EINVAL);
	assert_int_equal(str_unhex("00ffag", raw, 3), -EINVAL);
}

static void test_bitmap(void **state)
{
	_cleanup_(bitmap_release) struct bitmap b = {0};

	assert_int_equal(bitmap_init(&b, 130, NULL), 0);
	assert_int_equal(bitmap_next(&b, 0), 130);
	bitmap_set_range(&b, 3, 124);
	assert_int_equal(bitmap_count(&b), 124);
	assert_int_equal(bitmap_next(&b, 0), 3);
	bitmap_set_range(&b, 129, UINT64_MAX);
	assert_int_equal(bitmap_next(&b, 127), 129);
	bitmap_clear(&b, 129);
	assert_int_equal(bitmap_next(&b, 127), 130);
}

static void test_id(void **state)
{
	char id[ID_MAX];

	id_new("job", id);
	assert_true(id_is("job", id));
	assert_false(id_is("run", id));
	assert_false(id_is("job", "job-../../etc/passwd"));
	assert_false(id_is("job", "job-0123456789ABCDEF"));
}

static void test_jsn(void **state)
{
	_cleanup_json_ json_t *j = NULL;
	struct err e = {0};
	const char *s = NULL;
	uint64_t v = 0;

	assert_int_equal(jsn_parse("{\"a\":1,\"a\":2}", 13, 100, &j, &e), -EINVAL);
	assert_int_equal(jsn_parse("{\"a\":5,\"s\":\"x\"}", 15, 100, &j, &e), 0);
	assert_int_equal(jsn_get_u64(j, "a", true, 6, 9, &v, &e), -ERANGE);
	assert_string_equal(e.msg, "'a' must be between 6 and 9, not 5");
	assert_int_equal(jsn_get_str(j, "b", true, 9, &s, &e), -EINVAL);
	assert_int_equal(jsn_get_str(j, "b", false, 9, &s, &e), 0);
	assert_null(s);
}

static void test_proc_run(void **state)
{
	const char *const good[] = {"sh", "-c", "echo out; echo err >&2", NULL};
	const char *const bad[] = {"sh", "-c", "echo the reason >&2; exit 3", NULL};
	const char *const none[] = {"replant-no-such-program", NULL};
	_cleanup_free_ char *out = NULL;
	struct err e = {0};

	assert_int_equal(proc_run(good, 100, &out, &e), 0);
	assert_string_equal(out, "out\n");
	assert_int_equal(proc_run(bad, 100, NULL, &e), -EIO);
	assert_string_equal(e.msg, "'sh' failed with status 3: the reason");
	assert_int_equal(proc_run(none, 100, NULL, &e), -ENOENT);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_redact_text),
	    cmocka_unit_test(test_redact_keys),
	    cmocka_unit_test(test_redact_json),
	    cmocka_unit_test(test_log_json),
	    cmocka_unit_test(test_err_prefix),
	    cmocka_unit_test(test_str_numbers),
	    cmocka_unit_test(test_str_hex),
	    cmocka_unit_test(test_str_utf8),
	    cmocka_unit_test(test_str_html),
	    cmocka_unit_test(test_str_cut),
	    cmocka_unit_test(test_err_is_utf8),
	    cmocka_unit_test(test_bitmap),
	    cmocka_unit_test(test_id),
	    cmocka_unit_test(test_jsn),
	    cmocka_unit_test(test_proc_run),
	    cmocka_unit_test(test_min_max),
	    cmocka_unit_test(test_proc_run_unless),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
