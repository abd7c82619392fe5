#include "store/store.h"

#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/util.h"

static int announce(struct store *s, const struct model_noun *n, const char *verb, json_t *data, double now,
		    struct err *e)
{
	_cleanup_free_ char *text = data ? jsn_text(data) : NULL;
	_cleanup_json_ json_t *id = NULL;
	char type[64];

	/* Who wants to know more asks for the row. */
	if (text && strlen(text) > STORE_EVENT_MAX) {
		free(text);
		id = json_pack("{s:O}", "id", json_object_get(data, "id"));
		text = id ? jsn_text(id) : NULL;
	}

	if (!text)
		return err_nomem(e);
	snprintf(type, sizeof(type), "%s.%s", n->name, verb);
	return s->ops->event_add(s, now, type, text, NULL, e);
}

int store_announce(struct store *s, const struct model_noun *n, const char *verb, const void *row, double now,
		   struct err *e)
{
	_cleanup_json_ json_t *data = model_event(n, row, now);

	return announce(s, n, verb, data, now, e);
}

int store_announce_gone(struct store *s, const struct model_noun *n, const char *id, double now, struct err *e)
{
	_cleanup_json_ json_t *data = json_pack("{s:s}", "id", id);

	return announce(s, n, "deleted", data, now, e);
}
