/*
 * The tracker: disks (leaf.c), maps and programs (bpf.c), or a ring (ring.c), and the ledger (ledger.c) put together.
 * What must outlive the process is in the map "state".
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/id.h"
#include "base/str.h"
#include "base/util.h"
#include "track/track_int.h"

#define STATE_MAGIC   UINT64_C(0x6b63617274707231)
#define STATE_VERSION 1u
#define WHY_MAX       256

/* Waiting for a moment without writes in flight: at the start, at a collect, at an audit, in a freeze. */
#define TRIES_START   400
#define TRIES_COLLECT 20
#define TRIES_AUDIT   100
#define TRIES_FROZEN  250
#define TRY_NS        1000000 /* pause between two looks */

struct state_disk {
	uint64_t dev, diskseq, size;
	struct tally_base base;
};

struct state {
	uint64_t magic; /* last to be written */
	uint32_t version, n;
	char epoch[TRACK_EPOCH], boot[TRACK_EPOCH];
	uint32_t tainted;
	char why[WHY_MAX];
	struct state_disk disks[TRACKER_DISKS];
};

struct track {
	size_t n;
	char **devices;
	char *pin; /* NULL: nothing outlives this process */
	bool pinned;
	int lock; /* the directory of pins, so that two don't take the same marks */
	enum track_mode mode;
	char why[ERR_MSG_MAX]; /* it isn't BPF */
	struct bpf bpf;
	struct ring *ring; /* NULL: BPF */
	uint64_t ring_size;
	struct state *state;
	struct leaf *leaves;
	struct ledger *ledgers;
};

static void pause_ns(long ns)
{
	nanosleep(&(struct timespec){.tv_nsec = ns}, NULL);
}

static int counts(struct track *t, size_t i, struct tracker_counts *ret, struct err *e)
{
	return t->ring ? ring_counts(t->ring, i, ret, e) : bpf_counts(&t->bpf, (uint32_t)i, ret, e);
}

static int read_tally(struct track *t, size_t i, struct tally *ret, struct tracker_counts *ret_counts,
		      bool *ret_inflight, struct err *e)
{
	struct tracker_counts c;
	int r = leaf_read(&t->leaves[i], ret->account, ret_inflight, e);

	if (!r)
		r = counts(t, i, &c, e); /* after the accounts: what those hold has been an event before */
	if (r)
		return r;
	ret->submit[TALLY_WRITE] = c.submit_write;
	ret->submit[TALLY_DISCARD] = c.submit_discard;
	ret->complete[TALLY_WRITE] = c.complete_write;
	ret->complete[TALLY_DISCARD] = c.complete_discard;
	ret->complete_other = c.complete_other;
	*ret_counts = c;
	return 0;
}

/* Counts and accounts of one moment: nothing moved between two looks. -EAGAIN: something did. */
static int still(struct track *t, size_t i, struct tally *ret, bool *ret_inflight, struct err *e)
{
	struct tracker_counts c1, c2;
	struct tally a, b;
	bool f1, f2;
	int r = read_tally(t, i, &a, &c1, &f1, e);

	if (!r)
		r = read_tally(t, i, &b, &c2, &f2, e);
	if (r)
		return r;
	if (memcmp(&c1, &c2, sizeof(c1)) != 0 || memcmp(a.account, b.account, sizeof(a.account)) != 0)
		return -EAGAIN;
	*ret = b;
	*ret_inflight = f1 || f2;
	return 0;
}

/* Where the accounts begin: at a moment with nothing in flight if one comes, else at one in which nothing moved. */
static int set_base(struct track *t, size_t i, struct err *e)
{
	struct tally_base base = {0};
	struct tally tally;
	bool inflight, any = false;

	for (int try = 0; try < TRIES_START; try++) {
		int r = still(t, i, &tally, &inflight, e);

		if (r && r != -EAGAIN)
			return r;
		if (!r) {
			ledger_base(&base, &tally, !inflight);
			any = true;
			if (!inflight)
				break;
		}
		pause_ns(TRY_NS);
	}
	if (!any)
		return err_set(e, -EOPNOTSUPP, "disk '%s' is written so busily that its accounts can't be read",
			       t->leaves[i].name);
	t->state->disks[i].base = base;
	return 0;
}

static void new_epoch(char out[TRACK_EPOCH])
{
	uint8_t u[16];

	id_random(u, sizeof(u));
	u[6] = (uint8_t)((u[6] & 0x0f) | 0x40);
	u[8] = (uint8_t)((u[8] & 0x3f) | 0x80);
	snprintf(out, TRACK_EPOCH, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", u[0], u[1],
		 u[2], u[3], u[4], u[5], u[6], u[7], u[8], u[9], u[10], u[11], u[12], u[13], u[14], u[15]);
}

