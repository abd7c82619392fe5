#include "store/postgres_int.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/util.h"

#define PG_TEXT_OID 25
/* "Replant": transactions of all centers on a database take this advisory lock first. */
#define PG_LOCK "23192481619340916"

static const struct sql_dialect pg_dialect = {'$', "json_each_text(tags::json)"};

/* ---- errors ---- */

static int code_of(const char *state)
{
	static const struct {
		const char *state;
		int code;
	} codes[] = {{"23505", -EEXIST}, {"23503", -EBUSY},  {"53100", -ENOSPC},
		     {"53200", -ENOMEM}, {"55P03", -EAGAIN}, {"57014", -EAGAIN}};

	for (size_t i = 0; state && i < ARRAY_SIZE(codes); i++)
		if (strcmp(state, codes[i].state) == 0)
			return codes[i].code;
	return -EIO;
}

/* The first line of what libpq says. */
static const char *first_line(const char *text, char *buf, size_t size)
{
	snprintf(buf, size, "%.*s", (int)strcspn(text, "\n"), text);
	str_utf8(buf);
	return buf;
}

static int pg_error(PGconn *c, const PGresult *res, struct err *e)
{
	const char *message = res ? PQresultErrorField(res, PG_DIAG_MESSAGE_PRIMARY) : NULL;
	int code = code_of(res ? PQresultErrorField(res, PG_DIAG_SQLSTATE) : NULL);
	char line[512];

	first_line(message ? message : PQerrorMessage(c), line, sizeof(line));
	if (PQstatus(c) != CONNECTION_OK)
		return err_set(e, -EIO, "the connection to the database was lost: %s", line);
	switch (code) {
	case -EEXIST:
		return err_set(e, code, "there is one already: %s", line);
	case -EBUSY:
		return err_set(e, code, "other records refer to it");
	case -ENOSPC:
		return err_set(e, code, "the disk of the database is full");
	case -EAGAIN:
		return err_set(e, code, "the database is busy for too long: %s", line);
	default:
		return err_set(e, code, "database: %s", line);
	}
}

/* ---- connections ---- */

static void ignore_notice(void *arg, const PGresult *res)
{
}

/*
 * What a session must have, whatever the database's defaults are. A center that stands still in a transaction (stopped,
 * cut off) loses it, or no other could write.
 */
static const char session[] = "SELECT set_config('synchronous_commit', 'on', false) FROM "
			      "(SELECT 1 WHERE current_setting('synchronous_commit') = 'off') AS off;"
			      "SET idle_in_transaction_session_timeout = '10s'; SET lock_timeout = '30s';"
			      "SET statement_timeout = '60s'; SET default_transaction_isolation = 'read committed'";

static int use_connection(PGconn *c, struct err *e)
{
	_cleanup_result_ PGresult *res = NULL;
	const char *encoding;
	char line[512];

	if (PQstatus(c) != CONNECTION_OK)
		return err_set(e, -EIO, "cannot reach the database: %s",
			       first_line(PQerrorMessage(c), line, sizeof(line)));
	PQsetNoticeReceiver(c, ignore_notice, NULL);
	encoding = PQparameterStatus(c, "server_encoding");
	if (!encoding || strcmp(encoding, "UTF8") != 0)
		return err_set(e, -EINVAL, "the database's encoding is '%s'; make one with the encoding UTF8",
			       encoding ? encoding : "unknown");
	res = PQexec(c, session);
	return PQresultStatus(res) == PGRES_COMMAND_OK ? 0 : pg_error(c, res, e);
}

/* The caller's conninfo overrides what stands before it. */
static PGconn *connect_to(const char *conninfo, struct err *e)
{
	static const char *const keys[] = {"fallback_application_name", "connect_timeout",
					   "keepalives_idle",           "keepalives_interval",
					   "keepalives_count",          "tcp_user_timeout",
					   "target_session_attrs",      "dbname",
					   "client_encoding",           NULL};
	const char *const values[] = {"replantd", "10", "10", "5", "3", "20000", "read-write", conninfo, "UTF8", NULL};
	PGconn *c = PQconnectdbParams(keys, values, 1);

	if (!c) {
		err_nomem(e);
		return NULL;
	}
	if (use_connection(c, e) < 0) {
		PQfinish(c);
		return NULL;
	}
	return c;
}

