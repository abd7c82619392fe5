/* Inside the room: files below the root, text, device names, and the table of steps. */
#pragma once

#include <stdint.h>
#include <sys/types.h>

#include "base/ip4.h"
#include "base/str.h"
#include "guest/guest.h"

#define GUEST_FILE_MAX (1u << 20)  /* a configuration file larger than this is left alone */
#define GUEST_OLD_MAX  (64u << 10) /* old content kept in the report up to this size */

/* Every conversion leaves this file. */
#define GUEST_CONVERTED "/etc/default/grub.d/zz-replant.cfg"

enum guest_state { GUEST_NOT_NEEDED, GUEST_DONE, GUEST_SKIPPED, GUEST_FAILED };

/* What a step has to say. Files record themselves through guest_write() and its siblings. */
struct guest_result {
	enum guest_state state;
	struct str summary;
	json_t *files;
	json_t *notes; /* sentences: what a person should look at */
};

/* A filesystem mounted for the conversion. Both descriptors are open from before the first change, so that no failed
 * write goes unreported. */
struct guest_mounted {
	char *at;
	int dir;    /* its root */
	int device; /* what it lies on: unmounting writes too */
};

struct guest {
	int root;
	const char *path;
	const struct guest_volumes *volumes;
	const struct guest_volume *root_volume;
	bool can_run;
	bool looking;                           /* mounted to be read only */
	const struct guest_volume *boot_volume; /* of a /boot of its own */
	struct guest_mounted mounted[32];       /* in mounting order */
	size_t nmounted;
	char *root_path; /* owned copy of `path` */

	char id[64], id_like[128], version[64], pretty[128];
	json_t *kernels;  /* names of bootable kernels */
	json_t *warnings; /* of what was found before the first step */
	char resume[96];  /* what the kernel command line must say about it, set by the resume step */
	bool has_address; /* the server is to have that one; else DHCP */
	struct ip4_plan address;

	/* for the check */
	bool wants_nvme;         /* the initramfs is to have NVMe, too */
	const char *grub_device; /* GRUB is to be put on that disk again, or NULL */
	json_t *found;           /* what guest_ground_look() found on the disks, borrowed; NULL: nobody looked */
};

struct guest_step {
	const char *name;
	bool (*applies)(struct guest *g); /* NULL: always */
	/* An error stops this step only; it is reported as failed with the message. */
	int (*run)(struct guest *g, struct guest_result *r, struct err *e);
};

extern const struct guest_step guest_step_fstab, guest_step_crypttab, guest_step_resume, guest_step_initramfs,
    guest_step_grub, guest_step_caches, guest_step_net_names, guest_step_network, guest_step_cloud_init,
    guest_step_agent, guest_step_guest_tools, guest_step_leftovers, guest_step_loader;

/* ---- checks of an image: like the steps, a table ---- */
enum guest_level { GUEST_PASSED, GUEST_WARNING, GUEST_CRITICAL };

/* What a check has to say. */
struct guest_finding {
	enum guest_level level;
	struct str message, remedy;
	json_t *value;
	const struct guest_step *repair[3]; /* that take it away, or none */
};

struct guest_check {
	const char *name, *group;
	bool high; /* it decides whether the image boots and is reached */
	bool (*applies)(struct guest *g);
	/* An error: it couldn't be looked at, which is a warning. */
	int (*run)(struct guest *g, struct guest_finding *f, struct err *e);
};

/* The tables, each NULL-terminated. */
extern const struct guest_check guest_checks_system[], guest_checks_boot[], guest_checks_disks[],
    guest_checks_network[], guest_checks_access[];

