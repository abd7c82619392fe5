/*
 * The test boot: the probe is put into throw-away overlays by the appliance, then the image starts as it would
 * anywhere, and what the probe says about it is judged. A machine that never reports is told apart by what came out of
 * its serial line.
 */
#include "provider/local_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/ip4.h"
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
#define VARS_MAX            (16u << 20)
#define STATE_MAX           64u  /* bytes of a state it tells */
#define CHECK_EXTRA         15.0 /* seconds beside each check's own */

struct boot {
	struct local *l;
	const char *name;           /* of the image, or the job whose copy it is */
	struct local_path dir, run; /* images/IMAGE or jobs/JOB/replica, runs/NAME */
	struct local_path picture;  /* where the screen is kept */
	uint64_t timeout;
	struct local_hw hw;
	char vars[PATH_MAX]; /* what its UEFI remembers, thrown away with the rest */
	const char *uefi;    /* NULL: BIOS */
	const char *accel;
	const json_t *known_failed, *checks, *expect;
	struct ip4_plan plan; /* the address it was given; .prefix 0: DHCP gives one */
	size_t ndisks;
	char *disks[LOCAL_DISKS_MAX];
	json_t *probe;              /* the probe's report */
	char state[64];             /* the last it said before */
	char no_probe[ERR_MSG_MAX]; /* why there is none */
	bool started, checking, ended, reset, screenshot;
	double end; /* until it has reported */
	double seconds;
	char *serial;
};

/* ---- the serial line for people ---- */

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

static bool boot_has_address(const struct boot *b, const char *address)
{
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(b->probe, "addresses"), i, o)
	{
		const char *s = json_string_value(json_object_get(o, "address"));

		if (s && strcmp(s, address) == 0)
			return true;
	}
	return false;
}

static void boot_judge_addresses(const struct boot *b, json_t *problems)
{
	char address[IP4_TEXT_MAX];

	if (!json_array_size(json_object_get(b->probe, "addresses")))
		boot_problem(problems, "no_address", "no network card has an address");
	else if (b->plan.prefix && !boot_has_address(b, ip4_format(b->plan.address, address)))
		boot_problem(problems, "wrong_address", "no network card has the address %s that the server was given",
			     address);
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
	boot_judge_addresses(b, problems);
}

/* Its serial line says less than the probe has said already. */
static bool boot_is_mute(const char *stage)
{
	static const char *const stages[] = {"firmware", "silent", "boot_loader", "kernel"};

	for (size_t i = 0; i < ARRAY_SIZE(stages); i++)
		if (strcmp(stage, stages[i]) == 0)
			return true;
	return false;
}

static void boot_judge_silence(const struct boot *b, json_t *problems, json_t *report)
{
	const char *stage, *text;

	local_boot_stage(b->serial ? b->serial : "", b->ended, &stage, &text);
	if (strcmp(stage, "powered_off") == 0 && b->reset) {
		stage = "restarted";
		text = "the machine restarted itself while it was starting, which a test boot takes as its end (the "
		       "last lines "
		       "of the serial line say what it did before)";
	} else if (b->checking) {
		stage = b->ended ? stage : "hang";
		text = b->ended ? "the machine ended while its checks ran (see what they do)"
				: "the system stopped answering while its checks ran (see what they do)";
	} else if (b->started && !b->ended && boot_is_mute(stage)) {
		stage = "hang";
		text = "the system runs and did not finish starting; it says nothing on its serial line, so the "
		       "picture of "
		       "the screen is what there is to look at";
	}
	boot_problem(problems, stage, "%s%s%s", text, b->state[0] ? "; systemd was " : "", b->state);
	if (b->no_probe[0])
		boot_problem(problems, "no_probe", "nothing inside could be asked: %s", b->no_probe);
	json_object_set_new(report, "state", json_string(stage));
}

