/* Text for people: cleaned of what could steer the terminal, fitted to its width, with humane numbers. */
#include <langinfo.h>
#include <locale.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <wchar.h>

#include "base/id.h"
#include "base/util.h"
#include "cli/cli_int.h"

static struct {
	bool tty, colour, utf8;
} out;

void out_init(void)
{
	const char *no = getenv("NO_COLOR"), *term = getenv("TERM");

	setlocale(LC_CTYPE, "");
	out.utf8 = strcmp(nl_langinfo(CODESET), "UTF-8") == 0;
	/* Widths are computed for UTF-8, whatever the locale. */
	if (!out.utf8)
		setlocale(LC_CTYPE, "C.UTF-8");
	out.tty = isatty(STDOUT_FILENO);
	out.colour = out.tty && !(no && *no) && !(term && strcmp(term, "dumb") == 0);
}

bool out_tty(void)
{
	return out.tty;
}

bool out_utf8(void)
{
	return out.utf8;
}

size_t out_width(void)
{
	struct winsize w;

	if (!out.tty)
		return 0;
	if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) < 0 || w.ws_col == 0)
		return 80;
	return w.ws_col;
}

const char *out_on(enum out_colour c)
{
	static const char *const codes[] = {
	    [OUT_PLAIN] = "",         [OUT_BOLD] = "\033[1m",    [OUT_DIM] = "\033[2m",  [OUT_RED] = "\033[31m",
	    [OUT_GREEN] = "\033[32m", [OUT_YELLOW] = "\033[33m", [OUT_CYAN] = "\033[36m"};

	return out.colour ? codes[c] : "";
}

const char *out_off(void)
{
	return out.colour ? "\033[0m" : "";
}

/* Decodes one character; returns its bytes, 0 when they are not UTF-8. */
static size_t out_decode(const char *s, uint32_t *ret)
{
	static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
	const unsigned char *p = (const unsigned char *)s;
	size_t n = p[0] < 0x80 ? 1 : p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc0 ? 2 : 0;
	uint32_t c;

	if (n == 0 || p[0] >= 0xf8)
		return 0;
	c = n == 1 ? p[0] : p[0] & (0x7fu >> n);
	for (size_t i = 1; i < n; i++) {
		if ((p[i] & 0xc0) != 0x80)
			return 0;
		c = c << 6 | (p[i] & 0x3f);
	}
	if (c < least[n] || c > 0x10ffff || (c >= 0xd800 && c < 0xe000))
		return 0;
	*ret = c;
	return n;
}

/* Characters that move the cursor, start an escape, or make text read other than it is. */
static bool out_unsafe(uint32_t c)
{
	return c < 0x20 || (c >= 0x7f && c < 0xa0) || c == 0x061c || (c >= 0x200b && c <= 0x200f) ||
	       (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) || c == 0xfeff || c >= 0xe0000;
}

void out_clean(struct str *b, const char *s)
{
	while (*s) {
		uint32_t c;
		size_t n = out_decode(s, &c);

		if (n == 0) {
			str_add(b, "?");
			s++;
			continue;
		}
		if (c == '\n' || c == '\t')
			str_add(b, " ");
		else if (out_unsafe(c))
			str_add(b, "?");
		else
			str_add_mem(b, s, n);
		s += n;
	}
}

static size_t out_char_columns(uint32_t c)
{
	int w = wcwidth((wchar_t)c);

	return w < 0 ? 1 : (size_t)w;
}

size_t out_columns(const char *s)
{
	size_t cols = 0;

	while (*s) {
		uint32_t c = '?';
		size_t n = out_decode(s, &c);

		cols += out_char_columns(c);
		s += n ? n : 1;
	}
	return cols;
}

void out_fit(struct str *b, const char *s, size_t columns)
{
	size_t room, used = 0;

	if (out_columns(s) <= columns) {
		str_add(b, s);
		return;
	}
	if (columns == 0)
		return;
	room = columns - 1;
	while (*s) {
		uint32_t c = '?';
		size_t n = out_decode(s, &c), w = out_char_columns(c);

		n = n ? n : 1;
		if (used + w > room)
			break;
		str_add_mem(b, s, n);
		used += w;
		s += n;
	}
	str_add(b, out.utf8 ? "…" : "~");
}

void out_duration(struct str *b, double s)
{
	uint64_t n;

	if (!isfinite(s) || s < 0 || s > 1e11)
		s = 0;
	n = (uint64_t)(s + 0.5);
	if (s < 0.0995)
		str_addf(b, "%.0f ms", s * 1000);
	else if (s < 9.95)
		str_addf(b, "%.1f s", s);
	else if (n < 60)
		str_addf(b, "%u s", (unsigned)n);
	else if (n < 3600)
		str_addf(b, "%u min %02u s", (unsigned)(n / 60), (unsigned)(n % 60));
	else if (n < 86400)
		str_addf(b, "%u h %02u min", (unsigned)(n / 3600), (unsigned)(n / 60 % 60));
	else
		str_addf(b, "%u d %u h", (unsigned)(n / 86400), (unsigned)(n / 3600 % 24));
}

