/*
 * Looks at an image and judges whether it will start and be reached elsewhere: a table of checks, each an item of the
 * report. What a check can have repaired, it has repaired by the conversion's own steps, and is then asked again.
 */
#include "guest/guest_int.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/util.h"

/* In the order of the report. */
static const struct guest_check *const check_tables[] = {guest_checks_system, guest_checks_boot, guest_checks_disks,
							 guest_checks_network, guest_checks_access};

static const char *const level_names[] = {"passed", "warning", "critical"};

#define STEPS_MAX 32

static void find_add(struct str *b, const char *fmt, va_list ap)
{
	char text[768];

	vsnprintf(text, sizeof(text), fmt, ap);
	str_utf8(text);
	str_addf(b, "%s%s", b->len ? "; " : "", text);
}

void guest_find(struct guest_finding *f, enum guest_level level, const char *fmt, ...)
{
	va_list ap;

	/* A sentence that all is well isn't one when it isn't. */
	if (level == GUEST_PASSED && f->level != GUEST_PASSED)
		return;
	if (level != GUEST_PASSED && f->level == GUEST_PASSED)
		str_release(&f->message);
	f->level = MAX(f->level, level);
	if (f->message.len > 4096)
		return;
	va_start(ap, fmt);
	find_add(&f->message, fmt, ap);
	va_end(ap);
}

void guest_advise(struct guest_finding *f, const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	str_utf8(text);
	if (!f->remedy.len || !strstr(f->remedy.s, text))
		str_addf(&f->remedy, "%s%s", f->remedy.len ? "; " : "", text);
}

static void finding_release(struct guest_finding *f)
{
	str_release(&f->message);
	str_release(&f->remedy);
	json_decref(f->value);
}

static bool finding_is_repairable(const struct guest *g, const struct guest_finding *f)
{
	return f->level != GUEST_PASSED && f->repair[0] && guest_is_debian(g);
}

static json_t *check_json(const struct guest *g, const struct guest_check *c, const struct guest_finding *f)
{
	bool bad = f->level != GUEST_PASSED;
	json_t *o =
	    json_pack("{s:s, s:s, s:s, s:s, s:b, s:b}", "item", c->name, "group", c->group, "level",
		      level_names[f->level], "message", f->message.len ? f->message.s : "nothing to complain of",
		      "repairable", finding_is_repairable(g, f), "high", c->high);

	if (o && bad && f->remedy.len)
		json_object_set_new(o, "remedy", json_string(f->remedy.s));
	if (o && f->value)
		json_object_set(o, "value", f->value);
	return o;
}

static void check_run(struct guest *g, const struct guest_check *c, struct guest_finding *f)
{
	struct err e = {0};

	if (c->run(g, f, &e) < 0) {
		guest_find(f, GUEST_WARNING, "it can't be looked at: %s", e.msg);
		guest_advise(f, "see on the source that it can be read");
	}
}

/* *ret: the items; `steps` (may be NULL): those that would repair something. */
static int check_all(struct guest *g, const struct guest_step **steps, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *items = json_array();
	size_t n = 0;

	for (size_t t = 0; t < ARRAY_SIZE(check_tables); t++)
		for (const struct guest_check *c = check_tables[t]; c->name; c++) {
			struct guest_finding f = {0};
			json_t *o;

			if (c->applies && !c->applies(g))
				continue;
			check_run(g, c, &f);
			o = check_json(g, c, &f);
			for (size_t i = 0; steps && finding_is_repairable(g, &f) && i < ARRAY_SIZE(f.repair); i++)
				if (f.repair[i] && n + 1 < STEPS_MAX)
					steps[n++] = f.repair[i];
			finding_release(&f);
			if (!o || json_array_append_new(items, o) < 0)
				return err_nomem(e);
		}
	if (steps)
		steps[n] = NULL;
	*ret = take_ptr(&items);
	return 0;
}

static bool check_wants(const struct guest_step *const *steps, const struct guest_step *s)
{
	for (; *steps; steps++)
		if (*steps == s)
			return true;
	return false;
}

/* Of a step that isn't done: why. */
static json_t *check_skipped(const struct guest_step *s, const char *why)
{
	return json_pack("{s:s, s:s, s:s, s:[], s:[]}", "name", s->name, "state", "skipped", "summary", why, "files",
			 "notes");
}

/* In the order of the conversion; none of them on a filesystem that is full. */
static int check_repair(struct guest *g, const struct guest_step *const *steps, guest_event_fn event, void *arg,
			json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *done = json_array();
	struct err full = {0};
	int room = *steps ? guest_check_space(g, &full) : 0;

	for (size_t i = 0; guest_steps[i]; i++) {
		_cleanup_json_ json_t *told = NULL;
		json_t *step = NULL;

		if (!check_wants(steps, guest_steps[i]))
			continue;
		if (room < 0) {
			if (json_array_append_new(done, check_skipped(guest_steps[i], full.msg)) < 0)
				return err_nomem(e);
			continue;
		}
		told = json_pack("{s:s, s:s}", "event", "step", "name", guest_steps[i]->name);
		if (event && told)
			event(arg, told);
		if (guest_run_step(g, guest_steps[i], &step) < 0 || json_array_append_new(done, step) < 0)
			return err_nomem(e);
	}
	*ret = take_ptr(&done);
	return 0;
}

