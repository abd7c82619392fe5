/* The appliance: built on first use, started on a job's disks, asked one thing. Conversion is that, on fresh overlays.
 */
#include "provider/local_int.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/proc.h"
#include "base/str.h"

#define APPLIANCE_PORT          "org.replant.appliance.0"
#define APPLIANCE_MEMORY        1024 /* MiB, when the request says nothing */
#define APPLIANCE_CPUS          2
#define APPLIANCE_SECONDS       (2 * 3600.0)
#define APPLIANCE_BUILD_SECONDS "1800"
#define APPLIANCE_APPEND        "root=/dev/vda console=ttyS0,115200 quiet panic=1"

/* Beside the programs in the build tree and where it is installed. */
static int appliance_script(const struct local *l, struct local_path *ret, struct err *e)
{
	static const char *const places[] = {"appliance/build.sh", "../../appliance/build.sh",
					     "../../../appliance/build.sh"};

	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		if ((size_t)snprintf(ret->s, sizeof(ret->s), "%s/%s", l->programs, places[i]) < sizeof(ret->s) &&
		    access(ret->s, X_OK) == 0)
			return 0;
	}
	return err_set(e, -ENOENT, "cannot find appliance/build.sh near '%s' (the installation is not complete)",
		       l->programs);
}

/* timeout(1) has the build in a process group of its own, which it ends with itself. */
static int appliance_dir(struct local *l, const struct provider_watch *w, char **ret, struct err *e)
{
	struct local_path script;
	int r = appliance_script(l, &script, e);
	const char *const argv[] = {"timeout", "-k", "10", APPLIANCE_BUILD_SECONDS, script.s, l->cache, NULL};

	if (r == 0)
		r = proc_run_unless(argv, w ? w->cancelled : NULL, w ? w->arg : NULL, PATH_MAX, ret, e);
	if (r == -ECANCELED)
		return r;
	if (r < 0)
		return err_prefix(e, "cannot build the appliance");
	(*ret)[strcspn(*ret, "\n")] = '\0';
	return 0;
}

/* ---- the conversation ---- */

static int appliance_error(const json_t *event, json_t **ret, struct err *e)
{
	static const struct {
		const char *code;
		int err;
	} codes[] = {
	    {"unsupported_system", -ENOTSUP}, {"no_system", -ENOENT}, {"no_space", -ENOSPC}, {"timeout", -ETIMEDOUT}};
	const char *code = json_string_value(json_object_get(event, "code")) ?: "";
	json_t *found = json_object_get(event, "report");
	int err = -EIO;

	for (size_t i = 0; i < ARRAY_SIZE(codes); i++)
		if (strcmp(code, codes[i].code) == 0)
			err = codes[i].err;
	if (json_is_object(found))
		*ret = json_incref(found);
	return err_set(e, err, "%s", json_string_value(json_object_get(event, "message")) ?: "the conversion failed");
}

/* 1: go on, 0: the report is there. */
static int appliance_event(json_t *event, const struct provider_watch *w, json_t **ret, struct err *e)
{
	const char *kind = json_string_value(json_object_get(event, "event")) ?: "";

	if (strcmp(kind, "error") == 0)
		return appliance_error(event, ret, e);
	if (strcmp(kind, "report") == 0) {
		json_object_del(event, "event");
		*ret = json_incref(event);
		return 0;
	}
	local_tell(w, event);
	return 1;
}

static const char *appliance_last_line(const char *serial)
{
	size_t n = strlen(serial);

	while (n && (serial[n - 1] == '\n' || serial[n - 1] == '\r'))
		n--;
	while (n && serial[n - 1] != '\n')
		n--;
	return serial + n;
}

static int appliance_talk(struct qemu *vm, const json_t *request, const struct provider_watch *w, json_t **ret,
			  struct err *e)
{
	double end = id_now_mono() + APPLIANCE_SECONDS;
	int r = qemu_send(vm, request, e);

	while (r == 0) {
		json_t *event = NULL;

		if (local_cancelled(w))
			return err_set(e, -ECANCELED, "stopped");
		if (id_now_mono() > end)
			return err_set(e, -ETIMEDOUT, "the appliance took longer than %.0f s", APPLIANCE_SECONDS);
		r = qemu_pump(vm, 0.25, e);
		while (r == 0 && (r = qemu_next_event(vm, &event, e)) == 1) {
			r = appliance_event(event, w, ret, e);
			json_decref(event);
			if (r <= 0)
				return r;
			r = 0;
		}
		if (r == 0 && qemu_no_space(vm))
			return err_set(e, -ENOSPC,
				       "the center's disk is full (free some space, then start the job again)");
		if (r == 0 && qemu_ended(vm))
			return err_set(e, -EIO, "the appliance ended before it was done; it last said: %s%s",
				       appliance_last_line(qemu_serial(vm)), qemu_complaint(vm));
	}
	return r;
}

