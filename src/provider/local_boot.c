/*
 * The test boot: the probe is put into throw-away overlays by the appliance, then the image starts as it would
 * anywhere, and what the probe says about it is judged. A machine that never reports is told apart by what came out of
 * its serial line.
 */
#include "provider/local_int.h"

#include <errno.h>
#include <stdarg.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"

#define BOOT_PORT           "org.replant.probe.0"
#define BOOT_SECONDS_KVM    300
#define BOOT_SECONDS_TCG    900
#define SETTLE_SECONDS      4.0 /* from the last unit to the login prompt on the screen */
#define SHELL_SECONDS       8.0
#define SHELL_SECONDS_PROBE 60.0 /* when a probe is there, which says more */
#define BLIND_SECONDS       180
#define SERIAL_LINES        40
#define PNG_MAX             (16u << 20)
#define TEXT_MAX            256u /* bytes of a string the probe says */
#define LIST_MAX            500u /* entries of a list it says */

struct boot {
	struct local *l;
	const char *image;
	struct local_path dir, run; /* images/IMAGE, runs/IMAGE */
	uint64_t memory, cpus, timeout;
	const char *accel;
	const json_t *known_failed;
	size_t ndisks;
	char *disks[LOCAL_DISKS_MAX];
	json_t *probe;              /* the probe's report */
	char state[64];             /* the last it said before */
	char no_probe[ERR_MSG_MAX]; /* why there is none */
	bool started, ended, screenshot;
	double seconds;
	char *serial;
};

/* ---- where it stopped ---- */

bool local_boot_stage(const char *serial, bool ended, const char **ret_stage, const char **ret_text)
{
	static const struct {
		const char *mark, *stage, *text;
		bool final;
	} marks[] = {
	    {"Kernel panic - not syncing", "kernel_panic", "the kernel panicked", true},
	    {"(initramfs)", "initramfs_shell", "the initramfs did not get to the root filesystem and opened a shell",
	     true},
	    {"dracut:/#", "initramfs_shell", "the initramfs did not get to the root filesystem and opened a shell",
	     true},
	    {"You are in emergency mode", "emergency", "the system ended in emergency mode", true},
	    {"Give root password for maintenance", "emergency", "the system ended in emergency mode", true},
	    {"You are in rescue mode", "emergency", "the system ended in rescue mode", true},
	    {"Linux version ", "hang", "the system stopped while it was starting", false},
	    {"systemd[1]", "hang", "the system stopped while it was starting", false},
	    {"grub rescue>", "boot_loader", "GRUB did not find its files", true},
	    {"grub>", "boot_loader", "GRUB found no configuration and opened its shell", true},
	    {"Loading initial ramdisk", "kernel", "the boot loader started the kernel, which said nothing", false},
	    {"GRUB", "boot_loader", "the boot loader started, the kernel did not", false},
	    {"No bootable device", "firmware", "the firmware found nothing to boot", true},
	    {"Booting from Hard Disk", "boot_loader", "the boot sector was started and said nothing", false},
	};

	*ret_stage = ended ? "powered_off" : "firmware";
	*ret_text = ended ? "the machine turned itself off" : "nothing came past the firmware";
	for (size_t i = 0; i < ARRAY_SIZE(marks); i++)
		if (strstr(serial, marks[i].mark)) {
			*ret_stage = marks[i].stage;
			*ret_text = marks[i].text;
			return marks[i].final;
		}
	return ended;
}

static const char *boot_tail(const char *serial)
{
	size_t n = strlen(serial);

	for (unsigned lines = 0; n; n--)
		if (serial[n - 1] == '\n' && ++lines > SERIAL_LINES)
			break;
	return serial + n;
}

/* The character behind an escape sequence: ESC [ ... letter, or ESC and one character. */
static const char *boot_skip_escape(const char *s)
{
	s++;
	if (*s != '[')
		return s + (*s != '\0');
	for (s++; *s && !(*s >= '@' && *s <= '~'); s++)
		;
	return s + (*s != '\0');
}

