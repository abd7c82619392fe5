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
#include "base/proc.h"
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
	    cmocka_unit_test(test_err_prefix), cmocka_unit_test(test_str_numbers),
	    cmocka_unit_test(test_str_hex),    cmocka_unit_test(test_str_utf8),
	    cmocka_unit_test(test_str_cut),    cmocka_unit_test(test_err_is_utf8),
	    cmocka_unit_test(test_bitmap),     cmocka_unit_test(test_id),
	    cmocka_unit_test(test_jsn),        cmocka_unit_test(test_proc_run),
	    cmocka_unit_test(test_min_max),    cmocka_unit_test(test_proc_run_unless),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
