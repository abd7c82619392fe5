/*
 * Server-sent events. Events of the table have ids and are repeated after a reconnect (Last-Event-ID, or
 * ?since=N); progress ticks have none. A stream with nothing to say is suspended and costs a socket;
 * api_wake() resumes all of them.
 */
#include <poll.h>
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

#define STREAM_PING_SECONDS 15.0
#define STREAM_BATCH        50u
#define STREAM_BUFFER       (1u << 20) /* a client this far behind waits for the table instead of memory */

struct api_stream {
	struct api *api;
	struct api_stream *next, **prev;
	struct MHD_Connection *conn;
	bool suspended;
	uint64_t generation, cursor, tick;
	double pinged;
	char who[ID_MAX];
	json_t *scope;  /* owned; tags that what is told must have */
	struct str out; /* not yet taken by the connection, from `at` */
	size_t at;
};

/* A thing that is gone is told by its id, which says nothing about it. */
static bool is_in_scope(const struct api_stream *st, const char *type, const char *data)
{
	_cleanup_json_ json_t *o = NULL;
	char noun[32];

	if (!st->scope)
		return true;
	snprintf(noun, sizeof(noun), "%.*s", (int)MIN(strcspn(type, "."), 31u), type);
	for (size_t i = 0; model_nouns[i]; i++)
		if (strcmp(model_nouns[i]->name, noun) == 0 && !api_scope_noun(model_nouns[i]))
			return false;
	o = json_loads(data, 0, NULL);
	return str_ends(type, ".deleted") || api_scope_has(st->scope, json_object_get(o, "tags"));
}

static int add_event(void *arg, uint64_t id, const char *type, const char *data)
{
	struct api_stream *st = arg;

	st->cursor = id;
	if (!is_in_scope(st, type, data))
		return 0;
	str_addf(&st->out, "id: %llu\nevent: %s\ndata: %s\n\n", (unsigned long long)id, type, data);
	return st->out.len > STREAM_BUFFER ? 1 : 0;
}

static bool job_in_scope(const struct api_stream *st, const char *id)
{
	_cleanup_(model_job_release) struct model_job job = {0};
	struct store *s = st->api->s.store;

	return !st->scope ||
	       (id && s->ops->get(s, &model_jobs, id, &job, NULL) == 0 && api_scope_has(st->scope, job.tags));
}

static void add_ticks(struct api_stream *st)
{
	const struct api_engine *en = &st->api->s.engine;
	_cleanup_json_ json_t *jobs = en->job_ticks(en->arg, &st->tick);
	json_t *job;
	size_t i;

	json_array_foreach(jobs, i, job)
	{
		_cleanup_free_ char *text = NULL;

		if (!job_in_scope(st, json_string_value(json_object_get(job, "id"))))
			continue;
		text = jsn_text(job);
		if (text)
			str_addf(&st->out, "event: job.progress\ndata: %s\n\n", text);
	}
}

/* While it is suspended nobody else looks whether the client has gone. */
static bool client_left(struct api_stream *st)
{
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(st->conn, MHD_CONNECTION_INFO_CONNECTION_FD);
	struct pollfd p = {.fd = info ? info->connect_fd : -1, .events = POLLRDHUP};

	return poll(&p, 1, 0) > 0 && p.revents & (POLLRDHUP | POLLHUP | POLLERR);
}

/* Refills the buffer; false when the stream is to end. */
static bool stream_fill(struct api_stream *st)
{
	struct store *s = st->api->s.store;
	double now = id_now_mono();
	uint64_t before;

	str_release(&st->out);
	st->at = 0;
	if (client_left(st))
		return false;
	/* A batch may have nothing that the token may see. */
	do {
		before = st->cursor;
		if (s->ops->events(s, st->cursor, STREAM_BATCH, add_event, st, NULL) < 0)
			return false;
	} while (!st->out.len && st->cursor != before);
	if (!st->out.len)
		add_ticks(st);
	if (now - st->pinged > STREAM_PING_SECONDS) {
		st->pinged = now;
		if (!api_token_alive(st->api, st->who))
			return false;
		if (!st->out.len)
			str_add(&st->out, ": ping\n\n");
	}
	return str_ok(&st->out);
}

