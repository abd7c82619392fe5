/*
 * What the stores on SQL databases share: the text of their statements, made from the nouns' tables of fields, and what
 * becomes of a field's text. Only the connection, the binding of values and a few words differ.
 */
#pragma once

#include "base/embed.h"
#include "base/str.h"
#include "store/store.h"

#define STORE_AUDIT_TRIM_EVERY 1000u
#define STORE_EVENT_TRIM_EVERY 100u

/*
 * schema/NNN.sql, one step forward each. They are written for SQLite; sql_translate() makes PostgreSQL's of them by
 * replacing a few words, so there is one schema. Keep to what both understand (types INTEGER, REAL and TEXT in
 * capitals, no PRAGMA), and give every table STRICT and a primary key; WITHOUT ROWID may follow.
 */
extern const struct embed_file store_schema[];

struct sql_dialect {
	char mark;         /* what a parameter begins with: ?1 or $1 */
	const char *pairs; /* a table (key, value) of the column `tags` */
};

/* SELECT of the noun's columns WHERE `column` is the first parameter; `more`, of ours, follows it. */
void sql_get(struct str *sql, const struct sql_dialect *d, const struct model_noun *n, const char *column,
	     const char *more);
/* INSERT or replace: a parameter per field, in their order. */
void sql_put(struct str *sql, const struct sql_dialect *d, const struct model_noun *n);
/* Newest first. Parameters 2i + 1 and 2i + 2 are the value of filter i and, of a tag, its key. */
void sql_list(struct str *sql, const struct sql_dialect *d, const struct model_noun *n, const struct store_query *q);
void sql_count(struct str *sql, const struct sql_dialect *d, const struct model_noun *n, const struct store_query *q);
/* Forgets the oldest events. */
void sql_trim_events(struct str *sql);
void sql_translate(struct str *sql, const char *text);
/* How many steps this program knows. */
size_t sql_schema_version(void);

#define SQL_JOB_UNFINISHED " AND state NOT IN ('finished', 'deleting')"

/* Of fields that are text in the database: numbers and bools aren't. */
bool sql_is_text(const struct model_field *f);
/* From the column's text, NULL for none, into the struct's field at `p`. */
int sql_read_text(const struct model_field *f, const char *text, size_t len, void *p, struct err *e);
/* The other way: *ret is NULL for none; *ret_own is due to be freed. */
int sql_write_text(const struct model_field *f, const void *p, const char **ret, char **ret_own);
