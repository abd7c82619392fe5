#include "provider/qemu_int.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/util.h"

#define SERIAL_KEEP   (128u << 10)
#define COMPLAINT_MAX 4096
#define QMP_SECONDS   30.0
#define TRIAL_SECONDS 2.0
#define DRAIN_SECONDS 2.0
#define TRIAL_AGAIN   600.0 /* after a trial that did not succeed; it may have been the host that was slow */
/* mov al,0x10; mov dx,0xf4; out dx,al; hlt; jmp $-1: a write to isa-debug-exit ends QEMU with (0x10 << 1) | 1. */
#define TRIAL_CODE   "\xb0\x10\xba\xf4\x00\xee\xf4\xeb\xfd"
#define TRIAL_STATUS 0x21

/* ---- life ---- */

struct qemu *qemu_new(void)
{
	struct qemu *vm = calloc(1, sizeof(*vm));

	for (int i = 0; vm && i < CH_COUNT; i++)
		vm->fd[i] = -1;
	/* Other numbers than those of an earlier connection, whose answers may come on this one. */
	if (vm)
		vm->asked = (json_int_t)(id_now_mono() * 1e6);
	return vm;
}

static int qemu_channel(struct qemu *vm, int ch, int child[CH_COUNT], struct err *e)
{
	int p[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p) < 0)
		return err_sys(e, "cannot make a channel to QEMU");
	vm->fd[ch] = p[0];
	child[ch] = p[1];
	return fcntl(p[0], F_SETFL, O_NONBLOCK) < 0 ? err_sys(e, "cannot make a channel to QEMU") : 0;
}

/* *ret_alive: a lock for one with a life of its own. */
static int qemu_channels(struct qemu *vm, const struct qemu_settings *s, int child[CH_COUNT], int *ret_alive,
			 struct err *e)
{
	int r = qemu_channel(vm, CH_STDERR, child, e);

	if (s->life)
		return r ?: qemu_life_prepare(s->life, &child[CH_QMP], ret_alive, &vm->fd[CH_QMP], e);
	r = r ?: qemu_channel(vm, CH_QMP, child, e);
	r = r ?: qemu_channel(vm, CH_SERIAL, child, e);
	return r == 0 && s->port ? qemu_channel(vm, CH_PORT, child, e) : r;
}

/* What QEMU gets besides its standard descriptors. */
static size_t qemu_kept(const struct qemu_args *a, const struct qemu_settings *s, const int child[CH_COUNT], int alive,
			int *keep, size_t max)
{
	size_t n = 0;

	must(CH_COUNT + a->nopened + (s->life ? 1 + s->life->nkeep : 0) <= max);
	for (int i = 0; i < CH_STDERR; i++)
		if (child[i] >= 0)
			keep[n++] = child[i];
	for (size_t i = 0; i < a->nopened; i++)
		keep[n++] = a->opened[i];
	if (alive >= 0)
		keep[n++] = alive;
	for (size_t i = 0; s->life && i < s->life->nkeep; i++)
		keep[n++] = s->life->keep[i];
	return n;
}

static int qemu_spawn(struct qemu *vm, const struct qemu_settings *s, const int child[CH_COUNT], int alive,
		      struct err *e)
{
	_cleanup_(qemu_args_release) struct qemu_args a = {0};
	struct proc_opts o = PROC_OPTS_INIT;
	int keep[QEMU_DISKS_MAX + 16], r = qemu_args_build(&a, s, child, e);

	if (r < 0)
		return r;
	o.stderr_fd = child[CH_STDERR];
	o.die_with_us = !s->life;
	o.detached = s->life;
	o.user = s->user;
	o.keep = keep;
	o.nkeep = qemu_kept(&a, s, child, alive, keep, ARRAY_SIZE(keep));
	r = proc_spawn((const char *const *)a.v, &o, &vm->pid, e);
	if (r < 0 || s->life)
		vm->pid = -1;
	return r;
}

int qemu_greet(struct qemu *vm, struct err *e)
{
	int r = qemu_command(vm, "qmp_capabilities", NULL, NULL, e);

	if (r < 0 && vm->ended)
		r = err_set(e, -EIO, "QEMU did not start: %s", qemu_complaint(vm));
	return r;
}

