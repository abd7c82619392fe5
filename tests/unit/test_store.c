#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#ifdef STORE_POSTGRES
#include <libpq-fe.h>
#endif
#include <pthread.h>
#include <stdatomic.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"
#include "store/store.h"

/*
 * The same tests for both stores: PostgreSQL with $REPLANT_TEST_DATABASE, which tests/postgres.py sets (a server and a
 * database to connect to), SQLite without. Each test has a database of its own.
 */
static char dir[] = "/tmp/replant-store.XXXXXX", dir_template[sizeof(dir)] = "/tmp/replant-store.XXXXXX";
static char path[64];
static const char *server;
static char conninfo[512];

static int try_open(struct store **ret, struct err *e)
{
	return server ? store_open_postgres(conninfo, ret, e) : store_open_sqlite(path, ret, e);
}

static struct store *open_store(void)
{
	struct store *s = NULL;
	struct err e = {0};

	if (try_open(&s, &e) < 0)
		fail_msg("%s", e.msg);
	return s;
}

#ifdef STORE_POSTGRES
static void pg_do(const char *where, const char *sql)
{
	PGconn *c = PQconnectdb(where);
	PGresult *r = PQexec(c, sql);

	if (PQresultStatus(r) != PGRES_COMMAND_OK && PQresultStatus(r) != PGRES_TUPLES_OK)
		fail_msg("%s", PQerrorMessage(c));
	PQclear(r);
	PQfinish(c);
}
#else
static void pg_do(const char *where, const char *sql)
{
	skip();
}
#endif

static void new_database(void)
{
	static int count;
	char sql[64];

	snprintf(sql, sizeof(sql), "CREATE DATABASE t%d TEMPLATE template0", ++count);
	pg_do(server, sql);
	snprintf(conninfo, sizeof(conninfo), "%s dbname=t%d", server, count);
}

static void sqlite_do(const char *sql)
{
	sqlite3 *db;

	assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
	assert_int_equal(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK);
	sqlite3_close(db);
}

static int set_up(void **state)
{
	server = getenv("REPLANT_TEST_DATABASE");
	if (server)
		new_database();
	memcpy(dir, dir_template, sizeof(dir));
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof(path), "%s/db", dir);
	return 0;
}

static int tear_down(void **state)
{
	return io_remove_tree(dir, NULL);
}

static void put_region(struct store *s)
{
	struct model_region r = {.id = (char *)"local", .name = (char *)"n", .provider = (char *)"local", .created = 1};

	assert_int_equal(s->ops->put(s, &model_regions, &r, NULL), 0);
}

static struct model_job a_job(const char *id, int state)
{
	return (struct model_job){.id = (char *)id,
				  .name = (char *)"n",
				  .source = (char *)"source-0123456789abcdef",
				  .region = (char *)"local",
				  .state = state,
				  .parameters = json_pack("{s:i}", "connections", 4),
				  .created = 2.5};
}

static void test_every_noun_fits_its_table(void **state)
{
	struct store *s = open_store();
	struct store_query all = {0};

	/* Whether columns and fields have the same names shows when they're named. */
	for (const struct model_noun *const *n = model_nouns; *n; n++) {
		_cleanup_free_ void *row = calloc(1, (*n)->size);
		uint64_t total = 7;
		struct err e = {0};

		if (s->ops->list(s, *n, &all, NULL, NULL, &total, &e) < 0)
			fail_msg("%s: %s", (*n)->name, e.msg);
		assert_int_equal(total, 0);
		assert_int_equal(s->ops->get(s, *n, "x", row, NULL), -ENOENT);
		assert_int_equal(s->ops->remove(s, *n, "x", NULL), -ENOENT);
		/* Not null columns refuse the empty row; any other complaint is a mistake of the table. */
		assert_int_equal(s->ops->put(s, *n, row, &e), -EIO);
		assert_non_null(strstr(e.msg, server ? "not-null" : "NOT NULL"));
	}
	store_close(s);
}

