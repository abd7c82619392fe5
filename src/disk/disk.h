/*
 * What a disk is, apart from what we do with it: one table of functions over files, block devices, memory and views of
 * other disks. Offsets and lengths are bytes at any alignment; the disk does what its medium needs.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct disk;

struct disk_ops {
	/* Transfers exactly len bytes or fails with a negative errno; off + len is within size. */
	int (*read)(struct disk *d, void *p, size_t len, uint64_t off, struct err *e);
	int (*write)(struct disk *d, const void *p, size_t len, uint64_t off, struct err *e); /* NULL: read-only */
	int (*zero)(struct disk *d, uint64_t len, uint64_t off, struct err *e); /* NULL: zeros are written */
	int (*flush)(struct disk *d, struct err *e);
	int (*measure)(struct disk *d, uint64_t *ret_size, struct err *e); /* as it is now; NULL: it never changes */
	void (*close)(struct disk *d);
};

struct disk {
	const struct disk_ops *ops;
	uint64_t size;   /* bytes */
	uint32_t sector; /* logical sector size in bytes: 512, 4096, ... */
	char name[256];  /* for messages: "/dev/sda", "vg0/root" */
};

#define DISK_WRITE  (1u << 0)
#define DISK_DIRECT (1u << 1) /* O_DIRECT where the file allows it */

/*
 * A regular file or block device. Reading at once from several threads is fine. DISK_DIRECT is a wish: where the
 * filesystem has no direct I/O the page cache is used. Any offset, length and address may be asked for; aligned to 4096
 * nothing is copied. The size is that of the moment of opening.
 */
int disk_open(const char *path, unsigned flags, struct disk **ret, struct err *e);
/* `size` zero bytes in memory, which costs only what is written. */
int disk_memory_new(uint64_t size, uint32_t sector, struct disk **ret, struct err *e);

/* A view: logical bytes mapped on lower disks, sorted by `logical` and without gaps. Borrows the lower disks. */
struct disk_extent {
	uint64_t logical, length;
	struct disk *lower;
	uint64_t offset; /* in the lower disk */
};
int disk_view_new(const char *name, const struct disk_extent *map, size_t n, struct disk **ret, struct err *e);

/*
 * The export of an NBD server at the other end of a stream socket, which is taken, also on failure. It reads, writes,
 * zeroes and flushes; threads wait for each other. -ENOSPC is the server's, -EIO everything else; once the server is
 * lost, for good.
 */
int disk_nbd_new(int fd, const char *export, struct disk **ret, struct err *e);
bool disk_nbd_is_lost(struct disk *d);

/*
 * Failure on request, for tests and drills: reads that touch [bad_off, bad_off + bad_len) fail with -EIO, `times` times
 * (0: always). Borrows `lower`.
 */
int disk_fault_new(struct disk *lower, uint64_t bad_off, uint64_t bad_len, unsigned times, struct disk **ret,
		   struct err *e);

/* -ERANGE when the range is not within the disk; e is prefixed with the disk's name. */
int disk_read(struct disk *d, void *p, size_t len, uint64_t off, struct err *e);
int disk_write(struct disk *d, const void *p, size_t len, uint64_t off, struct err *e);
/* The range reads as zeros afterwards. */
int disk_zero(struct disk *d, uint64_t len, uint64_t off, struct err *e);
int disk_flush(struct disk *d, struct err *e);
/* -EAGAIN when it has grown or shrunk, or is gone, since it was opened: what was read of it is not all, or never was.
 */
int disk_same_size(struct disk *d, struct err *e);
void disk_close(struct disk *d); /* NULL is fine */
static inline void disk_closep(struct disk **d)
{
	disk_close(*d);
}
