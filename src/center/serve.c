#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include "base/err.h"
#include "base/io.h"
#include "base/log.h"
#include "base/proc.h"
#include "base/str.h"
#include "center/notify.h"
#include "center/pki.h"

#define FILES_WANTED 65536

/* "1.2.3.4:8443", "[::]:8443", or either without the port. */
static int parse_listen(const char *s, char *host, size_t size, uint16_t *ret_port, struct err *e)
{
	const char *end = *s == '[' ? strchr(s, ']') : strrchr(s, ':');
	const char *start = *s == '[' ? s + 1 : s, *port = NULL;
	uint64_t n = CENTER_PORT;

	if (*s == '[' && !end)
		return err_set(e, -EINVAL, "'%s' lacks a ']'", s);
	if (*s == '[')
		port = end[1] == ':' ? end + 2 : NULL;
	else if (end)
		port = end + 1;
	else
		end = s + strlen(s);
	if (port && str_u64(port, 0, UINT16_MAX, &n) < 0)
		return err_set(e, -EINVAL, "'%s' doesn't end in a port", s);
	if (end == start || (size_t)(end - start) >= size)
		return err_set(e, -EINVAL, "'%s' is not ADDRESS:PORT", s);
	snprintf(host, size, "%.*s", (int)(end - start), start);
	*ret_port = (uint16_t)n;
	return 0;
}

/* In its room's folder of a build tree, or where it is installed; our own folder when it is nowhere, and whoever needs
 * it says so. */
static int find_program(const char *name, const char *room, char *dir, size_t size, struct err *e)
{
	_cleanup_free_ char *in_tree = str_printf("../%s", room);
	const char *const places[] = {".", in_tree, "../libexec/replant", "../sbin", "../bin"};
	char self[4096], path[4400];
	int r = proc_self_dir(self, sizeof(self), e);

	if (r < 0)
		return r;
	if (!in_tree)
		return err_nomem(e);
	for (size_t i = 0; i < ARRAY_SIZE(places); i++) {
		snprintf(path, sizeof(path), "%s/%s/%s", self, places[i], name);
		if (access(path, X_OK) < 0)
			continue;
		snprintf(dir, size, "%s/%s", self, places[i]);
		return 0;
	}
	snprintf(dir, size, "%s", self);
	return 0;
}

/* Two centers on one state directory would both carry its jobs, and the newer one would change the database under the
 * older. */
static int lock_state(const char *state, int *ret_fd, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/lock", state);
	_cleanup_close_ int fd = -1;
	int r = center_check(state, e);

	if (r < 0)
		return r;
	if (!path)
		return err_nomem(e);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_sys(e, "cannot open '%s'", path);
	if (flock(fd, LOCK_EX | LOCK_NB) < 0)
		return err_set(e, -EBUSY, "another replantd serves '%s'; stop it first", state);
	*ret_fd = take_fd(&fd);
	return 0;
}

/* Another user's programs have to get through to `path`: every directory above must let them. */
static int check_way(const char *user, const char *path, struct err *e)
{
	_cleanup_free_ char *real = realpath(path, NULL);
	struct stat st;

	if (!user || geteuid() != 0 || strcmp(user, "root") == 0)
		return 0;
	if (!real)
		return err_sys(e, "cannot find '%s'", path);
	for (char *slash = real; (slash = strchr(slash + 1, '/'));) {
		*slash = '\0';
		if (stat(real, &st) == 0 && !(st.st_mode & S_IXOTH))
			return err_set(
			    e, -EACCES,
			    "user '%s' can't get through '%s' to '%s' (put it elsewhere, or name another --user)", user,
			    real, path);
		*slash = '/';
	}
	return 0;
}

