/*
 * replantd with a provider that only pretends, for the API tests; never installed. What it does is read from
 * files in the directory $SCRIPT, anew at each call: NAME.delay (seconds), NAME.fail (message; "no_space:
 * ..." is -ENOSPC), NAME.hold (waits until it's gone), where NAME is capacity, receive, convert,
 * image_create, test_boot, copy_boot, image_check, image_repair, image_export, image_remove, trim, job_remove. Each
 * call appends a line to $SCRIPT/calls. test_boot.says: members of its report, as JSON.
 * NAME.log is what the programs of receive, convert and test_boot say. `receive`
 * commits when $SCRIPT/commit.RUN exists; convert.step names the step that `convert` tells; clock.ahead is by how
 * many seconds the wall clock was set ahead; unlink.hold holds the
 * center's removals of exported files, but for as many of the first as it says; die.at kills the center at the Nth
 * statement from then on by which the database is changed, before it is carried out.
 *
 * It also keeps what it was told to make, as a real one would: $SCRIPT/world/ has copy.JOB ("receiving" or
 * "committed"), image.IMAGE, and receiver.RUN (our pid) as long as it runs; $SCRIPT/made says whose each image was.
 * Instances are in scripted_vms.c; with $REAL_HYPERVISOR they are real ones, and image_create.disks says what an image
 * has. $SCRIPT/kept/ may have KIND.OWNER: holdings beside those; what was discarded is in $SCRIPT/discarded. What no
 * honest provider could do, it does not, and says so in $SCRIPT/misuse: image of what was never received, two calls
 * that exclude each other.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#ifdef STORE_POSTGRES
#include <libpq-fe.h>
#endif
#include <pthread.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/log.h"
#include "base/str.h"
#include "base/util.h"
#include "center/center.h"
#include "scripted.h"

const char *script_dir;

char *script_read(const char *name, const char *what)
{
	_cleanup_free_ char *path = str_printf("%s/%s.%s", script_dir, name, what);
	char *text = NULL;

	if (!path || io_read_file(path, 65536, &text, NULL, NULL) < 0)
		return NULL;
	text[strcspn(text, "\n")] = '\0';
	return text;
}

bool script_has(const char *name, const char *what)
{
	_cleanup_free_ char *text = script_read(name, what);

	return text;
}

/* The center's, too: so a test can be in the middle of what it does. */
int unlink(const char *path)
{
	_cleanup_free_ char *first = strstr(path, "/exports/") ? script_read("unlink", "hold") : NULL;
	static atomic_int seen;

	if (first && seen++ >= atoi(first)) {
		note("unlink", path);
		while (script_has("unlink", "hold"))
			nap();
	}
	return unlinkat(AT_FDCWD, path, 0);
}

static double number(const char *name, double otherwise)
{
	const char *s = getenv(name);

	return s ? atof(s) : otherwise;
}

void nap(void)
{
	nanosleep(&(struct timespec){.tv_nsec = (long)(number("NAP", 20) * 1e6)}, NULL);
}

static void append(const char *file, const char *what, const char *id)
{
	_cleanup_free_ char *path = str_printf("%s/%s", script_dir, file);
	FILE *f = path ? fopen(path, "ae") : NULL;

	if (f) {
		fprintf(f, "%s %s\n", what, id);
		fclose(f);
	}
}

void note(const char *name, const char *id)
{
	append("calls", name, id);
}

/* What a call was given, for the test to read: $SCRIPT/NAME.given. */
void given(const char *name, const json_t *what)
{
	_cleanup_free_ char *path = str_printf("%s/%s.given", script_dir, name), *text = jsn_text(what);

	if (path && text)
		io_write_file_atomic(path, text, strlen(text), 0600, NULL);
}

/* ---- what there is ---- */

char *world_path(const char *kind, const char *id)
{
	return str_printf("%s/world/%s.%s", script_dir, kind, id);
}

