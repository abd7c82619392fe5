/*
 * What is logged while a task runs, for the center: whole lines in memory that is there from the start, the oldest of
 * which go when it is full. `at` is where in the center's text it begins; what the center has is dropped. Nothing here
 * touches a file, so that it may be called while filesystems are frozen.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "agent/agent_int.h"
#include "base/id.h"
#include "base/str.h"
#include "base/util.h"

static inline void tasklog_unlockp(pthread_mutex_t **lock)
{
	pthread_mutex_unlock(*lock);
}
#define TASKLOG_LOCK(t)                                                                                                \
	_cleanup_(tasklog_unlockp) pthread_mutex_t *locked_ = &(t)->lock;                                              \
	pthread_mutex_lock(locked_)

/* Under the lock, like all that is static here. */
static void tasklog_drop(struct tasklog *t, size_t n)
{
	memmove(t->text, t->text + n, t->len - n);
	t->len -= n;
	t->at += n;
}

static void tasklog_add(struct tasklog *t, const char *line, size_t n)
{
	char *end;

	if (n > TASKLOG_MAX / 2)
		return;
	while (TASKLOG_MAX - t->len < n) {
		/* A quarter at once: all that stays is moved. */
		end = memchr(t->text + TASKLOG_MAX / 4, '\n', t->len - TASKLOG_MAX / 4);
		tasklog_drop(t, end ? (size_t)(end + 1 - t->text) : t->len);
	}
	memcpy(t->text + t->len, line, n);
	t->len += n;
}

static void tasklog_put(struct tasklog *t, const char *level, const char *message)
{
	time_t now = (time_t)id_now();
	char line[2304], when[32];
	struct tm tm;
	size_t n;

	if (!*t->run)
		return;
	gmtime_r(&now, &tm);
	strftime(when, sizeof(when), "%Y-%m-%dT%H:%M:%SZ", &tm);
	n = MIN((size_t)snprintf(line, sizeof(line), "%s %-5s %s\n", when, level, message), sizeof(line) - 1);
	redact_text(&t->redact, line, n);
	tasklog_add(t, line, n);
}

void tasklog_line(void *tasklog, enum log_level level, const char *message)
{
	static const char *const names[] = {"error", "warn", "info", "debug"};
	struct tasklog *t = tasklog;
	TASKLOG_LOCK(t);

	tasklog_put(t, names[level], message);
}

void tasklog_progress(struct tasklog *t, const struct stream_progress *p)
{
	char text[256], total[16], done[16], changed[16], freeze[64] = "";
	TASKLOG_LOCK(t);

	if (!*t->run || (t->told && p->phase == t->phase && p->round == t->round))
		return;
	t->told = true;
	t->phase = p->phase;
	t->round = p->round;
	if (p->expected_freeze >= 0)
		snprintf(freeze, sizeof(freeze), ", freeze of %.1f s expected", p->expected_freeze);
	snprintf(text, sizeof(text), "phase %s, round %u, %s of %s done, %s changed%s", task_phase(p->phase), p->round,
		 str_bytes(p->bytes_done, done, sizeof(done)), str_bytes(p->bytes_total, total, sizeof(total)),
		 str_bytes(p->bytes_changed, changed, sizeof(changed)), freeze);
	tasklog_put(t, "info", text);
}

static void tasklog_clear(struct tasklog *t)
{
	*t->run = '\0';
	free(take_ptr(&t->text));
	t->len = 0;
	t->told = false;
	t->redact = (struct redact){0};
}

void tasklog_begin(struct tasklog *t, const struct task *task)
{
	TASKLOG_LOCK(t);

	tasklog_clear(t);
	t->text = task->has_log ? malloc(TASKLOG_MAX) : NULL;
	if (!t->text)
		return;
	strcpy(t->run, task->run);
	t->at = task->log_at;
}

void tasklog_end(struct tasklog *t)
{
	TASKLOG_LOCK(t);

	tasklog_clear(t);
}

void tasklog_heard(struct tasklog *t, const struct task *task)
{
	bool same, begins;

	pthread_mutex_lock(&t->lock);
	same = strcmp(t->run, task->run) == 0;
	begins = !*t->run && task->has_log;
	if (same && !task->has_log)
		tasklog_clear(t);
	else if (same && task->log_at > t->at)
		tasklog_drop(t, (size_t)MIN(task->log_at - t->at, (uint64_t)t->len));
	/* The center has more than was ever said: lines go behind it. */
	if (same && task->has_log && !t->len && task->log_at > t->at)
		t->at = task->log_at;
	pthread_mutex_unlock(&t->lock);
	if (begins)
		tasklog_begin(t, task);
}

json_t *tasklog_report(struct tasklog *t, bool all)
{
	size_t n;
	TASKLOG_LOCK(t);

	n = all ? t->len : MIN(t->len, (size_t)TASKLOG_PIECE);
	while (n && n < t->len && t->text[n - 1] != '\n')
		n--;
	return n ? json_pack("{s:s, s:I, s:s%}", "run", t->run, "at", (json_int_t)t->at, "text", t->text, n) : NULL;
}
