#include "base/redact.h"

#include <ctype.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/util.h"

#define REDACT_KEY_LINES 200u /* one that has no end must not take the rest of a log with it */
#define REDACT_ID        8u   /* hex digits before the '.' of a token; ours have 16 */
#define REDACT_SECRET    32u  /* and behind it; ours have 64 */
#define REDACT_BEARER    12u

/* In any part of a name. */
static const char *const redact_names[] = {"passw",         "passphrase", "secret",      "token",       "psk",
					   "api_key",       "api-key",    "apikey",      "accesskey",   "access_key",
					   "access-key",    "privatekey", "private_key", "private-key", "credential",
					   "authorization", "cookie"};

static void redact_mask(char *s, size_t n)
{
	memset(s, '*', n);
}

static bool redact_is_name(char c)
{
	return isalnum((unsigned char)c) || c == '_' || c == '-' || c == '.';
}

static const char *redact_find(const char *s, size_t n, const char *what)
{
	return memmem(s, n, what, strlen(what));
}

static bool redact_has(const char *s, size_t n, const char *word)
{
	size_t k = strlen(word);

	for (size_t i = 0; i + k <= n; i++)
		if (strncasecmp(s + i, word, k) == 0)
			return true;
	return false;
}

static bool redact_is_secret(const char *name, size_t n)
{
	for (size_t i = 0; i < ARRAY_SIZE(redact_names); i++)
		if (redact_has(name, n, redact_names[i]))
			return true;
	return (n == 3 && strncasecmp(name, "pwd", n) == 0) || (n == 4 && strncasecmp(name, "pass", n) == 0);
}

/* Up to a quote like the one it began with: `"`, `'`, or `\"` of a text within a text. */
static size_t redact_quoted(const char *s, size_t n, const char *quote, size_t k)
{
	for (size_t i = 0; i < n; i++) {
		if (n - i >= k && memcmp(s + i, quote, k) == 0)
			return i;
		if (s[i] == '\\' && k == 1)
			i++;
	}
	return n;
}

static size_t redact_quote(const char *s, size_t n)
{
	if (n && (*s == '"' || *s == '\''))
		return 1;
	return n > 1 && s[0] == '\\' && s[1] == '"' ? 2 : 0;
}

/* Masks the value that begins at s; how much of the line it was. `words`: it may consist of several. */
static size_t redact_value(char *s, size_t n, bool words)
{
	size_t k = redact_quote(s, n), len;

	if (k) {
		len = redact_quoted(s + k, n - k, s, k);
		redact_mask(s + k, len);
		return MIN(k + len + k, n);
	}
	for (len = 0; len < n && !strchr(words ? "\"'\\" : " \t\r,;&\"'<>)}]\\", s[len]); len++)
		;
	redact_mask(s, len);
	return len;
}

/* What stands between a name and its value: `=`, `": "` and the like; 0: no value follows. */
static size_t redact_between(const char *name, const char *s, size_t n)
{
	size_t i = redact_quote(s, n), blank;

	while (i < n && (s[i] == ' ' || s[i] == '\t'))
		i++;
	blank = i;
	if (i < n && (s[i] == ':' || s[i] == '=')) {
		for (i++; i < n && (s[i] == ' ' || s[i] == '\t'); i++)
			;
		return i;
	}
	/* --password X, but not --password --other */
	return *name == '-' && blank && i < n && s[i] != '-' ? i : 0;
}

static void redact_values(char *s, size_t n)
{
	size_t i = 0, name, between;

	while (i < n) {
		if (!redact_is_name(s[i])) {
			i++;
			continue;
		}
		for (name = i; i < n && redact_is_name(s[i]); i++)
			;
		if (!redact_is_secret(s + name, i - name))
			continue;
		between = redact_between(s + name, s + i, n - i);
		if (between) {
			bool words =
			    redact_has(s + name, i - name, "authorization") || redact_has(s + name, i - name, "cookie");

			i += between;
			i += redact_value(s + i, n - i, words);
		}
	}
}

/* scheme://user:password@host */
static void redact_urls(char *s, size_t n)
{
	size_t i = 0, end, at;
	const char *p;

	while (i < n && (p = redact_find(s + i, n - i, "://"))) {
		i = (size_t)(p - s) + 3;
		at = i;
		for (end = i; end < n && !strchr("/?#\"'<> \t", s[end]); end++)
			if (s[end] == '@')
				at = end;
		redact_mask(s + i, at - i);
		i = end;
	}
}

