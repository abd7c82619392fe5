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
};

struct guest_step {
	const char *name;
	bool (*applies)(struct guest *g); /* NULL: always */
	/* An error stops this step only; it is reported as failed with the message. */
	int (*run)(struct guest *g, struct guest_result *r, struct err *e);
};

extern const struct guest_step guest_step_fstab, guest_step_crypttab, guest_step_resume, guest_step_initramfs,
    guest_step_grub, guest_step_caches, guest_step_net_names, guest_step_network, guest_step_cloud_init,
    guest_step_agent, guest_step_guest_tools, guest_step_leftovers;

/* ---- guest_root.c: no call follows a link out of the root ---- */
int guest_openat(const struct guest *g, const char *path, int flags, mode_t mode); /* descriptor or -errno */
bool guest_exists(const struct guest *g, const char *path);
/* Is the name itself a link, and where does it lead? */
bool guest_link(const struct guest *g, const char *path, char *out, size_t size);
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

/* ---- guest.c ---- */
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
