/* The stage `syncing`: a receiver, an offer to the agent, and patience. */
#include <errno.h>
#include <netdb.h>
#include <openssl/crypto.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/log.h"
#include "base/str.h"
#include "center/engine.h"

#define LOG_PROGRESS 30.0 /* seconds between lines of it */

int runner_fail(struct engine_failure *f, const char *code, bool temporary, const char *fmt, ...)
{
	va_list ap;

	snprintf(f->code, sizeof(f->code), "%s", code);
	va_start(ap, fmt);
	vsnprintf(f->message, sizeof(f->message), fmt, ap);
	va_end(ap);
	str_utf8(f->code);
	str_utf8(f->message);
	f->temporary = temporary;
	return -1;
}

bool runner_cancelled(void *arg)
{
	struct live *l = arg;
	ENGINE_LOCK(l->engine);

	return l->cancel || l->lost || l->engine->stopping || share_over(l->engine);
}

/* ---- the run's row ---- */

static int close_old_run(struct store *s, const char *id, struct err *e)
{
	_cleanup_(model_run_release) struct model_run old = {0};
	int r = id ? s->ops->get(s, &model_runs, id, &old, e) : -ENOENT;

	if (r == -ENOENT || (r == 0 && old.state != RUN_ACTIVE))
		return 0;
	if (r < 0)
		return r;
	old.state = RUN_FAILED;
	old.ended = id_now();
	model_take_json(&old.error, json_pack("{s:s, s:s, s:b}", "code", "interrupted", "message",
					      "the transfer broke off and was started again", "temporary", 1));
	return s->ops->put(s, &model_runs, &old, e);
}

static int collect_old(void *arg, void *row)
{
	const struct model_run *run = row;
	struct engine_ids *l = arg;

	if (run->number != l->number)
		return 0;
	if (l->to_spare) {
		l->to_spare--;
		return 0;
	}
	return engine_ids_add(l, run->id);
}

/* A source can make attempts fail for ever: as many of a run as are shown stay in the store. */
static int forget_attempts(struct store *s, const char *job, uint64_t number, struct err *e)
{
	struct store_filter f[] = {{"job", job}, {"state", "failed"}};
	struct store_query q = {.filters = f, .nfilters = ARRAY_SIZE(f)};
	struct engine_ids old = {.number = number, .to_spare = ENGINE_ATTEMPTS};
	int r = s->ops->list(s, &model_runs, &q, collect_old, &old, NULL, e);

	for (size_t i = 0; r == 0 && i < old.n; i++)
		r = s->ops->remove(s, &model_runs, old.v[i], e);
	free(old.v);
	return r;
}

static int open_run(struct live *l, struct model_job *job, const char *id, struct err *e)
{
	_cleanup_(model_run_release) struct model_run run = {.started = id_now(), .state = RUN_ACTIVE};
	_cleanup_(model_job_release) struct model_job now = {0};
	struct store *s = l->engine->store;
	int r;

	if (model_set(&run.id, id) < 0 || model_set(&run.job, l->job) < 0)
		return err_nomem(e);
	r = s->ops->begin(s, e);
	if (r < 0)
		return r;
	r = s->ops->get(s, &model_jobs, l->job, &now, e);
	if (r == 0 && (now.state != JOB_RUNNING || now.stage != JOB_SYNCING))
		r = err_set(e, -ECANCELED, "the job has moved on");
	run.number = now.number;
	run.trigger = now.trigger;
	if (r == 0)
		r = close_old_run(s, now.run, e);
	if (r == 0)
		r = forget_attempts(s, l->job, now.number, e);
	if (r == 0)
		r = s->ops->put(s, &model_runs, &run, e);
	if (r == 0 && model_set(&now.run, id) < 0)
		r = err_nomem(e);
	if (r == 0)
		r = s->ops->put(s, &model_jobs, &now, e);
	if (r < 0) {
		s->ops->rollback(s);
		return r;
	}
	model_take_json(&job->parameters, json_incref(now.parameters));
	return s->ops->commit(s, e);
}

/* ---- while it receives ---- */

static void on_listening(struct live *l, const json_t *event)
{
	json_int_t port = json_integer_value(json_object_get(event, "port"));

	if (port <= 0 || port > UINT16_MAX)
		return;
	l->port = (uint16_t)port;
	l->active = id_now_mono();
}