/* ---- start ---- */

static uint64_t blocks_of(const struct leaf *l)
{
	return (l->size + TRACK_BLOCK - 1) / TRACK_BLOCK;
}

static uint64_t regions_of(const struct leaf *l)
{
	return (blocks_of(l) + TRACKER_REGION - 1) / TRACKER_REGION;
}

static void close_leaves(struct track *t)
{
	ring_free(t->ring); /* its thread works on the ledgers */
	t->ring = NULL;
	for (size_t i = 0; t->leaves && i < t->n; i++)
		leaf_close(&t->leaves[i]);
	for (size_t i = 0; t->ledgers && i < t->n; i++)
		ledger_release(&t->ledgers[i]);
	free(t->leaves);
	free(t->ledgers);
	t->leaves = NULL;
	t->ledgers = NULL;
}

static int open_leaves(struct track *t, struct err *e)
{
	int r = 0;

	t->leaves = calloc(t->n, sizeof(*t->leaves));
	t->ledgers = calloc(t->n, sizeof(*t->ledgers));
	if (!t->leaves || !t->ledgers)
		return err_nomem(e);
	for (size_t i = 0; i < t->n; i++)
		t->leaves[i].dir = t->leaves[i].stat = t->leaves[i].inflight = -1;
	for (size_t i = 0; i < t->n && !r; i++) {
		r = leaf_open(t->devices[i], &t->leaves[i], e);
		for (size_t k = 0; k < i && !r; k++)
			if (t->leaves[k].dev == t->leaves[i].dev)
				r = err_set(e, -EINVAL, "disk '%s' is named twice", t->devices[i]);
		if (!r)
			r = ledger_init(&t->ledgers[i], blocks_of(&t->leaves[i]), e);
	}
	return r;
}

/* The disks lie in the maps one behind the other. */
static uint64_t lay_out(struct track *t)
{
	uint64_t region = 0;

	for (size_t i = 0; i < t->n; i++) {
		if (t->bpf.mem[MAP_MARKS]) {
			t->ledgers[i].marks = (uint8_t *)t->bpf.mem[MAP_MARKS] + region * TRACKER_REGION;
			t->ledgers[i].big = (uint8_t *)t->bpf.mem[MAP_BIG] + region;
			t->ledgers[i].taken = (uint64_t *)t->bpf.mem[MAP_TAKEN] + region * (TRACKER_REGION / 64);
		}
		region += regions_of(&t->leaves[i]);
	}
	return region;
}

static int set_slots(struct track *t, uint32_t drop_submit, uint32_t drop_complete, struct err *e)
{
	uint64_t region = 0;
	int r = 0;

	for (size_t i = 0; i < t->n && !r; i++) {
		struct tracker_slot s = {.index = (uint32_t)i,
					 .region = (uint32_t)region,
					 .blocks = blocks_of(&t->leaves[i]),
					 .virtio = t->leaves[i].virtio,
					 .drop_submit = drop_submit,
					 .drop_complete = drop_complete};

		if (t->ring)
			ring_slot(t->ring, i, t->leaves[i].dev, &s, &t->ledgers[i]);
		else
			r = bpf_slot(&t->bpf, t->leaves[i].dev, &s, e);
		region += regions_of(&t->leaves[i]);
	}
	return r;
}

static bool same_disks(const struct track *t, const struct state *s)
{
	if (s->n != t->n)
		return false;
	for (size_t i = 0; i < t->n; i++)
		if (s->disks[i].dev != t->leaves[i].dev || s->disks[i].diskseq != t->leaves[i].diskseq ||
		    s->disks[i].size != t->leaves[i].size)
			return false;
	return true;
}

/* Goes on with what is pinned, if that is whole, of this boot, of these disks and trusted. */
static int go_on(struct track *t, const char *boot, struct err *e)
{
	const uint64_t regions = lay_out(t);
	const struct state *s;
	int r = bpf_adopt(&t->bpf, t->pin, e);

	if (r)
		return r;
	s = t->bpf.mem[MAP_STATE];
	if (t->bpf.sizes[MAP_STATE] < sizeof(*s) || s->magic != STATE_MAGIC || s->version != STATE_VERSION ||
	    s->tainted || strncmp(s->boot, boot, TRACK_EPOCH) != 0 || !same_disks(t, s) ||
	    bpf_alive(&t->bpf, t->pin, e) || t->bpf.sizes[MAP_MARKS] < regions * TRACKER_REGION ||
	    t->bpf.sizes[MAP_BIG] < regions || t->bpf.sizes[MAP_TAKEN] < regions * (TRACKER_REGION / 8))
		return -ENOENT;
	t->state = t->bpf.mem[MAP_STATE];
	t->pinned = true;
	lay_out(t);
	for (size_t i = 0; i < t->n; i++)
		ledger_resume(&t->ledgers[i]);
	return 0;
}

