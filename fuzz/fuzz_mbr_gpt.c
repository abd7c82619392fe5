#include "base/crc32.h"
#include "check_layout.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Makes the checksums of the first GPT right, so that what follows them is reached. */
static void correct(struct disk *d)
{
	uint8_t h[512], *table;
	uint64_t bytes, lba;

	if (disk_read(d, h, sizeof(h), d->sector, NULL) < 0)
		return;
	bytes = (uint64_t)get_le32(h + 80) * get_le32(h + 84);
	lba = get_le64(h + 72);
	if (bytes <= MIB && lba < d->size / d->sector) {
		table = malloc(bytes + 1);
		must(table);
		if (disk_read(d, table, bytes, lba * d->sector, NULL) == 0)
			put_le32(h + 88, ~crc32(~0u, table, bytes));
		free(table);
	}
	put_le32(h + 16, 0);
	put_le32(h + 16, ~crc32(~0u, h, MIN(get_le32(h + 12), 512u)));
	disk_write(d, h, sizeof(h), d->sector, NULL);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t flags;
	struct disk *d = sparse_disk(data, size, &flags);

	if (!d)
		return 0;
	if (flags & SPARSE_CHECKSUM)
		correct(d);
	check_layout(&d, 1);
	disk_close(d);
	return 0;
}
