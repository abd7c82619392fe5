/*
 * Watching jobs: on a terminal a few lines in place, elsewhere a line per change. The center is asked when its events
 * tell of the job, or once a second while they can't be had; it may be away for a while (a restart, a network that
 * hiccups) without ending the watch.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/id.h"
#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

#define WATCH_JOBS_MAX 64

struct watched {
	const char *id; /* borrowed */
	json_t *job;    /* last seen, NULL: not yet */
	bool ended;
	char *said; /* what the last line was about, when not on a terminal */
	double percent;
};

struct watch {
	struct cli *c;
	struct watched jobs[WATCH_JOBS_MAX];
	size_t n;
	size_t lines; /* drawn on the terminal, to be drawn over */
	struct cli_patience patience;
	struct cli_follow follow;
};

void cli_sleep(double s)
{
	struct timespec t = {(time_t)s, (long)((s - (double)(time_t)s) * 1e9)};

	while (nanosleep(&t, &t) < 0 && errno == EINTR)
		;
}

void cli_patience_ok(struct cli_patience *p)
{
	*p = (struct cli_patience){0};
}

int cli_patience_wait(const struct cli *c, struct cli_patience *p, struct err *e)
{
	double now = id_now_mono(), left;
	unsigned char dice;

	if (p->failures++ == 0)
		p->lost = now;
	left = p->lost + (double)c->retry - now;
	if (left <= 0)
		return err_prefix(e, "no answer for %u s", (unsigned)(now - p->lost));
	/* 0.5, 1, 2, 4, 8 s, a quarter more or less, so that a hundred watchers don't come back in the same instant. */
	id_random(&dice, 1);
	cli_sleep(MIN(left, (double)(1u << MIN(p->failures - 1, 4u)) * 0.5 * (0.75 + dice / 510.0)));
	return 0;
}

const char *cli_remedy(const json_t *job)
{
	const char *code = get_str(job, "error.code");
	static const struct {
		const char *code, *remedy;
	} rows[] = {
	    {"no_space", "Free space in the region, then start the job again: it goes on from what is there."},
	    {"read_error", "The source's disk has unreadable sectors. Repair it, or make the job anew with "
			   "--on-read-error zero to have them replaced by zeros and listed."},
	    {"source_offline", "See that the server runs and that 'replant-agent status' on it is well, then start the "
			       "job again."},
	    {"source_silent", "See that the server runs and that 'replant-agent status' on it is well, then start the "
			      "job again."},
	    {"source_gone", "The server was removed from the center. Enrol it again and make a new job."},
	    {"connection_failed",
	     "See that the server reaches the center's host on every port the receiver may use, then "
	     "start the job again."},
	    {"source_busy",
	     "Start the job again at a quieter time, or allow a longer freeze with --max-freeze; what was "
	     "copied stays."},
	    {"hook_failed",
	     "See what is wrong with the hook on the server, in /etc/replant/hooks.d, then start the job "
	     "again."},
	    {"guard_lost",
	     "See what killed the agent's helper on the server (too little memory, as a rule), then start the "
	     "job again."},
	    {"freeze_failed", "See what the server's kernel log says of that filesystem, then start the job again."},
	    {"timed_out", "See that the connection between server and center is stable, then start the job again."},
	    {"not_permitted", "See that the agent runs as root and isn't confined, then start the job again."},
	    {"convert_failed",
	     "The copy is kept and the server is as it was. Starting the job again converts it anew."},
	    {"test_failed", "See 'replant jobs report'; starting the job again repeats the test."},
	    {"test_boot_failed",
	     "Look at 'replant images report' and 'replant images screenshot'; starting the job again "
	     "repeats the boot."},
	};

	if (strstr(get_str(job, "error.message"), "start the job again"))
		return NULL;
	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		if (strcmp(code, rows[i].code) == 0)
			return rows[i].remedy;
	return NULL;
}

static const char *watch_name(const struct watched *w)
{
	const char *name = get_str(w->job, "name");

	return *name ? name : w->id;
}

