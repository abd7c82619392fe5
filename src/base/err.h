/*
 * Errors that a person will read. A function that can fail in a way a person must understand takes `struct err *e` as
 * its last argument and returns the negative errno kept in it. The message says the fact, quotes the value in '...' and
 * says what to do; lower case, no full stop; it is always UTF-8. Untouched on success. `e` may be NULL where only the
 * code matters.
 */
#pragma once

#include <stdarg.h>

#define ERR_MSG_MAX 768

struct err {
	int code; /* negative errno */
	char msg[ERR_MSG_MAX];
};

/* Sets code (a negative errno) and message; returns code. */
int err_set(struct err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Like err_set() with -errno, and ": strerror" after the message. */
int err_sys(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Puts context and ": " in front of the message; returns the code, so that `return err_prefix(...)` works. */
int err_prefix(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Out of memory: returns -ENOMEM. */
int err_nomem(struct err *e);
