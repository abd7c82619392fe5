/*
 * The program of the appliance: one request line {"mode":"convert"|"probe"|"check"|"repair","disks":[...],
 * "inventory":{...},"network":{...},"options":{...}} on the port, event lines back, the last one {"event":"report",...}
 * or {"event":"error","code":...,"message":...}.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/id.h"
#include "base/jsn.h"
#include "base/log.h"
#include "base/util.h"
#include "guest/guest.h"
#include "transition/port.h"
#include "transition/transition.h"

#define PORT_NAME "org.replant.appliance.0"
#define MOUNT_AT  "/tmp/root"

static void appliance_tell(void *arg, const json_t *event)
{
	struct err e = {0};

	if (port_write(*(int *)arg, event, &e) < 0)
		log_error("%s", e.msg);
	else
		log_info("step %s", json_string_value(json_object_get(event, "name")) ?: "");
}

static const char *appliance_code(int code)
{
	switch (code) {
	case -ENOTSUP:
		return "unsupported_system";
	case -ENOENT:
		return "no_system";
	case -ENOSPC:
		return "no_space";
	case -ETIMEDOUT:
		return "timeout";
	default:
		return "conversion_failed";
	}
}

/* A system that did not reach its disks is not converted, whatever the steps say. */
static int appliance_close(struct guest *g, int r, struct err *e)
{
	struct err why = {0};
	int rc = guest_close(g, &why);

	return r == 0 && rc < 0 ? err_set(e, rc, "%s", why.msg) : r;
}

/* On -ENOTSUP *ret is what was found. */
static int appliance_convert(int port, const struct guest_volumes *v, const struct guest_root *root,
			     const json_t *network, json_t **ret, struct err *e)
{
	struct guest *g = NULL;
	int r = guest_mount(v, root, MOUNT_AT, &g, e);

	if (r == 0)
		r = guest_set_address(g, network, e);
	if (r == 0)
		r = guest_convert(g, appliance_tell, &port, ret, e);
	return appliance_close(g, r, e);
}

static int appliance_probe(const struct guest_volumes *v, const struct guest_root *root, const json_t *request,
			   json_t **ret, struct err *e)
{
	struct guest *g = NULL;
	int r = guest_mount(v, root, MOUNT_AT, &g, e);

	if (r == 0)
		r = guest_install_probe(g, "/proc/self/exe", request, e);
	r = appliance_close(g, r, e);
	if (r == 0)
		*ret = json_object();
	return r;
}

static int appliance_serve(int port, const json_t *request, json_t **ret, struct err *e)
{
	_cleanup_(guest_volumes_release) struct guest_volumes v = {0};
	struct guest_root root;
	const char *mode = NULL;
	int r = jsn_get_str(request, "mode", true, 32, &mode, e);

	if (r == 0)
		r = guest_volumes_scan(json_object_get(request, "disks"), &v, e);
	if (r < 0)
		return r;
	guest_root_from_inventory(json_object_get(request, "inventory"), &root);
	if (mkdir(MOUNT_AT, 0700) < 0 && errno != EEXIST)
		return err_sys(e, "cannot make '" MOUNT_AT "'");
	root.converted = strcmp(mode, "convert") != 0;
	if (strcmp(mode, "convert") == 0)
		return appliance_convert(port, &v, &root, json_object_get(request, "network"), ret, e);
	if (strcmp(mode, "probe") == 0)
		return appliance_probe(&v, &root, request, ret, e);
	if (strcmp(mode, "check") == 0 || strcmp(mode, "repair") == 0)
		return guest_check(&v, &root, MOUNT_AT, json_object_get(request, "options"), *mode == 'r',
				   appliance_tell, &port, ret, e);
	return err_set(e, -EINVAL, "the appliance knows no mode '%s'", mode);
}

int transition_appliance(void *options, int argc, char **argv)
{
	_cleanup_json_ json_t *request = NULL, *report = NULL, *answer = NULL;
	_cleanup_close_ int port = -1;
	double start = id_now_mono();
	struct err e = {0};
	int r = port_open(PORT_NAME, &port, &e);

	umask(022);
	if (r == 0)
		r = port_read(port, &request, &e);
	if (r == 0)
		r = appliance_serve(port, request, &report, &e);
	if (r == 0) {
		json_object_set_new(report, "seconds", json_real(id_now_mono() - start));
		json_object_set_new(report, "event", json_string("report"));
		r = port_write(port, report, &e);
	} else if (port >= 0) {
		answer = json_pack("{s:s, s:s, s:s, s:O?}", "event", "error", "code", appliance_code(r), "message",
				   e.msg, "report", report);
		if (!answer)
			answer = json_pack("{s:s, s:s, s:s}", "event", "error", "code", appliance_code(r), "message",
					   "the conversion failed, and its message is not UTF-8");
		if (answer)
			port_write(port, answer, NULL);
	}
	if (r < 0)
		log_error("%s", e.msg);
	return r < 0 ? 1 : 0;
}
