/*
 * A chain becomes as short as its images allow. A layer that neither an image nor the job needs is given to the next
 * one: `qemu-img commit` writes what the next layer has into it, and the result takes that layer's name. So what
 * neither of them changed is never copied.
 *
 * Killed anywhere, the same is done again from what lies there. While the upper layer is written into the lower,
 * everything that stands on the upper reads what it did before: only what the upper covers changes. The upper goes once
 * the lower has its name and nothing refers to the old one.
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

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/proc.h"
#include "base/str.h"

struct trim {
	struct local *l;
	const char *job;
	const struct provider_watch *w;
	struct local_runs runs;
	bool held[LOCAL_RUNS_MAX]; /* as runs.v */
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

/* Until it ends, or nobody wants it any more. */
static int trim_run(const struct trim *t, const char *const argv[], struct err *e)
{
	_cleanup_close_ int out_r = -1, out_w = -1;
	struct proc_opts o = PROC_OPTS_INIT;
	int p[2], status, r;
	pid_t pid;

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
		if (poll(&watch, 1, 250) > 0 && read(out_r, buf, sizeof(buf)) <= 0)
			break;
	}
	r = proc_wait(pid, &status, e);
	if (r == 0 && status != 0)
		return err_set(e, -EIO, "'%s %s' ended with status %d", argv[0], argv[1], status);
	return r;
}

/* The user may write to it until trim_take(): qemu-img runs as him, because what it reads comes from a source. */
static int trim_lend(const struct trim *t, const char *path, struct err *e)
{
	if (chmod(path, 0600) < 0)
		return err_sys(e, "cannot open '%s'", path);
	return local_give(t->l, path, e);
}

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

