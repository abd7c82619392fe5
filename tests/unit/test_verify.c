#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"
#include "center/verify.h"

static json_t *parse(const char *text)
{
	json_t *o = json_loads(text, 0, NULL);

	if (!o)
		fail_msg("bad JSON in the test: %s", text);
	return o;
}

/* A pair of surveys, what comes of it (NULL: nothing), and a word of the reason. */
struct pair {
	const char *source, *copy, *conversion;
	const char *kind, *what, *level; /* "explained", "flagged", "critical" */
	const char *why;
};

#define SSH "{\"name\":\"ssh.service\",\"state\":\"running\",\"enabled\":\"enabled\"}"
#define UNIT(name, state, enabled)                                                                                     \
	"{\"units\":[{\"name\":\"" name "\",\"state\":\"" state "\",\"enabled\":\"" enabled "\"}]}"
#define PORT(rest) "{\"listening\":[{" rest "}]}"
#define MOUNT(target, source, type, options, fstab)                                                                    \
	"{\"mounts\":[{\"source\":\"" source "\",\"target\":\"" target "\",\"type\":\"" type                           \
	"\",\"options\":\"" options "\",\"fstab\":" fstab "}]}"

static const struct pair pairs[] = {
    /* services */
    {UNIT("web.service", "running", "enabled"), UNIT("web.service", "running", "enabled")},
    {UNIT("web.service", "running", "enabled"), "{}", NULL, "service", "web.service", "critical", "started at boot"},
    {UNIT("web.service", "running", "enabled"), UNIT("web.service", "failed", "enabled"), NULL, "service",
     "web.service", "critical", "started at boot"},
    {UNIT("web.service", "running", "generated"), "{}", NULL, "service", "web.service", "critical", "started at boot"},
    {UNIT("web.service", "exited", "enabled"), "{}"},
    {UNIT("hand.service", "running", "disabled"), "{}", NULL, "service", "hand.service", "explained", "not enabled"},
    {UNIT("udisks2.service", "running", "static"), "{}", NULL, "service", "udisks2.service", "explained", "needs it"},
    {UNIT("replant-agent.service", "running", "enabled"), "{}", NULL, "service", "replant-agent.service", "explained",
     "stays on the source"},
    {UNIT("qemu-guest-agent.service", "running", "enabled"), "{}", NULL, "service", "qemu-guest-agent.service",
     "explained", "cloud or hypervisor"},
    {UNIT("chrony.service", "running", "enabled"), "{}", NULL, "service", "chrony.service", "explained", "network"},
    {UNIT("smartd.service", "running", "enabled"), "{}", NULL, "service", "smartd.service", "explained", "hardware"},
    {UNIT("serial-getty@ttyS1.service", "running", "enabled"), "{}", NULL, "service", "serial-getty@ttyS1.service",
     "explained", "console"},
    {UNIT("x.service", "running", "enabled"),
     "{\"units\":[{\"name\":\"x.service\",\"state\":\"dead\",\"enabled\":\"enabled\",\"condition\":false}]}", NULL,
     "service", "x.service", "explained", "conditions"},
    {UNIT("mon.service", "running", "enabled"), "{}",
     "{\"steps\":[{\"name\":\"guest_tools\",\"files\":[{\"path\":\"/etc/systemd/system/mon.service\"}]}]}", "service",
     "mon.service", "explained", "conversion"},
    {UNIT("web.service", "dead", "enabled"), UNIT("web.service", "running", "enabled"), NULL, "service", "web.service",
     "flagged", "stopped it"},
    {"{}", UNIT("systemd-hostnamed.service", "running", "static"), NULL, "service", "systemd-hostnamed.service",
     "explained", "needs it"},
    {"{}", UNIT("systemd-networkd.service", "running", "enabled"),
     "{\"steps\":[{\"name\":\"network\",\"files\":[{\"path\":\"/etc/systemd/system/x.wants/"
     "systemd-networkd.service\"}]}]}",
     "service", "systemd-networkd.service", "explained", "'network'"},
    {"{}", UNIT("replant-probe.service", "running", "enabled")},
    /* ports */
    {PORT("\"proto\":\"tcp\",\"port\":80,\"address\":\"any\""),
     PORT("\"proto\":\"tcp\",\"port\":80,\"address\":\"any\"")},
    {PORT("\"proto\":\"tcp\",\"port\":80,\"address\":\"any\",\"program\":\"nginx\",\"unit\":\"nginx.service\""), "{}",
     NULL, "port", "tcp/80", "critical", "copy doesn't"},
    {PORT("\"proto\":\"tcp\",\"port\":80,\"address\":\"any\""),
     PORT("\"proto\":\"tcp\",\"port\":80,\"address\":\"loopback\""), NULL, "port", "tcp/80", "flagged", "they can't"},
    {PORT("\"proto\":\"tcp\",\"port\":8000,\"address\":\"any\",\"unit\":\"session-3.scope\""), "{}", NULL, "port",
     "tcp/8000", "explained", "login session"},
    {PORT("\"proto\":\"tcp\",\"port\":111,\"address\":\"any\",\"unit\":\"init.scope\""), "{}", NULL, "port", "tcp/111",
     "critical", "copy doesn't"},
    {PORT("\"proto\":\"tcp\",\"port\":443,\"address\":\"one\",\"unit\":\"nginx.service\""), "{}", NULL, "port",
     "tcp/443", "explained", "test network"},
    {PORT("\"proto\":\"udp\",\"port\":68,\"address\":\"any\""), "{}", NULL, "port", "udp/68", "explained", "DHCP"},
    {PORT("\"proto\":\"udp\",\"port\":40000,\"address\":\"any\""), "{}", NULL, "port", "udp/40000", "explained",
     "chose"},
    {PORT("\"proto\":\"udp\",\"port\":53,\"address\":\"any\""), "{}", NULL, "port", "udp/53", "critical",
     "copy doesn't"},
    {"{}", PORT("\"proto\":\"tcp\",\"port\":8080,\"address\":\"any\",\"program\":\"x\""), NULL, "port", "tcp/8080",
     "flagged", "the source didn't"},
    {PORT("\"proto\":\"tcp\",\"port\":80,\"address\":\"any\""), "{\"cut\":[\"listening\"]}", NULL, "port", "tcp/80",
     "flagged", "copy doesn't"},
    {"{\"cut\":[\"listening\"],\"listening\":[]}", "{}", NULL, "port", "all", "flagged", "not compared"},
    {"{\"cut\":[\"packages\"]}", "{}"},
    /* mounts */
    {MOUNT("/", "/dev/sda1", "ext4", "", "true"), MOUNT("/", "/dev/sda1", "ext4", "", "true")},
    {MOUNT("/", "/dev/sda1", "ext4", "", "true"), MOUNT("/", "/dev/vda1", "ext4", "", "true"), NULL, "mount", "/",
     "explained", "other names"},
    {MOUNT("/srv", "/dev/sdb1", "xfs", "", "true"), "{}", NULL, "mount", "/srv", "critical", "not in the copy"},
    {MOUNT("/srv", "/dev/sdb1", "xfs", "", "false"), "{}", NULL, "mount", "/srv", "flagged", "/etc/fstab"},
    {MOUNT("/srv", "/dev/sdb1", "xfs", "", "true"), "{}",
     "{\"steps\":[{\"name\":\"fstab\",\"notes\":[\"'/srv' on 'UUID=1' is not among the copied disks\"]}]}", "mount",
     "/srv", "flagged", "not copied"},
    {MOUNT("/nas", "nas:/x", "nfs4", "", "true"), "{}", NULL, "mount", "/nas", "explained", "network"},
    {MOUNT("/tmp", "tmpfs", "tmpfs", "", "false"), "{}", NULL, "mount", "/tmp", "explained", "fstab"},
    {MOUNT("/", "/dev/sda1", "ext4", "", "true"), MOUNT("/", "/dev/sda1", "ext4", "ro", "true"), NULL, "mount", "/",
     "critical", "can't be written"},
    {MOUNT("/", "/dev/sda1", "ext4", "", "true"), MOUNT("/", "/dev/sda1", "xfs", "", "true"), NULL, "mount", "/",
     "critical", "another filesystem"},
    {MOUNT("/x", "/dev/sda1", "ext4", "noexec", "true"), MOUNT("/x", "/dev/sda1", "ext4", "", "true"), NULL, "mount",
     "/x", "flagged", "other options"},
    /* accounts */
    {"{\"users\":[{\"name\":\"web\",\"id\":1000}]}", "{\"users\":[{\"name\":\"web\",\"id\":1000}]}"},
    {"{\"users\":[{\"name\":\"web\",\"id\":1000}]}", "{\"users\":[]}", NULL, "user", "web", "critical", "have it"},
    {"{\"users\":[{\"name\":\"web\",\"id\":1000}]}", "{\"users\":[{\"name\":\"web\",\"id\":1001}]}", NULL, "user",
     "web", "critical", "somebody else"},
    {"{\"users\":[]}", "{\"users\":[{\"name\":\"new\",\"id\":1}]}", NULL, "user", "new", "flagged", "copy alone"},
    {"{\"groups\":[{\"name\":\"web\",\"id\":1000}]}", "{\"groups\":[]}", NULL, "group", "web", "critical", "have it"},
    /* packages */
    {"{\"packages\":{\"count\":1,\"digest\":\"a\",\"list\":[\"x:all=1\"]}}",
     "{\"packages\":{\"count\":1,\"digest\":\"a\",\"list\":[\"x:all=1\"]}}"},
    {"{\"packages\":{\"count\":1,\"digest\":\"a\",\"list\":[\"x:all=1\"]}}",
     "{\"packages\":{\"count\":1,\"digest\":\"b\",\"list\":[\"x:all=2\"]}}", NULL, "package", "x:all", "critical",
     "another version"},
    {"{\"packages\":{\"count\":2,\"digest\":\"a\",\"list\":[\"x:all=1\",\"y:all=1\"]}}",
     "{\"packages\":{\"count\":1,\"digest\":\"b\",\"list\":[\"x:all=1\"]}}", NULL, "package", "y:all", "critical",
     "not in the copy"},
    {"{\"packages\":{\"count\":9,\"digest\":\"a\",\"list\":[]}}",
     "{\"packages\":{\"count\":9,\"digest\":\"b\",\"list\":[]}}", NULL, "package", "all", "critical",
     "the lists don't have"},
    {"{}", "{\"packages\":{\"count\":9,\"digest\":\"b\",\"list\":[\"x:all=1\"]}}"},
    /* the rest */
    {"{\"modules\":[{\"name\":\"e1000\",\"kind\":\"drivers/net\"}]}", "{}", NULL, "module", "e1000", "explained",
     "hardware"},
    {"{\"modules\":[{\"name\":\"wireguard\",\"kind\":\"drivers/net\"}]}", "{}", NULL, "module", "wireguard", "flagged",
     "needed it"},
    {"{\"modules\":[{\"name\":\"xfs\",\"kind\":\"fs\"}]}", "{}", NULL, "module", "xfs", "flagged", "needed it"},
    {"{\"cron\":[{\"path\":\"/etc/crontab\",\"digest\":\"a\"}]}",
     "{\"cron\":[{\"path\":\"/etc/crontab\",\"digest\":\"b\"}]}", NULL, "cron", "/etc/crontab", "flagged", "another"},
    {"{\"cron\":[{\"path\":\"/etc/crontab\",\"digest\":\"a\"}]}", "{}", NULL, "cron", "/etc/crontab", "flagged",
     "have it"},
    {"{\"routes\":[{\"destination\":\"0.0.0.0/0\",\"gateway\":\"192.0.2.1\"}]}",
     "{\"routes\":[{\"destination\":\"0.0.0.0/0\",\"gateway\":\"10.0.2.2\"}]}", NULL, "route", "0.0.0.0/0", "explained",
     "test network"},
    {"{\"hostname\":\"web1\"}", "{\"hostname\":\"localhost\"}", NULL, "hostname", "hostname", "flagged", "another"},
    {"{\"timezone\":\"Etc/UTC\"}", "{\"timezone\":\"Etc/UTC\"}"},
    {"{\"swaps\":1}", "{\"swaps\":0}", NULL, "swap", "swap", "flagged", "fewer"},
};

