#include <arpa/inet.h>
#include <errno.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>

#include "api/api_int.h"
#include "base/util.h"
#include "smc/smc.h"

/* A refused request's body up to this size is read and dropped, so that the client gets to see the answer;
 * more of one that proved who it is. */
#define DISCARD_MAX       (256u << 10)
#define DISCARD_MAX_KNOWN (8u << 20)

static enum MHD_Result queue_json(struct api_request *q)
{
	char *text = q->json ? jsn_text(q->json) : NULL;
	struct MHD_Response *r;
	enum MHD_Result res;

	if (text)
		r = MHD_create_response_from_buffer(strlen(text), text, MHD_RESPMEM_MUST_FREE);
	else
		r = MHD_create_response_from_buffer(0, (void *)"", MHD_RESPMEM_PERSISTENT);
	if (!r) {
		free(text);
		return MHD_NO;
	}
	if (text)
		MHD_add_response_header(r, "Content-Type", "application/json");
	if (q->status == 401)
		MHD_add_response_header(r, "WWW-Authenticate", "Bearer");
	if (q->status == 429)
		MHD_add_response_header(r, "Retry-After", "60");
	if (q->status == 405)
		MHD_add_response_header(r, "Allow", q->fault.field);
	MHD_add_response_header(r, "Cache-Control", "no-store");
	MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
	res = MHD_queue_response(q->conn, (unsigned)q->status, r);
	MHD_destroy_response(r);
	return res;
}

static void make_fault_json(struct api_request *q)
{
	const struct api_fault *f = &q->fault;

	json_decref(q->json);
	q->status = f->status;
	/* The field of a 405 is its Allow header. */
	q->json = json_pack("{s:{s:s, s:s, s:s*}}", "error", "code", f->code, "message", f->message, "field",
			    f->field[0] && f->status != 405 ? f->field : NULL);
}

static enum MHD_Result respond(struct api_request *q)
{
	enum MHD_Result res;

	api_count(q->api, q->status, id_now_mono() - q->started);
	api_audit(q);
	if (q->fault.status && q->route && q->route->access == API_SIGNED)
		api_rpc_refused(q);
	if (!q->response)
		return queue_json(q);
	res = MHD_queue_response(q->conn, (unsigned)q->status, q->response);
	MHD_destroy_response(q->response);
	q->response = NULL;
	return res;
}

static void client_address(struct MHD_Connection *conn, char *buf, size_t size)
{
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(conn, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
	const struct sockaddr *sa = info ? info->client_addr : NULL;

	snprintf(buf, size, "unknown");
	if (sa && sa->sa_family == AF_INET)
		inet_ntop(AF_INET, &((const struct sockaddr_in *)sa)->sin_addr, buf, (socklen_t)size);
	else if (sa && sa->sa_family == AF_INET6)
		inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)sa)->sin6_addr, buf, (socklen_t)size);
}

static size_t body_limit(const struct api_request *q)
{
	if (!q->route)
		return 0;
	switch (q->route->body) {
	case API_JSON_BIG:
		return API_BODY_MAX_AGENT;
	case API_JSON:
		return API_BODY_MAX;
	case API_FORM:
		return SMC_BODY_MAX;
	case API_NO_BODY:
		break;
	}
	return 0;
}

static size_t discard_limit(const struct api_request *q)
{
	return *q->who ? DISCARD_MAX_KNOWN : DISCARD_MAX;
}

static void refuse_size(struct api_request *q)
{
	if (q->fault.status)
		return;
	if (body_limit(q))
		api_refuse(q, 413, "too_big", NULL, "the body may have at most %zu bytes", body_limit(q));
	else
		api_refuse(q, 400, "unexpected_body", NULL, "this request takes no body");
}

static void refuse_unknown(struct api_request *q, const struct str *allow)
{
	if (allow->len)
		api_refuse(q, 405, "method_not_allowed", allow->s, "'%s' can't be done here, only %s", q->method,
			   allow->s);
	else
		api_refuse(q, 404, "not_found", NULL, "there is nothing at '%.200s'", q->path);
}

static bool is_utf8(const char *s)
{
	_cleanup_json_ json_t *text = json_string(s);

	return text;
}

