/*
 * What a survey reads: users write some of it (mount points, names of programs), and a broken system all of it. The
 * first byte says which parser. Strings are short, lists bounded, and all can be written as JSON.
 */
#include <stdlib.h>
#include <string.h>

#include "base/jsn.h"
#include "survey/survey_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(const json_t *j)
{
	const char *key;
	json_t *v;
	size_t i;

	if (json_is_string(j))
		must(json_string_length(j) <= SURVEY_TEXT_MAX);
	must(json_array_size(j) <= SURVEY_PACKAGES_MAX);
	json_object_foreach((json_t *)(uintptr_t)j, key, v) check(v);
	json_array_foreach(j, i, v) check(v);
}

static void sockets(const char *text, bool udp, bool v6)
{
	struct survey_socket v[8];
	size_t n = survey_parse_sockets(text, udp, v6, v, 0, ARRAY_SIZE(v));

	must(n <= ARRAY_SIZE(v));
	for (size_t i = 0; i < n; i++)
		must(v[i].port && v[i].reach <= 2);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_json_ json_t *o = json_object();
	_cleanup_free_ char *text = NULL, *json = NULL;
	char unit[128];

	if (size < 1 || size > 65536)
		return 0;
	text = strndup((const char *)data + 1, size - 1);
	must(o && text);
	switch (data[0] % 9) {
	case 0:
		survey_parse_units(o, text);
		break;
	case 1:
		survey_parse_accounts(o, "users", text);
		break;
	case 2:
		survey_parse_dpkg(o, text);
		break;
	case 3:
		survey_parse_mounts(o, text, text);
		break;
	case 4:
		survey_parse_modules(o, text, text);
		break;
	case 5:
		survey_parse_routes(o, text);
		break;
	case 6:
		survey_parse_cgroup(text, unit, sizeof(unit));
		must(strlen(unit) < sizeof(unit));
		break;
	case 7:
		sockets(text, false, false);
		break;
	default:
		sockets(text, true, true);
	}
	check(o);
	json = jsn_text(o);
	must(json);
	return 0;
}
