/* One request from its parameters to its answer: the table of actions, calls, errors, JSON and XML. */
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "base/util.h"
#include "smc/smc_int.h"

#define VERSION "2019-06-01"

static int no_cross_zone(struct smc *c)
{
	return smc_fail(c, 400, "UnsupportedOperation",
			"disks are moved between a cloud's zones by the cloud itself; there is no counterpart here");
}

static const struct {
	const char *name;
	int (*serve)(struct smc *c);
} actions[] = {
    {"DescribeSourceServers", smc_describe_sources},
    {"ModifySourceServerAttribute", smc_modify_source},
    {"DeleteSourceServer", smc_delete_source},
    {"CreateReplicationJob", smc_create_job},
    {"ModifyReplicationJobAttribute", smc_modify_job},
    {"StartReplicationJob", smc_start_job},
    {"StopReplicationJob", smc_stop_job},
    {"DescribeReplicationJobs", smc_describe_jobs},
    {"CutOverReplicationJob", smc_cut_over_job},
    {"DeleteReplicationJob", smc_delete_job},
    {"CreateCrossZoneMigrationJob", no_cross_zone},
    {"CreateAccessToken", smc_create_code},
    {"ListAccessTokens", smc_list_codes},
    {"DisableAccessToken", smc_disable_code},
    {"DeleteAccessToken", smc_delete_code},
    {"CreateWorkgroup", smc_create_group},
    {"ModifyWorkgroupAttribute", smc_modify_group},
    {"DescribeWorkgroups", smc_describe_groups},
    {"DeleteWorkgroup", smc_delete_group},
    {"AssociateSourceServers", smc_associate},
    {"DisassociateSourceServers", smc_disassociate},
    {"TagResources", smc_tag_resources},
    {"ListTagResources", smc_list_tags},
    {"UntagResources", smc_untag_resources},
};

/* ---- faults ---- */

int smc_fail(struct smc *c, int status, const char *code, const char *fmt, ...)
{
	va_list ap;

	c->fault.status = status;
	snprintf(c->fault.code, sizeof(c->fault.code), "%s", code);
	va_start(ap, fmt);
	vsnprintf(c->fault.message, sizeof(c->fault.message), fmt, ap);
	va_end(ap);
	str_utf8(c->fault.message);
	return -1;
}

int smc_nomem(struct smc *c)
{
	return smc_fail(c, 500, "InternalError", "out of memory");
}

int smc_bad(struct smc *c, const char *param, const char *fmt, ...)
{
	char text[ERR_MSG_MAX - 80];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	return smc_fail(c, 400, "InvalidParameter", "%.64s: %s", param, text);
}

/* ---- calls ---- */

/* What Replant's API blames, and how it is called here. */
static const char *their_name(const char *field)
{
	static const struct {
		const char *ours, *theirs;
	} names[] = {{"name", "Name"},
		     {"description", "Description"},
		     {"source", "SourceId"},
		     {"region", "RegionId"},
		     {"image_name", "ImageName"},
		     {"start_at", "ScheduledStartTime"},
		     {"valid_days", "ValidTime"},
		     {"client_token", "ClientToken"},
		     {"uses", "Count"},
		     {"tags", "Tag"},
		     {"workgroup", "WorkgroupId"},
		     {"parameters.interval_hours", "Frequency"},
		     {"parameters.max_images", "MaxNumberOfImageToKeep"},
		     {"parameters.incremental", "RunOnce"},
		     {"parameters.license", "LicenseType"},
		     {"parameters.transition_cpus", "InstanceType"},
		     {"parameters.transition_memory", "InstanceType"},
		     {"parameters.network", "NetMode"},
		     {"parameters.rate_mbit", "ReplicationParameters"},
		     {"parameters.compression", "ReplicationParameters"},
		     {"parameters.checksum", "ReplicationParameters"}};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (strcmp(names[i].ours, field) == 0)
			return names[i].theirs;
	return field;
}

