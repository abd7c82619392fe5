/* Private to the room: what guard.c needs from nobody else, the parts of mounts.c that tests drive, the tracker's
 * parts. */
#pragma once

#include <linux/bpf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/bitmap.h"
#include "track/track.h"
#include "track/tracker_bpf.h"

/*
 * Does block device `dev` lie, through partitions, device-mapper and md, on one of `disks`? `sys` is the root of sysfs
 * ("/sys").
 */
bool mounts_dev_on(const char *sys, dev_t dev, const dev_t *disks, size_t n);

/* ---- ledger.c: marks and accounts, without a kernel ---- */

/* A disk's marks. `marks`, `big` and `taken` are borrowed; they outlive the process where the tracking does. */
struct ledger {
	uint64_t blocks;
	uint8_t *marks;       /* a byte per block, whole regions */
	uint8_t *big;         /* a byte per region */
	uint64_t *taken;      /* a bit per block: collected, not settled */
	struct bitmap recent; /* what the last collect took: to be given once more */
	struct bitmap doubt;  /* given twice, but no moment was seen since in which nothing was in flight */
	bool calm;            /* the next collect comes after such a moment */
};

int ledger_init(struct ledger *l, uint64_t blocks, struct err *e);
void ledger_release(struct ledger *l);
/*
 * track_collect(). quiet: since the last collect there was a moment at which every write submitted before had
 * completed; so what was taken until then needs one more reading, now, and none after.
 */
void ledger_collect(struct ledger *l, bool quiet, struct bitmap *into);
/* What needs no second reading is forgotten. */
void ledger_settle(struct ledger *l);
/* After a start that goes on: what had been taken is marked again. */
void ledger_resume(struct ledger *l);
/* Nothing was in flight while the last collect took its marks: they need no second reading. */
void ledger_certain(struct ledger *l);
/*
 * The accounts balanced in a freeze: what was in flight before is on the disk. completed: every completion was seen,
 * hence marked, so that no doubt is left; else the next collect gives it.
 */
void ledger_audited(struct ledger *l, bool completed);
uint64_t ledger_pending(const struct ledger *l);

enum tally_class { TALLY_WRITE, TALLY_DISCARD };
#define TALLY_CLASSES 2

/* Sectors so far, as the programs counted them, and as the kernel accounts them when they are done. */
struct tally {
	uint64_t submit[TALLY_CLASSES];
	uint64_t complete[TALLY_CLASSES];
	uint64_t complete_other;
	uint64_t account[TALLY_CLASSES];
};

/* By how much those differed when it was known to be right. */
struct tally_base {
	bool submit_known; /* a moment in which nothing was in flight was found */
	uint64_t submit[TALLY_CLASSES];
	uint64_t complete;
	uint64_t complete_other;
	uint64_t discards;
};

enum ledger_verdict {
	LEDGER_BALANCED, /* every accounted write was seen, at its submission or at its completion */
	LEDGER_BUSY,
	LEDGER_LOST
};

void ledger_base(struct tally_base *b, const struct tally *t, bool quiet);
/* Has everything that was submitted completed? */
bool ledger_quiet(const struct tally_base *b, const struct tally *t);
/* Was every completion seen, and was none of them of the kind whose completion names too little? */
bool ledger_completed(const struct tally_base *b, const struct tally *t);
enum ledger_verdict ledger_judge(const struct tally_base *b, const struct tally *t, bool frozen);

/* ---- leaf.c: a disk as sysfs shows it ---- */

#define LEAF_NAME 64

struct leaf {
	char name[LEAF_NAME]; /* "sda" */
	dev_t dev;
	uint64_t size;    /* bytes */
	uint64_t diskseq; /* 0: the kernel has none */
	bool virtio;      /* its driver is virtio_blk */
	int dir;          /* of sysfs */
	int stat;
	int inflight;
};

