/*
 * What the disks of an instance hold. A set is made beside (SET.new) and renamed, so there is a whole one or none;
 * which one is in use is a file that is exchanged by a rename. A set that something stands on is never written to
 * again.
 *
 * A snapshot of an instance that runs: QEMU goes on in the new set for all disks at once, then our files say so.
 * Before, `next` says what is about to happen. Killed in between, whoever comes next asks QEMU which files it writes
 * to. When QEMU has died, too, the new set is the right one in any case: either QEMU wrote to it, or it is empty and
 * reads as what it stands on.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/proc.h"
#include "base/str.h"
#include "provider/local_vm_int.h"

#define SET_SIZE_MAX  (INT64_C(1) << 50)
#define SET_DEPTH_MAX (VM_SETS_MAX + 8)

/* ---- names and what is written of them ---- */

static int set_check_name(const char *set, struct err *e)
{
	size_t n = strlen(set);

	if (n && n < HYPERVISOR_SET_MAX && *set != '-' && strspn(set, "abcdefghijklmnopqrstuvwxyz0123456789-") == n)
		return 0;
	return err_set(e, -EINVAL, "'%s' is no name of a set", set);
}

int vm_set_in_use(const struct vm *vm, char ret[HYPERVISOR_SET_MAX], struct err *e)
{
	_cleanup_free_ char *text = NULL;
	struct local_path path;
	int r = vm_path(vm, &path, e, "use");

	*ret = '\0';
	r = r ?: local_exists(path.s, e);
	r = r > 0 ? local_read_file(path.s, 256, &text, NULL, e) : r;
	if (r < 0 || !text)
		return r;
	text[strcspn(text, "\n")] = '\0';
	r = set_check_name(text, e);
	if (r < 0)
		return err_prefix(e, "'%s'", path.s);
	snprintf(ret, HYPERVISOR_SET_MAX, "%s", text);
	return 0;
}

int vm_set_write_use(const struct vm *vm, const char *set, struct err *e)
{
	char text[HYPERVISOR_SET_MAX + 1];
	struct local_path path;
	int n = snprintf(text, sizeof(text), "%s\n", set), r = vm_path(vm, &path, e, "use");

	return r ?: io_write_file_atomic(path.s, text, (size_t)n, 0600, e);
}

static const char *set_on(const json_t *set)
{
	const char *on = json_string_value(json_object_get(set, "on"));

	return on && set_check_name(on, NULL) == 0 ? on : NULL;
}

int vm_set_is_there(const struct vm *vm, const char *set, struct err *e)
{
	struct local_path path;
	int r = vm_path(vm, &path, e, "sets/%s", set);

	return r ?: local_exists(path.s, e);
}

int vm_set_read(const struct vm *vm, const char *set, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *o = NULL;
	struct local_path path;
	int r = set_check_name(set, e);

	r = r ?: vm_path(vm, &path, e, "sets/%s/set.json", set);
	r = r ?: local_exists(path.s, e);
	if (r == 0)
		return err_set(e, -ENOENT, "instance '%s' has no set '%s'", vm->ref, set);
	r = r < 0 ? r : local_read_json(path.s, &o, e);
	if (r == -EINVAL)
		err_prefix(e, "'%s'", path.s);
	if (r < 0)
		return r;
	if (!json_array_size(json_object_get(o, "disks")) ||
	    (!set_on(o) && !json_string_length(json_object_get(o, "image"))))
		return err_set(e, -EINVAL, "'%s' is damaged", path.s);
	*ret = take_ptr(&o);
	return 0;
}

/* One for the list; *ret stays NULL when it is gone meanwhile. */
static int set_list_one(const struct vm *vm, const char *set, json_t **ret, struct err *e)
{
	struct err why = {0};
	int r = vm_set_read(vm, set, ret, &why);

	if (r == -ENOENT && vm_set_is_there(vm, set, NULL) == 0)
		return 0;
	if (r < 0)
		*ret = json_pack("{s:s}", "problem", why.msg);
	if (!*ret || json_object_set_new(*ret, "set", json_string(set)) < 0)
		return err_nomem(e);
	return 0;
}

