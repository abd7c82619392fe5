/* Several centers on one database: leases, and what they tell each other. All times are the database's. */
#include "store/postgres_int.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/util.h"

#define NOW          "extract(epoch FROM clock_timestamp())::double precision"
#define REPORT_STALE "60" /* seconds: its run is over */

static int write_text(struct pg_store *s, const char *sql, const char *const *values, int n, PGresult **ret,
		      struct err *e)
{
	return pg_write(s, &(struct pg_query){sql, n, values}, ret, e);
}

static int share_join(struct store *base, const char *center, const char *gone, double seconds, struct err *e)
{
	const char *values[] = {gone};
	struct pg_store *s = pg_own(base);

	snprintf(s->center, sizeof(s->center), "%s", center);
	snprintf(s->lease, sizeof(s->lease), "%.3f", seconds);
	/* What centers that are gone left. */
	return write_text(s,
			  "WITH a AS (DELETE FROM leases WHERE owner = $1 OR expires < " NOW " - 86400), "
			  "b AS (DELETE FROM heard WHERE time < " NOW " - 86400) "
			  "DELETE FROM reports WHERE time < " NOW " - " REPORT_STALE,
			  values, 1, NULL, e);
}

static int share_take(struct store *base, const char *name, struct err *e)
{
	struct pg_store *s = pg_own(base);
	const char *values[] = {name, s->center, s->lease};
	_cleanup_result_ PGresult *res = NULL;
	int r = write_text(s,
			   "INSERT INTO leases (name, owner, expires, stops, news) "
			   "VALUES ($1, $2, " NOW " + $3, 0, 0) "
			   "ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, expires = excluded.expires, "
			   "stops = 0, news = 0, view = NULL "
			   "WHERE leases.owner = excluded.owner OR leases.expires <= " NOW,
			   values, 3, &res, e);

	if (r < 0)
		return r;
	return pg_changed(res) ? 0 : err_set(e, -EBUSY, "another center works on '%s'", name);
}

static int share_drop(struct store *base, const char *name, struct err *e)
{
	struct pg_store *s = pg_own(base);
	const char *values[] = {name, s->center};

	return write_text(s, "DELETE FROM leases WHERE name = $1 AND owner = $2", values, 2, NULL, e);
}

static int share_renew(struct store *base, const json_t *leases, store_renewed_fn each, void *arg, struct err *e)
{
	struct pg_store *s = pg_own(base);
	_cleanup_free_ char *text = jsn_text(leases);
	const char *values[] = {s->center, s->lease, text};
	_cleanup_result_ PGresult *res = NULL;
	int r;

	if (!text)
		return err_nomem(e);
	r = write_text(s,
		       "UPDATE leases SET expires = " NOW " + $2, view = u.view::text "
		       "FROM json_to_recordset($3::json) AS u(name text, view json) "
		       "WHERE leases.name = u.name AND leases.owner = $1 AND leases.expires > " NOW " "
		       "RETURNING leases.name, leases.stops, leases.news",
		       values, 3, &res, e);
	for (int i = 0; r == 0 && i < PQntuples(res); i++)
		each(arg, PQgetvalue(res, i, 0), strtoull(PQgetvalue(res, i, 1), NULL, 10),
		     strtoull(PQgetvalue(res, i, 2), NULL, 10));
	return r;
}

static int share_others(struct store *base, store_other_fn each, void *arg, struct err *e)
{
	struct pg_store *s = pg_own(base);
	const char *values[] = {s->center};
	_cleanup_result_ PGresult *res = NULL;
	int r = pg_read(
	    s, &(struct pg_query){"SELECT name, view FROM leases WHERE owner <> $1 AND expires > " NOW, 1, values},
	    &res, e);

	for (int i = 0; r == 0 && i < PQntuples(res); i++) {
		_cleanup_json_ json_t *view = NULL;

		/* The name alone says that it is taken. */
		if (!PQgetisnull(res, i, 1))
			jsn_parse(PQgetvalue(res, i, 1), (size_t)PQgetlength(res, i, 1), SIZE_MAX, &view, NULL);
		each(arg, PQgetvalue(res, i, 0), view);
	}
	return r;
}

