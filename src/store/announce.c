#include "store/store.h"

#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/id.h"
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

static int finish(struct store *s, int r, struct err *e)
{
	if (r < 0) {
		s->ops->rollback(s);
		return r;
	}
	return s->ops->commit(s, e);
}

int store_change(struct store *s, const struct model_noun *n, const char *id, const char *verb,
		 int (*change)(void *row, void *arg, struct err *e), void *arg, void *row, struct err *e)
{
	int r = s->ops->begin(s, e);

	if (r < 0)
		return r;
	r = s->ops->get(s, n, id, row, e);
	if (r == 0)
		r = change(row, arg, e);
	if (r == 0)
		r = s->ops->put(s, n, row, e);
	if (r == 0 && verb)
		r = store_announce(s, n, verb, row, id_now(), e);
	return finish(s, r, e);
}

int store_forget(struct store *s, const struct model_noun *n, const char *id, struct err *e)
{
	int r = s->ops->begin(s, e);

	if (r < 0)
		return r;
	r = s->ops->remove(s, n, id, e);
	if (r == 0)
		r = store_announce_gone(s, n, id, id_now(), e);
	return finish(s, r, e);
}
