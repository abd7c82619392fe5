/* Calls the hypervisor `local` from the command line, for the tests; prints the result as a JSON line. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"
#include "provider/provider.h"

static int tool_set_add(struct hypervisor *h, char **argv, const json_t *request, struct err *e)
{
	return h->ops->set_add(h, argv[1], argv[2], argv[3], json_object_get(request, "disks"),
			       json_object_get(request, "sizes"), NULL, e);
}

static int tool_serial(struct hypervisor *h, const char *ref, uint64_t since, json_t **ret, struct err *e)
{
	_cleanup_(str_release) struct str text = {0};
	uint64_t end = 0;
	int r = h->ops->serial(h, ref, since, &text, &end, e);

	if (r == 0) {
		str_utf8(text.s ? text.s : (char[]){""});
		*ret = json_pack("{s:s, s:I, s:I}", "text", text.s ? text.s : "", "end", (json_int_t)end, "length",
				 (json_int_t)text.len);
	}
	return r;
}

static int tool_run(struct hypervisor *h, int argc, char **argv, json_t **ret, struct err *e)
{
	const struct hypervisor_ops *ops = h->ops;
	_cleanup_json_ json_t *request = NULL;
	const char *verb = argv[0], *ref = argc > 1 ? argv[1] : "", *third = argc > 2 ? argv[2] : "";
	const char *last = argv[argc - 1];

	if (*last == '{' && jsn_parse(last, strlen(last), JSN_MAX_SIZE, &request, e) < 0)
		return e->code;
	if (strcmp(verb, "capacity") == 0)
		return ops->capacity(h, ret, e);
	if (strcmp(verb, "list") == 0)
		return ops->list(h, ret, e);
	if (strcmp(verb, "get") == 0)
		return ops->get(h, ref, ret, e);
	if (strcmp(verb, "define") == 0) {
		char made[HYPERVISOR_REF_MAX];
		int r = ops->define(h, ref, request, made, e);

		*ret = r == 0 ? json_pack("{s:s}", "ref", made) : NULL;
		return r;
	}
	if (strcmp(verb, "remove") == 0)
		return ops->remove(h, ref, e);
	if (strcmp(verb, "start") == 0)
		return ops->start(h, ref, e);
	if (strcmp(verb, "stop") == 0)
		return ops->stop(h, ref, atof(third), NULL, e);
	if (strcmp(verb, "set-add") == 0 && argc > 4)
		return tool_set_add(h, argv, request, e);
	if (strcmp(verb, "set-fork") == 0 && argc > 3)
		return ops->set_fork(h, ref, third, argv[3], e);
	if (strcmp(verb, "set-snapshot") == 0)
		return ops->set_snapshot(h, ref, third, e);
	if (strcmp(verb, "set-use") == 0)
		return ops->set_use(h, ref, third, e);
	if (strcmp(verb, "set-drop") == 0)
		return ops->set_drop(h, ref, third, e);
	if (strcmp(verb, "screenshot") == 0)
		return ops->screenshot(h, ref, third, e);
	if (strcmp(verb, "serial") == 0)
		return tool_serial(h, ref, strtoull(third, NULL, 10), ret, e);
	return err_set(e, -EINVAL, "unknown verb or too few operands: '%s'", verb);
}

int main(int argc, char **argv)
{
	_cleanup_json_ json_t *result = NULL;
	_cleanup_free_ char *text = NULL;
	struct hypervisor *h;
	struct err e = {0};
	int r;

	if (argc < 5) {
		fprintf(stderr, "usage: vm_tool DIR CACHE USER|- VERB [REF [OPERAND]...] [JSON]\n");
		return 2;
	}
	r = hypervisor_open(
	    "local",
	    &(struct provider_settings){argv[1], argv[2], "/usr/libexec", strcmp(argv[3], "-") ? argv[3] : NULL}, NULL,
	    &h, &e);
	if (r == 0) {
		r = tool_run(h, argc - 4, argv + 4, &result, &e);
		h->ops->close(h);
	}
	if (result) {
		text = json_dumps(result, JSON_COMPACT);
		puts(text ? text : "{}");
	}
	if (r < 0)
		fprintf(stderr, "vm_tool: %d: %s\n", r, e.msg);
	return r < 0 ? 1 : 0;
}
