/* IPv4 addresses as numbers (host byte order), and how one card is set up with them. */
#pragma once

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct err;

#define IP4_TEXT_MAX    16
#define IP4_NAMESERVERS 3

struct ip4_plan {
	uint32_t address;
	unsigned prefix;  /* 8 to 30 */
	uint32_t gateway; /* 0: none */
	uint32_t nameservers[IP4_NAMESERVERS];
	size_t nnameservers;
	char mac[18]; /* of the card, "52:54:00:12:34:56"; "": the one there is */
};

/* Four decimal numbers and nothing else. */
bool ip4_parse(const char *s, uint32_t *ret);
const char *ip4_format(uint32_t a, char buf[IP4_TEXT_MAX]);
uint32_t ip4_mask(unsigned prefix);
/* -EINVAL; *ret_field is "address", "gateway" or "nameservers". */
int ip4_plan_check(const struct ip4_plan *p, const char **ret_field, struct err *e);
/* {"address":"192.0.2.7","prefix":24,"gateway":null,"nameservers":[],"mac":null}, checked. */
int ip4_plan_read(const json_t *j, struct ip4_plan *ret, struct err *e);
json_t *ip4_plan_json(const struct ip4_plan *p);
