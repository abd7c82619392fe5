/*
 * The command line `replant`: options and settings, HTTP to the center, output for people. One process, one thread, one
 * command. Everything the center sends is untrusted text: it reaches the terminal only through out_clean().
 */
#pragma once

#include <curl/curl.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/opt.h"
#include "base/str.h"

enum {
	CLI_OK = 0,
	CLI_FAILED = 1,
	CLI_USAGE = 2,
	CLI_TEMPORARY = 75, /* EX_TEMPFAIL: the same command may succeed later */
};

/* A number that was not given on the command line. */
#define CLI_UNSET      UINT64_MAX
#define CLI_LEVEL_AUTO 11u /* --compression auto */

/* What the options of all commands are parsed into, and what a command works with. */
struct cli {
	/* of every command */
	const char *server_opt, *token_file_opt, *ca_opt, *state_opt;
	bool json;
	/* of some */
	bool yes, force, start, watch, quiet, checksum, no_checksum, no_test_boot, no_image_check, repair, keep,
	    incremental, no_sync, dry_run, follow;
	const char *name, *description, *image_name, *region, *on_read_error, *role, *format, *output, *interval;
	const char *part, *diagnostic_logs;
	const char *at, *license, *client_token, *state, *template, *who, *action, *object, *network, *target,
	    *encryption;
	const char *public_address, *private_address, *uri, *pool, *accelerator;
	bool test, test_only, then_migrate, no_test;
	const char *address, *gateway;
	const char *onto; /* the instance to migrate onto */
	bool no_rollback;
	const char *owner, *kind; /* of what is kept */
	const char *html;         /* file for the page */
	struct opt_list tags, events, nameservers, checks;
	uint64_t check_timeout;                 /* 0: the center's */
	const char *cpu, *firmware, *bus, *mac; /* of instances */
	bool no_start;
	struct opt_list forwards;
	uint64_t cpus, memory, seconds;
	uint64_t valid_days, transition_cpus, transition_memory;
	uint64_t compression, rate, connections, max_images, max_freeze, uses, days, disk, since, retry, run;

	const char *subscription; /* whose notices are listed */

	/* settings found, owned */
	char *url, *token, *ca;
	CURL *curl;
	struct curl_slist *headers;
	long timeout; /* seconds for one request */
};

/* ---- cli_events.c: text/event-stream ---- */

struct cli_events {
	void (*event)(struct cli_events *v); /* one is complete: name, data and id are its */
	char name[64];
	struct str data;
	uint64_t id;
	bool broken; /* it sent more than is allowed */
	struct str line;
};
/* For curl: parses what has come. */
size_t cli_events_write(char *p, size_t size, size_t n, void *events);
/* Data as JSON, a new reference; NULL when it is none. */
json_t *cli_events_json(const struct cli_events *v);
void cli_events_release(struct cli_events *v);

/* A stream of events that is listened to beside other requests; where there is none, time passes instead. */
struct cli_follow {
	struct cli_events v; /* first */
	struct cli *c;
	bool (*ours)(void *arg, const char *id); /* is it about something we want to hear of? */
	void *arg;
	CURLM *multi;
	CURL *easy;
	bool live, never, news;
	double again;
};
/* Returns when there are news, but no sooner than half a second; or when it's time to ask without any: after a second
 * without a stream. */
void cli_follow_wait(struct cli_follow *f);
void cli_follow_release(struct cli_follow *f);

/* ---- cli_settings.c ---- */

/* Fills url, token and ca from options, state directory, environment and configuration file, in this order. */
int cli_settings(struct cli *c, struct err *e);

/* ---- cli_http.c ---- */

#define CLI_BODY_MAX (32u << 20)

struct cli_reply {
	long status; /* 0: no answer */
	struct str body;
	json_t *json; /* NULL when the body is empty */
};
void cli_reply_release(struct cli_reply *r);
#define _cleanup_reply_ __attribute__((cleanup(cli_reply_release)))

void cli_http_release(struct cli *c);
/* A handle of its own for a GET of `path`, ready for curl_multi_add_handle() but for where the body goes. */
int cli_http_open(struct cli *c, const char *path, CURL **ret, struct err *e);
/*
 * One request; `body` may be NULL. 0 when the center answered 2xx with JSON or nothing. Errors: -EAGAIN when trying
 * again may help (no connection, 429, 502 to 504), -ENOENT 404, -EACCES 401 and 403, -EBUSY 409, -EINVAL other 4xx,
 * -EPROTO not our API. The center's own message is in `e`; r->body holds its answer.
 */
int cli_http(struct cli *c, const char *method, const char *path, json_t *body, struct cli_reply *r, struct err *e);
/* Gets bytes as they come. `write` is curl's write callback. -EAGAIN as above; -ECANCELED when the callback refused. */
int cli_http_stream(struct cli *c, const char *path, uint64_t offset, curl_write_callback write, void *arg,
		    struct err *e);
