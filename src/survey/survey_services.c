/* Services, by systemd's word; without systemd the names of what runs. */
#include "survey/survey_int.h"

#include <ctype.h>
#include <dirent.h>
#include <string.h>
#include <unistd.h>

#include "base/proc.h"
#include "base/str.h"

#define UNITS_TEXT_MAX (2u << 20)
#define PIDS_MAX       32768u

struct unit {
	const char *id, *state, *enabled, *condition;
	size_t id_len, state_len, enabled_len, condition_len;
};

static bool unit_take(struct unit *u, const char *line, size_t n)
{
	const struct {
		const char *key;
		const char **value;
		size_t *len;
	} keys[] = {{"Id=", &u->id, &u->id_len},
		    {"SubState=", &u->state, &u->state_len},
		    {"UnitFileState=", &u->enabled, &u->enabled_len},
		    {"ConditionResult=", &u->condition, &u->condition_len}};

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		size_t k = strlen(keys[i].key);

		if (n >= k && memcmp(line, keys[i].key, k) == 0) {
			*keys[i].value = line + k;
			*keys[i].len = n - k;
			return true;
		}
	}
	return false;
}

static bool unit_is(const char *s, size_t n, const char *word)
{
	return s && n == strlen(word) && memcmp(s, word, n) == 0;
}

/* What is neither running nor meant to be says nothing. */
static void unit_put(json_t *survey, const struct unit *u)
{
	bool idle = unit_is(u->state, u->state_len, "dead") && !unit_is(u->enabled, u->enabled_len, "enabled");
	json_t *o;

	if (!u->id_len || !u->state_len || idle)
		return;
	o = json_object();
	json_object_set_new(o, "name", survey_string(u->id, u->id_len));
	json_object_set_new(o, "state", survey_string(u->state, u->state_len));
	if (u->enabled_len)
		json_object_set_new(o, "enabled", survey_string(u->enabled, u->enabled_len));
	/* Also "no" for what was never tried; then it tells nothing of one that runs. */
	if (unit_is(u->condition, u->condition_len, "no"))
		json_object_set_new(o, "condition", json_false());
	survey_append(survey, "units", o, SURVEY_LIST_MAX);
}

void survey_parse_units(json_t *survey, const char *text)
{
	struct unit u = {0};
	const char *line;
	size_t n;

	while ((line = survey_line(&text, &n))) {
		if (n == 0) {
			unit_put(survey, &u);
			u = (struct unit){0};
		} else {
			unit_take(&u, line, n);
		}
	}
	unit_put(survey, &u);
}

static int survey_by_number(const struct dirent **a, const struct dirent **b)
{
	return atoi((*a)->d_name) - atoi((*b)->d_name);
}

static int survey_is_pid(const struct dirent *d)
{
	return isdigit((unsigned char)d->d_name[0]);
}

static bool survey_knows(const json_t *list, const char *name)
{
	for (size_t i = 0; i < json_array_size(list); i++)
		if (strcmp(json_string_value(json_array_get(list, i)), name) == 0)
			return true;
	return false;
}

/* Each program once; kernel threads have no command line. */
static void survey_process(json_t *survey, const char *root, const char *pid)
{
	_cleanup_free_ char *path = str_printf("/proc/%s/comm", pid), *line = str_printf("/proc/%s/cmdline", pid);
	_cleanup_free_ char *comm = path ? survey_read(root, path, 4096) : NULL;
	_cleanup_free_ char *command = line && comm ? survey_read(root, line, 8u << 20) : NULL;

	if (!command || !*command)
		return;
	comm[strcspn(comm, "\n")] = '\0';
	str_utf8(comm);
	if (!survey_knows(json_object_get(survey, "processes"), comm))
		survey_append(survey, "processes", survey_string(comm, strlen(comm)), SURVEY_LIST_MAX);
}

static void survey_processes(json_t *survey, const char *root)
{
	_cleanup_free_ char *proc = str_printf("%s/proc", root);
	struct dirent **names = NULL;
	int n = proc ? scandir(proc, &names, survey_is_pid, survey_by_number) : -1;

	for (int i = 0; i < n; i++) {
		if (i < (int)PIDS_MAX)
			survey_process(survey, root, names[i]->d_name);
		free(names[i]);
	}
	free(names);
}

void survey_services(json_t *survey, const char *root)
{
	_cleanup_free_ char *path = str_printf("%s/run/systemd/system", root), *text = NULL;
	bool systemd = path && access(path, F_OK) == 0;

	json_object_set_new(survey, "init", json_string(systemd ? "systemd" : "other"));
	if (!systemd)
		survey_processes(survey, root);
	/* coreutils' timeout: a system manager that hangs must not hang us. */
	else if (!*root &&
		 proc_run((const char *[]){"timeout", "-k", "1", "10", "systemctl", "show", "--no-pager",
					   "--property=Id,SubState,UnitFileState,ConditionResult", "*.service", NULL},
			  UNITS_TEXT_MAX, &text, NULL) == 0)
		survey_parse_units(survey, text);
	else if (!*root)
		survey_cut(survey, "units");
}
