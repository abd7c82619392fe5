#include "survey/survey_int.h"

#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"

#define SURVEY_MAX (512u << 10) /* bytes of JSON with the packages' names; about 300 KiB without */

char *survey_read(const char *root, const char *path, size_t max)
{
	_cleanup_free_ char *whole = str_printf("%s%s", root, path);
	char *text = NULL;
	struct stat st;

	if (!whole || stat(whole, &st) < 0 || !S_ISREG(st.st_mode) || io_read_file(whole, max, &text, NULL, NULL) < 0)
		return NULL;
	return text;
}

json_t *survey_string(const char *s, size_t n)
{
	char copy[SURVEY_TEXT_MAX + 1];

	n = MIN(n, (size_t)SURVEY_TEXT_MAX);
	memcpy(copy, s, n);
	copy[n] = '\0';
	str_utf8(copy);
	return json_string(copy);
}

void survey_cut(json_t *survey, const char *list)
{
	json_t *cut = json_object_get(survey, "cut"), *have;
	size_t i;

	if (!cut) {
		cut = json_array();
		json_object_set_new(survey, "cut", cut);
	}
	json_array_foreach(cut, i, have) if (strcmp(json_string_value(have), list) == 0) return;
	json_array_append_new(cut, json_string(list));
}

bool survey_append(json_t *survey, const char *list, json_t *value, size_t max)
{
	json_t *into = json_object_get(survey, list);

	if (!into) {
		into = json_array();
		json_object_set_new(survey, list, into);
	}
	if (json_array_size(into) < max) {
		json_array_append_new(into, value);
		return true;
	}
	json_decref(value);
	survey_cut(survey, list);
	return false;
}

const char *survey_line(const char **text, size_t *ret_len)
{
	const char *line = *text;

	if (!line || !*line)
		return NULL;
	*ret_len = strcspn(line, "\n");
	*text = line + *ret_len + (line[*ret_len] == '\n');
	return line;
}

static void survey_hostname(json_t *survey, const char *root)
{
	_cleanup_free_ char *text = survey_read(root, "/proc/sys/kernel/hostname", 4096);

	if (text)
		json_object_set_new(survey, "hostname", survey_string(text, strcspn(text, "\n")));
}

/* The link's target names the zone; a system without the link may have its name in a file. */
static void survey_timezone(json_t *survey, const char *root)
{
	_cleanup_free_ char *path = str_printf("%s/etc/localtime", root), *text = NULL;
	char target[512];
	ssize_t n = path ? readlink(path, target, sizeof(target) - 1) : -1;
	const char *zone;

	target[MAX(n, (ssize_t)0)] = '\0';
	zone = strstr(target, "zoneinfo/");
	if (zone) {
		zone += strlen("zoneinfo/");
	} else {
		text = survey_read(root, "/etc/timezone", 4096);
		zone = text;
	}
	if (zone)
		json_object_set_new(survey, "timezone", survey_string(zone, strcspn(zone, "\n")));
}

/* An inventory has a limit, which disks and networks share with it. */
static void survey_shrink(json_t *survey)
{
	json_t *packages = json_object_get(survey, "packages");

	if (!packages || json_dumpb(survey, NULL, 0, JSON_COMPACT) <= SURVEY_MAX)
		return;
	json_array_clear(json_object_get(packages, "list"));
	survey_cut(survey, "packages");
}

json_t *survey_take(const char *root)
{
	json_t *o = json_object();

	if (!o)
		return NULL;
	survey_hostname(o, root);
	survey_timezone(o, root);
	survey_services(o, root);
	survey_listening(o, root);
	survey_files(o, root);
	survey_shrink(o);
	return o;
}
