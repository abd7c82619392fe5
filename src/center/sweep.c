/*
 * What is kept, for whom, and what a killed center left behind.
 *
 * An orphan is what no row owns, nobody works on, and nothing has changed of for an hour. Orphans are told. Removed are
 * only those that are certainly temporary: files of machines that have ended, halves of exports, what was being removed
 * already, logs and pictures of jobs that are no more. A copy, an image or an instance is never removed because a row
 * is missing: the database may be a backup of yesterday's. What isn't known to be nobody's is somebody's: every error
 * ends the sweep.
 */
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/io.h"
#include "base/log.h"
#include "center/engine.h"

#define SWEEP_LEASE "sweep"
#define CLOCK_SLACK 60.0 /* seconds by which two clocks may differ between two looks */

/* One at a time in this center; of several centers the lease is one's. */
static pthread_mutex_t sweep_lock = PTHREAD_MUTEX_INITIALIZER;
/* The lock's: when there was a look last, by both clocks, and until when (by the one that nobody sets) all is new. */
static double looked_wall, looked_boot, rest_until;

/* ---- whose is what ---- */

/* Ids with a row, each with the job that works on it, or "". */
static int own(json_t *owners, const char *id, const char *worker)
{
	return json_object_set_new(owners, id, json_string(worker ? worker : "")) < 0 ? -ENOMEM : 0;
}

static int own_job(void *arg, void *row)
{
	const struct model_job *job = row;
	int r = own(arg, job->id, job->id);

	return r == 0 && job->image_pending ? own(arg, job->image_pending, job->id) : r;
}

/* And the chain it stands on, which may outlive its job. */
static int own_image(void *arg, void *row)
{
	const struct model_image *im = row;
	const char *chain = json_string_value(json_object_get(im->manifest, "chain"));
	int r = own(arg, im->id, im->job);

	return r == 0 && chain && !json_object_get(arg, chain) ? own(arg, chain, chain) : r;
}

static int own_instance(void *arg, void *row)
{
	const struct model_instance *in = row;
	int r = own(arg, in->id, in->job);

	return r == 0 && in->ref ? own(arg, in->ref, in->job) : r;
}

static int own_export(void *arg, void *row)
{
	const struct model_export *x = row;

	return own(arg, x->id, x->image);
}

static int read_owners(struct engine *en, json_t *owners, struct err *e)
{
	static const struct {
		const struct model_noun *noun;
		store_each_fn each;
	} nouns[] = {{&model_jobs, own_job},
		     {&model_images, own_image},
		     {&model_instances, own_instance},
		     {&model_exports, own_export}};
	struct store_query all = {0};
	int r = 0;

	for (size_t i = 0; i < ARRAY_SIZE(nouns) && r == 0; i++) {
		r = en->store->ops->list(en->store, nouns[i].noun, &all, nouns[i].each, owners, NULL, e);
		if (r == -ENOMEM)
			err_nomem(e);
	}
	return r;
}

/* Under the lock: does anybody here, or as far as is heard elsewhere, work on it? */
static bool works_on(struct engine *en, const char *id)
{
	if (!id || !*id)
		return false;
	if (engine_live(en, id) || share_is_remote(en, id))
		return true;
	for (const struct task *t = en->tasks; t; t = t->next)
		if (strcmp(t->id, id) == 0 || strcmp(t->image, id) == 0)
			return true;
	for (const struct image_mark *m = en->marks; m; m = m->next)
		if (strcmp(m->image, id) == 0)
			return true;
	return false;
}

/* ---- the list ---- */

/* "export-0123456789abcdef.qcow2.partial" */
static json_t *owner_json(const char *noun, const char *name)
{
	char id[ID_MAX];

	snprintf(id, sizeof(id), "%.*s", (int)strlen(noun) + 17, name);
	return id_is(noun, id) ? json_string(id) : json_null();
}

static int add_state(json_t *list, const struct engine *en, const char *place, const char *noun, const char *name,
		     struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/%s/%s", en->state, place, name);
	bool partial = str_ends(name, ".partial") || strstr(name, ".tmp-");
	const char *kind = partial ? "temporary" : noun;
	double since = 0;
	uint64_t bytes = 0;
	int r = path ? io_look_tree(path, &bytes, &since, e) : err_nomem(e);
	json_t *o;

	if (r < 0 || since == 0)
		return r;
	if (strcmp(noun, "export") != 0)
		noun = "job";
	o = json_pack("{s:s, s:o, s:o, s:I, s:f}", "kind", kind, "owner", owner_json(noun, name), "path",
		      json_sprintf("state/%s/%s", place, name) ?: json_null(), "bytes", (json_int_t)bytes, "since",
		      since);
	return o && json_array_append_new(list, o) == 0 ? 0 : err_nomem(e);
}

