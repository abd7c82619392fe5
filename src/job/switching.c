#include <stddef.h>

#include "base/util.h"
#include "job/job.h"

const char *const switch_steps[] = {
    "",           "preparing",     "stopping",   "using",         "starting",      "judging", "switched",
    "confirming", "back_stopping", "back_using", "back_starting", "back_dropping", NULL};
const char *const switch_events[] = {"done", "failed", "roll_back", "confirm", NULL};

static struct switch_answer go(enum switch_step step)
{
	return (struct switch_answer){step, NULL};
}

static enum switch_step behind(enum switch_step step, struct switch_facts facts)
{
	switch (step) {
	case SWITCH_PREPARING:
		return SWITCH_STOPPING;
	case SWITCH_STOPPING:
		return SWITCH_USING;
	case SWITCH_USING:
		return SWITCH_STARTING;
	case SWITCH_STARTING:
		return SWITCH_JUDGING;
	case SWITCH_JUDGING:
		return SWITCH_SWITCHED;
	case SWITCH_BACK_STOPPING:
		return SWITCH_BACK_USING;
	case SWITCH_BACK_USING:
		return facts.ran ? SWITCH_BACK_STARTING : SWITCH_BACK_DROPPING;
	case SWITCH_BACK_STARTING:
		return SWITCH_BACK_DROPPING;
	case SWITCH_CONFIRMING:
	case SWITCH_BACK_DROPPING:
	case SWITCH_NONE:
	case SWITCH_SWITCHED:
	case SWITCH_STEPS:
		break;
	}
	return SWITCH_NONE;
}

/* As long as the instance wasn't touched, only what was made for it has to go. From then on nobody knows how far the
 * step came, so the way back begins with the power. */
static enum switch_step way_back(enum switch_step step)
{
	return step == SWITCH_PREPARING ? SWITCH_BACK_DROPPING : SWITCH_BACK_STOPPING;
}

static struct switch_answer on_way(enum switch_step step, enum switch_event event, struct switch_facts facts)
{
	switch (event) {
	case SWITCH_DONE:
		return go(behind(step, facts));
	case SWITCH_FAILED:
		return go(step == SWITCH_JUDGING && facts.keep_failed ? SWITCH_SWITCHED : way_back(step));
	case SWITCH_ROLL_BACK:
		return go(way_back(step));
	case SWITCH_CONFIRM:
		return (struct switch_answer){
		    step, "the instance is being switched over; confirm it when its new system is up"};
	case SWITCH_EVENTS:
		break;
	}
	never("switch event");
}

/* What was decided is carried out until it succeeds: there is no third way. */
static struct switch_answer at_the_end(enum switch_step step, enum switch_event event, struct switch_facts facts)
{
	switch (event) {
	case SWITCH_DONE:
		return go(behind(step, facts));
	case SWITCH_FAILED:
		return go(step);
	case SWITCH_ROLL_BACK:
		if (switch_is_back(step))
			return go(step);
		return (struct switch_answer){step, "the migration was confirmed; the old system is being removed"};
	case SWITCH_CONFIRM:
		if (step == SWITCH_CONFIRMING)
			return go(step);
		return (struct switch_answer){step, "the instance is being rolled back; wait for its end"};
	case SWITCH_EVENTS:
		break;
	}
	never("switch event");
}

struct switch_answer switch_next(enum switch_step step, enum switch_event event, struct switch_facts facts)
{
	switch (step) {
	case SWITCH_NONE:
		return (struct switch_answer){
		    step, "no migration onto the instance waits for that; it was confirmed or rolled back "
			  "before, or there was none"};
	case SWITCH_PREPARING:
	case SWITCH_STOPPING:
	case SWITCH_USING:
	case SWITCH_STARTING:
	case SWITCH_JUDGING:
		return on_way(step, event, facts);
	case SWITCH_SWITCHED:
		if (event == SWITCH_ROLL_BACK)
			return go(SWITCH_BACK_STOPPING);
		if (event == SWITCH_CONFIRM)
			return go(SWITCH_CONFIRMING);
		return (struct switch_answer){step, "nothing is under way; roll the instance back or confirm it"};
	case SWITCH_CONFIRMING:
	case SWITCH_BACK_STOPPING:
	case SWITCH_BACK_USING:
	case SWITCH_BACK_STARTING:
	case SWITCH_BACK_DROPPING:
		return at_the_end(step, event, facts);
	case SWITCH_STEPS:
		break;
	}
	never("switch step");
}

bool switch_is_work(enum switch_step step)
{
	return step != SWITCH_NONE && step != SWITCH_SWITCHED;
}

bool switch_is_back(enum switch_step step)
{
	return step >= SWITCH_BACK_STOPPING && step <= SWITCH_BACK_DROPPING;
}
