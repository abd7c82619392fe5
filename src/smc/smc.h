/*
 * The API of Alibaba Cloud's Server Migration Center, version 2019-06-01 (RPC style), in front of Replant's own, so
 * that SDKs and scripts written for it work with another endpoint: a signed request comes in, calls of Replant's API go
 * out, and their answers become what the caller expects. It has no sockets, no store and no rights of its own: what a
 * key may do is what the calls are allowed. docs/smc.md says which actions and parameters have a counterpart.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "base/err.h"

#define SMC_BODY_MAX   (128u << 10)
#define SMC_PARAMS_MAX 4096u
#define SMC_SECRET_MAX 65u

/* A parameter of the query, decoded. Borrowed. */
struct smc_pair {
	const char *name, *value;
};

struct smc_request {
	const char *method, *host;
	const struct smc_pair *query;
	size_t nquery;
	const char *body; /* not NUL-terminated; NULL: none */
	size_t len;
	double now; /* unix time */
	/* The value of a header, by its name in lower case; NULL when it isn't there. */
	const char *(*header)(void *arg, const char *name);
	void *header_arg;
};

/* Why a call was refused, in the words of Replant's API. */
struct smc_refusal {
	int status;
	char code[64], field[64], message[ERR_MSG_MAX];
};

/* What serves the request. Functions return 0, or a negative errno. */
struct smc_service {
	void *arg;
	/* The secret of an access key; what follows is done in its name once the signature was right. -ENOENT */
	int (*secret)(void *arg, const char *key, char ret[SMC_SECRET_MAX]);
	/* Remembers a nonce until `expires`; -EEXIST: it was used before. */
	int (*nonce)(void *arg, const char *key, const char *nonce, double expires);
	/* A call of Replant's API: query values are strings or arrays of them. *ret: its answer, a new reference, NULL
	 * when there is none. */
	int (*call)(void *arg, const char *method, const char *path, const json_t *query, json_t *body, json_t **ret,
		    struct smc_refusal *why);
};

struct smc_answer {
	int status;
	char *text;       /* malloc'ed */
	const char *type; /* of the content */
	bool denied;      /* key or signature were wrong: whoever counts such things should */
};

/* Always answers; NULL text only when out of memory. */
void smc_serve(const struct smc_service *s, const struct smc_request *r, struct smc_answer *ret);
/* The answer to a request that never got as far as smc_serve(). */
void smc_refuse_early(const struct smc_refusal *why, const char *host, struct smc_answer *ret);
