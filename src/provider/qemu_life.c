/*
 * A machine that outlives us. It is known by a lock: QEMU inherits the open file, and the kernel lets go of the lock
 * with the process, whatever ends it. What it says goes over a socket in a directory that only we may enter, to whoever
 * connects.
 */
#include "provider/qemu_int.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <openssl/evp.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/id.h"
#include "base/jsn.h"
#include "base/util.h"

#define END_SECONDS  10.0 /* from "quit" to SIGKILL, and from there to its end */
#define SERIAL_CHUNK (256u << 10)
#define QMP_BACKLOG  8

static int life_open_dir(const char *dir, struct err *e)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);

	return fd < 0 ? err_sys(e, "cannot open '%s'", dir) : fd;
}

/* A short name, for a socket's address has room for 107 characters. */
static void life_address(struct sockaddr_un *ret, int dirfd)
{
	*ret = (struct sockaddr_un){.sun_family = AF_UNIX};
	snprintf(ret->sun_path, sizeof(ret->sun_path), "/proc/self/fd/%d/qmp", dirfd);
}

static int life_connect(int dirfd, struct err *e)
{
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un at;

	life_address(&at, dirfd);
	if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof(at)) < 0)
		return err_sys(e, "cannot reach QEMU");
	return take_fd(&fd);
}

static int life_listen(int dirfd, struct err *e)
{
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un at;

	if (unlinkat(dirfd, "qmp", 0) < 0 && errno != ENOENT)
		return err_sys(e, "cannot remove the socket 'qmp'");
	life_address(&at, dirfd);
	if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof(at)) < 0 || listen(fd, QMP_BACKLOG) < 0)
		return err_sys(e, "cannot make the socket 'qmp'");
	return take_fd(&fd);
}

/* The lock, if nobody has it. -EBUSY */
static int life_lock(int dirfd, struct err *e)
{
	_cleanup_close_ int fd = openat(dirfd, "alive", O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);

	if (fd < 0)
		return err_sys(e, "cannot open the file 'alive' of a machine");
	if (flock(fd, LOCK_EX | LOCK_NB) == 0)
		return take_fd(&fd);
	return errno == EWOULDBLOCK ? err_set(e, -EBUSY, "it runs already")
				    : err_sys(e, "cannot lock the file 'alive'");
}

int qemu_life_prepare(const struct qemu_life *life, int *ret_listen, int *ret_alive, int *ret_qmp, struct err *e)
{
	_cleanup_close_ int dirfd = life_open_dir(life->dir, e), alive = -1, server = -1, client = -1;

	if (dirfd < 0)
		return dirfd;
	alive = life_lock(dirfd, e);
	if (alive < 0)
		return alive;
	server = life_listen(dirfd, e);
	if (server < 0)
		return server;
	client = life_connect(dirfd, e);
	if (client < 0)
		return client;
	*ret_alive = take_fd(&alive);
	*ret_listen = take_fd(&server);
	*ret_qmp = take_fd(&client);
	return 0;
}

int qemu_is_alive(const char *dir, struct err *e)
{
	_cleanup_close_ int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), fd = -1;
	struct err why = {0};

	if (dirfd < 0)
		return errno == ENOENT ? 0 : err_sys(e, "cannot open '%s'", dir);
	fd = life_lock(dirfd, &why);
	if (fd >= 0)
		return 0;
	return fd == -EBUSY ? 1 : err_set(e, fd, "%s", why.msg);
}

int qemu_attach(const char *dir, struct qemu **ret, struct err *e)
{
	_cleanup_close_ int dirfd = life_open_dir(dir, e);
	struct qemu *vm = dirfd >= 0 ? qemu_new() : NULL;
	int r;

	if (!vm)
		return dirfd < 0 ? dirfd : err_nomem(e);
	r = vm->fd[CH_QMP] = life_connect(dirfd, e);
	r = r < 0 ? r : qemu_greet(vm, e);
	if (r < 0) {
		qemu_stop(vm);
		return r;
	}
	*ret = vm;
	return 0;
}

/* ---- its end ---- */

static int life_wait_end(const char *dir, double seconds, struct err *e)
{
	double end = id_now_mono() + seconds;
	int r;

	while ((r = qemu_is_alive(dir, e)) > 0 && id_now_mono() < end)
		nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
	return r;
}

/* Who has the lock of the pid file, says the kernel: what is written in it could be anybody's number. */
static pid_t life_holder(int fd)
{
	struct flock lk = {.l_type = F_WRLCK, .l_whence = SEEK_SET};

	return fcntl(fd, F_GETLK, &lk) == 0 && lk.l_type != F_UNLCK ? lk.l_pid : -1;
}