/* What lies in a directory of STATE. */
static int list_state(json_t *list, const struct engine *en, const char *place, const char *noun, struct err *e)
{
	_cleanup_free_ char *dir = str_printf("%s/%s", en->state, place);
	DIR *d = dir ? opendir(dir) : NULL;
	struct dirent *ent;
	int r = 0;

	if (!d)
		return !dir ? err_nomem(e) : errno == ENOENT ? 0 : err_sys(e, "cannot read '%s'", dir);
	while (r == 0 && (errno = 0, ent = readdir(d)))
		if (ent->d_name[0] != '.' && strlen(ent->d_name) < 200)
			r = add_state(list, en, place, noun, ent->d_name, e);
	if (r == 0 && errno)
		r = err_sys(e, "cannot read '%s'", dir);
	closedir(d);
	return r;
}

static double boot_clock(void)
{
	struct timespec ts;

	must(clock_gettime(CLOCK_BOOTTIME, &ts) == 0);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* By a clock that was set an hour ahead all that is being made is old: then nothing is, for an hour. */
static bool clock_rests(const struct engine *en)
{
	double wall = id_now(), boot = boot_clock();

	if (looked_boot > 0 && fabs((wall - looked_wall) - (boot - looked_boot)) > CLOCK_SLACK)
		rest_until = boot + en->s.hour;
	looked_wall = wall;
	looked_boot = boot;
	return boot < rest_until;
}

static const char *item_text(const json_t *item, const char *key)
{
	return json_string_value(json_object_get(item, key)) ?: "";
}

static bool is_temporary(const json_t *item)
{
	return strcmp(item_text(item, "kind"), "run") == 0 || strcmp(item_text(item, "kind"), "temporary") == 0;
}

/* Files of a machine that doesn't say whose it is may be in use for as long as they like. */
static bool is_nobodys(const json_t *item)
{
	return strcmp(item_text(item, "kind"), "run") == 0 && !*item_text(item, "owner");
}

static bool is_log(const json_t *item)
{
	return strcmp(item_text(item, "kind"), "log") == 0 && *item_text(item, "owner");
}

/* Of what a job did: nothing without the job. */
static bool is_of_job(const json_t *item)
{
	const char *kind = item_text(item, "kind");

	if (!str_starts(item_text(item, "path"), "state/") || !*item_text(item, "owner"))
		return false;
	return is_log(item) || strcmp(kind, "test") == 0 || strcmp(kind, "picture") == 0;
}

/* A temporary thing may have an owner who goes on: it is not needed any more all the same. */
static void judge(struct engine *en, json_t *item, const json_t *owners, double before)
{
	const char *owner = item_text(item, "owner");
	const char *worker = json_string_value(json_object_get(owners, owner));
	bool orphan = json_number_value(json_object_get(item, "since")) < before;
	ENGINE_LOCK(en);

	orphan = orphan && !works_on(en, owner) && !works_on(en, worker) && (is_temporary(item) || !worker);
	json_object_set_new(item, "orphan", json_boolean(orphan));
	json_object_set_new(item, "removable",
			    json_boolean(orphan && !is_nobodys(item) && (is_temporary(item) || is_of_job(item))));
	json_object_set_new(item, "worker", json_string(worker ? worker : ""));
}

/* Kinds with what they sum up to; the clockwork's figures are what was seen last. */
static json_t *sum_up(struct engine *en, const json_t *items)
{
	json_t *kinds = json_object(), *item;
	json_int_t orphans = 0, bytes = 0;
	size_t i;

	json_array_foreach(items, i, item)
	{
		json_t *kind = json_object_get(kinds, item_text(item, "kind"));
		json_int_t mine = json_integer_value(json_object_get(item, "bytes"));
		json_int_t n = json_integer_value(json_object_get(kind, "count"));

		bytes += mine;
		mine += json_integer_value(json_object_get(kind, "bytes"));
		orphans += json_is_true(json_object_get(item, "orphan"));
		json_object_set_new(kinds, item_text(item, "kind"),
				    json_pack("{s:I, s:I}", "count", n + 1, "bytes", mine));
	}
	return json_pack("{s:I, s:I, s:o}", "bytes", bytes, "orphans", orphans, "kinds", kinds);
}

/* Files first: what got a row meanwhile is in the rows. Under sweep_lock. */
static int look(struct engine *en, json_t **ret_items, json_t **ret_sums, struct err *e)
{
	_cleanup_json_ json_t *items = NULL, *owners = json_object(), *sums = NULL;
	bool rests = clock_rests(en);
	json_t *item;
	size_t i;
	int r = en->provider->ops->holdings(en->provider, &items, e);

	r = r ?: list_state(items, en, "exports", "export", e);
	r = r ?: list_state(items, en, "logs", "log", e);
	r = r ?: list_state(items, en, "tests", "test", e);
	r = r ?: list_state(items, en, "pictures", "picture", e);
	r = r ?: (owners ? read_owners(en, owners, e) : err_nomem(e));
	if (r < 0)
		return r;
	json_array_foreach(items, i, item) judge(en, item, owners, rests ? 0 : id_now() - en->s.hour);
	sums = sum_up(en, items);
	if (!sums)
		return err_nomem(e);
	pthread_mutex_lock(&en->lock);
	model_take_json(&en->held, json_deep_copy(sums));
	pthread_mutex_unlock(&en->lock);
	*ret_items = take_ptr(&items);
	*ret_sums = take_ptr(&sums);
	return 0;
}

/* ---- removal ---- */

/* In the engine's lock nobody begins to work on it; moving it away doesn't take long. */
static int discard_idle(struct engine *en, const char *path, const char *owner, const char *worker, struct err *e)
{
	_cleanup_free_ char *file = NULL;
	ENGINE_LOCK(en);

	if (en->stopping || share_over(en) || works_on(en, owner) || works_on(en, worker))
		return -EBUSY;
	if (!str_starts(path, "state/"))
		return en->provider->ops->discard(en->provider, path, e);
	file = str_printf("%s/%s", en->state, path + strlen("state/"));
	if (!file)
		return err_nomem(e);
	return unlink(file) == 0 || errno == ENOENT ? 0 : err_sys(e, "cannot remove '%s'", file);
}

/* The lease of a thing, if it is one that others may have; "": none is needed. */
static bool take_lease(struct engine *en, const char *id)
{
	return !*id || share_take(en, id) == 0;
}

static void drop_lease(struct engine *en, const char *id)
{
	if (*id)
		share_drop(en, id);
}

/* 1: it was removed, 0: somebody has it. */
static int remove_one(struct engine *en, const json_t *item, struct err *e)
{
	const char *owner = item_text(item, "owner"), *worker = item_text(item, "worker");
	int r = -EBUSY;

	/* Both are one where a job is its own worker. */
	if (strcmp(owner, worker) == 0)
		worker = "";
	if (!take_lease(en, owner))
		return 0;
	if (take_lease(en, worker)) {
		if (share_holds(en, SWEEP_LEASE))
			r = is_log(item) ? joblog_remove(en, owner, e)
					 : discard_idle(en, item_text(item, "path"), owner, worker, e);
		drop_lease(en, worker);
	}
	drop_lease(en, owner);
	return r == 0 ? 1 : r == -EBUSY ? 0 : r;
}

/* *ret_removed: those that went, or would go. One that can't be removed is no reason to leave the others. */
static int remove_all(struct engine *en, const json_t *items, bool dry_run, json_t *removed, json_t *failed)
{
	json_t *item;
	size_t i;

	json_array_foreach(items, i, item)
	{
		struct err e = {0};
		int r = json_is_true(json_object_get(item, "removable"));

		if (r && !dry_run)
			r = remove_one(en, item, &e);
		if (r < 0)
			json_array_append_new(failed,
					      json_pack("{s:s, s:s}", "path", item_text(item, "path"), "message", e.msg)
						  ?: json_null());
		if (r > 0 && json_array_append(removed, item) < 0)
			return -ENOMEM;
		if (r > 0 && !dry_run)
			log_info("swept '%s' of %s", item_text(item, "path"), item_text(item, "owner"));
	}
	return 0;
}

static void forget_workers(json_t *items)
{
	json_t *item;
	size_t i;

	json_array_foreach(items, i, item) json_object_del(item, "worker");
}

/* What is left of the orphans, for who has to decide. */
static json_t *rest_of(const json_t *items)
{
	json_t *list = json_array(), *item;
	size_t i;

	json_array_foreach(items, i, item) if (json_is_true(json_object_get(item, "orphan")) &&
					       !json_is_true(json_object_get(item, "removable")))
	    json_array_append(list, item);
	return list;
}

static int sweep_held(struct engine *en, bool dry_run, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *items = NULL, *sums = NULL, *removed = json_array(), *failed = json_array();
	int r = look(en, &items, &sums, e);

	if (r < 0)
		return r;
	if (!removed || !failed || remove_all(en, items, dry_run, removed, failed) < 0)
		return err_nomem(e);
	forget_workers(items);
	*ret = json_pack("{s:b, s:O, s:O, s:o}", "dry_run", dry_run, "removed", removed, "failed", failed, "orphans",
			 rest_of(items));
	return *ret ? 0 : err_nomem(e);
}

int sweep_run(struct engine *en, bool dry_run, json_t **ret, struct err *e)
{
	int r;

	pthread_mutex_lock(&sweep_lock);
	r = share_take(en, SWEEP_LEASE);
	if (r < 0) {
		r = err_set(e, -EBUSY, "another center is sweeping at this moment; try again");
	} else {
		r = sweep_held(en, dry_run, ret, e);
		share_drop(en, SWEEP_LEASE);
	}
	pthread_mutex_unlock(&sweep_lock);
	return r;
}

/* ---- the task, and what the API asks ---- */

/* One that is about to end does nothing more: then there is another soon. */
static atomic_bool wanted;

bool sweep_is_wanted(void)
{
	return atomic_exchange(&wanted, false);
}

void sweep_start(struct engine *en)
{
	if (task_start(en, TASK_SWEEP, "", NULL) > 0)
		wanted = true;
}

void sweep_task(struct task *t)
{
	_cleanup_json_ json_t *report = NULL;
	struct engine *en = t->engine;
	struct err e = {0};
	json_t *item;
	size_t i;
	int r = sweep_run(en, false, &report, &e);

	if (r == 0)
		r = en->provider->ops->empty(en->provider, &e);
	if (r < 0 && r != -EBUSY)
		log_warn("the sweep was not finished: %s", e.msg);
	json_array_foreach(json_object_get(report, "failed"), i, item)
	    log_warn("'%s' can't be swept: %s", item_text(item, "path"), item_text(item, "message"));
	json_array_foreach(json_object_get(report, "orphans"), i, item)
	{
		char size[16];

		log_warn("nobody owns '%s' (%s, %s); it stays until you remove it", item_text(item, "path"),
			 item_text(item, "kind"),
			 str_bytes((uint64_t)json_integer_value(json_object_get(item, "bytes")), size, sizeof(size)));
	}
}

static int busy_fault(int r, struct api_fault *f, const struct err *e)
{
	return r == -EBUSY ? api_fault_set(f, 503, "busy", NULL, "%s", e->msg) : api_fault_err(f, e);
}

int sweep_api_holdings(void *arg, json_t **ret, struct api_fault *f)
{
	_cleanup_json_ json_t *items = NULL, *sums = NULL;
	struct engine *en = arg;
	struct err e = {0};
	int r;

	pthread_mutex_lock(&sweep_lock);
	r = look(en, &items, &sums, &e);
	pthread_mutex_unlock(&sweep_lock);
	if (r < 0)
		return api_fault_err(f, &e);
	forget_workers(items);
	*ret = take_ptr(&items);
	return 0;
}

int sweep_api(void *arg, bool dry_run, json_t **ret, struct api_fault *f)
{
	struct engine *en = arg;
	struct err e = {0};
	int r = sweep_run(en, dry_run, ret, &e);

	if (r < 0)
		return busy_fault(r, f, &e);
	/* Giving back much takes long. */
	if (!dry_run)
		sweep_start(en);
	return 0;
}

json_t *sweep_api_sums(void *arg)
{
	struct engine *en = arg;
	ENGINE_LOCK(en);

	return en->held ? json_deep_copy(en->held) : NULL;
}