static void test_rows_survive(void **state)
{
	_cleanup_(model_job_release) struct model_job back = {0};
	struct model_job job = a_job("job-1", JOB_IN_ERROR);
	struct store *s = open_store();
	struct stat st;

	put_region(s);
	job.stage = JOB_PROCESSING;
	job.error = json_pack("{s:s}", "code", "\303\274");
	assert_int_equal(s->ops->put(s, &model_jobs, &job, NULL), 0);
	store_close(s);
	if (!server) {
		assert_int_equal(stat(path, &st), 0);
		assert_int_equal(st.st_mode & 0777, 0600);
	}
	s = open_store();
	assert_int_equal(s->ops->get(s, &model_jobs, "job-1", &back, NULL), 0);
	assert_int_equal(back.state, JOB_IN_ERROR);
	assert_int_equal(back.stage, JOB_PROCESSING);
	assert_true(back.created == 2.5);
	assert_null(back.description);
	assert_true(json_equal(back.parameters, job.parameters));
	assert_true(json_equal(back.error, job.error));
	json_decref(job.parameters);
	json_decref(job.error);
	store_close(s);
}

static void test_one_unfinished_job(void **state)
{
	_cleanup_(model_job_release) struct model_job found = {0};
	struct model_job one = a_job("job-1", JOB_READY), two = a_job("job-2", JOB_READY),
			 old = a_job("job-3", JOB_FINISHED);
	struct store *s = open_store();

	put_region(s);
	assert_int_equal(s->ops->put(s, &model_jobs, &old, NULL), 0);
	assert_int_equal(s->ops->unfinished_job(s, one.source, &found, NULL), -ENOENT);
	assert_int_equal(s->ops->put(s, &model_jobs, &one, NULL), 0);
	assert_int_equal(s->ops->put(s, &model_jobs, &two, NULL), -EEXIST);
	assert_int_equal(s->ops->unfinished_job(s, one.source, &found, NULL), 0);
	assert_string_equal(found.id, "job-1");
	one.state = JOB_DELETING;
	assert_int_equal(s->ops->put(s, &model_jobs, &one, NULL), 0);
	assert_int_equal(s->ops->put(s, &model_jobs, &two, NULL), 0);
	two.region = (char *)"mars";
	assert_int_equal(s->ops->put(s, &model_jobs, &two, NULL), -EBUSY);
	json_decref(one.parameters);
	json_decref(two.parameters);
	json_decref(old.parameters);
	store_close(s);
}

static void test_codes_are_used_once_each(void **state)
{
	struct model_code c = {.id = (char *)"code-1", .uses = 2, .expires = 100, .secret_hash = (char *)"h"};
	struct store *s = open_store();

	assert_int_equal(s->ops->put(s, &model_codes, &c, NULL), 0);
	assert_int_equal(s->ops->code_use(s, "code-1", 100, NULL), -EACCES);
	assert_int_equal(s->ops->code_use(s, "code-1", 99, NULL), 0);
	assert_int_equal(s->ops->code_use(s, "code-1", 99, NULL), 0);
	assert_int_equal(s->ops->code_use(s, "code-1", 99, NULL), -EACCES);
	c.revoked = true;
	assert_int_equal(s->ops->put(s, &model_codes, &c, NULL), 0);
	assert_int_equal(s->ops->code_use(s, "code-1", 99, NULL), -EACCES);
	store_close(s);
}

static void test_nonces_serve_once(void **state)
{
	struct store *s = open_store();

	assert_int_equal(s->ops->nonce_use(s, "a", 10, 20, NULL), 0);
	assert_int_equal(s->ops->nonce_use(s, "a", 20, 30, NULL), -EEXIST);
	assert_int_equal(s->ops->nonce_use(s, "b", 20, 30, NULL), 0);
	assert_int_equal(s->ops->nonce_use(s, "a", 21, 30, NULL), 0);
	store_close(s);
}

static int collect(void *arg, uint64_t id, const char *type, const char *data)
{
	uint64_t *last = arg;

	assert_true(id == *last + 1);
	*last = id;
	return 0;
}

