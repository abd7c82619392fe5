#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/util.h"
#include "cli/cli_int.h"

static enum out_colour source_seen(struct str *b, const json_t *s)
{
	out_when(b, get_num(s, "last_seen", 0));
	return OUT_PLAIN;
}

/* The system's name may be a string or an object made from os-release. */
static const char *source_os(const json_t *s)
{
	static const char *const paths[] = {"os", "os.pretty_name", "os.name", "inventory.os", "inventory.os.pretty_name",
					    "inventory.os.name"};

	for (size_t i = 0; i < ARRAY_SIZE(paths); i++)
		if (*get_str(s, paths[i]))
			return get_str(s, paths[i]);
	return "";
}

static enum out_colour source_system(struct str *b, const json_t *s)
{
	out_clean(b, source_os(s));
	return OUT_PLAIN;
}

static double source_bytes(const json_t *s, const char *key)
{
	double sum = 0;
	const json_t *disk;
	size_t i;

	json_array_foreach(get(s, "inventory.disks"), i, disk) sum += get_num(disk, key, 0);
	return sum;
}

static const struct out_col source_cols[] = {
	{"NAME", false, 1, cell_name},  {"STATE", false, 0, cell_state}, {"SYSTEM", false, 2, source_system},
	{"SEEN", false, 0, source_seen}, {"ID", false, 0, cell_id},	{0},
};

static const struct out_col disk_cols[] = {{"DISK", false, 0, NULL}, {"SIZE", true, 0, NULL},
					   {"USED", true, 0, NULL}, {"MODEL", false, 2, NULL}, {0}};

static void source_disk(struct out_table *t, const json_t *disk)
{
	struct str b = {0};
	const char *name = get_str(disk, "name");

	out_clean(&b, *name ? name : get_str(disk, "path"));
	out_table_cell(t, &b, OUT_PLAIN);
	out_size(&b, get_num(disk, "size", 0));
	out_table_cell(t, &b, OUT_PLAIN);
	if (get(disk, "used"))
		out_size(&b, get_num(disk, "used", 0));
	out_table_cell(t, &b, OUT_PLAIN);
	out_clean(&b, get_str(disk, "model"));
	out_table_cell(t, &b, OUT_PLAIN);
}

static void source_disks(const json_t *s)
{
	_cleanup_table_ struct out_table t;
	const json_t *disks = get(s, "inventory.disks"), *disk;
	size_t i;

	out_table_init(&t, disk_cols, 2);
	if (json_array_size(disks) == 0)
		return;
	out_section("Disks");
	json_array_foreach(disks, i, disk) source_disk(&t, disk);
	(void)out_table_print(&t, NULL);
}

/* Reasons why the agent thinks that a migration would fail or suffer. */
static void source_problems(const json_t *s)
{
	static const char *const keys[] = {"inventory.problems", "inventory.warnings", "inventory.notes"};
	const json_t *p;
	size_t i;

	for (size_t k = 0; k < ARRAY_SIZE(keys); k++) {
		json_array_foreach(get(s, keys[k]), i, p) {
			const char *text = json_is_string(p) ? json_string_value(p) : get_str(p, "message");

			out_fieldf(k ? "Note" : "Problem", "%s", text);
		}
	}
}

static void source_show(struct cli *c, json_t *s)
{
	_cleanup_(str_release) struct str b = {0};

	out_title(get_str(s, "name"), get_str(s, "id"));
	cell_state(&b, s);
	out_field("State", b.s ? b.s : "", out_state_colour(get_str(s, "state")));
	str_release(&b);
	out_fieldf("Description", "%s", get_str(s, "description"));
	out_fieldf("Host", "%s", get_str(s, "hostname"));
	out_fieldf("System", "%s", source_os(s));
	out_fieldf("Kernel", "%s", get_str(s, "inventory.kernel"));
	out_fieldf("Architecture", "%s", get_str(s, "inventory.arch"));
	out_fieldf("Firmware", "%s", get_str(s, "inventory.firmware"));
	if (get(s, "inventory.memory")) {
		out_size(&b, get_num(s, "inventory.memory", 0));
		out_field("Memory", b.s ? b.s : "", OUT_PLAIN);
		str_release(&b);
	}
	if (get(s, "inventory.cpus"))
		out_fieldf("Processors", "%.0f", get_num(s, "inventory.cpus", 0));
	str_add(&b, get_str(s, "agent_version"));
	str_add(&b, ", seen ");
	out_when(&b, get_num(s, "last_seen", 0));
	out_fieldf("Agent", "%s", b.s ? b.s : "");
	str_release(&b);
	out_when(&b, get_num(s, "created", 0));
	out_field("Enrolled", b.s ? b.s : "", OUT_PLAIN);
	out_fieldf("Job", "%s", get_str(s, "job"));
	source_problems(s);
	source_disks(s);
	if (source_bytes(s, "used") > 0) {
		str_release(&b);
		out_size(&b, source_bytes(s, "used"));
		printf("\n  %s are in use and would be copied.\n", b.s ? b.s : "");
	}
}

const struct cli_noun cli_source = {
	"source", "sources", "/v1/sources", source_cols, source_show,
	"'replant codes create' prints the command that enrols a server.", NULL};

CLI_COMMAND(sources_ls)
{
	return cli_ls(c, &cli_source, e);
}

CLI_COMMAND(sources_show)
{
	return cli_show(c, &cli_source, argv[0], e);
}

CLI_COMMAND(sources_rename)
{
	return cli_rename(c, &cli_source, argv[0], argv[1], e);
}

CLI_COMMAND(sources_rm)
{
	return cli_rm(c, &cli_source, argc, argv, e);
}
