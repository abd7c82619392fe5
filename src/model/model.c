#include "model/model.h"

#include <errno.h>
#include <string.h>

#include "base/str.h"
#include "base/util.h"

const char *const model_source_states[] = {"available", "in_use", "unavailable", NULL};
const char *const model_job_states[] = {"ready",   "running", "stopped",  "in_error", "finished",
					"waiting", "expired", "deleting", NULL};
const char *const model_job_stages[] = {"", "preparing", "syncing", "processing", "cleaning", NULL};
const char *const model_run_states[] = {"active", "done", "failed", "cancelled", NULL};
const char *const model_destinations[] = {"image", "instance", NULL};
const char *const model_testings[] = {"", "test_only", "test_and_migrate", NULL};
const char *const model_start_tests[] = {"as_set", "none", "only", "migrate", NULL};
const char *const model_instance_states[] = {"off", "running", "paused", "crashed", "missing", NULL};
const char *const model_licenses[] = {"none", "byol", "region", NULL};
const char *const model_encryptions[] = {"auto", "on", "off", NULL};
const char *const model_networks[] = {"public", "private", NULL};
const char *const model_executions[] = {"create_only", "migrate_now",      "migrate_later",
					"test_only",   "test_and_migrate", NULL};
const char *const model_triggers[] = {"manual", "schedule", "cut_over", NULL};
static const char *const model_record_roles[] = {"viewer", "operator", "admin", "", NULL};
const char *const model_roles[] = {"viewer", "operator", "admin", NULL};
const char *const model_export_states[] = {"running", "finished", "in_error", NULL};
const char *const model_export_formats[] = {"qcow2", "raw", "vmdk", "vhdx", NULL};
const char *const model_read_errors[] = {"fail", "zero", NULL};
#define SUBSCRIBABLE "job.finished", "job.failed", "job.expiring", "source.offline", "image.not_verified"
const char *const model_subscribable[] = {SUBSCRIBABLE, NULL};
const char *const model_notice_events[] = {SUBSCRIBABLE, "ping", NULL};
const char *const model_notice_states[] = {"pending", "delivered", "given_up", NULL};

#define ROW(kind, field)                                                                                               \
	{                                                                                                              \
#field, MODEL_##kind, offsetof(struct model_this, field), NULL, false                                  \
	}
#define HIDDEN(kind, field)                                                                                            \
	{                                                                                                              \
#field, MODEL_##kind, offsetof(struct model_this, field), NULL, true                                   \
	}
#define WORDS(field, list)                                                                                             \
	{                                                                                                              \
#field, MODEL_WORD, offsetof(struct model_this, field), list, false                                    \
	}
#define END                                                                                                            \
	{                                                                                                              \
		0                                                                                                      \
	}

