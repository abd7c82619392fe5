#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "api/api_int.h"
#include "base/util.h"

#define FILTERS_MAX (24 + MODEL_TAGS_MAX)

static int fault_setv(struct api_fault *f, int status, const char *code, const char *field, const char *fmt, va_list ap)
{
	f->status = status;
	snprintf(f->code, sizeof(f->code), "%s", code);
	snprintf(f->field, sizeof(f->field), "%s", field ? field : "");
	vsnprintf(f->message, sizeof(f->message), fmt, ap);
	str_utf8(f->field);
	str_utf8(f->message);
	return -1;
}

int api_fault_set(struct api_fault *f, int status, const char *code, const char *field, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fault_setv(f, status, code, field, fmt, ap);
	va_end(ap);
	return -1;
}

int api_fault_err(struct api_fault *f, const struct err *e)
{
	switch (e->code) {
	case -ENOENT:
		return api_fault_set(f, 404, "not_found", NULL, "%s", e->msg);
	case -EEXIST:
		return api_fault_set(f, 409, "exists", NULL, "%s", e->msg);
	case -EBUSY:
		return api_fault_set(f, 409, "in_use", NULL, "%s", e->msg);
	case -ENOSPC:
		return api_fault_set(f, 507, "no_space", NULL, "%s", e->msg);
	default:
		return api_fault_set(f, 500, "internal", NULL, "%s", *e->msg ? e->msg : "something went wrong");
	}
}

int api_refuse(struct api_request *q, int status, const char *code, const char *field, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	fault_setv(&q->fault, status, code, field, fmt, ap);
	va_end(ap);
	return -1;
}

int api_fail(struct api_request *q, const struct err *e)
{
	return api_fault_err(&q->fault, e);
}

int api_answer(struct api_request *q, int status, json_t *json)
{
	if (!json)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	q->status = status;
	q->json = json;
	return 0;
}

int api_done(struct api_request *q)
{
	q->status = 204;
	return 0;
}

int api_answer_row(struct api_request *q, int status, const struct model_noun *n, const void *row)
{
	return api_answer(q, status, model_json(n, row, false, id_now()));
}

/* "bytes=N-" with N inside the file: where to begin. Every other range may be ignored, and is; 416 is for
 * what begins behind the end. */
static int range_start(struct api_request *q, uint64_t size, uint64_t *ret, bool *ret_partial)
{
	const char *range = MHD_lookup_connection_value(q->conn, MHD_HEADER_KIND, "Range");
	char number[24];
	size_t n;

	*ret = 0;
	*ret_partial = false;
	if (!range || MHD_lookup_connection_value(q->conn, MHD_HEADER_KIND, "If-Range") || !str_starts(range, "bytes="))
		return 0;
	range += strlen("bytes=");
	n = strspn(range, "0123456789");
	if (!n || n >= sizeof(number) || strcmp(range + n, "-") != 0)
		return 0;
	snprintf(number, sizeof(number), "%.*s", (int)n, range);
	if (str_u64(number, 0, UINT64_MAX, ret) < 0 || *ret >= size)
		return api_refuse(q, 416, "bad_range", NULL, "the file has only %llu bytes", (unsigned long long)size);
	*ret_partial = true;
	return 0;
}

static void add_header(struct MHD_Response *response, const char *name, char *value)
{
	if (value)
		MHD_add_response_header(response, name, value);
	free(value);
}

int api_answer_fd(struct api_request *q, int fd, const char *type, const char *file_name)
{
	_cleanup_close_ int own = fd;
	uint64_t size, start;
	struct stat st;
	bool partial;

	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
		return api_refuse(q, 404, "not_found", NULL, "the file is not there any more");
	size = (uint64_t)st.st_size;
	if (range_start(q, size, &start, &partial) < 0)
		return -1;
	q->response = MHD_create_response_from_fd_at_offset64(size - start, fd, start);
	if (!q->response)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	take_fd(&own);
	MHD_add_response_header(q->response, "Content-Type", type);
	MHD_add_response_header(q->response, "X-Content-Type-Options", "nosniff");
	MHD_add_response_header(q->response, "Accept-Ranges", "bytes");
	if (file_name)
		add_header(q->response, "Content-Disposition", str_printf("attachment; filename=\"%s\"", file_name));
	if (partial)
		add_header(q->response, "Content-Range",
			   str_printf("bytes %llu-%llu/%llu", (unsigned long long)start, (unsigned long long)size - 1,
				      (unsigned long long)size));
	q->status = partial ? 206 : 200;
	return 0;
}

int api_answer_picture(struct api_request *q, const char *path, const char *noun, const char *id, const char *none)
{
	int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW) : -1;

	if (fd < 0)
		return api_refuse(q, 404, "not_found", NULL, "%s '%s' has no %s", noun, id, none);
	return api_answer_fd(q, fd, "image/png", NULL);
}

