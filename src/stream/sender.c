/* stream_send(): sets up, starts workers and the ticker that talks to the caller, runs the rounds, tidies up. */
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "base/id.h"
#include "base/util.h"
#include "stream/sender_int.h"

#define SENDER_TICK  0.1 /* seconds between questions whether to stop */
#define SENDER_TELL  0.5 /* seconds between progress callbacks */
#define SENDER_NOTES 256u

int sender_fail(struct sender *s, int code, const struct err *e)
{
	pthread_mutex_lock(&s->lock);
	if (!s->failed) {
		s->failed = true;
		if (e)
			s->error = *e;
		s->error.code = code;
	}
	s->stop = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	return code;
}

int sender_note(struct sender *s, const char *text, struct err *e)
{
	char **v;

	for (size_t i = 0; i < s->nnotes; i++)
		if (strcmp(s->notes[i], text) == 0)
			return 0;
	if (s->nnotes == SENDER_NOTES)
		return 0;
	v = realloc(s->notes, (s->nnotes + 1) * sizeof(*v));
	if (!v)
		return err_nomem(e);
	s->notes = v;
	v[s->nnotes] = strdup(text);
	if (!v[s->nnotes])
		return err_nomem(e);
	s->nnotes++;
	return 0;
}

void sender_phase(struct sender *s, enum stream_phase phase)
{
	pthread_mutex_lock(&s->lock);
	s->progress.phase = phase;
	s->tell_now = true;
	pthread_mutex_unlock(&s->lock);
}

void sender_quiet(struct sender *s, bool quiet)
{
	/* Waits for a callback that is running. */
	pthread_mutex_lock(&s->tell_lock);
	s->quiet = quiet;
	pthread_mutex_unlock(&s->tell_lock);
}

void sender_leave_out(const struct sender *s, struct bitmap *maps)
{
	for (size_t i = 0; s->p->leave_out && i < s->ndisks; i++)
		if (s->p->leave_out[i])
			memset(maps[i].words, 0, (maps[i].nbits / 64 + 1) * sizeof(*maps[i].words));
}

bool sender_sleep(struct sender *s, double seconds)
{
	double until = id_now_mono() + seconds;

	while (!s->stop) {
		double left = MIN(until - id_now_mono(), 0.05);

		if (left <= 0)
			return true;
		nanosleep(&(struct timespec){.tv_nsec = (long)(left * 1e9)}, NULL);
	}
	return false;
}

/* 0.2, 0.4 .. 5 seconds. */
double sender_backoff(unsigned attempt)
{
	return MIN(0.2 * (double)(1u << MIN(attempt, 5u)), 5.0);
}

int sender_lost(struct sender *s, struct err *e)
{
	err_prefix(e, "lost the receiver '%s' port %u for %.0f seconds", s->p->host, s->p->port, s->reconnect);
	e->code = -ETIMEDOUT;
	return -ETIMEDOUT;
}

/* ---- the ticker ---- */
/* Speed over the last seconds; the more recent the heavier. */
static void ticker_speed(struct sender *s, struct stream_progress *p, uint64_t *last_done, double *last_time)
{
	double now = id_now_mono(), dt = now - *last_time, speed;

	if (dt <= 0)
		return;
	speed = p->bytes_done >= *last_done ? (double)(p->bytes_done - *last_done) / dt : 0;
	*last_done = p->bytes_done;
	*last_time = now;
	s->progress.speed = s->progress.speed > 0 ? 0.8 * s->progress.speed + 0.2 * speed : speed;
}

static void ticker_fill(struct sender *s, struct stream_progress *p)
{
	*p = s->progress;
	p->bytes_total = s->total;
	p->bytes_done = s->done;
	p->bytes_read = s->read;
	p->bytes_sent = s->sent;
	p->bytes_changed = s->changed_all + s->changed_now;
}

static void ticker_tell(struct sender *s, uint64_t *last_done, double *last_time)
{
	struct stream_progress p;

	pthread_mutex_lock(&s->lock);
	ticker_fill(s, &p);
	ticker_speed(s, &p, last_done, last_time);
	p.speed = s->progress.speed;
	p.seconds_left =
	    p.speed > 1 && p.bytes_total >= p.bytes_done ? (double)(p.bytes_total - p.bytes_done) / p.speed : -1;
	s->tell_now = false;
	pthread_mutex_unlock(&s->lock);
	if (s->ops->progress)
		s->ops->progress(s->ops->arg, &p);
}

static bool ticker_due(struct sender *s, bool *ret_quit)
{
	bool now;

	pthread_mutex_lock(&s->lock);
	now = s->tell_now;
	*ret_quit = s->quit;
	pthread_mutex_unlock(&s->lock);
	return now;
}

