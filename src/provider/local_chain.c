/*
 * The layers of an incremental job. Run 1 fills raw files; each later run writes qcow2 files whose backing files are
 * those of the run before, so that what earlier images stand on doesn't change.
 *
 * DIR/chains/JOB/open       the job may add runs: the newest layer stays even when no image needs it
 * DIR/chains/JOB/complete   number of the newest run that is complete
 * DIR/chains/JOB/boot       which boot of this host a run was last received in; gone when that ended in good order
 * DIR/chains/JOB/expects    the image that is made next, or was made last
 * DIR/chains/JOB/N/         disks of run N: disk0.raw or disk0.qcow2 (backing ../M/disk0.*). While it is received the
 *                           directory is the user's and has the receiver's files, too; afterwards it is root's.
 *
 * Images name their run in manifest.json and stand on ../../chains/JOB/N/diskI.*. All else follows from the files.
 */
#include "provider/local_int.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/endian.h"
#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"

/* ---- who is at work on it ---- */

struct local_chain_use {
	struct local_chain_use *next;
	char chain[ID_MAX];
	unsigned shared;
	bool owned;
};

static struct local_chain_use **use_find(struct local *l, const char *chain)
{
	struct local_chain_use **p = &l->uses;

	while (*p && strcmp((*p)->chain, chain) != 0)
		p = &(*p)->next;
	return p;
}

/* For other centers on the same storage: the chain's byte. The kernel lets go of it with the process. */
bool local_chain_lock(int fd, const char *chain, short type)
{
	struct flock lk = {.l_type = type, .l_whence = SEEK_SET, .l_len = 1};
	const char *hex = strchr(chain, '-');

	lk.l_start = hex ? (off_t)(strtoull(hex + 1, NULL, 16) & (INT64_MAX >> 1)) : 0;
	return fcntl(fd, F_OFD_SETLK, &lk) == 0;
}

/* False when it must wait, or there is no memory. */
static bool use_take(struct local *l, const char *chain, bool own)
{
	struct local_chain_use **p, *u;
	bool ok;

	pthread_mutex_lock(&l->lock);
	p = use_find(l, chain);
	if (!*p && (*p = calloc(1, sizeof(**p))))
		snprintf((*p)->chain, ID_MAX, "%s", chain);
	u = *p;
	ok = u && !u->owned && (!own || !u->shared);
	if (ok && !u->shared)
		ok = local_chain_lock(l->chain_locks, chain, own ? F_WRLCK : F_RDLCK);
	if (u && !u->shared && !u->owned && !ok) {
		*p = u->next;
		free(u);
	}
	if (ok && own)
		u->owned = true;
	else if (ok)
		u->shared++;
	pthread_mutex_unlock(&l->lock);
	return ok;
}

static void use_leave(struct local *l, const char *chain, bool own)
{
	struct local_chain_use **p, *u;

	pthread_mutex_lock(&l->lock);
	p = use_find(l, chain);
	u = *p;
	must(u && (own ? u->owned : u->shared > 0));
	if (own)
		u->owned = false;
	else
		u->shared--;
	if (!u->shared && !u->owned) {
		local_chain_lock(l->chain_locks, chain, F_UNLCK);
		*p = u->next;
		free(u);
	}
	pthread_mutex_unlock(&l->lock);
}

int local_chain_share(struct local *l, const char *chain, const struct provider_watch *w, struct err *e)
{
	if (!chain || !*chain)
		return 0;
	while (!use_take(l, chain, false)) {
		if (local_cancelled(w))
			return err_set(e, -ECANCELED, "stopped");
		nanosleep(&(struct timespec){.tv_nsec = 100000000}, NULL);
	}
	return 0;
}

void local_chain_unshare(struct local *l, const char *chain)
{
	if (chain && *chain)
		use_leave(l, chain, false);
}

bool local_chain_own(struct local *l, const char *chain)
{
	return use_take(l, chain, true);
}

void local_chain_disown(struct local *l, const char *chain)
{
	use_leave(l, chain, true);
}

/* ---- names and numbers ---- */

