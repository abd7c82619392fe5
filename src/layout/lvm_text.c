/* LVM2's text metadata: sections in braces, `key = value`, arrays, strings, numbers, comments. */
#include "layout/lvm_int.h"

#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/str.h"
#include "base/util.h"

struct parser {
	struct lvm_tree *t;
	char *p;
};

void lvm_text_release(struct lvm_tree *t)
{
	free(t->text);
	free(t->nodes);
	*t = (struct lvm_tree){0};
}

static void skip_space(struct parser *s)
{
	for (;;) {
		while (*s->p && isspace((unsigned char)*s->p))
			s->p++;
		if (*s->p != '#')
			return;
		while (*s->p && *s->p != '\n')
			s->p++;
	}
}

static struct lvm_node *new_node(struct parser *s, const char *key)
{
	struct lvm_node *n;

	if (s->t->nnodes == s->t->cap)
		return NULL;
	n = &s->t->nodes[s->t->nnodes++];
	*n = (struct lvm_node){.key = key};
	return n;
}

static bool is_word(char c)
{
	return isalnum((unsigned char)c) || (c && strchr("_.+-/:", c));
}

/* A bare word. The caller ends it with a NUL once it has looked at the character behind it. */
static char *take_word(struct parser *s, size_t *ret_len)
{
	char *w = s->p;

	while (is_word(*s->p))
		s->p++;
	*ret_len = (size_t)(s->p - w);
	return *ret_len ? w : NULL;
}

/* The text between quotes, unescaped in place; NULL when it doesn't end. */
static char *take_string(struct parser *s)
{
	char *start = ++s->p, *out = start;

	while (*s->p && *s->p != '"') {
		if (*s->p == '\\' && s->p[1])
			s->p++;
		*out++ = *s->p++;
	}
	if (*s->p != '"')
		return NULL;
	s->p++;
	*out = '\0';
	return start;
}

static int parse_value(struct parser *s, struct lvm_node *n, unsigned depth);

static int parse_array(struct parser *s, struct lvm_node *n, unsigned depth)
{
	struct lvm_node **tail = &n->child;

	n->kind = LVM_ARRAY;
	s->p++;
	skip_space(s);
	while (*s->p != ']') {
		struct lvm_node *item = new_node(s, "");
		int r = item ? parse_value(s, item, depth + 1) : -EBADMSG;

		if (r < 0)
			return r;
		*tail = item;
		tail = &item->next;
		skip_space(s);
		if (*s->p == ',') {
			s->p++;
			skip_space(s);
		} else if (*s->p != ']') {
			return -EBADMSG;
		}
	}
	s->p++;
	return 0;
}

static int parse_number(struct parser *s, struct lvm_node *n)
{
	size_t len;
	char *w = take_word(s, &len), old;

	if (!w)
		return -EBADMSG;
	old = w[len];
	w[len] = '\0';
	n->kind = LVM_NUMBER;
	if (str_u64(w, 0, UINT64_MAX, &n->number) < 0) { /* negative, a fraction: nothing we need, but legal */
		n->kind = LVM_STRING;
		n->string = "";
	}
	w[len] = old;
	return 0;
}

static int parse_value(struct parser *s, struct lvm_node *n, unsigned depth)
{
	if (depth > LVM_DEPTH_MAX)
		return -EBADMSG;
	skip_space(s);
	if (*s->p == '[')
		return parse_array(s, n, depth);
	if (*s->p != '"')
		return parse_number(s, n);
	n->kind = LVM_STRING;
	n->string = take_string(s);
	return n->string ? 0 : -EBADMSG;
}

static int parse_section(struct parser *s, struct lvm_node *n, unsigned depth);

/* `key = value` or `key { ... }`. */
static int parse_entry(struct parser *s, struct lvm_node *n, unsigned depth)
{
	size_t len;
	char *key = take_word(s, &len);
	int r = -EBADMSG;

	if (!key)
		return r;
	skip_space(s);
	if (*s->p == '=') {
		s->p++;
		r = parse_value(s, n, depth);
	} else if (*s->p == '{') {
		s->p++;
		r = parse_section(s, n, depth + 1);
	}
	/* The '=', '{' or space behind the key has been read by now. */
	key[len] = '\0';
	n->key = key;
	return r;
}

static int parse_section(struct parser *s, struct lvm_node *n, unsigned depth)
{
	struct lvm_node **tail = &n->child;

	if (depth > LVM_DEPTH_MAX)
		return -EBADMSG;
	n->kind = LVM_SECTION;
	for (skip_space(s); *s->p && *s->p != '}'; skip_space(s)) {
		struct lvm_node *item = new_node(s, "");
		int r = item ? parse_entry(s, item, depth) : -EBADMSG;

		if (r < 0)
			return r;
		*tail = item;
		tail = &item->next;
	}
	if ((*s->p == '}') != (depth > 0)) /* the outermost ends with the text, all others with a brace */
		return -EBADMSG;
	s->p += *s->p == '}';
	return 0;
}

struct named {
	const char *key;
};

static int by_key(const void *a, const void *b)
{
	return strcmp(((const struct named *)a)->key, ((const struct named *)b)->key);
}

/* Who writes a key twice leaves open which one counts. */
static int check_section(const struct lvm_node *section, struct named *scratch)
{
	size_t n = 0;

	for (const struct lvm_node *c = section->child; c; c = c->next)
		scratch[n++].key = c->key;
	qsort(scratch, n, sizeof(*scratch), by_key);
	for (size_t i = 1; i < n; i++)
		if (!strcmp(scratch[i - 1].key, scratch[i].key))
			return -EBADMSG;
	return 0;
}

static int check_keys(const struct lvm_tree *t, struct err *e)
{
	_cleanup_free_ struct named *scratch = calloc(t->nnodes + 1, sizeof(*scratch));
	int r = 0;

	if (!scratch)
		return err_nomem(e);
	for (size_t i = 0; !r && i < t->nnodes; i++)
		if (t->nodes[i].kind == LVM_SECTION)
			r = check_section(&t->nodes[i], scratch);
	return r;
}

int lvm_text_parse(struct lvm_tree *t, char *text, size_t len, struct err *e)
{
	struct parser s = {.t = t, .p = text};
	int r;

	t->text = text;
	text[len] = '\0';
	/* Every node takes at least two characters of text. */
	t->cap = MIN(len / 2 + 2, (size_t)LVM_NODES_MAX);
	t->nodes = malloc(t->cap * sizeof(*t->nodes));
	if (!t->nodes)
		return err_nomem(e);
	t->root = new_node(&s, "");
	r = parse_section(&s, t->root, 0);
	return r < 0 ? r : check_keys(t, e);
}

const struct lvm_node *lvm_text_get(const struct lvm_node *section, const char *key, enum lvm_kind kind)
{
	for (const struct lvm_node *n = section ? section->child : NULL; n; n = n->next)
		if (!strcmp(n->key, key))
			return n->kind == kind ? n : NULL;
	return NULL;
}

const char *lvm_text_string(const struct lvm_node *section, const char *key)
{
	const struct lvm_node *n = lvm_text_get(section, key, LVM_STRING);

	return n ? n->string : NULL;
}

bool lvm_text_number(const struct lvm_node *section, const char *key, uint64_t max, uint64_t *ret)
{
	const struct lvm_node *n = lvm_text_get(section, key, LVM_NUMBER);

	if (!n || n->number > max)
		return false;
	*ret = n->number;
	return true;
}