static int begin_bpf(struct track *t, struct err *e)
{
	int r = bpf_make(&t->bpf, lay_out(t), sizeof(*t->state), e);

	lay_out(t);
	if (!r)
		r = set_slots(t, 0, 0, e);
	return r ?: bpf_attach(&t->bpf, e);
}

static int begin_ring(struct track *t, struct err *e)
{
	int r = bpf_make_plain(&t->bpf, lay_out(t), sizeof(*t->state), e);

	lay_out(t);
	t->ring = ring_new();
	if (!t->ring)
		return err_nomem(e);
	if (!r)
		r = set_slots(t, 0, 0, e);
	return r ?: ring_start(t->ring, t->ring_size, e);
}

static int begin(struct track *t, const char *boot, struct err *e)
{
	int r = t->mode == TRACK_BPF ? begin_bpf(t, e) : begin_ring(t, e);

	if (r)
		return r;
	t->state = t->bpf.mem[MAP_STATE];
	t->state->version = STATE_VERSION;
	t->state->n = (uint32_t)t->n;
	snprintf(t->state->boot, sizeof(t->state->boot), "%s", boot);
	new_epoch(t->state->epoch);
	for (size_t i = 0; i < t->n && !r; i++) {
		t->state->disks[i] = (struct state_disk){
		    .dev = t->leaves[i].dev, .diskseq = t->leaves[i].diskseq, .size = t->leaves[i].size};
		r = set_base(t, i, e);
	}
	t->state->magic = STATE_MAGIC;
	return r;
}