static void check_pair(const struct pair *p)
{
	_cleanup_json_ json_t *survey = parse(p->source), *copy = parse(p->copy);
	_cleanup_json_ json_t *conversion = p->conversion ? parse(p->conversion) : NULL;
	_cleanup_json_ json_t *source = json_pack("{s:O}", "survey", survey);
	_cleanup_json_ json_t *result = verify_compare(source, copy, conversion);
	_cleanup_free_ char *text = jsn_text(result);
	json_t *all = json_object_get(result, "differences"), *one = json_array_get(all, 0);
	bool critical = p->level && strcmp(p->level, "critical") == 0;

	if (json_array_size(all) != (p->kind ? 1 : 0))
		fail_msg("%s against %s: %s", p->source, p->copy, text);
	assert_int_equal(json_is_true(json_object_get(result, "verified")), !critical);
	if (!p->kind)
		return;
	if (strcmp(json_string_value(json_object_get(one, "kind")), p->kind) != 0 ||
	    strcmp(json_string_value(json_object_get(one, "what")), p->what) != 0 ||
	    strcmp(json_string_value(json_object_get(one, "level")), critical ? "flagged" : p->level) != 0 ||
	    json_is_true(json_object_get(one, "critical")) != critical ||
	    !strstr(json_string_value(json_object_get(one, "why")), p->why))
		fail_msg("%s against %s: %s", p->source, p->copy, text);
}

