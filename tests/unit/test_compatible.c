/* What is found of a source and an instance: each item passed in a pair that fits, and what a single difference
 * changes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "base/jsn.h"
#include "base/util.h"
#include "center/compatible.h"

static const char source_text[] =
    "{'machine_id':'0123456789abcdef0123456789abcdef','arch':'x86_64','os':{'id':'debian'},'boot':{'mode':'bios'},"
    "'memory':{'total':2147483648},'disks':[{'path':'/dev/vda','size':4294967296,'used':1073741824},"
    "{'path':'/dev/"
    "vdb','size':1073741824,'used':null}],'network':{'interfaces':[{'name':'lo','mac':'00:00:00:00:00:00',"
    "'addresses':[{'address':'127.0.0.1'}]},{'name':'eth0','mac':'52:54:00:AA:BB:CC','addresses':[{'address':'10.1.2.3'"
    "}]}]}}";
static const char instance_text[] =
    "{'ref':'instance-1','state':'running','arch':'x86_64','settings':{'firmware':'bios','memory_mib':2048,"
    "'network':'lan','mac':'52:54:00:00:00:01'},'disks':[{'size':4294967296},{'size':2147483648}],"
    "'addresses':['127.0.0.1','10.1.2.4'],'set':'a'}";
static const char capacity_text[] = "{'free':4294967296}";

static json_t *parse(const char *s)
{
	json_t *o = NULL;
	char buf[2048];
	size_t n = strlen(s);

	assert_true(n < sizeof(buf));
	for (size_t i = 0; i <= n; i++)
		buf[i] = (char)(s[i] == '\'' ? '"' : s[i]);
	assert_int_equal(jsn_parse(buf, n, sizeof(buf), &o, NULL), 0);
	return o;
}

static const json_t *item_of(const json_t *findings, const char *item, size_t nth)
{
	const json_t *f;
	size_t i;

	json_array_foreach(findings, i, f) if (strcmp(json_string_value(json_object_get(f, "item")), item) == 0 &&
					       nth-- == 0) return f;
	return NULL;
}

static const char *level_of(const json_t *findings, const char *item)
{
	return json_string_value(json_object_get(item_of(findings, item, 0), "level")) ?: "";
}

static void test_fits(void **state)
{
	_cleanup_json_ json_t *source = parse(source_text), *instance = parse(instance_text),
			      *capacity = parse(capacity_text), *found = compatible_check(source, instance, capacity);
	const json_t *f;
	size_t i;

	assert_int_equal(json_array_size(found), 9);
	json_array_foreach(found, i, f)
	{
		assert_string_equal(json_string_value(json_object_get(f, "level")), "passed");
		assert_true(json_is_null(json_object_get(f, "remedy")));
		assert_true(json_string_length(json_object_get(f, "message")) > 10);
	}
	assert_true(compatible_passed(found));
}

/* Where: a path of members from the source 's', the instance 'i' or the capacity 'c'; what it becomes; what that
 * changes. */
static const struct {
	const char *where, *becomes, *item, *level, *says;
} changes[] = {
    {"i/state", "'missing'", "instance_state", "critical", "no such instance"},
    {"i/state", "'paused'", "instance_state", "critical", "paused"},
    {"i/state", "'crashed'", "instance_state", "warning", "crashed"},
    {"i/state", "'off'", "instance_state", "passed", "off"},
    {"s/os", "{'id':'windows'}", "os_family", "critical", "Linux"},
    {"i/arch", "'aarch64'", "architecture", "critical", "'aarch64'"},
    {"i/arch", "null", "architecture", "warning", "instance is not known"},
    {"s/arch", "'i686'", "architecture", "passed", "x86_64"},
    {"s/arch", "'arm86'", "architecture", "critical", "'arm86'"},
    {"s/boot", "{'mode':'uefi'}", "firmware", "critical", "by 'uefi', the instance by 'bios'"},
    {"s/boot", "null", "firmware", "warning", "source is not known"},
    {"i/disks", "[]", "disk_count", "critical", "2 disks, the instance 0"},
    {"i/disks", "[{'size':4294967296}]", "disk_count", "critical", "the instance 1"},
    {"i/disks", "[{'size':4294967295},{'size':2147483648}]", "disk_sizes", "critical", "disk 1 of the instance"},
    {"i/disks", "[{'size':4294967296},{'size':1073741823}]", "disk_sizes", "critical", "'/dev/vdb'"},
    {"i/disks", "[{'size':4294967296},{'size':1073741824},{'size':1}]", "disk_sizes", "passed", ""},
    {"s/disks", "[]", "disk_count", "warning", "not told"},
    {"c/free", "2147483647", "space", "critical", "2.0 GiB"},
    {"c/free", "2147483648", "space", "passed", ""},
    {"c/free", "null", "space", "passed", "doesn't say"},
    {"s/memory", "{'total':8589934592}", "memory", "warning", "8192 MiB"},
    {"s/memory", "{'total':4294967296}", "memory", "passed", ""},
    {"i/addresses", "['10.1.2.3']", "other_machine", "critical", "'10.1.2.3'"},
    {"i/settings", "{'firmware':'bios','memory_mib':2048,'network':'lan','mac':'52:54:00:aa:bb:cc'}", "other_machine",
     "critical", "network card"},
    {"s/network", "{'interfaces':[{'mac':'52:54:00:12:34:56'}]}", "other_machine", "passed", ""},
    {"i/ref", "'0123456789ABCDEF0123456789ABCDEF'", "other_machine", "critical", "same machine"},
};

