/*
 * Is the copy what the source is? What ran on the source when it was copied (src/survey) against what a test boot saw.
 * Differences that a move brings with it are explained, each with its reason; all others are flagged. Of those some say
 * that something is missing, and the image is not verified; the rest are for people to look at.
 */
#pragma once

#include <jansson.h>

struct engine;

/*
 * Pure. source: {"survey","failed_units"}; survey: the copy's; conversion: its report, whose steps explain.
 * {"verified","sentence","counts":{"same","explained","flagged","critical"},"differences":[{"kind","what","source",
 * "copy","level":"explained"|"flagged","critical":bool,"why"}]}. All may have any shape, or be NULL. New reference.
 */
json_t *verify_compare(const json_t *source, const json_t *survey, const json_t *conversion);
/* What the copy has to have, and what its probe waits for: {"units":[name],"listening":["tcp/22"]}. New reference. */
json_t *verify_expect(const json_t *source, const json_t *conversion);

/* verify_boot.c: with the image is kept what its source was (survey and failed units of the inventory). */
void verify_keep(json_t *conversion, const json_t *inventory);
/*
 * What a test boot of the image needs: {"options":of the provider's call,"source","conversion"}. `checks`: scripts to
 * run; NULL: those of the image's job. New reference.
 */
json_t *verify_prepare(struct engine *en, const char *image, const json_t *checks);
/* Adds to the provider's report what the comparison and the checks say: "verification", "problems", "verified". */
void verify_finish(const json_t *prepared, json_t *report);