static enum MHD_Result check_parameter(void *cls, enum MHD_ValueKind kind, const char *key, size_t key_size,
				       const char *value, size_t value_size)
{
	struct api_request *q = cls;
	const char *list = q->route->query ? q->route->query : "";
	size_t n = strlen(key);
	bool any = strcmp(list, "*") == 0;

	if ((value ? strlen(value) != value_size : !any) || n != key_size) {
		api_refuse(q, 400, "bad_parameter", key, "query parameter '%.64s' %s", key,
			   value ? "contains a NUL character" : "has no value");
		return MHD_NO;
	}
	if (any)
		return MHD_YES;
	if (!is_utf8(value)) {
		api_refuse(q, 400, "bad_parameter", key, "the value of '%.64s' is not UTF-8", key);
		return MHD_NO;
	}
	for (const char *p = list; *p; p += strcspn(p, " "), p += strspn(p, " ")) {
		if (strcspn(p, " ") != n || strncmp(p, key, n) != 0)
			continue;
		if (api_query(q, key) && strcmp(key, "tag") != 0)
			api_refuse(q, 400, "bad_parameter", key, "'%s' is given twice", key);
		else if (q->nquery == API_QUERY_MAX)
			api_refuse(q, 400, "bad_parameter", key, "these are too many query parameters");
		else
			q->query[q->nquery++] = (struct api_pair){key, value};
		return q->fault.status ? MHD_NO : MHD_YES;
	}
	api_refuse(q, 400, "unknown_parameter", key, "query parameter '%.64s' is not known here", key);
	return MHD_NO;
}

/* Everything that is known before the body: route, who, how long. Leaves the fault in q. */
static void check_head(struct api_request *q)
{
	_cleanup_(str_release) struct str allow = {0};
	const char *length = MHD_lookup_connection_value(q->conn, MHD_HEADER_KIND, "Content-Length");
	uint64_t n = 0;

	q->route = api_match(q->method, q->path, q->id, &allow);
	if (!q->route)
		refuse_unknown(q, &allow);
	else if ((q->route->handler == api_agent_enroll || q->route->access == API_SIGNED) &&
		 api_limit_exceeded(q->api->limit, q->address))
		api_refuse(q, 429, "too_many_failures", NULL,
			   "too many wrong codes or signatures from this address; wait a minute");
	else if (api_authenticate(q) == 0) {
		if (q->route->access != API_PUBLIC && q->route->access != API_SIGNED)
			api_visitor_known(q);
		MHD_get_connection_values_n(q->conn, MHD_GET_ARGUMENT_KIND, check_parameter, q);
	}
	if (length && (str_u64(length, 0, UINT64_MAX, &n) < 0 || n > body_limit(q)))
		refuse_size(q);
	/* Too much even to throw away: answered at once, which closes the connection. */
	q->hang_up = q->fault.status && n > discard_limit(q);
}

static struct api_request *request_new(struct api *a, struct MHD_Connection *conn, const char *url, const char *method)
{
	struct api_request *q = calloc(1, sizeof(*q));

	if (!q)
		return NULL;
	q->api = a;
	q->conn = conn;
	q->path = strdup(url);
	q->started = id_now_mono();
	/* A method of ours lives as long as the request; an unknown one is only quoted. */
	static const char *const known[] = {"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"};
	q->method = "?";
	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (strcmp(method, known[i]) == 0)
			q->method = known[i];
	client_address(conn, q->address, sizeof(q->address));
	if (!q->path) {
		free(q);
		return NULL;
	}
	return q;
}

static void release_body(struct api_request *q)
{
	if (q->raw.s)
		explicit_bzero(q->raw.s, q->raw.len); /* it may have held a secret */
	str_release(&q->raw);
	atomic_fetch_sub(&q->api->held, q->held);
	q->held = 0;
}

static void request_free(struct api_request *q)
{
	if (!q)
		return;
	release_body(q);
	model_source_release(&q->source);
	json_decref(q->body);
	json_decref(q->scope);
	json_decref(q->json);
	if (q->response)
		MHD_destroy_response(q->response);
	free(q->path);
	free(q);
}