/* The appliance turns itself off when it has said all; its last writes are on the disks then. */
static int appliance_finish(struct qemu *vm, struct err *e)
{
	double end = id_now_mono() + 60;
	int r = 0;

	while (r == 0 && !qemu_ended(vm)) {
		if (id_now_mono() > end)
			return err_set(e, -ETIMEDOUT, "the appliance did not turn itself off");
		r = qemu_pump(vm, 0.2, e);
	}
	return r;
}

/* "machine" of the request: {"cpus":n,"memory_mib":n}. */
static int appliance_size(const json_t *request, struct qemu_settings *s, struct err *e)
{
	const json_t *machine = json_object_get(request, "machine");
	uint64_t cpus = APPLIANCE_CPUS, memory = APPLIANCE_MEMORY;
	int r = machine ? jsn_get_u64(machine, "cpus", false, 1, 64, &cpus, e) : 0;

	if (r == 0 && machine)
		r = jsn_get_u64(machine, "memory_mib", false, 512, 1u << 20, &memory, e);
	s->cpus = (unsigned)cpus;
	s->memory_mib = (unsigned)memory;
	return r;
}

static int appliance_start(struct local *l, const char *run_dir, const char *appliance, const json_t *request,
			   char *const *disks, size_t n, const struct provider_watch *w, struct qemu **ret,
			   struct err *e)
{
	struct qemu_disk d[LOCAL_DISKS_MAX + 2] = {0};
	char serials[LOCAL_DISKS_MAX][32], root[PATH_MAX + 64], base[PATH_MAX + 64], kernel[PATH_MAX + 64],
	    initrd[PATH_MAX + 64];
	struct qemu_settings s = {.user = l->user,
				  .kernel = kernel,
				  .initrd = initrd,
				  .append = APPLIANCE_APPEND,
				  .disks = d,
				  .ndisks = n + 2,
				  .port = APPLIANCE_PORT,
				  .console = w ? w->log : NULL,
				  .console_arg = w ? w->arg : NULL};
	struct local_path program;
	int r = local_program(l, "replant-transition", &program, e);

	must(n <= LOCAL_DISKS_MAX);
	snprintf(root, sizeof(root), "%s/root.qcow2", run_dir);
	snprintf(base, sizeof(base), "%s/root", appliance);
	snprintf(kernel, sizeof(kernel), "%s/kernel", appliance);
	snprintf(initrd, sizeof(initrd), "%s/initrd", appliance);
	if (r == 0)
		r = appliance_size(request, &s, e);
	/* supermin's initrd wants to write to its root: each machine gets a layer of its own. */
	if (r == 0)
		r = local_overlay(l, root, base, "raw", e);
	if (r == 0)
		r = qemu_accelerator(l->cache, l->user, &s.accel, e);
	if (r < 0)
		return r;
	d[0] = (struct qemu_disk){.path = root, .format = "qcow2", .serial = "replant-root"};
	d[1] = (struct qemu_disk){.path = program.s, .format = "raw", .serial = "replant-program", .readonly = true};
	for (size_t i = 0; i < n; i++) {
		snprintf(serials[i], sizeof(serials[i]), "replant-disk%zu", i);
		d[i + 2] = (struct qemu_disk){.path = disks[i], .format = "qcow2", .serial = serials[i]};
	}
	return qemu_start(&s, ret, e);
}

int local_appliance(struct local *l, const char *run, char *const *disks, size_t n, const json_t *request,
		    const struct provider_watch *w, json_t **ret, struct err *e)
{
	_cleanup_free_ char *appliance = NULL;
	struct qemu *vm = NULL;
	struct local_path dir;
	int r = local_path(l, &dir, e, "runs/%s", run);

	if (r == 0)
		r = appliance_dir(l, w, &appliance, e);
	if (r == 0)
		r = local_fresh_dir(l, dir.s, e);
	if (r == 0)
		r = appliance_start(l, dir.s, appliance, request, disks, n, w, &vm, e);
	if (r == 0)
		r = appliance_talk(vm, request, w, ret, e);
	if (r == 0)
		r = appliance_finish(vm, e);
	qemu_stop(vm);
	io_remove_tree(dir.s, NULL);
	return r;
}

/* ---- convert ---- */

/* The request as the appliance wants it: what the caller said, and the mode. */
static json_t *convert_request(const json_t *request)
{
	json_t *o = request ? json_copy((json_t *)(uintptr_t)request) : json_object();

	if (o)
		json_object_set_new(o, "mode", json_string("convert"));
	return o;
}

/* Where the overlays are made, and what they stand on. */
struct convert_place {
	struct local_path dir; /* of the overlays */
	size_t n;
	const char *chain; /* NULL: on raw files beside them */
	uint64_t run;
};