/* A tick, or until the end. */
static void ticker_sleep(struct sender *s)
{
	double at = id_now_mono() + SENDER_TICK;
	struct timespec until = {.tv_sec = (time_t)at};

	until.tv_nsec = (long)((at - (double)until.tv_sec) * 1e9);
	pthread_mutex_lock(&s->lock);
	if (!s->quit)
		pthread_cond_timedwait(&s->changed, &s->lock, &until);
	pthread_mutex_unlock(&s->lock);
}

static void *ticker_main(void *arg)
{
	struct sender *s = arg;
	double next = 0, last_time = id_now_mono();
	uint64_t last_done = 0;
	bool quit = false;

	while (!quit) {
		bool now = ticker_due(s, &quit);

		pthread_mutex_lock(&s->tell_lock);
		if (!s->stop && s->ops->cancelled && s->ops->cancelled(s->ops->arg))
			sender_fail(s, -ECANCELED, &(struct err){-ECANCELED, "cancelled"});
		if (!s->quiet && (now || id_now_mono() >= next)) {
			if (s->ops->rate_mbit) {
				s->rate_mbit = s->ops->rate_mbit(s->ops->arg);
				wire_rate_set(s->rate, s->rate_mbit);
			}
			if (s->ops->compression)
				s->compression = s->ops->compression(s->ops->arg);
			ticker_tell(s, &last_done, &last_time);
			next = id_now_mono() + SENDER_TELL;
		}
		pthread_mutex_unlock(&s->tell_lock);
		if (!quit)
			ticker_sleep(s);
	}
	return NULL;
}

/* ---- setting up ---- */
static int sender_check(const struct stream_send_params *p, struct disk *const *disks, size_t n, struct err *e)
{
	uint64_t blocks = 0;

	if (n == 0 || n > WIRE_DISKS_MAX)
		return err_set(e, -EINVAL, "from 1 to %u disks can be sent in one run, not %zu", WIRE_DISKS_MAX, n);
	if (p->connections == 0 || p->connections > STREAM_CONNECTIONS_MAX)
		return err_set(e, -EINVAL, "from 1 to %u connections are possible, not %u", STREAM_CONNECTIONS_MAX,
			       p->connections);
	if (strnlen(p->link.run, sizeof(p->link.run)) == sizeof(p->link.run) || !*p->link.run)
		return err_set(e, -EINVAL, "the run has no proper id");
	for (size_t i = 0; i < n; i++) {
		if (disks[i]->size == 0 || disks[i]->size % 512 || disks[i]->size > WIRE_BLOCKS_MAX * STREAM_BLOCK)
			return err_set(e, -EINVAL,
				       "'%s' has %llu bytes; only multiples of 512 up to 64 TiB can be sent",
				       disks[i]->name, (unsigned long long)disks[i]->size);
		blocks += stream_blocks(disks[i]->size);
	}
	return blocks > WIRE_BLOCKS_MAX ? err_set(e, -EINVAL, "the disks have more than 64 TiB together") : 0;
}

static int sender_init(struct sender *s, const struct stream_send_params *p, struct disk *const *disks, size_t n,
		       const struct stream_send_ops *ops, struct err *e)
{
	static const struct stream_send_ops none;
	static const uint8_t zero[STREAM_BLOCK];
	pthread_condattr_t attr;

	memset(s, 0, sizeof(*s));
	pthread_mutex_init(&s->lock, NULL);
	pthread_mutex_init(&s->tell_lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&s->changed, &attr);
	pthread_condattr_destroy(&attr);
	s->p = p;
	s->ops = ops ? ops : &none;
	s->disks = disks;
	s->ndisks = n;
	s->digest = codec_digest(p->checksum ? CODEC_SHA256 : CODEC_XXH3_128);
	s->digest->compute(zero, sizeof(zero), s->zero_full);
	id_random(s->session, sizeof(s->session));
	s->reconnect = p->reconnect_seconds > 0 ? p->reconnect_seconds : 60;
	s->stall = p->stall_seconds > 0 ? p->stall_seconds : 20;
	s->compression = p->compression;
	s->rate_mbit = p->rate_mbit;
	s->auth = (struct wire_auth){.run = p->link.run, .psk = p->link.psk, .clear = p->link.clear};
	s->progress.phase = STREAM_CONNECTING;
	s->progress.expected_freeze = s->progress.freeze_seconds = s->progress.seconds_left = -1;
	s->progress.gauges = (struct stream_gauges){-1, -1, -1, -1, STREAM_NOTHING, -1};
	return wire_rate_new(p->rate_mbit, &s->rate, e);
}