static size_t redact_hex(const char *s, size_t n)
{
	size_t i = 0;

	while (i < n && isxdigit((unsigned char)s[i]))
		i++;
	return i;
}

/* ID.SECRET: tokens, an agent's secret; with the certificate's digest behind it an activation code. */
static void redact_tokens(char *s, size_t n)
{
	size_t i = 0;

	while (i < n) {
		size_t id = redact_hex(s + i, n - i), secret;

		i += id;
		if (id < REDACT_ID || i >= n || s[i] != '.') {
			i += id ? 0 : 1;
			continue;
		}
		secret = redact_hex(s + i + 1, n - i - 1);
		if (secret >= REDACT_SECRET) {
			redact_mask(s + i + 1, secret);
			i += secret;
		}
		i++;
	}
}

static void redact_bearers(char *s, size_t n)
{
	static const char word[] = "bearer ";
	size_t k = strlen(word), len;

	for (size_t i = 0; i + k <= n; i++) {
		if (strncasecmp(s + i, word, k) != 0 || (i && redact_is_name(s[i - 1])))
			continue;
		i += k;
		for (len = 0; i + len < n && (redact_is_name(s[i + len]) || strchr("~+/=", s[i + len])); len++)
			;
		if (len >= REDACT_BEARER)
			redact_mask(s + i, len);
		i += len;
		i--;
	}
}

/* Of a private key only its first and last line stay. A text that was put into one line has it in one. */
static void redact_keys(struct redact *r, char *s, size_t n)
{
	static const char begin[] = "-----BEGIN ", label[] = "PRIVATE KEY-----", end[] = "-----END ";
	size_t i = 0;

	while (i < n) {
		const char *p = redact_find(s + i, n - i, r->key_lines ? end : begin), *q = NULL;
		size_t at = p ? (size_t)(p - s) : n;

		if (r->key_lines) {
			redact_mask(s + i, at - i);
			r->key_lines = p ? 0 : r->key_lines;
			i = p ? at + strlen(end) : n;
			continue;
		}
		q = p ? redact_find(p, n - at, label) : NULL;
		if (!q)
			break;
		i = (size_t)(q - s) + strlen(label);
		r->key_lines = REDACT_KEY_LINES;
	}
	r->key_lines -= r->key_lines > 0;
}

static void redact_line(struct redact *r, char *s, size_t n)
{
	redact_keys(r, s, n);
	redact_values(s, n);
	redact_urls(s, n);
	redact_tokens(s, n);
	redact_bearers(s, n);
}

void redact_text(struct redact *r, char *s, size_t n)
{
	while (n) {
		char *end = memchr(s, '\n', n);
		size_t len = end ? (size_t)(end - s) : n;

		redact_line(r, s, len);
		len += end ? 1 : 0;
		s += len;
		n -= len;
	}
}

/* ---- JSON ---- */

static json_t *redact_string(const json_t *v)
{
	size_t n = json_string_length(v);
	char *copy = malloc(n + 1);
	struct redact r = {0};
	json_t *o = NULL;

	if (copy) {
		memcpy(copy, json_string_value(v), n);
		redact_text(&r, copy, n);
		o = json_stringn(copy, n);
	}
	free(copy);
	return o;
}

static json_t *redact_value_json(const json_t *v, bool secret)
{
	json_t *o, *item;
	const char *key;
	size_t i;

	if (json_is_object(v)) {
		o = json_object();
		json_object_foreach((json_t *)(uintptr_t)v, key, item)
		{
			if (json_object_set_new(
				o, key, redact_value_json(item, secret || redact_is_secret(key, strlen(key)))) < 0) {
				json_decref(o);
				return NULL;
			}
		}
		return o;
	}
	if (json_is_array(v)) {
		o = json_array();
		json_array_foreach(v, i, item)
		{
			if (json_array_append_new(o, redact_value_json(item, secret)) < 0) {
				json_decref(o);
				return NULL;
			}
		}
		return o;
	}
	if (secret && (json_is_string(v) || json_is_number(v)))
		return json_string("***");
	return json_is_string(v) ? redact_string(v) : json_deep_copy(v);
}

json_t *redact_json(const json_t *v)
{
	return redact_value_json(v, false);
}
