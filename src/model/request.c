#include "model/model.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/util.h"

#define TEXT(type, field, req, lo, hi, text)                                                                           \
	{                                                                                                              \
#field, MODEL_TEXT, offsetof(struct type, field), req, lo, hi, 0, NULL, text                           \
	}
#define LINE(type, field, req, lo, hi, text)                                                                           \
	{                                                                                                              \
#field, MODEL_LINE, offsetof(struct type, field), req, lo, hi, 0, NULL, text                           \
	}
#define UINT(type, field, lo, hi, d, text)                                                                             \
	{                                                                                                              \
#field, MODEL_UINT, offsetof(struct type, field), false, lo, hi, d, NULL, text                         \
	}
/* One line whose default is the first word. */
#define LINE_OR(type, field, hi, list, text)                                                                           \
	{                                                                                                              \
#field, MODEL_LINE, offsetof(struct type, field), false, 1, hi, 0, list, text                          \
	}
/* A number up to hi, or one of the words, which stand for hi + 1 and so on. */
#define LEVEL(type, field, hi, d, list, text)                                                                          \
	{                                                                                                              \
#field, MODEL_UINT, offsetof(struct type, field), false, 0, hi, d, list, text                          \
	}
#define BOOL(type, field, d, text)                                                                                     \
	{                                                                                                              \
#field, MODEL_BOOL, offsetof(struct type, field), false, 0, 1, d, NULL, text                           \
	}
#define WORD(type, field, req, d, list, text)                                                                          \
	{                                                                                                              \
#field, MODEL_WORD, offsetof(struct type, field), req, 0, 0, d, list, text                             \
	}
#define JSON(type, field, req, text)                                                                                   \
	{                                                                                                              \
#field, MODEL_JSON, offsetof(struct type, field), req, 0, 0, 0, NULL, text                             \
	}

/* Scripts for a test boot. */
#define SCRIPTS(type, field, text)                                                                                     \
	{                                                                                                              \
#field, MODEL_JSON, offsetof(struct type, field), false, 0, 0, 0, NULL, text, model_check_scripts      \
	}

/* An array of some of the words, each once. */
#define SOME_OF(type, field, list, text)                                                                               \
	{                                                                                                              \
#field, MODEL_JSON, offsetof(struct type, field), false, 0, 0, 0, list, text                           \
	}
#define TAGS(type, field, text)                                                                                        \
	{                                                                                                              \
#field, MODEL_TAGS, offsetof(struct type, field), false, 0, 0, 0, NULL, text                           \
	}

#define LIST(type, field, hi, text)                                                                                    \
	{                                                                                                              \
#field, MODEL_JSON, offsetof(struct type, field), false, 0, hi, 0, NULL, text                          \
	}

static const char *const model_levels[] = {"auto", NULL};
static const char *const model_by_dhcp[] = {"dhcp", NULL};

const struct model_input model_parameters[] = {
    UINT(model_parameters, connections, 1, 16, 4, "parallel connections of the data plane"),
    LEVEL(model_parameters, compression, 10, 11, model_levels,
	  "0 none, 1 fastest .. 10 smallest, or auto: as much as the line makes worth while"),
    UINT(model_parameters, rate_mbit, 0, 100000, 0, "limit on the wire in Mbit/s, 0 none"),
    BOOL(model_parameters, checksum, 1, "digest every block with SHA-256 instead of XXH3-128"),
    WORD(model_parameters, on_read_error, false, 0, model_read_errors,
	 "unreadable source sectors fail the job, or become zeros and are listed"),
    UINT(model_parameters, max_freeze, 1, 60, 1, "seconds the source may be frozen for, as far as that can be had"),
    BOOL(model_parameters, incremental, 0, "runs again and again until it is cut over, each run giving an image"),
    UINT(model_parameters, interval_hours, 1, 168, 24, "hours from the end of an incremental job's run to the next"),
    UINT(model_parameters, max_images, 1, 10, 3, "images of an incremental job that stay; the oldest unused ones go"),
    BOOL(model_parameters, test_boot, 1, "boot the image once before the job is finished"),
    BOOL(model_parameters, image_check, 1,
	 "look for what would keep the image from working elsewhere; never fails the job"),
    WORD(model_parameters, license, false, LICENSE_NONE, model_licenses,
	 "of an operating system that is sold: brought along (byol), or the region's; kept with the image"),
    WORD(model_parameters, encryption, false, ENCRYPTION_AUTO, model_encryptions,
	 "of the data on its way; off: still authenticated and tamper-proof. auto is on"),
    WORD(model_parameters, network, false, NETWORK_PUBLIC, model_networks,
	 "which of the region's addresses the data takes, and which one the receiver listens on"),
    UINT(model_parameters, transition_cpus, 1, 32, 2, "processors of the machine that converts the copy"),
    UINT(model_parameters, transition_memory, 512, 65536, 1024, "MiB of memory of that machine"),
    BOOL(model_parameters, rollback_on_failure, 1,
	 "an instance that was migrated onto and doesn't come up gets its earlier system back"),
    BOOL(model_parameters, diagnostic_logs, 1, "gather what agent, receiver, conversion and test boot say"),
    LINE_OR(model_parameters, address, 18, model_by_dhcp,
	    "of the destination: dhcp, keep what there is, or an IPv4 address such as 192.0.2.7/24"),
    LINE(model_parameters, gateway, false, 0, 15, "where it sends what is not for its network; goes with an address"),
    LINE(model_parameters, nameservers, false, 0, 47, "up to 3 with commas between them; goes with an address"),
    SCRIPTS(model_parameters, checks, "scripts that the test boot runs in the copy: each must end with status 0"),
    {0},
};

