/* Inside of the migrations onto an instance: the row (switch_row.c), carrying its steps out (switch_steps.c), the job's
 * part and people's (switch_job.c). */
#pragma once

#include "center/switching.h"

/* Who carries it, on which instance. */
struct ride {
	struct engine *en;
	struct live *live; /* NULL: no job's runner */
	struct task *task; /* NULL: no task */
	struct hypervisor *h;
	const char *instance, *job; /* whose it was taken for */
	enum switch_step step;      /* being carried out */
	double looked;              /* monotonic: at the row, last */
	bool moved;                 /* the row says another step now */
};

/* What happened to a step. */
struct news {
	enum switch_step step; /* in which; SWITCH_STEPS: in any */
	enum switch_event event;
	const char *code; /* of a failure */
	const struct err *failure;
	const char *by; /* of a person's event */
	const char *refused;
};

/* ---- switch_row.c ---- */
/* A text of `switching`, "" when it isn't there. */
const char *switch_word(const struct model_instance *row, const char *key);
bool switch_is_of(const struct model_instance *row, const char *job);
/* The event becomes the row's next step, in one transaction. -ECANCELED: the row is elsewhere, or the event refused. On
 * a full disk the reserve is used. */
int switch_record(struct engine *en, const char *instance, struct news *n, struct model_instance *row, struct err *e);
/* Made again when there is plenty of room; false: there was none to use. */
void switch_reserve_make(struct engine *en);
bool switch_reserve_use(struct engine *en);

/* ---- switch_steps.c ---- */
/* Is the one that carries it to end? */
bool switch_is_ending(const struct ride *d);
/* What runs on another center's host is off for ours: -EBUSY. */
int switch_check_host(struct engine *en, const struct model_instance *row, struct err *e);
/* Waits until the instance is ours alone; switch_leave() is due. */
int switch_take(struct ride *d, const char *job, struct err *e);
void switch_leave(struct ride *d);
/* Step for step, until there is nothing to do, or an error: not now. */
int switch_carry(struct ride *d, struct err *e);
/* Is the new system up? */
int switch_judge(struct ride *d, const struct model_instance *row, struct err *e);
