/* Freezing is tried on real filesystems in loop devices, as root. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/fs.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/util.h"
#include "track/track_int.h"

struct fixture {
	char dir[64], image[96], loop[64], mnt[96];
	const char *points[1];
};

static int run(const char *const argv[], char **ret_out)
{
	struct err e = {0};
	int r = proc_run(argv, 4096, ret_out, &e);

	if (r < 0)
		print_message("%s: %s\n", argv[0], e.msg);
	return r;
}

static void fixture_up(struct fixture *f, const char *type)
{
	_cleanup_free_ char *loop = NULL, *mkfs = str_printf("mkfs.%s", type);

	strcpy(f->dir, "/tmp/replant-track-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	snprintf(f->image, sizeof(f->image), "%s/image", f->dir);
	snprintf(f->mnt, sizeof(f->mnt), "%s/mnt", f->dir);
	assert_int_equal(mkdir(f->mnt, 0755), 0);
	assert_int_equal(run((const char *[]){"truncate", "-s", "320M", f->image, NULL}, NULL), 0);
	assert_int_equal(run((const char *[]){mkfs, "-q", f->image, NULL}, NULL), 0);
	assert_int_equal(run((const char *[]){"losetup", "-f", "--show", f->image, NULL}, &loop), 0);
	snprintf(f->loop, sizeof(f->loop), "%.*s", (int)strcspn(loop, "\n"), loop);
	assert_int_equal(mount(f->loop, f->mnt, type, 0, NULL), 0);
	f->points[0] = f->mnt;
}

static void fixture_down(struct fixture *f)
{
	umount2(f->mnt, 0);
	run((const char *[]){"losetup", "-d", f->loop, NULL}, NULL);
	io_remove_tree(f->dir, NULL);
}

/* Is it frozen? Asks the filesystem itself: a FIFREEZE of ours says EBUSY. Leaves it as it was. */
static bool is_frozen(const struct fixture *f)
{
	int fd = open(f->mnt, O_RDONLY | O_CLOEXEC), r;

	assert_true(fd >= 0);
	r = ioctl(fd, FIFREEZE, 0);
	if (r == 0)
		assert_int_equal(ioctl(fd, FITHAW, 0), 0);
	else
		assert_int_equal(errno, EBUSY);
	close(fd);
	return r < 0;
}

/* Writes a byte and syncs in a child; how many seconds it took is told by its end. */
static pid_t start_writer(const struct fixture *f)
{
	pid_t pid = fork();

	if (pid == 0) {
		char path[128];
		int fd;

		snprintf(path, sizeof(path), "%s/written", f->mnt);
		fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
		if (fd < 0 || write(fd, "x", 1) != 1 || fsync(fd) < 0)
			_exit(1);
		_exit(0);
	}
	return pid;
}

static bool ended_within(pid_t pid, double seconds)
{
	double end = id_now_mono() + seconds;
	int status;

	while (id_now_mono() < end) {
		if (waitpid(pid, &status, WNOHANG) == pid) {
			assert_true(WIFEXITED(status));
			assert_int_equal(WEXITSTATUS(status), 0);
			return true;
		}
		usleep(2000);
	}
	return false;
}

static void freeze_and_thaw(const char *type)
{
	_cleanup_free_ char *unfrozen = NULL;
	struct track_guard *g = NULL;
	struct fixture f;
	struct err e = {0};
	double seconds = 0;
	bool intact = false;
	pid_t writer;

	fixture_up(&f, type);
	assert_int_equal(track_guard_start(f.points, 1, &g, &e), 0);
	assert_false(track_guard_holds(g));
	assert_false(is_frozen(&f));
	for (int round = 0; round < 3; round++) {
		free(unfrozen);
		unfrozen = NULL;
		assert_int_equal(track_guard_freeze(g, 10, &unfrozen, &e), 0);
		assert_string_equal(unfrozen, "");
		assert_true(track_guard_holds(g));
		assert_true(is_frozen(&f));
		writer = start_writer(&f);
		assert_false(ended_within(writer, 0.3));
		assert_int_equal(track_guard_thaw(g, &seconds, &intact, &e), 0);
		assert_true(ended_within(writer, 5));
		assert_true(intact);
		assert_true(seconds >= 0.3 && seconds < 3);
		assert_false(track_guard_holds(g));
		assert_false(is_frozen(&f));
	}
	track_guard_free(g);
	fixture_down(&f);
}

static void test_freeze_ext4(void **state)
{
	freeze_and_thaw("ext4");
}

