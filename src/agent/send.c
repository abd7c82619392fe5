/* replant-agent send: disks to a receiver, without a center. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"
#include "disk/disk.h"
#include "stream/stream.h"
#include "track/track.h"

#define EXIT_TEMPORARY 75
#define SEND_MOMENT    10.0 /* seconds within which even a freeze of a moment has to end */

struct send {
	const struct agent_options *o;
	struct disk *disks[TASK_DISKS_MAX], *lower[TASK_DISKS_MAX];
	size_t n;
	char *hooks;
	struct freeze freeze;
	struct tracking tracking;
	char *unfrozen;
};

static atomic_bool send_interrupted;

static void send_signal(int sig)
{
	send_interrupted = true;
}

static void send_line(json_t *j)
{
	_cleanup_free_ char *text = j ? jsn_text(j) : NULL;

	json_decref(j);
	if (text)
		printf("%s\n", text);
	fflush(stdout);
}

static json_t *send_event(const char *event, json_t *j)
{
	json_object_set_new(j, "event", json_string(event));
	return j;
}

/* ---- what the stream asks of us ---- */
/* The four numbers, as long as the rest doesn't fit the freeze. */
static void send_gauges(const struct stream_progress *p)
{
	const struct stream_gauges *g = &p->gauges;
	char churn[32], link[32], disk[32];

	if (p->mode != STREAM_TRACKED || !(g->converge_seconds > 0) || p->phase != STREAM_COMPARE)
		return;
	fprintf(stderr, "  churn %s/s, link %s/s, disk %s/s, cpu %.0f %%, held up by the %s; a freeze now: %.1f s; ",
		str_bytes((uint64_t)MAX(g->churn, 0), churn, sizeof(churn)),
		str_bytes((uint64_t)MAX(g->link, 0), link, sizeof(link)),
		str_bytes((uint64_t)MAX(g->disk, 0), disk, sizeof(disk)), 100 * MAX(g->cpu, 0),
		stream_bottleneck_name(g->bottleneck), p->expected_freeze);
	if (isfinite(g->converge_seconds))
		fprintf(stderr, "converges in %.0f s\n", g->converge_seconds);
	else
		fprintf(stderr, "does not converge\n");
}

static void send_progress(void *arg, const struct stream_progress *p)
{
	struct send *s = arg;
	char done[32], total[32], sent[32];

	if (s->o->json) {
		send_line(send_event("progress", task_progress(p)));
		return;
	}
	fprintf(stderr, "%s, round %u: %s of %s, %s sent\n", task_phase(p->phase), p->round,
		str_bytes(p->bytes_done, done, sizeof(done)), str_bytes(p->bytes_total, total, sizeof(total)),
		str_bytes(p->bytes_sent, sent, sizeof(sent)));
	send_gauges(p);
}

static bool send_cancelled(void *arg)
{
	return send_interrupted;
}

static int send_prepare(void *arg, bool again, struct err *e)
{
	struct send *s = arg;

	if (!again)
		return freeze_prepare(&s->freeze, true, e);
	freeze_sync(&s->freeze);
	return 0;
}

static int send_freeze(void *arg, double limit, struct err *e)
{
	struct send *s = arg;
	int r;

	free(take_ptr(&s->unfrozen));
	r = freeze_hold(&s->freeze, limit, &s->unfrozen, e);
	if (r < 0)
		freeze_after(&s->freeze, NULL);
	return r;
}

static int send_thaw(void *arg, double *ret_seconds, bool *ret_intact, struct err *e)
{
	struct send *s = arg;
	int r = freeze_thaw(&s->freeze, ret_seconds, ret_intact, e);
	struct err why = {0};

	if (freeze_after(&s->freeze, &why) < 0)
		fprintf(stderr, "replant-agent: %s\n", why.msg);
	return r;
}