static void test_pairs(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(pairs); i++)
		check_pair(&pairs[i]);
}

/* What only the copy has the source may have, too, where its list was cut. */
static void test_cut_source(void **state)
{
	_cleanup_json_ json_t *source = parse("{\"survey\":{\"cut\":[\"listening\"],\"listening\":[]}}");
	_cleanup_json_ json_t *copy = parse(PORT("\"proto\":\"tcp\",\"port\":8080,\"address\":\"any\""));
	_cleanup_json_ json_t *result = verify_compare(source, copy, NULL);
	json_t *counts = json_object_get(result, "counts");

	assert_int_equal(json_integer_value(json_object_get(counts, "flagged")), 1);
	assert_int_equal(json_integer_value(json_object_get(counts, "explained")), 1);
}

/* What failed on the source, too, and a port whose service is explained. */
static void test_reasons_of_others(void **state)
{
	_cleanup_json_ json_t *source =
	    parse("{\"failed_units\":[\"old.service\"],\"survey\":{\"units\":["
		  "{\"name\":\"old.service\",\"state\":\"running\",\"enabled\":\"enabled\"},"
		  "{\"name\":\"chrony.service\",\"state\":\"running\",\"enabled\":\"enabled\"}],"
		  "\"listening\":[{\"proto\":\"tcp\",\"port\":4460,\"address\":\"any\","
		  "\"unit\":\"chrony.service\"}]}}");
	_cleanup_json_ json_t *result = verify_compare(source, NULL, NULL), *expect = verify_expect(source, NULL);
	json_t *counts = json_object_get(result, "counts");

	assert_int_equal(json_integer_value(json_object_get(counts, "explained")), 3);
	assert_int_equal(json_integer_value(json_object_get(counts, "flagged")), 0);
	assert_int_equal(json_array_size(json_object_get(expect, "units")), 0);
	assert_int_equal(json_array_size(json_object_get(expect, "listening")), 0);
}

