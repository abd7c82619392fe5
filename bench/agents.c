/*
 * Simulated agents: each has a TLS connection of its own to a center and says what an agent says, every ten seconds or,
 * with a job, every two. Beside them a thread asks what people ask, and everything is timed. One thread and epoll carry
 * all agents: it shares its processors with the center that is measured.
 *
 * usage: replant-load PORT CA TOKEN SECRETS INVENTORY RAMP SECONDS [ADDRESSES]
 *
 * SECRETS has an agent's secret a line. They connect within RAMP seconds, from ADDRESSES addresses of the loopback (as
 * many as there are agents, when missing); then SECONDS are measured. Prints one JSON object.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/util.h"

#define IDLE_MS         10000
#define BUSY_MS         2000
#define BACKOFF_MAX_S   30
#define ANSWER_LATE     10000 /* ms; what takes longer is given up */
#define WHEEL           65536 /* ms, more than any pause */
#define SAMPLES_MAX     (1u << 22)
#define PEOPLE_PAUSE_MS 50
#define INVENTORY_EVERY 60 /* syncs: an agent says it every ten minutes */

enum phase { PHASE_OFF, PHASE_CONNECTING, PHASE_HANDSHAKE, PHASE_WAITING, PHASE_SENDING, PHASE_READING };

struct agent {
	struct agent *next; /* in its slot of the wheel */
	SSL *ssl;
	char *secret, *out;
	size_t out_len, out_done, in_len;
	uint64_t due, begun; /* ms, of the exchange */
	uint32_t events;     /* as epoll knows them */
	int fd;
	enum phase phase;
	unsigned number, syncs, failures;
	bool queued;
	char run[32]; /* of its job, or "" */
	char in[1024];
};

/* Latencies in microseconds. */
struct samples {
	uint32_t *v;
	size_t n;
};

struct load {
	const char *token;
	char *inventory;
	struct sockaddr_in center;
	unsigned addresses;
	SSL_CTX *ctx;
	int epoll;
	struct agent *agents, *wheel[WHEEL];
	size_t n, connected;
	uint64_t now, wheel_at, measure_from, end;
	uint64_t beats, busy_beats, errors, closed, connects;
	struct samples beat;
};

static uint64_t now_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000 + (uint64_t)ts.tv_nsec / 1000;
}

static uint64_t now_ms(void)
{
	return now_us() / 1000;
}

static void die(const char *what)
{
	fprintf(stderr, "replant-load: %s: %s\n", what, strerror(errno));
	ERR_print_errors_fp(stderr);
	exit(1);
}

static void sample(struct samples *s, uint64_t us)
{
	if (s->n < SAMPLES_MAX)
		s->v[s->n++] = us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
}

static void samples_new(struct samples *s)
{
	*s = (struct samples){.v = calloc(SAMPLES_MAX, sizeof(*s->v))}; /* what is used of it costs memory */
	if (!s->v)
		die("memory");
}

static int by_size(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static void print_samples(const char *name, struct samples *s)
{
	qsort(s->v, s->n, sizeof(*s->v), by_size);
	printf("\"%s\": {\"n\": %zu, \"p50_ms\": %.2f, \"p99_ms\": %.2f, \"max_ms\": %.2f}", name, s->n,
	       s->n ? s->v[s->n / 2] / 1e3 : 0, s->n ? s->v[s->n * 99 / 100] / 1e3 : 0,
	       s->n ? s->v[s->n - 1] / 1e3 : 0);
}

/* ---- when who is due ---- */

static void schedule(struct load *l, struct agent *a, uint64_t at)
{
	struct agent **slot;

	a->due = MAX(at, l->wheel_at + 1);
	slot = &l->wheel[a->due % WHEEL];
	must(!a->queued && a->due - l->wheel_at < WHEEL);
	a->queued = true;
	a->next = *slot;
	*slot = a;
}

/* ---- connections ---- */

static void watch(struct load *l, struct agent *a, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.ptr = a};

	if (events != a->events && epoll_ctl(l->epoll, a->events ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, a->fd, &e) < 0)
		die("epoll");
	a->events = events;
}

