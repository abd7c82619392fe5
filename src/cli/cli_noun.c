/* What every noun can: be found by name or the beginning of its id, listed, shown, renamed, removed. */
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/id.h"
#include "base/jsn.h"
#include "base/util.h"
#include "cli/cli_int.h"

#define NOUN_PAGES_MAX 1000

/* Ids become part of a URL and of a shell's completion. */
bool cli_is_id(const char *s)
{
	size_t n = strlen(s);

	if (n == 0 || n >= ID_MAX || s[0] == '.' || s[0] == '-')
		return false;
	for (; *s; s++)
		if (!isalnum((unsigned char)*s) && !strchr("-_.", *s))
			return false;
	return true;
}

char *cli_path(const struct cli_noun *n, const char *id, const char *suffix)
{
	must(cli_is_id(id));
	return str_printf("%s/%s%s", n->path, id, suffix);
}

/* len 0: all of it. */
static void filter_add(struct cli *c, struct str *b, const char *name, const char *value, size_t len)
{
	char *text = value ? curl_easy_escape(c->curl, value, (int)len) : NULL;

	if (value)
		str_addf(b, "&%s=%s", name, text ?: "");
	curl_free(text);
}

/* What a list was narrowed to, as a query. "web*" is a beginning. */
static int noun_filter(struct cli *c, struct str *b, struct err *e)
{
	size_t n = c->name ? strlen(c->name) : 0;
	bool prefix = n && c->name[n - 1] == '*';

	for (size_t i = 0; i < c->tags.n; i++)
		filter_add(c, b, "tag", c->tags.v[i], 0);
	if (n > prefix)
		filter_add(c, b, prefix ? "name_prefix" : "name", c->name, n - prefix);
	filter_add(c, b, "state", c->state, 0);
	filter_add(c, b, "who", c->who, 0);
	filter_add(c, b, "action", c->action, 0);
	filter_add(c, b, "object", c->object, 0);
	filter_add(c, b, "subscription", c->subscription, 0);
	return str_ok(b) ? 0 : err_nomem(e);
}

/* Adds one page's items; *ret_more says whether to ask for another. */
static int noun_page(struct cli *c, const struct cli_noun *n, const char *filter, json_t *items, bool *ret_more,
		     struct err *e)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *path = NULL;
	size_t have = json_array_size(items);
	json_t *page;
	int x;

	path = str_printf("%s?limit=%d&offset=%zu%s", n->path, CLI_PAGE, have, filter);
	if (!path)
		return err_nomem(e);
	x = cli_http(c, "GET", path, NULL, &r, e);
	if (x < 0)
		return x;
	page = json_object_get(r.json, "items");
	if (!json_is_array(page))
		return err_set(e, -EPROTO, "the center's list of %s has no items (is it another version?)", n->plural);
	if (json_array_extend(items, page) < 0)
		return err_nomem(e);
	*ret_more = json_array_size(page) > 0 && (double)json_array_size(items) < get_num(r.json, "total", 0);
	return 0;
}

static int noun_list(struct cli *c, const struct cli_noun *n, const char *filter, json_t **ret_items, struct err *e)
{
	json_t *items = json_array();
	bool more = true;
	int r = 0;

	if (!items)
		return err_nomem(e);
	for (size_t i = 0; more && r == 0 && i < NOUN_PAGES_MAX; i++)
		r = noun_page(c, n, filter, items, &more, e);
	if (r < 0) {
		json_decref(items);
		return r;
	}
	*ret_items = items;
	return 0;
}

int cli_list_query(struct cli *c, const struct cli_noun *n, const char *query, json_t **ret_items, struct err *e)
{
	return noun_list(c, n, query, ret_items, e);
}

int cli_list(struct cli *c, const struct cli_noun *n, json_t **ret_items, struct err *e)
{
	return noun_list(c, n, "", ret_items, e);
}

