#include <string.h>

#include "cli/cli_int.h"

const json_t *get(const json_t *o, const char *path)
{
	char key[64];

	while (o) {
		size_t n = strcspn(path, ".");

		if (n >= sizeof(key))
			return NULL;
		memcpy(key, path, n);
		key[n] = '\0';
		o = json_object_get(o, key);
		if (!path[n])
			break;
		path += n + 1;
	}
	return o && !json_is_null(o) ? o : NULL;
}

const char *get_str(const json_t *o, const char *path)
{
	const json_t *v = get(o, path);

	return json_is_string(v) ? json_string_value(v) : "";
}

double get_num(const json_t *o, const char *path, double def)
{
	const json_t *v = get(o, path);

	return json_is_number(v) ? json_number_value(v) : def;
}

bool get_true(const json_t *o, const char *path)
{
	return json_is_true(get(o, path));
}
