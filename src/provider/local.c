/* The provider `local`: a directory on this host, and QEMU. */
#include "provider/local_int.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pwd.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/wait.h>
#include <time.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/proc.h"
#include "base/str.h"

#define RECEIVE_GRACE    10.0
#define RECEIVE_MIN_FREE "256M" /* the center's database may lie in the same filesystem */

int local_path(const struct local *l, struct local_path *ret, struct err *e, const char *fmt, ...)
{
	size_t n = (size_t)snprintf(ret->s, sizeof(ret->s), "%s/", l->dir);
	va_list ap;
	int m;

	if (n >= sizeof(ret->s))
		return err_set(e, -ENAMETOOLONG, "path '%s' is too long", l->dir);
	va_start(ap, fmt);
	m = vsnprintf(ret->s + n, sizeof(ret->s) - n, fmt, ap);
	va_end(ap);
	if (m < 0 || (size_t)m >= sizeof(ret->s) - n)
		return err_set(e, -ENAMETOOLONG, "path below '%s' is too long", l->dir);
	return 0;
}

int local_check_id(const char *noun, const char *id, struct err *e)
{
	return id_is(noun, id) ? 0 : err_set(e, -EINVAL, "'%s' is no %s", id, noun);
}

static bool local_has_disk(const char *dir, size_t i, const char *suffix)
{
	char path[PATH_MAX + 64];
	struct stat st;

	return (size_t)snprintf(path, sizeof(path), "%s/disk%zu.%s", dir, i, suffix) < sizeof(path) &&
	       lstat(path, &st) == 0 && S_ISREG(st.st_mode);
}

size_t local_disks(const char *dir)
{
	size_t n = 0;

	while (n < LOCAL_DISKS_MAX && (local_has_disk(dir, n, "raw") || local_has_disk(dir, n, "qcow2")))
		n++;
	return n;
}

static int local_ids(const struct local *l, uid_t *ret_uid, gid_t *ret_gid, struct err *e)
{
	struct passwd pw, *found = NULL;
	char buf[16384];

	if (getpwnam_r(l->user, &pw, buf, sizeof(buf), &found) != 0 || !found)
		return err_set(e, -ENOENT, "user '%s' does not exist (make it, or name another)", l->user);
	*ret_uid = pw.pw_uid;
	*ret_gid = pw.pw_gid;
	return 0;
}

int local_give(const struct local *l, const char *path, struct err *e)
{
	uid_t uid;
	gid_t gid;
	int r;

	if (!l->user)
		return 0;
	r = local_ids(l, &uid, &gid, e);
	if (r == 0 && lchown(path, uid, gid) < 0)
		r = err_sys(e, "cannot give '%s' to '%s'", path, l->user);
	return r;
}

int local_take(const struct local *l, int fd, mode_t mode, const char *path, struct err *e)
{
	uid_t uid;
	gid_t gid;
	int r = l->user ? local_ids(l, &uid, &gid, e) : 0;

	if (r == 0 && ((l->user && fchown(fd, 0, gid) < 0) || fchmod(fd, mode) < 0))
		r = err_sys(e, "cannot protect '%s'", path);
	return r;
}

int local_lend(const struct local *l, int fd, mode_t mode, const char *path, struct err *e)
{
	uid_t uid;
	gid_t gid;
	int r = l->user ? local_ids(l, &uid, &gid, e) : 0;

	if (r == 0 && (fchmod(fd, mode) < 0 || (l->user && fchown(fd, uid, gid) < 0)))
		r = err_sys(e, "cannot give '%s' to '%s'", path, l->user ? l->user : "its user");
	return r;
}

int local_read_file(const char *path, size_t max, char **ret, size_t *ret_len, struct err *e)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	char by_fd[64];
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return err_sys(e, "cannot open '%s'", path);
	if (!S_ISREG(st.st_mode))
		return err_set(e, -EINVAL, "'%s' is not a regular file", path);
	snprintf(by_fd, sizeof(by_fd), "/proc/self/fd/%d", fd);
	return io_read_file(by_fd, max, ret, ret_len, e);
}

int local_fresh_dir(const struct local *l, const char *path, struct err *e)
{
	int r = io_remove_tree(path, e);

	if (r == 0)
		r = io_mkdirs(path, 0755, e);
	if (r == 0 && chmod(path, 0700) < 0)
		r = err_sys(e, "cannot protect '%s'", path);
	return r < 0 ? r : local_give(l, path, e);
}