static void test_freeze_xfs(void **state)
{
	freeze_and_thaw("xfs");
}

static void test_limit(void **state)
{
	_cleanup_free_ char *unfrozen = NULL;
	struct track_guard *g = NULL;
	struct fixture f;
	double seconds = 0, began;
	bool intact = true;
	pid_t writer;

	fixture_up(&f, "ext4");
	assert_int_equal(track_guard_start(f.points, 1, &g, NULL), 0);
	began = id_now_mono();
	assert_int_equal(track_guard_freeze(g, 0.5, &unfrozen, NULL), 0);
	writer = start_writer(&f);
	assert_true(ended_within(writer, 3));
	assert_true(id_now_mono() - began >= 0.45);
	assert_false(track_guard_holds(g));
	assert_false(is_frozen(&f));
	assert_int_equal(track_guard_thaw(g, &seconds, &intact, NULL), 0);
	assert_false(intact);
	track_guard_free(g);
	fixture_down(&f);
}

static void test_somebody_else(void **state)
{
	_cleanup_free_ char *unfrozen = NULL;
	struct track_guard *g = NULL;
	struct fixture f;
	struct err e = {0};
	bool intact = true;
	int fd;

	fixture_up(&f, "ext4");
	assert_int_equal(track_guard_start(f.points, 1, &g, NULL), 0);
	fd = open(f.mnt, O_RDONLY | O_CLOEXEC);
	assert_int_equal(ioctl(fd, FIFREEZE, 0), 0);
	assert_int_equal(track_guard_freeze(g, 5, &unfrozen, &e), -EBUSY);
	assert_non_null(strstr(e.msg, f.mnt));
	assert_true(is_frozen(&f)); /* theirs, untouched */
	assert_int_equal(ioctl(fd, FITHAW, 0), 0);
	/* And when they thaw ours, we know. */
	assert_int_equal(track_guard_freeze(g, 5, &unfrozen, &e), 0);
	assert_int_equal(ioctl(fd, FITHAW, 0), 0);
	assert_int_equal(track_guard_thaw(g, NULL, &intact, NULL), 0);
	assert_false(intact);
	close(fd);
	track_guard_free(g);
	fixture_down(&f);
}

/* All or none: the second one is held by somebody else, so the first must be thawed again. */
static void test_all_or_none(void **state)
{
	_cleanup_free_ char *unfrozen = NULL;
	struct track_guard *g = NULL;
	struct fixture a, b;
	const char *points[2];
	struct err e = {0};
	int fd;

	fixture_up(&a, "ext4");
	fixture_up(&b, "xfs");
	points[0] = a.mnt;
	points[1] = b.mnt;
	assert_int_equal(track_guard_start(points, 2, &g, NULL), 0);
	fd = open(b.mnt, O_RDONLY | O_CLOEXEC);
	assert_int_equal(ioctl(fd, FIFREEZE, 0), 0);
	assert_int_equal(track_guard_freeze(g, 5, &unfrozen, &e), -EBUSY);
	assert_non_null(strstr(e.msg, b.mnt));
	assert_false(is_frozen(&a));
	assert_int_equal(ioctl(fd, FITHAW, 0), 0);
	close(fd);
	track_guard_free(g);
	fixture_down(&a);
	fixture_down(&b);
}

static void test_unsupported(void **state)
{
	_cleanup_free_ char *unfrozen = NULL;
	struct track_guard *g = NULL;
	char dir[] = "/tmp/replant-tmpfs-XXXXXX";
	struct fixture f;
	const char *points[2];

	assert_non_null(mkdtemp(dir));
	assert_int_equal(mount("none", dir, "tmpfs", 0, "size=1m"), 0);
	fixture_up(&f, "ext4");
	points[0] = dir;
	points[1] = f.mnt;
	assert_int_equal(track_guard_start(points, 2, &g, NULL), 0);
	assert_int_equal(track_guard_freeze(g, 5, &unfrozen, NULL), 0);
	assert_string_equal(unfrozen, dir);
	assert_true(is_frozen(&f));
	track_guard_free(g); /* thaws */
	assert_false(is_frozen(&f));
	fixture_down(&f);
	umount2(dir, 0);
	rmdir(dir);
}

/*
 * The parent is killed at random moments: before, while and after freezing, while thawing. The filesystem must be
 * writable soon after, long before the limit of 20 s.
 */
