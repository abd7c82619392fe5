#include "store/store_int.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/util.h"

#define CACHE_KIB "65536" /* at most; 10,000 sources are about that: lists look at all of them */

static const struct sql_dialect sqlite_dialect = {'?', "json_each(tags)"};

struct sqlite_store {
	struct store base;
	sqlite3 *db;
	/* A connection that only reads: who asks doesn't wait for the disk while another's transaction is written. NULL
	 * in itself, and while it is being opened. */
	struct sqlite_store *reader;
	pthread_mutex_t lock;              /* recursive: held through a transaction */
	atomic_ulong owner;                /* whose transaction it is; 0: nobody's */
	uint64_t event_count, audit_count; /* since the last trim */
};

static struct sqlite_store *own(struct store *s)
{
	return (struct sqlite_store *)s;
}

/* A transaction sees what it wrote; everybody else what is committed. */
static struct sqlite_store *reading(struct sqlite_store *s)
{
	return s->reader && atomic_load(&s->owner) != (unsigned long)pthread_self() ? s->reader : s;
}

static void unlockp(pthread_mutex_t **m)
{
	pthread_mutex_unlock(*m);
}
/* Statements are declared behind it, so that they are gone before another thread may read: one that is only half
 * through holds what the database was when it began. */
#define LOCKED(s)                                                                                                      \
	_cleanup_(unlockp) pthread_mutex_t *locked_ = &(s)->lock;                                                      \
	pthread_mutex_lock(locked_)

static void finalizep(sqlite3_stmt **st)
{
	sqlite3_finalize(*st);
}
#define _cleanup_stmt_ _cleanup_(finalizep)

static int db_error(struct sqlite_store *s, struct err *e)
{
	switch (sqlite3_extended_errcode(s->db)) {
	case SQLITE_CONSTRAINT_UNIQUE:
	case SQLITE_CONSTRAINT_PRIMARYKEY:
		return err_set(e, -EEXIST, "there is one already: %s", sqlite3_errmsg(s->db));
	case SQLITE_CONSTRAINT_FOREIGNKEY:
		return err_set(e, -EBUSY, "other records refer to it");
	case SQLITE_FULL:
		return err_set(e, -ENOSPC, "the disk of the state directory is full");
	case SQLITE_NOMEM:
		return err_nomem(e);
	default:
		return err_set(e, -EIO, "database: %s", sqlite3_errmsg(s->db));
	}
}

