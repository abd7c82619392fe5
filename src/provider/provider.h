/*
 * What a region runs on: a table of functions. `local` is a directory on this host and QEMU. Calls block and are made
 * from the long-lived thread of one job; `watch` is told what happens and says whether to give up. Everything is
 * idempotent: after a crash the same call is made again and starts from what is there.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;
struct str;
struct provider;

struct provider_watch {
	void *arg;
	/* A JSON object (borrowed) as the receiver or the appliance sent it: {"event":...}. */
	void (*event)(void *arg, const json_t *event);
	bool (*cancelled)(void *arg); /* asked a few times a second */
	/* What programs say to people: the receiver's complaints, serial lines. Bytes as they come; may be NULL. */
	void (*log)(void *arg, const char *text, size_t n);
};

struct provider_receive {
	const char *run;     /* run id */
	const char *psk_hex; /* 64 digits */
	const char *listen;  /* address for the receiver */
	bool clear;          /* data that is authenticated but not encrypted */
	bool partial;        /* a migration test: disks may be missing in the copy, which never becomes an image */
	uint64_t
	    number; /* of an incremental job's run, from 1: what earlier ones got stays as it is; 0: there is one */
};

struct provider_ops {
	const char *kind; /* "local" */
	/* {"free":bytes,"total":bytes,"accelerator":"kvm"|"tcg",...} (new reference) */
	int (*capacity)(struct provider *p, json_t **ret, struct err *e);
	/* Runs the receiver until the replica is committed. The `listening` event carries the port. -ENOSPC, -ECANCELED
	 * ... */
	int (*receive)(struct provider *p, const char *job, const struct provider_receive *r,
		       const struct provider_watch *w, struct err *e);
	/* Converts the replica on fresh overlays; *ret: the conversion report (new reference). */
	int (*convert)(struct provider *p, const char *job, const json_t *request, const struct provider_watch *w,
		       json_t **ret, struct err *e);
	/* Replica and conversion become image `image`; *ret: its manifest (disks, formats, paths, sizes, digests). */
	int (*image_create)(struct provider *p, const char *job, const char *image, const json_t *meta, json_t **ret,
			    struct err *e);
	/* Boots the image in a throw-away overlay; *ret: the test report, "screenshot" in it names the PNG's path. */
	int (*test_boot)(struct provider *p, const char *image, const json_t *options, const struct provider_watch *w,
			 json_t **ret, struct err *e);
	/* Reads the image in throw-away overlays and judges it; *ret: the report. options: {"network"}, may be NULL. */
	int (*image_check)(struct provider *p, const char *image, const json_t *options, const struct provider_watch *w,
			   json_t **ret, struct err *e);
	/*
	 * What can be repaired is, in overlays on the image's disks that become the image `repaired`; *ret: the report,
	 * *ret_manifest: its manifest, with "base": image. The first stays as it was, and can't be removed before that.
	 */
	int (*image_repair)(struct provider *p, const char *image, const char *repaired, const json_t *options,
			    const struct provider_watch *w, json_t **ret, json_t **ret_manifest, struct err *e);
	/*
	 * Boots the converted copy of a migration test the same way. Its picture is gone with job_remove() at the
	 * latest.
	 */
	int (*copy_boot)(struct provider *p, const char *job, const json_t *options, const struct provider_watch *w,
			 json_t **ret, struct err *e);
	int (*image_export)(struct provider *p, const char *image, unsigned disk, const char *format, const char *path,
			    const struct provider_watch *w, struct err *e);
	/* -EBUSY when another image stands on it. */
	int (*image_remove)(struct provider *p, const char *image, struct err *e);
	/*
	 * Gives back what runs of incremental jobs hold and no image needs any more; what is in use now is *ret_left
	 * for another time. The event `image_changed` has an image whose "manifest" is another now.
	 */
	int (*trim)(struct provider *p, const struct provider_watch *w, bool *ret_left, struct err *e);
	/* Bytes on disk of all that is kept for a job: its copy, and layers that images may share. */
	int (*job_holds)(struct provider *p, const char *job, uint64_t *ret, struct err *e);
	/* Everything a job left that no image owns. */
	int (*job_remove)(struct provider *p, const char *job, struct err *e);
	/*
	 * All that is kept for somebody, an array (new reference) of {"kind":"copy"|"chain"|"image"|"instance-set"|
	 * "run"|"temporary","owner":id or null,"path","bytes","since"}: since when nothing of it has changed.
	 */
	int (*holdings)(struct provider *p, json_t **ret, struct err *e);
	/* Out of the way at once, if it is certainly temporary; -EPERM: that is somebody's data. `path` as above. */
	int (*discard)(struct provider *p, const char *path, struct err *e);
	/* What was discarded is given back, also by an earlier process. */
	int (*empty)(struct provider *p, struct err *e);
	void (*close)(struct provider *p);
};

struct provider {
	const struct provider_ops *ops;
};

