/*
 * qcow2 layers served to a receiver: one qemu-storage-daemon, a connected socket for each layer. The server's socket
 * has no name any more when it starts, so nobody else can connect.
 */
#include "provider/local_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/proc.h"
#include "base/str.h"

#define LAYERS_GRACE 30.0 /* it writes its tables when it ends */

static int layers_socket(struct err *e)
{
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	return fd >= 0 ? fd : err_sys(e, "cannot make a socket");
}

/* Bound by a short name, for a socket's address has room for 107 characters. */
static int layers_bind(int fd, int dirfd, struct sockaddr_un *ret_at, struct err *e)
{
	*ret_at = (struct sockaddr_un){.sun_family = AF_UNIX};
	snprintf(ret_at->sun_path, sizeof(ret_at->sun_path), "/proc/self/fd/%d/layers", dirfd);
	if (unlink(ret_at->sun_path) < 0 && errno != ENOENT)
		return err_sys(e, "cannot remove the socket 'layers'");
	if (bind(fd, (struct sockaddr *)ret_at, sizeof(*ret_at)) < 0 || listen(fd, LOCAL_DISKS_MAX) < 0)
		return err_sys(e, "cannot make the socket 'layers'");
	return 0;
}

static int layers_connect(struct local_layers *ly, const char *run_dir, int server, struct err *e)
{
	_cleanup_close_ int dirfd = open(run_dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct sockaddr_un at;
	int r = dirfd < 0 ? err_sys(e, "cannot open '%s'", run_dir) : layers_bind(server, dirfd, &at, e);

	if (r < 0)
		return r;
	for (size_t i = 0; r == 0 && i < ly->n; i++) {
		if (!ly->served[i])
			continue;
		ly->fd[i] = layers_socket(e);
		if (ly->fd[i] < 0)
			r = ly->fd[i];
		else if (connect(ly->fd[i], (struct sockaddr *)&at, sizeof(at)) < 0)
			r = err_sys(e, "cannot connect to the socket 'layers'");
	}
	unlink(at.sun_path);
	return r;
}

struct layers_args {
	char *v[LOCAL_DISKS_MAX * 4 + 8];
	size_t n;
	bool failed;
};

static void layers_args_release(struct layers_args *a)
{
	local_free_list(a->v, a->n);
}

static void layers_add(struct layers_args *a, char *s)
{
	if (!s || a->n + 1 >= ARRAY_SIZE(a->v))
		a->failed = true;
	if (s && a->n + 1 < ARRAY_SIZE(a->v))
		a->v[a->n++] = s;
	else
		free(s);
}

/* JSON, because a path may hold what QEMU's own option syntax would split. */
static void layers_add_disk(struct layers_args *a, const char *dir, size_t i)
{
	_cleanup_json_ json_t *o = json_pack(
	    "{s:s, s:o, s:s, s:i, s:{s:b}, s:{s:s, s:o, s:{s:b}}}", "driver", "qcow2", "node-name",
	    json_sprintf("disk%zu", i), "discard", "unmap", "l2-cache-entry-size", 4096, "cache", "no-flush", true,
	    "file", "driver", "file", "filename", json_sprintf("%s/disk%zu.qcow2", dir, i), "cache", "no-flush", true);

	layers_add(a, strdup("--blockdev"));
	layers_add(a, o ? jsn_text(o) : NULL);
	layers_add(a, strdup("--export"));
	layers_add(a, str_printf("nbd,id=disk%zu,node-name=disk%zu,name=disk%zu,writable=on", i, i, i));
}

static int layers_spawn(const struct local *l, const char *dir, struct local_layers *ly, int server, struct err *e)
{
	_cleanup_(layers_args_release) struct layers_args a = {0};
	struct proc_opts o = PROC_OPTS_INIT;

	layers_add(&a, strdup("qemu-storage-daemon"));
	layers_add(&a, strdup("--nbd-server"));
	layers_add(&a, str_printf("addr.type=fd,addr.str=%d", server));
	for (size_t i = 0; i < ly->n; i++)
		if (ly->served[i])
			layers_add_disk(&a, dir, i);
	if (a.failed)
		return err_nomem(e);
	o.user = l->user;
	o.die_with_us = true;
	o.keep = &server;
	o.nkeep = 1;
	return proc_spawn((const char *const *)a.v, &o, &ly->pid, e);
}

int local_layers_serve(const struct local *l, const char *dir, const char *run_dir, struct local_layers *ly,
		       struct err *e)
{
	_cleanup_close_ int server = -1;
	size_t any = 0;
	int r;

	ly->pid = -1;
	ly->n = local_disks(dir);
	for (size_t i = 0; i < ly->n; i++) {
		char raw[PATH_MAX + 64];

		snprintf(raw, sizeof(raw), "%s/disk%zu.raw", dir, i);
		ly->served[i] = access(raw, F_OK) < 0;
		ly->fd[i] = -1;
		any += ly->served[i];
	}
	if (!any)
		return 0;
	server = layers_socket(e);
	if (server < 0)
		return server;
	r = layers_connect(ly, run_dir, server, e);
	return r < 0 ? r : layers_spawn(l, dir, ly, server, e);
}

void local_layers_drop(struct local_layers *ly)
{
	for (size_t i = 0; i < ly->n; i++)
		if (ly->fd[i] >= 0)
			close(take_fd(&ly->fd[i]));
}

void local_layers_stop(struct local_layers *ly)
{
	local_layers_drop(ly);
	if (ly->pid > 0)
		proc_stop(ly->pid, LAYERS_GRACE);
	ly->pid = -1;
}

int local_layers_option(const struct local_layers *ly, char *buf, size_t size)
{
	size_t at = 0;

	for (size_t i = 0; i < ly->n && at < size; i++) {
		if (ly->served[i])
			at += (size_t)snprintf(buf + at, size - at, "%s%d", i ? "," : "", ly->fd[i]);
		else
			at += (size_t)snprintf(buf + at, size - at, "%s-", i ? "," : "");
	}
	return at < size ? 0 : -ENAMETOOLONG;
}
