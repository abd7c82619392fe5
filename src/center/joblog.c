/* The texts of a job's runs, in pieces (engine.h). Nothing is kept but the files: whatever is to be known of a text
 * follows from the names and sizes of its pieces. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/io.h"
#include "base/log.h"
#include "center/engine.h"

#define JOBLOG_PIECE  (192u << 10) /* one that is as long gets no more */
#define JOBLOG_PIECES 4u           /* of a text; those behind the first go */
#define JOBLOG_RUNS   10u          /* the newest, of a job */
#define JOBLOG_MAX    1024u        /* pieces of a job that are looked at */
#define JOBLOG_END    UINT64_MAX   /* behind what there is */

const char *const joblog_parts[] = {
    [JOBLOG_AGENT] = "agent", [JOBLOG_RECEIVER] = "receiver", [JOBLOG_CONVERSION] = "conversion",
    [JOBLOG_BOOT] = "boot",   [JOBLOG_PARTS] = NULL,
};

struct piece {
	uint64_t run, start, size;
	int part;
	double updated;
};

struct pieces {
	struct piece v[JOBLOG_MAX]; /* by run, part and start */
	size_t n;
};

static inline void unlockp(struct engine **en)
{
	pthread_mutex_unlock(&(*en)->log_lock);
}
#define LOG_LOCK(e)                                                                                                    \
	_cleanup_(unlockp) struct engine *logs_locked_ = (e);                                                          \
	pthread_mutex_lock(&logs_locked_->log_lock)

struct path {
	char s[4096 + 128];
};

/* Ids and parts are ours, and short. */
static void path_of(const struct engine *en, const char *job, const struct piece *p, struct path *ret)
{
	must(id_is("job", job));
	if (p)
		snprintf(ret->s, sizeof(ret->s), "%s/%s/%llu-%s-%llu.log", en->logs, job, (unsigned long long)p->run,
			 joblog_parts[p->part], (unsigned long long)p->start);
	else
		snprintf(ret->s, sizeof(ret->s), "%s/%s", en->logs, job);
}

int joblog_part_of(const char *word)
{
	return model_word(joblog_parts, word);
}

/* "3-agent-196608.log" */
static bool piece_parse(const char *name, struct piece *ret)
{
	char run[24], part[24], start[24];
	int end = 0;

	if (sscanf(name, "%20[0-9]-%20[a-z]-%20[0-9].log%n", run, part, start, &end) != 3 || !end || name[end])
		return false;
	ret->part = joblog_part_of(part);
	return ret->part >= 0 && str_u64(run, 0, UINT64_MAX, &ret->run) == 0 &&
	       str_u64(start, 0, UINT64_MAX, &ret->start) == 0;
}

static int piece_compare(const void *a, const void *b)
{
	const struct piece *x = a, *y = b;

	if (x->run != y->run)
		return x->run < y->run ? -1 : 1;
	if (x->part != y->part)
		return x->part < y->part ? -1 : 1;
	return x->start < y->start ? -1 : x->start > y->start;
}

/* All of a job. Under the lock, like all that follow. */
static struct pieces *pieces_of(const struct engine *en, const char *job)
{
	struct pieces *l = calloc(1, sizeof(*l));
	struct path path;
	struct dirent *ent;
	DIR *d;

	path_of(en, job, NULL, &path);
	d = l ? opendir(path.s) : NULL;
	while (d && (ent = readdir(d)) && l->n < JOBLOG_MAX) {
		struct piece *p = &l->v[l->n];
		struct stat st;

		if (!piece_parse(ent->d_name, p) || fstatat(dirfd(d), ent->d_name, &st, AT_SYMLINK_NOFOLLOW) < 0 ||
		    !S_ISREG(st.st_mode))
			continue;
		p->size = (uint64_t)st.st_size;
		p->updated = (double)st.st_mtim.tv_sec;
		l->n++;
	}
	if (d)
		closedir(d);
	if (l)
		qsort(l->v, l->n, sizeof(*l->v), piece_compare);
	return l;
}

/* Those of one text: the first and how many. */
static struct piece *pieces_find(struct pieces *l, uint64_t run, int part, size_t *ret_n)
{
	size_t i = 0, n = 0;

	while (i < l->n && (l->v[i].run != run || l->v[i].part != part))
		i++;
	while (i + n < l->n && l->v[i + n].run == run && l->v[i + n].part == part)
		n++;
	*ret_n = n;
	return &l->v[i];
}