struct provider_settings {
	const char *dir;      /* holds replicas and images */
	const char *cache;    /* appliance */
	const char *programs; /* where replant-transition is */
	const char *user;     /* unprivileged user of receiver and QEMU when we are root; NULL: ours */
};
int provider_open(const char *kind, const struct provider_settings *s, struct provider **ret, struct err *e);

/*
 * Where instances run: a second table, since images are made in one place and may run in many. `local` has QEMU on this
 * host, `libvirt` has domains. An instance is known there by its `ref` (local: the instance's id; libvirt: the domain's
 * UUID).
 *
 * What its disks hold is a *set*: all of them, under one name. Sets stand on images, or on each other, and never change
 * once something stands on them. The set in use is exchanged as one, while the instance is off, and the same call puts
 * the earlier one back, bit for bit. Calls block, any thread may make them (of one instance one at a time), all are
 * idempotent: killed in the middle, the same call is made again and starts from what is there.
 */
struct hypervisor;

#define HYPERVISOR_REF_MAX 64
#define HYPERVISOR_SET_MAX 48 /* of a set's name: an id */

struct hypervisor_ops {
	const char *kind; /* "local", "libvirt" */
	/* {"accelerator","memory","cpus","instances",...} (new reference) */
	int (*capacity)(struct hypervisor *h, json_t **ret, struct err *e);
	/* All that run or could run there, an array of what get() gives (new reference). */
	int (*list)(struct hypervisor *h, json_t **ret, struct err *e);
	/*
	 * {"ref","name","state":"off"|"running"|"paused"|"crashed","arch","settings":{as create() takes them},
	 * "disks":[{"size":bytes,"format","allocated":bytes}],"addresses":["10.0.2.15",...],
	 * "set":in use,"sets":[{"set","on":set or null,"image":id or null,"allocated":bytes}],
	 * "boot":{"stage":"up"|where it is,"failed":nothing more will come,"text"}}; -ENOENT
	 */
	int (*get)(struct hypervisor *h, const char *ref, json_t **ret, struct err *e);
	/*
	 * An instance without disks, or its settings changed while it is off. settings: {"name","cpus","memory_mib",
	 * "cpu":"host"|"max"|a model,"firmware":"bios"|"uefi","bus":"virtio"|"scsi"|"sata","network":"user"|"none"|a
	 * name that the hypervisor knows,"mac","address":"A.B.C.D" that its DHCP is to give,"forwards":[{"host":port,
	 * "guest":port}]}; what is missing has a default, which get() shows.
	 */
	int (*define)(struct hypervisor *h, const char *id, const json_t *settings, char ret_ref[HYPERVISOR_REF_MAX],
		      struct err *e);
	/* With all its sets. */
	int (*remove)(struct hypervisor *h, const char *ref, struct err *e);
	int (*start)(struct hypervisor *h, const char *ref, struct err *e);
	/* By the power button, until it is off or `seconds` have gone: -ETIMEDOUT; 0: at once, by force. */
	int (*stop)(struct hypervisor *h, const char *ref, double seconds, const struct provider_watch *w,
		    struct err *e);
	/*
	 * The image's disks ([{"path","format","size"}], as its manifest has them) become a set, each at least as big
	 * as `sizes` (an array of bytes or nulls, or NULL) say. The instance goes on with what it has. Tells
	 * {"event":"set","percent":...}.
	 */
	int (*set_add)(struct hypervisor *h, const char *ref, const char *set, const char *image, const json_t *disks,
		       const json_t *sizes, const struct provider_watch *w, struct err *e);
	/* A set on top of another, which doesn't change any more. */
	int (*set_fork)(struct hypervisor *h, const char *ref, const char *from, const char *set, struct err *e);
	/* What is in use is kept as it is at this instant, and the instance, on or off, goes on in the new set `set` on
	 * top of it. */
	int (*set_snapshot)(struct hypervisor *h, const char *ref, const char *set, struct err *e);
	/* While it is off (-EBUSY): all or nothing, also when we are killed. */
	int (*set_use)(struct hypervisor *h, const char *ref, const char *set, struct err *e);
	/* -EBUSY when it is in use, or something stands on it. */
	int (*set_drop)(struct hypervisor *h, const char *ref, const char *set, struct err *e);
	/* The screen as a PNG file at `path`; -ENOTCONN when it is off. */
	int (*screenshot)(struct hypervisor *h, const char *ref, const char *path, struct err *e);
	/* The serial line from byte `since` on, or what is left of it; *ret_end: where it ends. */
	int (*serial)(struct hypervisor *h, const char *ref, uint64_t since, struct str *ret, uint64_t *ret_end,
		      struct err *e);
	void (*close)(struct hypervisor *h);
};

struct hypervisor {
	const struct hypervisor_ops *ops;
};

/* `settings`: those of the region ("uri", "pool", ...), may be NULL. */
int hypervisor_open(const char *kind, const struct provider_settings *s, const json_t *settings,
		    struct hypervisor **ret, struct err *e);
