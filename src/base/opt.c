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
	printf("Usage: %s COMMAND [OPTION]...\n\n%s\n\nCommands:\n", p->name, p->summary);
	for (const struct opt_command *c = p->commands; c->name; c++) {
		char left[64];

		snprintf(left, sizeof(left), "%s %s", c->name, c->args);
		printf("  %-30s %s\n", left, c->help);
	}
	if (p->details)
		printf("\n%s\n", p->details);
	printf("\n'%s COMMAND --help' tells more. '%s --version' prints the version.\n", p->name, p->name);
}

/* bash: the words of the commands, then the options of the command found. */
static void opt_completion(const struct opt_program *p)
{
	const struct opt *rows[OPT_MAX];

	printf("_%s() {\n\tlocal cur=${COMP_WORDS[COMP_CWORD]} line=\" ${COMP_WORDS[*]:1} \" words=\"\"\n", "replant_complete");
	printf("\tcase $line in\n");
	for (const struct opt_command *c = p->commands; c->name; c++) {
		size_t n = opt_rows(p, c, rows);

		printf("\t\" %s \"*) words=\"", c->name);
		for (size_t i = 0; i < n; i++)
			printf("--%s ", rows[i]->name);
		printf("--help\" ;;\n");
	}
	printf("\t*) words=$(printf '%%s\\n'");
	for (const struct opt_command *c = p->commands; c->name; c++)
		printf(" '%s'", c->name);
	printf(" | awk -v n=$((COMP_CWORD)) -v have=\"${COMP_WORDS[*]:1:COMP_CWORD-1}\" "
	       "'have == \"\" || index($0 \" \", have \" \") == 1 { print $n }') ;;\n\tesac\n");
	printf("\tmapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n}\n");
	printf("complete -o default -F _%s %s\n", "replant_complete", p->name);
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
		if (str_u64(value, o->min, o->max, &n) < 0) {
			fprintf(stderr, "--%s '%s' is not a number from %" PRIu64 " to %" PRIu64 "\n", o->name, value,
				o->min, o->max);
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

static int opt_usage_hint(const struct opt_program *p, const struct opt_command *c)
{
	fprintf(stderr, "Try '%s %s --help'.\n", p->name, c->name);
	return 2;
}

static int opt_run_command(const struct opt_program *p, const struct opt_command *c, void *options, int argc,
			   char **argv)
{
	const struct opt *rows[OPT_MAX];
	struct option longs[OPT_MAX + 2];
	char shorts[2 * OPT_MAX + 2];
	bool given[OPT_MAX] = {0};
	size_t n = opt_rows(p, c, rows);
	int got, operands;

	opt_getopt_tables(rows, n, longs, shorts);
	optind = 1;
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

int opt_main(const struct opt_program *p, void *options, int argc, char **argv)
{
	const struct opt_command *c;
	int words;

	if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || strcmp(argv[1], "help") == 0) {
		opt_help_program(p);
		return argc < 2 ? 2 : 0;
	}
	if (strcmp(argv[1], "--version") == 0) {
		printf("%s %s\n", p->name, REPLANT_VERSION);
		return 0;
	}
	if (strcmp(argv[1], "--completion") == 0) {
		opt_completion(p);
		return 0;
	}
	c = opt_find(p, argc, argv, &words);
	if (!c) {
		fprintf(stderr, "%s: no command '%s%s%s'\nTry '%s --help'.\n", p->name, argv[1], argc > 2 ? " " : "",
			argc > 2 ? argv[2] : "", p->name);
		return 2;
	}
	return opt_run_command(p, c, options, argc - words, argv + words);
}
