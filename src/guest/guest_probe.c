/* Puts the test boot's probe into a throw-away copy. */
#include "guest/guest_int.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/util.h"

#define PROBE_PATH  "/usr/lib/replant/probe"
#define PROBE_CHECK "/usr/lib/replant/check-%zu"
#define PROBE_ASKS  "/usr/lib/replant/probe.json"
#define PROBE_UNIT  "/etc/systemd/system/replant-probe.service"

/* Early and on its own, so that it also speaks from the emergency shell, which stops nearly everything else. */
static const char probe_unit[] =
    "[Unit]\nDescription=Replant test boot\nDefaultDependencies=no\nIgnoreOnIsolate=yes\n"
    "After=systemd-journald.socket\n\n"
    "[Service]\nExecStart=" PROBE_PATH " probe\nStandardOutput=null\nStandardError=journal+console\n";

static int probe_copy_program(struct guest *g, const char *program, struct err *e)
{
	_cleanup_close_ int in = open(program, O_RDONLY | O_CLOEXEC), out = -1;
	char buf[65536];
	ssize_t n = 0;
	int r;

	if (in < 0)
		return err_sys(e, "cannot open '%s'", program);
	r = guest_mkdirs(g, "/usr/lib/replant", e);
	if (r < 0)
		return r;
	out = guest_openat(g, PROBE_PATH, O_WRONLY | O_CREAT | O_TRUNC, 0755);
	if (out < 0 || fchmod(out, 0755) < 0)
		return err_set(e, out < 0 ? out : -errno, "cannot write '" PROBE_PATH "' in the copy");
	while (r == 0 && (n = io_read_full(in, buf, sizeof(buf))) > 0)
		r = io_write_full(out, buf, (size_t)n);
	if (r < 0 || n < 0) {
		errno = -(r < 0 ? r : (int)n);
		return err_sys(e, "cannot write '" PROBE_PATH "' in the copy");
	}
	return 0;
}

/* Scripts become programs, each by its number; the probe learns their names and times. */
static int probe_put_asks(struct guest *g, struct guest_result *r, const json_t *request, struct err *e)
{
	const json_t *checks = json_object_get(request, "checks");
	_cleanup_json_ json_t *asks = json_pack("{s:[], s:O*}", "checks", "expect", json_object_get(request, "expect"));
	_cleanup_free_ char *text = NULL;
	json_t *check;
	size_t i;
	int rc;

	json_array_foreach(checks, i, check)
	{
		const char *script = json_string_value(json_object_get(check, "script")) ?: "";
		char path[64];

		snprintf(path, sizeof(path), PROBE_CHECK, i);
		rc = guest_write(g, r, path, script, strlen(script), 0700, e);
		if (rc < 0)
			return rc;
		json_array_append_new(json_object_get(asks, "checks"),
				      json_pack("{s:O*, s:O*}", "name", json_object_get(check, "name"), "timeout",
						json_object_get(check, "timeout")));
	}
	text = asks ? jsn_text(asks) : NULL;
	return text ? guest_write(g, r, PROBE_ASKS, text, strlen(text), 0600, e) : err_nomem(e);
}

int guest_install_probe(struct guest *g, const char *program, const json_t *request, struct err *e)
{
	struct guest_result r = {.files = json_array(), .notes = json_array()};
	int rc;

	if (!guest_exists(g, "/lib/systemd/systemd") && !guest_exists(g, "/usr/lib/systemd/systemd"))
		rc = err_set(e, -ENOTSUP, "the system does not use systemd, so the test boot cannot ask it anything");
	else
		rc = probe_copy_program(g, program, e);
	if (rc == 0)
		rc = probe_put_asks(g, &r, request, e);
	if (rc == 0)
		rc = guest_write(g, &r, PROBE_UNIT, probe_unit, strlen(probe_unit), 0644, e);
	if (rc == 0)
		rc = guest_symlink(g, &r, PROBE_UNIT, "/etc/systemd/system/sysinit.target.wants/replant-probe.service",
				   e);
	json_decref(r.files);
	json_decref(r.notes);
	return rc;
}
