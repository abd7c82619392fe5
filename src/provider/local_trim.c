/*
 * A chain becomes as short as its images allow. A layer that neither an image nor the job needs is given to the next
 * one: `qemu-img commit` writes what the next layer has into it, and the result takes that layer's name. So what
 * neither of them changed is never copied.
 *
 * Killed anywhere, the same is done again from what lies there. While the upper layer is written into the lower,
 * everything that stands on the upper reads what it did before: only what the upper covers changes. The upper goes once
 * the lower has its name and nothing refers to the old one.
 *
 * Each disk is merged by itself. Where that was cut off, or there was no space for one of them, a run has some of its
 * disks no more: what is next to it is for each disk the nearest run that has it.
 */
#include "provider/local_int.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/proc.h"
#include "base/str.h"

#define TRIM_MIN_FREE (64 * MIB) /* the center's database may lie in the same filesystem */
#define TRIM_TICK     50         /* milliseconds between two looks at it */

struct trim {
	struct local *l;
	const char *job;
	const struct provider_watch *w;
	struct local_runs runs;
	bool held[LOCAL_RUNS_MAX]; /* as runs.v */
	struct err *put_off;       /* why the first layer that could not be merged now stays */
};

/* For drills: REPLANT_FAULT_TRIM=N kills the program at the N-th step. */
static void trim_fault(void)
{
	static _Atomic unsigned steps;
	const char *text = getenv("REPLANT_FAULT_TRIM");

	if (text && ++steps == (unsigned)strtoul(text, NULL, 10))
		raise(SIGKILL);
}

static int trim_path(const struct trim *t, char buf[PATH_MAX], uint64_t run, const char *name, struct err *e)
{
	int n = snprintf(buf, PATH_MAX, "%s/chains/%s/%llu/%s", t->l->dir, t->job, (unsigned long long)run, name);

	return n < PATH_MAX ? 0 : err_set(e, -ENAMETOOLONG, "path '%s' is too long", t->l->dir);
}

/* How much a merge will write can't be told beforehand; stopped in the middle, it is done again from its beginning. */
static int trim_check_space(const char *path, struct err *e)
{
	struct statvfs fs;
	uint64_t has;

	if (!path)
		return 0;
	if (statvfs(path, &fs) < 0)
		return err_sys(e, "cannot look at '%s'", path);
	has = (uint64_t)fs.f_bavail * fs.f_frsize;
	return has >= TRIM_MIN_FREE
		   ? 0
		   : err_set(e, -ENOSPC,
			     "'%s' is not merged with the layer below it, for only %llu MiB are free (make room)", path,
			     (unsigned long long)(has / MIB));
}

/* Until it ends, or nobody wants it any more, or space gets short where `path` is (NULL: none is needed). */
static int trim_run(const struct trim *t, const char *const argv[], const char *path, struct err *e)
{
	_cleanup_close_ int out_r = -1, out_w = -1;
	struct proc_opts o = PROC_OPTS_INIT;
	int p[2], status, r = trim_check_space(path, e);
	pid_t pid;

	if (r < 0)
		return r;
	if (pipe2(p, O_CLOEXEC) < 0)
		return err_sys(e, "cannot start '%s'", argv[0]);
	out_r = p[0], out_w = p[1];
	o.stdout_fd = out_w;
	o.die_with_us = true;
	o.user = t->l->user;
	r = proc_spawn(argv, &o, &pid, e);
	if (r < 0)
		return r;
	close(take_fd(&out_w));
	for (;;) {
		struct pollfd watch = {.fd = out_r, .events = POLLIN};
		char buf[512];

		if (local_cancelled(t->w)) {
			proc_stop(pid, 1);
			return err_set(e, -ECANCELED, "stopped");
		}
		r = trim_check_space(path, e);
		if (r < 0) {
			proc_stop(pid, 1);
			return r;
		}
		if (poll(&watch, 1, TRIM_TICK) > 0 && read(out_r, buf, sizeof(buf)) <= 0)
			break;
	}
	r = proc_wait(pid, &status, e);
	if (r == 0 && status != 0)
		return err_set(e, -EIO, "'%s %s' ended with status %d", argv[0], argv[1], status);
	return r;
}