/* What was being made or removed is none. */
int vm_sets_list(const struct vm *vm, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *list = json_array();
	struct local_path dir;
	struct dirent *d;
	DIR *names;
	int r = list ? vm_path(vm, &dir, e, "sets") : err_nomem(e);

	if (r < 0)
		return r;
	names = opendir(dir.s);
	if (!names)
		return errno == ENOENT ? (*ret = take_ptr(&list), 0) : err_sys(e, "cannot read '%s'", dir.s);
	while (r == 0 && (errno = 0, d = readdir(names))) {
		json_t *o = NULL;

		if (set_check_name(d->d_name, NULL) < 0)
			continue;
		r = set_list_one(vm, d->d_name, &o, e);
		if (o && json_array_append_new(list, o) < 0)
			r = err_nomem(e);
	}
	if (r == 0 && errno)
		r = err_sys(e, "cannot read '%s'", dir.s);
	closedir(names);
	if (r == 0)
		*ret = take_ptr(&list);
	return r;
}

/* Of one whose set.json can't be read: the head of its first disk says it as well, if that can be read. */
static bool set_disk_on(const struct vm *vm, const char *set, const char *on)
{
	char backing[LOCAL_BACKING_MAX], wanted[HYPERVISOR_SET_MAX + 32];
	struct local_path path;

	snprintf(wanted, sizeof(wanted), "../%s/disk0.qcow2", on);
	return vm_path(vm, &path, NULL, "sets/%s/disk0.qcow2", set) == 0 && local_backing(path.s, backing, NULL) == 0 &&
	       strcmp(backing, wanted) == 0;
}

/* -EBUSY when another set stands on it. `sure`: also when that can't be told of one. */
static int set_check_alone(const struct vm *vm, const char *set, bool sure, struct err *e)
{
	_cleanup_json_ json_t *list = NULL;
	json_t *o;
	size_t i;
	int r = vm_sets_list(vm, &list, e);

	json_array_foreach(list, i, o)
	{
		const char *other = json_string_value(json_object_get(o, "set"));
		const char *problem = json_string_value(json_object_get(o, "problem"));

		if (r < 0 || strcmp(other, set) == 0)
			continue;
		if (problem ? set_disk_on(vm, other, set) : set_on(o) && strcmp(set_on(o), set) == 0)
			r = err_set(e, -EBUSY,
				    "set '%s' stays as it is, for set '%s' stands on it (put a new set on top of it)",
				    set, other);
		else if (problem && sure)
			r = err_set(e, -EBUSY,
				    "set '%s' stays, for set '%s' may stand on it and can't be read (mend or remove "
				    "that first): %s",
				    set, other, problem);
	}
	return r;
}

/* ---- telling ---- */

static int set_blocks(const struct vm *vm, const char *set, size_t i, json_int_t *ret, struct err *e)
{
	struct local_path path;
	struct stat st;
	int r = vm_path(vm, &path, e, "sets/%s/disk%zu.qcow2", set, i);

	*ret = r == 0 && lstat(path.s, &st) == 0 ? (json_int_t)st.st_blocks * 512 : 0;
	return r;
}