static _Noreturn void doomed(const struct fixture *f)
{
	struct track_guard *g;
	char *unfrozen;

	for (;;) {
		if (track_guard_start(f->points, 1, &g, NULL) < 0)
			_exit(1);
		for (int i = 0; i < 3; i++) {
			if (track_guard_freeze(g, 20, &unfrozen, NULL) < 0)
				_exit(2);
			free(unfrozen);
			usleep(3000);
			track_guard_thaw(g, NULL, NULL, NULL);
		}
		track_guard_free(g);
	}
}

static void test_parent_killed(void **state)
{
	struct fixture f;
	double worst = 0;

	fixture_up(&f, "ext4");
	srandom(42);
	for (int i = 0; i < 60; i++) {
		pid_t victim = fork(), writer;
		double began;

		if (victim == 0)
			doomed(&f);
		usleep((useconds_t)(random() % 60000));
		assert_int_equal(waitpid(victim, NULL, WNOHANG), 0); /* it was still at it */
		kill(victim, SIGKILL);
		waitpid(victim, NULL, 0);
		began = id_now_mono();
		writer = start_writer(&f);
		assert_true(ended_within(writer, 5));
		worst = MAX(worst, id_now_mono() - began);
		while (is_frozen(&f)) /* a guard that is just finishing */
			assert_true(id_now_mono() - began < 5);
	}
	print_message("longest wait of a writer after a kill: %.3f s\n", worst);
	fixture_down(&f);
}

/* The living child of that process with that name. (An orphaned zombie may stay where init does not reap.) */
static int find_named(const char *name, pid_t parent, pid_t *ret)
{
	_cleanup_free_ char *out = NULL, *of = NULL;

	if (asprintf(&of, "%d", (int)parent) < 0 ||
	    run((const char *[]){"pgrep", "-x", "-r", "S,D,R,T", "-P", of, name, NULL}, &out) < 0)
		return -1;
	*ret = (pid_t)atoi(out);
	return 0;
}

static void one_killed(const char *name, int also_other)
{
	_cleanup_free_ char *unfrozen = NULL;
	struct track_guard *g = NULL;
	struct fixture f;
	bool intact = true;
	pid_t pid, guard = 0, freezer = 0, other = 0;

	fixture_up(&f, "ext4");
	assert_int_equal(track_guard_start(f.points, 1, &g, NULL), 0);
	assert_int_equal(track_guard_freeze(g, 10, &unfrozen, NULL), 0);
	assert_int_equal(find_named("replant-guard", getpid(), &guard), 0);
	assert_int_equal(find_named("replant-freezer", guard, &freezer), 0);
	pid = strcmp(name, "replant-guard") == 0 ? guard : freezer;
	if (also_other)
		other = freezer;
	kill(pid, SIGTERM); /* not impressed */
	usleep(100000);
	assert_true(track_guard_holds(g));
	if (other)
		kill(other, SIGSTOP);
	kill(pid, SIGKILL);
	if (other)
		kill(other, SIGKILL);
	usleep(200000);
	if (!other)
		assert_false(is_frozen(&f));
	assert_false(track_guard_holds(g));
	assert_int_equal(track_guard_thaw(g, NULL, &intact, NULL), 0);
	assert_false(intact);
	assert_false(is_frozen(&f));
	track_guard_free(g);
	fixture_down(&f);
}

static void test_guard_killed(void **state)
{
	one_killed("replant-guard", 0);
}

static void test_freezer_killed(void **state)
{
	one_killed("replant-freezer", 0);
}

static void test_both_killed(void **state)
{
	one_killed("replant-guard", 1);
}

/*
 * A filesystem in an image file on another one, frozen in the wrong order: its FIFREEZE waits for the lower filesystem
 * that is frozen already. Only the limit gets out of this.
 */