bool model_parameter_is_live(const char *name)
{
	/* Digests of another kind count from the sender's next session on, for which the manifest is made anew. */
	return strcmp(name, "rate_mbit") == 0 || strcmp(name, "compression") == 0 || strcmp(name, "checksum") == 0;
}

bool model_parameter_is_plan(const char *name)
{
	return strcmp(name, "interval_hours") == 0 || strcmp(name, "max_images") == 0 ||
	       strcmp(name, "diagnostic_logs") == 0 || strcmp(name, "checks") == 0;
}

int model_check_license(enum model_license license, const json_t *inventory, struct err *e)
{
	/* ID of os-release(5); an agent on Windows says "windows". */
	static const char *const sold[] = {"windows", "rhel", "sles", "sles_sap", NULL};
	const char *os = json_string_value(json_object_get(json_object_get(inventory, "os"), "id")) ?: "";

	if (license == LICENSE_BYOL && model_word(sold, os) < 0)
		return err_set(e, -EINVAL,
			       "'byol' is for Windows, Red Hat and SUSE Enterprise systems; this one is '%.32s', use "
			       "'none'",
			       *os ? os : "unknown");
	if (license == LICENSE_REGION && strcmp(os, "windows") != 0)
		return err_set(e, -EINVAL, "only Windows can have the region's licence; this system is '%.32s'",
			       *os ? os : "unknown");
	return 0;
}

double model_job_expiry(const struct model_job *job, double now)
{
	return MAX(job->created + (double)job->valid_days * MODEL_DAY, now + MODEL_JOB_GRACE * MODEL_DAY);
}

bool model_is_encrypted(const struct model_job *job)
{
	const char *s = json_string_value(json_object_get(job->parameters, "encryption"));

	return !s || strcmp(s, model_encryptions[ENCRYPTION_OFF]) != 0;
}

bool model_is_incremental(const struct model_job *job)
{
	return json_is_true(json_object_get(job->parameters, "incremental"));
}

const struct model_input model_job_request[] = {
    LINE(model_job_request, source, true, 1, 47, "id of the source"),
    LINE(model_job_request, region, false, 1, 47, "id of the region, 'local' when missing"),
    LINE(model_job_request, name, false, 1, MODEL_NAME_MAX, "name of the job"),
    TEXT(model_job_request, description, false, 0, MODEL_DESCRIPTION_MAX, "for people"),
    LINE(model_job_request, image_name, false, 1, MODEL_NAME_MAX, "name of the image to make"),
    JSON(model_job_request, parameters, false, "how the data is sent"),
    TAGS(model_job_request, tags, "of the job and its images"),
    LINE(model_job_request, template, false, 1, 47, "id of a template; what the request says itself goes before"),
    LINE(model_job_request, client_token, false, 1, 64, "the same request with the same token makes no second job"),
    WORD(model_job_request, execution, false, CREATE_ONLY, model_executions, "when it is to be started"),
    UINT(model_job_request, start_at, 0, MODEL_TIME_MAX, 0, "time of the start, with migrate_later"),
    WORD(model_job_request, destination, false, DESTINATION_IMAGE, model_destinations,
	 "an image, or an instance that is there"),
    LINE(model_job_request, instance, false, 1, 47, "id of that instance"),
    UINT(model_job_request, valid_days, 7, 90, 30, "days from now until it expires when it isn't running"),
    {0},
};

