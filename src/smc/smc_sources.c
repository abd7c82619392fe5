/* Migration sources. */
#include <string.h>

#include "base/util.h"
#include "smc/smc_int.h"

#define GIB    (UINT64_C(1) << 30)
#define DRIVER "SMT" /* the name by which callers know the parameters rate, compression and checksum */

uint64_t smc_gib(uint64_t bytes)
{
	return bytes / GIB + (bytes % GIB != 0);
}

/* Where the filesystem on `device` is mounted, "" when it isn't. */
static const char *mount_of(const json_t *inventory, const char *device)
{
	json_t *fs;
	size_t i;

	json_array_foreach(json_object_get(inventory, "filesystems"), i,
			   fs) if (*device && strcmp(smc_text(fs, "device"), device) ==
						  0) return smc_text(json_array_get(json_object_get(fs, "mounts"), 0),
								     "point");
	return "";
}

static bool on_disk(const json_t *fs, const char *name)
{
	json_t *disk;
	size_t i;

	json_array_foreach(json_object_get(fs, "disks"), i,
			   disk) if (strcmp(json_string_value(disk) ?: "", name) == 0) return true;
	return false;
}

/* The disk that the root filesystem is on. */
static bool is_system(const json_t *inventory, const char *name)
{
	json_t *fs;
	size_t i;

	json_array_foreach(json_object_get(inventory, "filesystems"), i,
			   fs) if (strcmp(smc_text(json_array_get(json_object_get(fs, "mounts"), 0), "point"), "/") ==
				       0 &&
				   on_disk(fs, name)) return true;
	return false;
}

size_t smc_disks(const json_t *source, struct smc_disk ret[SMC_DISKS_MAX])
{
	const json_t *inventory = json_object_get(source, "inventory");
	json_t *disk;
	size_t i, n = 0, system = 0;
	bool found = false;

	json_array_foreach(json_object_get(inventory, "disks"), i, disk)
	{
		if (n == SMC_DISKS_MAX)
			break;
		ret[n] = (struct smc_disk){(uint64_t)json_integer_value(json_object_get(disk, "size")), disk,
					   smc_text(disk, "name")};
		if (!found && is_system(inventory, ret[n].name)) {
			system = n;
			found = true;
		}
		n++;
	}
	if (n && system) {
		struct smc_disk first = ret[system];

		memmove(ret + 1, ret, system * sizeof(*ret));
		ret[0] = first;
	}
	return n;
}

/* Device, Path, SizeBytes, CanBlock, Need of each partition. */
static json_t *parts(const json_t *inventory, const json_t *disk, size_t index)
{
	json_t *out = json_array(), *p;
	size_t i;

	json_array_foreach(json_object_get(disk, "partitions"), i, p)
	{
		char device[24];

		snprintf(device, sizeof(device), "%zu_%zu", index, i);
		json_array_append_new(out, json_pack("{s:s, s:s, s:I, s:b, s:b}", "Device", device, "Path",
						     mount_of(inventory, smc_text(p, "path")), "SizeBytes",
						     json_integer_value(json_object_get(p, "size")), "CanBlock", 1,
						     "Need", 1));
	}
	return out;
}

static const char *kind_of(const char *point)
{
	if (strcmp(point, "/") == 0)
		return "System";
	return strcmp(point, "/boot") == 0 || str_starts(point, "/boot/") ? "Boot" : "Normal";
}

/* The newer view: what is mounted, whether from partitions or volumes. */
static json_t *mounts(const json_t *inventory, const struct smc_disk *d)
{
	json_t *out = json_array(), *fs, *p = json_array_get(json_object_get(d->disk, "partitions"), 0);
	json_t *o = json_object();
	size_t i;

	json_array_foreach(json_object_get(inventory, "filesystems"), i, fs)
	{
		const char *point = smc_text(json_array_get(json_object_get(fs, "mounts"), 0), "point");

		if (*point && on_disk(fs, d->name))
			json_array_append_new(out, json_pack("{s:s, s:I, s:b, s:s}", "Path", point, "SizeBytes",
							     json_integer_value(json_object_get(fs, "size")),
							     "CanBlock", 1, "Type", kind_of(point)));
	}
	json_object_set_new(o, "Size", json_integer((json_int_t)smc_gib(d->size)));
	json_object_set_new(o, "Offset", json_integer(json_integer_value(json_object_get(p, "start"))));
	smc_put_list(o, "Parts", "Part", out);
	return o;
}

