/*
 * guard_tool LIMIT HOLD-MS ROUNDS MOUNT...: starts a guard, waits for the end of standard input, freezes and thaws, and
 * says so. test_guard.py kills it and its children. guard_tool thaw MOUNT: what an agent's next start does.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/err.h"
#include "track/track.h"

static int round_run(struct track_guard *g, double limit, long hold, struct err *e)
{
	double seconds = 0;
	bool intact = false;
	char *unfrozen;
	int r = track_guard_freeze(g, limit, &unfrozen, e);

	if (r < 0)
		return r;
	printf("frozen %s\n", unfrozen);
	free(unfrozen);
	nanosleep(&(struct timespec){hold / 1000, hold % 1000 * 1000000}, NULL);
	printf("holds %d\n", track_guard_holds(g));
	r = track_guard_thaw(g, &seconds, &intact, e);
	if (r == 0)
		printf("thawed %.3f %d\n", seconds, intact);
	return r;
}

int main(int argc, char **argv)
{
	struct track_guard *g = NULL;
	struct err e = {0};
	struct stat st;
	int r;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (argc == 3 && strcmp(argv[1], "thaw") == 0) {
		r = stat(argv[2], &st) < 0 ? -errno : track_thaw(argv[2], st.st_dev, &e);
		printf("%d %s\n", r, e.msg);
		return 0;
	}
	if (argc < 5)
		return 2;
	r = track_guard_start((const char *const *)argv + 4, (size_t)argc - 4, &g, &e);
	while (r == 0 && getchar() != EOF)
		;
	for (long i = 0; r == 0 && i < atol(argv[3]); i++)
		r = round_run(g, atof(argv[1]), atol(argv[2]), &e);
	track_guard_free(g);
	if (r < 0)
		printf("error %d %s\n", r, e.msg);
	else
		printf("end\n");
	return r < 0;
}