/* What may be the same for many sources. */
const struct model_input model_template_job[] = {
    LINE(model_job_request, region, false, 1, 47, "id of the region"),
    TEXT(model_job_request, description, false, 0, MODEL_DESCRIPTION_MAX, "for people"),
    JSON(model_job_request, parameters, false, "how the data is sent"),
    TAGS(model_job_request, tags, "of the job and its images"),
    UINT(model_job_request, valid_days, 7, 90, 30, "days until it expires when it isn't running"),
    {0},
};

const struct model_input model_template_request[] = {
    LINE(model_template_request, name, true, 1, MODEL_NAME_MAX, "name of the template, no other's"),
    TEXT(model_template_request, description, false, 0, MODEL_DESCRIPTION_MAX, "for people"),
    JSON(model_template_request, job, true, "what jobs get that are made by it"),
    {0},
};

const struct model_input model_template_patch[] = {
    LINE(model_template_request, name, false, 1, MODEL_NAME_MAX, "name of the template, no other's"),
    TEXT(model_template_request, description, false, 0, MODEL_DESCRIPTION_MAX, "for people"),
    JSON(model_template_request, job, false, "what jobs get that are made by it from now on"),
    {0},
};

const struct model_input model_workgroup_request[] = {
    LINE(model_workgroup_request, name, true, 1, MODEL_NAME_MAX, "name of the workgroup, no other's"),
    TEXT(model_workgroup_request, description, false, 0, MODEL_DESCRIPTION_MAX, "for people"),
    TAGS(model_workgroup_request, tags, "its labels"),
    {0},
};

const struct model_input model_job_patch[] = {
    LINE(model_job_request, name, false, 1, MODEL_NAME_MAX, "name of the job"),
    TEXT(model_job_request, description, false, 0, MODEL_DESCRIPTION_MAX, "for people"),
    LINE(model_job_request, image_name, false, 1, MODEL_NAME_MAX, "name of the image to make"),
    JSON(model_job_request, parameters, false, "how the data is sent"),
    TAGS(model_job_request, tags, "of the job and its images, instead of those it has"),
    WORD(model_job_request, execution, false, CREATE_ONLY, model_executions, "when it is to be started"),
    UINT(model_job_request, start_at, 0, MODEL_TIME_MAX, 0, "time of the start, with migrate_later"),
    UINT(model_job_request, valid_days, 7, 90, 30, "days from its creation until it expires when it isn't running"),
    {0},
};

const struct model_input model_start_request[] = {
    WORD(model_start_request, test, false, START_AS_SET, model_start_tests,
	 "a migration test before (migrate) or instead of it (only), or none; as_set: what the job is set to"),
    {0},
};

const struct model_input model_sweep_request[] = {
    BOOL(model_sweep_request, dry_run, 0, "only say what would be removed"),
    {0},
};

const struct model_input model_cut_over_request[] = {
    BOOL(model_cut_over_request, sync, 1, "run once more before the job ends"),
    {0},
};

const struct model_input model_code_request[] = {
    LINE(model_code_request, name, false, 1, MODEL_NAME_MAX, "what the code is for"),
    TEXT(model_code_request, description, false, 0, MODEL_DESCRIPTION_MAX, "for people"),
    UINT(model_code_request, uses, 1, 1000, 100, "how many sources may enrol with it"),
    UINT(model_code_request, valid_days, 1, 90, 30, "days until it expires"),
    {0},
};

const struct model_input model_token_request[] = {
    LINE(model_token_request, name, true, 1, MODEL_NAME_MAX, "who uses the token"),
    WORD(model_token_request, role, true, 0, model_roles, "what the token may do"),
    TAGS(model_token_request, scope, "limits it to what has all these tags; not for admins"),
    {0},
};

const struct model_input model_rename_request[] = {
    LINE(model_rename_request, name, false, 1, MODEL_NAME_MAX, "new name"),
    TEXT(model_rename_request, description, false, 0, MODEL_DESCRIPTION_MAX, "for people"),
    TAGS(model_rename_request, tags, "instead of those it has"),
    {0},
};

