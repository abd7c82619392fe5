/*
 * The tracker where BPF can't be used: an instance of the kernel's tracer of our own, with the same events, and a
 * thread that reads what it recorded and does with it what the programs do in the kernel (page.c). What they can't is
 * lose events: a ring can be full. The tracer counts what it loses; one such event, or anything else about the instance
 * that isn't as we left it, and the marks are worth nothing.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "track/track_int.h"
#include "track/tracker_event.h"

#define RING_PREFIX   "replant-"
#define RING_TOTAL    (UINT64_C(16) << 20) /* of the kernel's memory, for the CPUs that are on */
#define RING_CPU_MIN  (UINT64_C(256) << 10)
#define RING_CPU_MAX  (UINT64_C(2) << 20)
#define RING_TICK_MS  20
#define RING_HASTE_MS 1
#define RING_NICE     (-10) /* late is lost, and then everything is compared: that costs more */
#define TEXT_MAX      65536

struct ring {
	struct page_reader reader;
	int fs, instances, dir; /* tracefs, its folder of instances, ours */
	char name[64];
	char *filters[EVENT_KINDS]; /* as the kernel shows them */
	size_t cpus;
	int *fds;
	uint32_t *passing;
	uint8_t *page;
	unsigned pages; /* of a CPU */

	pthread_mutex_t lock; /* of reading, and of all that reading changes: `reader`, `passing`, `page`, `lost` */
	pthread_t thread;
	bool running;
	int stop; /* eventfd */
	char lost[128];
};

/* ---- reading ---- */

__attribute__((format(printf, 2, 3))) static void lose(struct ring *r, const char *fmt, ...)
{
	va_list ap;

	if (r->lost[0])
		return;
	va_start(ap, fmt);
	vsnprintf(r->lost, sizeof(r->lost), fmt, ap);
	va_end(ap);
}

/*
 * What the ring of a CPU holds now: no more pages than it has, or a busy writer would never let us go. Says how many
 * there were.
 */
static unsigned drain_cpu(struct ring *r, size_t cpu)
{
	unsigned n = 0;

	while (n < r->pages) {
		ssize_t got = read(r->fds[cpu], r->page, r->reader.form.size);
		int k;

		if (got < 0 && errno == EINTR)
			continue;
		if (got == 0 || (got < 0 && (errno == EAGAIN || errno == ENODEV))) /* ENODEV: a CPU that never was on */
			break;
		if (got != (ssize_t)r->reader.form.size) {
			lose(r, "the tracer's events of CPU %zu can't be read (%s)", cpu,
			     got < 0 ? strerror(errno) : "a part only");
			break;
		}
		n++;
		k = page_read(&r->reader, r->page, (size_t)got, &r->passing[cpu]);
		if (k == -EOVERFLOW)
			lose(r, "the tracer lost events of CPU %zu", cpu);
		else if (k)
			lose(r, "the tracer's events of CPU %zu can't be understood", cpu);
	}
	return n;
}

/* Says whether a ring was rather full. */
static bool drain(struct ring *r)
{
	bool busy = false;

	for (size_t i = 0; i < r->cpus; i++)
		if (r->fds[i] >= 0)
			busy = drain_cpu(r, i) > r->pages / 8 || busy;
	return busy;
}

static void *run(void *arg)
{
	struct ring *r = arg;
	struct pollfd p = {.fd = r->stop, .events = POLLIN};
	bool busy = false;

	setpriority(PRIO_PROCESS, 0, RING_NICE); /* of this thread; no matter if it isn't allowed */
	while (poll(&p, 1, busy ? RING_HASTE_MS : RING_TICK_MS) <= 0) {
		pthread_mutex_lock(&r->lock);
		busy = drain(r);
		pthread_mutex_unlock(&r->lock);
	}
	return NULL;
}

int ring_flush(struct ring *r, struct err *e)
{
	int k;

	pthread_mutex_lock(&r->lock);
	drain(r);
	k = r->lost[0] ? err_set(e, -ESTALE, "%s", r->lost) : 0;
	pthread_mutex_unlock(&r->lock);
	return k;
}

int ring_counts(struct ring *r, size_t i, struct tracker_counts *ret, struct err *e)
{
	int k = ring_flush(r, e);

	if (k)
		return k;
	pthread_mutex_lock(&r->lock);
	*ret = r->reader.disks[i].counts;
	pthread_mutex_unlock(&r->lock);
	return 0;
}

