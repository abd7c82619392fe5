/* Calls the hypervisor "libvirt" from the command line, for the tests; prints events, then the result, a JSON line
 * each: libvirt_tool DIR SETTINGS VERB ARGUMENTS... */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"
#include "provider/libvirt.h"

static volatile sig_atomic_t stopped;

static void on_signal(int sig)
{
	stopped = 1;
}

static void tool_print(const json_t *o)
{
	_cleanup_free_ char *text = jsn_text(o);

	puts(text ?: "{}");
	fflush(stdout);
}

static void tool_event(void *arg, const json_t *event)
{
	tool_print(event);
}

static bool tool_cancelled(void *arg)
{
	return stopped;
}

static const struct provider_watch watch = {.event = tool_event, .cancelled = tool_cancelled};

/* The line until it holds the text, at most `seconds`. */
static int tool_serial(struct hypervisor *h, const char *ref, const char *text, int seconds, json_t **ret,
		       struct err *e)
{
	_cleanup_(str_release) struct str got = {0};
	uint64_t at = 0;
	int r = 0;

	for (int i = 0; i < seconds * 10 && r == 0 && !(got.s && strstr(got.s, text)); i++) {
		r = h->ops->serial(h, ref, at, &got, &at, e);
		usleep(100000);
	}
	str_utf8(got.s ?: (char[]){""});
	*ret = json_pack("{s:s, s:I}", "text", got.s ?: "", "end", (json_int_t)at);
	return r;
}

static int tool_more(struct hypervisor *h, char **v, const char *ref, json_t *arg, json_t **ret, struct err *e)
{
	const struct hypervisor_ops *o = h->ops;

	if (strcmp(v[0], "set-add") == 0)
		return o->set_add(h, ref, v[2], v[3], json_object_get(arg, "disks"), json_object_get(arg, "sizes"),
				  &watch, e);
	if (strcmp(v[0], "set-fork") == 0)
		return o->set_fork(h, ref, v[2], v[3], e);
	if (strcmp(v[0], "set-snapshot") == 0)
		return o->set_snapshot(h, ref, v[2], e);
	if (strcmp(v[0], "set-use") == 0)
		return o->set_use(h, ref, v[2], e);
	if (strcmp(v[0], "set-drop") == 0)
		return o->set_drop(h, ref, v[2], e);
	if (strcmp(v[0], "screenshot") == 0)
		return o->screenshot(h, ref, v[2], e);
	if (strcmp(v[0], "serial") == 0)
		return tool_serial(h, ref, v[2], atoi(v[3]), ret, e);
	/* Started and listened to by one process, as the center does. */
	if (strcmp(v[0], "boot") == 0)
		return o->start(h, ref, e) ?: tool_serial(h, ref, v[2], atoi(v[3]), ret, e);
	return err_set(e, -EINVAL, "what is '%s'?", v[0]);
}

static int tool_run(struct hypervisor *h, char **v, json_t *arg, json_t **ret, struct err *e)
{
	const struct hypervisor_ops *o = h->ops;
	const char *ref = v[1];
	char made[HYPERVISOR_REF_MAX];
	int r;

	if (strcmp(v[0], "capacity") == 0)
		return o->capacity(h, ret, e);
	if (strcmp(v[0], "list") == 0)
		return o->list(h, ret, e);
	if (strcmp(v[0], "get") == 0)
		return o->get(h, ref, ret, e);
	if (strcmp(v[0], "define") == 0) {
		r = o->define(h, ref, arg, made, e);
		*ret = r == 0 ? json_string(made) : NULL;
		return r;
	}
	if (strcmp(v[0], "remove") == 0)
		return o->remove(h, ref, e);
	if (strcmp(v[0], "start") == 0)
		return o->start(h, ref, e);
	if (strcmp(v[0], "stop") == 0)
		return o->stop(h, ref, atof(v[2]), &watch, e);
	/* What goes on after each pause is seen by a host that went silent in between. */
	if (strcmp(v[0], "poll") == 0) {
		for (;;) {
			struct err why = {0};
			_cleanup_json_ json_t *got = NULL;

			r = o->get(h, ref, &got, &why);
			printf("%d %s\n", r, why.msg);
			fflush(stdout);
			usleep(500000);
		}
	}
	return tool_more(h, v, ref, arg, ret, e);
}

int main(int argc, char **argv)
{
	const struct provider_settings s = {.dir = argc > 1 ? argv[1] : "",
					    .cache = argc > 1 ? argv[1] : "",
					    .programs = "",
					    .user = getenv("TOOL_USER")};
	static char none[1];
	char *v[8] = {none, none, none, none, none, none, none, none};
	json_t *settings = NULL, *ret = NULL, *arg = NULL;
	struct hypervisor *h = NULL;
	struct err e = {0};
	int r;

	signal(SIGPIPE, SIG_IGN); /* as the center: a daemon may go at any time */
	signal(SIGTERM, on_signal);
	for (int i = 3; i < argc && i < 10; i++)
		v[i - 3] = argv[i];
	if (argc < 4 || jsn_parse(argv[2], strlen(argv[2]), JSN_MAX_SIZE, &settings, &e) < 0 ||
	    (*argv[argc - 1] == '{' && jsn_parse(argv[argc - 1], strlen(argv[argc - 1]), JSN_MAX_SIZE, &arg, &e) < 0)) {
		fprintf(stderr, "libvirt_tool DIR SETTINGS VERB ARGUMENTS... %s\n", e.msg);
		return 2;
	}
	r = libvirt_open(&s, settings, &h, &e);
	r = r ?: tool_run(h, v, arg, &ret, &e);
	ret = json_pack("{s:i, s:s, s:o*}", "code", r, "message", e.msg, "result", ret);
	tool_print(ret);
	json_decref(ret);
	json_decref(settings);
	json_decref(arg);
	if (h)
		h->ops->close(h);
	return r < 0;
}
