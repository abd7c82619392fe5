/*
 * How disks are divided: partition tables (MBR, GPT) and LVM2, read from the disks themselves. The result is a flat
 * list of volumes with their mapping to the disks. Everything that no volume maps belongs to nobody and counts as used.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct disk;
struct err;

enum layout_kind { LAYOUT_PARTITION, LAYOUT_LV, LAYOUT_WHOLE_DISK };

struct layout_extent {
	uint64_t logical, length;
	size_t disk;     /* index into the disks given */
	uint64_t offset; /* bytes on that disk */
};

struct layout_volume {
	enum layout_kind kind;
	char name[256];  /* "1" for partition 1 of its disk, "vg0/root" */
	char uuid[40];   /* PARTUUID or LV uuid, "" when none */
	char type[40];   /* GPT type GUID, MBR type as "0x83", "" */
	size_t disk;     /* for partitions and whole disks */
	unsigned number; /* partition number, 0 otherwise */
	struct layout_extent *map;
	size_t nmap;
	bool linear; /* the mapping is complete: contents may be read through it */
	bool is_pv;  /* an LVM physical volume that was understood: its LVs are listed, its free PEs are free */
};

/* A range of a disk known to be unused by the layout itself: unallocated PEs of a volume group that was understood. */
struct layout_free {
	size_t disk;
	uint64_t offset, length;
};

struct layout {
	struct {
		const char *table;
		char uuid[40];
	} * disks; /* "gpt", "dos", "none", per disk given */
	size_t ndisks;
	struct layout_volume *volumes;
	size_t nvolumes;
	struct layout_free *free;
	size_t nfree;
	char **warnings; /* what was corrupt or not understood, a sentence each; such parts are whole */
	size_t nwarnings;
	size_t ntable_warnings; /* so many of them, the first, are of partition tables; the rest of LVM */
};

/* Does what is on it begin with a partition table (MBR or GPT)? */
int layout_has_table(struct disk *d, bool *ret, struct err *e);
/* Fails only when reading fails; what is corrupt becomes a warning and stays whole. */
int layout_read(struct disk *const *disks, size_t n, struct layout **ret, struct err *e);
void layout_free_all(struct layout *l); /* NULL is fine */
static inline void layout_freep(struct layout **l)
{
	layout_free_all(*l);
}
