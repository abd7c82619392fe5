/* The comparison in its place: what is kept of the source, what a test boot is given, what comes into its report. */
#include "center/verify.h"

#include <stdio.h>
#include <string.h>

#include "base/jsn.h"
#include "base/redact.h"
#include "base/str.h"
#include "base/util.h"
#include "center/engine.h"

#define PROBLEMS_MAX 20u /* of a comparison, in the report's list of problems */

void verify_keep(json_t *conversion, const json_t *inventory)
{
	json_t *survey = json_object_get(inventory, "survey"), *failed = json_object_get(inventory, "failed_units");

	if (json_is_object(conversion) && json_is_object(survey))
		json_object_set_new(conversion, "source",
				    json_pack("{s:O, s:O*}", "survey", survey, "failed_units", failed));
}

/* The scripts of the job that made the image, as long as there is one. New reference, or NULL. */
static json_t *checks_of_job(struct engine *en, const char *id)
{
	_cleanup_(model_job_release) struct model_job job = {0};

	if (!id || en->store->ops->get(en->store, &model_jobs, id, &job, NULL) < 0)
		return NULL;
	return json_incref(json_object_get(job.parameters, "checks"));
}

json_t *verify_prepare(struct engine *en, const char *image, const json_t *checks)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	_cleanup_json_ json_t *options = NULL, *scripts = NULL;
	json_t *source;

	if (en->store->ops->get(en->store, &model_images, image, &im, NULL) < 0)
		return json_pack("{s:{}}", "options");
	options = task_boot_options(en, im.source);
	scripts = checks ? json_incref((json_t *)(uintptr_t)checks) : checks_of_job(en, im.job);
	source = json_object_get(im.report, "source");
	/* As it was when it was copied; what fails there by now is another matter. */
	if (json_is_array(json_object_get(source, "failed_units")))
		json_object_set(options, "known_failed_units", json_object_get(source, "failed_units"));
	if (json_array_size(scripts))
		json_object_set(options, "checks", scripts);
	if (source)
		json_object_set_new(options, "expect", verify_expect(source, im.report));
	return json_pack("{s:O, s:O*, s:O*}", "options", options, "source", source, "conversion", im.report);
}

/* ---- the report ---- */

static void add_problem(json_t *report, const char *code, json_t *message)
{
	json_array_append_new(json_object_get(report, "problems"),
			      json_pack("{s:s, s:o}", "code", code, "message", message ?: json_string("?")));
}

static bool has_failed(const json_t *report, const char *unit)
{
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(report, "failed_units"), i,
			   o) if (strcmp(json_string_value(o) ?: "", unit) == 0) return true;
	return false;
}

static bool is_missing(const json_t *report, const char *mount)
{
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(report, "missing_mounts"), i,
			   o) if (strcmp(json_string_value(o) ?: "", mount) == 0) return true;
	return false;
}

/* The system's own word for it is in the list already. */
static bool is_told(const json_t *report, const char *kind, const char *what)
{
	return (strcmp(kind, "service") == 0 && has_failed(report, what)) ||
	       (strcmp(kind, "mount") == 0 && is_missing(report, what));
}

static void tell_difference(json_t *report, const json_t *o)
{
	static const struct {
		const char *kind, *code;
	} codes[] = {{"service", "missing_service"}, {"port", "missing_port"},  {"mount", "missing_mount"},
		     {"user", "missing_user"},       {"group", "missing_user"}, {"package", "packages_differ"}};
	const char *kind = json_string_value(json_object_get(o, "kind")),
		   *what = json_string_value(json_object_get(o, "what")),
		   *why = json_string_value(json_object_get(o, "why"));

	for (size_t i = 0; i < ARRAY_SIZE(codes); i++)
		if (strcmp(kind, codes[i].kind) == 0 && !is_told(report, kind, what))
			add_problem(report, codes[i].code, json_sprintf("%s '%s': %s", kind, what, why));
}

static void tell_differences(json_t *report, const json_t *verification)
{
	json_t *o;
	size_t i, told = 0;

	json_array_foreach(json_object_get(verification, "differences"), i, o)
	{
		if (json_is_true(json_object_get(o, "critical")) && told++ < PROBLEMS_MAX)
			tell_difference(report, o);
	}
}