/* Text for people: without colours and cursor movements. */
static char *boot_plain(const char *s)
{
	_cleanup_(str_release) struct str out = {0};

	while (*s) {
		if (*s == '\033') {
			s = boot_skip_escape(s);
			continue;
		}
		if (*s == '\n' || *s == '\t' || (unsigned char)*s >= ' ')
			str_add_mem(&out, s, 1);
		s++;
	}
	return str_take(&out);
}

/* ---- verdict ---- */

static void boot_problem(json_t *problems, const char *code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
static void boot_problem(json_t *problems, const char *code, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	json_array_append_new(problems, json_pack("{s:s, s:s}", "code", code, "message", text)
					    ?: json_pack("{s:s, s:s}", "code", code, "message", "(not UTF-8)"));
}

static bool boot_has(const json_t *list, const char *name)
{
	json_t *o;
	size_t i;

	json_array_foreach(list, i, o) if (json_is_string(o) && strcmp(json_string_value(o), name) == 0) return true;
	return false;
}

static void boot_judge_report(const struct boot *b, json_t *problems)
{
	const char *state = json_string_value(json_object_get(b->probe, "state")) ?: "unknown";
	json_t *o;
	size_t i;

	if (strcmp(state, "running") != 0 && strcmp(state, "degraded") != 0)
		boot_problem(problems, state, "the system did not finish starting: it is in the state '%s'", state);
	json_array_foreach(json_object_get(b->probe, "failed_units"), i, o)
	{
		const char *unit = json_string_value(o) ?: "?";

		if (!boot_has(b->known_failed, unit))
			boot_problem(problems, "failed_unit", "'%s' failed", unit);
	}
	json_array_foreach(json_object_get(b->probe, "missing_mounts"), i, o)
	    boot_problem(problems, "missing_mount", "'%s' of /etc/fstab is not mounted", json_string_value(o) ?: "?");
	if (!json_array_size(json_object_get(b->probe, "addresses")))
		boot_problem(problems, "no_address", "no network card has an address");
}

static void boot_judge_silence(const struct boot *b, json_t *problems, json_t *report)
{
	const char *stage, *text;

	local_boot_stage(b->serial ? b->serial : "", b->ended, &stage, &text);
	if (strcmp(stage, "hang") == 0 && b->ended) {
		stage = "powered_off";
		text = "the machine turned itself off or restarted while it was starting";
	}
	boot_problem(problems, stage, "%s%s%s", text, b->state[0] ? "; systemd was " : "", b->state);
	if (b->no_probe[0])
		boot_problem(problems, "no_probe", "nothing inside could be asked: %s", b->no_probe);
	json_object_set_new(report, "state", json_string(stage));
}

/* ---- what the probe said: a stranger's words, so only known ones of known types, and not too many ---- */

static bool probe_text_ok(const json_t *v)
{
	return json_is_string(v) && json_string_length(v) <= TEXT_MAX;
}

/* A list of strings (`keys` NULL), or of objects with these strings. */
static json_t *probe_list(const json_t *from, const char *const *keys)
{
	json_t *list = json_array(), *v;
	size_t i;

	json_array_foreach(from, i, v)
	{
		json_t *o = NULL;

		if (json_array_size(list) == LIST_MAX)
			break;
		if (!keys && probe_text_ok(v))
			o = json_string(json_string_value(v));
		else if (keys && json_is_object(v))
			o = json_object();
		for (const char *const *k = keys; o && k && *k; k++)
			if (probe_text_ok(json_object_get(v, *k)))
				json_object_set_new(o, *k, json_string(json_string_value(json_object_get(v, *k))));
		if (o)
			json_array_append_new(list, o);
	}
	return list;
}

static json_t *probe_ports(const json_t *from)
{
	json_t *list = json_array(), *v;
	size_t i;

	json_array_foreach(from, i, v) if (json_is_integer(v) && json_integer_value(v) > 0 &&
					   json_integer_value(v) < 65536 && json_array_size(list) < LIST_MAX)
	    json_array_append_new(list, json_integer(json_integer_value(v)));
	return list;
}

json_t *local_boot_report(const json_t *probe)
{
	static const char *const texts[] = {"state", "kernel", "hostname"};
	static const char *const mount[] = {"source", "target", "type", NULL}, *const address[] = {"interface",
												   "address", NULL};
	const json_t *seconds = json_object_get(probe, "boot_seconds");
	json_t *o = json_object();

	if (!o)
		return NULL;
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++)
		if (probe_text_ok(json_object_get(probe, texts[i])))
			json_object_set_new(o, texts[i],
					    json_string(json_string_value(json_object_get(probe, texts[i]))));
	if (json_is_number(seconds) && json_number_value(seconds) >= 0 && json_number_value(seconds) < 1e6)
		json_object_set_new(o, "boot_seconds", json_real(json_number_value(seconds)));
	json_object_set_new(o, "failed_units", probe_list(json_object_get(probe, "failed_units"), NULL));
	json_object_set_new(o, "missing_mounts", probe_list(json_object_get(probe, "missing_mounts"), NULL));
	json_object_set_new(o, "mounts", probe_list(json_object_get(probe, "mounts"), mount));
	json_object_set_new(o, "addresses", probe_list(json_object_get(probe, "addresses"), address));
	json_object_set_new(o, "listening", probe_ports(json_object_get(probe, "listening")));
	return o;
}

