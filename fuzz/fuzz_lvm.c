/* Bit 2 of the flags: the same disk twice (every physical volume is there twice). */
#include "base/crc32.h"
#include "check_layout.h"

#define CRC_START 0xf597a6cfu

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void correct_text(struct disk *d, const uint8_t *h, uint64_t area)
{
	uint64_t size = get_le64(h + 32), offset = get_le64(h + 40), n = get_le64(h + 48), first;
	uint8_t *text;

	if (n > MIB || offset >= size || n > size)
		return;
	first = MIN(n, size - offset);
	text = calloc(1, n + 1);
	must(text);
	if (!disk_read(d, text, first, area + offset, NULL) && !disk_read(d, text + first, n - first, area + 512, NULL))
		sparse_put32(d, area + 56, crc32(CRC_START, text, n));
	free(text);
}

/* Label in sector 1, area header at 4096: where lvm puts them. */
static void correct(struct disk *d)
{
	uint8_t s[512];

	if (disk_read(d, s, sizeof(s), 512, NULL) < 0)
		return;
	sparse_put32(d, 512 + 16, crc32(CRC_START, s + 20, 512 - 20));
	if (disk_read(d, s, sizeof(s), 4096, NULL) < 0)
		return;
	correct_text(d, s, 4096);
	must(disk_read(d, s, sizeof(s), 4096, NULL) == 0);
	sparse_put32(d, 4096, crc32(CRC_START, s + 4, 512 - 4));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct disk *disks[2];
	uint8_t flags;

	disks[0] = disks[1] = sparse_disk(data, size, &flags);
	if (!disks[0])
		return 0;
	if (flags & SPARSE_CHECKSUM)
		correct(disks[0]);
	check_layout(disks, flags & 4 ? 2 : 1);
	disk_close(disks[0]);
	return 0;
}