static void hang_up(struct load *l, struct agent *a)
{
	if (a->phase >= PHASE_WAITING)
		l->connected--;
	SSL_free(a->ssl);
	a->ssl = NULL;
	if (a->fd >= 0)
		close(a->fd);
	a->fd = -1;
	a->events = 0;
	a->phase = PHASE_OFF;
	free(a->out);
	a->out = NULL;
	a->failures++;
	if (!a->queued) /* like an agent: later each time, never in step with others */
		schedule(l, a,
			 l->now +
			     MIN(1u << MIN(a->failures, 5u), (unsigned)BACKOFF_MAX_S) * (500 + (unsigned)rand() % 500));
}

static void failed(struct load *l, struct agent *a)
{
	if (l->now >= l->measure_from)
		l->errors++;
	ERR_clear_error();
	hang_up(l, a);
}

static void connect_out(struct load *l, struct agent *a)
{
	struct sockaddr_in from = {.sin_family = AF_INET};
	int one = 1;

	/* 127.1.0.1 and on */
	from.sin_addr.s_addr = htonl(0x7f010001u + a->number % l->addresses);
	a->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (a->fd < 0)
		die("socket");
	setsockopt(a->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	setsockopt(a->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
	if (bind(a->fd, (struct sockaddr *)&from, sizeof(from)) < 0)
		die("bind");
	l->connects++;
	a->phase = PHASE_CONNECTING;
	if (connect(a->fd, (struct sockaddr *)&l->center, sizeof(l->center)) < 0 && errno != EINPROGRESS) {
		failed(l, a);
		return;
	}
	watch(l, a, EPOLLOUT);
}

/* ---- an exchange ---- */

static char *request_text(const struct load *l, struct agent *a)
{
	char task[256] = "", *body = NULL, *text = NULL;
	bool inventory = a->syncs % INVENTORY_EVERY == a->number % INVENTORY_EVERY || !a->syncs;

	if (*a->run)
		snprintf(task, sizeof(task),
			 ",\"task\":{\"run\":\"%s\",\"state\":\"sending\",\"progress\":{\"phase\":\"full\",\"round\":1,"
			 "\"bytes_total\":100000000,\"bytes_done\":%u,\"speed\":1000000}}",
			 a->run, a->syncs * 1000);
	if (asprintf(&body, "{\"agent_version\":\"0.1.0\",\"boot_id\":\"boot-%u\"%s%s%s}", a->number,
		     inventory ? ",\"inventory\":" : "", inventory ? l->inventory : "", task) < 0 ||
	    asprintf(&text,
		     "POST /v1/agent/sync HTTP/1.1\r\nHost: 127.0.0.1:%u\r\nUser-Agent: replant-agent/0.1.0\r\n"
		     "Accept: application/json\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
		     "Content-Length: %zu\r\n\r\n%s",
		     ntohs(l->center.sin_port), a->secret, strlen(body), body) < 0)
		die("memory");
	free(body);
	return text;
}

/* After an SSL call that couldn't go on: 0 when it waits, -1 when it's over. */
static int wait_more(struct load *l, struct agent *a, int r)
{
	switch (SSL_get_error(a->ssl, r)) {
	case SSL_ERROR_WANT_READ:
		watch(l, a, EPOLLIN);
		return 0;
	case SSL_ERROR_WANT_WRITE:
		watch(l, a, EPOLLOUT);
		return 0;
	default:
		return -1;
	}
}

static void take_answer(struct load *l, struct agent *a)
{
	const char *run = strstr(a->in, "\"run\":\"");
	bool ok = strncmp(a->in, "HTTP/1.1 200", 12) == 0, measured = a->begun / 1000 >= l->measure_from;

	if (measured && ok) {
		sample(&l->beat, now_us() - a->begun);
		l->beats++;
		l->busy_beats += *a->run != '\0';
	}
	if (!ok) {
		if (!l->errors)
			fprintf(stderr, "replant-load: %.300s\n", a->in);
		failed(l, a);
		return;
	}
	a->run[0] = '\0';
	if (run)
		snprintf(a->run, sizeof(a->run), "%.20s", run + 7);
	a->phase = PHASE_WAITING;
	a->failures = 0;
	a->syncs++;
	schedule(l, a, a->due + (*a->run ? BUSY_MS : IDLE_MS));
}

/* Is the whole answer there? Its body is short: a task at most. */
static bool is_whole(const struct agent *a)
{
	const char *end = strstr(a->in, "\r\n\r\n"), *length = strcasestr(a->in, "\r\nContent-Length:");

	return end && length && a->in_len >= (size_t)(end + 4 - a->in) + (size_t)atoi(length + 17);
}

static void read_answer(struct load *l, struct agent *a)
{
	while (a->in_len < sizeof(a->in) - 1) {
		int r = SSL_read(a->ssl, a->in + a->in_len, (int)(sizeof(a->in) - 1 - a->in_len));

		if (r <= 0) {
			if (wait_more(l, a, r) < 0)
				failed(l, a);
			return;
		}
		a->in_len += (size_t)r;
		a->in[a->in_len] = '\0';
		if (is_whole(a)) {
			take_answer(l, a);
			return;
		}
	}
	failed(l, a);
}

static void send_request(struct load *l, struct agent *a)
{
	while (a->out_done < a->out_len) {
		int r = SSL_write(a->ssl, a->out + a->out_done, (int)(a->out_len - a->out_done));

		if (r <= 0) {
			if (wait_more(l, a, r) < 0)
				failed(l, a);
			return;
		}
		a->out_done += (size_t)r;
	}
	free(a->out);
	a->out = NULL;
	a->phase = PHASE_READING;
	a->in_len = 0;
	a->in[0] = '\0';
	watch(l, a, EPOLLIN);
}

/* The clock starts when it was due: what waits behind others is late. */
static void begin_exchange(struct load *l, struct agent *a)
{
	a->out = request_text(l, a);
	a->out_len = strlen(a->out);
	a->out_done = 0;
	a->begun = MAX(a->due, l->now - 1000) * 1000;
	a->phase = PHASE_SENDING;
	send_request(l, a);
}

static void shake_hands(struct load *l, struct agent *a)
{
	int r = SSL_connect(a->ssl);

	if (r != 1) {
		if (wait_more(l, a, r) < 0)
			failed(l, a);
		return;
	}
	l->connected++;
	a->phase = PHASE_WAITING;
	a->due = l->now;
	begin_exchange(l, a);
}

static void start_tls(struct load *l, struct agent *a)
{
	int error = 0;
	socklen_t len = sizeof(error);

	getsockopt(a->fd, SOL_SOCKET, SO_ERROR, &error, &len);
	a->ssl = error ? NULL : SSL_new(l->ctx);
	if (!a->ssl || SSL_set_fd(a->ssl, a->fd) != 1) {
		failed(l, a);
		return;
	}
	X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(a->ssl), "127.0.0.1");
	a->phase = PHASE_HANDSHAKE;
	shake_hands(l, a);
}

static void on_event(struct load *l, struct agent *a)
{
	char byte;

	switch (a->phase) {
	case PHASE_CONNECTING:
		start_tls(l, a);
		return;
	case PHASE_HANDSHAKE:
		shake_hands(l, a);
		return;
	case PHASE_SENDING:
		send_request(l, a);
		return;
	case PHASE_READING:
		read_answer(l, a);
		return;
	case PHASE_WAITING: /* tickets, or the center hangs up */
		if (SSL_read(a->ssl, &byte, 1) <= 0 && SSL_get_error(a->ssl, -1) == SSL_ERROR_WANT_READ)
			return;
		l->closed += l->now >= l->measure_from;
		ERR_clear_error();
		hang_up(l, a);
		return;
	case PHASE_OFF:
		return;
	}
}

static void turn_wheel(struct load *l)
{
	while (l->wheel_at < l->now) {
		struct agent *a = l->wheel[++l->wheel_at % WHEEL], *next;

		l->wheel[l->wheel_at % WHEEL] = NULL;
		for (; a; a = next) {
			next = a->next;
			a->queued = false;
			if (a->phase == PHASE_OFF)
				connect_out(l, a);
			else if (a->phase == PHASE_WAITING)
				begin_exchange(l, a);
		}
	}
}

static void give_up_late(struct load *l)
{
	for (size_t i = 0; i < l->n; i++) {
		struct agent *a = &l->agents[i];

		if ((a->phase == PHASE_SENDING || a->phase == PHASE_READING) && l->now > a->begun / 1000 + ANSWER_LATE)
			failed(l, a);
	}
}

static void carry(struct load *l)
{
	struct epoll_event e[256];
	uint64_t looked = l->now;

	while ((l->now = now_ms()) < l->end) {
		int n;

		turn_wheel(l);
		n = epoll_wait(l->epoll, e, ARRAY_SIZE(e), 1);
		l->now = now_ms();
		for (int i = 0; i < n; i++)
			on_event(l, e[i].data.ptr);
		if (l->now > looked + 1000) {
			looked = l->now;
			give_up_late(l);
		}
	}
}

/* ---- people ---- */

static const char *const asked[] = {"/v1/sources?limit=100", "/v1/jobs", "/v1/sources/%s"};
#define ASKED ARRAY_SIZE(asked)

struct people {
	const struct load *l;
	struct samples took[ASKED];
	uint64_t errors;
	atomic_bool stop;
	char source[64];
};

static SSL *people_connect(struct people *p)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), one = 1;
	SSL *ssl;

	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (fd < 0 || connect(fd, (const struct sockaddr *)&p->l->center, sizeof(p->l->center)) < 0) {
		close(fd);
		return NULL;
	}
	ssl = SSL_new(p->l->ctx);
	X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), "127.0.0.1");
	SSL_set_fd(ssl, fd);
	if (SSL_connect(ssl) == 1)
		return ssl;
	SSL_free(ssl);
	close(fd);
	return NULL;
}

