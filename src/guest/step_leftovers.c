/* The last look: does any file that counts at boot still speak of a disk by a name of the old home? */
#include "guest/guest_int.h"

#include <string.h>

#include "base/util.h"

static const char *const leftover_files[] = {
    "/etc/fstab",
    "/etc/crypttab",
    "/boot/grub/grub.cfg",
    "/etc/default/grub",
    "/etc/initramfs-tools/conf.d/resume",
    "/etc/mdadm/mdadm.conf",
    "/etc/smartd.conf",
    "/etc/hdparm.conf",
};

static bool leftover_in(struct guest_span line)
{
	static const char *const names[] = {"/dev/sd", "/dev/hd",          "/dev/xvd",          "/dev/nvme",
					    "/dev/vd", "/dev/disk/by-id/", "/dev/disk/by-path/"};
	struct guest_span word = line;

	if (!guest_next_word(&line, &word) || *word.s == '#')
		return false;
	line.n += (size_t)(line.s - word.s);
	line.s = word.s;
	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (memmem(line.s, line.n, names[i], strlen(names[i])))
			return true;
	return false;
}

static int leftovers_run(struct guest *g, struct guest_result *r, struct err *e)
{
	for (size_t i = 0; i < ARRAY_SIZE(leftover_files); i++) {
		_cleanup_free_ char *text = NULL;
		struct guest_span rest, line;
		size_t len;

		if (guest_read(g, leftover_files[i], &text, &len, NULL) < 0)
			continue;
		rest = (struct guest_span){text, len};
		while (guest_next_line(&rest, &line))
			if (leftover_in(line))
				guest_note(r, "'%s' still names a disk by its old name: %.*s", leftover_files[i],
					   (int)MIN(line.n, (size_t)200), line.s);
	}
	return 0;
}

const struct guest_step guest_step_leftovers = {"leftovers", NULL, leftovers_run};