/* What is waited for is what would be missed. */
static void test_expectations(void **state)
{
	_cleanup_json_ json_t *source =
	    parse("{\"survey\":{\"units\":[" SSH ",{\"name\":\"ntp.service\",\"state\":\"running\"}],"
		  "\"listening\":[{\"proto\":\"tcp\",\"port\":22,\"address\":\"any\",\"unit\":\"ssh.service\"},"
		  "{\"proto\":\"udp\",\"port\":68,\"address\":\"any\"}]}}");
	_cleanup_json_ json_t *expect = verify_expect(source, NULL);
	_cleanup_free_ char *text = jsn_text(expect);

	assert_string_equal(text, "{\"units\":[\"ssh.service\"],\"listening\":[\"tcp/22\"]}");
}

/* Whoever wrote it: any shape is borne, and what is told stays bounded. */
static void test_nonsense(void **state)
{
	static const char *const shapes[] = {
	    "{}", "[]", "{\"survey\":7}",
	    "{\"survey\":{\"units\":{},\"listening\":7,\"mounts\":[1,\"x\",[],{}],\"users\":[{\"name\":7}],"
	    "\"packages\":[],\"modules\":[{\"name\":\"\"}],\"cron\":null,\"routes\":[[]],\"hostname\":{},\"cut\":7}}",
	    "{\"survey\":{\"units\":[{\"name\":\"x\",\"state\":\"running\",\"enabled\":[]}],"
	    "\"listening\":[{\"proto\":[],\"port\":-1},{\"proto\":\"tcptcptcptcptcptcptcptcptcp\",\"port\":1e99}],"
	    "\"packages\":{\"list\":[7,\"=\",\"x\"],\"digest\":{}}},\"failed_units\":{}}"};

	for (size_t i = 0; i < ARRAY_SIZE(shapes); i++)
		for (size_t k = 0; k < ARRAY_SIZE(shapes); k++) {
			_cleanup_json_ json_t *a = parse(shapes[i]), *b = parse(shapes[k]);
			_cleanup_json_ json_t *result = verify_compare(a, json_object_get(b, "survey"), b);
			_cleanup_json_ json_t *expect = verify_expect(a, b);

			assert_non_null(json_object_get(result, "counts"));
			assert_non_null(expect);
		}
}

