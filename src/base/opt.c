#include "base/opt.h"

#include <errno.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/str.h"
#include "base/util.h"
#include "version.h"

#define OPT_MAX 64

/* What getopt returns for the rows is 1000 and up. */
enum { OPT_VERSION = 2000, OPT_COMPLETION };

/* The rows of a command: its own, then the common ones. */
static size_t opt_rows(const struct opt_program *p, const struct opt_command *c, const struct opt *rows[OPT_MAX])
{
	size_t n = 0;

	for (const struct opt *o = c ? c->opts : NULL; o && o->name; o++)
		rows[n++] = o;
	for (const struct opt *o = p->common; o && o->name; o++)
		rows[n++] = o;
	must(n < OPT_MAX);
	return n;
}

static void opt_print_row(const struct opt *o)
{
	char left[64];

	snprintf(left, sizeof(left), "%s%c%s--%s%s%s", o->letter ? "-" : " ", o->letter ? o->letter : ' ',
		 o->letter ? ", " : "  ", o->name, o->arg ? " " : "", o->arg ? o->arg : "");
	printf("  %-30s %s%s\n", left, o->help, o->required ? " (required)" : "");
}

static void opt_help_command(const struct opt_program *p, const struct opt_command *c)
{
	const struct opt *rows[OPT_MAX];
	size_t n = opt_rows(p, c, rows);

	printf("Usage: %s %s%s%s%s\n\n%s\n", p->name, c->name, n ? " [OPTION]..." : "", *c->args ? " " : "", c->args,
	       c->help);
	if (c->details)
		printf("\n%s\n", c->details);
	printf("\nOptions:\n");
	for (size_t i = 0; i < n; i++)
		opt_print_row(rows[i]);
	printf("  %-30s %s\n", "-h, --help", "show this help");
}

static void opt_help_program(const struct opt_program *p)
{
	printf("Usage: %s %sCOMMAND [OPTION]...\n\n%s\n\nCommands:\n", p->name, p->common ? "[OPTION]... " : "",
	       p->summary);
	for (const struct opt_command *c = p->commands; c->name; c++) {
		char left[64];

		snprintf(left, sizeof(left), "%s %s", c->name, c->args);
		printf("  %-30s %s\n", left, c->help);
	}
	if (p->common)
		printf("\nOptions of every command:\n");
	for (const struct opt *o = p->common; o && o->name; o++)
		opt_print_row(o);
	if (p->details)
		printf("\n%s\n", p->details);
	printf("\n'%s COMMAND --help' tells more. '%s --version' prints the version, '%s --completion' a completion "
	       "script for bash.\n",
	       p->name, p->name, p->name);
}

/* One row of the script's table: the command's words, its options, those that take a value, what prints operands. */
static void opt_completion_row(const struct opt_program *p, const struct opt_command *c)
{
	const struct opt *rows[OPT_MAX];
	size_t n = opt_rows(p, c, rows);

	printf("\t\"%s \"*)\n\t\tname='%s' options='--help", c->name, c->name);
	for (size_t i = 0; i < n; i++)
		printf(" --%s", rows[i]->name);
	printf("'\n\t\tvalued='");
	for (size_t i = 0; i < n; i++)
		if (rows[i]->kind != OPT_FLAG)
			printf(" --%s", rows[i]->name);
	printf(" '\n");
	for (size_t i = 0; i < n; i++)
		if (rows[i]->letter && rows[i]->kind != OPT_FLAG)
			printf("\t\tvalued+='-%c '\n", rows[i]->letter);
	printf("\t\toperands='%s' ;;\n", c->complete ? c->complete : "");
}

/* The longest name first, as opt_find() does it: "jobs" must not hide "jobs create". */
static void opt_completion_rows(const struct opt_program *p)
{
	size_t longest = 0;

	for (const struct opt_command *c = p->commands; c->name; c++)
		longest = MAX(longest, strlen(c->name));
	for (size_t len = longest; len > 0; len--)
		for (const struct opt_command *c = p->commands; c->name; c++)
			if (strlen(c->name) == len)
				opt_completion_row(p, c);
}

/*
 * bash: the words typed so far, without options and their values, are compared with the commands' names. Every program
 * has functions of its own name, so that several scripts can be loaded in one shell.
 */
