#include "check_fs.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint8_t flags;
	struct disk *d = sparse_disk(data, size, &flags);

	if (!d)
		return 0;
	check_fs(d);
	disk_close(d);
	return 0;
}
