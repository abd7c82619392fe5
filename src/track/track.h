/*
 * The freeze guard. Freezing a filesystem stops its writers; whatever happens to us, it must be thawed again. So a
 * guard process, memory-locked and touching no file, holds the descriptors and thaws when its limit passes, when the
 * agent asks, or when the agent is gone.
 * And the tracker: which blocks of whole disks are written while they serve (ARCHITECTURE.md, "Tracking").
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct bitmap;
struct err;

struct track_guard;

#define TRACK_LIMIT_MAX 14400.0 /* seconds a freeze may be asked to last at most */

/* Starts the guard with the mount points (directories) to freeze, in the order to freeze. Freezes nothing yet. */
int track_guard_start(const char *const *mounts, size_t n, struct track_guard **ret, struct err *e);
/*
 * Freezes all of them or none. limit_seconds: the guard thaws by itself after that. A filesystem that can't be frozen
 * (EOPNOTSUPP, e.g. vfat) is synced and named in *ret_unfrozen (comma separated, "" when none; caller frees).
 * -EBUSY: somebody else holds it frozen; -ETIME: the limit passed before all were; -EOWNERDEAD: the guard is
 * gone; -EPERM, -ENOMEM; -ENOTRECOVERABLE: a filesystem refused. None is frozen then.
 */
int track_guard_freeze(struct track_guard *g, double limit_seconds, char **ret_unfrozen, struct err *e);
/* Thaws. *ret_seconds: how long they were frozen; *ret_intact: false when the guard had thawed before it was asked. */
int track_guard_thaw(struct track_guard *g, double *ret_seconds, bool *ret_intact, struct err *e);
/* Is the freeze still on? */
bool track_guard_holds(struct track_guard *g);
/*
 * Thaws if needed; NULL is fine. false: a killed freezer is still in its call and what it then gets is thawed by a
 * process that waits for it; should that be killed too, track_thaw() is needed.
 */
bool track_guard_free(struct track_guard *g);
/*
 * Thaws what nobody guards any more: the filesystem that stat(2) calls `dev`, by whatever way it is reached, `mount`
 * first. 1: it was frozen; 0: it wasn't; -EAGAIN: as with track_guard_free().
 */
int track_thaw(const char *mount, dev_t dev, struct err *e);

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

/* Lines that aren't understood are left out. -E2BIG: more than 65,536 mounts. The caller frees with
 * track_mountinfo_free(). */
int track_mountinfo_parse(const char *text, size_t len, struct track_mount **ret, size_t *ret_n, struct err *e);
int track_mountinfo_read(struct track_mount **ret, size_t *ret_n, struct err *e);
void track_mountinfo_free(struct track_mount *m, size_t n);

/* ---- the tracker ---- */
#define TRACK_BLOCK 65536u /* bytes a mark stands for */
#define TRACK_EPOCH 37     /* a UUID as text with its NUL */

enum track_mode {
	TRACK_BPF, /* marks in memory shared with the kernel */
	TRACK_RING /* read from the kernel's tracer, where BPF can't be used: ends with this process */
};

struct track;

/*
 * Tracks writes to these whole disks ("/dev/sda"; each a leaf: no device-mapper, no md), or goes on with a tracking
 * that an earlier process of this boot left pinned below `pin` (a bpffs directory; NULL: nothing outlives this
 * process). Read what is to be trusted (the used map above all) after this returned. -EOPNOTSUPP: can't be tracked
 * here, e says why in words for the administrator; comparing is what remains.
 */
int track_start(const char *const *devices, size_t n, const char *pin, struct track **ret, struct err *e);
/*
 * Names one tracking without a gap: the same text means that every write since the last track_settle() is, or was, a
 * mark. A new one after a start, a reboot, a taint.
 */
const char *track_epoch(const struct track *t);
enum track_mode track_mode(const struct track *t);
/* Why it isn't BPF; "" when it is. */
const char *track_why(const struct track *t);
/*
 * Takes the marks of disk i (index into devices): ORs into `into`, a bit per block, what was written since the last
 * collect, and once more what that one took (its writes may have been in flight). Blocks have to be read after this
 * returned, with O_DIRECT. What was taken stays remembered until track_settle(), so that a process that dies loses
 * nothing: after a track_start() that goes on, it is all marked again.
 */
int track_collect(struct track *t, size_t i, struct bitmap *into, struct err *e);
/* How many blocks of disk i the next collect would give, about. */
uint64_t track_pending(struct track *t, size_t i);
/* All that was collected so far is safely elsewhere. */
void track_settle(struct track *t);
/*
 * Was every write seen? Compares with the kernel's own accounting of each disk. frozen: no write can be under way, it
 * must balance exactly. -EBUSY: no quiet moment to compare in (not frozen); -ESTALE: tainted, e says why: the marks
 * can't be trusted, restart and compare.
 */
int track_audit(struct track *t, bool frozen, struct err *e);
/* Does the tracking go on after track_close()? */
bool track_pinned(const struct track *t);
/*
 * Goes on with a tracker of this process that was left alone since its last settle, as track_start() does with a pinned
 * one. -ESTALE: these are not its disks, or its marks can't be trusted; all that is left to do with it is to close it.
 */
int track_go_on(struct track *t, const char *const *devices, size_t n, struct err *e);
/* Begins anew after a taint: no marks, a new epoch. What is to be trusted must be read afterwards. */
int track_restart(struct track *t, struct err *e);
/* Ends this process's part; a pinned tracking goes on. NULL is fine. */
void track_close(struct track *t);
/* Ends what is pinned there: nothing of ours stays in the kernel. */
int track_remove(const char *pin, struct err *e);
