/* What the probe says: a stranger's words, so only known ones of known types, and not too many. */
#include "provider/local_int.h"

#include <string.h>

#include "base/str.h"
#include "base/util.h"

#define TEXT_MAX   256u  /* bytes of a string the probe says */
#define OUTPUT_MAX 8192u /* of the last lines of a check: 4 KiB, should all of it have to be '?' */
#define LIST_MAX   500u  /* entries of a list it says */

enum shape_kind {
	SHAPE_TEXT,
	SHAPE_NUMBER,
	SHAPE_REAL,
	SHAPE_BOOL,
	SHAPE_TEXTS,
	SHAPE_NUMBERS,
	SHAPE_OBJECT,
	SHAPE_OBJECTS
};

struct shape {
	const char *key;
	enum shape_kind kind;
	size_t max; /* bytes of a text, entries of a list; of a number its greatest value */
	const struct shape *members;
};

#define TEXT(key)                                                                                                      \
	{                                                                                                              \
		key, SHAPE_TEXT, TEXT_MAX                                                                              \
	}
#define BOOL(key)                                                                                                      \
	{                                                                                                              \
		key, SHAPE_BOOL                                                                                        \
	}
#define NUMBER(key, max)                                                                                               \
	{                                                                                                              \
		key, SHAPE_NUMBER, max                                                                                 \
	}
#define TEXTS(key, n)                                                                                                  \
	{                                                                                                              \
		key, SHAPE_TEXTS, n                                                                                    \
	}
#define OBJECT(key, of)                                                                                                \
	{                                                                                                              \
		key, SHAPE_OBJECT, 0, of                                                                               \
	}
#define LIST(key, n, of)                                                                                               \
	{                                                                                                              \
		key, SHAPE_OBJECTS, n, of                                                                              \
	}

static const struct shape shape_unit[] = {TEXT("name"), TEXT("state"), TEXT("enabled"), BOOL("condition"), {0}};
static const struct shape shape_socket[] = {TEXT("proto"),   NUMBER("port", 65535), TEXT("address"),
					    TEXT("program"), TEXT("unit"),          {0}};
static const struct shape shape_mount[] = {TEXT("source"), TEXT("target"), TEXT("type"), {0}};
static const struct shape shape_survey_mount[] = {TEXT("source"),  TEXT("target"), TEXT("type"),
						  TEXT("options"), BOOL("fstab"),  {0}};
static const struct shape shape_account[] = {TEXT("name"), NUMBER("id", UINT32_MAX), {0}};
static const struct shape shape_packages[] = {
    TEXT("kind"), NUMBER("count", 1000000), TEXT("digest"), TEXTS("list", 6000), {0}};
static const struct shape shape_module[] = {TEXT("name"), TEXT("kind"), {0}};
static const struct shape shape_cron[] = {TEXT("path"), TEXT("digest"), {0}};
static const struct shape shape_route[] = {TEXT("destination"), TEXT("gateway"), TEXT("interface"), {0}};
static const struct shape shape_address[] = {TEXT("interface"), TEXT("address"), {0}};

static const struct shape shape_survey[] = {
    TEXT("hostname"),
    TEXT("timezone"),
    TEXT("init"),
    LIST("units", LIST_MAX, shape_unit),
    TEXTS("processes", LIST_MAX),
    LIST("listening", LIST_MAX, shape_socket),
    LIST("mounts", LIST_MAX, shape_survey_mount),
    NUMBER("swaps", 1000),
    LIST("users", 1000, shape_account),
    LIST("groups", 1000, shape_account),
    OBJECT("packages", shape_packages),
    LIST("modules", LIST_MAX, shape_module),
    LIST("cron", LIST_MAX, shape_cron),
    LIST("routes", LIST_MAX, shape_route),
    TEXTS("cut", 20),
    {0},
};

static const struct shape shape_check[] = {TEXT("name"),
					   NUMBER("status", 255),
					   BOOL("timed_out"),
					   {"seconds", SHAPE_REAL, 1000},
					   {"output", SHAPE_TEXT, OUTPUT_MAX},
					   {0}};

static const struct shape shape_report[] = {
    TEXT("state"),
    TEXT("kernel"),
    TEXT("hostname"),
    {"boot_seconds", SHAPE_REAL, 1000000},
    OBJECT("survey", shape_survey),
    LIST("checks", 16, shape_check),
    {0},
};
/* Lists that the report always has. */
static const struct shape shape_lists[] = {
    TEXTS("failed_units", LIST_MAX),       TEXTS("missing_mounts", LIST_MAX),
    LIST("mounts", LIST_MAX, shape_mount), LIST("addresses", LIST_MAX, shape_address),
    {"listening", SHAPE_NUMBERS, 65535},   {0},
};

static json_t *shape_value(const struct shape *s, const json_t *v);

static json_t *shape_list(const struct shape *s, const json_t *from)
{
	const struct shape text = {NULL, SHAPE_TEXT, TEXT_MAX}, number = {NULL, SHAPE_NUMBER, s->max},
			   object = {NULL, SHAPE_OBJECT, 0, s->members};
	const struct shape *one = s->kind == SHAPE_TEXTS ? &text : s->kind == SHAPE_NUMBERS ? &number : &object;
	size_t max = s->kind == SHAPE_NUMBERS ? LIST_MAX : s->max, i;
	json_t *list = json_array(), *v;

	json_array_foreach(from, i, v)
	{
		json_t *taken = json_array_size(list) < max ? shape_value(one, v) : NULL;

		if (taken)
			json_array_append_new(list, taken);
	}
	return list;
}

static json_t *shape_take(const struct shape *members, const json_t *from)
{
	json_t *o = json_object();

	for (const struct shape *s = members; o && s->key; s++) {
		const json_t *v = json_object_get(from, s->key);
		json_t *taken = v ? shape_value(s, v) : NULL;

		if (taken)
			json_object_set_new(o, s->key, taken);
	}
	return o;
}

static json_t *shape_value(const struct shape *s, const json_t *v)
{
	switch (s->kind) {
	case SHAPE_TEXT:
		return json_is_string(v) && json_string_length(v) <= s->max ? json_string(json_string_value(v)) : NULL;
	case SHAPE_NUMBER:
		if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > (json_int_t)s->max)
			return NULL;
		return json_integer(json_integer_value(v));
	case SHAPE_REAL:
		if (!json_is_number(v) || !(json_number_value(v) >= 0 && json_number_value(v) <= (double)s->max))
			return NULL;
		return json_real(json_number_value(v));
	case SHAPE_BOOL:
		return json_is_boolean(v) ? json_boolean(json_is_true(v)) : NULL;
	case SHAPE_OBJECT:
		return json_is_object(v) ? shape_take(s->members, v) : NULL;
	case SHAPE_TEXTS:
	case SHAPE_NUMBERS:
	case SHAPE_OBJECTS:
		return shape_list(s, v);
	}
	never("no report has such a member");
}

json_t *local_boot_report(const json_t *probe)
{
	json_t *o = shape_take(shape_report, probe);

	for (const struct shape *s = shape_lists; o && s->key; s++)
		json_object_set_new(o, s->key, shape_list(s, json_object_get(probe, s->key)));
	return o;
}
