/*
 * The nouns of the control plane as plain structs, and what turns them into JSON, rows and back. Each noun is
 * one table of fields: the store makes its columns from it, the API its JSON, so they can't drift apart.
 * Requests are read by tables, too; the parameters of a job are one of these.
 *
 * Strings and JSON in a struct belong to it; model_release() frees them and leaves it empty. NULL is "not
 * there".
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/ip4.h"

struct err;

#define MODEL_NAME_MAX        128u
#define MODEL_DESCRIPTION_MAX 512u
#define MODEL_INVENTORY_MAX   (4u << 20) /* bytes of JSON */
#define MODEL_JSON_DEPTH      32u
#define MODEL_DAY             86400.0
#define MODEL_TIME_MAX        UINT64_C(253402300799) /* the end of the year 9999 */
#define MODEL_JOB_GRACE       7u                     /* days that a job has at least after it did something */
#define MODEL_TAGS_MAX        20u                    /* of one thing */
#define MODEL_TAG_MAX         128u                   /* bytes of a key, and of a value */
#define MODEL_TARGET_MAX      1024u                  /* bytes of a subscription's target */

/* ---- words ---- */
enum model_source_state { SOURCE_AVAILABLE, SOURCE_IN_USE, SOURCE_UNAVAILABLE };
enum model_job_state {
	JOB_READY,
	JOB_RUNNING,
	JOB_STOPPED,
	JOB_IN_ERROR,
	JOB_FINISHED,
	JOB_WAITING,
	JOB_EXPIRED,
	JOB_DELETING,
	JOB_STATES, /* how many */
};
enum model_job_stage { JOB_NO_STAGE, JOB_PREPARING, JOB_SYNCING, JOB_PROCESSING, JOB_CLEANING, JOB_STAGES };
enum model_license { LICENSE_NONE, LICENSE_BYOL, LICENSE_REGION };
enum model_encryption { ENCRYPTION_AUTO, ENCRYPTION_ON, ENCRYPTION_OFF };
enum model_network { NETWORK_PUBLIC, NETWORK_PRIVATE };
enum model_execution { CREATE_ONLY, MIGRATE_NOW, MIGRATE_LATER, TEST_NOW, TEST_AND_MIGRATE_NOW };
enum model_start_test { START_AS_SET, START_UNTESTED, START_TEST, START_TEST_AND_MIGRATE };
enum model_destination { DESTINATION_IMAGE, DESTINATION_INSTANCE };
enum model_testing { NO_TEST, TEST_ONLY, TEST_AND_MIGRATE }; /* what the job's run is, as long as it is a test */
enum model_instance_state { INSTANCE_OFF, INSTANCE_RUNNING, INSTANCE_PAUSED, INSTANCE_CRASHED, INSTANCE_MISSING };
enum model_trigger { TRIGGER_MANUAL, TRIGGER_SCHEDULE, TRIGGER_CUT_OVER };
enum model_run_state { RUN_ACTIVE, RUN_DONE, RUN_FAILED, RUN_CANCELLED };
enum model_role { ROLE_VIEWER, ROLE_OPERATOR, ROLE_ADMIN, MODEL_NO_ROLE };
enum model_export_state { EXPORT_RUNNING, EXPORT_FINISHED, EXPORT_IN_ERROR };
enum model_notice_event {
	NOTICE_JOB_FINISHED,
	NOTICE_JOB_FAILED,
	NOTICE_JOB_EXPIRING,
	NOTICE_SOURCE_OFFLINE,
	NOTICE_IMAGE_NOT_VERIFIED,
	NOTICE_PING,
};
enum model_notice_state { NOTICE_PENDING, NOTICE_DELIVERED, NOTICE_GIVEN_UP };

