/*
 * Images. A replica with its conversion becomes one by renaming its directory, then by writing manifest.json: an image
 * without a manifest is not finished, and making it again goes on from there.
 */
#include "provider/local_int.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <openssl/evp.h>
#include <poll.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/proc.h"
#include "base/str.h"

int local_sha256(const char *path, char out[65], struct err *e)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	_cleanup_free_ char *buf = malloc(MIB);
	EVP_MD_CTX *md = EVP_MD_CTX_new();
	unsigned char digest[EVP_MAX_MD_SIZE];
	unsigned len = 0;
	ssize_t n = 0;

	if (fd < 0 || !buf || !md || !EVP_DigestInit_ex(md, EVP_sha256(), NULL)) {
		EVP_MD_CTX_free(md);
		return err_sys(e, "cannot read '%s'", path);
	}
	while ((n = io_read_full(fd, buf, MIB)) > 0)
		EVP_DigestUpdate(md, buf, (size_t)n);
	EVP_DigestFinal_ex(md, digest, &len);
	EVP_MD_CTX_free(md);
	if (n < 0)
		return err_set(e, (int)n, "cannot read '%s': %s", path, strerror((int)-n));
	str_hex(digest, len, out);
	return 0;
}

/* No name leads elsewhere: it may be in a directory of `user`'s. */
static int image_open_file(const char *path, struct err *e)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return err_sys(e, "cannot open '%s'", path);
	if (!S_ISREG(st.st_mode) || st.st_nlink != 1)
		return err_set(e, -EPERM, "'%s' is not a plain file of its own", path);
	return take_fd(&fd);
}

/* An image doesn't change any more. */
int local_take_file(const struct local *l, const char *path, struct err *e)
{
	_cleanup_close_ int fd = image_open_file(path, e);

	return fd < 0 ? fd : local_take(l, fd, 0440, path, e);
}

int local_lend_file(const struct local *l, const char *path, struct err *e)
{
	_cleanup_close_ int fd = image_open_file(path, e);

	return fd < 0 ? fd : local_lend(l, fd, 0600, path, e);
}

/* QEMU wrote the header and the guest may have broken into it: what it reads besides itself must be its replica. */
int local_check_overlay(const struct local *l, const char *overlay, const char *backing, const char *backing_format,
			uint64_t *ret_size, struct err *e)
{
	const char *const argv[] = {"qemu-img", "info", "--output=json", "-f", "qcow2", "-U", overlay, NULL};
	_cleanup_free_ char *text = NULL;
	_cleanup_json_ json_t *info = NULL;
	const char *base, *format;
	json_t *data;
	int r = proc_run_as(argv, l->user, MIB, &text, e);

	r = r ?: jsn_parse(text, strlen(text), MIB, &info, e);
	if (r < 0)
		return r;
	base = json_string_value(json_object_get(info, "backing-filename")) ?: "";
	format = json_string_value(json_object_get(info, "backing-filename-format")) ?: "";
	data = json_object_get(json_object_get(json_object_get(info, "format-specific"), "data"), "data-file");
	if (strcmp(base, backing) != 0 || strcmp(format, backing_format) != 0 || data)
		return err_set(e, -EPERM, "'%s' refers to other files than '%s' (start the job again)", overlay,
			       backing);
	return ret_size ? jsn_get_u64(info, "virtual-size", true, 0, INT64_MAX, ret_size, e) : 0;
}

/* What the overlays of an image stand on: its own raw files, or those of a run. */
struct image_base {
	const char *chain; /* NULL: its own */
	uint64_t run;
};