int api_answer_log(struct api_request *q, const struct str *text, uint64_t end)
{
	char number[24];

	q->response = text->s ? MHD_create_response_from_buffer(text->len, text->s, MHD_RESPMEM_MUST_COPY)
			      : MHD_create_response_from_buffer(0, (void *)(uintptr_t) "", MHD_RESPMEM_PERSISTENT);
	if (!q->response)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	snprintf(number, sizeof(number), "%llu", (unsigned long long)end);
	MHD_add_response_header(q->response, "Content-Type", "text/plain; charset=utf-8");
	MHD_add_response_header(q->response, "X-Content-Type-Options", "nosniff");
	MHD_add_response_header(q->response, "Replant-Log-End", number);
	q->status = 200;
	return 0;
}

int api_read(struct api_request *q, const struct model_input *table, const json_t *body, bool keep, void *out)
{
	const char *field = NULL;
	struct err e = {0};

	if (model_read(table, body, keep, out, &field, &e) == 0)
		return 0;
	return api_refuse(q, 400, "bad_field", field, "%s", e.msg);
}

int api_read_part(struct api_request *q, const char *part, const struct model_input *table, const json_t *body,
		  bool keep, void *out)
{
	char inner[sizeof(q->fault.field)];

	if (api_read(q, table, body, keep, out) == 0)
		return 0;
	snprintf(inner, sizeof(inner), "%s", q->fault.field);
	snprintf(q->fault.field, sizeof(q->fault.field), "%.20s%s%.40s", part, *inner ? "." : "", inner);
	str_utf8(q->fault.field);
	return -1;
}

int api_read_nothing(struct api_request *q)
{
	static const struct model_input no_members[] = {{0}};
	char unused;

	return api_read(q, no_members, q->body, false, &unused);
}

const char *api_query(struct api_request *q, const char *name)
{
	for (size_t i = 0; i < q->nquery; i++)
		if (strcmp(q->query[i].name, name) == 0)
			return q->query[i].value;
	return NULL;
}

int api_row(struct api_request *q, const struct model_noun *n, void *row)
{
	struct store *s = q->api->s.store;
	struct err e = {0};

	return s->ops->get(s, n, q->id, row, &e) < 0 ? api_fail(q, &e) : 0;
}

int api_query_number(struct api_request *q, const char *name, uint64_t min, uint64_t max, uint64_t *ret)
{
	const char *s = api_query(q, name);

	if (s && str_u64(s, min, max, ret) < 0)
		return api_refuse(q, 400, "bad_parameter", name, "'%s' must be a number from %llu to %llu", name,
				  (unsigned long long)min, (unsigned long long)max);
	return 0;
}

/* What a listing is narrowed to. The query's own texts, but for the keys of tags. */
struct filters {
	struct api_request *q;
	const struct model_noun *noun;
	struct store_filter v[FILTERS_MAX];
	char *keys[FILTERS_MAX]; /* owned */
	size_t n;
};

static void filters_release(struct filters *f)
{
	for (size_t i = 0; i < f->n; i++)
		free(f->keys[i]);
}

/* "KEY=VALUE", or "KEY": whatever its value. */
static int filter_tag(struct filters *f, const char *value)
{
	const char *equals = strchr(value, '=');
	char *key = equals ? strndup(value, (size_t)(equals - value)) : strdup(value);

	if (!key)
		return api_refuse(f->q, 500, "internal", NULL, "out of memory");
	f->keys[f->n] = key;
	f->v[f->n++] = (struct store_filter){key, equals ? equals + 1 : NULL, STORE_TAG};
	return 0;
}

static int filter_column(struct filters *f, const char *name, const char *value)
{
	bool prefix = str_ends(name, "_prefix");
	size_t len = strlen(name) - (prefix ? strlen("_prefix") : 0);
	const struct model_field *mf = f->noun->fields;

	while (mf->name && (strncmp(mf->name, name, len) != 0 || mf->name[len]))
		mf++;
	must(mf->name); /* the route's list is ours */
	if (mf->kind == MODEL_WORD && (!*value || model_word(mf->words, value) < 0))
		return api_refuse(f->q, 400, "bad_parameter", mf->name, "'%.64s' is no %s", value, mf->name);
	f->v[f->n++] = (struct store_filter){mf->name, value, prefix ? STORE_PREFIX : STORE_EQUAL};
	return 0;
}

/* Those of the names in the route's list that aren't about the page: columns of the noun, COLUMN_prefix, tag. */
static int filter_add(struct filters *f, const char *name, const char *value)
{
	if (strcmp(name, "limit") == 0 || strcmp(name, "offset") == 0)
		return 0;
	if (f->n == FILTERS_MAX)
		return api_refuse(f->q, 400, "bad_parameter", name, "these are too many filters");
	return strcmp(name, "tag") == 0 ? filter_tag(f, value) : filter_column(f, name, value);
}

