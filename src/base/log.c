#include "base/log.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/id.h"
#include "base/str.h"
#include "base/util.h"

static void (*log_tap_fn)(void *arg, enum log_level level, const char *message);
static void *log_tap_arg;
static enum log_level log_max = LOG_LEVEL_INFO;
static bool log_json;

static const struct {
	const char *name;
	int priority; /* sd-daemon(3) */
} log_levels[] = {
    [LOG_LEVEL_ERROR] = {"error", 3},
    [LOG_LEVEL_WARN] = {"warning", 4},
    [LOG_LEVEL_INFO] = {"info", 6},
    [LOG_LEVEL_DEBUG] = {"debug", 7},
};

void log_set(enum log_level max, bool json)
{
	const char *way = getenv("REPLANT_LOG");

	log_max = max;
	log_json = json || (way && strcmp(way, "json") == 0);
}

void log_tap(void (*fn)(void *arg, enum log_level level, const char *message), void *arg)
{
	log_tap_fn = fn;
	log_tap_arg = arg;
}

static void log_json_line(enum log_level level, const char *msg)
{
	json_t *j =
	    json_pack("{s:f, s:s, s:s+}", "time", id_now(), "level", log_levels[level].name, "message", msg, "");
	char *s = j ? json_dumps(j, JSON_COMPACT) : NULL;

	if (s)
		fprintf(stderr, "%s\n", s);
	free(s);
	json_decref(j);
}

void log_line(enum log_level level, const char *fmt, ...)
{
	char msg[2048];
	va_list ap;

	if (level > log_max && !log_tap_fn)
		return;
	va_start(ap, fmt);
	vsnprintf(msg, sizeof(msg), fmt, ap);
	va_end(ap);
	/* Control characters in quoted outside text must not forge lines or drive a terminal. */
	for (char *p = msg; *p; p++)
		if ((unsigned char)*p < 0x20 || *p == 0x7f)
			*p = ' ';
	str_utf8(msg);
	if (log_tap_fn)
		log_tap_fn(log_tap_arg, level, msg);
	if (level > log_max)
		return;
	if (log_json)
		log_json_line(level, msg);
	else if (getenv("JOURNAL_STREAM"))
		fprintf(stderr, "<%d>%s\n", log_levels[level].priority, msg);
	else
		fprintf(stderr, "%s: %s\n", log_levels[level].name, msg);
}