static bool mine(struct pg_store *s)
{
	bool is;

	pthread_mutex_lock(&s->pool_lock);
	is = s->in_transaction && pthread_equal(s->owner, pthread_self());
	pthread_mutex_unlock(&s->pool_lock);
	return is;
}

/* A place among the readers, and a connection for it if one is there. */
static PGconn *reader_take(struct pg_store *s)
{
	PGconn *c = NULL;

	pthread_mutex_lock(&s->pool_lock);
	while (!s->nidle && s->nreaders == PG_READERS)
		pthread_cond_wait(&s->pool_free, &s->pool_lock);
	if (s->nidle)
		c = s->idle[--s->nidle];
	else
		s->nreaders++;
	pthread_mutex_unlock(&s->pool_lock);
	return c;
}

static void reader_give(struct pg_store *s, PGconn *c)
{
	if (c && PQstatus(c) != CONNECTION_OK) {
		PQfinish(c);
		c = NULL;
	}
	pthread_mutex_lock(&s->pool_lock);
	if (c)
		s->idle[s->nidle++] = c;
	else
		s->nreaders--;
	pthread_cond_signal(&s->pool_free);
	pthread_mutex_unlock(&s->pool_lock);
}

/* ---- statements ---- */

int pg_run(PGconn *c, const struct pg_query *q, PGresult **ret, struct err *e)
{
	_cleanup_result_ PGresult *res = NULL;
	Oid types[PG_VALUES_MAX];

	must(q->n <= PG_VALUES_MAX);
	for (int i = 0; i < q->n; i++)
		types[i] = PG_TEXT_OID;
	res = PQexecParams(c, q->sql, q->n, q->text ? types : NULL, q->values, NULL, NULL, 0);
	if (PQresultStatus(res) != PGRES_COMMAND_OK && PQresultStatus(res) != PGRES_TUPLES_OK)
		return pg_error(c, res, e);
	if (ret)
		*ret = take_ptr(&res);
	return 0;
}

/* A few words without parameters; `tag` is what the server has to call them. */
static int say(PGconn *c, const char *sql, const char *tag, struct err *e)
{
	_cleanup_result_ PGresult *res = PQexec(c, sql);

	if (PQresultStatus(res) != PGRES_COMMAND_OK && PQresultStatus(res) != PGRES_TUPLES_OK)
		return pg_error(c, res, e);
	/* The COMMIT of a transaction in which something failed is called ROLLBACK. */
	if (tag && strcmp(PQcmdStatus(res), tag) != 0)
		return err_set(e, -EIO, "database: the transaction had failed");
	return 0;
}

int pg_read(struct pg_store *s, const struct pg_query *q, PGresult **ret, struct err *e)
{
	PGconn *c;
	int r = -EIO;

	if (mine(s))
		return pg_run(s->writer, q, ret, e);
	c = reader_take(s);
	/* A connection that was left alone may have ended meanwhile. */
	if (c)
		r = pg_run(c, q, ret, e);
	if (!c || PQstatus(c) != CONNECTION_OK) {
		PQfinish(c);
		c = connect_to(s->conninfo, e);
		r = c ? pg_run(c, q, ret, e) : -EIO;
	}
	reader_give(s, c);
	return r;
}

static void set_transaction(struct pg_store *s, bool is)
{
	pthread_mutex_lock(&s->pool_lock);
	s->in_transaction = is;
	s->owner = pthread_self();
	pthread_mutex_unlock(&s->pool_lock);
}

