/* The commands of replant-transition and their options. */
#pragma once

#include <stdbool.h>

struct transition_options {
	/* receive, verify */
	const char *dir, *listen, *run, *psk_file, *user, *min_free, *layers;
	bool once, clear;
};

int transition_receive(void *options, int argc, char **argv);
int transition_verify(void *options, int argc, char **argv);
