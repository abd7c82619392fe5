/* Calls the provider from the command line, for the tests; prints each event and then the result, a JSON line each. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/util.h"
#include "provider/local_int.h"

static volatile sig_atomic_t stopped;

static void on_signal(int sig)
{
	stopped = 1;
}

static void tool_event(void *arg, const json_t *event)
{
	_cleanup_free_ char *text = jsn_text(event);

	puts(text ? text : "{}");
	fflush(stdout);
}

static bool tool_cancelled(void *arg)
{
	return stopped;
}

static int tool_run(struct provider *p, int argc, char **argv, json_t **ret, struct err *e)
{
	const struct provider_watch w = {.event = tool_event, .cancelled = tool_cancelled};
	_cleanup_json_ json_t *request = NULL;
	const char *verb = argv[0], *id = argc > 1 ? argv[1] : "", *last = argc > 2 ? argv[argc - 1] : "";

	if (*last == '{' && jsn_parse(last, strlen(last), JSN_MAX_SIZE, &request, e) < 0)
		return e->code;
	if (strcmp(verb, "capacity") == 0)
		return p->ops->capacity(p, ret, e);
	if (strcmp(verb, "receive") == 0 && argc > 3) {
		struct provider_receive r = {.run = argv[2], .psk_hex = argv[3], .listen = "127.0.0.1"};

		if (argc > 4)
			r.number = strtoull(argv[4], NULL, 10);
		return p->ops->receive(p, id, &r, &w, e);
	}
	if (strcmp(verb, "convert") == 0)
		return p->ops->convert(p, id, request, &w, ret, e);
	if (strcmp(verb, "image-create") == 0 && argc > 2)
		return p->ops->image_create(p, id, argv[2], request, ret, e);
	if (strcmp(verb, "test-boot") == 0)
		return p->ops->test_boot(p, id, request, &w, ret, e);
	if (strcmp(verb, "check") == 0)
		return p->ops->image_check(p, id, request, &w, ret, e);
	if (strcmp(verb, "repair") == 0 && argc > 2) {
		_cleanup_json_ json_t *manifest = NULL;
		int r = p->ops->image_repair(p, id, argv[2], request, &w, ret, &manifest, e);

		if (r == 0)
			json_object_set(*ret, "manifest", manifest);
		return r;
	}
	if (strcmp(verb, "export") == 0 && argc > 4)
		return p->ops->image_export(p, id, (unsigned)atoi(argv[2]), argv[3], argv[4], &w, e);
	if (strcmp(verb, "image-remove") == 0)
		return p->ops->image_remove(p, id, e);
	if (strcmp(verb, "trim") == 0) {
		bool left = false;
		int r = p->ops->trim(p, &w, &left, e);

		*ret = json_pack("{s:b}", "left", left);
		return r;
	}
	if (strcmp(verb, "holdings") == 0)
		return p->ops->holdings(p, ret, e);
	if (strcmp(verb, "discard") == 0)
		return p->ops->discard(p, id, e);
	if (strcmp(verb, "empty") == 0)
		return p->ops->empty(p, e);
	if (strcmp(verb, "stage") == 0) { /* of the serial line in the file */
		_cleanup_free_ char *serial = NULL;
		const char *stage, *text;
		bool final;

		if (io_read_file(id, 1u << 20, &serial, NULL, e) < 0)
			return e->code;
		final = local_boot_stage(serial, argc > 2, &stage, &text);
		*ret = json_pack("{s:s, s:s, s:b}", "stage", stage, "text", text, "final", final);
		return 0;
	}
	if (strcmp(verb, "job-remove") == 0)
		return p->ops->job_remove(p, id, e);
	return err_set(e, -22, "unknown verb or too few operands: '%s'", verb);
}

int main(int argc, char **argv)
{
	_cleanup_json_ json_t *result = NULL;
	_cleanup_free_ char *text = NULL;
	struct provider *p;
	struct err e = {0};
	int r;

	if (argc < 6) {
		fprintf(stderr, "usage: provider_tool DIR CACHE PROGRAMS USER|- VERB [ID [OPERAND]...] [JSON]\n");
		return 2;
	}
	signal(SIGTERM, on_signal);
	signal(SIGINT, on_signal);
	r = provider_open("local",
			  &(struct provider_settings){argv[1], argv[2], argv[3], strcmp(argv[4], "-") ? argv[4] : NULL},
			  &p, &e);
	if (r == 0) {
		r = tool_run(p, argc - 5, argv + 5, &result, &e);
		p->ops->close(p);
	}
	if (result) {
		text = jsn_text(result);
		puts(text ? text : "{}");
	}
	if (r < 0)
		fprintf(stderr, "provider_tool: %d: %s\n", r, e.msg);
	return r < 0 ? 1 : 0;
}