static int chain_compare(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

/* A number without anything around it; 0: it is none. */
static uint64_t chain_number(const char *s)
{
	char *end;
	unsigned long long n;

	if (*s < '1' || *s > '9' || strlen(s) > 9)
		return 0;
	n = strtoull(s, &end, 10);
	return *end ? 0 : n;
}

/* *ret = 0 when there is no such file. What can't be read or is no number is an error: it decides what is removed. */
static int chain_read_number(const char *dir, const char *name, uint64_t *ret, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/%s", dir, name), *text = NULL;
	struct err why = {0};
	int r;

	*ret = 0;
	if (!path)
		return err_nomem(e);
	r = io_read_file(path, 64, &text, NULL, &why);
	if (r < 0)
		return r == -ENOENT ? 0 : err_set(e, r, "%s", why.msg);
	text[strcspn(text, "\n")] = '\0';
	*ret = chain_number(text);
	return *ret ? 0 : err_set(e, -EINVAL, "'%s' does not say the number of a run", path);
}

int local_exists(const char *path, struct err *e)
{
	if (access(path, F_OK) == 0)
		return 1;
	return errno == ENOENT ? 0 : err_sys(e, "cannot look at '%s'", path);
}

static int chain_has(const char *dir, const char *name, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/%s", dir, name);

	return path ? local_exists(path, e) : err_nomem(e);
}

static int chain_write(const char *dir, const char *name, const char *text, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/%s", dir, name);

	return path ? io_write_file_atomic(path, text, strlen(text), 0600, e) : err_nomem(e);
}

static int chain_unlink(const char *dir, const char *name, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/%s", dir, name);

	if (!path)
		return err_nomem(e);
	return unlink(path) < 0 && errno != ENOENT ? err_sys(e, "cannot remove '%s'", path) : 0;
}

int local_chain_read(const struct local *l, const char *job, struct local_runs *ret, struct err *e)
{
	struct local_path dir;
	struct dirent *d;
	DIR *list;
	int r = local_path(l, &dir, e, "chains/%s", job);

	memset(ret, 0, sizeof(*ret));
	if (r < 0)
		return r;
	list = opendir(dir.s);
	if (!list)
		return errno == ENOENT ? 0 : err_sys(e, "cannot read '%s'", dir.s);
	while (errno = 0, (d = readdir(list)) && ret->n < LOCAL_RUNS_MAX)
		if (chain_number(d->d_name))
			ret->v[ret->n++] = chain_number(d->d_name);
	if (!d && errno)
		r = err_sys(e, "cannot read '%s'", dir.s);
	closedir(list);
	if (d)
		return err_set(e, -EFBIG, "'%s' has more than %u runs", dir.s, LOCAL_RUNS_MAX);
	qsort(ret->v, ret->n, sizeof(*ret->v), chain_compare);
	r = r ?: chain_read_number(dir.s, "complete", &ret->complete, e);
	r = r ?: chain_has(dir.s, "open", e);
	ret->open = r > 0;
	return MIN(r, 0);
}

int local_chain_is_open(const struct local *l, const char *job, struct err *e)
{
	struct local_path path;

	return local_path(l, &path, e, "chains/%s/open", job) ?: local_exists(path.s, e);
}

int local_chain_disk(const struct local *l, const char *job, uint64_t run, size_t i, char name[32],
		     const char **ret_format, struct err *e)
{
	static const char *const formats[] = {"raw", "qcow2"};
	struct local_path path;
	struct stat st;

	for (size_t k = 0; k < ARRAY_SIZE(formats); k++) {
		int r;

		snprintf(name, 32, "disk%zu.%s", i, formats[k]);
		r = local_path(l, &path, e, "chains/%s/%llu/%s", job, (unsigned long long)run, name);
		if (r < 0)
			return r;
		if (lstat(path.s, &st) < 0) {
			if (errno != ENOENT)
				return err_sys(e, "cannot look at '%s'", path.s);
			continue;
		}
		*ret_format = formats[k];
		return S_ISREG(st.st_mode) ? 0 : err_set(e, -EINVAL, "'%s' is not a regular file", path.s);
	}
	return err_set(e, -ENOENT, "run %llu of job '%s' has no disk %zu", (unsigned long long)run, job, i);
}

int local_chain_near(const struct local *l, const char *job, const struct local_runs *runs, uint64_t *run, bool above,
		     size_t i, char name[32], const char **ret_format, struct err *e)
{
	for (size_t k = 0; k < runs->n; k++) {
		uint64_t v = runs->v[above ? k : runs->n - 1 - k];
		struct err none = {0};
		int r;

		if (above ? v <= *run : v >= *run)
			continue;
		r = local_chain_disk(l, job, v, i, name, ret_format, &none);
		if (r < 0 && r != -ENOENT)
			return err_set(e, r, "%s", none.msg);
		if (r == 0) {
			*run = v;
			return 1;
		}
	}
	return 0;
}

int local_backing(const char *path, char ret[LOCAL_BACKING_MAX], struct err *e)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	uint8_t h[20];
	uint64_t at;
	uint32_t size;
	ssize_t n;

	if (fd < 0)
		return err_sys(e, "cannot open '%s'", path);
	n = io_pread_full(fd, h, sizeof(h), 0);
	if (n < 0)
		return err_set(e, (int)n, "cannot read '%s': %s", path, strerror((int)-n));
	at = n == sizeof(h) ? get_be64(h + 8) : 0;
	size = n == sizeof(h) ? get_be32(h + 16) : 0;
	if (n != sizeof(h) || memcmp(h, "QFI\xfb", 4) != 0 || at > INT32_MAX || size >= LOCAL_BACKING_MAX)
		return err_set(e, -EINVAL, "'%s' is no qcow2 file", path);
	n = at ? io_pread_full(fd, ret, size, at) : 0;
	if (n < 0 || (at && n != (ssize_t)size))
		return err_set(e, n < 0 ? (int)n : -EINVAL, "cannot read '%s'", path);
	ret[n] = '\0';
	return 0;
}