static int db_exec(struct sqlite_store *s, const char *sql, struct err *e)
{
	return sqlite3_exec(s->db, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : db_error(s, e);
}

static int db_prepare(struct sqlite_store *s, const char *sql, sqlite3_stmt **ret, struct err *e)
{
	return sqlite3_prepare_v2(s->db, sql, -1, ret, NULL) == SQLITE_OK ? 0 : db_error(s, e);
}

/* 1: a row is there, 0: the end. */
static int db_step(struct sqlite_store *s, sqlite3_stmt *st, struct err *e)
{
	int r = sqlite3_step(st);

	return r == SQLITE_ROW ? 1 : r == SQLITE_DONE ? 0 : db_error(s, e);
}

/* ---- rows ---- */

static const char *column_text(sqlite3_stmt *st, int i)
{
	return (const char *)sqlite3_column_text(st, i);
}

static int row_read_field(const struct model_field *f, sqlite3_stmt *st, int i, void *p, struct err *e)
{
	const char *text;

	switch (f->kind) {
	case MODEL_UINT:
		*(uint64_t *)p = (uint64_t)sqlite3_column_int64(st, i);
		return 0;
	case MODEL_REAL:
		*(double *)p = sqlite3_column_double(st, i);
		return 0;
	case MODEL_BOOL:
		*(bool *)p = sqlite3_column_int(st, i) != 0;
		return 0;
	default:
		text = column_text(st, i);
		return sql_read_text(f, text, (size_t)sqlite3_column_bytes(st, i), p, e);
	}
}

static int row_read(const struct model_noun *n, sqlite3_stmt *st, void *row, struct err *e)
{
	int i = 0;

	memset(row, 0, n->size);
	for (const struct model_field *f = n->fields; f->name; f++, i++) {
		int r = row_read_field(f, st, i, (char *)row + f->offset, e);

		if (r < 0) {
			model_release(n, row);
			return r;
		}
	}
	return 0;
}

static int row_bind_field(const struct model_field *f, sqlite3_stmt *st, int i, const void *p)
{
	const char *text;
	char *own;

	switch (f->kind) {
	case MODEL_UINT:
		return sqlite3_bind_int64(st, i, (sqlite3_int64) * (const uint64_t *)p);
	case MODEL_REAL:
		return sqlite3_bind_double(st, i, *(const double *)p);
	case MODEL_BOOL:
		return sqlite3_bind_int(st, i, *(const bool *)p);
	default:
		if (sql_write_text(f, p, &text, &own) < 0)
			return SQLITE_NOMEM;
		return own ? sqlite3_bind_text(st, i, own, -1, free)
			   : sqlite3_bind_text(st, i, text, -1, SQLITE_STATIC);
	}
}

/* ---- queries ---- */

static int sq_begin(struct store *base, struct err *e)
{
	struct sqlite_store *s = own(base);
	int r;

	pthread_mutex_lock(&s->lock);
	must(sqlite3_get_autocommit(s->db));
	r = db_exec(s, "BEGIN IMMEDIATE", e);
	if (r < 0)
		pthread_mutex_unlock(&s->lock);
	else
		atomic_store(&s->owner, (unsigned long)pthread_self());
	return r;
}

static void sq_rollback(struct store *base)
{
	struct sqlite_store *s = own(base);

	if (!sqlite3_get_autocommit(s->db))
		db_exec(s, "ROLLBACK", NULL);
	atomic_store(&s->owner, 0);
	pthread_mutex_unlock(&s->lock);
}

static int sq_commit(struct store *base, struct err *e)
{
	struct sqlite_store *s = own(base);
	int r = db_exec(s, "COMMIT", e);

	if (r < 0) {
		sq_rollback(base);
		return r;
	}
	atomic_store(&s->owner, 0);
	pthread_mutex_unlock(&s->lock);
	return 0;
}

/* The first row that has the value in the column. */
static int get_where(struct sqlite_store *s, const struct model_noun *n, const char *column, const char *more,
		     const char *value, void *ret, struct err *e)
{
	_cleanup_(str_release) struct str sql = {0};
	int r;

	sql_get(&sql, &sqlite_dialect, n, column, more);
	if (!str_ok(&sql))
		return err_nomem(e);
	s = reading(s);
	LOCKED(s);
	_cleanup_stmt_ sqlite3_stmt *st = NULL;

	r = db_prepare(s, sql.s, &st, e);
	if (r < 0)
		return r;
	sqlite3_bind_text(st, 1, value, -1, SQLITE_STATIC);
	r = db_step(s, st, e);
	if (r < 0)
		return r;
	if (r == 0)
		return err_set(e, -ENOENT, "there is no %s '%s'", n->name, value);
	return row_read(n, st, ret, e);
}

static int sq_get(struct store *base, const struct model_noun *n, const char *id, void *ret, struct err *e)
{
	return get_where(own(base), n, "id", "", id, ret, e);
}

static int sq_unfinished_job(struct store *base, const char *source, struct model_job *ret, struct err *e)
{
	return get_where(own(base), &model_jobs, "source", SQL_JOB_UNFINISHED, source, ret, e);
}

static int sq_source_by_machine(struct store *base, const char *machine_id, struct model_source *ret, struct err *e)
{
	return get_where(own(base), &model_sources, "machine_id", "", machine_id, ret, e);
}

static int sq_put(struct store *base, const struct model_noun *n, const void *row, struct err *e)
{
	struct sqlite_store *s = own(base);
	_cleanup_(str_release) struct str sql = {0};
	int i, r;

	sql_put(&sql, &sqlite_dialect, n);
	if (!str_ok(&sql))
		return err_nomem(e);
	LOCKED(s);
	_cleanup_stmt_ sqlite3_stmt *st = NULL;

	r = db_prepare(s, sql.s, &st, e);
	if (r < 0)
		return r;
	i = 1;
	for (const struct model_field *f = n->fields; f->name; f++, i++)
		if (row_bind_field(f, st, i, (const char *)row + f->offset) != SQLITE_OK)
			return db_error(s, e);
	return db_step(s, st, e);
}

static int sq_remove(struct store *base, const struct model_noun *n, const char *id, struct err *e)
{
	struct sqlite_store *s = own(base);
	char sql[96];
	int r;

	snprintf(sql, sizeof(sql), "DELETE FROM %s WHERE id = ?1", n->table);
	LOCKED(s);
	_cleanup_stmt_ sqlite3_stmt *st = NULL;

	r = db_prepare(s, sql, &st, e);
	if (r < 0)
		return r;
	sqlite3_bind_text(st, 1, id, -1, SQLITE_STATIC);
	r = db_step(s, st, e);
	if (r < 0)
		return r;
	return sqlite3_changes(s->db) ? 0 : err_set(e, -ENOENT, "there is no %s '%s'", n->name, id);
}

static void bind_filters(sqlite3_stmt *st, const struct store_query *q)
{
	for (size_t i = 0; i < q->nfilters; i++) {
		sqlite3_bind_text(st, (int)(2 * i) + 1, q->filters[i].value, -1, SQLITE_STATIC);
		if (q->filters[i].match == STORE_TAG)
			sqlite3_bind_text(st, (int)(2 * i) + 2, q->filters[i].column, -1, SQLITE_STATIC);
	}
}

static int list_total(struct sqlite_store *s, const struct model_noun *n, const struct store_query *q,
		      uint64_t *ret_total, struct err *e)
{
	_cleanup_(str_release) struct str sql = {0};
	_cleanup_stmt_ sqlite3_stmt *st = NULL;
	int r;

	sql_count(&sql, &sqlite_dialect, n, q);
	r = str_ok(&sql) ? db_prepare(s, sql.s, &st, e) : err_nomem(e);
	if (r < 0)
		return r;
	bind_filters(st, q);
	r = db_step(s, st, e);
	if (r < 0)
		return r;
	*ret_total = (uint64_t)sqlite3_column_int64(st, 0);
	return 0;
}

static int sq_list(struct store *base, const struct model_noun *n, const struct store_query *q, store_each_fn each,
		   void *arg, uint64_t *ret_total, struct err *e)
{
	struct sqlite_store *s = reading(own(base));
	_cleanup_(str_release) struct str sql = {0};
	_cleanup_free_ void *row = malloc(n->size);
	int r;

	sql_list(&sql, &sqlite_dialect, n, q);
	if (!row || !str_ok(&sql))
		return err_nomem(e);
	LOCKED(s);
	_cleanup_stmt_ sqlite3_stmt *st = NULL;

	r = db_prepare(s, sql.s, &st, e);
	if (r < 0)
		return r;
	bind_filters(st, q);
	while ((r = db_step(s, st, e)) > 0) {
		r = row_read(n, st, row, e);
		if (r < 0)
			return r;
		r = each(arg, row);
		model_release(n, row);
		if (r != 0)
			return r;
	}
	return r < 0 || !ret_total ? r : list_total(s, n, q, ret_total, e);
}

static int sq_code_use(struct store *base, const char *id, double now, struct err *e)
{
	struct sqlite_store *s = own(base);
	int r;

	LOCKED(s);
	_cleanup_stmt_ sqlite3_stmt *st = NULL;

	r = db_prepare(
	    s, "UPDATE codes SET used = used + 1 WHERE id = ?1 AND used < uses AND revoked = 0 AND expires > ?2", &st,
	    e);
	if (r < 0)
		return r;
	sqlite3_bind_text(st, 1, id, -1, SQLITE_STATIC);
	sqlite3_bind_double(st, 2, now);
	r = db_step(s, st, e);
	if (r < 0)
		return r;
	return sqlite3_changes(s->db) ? 0 : err_set(e, -EACCES, "the activation code is used up, expired or revoked");
}

static int events_trim(struct sqlite_store *s, struct err *e)
{
	_cleanup_(str_release) struct str sql = {0};

	if (++s->event_count < STORE_EVENT_TRIM_EVERY)
		return 0;
	s->event_count = 0;
	sql_trim_events(&sql);
	return str_ok(&sql) ? db_exec(s, sql.s, e) : err_nomem(e);
}

static int sq_event_add(struct store *base, double now, const char *type, const char *data, uint64_t *ret_id,
			struct err *e)
{
	struct sqlite_store *s = own(base);
	int r;

	LOCKED(s);
	_cleanup_stmt_ sqlite3_stmt *st = NULL;

	r = db_prepare(s, "INSERT INTO events (time, type, data) VALUES (?1, ?2, ?3)", &st, e);
	if (r < 0)
		return r;
	sqlite3_bind_double(st, 1, now);
	sqlite3_bind_text(st, 2, type, -1, SQLITE_STATIC);
	sqlite3_bind_text(st, 3, data, -1, SQLITE_STATIC);
	r = db_step(s, st, e);
	if (r < 0)
		return r;
	if (ret_id)
		*ret_id = (uint64_t)sqlite3_last_insert_rowid(s->db);
	return events_trim(s, e);
}

static int sq_audit_add(struct store *base, const struct model_record *record, struct err *e)
{
	struct sqlite_store *s = own(base);
	char sql[128];
	int r;

	LOCKED(s);
	r = sq_put(base, &model_records, record, e);
	if (r < 0 || ++s->audit_count < STORE_AUDIT_TRIM_EVERY)
		return r;
	s->audit_count = 0;
	snprintf(sql, sizeof(sql), "DELETE FROM audit WHERE rowid <= (SELECT max(rowid) FROM audit) - %u",
		 STORE_AUDIT_KEPT);
	return db_exec(s, sql, e);
}

static int sq_nonce_use(struct store *base, const char *nonce, double now, double expires, struct err *e)
{
	struct sqlite_store *s = own(base);
	int r;

	LOCKED(s);
	_cleanup_stmt_ sqlite3_stmt *old = NULL, *st = NULL;

	r = db_prepare(s, "DELETE FROM nonces WHERE expires < ?1", &old, e);
	if (r < 0)
		return r;
	sqlite3_bind_double(old, 1, now);
	r = db_step(s, old, e);
	if (r < 0)
		return r;
	r = db_prepare(s, "INSERT INTO nonces (nonce, expires) VALUES (?1, ?2)", &st, e);
	if (r < 0)
		return r;
	sqlite3_bind_text(st, 1, nonce, -1, SQLITE_STATIC);
	sqlite3_bind_double(st, 2, expires);
	r = db_step(s, st, e);
	return r < 0 ? r : 0;
}

static int sq_events(struct store *base, uint64_t since, uint64_t limit, store_event_fn each, void *arg, struct err *e)
{
	struct sqlite_store *s = reading(own(base));
	int r;

	LOCKED(s);
	_cleanup_stmt_ sqlite3_stmt *st = NULL;

	r = db_prepare(s, "SELECT id, type, data FROM events WHERE id > ?1 ORDER BY id LIMIT ?2", &st, e);
	if (r < 0)
		return r;
	sqlite3_bind_int64(st, 1, (sqlite3_int64)MIN(since, (uint64_t)INT64_MAX));
	sqlite3_bind_int64(st, 2, (sqlite3_int64)limit);
	while ((r = db_step(s, st, e)) > 0) {
		r = each(arg, (uint64_t)sqlite3_column_int64(st, 0), column_text(st, 1), column_text(st, 2));
		if (r != 0)
			return r;
	}
	return r;
}

static int sq_event_range(struct store *base, uint64_t *ret_first, uint64_t *ret_last, struct err *e)
{
	struct sqlite_store *s = reading(own(base));
	int r;

	LOCKED(s);
	_cleanup_stmt_ sqlite3_stmt *st = NULL;

	r = db_prepare(s, "SELECT coalesce(min(id), 0), coalesce(max(id), 0) FROM events", &st, e);
	if (r < 0)
		return r;
	r = db_step(s, st, e);
	if (r < 0)
		return r;
	*ret_first = (uint64_t)sqlite3_column_int64(st, 0);
	*ret_last = (uint64_t)sqlite3_column_int64(st, 1);
	return 0;
}

static void sq_close(struct store *base)
{
	struct sqlite_store *s = own(base);

	if (s->reader)
		sq_close(&s->reader->base);
	sqlite3_close_v2(s->db);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

static const struct store_ops sqlite_ops = {
    .begin = sq_begin,
    .commit = sq_commit,
    .rollback = sq_rollback,
    .get = sq_get,
    .put = sq_put,
    .remove = sq_remove,
    .list = sq_list,
    .unfinished_job = sq_unfinished_job,
    .source_by_machine = sq_source_by_machine,
    .code_use = sq_code_use,
    .event_add = sq_event_add,
    .audit_add = sq_audit_add,
    .nonce_use = sq_nonce_use,
    .events = sq_events,
    .event_range = sq_event_range,
    .close = sq_close,
};

/* ---- opening ---- */

static int user_version(struct sqlite_store *s, size_t *ret, struct err *e)
{
	_cleanup_stmt_ sqlite3_stmt *st = NULL;
	int r = db_prepare(s, "PRAGMA user_version", &st, e);

	if (r == 0)
		r = db_step(s, st, e);
	if (r < 0)
		return r;
	*ret = (size_t)sqlite3_column_int(st, 0);
	return 0;
}

/* Each file of the schema is one step forward, done with its number in one transaction. */
static int migrate(struct sqlite_store *s, const char *path, struct err *e)
{
	size_t have = 0, want = sql_schema_version();
	int r = user_version(s, &have, e);

	if (r < 0)
		return r;
	if (have > want)
		return err_set(e, -EPROTO,
			       "'%s' was written by a later version (schema %zu, this program knows %zu); "
			       "use that version",
			       path, have, want);
	for (; have < want; have++) {
		_cleanup_free_ char *sql = str_printf("BEGIN IMMEDIATE; %s; PRAGMA user_version = %zu; COMMIT",
						      store_schema[have].data, have + 1);

		r = sql ? db_exec(s, sql, e) : err_nomem(e);
		if (r < 0) {
			db_exec(s, "ROLLBACK", NULL);
			return err_prefix(e, "cannot bring '%s' to schema %zu", path, have + 1);
		}
	}
	return 0;
}

static struct sqlite_store *sqlite_new(void)
{
	struct sqlite_store *s = calloc(1, sizeof(*s));
	pthread_mutexattr_t attr;

	if (!s)
		return NULL;
	s->base.ops = &sqlite_ops;
	pthread_mutexattr_init(&attr);
	pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
	pthread_mutex_init(&s->lock, &attr);
	pthread_mutexattr_destroy(&attr);
	return s;
}

static int sqlite_connect(struct sqlite_store *s, const char *path, int how, struct err *e)
{
	if (sqlite3_open_v2(path, &s->db, how | SQLITE_OPEN_FULLMUTEX, NULL) != SQLITE_OK)
		return err_set(e, -EIO, "cannot open database '%s': %s", path, sqlite3_errmsg(s->db));
	sqlite3_busy_timeout(s->db, 5000);
	return 0;
}

/* After the schema is there. */
static int sqlite_add_reader(struct sqlite_store *s, const char *path, struct err *e)
{
	int r;

	s->reader = sqlite_new();
	if (!s->reader)
		return err_nomem(e);
	r = sqlite_connect(s->reader, path, SQLITE_OPEN_READONLY, e);
	return r < 0 ? r : db_exec(s->reader, "PRAGMA trusted_schema = OFF; PRAGMA cache_size = -" CACHE_KIB, e);
}

static int sqlite_setup(struct sqlite_store *s, const char *path, struct err *e)
{
	int r = sqlite_connect(s, path, SQLITE_OPEN_READWRITE, e);

	if (r < 0)
		return r;
	r = db_exec(s,
		    "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;"
		    "PRAGMA trusted_schema = OFF; PRAGMA secure_delete = ON",
		    e);
	if (r < 0)
		return err_prefix(e, "cannot use '%s'", path);
	r = migrate(s, path, e);
	return r < 0 ? r : sqlite_add_reader(s, path, e);
}

int store_open_sqlite(const char *path, struct store **ret, struct err *e)
{
	struct sqlite_store *s = sqlite_new();
	int fd, r;

	if (!s)
		return err_nomem(e);
	s->audit_count = STORE_AUDIT_TRIM_EVERY - 1; /* the first one trims: a center may be restarted often */
	/* Made here because SQLite would give it the umask's mode; its WAL inherits that mode. */
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	r = fd < 0 ? err_sys(e, "cannot open '%s'", path) : 0;
	/* Before SQLite opens it: closing any descriptor of a file drops all POSIX locks this process has on
	 * it. */
	if (fd >= 0)
		close(fd);
	if (r == 0)
		r = sqlite_setup(s, path, e);
	if (r < 0) {
		sq_close(&s->base);
		return r;
	}
	*ret = &s->base;
	return 0;
}
