/*
 * The hypervisor of replantd-scripted: $SCRIPT/world/instance.REF is a JSON object
 * {"settings","state","set","sizes","sets":[{"set","on","image","half","starts"}],"addresses"}, which tests may read,
 * write and change. Scripts (see scripted.c) are NAME.delay, .hold, .fail, .die (of the center, when the call begins)
 * and .dies (when it has done its work), where NAME is instance_get, instance_list, instance_capacity, instance_define,
 * instance_remove, instance_start, instance_stop, instance_screenshot, instance_serial, set_add, set_fork,
 * set_snapshot, set_use, set_drop. instance_stop.deaf: the power button does nothing; .waits: and is refused while it
 * is paused. world/serial.REF is the serial line.
 *
 * "starts" counts how often an instance was started on the set: what is written there. So what a disk holds is that of
 * the set in use and of all that it stands on, and "half" is a set that is only being made. What would spoil disks is
 * misuse: two calls at a time for one instance, use of a half set, a start that writes where others stand.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"
#include "provider/libvirt.h"
#include "provider/provider.h"
#include "scripted.h"

#define VM_MAX (1u << 20)

/* ---- the world's ---- */

static json_t *vm_load(const char *ref, struct err *e)
{
	_cleanup_free_ char *path = world_path("instance", ref), *text = NULL;
	json_t *vm = NULL;
	size_t n;

	if (path && io_read_file(path, VM_MAX, &text, &n, NULL) == 0)
		vm = json_loadb(text, n, 0, NULL);
	if (!vm)
		err_set(e, -ENOENT, "there is no instance '%s' here", ref);
	return vm;
}

static void vm_save(const char *ref, const json_t *vm)
{
	_cleanup_free_ char *text = json_dumps(vm, JSON_INDENT(1));

	must(text);
	world_put("instance", ref, text);
}

static const char *text_of(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key)) ?: "";
}

static bool is_running(const json_t *vm)
{
	return strcmp(text_of(vm, "state"), "running") == 0 || strcmp(text_of(vm, "state"), "paused") == 0;
}

static json_t *set_find(const json_t *vm, const char *set)
{
	json_t *s;
	size_t i;

	json_array_foreach(json_object_get(vm, "sets"), i, s) if (strcmp(text_of(s, "set"), set) == 0) return s;
	return NULL;
}

static bool set_bears(const json_t *vm, const char *set)
{
	json_t *s;
	size_t i;

	json_array_foreach(json_object_get(vm, "sets"), i, s) if (strcmp(text_of(s, "on"), set) == 0) return true;
	return false;
}

static json_t *set_new(json_t *vm, const char *set, const char *on, const char *image)
{
	json_t *s = json_pack("{s:s, s:s?, s:s?, s:i}", "set", set, "on", on, "image", image, "starts", 0);

	must(s);
	json_array_append_new(json_object_get(vm, "sets"), s);
	return s;
}

/* ---- one call at a time for an instance, of all centers ---- */

struct acting {
	const char *ref;
};

static int acting_begin(struct acting *a, const char *what, struct err *e)
{
	_cleanup_free_ char *path = world_path("acting", a->ref), *other = NULL;
	char text[64];
	int pid;

	if (path && io_read_file(path, sizeof(text), &other, NULL, NULL) == 0 && (pid = atoi(other)) > 0 &&
	    kill(pid, 0) == 0) {
		_cleanup_free_ char *both = str_printf("%s while %s", what, strchr(other, ' ') ?: "?");

		a->ref = NULL;
		return misuse(both, "of an instance", e);
	}
	snprintf(text, sizeof(text), "%d %s", getpid(), what);
	world_put("acting", a->ref, text);
	return 0;
}

static void acting_end(struct acting *a)
{
	if (a->ref)
		world_remove("acting", a->ref);
}
#define ACTING(of, what)                                                                                               \
	_cleanup_(acting_end) struct acting acting_ = {of};                                                            \
	if (acting_begin(&acting_, what, e) < 0)                                                                       \
	return -EINVAL

/* What is asked of an instance that must be there. */
static int vm_play(const char *name, const char *ref, const struct provider_watch *w, json_t **ret, struct err *e)
{
	int r = play(name, ref, w, e);

	if (r < 0)
		return r;
	*ret = vm_load(ref, e);
	return *ret ? 0 : -ENOENT;
}

static void dies(const char *name)
{
	if (script_has(name, "dies"))
		raise(SIGKILL);
}

/* ---- the calls ---- */

