/* A set becomes a snapshot while the instance goes on in a new one, also when it runs; and what sets keep from going.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/err.h"
#include "base/id.h"
#include "base/jsn.h"
#include "base/str.h"
#include "provider/local_vm_int.h"

#define HOLD_SECONDS   60.0 /* for layers that are being merged */
#define HOLD_DEPTH_MAX 64
#define NODE_SIZE      16 /* of what the new nodes of a snapshot begin with; "-disk63" follows */

/* ---- the end of one ---- */

/* QEMU writes to the new set, or will. */
static int snap_finish(struct vm *vm, const char *set, struct err *e)
{
	_cleanup_json_ json_t *o = NULL;
	char used[HYPERVISOR_SET_MAX];
	const char *on;
	int r = vm_set_read(vm, set, &o, e);

	r = r ?: vm_set_in_use(vm, used, e);
	if (r < 0)
		return r;
	on = json_string_value(json_object_get(o, "on"));
	if (strcmp(used, set) != 0 && (!on || strcmp(on, used) != 0))
		return err_set(e, -EIO, "the snapshot '%s' of instance '%s' was cut off, and what is in use is another",
			       set, vm->ref);
	r = vm_set_write_use(vm, set, e);
	vm_fault();
	r = r ?: on ? vm_set_hand(vm, on, false, e) : 0;
	vm_fault();
	return r ?: vm_unlink(vm, "next", e);
}

static int snap_undo(struct vm *vm, const char *set, struct err *e)
{
	int r = vm_set_remove(vm, set, e);

	return r ?: vm_unlink(vm, "next", e);
}

/* Does QEMU write to the nodes of this snapshot? All disks or none: it was one transaction. 1 or 0. */
static int snap_is_done(struct vm *vm, const char *nodes, struct err *e)
{
	char node[QEMU_NODE_MAX];
	int r = qemu_disk_node(vm->qemu, 0, node, e);

	return r < 0 ? r : str_starts(node, nodes) && node[strlen(nodes)] == '-';
}

/* A connection that ended says nothing of QEMU itself. */
static int snap_connect(struct vm *vm, struct err *e)
{
	struct vm_now now = {0};
	int r;

	if (!vm->qemu || !qemu_ended(vm->qemu))
		return 0;
	qemu_stop(vm->qemu);
	vm->qemu = NULL;
	r = vm_connect(vm, &now, e);
	return r > 0 && !vm->qemu ? err_set(e, -EBUSY, "instance '%s': %s", vm->ref, now.problem) : MIN(r, 0);
}

int vm_set_settle(struct vm *vm, struct err *e)
{
	_cleanup_json_ json_t *next = NULL, *o = NULL;
	const char *set = NULL, *nodes = NULL;
	struct local_path path;
	struct err why = {0};
	int r = vm_path(vm, &path, e, "next");

	r = r ?: local_exists(path.s, e);
	if (r <= 0)
		return r;
	r = local_read_json(path.s, &next, e);
	r = r ?: jsn_get_str(next, "set", true, HYPERVISOR_SET_MAX - 1, &set, e);
	r = r ?: jsn_get_str(next, "node", true, NODE_SIZE, &nodes, e);
	r = r ?: snap_connect(vm, e);
	if (r < 0)
		return r;
	if (vm->qemu) {
		r = snap_is_done(vm, nodes, e);
		return r < 0 ? r : r ? snap_finish(vm, set, e) : snap_undo(vm, set, e);
	}
	/* Whether QEMU wrote to it or it is still empty: it has what is right. */
	r = vm_set_read(vm, set, &o, &why);
	if (r == 0)
		return snap_finish(vm, set, e);
	/* Only one that was never made is undone: what can't be read may have all that is new. */
	r = r == -ENOENT ? vm_set_is_there(vm, set, e) : r;
	if (r == 0)
		return snap_undo(vm, set, e);
	return err_set(e, r > 0 ? -EIO : r,
		       "a snapshot of instance '%s' was cut off, and its set '%s' can't be read (mend its set.json): "
		       "%s",
		       vm->ref, set, why.msg);
}

/* ---- its beginning ---- */

static int snap_write_next(const struct vm *vm, const char *set, const char *nodes, struct err *e)
{
	_cleanup_json_ json_t *o = json_pack("{s:s, s:s}", "set", set, "node", nodes);
	struct local_path path;
	int r = vm_path(vm, &path, e, "next");

	return r ?: o ? local_write_json(path.s, o, e) : err_nomem(e);
}

