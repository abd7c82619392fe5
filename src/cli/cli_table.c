/* Aligned tables. A column without any text isn't shown. When the terminal is too narrow, the widest of the columns
 * that may be cut are cut. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "cli/cli_int.h"

struct out_cell {
	char *text;
	size_t columns;
	enum out_colour colour;
};

#define TABLE_COLS_MAX  16
#define TABLE_SHRINK_TO 8 /* no narrower than this */

void out_table_init(struct out_table *t, const struct out_col *cols, size_t indent)
{
	*t = (struct out_table){.cols = cols, .indent = indent};
	while (cols[t->ncols].head)
		t->ncols++;
	must(t->ncols <= TABLE_COLS_MAX);
}

void out_table_release(struct out_table *t)
{
	for (size_t i = 0; i < t->ncells; i++)
		free(t->cells[i].text);
	free(t->cells);
	*t = (struct out_table){0};
}

void out_table_cell(struct out_table *t, struct str *b, enum out_colour c)
{
	char *text = str_take(b);

	if (t->ncells == t->cap) {
		size_t cap = t->cap ? t->cap * 2 : 64;
		struct out_cell *cells = realloc(t->cells, cap * sizeof(*cells));

		if (!cells) {
			free(text);
			t->failed = true;
			return;
		}
		t->cells = cells;
		t->cap = cap;
	}
	if (!text) {
		t->failed = true;
		return;
	}
	t->cells[t->ncells++] = (struct out_cell){text, out_columns(text), c};
}

void out_table_item(struct out_table *t, const json_t *item)
{
	for (size_t i = 0; i < t->ncols; i++) {
		struct str b = {0};
		enum out_colour c = t->cols[i].cell(&b, item);

		out_table_cell(t, &b, c);
	}
}

/* Takes columns from the widest of those that go first, until the table fits or none can give any more. */
static size_t table_shrink(const struct out_table *t, int level, size_t w[], size_t total, size_t width)
{
	while (total > width) {
		size_t best = t->ncols;

		for (size_t i = 0; i < t->ncols; i++)
			if (t->cols[i].shrink == level && w[i] > TABLE_SHRINK_TO &&
			    (best == t->ncols || w[i] > w[best]))
				best = i;
		if (best == t->ncols)
			break;
		w[best]--;
		total--;
	}
	return total;
}

/* `pad`: something follows on the line. */
static void table_put(const char *text, size_t width, bool right, bool pad, enum out_colour c)
{
	_cleanup_(str_release) struct str b = {0};
	size_t cols;

	out_fit(&b, text, width);
	cols = b.s ? out_columns(b.s) : 0;
	if (right)
		printf("%*s", (int)(width - cols), "");
	printf("%s%s%s", out_on(c), b.s ? b.s : "", c == OUT_PLAIN ? "" : out_off());
	if (!right && pad)
		printf("%*s", (int)(width - cols), "");
	if (pad)
		printf("  ");
}

/* Columns after the last that has text are left out, so that no line ends with spaces. A width of 0 hides a column. */
static void table_row(const struct out_table *t, const size_t w[], const struct out_cell *cells)
{
	size_t last = 0;

	for (size_t i = 0; i < t->ncols; i++)
		if (w[i] && (!cells || cells[i].columns))
			last = i;
	printf("%*s", (int)t->indent, "");
	for (size_t i = 0; i <= last; i++)
		if (w[i])
			table_put(cells ? cells[i].text : t->cols[i].head, w[i], t->cols[i].right, i < last,
				  cells ? cells[i].colour : OUT_DIM);
	printf("\n");
}

/* The widest cell of a column; 0 when all are empty. */
static size_t table_width(const struct out_table *t, size_t col)
{
	size_t w = 0;

	for (size_t k = col; k < t->ncells; k += t->ncols)
		w = MAX(w, t->cells[k].columns);
	return w ? MAX(w, strlen(t->cols[col].head)) : 0;
}

int out_table_print(const struct out_table *t, struct err *e)
{
	size_t w[TABLE_COLS_MAX], width = out_width(), total = t->indent;

	if (t->failed)
		return err_nomem(e);
	for (size_t i = 0; i < t->ncols; i++) {
		w[i] = table_width(t, i);
		total += w[i] ? w[i] + (i ? 2 : 0) : 0;
	}
	for (int level = 2; width && level > 0; level--)
		total = table_shrink(t, level, w, total, width);
	table_row(t, w, NULL);
	for (size_t k = 0; k + t->ncols <= t->ncells; k += t->ncols)
		table_row(t, w, &t->cells[k]);
	return 0;
}
