/*
 * The freeze guard. Freezing a filesystem stops its writers; whatever happens to us, it must be thawed again. So a
 * guard process, memory-locked and touching no file, holds the descriptors and thaws when its limit passes, when the
 * agent asks, or when the agent is gone. (The changed-block tracker will live in this room too.)
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct err;

struct track_guard;

#define TRACK_LIMIT_MAX 14400.0 /* seconds a freeze may be asked to last at most */

/* Starts the guard with the mount points (directories) to freeze, in the order to freeze. Freezes nothing yet. */
int track_guard_start(const char *const *mounts, size_t n, struct track_guard **ret, struct err *e);
/*
 * Freezes all of them or none. limit_seconds: the guard thaws by itself after that. A filesystem that can't be frozen
 * (EOPNOTSUPP, e.g. vfat) is synced and named in *ret_unfrozen (comma separated, "" when none; caller frees).
 * -EBUSY: somebody else holds it frozen.
 */
int track_guard_freeze(struct track_guard *g, double limit_seconds, char **ret_unfrozen, struct err *e);
/* Thaws. *ret_seconds: how long they were frozen; *ret_intact: false when the guard had thawed before it was asked. */
int track_guard_thaw(struct track_guard *g, double *ret_seconds, bool *ret_intact, struct err *e);
/* Is the freeze still on? */
bool track_guard_holds(struct track_guard *g);
void track_guard_free(struct track_guard *g); /* thaws if needed; NULL is fine */

/*
 * The mount points of writable filesystems that live on the given block devices ("/dev/sda"), through partitions, LVM
 * and md, each filesystem once, deepest last-mounted first; those of other mount namespaces only, as
 * /proc/PID/root/.... The caller frees the array and its strings (track_mounts_free).
 */
int track_mounts(const char *const *devices, size_t n, char ***ret, size_t *ret_n, struct err *e);
void track_mounts_free(char **mounts, size_t n);
/* Is the list still that one, in any order? -EAGAIN when something was mounted or unmounted since. */
int track_mounts_same(const char *const *devices, size_t n, char *const *mounts, size_t nmounts, struct err *e);

/* A line of /proc/self/mountinfo (proc_pid_mountinfo(5)), octal escapes undone. */
struct track_mount {
	unsigned id;
	dev_t dev;  /* of the superblock; major 0 for what has no block device, btrfs included */
	char *root; /* of the mount within the filesystem */
	char *point;
	char *options; /* of the mount */
	char *type;
	char *source;  /* "/dev/sda1", or anything else */
	char *super;   /* options of the superblock, "rw" or "ro" first */
	bool writable; /* the superblock is; a mount may be read-only over it */
};

/* Lines that aren't understood are left out. The caller frees with track_mountinfo_free(). */
int track_mountinfo_parse(const char *text, size_t len, struct track_mount **ret, size_t *ret_n, struct err *e);
int track_mountinfo_read(struct track_mount **ret, size_t *ret_n, struct err *e);
void track_mountinfo_free(struct track_mount *m, size_t n);