static int open_provider(struct engine *en, struct err *e)
{
	_cleanup_(model_region_release) struct model_region region = {0};
	const struct provider_settings ps = {
	    .dir = en->dir, .cache = en->cache, .programs = en->programs, .user = en->s.user};
	int r = en->store->ops->get(en->store, &model_regions, "local", &region, e);

	if (r < 0)
		return r;
	/* Another user's QEMU has to get through to its files; every secret in the directory is closed by its
	 * own mode. */
	if (en->s.user && geteuid() == 0 && chmod(en->state, 0711) < 0)
		return err_sys(e, "cannot open the way through '%s'", en->state);
	snprintf(en->dir, sizeof(en->dir), "%s/local", en->state);
	snprintf(en->cache, sizeof(en->cache), "%s%s", en->s.cache ? en->s.cache : en->state,
		 en->s.cache ? "" : "/cache");
	r = io_mkdirs(en->dir, 0711, e);
	if (r == 0)
		r = check_way(en->s.user, en->dir, e);
	if (r == 0)
		r = io_mkdirs(en->cache, 0755, e);
	if (r == 0)
		r = check_way(en->s.user, en->cache, e);
	if (r < 0)
		return r;
	r = find_program("replant-transition", "transition", en->programs, sizeof(en->programs), e);
	if (r == 0)
		r = io_mkdirs(en->exports, 0700, e);
	if (r == 0)
		r = io_mkdirs(en->logs, 0700, e);
	return r < 0 ? r : en->s.provider_open(region.provider, &ps, &en->provider, e);
}

static char *read_url(const char *state)
{
	_cleanup_free_ char *path = str_printf("%s/url", state);
	char *url = NULL;

	if (!path || io_read_file(path, 1024, &url, NULL, NULL) < 0)
		return NULL;
	url[strcspn(url, "\r\n")] = '\0';
	return url;
}

static void apply_defaults(struct center_settings *s)
{
	s->heartbeat = s->heartbeat > 0 ? s->heartbeat : 10;
	s->heartbeat_busy = s->heartbeat_busy > 0 ? s->heartbeat_busy : 2;
	s->hour = s->hour > 0 ? s->hour : 3600;
	s->source_patience = s->source_patience > 0 ? s->source_patience : 900;
	s->source_absence = s->source_absence > 0 ? s->source_absence : 14400;
	s->retry_pause = s->retry_pause > 0 ? s->retry_pause : 2;
	s->last_word = s->last_word > 0 ? s->last_word : 3;
	s->tick = s->tick > 0 ? s->tick : 1;
	s->switch_boot = s->switch_boot > 0 ? s->switch_boot : 900;
	s->instances_tick = s->instances_tick > 0 ? s->instances_tick : 10;
	s->lease = s->lease > 0 ? s->lease : 60;
	s->renew_check = s->renew_check > 0 ? s->renew_check : 86400;
	s->notify_pause = s->notify_pause > 0 ? s->notify_pause : 10;
	s->notify_timeout = s->notify_timeout > 0 ? s->notify_timeout : 10;
}

/* Renews the server's certificate when it's time; connections there are don't notice. What fails is tried again at
 * the next look, of which there are many before the old one ends. *chain is what is served now. */
static void renew_identity(const char *state, char **chain)
{
	_cleanup_(pki_release) struct pki fresh = {0};
	struct err e = {0};
	int r = pki_load(state, &fresh, &e);

	if (r == 0 && strcmp(fresh.chain_pem, *chain) == 0)
		return;
	if (r == 0)
		r = api_identity(fresh.key_pem, fresh.chain_pem, &e);
	if (r < 0) {
		log_warn("the server's certificate can't be renewed: %s", e.msg);
		return;
	}
	log_info("the server has a new certificate");
	free(*chain);
	*chain = take_ptr(&fresh.chain_pem);
}

/* Serves until a signal; time is looked at now and then. */
static void wait_for_signal(struct engine *en, char **chain, const sigset_t *set)
{
	const struct timespec pause = {(time_t)en->s.renew_check,
				       (long)((en->s.renew_check - (double)(time_t)en->s.renew_check) * 1e9)};
	int got;

	while ((got = sigtimedwait(set, NULL, &pause)) < 0)
		if (errno == EAGAIN)
			renew_identity(en->state, chain);
	log_info("ending (signal %d)", got);
}

/* Where agents reach what listens here: of several centers each has to say so. */
static void set_data_host(struct engine *en, const char *url)
{
	const char *host = url && str_starts(url, "https://") ? url + strlen("https://") : "", *end;
	bool bracket = *host == '[';

	if (!en->store->share)
		return;
	if (en->s.data_host) {
		snprintf(en->data_host, sizeof(en->data_host), "%s", en->s.data_host);
		return;
	}
	host += bracket;
	end = strchr(host, bracket ? ']' : ':');
	snprintf(en->data_host, sizeof(en->data_host), "%.*s", end ? (int)(end - host) : (int)strlen(host), host);
}

