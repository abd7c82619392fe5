/* JSON with bounds: what comes from outside is parsed with a size and depth limit, duplicates refused. Over jansson. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

#define JSN_MAX_SIZE (4u << 20)

static inline void jsn_decrefp(json_t **j)
{
	json_decref(*j);
}
#define _cleanup_json_ __attribute__((cleanup(jsn_decrefp)))

/* One JSON object or array of at most max bytes. *ret is a new reference. */
int jsn_parse(const char *s, size_t len, size_t max, json_t **ret, struct err *e);
/* Compact text; the caller frees. NULL when out of memory. */
char *jsn_text(const json_t *j);

/*
 * Members of an object. A missing optional member leaves *ret alone and returns 0; a wrong type or range returns
 * -EINVAL with a message naming the key. `required` makes a missing one an error. Borrowed strings live as long as `o`.
 */
int jsn_get_str(const json_t *o, const char *key, bool required, size_t max, const char **ret, struct err *e);
int jsn_get_u64(const json_t *o, const char *key, bool required, uint64_t min, uint64_t max, uint64_t *ret,
		struct err *e);
int jsn_get_bool(const json_t *o, const char *key, bool required, bool *ret, struct err *e);
