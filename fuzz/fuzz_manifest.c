/* A manifest as it may lie in the replica's directory, and a replica that is opened with it. */
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/endian.h"
#include "base/io.h"
#include "base/util.h"
#include "stream/stream_int.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SIZE (20 * (uint64_t)STREAM_BLOCK + 512)

static void store(int dirfd, const uint8_t *data, size_t size, bool repair)
{
	uint8_t check[8];
	int fd = openat(dirfd, "disk0.manifest", O_WRONLY | O_CREAT | O_TRUNC, 0600);

	must(fd >= 0 && io_write_full(fd, data, size) == 0);
	if (repair && size >= MANIFEST_HEADER) {
		put_le64(check, codec_check64(data, MANIFEST_HEADER - 8, 0));
		must(pwrite(fd, check, 8, MANIFEST_HEADER - 8) == 8);
	}
	close(fd);
	fd = openat(dirfd, "disk0.raw", O_WRONLY | O_CREAT, 0600);
	must(fd >= 0 && ftruncate(fd, SIZE) == 0);
	close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char dir[] = "/dev/shm/fuzz_manifest.XXXXXX";
	uint8_t out[WIRE_WINDOW * CODEC_DIGEST_MAX], sum[32];
	struct manifest m = {0};
	struct replica *r;
	uint64_t n;
	size_t bytes;
	bool known;
	int dirfd;

	if (size < 1 || size > 65536 || !mkdtemp(dir))
		return 0;
	dirfd = open(dir, O_RDONLY | O_DIRECTORY);
	must(dirfd >= 0);
	store(dirfd, data + 1, size - 1, data[0] & 1);
	if (manifest_open_existing(dirfd, "disk0.manifest", &m, NULL) == 0) {
		must(m.digest && m.size && m.nblocks);
		must(manifest_get(&m, m.nblocks - 1, 1, out, NULL) == 0);
		manifest_release(&m);
	}
	if (m.nblocks < 100000) /* a header may tell of terabytes: reading them all is not the point */
		stream_verify(dir, &n, NULL);
	must(replica_open(dirfd, 0, codec_digest(CODEC_XXH3_128), SIZE, 512, NULL, &r, NULL) == 0);
	must(replica_digests(r, 0, out, &bytes, &known, NULL) == 0 && bytes == 21 * 16);
	replica_statement(&r->manifest, NULL, sum, &n, NULL);
	replica_close(r, true, NULL);
	close(dirfd);
	must(io_remove_tree(dir, NULL) == 0);
	return 0;
}