void ring_slot(struct ring *r, size_t i, dev_t dev, const struct tracker_slot *s, struct ledger *l)
{
	struct page_disk *d = &r->reader.disks[i];

	must(i < TRACKER_DISKS);
	pthread_mutex_lock(&r->lock);
	d->dev = (uint32_t)(major(dev) << 20 | minor(dev));
	d->slot = *s;
	d->ledger = l;
	r->reader.n = MAX(r->reader.n, i + 1);
	pthread_mutex_unlock(&r->lock);
}

/* ---- the instance ---- */

static int put(struct ring *r, const char *path, const char *text, struct err *e)
{
	_cleanup_close_ int fd = openat(r->dir, path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
		return err_set(e, -EOPNOTSUPP, "the kernel's tracer doesn't take '%.60s' in '%s' (%s)", text, path,
			       strerror(errno));
	return 0;
}

static int get(int dir, const char *path, char **ret, struct err *e)
{
	if (io_read_file_at(dir, path, TEXT_MAX, ret, NULL, NULL))
		return err_set(e, -EOPNOTSUPP, "cannot read '%s' of the kernel's tracer", path);
	return 0;
}

static char *event_file(int k, const char *file)
{
	return str_printf("events/%s/%s", event_names[k], file);
}

/* Those of the dead: what lives has files of its instance open, which keeps it. */
static void clear_away(int instances)
{
	int fd = openat(instances, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = fd >= 0 ? fdopendir(fd) : NULL;

	if (!d) {
		util_closep(&fd);
		return;
	}
	for (const struct dirent *de; (de = readdir(d));)
		if (str_starts(de->d_name, RING_PREFIX))
			unlinkat(instances, de->d_name, AT_REMOVEDIR);
	closedir(d);
}

static int open_instances(struct ring *r, struct err *e)
{
	r->fs = event_tracefs(true);
	r->instances = r->fs < 0 ? -1 : openat(r->fs, "instances", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (r->instances < 0)
		return err_set(e, -EOPNOTSUPP, "this kernel's tracer has no instances, or its lockdown hides them");
	return 0;
}

static int open_cpus(struct ring *r, struct err *e)
{
	for (size_t i = 0; i < r->cpus; i++) {
		_cleanup_free_ char *path = str_printf("per_cpu/cpu%zu/trace_pipe_raw", i);

		if (!path)
			return err_nomem(e);
		r->fds[i] = openat(r->dir, path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		if (r->fds[i] < 0 && errno != ENOENT) /* numbers of CPUs may have gaps */
			return err_set(e, -EOPNOTSUPP, "cannot open '%s' of the kernel's tracer (%s)", path,
				       strerror(errno));
	}
	return 0;
}

/* Under a lock, as another that starts would take it for that of a dead one until its files are open. */
static int make_instance(struct ring *r, struct err *e)
{
	uint32_t number;
	int k = 0;

	id_random(&number, sizeof(number));
	snprintf(r->name, sizeof(r->name), RING_PREFIX "%ld-%08x", (long)getpid(), number);
	flock(r->instances, LOCK_EX);
	clear_away(r->instances);
	if (mkdirat(r->instances, r->name, 0700)) {
		k = err_set(e, -EOPNOTSUPP, "the kernel's tracer gives us no instance (%s)", strerror(errno));
		r->name[0] = '\0';
	}
	if (!k) {
		r->dir = openat(r->instances, r->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		k = r->dir < 0 ? err_sys(e, "cannot open the tracer's instance") : open_cpus(r, e);
	}
	flock(r->instances, LOCK_UN);
	return k;
}

static int read_forms(struct ring *r, struct err *e)
{
	static const unsigned needed[EVENT_KINDS] = {
	    [EVENT_SUBMIT] = 1u << EVENT_SECTOR | 1u << EVENT_DEV | 1u << EVENT_NR_SECTOR | 1u << EVENT_RWBS,
	    [EVENT_COMPLETE] = 1u << EVENT_SECTOR | 1u << EVENT_DEV | 1u << EVENT_NR_SECTOR | 1u << EVENT_RWBS,
	    [EVENT_ISSUE] = 1u << EVENT_DEV | 1u << EVENT_NR_SECTOR | 1u << EVENT_BYTES | 1u << EVENT_RWBS,
	    [EVENT_SCSI] = 1u << EVENT_OPCODE | 1u << EVENT_CDB,
	};
	_cleanup_free_ char *page = NULL, *head = NULL;
	int k = get(r->dir, "events/header_page", &page, e);

	if (!k)
		k = get(r->dir, "events/header_event", &head, e);
	if (!k)
		k = page_form_parse(page, head, &r->reader.form, e);
	for (int i = 0; i < EVENT_KINDS && !k; i++) {
		struct event *ev = &r->reader.events[i];
		bool whole = true;

		k = event_find(event_names[i], ev, e);
		for (int f = 0; f < EVENT_FIELDS && !k; f++)
			whole = whole && (ev->offset[f] || !(needed[i] >> f & 1));
		if (!k && !whole)
			k = err_set(e, -EOPNOTSUPP, "tracepoint '%s' lacks a field", event_names[i]);
		if (k && i >= EVENT_NEEDED) {
			*ev = (struct event){0};
			k = 0;
		}
	}
	return k;
}

/* Only what would be looked at is recorded: reads, and other disks', would fill the ring. */
static char *filter_of(const struct ring *r, int k)
{
	_cleanup_free_ char *text = NULL;
	const char * or = "";

	for (uint32_t op = 0; k == EVENT_SCSI && op < 256; op++) {
		char *more =
		    tracker_asks(op) || op == TRACKER_ATA ? str_printf("%s%sopcode == %u", text ?: "", or, op) : NULL;

		if (more) {
			free(text);
			text = more;
			or = " || ";
		}
	}
	if (k == EVENT_SCSI)
		return take_ptr(&text);
	for (size_t i = 0; i < r->reader.n; i++) {
		char *more = str_printf("%s%sdev == %u", text ?: "", or, r->reader.disks[i].dev);

		free(text);
		text = more;
		or = " || ";
	}
	return str_printf(k == EVENT_ISSUE ? "(%s) && nr_sector == 0 && rwbs ~ \"N*\""
					   : "(%s) && nr_sector != 0 && !(rwbs ~ \"R*\")",
			  text ?: "");
}

static int set_event(struct ring *r, int k, struct err *e)
{
	_cleanup_free_ char *filter = filter_of(r, k), *path = event_file(k, "filter"), *on = event_file(k, "enable");
	int rc;

	if (!filter || !path || !on)
		return err_nomem(e);
	rc = put(r, path, filter, e);
	if (!rc)
		rc = get(r->dir, path, &r->filters[k], e);
	return rc ?: put(r, on, "1", e);
}

static int set_up(struct ring *r, uint64_t size, struct err *e)
{
	_cleanup_free_ char *kib = str_printf("%llu", (unsigned long long)(size >> 10));
	int k = kib ? put(r, "buffer_size_kb", kib, e) : err_nomem(e);

	/* Full is full: an event that doesn't fit is lost and counted, none is written over. */
	if (!k)
		k = put(r, "trace_options", "nooverwrite", e);
	if (!k)
		k = put(r, "tracing_on", "1", e);
	for (int i = 0; i < EVENT_KINDS && !k; i++)
		if (r->reader.events[i].id)
			k = set_event(r, i, e);
	return k;
}

static int start_thread(struct ring *r, struct err *e)
{
	sigset_t all, old;
	int k;

	r->stop = eventfd(0, EFD_CLOEXEC);
	if (r->stop < 0)
		return err_sys(e, "cannot make an eventfd");
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	k = pthread_create(&r->thread, NULL, run, r);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	r->running = !k;
	return k ? err_set(e, -k, "cannot start the thread that reads the trace") : 0;
}

struct ring *ring_new(void)
{
	struct ring *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->fs = r->instances = r->dir = r->stop = -1;
	id_random(&r->reader.random, sizeof(r->reader.random));
	pthread_mutex_init(&r->lock, NULL);
	return r;
}

int ring_start(struct ring *r, uint64_t size, struct err *e)
{
	int cpus = leaf_cpus(), k;

	if (cpus <= 0)
		return err_set(e, -EOPNOTSUPP, "cannot tell how many CPUs there may be");
	r->cpus = (size_t)cpus;
	r->fds = malloc(r->cpus * sizeof(*r->fds));
	r->passing = calloc(r->cpus, sizeof(*r->passing));
	if (!r->fds || !r->passing)
		return err_nomem(e);
	for (size_t i = 0; i < r->cpus; i++)
		r->fds[i] = -1;
	if (!size) /* per CPU; the kernel makes none for those that are off */
		size =
		    MAX(RING_CPU_MIN, MIN(RING_CPU_MAX, RING_TOTAL / (uint64_t)MAX(1, sysconf(_SC_NPROCESSORS_ONLN))));
	k = open_instances(r, e);
	if (!k)
		k = make_instance(r, e);
	if (!k)
		k = read_forms(r, e);
	if (k)
		return k;
	/* The kernel rounds up; a page on which it goes on writing is read more than once. */
	r->pages = (unsigned)(size / (r->reader.form.size - r->reader.form.data_at)) + 4;
	r->page = malloc(r->reader.form.size);
	if (!r->page)
		return err_nomem(e);
	k = set_up(r, size, e);
	return k ?: start_thread(r, e);
}

void ring_free(struct ring *r)
{
	if (!r)
		return;
	if (r->running) {
		eventfd_write(r->stop, 1);
		pthread_join(r->thread, NULL);
	}
	if (r->dir >= 0)
		put(r, "tracing_on", "0", NULL);
	for (size_t i = 0; r->fds && i < r->cpus; i++)
		util_closep(&r->fds[i]);
	util_closep(&r->dir);
	if (r->name[0])
		unlinkat(r->instances, r->name, AT_REMOVEDIR);
	util_closep(&r->instances);
	util_closep(&r->fs);
	util_closep(&r->stop);
	for (int i = 0; i < EVENT_KINDS; i++)
		free(r->filters[i]);
	pthread_mutex_destroy(&r->lock);
	free(r->fds);
	free(r->passing);
	free(r->page);
	free(r);
}

void ring_remove(void)
{
	struct ring r = {0};

	if (!open_instances(&r, NULL)) {
		flock(r.instances, LOCK_EX);
		clear_away(r.instances);
	}
	util_closep(&r.instances);
	util_closep(&r.fs);
}

/* ---- is it as we left it? ---- */

static int check_event(const struct ring *r, int k, struct err *e)
{
	_cleanup_free_ char *filter = NULL, *on = NULL, *path = event_file(k, "filter"),
			    *switch_ = event_file(k, "enable");

	if (!path || !switch_)
		return err_nomem(e);
	if (get(r->dir, switch_, &on, NULL) || on[0] != '1')
		return err_set(e, -ESTALE, "the tracer's event '%s' was switched off", event_names[k]);
	if (get(r->dir, path, &filter, NULL) || strcmp(filter, r->filters[k]) != 0)
		return err_set(e, -ESTALE, "the filter of the tracer's event '%s' was changed", event_names[k]);
	return 0;
}

static int check_cpu(const struct ring *r, size_t cpu, struct err *e)
{
	static const char *const losses[] = {"\noverrun: ", "\ncommit overrun: ", "\ndropped events: "};
	_cleanup_free_ char *path = str_printf("per_cpu/cpu%zu/stats", cpu), *text = NULL;

	if (!path)
		return err_nomem(e);
	if (get(r->dir, path, &text, NULL))
		return err_set(e, -ESTALE, "the tracer doesn't tell any more what it lost");
	for (size_t i = 0; i < ARRAY_SIZE(losses); i++) {
		const char *p = strstr(text, losses[i]);

		if (!p || strtoull(p + strlen(losses[i]), NULL, 10) != 0)
			return err_set(e, -ESTALE, "the tracer lost events of CPU %zu", cpu);
	}
	return 0;
}

int ring_alive(struct ring *r, struct err *e)
{
	_cleanup_free_ char *on = NULL;
	int k = ring_flush(r, e);

	if (!k && (get(r->dir, "tracing_on", &on, NULL) || on[0] != '1'))
		k = err_set(e, -ESTALE, "the tracer was switched off");
	for (int i = 0; i < EVENT_KINDS && !k; i++)
		if (r->filters[i])
			k = check_event(r, i, e);
	for (size_t i = 0; i < r->cpus && !k; i++)
		k = r->fds[i] >= 0 ? check_cpu(r, i, e) : 0;
	return k;
}

void ring_detach(struct ring *r)
{
	put(r, "events/block/block_bio_queue/enable", "0", NULL);
}