/* Bytes are the transfer's; in later stages they are history. */
static bool watch_syncs(const json_t *job)
{
	return strcmp(get_str(job, "stage"), "syncing") == 0;
}

double cli_percent(const json_t *job)
{
	double p = get_num(job, watch_syncs(job) ? "progress.percent" : "step.percent", -1);

	return MIN(p, 100.0);
}

static bool watch_has_figures(const json_t *job)
{
	return strcmp(get_str(job, "state"), "running") == 0 && (watch_syncs(job) || cli_percent(job) >= 0);
}

static bool watch_is(const struct watched *w, const char *state)
{
	return strcmp(get_str(w->job, "state"), state) == 0;
}

/* The sender's phases as a person would say them. */
static const char *watch_phase(const char *phase)
{
	static const struct {
		const char *phase, *text;
	} rows[] = {{"full", "copying"}, {"compare", "comparing"}, {"frozen", "source is frozen"}};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		if (strcmp(phase, rows[i].phase) == 0)
			return rows[i].text;
	return phase;
}

/* "syncing, round 2: comparing", or the state when it isn't at work. */
static void watch_where(struct str *b, const json_t *job)
{
	const char *stage = get_str(job, "stage"), *text = get_str(job, "step.text"), *step = get_str(job, "step.name");
	const char *phase;
	double round = get_num(job, "progress.round", 0);

	if (!*stage || strcmp(get_str(job, "state"), "running") != 0) {
		out_word(b, get_str(job, "state"));
		if (*stage && strcmp(get_str(job, "state"), "finished") != 0) {
			str_add(b, " while ");
			out_word(b, stage);
		}
		return;
	}
	if (get_true(job, "parameters.incremental") && get_num(job, "number", 0) > 0)
		str_addf(b, "run %.0f, ", get_num(job, "number", 0));
	out_word(b, stage);
	if (strcmp(stage, "syncing") == 0 && round > 0)
		str_addf(b, ", round %.0f", round);
	phase = strcmp(stage, "syncing") == 0 ? get_str(job, "progress.phase") : "";
	if (*text || *phase || *step)
		str_add(b, ": ");
	if (*text)
		out_clean(b, text);
	else
		out_word(b, *phase ? watch_phase(phase) : step);
}

static void watch_sep(struct str *b)
{
	if (b->len)
		str_add(b, "  ");
}

/* "3.1 of 7.2 GiB  112 MiB/s  2 min 10 s left" */
static void watch_figures(struct str *b, const json_t *job)
{
	double total = get_num(job, "progress.bytes_total", 0), done = get_num(job, "progress.bytes_done", 0);
	double speed = get_num(job, "progress.speed", 0);
	bool syncs = watch_syncs(job);
	double left = get_num(job, syncs ? "progress.seconds_left" : "step.seconds_left", -1);

	if (!syncs && left < 0)
		str_add(b, "takes longer than usual");
	if (syncs && total > 0) {
		out_size(b, done);
		str_add(b, " of ");
		out_size(b, total);
	}
	if (syncs && speed > 0) {
		watch_sep(b);
		out_size(b, speed);
		str_add(b, "/s");
	}
	if (left >= 0) {
		watch_sep(b);
		if (left < 59.5)
			str_addf(b, "%.0f s", left);
		else
			out_duration(b, left);
		str_add(b, " left");
	}
}

static void watch_freeze(struct str *b, const json_t *job)
{
	double expected = get_num(job, "progress.expected_freeze_seconds", -1);
	double froze = get_num(job, "progress.freeze_ms", 0);

	if (froze > 0) {
		str_add(b, "was frozen for ");
		out_duration(b, froze / 1000);
	} else if (expected >= 0) {
		str_add(b, "expected freeze ");
		out_duration(b, expected);
	}
}

