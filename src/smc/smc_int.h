/* Inside of the room: one request on its way, and what the actions share. */
#pragma once

#include <stdint.h>

#include "base/id.h"
#include "base/jsn.h"
#include "base/str.h"
#include "smc/smc.h"

#define SMC_IDS_MAX 50u

/* Name and value of one parameter; both are owned. */
struct smc_param {
	char *name, *value;
};

struct smc_fault {
	int status;
	char code[64], message[ERR_MSG_MAX];
};

struct smc {
	const struct smc_service *service;
	const struct smc_request *in;
	struct smc_param *params;
	size_t n;
	json_t *names; /* of the parameters, a set */
	char key[ID_MAX], request_id[40];
	json_t *answer; /* but for RequestId */
	struct smc_fault fault;
	struct smc_refusal refusal; /* of the last call, where the action wants to know more */
};

/* Sets the fault; returns -1. */
int smc_fail(struct smc *c, int status, const char *code, const char *fmt, ...) __attribute__((format(printf, 4, 5)));
int smc_nomem(struct smc *c);
/* 400 InvalidParameter, which names the parameter. Returns -1. */
int smc_bad(struct smc *c, const char *param, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* ---- parameters ---- */
/* Those of the query and of a form in the body. */
int smc_params_read(struct smc *c);
void smc_params_release(struct smc *c);
/* NULL when it isn't there, or empty. */
const char *smc_param(const struct smc *c, const char *name);
/* Is there one whose name begins so? */
bool smc_param_any(const struct smc *c, const char *prefix);
/* These return 0 with *ret as it was when the parameter is missing, 1 when it was there, -1 with the fault. */
int smc_uint(struct smc *c, const char *name, uint64_t min, uint64_t max, uint64_t *ret);
int smc_bool(struct smc *c, const char *name, bool *ret);
int smc_time(struct smc *c, const char *name, double *ret);
/* An id of that noun, theirs ("j-...") or ours ("job-..."); a missing one is refused. */
int smc_id(struct smc *c, const char *name, const char *noun, char ret[ID_MAX]);
/* NAME.1, NAME.2, ... as an array of ours; *ret is NULL when there is none. */
int smc_ids(struct smc *c, const char *name, const char *noun, json_t **ret);
/* PREFIX.N.Key and .Value as an object; NULL when there is none. */
int smc_tags(struct smc *c, json_t **ret);
/* The same as values of a query: "key=value", "key". */
int smc_tag_filter(struct smc *c, json_t *query);
/* Refuses those of a list of names that nothing here answers to. */
int smc_no_counterpart(struct smc *c, const char *const *names);
/* RFC 3986, section 2.1: all but unreserved characters become %XX. */
void smc_encode(struct str *b, const char *s);

/* ---- signatures ---- */
/* Sets c->key; false, with the fault, when it isn't signed by somebody known. */
bool smc_verify(struct smc *c, bool *ret_denied);
/* Action and Version, where the signature's kind has them. */
const char *smc_action(const struct smc *c);
const char *smc_version(const struct smc *c);

/* ---- calls ---- */
/* query and body are taken, and may be NULL; so may ret. -1: c->refusal, and c->fault with what it means here. */
int smc_call(struct smc *c, const char *method, json_t *query, json_t *body, json_t **ret, const char *fmt, ...)
    __attribute__((format(printf, 6, 7)));
bool smc_was(const struct smc *c, const char *code);

/* ---- answers ---- */
/* "job-..." -> "j-..."; "" for anything else. */
const char *smc_their_id(const json_t *id, char buf[ID_MAX]);
void smc_put(json_t *o, const char *name, const char *text);
void smc_put_id(json_t *o, const char *name, const json_t *id);
/* Unix time, or none. */
void smc_put_time(json_t *o, const char *name, const json_t *time);
/* {outer: {inner: items}}; items is taken. */
void smc_put_list(json_t *o, const char *outer, const char *inner, json_t *items);
/* Of a tags object: Tags.Tag[]. */
void smc_put_tags(json_t *o, const json_t *tags);
const char *smc_text(const json_t *o, const char *member);

/* ---- lists ---- */
struct smc_page {
	uint64_t number, size;
};
int smc_page(struct smc *c, uint64_t size, struct smc_page *ret);
/* PageNumber, PageSize, TotalCount. */
void smc_put_page(struct smc *c, const struct smc_page *p, uint64_t total);
/*
 * Rows of GET `path` that pass `query` (taken). With ids (taken, NULL: all) it is those rows, `by` naming the query's
 * member that one of them goes into, or NULL for GET path/ID. *ret: a page of them, a new reference.
 */
int smc_list(struct smc *c, const char *path, json_t *query, json_t *ids, const char *by, const struct smc_page *p,
	     json_t **ret, uint64_t *ret_total);

/* All of them, added to ret; nothing is taken. For what is narrowed by a status that follows from other things, and so
 * is no column to ask for. */
int smc_list_all(struct smc *c, const char *path, json_t *query, json_t *ids, json_t *ret);
/* Would a list with these filters have the row? */
bool smc_passes(const json_t *row, json_t *query);

/* ---- actions ---- */
/* The action of that name, for a request that is known to be signed. */
int smc_run(struct smc *c, const char *action);
struct smc_disk {
	uint64_t size;
	const json_t *disk; /* of the inventory */
	const char *name;
};
#define SMC_DISKS_MAX 17u
/* The system's disk first; how many. Borrowed from the source. */
size_t smc_disks(const json_t *source, struct smc_disk ret[SMC_DISKS_MAX]);
uint64_t smc_gib(uint64_t bytes);
/* Is what the request says of the disks what the source has? */
int smc_check_plan(struct smc *c, const json_t *source);
/* SystemDiskSize, SystemDiskParts, DataDisks and Disks of a source, or of a job that copies it. */
void smc_put_disks(json_t *o, const json_t *source);

int smc_describe_sources(struct smc *c);
int smc_modify_source(struct smc *c);
int smc_delete_source(struct smc *c);
int smc_create_job(struct smc *c);
int smc_modify_job(struct smc *c);
int smc_start_job(struct smc *c);
int smc_stop_job(struct smc *c);
int smc_describe_jobs(struct smc *c);
int smc_cut_over_job(struct smc *c);
int smc_delete_job(struct smc *c);
int smc_create_code(struct smc *c);
int smc_list_codes(struct smc *c);
int smc_disable_code(struct smc *c);
int smc_delete_code(struct smc *c);
int smc_create_group(struct smc *c);
int smc_modify_group(struct smc *c);
int smc_describe_groups(struct smc *c);
int smc_delete_group(struct smc *c);
int smc_associate(struct smc *c);
int smc_disassociate(struct smc *c);
int smc_tag_resources(struct smc *c);
int smc_list_tags(struct smc *c);
int smc_untag_resources(struct smc *c);