void world_put(const char *kind, const char *id, const char *text)
{
	_cleanup_free_ char *path = world_path(kind, id), *dir = str_printf("%s/world", script_dir);

	if (!path || !dir)
		return;
	mkdir(dir, 0700);
	io_write_file_atomic(path, text, strlen(text), 0600, NULL);
}

bool world_has(const char *kind, const char *id, const char *text)
{
	_cleanup_free_ char *path = world_path(kind, id), *is = NULL;

	return path && io_read_file(path, 4096, &is, NULL, NULL) == 0 && (!text || strcmp(is, text) == 0);
}

void world_remove(const char *kind, const char *id)
{
	_cleanup_free_ char *path = world_path(kind, id);

	if (path)
		unlinkat(AT_FDCWD, path, 0);
}

int misuse(const char *what, const char *id, struct err *e)
{
	append("misuse", what, id);
	return err_set(e, -EINVAL, "misused: %s %s", what, id);
}

/* ---- calls under way: which exclude which ---- */

enum call_kind {
	CALL_RECEIVE,
	CALL_CONVERT,
	CALL_IMAGE_CREATE,
	CALL_JOB_REMOVE,
	CALL_BOOT,
	CALL_EXPORT,
	CALL_IMAGE_REMOVE
};
static const char *const call_names[] = {"receive", "convert", "image_create", "job_remove",
					 "boot",    "export",  "image_remove"};

struct call {
	struct call *next;
	enum call_kind kind;
	const char *job, *image; /* NULL: none */
};
static struct call *calls;
static pthread_mutex_t calls_lock = PTHREAD_MUTEX_INITIALIZER;

static bool same(const char *a, const char *b)
{
	return a && b && strcmp(a, b) == 0;
}

/* Of one job everything excludes everything; of an image only exports go with exports and a boot. */
static bool excludes(const struct call *a, const struct call *b)
{
	if (same(a->job, b->job))
		return true;
	return same(a->image, b->image) && a->kind != CALL_EXPORT && (b->kind != CALL_EXPORT || a->kind != CALL_BOOT);
}

static int call_begin(struct call *c, struct err *e)
{
	int r = 0;

	pthread_mutex_lock(&calls_lock);
	for (struct call *o = calls; o && r == 0; o = o->next)
		if (excludes(c, o) || excludes(o, c)) {
			_cleanup_free_ char *both = str_printf("%s while %s", call_names[c->kind], call_names[o->kind]);

			r = misuse(both, c->image ? c->image : c->job, e);
		}
	c->next = calls;
	calls = c;
	pthread_mutex_unlock(&calls_lock);
	return r;
}

static void call_end(struct call *c)
{
	pthread_mutex_lock(&calls_lock);
	for (struct call **p = &calls; *p; p = &(*p)->next)
		if (*p == c) {
			*p = c->next;
			break;
		}
	pthread_mutex_unlock(&calls_lock);
}
/* Until the end of the scope. */
#define CALL(call_kind, call_job, call_image)                                                                          \
	_cleanup_(call_end) struct call call_ = {NULL, call_kind, call_job, call_image};                               \
	if (call_begin(&call_, e) < 0)                                                                                 \
	return -EINVAL

/* Delay, hold, failure: what every call starts with. */
int play(const char *name, const char *id, const struct provider_watch *w, struct err *e)
{
	_cleanup_free_ char *delay = script_read(name, "delay"), *fail = NULL;
	double left = delay ? atof(delay) : 0;

	note(name, id);
	while (left > 0 || script_has(name, "hold")) {
		if (w && w->cancelled(w->arg))
			return err_set(e, -ECANCELED, "given up");
		nap();
		left -= 0.02;
	}
	if (script_has(name, "die"))
		raise(SIGKILL);
	fail = script_read(name, "fail");
	if (!fail)
		return 0;
	return err_set(e,
		       str_starts(fail, "no_space") ? -ENOSPC
		       : str_starts(fail, "busy")   ? -EBUSY
						    : -EIO,
		       "%s", fail);
}

