#include "base/csv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "base/util.h"

struct parser {
	const char *p, *end;
	size_t line, cells, room;
	struct csv *csv;
};

static int bad(const struct parser *ps, const char *why, struct err *e)
{
	return err_set(e, -EINVAL, "line %zu: %s", ps->line, why);
}

static int add_cell(struct parser *ps, struct str *text, struct err *e)
{
	struct csv *c = ps->csv;

	if (ps->cells == ps->room) {
		size_t room = ps->room ? 2 * ps->room : 64;
		char **cells = realloc(c->cells, room * sizeof(*cells));

		if (!cells)
			return err_nomem(e);
		c->cells = cells;
		ps->room = room;
	}
	c->cells[ps->cells] = text->s ? strdup(text->s) : strdup("");
	if (!str_ok(text) || !c->cells[ps->cells])
		return err_nomem(e);
	ps->cells++;
	return 0;
}

/* p stands behind the opening quote; in the end behind the closing one. */
static int read_quoted(struct parser *ps, struct str *text, struct err *e)
{
	size_t first = ps->line;

	for (; ps->p < ps->end; ps->p++) {
		if (*ps->p == '"' && ps->p + 1 < ps->end && ps->p[1] == '"')
			ps->p++;
		else if (*ps->p == '"')
			break;
		ps->line += *ps->p == '\n';
		str_add_mem(text, ps->p, 1);
	}
	if (ps->p == ps->end)
		return err_set(e, -EINVAL, "line %zu: a quote is opened and never closed", first);
	ps->p++;
	return ps->p == ps->end || strchr(",\r\n", *ps->p) ? 0 : bad(ps, "there is text behind a closing quote", e);
}

static int read_cell(struct parser *ps, struct str *text, struct err *e)
{
	if (ps->p < ps->end && *ps->p == '"') {
		ps->p++;
		return read_quoted(ps, text, e);
	}
	for (; ps->p < ps->end && !strchr(",\r\n", *ps->p); ps->p++) {
		if (*ps->p == '"')
			return bad(ps, "a quote stands within text; put the whole cell into quotes, and two for one",
				   e);
		str_add_mem(text, ps->p, 1);
	}
	return 0;
}

/* To the end of its line, which is left behind. */
static int read_row(struct parser *ps, size_t *ret_cells, struct err *e)
{
	for (*ret_cells = 1;; ++*ret_cells) {
		_cleanup_(str_release) struct str text = {0};
		int r = read_cell(ps, &text, e);

		if (r == 0)
			r = add_cell(ps, &text, e);
		if (r < 0)
			return r;
		if (ps->p == ps->end || *ps->p != ',')
			break;
		if (*ret_cells == CSV_COLUMNS_MAX)
			return err_set(e, -E2BIG, "line %zu: there are more than %u columns", ps->line,
				       CSV_COLUMNS_MAX);
		ps->p++;
	}
	if (ps->p < ps->end && *ps->p == '\r')
		ps->p++;
	if (ps->p == ps->end)
		return 0;
	if (*ps->p != '\n')
		return bad(ps, "a carriage return stands within a line", e);
	ps->p++;
	ps->line++;
	return 0;
}

static bool skip_empty(struct parser *ps)
{
	for (; ps->p < ps->end && (*ps->p == '\n' || (*ps->p == '\r' && ps->p + 1 < ps->end && ps->p[1] == '\n'));
	     ps->p++)
		ps->line += *ps->p == '\n';
	return ps->p < ps->end;
}

static int read_rows(struct parser *ps, struct err *e)
{
	struct csv *c = ps->csv;

	while (skip_empty(ps)) {
		size_t line = ps->line, n = 0;
		size_t *lines = realloc(c->lines, (c->rows + 1) * sizeof(*lines));
		int r;

		if (!lines)
			return err_nomem(e);
		c->lines = lines;
		if (c->rows > CSV_ROWS_MAX)
			return err_set(e, -E2BIG, "there are more than %u rows", CSV_ROWS_MAX);
		r = read_row(ps, &n, e);
		if (r < 0)
			return r;
		if (c->rows && n != c->columns)
			return err_set(e, -EINVAL, "line %zu: there are %zu cells, and %zu columns", line, n,
				       c->columns);
		c->columns = n;
		c->lines[c->rows++] = line;
	}
	return c->rows ? 0 : err_set(e, -EINVAL, "there is nothing in it");
}

int csv_parse(const char *text, size_t len, struct csv *ret, struct err *e)
{
	struct parser ps = {.p = text, .end = text + len, .line = 1, .csv = ret};
	int r;

	*ret = (struct csv){0};
	if (len >= 3 && memcmp(text, "\xef\xbb\xbf", 3) == 0)
		ps.p += 3;
	if (memchr(text, '\0', len))
		return err_set(e, -EINVAL, "there is a NUL character in it");
	r = read_rows(&ps, e);
	if (r < 0) {
		for (size_t i = 0; i < ps.cells; i++)
			free(ret->cells[i]);
		ret->rows = 0;
		csv_release(ret);
	}
	return r;
}

void csv_release(struct csv *c)
{
	for (size_t i = 0; i < c->rows * c->columns; i++)
		free(c->cells[i]);
	free(c->cells);
	free(c->lines);
	*c = (struct csv){0};
}