static int image_base_of(const struct local *l, const char *dir, const struct image_base *b, size_t i, char *ret_name,
			 size_t size, const char **ret_format, struct stat *ret_st, struct err *e)
{
	char name[32], path[PATH_MAX + 64];
	int r = 0;

	if (b->chain) {
		r = local_chain_disk(l, b->chain, b->run, i, name, ret_format, e);
		snprintf(ret_name, size, "../../chains/%s/%llu/%s", b->chain, (unsigned long long)b->run, name);
	} else {
		snprintf(ret_name, size, "disk%zu.raw", i);
		*ret_format = "raw";
	}
	if (r < 0)
		return r;
	if ((size_t)snprintf(path, sizeof(path), "%s/%s", dir, ret_name) >= sizeof(path))
		return err_set(e, -ENAMETOOLONG, "path '%s' is too long", dir);
	if (lstat(path, ret_st) < 0)
		return err_sys(e, "cannot look at disk %zu of '%s'", i, dir);
	return b->chain ? 0 : local_take_file(l, path, e);
}

static int image_disk(const struct local *l, const char *dir, const struct image_base *b, size_t i, json_t *disks,
		      struct err *e)
{
	char overlay[PATH_MAX + 64], base[128], name[32], hex[65];
	const char *format = "raw";
	struct stat st, st_overlay;
	uint64_t size;
	int r;

	snprintf(name, sizeof(name), "disk%zu.qcow2", i);
	if ((size_t)snprintf(overlay, sizeof(overlay), "%s/%s", dir, name) >= sizeof(overlay))
		return err_set(e, -ENAMETOOLONG, "path '%s' is too long", dir);
	r = image_base_of(l, dir, b, i, base, sizeof(base), &format, &st, e);
	if (r == 0 && lstat(overlay, &st_overlay) < 0)
		r = err_sys(e, "cannot look at disk %zu of '%s' (was it converted?)", i, dir);
	r = r ?: local_take_file(l, overlay, e);
	r = r ?: local_check_overlay(l, overlay, base, format, &size, e);
	r = r ?: local_sha256(overlay, hex, e);
	if (r < 0)
		return r;
	json_array_append_new(disks, json_pack("{s:s, s:s, s:s, s:I, s:I, s:s}", "file", name, "format", "qcow2",
					       "base", base, "size", (json_int_t)size, "allocated",
					       (json_int_t)(st.st_blocks + st_overlay.st_blocks) * 512, "sha256", hex));
	return 0;
}

/* First of all: from then on only root makes and removes names in it. */
int local_take_dir(const struct local *l, const char *dir, struct err *e)
{
	_cleanup_close_ int fd = open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	return fd < 0 ? err_sys(e, "cannot open '%s'", dir) : local_take(l, fd, l->user ? 0750 : 0700, dir, e);
}

static int image_manifest(const struct local *l, const char *dir, const struct image_base *b, const char *image,
			  const json_t *meta, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *m = json_object(), *replica = NULL;
	json_t *disks = json_array();
	char path[PATH_MAX + 128];
	int r = local_take_dir(l, dir, e);
	size_t n = local_disks(dir);

	if (!m || !disks || json_object_set_new(m, "disks", disks) < 0)
		return err_nomem(e);
	if (r == 0 && !n)
		r = err_set(e, -ENOENT, "'%s' holds no disk", dir);
	json_object_set_new(m, "image", json_string(image));
	for (size_t i = 0; r == 0 && i < n; i++)
		r = image_disk(l, dir, b, i, disks, e);
	if (r < 0)
		return r;
	if (b->chain) {
		json_object_set_new(m, "chain", json_string(b->chain));
		json_object_set_new(m, "run", json_integer((json_int_t)b->run));
		snprintf(path, sizeof(path), "%s/chains/%s/%llu/replica.json", l->dir, b->chain,
			 (unsigned long long)b->run);
	} else {
		snprintf(path, sizeof(path), "%s/replica.json", dir);
	}
	if (local_read_json(path, &replica, NULL) == 0)
		json_object_set(m, "replica", replica);
	if (meta)
		json_object_set(m, "meta", (json_t *)(uintptr_t)meta);
	snprintf(path, sizeof(path), "%s/manifest.json", dir);
	r = local_write_json(path, m, e);
	if (r == 0)
		*ret = take_ptr(&m);
	return r;
}

void local_image_add_paths(const char *dir, json_t *manifest)
{
	json_t *disk;
	size_t i;

	json_array_foreach(json_object_get(manifest, "disks"), i, disk) json_object_set_new(
	    disk, "path", json_sprintf("%s/%s", dir, json_string_value(json_object_get(disk, "file")) ?: ""));
}