#define model_this model_source
static const struct model_field source_fields[] = {
    ROW(TEXT, id),
    ROW(TEXT, name),
    ROW(TEXT, description),
    WORDS(state, model_source_states),
    ROW(TEXT, hostname),
    HIDDEN(TEXT, machine_id),
    ROW(TEXT, agent_version),
    HIDDEN(TEXT, boot_id),
    HIDDEN(TEXT, secret_hash),
    ROW(TEXT, workgroup),
    ROW(REAL, created),
    ROW(REAL, last_seen),
    ROW(JSON, inventory),
    ROW(TAGS, tags),
    END,
};
static const struct model_field source_key_fields[] = {
    ROW(TEXT, id), ROW(TEXT, agent_version), HIDDEN(TEXT, boot_id), HIDDEN(TEXT, secret_hash), ROW(REAL, last_seen),
    END,
};
#undef model_this
#define model_this model_job
static const struct model_field job_fields[] = {
    ROW(TEXT, id),
    ROW(TEXT, name),
    ROW(TEXT, description),
    ROW(TEXT, source),
    ROW(TEXT, region),
    ROW(TEXT, image_name),
    ROW(TEXT, template),
    WORDS(state, model_job_states),
    WORDS(stage, model_job_stages),
    HIDDEN(TEXT, step_name),
    HIDDEN(TEXT, step_text),
    ROW(JSON, parameters),
    ROW(JSON, progress),
    ROW(JSON, stages),
    ROW(JSON, error),
    ROW(TAGS, tags),
    HIDDEN(TEXT, client_token),
    HIDDEN(TEXT, client_digest),
    ROW(UINT, valid_days),
    ROW(TEXT, image),
    HIDDEN(TEXT, image_pending),
    ROW(TEXT, run),
    ROW(REAL, created),
    ROW(REAL, started),
    ROW(REAL, finished),
    ROW(REAL, updated),
    ROW(REAL, expires),
    ROW(UINT, number),
    ROW(UINT, runs_done),
    WORDS(trigger, model_triggers),
    ROW(BOOL, last),
    HIDDEN(REAL, run_ended),
    ROW(REAL, next_run),
    HIDDEN(REAL, expiry_told),
    WORDS(destination, model_destinations),
    ROW(TEXT, instance),
    WORDS(testing, model_testings),
    ROW(JSON, test),
    END,
};
#undef model_this
#define model_this model_run
static const struct model_field run_fields[] = {
    ROW(TEXT, id),
    ROW(TEXT, job),
    ROW(UINT, number),
    WORDS(state, model_run_states),
    WORDS(trigger, model_triggers),
    ROW(REAL, started),
    ROW(REAL, ended),
    ROW(TEXT, image),
    ROW(UINT, bytes),
    ROW(JSON, result),
    ROW(JSON, error),
    END,
};
#undef model_this
#define model_this model_image
static const struct model_field image_fields[] = {
    ROW(TEXT, id),        ROW(TEXT, name),     ROW(TEXT, description),   ROW(TEXT, job),
    ROW(TEXT, source),    ROW(TEXT, region),   ROW(REAL, created),       ROW(JSON, manifest),
    HIDDEN(JSON, report), ROW(JSON, boot),     HIDDEN(TEXT, screenshot), ROW(TEXT, base),
    ROW(JSON, checked),   ROW(BOOL, deleting), ROW(TAGS, tags),          END,
};
#undef model_this
#define model_this model_code
static const struct model_field code_fields[] = {
    ROW(TEXT, id),      ROW(TEXT, name),    ROW(TEXT, description), ROW(UINT, uses),           ROW(UINT, used),
    ROW(REAL, created), ROW(REAL, expires), ROW(BOOL, revoked),     HIDDEN(TEXT, secret_hash), END,
};
#undef model_this
#define model_this model_token
static const struct model_field token_fields[] = {
    ROW(TEXT, id),
    ROW(TEXT, name),
    WORDS(role, model_roles),
    ROW(TAGS, scope),
    ROW(REAL, created),
    HIDDEN(TEXT, secret_hash),
    END,
};
#undef model_this
#define model_this model_region
static const struct model_field region_fields[] = {
    ROW(TEXT, id), ROW(TEXT, name), ROW(TEXT, provider), ROW(REAL, created), HIDDEN(JSON, settings), END,
};
#undef model_this
#define model_this model_instance
static const struct model_field instance_fields[] = {
    ROW(TEXT, id),        ROW(TEXT, name),        ROW(TEXT, description),
    ROW(TEXT, region),    ROW(TEXT, ref),         WORDS(state, model_instance_states),
    ROW(JSON, settings),  ROW(JSON, seen),        ROW(JSON, error),
    ROW(TEXT, image),     ROW(TEXT, job),         ROW(TEXT, disks),
    ROW(JSON, switching), HIDDEN(BOOL, deleting), ROW(REAL, created),
    ROW(REAL, updated),   ROW(TAGS, tags),        END,
};
#undef model_this
#define model_this model_snapshot
static const struct model_field snapshot_fields[] = {
    ROW(TEXT, id), ROW(TEXT, name), ROW(TEXT, instance), ROW(TEXT, disks), ROW(TEXT, job), ROW(REAL, created), END,
};
#undef model_this
#define model_this model_template
static const struct model_field template_fields[] = {
    ROW(TEXT, id), ROW(TEXT, name), ROW(TEXT, description), ROW(REAL, created), ROW(JSON, job), END,
};
#undef model_this
#define model_this model_workgroup
static const struct model_field workgroup_fields[] = {
    ROW(TEXT, id), ROW(TEXT, name), ROW(TEXT, description), ROW(REAL, created), ROW(TAGS, tags), END,
};
#undef model_this
#define model_this model_record
static const struct model_field record_fields[] = {
    ROW(TEXT, id),
    ROW(REAL, created),
    ROW(TEXT, who),
    ROW(TEXT, name),
    WORDS(role, model_record_roles),
    ROW(TEXT, address),
    ROW(TEXT, action),
    ROW(TEXT, object),
    ROW(UINT, status),
    ROW(TEXT, code),
    END,
};
#undef model_this
#define model_this model_export
static const struct model_field export_fields[] = {
    ROW(TEXT, id),
    ROW(TEXT, image),
    ROW(UINT, disk),
    WORDS(format, model_export_formats),
    WORDS(state, model_export_states),
    ROW(REAL, percent),
    ROW(UINT, size),
    ROW(REAL, created),
    ROW(JSON, error),
    END,
};
#undef model_this
#define model_this model_subscription
static const struct model_field subscription_fields[] = {
    ROW(TEXT, id),      ROW(TEXT, name),      ROW(TEXT, target), ROW(JSON, events), ROW(BOOL, active),
    ROW(REAL, created), ROW(REAL, delivered), ROW(REAL, failed), ROW(TEXT, error),  END,
};
#undef model_this
#define model_this model_notice
static const struct model_field notice_fields[] = {
    ROW(TEXT, id),
    ROW(TEXT, subscription),
    WORDS(event, model_notice_events),
    WORDS(state, model_notice_states),
    ROW(UINT, attempts),
    ROW(REAL, created),
    ROW(REAL, next_try),
    ROW(REAL, ended),
    ROW(TEXT, error),
    ROW(JSON, body),
    END,
};
#undef model_this