static int lock_pin(struct track *t, struct err *e)
{
	int r = bpf_dir(t->pin, e);

	if (r)
		return r;
	t->lock = open(t->pin, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (t->lock < 0)
		return err_sys(e, "cannot open '%s'", t->pin);
	if (flock(t->lock, LOCK_EX | LOCK_NB))
		return err_set(e, -EBUSY, "another process uses the tracking below '%s'", t->pin);
	return 0;
}

/* Forgets what is pinned, but keeps the directory, which is locked. */
static int forget(struct track *t, struct err *e)
{
	int r = t->pin ? bpf_unpin(t->pin, e) : 0;

	util_closep(&t->lock);
	t->lock = -1;
	t->pinned = false;
	t->state = NULL;
	bpf_release(&t->bpf);
	return r || !t->pin ? r : lock_pin(t, e);
}

static int start_bpf(struct track *t, bool may_go_on, const char *boot, struct err *e)
{
	int r = t->pin && t->lock < 0 ? lock_pin(t, e) : 0;

	if (r)
		return r;
	if (t->pin && may_go_on && !go_on(t, boot, NULL))
		return 0;
	r = forget(t, e);
	if (!r)
		r = begin(t, boot, e);
	if (!r && t->pin && bpf_can_pin(&t->bpf)) {
		r = bpf_pin(&t->bpf, t->pin, e);
		t->pinned = !r;
	}
	if (!r && !t->pinned) { /* there is nothing that two could take from */
		util_closep(&t->lock);
		t->lock = -1;
	}
	if (r && t->pin)
		bpf_unpin(t->pin, NULL);
	return r;
}

static int start(struct track *t, bool may_go_on, struct err *e)
{
	char boot[TRACK_EPOCH];
	struct err why = {0};
	int r = leaf_boot_id(boot, e);

	if (!r)
		r = open_leaves(t, e);
	if (r)
		return r;
	if (t->mode == TRACK_BPF) {
		ring_remove(); /* that of an agent which died and couldn't use BPF */
		r = start_bpf(t, may_go_on, boot, &why);
		if (r != -EOPNOTSUPP && r != -EPERM && r != -ENOSYS)
			return r ? err_set(e, r, "%s", why.msg) : 0;
		snprintf(t->why, sizeof(t->why), "%s", why.msg);
		t->mode = TRACK_RING;
	}
	t->state = NULL;
	bpf_release(&t->bpf);
	r = begin(t, boot, &why);
	if (r && t->why[0])
		return err_set(e, r, "%.300s; and %.300s", t->why, why.msg);
	return r ? err_set(e, r, "%s", why.msg) : 0;
}

static int start_as(const char *const *devices, size_t n, const char *pin, enum track_mode mode, uint64_t ring_size,
		    struct track **ret, struct err *e)
{
	struct track *t;
	int r = 0;

	if (!n || n > TRACKER_DISKS)
		return err_set(e, -EOPNOTSUPP, "%zu disks can't be tracked, only 1 to %u", n, TRACKER_DISKS);
	t = calloc(1, sizeof(*t));
	if (!t)
		return err_nomem(e);
	t->lock = -1;
	t->n = n;
	t->mode = mode;
	t->ring_size = ring_size;
	bpf_init(&t->bpf);
	t->devices = calloc(n, sizeof(*t->devices));
	t->pin = pin ? strdup(pin) : NULL;
	if (!t->devices || (pin && !t->pin))
		r = err_nomem(e);
	for (size_t i = 0; i < n && !r; i++)
		if (!(t->devices[i] = strdup(devices[i])))
			r = err_nomem(e);
	if (!r)
		r = start(t, true, e);
	if (r)
		track_close(t);
	else
		*ret = t;
	return r;
}

int track_start(const char *const *devices, size_t n, const char *pin, struct track **ret, struct err *e)
{
	return start_as(devices, n, pin, TRACK_BPF, 0, ret, e);
}

int track_start_ring(const char *const *devices, size_t n, uint64_t size, struct track **ret, struct err *e)
{
	return start_as(devices, n, NULL, TRACK_RING, size, ret, e);
}

bool track_pinned(const struct track *t)
{
	return t->pinned;
}

const char *track_epoch(const struct track *t)
{
	return t->state->epoch;
}

enum track_mode track_mode(const struct track *t)
{
	return t->mode;
}

const char *track_why(const struct track *t)
{
	return t->why;
}

/* ---- marks ---- */

/* Did a moment come by at which all that had been submitted was complete? Looks for one now, for a little while. */
static bool quiet_moment(struct track *t, size_t i, struct tally *ret, int tries)
{
	bool inflight;

	for (int try = 0; try < tries; try++) {
		if (try)
			pause_ns(TRY_NS / 4);
		if (!still(t, i, ret, &inflight, NULL) && !inflight && ledger_quiet(&t->state->disks[i].base, ret))
			return true;
	}
	return false;
}

int track_collect(struct track *t, size_t i, struct bitmap *into, struct err *e)
{
	struct tally before, after;
	bool quiet;

	must(i < t->n);
	if (into->nbits != t->ledgers[i].blocks)
		return err_set(e, -EINVAL, "a map of %llu blocks can't take the marks of disk '%s'",
			       (unsigned long long)into->nbits, t->leaves[i].name);
	quiet = quiet_moment(t, i, &before, TRIES_COLLECT);
	if (t->ring)
		ring_flush(t->ring, NULL); /* what it lost taints at the audit */
	ledger_collect(&t->ledgers[i], quiet, into);
	/* Nothing was in flight while the marks were taken, as in a freeze: what they stand for is on the disk. */
	if (quiet && quiet_moment(t, i, &after, 1) && !memcmp(before.submit, after.submit, sizeof(before.submit)))
		ledger_certain(&t->ledgers[i]);
	return 0;
}

uint64_t track_pending(struct track *t, size_t i)
{
	must(i < t->n);
	if (t->ring)
		ring_flush(t->ring, NULL);
	return ledger_pending(&t->ledgers[i]);
}

void track_settle(struct track *t)
{
	for (size_t i = 0; i < t->n; i++)
		ledger_settle(&t->ledgers[i]);
}

/* ---- audit ---- */

static int taint(struct track *t, const char *why, struct err *e)
{
	if (!t->state->tainted) {
		snprintf(t->state->why, sizeof(t->state->why), "%.*s", WHY_MAX - 1, why);
		t->state->tainted = 1;
	}
	return err_set(e, -ESTALE, "%s", t->state->why);
}

static int check_counts(struct track *t, size_t i, struct err *e)
{
	struct tracker_counts c;
	int r = counts(t, i, &c, e);

	if (r)
		return r;
	if (c.passthrough)
		return err_set(e, -ESTALE, "disk '%s' was given commands past the block layer (passthrough)",
			       t->leaves[i].name);
	if (c.outside)
		return err_set(e, -ESTALE, "disk '%s' was written behind its end", t->leaves[i].name);
	return 0;
}

static int balance(struct track *t, size_t i, bool frozen, struct err *e)
{
	struct tally_base *base = &t->state->disks[i].base;
	enum ledger_verdict v = LEDGER_BUSY;
	struct tally tally;
	bool inflight;

	for (int try = 0; try < (frozen ? TRIES_FROZEN : TRIES_AUDIT); try++) {
		int r = still(t, i, &tally, &inflight, e);

		if (r && r != -EAGAIN)
			return r;
		if (!r) {
			v = ledger_judge(base, &tally, frozen && !inflight);
			/* More submitted than accounted may still wait: ext4 discards even in a freeze. */
			if (v == LEDGER_BALANCED ||
			    (try >= TRIES_COLLECT && ledger_judge(base, &tally, false) == LEDGER_LOST))
				break;
		}
		pause_ns(TRY_NS);
	}
	if (v == LEDGER_BUSY)
		return frozen ? err_set(e, -ESTALE, "disk '%s' was still written while frozen", t->leaves[i].name)
			      : err_set(e, -EBUSY, "disk '%s' is written all the time", t->leaves[i].name);
	if (v == LEDGER_LOST)
		return err_set(e, -ESTALE, "writes to disk '%s' were missed: its accounts and the marks differ",
			       t->leaves[i].name);
	if (frozen)
		ledger_audited(&t->ledgers[i], ledger_completed(base, &tally));
	if (frozen && !inflight)
		ledger_base(base, &tally, true);
	return 0;
}

int track_audit(struct track *t, bool frozen, struct err *e)
{
	struct err why = {0};
	int r = 0;

	if (t->state->tainted)
		return taint(t, t->state->why, e);
	r = t->ring ? ring_alive(t->ring, &why) : bpf_alive(&t->bpf, t->pinned ? t->pin : NULL, &why);
	for (size_t i = 0; i < t->n && !r; i++) {
		r = leaf_same(&t->leaves[i], &why);
		if (!r)
			r = check_counts(t, i, &why);
		if (!r)
			r = balance(t, i, frozen, &why);
	}
	if (r == -EBUSY)
		return err_set(e, r, "%s", why.msg);
	return r ? taint(t, why.msg, e) : 0;
}

/* The same names, and behind each the same device. */
static bool same_devices(const struct track *t, const char *const *devices, size_t n)
{
	struct stat st;

	if (n != t->n)
		return false;
	for (size_t i = 0; i < n; i++)
		if (strcmp(devices[i], t->devices[i]) != 0 || stat(devices[i], &st) || !S_ISBLK(st.st_mode) ||
		    st.st_rdev != t->leaves[i].dev)
			return false;
	return true;
}

int track_go_on(struct track *t, const char *const *devices, size_t n, struct err *e)
{
	int r;

	if (!t->state || !t->leaves || t->state->magic != STATE_MAGIC)
		return err_set(e, -ESTALE, "it could not be begun anew");
	if (!same_devices(t, devices, n))
		return err_set(e, -ESTALE, "other disks were tracked until now");
	r = track_audit(t, false, e);
	if (r && r != -EBUSY)
		return r;
	for (size_t i = 0; i < t->n; i++)
		ledger_resume(&t->ledgers[i]);
	return 0;
}

int track_restart(struct track *t, struct err *e)
{
	close_leaves(t);
	return start(t, false, e);
}

void track_close(struct track *t)
{
	if (!t)
		return;
	close_leaves(t);
	bpf_release(&t->bpf);
	util_closep(&t->lock);
	for (size_t i = 0; t->devices && i < t->n; i++)
		free(t->devices[i]);
	free(t->devices);
	free(t->pin);
	free(t);
}

int track_remove(const char *pin, struct err *e)
{
	ring_remove();
	return bpf_unpin(pin, e);
}

/* ---- for tests ---- */

int track_drop(struct track *t, uint32_t submit, uint32_t complete, struct err *e)
{
	return set_slots(t, submit, complete, e);
}

void track_detach(struct track *t)
{
	if (t->ring)
		ring_detach(t->ring);
	for (int p = 0; p < EVENT_KINDS; p++) {
		util_closep(&t->bpf.links[p]);
		util_closep(&t->bpf.perfs[p]);
		t->bpf.links[p] = t->bpf.perfs[p] = -1;
	}
}

int track_counts(struct track *t, size_t i, struct tracker_counts *ret, struct err *e)
{
	must(i < t->n);
	return counts(t, i, ret, e);
}
