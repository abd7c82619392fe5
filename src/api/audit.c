/* Who did what: each request that changes something, or was refused for it, once the answer is known. Agents' own
 * reports aren't people's doing, and who has proved nothing could fill the table: those are in the log only. */
#include <string.h>

#include "api/api_int.h"
#include "base/log.h"
#include "base/util.h"

static bool changes(const struct api_request *q)
{
	return q->route && strcmp(q->method, "GET") != 0 && strcmp(q->method, "HEAD") != 0 &&
	       q->route->handler != api_agent_sync &&
	       q->route->access != API_SIGNED; /* its calls are told one by one */
}

static bool is_told(const struct api_request *q)
{
	return q->route->handler == api_agent_enroll ? q->status == 201 : *q->who && q->route->access != API_AGENT;
}

static int fill(const struct api_request *q, struct model_record *en)
{
	const char *made = json_string_value(json_object_get(q->json, "id"));
	const char *source = json_string_value(json_object_get(q->json, "source"));
	const char *object = *q->id ? q->id : q->route->handler == api_agent_enroll ? source : made;
	char id[ID_MAX];

	id_new("record", id);
	en->created = id_now();
	en->status = (uint64_t)q->status;
	en->role = q->route->handler == api_agent_enroll ? MODEL_NO_ROLE : q->role;
	if (model_set(&en->id, id) < 0 || model_set(&en->who, *q->who ? q->who : NULL) < 0 ||
	    model_set(&en->name, *q->who_name ? q->who_name : NULL) < 0 || model_set(&en->address, q->address) < 0 ||
	    model_set(&en->action, q->route->name) < 0 || model_set(&en->object, object) < 0 ||
	    model_set(&en->code, *q->fault.code ? q->fault.code : NULL) < 0)
		return -1;
	return 0;
}

void api_audit(struct api_request *q)
{
	_cleanup_(model_record_release) struct model_record en = {0};
	struct store *s = q->api->s.store;
	struct err e = {0};

	if (!changes(q))
		return;
	log_info("%s from %s: %s %s -> %d", *q->who ? q->who : "-", q->address, q->method, q->path, q->status);
	if (!is_told(q))
		return;
	if (fill(q, &en) < 0 || s->ops->audit_add(s, &en, &e) < 0)
		log_error("the audit log could not be written: %s", *e.msg ? e.msg : "out of memory");
}

int api_list_audit(struct api_request *q)
{
	return api_list(q, &model_records, NULL);
}
