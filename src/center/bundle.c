/*
 * All that is known of a job in one file, for somebody who is to help: its logs, its rows, what was announced of it,
 * the versions of everything. Secrets are taken out of each once more. The files are made in a directory of their own
 * and packed by tar(1); one bundle is made at a time.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "base/err.h"
#include "base/io.h"
#include "base/proc.h"
#include "center/engine.h"
#include "version.h"

#define BUNDLE_ROWS   500u
#define BUNDLE_EVENTS 2000u

struct bundle {
	struct engine *en;
	const char *job;
	char dir[4096 + 64]; /* what is packed: below LOGS/.bundle */
	const json_t *scope; /* tags that things must have to be in it; NULL: none */
	bool (*has)(const json_t *scope, const json_t *tags);
	struct model_job row;
	struct model_source source;
	bool hidden; /* there is a source, and it isn't in it */
	json_t *runs;
};

static int put_text(const struct bundle *b, const char *name, const char *text, size_t n, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/%s", b->dir, name);
	_cleanup_close_ int fd = path ? open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600) : -1;
	int r;

	if (fd < 0)
		return err_sys(e, "cannot write '%s'", name);
	r = io_write_full(fd, text, n);
	return r < 0 ? err_set(e, r, "cannot write '%s': %s", name, strerror(-r)) : 0;
}

/* Takes the reference. */
static int put_json(const struct bundle *b, const char *name, json_t *value, struct err *e)
{
	_cleanup_json_ json_t *own = value, *clean = value ? redact_json(value) : NULL;
	_cleanup_free_ char *text = clean ? json_dumps(clean, JSON_INDENT(1)) : NULL;

	return text ? put_text(b, name, text, strlen(text), e) : err_nomem(e);
}

/* Who may see the job need not see its source, or an image that was labelled anew. */
static bool may_have(const struct bundle *b, const json_t *tags)
{
	return !b->scope || b->has(b->scope, tags);
}

/* ---- logs ---- */

static int put_log(const struct bundle *b, const json_t *log, struct err *e)
{
	const char *part = json_string_value(json_object_get(log, "part"));
	json_int_t run = json_integer_value(json_object_get(log, "run"));
	_cleanup_(str_release) struct str text = {0};
	struct redact redact = {0};
	char name[64];
	uint64_t end;
	int r = joblog_read(b->en, b->job, (uint64_t)run, (enum joblog_part)joblog_part_of(part), 0, &text, &end, e);

	if (r == -ENOENT) /* gone meanwhile */
		return 0;
	if (r < 0)
		return r;
	snprintf(name, sizeof(name), "logs/%llu-%s.log", (unsigned long long)run, part);
	redact_text(&redact, text.s, text.len);
	return put_text(b, name, text.s, text.len, e);
}

static int put_logs(const struct bundle *b, struct err *e)
{
	_cleanup_json_ json_t *list = joblog_list(b->en, b->job);
	json_t *log;
	size_t i;
	int r = list ? 0 : err_nomem(e);

	json_array_foreach(list, i, log)
	{
		r = r < 0 ? r : put_log(b, log, e);
	}
	return r;
}

/* ---- rows ---- */

struct rows {
	const struct bundle *b;
	json_t *list;
};

static int add_run(void *arg, void *row)
{
	struct rows *v = arg;

	return json_array_append_new(v->list, model_json(&model_runs, row, false, id_now())) < 0 ? -ENOMEM : 0;
}

static int add_image(void *arg, void *row)
{
	const struct model_image *im = row;
	struct rows *v = arg;

	if (!may_have(v->b, im->tags))
		return 0;
	return json_array_append_new(v->list, model_json(&model_images, row, false, id_now())) < 0 ? -ENOMEM : 0;
}