static int boot_verdict(const struct boot *b, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *report = b->probe ? json_incref(b->probe) : json_object();
	json_t *problems = json_array();

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
	if (b->screenshot)
		json_object_set_new(report, "screenshot", json_string(b->picture.s));
	*ret = take_ptr(&report);
	return 0;
}

/* ---- the machine ---- */

static void boot_tell(const json_t *event, const char *kind, const struct provider_watch *w)
{
	const json_t *state = json_object_get(event, "state"), *seconds = json_object_get(event, "boot_seconds");
	_cleanup_json_ json_t *o = json_pack("{s:s, s:f}", "event", kind, "boot_seconds", json_number_value(seconds));

	if (o && json_is_string(state) && json_string_length(state) <= STATE_MAX)
		json_object_set_new(o, "state", json_string(json_string_value(state)));
	if (o)
		local_tell(w, o);
}

static double boot_check_seconds(const struct boot *b)
{
	double seconds = 0;
	json_t *o;
	size_t i;

	json_array_foreach(b->checks, i, o) seconds += json_number_value(json_object_get(o, "timeout")) + CHECK_EXTRA;
	return seconds;
}

static void boot_event(struct boot *b, json_t *event, const struct provider_watch *w)
{
	const char *kind = json_string_value(json_object_get(event, "event")) ?: "";

	if (strcmp(kind, "started") == 0)
		b->started = true;
	if (strcmp(kind, "state") == 0)
		snprintf(b->state, sizeof(b->state), "%s", json_string_value(json_object_get(event, "state")) ?: "");
	/* Those whose boot is over have the time that they were given. */
	if (strcmp(kind, "checking") == 0 && !b->checking)
		b->end += boot_check_seconds(b);
	b->checking |= strcmp(kind, "checking") == 0;
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
	if (b->checking)
		return false;
	if (!local_boot_stage(qemu_serial(vm), false, &stage, &text))
		*since = id_now_mono();
	return id_now_mono() - *since > (b->started ? SHELL_SECONDS_PROBE : SHELL_SECONDS);
}

