/* replant: the table of commands, and what happens around each of them. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/opt.h"
#include "base/util.h"
#include "cli/cli_int.h"

#define AT(field) offsetof(struct cli, field)

static const struct opt common[] = {
    {"server", 's', OPT_STRING, AT(server_opt), "URL", "address of the center (REPLANT_URL)"},
    {"token-file", 0, OPT_STRING, AT(token_file_opt), "FILE", "file that holds the token (or REPLANT_TOKEN)"},
    {"ca", 0, OPT_STRING, AT(ca_opt), "FILE", "the center's certificate (REPLANT_CA)"},
    {"state", 0, OPT_STRING, AT(state_opt), "DIR", "state directory of this host's center, for all three"},
    {"json", 'j', OPT_FLAG, AT(json), NULL, "print the API's JSON"},
    {0},
};

#define OPT_YES                                                                                                        \
	{                                                                                                              \
		"yes", 'y', OPT_FLAG, AT(yes), NULL, "don't ask"                                                       \
	}
#define OPT_QUIET                                                                                                      \
	{                                                                                                              \
		"quiet", 'q', OPT_FLAG, AT(quiet), NULL, "print the ids only"                                          \
	}
#define OPT_RETRY                                                                                                      \
	{                                                                                                              \
		"retry", 0, OPT_U64, AT(retry), "SECONDS", "how long to retry a lost connection (default 60)", 0,      \
		    86400                                                                                              \
	}
#define OPT_WATCH(what)                                                                                                \
	{                                                                                                              \
		"watch", 'w', OPT_FLAG, AT(watch), NULL, what                                                          \
	}

#define OPT_INTERVAL                                                                                                   \
	{                                                                                                              \
		"interval", 0, OPT_STRING, AT(interval), "TIME", "from a run to the next, 1h to 7d (default 24h)"      \
	}
#define OPT_MAX_IMAGES                                                                                                 \
	{                                                                                                              \
		"max-images", 0, OPT_U64, AT(max_images), "N", "how many images stay, 1 to 10 (default 3)", 1, 10      \
	}

#define OPT_DESCRIPTION                                                                                                \
	{                                                                                                              \
		"description", 0, OPT_STRING, AT(description), "TEXT", "for people"                                    \
	}
#define OPT_IMAGE_NAME                                                                                                 \
	{                                                                                                              \
		"image-name", 0, OPT_STRING, AT(image_name), "NAME", "name of the image to make"                       \
	}
#define OPT_COMPRESSION                                                                                                \
	{                                                                                                              \
		"compression", 0, OPT_U64, AT(compression), "LEVEL",                                                   \
		    "0 none, 1 fastest, 10 smallest, or auto (default)", 0, 10, .word = "auto"                         \
	}
#define OPT_RATE                                                                                                       \
	{                                                                                                              \
		"rate", 0, OPT_U64, AT(rate), "MBIT", "limit in Mbit/s (default 0, none)", 0, 100000                   \
	}
#define OPT_MAX_FREEZE                                                                                                 \
	{                                                                                                              \
		"max-freeze", 0, OPT_U64, AT(max_freeze), "SECONDS",                                                   \
		    "how long the server may be frozen, 1 to 60 (default 1)", 1, 60                                    \
	}

#define OPT_LICENSE                                                                                                    \
	{                                                                                                              \
		"license", 0, OPT_STRING, AT(license), "none|byol|region",                                             \
		    "of a system that is sold: your own, or the region's (default none)"                               \
	}
#define OPT_CHECKSUM                                                                                                   \
	{                                                                                                              \
		"checksum", 0, OPT_FLAG, AT(checksum), NULL, "SHA-256 digest of every block (default)"                 \
	}
#define OPT_NO_CHECKSUM                                                                                                \
	{                                                                                                              \
		"no-checksum", 0, OPT_FLAG, AT(no_checksum), NULL, "faster XXH3 digests instead"                       \
	}
#define OPT_ENCRYPTION                                                                                                 \
	{                                                                                                              \
		"encryption", 0, OPT_STRING, AT(encryption), "auto|on|off",                                            \
		    "of the data on its way; off: it is authenticated all the same (default auto, which is on)"        \
	}
#define OPT_NETWORK                                                                                                    \
	{                                                                                                              \
		"network", 0, OPT_STRING, AT(network), "public|private",                                               \
		    "which of the region's addresses the data takes (default public)"                                  \
	}
#define OPTS_OF_ADDRESS                                                                                                \
	{"address",                                                                                                    \
	 0,                                                                                                            \
	 OPT_STRING,                                                                                                   \
	 AT(address),                                                                                                  \
	 "dhcp|keep|A.B.C.D/LEN",                                                                                      \
	 "of the destination: by DHCP (default), what there is now, or this one"},                                     \
	    {"gateway", 0, OPT_STRING, AT(gateway), "A.B.C.D", "its gateway, in its network"},                         \
	{                                                                                                              \
		"nameserver", 0, OPT_LIST, AT(nameservers), "A.B.C.D", "a name server of it; up to 3 times"            \
	}
#define OPT_TRANSITION_CPUS                                                                                            \
	{                                                                                                              \
		"transition-cpus", 0, OPT_U64, AT(transition_cpus), "N",                                               \
		    "processors of the machine that converts the copy, 1 to 32 (default 2)", 1, 32                     \
	}
#define OPT_TRANSITION_MEMORY                                                                                          \
	{                                                                                                              \
		"transition-memory", 0, OPT_U64, AT(transition_memory), "MIB",                                         \
		    "its memory, 512 to 65536 (default 1024)", 512, 65536                                              \
	}
#define OPT_DIAGNOSTIC_LOGS                                                                                            \
	{                                                                                                              \
		"diagnostic-logs", 0, OPT_STRING, AT(diagnostic_logs), "on|off",                                       \
		    "gather the logs of its runs at the center (default on)"                                           \
	}
#define OPT_AT(text)                                                                                                   \
	{                                                                                                              \
		"at", 0, OPT_STRING, AT(at), "TIME", text                                                              \
	}
#define OPT_VALID_DAYS                                                                                                 \
	{                                                                                                              \
		"valid-days", 0, OPT_U64, AT(valid_days), "N",                                                         \
		    "days until it expires if it doesn't run, 7 to 90 (default 30)", 7, 90                             \
	}
#define OPT_FILTER_NAME                                                                                                \
	{                                                                                                              \
		"name", 'n', OPT_STRING, AT(name), "NAME", "only these; 'web*' is every name that begins so"           \
	}
#define OPT_FILTER_TAG                                                                                                 \
	{                                                                                                              \
		"tag", 't', OPT_LIST, AT(tags), "KEY[=VALUE]", "only those with the tag; may be given again"           \
	}
#define OPT_FILTER_STATE                                                                                               \
	{                                                                                                              \
		"state", 0, OPT_STRING, AT(state), "STATE", "only those in this state"                                 \
	}

static const struct opt ls_opts[] = {OPT_QUIET, {0}};
static const struct opt image_ls_opts[] = {OPT_FILTER_NAME, OPT_FILTER_TAG, OPT_QUIET, {0}};
static const struct opt find_opts[] = {OPT_FILTER_NAME, OPT_FILTER_TAG, OPT_FILTER_STATE, OPT_QUIET, {0}};
#define OPTS_OF_HOSTS                                                                                                  \
	{"pool", 0, OPT_STRING, AT(pool), "NAME", "storage pool for its instances' disks (default)"},                  \
	    {"network",  0,                                                                                            \
	     OPT_STRING, AT(network),                                                                                  \
	     "NAME",     "a network of the host, bridge:NAME, user or none, for instances that don't say (default)"},  \
	{                                                                                                              \
		"accelerator", 0, OPT_STRING, AT(accelerator), "tcg",                                                  \
		    "do without KVM, even where the host says it has it"                                               \
	}

static const struct opt region_add_opts[] = {
    {"uri", 0, OPT_STRING, AT(uri), "URI", "how libvirt reaches it: qemu+ssh://root@HOST/system", .required = true},
    OPTS_OF_HOSTS,
    {0},
};
static const struct opt region_opts[] = {
    {"uri", 0, OPT_STRING, AT(uri), "URI", "how libvirt reaches the host"},
    OPTS_OF_HOSTS,
    {"public-address", 0, OPT_STRING, AT(public_address), "HOST", "name or address; '' for the center's own"},
    {"private-address", 0, OPT_STRING, AT(private_address), "HOST", "the same on the private network; '' for none"},
    {0},
};
static const struct opt rm_opts[] = {OPT_YES, {0}};
static const struct opt rm_source_opts[] = {
    OPT_YES, {"force", 0, OPT_FLAG, AT(force), NULL, "remove an unfinished job of it first"}, {0}};
static const struct opt watch_opts[] = {OPT_RETRY, {0}};
static const struct opt run_opts[] = {OPT_WATCH("watch it until it ends"), OPT_RETRY, {0}};
static const struct opt start_opts[] = {
    {"no-test", 0, OPT_FLAG, AT(no_test), NULL, "migrate without the test that the job is set to"},
    OPT_WATCH("watch it until it ends"),
    OPT_RETRY,
    {0},
};
static const struct opt test_opts[] = {
    {"then-migrate", 0, OPT_FLAG, AT(then_migrate), NULL, "go on with the migration when nothing critical is found"},
    OPT_WATCH("watch it until it ends"),
    OPT_RETRY,
    {0},
};
static const struct opt report_opts[] = {
    {"html", 0, OPT_STRING, AT(html), "FILE", "write it as a page, picture included"},
    {0},
};
/* Scripts for the test boot. */
#define OPTS_CHECK                                                                                                     \
	{"check",    0,      OPT_LIST,                                                                                 \
	 AT(checks), "FILE", "a script to run in the booted copy, which must end with 0; may be given again"},         \
	{                                                                                                              \
		"check-timeout", 0, OPT_U64, AT(check_timeout), "SECONDS",                                             \
		    "time for each of them, 1 to 600 (default 60)", 1, 600                                             \
	}

