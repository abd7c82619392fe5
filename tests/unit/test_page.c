/* Pages of the trace ring, made by hand: every kind of event there is in them, and what it does to marks and counts. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "track/track_int.h"

#define BLOCKS 1024

static const char header_page[] = "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;\n"
				  "\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;\n"
				  "\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;\n"
				  "\tfield: char data;\toffset:16;\tsize:4080;\tsigned:1;\n";
static const char header_event[] = "# compressed entry header\n\ttype_len    :    5 bits\n\ttime_delta  :   27 bits\n"
				   "\tarray       :   32 bits\n\n\tpadding     : type == 29\n"
				   "\ttime_extend : type == 30\n\ttime_stamp : type == 31\n"
				   "\tdata max type_len  == 28\n";

struct scene {
	struct page_reader r;
	struct ledger l;
	uint8_t marks[BLOCKS], page[4096];
	size_t used;
	uint32_t passing;
};

static void up(struct scene *s)
{
	memset(s, 0, sizeof(*s));
	assert_int_equal(page_form_parse(header_page, header_event, &s->r.form, NULL), 0);
	assert_int_equal(s->r.form.size, 4096);
	s->l = (struct ledger){.blocks = BLOCKS, .marks = s->marks};
	s->r.events[EVENT_SUBMIT] = (struct event){.id = 11, .offset = {16, 8, 24, 0, 28, 0, 0}};
	s->r.events[EVENT_COMPLETE] = (struct event){.id = 12, .offset = {16, 8, 24, 0, 32, 0, 0}};
	s->r.events[EVENT_ISSUE] = (struct event){.id = 13, .offset = {16, 8, 24, 28, 32, 0, 0}};
	s->r.events[EVENT_SCSI] = (struct event){.id = 14, .offset = {0, 0, 0, 0, 0, 24, 28}};
	s->r.disks[0] = (struct page_disk){.dev = 8 << 20, .ledger = &s->l};
	s->r.n = 1;
}

static void put32(struct scene *s, uint32_t v)
{
	memcpy(s->page + 16 + s->used, &v, 4);
	s->used += 4;
}

/* Of a kind of block event; all of them are 48 bytes long here. long_form: as larger ones are. */
static void put_event(struct scene *s, uint16_t id, uint32_t dev, uint64_t sector, uint32_t nr, const char *rwbs,
		      bool long_form)
{
	uint8_t *p;

	put32(s, (5u << 5) | (long_form ? 0 : 12));
	if (long_form)
		put32(s, 48 + 4);
	p = s->page + 16 + s->used;
	memset(p, 0, 48);
	memcpy(p, &id, 2);
	memcpy(p + 8, &dev, 4);
	memcpy(p + 16, &sector, 8);
	memcpy(p + 24, &nr, 4);
	memcpy(p + (id == 11 ? 28 : 32), rwbs, strlen(rwbs));
	s->used += 48;
}

static void put_scsi(struct scene *s, uint32_t opcode, uint8_t protocol)
{
	uint8_t *p;
	uint16_t id = 14;
	uint32_t at = 16u << 16 | 32;

	put32(s, (5u << 5) | 12);
	p = s->page + 16 + s->used;
	memset(p, 0, 48);
	memcpy(p, &id, 2);
	memcpy(p + 24, &opcode, 4);
	memcpy(p + 28, &at, 4);
	p[32] = (uint8_t)opcode;
	p[33] = (uint8_t)(protocol << 1);
	s->used += 48;
}

static int read_flagged(struct scene *s, uint64_t flags)
{
	uint64_t commit = s->used + flags;

	memcpy(s->page + 8, &commit, 8);
	return page_read(&s->r, s->page, sizeof(s->page), &s->passing);
}