const struct model_noun model_sources = {"source", "sources", sizeof(struct model_source), source_fields};
const struct model_noun model_source_keys = {"source", "sources", sizeof(struct model_source), source_key_fields};
const struct model_noun model_jobs = {"job", "jobs", sizeof(struct model_job), job_fields};
const struct model_noun model_runs = {"run", "runs", sizeof(struct model_run), run_fields};
const struct model_noun model_images = {"image", "images", sizeof(struct model_image), image_fields};
const struct model_noun model_codes = {"code", "codes", sizeof(struct model_code), code_fields};
const struct model_noun model_tokens = {"token", "tokens", sizeof(struct model_token), token_fields};
const struct model_noun model_regions = {"region", "regions", sizeof(struct model_region), region_fields};
const struct model_noun model_exports = {"export", "exports", sizeof(struct model_export), export_fields};
const struct model_noun model_templates = {"template", "templates", sizeof(struct model_template), template_fields};
const struct model_noun model_workgroups = {"workgroup", "workgroups", sizeof(struct model_workgroup),
					    workgroup_fields};
const struct model_noun model_records = {"record", "audit", sizeof(struct model_record), record_fields};
const struct model_noun model_subscriptions = {"subscription", "subscriptions", sizeof(struct model_subscription),
					       subscription_fields};
const struct model_noun model_notices = {"notice", "notices", sizeof(struct model_notice), notice_fields};
const struct model_noun model_instances = {"instance", "instances", sizeof(struct model_instance), instance_fields};
const struct model_noun model_snapshots = {"snapshot", "snapshots", sizeof(struct model_snapshot), snapshot_fields};
const struct model_noun *const model_nouns[] = {
    &model_sources,   &model_jobs,       &model_runs,      &model_images,
    &model_codes,     &model_tokens,     &model_regions,   &model_exports,
    &model_templates, &model_workgroups, &model_records,   &model_subscriptions,
    &model_notices,   &model_instances,  &model_snapshots, NULL};

void model_release(const struct model_noun *n, void *obj)
{
	for (const struct model_field *f = n->fields; f->name; f++) {
		void *p = (char *)obj + f->offset;

		if (f->kind == MODEL_TEXT || f->kind == MODEL_LINE)
			free(*(char **)p);
		else if (f->kind == MODEL_JSON || f->kind == MODEL_TAGS)
			json_decref(*(json_t **)p);
	}
	memset(obj, 0, n->size);
}