const struct model_input model_source_patch[] = {
    LINE(model_rename_request, name, false, 1, MODEL_NAME_MAX, "new name"),
    TEXT(model_rename_request, description, false, 0, MODEL_DESCRIPTION_MAX, "for people"),
    LINE(model_rename_request, workgroup, false, 0, 47, "id of the workgroup it is in; empty: none"),
    TAGS(model_rename_request, tags, "instead of those it has"),
    {0},
};

#define REGION_SETTINGS(needed)                                                                                        \
	LINE(model_region_request, uri, needed, 1, 512, "how libvirt reaches the host"),                               \
	    LINE(model_region_request, pool, false, 1, 128, "storage pool for the instances' disks (default)"),        \
	    LINE(model_region_request, network, false, 1, 128,                                                         \
		 "where instances are connected when they don't say: a network, or bridge:NAME (default)"),            \
	    LINE(model_region_request, accelerator, false, 0, 3,                                                       \
		 "tcg: without KVM, even where the host says it has it; empty: as the host says")

const struct model_input model_region_request[] = {
    LINE(model_region_request, id, true, 2, 40, "lower-case letters, digits and '-'"),
    LINE(model_region_request, name, false, 1, MODEL_NAME_MAX, "for people; the id when missing"),
    LINE(model_region_request, provider, true, 1, 16, "what runs its instances: libvirt"),
    REGION_SETTINGS(true),
    {0},
};

const struct model_input model_region_patch[] = {
    LINE(model_region_request, name, false, 1, MODEL_NAME_MAX, "for people"),
    REGION_SETTINGS(false),
    LINE(model_region_request, public_address, false, 0, 255, "where agents send the data; empty: where the center is"),
    LINE(model_region_request, private_address, false, 0, 255,
	 "the same for jobs on the private network; empty: there is none"),
    {0},
};

const struct model_input model_subscription_request[] = {
    LINE(model_subscription_request, name, true, 1, MODEL_NAME_MAX, "name of the subscription, no other's"),
    LINE(model_subscription_request, target, true, 1, MODEL_TARGET_MAX, "https://..., or mailto:name@host,..."),
    SOME_OF(model_subscription_request, events, model_subscribable, "what to tell; all when missing"),
    BOOL(model_subscription_request, active, 1, "tell; what is pending otherwise waits"),
    {0},
};

const struct model_input model_subscription_patch[] = {
    LINE(model_subscription_request, name, false, 1, MODEL_NAME_MAX, "name of the subscription, no other's"),
    LINE(model_subscription_request, target, false, 1, MODEL_TARGET_MAX, "another of the same kind"),
    SOME_OF(model_subscription_request, events, model_subscribable, "instead of those it has"),
    BOOL(model_subscription_request, active, 1, "tell; what is pending otherwise waits"),
    {0},
};

const struct model_input model_boot_request[] = {
    SCRIPTS(model_boot_request, checks, "scripts to run instead of those of the image's job"),
    {0},
};

const struct model_input model_export_request[] = {
    WORD(model_export_request, format, true, 0, model_export_formats, "format of the file"),
    UINT(model_export_request, disk, 0, 63, 0, "which disk of the image"),
    {0},
};

const struct model_input model_check_request[] = {
    BOOL(model_check_request, repair, 0, "repair what can be, in another image"),
    LINE(model_check_request, name, false, 1, MODEL_NAME_MAX, "of the repaired image; without one it is made"),
    {0},
};

const struct model_input model_enroll_request[] = {
    LINE(model_enroll_request, code_id, true, 16, 21, "first part of the activation code"),
    LINE(model_enroll_request, code_secret, true, 1, 64, "second part of the activation code"),
    LINE(model_enroll_request, hostname, true, 1, 255, "the source's name"),
    LINE(model_enroll_request, machine_id, true, 1, 64, "the same for the same machine"),
    LINE(model_enroll_request, agent_version, true, 1, 64, "version of the agent"),
    JSON(model_enroll_request, inventory, false, "what was discovered"),
    {0},
};

const struct model_input model_sync_request[] = {
    LINE(model_sync_request, agent_version, true, 1, 64, "version of the agent"),
    LINE(model_sync_request, boot_id, true, 1, 64, "changes with every boot of the source"),
    JSON(model_sync_request, inventory, false, "what was discovered, when it changed"),
    JSON(model_sync_request, task, false, "how the task goes"),
    JSON(model_sync_request, log, false, "what was logged while a task ran, and the center isn't known to have"),
    {0},
};

