/* Comma-separated values: RFC 4180, with LF or CRLF, and a byte order mark that doesn't count. */
#pragma once

#include <stddef.h>

struct err;

#define CSV_COLUMNS_MAX 64u
#define CSV_ROWS_MAX    10000u

/* A table: each row has as many cells as the first, which has the columns' names. */
struct csv {
	size_t columns, rows; /* the first row included */
	char **cells;         /* row after row; never NULL */
	size_t *lines;        /* of each row, where it begins in the text, from 1 */
};

/* Empty lines are left out. -EINVAL with the line: quotes that don't fit, a row too long or too short, a NUL; -E2BIG.
 * The caller frees with csv_release(). */
int csv_parse(const char *text, size_t len, struct csv *ret, struct err *e);
void csv_release(struct csv *c);

static inline const char *csv_cell(const struct csv *c, size_t row, size_t column)
{
	return c->cells[row * c->columns + column];
}
