/* Lines, words and assignments of configuration files: spans into the text, nothing is copied. */
#include "guest/guest_int.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"

static bool guest_is_blank(char c)
{
	return c == ' ' || c == '\t' || c == '\r';
}

bool guest_next_line(struct guest_span *rest, struct guest_span *line)
{
	const char *nl;

	if (!rest->n)
		return false;
	nl = memchr(rest->s, '\n', rest->n);
	line->s = rest->s;
	line->n = nl ? (size_t)(nl - rest->s) : rest->n;
	rest->s += line->n + (nl != NULL);
	rest->n -= line->n + (nl != NULL);
	return true;
}

void guest_end_line(struct guest_span line, struct guest_span rest, struct str *out)
{
	if (rest.s > line.s + line.n)
		str_add(out, "\n");
}

bool guest_next_word(struct guest_span *rest, struct guest_span *word)
{
	while (rest->n && guest_is_blank(*rest->s)) {
		rest->s++;
		rest->n--;
	}
	if (!rest->n)
		return false;
	word->s = rest->s;
	while (rest->n && !guest_is_blank(*rest->s)) {
		rest->s++;
		rest->n--;
	}
	word->n = (size_t)(rest->s - word->s);
	return true;
}

bool guest_span_is(struct guest_span s, const char *text)
{
	return s.n == strlen(text) && memcmp(s.s, text, s.n) == 0;
}

bool guest_span_copy(struct guest_span s, bool octal, char *out, size_t size)
{
	size_t n = 0;

	for (size_t i = 0; i < s.n; i++) {
		char c = s.s[i];

		if (octal && c == '\\' && i + 3 < s.n && s.s[i + 1] >= '0' && s.s[i + 1] <= '3' && s.s[i + 2] >= '0' &&
		    s.s[i + 2] <= '7' && s.s[i + 3] >= '0' && s.s[i + 3] <= '7') {
			c = (char)((s.s[i + 1] - '0') << 6 | (s.s[i + 2] - '0') << 3 | (s.s[i + 3] - '0'));
			i += 3;
		}
		if (!c || n + 1 >= size) {
			out[0] = '\0';
			return false;
		}
		out[n++] = c;
	}
	out[n] = '\0';
	return true;
}

bool guest_has_option(struct guest_span options, const char *name)
{
	size_t len = strlen(name);

	while (options.n) {
		const char *comma = memchr(options.s, ',', options.n);
		size_t n = comma ? (size_t)(comma - options.s) : options.n;

		if (n >= len && memcmp(options.s, name, len) == 0 && (n == len || options.s[len] == '='))
			return true;
		options.s += n + (comma != NULL);
		options.n -= n + (comma != NULL);
	}
	return false;
}

bool guest_subvolume(struct guest_span options, char *out, size_t size)
{
	static const char *const names[] = {"subvol=", "subvolid="};
	char list[1024], *save = NULL;
	size_t n = 0;

	out[0] = '\0';
	if (!guest_span_copy(options, true, list, sizeof(list)))
		return false;
	for (char *o = strtok_r(list, ",", &save); o; o = strtok_r(NULL, ",", &save))
		for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
			if (!str_starts(o, names[i]))
				continue;
			n += (size_t)snprintf(out + n, size - n, "%s%s", n ? "," : "", o);
			if (n >= size) {
				out[0] = '\0';
				return false;
			}
		}
	return true;
}

bool guest_is_linux(struct guest_span line)
{
	struct guest_span word;

	return guest_next_word(&line, &word) &&
	       (guest_span_is(word, "linux") || guest_span_is(word, "linux16") || guest_span_is(word, "linuxefi"));
}

bool guest_is_initrd(struct guest_span word)
{
	return guest_span_is(word, "initrd") || guest_span_is(word, "initrd16") || guest_span_is(word, "initrdefi");
}

bool guest_assignment(const char *text, size_t len, const char *key, char *out, size_t size)
{
	struct guest_span rest = {text, len}, line;
	size_t klen = strlen(key);
	bool found = false;

	while (guest_next_line(&rest, &line)) {
		while (line.n && guest_is_blank(*line.s)) {
			line.s++;
			line.n--;
		}
		while (line.n && guest_is_blank(line.s[line.n - 1]))
			line.n--;
		if (line.n <= klen || memcmp(line.s, key, klen) != 0 || line.s[klen] != '=')
			continue;
		line.s += klen + 1;
		line.n -= klen + 1;
		if (line.n >= 2 && (*line.s == '"' || *line.s == '\'') && line.s[line.n - 1] == *line.s) {
			line.s++;
			line.n -= 2;
		}
		found = guest_span_copy(line, false, out, size);
	}
	return found;
}
