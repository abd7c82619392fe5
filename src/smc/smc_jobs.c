/* Replication jobs. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/util.h"
#include "smc/smc_int.h"

#define DAY             86400.0
#define REPLICATION_MAX 2048u
#define KBYTES_PER_MBIT 125u /* bandwidth_limit is in kB/s, rates here are in Mbit/s */

struct words {
	const char *ours, *theirs;
};
static const struct words statuses[] = {{"ready", "Ready"},      {"running", "Running"},   {"stopped", "Stopped"},
					{"in_error", "InError"}, {"finished", "Finished"}, {"waiting", "Waiting"},
					{"expired", "Expired"},  {"deleting", "Deleting"}, {NULL, NULL}};
static const struct words stages[] = {{"preparing", "Preparing"},
				      {"syncing", "Syncing"},
				      {"processing", "Processing"},
				      {"cleaning", "Cleaning"},
				      {NULL, NULL}};

static const char *theirs(const struct words *w, const char *ours)
{
	for (; w->ours; w++)
		if (strcmp(w->ours, ours) == 0)
			return w->theirs;
	return "";
}

static const char *ours(const struct words *w, const char *theirs)
{
	for (; w->ours; w++)
		if (strcasecmp(w->theirs, theirs) == 0)
			return w->ours;
	return NULL;
}

static int not_found(struct smc *c)
{
	if (c->refusal.status == 404)
		smc_fail(c, 404, "InvalidJobId.NotFound", "the specified JobId does not exist");
	return -1;
}

/* ---- what a job is to be ---- */

static const char *const no_counterpart[] = {
    "VpcId",        "VSwitchId",          "LaunchTemplateId",    "LaunchTemplateVersion", "InstanceRamRole",
    "ContainerTag", "ContainerNamespace", "ContainerRepository", "ResourceGroupId",       NULL};

static int check_kinds(struct smc *c)
{
	const char *target = smc_param(c, "TargetType");
	uint64_t type = 0, net = 0;

	if (smc_uint(c, "JobType", 0, 3, &type) < 0 || smc_uint(c, "NetMode", 0, 2, &net) < 0)
		return -1;
	if (type == 1)
		return smc_fail(c, 400, "InvalidOsMigrationType.NotMatched",
				"an operating system can't be exchanged for another here");
	if (type > 1)
		return smc_bad(c, "JobType", "only 0, the migration of a server, has a counterpart here");
	if (net == 1)
		return smc_bad(c, "NetMode", "must be 0 or 2");
	if (target && strcasecmp(target, "Image") != 0 && strcasecmp(target, "TargetInstance") != 0)
		return smc_bad(c, "TargetType", "only Image and TargetInstance have a counterpart here, not '%.32s'",
			       target);
	return smc_no_counterpart(c, no_counterpart);
}

/* TargetInstance and its InstanceId, of a new job. */
static int put_target(struct smc *c, json_t *body)
{
	const char *target = smc_param(c, "TargetType");
	char id[ID_MAX];

	if (!target || strcasecmp(target, "TargetInstance") != 0)
		return smc_param(c, "InstanceId") ? smc_bad(c, "InstanceId", "goes with TargetType=TargetInstance") : 0;
	if (!smc_param(c, "InstanceId"))
		return smc_fail(c, 400, "MissingParameter",
				"the parameter InstanceId is mandatory with TargetInstance");
	if (smc_id(c, "InstanceId", "instance", id) < 0)
		return -1;
	smc_put(body, "destination", "instance");
	smc_put(body, "instance", id);
	return 0;
}

/* Days from `since` on, a begun one counts whole. */
static int put_valid(struct smc *c, double since, json_t *body)
{
	double until = 0, days;
	int r = smc_time(c, "ValidTime", &until);

	if (r <= 0)
		return r;
	days = ceil((until - since) / DAY - 0.001);
	if (days < 7 || days > 90)
		return smc_bad(c, "ValidTime", "must be 7 to 90 days after the job's creation");
	json_object_set_new(body, "valid_days", json_integer((json_int_t)days));
	return 0;
}

