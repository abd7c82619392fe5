/* Inside of the API: a request on its way through https.c, the handlers, and what they share. */
#pragma once

#include <gnutls/abstract.h>
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#include "api/api.h"
#include "base/id.h"
#include "base/jsn.h"
#include "base/str.h"
#include "store/store.h"

#define API_BODY_MAX       (1u << 20)
#define API_BODY_MAX_AGENT (4u << 20)
#define API_BODY_MARKS     50000u      /* { [ , : of a body: what it becomes in memory is many times its text */
#define API_HELD_PUBLIC    (16u << 20) /* bytes of all bodies under way, for those who proved nothing */
#define API_HELD           (128u << 20)
#define API_PAGE           100u /* rows of a list by default */
#define API_PAGE_MAX       500u
#define API_STREAMS_MAX    64u
#define API_CONNECTIONS    16384u /* or as many as this process may have files; agents keep theirs */
#define API_IDLE_SECONDS   30u
#define API_QUERY_MAX      26u
/* Of those who proved nothing (yet), half of the connections at most: visitors.c */
#define API_STRANGERS_PER_ADDRESS 256u /* many sources may stand behind one address */

#define API_SUBSCRIPTIONS_MAX 50u

/* API_SIGNED: by an access key; the request says itself whose (rpc.c). */
enum api_access { API_PUBLIC, API_SIGNED, API_AGENT, API_VIEWER, API_OPERATOR, API_ADMIN };
enum api_body { API_NO_BODY, API_JSON, API_JSON_BIG, API_FORM };

/* How a token that is limited to tags may use the route (scope.c). */
enum api_scope {
	API_SCOPE_NONE,    /* not at all */
	API_SCOPE_ROW,     /* {id} must have the tags */
	API_SCOPE_HANDLER, /* the handler sees to it; lists do by themselves */
	API_SCOPE_SHARED,  /* it is nobody's */
};

struct api_request;
/* A parameter of the query; borrowed. */
struct api_pair {
	const char *name, *value;
};
typedef int (*api_handler_fn)(struct api_request *q);

struct api_route {
	const char *method, *pattern; /* "/v1/jobs/{id}/start" */
	enum api_access access;
	enum api_body body;
	const char *noun;  /* of {id} */
	const char *query; /* names of the parameters it takes, space separated; NULL: none */
	const char *name;  /* operationId */
	api_handler_fn handler;
	enum api_scope scope;
};
extern const struct api_route api_routes[]; /* ends with a NULL method */

/* NULL when none fits; then *ret_allow has the methods of the path, "" for an unknown path. */
const struct api_route *api_match(const char *method, const char *path, char id[ID_MAX], struct str *ret_allow);

/* Wrong secrets per address (limit.c): a bucket that refills in a minute. */
struct api_limit;
struct api_limit *api_limit_new(unsigned per_minute);
void api_limit_free(struct api_limit *l);
bool api_limit_exceeded(struct api_limit *l, const char *address);
void api_limit_count(struct api_limit *l, const char *address);

/* identity.c: what GnuTLS asks at a handshake. */
int api_identity_choose(gnutls_session_t session, const struct gnutls_cert_retr_st *info, gnutls_pcert_st **ret_chain,
			unsigned *ret_n, gnutls_ocsp_data_st **ret_ocsp, unsigned *ret_nocsp, gnutls_privkey_t *ret_key,
			unsigned *ret_flags);
void api_identity_forget(void);

/* What was answered, and how fast (metrics.c). */
#define API_SECONDS 11u
struct api_counts {
	atomic_uint_fast64_t answers[6];          /* by the first digit of the status */
	atomic_uint_fast64_t within[API_SECONDS]; /* of a duration, each answer in the first that fits */
	atomic_uint_fast64_t microseconds;        /* all together */
};