static const struct opt boot_opts[] = {OPTS_CHECK, OPT_WATCH("wait until it has booted, or not"), OPT_RETRY, {0}};

/* What a job and a template can say about the copy. */
#define OPTS_OF_JOBS                                                                                                   \
	OPT_COMPRESSION, OPT_RATE,                                                                                     \
	    {"connections", 0, OPT_U64, AT(connections), "N", "parallel connections, 1 to 16 (default 4)", 1, 16},     \
	    OPT_CHECKSUM, OPT_NO_CHECKSUM,                                                                             \
	    {"on-read-error",   0,           OPT_STRING,                                                               \
	     AT(on_read_error), "fail|zero", "what to do with unreadable sectors (default fail)"},                     \
	    OPT_MAX_FREEZE, OPT_DIAGNOSTIC_LOGS,                                                                       \
	    {"incremental", 0, OPT_FLAG, AT(incremental), NULL, "run again and again, each run giving an image"},      \
	    OPT_INTERVAL, OPT_MAX_IMAGES,                                                                              \
	    {"no-test-boot", 0, OPT_FLAG, AT(no_test_boot), NULL, "don't boot the image when it is made"},             \
	    {"no-image-check", 0, OPT_FLAG, AT(no_image_check), NULL, "don't look for what is wrong with the image"},  \
	    OPTS_CHECK

static const struct opt job_opts[] = {
    {"name", 'n', OPT_STRING, AT(name), "NAME", "name of the job"},
    OPT_DESCRIPTION,
    OPT_IMAGE_NAME,
    {"onto", 0, OPT_STRING, AT(onto), "INSTANCE",
     "migrate onto this instance; its system is kept until 'jobs confirm'"},
    {"no-rollback", 0, OPT_FLAG, AT(no_rollback), NULL, "an instance whose new system doesn't come up keeps it"},
    {"region", 0, OPT_STRING, AT(region), "ID", "where the image is made (default local)"},
    OPTS_OF_JOBS,
    {"tag", 't', OPT_LIST, AT(tags), "KEY=VALUE", "a label of the job and its images; may be given again"},
    OPT_LICENSE,
    OPT_NETWORK,
    OPT_ENCRYPTION,
    OPTS_OF_ADDRESS,
    OPT_TRANSITION_CPUS,
    OPT_TRANSITION_MEMORY,
    OPT_VALID_DAYS,
    {"client-token", 0, OPT_STRING, AT(client_token), "TEXT", "the same command with the same text makes one job only"},
    {"template", 0, OPT_STRING, AT(template), "TEMPLATE", "make it by this template; other options go before"},
    OPT_AT("start the job then: 2027-01-31T03:00, or +2h; in 10 minutes at the soonest"),
    {"start", 0, OPT_FLAG, AT(start), NULL, "start the job at once"},
    {"test", 0, OPT_FLAG, AT(test), NULL,
     "start it at once with a migration test, and migrate when that finds no fault"},
    {"test-only", 0, OPT_FLAG, AT(test_only), NULL, "start a migration test at once, and nothing else"},
    OPT_WATCH("start the job and watch it until it ends"),
    OPT_RETRY,
    {0},
};

