/* A table that was read, written out with all in quotes and read again, is the same table. */
#include <stdint.h>
#include <string.h>

#include "base/csv.h"
#include "base/err.h"
#include "base/str.h"
#include "base/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void write_out(const struct csv *c, struct str *b)
{
	for (size_t i = 0; i < c->rows * c->columns; i++) {
		str_add(b, i == 0 ? "\"" : i % c->columns ? "\",\"" : "\"\r\n\"");
		for (const char *s = c->cells[i]; *s; s++)
			str_add_mem(b, *s == '"' ? "\"\"" : s, *s == '"' ? 2 : 1);
	}
	str_add(b, "\"");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_(str_release) struct str b = {0};
	struct csv one, two;

	if (size > 65536 || csv_parse((const char *)data, size, &one, NULL) < 0)
		return 0;
	must(one.rows && one.columns && one.rows <= CSV_ROWS_MAX + 1 && one.columns <= CSV_COLUMNS_MAX);
	write_out(&one, &b);
	must(str_ok(&b) && csv_parse(b.s, b.len, &two, NULL) == 0);
	must(one.rows == two.rows && one.columns == two.columns);
	for (size_t i = 0; i < one.rows * one.columns; i++)
		must(strcmp(one.cells[i], two.cells[i]) == 0);
	csv_release(&one);
	csv_release(&two);
	return 0;
}