/* ---- images on it ---- */

const char *local_image_chain(const json_t *manifest, uint64_t *ret_run)
{
	const char *chain = json_string_value(json_object_get(manifest, "chain"));
	json_int_t run = json_integer_value(json_object_get(manifest, "run"));

	if (!chain || !id_is("job", chain) || run <= 0)
		return NULL;
	*ret_run = (uint64_t)run;
	return chain;
}

/* The chain that an image stands on, or the image that it stands on, and so on. */
static int chain_of_image(const struct local *l, const char *image, char chain[ID_MAX], struct err *e)
{
	char at[ID_MAX];

	*chain = '\0';
	snprintf(at, sizeof(at), "%s", image);
	for (unsigned deep = 0; deep < LOCAL_BASES_MAX; deep++) {
		_cleanup_json_ json_t *manifest = NULL;
		struct local_path path;
		const char *name, *base;
		uint64_t run;
		int r = local_path(l, &path, e, "images/%s/manifest.json", at);

		r = r ?: local_exists(path.s, e);
		r = r > 0 ? local_read_json(path.s, &manifest, e) : r;
		if (r < 0 || !manifest)
			return r;
		name = local_image_chain(manifest, &run);
		base = local_image_base(manifest);
		if (name)
			snprintf(chain, ID_MAX, "%s", name);
		if (name || !base)
			return 0;
		snprintf(at, sizeof(at), "%s", base);
	}
	return err_set(e, -ELOOP, "image '%s' stands on more than %u others", image, LOCAL_BASES_MAX);
}

int local_chain_share_image(struct local *l, const char *image, char chain[ID_MAX], const struct provider_watch *w,
			    struct err *e)
{
	char name[ID_MAX];
	int r = chain_of_image(l, image, name, e);

	*chain = '\0';
	r = r ?: local_chain_share(l, name, w, e);
	if (r == 0)
		snprintf(chain, ID_MAX, "%s", name);
	return r;
}

struct chain_images {
	const char *job;
	int (*each)(void *arg, const char *image, uint64_t run, json_t *manifest, struct err *e);
	void *arg;
};

static int chain_image(void *arg, const char *image, json_t *manifest, struct err *e)
{
	const struct chain_images *ci = arg;
	uint64_t run = 0;
	const char *chain = local_image_chain(manifest, &run);

	return chain && strcmp(chain, ci->job) == 0 ? ci->each(ci->arg, image, run, manifest, e) : 0;
}

int local_chain_images(const struct local *l, const char *job,
		       int (*each)(void *arg, const char *image, uint64_t run, json_t *manifest, struct err *e),
		       void *arg, struct err *e)
{
	struct chain_images ci = {job, each, arg};

	return local_images(l, chain_image, &ci, e);
}

static int find_image(void *arg, const char *image, uint64_t run, json_t *manifest, struct err *e)
{
	return run == *(uint64_t *)arg ? err_set(e, -EEXIST, "image '%s' stands on this run already", image) : 0;
}

/* ---- the beginning of a run ---- */