static int snap_action(struct vm *vm, const char *set, const char *nodes, size_t i, json_t *actions, struct err *e)
{
	char node[QEMU_NODE_MAX];
	struct local_path path;
	int r = qemu_disk_node(vm->qemu, i, node, e);

	r = r ?: vm_path(vm, &path, e, "sets/%s/disk%zu.qcow2", set, i);
	if (r < 0)
		return r;
	json_array_append_new(actions,
			      json_pack("{s:s, s:{s:s, s:s, s:s, s:s, s:o}}", "type", "blockdev-snapshot-sync", "data",
					"node-name", node, "snapshot-file", path.s, "format", "qcow2", "mode",
					"existing", "snapshot-node-name", json_sprintf("%s-disk%zu", nodes, i)));
	return 0;
}

/* All its disks at one instant. */
static int snap_running(struct vm *vm, const char *set, const char *nodes, size_t n, struct err *e)
{
	json_t *actions = json_array();
	int r = actions ? vm_set_hand(vm, set, true, e) : err_nomem(e);

	for (size_t i = 0; r == 0 && i < n; i++)
		r = snap_action(vm, set, nodes, i, actions, e);
	vm_fault();
	if (r < 0)
		json_decref(actions);
	else
		r = qemu_command(vm->qemu, "transaction", json_pack("{s:o}", "actions", actions), NULL, e);
	vm_fault();
	return r;
}

static int snap_make(struct vm *vm, const char *used, const char *set, struct err *e)
{
	_cleanup_json_ json_t *o = NULL;
	char id[ID_MAX], nodes[NODE_SIZE];
	int r = vm_set_of_set(vm, used, set, &o, e);

	id_new("s", id);
	snprintf(nodes, sizeof(nodes), "%.10s", id);
	r = r ?: snap_write_next(vm, set, nodes, e);
	vm_fault();
	r = r ?: vm_set_make(vm, set, o, e);
	if (r == 0 && vm->qemu)
		r = snap_running(vm, set, nodes, json_array_size(json_object_get(o, "disks")), e);
	return r;
}

static int snap_locked(struct vm *vm, const char *set, struct err *e)
{
	char used[HYPERVISOR_SET_MAX];
	struct err why = {0};
	int r = vm_set_look(vm, e);

	r = r ?: vm_set_in_use(vm, used, e);
	if (r < 0 || strcmp(used, set) == 0)
		return r;
	if (!used[0])
		return err_set(e, -ENOENT, "instance '%s' has no disks yet (migrate a server to it)", vm->ref);
	r = vm_set_room(vm, set, e);
	if (r < 0)
		return r;
	r = snap_make(vm, used, set, &why);
	/* Without an intention that can be carried out it is as if nothing had been. */
	if (r < 0 && !vm->qemu)
		snap_undo(vm, set, NULL);
	else if (r < 0)
		vm_set_settle(vm, NULL);
	else
		return vm_set_settle(vm, e);
	if (vm_set_in_use(vm, used, NULL) == 0 && strcmp(used, set) == 0)
		return 0;
	return err_set(e, r, "no snapshot of instance '%s' was made: %s", vm->ref, why.msg);
}

int vm_set_snapshot(struct hypervisor *h, const char *ref, const char *set, struct err *e)
{
	struct vm vm;
	int r = vm_open(h, ref, false, &vm, e);

	if (r < 0)
		return r;
	r = snap_locked(&vm, set, e);
	vm_close(&vm);
	return r;
}

/* ---- layers below a machine that runs ---- */

/* DIR/chains/JOB/...: JOB. */
static bool hold_chain_of(const struct local *l, const char *path, char chain[ID_MAX])
{
	char *prefix = str_printf("%s/chains/", l->dir);
	const char *at = prefix && str_starts(path, prefix) ? path + strlen(prefix) : NULL;
	size_t n = at ? strcspn(at, "/") : 0;

	free(prefix);
	if (!n || n >= ID_MAX)
		return false;
	snprintf(chain, ID_MAX, "%.*s", (int)n, at);
	return id_is("job", chain);
}