static int begin_once(struct pg_store *s, struct err *e)
{
	int r;

	if (!s->writer)
		s->writer = connect_to(s->conninfo, e);
	if (!s->writer)
		return -EIO;
	r = say(s->writer, "BEGIN; SELECT pg_advisory_xact_lock(" PG_LOCK ")", NULL, e);
	if (r == 0)
		r = pg_check_fence(s, e);
	if (r == 0)
		return 0;
	if (PQstatus(s->writer) != CONNECTION_OK || say(s->writer, "ROLLBACK", NULL, NULL) < 0) {
		PQfinish(s->writer);
		s->writer = NULL;
	}
	return r;
}

static int pq_begin(struct store *base, struct err *e)
{
	struct pg_store *s = pg_own(base);
	bool had;
	int r;

	must(!mine(s));
	pthread_mutex_lock(&s->write_lock);
	had = s->writer;
	r = begin_once(s, e);
	/* The server may have been started again since the last one. */
	if (r < 0 && had && !s->writer)
		r = begin_once(s, e);
	if (r < 0) {
		pthread_mutex_unlock(&s->write_lock);
		return r;
	}
	set_transaction(s, true);
	return 0;
}

static void end(struct pg_store *s)
{
	set_transaction(s, false);
	pthread_mutex_unlock(&s->write_lock);
}

static void pq_rollback(struct store *base)
{
	struct pg_store *s = pg_own(base);

	if (PQstatus(s->writer) != CONNECTION_OK || say(s->writer, "ROLLBACK", NULL, NULL) < 0) {
		PQfinish(s->writer);
		s->writer = NULL;
	}
	end(s);
}

static int pq_commit(struct store *base, struct err *e)
{
	struct pg_store *s = pg_own(base);
	int r = say(s->writer, "COMMIT", "COMMIT", e);

	if (r < 0) {
		pq_rollback(base);
		return r;
	}
	end(s);
	return 0;
}

int pg_write(struct pg_store *s, const struct pg_query *q, PGresult **ret, struct err *e)
{
	_cleanup_result_ PGresult *res = NULL;
	int r;

	if (mine(s))
		return pg_run(s->writer, q, ret, e);
	r = pq_begin(&s->base, e);
	if (r < 0)
		return r;
	r = pg_run(s->writer, q, &res, e);
	if (r < 0) {
		pq_rollback(&s->base);
		return r;
	}
	r = pq_commit(&s->base, e);
	if (r == 0 && ret)
		*ret = take_ptr(&res);
	return r;
}

size_t pg_changed(const PGresult *r)
{
	return (size_t)strtoull(PQcmdTuples((PGresult *)(uintptr_t)r), NULL, 10);
}

/* ---- rows ---- */

static const char *value(const PGresult *res, int row, int column)
{
	return PQgetisnull(res, row, column) ? NULL : PQgetvalue(res, row, column);
}

static uint64_t number(const PGresult *res, int row, int column)
{
	return (uint64_t)strtoll(PQgetvalue(res, row, column), NULL, 10);
}

static int row_read_field(const struct model_field *f, const PGresult *res, int row, int i, void *p, struct err *e)
{
	switch (f->kind) {
	case MODEL_UINT:
		*(uint64_t *)p = number(res, row, i);
		return 0;
	case MODEL_REAL:
		*(double *)p = strtod(PQgetvalue(res, row, i), NULL);
		return 0;
	case MODEL_BOOL:
		*(bool *)p = number(res, row, i) != 0;
		return 0;
	default:
		return sql_read_text(f, value(res, row, i), (size_t)PQgetlength(res, row, i), p, e);
	}
}

static int row_read(const struct model_noun *n, const PGresult *res, int k, void *row, struct err *e)
{
	int i = 0;

	memset(row, 0, n->size);
	for (const struct model_field *f = n->fields; f->name; f++, i++) {
		int r = row_read_field(f, res, k, i, (char *)row + f->offset, e);

		if (r < 0) {
			model_release(n, row);
			return r;
		}
	}
	return 0;
}