static void watch_bar(struct str *b, double percent, size_t columns)
{
	size_t full = (size_t)(percent / 100 * (double)columns + 0.5);

	str_add(b, out_on(OUT_CYAN));
	for (size_t i = 0; i < columns; i++) {
		if (i == full)
			str_addf(b, "%s%s", out_off(), out_on(OUT_DIM));
		str_add(b, out_utf8() ? (i < full ? "━" : "─") : (i < full ? "#" : "-"));
	}
	str_add(b, out_off());
}

/* One line of the terminal, cut to its width: a wrapped one could not be drawn over. */
static void watch_line(struct watch *w, struct str *screen, const char *text, enum out_colour c)
{
	str_add(screen, out_on(c));
	out_fit(screen, text, out_width() - 1);
	str_addf(screen, "%s\033[K\n", out_off());
	w->lines++;
}

static void watch_draw_progress(struct watch *w, struct str *screen, const struct watched *j)
{
	_cleanup_(str_release) struct str b = {0};
	double percent = cli_percent(j->job);
	size_t width = out_width(), bar, figures;

	watch_figures(&b, j->job);
	if (percent >= 0 && width > 30) {
		figures = b.s ? out_columns(b.s) : 0;
		bar = width > figures + 32 ? MIN((size_t)40, width - figures - 12) : 0;
		str_add(screen, "  ");
		if (bar)
			watch_bar(screen, percent, bar);
		str_addf(screen, "%s%3.0f %%  ", bar ? " " : "", percent > 99 && percent < 100 ? 99 : percent);
		out_fit(screen, b.s ? b.s : "", width - 1 - MIN(width - 1, bar + 10));
		str_add(screen, "\033[K\n");
		w->lines++;
	}
	str_release(&b);
	str_add(&b, "  ");
	if (watch_syncs(j->job))
		watch_freeze(&b, j->job);
	if (b.len > 2)
		watch_line(w, screen, b.s, OUT_DIM);
}

static void watch_draw_job(struct watch *w, struct str *screen, const struct watched *j)
{
	_cleanup_(str_release) struct str b = {0}, name = {0};

	out_clean(&name, watch_name(j));
	watch_where(&b, j->job);
	str_add(screen, out_on(OUT_BOLD));
	out_fit(screen, name.s ? name.s : "", out_width() / 2);
	str_addf(screen, "%s  %s", out_off(), out_on(out_state_colour(get_str(j->job, "state"))));
	out_fit(screen, b.s ? b.s : "", out_width() - 3 - MIN(out_columns(name.s ? name.s : ""), out_width() / 2));
	str_addf(screen, "%s\033[K\n", out_off());
	w->lines++;
	if (watch_has_figures(j->job))
		watch_draw_progress(w, screen, j);
}

/* Draws over what was drawn before. `trouble`: why nothing new is known, or NULL. */
static void watch_draw(struct watch *w, const char *trouble)
{
	_cleanup_(str_release) struct str screen = {0}, b = {0};

	if (w->lines)
		str_addf(&screen, "\033[%zuA\r", w->lines);
	w->lines = 0;
	for (size_t i = 0; i < w->n; i++)
		if (!w->jobs[i].ended && w->jobs[i].job)
			watch_draw_job(w, &screen, &w->jobs[i]);
	if (trouble) {
		str_addf(&b, "connection lost %.0f s ago, trying again: ", id_now_mono() - w->patience.lost);
		out_clean(&b, trouble);
		if (str_ok(&b))
			watch_line(w, &screen, b.s, OUT_YELLOW);
	}
	str_add(&screen, "\033[J");
	if (str_ok(&screen))
		fputs(screen.s, stdout);
	fflush(stdout);
}

static void watch_stamp(void)
{
	char stamp[32] = "";
	time_t now = time(NULL);
	struct tm tm;

	if (localtime_r(&now, &tm))
		strftime(stamp, sizeof(stamp), "%H:%M:%S", &tm);
	printf("%s ", stamp);
}

