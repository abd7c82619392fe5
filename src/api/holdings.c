/* What is kept, for whom, and its sweep: for admins, since it may be anybody's. */
#include <string.h>

#include "api/api_int.h"
#include "base/util.h"

/* A query that isn't given fits everything. */
static bool fits(struct api_request *q, const json_t *item, const char *key)
{
	const char *want = api_query(q, key), *is = json_string_value(json_object_get(item, key));

	return !want || strcmp(is ?: "", want) == 0;
}

static json_t *sums(const json_t *items)
{
	json_int_t bytes = 0, orphans = 0;
	json_t *item;
	size_t i;

	json_array_foreach(items, i, item)
	{
		bytes += json_integer_value(json_object_get(item, "bytes"));
		orphans += json_is_true(json_object_get(item, "orphan"));
	}
	return json_pack("{s:O, s:I, s:I, s:I}", "items", items, "total", (json_int_t)json_array_size(items), "bytes",
			 bytes, "orphans", orphans);
}

int api_list_holdings(struct api_request *q)
{
	const struct api_engine *en = &q->api->s.engine;
	_cleanup_json_ json_t *all = NULL, *items = json_array();
	json_t *item;
	size_t i;

	if (!items)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	if (en->holdings(en->arg, &all, &q->fault) < 0)
		return -1;
	json_array_foreach(all, i, item) if (fits(q, item, "owner") && fits(q, item, "kind"))
	    json_array_append(items, item);
	return api_answer(q, 200, sums(items));
}

int api_sweep_holdings(struct api_request *q)
{
	const struct api_engine *en = &q->api->s.engine;
	struct model_sweep_request in;
	json_t *report = NULL;

	if (api_read(q, model_sweep_request, q->body, false, &in) < 0 ||
	    en->sweep(en->arg, in.dry_run, &report, &q->fault) < 0)
		return -1;
	return api_answer(q, 200, report);
}

void api_metrics_holdings(struct api_request *q, struct str *b)
{
	const struct api_engine *en = &q->api->s.engine;
	_cleanup_json_ json_t *held = en->holdings_sums(en->arg);
	const char *kind;
	json_t *one;

	if (!held)
		return;
	str_add(b, "# HELP replant_holdings_bytes What is kept on the disk, by kind, at the last look.\n"
		   "# TYPE replant_holdings_bytes gauge\n");
	json_object_foreach(json_object_get(held, "kinds"), kind, one)
	    str_addf(b, "replant_holdings_bytes{kind=\"%s\"} %lld\n", kind,
		     (long long)json_integer_value(json_object_get(one, "bytes")));
	str_addf(b,
		 "# HELP replant_orphans Things that are kept for nobody, at the last look.\n"
		 "# TYPE replant_orphans gauge\nreplant_orphans %lld\n",
		 (long long)json_integer_value(json_object_get(held, "orphans")));
}