void smc_put_disks(json_t *o, const json_t *source)
{
	const json_t *inventory = json_object_get(source, "inventory");
	json_t *data = json_array(), *newer = json_object(), *newer_data = json_array();
	struct smc_disk disks[SMC_DISKS_MAX];
	size_t n = smc_disks(source, disks);

	for (size_t i = 1; i < n; i++) {
		json_t *d = json_pack("{s:i, s:s, s:I}", "Index", (int)i, "Path", smc_text(disks[i].disk, "path"),
				      "Size", (json_int_t)smc_gib(disks[i].size));

		smc_put_list(d, "Parts", "Part", parts(inventory, disks[i].disk, i));
		json_array_append_new(data, d);
		json_array_append_new(newer_data, mounts(inventory, &disks[i]));
	}
	smc_put_list(o, "DataDisks", "DataDisk", data);
	smc_put_list(newer, "Data", "Data", newer_data);
	if (n) {
		json_object_set_new(o, "SystemDiskSize", json_integer((json_int_t)smc_gib(disks[0].size)));
		smc_put_list(o, "SystemDiskParts", "SystemDiskPart", parts(inventory, disks[0].disk, 0));
		json_object_set_new(newer, "System", mounts(inventory, &disks[0]));
	}
	json_object_set_new(o, "Disks", newer);
}

/* ID of os-release(5). */
static const char *platform_of(const char *id)
{
	static const struct {
		const char *id, *platform;
	} known[] = {{"debian", "Debian"},
		     {"ubuntu", "Ubuntu"},
		     {"centos", "CentOS"},
		     {"rhel", "RedHat"},
		     {"sles", "SUSE"},
		     {"sled", "SUSE"},
		     {"opensuse", "OpenSUSE"},
		     {"opensuse-leap", "OpenSUSE"},
		     {"windows", "Windows Server"}};

	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		if (strcmp(known[i].id, id) == 0)
			return known[i].platform;
	return "Others Linux";
}

static void put_gib(json_t *o, const char *name, const json_t *bytes)
{
	char buf[24];

	if (!json_is_integer(bytes))
		return;
	snprintf(buf, sizeof(buf), "%.2f", (double)json_integer_value(bytes) / (double)GIB);
	smc_put(o, name, buf);
}

/* The first address of the family that other machines can have, "" for none. */
static const char *address_of(const json_t *inventory, const char *family)
{
	json_t *card, *a;
	size_t i, k;

	json_array_foreach(json_object_get(json_object_get(inventory, "network"), "interfaces"), i, card)
	    json_array_foreach(json_object_get(card, "addresses"), k, a)
	{
		const char *text = smc_text(a, "address");

		if (strcmp(smc_text(a, "family"), family) == 0 && !str_starts(text, "127.") &&
		    strcmp(text, "::1") != 0 && !str_starts(text, "fe80:"))
			return text;
	}
	return "";
}

/* A JSON text with texts in it, as the service has it. */
static json_t *system_info(const json_t *source)
{
	const json_t *inventory = json_object_get(source, "inventory"), *memory = json_object_get(inventory, "memory");
	_cleanup_json_ json_t *o = json_object();
	_cleanup_free_ char *text = NULL;
	char cores[24];

	snprintf(cores, sizeof(cores), "%lld",
		 (long long)json_integer_value(json_object_get(json_object_get(inventory, "cpu"), "count")));
	smc_put(o, "agent_mode", "daemon");
	smc_put(o, "agent_type", "replant");
	smc_put(o, "client_type", "linux");
	smc_put(o, "hostname", smc_text(source, "hostname"));
	smc_put(o, "ipv4", address_of(inventory, "inet"));
	smc_put(o, "ipv6", address_of(inventory, "inet6"));
	smc_put(o, "cores", cores);
	put_gib(o, "memory", json_object_get(memory, "total"));
	smc_put(o, "kernel", smc_text(inventory, "kernel"));
	text = jsn_text(o);
	return json_string(text ? text : "{}");
}

static const struct {
	const char *ours, *theirs;
} states[] = {{"available", "Available"}, {"in_use", "InUse"}, {"unavailable", "Unavailable"}};