static int boot_verdict(const struct boot *b, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *report = b->probe ? json_incref(b->probe) : json_object();
	json_t *problems = json_array();
	char screenshot[PATH_MAX + 64];

	if (!report || !problems || json_object_set_new(report, "problems", problems) < 0)
		return err_nomem(e);
	if (b->probe)
		boot_judge_report(b, problems);
	else
		boot_judge_silence(b, problems, report);
	json_object_set_new(report, "verified", json_boolean(!json_array_size(problems)));
	json_object_set_new(report, "seconds", json_real(b->seconds));
	json_object_set_new(report, "accelerator", json_string(b->accel));
	json_object_set_new(report, "time", json_integer((json_int_t)id_now()));
	if (json_array_size(problems) && b->serial) {
		_cleanup_free_ char *plain = boot_plain(boot_tail(b->serial));

		json_object_set_new(report, "serial", json_string(plain ? plain : "") ?: json_string("(not UTF-8)"));
	}
	if (b->screenshot) {
		snprintf(screenshot, sizeof(screenshot), "%s/screenshot.png", b->dir.s);
		json_object_set_new(report, "screenshot", json_string(screenshot));
	}
	*ret = take_ptr(&report);
	return 0;
}

/* ---- the machine ---- */

static void boot_tell(const json_t *event, const char *kind, const struct provider_watch *w)
{
	const json_t *state = json_object_get(event, "state"), *seconds = json_object_get(event, "boot_seconds");
	_cleanup_json_ json_t *o = json_pack("{s:s, s:f}", "event", kind, "boot_seconds", json_number_value(seconds));

	if (o && probe_text_ok(state))
		json_object_set_new(o, "state", json_string(json_string_value(state)));
	if (o)
		local_tell(w, o);
}

static void boot_event(struct boot *b, json_t *event, const struct provider_watch *w)
{
	const char *kind = json_string_value(json_object_get(event, "event")) ?: "";

	if (strcmp(kind, "started") == 0)
		b->started = true;
	if (strcmp(kind, "state") == 0)
		snprintf(b->state, sizeof(b->state), "%s", json_string_value(json_object_get(event, "state")) ?: "");
	if (strcmp(kind, "report") == 0 && !b->probe)
		b->probe = local_boot_report(event);
	if (strcmp(kind, "started") == 0 || strcmp(kind, "state") == 0)
		boot_tell(event, kind, w);
}

/* Is there nothing to wait for any more? A shell or a panic is given a little time, in which the probe may still speak.
 */
static bool boot_is_over(const struct boot *b, const struct qemu *vm, double *since)
{
	const char *stage, *text;

	if (b->probe || qemu_ended(vm))
		return true;
	if (!local_boot_stage(qemu_serial(vm), false, &stage, &text))
		*since = id_now_mono();
	return id_now_mono() - *since > (b->started ? SHELL_SECONDS_PROBE : SHELL_SECONDS);
}