static int life_kill(const struct qemu_life *life, struct err *e)
{
	char path[PATH_MAX];
	_cleanup_close_ int fd = -1, process = -1;
	pid_t pid;

	if ((size_t)snprintf(path, sizeof(path), "%s/pid", life->scratch) >= sizeof(path))
		return err_set(e, -ENAMETOOLONG, "path '%s' is too long", life->scratch);
	fd = open(path, O_RDWR | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
	pid = fd < 0 ? -1 : life_holder(fd);
	process = pid <= 0 ? -1 : (int)syscall(SYS_pidfd_open, pid, 0);
	/* Still the same one, now that its number can't become another's. */
	if (process < 0 || life_holder(fd) != pid)
		return err_set(e, -EBUSY, "QEMU does not answer, and which process it is can't be told");
	return syscall(SYS_pidfd_send_signal, process, SIGKILL, NULL, 0) < 0 ? err_sys(e, "cannot end QEMU") : 0;
}

int qemu_end(const struct qemu_life *life, bool ask, struct err *e)
{
	struct qemu *vm = NULL;
	int r = qemu_is_alive(life->dir, e);

	if (r <= 0)
		return r;
	ask = ask && qemu_attach(life->dir, &vm, NULL) == 0;
	if (ask)
		qemu_command(vm, "quit", NULL, NULL, NULL);
	qemu_stop(vm);
	r = life_wait_end(life->dir, ask ? END_SECONDS : 0, e);
	if (r <= 0)
		return r;
	r = life_kill(life, e);
	if (r == -EBUSY && qemu_is_alive(life->dir, NULL) == 0)
		return 0;
	r = r ?: life_wait_end(life->dir, END_SECONDS, e);
	return r > 0 ? err_set(e, -EBUSY, "QEMU does not end") : r;
}

/* ---- what it tells ---- */

static int life_decode(const char *text, struct str *ret, struct err *e)
{
	size_t n = strlen(text);
	_cleanup_free_ unsigned char *buf = malloc(n + 1);
	int got;

	if (!buf)
		return err_nomem(e);
	got = n > INT_MAX ? -1 : EVP_DecodeBlock(buf, (const unsigned char *)text, (int)n);
	/* Its padding counts as bytes there. */
	while (got > 0 && n && text[n - 1] == '=')
		got--, n--;
	if (got < 0)
		return err_set(e, -EPROTO, "QEMU sent a serial line that can't be read");
	str_add_mem(ret, buf, (size_t)got);
	return str_ok(ret) ? 0 : err_nomem(e);
}

int qemu_read_serial(struct qemu *vm, struct str *ret, struct err *e)
{
	/* One that writes faster than we read isn't followed for ever. */
	for (size_t i = 0; i < 2 * (QEMU_SERIAL_KEPT / SERIAL_CHUNK); i++) {
		_cleanup_json_ json_t *got = NULL;
		int r = qemu_command(
		    vm, "ringbuf-read",
		    json_pack("{s:s, s:i, s:s}", "device", "serial", "size", (int)SERIAL_CHUNK, "format", "base64"),
		    &got, e);

		if (r == 0 && !json_string_length(got))
			return 0;
		r = r ?: life_decode(json_string_value(got), ret, e);
		if (r < 0)
			return r;
	}
	return 0;
}

int qemu_status(struct qemu *vm, char *buf, size_t size, struct err *e)
{
	_cleanup_json_ json_t *got = NULL;
	int r = qemu_command(vm, "query-status", NULL, &got, e);

	if (r == 0)
		snprintf(buf, size, "%s", json_string_value(json_object_get(got, "status")) ?: "");
	return r;
}

/* Its name, or of virtio the path of what is inside it: "/machine/peripheral/disk0/virtio-backend". */
static bool life_is_device(const char *qdev, const char *id)
{
	static const char prefix[] = "/machine/peripheral/";
	size_t n = strlen(id);

	if (qdev && strcmp(qdev, id) == 0)
		return true;
	return qdev && str_starts(qdev, prefix) && strncmp(qdev + sizeof(prefix) - 1, id, n) == 0 &&
	       (qdev[sizeof(prefix) - 1 + n] == '\0' || qdev[sizeof(prefix) - 1 + n] == '/');
}

int qemu_disk_node(struct qemu *vm, size_t i, char node[QEMU_NODE_MAX], struct err *e)
{
	_cleanup_json_ json_t *list = NULL;
	char id[32];
	json_t *o;
	size_t k;
	int r = qemu_command(vm, "query-block", NULL, &list, e);

	if (r < 0)
		return r;
	snprintf(id, sizeof(id), "disk%zu", i);
	json_array_foreach(list, k, o)
	{
		const char *name = json_string_value(json_object_get(json_object_get(o, "inserted"), "node-name"));

		if (!life_is_device(json_string_value(json_object_get(o, "qdev")), id) || !name ||
		    strlen(name) >= QEMU_NODE_MAX)
			continue;
		snprintf(node, QEMU_NODE_MAX, "%s", name);
		return 0;
	}
	return err_set(e, -EPROTO, "QEMU does not say what disk %zu is", i);
}
