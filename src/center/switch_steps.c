/*
 * Carries a migration onto an instance: what the row says is done, and then the row says the next. Who has the instance
 * (a mark here, "doing" in its row for everybody) does it: the runner of the job, and for the way back and the end,
 * which a person asks for, a task. A person's word is a change of the row, too, which is seen between two steps and a
 * few times within one.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "base/err.h"
#include "base/io.h"
#include "base/log.h"
#include "center/instances.h"
#include "center/switch_int.h"

#define ADDRESSES_TRIED 4u
#define STOP_SECONDS    90.0 /* for the power button; then by force */
#define BACK_SECONDS    20.0 /* the same of a system that is given up */
#define LOOK_SECONDS    1.0  /* between looks whether a person has changed the row */

#define SWITCH_ACTION "switch"

bool switch_is_ending(const struct ride *d)
{
	return d->live ? runner_cancelled(d->live) : task_cancelled(d->task);
}

static void look(struct ride *d)
{
	_cleanup_(model_instance_release) struct model_instance row = {0};

	if (id_now_mono() - d->looked < LOOK_SECONDS)
		return;
	d->looked = id_now_mono();
	if (d->en->store->ops->get(d->en->store, &model_instances, d->instance, &row, NULL) == 0)
		d->moved = switching_step(&row) != d->step;
}

/* A person who wants back need not wait for the end of a step. */
static bool is_cancelled(void *arg)
{
	struct ride *d = arg;

	if (!d->moved)
		look(d);
	return d->moved || switch_is_ending(d);
}

static void say(struct ride *d, const char *name, const char *text)
{
	if (!d->live)
		return;
	engine_step(d->live, name, "%s", text);
	joblog_say(d->live->feed, "%s", text);
}

static void on_event(void *arg, const json_t *event)
{
	json_t *percent = json_object_get(event, "percent");
	struct ride *d = arg;

	if (d->live && json_is_number(percent))
		engine_step(d->live, "switch", "making the instance's new disks: %.0f %%",
			    MIN(100, MAX(0, json_number_value(percent))));
}

static void on_log(void *arg, const char *text, size_t n)
{
	struct ride *d = arg;

	if (d->live && d->live->feed)
		joblog_console(d->live->feed, text, n);
}

static json_t *sizes_of(const json_t *seen)
{
	json_t *sizes = json_array(), *disk, *size;
	size_t i;

	json_array_foreach(json_object_get(seen, "disks"), i, disk)
	{
		size = json_object_get(disk, "size");
		json_array_append_new(sizes, json_is_integer(size) ? json_incref(size) : json_null());
	}
	return sizes;
}

static int add_set(struct ride *d, const struct model_instance *row, const struct provider_watch *w, struct err *e)
{
	_cleanup_(model_image_release) struct model_image im = {0};
	_cleanup_json_ json_t *seen = NULL, *sizes = NULL;
	struct engine *en = d->en;
	int r = en->store->ops->get(en->store, &model_images, switch_word(row, "image"), &im, e);

	if (r == 0)
		r = d->h->ops->get(d->h, row->ref, &seen, e);
	if (r < 0)
		return r;
	if (!image_mark(en, im.id, IMAGE_EXPORT))
		return err_set(e, -EBUSY, "the image is being removed");
	sizes = sizes_of(seen);
	r = d->h->ops->set_add(d->h, row->ref, switch_word(row, "to"), im.id, json_object_get(im.manifest, "disks"),
			       sizes, w, e);
	image_unmark(en, im.id, IMAGE_EXPORT);
	return r;
}

/* One that waits (its host's disk is full) hears no button; and on the way back nothing that the button meets is a
 * reason to stay. */
static int stop(struct ride *d, const struct model_instance *row, double seconds, const struct provider_watch *w,
		struct err *e)
{
	int r = d->h->ops->stop(d->h, row->ref, seconds, w, e);

	if (r == 0 || r == -ECANCELED || (r != -ETIMEDOUT && r != -EBUSY && !switch_is_back(d->step)))
		return r;
	say(d, "switch", "the instance doesn't heed its power button and is turned off");
	return d->h->ops->stop(d->h, row->ref, 0, w, e);
}

