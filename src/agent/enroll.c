/* Makes this server a source of a center: proves the center by the code's fingerprint, us by its secret, and installs.
 */
#include <errno.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"
#include "version.h"

#define ENROLL_CODE_MAX 512

/* From the option, REPLANT_CODE or, asked for with "-", the first line of stdin: argv is for all to see. */
static int enroll_read_code(const char *given, char out[ENROLL_CODE_MAX], struct err *e)
{
	const char *env = getenv("REPLANT_CODE");

	if (given && strcmp(given, "-") != 0) {
		if (strlen(given) >= ENROLL_CODE_MAX)
			return err_set(e, -EINVAL, "this activation code is too long; copy it again");
		strcpy(out, given);
	} else if (!given && env && strlen(env) < ENROLL_CODE_MAX) {
		strcpy(out, env);
	} else {
		if (!given && isatty(STDIN_FILENO))
			fprintf(stderr, "Activation code: ");
		if (!fgets(out, ENROLL_CODE_MAX, stdin))
			return err_set(e, -EINVAL,
				       "no activation code given (use --code, REPLANT_CODE or standard input)");
		out[strcspn(out, "\r\n")] = '\0';
	}
	unsetenv("REPLANT_CODE"); /* not for our children */
	return 0;
}

static json_t *enroll_request(const struct conf_code *code, const json_t *inventory)
{
	return json_pack("{s:s, s:s, s:O, s:O, s:s, s:O}", "code_id", code->id, "code_secret", code->secret, "hostname",
			 json_object_get(inventory, "hostname"), "machine_id", json_object_get(inventory, "machine_id"),
			 "agent_version", REPLANT_VERSION, "inventory", inventory);
}

static int enroll_answer(const json_t *o, struct conf *c, struct err *e)
{
	const char *source = NULL, *secret = NULL;

	if (jsn_get_str(o, "source", true, sizeof(c->source) - 1, &source, e) < 0 ||
	    jsn_get_str(o, "secret", true, sizeof(c->secret) - 1, &secret, e) < 0)
		return err_prefix(e, "answer of the center");
	if (!id_is("source", source))
		return err_set(e, -EPROTO, "the center's answer has no identifier of a source");
	for (const char *p = secret; *p; p++)
		if ((unsigned char)*p <= ' ' || (unsigned char)*p > '~')
			return err_set(e, -EPROTO, "the center's answer has a secret of strange characters");
	strcpy(c->source, source);
	strcpy(c->secret, secret);
	return 0;
}

static int enroll_post(const struct conf_code *code, const json_t *inventory, struct conf *c, struct err *e)
{
	_cleanup_(jsn_decrefp) json_t *request = enroll_request(code, inventory), *answer = NULL;
	struct http *h = NULL;
	int status = 0, r;

	if (!request)
		return err_nomem(e);
	r = http_new(&c->url, NULL, code->ca, &h, e);
	if (r < 0)
		return r;
	r = http_call(h, "/v1/agent/enroll", NULL, request, &status, &answer, e);
	if (r == 0)
		r = status >= 400 ? http_refusal(status, answer, e) : enroll_answer(answer, c, e);
	if (r == 0) {
		c->ca_pem = http_ca_pem(h);
		r = c->ca_pem ? 0 : err_nomem(e);
	}
	http_free(h);
	return r;
}

/* Does the center still know us by what an earlier enrolment left? Then there is nothing to enrol. */
static bool enroll_still_known(const char *dir, const struct conf_code *code, struct conf *ret)
{
	_cleanup_json_ json_t *request = NULL, *answer = NULL;
	_cleanup_(conf_release) struct conf c = {0};
	struct http *h = NULL;
	int status = 0;
	char boot[64];

	if (conf_load(dir, &c, NULL) < 0 || strcmp(c.center, ret->center) != 0 || !http_is_ca(c.ca_pem, code->ca) ||
	    http_new(&c.url, c.ca_pem, NULL, &h, NULL) < 0)
		return false;
	request = json_pack("{s:s, s:s}", "agent_version", REPLANT_VERSION, "boot_id",
			    sysinfo_line("/proc/sys/kernel/random/boot_id", boot, sizeof(boot)));
	if (!request || http_call(h, "/v1/agent/sync", c.secret, request, &status, &answer, NULL) < 0)
		status = 0;
	http_free(h);
	if (status != 200)
		return false;
	strcpy(ret->source, c.source);
	strcpy(ret->secret, c.secret);
	ret->ca_pem = take_ptr(&c.ca_pem);
	return true;
}

