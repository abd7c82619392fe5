#include "provider/qemu.h"

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

#define QEMU_PROGRAM  "qemu-system-x86_64"
#define SERIAL_KEEP   (128u << 10)
#define COMPLAINT_MAX 4096
#define QMP_SECONDS   30.0
#define TRIAL_SECONDS 2.0
#define DRAIN_SECONDS 2.0
#define TRIAL_AGAIN   600.0 /* after a trial that did not succeed; it may have been the host that was slow */
/* mov al,0x10; mov dx,0xf4; out dx,al; hlt; jmp $-1: a write to isa-debug-exit ends QEMU with (0x10 << 1) | 1. */
#define TRIAL_CODE   "\xb0\x10\xba\xf4\x00\xee\xf4\xeb\xfd"
#define TRIAL_STATUS 0x21

enum { CH_QMP, CH_PORT, CH_SERIAL, CH_STDERR, CH_COUNT };

struct qemu {
	pid_t pid;
	bool ended, no_space;
	int fd[CH_COUNT];
	struct qemu_lines qmp, port;
	struct str serial;
	struct str complaint;
	json_t *reply; /* the last QMP answer that wasn't taken */
	void (*console)(void *arg, const char *p, size_t n);
	void *console_arg;
};

/* ---- command line ---- */

/* Strings owned by the list, NULL at the end. */
struct qemu_args {
	char *v[64 + 4 * QEMU_DISKS_MAX];
	size_t n;
	bool failed;
	int keep[CH_STDERR +
		 QEMU_DISKS_MAX]; /* what QEMU gets: its ends of the channels, and open files, which are ours */
	size_t nkeep;
};

static void args_release(struct qemu_args *a)
{
	for (size_t i = CH_STDERR; i < a->nkeep; i++)
		close(a->keep[i]);
	for (size_t i = 0; i < a->n; i++)
		free(a->v[i]);
}

static void args_take(struct qemu_args *a, char *s)
{
	if (!s || a->n + 1 >= ARRAY_SIZE(a->v)) {
		free(s);
		a->failed = true;
		return;
	}
	a->v[a->n++] = s;
}

static void args_add(struct qemu_args *a, const char *option, const char *value)
{
	args_take(a, strdup(option));
	if (value)
		args_take(a, strdup(value));
}

/* JSON, because a path may hold what QEMU's own option syntax would split. Takes `o`. */
static void args_json(struct qemu_args *a, const char *option, json_t *o)
{
	args_take(a, strdup(option));
	args_take(a, o ? jsn_text(o) : NULL);
	json_decref(o);
}

static int args_open(struct qemu_args *a, const char *path, char *out, size_t size, struct err *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return err_sys(e, "cannot open '%s'", path);
	a->keep[a->nkeep++] = fd;
	snprintf(out, size, "/proc/self/fd/%d", fd);
	return 0;
}

static int args_disk(struct qemu_args *a, const struct qemu_disk *d, size_t i, struct err *e)
{
	char node[32], opened[32];
	const char *path = d->readonly ? opened : d->path;
	int r = d->readonly ? args_open(a, d->path, opened, sizeof(opened), e) : 0;
	json_t *device;

	if (r < 0)
		return r;
	snprintf(node, sizeof(node), "disk%zu", i);
	/* What is written here is thrown away or synced by the provider afterwards: flushes cost time for nothing. */
	args_json(a, "-blockdev",
		  json_pack("{s:s, s:s, s:b, s:s, s:{s:b}, s:{s:s, s:s, s:{s:b}}}", "node-name", node, "driver",
			    d->format, "read-only", d->readonly, "discard", "unmap", "cache", "no-flush", true, "file",
			    "driver", "file", "filename", path, "cache", "no-flush", true));
	device = json_pack("{s:s, s:s, s:s}", "driver", "virtio-blk-pci", "drive", node, "serial", d->serial);
	if (device && d->boot)
		json_object_set_new(device, "bootindex", json_integer(1));
	args_json(a, "-device", device);
	return 0;
}

static void args_channel(struct qemu_args *a, const char *id, int fd)
{
	args_take(a, strdup("-chardev"));
	args_take(a, str_printf("socket,id=%s,fd=%d", id, fd));
}

