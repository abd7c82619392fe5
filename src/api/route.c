#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

#define PAGE "limit offset"
#define FIND PAGE " name name_prefix tag"

const struct api_route api_routes[] = {
    {"GET", "/", API_SIGNED, API_NO_BODY, NULL, "*", "getRpc", api_rpc, API_SCOPE_SHARED},
    {"POST", "/", API_SIGNED, API_FORM, NULL, "*", "postRpc", api_rpc, API_SCOPE_SHARED},
    {"GET", "/v1/version", API_PUBLIC, API_NO_BODY, NULL, NULL, "getVersion", api_get_version, API_SCOPE_SHARED},
    {"GET", "/v1/openapi.json", API_PUBLIC, API_NO_BODY, NULL, NULL, "getOpenapi", api_get_openapi, API_SCOPE_SHARED},
    {"GET", "/metrics", API_VIEWER, API_NO_BODY, NULL, NULL, "getMetrics", api_get_metrics},
    {"GET", "/agent/linux-x86_64", API_PUBLIC, API_NO_BODY, NULL, NULL, "getAgentProgram", api_get_agent,
     API_SCOPE_SHARED},

    {"POST", "/v1/codes", API_OPERATOR, API_JSON, NULL, NULL, "createCode", api_post_code},
    {"GET", "/v1/codes", API_OPERATOR, API_NO_BODY, NULL, PAGE " name name_prefix", "listCodes", api_list_codes},
    {"GET", "/v1/codes/{id}", API_OPERATOR, API_NO_BODY, "code", NULL, "getCode", api_get_code},
    {"POST", "/v1/codes/{id}/revoke", API_OPERATOR, API_JSON, "code", NULL, "revokeCode", api_revoke_code},
    {"DELETE", "/v1/codes/{id}", API_OPERATOR, API_NO_BODY, "code", NULL, "deleteCode", api_delete_code},

    {"POST", "/v1/tokens", API_ADMIN, API_JSON, NULL, NULL, "createToken", api_post_token},
    {"GET", "/v1/tokens", API_ADMIN, API_NO_BODY, NULL, PAGE, "listTokens", api_list_tokens},
    {"DELETE", "/v1/tokens/{id}", API_ADMIN, API_NO_BODY, "token", NULL, "deleteToken", api_delete_token},

    {"GET", "/v1/audit", API_ADMIN, API_NO_BODY, NULL, PAGE " who action object", "listAudit", api_list_audit},

    {"GET", "/v1/holdings", API_ADMIN, API_NO_BODY, NULL, "owner kind", "listHoldings", api_list_holdings},
    {"POST", "/v1/holdings/sweep", API_ADMIN, API_JSON, NULL, NULL, "sweepHoldings", api_sweep_holdings},

    {"POST", "/v1/subscriptions", API_ADMIN, API_JSON, NULL, NULL, "createSubscription", api_post_subscription},
    {"GET", "/v1/subscriptions", API_ADMIN, API_NO_BODY, NULL, PAGE " name name_prefix", "listSubscriptions",
     api_list_subscriptions},
    {"GET", "/v1/subscriptions/{id}", API_ADMIN, API_NO_BODY, "subscription", NULL, "getSubscription",
     api_get_subscription},
    {"PATCH", "/v1/subscriptions/{id}", API_ADMIN, API_JSON, "subscription", NULL, "updateSubscription",
     api_patch_subscription},
    {"DELETE", "/v1/subscriptions/{id}", API_ADMIN, API_NO_BODY, "subscription", NULL, "deleteSubscription",
     api_delete_subscription},
    {"POST", "/v1/subscriptions/{id}/test", API_ADMIN, API_JSON, "subscription", NULL, "testSubscription",
     api_test_subscription},
    {"GET", "/v1/notices", API_ADMIN, API_NO_BODY, NULL, PAGE " subscription event state", "listNotices",
     api_list_notices},
    {"GET", "/v1/notices/{id}", API_ADMIN, API_NO_BODY, "notice", NULL, "getNotice", api_get_notice},

    {"GET", "/v1/regions", API_VIEWER, API_NO_BODY, NULL, PAGE, "listRegions", api_list_regions, API_SCOPE_SHARED},
    {"GET", "/v1/regions/{id}", API_VIEWER, API_NO_BODY, "region", NULL, "getRegion", api_get_region, API_SCOPE_SHARED},
    {"POST", "/v1/regions", API_ADMIN, API_JSON, NULL, NULL, "createRegion", api_post_region},
    {"PATCH", "/v1/regions/{id}", API_ADMIN, API_JSON, "region", NULL, "updateRegion", api_patch_region},
    {"DELETE", "/v1/regions/{id}", API_ADMIN, API_NO_BODY, "region", NULL, "deleteRegion", api_delete_region},

    {"GET", "/v1/regions/{id}/instances", API_VIEWER, API_NO_BODY, "region", NULL, "listRegionInstances",
     api_list_region_instances},

    {"POST", "/v1/instances", API_OPERATOR, API_JSON, NULL, NULL, "createInstance", api_post_instance,
     API_SCOPE_HANDLER},
    {"POST", "/v1/instances/import", API_OPERATOR, API_JSON, NULL, NULL, "importInstance", api_import_instance},
    {"GET", "/v1/instances", API_VIEWER, API_NO_BODY, NULL, FIND " state region image", "listInstances",
     api_list_instances, API_SCOPE_HANDLER},
    {"GET", "/v1/instances/{id}", API_VIEWER, API_NO_BODY, "instance", NULL, "getInstance", api_get_instance,
     API_SCOPE_ROW},
    {"PATCH", "/v1/instances/{id}", API_OPERATOR, API_JSON, "instance", NULL, "updateInstance", api_patch_instance,
     API_SCOPE_ROW},
    {"DELETE", "/v1/instances/{id}", API_OPERATOR, API_NO_BODY, "instance", "keep force", "deleteInstance",
     api_delete_instance, API_SCOPE_ROW},
    {"POST", "/v1/instances/{id}/start", API_OPERATOR, API_JSON, "instance", NULL, "startInstance", api_start_instance,
     API_SCOPE_ROW},
    {"POST", "/v1/instances/{id}/stop", API_OPERATOR, API_JSON, "instance", NULL, "stopInstance", api_stop_instance,
     API_SCOPE_ROW},
    {"POST", "/v1/instances/{id}/restart", API_OPERATOR, API_JSON, "instance", NULL, "restartInstance",
     api_restart_instance, API_SCOPE_ROW},
    {"GET", "/v1/instances/{id}/screenshot", API_VIEWER, API_NO_BODY, "instance", NULL, "getInstanceScreenshot",
     api_get_instance_screenshot, API_SCOPE_ROW},
    {"GET", "/v1/instances/{id}/serial", API_VIEWER, API_NO_BODY, "instance", "since", "getInstanceSerial",
     api_get_instance_serial, API_SCOPE_ROW},
    {"POST", "/v1/instances/{id}/snapshots", API_OPERATOR, API_JSON, "instance", NULL, "createSnapshot",
     api_post_snapshot, API_SCOPE_ROW},
    {"GET", "/v1/instances/{id}/snapshots", API_VIEWER, API_NO_BODY, "instance", PAGE, "listSnapshots",
     api_list_snapshots, API_SCOPE_ROW},
    {"GET", "/v1/snapshots/{id}", API_VIEWER, API_NO_BODY, "snapshot", NULL, "getSnapshot", api_get_snapshot,
     API_SCOPE_ROW},
    {"DELETE", "/v1/snapshots/{id}", API_OPERATOR, API_NO_BODY, "snapshot", NULL, "deleteSnapshot", api_delete_snapshot,
     API_SCOPE_ROW},
    {"POST", "/v1/snapshots/{id}/revert", API_OPERATOR, API_JSON, "snapshot", NULL, "revertSnapshot",
     api_revert_snapshot, API_SCOPE_ROW},

    {"POST", "/v1/templates", API_OPERATOR, API_JSON, NULL, NULL, "createTemplate", api_post_template},
    {"GET", "/v1/templates", API_VIEWER, API_NO_BODY, NULL, PAGE " name name_prefix", "listTemplates",
     api_list_templates, API_SCOPE_SHARED},
    {"GET", "/v1/templates/{id}", API_VIEWER, API_NO_BODY, "template", NULL, "getTemplate", api_get_template,
     API_SCOPE_SHARED},
    {"PATCH", "/v1/templates/{id}", API_OPERATOR, API_JSON, "template", NULL, "updateTemplate", api_patch_template},
    {"DELETE", "/v1/templates/{id}", API_OPERATOR, API_NO_BODY, "template", NULL, "deleteTemplate",
     api_delete_template},

    {"POST", "/v1/workgroups", API_OPERATOR, API_JSON, NULL, NULL, "createWorkgroup", api_post_workgroup,
     API_SCOPE_HANDLER},
    {"GET", "/v1/workgroups", API_VIEWER, API_NO_BODY, NULL, FIND, "listWorkgroups", api_list_workgroups,
     API_SCOPE_HANDLER},
    {"GET", "/v1/workgroups/{id}", API_VIEWER, API_NO_BODY, "workgroup", NULL, "getWorkgroup", api_get_workgroup,
     API_SCOPE_ROW},
    {"PATCH", "/v1/workgroups/{id}", API_OPERATOR, API_JSON, "workgroup", NULL, "updateWorkgroup", api_patch_workgroup,
     API_SCOPE_ROW},
    {"DELETE", "/v1/workgroups/{id}", API_OPERATOR, API_NO_BODY, "workgroup", NULL, "deleteWorkgroup",
     api_delete_workgroup, API_SCOPE_ROW},
    {"POST", "/v1/workgroups/{id}/start", API_OPERATOR, API_JSON, "workgroup", NULL, "startWorkgroup",
     api_start_workgroup, API_SCOPE_ROW},
    {"POST", "/v1/workgroups/{id}/stop", API_OPERATOR, API_JSON, "workgroup", NULL, "stopWorkgroup", api_stop_workgroup,
     API_SCOPE_ROW},

    {"GET", "/v1/sources", API_VIEWER, API_NO_BODY, NULL, FIND " state hostname hostname_prefix workgroup",
     "listSources", api_list_sources, API_SCOPE_HANDLER},
    {"GET", "/v1/sources/{id}", API_VIEWER, API_NO_BODY, "source", NULL, "getSource", api_get_source, API_SCOPE_ROW},
    {"PATCH", "/v1/sources/{id}", API_OPERATOR, API_JSON, "source", NULL, "updateSource", api_patch_source,
     API_SCOPE_ROW},
    {"DELETE", "/v1/sources/{id}", API_OPERATOR, API_NO_BODY, "source", "force", "deleteSource", api_delete_source,
     API_SCOPE_ROW},

    {"POST", "/v1/jobs", API_OPERATOR, API_JSON, NULL, NULL, "createJob", api_post_job, API_SCOPE_HANDLER},
    {"GET", "/v1/jobs", API_VIEWER, API_NO_BODY, NULL,
     FIND " state stage source region template image_name client_token instance", "listJobs", api_list_jobs,
     API_SCOPE_HANDLER},
    {"GET", "/v1/jobs/{id}", API_VIEWER, API_NO_BODY, "job", NULL, "getJob", api_get_job, API_SCOPE_ROW},
    {"PATCH", "/v1/jobs/{id}", API_OPERATOR, API_JSON, "job", NULL, "updateJob", api_patch_job, API_SCOPE_ROW},
    {"DELETE", "/v1/jobs/{id}", API_OPERATOR, API_NO_BODY, "job", NULL, "deleteJob", api_delete_job, API_SCOPE_ROW},
    {"POST", "/v1/jobs/{id}/start", API_OPERATOR, API_JSON, "job", NULL, "startJob", api_start_job, API_SCOPE_ROW},
    {"POST", "/v1/jobs/{id}/stop", API_OPERATOR, API_JSON, "job", NULL, "stopJob", api_stop_job, API_SCOPE_ROW},
    {"POST", "/v1/jobs/{id}/run", API_OPERATOR, API_JSON, "job", NULL, "runJob", api_run_job, API_SCOPE_ROW},
    {"POST", "/v1/jobs/{id}/cutover", API_OPERATOR, API_JSON, "job", NULL, "cutOverJob", api_cut_over_job,
     API_SCOPE_ROW},
    {"POST", "/v1/jobs/{id}/rollback", API_OPERATOR, API_JSON, "job", NULL, "rollbackJob", api_rollback_job,
     API_SCOPE_ROW},
    {"POST", "/v1/jobs/{id}/confirm", API_OPERATOR, API_JSON, "job", NULL, "confirmJob", api_confirm_job,
     API_SCOPE_ROW},
    {"GET", "/v1/jobs/{id}/screenshot", API_VIEWER, API_NO_BODY, "job", NULL, "getJobScreenshot",
     api_get_job_screenshot, API_SCOPE_ROW},
    {"POST", "/v1/instances/{id}/rollback", API_OPERATOR, API_JSON, "instance", NULL, "rollbackInstance",
     api_rollback_instance, API_SCOPE_ROW},
    {"POST", "/v1/instances/{id}/confirm", API_OPERATOR, API_JSON, "instance", NULL, "confirmInstance",
     api_confirm_instance, API_SCOPE_ROW},
    {"GET", "/v1/jobs/{id}/test/screenshot", API_VIEWER, API_NO_BODY, "job", NULL, "getTestScreenshot",
     api_get_test_screenshot, API_SCOPE_ROW},
    {"GET", "/v1/jobs/{id}/runs", API_VIEWER, API_NO_BODY, "job", PAGE, "listRuns", api_list_runs, API_SCOPE_ROW},
    {"GET", "/v1/jobs/{id}/logs", API_VIEWER, API_NO_BODY, "job", NULL, "listLogs", api_list_logs, API_SCOPE_ROW},
    {"GET", "/v1/jobs/{id}/log", API_VIEWER, API_NO_BODY, "job", "part run since", "getLog", api_get_log,
     API_SCOPE_ROW},
    {"GET", "/v1/jobs/{id}/bundle", API_VIEWER, API_NO_BODY, "job", NULL, "getBundle", api_get_bundle, API_SCOPE_ROW},

    {"GET", "/v1/images", API_VIEWER, API_NO_BODY, NULL, FIND " source job", "listImages", api_list_images,
     API_SCOPE_HANDLER},
    {"GET", "/v1/images/{id}", API_VIEWER, API_NO_BODY, "image", NULL, "getImage", api_get_image, API_SCOPE_ROW},
    {"PATCH", "/v1/images/{id}", API_OPERATOR, API_JSON, "image", NULL, "updateImage", api_patch_image, API_SCOPE_ROW},
    {"DELETE", "/v1/images/{id}", API_OPERATOR, API_NO_BODY, "image", NULL, "deleteImage", api_delete_image,
     API_SCOPE_ROW},
    {"GET", "/v1/images/{id}/report", API_VIEWER, API_NO_BODY, "image", NULL, "getImageReport", api_get_report,
     API_SCOPE_ROW},
    {"GET", "/v1/images/{id}/screenshot", API_VIEWER, API_NO_BODY, "image", NULL, "getImageScreenshot",
     api_get_screenshot, API_SCOPE_ROW},
    {"POST", "/v1/images/{id}/boot", API_OPERATOR, API_JSON, "image", NULL, "bootImage", api_boot_image, API_SCOPE_ROW},
    {"POST", "/v1/images/{id}/check", API_OPERATOR, API_JSON, "image", NULL, "checkImage", api_check_image,
     API_SCOPE_ROW},
    {"GET", "/v1/images/{id}/check", API_VIEWER, API_NO_BODY, "image", NULL, "getImageCheck", api_get_check,
     API_SCOPE_ROW},
    {"GET", "/v1/images/{id}/check.html", API_VIEWER, API_NO_BODY, "image", NULL, "getImageCheckPage",
     api_get_check_page, API_SCOPE_ROW},
    {"POST", "/v1/images/{id}/exports", API_OPERATOR, API_JSON, "image", NULL, "createExport", api_post_export,
     API_SCOPE_ROW},

    {"GET", "/v1/exports", API_VIEWER, API_NO_BODY, NULL, PAGE " image", "listExports", api_list_exports,
     API_SCOPE_HANDLER},
    {"GET", "/v1/exports/{id}", API_VIEWER, API_NO_BODY, "export", NULL, "getExport", api_get_export, API_SCOPE_ROW},
    {"DELETE", "/v1/exports/{id}", API_OPERATOR, API_NO_BODY, "export", NULL, "deleteExport", api_delete_export,
     API_SCOPE_ROW},
    {"GET", "/v1/exports/{id}/data", API_OPERATOR, API_NO_BODY, "export", NULL, "getExportData", api_get_export_data,
     API_SCOPE_ROW},

    {"GET", "/v1/events", API_VIEWER, API_NO_BODY, NULL, "since", "streamEvents", api_get_events, API_SCOPE_HANDLER},

    {"POST", "/v1/agent/enroll", API_PUBLIC, API_JSON, NULL, NULL, "enrollAgent", api_agent_enroll},
    {"POST", "/v1/agent/sync", API_AGENT, API_JSON_BIG, NULL, NULL, "syncAgent", api_agent_sync},
    {0},
};