static int set_tell(const struct vm *vm, const json_t *set, bool used, json_t *o, struct err *e)
{
	const char *name = json_string_value(json_object_get(set, "set"));
	const char *on = set_on(set), *image = json_string_value(json_object_get(set, "image"));
	const char *problem = json_string_value(json_object_get(set, "problem"));
	json_int_t sum = 0, one;
	json_t *disk;
	size_t i;
	int r = 0;

	json_array_foreach(json_object_get(set, "disks"), i, disk)
	{
		r = r ?: set_blocks(vm, name, i, &one, e);
		sum += r == 0 ? one : 0;
		if (used)
			json_array_append_new(json_object_get(o, "disks"),
					      json_pack("{s:O, s:s, s:I}", "size", json_object_get(disk, "size"),
							"format", "qcow2", "allocated", one));
	}
	if (problem)
		json_object_set_new(o, "problem", json_sprintf("set '%s' can't be read: %s", name, problem));
	json_array_append_new(json_object_get(o, "sets"), json_pack("{s:s, s:s?, s:s?, s:I}", "set", name, "on", on,
								    "image", image, "allocated", sum));
	return r;
}

int vm_sets_tell(const struct vm *vm, json_t *o, struct err *e)
{
	_cleanup_json_ json_t *list = NULL;
	char used[HYPERVISOR_SET_MAX];
	json_t *set;
	size_t i;
	int r = vm_sets_list(vm, &list, e);

	json_object_set_new(o, "sets", json_array());
	json_object_set_new(o, "disks", json_array());
	r = r ?: vm_set_in_use(vm, used, e);
	json_object_set_new(o, "set", r == 0 && used[0] ? json_string(used) : json_null());
	json_array_foreach(list, i, set)
	{
		const char *name = json_string_value(json_object_get(set, "set"));

		r = r ?: set_tell(vm, set, strcmp(name, used) == 0, o, e);
	}
	return r;
}

/* ---- making one ---- */

static int set_overlay(const struct vm *vm, const char *path, const json_t *disk, struct err *e)
{
	const char *backing = json_string_value(json_object_get(disk, "base"));
	const char *format = json_string_value(json_object_get(disk, "format"));
	char size[32];
	/* -u: what it stands on isn't opened, for a QEMU may have it. */
	const char *const argv[] = {"qemu-img", "create", "-q",    "-u", "-f", "qcow2", "-F",
				    format,     "-b",     backing, path, size, NULL};

	snprintf(size, sizeof(size), "%lld", (long long)json_integer_value(json_object_get(disk, "size")));
	if (!backing || !format)
		return err_set(e, -EINVAL, "'%s' would stand on nothing", path);
	return proc_run_as(argv, vm->l->user, 65536, NULL, e);
}

static int set_fill(const struct vm *vm, const json_t *o, const char *dir, struct err *e)
{
	char path[PATH_MAX + 32];
	json_t *disk;
	size_t i;
	int r = local_fresh_dir(vm->l, dir, e);

	json_array_foreach(json_object_get(o, "disks"), i, disk)
	{
		snprintf(path, sizeof(path), "%s/disk%zu.qcow2", dir, i);
		r = r ?: set_overlay(vm, path, disk, e);
		vm_fault();
	}
	/* Names first: then nobody exchanges a file that is ours. */
	r = r ?: local_take_dir(vm->l, dir, e);
	for (i = 0; r == 0 && i < json_array_size(json_object_get(o, "disks")); i++) {
		snprintf(path, sizeof(path), "%s/disk%zu.qcow2", dir, i);
		r = local_take_file(vm->l, path, e);
		r = r ?: local_sync(path, e);
	}
	snprintf(path, sizeof(path), "%s/set.json", dir);
	return r ?: local_write_json(path, o, e);
}

/* `o`: its set.json. The image it stands on is held by who calls. */
int vm_set_make(const struct vm *vm, const char *set, const json_t *o, struct err *e)
{
	struct local_path fresh, path, dir;
	int r = vm_path(vm, &fresh, e, "sets/%s.new", set);

	r = r ?: vm_path(vm, &path, e, "sets/%s", set);
	r = r ?: vm_path(vm, &dir, e, "sets");
	if (r < 0)
		return r;
	r = set_fill(vm, o, fresh.s, e);
	vm_fault();
	if (r == 0 && rename(fresh.s, path.s) < 0)
		r = err_sys(e, "cannot make '%s'", path.s);
	vm_fault();
	if (r < 0)
		io_remove_tree(fresh.s, NULL);
	return r ?: local_sync(dir.s, e);
}