/* Serves the machine until `end`, or until the probe has reported when `for_report`. */
static int boot_watch(struct boot *b, struct qemu *vm, double end, bool for_report, const struct provider_watch *w,
		      struct err *e)
{
	double since = id_now_mono();
	int r = 0;

	while (r == 0 && id_now_mono() < end && !qemu_ended(vm) && !(for_report && boot_is_over(b, vm, &since))) {
		json_t *event = NULL;

		if (local_cancelled(w))
			return err_set(e, -ECANCELED, "stopped");
		r = qemu_pump(vm, 0.25, e);
		while (r == 0 && (r = qemu_next_event(vm, &event, e)) == 1) {
			boot_event(b, event, w);
			json_decref(event);
			r = 0;
		}
		if (r == 0 && qemu_no_space(vm))
			return err_set(e, -ENOSPC, "the center's disk is full (free some space, then test again)");
	}
	return r;
}

/* QEMU, which the guest may have broken into, wrote it: looked at before it is believed to be a picture. */
static bool boot_take_screenshot(struct boot *b, struct qemu *vm)
{
	_cleanup_free_ char *png = NULL;
	char from[PATH_MAX + 64], to[PATH_MAX + 32];
	size_t len;

	snprintf(from, sizeof(from), "%s/screen.png", b->run.s);
	snprintf(to, sizeof(to), "%s/screenshot.png", b->dir.s);
	if (qemu_screenshot(vm, from, NULL) < 0 || local_read_file(from, PNG_MAX, &png, &len, NULL) < 0)
		return false;
	return len > 8 && memcmp(png, "\x89PNG\r\n\x1a\n", 8) == 0 &&
	       io_write_file_atomic(to, png, len, 0644, NULL) == 0;
}

static int boot_machine(struct boot *b, size_t boot_disk, const struct provider_watch *w, struct qemu **ret,
			struct err *e)
{
	struct qemu_disk d[LOCAL_DISKS_MAX] = {0};
	char serials[LOCAL_DISKS_MAX][32];
	struct qemu_settings s = {.user = b->l->user,
				  .accel = b->accel,
				  .memory_mib = (unsigned)b->memory,
				  .cpus = (unsigned)b->cpus,
				  .disks = d,
				  .ndisks = b->ndisks,
				  .port = BOOT_PORT,
				  .screen = true,
				  .network = true,
				  .console = w ? w->log : NULL,
				  .console_arg = w ? w->arg : NULL};

	for (size_t i = 0; i < b->ndisks; i++) {
		snprintf(serials[i], sizeof(serials[i]), "disk%zu", i);
		d[i] = (struct qemu_disk){
		    .path = b->disks[i], .format = "qcow2", .serial = serials[i], .boot = i == boot_disk};
	}
	return qemu_start(&s, ret, e);
}

static int boot_run(struct boot *b, size_t boot_disk, const struct provider_watch *w, struct err *e)
{
	double start = id_now_mono();
	struct qemu *vm = NULL;
	int r = boot_machine(b, boot_disk, w, &vm, e);

	if (r == 0)
		r = boot_watch(b, vm, start + (double)b->timeout, true, w, e);
	/* A guest that talks nonsense has failed its test; the test itself has not. */
	if (r == -EPROTO)
		r = 0;
	if (r == 0) {
		b->seconds = id_now_mono() - start;
		if (b->probe)
			r = boot_watch(b, vm, id_now_mono() + SETTLE_SECONDS, false, w, e);
		b->ended = qemu_ended(vm);
		b->screenshot = !b->ended && boot_take_screenshot(b, vm);
		b->serial = strdup(qemu_serial(vm));
	}
	qemu_stop(vm);
	return r == -EPROTO ? 0 : r;
}

/* ---- preparations ---- */

