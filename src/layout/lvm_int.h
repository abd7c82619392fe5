/* The tree LVM2's text metadata is parsed into, and the physical volumes found. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

#define LVM_TEXT_MAX  (8u << 20)
#define LVM_NODES_MAX (1u << 20)
#define LVM_DEPTH_MAX 8

enum lvm_kind { LVM_SECTION, LVM_ARRAY, LVM_STRING, LVM_NUMBER };

struct lvm_node {
	enum lvm_kind kind;
	const char *key;        /* "" for elements of arrays */
	const char *string;     /* LVM_STRING */
	uint64_t number;        /* LVM_NUMBER; what isn't a whole positive number is a string */
	struct lvm_node *child; /* first of a section or an array */
	struct lvm_node *next;
};

/* Takes `text` of len bytes with room for a NUL behind; the tree points into it. */
struct lvm_tree {
	char *text;
	struct lvm_node *nodes;
	size_t nnodes, cap;
	struct lvm_node *root; /* a section */
};

/* -EBADMSG (no message) when it isn't well-formed or has a key twice; -ENOMEM. The tree is released by the caller in
 * any case. */
int lvm_text_parse(struct lvm_tree *t, char *text, size_t len, struct err *e);
void lvm_text_release(struct lvm_tree *t);

/* NULL when there is none, or of another kind. `section` may be NULL. */
const struct lvm_node *lvm_text_get(const struct lvm_node *section, const char *key, enum lvm_kind kind);
const char *lvm_text_string(const struct lvm_node *section, const char *key);
bool lvm_text_number(const struct lvm_node *section, const char *key, uint64_t max, uint64_t *ret);

/* A physical volume: a volume of the layout with a label. */
struct lvm_pv {
	size_t volume; /* index into the layout's volumes */
	size_t disk;
	uint64_t offset, length; /* bytes on that disk */
	char uuid[33];
	bool broken;     /* a metadata area can't be relied on */
	unsigned claims; /* groups that count it theirs */
};

/* A metadata area's text, parsed. */
struct lvm_copy {
	size_t pv;
	uint32_t sum;
	uint64_t seqno;
	const char *id; /* of the group; in `tree` */
	const struct lvm_node *group;
	struct lvm_tree tree;
};

struct lvm_found {
	struct lvm_pv *pvs;
	size_t npvs;
	struct lvm_copy *copies;
	size_t ncopies, cap;
};

struct layout_build;
/* lvm_group.c: adds the logical volumes and free extents of a group whose metadata is `copy`; 1 and *why when it is not
 * understood. */
int lvm_group_add(struct layout_build *b, struct lvm_found *f, const struct lvm_copy *copy, const char **why,
		  struct err *e);
/* The PV of the group's metadata section `pv`, NULL when it isn't there. *ret_twice: there is more than one. */
struct lvm_pv *lvm_find_pv(const struct lvm_found *f, const struct lvm_node *pv, bool *ret_twice);