int vm_set_look(struct vm *vm, struct err *e)
{
	struct vm_now now;
	int r = vm_look(vm, &now, e);

	/* What it writes to can't be told. */
	if (r == 0 && now.state == VM_RUNNING && !vm->qemu)
		r = err_set(e, -EBUSY, "instance '%s': %s", vm->ref, now.problem);
	return r;
}

static int set_count(const struct vm *vm, struct err *e)
{
	_cleanup_json_ json_t *list = NULL;
	int r = vm_sets_list(vm, &list, e);

	if (r == 0 && json_array_size(list) >= VM_SETS_MAX)
		r = err_set(e, -EMLINK, "instance '%s' has %u sets, the most there can be (remove snapshots)", vm->ref,
			    VM_SETS_MAX);
	return r;
}

int vm_set_room(const struct vm *vm, const char *set, struct err *e)
{
	struct local_path path;
	int r = set_check_name(set, e);

	r = r ?: vm_path(vm, &path, e, "sets/%s", set);
	r = r ?: local_exists(path.s, e);
	if (r > 0)
		return err_set(e, -EEXIST, "instance '%s' has another set '%s'", vm->ref, set);
	return r ?: set_count(vm, e);
}

/* ---- on an image ---- */

struct set_image {
	const char *image;
	const json_t *disks, *sizes;
};

static int set_disk_size(const json_t *sizes, size_t i, uint64_t least, uint64_t *ret, struct err *e)
{
	const json_t *v = json_array_get(sizes, i);

	*ret = least;
	if (!v || json_is_null(v))
		return 0;
	if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > SET_SIZE_MAX)
		return err_set(e, -EINVAL, "the size of disk %zu is no number of bytes", i);
	*ret = MAX(least, util_div_up((uint64_t)json_integer_value(v), 512) * 512);
	return 0;
}

/* What the caller says of a disk must be a file of that image, of ours. */
static int set_image_disk(const struct vm *vm, const struct set_image *from, size_t i, json_t *disks, struct err *e)
{
	const json_t *disk = json_array_get(from->disks, i);
	const char *path = NULL, *format = "qcow2", *name;
	uint64_t least = 0, size = 0;
	struct local_path dir;
	char base[128];
	int r = jsn_get_str(disk, "path", true, PATH_MAX, &path, e);

	r = r ?: jsn_get_str(disk, "format", false, 16, &format, e);
	r = r ?: jsn_get_u64(disk, "size", true, 0, SET_SIZE_MAX, &least, e);
	r = r ?: set_disk_size(from->sizes, i, least, &size, e);
	r = r ?: local_path(vm->l, &dir, e, "images/%s/", from->image);
	if (r < 0)
		return r;
	name = str_starts(path, dir.s) ? path + strlen(dir.s) : "";
	if (!*name || strchr(name, '/') || *name == '.' || strlen(name) > 32)
		return err_set(e, -EINVAL, "disk %zu of image '%s' is not where this host keeps it: '%s'", i,
			       from->image, path);
	if (strcmp(format, "qcow2") != 0 && strcmp(format, "raw") != 0)
		return err_set(e, -EINVAL, "disk %zu of image '%s' has the format '%s'", i, from->image, format);
	if (access(path, F_OK) < 0)
		return err_sys(e, "disk %zu of image '%s' is not there", i, from->image);
	snprintf(base, sizeof(base), "../../../../images/%s/%s", from->image, name);
	json_array_append_new(disks,
			      json_pack("{s:s, s:s, s:I}", "base", base, "format", format, "size", (json_int_t)size));
	return 0;
}

