/*
 * What lies below DIR, by whose it is, and the removal of what is certainly temporary: the files of machines that don't
 * run any more, and what was about to be removed. Copies, chains, images and instances are only told: a database that
 * was restored doesn't know yesterday's.
 *
 * What is to go is first moved to DIR/gone, which is quick and done or not done; what lies there nobody misses.
 */
#include "provider/local_int.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"

#define TRIAL        "trial-" /* of the accelerator, in the cache */
#define HOLDINGS_MAX 100000u
#define NAME_BYTES   200u

/* The id that a name begins with, or NULL: "image-0123456789abcdef-probe". */
static const char *name_owner(const char *name, char id[ID_MAX])
{
	static const char *const nouns[] = {"job", "image", "instance"};

	for (size_t i = 0; i < ARRAY_SIZE(nouns); i++) {
		size_t n = strlen(nouns[i]) + 17;

		if (strlen(name) < n || (name[n] && name[n] != '-' && name[n] != '.'))
			continue;
		snprintf(id, ID_MAX, "%.*s", (int)n, name);
		if (id_is(nouns[i], id))
			return id;
	}
	return NULL;
}

static int holding_add(json_t *list, const char *dir, const char *place, const char *name, const char *kind,
		       struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/%s", dir, name);
	char id[ID_MAX];
	uint64_t bytes;
	double since;
	int r = path ? io_look_tree(path, &bytes, &since, e) : err_nomem(e);
	json_t *o;

	if (r < 0 || since == 0)
		return r; /* gone meanwhile */
	if (json_array_size(list) >= HOLDINGS_MAX)
		return err_set(e, -EFBIG, "'%s' holds more than %u things", dir, HOLDINGS_MAX);
	o = json_pack("{s:s, s:s?, s:o, s:I, s:f}", "kind", kind, "owner", name_owner(name, id), "path",
		      json_sprintf("%s/%s", place, name) ?: json_null(), "bytes", (json_int_t)bytes, "since", since);
	return o && json_array_append_new(list, o) == 0 ? 0 : err_nomem(e);
}

/* All in a directory; one that isn't there holds nothing. `prefix`: only these. */
static int holdings_in(json_t *list, const char *dir, const char *place, const char *prefix, const char *kind,
		       struct err *e)
{
	DIR *d = opendir(dir);
	struct dirent *ent;
	int r = 0;

	if (!d)
		return errno == ENOENT ? 0 : err_sys(e, "cannot read '%s'", dir);
	while (r == 0 && (errno = 0, ent = readdir(d)))
		if (ent->d_name[0] != '.' && strcmp(ent->d_name, "locks") != 0 && str_starts(ent->d_name, prefix) &&
		    strlen(ent->d_name) <= NAME_BYTES)
			r = holding_add(list, dir, place, ent->d_name, kind, e);
	if (r == 0 && errno)
		r = err_sys(e, "cannot read '%s'", dir);
	closedir(d);
	return r;
}

int local_holdings(struct provider *p, json_t **ret, struct err *e)
{
	static const struct {
		const char *place, *kind;
	} places[] = {{"jobs", "copy"}, {"chains", "chain"},  {"images", "image"}, {"instances", "instance-set"},
		      {"runs", "run"},  {"gone", "temporary"}};
	struct local *l = local_of(p);
	_cleanup_json_ json_t *list = json_array();
	struct local_path dir;
	int r = list ? 0 : err_nomem(e);

	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(places); i++) {
		r = local_path(l, &dir, e, "%s", places[i].place);
		r = r ?: holdings_in(list, dir.s, places[i].place, "", places[i].kind, e);
	}
	r = r ?: holdings_in(list, l->cache, "cache", TRIAL, "temporary", e);
	if (r == 0)
		*ret = take_ptr(&list);
	return r;
}

int local_throw(const struct local *l, const char *path, const char *name, struct local_path *ret, struct err *e)
{
	struct local_path dir;
	int r = local_path(l, &dir, e, "gone");

	r = r ?: io_mkdirs(dir.s, 0700, e);
	for (unsigned i = 0; r == 0; i++) {
		r = local_path(l, ret, e, "gone/%s.%u", name, i);
		if (r < 0)
			break;
		if (rename(path, ret->s) == 0)
			return 0;
		/* Of what isn't there nothing is left to do. A directory that is empty would be replaced by it, which
		 * is as well. */
		if (errno == ENOENT)
			return 0;
		if ((errno != ENOTEMPTY && errno != EEXIST && errno != EISDIR && errno != ENOTDIR) || i > 1000)
			r = err_sys(e, "cannot move '%s' out of the way", path);
	}
	return r;
}

int local_discard(struct provider *p, const char *path, struct err *e)
{
	struct local *l = local_of(p);
	const char *name = strrchr(path, '/');
	struct local_path from, to;
	int r;

	if (!name || !name[1] || name[1] == '.' || strlen(name) > NAME_BYTES)
		return err_set(e, -EINVAL, "'%s' is no holding", path);
	name++;
	if (strncmp(path, "gone/", (size_t)(name - path)) == 0)
		return 0; /* local_empty() takes it */
	if (strncmp(path, "cache/", (size_t)(name - path)) == 0 && str_starts(name, TRIAL)) {
		_cleanup_free_ char *trial = str_printf("%s/%s", l->cache, name);

		if (!trial)
			return err_nomem(e);
		return unlink(trial) == 0 || errno == ENOENT ? 0 : err_sys(e, "cannot remove '%s'", trial);
	}
	if (strncmp(path, "runs/", (size_t)(name - path)) != 0)
		return err_set(e, -EPERM, "'%s' is not known to be temporary", path);
	r = local_path(l, &from, e, "runs/%s", name);
	return r ?: local_throw(l, from.s, name, &to, e);
}

int local_empty(struct provider *p, struct err *e)
{
	struct local *l = local_of(p);
	struct local_path dir, one;
	int r = local_path(l, &dir, e, "gone");
	DIR *d = r == 0 ? opendir(dir.s) : NULL;
	struct dirent *ent;

	if (r < 0 || !d)
		return r < 0 || errno == ENOENT ? r : err_sys(e, "cannot read '%s'", dir.s);
	while (r == 0 && (ent = readdir(d))) {
		if (strcmp(ent->d_name, ".") == 0 || strcmp(ent->d_name, "..") == 0)
			continue;
		r = local_path(l, &one, e, "gone/%s", ent->d_name);
		r = r ?: io_remove_tree(one.s, e);
	}
	closedir(d);
	return r;
}
