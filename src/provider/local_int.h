/* Inside the local provider: where things lie, and what its files share. */
#pragma once

#include <limits.h>
#include <pthread.h>

#include "base/id.h"
#include "base/util.h"
#include "provider/provider.h"
#include "provider/qemu.h"

/*
 * DIR/jobs/JOB/replica/     diskN.raw, diskN.manifest, replica.json (the receiver's); diskN.qcow2, report.json (the
 * conversion's)
 * DIR/jobs/JOB/partial      the replica is that of a migration test
 * DIR/images/IMAGE/         that directory, renamed, and manifest.json; later boot.json, screenshot.png
 * DIR/chains/JOB/           layers of an incremental job, see local_chain.c
 * DIR/gone/NAME             was somebody's, and is being removed
 * DIR/runs/NAME/            what a machine needs while it runs; removed when it ends, or before the next one of that
 * name starts
 */
struct local {
	struct provider p;
	char *dir, *cache, *programs, *user; /* user: NULL unless we are root */
	pthread_mutex_t lock;
	struct local_chain_use *uses; /* (lock) */
	int chain_locks;              /* DIR/locks: a byte of it for each chain, for centers that share DIR */
};

/* provider_open() for "local". */
int local_open(const struct provider_settings *s, struct provider **ret, struct err *e);

#define LOCAL_DISKS_MAX 64
#define LOCAL_JSON_MAX  (16u << 20)
#define LOCAL_BASES_MAX 16u /* images on one another */