/* What a program says to people, as it is: bytes, not lines. */
static void speak(const char *name, const struct provider_watch *w)
{
	_cleanup_free_ char *path = str_printf("%s/%s.log", script_dir, name), *text = NULL;
	size_t n;

	if (path && io_read_file(path, 16u << 20, &text, &n, NULL) == 0)
		for (size_t i = 0; i < n; i += 1000)
			w->log(w->arg, text + i, MIN(n - i, (size_t)1000));
}

void emit(const struct provider_watch *w, json_t *event)
{
	w->event(w->arg, event);
	json_decref(event);
}

static int s_capacity(struct provider *p, json_t **ret, struct err *e)
{
	_cleanup_free_ char *space = script_read("capacity", "free");
	int r = play("capacity", "-", NULL, e);

	if (r == 0)
		*ret = json_pack("{s:I, s:I, s:s}", "free", space ? (json_int_t)atoll(space) : (json_int_t)1 << 40,
				 "total", (json_int_t)1 << 41, "accelerator", "none");
	return r;
}

static void receiver_left(const char **run)
{
	world_remove("receiver", *run);
}

static int s_receive(struct provider *p, const char *job, const struct provider_receive *r,
		     const struct provider_watch *w, struct err *e)
{
	_cleanup_(receiver_left) const char *receiver = r->run;
	_cleanup_free_ char *commit = str_printf("%s/commit.%s", script_dir, r->run);
	json_int_t bytes = 0;
	_cleanup_free_ char *number = str_printf("%s/number.%s", script_dir, r->run);
	_cleanup_free_ char *clear = str_printf("%s/clear.%s", script_dir, r->run);
	_cleanup_free_ char *listen = str_printf("%s/listen.%s", script_dir, r->run);
	char text[32];
	int x;
	CALL(CALL_RECEIVE, job, NULL);

	snprintf(text, sizeof(text), "%d", getpid());
	world_put("receiver", receiver, text);
	world_put("copy", job, "receiving");
	snprintf(text, sizeof(text), "%llu", (unsigned long long)r->number);
	if (number)
		io_write_file_atomic(number, text, strlen(text), 0600, NULL);
	if (r->clear && clear)
		io_write_file_atomic(clear, "", 0, 0600, NULL);
	if (listen)
		io_write_file_atomic(listen, r->listen, strlen(r->listen), 0600, NULL);
	x = play("receive", r->run, w, e);

	if (x < 0)
		return x;
	must(strlen(r->psk_hex) == 64);
	speak("receive", w);
	emit(w, json_pack("{s:s, s:i}", "event", "listening", "port", 4711));
	while (access(commit, F_OK) < 0) {
		_cleanup_free_ char *fail = script_read("receiving", "fail"),
				    *error = script_read("receiving", "error");

		if (w->cancelled(w->arg))
			return err_set(e, -ECANCELED, "given up");
		if (error)
			emit(w, json_pack("{s:s, s:s, s:s, s:b}", "event", "error", "code", error, "message",
					  "said the receiver", "temporary", strcmp(error, "no_space") == 0));
		if (fail || error)
			return err_set(e, -EIO, "%s", fail ? fail : "receiver ended with status 1");
		if (script_has("receiving", "bytes")) {
			bytes += 1000;
			emit(w, json_pack("{s:s, s:I, s:I}", "event", "progress", "bytes_written", bytes,
					  "bytes_received", bytes));
		}
		nap();
	}
	world_put("copy", job, r->partial ? "partial" : "committed");
	emit(w, json_pack("{s:s}", "event", "committed"));
	return 0;
}

static int s_convert(struct provider *p, const char *job, const json_t *request, const struct provider_watch *w,
		     json_t **ret, struct err *e)
{
	_cleanup_free_ char *step = script_read("convert", "step");
	int r;
	CALL(CALL_CONVERT, job, NULL);

	if (!world_has("copy", job, "committed") && !world_has("copy", job, "partial"))
		return misuse("convert of no copy", job, e);
	given("convert", request);
	emit(w, json_pack("{s:s, s:s, s:i, s:i}", "event", "step", "name", step ? step : "fstab", "index", 1, "count",
			  12));
	speak("convert", w);
	r = play("convert", job, w, e);
	if (r == 0)
		*ret = json_pack("{s:[]}", "steps");
	return r;
}