static int share_call(struct store *base, const char *name, bool stop, struct err *e)
{
	const char *values[] = {name};

	return write_text(pg_own(base),
			  stop ? "UPDATE leases SET stops = stops + 1 WHERE name = $1"
			       : "UPDATE leases SET news = news + 1 WHERE name = $1",
			  values, 1, NULL, e);
}

static int share_heard(struct store *base, const json_t *list, struct err *e)
{
	struct pg_store *s = pg_own(base);
	_cleanup_free_ char *text = jsn_text(list);
	const char *values[] = {s->center, text};

	if (!text)
		return err_nomem(e);
	return write_text(s,
			  "INSERT INTO heard (source, center, time) SELECT u.source, $1, " NOW " - u.ago "
			  "FROM json_to_recordset($2::json) AS u(source text, ago double precision) "
			  "ON CONFLICT (source) DO UPDATE SET center = excluded.center, "
			  "time = greatest(heard.time, excluded.time)",
			  values, 2, NULL, e);
}

static int share_hearings(struct store *base, double seconds, store_hearing_fn each, void *arg, struct err *e)
{
	struct pg_store *s = pg_own(base);
	char ago[40];
	const char *values[] = {s->center, ago};
	_cleanup_result_ PGresult *res = NULL;
	int r;

	snprintf(ago, sizeof(ago), "%.3f", seconds);
	r = pg_read(s,
		    &(struct pg_query){"SELECT source, " NOW " - time FROM heard WHERE center <> $1 AND time > " NOW
				       " - $2",
				       2, values},
		    &res, e);
	for (int i = 0; r == 0 && i < PQntuples(res); i++)
		each(arg, PQgetvalue(res, i, 0), strtod(PQgetvalue(res, i, 1), NULL));
	return r;
}

static int share_report(struct store *base, const char *job, const json_t *body, struct err *e)
{
	_cleanup_free_ char *text = jsn_text(body);
	const char *values[] = {job, text};

	if (!text)
		return err_nomem(e);
	return write_text(pg_own(base), "INSERT INTO reports (job, time, body) VALUES ($1, " NOW ", $2)", values, 2,
			  NULL, e);
}

static int share_reports(struct store *base, store_other_fn each, void *arg, struct err *e)
{
	struct pg_store *s = pg_own(base);
	_cleanup_result_ PGresult *any = NULL, *res = NULL;
	const char *values[] = {s->center};
	int r = pg_read(s, &(struct pg_query){"SELECT id FROM reports LIMIT 1"}, &any, e);

	if (r < 0 || PQntuples(any) == 0)
		return r;
	r = write_text(s,
		       "WITH taken AS (DELETE FROM reports WHERE time < " NOW " - " REPORT_STALE
		       " OR job IN (SELECT name FROM leases WHERE owner = $1) RETURNING id, job, body) "
		       "SELECT job, body FROM taken ORDER BY id",
		       values, 1, &res, e);
	for (int i = 0; r == 0 && i < PQntuples(res); i++) {
		_cleanup_json_ json_t *body = NULL;

		if (jsn_parse(PQgetvalue(res, i, 1), (size_t)PQgetlength(res, i, 1), SIZE_MAX, &body, NULL) == 0)
			each(arg, PQgetvalue(res, i, 0), body);
	}
	return r;
}

/* ---- the fence ---- */

static _Thread_local char fence[ID_MAX];

static void share_fence(struct store *base, const char *name)
{
	snprintf(fence, sizeof(fence), "%s", name ? name : "");
}

int pg_check_fence(struct pg_store *s, struct err *e)
{
	const char *values[] = {fence, s->center};
	_cleanup_result_ PGresult *res = NULL;
	int r;

	if (!*fence)
		return 0;
	r = pg_run(
	    s->writer,
	    &(struct pg_query){"SELECT 1 FROM leases WHERE name = $1 AND owner = $2 AND expires > " NOW, 2, values},
	    &res, e);
	if (r < 0)
		return r;
	return PQntuples(res) ? 0 : err_set(e, -ECANCELED, "'%s' is not this center's any more", fence);
}

const struct store_share_ops pg_share_ops = {
    .join = share_join,
    .take = share_take,
    .drop = share_drop,
    .renew = share_renew,
    .others = share_others,
    .call = share_call,
    .heard = share_heard,
    .hearings = share_hearings,
    .report = share_report,
    .reports = share_reports,
    .fence = share_fence,
};