/* A line when the place changed or ten percent went by. */
static void watch_say(struct watched *j)
{
	_cleanup_(str_release) struct str b = {0}, name = {0}, more = {0};
	double percent = watch_has_figures(j->job) ? cli_percent(j->job) : -1;

	watch_where(&b, j->job);
	if (!str_ok(&b) || !b.s)
		return;
	if (j->said && strcmp(j->said, b.s) == 0 && !(percent >= j->percent + 10))
		return;
	out_clean(&name, watch_name(j));
	watch_stamp();
	printf("%s: %s", name.s ? name.s : "", b.s);
	if (percent >= 0) {
		watch_figures(&more, j->job);
		printf("  %.0f %%  %s", percent, more.s ? more.s : "");
		str_release(&more);
		if (watch_syncs(j->job))
			watch_freeze(&more, j->job);
		if (more.len)
			printf("  %s", more.s);
	}
	printf("\n");
	fflush(stdout);
	free(j->said);
	j->said = str_take(&b);
	j->percent = percent >= 0 ? (double)((int)percent / 10 * 10) : percent;
}

static void watch_stages(const json_t *job)
{
	_cleanup_(str_release) struct str b = {0};
	const json_t *stage;
	size_t i;

	json_array_foreach(get(job, "stages"), i, stage)
	{
		str_add(&b, i ? ", " : "");
		out_word(&b, get_str(stage, "name"));
		str_add(&b, " ");
		out_duration(&b, get_num(stage, "seconds", 0));
	}
	if (b.len && str_ok(&b))
		out_field("Stages", b.s, OUT_PLAIN);
}

static void watch_error(const json_t *job)
{
	_cleanup_(str_release) struct str b = {0};
	const char *remedy = cli_remedy(job);

	out_clean(&b, get_str(job, "error.message"));
	if (b.len && str_ok(&b))
		out_field("Error", b.s, OUT_RED);
	if (remedy)
		out_field("What to do", remedy, OUT_PLAIN);
}

/* How a job ended, in full. */
static void watch_end(const struct watched *j)
{
	_cleanup_(str_release) struct str b = {0};
	double froze = get_num(j->job, "progress.freeze_ms", 0), sent = get_num(j->job, "progress.bytes_sent", 0);

	out_title(watch_name(j), j->id);
	watch_where(&b, j->job);
	if (str_ok(&b) && b.s)
		out_field("State", b.s, out_state_colour(get_str(j->job, "state")));
	watch_error(j->job);
	cli_test_summary(j->job);
	if (!watch_is(j, "finished") && !watch_is(j, "waiting"))
		return;
	watch_stages(j->job);
	str_release(&b);
	if (froze > 0) {
		out_duration(&b, froze / 1000);
		out_field("Frozen", b.s ? b.s : "", OUT_PLAIN);
		str_release(&b);
	}
	if (sent > 0) {
		out_size(&b, sent);
		out_field("Sent", b.s ? b.s : "", OUT_PLAIN);
	}
	if (*get_str(j->job, "image"))
		out_fieldf("Image", "%s (see 'replant images show %s')", get_str(j->job, "image"),
			   get_str(j->job, "image"));
}

/* A test leaves a job ready again. */
static bool watch_was_tested(const struct watched *j)
{
	return watch_is(j, "ready") && strcmp(get_str(j->job, "test.state"), "done") == 0;
}

/* How it ended, as an exit code. */
static bool watch_went_well(const struct watched *j)
{
	if (watch_was_tested(j))
		return strcmp(get_str(j->job, "test.verdict"), "critical") != 0;
	return watch_is(j, "finished") || watch_is(j, "waiting");
}

/* States that last until a person does something, or until the next run of an incremental job. */
static bool watch_has_ended(const struct watched *j)
{
	static const char *const ends[] = {"ready",   "stopped", "in_error", "finished",
					   "waiting", "expired", "deleting"};

	for (size_t i = 0; i < ARRAY_SIZE(ends); i++)
		if (watch_is(j, ends[i]))
			return true;
	return false;
}

/* With --json: the job as the API has it, a line per change. */
static void watch_json(struct watched *j, const struct cli_reply *r)
{
	_cleanup_free_ char *body = NULL;

	if (!r->body.s || (j->said && strcmp(j->said, r->body.s) == 0))
		return;
	out_json(&r->body);
	fflush(stdout);
	body = strdup(r->body.s);
	if (!body)
		return;
	free(j->said);
	j->said = take_ptr(&body);
}

