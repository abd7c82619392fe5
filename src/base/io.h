/* Whole reads and writes, small files, directories. */
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct err;

/* Reads exactly n bytes (fewer only at the end of the file); returns the count or a negative errno. */
ssize_t io_read_full(int fd, void *p, size_t n);
ssize_t io_pread_full(int fd, void *p, size_t n, uint64_t off);
int io_write_full(int fd, const void *p, size_t n);
int io_pwrite_full(int fd, const void *p, size_t n, uint64_t off);

/* The whole file, NUL-terminated behind its end; -EFBIG beyond max. *ret_len may be NULL. The caller frees. */
int io_read_file(const char *path, size_t max, char **ret, size_t *ret_len, struct err *e);
int io_read_file_at(int dirfd, const char *path, size_t max, char **ret, size_t *ret_len, struct err *e);
/* Written to a temporary beside it, synced, renamed over `path`, directory synced: never half a file. */
int io_write_file_atomic(const char *path, const void *p, size_t n, mode_t mode, struct err *e);
/* mkdir -p. */
int io_mkdirs(const char *path, mode_t mode, struct err *e);
/* Bytes on the disk of all that lies there, holes not counted, and when anything of it was changed last (0: there is
 * nothing). Follows no links; a missing path holds nothing. */
int io_look_tree(const char *path, uint64_t *ret_bytes, double *ret_since, struct err *e);
/* rm -rf without following links; a missing path is fine. */
int io_remove_tree(const char *path, struct err *e);