static int field_text(const struct model_field *f, const void *p, const char **ret, char **ret_own)
{
	switch (f->kind) {
	case MODEL_UINT:
		*ret_own = str_printf("%lld", (long long)*(const uint64_t *)p);
		break;
	case MODEL_REAL:
		*ret_own = str_printf("%.17g", *(const double *)p);
		break;
	case MODEL_BOOL:
		*ret_own = str_printf("%d", *(const bool *)p);
		break;
	default:
		return sql_write_text(f, p, ret, ret_own);
	}
	*ret = *ret_own;
	return *ret ? 0 : -ENOMEM;
}

static int get_where(struct pg_store *s, const struct model_noun *n, const char *column, const char *more,
		     const char *key, void *ret, struct err *e)
{
	_cleanup_(str_release) struct str sql = {0};
	_cleanup_result_ PGresult *res = NULL;
	const char *values[] = {key};
	int r;

	sql_get(&sql, &pg_dialect, n, column, more);
	if (!str_ok(&sql))
		return err_nomem(e);
	r = pg_read(s, &(struct pg_query){sql.s, 1, values, true}, &res, e);
	if (r < 0)
		return r;
	if (PQntuples(res) == 0)
		return err_set(e, -ENOENT, "there is no %s '%s'", n->name, key);
	return row_read(n, res, 0, ret, e);
}

static int pq_get(struct store *base, const struct model_noun *n, const char *id, void *ret, struct err *e)
{
	return get_where(pg_own(base), n, "id", "", id, ret, e);
}

static int pq_unfinished_job(struct store *base, const char *source, struct model_job *ret, struct err *e)
{
	return get_where(pg_own(base), &model_jobs, "source", SQL_JOB_UNFINISHED, source, ret, e);
}

static int pq_source_by_machine(struct store *base, const char *machine_id, struct model_source *ret, struct err *e)
{
	return get_where(pg_own(base), &model_sources, "machine_id", "", machine_id, ret, e);
}

static int pq_put(struct store *base, const struct model_noun *n, const void *row, struct err *e)
{
	_cleanup_(str_release) struct str sql = {0};
	const char *values[PG_VALUES_MAX];
	char *owned[PG_VALUES_MAX] = {0};
	int k = 0, r = 0;

	sql_put(&sql, &pg_dialect, n);
	if (!str_ok(&sql))
		r = err_nomem(e);
	for (const struct model_field *f = n->fields; f->name && r == 0; f++, k++) {
		must(k < PG_VALUES_MAX);
		if (field_text(f, (const char *)row + f->offset, &values[k], &owned[k]) < 0)
			r = err_nomem(e);
	}
	if (r == 0)
		r = pg_write(pg_own(base), &(struct pg_query){sql.s, k, values}, NULL, e);
	while (k-- > 0)
		free(owned[k]);
	return r;
}

static int pq_remove(struct store *base, const struct model_noun *n, const char *id, struct err *e)
{
	_cleanup_result_ PGresult *res = NULL;
	const char *values[] = {id};
	char sql[96];
	int r;

	snprintf(sql, sizeof(sql), "DELETE FROM %s WHERE id = $1", n->table);
	r = pg_write(pg_own(base), &(struct pg_query){sql, 1, values, true}, &res, e);
	if (r < 0)
		return r;
	return pg_changed(res) ? 0 : err_set(e, -ENOENT, "there is no %s '%s'", n->name, id);
}

/* ---- lists ---- */

static int list_total(struct pg_store *s, const struct model_noun *n, const struct store_query *q,
		      const char *const *values, uint64_t *ret_total, struct err *e)
{
	_cleanup_(str_release) struct str sql = {0};
	_cleanup_result_ PGresult *res = NULL;
	int r;

	sql_count(&sql, &pg_dialect, n, q);
	if (!str_ok(&sql))
		return err_nomem(e);
	r = pg_read(s, &(struct pg_query){sql.s, (int)(2 * q->nfilters), values, true}, &res, e);
	if (r < 0)
		return r;
	*ret_total = number(res, 0, 0);
	return 0;
}