/* GET into a file, by way of a temporary beside it. *size is what must arrive, UINT64_MAX when unknown. */
int cli_download(struct cli *c, const char *path, const char *file, uint64_t size, const char *what, struct err *e);

/* ---- cli_out.c ---- */

enum out_colour { OUT_PLAIN, OUT_BOLD, OUT_DIM, OUT_RED, OUT_GREEN, OUT_YELLOW, OUT_CYAN };

/* Once, at the start: locale, terminal, colours. */
void out_init(void);
bool out_tty(void);
/* Columns of the terminal; 0 when stdout is none. */
size_t out_width(void);
/* The locale can show more than ASCII. */
bool out_utf8(void);
const char *out_on(enum out_colour c);
const char *out_off(void);

/* Adds `s` with control characters, line breaks, bidirectional overrides and broken UTF-8 replaced. */
void out_clean(struct str *b, const char *s);
void out_vclean(struct str *b, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));
/* Columns that clean text takes. */
size_t out_columns(const char *s);
/* The first bytes of clean text that fit into `columns`, with an ellipsis if something is cut. */
void out_fit(struct str *b, const char *s, size_t columns);

/* "3 min ago", "in 12 days", "never" for 0; "1 h 12 min"; "5.0 GiB"; "112 MiB/s". Each adds to b. */
void out_when(struct str *b, double t);
void out_duration(struct str *b, double seconds);
void out_size(struct str *b, double bytes);
enum out_colour out_state_colour(const char *state);
/* A word of the API for people: cleaned, "in_error" as "in error". */
void out_word(struct str *b, const char *s);