static void test_events_are_bounded(void **state)
{
	struct store *s = open_store();
	uint64_t first, last, id = 0;

	assert_int_equal(s->ops->event_range(s, &first, &last, NULL), 0);
	assert_int_equal(last, 0);
	assert_int_equal(s->ops->begin(s, NULL), 0);
	for (unsigned i = 0; i < STORE_EVENTS_KEPT + 500; i++)
		assert_int_equal(s->ops->event_add(s, 1, "job.updated", "{}", &id, NULL), 0);
	assert_int_equal(s->ops->commit(s, NULL), 0);
	assert_int_equal(s->ops->event_range(s, &first, &last, NULL), 0);
	assert_true(last == STORE_EVENTS_KEPT + 500 && id == last);
	assert_true(first > 300 && first <= 501);
	id = last - 5;
	assert_int_equal(s->ops->events(s, id, 3, collect, &id, NULL), 0);
	assert_true(id == last - 2);
	store_close(s);
}

static void test_rollback(void **state)
{
	_cleanup_(model_region_release) struct model_region r = {0};
	struct store *s = open_store();

	assert_int_equal(s->ops->begin(s, NULL), 0);
	put_region(s);
	s->ops->rollback(s);
	assert_int_equal(s->ops->get(s, &model_regions, "local", &r, NULL), -ENOENT);
	store_close(s);
}

/* A child writes, tells after each commit, and is killed: all that was told is there, what was not told is
 * whole or absent. */
static int in_pairs(void *arg, uint64_t id, const char *type, const char *data)
{
	uint64_t *n = arg;

	assert_string_equal(type, (*n)++ % 2 ? "b" : "a");
	return 0;
}

static void test_kill_loses_nothing(void **state)
{
	for (int round = 0; round < 5; round++) {
		uint64_t told = 0, first, last;
		struct store *s;
		int fd[2];
		pid_t pid;

		assert_int_equal(pipe(fd), 0);
		pid = fork();
		if (pid == 0) {
			s = open_store();
			for (;;) {
				uint64_t id;

				if (s->ops->begin(s, NULL) < 0 || s->ops->event_add(s, 1, "a", "{}", &id, NULL) < 0 ||
				    s->ops->event_add(s, 1, "b", "{}", &id, NULL) < 0 || s->ops->commit(s, NULL) < 0 ||
				    write(fd[1], &id, sizeof(id)) != sizeof(id))
					_exit(1);
			}
		}
		close(fd[1]);
		for (int i = 0; i < 20 + round * 7; i++)
			assert_int_equal(read(fd[0], &told, sizeof(told)), sizeof(told));
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		while (read(fd[0], &first, sizeof(first)) == sizeof(first))
			told = first;
		close(fd[0]);
		s = open_store();
		assert_int_equal(s->ops->event_range(s, &first, &last, NULL), 0);
		assert_true(last >= told);
		/* Both or none of a transaction's; a number that one took along with it is lost. */
		told = 0;
		assert_int_equal(s->ops->events(s, 0, 1000000, in_pairs, &told, NULL), 0);
		assert_int_equal(told % 2, 0);
		store_close(s);
	}
}

static void test_a_later_schema_is_refused(void **state)
{
	struct store *s = open_store();
	struct err e = {0};

	store_close(s);
	if (server)
		pg_do(conninfo, "UPDATE replant_schema SET version = 99");
	else
		sqlite_do("PRAGMA user_version = 99");
	s = NULL;
	assert_int_equal(try_open(&s, &e), -EPROTO);
	assert_non_null(strstr(e.msg, "later version"));
}