/* Rows are told when their connection is free again: who is told may ask the store more. */
static int tell_rows(const struct model_noun *n, const PGresult *res, store_each_fn each, void *arg, struct err *e)
{
	_cleanup_free_ void *row = malloc(n->size);
	int r = row ? 0 : err_nomem(e);

	for (int k = 0; k < PQntuples(res) && r == 0; k++) {
		r = row_read(n, res, k, row, e);
		if (r < 0)
			return r;
		r = each(arg, row);
		model_release(n, row);
	}
	return r;
}

static int pq_list(struct store *base, const struct model_noun *n, const struct store_query *q, store_each_fn each,
		   void *arg, uint64_t *ret_total, struct err *e)
{
	struct pg_store *s = pg_own(base);
	_cleanup_(str_release) struct str sql = {0};
	_cleanup_result_ PGresult *res = NULL;
	const char *values[PG_VALUES_MAX];
	int r;

	must(2 * q->nfilters <= PG_VALUES_MAX);
	for (size_t i = 0; i < q->nfilters; i++) {
		values[2 * i] = q->filters[i].value;
		values[2 * i + 1] = q->filters[i].match == STORE_TAG ? q->filters[i].column : NULL;
	}
	sql_list(&sql, &pg_dialect, n, q);
	if (!str_ok(&sql))
		return err_nomem(e);
	r = pg_read(s, &(struct pg_query){sql.s, (int)(2 * q->nfilters), values, true}, &res, e);
	if (r == 0)
		r = tell_rows(n, res, each, arg, e);
	return r != 0 || !ret_total ? r : list_total(s, n, q, values, ret_total, e);
}

/* ---- codes, events, audit ---- */

static int pq_code_use(struct store *base, const char *id, double now, struct err *e)
{
	_cleanup_result_ PGresult *res = NULL;
	char time[40];
	const char *values[] = {id, time};
	int r;

	snprintf(time, sizeof(time), "%.17g", now);
	r = pg_write(pg_own(base),
		     &(struct pg_query){"UPDATE codes SET used = used + 1 "
					"WHERE id = $1 AND used < uses AND revoked = 0 AND expires > $2",
					2, values},
		     &res, e);
	if (r < 0)
		return r;
	return pg_changed(res) ? 0 : err_set(e, -EACCES, "the activation code is used up, expired or revoked");
}

/* Runs `more` with what is done each time, in its transaction. */
static int in_transaction(struct pg_store *s, int (*more)(struct pg_store *s, void *arg, struct err *e), void *arg,
			  struct err *e)
{
	int r;

	if (mine(s))
		return more(s, arg, e);
	r = pq_begin(&s->base, e);
	if (r < 0)
		return r;
	r = more(s, arg, e);
	if (r < 0) {
		pq_rollback(&s->base);
		return r;
	}
	return pq_commit(&s->base, e);
}

struct event {
	double now;
	const char *type, *data;
	uint64_t id;
};

static int add_event(struct pg_store *s, void *arg, struct err *e)
{
	_cleanup_(str_release) struct str sql = {0};
	_cleanup_result_ PGresult *res = NULL;
	struct event *event = arg;
	char time[40];
	const char *values[] = {time, event->type, event->data};
	int r;

	snprintf(time, sizeof(time), "%.17g", event->now);
	r = pg_write(
	    s, &(struct pg_query){"INSERT INTO events (time, type, data) VALUES ($1, $2, $3) RETURNING id", 3, values},
	    &res, e);
	if (r < 0)
		return r;
	event->id = number(res, 0, 0);
	if (++s->event_count < STORE_EVENT_TRIM_EVERY)
		return 0;
	s->event_count = 0;
	sql_trim_events(&sql);
	return str_ok(&sql) ? pg_write(s, &(struct pg_query){sql.s}, NULL, e) : err_nomem(e);
}