static int put_start(struct smc *c, json_t *body)
{
	double start = 0;
	int r = smc_time(c, "ScheduledStartTime", &start);

	if (r <= 0)
		return r;
	smc_put(body, "execution", "migrate_later");
	json_object_set_new(body, "start_at", json_integer((json_int_t)start));
	return 0;
}

static int bad_replication(struct smc *c, const char *why)
{
	return smc_bad(c, "ReplicationParameters", "%s", why);
}

/* {"bandwidth_limit": kB/s, "compress_level": 0..10, "checksum": bool} */
static int put_replication(struct smc *c, json_t *parameters)
{
	const char *text = smc_param(c, "ReplicationParameters"), *key;
	_cleanup_json_ json_t *o = NULL;
	struct err e = {0};
	json_t *v;

	if (!text)
		return 0;
	if (jsn_parse(text, strlen(text), REPLICATION_MAX, &o, &e) < 0 || !json_is_object(o))
		return bad_replication(c, *e.msg ? e.msg : "must be a JSON object");
	json_object_foreach(o, key, v)
	{
		json_int_t n = json_integer_value(v);

		if (strcmp(key, "bandwidth_limit") == 0) {
			if (!json_is_integer(v) || n < 0 || n > 100000 * (json_int_t)KBYTES_PER_MBIT)
				return bad_replication(c, "bandwidth_limit must be a number of kB/s, 0 for none");
			n = (n + KBYTES_PER_MBIT - 1) / KBYTES_PER_MBIT;
			json_object_set_new(parameters, "rate_mbit", json_integer(n));
		} else if (strcmp(key, "compress_level") == 0) {
			json_object_set(parameters, "compression", v);
		} else if (strcmp(key, "checksum") == 0) {
			json_object_set(parameters, "checksum", v);
		} else {
			return bad_replication(c, "its members are bandwidth_limit, compress_level and checksum");
		}
	}
	return 0;
}

/* "2c4g": processors and GiB of the machine that converts. */
static int put_instance_type(struct smc *c, json_t *parameters)
{
	const char *s = smc_param(c, "InstanceType");
	unsigned long cpus, gib;
	char *end = NULL;

	if (!s)
		return 0;
	cpus = strtoul(s, &end, 10);
	if (end == s || *end != 'c' || cpus < 1 || cpus > 32)
		goto bad;
	s = end + 1;
	gib = strtoul(s, &end, 10);
	if (end == s || strcmp(end, "g") != 0 || gib < 1 || gib > 64)
		goto bad;
	json_object_set_new(parameters, "transition_cpus", json_integer((json_int_t)cpus));
	json_object_set_new(parameters, "transition_memory", json_integer((json_int_t)gib * 1024));
	return 0;
bad:
	return smc_bad(c, "InstanceType", "must be like 2c4g: processors and GiB, not '%.32s'",
		       smc_param(c, "InstanceType"));
}

static int put_license(struct smc *c, json_t *parameters)
{
	const char *s = smc_param(c, "LicenseType");

	if (!s)
		return 0;
	if (strcmp(s, "BYOL") != 0)
		return smc_bad(c, "LicenseType", "must be empty or BYOL, not '%.32s'", s);
	smc_put(parameters, "license", "byol");
	return 0;
}

/* Members that Create and Modify have in common. */
static int put_common(struct smc *c, json_t *body, json_t *parameters)
{
	static const struct words texts[] = {
	    {"name", "Name"}, {"description", "Description"}, {"image_name", "ImageName"}, {NULL, NULL}};
	uint64_t hours = 0, images = 0, net = 0;
	int given;

	for (const struct words *w = texts; w->ours; w++)
		if (smc_param(c, w->theirs))
			smc_put(body, w->ours, smc_param(c, w->theirs));
	given = smc_uint(c, "Frequency", 1, 168, &hours);
	if (given > 0)
		json_object_set_new(parameters, "interval_hours", json_integer((json_int_t)hours));
	if (given < 0)
		return -1;
	given = smc_uint(c, "MaxNumberOfImageToKeep", 1, 10, &images);
	if (given > 0)
		json_object_set_new(parameters, "max_images", json_integer((json_int_t)images));
	if (given < 0 || put_start(c, body) < 0 || put_replication(c, parameters) < 0 ||
	    put_instance_type(c, parameters) < 0 || put_license(c, parameters) < 0)
		return -1;
	given = smc_uint(c, "NetMode", 0, 2, &net);
	if (given > 0)
		smc_put(parameters, "network", net == 2 ? "private" : "public");
	return MIN(given, 0);
}

