/*
 * The manifest of a replica: a header of 4096 bytes, then one digest per block; all zero means unknown.
 * docs/protocol.md has the layout. The header says under which boot of the machine it was last open: what a killed
 * process left in the page cache is trusted, what a dead machine left on the disk is not.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/endian.h"
#include "base/io.h"
#include "base/util.h"
#include "stream/stream_int.h"

#define MANIFEST_MAGIC   "RPLMANI1"
#define MANIFEST_VERSION 1u
#define MANIFEST_CHECK   (MANIFEST_HEADER - 8)

void manifest_boot_id(char out[MANIFEST_BOOT_ID])
{
	_cleanup_free_ char *text = NULL;

	memset(out, 0, MANIFEST_BOOT_ID);
	/* Unknown stays empty, and an empty one never counts as the same boot. */
	if (io_read_file("/proc/sys/kernel/random/boot_id", 256, &text, NULL, NULL) < 0)
		return;
	text[strcspn(text, "\n")] = '\0';
	snprintf(out, MANIFEST_BOOT_ID, "%s", text);
}

bool manifest_known(const struct manifest *m, const uint8_t *entry)
{
	return !codec_is_zero(entry, m->digest->size);
}

static void manifest_format(const struct manifest *m, enum manifest_state state, uint8_t h[MANIFEST_HEADER])
{
	memset(h, 0, MANIFEST_HEADER);
	memcpy(h, MANIFEST_MAGIC, 8);
	put_le32(h + 8, MANIFEST_VERSION);
	put_le32(h + 12, STREAM_BLOCK);
	put_le64(h + 16, m->size);
	put_le32(h + 24, m->sector);
	h[28] = (uint8_t)m->digest->id;
	h[29] = (uint8_t)m->digest->size;
	h[30] = (uint8_t)state;
	memcpy(h + 32, m->boot_id, MANIFEST_BOOT_ID);
	/* What is made again says nothing of what was committed. */
	if (state != MANIFEST_REBUILDING)
		memcpy(h + 72, m->statement, WIRE_STATEMENT_SIZE);
	put_le64(h + MANIFEST_CHECK, codec_check64(h, MANIFEST_CHECK, 0));
}

int manifest_parse(const uint8_t h[MANIFEST_HEADER], struct manifest *ret, enum manifest_state *ret_state,
		   struct err *e)
{
	struct manifest m = {.fd = -1};

	if (memcmp(h, MANIFEST_MAGIC, 8) != 0 || get_le64(h + MANIFEST_CHECK) != codec_check64(h, MANIFEST_CHECK, 0))
		return err_set(e, -EBADMSG, "not a manifest, or a damaged one");
	if (get_le32(h + 8) != MANIFEST_VERSION || get_le32(h + 12) != STREAM_BLOCK)
		return err_set(e, -EBADMSG, "a manifest of another version");
	m.digest = codec_digest(h[28]);
	m.size = get_le64(h + 16);
	m.sector = get_le32(h + 24);
	if (!m.digest || m.digest->size != h[29] || h[30] > MANIFEST_REBUILDING || m.size == 0 ||
	    m.size > WIRE_BLOCKS_MAX * STREAM_BLOCK)
		return err_set(e, -EBADMSG, "a manifest that says what can't be");
	m.nblocks = stream_blocks(m.size);
	memcpy(m.boot_id, h + 32, MANIFEST_BOOT_ID - 1);
	memcpy(m.statement, h + 72, WIRE_STATEMENT_SIZE);
	*ret_state = (enum manifest_state)h[30];
	*ret = m;
	return 0;
}

static uint64_t manifest_offset(const struct manifest *m, uint64_t block)
{
	return MANIFEST_HEADER + block * m->digest->size;
}

int manifest_sync(struct manifest *m, struct err *e)
{
	return fdatasync(m->fd) < 0 ? err_sys(e, "cannot sync a manifest") : 0;
}

int manifest_set_state(struct manifest *m, enum manifest_state state, struct err *e)
{
	uint8_t h[MANIFEST_HEADER];
	int r;

	manifest_format(m, state, h);
	r = io_pwrite_full(m->fd, h, sizeof(h), 0);
	if (r < 0) {
		errno = -r;
		return err_sys(e, "cannot write a manifest");
	}
	return manifest_sync(m, e);
}

void manifest_distrust(struct manifest *m)
{
	if (manifest_set_state(m, MANIFEST_REBUILDING, NULL) == 0)
		return;
	/* Without a whole header it isn't one. */
	if (ftruncate(m->fd, 0) == 0)
		fsync(m->fd);
}

