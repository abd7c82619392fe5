/*
 * Each taker reserves the next n bytes of the line and waits until time has paid for them. `paid` grows with time at
 * the current rate, so a new rate counts from the moment it is set; it never runs ahead of `taken` by more than a
 * burst.
 */
#include <pthread.h>
#include <time.h>

#include "base/err.h"
#include "base/id.h"
#include "base/util.h"
#include "wire/wire.h"

#define RATE_BURST 0.1 /* seconds at the rate that may be made up for, and at least one slice */
#define RATE_SLICE 16384.0
#define RATE_NAP   0.05 /* longest sleep: a new rate and a stop are seen within it */

struct wire_rate {
	pthread_mutex_t lock;
	_Atomic uint64_t mbit;
	double taken, paid; /* bytes since the limit was set */
	double when;        /* monotonic time of `paid` */
};

int wire_rate_new(uint64_t mbit, struct wire_rate **ret, struct err *e)
{
	struct wire_rate *r = calloc(1, sizeof(*r));

	if (!r)
		return err_nomem(e);
	pthread_mutex_init(&r->lock, NULL);
	r->mbit = mbit;
	r->when = id_now_mono();
	*ret = r;
	return 0;
}

static double rate_bytes_per_second(const struct wire_rate *r)
{
	return (double)r->mbit * 125000.0;
}

/* Under the lock. */
static void rate_pay(struct wire_rate *r)
{
	double now = id_now_mono(), speed = rate_bytes_per_second(r);

	if (speed > 0)
		r->paid = MIN(r->paid + (now - r->when) * speed, r->taken + MAX(speed * RATE_BURST, RATE_SLICE));
	else
		r->paid = r->taken;
	r->when = now;
}

void wire_rate_set(struct wire_rate *r, uint64_t mbit)
{
	pthread_mutex_lock(&r->lock);
	rate_pay(r);
	r->mbit = mbit;
	pthread_mutex_unlock(&r->lock);
}

bool wire_rate_is_limited(struct wire_rate *r)
{
	return r->mbit != 0;
}

bool wire_rate_take(struct wire_rate *r, uint64_t n, const atomic_bool *stop)
{
	double mine, missing, speed;

	pthread_mutex_lock(&r->lock);
	rate_pay(r);
	r->taken += (double)n;
	mine = r->taken;
	for (;;) {
		struct timespec ts = {0};

		missing = mine - r->paid;
		speed = rate_bytes_per_second(r);
		pthread_mutex_unlock(&r->lock);
		if (missing <= 0 || speed <= 0)
			return true;
		if (stop && *stop)
			return false;
		ts.tv_nsec = (long)(MIN(missing / speed, RATE_NAP) * 1e9) + 1;
		nanosleep(&ts, NULL);
		pthread_mutex_lock(&r->lock);
		rate_pay(r);
	}
}

void wire_rate_free(struct wire_rate *r)
{
	if (!r)
		return;
	pthread_mutex_destroy(&r->lock);
	free(r);
}
