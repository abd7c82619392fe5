/* The end of a run at the receiver (replica.json), and reading a replica again against its manifest. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/id.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"
#include "stream/stream_int.h"

#define COMMIT_FILE "replica.json"

static json_t *commit_disk(unsigned i, const struct replica *d, const struct wire_commit *m)
{
	char hex[65], raw[32], manifest[32];

	replica_file(raw, sizeof(raw), i, d->layer ? "qcow2" : "raw");
	replica_file(manifest, sizeof(manifest), i, "manifest");
	str_hex(m->disks[i].statement, 32, hex);
	return json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:s}", "file", raw, "manifest", manifest, "size",
			 (json_int_t)d->size, "sector", (json_int_t)d->manifest.sector, "used_blocks",
			 (json_int_t)m->disks[i].used, "used_bytes",
			 (json_int_t)MIN(m->disks[i].used * STREAM_BLOCK, d->size), "statement", hex);
}

static json_t *commit_json(const char *run, struct replica *const *disks, size_t n, const struct wire_commit *m)
{
	json_t *list = json_array();

	for (size_t i = 0; i < n; i++)
		json_array_append_new(list, commit_disk((unsigned)i, disks[i], m));
	return json_pack("{s:i, s:s, s:I, s:s, s:f, s:o}", "format", 1, "run", run, "block_size",
			 (json_int_t)STREAM_BLOCK, "digest", disks[0]->manifest.digest->name, "time", id_now(), "disks",
			 list);
}

/* Written beside it, synced, renamed, directory synced. */
static int commit_file(int dirfd, const char *text, struct err *e)
{
	_cleanup_close_ int fd =
	    openat(dirfd, COMMIT_FILE ".new", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0644);
	int r;

	if (fd < 0)
		return err_sys(e, "cannot write '%s'", COMMIT_FILE);
	r = io_write_full(fd, text, strlen(text));
	if (r < 0) {
		errno = -r;
		return err_sys(e, "cannot write '%s'", COMMIT_FILE);
	}
	if (fsync(fd) < 0 || renameat(dirfd, COMMIT_FILE ".new", dirfd, COMMIT_FILE) < 0 || fsync(dirfd) < 0)
		return err_sys(e, "cannot write '%s'", COMMIT_FILE);
	return 0;
}

int commit_write(int dirfd, const char *run, struct replica *const *disks, size_t n, const struct wire_commit *m,
		 char **ret_event, struct err *e)
{
	_cleanup_json_ json_t *j = commit_json(run, disks, n, m);
	_cleanup_free_ char *text = j ? json_dumps(j, JSON_INDENT(2)) : NULL, *event = NULL;
	int r;

	if (!text)
		return err_nomem(e);
	r = commit_file(dirfd, text, e);
	if (r < 0)
		return r;
	json_object_set_new(j, "event", json_string("committed"));
	event = jsn_text(j);
	if (!event)
		return err_nomem(e);
	*ret_event = take_ptr(&event);
	return 0;
}

/* ---- verify ---- */
static int verify_blocks(int fd, const char *raw, struct manifest *m, uint64_t *ret_blocks, struct err *e)
{
	_cleanup_free_ uint8_t *buf = malloc(STREAM_BLOCK);
	uint8_t entry[CODEC_DIGEST_MAX], got[CODEC_DIGEST_MAX];
	uint64_t count = 0, bad = 0, first_bad = 0;

	if (!buf)
		return err_nomem(e);
	for (uint64_t i = 0; i < m->nblocks; i++) {
		size_t n = stream_block_bytes(m->size, i);
		int r = manifest_get(m, i, 1, entry, e);

		if (r < 0)
			return r;
		if (!manifest_known(m, entry))
			continue;
		if (io_pread_full(fd, buf, n, i * STREAM_BLOCK) != (ssize_t)n)
			return err_set(e, -EIO, "cannot read '%s' at byte %llu", raw,
				       (unsigned long long)(i * STREAM_BLOCK));
		m->digest->compute(buf, n, got);
		count++;
		if (memcmp(got, entry, m->digest->size) != 0 && bad++ == 0)
			first_bad = i;
	}
	if (bad)
		return err_set(e, -EBADMSG, "'%s' differs from its manifest in %llu blocks, first at byte %llu", raw,
			       (unsigned long long)bad, (unsigned long long)(first_bad * STREAM_BLOCK));
	*ret_blocks = count;
	return 0;
}

