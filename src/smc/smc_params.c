/* Parameters: names and values of the query and of a form, flattened lists among them ("Tag.1.Key"). */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "base/util.h"
#include "smc/smc_int.h"

static int add(struct smc *c, char *name, char *value)
{
	_cleanup_json_ json_t *check = name && value ? json_pack("[s,s]", name, value) : NULL;
	struct smc_param *v = NULL;

	if (name && value && !check)
		smc_fail(c, 400, "InvalidParameter", "a parameter is not UTF-8");
	else if (c->n == SMC_PARAMS_MAX)
		smc_fail(c, 400, "InvalidParameter", "more than %u parameters", SMC_PARAMS_MAX);
	else if (name && json_object_get(c->names, name))
		smc_bad(c, name, "given twice");
	else
		v = check ? realloc(c->params, (c->n + 1) * sizeof(*v)) : NULL;
	if (!v) {
		free(name);
		free(value);
		return c->fault.status ? -1 : smc_nomem(c);
	}
	c->params = v;
	v[c->n++] = (struct smc_param){name, value};
	return json_object_set_new(c->names, name, json_true()) < 0 ? smc_nomem(c) : 0;
}

/* One part of application/x-www-form-urlencoded; NULL when it can't be. */
static char *decode(const char *s, size_t len)
{
	char *out = malloc(len + 1);
	size_t n = 0;

	for (size_t i = 0; out && i < len; i++) {
		unsigned char byte = (unsigned char)s[i];
		char hex[3] = "";

		if (byte == '%' && i + 2 < len) {
			memcpy(hex, s + i + 1, 2);
			i += 2;
		}
		if (byte == '+')
			byte = ' ';
		else if (byte == '%' && str_unhex(hex, &byte, 1) < 0)
			byte = 0;
		if (!byte) {
			free(out);
			return NULL;
		}
		out[n++] = (char)byte;
	}
	if (out)
		out[n] = '\0';
	return out;
}

static int read_form(struct smc *c, const char *s, size_t len)
{
	for (const char *end = s + len; s < end;) {
		const char *amp = memchr(s, '&', (size_t)(end - s)) ?: end;
		const char *equals = memchr(s, '=', (size_t)(amp - s)) ?: amp;
		char *name = decode(s, (size_t)(equals - s));
		char *value = equals < amp ? decode(equals + 1, (size_t)(amp - equals - 1)) : strdup("");

		if (!name || !value) {
			free(name);
			free(value);
			return smc_fail(c, 400, "InvalidParameter", "the body is not a form (%%XX is wrong, or %%00)");
		}
		if (amp > s && add(c, name, value) < 0)
			return -1;
		if (amp == s) {
			free(name);
			free(value);
		}
		s = amp + 1;
	}
	return 0;
}

int smc_params_read(struct smc *c)
{
	const char *type = c->in->header(c->in->header_arg, "content-type");

	c->names = json_object();
	if (!c->names)
		return smc_nomem(c);
	for (size_t i = 0; i < c->in->nquery; i++)
		if (add(c, strdup(c->in->query[i].name), strdup(c->in->query[i].value)) < 0)
			return -1;
	if (!c->in->len)
		return 0;
	if (!type || strncasecmp(type, "application/x-www-form-urlencoded", 33) != 0)
		return smc_fail(c, 400, "UnsupportedContentType",
				"the body must be application/x-www-form-urlencoded, not '%.64s'", type ? type : "");
	return read_form(c, c->in->body, c->in->len);
}

void smc_params_release(struct smc *c)
{
	for (size_t i = 0; i < c->n; i++) {
		free(c->params[i].name);
		free(c->params[i].value);
	}
	free(c->params);
	json_decref(c->names);
	c->names = NULL;
	c->params = NULL;
	c->n = 0;
}

const char *smc_param(const struct smc *c, const char *name)
{
	for (size_t i = 0; i < c->n; i++)
		if (strcmp(c->params[i].name, name) == 0)
			return *c->params[i].value ? c->params[i].value : NULL;
	return NULL;
}

