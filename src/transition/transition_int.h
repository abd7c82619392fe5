/* The commands of replant-transition and their options. */
#pragma once

#include <jansson.h>
#include <stdbool.h>

struct transition_options {
	/* receive, verify */
	const char *dir, *listen, *run, *psk_file, *user, *min_free, *layers;
	bool once, clear;
};

int transition_receive(void *options, int argc, char **argv);
int transition_verify(void *options, int argc, char **argv);
/*
 * Runs /usr/lib/replant/check-N for each {"name","timeout"}, in order: [{"name","status","timed_out","seconds",
 * "output"}], the last 4 KiB of what it wrote. New reference.
 */
json_t *probe_run_checks(const json_t *checks);
