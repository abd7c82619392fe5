#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"
#include "model/model.h"

static json_t *parse(const char *s)
{
	json_t *j = json_loads(s, 0, NULL);

	assert_non_null(j);
	return j;
}

static void test_defaults_come_from_the_table(void **state)
{
	_cleanup_json_ json_t *empty = json_object(), *j = NULL, *want = NULL;
	struct model_parameters p;
	const char *field;

	assert_int_equal(model_read(model_parameters, empty, false, &p, &field, NULL), 0);
	j = model_parameters_json(&p);
	want = parse(
	    "{\"connections\":4,\"compression\":\"auto\",\"rate_mbit\":0,\"checksum\":true,\"on_read_"
	    "error\":\"fail\","
	    "\"test_boot\":true,\"image_check\":true,\"max_freeze\":1,\"incremental\":false,\"interval_hours\":24,"
	    "\"max_images\":3,\"license\":\"none\",\"network\":\"public\",\"encryption\":\"auto\","
	    "\"transition_cpus\":2,\"transition_"
	    "memory\":1024,"
	    "\"rollback_on_failure\":true,\"diagnostic_logs\":true,\"address\":\"dhcp\"}");
	assert_true(json_equal(j, want));
}

static void test_ranges(void **state)
{
	static const struct {
		const char *body, *field;
		int code;
	} bad[] = {
	    {"{\"connections\":0}", "connections", -ERANGE},
	    {"{\"connections\":17}", "connections", -ERANGE},
	    {"{\"compression\":11}", "compression", -ERANGE},
	    {"{\"compression\":\"fast\"}", "compression", -EINVAL},
	    {"{\"compression\":-1}", "compression", -ERANGE},
	    {"{\"rate_mbit\":100001}", "rate_mbit", -ERANGE},
	    {"{\"rate_mbit\":1.0}", "rate_mbit", -EINVAL},
	    {"{\"checksum\":1}", "checksum", -EINVAL},
	    {"{\"on_read_error\":\"\"}", "on_read_error", -EINVAL},
	    {"{\"on_read_error\":true}", "on_read_error", -EINVAL},
	    {"{\"threads\":1}", "threads", -EINVAL},
	};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		_cleanup_json_ json_t *j = parse(bad[i].body);
		struct model_parameters p;
		const char *field = NULL;
		struct err e = {0};

		assert_int_equal(model_read(model_parameters, j, false, &p, &field, &e), bad[i].code);
		assert_string_equal(field, bad[i].field);
		assert_non_null(strstr(e.msg, bad[i].field));
	}
}

static void test_limits_themselves_are_fine(void **state)
{
	_cleanup_json_ json_t
	    *low = parse("{\"connections\":1,\"compression\":0,\"rate_mbit\":0}"),
	    *high = parse("{\"connections\":16,\"compression\":10,\"rate_mbit\":100000,\"on_read_error\":\"zero\"}");
	struct model_parameters p;
	const char *field;

	assert_int_equal(model_read(model_parameters, low, false, &p, &field, NULL), 0);
	assert_int_equal(p.connections, 1);
	assert_int_equal(p.compression, 0);
	assert_int_equal(model_read(model_parameters, high, true, &p, &field, NULL), 0);
	assert_int_equal(p.connections, 16);
	assert_int_equal(p.on_read_error, 1);
}

static void test_patch_keeps_the_rest(void **state)
{
	_cleanup_json_ json_t *j = parse("{\"compression\":5,\"checksum\":null}");
	struct model_parameters p = {.connections = 9, .compression = 2, .checksum = false};
	const char *field;

	assert_int_equal(model_read(model_parameters, j, true, &p, &field, NULL), 0);
	assert_int_equal(p.connections, 9);
	assert_int_equal(p.compression, 5);
	assert_false(p.checksum);
}

