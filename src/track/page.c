/*
 * Pages of the kernel's trace ring, as trace_pipe_raw gives them, and what their events mean: the twin of tracker.bpf.c
 * for where that can't be loaded. Nothing here needs a kernel.
 *
 * A page is a header with the length of what was committed, and events. An event begins with a word: a type of 5 bits
 * (or the length of its data in words) and 27 bits of time.
 */
#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/util.h"
#include "track/track_int.h"
#include "track/tracker_event.h"

#define COMMIT_MISSED (UINT32_C(1) << 31) /* events before this page were lost */
#define COMMIT_STORED (UINT32_C(1) << 30) /* how many is told behind the events */

#define TYPE_LONG    0u /* the length is in the second word, which it includes */
#define TYPE_PADDING 29u
#define TYPE_EXTEND  30u
#define TYPE_STAMP   31u
#define TYPE_BITS    5

static uint32_t word(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, sizeof(v));
	return v;
}

int page_form_parse(const char *page, const char *event, struct page_form *ret, struct err *e)
{
	static const char *const lines[] = {"type_len    :    5 bits", "time_delta  :   27 bits",
					    "array       :   32 bits", "padding     : type == 29",
					    "data max type_len  == 28"};
	struct page_form f;
	uint32_t length;

	for (size_t i = 0; i < ARRAY_SIZE(lines); i++)
		if (!strstr(event, lines[i]))
			return err_set(e, -EOPNOTSUPP, "this kernel's trace ring has events of an unknown form");
	if (event_place(page, "commit", &f.commit_at, &f.commit_size) ||
	    event_place(page, "data", &f.data_at, &length) || (f.commit_size != 4 && f.commit_size != 8) ||
	    f.commit_at + f.commit_size > f.data_at || !length)
		return err_set(e, -EOPNOTSUPP, "this kernel's trace ring has pages of an unknown form");
	f.size = f.data_at + length;
	*ret = f;
	return 0;
}

/* ---- one event ---- */

struct seen {
	const struct event *ev;
	const uint8_t *data;
	size_t len;
	bool bad; /* a field lies behind its end */
};

static const uint8_t *field(struct seen *s, enum event_field f, size_t size)
{
	static const uint8_t none[16];
	size_t at = s->ev->offset[f];

	if (!at || at > s->len || size > s->len - at) {
		s->bad = true;
		return none;
	}
	return s->data + at;
}

static struct page_disk *disk_of(struct page_reader *r, struct seen *s)
{
	uint32_t dev = word(field(s, EVENT_DEV, 4));

	for (size_t i = 0; i < r->n; i++)
		if (r->disks[i].dev == dev)
			return &r->disks[i];
	return NULL;
}

static bool dropped(struct page_reader *r, uint32_t one_in, struct tracker_counts *c)
{
	r->random = r->random * UINT64_C(6364136223846793005) + 1442695040888963407;
	if (!one_in || (r->random >> 33) % one_in)
		return false;
	c->dropped++;
	return true;
}

/* Says whether it lies behind the end the disk had at the start. */
static bool mark(struct page_disk *d, uint64_t sector, uint32_t nr)
{
	uint64_t first = sector >> TRACKER_BLOCK_SHIFT, last = (sector + nr - 1) >> TRACKER_BLOCK_SHIFT;

	if (first > last)
		return true;
	ledger_mark(d->ledger, first, last);
	return last >= d->ledger->blocks;
}

static void see_sectors(struct page_reader *r, struct seen *s, bool submit)
{
	struct page_disk *d = disk_of(r, s);
	const uint8_t *rwbs = field(s, EVENT_RWBS, 3);
	enum tracker_op op = tracker_op(rwbs[0], rwbs[1], rwbs[2]);
	uint32_t nr = word(field(s, EVENT_NR_SECTOR, 4));
	uint64_t sector;

	memcpy(&sector, field(s, EVENT_SECTOR, 8), sizeof(sector));
	if (s->bad || !d || op == TRACKER_NONE || !nr ||
	    dropped(r, submit ? d->slot.drop_submit : d->slot.drop_complete, &d->counts))
		return;
	if (mark(d, sector, nr) && submit)
		d->counts.outside++;
	if (submit) {
		*(op == TRACKER_DISCARD ? &d->counts.submit_discard : &d->counts.submit_write) += nr;
		d->counts.events++;
	} else {
		*(op == TRACKER_DISCARD ? &d->counts.complete_discard
		  : op == TRACKER_WRITE ? &d->counts.complete_write
					: &d->counts.complete_other) += nr;
	}
}

