/* What the regions run instances on: opened when it is first asked for, kept until the end. Opening may take long where
 * it is far away, and keeps nobody up who wants another one. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "center/instances.h"

struct hyper {
	struct hyper *next;
	char region[ID_MAX];
	pthread_mutex_t lock; /* of opening; no other is taken under it */
	struct hypervisor *h; /* NULL: not yet */
	json_t *settings;     /* it was opened with */
};

/* The entry of the region, made when missing: they stay until the end. */
static struct hyper *hyper_entry(struct engine *en, const char *region)
{
	struct hyper *y;
	ENGINE_LOCK(en);

	for (y = en->hypers; y; y = y->next)
		if (strcmp(y->region, region) == 0)
			return y;
	y = calloc(1, sizeof(*y));
	if (!y)
		return NULL;
	snprintf(y->region, sizeof(y->region), "%s", region);
	pthread_mutex_init(&y->lock, NULL);
	y->next = en->hypers;
	en->hypers = y;
	return y;
}

int engine_hypervisor_try(struct engine *en, const char *provider, const json_t *settings, struct hypervisor **ret,
			  struct err *e)
{
	const struct provider_settings ps = {
	    .dir = en->dir, .cache = en->cache, .programs = en->programs, .user = en->s.user};

	if (!en->s.hypervisor_open)
		return err_set(e, -ENOSYS, "this center runs no instances");
	return en->s.hypervisor_open(provider, &ps, settings, ret, e);
}

/* The one that is open with other settings than the region has now stays until the end, for whoever uses it. */
static int hyper_retire(struct engine *en, struct hyper *y)
{
	struct hyper *old = calloc(1, sizeof(*old));
	ENGINE_LOCK(en);

	if (!old)
		return -ENOMEM;
	pthread_mutex_init(&old->lock, NULL);
	old->h = y->h;
	old->settings = y->settings;
	y->h = NULL;
	y->settings = NULL;
	old->next = en->hypers;
	en->hypers = old;
	return 0;
}

/* (its lock) */
static int hyper_current(struct engine *en, struct hyper *y, struct err *e)
{
	_cleanup_(model_region_release) struct model_region row = {0};
	int r = en->store->ops->get(en->store, &model_regions, y->region, &row, e);

	if (r == 0 && y->h && !json_equal(y->settings, row.settings) && hyper_retire(en, y) < 0)
		return err_nomem(e);
	if (r < 0 || y->h)
		return r;
	r = engine_hypervisor_try(en, row.provider, row.settings, &y->h, e);
	if (r == 0)
		y->settings = json_incref(row.settings);
	return r;
}

int engine_hypervisor(struct engine *en, const char *region, struct hypervisor **ret, struct err *e)
{
	struct hyper *y = hyper_entry(en, region);
	int r;

	if (!y)
		return err_nomem(e);
	pthread_mutex_lock(&y->lock);
	r = hyper_current(en, y, e);
	if (r == 0)
		*ret = y->h;
	pthread_mutex_unlock(&y->lock);
	return r;
}

void engine_hypervisors_close(struct engine *en)
{
	struct hyper *y;

	while ((y = en->hypers)) {
		en->hypers = y->next;
		if (y->h)
			y->h->ops->close(y->h);
		json_decref(y->settings);
		pthread_mutex_destroy(&y->lock);
		free(y);
	}
}

json_t *engine_region_info(void *arg, const char *region)
{
	struct engine *en = arg;
	struct api_fault f = {0};
	json_t *info = NULL;

	if (strcmp(region, "local") == 0)
		return en->provider->ops->capacity(en->provider, &info, NULL) < 0 ? NULL : info;
	return instance_ask_capacity(en, region, &info, &f) < 0 ? NULL : info;
}