/* --disk given: only these; not given: what an earlier enrolment had asked for. */
static int enroll_disks(const struct agent_options *o, struct conf *c, struct err *e)
{
	_cleanup_(conf_release) struct conf old = {0};
	int r = 0;

	for (size_t i = 0; r == 0 && i < o->disks.n; i++)
		r = conf_add_disk(c, o->disks.v[i], e);
	if (!o->disks.n && conf_load(o->config_dir, &old, NULL) == 0)
		for (size_t i = 0; r == 0 && i < old.ndisks; i++)
			r = conf_add_disk(c, old.disks[i], e);
	return r;
}

static void enroll_center_name(const struct conf_url *u, char out[300])
{
	bool v6 = strchr(u->host, ':');

	snprintf(out, 300, "https://%s%s%s:%u", v6 ? "[" : "", u->host, v6 ? "]" : "", u->port);
}

static int enroll_install(const struct agent_options *o, struct err *e)
{
	if (o->no_service) {
		printf("not installed as a service: run it with '%s%s%s run'\n", "replant-agent",
		       strcmp(o->config_dir, AGENT_CONFIG_DIR) ? " --config " : "",
		       strcmp(o->config_dir, AGENT_CONFIG_DIR) ? o->config_dir : "");
		return 0;
	}
	if (service_install(e) < 0)
		return e->code;
	if (service_systemd())
		printf("the service %s is running\n", AGENT_UNIT);
	else
		printf("systemd is not running here: start it with '%s run' (systemd will at the next boot)\n",
		       AGENT_PROGRAM);
	return 0;
}

static int enroll(const struct agent_options *o, struct err *e)
{
	_cleanup_(conf_release) struct conf c = {0};
	_cleanup_json_ json_t *inventory = NULL;
	const char *center = o->center ? o->center : getenv("REPLANT_URL");
	char text[ENROLL_CODE_MAX];
	struct conf_code code;
	int r;

	if (geteuid() != 0)
		return err_set(e, -EPERM, "enrolling needs root: the agent reads disks and freezes filesystems");
	if (!center)
		return err_set(e, -EINVAL, "which center? (use --center or REPLANT_URL)");
	r = conf_url_parse(center, &c.url, e);
	if (r == 0)
		r = enroll_read_code(o->code, text, e);
	if (r == 0)
		r = conf_code_parse(text, &code, e);
	OPENSSL_cleanse(text, sizeof(text));
	if (r < 0)
		return r;
	enroll_center_name(&c.url, c.center);
	r = enroll_disks(o, &c, e);
	if (r == 0)
		r = discover_inventory((const char *const *)c.disks, c.ndisks, &inventory, e);
	if (r < 0)
		return r;
	if (!*json_string_value(json_object_get(inventory, "machine_id")))
		return err_set(
		    e, -ENOENT,
		    "this server has no machine id (no /etc/machine-id; 'systemd-machine-id-setup' makes one)");
	if (enroll_still_known(o->config_dir, &code, &c)) {
		r = conf_store(o->config_dir, &c, e);
		if (r < 0)
			return r;
		printf("already enrolled at %s as %s\n", c.center, c.source);
		return enroll_install(o, e);
	}
	r = enroll_post(&code, inventory, &c, e);
	OPENSSL_cleanse(&code, sizeof(code));
	if (r == 0)
		r = conf_store(o->config_dir, &c, e);
	if (r < 0)
		return r;
	printf("enrolled at %s as %s\n", c.center, c.source);
	return enroll_install(o, e);
}

int agent_enroll(void *options, int argc, char **argv)
{
	struct err e = {0};

	if (enroll(options, &e) == 0)
		return 0;
	fprintf(stderr, "replant-agent: %s\n", e.msg);
	switch (e.code) {
	case -EBUSY:
	case -ETIMEDOUT:
	case -ECONNREFUSED:
	case -ECONNRESET:
	case -EHOSTUNREACH:
	case -ENETUNREACH:
	case -EREMOTEIO:
		return 75;
	default:
		return 1;
	}
}
