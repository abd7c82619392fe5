#include "center/findings.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"
#include "base/util.h"
#include "model/model.h"

#define ITEMS_MAX    300u
#define TEXT_MAX     1000u
#define SERIAL_MAX   8192u
#define SKEW_WARNING 60.0                 /* seconds */
#define SKEW_BAD     86400.0              /* certificates and logs make no sense any more */
#define FREEZE_LONG  60.0                 /* seconds of freeze that people should know of */
#define FREEZE_BAD   600.0                /* more than any guard grants */
#define RESERVE      (UINT64_C(64) << 20) /* beside the data: manifests, overlays' headers */
#define ROOM_PART    50u                  /* what an image's own changes add, at least: one part of so many */
#define CHURN_PART   0.5                  /* of what the line carries */

enum level { PASSED, WARNING, CRITICAL, LEVELS };
static const char *const levels[] = {"passed", "warning", "critical", NULL};

struct finding {
	json_t *items;
	unsigned counts[LEVELS];
};

static double number(const json_t *o, const char *key)
{
	double v = json_number_value(json_object_get(o, key));

	/* Products of a few such are finite, too. */
	return isfinite(v) && v > 0 ? MIN(v, 1e18) : 0;
}

static const char *text(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key)) ?: "";
}

static json_t *cut(const char *s, size_t max)
{
	return json_stringn(s, str_cut(s, max));
}

static void add(struct finding *x, const char *group, const char *item, enum level level, const char *remedy,
		const char *fmt, ...) __attribute__((format(printf, 6, 7)));
static void add(struct finding *x, const char *group, const char *item, enum level level, const char *remedy,
		const char *fmt, ...)
{
	char message[TEXT_MAX + 200];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(message, sizeof(message), fmt, ap);
	va_end(ap);
	str_utf8(message);
	/* What is critical has room always: that is what stops the migration. */
	if (json_array_size(x->items) >= ITEMS_MAX && level != CRITICAL)
		return;
	x->counts[level]++;
	json_array_append_new(x->items, json_pack("{s:s, s:o, s:s, s:s, s:o}", "group", group, "item", cut(item, 64),
						  "level", levels[level], "message", message, "remedy",
						  remedy && *remedy ? cut(remedy, TEXT_MAX) : json_null()));
}

/* ---- the source ---- */

static void add_checks(struct finding *x, const struct findings_facts *f)
{
	static const char *const results[] = {"ok", "warning", "failed", NULL};
	const json_t *checks = json_object_get(json_object_get(f->result, "test"), "checks");
	json_t *v;
	size_t i;

	if (!json_is_array(checks)) {
		add(x, "source", "agent", WARNING, "update the agent, then test again",
		    "the agent did not say what it found on the server: it is an older one, or its report was lost");
		return;
	}
	json_array_foreach(checks, i, v)
	{
		int level = model_word(results, text(v, "result"));

		if (i >= ITEMS_MAX)
			break;
		add(x, "source", *text(v, "check") ? text(v, "check") : "?", level < 0 ? WARNING : (enum level)level,
		    text(v, "remedy"), "%.*s", (int)str_cut(text(v, "message"), TEXT_MAX), text(v, "message"));
	}
}

static void add_clock(struct finding *x, const struct findings_facts *f)
{
	const json_t *skew = json_object_get(f->result, "clock_skew");
	double off = fabs(json_number_value(skew));

	if (!json_is_number(skew))
		return;
	if (off > SKEW_WARNING)
		add(x, "source", "clock", off > SKEW_BAD ? CRITICAL : WARNING,
		    "set the server's clock, and have it kept right (chrony, systemd-timesyncd)",
		    "the server's clock is %.0f seconds %s of the center's", off,
		    json_number_value(skew) > 0 ? "ahead" : "behind");
	else
		add(x, "source", "clock", PASSED, NULL, "the server's clock is right");
}

static void add_writers(struct finding *x, const struct findings_facts *f)
{
	double churn = number(f->progress, "churn"), link = number(f->progress, "link");
	bool never = json_is_false(json_object_get(f->progress, "converges"));
	char a[16], b[16];

	if (!(link > 0))
		return;
	str_bytes((uint64_t)churn, a, sizeof(a));
	str_bytes((uint64_t)link, b, sizeof(b));
	if (never && churn > CHURN_PART * link)
		add(x, "source", "writers", CRITICAL,
		    "migrate at a quieter time, raise the rate limit, or allow a longer freeze",
		    "the server writes %s per second and the line carries %s: the copy does not catch up", a, b);
	else if (churn > CHURN_PART * link)
		add(x, "source", "writers", WARNING, "migrate at a quieter time, or raise the rate limit",
		    "the server writes %s per second, much for a line that carries %s", a, b);
	else
		add(x, "source", "writers", PASSED, NULL, "the server writes %s per second, the line carries %s", a, b);
}