/* What the token is limited to. */
static int filter_scope(struct filters *f)
{
	if (!f->q->scope || !api_scope_noun(f->noun))
		return 0;
	if (f->n + json_object_size(f->q->scope) > FILTERS_MAX)
		return api_refuse(f->q, 400, "bad_parameter", NULL, "these are too many filters");
	f->n = api_scope_filters(f->q, f->v, f->n, FILTERS_MAX);
	return 0;
}

struct list {
	struct api_request *q;
	const struct model_noun *noun;
	void (*hook)(struct api_request *q, void *row);
	json_t *items;
	double now;
};

static int list_row(void *arg, void *row)
{
	struct list *l = arg;

	if (l->hook)
		l->hook(l->q, row);
	return json_array_append_new(l->items, model_json(l->noun, row, false, l->now)) < 0 ? -ENOMEM : 0;
}

int api_list_of(struct api_request *q, const struct model_noun *n, const struct store_filter *only,
		void (*hook)(struct api_request *q, void *row))
{
	struct store *s = q->api->s.store;
	struct list l = {.q = q, .noun = n, .hook = hook, .now = id_now()};
	_cleanup_(filters_release) struct filters filters = {.q = q, .noun = n};
	struct store_query sq = {.filters = filters.v, .limit = API_PAGE};
	_cleanup_json_ json_t *items = json_array();
	struct err e = {0};
	uint64_t total = 0;

	l.items = items;
	if (only)
		filters.v[filters.n++] = *only;
	if (api_query_number(q, "limit", 1, API_PAGE_MAX, &sq.limit) < 0 ||
	    api_query_number(q, "offset", 0, INT64_MAX, &sq.offset) < 0)
		return -1;
	for (size_t i = 0; i < q->nquery; i++)
		if (filter_add(&filters, q->query[i].name, q->query[i].value) < 0)
			return -1;
	if (filter_scope(&filters) < 0)
		return -1;
	sq.nfilters = filters.n;
	if (!items)
		return api_refuse(q, 500, "internal", NULL, "out of memory");
	if (s->ops->list(s, n, &sq, list_row, &l, &total, &e) < 0)
		return api_fail(q, &e);
	return api_answer(q, 200, json_pack("{s:O, s:I}", "items", items, "total", (json_int_t)total));
}

int api_list(struct api_request *q, const struct model_noun *n, void (*hook)(struct api_request *q, void *row))
{
	return api_list_of(q, n, NULL, hook);
}

int api_name_taken(struct api_request *q, const struct model_noun *n, const char *name)
{
	if (strcmp(q->fault.code, "exists") != 0)
		return -1;
	return api_refuse(q, 409, "exists", "name", "there is a %s called '%s' already", n->name, name);
}

int api_save(struct api_request *q, const struct model_noun *n, const char *verb, const void *row)
{
	struct store *s = q->api->s.store;
	struct err e = {0};

	if (s->ops->begin(s, &e) < 0)
		return api_fail(q, &e);
	if (s->ops->put(s, n, row, &e) < 0 || (verb && store_announce(s, n, verb, row, id_now(), &e) < 0)) {
		s->ops->rollback(s);
		return api_fail(q, &e);
	}
	return s->ops->commit(s, &e) < 0 ? api_fail(q, &e) : 0;
}

struct rename {
	const struct model_noun *noun;
	struct model_rename_request in;
};

static void *rename_field(const struct model_noun *n, void *row, const char *name, enum model_kind kind)
{
	const struct model_field *f = n->fields;

	while (f->name && strcmp(f->name, name) != 0)
		f++;
	must(f->name && f->kind == kind);
	return (char *)row + f->offset;
}

static int rename_text(const struct model_noun *n, void *row, const char *name, const char *text, struct err *e)
{
	return text && model_set(rename_field(n, row, name, MODEL_TEXT), text) < 0 ? err_nomem(e) : 0;
}

static int rename_row(void *row, void *arg, struct err *e)
{
	const struct rename *rn = arg;
	int r = rename_text(rn->noun, row, "name", rn->in.name, e);

	if (r == 0)
		r = rename_text(rn->noun, row, "description", rn->in.description, e);
	if (r == 0 && rn->in.tags)
		model_take_json(rename_field(rn->noun, row, "tags", MODEL_TAGS), json_incref(rn->in.tags));
	return r;
}

int api_rename(struct api_request *q, const struct model_noun *n, void *row)
{
	struct rename rn = {.noun = n};
	struct err e = {0};

	if (api_read(q, model_rename_request, q->body, false, &rn.in) < 0 || api_scope_keeps(q, rn.in.tags) < 0)
		return -1;
	if (store_change(q->api->s.store, n, q->id, "updated", rename_row, &rn, row, &e) < 0)
		return api_fail(q, &e);
	return api_answer_row(q, 200, n, row);
}