/* What a refused call means to the caller, unless the action knows better. */
static void translate(struct smc *c, const struct smc_refusal *why)
{
	if (why->status == 400)
		smc_fail(c, 400, "InvalidParameter", "%.64s%s%s", their_name(why->field), *why->field ? ": " : "",
			 why->message);
	else if (why->status == 403)
		smc_fail(c, 403, "Forbidden.Unauthorized", "%s", why->message);
	else if (why->status == 404)
		smc_fail(c, 404, "InvalidResourceId.NotFound", "%s", why->message);
	else if (strcmp(why->code, "token_reused") == 0)
		smc_fail(c, 400, "IdempotentParameterMismatch", "%s", why->message);
	else if (why->status == 413)
		smc_fail(c, 413, "RequestTooLarge", "%s", why->message);
	else if (why->status < 500)
		smc_fail(c, 400, "OperationDenied", "%s", why->message);
	else
		smc_fail(c, why->status, why->status == 503 ? "ServiceUnavailable" : "InternalError", "%s",
			 why->message);
}

int smc_call(struct smc *c, const char *method, json_t *query, json_t *body, json_t **ret, const char *fmt, ...)
{
	_cleanup_json_ json_t *q = query, *b = body, *got = NULL;
	char path[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(path, sizeof(path), fmt, ap);
	va_end(ap);
	c->refusal = (struct smc_refusal){0};
	if (c->service->call(c->service->arg, method, path, q, b, &got, &c->refusal) < 0) {
		translate(c, &c->refusal);
		return -1;
	}
	if (ret && !got)
		return smc_fail(c, 500, "InternalError", "a call had no answer");
	if (ret)
		*ret = take_ptr(&got);
	return 0;
}

bool smc_was(const struct smc *c, const char *code)
{
	return strcmp(c->refusal.code, code) == 0;
}

/* ---- answers ---- */

const char *smc_text(const json_t *o, const char *member)
{
	return json_string_value(json_object_get(o, member)) ?: "";
}

void smc_put(json_t *o, const char *name, const char *text)
{
	json_object_set_new(o, name, json_string(text));
}

void smc_put_id(json_t *o, const char *name, const json_t *id)
{
	char buf[ID_MAX];

	if (*smc_their_id(id, buf))
		smc_put(o, name, buf);
}

void smc_put_time(json_t *o, const char *name, const json_t *time)
{
	time_t t = (time_t)json_number_value(time);
	char buf[32];
	struct tm tm;

	if (t > 0 && gmtime_r(&t, &tm) && strftime(buf, sizeof(buf), "%Y-%m-%dT%H:%M:%SZ", &tm))
		smc_put(o, name, buf);
}

void smc_put_list(json_t *o, const char *outer, const char *inner, json_t *items)
{
	json_object_set_new(o, outer, json_pack("{s:o}", inner, items));
}

void smc_put_tags(json_t *o, const json_t *tags)
{
	json_t *items = json_array(), *value;
	const char *key;

	json_object_foreach((json_t *)tags, key, value)
	    json_array_append_new(items, json_pack("{s:s, s:O}", "Key", key, "Value", value));
	smc_put_list(o, "Tags", "Tag", items);
}

static void xml_text(struct str *b, const char *s)
{
	for (; *s; s++) {
		const char *entity = *s == '<' ? "&lt;" : *s == '>' ? "&gt;" : *s == '&' ? "&amp;" : NULL;

		if (entity)
			str_add(b, entity);
		else if ((unsigned char)*s >= 0x20 || strchr("\t\n", *s))
			str_add_mem(b, s, 1);
	}
}

static void xml_node(struct str *b, const char *name, json_t *v);

static void xml_inside(struct str *b, json_t *v)
{
	const char *key;
	json_t *member;

	if (json_is_string(v))
		xml_text(b, json_string_value(v));
	else if (json_is_integer(v))
		str_addf(b, "%lld", (long long)json_integer_value(v));
	else if (json_is_real(v))
		str_addf(b, "%.6g", json_real_value(v));
	else if (json_is_boolean(v))
		str_add(b, json_is_true(v) ? "true" : "false");
	else
		json_object_foreach(v, key, member) xml_node(b, key, member);
}

/* A list is its items one after another; our own lists aren't nested deeper than a few levels. */
static void xml_node(struct str *b, const char *name, json_t *v)
{
	json_t *item;
	size_t i;

	if (json_is_array(v)) {
		json_array_foreach(v, i, item) xml_node(b, name, item);
		return;
	}
	str_addf(b, "<%s>", name);
	xml_inside(b, v);
	str_addf(b, "</%s>", name);
}

static char *xml(const char *root, json_t *o)
{
	_cleanup_(str_release) struct str b = {0};

	str_add(&b, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>");
	xml_node(&b, root, o);
	return str_ok(&b) ? str_take(&b) : NULL;
}

/* Random, in the form of a UUID. */
static void new_request_id(char ret[40])
{
	unsigned char raw[16];
	char hex[33];

	id_random(raw, sizeof(raw));
	str_hex(raw, sizeof(raw), hex);
	for (char *p = hex; *p; p++)
		if (*p >= 'a')
			*p = (char)(*p - 'a' + 'A');
	snprintf(ret, 40, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
}

static json_t *fault_json(const struct smc_fault *f, const char *request_id, const char *host)
{
	return json_pack("{s:s, s:s, s:s, s:s}", "RequestId", request_id, "HostId", host ? host : "", "Code", f->code,
			 "Message", f->message);
}

static void write_answer(struct smc *c, const char *action, struct smc_answer *ret)
{
	const char *format = smc_param(c, "Format");
	_cleanup_json_ json_t *o = NULL;
	_cleanup_free_ char *root = NULL;

	if (c->fault.status)
		o = fault_json(&c->fault, c->request_id, c->in->host);
	else if (json_object_set_new(c->answer, "RequestId", json_string(c->request_id)) == 0)
		o = json_incref(c->answer);
	ret->status = c->fault.status ? c->fault.status : 200;
	ret->type = "application/json;charset=utf-8";
	if (format && strcasecmp(format, "XML") == 0) {
		root = c->fault.status ? strdup("Error") : str_printf("%sResponse", action);
		ret->type = "text/xml;charset=utf-8";
		ret->text = o && root ? xml(root, o) : NULL;
	} else {
		ret->text = o ? jsn_text(o) : NULL;
	}
}

void smc_refuse_early(const struct smc_refusal *why, const char *host, struct smc_answer *ret)
{
	struct smc c = {0};
	_cleanup_json_ json_t *o = NULL;

	new_request_id(c.request_id);
	translate(&c, why);
	if (why->status == 429)
		smc_fail(&c, 429, "Throttling", "%s", why->message);
	o = fault_json(&c.fault, c.request_id, host);
	*ret = (struct smc_answer){c.fault.status, o ? jsn_text(o) : NULL, "application/json;charset=utf-8", false};
}

/* ---- lists ---- */

int smc_page(struct smc *c, uint64_t size, struct smc_page *ret)
{
	*ret = (struct smc_page){1, size};
	if (smc_uint(c, "PageNumber", 1, 1000000, &ret->number) < 0 || smc_uint(c, "PageSize", 1, 50, &ret->size) < 0)
		return -1;
	return 0;
}

void smc_put_page(struct smc *c, const struct smc_page *p, uint64_t total)
{
	json_object_set_new(c->answer, "PageNumber", json_integer((json_int_t)p->number));
	json_object_set_new(c->answer, "PageSize", json_integer((json_int_t)p->size));
	json_object_set_new(c->answer, "TotalCount", json_integer((json_int_t)total));
}

static json_t *text_of(uint64_t n)
{
	char buf[24];

	snprintf(buf, sizeof(buf), "%llu", (unsigned long long)n);
	return json_string(buf);
}

/* Does the row have the tag, "key" or "key=value"? */
static bool has_tag(const json_t *row, const char *tag)
{
	const char *equals = strchr(tag, '=');
	_cleanup_free_ char *key = equals ? strndup(tag, (size_t)(equals - tag)) : strdup(tag);
	const json_t *value = key ? json_object_get(json_object_get(row, "tags"), key) : NULL;

	return value && (!equals || strcmp(json_string_value(value) ?: "", equals + 1) == 0);
}

/* What a list's filters would say of a row that was asked for by its id. */
bool smc_passes(const json_t *row, json_t *query)
{
	const char *key;
	json_t *want, *tag;
	size_t i;

	json_object_foreach(query, key, want)
	{
		if (strcmp(key, "tag") == 0) {
			json_array_foreach(want, i, tag) if (!has_tag(row, json_string_value(tag))) return false;
		} else if (strcmp(smc_text(row, key), json_string_value(want)) != 0) {
			return false;
		}
	}
	return true;
}

/* Adds those of one id. One that isn't there is no error: it's just not in the list. */
static int add_of_id(struct smc *c, const char *path, json_t *query, const char *by, const char *id, json_t *rows)
{
	_cleanup_json_ json_t *got = NULL;
	json_t *row, *q = by ? json_copy(query) : NULL;
	size_t i;

	if (q)
		json_object_set_new(q, by, json_string(id));
	if (q)
		json_object_set_new(q, "limit", json_string("500"));
	if ((by ? smc_call(c, "GET", q, NULL, &got, "%s", path)
		: smc_call(c, "GET", NULL, NULL, &got, "%s/%s", path, id)) < 0) {
		if (c->refusal.status != 404)
			return -1;
		c->fault = (struct smc_fault){0};
		return 0;
	}
	if (!by)
		return smc_passes(got, query) ? json_array_append(rows, got) : 0;
	json_array_foreach(json_object_get(got, "items"), i, row) json_array_append(rows, row);
	return 0;
}

static int list_ids(struct smc *c, const char *path, json_t *query, const json_t *ids, const char *by,
		    const struct smc_page *p, json_t **ret, uint64_t *ret_total)
{
	_cleanup_json_ json_t *rows = json_array(), *page = json_array();
	uint64_t from = (p->number - 1) * p->size;
	json_t *id;
	size_t i;

	json_array_foreach(ids, i, id) if (add_of_id(c, path, query, by, json_string_value(id), rows) < 0) return -1;
	for (uint64_t k = from; k < from + p->size && k < json_array_size(rows); k++)
		json_array_append(page, json_array_get(rows, k));
	*ret_total = json_array_size(rows);
	*ret = take_ptr(&page);
	return *ret ? 0 : smc_nomem(c);
}

int smc_list(struct smc *c, const char *path, json_t *query, json_t *ids, const char *by, const struct smc_page *p,
	     json_t **ret, uint64_t *ret_total)
{
	_cleanup_json_ json_t *q = query, *list = ids, *got = NULL;

	if (list)
		return list_ids(c, path, q, list, by, p, ret, ret_total);
	json_object_set_new(q, "limit", text_of(p->size));
	json_object_set_new(q, "offset", text_of((p->number - 1) * p->size));
	if (smc_call(c, "GET", json_incref(q), NULL, &got, "%s", path) < 0)
		return -1;
	*ret = json_incref(json_object_get(got, "items"));
	*ret_total = (uint64_t)json_integer_value(json_object_get(got, "total"));
	return *ret ? 0 : smc_nomem(c);
}

int smc_list_all(struct smc *c, const char *path, json_t *query, json_t *ids, json_t *ret)
{
	struct smc_page p = {1, 500};
	uint64_t total = 0;

	for (;; p.number++) {
		_cleanup_json_ json_t *rows = NULL;

		if (smc_list(c, path, json_copy(query), json_incref(ids), NULL, &p, &rows, &total) < 0)
			return -1;
		json_array_extend(ret, rows);
		if (ids || p.number * p.size >= total)
			return 0;
	}
}

/* ---- the request ---- */

int smc_run(struct smc *c, const char *action)
{
	const char *version = smc_version(c), *format = smc_param(c, "Format");

	if (!action)
		return smc_fail(c, 400, "MissingParameter", "the parameter Action is mandatory for this action");
	if (!version || strcmp(version, VERSION) != 0)
		return smc_fail(c, 400, "InvalidVersion", "the parameter Version must be " VERSION ", not '%.32s'",
				version ? version : "");
	if (format && strcasecmp(format, "JSON") != 0 && strcasecmp(format, "XML") != 0)
		return smc_bad(c, "Format", "must be JSON or XML, not '%.32s'", format);
	for (size_t i = 0; i < ARRAY_SIZE(actions); i++)
		if (strcmp(actions[i].name, action) == 0)
			return actions[i].serve(c);
	return smc_fail(c, 404, "InvalidAction.NotFound", "the specified action '%.64s' is not found", action);
}

void smc_serve(const struct smc_service *s, const struct smc_request *r, struct smc_answer *ret)
{
	struct smc c = {.service = s, .in = r, .answer = json_object()};
	const char *action = NULL;

	*ret = (struct smc_answer){0};
	new_request_id(c.request_id);
	if (!c.answer)
		smc_nomem(&c);
	else if (smc_params_read(&c) == 0 && smc_verify(&c, &ret->denied)) {
		action = smc_action(&c);
		if (smc_run(&c, action) < 0 && !c.fault.status)
			smc_fail(&c, 500, "InternalError", "the request failed for no known reason");
	}
	write_answer(&c, action ? action : "", ret);
	smc_params_release(&c);
	json_decref(c.answer);
}