static int s_image_create(struct provider *p, const char *job, const char *image, const json_t *meta, json_t **ret,
			  struct err *e)
{
	_cleanup_free_ char *disks = NULL;
	int r;
	CALL(CALL_IMAGE_CREATE, job, image);

	if (!world_has("copy", job, "committed"))
		return misuse("image of no copy", job, e);
	world_put("image", image, job); /* half of it, until the end */
	append("made", image, job);
	r = play("image_create", image, NULL, e);
	if (r == 0)
		*ret = json_pack("{s:[{s:s, s:I}], s:O}", "disks", "format", "qcow2", "size", (json_int_t)1 << 30,
				 "meta", meta);
	/* Real ones, for a real hypervisor. */
	disks = r == 0 ? script_read("image_create", "disks") : NULL;
	if (disks)
		json_object_set_new(*ret, "disks", json_loads(disks, 0, NULL));
	return r;
}

static int s_test_boot(struct provider *p, const char *image, const json_t *options, const struct provider_watch *w,
		       json_t **ret, struct err *e)
{
	_cleanup_free_ char *picture = str_printf("%s/screen.png", script_dir),
			    *said = script_read("test_boot", "says");
	int r;
	CALL(CALL_BOOT, NULL, image);

	if (!world_has("image", image, NULL))
		return misuse("boot of no image", image, e);
	given("test_boot", options);
	speak("test_boot", w);
	r = play("test_boot", image, w, e);
	said = script_read("test_boot", "says");
	if (r == 0)
		*ret = json_pack("{s:b, s:[{s:s}], s:s, s:f}", "verified", !script_has("test_boot", "bad"), "problems",
				 "message", "no network card", "screenshot", picture, "boot_seconds", 1.5);
	if (r == 0 && said) {
		_cleanup_json_ json_t *more = json_loads(said, 0, NULL);

		json_object_del(*ret, "problems");
		json_object_update(*ret, more);
	}
	return r;
}

/* What is no copy of a test's is booted as the image that it becomes. */
static int s_copy_boot(struct provider *p, const char *job, const json_t *options, const struct provider_watch *w,
		       json_t **ret, struct err *e)
{
	_cleanup_free_ char *picture = str_printf("%s/screen.png", script_dir),
			    *code = script_read("copy_boot", "problem");
	bool bad;
	int r;
	CALL(CALL_BOOT, job, NULL);

	if (!world_has("copy", job, "partial"))
		return misuse("boot of no test's copy", job, e);
	given("copy_boot", options);
	speak("test_boot", w);
	r = play("copy_boot", job, w, e);
	bad = script_has("test_boot", "bad") || code;
	if (r == 0)
		*ret = json_pack("{s:b, s:[], s:s, s:f}", "verified", !bad, "problems", "screenshot", picture,
				 "boot_seconds", 1.5);
	if (r == 0 && bad)
		json_array_append_new(
		    json_object_get(*ret, "problems"),
		    json_pack("{s:s, s:s}", "code", code ? code : "no_address", "message", "no network card"));
	return r;
}

static json_t *check_report(bool repaired)
{
	bool bad = script_has("image_check", "bad") && !repaired;

	return json_pack("{s:s, s:s, s:{s:s}, s:[{s:s, s:s, s:s, s:s, s:s, s:b, s:b}]}", "kind", "linux", "verdict",
			 bad ? "critical" : "passed", "system", "name", "Debian <b>12</b>", "items", "item", "fstab",
			 "group", "boot", "level", bad ? "critical" : "passed", "message",
			 bad ? "'/' is on '<script>'" : "well", "remedy", "name it & go", "repairable", bad, "high", 1);
}

static int s_image_check(struct provider *p, const char *image, const json_t *options, const struct provider_watch *w,
			 json_t **ret, struct err *e)
{
	int r;
	CALL(CALL_BOOT, NULL, image);

	if (!world_has("image", image, NULL))
		return misuse("check of no image", image, e);
	given("image_check", options);
	r = play("image_check", image, w, e);
	if (r == 0)
		*ret = check_report(false);
	return r;
}