static json_t *rows_of(const struct bundle *b, const struct model_noun *n, store_each_fn each)
{
	const struct store_filter f = {"job", b->job, STORE_EQUAL};
	const struct store_query q = {.filters = &f, .nfilters = 1, .limit = BUNDLE_ROWS};
	struct store *s = b->en->store;
	struct rows v = {b, json_array()};

	if (v.list && s->ops->list(s, n, &q, each, &v, NULL, NULL) >= 0)
		return v.list;
	json_decref(v.list);
	return NULL;
}

static int add_event(void *arg, uint64_t id, const char *type, const char *data)
{
	struct rows *v = arg;
	_cleanup_json_ json_t *o = strstr(data, v->b->job) ? json_loads(data, 0, NULL) : NULL;

	if (!o || !may_have(v->b, json_object_get(o, "tags")))
		return 0;
	if (json_array_size(v->list) >= BUNDLE_EVENTS)
		json_array_remove(v->list, 0);
	return json_array_append_new(v->list,
				     json_pack("{s:I, s:s, s:O}", "id", (json_int_t)id, "type", type, "data", o)) < 0
		   ? -ENOMEM
		   : 0;
}

static json_t *events_of(const struct bundle *b)
{
	struct rows v = {b, json_array()};
	struct store *s = b->en->store;

	if (v.list && s->ops->events(s, 0, STORE_EVENTS_KEPT, add_event, &v, NULL) >= 0)
		return v.list;
	json_decref(v.list);
	return NULL;
}

static json_t *versions_of(const struct bundle *b)
{
	struct utsname u;

	if (uname(&u) < 0)
		return NULL;
	return json_pack("{s:s, s:s*, s:{s:s, s:s, s:s}, s:s}", "center", REPLANT_VERSION, "agent",
			 b->source.agent_version, "host", "system", u.sysname, "release", u.release, "machine",
			 u.machine, "provider", b->en->provider->ops->kind);
}

/* ---- the summary ---- */

static void say_time(struct str *b, const char *what, double t)
{
	time_t when = (time_t)t;
	char text[32];
	struct tm tm;

	if (t <= 0 || !gmtime_r(&when, &tm))
		return;
	strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &tm);
	str_addf(b, "%s: %s\n", what, text);
}

static void say_attempts(struct str *b, const json_t *runs)
{
	json_t *run, *error;
	size_t i;

	json_array_foreach(runs, i, run)
	{
		error = json_object_get(run, "error");
		str_addf(b, "Run %lld (%s): %s%s%s\n", json_integer_value(json_object_get(run, "number")),
			 json_string_value(json_object_get(run, "id")) ?: "",
			 json_string_value(json_object_get(run, "state")) ?: "", error ? ", " : "",
			 json_string_value(json_object_get(error, "message")) ?: "");
	}
}

/* What the matter is, in sentences; docs/errors.md has a page for each code. */
static int put_summary(const struct bundle *b, struct err *e)
{
	_cleanup_json_ json_t *capacity = NULL;
	_cleanup_(str_release) struct str text = {0};
	const char *code = json_string_value(json_object_get(b->row.error, "code"));
	struct provider *p = b->en->provider;
	struct redact redact = {0};
	char space[16];

	str_addf(&text, "Job %s is %s%s%s.\n", b->job, model_job_states[b->row.state], b->row.stage ? ", " : "",
		 model_job_stages[b->row.stage]);
	if (code)
		str_addf(&text, "It failed: %s\nCode: %s (what it means and what to do: docs/errors.md)\n",
			 json_string_value(json_object_get(b->row.error, "message")) ?: "", code);
	say_time(&text, "Created", b->row.created);
	say_time(&text, "Started", b->row.started);
	say_time(&text, "Finished", b->row.finished);
	say_time(&text, "This bundle", id_now());
	if (b->hidden)
		str_add(&text, "Its source is not in this bundle: it lacks the tags that were asked with.\n");
	else if (!b->source.id)
		str_add(&text, "Its source was removed from the center.\n");
	else
		str_addf(&text, "Its source %s is %s; heard of %.0f s ago.\n", b->source.id,
			 seen_online(b->en, b->source.id) ? "there" : "not heard of", seen_ago(b->en, b->source.id));
	if (p->ops->capacity(p, &capacity, NULL) == 0)
		str_addf(&text, "The center has %s free.\n",
			 str_bytes((uint64_t)MAX(0, json_integer_value(json_object_get(capacity, "free"))), space,
				   sizeof(space)));
	say_attempts(&text, b->runs);
	if (!str_ok(&text))
		return err_nomem(e);
	redact_text(&redact, text.s, text.len);
	return put_text(b, "summary.txt", text.s, text.len, e);
}

