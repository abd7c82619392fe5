/* The route table: what it matches, and that the OpenAPI document says the same, both ways. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "api/api.h"
#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"

static void test_matching(void **state)
{
	static const struct {
		const char *method, *path, *name, *id;
		bool known;
	} rows[] = {
	    {"GET", "/v1/version", "getVersion", "", true},
	    {"HEAD", "/v1/version", "getVersion", "", true},
	    {"GET", "/v1/version/", NULL, "", false},
	    {"GET", "/v1", NULL, "", false},
	    {"GET", "", NULL, "", false},
	    {"GET", "/v1/jobs/job-0123456789abcdef", "getJob", "job-0123456789abcdef", true},
	    {"GET", "/v1/jobs/image-0123456789abcdef", NULL, "", false},
	    {"GET", "/v1/jobs/job-0123456789abcde", NULL, "", false},
	    {"GET", "/v1/jobs/job-0123456789abcdef0", NULL, "", false},
	    {"GET", "/v1/jobs/job-0123456789abcdef/", NULL, "", false},
	    {"POST", "/v1/jobs/job-0123456789abcdef/start", "startJob", "job-0123456789abcdef", true},
	    {"POST", "/v1/jobs/job-0123456789abcdef/start/x", NULL, "", false},
	    {"GET", "/v1/jobs/job-0123456789abcdef/start", NULL, "", true},
	    {"PUT", "/v1/jobs", NULL, "", true},
	    {"GET", "/v1/regions/local", "getRegion", "local", true},
	    {"GET", "/v1/regions/..", NULL, "", false},
	    {"GET", "/v1/regions/", NULL, "", false},
	    {"GET", "/v1/exports/export-0123456789abcdef/data", "getExportData", "export-0123456789abcdef", true},
	};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		bool known = false;
		char id[ID_MAX];
		const char *name = api_route_find(rows[i].method, rows[i].path, id, &known);

		if (!rows[i].name) {
			assert_null(name);
		} else {
			assert_non_null(name);
			assert_string_equal(name, rows[i].name);
			assert_string_equal(id, rows[i].id);
		}
		assert_int_equal(known, rows[i].known);
	}
}

static json_t *document(void)
{
	_cleanup_free_ char *path = str_printf("%s/openapi.json", REPLANT_DOCS), *text = NULL;
	json_t *doc;

	assert_int_equal(io_read_file(path, 1 << 20, &text, NULL, NULL), 0);
	doc = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
	assert_non_null(doc);
	return doc;
}

static json_t *operation(json_t *doc, const char *method, const char *path)
{
	char lower[16] = "";

	for (size_t i = 0; method[i]; i++)
		lower[i] = (char)tolower((unsigned char)method[i]);
	return json_object_get(json_object_get(json_object_get(doc, "paths"), path), lower);
}

static void test_every_route_is_documented(void **state)
{
	_cleanup_json_ json_t *doc = document();
	const char *method, *pattern, *name, *access;

	for (size_t i = 0; api_route_at(i, &method, &pattern, &name, &access); i++) {
		json_t *op = operation(doc, method, pattern);

		if (!op)
			fail_msg("%s %s is not in the document", method, pattern);
		assert_string_equal(json_string_value(json_object_get(op, "operationId")), name);
		assert_string_equal(json_string_value(json_object_get(op, "x-role")), access);
		assert_int_equal(strcmp(access, "public") == 0 || strcmp(access, "signed") == 0,
				 json_is_array(json_object_get(op, "security")));
		assert_int_equal(json_is_array(json_object_get(json_object_get(json_object_get(doc, "paths"), pattern),
							       "parameters")),
				 strstr(pattern, "{id}") != NULL);
	}
}

static bool has_route(const char *method, const char *path)
{
	const char *m, *pattern, *name, *access;

	for (size_t i = 0; api_route_at(i, &m, &pattern, &name, &access); i++)
		if (strcasecmp(m, method) == 0 && strcmp(pattern, path) == 0)
			return true;
	return false;
}

static void test_every_document_is_routed(void **state)
{
	_cleanup_json_ json_t *doc = document();
	const char *path, *method;
	json_t *item, *op;
	size_t n = 0;

	json_object_foreach(json_object_get(doc, "paths"), path, item) json_object_foreach(item, method, op)
	{
		if (strcmp(method, "parameters") == 0)
			continue;
		n++;
		if (!has_route(method, path))
			fail_msg("%s %s is documented but not served", method, path);
	}
	assert_true(n > 30);
}

/* Every "$ref" leads somewhere. */
static void check_refs(json_t *doc, json_t *j)
{
	const char *key;
	size_t i;
	json_t *v;

	json_array_foreach(j, i, v) check_refs(doc, v);
	json_object_foreach(j, key, v)
	{
		if (strcmp(key, "$ref") == 0) {
			char text[128];
			json_t *at = doc;

			assert_true(str_starts(json_string_value(v), "#/"));
			snprintf(text, sizeof(text), "%s", json_string_value(v) + 2);
			for (char *save = NULL, *p = strtok_r(text, "/", &save); p; p = strtok_r(NULL, "/", &save))
				at = json_object_get(at, p);
			if (!at)
				fail_msg("'%s' leads nowhere", json_string_value(v));
		}
		check_refs(doc, v);
	}
}

static void test_references(void **state)
{
	_cleanup_json_ json_t *doc = document();

	check_refs(doc, doc);
}

static json_int_t number(json_t *o, const char *key)
{
	assert_true(json_is_integer(json_object_get(o, key)));
	return json_integer_value(json_object_get(o, key));
}