static int pq_event_add(struct store *base, double now, const char *type, const char *data, uint64_t *ret_id,
			struct err *e)
{
	struct event event = {now, type, data, 0};
	int r = in_transaction(pg_own(base), add_event, &event, e);

	if (r == 0 && ret_id)
		*ret_id = event.id;
	return r;
}

static int add_record(struct pg_store *s, void *record, struct err *e)
{
	int r = pq_put(&s->base, &model_records, record, e);
	char sql[160];

	if (r < 0 || ++s->audit_count < STORE_AUDIT_TRIM_EVERY)
		return r;
	s->audit_count = 0;
	snprintf(sql, sizeof(sql),
		 "DELETE FROM audit WHERE created < "
		 "(SELECT created FROM audit ORDER BY created DESC LIMIT 1 OFFSET %u)",
		 STORE_AUDIT_KEPT - 1);
	return pg_write(s, &(struct pg_query){sql}, NULL, e);
}

static int pq_audit_add(struct store *base, const struct model_record *record, struct err *e)
{
	return in_transaction(pg_own(base), add_record, (void *)(uintptr_t)record, e);
}

struct nonce {
	const char *text;
	double now, expires;
};

static int add_nonce(struct pg_store *s, void *arg, struct err *e)
{
	const struct nonce *nonce = arg;
	char now[40], expires[40];
	const char *old[] = {now}, *values[] = {nonce->text, expires};
	int r;

	snprintf(now, sizeof(now), "%.17g", nonce->now);
	snprintf(expires, sizeof(expires), "%.17g", nonce->expires);
	r = pg_write(s, &(struct pg_query){"DELETE FROM nonces WHERE expires < $1", 1, old}, NULL, e);
	if (r < 0)
		return r;
	return pg_write(s, &(struct pg_query){"INSERT INTO nonces (nonce, expires) VALUES ($1, $2)", 2, values}, NULL,
			e);
}

static int pq_nonce_use(struct store *base, const char *nonce, double now, double expires, struct err *e)
{
	return in_transaction(pg_own(base), add_nonce, &(struct nonce){nonce, now, expires}, e);
}

static int pq_events(struct store *base, uint64_t since, uint64_t limit, store_event_fn each, void *arg, struct err *e)
{
	_cleanup_result_ PGresult *res = NULL;
	char from[24], most[24];
	const char *values[] = {from, most};
	int r;

	snprintf(from, sizeof(from), "%llu", (unsigned long long)MIN(since, (uint64_t)INT64_MAX));
	snprintf(most, sizeof(most), "%llu", (unsigned long long)MIN(limit, (uint64_t)INT64_MAX));
	r = pg_read(
	    pg_own(base),
	    &(struct pg_query){"SELECT id, type, data FROM events WHERE id > $1 ORDER BY id LIMIT $2", 2, values}, &res,
	    e);
	for (int k = 0; r == 0 && k < PQntuples(res); k++)
		r = each(arg, number(res, k, 0), PQgetvalue(res, k, 1), PQgetvalue(res, k, 2));
	return r;
}

static int pq_event_range(struct store *base, uint64_t *ret_first, uint64_t *ret_last, struct err *e)
{
	_cleanup_result_ PGresult *res = NULL;
	int r = pg_read(pg_own(base),
			&(struct pg_query){"SELECT coalesce(min(id), 0), coalesce(max(id), 0) FROM events"}, &res, e);

	if (r < 0)
		return r;
	*ret_first = number(res, 0, 0);
	*ret_last = number(res, 0, 1);
	return 0;
}

static void pq_close(struct store *base)
{
	struct pg_store *s = pg_own(base);

	PQfinish(s->writer);
	while (s->nidle)
		PQfinish(s->idle[--s->nidle]);
	pthread_cond_destroy(&s->pool_free);
	pthread_mutex_destroy(&s->pool_lock);
	pthread_mutex_destroy(&s->write_lock);
	explicit_bzero(s->conninfo, strlen(s->conninfo));
	free(s->conninfo);
	free(s);
}