static void test_changes(void **state)
{
	for (size_t i = 0; i < ARRAY_SIZE(changes); i++) {
		_cleanup_json_ json_t *source = parse(source_text), *instance = parse(instance_text),
				      *capacity = parse(capacity_text), *wrapped = NULL, *found = NULL;
		json_t *o = changes[i].where[0] == 's' ? source : changes[i].where[0] == 'i' ? instance : capacity;
		_cleanup_(str_release) struct str text = {0}, summary = {0};
		bool critical = strcmp(changes[i].level, "critical") == 0;
		const json_t *f;

		str_addf(&text, "[%s]", changes[i].becomes);
		wrapped = parse(text.s);
		json_object_set(o, changes[i].where + 2, json_array_get(wrapped, 0));
		found = compatible_check(source, instance, capacity);
		f = item_of(found, changes[i].item, 0);
		if (strcmp(level_of(found, changes[i].item), changes[i].level) != 0 ||
		    !strstr(json_string_value(json_object_get(f, "message")), changes[i].says))
			fail_msg("%s = %s: %s", changes[i].where, changes[i].becomes, json_dumps(found, 0));
		assert_int_equal(compatible_passed(found), !critical);
		compatible_summary(found, &summary);
		assert_int_equal(summary.len != 0, critical);
		/* What isn't passed says what to do. */
		assert_int_equal(json_string_length(json_object_get(f, "remedy")) > 10,
				 strcmp(changes[i].level, "passed") != 0);
	}
}

/* Each disk that is too small is named, with how big it must be. */
static void test_two_small_disks(void **state)
{
	_cleanup_json_ json_t *source = parse(source_text), *instance = parse(instance_text), *found = NULL,
			      *disks = parse("[{'size':1},{'size':2}]");
	_cleanup_(str_release) struct str summary = {0};

	json_object_set(instance, "disks", disks);
	found = compatible_check(source, instance, NULL);
	assert_string_equal(json_string_value(json_object_get(item_of(found, "disk_sizes", 0), "remedy")),
			    "make disk 1 of the instance at least 4294967296 bytes big");
	assert_string_equal(json_string_value(json_object_get(item_of(found, "disk_sizes", 1), "remedy")),
			    "make disk 2 of the instance at least 1073741824 bytes big");
	compatible_summary(found, &summary);
	assert_non_null(strstr(summary.s, "disk 1"));
	assert_non_null(strstr(summary.s, "disk 2"));
}

/* Two machines behind QEMU's own network have the same address, and are two all the same. */
static void test_everybodys_address(void **state)
{
	_cleanup_json_ json_t *source = parse(source_text), *instance = parse(instance_text), *found = NULL,
			      *same = parse("['10.1.2.3']");

	json_object_set(instance, "addresses", same);
	json_object_set_new(json_object_get(instance, "settings"), "network", json_string("user"));
	found = compatible_check(source, instance, NULL);
	assert_string_equal(level_of(found, "other_machine"), "passed");
}

/* No instance, nothing known of it, nonsense: never a crash, and never a pass of what nobody knows to be there. */
static void test_little_known(void **state)
{
	static const char *const odd[] = {"{}", "{'disks':7,'settings':[],'addresses':{}}",
					  "{'disks':[null,[],{'size':'big'}]}"};
	_cleanup_json_ json_t *source = parse(source_text), *none = compatible_check(source, NULL, NULL);

	assert_string_equal(level_of(none, "instance_state"), "critical");
	assert_false(compatible_passed(none));
	assert_false(compatible_passed(NULL));
	for (size_t i = 0; i < ARRAY_SIZE(odd); i++) {
		_cleanup_json_ json_t *o = parse(odd[i]), *a = compatible_check(source, o, o),
				      *b = compatible_check(o, o, o);

		assert_false(compatible_passed(a));
		assert_non_null(b);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_fits),
	    cmocka_unit_test(test_changes),
	    cmocka_unit_test(test_two_small_disks),
	    cmocka_unit_test(test_everybodys_address),
	    cmocka_unit_test(test_little_known),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