/* With or without the noun in front; less than three characters of the rest mean too much. */
static bool noun_id_starts(const struct cli_noun *n, const char *id, const char *word)
{
	size_t prefix = strlen(n->noun);

	if (str_starts(id, n->noun) && id[prefix] == '-')
		id += prefix + 1;
	if (str_starts(word, n->noun) && word[prefix] == '-')
		word += prefix + 1;
	return strlen(word) >= 3 && str_starts(id, word);
}

/* An exact id wins over a name, a name over the beginning of an id. */
static int noun_rank(const struct cli_noun *n, const json_t *item, const char *word)
{
	const char *id = get_str(item, "id");

	if (strcmp(id, word) == 0)
		return 3;
	if (strcmp(get_str(item, "name"), word) == 0)
		return 2;
	return noun_id_starts(n, id, word) ? 1 : 0;
}

static int noun_ambiguous(const struct cli_noun *n, const json_t *items, const char *word, int rank, struct err *e)
{
	_cleanup_(str_release) struct str b = {0};
	size_t i, found = 0;
	json_t *item;

	json_array_foreach(items, i, item)
	{
		if (noun_rank(n, item, word) == rank && found++ < 5)
			str_addf(&b, "%s%s", found > 1 ? ", " : "", get_str(item, "id"));
	}
	return err_set(e, -ENOTUNIQ, "%zu %s are meant by '%s': %s%s (give more of the id)", found, n->plural, word,
		       b.s ? b.s : "", found > 5 ? ", ..." : "");
}

int cli_match(const struct cli_noun *n, const json_t *items, const char *word, const json_t **ret, struct err *e)
{
	const json_t *best = NULL;
	bool twice = false;
	json_t *item;
	int rank = 0;
	size_t i;

	json_array_foreach(items, i, item)
	{
		int r = noun_rank(n, item, word);

		if (r < rank || r == 0)
			continue;
		twice = r == rank;
		rank = r;
		best = item;
	}
	if (!best)
		return err_set(e, -ENOENT, "there is no %s '%s' ('replant %s ls' lists them)", n->noun, word,
			       n->plural);
	if (twice)
		return noun_ambiguous(n, items, word, rank, e);
	if (!cli_is_id(get_str(best, "id")))
		return err_set(e, -EPROTO, "the center gave the %s '%s' an id that is none", n->noun, word);
	*ret = best;
	return 0;
}

int cli_find(struct cli *c, const struct cli_noun *n, const char *word, char **ret_id, struct err *e)
{
	_cleanup_json_ json_t *items = NULL;
	const json_t *item = NULL;
	int r;

	if (!id_is(n->noun, word)) {
		r = cli_list(c, n, &items, e);
		if (r == 0)
			r = cli_match(n, items, word, &item, e);
		if (r < 0)
			return r;
		word = get_str(item, "id");
	}
	*ret_id = strdup(word);
	return *ret_id ? 0 : err_nomem(e);
}

static int noun_print_ids(const json_t *items)
{
	json_t *item;
	size_t i;

	json_array_foreach(items, i, item) if (cli_is_id(get_str(item, "id"))) puts(get_str(item, "id"));
	return CLI_OK;
}

/* The API's own JSON, so one page; that there is more must not go unnoticed. */
static int noun_ls_json(struct cli *c, const struct cli_noun *n, const char *filter, struct err *e)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *path = str_printf("%s?limit=%d%s", n->path, CLI_PAGE, filter);
	size_t have;
	int x;

	if (!path)
		return err_nomem(e);
	x = cli_http(c, "GET", path, NULL, &r, e);
	out_json(&r.body);
	have = json_array_size(get(r.json, "items"));
	if (x == 0 && get_num(r.json, "total", 0) > (double)have)
		out_error("warning: only the first %zu of %.0f %s are printed", have, get_num(r.json, "total", 0),
			  n->plural);
	return x;
}