static void args_machine(struct qemu_args *a, const struct qemu_settings *s)
{
	args_add(a, QEMU_PROGRAM, NULL);
	args_add(a, "-nodefaults", NULL);
	args_add(a, "-no-user-config", NULL);
	args_add(a, "-no-reboot", NULL);
	/* graphics=off: the firmware, and through it GRUB, also write on the serial line. */
	args_add(a, "-machine", "q35,graphics=off,usb=off,vmport=off");
	/*
	 * One thread for all processors: QEMU before 8.1 does not lock a page while it translates it, so that a kernel
	 * that patches its own code on one processor (a static key) can crash on another at an int3 long gone.
	 */
	args_add(a, "-accel", strcmp(s->accel, "kvm") == 0 ? "kvm" : "tcg,thread=single");
	args_add(a, "-cpu", strcmp(s->accel, "kvm") == 0 ? "host" : "max");
	args_take(a, strdup("-m"));
	args_take(a, str_printf("%u", s->memory_mib));
	args_take(a, strdup("-smp"));
	args_take(a, str_printf("%u", s->cpus));
	args_add(a, "-display", "none");
	args_add(a, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
	if (s->screen)
		args_add(a, "-device", "VGA");
	if (s->kernel) {
		args_add(a, "-kernel", s->kernel);
		args_add(a, "-initrd", s->initrd);
		args_add(a, "-append", s->append);
	}
}

static int args_build(struct qemu_args *a, const struct qemu_settings *s, const int child[CH_STDERR], struct err *e)
{
	int r = 0;

	must(s->ndisks <= QEMU_DISKS_MAX);
	memcpy(a->keep, child, CH_STDERR * sizeof(*child));
	a->nkeep = CH_STDERR;
	args_machine(a, s);
	args_channel(a, "qmp", child[CH_QMP]);
	args_add(a, "-mon", "chardev=qmp,mode=control");
	args_channel(a, "serial", child[CH_SERIAL]);
	args_add(a, "-device", "isa-serial,chardev=serial");
	args_add(a, "-device", "virtio-serial-pci");
	args_channel(a, "port", child[CH_PORT]);
	args_json(a, "-device",
		  json_pack("{s:s, s:s, s:s}", "driver", "virtserialport", "chardev", "port", "name", s->port));
	args_add(a, "-device", "virtio-rng-pci");
	for (size_t i = 0; i < s->ndisks && r == 0; i++)
		r = args_disk(a, &s->disks[i], i, e);
	if (s->network) {
		uint8_t mac[3];

		id_random(mac, sizeof(mac));
		args_add(a, "-netdev", "user,id=net,restrict=on");
		args_take(a, strdup("-device"));
		args_take(a, str_printf("virtio-net-pci,netdev=net,romfile=,mac=52:54:00:%02x:%02x:%02x", mac[0],
					mac[1], mac[2]));
	}
	return r == 0 && a->failed ? err_nomem(e) : r;
}

/* ---- life ---- */

static int qemu_channels(struct qemu *vm, int child[CH_COUNT], struct err *e)
{
	for (int i = 0; i < CH_COUNT; i++) {
		int p[2];

		if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, p) < 0)
			return err_sys(e, "cannot make a channel to QEMU");
		vm->fd[i] = p[0];
		child[i] = p[1];
		if (fcntl(p[0], F_SETFL, O_NONBLOCK) < 0)
			return err_sys(e, "cannot make a channel to QEMU");
	}
	return 0;
}

static int qemu_spawn(struct qemu *vm, const struct qemu_settings *s, const int child[CH_COUNT], struct err *e)
{
	_cleanup_(args_release) struct qemu_args a = {0};
	struct proc_opts o = PROC_OPTS_INIT;
	int r = args_build(&a, s, child, e);

	if (r < 0)
		return r;
	o.stderr_fd = child[CH_STDERR];
	o.die_with_us = true;
	o.user = s->user;
	o.keep = a.keep;
	o.nkeep = a.nkeep;
	return proc_spawn((const char *const *)a.v, &o, &vm->pid, e);
}

static int qemu_greet(struct qemu *vm, struct err *e)
{
	int r = qemu_command(vm, "qmp_capabilities", NULL, NULL, e);

	if (r < 0 && vm->ended)
		r = err_set(e, -EIO, "QEMU did not start: %s", qemu_complaint(vm));
	return r;
}

int qemu_start(const struct qemu_settings *s, struct qemu **ret, struct err *e)
{
	struct qemu *vm = calloc(1, sizeof(*vm));
	int child[CH_COUNT] = {-1, -1, -1, -1};
	int r;

	if (!vm)
		return err_nomem(e);
	must(s->ndisks <= QEMU_DISKS_MAX);
	vm->console = s->console;
	vm->console_arg = s->console_arg;
	for (int i = 0; i < CH_COUNT; i++)
		vm->fd[i] = -1;
	r = qemu_channels(vm, child, e);
	if (r == 0)
		r = qemu_spawn(vm, s, child, e);
	for (int i = 0; i < CH_COUNT; i++)
		if (child[i] >= 0)
			close(child[i]);
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

/* Answers are kept. Of the events only BLOCK_IO_ERROR matters: QEMU has stopped the guest because the host's disk is
 * full. */
static int qemu_take_qmp(struct qemu *vm, struct err *e)
{
	json_t *o = NULL;
	int r;

	while ((r = qemu_lines_next(&vm->qmp, &o, e)) == 1) {
		if (json_object_get(o, "return") || json_object_get(o, "error")) {
			json_decref(vm->reply);
			vm->reply = o;
		} else {
			vm->no_space |= json_is_true(json_object_get(json_object_get(o, "data"), "nospace"));
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

int qemu_command(struct qemu *vm, const char *command, json_t *arguments, json_t **ret_return, struct err *e)
{
	_cleanup_json_ json_t *o = json_pack("{s:s, s:o*}", "execute", command, "arguments", arguments);
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