static void compare(const json_t *prepared, json_t *report)
{
	const json_t *source = json_object_get(prepared, "source"), *survey = json_object_get(report, "survey");
	json_t *verification;

	/* A migration test's copy has only what is needed to boot. */
	if (!json_object_get(prepared, "conversion")) {
		json_object_del(report, "survey");
		return;
	}
	if (!survey || !source) {
		verification = json_pack("{s:b, s:s}", "compared", 0, "sentence",
					 survey ? "not compared: the source's agent didn't say what runs there"
						: "not compared: the copy didn't say what runs in it");
	} else {
		verification = verify_compare(source, survey, json_object_get(prepared, "conversion"));
		json_object_set_new(verification, "compared", json_true());
		tell_differences(report, verification);
	}
	/* The copy's whole survey stays with the image's files; here are its differences. */
	json_object_del(report, "survey");
	json_object_set_new(report, "verification", verification);
}

/* ---- the scripts ---- */

/* What a script wrote is like a log: it may hold what nobody is to see. */
static void redact_output(json_t *check)
{
	const char *output = json_string_value(json_object_get(check, "output"));
	_cleanup_free_ char *copy = output ? strdup(output) : NULL;
	struct redact state = {0};

	if (!copy)
		return;
	redact_text(&state, copy, strlen(copy));
	json_object_set_new(check, "output", json_string(copy) ?: json_string("(not UTF-8)"));
}

static const char *last_line(const char *text, size_t *ret_len)
{
	size_t n = strlen(text), start;

	while (n && (text[n - 1] == '\n' || text[n - 1] == ' '))
		n--;
	for (start = n; start && text[start - 1] != '\n'; start--)
		;
	*ret_len = str_cut(text + start, MIN(n - start, (size_t)200));
	return text + start;
}

/* False when it was passed. */
static bool check_failed(const json_t *check)
{
	const json_t *status = json_object_get(check, "status");

	return !json_is_integer(status) || json_integer_value(status) != 0 ||
	       json_is_true(json_object_get(check, "timed_out"));
}

static void judge_check(json_t *report, const char *name, json_t *check)
{
	const char *line;
	size_t n;

	if (!check) {
		add_problem(report, "check_failed",
			    json_sprintf("check '%s' was not run, because the system did not come up", name));
		return;
	}
	redact_output(check);
	json_object_set_new(check, "name", json_string(name));
	json_object_set_new(check, "passed", json_boolean(!check_failed(check)));
	if (!check_failed(check))
		return;
	line = last_line(json_string_value(json_object_get(check, "output")) ?: "", &n);
	if (json_is_true(json_object_get(check, "timed_out")))
		add_problem(report, "check_failed",
			    json_sprintf("check '%s' was ended, because it took longer than its %.0f s%s%.*s", name,
					 json_number_value(json_object_get(check, "timeout")), n ? ": " : "", (int)n,
					 line));
	else
		add_problem(report, "check_failed",
			    json_sprintf("check '%s' failed with status %d%s%.*s", name,
					 (int)json_integer_value(json_object_get(check, "status")), n ? ": " : "",
					 (int)n, line));
}

static void judge_checks(const json_t *wanted, json_t *report)
{
	json_t *checks = json_object_get(report, "checks"), *o;
	size_t i;

	json_array_foreach(wanted, i, o)
	{
		json_t *check = json_array_get(checks, i);

		if (check && json_object_get(o, "timeout"))
			json_object_set(check, "timeout", json_object_get(o, "timeout"));
		judge_check(report, json_string_value(json_object_get(o, "name")) ?: "?", check);
	}
}

void verify_finish(const json_t *prepared, json_t *report)
{
	size_t before;

	if (!json_is_object(report))
		return;
	if (!json_object_get(report, "problems"))
		json_object_set_new(report, "problems", json_array());
	before = json_array_size(json_object_get(report, "problems"));
	compare(prepared, report);
	judge_checks(json_object_get(json_object_get(prepared, "options"), "checks"), report);
	if (json_array_size(json_object_get(report, "problems")) > before)
		json_object_set_new(report, "verified", json_false());
}