static void test_secrets(void **state)
{
	char secret[STORE_SECRET_HEX], hash[STORE_SECRET_HEX], other[STORE_SECRET_HEX], other_hash[STORE_SECRET_HEX];

	store_secret_new(secret, hash);
	store_secret_new(other, other_hash);
	assert_int_equal(strlen(secret), 64);
	assert_string_not_equal(secret, other);
	assert_true(store_secret_matches(secret, hash));
	assert_false(store_secret_matches(other, hash));
	assert_false(store_secret_matches("", hash));
	assert_false(store_secret_matches(secret, ""));
	/* sha256sum agrees: the hash of the text. */
	store_secret_matches("abc", hash);
	assert_true(store_secret_matches("abc", "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
}

static int set_state(void *row, void *arg, struct err *e)
{
	struct model_job *job = row;

	if (*(int *)arg < 0)
		return err_set(e, *(int *)arg, "not now");
	job->state = *(int *)arg;
	return 0;
}

static int type_of(void *arg, uint64_t id, const char *type, const char *data)
{
	str_addf(arg, "%s ", type);
	return 0;
}

/* All of it, or nothing and the reason; and the next one isn't kept waiting. */
static void test_change(void **state)
{
	_cleanup_(model_job_release) struct model_job row = {0};
	_cleanup_(str_release) struct str told = {0};
	struct model_job job = a_job("job-1", JOB_READY);
	int stopped = JOB_STOPPED, running = JOB_RUNNING, no = -ECANCELED;
	struct store *s = open_store();
	struct err e = {0};

	put_region(s);
	assert_int_equal(s->ops->put(s, &model_jobs, &job, NULL), 0);
	assert_int_equal(store_change(s, &model_jobs, "job-2", "updated", set_state, &stopped, &row, &e), -ENOENT);
	assert_int_equal(store_change(s, &model_jobs, "job-1", "updated", set_state, &no, &row, &e), -ECANCELED);
	assert_string_equal(e.msg, "not now");
	model_job_release(&row);
	assert_int_equal(store_change(s, &model_jobs, "job-1", "updated", set_state, &stopped, &row, &e), 0);
	assert_int_equal(row.state, JOB_STOPPED);
	model_job_release(&row);
	assert_int_equal(store_change(s, &model_jobs, "job-1", NULL, set_state, &running, &row, &e), 0);
	model_job_release(&row);
	assert_int_equal(s->ops->get(s, &model_jobs, "job-1", &row, &e), 0);
	assert_int_equal(row.state, JOB_RUNNING);
	assert_int_equal(store_forget(s, &model_jobs, "job-1", &e), 0);
	assert_int_equal(store_forget(s, &model_jobs, "job-1", &e), -ENOENT);
	assert_int_equal(s->ops->events(s, 0, 10, type_of, &told, &e), 0);
	assert_string_equal(told.s, "job.updated job.deleted ");
	json_decref(job.parameters);
	store_close(s);
}

static int count_up(void *row, void *arg, struct err *e)
{
	struct model_job *job = row;

	job->number++;
	return 0;
}

#define COUNTS 50

static void *count_main(void *arg)
{
	struct store *s = arg;

	for (int i = 0; i < COUNTS; i++) {
		_cleanup_(model_job_release) struct model_job row = {0};

		if (store_change(s, &model_jobs, "job-1", "updated", count_up, NULL, &row, NULL) < 0)
			return s;
	}
	return NULL;
}

static int next_id(void *arg, uint64_t id, const char *type, const char *data)
{
	uint64_t *last = arg;

	assert_true(id > *last);
	*last = id;
	return 0;
}

/* What one transaction reads, no other changes before its end; with PostgreSQL also when that one is another center's.
 * And who follows the events misses none. */
static void test_others_wait(void **state)
{
	_cleanup_(model_job_release) struct model_job row = {0};
	struct model_job job = a_job("job-1", JOB_READY);
	struct store *s = open_store(), *other = server ? open_store() : s;
	uint64_t told = 0, seen = 0, first, last;
	pthread_t threads[4];
	void *failed;

	put_region(s);
	assert_int_equal(s->ops->put(s, &model_jobs, &job, NULL), 0);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, count_main, i % 2 ? other : s), 0);
	while (seen < ARRAY_SIZE(threads) * COUNTS) {
		uint64_t before = told;

		assert_int_equal(s->ops->events(s, told, 1, next_id, &told, NULL), 0);
		seen += told != before;
	}
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
		assert_int_equal(pthread_join(threads[i], &failed), 0);
		assert_null(failed);
	}
	assert_int_equal(s->ops->get(s, &model_jobs, "job-1", &row, NULL), 0);
	assert_int_equal(row.number, ARRAY_SIZE(threads) * COUNTS);
	assert_int_equal(s->ops->event_range(s, &first, &last, NULL), 0);
	assert_int_equal(last, told);
	json_decref(job.parameters);
	if (other != s)
		store_close(other);
	store_close(s);
}

static int add_name(void *arg, void *row)
{
	str_addf(arg, "%s ", ((struct model_source *)row)->name);
	return 0;
}

