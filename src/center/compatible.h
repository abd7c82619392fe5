/* Can a source's copy run as that instance? A pure function of what both say of themselves. */
#pragma once

#include <jansson.h>
#include <stdbool.h>

#include "base/str.h"

/*
 * inventory: the agent's; instance: what the hypervisor's get() gives, NULL when it doesn't know it; capacity: the
 * hypervisor's, or NULL when room is no question (any more). An array of {"item","level":"passed"|"warning"|"critical",
 * "message","remedy":text or null}; what has several remedies is there several times. New reference, NULL when out of
 * memory.
 */
json_t *compatible_check(const json_t *inventory, const json_t *instance, const json_t *capacity);
/* Is none of them critical? */
bool compatible_passed(const json_t *findings);
/* What the critical ones say, with their remedies, in one sentence each. */
void compatible_summary(const json_t *findings, struct str *ret);