static void test_blocked_freeze(void **state)
{
	_cleanup_free_ char *unfrozen = NULL, *loop = NULL;
	struct track_guard *g = NULL;
	struct fixture lower;
	char image[128], mnt[128], path[160], loopdev[64];
	const char *points[2];
	struct err e = {0};
	double began;
	int fd;

	fixture_up(&lower, "ext4");
	snprintf(image, sizeof(image), "%s/image", lower.mnt);
	snprintf(mnt, sizeof(mnt), "%s/upper", lower.dir);
	mkdir(mnt, 0755);
	assert_int_equal(run((const char *[]){"truncate", "-s", "64M", image, NULL}, NULL), 0);
	assert_int_equal(run((const char *[]){"mkfs.ext4", "-q", image, NULL}, NULL), 0);
	assert_int_equal(run((const char *[]){"losetup", "-f", "--show", image, NULL}, &loop), 0);
	snprintf(loopdev, sizeof(loopdev), "%.*s", (int)strcspn(loop, "\n"), loop);
	assert_int_equal(mount(loopdev, mnt, "ext4", 0, NULL), 0);
	points[0] = lower.mnt;
	points[1] = mnt;
	assert_int_equal(track_guard_start(points, 2, &g, NULL), 0);
	/* Keeps the upper one dirty while it is frozen. */
	snprintf(path, sizeof(path), "%s/dirty", mnt);
	fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);
	assert_true(fd >= 0);
	pid_t writer = fork();
	if (writer == 0)
		for (;;)
			if (pwrite(fd, path, sizeof(path), (random() % 8000) * 4096) < 0)
				_exit(1);
	usleep(100000);
	began = id_now_mono();
	int r = track_guard_freeze(g, 1, &unfrozen, &e);
	double took = id_now_mono() - began;
	kill(writer, SIGKILL);
	if (r == 0)
		track_guard_thaw(g, NULL, NULL, NULL);
	else
		assert_int_equal(r, -ETIME);
	print_message("%s after %.2f s\n", r < 0 ? e.msg : "frozen all the same", took);
	assert_true(took < 8);
	track_guard_free(g);
	waitpid(writer, NULL, 0);
	assert_false(is_frozen(&lower));
	close(fd);
	assert_int_equal(umount2(mnt, 0), 0);
	run((const char *[]){"losetup", "-d", loopdev, NULL}, NULL);
	fixture_down(&lower);
}

/* The guard's text is resident and locked. */
static void test_locked(void **state)
{
	_cleanup_free_ char *status = NULL;
	struct track_guard *g = NULL;
	struct fixture f;
	pid_t pid = 0;
	char path[64];
	const char *p;

	fixture_up(&f, "ext4");
	assert_int_equal(track_guard_start(f.points, 1, &g, NULL), 0);
	assert_int_equal(find_named("replant-guard", getpid(), &pid), 0);
	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	assert_int_equal(io_read_file(path, 65536, &status, NULL, NULL), 0);
	p = strstr(status, "VmLck:");
	assert_non_null(p);
	print_message("%.*s\n", (int)strcspn(p, "\n"), p);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) /* they make mlock() do nothing */
	assert_true(strtoul(p + 6, NULL, 10) > 100);
#endif
	track_guard_free(g);
	fixture_down(&f);
}

/* track_mounts() finds the loop device's filesystem once, though it is mounted twice, and not the read-only one. */
static void test_mounts(void **state)
{
	struct fixture a, b;
	char **points = NULL, twice[128];
	const char *devices[2];
	size_t n = 0;
	struct err e = {0};

	fixture_up(&a, "ext4");
	fixture_up(&b, "xfs");
	snprintf(twice, sizeof(twice), "%s/again", a.dir);
	mkdir(twice, 0755);
	assert_int_equal(mount(a.mnt, twice, NULL, MS_BIND, NULL), 0);
	devices[0] = a.loop;
	devices[1] = b.loop;
	assert_int_equal(track_mounts(devices, 2, &points, &n, &e), 0);
	assert_int_equal(n, 2);
	assert_string_equal(points[0], b.mnt); /* mounted last */
	assert_string_equal(points[1], a.mnt);
	track_mounts_free(points, n);
	/* Hidden at its first place: the other one is taken. */
	assert_int_equal(mount("none", a.mnt, "tmpfs", 0, NULL), 0);
	assert_int_equal(track_mounts(devices, 1, &points, &n, &e), 0);
	assert_int_equal(n, 1);
	assert_string_equal(points[0], twice);
	track_mounts_free(points, n);
	umount2(twice, 0);
	assert_int_equal(track_mounts(devices, 1, &points, &n, &e), -ENOENT);
	umount2(a.mnt, 0);
	assert_int_equal(mount(NULL, b.mnt, NULL, MS_REMOUNT | MS_RDONLY, NULL), 0);
	assert_int_equal(track_mounts(devices + 1, 1, &points, &n, &e), 0);
	assert_int_equal(n, 0);
	track_mounts_free(points, n);
	devices[0] = "/etc/passwd";
	assert_int_equal(track_mounts(devices, 1, &points, &n, &e), -ENOTBLK);
	fixture_down(&a);
	fixture_down(&b);
}