/* RunOnce=false: again and again, and then it must be said how often. */
static int put_run_once(struct smc *c, json_t *parameters)
{
	bool once = true;

	if (smc_bool(c, "RunOnce", &once) < 0)
		return -1;
	if (once && (smc_param(c, "Frequency") || smc_param(c, "MaxNumberOfImageToKeep")))
		return smc_bad(c, "Frequency", "goes with RunOnce=false");
	if (!once && (!smc_param(c, "Frequency") || !smc_param(c, "MaxNumberOfImageToKeep")))
		return smc_fail(c, 400, "MissingParameter",
				"the parameters Frequency and MaxNumberOfImageToKeep are mandatory with RunOnce=false");
	json_object_set_new(parameters, "incremental", json_boolean(!once));
	return 0;
}

/*
 * One of the center's regions. Where there is only one, the name that a cloud has for one of its own means that: a
 * script that comes with another endpoint comes with it.
 */
static int read_region(struct smc *c, json_t *o)
{
	_cleanup_json_ json_t *got = NULL;
	const char *want = smc_param(c, "RegionId");
	json_t *items, *r;
	size_t i;

	if (!want)
		return 0;
	if (smc_call(c, "GET", NULL, NULL, &got, "/v1/regions") < 0)
		return -1;
	items = json_object_get(got, "items");
	json_array_foreach(items, i, r) if (strcmp(smc_text(r, "id"), want) == 0)
	{
		smc_put(o, "region", want);
		return 1;
	}
	if (json_array_size(items) != 1 || strspn(want, "abcdefghijklmnopqrstuvwxyz0123456789-") != strlen(want))
		return smc_fail(c, 404, "InvalidRegionId.NotFound", "the specified RegionId '%.48s' does not exist",
				want);
	smc_put(o, "region", smc_text(json_array_get(items, 0), "id"));
	return 1;
}

/* Is there another job whose member says that? */
static int is_taken(struct smc *c, const char *member, const char *value, const char *but, bool *ret)
{
	_cleanup_json_ json_t *got = NULL;
	json_t *row;
	size_t i;

	*ret = false;
	if (!value)
		return 0;
	if (smc_call(c, "GET", json_pack("{s:s}", member, value), NULL, &got, "/v1/jobs") < 0)
		return -1;
	json_array_foreach(json_object_get(got, "items"), i, row) *ret = *ret || strcmp(smc_text(row, "id"), but) != 0;
	return 0;
}

/* Here names are for people and two jobs may share one; the service's are unique, so it is asked before. */
static int check_names(struct smc *c, const char *but)
{
	const char *name = smc_param(c, "Name"), *image = smc_param(c, "ImageName");
	bool taken, image_taken;

	if (is_taken(c, "name", name, but, &taken) < 0 || is_taken(c, "image_name", image, but, &image_taken) < 0)
		return -1;
	if (taken)
		return smc_fail(c, 400, "ReplicationJobName.Duplicate", "the name '%.128s' is in use", name);
	if (image_taken)
		return smc_fail(c, 400, "ImageName.UsedByReplicationJob", "the image name '%.128s' is another job's",
				image);
	return 0;
}

/* The job that the same request made before; *ret stays NULL when there is none. */
static int find_made(struct smc *c, json_t **ret)
{
	_cleanup_json_ json_t *got = NULL;
	const char *token = smc_param(c, "ClientToken");

	if (token && smc_call(c, "GET", json_pack("{s:s}", "client_token", token), NULL, &got, "/v1/jobs") < 0)
		return -1;
	*ret = json_incref(json_array_get(json_object_get(got, "items"), 0));
	return 0;
}