int cli_ls(struct cli *c, const struct cli_noun *n, struct err *e)
{
	_cleanup_json_ json_t *items = NULL;
	_cleanup_(str_release) struct str filter = {0};
	_cleanup_table_ struct out_table t = {0};
	json_t *item;
	size_t i;
	int x = noun_filter(c, &filter, e);

	if (x == 0 && c->json)
		return noun_ls_json(c, n, filter.s ?: "", e);
	if (x == 0)
		x = noun_list(c, n, filter.s ?: "", &items, e);
	if (x < 0)
		return x;
	if (c->quiet)
		return noun_print_ids(items);
	if (json_array_size(items) == 0) {
		if (filter.len)
			fprintf(stderr, "No %s match.\n", n->plural);
		else
			fprintf(stderr, "No %s. %s\n", n->plural, n->none);
		return CLI_OK;
	}
	if (n->prepare)
		n->prepare(c, items);
	out_table_init(&t, n->cols, 0);
	json_array_foreach(items, i, item) out_table_item(&t, item);
	return out_table_print(&t, e);
}

int cli_item(struct cli *c, const struct cli_noun *n, const char *word, const char *method, const char *suffix,
	     json_t *body, char **ret_id, struct cli_reply *r, struct err *e)
{
	_cleanup_free_ char *id = NULL, *path = NULL;
	int x = cli_find(c, n, word, &id, e);

	if (x < 0)
		return x;
	path = cli_path(n, id, suffix);
	if (!path)
		return err_nomem(e);
	*ret_id = take_ptr(&id);
	return cli_http(c, method, path, body, r, e);
}

int cli_show(struct cli *c, const struct cli_noun *n, const char *word, struct err *e)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *id = NULL;
	int x = cli_item(c, n, word, "GET", "", NULL, &id, &r, e);

	if (!id)
		return x;
	if (c->json)
		out_json(&r.body);
	else if (x == 0)
		n->show(c, r.json);
	return x;
}

void cli_done(struct cli *c, const struct cli_reply *r, const char *fmt, ...)
{
	_cleanup_(str_release) struct str b = {0};
	va_list ap;

	if (c->json) {
		out_json(&r->body);
		return;
	}
	va_start(ap, fmt);
	out_vclean(&b, fmt, ap);
	va_end(ap);
	if (b.s)
		printf("%s\n", b.s);
}

int cli_rename(struct cli *c, const struct cli_noun *n, const char *word, const char *name, struct err *e)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_json_ json_t *body = json_pack("{s:s}", "name", name);
	_cleanup_free_ char *id = NULL;
	int x;

	if (!body)
		return err_set(e, -EINVAL, "the name '%s' is not valid UTF-8", name);
	x = cli_item(c, n, word, "PATCH", "", body, &id, &r, e);
	if (id && (x == 0 || c->json))
		cli_done(c, &r, "%s %s is now called '%s'", n->noun, id, name);
	return x;
}

/* The name is asked about, not the id that was typed. */
static int noun_confirm(struct cli *c, const struct cli_noun *n, const char *word, struct err *e)
{
	_cleanup_json_ json_t *items = NULL;
	_cleanup_(str_release) struct str b = {0};
	const json_t *item = NULL;
	char answer[16];
	int r = cli_list(c, n, &items, e);

	if (r == 0)
		r = cli_match(n, items, word, &item, e);
	if (r < 0)
		return r;
	out_clean(&b, get_str(item, "name"));
	fprintf(stderr, "Remove %s %s%s%s%s? [y/N] ", n->noun, b.len ? "'" : "", b.len ? b.s : "", b.len ? "' " : "",
		get_str(item, "id"));
	fflush(stderr);
	if (!fgets(answer, sizeof(answer), stdin) ||
	    (strcasecmp(answer, "y\n") != 0 && strcasecmp(answer, "yes\n") != 0))
		return err_set(e, -ECANCELED, "%s %s was kept", n->noun, get_str(item, "id"));
	return 0;
}

static int noun_rm_one(struct cli *c, const struct cli_noun *n, const char *word, struct err *e)
{
	_cleanup_reply_ struct cli_reply r = {0};
	_cleanup_free_ char *id = NULL;
	int x = c->yes ? 0 : noun_confirm(c, n, word, e);

	if (x == 0)
		x = cli_item(c, n, word, "DELETE",
			     c->force  ? "?force=true"
			     : c->keep ? "?keep=true"
				       : "",
			     NULL, &id, &r, e);
	if (id && (x == 0 || c->json))
		cli_done(c, &r, "%s %s %s", n->noun, id,
			 strcmp(get_str(r.json, "state"), "deleting") == 0 ? "is being removed" : "removed");
	return x;
}