static void test_texts(void **state)
{
	_cleanup_json_ json_t *line = parse("{\"name\":\"a\\nb\"}"),
			      *text = parse("{\"description\":\"a\\nb\\u0001\"}"),
			      *fine = parse("{\"description\":\"a\\nb\", \"name\":\"\u00fc\"}"), *list = parse("[]");
	struct model_rename_request r;
	const char *field;

	assert_int_equal(model_read(model_rename_request, line, false, &r, &field, NULL), -EINVAL);
	assert_string_equal(field, "name");
	assert_int_equal(model_read(model_rename_request, text, false, &r, &field, NULL), -EINVAL);
	assert_int_equal(model_read(model_rename_request, fine, false, &r, &field, NULL), 0);
	assert_string_equal(r.description, "a\nb");
	assert_int_equal(model_read(model_rename_request, list, false, &r, &field, NULL), -EINVAL);
	assert_null(field);
}

static void test_nothing_hidden_gets_out(void **state)
{
	for (const struct model_noun *const *n = model_nouns; *n; n++) {
		_cleanup_free_ void *row = calloc(1, (*n)->size);
		_cleanup_json_ json_t *j = NULL;

		assert_string_equal((*n)->fields[0].name, "id");
		j = model_json(*n, row, false, 0);
		for (const struct model_field *f = (*n)->fields; f->name; f++) {
			assert_int_equal(f->hidden, !json_object_get(j, f->name) ||
							(*n == &model_images && strcmp(f->name, "report") == 0));
			if (strstr(f->name, "secret"))
				assert_true(f->hidden);
		}
	}
}

static void test_derived(void **state)
{
	_cleanup_(model_code_release) struct model_code c = {.uses = 2, .used = 1, .expires = 100};
	_cleanup_json_ json_t *a = model_json(&model_codes, &c, false, 99),
			      *b = model_json(&model_codes, &c, false, 100);

	assert_string_equal(json_string_value(json_object_get(a, "state")), "active");
	assert_string_equal(json_string_value(json_object_get(b, "state")), "expired");
}

static void test_progress_is_filtered(void **state)
{
	_cleanup_json_ json_t *in = parse(
				  "{\"bytes_total\":400,\"bytes_done\":100,\"speed\":-1,\"phase\":\"full\",\"x\":1,"
				  "\"round\":\"1\",\"freeze_ms\":1.5}"),
			      *want =
				  parse("{\"bytes_total\":400,\"bytes_done\":100,\"phase\":\"full\",\"percent\":25.0,"
					"\"freeze_ms\":1.5}"),
			      *got = model_progress(in);

	assert_true(json_equal(got, want));
}

static void test_inventory_used(void **state)
{
	_cleanup_json_ json_t *j = parse("{\"disks\":[{\"size\":100,\"used\":7},{\"size\":20},{\"used\":-5},{},5]}"),
			      *huge = parse("{\"disks\":[{\"used\":9223372036854775807},{\"used\":9223372036854775807},"
					    "{\"used\":9223372036854775807}]}");

	assert_int_equal(model_inventory_used(j), 27);
	assert_true(model_inventory_used(huge) == UINT64_MAX);
	assert_int_equal(model_inventory_used(NULL), 0);
}

static void test_depth(void **state)
{
	_cleanup_(str_release) struct str text = {0};
	_cleanup_json_ json_t *deep = NULL;

	str_add(&text, "{\"a\":");
	for (unsigned i = 0; i < MODEL_JSON_DEPTH + 1; i++)
		str_add(&text, "[");
	for (unsigned i = 0; i < MODEL_JSON_DEPTH + 1; i++)
		str_add(&text, "]");
	str_add(&text, "}");
	deep = parse(text.s);
	assert_int_equal(model_check_json(deep, NULL), -EINVAL);
	assert_int_equal(model_check_json(json_array_get(json_object_get(deep, "a"), 0), NULL), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_defaults_come_from_the_table),
	    cmocka_unit_test(test_ranges),
	    cmocka_unit_test(test_limits_themselves_are_fine),
	    cmocka_unit_test(test_patch_keeps_the_rest),
	    cmocka_unit_test(test_texts),
	    cmocka_unit_test(test_nothing_hidden_gets_out),
	    cmocka_unit_test(test_derived),
	    cmocka_unit_test(test_progress_is_filtered),
	    cmocka_unit_test(test_inventory_used),
	    cmocka_unit_test(test_depth),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
