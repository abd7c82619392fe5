/*
 * What hypervisors are asked while somebody waits. One that is far away may not answer for long, and a thread of the
 * API serves many: each question has a thread of its own, which is left to itself after a while.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/str.h"
#include "center/instances.h"

#define ASK_WAIT     3   /* seconds */
#define ASK_TRY_WAIT 8   /* for a region that an admin is about to add: it is reached for the first time */
#define ASK_PATIENCE 0.5 /* who hasn't answered for so long isn't asked by more than */
#define ASK_WAITING  2u  /* at a time */
#define ASKS_MAX     32u /* under way, of all */

enum ask_what { ASK_LIST, ASK_GET, ASK_SCREEN, ASK_SERIAL, ASK_CAPACITY, ASK_TRY };

struct ask {
	struct ask *next; /* under the lock */
	double began;     /* monotonic */
	struct engine *engine;
	enum ask_what what;
	char region[ID_MAX], ref[HYPERVISOR_REF_MAX], path[4200];
	uint64_t since;
	char provider[32]; /* ASK_TRY, of no region yet */
	json_t *settings;
	/* under the lock */
	bool ended, abandoned;
	int r;
	struct err e;
	json_t *json;
	struct str text;
	uint64_t end;
};

static void ask_free(struct ask *a)
{
	if (*a->path)
		unlink(a->path);
	json_decref(a->settings);
	json_decref(a->json);
	str_release(&a->text);
	free(a);
}

static int ask_try(struct ask *a)
{
	struct hypervisor *h;
	int r = engine_hypervisor_try(a->engine, a->provider, a->settings, &h, &a->e);

	if (r < 0)
		return r;
	r = h->ops->capacity(h, &a->json, &a->e);
	h->ops->close(h);
	return r;
}

static int ask_call(struct ask *a)
{
	struct hypervisor *h;
	int r;

	if (a->what == ASK_TRY)
		return ask_try(a);
	r = engine_hypervisor(a->engine, a->region, &h, &a->e);
	if (r < 0)
		return r;
	switch (a->what) {
	case ASK_CAPACITY:
		return h->ops->capacity(h, &a->json, &a->e);
	case ASK_LIST:
		return h->ops->list(h, &a->json, &a->e);
	case ASK_GET:
		return h->ops->get(h, a->ref, &a->json, &a->e);
	case ASK_SCREEN:
		return h->ops->screenshot(h, a->ref, a->path, &a->e);
	case ASK_SERIAL:
		return h->ops->serial(h, a->ref, a->since, &a->text, &a->end, &a->e);
	case ASK_TRY:
		break;
	}
	never("question");
}

static void *ask_main(void *arg)
{
	struct ask *a = arg, **p;
	struct engine *en = a->engine;
	int r = ask_call(a);
	bool abandoned;

	pthread_mutex_lock(&en->lock);
	a->r = r;
	a->ended = true;
	abandoned = a->abandoned;
	for (p = &en->asks; *p != a; p = &(*p)->next)
		;
	*p = a->next;
	pthread_cond_broadcast(&en->changed);
	pthread_mutex_unlock(&en->lock);
	if (abandoned)
		ask_free(a);
	return NULL;
}

/* Does the region keep those waiting who have asked? Else a few that ask would be all that the API has. */
static bool is_silent(const struct engine *en, const char *region)
{
	unsigned open = 0, all = 0;
	bool late = false;

	for (const struct ask *a = en->asks; a; a = a->next, all++) {
		if (strcmp(a->region, region) != 0)
			continue;
		open++;
		late |= id_now_mono() - a->began > ASK_PATIENCE;
	}
	/* What is tried for the first time is waited for long. */
	return all >= ASKS_MAX || ((late || !*region) && open >= ASK_WAITING);
}

static int ask_begin(struct ask *a)
{
	struct engine *en = a->engine;
	pthread_attr_t attr;
	pthread_t thread;
	int r;
	ENGINE_LOCK(en);

	if (en->stopping || is_silent(en, a->region))
		return -EAGAIN;
	a->began = id_now_mono();
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	r = pthread_create(&thread, &attr, ask_main, a);
	pthread_attr_destroy(&attr);
	if (r != 0)
		return -r;
	a->next = en->asks;
	en->asks = a;
	return 0;
}

static int ask_patience(const struct ask *a)
{
	return a->what == ASK_TRY ? ASK_TRY_WAIT : ASK_WAIT;
}

/* False: `a` isn't ours any more. */
static bool ask_wait(struct ask *a)
{
	struct engine *en = a->engine;
	struct timespec end;
	ENGINE_LOCK(en);

	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += ask_patience(a);
	while (!a->ended && pthread_cond_timedwait(&en->changed, &en->lock, &end) == 0)
		;
	a->abandoned = !a->ended;
	return a->ended;
}

/* What came of it in *ret, which the caller frees; -1 with the fault when nothing did. */
static int ask_any(struct engine *en, const struct ask *question, struct ask **ret, struct api_fault *f)
{
	struct ask *a = malloc(sizeof(*a));

	if (!a)
		return api_fault_set(f, 500, "internal", NULL, "out of memory");
	*a = *question;
	a->engine = en;
	a->settings = json_deep_copy(question->settings); /* its thread's alone */
	if (question->settings && !a->settings) {
		ask_free(a);
		return api_fault_set(f, 500, "internal", NULL, "out of memory");
	}
	if (ask_begin(a) < 0) {
		ask_free(a);
		return api_fault_set(f, 503, "busy", NULL,
				     "the hypervisor hasn't answered others yet, or too many are asked; try again");
	}
	if (!ask_wait(a))
		return api_fault_set(f, 504, "hypervisor_failed", NULL,
				     "the hypervisor didn't answer within %d s; try again", ask_patience(question));
	*ret = a;
	return 0;
}