static int v_capacity(struct hypervisor *h, json_t **ret, struct err *e)
{
	int r = play("instance_capacity", "-", NULL, e);

	if (r == 0)
		*ret = json_pack("{s:s, s:I, s:i}", "accelerator", "none", "memory", (json_int_t)1 << 33, "cpus", 8);
	return r;
}

static json_t *seen_sets(const json_t *vm)
{
	json_t *list = json_array(), *s;
	size_t i;

	json_array_foreach(json_object_get(vm, "sets"), i, s) json_array_append_new(
	    list, json_pack("{s:O, s:O?, s:O?, s:I}", "set", json_object_get(s, "set"), "on", json_object_get(s, "on"),
			    "image", json_object_get(s, "image"), "allocated", (json_int_t)4096));
	return list;
}

/* A running system is up, unless the script says otherwise: instance_boot.stage, .failed. */
static json_t *boot_of(const json_t *vm)
{
	_cleanup_free_ char *stage = is_running(vm) ? script_read("instance_boot", "stage") : strdup("off");

	return json_pack("{s:s, s:b, s:s}", "stage", stage ?: "up", "failed", script_has("instance_boot", "failed"),
			 "text", "as the script says");
}

/* One disk of a GiB, unless the instance has "sizes". */
static json_t *disks_of(const json_t *vm)
{
	_cleanup_json_ json_t *one = json_pack("[I]", (json_int_t)1 << 30);
	json_t *sizes = json_object_get(vm, "sizes") ?: one, *disks = json_array(), *size;
	size_t i;

	json_array_foreach(sizes, i, size) json_array_append_new(
	    disks, json_pack("{s:O, s:s, s:I}", "size", size, "format", "qcow2", "allocated", (json_int_t)4096));
	return disks;
}

static json_t *seen(const char *ref, const json_t *vm)
{
	json_t *o = json_pack(
	    "{s:s, s:O, s:O, s:s, s:O, s:o, s:o, s:O?, s:O?, s:o}", "ref", ref, "name",
	    json_object_get(json_object_get(vm, "settings"), "name"), "state", json_object_get(vm, "state"), "arch",
	    "x86_64", "settings", json_object_get(vm, "settings"), "boot", boot_of(vm), "disks", disks_of(vm),
	    "addresses", json_object_get(vm, "addresses"), "set", json_object_get(vm, "set"), "sets", seen_sets(vm));

	must(o);
	return o;
}

static json_t *all_seen(void)
{
	_cleanup_free_ char *dir = str_printf("%s/world", script_dir);
	json_t *list = json_array();
	struct dirent *d;
	DIR *dh = dir ? opendir(dir) : NULL;

	while (dh && (d = readdir(dh))) {
		const char *ref = str_starts(d->d_name, "instance.") ? d->d_name + strlen("instance.") : "";
		_cleanup_json_ json_t *vm = *ref && !strchr(ref, '.') ? vm_load(ref, NULL) : NULL;

		if (vm)
			json_array_append_new(list, seen(ref, vm));
	}
	if (dh)
		closedir(dh);
	return list;
}

static int v_list(struct hypervisor *h, json_t **ret, struct err *e)
{
	int r = play("instance_list", "-", NULL, e);

	if (r == 0)
		*ret = all_seen();
	return r;
}

static int v_get(struct hypervisor *h, const char *ref, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *vm = NULL;
	int r = vm_play("instance_get", ref, NULL, &vm, e);

	if (r == 0)
		*ret = seen(ref, vm);
	return r;
}

static int v_define(struct hypervisor *h, const char *id, const json_t *settings, char ret_ref[HYPERVISOR_REF_MAX],
		    struct err *e)
{
	_cleanup_json_ json_t *vm = NULL, *full = NULL;
	int r;
	ACTING(id, "define");

	given("instance_define", settings);
	r = play("instance_define", id, NULL, e);
	if (r < 0)
		return r;
	vm = vm_load(id, NULL);
	if (vm && is_running(vm))
		return misuse("definition of a running instance", id, e);
	if (!vm)
		vm = json_pack("{s:s, s:[], s:[]}", "state", "off", "sets", "addresses");
	full =
	    json_pack("{s:i, s:i, s:s, s:s, s:s, s:s, s:s, s:[]}", "cpus", 1, "memory_mib", 512, "cpu", "host",
		      "firmware", "bios", "bus", "virtio", "network", "user", "mac", "52:54:00:00:00:01", "forwards");
	must(vm && full);
	json_object_update(full, (json_t *)(uintptr_t)settings);
	json_object_set(vm, "settings", full);
	vm_save(id, vm);
	dies("instance_define");
	snprintf(ret_ref, HYPERVISOR_REF_MAX, "%s", id);
	return 0;
}