static int serve_engine(struct engine *en, struct pki *pki, const sigset_t *set, struct err *e)
{
	_cleanup_free_ char *url = read_url(en->state);
	unsigned char access_key[API_ACCESS_KEY];
	char programs[4200];
	struct api_settings as = {
	    .store = en->store,
	    .engine = engine_api(en),
	    .address = en->listen,
	    .key_pem = pki->key_pem,
	    .chain_pem = pki->chain_pem,
	    .access_key = access_key,
	    .ca_fingerprint = pki->ca_fingerprint,
	    .public_url = url,
	    .programs = programs,
	    .exports = en->exports,
	    .mail = en->s.mail_server,
	    .failures_per_minute = en->s.failures_per_minute,
	};
	int r = parse_listen(en->s.listen, en->listen, sizeof(en->listen), &as.port, e);

	set_data_host(en, url);
	if (r == 0)
		r = pki_key(en->state, "access.key", access_key, e);
	if (r == 0)
		r = find_program("replant-agent", "agent", programs, sizeof(programs), e);
	if (r == 0)
		r = api_start(&as, &en->api, e);
	if (r < 0)
		return r;
	r = engine_start(en, e);
	if (r == 0)
		r = notify_start(en, e);
	if (r == 0) {
		log_info("serving on %s port %u", en->listen, api_port(en->api));
		if (en->s.ready)
			en->s.ready(api_port(en->api));
		wait_for_signal(en, &pki->chain_pem, set);
	}
	/* Jobs first, so that nobody is answered who would start another; their rows say where to go on. */
	engine_stop(en);
	notify_stop(en);
	api_stop(en->api);
	seen_free(en); /* heartbeats came until here */
	explicit_bzero(access_key, sizeof(access_key));
	return r;
}

/* Waits go by the clock that nobody sets: with the wall clock set back, a tick would last as long as that. */
void engine_cond_init(pthread_cond_t *c)
{
	pthread_condattr_t attr;

	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(c, &attr);
	pthread_condattr_destroy(&attr);
}

static int serve_open(struct engine *en, const sigset_t *set, struct err *e)
{
	struct pki pki = {0};
	int r = pki_load(en->state, &pki, e);

	if (r < 0)
		return r;
	r = notify_new(en, e);
	if (r == 0)
		r = open_provider(en, e);
	if (r == 0) {
		r = serve_engine(en, &pki, set, e);
		engine_hypervisors_close(en);
		en->provider->ops->close(en->provider);
	}
	notify_free(en);
	pki_release(&pki);
	return r;
}

/* Each agent keeps a connection, and a login's usual limit is 1024 files. */
static void raise_files(void)
{
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) < 0 || files.rlim_cur >= MIN(files.rlim_max, (rlim_t)FILES_WANTED))
		return;
	files.rlim_cur = MIN(files.rlim_max, (rlim_t)FILES_WANTED);
	setrlimit(RLIMIT_NOFILE, &files);
}

int center_serve(const struct center_settings *s, struct err *e)
{
	struct engine *en = calloc(1, sizeof(*en));
	_cleanup_close_ int lock = -1;
	sigset_t set;
	int r;

	if (!en)
		return err_nomem(e);
	en->s = *s;
	apply_defaults(&en->s);
	pthread_mutex_init(&en->lock, NULL);
	pthread_mutex_init(&en->log_lock, NULL);
	pthread_mutex_init(&en->share_lock, NULL);
	engine_cond_init(&en->changed);
	if (!realpath(s->state, en->state)) {
		r = err_sys(e, "cannot use state directory '%s'", s->state);
		free(en);
		return r;
	}
	snprintf(en->exports, sizeof(en->exports), "%.4000s/exports", en->state);
	snprintf(en->logs, sizeof(en->logs), "%.4000s/logs", en->state);
	/* Before any thread: all of them inherit it. */
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	signal(SIGPIPE, SIG_IGN);
	raise_files();
	r = errand_check_settings(&en->s, e);
	if (r == 0)
		r = lock_state(en->state, &lock, e);
	if (r == 0)
		r = center_open_store(en->state, &en->store, e);
	if (r == 0 && en->store->share)
		r = share_watch(en, e);
	if (r == 0)
		r = serve_open(en, &set, e);
	share_unwatch(en);
	store_close(en->store);
	pthread_cond_destroy(&en->changed);
	pthread_mutex_destroy(&en->log_lock);
	pthread_mutex_destroy(&en->share_lock);
	pthread_mutex_destroy(&en->lock);
	json_decref(en->held);
	free(en);
	return r;
}
