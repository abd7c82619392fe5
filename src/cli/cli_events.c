/* text/event-stream: the center's events, piece by piece as they arrive. */
#include <string.h>

#include "base/id.h"
#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

#define EVENT_MAX (4u << 20)

void cli_events_release(struct cli_events *v)
{
	str_release(&v->line);
	str_release(&v->data);
}

static void events_line(struct cli_events *v, const char *s)
{
	if (!*s) {
		if (v->data.len && str_ok(&v->data))
			v->event(v);
		str_release(&v->data);
		v->name[0] = '\0';
	} else if (str_starts(s, "id:")) {
		(void)str_u64(s + 3 + strspn(s + 3, " "), 0, UINT64_MAX, &v->id);
	} else if (str_starts(s, "event:")) {
		snprintf(v->name, sizeof(v->name), "%s", s + 6 + strspn(s + 6, " "));
	} else if (str_starts(s, "data:")) {
		str_add(&v->data, v->data.len ? "\n" : "");
		str_add(&v->data, s + 5 + (s[5] == ' '));
	}
}

size_t cli_events_write(char *p, size_t size, size_t n, void *arg)
{
	struct cli_events *v = arg;

	for (size_t i = 0; i < n; i++) {
		if (p[i] == '\r')
			continue;
		if (p[i] != '\n') {
			str_add_mem(&v->line, p + i, 1);
			continue;
		}
		events_line(v, v->line.s ? v->line.s : "");
		str_release(&v->line);
	}
	v->broken = v->line.len > EVENT_MAX || v->data.len > EVENT_MAX || !str_ok(&v->line) || !str_ok(&v->data);
	return v->broken ? 0 : n;
}

json_t *cli_events_json(const struct cli_events *v)
{
	json_t *j = NULL;

	return jsn_parse(v->data.s, v->data.len, EVENT_MAX, &j, NULL) < 0 ? NULL : j;
}

/* ---- waiting for news ---- */

#define FOLLOW_AGAIN   5.0  /* seconds until a stream that broke is tried again */
#define FOLLOW_LISTEN  15.0 /* at most, without having asked */
#define FOLLOW_POLL    1.0  /* without a stream */
#define FOLLOW_RATE    0.5  /* news are not told more often */
#define FOLLOW_SILENCE 45L  /* the center says something every 15 s */

static void follow_event(struct cli_events *v)
{
	struct cli_follow *f = (struct cli_follow *)(void *)v;
	_cleanup_json_ json_t *j = cli_events_json(v);

	if (strcmp(v->name, "reset") == 0 || f->ours(f->arg, get_str(j, "id")))
		f->news = true;
}

static void follow_close(struct cli_follow *f)
{
	if (f->easy) {
		curl_multi_remove_handle(f->multi, f->easy);
		curl_easy_cleanup(f->easy);
	}
	f->easy = NULL;
	f->live = false;
	f->again = id_now_mono() + FOLLOW_AGAIN;
	cli_events_release(&f->v);
}

static void follow_open(struct cli_follow *f)
{
	if (f->easy || f->never || id_now_mono() < f->again)
		return;
	f->again = id_now_mono() + FOLLOW_AGAIN;
	f->v = (struct cli_events){.event = follow_event};
	if (!f->multi)
		f->multi = curl_multi_init();
	if (!f->multi || cli_http_open(f->c, "/v1/events", &f->easy, NULL) < 0)
		return;
	curl_easy_setopt(f->easy, CURLOPT_WRITEFUNCTION, cli_events_write);
	curl_easy_setopt(f->easy, CURLOPT_WRITEDATA, &f->v);
	curl_easy_setopt(f->easy, CURLOPT_FAILONERROR, 1L);
	curl_easy_setopt(f->easy, CURLOPT_LOW_SPEED_LIMIT, 1L);
	curl_easy_setopt(f->easy, CURLOPT_LOW_SPEED_TIME, FOLLOW_SILENCE);
	curl_multi_add_handle(f->multi, f->easy);
}

/* Takes what has come. What happened before the stream began, or after it broke, is asked for. */
static void follow_serve(struct cli_follow *f)
{
	int running = 0;
	long status = 0;

	follow_open(f);
	if (!f->easy)
		return;
	curl_multi_perform(f->multi, &running);
	curl_easy_getinfo(f->easy, CURLINFO_RESPONSE_CODE, &status);
	f->never = status >= 400 && status < 500 && status != 429;
	if (running && status == 200 && !f->live)
		f->live = f->news = true;
	if (!running) {
		f->news = f->news || f->live;
		follow_close(f);
	}
}

void cli_follow_wait(struct cli_follow *f)
{
	double began = id_now_mono();

	for (;;) {
		double left;

		follow_serve(f);
		left = began + (f->live ? FOLLOW_LISTEN : FOLLOW_POLL) - id_now_mono();
		if (f->news)
			left = MIN(left, began + FOLLOW_RATE - id_now_mono());
		if (left <= 0)
			break;
		if (f->easy && !f->news)
			curl_multi_poll(f->multi, NULL, 0, (int)(left * 1000) + 1, NULL);
		else
			cli_sleep(MIN(left, FOLLOW_RATE));
	}
	f->news = false;
}

void cli_follow_release(struct cli_follow *f)
{
	follow_close(f);
	if (f->multi)
		curl_multi_cleanup(f->multi);
	f->multi = NULL;
}
