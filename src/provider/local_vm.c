/* The hypervisor `local`: what instances there are. */
#include "provider/local_vm_int.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <sys/statvfs.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"

#define VM_LOCK_ALL (INT64_MAX - 1) /* the byte that is for all */

void vm_fault(void)
{
	static _Atomic unsigned steps;
	const char *text = getenv("REPLANT_FAULT_VM");

	if (text && ++steps == (unsigned)strtoul(text, NULL, 10))
		raise(SIGKILL);
}

static struct vm_host *host_of(struct hypervisor *h)
{
	return (struct vm_host *)(void *)h;
}

/* ---- one at a time ---- */

/* A descriptor of its own: it excludes other threads as well as other centers. */
static int vm_lock(const struct local *l, off_t byte, int *ret, struct err *e)
{
	struct flock lk = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1};
	_cleanup_close_ int fd = -1;
	struct local_path path;
	int r = local_path(l, &path, e, "instances/locks");

	if (r < 0)
		return r;
	fd = open(path.s, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_sys(e, "cannot open '%s'", path.s);
	while (fcntl(fd, F_OFD_SETLKW, &lk) < 0)
		if (errno != EINTR)
			return err_sys(e, "cannot lock '%s'", path.s);
	*ret = take_fd(&fd);
	return 0;
}

int vm_lock_all(const struct local *l, int *ret, struct err *e)
{
	return vm_lock(l, VM_LOCK_ALL, ret, e);
}

int vm_open(struct hypervisor *h, const char *ref, bool any, struct vm *ret, struct err *e)
{
	struct vm vm = {.l = host_of(h)->l, .lock = -1};
	int r = local_check_id("instance", ref, e);

	if (r < 0)
		return r;
	snprintf(vm.ref, sizeof(vm.ref), "%s", ref);
	r = local_path(vm.l, &vm.dir, e, "instances/%s", ref);
	r = r ?: vm_lock(vm.l, (off_t)(strtoull(strchr(ref, '-') + 1, NULL, 16) & (INT64_MAX >> 1)), &vm.lock, e);
	if (r == 0 && !any) {
		r = local_exists(vm.dir.s, e);
		r = r == 0 ? err_set(e, -ENOENT, "instance '%s' does not exist", ref) : MIN(r, 0);
	}
	if (r < 0)
		vm_close(&vm);
	else
		*ret = vm;
	return r;
}

void vm_close(struct vm *vm)
{
	qemu_stop(vm->qemu);
	vm->qemu = NULL;
	if (vm->lock >= 0)
		close(take_fd(&vm->lock));
}

int vm_path(const struct vm *vm, struct local_path *ret, struct err *e, const char *fmt, ...)
{
	size_t n = (size_t)snprintf(ret->s, sizeof(ret->s), "%s/", vm->dir.s);
	va_list ap;
	int m;

	va_start(ap, fmt);
	m = n < sizeof(ret->s) ? vsnprintf(ret->s + n, sizeof(ret->s) - n, fmt, ap) : -1;
	va_end(ap);
	if (m < 0 || (size_t)m >= sizeof(ret->s) - n)
		return err_set(e, -ENAMETOOLONG, "path below '%s' is too long", vm->dir.s);
	return 0;
}

int vm_unlink(const struct vm *vm, const char *name, struct err *e)
{
	struct local_path path;
	int r = vm_path(vm, &path, e, "%s", name);

	return r == 0 && unlink(path.s) < 0 && errno != ENOENT ? err_sys(e, "cannot remove '%s'", path.s) : r;
}

int vm_each(const struct local *l, int (*each)(void *arg, const char *ref, struct err *e), void *arg, struct err *e)
{
	struct local_path dir;
	struct dirent *d;
	DIR *list;
	int r = local_path(l, &dir, e, "instances");

	if (r < 0)
		return r;
	list = opendir(dir.s);
	if (!list)
		return errno == ENOENT ? 0 : err_sys(e, "cannot read '%s'", dir.s);
	while (r == 0 && (errno = 0, d = readdir(list)))
		if (id_is("instance", d->d_name))
			r = each(arg, d->d_name, e);
	if (r == 0 && errno)
		r = err_sys(e, "cannot read '%s'", dir.s);
	closedir(list);
	return r;
}

/* ---- define, remove ---- */