static void on_progress(struct live *l, const json_t *event)
{
	json_t *written = json_object_get(event, "bytes_written"), *received = json_object_get(event, "bytes_received");

	if (json_is_integer(received) && (uint64_t)json_integer_value(received) != l->received) {
		l->received = (uint64_t)json_integer_value(received);
		l->active = id_now_mono();
	}
	if (!l->progress)
		l->progress = json_object();
	if (json_is_integer(written) && json_integer_value(written) >= 0)
		json_object_set_new(
		    l->progress, "bytes_written",
		    json_integer((json_int_t)MIN(l->written_before + (uint64_t)json_integer_value(written),
						 (uint64_t)INT64_MAX)));
	if (json_is_integer(received))
		json_object_set(l->progress, "bytes_received", received);
	l->tick = ++l->engine->tick;
}

/* Called without the lock. */
static void log_event(struct live *l, const char *name, const json_t *event)
{
	const bool progress = strcmp(name, "progress") == 0;
	_cleanup_free_ char *text = NULL;

	if (!l->feed || (progress && id_now_mono() - l->feed->told < LOG_PROGRESS))
		return;
	l->feed->told = progress ? id_now_mono() : l->feed->told;
	text = jsn_text(event);
	joblog_say(l->feed, "%s", text ?: name);
}

static void on_log(void *arg, const char *text, size_t n)
{
	struct live *l = arg;

	joblog_console(l->feed, text, n);
}

static void on_error(struct live *l, const json_t *event)
{
	const char *code = json_string_value(json_object_get(event, "code"));
	const char *message = json_string_value(json_object_get(event, "message"));

	l->receiver_failed = true;
	runner_fail(&l->receiver_failure, code ? code : "receive_failed",
		    json_is_true(json_object_get(event, "temporary")), "%s",
		    message ? message : "the receiver failed and didn't say why");
}

static void on_event(void *arg, const json_t *event)
{
	const char *name = json_string_value(json_object_get(event, "event"));
	struct live *l = arg;

	if (name && strcmp(name, "image_changed") == 0)
		task_image_changed(l->engine, event);
	else if (name)
		log_event(l, name, event);
	ENGINE_LOCK(l->engine);

	if (!name)
		return;
	if (strcmp(name, "listening") == 0)
		on_listening(l, event);
	else if (strcmp(name, "progress") == 0)
		on_progress(l, event);
	else if (strcmp(name, "error") == 0)
		on_error(l, event);
	else if (strcmp(name, "committed") == 0)
		l->active = id_now_mono();
}

static void describe(struct live *l, bool listening, bool online, bool reported)
{
	static const struct {
		const char *phase, *text;
	} phases[] = {{"connecting", "the source connects"},
		      {"full", "copying all used blocks"},
		      {"compare", "copying what has changed"},
		      {"freezing", "freezing the source"},
		      {"frozen", "reading what changed last, the source is frozen"},
		      {"finishing", "sending the rest"},
		      {"done", "writing everything to disk"}};
	char phase[32] = "";

	if (!listening) {
		engine_step(l, "opening", "getting ready to receive");
		return;
	}
	if (!online || !reported) {
		engine_step(l, "waiting", "waiting for the source");
		return;
	}
	pthread_mutex_lock(&l->engine->lock);
	snprintf(phase, sizeof(phase), "%s", json_string_value(json_object_get(l->progress, "phase")) ?: "");
	pthread_mutex_unlock(&l->engine->lock);
	for (size_t i = 0; i < ARRAY_SIZE(phases); i++)
		if (strcmp(phases[i].phase, phase) == 0) {
			engine_step(l, phase, "%s", phases[i].text);
			return;
		}
	engine_step(l, "receiving", "receiving");
}

/*
 * A source that is there and sends nothing is given up soon: somebody has to look. One that is away may be back in an
 * hour, and then needs a while to begin. Nothing can come before the receiver listens, and layers that are put together
 * before that may take hours. Under the lock.
 */
static void watch_time(struct live *l, bool online, double ago)
{
	double now = id_now_mono(), silence = l->engine->s.source_patience, absence = l->engine->s.source_absence;

	if (!online)
		l->absent = now;
	if (!l->port)
		l->active = now;
	if (l->gave_up)
		return;
	if (MIN(ago, now - l->active) > absence) {
		l->gave_up = true;
		runner_fail(&l->give_up, "source_offline", true,
			    "nothing was heard of the source for %.0f minutes; start its agent, then start the job "
			    "again: it goes on where it was",
			    absence / 60);
	} else if (now - MAX(l->active, l->absent) > silence) {
		l->gave_up = true;
		runner_fail(&l->give_up, "source_silent", true,
			    "the source is there but has sent nothing for %.0f minutes; look at its agent's log and "
			    "whether it can reach this center's data port, then start the job again",
			    silence / 60);
	}
}