static void chain_boot_id(char out[64])
{
	_cleanup_free_ char *text = NULL;

	snprintf(out, 64, "unknown");
	if (io_read_file("/proc/sys/kernel/random/boot_id", 64, &text, NULL, NULL) == 0)
		snprintf(out, 64, "%.*s", (int)strcspn(text, "\n"), text);
}

/*
 * Was it being received when the host went down? Its server doesn't sync, so its qcow2 files may be in any state: they
 * are made anew. What the run had got is lost with them; what earlier runs got is not.
 */
static int chain_after_crash(const char *chain, const char *dir, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/boot", chain), *text = NULL;
	char now[64], name[32];
	int r = 0;

	if (!path)
		return err_nomem(e);
	if (io_read_file(path, 256, &text, NULL, NULL) < 0)
		return access(path, F_OK) < 0 ? 0 : err_sys(e, "cannot read '%s'", path);
	chain_boot_id(now);
	if (strcmp(text, now) == 0 && strcmp(now, "unknown") != 0)
		return 0;
	for (size_t i = 0; r == 0 && i < LOCAL_DISKS_MAX; i++) {
		snprintf(name, sizeof(name), "disk%zu.qcow2", i);
		r = chain_has(dir, name, e);
		if (r <= 0)
			continue;
		r = chain_unlink(dir, name, e);
		snprintf(name, sizeof(name), "disk%zu.manifest", i);
		r = r ?: chain_unlink(dir, name, e);
	}
	return r ?: chain_unlink(dir, "replica.json", e);
}

static int chain_layer(const struct local *l, const char *job, uint64_t below, const char *dir, size_t i, struct err *e)
{
	char name[32], backing[64], path[PATH_MAX + 64], fresh[PATH_MAX + 64];
	const char *format;
	int r = local_chain_disk(l, job, below, i, name, &format, e);

	if (r < 0)
		return r;
	snprintf(backing, sizeof(backing), "../%llu/%s", (unsigned long long)below, name);
	snprintf(fresh, sizeof(fresh), "%s/disk%zu.fresh", dir, i);
	snprintf(path, sizeof(path), "%s/disk%zu.qcow2", dir, i);
	r = local_overlay(l, fresh, backing, format, e);
	r = r ?: local_sync(fresh, e);
	if (r == 0 && rename(fresh, path) < 0)
		r = err_sys(e, "cannot make '%s'", path);
	return r;
}

/* From the run before: what the receiver knows of the layer below is true of the layer on it, which is empty. */
static int chain_inherit(const struct local *l, const char *from, const char *to, const char *name, struct err *e)
{
	_cleanup_free_ char *a = str_printf("%s/%s", from, name), *b = str_printf("%s/%s", to, name);

	if (!a || !b)
		return err_nomem(e);
	if (rename(a, b) < 0)
		return errno == ENOENT ? 0 : err_sys(e, "cannot move '%s'", a);
	return local_give(l, b, e);
}

static int chain_layers(const struct local *l, const char *job, const struct local_runs *runs, uint64_t number,
			const char *dir, struct err *e)
{
	struct local_path below;
	uint64_t last = 0;
	char name[32];
	int r;

	for (size_t i = 0; i < runs->n; i++)
		if (runs->v[i] < number)
			last = runs->v[i];
	if (!last)
		return 0;
	r = local_path(l, &below, e, "chains/%s/%llu", job, (unsigned long long)last);
	for (size_t i = 0, n = r == 0 ? local_disks(below.s) : 0; r == 0 && i < n; i++) {
		struct err none = {0};
		const char *format;

		if (local_chain_disk(l, job, number, i, name, &format, &none) == 0)
			continue;
		r = chain_layer(l, job, last, dir, i, e);
	}
	for (size_t i = 0; r == 0 && i < LOCAL_DISKS_MAX; i++) {
		snprintf(name, sizeof(name), "disk%zu.manifest", i);
		r = chain_inherit(l, below.s, dir, name, e);
	}
	return r;
}

/*
 * A merge was cut off while the raw file of a run below had a second name in this one, on which nothing stands: the new
 * name goes as long as the old file is there, else the old name.
 */
