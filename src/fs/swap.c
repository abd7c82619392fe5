/* Linux swap space: its first page is a header, the rest means nothing to anybody once the machine is off. */
#include "fs/fs_int.h"

#include <string.h>

#include "base/endian.h"
#include "base/err.h"
#include "base/util.h"
#include "disk/disk.h"

/* Behind 1024 bytes left to boot loaders: version, last page, number of bad pages, uuid, label. */
#define HEADER 1024u

/* The size of the page that ends in the signature; 0 when there is none. Hibernation images have another signature. */
static int find_page(struct disk *d, uint32_t *ret, struct err *e)
{
	*ret = 0;
	for (uint32_t page = 4096; page <= 65536; page *= 2) {
		int r = fs_has_magic(d, page - 10, "SWAPSPACE2", 10, e);

		if (r < 0)
			return r;
		if (r > 0) {
			*ret = page;
			return 1;
		}
	}
	return 0;
}

static int swap_probe(struct disk *d, struct fs_info *ret, struct err *e)
{
	uint8_t h[1536];
	uint32_t page;
	int r = find_page(d, &page, e);

	if (r <= 0)
		return r;
	r = disk_read(d, h, sizeof(h), 0, e);
	if (r < 0)
		return r;
	ret->type = "swap";
	ret->block_size = page;
	ret->clean = true;
	ret->size = ((uint64_t)get_le32(h + HEADER + 4) + 1) * page;
	fs_uuid(h + HEADER + 12, ret->uuid);
	fs_label(h + HEADER + 28, 16, ret->label);
	return 1;
}

static int swap_used(struct disk *d, unsigned flags, fs_extent_fn fn, void *arg, struct fs_usage *ret, struct err *e)
{
	uint8_t h[12];
	uint32_t page;
	int r = find_page(d, &page, e);

	if (r < 0)
		return r;
	if (r > 0)
		r = disk_read(d, h, sizeof(h), HEADER, e);
	if (r < 0)
		return r;
	if (!page || get_le32(h) != 1)
		return fs_refuse(e, "the swap space has version %u, not 1", page ? get_le32(h) : 0);
	if (get_le32(h + 4) == 0)
		return fs_refuse(e, "the swap space says that it has no pages");
	ret->parts = 1;
	return fn(arg, 0, page);
}

const struct fs_format fs_swap = {.probe = swap_probe, .used = swap_used};