static int image_move(struct local *l, const char *job, const char *image_dir, struct err *e)
{
	struct local_path replica, jobs, images;
	char report[PATH_MAX + 64];
	int r = local_path(l, &replica, e, "jobs/%s/replica", job);

	r = r ?: local_path(l, &jobs, e, "jobs/%s", job);
	r = r ?: local_path(l, &images, e, "images/.");
	if (r < 0)
		return r;
	r = local_is_partial(l, job, e);
	if (r != 0)
		return r < 0 ? r
			     : err_set(e, -EPERM, "the copy of job '%s' is that of a migration test; it is no image",
				       job);
	snprintf(report, sizeof(report), "%s/report.json", replica.s);
	if (access(report, F_OK) < 0)
		return err_set(e, -ENOENT, "the copy of job '%s' has not been converted", job);
	if (rename(replica.s, image_dir) < 0)
		return err_sys(e, "cannot move '%s' to '%s'", replica.s, image_dir);
	r = local_sync(images.s, e);
	return r < 0 ? r : local_sync(jobs.s, e);
}

/* Of an incremental job: the overlays were made where they are now, on the newest run. */
static int image_base_find(const struct local *l, const char *job, const char *dir, struct image_base *ret,
			   struct err *e)
{
	struct local_runs runs;
	char report[PATH_MAX + 64];
	int r;

	*ret = (struct image_base){0};
	r = local_chain_is_open(l, job, e);
	if (r <= 0)
		return r;
	r = local_chain_read(l, job, &runs, e);
	if (r < 0)
		return r;
	snprintf(report, sizeof(report), "%s/report.json", dir);
	if (access(report, F_OK) < 0 || !runs.n || runs.v[runs.n - 1] != runs.complete)
		return err_set(e, -ENOENT, "the copy of job '%s' has not been converted", job);
	*ret = (struct image_base){.chain = job, .run = runs.complete};
	return 0;
}

/* The receiver's digests (512 MiB for each TiB) are of no use to anybody once the copy is an image. */
static void image_drop_digests(const char *dir)
{
	char path[PATH_MAX + 64];

	for (size_t i = 0; i < LOCAL_DISKS_MAX; i++)
		if ((size_t)snprintf(path, sizeof(path), "%s/disk%zu.manifest", dir, i) < sizeof(path))
			unlink(path);
}

static int image_make(struct local *l, const char *job, const char *image, const char *dir, const json_t *meta,
		      json_t **ret, struct err *e)
{
	struct image_base base;
	struct stat st;
	int r = image_base_find(l, job, dir, &base, e);

	if (r == 0 && !base.chain && stat(dir, &st) < 0)
		r = image_move(l, job, dir, e);
	return r ?: image_manifest(l, dir, &base, image, meta, ret, e);
}

int local_image_create(struct provider *p, const char *job, const char *image, const json_t *meta, json_t **ret,
		       struct err *e)
{
	struct local *l = local_of(p);
	struct local_path dir, manifest;
	int r = local_check_id("job", job, e);

	r = r ?: local_check_id("image", image, e);
	r = r ?: local_path(l, &dir, e, "images/%s", image);
	r = r ?: local_path(l, &manifest, e, "images/%s/manifest.json", image);
	r = r ?: local_chain_share(l, job, NULL, e);
	if (r < 0)
		return r;
	r = local_exists(manifest.s, e);
	if (r > 0)
		r = local_read_json(manifest.s, ret, e);
	else
		r = r ?: image_make(l, job, image, dir.s, meta, ret, e);
	local_chain_unshare(l, job);
	if (r < 0)
		return r;
	image_drop_digests(dir.s);
	local_image_add_paths(dir.s, *ret);
	return 0;
}