/* ---- guest_check.c ---- */
/* Raises the level, and adds a sentence to the message. */
void guest_find(struct guest_finding *f, enum guest_level level, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* What to do about it; said once. */
void guest_advise(struct guest_finding *f, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- check_ground.c: what lies on the disks, before anything of it is mounted for good ---- */
/* {"tables":[{"disk","table","esp","bios_boot","boot_code","grub","core","iso","windows","zero"}],
 * "table_warnings":[...],"other_warnings":[of LVM, or why nothing could be read],
 * "filesystems":[{"device","fstype","state":"clean"|"damaged"|"unknown","said"}],"missing":[volume groups],
 * "groups_said": why they could not be looked at} */
json_t *guest_ground_look(const struct guest_volumes *v, const char *at);
/* The tables and boot sectors once more. */
void guest_ground_tables(const struct guest_volumes *v, json_t *ground);
/* "iso", "empty" ...: why no system was found on it. *ret_text, *ret_remedy: sentences, static. */
const char *guest_ground_kind(const json_t *ground, const struct guest_volumes *v, const char **ret_text,
			      const char **ret_remedy);

/* ---- check_elf.c ---- */
#define GUEST_ELF_HEADER 64u
/* "x86_64", "i386", "arm64" ... or NULL: no program, or for no machine that is known. */
const char *guest_elf_machine(const uint8_t *p, size_t n);

/* ---- check_system.c ---- */
/* What the system's programs are made for, static; NULL: none can be read. */
const char *guest_machine(struct guest *g);

/* ---- guest_root.c: no call follows a link out of the root ---- */
int guest_openat(const struct guest *g, const char *path, int flags, mode_t mode); /* descriptor or -errno */
bool guest_exists(const struct guest *g, const char *path);
/* Is the name itself a link, and where does it lead? */
bool guest_link(const struct guest *g, const char *path, char *out, size_t size);
/* By 'systemctl mask': a link to /dev/null. */
bool guest_unit_is_masked(const struct guest *g, const char *unit);
/* Regular files only; -EFBIG beyond GUEST_FILE_MAX. NUL-terminated; the caller frees. */
int guest_read(const struct guest *g, const char *path, char **ret, size_t *ret_len, struct err *e);
/* Writes in place (owner, mode and labels stay; a conversion that dies begins again on a fresh overlay) and records.
 * Same content: nothing happens. A new file gets `mode`, its directories are made. */
int guest_write(struct guest *g, struct guest_result *r, const char *path, const char *text, size_t len, mode_t mode,
		struct err *e);
/* A missing file is fine. */
int guest_remove(struct guest *g, struct guest_result *r, const char *path, struct err *e);
/* The same for what no report may show. */
int guest_discard(struct guest *g, struct guest_result *r, const char *path, struct err *e);
/* Only an empty one. */
void guest_remove_dir(struct guest *g, const char *path);
int guest_symlink(struct guest *g, struct guest_result *r, const char *target, const char *path, struct err *e);
int guest_mkdirs(struct guest *g, const char *path, struct err *e);
/* Sorted names in a directory that end in `suffix`; n may be 0. Freed with guest_names_release(). */
struct guest_names {
	char **v;
	size_t n;
};
int guest_list(const struct guest *g, const char *dir, const char *suffix, struct guest_names *ret, struct err *e);
void guest_names_release(struct guest_names *n);

/* The path by which the kernel knows an open directory: no link is left in it. */
int guest_fd_path(int fd, char *out, size_t size);

/* ---- guest_find.c ---- */
/* guest_mount() without the filesystems below. */
int guest_find_root(const struct guest_volumes *v, const struct guest_root *root, const char *at, struct guest **ret,
		    struct err *e);

/* ---- guest_mount.c ---- */
/* Mounts the volume and opens the system on it; `look`: nothing will be written (a journal is replayed all the same).
 * -ENOENT when there is none. */
int guest_mount_root(const struct guest_volumes *set, const struct guest_volume *v, const char *at, const char *options,
		     bool look, struct guest **ret, struct err *e);
/* Mounts what its fstab says belongs at `where`; nothing said is fine. */
int guest_mount_below(struct guest *g, const char *where, struct err *e);
/* What guest_mount() mounts below the root; an error: without it nothing can be judged. */
int guest_mount_rest(struct guest *g, struct err *e);
/* Unmounts all; an error when anything was not written. */
int guest_unmount(struct guest *g, struct err *e);

/* ---- guest_run.c ---- */
/* Runs a program of the system in a chroot with /dev, /proc, /sys and /run; -ETIMEDOUT. *ret_tail: last lines it said.
 */
int guest_run(struct guest *g, const char *const argv[], double timeout, char **ret_tail, struct err *e);

/* ---- guest_text.c ---- */
struct guest_span {
	const char *s;
	size_t n;
};
/* The next line without its newline; false at the end. */
bool guest_next_line(struct guest_span *rest, struct guest_span *line);
/* Ends in `out` the line that was just taken, as it ended in the text: the last one may have no newline. */
void guest_end_line(struct guest_span line, struct guest_span rest, struct str *out);
/* The next word between blanks; false when there is none. */
bool guest_next_word(struct guest_span *rest, struct guest_span *word);
bool guest_span_is(struct guest_span s, const char *text);
/* Copies, undoing \040 and its like when `octal`; false, and "", when it doesn't fit. */
bool guest_span_copy(struct guest_span s, bool octal, char *out, size_t size);
/* `options` (comma-separated) has the option `name`, with or without a value. */
bool guest_has_option(struct guest_span options, const char *name);
/* The options among `options` that say which part of a btrfs is meant; "" for none, false when they don't fit. */
bool guest_subvolume(struct guest_span options, char *out, size_t size);
/* Is it a line of grub.cfg that loads a kernel: "linux /vmlinuz-... root=... ro quiet"? */
bool guest_is_linux(struct guest_span line);
bool guest_is_initrd(struct guest_span word);
/* Does the entry of grub.cfg that goes on with `rest` load an initramfs? */
bool guest_entry_has_initrd(struct guest_span rest);
/* The UUID of a line "search ... --fs-uuid ... UUID". */
bool guest_search_uuid(struct guest_span line, struct guest_span *ret);
/* Value of KEY=value or KEY="value" in a file of shell assignments; false when absent. The last one wins; one that
 * doesn't fit is as good as absent. */
bool guest_assignment(const char *text, size_t len, const char *key, char *out, size_t size);

/* ---- guest_device.c ---- */
enum guest_spec {
	GUEST_SPEC_OTHER,   /* not a block device */
	GUEST_SPEC_STABLE,  /* names a volume of this set, by a name that stays */
	GUEST_SPEC_FRAGILE, /* names a volume of this set, by a name that changes with the hardware */
	GUEST_SPEC_UNKNOWN, /* a block device that isn't in this set */
};
enum guest_spec guest_device_find(const struct guest *g, const char *spec, const struct guest_volume **ret);
/* "UUID=..." or "PARTUUID=..."; false when the volume has neither. */
bool guest_device_name(const struct guest_volume *v, char *out, size_t size);
/* Rewrites root=/dev/... and resume=/dev/... wherever they stand as a word of their own; returns how many. `alone`: for
 * a kernel without an initramfs, which can't look up the UUID of a filesystem. */
unsigned guest_fix_cmdline(const struct guest *g, struct guest_span text, bool alone, struct str *out);

/* ---- step_initramfs.c ---- */
struct guest_driver {
	const char *module; /* file name without .ko, "_" for "-", too */
	bool must;          /* without it the system can't boot at all */
	bool builtin;       /* in the kernel itself */
	bool packed;        /* in the initramfs */
	bool available;     /* there is a module that could be put in */
};
struct guest_drivers {
	struct guest_driver v[12];
	size_t n;
};
/* Those without which the root isn't found on virtio, and those that may be of use. */
void guest_drivers_needed(const struct guest *g, struct guest_drivers *n);
/* Where the drivers in `v` are. An error: the initramfs can't be read, and nothing is in it. */
int guest_read_drivers(struct guest *g, const char *kernel, struct guest_drivers *n, struct err *e);
/* False when there is none; `out` is where it would be. */
bool guest_initramfs_path(const struct guest *g, const char *kernel, char *out, size_t size);

/* ---- step_loader.c: UEFI's loaders ---- */
bool guest_has_fallback(const struct guest *g);
/* The one the system has for itself. */
bool guest_find_loader(const struct guest *g, char *out, size_t size);

/* ---- guest.c ---- */
int guest_find_kernels(struct guest *g, struct err *e);
/* -ENOSPC: a step that writes would leave its files empty. */
int guest_check_space(const struct guest *g, struct err *e);
/* One step, and its part of the report. -ENOMEM. */
int guest_run_step(struct guest *g, const struct guest_step *s, json_t **ret);
extern const struct guest_step *const guest_steps[]; /* all in their order, NULL-terminated */
void guest_note(struct guest_result *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool guest_is_debian(const struct guest *g);

/* ---- the steps' text half: no file is touched, a second pass over the result changes nothing ---- */
/* How many names became UUIDs. */
unsigned guest_rewrite_fstab(struct guest *g, struct guest_result *r, struct guest_span text, struct str *out);
void guest_rewrite_crypttab(struct guest *g, struct guest_result *r, struct guest_span text, struct str *out);
/* How many kernels are started. */
unsigned guest_rewrite_grub_cfg(const struct guest *g, struct guest_span text, struct str *out);
/* How many lines became comments. */
unsigned guest_rewrite_interfaces(struct guest_span text, struct str *out);

/* ---- static_address.c: the same; `p` NULL: DHCP, where that is said ---- */
#define GUEST_CARD "lan0" /* no name that a kernel gives by itself */
void guest_static_networkd(const struct ip4_plan *p, struct str *out);
void guest_static_netplan(const struct ip4_plan *p, struct str *out);
void guest_static_manager(const struct ip4_plan *p, struct str *out);
void guest_pin_card(const struct ip4_plan *p, struct str *out);
void guest_static_ifcfg(const struct ip4_plan *p, struct str *out);
void guest_static_wicked(const struct ip4_plan *p, struct str *out);
/* resolv.conf and netconfig's file with the plan's name servers instead of those they had. */
void guest_rewrite_resolv(const struct ip4_plan *p, struct guest_span text, struct str *out);
void guest_rewrite_netconfig(const struct ip4_plan *p, struct guest_span text, struct str *out);

/* ---- the checks' text half ---- */
/* Does /etc/adjtime say that the clock has local time? */
bool guest_adjtime_is_local(struct guest_span text);
void guest_judge_fstab(const struct guest *g, struct guest_span text, struct guest_finding *f);
struct guest_grub_faults {
	unsigned entries;                        /* how many kernels it starts */
	unsigned names, kernels, initrds, alone; /* what is wrong with them */
};
void guest_judge_grub_cfg(const struct guest *g, struct guest_span text, struct guest_finding *f,
			  struct guest_grub_faults *ret);
void guest_judge_accounts(struct guest_span passwd, struct guest_span shadow, struct guest_finding *f);
/* Every fixed address of a configuration file of that kind. */
enum guest_net { GUEST_NET_IFUPDOWN, GUEST_NET_NETPLAN, GUEST_NET_NETWORKD, GUEST_NET_IFCFG, GUEST_NET_MANAGER };
/* Appends to `addresses` those it says; *dhcp: a card gets its address from outside. */
void guest_net_read(enum guest_net kind, struct guest_span text, json_t *addresses, bool *dhcp);

/* ---- initrd.c ---- */
typedef void (*initrd_name_fn)(void *arg, const char *name, size_t len);
/* Every file name in an initramfs: any number of cpio archives (newc), the last one perhaps compressed. */
int initrd_list(int fd, initrd_name_fn fn, void *arg, struct err *e);
/* The cpio reader alone; `read` gives up to n bytes, 0 at the end, or a negative errno. For the fuzzer. Returns 1 and
 * the six bytes found when something other than an archive follows, 0 at the end. */
typedef ssize_t (*initrd_read_fn)(void *arg, void *buf, size_t n);
struct initrd_reader {
	initrd_read_fn read;
	void *arg;
	uint64_t pos;
};
int initrd_read_archives(struct initrd_reader *r, initrd_name_fn fn, void *arg, uint8_t ret_magic[6], struct err *e);