int model_set(char **field, const char *value)
{
	char *copy = value ? strdup(value) : NULL;

	if (value && !copy)
		return -ENOMEM;
	free(*field);
	*field = copy;
	return 0;
}

void model_take_json(json_t **field, json_t *value)
{
	json_decref(*field);
	*field = value;
}

int model_word(const char *const *words, const char *s)
{
	for (int i = 0; words[i]; i++)
		if (strcmp(words[i], s) == 0)
			return i;
	return -1;
}

static json_t *field_json(const struct model_field *f, const void *obj)
{
	const void *p = (const char *)obj + f->offset;
	const char *s;

	switch (f->kind) {
	case MODEL_TEXT:
	case MODEL_LINE:
		s = *(char *const *)p;
		return s ? json_string(s) : json_null();
	case MODEL_UINT:
		return json_integer((json_int_t) * (const uint64_t *)p);
	case MODEL_REAL: /* the only real that is 0 but there is a percentage */
		return *(const double *)p == 0 && strcmp(f->name, "percent") != 0 ? json_null()
										  : json_real(*(const double *)p);
	case MODEL_BOOL:
		return json_boolean(*(const bool *)p);
	case MODEL_WORD:
		s = f->words[*(const int *)p];
		return *s ? json_string(s) : json_null();
	case MODEL_JSON:
		return *(json_t *const *)p ? json_incref(*(json_t *const *)p) : json_null();
	case MODEL_TAGS:
		return *(json_t *const *)p ? json_incref(*(json_t *const *)p) : json_object();
	}
	never("field kind");
}

static const char *code_state(const struct model_code *c, double now)
{
	if (c->revoked)
		return "revoked";
	if (now >= c->expires)
		return "expired";
	return c->used >= c->uses ? "used_up" : "active";
}

/* Believed is what has booted. */
static int add_image_derived(const struct model_image *im, json_t *o)
{
	const char *boot = json_string_value(json_object_get(im->boot, "state"));
	json_int_t size = 0;
	json_t *disk;
	size_t i;

	json_array_foreach(
	    json_object_get(im->manifest, "disks"), i,
	    disk) if (__builtin_add_overflow(size, json_integer_value(json_object_get(disk, "size")), &size)) size = 0;
	if (json_object_set_new(o, "verified", json_boolean(boot && strcmp(boot, "passed") == 0)) < 0)
		return -1;
	return json_object_set_new(o, "size", json_integer(size));
}

/* Of what a running job does now; how far its stage is where that isn't counted in `progress`. */
static json_t *step_json(const struct model_job *j)
{
	json_t *o;

	if (!j->step_name)
		return json_null();
	o = json_pack("{s:s, s:s?}", "name", j->step_name, "text", j->step_text);
	if (o && j->step_paced) {
		json_object_set_new(o, "percent", json_real(j->step_percent));
		json_object_set_new(o, "seconds_left", j->step_left < 0 ? json_null() : json_real(j->step_left));
	}
	return o;
}

const char *model_region_address(const struct model_region *r, enum model_network network)
{
	const char *name = network == NETWORK_PRIVATE ? "private_address" : "public_address";
	const char *s = json_string_value(json_object_get(r->settings, name));

	return s && *s ? s : NULL;
}

static int add_region_derived(const struct model_region *r, json_t *o)
{
	static const char *const shown[] = {"uri", "pool", "network", "accelerator"};
	const char *to_all = model_region_address(r, NETWORK_PUBLIC),
		   *within = model_region_address(r, NETWORK_PRIVATE);

	for (size_t i = 0; i < ARRAY_SIZE(shown); i++)
		if (json_object_set(o, shown[i], json_object_get(r->settings, shown[i]) ?: json_null()) < 0)
			return -1;
	if (json_object_set_new(o, "public_address", to_all ? json_string(to_all) : json_null()) < 0)
		return -1;
	return json_object_set_new(o, "private_address", within ? json_string(within) : json_null());
}