static bool id_fits(const char *noun, const char *s)
{
	if (strcmp(noun, "region") != 0)
		return id_is(noun, s);
	return *s && strspn(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == strlen(s);
}

/* Patterns have at most one {id}, a whole segment. */
static bool path_fits(const struct api_route *r, const char *path, char id[ID_MAX])
{
	const char *hole = strstr(r->pattern, "{id}");
	size_t before, n;

	if (!hole)
		return strcmp(r->pattern, path) == 0;
	before = (size_t)(hole - r->pattern);
	if (strncmp(r->pattern, path, before) != 0)
		return false;
	n = strcspn(path + before, "/");
	if (n >= ID_MAX || strcmp(path + before + n, hole + strlen("{id}")) != 0)
		return false;
	memcpy(id, path + before, n);
	id[n] = '\0';
	return id_fits(r->noun, id);
}

const struct api_route *api_match(const char *method, const char *path, char id[ID_MAX], struct str *ret_allow)
{
	if (strcmp(method, "HEAD") == 0)
		method = "GET";
	id[0] = '\0';
	for (const struct api_route *r = api_routes; r->method; r++) {
		if (!path_fits(r, path, id))
			continue;
		if (strcmp(r->method, method) == 0)
			return r;
		str_addf(ret_allow, "%s%s", ret_allow->len ? ", " : "", r->method);
	}
	return NULL;
}

bool api_route_at(size_t i, const char **ret_method, const char **ret_pattern, const char **ret_name,
		  const char **ret_access)
{
	static const char *const names[] = {"public", "signed", "agent", "viewer", "operator", "admin"};
	const struct api_route *r = &api_routes[i];

	if (!r->method)
		return false;
	*ret_method = r->method;
	*ret_pattern = r->pattern;
	*ret_name = r->name;
	*ret_access = names[r->access];
	return true;
}

const char *api_route_find(const char *method, const char *path, char *id, bool *ret_path_known)
{
	_cleanup_(str_release) struct str allow = {0};
	const struct api_route *r = api_match(method, path, id, &allow);

	*ret_path_known = r || allow.len;
	return r ? r->name : NULL;
}