int qemu_start(const struct qemu_settings *s, struct qemu **ret, struct err *e)
{
	struct qemu *vm = qemu_new();
	int child[CH_COUNT] = {-1, -1, -1, -1}, alive = -1;
	int r;

	if (!vm)
		return err_nomem(e);
	vm->console = s->console;
	vm->console_arg = s->console_arg;
	r = qemu_channels(vm, s, child, &alive, e);
	if (r == 0)
		r = qemu_spawn(vm, s, child, alive, e);
	for (int i = 0; i < CH_COUNT; i++)
		if (child[i] >= 0)
			close(child[i]);
	if (alive >= 0)
		close(alive);
	if (r == 0)
		r = qemu_greet(vm, e);
	if (r < 0) {
		qemu_stop(vm);
		return r;
	}
	*ret = vm;
	return 0;
}

void qemu_stop(struct qemu *vm)
{
	if (!vm)
		return;
	if (vm->pid > 0)
		proc_stop(vm->pid, vm->ended ? 2 : 0);
	for (int i = 0; i < CH_COUNT; i++)
		if (vm->fd[i] >= 0)
			close(vm->fd[i]);
	qemu_lines_release(&vm->qmp);
	qemu_lines_release(&vm->port);
	str_release(&vm->serial);
	str_release(&vm->complaint);
	json_decref(vm->reply);
	free(vm);
}

/* ---- channels ---- */

static void qemu_keep_tail(struct str *s, const char *p, size_t n, size_t keep)
{
	/* A NUL would end the text for everybody who reads it. */
	for (size_t i = 0; i < n; i++)
		str_add_mem(s, p[i] ? p + i : "?", 1);
	if (s->s && s->len > 2 * keep) {
		memmove(s->s, s->s + s->len - keep, keep + 1);
		s->len = keep;
	}
}

static void qemu_take(struct qemu *vm, int ch, const char *p, size_t n)
{
	if (vm->console && (ch == CH_SERIAL || ch == CH_STDERR))
		vm->console(vm->console_arg, p, n);
	switch (ch) {
	case CH_QMP:
		qemu_lines_add(&vm->qmp, p, n);
		break;
	case CH_PORT:
		qemu_lines_add(&vm->port, p, n);
		break;
	case CH_SERIAL:
		qemu_keep_tail(&vm->serial, p, n, SERIAL_KEEP);
		break;
	default:
		qemu_keep_tail(&vm->complaint, p, n, COMPLAINT_MAX);
	}
}

/* BLOCK_IO_ERROR: QEMU has stopped the guest because the host's disk is full. SHUTDOWN: of a machine that may not start
 * twice also when the guest has restarted it. */
static void qemu_heed(struct qemu *vm, const json_t *event)
{
	const json_t *data = json_object_get(event, "data");

	vm->no_space |= json_is_true(json_object_get(data, "nospace"));
	vm->reset |= strcmp(json_string_value(json_object_get(data, "reason")) ?: "", "guest-reset") == 0;
}

/* The answer is kept, one that comes late to an earlier command is not; events are heeded. */
static int qemu_take_qmp(struct qemu *vm, struct err *e)
{
	json_t *o = NULL;
	int r;

	while ((r = qemu_lines_next(&vm->qmp, &o, e)) == 1) {
		if (json_object_get(o, "return") || json_object_get(o, "error")) {
			const json_t *id = json_object_get(o, "id");

			if (json_is_integer(id) && json_integer_value(id) == vm->asked && !vm->reply)
				vm->reply = o;
			else
				json_decref(o);
		} else {
			qemu_heed(vm, o);
			json_decref(o);
		}
	}
	return r;
}

static void qemu_read(struct qemu *vm, int ch)
{
	char buf[16384];
	ssize_t n = read(vm->fd[ch], buf, sizeof(buf));

	if (n > 0) {
		qemu_take(vm, ch, buf, (size_t)n);
	} else if (n == 0 || (errno != EAGAIN && errno != EINTR)) {
		close(vm->fd[ch]);
		vm->fd[ch] = -1;
		vm->ended |= ch == CH_QMP;
	}
}

/* What was sent before the end is still in the channels. */
static void qemu_drain(struct qemu *vm)
{
	/* Nobody writes any more but what inherited the other end. */
	double end = id_now_mono() + DRAIN_SECONDS;

	for (int i = 0; i < CH_COUNT; i++) {
		struct pollfd p = {.fd = vm->fd[i], .events = POLLIN};

		while (vm->fd[i] >= 0 && id_now_mono() < end && poll(&p, 1, 0) > 0) {
			qemu_read(vm, i);
			p.fd = vm->fd[i];
		}
	}
}