extern const char *const model_source_states[];
extern const char *const model_job_states[];
extern const char *const model_job_stages[]; /* JOB_NO_STAGE is "" and null in JSON */
extern const char *const model_run_states[];
extern const char *const model_executions[];
extern const char *const model_licenses[];
extern const char *const model_destinations[];
extern const char *const model_start_tests[];
extern const char *const model_testings[]; /* NO_TEST is "" and null in JSON */
extern const char *const model_instance_states[];
extern const char *const model_networks[];
extern const char *const model_encryptions[];
extern const char *const model_triggers[]; /* what began a run */
extern const char *const model_roles[];
extern const char *const model_export_states[];
extern const char *const model_export_formats[];
extern const char *const model_read_errors[];
extern const char *const model_notice_events[]; /* the last is what a test sends */
extern const char *const model_subscribable[];  /* the others */
extern const char *const model_notice_states[];

/* ---- nouns ---- */
struct model_source {
	char *id, *name, *description, *hostname, *machine_id, *agent_version, *boot_id, *secret_hash, *workgroup;
	int state; /* enum model_source_state as last announced */
	double created, last_seen;
	json_t *inventory, *tags;
};

struct model_job {
	char *id, *name, *description, *source, *region, *image_name, *template;
	int state, stage;
	char *step_name, *step_text;
	bool step_paced;                /* not a column: the two below are known */
	double step_percent, step_left; /* left < 0: not known */
	json_t *parameters, *progress, *stages, *error, *tags;
	char *client_token, *client_digest; /* of the request that made it, should it come again */
	uint64_t valid_days;
	char *image, *image_pending; /* the id the image will have is fixed before it's made, so that a crash
					makes no second */
	char *run;
	double created, started, finished, updated, expires;
	/* Its runs: the number of the one that is on or was last, how many are complete, what began this one. */
	uint64_t number, runs_done;
	int trigger;
	bool last; /* run: it is cut over behind it */
	double run_ended, next_run;
	double expiry_told; /* the value of `expires` that people were told of beforehand */
	int destination;    /* enum model_destination */
	char *instance;     /* that is migrated onto */
	int testing;        /* enum model_testing */
	json_t *test;       /* report of the last migration test */
};

struct model_run {
	char *id, *job, *image;
	int state, trigger;
	uint64_t number, bytes; /* bytes: of blocks written */
	double started, ended;
	json_t *result, *error;
};

struct model_image {
	char *id, *name, *description, *job, *source, *region, *screenshot;
	char *base;    /* the image that this one, repaired, stands on */
	bool deleting; /* its files go, or are gone */
	double created;
	json_t *manifest, *report, *boot, *checked, *tags; /* checked: the last image check */
};

struct model_code {
	char *id, *name, *description, *secret_hash;
	uint64_t uses, used;
	double created, expires;
	bool revoked;
};

struct model_token {
	char *id, *name, *secret_hash;
	int role;
	double created;
	json_t *scope; /* tags that what it sees must have */
};

struct model_region {
	char *id, *name, *provider;
	double created;
	json_t *settings;
};

/* A machine that runs in a region. */
struct model_instance {
	char *id, *name, *description, *region, *ref, *image, *job; /* image: it was made of; job: migrated onto it */
	int state;                                                  /* enum model_instance_state as last seen */
	double created, updated;
	json_t *settings, *seen, *error, *tags; /* seen: what the hypervisor last said of it */
	/* The sets of its disks (provider.h): the one in use, and how far a migration onto it has come:
	 * {"job","image","step","from":set,"to":set,...}, until it is confirmed or rolled back. */
	char *disks;
	json_t *switching;
	bool deleting;
};

/* What an instance's disks held at a moment. */
struct model_snapshot {
	char *id, *name, *instance, *disks, *job; /* disks: the set; job: it was made before the migration of */
	double created;
};

/* Presets of a job's request, model_template_job[]. */
struct model_template {
	char *id, *name, *description;
	double created;
	json_t *job;
};

/* Sources that move together. */
struct model_workgroup {
	char *id, *name, *description;
	double created;
	json_t *tags;
};

/* One line of the audit log: what somebody did, or was refused. */
struct model_record {
	char *id, *who, *name, *address, *action, *object, *code; /* who: a token; name: its, then */
	int role;                                                 /* MODEL_NO_ROLE: a source's */
	uint64_t status;                                          /* of the answer */
	double created;
};

