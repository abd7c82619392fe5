/* The tracker of this server's disks, in the words of the stream. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "track/track.h"

static int tracking_collect(void *arg, size_t disk, struct bitmap *into, struct err *e)
{
	return track_collect(arg, disk, into, e);
}

static uint64_t tracking_pending(void *arg, size_t disk)
{
	return track_pending(arg, disk);
}

static int tracking_audit(void *arg, bool frozen, struct err *e)
{
	return track_audit(arg, frozen, e);
}

static const char *tracking_epoch(void *arg)
{
	return track_epoch(arg);
}

static int tracking_restart(void *arg, struct err *e)
{
	return track_restart(arg, e);
}

static void tracking_settle(void *arg)
{
	track_settle(arg);
}

/* For drills: REPLANT_PIN is another place than that of the service. */
static const char *tracking_pin(void)
{
	return getenv("REPLANT_PIN") ?: AGENT_PIN;
}

/* Where the next run finds what it may rely on: for root's eyes, and gone with the boot. */
static char *tracking_folder(const char *runtime)
{
	return str_printf("%s/tracking", runtime);
}

static int tracking_keep(struct tracking *t, const char *runtime, struct err *e)
{
	_cleanup_free_ char *folder = tracking_folder(runtime);
	int r = folder ? io_mkdirs(folder, 0700, e) : err_nomem(e);

	if (r < 0)
		return r;
	t->baseline = str_printf("%s/baseline", folder);
	return t->baseline ? 0 : err_nomem(e);
}

void tracking_start(struct tracking *t, const char *const *disks, size_t n, const char *runtime)
{
	struct err e = {0};
	int r;

	if (t->track && (!runtime || track_go_on(t->track, disks, n, &e) < 0))
		tracking_stop(t);
	if (t->track)
		return;
	r = runtime ? tracking_keep(t, runtime, &e) : 0;
	if (r == 0)
		r = track_start(disks, n, runtime ? tracking_pin() : NULL, &t->track, &e);
	if (r < 0) {
		snprintf(t->why, sizeof(t->why), "%.255s", e.msg);
		return;
	}
	snprintf(t->why, sizeof(t->why), "%.255s", track_why(t->track));
	t->ops = (struct stream_tracker){.arg = t->track,
					 .collect = tracking_collect,
					 .pending = tracking_pending,
					 .audit = tracking_audit,
					 .epoch = tracking_epoch,
					 .restart = tracking_restart,
					 .settle = tracking_settle};
}

const char *tracking_name(const struct tracking *t)
{
	if (!t->track)
		return "compare";
	return track_mode(t->track) == TRACK_BPF ? "bpf" : "ring";
}

void tracking_rest(struct tracking *t)
{
	if (t->track && (!t->baseline || track_pinned(t->track)))
		tracking_stop(t);
}

void tracking_stop(struct tracking *t)
{
	track_close(t->track);
	free(t->baseline);
	*t = (struct tracking){0};
}

int tracking_remove(const char *runtime, struct err *e)
{
	_cleanup_free_ char *folder = tracking_folder(runtime);
	int r = folder ? io_remove_tree(folder, e) : err_nomem(e);

	return r < 0 ? r : track_remove(tracking_pin(), e);
}