static int v_remove(struct hypervisor *h, const char *ref, struct err *e)
{
	_cleanup_json_ json_t *vm = NULL;
	int r;
	ACTING(ref, "remove");

	r = vm_play("instance_remove", ref, NULL, &vm, e);
	if (r == -ENOENT)
		return 0;
	if (r < 0)
		return r;
	if (is_running(vm))
		return misuse("removal of a running instance", ref, e);
	world_remove("instance", ref);
	world_remove("serial", ref);
	dies("instance_remove");
	return 0;
}

static int v_start(struct hypervisor *h, const char *ref, struct err *e)
{
	_cleanup_json_ json_t *vm = NULL;
	json_t *set;
	int r;
	ACTING(ref, "start");

	r = vm_play("instance_start", ref, NULL, &vm, e);
	if (r < 0)
		return r;
	if (strcmp(text_of(vm, "state"), "running") == 0)
		return 0;
	set = set_find(vm, text_of(vm, "set"));
	if (!set)
		return misuse("start without disks", ref, e);
	if (set_bears(vm, text_of(vm, "set")))
		return misuse("start that writes where others stand", ref, e);
	json_object_set_new(set, "starts", json_integer(json_integer_value(json_object_get(set, "starts")) + 1));
	json_object_set_new(vm, "state", json_string("running"));
	json_object_set_new(vm, "addresses", json_pack("[s]", "10.0.2.15"));
	vm_save(ref, vm);
	dies("instance_start");
	return 0;
}

static int v_stop(struct hypervisor *h, const char *ref, double seconds, const struct provider_watch *w, struct err *e)
{
	_cleanup_json_ json_t *vm = NULL;
	int r;
	ACTING(ref, "stop");

	r = vm_play("instance_stop", ref, w, &vm, e);
	if (r < 0)
		return r;
	if (seconds > 0 && strcmp(text_of(vm, "state"), "paused") == 0 && script_has("instance_stop", "waits"))
		return err_set(e, -EBUSY, "it waits and hears no power button");
	for (double left = seconds; seconds > 0 && is_running(vm) && script_has("instance_stop", "deaf");
	     left -= 0.02) {
		if (w && w->cancelled(w->arg))
			return err_set(e, -ECANCELED, "given up");
		if (left <= 0)
			return err_set(e, -ETIMEDOUT, "it did not go off in %g s", seconds);
		nap();
	}
	json_object_set_new(vm, "state", json_string("off"));
	json_object_set_new(vm, "addresses", json_array());
	vm_save(ref, vm);
	dies("instance_stop");
	return 0;
}

static int v_set_add(struct hypervisor *h, const char *ref, const char *set, const char *image, const json_t *disks,
		     const json_t *sizes, const struct provider_watch *w, struct err *e)
{
	_cleanup_json_ json_t *vm = vm_load(ref, e);
	json_t *s;
	int r;
	ACTING(ref, "set_add");

	if (!vm)
		return -ENOENT;
	if (!world_has("image", image, NULL) || json_array_size(disks) == 0)
		return misuse("set of no image", image, e);
	s = set_find(vm, set);
	if (!s) {
		s = set_new(vm, set, NULL, image);
		json_object_set_new(s, "half", json_true());
		vm_save(ref, vm);
	}
	if (w)
		emit(w, json_pack("{s:s, s:i}", "event", "set", "percent", 42));
	r = play("set_add", ref, w, e);
	if (r < 0)
		return r;
	json_object_del(s, "half");
	vm_save(ref, vm);
	dies("set_add");
	return 0;
}

static int v_set_fork(struct hypervisor *h, const char *ref, const char *from, const char *set, struct err *e)
{
	_cleanup_json_ json_t *vm = NULL;
	json_t *below;
	int r;
	ACTING(ref, "set_fork");

	r = vm_play("set_fork", ref, NULL, &vm, e);
	if (r < 0)
		return r;
	below = set_find(vm, from);
	if (!below || json_is_true(json_object_get(below, "half")))
		return misuse("fork of no set", ref, e);
	if (is_running(vm) && strcmp(text_of(vm, "set"), from) == 0)
		return misuse("fork of what is written to", ref, e);
	if (!set_find(vm, set))
		set_new(vm, set, from, NULL);
	vm_save(ref, vm);
	dies("set_fork");
	return 0;
}

