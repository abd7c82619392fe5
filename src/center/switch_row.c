/* Where a migration onto an instance stands: the row, changed by nothing but src/job's steps. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/err.h"
#include "base/log.h"
#include "center/instances.h"
#include "center/switch_int.h"

#define RESERVE_BYTES (off_t)(4 << 20)

enum switch_step switching_step(const struct model_instance *row)
{
	int step = row->switching
		       ? model_word(switch_steps, json_string_value(json_object_get(row->switching, "step")) ?: "")
		       : SWITCH_NONE;

	/* What a later program wrote is left alone: nothing is carried out in this one. */
	return step < 0 ? SWITCH_SWITCHED : (enum switch_step)step;
}

const char *switch_word(const struct model_instance *row, const char *key)
{
	return json_string_value(json_object_get(row->switching, key)) ?: "";
}

bool switch_is_of(const struct model_instance *row, const char *job)
{
	return row->switching && strcmp(switch_word(row, "job"), job) == 0;
}

static struct switch_facts facts_of(const struct model_instance *row)
{
	return (struct switch_facts){.ran = json_is_true(json_object_get(row->switching, "ran")),
				     .keep_failed = json_is_true(json_object_get(row->switching, "keep_failed"))};
}

static json_t *failure_of(const struct news *n)
{
	return json_pack("{s:s, s:s}", "code", n->code, "message", n->failure->msg);
}

static int take_word(const struct model_instance *row, const char *key, char **field)
{
	const char *s = switch_word(row, key);

	return model_set(field, *s ? s : NULL);
}

/* What the step that is done has changed of the instance. */
static int note_done(struct model_instance *row, enum switch_step step, struct err *e)
{
	int r = 0;

	/* It is off, so it may be started anywhere. */
	if (step == SWITCH_USING || step == SWITCH_BACK_USING)
		instance_note(row, "host", NULL);
	if (step == SWITCH_USING)
		r = take_word(row, "to", &row->disks);
	if (step == SWITCH_BACK_USING)
		r = take_word(row, "from", &row->disks);
	if (step == SWITCH_JUDGING || step == SWITCH_CONFIRMING) {
		r = take_word(row, "image", &row->image);
		r = r < 0 ? r : take_word(row, "job", &row->job);
	}
	if (step == SWITCH_BACK_USING && r == 0) {
		r = take_word(row, "was_image", &row->image);
		r = r < 0 ? r : take_word(row, "was_job", &row->job);
	}
	return r < 0 ? err_nomem(e) : 0;
}

static int set_step(void *arg_row, void *arg, struct err *e)
{
	struct model_instance *row = arg_row;
	enum switch_step step = switching_step(row);
	struct news *n = arg;
	struct switch_answer a;

	if (n->step != SWITCH_STEPS && n->step != step)
		return err_set(e, -ECANCELED, "somebody else has changed it");
	a = switch_next(step, n->event, facts_of(row));
	if (a.refused) {
		n->refused = a.refused;
		return err_set(e, -ECANCELED, "%s", a.refused);
	}
	if (n->event == SWITCH_DONE && note_done(row, step, e) < 0)
		return e->code;
	row->updated = id_now();
	if (a.step == SWITCH_NONE) {
		model_take_json(&row->switching, NULL);
		return 0;
	}
	json_object_set_new(row->switching, "step", json_string(switch_steps[a.step]));
	json_object_set_new(row->switching, "since", json_real(row->updated));
	json_object_del(row->switching, "trouble");
	/* Why it goes back stays; what the way back itself meets is trouble that passes. */
	if (n->failure)
		json_object_set_new(row->switching, a.step == step ? "trouble" : "error", failure_of(n));
	if (n->by)
		json_object_set_new(row->switching, "by", json_string(n->by));
	return 0;
}

/* The job whose way back is over hears of it in the same transaction: started again after a crash it would else begin
 * once more. */
static int tell_job(struct engine *en, const char *job, const char *why, struct err *e)
{
	_cleanup_(model_job_release) struct model_job row = {0};
	int r = en->store->ops->get(en->store, &model_jobs, job, &row, e);

	if (r == -ENOENT || (r == 0 && (row.state != JOB_RUNNING || row.stage != JOB_PROCESSING)))
		return 0;
	if (r == 0 && (model_set(&row.step_name, SWITCHING_BACK) < 0 || model_set(&row.step_text, why) < 0))
		return err_nomem(e);
	return r < 0 ? r : en->store->ops->put(en->store, &model_jobs, &row, e);
}

static int record_in(struct engine *en, const char *instance, struct news *n, struct model_instance *row, struct err *e)
{
	_cleanup_free_ char *job = NULL, *why = NULL;
	struct store *s = en->store;
	int r = s->ops->get(s, &model_instances, instance, row, e);

	if (r < 0)
		return r;
	job = strdup(switch_word(row, "job"));
	why = strdup(json_string_value(json_object_get(json_object_get(row->switching, "error"), "message")) ?: "");
	if (!job || !why)
		return err_nomem(e);
	r = set_step(row, n, e);
	if (r == 0 && n->step == SWITCH_BACK_DROPPING && !row->switching)
		r = tell_job(en, job, why, e);
	if (r == 0)
		r = s->ops->put(s, &model_instances, row, e);
	return r < 0 ? r : store_announce(s, &model_instances, "updated", row, id_now(), e);
}

/* In one transaction; -ECANCELED: the row is elsewhere, or the event refused. */
static int record(struct engine *en, const char *instance, struct news *n, struct model_instance *row, struct err *e)
{
	struct store *s = en->store;
	int r = s->ops->begin(s, e);

	if (r < 0)
		return r;
	r = record_in(en, instance, n, row, e);
	if (r < 0) {
		s->ops->rollback(s);
		model_instance_release(row);
		return r;
	}
	r = s->ops->commit(s, e);
	if (r < 0)
		model_instance_release(row);
	else
		engine_wake(en);
	return r;
}

/* ---- a reserve, so that the way back can be written down on a full disk ---- */

static void reserve_path(const struct engine *en, char path[4200])
{
	snprintf(path, 4200, "%s/reserve", en->state);
}

/* Made again when there is plenty of room. */
void switch_reserve_make(struct engine *en)
{
	_cleanup_close_ int fd = -1;
	struct statvfs fs;
	struct stat st;
	char path[4200];

	reserve_path(en, path);
	/* One that is shorter was cut off while it was made. */
	if ((stat(path, &st) == 0 && st.st_size >= (off_t)RESERVE_BYTES) || statvfs(en->state, &fs) < 0 ||
	    (double)fs.f_bavail * (double)fs.f_frsize < 16.0 * (double)RESERVE_BYTES)
		return;
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	if (fd >= 0 && posix_fallocate(fd, 0, RESERVE_BYTES) != 0)
		unlink(path);
}

bool switch_reserve_use(struct engine *en)
{
	char path[4200];

	reserve_path(en, path);
	if (unlink(path) < 0)
		return false;
	log_warn("the disk of the state directory is full; what was kept for rolling back is used");
	return true;
}

int switch_record(struct engine *en, const char *instance, struct news *n, struct model_instance *row, struct err *e)
{
	int r = record(en, instance, n, row, e);

	return r == -ENOSPC && switch_reserve_use(en) ? record(en, instance, n, row, e) : r;
}
