/* An instance's QEMU: started, looked at, ended. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "provider/local_vm_int.h"

#define STOP_AGAIN 5.0 /* seconds between two presses of the power button */

/* ---- what it does ---- */

static int run_life(const struct vm *vm, struct local_path *run, struct local_path *scratch, struct qemu_life *ret,
		    struct err *e)
{
	int r = vm_path(vm, run, e, "run");

	r = r ?: vm_path(vm, scratch, e, "scratch");
	*ret = (struct qemu_life){.dir = run->s, .scratch = scratch->s};
	return r;
}

/* Its QEMU, if there is one, ends. */
static int run_end(struct vm *vm, struct err *e)
{
	struct local_path run, scratch;
	struct qemu_life life;
	int r = run_life(vm, &run, &scratch, &life, e);

	if (vm->qemu)
		vm_drain(vm, NULL);
	qemu_stop(vm->qemu);
	vm->qemu = NULL;
	vm_fault();
	r = r ?: qemu_end(&life, !vm->deaf, e);
	vm_fault();
	return r ?: vm_unlink(vm, "started.json", e);
}

static void run_boot_id(char out[64])
{
	_cleanup_free_ char *text = NULL;

	snprintf(out, 64, "unknown");
	if (io_read_file("/proc/sys/kernel/random/boot_id", 64, &text, NULL, NULL) == 0)
		snprintf(out, 64, "%.*s", (int)strcspn(text, "\n"), text);
}

/* There is no QEMU, and nobody saw it end: since when? */
static int run_look_dead(const struct vm *vm, struct vm_now *ret, struct err *e)
{
	_cleanup_json_ json_t *started = NULL;
	struct local_path path;
	char now[64];
	int r = vm_path(vm, &path, e, "started.json");

	r = r ?: local_exists(path.s, e);
	if (r <= 0)
		return r;
	run_boot_id(now);
	if (local_read_json(path.s, &started, NULL) == 0 &&
	    strcmp(json_string_value(json_object_get(started, "boot")) ?: "", now) != 0)
		return vm_unlink(vm, "started.json", e); /* the host went down, and it with it */
	ret->state = VM_CRASHED;
	snprintf(ret->problem, sizeof(ret->problem), "its QEMU ended while the guest was running (start it again)");
	return 0;
}

static int run_look_alive(struct vm *vm, struct vm_now *ret, struct err *e)
{
	char status[32];
	int r = qemu_status(vm->qemu, status, sizeof(status), e);

	r = r ?: vm_drain(vm, e);
	if (r < 0)
		return r;
	/* The guest has turned itself off; or who was starting it didn't come to its start. */
	if (strcmp(status, "shutdown") == 0 || strcmp(status, "prelaunch") == 0)
		return run_end(vm, e);
	ret->state = VM_RUNNING;
	if (strcmp(status, "running") == 0)
		return 0;
	ret->state = VM_PAUSED;
	if (strcmp(status, "io-error") == 0) {
		snprintf(ret->problem, sizeof(ret->problem),
			 "the host could not write to its disks, so it waits (make room, then start it)");
	} else if (strcmp(status, "internal-error") == 0 || strcmp(status, "guest-panicked") == 0) {
		ret->state = VM_CRASHED;
		snprintf(ret->problem, sizeof(ret->problem), "QEMU could not go on with the guest: '%s'", status);
	} else {
		snprintf(ret->problem, sizeof(ret->problem), "QEMU says '%s'", status);
	}
	return 0;
}

int vm_connect(struct vm *vm, struct vm_now *ret, struct err *e)
{
	struct local_path run;
	struct err why = {0};
	int r = vm_path(vm, &run, e, "run");

	r = r ?: qemu_is_alive(run.s, e);
	if (r <= 0 || qemu_attach(run.s, &vm->qemu, &why) == 0)
		return r;
	r = qemu_is_alive(run.s, e);
	if (r > 0) {
		vm->deaf = true;
		ret->state = VM_RUNNING;
		snprintf(ret->problem, sizeof(ret->problem), "its QEMU does not answer: %s", why.msg);
	}
	return r;
}