static void see_issue(struct page_reader *r, struct seen *s, uint32_t *passing)
{
	struct page_disk *d = disk_of(r, s);
	uint32_t nr = word(field(s, EVENT_NR_SECTOR, 4)), bytes = word(field(s, EVENT_BYTES, 4));
	const uint8_t *rwbs = field(s, EVENT_RWBS, 3);

	if (s->bad || !d || nr || rwbs[0] != 'N' || (d->slot.virtio && bytes < 512))
		return;
	d->counts.passthrough++;
	*passing = d->slot.index + 1;
}

static void see_scsi(struct page_reader *r, struct seen *s, uint32_t *passing)
{
	uint32_t opcode = word(field(s, EVENT_OPCODE, 4)), at = word(field(s, EVENT_CDB, 4)) & 0xffff;
	bool asks = tracker_asks(opcode);

	if (opcode == TRACKER_ATA)
		asks = at <= s->len && s->len - at >= 16 && tracker_ata_asks(s->data + at);
	if (s->bad || !*passing || !asks)
		return;
	must(*passing <= r->n);
	r->disks[*passing - 1].counts.passthrough--;
	*passing = 0;
}

/* An event that isn't one of ours is nothing to us. */
static int see(struct page_reader *r, const uint8_t *data, size_t len, uint32_t *passing)
{
	struct seen s = {.data = data, .len = len};
	uint16_t id;
	int k = 0;

	if (len < sizeof(id))
		return -EBADMSG;
	memcpy(&id, data, sizeof(id));
	while (k < EVENT_KINDS && (!id || r->events[k].id != id))
		k++;
	if (k == EVENT_KINDS)
		return 0;
	s.ev = &r->events[k];
	if (k == EVENT_ISSUE)
		see_issue(r, &s, passing);
	else if (k == EVENT_SCSI)
		see_scsi(r, &s, passing);
	else
		see_sectors(r, &s, k == EVENT_SUBMIT);
	return s.bad ? -EBADMSG : 0;
}

/* ---- all of them ---- */

int page_read(struct page_reader *r, const uint8_t *page, size_t len, uint32_t *passing)
{
	const struct page_form *f = &r->form;
	uint32_t commit, used;
	const uint8_t *p, *end;

	if (len < f->data_at)
		return -EBADMSG;
	if (f->commit_size == 8) {
		uint64_t wide;

		memcpy(&wide, page + f->commit_at, sizeof(wide));
		commit = (uint32_t)wide; /* the kernel's flag is an int: it fills the upper half with its sign */
	} else {
		commit = word(page + f->commit_at);
	}
	used = commit & ~(COMMIT_MISSED | COMMIT_STORED);
	if (used > len - f->data_at)
		return -EBADMSG;
	for (p = page + f->data_at, end = p + used; p < end;) {
		size_t left = (size_t)(end - p), size = 8, data = 0;
		uint32_t type;
		int k;

		if (left < 4)
			return -EBADMSG;
		type = word(p) & ((1u << TYPE_BITS) - 1);
		if (type == TYPE_PADDING && !(word(p) >> TYPE_BITS))
			break; /* to the page's end */
		if (type == TYPE_LONG || type == TYPE_PADDING)
			size = left < 8 ? 0 : (size_t)word(p + 4) + 4;
		else if (type < TYPE_PADDING)
			size = 4 + (size_t)type * 4;
		if (size < 8 || size > left)
			return -EBADMSG;
		data = type == TYPE_LONG ? 8 : 4;
		k = type < TYPE_PADDING ? see(r, p + data, size - data, passing) : 0;
		if (k)
			return k;
		p += size;
	}
	return commit & COMMIT_MISSED ? -EOVERFLOW : 0;
}