static int set_of_image(const struct vm *vm, const char *set, const struct set_image *from, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *o = json_pack("{s:s, s:n, s:s, s:[]}", "set", set, "on", "image", from->image, "disks");
	size_t n = json_array_size(from->disks);
	struct local_path dir;
	int r = o ? local_path(vm->l, &dir, e, "images/%s", from->image) : err_nomem(e);

	if (r == 0 && (!n || n > LOCAL_DISKS_MAX))
		r = err_set(e, -EINVAL, "image '%s' has %zu disks (an instance has 1 to %u)", from->image, n,
			    LOCAL_DISKS_MAX);
	/* The instance may have more disks than the image: those sizes are of no use. */
	if (r == 0 && from->sizes && !json_is_array(from->sizes))
		r = err_set(e, -EINVAL, "the sizes are no list");
	for (size_t i = 0; r == 0 && i < n; i++)
		r = set_image_disk(vm, from, i, json_object_get(o, "disks"), e);
	if (r < 0)
		return r;
	json_object_set_new(o, "boot_disk", json_integer((json_int_t)local_image_boot_disk(dir.s, n)));
	*ret = take_ptr(&o);
	return 0;
}

/* 1: it is there already, and the one that is wanted. */
static int set_is_made(const struct vm *vm, const char *set, const char *key, const char *value, struct err *e)
{
	_cleanup_json_ json_t *had = NULL;
	struct local_path path;
	const char *is;
	int r = vm_path(vm, &path, e, "sets/%s", set);

	r = r ?: local_exists(path.s, e);
	r = r > 0 ? vm_set_read(vm, set, &had, e) : r;
	if (r < 0 || !had)
		return r;
	is = json_string_value(json_object_get(had, key));
	return is && strcmp(is, value) == 0 ? 1
					    : err_set(e, -EEXIST, "instance '%s' has another set '%s'", vm->ref, set);
}

static void set_tell_percent(const struct provider_watch *w, double percent)
{
	_cleanup_json_ json_t *event = json_pack("{s:s, s:f}", "event", "set", "percent", percent);

	if (event)
		local_tell(w, event);
}

static int set_add_locked(struct vm *vm, const char *set, const struct set_image *from, struct err *e)
{
	_cleanup_json_ json_t *o = NULL;
	_cleanup_close_ int all = -1;
	int r = vm_set_look(vm, e);

	r = r ?: set_is_made(vm, set, "image", from->image, e);
	if (r != 0)
		return MIN(r, 0);
	r = set_count(vm, e);
	r = r ?: vm_lock_all(vm->l, &all, e);
	r = r ?: set_of_image(vm, set, from, &o, e);
	return r ?: vm_set_make(vm, set, o, e);
}

int vm_set_add(struct hypervisor *h, const char *ref, const char *set, const char *image, const json_t *disks,
	       const json_t *sizes, const struct provider_watch *w, struct err *e)
{
	const struct set_image from = {image, disks, sizes};
	char chain[ID_MAX] = "";
	struct local *l = ((struct vm_host *)(void *)h)->l;
	struct vm vm;
	int r = set_check_name(set, e);

	r = r ?: local_check_id("image", image, e);
	set_tell_percent(w, 0);
	/* qemu-img opens what is below the image. */
	r = r ?: local_chain_share_image(l, image, chain, w, e);
	r = r ?: vm_open(h, ref, false, &vm, e);
	if (r == 0) {
		r = set_add_locked(&vm, set, &from, e);
		vm_close(&vm);
	}
	local_chain_unshare(l, chain);
	if (r == 0)
		set_tell_percent(w, 100);
	return r;
}

/* ---- on another set ---- */

int vm_set_of_set(const struct vm *vm, const char *from, const char *set, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *o = NULL;
	json_t *disk;
	size_t i;
	int r = vm_set_read(vm, from, &o, e);

	if (r < 0)
		return r;
	json_object_set_new(o, "set", json_string(set));
	json_object_set_new(o, "on", json_string(from));
	json_object_set_new(o, "image", json_null());
	json_array_foreach(json_object_get(o, "disks"), i, disk)
	{
		json_object_set_new(disk, "base", json_sprintf("../%s/disk%zu.qcow2", from, i));
		json_object_set_new(disk, "format", json_string("qcow2"));
	}
	*ret = take_ptr(&o);
	return 0;
}

