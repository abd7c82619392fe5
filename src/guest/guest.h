/*
 * Makes a copied Linux system boot and be reachable in its new home: a table of small steps, each working on a mounted
 * root directory that is never left through a link. Runs inside the appliance; the steps that don't need to run the
 * system's own programs also work on a plain tree, which is how most tests drive them.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct err;
struct guest;

#define GUEST_VOLUMES_MAX 4096 /* more are refused: the root may be among those left out */

/* A block device that may hold a filesystem: a disk, a partition, a logical volume, an array. */
struct guest_volume {
	char device[128]; /* in this machine: "/dev/vdb1" */
	int disk;         /* 0.. in the job's order; -1 for what lies across disks (LVM, md) */
	unsigned part;    /* partition number; 0: not a partition */
	char mapper[128]; /* name below /dev/mapper, or "" */
	char md[64];      /* name below /dev, "md0", or "" */
	char fstype[32];  /* as blkid names it, or "" */
	char uuid[64];
	char label[256];
	char partuuid[64];
	char partlabel[128];
};

struct guest_disk {
	char device[64];      /* in this machine */
	char source[64];      /* its name on the source, "/dev/sda"; "" when nobody said */
	char aliases[8][256]; /* its names below /dev/disk on the source */
	unsigned naliases;
	bool grub; /* GRUB's boot sector is there */
	bool gpt;
};

#define GUEST_DISKS_MAX 64

struct guest_volumes {
	struct guest_volume *v;
	size_t n;
	struct guest_disk *disks;
	size_t ndisks;
};

/*
 * Looks at the disks attached with the serial numbers replant-disk0, replant-disk1 ... and all that lies on them.
 * `names`: the request's "disks": [{"source":"/dev/sda","aliases":["/dev/disk/by-id/..."]}, ...], or NULL.
 */
int guest_volumes_scan(const json_t *names, struct guest_volumes *ret, struct err *e);
/* The same from a description (tests): {"disks":[{...}],"volumes":[{"device":...,"disk":0,"part":1,...}]}. */
int guest_volumes_from_json(const json_t *j, struct guest_volumes *ret, struct err *e);
void guest_volumes_release(struct guest_volumes *v);

struct guest_settings {
	const char *root;                    /* directory on which the root filesystem is mounted */
	const struct guest_volumes *volumes; /* borrowed for the guest's life */
	const struct guest_volume *root_volume;
	bool can_run; /* the system's own programs may be run in a chroot (never on the center's host) */
};

/* -ENOENT: no system below root. */
int guest_open(const struct guest_settings *s, struct guest **ret, struct err *e);
/* Frees it and unmounts what guest_mount() mounted. An error when not all of it reached the disks. */
int guest_close(struct guest *g, struct err *e);
/* What a server had mounted as its root; "" is not known. */
struct guest_root {
	char device[128];    /* by its name there */
	char uuid[64];       /* of the filesystem */
	char subvolume[256]; /* options for mounting it */
	bool converted;      /* guest_convert() has been at it */
};
/* From an agent's inventory; NULL is none. */
void guest_root_from_inventory(const json_t *inventory, struct guest_root *ret);
/*
 * Finds, mounts (which replays journals) and opens the system on the volumes below the empty directory `at`; only as
 * root, in the appliance. Of several systems it is the one with that root (NULL: nobody knows), else the one that most
 * speaks for, and the report warns. -ENOENT when there is none, or only another than `root`.
 */
int guest_mount(const struct guest_volumes *v, const struct guest_root *root, const char *at, struct guest **ret,
		struct err *e);

/* The address that the conversion gives the server, as ip4_plan_json() has it; NULL: DHCP does. */
int guest_set_address(struct guest *g, const json_t *network, struct err *e);

/* Called with {"event":"step","name":...,"index":1..count,"count":...} before each step. `event` is borrowed. */
typedef void (*guest_event_fn)(void *arg, const json_t *event);

/*
 * Runs every step. *ret is the report: {"system","firmware","boot_disk","root","kernels","steps","warnings"}. -ENOTSUP
 * when the system is of a kind nothing here knows: *ret then has what was found, and nothing was changed.
 */
int guest_convert(struct guest *g, guest_event_fn event, void *arg, json_t **ret, struct err *e);

/*
 * Looks at what the disks hold, and judges whether it will start and be reached elsewhere. *ret is the report:
 * {"kind":"linux"|"iso"|"empty"|..., "verdict":"passed"|"warning"|"critical", "system", "items":[{"item","group",
 * "level","message","remedy","repairable","high","value"}], "disks"}. `options`: {"network": as
 * guest_set_address() wants it}, or NULL. With `repair` what can be is repaired by the conversion's steps, and
 * "before", "verdict_before", "steps" and "repaired" tell of it. Only in the appliance; writes nothing without `repair`
 * but what replaying journals does.
 */
int guest_check(const struct guest_volumes *v, const struct guest_root *root, const char *at, const json_t *options,
		bool repair, guest_event_fn event, void *arg, json_t **ret, struct err *e);
/* The same of a system that is open already, without the disks below it. */
int guest_check_system(struct guest *g, const json_t *options, bool repair, guest_event_fn event, void *arg,
		       json_t **ret, struct err *e);

/* Puts the test boot's probe (the program at `program`) and its unit into the system, with what the request wants of
 * it:
 * {"checks":[{"name","script","timeout"}],"expect":{...}}, see src/transition/probe.c. For throw-away copies only. */
int guest_install_probe(struct guest *g, const char *program, const json_t *request, struct err *e);
