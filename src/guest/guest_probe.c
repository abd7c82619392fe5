/* Puts the test boot's probe into a throw-away copy. */
#include "guest/guest_int.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/io.h"
#include "base/util.h"

#define PROBE_PATH "/usr/lib/replant/probe"
#define PROBE_UNIT "/etc/systemd/system/replant-probe.service"

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

int guest_install_probe(struct guest *g, const char *program, struct err *e)
{
	struct guest_result r = {.files = json_array(), .notes = json_array()};
	int rc;

	if (!guest_exists(g, "/lib/systemd/systemd") && !guest_exists(g, "/usr/lib/systemd/systemd"))
		rc = err_set(e, -ENOTSUP, "the system does not use systemd, so the test boot cannot ask it anything");
	else
		rc = probe_copy_program(g, program, e);
	if (rc == 0)
		rc = guest_write(g, &r, PROBE_UNIT, probe_unit, strlen(probe_unit), 0644, e);
	if (rc == 0)
		rc = guest_symlink(g, &r, PROBE_UNIT, "/etc/systemd/system/sysinit.target.wants/replant-probe.service",
				   e);
	json_decref(r.files);
	json_decref(r.notes);
	return rc;
}