/* The answer in *ret, which the caller frees; -1 with the fault. */
static int ask(struct engine *en, const struct ask *question, struct ask **ret, struct api_fault *f)
{
	struct ask *a;
	int r;

	if (ask_any(en, question, &a, f) < 0)
		return -1;
	r = a->r < 0 ? instance_fault(f, &a->e) : 0;
	if (r < 0)
		ask_free(a);
	else
		*ret = a;
	return r;
}

static struct ask question(enum ask_what what, const char *region, const char *ref)
{
	struct ask a = {.what = what};

	snprintf(a.region, sizeof(a.region), "%s", region);
	snprintf(a.ref, sizeof(a.ref), "%s", ref ?: "");
	return a;
}

static int ask_json(struct engine *en, const struct ask *q, json_t **ret, struct api_fault *f)
{
	struct ask *a;

	if (ask(en, q, &a, f) < 0)
		return -1;
	*ret = json_incref(a->json);
	ask_free(a);
	return 0;
}

int instance_ask_list(void *arg, const char *region, json_t **ret, struct api_fault *f)
{
	struct ask q = question(ASK_LIST, region, NULL);

	return ask_json(arg, &q, ret, f);
}

int instance_ask_get(void *arg, const char *region, const char *ref, json_t **ret, struct api_fault *f)
{
	struct ask q = question(ASK_GET, region, ref);

	if (strlen(ref) >= HYPERVISOR_REF_MAX)
		return api_fault_set(f, 404, "not_found", NULL, "region '%s' has no '%.64s'", region, ref);
	return ask_json(arg, &q, ret, f);
}

int instance_ask_capacity(void *arg, const char *region, json_t **ret, struct api_fault *f)
{
	struct ask q = question(ASK_CAPACITY, region, NULL);

	return ask_json(arg, &q, ret, f);
}

int instance_ask_try(void *arg, const char *provider, const json_t *settings, struct api_fault *f)
{
	struct ask q = question(ASK_TRY, "", NULL), *a;
	int r = 0;

	snprintf(q.provider, sizeof(q.provider), "%s", provider);
	q.settings = (json_t *)(uintptr_t)settings;
	if (ask_any(arg, &q, &a, f) < 0)
		return -1;
	if (a->r < 0)
		r = api_fault_set(f, 400, "bad_field", "uri", "the region can't be used: %s", a->e.msg);
	ask_free(a);
	return r;
}

/* What can't be asked now is as it was seen last. */
void instance_see(void *arg, struct model_instance *in)
{
	_cleanup_json_ json_t *got = NULL;
	double updated = in->updated;
	struct api_fault f = {0};
	struct engine *en = arg;
	int r;

	if (!instance_is_whole(in) || instance_elsewhere(en, in))
		return;
	r = instance_ask_get(en, in->region, in->ref, &got, &f);
	if (r == 0 || f.status == 404)
		instance_apply(in, got, NULL);
	in->updated = updated;
}

/* Somebody took it away behind our back. */
static int fault_missing(struct api_fault *f, const struct model_instance *in)
{
	if (f->status != 404)
		return -1;
	return api_fault_set(f, 409, "invalid_state", NULL, "its region doesn't know instance '%s' any more", in->name);
}

/* Of what is there, and runs here. */
static int check_here(struct engine *en, const struct model_instance *in, struct api_fault *f)
{
	if (!instance_is_whole(in))
		return api_fault_set(f, 409, "invalid_state", NULL, "instance '%s' isn't there yet, or any more",
				     in->name);
	return instance_check_host(en, in, f);
}

int instance_ask_screen(void *arg, const struct model_instance *in, int *ret_fd, struct api_fault *f)
{
	struct ask q = question(ASK_SCREEN, in->region, in->ref), *a;
	struct engine *en = arg;
	char name[ID_MAX];
	int fd;

	if (check_here(en, in, f) < 0)
		return -1;
	id_new("screen", name);
	snprintf(q.path, sizeof(q.path), "%s/%s.png", en->exports, name);
	if (ask(en, &q, &a, f) < 0)
		return fault_missing(f, in);
	fd = open(a->path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	ask_free(a);
	if (fd < 0)
		return api_fault_set(f, 502, "hypervisor_failed", NULL, "the hypervisor made no picture");
	*ret_fd = fd;
	return 0;
}

int instance_ask_serial(void *arg, const struct model_instance *in, uint64_t since, struct str *ret, uint64_t *ret_end,
			struct api_fault *f)
{
	struct ask q = question(ASK_SERIAL, in->region, in->ref), *a;

	if (check_here(arg, in, f) < 0)
		return -1;
	q.since = since;
	if (ask(arg, &q, &a, f) < 0)
		return fault_missing(f, in);
	*ret = a->text;
	a->text = (struct str){0};
	*ret_end = a->end;
	ask_free(a);
	return 0;
}