static uint64_t piece_end(const struct piece *p)
{
	return p->start + p->size;
}

/* ---- writing ---- */

static void pieces_drop(const struct engine *en, const char *job, const struct piece *p)
{
	struct path path;

	path_of(en, job, p, &path);
	if (unlink(path.s) < 0 && errno != ENOENT)
		log_warn("'%s' can't be removed: %m", path.s);
}

/* One more piece is about to be there: room for it in its text, and among the runs. */
static void pieces_make_room(const struct engine *en, const char *job, struct pieces *l, const struct piece *first,
			     size_t n, uint64_t run)
{
	for (size_t i = 1; i < n && n - i + 1 >= JOBLOG_PIECES; i++)
		pieces_drop(en, job, &first[i]);
	for (size_t i = 0; i < l->n && run > JOBLOG_RUNS; i++)
		if (l->v[i].run <= run - JOBLOG_RUNS)
			pieces_drop(en, job, &l->v[i]);
}

static int piece_write(const struct engine *en, const char *job, const struct piece *p, const char *text, size_t n,
		       struct err *e)
{
	_cleanup_close_ int fd = -1;
	struct path path;
	int r;

	path_of(en, job, NULL, &path);
	r = io_mkdirs(path.s, 0700, e);
	if (r < 0)
		return r;
	path_of(en, job, p, &path);
	fd = open(path.s, O_WRONLY | O_CREAT | O_APPEND | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_sys(e, "cannot write '%s'", path.s);
	r = io_write_full(fd, text, n);
	return r < 0 ? err_set(e, r, "cannot write '%s': %s", path.s, strerror(-r)) : 0;
}

/* What `text` has behind the end of what there is. Under the lock. */
static int text_append(struct engine *en, const char *job, uint64_t run, enum joblog_part part, uint64_t at,
		       const char *text, size_t n, uint64_t *ret_end, struct err *e)
{
	_cleanup_free_ struct pieces *l = pieces_of(en, job);
	struct piece *first, *last, next = {.run = run, .part = part};
	uint64_t end = 0;
	size_t count;
	int r;

	if (!l)
		return err_nomem(e);
	first = pieces_find(l, run, part, &count);
	last = count ? &first[count - 1] : NULL;
	end = last ? piece_end(last) : 0;
	*ret_end = end;
	at = at == JOBLOG_END ? end : at;
	if (n == 0 || at + n <= end)
		return 0;
	if (at < end) {
		text += end - at;
		n -= (size_t)(end - at);
		at = end;
	}
	next.start = at;
	if (last && at == end && last->size < JOBLOG_PIECE)
		next.start = last->start;
	else
		pieces_make_room(en, job, l, first, count, run);
	r = piece_write(en, job, &next, text, n, e);
	if (r == 0)
		*ret_end = at + n;
	return r;
}

uint64_t joblog_end(struct engine *en, const char *job, uint64_t run, enum joblog_part part)
{
	_cleanup_free_ struct pieces *l = NULL;
	struct piece *first;
	size_t n;
	LOG_LOCK(en);

	l = pieces_of(en, job);
	if (!l)
		return 0;
	first = pieces_find(l, run, part, &n);
	return n ? piece_end(&first[n - 1]) : 0;
}

int joblog_remove(struct engine *en, const char *job, struct err *e)
{
	struct path path;
	LOG_LOCK(en);

	path_of(en, job, NULL, &path);
	return io_remove_tree(path.s, e);
}

void joblog_sweep(struct engine *en)
{
	DIR *d = opendir(en->logs);
	struct dirent *ent;

	while (d && (ent = readdir(d))) {
		_cleanup_(model_job_release) struct model_job job = {0};

		if (id_is("job", ent->d_name) &&
		    en->store->ops->get(en->store, &model_jobs, ent->d_name, &job, NULL) == -ENOENT)
			joblog_remove(en, ent->d_name, NULL);
	}
	if (d)
		closedir(d);
}

bool joblog_is_wanted(const json_t *parameters)
{
	return !json_is_false(json_object_get(parameters, "diagnostic_logs"));
}

void joblog_want(struct engine *en, const char *job, const json_t *parameters)
{
	bool wanted = joblog_is_wanted(parameters);
	struct live *l;
	struct err e = {0};

	pthread_mutex_lock(&en->lock);
	l = engine_live(en, job);
	if (l) {
		l->logs = wanted;
		l->log_at = wanted ? l->log_at : 0;
	}
	pthread_mutex_unlock(&en->lock);
	/* Who saw the old wish is within the lock still. */
	if (!wanted && joblog_remove(en, job, &e) < 0)
		log_warn("the logs of job %s can't be removed: %s", job, e.msg);
}

/* ---- the agent's ---- */

/* Of the run that is on: its job and number. 1; 0: it isn't on. */
static int log_of_live(struct engine *en, const char *source, const char *run, char job[ID_MAX], uint64_t *ret_number,
		       bool *ret_wanted)
{
	struct live *l;
	ENGINE_LOCK(en);

	l = engine_live_of_source(en, source);
	if (!l || strcmp(l->run, run) != 0)
		return 0;
	snprintf(job, ID_MAX, "%s", l->job);
	*ret_number = l->number;
	*ret_wanted = l->logs;
	return 1;
}

/* The last words come when the job may be somewhere else. Within the lock, so that nobody changes his mind meanwhile.
 */
static int log_of_row(struct engine *en, const char *source, const char *id, char job[ID_MAX], uint64_t *ret_number,
		      bool *ret_wanted)
{
	_cleanup_(model_run_release) struct model_run run = {0};
	_cleanup_(model_job_release) struct model_job row = {0};
	struct store *s = en->store;

	if (s->ops->get(s, &model_runs, id, &run, NULL) < 0 || s->ops->get(s, &model_jobs, run.job, &row, NULL) < 0 ||
	    strcmp(row.source, source) != 0 || row.state == JOB_DELETING || run.number + JOBLOG_RUNS <= row.number)
		return 0;
	snprintf(job, ID_MAX, "%s", row.id);
	*ret_number = run.number;
	*ret_wanted = joblog_is_wanted(row.parameters);
	return 1;
}

static void log_reached(struct engine *en, const char *job, uint64_t number, uint64_t end)
{
	struct live *l;
	ENGINE_LOCK(en);

	l = engine_live(en, job);
	if (l && l->number == number)
		l->log_at = end;
}

static void agent_append(struct engine *en, const char *source, const struct model_log_request *log, char *text,
			 struct err *e)
{
	uint64_t number = 0, end = 0;
	struct redact redact = {0};
	char job[ID_MAX] = "";
	bool wanted = false;
	LOG_LOCK(en);