/* ---- packing ---- */

static int fill(struct bundle *b, struct err *e)
{
	struct store *s = b->en->store;
	int r;

	if (s->ops->get(s, &model_sources, b->row.source, &b->source, e) < 0 && e->code != -ENOENT)
		return e->code;
	if (b->source.id && !may_have(b, b->source.tags)) {
		model_source_release(&b->source);
		b->hidden = true;
	}
	b->runs = rows_of(b, &model_runs, add_run);
	if (!b->runs)
		return err_nomem(e);
	r = put_json(b, "job.json", model_json(&model_jobs, &b->row, false, id_now()), e);
	r = r ?: put_json(b, "runs.json", json_incref(b->runs), e);
	r = r ?: put_json(b, "images.json", rows_of(b, &model_images, add_image), e);
	if (r == 0 && b->source.id)
		r = put_json(b, "source.json", model_json(&model_sources, &b->source, false, id_now()), e);
	r = r ?: put_json(b, "events.json", events_of(b), e);
	r = r ?: put_json(b, "versions.json", versions_of(b), e);
	r = r ?: put_summary(b, e);
	return r ?: put_logs(b, e);
}

static int pack(struct bundle *b, const char *work, int *ret_fd, struct err *e)
{
	_cleanup_free_ char *file = str_printf("%s/bundle.tar.gz", work), *name = str_printf("replant-%s", b->job),
			    *logs = NULL;
	int r;

	if (!file || !name)
		return err_nomem(e);
	snprintf(b->dir, sizeof(b->dir), "%s/%s", work, name);
	logs = str_printf("%s/logs", b->dir);
	if (!logs)
		return err_nomem(e);
	r = io_mkdirs(logs, 0700, e);
	r = r ?: fill(b, e);
	if (r == 0) {
		const char *const argv[] = {"tar", "--owner=0", "--group=0", "--numeric-owner", "-C", work, "-czf",
					    file,  name,        NULL};

		r = proc_run(argv, 65536, NULL, e);
	}
	if (r < 0)
		return r;
	*ret_fd = open(file, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	return *ret_fd < 0 ? err_sys(e, "cannot open the bundle") : 0;
}

static int make(struct bundle *b, int *ret_fd, struct err *e)
{
	_cleanup_free_ char *work = str_printf("%s/.bundle", b->en->logs);
	int r = work ? io_remove_tree(work, e) : err_nomem(e); /* a killed center's */

	r = r ?: pack(b, work, ret_fd, e);
	if (work)
		io_remove_tree(work, NULL);
	return r;
}

int bundle_make(void *arg, const char *job, const json_t *scope, bool (*has)(const json_t *scope, const json_t *tags),
		int *ret_fd, struct api_fault *f)
{
	struct engine *en = arg;
	struct bundle b = {.en = en, .job = job, .scope = scope, .has = has};
	struct err e = {0};
	int r = en->store->ops->get(en->store, &model_jobs, job, &b.row, &e);

	if (r < 0)
		return api_fault_err(f, &e);
	if (atomic_exchange(&en->bundling, true)) {
		model_job_release(&b.row);
		return api_fault_set(f, 409, "in_use", NULL, "another bundle is being made; ask again in a moment");
	}
	r = make(&b, ret_fd, &e);
	en->bundling = false;
	model_job_release(&b.row);
	model_source_release(&b.source);
	json_decref(b.runs);
	return r < 0 ? api_fault_err(f, &e) : 0;
}