/* Asked a few times a second, so it's also where time is watched. */
static bool sync_cancelled(void *arg)
{
	struct live *l = arg;
	double ago = seen_ago(l->engine, l->source);
	bool online = seen_online(l->engine, l->source), give_up, reported, busy, listening;

	if (runner_cancelled(l))
		return true;
	pthread_mutex_lock(&l->engine->lock);
	watch_time(l, online, ago);
	busy = id_now_mono() - l->active < 10;
	listening = l->port;
	reported = l->received || json_object_get(l->progress, "phase");
	give_up = l->gave_up || l->agent_failed;
	pthread_mutex_unlock(&l->engine->lock);
	describe(l, listening, online || busy, reported);
	return give_up;
}

/* ---- one attempt ---- */

static void offer_open(struct live *l, const char *run, const char *psk, const char *host, const json_t *parameters,
		       bool test)
{
	uint64_t log_at = joblog_end(l->engine, l->job, l->number, JOBLOG_AGENT);
	ENGINE_LOCK(l->engine);

	l->log_at = log_at;
	snprintf(l->run, sizeof(l->run), "%s", run);
	snprintf(l->psk, sizeof(l->psk), "%s", psk);
	snprintf(l->host, sizeof(l->host), "%s", host);
	l->port = 0;
	l->received = 0;
	l->active = id_now_mono();
	l->agent_failed = l->receiver_failed = l->gave_up = false;
	l->written_before = (uint64_t)MAX(0, json_integer_value(json_object_get(l->progress, "bytes_written")));
	model_take_json(&l->parameters, testing_offer(parameters, test));
	if (l->progress)
		json_object_del(l->progress, "phase");
}

static void offer_close(struct live *l)
{
	ENGINE_LOCK(l->engine);

	l->port = 0;
	explicit_bzero(l->psk, sizeof(l->psk));
}

int runner_no_space(struct engine_failure *f, const char *message)
{
	return runner_fail(f, "no_space", true, "%.*s; free space in the region, then start the job again",
			   (int)str_cut(message, 600), message);
}

static bool is_explained(struct live *l)
{
	ENGINE_LOCK(l->engine);

	return l->gave_up || l->agent_failed || l->cancel || !l->port || l->engine->stopping;
}

/* A sender that gives up ends its receiver, too, whose word comes first: what is final would pass for a broken line,
 * and the source be copied and frozen again and again. */
static void hear_agent(struct live *l)
{
	double end = id_now_mono() + l->engine->s.last_word;

	while (!is_explained(l) && seen_online(l->engine, l->source) && id_now_mono() < end)
		nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
}

static int explain(struct live *l, int r, const struct err *e, struct engine_failure *f)
{
	ENGINE_LOCK(l->engine);

	if (r == -ENOSPC || (l->receiver_failed && strcmp(l->receiver_failure.code, "no_space") == 0))
		return runner_no_space(f, l->receiver_failed ? l->receiver_failure.message : e->msg);
	if (l->gave_up)
		*f = l->give_up;
	else if (l->agent_failed)
		*f = l->agent_failure;
	else if (l->receiver_failed)
		*f = l->receiver_failure;
	else
		return runner_fail(f, "receive_failed", true, "%s", e->msg);
	return -1;
}

/* Where the data goes: what the agent is told, "" for the center's own address, and where the receiver listens, "" for
 * where the center does. */
struct way {
	char host[256], listen[64];
};