int local_write_json(const char *path, const json_t *j, struct err *e)
{
	_cleanup_free_ char *text = json_dumps(j, JSON_INDENT(1));

	return text ? io_write_file_atomic(path, text, strlen(text), 0644, e) : err_nomem(e);
}

int local_read_json(const char *path, json_t **ret, struct err *e)
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r = local_read_file(path, LOCAL_JSON_MAX, &text, &len, e);

	if (r == 0)
		r = jsn_parse(text, len, LOCAL_JSON_MAX, ret, e);
	return r;
}

bool local_cancelled(const struct provider_watch *w)
{
	return w && w->cancelled && w->cancelled(w->arg);
}

void local_tell(const struct provider_watch *w, const json_t *event)
{
	if (w && w->event)
		w->event(w->arg, event);
}

int local_overlay(const struct local *l, const char *path, const char *backing, const char *format, struct err *e)
{
	const char *const argv[] = {"qemu-img", "create", "-q", "-f", "qcow2", "-F", format, "-b", backing, path, NULL};

	if (unlink(path) < 0 && errno != ENOENT)
		return err_sys(e, "cannot remove '%s'", path);
	/* As the one whose directory it is: what was planted there leads nowhere he could not go himself. */
	return proc_run_as(argv, l->user, 65536, NULL, e);
}

int local_program(const struct local *l, const char *name, struct local_path *ret, struct err *e)
{
	if ((size_t)snprintf(ret->s, sizeof(ret->s), "%s/%s", l->programs, name) >= sizeof(ret->s))
		return err_set(e, -ENAMETOOLONG, "path '%s' is too long", l->programs);
	if (access(ret->s, X_OK) < 0)
		return err_sys(e, "cannot run '%s'", ret->s);
	return 0;
}

int local_sync(const char *path, struct err *e)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);

	if (fd < 0 || fsync(fd) < 0)
		return err_sys(e, "cannot write '%s' to the disk", path);
	return 0;
}

static int local_capacity(struct provider *p, json_t **ret, struct err *e)
{
	struct local *l = local_of(p);
	const char *accel = NULL;
	struct statvfs st;
	int r;

	if (statvfs(l->dir, &st) < 0)
		return err_sys(e, "cannot look at '%s'", l->dir);
	r = qemu_accelerator(l->cache, l->user, &accel, e);
	if (r < 0)
		return r;
	*ret = json_pack("{s:I, s:I, s:s}", "free", (json_int_t)(st.f_bavail * st.f_frsize), "total",
			 (json_int_t)(st.f_blocks * st.f_frsize), "accelerator", accel);
	return *ret ? 0 : err_nomem(e);
}

/* ---- receive ---- */

struct local_receiver {
	pid_t pid;
	int out, complaints; /* its stdout and stderr */
	struct qemu_lines lines;
	struct err last; /* the error event, if one came */
	bool committed;
	struct local_layers layers;
};

static int receive_error_code(const char *code, bool temporary)
{
	if (strcmp(code, "no_space") == 0)
		return -ENOSPC;
	return temporary ? -EAGAIN : -EIO;
}

/* The receiver reads what strangers send. What it may tell is passed on, and not what is ours to tell, such as that an
 * image has changed. */
static bool receive_may_tell(const char *event)
{
	static const char *const told[] = {"listening", "progress", "committed", "error"};

	for (size_t i = 0; i < ARRAY_SIZE(told); i++)
		if (strcmp(event, told[i]) == 0)
			return true;
	return false;
}

static void receive_event(struct local_receiver *rc, const json_t *o, const struct provider_watch *w)
{
	const char *event = json_string_value(json_object_get(o, "event")) ?: "";

	if (!receive_may_tell(event))
		return;
	if (strcmp(event, "committed") == 0)
		rc->committed = true;
	if (strcmp(event, "error") == 0) {
		const char *code = json_string_value(json_object_get(o, "code")) ?: "";

		err_set(&rc->last, receive_error_code(code, json_is_true(json_object_get(o, "temporary"))), "%s",
			json_string_value(json_object_get(o, "message")) ?: "the receiver failed");
	}
	local_tell(w, o);
}

/* What it complains about is ours to hear, and goes where it would have gone by itself, too. 1: there was
 * something, 0: nothing now, -1: nothing more. */
