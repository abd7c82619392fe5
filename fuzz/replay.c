/* Replays a corpus without a fuzzing engine: every file below each argument is given to the target once. */
#include <errno.h>
#include <sys/stat.h>
#include <fts.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay_file(const char *path, size_t size)
{
	FILE *f = fopen(path, "rb");
	uint8_t *buf = malloc(size ? size : 1);

	if (!f || !buf || fread(buf, 1, size, f) != size) {
		fprintf(stderr, "cannot read '%s'\n", path);
		return -1;
	}
	LLVMFuzzerTestOneInput(buf, size);
	free(buf);
	fclose(f);
	return 0;
}

int main(int argc, char **argv)
{
	size_t n = 0;
	FTS *fts;

	if (argc < 2) {
		fprintf(stderr, "usage: %s CORPUS...\n", argv[0]);
		return 2;
	}
	fts = fts_open(argv + 1, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
	if (!fts)
		return 1;
	for (FTSENT *ent; (ent = fts_read(fts));) {
		if (ent->fts_info != FTS_F)
			continue;
		if (replay_file(ent->fts_path, (size_t)ent->fts_statp->st_size) < 0)
			return 1;
		n++;
	}
	fts_close(fts);
	printf("%zu inputs replayed\n", n);
	return n ? 0 : 1;
}