static int v_set_snapshot(struct hypervisor *h, const char *ref, const char *set, struct err *e)
{
	_cleanup_json_ json_t *vm = NULL;
	int r;
	ACTING(ref, "set_snapshot");

	r = vm_play("set_snapshot", ref, NULL, &vm, e);
	if (r < 0)
		return r;
	if (!set_find(vm, text_of(vm, "set")))
		return misuse("snapshot of no disks", ref, e);
	if (strcmp(text_of(vm, "set"), set) == 0)
		return 0;
	if (!set_find(vm, set))
		set_new(vm, set, text_of(vm, "set"), NULL);
	json_object_set_new(vm, "set", json_string(set));
	vm_save(ref, vm);
	dies("set_snapshot");
	return 0;
}

static int v_set_use(struct hypervisor *h, const char *ref, const char *set, struct err *e)
{
	_cleanup_json_ json_t *vm = NULL;
	json_t *s;
	int r;
	ACTING(ref, "set_use");

	r = vm_play("set_use", ref, NULL, &vm, e);
	if (r < 0)
		return r;
	if (is_running(vm))
		return err_set(e, -EBUSY, "the instance is running");
	s = set_find(vm, set);
	if (!s || json_is_true(json_object_get(s, "half")))
		return misuse("use of no whole set", ref, e);
	json_object_set_new(vm, "set", json_string(set));
	vm_save(ref, vm);
	dies("set_use");
	return 0;
}

static int v_set_drop(struct hypervisor *h, const char *ref, const char *set, struct err *e)
{
	_cleanup_json_ json_t *vm = NULL;
	json_t *sets;
	int r;
	ACTING(ref, "set_drop");

	r = vm_play("set_drop", ref, NULL, &vm, e);
	if (r < 0)
		return r;
	if (!id_is("set", set))
		return err_set(e, -EPERM, "the original disks are left alone");
	if (strcmp(text_of(vm, "set"), set) == 0 || set_bears(vm, set))
		return err_set(e, -EBUSY, "the set is in use");
	sets = json_object_get(vm, "sets");
	for (size_t i = json_array_size(sets); i-- > 0;)
		if (strcmp(text_of(json_array_get(sets, i), "set"), set) == 0)
			json_array_remove(sets, i);
	vm_save(ref, vm);
	dies("set_drop");
	return 0;
}

static int v_screenshot(struct hypervisor *h, const char *ref, const char *path, struct err *e)
{
	static const char png[] = "\x89PNG\r\n\x1a\nof an instance";
	_cleanup_json_ json_t *vm = NULL;
	int r = vm_play("instance_screenshot", ref, NULL, &vm, e);

	if (r < 0)
		return r;
	if (!is_running(vm))
		return err_set(e, -ENOTCONN, "the instance is off");
	return io_write_file_atomic(path, png, sizeof(png) - 1, 0600, e);
}

static int v_serial(struct hypervisor *h, const char *ref, uint64_t since, struct str *ret, uint64_t *ret_end,
		    struct err *e)
{
	_cleanup_free_ char *path = world_path("serial", ref), *text = NULL;
	_cleanup_json_ json_t *vm = NULL;
	size_t n = 0;
	int r = vm_play("instance_serial", ref, NULL, &vm, e);

	if (r < 0)
		return r;
	if (path && io_read_file(path, VM_MAX, &text, &n, NULL) == 0 && since < n)
		str_add_mem(ret, text + since, n - (size_t)since);
	*ret_end = n;
	return str_ok(ret) ? 0 : err_nomem(e);
}

static void v_close(struct hypervisor *h)
{
}

static const struct hypervisor_ops vms_ops = {
    .kind = "scripted",
    .capacity = v_capacity,
    .list = v_list,
    .get = v_get,
    .define = v_define,
    .remove = v_remove,
    .start = v_start,
    .stop = v_stop,
    .set_add = v_set_add,
    .set_fork = v_set_fork,
    .set_snapshot = v_set_snapshot,
    .set_use = v_set_use,
    .set_drop = v_set_drop,
    .screenshot = v_screenshot,
    .serial = v_serial,
    .close = v_close,
};

int vms_open(const char *kind, const struct provider_settings *s, const json_t *settings, struct hypervisor **ret,
	     struct err *e)
{
	static struct hypervisor h = {.ops = &vms_ops};
	int r;

	if (strcmp(kind, "libvirt") == 0) /* the real one, for its driver "test" */
		return libvirt_open(s, settings, ret, e);
	r = play("hypervisor_open", kind, NULL, e);
	if (r == 0)
		*ret = &h;
	return r;
}

bool vms_stand_on(const char *image)
{
	_cleanup_json_ json_t *list = all_seen();
	json_t *vm, *s;
	size_t i, k;

	json_array_foreach(list, i, vm) json_array_foreach(json_object_get(vm, "sets"), k, s)
	{
		if (strcmp(text_of(s, "image"), image) == 0)
			return true;
	}
	return false;
}