static int vm_dirs(const struct vm *vm, struct err *e)
{
	static const char *const names[] = {"sets", "run", "scratch"};
	struct local_path path;
	int r = io_mkdirs(vm->dir.s, 0755, e);

	r = r ?: local_take_dir(vm->l, vm->dir.s, e);
	for (size_t i = 0; r == 0 && i < ARRAY_SIZE(names); i++) {
		r = vm_path(vm, &path, e, "%s", names[i]);
		r = r ?: io_mkdirs(path.s, 0700, e);
	}
	r = r ?: local_give(vm->l, path.s, e); /* scratch */
	r = r ?: vm_path(vm, &path, e, "sets");
	return r ?: local_take_dir(vm->l, path.s, e);
}

/* NULL when it has none yet. */
static int vm_read_settings(const struct vm *vm, json_t **ret, struct err *e)
{
	struct local_path path;
	int r = vm_path(vm, &path, e, "settings.json");

	r = r ?: local_exists(path.s, e);
	return r > 0 ? local_read_json(path.s, ret, e) : r;
}

static int vm_write_settings(struct vm *vm, const json_t *wanted, struct err *e)
{
	_cleanup_json_ json_t *had = NULL, *made = NULL;
	_cleanup_close_ int all = -1;
	struct local_path path;
	int r = vm_lock_all(vm->l, &all, e);

	r = r ?: vm_read_settings(vm, &had, e);
	r = r ?: vm_settings_make(vm, wanted, had, &made, e);
	if (r < 0 || (had && json_equal(had, made)))
		return r;
	r = had ? vm_check_off(vm, e) : 0;
	r = r ?: vm_dirs(vm, e);
	vm_fault();
	r = r ?: vm_path(vm, &path, e, "settings.json");
	return r ?: local_write_json(path.s, made, e);
}

static int vm_define(struct hypervisor *h, const char *id, const json_t *settings, char ret_ref[HYPERVISOR_REF_MAX],
		     struct err *e)
{
	struct vm vm;
	int r = vm_open(h, id, true, &vm, e);

	if (r < 0)
		return r;
	r = vm_write_settings(&vm, settings, e);
	vm_close(&vm);
	if (r == 0)
		snprintf(ret_ref, HYPERVISOR_REF_MAX, "%s", id);
	return r;
}

static int vm_remove_dir(struct vm *vm, struct err *e)
{
	struct local_path gone, run;
	int r = local_path(vm->l, &gone, e, "instances/%s.gone", vm->ref);

	/* What was begun earlier. */
	r = r ?: io_remove_tree(gone.s, e);
	if (r == 0)
		r = local_exists(vm->dir.s, e);
	if (r <= 0)
		return r;
	r = vm_check_off(vm, e);
	/* What can't be settled goes with it, as long as nothing runs. */
	if (r < 0 && r != -EBUSY && vm_path(vm, &run, NULL, "run") == 0 && qemu_is_alive(run.s, NULL) == 0)
		r = 0;
	/* Out of the way at once: half an instance is none. */
	if (r == 0 && rename(vm->dir.s, gone.s) < 0)
		r = err_sys(e, "cannot remove '%s'", vm->dir.s);
	vm_fault();
	return r ?: io_remove_tree(gone.s, e);
}

static int vm_remove(struct hypervisor *h, const char *ref, struct err *e)
{
	struct vm vm;
	int r = vm_open(h, ref, true, &vm, e);

	if (r < 0)
		return r;
	r = vm_remove_dir(&vm, e);
	vm_close(&vm);
	return r;
}

/* ---- get, list ---- */

static const char *const vm_states[] = {"off", "running", "paused", "crashed"};

static int vm_tell_settings(const struct vm *vm, json_t *o, struct err *e)
{
	_cleanup_json_ json_t *settings = NULL;
	struct vm_settings s;
	int r = vm_read_settings(vm, &settings, e);

	if (r == 0 && !settings)
		return err_set(e, -EIO, "instance '%s' has lost its settings (define it again, or remove it)", vm->ref);
	r = r ?: vm_settings_read(settings, &s, e);
	if (r < 0)
		return r;
	json_object_set_new(o, "name", json_string(s.name));
	json_object_set(o, "settings", settings);
	json_object_set_new(o, "addresses", s.net ? json_pack("[s]", s.address) : json_array());
	return 0;
}

static int vm_tell(struct vm *vm, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *o = json_pack("{s:s, s:s}", "ref", vm->ref, "arch", "x86_64"), *boot = NULL;
	struct vm_now now;
	int r = o ? vm_tell_settings(vm, o, e) : err_nomem(e);

	r = r ?: vm_look(vm, &now, e);
	r = r ?: vm_sets_tell(vm, o, e);
	r = r ?: vm_boot(vm, &now, &boot, e);
	if (r < 0)
		return r;
	json_object_set_new(o, "state", json_string(vm_states[now.state]));
	json_object_set(o, "boot", boot);
	if (now.problem[0])
		json_object_set_new(o, "problem", json_string(now.problem));
	*ret = take_ptr(&o);
	return 0;
}