static void opt_completion(const struct opt_program *p)
{
	const char *id = p->name;

	printf("# bash completion for %s, printed by '%s --completion'\n", id, id);
	printf("_%s_command() {\n\tname='' options='' valued='' operands=''\n\tcase \"$1\" in\n", id);
	opt_completion_rows(p);
	printf("\t*)\n\t\toptions='--help --version --completion'\n\t\tvalued='");
	for (const struct opt *o = p->common; o && o->name; o++)
		if (o->kind != OPT_FLAG)
			printf(" --%s", o->name);
	printf(" ' ;;\n\tesac\n}\n\n");
	printf("_%s_names() {\n\tprintf '%%s\\n'", id);
	for (const struct opt_command *c = p->commands; c->name; c++)
		printf(" \\\n\t\t'%s'", c->name);
	printf("\n}\n\n");
	printf("_%s() {\n"
	       "\tlocal cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} have='' words='' i\n"
	       "\tlocal name options valued operands\n"
	       "\t_%s_command ''\n"
	       "\tfor ((i = 1; i < COMP_CWORD; i++)); do\n"
	       "\t\tcase ${COMP_WORDS[i]} in\n"
	       "\t\t-*) [[ $valued == *\" ${COMP_WORDS[i]} \"* ]] && i=$((i + 1)) ;;\n"
	       "\t\t*) have+=\"${COMP_WORDS[i]} \"; _%s_command \"$have\" ;;\n"
	       "\t\tesac\n"
	       "\tdone\n"
	       "\tCOMPREPLY=()\n"
	       "\t[[ $valued == *\" $prev \"* ]] && return\n"
	       "\tif [[ $cur == -* ]]; then\n"
	       "\t\twords=$options\n"
	       "\telif [[ $name ]]; then\n"
	       "\t\t[[ $operands ]] && words=$($operands 2>/dev/null)\n"
	       "\t\twords=${words//[^a-zA-Z0-9._[:space:]-]/} # compgen would expand the rest\n"
	       "\telse\n"
	       "\t\twords=$(_%s_names | while read -r i; do\n"
	       "\t\t\t[[ \"$i \" == \"$have\"* ]] && i=${i:${#have}} && echo \"${i%%%% *}\"; done)\n"
	       "\tfi\n"
	       "\tmapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\" | sort -u)\n"
	       "}\n"
	       "complete -o default -F _%s %s\n",
	       id, id, id, id, id, id);
}

/* How many of argv's words the command's name takes; 0: another command. */
static int opt_matches(const struct opt_command *c, int argc, char **argv)
{
	const char *name = c->name;
	int i = 1;

	for (;; i++) {
		size_t n = strcspn(name, " ");

		if (i >= argc || strlen(argv[i]) != n || strncmp(argv[i], name, n) != 0)
			return 0;
		if (!name[n])
			return i;
		name += n + 1;
	}
}

static const struct opt_command *opt_find(const struct opt_program *p, int argc, char **argv, int *ret_words)
{
	const struct opt_command *best = NULL;

	*ret_words = 0;
	for (const struct opt_command *c = p->commands; c->name; c++) {
		int n = opt_matches(c, argc, argv);

		if (n > *ret_words) {
			*ret_words = n;
			best = c;
		}
	}
	return best;
}

static int opt_store(const struct opt *o, void *options, const char *value)
{
	void *field = (char *)options + o->offset;
	struct opt_list *list = field;
	const char **v;
	uint64_t n;

	switch (o->kind) {
	case OPT_FLAG:
		*(bool *)field = true;
		return 0;
	case OPT_STRING:
		*(const char **)field = value;
		return 0;
	case OPT_U64:
		if (o->word && strcmp(value, o->word) == 0) {
			n = o->max + 1;
		} else if (str_u64(value, o->min, o->max, &n) < 0) {
			fprintf(stderr, "--%s '%s' is not a number from %" PRIu64 " to %" PRIu64 "%s%s\n", o->name,
				value, o->min, o->max, o->word ? " or " : "", o->word ? o->word : "");
			return -EINVAL;
		}
		*(uint64_t *)field = n;
		return 0;
	case OPT_LIST:
		v = realloc(list->v, (list->n + 1) * sizeof(*v));
		if (!v)
			return -ENOMEM;
		list->v = v;
		list->v[list->n++] = value;
		return 0;
	}
	never("option kind");
}

static size_t opt_getopt_tables(const struct opt *const rows[], size_t n, struct option longs[], char *shorts)
{
	size_t s = 0;

	for (size_t i = 0; i < n; i++) {
		longs[i] = (struct option){rows[i]->name, rows[i]->kind != OPT_FLAG, NULL, (int)(1000 + i)};
		if (rows[i]->letter) {
			shorts[s++] = rows[i]->letter;
			if (rows[i]->kind != OPT_FLAG)
				shorts[s++] = ':';
		}
	}
	longs[n] = (struct option){"help", 0, NULL, 'h'};
	longs[n + 1] = (struct option){0};
	shorts[s++] = 'h';
	shorts[s] = '\0';
	return n;
}

static size_t opt_row_of(const struct opt *const rows[], size_t n, int got)
{
	if (got >= 1000)
		return (size_t)(got - 1000);
	for (size_t i = 0; i < n; i++)
		if (rows[i]->letter == got)
			return i;
	return n;
}

static const struct opt_command opt_none = {.name = ""};

static int opt_usage_hint(const struct opt_program *p, const struct opt_command *c)
{
	fprintf(stderr, "Try '%s %s --help'.\n", p->name, c->name);
	return 2;
}