static int s_image_repair(struct provider *p, const char *image, const char *repaired, const json_t *options,
			  const struct provider_watch *w, json_t **ret, json_t **ret_manifest, struct err *e)
{
	_cleanup_json_ json_t *before = check_report(false);
	int r;
	CALL(CALL_BOOT, NULL, image);

	if (!world_has("image", image, NULL))
		return misuse("repair of no image", image, e);
	world_put("image", repaired, image);
	append("made", repaired, image);
	r = play("image_repair", image, w, e);
	if (r < 0) {
		world_remove("image", repaired);
		return r;
	}
	*ret = check_report(true);
	json_object_set_new(*ret, "before", json_incref(json_object_get(before, "items")));
	json_object_set_new(*ret, "verdict_before", json_incref(json_object_get(before, "verdict")));
	json_object_set_new(*ret, "steps", json_array());
	json_object_set_new(*ret, "repaired", json_array());
	if (script_has("image_check", "bad")) {
		json_array_append_new(json_object_get(*ret, "steps"),
				      json_pack("{s:s, s:s, s:s, s:[{s:s, s:s, s:s}]}", "name", "fstab", "state",
						"done", "summary", "1 name", "files", "path", "/etc/fstab", "action",
						"changed", "old", "/dev/sda1 / <b>"));
		json_array_append_new(json_object_get(*ret, "repaired"),
				      json_pack("{s:s, s:b, s:s}", "item", "fstab", "repaired", 1, "was", "wrong"));
	}
	*ret_manifest =
	    json_pack("{s:[{s:s, s:I}], s:s}", "disks", "format", "qcow2", "size", (json_int_t)1 << 30, "base", image);
	return 0;
}

static int s_image_export(struct provider *p, const char *image, unsigned disk, const char *format, const char *path,
			  const struct provider_watch *w, struct err *e)
{
	int r;
	CALL(CALL_EXPORT, NULL, image);

	if (!world_has("image", image, NULL))
		return misuse("export of no image", image, e);
	emit(w, json_pack("{s:s, s:f}", "event", "progress", "percent", 42.0));
	r = play("image_export", image, w, e);
	return r < 0 ? r : io_write_file_atomic(path, "EXPORTED", 8, 0600, e);
}

static int s_image_remove(struct provider *p, const char *image, struct err *e)
{
	int r;
	CALL(CALL_IMAGE_REMOVE, NULL, image);

	if (vms_stand_on(image))
		return misuse("removal of an image under an instance", image, e);
	r = play("image_remove", image, NULL, e);
	if (r == 0)
		world_remove("image", image);
	return r;
}

static int s_trim(struct provider *p, const struct provider_watch *w, bool *ret_left, struct err *e)
{
	_cleanup_free_ char *changed = script_read("trim", "changed");

	*ret_left = script_has("trim", "left");
	if (changed)
		emit(w, json_pack("{s:s, s:s, s:{s:[{s:s, s:I}]}}", "event", "image_changed", "image", changed,
				  "manifest", "disks", "base", "elsewhere", "size", (json_int_t)5));
	return play("trim", "-", w, e);
}

static int s_job_remove(struct provider *p, const char *job, struct err *e)
{
	int r;
	CALL(CALL_JOB_REMOVE, job, NULL);

	r = play("job_remove", job, NULL, e);
	if (r == 0)
		world_remove("copy", job);
	return r;
}

static int s_job_holds(struct provider *p, const char *job, uint64_t *ret, struct err *e)
{
	*ret = world_has("copy", job, NULL) ? 4096 : 0;
	return 0;
}