/* What only a new job has to keep: its names are free, its source is there, its end is counted from now. */
static int check_new(struct smc *c, const json_t *source, json_t *body)
{
	_cleanup_json_ json_t *made = NULL;

	if (find_made(c, &made) < 0)
		return -1;
	if (made)
		return put_valid(c, json_number_value(json_object_get(made, "created")), body);
	if (strcmp(smc_text(source, "state"), "unavailable") == 0)
		return smc_fail(c, 400, "SourceServerState.Invalid",
				"the source's state Unavailable is invalid; allowed only in Available");
	return put_valid(c, c->in->now, body) < 0 ? -1 : check_names(c, "");
}

static int read_source(struct smc *c, const char *id, json_t **ret)
{
	if (smc_call(c, "GET", NULL, NULL, ret, "/v1/sources/%s", id) == 0)
		return 0;
	if (c->refusal.status == 404)
		smc_fail(c, 404, "InvalidSourceId.NotFound", "the specified SourceId does not exist");
	return -1;
}

int smc_create_job(struct smc *c)
{
	_cleanup_json_ json_t *body = json_object(), *source = NULL, *tags = NULL, *got = NULL;
	json_t *parameters = json_object();
	char id[ID_MAX];

	json_object_set_new(body, "parameters", parameters);
	if (!smc_param(c, "RegionId"))
		return smc_fail(c, 400, "MissingParameter", "the parameter RegionId is mandatory for this action");
	if (smc_id(c, "SourceId", "source", id) < 0 || check_kinds(c) < 0 || put_target(c, body) < 0 ||
	    put_common(c, body, parameters) < 0 || put_run_once(c, parameters) < 0 || smc_tags(c, &tags) < 0 ||
	    read_region(c, body) < 0 || read_source(c, id, &source) < 0 || smc_check_plan(c, source) < 0 ||
	    check_new(c, source, body) < 0)
		return -1;
	smc_put(body, "source", id);
	if (tags)
		json_object_set(body, "tags", tags);
	if (smc_param(c, "ClientToken"))
		smc_put(body, "client_token", smc_param(c, "ClientToken"));
	if (smc_call(c, "POST", NULL, take_ptr(&body), &got, "/v1/jobs") == 0) {
		smc_put_id(c->answer, "JobId", json_object_get(got, "id"));
		return 0;
	}
	if (smc_was(c, "instance_in_use") || smc_was(c, "not_compatible"))
		return smc_fail(c, 400, "InvalidInstanceId.NotMatched", "%s", c->refusal.message);
	return smc_was(c, "source_in_use") ? smc_fail(c, 400, "SourceServerState.Invalid", "%s", c->refusal.message)
					   : -1;
}

/* What stands in the way of an event. */
static int wrong_state(struct smc *c, const char *id)
{
	_cleanup_json_ json_t *job = NULL;
	char why[ERR_MSG_MAX];

	if (c->refusal.status != 409)
		return not_found(c);
	snprintf(why, sizeof(why), "%s", c->refusal.message);
	if (smc_call(c, "GET", NULL, NULL, &job, "/v1/jobs/%s", id) < 0)
		return not_found(c);
	return smc_fail(c, 400,
			strcmp(smc_text(job, "state"), "running") == 0 ? "ReplicationJob.InvalidBusinessStatus"
								       : "ReplicationJob.InvalidStatus",
			"%.500s", why);
}

/* Where a job goes stays as it is. */
static int check_target(struct smc *c, const json_t *job)
{
	const char *target = smc_param(c, "TargetType"), *is = smc_text(job, "destination");
	char id[ID_MAX];

	if (target && (strcasecmp(target, "TargetInstance") == 0) != (strcmp(is, "instance") == 0))
		return smc_bad(c, "TargetType", "can't change; make another job");
	if (!smc_param(c, "InstanceId"))
		return 0;
	if (smc_id(c, "InstanceId", "instance", id) < 0)
		return -1;
	return strcmp(smc_text(job, "instance"), id) == 0 ? 0
							  : smc_bad(c, "InstanceId", "can't change; make another job");
}