static void add_tracking(struct finding *x, const struct findings_facts *f, double freeze)
{
	const char *how = text(f->progress, "tracking"), *why = text(f->progress, "untracked");
	enum level level = freeze > FREEZE_BAD ? CRITICAL : freeze > FREEZE_LONG ? WARNING : PASSED;

	if (!*how)
		return;
	if (strcmp(how, "compare") != 0)
		add(x, "source", "tracking", level, level ? "migrate at a quieter time" : NULL,
		    "writes are tracked (%.16s), the freeze takes about %.1f seconds", how, freeze);
	else
		add(x, "source", "tracking", level == PASSED ? WARNING : level,
		    "migrate at a quieter time, or send fewer disks at once",
		    "writes can't be tracked%s%.256s; all that is in use is read while the server is frozen: about "
		    "%.1f seconds",
		    *why ? ": " : "", why, freeze);
}

/* ---- the region ---- */

static void add_space(struct finding *x, const struct findings_facts *f)
{
	uint64_t used = model_inventory_used(f->inventory), have, need;
	double written = number(f->progress, "bytes_written");
	char a[16], b[16];

	if (f->region_free == UINT64_MAX || used == UINT64_MAX)
		return;
	/* What the test holds now is the migration's, or free again. */
	have = f->region_free + (uint64_t)MIN(written, 1e18);
	need = used + used / ROOM_PART + RESERVE;
	str_bytes(have, a, sizeof(a));
	str_bytes(need, b, sizeof(b));
	if (have < used + RESERVE)
		add(x, "region", "space", CRITICAL, "free space in the region, or send fewer disks",
		    "the region has room for %s, copy and image need %s", a, b);
	else if (have < need)
		add(x, "region", "space", WARNING, "free space in the region",
		    "the region has room for %s, copy and image may need %s", a, b);
	else
		add(x, "region", "space", PASSED, NULL, "the region has room for %s, copy and image need about %s", a,
		    b);
}

static void add_boot_mode(struct finding *x, const struct findings_facts *f)
{
	const char *mode = text(json_object_get(f->inventory, "boot"), "mode");
	bool booted = json_is_true(json_object_get(f->boot, "verified"));

	if (strcmp(mode, "uefi") == 0 && !booted)
		add(x, "region", "boot_mode", WARNING, "look at the test boot",
		    "the server boots by UEFI and its copy did not prove that it boots here");
	else if (*mode)
		add(x, "region", "boot_mode", PASSED, NULL, "the server boots by %s",
		    strcmp(mode, "uefi") == 0 ? "UEFI, and so does its copy" : "BIOS, as machines of the region do");
}

static void add_instance(struct finding *x, const struct findings_facts *f)
{
	json_t *v;
	size_t i;

	json_array_foreach(f->instance, i, v)
	{
		int level = model_word(levels, text(v, "level"));

		add(x, "instance", text(v, "item"), level < 0 ? WARNING : (enum level)level, text(v, "remedy"), "%.*s",
		    (int)str_cut(text(v, "message"), TEXT_MAX), text(v, "message"));
	}
}

/* ---- copy, conversion, boot ---- */

static const json_t *left_out(const struct findings_facts *f)
{
	return json_object_get(json_object_get(f->result, "test"), "left_out");
}

static bool is_left_out(const struct findings_facts *f, const json_t *disk)
{
	json_t *v;
	size_t i;

	json_array_foreach(left_out(f), i,
			   v) if (strcmp(json_string_value(v) ?: "", text(disk, "path")) == 0) return true;
	return false;
}

static void add_copy(struct finding *x, const struct findings_facts *f)
{
	size_t n = json_array_size(left_out(f)), bad = json_array_size(json_object_get(f->result, "zeroed"));

	if (n)
		add(x, "copy", "disks", PASSED, NULL,
		    "%zu disk(s) hold only data and were not copied for the test; the migration copies all", n);
	else
		add(x, "copy", "disks", PASSED, NULL, "all disks were copied");
	if (bad)
		add(x, "copy", "read_errors", WARNING, "replace the disk, or expect files with zeros in them",
		    "%zu places of the disks can't be read, and became zeros", bad);
}

static void add_conversion(struct finding *x, const struct findings_facts *f)
{
	if (f->conversion_error)
		add(x, "conversion", "conversion", CRITICAL,
		    "read the log of the conversion, correct the server, then test again", "%.*s",
		    (int)str_cut(f->conversion_error, TEXT_MAX), f->conversion_error);
	else
		add(x, "conversion", "conversion", PASSED, NULL,
		    "the copy was prepared for its new home, drivers included, in %zu steps",
		    json_array_size(json_object_get(f->conversion, "steps")));
}