static const struct opt set_opts[] = {
    OPT_DESCRIPTION,
    OPT_IMAGE_NAME,
    OPT_COMPRESSION,
    OPT_RATE,
    OPT_CHECKSUM,
    OPT_NO_CHECKSUM,
    OPT_MAX_FREEZE,
    OPT_DIAGNOSTIC_LOGS,
    OPT_INTERVAL,
    OPT_MAX_IMAGES,
    OPTS_CHECK,
    OPT_LICENSE,
    OPT_NETWORK,
    OPT_ENCRYPTION,
    OPTS_OF_ADDRESS,
    OPT_TRANSITION_CPUS,
    OPT_TRANSITION_MEMORY,
    OPT_VALID_DAYS,
    OPT_AT("start the job then, or never by itself ('never')"),
    {0},
};

static const struct opt template_opts[] = {
    OPT_DESCRIPTION,
    {"region", 0, OPT_STRING, AT(region), "ID", "where images are made (default local)"},
    OPTS_OF_JOBS,
    {"tag", 't', OPT_LIST, AT(tags), "KEY=VALUE", "a label of the jobs and their images; may be given again"},
    OPT_LICENSE,
    OPT_NETWORK,
    OPT_ENCRYPTION,
    OPTS_OF_ADDRESS,
    OPT_TRANSITION_CPUS,
    OPT_TRANSITION_MEMORY,
    OPT_VALID_DAYS,
    {0},
};

static const struct opt group_opts[] = {OPT_DESCRIPTION, {0}};

static const struct opt cutover_opts[] = {
    {"no-sync", 0, OPT_FLAG, AT(no_sync), NULL, "end with the last image, without another run"},
    OPT_WATCH("watch it until it ends"),
    OPT_RETRY,
    {0},
};

static const struct opt log_opts[] = {
    {"part", 'p', OPT_STRING, AT(part), "PART", "only this: agent, receiver, conversion or boot"},
    {"run", 0, OPT_U64, AT(run), "N", "of this run (default: the newest)", 1, INT64_MAX},
    {"follow", 'f', OPT_FLAG, AT(follow), NULL, "go on printing until the job rests"},
    OPT_RETRY,
    {0},
};

static const struct opt bundle_opts[] = {
    {"output", 'o', OPT_STRING, AT(output), "FILE", "where to write it (default replant-JOB.tar.gz)"},
    {0},
};

static const struct opt check_opts[] = {
    {"repair", 0, OPT_FLAG, AT(repair), NULL, "repair what can be, in another image"},
    {"name", 'n', OPT_STRING, AT(name), "NAME", "of the repaired image (default IMAGE's with '-repaired')"},
    {"html", 0, OPT_STRING, AT(html), "FILE", "write the report as a page, too"},
    OPT_RETRY,
    {0},
};
static const struct opt output_opts[] = {
    {"output", 'o', OPT_STRING, AT(output), "FILE", "where to write the picture (PNG)", 0, 0, true},
    {0},
};

static const struct opt export_opts[] = {
    {"format", 'f', OPT_STRING, AT(format), "FORMAT", "qcow2, raw, vmdk or vhdx", 0, 0, true},
    {"output", 'o', OPT_STRING, AT(output), "FILE", "where to write it", 0, 0, true},
    {"disk", 0, OPT_U64, AT(disk), "N", "which disk of the image, 0 to 63 (default 0)", 0, 63},
    {"keep", 0, OPT_FLAG, AT(keep), NULL, "keep the converted file on the center, too"},
    OPT_RETRY,
    {0},
};

static const struct opt code_opts[] = {
    {"name", 'n', OPT_STRING, AT(name), "NAME", "what the code is for"},
    {"uses", 0, OPT_U64, AT(uses), "N", "how many servers may enrol, 1 to 1000 (default 100)", 1, 1000},
    {"days", 0, OPT_U64, AT(days), "N", "days until it expires, 1 to 90 (default 30)", 1, 90},
    {0},
};

static const struct opt token_opts[] = {
    {"role", 'r', OPT_STRING, AT(role), "ROLE", "admin, operator or viewer", 0, 0, true},
    {"scope", 0, OPT_LIST, AT(tags), "KEY=VALUE", "limit it to what has this tag; may be given again"},
    {0},
};

static const struct opt import_opts[] = {
    {"start", 0, OPT_FLAG, AT(start), NULL, "start the jobs at once, but for those with a time"},
    {"dry-run", 0, OPT_FLAG, AT(dry_run), NULL, "look up the names, and make nothing"},
    {0},
};

static const struct opt holding_opts[] = {
    {"owner", 0, OPT_STRING, AT(owner), "ID", "only what is kept for this job, image, instance or export"},
    {"kind", 0, OPT_STRING, AT(kind), "KIND", "only this, such as copy, image, run or temporary"},
    {0},
};

static const struct opt sweep_opts[] = {
    {"dry-run", 0, OPT_FLAG, AT(dry_run), NULL, "say what would be removed, and remove nothing"},
    {0},
};

static const struct opt audit_opts[] = {
    {"who", 0, OPT_STRING, AT(who), "TOKEN", "only what was done with this token (its id)"},
    {"action", 0, OPT_STRING, AT(action), "NAME", "only this, such as createJob"},
    {"object", 0, OPT_STRING, AT(object), "ID", "only what was done to this"},
    OPT_QUIET,
    {0},
};

static const struct opt subscribe_opts[] = {
    {"event", 'e', OPT_LIST, AT(events), "EVENT",
     "tell only this: job.finished, job.failed, job.expiring, source.offline, image.not_verified; may be given again"},
    {0},
};

static const struct opt subscription_opts[] = {
    {"event", 'e', OPT_LIST, AT(events), "EVENT", "tell this instead of what it tells; may be given again"},
    {"target", 0, OPT_STRING, AT(target), "TARGET", "tell it there; a web hook stays one, mail stays mail"},
    {0},
};

static const struct opt notice_opts[] = {
    {"state", 0, OPT_STRING, AT(state), "STATE", "only those that are pending, delivered or given_up"},
    OPT_QUIET,
    {0},
};

#define OPTS_OF_INSTANCES                                                                                              \
	OPT_DESCRIPTION, {"cpus", 0, OPT_U64, AT(cpus), "N", "processors, 1 to 64", 1, 64},                            \
	    {"memory", 0, OPT_U64, AT(memory), "MIB", "its memory, from 128 on", 128, 1 << 22},                        \
	    {"cpu", 0, OPT_STRING, AT(cpu), "MODEL", "host, max, or a model that the region knows"},                   \
	    {"firmware", 0, OPT_STRING, AT(firmware), "bios|uefi", "what starts it"},                                  \
	    {"bus", 0, OPT_STRING, AT(bus), "virtio|scsi|sata", "what its disks are on"},                              \
	    {"network", 0, OPT_STRING, AT(network), "NAME", "user, none, or one that the region knows"},               \
	    {"mac", 0, OPT_STRING, AT(mac), "MAC", "of its network card"},                                             \
	    {"address", 0, OPT_STRING, AT(address), "IPV4", "that its network is to give it"},                         \
	{                                                                                                              \
		"forward", 0, OPT_LIST, AT(forwards), "HOST:GUEST", "a port of the host that leads to one of it"       \
	}