	if (!log_of_live(en, source, log->run, job, &number, &wanted) &&
	    !log_of_row(en, source, log->run, job, &number, &wanted))
		return;
	if (!wanted)
		return;
	redact_text(&redact, text, strlen(text));
	if (text_append(en, job, number, JOBLOG_AGENT, log->at, text, strlen(text), &end, e) == 0)
		log_reached(en, job, number, end);
}

void joblog_of_agent(struct engine *en, const char *source, const struct model_log_request *log)
{
	_cleanup_free_ char *text = strdup(log->text);
	struct err e = {0};

	if (text)
		agent_append(en, source, log, text, &e);
	if (e.code)
		log_debug("a log of %s is not kept: %s", source, e.msg);
}

/* ---- reading ---- */

static json_t *text_json(const struct piece *first, size_t n)
{
	uint64_t size = 0;

	for (size_t i = 0; i < n; i++)
		size += first[i].size;
	return json_pack("{s:I, s:s, s:I, s:I, s:f}", "run", (json_int_t)first->run, "part", joblog_parts[first->part],
			 "size", (json_int_t)size, "end", (json_int_t)piece_end(&first[n - 1]), "updated",
			 first[n - 1].updated);
}

json_t *joblog_list(struct engine *en, const char *job)
{
	_cleanup_free_ struct pieces *l = NULL;
	json_t *list = json_array();
	size_t n;
	LOG_LOCK(en);

	l = pieces_of(en, job);
	for (size_t i = 0; l && list && i < l->n; i += n) {
		pieces_find(l, l->v[i].run, l->v[i].part, &n);
		json_array_append_new(list, text_json(&l->v[i], n));
	}
	if (l)
		return list;
	json_decref(list);
	return NULL;
}

static uint64_t newest_run(const struct pieces *l, int part)
{
	uint64_t run = 0;

	for (size_t i = 0; i < l->n; i++)
		if (l->v[i].part == part)
			run = MAX(run, l->v[i].run);
	return run;
}

static void say_missing(struct str *b, uint64_t n)
{
	if (b->len && b->s[b->len - 1] != '\n')
		str_add(b, "\n");
	str_addf(b, "[... %llu bytes are missing here ...]\n", (unsigned long long)n);
}

static int piece_read(const struct engine *en, const char *job, const struct piece *p, uint64_t since, struct str *ret,
		      struct err *e)
{
	_cleanup_free_ char *text = NULL;
	struct path path;
	size_t n, skip = since > p->start ? (size_t)(since - p->start) : 0;
	int r;

