/* Addresses that the center may be told to call: web hooks, mail boxes, its mail server. Read more strictly than the
 * standards allow, so that what is checked here is what is called later. */
#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <string.h>
#include <strings.h>

#include "base/err.h"
#include "base/str.h"
#include "base/util.h"
#include "model/model.h"

#define HOST_MAX      253u
#define LOCAL_MAX     64u /* in front of the '@' */
#define ADDRESSES_MAX 20u

static bool is_url_text(const char *s)
{
	for (; *s; s++)
		if (*s <= 0x20 || *s >= 0x7f || strchr("\"<>\\^`{|}#", *s))
			return false;
	return true;
}

static bool is_host_name(const char *s, size_t len)
{
	if (len == 0 || len > HOST_MAX || s[0] == '-' || s[0] == '.')
		return false;
	for (size_t i = 0; i < len; i++)
		if (!isalnum((unsigned char)s[i]) && !strchr("-._", s[i]))
			return false;
	return true;
}

static bool is_loopback(const char *host, bool v6)
{
	struct in6_addr six;
	struct in_addr four;

	if (v6)
		return inet_pton(AF_INET6, host, &six) == 1 && IN6_IS_ADDR_LOOPBACK(&six);
	return strcasecmp(host, "localhost") == 0 ||
	       (inet_pton(AF_INET, host, &four) == 1 && ntohl(four.s_addr) >> 24 == 127);
}

/* "HOST", "[ADDRESS]"; *ret_end is behind it. */
static int parse_host(const char *s, struct model_url *u, const char **ret_end, struct err *e)
{
	size_t len = strcspn(s, ":/?");
	char host[HOST_MAX + 1];
	struct in6_addr six;
	bool v6 = *s == '[';

	if (v6) {
		s++;
		len = strcspn(s, "]");
	}
	if (len > HOST_MAX || (v6 && !s[len]))
		return err_set(e, -EINVAL, "'%.64s' has no host that can be one", s);
	memcpy(host, s, len);
	host[len] = '\0';
	if (v6 ? inet_pton(AF_INET6, host, &six) != 1 : !is_host_name(host, len))
		return err_set(e, -EINVAL, "'%.64s' is not the name or address of a host", host);
	u->host = s;
	u->host_len = len;
	u->loopback = is_loopback(host, v6);
	*ret_end = s + len + v6;
	return 0;
}

static int parse_port(const char *s, struct model_url *u, const char **ret_end, struct err *e)
{
	size_t len = *s == ':' ? strcspn(s, "/?") : 0;
	char digits[8] = "";
	uint64_t port = 0;

	u->port = 0;
	*ret_end = s + len;
	if (len == 0)
		return 0;
	if (len - 1 < sizeof(digits))
		snprintf(digits, sizeof(digits), "%.*s", (int)(len - 1), s + 1);
	if (str_u64(digits, 1, UINT16_MAX, &port) < 0)
		return err_set(e, -EINVAL, "'%.*s' is not a port", (int)MIN(len, (size_t)16), s);
	u->port = (uint16_t)port;
	return 0;
}

int model_url_parse(const char *url, const char *scheme, struct model_url *ret, struct err *e)
{
	size_t n = strlen(scheme);
	struct model_url u = {0};
	const char *s;
	int r;

	if (strncmp(url, scheme, n) != 0 || !str_starts(url + n, "://"))
		return err_set(e, -EINVAL, "the address must begin with %s://", scheme);
	s = url + n + strlen("://");
	if (!is_url_text(s))
		return err_set(e, -EINVAL, "the address has a character in it that must be escaped, or a fragment");
	if (memchr(s, '@', strcspn(s, "/?")))
		return err_set(e, -EINVAL, "the address must not have a user or password in it");
	r = parse_host(s, &u, &s, e);
	if (r == 0)
		r = parse_port(s, &u, &s, e);
	if (r < 0)
		return r;
	if (*s && *s != '/' && *s != '?')
		return err_set(e, -EINVAL, "'%.64s' doesn't belong behind a host", s);
	u.path = s;
	*ret = u;
	return 0;
}

bool model_is_mail_address(const char *s, size_t len)
{
	const char *at = memchr(s, '@', len);
	size_t local = at ? (size_t)(at - s) : 0;

	if (local == 0 || local > LOCAL_MAX || s[0] == '.' || s[0] == '-' || s[local - 1] == '.')
		return false;
	for (size_t i = 0; i < local; i++)
		if (!isalnum((unsigned char)s[i]) && !strchr("!#$&'*+-/=?^_`{|}~.", s[i]))
			return false;
	return is_host_name(at + 1, len - local - 1);
}

static int check_mail(const char *s, struct err *e)
{
	for (size_t n = 1;; n++) {
		size_t len = strcspn(s, ",");

		if (n > ADDRESSES_MAX)
			return err_set(e, -EINVAL, "more than %u addresses; make another subscription", ADDRESSES_MAX);
		if (!model_is_mail_address(s, len))
			return err_set(e, -EINVAL, "'%.*s' is not a plain address, name@host",
				       (int)MIN(len, (size_t)64), s);
		if (!s[len])
			return 0;
		s += len + 1;
	}
}

bool model_target_is_mail(const char *target)
{
	return str_starts(target, "mailto:");
}

int model_check_target(const char *target, struct err *e)
{
	struct model_url u;
	int r;

	if (strlen(target) > MODEL_TARGET_MAX)
		return err_set(e, -EINVAL, "the target is longer than %u bytes", MODEL_TARGET_MAX);
	if (model_target_is_mail(target))
		return check_mail(target + strlen("mailto:"), e);
	if (str_starts(target, "https://"))
		return model_url_parse(target, "https", &u, e);
	if (!str_starts(target, "http://"))
		return err_set(e, -EINVAL, "the target must be https://... or mailto:name@host");
	r = model_url_parse(target, "http", &u, e);
	if (r == 0 && !u.loopback)
		return err_set(e, -EINVAL, "http is only for this host itself (localhost); use https");
	return r;
}