static const struct opt instance_opts[] = {
    OPTS_OF_INSTANCES,
    {"region", 0, OPT_STRING, AT(region), "ID", "where it runs (default local)"},
    {"tag", 't', OPT_LIST, AT(tags), "KEY=VALUE", "a label; may be given again"},
    {"no-start", 0, OPT_FLAG, AT(no_start), NULL, "leave it off"},
    OPT_RETRY,
    {0},
};

static const struct opt instance_set_opts[] = {OPTS_OF_INSTANCES, OPT_RETRY, {0}};

static const struct opt instance_import_opts[] = {
    OPT_DESCRIPTION,
    {"region", 0, OPT_STRING, AT(region), "ID", "where it is (default local)"},
    {"tag", 't', OPT_LIST, AT(tags), "KEY=VALUE", "a label; may be given again"},
    OPT_RETRY,
    {0},
};

static const struct opt instance_stop_opts[] = {
    {"force", 0, OPT_FLAG, AT(force), NULL, "at once, as by pulling the plug"},
    {"seconds", 0, OPT_U64, AT(seconds), "N", "that it has after the power button, 1 to 3600 (default 60)", 1, 3600},
    OPT_RETRY,
    {0},
};

static const struct opt instance_rm_opts[] = {
    OPT_YES,
    {"keep", 0, OPT_FLAG, AT(keep), NULL, "only forget one that was imported; it stays where it is"},
    {"force", 0, OPT_FLAG, AT(force), NULL, "also one that runs, or was imported, with its disks"},
    {0},
};

static const struct opt serial_opts[] = {
    {"since", 0, OPT_U64, AT(since), "N", "from this byte on (default 0)", 0, INT64_MAX},
    {"follow", 'f', OPT_FLAG, AT(follow), NULL, "go on printing"},
    {0},
};

static const struct opt event_opts[] = {
    {"since", 0, OPT_U64, AT(since), "N", "begin after event N (default: with what happens now)", 0, INT64_MAX},
    OPT_RETRY,
    {0},
};

cli_command_fn cli_sources_ls, cli_sources_show, cli_sources_rename, cli_sources_tag, cli_sources_rm, cli_jobs_create,
    cli_jobs_start, cli_jobs_stop, cli_jobs_watch, cli_jobs_ls, cli_jobs_show, cli_jobs_rename, cli_jobs_tag,
    cli_jobs_rm, cli_jobs_run, cli_jobs_cutover, cli_jobs_runs, cli_jobs_set, cli_images_ls, cli_images_show,
    cli_images_report, cli_images_rename, cli_images_tag, cli_images_boot, cli_images_check, cli_images_screenshot,
    cli_images_export, cli_images_rm, cli_exports_ls, cli_exports_rm, cli_codes_create, cli_codes_ls, cli_codes_revoke,
    cli_codes_rm, cli_tokens_create, cli_tokens_ls, cli_tokens_rm, cli_regions_ls, cli_regions_show, cli_regions_set,
    cli_regions_add, cli_regions_rm, cli_events_follow, cli_audit_ls, cli_jobs_doctor, cli_jobs_logs, cli_jobs_bundle,
    cli_jobs_import, cli_version, cli_templates_create, cli_templates_ls, cli_templates_show, cli_templates_set,
    cli_templates_rename, cli_templates_rm, cli_workgroups_create, cli_workgroups_ls, cli_workgroups_show,
    cli_workgroups_add, cli_workgroups_remove, cli_workgroups_start, cli_workgroups_stop, cli_workgroups_tag,
    cli_workgroups_rename, cli_workgroups_rm;
cli_command_fn cli_jobs_test, cli_jobs_report;
cli_command_fn cli_jobs_rollback, cli_jobs_confirm, cli_jobs_screenshot, cli_instances_rollback, cli_instances_confirm;
cli_command_fn cli_subscriptions_create, cli_subscriptions_ls, cli_subscriptions_show, cli_subscriptions_set,
    cli_subscriptions_pause, cli_subscriptions_resume, cli_subscriptions_test, cli_subscriptions_notices,
    cli_subscriptions_rename, cli_subscriptions_rm;
cli_command_fn cli_center_holdings, cli_center_sweep;

cli_command_fn cli_instances_create, cli_instances_import, cli_instances_ls, cli_instances_show, cli_instances_start,
    cli_instances_stop, cli_instances_restart, cli_instances_set, cli_instances_rename, cli_instances_tag,
    cli_instances_screenshot, cli_instances_serial, cli_instances_snapshot, cli_instances_snapshots,
    cli_instances_revert, cli_instances_forget, cli_instances_rm, cli_regions_instances;

/* What completes operands. */
#define SOURCES   "replant sources ls --quiet"
#define JOBS      "replant jobs ls --quiet"
#define IMAGES    "replant images ls --quiet"
#define EXPORTS   "replant exports ls --quiet"
#define CODES     "replant codes ls --quiet"
#define TOKENS    "replant tokens ls --quiet"
#define TEMPLATES "replant templates ls --quiet"
#define GROUPS    "replant workgroups ls --quiet"
#define REGIONS   "replant regions ls --quiet"
#define MACHINES  "replant instances ls --quiet"
#define TOLD      "replant subscriptions ls --quiet"