/* What is missing with the data disks is no fault of the server's. */
static enum level level_of_problem(const struct findings_facts *f, const char *code)
{
	bool may_be_data =
	    strcmp(code, "failed_unit") == 0 || strcmp(code, "missing_mount") == 0 || strcmp(code, "degraded") == 0;

	return json_array_size(left_out(f)) && may_be_data ? WARNING : CRITICAL;
}

static void add_boot(struct finding *x, const struct findings_facts *f)
{
	unsigned problems = 0;
	json_t *v;
	size_t i;

	if (f->conversion_error)
		return;
	if (f->boot_error) {
		add(x, "boot", "boot", CRITICAL, "read the log of the boot, then test again", "%.*s",
		    (int)str_cut(f->boot_error, TEXT_MAX), f->boot_error);
		return;
	}
	json_array_foreach(json_object_get(f->boot, "problems"), i, v)
	{
		const char *code = *text(v, "code") ? text(v, "code") : "boot";
		enum level level = level_of_problem(f, code);

		problems++;
		add(x, "boot", code, level,
		    level == WARNING
			? "see whether it needs a disk that was left out of the test"
			: "look at the picture and the log of the boot, correct the server, then test again",
		    "%.*s", (int)str_cut(text(v, "message"), TEXT_MAX), text(v, "message"));
	}
	if (json_is_true(json_object_get(f->boot, "verified")))
		add(x, "boot", "boot", PASSED, NULL, "the copy booted and reported after %.0f seconds", f->booting);
	else if (!problems)
		add(x, "boot", "boot", CRITICAL, "look at the picture and the log of the boot",
		    "the copy did not pass its test boot");
}

/* ---- speed, and what it means for the migration ---- */

struct speed {
	double used, part, live, live_bytes, freeze;
	bool tracked;
};

/* By the inventory: bytes in use on all disks, and on those that were copied. */
static struct speed measure(const struct findings_facts *f)
{
	const json_t *totals = json_object_get(f->result, "totals"), *live = json_object_get(f->result, "live");
	const char *how = text(f->progress, "tracking");
	struct speed s = {.used = (double)model_inventory_used(f->inventory),
			  .live = number(live, "seconds"),
			  .live_bytes = number(live, "bytes"),
			  .freeze = number(totals, "freeze_ms") / 1000,
			  .tracked = *how && strcmp(how, "compare") != 0};
	json_t *disk;
	size_t i;

	s.part = s.used;
	json_array_foreach(json_object_get(f->inventory, "disks"), i, disk) if (is_left_out(f, disk)) s.part -=
	    number(disk, "used");
	s.part = MAX(s.part, 1);
	s.used = MAX(s.used, s.part);
	/* An agent that doesn't measure: all of it. */
	if (!(s.live > 0)) {
		s.live = MAX(f->syncing - s.freeze, 0);
		s.live_bytes = s.part;
	}
	return s;
}

static json_t *copy_json(const struct findings_facts *f, const struct speed *s)
{
	const json_t *totals = json_object_get(f->result, "totals");
	double sent = number(totals, "bytes_sent"), changed = number(totals, "bytes_changed");
	double seconds = MAX(s->live, 1e-3);
	json_t *names = json_array(), *v;
	size_t i;

	json_array_foreach(left_out(f), i, v) if (i < 64 && json_is_string(v))
	    json_array_append_new(names, cut(json_string_value(v), 128));
	return json_pack("{s:f, s:f, s:o, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:s, s:b}", "used_bytes",
			 s->used, "copied_bytes", s->part, "left_out", names, "read_bytes",
			 number(totals, "bytes_read"), "sent_bytes", sent, "changed_bytes", changed, "seconds",
			 f->syncing, "rate", s->live_bytes / seconds, "read_rate",
			 number(totals, "bytes_read") / seconds, "wire_rate", sent / seconds, "compression",
			 sent > 0 ? changed / sent : 0, "freeze_seconds", s->freeze, "tracking",
			 s->tracked ? text(f->progress, "tracking") : "compare", "kept", f->keeps);
}

/*
 * Transfer: what it takes to begin and to end it stays the same, the rest grows with the data. With a copy that is
 * there already only what is missing is sent; the rest is compared, as fast as the freeze showed that it is read, or,
 * tracked, not looked at.
 */
static double transfer_seconds(const struct findings_facts *f, const struct speed *s, bool kept, double *ret_freeze)
{
	double around = MAX(f->syncing - s->live - s->freeze, 0), more = (s->used - s->part) / s->part;
	double freeze = s->tracked ? s->freeze : s->freeze * s->used / s->part, live = s->live * (1 + more);

	if (kept)
		live = s->live * more + (s->tracked ? 0 : MIN(s->live, s->freeze > 0.01 ? s->freeze : s->live));
	*ret_freeze = freeze;
	return around + live + freeze;
}

