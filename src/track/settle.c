/*
 * How a process settles that has to thaw whatever happens: forked off the agent, it keeps a few descriptors and nothing
 * else of it. After fork() only async-signal-safe functions are used: the agent has threads.
 */
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/util.h"
#include "track/track_int.h"

static int settle_collect_segment(struct dl_phdr_info *info, size_t size, void *arg)
{
	struct settle_segments *s = arg;
	uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);

	for (size_t i = 0; i < info->dlpi_phnum && s->n < SETTLE_SEGMENTS; i++) {
		const ElfW(Phdr) *ph = &info->dlpi_phdr[i];
		uintptr_t from = (info->dlpi_addr + ph->p_vaddr) & ~(page - 1);
		uintptr_t to = (info->dlpi_addr + ph->p_vaddr + ph->p_memsz + page - 1) & ~(page - 1);

		if (ph->p_type != PT_LOAD || !ph->p_memsz)
			continue;
		s->v[s->n].p = (void *)from; /* NOLINT: an address is what we are after */
		s->v[s->n++].len = to - from;
	}
	return 0;
}

void settle_collect(struct settle_segments *ret)
{
	*ret = (struct settle_segments){0};
	dl_iterate_phdr(settle_collect_segment, ret);
}

static void settle_close_others(const int *keep, size_t n)
{
	int max = -1;

	for (size_t i = 0; i < n; i++)
		max = MAX(max, keep[i]);
	for (int fd = 0; fd <= max; fd++) {
		bool kept = false;

		for (size_t i = 0; i < n && !kept; i++)
			kept = fd == keep[i];
		if (!kept)
			close(fd);
	}
	syscall(SYS_close_range, (unsigned)max + 1, ~0u, 0);
}

/*
 * Locks the program's segments (a fork has not mapped them yet) and whatever is touched from now on. Not all of the
 * agent's memory: its buffers and thread stacks would be copied.
 */
static int settle_lock_memory(const struct settle_segments *segments)
{
	volatile char stack[32768];

	for (size_t i = 0; i < segments->n; i++)
		if (mlock(segments->v[i].p, segments->v[i].len) < 0)
			return -errno;
	/* Before 4.4 there is no locking on fault: then all of it. */
	if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0 &&
	    (errno != EINVAL || mlockall(MCL_CURRENT | MCL_FUTURE) < 0))
		return -errno;
	for (size_t i = 0; i < sizeof(stack); i += 1024)
		stack[i] = 0;
	return 0;
}

/* The kernel should rather kill anybody else than who has to thaw. Not being allowed to say so is fine. */
static void settle_spare_us(void)
{
	int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd >= 0) {
		if (write(fd, "-1000", 5) < 0) {
			/* needs CAP_SYS_RESOURCE */
		}
		close(fd);
	}
	setpriority(PRIO_PROCESS, 0, -20);
}

int settle_process(const struct settle_segments *segments, const int *keep, size_t n, const char *name)
{
	sigset_t all;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, NULL);
	prctl(PR_SET_NAME, name);
	prctl(PR_SET_PDEATHSIG, 0);
	settle_spare_us();
	if (chdir("/") < 0)
		return -errno;
	settle_close_others(keep, n);
	return settle_lock_memory(segments);
}

void settle_leave_unit(void)
{
	static const char *const procs[] = {"/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs",
					    "/sys/fs/cgroup/systemd/cgroup.procs"};

	for (size_t i = 0; i < ARRAY_SIZE(procs); i++) {
		int fd = open(procs[i], O_WRONLY | O_CLOEXEC);

		if (fd < 0)
			continue;
		if (write(fd, "0", 1) != 1) {
			/* refused in a container */
		}
		close(fd);
	}
}