static void people_leave(SSL *ssl)
{
	int fd = ssl ? SSL_get_fd(ssl) : -1;

	SSL_free(ssl);
	if (fd >= 0)
		close(fd);
}

/* The answer's whole length, or -1. */
static long people_ask(struct people *p, SSL *ssl, const char *path)
{
	static char buf[8 << 20];
	char text[512];
	size_t have = 0;
	int n = snprintf(text, sizeof(text),
			 "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer %s\r\nAccept: */*\r\n\r\n", path,
			 p->l->token);

	if (SSL_write(ssl, text, n) != n)
		return -1;
	while (have < sizeof(buf) - 1) {
		int r = SSL_read(ssl, buf + have, (int)(sizeof(buf) - 1 - have));
		char *end, *length;

		if (r <= 0)
			return -1;
		have += (size_t)r;
		buf[have] = '\0';
		end = strstr(buf, "\r\n\r\n");
		length = end ? strcasestr(buf, "\r\nContent-Length:") : NULL;
		if (length && have >= (size_t)(end + 4 - buf) + (size_t)atol(length + 17))
			return strncmp(buf, "HTTP/1.1 200", 12) == 0 ? (long)have : -1;
	}
	return -1;
}

static void *people_main(void *arg)
{
	struct people *p = arg;
	uint64_t due = now_us();
	SSL *ssl = NULL;

	for (unsigned i = 0; !atomic_load(&p->stop); i++) {
		char path[128];
		uint64_t begun;

		due = MAX(due + PEOPLE_PAUSE_MS * 1000,
			  now_us() - 1000000); /* not more than a second's worth is made up for */
		if (due > now_us())
			usleep((useconds_t)(due - now_us()));
		snprintf(path, sizeof(path), strchr(asked[i % ASKED], '%') ? "/v1/sources/%s" : "%s",
			 strchr(asked[i % ASKED], '%') ? p->source : asked[i % ASKED]);
		begun = due;
		if (!ssl)
			ssl = people_connect(p);
		if (!ssl || people_ask(p, ssl, path) < 0) {
			p->errors += begun / 1000 >= p->l->measure_from;
			people_leave(ssl);
			ssl = NULL;
			ERR_clear_error();
		} else if (begun / 1000 >= p->l->measure_from) {
			sample(&p->took[i % ASKED], now_us() - begun);
		}
	}
	people_leave(ssl);
	return NULL;
}

