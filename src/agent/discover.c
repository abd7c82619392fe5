/* The inventory of this server, and the command that shows it. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"
#include "survey/survey.h"
#include "version.h"

static int discover_disks(const char *const *paths, size_t n, struct agent_disk **ret, size_t *ret_n, struct err *e)
{
	struct agent_disk *list;

	if (!n)
		return disklist_read(ret, ret_n, e);
	list = calloc(n, sizeof(*list));
	if (!list)
		return err_nomem(e);
	for (size_t i = 0; i < n; i++)
		if (disklist_one(paths[i], &list[i], e) < 0) {
			free(list);
			return e ? e->code : -ENODEV;
		}
	*ret = list;
	*ret_n = n;
	return 0;
}

/* Does the system that runs here lie on the disks that were found? */
static bool discover_has_root(const json_t *o)
{
	json_t *f, *m;
	size_t i, k;

	json_array_foreach(json_object_get(o, "filesystems"), i, f)
	    json_array_foreach(json_object_get(f, "mounts"), k, m)
	{
		if (strcmp(json_string_value(json_object_get(m, "point")) ?: "", "/") == 0 &&
		    json_array_size(json_object_get(f, "disks")))
			return true;
	}
	return false;
}

int discover_inventory(const char *const *paths, size_t n, json_t **ret, struct err *e)
{
	_cleanup_free_ struct agent_disk *disks = NULL;
	_cleanup_json_ json_t *o = json_object(), *warnings = json_array();
	size_t ndisks = 0;
	struct err trouble = {0};

	if (discover_disks(paths, n, &disks, &ndisks, &trouble) < 0) {
		if (n)
			return err_set(e, trouble.code, "%s", trouble.msg);
		json_array_append_new(warnings, json_string(trouble.msg)); /* the rest is worth telling */
	}
	json_object_set_new(o, "agent_version", json_string(REPLANT_VERSION));
	sysinfo_add(o);
	if (contents_add(o, warnings, disks, ndisks) < 0)
		return err_nomem(e);
	netinfo_add(o);
	/* Of disks that hold another system it would say what runs where the agent does. */
	if (!n || discover_has_root(o))
		json_object_set_new(o, "survey", survey_take(""));
	json_object_set(o, "warnings", warnings);
	*ret = take_ptr(&o);
	return 0;
}

/* ---- for people ---- */

static const char *discover_text(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "-";
}

static const char *discover_bytes(const json_t *o, const char *key, char *buf, size_t size)
{
	const json_t *v = json_object_get(o, key);

	return json_is_integer(v) ? str_bytes((uint64_t)json_integer_value(v), buf, size) : "-";
}

static void discover_show_disks(const json_t *disks)
{
	char size[16], used[16];
	json_t *d, *p;
	size_t i, k;

	printf("\nDisks\n");
	json_array_foreach(disks, i, d)
	{
		printf("  %-14s %10s  %-5s used %-10s %s %s\n", discover_text(d, "path"),
		       discover_bytes(d, "size", size, sizeof(size)), discover_text(d, "table"),
		       discover_bytes(d, "used", used, sizeof(used)), discover_text(d, "model"),
		       discover_text(d, "serial"));
		json_array_foreach(json_object_get(d, "partitions"), k, p)
		    printf("    %3" JSON_INTEGER_FORMAT " %-8s %10s  %s\n",
			   json_integer_value(json_object_get(p, "number")), discover_text(p, "name"),
			   discover_bytes(p, "size", size, sizeof(size)), discover_text(p, "content"));
	}
}

static void discover_show_volumes(const json_t *volumes)
{
	char size[16];
	json_t *v;
	size_t i;

	if (json_array_size(volumes))
		printf("\nVolumes\n");
	json_array_foreach(volumes, i, v)
	    printf("  %-9s %-24s %10s  %s\n", discover_text(v, "kind"), discover_text(v, "name"),
		   discover_bytes(v, "size", size, sizeof(size)), discover_text(v, "content"));
}

static void discover_show_filesystems(const json_t *list)
{
	char size[16], used[16];
	json_t *f;
	size_t i;

	printf("\nFilesystems\n");
	json_array_foreach(list, i, f)
	    printf("  %-20s %-8s %10s  used %-10s %s\n", discover_text(f, "device"), discover_text(f, "type"),
		   discover_bytes(f, "size", size, sizeof(size)), discover_bytes(f, "used", used, sizeof(used)),
		   discover_text(json_array_get(json_object_get(f, "mounts"), 0), "point"));
}

static void discover_show_network(const json_t *net)
{
	json_t *one, *a;
	size_t i, k;

	printf("\nNetwork\n");
	json_array_foreach(json_object_get(net, "interfaces"), i, one)
	{
		printf("  %-12s %-9s %-17s", discover_text(one, "name"), discover_text(one, "state"),
		       discover_text(one, "mac"));
		json_array_foreach(json_object_get(one, "addresses"), k, a)
		    printf(" %s/%" JSON_INTEGER_FORMAT, discover_text(a, "address"),
			   json_integer_value(json_object_get(a, "prefix")));
		printf("\n");
	}
	json_array_foreach(json_object_get(net, "default_routes"), i, one)
	    printf("  default via %s on %s\n", discover_text(one, "gateway"), discover_text(one, "interface"));
}

static void discover_show(const json_t *o)
{
	const json_t *cpu = json_object_get(o, "cpu"), *mem = json_object_get(o, "memory");
	char total[16];
	json_t *w;
	size_t i;

	printf("%s: %s, kernel %s (%s)\n", discover_text(o, "hostname"),
	       discover_text(json_object_get(o, "os"), "pretty_name"), discover_text(o, "kernel"),
	       discover_text(o, "arch"));
	printf("boots by %s, loader %s, virtualization %s\n", discover_text(json_object_get(o, "boot"), "mode"),
	       discover_text(json_object_get(o, "boot"), "loader"), discover_text(o, "virtualization"));
	printf("%" JSON_INTEGER_FORMAT " CPUs, %s; memory %s\n", json_integer_value(json_object_get(cpu, "count")),
	       discover_text(cpu, "model"), discover_bytes(mem, "total", total, sizeof(total)));
	discover_show_disks(json_object_get(o, "disks"));
	discover_show_volumes(json_object_get(o, "volumes"));
	discover_show_filesystems(json_object_get(o, "filesystems"));
	discover_show_network(json_object_get(o, "network"));
	json_array_foreach(json_object_get(o, "warnings"), i, w)
	    printf("%swarning: %s\n", i ? "" : "\n", json_string_value(w));
}

int agent_discover(void *options, int argc, char **argv)
{
	const struct agent_options *opts = options;
	_cleanup_json_ json_t *o = NULL;
	_cleanup_free_ char *text = NULL;
	struct err e = {0};

	if (discover_inventory((const char *const *)argv, (size_t)argc, &o, &e) < 0) {
		fprintf(stderr, "replant-agent: %s\n", e.msg);
		return 1;
	}
	if (!opts->json) {
		discover_show(o);
		return 0;
	}
	text = json_dumps(o, JSON_INDENT(2));
	if (!text)
		return 1;
	puts(text);
	return 0;
}