static const struct opt_command commands[] = {
    {"sources ls", "", "list the servers that are enrolled",
     "Examples:\n  replant sources ls\n  replant sources ls --name 'web*' --tag wave=2\n"
     "  replant sources ls --json | jq -r '.items[].name'",
     find_opts, 0, 0, cli_sources_ls, NULL},
    {"sources show", "SOURCE", "show a server: its system, disks, and what hinders its migration",
     "SOURCE is a name, an id or the beginning of an id.\n\nExample:\n  replant sources show web-1", NULL, 1, 1,
     cli_sources_show, SOURCES},
    {"sources rename", "SOURCE NAME", "give a server another name",
     "Example:\n  replant sources rename web-1 shop-frontend", NULL, 2, 2, cli_sources_rename, SOURCES},
    {"sources tag", "SOURCE KEY=VALUE|KEY-...", "label a server, or take labels away",
     "Example:\n  replant sources tag web-1 env=production wave=2 old-", NULL, 2, -1, cli_sources_tag, SOURCES},
    {"sources rm", "SOURCE...", "forget servers; their agents stop being admitted",
     "Nothing is changed on the server itself.\n\nExample:\n  replant sources rm web-1 --yes", rm_source_opts, 1, -1,
     cli_sources_rm, SOURCES},

    {"jobs create", "SOURCE", "make a migration job for a server",
     "Examples:\n  replant jobs create web-1 --watch\n"
     "  replant jobs create web-1 --name 'web-1 to the new hall' --rate 200 --compression 3\n"
     "  replant jobs create web-1 --onto shop --watch\n"
     "  replant jobs create web-1 --incremental --interval 12h --max-images 5 --start\n"
     "  replant jobs create web-1 --test --watch\n"
     "  replant jobs create web-1 --at 2027-01-31T03:00 --tag wave=2",
     job_opts, 1, 1, cli_jobs_create, SOURCES},
    {"jobs import", "FILE", "make many jobs from a table (CSV), a line for each",
     "The first line names the columns: source, name, description, image_name, region, template, tags (a=b;c=d), at,\n"
     "valid_days, client_token, execution, and parameters such as rate_mbit or incremental. What is empty isn't "
     "given.\n"
     "Nothing is made before all lines make sense.\n\nExample:\n  replant jobs import wave-2.csv --dry-run",
     import_opts, 1, 1, cli_jobs_import, NULL},
    {"jobs start", "JOB...", "start jobs, or let stopped and failed ones go on",
     "A job goes on from what it has; nothing is sent twice.\n\nExample:\n  replant jobs start web-1 --watch",
     start_opts, 1, -1, cli_jobs_start, JOBS},
    {"jobs test", "JOB...", "test the migration: copy what boots, convert it, boot it, and say what was found",
     "The server goes on, and nothing of a test remains but its report. Exits with 1 when something critical was\n"
     "found.\n\nExamples:\n  replant jobs test web-1 --watch\n  replant jobs test web-1 --then-migrate --watch",
     test_opts, 1, -1, cli_jobs_test, JOBS},
    {"jobs report", "JOB", "show what a migration test found, what to do about it, and what the migration will take",
     "Exits with 1 when something critical was found.\n\nExamples:\n  replant jobs report web-1\n"
     "  replant jobs report web-1 --html web-1.html",
     report_opts, 1, 1, cli_jobs_report, JOBS},
    {"jobs stop", "JOB...", "stop jobs; what they have is kept", "Example:\n  replant jobs stop web-1", NULL, 1, -1,
     cli_jobs_stop, JOBS},
    {"jobs run", "JOB...", "let incremental jobs run now", "Example:\n  replant jobs run web-1 --watch", run_opts, 1,
     -1, cli_jobs_run, JOBS},
    {"jobs cutover", "JOB", "end an incremental job, after one more run",
     "The server itself goes on; stop what changes its data first.\n\nExamples:\n  replant jobs cutover web-1 --watch\n"
     "  replant jobs cutover web-1 --no-sync",
     cutover_opts, 1, 1, cli_jobs_cutover, JOBS},
    {"jobs rollback", "JOB", "give the instance that a job migrated onto its earlier system back",
     "At any time until it is confirmed, also in the middle of it.\n\nExample:\n  replant jobs rollback web-1", NULL, 1,
     1, cli_jobs_rollback, JOBS},
    {"jobs confirm", "JOB", "keep the new system of the instance that a job migrated onto",
     "The earlier one is removed; nothing leads back.\n\nExample:\n  replant jobs confirm web-1 --yes", rm_opts, 1, 1,
     cli_jobs_confirm, JOBS},
    {"jobs screenshot", "JOB", "fetch the picture of the instance as a job had switched it over",
     "Example:\n  replant jobs screenshot web-1 -o web-1.png", output_opts, 1, 1, cli_jobs_screenshot, JOBS},
    {"instances rollback", "INSTANCE", "give an instance the system back that it had before a migration onto it",
     "At any time until it is confirmed, also in the middle of it.\n\nExample:\n  replant instances rollback shop",
     NULL, 1, 1, cli_instances_rollback, "replant instances ls --quiet"},
    {"instances confirm", "INSTANCE", "keep the new system of an instance that was migrated onto",
     "The earlier one is removed; nothing leads back.\n\nExample:\n  replant instances confirm shop --yes", rm_opts, 1,
     1, cli_instances_confirm, "replant instances ls --quiet"},
    {"jobs set", "JOB", "change a job, also while it sends",
     "Examples:\n  replant jobs set web-1 --rate 50\n  replant jobs set web-1 --interval 2d --max-images 2", set_opts,
     1, 1, cli_jobs_set, JOBS},
    {"jobs runs", "JOB", "list the runs of a job, newest first", "Example:\n  replant jobs runs web-1", NULL, 1, 1,
     cli_jobs_runs, JOBS},
    {"jobs watch", "[JOB...]", "watch jobs until they end (default: all that run)",
     "Exits with 0 when all have finished, 1 when one has not, 75 when the connection stayed lost.\n"
     "Interrupting the watch does nothing to the jobs.\n\nExamples:\n  replant jobs watch web-1\n"
     "  replant jobs watch web-1 && replant images export web-1 -f qcow2 -o web-1.qcow2",
     watch_opts, 0, -1, cli_jobs_watch, JOBS},
    {"jobs ls", "", "list the jobs", "Examples:\n  replant jobs ls\n  replant jobs ls --state in_error --tag wave=2",
     find_opts, 0, 0, cli_jobs_ls, NULL},
    {"jobs show", "JOB", "show a job: stages, figures, errors and what to do about them",
     "Example:\n  replant jobs show web-1", NULL, 1, 1, cli_jobs_show, JOBS},
    {"jobs doctor", "JOB", "say what is the matter with a job, and what to do about it",
     "Exits with 1 when something is. docs/errors.md has a page for each code.\n\nExample:\n  replant jobs doctor "
     "web-1",
     NULL, 1, 1, cli_jobs_doctor, JOBS},
    {"jobs logs", "JOB", "print what agent, receiver, conversion and test boot said in a run",
     "Times are UTC. --json lists which logs there are.\n\nExamples:\n  replant jobs logs web-1\n"
     "  replant jobs logs web-1 --part agent --follow",
     log_opts, 1, 1, cli_jobs_logs, JOBS},
    {"jobs bundle", "JOB", "fetch all that is known of a job as one file, without secrets",
     "For somebody who is to help: logs, the job and its runs, its server's inventory, events, versions.\n\n"
     "Example:\n  replant jobs bundle web-1 -o web-1.tar.gz",
     bundle_opts, 1, 1, cli_jobs_bundle, JOBS},
    {"jobs rename", "JOB NAME", "give a job another name", "Example:\n  replant jobs rename web-1 web-1-second-try",
     NULL, 2, 2, cli_jobs_rename, JOBS},
    {"jobs tag", "JOB KEY=VALUE|KEY-...", "label a job, or take labels away",
     "Its images get the labels it has when they are made.\n\nExample:\n  replant jobs tag web-1 wave=2", NULL, 2, -1,
     cli_jobs_tag, JOBS},
    {"jobs rm", "JOB...", "remove jobs and what they left, but not their images",
     "Example:\n  replant jobs rm web-1 --yes", rm_opts, 1, -1, cli_jobs_rm, JOBS},

    {"templates create", "NAME", "make a template: what many jobs have in common",
     "Example:\n  replant templates create night --rate 200 --incremental --interval 12h --tag wave=2", template_opts,
     1, 1, cli_templates_create, NULL},
    {"templates ls", "", "list the templates", "Example:\n  replant templates ls", ls_opts, 0, 0, cli_templates_ls,
     NULL},
    {"templates show", "TEMPLATE", "show what jobs get that are made by a template",
     "Example:\n  replant templates show night", NULL, 1, 1, cli_templates_show, TEMPLATES},
    {"templates set", "TEMPLATE", "change a template; jobs that were made by it stay as they are",
     "Example:\n  replant templates set night --rate 400", template_opts, 1, 1, cli_templates_set, TEMPLATES},
    {"templates rename", "TEMPLATE NAME", "give a template another name",
     "Example:\n  replant templates rename night weekend", NULL, 2, 2, cli_templates_rename, TEMPLATES},
    {"templates rm", "TEMPLATE...", "remove templates", "Example:\n  replant templates rm night --yes", rm_opts, 1, -1,
     cli_templates_rm, TEMPLATES},

    {"workgroups create", "NAME", "make a workgroup: servers that move together",
     "Example:\n  replant workgroups create wave-2 --description 'the shop'", group_opts, 1, 1, cli_workgroups_create,
     NULL},
    {"workgroups ls", "", "list the workgroups, with status and warnings", "Example:\n  replant workgroups ls",
     image_ls_opts, 0, 0, cli_workgroups_ls, NULL},
    {"workgroups show", "WORKGROUP", "show a workgroup and its servers", "Example:\n  replant workgroups show wave-2",
     NULL, 1, 1, cli_workgroups_show, GROUPS},
    {"workgroups add", "WORKGROUP SOURCE...", "put servers into a workgroup",
     "A server is in one workgroup at most.\n\nExample:\n  replant workgroups add wave-2 web-1 web-2", NULL, 2, -1,
     cli_workgroups_add, GROUPS},
    {"workgroups remove", "SOURCE...", "take servers out of their workgroups",
     "Example:\n  replant workgroups remove web-1", NULL, 1, -1, cli_workgroups_remove, SOURCES},
    {"workgroups start", "WORKGROUP", "start the jobs of all servers of a workgroup",
     "Fails when one of them could not be started; the others are.\n\nExample:\n  replant workgroups start wave-2",
     NULL, 1, 1, cli_workgroups_start, GROUPS},
    {"workgroups stop", "WORKGROUP", "stop the jobs of all servers of a workgroup",
     "Example:\n  replant workgroups stop wave-2", NULL, 1, 1, cli_workgroups_stop, GROUPS},
    {"workgroups tag", "WORKGROUP KEY=VALUE|KEY-...", "label a workgroup, or take labels away",
     "Example:\n  replant workgroups tag wave-2 hall=b", NULL, 2, -1, cli_workgroups_tag, GROUPS},
    {"workgroups rename", "WORKGROUP NAME", "give a workgroup another name",
     "Example:\n  replant workgroups rename wave-2 shop", NULL, 2, 2, cli_workgroups_rename, GROUPS},
    {"workgroups rm", "WORKGROUP...", "remove workgroups that have no servers",
     "Example:\n  replant workgroups rm wave-2 --yes", rm_opts, 1, -1, cli_workgroups_rm, GROUPS},

    {"images ls", "", "list the images", "Examples:\n  replant images ls\n  replant images ls --name 'web*'",
     image_ls_opts, 0, 0, cli_images_ls, NULL},
    {"images show", "IMAGE", "show an image: disks, what was verified, what conversion changed, the test boot",
     "Example:\n  replant images show web-1", NULL, 1, 1, cli_images_show, IMAGES},
    {"images report", "IMAGE", "show the whole report of an image, steps that changed nothing too",
     "With --json the report has the old content of every file that was changed.\n\nExample:\n"
     "  replant images report web-1 --json | jq '.. | .files? // empty | .[].path'",
     NULL, 1, 1, cli_images_report, IMAGES},
    {"images rename", "IMAGE NAME", "give an image another name",
     "Example:\n  replant images rename web-1 web-1-golden", NULL, 2, 2, cli_images_rename, IMAGES},
    {"images tag", "IMAGE KEY=VALUE|KEY-...", "label an image, or take labels away",
     "Example:\n  replant images tag web-1 golden=yes", NULL, 2, -1, cli_images_tag, IMAGES},
    {"images boot", "IMAGE", "boot a throw-away copy of an image again, to see that it runs",
     "Examples:\n  replant images boot web-1 --watch\n  replant images boot web-1 --check front-page.sh --watch",
     boot_opts, 1, 1, cli_images_boot, IMAGES},
    {"images check", "IMAGE", "look for what would keep an image from working elsewhere, and repair it",
     "Waits for the end of it. With --repair another image is made, in which what can be repaired is.\nEnds with 1 "
     "when "
     "something critical is left.\n\n"
     "Example:\n  replant images check web-1 --repair --html web-1.html",
     check_opts, 1, 1, cli_images_check, IMAGES},
    {"images screenshot", "IMAGE", "fetch the picture of the screen that the test boot ended with",
     "Example:\n  replant images screenshot web-1 -o web-1.png", output_opts, 1, 1, cli_images_screenshot, IMAGES},
    {"images export", "IMAGE", "convert a disk of an image and fetch it as a file",
     "Waits for the conversion, then downloads. FILE appears when it is whole. A lost connection is resumed.\n\n"
     "Example:\n  replant images export web-1 --format qcow2 -o web-1.qcow2",
     export_opts, 1, 1, cli_images_export, IMAGES},
    {"images rm", "IMAGE...", "remove images and their files", "Example:\n  replant images rm web-1 --yes", rm_opts, 1,
     -1, cli_images_rm, IMAGES},

    {"instances create", "IMAGE NAME", "make a machine of an image, and start it",
     "Waits until it is made. What isn't given has a default of the region.\n\nExamples:\n"
     "  replant instances create web-1 web-1-new --cpus 2 --memory 2048 --forward 8080:80\n"
     "  replant instances create web-1 web-1-trial --network none --no-start",
     instance_opts, 2, 2, cli_instances_create, IMAGES},
    {"instances import", "REF NAME", "make a machine that runs in a region an instance of this center",
     "REF is what 'replant regions instances' shows.\n\nExample:\n  replant instances import 6f0c8c5e-web web-1 "
     "--region "
     "lab",
     instance_import_opts, 2, 2, cli_instances_import, NULL},
    {"instances ls", "", "list the instances",
     "Examples:\n  replant instances ls\n  replant instances ls --state running --tag wave=2", find_opts, 0, 0,
     cli_instances_ls, NULL},
    {"instances show", "INSTANCE", "show an instance: state, addresses, settings, disks",
     "Example:\n  replant instances show web-1", NULL, 1, 1, cli_instances_show, MACHINES},
    {"instances start", "INSTANCE...", "start instances", "Example:\n  replant instances start web-1", watch_opts, 1,
     -1, cli_instances_start, MACHINES},
    {"instances stop", "INSTANCE...", "press the power button of instances, and wait until they are off",
     "Examples:\n  replant instances stop web-1\n  replant instances stop web-1 --force", instance_stop_opts, 1, -1,
     cli_instances_stop, MACHINES},
    {"instances restart", "INSTANCE...", "stop instances and start them again",
     "Example:\n  replant instances restart web-1 --seconds 120", instance_stop_opts, 1, -1, cli_instances_restart,
     MACHINES},
    {"instances set", "INSTANCE", "change the settings of an instance that is off",
     "'' takes a setting back to its default, --forward none all forwards.\n\nExample:\n"
     "  replant instances set web-1 --cpus 4 --memory 4096",
     instance_set_opts, 1, 1, cli_instances_set, MACHINES},
    {"instances rename", "INSTANCE NAME", "give an instance another name",
     "Example:\n  replant instances rename web-1-new web-1", NULL, 2, 2, cli_instances_rename, MACHINES},
    {"instances tag", "INSTANCE KEY=VALUE|KEY-...", "label an instance, or take labels away",
     "Example:\n  replant instances tag web-1 wave=2", NULL, 2, -1, cli_instances_tag, MACHINES},
    {"instances screenshot", "INSTANCE", "fetch a picture of the screen as it is now",
     "Example:\n  replant instances screenshot web-1 -o web-1.png", output_opts, 1, 1, cli_instances_screenshot,
     MACHINES},
    {"instances serial", "INSTANCE", "print what its serial line said", "Example:\n  replant instances serial web-1 -f",
     serial_opts, 1, 1, cli_instances_serial, MACHINES},
    {"instances snapshot", "INSTANCE NAME", "keep what its disks hold now, also while it runs",
     "Example:\n  replant instances snapshot web-1 'before the upgrade'", watch_opts, 2, 2, cli_instances_snapshot,
     MACHINES},
    {"instances snapshots", "INSTANCE", "list the snapshots of an instance, newest first",
     "Example:\n  replant instances snapshots web-1", ls_opts, 1, 1, cli_instances_snapshots, MACHINES},
    {"instances revert", "INSTANCE SNAPSHOT", "give an instance that is off the disks of then; what it has now goes",
     "Example:\n  replant instances stop web-1 && replant instances revert web-1 'before the upgrade'", watch_opts, 2,
     2, cli_instances_revert, MACHINES},
    {"instances forget", "INSTANCE SNAPSHOT", "remove a snapshot",
     "What is in use stays as it is.\n\nExample:\n  replant instances forget web-1 'before the upgrade'", NULL, 2, 2,
     cli_instances_forget, MACHINES},
    {"instances rm", "INSTANCE...", "remove instances with their disks and snapshots",
     "Examples:\n  replant instances rm web-1-trial --yes\n  replant instances rm imported --keep --yes",
     instance_rm_opts, 1, -1, cli_instances_rm, MACHINES},

    {"exports ls", "", "list the converted files that lie on the center", "Example:\n  replant exports ls", ls_opts, 0,
     0, cli_exports_ls, NULL},
    {"exports rm", "EXPORT...", "remove converted files from the center",
     "Example:\n  replant exports rm $(replant exports ls -q) --yes", rm_opts, 1, -1, cli_exports_rm, EXPORTS},

    {"codes create", "", "print the command that enrols a server",
     "The command is shown once. It may be run on as many servers as --uses says.\n\nExamples:\n"
     "  replant codes create --name 'shop servers' --uses 12\n"
     "  ssh root@web-1 \"$(replant codes create --uses 1)\"",
     code_opts, 0, 0, cli_codes_create, NULL},
    {"codes ls", "", "list the activation codes", "Example:\n  replant codes ls", ls_opts, 0, 0, cli_codes_ls, NULL},
    {"codes revoke", "CODE...", "let no further server enrol with codes",
     "Servers that are enrolled stay.\n\nExample:\n  replant codes revoke 'shop servers'", NULL, 1, -1,
     cli_codes_revoke, CODES},
    {"codes rm", "CODE...", "remove codes", "Example:\n  replant codes rm 'shop servers' --yes", rm_opts, 1, -1,
     cli_codes_rm, CODES},

    {"tokens create", "NAME", "make a token for a person or a program and print it",
     "The token is shown once, alone on the standard output.\n\nExample:\n"
     "  (umask 077; replant tokens create monitoring --role viewer > monitoring.token)\n"
     "  replant tokens create 'shop team' --role operator --scope team=shop",
     token_opts, 1, 1, cli_tokens_create, NULL},
    {"tokens ls", "", "list the tokens", "Example:\n  replant tokens ls", ls_opts, 0, 0, cli_tokens_ls, NULL},
    {"tokens rm", "TOKEN...", "remove tokens; they are refused from now on",
     "Example:\n  replant tokens rm monitoring --yes", rm_opts, 1, -1, cli_tokens_rm, TOKENS},

    {"subscriptions create", "NAME TARGET", "let the center tell somebody by itself, by a web hook or by mail",
     "TARGET is https://... or mailto:name@host,name@host. The secret that signs a web hook's messages is shown once,\n"
     "alone on the standard output. docs/notifications.md says what is sent.\n\nExamples:\n"
     "  replant subscriptions create chat https://chat.example.org/hooks/1 --event job.failed\n"
     "  replant subscriptions create night-shift mailto:night@example.org",
     subscribe_opts, 2, 2, cli_subscriptions_create, NULL},
    {"subscriptions ls", "", "list the subscriptions", "Example:\n  replant subscriptions ls", ls_opts, 0, 0,
     cli_subscriptions_ls, NULL},
    {"subscriptions show", "SUBSCRIPTION", "show a subscription, and how it went lately",
     "Example:\n  replant subscriptions show chat", NULL, 1, 1, cli_subscriptions_show, TOLD},
    {"subscriptions set", "SUBSCRIPTION", "tell other events, or elsewhere",
     "Example:\n  replant subscriptions set chat --event job.failed --event source.offline", subscription_opts, 1, 1,
     cli_subscriptions_set, TOLD},
    {"subscriptions test", "SUBSCRIPTION", "send a test message now, and say how it went",
     "Exits with 1 when it didn't get there.\n\nExample:\n  replant subscriptions test chat", NULL, 1, 1,
     cli_subscriptions_test, TOLD},
    {"subscriptions notices", "SUBSCRIPTION", "list what a subscription was told, or couldn't be, newest first",
     "Example:\n  replant subscriptions notices chat --state given_up", notice_opts, 1, 1, cli_subscriptions_notices,
     TOLD},
    {"subscriptions pause", "SUBSCRIPTION", "tell it nothing for now",
     "What happens meanwhile isn't told later.\n\nExample:\n  replant subscriptions pause chat", NULL, 1, 1,
     cli_subscriptions_pause, TOLD},
    {"subscriptions resume", "SUBSCRIPTION", "tell it again", "Example:\n  replant subscriptions resume chat", NULL, 1,
     1, cli_subscriptions_resume, TOLD},
    {"subscriptions rename", "SUBSCRIPTION NAME", "give a subscription another name",
     "Example:\n  replant subscriptions rename chat shop-chat", NULL, 2, 2, cli_subscriptions_rename, TOLD},
    {"subscriptions rm", "SUBSCRIPTION...", "remove subscriptions", "Example:\n  replant subscriptions rm chat --yes",
     rm_opts, 1, -1, cli_subscriptions_rm, TOLD},

    {"audit ls", "", "list who changed what, or was refused, newest first",
     "Examples:\n  replant audit ls --action deleteImage\n  replant audit ls --json | jq '.items[] | select(.status >= "
     "400)'",
     audit_opts, 0, 0, cli_audit_ls, NULL},

    {"regions add", "ID", "make a host of libvirt a region: instances can run there, and its domains be instances",
     "The host is connected to at once, as the center's user and without a password: with ssh by a key, with tls by\n"
     "certificates. Images are made at the center all the same.\n\nExample:\n"
     "  replant regions add rack2 --uri qemu+ssh://root@rack2.example.org/system --pool default",
     region_add_opts, 1, 1, cli_regions_add, NULL},
    {"regions rm", "REGION...", "forget regions; the hosts and their domains are left alone",
     "Not while jobs, images or instances belong to them.\n\nExample:\n  replant regions rm rack2 --yes", rm_opts, 1,
     -1, cli_regions_rm, REGIONS},
    {"regions ls", "", "list the places where instances run", "Example:\n  replant regions ls", ls_opts, 0, 0,
     cli_regions_ls, NULL},
    {"regions show", "REGION", "show a region and how much room it has", "Example:\n  replant regions show local", NULL,
     1, 1, cli_regions_show, REGIONS},
    {"regions instances", "REGION", "list the machines of a region, known to this center or not",
     "Example:\n  replant regions instances local", NULL, 1, 1, cli_regions_instances, REGIONS},
    {"regions set", "REGION", "set the addresses that data reaches the center by, or how a host is reached",
     "Without any, agents send the data to where the center is. Jobs on the private network take the private one.\n\n"
     "Example:\n  replant regions set local --private-address 10.0.0.5",
     region_opts, 1, 1, cli_regions_set, REGIONS},

    {"center holdings", "", "list what the center keeps, for whom, and how large it is",
     "What nobody owns any more is told apart.\n\nExamples:\n  replant center holdings --owner "
     "job-0123456789abcdef\n  replant center holdings --json | jq '.items[] | select(.orphan)'",
     holding_opts, 0, 0, cli_center_holdings, NULL},
    {"center sweep", "", "remove what a killed center left behind and certainly nobody needs",
     "The center does it itself every hour. Copies, images and instances are never removed by it.\n\n"
     "Example:\n  replant center sweep --dry-run",
     sweep_opts, 0, 0, cli_center_sweep, NULL},

    {"events follow", "", "print what happens in the center, as it happens",
     "With --json: a line with the changed object for each event.\n\nExample:\n"
     "  replant events follow --json | jq -c '{id, state}'",
     event_opts, 0, 0, cli_events_follow, NULL},
    {"version", "", "print the version of this program and of the center", "Example:\n  replant version", NULL, 0, 0,
     cli_version, NULL},
    {0},
};

