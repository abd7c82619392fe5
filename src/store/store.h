/*
 * Where the control plane keeps its nouns: named queries behind one table of functions, so that another
 * database can serve. Every call is complete when it returns: outside a transaction it's one of its own, and
 * what was committed survives a crash of the program and of the machine. Safe for many threads. Errors:
 * -ENOENT no such row, -EEXIST a rule of uniqueness, -EBUSY another row refers to it, -EIO and others with
 * the database's words.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "model/model.h"

struct err;
struct store;

#define STORE_EVENTS_KEPT 10000u /* older ones are dropped */
#define STORE_AUDIT_KEPT  100000u
#define STORE_EVENT_MAX   16384u /* bytes of an event's data; a bigger one has the id only */
#define STORE_SECRET_HEX  65u    /* a hash as text, with its NUL */

enum store_match {
	STORE_EQUAL,
	STORE_PREFIX,
	STORE_TAG, /* `column` is a tag's key; value NULL: the tag is there at all */
};

struct store_filter {
	const char *column; /* of the noun's fields; TEXT and WORD only */
	const char *value;
	enum store_match match;
};

struct store_query {
	const struct store_filter *filters; /* all must hold */
	size_t nfilters;
	uint64_t limit, offset; /* limit 0: all */
};

/* Is told one row at a time, newest first; may take what the row owns. Non-zero ends the listing and is
 * returned. */
typedef int (*store_each_fn)(void *arg, void *row);
typedef int (*store_event_fn)(void *arg, uint64_t id, const char *type, const char *data);

struct store_ops {
	/* A transaction of the calling thread; others wait. Doesn't nest. */
	int (*begin)(struct store *s, struct err *e);
	int (*commit)(struct store *s, struct err *e);
	void (*rollback)(struct store *s);

	/* *ret must be empty; on success model_release() is due. */
	int (*get)(struct store *s, const struct model_noun *n, const char *id, void *ret, struct err *e);
	/* Inserts the row, or replaces all columns of the one with its id. */
	int (*put)(struct store *s, const struct model_noun *n, const void *row, struct err *e);
	int (*remove)(struct store *s, const struct model_noun *n, const char *id, struct err *e);
	/* *ret_total (may be NULL): rows that match without limit and offset. */
	int (*list)(struct store *s, const struct model_noun *n, const struct store_query *q, store_each_fn each,
		    void *arg, uint64_t *ret_total, struct err *e);

	/* The job that keeps the source busy. */
	int (*unfinished_job)(struct store *s, const char *source, struct model_job *ret, struct err *e);
	int (*source_by_machine)(struct store *s, const char *machine_id, struct model_source *ret, struct err *e);
	/* Counts one use if any is left, it isn't revoked and `now` is before its end; else -EACCES. */
	int (*code_use)(struct store *s, const char *id, double now, struct err *e);

	int (*event_add)(struct store *s, double now, const char *type, const char *data, uint64_t *ret_id,
			 struct err *e);
	int (*audit_add)(struct store *s, const struct model_record *record, struct err *e);
	/* Remembers it until `expires`, and forgets what has expired; -EEXIST: it is remembered already. */
	int (*nonce_use)(struct store *s, const char *nonce, double now, double expires, struct err *e);
	/* Events after `since`, oldest first. */
	int (*events)(struct store *s, uint64_t since, uint64_t limit, store_event_fn each, void *arg, struct err *e);
	/* Ids of the oldest and newest kept event; both 0 when none is. */
	int (*event_range)(struct store *s, uint64_t *ret_first, uint64_t *ret_last, struct err *e);

	void (*close)(struct store *s);
};

/*
 * ---- several centers on one store ----
 * A lease is the right to work on something that has a name (a job, an image): one center has it, until it drops it or
 * lets it run out. Time is the database's.
 */
typedef void (*store_renewed_fn)(void *arg, const char *name, uint64_t stops, uint64_t news);
typedef void (*store_other_fn)(void *arg, const char *name, const json_t *what);
typedef void (*store_hearing_fn)(void *arg, const char *source, double ago);

