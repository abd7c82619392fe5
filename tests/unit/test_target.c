#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/util.h"
#include "model/model.h"

static void test_parts(void **state)
{
	static const struct {
		const char *url, *host, *path;
		uint16_t port;
		bool loopback;
	} rows[] = {
	    {"smtp://mail.example.org", "mail.example.org", "", 0, false},
	    {"smtp://mail.example.org:587/", "mail.example.org", "/", 587, false},
	    {"smtp://localhost:65535?x=/", "localhost", "?x=/", 65535, true},
	    {"smtp://LOCALHOST", "LOCALHOST", "", 0, true},
	    {"smtp://localhost.example", "localhost.example", "", 0, false},
	    {"smtp://127.0.0.1:1", "127.0.0.1", "", 1, true},
	    {"smtp://127.255.255.255", "127.255.255.255", "", 0, true},
	    {"smtp://128.0.0.1", "128.0.0.1", "", 0, false},
	    {"smtp://127.1", "127.1", "", 0, false}, /* some read it as an address, some as a name */
	    {"smtp://[::1]:25/a", "::1", "/a", 25, true},
	    {"smtp://[::2]", "::2", "", 0, false},
	    {"smtp://[::ffff:127.0.0.1]", "::ffff:127.0.0.1", "", 0, false},
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		struct model_url u = {0};

		assert_int_equal(model_url_parse(rows[i].url, "smtp", &u, NULL), 0);
		assert_int_equal(u.host_len, strlen(rows[i].host));
		assert_memory_equal(u.host, rows[i].host, u.host_len);
		assert_string_equal(u.path, rows[i].path);
		assert_int_equal(u.port, rows[i].port);
		assert_int_equal(u.loopback, rows[i].loopback);
	}
}

static void test_what_is_no_address(void **state)
{
	static const char *const bad[] = {"",
					  "smtp:",
					  "smtp://",
					  "smtps://a",
					  "smtp://:25",
					  "smtp://a:",
					  "smtp://a:0",
					  "smtp://a:65536",
					  "smtp://a:25x",
					  "smtp://a:+25",
					  "smtp://a:000000000000000025",
					  "smtp://u@a",
					  "smtp://u:p@a/",
					  "smtp://a#b",
					  "smtp://a b",
					  "smtp://a\\b",
					  "smtp://a\tb",
					  "smtp://\xc3\xbc",
					  "smtp://[::1",
					  "smtp://[::1]a",
					  "smtp://[::1%25eth0]",
					  "smtp://[]",
					  "smtp://-a",
					  "smtp://.a",
					  "smtp://a,b"};
	char longest[300];

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		struct model_url u = {.port = 7};
		struct err e = {0};

		assert_int_equal(model_url_parse(bad[i], "smtp", &u, &e), -EINVAL);
		assert_true(*e.msg);
		assert_int_equal(u.port, 7);
	}
	memset(longest, 'a', sizeof(longest));
	memcpy(longest, "smtp://", 7);
	longest[7 + 253] = '\0';
	assert_int_equal(model_url_parse(longest, "smtp", &(struct model_url){0}, NULL), 0);
	longest[7 + 253] = 'a';
	longest[7 + 254] = '\0';
	assert_int_equal(model_url_parse(longest, "smtp", &(struct model_url){0}, NULL), -EINVAL);
}

static void test_mail_addresses(void **state)
{
	static const char *const good[] = {"a@b", "a.b+c@d.example.org", "o'neil@x", "a-@b", "a@1"};
	static const char *const bad[] = {"",      "a",       "@",           "@b",    "a@",    "a@b@c",
					  ".a@b",  "a.@b",    "-a@b",        "a b@c", "a@b c", "a@b\r\n",
					  "<a@b>", "\"a\"@b", "a@[1.2.3.4]", "a,b@c", "a%b@c", "\xc3\xbc@b"};

	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_true(model_is_mail_address(good[i], strlen(good[i])));
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_false(model_is_mail_address(bad[i], strlen(bad[i])));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_parts),
	    cmocka_unit_test(test_what_is_no_address),
	    cmocka_unit_test(test_mail_addresses),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