static int chain_untwin(const struct local *l, const char *job, const struct local_runs *runs, uint64_t number,
			const char *dir, size_t i, struct err *e)
{
	char name[32], qcow2[32], path[PATH_MAX + 64];
	struct local_path below;
	struct stat a, b;
	int r = 0;

	snprintf(name, sizeof(name), "disk%zu.raw", i);
	snprintf(qcow2, sizeof(qcow2), "disk%zu.qcow2", i);
	snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (lstat(path, &a) < 0)
		return errno == ENOENT ? 0 : err_sys(e, "cannot look at '%s'", path);
	for (size_t k = 0; r == 0 && k < runs->n && runs->v[k] < number; k++) {
		r = local_path(l, &below, e, "chains/%s/%llu", job, (unsigned long long)runs->v[k]);
		snprintf(path, sizeof(path), "%s/%s", below.s, name);
		if (r == 0 && lstat(path, &b) < 0) {
			r = errno == ENOENT ? 0 : err_sys(e, "cannot look at '%s'", path);
			continue;
		}
		if (r < 0 || a.st_dev != b.st_dev || a.st_ino != b.st_ino)
			continue;
		r = chain_has(dir, qcow2, e);
		return r < 0 ? r : chain_unlink(r ? dir : below.s, name, e);
	}
	return r;
}

/* It was complete, but its job does it again. */
static int chain_reopen(const struct local *l, const char *job, const struct local_runs *runs, const char *chain,
			const char *dir, uint64_t number, struct err *e)
{
	char text[32];
	int r = local_chain_images(l, job, find_image, &number, e);

	for (size_t i = 0; r == 0 && i < LOCAL_DISKS_MAX; i++)
		r = chain_untwin(l, job, runs, number, dir, i, e);
	snprintf(text, sizeof(text), "%llu\n", (unsigned long long)number - 1);
	return r ?: number > 1 ? chain_write(chain, "complete", text, e) : chain_unlink(chain, "complete", e);
}

/* What the end of the run has made root's: it may have been cut off before it said that the run is complete. */
static int chain_lend(const struct local *l, const char *dir, struct err *e)
{
	static const char *const suffixes[] = {"raw", "qcow2"};
	char path[PATH_MAX + 64];
	int r = 0;

	for (size_t i = 0; r >= 0 && i < LOCAL_DISKS_MAX * ARRAY_SIZE(suffixes); i++) {
		snprintf(path, sizeof(path), "%s/disk%zu.%s", dir, i / ARRAY_SIZE(suffixes),
			 suffixes[i % ARRAY_SIZE(suffixes)]);
		r = local_exists(path, e);
		if (r > 0)
			r = local_lend_file(l, path, e);
	}
	return MIN(r, 0);
}

static int chain_open(const struct local *l, const char *chain, struct err *e)
{
	int r = io_mkdirs(chain, 0755, e);

	r = r ?: local_take_dir(l, chain, e);
	r = r ?: chain_has(chain, "open", e);
	return r ? MIN(r, 0) : chain_write(chain, "open", "", e);
}

int local_chain_begin(const struct local *l, const char *job, uint64_t number, struct local_path *ret, struct err *e)
{
	struct local_path chain;
	struct local_runs runs;
	char boot[64];
	int r = local_path(l, &chain, e, "chains/%s", job);

	r = r ?: local_path(l, ret, e, "chains/%s/%llu", job, (unsigned long long)number);
	r = r ?: chain_open(l, chain.s, e);
	r = r ?: local_chain_read(l, job, &runs, e);
	if (r < 0)
		return r;
	if (runs.n && runs.v[runs.n - 1] > number)
		return err_set(e, -EEXIST, "job '%s' has a run after run %llu", job, (unsigned long long)number);
	r = runs.complete >= number ? chain_reopen(l, job, &runs, chain.s, ret->s, number, e)
				    : chain_after_crash(chain.s, ret->s, e);
	if (r == 0 && mkdir(ret->s, 0700) < 0 && errno != EEXIST)
		r = err_sys(e, "cannot make '%s'", ret->s);
	if (r == 0 && chmod(ret->s, 0700) < 0)
		r = err_sys(e, "cannot protect '%s'", ret->s);
	r = r ?: chain_lend(l, ret->s, e);
	r = r ?: local_give(l, ret->s, e);
	r = r ?: chain_layers(l, job, &runs, number, ret->s, e);
	chain_boot_id(boot);
	return r ?: chain_write(chain.s, "boot", boot, e);
}