/* 0 goes on, also with what is no finished image: nobody but its job knows it, and that holds what it stands on. */
static int each_image(const struct local *l, const char *image,
		      int (*each)(void *arg, const char *image, json_t *manifest, struct err *e), void *arg,
		      struct err *e)
{
	_cleanup_json_ json_t *manifest = NULL;
	struct local_path path;
	struct err why = {0};
	int r;

	if (!id_is("image", image))
		return 0;
	r = local_path(l, &path, e, "images/%s/manifest.json", image);
	r = r ?: local_exists(path.s, e);
	if (r <= 0)
		return r;
	r = local_read_json(path.s, &manifest, &why);
	return r < 0 ? err_set(e, r, "'%s': %s", path.s, why.msg) : each(arg, image, manifest, e);
}

int local_images(const struct local *l, int (*each)(void *arg, const char *image, json_t *manifest, struct err *e),
		 void *arg, struct err *e)
{
	struct local_path images;
	struct dirent *d;
	DIR *list;
	int r = local_path(l, &images, e, "images");

	if (r < 0)
		return r;
	list = opendir(images.s);
	if (!list)
		return err_sys(e, "cannot read '%s'", images.s);
	while (r == 0 && (errno = 0, d = readdir(list)))
		r = each_image(l, d->d_name, each, arg, e);
	if (r == 0 && errno)
		r = err_sys(e, "cannot read '%s'", images.s);
	closedir(list);
	return r;
}

int local_image_remove(struct provider *p, const char *image, struct err *e)
{
	struct local *l = local_of(p);
	struct local_path path, gone;
	_cleanup_close_ int spared = -1;
	int r = local_check_id("image", image, e);

	r = r ?: local_vm_spare_image(l, image, &spared, e);

	r = r ?: local_path(l, &path, e, "images/%s", image);
	r = r ?: local_path(l, &gone, e, "runs/%s-gone", image);
	r = r ?: local_image_is_free(l, image, e);
	if (r < 0)
		return r;
	/* Out of the way at once, so that a half-removed image is never taken for one. */
	if (rename(path.s, gone.s) < 0 && errno != ENOENT) {
		r = io_remove_tree(gone.s, e);
		if (r == 0 && rename(path.s, gone.s) < 0 && errno != ENOENT)
			r = err_sys(e, "cannot remove '%s'", path.s);
	}
	if (spared >= 0)
		close(take_fd(&spared)); /* it can't be found any more */
	return r < 0 ? r : io_remove_tree(gone.s, e);
}

/* ---- export ---- */

static const char *export_options(const char *format)
{
	if (strcmp(format, "vmdk") == 0)
		return "subformat=streamOptimized";
	if (strcmp(format, "vhdx") == 0)
		return "subformat=dynamic";
	if (strcmp(format, "qcow2") == 0)
		return "compat=1.1";
	return NULL;
}

/* "    (12.34/100%)\r" again and again. */
static double export_percent(const char *text)
{
	const char *open = strrchr(text, '(');
	double v = open ? strtod(open + 1, NULL) : 0;

	return isfinite(v) && v >= 0 && v <= 100 ? v : 0;
}

static int export_follow(int out, pid_t pid, const struct provider_watch *w, struct err *e)
{
	double told = -1;

	for (;;) {
		struct pollfd p = {.fd = out, .events = POLLIN};
		_cleanup_json_ json_t *event = NULL;
		char buf[512];
		double percent;
		ssize_t n;

		if (local_cancelled(w)) {
			proc_stop(pid, 1);
			return err_set(e, -ECANCELED, "stopped");
		}
		if (poll(&p, 1, 250) <= 0)
			continue;
		n = read(out, buf, sizeof(buf) - 1);
		if (n <= 0)
			return 0;
		buf[n] = '\0';
		percent = export_percent(buf);
		if (percent < told + 1 && (percent < 100 || told >= 100))
			continue;
		told = percent;
		event = json_pack("{s:s, s:f}", "event", "export", "percent", percent);
		local_tell(w, event);
	}
}