static json_t *prediction_json(const struct findings_facts *f, const struct speed *s)
{
	double freeze, whole = transfer_seconds(f, s, false, &freeze),
		       transfer = transfer_seconds(f, s, f->keeps, &freeze);
	double boot = f->boots ? f->booting : 0, other = f->preparing + f->cleaning;

	return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "bytes", s->used, "bytes_there",
			 f->keeps ? s->part : 0, "transfer_seconds", transfer, "conversion_seconds", f->converting,
			 "image_seconds", f->image, "test_boot_seconds", boot, "other_seconds", other, "total_seconds",
			 transfer + f->converting + f->image + boot + other, "freeze_seconds", freeze, "saved_bytes",
			 f->keeps ? s->part : 0, "saved_seconds", MAX(whole - transfer, 0));
}

/* ---- all together ---- */

static json_t *boot_json(const struct findings_facts *f)
{
	static const char *const kept[] = {"verified",     "state",   "kernel",      "hostname",
					   "boot_seconds", "seconds", "accelerator", "problems"};
	const char *serial = text(f->boot, "serial");
	size_t n = strlen(serial), skip = n > SERIAL_MAX ? n - SERIAL_MAX : 0;
	json_t *o, *v;

	if (!f->boot)
		return json_null();
	o = json_object();
	for (size_t i = 0; o && i < ARRAY_SIZE(kept); i++)
		if ((v = json_object_get(f->boot, kept[i])))
			json_object_set(o, kept[i], v);
	while (skip < n && ((unsigned char)serial[skip] & 0xc0) == 0x80)
		skip++;
	if (o && n)
		json_object_set_new(o, "serial", json_string(serial + skip));
	return o;
}

static json_t *conversion_json(const struct findings_facts *f)
{
	return json_pack("{s:f, s:i, s:o}", "seconds", f->converting, "steps",
			 (int)json_array_size(json_object_get(f->conversion, "steps")), "error",
			 f->conversion_error ? cut(f->conversion_error, TEXT_MAX) : json_null());
}

json_t *findings_report(const struct findings_facts *f)
{
	struct finding x = {.items = json_array()};
	struct speed s = measure(f);
	enum level worst;
	double freeze;

	if (!x.items)
		return NULL;
	transfer_seconds(f, &s, f->keeps, &freeze);
	add_checks(&x, f);
	add_clock(&x, f);
	add_tracking(&x, f, freeze);
	add_writers(&x, f);
	add_space(&x, f);
	add_boot_mode(&x, f);
	add_instance(&x, f);
	add_copy(&x, f);
	add_conversion(&x, f);
	add_boot(&x, f);
	worst = x.counts[CRITICAL] ? CRITICAL : x.counts[WARNING] ? WARNING : PASSED;
	return json_pack("{s:o, s:s, s:{s:i, s:i, s:i}, s:o, s:o, s:o, s:o}", "items", x.items, "verdict",
			 levels[worst], "counts", levels[PASSED], (int)x.counts[PASSED], levels[WARNING],
			 (int)x.counts[WARNING], levels[CRITICAL], (int)x.counts[CRITICAL], "copy", copy_json(f, &s),
			 "conversion", conversion_json(f), "boot", boot_json(f), "prediction",
			 f->conversion_error ? json_null() : prediction_json(f, &s));
}

unsigned findings_critical(const json_t *report)
{
	return (unsigned)MAX(json_integer_value(json_object_get(json_object_get(report, "counts"), levels[CRITICAL])),
			     (json_int_t)0);
}

static double stage_seconds(const json_t *stages, const char *name)
{
	json_t *v;
	size_t i;

	json_array_foreach(stages, i, v) if (strcmp(text(v, "name"), name) == 0) return number(v, "seconds");
	return 0;
}

void findings_conclude(json_t *report, const json_t *stages, const json_t *progress)
{
	const json_t *predicted = json_object_get(report, "prediction");
	double sync = stage_seconds(stages, "syncing"), process = stage_seconds(stages, "processing");
	double other = stage_seconds(stages, "preparing") + stage_seconds(stages, "cleaning");
	double total = sync + process + other, expected = number(predicted, "total_seconds");
	bool interrupted = json_is_true(json_object_get(report, "interrupted"));
	json_t *actual = json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:b}", "transfer_seconds", sync,
				   "processing_seconds", process, "other_seconds", other, "total_seconds", total,
				   "freeze_seconds", number(progress, "freeze_ms") / 1000, "sent_bytes",
				   number(progress, "bytes_sent"), "interrupted", interrupted);

	/* One that was stopped or failed in between took what that took. */
	if (actual && !interrupted && expected > 0 && total > 0)
		json_object_set_new(actual, "error_percent", json_real(100 * (expected - total) / total));
	json_object_set_new(report, "actual", actual);
}
