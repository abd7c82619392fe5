#include "base/str.h"

#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"

void str_release(struct str *b)
{
	free(b->s);
	*b = (struct str){0};
}

static bool str_room(struct str *b, size_t more)
{
	size_t need = b->len + more + 1;
	char *s;

	if (b->failed || need < more) {
		b->failed = true;
		return false;
	}
	if (need <= b->cap)
		return true;
	need = MAX(need, b->cap * 2);
	s = realloc(b->s, need);
	if (!s) {
		b->failed = true;
		return false;
	}
	b->s = s;
	b->cap = need;
	return true;
}

void str_add_mem(struct str *b, const void *p, size_t n)
{
	if (!str_room(b, n))
		return;
	memcpy(b->s + b->len, p, n);
	b->len += n;
	b->s[b->len] = '\0';
}

void str_add(struct str *b, const char *s)
{
	str_add_mem(b, s, strlen(s));
}

void str_addf(struct str *b, const char *fmt, ...)
{
	va_list ap;
	char *s = NULL;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&s, fmt, ap);
	va_end(ap);
	if (n < 0) {
		b->failed = true;
		return;
	}
	str_add_mem(b, s, (size_t)n);
	free(s);
}

bool str_ok(const struct str *b)
{
	return !b->failed;
}

char *str_take(struct str *b)
{
	char *s;

	if (!b->s)
		str_add_mem(b, "", 0);
	s = b->failed ? NULL : take_ptr(&b->s);
	str_release(b);
	return s;
}

char *str_printf(const char *fmt, ...)
{
	va_list ap;
	char *s = NULL;
	int n;

	va_start(ap, fmt);
	n = vasprintf(&s, fmt, ap);
	va_end(ap);
	return n < 0 ? NULL : s;
}

bool str_starts(const char *s, const char *prefix)
{
	return strncmp(s, prefix, strlen(prefix)) == 0;
}

bool str_ends(const char *s, const char *suffix)
{
	size_t n = strlen(s), m = strlen(suffix);

	return n >= m && strcmp(s + n - m, suffix) == 0;
}

int str_u64(const char *s, uint64_t min, uint64_t max, uint64_t *ret)
{
	char *end;
	unsigned long long v;

	if (!isdigit((unsigned char)s[0]))
		return -EINVAL;
	errno = 0;
	v = strtoull(s, &end, 10);
	if (errno == ERANGE)
		return -ERANGE;
	if (*end)
		return -EINVAL;
	if (v < min || v > max)
		return -ERANGE;
	*ret = v;
	return 0;
}

int str_size(const char *s, uint64_t *ret)
{
	static const char units[] = "KMGTP";
	const char *u;
	double v;
	char *end;

	if (!isdigit((unsigned char)s[0]))
		return -EINVAL;
	v = strtod(s, &end);
	if (*end) {
		u = strchr(units, toupper((unsigned char)*end));
		if (!u || end[1])
			return -EINVAL;
		v *= (double)(UINT64_C(1) << (10 * (u - units + 1)));
	}
	if (!(v >= 0 && v < 9e18))
		return -ERANGE;
	*ret = (uint64_t)v;
	return 0;
}

const char *str_bytes(uint64_t n, char *buf, size_t size)
{
	static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
	double v = (double)n;
	size_t u = 0;

	while (v >= 1024 && u + 1 < ARRAY_SIZE(units)) {
		v /= 1024;
		u++;
	}
	snprintf(buf, size, u && v < 100 ? "%.1f %s" : "%.0f %s", v, units[u]);
	return buf;
}

size_t str_cut(const char *s, size_t max)
{
	size_t n = strnlen(s, max + 1);

	if (n <= max)
		return n;
	for (n = max; n > 0 && ((unsigned char)s[n] & 0xc0) == 0x80;)
		n--;
	return n;
}

/* Length of the character at `p`; 0 when it is none, *ret_cut when it only ends too early. */
static size_t str_character(const unsigned char *p, bool *ret_cut)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	size_t n = *p < 0x80 ? 1 : *p >= 0xf0 ? 4 : *p >= 0xe0 ? 3 : 2;
	uint32_t c = *p & (0x7fu >> n);

	*ret_cut = false;
	if (n == 1)
		return 1;
	if (*p < 0xc2 || *p > 0xf4)
		return 0;
	for (size_t i = 1; i < n; i++) {
		*ret_cut = !p[i];
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (p[i] & 0x3f);
	}
	return c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000) ? 0 : n;
}

void str_utf8(char *s)
{
	while (*s) {
		bool cut;
		size_t n = str_character((const unsigned char *)s, &cut);

		if (n == 0)
			*s = cut ? '\0' : '?';
		s += MAX(n, (size_t)!cut);
	}
}

void str_add_html(struct str *b, const char *s)
{
	for (; s && *s; s++)
		switch (*s) {
		case '&':
			str_add(b, "&amp;");
			break;
		case '<':
			str_add(b, "&lt;");
			break;
		case '>':
			str_add(b, "&gt;");
			break;
		case '"':
			str_add(b, "&quot;");
			break;
		case '\'':
			str_add(b, "&#39;");
			break;
		default:
			str_add_mem(b, s, 1);
		}
}

void str_hex(const void *p, size_t n, char *out)
{
	static const char digits[] = "0123456789abcdef";
	const uint8_t *b = p;

	for (size_t i = 0; i < n; i++) {
		out[2 * i] = digits[b[i] >> 4];
		out[2 * i + 1] = digits[b[i] & 15];
	}
	out[2 * n] = '\0';
}

static int str_nibble(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

int str_unhex(const char *s, void *out, size_t n)
{
	uint8_t *b = out;

	if (strlen(s) != 2 * n)
		return -EINVAL;
	for (size_t i = 0; i < n; i++) {
		int hi = str_nibble(s[2 * i]), lo = str_nibble(s[2 * i + 1]);

		if (hi < 0 || lo < 0)
			return -EINVAL;
		b[i] = (uint8_t)(hi << 4 | lo);
	}
	return 0;
}
