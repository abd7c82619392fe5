#include "base/jsn.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"

int jsn_parse(const char *s, size_t len, size_t max, json_t **ret, struct err *e)
{
	json_error_t je;
	json_t *j;

	if (len > max)
		return err_set(e, -EFBIG, "JSON of %zu bytes is larger than the %zu allowed", len, max);
	/* jansson itself stops at a nesting depth of 2048. */
	j = json_loadb(s, len, JSON_REJECT_DUPLICATES, &je);
	if (!j)
		return err_set(e, -EINVAL, "not valid JSON: %s (line %d, column %d)", je.text, je.line, je.column);
	*ret = j;
	return 0;
}

char *jsn_text(const json_t *j)
{
	return json_dumps(j, JSON_COMPACT | JSON_ENCODE_ANY);
}

static int jsn_member(const json_t *o, const char *key, bool required, json_t **ret, struct err *e)
{
	json_t *v = json_object_get(o, key);

	if (v && json_is_null(v))
		v = NULL;
	if (!v && required)
		return err_set(e, -EINVAL, "'%s' is missing", key);
	*ret = v;
	return 0;
}

int jsn_get_str(const json_t *o, const char *key, bool required, size_t max, const char **ret, struct err *e)
{
	json_t *v = NULL;
	int r = jsn_member(o, key, required, &v, e);

	if (r < 0 || !v)
		return r;
	if (!json_is_string(v))
		return err_set(e, -EINVAL, "'%s' must be a string", key);
	if (json_string_length(v) > max)
		return err_set(e, -EINVAL, "'%s' is longer than %zu bytes", key, max);
	if (strlen(json_string_value(v)) != json_string_length(v))
		return err_set(e, -EINVAL, "'%s' contains a NUL character", key);
	*ret = json_string_value(v);
	return 0;
}

int jsn_get_u64(const json_t *o, const char *key, bool required, uint64_t min, uint64_t max, uint64_t *ret,
		struct err *e)
{
	json_t *v = NULL;
	int r = jsn_member(o, key, required, &v, e);

	if (r < 0 || !v)
		return r;
	if (!json_is_integer(v))
		return err_set(e, -EINVAL, "'%s' must be a whole number", key);
	if (json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) < min || (uint64_t)json_integer_value(v) > max)
		return err_set(e, -ERANGE, "'%s' must be between %llu and %llu, not %lld", key, (unsigned long long)min,
			       (unsigned long long)max, (long long)json_integer_value(v));
	*ret = (uint64_t)json_integer_value(v);
	return 0;
}

int jsn_get_bool(const json_t *o, const char *key, bool required, bool *ret, struct err *e)
{
	json_t *v = NULL;
	int r = jsn_member(o, key, required, &v, e);

	if (r < 0 || !v)
		return r;
	if (!json_is_boolean(v))
		return err_set(e, -EINVAL, "'%s' must be true or false", key);
	*ret = json_is_true(v);
	return 0;
}