static int send_checkpoint(void *arg, int (*look)(void *look_arg, struct err *e), void *look_arg, double *ret_seconds,
			   bool *ret_intact, struct err *e)
{
	struct send *s = arg;
	_cleanup_free_ char *unfrozen = NULL;
	int r = freeze_prepare(&s->freeze, false, e);

	if (r == 0)
		r = freeze_hold(&s->freeze, SEND_MOMENT, &unfrozen, e);
	if (r == 0)
		r = look(look_arg, e);
	if (r == 0)
		r = track_guard_thaw(s->freeze.guard, ret_seconds, ret_intact, e);
	freeze_let_go(&s->freeze); /* thaws, if it hasn't yet */
	return r;
}

/* ---- disks ---- */
/* For drills: REPLANT_FAULT=OFFSET:LENGTH:TIMES makes reads of the first disk fail there. */
static int send_fault(struct send *s, struct err *e)
{
	const char *text = getenv("REPLANT_FAULT");
	uint64_t off, len;
	unsigned times;

	if (!text)
		return 0;
	if (sscanf(text, "%" SCNu64 ":%" SCNu64 ":%u", &off, &len, &times) != 3)
		return err_set(e, -EINVAL, "REPLANT_FAULT '%s' is not OFFSET:LENGTH:TIMES", text);
	s->lower[0] = s->disks[0];
	return disk_fault_new(s->lower[0], off, len, times, &s->disks[0], e);
}

static int send_open(struct send *s, struct err *e)
{
	int r;

	if (s->o->disks.n > TASK_DISKS_MAX)
		return err_set(e, -EINVAL, "at most %d disks can be sent at once", TASK_DISKS_MAX);
	for (size_t i = 0; i < s->o->disks.n; i++) {
		r = disk_open(s->o->disks.v[i], DISK_DIRECT, &s->disks[i], e);
		if (r < 0)
			return r;
		s->n = i + 1;
	}
	r = send_fault(s, e);
	s->hooks = str_printf("%s/hooks.d", s->o->config_dir);
	if (r == 0 && !s->hooks)
		return err_nomem(e);
	s->freeze = (struct freeze){.disks = s->o->disks.v, .n = s->n, .hooks = s->hooks};
	if (r == 0 && !s->o->no_freeze) /* what can't be frozen should be told before all is copied */
		r = track_mounts(s->freeze.disks, s->n, &s->freeze.mounts, &s->freeze.nmounts, e);
	freeze_let_go(&s->freeze);
	return r;
}

/* Before the disks are opened: what the tracker doesn't see must not be believed. */
static void send_track(struct send *s)
{
	if (s->o->no_freeze)
		snprintf(s->tracking.why, sizeof(s->tracking.why), "nothing is frozen");
	else if (s->o->no_tracking)
		snprintf(s->tracking.why, sizeof(s->tracking.why), "it was not wanted");
	else
		tracking_start(&s->tracking, s->o->disks.v, s->o->disks.n,
			       s->o->keep_tracking ? s->o->runtime_dir : NULL);
}

static void send_close(struct send *s)
{
	freeze_after(&s->freeze, NULL);
	tracking_stop(&s->tracking);
	free(s->unfrozen);
	free(s->hooks);
	for (size_t i = 0; i < s->n; i++) {
		disk_close(s->disks[i]);
		disk_close(s->lower[i]);
	}
}

