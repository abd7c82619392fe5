/*
 * Command lines from one table: parsing (getopt_long), --help and shell completion come from the same rows, so they
 * can't drift apart. A program with commands has one struct opt_command per command.
 */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum opt_kind {
	OPT_FLAG,   /* bool */
	OPT_STRING, /* const char * */
	OPT_U64,    /* uint64_t, min..max */
	OPT_LIST,   /* struct opt_list: may be given again */
};

struct opt_list {
	const char **v;
	size_t n;
};

/* One option of a command. `offset` is offsetof() into the program's options struct. */
struct opt {
	const char *name; /* without "--" */
	char letter;      /* 0: none */
	enum opt_kind kind;
	size_t offset;
	const char *arg;   /* name of the value in the help; NULL for flags */
	const char *help;  /* one line; the range and default belong here */
	uint64_t min, max; /* OPT_U64 */
	bool required;
	const char *word; /* OPT_U64: may stand for a number, and is max + 1 */
};

struct opt_command {
	const char *name;       /* "jobs create"; words separated by one space */
	const char *args;       /* operands in the synopsis, e.g. "SOURCE", or "" */
	const char *help;       /* one line */
	const char *details;    /* more paragraphs and examples for --help, or NULL */
	const struct opt *opts; /* ends with a NULL name, may be NULL */
	int min_args, max_args; /* operands; max -1: any number */
	int (*run)(void *options, int argc, char **argv);
	const char *complete; /* shell command that prints words for the operands (completion), or NULL */
};

struct opt_program {
	const char *name;
	const char *summary;
	const struct opt_command *commands; /* ends with a NULL name */
	const struct opt *common;           /* options of every command, NULL-name terminated, may be NULL */
	const char *details;                /* shown after the command list */
};

/*
 * Finds the command in argv (common options may stand before it), parses into `options` (which the caller has filled
 * with defaults; strings point into argv), runs it and returns its exit code. Prints help or usage errors itself: 0 for
 * --help and --version, 2 for wrong usage.
 * `--completion` prints a bash completion script.
 */
int opt_main(const struct opt_program *p, void *options, int argc, char **argv);