/* "  Label            text", wrapped under itself; nothing when text is empty. Text is clean already. */
void out_field(const char *label, const char *text, enum out_colour c);
void out_fieldf(const char *label, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* Title with the text cleaned, in bold. */
void out_title(const char *name, const char *id);
void out_section(const char *title);
/* The API's JSON, byte for byte (C1 controls escaped on a terminal), and a line end. */
void out_json(const struct str *body);
/* The error on stderr, cleaned. */
void out_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/* ---- cli_table.c ---- */

struct out_col {
	const char *head;
	bool right; /* aligned to the right */
	int shrink; /* may be cut when the terminal is narrow: 2 first, 1 when that isn't enough, 0 never */
	/* Adds the cell for the item (cleaned); NULL for tables filled by hand. */
	enum out_colour (*cell)(struct str *b, const json_t *item);
};

struct out_table {
	const struct out_col *cols; /* ends with a NULL head */
	size_t ncols;
	struct out_cell *cells;
	size_t ncells, cap;
	size_t indent;
	bool failed;
};
void out_table_init(struct out_table *t, const struct out_col *cols, size_t indent);
void out_table_release(struct out_table *t);
#define _cleanup_table_ __attribute__((cleanup(out_table_release)))
/* Cells row by row. The text is taken from b, which is empty afterwards. */
void out_table_cell(struct out_table *t, struct str *b, enum out_colour c);
void out_table_item(struct out_table *t, const json_t *item);
int out_table_print(const struct out_table *t, struct err *e);

/* ---- cli_json.c: reading what the center sends, forgivingly ---- */

/* "progress.percent" -> the member, or NULL. */
const json_t *get(const json_t *o, const char *path);
/* "" when it isn't there or no string. */
const char *get_str(const json_t *o, const char *path);
/* `def` when it isn't there or no number. */
double get_num(const json_t *o, const char *path, double def);
bool get_true(const json_t *o, const char *path);

/* ---- cli_noun.c: what all nouns have in common ---- */

struct cli_noun {
	const char *noun;           /* "job": also the ids' prefix */
	const char *plural;         /* "jobs" */
	const char *path;           /* "/v1/jobs" */
	const struct out_col *cols; /* of `ls` */
	void (*show)(struct cli *c, json_t *item);
	const char *none;                              /* what an empty list says to do next */
	void (*prepare)(struct cli *c, json_t *items); /* before `cols` see them, or NULL */
};

extern const struct cli_noun cli_source, cli_job, cli_image, cli_export, cli_code, cli_token, cli_region, cli_template,
    cli_workgroup, cli_record, cli_subscription, cli_notice, cli_instance;

/* Name, id or the beginning of an id (with or without "job-") -> id. -ENOENT, -ENOTUNIQ. */
int cli_find(struct cli *c, const struct cli_noun *n, const char *word, char **ret_id, struct err *e);
/* The same among items that are there; *ret_item is borrowed from them. */
int cli_match(const struct cli_noun *n, const json_t *items, const char *word, const json_t **ret_item, struct err *e);
/* All items of a noun, whatever the pages; *ret_json is a new reference to an array. */
int cli_list(struct cli *c, const struct cli_noun *n, json_t **ret_items, struct err *e);
/* Those that match: "&workgroup=..." */
int cli_list_query(struct cli *c, const struct cli_noun *n, const char *query, json_t **ret_items, struct err *e);
/* May it be part of a URL? What the center calls an id must be asked first. */
bool cli_is_id(const char *s);
/* "/v1/jobs/ID" + suffix; the caller frees. */
char *cli_path(const struct cli_noun *n, const char *id, const char *suffix);
/* Asks something of one item: "POST" "/boot". *ret_id is set (the caller frees) once it's found, whatever the answer.
 */
int cli_item(struct cli *c, const struct cli_noun *n, const char *word, const char *method, const char *suffix,
	     json_t *body, char **ret_id, struct cli_reply *r, struct err *e);
int cli_ls(struct cli *c, const struct cli_noun *n, struct err *e);
int cli_show(struct cli *c, const struct cli_noun *n, const char *word, struct err *e);
int cli_rename(struct cli *c, const struct cli_noun *n, const char *word, const char *name, struct err *e);
int cli_rm(struct cli *c, const struct cli_noun *n, int argc, char **argv, struct err *e);
/* Prints the answer as JSON with --json, else the sentence. */
void cli_done(struct cli *c, const struct cli_reply *r, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Cells many lists share. */
enum out_colour cell_id(struct str *b, const json_t *item);
enum out_colour cell_name(struct str *b, const json_t *item);
enum out_colour cell_state(struct str *b, const json_t *item);
enum out_colour cell_created(struct str *b, const json_t *item);

/* Most a center gives in one answer. */
#define CLI_PAGE 500
/* Gives jobs and images "source_name": their sources' names instead of ids. Does without when it can't. */
void cli_name_sources(struct cli *c, json_t *items);

/* ---- cmd_jobs.c ---- */

/* Do the options of `jobs create` make sense? Says why not. */
bool cli_job_options_fit(const struct cli *c);
/* Those that were given, as the API wants them; source may be NULL. New reference. */
json_t *cli_job_request(const struct cli *c, const char *source);
/* cmd_switch.c: the instance that is named by --onto becomes part of the job's request. */
int cli_put_destination(struct cli *c, json_t *body, struct err *e);

/* "+2h", or a time of this host's clock and zone, or of the zone it names, as Unix time; 0 when it is neither. */
uint64_t cli_time(const char *text);

/* ---- cmd_testing.c ---- */
/* What a migration test said of the job, in a few fields; nothing when there was none. */
void cli_test_summary(const json_t *job);

/* ---- cli_checks.c ---- */
/* The scripts of --check; new reference. */
int cli_checks(const struct cli *c, json_t **ret, struct err *e);
/* Can they be read? Says why not. */
bool cli_checks_fit(const struct cli *c);
void cli_show_checks(const json_t *checks);
/* Of a test boot's report: what became of the scripts, and of the comparison with the source. */
void cli_show_verification(const json_t *report);

/* ---- cmd_sources.c ---- */
/* A table, if there are any. */
void cli_print_sources_of(struct cli *c, const char *workgroup);

/* ---- cmd_tags.c ---- */

/* "KEY=VALUE" */
int cli_tag_add(json_t *tags, const char *text, struct err *e);
/* A field of a thing that is shown. */
void cli_show_tags(const json_t *item);

/* ---- cli_watch.c ---- */

/* Watches jobs until each has ended; the exit code. */
int cli_watch(struct cli *c, char **ids, size_t n, struct err *e);
/* How far the stage is that a job is in; < 0: not known. */
double cli_percent(const json_t *job);
/* What a person should do about a job's error; NULL when nothing is known, or the message says it. */
const char *cli_remedy(const json_t *job);
void cli_sleep(double seconds);
/* The clock of a connection that is tried again: 0 when there is time left, else the error stands. */
struct cli_patience {
	double lost;       /* id_now_mono() of the first failure, 0 when all is well */
	unsigned failures; /* in a row */
};
void cli_patience_ok(struct cli_patience *p);
/* Sleeps with back-off and returns 0, or -EAGAIN with the error completed when --retry seconds are over. */
int cli_patience_wait(const struct cli *c, struct cli_patience *p, struct err *e);

/* ---- the commands; a table in main.c says which ---- */

/* Runs fn with the settings loaded, prints its error, releases everything; the exit code. */
int cli_run(struct cli *c, int (*fn)(struct cli *, int, char **, struct err *), int argc, char **argv);

typedef int cli_command_fn(void *options, int argc, char **argv);
#define CLI_COMMAND(name)                                                                                              \
	static int name(struct cli *c, int argc, char **argv, struct err *e);                                          \
	cli_command_fn cli_##name;                                                                                     \
	int cli_##name(void *options, int argc, char **argv)                                                           \
	{                                                                                                              \
		return cli_run(options, name, argc, argv);                                                             \
	}                                                                                                              \
	static int name(struct cli *c, int argc, char **argv, struct err *e)