static void put_source(struct store *s, int i, const char *name, const char *key, const char *value)
{
	char id[32];
	struct model_source src = {.id = id,
				   .name = (char *)(uintptr_t)name,
				   .machine_id = id,
				   .secret_hash = (char *)"h",
				   .created = i,
				   .tags = json_pack("{s:s}", key, value)};

	snprintf(id, sizeof(id), "source-%d", i);
	assert_int_equal(s->ops->put(s, &model_sources, &src, NULL), 0);
	json_decref(src.tags);
}

/* Names are bytes: nothing in them means anything to a pattern, and case counts. */
static void test_filters(void **state)
{
	static const struct {
		struct store_filter f;
		const char *found;
	} cases[] = {
	    {{"name", "we", STORE_PREFIX}, "web_2 web%1 "},
	    {{"name", "web%", STORE_PREFIX}, "web%1 "},
	    {{"name", "\303\274", STORE_PREFIX}, "\303\274ber "},
	    {{"name", "", STORE_PREFIX}, "\303\274ber Web' web_2 web%1 "},
	    {{"name", "Web'", STORE_EQUAL}, "Web' "},
	    {{"state", "available", STORE_EQUAL}, "\303\274ber Web' web_2 web%1 "},
	    {{"env", "x", STORE_TAG}, "web_2 web%1 "},
	    {{"env", NULL, STORE_TAG}, "Web' web_2 web%1 "},
	    {{"a'b\"", "$1", STORE_TAG}, "\303\274ber "},
	    {{"nv", "x", STORE_TAG}, ""},
	};
	struct store *s = open_store();

	put_source(s, 1, "web%1", "env", "x");
	put_source(s, 2, "web_2", "env", "x");
	put_source(s, 3, "Web'", "env", "y");
	put_source(s, 4, "\303\274ber", "a'b\"", "$1");
	for (size_t i = 0; i < ARRAY_SIZE(cases); i++) {
		const struct store_filter two[] = {cases[i].f, {"state", "available"}};
		_cleanup_(str_release) struct str found = {0};
		struct store_query q = {.filters = two, .nfilters = 2};
		uint64_t total = 0;

		assert_int_equal(s->ops->list(s, &model_sources, &q, add_name, &found, &total, NULL), 0);
		assert_string_equal(found.s ?: "", cases[i].found);
	}
	store_close(s);
}

/* The server was started again, or somebody ended our connections: the transaction that was on fails as a whole and
 * says why, what comes next doesn't notice. */
static void test_lost_connections(void **state)
{
	static const char end[] = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
				  "WHERE application_name = 'replantd' AND datname = current_database()";
	_cleanup_(model_region_release) struct model_region r = {0};
	struct err e = {0};
	struct store *s;
	uint64_t id;

	if (!server)
		skip();
	s = open_store();
	put_region(s);
	assert_int_equal(s->ops->get(s, &model_regions, "local", &r, NULL), 0);
	model_region_release(&r);
	pg_do(conninfo, end);
	assert_int_equal(s->ops->get(s, &model_regions, "local", &r, NULL), 0);
	model_region_release(&r);
	assert_int_equal(s->ops->event_add(s, 1, "a", "{}", &id, NULL), 0);
	pg_do(conninfo, end);
	assert_int_equal(s->ops->begin(s, NULL), 0);
	assert_int_equal(s->ops->event_add(s, 1, "b", "{}", &id, NULL), 0);
	pg_do(conninfo, end);
	assert_int_equal(s->ops->event_add(s, 1, "c", "{}", &id, &e), -EIO);
	assert_non_null(strstr(e.msg, "connection to the database was lost"));
	assert_int_equal(s->ops->commit(s, &e), -EIO);
	assert_int_equal(s->ops->event_range(s, &id, &id, NULL), 0);
	assert_int_equal(id, 1);
	/* What failed stays failed, though the connection is fine. */
	assert_int_equal(s->ops->begin(s, NULL), 0);
	assert_int_equal(s->ops->event_add(s, 1, "d", "{}", &id, NULL), 0);
	assert_int_equal(s->ops->event_add(s, 1, NULL, "{}", &id, NULL), -EIO);
	assert_int_equal(s->ops->commit(s, &e), -EIO);
	assert_int_equal(s->ops->event_range(s, &id, &id, NULL), 0);
	assert_int_equal(id, 1);
	store_close(s);
}

