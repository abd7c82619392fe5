/*
 * The receiver's side of the control connection. What may take long runs in a thread of its own while the peer is told
 * every two seconds to wait.
 */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/endian.h"
#include "base/str.h"
#include "base/util.h"
#include "stream/receiver_int.h"

#define CONTROL_WAIT    2 /* seconds between WAIT frames */
#define CONTROL_GOODBYE 5 /* seconds for the sender to leave after the commit */

/* ---- long work ---- */
struct control_work {
	struct receiver_conn *conn;
	int (*run)(struct receiver *rv, void *arg, struct err *e);
	void *arg;
	int result;
	struct err error;
	bool done;
	pthread_mutex_t lock;
	pthread_cond_t changed;
};

static void *work_main(void *arg)
{
	struct control_work *w = arg;
	int r = w->run(w->conn->rv, w->arg, &w->error);

	pthread_mutex_lock(&w->lock);
	w->result = r;
	w->done = true;
	pthread_cond_signal(&w->changed);
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

static int work_wait(struct control_work *w)
{
	int net = 0;

	pthread_mutex_lock(&w->lock);
	while (!w->done) {
		struct timespec until;

		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_sec += CONTROL_WAIT;
		if (pthread_cond_timedwait(&w->changed, &w->lock, &until) == ETIMEDOUT && net == 0) {
			pthread_mutex_unlock(&w->lock);
			net = wire_send(w->conn->link, WIRE_WAIT, NULL, 0, NULL);
			pthread_mutex_lock(&w->lock);
		}
	}
	pthread_mutex_unlock(&w->lock);
	return net;
}

static int control_work(struct receiver_conn *c, int (*run)(struct receiver *rv, void *arg, struct err *e), void *arg,
			struct err *e)
{
	struct control_work w = {.conn = c, .run = run, .arg = arg};
	pthread_condattr_t attr;
	pthread_t thread;

	pthread_mutex_init(&w.lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&w.changed, &attr);
	pthread_condattr_destroy(&attr);
	if (pthread_create(&thread, NULL, work_main, &w) == 0) {
		work_wait(&w);
		pthread_join(thread, NULL);
	} else {
		work_main(&w);
	}
	pthread_cond_destroy(&w.changed);
	pthread_mutex_destroy(&w.lock);
	if (w.result < 0 && e)
		*e = w.error;
	return w.result;
}

/* ---- OPEN ---- */
static bool kick_data(const struct receiver_conn *c, const struct receiver_conn *me)
{
	return c->hello.role == WIRE_DATA;
}

/* Files of disks that the run had before and has no more. */
static int open_remove_others(struct receiver *rv, size_t n, struct err *e)
{
	static const char *const suffixes[] = {"raw", "qcow2", "manifest"};
	char name[32];

	for (unsigned i = (unsigned)n; i < WIRE_DISKS_MAX; i++) {
		for (size_t k = 0; k < ARRAY_SIZE(suffixes); k++) {
			replica_file(name, sizeof(name), i, suffixes[k]);
			if (unlinkat(rv->dirfd, name, 0) < 0 && errno != ENOENT)
				return err_sys(e, "cannot remove '%s'", name);
		}
	}
	/* From here on the replica isn't what was committed. */
	if (unlinkat(rv->dirfd, "replica.json", 0) < 0 && errno != ENOENT)
		return err_sys(e, "cannot remove 'replica.json'");
	return 0;
}

/* Manifests take their space when they are made. */
static int open_check_space(struct receiver *rv, const struct wire_open *m, struct err *e)
{
	const struct codec_digest *digest = codec_digest(m->digest);
	uint64_t needed = 0;
	char name[32];

	for (unsigned i = 0; i < m->ndisks; i++) {
		uint64_t bytes = MANIFEST_HEADER + stream_blocks(m->disks[i].size) * digest->size, has = 0;
		struct stat st;

		replica_file(name, sizeof(name), i, "manifest");
		if (fstatat(rv->dirfd, name, &st, AT_SYMLINK_NOFOLLOW) == 0)
			has = (uint64_t)st.st_blocks * 512;
		needed += bytes > has ? bytes - has : 0;
	}
	return needed > receiver_free(rv) ? receiver_no_space(rv, needed, e) : 0;
}

static int open_run(struct receiver *rv, void *arg, struct err *e)
{
	const struct wire_open *m = arg;
	int r = open_remove_others(rv, m->ndisks, e);

	receiver_close_disks(rv, false);
	if (r == 0)
		r = open_check_space(rv, m, e);
	for (size_t i = 0; r == 0 && i < m->ndisks; i++) {
		r = bitmap_init(&rv->used[i], stream_blocks(m->disks[i].size), e);
		if (r < 0)
			break;
		r = replica_open(rv->dirfd, (unsigned)i, codec_digest(m->digest), m->disks[i].size, m->disks[i].sector,
				 rv->layers[i], &rv->disks[i], e);
		if (r < 0)
			bitmap_release(&rv->used[i]);
		else
			rv->ndisks = i + 1;
	}
	if (r == -ENOSPC)
		return receiver_no_space(rv, m->ndisks * MIB, e);
	return r;
}

static int control_open(struct receiver_conn *c, const struct wire_frame *f, struct err *e)
{
	struct receiver *rv = c->rv;
	struct wire_open m;
	uint8_t buf[WIRE_SMALL_MAX], statements[WIRE_DISKS_MAX][WIRE_STATEMENT_SIZE];
	int r = wire_get_open(f, &m, e);

	if (r < 0)
		return r;
	if (!codec_digest(m.digest))
		return err_set(e, -EPROTONOSUPPORT, "digest algorithm '%u' is unknown to the receiver", m.digest);
	pthread_mutex_lock(&rv->lock);
	rv->opened = false;
	pthread_mutex_unlock(&rv->lock);
	r = receiver_kick(rv, c, WIRE_E_NO_SESSION, kick_data, e);
	if (r == 0)
		r = control_work(c, open_run, &m, e);
	if (r < 0)
		return r;
	pthread_mutex_lock(&rv->lock);
	rv->opened = !c->kicked;
	pthread_mutex_unlock(&rv->lock);
	for (size_t i = 0; i < rv->ndisks; i++)
		memcpy(statements[i], rv->disks[i]->manifest.statement, WIRE_STATEMENT_SIZE);
	return wire_say(c->link, WIRE_OPENED, buf,
			wire_put_opened(receiver_free(rv), c->version < 2 ? NULL : statements, rv->ndisks, buf), e);
}

/* ---- USED ---- */
static int used_run(struct receiver *rv, void *arg, struct err *e)
{
	uint64_t *needed = arg, n;

	*needed = 0;
	for (size_t i = 0; i < rv->ndisks; i++) {
		int r = replica_needs(rv->disks[i], &rv->used[i], &n, e);

		if (r < 0)
			return r;
		*needed += n;
	}
	return 0;
}

static int control_used(struct receiver_conn *c, const struct wire_frame *f, struct err *e)
{
	struct receiver *rv = c->rv;
	struct wire_used m;
	uint64_t needed;
	uint8_t buf[16];
	int r = wire_get_used(f, &m, e);

	if (r < 0)
		return r;
	if (m.disk >= rv->ndisks || m.first % 8 || m.first > rv->used[m.disk].nbits ||
	    m.nbits > rv->used[m.disk].nbits - m.first)
		return err_set(e, -EBADMSG, "a used map came that does not fit its disk");
	for (uint32_t i = 0; i < m.nbits; i++) {
		if (m.bits[i / 8] >> (i % 8) & 1)
			bitmap_set(&rv->used[m.disk], m.first + i);
		else
			bitmap_clear(&rv->used[m.disk], m.first + i);
	}
	if (!m.last)
		return 0;
	r = control_work(c, used_run, &needed, e);
	if (r < 0)
		return r;
	if (needed > receiver_free(rv))
		return receiver_no_space(rv, needed, e);
	return wire_say(c->link, WIRE_USED_OK, buf, wire_put_used_ok(needed, receiver_free(rv), buf), e);
}

/* ---- SYNC and COMMIT ---- */
static int sync_run(struct receiver *rv, void *arg, struct err *e)
{
	for (size_t i = 0; i < rv->ndisks; i++) {
		int r = replica_sync(rv->disks[i], e);

		if (r < 0)
			return r;
	}
	return 0;
}

static int commit_disk_check(struct receiver *rv, size_t i, const struct wire_commit *m, struct err *e)
{
	uint8_t ours[32];
	uint64_t used;
	int r = replica_trim(rv->disks[i], &rv->used[i], e);

	if (r == 0)
		r = replica_statement(&rv->disks[i]->manifest, &rv->used[i], ours, &used, e);
	if (r < 0)
		return r;
	if (used != m->disks[i].used || memcmp(ours, m->disks[i].statement, 32) != 0)
		return err_set(e, -EILSEQ, "the replica of disk %zu is not what the sender read (run the copy again)",
			       i);
	return 0;
}

static int commit_run(struct receiver *rv, void *arg, struct err *e)
{
	_cleanup_free_ char *event = NULL;
	const struct wire_commit *m = arg;
	int r = 0;

	for (size_t i = 0; r == 0 && i < rv->ndisks; i++)
		r = commit_disk_check(rv, i, m, e);
	if (r == 0)
		r = sync_run(rv, NULL, e);
	for (size_t i = 0; r == 0 && i < rv->ndisks; i++)
		r = replica_stated(rv->disks[i], m->disks[i].statement, e);
	if (r == 0)
		r = commit_write(rv->dirfd, rv->p->link.run, rv->disks, rv->ndisks, m, &event, e);
	if (r == 0)
		receiver_event(rv, event);
	return r;
}

static int control_commit(struct receiver_conn *c, const struct wire_frame *f, struct err *e)
{
	struct receiver *rv = c->rv;
	struct wire_commit m;
	struct wire_frame bye;
	int r = wire_get_commit(f, rv->ndisks, &m, e);

	if (r < 0)
		return r;
	pthread_mutex_lock(&rv->lock);
	rv->opened = false;
	pthread_mutex_unlock(&rv->lock);
	r = receiver_kick(rv, c, WIRE_E_NO_SESSION, kick_data, e);
	if (r == 0)
		r = control_work(c, commit_run, &m, e);
	if (r < 0)
		return r;
	/* It is committed, whether the sender hears of it or not. */
	if (wire_send(c->link, WIRE_COMMITTED, NULL, 0, NULL) == 0)
		wire_recv(c->link, CONTROL_GOODBYE, &bye, NULL);
	receiver_finish(rv, 0, NULL);
	return 0;
}

static int control_sync(struct receiver_conn *c, struct err *e)
{
	int r = control_work(c, sync_run, NULL, e);

	return r < 0 ? r : wire_send(c->link, WIRE_SYNCED, NULL, 0, e);
}

static int control_frame(struct receiver_conn *c, const struct wire_frame *f, struct err *e)
{
	uint8_t buf[16];

	if (f->type == WIRE_OPEN)
		return control_open(c, f, e);
	if (f->type == WIRE_PING)
		return wire_say(c->link, WIRE_PONG, buf, wire_put_cookie(wire_get_cookie(f), buf), e);
	if (c->rv->ndisks == 0 || !c->rv->opened)
		return err_set(e, -EBADMSG, "a frame came before the disks were opened");
	switch (f->type) {
	case WIRE_USED:
		return control_used(c, f, e);
	case WIRE_SYNC:
		return control_sync(c, e);
	case WIRE_COMMIT:
		return control_commit(c, f, e);
	default:
		return err_set(e, -EBADMSG, "a frame came that has no place on a control connection");
	}
}

int control_serve(struct receiver_conn *c, struct err *e)
{
	for (;;) {
		struct wire_frame f;
		int r = wire_recv(c->link, 0, &f, e);

		if (r == 0 && f.type == WIRE_BYE)
			return 0;
		if (r == 0 && c->rv->finished)
			return 0;
		if (r == 0)
			r = control_frame(c, &f, e);
		if (r == -EPIPE)
			return 0;
		if (r < 0)
			return r;
		if (c->rv->finished)
			return 0;
	}
}
