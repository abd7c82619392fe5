/* Scripts that a test boot runs, from files; and what came of them and of the comparison with the source. */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

#define CHECK_FILE_MAX (64u << 10)
#define SHOWN_MAX      12u /* differences; --json has all */

static json_t *check_of(const struct cli *c, const char *path, struct err *e)
{
	_cleanup_free_ char *text = NULL;
	const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
	json_t *o;
	size_t n;

	if (io_read_file(path, CHECK_FILE_MAX, &text, &n, e) < 0)
		return NULL;
	o = strlen(text) == n ? json_pack("{s:s, s:s}", "name", name, "script", text) : NULL;
	if (!o) {
		err_set(e, -EINVAL, "'%s' is no script: it isn't UTF-8 text", path);
		return NULL;
	}
	if (c->check_timeout)
		json_object_set_new(o, "timeout", json_integer((json_int_t)c->check_timeout));
	return o;
}

int cli_checks(const struct cli *c, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *list = json_array();

	for (size_t i = 0; i < c->checks.n; i++) {
		json_t *one = check_of(c, c->checks.v[i], e);

		if (!one)
			return err_prefix(e, "--check");
		json_array_append_new(list, one);
	}
	*ret = take_ptr(&list);
	return 0;
}

bool cli_checks_fit(const struct cli *c)
{
	_cleanup_json_ json_t *list = NULL;
	struct err e = {0};

	if (cli_checks(c, &list, &e) < 0) {
		out_error("%s", e.msg);
		return false;
	}
	if (c->check_timeout && !c->checks.n) {
		out_error("--check-timeout goes with --check");
		return false;
	}
	return true;
}

void cli_show_checks(const json_t *checks)
{
	_cleanup_(str_release) struct str b = {0};
	const json_t *o;
	size_t i;

	json_array_foreach(checks, i, o) str_addf(&b, "%s%s", i ? ", " : "", get_str(o, "name"));
	if (b.len)
		out_fieldf("Checks", "%s", b.s);
}

static void show_difference(const json_t *o)
{
	_cleanup_(str_release) struct str b = {0};
	const char *source = get_str(o, "source"), *copy = get_str(o, "copy");

	out_clean(&b, get_str(o, "kind"));
	str_add(&b, " ");
	out_clean(&b, get_str(o, "what"));
	str_add(&b, ": ");
	out_clean(&b, *source ? source : "not there");
	str_add(&b, " -> ");
	out_clean(&b, *copy ? copy : "not there");
	str_add(&b, "; ");
	out_clean(&b, get_str(o, "why"));
	out_field(get_true(o, "critical") ? "Missing" : "Flagged", b.s ? b.s : "",
		  get_true(o, "critical") ? OUT_RED : OUT_YELLOW);
}

void cli_show_verification(const json_t *report)
{
	const json_t *verification = get(report, "verification"), *o;
	size_t i, shown = 0;

	json_array_foreach(get(report, "checks"), i, o)
	{
		bool passed = get_true(o, "passed");

		out_fieldf("Check", "%s: %s", get_str(o, "name"), passed ? "passed" : "failed");
	}
	out_fieldf("Compared", "%s", get_str(verification, "sentence"));
	json_array_foreach(get(verification, "differences"), i, o)
	{
		if (strcmp(get_str(o, "level"), "flagged") == 0 && shown++ < SHOWN_MAX)
			show_difference(o);
	}
	if (shown > SHOWN_MAX)
		out_fieldf("", "and %zu more; --json has all", shown - SHOWN_MAX);
}
