/*
 * Drives the tracker on a real disk, against writers of its own.
 *
 *   track-tool prove DEVICE [option=value]...   rounds of random writes, followed by marks; then replica against disk
 *   track-tool drive DEVICE [pin=DIR|ring=KIB]  one command per line of stdin, an answer per line on stdout
 *
 * In a round two processes run: one writes, each block once, since writing again would hide a miss; the other follows:
 * it collects, reads with O_DIRECT and commits to the replica, which outlives it when it is killed. Once the writers
 * have ended (or the filesystem is frozen) it audits, takes the rest, and compares the replica with the disk, block by
 * block.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <pthread.h>
#include <scsi/sg.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "track/track_int.h"

#define BLOCK       TRACK_BLOCK
#define THREADS_MAX 128
#define FILES       24
#define FILE_SIZE   (4u << 20)

enum fate { FATE_NONE, FATE_EXACT, FATE_TAINTED, FATE_WRONG, FATE_BROKEN };

struct shared {
	volatile int written; /* the writers have ended, or, with a filesystem, are to be frozen */
	volatile int stop;    /* writers of a filesystem end */
	volatile int quit;    /* whoever follows ends */
	volatile int begun;   /* 1: marks are being set; 2: the first reading is done */
	enum fate fate;
	uint64_t wrong, moved, visited, cycles, went_on, dropped;
	char epoch[TRACK_EPOCH];
	int baseline;
	char why[ERR_MSG_MAX];
};

static struct {
	const char *device, *mount, *pin;
	uint64_t rounds, seed, threads, drop_submit, drop_complete, kills, wait_ms;
	uint64_t ring_kib; /* of each CPU; 0: what is usual */
	bool ring;         /* at once, instead of BPF */
	uint64_t size, blocks;
} opt = {.rounds = 20, .threads = 60, .wait_ms = 300};

static struct shared *sh;
static uint8_t *replica; /* shared too: what is committed */

_Noreturn static void die(const char *what, const struct err *e)
{
	fprintf(stderr, "track-tool: %s: %s\n", what, e && e->msg[0] ? e->msg : strerror(errno));
	exit(3);
}

static uint64_t next_random(uint64_t *s)
{
	uint64_t z = *s += UINT64_C(0x9e3779b97f4a7c15);

	z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
	return z ^ z >> 31;
}

static void fill(uint8_t *p, size_t n, uint64_t seed)
{
	for (size_t i = 0; i + 8 <= n; i += 8) {
		uint64_t v = next_random(&seed);

		memcpy(p + i, &v, 8);
	}
}

static void pause_ms(double ms)
{
	nanosleep(&(struct timespec){.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms * 1e6) % 1000000000}, NULL);
}

static int start_tracking(struct track **ret, struct err *e)
{
	return opt.ring ? track_start_ring(&opt.device, 1, opt.ring_kib << 10, ret, e)
			: track_start(&opt.device, 1, opt.pin, ret, e);
}

/* ---- writers of the bare disk ---- */

struct writer {
	uint64_t seed;
	const uint64_t *units; /* a random order of runs of blocks */
	uint64_t n;
};

#define UNIT 8 /* blocks that are written by one thread, each once */

static void write_run(int fd, uint64_t first, uint64_t count, uint8_t *buf, uint64_t *seed)
{
	uint64_t range[2] = {first * BLOCK, count * BLOCK}, what = next_random(seed) % 32;

	if (what == 0 && !ioctl(fd, BLKDISCARD, range))
		return;
	if (what == 1 && !ioctl(fd, BLKZEROOUT, range))
		return;
	fill(buf, count * BLOCK, next_random(seed));
	if (what < 6) { /* a page or so of each block only */
		for (uint64_t b = 0; b < count; b++)
			if (io_pwrite_full(fd, buf, 4096, (first + b) * BLOCK + next_random(seed) % 16 * 4096))
				die("write", NULL);
		return;
	}
	if (io_pwrite_full(fd, buf, count * BLOCK, first * BLOCK))
		die("write", NULL);
}