static const struct opt_program program = {
    .name = "replant",
    .summary = "Migrates running servers, by way of a Replant center.",
    .commands = commands,
    .common = common,
    .details = "A SOURCE, JOB, IMAGE ... is a name, an id, or the beginning of an id.\n"
	       "Settings may stand in ~/.config/replant/config as well; see replant(1).\n\n"
	       "A first migration:\n"
	       "  replant codes create             # paste what it prints on the server, as root\n"
	       "  replant sources ls\n"
	       "  replant jobs create web-1 --watch\n"
	       "  replant images show web-1",
};

static int cli_exit(int r)
{
	if (r >= 0)
		return r;
	return r == -EAGAIN ? CLI_TEMPORARY : CLI_FAILED;
}

int cli_run(struct cli *c, int (*fn)(struct cli *, int, char **, struct err *), int argc, char **argv)
{
	struct err e = {0};
	int r = cli_settings(c, &e);

	if (r == 0)
		r = fn(c, argc, argv, &e);
	if (r < 0)
		out_error("%s", e.msg);
	cli_http_release(c);
	free(c->url);
	free(c->token);
	free(c->ca);
	if (fflush(stdout) != 0 || ferror(stdout)) {
		out_error("cannot write the output: %s", strerror(errno));
		return CLI_FAILED;
	}
	return cli_exit(r);
}

int main(int argc, char **argv)
{
	struct cli c = {.compression = CLI_UNSET,
			.rate = CLI_UNSET,
			.connections = CLI_UNSET,
			.max_images = CLI_UNSET,
			.max_freeze = CLI_UNSET,
			.valid_days = CLI_UNSET,
			.transition_cpus = CLI_UNSET,
			.transition_memory = CLI_UNSET,
			.uses = CLI_UNSET,
			.days = CLI_UNSET,
			.disk = CLI_UNSET,
			.since = CLI_UNSET,
			.run = CLI_UNSET,
			.cpus = CLI_UNSET,
			.memory = CLI_UNSET,
			.seconds = CLI_UNSET,
			.retry = 60};
	int r;

	/* `replant ... | head` ends quietly. (curl ignores the signal while it works on a connection.) */
	signal(SIGPIPE, SIG_DFL);
	out_init();
	if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) {
		out_error("cannot set up libcurl");
		return CLI_FAILED;
	}
	r = opt_main(&program, &c, argc, argv);
	curl_global_cleanup();
	free(c.tags.v);
	free(c.events.v);
	free(c.forwards.v);
	return r;
}
