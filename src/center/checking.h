/* Checks of images, and repairs: a task by itself, and what a job does between its image and the boot of it. */
#pragma once

#include "center/engine.h"

/* For the API: looks at the image, or makes a repaired one of it that is called `name` (NULL: a name is made). */
int checking_start(void *arg, const char *image, bool repair, const char *name, struct api_fault *f);
/* The task's. */
void checking_run(struct task *t);
/* Has it been begun and not ended? */
bool checking_is_due(const struct model_image *im);
/* In a job, whose image is marked: it never fails for that. 0; -1: it was stopped. */
int checking_of_job(struct live *l, const char *image, const struct provider_watch *w);
/* -1 with the fault: it is being checked, or a repaired one stands on it. */
int checking_refuses_removal(struct engine *en, const struct model_image *im, struct api_fault *f);