static void request_completed(void *cls, struct MHD_Connection *conn, void **con_cls,
			      enum MHD_RequestTerminationCode toe)
{
	request_free(*con_cls);
	*con_cls = NULL;
}

/* All bodies together have a bound, too, and strangers can't use up what the known need. */
static bool hold(struct api_request *q, size_t n)
{
	size_t limit = *q->who ? API_HELD : API_HELD_PUBLIC;

	if (atomic_fetch_add(&q->api->held, n) + n > limit) {
		atomic_fetch_sub(&q->api->held, n);
		return false;
	}
	q->held += n;
	return true;
}

/* MHD_NO cuts the connection: for clients that send more, or slower, than anything honest would. */
static enum MHD_Result take_body(struct api_request *q, const char *data, size_t *size)
{
	unsigned limit = q->api->s.request_seconds ? q->api->s.request_seconds : 60;

	if (id_now_mono() - q->started > limit)
		return MHD_NO;
	q->received += *size;
	if (q->received > body_limit(q)) {
		refuse_size(q);
		release_body(q);
	} else if (!q->fault.status && !hold(q, *size)) {
		api_refuse(q, 503, "busy", NULL, "too many big requests at once; try again");
		release_body(q);
	}
	if (q->fault.status && q->received > discard_limit(q))
		return MHD_NO;
	if (!q->fault.status)
		str_add_mem(&q->raw, data, *size);
	*size = 0;
	return str_ok(&q->raw) ? MHD_YES : MHD_NO;
}

/* Counts what makes values, without parsing: a MiB of "[[],[],..." would become a hundred in memory. */
static bool too_complex(const char *s, size_t n)
{
	bool quoted = false;
	size_t marks = 0;

	for (size_t i = 0; i < n; i++) {
		if (quoted && s[i] == '\\')
			i++;
		else if (s[i] == '"')
			quoted = !quoted;
		else if (!quoted && (s[i] == '{' || s[i] == '[' || s[i] == ',' || s[i] == ':') &&
			 ++marks > API_BODY_MARKS)
			return true;
	}
	return false;
}

static int parse_body(struct api_request *q)
{
	struct err e = {0};

	if (q->route->body == API_NO_BODY || q->route->body == API_FORM)
		return 0;
	if (!q->raw.len) {
		q->body = json_object(); /* a body whose members are all optional may be missing */
		return q->body ? 0 : api_refuse(q, 500, "internal", NULL, "out of memory");
	}
	if (too_complex(q->raw.s, q->raw.len))
		return api_refuse(q, 400, "too_complex", NULL,
				  "the body has too many members; at most %u of { [ , :", API_BODY_MARKS);
	if (jsn_parse(q->raw.s, q->raw.len, API_BODY_MAX_AGENT, &q->body, &e) < 0)
		return api_refuse(q, 400, "bad_json", NULL, "%s", e.msg);
	return 0;
}

static void run_handler(struct api_request *q)
{
	if (q->fault.status)
		return;
	if (parse_body(q) < 0)
		return;
	if (api_scope_check(q) == 0 && q->route->handler(q) < 0 && !q->fault.status)
		api_refuse(q, 500, "internal", NULL, "the request failed for no known reason");
	/* Heartbeats are many and say little; they wake streams themselves when they have news. */
	if (strcmp(q->method, "GET") != 0 && q->route->handler != api_agent_sync)
		api_wake(q->api);
}

static enum MHD_Result access_handler(void *cls, struct MHD_Connection *conn, const char *url, const char *method,
				      const char *version, const char *data, size_t *size, void **con_cls)
{
	struct api_request *q = *con_cls;

	if (!q) {
		q = request_new(cls, conn, url, method);
		if (!q)
			return MHD_NO;
		*con_cls = q;
		check_head(q);
		if (!q->hang_up)
			return MHD_YES;
		make_fault_json(q);
		return respond(q);
	}
	if (*size)
		return take_body(q, data, size);
	run_handler(q);
	if (q->fault.status)
		make_fault_json(q);
	return respond(q);
}

static void drop_log(void *cls, const char *fmt, va_list ap)
{
}

