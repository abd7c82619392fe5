/* The report of a migration test: levels, and what is predicted from what was measured. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <string.h>

#include "base/jsn.h"
#include "center/findings.h"

#define GB 1e9

/* A server of two disks, 1 and 9 GB in use, of which the first was copied in 10 s at 100 MB/s, with 0.5 s frozen. */
struct scene {
	json_t *inventory, *result, *progress, *conversion, *boot;
	struct findings_facts facts;
};

static void scene_init(struct scene *s, const char *tracking, bool keeps)
{
	*s = (struct scene){.inventory = json_pack("{s:[{s:s, s:I}, {s:s, s:I}]}", "disks", "path", "/dev/vda", "used",
						   (json_int_t)1e9, "path", "/dev/vdb", "used", (json_int_t)9e9),
			    .result = json_pack("{s:{s:f}, s:{s:I, s:f}, s:{s:[], s:[s]}, s:f}", "totals", "freeze_ms",
						500.0, "live", "bytes", (json_int_t)1e9, "seconds", 10.0, "test",
						"checks", "left_out", "/dev/vdb", "clock_skew", 1.0),
			    .progress = json_pack("{s:s}", "tracking", tracking),
			    .conversion = json_pack("{s:[]}", "steps"),
			    .boot = json_pack("{s:b, s:[]}", "verified", 1, "problems")};
	s->facts = (struct findings_facts){.inventory = s->inventory,
					   .result = s->result,
					   .progress = s->progress,
					   .conversion = s->conversion,
					   .boot = s->boot,
					   .preparing = 1,
					   .syncing = 13.5,
					   .converting = 60,
					   .booting = 30,
					   .image = 2,
					   .cleaning = 1,
					   .region_free = UINT64_MAX,
					   .boots = true,
					   .keeps = keeps};
}

static void scene_release(struct scene *s)
{
	json_decref(s->inventory);
	json_decref(s->result);
	json_decref(s->progress);
	json_decref(s->conversion);
	json_decref(s->boot);
}

static double predicted(const struct scene *s, const char *key)
{
	_cleanup_json_ json_t *report = findings_report(&s->facts);
	json_t *v = json_object_get(json_object_get(report, "prediction"), key);

	assert_true(json_is_number(v));
	return json_number_value(v);
}

static void assert_near(double got, double want)
{
	if (fabs(got - want) > 0.01)
		fail_msg("%f instead of %f", got, want);
}

static void test_prediction(void **state)
{
	struct scene s;

	/* 3 s around the copy, 100 s for ten times as much, the freeze as it was. */
	scene_init(&s, "bpf", false);
	assert_near(predicted(&s, "transfer_seconds"), 103.5);
	assert_near(predicted(&s, "freeze_seconds"), 0.5);
	assert_near(predicted(&s, "total_seconds"), 103.5 + 60 + 30 + 2 + 2);
	assert_near(predicted(&s, "saved_seconds"), 0);
	s.facts.boots = false;
	assert_near(predicted(&s, "total_seconds"), 103.5 + 60 + 2 + 2);
	scene_release(&s);
	/* The copy stays: only the second disk is sent. */
	scene_init(&s, "bpf", true);
	assert_near(predicted(&s, "transfer_seconds"), 93.5);
	assert_near(predicted(&s, "saved_seconds"), 10);
	scene_release(&s);
	/* Untracked all is read in the freeze, which grows with it; and what is there is read once more to compare. */
	scene_init(&s, "compare", false);
	assert_near(predicted(&s, "freeze_seconds"), 5);
	assert_near(predicted(&s, "transfer_seconds"), 3 + 100 + 5);
	scene_release(&s);
	scene_init(&s, "compare", true);
	assert_near(predicted(&s, "transfer_seconds"), 3 + 90 + 0.5 + 5);
	scene_release(&s);
}

static void test_nothing_known(void **state)
{
	struct findings_facts f = {.region_free = UINT64_MAX};
	_cleanup_json_ json_t *report = findings_report(&f);

	assert_non_null(report);
	assert_int_equal(findings_critical(report), 1); /* nothing booted */
	assert_int_equal(findings_critical(NULL), 0);
}

