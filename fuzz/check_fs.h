/* What must hold of any filesystem, however broken: no range outside the disk, and no crash. */
#pragma once

#include <errno.h>

#include "base/err.h"
#include "fs/fs.h"
#include "sparse.h"

static int check_range(void *arg, uint64_t offset, uint64_t length)
{
	const struct disk *d = arg;

	must(offset <= d->size && length <= d->size - offset);
	return 0;
}

static void check_fs(struct disk *d)
{
	for (unsigned flags = 0; flags <= FS_LIVE; flags += FS_LIVE) {
		struct fs_info info;
		struct fs_usage usage;
		struct err e = {0};
		int r;

		must(fs_probe(d, &info, &e) == 0);
		must(info.type && strlen(info.uuid) < sizeof(info.uuid) && strlen(info.label) < sizeof(info.label));
		r = fs_used(d, flags, check_range, d, &usage, &e);
		must(r == 0 || (r == 1 && e.msg[0]) || r == -ENOMEM);
		must(r || usage.parts_whole <= usage.parts);
		must(r || info.readable);
	}
}