/* After a commit the known entries are the used ones, so that the statement can be made again. */
static int verify_statement(const json_t *committed, size_t i, const char *raw, struct manifest *m, struct err *e)
{
	const json_t *disk = json_array_get(json_object_get(committed, "disks"), i);
	uint8_t want[32], got[32];
	const char *hex = NULL;
	uint64_t used;
	int r;

	if (!committed)
		return 0;
	r = jsn_get_str(disk, "statement", true, 64, &hex, e);
	if (r < 0)
		return r;
	if (str_unhex(hex, want, 32) < 0)
		return err_set(e, -EBADMSG, "'%s' has no statement for '%s'", COMMIT_FILE, raw);
	r = replica_statement(m, NULL, got, &used, e);
	if (r < 0)
		return r;
	if (memcmp(want, got, 32) != 0)
		return err_set(e, -EBADMSG, "the manifest of '%s' is not the one that was committed", raw);
	return 0;
}

static int verify_disk(int dirfd, unsigned i, const json_t *committed, uint64_t *blocks, struct err *e)
{
	_cleanup_(manifest_release) struct manifest m = {0};
	_cleanup_close_ int fd = -1;
	char raw[32], name[32];
	uint64_t n = 0;
	struct stat st;
	int r;

	replica_file(raw, sizeof(raw), i, "raw");
	replica_file(name, sizeof(name), i, "manifest");
	r = manifest_open_existing(dirfd, name, &m, e);
	if (r < 0)
		return r;
	fd = openat(dirfd, raw, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || fstat(fd, &st) < 0)
		return err_sys(e, "cannot open '%s'", raw);
	if ((uint64_t)st.st_size != m.size)
		return err_set(e, -EBADMSG, "'%s' has %llu bytes and not the %llu of its manifest", raw,
			       (unsigned long long)st.st_size, (unsigned long long)m.size);
	r = verify_blocks(fd, raw, &m, &n, e);
	if (r == 0)
		r = verify_statement(committed, i, raw, &m, e);
	*blocks += n;
	return r;
}

int stream_verify(const char *dir, uint64_t *ret_blocks, struct err *e)
{
	_cleanup_close_ int dirfd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_free_ char *text = NULL;
	_cleanup_json_ json_t *committed = NULL;
	uint64_t blocks = 0;
	size_t len, n = 0;
	char name[32];

	if (dirfd < 0)
		return err_sys(e, "cannot open '%s'", dir);
	if (io_read_file_at(dirfd, COMMIT_FILE, JSN_MAX_SIZE, &text, &len, NULL) == 0) {
		int r = jsn_parse(text, len, JSN_MAX_SIZE, &committed, e);

		if (r < 0)
			return r;
	}
	for (;; n++) {
		int r;

		replica_file(name, sizeof(name), (unsigned)n, "raw");
		if (faccessat(dirfd, name, F_OK, AT_SYMLINK_NOFOLLOW) < 0)
			break;
		r = verify_disk(dirfd, (unsigned)n, committed, &blocks, e);
		if (r < 0)
			return r;
	}
	if (n == 0)
		return err_set(e, -ENOENT, "there is no replica in '%s'", dir);
	if (committed && json_array_size(json_object_get(committed, "disks")) != n)
		return err_set(e, -EBADMSG, "'%s' tells of another number of disks than '%s' has", COMMIT_FILE, dir);
	*ret_blocks = blocks;
	return 0;
}