static char *one_mount(const char *device)
{
	char **points = NULL, *one;
	size_t n = 0;

	assert_int_equal(track_mounts(&device, 1, &points, &n, NULL), 0);
	assert_true(n <= 1);
	one = n ? strdup(points[0]) : NULL;
	track_mounts_free(points, n);
	return one;
}

/* Mounted by a name that is gone, or another's by now: found by what the filesystem itself says, and when another mount
 * hides it, by there being one on the disk. */
static void test_nameless_btrfs(void **state)
{
	_cleanup_free_ char *one = NULL, *two = NULL, *three = NULL, *four = NULL, *five = NULL;
	struct fixture a, b;
	char node[128], again[128];
	struct stat st, other;

	fixture_up(&a, "btrfs");
	fixture_up(&b, "btrfs");
	snprintf(node, sizeof(node), "%s/node", a.dir);
	snprintf(again, sizeof(again), "%s/again", a.dir);
	assert_int_equal(mkdir(again, 0755), 0);
	assert_int_equal(umount2(a.mnt, 0), 0);
	assert_int_equal(stat(a.loop, &st), 0);
	assert_int_equal(stat(b.loop, &other), 0);
	assert_int_equal(mknod(node, S_IFBLK | 0600, st.st_rdev), 0);
	assert_int_equal(mount(node, a.mnt, "btrfs", 0, NULL), 0);
	assert_int_equal(unlink(node), 0);
	one = one_mount(a.loop);
	assert_non_null(one);
	assert_string_equal(one, a.mnt);
	assert_int_equal(mknod(node, S_IFBLK | 0600, other.st_rdev), 0);
	two = one_mount(a.loop);
	assert_non_null(two);
	assert_string_equal(two, a.mnt);
	three = one_mount(b.loop);
	assert_non_null(three);
	assert_string_equal(three, b.mnt);
	assert_int_equal(unlink(node), 0);
	assert_int_equal(mount(a.mnt, again, NULL, MS_BIND, NULL), 0);
	assert_int_equal(mount("none", a.mnt, "tmpfs", 0, NULL), 0);
	four = one_mount(a.loop);
	assert_non_null(four);
	assert_string_equal(four, again);
	umount2(a.mnt, 0);
	umount2(again, 0);
	/* Several names in one. */
	snprintf(node, sizeof(node), "/dev/none:%s", a.loop);
	umount2(a.mnt, 0);
	assert_int_equal(mount(node, a.mnt, "tmpfs", 0, NULL), 0);
	five = one_mount(a.loop);
	assert_non_null(five);
	assert_string_equal(five, a.mnt);
	fixture_down(&a);
	fixture_down(&b);
}

/* Two processes in a mount namespace of their own. */
static void namespace_begin(pid_t pids[2])
{
	int p[2];

	assert_int_equal(pipe(p), 0);
	pids[0] = fork();
	if (pids[0] == 0) {
		if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
			_exit(1);
		pids[1] = fork();
		if (pids[1] && write(p[1], &pids[1], sizeof(pids[1])) < 0)
			_exit(1);
		close(p[0]);
		close(p[1]);
		pause();
		_exit(0);
	}
	close(p[1]);
	assert_int_equal(read(p[0], &pids[1], sizeof(pids[1])), sizeof(pids[1]));
	close(p[0]);
}

/* The first one before the second, which is its child. */
static void namespace_end(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	while (kill(pid, 0) == 0) /* init's child by now */
		sched_yield();
}

/* Mounted in a namespace of its own only, as containers do: found, frozen through the process there; and what changes
 * since is noticed. */
static void test_other_namespace(void **state)
{
	struct track_guard *g = NULL;
	struct fixture f;
	char **points = NULL, *unfrozen = NULL, *none[1] = {NULL}, want[64];
	const char *devices[1];
	size_t n = 0;
	struct err e = {0};
	pid_t pids[2];

	fixture_up(&f, "ext4");
	namespace_begin(pids);
	assert_int_equal(umount2(f.mnt, 0), 0); /* here; there it stays */
	devices[0] = f.loop;
	assert_int_equal(track_mounts(devices, 1, &points, &n, &e), 0);
	assert_int_equal(n, 1);
	snprintf(want, sizeof(want), "/proc/%d/root/", (int)pids[0]);
	assert_memory_equal(points[0], want, strlen(want));
	assert_int_equal(track_guard_start((const char *const *)points, n, &g, &e), 0);
	assert_int_equal(track_guard_freeze(g, 10, &unfrozen, &e), 0);
	assert_string_equal(unfrozen, "");
	assert_int_equal(track_mounts_same(devices, 1, points, n, &e), 0);
	assert_int_equal(track_mounts_same(devices, 1, none, 0, &e), -EAGAIN);
	assert_int_equal(track_guard_thaw(g, NULL, NULL, &e), 0);
	track_guard_free(g);
	namespace_end(pids[0]);
	namespace_end(pids[1]);
	assert_int_equal(track_mounts_same(devices, 1, points, n, &e), -EAGAIN);
	track_mounts_free(points, n);
	free(unfrozen);
	assert_int_equal(mount(f.loop, f.mnt, "ext4", 0, NULL), 0);
	fixture_down(&f);
}