struct store_share_ops {
	/* Who we are, and how long our leases last. Before everything else. What `gone` had ("": nobody) is free. */
	int (*join)(struct store *s, const char *center, const char *gone, double seconds, struct err *e);
	/* -EBUSY: it is another's. */
	int (*take)(struct store *s, const char *name, struct err *e);
	int (*drop)(struct store *s, const char *name, struct err *e);
	/* [{"name","view"}]: what we have lasts on, and others see the view. Told are those that are ours still, with
	 * the calls so far. */
	int (*renew)(struct store *s, const json_t *leases, store_renewed_fn each, void *arg, struct err *e);
	/* Others' leases with their views, NULL for none. */
	int (*others)(struct store *s, store_other_fn each, void *arg, struct err *e);
	/* To who has the lease: stop what you are doing and look, or only look. Also in a transaction. */
	int (*call)(struct store *s, const char *name, bool stop, struct err *e);
	/* [{"source","ago"}] that we heard of; those that another heard of in the last so many seconds. */
	int (*heard)(struct store *s, const json_t *list, struct err *e);
	int (*hearings)(struct store *s, double seconds, store_hearing_fn each, void *arg, struct err *e);
	/* For who has the job's lease, and what came for us, which is taken; oldest first. */
	int (*report)(struct store *s, const char *job, const json_t *body, struct err *e);
	int (*reports)(struct store *s, store_other_fn each, void *arg, struct err *e);
	/* From now on the calling thread changes nothing in the store unless that lease is ours at that moment: else
	 * -ECANCELED. NULL: whatever it likes. */
	void (*fence)(struct store *s, const char *name);
};

struct store {
	const struct store_ops *ops;
	const struct store_share_ops *share; /* NULL: one center has it to itself */
};

/* A file of ours (0600), made when missing and brought to this program's schema; refuses one of a later
 * program. */
int store_open_sqlite(const char *path, struct store **ret, struct err *e);
/*
 * A database of PostgreSQL by libpq's connection string or URI, brought to this program's schema; refuses one of a
 * later program. What the string leaves open is libpq's to find (service and password files, environment). -ENOSYS in a
 * program that was built without it.
 */
int store_open_postgres(const char *conninfo, struct store **ret, struct err *e);
/* Is it such a string, and does it hold a password? Opens nothing. */
int store_check_postgres(const char *conninfo, bool *ret_password, struct err *e);

/* NULL is fine. */
static inline void store_close(struct store *s)
{
	if (s)
		s->ops->close(s);
}
static inline void store_closep(struct store **s)
{
	store_close(*s);
}

/* Adds the event "<noun>.<verb>" with what model_event() tells of the row. */
int store_announce(struct store *s, const struct model_noun *n, const char *verb, const void *row, double now,
		   struct err *e);
/* "<noun>.deleted" with the id alone. */
int store_announce_gone(struct store *s, const struct model_noun *n, const char *id, double now, struct err *e);

/*
 * One row read, changed, written and announced ("<noun>.<verb>"; NULL: nobody is told) in one transaction. `row` must
 * be empty, and is what was written at the end; model_release() is due. When `change` fails, nothing is.
 */
int store_change(struct store *s, const struct model_noun *n, const char *id, const char *verb,
		 int (*change)(void *row, void *arg, struct err *e), void *arg, void *row, struct err *e);
/* Removed and announced in one transaction. */
int store_forget(struct store *s, const struct model_noun *n, const char *id, struct err *e);

/* ---- secrets ---- 256 random bits as 64 hex digits; kept as the hex SHA-256 of that text. */
void store_secret_new(char ret_secret[STORE_SECRET_HEX], char ret_hash[STORE_SECRET_HEX]);
/* What is kept of a text that need only be known again. */
void store_digest(const char *text, char ret[STORE_SECRET_HEX]);
/* In time that doesn't depend on where they differ. */
bool store_secret_matches(const char *secret, const char *hash);