/* qemu-img ran as the user, to whom it was lent: what it reads comes from a source. */
static int trim_take(const struct trim *t, const char *path, struct err *e)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);

	if (fd < 0 || fsync(fd) < 0)
		return err_sys(e, "cannot write '%s' to the disk", path);
	return local_take(t->l, fd, 0440, path, e);
}

static int trim_unlink(const char *path, struct err *e)
{
	return unlink(path) < 0 && errno != ENOENT ? err_sys(e, "cannot remove '%s'", path) : 0;
}

/* ---- what stands on a layer gets to know its new name ---- */

/* `done`: nobody but root changes it any more; else it is the receiver's and stays so. */
static int trim_rebase(const struct trim *t, const char *path, const char *backing, const char *format, bool done,
		       struct err *e)
{
	const char *const argv[] = {"qemu-img", "rebase", "-q", "-u",    "-f", "qcow2",
				    "-F",       format,   "-b", backing, path, NULL};
	struct err unlike = {0};
	int r = 0;

	if (local_check_overlay(t->l, path, backing, format, NULL, &unlike) < 0) {
		r = local_lend_file(t->l, path, e);
		r = r ?: trim_run(t, argv, NULL, e);
		r = r ?: local_check_overlay(t->l, path, backing, format, NULL, e);
	}
	return r ?: done ? trim_take(t, path, e) : local_sync(path, e);
}

/* Disk i of a run. */
struct trim_layer {
	uint64_t run;
	size_t disk;
	char name[32], path[PATH_MAX];
	const char *format;
};

/* That of the run itself, or of the nearest above it that has one. 1; 0: there is none. */
static int trim_layer(const struct trim *t, uint64_t run, bool above, size_t i, struct trim_layer *ret, struct err *e)
{
	struct err none = {0};
	int r;

	ret->disk = i;
	ret->run = run;
	if (above) {
		r = local_chain_near(t->l, t->job, &t->runs, &ret->run, true, i, ret->name, &ret->format, e);
	} else {
		r = local_chain_disk(t->l, t->job, run, i, ret->name, &ret->format, &none);
		r = r == 0 ? 1 : r == -ENOENT ? 0 : err_set(e, r, "%s", none.msg);
	}
	return r > 0 ? (trim_path(t, ret->path, ret->run, ret->name, e) ?: 1) : r;
}

/* Does no later run stand on it, the one at `but` apart? What is wrong with the chain shall not become worse. */
static int trim_check_free(const struct trim *t, const struct trim_layer *y, uint64_t but, struct err *e)
{
	char backing[64], path[PATH_MAX], name[32], found[LOCAL_BACKING_MAX];
	struct err why = {0};
	int r = 0;

	snprintf(backing, sizeof(backing), "../%llu/%s", (unsigned long long)y->run, y->name);
	snprintf(name, sizeof(name), "disk%zu.qcow2", y->disk);
	for (size_t i = 0; r == 0 && i < t->runs.n; i++) {
		if (t->runs.v[i] <= y->run || t->runs.v[i] == but)
			continue;
		r = trim_path(t, path, t->runs.v[i], name, e);
		if (r < 0)
			break;
		r = local_backing(path, found, &why);
		if (r == 0 && strcmp(found, backing) == 0)
			r = err_set(e, -EPERM, "'%s' can't go, '%s' stands on it", y->path, path);
		else if (r < 0)
			r = r == -ENOENT ? 0 : err_set(e, r, "%s", why.msg);
	}
	return r;
}

static int trim_drop(const struct trim *t, const struct trim_layer *y, struct err *e)
{
	int r = trim_check_free(t, y, 0, e);

	return r ?: trim_unlink(y->path, e);
}

struct trim_move {
	const struct trim *t;
	uint64_t run;
	size_t disk;
	const char *name, *format;
};