int cli_rm(struct cli *c, const struct cli_noun *n, int argc, char **argv, struct err *e)
{
	if (!c->yes && !(isatty(STDIN_FILENO) && isatty(STDERR_FILENO))) {
		out_error("nobody can be asked whether to remove (give --yes)");
		return CLI_USAGE;
	}
	for (int i = 0; i < argc; i++) {
		int r = noun_rm_one(c, n, argv[i], e);

		if (r < 0)
			return r;
	}
	return CLI_OK;
}

void cli_name_sources(struct cli *c, json_t *items)
{
	_cleanup_json_ json_t *sources = NULL;
	json_t *item, *source;
	size_t i, k;

	if (cli_list(c, &cli_source, &sources, NULL) < 0)
		return;
	json_array_foreach(items, i, item)
	{
		json_array_foreach(sources, k, source)
		{
			if (strcmp(get_str(item, "source"), get_str(source, "id")) == 0)
				json_object_set(item, "source_name", json_object_get(source, "name"));
		}
	}
}

enum out_colour cell_id(struct str *b, const json_t *item)
{
	out_clean(b, get_str(item, "id"));
	return OUT_DIM;
}

enum out_colour cell_name(struct str *b, const json_t *item)
{
	out_clean(b, get_str(item, "name"));
	return OUT_BOLD;
}

enum out_colour cell_state(struct str *b, const json_t *item)
{
	const char *s = get_str(item, "state");

	out_word(b, s);
	return out_state_colour(s);
}

enum out_colour cell_created(struct str *b, const json_t *item)
{
	out_when(b, get_num(item, "created", 0));
	return OUT_PLAIN;
}

/* ---- the commands that many nouns have ---- */

#define NOUN_LS(noun)                                                                                                  \
	CLI_COMMAND(noun##s_ls)                                                                                        \
	{                                                                                                              \
		return cli_ls(c, &cli_##noun, e);                                                                      \
	}
#define NOUN_SHOW(noun)                                                                                                \
	CLI_COMMAND(noun##s_show)                                                                                      \
	{                                                                                                              \
		return cli_show(c, &cli_##noun, argv[0], e);                                                           \
	}
#define NOUN_RENAME(noun)                                                                                              \
	CLI_COMMAND(noun##s_rename)                                                                                    \
	{                                                                                                              \
		return cli_rename(c, &cli_##noun, argv[0], argv[1], e);                                                \
	}
#define NOUN_RM(noun)                                                                                                  \
	CLI_COMMAND(noun##s_rm)                                                                                        \
	{                                                                                                              \
		return cli_rm(c, &cli_##noun, argc, argv, e);                                                          \
	}

/* clang-format off */
NOUN_LS(source) NOUN_SHOW(source) NOUN_RENAME(source) NOUN_RM(source)
NOUN_LS(job) NOUN_SHOW(job) NOUN_RENAME(job) NOUN_RM(job)
NOUN_LS(image) NOUN_SHOW(image) NOUN_RENAME(image) NOUN_RM(image)
NOUN_LS(export) NOUN_RM(export)
NOUN_LS(code) NOUN_RM(code)
NOUN_LS(token) NOUN_RM(token)
NOUN_LS(region) NOUN_SHOW(region) NOUN_RM(region)
NOUN_LS(template) NOUN_SHOW(template) NOUN_RENAME(template) NOUN_RM(template)
NOUN_LS(subscription) NOUN_SHOW(subscription) NOUN_RENAME(subscription) NOUN_RM(subscription)
NOUN_LS(workgroup) NOUN_SHOW(workgroup) NOUN_RENAME(workgroup) NOUN_RM(workgroup)
    /* clang-format on */
