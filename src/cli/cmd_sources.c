#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/jsn.h"
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
	static const char *const paths[] = {"os",           "os.pretty_name",           "os.name",
					    "inventory.os", "inventory.os.pretty_name", "inventory.os.name"};

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

/* What a migration would read: a disk whose content isn't understood is copied whole. */
static double source_bytes(const json_t *s)
{
	double sum = 0;
	const json_t *disk;
	size_t i;

	json_array_foreach(get(s, "inventory.disks"), i, disk) sum += get_num(disk, "used", get_num(disk, "size", 0));
	return sum;
}

static const struct out_col source_cols[] = {
    {"NAME", false, 1, cell_name},   {"STATE", false, 0, cell_state}, {"SYSTEM", false, 2, source_system},
    {"SEEN", false, 0, source_seen}, {"ID", false, 0, cell_id},       {0},
};

static const struct out_col disk_cols[] = {
    {"DISK", false, 0, NULL}, {"SIZE", true, 0, NULL}, {"USED", true, 0, NULL}, {"MODEL", false, 2, NULL}, {0}};

static void source_disk(struct out_table *t, const json_t *disk)
{
	struct str b = {0};
	const char *path = get_str(disk, "path");

	out_clean(&b, *path ? path : get_str(disk, "name"));
	out_table_cell(t, &b, OUT_PLAIN);
	out_size(&b, get_num(disk, "size", 0));
	out_table_cell(t, &b, OUT_PLAIN);
	if (get(disk, "used"))
		out_size(&b, get_num(disk, "used", 0));
	else
		str_add(&b, "unknown");
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

/* What the agent noticed that may hinder a migration. */
static void source_warnings(const json_t *s)
{
	const json_t *w;
	size_t i;

	json_array_foreach(get(s, "inventory.warnings"), i, w)
	{
		_cleanup_(str_release) struct str b = {0};

		out_clean(&b, json_is_string(w) ? json_string_value(w) : get_str(w, "message"));
		out_field("Warning", b.s ? b.s : "", OUT_YELLOW);
	}
}

static void source_machine(const json_t *s)
{
	_cleanup_(str_release) struct str b = {0};
	const char *virt = get_str(s, "inventory.virtualization");

	out_fieldf("System", "%s", source_os(s));
	if (*get_str(s, "inventory.kernel"))
		out_fieldf("Kernel", "%s, %s", get_str(s, "inventory.kernel"), get_str(s, "inventory.arch"));
	if (*get_str(s, "inventory.boot.mode"))
		out_fieldf("Boots by", "%s%s%s%s", get_str(s, "inventory.boot.mode"),
			   *get_str(s, "inventory.boot.loader") ? ", " : "", get_str(s, "inventory.boot.loader"),
			   get_true(s, "inventory.boot.secure_boot") ? ", secure boot" : "");
	if (get(s, "inventory.memory.total")) {
		out_size(&b, get_num(s, "inventory.memory.total", 0));
		str_addf(&b, ", %.0f processors", get_num(s, "inventory.cpu.count", 1));
		if (*virt && strcmp(virt, "none") != 0 && strcmp(virt, "unknown") != 0)
			str_addf(&b, ", virtualized by %s", virt);
		out_fieldf("Machine", "%s", b.s ? b.s : "");
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
	cli_show_tags(s);
	source_machine(s);
	str_add(&b, get_str(s, "agent_version"));
	str_add(&b, ", seen ");
	out_when(&b, get_num(s, "last_seen", 0));
	out_fieldf("Agent", "%s", b.s ? b.s : "");
	str_release(&b);
	out_when(&b, get_num(s, "created", 0));
	out_field("Enrolled", b.s ? b.s : "", OUT_PLAIN);
	out_fieldf("Job", "%s", get_str(s, "job"));
	source_warnings(s);
	source_disks(s);
	if (source_bytes(s) > 0) {
		str_release(&b);
		out_size(&b, source_bytes(s));
		printf("\n  A migration copies %s.\n", b.s ? b.s : "");
	}
}

const struct cli_noun cli_source = {"source",      "sources",
				    "/v1/sources", source_cols,
				    source_show,   "'replant codes create' prints the command that enrols a server.",
				    NULL};

void cli_print_sources_of(struct cli *c, const char *workgroup)
{
	_cleanup_free_ char *query = cli_is_id(workgroup) ? str_printf("&workgroup=%s", workgroup) : NULL;
	_cleanup_json_ json_t *items = NULL;
	_cleanup_table_ struct out_table t = {0};
	const json_t *item;
	size_t i;

	if (!query || cli_list_query(c, &cli_source, query, &items, NULL) < 0 || !json_array_size(items))
		return;
	putchar('\n');
	out_table_init(&t, source_cols, 2);
	json_array_foreach(items, i, item) out_table_item(&t, item);
	(void)out_table_print(&t, NULL);
}
