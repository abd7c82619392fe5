/* Takes everything away that enrolment brought. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"

static int uninstall_file(const char *dir, const char *name, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/%s", dir, name);

	if (!path)
		return err_nomem(e);
	if (unlink(path) < 0)
		return errno == ENOENT || errno == ENOTDIR ? 0 : err_sys(e, "cannot remove '%s'", path);
	printf("removed %s\n", path);
	return 0;
}

/* What writing one of our files left behind when it was cut off: "agent.json.tmp-0123456789abcdef", with the secret. */
static bool uninstall_is_part(const char *name)
{
	static const char *const ours[] = {"agent.json.", "ca.pem.", "frozen."};

	for (size_t i = 0; i < ARRAY_SIZE(ours); i++)
		if (str_starts(name, ours[i]) && id_is("tmp", name + strlen(ours[i])))
			return true;
	return false;
}

static int uninstall_parts(const char *dir, struct err *e)
{
	DIR *d = opendir(dir);
	int r = 0;

	for (struct dirent *de; d && r == 0 && (de = readdir(d));)
		if (uninstall_is_part(de->d_name))
			r = uninstall_file(dir, de->d_name, e);
	if (d)
		closedir(d);
	return r;
}

/* Only when nothing of somebody else is in it. */
static void uninstall_dir(const char *dir)
{
	if (rmdir(dir) == 0)
		printf("removed %s\n", dir);
}

static int uninstall(const struct agent_options *o, struct err *e)
{
	bool here = strcmp(o->config_dir, AGENT_CONFIG_DIR) == 0;
	_cleanup_free_ char *note = str_printf("%s/frozen", o->runtime_dir);
	_cleanup_close_ int claim = -1;
	int r;

	if (geteuid() != 0)
		return err_set(e, -EPERM, "uninstalling needs root");
	if (!note)
		return err_nomem(e);
	/* With another configuration there is no service of it. */
	r = here ? service_stop(e) : 0;
	/* What follows would pull the floor from under an agent that runs, be it in a freeze. */
	if (r == 0 && claim_take(o->runtime_dir, &claim, e) < 0)
		return e->code == -EBUSY
			   ? err_set(e, -EBUSY, "an agent is running with '%s': end it first", o->runtime_dir)
			   : e->code;
	if (r == 0 && here)
		r = service_remove(e);
	if (r == 0)
		freeze_recover(note);
	if (r == 0)
		r = tracking_remove(o->runtime_dir, e);
	if (r == 0)
		r = uninstall_file(o->config_dir, "agent.json", e);
	if (r == 0)
		r = uninstall_file(o->config_dir, "ca.pem", e);
	if (r == 0)
		r = uninstall_file(o->runtime_dir, "agent.json", e);
	if (r == 0)
		r = uninstall_file(o->runtime_dir, "agent.lock", e);
	if (r == 0)
		r = uninstall_parts(o->config_dir, e);
	if (r == 0)
		r = uninstall_parts(o->runtime_dir, e);
	if (r < 0)
		return r;
	uninstall_dir(o->config_dir);
	uninstall_dir(o->runtime_dir);
	printf("the center still lists this server; delete the source there\n");
	return 0;
}

int agent_uninstall(void *options, int argc, char **argv)
{
	struct err e = {0};

	if (uninstall(options, &e) == 0)
		return 0;
	fprintf(stderr, "replant-agent: %s\n", e.msg);
	return 1;
}
