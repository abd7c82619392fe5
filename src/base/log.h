/* One line per event on stderr: `<level> message` with the journal's priority prefix, or JSON. Programs log, libraries
 * don't. */
#pragma once

#include <stdbool.h>

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

/* `json`: one object per line; REPLANT_LOG=json in the environment asks for it, too. */
void log_set(enum log_level max, bool json);
/* Somebody who is told each message as well, whatever its level; NULL: nobody. Once, before there are threads. */
void log_tap(void (*fn)(void *arg, enum log_level level, const char *message), void *arg);
void log_line(enum log_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#define log_error(...) log_line(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...)  log_line(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...)  log_line(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_line(LOG_LEVEL_DEBUG, __VA_ARGS__)