static int receive_complaint(struct local_receiver *rc, const struct provider_watch *w)
{
	char buf[4096];
	ssize_t n = read(rc->complaints, buf, sizeof(buf));

	if (n <= 0)
		return n < 0 && (errno == EINTR || errno == EAGAIN) ? 0 : -1;
	if (w && w->log)
		w->log(w->arg, buf, (size_t)n);
	io_write_full(STDERR_FILENO, buf, (size_t)n);
	return 1;
}

/* Until its output ends. */
static int receive_follow(struct local_receiver *rc, const struct provider_watch *w, struct err *e)
{
	for (;;) {
		struct pollfd p[2] = {{.fd = rc->out, .events = POLLIN}, {.fd = rc->complaints, .events = POLLIN}};
		char buf[8192];
		json_t *o = NULL;
		ssize_t n;
		int r;

		if (local_cancelled(w))
			return err_set(e, -ECANCELED, "stopped");
		if (poll(p, 2, 250) <= 0)
			continue;
		if (p[1].revents && receive_complaint(rc, w) < 0) {
			close(rc->complaints);
			rc->complaints = -1;
		}
		if (!p[0].revents)
			continue;
		n = read(rc->out, buf, sizeof(buf));
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return 0;
		qemu_lines_add(&rc->lines, buf, (size_t)n);
		while ((r = qemu_lines_next(&rc->lines, &o, e)) == 1) {
			receive_event(rc, o, w);
			json_decref(o);
		}
		if (r < 0)
			return err_prefix(e, "the receiver's output");
	}
}

static int receive_spawn(struct local *l, const char *dir, const struct provider_receive *r,
			 const struct local_layers *ly, int in, int out, int complaints, pid_t *ret, struct err *e)
{
	char listen_at[128], layers[LOCAL_DISKS_MAX * 12] = "";
	int keep[LOCAL_DISKS_MAX], k = local_layers_option(ly, layers, sizeof(layers));
	struct proc_opts o = PROC_OPTS_INIT;
	struct local_path program;
	const char *argv[20] = {program.s, "receive",    "--dir", dir,      "--listen",   listen_at,       "--run",
				r->run,    "--psk-file", "-",     "--once", "--min-free", RECEIVE_MIN_FREE};
	size_t n = 13;

	must(k == 0);
	k = local_program(l, "replant-transition", &program, e);
	if (k < 0)
		return k;
	snprintf(listen_at, sizeof(listen_at), strchr(r->listen, ':') ? "[%s]:0" : "%s:0", r->listen);
	if (l->user) {
		argv[n++] = "--user";
		argv[n++] = l->user;
	}
	if (r->clear)
		argv[n++] = "--no-encryption";
	if (*layers) {
		argv[n++] = "--layers";
		argv[n++] = layers;
	}
	for (size_t i = 0; i < ly->n; i++)
		if (ly->served[i])
			keep[o.nkeep++] = ly->fd[i];
	o.keep = keep;
	o.stdin_fd = in;
	o.stdout_fd = out;
	o.stderr_fd = complaints;
	o.die_with_us = true;
	return proc_spawn(argv, &o, ret, e);
}

static int receive_start(struct local *l, const char *dir, const struct provider_receive *r, struct local_receiver *rc,
			 struct err *e)
{
	_cleanup_close_ int in_r = -1, in_w = -1, out_w = -1, complaints_w = -1;
	int p[2], q[2], c[2], k;

	if (pipe2(p, O_CLOEXEC) < 0)
		return err_sys(e, "cannot start the receiver");
	in_r = p[0], in_w = p[1];
	if (pipe2(q, O_CLOEXEC) < 0)
		return err_sys(e, "cannot start the receiver");
	rc->out = q[0], out_w = q[1];
	if (pipe2(c, O_CLOEXEC) < 0)
		return err_sys(e, "cannot start the receiver");
	rc->complaints = c[0], complaints_w = c[1];
	fcntl(rc->complaints, F_SETFL, O_NONBLOCK);
	k = receive_spawn(l, dir, r, &rc->layers, in_r, out_w, complaints_w, &rc->pid, e);
	local_layers_drop(&rc->layers);
	if (k < 0)
		return k;
	/* The secret is on no command line and in no file. It fits into the pipe. */
	if (io_write_full(in_w, r->psk_hex, strlen(r->psk_hex)) < 0 || io_write_full(in_w, "\n", 1) < 0)
		return err_set(e, -EPIPE, "the receiver did not take its key");
	return 0;
}