static int parse_address(const struct api_settings *s, struct sockaddr_storage *ss, struct err *e)
{
	struct sockaddr_in *in = (struct sockaddr_in *)ss;
	struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ss;

	memset(ss, 0, sizeof(*ss));
	if (inet_pton(AF_INET, s->address, &in->sin_addr) == 1) {
		in->sin_family = AF_INET;
		in->sin_port = htons(s->port);
		return 0;
	}
	if (inet_pton(AF_INET6, s->address, &in6->sin6_addr) == 1) {
		in6->sin6_family = AF_INET6;
		in6->sin6_port = htons(s->port);
		return 0;
	}
	return err_set(e, -EINVAL, "'%s' is not a numeric address (try 0.0.0.0 or ::)", s->address);
}

/* Some files are for other things. */
static unsigned connection_limit(void)
{
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) < 0 || files.rlim_cur < 256)
		return 64;
	return (unsigned)MIN(files.rlim_cur - 128, (rlim_t)API_CONNECTIONS);
}

static int start_daemon(struct api *a, struct err *e)
{
	unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_TLS | MHD_USE_ERROR_LOG;
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	unsigned pool = (unsigned)MAX(4, MIN(cpus * 2, 32));
	const union MHD_DaemonInfo *info;
	struct sockaddr_storage ss;
	int r = parse_address(&a->s, &ss, e);

	if (r < 0)
		return r;
	if (ss.ss_family == AF_INET6)
		flags |= MHD_USE_DUAL_STACK;
	errno = 0;
	a->daemon = MHD_start_daemon(
	    flags, a->s.port, api_visitor_admit, a, access_handler, a, MHD_OPTION_EXTERNAL_LOGGER, drop_log, NULL,
	    MHD_OPTION_SOCK_ADDR, (struct sockaddr *)&ss, MHD_OPTION_HTTPS_CERT_CALLBACK2, api_identity_choose,
	    MHD_OPTION_HTTPS_PRIORITIES, "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2", MHD_OPTION_THREAD_POOL_SIZE,
	    pool, MHD_OPTION_CONNECTION_LIMIT, connection_limit(), MHD_OPTION_CONNECTION_TIMEOUT, API_IDLE_SECONDS,
	    MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)(32 << 10), MHD_OPTION_NOTIFY_CONNECTION, api_visitor_notify, a,
	    MHD_OPTION_NOTIFY_COMPLETED, request_completed, NULL, MHD_OPTION_END);
	if (!a->daemon)
		return errno ? err_sys(e, "cannot listen on '%s' port %u", a->s.address, a->s.port)
			     : err_set(e, -EIO, "cannot start the HTTPS server on '%s' port %u: is the port taken?",
				       a->s.address, a->s.port);
	info = MHD_get_daemon_info(a->daemon, MHD_DAEMON_INFO_BIND_PORT);
	a->port = info ? info->port : a->s.port;
	return 0;
}

int api_start(const struct api_settings *s, struct api **ret, struct err *e)
{
	struct api *a = calloc(1, sizeof(*a));
	int r;

	if (!a)
		return err_nomem(e);
	a->s = *s;
	pthread_mutex_init(&a->stream_lock, NULL);
	a->limit = api_limit_new(s->failures_per_minute ? s->failures_per_minute : 10);
	a->visitors = api_visitors_new(connection_limit());
	r = a->limit && a->visitors ? api_identity(s->key_pem, s->chain_pem, e) : err_nomem(e);
	if (r == 0)
		r = start_daemon(a, e);
	if (r < 0) {
		api_stop(a);
		return r;
	}
	a->s.key_pem = a->s.chain_pem = NULL;
	*ret = a;
	return 0;
}

uint16_t api_port(const struct api *a)
{
	return a->port;
}

void api_stop(struct api *a)
{
	if (!a)
		return;
	api_streams_end(a);
	if (a->daemon)
		MHD_stop_daemon(a->daemon);
	api_identity_forget();
	api_limit_free(a->limit);
	api_visitors_free(a->visitors);
	pthread_mutex_destroy(&a->stream_lock);
	free(a);
}