int vm_look(struct vm *vm, struct vm_now *ret, struct err *e)
{
	int r;

	*ret = (struct vm_now){0};
	r = vm_connect(vm, ret, e);
	if (r > 0 && !vm->qemu)
		return 0;
	if (r == 0)
		r = run_look_dead(vm, ret, e);
	/* Before it is ended: only QEMU knows which files it was writing to. */
	r = r < 0 ? r : vm_set_settle(vm, e);
	return r == 0 && vm->qemu ? run_look_alive(vm, ret, e) : r;
}

int vm_check_off(struct vm *vm, struct err *e)
{
	struct vm_now now;
	int r = vm_look(vm, &now, e);

	if (r == 0 && (now.state == VM_RUNNING || now.state == VM_PAUSED || vm->qemu))
		return err_set(e, -EBUSY, "instance '%s' is running (stop it first)", vm->ref);
	return r;
}

/* ---- start ---- */

static int run_settings(const struct vm *vm, const char *accel, struct vm_settings *ret, struct err *e)
{
	_cleanup_json_ json_t *o = NULL;
	struct local_path path;
	int r = vm_path(vm, &path, e, "settings.json");

	r = r ?: local_read_json(path.s, &o, e);
	r = r ?: vm_settings_read(o, ret, e);
	return r ?: local_hw_check(&ret->hw, accel, e);
}

static int run_write_started(const struct vm *vm, struct err *e)
{
	_cleanup_json_ json_t *o = NULL;
	struct local_path path;
	struct stat st;
	char boot[64];
	int r = vm_path(vm, &path, e, "serial.log");

	if (r < 0)
		return r;
	run_boot_id(boot);
	o = json_pack("{s:s, s:f, s:I}", "boot", boot, "time", id_now(), "serial",
		      stat(path.s, &st) == 0 ? (json_int_t)st.st_size : (json_int_t)0);
	r = vm_path(vm, &path, e, "started.json");
	return r ?: o ? local_write_json(path.s, o, e) : err_nomem(e);
}

/* Started, but stopped; its guest runs once it is written down that it does. */
static int run_go(struct vm *vm, struct err *e)
{
	int r;

	vm_fault();
	r = run_write_started(vm, e);
	vm_fault();
	r = r ?: qemu_command(vm->qemu, "cont", NULL, NULL, e);
	vm_fault();
	if (r < 0)
		run_end(vm, NULL);
	return r;
}

static int run_disks(const struct vm *vm, const char *set, struct qemu_disk *d, struct local_path *paths,
		     char (*serials)[32], struct qemu_settings *s, struct err *e)
{
	_cleanup_json_ json_t *o = NULL;
	uint64_t boot = 0;
	int r = vm_set_read(vm, set, &o, e);
	size_t n = json_array_size(json_object_get(o, "disks"));

	if (r < 0 || n > LOCAL_DISKS_MAX)
		return r < 0 ? r : err_set(e, -E2BIG, "set '%s' has too many disks", set);
	jsn_get_u64(o, "boot_disk", false, 0, LOCAL_DISKS_MAX, &boot, NULL);
	for (size_t i = 0; r == 0 && i < n; i++) {
		r = vm_path(vm, &paths[i], e, "sets/%s/disk%zu.qcow2", set, i);
		snprintf(serials[i], 32, "disk%zu", i);
		d[i] =
		    (struct qemu_disk){.path = paths[i].s, .format = "qcow2", .serial = serials[i], .boot = i == boot};
	}
	s->disks = d;
	s->ndisks = n;
	return r;
}

static int run_launch(struct vm *vm, const char *set, const char *accel, struct qemu_settings *s, struct err *e)
{
	struct qemu_disk d[LOCAL_DISKS_MAX] = {0};
	char serials[LOCAL_DISKS_MAX][32], code[PATH_MAX], vars[PATH_MAX];
	_cleanup_free_ struct local_path *paths = calloc(LOCAL_DISKS_MAX, sizeof(*paths));
	struct vm_settings own;
	int r = paths ? run_settings(vm, accel, &own, e) : err_nomem(e);

	r = r ?: run_disks(vm, set, d, paths, serials, s, e);
	if (r == 0 && own.hw.uefi) {
		r = vm_efi(vm, code, vars, e);
		s->uefi_code = code;
		s->uefi_vars = vars;
	}
	if (r < 0)
		return r;
	local_hw_use(&own.hw, s);
	s->net = own.net ? &own.card : NULL;
	r = qemu_start(s, &vm->qemu, e);
	return r ?: run_go(vm, e);
}

