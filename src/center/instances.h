/*
 * Instances in the center. What is being done to one stands in its row, from before the first step until behind the
 * last: so one thing at a time is done to it, whichever center does that, and who finds the row after a crash goes on.
 * Inside of the center.
 */
#pragma once

#include "center/engine.h"

/* ---- the part of the row that is ours: "center" in `seen`, which nobody outside is shown ---- */

/* {"action","by":start of the center,...}: what is being done, or NULL. Borrowed. */
json_t *instance_doing(const struct model_instance *in);
/* It has disks, and isn't going. */
bool instance_is_whole(const struct model_instance *in);

/*
 * For who works with an instance's disks: until instance_leave() nobody else does anything to it. `action` is a word
 * that people are shown ("switch"), `job` may be NULL; one that was killed takes it again for the same job. -EBUSY with
 * a sentence.
 */
int instance_take(struct engine *en, const char *instance, const char *action, const char *job, struct err *e);
/* Of what was taken by the same words. */
void instance_leave(struct engine *en, const char *instance, const char *action, const char *job);
/* Asks its hypervisor and writes down what it says: state, addresses, disks. -ENOENT: it is missing there. */
int instance_look(struct engine *en, const char *instance, struct err *e);
/* Lays what the hypervisor says (as get() does; NULL: it doesn't know it) over the row. */
int instance_apply(struct model_instance *in, const json_t *got, struct err *e);
/* Does an instance stand on the image? Its name, 1; 0: none does. */
int instance_on_image(struct engine *en, const char *image, char name[MODEL_NAME_MAX + 1], struct err *e);

/* A key of ours in the row: NULL takes it away. The value is taken. */
int instance_note(struct model_instance *in, const char *key, json_t *value);
const json_t *instance_noted(const struct model_instance *in, const char *key);
/* Sets that nobody needs, to be dropped when nothing stands on them; of our own making only. */
int instance_unneeded(struct model_instance *in, const char *set);
/* Where a local instance runs: "" when that is no matter. */
const char *instance_host(struct engine *en);
/* The other center whose host it runs on, or NULL; borrowed. What runs there can't be had from here: 409. */
const char *instance_elsewhere(struct engine *en, const struct model_instance *in);
int instance_check_host(struct engine *en, const struct model_instance *in, struct api_fault *f);
/* Where it is going to run is known before it runs. */
int instance_start(struct engine *en, struct hypervisor *h, const struct model_instance *in, struct err *e);
/* Of a hypervisor: what a request is refused with. Returns -1. */
int instance_fault(struct api_fault *f, const struct err *e);

/* instance_work.c: the thread of what is being done. */
void instance_run(struct task *t);

/* ---- the API's ---- */
/* A row that is ready but for what the hypervisor says: of an image, or (without one) of what is there as `ref`. */
int instance_create(void *arg, struct model_instance *in, bool start, struct api_fault *f);
int instance_do(void *arg, const char *instance, const struct api_instance_do *a, struct api_fault *f);
void instance_see(void *arg, struct model_instance *in);
int instance_ask_list(void *arg, const char *region, json_t **ret, struct api_fault *f);
int instance_ask_get(void *arg, const char *region, const char *ref, json_t **ret, struct api_fault *f);
int instance_ask_capacity(void *arg, const char *region, json_t **ret, struct api_fault *f);
/* Can a region be used that is to be made so? */
int instance_ask_try(void *arg, const char *provider, const json_t *settings, struct api_fault *f);
int instance_ask_screen(void *arg, const struct model_instance *in, int *ret_fd, struct api_fault *f);
int instance_ask_serial(void *arg, const struct model_instance *in, uint64_t since, struct str *ret, uint64_t *ret_end,
			struct api_fault *f);

/* ---- the clockwork's ---- */
/* What was being done by a center that is gone; -ENOMEM and the like. */
int instance_resume_all(struct engine *en, struct err *e);
/* Looks at all regions that have instances, each in a thread of its own. */
void instance_tick(struct engine *en);
void instance_refresh(struct task *t);
