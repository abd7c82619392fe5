/* How far a boot came, from what the machine wrote on its serial line and its screen: what is the matter, and what can
 * be done. The one place that knows. */
#include "provider/local_int.h"

#include <string.h>

#include "base/util.h"

#define LOOP_STARTS 3 /* of the kernel: one is a boot, two are a boot that had a reason to begin anew */

#define STAGE_LOOP "reboot_loop"
#define STAGE_LOOP_TEXT                                                                                                \
	"the system restarts again and again while it is starting (the last lines of the serial line say what it did " \
	"before)"

struct stage_mark {
	const char *mark, *stage, *text;
	bool final; /* nothing more will come */
};

/* The first that is found says what is the matter, so causes stand before what follows from them. */
static const struct stage_mark stage_marks[] = {
    {"Unable to mount root fs", "kernel_panic",
     "the kernel panicked, because it has no root filesystem: its initramfs is missing or can't be read (see that the "
     "boot loader names one, and that it is whole)",
     true},
    {"No working init found", "kernel_panic",
     "the kernel panicked, because it found no init: '/sbin/init' is missing on the root filesystem, or it is another "
     "filesystem's (see what 'root=' names)",
     true},
    {"Attempted to kill init", "kernel_panic",
     "the kernel panicked, because the first program ended: init, or a library of its, is missing or broken (the lines "
     "before say what it complained of)",
     true},
    {"Kernel panic - not syncing", "kernel_panic", "the kernel panicked (the last lines of the serial line say why)",
     true},
    {"Please unlock disk ", "passphrase",
     "the system asks for the passphrase of an encrypted disk, and nobody is there to type it (unlock it by a key file "
     "in the initramfs, or start the instance and type it on its console)",
     true},
    {"Enter passphrase for ", "passphrase",
     "the boot loader asks for the passphrase of an encrypted disk, and nobody is there to type it (put /boot on a "
     "disk that isn't encrypted, or type it on the instance's console)",
     true},
    /* systemd gives this up after a while, and goes on or into emergency mode. */
    {"Please enter passphrase for disk ", "passphrase",
     "the system asks for the passphrase of an encrypted disk, and nobody is there to type it (use a key file in "
     "/etc/crypttab, or start the instance and type it on its console)",
     false},
    {"(initramfs)", "initramfs_shell",
     "the initramfs did not get to the root filesystem and opened a shell (see what 'root=' names, and that the "
     "initramfs has the drivers of the new disks)",
     true},
    {"dracut:/#", "initramfs_shell",
     "the initramfs did not get to the root filesystem and opened a shell (see what 'root=' names, and that the "
     "initramfs has the drivers of the new disks)",
     true},
    {"You are in emergency mode", "emergency",
     "the system ended in emergency mode (a line of /etc/fstab that can't be mounted is the usual reason)", true},
    {"Cannot open access to console, the root account is locked", "emergency",
     "the system ended in emergency mode, without a shell, because root has no password (a line of /etc/fstab that "
     "can't be mounted is the usual reason)",
     true},
    {"Give root password for maintenance", "emergency",
     "the system ended in emergency mode (a line of /etc/fstab that can't be mounted is the usual reason)", true},
    {"You are in rescue mode", "emergency",
     "the system ended in rescue mode (see that its default target isn't rescue.target, and what the kernel's command "
     "line says)",
     true},
    {"systemd[1]", "hang",
     "the system stopped while it was starting (the last lines of the serial line name what it waited for)", false},
    {"Welcome to ", "hang",
     "the system stopped while it was starting (the last lines of the serial line name what it waited for)", false},
    {"INIT: version", "hang",
     "the system stopped while it was starting (the last lines of the serial line name what it waited for)", false},
    {"dracut-initqueue", "initramfs_hang",
     "the initramfs hangs: it waits for something, a disk as a rule, that doesn't come (see what 'root=' and "
     "'resume=' name, and that the initramfs has the drivers of the new disks)",
     false},
    {"Begin: ", "initramfs_hang",
     "the initramfs hangs: it waits for something, a disk as a rule, that doesn't come (see what 'root=' and "
     "'resume=' name, and that the initramfs has the drivers of the new disks)",
     false},
    {"Run /init as init process", "initramfs_hang",
     "the initramfs hangs: it was started and said nothing more (see what its scripts wait for, and that it has the "
     "drivers of the new disks)",
     false},
    {"Linux version ", "hang",
     "the kernel started and did not get to the first program (the last lines of the serial line say where it was)",
     false},
    {"grub rescue>", "boot_loader",
     "GRUB did not find its files (they were on another disk or filesystem; install GRUB anew)", true},
    {"grub>", "boot_loader", "GRUB found no configuration and opened its shell (see that /boot/grub/grub.cfg is there)",
     true},
    {"Loading initial ramdisk", "kernel",
     "the boot loader started the kernel, which said nothing: it hangs, or speaks on the screen alone (the picture of "
     "the screen shows it; 'console=ttyS0' makes it speak here)",
     false},
    {"GRUB", "boot_loader",
     "the boot loader started, and then nothing more came: no kernel, or one that speaks on the screen alone (the "
     "picture of the screen shows it)",
     false},
    {"UEFI Interactive Shell", "no_boot_loader",
     "the firmware found nothing to boot and opened its shell: there is no boot loader for UEFI on the disks (install "
     "one as EFI/BOOT/BOOTX64.EFI, or use firmware 'bios')",
     true},
    {"No bootable option or device", "no_boot_loader",
     "the firmware found nothing to boot: there is no boot loader for UEFI on the disks (install one as "
     "EFI/BOOT/BOOTX64.EFI, or use firmware 'bios')",
     true},
    {"No bootable device", "no_boot_loader",
     "the firmware found nothing to boot: no disk has a boot sector (install a boot loader, or use firmware 'uefi' "
     "when the system has one for UEFI)",
     true},
    {"Booting from Hard Disk", "silent",
     "the boot sector was started, and nothing came out of the serial line afterwards: the boot loader hangs, or all "
     "of it goes to the screen (the picture of the screen is what there is to look at; 'console=ttyS0' makes the "
     "kernel speak here, too)",
     false},
};

