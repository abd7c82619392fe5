/* A disk in memory. Pages come into being when written, so that a large, mostly empty disk costs little. */
#include "disk/disk.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <sys/mman.h>

#include "base/err.h"
#include "base/util.h"

struct memory {
	struct disk disk;
	uint8_t *bytes;
};

static int memory_read(struct disk *d, void *p, size_t len, uint64_t off, struct err *e)
{
	memcpy(p, ((struct memory *)d)->bytes + off, len);
	return 0;
}

static int memory_write(struct disk *d, const void *p, size_t len, uint64_t off, struct err *e)
{
	memcpy(((struct memory *)d)->bytes + off, p, len);
	return 0;
}

static void memory_close(struct disk *d)
{
	struct memory *m = (struct memory *)d;

	if (m->bytes)
		munmap(m->bytes, d->size);
	free(m);
}

static const struct disk_ops memory_ops = {.read = memory_read, .write = memory_write, .close = memory_close};

int disk_memory_new(uint64_t size, uint32_t sector, struct disk **ret, struct err *e)
{
	struct memory *m = calloc(1, sizeof(*m));
	void *p = NULL;

	if (!m)
		return err_nomem(e);
	if (size) {
		p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
		if (p == MAP_FAILED) {
			free(m);
			return err_set(e, -ENOMEM, "cannot make a memory disk of %" PRIu64 " bytes", size);
		}
	}
	m->bytes = p;
	m->disk = (struct disk){.ops = &memory_ops, .size = size, .sector = sector, .name = "memory"};
	*ret = &m->disk;
	return 0;
}
