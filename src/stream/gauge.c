/* How fast things go in a tracked run, what holds them up, and whether rounds get smaller. */
#include <math.h>
#include <time.h>

#include "base/id.h"
#include "base/util.h"
#include "stream/sender_int.h"

#define GAUGE_BUSY 0.85 /* of the processor time there is: no more to be had */
#define GAUGE_FULL 0.9  /* of the rate limit */

static double gauge_cpu(void)
{
	struct timespec t;

	return clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t) < 0 ? 0 : (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static enum stream_bottleneck gauge_judge(struct sender *s, const struct stream_gauges *g, double reading)
{
	double limit = (double)s->rate_mbit * 1e6 / 8;

	if (limit > 0 && g->link > GAUGE_FULL * limit)
		return STREAM_RATE;
	if (g->cpu > GAUGE_BUSY)
		return STREAM_CPU;
	return reading > 0.5 ? STREAM_DISK : STREAM_LINK;
}

void gauge_look(struct gauge *g, struct sender *s, uint64_t pending, uint64_t collected, struct stream_gauges *ret)
{
	struct gauge now = {id_now_mono(), gauge_cpu(), s->sent, s->read, s->read_ns};
	double dt = MAX(now.time - g->time, 1e-3), n = s->p->connections, reading;
	double cores = MIN(n, (double)MAX(sysconf(_SC_NPROCESSORS_ONLN), 1));

	reading = (double)(now.read_ns - g->read_ns) / 1e9 / n;
	ret->churn = pending > collected ? (double)(pending - collected) * STREAM_BLOCK / dt : 0;
	ret->link = (double)(now.sent - g->sent) / dt;
	/* A few blocks say little about the disk: the last good figure stays. */
	if (now.read - g->read >= 4 * MIB && reading > 0)
		ret->disk = (double)(now.read - g->read) / reading;
	ret->cpu = MIN((now.cpu - g->cpu) / dt / cores, 1.0);
	ret->bottleneck = gauge_judge(s, ret, reading / dt);
	*g = now;
}

double gauge_converge(double pending, double target, double done, double churn)
{
	if (pending <= target)
		return 0;
	return done > churn ? (pending - target) / (done - churn) : INFINITY;
}