/* What track_mounts() says to a process without CAP_SYS_PTRACE. */
static int mounts_uncapable(const char *device)
{
	struct __user_cap_header_struct head = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct caps[2];
	char **points = NULL;
	size_t n = 0;
	struct err e = {0};
	int status = 0;
	pid_t pid = fork();

	if (pid == 0) {
		if (syscall(SYS_capget, &head, caps) < 0)
			_exit(1);
		caps[0].effective &= ~(1u << CAP_SYS_PTRACE);
		caps[0].permitted &= ~(1u << CAP_SYS_PTRACE);
		if (syscall(SYS_capset, &head, caps) < 0)
			_exit(1);
		if (track_mounts(&device, 1, &points, &n, &e) == 0)
			_exit(10 + (int)n);
		_exit(e.code == -EPERM && strstr(e.msg, "CAP_SYS_PTRACE") ? 2 : 3);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

/* What is mounted where we may not look is no reason to say there is nothing. */
static void test_hidden_namespace(void **state)
{
	struct fixture f;
	pid_t pids[2];

	fixture_up(&f, "ext4");
	namespace_begin(pids);
	assert_int_equal(mounts_uncapable(f.loop), 11); /* it is mounted here too */
	assert_int_equal(umount2(f.mnt, 0), 0);
	assert_int_equal(mounts_uncapable(f.loop), 2);
	namespace_end(pids[0]);
	namespace_end(pids[1]);
	assert_int_equal(mount(f.loop, f.mnt, "ext4", 0, NULL), 0);
	fixture_down(&f);
}

/* The process by which it was frozen is gone; another one of its namespace is the way to it. */
static void test_thaw_other_way(void **state)
{
	struct fixture f;
	char path[200];
	struct stat st;
	struct err e = {0};
	pid_t pids[2];
	int fd;

	fixture_up(&f, "ext4");
	namespace_begin(pids);
	assert_int_equal(umount2(f.mnt, 0), 0);
	snprintf(path, sizeof(path), "/proc/%d/root%s", (int)pids[0], f.mnt);
	assert_int_equal(stat(path, &st), 0);
	fd = open(path, O_RDONLY);
	assert_int_equal(ioctl(fd, FIFREEZE, 0), 0);
	close(fd);
	namespace_end(pids[0]);
	assert_int_equal(track_thaw(path, st.st_dev, &e), 1);
	assert_int_equal(track_thaw(path, st.st_dev, &e), 0);
	namespace_end(pids[1]);
	assert_int_equal(track_thaw(path, st.st_dev, &e), -ENOENT);
	assert_int_equal(mount(f.loop, f.mnt, "ext4", 0, NULL), 0);
	fixture_down(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_mounts),           cmocka_unit_test(test_freeze_ext4),
	    cmocka_unit_test(test_freeze_xfs),       cmocka_unit_test(test_limit),
	    cmocka_unit_test(test_somebody_else),    cmocka_unit_test(test_all_or_none),
	    cmocka_unit_test(test_unsupported),      cmocka_unit_test(test_locked),
	    cmocka_unit_test(test_guard_killed),     cmocka_unit_test(test_freezer_killed),
	    cmocka_unit_test(test_both_killed),      cmocka_unit_test(test_blocked_freeze),
	    cmocka_unit_test(test_parent_killed),    cmocka_unit_test(test_other_namespace),
	    cmocka_unit_test(test_hidden_namespace), cmocka_unit_test(test_thaw_other_way),
	    cmocka_unit_test(test_nameless_btrfs),
	};

	if (geteuid() != 0 || access("/dev/loop-control", F_OK) < 0) {
		print_message("freezing needs root and loop devices: left out\n");
		return 0;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