static void on_renewed(void *arg, const char *name, uint64_t stops, uint64_t news)
{
	str_addf(arg, "%s %llu %llu ", name, (unsigned long long)stops, (unsigned long long)news);
}

static void on_other(void *arg, const char *name, const json_t *what)
{
	_cleanup_free_ char *text = what ? jsn_text(what) : NULL;

	str_addf(arg, "%s %s ", name, text ?: "null");
}

static void on_hearing(void *arg, const char *source, double ago)
{
	str_addf(arg, "%s %.0f ", source, ago);
}

static void expect(struct str *said, const char *what)
{
	assert_string_equal(said->s ?: "", what);
	str_release(said);
}

/* Two centers, leases of half a second. */
static void test_leases(void **state)
{
	_cleanup_json_ json_t *mine =
	    json_pack("[{s:s, s:{s:i}}, {s:s, s:n}]", "name", "job-1", "view", "x", 1, "name", "image-1", "view");
	_cleanup_json_ json_t *heard = json_pack("[{s:s, s:f}]", "source", "source-1", "ago", 3.0);
	_cleanup_json_ json_t *body = json_pack("{s:s}", "run", "run-1");
	_cleanup_(str_release) struct str said = {0};
	const struct store_share_ops *share;
	struct store *a, *b;
	struct err e = {0};

	if (!server)
		skip();
	a = open_store();
	b = open_store();
	share = a->share;
	put_region(a);
	assert_int_equal(share->join(a, "center-a", "", 0.5, NULL), 0);
	assert_int_equal(share->join(b, "center-b", "", 0.5, NULL), 0);
	assert_int_equal(share->take(a, "job-1", NULL), 0);
	assert_int_equal(share->take(a, "job-1", NULL), 0);
	assert_int_equal(share->take(b, "job-1", &e), -EBUSY);
	assert_int_equal(share->take(b, "job-2", NULL), 0);
	/* What isn't ours isn't renewed. */
	assert_int_equal(share->renew(a, mine, on_renewed, &said, NULL), 0);
	expect(&said, "job-1 0 0 ");
	assert_int_equal(share->others(b, on_other, &said, NULL), 0);
	expect(&said, "job-1 {\"x\":1} ");
	assert_int_equal(share->call(b, "job-1", true, NULL), 0);
	assert_int_equal(share->call(b, "job-1", false, NULL), 0);
	assert_int_equal(share->report(b, "job-1", body, NULL), 0);
	assert_int_equal(share->reports(b, on_other, &said, NULL), 0);
	expect(&said, "");
	assert_int_equal(share->reports(a, on_other, &said, NULL), 0);
	assert_int_equal(share->reports(a, on_other, &said, NULL), 0);
	expect(&said, "job-1 {\"run\":\"run-1\"} ");
	assert_int_equal(share->renew(a, mine, on_renewed, &said, NULL), 0);
	expect(&said, "job-1 1 1 ");
	assert_int_equal(share->heard(a, heard, NULL), 0);
	assert_int_equal(share->hearings(a, 10, on_hearing, &said, NULL), 0);
	expect(&said, "");
	assert_int_equal(share->hearings(b, 10, on_hearing, &said, NULL), 0);
	expect(&said, "source-1 3 ");
	assert_int_equal(share->hearings(b, 1, on_hearing, &said, NULL), 0);
	expect(&said, "");
	/* The fence holds single writes and transactions, and lets reads through. */
	share->fence(a, "job-1");
	assert_int_equal(a->ops->event_add(a, 1, "a", "{}", NULL, NULL), 0);
	share->fence(a, "job-2");
	assert_int_equal(a->ops->event_add(a, 1, "a", "{}", NULL, NULL), -ECANCELED);
	assert_int_equal(a->ops->begin(a, NULL), -ECANCELED);
	assert_int_equal(a->ops->remove(a, &model_regions, "local", NULL), -ECANCELED);
	share->fence(a, "job-1");
	usleep(700000);
	assert_int_equal(a->ops->begin(a, &e), -ECANCELED);
	assert_non_null(strstr(e.msg, "'job-1' is not this center's any more"));
	/* It ran out: it isn't ours any more, though nobody else has it. */
	assert_int_equal(share->renew(a, mine, on_renewed, &said, NULL), -ECANCELED);
	share->fence(a, NULL);
	assert_int_equal(share->renew(a, mine, on_renewed, &said, NULL), 0);
	expect(&said, "");
	assert_int_equal(share->take(b, "job-1", NULL), 0);
	assert_int_equal(share->take(a, "job-1", NULL), -EBUSY);
	assert_int_equal(share->drop(a, "job-1", NULL), 0);
	assert_int_equal(share->take(a, "job-1", NULL), -EBUSY);
	/* Who follows a center that has ended needn't wait. */
	assert_int_equal(share->join(a, "center-c", "center-b", 0.5, NULL), 0);
	assert_int_equal(share->take(a, "job-1", NULL), 0);
	store_close(a);
	store_close(b);
}

