/*
 * What the check of an image reads of a stranger's files. The first byte says which. Whatever is in them: it ends, what
 * is said is text that JSON takes, and a file that the conversion's step has been over is judged no worse than before.
 */
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "guest/guest_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct guest_disk disks[1] = {{.device = "/dev/vdc", .source = "/dev/sda", .grub = true}};
static struct guest_volume volumes[] = {
    {.device = "/dev/vdc1", .disk = 0, .part = 1, .fstype = "ext4", .uuid = "aaaa", .label = "root"},
    {.device = "/dev/vdc2", .disk = 0, .part = 2, .fstype = "swap", .uuid = "bbbb", .partuuid = "p2"},
    {.device = "/dev/mapper/a-b", .disk = -1, .mapper = "a-b", .fstype = "xfs", .uuid = "cccc"},
};
static const struct guest_volumes set = {volumes, ARRAY_SIZE(volumes), disks, ARRAY_SIZE(disks)};

static void release(struct guest_finding *f)
{
	json_t *s = json_string(f->message.len ? f->message.s : "");

	must(s && !f->message.failed && !f->remedy.failed);
	json_decref(s);
	str_release(&f->message);
	str_release(&f->remedy);
	json_decref(f->value);
}

static void grub(struct guest *g, struct guest_span text)
{
	struct guest_finding f = {0}, again = {0};
	struct guest_grub_faults n, after;
	_cleanup_(str_release) struct str out = {0};

	guest_judge_grub_cfg(g, text, &f, &n);
	guest_rewrite_grub_cfg(g, text, &out);
	guest_judge_grub_cfg(g, (struct guest_span){out.s ? out.s : "", out.len}, &again, &after);
	must(after.entries == n.entries && after.names <= n.names);
	release(&f);
	release(&again);
}

static void fstab(struct guest *g, struct guest_span text)
{
	struct guest_result r = {.files = json_array(), .notes = json_array()};
	struct guest_finding f = {0}, again = {0};
	_cleanup_(str_release) struct str out = {0};

	guest_judge_fstab(g, text, &f);
	guest_rewrite_fstab(g, &r, text, &out);
	guest_judge_fstab(g, (struct guest_span){out.s ? out.s : "", out.len}, &again);
	json_decref(r.files);
	json_decref(r.notes);
	release(&f);
	release(&again);
}

static void accounts(struct guest_span text)
{
	const char *half = memchr(text.s, '\f', text.n);
	size_t n = half ? (size_t)(half - text.s) : text.n;
	struct guest_finding f = {0};

	guest_judge_accounts((struct guest_span){text.s, n}, (struct guest_span){text.s + n, text.n - n}, &f);
	release(&f);
}

static void network(enum guest_net kind, struct guest_span text)
{
	json_t *addresses = json_array();
	bool dhcp = false;

	guest_net_read(kind, text, addresses, &dhcp);
	must(json_array_size(addresses) <= 256);
	json_decref(addresses);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct guest g = {.root = -1, .path = "/", .volumes = &set, .root_volume = &volumes[0]};
	struct guest_span text = {(const char *)data + 1, size - 1};

	if (size < 1 || size > 65536)
		return 0;
	switch (data[0] % 10) {
	case 0:
		guest_elf_machine(data + 1, MIN(size - 1, (size_t)GUEST_ELF_HEADER));
		break;
	case 1:
		guest_adjtime_is_local(text);
		break;
	case 2:
		grub(&g, text);
		break;
	case 3:
		fstab(&g, text);
		break;
	case 4:
		accounts(text);
		break;
	default:
		network((enum guest_net)(data[0] % 10 - 5), text);
	}
	return 0;
}