/* The file below, where it really is; 0: there is none. */
static int hold_below(char path[PATH_MAX], struct err *e)
{
	char backing[LOCAL_BACKING_MAX], joined[PATH_MAX + LOCAL_BACKING_MAX];
	const char *slash = strrchr(path, '/');
	int r = str_ends(path, ".raw") ? 0 : local_backing(path, backing, e);

	if (r < 0 || str_ends(path, ".raw") || !*backing)
		return r;
	if (*backing == '/')
		snprintf(joined, sizeof(joined), "%s", backing);
	else
		snprintf(joined, sizeof(joined), "%.*s/%s", (int)(slash - path), path, backing);
	return realpath(joined, path) ? 1 : err_sys(e, "cannot find '%s'", joined);
}

/* Its chain, if it is on one, is locked for all who read. */
static int hold_disk(const struct vm *vm, const char *from, int fd, struct err *e)
{
	char path[PATH_MAX], chain[ID_MAX];
	int r = 1;

	if (!realpath(from, path))
		return err_sys(e, "cannot find '%s'", from);
	for (unsigned depth = 0; r > 0; depth++) {
		if (hold_chain_of(vm->l, path, chain))
			return local_chain_lock(fd, chain, F_RDLCK)
				   ? 0
				   : err_set(e, -EBUSY, "layers below the disks are being merged (try again)");
		if (depth == HOLD_DEPTH_MAX)
			return err_set(e, -ELOOP, "too many files stand on each other: '%s'", from);
		r = hold_below(path, e);
	}
	return r;
}

static int hold_try(const struct vm *vm, const char *set, int fd, struct err *e)
{
	_cleanup_json_ json_t *o = NULL;
	struct local_path path;
	int r = vm_set_read(vm, set, &o, e);

	for (size_t i = 0; r == 0 && i < json_array_size(json_object_get(o, "disks")); i++) {
		r = vm_path(vm, &path, e, "sets/%s/disk%zu.qcow2", set, i);
		r = r ?: hold_disk(vm, path.s, fd, e);
	}
	return r;
}

int vm_set_hold(const struct vm *vm, const char *set, int *ret, struct err *e)
{
	double end = id_now_mono() + HOLD_SECONDS;
	_cleanup_close_ int fd = -1;
	struct local_path path;
	struct err why = {0};
	int r = local_path(vm->l, &path, e, "locks");

	if (r < 0)
		return r;
	fd = open(path.s, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_sys(e, "cannot open '%s'", path.s);
	while ((r = hold_try(vm, set, fd, &why)) == -EBUSY && id_now_mono() < end)
		nanosleep(&(struct timespec){.tv_nsec = 200000000}, NULL);
	if (r < 0)
		return err_set(e, r, "%s", why.msg);
	*ret = take_fd(&fd);
	return 0;
}

/* ---- images below an instance ---- */

struct spare {
	const struct local *l;
	const char *image;
};

static int spare_one(void *arg, const char *ref, struct err *e)
{
	const struct spare *s = arg;
	struct vm vm = {.l = s->l, .lock = -1};
	_cleanup_json_ json_t *list = NULL;
	json_t *o;
	size_t i;
	int r = local_path(s->l, &vm.dir, e, "instances/%s", ref);

	snprintf(vm.ref, sizeof(vm.ref), "%s", ref);
	r = r ?: vm_sets_list(&vm, &list, e);
	json_array_foreach(list, i, o)
	{
		const char *image = json_string_value(json_object_get(o, "image"));
		const char *problem = json_string_value(json_object_get(o, "problem"));

		if (r == 0 && problem)
			r = err_set(e, -EBUSY,
				    "set '%s' of instance '%s' may stand on image '%s' and can't be read (mend or "
				    "remove that first): %s",
				    json_string_value(json_object_get(o, "set")), ref, s->image, problem);
		else if (r == 0 && image && strcmp(image, s->image) == 0)
			r = err_set(e, -EBUSY,
				    "instance '%s' stands on image '%s' with its set '%s' (remove that first)", ref,
				    s->image, json_string_value(json_object_get(o, "set")));
	}
	return r;
}

int local_vm_spare_image(const struct local *l, const char *image, int *ret_lock, struct err *e)
{
	_cleanup_close_ int all = -1;
	struct spare s = {l, image};
	struct local_path dir;
	int r = local_path(l, &dir, e, "instances");

	r = r ?: local_exists(dir.s, e);
	if (r <= 0)
		return r;
	r = vm_lock_all(l, &all, e);
	r = r ?: vm_each(l, spare_one, &s, e);
	if (r == 0)
		*ret_lock = take_fd(&all);
	return r;
}