/* visitors.c: MHD's calls, and who turned out to be known. */
struct api_visitors;
struct api_visitors *api_visitors_new(unsigned limit);
void api_visitors_free(struct api_visitors *v);
enum MHD_Result api_visitor_admit(void *cls, const struct sockaddr *sa, socklen_t len);
void api_visitor_notify(void *cls, struct MHD_Connection *conn, void **context,
			enum MHD_ConnectionNotificationCode code);
void api_visitor_known(struct api_request *q);

struct api_stream;

struct api {
	struct api_settings s;
	struct MHD_Daemon *daemon;
	struct api_limit *limit;
	struct api_visitors *visitors;
	uint16_t port;
	pthread_mutex_t stream_lock; /* taken last: no other lock is taken while it is held */
	struct api_stream *streams;
	size_t nstreams;
	uint64_t generation; /* of wakes */
	atomic_size_t held;  /* bytes of bodies under way */
	struct api_counts counts;
	bool stopping;
};

struct api_request {
	struct api *api;
	struct MHD_Connection *conn;
	const struct api_route *route;
	char id[ID_MAX];
	char address[64];
	char *path;
	const char *method;
	double started; /* monotonic */
	struct str raw;
	size_t held;       /* our part of api->held */
	uint64_t received; /* bytes of the body, kept or dropped */
	bool hang_up;

	/* for handlers */
	char who[ID_MAX]; /* id of the token or source, "" */
	char who_name[MODEL_NAME_MAX + 1];
	int role;                   /* enum model_role, of a token */
	json_t *scope;              /* tags that the token is limited to; NULL: none */
	struct model_source source; /* of an agent: model_source_keys */
	struct api_pair query[API_QUERY_MAX];
	size_t nquery;
	json_t *body;
	struct api_fault fault;
	struct api_fault onto; /* why a new job can't go onto its instance (onto.c) */
	/* the answer */
	int status;
	json_t *json;
	struct MHD_Response *response; /* instead of json */
};

/* Answers; each returns what the handler returns. json is taken. */
int api_answer(struct api_request *q, int status, json_t *json);
int api_refuse(struct api_request *q, int status, const char *code, const char *field, const char *fmt, ...)
    __attribute__((format(printf, 5, 6)));
int api_fail(struct api_request *q, const struct err *e);
/* 204. */
int api_done(struct api_request *q);
int api_answer_row(struct api_request *q, int status, const struct model_noun *n, const void *row);
/* A text, and where it ends in what is still being said. */
int api_answer_log(struct api_request *q, const struct str *text, uint64_t end);
int api_answer_fd(struct api_request *q, int fd, const char *type, const char *file_name);
/* The picture at `path` (NULL: there is none); refuses with "NOUN 'ID' has no NONE". */
int api_answer_picture(struct api_request *q, const char *path, const char *noun, const char *id, const char *none);
/* Reads q->body by a table; refuses with the field. */
int api_read(struct api_request *q, const struct model_input *table, const json_t *body, bool keep, void *out);
/* The same of a member `part` of it, for the field's name. */
int api_read_part(struct api_request *q, const char *part, const struct model_input *table, const json_t *body,
		  bool keep, void *out);
/* Of a request that says nothing. */
int api_read_nothing(struct api_request *q);
/* GET of one row by q->id into `row`. */
int api_row(struct api_request *q, const struct model_noun *n, void *row);
/* A page of a noun by the request's limit, offset and the filters of its route; hook may change a row before.
 */
int api_list(struct api_request *q, const struct model_noun *n, void (*hook)(struct api_request *q, void *row));
struct store_filter;
/* Of those that pass the filter, too. */
int api_list_of(struct api_request *q, const struct model_noun *n, const struct store_filter *only,
		void (*hook)(struct api_request *q, void *row));