/* Its files change hands: the user's, who may write them then, or ours. */
int vm_set_hand(const struct vm *vm, const char *set, bool lend, struct err *e)
{
	_cleanup_json_ json_t *o = NULL;
	struct local_path path;
	int r = vm_set_read(vm, set, &o, e);

	for (size_t i = 0; r == 0 && i < json_array_size(json_object_get(o, "disks")); i++) {
		r = vm_path(vm, &path, e, "sets/%s/disk%zu.qcow2", set, i);
		r = r ?: lend ? local_lend_file(vm->l, path.s, e) : local_take_file(vm->l, path.s, e);
	}
	return r;
}

static int set_check_overlay(const struct vm *vm, size_t i, const char *path, const char *base, const char *format,
			     struct err *e)
{
	struct err why = {0};
	int r = local_check_overlay(vm->l, path, base, format, NULL, &why);

	if (r == -EPERM)
		return err_set(e, r,
			       "disk %zu of instance '%s' refers to other files than '%s' (go back to a snapshot, or "
			       "migrate again): '%s'",
			       i, vm->ref, base, path);
	return r < 0 ? err_set(e, r, "disk %zu of instance '%s' can't be checked: %s", i, vm->ref, why.msg) : 0;
}

/* What stands on what, from `set` down, is what we made: QEMU had these files, and the guest may have broken into it.
 */
static int set_check_files(const struct vm *vm, const json_t *set, const char *name, struct err *e)
{
	json_t *disk;
	size_t i;
	int r = 0;

	json_array_foreach(json_object_get(set, "disks"), i, disk)
	{
		const char *base = json_string_value(json_object_get(disk, "base")) ?: "";
		const char *format = json_string_value(json_object_get(disk, "format")) ?: "";
		struct local_path path;
		char below[PATH_MAX + 256];
		struct stat st;

		r = r ?: vm_path(vm, &path, e, "sets/%s/disk%zu.qcow2", name, i);
		if (r == 0 && (lstat(path.s, &st) < 0 || !S_ISREG(st.st_mode)))
			r = err_set(e, -ENOENT, "disk %zu of instance '%s' is missing: '%s'", i, vm->ref, path.s);
		snprintf(below, sizeof(below), "%s/sets/%s/%s", vm->dir.s, name, base);
		if (r == 0 && access(below, F_OK) < 0)
			r = err_sys(e, "what disk %zu of instance '%s' stands on is missing: '%s'", i, vm->ref, below);
		r = r ?: set_check_overlay(vm, i, path.s, base, format, e);
	}
	return r;
}

int vm_set_ready(const struct vm *vm, const char *set, struct err *e)
{
	char name[HYPERVISOR_SET_MAX];
	int r = set_check_alone(vm, set, false, e);

	snprintf(name, sizeof(name), "%s", set);
	for (unsigned depth = 0; r == 0; depth++) {
		_cleanup_json_ json_t *o = NULL;

		if (depth == SET_DEPTH_MAX)
			return err_set(e, -ELOOP, "sets of instance '%s' stand on each other in a circle", vm->ref);
		r = vm_set_read(vm, name, &o, e);
		r = r ?: set_check_files(vm, o, name, e);
		r = r ?: vm_set_hand(vm, name, depth == 0, e);
		if (r < 0 || !set_on(o))
			break;
		snprintf(name, sizeof(name), "%s", set_on(o));
	}
	return r;
}