static int boot_options(struct boot *b, const json_t *o, struct err *e)
{
	int r = qemu_accelerator(b->l->cache, b->l->user, &b->accel, e);

	b->memory = 1024;
	b->cpus = 2;
	if (r == 0)
		b->timeout = strcmp(b->accel, "kvm") == 0 ? BOOT_SECONDS_KVM : BOOT_SECONDS_TCG;
	b->known_failed = json_object_get(o, "known_failed_units");
	r = r ?: jsn_get_u64(o, "memory", false, 128, 1u << 20, &b->memory, e);
	r = r ?: jsn_get_u64(o, "cpus", false, 1, 64, &b->cpus, e);
	r = r ?: jsn_get_u64(o, "timeout", false, 10, 7200, &b->timeout, e);
	return r;
}

static int boot_overlays(struct boot *b, struct err *e)
{
	for (size_t i = 0; i < b->ndisks; i++) {
		char backing[PATH_MAX + 32];
		int r;

		snprintf(backing, sizeof(backing), "%s/disk%zu.qcow2", b->dir.s, i);
		b->disks[i] = str_printf("%s/disk%zu.qcow2", b->run.s, i);
		if (!b->disks[i])
			return err_nomem(e);
		r = local_overlay(b->l, b->disks[i], backing, "qcow2", e);
		if (r < 0)
			return r;
	}
	return 0;
}

static size_t boot_disk_of(const struct boot *b)
{
	_cleanup_json_ json_t *report = NULL;
	char path[PATH_MAX + 64];
	uint64_t disk = 0;

	snprintf(path, sizeof(path), "%s/report.json", b->dir.s);
	if (local_read_json(path, &report, NULL) == 0)
		jsn_get_u64(report, "boot_disk", false, 0, b->ndisks - 1, &disk, NULL);
	return (size_t)disk;
}

static int boot_prepare(struct boot *b, const struct provider_watch *w, struct err *e)
{
	_cleanup_json_ json_t *request = json_pack("{s:s}", "mode", "probe"), *done = NULL;
	char run[ID_MAX + 8];
	struct err why = {0};
	int r;

	if (!request)
		return err_nomem(e);
	b->ndisks = local_disks(b->dir.s);
	if (!b->ndisks)
		return err_set(e, -ENOENT, "image '%s' does not exist", b->image);
	r = local_fresh_dir(b->l, b->run.s, e);
	if (r == 0)
		r = boot_overlays(b, e);
	snprintf(run, sizeof(run), "%s-probe", b->image);
	if (r < 0)
		return r;
	r = local_appliance(b->l, run, b->disks, b->ndisks, request, w, &done, &why);
	/* Without a witness the screen and the serial line still tell something; verified it can't be. */
	if (r == -ENOTSUP || r == -ENOENT) {
		snprintf(b->no_probe, sizeof(b->no_probe), "%s", why.msg);
		b->timeout = MIN(b->timeout, (uint64_t)BLIND_SECONDS);
		return 0;
	}
	return r < 0 ? err_set(e, r, "%s", why.msg) : 0;
}

int local_test_boot(struct provider *p, const char *image, const json_t *options, const struct provider_watch *w,
		    json_t **ret, struct err *e)
{
	struct boot b = {.l = local_of(p), .image = image};
	_cleanup_json_ json_t *report = NULL;
	char path[PATH_MAX + 64], chain[ID_MAX];
	int r = local_check_id("image", image, e);

	r = r ?: local_path(b.l, &b.dir, e, "images/%s", image);
	r = r ?: local_path(b.l, &b.run, e, "runs/%s", image);
	r = r ?: boot_options(&b, options, e);
	r = r ?: local_chain_share_image(b.l, image, chain, w, e);
	if (r < 0)
		return r;
	r = boot_prepare(&b, w, e);
	if (r == 0)
		r = boot_run(&b, boot_disk_of(&b), w, e);
	local_chain_unshare(b.l, chain);
	if (r == 0)
		r = boot_verdict(&b, &report, e);
	snprintf(path, sizeof(path), "%s/boot.json", b.dir.s);
	if (r == 0)
		r = local_write_json(path, report, e);
	if (r == 0)
		*ret = take_ptr(&report);
	io_remove_tree(b.run.s, NULL);
	local_free_list(b.disks, b.ndisks);
	json_decref(b.probe);
	free(b.serial);
	return r;
}
