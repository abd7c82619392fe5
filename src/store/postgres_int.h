/* Inside of the store on PostgreSQL: connections, and statements with parameters. */
#pragma once

#include <libpq-fe.h>
#include <pthread.h>

#include "base/id.h"
#include "store/store_int.h"

struct err;

#define PG_READERS    8u  /* connections of reads outside a transaction; more threads wait */
#define PG_VALUES_MAX 128 /* parameters of one statement */

/*
 * One connection writes, whoever holds `write_lock`; reads have others and see what is committed. The lock of the
 * database that a transaction begins with makes transactions of all centers one behind the other: what one reads stays
 * as it is until it commits, and events become visible in the order of their ids.
 */
struct pg_store {
	struct store base;
	char *conninfo;
	pthread_mutex_t write_lock; /* held through a transaction */
	PGconn *writer;
	uint64_t event_count, audit_count; /* since the last trim */
	char center[ID_MAX], lease[32];    /* whose leases are ours, and their seconds as text */

	pthread_mutex_t pool_lock; /* of what follows */
	pthread_cond_t pool_free;
	PGconn *idle[PG_READERS];
	unsigned nidle, nreaders; /* readers: all, idle or not */
	bool in_transaction;
	pthread_t owner; /* of the transaction */
};

struct pg_query {
	const char *sql;
	int n;
	const char *const *values; /* text; NULL is NULL */
	bool text;                 /* all parameters are of type text, used or not; else the statement tells */
};

static inline struct pg_store *pg_own(struct store *s)
{
	return (struct pg_store *)s;
}

static inline void pg_clearp(PGresult **r)
{
	PQclear(*r);
}
#define _cleanup_result_ _cleanup_(pg_clearp)

/* Reads: in the calling thread's transaction, or any time. */
int pg_read(struct pg_store *s, const struct pg_query *q, PGresult **ret, struct err *e);
/* Writes: in the calling thread's transaction, or in one of its own. */
int pg_write(struct pg_store *s, const struct pg_query *q, PGresult **ret, struct err *e);
/* On one connection; other threads must not use it meanwhile. */
int pg_run(PGconn *c, const struct pg_query *q, PGresult **ret, struct err *e);
/* Rows that a write changed. */
size_t pg_changed(const PGresult *r);

/* ---- postgres_share.c ---- */
extern const struct store_share_ops pg_share_ops;
/* -ECANCELED: what the calling thread has its right to write from is another center's. */
int pg_check_fence(struct pg_store *s, struct err *e);