int qemu_pump(struct qemu *vm, double timeout, struct err *e)
{
	double end = id_now_mono() + timeout;
	bool arrived = false;

	do {
		struct pollfd p[CH_COUNT];
		double left = end - id_now_mono();
		bool open = false;
		int r;

		for (int i = 0; i < CH_COUNT; i++) {
			p[i] = (struct pollfd){.fd = vm->fd[i], .events = POLLIN};
			open |= vm->fd[i] >= 0;
		}
		if (!open)
			break;
		if (poll(p, CH_COUNT, left > 0 ? (int)(left * 1000) : 0) < 0 && errno != EINTR)
			return err_sys(e, "cannot wait for QEMU");
		for (int i = 0; i < CH_COUNT; i++) {
			if (p[i].fd < 0 || !p[i].revents)
				continue;
			arrived |= i == CH_PORT || i == CH_QMP;
			qemu_read(vm, i);
		}
		if (vm->ended)
			qemu_drain(vm);
		r = qemu_take_qmp(vm, e);
		if (r < 0)
			return r;
	} while (!arrived && id_now_mono() < end);
	return 0;
}

bool qemu_ended(const struct qemu *vm)
{
	return vm->ended;
}

bool qemu_no_space(const struct qemu *vm)
{
	return vm->no_space;
}

bool qemu_was_reset(const struct qemu *vm)
{
	return vm->reset;
}

int qemu_next_event(struct qemu *vm, json_t **ret, struct err *e)
{
	return qemu_lines_next(&vm->port, ret, e);
}

static int qemu_write(struct qemu *vm, int ch, const json_t *o, struct err *e)
{
	_cleanup_free_ char *text = jsn_text(o);
	_cleanup_(str_release) struct str line = {0};
	size_t done = 0;
	double end = id_now_mono() + QMP_SECONDS;

	if (!text)
		return err_nomem(e);
	str_addf(&line, "%s\n", text);
	if (!str_ok(&line))
		return err_nomem(e);
	while (done < line.len) {
		struct pollfd p = {.fd = vm->fd[ch], .events = POLLOUT};
		ssize_t n = vm->fd[ch] < 0 ? -1 : send(vm->fd[ch], line.s + done, line.len - done, MSG_NOSIGNAL);

		if (n > 0) {
			done += (size_t)n;
			continue;
		}
		if (vm->fd[ch] < 0 || (errno != EAGAIN && errno != EINTR) || id_now_mono() > end)
			return err_set(e, -EPIPE, "QEMU does not listen: %s", qemu_complaint(vm));
		poll(&p, 1, 200);
	}
	return 0;
}

int qemu_send(struct qemu *vm, const json_t *request, struct err *e)
{
	return qemu_write(vm, CH_PORT, request, e);
}

/* One with a life of its own that owes an answer: whoever needs to know connects to it anew. */
static void qemu_cut(struct qemu *vm)
{
	if (vm->fd[CH_QMP] >= 0)
		close(take_fd(&vm->fd[CH_QMP]));
	vm->ended = true;
}

int qemu_command(struct qemu *vm, const char *command, json_t *arguments, json_t **ret_return, struct err *e)
{
	_cleanup_json_ json_t *o =
	    json_pack("{s:s, s:I, s:o*}", "execute", command, "id", ++vm->asked, "arguments", arguments);
	_cleanup_json_ json_t *reply = NULL;
	double end = id_now_mono() + QMP_SECONDS;
	json_t *error;
	int r;

	if (!o)
		return err_nomem(e);
	json_decref(vm->reply);
	vm->reply = NULL;
	r = qemu_write(vm, CH_QMP, o, e);
	while (r == 0 && !vm->reply && !vm->ended && id_now_mono() < end)
		r = qemu_pump(vm, 0.2, e);
	if (!vm->reply && vm->pid <= 0)
		qemu_cut(vm);
	if (r < 0)
		return r;
	if (!vm->reply)
		return err_set(e, -EIO, "QEMU did not answer '%s': %s", command, qemu_complaint(vm));
	reply = take_ptr(&vm->reply);
	error = json_object_get(reply, "error");
	if (error)
		return err_set(e, -EIO, "QEMU refused '%s': %s", command,
			       json_string_value(json_object_get(error, "desc")) ?: "no reason given");
	if (ret_return)
		*ret_return = json_incref(json_object_get(reply, "return"));
	return 0;
}