bool smc_param_any(const struct smc *c, const char *prefix)
{
	for (size_t i = 0; i < c->n; i++)
		if (str_starts(c->params[i].name, prefix) && *c->params[i].value)
			return true;
	return false;
}

int smc_uint(struct smc *c, const char *name, uint64_t min, uint64_t max, uint64_t *ret)
{
	const char *s = smc_param(c, name);

	if (!s)
		return 0;
	if (str_u64(s, min, max, ret) < 0)
		return smc_bad(c, name, "must be a number from %llu to %llu, not '%.64s'", (unsigned long long)min,
			       (unsigned long long)max, s);
	return 1;
}

int smc_bool(struct smc *c, const char *name, bool *ret)
{
	const char *s = smc_param(c, name);

	if (!s)
		return 0;
	if (strcasecmp(s, "true") != 0 && strcasecmp(s, "false") != 0)
		return smc_bad(c, name, "must be true or false, not '%.64s'", s);
	*ret = strcasecmp(s, "true") == 0;
	return 1;
}

/* ISO 8601 in UTC, with or without seconds. */
int smc_time(struct smc *c, const char *name, double *ret)
{
	static const char *const forms[] = {"%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%MZ"};
	const char *s = smc_param(c, name);

	if (!s)
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(forms); i++) {
		struct tm tm = {0};
		const char *end = strptime(s, forms[i], &tm);

		if (end && !*end) {
			*ret = (double)timegm(&tm);
			return 1;
		}
	}
	return smc_bad(c, name, "must be a time like 2026-01-31T12:00:00Z, not '%.64s'", s);
}

/* Their ids have a letter or two where ours have the noun. */
static const struct {
	const char *theirs, *ours;
} nouns[] = {{"s-", "source-"}, {"j-", "job-"}, {"at-", "code-"},   {"w-", "workgroup-"},
	     {"m-", "image-"},  {"i-", "run-"}, {"i-", "instance-"}};

const char *smc_their_id(const json_t *id, char buf[ID_MAX])
{
	const char *s = json_string_value(id) ?: "";

	buf[0] = '\0';
	for (size_t i = 0; i < ARRAY_SIZE(nouns); i++)
		if (str_starts(s, nouns[i].ours))
			snprintf(buf, ID_MAX, "%s%s", nouns[i].theirs, s + strlen(nouns[i].ours));
	return buf;
}

static bool our_id(const char *s, const char *noun, char ret[ID_MAX])
{
	snprintf(ret, ID_MAX, "%.47s", s);
	for (size_t i = 0; i < ARRAY_SIZE(nouns); i++)
		if (str_starts(s, nouns[i].theirs))
			snprintf(ret, ID_MAX, "%s%.30s", nouns[i].ours, s + strlen(nouns[i].theirs));
	return strlen(s) < ID_MAX && id_is(noun, ret);
}

/* "SourceId" -> "InvalidSourceId.NotFound" */
static int unknown_id(struct smc *c, const char *name, const char *value)
{
	char code[64];
	size_t n = strcspn(name, ".");

	snprintf(code, sizeof(code), "Invalid%.*s.NotFound", (int)MIN(n, 40u), name);
	return smc_fail(c, 404, code, "the specified %.*s '%.64s' does not exist", (int)n, name, value);
}

int smc_id(struct smc *c, const char *name, const char *noun, char ret[ID_MAX])
{
	const char *s = smc_param(c, name);

	if (!s)
		return smc_fail(c, 400, "MissingParameter", "the parameter %s is mandatory for this action", name);
	return our_id(s, noun, ret) ? 0 : unknown_id(c, name, s);
}

