/*
 * What a migration test found, and what the migration will take by it. Pure functions of what was measured and of what
 * agent, appliance and test boot said: outside text, of which as much is taken as people can read.
 */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/* All JSON is borrowed and may be NULL. */
struct findings_facts {
	const json_t *inventory, *result, *progress; /* the source's; the run's; the job's */
	const json_t *conversion, *boot;             /* reports; NULL: there is none, and why: */
	const char *conversion_error, *boot_error;
	const json_t *instance;                         /* what compatible_check() found, NULL: no instance is meant */
	double preparing, syncing, converting, booting; /* seconds they took */
	double image, cleaning;                         /* seconds these are likely to take, which no test does */
	uint64_t region_free;                           /* now, beside the copy; UINT64_MAX: not known */
	bool boots;                                     /* the migration has a test boot, too */
	bool keeps;                                     /* the copy stays, and the migration compares with it */
};

/*
 * {"items":[{"group","item","level":"passed"|"warning"|"critical","message","remedy":text or null}],"verdict":the worst
 * of them,"counts":{level:number},"copy":{...},"conversion","boot","prediction":{...}}; new reference, NULL when out of
 * memory.
 */
json_t *findings_report(const struct findings_facts *f);
/* How many are critical. */
unsigned findings_critical(const json_t *report);
/* Behind the migration: "actual", and by how much the prediction was wrong. */
void findings_conclude(json_t *report, const json_t *stages, const json_t *progress);