/* The directory the receiver fills. */
static int receive_dir(struct local *l, const char *job, uint64_t number, struct local_path *ret, struct err *e)
{
	int r;

	if (number)
		return local_chain_begin(l, job, number, ret, e);
	r = local_path(l, ret, e, "jobs/%s/replica", job);
	r = r ?: io_mkdirs(ret->s, 0755, e);
	/* Somebody's whole server: nobody else on this host may read it. */
	if (r == 0 && chmod(ret->s, 0700) < 0)
		r = err_sys(e, "cannot protect '%s'", ret->s);
	return r ?: local_give(l, ret->s, e);
}

int local_is_partial(const struct local *l, const char *job, struct err *e)
{
	struct local_path path;
	int r = local_path(l, &path, e, "jobs/%s/partial", job);

	return r < 0 ? r : local_exists(path.s, e);
}

int local_set_partial(const struct local *l, const char *job, bool partial, struct err *e)
{
	struct local_path path;
	int r = local_path(l, &path, e, "jobs/%s/partial", job);

	if (r < 0)
		return r;
	if (partial)
		return io_write_file_atomic(path.s, "", 0, 0600, e);
	return unlink(path.s) < 0 && errno != ENOENT ? err_sys(e, "cannot remove '%s'", path.s) : 0;
}

static int receive_layers(struct local *l, const char *job, const char *dir, struct local_receiver *rc, struct err *e)
{
	struct local_path run;
	int r = local_path(l, &run, e, "runs/%s-layers", job);

	r = r ?: local_fresh_dir(l, run.s, e);
	r = r ?: local_layers_serve(l, dir, run.s, &rc->layers, e);
	io_remove_tree(run.s, NULL);
	return r;
}

/* Until the receiver has ended, and then its server. */
static int receive_run(struct local *l, const char *job, const struct provider_receive *r, const char *dir,
		       struct local_receiver *rc, const struct provider_watch *w, int *ret_status, struct err *e)
{
	int k = r->number ? receive_layers(l, job, dir, rc, e) : 0;

	k = k ?: receive_start(l, dir, r, rc, e);
	k = k ?: receive_follow(rc, w, e);
	if (rc->pid > 0 && k < 0)
		proc_stop(rc->pid, RECEIVE_GRACE);
	else if (rc->pid > 0)
		k = proc_wait(rc->pid, ret_status, e);
	local_layers_stop(&rc->layers);
	while (rc->complaints >= 0 && receive_complaint(rc, w) > 0)
		;
	if (rc->complaints >= 0)
		close(rc->complaints);
	if (rc->out >= 0)
		close(rc->out);
	qemu_lines_release(&rc->lines);
	return k;
}

static int receive_result(const struct local_receiver *rc, int status, struct err *e)
{
	if (status == 0 && rc->committed)
		return 0;
	if (rc->last.code)
		return err_set(e, rc->last.code, "%s", rc->last.msg);
	return err_set(e, status == 75 ? -EAGAIN : -EIO,
		       "the receiver ended with status %d before the copy was complete", status);
}

static int receive_shared(struct local *l, const char *job, const struct provider_receive *r,
			  const struct provider_watch *w, struct err *e)
{
	struct local_receiver rc = {.pid = -1, .out = -1, .complaints = -1, .layers.pid = -1};
	struct local_path dir;
	int status = 0, k = receive_dir(l, job, r->number, &dir, e), rest;

	/* Before the first byte of it, and until all of another one is here. */
	if (k == 0 && r->partial)
		k = local_set_partial(l, job, true, e);
	if (k < 0)
		return k;
	k = receive_run(l, job, r, dir.s, &rc, w, &status, e);
	rest = r->number ? local_chain_rest(l, job, r->number, k < 0 ? NULL : e) : 0;
	if (k < 0 || rest < 0)
		return k < 0 ? k : rest;
	k = receive_result(&rc, status, e);
	if (k == 0 && !r->partial && !r->number)
		k = local_set_partial(l, job, false, e);
	return k == 0 && r->number ? local_chain_complete(l, job, r->number, e) : k;
}

static int local_receive(struct provider *p, const char *job, const struct provider_receive *r,
			 const struct provider_watch *w, struct err *e)
{
	struct local *l = local_of(p);
	int k = local_check_id("job", job, e);

	/* The fewer layers there are, the faster it reads. What can't be done now is done another time. */
	if (k == 0 && r->number && local_chain_own(l, job)) {
		local_trim_chain(l, job, w, NULL);
		local_chain_disown(l, job);
	}
	k = k ?: local_chain_share(l, job, w, e);
	if (k < 0)
		return k;
	k = receive_shared(l, job, r, w, e);
	local_chain_unshare(l, job);
	return k;
}