/* Somebody may have turned it on while the way back couldn't be gone on. */
static int use_old(struct ride *d, const struct model_instance *row, const struct provider_watch *w, struct err *e)
{
	int r = d->h->ops->set_use(d->h, row->ref, switch_word(row, "from"), e);

	if (r != -EBUSY)
		return r;
	r = stop(d, row, BACK_SECONDS, w, e);
	return r < 0 ? r : d->h->ops->set_use(d->h, row->ref, switch_word(row, "from"), e);
}

/* What was never made, or is gone, need not be removed; what an imported instance had before isn't ours to remove. */
static int drop(struct ride *d, const struct model_instance *row, const char *set, struct err *e)
{
	int r = id_is("set", set) ? d->h->ops->set_drop(d->h, row->ref, set, e) : 0;

	return r == -ENOENT ? 0 : r;
}

/* ---- is it up? ---- */

void switching_picture(void *arg, const char *job, char *path, size_t size)
{
	const struct engine *en = arg;

	snprintf(path, size, "%s/pictures/%s.png", en->state, job);
}

/* Nothing depends on the picture. */
static void take_picture(struct ride *d, const struct model_instance *row)
{
	char path[4300], dir[4200];
	struct err e = {0};

	snprintf(dir, sizeof(dir), "%s/pictures", d->en->state);
	switching_picture(d->en, switch_word(row, "job"), path, sizeof(path));
	if (io_mkdirs(dir, 0700, &e) < 0 || d->h->ops->screenshot(d->h, row->ref, path, &e) < 0)
		log_info("instance %s: no picture: %s", row->id, e.msg);
}

static void rest(struct ride *d, double seconds)
{
	double end = id_now_mono() + seconds;

	while (id_now_mono() < end && !is_cancelled(d))
		nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
}

/* Does the guest itself say something on one of its ports? QEMU takes every connection, whether anybody is there or
 * not: only what comes out of it counts. */
static bool answers(const char *address, json_int_t port)
{
	struct sockaddr_in a = {.sin_family = AF_INET};
	const struct timeval patience = {.tv_sec = 1};
	_cleanup_close_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	char byte;

	if (fd < 0 || port < 1 || port > 65535 || inet_pton(AF_INET, address, &a.sin_addr) != 1)
		return false;
	a.sin_port = htons((uint16_t)port);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	return connect(fd, (const struct sockaddr *)(const void *)&a, sizeof(a)) == 0 && recv(fd, &byte, 1, 0) == 1;
}

/* Those that speak first, as SSH does: by a forwarded port, or where its network is one of the host's. */
static bool guest_answers(const json_t *seen)
{
	const json_t *forward, *address, *settings = json_object_get(seen, "settings");
	const char *network = json_string_value(json_object_get(settings, "network")) ?: "user";
	size_t i;

	if (strcmp(network, "user") != 0 && strcmp(network, "none") != 0)
		json_array_foreach(json_object_get(seen, "addresses"), i,
				   address) if (i < ADDRESSES_TRIED && json_is_string(address) &&
						answers(json_string_value(address), 22)) return true;
	json_array_foreach(json_object_get(settings, "forwards"), i, forward)
	{
		if (json_integer_value(json_object_get(forward, "guest")) == 22 &&
		    answers("127.0.0.1", json_integer_value(json_object_get(forward, "host"))))
			return true;
	}
	return false;
}

/* 1: it is up; 0: nobody knows yet. */
static int look_at_boot(const json_t *seen, struct err *e)
{
	const json_t *boot = json_object_get(seen, "boot");
	const char *machine = json_string_value(json_object_get(seen, "state")) ?: "";
	const char *stage = json_string_value(json_object_get(boot, "stage")) ?: "";
	const char *text = json_string_value(json_object_get(boot, "text")) ?: "";

	if (strcmp(machine, "running") != 0)
		return err_set(e, -EIO, "the instance is '%.32s' instead of running", machine);
	if (json_is_true(json_object_get(boot, "failed")))
		return err_set(e, -EIO, "the new system did not come up: %.400s", *text ? text : stage);
	return strcmp(stage, "up") == 0 || guest_answers(seen);
}

