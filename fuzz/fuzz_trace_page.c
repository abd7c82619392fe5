/*
 * Pages of the kernel's trace ring: events of any kind may be in them, and anything behind their end. The first byte
 * says whose numbers and places of events are meant (0: Debian 12's kernel, 1: Debian 11's, 2: Debian 13's), or, from
 * 128 on, that the rest is the text by which a kernel tells them.
 */
#include <errno.h>
#include <string.h>

#include "base/str.h"
#include "base/util.h"
#include "track/track_int.h"

#define BLOCKS 1536
#define GUARD  64

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct event kernels[][EVENT_KINDS] = {
    {{1184, {16, 8, 24, 0, 28, 0, 0}},
     {1193, {16, 8, 24, 0, 32, 0, 0}},
     {1190, {16, 8, 24, 28, 32, 0, 0}},
     {1396, {0, 0, 0, 0, 0, 24, 52}}},
    {{1138, {16, 8, 24, 0, 28, 0, 0}},
     {1146, {16, 8, 24, 0, 32, 0, 0}},
     {1144, {16, 8, 24, 28, 32, 0, 0}},
     {1345, {0, 0, 0, 0, 0, 24, 44}}},
    {{1296, {16, 8, 24, 0, 28, 0, 0}},
     {1307, {16, 8, 24, 0, 34, 0, 0}},
     {1304, {16, 8, 24, 28, 34, 0, 0}},
     {1558, {0, 0, 0, 0, 0, 24, 52}}},
};

static uint8_t marks[BLOCKS + GUARD], big[TRACKER_BIG];
static uint64_t taken[BLOCKS / 64];

static void parse_text(const char *text)
{
	const char *second = strstr(text, "# compressed");
	struct page_form form;
	struct event ev = {0};

	event_parse(text, &ev, NULL);
	if (second && !page_form_parse(text, second, &form, NULL))
		must(form.commit_at + form.commit_size <= form.data_at && form.data_at < form.size);
}

static void read_page(const struct event *events, const uint8_t *page, size_t len)
{
	struct ledger l = {.blocks = BLOCKS, .marks = marks, .big = big, .taken = taken};
	struct page_reader r = {.form = {.size = 4096, .commit_at = 8, .commit_size = 8, .data_at = 16}, .n = 2};
	uint32_t passing = 0;
	int k;

	memset(marks, 0, sizeof(marks));
	memcpy(r.events, events, sizeof(r.events));
	for (uint32_t i = 0; i < 2; i++)
		r.disks[i] = (struct page_disk){
		    .dev = i ? 8 << 20 : 254 << 20, .slot = {.index = i, .virtio = !i, .blocks = BLOCKS}, .ledger = &l};
	k = page_read(&r, page, len, &passing);
	must(k == 0 || k == -EOVERFLOW || k == -EBADMSG);
	must(passing <= r.n);
	for (size_t i = BLOCKS; i < sizeof(marks); i++)
		must(!marks[i]);
	for (size_t i = 0; i < sizeof(big); i++)
		must(!big[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	_cleanup_free_ char *text = NULL;

	if (!size)
		return 0;
	if (data[0] < 128) {
		read_page(kernels[data[0] % ARRAY_SIZE(kernels)], data + 1, size - 1);
		return 0;
	}
	text = malloc(size);
	if (!text)
		return 0;
	memcpy(text, data + 1, size - 1);
	text[size - 1] = '\0';
	parse_text(text);
	return 0;
}