void out_when(struct str *b, double t)
{
	static const struct {
		double below, unit;
		const char *name;
	} steps[] = {{60, 1, "s"},
		     {3600, 60, "min"},
		     {86400 * 2, 3600, "h"},
		     {86400 * 60, 86400, "days"},
		     {86400.0 * 730, 86400 * 30.4, "months"},
		     {1e18, 86400 * 365.25, "years"}};
	double ago = id_now() - t, d = fabs(ago);
	size_t i = 0;

	if (!(t > 0) || !isfinite(t) || d > 1e12) {
		str_add(b, "never");
		return;
	}
	if (d < 2) {
		str_add(b, "just now");
		return;
	}
	while (d >= steps[i].below && i + 1 < ARRAY_SIZE(steps))
		i++;
	/* What is to come is rounded: a code for 7 days expires in 7 days, not in 6, a second after it was made. */
	str_addf(b, "%s%.0f %s%s", ago < 0 ? "in " : "", ago < 0 ? round(d / steps[i].unit) : floor(d / steps[i].unit),
		 steps[i].name, ago < 0 ? "" : " ago");
}

void out_size(struct str *b, double bytes)
{
	char buf[32];

	if (!isfinite(bytes) || bytes < 0 || bytes > 9e18)
		bytes = 0;
	str_add(b, str_bytes((uint64_t)bytes, buf, sizeof(buf)));
}

void out_word(struct str *b, const char *s)
{
	size_t from = b->len;

	out_clean(b, s);
	for (size_t i = from; str_ok(b) && i < b->len; i++)
		if (b->s[i] == '_')
			b->s[i] = ' ';
}

enum out_colour out_state_colour(const char *s)
{
	static const struct {
		const char *state;
		enum out_colour colour;
	} rows[] = {{"available", OUT_GREEN}, {"finished", OUT_GREEN}, {"passed", OUT_GREEN},   {"booted", OUT_GREEN},
		    {"in_use", OUT_CYAN},     {"running", OUT_CYAN},   {"in_error", OUT_RED},   {"failed", OUT_RED},
		    {"unavailable", OUT_RED}, {"error", OUT_RED},      {"stopped", OUT_YELLOW}, {"waiting", OUT_YELLOW},
		    {"deleting", OUT_DIM},    {"expired", OUT_DIM},    {"revoked", OUT_DIM}};

	for (size_t i = 0; i < ARRAY_SIZE(rows); i++)
		if (strcmp(s, rows[i].state) == 0)
			return rows[i].colour;
	return OUT_PLAIN;
}

#define OUT_LABEL 18

/* The next line of at most `columns`, broken at a space where there is one; returns its bytes. */
static size_t out_break(const char *s, size_t columns)
{
	size_t used = 0, i = 0, space = 0;

	while (s[i]) {
		uint32_t c = '?';
		size_t n = out_decode(s + i, &c);

		used += out_char_columns(c);
		if (used > columns)
			return space ? space : i;
		if (s[i] == ' ')
			space = i;
		i += n ? n : 1;
	}
	return i;
}

void out_field(const char *label, const char *text, enum out_colour c)
{
	size_t width = out_width(), columns = width > OUT_LABEL + 22 ? width - OUT_LABEL - 3 : 10000;

	if (!*text)
		return;
	printf("  %s%-*s%s ", out_on(OUT_DIM), OUT_LABEL, label, out_off());
	for (;;) {
		size_t n = out_break(text, columns);

		printf("%s%.*s%s\n", out_on(c), (int)n, text, out_off());
		text += n;
		text += strspn(text, " ");
		if (!*text || n == 0)
			break;
		printf("  %-*s ", OUT_LABEL, "");
	}
}

void out_vclean(struct str *b, const char *fmt, va_list ap)
{
	_cleanup_free_ char *s = NULL;

	if (vasprintf(&s, fmt, ap) < 0) {
		s = NULL;
		return;
	}
	out_clean(b, s);
}

void out_fieldf(const char *label, const char *fmt, ...)
{
	_cleanup_(str_release) struct str b = {0};
	va_list ap;

	va_start(ap, fmt);
	out_vclean(&b, fmt, ap);
	va_end(ap);
	if (str_ok(&b) && b.s)
		out_field(label, b.s, OUT_PLAIN);
}

void out_title(const char *name, const char *id)
{
	_cleanup_(str_release) struct str b = {0}, i = {0};

	out_clean(&b, name);
	out_clean(&i, id);
	printf("%s%s%s", out_on(OUT_BOLD), b.s ? b.s : "", out_off());
	if (i.s && b.s)
		printf("  ");
	printf("%s%s%s\n", out_on(OUT_DIM), i.s ? i.s : "", out_off());
}

void out_section(const char *title)
{
	printf("\n%s%s%s\n", out_on(OUT_BOLD), title, out_off());
}

void out_json(const struct str *body)
{
	const unsigned char *p = (const unsigned char *)body->s;
	size_t n = body->len;

	if (n == 0)
		return;
	if (!out.tty) {
		fwrite(p, 1, n, stdout);
	} else {
		/* The same JSON, but some terminals obey C1 controls and DEL. Valid JSON has no bare C0 but white
		 * space. */
		for (size_t i = 0; i < n; i++) {
			if (p[i] == 0xc2 && i + 1 < n && p[i + 1] >= 0x80 && p[i + 1] < 0xa0)
				printf("\\u00%02x", p[++i]);
			else if (p[i] == 0x7f)
				printf("\\u007f");
			else
				putchar(p[i]);
		}
	}
	if (p[n - 1] != '\n')
		putchar('\n');
}

void out_error(const char *fmt, ...)
{
	_cleanup_(str_release) struct str b = {0};
	va_list ap;

	va_start(ap, fmt);
	out_vclean(&b, fmt, ap);
	va_end(ap);
	fflush(stdout);
	fprintf(stderr, "replant: %s\n", b.s ? b.s : "");
}