/* What is being done to it; the center's own notes are nobody else's. */
static int add_instance_derived(const struct model_instance *in, json_t *o)
{
	const json_t *doing = json_object_get(json_object_get(in->seen, "center"), "doing");
	json_t *action = json_object_get(doing, "action"), *percent = json_object_get(doing, "percent");
	json_t *seen = json_object_get(o, "seen");

	if (json_is_object(seen)) {
		seen = json_copy(seen);
		json_object_del(seen, "center");
		if (json_object_set_new(o, "seen", json_object_size(seen) ? json_incref(seen) : json_null()) < 0) {
			json_decref(seen);
			return -1;
		}
		json_decref(seen);
	}
	if (json_object_set_new(o, "percent", percent ? json_incref(percent) : json_null()) < 0)
		return -1;
	return json_object_set_new(o, "action",
				   in->deleting ? json_string("delete")
				   : action     ? json_incref(action)
						: json_null());
}

/* What isn't a column: made from others. */
static int add_derived(const struct model_noun *n, const void *obj, json_t *o, double now)
{
	if (n == &model_jobs)
		return json_object_set_new(o, "step", step_json(obj));
	if (n == &model_regions)
		return add_region_derived(obj, o);
	if (n == &model_instances)
		return add_instance_derived(obj, o);
	if (n == &model_codes)
		return json_object_set_new(o, "state", json_string(code_state(obj, now)));
	if (n == &model_images)
		return add_image_derived(obj, o);
	if (n == &model_sources) {
		const struct model_source *s = obj;
		json_t *os = json_object_get(s->inventory, "os");

		return json_object_set_new(o, "os", os ? json_incref(os) : json_null());
	}
	return 0;
}

json_t *model_json(const struct model_noun *n, const void *obj, bool brief, double now)
{
	static const char *const big[] = {"inventory", "manifest", "test", "checked", "seen", NULL};
	json_t *o = json_object();

	for (const struct model_field *f = n->fields; o && f->name; f++) {
		if (f->hidden || (brief && model_word(big, f->name) >= 0))
			continue;
		if (json_object_set_new(o, f->name, field_json(f, obj)) < 0) {
			json_decref(o);
			return NULL;
		}
	}
	if (o && brief && n == &model_jobs)
		json_object_set_new(o, "parameters", model_parameters_brief(json_object_get(o, "parameters")));
	if (o && add_derived(n, obj, o, now) < 0) {
		json_decref(o);
		return NULL;
	}
	return o;
}

/* ---- events ---- */

/* Outside text of at most `max` bytes, cut between characters. */
static json_t *bounded_text(const char *s, size_t max)
{
	return s ? json_stringn(s, str_cut(s, max)) : json_null();
}

static json_t *source_event(const struct model_source *s)
{
	json_t *os = json_object_get(s->inventory, "os");
	const char *name = json_string_value(json_object_get(os, "pretty_name"));

	if (!name)
		name = json_string_value(json_object_get(os, "name"));
	return json_pack("{s:s, s:o, s:s, s:o, s:o, s:o, s:f, s:o}", "id", s->id, "name", bounded_text(s->name, 255),
			 "state", model_source_states[s->state], "hostname", bounded_text(s->hostname, 255), "os",
			 name ? json_pack("{s:o}", "pretty_name", bounded_text(name, 200)) : json_null(),
			 "agent_version", bounded_text(s->agent_version, 64), "last_seen", s->last_seen, "tags",
			 s->tags ? json_incref(s->tags) : json_object());
}

static json_t *image_event(const struct model_image *im)
{
	static const char *const told[] = {"state", "started", "finished"};
	json_t *boot = im->boot ? json_object() : json_null(), *v, *o;

	for (size_t i = 0; im->boot && i < ARRAY_SIZE(told); i++)
		if ((v = json_object_get(im->boot, told[i])))
			json_object_set(boot, told[i], v);
	o = json_pack("{s:s, s:o, s:s?, s:s?, s:s?, s:f, s:o, s:o}", "id", im->id, "name",
		      bounded_text(im->name, MODEL_NAME_MAX), "job", im->job, "source", im->source, "region",
		      im->region, "created", im->created, "boot", boot, "tags",
		      im->tags ? json_incref(im->tags) : json_object());
	if (o && add_image_derived(im, o) < 0) {
		json_decref(o);
		return NULL;
	}
	return o;
}

json_t *model_event(const struct model_noun *n, const void *obj, double now)
{
	if (n == &model_sources)
		return source_event(obj);
	return n == &model_images ? image_event(obj) : model_json(n, obj, true, now);
}