/* A hypervisor that doesn't answer for a moment says nothing about the system. */
static int look_at_instance(struct ride *d, const struct model_instance *row, struct err *e)
{
	_cleanup_json_ json_t *seen = NULL;
	int r = d->h->ops->get(d->h, row->ref, &seen, e);

	if (r < 0)
		return r == -ENOENT ? r : 0;
	*e = (struct err){0};
	return look_at_boot(seen, e);
}

int switch_judge(struct ride *d, const struct model_instance *row, struct err *e)
{
	double limit = d->en->s.switch_boot, end = id_now_mono() + limit;
	struct err last = {0};
	int r;

	say(d, "switch", "waiting for the new system");
	do {
		r = look_at_instance(d, row, &last);
		if (r == 0)
			rest(d, MIN(2.0, limit / 20));
	} while (r == 0 && id_now_mono() < end && !is_cancelled(d));
	if (is_cancelled(d))
		return err_set(e, -ECANCELED, "given up");
	take_picture(d, row);
	if (r == 0)
		return err_set(e, -ETIMEDOUT, "the new system did not come up within %.0f s%s%.400s", limit,
			       *last.msg ? ": " : "", last.msg);
	if (r < 0)
		return err_set(e, r, "%s", last.msg);
	return 0;
}

static int carry_out(struct ride *d, const struct model_instance *row, struct err *e)
{
	const struct provider_watch w = {d, on_event, is_cancelled, on_log};
	struct hypervisor *h = d->h;

	switch (d->step) {
	case SWITCH_PREPARING:
		say(d, "switch", "making the instance's new disks");
		return add_set(d, row, &w, e);
	case SWITCH_STOPPING:
		say(d, "switch", "turning the instance off");
		return stop(d, row, STOP_SECONDS, &w, e);
	case SWITCH_USING:
		say(d, "switch", "putting the new disks in use");
		return h->ops->set_use(h, row->ref, switch_word(row, "to"), e);
	case SWITCH_STARTING:
		say(d, "switch", "turning the instance on");
		return instance_start(d->en, h, row, e);
	case SWITCH_JUDGING:
		return switch_judge(d, row, e);
	case SWITCH_CONFIRMING:
		return drop(d, row, switch_word(row, "from"), e);
	case SWITCH_BACK_STOPPING:
		say(d, "roll_back", "rolling back: turning the instance off");
		return stop(d, row, BACK_SECONDS, &w, e);
	case SWITCH_BACK_USING:
		say(d, "roll_back", "rolling back: putting the earlier disks in use");
		return use_old(d, row, &w, e);
	case SWITCH_BACK_STARTING:
		say(d, "roll_back", "rolling back: turning the instance on");
		return instance_start(d->en, h, row, e);
	case SWITCH_BACK_DROPPING:
		say(d, "roll_back", "rolling back: removing the new disks");
		return drop(d, row, switch_word(row, "to"), e);
	case SWITCH_NONE:
	case SWITCH_SWITCHED:
	case SWITCH_STEPS:
		break;
	}
	never("a step without work");
}

static const char *code_of(enum switch_step step, const struct err *e)
{
	return e->code == -ENOSPC ? "no_space" : step == SWITCH_JUDGING ? "system_not_up" : "switch_failed";
}

/* What was done must be written down: nothing else would carry it on. */
static void pause_for_store(const struct ride *d, const char *why)
{
	double end = id_now_mono() + 1;

	log_error("instance %s: %s; trying again", d->instance, why);
	while (id_now_mono() < end && !switch_is_ending(d))
		nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
}

int switch_check_host(struct engine *en, const struct model_instance *row, struct err *e)
{
	const char *host = instance_elsewhere(en, row);

	return host ? err_set(e, -EBUSY,
			      "instance '%s' runs on the host of center '%s'; stop it there, or wait for that center",
			      row->name, host)
		    : 0;
}

