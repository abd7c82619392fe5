/*
 * The witness in a test boot: a service of the copied system that says how far it came. Event lines on its port:
 * {"event":"started"},
 * {"event":"state",...} at every change, {"event":"checking"} before the checks that people gave, and one
 * {"event":"report",...} when systemd has finished starting, or ended in its emergency or rescue shell.
 *
 * What it is to do lies beside it: {"checks":[{"name","timeout"}],"expect":{"units":[...],"listening":["tcp/22"]}}.
 * What is expected is waited for a while before the report is made, since services are called started before they are.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/util.h"
#include "survey/survey.h"
#include "transition/port.h"
#include "transition/transition.h"
#include "transition/transition_int.h"

#define PORT_NAME            "org.replant.probe.0"
#define OUTPUT_MAX           (256u << 10)
#define PROBE_GIVE_UP        3600.0
#define PROBE_ASKS           "/usr/lib/replant/probe.json"
#define ASKS_MAX             (1u << 20)
#define SETTLE_SECONDS       60.0
#define SETTLE_SECONDS_SHELL 15.0

static double probe_uptime(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_BOOTTIME, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* First word of what a program says, whatever its status: systemctl's status is the state once more. */
static void probe_systemctl(const char *verb, const char *unit, char *out, size_t size)
{
	const char *const argv[] = {"/bin/sh", "-c", "systemctl \"$1\" $2 2>/dev/null || true", "sh", verb, unit, NULL};
	_cleanup_free_ char *text = NULL;

	snprintf(out, size, "unknown");
	if (proc_run(argv, OUTPUT_MAX, &text, NULL) < 0)
		return;
	text[strcspn(text, "\n")] = '\0';
	if (*text)
		snprintf(out, size, "%s", text);
}

/* "starting", "running", "degraded", "emergency", "rescue" ... */
static void probe_state(char *out, size_t size)
{
	char unit[64];

	probe_systemctl("is-active", "emergency.target", unit, sizeof(unit));
	if (strcmp(unit, "active") == 0) {
		snprintf(out, size, "emergency");
		return;
	}
	probe_systemctl("is-active", "rescue.target", unit, sizeof(unit));
	if (strcmp(unit, "active") == 0) {
		snprintf(out, size, "rescue");
		return;
	}
	probe_systemctl("is-system-running", "", out, size);
}

/* Every first word of the lines a program says. */
static json_t *probe_first_words(const char *const argv[])
{
	_cleanup_free_ char *text = NULL;
	json_t *list = json_array();
	char *save = NULL;

	if (proc_run(argv, OUTPUT_MAX, &text, NULL) < 0)
		return list;
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		line += strspn(line, " *");
		line[strcspn(line, " ")] = '\0';
		if (*line)
			json_array_append_new(list, json_string(line));
	}
	return list;
}

static json_t *probe_failed_units(void)
{
	const char *const argv[] = {"systemctl", "list-units", "--failed", "--no-legend",
				    "--plain",   "--no-pager", NULL};

	return probe_first_words(argv);
}

/* Those of devices. */
static json_t *probe_mounts(const json_t *survey)
{
	json_t *list = json_array(), *o;
	size_t i;

	json_array_foreach(json_object_get(survey, "mounts"), i,
			   o) if (*json_string_value(json_object_get(o, "source")) == '/') json_array_append(list, o);
	return list;
}

/* What fstab asks for and the kernel doesn't show: mount points and swap, except what may be missing. */
static json_t *probe_missing_mounts(void)
{
	const char *const argv[] = {
	    "/bin/sh", "-c",
	    "while read -r spec point type options rest || [ -n \"$spec\" ]; do\n"
	    "case $spec in ''|\\#*) continue ;; esac\n"
	    "case ,$options, in *,noauto,*|*,nofail,*) continue ;; esac\n"
	    "if [ \"$type\" = swap ]; then [ \"$(wc -l </proc/swaps)\" -gt 1 ] || echo swap; continue; fi\n"
	    "case $point in none|swap) continue ;; esac\n"
	    "[ \"$point\" = / ] || point=${point%/}\n"
	    "grep -qF \" $point \" /proc/self/mounts || echo \"$point\"\n"
	    "done </etc/fstab",
	    NULL};

	return probe_first_words(argv);
}

static json_t *probe_addresses(void)
{
	json_t *list = json_array();
	struct ifaddrs *all = NULL;

	if (getifaddrs(&all) < 0)
		return list;
	for (struct ifaddrs *a = all; a; a = a->ifa_next) {
		char text[INET6_ADDRSTRLEN];
		const void *raw;

		if (!a->ifa_addr || a->ifa_flags & IFF_LOOPBACK)
			continue;
		if (a->ifa_addr->sa_family == AF_INET)
			raw = &((struct sockaddr_in *)(void *)a->ifa_addr)->sin_addr;
		else if (a->ifa_addr->sa_family == AF_INET6)
			raw = &((struct sockaddr_in6 *)(void *)a->ifa_addr)->sin6_addr;
		else
			continue;
		/* A link-local address says nothing about being reachable. */
		if (a->ifa_addr->sa_family == AF_INET6 && IN6_IS_ADDR_LINKLOCAL((const struct in6_addr *)raw))
			continue;
		if (inet_ntop(a->ifa_addr->sa_family, raw, text, sizeof(text)))
			json_array_append_new(list, json_pack("{s:s, s:s}", "interface", a->ifa_name, "address", text));
	}
	freeifaddrs(all);
	return list;
}

/* TCP ports. */
static json_t *probe_ports(const json_t *survey)
{
	json_t *list = json_array(), *o;
	size_t i;

	json_array_foreach(json_object_get(survey, "listening"), i,
			   o) if (strcmp(json_string_value(json_object_get(o, "proto")), "tcp") == 0)
	    json_array_append(list, json_object_get(o, "port"));
	return list;
}

