/* A request's body through the JSON parser and the model's readers: the first byte chooses the table. What is
 * accepted must keep the table's promises. */
#include <stdint.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/util.h"
#include "model/model.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct model_input *const tables[] = {
    model_job_request,    model_job_patch,        model_code_request, model_token_request,  model_rename_request,
    model_export_request, model_enroll_request,   model_sync_request, model_task_request,   model_error_request,
    model_parameters,     model_template_request, model_template_job, model_template_patch, model_workgroup_request,
    model_source_patch,   model_log_request,
};

static void check_row(const struct model_input *in, const void *p)
{
	const char *s;

	switch (in->kind) {
	case MODEL_TEXT:
	case MODEL_LINE:
		s = *(const char *const *)p;
		must(!s || (strlen(s) >= in->min && strlen(s) <= in->max));
		must(!s || in->kind == MODEL_TEXT || !strpbrk(s, "\r\n\t"));
		return;
	case MODEL_UINT:
		must(*(const uint64_t *)p >= in->min && *(const uint64_t *)p <= in->max);
		return;
	case MODEL_WORD:
		for (int i = 0; i <= *(const int *)p; i++)
			must(in->words[i]);
		return;
	case MODEL_TAGS:
		must(!*(json_t *const *)p || json_object_size(*(json_t *const *)p) <= MODEL_TAGS_MAX);
		return;
	case MODEL_JSON:
		must(!*(json_t *const *)p ||
		     (in->check ? json_is_array(*(json_t *const *)p) : json_is_object(*(json_t *const *)p)));
		return;
	case MODEL_BOOL:
	case MODEL_REAL:
		return;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	union {
		struct model_job_request a;
		struct model_enroll_request b;
		struct model_parameters c;
		unsigned char room[256];
	} out;
	_cleanup_json_ json_t *body = NULL, *progress = NULL;
	const struct model_input *table;
	const char *field;
	struct err e;
	int r;

	if (size < 1)
		return 0;
	table = tables[data[0] % ARRAY_SIZE(tables)];
	if (jsn_parse((const char *)data + 1, size - 1, 1 << 20, &body, &e) < 0)
		return 0;
	r = model_read(table, body, false, &out, &field, &e);
	must(r == 0 || strlen(e.msg) > 0);
	for (const struct model_input *in = table; r == 0 && in->name; in++)
		check_row(in, out.room + in->offset);
	progress = model_progress(body);
	must(progress);
	model_inventory_used(body);
	return 0;
}