static int trim_tell(const struct trim *t, const char *image, json_t *manifest)
{
	_cleanup_json_ json_t *event =
	    json_pack("{s:s, s:s, s:O}", "event", "image_changed", "image", image, "manifest", manifest);

	local_tell(t->w, event);
	return 0;
}

/* The overlay's first bytes name its backing file: its digest is another, and the manifest says so. */
static int trim_image(void *arg, const char *image, uint64_t run, json_t *manifest, struct err *e)
{
	const struct trim_move *m = arg;
	json_t *disk = json_array_get(json_object_get(manifest, "disks"), m->disk);
	struct local_path overlay, path, dir;
	char backing[128], hex[65];
	int r;

	if (run != m->run || !disk)
		return 0;
	snprintf(backing, sizeof(backing), "../../chains/%s/%llu/%s", m->t->job, (unsigned long long)run, m->name);
	r = local_path(m->t->l, &overlay, e, "images/%s/disk%zu.qcow2", image, m->disk);
	r = r ?: local_path(m->t->l, &path, e, "images/%s/manifest.json", image);
	r = r ?: local_path(m->t->l, &dir, e, "images/%s", image);
	r = r ?: trim_rebase(m->t, overlay.s, backing, m->format, true, e);
	trim_fault();
	r = r ?: local_sha256(overlay.s, hex, e);
	if (r < 0)
		return r;
	json_object_set_new(disk, "base", json_string(backing));
	json_object_set_new(disk, "sha256", json_string(hex));
	r = local_write_json(path.s, manifest, e);
	if (r < 0)
		return r;
	local_image_add_paths(dir.s, manifest);
	return trim_tell(m->t, image, manifest);
}

/* The disk of that run is called `name` from now on; what stands on it refers to that. */
static int trim_rename(const struct trim *t, uint64_t run, size_t i, const char *name, const char *format,
		       struct err *e)
{
	struct trim_move m = {t, run, i, name, format};
	struct trim_layer child;
	char backing[64];
	int r = local_chain_images(t->l, t->job, trim_image, &m, e);

	r = r < 0 ? r : trim_layer(t, run, true, i, &child, e);
	if (r <= 0 || strcmp(child.format, "raw") == 0)
		return r < 0 ? r : 0; /* the next one stands on nothing */
	snprintf(backing, sizeof(backing), "../%llu/%s", (unsigned long long)run, name);
	return trim_rebase(t, child.path, backing, format, child.run <= t->runs.complete, e);
}

/* ---- a layer and the next ---- */

/* `upper` is qcow2 on `lower`. Nothing is taken out of `upper`, so this may be done again. */
static int trim_commit(const struct trim *t, const struct trim_layer *lower, const struct trim_layer *upper,
		       struct err *e)
{
	const char *const argv[] = {"qemu-img", "commit", "-q", "-d", "-f", "qcow2", upper->path, NULL};
	char backing[64];
	int r = trim_check_free(t, lower, upper->run, e), taken;

	snprintf(backing, sizeof(backing), "../%llu/%s", (unsigned long long)lower->run, lower->name);
	r = r ?: local_check_overlay(t->l, upper->path, backing, lower->format, NULL, e);
	if (r < 0)
		return r;
	r = local_lend_file(t->l, lower->path, e);
	r = r ?: local_lend_file(t->l, upper->path, e);
	r = r ?: trim_run(t, argv, upper->path, e);
	taken = trim_take(t, lower->path, r < 0 ? NULL : e);
	r = r ?: taken;
	taken = trim_take(t, upper->path, r < 0 ? NULL : e);
	trim_fault();
	return r ?: taken;
}