static void *write_disk(void *arg)
{
	struct writer *w = arg;
	_cleanup_close_ int fd = open(opt.device, O_WRONLY | O_DIRECT | O_CLOEXEC);
	uint8_t *buf = aligned_alloc(4096, (size_t)UNIT * BLOCK);

	if (fd < 0 || !buf)
		die("writer", NULL);
	for (uint64_t i = 0; i < w->n; i++) {
		for (uint64_t at = 0; at < UNIT;) {
			uint64_t count = next_random(&w->seed) % 4 ? 1 : 1 + next_random(&w->seed) % (UNIT - at);
			uint64_t first = w->units[i] * UNIT + at;

			write_run(fd, first, MIN(count, opt.blocks - first), buf, &w->seed);
			at += count;
		}
	}
	free(buf);
	return NULL;
}

/* ---- writers of a filesystem ---- */

static void file_step(int fd, uint64_t *seed, uint8_t *buf)
{
	off_t at = (off_t)(next_random(seed) % FILE_SIZE);
	size_t len = 1 + (size_t)(next_random(seed) % 200000);
	void *p;

	fill(buf, len, next_random(seed));
	switch (next_random(seed) % 9) {
	case 0: /* append */
		at = lseek(fd, 0, SEEK_END);
		if (at > (off_t)FILE_SIZE)
			return;
		/* fall through */
	case 1:
	case 2:
		if (pwrite(fd, buf, len, at) < 0 && errno != ENOSPC)
			die("pwrite", NULL);
		return;
	case 3:
		if (ftruncate(fd, at) && errno != ENOSPC)
			die("ftruncate", NULL);
		return;
	case 4:
		fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, at, (off_t)len);
		return;
	case 5:
		fallocate(fd, 0, at, (off_t)len);
		return;
	case 6:
		fsync(fd);
		return;
	case 7: /* a mapping of what is there; blocks first, a hole could run out of space */
		if (fallocate(fd, 0, 0, FILE_SIZE))
			return;
		p = mmap(NULL, FILE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (p == MAP_FAILED)
			return;
		memcpy((uint8_t *)p + (at < (off_t)(FILE_SIZE - 200000) ? at : 0), buf, MIN(len, (size_t)200000));
		if (next_random(seed) % 2)
			msync(p, FILE_SIZE, MS_SYNC);
		munmap(p, FILE_SIZE);
		return;
	default:
		fallocate(fd, FALLOC_FL_ZERO_RANGE, at, (off_t)len);
	}
}

static void *write_files(void *arg)
{
	struct writer *w = arg;
	_cleanup_free_ char *dir = str_printf("%s/w%llu", opt.mount, (unsigned long long)w->n), *spare = NULL;
	_cleanup_free_ uint8_t *buf = malloc(200064);

	if (!dir || !buf || !(spare = str_printf("%s/spare", dir)))
		die("writer", NULL);
	mkdir(dir, 0700);
	while (!sh->stop) {
		_cleanup_free_ char *path =
		    str_printf("%s/f%llu", dir, (unsigned long long)(next_random(&w->seed) % FILES));
		uint64_t what = next_random(&w->seed) % 10;
		_cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

		if (fd < 0 && errno != ENOSPC)
			die("open", NULL);
		if (fd < 0 || what == 0)
			unlink(path);
		else if (what == 1)
			rename(path, spare);
		else if (what == 2)
			rename(spare, path);
		else
			file_step(fd, &w->seed, buf);
		if (next_random(&w->seed) % 200 == 0) {
			struct fstrim_range all = {.len = UINT64_MAX};
			_cleanup_close_ int root = open(opt.mount, O_RDONLY | O_CLOEXEC);

			if (root >= 0)
				ioctl(root, FITRIM, &all);
		}
	}
	return NULL;
}

