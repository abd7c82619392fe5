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