/* begin .. put + announce .. commit in one: for changes of one row. */
int api_save(struct api_request *q, const struct model_noun *n, const char *verb, const void *row);
/* PATCH of a row whose name, description and tags are all that people may change. */
int api_rename(struct api_request *q, const struct model_noun *n, void *row);
/* After a refusal: says in people's words that another thing has the name, if it was that. Returns -1. */
int api_name_taken(struct api_request *q, const struct model_noun *n, const char *name);
const char *api_query(struct api_request *q, const char *name);
/* A number among the parameters; *ret stays when it isn't there. */
int api_query_number(struct api_request *q, const char *name, uint64_t min, uint64_t max, uint64_t *ret);

/* templates.c: what the job's request becomes with the template that it names: a new reference, or NULL with the
 * fault. */
json_t *api_template_apply(struct api_request *q, const json_t *body);
/* jobs.c: are these parameters ones that a job could have? `field`: the member they are in. */
int api_check_parameters(struct api_request *q, const json_t *given, const char *field);

/* onto.c: what hinders a job that goes onto an instance, asked of the hypervisor outside of a transaction; kept in
 * q->onto. */
void api_onto_look(struct api_request *q, const struct model_job_request *in);
/* The job's destination, inside the transaction. */
int api_onto_fill(struct api_request *q, const struct model_job_request *in, struct model_job *job);
/* Do its parameters go with it? */
int api_onto_keeps(struct api_request *q, const struct model_job *job);
/* Whoever is limited to tags has to see the instance as well, where there is one. */
int api_onto_seen(struct api_request *q, const struct model_job *job);

/* metrics.c: one more answer. */
void api_count(struct api *a, int status, double seconds);
int api_get_metrics(struct api_request *q);

/* audit.c: the request is over. */
void api_audit(struct api_request *q);
int api_list_audit(struct api_request *q);

/* auth.c */
int api_authenticate(struct api_request *q);
/* May the role do what the route is for? */
int api_allowed(struct api_request *q);
bool api_token_split(const char *text, const char *noun, char id[ID_MAX], const char **ret_secret);
/* Is the token still there? For streams that live long. */
bool api_token_alive(struct api *a, const char *id);

/* rpc.c */
int api_rpc(struct api_request *q);
/* The fault of a request to it as its callers expect that; false when out of memory. */
bool api_rpc_refused(struct api_request *q);
/* The secret that belongs to an access key, as text of 64 characters and a NUL. */
int api_access_secret(const struct api *a, const char *key, char ret[STORE_SECRET_HEX]);

/* scope.c */
bool api_scope_has(const json_t *scope, const json_t *tags);
/* Can things of that noun have tags? */
bool api_scope_noun(const struct model_noun *n);
/* May the request's token see something with these tags? */
bool api_scope_sees(const struct api_request *q, const json_t *tags);
/* Adds what narrows a listing of such things to it; how many there are then. */
size_t api_scope_filters(const struct api_request *q, struct store_filter *f, size_t n, size_t max);
/* Before the handler: may the token use the route, and see {id}? */
int api_scope_check(struct api_request *q);
/* The same of a thing that the request names. */
int api_scope_row(struct api_request *q, const struct model_noun *n, const char *id);
/* Those of a new thing with the token's own: a new reference; NULL with the fault, or when there are none at all. */
json_t *api_scope_tags(struct api_request *q, json_t *tags);
/* May these (NULL: as they are) be the tags of a thing that the token sees? */
int api_scope_keeps(struct api_request *q, const json_t *tags);

/* stream.c */
int api_get_events(struct api_request *q);
void api_streams_end(struct api *a);