/* Numbers that make no sense. */
static void test_strange_numbers(void **state)
{
	static const char *const strange[] = {"{\"seconds\":-5,\"bytes\":\"x\"}", "{\"seconds\":1e308,\"bytes\":1e308}",
					      "[]", "{\"seconds\":0}"};
	struct scene s;

	for (size_t i = 0; i < sizeof(strange) / sizeof(*strange); i++) {
		_cleanup_json_ json_t *report = NULL;

		scene_init(&s, "bpf", i % 2);
		json_object_set_new(s.result, "live", json_loads(strange[i], 0, NULL));
		report = findings_report(&s.facts);
		assert_non_null(report);
		assert_true(json_object_size(report) >= 7);
		scene_release(&s);
	}
}

static const json_t *item_of(const json_t *report, const char *name)
{
	json_t *v;
	size_t i;

	json_array_foreach(json_object_get(report, "items"), i, v)
	{
		if (strcmp(json_string_value(json_object_get(v, "item")), name) == 0)
			return v;
	}
	return NULL;
}

static void assert_level(const struct scene *s, const char *item, const char *level)
{
	_cleanup_json_ json_t *report = findings_report(&s->facts);
	const json_t *found = item_of(report, item);

	assert_non_null(found);
	assert_string_equal(json_string_value(json_object_get(found, "level")), level);
	if (strcmp(level, "passed") != 0)
		assert_true(json_is_string(json_object_get(found, "remedy")));
}

static void test_levels(void **state)
{
	struct scene s;

	scene_init(&s, "bpf", false);
	assert_level(&s, "clock", "passed");
	json_object_set_new(s.result, "clock_skew", json_real(-300));
	assert_level(&s, "clock", "warning");
	json_object_set_new(s.result, "clock_skew", json_real(90000));
	assert_level(&s, "clock", "critical");
	assert_level(&s, "tracking", "passed");
	json_object_set_new(s.progress, "tracking", json_string("compare"));
	assert_level(&s, "tracking", "warning");
	json_object_set_new(json_object_get(s.result, "totals"), "freeze_ms", json_real(100000));
	assert_level(&s, "tracking", "critical");
	json_object_set_new(s.progress, "link", json_real(1e8));
	json_object_set_new(s.progress, "churn", json_real(1e6));
	assert_level(&s, "writers", "passed");
	json_object_set_new(s.progress, "churn", json_real(9e7));
	assert_level(&s, "writers", "warning");
	json_object_set_new(s.progress, "converges", json_false());
	assert_level(&s, "writers", "critical");
	s.facts.region_free = (uint64_t)(20 * GB);
	assert_level(&s, "space", "passed");
	s.facts.region_free = (uint64_t)(10.1 * GB);
	assert_level(&s, "space", "warning");
	s.facts.region_free = (uint64_t)(9 * GB);
	assert_level(&s, "space", "critical");
	/* What the test itself holds is the migration's. */
	json_object_set_new(s.progress, "bytes_written", json_integer((json_int_t)5e9));
	assert_level(&s, "space", "passed");
	s.facts.boot = NULL;
	s.facts.boot_error = "it hangs";
	assert_level(&s, "boot", "critical");
	s.facts.conversion_error = "no GRUB";
	assert_level(&s, "conversion", "critical");
	scene_release(&s);
}

static void test_conclusion(void **state)
{
	_cleanup_json_ json_t *stages = json_pack(
	    "[{s:s, s:f}, {s:s, s:f}, {s:s, s:f}, {s:s, s:f}]", "name", "preparing", "seconds", 1.0, "name", "syncing",
	    "seconds", 100.0, "name", "processing", "seconds", 97.0, "name", "cleaning", "seconds", 2.0);
	_cleanup_json_ json_t *report = json_pack("{s:{s:f}}", "prediction", "total_seconds", 150.0);
	json_t *actual;

	findings_conclude(report, stages, NULL);
	actual = json_object_get(report, "actual");
	assert_near(json_number_value(json_object_get(actual, "total_seconds")), 200);
	assert_near(json_number_value(json_object_get(actual, "error_percent")), -25);
	json_object_set_new(report, "interrupted", json_true());
	findings_conclude(report, stages, NULL);
	assert_null(json_object_get(json_object_get(report, "actual"), "error_percent"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_prediction),      cmocka_unit_test(test_nothing_known),
	    cmocka_unit_test(test_strange_numbers), cmocka_unit_test(test_levels),
	    cmocka_unit_test(test_conclusion),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