static void check_input(json_t *schema, const struct model_input *in)
{
	json_t *p = json_object_get(json_object_get(schema, "properties"), in->name);
	json_t *d = json_object_get(p, "default");

	if (!p)
		fail_msg("'%s' is not in the document", in->name);
	if (in->kind == MODEL_UINT && in->words) {
		json_t *either = json_object_get(p, "oneOf"), *n = json_array_get(either, 0);
		json_t *words = json_object_get(json_array_get(either, 1), "enum");

		assert_int_equal(number(n, "minimum"), in->min);
		assert_int_equal(number(n, "maximum"), in->max);
		for (size_t i = 0; in->words[i]; i++)
			assert_string_equal(json_string_value(json_array_get(words, i)), in->words[i]);
		assert_string_equal(json_string_value(d), in->words[in->def - in->max - 1]);
	} else if (in->kind == MODEL_UINT) {
		assert_int_equal(number(p, "minimum"), in->min);
		assert_int_equal(number(p, "maximum"), in->max);
		assert_int_equal(number(p, "default"), in->def);
	} else if (in->kind == MODEL_BOOL) {
		assert_int_equal(json_is_true(d), in->def);
		assert_true(json_is_boolean(d));
	} else if (in->kind == MODEL_WORD) {
		json_t *list = json_object_get(p, "enum");

		for (size_t i = 0; in->words[i]; i++)
			assert_string_equal(json_string_value(json_array_get(list, i)), in->words[i]);
	} else if (in->kind == MODEL_JSON && in->words) {
		json_t *list = json_object_get(json_object_get(p, "items"), "enum");
		size_t n = 0;

		for (; in->words[n]; n++)
			assert_string_equal(json_string_value(json_array_get(list, n)), in->words[n]);
		assert_int_equal(json_array_size(list), n);
	} else if ((in->kind == MODEL_TEXT || in->kind == MODEL_LINE) && json_object_get(p, "maxLength")) {
		assert_int_equal(number(p, "maxLength"), in->max);
	}
}

/* Ranges and defaults in the document are those of the tables. */
static void test_requests_agree(void **state)
{
	static const struct {
		const char *schema;
		const struct model_input *table;
	} rows[] = {
	    {"Parameters", model_parameters},
	    {"JobRequest", model_job_request},
	    {"JobPatch", model_job_patch},
	    {"CodeRequest", model_code_request},
	    {"SweepRequest", model_sweep_request},
	    {"TokenRequest", model_token_request},
	    {"Rename", model_rename_request},
	    {"ExportRequest", model_export_request},
	    {"BootRequest", model_boot_request},
	    {"EnrollRequest", model_enroll_request},
	    {"SyncRequest", model_sync_request},
	    {"LogReport", model_log_request},
	    {"AgentError", model_error_request},
	    {"TemplateRequest", model_template_request},
	    {"TemplatePatch", model_template_patch},
	    {"TemplateJob", model_template_job},
	    {"WorkgroupRequest", model_workgroup_request},
	    {"SourcePatch", model_source_patch},
	    {"SubscriptionRequest", model_subscription_request},
	    {"SubscriptionPatch", model_subscription_patch},
	};
	_cleanup_json_ json_t *doc = document();
	json_t *schemas = json_object_get(json_object_get(doc, "components"), "schemas");

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		json_t *schema = json_object_get(schemas, rows[i].schema);
		json_t *required = json_object_get(schema, "required");
		size_t n = 0, needed = 0;

		assert_true(json_is_false(json_object_get(schema, "additionalProperties")));
		for (const struct model_input *in = rows[i].table; in->name; in++) {
			check_input(schema, in);
			n++;
			needed += in->required;
		}
		assert_int_equal(json_object_size(json_object_get(schema, "properties")), n);
		assert_int_equal(json_array_size(required), needed);
	}
}

/* A noun's JSON has exactly the members that its schema lists (what only GET of one adds aside). */
static void test_nouns_agree(void **state)
{
	static const struct {
		const char *schema, *extra;
		const struct model_noun *noun;
	} rows[] = {
	    {"Source", "job", &model_sources},
	    {"Job", "runs holds", &model_jobs},
	    {"Run", "", &model_runs},
	    {"Image", "report", &model_images},
	    {"Code", "", &model_codes},
	    {"Token", "", &model_tokens},
	    {"Region", "capacity", &model_regions},
	    {"Export", "", &model_exports},
	    {"Template", "", &model_templates},
	    {"Record", "", &model_records},
	    {"Workgroup", "status sources warnings", &model_workgroups},
	    {"Subscription", "", &model_subscriptions},
	    {"Notice", "", &model_notices},
	};
	_cleanup_json_ json_t *doc = document();

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++) {
		json_t *props = json_object_get(
		    json_object_get(json_object_get(json_object_get(doc, "components"), "schemas"), rows[i].schema),
		    "properties");
		_cleanup_free_ void *row = calloc(1, rows[i].noun->size);
		_cleanup_json_ json_t *j = model_json(rows[i].noun, row, false, 0);
		const char *key;
		json_t *v;

		json_object_foreach(j, key, v) if (!json_object_get(props, key))
		    fail_msg("%s.%s is not in the document", rows[i].schema, key);
		json_object_foreach(props, key, v) if (!json_object_get(j, key) && !strstr(rows[i].extra, key))
		    fail_msg("%s.%s is documented but not there", rows[i].schema, key);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_matching),
	    cmocka_unit_test(test_every_route_is_documented),
	    cmocka_unit_test(test_every_document_is_routed),
	    cmocka_unit_test(test_references),
	    cmocka_unit_test(test_requests_agree),
	    cmocka_unit_test(test_nouns_agree),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
