/* Notices as mail: a subject, a few lines, what to do. Names in it come from outside; what isn't plain is encoded, so
 * that none of them can add a line to the header. */
#include <errno.h>
#include <openssl/evp.h>
#include <string.h>
#include <time.h>

#include "base/err.h"
#include "center/notify.h"

#define ENCODED_WORD 45u /* bytes of text in one: 75 characters at most, RFC 2047 */
#define LINE_BYTES   57u /* of base64 lines of 76 */

static const char *member(const json_t *o, const char *name, const char *otherwise)
{
	const char *s = json_string_value(json_object_get(o, name));

	return s && *s ? s : otherwise;
}

static void add_base64(struct str *b, const void *p, size_t n)
{
	char text[4 * (LINE_BYTES + 2) / 3 + 1];

	must(n <= LINE_BYTES);
	EVP_EncodeBlock((unsigned char *)text, p, (int)n);
	str_add(b, text);
}

/* Stays what it is when it stands in a header. */
static bool is_plain(const char *s)
{
	if (strstr(s, "=?") || strlen(s) >= 200)
		return false;
	for (; *s; s++)
		if (*s < 0x20 || *s > 0x7e)
			return false;
	return true;
}

static void add_subject(struct str *b, const char *s)
{
	str_add(b, "Subject: ");
	if (is_plain(s))
		str_add(b, s);
	else
		while (*s) {
			size_t n = str_cut(s, ENCODED_WORD);

			n = n ? n : MIN(strlen(s), (size_t)ENCODED_WORD);
			str_add(b, "=?UTF-8?B?");
			add_base64(b, s, n);
			str_add(b, "?=");
			s += n;
			if (*s)
				str_add(b, "\r\n ");
		}
	str_add(b, "\r\n");
}

static void add_text(struct str *b, const char *s)
{
	size_t left = strlen(s);

	while (left) {
		size_t n = MIN(left, (size_t)LINE_BYTES);

		add_base64(b, s, n);
		str_add(b, "\r\n");
		s += n;
		left -= n;
	}
}

/* In the C locale's words, whatever the center's: RFC 5322. */
static void add_date(struct str *b, double t)
{
	static const char *const days[] = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
	static const char *const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
					     "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
	time_t at = (time_t)t;
	struct tm tm;

	if (gmtime_r(&at, &tm))
		str_addf(b, "%s, %02d %s %04d %02d:%02d:%02d +0000", days[tm.tm_wday], tm.tm_mday, months[tm.tm_mon],
			 tm.tm_year + 1900, tm.tm_hour, tm.tm_min, tm.tm_sec);
}

static void add_minute(struct str *b, double t)
{
	time_t at = (time_t)t;
	struct tm tm;

	if (gmtime_r(&at, &tm))
		str_addf(b, "%04d-%02d-%02d %02d:%02d UTC", tm.tm_year + 1900, tm.tm_mon + 1, tm.tm_mday, tm.tm_hour,
			 tm.tm_min);
}

/* ---- what each says ---- */

static void say_job(enum model_notice_event event, const json_t *d, struct str *subject, struct str *text)
{
	const char *id = member(d, "id", "?"), *name = member(d, "name", id), *source = member(d, "source", "?");
	const json_t *error = json_object_get(d, "error");

	str_addf(text, "Job '%s' (%s) of server '%s'", name, id, member(d, "source_name", source));
	if (event == NOTICE_JOB_FINISHED) {
		str_addf(subject, "job '%s' is finished", name);
		str_addf(text, " is finished.\n\nIts image:   replant images show %s\n", member(d, "image", "?"));
	} else if (event == NOTICE_JOB_FAILED) {
		str_addf(subject, "job '%s' failed: %s", name, member(error, "code", "unknown"));
		str_addf(
		    text,
		    " failed: %s\n\nWhat to do:  replant jobs doctor %s\nThe code is '%s'; docs/errors.md says what "
		    "it means.\n",
		    member(error, "message", "no reason is known"), id, member(error, "code", "unknown"));
	} else {
		str_addf(subject, "job '%s' expires within a day", name);
		str_add(text, " expires on ");
		add_minute(text, json_number_value(json_object_get(d, "expires")));
		str_addf(text,
			 " if it isn't started; a week later it is removed with what it has.\n\n"
			 "What to do:  replant jobs start %s\n       or:   replant jobs set %s --valid-days 90\n",
			 id, id);
	}
}

static void say_source(const json_t *d, struct str *subject, struct str *text)
{
	const char *id = member(d, "id", "?"), *name = member(d, "name", id);

	str_addf(subject, "server '%s' is offline", name);
	str_addf(text, "Nothing has been heard of the agent on server '%s' (%s) since ", name, id);
	add_minute(text, json_number_value(json_object_get(d, "last_seen")));
	str_add(text, ".\n\nWhat to do:  on the server: systemctl status replant-agent, and replant-agent status;\n"
		      "             it must reach the center.\n");
}

static void say_image(const json_t *d, struct str *subject, struct str *text)
{
	const char *id = member(d, "id", "?"), *name = member(d, "name", id);

	str_addf(subject, "image '%s' did not pass its test boot", name);
	str_addf(text, "Image '%s' (%s) of server '%s' did not pass its test boot: %s\n\n", name, id,
		 member(d, "source_name", member(d, "source", "?")), member(d, "problem", "no reason is known"));
	str_addf(text, "What to do:  replant images show %s\n             replant images screenshot %s -o screen.png\n",
		 id, id);
}

static void say(const struct model_notice *notice, struct str *subject, struct str *text)
{
	const json_t *d = json_object_get(notice->body, "data");

	str_add(subject, "[Replant] ");
	switch ((enum model_notice_event)notice->event) {
	case NOTICE_JOB_FINISHED:
	case NOTICE_JOB_FAILED:
	case NOTICE_JOB_EXPIRING:
		say_job((enum model_notice_event)notice->event, d, subject, text);
		return;
	case NOTICE_SOURCE_OFFLINE:
		say_source(d, subject, text);
		return;
	case NOTICE_IMAGE_NOT_VERIFIED:
		say_image(d, subject, text);
		return;
	case NOTICE_PING:
		str_add(subject, "test message");
		str_add(text, "This is a test: mail of the migration center gets here.\n");
		return;
	}
	never("event of a notice");
}

int mail_compose(const struct model_notice *notice, const char *from, const char *to, double now, struct str *ret)
{
	_cleanup_(str_release) struct str subject = {0}, text = {0};
	const char *at = strchr(from, '@');

	say(notice, &subject, &text);
	str_addf(&text, "\n-- \nSent because of subscription %s (replant subscriptions show %s)\n",
		 notice->subscription, notice->subscription);
	if (!str_ok(&subject) || !str_ok(&text))
		return -ENOMEM;
	str_add(ret, "Date: ");
	add_date(ret, now);
	str_addf(ret, "\r\nFrom: Replant <%s>\r\nTo: ", from);
	for (; *to; to++)
		if (*to == ',')
			str_add(ret, ",\r\n ");
		else
			str_add_mem(ret, to, 1);
	str_addf(ret, "\r\nMessage-ID: <%s@%s>\r\n", notice->id, at ? at + 1 : "localhost");
	add_subject(ret, subject.s);
	str_add(ret, "Auto-Submitted: auto-generated\r\nMIME-Version: 1.0\r\n"
		     "Content-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n");
	add_text(ret, text.s);
	return str_ok(ret) ? 0 : -ENOMEM;
}
