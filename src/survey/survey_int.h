/* The parts of a survey. The parsers take text, so that tests and fuzzers can. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/util.h"
#include "survey/survey.h"

#define SURVEY_SOCKETS_MAX  256
#define SURVEY_ACCOUNTS_MAX 1000

/* A file below root, at most max bytes; NULL when there is none (or it is none: pipes aren't opened). */
char *survey_read(const char *root, const char *path, size_t max);
/* A string of somebody else's, cut and made UTF-8. */
json_t *survey_string(const char *s, size_t n);
/* Notes in "cut" that the list isn't complete. */
void survey_cut(json_t *survey, const char *list);
/* Takes `value`; a full list is noted in "cut". False when it was full. */
bool survey_append(json_t *survey, const char *list, json_t *value, size_t max);
/* The next line of *text, and its length; NULL at the end. */
const char *survey_line(const char **text, size_t *ret_len);

/* ---- services.c ---- */
/* Blocks of "Key=value" as `systemctl show` prints them. */
void survey_parse_units(json_t *survey, const char *text);
void survey_services(json_t *survey, const char *root);

/* ---- sockets.c ---- */
struct survey_socket {
	uint64_t inode;
	uint16_t port;
	bool udp;
	unsigned reach;   /* 0 loopback, 1 one address, 2 any */
	char program[64]; /* "": not known */
	char unit[128];
};
/* Adds those of /proc/net/{tcp,udp}{,6} that wait for others; returns how many there are then. */
size_t survey_parse_sockets(const char *text, bool udp, bool v6, struct survey_socket *v, size_t n, size_t max);
/* The unit in /proc/PID/cgroup: the first .service or .scope of a path; "" when there is none. */
void survey_parse_cgroup(const char *text, char *out, size_t size);
void survey_listening(json_t *survey, const char *root);

/* ---- files.c ---- */
void survey_parse_accounts(json_t *survey, const char *list, const char *text);
void survey_parse_dpkg(json_t *survey, const char *text);
void survey_parse_mounts(json_t *survey, const char *mounts, const char *fstab);
void survey_parse_routes(json_t *survey, const char *text);
void survey_parse_modules(json_t *survey, const char *modules, const char *dep);
void survey_files(json_t *survey, const char *root);
