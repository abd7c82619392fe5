/* JSON lines from a stream that a stranger writes. */
#include "provider/qemu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/util.h"

void qemu_lines_release(struct qemu_lines *l)
{
	free(l->s);
	*l = (struct qemu_lines){0};
}

void qemu_lines_add(struct qemu_lines *l, const char *p, size_t n)
{
	if (l->failed)
		return;
	/* Lines that wait are taken out after every pump, so what remains is one line and a read. */
	if (l->len + n > 2 * QEMU_LINE_MAX) {
		l->failed = true;
		return;
	}
	if (l->len + n > l->cap) {
		size_t cap = MAX(l->len + n, l->cap * 2);
		char *s = realloc(l->s, cap);

		if (!s) {
			l->failed = true;
			return;
		}
		l->s = s;
		l->cap = cap;
	}
	memcpy(l->s + l->len, p, n);
	l->len += n;
}

int qemu_lines_next(struct qemu_lines *l, json_t **ret, struct err *e)
{
	char *nl = l->len ? memchr(l->s, '\n', l->len) : NULL;
	size_t n;
	int r;

	if (l->failed || (!nl && l->len > QEMU_LINE_MAX))
		return err_set(e, -EPROTO, "the machine sent a line that is too long");
	if (!nl)
		return 0;
	n = (size_t)(nl - l->s);
	r = jsn_parse(l->s, n, QEMU_LINE_MAX, ret, e);
	l->len -= n + 1;
	memmove(l->s, nl + 1, l->len);
	return r < 0 ? -EPROTO : 1;
}
