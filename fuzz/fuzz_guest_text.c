/*
 * The text half of the conversion's steps. The first byte says which. Whatever the file says, doing it again to the
 * result must change nothing, no line may vanish, and only interfaces(5) may get more of them ("auto lo" from "auto lo
 * eth0").
 */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "guest/guest_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct guest_disk disks[2] = {
    {.device = "/dev/vdc", .source = "/dev/sda", .aliases = {"/dev/disk/by-id/ata-A"}, .naliases = 1, .grub = true},
    {.device = "/dev/vdd"},
};
static struct guest_volume volumes[] = {
    {.device = "/dev/vdc1", .disk = 0, .part = 1, .fstype = "ext4", .uuid = "aaaa", .label = "root"},
    {.device = "/dev/vdc2", .disk = 0, .part = 2, .fstype = "swap", .uuid = "bbbb", .partuuid = "p2"},
    {.device = "/dev/vdd1", .disk = 1, .part = 1, .partuuid = "p3"},
    {.device = "/dev/mapper/a-b", .disk = -1, .mapper = "a-b", .fstype = "xfs", .uuid = "cccc"},
};
static const struct guest_volumes set = {volumes, ARRAY_SIZE(volumes), disks, ARRAY_SIZE(disks)};

static void rewrite(struct guest *g, unsigned what, struct guest_span text, struct str *out)
{
	struct guest_result r = {.files = json_array(), .notes = json_array()};

	switch (what % 4) {
	case 0:
		guest_rewrite_fstab(g, &r, text, out);
		break;
	case 1:
		guest_rewrite_crypttab(g, &r, text, out);
		break;
	case 2:
		guest_rewrite_grub_cfg(g, text, out);
		break;
	default:
		guest_rewrite_interfaces(text, out);
	}
	json_decref(r.files);
	json_decref(r.notes);
}

static size_t newlines(const char *s, size_t n)
{
	size_t found = 0;

	for (size_t i = 0; i < n; i++)
		found += s[i] == '\n';
	return found;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct guest g = {
	    .root = -1, .path = "/", .volumes = &set, .root_volume = &volumes[0], .resume = "resume=UUID=bbbb"};
	_cleanup_(str_release) struct str once = {0}, twice = {0};
	const char *text = (const char *)data + 1;
	size_t before, after;
	char value[64];

	if (size < 1 || size > 65536)
		return 0;
	rewrite(&g, data[0], (struct guest_span){text, size - 1}, &once);
	must(str_ok(&once));
	before = newlines(text, size - 1);
	after = newlines(once.s ? once.s : "", once.len);
	must(data[0] % 4 == 3 ? after >= before : after == before);
	rewrite(&g, data[0], (struct guest_span){once.s ? once.s : "", once.len}, &twice);
	must(once.len == twice.len && (!once.len || memcmp(once.s, twice.s, once.len) == 0));
	if (guest_assignment(text, size - 1, "ID", value, sizeof(value)))
		must(strlen(value) < sizeof(value));
	return 0;
}