static int run_start(struct vm *vm, const char *set, struct err *e)
{
	struct qemu_settings s = {.user = vm->l->user, .durable = true, .screen = true};
	struct local_path run, scratch;
	_cleanup_close_ int hold = -1;
	struct qemu_life life;
	int r = run_life(vm, &run, &scratch, &life, e);

	r = r ?: qemu_accelerator(vm->l->cache, vm->l->user, &s.accel, e);
	r = r ?: vm_set_ready(vm, set, e);
	r = r ?: vm_set_hold(vm, set, &hold, e);
	vm_fault();
	if (r < 0)
		return r;
	life.keep = &hold;
	life.nkeep = 1;
	s.life = &life;
	return run_launch(vm, set, s.accel, &s, e);
}

static int run_start_locked(struct vm *vm, struct err *e)
{
	char set[HYPERVISOR_SET_MAX];
	struct vm_now now;
	int r = vm_look(vm, &now, e);

	if (r < 0 || now.state == VM_RUNNING)
		return r;
	if (now.state == VM_PAUSED)
		return qemu_command(vm->qemu, "cont", NULL, NULL, e);
	if (now.state == VM_CRASHED)
		r = run_end(vm, e);
	r = r ?: vm_set_in_use(vm, set, e);
	if (r == 0 && !set[0])
		r = err_set(e, -ENOENT, "instance '%s' has no disks yet (migrate a server to it)", vm->ref);
	return r ?: run_start(vm, set, e);
}

int vm_start(struct hypervisor *h, const char *ref, struct err *e)
{
	struct vm vm;
	int r = vm_open(h, ref, false, &vm, e);

	if (r < 0)
		return r;
	r = run_start_locked(&vm, e);
	vm_close(&vm);
	return r;
}

/* ---- stop ---- */

static int run_press(struct vm *vm, double *again, struct err *e)
{
	if (id_now_mono() < *again)
		return 0;
	*again = id_now_mono() + STOP_AGAIN;
	return vm->qemu ? qemu_command(vm->qemu, "system_powerdown", NULL, NULL, e) : 0;
}

/* 1: it is off. */
static int run_stop_step(struct vm *vm, bool force, double *again, struct err *e)
{
	struct vm_now now;
	/* By force it ends whatever there is to be said of it. */
	int r = vm_look(vm, &now, force ? NULL : e);

	if (r < 0 && !force)
		return r;
	if (force || now.state == VM_OFF || now.state == VM_CRASHED)
		return run_end(vm, e) ?: 1;
	if (now.state == VM_PAUSED)
		return err_set(e, -EBUSY, "instance '%s' waits and hears no power button: %s; or stop it by force",
			       vm->ref, now.problem);
	return run_press(vm, again, e);
}

/* Others may ask for it while it goes down. */
int vm_stop(struct hypervisor *h, const char *ref, double seconds, const struct provider_watch *w, struct err *e)
{
	double end = id_now_mono() + seconds, again = 0;

	for (;;) {
		struct vm vm;
		int r = vm_open(h, ref, false, &vm, e);

		if (r < 0)
			return r;
		r = run_stop_step(&vm, seconds <= 0, &again, e);
		vm_close(&vm);
		if (r != 0)
			return MIN(r, 0);
		if (local_cancelled(w))
			return err_set(e, -ECANCELED, "stopped");
		if (id_now_mono() >= end)
			return err_set(e, -ETIMEDOUT,
				       "instance '%s' did not turn itself off within %.0f seconds (stop it by force)",
				       ref, seconds);
		nanosleep(&(struct timespec){.tv_nsec = 250000000}, NULL);
	}
}
