/* What an instance tells: serial line, screen, and how far its boot is. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "provider/local_vm_int.h"

#define TELL_TAIL     (128u << 10) /* of the serial line, to judge a boot */
#define TELL_TEXT     0xb8000u     /* where a screen of text lies */
#define TELL_COLUMNS  80u
#define TELL_LINES    25u
#define TELL_PICTURE  (16u << 20)
#define QUIET_SECONDS 120.0 /* a boot that says nothing for so long, and takes too long, has failed */

/* ---- serial line ---- */

static int tell_log(const struct vm *vm, int flags, int *ret, struct stat *st, struct err *e)
{
	struct local_path path;
	int r = vm_path(vm, &path, e, "serial.log");

	if (r < 0)
		return r;
	*ret = open(path.s, flags | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (*ret < 0 && errno == ENOENT)
		return 0;
	return *ret < 0 || fstat(*ret, st) < 0 ? err_sys(e, "cannot open '%s'", path.s) : 0;
}

/* What is old becomes a hole, so that the bytes after it keep their numbers. */
int vm_drain(struct vm *vm, struct err *e)
{
	_cleanup_(str_release) struct str text = {0};
	_cleanup_close_ int fd = -1;
	struct stat st = {0};
	off_t hole;
	int r = qemu_read_serial(vm->qemu, &text, e);

	if (r < 0 || !text.len)
		return r;
	r = tell_log(vm, O_WRONLY | O_CREAT | O_APPEND, &fd, &st, e);
	if (r < 0)
		return r;
	r = io_write_full(fd, text.s, text.len);
	hole = st.st_size + (off_t)text.len - (off_t)VM_SERIAL_KEEP;
	if (r == 0 && hole > 0 && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, hole) < 0)
		r = ftruncate(fd, 0) < 0 ? -errno : 0;
	/* A full disk loses what the guest said; it is no reason to do nothing else with it. */
	return r == -ENOSPC ? 0 : r < 0 ? err_set(e, r, "cannot keep the serial line: %s", strerror(-r)) : 0;
}

int vm_serial_read(const struct vm *vm, uint64_t since, struct str *ret, uint64_t *ret_end, struct err *e)
{
	_cleanup_close_ int fd = -1;
	_cleanup_free_ char *buf = NULL;
	struct stat st = {0};
	uint64_t end, from;
	ssize_t n;
	int r = tell_log(vm, O_RDONLY, &fd, &st, e);

	*ret_end = 0;
	if (r < 0 || fd < 0)
		return r;
	end = (uint64_t)st.st_size;
	from = since > end ? 0 : since;
	from = MAX(from, end > VM_SERIAL_KEEP ? end - VM_SERIAL_KEEP : 0);
	buf = malloc(end - from + 1);
	n = buf ? io_pread_full(fd, buf, end - from, from) : -ENOMEM;
	if (n < 0)
		return err_set(e, (int)n, "cannot read the serial line: %s", strerror((int)-n));
	str_add_mem(ret, buf, (size_t)n);
	*ret_end = from + (uint64_t)n;
	return str_ok(ret) ? 0 : err_nomem(e);
}

int vm_serial(struct hypervisor *h, const char *ref, uint64_t since, struct str *ret, uint64_t *ret_end, struct err *e)
{
	struct vm_now now;
	struct vm vm;
	int r = vm_open(h, ref, false, &vm, e);

	if (r < 0)
		return r;
	r = vm_look(&vm, &now, e);
	r = r ?: vm_serial_read(&vm, since, ret, ret_end, e);
	vm_close(&vm);
	return r;
}

/* ---- screen ---- */

/* QEMU, which the guest may have broken into, wrote it: looked at before it is believed to be a picture. */
static int tell_picture(struct vm *vm, const char *to, struct err *e)
{
	_cleanup_free_ char *png = NULL;
	struct local_path from;
	size_t len = 0;
	int r = vm_path(vm, &from, e, "scratch/screen.png");

	r = r ?: qemu_screenshot(vm->qemu, from.s, e);
	r = r ?: local_read_file(from.s, TELL_PICTURE, &png, &len, e);
	if (r == 0 && (len < 8 || memcmp(png, "\x89PNG\r\n\x1a\n", 8) != 0))
		r = err_set(e, -EIO, "QEMU gave no picture of the screen");
	return r ?: io_write_file_atomic(to, png, len, 0644, e);
}