/* One of a list that is there. */
static int add_id(struct smc *c, const char *name, const char *value, const char *noun, json_t *list)
{
	char id[ID_MAX];
	json_t *other;
	size_t i;

	if (!our_id(value, noun, id))
		return unknown_id(c, name, value);
	json_array_foreach(list, i, other) if (strcmp(json_string_value(other), id) == 0) return smc_fail(
	    c, 400, "Duplicate.ResourceId", "the id '%.64s' is given twice in %s", value, name);
	return json_array_append_new(list, json_string(id)) < 0 ? smc_nomem(c) : 0;
}

int smc_ids(struct smc *c, const char *name, const char *noun, json_t **ret)
{
	_cleanup_json_ json_t *list = json_array();
	char member[80];
	const char *s;

	*ret = NULL;
	if (!list)
		return smc_nomem(c);
	for (unsigned i = 1;; i++) {
		snprintf(member, sizeof(member), "%s.%u", name, i);
		s = smc_param(c, member);
		if (!s)
			break;
		if (i > SMC_IDS_MAX)
			return smc_fail(c, 400, "NumberExceed.ResourceIds", "%s may have at most %u ids", name,
					SMC_IDS_MAX);
		if (add_id(c, member, s, noun, list) < 0)
			return -1;
	}
	if (json_array_size(list))
		*ret = take_ptr(&list);
	return 0;
}

static const char *tag_part(const struct smc *c, unsigned i, const char *part)
{
	char member[32];

	snprintf(member, sizeof(member), "Tag.%u.%s", i, part);
	return smc_param(c, member);
}

int smc_tags(struct smc *c, json_t **ret)
{
	_cleanup_json_ json_t *tags = json_object();
	const char *key, *value;

	*ret = NULL;
	if (!tags)
		return smc_nomem(c);
	for (unsigned i = 1;; i++) {
		key = tag_part(c, i, "Key");
		value = tag_part(c, i, "Value");
		if (!key && !value)
			break;
		if (i > 20)
			return smc_fail(c, 400, "NumberExceed.Tags", "at most 20 tags");
		if (!key)
			return smc_fail(c, 400, "InvalidParameter.TagValue", "Tag.%u has a value but no key", i);
		if (str_starts(key, "aliyun") || str_starts(key, "acs:") || str_starts(key, "http://") ||
		    str_starts(key, "https://"))
			return smc_fail(c, 400, "InvalidParameter.TagKey",
					"the key '%.64s' begins with a word that is taken", key);
		if (json_object_set_new(tags, key, json_string(value ? value : "")) < 0)
			return smc_nomem(c);
	}
	if (json_object_size(tags))
		*ret = take_ptr(&tags);
	return 0;
}

int smc_tag_filter(struct smc *c, json_t *query)
{
	_cleanup_json_ json_t *list = json_array();
	const char *key, *value;

	for (unsigned i = 1;; i++) {
		_cleanup_free_ char *text = NULL;

		key = tag_part(c, i, "Key");
		value = tag_part(c, i, "Value");
		if (!key && !value)
			break;
		if (!key)
			return smc_fail(c, 400, "InvalidParameter.TagValue", "Tag.%u has a value but no key", i);
		if (i > 20)
			return smc_fail(c, 400, "NumberExceed.Tags", "at most 20 tags");
		text = value ? str_printf("%s=%s", key, value) : strdup(key);
		if (!text || json_array_append_new(list, json_string(text)) < 0)
			return smc_nomem(c);
	}
	return json_array_size(list) && json_object_set(query, "tag", list) < 0 ? smc_nomem(c) : 0;
}

int smc_no_counterpart(struct smc *c, const char *const *names)
{
	for (; *names; names++)
		if (str_ends(*names, ".") ? smc_param_any(c, *names) : smc_param(c, *names) != NULL)
			return smc_bad(c, *names, "has no counterpart here; leave it out");
	return 0;
}

void smc_encode(struct str *b, const char *s)
{
	for (const unsigned char *p = (const unsigned char *)s; *p; p++) {
		if (isalnum(*p) || strchr("-_.~", *p))
			str_add_mem(b, p, 1);
		else
			str_addf(b, "%%%02X", *p);
	}
}