/* ---- all together ---- */

static char *read_all(const char *path)
{
	FILE *f = fopen(path, "re");
	char *text = NULL;
	size_t size = 0;

	if (!f || getdelim(&text, &size, '\0', f) < 0)
		die(path);
	fclose(f);
	return text;
}

static void read_agents(struct load *l, const char *path, uint64_t ramp)
{
	char *text = read_all(path);
	size_t lines = 0;

	for (const char *p = text; *p; p++)
		lines += *p == '\n';
	l->agents = calloc(lines, sizeof(*l->agents));
	if (!l->agents)
		die("memory");
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		struct agent *a = &l->agents[l->n];

		a->fd = -1;
		a->secret = line;
		a->number = (unsigned)l->n++;
	}
	for (size_t i = 0; i < l->n; i++)
		schedule(l, &l->agents[i], l->now + 2 + ramp * i / l->n);
}

static void set_up(struct load *l, char **argv)
{
	struct rlimit files;

	if (getrlimit(RLIMIT_NOFILE, &files) < 0)
		die("RLIMIT_NOFILE");
	files.rlim_cur = files.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &files) < 0)
		die("RLIMIT_NOFILE");
	l->center = (struct sockaddr_in){AF_INET, htons((uint16_t)atoi(argv[1])), {htonl(INADDR_LOOPBACK)}, {0}};
	l->ctx = SSL_CTX_new(TLS_client_method());
	if (!l->ctx || SSL_CTX_load_verify_locations(l->ctx, argv[2], NULL) != 1)
		die(argv[2]);
	SSL_CTX_set_verify(l->ctx, SSL_VERIFY_PEER, NULL);
	SSL_CTX_set_mode(l->ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
				     SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
	SSL_CTX_set_session_cache_mode(l->ctx, SSL_SESS_CACHE_OFF);
	l->token = argv[3];
	l->inventory = read_all(argv[5]);
	l->epoll = epoll_create1(EPOLL_CLOEXEC);
	samples_new(&l->beat);
	l->now = l->wheel_at = now_ms();
	l->measure_from = l->now + (uint64_t)atoi(argv[6]) * 1000;
	l->end = l->measure_from + (uint64_t)atoi(argv[7]) * 1000;
	read_agents(l, argv[4], (uint64_t)atoi(argv[6]) * 800); /* what is left of the ramp is for calm */
	l->addresses = argv[8] ? (unsigned)atoi(argv[8]) : (unsigned)l->n;
}

