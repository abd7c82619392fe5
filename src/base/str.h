/* A growing string, and bounded parsing of numbers, sizes and hex. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

/* Zero-initialised is empty and valid; `s` is NULL or NUL-terminated. After a failed allocation `failed` is set and
 * every further call does nothing: check it once at the end with str_ok(). */
struct str {
	char *s;
	size_t len;
	size_t cap;
	bool failed;
};

void str_release(struct str *b);
void str_add(struct str *b, const char *s);
void str_add_mem(struct str *b, const void *p, size_t n);
void str_addf(struct str *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* As text of an HTML page or of an attribute in quotes; NULL adds nothing. */
void str_add_html(struct str *b, const char *s);
/* True when nothing failed. */
bool str_ok(const struct str *b);
/* Takes the text out (never NULL when str_ok()); the caller frees it. */
char *str_take(struct str *b);

/* malloc'ed printf; NULL when out of memory. */
char *str_printf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

bool str_starts(const char *s, const char *prefix);
bool str_ends(const char *s, const char *suffix);

/* How many bytes of `s`, at most `max`, may stay so that no character of UTF-8 is cut. */
size_t str_cut(const char *s, size_t max);
/* What was cut off at the end goes, and every other byte that is no UTF-8 becomes '?': JSON takes nothing else. */
void str_utf8(char *s);

/* Whole-string parsers; -EINVAL when anything else is there, -ERANGE outside min..max. */
int str_u64(const char *s, uint64_t min, uint64_t max, uint64_t *ret);
/* "10", "64K", "1.5G" (powers of 1024) -> bytes. */
int str_size(const char *s, uint64_t *ret);
/* Bytes for people: "1.5 GiB". buf holds at least 16. */
const char *str_bytes(uint64_t n, char *buf, size_t size);

/* Lower-case hex; out holds 2n+1. Parsing wants exactly 2n digits. */
void str_hex(const void *p, size_t n, char *out);
int str_unhex(const char *s, void *out, size_t n);