/* The lower file takes the place of the disk of `run` under a name of its own format. */
static int trim_replace(const struct trim *t, const struct trim_layer *lower, uint64_t run, struct err *e)
{
	struct trim_layer upper = {.run = run, .disk = lower->disk};
	char name[32], place[PATH_MAX];
	int r;

	snprintf(upper.name, sizeof(upper.name), "disk%zu.qcow2", lower->disk);
	r = trim_path(t, upper.path, run, upper.name, e);
	/* The same name, and all that stands on it finds it there. */
	if (r == 0 && strcmp(lower->format, "qcow2") == 0)
		return rename(lower->path, upper.path) < 0 ? err_sys(e, "cannot replace '%s'", upper.path) : 0;
	snprintf(name, sizeof(name), "disk%zu.raw", lower->disk);
	r = r ?: trim_path(t, place, run, name, e);
	if (r == 0 && link(lower->path, place) < 0 && errno != EEXIST)
		r = err_sys(e, "cannot make '%s'", place);
	trim_fault();
	r = r ?: trim_rename(t, run, lower->disk, name, "raw", e);
	trim_fault();
	r = r ?: trim_drop(t, &upper, e);
	trim_fault();
	return r ?: trim_drop(t, lower, e);
}

/* Is the one a second name of the other? Then they are one already, and only the end was missing. */
static bool trim_is_same(const char *a, const char *b)
{
	struct stat x, y;

	return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Disk i of a run that nobody needs. */
static int trim_disk(const struct trim *t, uint64_t run, size_t i, struct err *e)
{
	struct trim_layer lower, upper;
	struct err why = {0};
	int r = trim_layer(t, run, false, i, &lower, e);

	if (r <= 0)
		return r;
	r = trim_layer(t, run, true, i, &upper, e);
	if (r < 0 || (r > 0 && upper.run > t->runs.complete))
		return MIN(r, 0); /* that is still being received */
	if (r == 0 || strcmp(upper.format, "raw") == 0)
		return trim_drop(t, &lower, e); /* no other has such a disk, or it stands on nothing */
	r = trim_commit(t, &lower, &upper, &why);
	if (r == -ECANCELED)
		return err_set(e, r, "%s", why.msg);
	if (r < 0 && !t->put_off->code)
		*t->put_off = why;
	return r < 0 ? 0 : trim_replace(t, &lower, upper.run, e);
}

/* The end of what was begun: nothing else may come between. */
static int trim_finish(const struct trim *t, uint64_t run, struct err *e)
{
	struct trim_layer lower, upper;
	int r = 0;

	for (size_t i = LOCAL_DISKS_MAX; r >= 0 && i-- > 0;) {
		r = trim_layer(t, run, false, i, &lower, e);
		r = r <= 0 ? r : trim_layer(t, run, true, i, &upper, e);
		if (r > 0 && upper.run <= t->runs.complete && trim_is_same(lower.path, upper.path))
			r = trim_replace(t, &lower, upper.run, e);
	}
	return MIN(r, 0);
}

static int trim_remove_run(struct trim *t, size_t at, struct err *e)
{
	char dir[PATH_MAX];
	int r = trim_path(t, dir, t->runs.v[at], "", e);

	r = r ?: io_remove_tree(dir, e);
	if (r < 0)
		return r;
	t->runs.n--;
	memmove(&t->runs.v[at], &t->runs.v[at + 1], (t->runs.n - at) * sizeof(*t->runs.v));
	memmove(&t->held[at], &t->held[at + 1], (t->runs.n - at) * sizeof(*t->held));
	return 0;
}

static int trim_merge(struct trim *t, size_t at, struct err *e)
{
	struct trim_layer rest;
	int r = 0;

	/* From the last on: local_disks() counts from the first. */
	for (size_t i = LOCAL_DISKS_MAX; r == 0 && i-- > 0;) {
		r = trim_disk(t, t->runs.v[at], i, e);
		trim_fault();
	}
	for (size_t i = 0; r == 0 && i < LOCAL_DISKS_MAX; i++)
		r = trim_layer(t, t->runs.v[at], false, i, &rest, e);
	return r < 0 ? r : r > 0 ? 0 : trim_remove_run(t, at, e);
}

/* ---- a chain ---- */

static int trim_hold(void *arg, const char *image, uint64_t run, json_t *manifest, struct err *e)
{
	struct trim *t = arg;

	for (size_t i = 0; i < t->runs.n; i++)
		if (t->runs.v[i] == run) {
			t->held[i] = true;
			return 0;
		}
	return err_set(e, -ENOENT, "image '%s' stands on run %llu of job '%s', which is not there", image,
		       (unsigned long long)run, t->job);
}

/* The receiver's files of the last run, when there will be no other. */
static int trim_receiver_files(const struct trim *t, struct err *e)
{
	char path[PATH_MAX], name[32];
	int r = 0;

	for (size_t i = 0; r == 0 && t->runs.n && i < LOCAL_DISKS_MAX; i++) {
		snprintf(name, sizeof(name), "disk%zu.manifest", i);
		r = trim_path(t, path, t->runs.v[t->runs.n - 1], name, e);
		r = r ?: trim_unlink(path, e);
	}
	return r;
}

/*
 * From the newest on, so that what was begun is finished before a lower one comes into it. A layer that can't be
 * written now doesn't keep the others from giving back their space.
 */
static int trim_runs(struct trim *t, struct err *e)
{
	int r = 0;

	for (size_t i = t->runs.n; r == 0 && i-- > 0;)
		r = t->held[i] ? 0 : trim_finish(t, t->runs.v[i], e);
	for (size_t i = t->runs.n; r == 0 && i-- > 0;) {
		bool last = i + 1 == t->runs.n;

		if (t->held[i] || (last && t->runs.open))
			continue;
		if (last)
			r = trim_remove_run(t, i, e);
		else if (t->runs.v[i + 1] <= t->runs.complete) /* the next is not being received */
			r = trim_merge(t, i, e);
	}
	return r;
}

int local_trim_chain(struct local *l, const char *job, const struct provider_watch *w, struct err *e)
{
	struct err put_off = {0};
	struct trim t = {.l = l, .job = job, .w = w, .put_off = &put_off};
	struct local_path dir;
	int r = local_chain_read(l, job, &t.runs, e);

	if (r == 0 && t.runs.open)
		r = local_chain_is_expecting(l, job, e);
	if (r > 0)
		return err_set(e, -EBUSY, "an image on it is being made");
	r = r ?: local_chain_images(l, job, trim_hold, &t, e);
	if (r < 0)
		return r;
	/* A job that is gone never completes it. */
	while (r == 0 && !t.runs.open && t.runs.n && t.runs.v[t.runs.n - 1] > t.runs.complete && !t.held[t.runs.n - 1])
		r = trim_remove_run(&t, t.runs.n - 1, e);
	if (r == 0 && !t.runs.open)
		r = trim_receiver_files(&t, e);
	r = r ?: trim_runs(&t, e);
	if (r == 0 && put_off.code)
		r = err_set(e, put_off.code, "%s", put_off.msg);
	if (r < 0 || t.runs.n || t.runs.open)
		return r;
	r = local_path(l, &dir, e, "chains/%s", job);
	return r ?: io_remove_tree(dir.s, e);
}

int local_trim(struct provider *p, const struct provider_watch *w, bool *ret_left, struct err *e)
{
	struct local *l = local_of(p);
	struct local_path chains;
	struct dirent *d;
	DIR *list;
	int r = local_path(l, &chains, e, "chains");

	list = r == 0 ? opendir(chains.s) : NULL;
	*ret_left = false;
	if (!list)
		return r < 0 ? r : err_sys(e, "cannot read '%s'", chains.s);
	while ((d = readdir(list)) && !local_cancelled(w)) {
		struct err why = {0};
		int k;

		if (!id_is("job", d->d_name))
			continue;
		if (!local_chain_own(l, d->d_name)) {
			*ret_left = true;
			continue;
		}
		k = local_trim_chain(l, d->d_name, w, &why);
		local_chain_disown(l, d->d_name);
		*ret_left |= k == -EBUSY;
		if (k < 0 && k != -EBUSY && r == 0) /* one that can't be trimmed doesn't keep the others from it */
			r = err_set(e, k, "layers of '%s': %s", d->d_name, why.msg);
	}
	closedir(list);
	return r;
}