int local_chain_rest(const struct local *l, const char *job, uint64_t number, struct err *e)
{
	struct local_path dir, chain;
	int r = local_path(l, &chain, e, "chains/%s", job);

	r = r ?: local_path(l, &dir, e, "chains/%s/%llu", job, (unsigned long long)number);
	for (size_t i = 0, n = r == 0 ? local_disks(dir.s) : 0; r == 0 && i < n; i++) {
		char path[PATH_MAX + 64];

		snprintf(path, sizeof(path), "%s/disk%zu.qcow2", dir.s, i);
		if (access(path, F_OK) == 0)
			r = local_sync(path, e);
	}
	return r ?: chain_unlink(chain.s, "boot", e);
}

/* ---- its end ---- */

static int chain_take_disk(const struct local *l, const char *job, const struct local_runs *runs, uint64_t number,
			   const char *dir, size_t i, struct err *e)
{
	char name[32], path[PATH_MAX + 64], below_name[32], backing[64];
	const char *format, *below_format;
	int r = local_chain_disk(l, job, number, i, name, &format, e);
	uint64_t below = number;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	r = r ?: local_take_file(l, path, e);
	r = r ?: local_sync(path, e);
	if (r < 0)
		return r;
	if (strcmp(format, "raw") == 0) {
		snprintf(name, sizeof(name), "disk%zu.qcow2", i); /* a layer that didn't fit */
		return chain_unlink(dir, name, e);
	}
	r = local_chain_near(l, job, runs, &below, false, i, below_name, &below_format, e);
	if (r == 0)
		r = err_set(e, -ENOENT, "'%s' stands on nothing", path);
	if (r < 0)
		return r;
	snprintf(backing, sizeof(backing), "../%llu/%s", (unsigned long long)below, below_name);
	return local_check_overlay(l, path, backing, below_format, NULL, e);
}

int local_chain_complete(const struct local *l, const char *job, uint64_t number, struct err *e)
{
	struct local_path chain, dir;
	struct local_runs runs;
	char text[32];
	int r = local_path(l, &chain, e, "chains/%s", job);

	r = r ?: local_path(l, &dir, e, "chains/%s/%llu", job, (unsigned long long)number);
	r = r ?: local_chain_read(l, job, &runs, e);
	if (r < 0 || runs.complete >= number)
		return r;
	r = chain_has(dir.s, "replica.json", e);
	if (r <= 0)
		return r < 0 ? r
			     : err_set(e, -ENOENT, "run %llu of job '%s' is not complete", (unsigned long long)number,
				       job);
	r = local_take_dir(l, dir.s, e);
	for (size_t i = 0, n = local_disks(dir.s); r == 0 && i < n; i++)
		r = chain_take_disk(l, job, &runs, number, dir.s, i, e);
	r = r ?: local_sync(dir.s, e);
	snprintf(text, sizeof(text), "%llu\n", (unsigned long long)number);
	r = r ?: chain_write(chain.s, "complete", text, e);
	return r ?: chain_unlink(chain.s, "boot", e);
}

int local_chain_expect(const struct local *l, const char *job, const char *image, struct err *e)
{
	struct local_path chain;
	int r = local_path(l, &chain, e, "chains/%s", job);

	return r ?: chain_write(chain.s, "expects", image, e);
}

int local_chain_is_expecting(const struct local *l, const char *job, struct err *e)
{
	_cleanup_free_ char *image = NULL;
	struct local_path path, dir, manifest;
	int r = local_path(l, &path, e, "chains/%s/expects", job);

	r = r ?: local_exists(path.s, e);
	if (r <= 0)
		return r;
	r = io_read_file(path.s, 64, &image, NULL, e);
	if (r == 0 && !id_is("image", image))
		r = err_set(e, -EINVAL, "'%s' does not name an image", path.s);
	r = r ?: local_path(l, &dir, e, "images/%s", image);
	r = r ?: local_path(l, &manifest, e, "images/%s/manifest.json", image);
	r = r ?: local_exists(dir.s, e);
	if (r <= 0)
		return r;
	r = local_exists(manifest.s, e);
	return r < 0 ? r : !r;
}

int local_chain_close(const struct local *l, const char *job, struct err *e)
{
	struct local_path chain;
	int r = local_path(l, &chain, e, "chains/%s", job);

	r = r ?: local_exists(chain.s, e);
	if (r <= 0)
		return r;
	r = chain_unlink(chain.s, "boot", e);
	r = r ?: chain_unlink(chain.s, "open", e);
	return r ?: local_sync(chain.s, e);
}