static void test_many_differences(void **state)
{
	_cleanup_json_ json_t *source = json_pack("{s:{s:[]}}", "survey", "users"), *result = NULL;
	json_t *users = json_object_get(json_object_get(source, "survey"), "users");

	for (int i = 0; i < 1000; i++)
		json_array_append_new(users, json_pack("{s:o, s:i}", "name", json_sprintf("u%d%0300d", i, 1), "id", i));
	result = verify_compare(source, NULL, NULL);
	assert_int_equal(json_array_size(json_object_get(result, "differences")), 200);
	assert_int_equal(json_integer_value(json_object_get(json_object_get(result, "counts"), "critical")), 1000);
	assert_non_null(strstr(json_string_value(json_object_get(result, "sentence")),
			       "not verified: missing or different in the copy: 1000;"));
}

/* ---- into the report ---- */

static json_t *problems_of(const char *prepared, json_t *report)
{
	_cleanup_json_ json_t *p = parse(prepared);

	verify_finish(p, report);
	return json_object_get(report, "problems");
}

static const char *code(const json_t *problems, size_t i)
{
	return json_string_value(json_object_get(json_array_get(problems, i), "code")) ?: "";
}

static const char *message(const json_t *problems, size_t i)
{
	return json_string_value(json_object_get(json_array_get(problems, i), "message")) ?: "";
}

static void test_report(void **state)
{
	_cleanup_json_ json_t *report =
	    parse("{\"verified\":true,\"problems\":[],\"failed_units\":[\"b.service\"],\"missing_mounts\":[\"/srv\"],"
		  "\"survey\":{\"units\":[{\"name\":\"b.service\",\"state\":\"failed\"}]}}");
	json_t *problems = problems_of("{\"options\":{},\"conversion\":{},\"source\":{\"survey\":{\"units\":["
				       "{\"name\":\"a.service\",\"state\":\"running\",\"enabled\":\"enabled\"},"
				       "{\"name\":\"b.service\",\"state\":\"running\",\"enabled\":\"enabled\"}],"
				       "\"mounts\":[{\"target\":\"/srv\",\"type\":\"xfs\",\"fstab\":true}],"
				       "\"users\":[{\"name\":\"u\",\"id\":1}],"
				       "\"listening\":[{\"proto\":\"tcp\",\"port\":80,\"address\":\"any\"}]}}}",
				       report);

	/* What systemd and fstab have said already isn't said twice. */
	assert_int_equal(json_array_size(problems), 3);
	assert_string_equal(code(problems, 0), "missing_service");
	assert_non_null(strstr(message(problems, 0), "'a.service'"));
	assert_string_equal(code(problems, 1), "missing_port");
	assert_string_equal(code(problems, 2), "missing_user");
	assert_true(json_is_false(json_object_get(report, "verified")));
	assert_null(json_object_get(report, "survey"));
	assert_true(json_is_true(json_object_get(json_object_get(report, "verification"), "compared")));
}