/* Fresh ones each time: a conversion that was cut off leaves nothing behind in the next. */
static int convert_overlays(struct local *l, const struct convert_place *c, char **disks, struct err *e)
{
	for (size_t i = 0; i < c->n; i++) {
		char backing[128], name[32];
		const char *format = "raw";
		int r = 0;

		disks[i] = str_printf("%s/disk%zu.qcow2", c->dir.s, i);
		if (!disks[i])
			return err_nomem(e);
		snprintf(backing, sizeof(backing), "disk%zu.raw", i);
		if (c->chain) {
			r = local_chain_disk(l, c->chain, c->run, i, name, &format, e);
			snprintf(backing, sizeof(backing), "../../chains/%s/%llu/%s", c->chain,
				 (unsigned long long)c->run, name);
		}
		r = r ?: local_overlay(l, disks[i], backing, format, e);
		if (r < 0)
			return r;
	}
	return 0;
}

static int convert_forget(const char *replica, struct err *e)
{
	char path[PATH_MAX + 64];

	snprintf(path, sizeof(path), "%s/report.json", replica);
	return unlink(path) < 0 && errno != ENOENT ? err_sys(e, "cannot remove '%s'", path) : 0;
}

static int convert_store(const char *replica, char *const *disks, size_t n, const json_t *report, struct err *e)
{
	char path[PATH_MAX + 64];
	int r = 0;

	for (size_t i = 0; r == 0 && i < n; i++)
		r = local_sync(disks[i], e);
	snprintf(path, sizeof(path), "%s/report.json", replica);
	return r < 0 ? r : local_write_json(path, report, e);
}

/*
 * The center died after the replica had become the image: the report went with it. It is complete, because only a
 * replica whose report is written is moved.
 */
static int convert_again(const struct local *l, const char *image, json_t **ret, struct err *e)
{
	struct local_path path;
	int r;

	if (!image || !id_is("image", image))
		return -ENOENT;
	r = local_path(l, &path, e, "images/%s/report.json", image);
	return r < 0 ? r : local_read_json(path.s, ret, e);
}

/* An incremental job's overlays are made where the image will be: without a manifest.json it isn't one yet. */
static int convert_place_chain(struct local *l, const char *job, const char *image, struct convert_place *ret,
			       struct err *e)
{
	struct local_runs runs;
	struct local_path run;
	int r = local_check_id("image", image ? image : "", e);

	r = r ?: local_chain_read(l, job, &runs, e);
	if (r == 0 && (!runs.n || runs.v[runs.n - 1] != runs.complete))
		r = err_set(e, -ENOENT, "the last run of job '%s' is not complete", job);
	if (r < 0)
		return r;
	ret->chain = job;
	ret->run = runs.complete;
	r = local_path(l, &run, e, "chains/%s/%llu", job, (unsigned long long)ret->run);
	r = r ?: local_path(l, &ret->dir, e, "images/%s", image);
	ret->n = r == 0 ? local_disks(run.s) : 0;
	r = r ?: local_chain_expect(l, job, image, e);
	return r ?: local_fresh_dir(l, ret->dir.s, e);
}

static int convert_place(struct local *l, const char *job, const char *image, struct convert_place *ret, struct err *e)
{
	int r = local_chain_is_open(l, job, e);

	*ret = (struct convert_place){0};
	if (r < 0)
		return r;
	if (r > 0) {
		r = convert_place_chain(l, job, image, ret, e);
	} else {
		r = local_path(l, &ret->dir, e, "jobs/%s/replica", job);
		ret->n = r == 0 ? local_disks(ret->dir.s) : 0;
	}
	if (r == 0 && !ret->n)
		r = err_set(e, -ENOENT, "job '%s' has no copied disks", job);
	return r;
}

static int convert_at(struct local *l, const char *job, const struct convert_place *c, const json_t *message,
		      const struct provider_watch *w, json_t **ret, struct err *e)
{
	char *disks[LOCAL_DISKS_MAX] = {NULL};
	/* That of an earlier conversion says nothing about the overlays that are made now. */
	int r = convert_forget(c->dir.s, e);

	r = r ?: convert_overlays(l, c, disks, e);
	r = r ?: local_appliance(l, job, disks, c->n, message, w, ret, e);
	r = r ?: convert_store(c->dir.s, disks, c->n, *ret, e);
	local_free_list(disks, c->n);
	return r;
}

int local_convert(struct provider *p, const char *job, const json_t *request, const struct provider_watch *w,
		  json_t **ret, struct err *e)
{
	struct local *l = local_of(p);
	_cleanup_json_ json_t *message = convert_request(request), *report = NULL;
	const char *image = json_string_value(json_object_get(request, "image"));
	struct convert_place c;
	int r = local_check_id("job", job, e);

	if (!message)
		return err_nomem(e);
	if (r < 0 || convert_again(l, image, ret, NULL) == 0)
		return r;
	r = local_chain_share(l, job, w, e);
	if (r < 0)
		return r;
	r = convert_place(l, job, image, &c, e);
	r = r ?: convert_at(l, job, &c, message, w, &report, e);
	local_chain_unshare(l, job);
	if (r == 0 || r == -ENOTSUP)
		*ret = take_ptr(&report);
	return r;
}