static int worker_init(struct sender *s, unsigned i, struct err *e)
{
	struct worker *w = &s->workers[i];
	int r;

	w->s = s;
	w->index = (uint8_t)i;
	r = codec_packer_new(s->compression, SENDER_CHUNK, &w->packer, e);
	if (r == 0)
		r = codec_sum_new(&w->sum, e);
	if (r < 0)
		return r;
	w->digests = malloc(WIRE_WINDOW * CODEC_DIGEST_MAX);
	if (!w->digests || posix_memalign((void **)&w->buf, 4096, SENDER_CHUNK))
		return err_nomem(e);
	r = pthread_create(&w->thread, NULL, worker_main, w);
	if (r)
		return err_set(e, -r, "cannot start a thread");
	w->started = true;
	return 0;
}

static int sender_start(struct sender *s, struct err *e)
{
	int r;

	s->env = (struct wire_env){
	    .stop = &s->stop, .rate = s->rate, .sent = &s->sent, .received = &s->received, .stall = s->stall};
	for (size_t i = 0; i < s->ndisks; i++) {
		s->sums[i] = malloc(stream_windows(s->disks[i]->size) * 32);
		if (!s->sums[i])
			return err_nomem(e);
	}
	for (unsigned i = 0; i < s->p->connections; i++) {
		r = worker_init(s, i, e);
		if (r < 0)
			return r;
	}
	r = pthread_create(&s->ticker, NULL, ticker_main, s);
	if (r)
		return err_set(e, -r, "cannot start a thread");
	s->ticker_started = true;
	return 0;
}

/* ---- tidying up ---- */
static void sender_stop(struct sender *s)
{
	pthread_mutex_lock(&s->lock);
	s->kind = PASS_QUIT;
	s->generation++;
	s->quit = true;
	pthread_cond_broadcast(&s->changed);
	pthread_mutex_unlock(&s->lock);
	if (s->ticker_started)
		pthread_join(s->ticker, NULL);
	for (unsigned i = 0; i < WIRE_CONNECTIONS_MAX; i++)
		if (s->workers[i].started)
			pthread_join(s->workers[i].thread, NULL);
}

static void sender_result(struct sender *s, struct stream_result *ret)
{
	memset(ret, 0, sizeof(*ret));
	ticker_fill(s, &ret->totals);
	ret->notes = take_ptr(&s->notes);
	ret->nnotes = s->nnotes;
	ret->zeroed = take_ptr(&s->bad);
	ret->nzeroed = s->nbad;
	s->nnotes = s->nbad = 0;
}

static void sender_release(struct sender *s)
{
	wire_close(s->control);
	for (unsigned i = 0; i < WIRE_CONNECTIONS_MAX; i++) {
		codec_packer_free(s->workers[i].packer);
		codec_sum_free(s->workers[i].sum);
		free(s->workers[i].buf);
		free(s->workers[i].digests);
	}
	for (size_t i = 0; i < s->ndisks; i++) {
		free(s->sums[i]);
		bitmap_release(&s->candidates[i]);
		bitmap_release(&s->stated[i]);
	}
	for (size_t i = 0; i < s->nnotes; i++)
		free(s->notes[i]);
	free(s->notes);
	free(s->bad);
	stream_used_release(&s->used);
	wire_rate_free(s->rate);
	pthread_cond_destroy(&s->changed);
	pthread_mutex_destroy(&s->tell_lock);
	pthread_mutex_destroy(&s->lock);
}

int stream_send(const struct stream_send_params *p, struct disk *const *disks, size_t n,
		const struct stream_send_ops *ops, struct stream_result *ret, struct err *e)
{
	struct err own = {0}, *why = e ? e : &own;
	struct sender *s;
	int r = sender_check(p, disks, n, why);

	if (r < 0)
		return r;
	s = malloc(sizeof(*s));
	if (!s)
		return err_nomem(why);
	r = sender_init(s, p, disks, n, ops, why);
	if (r == 0)
		r = sender_start(s, why);
	if (r == 0)
		r = control_ready(s, why);
	if (r == 0)
		r = rounds_run(s, why);
	if (r == 0)
		sender_phase(s, STREAM_DONE);
	/* Whatever a link said when it was made to end: the first failure is the reason. */
	if (r < 0 && s->failed) {
		*why = s->error;
		r = s->error.code;
	}
	s->stop = s->stop || r < 0;
	sender_stop(s);
	if (r == 0)
		sender_result(s, ret);
	sender_release(s);
	free(s);
	return r;
}

void stream_result_release(struct stream_result *r)
{
	for (size_t i = 0; i < r->nnotes; i++)
		free(r->notes[i]);
	free(r->notes);
	free(r->zeroed);
	memset(r, 0, sizeof(*r));
}