static bool stage_loops(const char *serial)
{
	unsigned n = 0;

	for (const char *p = serial; (p = strstr(p, "Linux version ")); p++)
		n++;
	return n >= LOOP_STARTS;
}

bool local_boot_stage(const char *serial, bool ended, const char **ret_stage, const char **ret_text)
{
	const struct stage_mark *found = NULL;
	bool final = false;

	for (size_t i = 0; i < ARRAY_SIZE(stage_marks); i++)
		if (strstr(serial, stage_marks[i].mark)) {
			found = found ? found : &stage_marks[i];
			final |= stage_marks[i].final;
		}
	*ret_stage = found ? found->stage : "firmware";
	*ret_text =
	    found ? found->text
		  : "nothing came out of the serial line: the firmware found nothing to start, or all of it goes to "
		    "the screen (the picture of the screen is what there is to look at)";
	if (stage_loops(serial)) {
		*ret_stage = STAGE_LOOP;
		*ret_text = STAGE_LOOP_TEXT;
		return true;
	}
	if (ended && !final) {
		*ret_stage = "powered_off";
		*ret_text =
		    "the machine turned itself off while it was starting (the last lines of the serial line say "
		    "what it did before)";
	}
	return ended || final;
}

/* What a machine says first: whatever is before the last of it was another boot. */
static const char *stage_this_boot(const char *s)
{
	static const char *const first[] = {"SeaBIOS (version", "BdsDxe: loading"};

	for (size_t i = 0; i < ARRAY_SIZE(first); i++)
		for (const char *at; (at = strstr(s + (strncmp(s, first[i], strlen(first[i])) == 0), first[i]));)
			s = at;
	return s;
}

static const char *stage_last(const char *s, const char *mark)
{
	const char *last = NULL;

	for (const char *at = s; (at = strstr(at, mark)); at++)
		last = at;
	return last;
}

/* Somebody may log in, and nothing has gone wrong since. */
static bool stage_is_up(const char *s)
{
	const char *login = stage_last(s, " login:"), *stage, *text;

	return login && !local_boot_stage(login, false, &stage, &text);
}

enum local_boot local_boot_judge(const char *serial, const char *screen, const char **ret_stage, const char **ret_text)
{
	const char *on_screen = "firmware", *screen_text = "";
	bool failed, loops;

	/* Since somebody could last log in. */
	loops = stage_loops(stage_last(serial, " login:") ?: serial);
	serial = stage_this_boot(serial);
	if (stage_is_up(serial) || stage_is_up(screen)) {
		*ret_stage = "up";
		*ret_text = "somebody may log in";
		return LOCAL_BOOT_UP;
	}
	if (loops) {
		*ret_stage = STAGE_LOOP;
		*ret_text = STAGE_LOOP_TEXT;
		return LOCAL_BOOT_FAILED;
	}
	failed = local_boot_stage(serial, false, ret_stage, ret_text);
	/* A kernel without a console on the serial line says it on the screen. */
	if (!failed) {
		bool screen_failed = local_boot_stage(screen, false, &on_screen, &screen_text);

		if (screen_failed ||
		    (*screen && (strcmp(*ret_stage, "firmware") == 0 || strcmp(*ret_stage, "silent") == 0))) {
			failed = screen_failed;
			*ret_stage = on_screen;
			*ret_text = screen_text;
		}
	}
	return failed ? LOCAL_BOOT_FAILED : LOCAL_BOOT_COMING;
}
