/* What a machine says on its port. However the stream is cut into pieces, the same lines come out. */
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/util.h"
#include "provider/qemu.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static size_t count(const uint8_t *data, size_t size, size_t piece)
{
	_cleanup_(qemu_lines_release) struct qemu_lines l = {0};
	size_t good = 0;

	for (size_t at = 0; at < size; at += piece) {
		int r;

		qemu_lines_add(&l, (const char *)data + at, MIN(piece, size - at));
		do {
			json_t *o = NULL;

			r = qemu_lines_next(&l, &o, NULL);
			good += r == 1;
			json_decref(o);
		} while (r != 0 && !l.failed);
	}
	return good;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size && size <= 65536)
		must(count(data, size, size) == count(data, size, 7));
	return 0;
}