static int local_job_holds(struct provider *p, const char *job, uint64_t *ret, struct err *e)
{
	static const char *const kinds[] = {"jobs", "runs", "chains"};
	struct local *l = local_of(p);
	int r = local_check_id("job", job, e);
	struct local_path path;
	uint64_t sum = 0, one = 0;
	double since;

	for (size_t i = 0; i < ARRAY_SIZE(kinds) && r == 0; i++, sum += one) {
		r = local_path(l, &path, e, "%s/%s", kinds[i], job);
		r = r ?: io_look_tree(path.s, &one, &since, e);
	}
	if (r == 0)
		*ret = sum;
	return r;
}

static int local_job_remove(struct provider *p, const char *job, struct err *e)
{
	struct local *l = local_of(p);
	struct local_path path, gone;
	int r = local_check_id("job", job, e);

	r = r ?: local_chain_close(l, job, e);
	r = r ?: local_path(l, &path, e, "jobs/%s", job);
	/* At once: half of a copy is never taken for one. */
	r = r ?: local_throw(l, path.s, job, &gone, e);
	r = r ?: io_remove_tree(gone.s, e);
	r = r ?: local_path(l, &path, e, "runs/%s", job);
	r = r ?: io_remove_tree(path.s, e);
	r = r ?: local_path(l, &path, e, "runs/%s-probe", job);
	return r ?: io_remove_tree(path.s, e);
}

static void local_close(struct provider *p)
{
	struct local *l = local_of(p);

	pthread_mutex_destroy(&l->lock);
	if (l->chain_locks >= 0)
		close(l->chain_locks);
	free(l->dir);
	free(l->cache);
	free(l->programs);
	free(l->user);
	free(l);
}

static const struct provider_ops local_ops = {
    .kind = "local",
    .capacity = local_capacity,
    .receive = local_receive,
    .convert = local_convert,
    .image_create = local_image_create,
    .test_boot = local_test_boot,
    .image_check = local_image_check,
    .image_repair = local_image_repair,
    .copy_boot = local_copy_boot,
    .image_export = local_image_export,
    .image_remove = local_image_remove,
    .trim = local_trim,
    .job_holds = local_job_holds,
    .job_remove = local_job_remove,
    .holdings = local_holdings,
    .discard = local_discard,
    .empty = local_empty,
    .close = local_close,
};

static char *local_absolute(const char *path, struct err *e)
{
	char *s;

	if (io_mkdirs(path, 0755, e) < 0)
		return NULL;
	s = realpath(path, NULL);
	if (!s)
		err_sys(e, "cannot use directory '%s'", path);
	return s;
}

int local_open(const struct provider_settings *s, struct provider **ret, struct err *e)
{
	static const char *const subdirs[] = {"jobs", "images", "runs", "chains"};
	struct local *l = calloc(1, sizeof(*l));
	struct local_path path;
	int r = 0;

	if (!l)
		return err_nomem(e);
	l->p.ops = &local_ops;
	l->chain_locks = -1;
	pthread_mutex_init(&l->lock, NULL);
	l->dir = local_absolute(s->dir, e);
	l->cache = l->dir ? local_absolute(s->cache, e) : NULL;
	l->programs = strdup(s->programs);
	l->user = s->user && geteuid() == 0 ? strdup(s->user) : NULL;
	if (!l->dir || !l->cache)
		r = e ? e->code : -EIO;
	else if (!l->programs || (s->user && geteuid() == 0 && !l->user))
		r = err_nomem(e);
	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(subdirs); i++) {
		r = local_path(l, &path, e, "%s", subdirs[i]);
		if (r == 0)
			r = io_mkdirs(path.s, 0755, e);
	}
	r = r ?: local_path(l, &path, e, "locks");
	if (r == 0) {
		l->chain_locks = open(path.s, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		r = l->chain_locks < 0 ? err_sys(e, "cannot open '%s'", path.s) : 0;
	}
	if (r < 0) {
		local_close(&l->p);
		return r;
	}
	*ret = &l->p;
	return 0;
}

int provider_open(const char *kind, const struct provider_settings *s, struct provider **ret, struct err *e)
{
	if (strcmp(kind, "local") == 0)
		return local_open(s, ret, e);
	return err_set(e, -ENOENT, "there is no provider '%s' (there is 'local')", kind);
}