const struct model_input model_log_request[] = {
    LINE(model_log_request, run, true, 20, 20, "id of the run"),
    UINT(model_log_request, at, 0, UINT64_C(1) << 52, 0, "where in the log of the run's number the text belongs"),
    TEXT(model_log_request, text, true, 0, MODEL_LOG_MAX, "whole lines"),
    {0},
};

static const char *const task_states[] = {"sending", "done", "failed", NULL};

const struct model_input model_task_request[] = {
    LINE(model_task_request, run, true, 20, 20, "id of the run"),
    WORD(model_task_request, state, true, 0, task_states, "how it goes"),
    JSON(model_task_request, progress, false, "figures"),
    JSON(model_task_request, error, false, "why it failed"),
    JSON(model_task_request, result, false, "totals when it is done"),
    {0},
};

const struct model_input model_error_request[] = {
    LINE(model_error_request, code, true, 1, 64, "for programs"),
    TEXT(model_error_request, message, true, 0, 2048, "for people"),
    BOOL(model_error_request, temporary, 0, "trying again may help"),
    {0},
};

static const char *const model_firmwares[] = {"bios", "uefi", NULL};
static const char *const model_buses[] = {"virtio", "scsi", "sata", NULL};

const struct model_input model_instance_settings[] = {
    UINT(model_instance_settings, cpus, 1, 64, 1, "processors"),
    UINT(model_instance_settings, memory_mib, 128, UINT64_C(1) << 22, 1024, "MiB of memory"),
    LINE(model_instance_settings, cpu, false, 1, 64, "host, max, or a model that the hypervisor knows"),
    WORD(model_instance_settings, firmware, false, 0, model_firmwares, "what starts it"),
    WORD(model_instance_settings, bus, false, 0, model_buses, "what its disks are on"),
    LINE(model_instance_settings, network, false, 1, 64, "user, none, or a name that the hypervisor knows"),
    LINE(model_instance_settings, mac, false, 17, 17, "of its network card"),
    LINE(model_instance_settings, address, false, 7, 15, "IPv4 address that its network is to give it"),
    LIST(model_instance_settings, forwards, 32, "ports of the host that lead to ports of it"),
    {0},
};

const struct model_input model_forward[] = {
    {"host", MODEL_UINT, offsetof(struct model_forward, host), true, 1, 65535, 0, NULL, "port of the host"},
    {"guest", MODEL_UINT, offsetof(struct model_forward, guest), true, 1, 65535, 0, NULL, "port of the instance"},
    {0},
};

const struct model_input model_instance_request[] = {
    LINE(model_instance_request, name, true, 1, MODEL_NAME_MAX, "name of the instance, no other's"),
    TEXT(model_instance_request, description, false, 0, MODEL_DESCRIPTION_MAX, "for people"),
    LINE(model_instance_request, region, false, 1, 47, "id of the region, 'local' when missing"),
    LINE(model_instance_request, image, true, 1, 47, "id of the image it is made of"),
    JSON(model_instance_request, settings, false, "its hardware"),
    BOOL(model_instance_request, start, 1, "start it"),
    TAGS(model_instance_request, tags, "its labels"),
    {0},
};

const struct model_input model_instance_import[] = {
    LINE(model_instance_request, region, false, 1, 47, "id of the region, 'local' when missing"),
    LINE(model_instance_request, ref, true, 1, 63, "what the region knows it by"),
    LINE(model_instance_request, name, true, 1, MODEL_NAME_MAX, "name of the instance, no other's"),
    TEXT(model_instance_request, description, false, 0, MODEL_DESCRIPTION_MAX, "for people"),
    TAGS(model_instance_request, tags, "its labels"),
    {0},
};

const struct model_input model_instance_patch[] = {
    LINE(model_instance_request, name, false, 1, MODEL_NAME_MAX, "name of the instance, no other's"),
    TEXT(model_instance_request, description, false, 0, MODEL_DESCRIPTION_MAX, "for people"),
    JSON(model_instance_request, settings, false, "hardware that changes while it is off; null: the default"),
    TAGS(model_instance_request, tags, "instead of those it has"),
    {0},
};

const struct model_input model_instance_stop[] = {
    BOOL(model_instance_stop, force, 0, "at once, as by pulling the plug"),
    UINT(model_instance_stop, seconds, 1, 3600, 60, "that it has after the power button was pressed"),
    {0},
};