/* The process of the writers. */
static void run_writers(uint64_t seed)
{
	const uint64_t n = opt.mount ? MIN(opt.threads, UINT64_C(6)) : opt.threads,
		       units = (opt.blocks + UNIT - 1) / UNIT;
	_cleanup_free_ uint64_t *order = calloc(units, sizeof(*order));
	struct writer w[THREADS_MAX];
	pthread_t thread[THREADS_MAX];

	for (uint64_t i = 0; i < units; i++) {
		uint64_t k = next_random(&seed) % (i + 1);

		order[i] = order[k];
		order[k] = i;
	}
	for (uint64_t i = 0; i < n; i++) {
		uint64_t from = units * i / n;

		w[i] =
		    (struct writer){.seed = next_random(&seed), .units = order + from, .n = units * (i + 1) / n - from};
		if (opt.mount)
			w[i].n = i;
		if (pthread_create(&thread[i], NULL, opt.mount ? write_files : write_disk, &w[i]))
			die("thread", NULL);
	}
	for (uint64_t i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
}

/* ---- the follower ---- */

struct follow {
	struct track *t;
	int fd;
	uint8_t *work; /* read, not committed */
	struct bitmap pending;
};

static void read_blocks(struct follow *f, const struct bitmap *what)
{
	for (uint64_t b = bitmap_next(what, 0); b < what->nbits; b = bitmap_next(what, b + 1)) {
		size_t len = MIN(BLOCK, opt.size - b * BLOCK);

		if (io_pread_full(f->fd, f->work + b * BLOCK, len, b * BLOCK) != (ssize_t)len)
			die("read", NULL);
		bitmap_set(&f->pending, b);
		sh->visited++;
	}
}

static void commit(struct follow *f)
{
	for (uint64_t b = bitmap_next(&f->pending, 0); b < opt.blocks; b = bitmap_next(&f->pending, b + 1)) {
		memcpy(replica + b * BLOCK, f->work + b * BLOCK, MIN(BLOCK, opt.size - b * BLOCK));
		bitmap_clear(&f->pending, b);
	}
	snprintf(sh->epoch, sizeof(sh->epoch), "%s", track_epoch(f->t));
	sh->baseline = 1;
	track_settle(f->t);
}

static void visit_marked(struct follow *f)
{
	_cleanup_(bitmap_release) struct bitmap marked = {0};
	struct err e = {0};

	if (bitmap_init(&marked, opt.blocks, &e) || track_collect(f->t, 0, &marked, &e))
		die("collect", &e);
	read_blocks(f, &marked);
	sh->cycles++;
}

/*
 * Every block of the replica against the disk. Frozen isn't silent: ext4 discards what was freed from a work queue, in
 * a freeze as well. So what differs but was marked since isn't wrong; it's told in `moved`.
 */
static void compare(struct follow *f)
{
	_cleanup_(bitmap_release) struct bitmap later = {0}, differ = {0};
	uint8_t *block = aligned_alloc(4096, BLOCK);
	struct err e = {0};

	if (!block || bitmap_init(&later, opt.blocks, &e) || bitmap_init(&differ, opt.blocks, &e))
		die("memory", &e);
	for (uint64_t b = 0; b < opt.blocks; b++) {
		size_t len = MIN(BLOCK, opt.size - b * BLOCK);

		if (io_pread_full(f->fd, block, len, b * BLOCK) != (ssize_t)len)
			die("read", NULL);
		if (memcmp(block, replica + b * BLOCK, len) != 0)
			bitmap_set(&differ, b);
	}
	if (bitmap_count(&differ) && track_collect(f->t, 0, &later, &e))
		die("collect", &e);
	for (uint64_t b = bitmap_next(&differ, 0); b < opt.blocks; b = bitmap_next(&differ, b + 1)) {
		if (bitmap_get(&later, b)) {
			sh->moved++;
			continue;
		}
		printf("block %llu differs\n", (unsigned long long)b);
		fflush(stdout);
		sh->wrong++;
	}
	free(block);
}

static void begin(struct follow *f)
{
	_cleanup_(bitmap_release) struct bitmap every = {0};
	struct err e = {0};

	f->fd = open(opt.device, O_RDONLY | O_DIRECT | O_CLOEXEC);
	f->work = mmap(NULL, opt.blocks * BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (f->fd < 0 || f->work == MAP_FAILED || bitmap_init(&f->pending, opt.blocks, &e))
		die("memory", &e);
	if (start_tracking(&f->t, &e))
		die("start", &e);
	if (track_drop(f->t, (uint32_t)opt.drop_submit, (uint32_t)opt.drop_complete, &e))
		die("drop", &e);
	sh->begun = 1;
	if (sh->baseline && !strcmp(sh->epoch, track_epoch(f->t))) {
		sh->went_on++;
		return;
	}
	sh->baseline = 0;
	if (bitmap_init(&every, opt.blocks, &e))
		die("memory", &e);
	bitmap_set_range(&every, 0, opt.blocks);
	read_blocks(f, &every);
}

/* The process that follows the writers. */
static void run_follower(uint64_t seed)
{
	struct track_guard *g = NULL;
	_cleanup_free_ char *unfrozen = NULL;
	struct tracker_counts counts = {0};
	struct follow f = {0};
	struct err e = {0};
	bool intact = true;
	double seconds;

	if (opt.mount && track_guard_start(&opt.mount, 1, &g, &e))
		die("guard", &e);
	begin(&f);
	sh->begun = 2;
	while (!sh->written) {
		visit_marked(&f);
		if (next_random(&seed) % 4 == 0)
			commit(&f);
	}
	if (g && track_guard_freeze(g, 60, &unfrozen, &e))
		die("freeze", &e);
	track_counts(f.t, 0, &counts, NULL);
	sh->dropped = counts.dropped;
	if (track_audit(f.t, true, &e)) {
		snprintf(sh->why, sizeof(sh->why), "%s", e.msg);
		sh->baseline = 0;
	}
	visit_marked(&f);
	commit(&f);
	compare(&f);
	sh->baseline = !e.msg[0] && !sh->moved;
	if (g && track_guard_thaw(g, &seconds, &intact, &e))
		die("thaw", &e);
	sh->fate = !intact ? FATE_BROKEN : sh->why[0] ? FATE_TAINTED : sh->wrong ? FATE_WRONG : FATE_EXACT;
	if (sh->why[0] && track_restart(f.t, &e))
		die("restart", &e);
	track_guard_free(g);
	track_close(f.t);
}

static pid_t spawn(void (*run)(uint64_t), uint64_t seed)
{
	pid_t pid = fork();

	if (pid < 0)
		die("fork", NULL);
	if (pid == 0) {
		run(seed);
		_exit(0);
	}
	return pid;
}

static void reap(pid_t pid)
{
	int status;

	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status) || WEXITSTATUS(status))
		exit(3);
}

