/*
 * Inside the hypervisor `local`: instances on this host's QEMU.
 *
 * DIR/instances/REF/settings.json  what define() was given, with what was chosen
 * DIR/instances/REF/use            name of the set in use
 * DIR/instances/REF/next           a snapshot that is being made: {"set","node"}; see local_vm_sets.c
 * DIR/instances/REF/sets/SET/      diskN.qcow2, set.json {"set","on","image","boot_disk","disks":[{"base","format",
 *                                  "size"}]}. Ours, and the user's only while the set is in use.
 * DIR/instances/REF/started.json   QEMU was started and hasn't been seen to end well: {"boot","time","serial"}
 * DIR/instances/REF/serial.log     what came out of the serial line; of a long one the beginning is a hole
 * DIR/instances/REF/efivars.fd     what UEFI remembers; the user's
 * DIR/instances/REF/efivars.fd.old the last of that which no firmware of this host knew
 * DIR/instances/REF/run/           QMP socket and lock; ours alone
 * DIR/instances/REF/scratch/       what QEMU writes besides: pid file, pictures; the user's
 * DIR/instances/locks              a byte of it for each instance, and one for all
 */
#pragma once

#include "base/err.h"
#include "provider/local_int.h"

#define VM_SETS_MAX    64
#define VM_SERIAL_KEEP MIB

struct vm_host {
	struct hypervisor h;
	struct local *l;
};

/* One instance, locked. */
struct vm {
	const struct local *l;
	char ref[HYPERVISOR_REF_MAX];
	struct local_path dir;
	int lock;
	struct qemu *qemu; /* connected; NULL: it is off, or ... */
	bool deaf;         /* ... doesn't answer */
};

struct vm_settings {
	char name[128];
	struct local_hw hw;
	bool net; /* the user's network; false: none */
	struct qemu_net card;
	char mac[18], address[16];
};

enum vm_state { VM_OFF, VM_RUNNING, VM_PAUSED, VM_CRASHED };

struct vm_now {
	enum vm_state state;
	char problem[ERR_MSG_MAX + 64]; /* "" or why it is so */
};

/* For drills: REPLANT_FAULT_VM=N kills the program at the N-th step. */
void vm_fault(void);

/* ---- local_vm.c ---- */
/* Waits for whoever is at it. A missing instance is -ENOENT unless `any`. */
int vm_open(struct hypervisor *h, const char *ref, bool any, struct vm *ret, struct err *e);
void vm_close(struct vm *vm);
int vm_path(const struct vm *vm, struct local_path *ret, struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* What all instances share: ports, and images that must stay. *ret: to close. */
int vm_lock_all(const struct local *l, int *ret, struct err *e);
/* Calls `each` for all instances; non-zero ends it. */
int vm_each(const struct local *l, int (*each)(void *arg, const char *ref, struct err *e), void *arg, struct err *e);
int vm_unlink(const struct vm *vm, const char *name, struct err *e);

/* ---- local_vm_settings.c ---- */
/* `had`: what it has, or NULL. *ret: complete and checked. */
int vm_settings_make(const struct vm *vm, const json_t *wanted, const json_t *had, json_t **ret, struct err *e);
int vm_settings_read(const json_t *o, struct vm_settings *ret, struct err *e);

/* ---- local_vm_run.c ---- */
/*
 * What it does now; vm->qemu is connected when it runs. What was left half done is finished, a QEMU whose guest has
 * turned itself off is ended.
 */
int vm_look(struct vm *vm, struct vm_now *ret, struct err *e);
/* Connects to its QEMU, if there is one: 1 when it lives, and vm->qemu unless it doesn't answer. */
int vm_connect(struct vm *vm, struct vm_now *ret, struct err *e);
/* -EBUSY with a sentence unless it is off. */
int vm_check_off(struct vm *vm, struct err *e);
int vm_start(struct hypervisor *h, const char *ref, struct err *e);
int vm_stop(struct hypervisor *h, const char *ref, double seconds, const struct provider_watch *w, struct err *e);

/* ---- local_vm_tell.c ---- */
int vm_drain(struct vm *vm, struct err *e);
int vm_serial_read(const struct vm *vm, uint64_t since, struct str *ret, uint64_t *ret_end, struct err *e);
/* {"stage","failed","text"} of the boot that `started` (started.json, or NULL) tells of. */
int vm_boot(struct vm *vm, const struct vm_now *now, json_t **ret, struct err *e);
int vm_screenshot(struct hypervisor *h, const char *ref, const char *path, struct err *e);
int vm_serial(struct hypervisor *h, const char *ref, uint64_t since, struct str *ret, uint64_t *ret_end, struct err *e);

/* ---- local_vm_efi.c ---- */
int vm_efi(const struct vm *vm, char code[PATH_MAX], char vars[PATH_MAX], struct err *e);

/* ---- local_vm_sets.c ---- */
/* The name of the set in use; "": none. */
int vm_set_in_use(const struct vm *vm, char ret[HYPERVISOR_SET_MAX], struct err *e);
/* Is there a directory of it? 1, 0 */
int vm_set_is_there(const struct vm *vm, const char *set, struct err *e);
/* set.json, which has disks and says what they stand on; -ENOENT */
int vm_set_read(const struct vm *vm, const char *set, json_t **ret, struct err *e);
/* All of them as get() has them, and the disks of the one in use. */
int vm_sets_tell(const struct vm *vm, json_t *o, struct err *e);
/* Before QEMU gets it: its files and what they stand on are what they should be; the user may write to the set in use
 * and to no other. */
int vm_set_ready(const struct vm *vm, const char *set, struct err *e);
/* All set.json, with the name as "set"; of one that can't be read there is that and a "problem". */
int vm_sets_list(const struct vm *vm, json_t **ret, struct err *e);
int vm_set_write_use(const struct vm *vm, const char *set, struct err *e);
/* set.json of a new set on `from`. */
int vm_set_of_set(const struct vm *vm, const char *from, const char *set, json_t **ret, struct err *e);
/* Makes the set that `o` describes; what it stands on is held by who calls. */
int vm_set_make(const struct vm *vm, const char *set, const json_t *o, struct err *e);
/* The set's files change hands: the user's, who may write them then, or ours. */
int vm_set_hand(const struct vm *vm, const char *set, bool lend, struct err *e);
int vm_set_remove(struct vm *vm, const char *set, struct err *e);
/* There is no such set, and may be one more. */
int vm_set_room(const struct vm *vm, const char *set, struct err *e);
/* vm_look(); -EBUSY when there is a QEMU that doesn't answer. */
int vm_set_look(struct vm *vm, struct err *e);

/* ---- local_vm_snapshot.c ---- */
/* A snapshot that was cut off is finished, or as if it had never begun. */
int vm_set_settle(struct vm *vm, struct err *e);
/* Opens what the set in use stands on for as long as *ret is open: no layer below it is rearranged. */
int vm_set_hold(const struct vm *vm, const char *set, int *ret, struct err *e);

int vm_set_add(struct hypervisor *h, const char *ref, const char *set, const char *image, const json_t *disks,
	       const json_t *sizes, const struct provider_watch *w, struct err *e);
int vm_set_fork(struct hypervisor *h, const char *ref, const char *from, const char *set, struct err *e);
int vm_set_snapshot(struct hypervisor *h, const char *ref, const char *set, struct err *e);
int vm_set_use(struct hypervisor *h, const char *ref, const char *set, struct err *e);
int vm_set_drop(struct hypervisor *h, const char *ref, const char *set, struct err *e);