/* All entries unknown. Space is taken now, so that an entry can always be written later. */
static int manifest_wipe(struct manifest *m, struct err *e)
{
	int r;

	if (ftruncate(m->fd, MANIFEST_HEADER) < 0)
		return err_sys(e, "cannot make a manifest");
	r = posix_fallocate(m->fd, 0, (off_t)manifest_offset(m, m->nblocks));
	if (r) {
		if (ftruncate(m->fd, MANIFEST_HEADER) < 0)
			return err_sys(e, "cannot make a manifest smaller again");
		errno = r;
		return err_sys(e, "cannot make a manifest");
	}
	return 0;
}

/* Does what the file holds fit the disk as it is now, and was it left in good order? Takes its statement then. */
static bool manifest_holds(struct manifest *m, const char *boot_id)
{
	uint8_t h[MANIFEST_HEADER];
	enum manifest_state state;
	struct manifest old;
	struct stat st;

	if (io_pread_full(m->fd, h, sizeof(h), 0) != (ssize_t)sizeof(h) || manifest_parse(h, &old, &state, NULL) < 0)
		return false;
	if (old.size != m->size || old.digest != m->digest || fstat(m->fd, &st) < 0 ||
	    (uint64_t)st.st_size != manifest_offset(m, m->nblocks))
		return false;
	if (state != MANIFEST_CLEAN && (state != MANIFEST_OPEN || !*boot_id || strcmp(old.boot_id, boot_id) != 0))
		return false;
	memcpy(m->statement, old.statement, sizeof(m->statement));
	return true;
}

int manifest_open(int dirfd, const char *name, const struct codec_digest *digest, uint64_t size, uint32_t sector,
		  const char *boot_id, struct manifest *ret, bool *ret_trusted, struct err *e)
{
	_cleanup_(manifest_release) struct manifest m = {.digest = digest, .size = size, .sector = sector};
	bool trusted;
	int r;

	m.nblocks = stream_blocks(size);
	snprintf(m.boot_id, sizeof(m.boot_id), "%s", boot_id);
	m.fd = openat(dirfd, name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (m.fd < 0)
		return err_sys(e, "cannot open '%s'", name);
	trusted = manifest_holds(&m, boot_id);
	r = manifest_set_state(&m, trusted ? MANIFEST_OPEN : MANIFEST_REBUILDING, e);
	if (r == 0 && !trusted)
		r = manifest_wipe(&m, e);
	if (r < 0) {
		if (r != -ENOSPC && r != -EDQUOT)
			manifest_distrust(&m);
		err_prefix(e, "'%s'", name);
		return r;
	}
	*ret = m;
	m.fd = -1;
	*ret_trusted = trusted;
	return 0;
}

int manifest_open_existing(int dirfd, const char *name, struct manifest *ret, struct err *e)
{
	_cleanup_close_ int fd = openat(dirfd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	uint8_t h[MANIFEST_HEADER];
	enum manifest_state state;
	struct manifest m;
	struct stat st;
	int r;

	if (fd < 0 || fstat(fd, &st) < 0)
		return err_sys(e, "cannot open '%s'", name);
	if (io_pread_full(fd, h, sizeof(h), 0) != (ssize_t)sizeof(h))
		return err_set(e, -EBADMSG, "'%s' is not a manifest", name);
	r = manifest_parse(h, &m, &state, e);
	if (r < 0) {
		err_prefix(e, "'%s'", name);
		return r;
	}
	if ((uint64_t)st.st_size != manifest_offset(&m, m.nblocks))
		return err_set(e, -EBADMSG, "'%s' has been cut", name);
	m.fd = take_fd(&fd);
	*ret = m;
	return 0;
}

int manifest_get(struct manifest *m, uint64_t first, size_t n, uint8_t *out, struct err *e)
{
	ssize_t r;

	must(first + n <= m->nblocks);
	r = io_pread_full(m->fd, out, n * m->digest->size, manifest_offset(m, first));
	if (r == (ssize_t)(n * m->digest->size))
		return 0;
	errno = r < 0 ? (int)-r : EIO;
	return err_sys(e, "cannot read a manifest");
}

int manifest_put(struct manifest *m, uint64_t first, size_t n, const uint8_t *digests, struct err *e)
{
	int r;

	must(first + n <= m->nblocks);
	r = io_pwrite_full(m->fd, digests, n * m->digest->size, manifest_offset(m, first));
	if (r == 0)
		return 0;
	errno = -r;
	return err_sys(e, "cannot write a manifest");
}

void manifest_release(struct manifest *m)
{
	/* A zeroed one has no digest yet and no descriptor of its own. */
	if (m->digest && m->fd >= 0)
		close(m->fd);
	m->fd = -1;
}
