#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

#define LIMIT_ADDRESSES 1024u

/* A small cache of addresses with recent failures: the one that failed longest ago gives way. */
struct api_limit {
	pthread_mutex_t lock;
	double per_second, burst;
	struct {
		char address[64];
		double level, at;
	} rows[LIMIT_ADDRESSES];
};

struct api_limit *api_limit_new(unsigned per_minute)
{
	struct api_limit *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	pthread_mutex_init(&l->lock, NULL);
	l->burst = per_minute;
	l->per_second = per_minute / 60.0;
	return l;
}

void api_limit_free(struct api_limit *l)
{
	if (!l)
		return;
	pthread_mutex_destroy(&l->lock);
	free(l);
}

/* The row of the address, or the one to give way. */
static size_t limit_row(struct api_limit *l, const char *address)
{
	size_t oldest = 0;

	for (size_t i = 0; i < LIMIT_ADDRESSES; i++) {
		if (strcmp(l->rows[i].address, address) == 0)
			return i;
		if (l->rows[i].at < l->rows[oldest].at)
			oldest = i;
	}
	snprintf(l->rows[oldest].address, sizeof(l->rows[oldest].address), "%s", address);
	l->rows[oldest].level = 0;
	return oldest;
}

static double limit_level(struct api_limit *l, size_t i, double now)
{
	return MAX(0, l->rows[i].level - (now - l->rows[i].at) * l->per_second);
}

bool api_limit_exceeded(struct api_limit *l, const char *address)
{
	bool exceeded = false;
	double now = id_now_mono();

	pthread_mutex_lock(&l->lock);
	for (size_t i = 0; i < LIMIT_ADDRESSES; i++)
		if (l->rows[i].at > 0 && strcmp(l->rows[i].address, address) == 0)
			exceeded = limit_level(l, i, now) + 1 > l->burst;
	pthread_mutex_unlock(&l->lock);
	return exceeded;
}

void api_limit_count(struct api_limit *l, const char *address)
{
	double now = id_now_mono();
	size_t i;

	pthread_mutex_lock(&l->lock);
	i = limit_row(l, address);
	l->rows[i].level = MIN(limit_level(l, i, now) + 1, l->burst);
	l->rows[i].at = now;
	pthread_mutex_unlock(&l->lock);
}