const struct model_input model_snapshot_request[] = {
    LINE(model_snapshot_request, name, true, 1, MODEL_NAME_MAX, "name of the snapshot"),
    {0},
};

static void input_default(const struct model_input *in, void *p)
{
	switch (in->kind) {
	case MODEL_TEXT:
	case MODEL_LINE:
		*(const char **)p = in->words ? in->words[0] : NULL;
		return;
	case MODEL_JSON:
	case MODEL_TAGS:
		*(json_t **)p = NULL;
		return;
	case MODEL_UINT:
		*(uint64_t *)p = in->def;
		return;
	case MODEL_BOOL:
		*(bool *)p = in->def != 0;
		return;
	case MODEL_WORD:
		*(int *)p = (int)in->def;
		return;
	case MODEL_REAL:
		break;
	}
	never("no request has such a field");
}

static bool text_has_control(const char *s, bool lines)
{
	for (const unsigned char *c = (const unsigned char *)s; *c; c++)
		if ((*c < 0x20 || *c == 0x7f) && !(lines && (*c == '\n' || *c == '\t')))
			return true;
	return false;
}

static int input_text(const struct model_input *in, const json_t *body, void *p, struct err *e)
{
	const char *s = NULL;
	int r = jsn_get_str(body, in->name, true, in->max, &s, e);

	if (r < 0)
		return r;
	if (strlen(s) < in->min)
		return err_set(e, -EINVAL, "'%s' must have at least %llu characters", in->name,
			       (unsigned long long)in->min);
	if (text_has_control(s, in->kind == MODEL_TEXT))
		return err_set(e, -EINVAL, "'%s' contains a control character", in->name);
	*(const char **)p = s;
	return 0;
}

static int input_word(const struct model_input *in, const json_t *body, void *p, struct err *e)
{
	const char *s = NULL;
	char list[256] = "";
	int r = jsn_get_str(body, in->name, true, 64, &s, e), i;

	if (r < 0)
		return r;
	i = model_word(in->words, s);
	if (i >= 0) {
		*(int *)p = i;
		return 0;
	}
	for (const char *const *w = in->words; *w; w++)
		snprintf(list + strlen(list), sizeof(list) - strlen(list), "%s%s", w == in->words ? "" : ", ", *w);
	return err_set(e, -EINVAL, "'%s' must be one of %s, not '%s'", in->name, list, s);
}

static int input_level(const struct model_input *in, const json_t *v, uint64_t *p, struct err *e)
{
	int i = model_word(in->words, json_string_value(v));

	if (i < 0)
		return err_set(e, -EINVAL, "'%s' must be %llu to %llu or '%s', not '%.64s'", in->name,
			       (unsigned long long)in->min, (unsigned long long)in->max, in->words[0],
			       json_string_value(v));
	*p = in->max + 1 + (unsigned)i;
	return 0;
}

/* '=' is what stands between key and value where both are one text. */
static int check_tag(const struct model_input *in, const char *key, const json_t *value, struct err *e)
{
	const char *v = json_string_value(value);

	if (!v)
		return err_set(e, -EINVAL, "'%s': the value of '%.64s' must be a string", in->name, key);
	if (!*key || strlen(key) > MODEL_TAG_MAX || json_string_length(value) > MODEL_TAG_MAX)
		return err_set(e, -EINVAL, "'%s': a key has 1 to %u bytes and a value at most %u", in->name,
			       MODEL_TAG_MAX, MODEL_TAG_MAX);
	if (strchr(key, '=') || text_has_control(key, false) || text_has_control(v, false) ||
	    strlen(v) != json_string_length(value))
		return err_set(e, -EINVAL, "'%s': '%.64s' has a control character in it, or '=' in its key", in->name,
			       key);
	return 0;
}

static int check_tags(const struct model_input *in, const json_t *tags, struct err *e)
{
	const char *key;
	json_t *value;

	if (!json_is_object(tags))
		return err_set(e, -EINVAL, "'%s' must be an object", in->name);
	if (json_object_size(tags) > MODEL_TAGS_MAX)
		return err_set(e, -EINVAL, "'%s' may have at most %u members, not %zu", in->name, MODEL_TAGS_MAX,
			       json_object_size(tags));
	json_object_foreach((json_t *)tags, key, value)
	{
		int r = check_tag(in, key, value, e);

		if (r < 0)
			return r;
	}
	return 0;
}

