/*
 * Runs the conversion's steps for the tests, and prints the report. guest_tool ROOT VOLUMES-JSON: over a plain
 * directory. guest_tool --mount DIR VOLUMES-JSON: the system is looked for on the volumes and mounted there, as in the
 * appliance. guest_tool --check|--repair ROOT VOLUMES-JSON: what the check of an image says of a plain directory;
 * --look DIR VOLUMES-JSON: of the volumes.
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

static int open_plain(const char *root, const json_t *j, const struct guest_volumes *v, struct guest **ret,
		      struct err *e)
{
	struct guest_settings s = {.root = root, .volumes = v};
	const char *device = "";
	int r = jsn_get_str(j, "root", true, 200, &device, e);

	s.root_volume = find_root(v, device);
	return r ?: guest_open(&s, ret, e);
}

static int open_mounted(const struct guest_volumes *v, const json_t *j, const char *at, struct guest **ret,
			struct err *e)
{
	struct guest_root root;

	guest_root_from_inventory(json_object_get(j, "inventory"), &root);
	root.converted = json_is_true(json_object_get(j, "converted"));
	return guest_mount(v, &root, at, ret, e);
}

static int work(const char *mode, const char *root, const char *text, json_t **ret, struct err *e)
{
	_cleanup_(guest_volumes_release) struct guest_volumes v = {0};
	_cleanup_json_ json_t *j = NULL;
	struct err why = {0};
	struct guest *g;
	int r = jsn_parse(text, strlen(text), JSN_MAX_SIZE, &j, e), rc;

	r = r ?: guest_volumes_from_json(j, &v, e);
	if (r == 0 && strcmp(mode, "--look") == 0)
		return guest_check(&v, NULL, root, j, false, NULL, NULL, ret, e);
	if (r == 0)
		r = strcmp(mode, "--mount") == 0 ? open_mounted(&v, j, root, &g, e) : open_plain(root, j, &v, &g, e);
	if (r < 0)
		return r;
	if (strcmp(mode, "--check") == 0 || strcmp(mode, "--repair") == 0) {
		r = guest_check_system(g, j, mode[2] == 'r', NULL, NULL, ret, e);
	} else {
		r = guest_set_address(g, json_object_get(j, "network"), e);
		r = r ?: guest_convert(g, NULL, NULL, ret, e);
	}
	rc = guest_close(g, &why);
	return r == 0 && rc < 0 ? err_set(e, rc, "%s", why.msg) : r;
}

int main(int argc, char **argv)
{
	_cleanup_json_ json_t *report = NULL;
	_cleanup_free_ char *text = NULL;
	struct err e = {0};
	int r;

	if (argc != 3 && argc != 4) {
		fprintf(stderr, "usage: guest_tool [--mount|--check|--repair] ROOT VOLUMES\n");
		return 2;
	}
	r = work(argc == 4 ? argv[1] : "", argv[argc - 2], argv[argc - 1], &report, &e);
	if (report) {
		text = jsn_text(report);
		puts(text ? text : "{}");
	}
	if (r < 0)
		fprintf(stderr, "guest_tool: %d: %s\n", r, e.msg);
	return r < 0 ? 1 : 0;
}