static void report(struct load *l, struct people *p)
{
	static const char *const names[ASKED] = {"sources", "jobs", "source"};
	struct samples all;

	samples_new(&all);
	printf("{\"agents\": %zu, \"connected\": %zu, \"connects\": %llu, \"heartbeats\": %llu, \"reports\": %llu, "
	       "\"errors\": %llu, "
	       "\"closed\": %llu, \"people_errors\": %llu, ",
	       l->n, l->connected, (unsigned long long)l->connects, (unsigned long long)l->beats,
	       (unsigned long long)l->busy_beats, (unsigned long long)l->errors, (unsigned long long)l->closed,
	       (unsigned long long)p->errors);
	print_samples("heartbeat", &l->beat);
	for (size_t i = 0; i < ASKED; i++) {
		for (size_t k = 0; k < p->took[i].n; k++)
			sample(&all, p->took[i].v[k]);
		printf(", ");
		print_samples(names[i], &p->took[i]);
	}
	printf(", ");
	print_samples("people", &all);
	printf("}\n");
}

int main(int argc, char **argv)
{
	static struct load l;
	static struct people p;
	pthread_t thread;

	if (argc < 8) {
		fprintf(stderr, "usage: replant-load PORT CA TOKEN SECRETS INVENTORY RAMP SECONDS [ADDRESSES]\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	set_up(&l, argv);
	if (!l.n || !l.addresses)
		die("no agents");
	p.l = &l;
	snprintf(p.source, sizeof(p.source), "source-%.16s", l.agents[l.n / 2].secret);
	for (size_t i = 0; i < ASKED; i++)
		samples_new(&p.took[i]);
	if (pthread_create(&thread, NULL, people_main, &p) != 0)
		die("thread");
	carry(&l);
	atomic_store(&p.stop, true);
	pthread_join(thread, NULL);
	report(&l, &p);
	return 0;
}