static int set_fork_locked(struct vm *vm, const char *from, const char *set, struct err *e)
{
	_cleanup_json_ json_t *o = NULL;
	char used[HYPERVISOR_SET_MAX];
	int r = vm_set_look(vm, e);

	r = r ?: set_is_made(vm, set, "on", from, e);
	if (r != 0)
		return MIN(r, 0);
	r = set_count(vm, e);
	r = r ?: vm_set_in_use(vm, used, e);
	if (r == 0 && strcmp(used, from) == 0)
		return err_set(e, -EBUSY, "set '%s' is in use and changes (make a snapshot of it)", from);
	r = r ?: vm_set_of_set(vm, from, set, &o, e);
	/* Ours from now on: it was in use before, perhaps. */
	r = r ?: vm_set_hand(vm, from, false, e);
	return r ?: vm_set_make(vm, set, o, e);
}

int vm_set_fork(struct hypervisor *h, const char *ref, const char *from, const char *set, struct err *e)
{
	struct vm vm;
	int r = set_check_name(set, e);

	r = r ?: set_check_name(from, e);
	r = r ?: vm_open(h, ref, false, &vm, e);
	if (r < 0)
		return r;
	r = set_fork_locked(&vm, from, set, e);
	vm_close(&vm);
	return r;
}

/* ---- in use ---- */

static int set_use_locked(struct vm *vm, const char *set, struct err *e)
{
	_cleanup_json_ json_t *o = NULL;
	char used[HYPERVISOR_SET_MAX];
	int r = vm_check_off(vm, e);

	r = r ?: vm_set_read(vm, set, &o, e);
	r = r ?: vm_set_in_use(vm, used, e);
	if (r < 0 || strcmp(used, set) == 0)
		return r;
	r = set_check_alone(vm, set, false, e);
	r = r ?: set_check_files(vm, o, set, e);
	vm_fault();
	r = r ?: vm_set_write_use(vm, set, e);
	vm_fault();
	/* Nobody changes the other any more, until it is put back. One that is gone or damaged is no reason to stay. */
	if (r == 0 && used[0])
		vm_set_hand(vm, used, false, NULL);
	return r;
}

int vm_set_use(struct hypervisor *h, const char *ref, const char *set, struct err *e)
{
	struct vm vm;
	int r = set_check_name(set, e);

	r = r ?: vm_open(h, ref, false, &vm, e);
	if (r < 0)
		return r;
	r = set_use_locked(&vm, set, e);
	vm_close(&vm);
	return r;
}

int vm_set_remove(struct vm *vm, const char *set, struct err *e)
{
	struct local_path path, gone, fresh;
	int r = vm_path(vm, &path, e, "sets/%s", set);

	r = r ?: vm_path(vm, &gone, e, "sets/%s.gone", set);
	r = r ?: vm_path(vm, &fresh, e, "sets/%s.new", set);
	r = r ?: io_remove_tree(fresh.s, e);
	r = r ?: io_remove_tree(gone.s, e);
	if (r == 0 && rename(path.s, gone.s) < 0)
		return errno == ENOENT ? 0 : err_sys(e, "cannot remove '%s'", path.s);
	vm_fault();
	return r ?: io_remove_tree(gone.s, e);
}

static int set_drop_locked(struct vm *vm, const char *set, struct err *e)
{
	char used[HYPERVISOR_SET_MAX];
	int r = vm_set_look(vm, e);

	r = r ?: vm_set_in_use(vm, used, e);
	if (r == 0 && strcmp(used, set) == 0)
		return err_set(e, -EBUSY, "set '%s' is in use", set);
	r = r ?: set_check_alone(vm, set, true, e);
	return r ?: vm_set_remove(vm, set, e);
}

int vm_set_drop(struct hypervisor *h, const char *ref, const char *set, struct err *e)
{
	struct vm vm;
	int r = set_check_name(set, e);

	r = r ?: vm_open(h, ref, false, &vm, e);
	if (r < 0)
		return r;
	r = set_drop_locked(&vm, set, e);
	vm_close(&vm);
	return r;
}