static json_t *probe_report(const char *state)
{
	json_t *survey = survey_take("");
	char host[256] = "";
	struct utsname u;

	gethostname(host, sizeof(host) - 1);
	uname(&u);
	return json_pack("{s:s, s:s, s:f, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o}", "event", "report", "state", state,
			 "boot_seconds", probe_uptime(), "kernel", u.release, "hostname", host, "failed_units",
			 probe_failed_units(), "mounts", probe_mounts(survey), "missing_mounts", probe_missing_mounts(),
			 "addresses", probe_addresses(), "listening", probe_ports(survey), "survey", survey);
}

static bool probe_is_up(const char *state)
{
	return strcmp(state, "running") == 0 || strcmp(state, "degraded") == 0;
}

static bool probe_is_final(const char *state)
{
	static const char *const finals[] = {"running", "degraded", "emergency", "rescue", "maintenance"};

	for (size_t i = 0; i < ARRAY_SIZE(finals); i++)
		if (strcmp(state, finals[i]) == 0)
			return true;
	return false;
}

static int probe_send(int port, json_t *event, struct err *e)
{
	int r = event ? port_write(port, event, e) : err_nomem(e);

	json_decref(event);
	return r;
}

/* Running, or failed: then nothing more will come. */
static bool probe_has_unit(const json_t *survey, const char *name)
{
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(survey, "units"), i, o)
	{
		const char *state = json_string_value(json_object_get(o, "state"));

		if (strcmp(json_string_value(json_object_get(o, "name")), name) == 0)
			return strcmp(state, "running") == 0 || strcmp(state, "failed") == 0;
	}
	return false;
}

static bool probe_has_port(const json_t *survey, const char *text)
{
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(survey, "listening"), i, o)
	{
		char port[32];

		snprintf(port, sizeof(port), "%s/%d", json_string_value(json_object_get(o, "proto")),
			 (int)json_integer_value(json_object_get(o, "port")));
		if (strcmp(port, text) == 0)
			return true;
	}
	return false;
}

static bool probe_is_settled(const json_t *report, const json_t *asks)
{
	const json_t *expect = json_object_get(asks, "expect"), *survey = json_object_get(report, "survey");
	json_t *o;
	size_t i;

	if (!json_array_size(json_object_get(report, "addresses")))
		return false;
	json_array_foreach(json_object_get(expect, "units"), i,
			   o) if (json_is_string(o) && !probe_has_unit(survey, json_string_value(o))) return false;
	json_array_foreach(json_object_get(expect, "listening"), i,
			   o) if (json_is_string(o) && !probe_has_port(survey, json_string_value(o))) return false;
	return true;
}

/* Services are called started before they listen, and DHCP may answer a little later, too: what is to be there is
 * waited for, within reason. */
static json_t *probe_final_report(const char *state, const json_t *asks)
{
	double end = id_now_mono() + (probe_is_up(state) ? SETTLE_SECONDS : SETTLE_SECONDS_SHELL);

	for (;;) {
		json_t *report = probe_report(state);

		if (!report || probe_is_settled(report, asks) || id_now_mono() > end)
			return report;
		json_decref(report);
		sleep(1);
	}
}

/* The checks of a system that is up; what they did may be seen in the report. */
static int probe_finish(int port, const char *state, const json_t *asks, struct err *e)
{
	json_t *report = probe_final_report(state, asks), *wanted = json_object_get(asks, "checks"), *checks = NULL;
	int r = report ? 0 : err_nomem(e);

	if (r == 0 && json_array_size(wanted) && probe_is_up(state)) {
		r = probe_send(port, json_pack("{s:s}", "event", "checking"), e);
		if (r == 0)
			checks = probe_run_checks(wanted);
	}
	if (r < 0) {
		json_decref(report);
		return r;
	}
	if (checks)
		json_object_set_new(report, "checks", checks);
	return probe_send(port, report, e);
}

static int probe_watch(int port, const json_t *asks, struct err *e)
{
	char state[64] = "", last[64] = "";
	int r = probe_send(port, json_pack("{s:s, s:f}", "event", "started", "boot_seconds", probe_uptime()), e);

	while (r == 0 && probe_uptime() < PROBE_GIVE_UP) {
		probe_state(state, sizeof(state));
		if (strcmp(state, last) != 0)
			r = probe_send(port,
				       json_pack("{s:s, s:s, s:f}", "event", "state", "state", state, "boot_seconds",
						 probe_uptime()),
				       e);
		snprintf(last, sizeof(last), "%s", state);
		if (probe_is_final(state))
			return r ?: probe_finish(port, state, asks, e);
		sleep(1);
	}
	return r;
}

static json_t *probe_asks(void)
{
	_cleanup_free_ char *text = NULL;
	json_t *o = NULL;
	size_t n;

	if (io_read_file(PROBE_ASKS, ASKS_MAX, &text, &n, NULL) == 0)
		jsn_parse(text, n, ASKS_MAX, &o, NULL);
	return o;
}

int transition_probe(void *options, int argc, char **argv)
{
	_cleanup_json_ json_t *asks = probe_asks();
	_cleanup_close_ int port = -1;
	struct err e = {0};
	int r = -ENODEV;

	setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
	/* The driver of the port may come later than we do. */
	for (int i = 0; r < 0 && i < 60; i++) {
		r = port_open(PORT_NAME, &port, &e);
		if (r < 0)
			sleep(1);
	}
	if (r == 0)
		r = probe_watch(port, asks, &e);
	if (r < 0)
		log_error("%s", e.msg);
	return r < 0 ? 1 : 0;
}