static void test_events(void **state)
{
	const struct tracker_counts *c;
	struct scene s;

	(void)state;
	up(&s);
	c = &s.r.disks[0].counts;
	put_event(&s, 11, 8 << 20, 128 * 3 + 127, 2, "WS",
		  false);       /* the last sector of a block, the first of the next */
	put32(&s, 30 | 7 << 5); /* time extend */
	put32(&s, 1);
	put_event(&s, 12, 8 << 20, 128 * 3 + 127, 2, "WS", true);
	put32(&s, 31); /* time stamp; its time may be 0 */
	put32(&s, 0);
	put32(&s, 29 | 1 << 5); /* a discarded event: 12 bytes and this word */
	put32(&s, 12);
	put32(&s, 11);
	put32(&s, 11);
	put_event(&s, 11, 8 << 20, 128 * 10, 128 * 5, "D", false);
	put_event(&s, 11, 8 << 20, 0, 8, "R", false);
	put_event(&s, 11, 8 << 20 | 1, 0, 8, "W", false);   /* another disk's */
	put_event(&s, 99, 8 << 20, 0, 8, "W", false);       /* another event */
	put_event(&s, 11, 8 << 20, 0, 0, "FF", false);      /* a flush */
	put_event(&s, 12, 8 << 20, 128 * 20, 8, "N", true); /* write zeroes, on older kernels */
	put_event(&s, 11, 8 << 20, 128 * 30, 8, "FWFS", false);
	put32(&s, 29); /* padding up to the end: what follows is no event */
	put32(&s, 0xffffffff);
	assert_int_equal(read_flagged(&s, 0), 0);
	for (uint64_t b = 0; b < BLOCKS; b++)
		assert_int_equal(s.marks[b], b == 3 || b == 4 || (b >= 10 && b < 15) || b == 20 || b == 30);
	assert_int_equal(c->submit_write, 10);
	assert_int_equal(c->submit_discard, 640);
	assert_int_equal(c->complete_write, 2);
	assert_int_equal(c->complete_other, 8);
	assert_int_equal(c->outside + c->passthrough + c->complete_discard, 0);
	put_event(&s, 11, 8 << 20, 128 * (BLOCKS - 1), 256, "W", false); /* behind the end of the disk */
	s.used = 0;
	put_event(&s, 11, 8 << 20, 128 * (BLOCKS - 1), 256, "W", false);
	assert_int_equal(read_flagged(&s, 0), 0);
	assert_int_equal(c->outside, 1);
	assert_int_equal(s.marks[BLOCKS - 1], 1);
}

static void test_passthrough(void **state)
{
	static const struct {
		uint32_t opcode;
		uint8_t protocol;
		uint64_t left;
	} all[] = {{0x12, 0, 0}, {0x2a, 0, 1}, {0x85, 4, 0}, {0x85, 5, 1}};

	(void)state;
	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) {
		struct scene s;

		up(&s);
		put_event(&s, 13, 8 << 20, 0, 0, "N", false);
		put_scsi(&s, all[i].opcode, all[i].protocol);
		assert_int_equal(read_flagged(&s, 0), 0);
		assert_int_equal(s.r.disks[0].counts.passthrough, all[i].left);
	}
}

static void test_lost_and_damaged(void **state)
{
	struct scene s;

	(void)state;
	for (uint64_t flags = 1u << 31; flags; flags = flags == 1u << 31 ? (uint64_t)INT32_MIN : 0) {
		up(&s);
		put_event(&s, 11, 8 << 20, 0, 8, "W", false);
		assert_int_equal(read_flagged(&s, flags), -EOVERFLOW);
		assert_int_equal(s.marks[0], 1);
	}
	up(&s);
	put_event(&s, 11, 8 << 20, 0, 8, "W", false);
	s.used -= 4; /* cut */
	assert_int_equal(read_flagged(&s, 0), -EBADMSG);
	assert_int_equal(read_flagged(&s, 4096), -EBADMSG); /* more than a page holds */
	up(&s);
	put32(&s, 1 << 5); /* a length that doesn't even cover itself */
	put32(&s, 3);
	assert_int_equal(read_flagged(&s, 0), -EBADMSG);
	up(&s);
	put_event(&s, 11, 8 << 20, 0, 8, "W", false);
	put_event(&s, 11, 8 << 20, 0, 8, "W", false);
	s.page[16] = 6 | 5 << 5; /* too short for its fields */
	s.used = 28;
	assert_int_equal(read_flagged(&s, 0), -EBADMSG);
	assert_int_equal(s.marks[0], 0);
}

static void test_other_forms(void **state)
{
	struct page_form f;

	(void)state;
	assert_int_equal(page_form_parse("", header_event, &f, NULL), -EOPNOTSUPP);
	assert_int_equal(page_form_parse(header_page, "", &f, NULL), -EOPNOTSUPP);
	assert_int_equal(page_form_parse("\tfield: local_t commit;\toffset:16;\tsize:8;\tsigned:1;\n"
					 "\tfield: char data;\toffset:16;\tsize:4080;\tsigned:1;\n",
					 header_event, &f, NULL),
			 -EOPNOTSUPP);
	assert_int_equal(page_form_parse("\tfield: local_t commit;\toffset:8;\tsize:4;\tsigned:1;\n"
					 "\tfield: char data;\toffset:12;\tsize:65524;\tsigned:1;\n",
					 header_event, &f, NULL),
			 0);
	assert_int_equal(f.size, 65536);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_events),
	    cmocka_unit_test(test_passthrough),
	    cmocka_unit_test(test_lost_and_damaged),
	    cmocka_unit_test(test_other_forms),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
