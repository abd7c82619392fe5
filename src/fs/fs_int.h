/* What the formats share. Each format fills one row of the table in fs.c. */
#pragma once

#include <stddef.h>

#include "fs/fs.h"

struct fs_format {
	/* 1 and *ret when the disk carries the format (even when broken), 0 when not, negative when reading failed. */
	int (*probe)(struct disk *d, struct fs_info *ret, struct err *e);
	/* As fs_used(), up to the filesystem's end only; `ret` is zeroed and never NULL. */
	int (*used)(struct disk *d, unsigned flags, fs_extent_fn fn, void *arg, struct fs_usage *ret, struct err *e);
};

extern const struct fs_format fs_ext4, fs_xfs, fs_swap;

/* A quiet 1 with the reason in e: what fs_used() answers for what it doesn't trust. */
int fs_refuse(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Notes a part that was taken whole. */
void fs_whole(struct fs_usage *u, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* 16 bytes as 8-4-4-4-12 hex digits; "" when they are all zero. */
void fs_uuid(const uint8_t *p, char out[40]);
/* A name of at most n bytes that ends at the first NUL; what isn't printable becomes '?'. */
void fs_label(const uint8_t *p, size_t n, char out[64]);
/* Is [off, off + len) inside the disk and its bytes equal to `magic`? Negative when reading failed. */
int fs_has_magic(struct disk *d, uint64_t off, const void *magic, size_t len, struct err *e);