static void test_nothing_to_compare(void **state)
{
	_cleanup_json_ json_t *report = parse("{\"verified\":true,\"problems\":[],\"survey\":{}}");

	assert_int_equal(json_array_size(problems_of("{\"options\":{},\"conversion\":{}}", report)), 0);
	assert_true(json_is_true(json_object_get(report, "verified")));
	assert_true(json_is_false(json_object_get(json_object_get(report, "verification"), "compared")));
}

static void test_checks(void **state)
{
	_cleanup_json_ json_t *report =
	    parse("{\"verified\":true,\"problems\":[],\"checks\":["
		  "{\"name\":\"lies\",\"status\":0,\"timed_out\":false,\"output\":\"ok\\n\"},"
		  "{\"status\":3,\"timed_out\":false,\"output\":\"one\\ndb_password=hunter2 is wrong\\n\"},"
		  "{\"status\":137,\"timed_out\":true,\"output\":\"\"},{\"output\":\"x\"}]}");
	json_t *problems = problems_of("{\"options\":{\"checks\":[{\"name\":\"good\"},{\"name\":\"bad\"},"
				       "{\"name\":\"slow\",\"timeout\":5},{\"name\":\"odd\"},{\"name\":\"never\"}]}}",
				       report);
	_cleanup_free_ char *all = NULL;

	assert_int_equal(json_array_size(problems), 4);
	for (size_t i = 0; i < 4; i++)
		assert_string_equal(code(problems, i), "check_failed");
	assert_non_null(strstr(message(problems, 0), "'bad' failed with status 3"));
	assert_non_null(strstr(message(problems, 1), "'slow' was ended, because it took longer than its 5 s"));
	assert_non_null(strstr(message(problems, 2), "'odd'"));
	assert_non_null(strstr(message(problems, 3), "'never' was not run"));
	assert_true(json_is_false(json_object_get(report, "verified")));
	all = jsn_text(report);
	assert_null(strstr(all, "hunter2"));
	assert_null(strstr(all, "lies"));
	assert_true(json_is_true(json_object_get(json_array_get(json_object_get(report, "checks"), 0), "passed")));
}

/* A machine that never spoke has no survey, and no check was run. */
static void test_silence(void **state)
{
	_cleanup_json_ json_t *report = parse("{\"problems\":[{\"code\":\"kernel_panic\",\"message\":\"x\"}]}");
	json_t *problems =
	    problems_of("{\"options\":{\"checks\":[{\"name\":\"a\"}]},\"source\":{\"survey\":{\"users\":["
			"{\"name\":\"u\",\"id\":1}]}}}",
			report);

	assert_int_equal(json_array_size(problems), 2);
	assert_string_equal(code(problems, 1), "check_failed");
	assert_true(json_is_false(json_object_get(report, "verified")));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_pairs),
	    cmocka_unit_test(test_cut_source),
	    cmocka_unit_test(test_reasons_of_others),
	    cmocka_unit_test(test_expectations),
	    cmocka_unit_test(test_nonsense),
	    cmocka_unit_test(test_many_differences),
	    cmocka_unit_test(test_report),
	    cmocka_unit_test(test_nothing_to_compare),
	    cmocka_unit_test(test_checks),
	    cmocka_unit_test(test_silence),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