/* -EOPNOTSUPP: writes to it can't be seen whole. */
int leaf_open(const char *device, struct leaf *ret, struct err *e);
void leaf_close(struct leaf *l);
/* Still the disk that was opened, with its accounting on? -ESTALE: no, e says what changed. */
int leaf_same(const struct leaf *l, struct err *e);
/* The accounted sectors, and whether writes are under way. */
int leaf_read(const struct leaf *l, uint64_t ret_account[TALLY_CLASSES], bool *ret_inflight, struct err *e);
int leaf_boot_id(char ret[TRACK_EPOCH], struct err *e);

/* ---- events.c: what the running kernel's tracepoints look like ---- */

#define EVENT_BASE 0x400 /* where tracker.bpf.c has the fields of struct event */

enum event_field { EVENT_SECTOR, EVENT_DEV, EVENT_NR_SECTOR, EVENT_BYTES, EVENT_RWBS, EVENT_OPCODE, EVENT_CDB };
#define EVENT_FIELDS 7

struct event {
	uint64_t id;
	uint32_t offset[EVENT_FIELDS]; /* 0: it has no such field */
};

/* The text of a tracepoint's `format` file. */
int event_parse(const char *text, struct event *ret, struct err *e);
/* "block/block_bio_queue", from tracefs, which needs not be mounted. */
int event_find(const char *name, struct event *ret, struct err *e);
/* Puts the places into a program. */
int event_patch(const struct event *ev, struct bpf_insn *code, size_t n, struct err *e);

/* ---- bpf.c: maps and programs in the kernel ---- */

struct bpf_ref {
	uint32_t insn;
	const char *map;
};

struct bpf_code {
	const struct bpf_insn *insns;
	size_t n;
	const struct bpf_ref *refs;
	size_t nrefs;
};
extern const struct bpf_code bpf_submit, bpf_complete, bpf_issue, bpf_scsi; /* made from tracker.bpf.c */

enum bpf_map_index { MAP_SLOTS, MAP_MARKS, MAP_BIG, MAP_COUNTS, MAP_TAKEN, MAP_STATE, MAP_PASSING };
#define BPF_MAPS   7
#define BPF_PROGS  4 /* the last isn't there where there's no SCSI */
#define BPF_NEEDED 3

struct bpf {
	int maps[BPF_MAPS];
	size_t sizes[BPF_MAPS]; /* of those that are mapped */
	void *mem[BPF_MAPS];
	int progs[BPF_PROGS];
	int links[BPF_PROGS]; /* or -1: the kernel has none, the program goes with the process */
	int perfs[BPF_PROGS];
};

void bpf_init(struct bpf *b);
/* Makes and maps the maps: room for so many regions, and `state` bytes. */
int bpf_make(struct bpf *b, uint64_t regions, size_t state, struct err *e);
int bpf_slot(struct bpf *b, dev_t dev, const struct tracker_slot *s, struct err *e);
int bpf_attach(struct bpf *b, struct err *e);
/* Can it outlive the process? */
bool bpf_can_pin(const struct bpf *b);
int bpf_pin(const struct bpf *b, const char *dir, struct err *e);
/* Takes what is pinned there; -ENOENT when it isn't whole. */
int bpf_adopt(struct bpf *b, const char *dir, struct err *e);
/* Are the programs still where they were? */
int bpf_alive(const struct bpf *b, const char *dir, struct err *e);
int bpf_counts(const struct bpf *b, uint32_t index, struct tracker_counts *ret, struct err *e);
void bpf_release(struct bpf *b);
int bpf_unpin(const char *dir, struct err *e);
/* Makes `dir`, on a bpffs that is mounted at the usual place if there is none. */
int bpf_dir(const char *dir, struct err *e);

/* ---- for tests ---- */

/* Loses, on purpose, one event in so many of each kind; 0: none. */
int track_drop(struct track *t, uint32_t submit, uint32_t complete, struct err *e);
/* Ends the programs behind the tracker's back. */
void track_detach(struct track *t);
/* Counts of disk i. */
int track_counts(struct track *t, size_t i, struct tracker_counts *ret, struct err *e);