/* `before` tells which of the common options stood in front of the command. */
static int opt_run_command(const struct opt_program *p, const struct opt_command *c, void *options,
			   const bool before[OPT_MAX], int argc, char **argv)
{
	const struct opt *rows[OPT_MAX], *common[OPT_MAX];
	struct option longs[OPT_MAX + 2];
	char shorts[2 * OPT_MAX + 2];
	bool given[OPT_MAX] = {0};
	size_t n = opt_rows(p, c, rows);
	int got, operands;

	for (size_t i = 0, own = n - opt_rows(p, &opt_none, common); own + i < n; i++)
		given[own + i] = before[i];
	opt_getopt_tables(rows, n, longs, shorts);
	optind = 0; /* makes GNU getopt forget an earlier scan */
	while ((got = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
		size_t i = opt_row_of(rows, n, got);

		if (got == 'h' && i == n) {
			opt_help_command(p, c);
			return 0;
		}
		if (got == '?' || i >= n || opt_store(rows[i], options, optarg) < 0)
			return opt_usage_hint(p, c);
		given[i] = true;
	}
	for (size_t i = 0; i < n; i++)
		if (rows[i]->required && !given[i]) {
			fprintf(stderr, "%s %s: --%s is required\n", p->name, c->name, rows[i]->name);
			return opt_usage_hint(p, c);
		}
	operands = argc - optind;
	if (operands < c->min_args || (c->max_args >= 0 && operands > c->max_args)) {
		fprintf(stderr, "%s %s: %s operands (expected: %s)\n", p->name, c->name,
			operands < c->min_args ? "missing" : "too many", *c->args ? c->args : "none");
		return opt_usage_hint(p, c);
	}
	return c->run(options, operands, argv + optind);
}

/*
 * Common options in front of the command. Returns how many words of argv they take (argv[0] among them), 0 when the
 * program ends here with *ret_exit.
 */
static int opt_leading(const struct opt_program *p, void *options, int argc, char **argv, bool given[OPT_MAX],
		       int *ret_exit)
{
	const struct opt *rows[OPT_MAX];
	struct option longs[OPT_MAX + 4];
	char shorts[2 * OPT_MAX + 3] = "+"; /* stop at the first word that is no option */
	size_t n = opt_rows(p, &opt_none, rows), tail = n + 1;
	int got;

	opt_getopt_tables(rows, n, longs, shorts + 1);
	longs[tail++] = (struct option){"version", 0, NULL, OPT_VERSION};
	longs[tail++] = (struct option){"completion", 0, NULL, OPT_COMPLETION};
	longs[tail] = (struct option){0};
	optind = 0;
	while ((got = getopt_long(argc, argv, shorts, longs, NULL)) != -1) {
		size_t i = opt_row_of(rows, n, got);

		*ret_exit = 0;
		if (i < n && opt_store(rows[i], options, optarg) == 0) {
			given[i] = true;
			continue;
		}
		if (got == OPT_VERSION) {
			printf("%s %s\n", p->name, REPLANT_VERSION);
		} else if (got == OPT_COMPLETION) {
			opt_completion(p);
		} else if (got == 'h') {
			opt_help_program(p);
		} else {
			fprintf(stderr, "Try '%s --help'.\n", p->name);
			*ret_exit = 2;
		}
		return 0;
	}
	return optind;
}

/* Half a command is answered with what may follow. */
static void opt_no_command(const struct opt_program *p, int argc, char **argv)
{
	size_t n = strlen(argv[1]);
	bool half = false;

	for (const struct opt_command *c = p->commands; c->name; c++) {
		if (strncmp(c->name, argv[1], n) != 0 || c->name[n] != ' ')
			continue;
		if (!half)
			fprintf(stderr, "%s: after '%s' comes one of", p->name, argv[1]);
		fprintf(stderr, "%s %s", half ? "," : "", c->name + n + 1);
		half = true;
	}
	if (half)
		fprintf(stderr, "\n");
	else
		fprintf(stderr, "%s: no command '%s%s%s'\n", p->name, argv[1], argc > 2 ? " " : "",
			argc > 2 ? argv[2] : "");
	fprintf(stderr, "Try '%s --help'.\n", p->name);
}

int opt_main(const struct opt_program *p, void *options, int argc, char **argv)
{
	const struct opt_command *c;
	bool before[OPT_MAX] = {0};
	int lead, words, code;

	lead = opt_leading(p, options, argc, argv, before, &code);
	if (lead == 0)
		return code;
	if (argc == lead || strcmp(argv[lead], "help") == 0) {
		opt_help_program(p);
		return argc == lead ? 2 : 0;
	}
	argc -= lead - 1;
	argv += lead - 1;
	c = opt_find(p, argc, argv, &words);
	if (!c) {
		opt_no_command(p, argc, argv);
		return 2;
	}
	argv[words] = (char *)p->name; /* what getopt puts in front of its complaints */
	return opt_run_command(p, c, options, before, argc - words, argv + words);
}