/* Is it a numeric address of this host? */
static bool is_here(const char *address)
{
	struct addrinfo hints = {.ai_flags = AI_NUMERICHOST, .ai_socktype = SOCK_STREAM}, *ai = NULL;
	_cleanup_close_ int fd = -1;
	bool here;

	if (getaddrinfo(address, "0", &hints, &ai) != 0)
		return false;
	fd = socket(ai->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	here = fd >= 0 && bind(fd, ai->ai_addr, ai->ai_addrlen) == 0;
	freeaddrinfo(ai);
	return here;
}

/* On the private network nobody else is listened to, where that address is this host's own and no gateway's. */
static int find_way(struct live *l, const struct model_job *job, struct way *ret, struct err *e)
{
	_cleanup_(model_region_release) struct model_region region = {0};
	const char *word = json_string_value(json_object_get(job->parameters, "network")) ?: "public", *address;
	int network = model_word(model_networks, word);
	struct store *s = l->engine->store;
	int r = s->ops->get(s, &model_regions, "local", &region, e); /* wherever instances run, data comes here */

	*ret = (struct way){0};
	if (r < 0)
		return r;
	address = model_region_address(&region, network == NETWORK_PRIVATE ? NETWORK_PRIVATE : NETWORK_PUBLIC);
	if (!address)
		return network == NETWORK_PRIVATE ? err_set(e, -EINVAL,
							    "region 'local' has no private address any more; give it "
							    "one, or set the job's network to public")
						  : 0;
	snprintf(ret->host, sizeof(ret->host), "%s", address);
	if (network == NETWORK_PRIVATE && strlen(address) < sizeof(ret->listen) && is_here(address))
		snprintf(ret->listen, sizeof(ret->listen), "%s", address);
	return 0;
}

static int sync_once(struct live *l, struct model_job *job, struct engine_failure *f)
{
	struct provider *p = l->engine->provider;
	const struct provider_watch watch = {l, on_event, sync_cancelled, on_log};
	struct provider_receive receive = {.listen = l->engine->listen};
	struct joblog_feed feed;
	unsigned char raw[32];
	char run[ID_MAX], psk[65];
	struct way way;
	struct err e = {0};
	int r;

	id_new("run", run);
	id_random(raw, sizeof(raw));
	str_hex(raw, sizeof(raw), psk);
	if (l->engine->store->share)
		share_psk(l->engine, run, psk);
	OPENSSL_cleanse(raw, sizeof(raw));
	r = open_run(l, job, run, &e);
	if (r < 0)
		return runner_fail(f, "internal", false, "%s", e.msg);
	r = find_way(l, job, &way, &e);
	if (r == -EINVAL)
		return runner_fail(f, "no_private_address", false, "%s", e.msg);
	if (r < 0)
		return runner_fail(f, "internal", false, "%s", e.msg);
	if (*way.listen)
		receive.listen = way.listen;
	offer_open(l, run, psk, way.host, job->parameters, testing_is_test(job));
	engine_step(l, "opening", "getting ready to receive");
	receive.run = run;
	receive.psk_hex = psk;
	receive.clear = !model_is_encrypted(job);
	receive.partial = testing_is_test(job);
	receive.number = model_is_incremental(job) && !receive.partial ? job->number : 0;
	joblog_open(&feed, l, JOBLOG_RECEIVER);
	joblog_say(&feed, "%s: begins", run);
	r = p->ops->receive(p, l->job, &receive, &watch, &e);
	joblog_say(&feed, "%s: %s", run, r < 0 ? e.msg : "complete");
	joblog_close(&feed);
	OPENSSL_cleanse(psk, sizeof(psk));
	if (r < 0 && r != -ENOSPC)
		hear_agent(l);
	offer_close(l);
	return r < 0 ? explain(l, r, &e, f) : 0;
}

static void retry_pause(struct live *l)
{
	double end = id_now_mono() + l->engine->s.retry_pause;

	while (id_now_mono() < end && !runner_cancelled(l))
		nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
}

/* Goes on counting where an earlier attempt, maybe of an earlier center, was. */
static void take_progress(struct live *l, const struct model_job *job)
{
	ENGINE_LOCK(l->engine);

	if (!l->progress && job->progress)
		l->progress = json_deep_copy(job->progress);
}

/* A transfer that got on is tried again for ever, but not when it was the source that stopped it, in or before a
 * freeze: it would be frozen again each time. */
static bool sync_got_on(const struct live *l, const struct engine_failure *f)
{
	return l->received && strcmp(f->code, "guard_lost") != 0 && strcmp(f->code, "busy") != 0;
}

int runner_sync(struct live *l, struct model_job *job, struct engine_failure *f)
{
	unsigned idle = 0;

	take_progress(l, job);

	for (;;) {
		int r = sync_once(l, job, f);
		bool final;

		if (r == 0 || runner_cancelled(l))
			return r;
		pthread_mutex_lock(&l->engine->lock);
		final = !f->temporary || l->gave_up || strcmp(f->code, "no_space") == 0;
		idle = sync_got_on(l, f) ? 0 : idle + 1;
		pthread_mutex_unlock(&l->engine->lock);
		if (final || idle >= ENGINE_RETRIES)
			return r;
		log_warn("job %s: %s; trying again", l->job, f->message);
		engine_step(l, "retrying", "trying again: %.120s", f->message);
		retry_pause(l);
	}
}