/* The world, and what lies in $SCRIPT/kept: KIND.OWNER[.more], as old as its file is. */
static int s_holdings(struct provider *p, json_t **ret, struct err *e)
{
	static const char *const dirs[] = {"world", "kept"};
	json_t *list = json_array();
	_cleanup_free_ char *fail = script_read("holdings", "fail");

	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		_cleanup_free_ char *dir = str_printf("%s/%s", script_dir, dirs[i]);
		DIR *d = dir ? opendir(dir) : NULL;
		struct dirent *ent;

		while (d && (ent = readdir(d))) {
			static const char *const others[] = {"receiver", "serial", "acting"};
			char kind[32], owner[64];
			bool is_other = false;
			struct stat st;

			if (sscanf(ent->d_name, "%31[^.].%63[^.]", kind, owner) != 2)
				continue;
			for (size_t k = 0; k < ARRAY_SIZE(others); k++)
				is_other |= strcmp(kind, others[k]) == 0;
			if (is_other || fstatat(dirfd(d), ent->d_name, &st, 0) < 0)
				continue;
			json_array_append_new(list,
					      json_pack("{s:s, s:o, s:o, s:I, s:f}", "kind",
							strcmp(kind, "instance") == 0 ? "instance-set" : kind, "owner",
							strcmp(owner, "none") == 0 ? json_null() : json_string(owner),
							"path", json_sprintf("%s/%s", dirs[i], ent->d_name), "bytes",
							(json_int_t)st.st_size, "since", (double)st.st_mtim.tv_sec));
		}
		if (d)
			closedir(d);
	}
	*ret = list;
	return fail ? err_set(e, -EIO, "%s", fail) : 0;
}

static int s_discard(struct provider *p, const char *path, struct err *e)
{
	_cleanup_free_ char *file = str_printf("%s/%s", script_dir, path);

	append("discarded", "-", path);
	if (!str_starts(path, "kept/run.") && !str_starts(path, "kept/temporary."))
		return misuse("discard of what isn't temporary", path, e);
	if (script_has("discard", "fail"))
		return err_set(e, -EIO, "stuck");
	return file && unlinkat(AT_FDCWD, file, 0) == 0 ? 0 : err_set(e, -EIO, "'%s' isn't there", path);
}

static int s_empty(struct provider *p, struct err *e)
{
	append("discarded", "-", "empty");
	return 0;
}

static void s_close(struct provider *p)
{
}

static const struct provider_ops scripted_ops = {
    .kind = "scripted",
    .capacity = s_capacity,
    .receive = s_receive,
    .convert = s_convert,
    .image_create = s_image_create,
    .test_boot = s_test_boot,
    .copy_boot = s_copy_boot,
    .image_check = s_image_check,
    .image_repair = s_image_repair,
    .image_export = s_image_export,
    .image_remove = s_image_remove,
    .trim = s_trim,
    .job_holds = s_job_holds,
    .job_remove = s_job_remove,
    .holdings = s_holdings,
    .discard = s_discard,
    .empty = s_empty,
    .close = s_close,
};

/* ---- a death at a chosen write (-Wl,--wrap) ---- */

static void write_is_due(void)
{
	static atomic_int left; /* 0: not told yet */
	_cleanup_free_ char *n = atomic_load(&left) ? NULL : script_read("die", "at");
	int none = 0;

	if (n)
		atomic_compare_exchange_strong(&left, &none, atoi(n) + 1);
	if (atomic_load(&left) && atomic_fetch_sub(&left, 1) == 2)
		raise(SIGKILL);
}

int __real_sqlite3_step(sqlite3_stmt *st);
int __wrap_sqlite3_step(sqlite3_stmt *st);
int __wrap_sqlite3_step(sqlite3_stmt *st)
{
	if (!sqlite3_stmt_readonly(st))
		write_is_due();
	return __real_sqlite3_step(st);
}

int __real_sqlite3_exec(sqlite3 *db, const char *sql, int (*each)(void *, int, char **, char **), void *arg,
			char **error);
int __wrap_sqlite3_exec(sqlite3 *db, const char *sql, int (*each)(void *, int, char **, char **), void *arg,
			char **error);
int __wrap_sqlite3_exec(sqlite3 *db, const char *sql, int (*each)(void *, int, char **, char **), void *arg,
			char **error)
{
	if (strcmp(sql, "COMMIT") == 0)
		write_is_due();
	return __real_sqlite3_exec(db, sql, each, arg, error);
}