static bool ended(pid_t *pid)
{
	int status;

	if (*pid && waitpid(*pid, &status, WNOHANG) == *pid) {
		if (!WIFEXITED(status) || WEXITSTATUS(status))
			exit(3);
		*pid = 0;
	}
	return !*pid;
}

static enum fate one_round(uint64_t seed)
{
	struct shared fresh = {0};
	pid_t writers = 0, follower;
	double end;
	int when;

	fresh.baseline = sh->baseline;
	memcpy(fresh.epoch, sh->epoch, sizeof(fresh.epoch));
	*sh = fresh;
	when = (int)(next_random(&seed) % 8);
	/* The tracking begins amidst writes; not where enough of them have to be lost of both kinds. */
	if (when == 0 && !opt.drop_submit && !opt.drop_complete)
		writers = spawn(run_writers, next_random(&seed));
	follower = spawn(run_follower, next_random(&seed));
	while (!writers && sh->begun < (when == 1 ? 1 : 2) && !ended(&follower))
		pause_ms(1);
	if (!writers)
		writers = spawn(run_writers, next_random(&seed));
	for (uint64_t k = 0; k < opt.kills; k++) {
		pause_ms((double)(next_random(&seed) % 200));
		kill(follower, SIGKILL);
		waitpid(follower, NULL, 0);
		follower = spawn(run_follower, next_random(&seed));
	}
	end = id_now_mono() + (double)opt.wait_ms / 1000;
	while (opt.mount ? id_now_mono() < end : !ended(&writers))
		pause_ms(2);
	sh->written = 1;
	reap(follower);
	sh->stop = 1;
	if (writers)
		reap(writers);
	return sh->fate;
}