int smc_modify_job(struct smc *c)
{
	_cleanup_json_ json_t *body = json_object(), *parameters = json_object(), *job = NULL, *source = NULL;
	char id[ID_MAX];

	if (smc_id(c, "JobId", "job", id) < 0 || check_kinds(c) < 0 || put_common(c, body, parameters) < 0)
		return -1;
	if (smc_call(c, "GET", NULL, NULL, &job, "/v1/jobs/%s", id) < 0)
		return not_found(c);
	if (check_target(c, job) < 0 || put_valid(c, json_number_value(json_object_get(job, "created")), body) < 0 ||
	    check_names(c, id) < 0)
		return -1;
	if ((smc_param_any(c, "SystemDisk") || smc_param_any(c, "DataDisk.")) &&
	    (read_source(c, smc_text(job, "source"), &source) < 0 || smc_check_plan(c, source) < 0))
		return -1;
	if (json_object_size(parameters))
		json_object_set(body, "parameters", parameters);
	return smc_call(c, "PATCH", NULL, take_ptr(&body), NULL, "/v1/jobs/%s", id) < 0 ? wrong_state(c, id) : 0;
}

static int event(struct smc *c, const char *verb, json_t *body)
{
	char id[ID_MAX];

	if (smc_id(c, "JobId", "job", id) < 0) {
		json_decref(body);
		return -1;
	}
	return smc_call(c, "POST", NULL, body, NULL, "/v1/jobs/%s/%s", id, verb) < 0 ? wrong_state(c, id) : 0;
}

int smc_start_job(struct smc *c)
{
	return event(c, "start", json_object());
}

int smc_stop_job(struct smc *c)
{
	return event(c, "stop", json_object());
}

int smc_cut_over_job(struct smc *c)
{
	bool sync = false;

	return smc_bool(c, "SyncData", &sync) < 0 ? -1 : event(c, "cutover", json_pack("{s:b}", "sync", sync));
}

int smc_delete_job(struct smc *c)
{
	char id[ID_MAX];

	if (smc_id(c, "JobId", "job", id) < 0)
		return -1;
	return smc_call(c, "DELETE", NULL, NULL, NULL, "/v1/jobs/%s", id) < 0 ? wrong_state(c, id) : 0;
}

/* ---- what a job is ---- */

/* Of the data, which is nearly all of the time: 0 before it, 99 behind it, 100 when all is over. */
static double progress_of(const json_t *job)
{
	const char *state = smc_text(job, "state"), *stage = smc_text(job, "stage");
	double percent = json_number_value(json_object_get(json_object_get(job, "progress"), "percent"));

	if (strcmp(state, "finished") == 0 || strcmp(state, "waiting") == 0)
		return 100;
	if (strcmp(stage, "preparing") == 0)
		return 0;
	return strcmp(stage, "processing") == 0 || strcmp(stage, "cleaning") == 0 ? 99 : MIN(floor(percent), 99.0);
}

static void put_parameters(json_t *o, const json_t *p)
{
	json_int_t cpus = json_integer_value(json_object_get(p, "transition_cpus"));
	json_int_t memory = json_integer_value(json_object_get(p, "transition_memory"));
	json_int_t rate = json_integer_value(json_object_get(p, "rate_mbit"));
	json_t *level = json_object_get(p, "compression");
	bool incremental = json_is_true(json_object_get(p, "incremental"));
	_cleanup_json_ json_t *r = json_pack("{s:I}", "bandwidth_limit", rate * KBYTES_PER_MBIT);
	_cleanup_free_ char *text = NULL;
	char type[64];

	if (json_is_integer(level)) /* "auto" has no number */
		json_object_set(r, "compress_level", level);
	json_object_set_new(r, "checksum", json_boolean(json_is_true(json_object_get(p, "checksum"))));
	text = jsn_text(r);
	smc_put(o, "ReplicationParameters", text ? text : "{}");
	snprintf(type, sizeof(type), "%lldc%lldg", (long long)cpus, (long long)(memory + 1023) / 1024);
	smc_put(o, "InstanceType", type);
	json_object_set_new(o, "RunOnce", json_boolean(!incremental));
	if (incremental) {
		json_object_set(o, "Frequency", json_object_get(p, "interval_hours"));
		json_object_set(o, "MaxNumberOfImageToKeep", json_object_get(p, "max_images"));
	}
	json_object_set_new(o, "NetMode", json_integer(strcmp(smc_text(p, "network"), "private") == 0 ? 2 : 0));
	smc_put(o, "LicenseType", strcmp(smc_text(p, "license"), "byol") == 0 ? "BYOL" : "");
}