struct readers {
	struct store *s;
	atomic_bool end;
};

static void *read_main(void *arg)
{
	struct readers *r = arg;

	while (!atomic_load(&r->end)) {
		struct model_region row = {0};

		if (r->s->ops->get(r->s, &model_regions, "local", &row, NULL) < 0)
			return arg;
		model_region_release(&row);
	}
	return NULL;
}

/* What was committed is what is read next, whatever others are reading. */
static void test_own_writes_are_read(void **state)
{
	struct readers readers = {.s = open_store()};
	struct model_region row = {.created = 1};
	struct store *s = readers.s;
	pthread_t threads[3];
	void *failed;

	model_set(&row.id, "local");
	model_set(&row.name, "local");
	model_set(&row.provider, "local");
	assert_int_equal(s->ops->put(s, &model_regions, &row, NULL), 0);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++)
		assert_int_equal(pthread_create(&threads[i], NULL, read_main, &readers), 0);
	for (int n = 2; n < 400; n++) {
		struct model_region now = {0};

		row.created = n;
		assert_int_equal(s->ops->put(s, &model_regions, &row, NULL), 0);
		assert_int_equal(s->ops->get(s, &model_regions, "local", &now, NULL), 0);
		if (now.created != n)
			fail_msg("%d was committed, and %.0f read", n, now.created);
		model_region_release(&now);
	}
	atomic_store(&readers.end, true);
	for (size_t i = 0; i < ARRAY_SIZE(threads); i++) {
		assert_int_equal(pthread_join(threads[i], &failed), 0);
		assert_null(failed);
	}
	model_region_release(&row);
	store_close(s);
}

static void test_what_leads_to_a_database(void **state)
{
	struct store *s = NULL;
	bool password = true;
	struct err e = {0};

	if (!getenv("REPLANT_TEST_DATABASE"))
		skip();
	assert_int_equal(store_check_postgres("postgresql://u@h/db", &password, NULL), 0);
	assert_false(password);
	assert_int_equal(store_check_postgres("postgresql://u:p@h/db", &password, NULL), 0);
	assert_true(password);
	assert_int_equal(store_check_postgres("host=h password='p q'", &password, NULL), 0);
	assert_true(password);
	assert_int_equal(store_check_postgres("hst=h", &password, &e), -EINVAL);
	assert_non_null(strstr(e.msg, "hst"));
	assert_int_equal(store_open_postgres("host=/nowhere dbname=x", &s, &e), -EIO);
	assert_non_null(strstr(e.msg, "cannot reach the database"));
}

int main(void)
{
#define WITH_DIR(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
	    WITH_DIR(test_every_noun_fits_its_table),
	    WITH_DIR(test_rows_survive),
	    WITH_DIR(test_one_unfinished_job),
	    WITH_DIR(test_codes_are_used_once_each),
	    WITH_DIR(test_nonces_serve_once),
	    WITH_DIR(test_events_are_bounded),
	    WITH_DIR(test_rollback),
	    WITH_DIR(test_kill_loses_nothing),
	    WITH_DIR(test_a_later_schema_is_refused),
	    WITH_DIR(test_change),
	    WITH_DIR(test_others_wait),
	    WITH_DIR(test_filters),
	    WITH_DIR(test_lost_connections),
	    WITH_DIR(test_leases),
	    WITH_DIR(test_own_writes_are_read),
	    cmocka_unit_test(test_what_leads_to_a_database),
	    cmocka_unit_test(test_secrets),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
