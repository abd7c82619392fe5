/* Inside the local provider: where things lie, and what its files share. */
#pragma once

#include <limits.h>

#include "base/util.h"
#include "provider/provider.h"
#include "provider/qemu.h"

/*
 * DIR/jobs/JOB/replica/     diskN.raw, diskN.manifest, replica.json (the receiver's); diskN.qcow2, report.json (the
 * conversion's) DIR/images/IMAGE/         that directory, renamed, and manifest.json; later boot.json, screenshot.png
 * DIR/runs/NAME/            what a machine needs while it runs; removed when it ends, or before the next one of that
 * name starts
 */
struct local {
	struct provider p;
	char *dir, *cache, *programs, *user; /* user: NULL unless we are root */
};

#define LOCAL_DISKS_MAX 64
#define LOCAL_JSON_MAX  (16u << 20)

struct local_path {
	char s[PATH_MAX];
};
/* Formats below DIR; -ENAMETOOLONG. */
int local_path(const struct local *l, struct local_path *ret, struct err *e, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
int local_check_id(const char *noun, const char *id, struct err *e);
/* How many disk0.raw, disk1.raw ... lie there. */
size_t local_disks(const char *dir);
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
int local_image_create(struct provider *p, const char *job, const char *image, const json_t *meta, json_t **ret,
		       struct err *e);
int local_image_export(struct provider *p, const char *image, unsigned disk, const char *format, const char *path,
		       const struct provider_watch *w, struct err *e);
int local_image_remove(struct provider *p, const char *image, struct err *e);

/* ---- local_boot.c ---- */
int local_test_boot(struct provider *p, const char *image, const json_t *options, const struct provider_watch *w,
		    json_t **ret, struct err *e);
/* Where a boot that never reported came to, from the serial line: *ret_stage is static ("kernel_panic" ...). True when
 * nothing more will come of it. */
bool local_boot_stage(const char *serial, bool ended, const char **ret_stage, const char **ret_text);
/* The probe's report as far as it is believed: known keys of the right type and size, nothing else. New reference, or
 * NULL. */
json_t *local_boot_report(const json_t *probe);

static inline struct local *local_of(struct provider *p)
{
	return (struct local *)(void *)p;
}

static inline void local_free_list(char **v, size_t n)
{
	for (size_t i = 0; i < n; i++)
		free(v[i]);
}