static int prove(void)
{
	uint64_t count[FATE_BROKEN + 1] = {0}, visited = 0, cycles = 0, moved = 0, went_on = 0, untold = 0,
				     needless = 0;
	uint64_t seed = opt.seed;

	sh = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	replica = mmap(NULL, opt.blocks * BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sh == MAP_FAILED || replica == MAP_FAILED)
		die("memory", NULL);
	for (uint64_t r = 0; r < opt.rounds; r++) {
		uint64_t round_seed = next_random(&seed);
		enum fate fate = one_round(round_seed);

		count[fate]++;
		visited += sh->visited;
		cycles += sh->cycles;
		moved += sh->moved;
		went_on += sh->went_on;
		untold += sh->dropped && fate != FATE_TAINTED;
		needless += fate == FATE_TAINTED && !sh->wrong;
		if (fate != FATE_EXACT)
			printf("round %llu (seed %llu): %s, %llu blocks differ, %llu events dropped%s%s\n",
			       (unsigned long long)r, (unsigned long long)round_seed,
			       fate == FATE_TAINTED ? "tainted" : "WRONG", (unsigned long long)sh->wrong,
			       (unsigned long long)sh->dropped, sh->why[0] ? ": " : "", sh->why);
		fflush(stdout);
	}
	if (opt.pin)
		track_remove(opt.pin, NULL);
	printf(
	    "seed %llu: %llu rounds, %llu exact, %llu tainted (%llu of them whole), %llu wrong, %llu broken; %llu with "
	    "drops not tainted; %llu cycles, %llu blocks visited of %llu, %llu changed while frozen, went on %llu "
	    "times\n",
	    (unsigned long long)opt.seed, (unsigned long long)opt.rounds, (unsigned long long)count[FATE_EXACT],
	    (unsigned long long)count[FATE_TAINTED], (unsigned long long)needless,
	    (unsigned long long)count[FATE_WRONG], (unsigned long long)count[FATE_BROKEN], (unsigned long long)untold,
	    (unsigned long long)cycles, (unsigned long long)visited, (unsigned long long)(opt.blocks * opt.rounds),
	    (unsigned long long)moved, (unsigned long long)went_on);
	return count[FATE_WRONG] || count[FATE_BROKEN] || count[FATE_NONE] ? 1 : 0;
}

/* ---- drive ---- */

static void answer(int r, const struct err *e)
{
	if (r)
		printf("error %d %s\n", -r, e->msg);
	else
		printf("ok\n");
}

/* A SCSI command past the block layer. */
static int passthrough(const uint8_t *cdb, uint8_t len, bool writes, size_t size)
{
	_cleanup_close_ int fd = open(opt.device, O_RDWR | O_CLOEXEC);
	uint8_t *buf = aligned_alloc(4096, 4096), sense[32];
	sg_io_hdr_t h = {.interface_id = 'S',
			 .dxfer_direction = !size    ? SG_DXFER_NONE
					    : writes ? SG_DXFER_TO_DEV
						     : SG_DXFER_FROM_DEV,
			 .cmd_len = len,
			 .mx_sb_len = sizeof(sense),
			 .dxfer_len = (unsigned)size,
			 .dxferp = buf,
			 .cmdp = (uint8_t *)(uintptr_t)cdb,
			 .sbp = sense,
			 .timeout = 10000};
	int r;

	if (fd < 0 || !buf)
		die("passthrough", NULL);
	memset(buf, 0x5a, 4096);
	r = ioctl(fd, SG_IO, &h) ? -errno : h.status ? -EIO : 0;
	free(buf);
	return r;
}