int vm_screenshot(struct hypervisor *h, const char *ref, const char *path, struct err *e)
{
	struct vm_now now;
	struct vm vm;
	int r = vm_open(h, ref, false, &vm, e);

	if (r < 0)
		return r;
	r = vm_look(&vm, &now, e);
	if (r == 0 && !vm.qemu)
		r = err_set(e, -ENOTCONN, now.problem[0] ? "%s" : "instance '%s' is off",
			    now.problem[0] ? now.problem : ref);
	r = r ?: tell_picture(&vm, path, e);
	vm_close(&vm);
	return r;
}

/* A screen of text, as lines; "" when it is none (pictures leave anything there). */
static void tell_screen(struct vm *vm, struct str *ret)
{
	_cleanup_free_ char *cells = NULL;
	struct local_path path;
	size_t n = 0, strange = 0, all = TELL_COLUMNS * TELL_LINES;

	if (vm_path(vm, &path, NULL, "scratch/text") < 0 ||
	    qemu_command(vm->qemu, "pmemsave",
			 json_pack("{s:I, s:I, s:s}", "val", (json_int_t)TELL_TEXT, "size", (json_int_t)(all * 2),
				   "filename", path.s),
			 NULL, NULL) < 0 ||
	    local_read_file(path.s, all * 2, &cells, &n, NULL) < 0 || n != all * 2)
		return;
	for (size_t i = 0; i < all; i++) {
		unsigned char c = (unsigned char)cells[2 * i];

		strange += c && (c < ' ' || c > '~');
		str_add_mem(ret, c >= ' ' && c <= '~' ? (char *)&c : " ", 1);
		if (i % TELL_COLUMNS == TELL_COLUMNS - 1)
			str_add(ret, "\n");
	}
	if (strange > all / 20)
		str_release(ret);
}

/* ---- how far its boot is ---- */

static double tell_limit(const struct vm *vm)
{
	const char *accel = "tcg";

	qemu_accelerator(vm->l->cache, vm->l->user, &accel, NULL);
	return strcmp(accel, "kvm") == 0 ? 300 : 900;
}

/* Has it said nothing for long, and is it late? */
static bool tell_is_late(const struct vm *vm, double started)
{
	struct local_path path;
	struct stat st;

	if (id_now() - started < tell_limit(vm) || vm_path(vm, &path, NULL, "serial.log") < 0)
		return false;
	return stat(path.s, &st) < 0 || id_now() - (double)st.st_mtime > QUIET_SECONDS;
}

static int tell_boot(struct vm *vm, const json_t *started, json_t **ret, struct err *e)
{
	_cleanup_(str_release) struct str serial = {0}, screen = {0};
	const char *stage, *text;
	uint64_t since = 0, end = 0;
	enum local_boot how;
	int r = 0;

	jsn_get_u64(started, "serial", false, 0, INT64_MAX, &since, NULL);
	r = vm_serial_read(vm, since, &serial, &end, e);
	if (r == 0 && end - since > TELL_TAIL) {
		str_release(&serial);
		r = vm_serial_read(vm, end - TELL_TAIL, &serial, &end, e);
	}
	if (r < 0)
		return r;
	tell_screen(vm, &screen);
	for (size_t i = 0; i < serial.len; i++) /* a NUL would end it */
		if (!serial.s[i])
			serial.s[i] = '?';
	how = local_boot_judge(serial.s ?: "", screen.s ?: "", &stage, &text);
	if (how == LOCAL_BOOT_COMING && tell_is_late(vm, json_number_value(json_object_get(started, "time"))))
		how = LOCAL_BOOT_FAILED;
	*ret = json_pack("{s:s, s:b, s:s}", "stage", stage, "failed", how == LOCAL_BOOT_FAILED, "text", text);
	return *ret ? 0 : err_nomem(e);
}

int vm_boot(struct vm *vm, const struct vm_now *now, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *started = NULL;
	struct local_path path;
	int r = vm_path(vm, &path, e, "started.json");

	if (r < 0)
		return r;
	local_read_json(path.s, &started, NULL);
	if (vm->qemu && now->state == VM_RUNNING)
		return tell_boot(vm, started, ret, e);
	*ret = json_pack("{s:s, s:b, s:s}", "stage",
			 now->state == VM_OFF ? "off"
			 : now->problem[0]    ? "stopped"
					      : "unknown",
			 "failed", now->state == VM_CRASHED, "text", now->state == VM_OFF ? "it is off" : now->problem);
	return *ret ? 0 : err_nomem(e);
}
