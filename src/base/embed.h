/* Files that are part of a program: tools/embed.py makes arrays of these, which end with a NULL name. */
#pragma once

#include <stddef.h>

struct embed_file {
	const char *name; /* without directories */
	size_t size;
	const char *data; /* NUL behind its end */
};