static void drive_one(struct track *t, const char *line)
{
	_cleanup_(bitmap_release) struct bitmap b = {0};
	struct tracker_counts c;
	struct err e = {0};
	int r;

	if (!strcmp(line, "collect")) {
		r = bitmap_init(&b, opt.blocks, &e);
		if (!r)
			r = track_collect(t, 0, &b, &e);
		if (r) {
			answer(r, &e);
			return;
		}
		printf("ok");
		for (uint64_t i = bitmap_next(&b, 0); i < b.nbits; i = bitmap_next(&b, i + 1))
			printf(" %llu", (unsigned long long)i);
		printf("\n");
	} else if (!strcmp(line, "counts")) {
		track_counts(t, 0, &c, &e);
		printf("ok write %llu/%llu discard %llu/%llu other %llu passthrough %llu outside %llu\n",
		       c.submit_write, c.complete_write, c.submit_discard, c.complete_discard, c.complete_other,
		       c.passthrough, c.outside);
	} else if (!strcmp(line, "sg ask")) {
		r = passthrough((const uint8_t[6]){0x12, 0, 0, 0, 96}, 6, false, 96);
		answer(r ? r : passthrough((const uint8_t[6]){0}, 6, false, 0), &e);
	} else if (!strcmp(line, "sg write")) {
		answer(passthrough((const uint8_t[10]){0x2a, 0, 0, 0, 0, 8, 0, 0, 1}, 10, true, 512), &e);
	} else if (!strcmp(line, "mode")) {
		printf("ok %s %s\n", track_mode(t) == TRACK_BPF ? "bpf" : "ring", track_why(t));
	} else if (!strcmp(line, "epoch")) {
		printf("ok %s\n", track_epoch(t));
	} else if (!strcmp(line, "pending")) {
		printf("ok %llu\n", (unsigned long long)track_pending(t, 0));
	} else if (!strcmp(line, "audit") || !strcmp(line, "audit frozen")) {
		answer(track_audit(t, line[5] != '\0', &e), &e);
	} else if (!strcmp(line, "restart")) {
		answer(track_restart(t, &e), &e);
	} else if (!strcmp(line, "settle")) {
		track_settle(t);
		printf("ok\n");
	} else if (!strcmp(line, "remove")) {
		answer(track_remove(opt.pin ?: "/nonexistent", &e), &e);
	} else if (!strcmp(line, "detach")) {
		track_detach(t);
		printf("ok\n");
	} else {
		printf("error 22 what is '%s'\n", line);
	}
}

static int drive(void)
{
	struct track *t = NULL;
	struct err e = {0};
	char line[64];
	int r = start_tracking(&t, &e);

	setvbuf(stdout, NULL, _IOLBF, 0);
	answer(r, &e);
	while (!r && fgets(line, sizeof(line), stdin)) {
		line[strcspn(line, "\n")] = '\0';
		drive_one(t, line);
	}
	track_close(t);
	return r ? 1 : 0;
}

static void option(const char *arg)
{
	static const struct {
		const char *name;
		uint64_t *value;
		uint64_t max;
	} numbers[] = {
	    {"rounds=", &opt.rounds, 1000000},
	    {"seed=", &opt.seed, UINT64_MAX},
	    {"threads=", &opt.threads, THREADS_MAX},
	    {"drop-submit=", &opt.drop_submit, UINT32_MAX},
	    {"kills=", &opt.kills, 1000},
	    {"drop-complete=", &opt.drop_complete, UINT32_MAX},
	    {"wait=", &opt.wait_ms, 600000},
	    {"ring=", &opt.ring_kib, 1 << 20},
	};

	opt.ring = opt.ring || str_starts(arg, "ring=");
	for (size_t i = 0; i < ARRAY_SIZE(numbers); i++)
		if (str_starts(arg, numbers[i].name) &&
		    !str_u64(arg + strlen(numbers[i].name), 0, numbers[i].max, numbers[i].value))
			return;
	if (str_starts(arg, "mount="))
		opt.mount = arg + 6;
	else if (str_starts(arg, "pin="))
		opt.pin = arg + 4;
	else
		die(arg, &(struct err){.msg = "unknown option"});
}

int main(int argc, char **argv)
{
	_cleanup_close_ int fd = argc > 2 ? open(argv[2], O_RDONLY | O_CLOEXEC) : -1;

	if (fd < 0 || ioctl(fd, BLKGETSIZE64, &opt.size)) {
		fprintf(
		    stderr,
		    "usage: track-tool prove DEVICE [rounds=N] [seed=N] [threads=N] [mount=DIR] [pin=DIR] [kills=N]\n"
		    "                        [drop-submit=N] [drop-complete=N] [wait=MS] [ring=KIB]\n"
		    "       track-tool drive DEVICE [pin=DIR|ring=KIB]\n");
		return 2;
	}
	opt.device = argv[2];
	opt.blocks = (opt.size + BLOCK - 1) / BLOCK;
	id_random(&opt.seed, 4);
	for (int i = 3; i < argc; i++)
		option(argv[i]);
	return strcmp(argv[1], "drive") ? prove() : drive();
}