int qemu_screenshot(struct qemu *vm, const char *path, struct err *e)
{
	return qemu_command(vm, "screendump", json_pack("{s:s, s:s}", "filename", path, "format", "png"), NULL, e);
}

const char *qemu_serial(const struct qemu *vm)
{
	return vm->serial.s ? vm->serial.s : "";
}

const char *qemu_complaint(const struct qemu *vm)
{
	return vm->complaint.s ? vm->complaint.s : "";
}

/* ---- accelerator ---- */

static bool trial_run(const char *image, const char *user)
{
	const char *const argv[] = {
	    QEMU_PROGRAM,  "-machine", "q35",  "-accel", "kvm", "-cpu",    "host",
	    "-nodefaults", "-display", "none", "-m",     "32",  "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
	    "-drive",      image,      NULL};
	_cleanup_close_ int null_fd = open("/dev/null", O_WRONLY | O_CLOEXEC);
	struct proc_opts o = PROC_OPTS_INIT;
	double end = id_now_mono() + TRIAL_SECONDS;
	pid_t pid;

	o.user = user;
	o.stderr_fd = null_fd;
	o.die_with_us = true;
	if (proc_spawn(argv, &o, &pid, NULL) < 0)
		return false;
	while (id_now_mono() < end) {
		struct timespec ts = {.tv_nsec = 20 * 1000 * 1000};
		int status;

		if (waitpid(pid, &status, WNOHANG) == pid)
			return WIFEXITED(status) && WEXITSTATUS(status) == TRIAL_STATUS;
		nanosleep(&ts, NULL);
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return false;
}

static int trial_kvm(const char *cache, const char *user, bool *ret, struct err *e)
{
	char sector[65536] = TRIAL_CODE, path[PATH_MAX], option[PATH_MAX + 64], name[ID_MAX];
	int r;

	memcpy(sector + 510, "\x55\xaa", 2);
	id_new("trial", name);
	if ((size_t)snprintf(path, sizeof(path), "%s/%s.img", cache, name) >= sizeof(path) || strchr(path, ','))
		return err_set(e, -EINVAL, "the path '%s' is too long or has a comma in it", cache);
	r = io_write_file_atomic(path, sector, sizeof(sector), 0644, e);
	if (r < 0)
		return r;
	/* Read-only for a user who may not write there. */
	snprintf(option, sizeof(option), "file=%s,format=raw,if=ide,snapshot=on,readonly=off", path);
	/* Whatever our umask is. */
	*ret = chmod(path, 0644) == 0 && trial_run(option, user);
	unlink(path);
	return 0;
}

/* A guest that ran is remembered until the host is restarted, one that didn't for a while. */
static int accelerator_kvm(const char *cache, const char *user, bool *ret, struct err *e)
{
	static double failed_until;
	_cleanup_free_ char *boot = NULL, *known = NULL, *text = NULL;
	char path[PATH_MAX + 64];
	int r;

	*ret = false;
	if (access("/dev/kvm", F_OK) < 0 || id_now_mono() < failed_until)
		return 0;
	r = io_read_file("/proc/sys/kernel/random/boot_id", 128, &boot, NULL, e);
	if (r < 0)
		return r;
	boot[strcspn(boot, "\n")] = '\0';
	snprintf(path, sizeof(path), "%s/accelerator", cache);
	if (io_read_file(path, 256, &known, NULL, NULL) == 0 && str_starts(known, boot) && strstr(known, " kvm")) {
		*ret = true;
		return 0;
	}
	r = trial_kvm(cache, user, ret, e);
	if (r < 0 || !*ret) {
		failed_until = id_now_mono() + TRIAL_AGAIN;
		return r;
	}
	text = str_printf("%s kvm\n", boot);
	return text ? io_write_file_atomic(path, text, strlen(text), 0644, e) : err_nomem(e);
}

int qemu_accelerator(const char *cache, const char *user, const char **ret, struct err *e)
{
	static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
	bool kvm = false;
	int r;

	pthread_mutex_lock(&lock);
	r = accelerator_kvm(cache, user, &kvm, e);
	pthread_mutex_unlock(&lock);
	if (r == 0)
		*ret = kvm ? "kvm" : "tcg";
	return r;
}