/* Serves the machine until b->end, or until the probe has reported when `for_report`. */
static int boot_watch(struct boot *b, struct qemu *vm, bool for_report, const struct provider_watch *w, struct err *e)
{
	double since = id_now_mono();
	int r = 0;

	while (r == 0 && id_now_mono() < b->end && !qemu_ended(vm) && !(for_report && boot_is_over(b, vm, &since))) {
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
	char from[PATH_MAX + 64];
	size_t len;

	snprintf(from, sizeof(from), "%s/screen.png", b->run.s);
	if (qemu_screenshot(vm, from, NULL) < 0 || local_read_file(from, PNG_MAX, &png, &len, NULL) < 0)
		return false;
	return len > 8 && memcmp(png, "\x89PNG\r\n\x1a\n", 8) == 0 &&
	       io_write_file_atomic(b->picture.s, png, len, 0600, NULL) == 0;
}

static int boot_machine(struct boot *b, size_t boot_disk, const struct provider_watch *w, struct qemu **ret,
			struct err *e)
{
	struct qemu_disk d[LOCAL_DISKS_MAX] = {0};
	char serials[LOCAL_DISKS_MAX][32];
	struct qemu_settings s = {.user = b->l->user,
				  .accel = b->accel,
				  .uefi_code = b->uefi,
				  .uefi_vars = b->vars,
				  .disks = d,
				  .ndisks = b->ndisks,
				  .port = BOOT_PORT,
				  .screen = true,
				  .network = true,
				  .plan = b->plan.prefix ? &b->plan : NULL,
				  .console = w ? w->log : NULL,
				  .console_arg = w ? w->arg : NULL};

	local_hw_use(&b->hw, &s);
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

	b->end = start + (double)b->timeout;
	if (r == 0)
		r = boot_watch(b, vm, true, w, e);
	/* A guest that talks nonsense has failed its test; the test itself has not. */
	if (r == -EPROTO)
		r = 0;
	if (r == 0) {
		b->seconds = id_now_mono() - start;
		b->end = id_now_mono() + SETTLE_SECONDS;
		if (b->probe)
			r = boot_watch(b, vm, false, w, e);
		b->ended = qemu_ended(vm);
		b->reset = qemu_was_reset(vm);
		b->screenshot = !b->ended && boot_take_screenshot(b, vm);
		b->serial = strdup(qemu_serial(vm));
	}
	qemu_stop(vm);
	return r == -EPROTO ? 0 : r;
}

/* ---- preparations ---- */

static json_t *boot_conversion(const char *dir)
{
	char path[PATH_MAX + 64];
	json_t *report = NULL;

	snprintf(path, sizeof(path), "%s/report.json", dir);
	local_read_json(path, &report, NULL);
	return report;
}

/* Firmware as the conversion found it is needed, unless another is asked for. */
static int boot_hardware(struct boot *b, const json_t *o, struct err *e)
{
	_cleanup_json_ json_t *report = boot_conversion(b->dir.s);
	const json_t *settings = json_object_get(o, "settings");
	const char *firmware = json_string_value(json_object_get(report, "firmware"));
	int r;

	b->hw = (struct local_hw){.cpus = 2, .memory_mib = 1024, .uefi = firmware && strcmp(firmware, "uefi") == 0};
	r = jsn_get_u64(o, "memory", false, 128, 1u << 20, &b->hw.memory_mib, e);
	r = r ?: jsn_get_u64(o, "cpus", false, 1, 64, &b->hw.cpus, e);
	if (r == 0 && settings && !json_is_object(settings))
		r = err_set(e, -EINVAL, "'settings' is an object");
	r = r ?: local_hw_read(settings, &b->hw, e);
	/* The instance may be on another host: here it is the best there is. */
	if (strcmp(b->hw.cpu, "host") == 0)
		b->hw.cpu[0] = '\0';
	return r;
}

static int boot_options(struct boot *b, const json_t *o, struct err *e)
{
	int r = qemu_accelerator(b->l->cache, b->l->user, &b->accel, e);

	if (r == 0)
		b->timeout = strcmp(b->accel, "kvm") == 0 ? BOOT_SECONDS_KVM : BOOT_SECONDS_TCG;
	b->known_failed = json_object_get(o, "known_failed_units");
	b->checks = json_object_get(o, "checks");
	b->expect = json_object_get(o, "expect");
	r = r ?: boot_hardware(b, o, e);
	r = r ?: jsn_get_u64(o, "timeout", false, 10, 7200, &b->timeout, e);
	return r;
}

static int boot_uefi(struct boot *b, struct err *e)
{
	const char *template;
	_cleanup_free_ char *data = NULL;
	size_t len;
	int r = b->hw.uefi ? local_hw_uefi(&b->uefi, &template, e) : 0;

	if (r < 0 || !b->hw.uefi)
		return r;
	if ((size_t)snprintf(b->vars, sizeof(b->vars), "%s/efivars.fd", b->run.s) >= sizeof(b->vars))
		return err_set(e, -ENAMETOOLONG, "path '%s' is too long", b->run.s);
	r = io_read_file(template, VARS_MAX, &data, &len, e);
	r = r ?: io_write_file_atomic(b->vars, data, len, 0600, e);
	return r ?: local_give(b->l, b->vars, e);
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

/* The address it was converted for, as its manifest says; what is asked for goes before. */
static int boot_network(struct boot *b, const json_t *options, struct err *e)
{
	_cleanup_json_ json_t *manifest = NULL;
	const json_t *network = json_object_get(options, "network");
	char path[PATH_MAX + 64];
	int r = 0;

	snprintf(path, sizeof(path), "%s/manifest.json", b->dir.s);
	if (!network) {
		r = local_exists(path, e);
		r = r > 0 ? local_read_json(path, &manifest, e) : r;
		network = json_object_get(json_object_get(manifest, "meta"), "network");
	}
	if (r < 0 || !network || json_is_null(network))
		return r;
	r = ip4_plan_read(network, &b->plan, e);
	return r < 0 ? err_prefix(e, "the network of '%s'", b->name) : 0;
}

size_t local_image_boot_disk(const char *dir, size_t n)
{
	_cleanup_json_ json_t *report = boot_conversion(dir);
	uint64_t disk = 0;

	jsn_get_u64(report, "boot_disk", false, 0, n - 1, &disk, NULL);
	return (size_t)disk;
}

static int boot_prepare(struct boot *b, const struct provider_watch *w, struct err *e)
{
	_cleanup_json_ json_t *request = json_pack("{s:s, s:O*, s:O*}", "mode", "probe", "checks", b->checks, "expect",
						   b->expect),
			      *done = NULL;
	char run[ID_MAX + 8];
	struct err why = {0};
	int r;

	if (!request)
		return err_nomem(e);
	b->ndisks = local_disks(b->dir.s);
	if (!b->ndisks)
		return err_set(e, -ENOENT, "'%s' has no disks that could be booted", b->name);
	r = local_fresh_dir(b->l, b->run.s, e);
	r = r ?: boot_uefi(b, e);
	r = r ?: boot_overlays(b, e);
	snprintf(run, sizeof(run), "%s-probe", b->name);
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

static void boot_release(struct boot *b)
{
	io_remove_tree(b->run.s, NULL);
	local_free_list(b->disks, b->ndisks);
	json_decref(b->probe);
	free(b->serial);
}

/* What is in b->dir, which nobody changes meanwhile. */
static int boot_all(struct boot *b, const struct provider_watch *w, json_t **ret, struct err *e)
{
	int r = boot_prepare(b, w, e);

	if (r == 0)
		r = boot_run(b, local_image_boot_disk(b->dir.s, b->ndisks), w, e);
	return r < 0 ? r : boot_verdict(b, ret, e);
}

int local_test_boot(struct provider *p, const char *image, const json_t *options, const struct provider_watch *w,
		    json_t **ret, struct err *e)
{
	struct boot b = {.l = local_of(p), .name = image};
	_cleanup_json_ json_t *report = NULL;
	char path[PATH_MAX + 64], chain[ID_MAX];
	int r = local_check_id("image", image, e);

	r = r ?: local_path(b.l, &b.dir, e, "images/%s", image);
	r = r ?: local_path(b.l, &b.run, e, "runs/%s", image);
	r = r ?: local_path(b.l, &b.picture, e, "images/%s/screenshot.png", image);
	r = r ?: boot_options(&b, options, e);
	r = r ?: boot_network(&b, options, e);
	r = r ?: local_chain_share_image(b.l, image, chain, w, e);
	if (r < 0)
		return r;
	r = boot_all(&b, w, &report, e);
	local_chain_unshare(b.l, chain);
	snprintf(path, sizeof(path), "%s/boot.json", b.dir.s);
	if (r == 0)
		r = local_write_json(path, report, e);
	if (r == 0)
		*ret = take_ptr(&report);
	boot_release(&b);
	return r;
}

int local_copy_boot(struct provider *p, const char *job, const json_t *options, const struct provider_watch *w,
		    json_t **ret, struct err *e)
{
	struct boot b = {.l = local_of(p), .name = job};
	char path[PATH_MAX + 64];
	int r = local_check_id("job", job, e);

	r = r ?: local_path(b.l, &b.dir, e, "jobs/%s/replica", job);
	r = r ?: local_path(b.l, &b.run, e, "runs/%s", job);
	/* Not beside the disks: that directory is the receiver's. */
	r = r ?: local_path(b.l, &b.picture, e, "jobs/%s/screenshot.png", job);
	r = r ?: boot_options(&b, options, e);
	r = r ?: boot_network(&b, options, e);
	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "%s/report.json", b.dir.s);
	if (access(path, F_OK) < 0)
		return err_set(e, -ENOENT, "the copy of job '%s' has not been converted", job);
	r = boot_all(&b, w, ret, e);
	boot_release(&b);
	return r;
}