/* One step, and what came of it. 1: go on; 0: nothing (more) to do; an error: not now. */
static int carry_step(struct ride *d, struct err *e)
{
	_cleanup_(model_instance_release) struct model_instance row = {0}, now = {0};
	struct engine *en = d->en;
	struct err why = {0};
	struct news n = {0};
	int r = en->store->ops->get(en->store, &model_instances, d->instance, &row, e), x;

	if (r < 0)
		return r;
	if (switch_is_ending(d))
		return err_set(e, -ECANCELED, "given up");
	d->step = switching_step(&row);
	d->moved = false;
	d->looked = id_now_mono();
	if (!switch_is_work(d->step))
		return 0;
	r = switch_check_host(en, &row, e);
	r = r < 0 ? r : share_confirm(en, e);
	if (r < 0)
		return r;
	log_info("instance %s: %s", d->instance, switch_steps[d->step]);
	r = carry_out(d, &row, &why);
	/* The hypervisor's files may lie on the same disk as ours. */
	if (r == -ENOSPC && switch_is_back(d->step) && switch_reserve_use(en)) {
		why = (struct err){0};
		r = carry_out(d, &row, &why);
	}
	if (switch_is_ending(d) && r < 0)
		return err_set(e, -ECANCELED, "given up");
	if (r < 0)
		log_warn("instance %s: %s: %s", d->instance, switch_steps[d->step], why.msg);
	n = (struct news){.step = d->step, .event = r < 0 ? SWITCH_FAILED : SWITCH_DONE};
	if (r < 0) {
		n.code = code_of(d->step, &why);
		n.failure = &why;
	}
	while ((x = switch_record(en, d->instance, &n, &now, e)) < 0 && x != -ECANCELED && x != -ENOENT &&
	       !switch_is_ending(d))
		pause_for_store(d, e->msg);
	if (x < 0)
		return x == -ECANCELED && share_confirm(en, e) == 0 ? 1 : x;
	/* What can't be done on the way back is tried again, but later. */
	if (r < 0 && switching_step(&now) == d->step) {
		*e = why;
		return r;
	}
	return 1;
}

int switch_carry(struct ride *d, struct err *e)
{
	_cleanup_(model_instance_release) struct model_instance row = {0};
	int r = d->en->store->ops->get(d->en->store, &model_instances, d->instance, &row, e);

	if (r == 0)
		r = engine_hypervisor(d->en, row.region, &d->h, e);
	while (r >= 0 && (r = carry_step(d, e)) > 0)
		;
	return r;
}

/* ---- the right to carry it ---- */

/* Others see in the row that it isn't theirs now. Their end is waited for. */
int switch_take(struct ride *d, const char *job, struct err *e)
{
	int r;

	while ((r = instance_take(d->en, d->instance, SWITCH_ACTION, job, e)) < 0) {
		_cleanup_(model_instance_release) struct model_instance row = {0};

		if (r == -ENOSPC && switch_reserve_use(d->en))
			continue;
		if (r != -EBUSY || d->en->store->ops->get(d->en->store, &model_instances, d->instance, &row, e) < 0 ||
		    (!instance_is_whole(&row) && !instance_doing(&row)))
			return r;
		nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
		if (switch_is_ending(d))
			return err_set(e, -ECANCELED, "given up");
	}
	d->job = job;
	return 0;
}

/* What there is now is shown at once. */
void switch_leave(struct ride *d)
{
	if (!switch_is_ending(d))
		instance_look(d->en, d->instance, NULL);
	instance_leave(d->en, d->instance, SWITCH_ACTION, d->job);
}

void switching_task(struct task *t)
{
	_cleanup_(model_instance_release) struct model_instance row = {0};
	struct ride d = {.en = t->engine, .task = t, .instance = t->id};
	struct err e = {0};
	int r = t->engine->store->ops->get(t->engine->store, &model_instances, t->id, &row, &e);

	if (r == 0)
		r = switch_take(&d, switch_word(&row, "job"), &e);
	if (r == 0) {
		r = switch_carry(&d, &e);
		switch_leave(&d);
	}
	if (r < 0 && r != -ECANCELED && r != -ENOENT)
		log_warn("instance %s: %s; trying again later", t->id, e.msg);
	engine_wake(t->engine);
}
