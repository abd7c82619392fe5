/* A form as the API of another cloud has it: first as a request that nobody signed, then as if it were signed, with a
 * center behind it that has one of everything and sometimes refuses. The first line is the Authorization header. */
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/util.h"
#include "smc/smc_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
	char authorization[512];
	unsigned calls, refuse_every;
};

static const char *header(void *arg, const char *name)
{
	const struct input *in = arg;

	if (strcmp(name, "content-type") == 0)
		return "application/x-www-form-urlencoded";
	if (strcmp(name, "authorization") == 0)
		return *in->authorization ? in->authorization : NULL;
	return strcmp(name, "x-acs-content-sha256") == 0 ? "00" : "x";
}

static int secret(void *arg, const char *key, char ret[SMC_SECRET_MAX])
{
	snprintf(ret, SMC_SECRET_MAX, "s3cr3t");
	return *key == 'x' ? -ENOENT : 0;
}

static int nonce(void *arg, const char *key, const char *n, double expires)
{
	return *n == 'x' ? -EEXIST : 0;
}

static const char *const things[] = {
    "sources",
    "{\"id\":\"source-0123456789abcdef\",\"name\":\"a\",\"state\":\"available\",\"created\":1.5,\"tags\":{\"k\":\"v\"},"
    "\"inventory\":{"
    "\"disks\":[{\"name\":\"vda\",\"size\":5,\"partitions\":[{\"path\":\"/dev/"
    "vda1\",\"size\":4}]},{\"name\":\"vdb\",\"size\":7}],"
    "\"filesystems\":[{\"device\":\"/dev/vda1\",\"disks\":[\"vdb\"],\"mounts\":[{\"point\":\"/\"}]}]}}",
    "jobs",
    "{\"id\":\"job-0123456789abcdef\",\"source\":\"source-0123456789abcdef\",\"state\":\"running\",\"stage\":"
    "\"syncing\",\"tags\":{},"
    "\"parameters\":{\"compression\":\"auto\",\"incremental\":true},\"progress\":{\"percent\":40.5},\"error\":null}",
    "codes",
    "{\"id\":\"code-0123456789abcdef\",\"state\":\"expired\",\"uses\":1,\"used\":1,\"code\":\"c\"}",
    "workgroups",
    "{\"id\":\"workgroup-0123456789abcdef\",\"status\":\"in_progress\",\"warnings\":[{\"type\":\"in_error\","
    "\"sources\":[\"source-0\",3]}]}",
    "regions",
    "{\"id\":\"local\"}",
};

static int call(void *arg, const char *method, const char *path, const json_t *query, json_t *body, json_t **ret,
		struct smc_refusal *why)
{
	struct input *in = arg;
	const char *noun = path + strlen("/v1/");
	size_t n = strcspn(noun, "/");
	json_t *thing = NULL;

	must(str_starts(path, "/v1/") && !strpbrk(path, "?&#% "));
	if (++in->calls % in->refuse_every == 0) {
		*why = (struct smc_refusal){.status = in->calls % 2 ? 404 : 409, .code = "in_use", .message = "no"};
		return -1;
	}
	for (size_t i = 0; i < ARRAY_SIZE(things); i += 2)
		if (strlen(things[i]) == n && strncmp(things[i], noun, n) == 0)
			thing = json_loads(things[i + 1], 0, NULL);
	must(thing);
	*ret = noun[n] || strcmp(method, "GET") != 0 ? thing : json_pack("{s:[o], s:i}", "items", thing, "total", 1);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct input in = {.refuse_every = size % 7 + 2};
	const uint8_t *line = memchr(data, '\n', size);
	struct smc_service service = {&in, secret, nonce, call};
	struct smc_request r = {.method = "POST", .host = "h", .now = 1e9, .header = header, .header_arg = &in};
	struct smc c = {.service = &service, .in = &r, .answer = json_object()};
	struct smc_answer a;

	if (size > SMC_BODY_MAX || !line) {
		json_decref(c.answer);
		return 0;
	}
	snprintf(in.authorization, sizeof(in.authorization), "%.*s", (int)MIN((size_t)(line - data), 511u),
		 (const char *)data);
	r.body = (const char *)line + 1;
	r.len = size - (size_t)(line + 1 - data);
	smc_serve(&service, &r, &a);
	must(a.text && a.status >= 400);
	free(a.text);
	in.authorization[0] = '\0';
	if (smc_params_read(&c) == 0)
		must(smc_run(&c, smc_param(&c, "Action")) == 0 || c.fault.status >= 400);
	smc_params_release(&c);
	json_decref(c.answer);
	return 0;
}