static int trim_rebase(const struct trim *t, const char *path, const char *backing, const char *format, struct err *e)
{
	const char *const argv[] = {"qemu-img", "rebase", "-q", "-u",    "-f", "qcow2",
				    "-F",       format,   "-b", backing, path, NULL};
	struct err unlike = {0};
	int r;

	if (local_check_overlay(t->l, path, backing, format, NULL, &unlike) == 0)
		return trim_take(t, path, e);
	r = trim_lend(t, path, e);
	r = r ?: trim_run(t, argv, e);
	r = r ?: trim_take(t, path, e);
	return r ?: local_check_overlay(t->l, path, backing, format, NULL, e);
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
	r = r ?: trim_rebase(m->t, overlay.s, backing, m->format, e);
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

/* `run`'s disk is called `name` from now on; what stands on it refers to that. */
static int trim_rename(const struct trim *t, size_t at, size_t i, const char *name, const char *format, struct err *e)
{
	struct trim_move m = {t, t->runs.v[at], i, name, format};
	char child[PATH_MAX], raw[PATH_MAX], base[32], backing[64];
	int r = local_chain_images(t->l, t->job, trim_image, &m, e);

	if (r < 0 || at + 1 >= t->runs.n)
		return r;
	snprintf(base, sizeof(base), "disk%zu.qcow2", i);
	r = trim_path(t, child, t->runs.v[at + 1], base, e);
	snprintf(base, sizeof(base), "disk%zu.raw", i);
	r = r ?: trim_path(t, raw, t->runs.v[at + 1], base, e);
	if (r < 0 || access(raw, F_OK) == 0 || access(child, F_OK) < 0)
		return r; /* the next one stands on nothing */
	snprintf(backing, sizeof(backing), "../%llu/%s", (unsigned long long)m.run, name);
	return trim_rebase(t, child, backing, format, e);
}

/* ---- a layer and the next ---- */

/* `upper` is qcow2 on `lower`. Nothing is taken out of `upper`, so this may be done again. */
static int trim_commit(const struct trim *t, const char *lower, const char *lower_name, uint64_t lower_run,
		       const char *format, const char *upper, struct err *e)
{
	const char *const argv[] = {"qemu-img", "commit", "-q", "-d", "-f", "qcow2", upper, NULL};
	char backing[64];
	int r;

	snprintf(backing, sizeof(backing), "../%llu/%s", (unsigned long long)lower_run, lower_name);
	r = local_check_overlay(t->l, upper, backing, format, NULL, e);
	r = r ?: trim_lend(t, lower, e);
	r = r ?: trim_lend(t, upper, e);
	r = r ?: trim_run(t, argv, e);
	r = r ?: trim_take(t, lower, e);
	r = r ?: trim_take(t, upper, e);
	trim_fault();
	return r;
}

/* The lower file takes the upper's place under a name of its own format. */
static int trim_replace(const struct trim *t, size_t at, size_t i, const char *lower, const char *format,
			const char *upper, struct err *e)
{
	char name[32], place[PATH_MAX];
	int r;

	/* The same name, and all that stands on it finds it there. */
	if (strcmp(format, "qcow2") == 0)
		return rename(lower, upper) < 0 ? err_sys(e, "cannot replace '%s'", upper) : 0;
	snprintf(name, sizeof(name), "disk%zu.raw", i);
	r = trim_path(t, place, t->runs.v[at], name, e);
	if (r == 0 && link(lower, place) < 0 && errno != EEXIST)
		r = err_sys(e, "cannot make '%s'", place);
	trim_fault();
	r = r ?: trim_rename(t, at, i, name, "raw", e);
	trim_fault();
	r = r ?: trim_unlink(upper, e);
	trim_fault();
	return r ?: trim_unlink(lower, e);
}

/* Is the one a second name of the other? Then they are one already, and only the end was missing. */
static bool trim_is_same(const char *a, const char *b)
{
	struct stat x, y;

	return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

/* Disk i of the layer at `at`, which nobody needs, and of the next one. */
static int trim_disk(const struct trim *t, size_t at, size_t i, struct err *e)
{
	char name[32], next_name[32], lower[PATH_MAX], upper[PATH_MAX], raw[PATH_MAX];
	uint64_t run = t->runs.v[at], next = t->runs.v[at + 1];
	const char *format, *next_format;
	int r = local_chain_disk(t->l, t->job, run, i, name, &format, e);

	snprintf(next_name, sizeof(next_name), "disk%zu.qcow2", i);
	r = r ?: trim_path(t, lower, run, name, e);
	r = r ?: trim_path(t, upper, next, next_name, e);
	snprintf(next_name, sizeof(next_name), "disk%zu.raw", i);
	r = r ?: trim_path(t, raw, next, next_name, e);
	if (r < 0)
		return r;
	if (trim_is_same(lower, raw))
		return trim_replace(t, at + 1, i, lower, format, upper, e);
	if (local_chain_disk(t->l, t->job, next, i, next_name, &next_format, NULL) < 0 ||
	    strcmp(next_format, "raw") == 0)
		return trim_unlink(lower, e); /* the next has no such disk, or one that stands on nothing */
	r = trim_commit(t, lower, name, run, format, upper, e);
	return r ?: trim_replace(t, at + 1, i, lower, format, upper, e);
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
	char dir[PATH_MAX];
	int r = trim_path(t, dir, t->runs.v[at], "", e);

	/* From the last on: local_disks() counts from the first. */
	for (size_t i = r == 0 ? local_disks(dir) : 0; r == 0 && i-- > 0;) {
		r = trim_disk(t, at, i, e);
		trim_fault();
	}
	return r ?: trim_remove_run(t, at, e);
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

static int trim_runs(struct trim *t, struct err *e)
{
	int r = 0;

	for (size_t i = 0; r == 0 && i < t->runs.n;) {
		bool last = i + 1 == t->runs.n;

		if (t->held[i])
			i++;
		else if (last)
			r = t->runs.open ? (i++, 0) : trim_remove_run(t, i, e);
		else if (t->runs.v[i + 1] > t->runs.complete)
			i++; /* the next is still being received */
		else
			r = trim_merge(t, i, e);
	}
	return r;
}

int local_trim_chain(struct local *l, const char *job, const struct provider_watch *w, struct err *e)
{
	struct trim t = {.l = l, .job = job, .w = w};
	struct local_path dir;
	int r = local_chain_read(l, job, &t.runs, e);

	if (r == 0 && t.runs.open && local_chain_is_expecting(l, job))
		return err_set(e, -EBUSY, "an image on it is being made");
	r = r ?: local_chain_images(l, job, trim_hold, &t, e);
	if (r < 0)
		return r;
	/* A job that is gone never completes it. */
	while (r == 0 && !t.runs.open && t.runs.n && t.runs.v[t.runs.n - 1] > t.runs.complete)
		r = trim_remove_run(&t, t.runs.n - 1, e);
	if (r == 0 && !t.runs.open)
		r = trim_receiver_files(&t, e);
	r = r ?: trim_runs(&t, e);
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