/* What went away since the list was made is no fault of the request. */
static int gone(struct smc *c)
{
	if (c->refusal.status != 404)
		return -1;
	c->fault = (struct smc_fault){0};
	return 0;
}

static int put_runs(struct smc *c, json_t *o, const json_t *job)
{
	json_t *items = json_array(), *run;
	_cleanup_json_ json_t *got = NULL;
	size_t i;

	smc_put_list(o, "ReplicationJobRuns", "ReplicationJobRun", items);
	if (smc_call(c, "GET", json_pack("{s:s}", "limit", "20"), NULL, &got, "/v1/jobs/%s/runs", smc_text(job, "id")) <
	    0)
		return gone(c);
	json_array_foreach(json_object_get(got, "items"), i, run)
	{
		json_t *r = json_object();

		smc_put(r, "Type", strcmp(smc_text(run, "trigger"), "schedule") == 0 ? "Schedule" : "Manual");
		smc_put_time(r, "StartTime", json_object_get(run, "started"));
		smc_put_time(r, "EndTime", json_object_get(run, "ended"));
		smc_put_id(r, "ImageId", json_object_get(run, "image"));
		json_array_append_new(items, r);
	}
	return 0;
}

/* The source may be gone: a job that is over outlives it. */
static int put_source(struct smc *c, json_t *o, const json_t *job)
{
	_cleanup_json_ json_t *source = NULL;

	smc_put_id(o, "SourceId", json_object_get(job, "source"));
	if (smc_call(c, "GET", NULL, NULL, &source, "/v1/sources/%s", smc_text(job, "source")) < 0) {
		return gone(c);
	}
	smc_put_id(o, "WorkgroupId", json_object_get(source, "workgroup"));
	smc_put_disks(o, source);
	return 0;
}

static int add_job(struct smc *c, const json_t *job, json_t *items)
{
	const json_t *error = json_object_get(job, "error");
	const char *state = smc_text(job, "state");
	json_t *o = json_object();
	bool running = strcmp(state, "running") == 0;

	json_array_append_new(items, o);
	smc_put_id(o, "JobId", json_object_get(job, "id"));
	smc_put(o, "Name", smc_text(job, "name"));
	smc_put(o, "Description", smc_text(job, "description"));
	smc_put(o, "RegionId", smc_text(job, "region"));
	json_object_set_new(o, "JobType", json_integer(0));
	smc_put(o, "Status", theirs(statuses, state));
	smc_put(o, "BusinessStatus", running ? theirs(stages, smc_text(job, "stage")) : "");
	json_object_set_new(o, "Progress", json_real(progress_of(job)));
	smc_put(o, "StatusInfo",
		json_is_object(error) ? smc_text(error, "message") : smc_text(json_object_get(job, "step"), "text"));
	smc_put(o, "ErrorCode", smc_text(error, "code"));
	smc_put(o, "TargetType", strcmp(smc_text(job, "destination"), "instance") == 0 ? "TargetInstance" : "Image");
	if (*smc_text(job, "instance"))
		smc_put_id(o, "InstanceId", json_object_get(job, "instance"));
	smc_put(o, "ImageName", smc_text(job, "image_name"));
	smc_put_id(o, "ImageId", json_object_get(job, "image"));
	if (running)
		smc_put_id(o, "TransitionInstanceId", json_object_get(job, "run"));
	put_parameters(o, json_object_get(job, "parameters"));
	if (strcmp(state, "ready") == 0)
		smc_put_time(o, "ScheduledStartTime", json_object_get(job, "next_run"));
	smc_put_time(o, "ValidTime", json_object_get(job, "expires"));
	smc_put_time(o, "CreationTime", json_object_get(job, "created"));
	smc_put_time(o, "StartTime", json_object_get(job, "started"));
	smc_put_time(o, "EndTime", json_object_get(job, "finished"));
	smc_put_tags(o, json_object_get(job, "tags"));
	return put_source(c, o, job) < 0 ? -1 : put_runs(c, o, job);
}

