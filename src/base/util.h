/* Small things everybody needs: clean-up of locals, checks that stay in production, sizes. Uses nothing of ours. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define ARRAY_SIZE(a) (sizeof(a) / sizeof((a)[0]))

/* The smaller and the larger of two; each argument is evaluated once, and they nest. Not for constant expressions. */
#define MIN(a, b)              UTIL_PICK(a, <, b, __COUNTER__)
#define MAX(a, b)              UTIL_PICK(a, >, b, __COUNTER__)
#define UTIL_PICK(a, op, b, n) UTIL_PICK_NAMED(a, op, b, UTIL_GLUE(a_, n), UTIL_GLUE(b_, n))
#define UTIL_GLUE(x, y)        UTIL_GLUE_(x, y)
#define UTIL_GLUE_(x, y)       x##y
#define UTIL_PICK_NAMED(a, op, b, x, y)                                                                                \
	({                                                                                                             \
		__auto_type x = (a);                                                                                   \
		__auto_type y = (b);                                                                                   \
		x op y ? x : y;                                                                                        \
	})

#define KIB (UINT64_C(1) << 10)
#define MIB (UINT64_C(1) << 20)
#define GIB (UINT64_C(1) << 30)

/* A local declared `_cleanup_free_ char *p = NULL` is released when its scope is left. */
#define _cleanup_(fn) __attribute__((cleanup(fn)))

static inline void util_freep(void *p)
{
	free(*(void **)p);
}
static inline void util_closep(const int *fd)
{
	if (*fd >= 0)
		close(*fd);
}
static inline void util_fclosep(FILE **f)
{
	if (*f)
		fclose(*f);
}
#define _cleanup_free_   _cleanup_(util_freep)
#define _cleanup_close_  _cleanup_(util_closep)
#define _cleanup_fclose_ _cleanup_(util_fclosep)

/* Moves a pointer (or descriptor) out of a local that would otherwise release it. */
#define take_ptr(p)                                                                                                    \
	({                                                                                                             \
		__typeof__(*(p)) taken_ = *(p);                                                                        \
		*(p) = NULL;                                                                                           \
		taken_;                                                                                                \
	})
static inline int take_fd(int *fd)
{
	int taken = *fd;

	*fd = -1;
	return taken;
}

/* A migration tool that is confused must stop, not write: these stay in production builds. Never for user input. */
#define must(cond) ((cond) ? (void)0 : util_broken(__FILE__, __LINE__, __func__, #cond))
#define never(why) util_broken(__FILE__, __LINE__, __func__, why)
_Noreturn void util_broken(const char *file, int line, const char *func, const char *what);

/* a + b and a * b that say so when they overflow. */
static inline bool util_add_overflows(uint64_t a, uint64_t b, uint64_t *ret)
{
	return __builtin_add_overflow(a, b, ret);
}
static inline bool util_mul_overflows(uint64_t a, uint64_t b, uint64_t *ret)
{
	return __builtin_mul_overflow(a, b, ret);
}
static inline uint64_t util_div_up(uint64_t a, uint64_t b)
{
	return a / b + (a % b != 0);
}