/* At least one, and none twice. */
static int input_some(const struct model_input *in, json_t *list, json_t **p, struct err *e)
{
	uint64_t seen = 0;
	json_t *v;
	size_t i;

	if (json_array_size(list) == 0)
		return err_set(e, -EINVAL, "'%s' must be a list of at least one of %s, ...", in->name, in->words[0]);
	json_array_foreach(list, i, v)
	{
		int w = json_is_string(v) ? model_word(in->words, json_string_value(v)) : -1;

		if (w < 0)
			return err_set(e, -EINVAL,
				       "'%s' can't have '%.64s'; known are %s and the like (see the API's document)",
				       in->name, json_string_value(v) ?: "?", in->words[0]);
		if (seen & UINT64_C(1) << w)
			return err_set(e, -EINVAL, "'%s' has '%s' twice", in->name, in->words[w]);
		seen |= UINT64_C(1) << w;
	}
	*p = list;
	return 0;
}

static int input_list(const struct model_input *in, json_t *list, json_t **p, struct err *e)
{
	json_t *v;
	size_t i;

	if (!json_is_array(list) || json_array_size(list) > in->max)
		return err_set(e, -EINVAL, "'%s' must be a list of at most %llu objects", in->name,
			       (unsigned long long)in->max);
	json_array_foreach(list, i, v)
	{
		if (!json_is_object(v))
			return err_set(e, -EINVAL, "'%s' has something that is no object", in->name);
	}
	*p = list;
	return model_check_json(list, e);
}

static int input_value(const struct model_input *in, const json_t *body, void *p, struct err *e)
{
	json_t *v = json_object_get(body, in->name);

	switch (in->kind) {
	case MODEL_TEXT:
	case MODEL_LINE:
		return input_text(in, body, p, e);
	case MODEL_UINT:
		if (in->words && json_is_string(v))
			return input_level(in, v, p, e);
		return jsn_get_u64(body, in->name, true, in->min, in->max, p, e);
	case MODEL_BOOL:
		return jsn_get_bool(body, in->name, true, p, e);
	case MODEL_WORD:
		return input_word(in, body, p, e);
	case MODEL_JSON:
		if (in->words)
			return input_some(in, v, p, e);
		if (in->max)
			return input_list(in, v, p, e);
		if (in->check) {
			*(json_t **)p = v;
			return in->check(in, v, e);
		}
		if (!json_is_object(v))
			return err_set(e, -EINVAL, "'%s' must be an object", in->name);
		*(json_t **)p = v;
		return model_check_json(v, e);
	case MODEL_TAGS:
		*(json_t **)p = v;
		return check_tags(in, v, e);
	case MODEL_REAL:
		break;
	}
	never("no request has such a field");
}

static const struct model_input *input_find(const struct model_input *table, const char *name)
{
	for (; table->name; table++)
		if (strcmp(table->name, name) == 0)
			return table;
	return NULL;
}

int model_read(const struct model_input *table, const json_t *body, bool keep, void *out, const char **ret_field,
	       struct err *e)
{
	const char *key;
	json_t *value;
	int r;

	*ret_field = NULL;
	if (!json_is_object(body))
		return err_set(e, -EINVAL, "the body must be a JSON object");
	json_object_foreach((json_t *)body, key, value)
	{
		if (input_find(table, key))
			continue;
		*ret_field = key;
		return err_set(e, -EINVAL, "'%.64s' is not known here", key);
	}
	for (const struct model_input *in = table; in->name; in++) {
		void *p = (char *)out + in->offset;

		if (!keep)
			input_default(in, p);
		*ret_field = in->name;
		value = json_object_get(body, in->name);
		if (!value || json_is_null(value)) {
			if (in->required)
				return err_set(e, -EINVAL, "'%s' is missing", in->name);
			continue;
		}
		r = input_value(in, body, p, e);
		if (r < 0)
			return r;
	}
	*ret_field = NULL;
	return 0;
}

static bool json_is_sane(const json_t *j, unsigned depth)
{
	const char *key;
	size_t i;
	json_t *v;

	if (json_is_string(j))
		return strlen(json_string_value(j)) == json_string_length(j);
	if (depth == 0)
		return !json_is_object(j) && !json_is_array(j);
	if (json_is_object(j)) {
		json_object_foreach((json_t *)j, key, v) if (!json_is_sane(v, depth - 1)) return false;
	} else if (json_is_array(j)) {
		json_array_foreach(j, i, v) if (!json_is_sane(v, depth - 1)) return false;
	}
	return true;
}