static int read_word(struct smc *c, const char *name, const struct words *w, const char *member, json_t *query)
{
	const char *s = smc_param(c, name);

	if (!s)
		return 0;
	if (!ours(w, s))
		return smc_bad(c, name, "'%.32s' is none", s);
	smc_put(query, member, ours(w, s));
	return 0;
}

/* What nothing here can have. */
static int read_none(struct smc *c, bool *ret)
{
	uint64_t type = 0;

	if (smc_uint(c, "JobType", 0, 3, &type) < 0)
		return -1;
	*ret = type != 0 || smc_param(c, "ResourceGroupId");
	return 0;
}

/* Jobs onto one instance; what is no instance's id has none. */
static int read_instance(struct smc *c, json_t *query, bool *ret_none)
{
	char id[ID_MAX];

	if (!smc_param_any(c, "InstanceId."))
		return 0;
	if (smc_param(c, "InstanceId.2"))
		return smc_bad(c, "InstanceId", "one instance can be asked for at a time");
	if (smc_param(c, "InstanceId.1") && smc_id(c, "InstanceId.1", "instance", id) == 0) {
		smc_put(query, "instance", id);
		return 0;
	}
	c->fault = (struct smc_fault){0};
	*ret_none = true;
	return 0;
}

static bool is_among(const json_t *ids, const char *id)
{
	json_t *one;
	size_t i;

	json_array_foreach(ids, i, one) if (strcmp(json_string_value(one), id) == 0) return true;
	return false;
}

/* Both lists at once: of the jobs of the one those that are of sources of the other, a page of them; how many there
 * are. */
static uint64_t keep_sources(json_t *rows, const json_t *sources, const struct smc_page *p)
{
	uint64_t total, from = (p->number - 1) * p->size;

	for (size_t i = json_array_size(rows); i-- > 0;)
		if (!is_among(sources, smc_text(json_array_get(rows, i), "source")))
			json_array_remove(rows, i);
	total = json_array_size(rows);
	for (size_t i = json_array_size(rows); i-- > 0;)
		if (i < from || i >= from + p->size)
			json_array_remove(rows, i);
	return total;
}

int smc_describe_jobs(struct smc *c)
{
	_cleanup_json_ json_t *query = json_object(), *jobs = NULL, *sources = NULL, *rows = NULL;
	json_t *items = json_array(), *row;
	struct smc_page p;
	const struct smc_page all = {1, SMC_IDS_MAX};
	uint64_t total = 0;
	bool none = false, both;
	size_t i;

	smc_put_list(c->answer, "ReplicationJobs", "ReplicationJob", items);
	if (smc_param(c, "Name"))
		smc_put(query, "name", smc_param(c, "Name"));
	if (smc_page(c, 10, &p) < 0 || smc_ids(c, "JobId", "job", &jobs) < 0 ||
	    smc_ids(c, "SourceId", "source", &sources) < 0 || read_word(c, "Status", statuses, "state", query) < 0 ||
	    read_word(c, "BusinessStatus", stages, "stage", query) < 0 || read_none(c, &none) < 0 ||
	    read_instance(c, query, &none) < 0 || read_region(c, query) < 0 || smc_tag_filter(c, query) < 0)
		return -1;
	both = jobs && sources;
	if (!none && smc_list(c, "/v1/jobs", take_ptr(&query), jobs ? take_ptr(&jobs) : json_incref(sources),
			      both || !sources ? NULL : "source", both ? &all : &p, &rows, &total) < 0)
		return -1;
	if (both)
		total = keep_sources(rows, sources, &p);
	json_array_foreach(rows, i, row) if (add_job(c, row, items) < 0) return -1;
	smc_put_page(c, &p, total);
	return 0;
}