static const struct store_ops postgres_ops = {
    .begin = pq_begin,
    .commit = pq_commit,
    .rollback = pq_rollback,
    .get = pq_get,
    .put = pq_put,
    .remove = pq_remove,
    .list = pq_list,
    .unfinished_job = pq_unfinished_job,
    .source_by_machine = pq_source_by_machine,
    .code_use = pq_code_use,
    .event_add = pq_event_add,
    .audit_add = pq_audit_add,
    .nonce_use = pq_nonce_use,
    .events = pq_events,
    .event_range = pq_event_range,
    .close = pq_close,
};

/* ---- opening ---- */

static int schema_version(struct pg_store *s, size_t *ret, struct err *e)
{
	_cleanup_result_ PGresult *res = NULL;
	int r = say(s->writer, "CREATE TABLE IF NOT EXISTS replant_schema (version bigint NOT NULL)", NULL, e);

	if (r == 0)
		r = pg_run(s->writer, &(struct pg_query){"SELECT coalesce(max(version), 0) FROM replant_schema"}, &res,
			   e);
	if (r == 0)
		*ret = (size_t)number(res, 0, 0);
	return r;
}

/* One step forward, if one is due; its number in the same transaction. 1: there may be more. */
static int migrate_step(struct pg_store *s, void *arg, struct err *e)
{
	size_t have = 0, want = sql_schema_version();
	_cleanup_(str_release) struct str sql = {0};
	int r = schema_version(s, &have, e);

	if (r < 0)
		return r;
	if (have > want)
		return err_set(e, -EPROTO,
			       "the database was written by a later version (schema %zu, this program knows %zu); "
			       "use that version",
			       have, want);
	*(bool *)arg = have < want;
	if (have == want)
		return 0;
	sql_translate(&sql, store_schema[have].data);
	str_addf(&sql, "; DELETE FROM replant_schema; INSERT INTO replant_schema VALUES (%zu)", have + 1);
	if (!str_ok(&sql))
		return err_nomem(e);
	r = say(s->writer, sql.s, NULL, e);
	return r < 0 ? err_prefix(e, "cannot bring the database to schema %zu", have + 1) : 0;
}

static int migrate(struct pg_store *s, struct err *e)
{
	bool more = true;
	int r = 0;

	while (r == 0 && more)
		r = in_transaction(s, migrate_step, &more, e);
	return r;
}

int store_check_postgres(const char *conninfo, bool *ret_password, struct err *e)
{
	char *problem = NULL, line[512];
	PQconninfoOption *options = PQconninfoParse(conninfo, &problem);

	if (!options) {
		err_set(e, -EINVAL, "no way to a database: %s",
			first_line(problem ? problem : "out of memory", line, sizeof(line)));
		PQfreemem(problem);
		return -EINVAL;
	}
	*ret_password = false;
	for (const PQconninfoOption *o = options; o->keyword; o++)
		/* libpq marks what is not to be seen: "password", "sslpassword" */
		if (o->val && *o->val && *o->dispchar == '*')
			*ret_password = true;
	PQconninfoFree(options);
	return 0;
}

int store_open_postgres(const char *conninfo, struct store **ret, struct err *e)
{
	struct pg_store *s = calloc(1, sizeof(*s));
	int r;

	if (s)
		s->conninfo = strdup(conninfo);
	if (!s || !s->conninfo) {
		free(s);
		return err_nomem(e);
	}
	s->base.ops = &postgres_ops;
	s->base.share = &pg_share_ops;
	s->audit_count = STORE_AUDIT_TRIM_EVERY - 1; /* the first one trims: a center may be restarted often */
	pthread_mutex_init(&s->write_lock, NULL);
	pthread_mutex_init(&s->pool_lock, NULL);
	pthread_cond_init(&s->pool_free, NULL);
	r = migrate(s, e);
	if (r < 0) {
		pq_close(&s->base);
		return r;
	}
	*ret = &s->base;
	return 0;
}