static void watch_ended(struct watch *w, struct watched *j)
{
	j->ended = true;
	if (w->c->json)
		return;
	/* Its end replaces what was drawn; the others are drawn again below it. */
	if (w->lines)
		printf("\033[%zuA\r\033[J", w->lines);
	w->lines = 0;
	watch_end(j);
	if (watch_is(j, "ready") && !watch_was_tested(j))
		out_error("job '%s' has not been started ('replant jobs start %s')", watch_name(j), j->id);
}

static int watch_ask(struct watch *w, struct watched *j, struct err *e)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *path = cli_path(&cli_job, j->id, "");
	int x;

	if (!path)
		return err_nomem(e);
	x = cli_http(w->c, "GET", path, NULL, &r, e);
	if (x == -ENOENT)
		return err_set(e, -ENOENT, "job '%s' is gone", j->job ? watch_name(j) : j->id);
	if (x < 0)
		return x;
	json_decref(j->job);
	j->job = json_incref(r.json);
	if (w->c->json)
		watch_json(j, &r);
	if (watch_has_ended(j))
		watch_ended(w, j);
	return 0;
}

/* Asks for all; a center that doesn't answer is waited for. */
static int watch_round(struct watch *w, struct err *e)
{
	for (size_t i = 0; i < w->n; i++) {
		int r;

		if (w->jobs[i].ended)
			continue;
		r = watch_ask(w, &w->jobs[i], e);
		if (r == -EAGAIN) {
			if (w->patience.failures == 0)
				w->patience.lost = id_now_mono();
			if (out_tty() && !w->c->json)
				watch_draw(w, e->msg);
			else if (w->patience.failures == 0)
				out_error("%s (trying again)", e->msg);
			return cli_patience_wait(w->c, &w->patience, e);
		}
		if (r < 0)
			return r;
		if (w->patience.failures && !(out_tty() && !w->c->json))
			out_error("connected again");
		cli_patience_ok(&w->patience);
		if (!w->c->json && !out_tty() && !w->jobs[i].ended)
			watch_say(&w->jobs[i]);
	}
	if (!w->c->json && out_tty())
		watch_draw(w, NULL);
	return 0;
}

static bool watch_all_ended(const struct watch *w, int *ret_exit)
{
	*ret_exit = CLI_OK;
	for (size_t i = 0; i < w->n; i++) {
		if (!w->jobs[i].ended)
			return false;
		if (!watch_went_well(&w->jobs[i]))
			*ret_exit = CLI_FAILED;
	}
	return true;
}

/* Is an event about one of them? */
static bool watch_ours(void *arg, const char *id)
{
	const struct watch *w = arg;

	for (size_t i = 0; i < w->n; i++)
		if (!w->jobs[i].ended && strcmp(w->jobs[i].id, id) == 0)
			return true;
	return false;
}

int cli_watch(struct cli *c, char **ids, size_t n, struct err *e)
{
	struct watch w = {.c = c, .n = n, .follow = {.c = c, .ours = watch_ours}};
	int r = 0, code = CLI_OK;

	w.follow.arg = &w;

	if (n > WATCH_JOBS_MAX)
		return err_set(e, -E2BIG, "at most %d jobs can be watched at once", WATCH_JOBS_MAX);
	for (size_t i = 0; i < n; i++)
		w.jobs[i].id = ids[i];
	c->timeout = 15;
	while (r == 0 && !watch_all_ended(&w, &code)) {
		r = watch_round(&w, e);
		if (r == 0 && w.patience.failures == 0 && !watch_all_ended(&w, &code))
			cli_follow_wait(&w.follow);
	}
	cli_follow_release(&w.follow);
	for (size_t i = 0; i < n; i++) {
		json_decref(w.jobs[i].job);
		free(w.jobs[i].said);
	}
	return r < 0 ? r : code;
}
