/* A migration onto an instance: see ARCHITECTURE.md, and src/job for its steps. */
#pragma once

#include "center/engine.h"

/* The step of a job whose instance was rolled back: until it has ended it must not begin once more. */
#define SWITCHING_BACK "rolled_back"

enum switch_step switching_step(const struct model_instance *row);
/* The job's runner: onto the instance, until it is up and waits for a person; or all the way back. */
int switching_run(struct live *l, const struct model_job *job, struct engine_failure *f);
/* Is the job's instance being switched over by it? Its image was booted then. */
bool switching_has_begun(struct engine *en, const struct model_job *job);
/* The test boot is one of the instance's hardware. */
void switching_boot_options(struct engine *en, const struct model_job *job, json_t *options);
/* TASK_SWITCH: carries out what the instance's row says. */
void switching_task(struct task *t);
/* What nobody carries: after a start of the center everything, later what failed. */
int switching_resume(struct engine *en, struct err *e);
/* A person's word. */
int switching_rollback(void *arg, const char *instance, struct api_fault *f);
int switching_confirm(void *arg, const char *instance, struct api_fault *f);
/* Can a source with the inventory run as the instance? 409 with all that is in the way. */
int switching_check(void *arg, const json_t *inventory, const char *instance, struct api_fault *f);
/* Of the screen when the job had judged the instance: where the file is, if there is one. */
void switching_picture(void *arg, const char *job, char *path, size_t size);
void switching_forget(struct engine *en, const char *job);