int model_check_json(const json_t *j, struct err *e)
{
	if (!json_is_sane(j, MODEL_JSON_DEPTH))
		return err_set(e, -EINVAL, "JSON nested deeper than %u levels, or a string with a NUL character",
			       MODEL_JSON_DEPTH);
	return 0;
}

static json_t *parameter_number(const struct model_input *in, uint64_t n)
{
	return in->words && n > in->max ? json_string(in->words[n - in->max - 1]) : json_integer((json_int_t)n);
}

/* NULL: nothing was said, and nothing is the default. */
static json_t *parameter_line(const char *s)
{
	return s && *s ? json_string(s) : NULL;
}

json_t *model_parameters_json(const struct model_parameters *p)
{
	json_t *o = json_object();

	for (const struct model_input *in = model_parameters; o && in->name; in++) {
		const void *v = (const char *)p + in->offset;
		json_t *j;

		/* What nobody gave isn't there. */
		if (in->kind == MODEL_JSON && !json_array_size(*(json_t *const *)v))
			continue;
		j = in->kind == MODEL_UINT   ? parameter_number(in, *(const uint64_t *)v)
		    : in->kind == MODEL_BOOL ? json_boolean(*(const bool *)v)
		    : in->kind == MODEL_LINE ? parameter_line(*(const char *const *)v)
		    : in->kind == MODEL_JSON ? json_incref(*(json_t *const *)v)
					     : json_string(in->words[*(const int *)v]);

		if (!j && in->kind == MODEL_LINE && !in->words)
			continue;
		if (json_object_set_new(o, in->name, j) < 0) {
			json_decref(o);
			return NULL;
		}
	}
	return o;
}

json_t *model_settings_over(const json_t *under, const json_t *over)
{
	json_t *o = under ? json_copy((json_t *)under) : json_object();
	const char *key;
	json_t *value;

	json_object_foreach((json_t *)over, key, value)
	{
		if (json_is_null(value))
			json_object_del(o, key);
		else if (json_object_set(o, key, value) < 0)
			return json_decref(o), NULL;
	}
	return o;
}

json_t *model_progress(const json_t *report)
{
	static const char *const numbers[] = {
	    "percent",         "bytes_total", "bytes_done",   "bytes_read", "bytes_sent",
	    "bytes_changed",   "speed",       "seconds_left", "round",      "expected_freeze_seconds",
	    "freeze_ms",       "churn",       "link",         "disk",       "cpu",
	    "converge_seconds"};
	static const struct {
		const char *name;
		size_t max;
	} texts[] = {{"phase", 32}, {"mode", 32}, {"tracking", 32}, {"untracked", 256}, {"bottleneck", 32}};
	double total = json_number_value(json_object_get(report, "bytes_total"));
	double done = json_number_value(json_object_get(report, "bytes_done"));
	json_t *o = json_object();

	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++) {
		json_t *v = json_object_get(report, numbers[i]);

		if (json_is_number(v) && json_number_value(v) >= 0)
			json_object_set(o, numbers[i], v);
	}
	for (size_t i = 0; i < ARRAY_SIZE(texts); i++) {
		const char *s = json_string_value(json_object_get(report, texts[i].name));

		if (s && strlen(s) <= texts[i].max)
			json_object_set_new(o, texts[i].name, json_string(s));
	}
	if (json_is_boolean(json_object_get(report, "converges")))
		json_object_set(o, "converges", json_object_get(report, "converges"));
	if (!json_object_get(o, "percent") && total > 0 && done >= 0)
		json_object_set_new(o, "percent", json_real(done >= total ? 100.0 : 100.0 * done / total));
	return o;
}

uint64_t model_inventory_used(const json_t *inventory)
{
	uint64_t sum = 0;
	json_t *disk;
	size_t i;

	json_array_foreach(json_object_get(inventory, "disks"), i, disk)
	{
		json_t *v = json_object_get(disk, "used");

		if (!json_is_integer(v))
			v = json_object_get(disk, "size");
		if (json_is_integer(v) && json_integer_value(v) > 0 &&
		    util_add_overflows(sum, (uint64_t)json_integer_value(v), &sum))
			return UINT64_MAX;
	}
	return sum;
}
