/*
 * Takes secrets out of text before it is kept or handed out: what looks like one becomes '*', byte for byte, so that
 * lengths and offsets stay what they are. Known are values of members and options with telling names (password, token,
 * psk ...), tokens and activation codes of our own, bearer tokens, who logs in within a URL, private keys in PEM.
 */
#pragma once

#include <jansson.h>
#include <stddef.h>

/* Of one text, from piece to piece; zero-initialised at its beginning. Pieces end with lines. */
struct redact {
	unsigned key_lines; /* how many more may belong to a private key */
};
void redact_text(struct redact *r, char *s, size_t n);

/* A copy of the value without them, a new reference; NULL when out of memory. */
json_t *redact_json(const json_t *v);