/* ---- the command ---- */
static int send_params(const struct agent_options *o, struct stream_send_params *p, char host[64], struct err *e)
{
	char name[256];
	int r;

	if (strlen(o->run) >= sizeof(p->link.run))
		return err_set(e, -EINVAL, "'%s' is not the id of a run", o->run);
	if (strcmp(o->on_read_error, "fail") != 0 && strcmp(o->on_read_error, "zero") != 0)
		return err_set(e, -EINVAL, "--on-read-error '%s' is neither 'fail' nor 'zero'", o->on_read_error);
	if (o->max_freeze && task_seconds(o->max_freeze, 0.05, 3600, &p->max_freeze) < 0)
		return err_set(e, -EINVAL, "--max-freeze '%s' is not a number of seconds from 0.05 to 3600",
			       o->max_freeze);
	p->patience = (double)o->patience;
	snprintf(p->link.run, sizeof(p->link.run), "%s", o->run);
	p->connections = (unsigned)o->connections;
	p->compression = (unsigned)o->compress;
	p->rate_mbit = o->rate;
	p->checksum = o->checksum;
	p->link.clear = o->clear;
	p->zero_unreadable = strcmp(o->on_read_error, "zero") == 0;
	p->host = host;
	task_drill(p);
	r = stream_address_parse(o->to, name, sizeof(name), &p->port, e);
	if (r == 0)
		r = http_resolve(name, host, e);
	return r < 0 ? r : stream_key_read(o->psk_file, p->link.psk, e);
}

static void send_report(struct send *s, struct stream_result *res)
{
	char sent[32];

	if (s->o->json) {
		json_t *j = task_result(res, s->o->disks.v, s->n);

		if (s->unfrozen && *s->unfrozen)
			json_object_set_new(j, "unfrozen", task_text(s->unfrozen));
		task_tracking(j, tracking_name(&s->tracking), s->tracking.why);
		send_line(send_event("done", j));
		return;
	}
	for (size_t i = 0; i < res->nnotes; i++)
		fprintf(stderr, "note: %s\n", res->notes[i]);
	for (size_t i = 0; i < res->nzeroed; i++)
		fprintf(stderr, "unreadable: '%s', %" PRIu64 " bytes at byte %" PRIu64 " became zeros\n",
			s->disks[res->zeroed[i].disk]->name, res->zeroed[i].length, res->zeroed[i].offset);
	if (s->unfrozen && *s->unfrozen)
		fprintf(stderr, "note: not frozen: %s\n", s->unfrozen);
	if (!s->tracking.track && !s->o->no_freeze)
		fprintf(stderr, "note: writes were not tracked: %s\n", s->tracking.why);
	if (res->totals.freeze_seconds >= 0)
		fprintf(stderr, "frozen for %.3f s\n", res->totals.freeze_seconds);
	printf("committed: %s sent\n", str_bytes(res->totals.bytes_sent, sent, sizeof(sent)));
}

static int send_run(struct send *s, struct err *e)
{
	struct stream_send_ops ops = {.arg = s, .progress = send_progress, .cancelled = send_cancelled};
	struct stream_send_params p = {0};
	struct stream_result res;
	char host[64];
	int r = send_params(s->o, &p, host, e);

	if (r == 0)
		send_track(s);
	if (r == 0)
		r = send_open(s, e);
	if (r == 0 && !s->o->no_freeze) {
		ops.prepare = send_prepare;
		ops.freeze = send_freeze;
		ops.thaw = send_thaw;
		ops.checkpoint = send_checkpoint;
	}
	if (s->tracking.track) {
		ops.tracker = &s->tracking.ops;
		p.baseline = s->tracking.baseline;
	}
	if (r == 0)
		r = stream_send(&p, s->disks, s->n, &ops, &res, e);
	explicit_bzero(p.link.psk, sizeof(p.link.psk));
	if (r < 0)
		return r;
	send_report(s, &res);
	stream_result_release(&res);
	return 0;
}

int agent_send(void *options, int argc, char **argv)
{
	struct agent_options *o = options;
	struct send s = {.o = o};
	struct sigaction sa = {.sa_handler = send_signal};
	struct err e = {0};
	int r;

	sigaction(SIGINT, &sa, NULL);
	sigaction(SIGTERM, &sa, NULL);
	r = send_run(&s, &e);
	send_close(&s);
	free(take_ptr(&o->disks.v));
	if (r == 0)
		return 0;
	if (o->json)
		send_line(send_event("error", task_error(&e)));
	fprintf(stderr, "replant-agent: %s\n", e.msg);
	return stream_is_temporary(r) ? EXIT_TEMPORARY : 1;
}