struct model_export {
	char *id, *image;
	uint64_t disk, size;
	int format, state;
	double percent, created;
	json_t *error;
};

/* Whom to tell of what. */
struct model_subscription {
	char *id, *name, *target, *error; /* error: of the last attempt, NULL when that went well */
	bool active;
	double created, delivered, failed; /* the latter two: when something last was */
	json_t *events;                    /* an array of model_subscribable[] */
};

/* Something that one of them is to be told. */
struct model_notice {
	char *id, *subscription, *error;
	int event, state;
	uint64_t attempts;
	double created, next_try, ended;
	json_t *body;
};

/* ---- tables ---- */
enum model_kind {
	MODEL_TEXT, /* char *, or const char * in a request; min..max bytes */
	MODEL_LINE, /* the same without control characters */
	MODEL_UINT, /* uint64_t, min..max */
	MODEL_REAL, /* double */
	MODEL_BOOL, /* bool */
	MODEL_WORD, /* int, an index into words */
	/* json_t *, in a request borrowed: an object, with words an array of some of them, with a max one of at most so
	 * many objects */
	MODEL_JSON,
	MODEL_TAGS, /* the same, of texts; NULL is an empty one */
};

struct model_field {
	const char *name;
	enum model_kind kind;
	size_t offset;
	const char *const *words;
	bool hidden; /* not in the API's JSON */
};

struct model_noun {
	const char *name;  /* "job": of ids, and events' "job.updated" */
	const char *table; /* "jobs" */
	size_t size;
	const struct model_field *fields; /* "id" first; ends with a NULL name */
};

extern const struct model_noun model_sources, model_jobs, model_runs, model_images, model_codes, model_tokens,
    model_regions, model_exports, model_templates, model_workgroups, model_records, model_subscriptions, model_notices,
    model_instances, model_snapshots;
/* Of a source what a heartbeat is judged by; the rest of the struct stays empty. For reading only. */
extern const struct model_noun model_source_keys;
extern const struct model_noun *const model_nouns[]; /* all, NULL-terminated */

/* Frees what `obj` (a struct of that noun) owns. */
void model_release(const struct model_noun *n, void *obj);
/* Replaces a string; NULL empties. -ENOMEM. */
int model_set(char **field, const char *value);
/* Replaces JSON, taking the reference. */
void model_take_json(json_t **field, json_t *value);
/* The API's view: all fields that aren't hidden, nulls for what isn't there, and what is derived (step, state
 * of a code, os). `brief` leaves out what can be big (inventory, manifest, reports). New reference, NULL when out of
 * memory. */
json_t *model_json(const struct model_noun *n, const void *obj, bool brief, double now);
/* What an event tells of the row: for sources and images a few bounded fields, for others the brief view. New
 * reference, NULL when out of memory. */
json_t *model_event(const struct model_noun *n, const void *obj, double now);
/* Index of `s` in words (NULL-terminated), or -1. */
int model_word(const char *const *words, const char *s);

