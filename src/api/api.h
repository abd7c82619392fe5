/*
 * The HTTPS door of the center: routes, who may use them, JSON in and out, events as a stream. It keeps
 * nothing itself: what is asked of the jobs goes to an engine behind a table of functions, the rest to the
 * store. docs/openapi.json describes it and is served by it.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/str.h"
#include "job/job.h"
#include "model/model.h"

struct api;
struct store;

#define API_HOOK_SECRET 64

/* Why a request is refused: what the answer {"error":{...}} says. */
struct api_fault {
	int status;
	char code[48];
	char field[64]; /* "" when none is to blame */
	char message[ERR_MSG_MAX];
};
/* Fills it; returns -1. `field` may be NULL. */
int api_fault_set(struct api_fault *f, int status, const char *code, const char *field, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
/* From a negative errno: the store's and the provider's codes to their status. Returns -1. */
int api_fault_err(struct api_fault *f, const struct err *e);

enum instance_verb {
	INSTANCE_CREATE, /* instance_create() only */
	INSTANCE_START,
	INSTANCE_STOP,
	INSTANCE_RESTART,
	INSTANCE_CHANGE,
	INSTANCE_SNAPSHOT,
	INSTANCE_REVERT,
	INSTANCE_TIDY, /* a snapshot goes */
	INSTANCE_DELETE,
	INSTANCE_VERBS,
};

struct api_instance_do {
	enum instance_verb verb;
	double seconds;              /* stop, restart: what the power button is given; 0: at once, by force */
	bool force, keep;            /* of a removal */
	const char *snapshot, *name; /* snapshot's id; of a new one, too */
	const json_t *settings;      /* of a change, laid over those it has */
};

/* The engine. Calls come from several threads; those that return int answer 0, or -1 with the fault. */
struct api_engine {
	void *arg;
	int (*job_event)(void *arg, const char *job, enum job_event event, struct api_fault *f);
	/* Lays what is only in memory (step, progress) over a row just read. */
	void (*job_live)(void *arg, struct model_job *job);
	/* Live parameters changed: tell the run. */
	void (*job_parameters)(void *arg, const char *job, const json_t *parameters);
	/* What is kept and runs for it now: {"disk":bytes,"memory":bytes} (new reference); NULL when it can't be had.
	 */
	json_t *(*job_holds)(void *arg, const struct model_job *job);
	/* Steps and progress newer than *tick, as briefs of jobs; sets *tick. New array. */
	json_t *(*job_ticks)(void *arg, uint64_t *tick);
	/* Heartbeat. *ret_task: what the agent is to do, or JSON null (new reference). */
	int (*source_sync)(void *arg, const char *source, const struct model_task_request *task,
			   const struct model_error_request *error, json_t **ret_task, double *ret_interval,
			   struct api_fault *f);
	/* What its agent logged. */
	void (*source_log)(void *arg, const char *source, const struct model_log_request *log);
	/* The logs of a job: what there is, an array (new reference, NULL when out of memory). */
	json_t *(*job_logs)(void *arg, const char *job);
	/* One of them from `since` on, run 0: the newest; *ret_end: where it ends. */
	int (*job_log)(void *arg, const char *job, uint64_t run, const char *part, uint64_t since, struct str *ret,
		       uint64_t *ret_end, struct api_fault *f);
	/* All that is known of it, a .tar.gz: the caller closes *ret_fd. With a scope nothing is in it beside the job
	 * whose tags it hasn't (NULL: all may be). */
	int (*job_bundle)(void *arg, const char *job, const json_t *scope,
			  bool (*has)(const json_t *scope, const json_t *tags), int *ret_fd, struct api_fault *f);
	/* Brings a source's state up to date after its job changed. */
	void (*source_refresh)(void *arg, const char *source);
	bool (*source_online)(void *arg, const char *source);
	void (*source_forget)(void *arg, const char *source);
	int (*image_boot)(void *arg, const char *image, const json_t *checks, struct api_fault *f);
	/* repair: what can be, in another image of that name (NULL: one is made). */
	int (*image_check)(void *arg, const char *image, bool repair, const char *name, struct api_fault *f);
	/* 1: it takes a while, and image.deleted will tell the end */
	int (*image_remove)(void *arg, const char *image, struct api_fault *f);
	int (*export_start)(void *arg, const char *export, struct api_fault *f);
	int (*export_remove)(void *arg, const char *export, struct api_fault *f);
	/* What signs a web hook's messages, as text of API_HOOK_SECRET bytes at most. */
	void (*hook_secret)(void *arg, const char *subscription, char *ret);
	/* One may be told again, or elsewhere. */
	void (*subscription_changed)(void *arg);
	/* Sends a ping and waits a moment for the answer; *notice (ID_MAX) tells how it went. */
	int (*subscription_test)(void *arg, const char *subscription, char *notice, struct api_fault *f);
	/* A new one, its row ready but for what the hypervisor says: it is made of its image, or (without one) is what
	 * is there as `ref`. */
	int (*instance_create)(void *arg, struct model_instance *in, bool start, struct api_fault *f);
	/* Something is done to an instance: 0 when it is done, 1: it goes on, and instance.updated (or .deleted) tells
	 * the end. */
	int (*instance_do)(void *arg, const char *instance, const struct api_instance_do *a, struct api_fault *f);
	/* Lays over a row just read what its hypervisor says now, if it does. */
	void (*instance_see)(void *arg, struct model_instance *in);
	/* All that runs in a region, known here or not; one of them (new references). */
	int (*instance_list)(void *arg, const char *region, json_t **ret, struct api_fault *f);
	int (*instance_get)(void *arg, const char *region, const char *ref, json_t **ret, struct api_fault *f);
	/* Its screen now, a PNG: the caller closes *ret_fd. */
	int (*instance_screen)(void *arg, const struct model_instance *in, int *ret_fd, struct api_fault *f);
	int (*instance_serial)(void *arg, const struct model_instance *in, uint64_t since, struct str *ret,
			       uint64_t *ret_end, struct api_fault *f);
	/* Can a source with the inventory run as the instance? 409 with all that is in the way. */
	int (*instance_check)(void *arg, const json_t *inventory, const char *instance, struct api_fault *f);
	int (*instance_rollback)(void *arg, const char *instance, struct api_fault *f);
	int (*instance_confirm)(void *arg, const char *instance, struct api_fault *f);
	/* The file of the screen as it was when the job had switched its instance over; there may be none. */
	void (*job_picture)(void *arg, const char *job, char *path, size_t size);
	/* The same of the copy that its last migration test booted. */
	void (*test_picture)(void *arg, const char *job, char *path, size_t size);
	/* Capacity and the like, an object (new reference); NULL when it can't be had. */
	json_t *(*region_info)(void *arg, const char *region);
	/* All that is kept, an array of {"kind","owner","path","bytes","since","orphan","removable"}. */
	int (*holdings)(void *arg, json_t **ret, struct api_fault *f);
	/* Removes what certainly nobody needs: {"dry_run","removed","failed","orphans"}. */
	int (*sweep)(void *arg, bool dry_run, json_t **ret, struct api_fault *f);
	/* {"bytes","orphans","kinds":{KIND:{"count","bytes"}}} of the last look; NULL: there was none. */
	json_t *(*holdings_sums)(void *arg);
	/* Can instances run there? Asks the host: its answer is the fault. */
	int (*region_check)(void *arg, const char *provider, const json_t *settings, struct api_fault *f);
};

#define API_ACCESS_KEY 32u

struct api_settings {
	struct store *store;
	struct api_engine engine;
	const char *address;             /* numeric */
	uint16_t port;                   /* 0: any */
	const char *key_pem, *chain_pem; /* of the start; needed no longer after it */
	const unsigned char *access_key; /* API_ACCESS_KEY bytes: the secrets of access keys are made with it */
	const char *ca_fingerprint;      /* SHA-256 of the CA certificate's DER, hex */
	const char *public_url;          /* NULL: from the request's Host */
	const char *programs;            /* directory that has replant-agent */
	const char *exports;             /* directory of the files */
	bool mail;                       /* the center can send mail */
	unsigned failures_per_minute;    /* wrong secrets of one address; 0: 10 */
	unsigned request_seconds;        /* until a request must be complete; 0: 60 */
};

/* Strings are borrowed until api_stop(). */
int api_start(const struct api_settings *s, struct api **ret, struct err *e);
uint16_t api_port(const struct api *a);
/* Key and certificates for the connections to come; those there are go on as they are. Any one thread. */
int api_identity(const char *key_pem, const char *chain_pem, struct err *e);
/* Something is new in the events or ticks: streams look. Any thread. */
void api_wake(struct api *a);
/* Ends the streams, lets running answers finish. NULL is fine. */
void api_stop(struct api *a);

/* The file of a finished export. */
void api_export_path(const char *dir, const struct model_export *x, char *buf, size_t size);

/* The route table for the test that holds it against the document: false behind the last. */
bool api_route_at(size_t i, const char **ret_method, const char **ret_pattern, const char **ret_name,
		  const char **ret_access);
/* Which row serves it: its name, or NULL with *ret_path_known telling 405 from 404. id holds ID_MAX. */
const char *api_route_find(const char *method, const char *path, char *id, bool *ret_path_known);
