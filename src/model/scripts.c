/* Scripts that people want run in a copy of their server once it has booted: "checks". */
#include "model/model.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/util.h"

static bool script_name_ok(const char *s)
{
	if (!*s)
		return false;
	for (const unsigned char *c = (const unsigned char *)s; *c; c++)
		if (*c < 0x20 || *c == 0x7f)
			return false;
	return true;
}

static int script_check(const char *field, const json_t *o, struct err *e)
{
	const char *name = NULL, *script = NULL, *key;
	uint64_t timeout = MODEL_CHECK_SECONDS;
	json_t *value;
	int r;

	if (!json_is_object(o))
		return err_set(e, -EINVAL, "'%s' must be a list of objects {\"name\",\"script\",\"timeout\"}", field);
	json_object_foreach((json_t *)(uintptr_t)o, key, value)
	{
		if (strcmp(key, "name") != 0 && strcmp(key, "script") != 0 && strcmp(key, "timeout") != 0)
			return err_set(e, -EINVAL, "'%s': a check has no '%.64s'", field, key);
	}
	r = jsn_get_str(o, "name", true, MODEL_NAME_MAX, &name, e);
	r = r ?: jsn_get_str(o, "script", true, MODEL_CHECK_MAX, &script, e);
	r = r ?: jsn_get_u64(o, "timeout", false, 1, MODEL_CHECK_SECONDS_MAX, &timeout, e);
	if (r < 0)
		return err_prefix(e, "'%s'", field);
	if (!script_name_ok(name))
		return err_set(e, -EINVAL, "'%s': a check's name is empty, or has a control character in it", field);
	if (!*script || strlen(script) != json_string_length(json_object_get(o, "script")))
		return err_set(e, -EINVAL, "'%s': the script of '%s' is empty, or has a NUL character in it", field,
			       name);
	return 0;
}

int model_check_scripts(const struct model_input *in, const json_t *list, struct err *e)
{
	json_t *o, *other;
	size_t i, k;
	int r;

	if (!json_is_array(list))
		return err_set(e, -EINVAL, "'%s' must be a list of objects {\"name\",\"script\",\"timeout\"}",
			       in->name);
	if (json_array_size(list) > MODEL_CHECKS_MAX)
		return err_set(e, -EINVAL, "'%s' may have at most %u entries, not %zu", in->name, MODEL_CHECKS_MAX,
			       json_array_size(list));
	json_array_foreach(list, i, o)
	{
		r = script_check(in->name, o, e);
		if (r < 0)
			return r;
		json_array_foreach(list, k, other)
		{
			if (k < i && json_equal(json_object_get(o, "name"), json_object_get(other, "name")))
				return err_set(e, -EINVAL, "'%s' has two checks '%s'", in->name,
					       json_string_value(json_object_get(o, "name")));
		}
	}
	return 0;
}

json_t *model_parameters_brief(json_t *parameters)
{
	json_t *checks = json_object_get(parameters, "checks"), *list, *out, *o, *copy;
	size_t i;

	if (!checks)
		return json_incref(parameters);
	out = json_copy(parameters);
	list = json_array();
	json_array_foreach(checks, i, o)
	{
		copy = json_copy(o);
		json_object_del(copy, "script");
		json_array_append_new(list, copy);
	}
	json_object_set_new(out, "checks", list);
	return out;
}