#define MODEL_CLEANUP(noun)                                                                                            \
	static inline void model_##noun##_release(struct model_##noun *o)                                              \
	{                                                                                                              \
		model_release(&model_##noun##s, o);                                                                    \
	}
MODEL_CLEANUP(source)
MODEL_CLEANUP(job)
MODEL_CLEANUP(run)
MODEL_CLEANUP(image)
MODEL_CLEANUP(code)
MODEL_CLEANUP(token)
MODEL_CLEANUP(region)
MODEL_CLEANUP(export)
MODEL_CLEANUP(template)
MODEL_CLEANUP(record)
MODEL_CLEANUP(workgroup)
MODEL_CLEANUP(subscription)
MODEL_CLEANUP(notice)
MODEL_CLEANUP(instance)
MODEL_CLEANUP(snapshot)
#undef MODEL_CLEANUP

/* ---- requests ---- */
/* One member of a request's JSON object and where it goes in the request's struct. */
struct model_input {
	const char *name;
	enum model_kind kind;
	size_t offset;
	bool required;
	uint64_t min, max; /* value, or length in bytes; a MODEL_JSON text's size limit is checked by the body's */
	uint64_t def;      /* default of numbers, bools and words */
	const char *const *words; /* MODEL_UINT: these are max + 1 and so on, in JSON as words */
	const char *help;         /* one line, for the documents */
	/* MODEL_JSON: whether the value, of any kind then, will do. */
	int (*check)(const struct model_input *in, const json_t *value, struct err *e);
};

/*
 * Reads a JSON object into the struct at `out`: defaults first (strings and JSON NULL), then what is there.
 * Unknown members, wrong types and ranges are refused: -EINVAL or -ERANGE, and *ret_field names the member
 * (borrowed from the table or the body). With `keep` the struct's own values are the defaults (PATCH).
 * Strings and JSON are borrowed from `body`.
 */
int model_read(const struct model_input *table, const json_t *body, bool keep, void *out, const char **ret_field,
	       struct err *e);
/* JSON nested deeper than MODEL_JSON_DEPTH, or with strings holding NUL, is refused. */
int model_check_json(const json_t *j, struct err *e);

/* The parameters of a job: the one table of their names, ranges and defaults. */
struct model_parameters {
	uint64_t connections, compression, rate_mbit; /* compression: 11 is auto */
	uint64_t max_freeze, interval_hours, max_images;
	uint64_t transition_cpus, transition_memory;
	bool checksum, test_boot, image_check, incremental, diagnostic_logs, rollback_on_failure;
	int on_read_error, license, network, encryption;
	const char *address, *gateway, *nameservers;
	json_t *checks; /* borrowed */
};
extern const struct model_input model_parameters[];
/* When the job ends, should it not run: that many days after it was made, but not at once after it did something. */
double model_job_expiry(const struct model_job *job, double now);
/* Does the job run again and again? */
bool model_is_incremental(const struct model_job *job);
/* Is its data encrypted on its way? */
bool model_is_encrypted(const struct model_job *job);
/* The address by which data reaches the region on that network; NULL: the one that the center itself is reached by.
 * Borrowed. */
const char *model_region_address(const struct model_region *r, enum model_network network);
/* May a system with this inventory ("os") have a licence of that kind? -EINVAL, with the rule. */
int model_check_license(enum model_license license, const json_t *inventory, struct err *e);
/* Those that may change while the job is sending. */
bool model_parameter_is_live(const char *name);
/* Those that say when the job runs, what stays and what is told of it: they may change until it is over. */
bool model_parameter_is_plan(const char *name);
json_t *model_parameters_json(const struct model_parameters *p);

/* ---- scripts.c: [{"name","script","timeout"}], to be run in the copy when it has booted ---- */
#define MODEL_CHECKS_MAX        16u
#define MODEL_CHECK_MAX         (64u << 10) /* bytes of a script */
#define MODEL_CHECK_SECONDS     60u
#define MODEL_CHECK_SECONDS_MAX 600u
int model_check_scripts(const struct model_input *in, const json_t *list, struct err *e);
/* For lists and events: without the scripts' texts. New reference. */
json_t *model_parameters_brief(json_t *parameters);

struct model_job_request {
	const char *source, *region, *name, *description, *image_name, *client_token, *template, *instance;
	json_t *parameters, *tags;
	uint64_t start_at, valid_days;
	int execution, destination;
};
struct model_start_request {
	int test; /* enum model_start_test */
};
struct model_sweep_request {
	bool dry_run;
};
struct model_cut_over_request {
	bool sync;
};
struct model_code_request {
	const char *name, *description;
	uint64_t uses, valid_days;
};
struct model_token_request {
	const char *name;
	int role;
	json_t *scope;
};
struct model_rename_request {
	const char *name, *description, *workgroup;
	json_t *tags;
};
struct model_template_request {
	const char *name, *description;
	json_t *job;
};
struct model_workgroup_request {
	const char *name, *description;
	json_t *tags;
};
struct model_region_request {
	const char *id, *name, *provider, *uri, *pool, *network, *accelerator;
	const char *public_address, *private_address;
};
struct model_subscription_request {
	const char *name, *target;
	json_t *events;
	bool active;
};
struct model_boot_request {
	json_t *checks;
};
struct model_export_request {
	int format;
	uint64_t disk;
};
struct model_check_request {
	const char *name;
	bool repair;
};
struct model_enroll_request {
	const char *code_id, *code_secret, *hostname, *machine_id, *agent_version;
	json_t *inventory;
};
struct model_sync_request {
	const char *agent_version, *boot_id;
	json_t *inventory, *task, *log;
};
#define MODEL_LOG_MAX (256u << 10) /* bytes of log in one heartbeat */
struct model_log_request {
	const char *run, *text;
	uint64_t at;
};
enum model_task_state { TASK_SENDING, TASK_DONE, TASK_FAILED };
struct model_task_request {
	const char *run;
	int state;
	json_t *progress, *error, *result;
};
struct model_error_request {
	const char *code, *message;
	bool temporary;
};
/* What an instance's hypervisor is asked for (provider.h); what is missing has a default there. */
struct model_instance_settings {
	uint64_t cpus, memory_mib;
	const char *cpu, *network, *mac, *address;
	int firmware, bus;
	json_t *forwards;
};
struct model_forward {
	uint64_t host, guest;
};
struct model_instance_request {
	const char *name, *description, *region, *image, *ref;
	json_t *settings, *tags;
	bool start;
};
struct model_instance_stop {
	bool force;
	uint64_t seconds;
};
struct model_snapshot_request {
	const char *name;
};
extern const struct model_input model_job_request[], model_job_patch[], model_template_job[], model_template_request[],
    model_template_patch[], model_workgroup_request[], model_source_patch[], model_cut_over_request[],
    model_start_request[], model_sweep_request[], model_code_request[], model_token_request[], model_rename_request[],
    model_region_request[], model_region_patch[], model_export_request[], model_check_request[], model_enroll_request[],
    model_sync_request[], model_task_request[], model_error_request[], model_log_request[],
    model_subscription_request[], model_subscription_patch[], model_instance_settings[], model_forward[],
    model_instance_request[], model_instance_import[], model_instance_patch[], model_instance_stop[],
    model_snapshot_request[], model_boot_request[];

/* Settings of an instance with what a request says laid over them: null is what has the default. New reference, NULL
 * when out of memory. */
json_t *model_settings_over(const json_t *under, const json_t *over);
/* The numbers and the phase of a progress report that a job shows; the rest is dropped. New reference. */
json_t *model_progress(const json_t *report);
/* Bytes in use on the source's disks by its inventory: "used" of each disk, its size where that is missing.
 */
uint64_t model_inventory_used(const json_t *inventory);

/* ---- the address of the destination (destination.c) ---- */
enum model_address { ADDRESS_DHCP, ADDRESS_KEEP, ADDRESS_GIVEN };
/*
 * Of a job's parameters. ADDRESS_GIVEN: *ret_plan is whole and checked; ADDRESS_KEEP: it has what was given beside it.
 * -EINVAL, with the parameter in *ret_field.
 */
int model_read_address(const json_t *parameters, enum model_address *ret, struct ip4_plan *ret_plan,
		       const char **ret_field, struct err *e);
/* What isn't given becomes what the source has. -EINVAL. */
int model_keep_address(const json_t *inventory, struct ip4_plan *p, struct err *e);

/* ---- addresses (target.c) ---- */
/* Parts of SCHEME://HOST[:PORT][PATH]; borrowed from the text. */
struct model_url {
	const char *host; /* without brackets */
	size_t host_len;
	uint16_t port; /* 0: not said */
	const char *path;
	bool loopback; /* the host is this one, whatever a resolver says: localhost, 127.x.x.x, [::1] */
};
/* -EINVAL unless it begins with the scheme ("https") and is plain: no credentials, nothing that two readers could
 * understand differently. */
int model_url_parse(const char *url, const char *scheme, struct model_url *ret, struct err *e);
/* One plain address, "name@host". */
bool model_is_mail_address(const char *s, size_t len);
/* May notices go there? https, or http on this host alone; or mailto: and addresses with commas between. */
int model_check_target(const char *target, struct err *e);
bool model_target_is_mail(const char *target);