int local_qemu_img(const struct local *l, const char *const argv[], int keep, const char *failure,
		   const struct provider_watch *w, struct err *e)
{
	_cleanup_close_ int out_r = -1, out_w = -1;
	struct proc_opts o = PROC_OPTS_INIT;
	int pipe_fd[2], status, r;
	pid_t pid;

	if (pipe2(pipe_fd, O_CLOEXEC) < 0)
		return err_sys(e, "cannot start qemu-img");
	out_r = pipe_fd[0], out_w = pipe_fd[1];
	o.stdout_fd = out_w;
	o.die_with_us = true;
	o.user = l->user;
	o.keep = &keep;
	o.nkeep = keep >= 0;
	r = proc_spawn(argv, &o, &pid, e);
	if (r < 0)
		return r;
	close(take_fd(&out_w));
	r = export_follow(out_r, pid, w, e);
	if (r < 0)
		return r;
	r = proc_wait(pid, &status, e);
	if (r == 0 && status != 0)
		return err_set(e, -EIO, "%s (qemu-img ended with status %d; is the disk full?)", failure, status);
	return r;
}

static int export_run(const struct local *l, const char *from, const char *format, int to_fd,
		      const struct provider_watch *w, struct err *e)
{
	const char *argv[16] = {"qemu-img", "convert", "-p", "-f", "qcow2", "-O", format};
	char to[64], failure[80];
	size_t n = 7;

	if (export_options(format)) {
		argv[n++] = "-o";
		argv[n++] = export_options(format);
	}
	/* By descriptor: the user need not get where it lies. */
	snprintf(to, sizeof(to), "/proc/self/fd/%d", to_fd);
	argv[n++] = from;
	argv[n++] = to;
	snprintf(failure, sizeof(failure), "the image could not be written as %s", format);
	return local_qemu_img(l, argv, to_fd, failure, w, e);
}

/* A new file that qemu-img, as `user`, may fill; nobody's but ours at the end. */
static int export_file(const struct local *l, const char *from, const char *format, const char *partial,
		       const struct provider_watch *w, struct err *e)
{
	_cleanup_close_ int fd = -1;
	int r;

	if (unlink(partial) < 0 && errno != ENOENT)
		return err_sys(e, "cannot remove '%s'", partial);
	fd = open(partial, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_sys(e, "cannot create '%s'", partial);
	r = local_give(l, partial, e);
	r = r ?: export_run(l, from, format, fd, w, e);
	r = r ?: local_take(l, fd, 0640, partial, e);
	if (r == 0 && fsync(fd) < 0)
		r = err_sys(e, "cannot write '%s' to the disk", partial);
	return r;
}

int local_image_export(struct provider *p, const char *image, unsigned disk, const char *format, const char *path,
		       const struct provider_watch *w, struct err *e)
{
	static const char *const formats[] = {"qcow2", "raw", "vmdk", "vhdx"};
	struct local *l = local_of(p);
	char partial[PATH_MAX + 64], chain[ID_MAX];
	struct local_path from, manifest;
	bool known = false;
	int r = local_check_id("image", image, e);

	for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
		known |= strcmp(format, formats[i]) == 0;
	if (!known)
		return err_set(e, -EINVAL, "format '%s' is not one of qcow2, raw, vmdk and vhdx", format);
	r = r ?: local_path(l, &from, e, "images/%s/disk%u.qcow2", image, disk);
	r = r ?: local_path(l, &manifest, e, "images/%s/manifest.json", image);
	if (r < 0)
		return r;
	if (access(manifest.s, F_OK) < 0 || access(from.s, F_OK) < 0)
		return err_set(e, -ENOENT, "image '%s' has no disk %u", image, disk);
	if ((size_t)snprintf(partial, sizeof(partial), "%s.partial", path) >= sizeof(partial))
		return err_set(e, -ENAMETOOLONG, "path '%s' is too long", path);
	r = local_chain_share_image(l, image, chain, w, e);
	if (r < 0)
		return r;
	r = export_file(l, from.s, format, partial, w, e);
	local_chain_unshare(l, chain);
	if (r == 0 && rename(partial, path) < 0)
		r = err_sys(e, "cannot write '%s'", path);
	if (r < 0)
		unlink(partial);
	return r;
}
