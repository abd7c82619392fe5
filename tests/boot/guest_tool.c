/* Runs the conversion's steps over a plain directory, for the tests: guest_tool ROOT VOLUMES-JSON; prints the report.
 */
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/util.h"
#include "guest/guest.h"

static const struct guest_volume *find_root(const struct guest_volumes *v, const char *device)
{
	for (size_t i = 0; i < v->n; i++)
		if (strcmp(v->v[i].device, device) == 0)
			return &v->v[i];
	return NULL;
}

static int convert(const char *root, const char *text, json_t **ret, struct err *e)
{
	_cleanup_(guest_volumes_release) struct guest_volumes v = {0};
	_cleanup_json_ json_t *j = NULL;
	struct guest_settings s = {.root = root, .volumes = &v};
	const char *device = "";
	struct guest *g;
	int r = jsn_parse(text, strlen(text), JSN_MAX_SIZE, &j, e);

	r = r ?: guest_volumes_from_json(j, &v, e);
	r = r ?: jsn_get_str(j, "root", true, 200, &device, e);
	s.root_volume = find_root(&v, device);
	r = r ?: guest_open(&s, &g, e);
	if (r < 0)
		return r;
	r = guest_convert(g, NULL, NULL, ret, e);
	guest_close(g);
	return r;
}

int main(int argc, char **argv)
{
	_cleanup_json_ json_t *report = NULL;
	_cleanup_free_ char *text = NULL;
	struct err e = {0};
	int r;

	if (argc != 3) {
		fprintf(stderr, "usage: guest_tool ROOT VOLUMES\n");
		return 2;
	}
	r = convert(argv[1], argv[2], &report, &e);
	if (report) {
		text = jsn_text(report);
		puts(text ? text : "{}");
	}
	if (r < 0)
		fprintf(stderr, "guest_tool: %d: %s\n", r, e.msg);
	return r < 0 ? 1 : 0;
}