#ifdef STORE_POSTGRES
PGresult *__real_PQexec(PGconn *c, const char *sql);
PGresult *__wrap_PQexec(PGconn *c, const char *sql);
PGresult *__wrap_PQexec(PGconn *c, const char *sql)
{
	if (strcmp(sql, "COMMIT") == 0)
		write_is_due();
	return __real_PQexec(c, sql);
}

PGresult *__real_PQexecParams(PGconn *c, const char *sql, int n, const Oid *types, const char *const *values,
			      const int *lengths, const int *formats, int format);
PGresult *__wrap_PQexecParams(PGconn *c, const char *sql, int n, const Oid *types, const char *const *values,
			      const int *lengths, const int *formats, int format);
PGresult *__wrap_PQexecParams(PGconn *c, const char *sql, int n, const Oid *types, const char *const *values,
			      const int *lengths, const int *formats, int format)
{
	if (!str_starts(sql, "SELECT"))
		write_is_due();
	return __real_PQexecParams(c, sql, n, types, values, lengths, formats, format);
}
#endif

/* ---- a clock that is set (-Wl,--wrap): $SCRIPT/clock.ahead seconds ---- */

int __real_clock_gettime(clockid_t clock, struct timespec *ts);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ts);
int __wrap_clock_gettime(clockid_t clock, struct timespec *ts)
{
	_cleanup_free_ char *ahead = clock == CLOCK_REALTIME && script_dir ? script_read("clock", "ahead") : NULL;
	int r = __real_clock_gettime(clock, ts);

	if (r == 0 && ahead)
		ts->tv_sec += atol(ahead);
	return r;
}

static int scripted_open(const char *kind, const struct provider_settings *s, struct provider **ret, struct err *e)
{
	static struct provider p = {.ops = &scripted_ops};

	*ret = &p;
	return 0;
}

static void ready(uint16_t port)
{
	printf("%u\n", port);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct center_settings s = {
	    .listen = "127.0.0.1:0", .provider_open = scripted_open, .hypervisor_open = vms_open, .ready = ready};
	_cleanup_free_ char *token = NULL;
	struct err e = {0};
	int r;

	if (argc < 3)
		return 2;
	script_dir = getenv("SCRIPT");
	if (strcmp(argv[1], "init") == 0) {
		const char *address = "127.0.0.1:4443";

		r = center_init(argv[2], getenv("DATABASE"), &address, 1, &token, &e);
	} else {
		s.state = argv[2];
		s.heartbeat = number("HEARTBEAT", 0.5);
		s.heartbeat_busy = number("BUSY", s.heartbeat);
		s.source_patience = number("PATIENCE", 60);
		s.source_absence = number("ABSENCE", 60);
		s.hour = number("HOUR", 3600);
		s.retry_pause = 0.05;
		s.last_word = number("WORD", 0.2);
		s.tick = number("TICK", 0.1);
		s.switch_boot = number("SWITCH_BOOT", 5);
		if (getenv("REAL_HYPERVISOR"))
			s.hypervisor_open = hypervisor_open;
		s.instances_tick = number("INSTANCES_TICK", 0);
		s.lease = number("LEASE", 0);
		s.data_host = getenv("DATA_HOST");
		s.renew_check = number("RENEW_CHECK", 0);
		s.notify_pause = number("NOTIFY_PAUSE", 0.1);
		s.notify_timeout = number("NOTIFY_TIMEOUT", 2);
		s.trust = getenv("TRUST");
		s.mail_server = getenv("MAIL_SERVER");
		s.mail_from = getenv("MAIL_FROM");
		s.mail_user = getenv("MAIL_USER");
		s.mail_password = getenv("MAIL_PASSWORD");
		s.failures_per_minute = (unsigned)number("FAILURES", 100000);
		if (argc > 3)
			s.listen = argv[3];
		r = center_serve(&s, &e);
	}
	if (r < 0)
		fprintf(stderr, "scripted: %s\n", e.msg);
	return r < 0;
}
