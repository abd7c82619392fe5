/* Inside the agent's check: what one check is given, and how it says what it found. */
#pragma once

#include <jansson.h>
#include <stdbool.h>

struct agent_options;

enum check_result { CHECK_OK, CHECK_WARNING, CHECK_FAILED };

struct check_ctx {
	const struct agent_options *opts;
	const json_t *inventory;
	json_t *items;
	const char *name; /* of the check at work */
	bool failed;
	bool said;
};

/* remedy: NULL when there is none. */
void check_say(struct check_ctx *c, enum check_result result, const char *remedy, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
const json_t *check_get(const struct check_ctx *c, const char *key);
/* "" when it isn't there. */
const char *check_text(const json_t *o, const char *key);
bool check_is(const char *s, const char *const list[]);

/* ---- check_state.c: what is the matter with it right now ---- */
void check_cpu(struct check_ctx *c);
void check_usage(struct check_ctx *c);
void check_firewall(struct check_ctx *c);
void check_proxy(struct check_ctx *c);
void check_kernel(struct check_ctx *c);
void check_licence(struct check_ctx *c);