static const char *check_verdict(const json_t *items)
{
	size_t worst = 0, i;
	json_t *item;

	json_array_foreach(items, i, item)
	{
		const char *level = json_string_value(json_object_get(item, "level"));

		for (size_t k = 0; level && k < ARRAY_SIZE(level_names); k++)
			if (strcmp(level, level_names[k]) == 0)
				worst = MAX(worst, k);
	}
	return level_names[worst];
}

static bool check_is_fine(const json_t *items, const char *name)
{
	json_t *item;
	size_t i;

	json_array_foreach(items, i, item) if (strcmp(json_string_value(json_object_get(item, "item")), name) ==
					       0) return strcmp(json_string_value(json_object_get(item, "level")),
								"passed") == 0;
	return true;
}

/* What was wrong before and could be repaired, with whether it is well now. */
static json_t *check_repaired(const json_t *before, const json_t *after)
{
	json_t *list = json_array(), *item;
	size_t i;

	json_array_foreach(before, i, item)
	{
		const char *name = json_string_value(json_object_get(item, "item"));

		if (json_is_true(json_object_get(item, "repairable")))
			json_array_append_new(list, json_pack("{s:s, s:b, s:O}", "item", name, "repaired",
							      check_is_fine(after, name), "was",
							      json_object_get(item, "message")));
	}
	return list;
}

static void check_finish(const struct guest *g, json_t *report, json_t *items)
{
	json_object_set_new(report, "kind", json_string("linux"));
	json_object_set_new(report, "verdict", json_string(check_verdict(items)));
	json_object_set_new(report, "system",
			    json_pack("{s:s, s:s, s:s}", "id", g->id, "version", g->version, "name", g->pretty));
	json_object_set(report, "items", items);
}

int guest_check_system(struct guest *g, const json_t *options, bool repair, guest_event_fn event, void *arg,
		       json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *report = json_object(), *items = NULL, *after = NULL, *steps = NULL;
	const struct guest_step *wanted[STEPS_MAX];
	int r = guest_set_address(g, json_object_get(options, "network"), e);

	r = r ?: guest_find_kernels(g, e);
	r = r ?: check_all(g, wanted, &items, e);
	if (r == 0 && repair) {
		/* Of a rebuilt initramfs nothing else would ask for it. */
		g->wants_nvme = !check_is_fine(items, "nvme");
		r = check_repair(g, wanted, event, arg, &steps, e);
		if (g->found)
			guest_ground_tables(g->volumes, g->found);
		r = r ?: guest_find_kernels(g, e);
		r = r ?: check_all(g, NULL, &after, e);
	}
	if (r < 0)
		return r;
	if (!report)
		return err_nomem(e);
	check_finish(g, report, after ?: items);
	if (repair) {
		json_object_set_new(report, "repaired", check_repaired(items, after));
		json_object_set(report, "before", items);
		json_object_set_new(report, "verdict_before", json_string(check_verdict(items)));
		json_object_set(report, "steps", steps);
	}
	*ret = take_ptr(&report);
	return 0;
}

/* Nothing on the disks can be taken for a system, or (`root`) not for a whole one: what they hold instead. */
static int check_nothing(const struct guest_volumes *v, const json_t *ground, bool root, const struct err *why,
			 json_t **ret, struct err *e)
{
	const char *text = why->msg, *remedy = "copy all disks of the server";
	const char *kind = root ? "incomplete" : guest_ground_kind(ground, v, &text, &remedy);
	json_t *o = json_pack("{s:s, s:s, s:[{s:s, s:s, s:s, s:s, s:s, s:b, s:b, s:{s:s, s:s}}]}", "kind", kind,
			      "verdict", "critical", "items", "item", "system_image", "group", "system", "level",
			      "critical", "message", text, "remedy", remedy, "repairable", false, "high", true, "value",
			      "kind", kind, "said", why->msg);

	if (!o)
		return err_nomem(e);
	if (strcmp(kind, "windows") == 0)
		json_array_append_new(json_object_get(o, "items"),
				      json_pack("{s:s, s:s, s:s, s:s, s:b, s:b, s:s}", "item", "platform", "group",
						"system", "level", "critical", "message", "Windows is not supported",
						"repairable", false, "high", false, "value", "windows"));
	*ret = o;
	return 0;
}

int guest_check(const struct guest_volumes *v, const struct guest_root *root, const char *at, const json_t *options,
		bool repair, guest_event_fn event, void *arg, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *ground = guest_ground_look(v, at), *report = NULL;
	struct err why = {0};
	struct guest *g = NULL;
	int r, rc;

	if (!ground)
		return err_nomem(e);
	r = guest_find_root(v, root, at, &g, &why);
	if (r == 0)
		r = guest_mount_rest(g, &why);
	if (r < 0) {
		r = check_nothing(v, ground, g != NULL, &why, &report, e);
		guest_close(g, NULL);
	} else {
		g->found = ground;
		r = guest_check_system(g, options, repair, event, arg, &report, e);
		rc = guest_close(g, &why);
		if (r == 0 && rc < 0)
			r = err_set(e, rc, "%s", why.msg);
	}
	if (r < 0)
		return r;
	json_object_set(report, "disks", ground);
	*ret = take_ptr(&report);
	return 0;
}
