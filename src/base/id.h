/* Random bytes, identifiers ("job-0123456789abcdef") and the two clocks. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ID_MAX 48

/* From getrandom(2); never fails (aborts where the kernel has no entropy source at all). */
void id_random(void *p, size_t n);
/* "<noun>-" and 16 hex digits; out holds ID_MAX. */
void id_new(const char *noun, char out[ID_MAX]);
/* Is `s` an identifier of that noun? Outside text must pass this before it becomes part of a path or a query. */
bool id_is(const char *noun, const char *s);

/* Monotonic seconds, for durations. */
double id_now_mono(void);
/* Unix time in seconds. */
double id_now(void);
