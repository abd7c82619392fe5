/* The cpio reader over bytes from memory. */
#include <string.h>

#include "base/util.h"
#include "guest/guest_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct memory {
	const uint8_t *p;
	size_t n;
};

static ssize_t read_memory(void *arg, void *buf, size_t n)
{
	struct memory *m = arg;

	n = MIN(n, m->n);
	memcpy(buf, m->p, n);
	m->p += n;
	m->n -= n;
	return (ssize_t)n;
}

static void take_name(void *arg, const char *name, size_t len)
{
	must(strlen(name) == len && len < 4096);
	(*(size_t *)arg)++;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct memory m = {data, size};
	struct initrd_reader r = {read_memory, &m, 0};
	uint8_t magic[6];
	size_t names = 0;
	int rc = initrd_read_archives(&r, take_name, &names, magic, NULL);

	must(rc <= 1);
	must(r.pos == size - m.n);
	must(names <= size / 110);
	return 0;
}