static ssize_t stream_read(void *cls, uint64_t pos, char *buf, size_t max)
{
	struct api_stream *st = cls;
	struct api *a = st->api;
	uint64_t generation;
	size_t n;

	for (;;) {
		n = MIN(max, st->out.len - st->at);
		if (n) {
			memcpy(buf, st->out.s + st->at, n);
			st->at += n;
			return (ssize_t)n;
		}
		pthread_mutex_lock(&a->stream_lock);
		generation = a->generation;
		pthread_mutex_unlock(&a->stream_lock);
		if (!stream_fill(st))
			return MHD_CONTENT_READER_END_OF_STREAM;
		if (st->out.len)
			continue;
		pthread_mutex_lock(&a->stream_lock);
		if (a->stopping) {
			pthread_mutex_unlock(&a->stream_lock);
			return MHD_CONTENT_READER_END_OF_STREAM;
		}
		if (a->generation == generation) {
			st->suspended = true;
			MHD_suspend_connection(st->conn);
			pthread_mutex_unlock(&a->stream_lock);
			return 0;
		}
		pthread_mutex_unlock(&a->stream_lock);
	}
}

static void stream_free(void *cls)
{
	struct api_stream *st = cls;
	struct api *a = st->api;

	pthread_mutex_lock(&a->stream_lock);
	if (st->prev) {
		*st->prev = st->next;
		if (st->next)
			st->next->prev = st->prev;
		a->nstreams--;
	}
	pthread_mutex_unlock(&a->stream_lock);
	str_release(&st->out);
	json_decref(st->scope);
	free(st);
}

void api_wake(struct api *a)
{
	pthread_mutex_lock(&a->stream_lock);
	a->generation++;
	for (struct api_stream *st = a->streams; st; st = st->next) {
		if (!st->suspended)
			continue;
		st->suspended = false;
		MHD_resume_connection(st->conn);
	}
	pthread_mutex_unlock(&a->stream_lock);
}

void api_streams_end(struct api *a)
{
	pthread_mutex_lock(&a->stream_lock);
	a->stopping = true;
	pthread_mutex_unlock(&a->stream_lock);
	api_wake(a);
}

/* Where the stream begins: behind what the client has seen, or now. */
static int stream_start(struct api_request *q, struct api_stream *st)
{
	const char *seen = MHD_lookup_connection_value(q->conn, MHD_HEADER_KIND, "Last-Event-ID");
	struct store *s = q->api->s.store;
	uint64_t first = 0, last = 0;
	struct err e = {0};

	if (s->ops->event_range(s, &first, &last, &e) < 0)
		return api_fail(q, &e);
	if (!seen || !*seen)
		seen = api_query(q, "since");
	if (!seen) {
		st->cursor = last;
		return 0;
	}
	if (str_u64(seen, 0, INT64_MAX, &st->cursor) < 0)
		return api_refuse(q, 400, "bad_parameter", "since", "'%.32s' is not the id of an event", seen);
	/* What was dropped, or comes from another database: the client has to read everything anew. */
	if (st->cursor > last || (st->cursor && st->cursor + 1 < first)) {
		str_addf(&st->out, "id: %llu\nevent: reset\ndata: {}\n\n", (unsigned long long)last);
		st->cursor = last;
	}
	return 0;
}

static bool stream_link(struct api *a, struct api_stream *st)
{
	bool room;

	pthread_mutex_lock(&a->stream_lock);
	room = a->nstreams < API_STREAMS_MAX && !a->stopping;
	if (room) {
		st->next = a->streams;
		st->prev = &a->streams;
		if (st->next)
			st->next->prev = &st->next;
		a->streams = st;
		a->nstreams++;
	}
	pthread_mutex_unlock(&a->stream_lock);
	return room;
}

int api_get_events(struct api_request *q)
{
	struct api_stream *st = calloc(1, sizeof(*st));

	if (!st)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	st->api = q->api;
	st->conn = q->conn;
	st->pinged = id_now_mono();
	snprintf(st->who, sizeof(st->who), "%s", q->who);
	st->scope = json_incref(q->scope);
	str_add(&st->out, "retry: 2000\n\n");
	if (stream_start(q, st) < 0) {
		stream_free(st);
		return -1;
	}
	if (!stream_link(q->api, st)) {
		stream_free(st);
		api_wake(q->api); /* those whose client has gone end now, and the next request finds room */
		return api_refuse(q, 503, "too_many_streams", NULL, "%u event streams are open; close one",
				  API_STREAMS_MAX);
	}
	q->response = MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 16 << 10, stream_read, st, stream_free);
	if (!q->response) {
		stream_free(st);
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	}
	MHD_add_response_header(q->response, "Content-Type", "text/event-stream");
	MHD_add_response_header(q->response, "Cache-Control", "no-store");
	q->status = 200;
	return 0;
}