struct local_path {
	char s[PATH_MAX];
};
/* Formats below DIR; -ENAMETOOLONG. */
int local_path(const struct local *l, struct local_path *ret, struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
int local_check_id(const char *noun, const char *id, struct err *e);
/* 1 or 0: nothing but "there is no such file" is taken for an absence. */
int local_exists(const char *path, struct err *e);
/* How many disk0, disk1 ... lie there, as .raw or .qcow2. */
size_t local_disks(const char *dir);
/* Notes that the copy of the job is only a part, or that it is whole again. */
int local_set_partial(const struct local *l, const char *job, bool partial, struct err *e);
int local_is_partial(const struct local *l, const char *job, struct err *e); /* 1 or 0 */
/* A directory for `user`, made anew. */
int local_fresh_dir(const struct local *l, const char *path, struct err *e);
int local_give(const struct local *l, const char *path, struct err *e);
int local_write_json(const char *path, const json_t *j, struct err *e);
int local_read_json(const char *path, json_t **ret, struct err *e);
bool local_cancelled(const struct provider_watch *w);
void local_tell(const struct provider_watch *w, const json_t *event);
/* qemu-img create, as `user`, of an overlay at `path` on `backing` (as written into it). */
int local_overlay(const struct local *l, const char *path, const char *backing, const char *format, struct err *e);
int local_program(const struct local *l, const char *name, struct local_path *ret, struct err *e);
int local_sync(const char *path, struct err *e);
/* A regular file, not through a link: its directory may belong to `user`. */
int local_read_file(const char *path, size_t max, char **ret, size_t *ret_len, struct err *e);
/* Nobody but root changes the open file or directory any more, `user`'s group may read it. Without `user` only the
 * mode. */
int local_take(const struct local *l, int fd, mode_t mode, const char *path, struct err *e);
/* The opposite of it: `user` may write to it. */
int local_lend(const struct local *l, int fd, mode_t mode, const char *path, struct err *e);

/* What the file is: its backing file must be `backing` of that format (NULL: none), with no other file in it. *ret_size
 * (may be NULL): of the disk in it. */
int local_check_overlay(const struct local *l, const char *overlay, const char *backing, const char *format,
			uint64_t *ret_size, struct err *e);
/* A plain file of its own becomes root's for good. */
int local_take_file(const struct local *l, const char *path, struct err *e);
/* A plain file of its own becomes `user`'s, until it is taken. */
int local_lend_file(const struct local *l, const char *path, struct err *e);
int local_take_dir(const struct local *l, const char *dir, struct err *e);
int local_sha256(const char *path, char out[65], struct err *e);

/* ---- local_layers.c: a run's qcow2 files served to its receiver ---- */
struct local_layers {
	pid_t pid; /* of the server; -1: none is needed */
	size_t n;
	bool served[LOCAL_DISKS_MAX];
	int fd[LOCAL_DISKS_MAX]; /* connected; -1 where not served */
};
/* Starts it for `dir`; it dies with the thread that calls. On failure local_layers_stop() is due all the same. */
int local_layers_serve(const struct local *l, const char *dir, const char *run_dir, struct local_layers *ly,
		       struct err *e);
/* The receiver has them. */
void local_layers_drop(struct local_layers *ly);
void local_layers_stop(struct local_layers *ly);
/* For the receiver's --layers. */
int local_layers_option(const struct local_layers *ly, char *buf, size_t size);

/* ---- local_chain.c: what the runs of a job lie in ---- */
#define LOCAL_RUNS_MAX 1024

struct local_runs {
	uint64_t v[LOCAL_RUNS_MAX]; /* ascending */
	size_t n;
	uint64_t complete; /* the newest that is complete; earlier ones are, too */
	bool open;         /* its job may still add runs */
};
int local_chain_read(const struct local *l, const char *job, struct local_runs *ret, struct err *e);
/* Has the job a chain that is open? 1 or 0. */
int local_chain_is_open(const struct local *l, const char *job, struct err *e);
/* Readies run `number` for its receiver: *ret is its directory. */
int local_chain_begin(const struct local *l, const char *job, uint64_t number, struct local_path *ret, struct err *e);
/* The receiver and its server have ended in good order: nothing of the run is only in their memory. */
int local_chain_rest(const struct local *l, const char *job, uint64_t number, struct err *e);
/* The run is committed: its files change no more. */
int local_chain_complete(const struct local *l, const char *job, uint64_t number, struct err *e);
/* The image, whose overlays are about to be made, isn't finished: until it is, nothing below it is rearranged. */
int local_chain_expect(const struct local *l, const char *job, const char *image, struct err *e);
int local_chain_is_expecting(const struct local *l, const char *job, struct err *e); /* 1 or 0 */
/* The job adds no more. */
int local_chain_close(const struct local *l, const char *job, struct err *e);
/* "diskN.raw" or "diskN.qcow2", whatever the run has, and its format (static); -ENOENT. */
int local_chain_disk(const struct local *l, const char *job, uint64_t run, size_t i, char name[32],
		     const char **ret_format, struct err *e);
/*
 * The same of the nearest run above or below *run that has the disk: where a merge was cut off, the one between has it
 * no more. 1: *run is that one; 0: there is none.
 */
int local_chain_near(const struct local *l, const char *job, const struct local_runs *runs, uint64_t *run, bool above,
		     size_t i, char name[32], const char **ret_format, struct err *e);
/* What the qcow2 file says it stands on; "": nothing. */
#define LOCAL_BACKING_MAX 1024
int local_backing(const char *path, char ret[LOCAL_BACKING_MAX], struct err *e);
/* The chain's byte in the open file `fd` (DIR/locks), F_RDLCK, F_WRLCK or F_UNLCK. */
bool local_chain_lock(int fd, const char *chain, short type);
/* Calls `each` for all finished images on the chain, with what their manifest.json says; non-zero ends it. */
int local_chain_images(const struct local *l, const char *job,
		       int (*each)(void *arg, const char *image, uint64_t run, json_t *manifest, struct err *e),
		       void *arg, struct err *e);
/* Of an image's manifest: its chain, or NULL. */
const char *local_image_chain(const json_t *manifest, uint64_t *ret_run);

/*
 * Readers of a chain's files and the one who rearranges them exclude each other. local_chain_share() waits for him
 * (-ECANCELED); a NULL chain needs nothing.
 */
int local_chain_share(struct local *l, const char *chain, const struct provider_watch *w, struct err *e);
void local_chain_unshare(struct local *l, const char *chain);
bool local_chain_own(struct local *l, const char *chain);
void local_chain_disown(struct local *l, const char *chain);
/* That of the image, copied to `chain` ("" when it has none), and shared. */
int local_chain_share_image(struct local *l, const char *image, char chain[ID_MAX], const struct provider_watch *w,
			    struct err *e);

/* ---- local_sweep.c ---- */
int local_holdings(struct provider *p, json_t **ret, struct err *e);
int local_discard(struct provider *p, const char *path, struct err *e);
int local_empty(struct provider *p, struct err *e);
/* Moves it to DIR/gone, where it is *ret; what isn't there is fine. */
int local_throw(const struct local *l, const char *path, const char *name, struct local_path *ret, struct err *e);

/* ---- local_trim.c ---- */
int local_trim(struct provider *p, const struct provider_watch *w, bool *ret_left, struct err *e);
/* One chain, which is owned. -EBUSY: not while its newest image isn't finished. */
int local_trim_chain(struct local *l, const char *job, const struct provider_watch *w, struct err *e);

/* ---- local_appliance.c ---- */
/*
 * Starts the appliance on the qcow2 disks, gives it the request and waits for its last event. *ret: the report. With an
 * error *ret may hold what was found (unsupported systems). `run`: name below DIR/runs.
 */
int local_appliance(struct local *l, const char *run, char *const *disks, size_t n, const json_t *request,
		    const struct provider_watch *w, json_t **ret, struct err *e);
int local_convert(struct provider *p, const char *job, const json_t *request, const struct provider_watch *w,
		  json_t **ret, struct err *e);

/* ---- local_image.c ---- */
/* The file says names only, so that DIR can be moved; who asks is told where they are now. */
void local_image_add_paths(const char *dir, json_t *manifest);
int local_image_create(struct provider *p, const char *job, const char *image, const json_t *meta, json_t **ret,
		       struct err *e);
int local_image_export(struct provider *p, const char *image, unsigned disk, const char *format, const char *path,
		       const struct provider_watch *w, struct err *e);
int local_image_remove(struct provider *p, const char *image, struct err *e);
/* Calls `each` for all finished images, with what their manifest.json says; non-zero ends it. One that can't be read is
 * an error: what it stands on isn't known. */
int local_images(const struct local *l, int (*each)(void *arg, const char *image, json_t *manifest, struct err *e),
		 void *arg, struct err *e);
/* qemu-img with -p, as `user`, with the descriptor `keep` (-1: none): tells {"event":"export","percent":...}. */
int local_qemu_img(const struct local *l, const char *const argv[], int keep, const char *failure,
		   const struct provider_watch *w, struct err *e);

/* ---- local_check.c ---- */
int local_image_check(struct provider *p, const char *image, const json_t *options, const struct provider_watch *w,
		      json_t **ret, struct err *e);
int local_image_repair(struct provider *p, const char *image, const char *repaired, const json_t *options,
		       const struct provider_watch *w, json_t **ret, json_t **ret_manifest, struct err *e);
/* -EBUSY: a repaired image stands on it. */
int local_image_is_free(const struct local *l, const char *image, struct err *e);
/* Of an image's manifest: the image it stands on, or NULL. */
const char *local_image_base(const json_t *manifest);

/* ---- local_boot.c ---- */
int local_test_boot(struct provider *p, const char *image, const json_t *options, const struct provider_watch *w,
		    json_t **ret, struct err *e);
/* The disk that the image's conversion found a boot loader on, of `n`. */
size_t local_image_boot_disk(const char *dir, size_t n);
int local_copy_boot(struct provider *p, const char *job, const json_t *options, const struct provider_watch *w,
		    json_t **ret, struct err *e);
/* The probe's report as far as it is believed: known keys of the right type and size, nothing else. New reference, or
 * NULL. */
json_t *local_boot_report(const json_t *probe);

/* ---- local_vm.c: instances ---- */
int local_vm_open(const struct provider_settings *s, const json_t *settings, struct hypervisor **ret, struct err *e);
/* Why an image must stay: an instance stands on it (-EBUSY). *ret_lock: to close; until then none begins to. */
int local_vm_spare_image(const struct local *l, const char *image, int *ret_lock, struct err *e);

/* ---- local_stage.c ---- */
/* Where a boot that never reported came to, from the serial line: *ret_stage ("kernel_panic" ...; docs/errors.md has
 * all) and *ret_text, what is the matter and what to do, are static. True when nothing more will come of it. */
bool local_boot_stage(const char *serial, bool ended, const char **ret_stage, const char **ret_text);
/* Of a machine that runs: what its serial line and its screen (text, or "") say. */
enum local_boot { LOCAL_BOOT_COMING, LOCAL_BOOT_UP, LOCAL_BOOT_FAILED };
enum local_boot local_boot_judge(const char *serial, const char *screen, const char **ret_stage, const char **ret_text);

/* ---- local_hw.c: what a machine is made of, for test boots and instances ---- */
struct local_hw {
	uint64_t cpus, memory_mib;
	char cpu[64]; /* "": the best there is */
	bool uefi;
	enum qemu_bus bus;
};
extern const char *const local_buses[]; /* as enum qemu_bus */
/* Of {"cpus","memory_mib","cpu","firmware","bus"}; what is missing stays as it is. */
int local_hw_read(const json_t *o, struct local_hw *hw, struct err *e);
/* "host" is only with KVM. */
int local_hw_check(const struct local_hw *hw, const char *accel, struct err *e);
/* For qemu_start(): borrowed from hw. */
void local_hw_use(const struct local_hw *hw, struct qemu_settings *s);
/* The next kind of UEFI that this host has, from *i (begun with 0): 1; 0: no more. */
int local_hw_uefi_kind(size_t *i, const char **ret_code, const char **ret_vars);
/* The best of them: UEFI's code and the template of its variables, static; -ENOENT */
int local_hw_uefi(const char **ret_code, const char **ret_vars, struct err *e);

static inline struct local *local_of(struct provider *p)
{
	return (struct local *)(void *)p;
}

static inline void local_free_list(char **v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(v[i]);
}
