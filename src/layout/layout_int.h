/* How the readers of partition tables and LVM hand their findings to layout.c. */
#pragma once

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "layout/layout.h"

#define LAYOUT_VOLUMES_MAX 65536u

/* A layout that grows. */
struct layout_build {
	struct layout *l;
	struct disk *const *disks;
	size_t volumes_cap, free_cap, warnings_cap;
};

/* A sentence about what was not understood. */
int layout_warn(struct layout_build *b, struct err *e, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
/* Adds a zeroed volume; *ret is good until the next one is added. */
int layout_add_volume(struct layout_build *b, struct layout_volume **ret, struct err *e);
/* Adds an extent behind the volume's last; one that continues it on the disk makes it longer. *cap starts at 0. */
int layout_add_extent(struct layout_volume *v, size_t *cap, size_t disk, uint64_t offset, uint64_t length,
		      struct err *e);
int layout_add_free(struct layout_build *b, size_t disk, uint64_t offset, uint64_t length, struct err *e);
/*
 * Adds a partition of `count` sectors from `start`. Outside the disk: a warning, and a volume without a mapping.
 */
int layout_add_partition(struct layout_build *b, size_t disk, unsigned number, uint64_t start, uint64_t count,
			 uint32_t sector, struct layout_volume **ret, struct err *e);
/* A GUID's 16 bytes in its mixed-endian text form. */
void layout_guid(const uint8_t *p, char out[40]);

enum mbr_verdict { MBR_NONE, MBR_TABLE, MBR_PROTECTIVE };
/* Looks at sector 0 only. MBR_TABLE: at least one partition, and nothing that no table has. */
int mbr_look(struct disk *d, enum mbr_verdict *ret, struct err *e);
int mbr_read(struct layout_build *b, size_t disk, struct err *e);
/* Is there a valid header at sector 1? */
int gpt_look(struct disk *d, bool *ret, struct err *e);
int gpt_read(struct layout_build *b, size_t disk, struct err *e);
/* Looks for physical volumes in the volumes found so far and adds the logical volumes of their groups. */
int lvm_read(struct layout_build *b, struct err *e);