	path_of(en, job, p, &path);
	r = io_read_file(path.s, 2 * (JOBLOG_PIECE + MODEL_LOG_MAX), &text, &n, e);
	if (r == 0 && skip < n)
		str_add_mem(ret, text + skip, n - skip);
	return r;
}

int joblog_read(struct engine *en, const char *job, uint64_t run, enum joblog_part part, uint64_t since,
		struct str *ret, uint64_t *ret_end, struct err *e)
{
	_cleanup_free_ struct pieces *l = NULL;
	struct piece *first;
	uint64_t at = since;
	size_t n;
	int r = 0;
	LOG_LOCK(en);

	l = pieces_of(en, job);
	if (!l)
		return err_nomem(e);
	first = pieces_find(l, run ? run : newest_run(l, part), part, &n);
	if (!n)
		return err_set(e, -ENOENT, "there is no such log of the job");
	for (size_t i = 0; r == 0 && i < n; i++) {
		if (piece_end(&first[i]) <= since)
			continue;
		if (first[i].start > at)
			say_missing(ret, first[i].start - at);
		r = piece_read(en, job, &first[i], since, ret, e);
		at = piece_end(&first[i]);
	}
	*ret_end = piece_end(&first[n - 1]);
	return r < 0 ? r : str_ok(ret) ? 0 : err_nomem(e);
}

/* ---- of the job's thread ---- */

void joblog_open(struct joblog_feed *f, struct live *l, enum joblog_part part)
{
	*f = (struct joblog_feed){.live = l, .part = part};
	l->feed = f;
}

/* The wish is looked at within the lock: who changed it removes what there is behind us. */
static void feed_write(struct joblog_feed *f)
{
	struct live *l = f->live;
	struct err e = {0};
	uint64_t end;
	LOG_LOCK(l->engine);

	if (str_ok(&f->out) && f->out.len && l->logs &&
	    text_append(l->engine, l->job, l->number, f->part, JOBLOG_END, f->out.s, f->out.len, &end, &e) < 0)
		log_debug("job %s: %s", l->job, e.msg);
	str_release(&f->out);
}

static void feed_line(struct joblog_feed *f, char *line)
{
	time_t now = (time_t)id_now();
	char when[32];
	struct tm tm;

	str_utf8(line);
	redact_text(&f->redact, line, strlen(line));
	gmtime_r(&now, &tm);
	strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &tm);
	str_addf(&f->out, "%s %s\n", when, line);
}

static void feed_end_line(struct joblog_feed *f)
{
	f->line[f->n] = '\0';
	f->n = 0;
	feed_line(f, f->line);
}

/* ESC [ ... letter, or ESC and a character. */
static bool feed_is_escape(struct joblog_feed *f, unsigned char c)
{
	if (f->escape == 1)
		f->escape = c == '[' ? 2 : 0;
	else if (f->escape == 2)
		f->escape = c >= '@' && c <= '~' ? 0 : 2;
	else if (c == 0x1b)
		f->escape = 1;
	else
		return false;
	return true;
}

void joblog_console(struct joblog_feed *f, const char *p, size_t n)
{
	for (size_t i = 0; f && i < n; i++) {
		unsigned char c = (unsigned char)p[i];

		if (feed_is_escape(f, c))
			continue;
		if (c == '\n' && f->n) /* empty ones say nothing */
			feed_end_line(f);
		if (c < ' ' && c != '\t')
			continue;
		f->line[f->n++] = (char)c;
		if (f->n == sizeof(f->line) - 1)
			feed_end_line(f);
	}
	if (f)
		feed_write(f);
}

void joblog_say(struct joblog_feed *f, const char *fmt, ...)
{
	char line[JOBLOG_LINE];
	va_list ap;

	if (!f)
		return;
	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	for (char *c = line; *c; c++)
		if ((unsigned char)*c < ' ' || *c == 0x7f)
			*c = ' ';
	if (f->n)
		feed_end_line(f);
	feed_line(f, line);
	feed_write(f);
}

void joblog_close(struct joblog_feed *f)
{
	if (f->n)
		feed_end_line(f);
	feed_write(f);
	f->live->feed = NULL;
}