static int vm_get(struct hypervisor *h, const char *ref, json_t **ret, struct err *e)
{
	struct vm vm;
	int r = vm_open(h, ref, false, &vm, e);

	if (r < 0)
		return r;
	r = vm_tell(&vm, ret, e);
	vm_close(&vm);
	return r;
}

struct vm_listing {
	struct hypervisor *h;
	json_t *list;
};

/* One that is damaged doesn't hide the others. */
static int vm_list_one(void *arg, const char *ref, struct err *e)
{
	struct vm_listing *all = arg;
	struct err why = {0};
	json_t *o = NULL;
	int r = vm_get(all->h, ref, &o, &why);

	if (r == -ENOENT)
		return 0; /* removed meanwhile */
	if (r < 0)
		o = json_pack("{s:s, s:s, s:s, s:s, s:{}, s:[], s:[], s:n, s:[], s:s}", "ref", ref, "name", ref,
			      "state", "off", "arch", "x86_64", "settings", "disks", "addresses", "set", "sets",
			      "problem", why.msg);
	return json_array_append_new(all->list, o) < 0 ? err_nomem(e) : 0;
}

static int vm_list(struct hypervisor *h, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *list = json_array();
	struct vm_listing all = {h, list};
	int r = list ? vm_each(host_of(h)->l, vm_list_one, &all, e) : err_nomem(e);

	if (r == 0)
		*ret = take_ptr(&list);
	return r;
}

static int vm_count(void *arg, const char *ref, struct err *e)
{
	++*(unsigned *)arg;
	return 0;
}

static int vm_capacity(struct hypervisor *h, json_t **ret, struct err *e)
{
	const struct local *l = host_of(h)->l;
	bool uefi = local_hw_uefi(NULL, NULL, NULL) == 0;
	long page = sysconf(_SC_PAGESIZE);
	const char *accel = NULL;
	struct statvfs st;
	unsigned n = 0;
	int r = qemu_accelerator(l->cache, l->user, &accel, e);

	r = r ?: vm_each(l, vm_count, &n, e);
	if (r < 0)
		return r;
	if (statvfs(l->dir, &st) < 0)
		return err_sys(e, "cannot look at '%s'", l->dir);
	*ret = json_pack("{s:s, s:I, s:i, s:i, s:I, s:I, s:[s, s*]}", "accelerator", accel, "memory",
			 (json_int_t)sysconf(_SC_PHYS_PAGES) * page, "cpus", (int)sysconf(_SC_NPROCESSORS_ONLN),
			 "instances", (int)n, "free", (json_int_t)(st.f_bavail * st.f_frsize), "total",
			 (json_int_t)(st.f_blocks * st.f_frsize), "firmware", "bios", uefi ? "uefi" : NULL);
	return *ret ? 0 : err_nomem(e);
}

/* ---- the table ---- */

static void vm_host_close(struct hypervisor *h)
{
	struct vm_host *host = host_of(h);

	if (host->l)
		host->l->p.ops->close(&host->l->p);
	free(host);
}

static const struct hypervisor_ops vm_ops = {
    .kind = "local",
    .capacity = vm_capacity,
    .list = vm_list,
    .get = vm_get,
    .define = vm_define,
    .remove = vm_remove,
    .start = vm_start,
    .stop = vm_stop,
    .set_add = vm_set_add,
    .set_fork = vm_set_fork,
    .set_snapshot = vm_set_snapshot,
    .set_use = vm_set_use,
    .set_drop = vm_set_drop,
    .screenshot = vm_screenshot,
    .serial = vm_serial,
    .close = vm_host_close,
};

int local_vm_open(const struct provider_settings *s, const json_t *settings, struct hypervisor **ret, struct err *e)
{
	struct vm_host *host = calloc(1, sizeof(*host));
	struct provider *p = NULL;
	struct local_path path;
	int r = host ? local_open(s, &p, e) : err_nomem(e);

	if (r == 0) {
		host->h.ops = &vm_ops;
		host->l = local_of(p);
		r = local_path(host->l, &path, e, "instances");
		r = r ?: io_mkdirs(path.s, 0755, e);
	}
	if (r < 0) {
		if (host)
			vm_host_close(&host->h);
		return r;
	}
	*ret = &host->h;
	return 0;
}
