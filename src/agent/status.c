/* What the service last wrote about itself. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"

static const char *status_text(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "-";
}

static void status_show_task(const json_t *task)
{
	const json_t *p = json_object_get(task, "progress"), *error = json_object_get(task, "error");
	char done[16], total[16];

	printf("task:      %s, %s\n", status_text(task, "run"), status_text(task, "state"));
	printf("progress:  %s, round %" JSON_INTEGER_FORMAT ", %.1f %% (%s of %s)\n", status_text(p, "phase"),
	       json_integer_value(json_object_get(p, "round")), json_number_value(json_object_get(p, "percent")),
	       str_bytes((uint64_t)json_integer_value(json_object_get(p, "bytes_done")), done, sizeof(done)),
	       str_bytes((uint64_t)json_integer_value(json_object_get(p, "bytes_total")), total, sizeof(total)));
	if (json_object_get(p, "tracking"))
		printf("tracking:  %s%s%s\n", status_text(p, "tracking"), json_object_get(p, "untracked") ? ", " : "",
		       json_object_get(p, "untracked") ? status_text(p, "untracked") : "");
	if (error)
		printf("error:     %s\n", status_text(error, "message"));
}

static void status_show(const json_t *o, bool running)
{
	const json_t *task = json_object_get(o, "task");
	double last = json_number_value(json_object_get(o, "last_sync"));

	printf("agent:     %s, version %s\n", running ? "running" : "not running", status_text(o, "version"));
	printf("center:    %s, %s\n", status_text(o, "center"),
	       running && json_is_true(json_object_get(o, "connected")) ? "in contact" : "not in contact");
	printf("source:    %s\n", status_text(o, "source"));
	if (last > 0)
		printf("last sync: %.0f s ago\n", id_now() - last);
	if (json_object_get(o, "error"))
		printf("trouble:   %s\n", status_text(o, "error"));
	if (json_is_object(task))
		status_show_task(task);
	else
		printf("task:      none\n");
}

static int status_read(const struct agent_options *opts, json_t **ret, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/agent.json", opts->runtime_dir), *text = NULL;
	size_t len;
	int r;

	if (!path)
		return err_nomem(e);
	r = io_read_file(path, JSN_MAX_SIZE, &text, &len, e);
	if (r == -ENOENT)
		return err_set(e, -ENOENT, "the agent is not running (start it with 'systemctl start %s')", AGENT_UNIT);
	return r < 0 ? r : jsn_parse(text, len, JSN_MAX_SIZE, ret, e);
}

/* The file outlives an agent that was killed, and its number may be another process's by now: the lock tells, to root.
 */
static bool status_runs(const struct agent_options *opts, pid_t pid)
{
	return claim_look(opts->runtime_dir) != 0 && pid > 1 && (kill(pid, 0) == 0 || errno == EPERM);
}

int agent_status(void *options, int argc, char **argv)
{
	const struct agent_options *opts = options;
	_cleanup_(conf_release) struct conf c = {0};
	_cleanup_json_ json_t *o = NULL;
	_cleanup_free_ char *text = NULL;
	struct err e = {0};
	json_int_t pid;
	bool running;
	int r = status_read(opts, &o, &e);

	/* Of "not running" and "not enrolled" the latter says more. */
	if (r == -ENOENT && conf_load(opts->config_dir, &c, &e) == -ENOENT)
		r = -ENOENT;
	if (r < 0) {
		fprintf(stderr, "replant-agent: %s\n", e.msg);
		return 1;
	}
	pid = json_integer_value(json_object_get(o, "pid"));
	running = status_runs(opts, (pid_t)pid);
	if (!opts->json) {
		status_show(o, running);
		return running ? 0 : 1;
	}
	json_object_set_new(o, "running", json_boolean(running));
	text = json_dumps(o, JSON_INDENT(2));
	if (text)
		puts(text);
	return text && running ? 0 : 1;
}
