/* Activation codes, the center's URL, and what enrolment leaves in /etc/replant. */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"

#define CONF_PORT 8443

static bool conf_is_word(const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (!isalnum((unsigned char)s[i]) && s[i] != '-' && s[i] != '_')
			return false;
	return len > 0;
}

int conf_code_parse(const char *s, struct conf_code *ret, struct err *e)
{
	const char *dot1 = strchr(s, '.'), *dot2 = dot1 ? strchr(dot1 + 1, '.') : NULL;
	struct conf_code c = {0};
	size_t id = dot1 ? (size_t)(dot1 - s) : 0, secret = dot2 ? (size_t)(dot2 - dot1 - 1) : 0;

	if (!dot2 || !conf_is_word(s, id) || !conf_is_word(dot1 + 1, secret) || id >= sizeof(c.id) ||
	    secret >= sizeof(c.secret) || str_unhex(dot2 + 1, c.ca, sizeof(c.ca)) < 0)
		return err_set(e, -EINVAL,
			       "this is not an activation code: it has three parts with dots between them, the last "
			       "of 64 hex digits; copy it again as the center showed it");
	memcpy(c.id, s, id);
	memcpy(c.secret, dot1 + 1, secret);
	*ret = c;
	return 0;
}

/* A host name or address: what may stand in a Host header and in a certificate. */
static bool conf_is_host(const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (!isalnum((unsigned char)s[i]) && !strchr("-._:", s[i]))
			return false;
	return len > 0;
}

static bool conf_is_numeric(const char *host)
{
	struct in6_addr a;

	return inet_pton(AF_INET, host, &a) == 1 || inet_pton(AF_INET6, host, &a) == 1;
}

int conf_url_parse(const char *s, struct conf_url *ret, struct err *e)
{
	struct conf_url u = {.port = CONF_PORT};
	const char *host = s, *end, *port;
	uint64_t v;
	char buf[8];

	if (str_starts(s, "https://"))
		host = s + strlen("https://");
	else if (strstr(s, "://"))
		return err_set(e, -EINVAL, "the center '%s' must be reached by https", s);
	if (*host == '[') {
		end = strchr(++host, ']');
		port = end ? end + 1 : NULL;
	} else {
		end = host + strcspn(host, ":/");
		port = end;
	}
	if (!end || (size_t)(end - host) >= sizeof(u.host) || !conf_is_host(host, (size_t)(end - host)))
		return err_set(e, -EINVAL,
			       "'%s' is not the address of a center (expected https://NAME-OR-ADDRESS[:PORT])", s);
	memcpy(u.host, host, (size_t)(end - host));
	if (*port == ':') {
		size_t n = strcspn(++port, "/");

		if (n >= sizeof(buf))
			n = 0;
		memcpy(buf, port, n);
		buf[n] = '\0';
		if (str_u64(buf, 1, 65535, &v) < 0)
			return err_set(e, -EINVAL, "the port in '%s' is not a number from 1 to 65535", s);
		u.port = (uint16_t)v;
		port += n;
	}
	if (*port && strcmp(port, "/") != 0)
		return err_set(e, -EINVAL,
			       "'%s' has more than a host and a port (expected https://NAME-OR-ADDRESS[:PORT])", s);
	u.numeric = conf_is_numeric(u.host);
	*ret = u;
	return 0;
}

int conf_add_disk(struct conf *c, const char *path, struct err *e)
{
	if (c->ndisks == CONF_DISKS_MAX)
		return err_set(e, -E2BIG, "more than %d disks", CONF_DISKS_MAX);
	if (*path != '/')
		return err_set(e, -EINVAL, "'%s' is not the path of a disk (like '/dev/sda')", path);
	c->disks[c->ndisks] = strdup(path);
	if (!c->disks[c->ndisks])
		return err_nomem(e);
	c->ndisks++;
	return 0;
}

static int conf_disks(const json_t *o, struct conf *c, struct err *e)
{
	const json_t *list = json_object_get(o, "disks"), *v;
	size_t i;

	json_array_foreach(list, i, v) if (!json_is_string(v)) return err_set(e, -EINVAL,
									      "'disks' must be a list of paths");
	else if (conf_add_disk(c, json_string_value(v), e) < 0) return -EINVAL;
	return 0;
}

static int conf_from_json(const json_t *o, struct conf *c, struct err *e)
{
	const char *center = NULL, *source = NULL, *secret = NULL;

	if (jsn_get_str(o, "center", true, sizeof(c->center) - 1, &center, e) < 0 ||
	    jsn_get_str(o, "source", true, sizeof(c->source) - 1, &source, e) < 0 ||
	    jsn_get_str(o, "secret", true, sizeof(c->secret) - 1, &secret, e) < 0)
		return e ? e->code : -EINVAL;
	if (!id_is("source", source))
		return err_set(e, -EINVAL, "'source' is not an identifier of a source");
	strcpy(c->center, center);
	strcpy(c->source, source);
	strcpy(c->secret, secret);
	if (conf_disks(o, c, e) < 0)
		return -EINVAL;
	return conf_url_parse(center, &c->url, e);
}

int conf_load(const char *dir, struct conf *ret, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/agent.json", dir), *ca = str_printf("%s/ca.pem", dir), *text = NULL;
	_cleanup_json_ json_t *o = NULL;
	struct conf c = {0};
	size_t len;
	int r;

	if (!path || !ca)
		return err_nomem(e);
	r = io_read_file(path, 65536, &text, &len, e);
	if (r == -ENOENT)
		return err_set(e, -ENOENT, "this server is not enrolled (no '%s'): run 'replant-agent enroll'", path);
	if (r < 0)
		return r;
	r = jsn_parse(text, len, 65536, &o, e);
	if (r == 0)
		r = conf_from_json(o, &c, e);
	if (r < 0)
		err_prefix(e, "'%s'", path);
	if (r == 0)
		r = io_read_file(ca, CONF_CA_MAX, &c.ca_pem, NULL, e);
	if (r < 0) {
		conf_release(&c);
		return r;
	}
	*ret = c;
	return 0;
}

int conf_store(const char *dir, const struct conf *c, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/agent.json", dir), *ca = str_printf("%s/ca.pem", dir), *text = NULL;
	_cleanup_json_ json_t *o =
	    json_pack("{s:s, s:s, s:s}", "center", c->center, "source", c->source, "secret", c->secret);
	json_t *disks = json_array();
	int r;

	for (size_t i = 0; i < c->ndisks; i++)
		json_array_append_new(disks, json_string(c->disks[i]));
	if (c->ndisks)
		json_object_set(o, "disks", disks);
	json_decref(disks);
	text = o ? json_dumps(o, JSON_INDENT(2)) : NULL;
	if (!path || !ca || !text)
		return err_nomem(e);
	r = io_mkdirs(dir, 0755, e);
	if (r == 0)
		r = io_write_file_atomic(ca, c->ca_pem, strlen(c->ca_pem), 0644, e);
	/* The secret last: an agent.json without its CA would be of no use. */
	return r < 0 ? r : io_write_file_atomic(path, text, strlen(text), 0600, e);
}

void conf_release(struct conf *c)
{
	free(c->ca_pem);
	for (size_t i = 0; i < c->ndisks; i++)
		free(c->disks[i]);
	*c = (struct conf){0};
}