/* The newest job of a source. */
static int put_last_job(struct smc *c, json_t *o, const json_t *id)
{
	_cleanup_json_ json_t *got = NULL;

	if (smc_call(c, "GET", json_pack("{s:O, s:s}", "source", id, "limit", "1"), NULL, &got, "/v1/jobs") < 0)
		return -1;
	smc_put_id(o, "JobId", json_object_get(json_array_get(json_object_get(got, "items"), 0), "id"));
	return 0;
}

static int add_source(struct smc *c, const json_t *source, json_t *items)
{
	const json_t *inventory = json_object_get(source, "inventory");
	const char *state = smc_text(source, "state");
	json_t *o = json_object();

	json_array_append_new(items, o);
	smc_put_id(o, "SourceId", json_object_get(source, "id"));
	smc_put(o, "Name", smc_text(source, "name"));
	smc_put(o, "Description", smc_text(source, "description"));
	for (size_t i = 0; i < ARRAY_SIZE(states); i++)
		if (strcmp(states[i].ours, state) == 0)
			smc_put(o, "State", states[i].theirs);
	smc_put(o, "ErrorCode", strcmp(state, "unavailable") == 0 ? "SourceServer.Offline" : "");
	smc_put(o, "StatusInfo", "");
	smc_put(o, "AgentVersion", smc_text(source, "agent_version"));
	smc_put(o, "Platform", platform_of(smc_text(json_object_get(source, "os"), "id")));
	smc_put(o, "Architecture", smc_text(inventory, "arch"));
	smc_put(o, "ReplicationDriver", DRIVER);
	json_object_set_new(o, "SystemInfo", system_info(source));
	smc_put_disks(o, source);
	smc_put_time(o, "CreationTime", json_object_get(source, "created"));
	smc_put_id(o, "WorkgroupId", json_object_get(source, "workgroup"));
	smc_put_tags(o, json_object_get(source, "tags"));
	return put_last_job(c, o, json_object_get(source, "id"));
}

/* A list leaves out inventories that are big. */
static int add_whole(struct smc *c, const json_t *row, json_t *items)
{
	_cleanup_json_ json_t *whole = NULL;

	if (json_is_object(json_object_get(row, "inventory")))
		return add_source(c, row, items);
	if (smc_call(c, "GET", NULL, NULL, &whole, "/v1/sources/%s", smc_text(row, "id")) == 0)
		return add_source(c, whole, items);
	if (c->refusal.status != 404)
		return -1;
	c->fault = (struct smc_fault){0};
	return 0;
}

static int read_state(struct smc *c, json_t *query, bool *ret_none)
{
	const char *state = smc_param(c, "State");

	if (state && strcmp(state, "Deleting") == 0) { /* sources go at once */
		*ret_none = true;
		return 0;
	}
	for (size_t i = 0; state && i < ARRAY_SIZE(states); i++)
		if (strcmp(states[i].theirs, state) == 0) {
			smc_put(query, "state", states[i].ours);
			return 0;
		}
	return state ? smc_bad(c, "State", "must be Available, InUse, Unavailable or Deleting, not '%.32s'", state) : 0;
}

static bool has_id(const json_t *ids, const char *id)
{
	json_t *one;
	size_t i;

	json_array_foreach(ids, i, one) if (strcmp(json_string_value(one), id) == 0) return true;
	return false;
}

/* JobId: the source of that job. */
static int read_job(struct smc *c, json_t **ids, bool *ret_none)
{
	_cleanup_json_ json_t *job = NULL;
	char id[ID_MAX];

	if (!smc_param(c, "JobId"))
		return 0;
	if (smc_id(c, "JobId", "job", id) < 0)
		return -1;
	if (smc_call(c, "GET", NULL, NULL, &job, "/v1/jobs/%s", id) < 0) {
		if (c->refusal.status != 404)
			return -1;
		c->fault = (struct smc_fault){0};
		*ret_none = true;
		return 0;
	}
	*ret_none = *ret_none || (*ids && !has_id(*ids, smc_text(job, "source")));
	json_decref(*ids);
	*ids = json_pack("[O]", json_object_get(job, "source"));
	return 0;
}

/* All jobs here are of type 0: other types have no sources. */
static int read_types(struct smc *c, bool *ret_none)
{
	bool any = false, zero = false;

	for (unsigned i = 1; i <= 8; i++) {
		uint64_t type = 0;
		char name[32];
		int r;

		snprintf(name, sizeof(name), "RelatedJobType.%u", i);
		r = smc_uint(c, name, 0, 3, &type);
		if (r < 0)
			return -1;
		any = any || r;
		zero = zero || (r && type == 0);
	}
	*ret_none = *ret_none || (any && !zero);
	return 0;
}

