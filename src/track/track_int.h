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
/* Opens the filesystem that stat(2) calls `dev`, at that point or wherever, in any mount namespace, it is mounted. */
int mounts_open(const char *point, dev_t dev, struct err *e);

/* ---- settle.c: a process that has to thaw whatever happens ---- */

#define SETTLE_SEGMENTS 128

/* The pages of the program itself, so that thawing never waits for one of them to be read. */
struct settle_segments {
	struct {
		void *p;
		size_t len;
	} v[SETTLE_SEGMENTS];
	size_t n;
};

void settle_collect(struct settle_segments *ret); /* before fork() */
/* Locked into memory, deaf to signals, and with these descriptors only (-1: none). 0 or negative errno. */
int settle_process(const struct settle_segments *segments, const int *keep, size_t n, const char *name);
/*
 * Out of the agent's control group, into the root: what kills a whole unit at once ("systemctl kill", a memory limit)
 * must not kill those that thaw. Wherever it can't be done, the agent's next start thaws.
 */
void settle_leave_unit(void);

/* ---- heir.c: is a freezer that was killed, or a guard, still in its call? ---- */

/* Refers to a freezer: /proc/PID, which never comes to mean another process. *ret is -1 when it has ended already. */
int heir_open(pid_t pid, int *ret, struct err *e);
bool heir_alive(int proc); /* -1: no */
/* Is that child of ours in a call that can't be interrupted? */
bool heir_in_kernel(pid_t pid);
/* All that have something of the filesystem open on which `mount` is. Returns how many; the caller closes them. */
int heir_find(int mount, int *ret, size_t max, struct err *e);

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
/* What is behind the end of the disk is left out. */
void ledger_mark(struct ledger *l, uint64_t first, uint64_t last);
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
/* One more than the highest number a CPU may have, or a negative errno. */
int leaf_cpus(void);
#define LEAF_CPUS_MAX 8192

/* ---- events.c: what the running kernel's tracepoints look like ---- */

#define EVENT_BASE 0x400 /* where tracker.bpf.c has the fields of struct event */

enum event_field { EVENT_SECTOR, EVENT_DEV, EVENT_NR_SECTOR, EVENT_BYTES, EVENT_RWBS, EVENT_OPCODE, EVENT_CDB };
#define EVENT_FIELDS 7

struct event {
	uint64_t id;
	uint32_t offset[EVENT_FIELDS]; /* 0: it has no such field */
};

enum event_kind { EVENT_SUBMIT, EVENT_COMPLETE, EVENT_ISSUE, EVENT_SCSI };
#define EVENT_KINDS  4
#define EVENT_NEEDED 3 /* the last isn't there where there's no SCSI */
extern const char *const event_names[EVENT_KINDS];

/* A mount of tracefs nobody sees and that ends with the descriptor; else one of the usual places. -1: there's none. */
int event_tracefs(bool writable);

/* Where a field of that name lies, by a text of "field:" lines. -ENOENT: there's none; -EINVAL: not understood. */
int event_place(const char *text, const char *name, uint32_t *ret_offset, uint32_t *ret_size);
/* The text of a tracepoint's `format` file. */
int event_parse(const char *text, struct event *ret, struct err *e);
/* "block/block_bio_queue", from tracefs, which needs not be mounted. */
int event_find(const char *name, struct event *ret, struct err *e);
/* Puts the places into a program. */
int event_patch(const struct event *ev, struct bpf_insn *code, size_t n, struct err *e);

/* ---- page.c: the tracer's pages, as it gives them to be read raw ---- */

struct page_form {
	uint32_t size; /* of all of it */
	uint32_t commit_at, commit_size;
	uint32_t data_at;
};

/* Of a disk: what the programs in the kernel have in their maps. */
struct page_disk {
	uint32_t dev; /* as the kernel has it */
	struct tracker_slot slot;
	struct ledger *ledger; /* borrowed */
	struct tracker_counts counts;
};

struct page_reader {
	struct page_form form;
	struct event events[EVENT_KINDS]; /* id 0: the kernel has none */
	struct page_disk disks[TRACKER_DISKS];
	size_t n;
	uint64_t random;
};

/* The texts of "header_page" and "header_event". */
int page_form_parse(const char *page, const char *event, struct page_form *ret, struct err *e);
/*
 * Sets the marks and counts of a page's events, as tracker.bpf.c does. *passing, one per CPU, starts as 0.
 * -EOVERFLOW: events before it were lost; -EBADMSG: not understood.
 */
int page_read(struct page_reader *r, const uint8_t *page, size_t len, uint32_t *passing);

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
#define BPF_MAPS 7

struct bpf {
	int maps[BPF_MAPS];
	size_t sizes[BPF_MAPS]; /* of those that are mapped */
	void *mem[BPF_MAPS];
	int progs[EVENT_KINDS];
	int links[EVENT_KINDS]; /* or -1: the kernel has none, the program goes with the process */
	int perfs[EVENT_KINDS];
};

void bpf_init(struct bpf *b);
/* Makes and maps the maps: room for so many regions, and `state` bytes. */
int bpf_make(struct bpf *b, uint64_t regions, size_t state, struct err *e);
/* Those that the tracker itself reads, as memory of this process: for the ring. */
int bpf_make_plain(struct bpf *b, uint64_t regions, size_t state, struct err *e);
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

/* ---- ring.c: the kernel's tracer, where it isn't BPF ---- */

struct ring;

struct ring *ring_new(void);
/* Before the start: what disk i is. Later for tests. The ledger is borrowed until ring_free(). */
void ring_slot(struct ring *r, size_t i, dev_t dev, const struct tracker_slot *s, struct ledger *l);
/* size: bytes per CPU; 0: what is usual. -EOPNOTSUPP: not possible here. */
int ring_start(struct ring *r, uint64_t size, struct err *e);
/* All events that were recorded before are marks now. -ESTALE: some were lost. */
int ring_flush(struct ring *r, struct err *e);
/* Flushes first. */
int ring_counts(struct ring *r, size_t i, struct tracker_counts *ret, struct err *e);
/* Was nothing lost, and is all set up as we left it? */
int ring_alive(struct ring *r, struct err *e);
void ring_free(struct ring *r);
/* Clears away what processes that died left behind. */
void ring_remove(void);
/* For tests: switches an event off. */
void ring_detach(struct ring *r);

/* ---- for tests ---- */

/* track_start() with the ring at once, of so many bytes per CPU (0: what is usual). */
int track_start_ring(const char *const *devices, size_t n, uint64_t size, struct track **ret, struct err *e);
/* Loses, on purpose, one event in so many of each kind; 0: none. */
int track_drop(struct track *t, uint32_t submit, uint32_t complete, struct err *e);
/* Ends the programs behind the tracker's back. */
void track_detach(struct track *t);
/* Counts of disk i. */
int track_counts(struct track *t, size_t i, struct tracker_counts *ret, struct err *e);