/* handlers, by noun */
int api_get_version(struct api_request *q);
int api_get_openapi(struct api_request *q);
int api_get_agent(struct api_request *q);
int api_post_code(struct api_request *q);
int api_list_codes(struct api_request *q);
int api_get_code(struct api_request *q);
int api_revoke_code(struct api_request *q);
int api_delete_code(struct api_request *q);
int api_post_token(struct api_request *q);
int api_list_tokens(struct api_request *q);
int api_delete_token(struct api_request *q);
int api_list_holdings(struct api_request *q);
int api_sweep_holdings(struct api_request *q);
void api_metrics_holdings(struct api_request *q, struct str *b);
int api_list_regions(struct api_request *q);
int api_get_region(struct api_request *q);
int api_patch_region(struct api_request *q);
int api_post_region(struct api_request *q);
int api_delete_region(struct api_request *q);
int api_post_template(struct api_request *q);
int api_list_templates(struct api_request *q);
int api_get_template(struct api_request *q);
int api_patch_template(struct api_request *q);
int api_delete_template(struct api_request *q);
int api_post_workgroup(struct api_request *q);
int api_list_workgroups(struct api_request *q);
int api_get_workgroup(struct api_request *q);
int api_patch_workgroup(struct api_request *q);
int api_delete_workgroup(struct api_request *q);
int api_start_workgroup(struct api_request *q);
int api_stop_workgroup(struct api_request *q);
int api_post_subscription(struct api_request *q);
int api_list_subscriptions(struct api_request *q);
int api_get_subscription(struct api_request *q);
int api_patch_subscription(struct api_request *q);
int api_delete_subscription(struct api_request *q);
int api_test_subscription(struct api_request *q);
int api_list_notices(struct api_request *q);
int api_get_notice(struct api_request *q);
int api_list_sources(struct api_request *q);
int api_get_source(struct api_request *q);
int api_patch_source(struct api_request *q);
int api_delete_source(struct api_request *q);
int api_post_job(struct api_request *q);
int api_list_jobs(struct api_request *q);
int api_get_job(struct api_request *q);
int api_patch_job(struct api_request *q);
int api_delete_job(struct api_request *q);
int api_start_job(struct api_request *q);
int api_run_job(struct api_request *q);
int api_get_test_screenshot(struct api_request *q);
/* jobtest.c: what the job's next start does; inside the transaction that has read it. */
int api_set_testing(struct api_request *q, struct model_job *job, enum model_testing testing);
enum model_testing api_testing_of(int execution);
int api_stop_job(struct api_request *q);
int api_cut_over_job(struct api_request *q);
int api_list_runs(struct api_request *q);
int api_rollback_job(struct api_request *q);
int api_confirm_job(struct api_request *q);
int api_get_job_screenshot(struct api_request *q);
int api_rollback_instance(struct api_request *q);
int api_confirm_instance(struct api_request *q);
int api_list_images(struct api_request *q);
int api_get_image(struct api_request *q);
int api_patch_image(struct api_request *q);
int api_delete_image(struct api_request *q);
int api_get_report(struct api_request *q);
int api_get_screenshot(struct api_request *q);
int api_boot_image(struct api_request *q);
int api_check_image(struct api_request *q);
int api_get_check(struct api_request *q);
int api_get_check_page(struct api_request *q);
int api_post_export(struct api_request *q);
int api_list_exports(struct api_request *q);
int api_get_export(struct api_request *q);
int api_delete_export(struct api_request *q);
int api_get_export_data(struct api_request *q);
int api_post_instance(struct api_request *q);
int api_import_instance(struct api_request *q);
int api_list_instances(struct api_request *q);
int api_get_instance(struct api_request *q);
int api_patch_instance(struct api_request *q);
int api_delete_instance(struct api_request *q);
int api_list_region_instances(struct api_request *q);
int api_get_instance_screenshot(struct api_request *q);
int api_get_instance_serial(struct api_request *q);
int api_start_instance(struct api_request *q);
int api_stop_instance(struct api_request *q);
int api_restart_instance(struct api_request *q);
int api_post_snapshot(struct api_request *q);
int api_list_snapshots(struct api_request *q);
int api_get_snapshot(struct api_request *q);
int api_delete_snapshot(struct api_request *q);
int api_revert_snapshot(struct api_request *q);
int api_agent_enroll(struct api_request *q);
int api_agent_sync(struct api_request *q);
int api_list_logs(struct api_request *q);
int api_get_log(struct api_request *q);
int api_get_bundle(struct api_request *q);