int smc_describe_sources(struct smc *c)
{
	_cleanup_json_ json_t *query = json_object(), *ids = NULL, *rows = NULL;
	json_t *items = json_array(), *row;
	struct smc_page p;
	uint64_t total = 0;
	bool none = smc_param(c, "ResourceGroupId") != NULL; /* nothing is in one */
	char group[ID_MAX];
	size_t i;

	smc_put_list(c->answer, "SourceServers", "SourceServer", items);
	if (smc_param(c, "Name"))
		smc_put(query, "name", smc_param(c, "Name"));
	if (smc_param(c, "WorkgroupId") && smc_id(c, "WorkgroupId", "workgroup", group) < 0)
		return -1;
	if (smc_param(c, "WorkgroupId"))
		smc_put(query, "workgroup", group);
	if (smc_page(c, 10, &p) < 0 || smc_ids(c, "SourceId", "source", &ids) < 0 || read_state(c, query, &none) < 0 ||
	    read_job(c, &ids, &none) < 0 || read_types(c, &none) < 0 || smc_tag_filter(c, query) < 0)
		return -1;
	if (!none && smc_list(c, "/v1/sources", take_ptr(&query), take_ptr(&ids), NULL, &p, &rows, &total) < 0)
		return -1;
	json_array_foreach(rows, i, row) if (add_whole(c, row, items) < 0) return -1;
	smc_put_page(c, &p, total);
	return 0;
}

static int not_found(struct smc *c)
{
	if (c->refusal.status == 404)
		smc_fail(c, 404, "InvalidSourceId.NotFound", "the specified SourceId does not exist");
	return -1;
}

/* The service's names are its own; here two things may have one, so that is asked before. */
static int name_is_free(struct smc *c, const char *name, const char *id)
{
	_cleanup_json_ json_t *got = NULL;
	json_t *row;
	size_t i;

	if (smc_call(c, "GET", json_pack("{s:s}", "name", name), NULL, &got, "/v1/sources") < 0)
		return -1;
	json_array_foreach(json_object_get(got, "items"), i,
			   row) if (strcmp(smc_text(row, "id"), id) !=
				    0) return smc_fail(c, 400, "SourceServerName.Duplicate",
						       "the name '%.128s' is in use", name);
	return 0;
}

int smc_modify_source(struct smc *c)
{
	const char *name = smc_param(c, "Name"), *about = smc_param(c, "Description");
	json_t *body;
	char id[ID_MAX];

	if (smc_id(c, "SourceId", "source", id) < 0 || (name && name_is_free(c, name, id) < 0))
		return -1;
	body = json_pack("{s:s*, s:s*}", "name", name, "description", about);
	return smc_call(c, "PATCH", NULL, body, NULL, "/v1/sources/%s", id) < 0 ? not_found(c) : 0;
}

/* Which of the two reasons it was. */
static int has_job(struct smc *c, const char *id)
{
	_cleanup_json_ json_t *got = NULL, *source = NULL, *job = NULL;
	char buf[ID_MAX];

	if (smc_call(c, "GET", NULL, NULL, &source, "/v1/sources/%s", id) < 0)
		return not_found(c);
	if (smc_call(c, "GET", NULL, NULL, &job, "/v1/jobs/%s", smc_text(source, "job")) < 0)
		return smc_fail(c, 400, "SourceServerState.Invalid", "the source's job is just ending; try again");
	if (strcmp(smc_text(job, "state"), "running") == 0)
		return smc_fail(c, 400, "SourceServer.WithRunningReplicationJob", "the source has a running job, %s",
				smc_their_id(json_object_get(job, "id"), buf));
	return smc_fail(c, 400, "ReplicationJob.Related", "the source has the job %s; delete it first",
			smc_their_id(json_object_get(job, "id"), buf));
}

int smc_delete_source(struct smc *c)
{
	bool force = false;
	char id[ID_MAX];

	if (smc_id(c, "SourceId", "source", id) < 0 || smc_bool(c, "Force", &force) < 0)
		return -1;
	if (smc_call(c, "DELETE", force ? json_pack("{s:s}", "force", "true") : NULL, NULL, NULL, "/v1/sources/%s",
		     id) == 0)
		return 0;
	return c->refusal.status == 409 ? has_job(c, id) : not_found(c);
}
