/*
 * Maps and programs in the kernel, by bpf(2) itself: what is needed of it is little, and the usual library would add a
 * reader of ELF files and a tenth of its size to the agent. Links can be pinned from Linux 5.15 on; before, a program
 * lives as long as the process that attached it.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/magic.h>
#include <linux/perf_event.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/err.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "track/track_int.h"

#define BPFFS_USUAL  "/sys/fs/bpf"
#define BPF_LOG_SIZE (1u << 20)

static const struct {
	const char *name;
	enum bpf_map_type type;
	uint32_t key, value;
	bool mapped;
} map_kinds[BPF_MAPS] = {
    [MAP_SLOTS] = {"slots", BPF_MAP_TYPE_HASH, 4, sizeof(struct tracker_slot), false},
    [MAP_MARKS] = {"marks", BPF_MAP_TYPE_ARRAY, 4, TRACKER_REGION, true},
    [MAP_BIG] = {"big", BPF_MAP_TYPE_ARRAY, 4, TRACKER_BIG, true},
    [MAP_COUNTS] = {"counts", BPF_MAP_TYPE_PERCPU_ARRAY, 4, sizeof(struct tracker_counts), false},
    [MAP_TAKEN] = {"taken", BPF_MAP_TYPE_ARRAY, 4, 4096, true}, /* the programs don't know it */
    [MAP_STATE] = {"state", BPF_MAP_TYPE_ARRAY, 4, 4096, true},
    [MAP_PASSING] = {"passing", BPF_MAP_TYPE_PERCPU_ARRAY, 4, 4, false},
};

static const struct {
	const char *name;
	const struct bpf_code *code;
} prog_kinds[EVENT_KINDS] = {
    [EVENT_SUBMIT] = {"submit", &bpf_submit},
    [EVENT_COMPLETE] = {"complete", &bpf_complete},
    [EVENT_ISSUE] = {"issue", &bpf_issue},
    [EVENT_SCSI] = {"scsi", &bpf_scsi},
};

static int call(int cmd, union bpf_attr *a)
{
	return (int)syscall(SYS_bpf, cmd, a, sizeof(*a));
}

void bpf_init(struct bpf *b)
{
	*b = (struct bpf){0};
	for (int i = 0; i < BPF_MAPS; i++)
		b->maps[i] = -1;
	for (int i = 0; i < EVENT_KINDS; i++)
		b->progs[i] = b->links[i] = b->perfs[i] = -1;
}

/* ---- maps ---- */

static int map_memory(struct bpf *b, int i, struct err *e)
{
	struct bpf_map_info info = {0};
	union bpf_attr a = {
	    .info = {.bpf_fd = (uint32_t)b->maps[i], .info_len = sizeof(info), .info = (uintptr_t)&info}};
	void *p;

	if (call(BPF_OBJ_GET_INFO_BY_FD, &a))
		return err_sys(e, "cannot ask for the tracker's map '%s'", map_kinds[i].name);
	if (info.type != map_kinds[i].type || info.value_size != map_kinds[i].value)
		return err_set(e, -ENOENT, "the tracker's map '%s' has another form", map_kinds[i].name);
	if (!map_kinds[i].mapped)
		return 0;
	b->sizes[i] = (size_t)info.max_entries * info.value_size;
	p = mmap(NULL, b->sizes[i], PROT_READ | PROT_WRITE, MAP_SHARED, b->maps[i], 0);
	if (p == MAP_FAILED)
		return err_sys(e, "cannot map the tracker's '%s'", map_kinds[i].name);
	b->mem[i] = p;
	return 0;
}

static int map_make(struct bpf *b, int i, uint64_t entries, struct err *e)
{
	union bpf_attr a = {
	    .map_type = map_kinds[i].type,
	    .key_size = map_kinds[i].key,
	    .value_size = map_kinds[i].value,
	    .max_entries = (uint32_t)entries,
	    .map_flags = map_kinds[i].mapped ? BPF_F_MMAPABLE : 0,
	};

	if (entries > INT32_MAX)
		return err_set(e, -EOPNOTSUPP, "the disks are too large to be tracked");
	snprintf(a.map_name, sizeof(a.map_name), "replant_%s", map_kinds[i].name);
	b->maps[i] = call(BPF_MAP_CREATE, &a);
	if (b->maps[i] < 0 && (errno == EPERM || errno == ENOSYS))
		return err_set(e, -EOPNOTSUPP, "the kernel doesn't let us use BPF (%s)", strerror(errno));
	if (b->maps[i] < 0 && errno == EINVAL)
		return err_set(e, -EOPNOTSUPP, "this kernel is too old for the tracker (it needs 5.5)");
	if (b->maps[i] < 0)
		return err_sys(e, "cannot make the tracker's map '%s'", map_kinds[i].name);
	return map_memory(b, i, e);
}

static uint64_t map_entries(enum bpf_map_index i, uint64_t regions, size_t state)
{
	switch (i) {
	case MAP_MARKS:
		return regions;
	case MAP_BIG:
		return util_div_up(regions, TRACKER_BIG);
	case MAP_TAKEN:
		return util_div_up(regions * (TRACKER_REGION / 8), 4096);
	case MAP_STATE:
		return util_div_up(state, 4096);
	case MAP_PASSING:
		return 1;
	default:
		return TRACKER_DISKS;
	}
}

int bpf_make(struct bpf *b, uint64_t regions, size_t state, struct err *e)
{
	struct rlimit unlimited = {RLIM_INFINITY, RLIM_INFINITY};
	int r = 0;

	setrlimit(RLIMIT_MEMLOCK, &unlimited); /* for kernels before 5.11; newer ones account otherwise */
	for (int i = 0; i < BPF_MAPS && !r; i++)
		r = map_make(b, i, map_entries((enum bpf_map_index)i, regions, state), e);
	return r;
}

int bpf_make_plain(struct bpf *b, uint64_t regions, size_t state, struct err *e)
{
	for (int i = 0; i < BPF_MAPS; i++) {
		void *p;

		if (!map_kinds[i].mapped)
			continue;
		b->sizes[i] = map_entries((enum bpf_map_index)i, regions, state) * map_kinds[i].value;
		p = mmap(NULL, b->sizes[i], PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (p == MAP_FAILED)
			return err_nomem(e);
		b->mem[i] = p;
	}
	return 0;
}

int bpf_slot(struct bpf *b, dev_t dev, const struct tracker_slot *s, struct err *e)
{
	uint32_t key = (uint32_t)(major(dev) << 20 | minor(dev));
	union bpf_attr a = {
	    .map_fd = (uint32_t)b->maps[MAP_SLOTS], .key = (uintptr_t)&key, .value = (uintptr_t)s, .flags = BPF_ANY};

	return call(BPF_MAP_UPDATE_ELEM, &a) ? err_sys(e, "cannot tell the kernel of a disk") : 0;
}

int bpf_counts(const struct bpf *b, uint32_t index, struct tracker_counts *ret, struct err *e)
{
	const size_t words = sizeof(*ret) / sizeof(uint64_t);
	int cpus = leaf_cpus();
	_cleanup_free_ uint64_t *v = cpus > 0 ? calloc((size_t)cpus, sizeof(*ret)) : NULL;
	union bpf_attr a = {.map_fd = (uint32_t)b->maps[MAP_COUNTS], .key = (uintptr_t)&index, .value = (uintptr_t)v};
	uint64_t sum[sizeof(*ret) / sizeof(uint64_t)] = {0};

	if (!v)
		return err_set(e, -EIO, "cannot tell how many CPUs there may be");
	if (call(BPF_MAP_LOOKUP_ELEM, &a))
		return err_sys(e, "cannot read the tracker's counts");
	for (size_t i = 0; i < (size_t)cpus * words; i++)
		sum[i % words] += v[i];
	memcpy(ret, sum, sizeof(*ret));
	return 0;
}

/* ---- programs ---- */

static int prog_load(struct bpf *b, const struct bpf_insn *insns, size_t n, int p, char *log, struct err *e)
{
	union bpf_attr a = {
	    .prog_type = BPF_PROG_TYPE_TRACEPOINT,
	    .insns = (uintptr_t)insns,
	    .insn_cnt = (uint32_t)n,
	    .license = (uintptr_t) "Dual BSD/GPL",
	    .log_level = log ? 1 : 0,
	    .log_size = log ? BPF_LOG_SIZE : 0,
	    .log_buf = (uintptr_t)log,
	};

	snprintf(a.prog_name, sizeof(a.prog_name), "replant_%s", prog_kinds[p].name);
	b->progs[p] = call(BPF_PROG_LOAD, &a);
	return b->progs[p] < 0 ? err_set(e, -errno, "the kernel refuses the tracker's program '%s': %s",
					 prog_kinds[p].name, strerror(errno))
			       : 0;
}

/* Once more, for what the verifier says at its end. */
static int explain(struct bpf *b, const struct bpf_insn *insns, size_t n, int p, struct err *e)
{
	_cleanup_free_ char *log = calloc(1, BPF_LOG_SIZE);
	size_t len, start;

	if (!log || !prog_load(b, insns, n, p, log, e))
		return 0;
	len = strlen(log);
	start = len > 200 ? len - 200 : 0;
	for (size_t i = start; i < len; i++)
		log[i] = log[i] == '\n' ? ' ' : log[i];
	return err_set(e, -EOPNOTSUPP, "the kernel refuses the tracker's program '%s': ...%s", prog_kinds[p].name,
		       log + start);
}

static int prog_make(struct bpf *b, int p, const struct event *ev, struct err *e)
{
	const struct bpf_code *code = prog_kinds[p].code;
	_cleanup_free_ struct bpf_insn *insns = malloc(code->n * sizeof(*insns));
	int r;

	if (!insns)
		return err_nomem(e);
	memcpy(insns, code->insns, code->n * sizeof(*insns));
	for (size_t i = 0; i < code->nrefs; i++) {
		int m = 0;

		while (m < BPF_MAPS && strcmp(map_kinds[m].name, code->refs[i].map) != 0)
			m++;
		must(m < BPF_MAPS);
		insns[code->refs[i].insn].src_reg = BPF_PSEUDO_MAP_FD;
		insns[code->refs[i].insn].imm = b->maps[m];
	}
	r = event_patch(ev, insns, code->n, e);
	if (!r && prog_load(b, insns, code->n, p, NULL, e))
		r = explain(b, insns, code->n, p, e);
	return r;
}

/*
 * The event is opened on one CPU, whichever is there; a program attached to it runs on all. From 5.15 on the link holds
 * it, before that our descriptor does.
 */
static int prog_attach(struct bpf *b, int p, const struct event *ev, struct err *e)
{
	struct perf_event_attr pa = {
	    .type = PERF_TYPE_TRACEPOINT, .size = sizeof(pa), .config = ev->id, .sample_period = 1, .wakeup_events = 1};
	union bpf_attr a = {.link_create = {.prog_fd = (uint32_t)b->progs[p], .attach_type = BPF_PERF_EVENT}};

	for (int cpu = 0; cpu < LEAF_CPUS_MAX && b->perfs[p] < 0; cpu++) {
		b->perfs[p] = (int)syscall(SYS_perf_event_open, &pa, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC);
		if (b->perfs[p] < 0 && errno != ENODEV)
			break;
	}
	if (b->perfs[p] < 0)
		return err_set(e, -EOPNOTSUPP, "the kernel doesn't let us use its tracepoint '%s' (%s)", event_names[p],
			       strerror(errno));
	a.link_create.target_fd = (uint32_t)b->perfs[p];
	b->links[p] = call(BPF_LINK_CREATE, &a);
	if (b->links[p] < 0 && ioctl(b->perfs[p], PERF_EVENT_IOC_SET_BPF, b->progs[p]))
		return err_sys(e, "cannot attach a program to '%s'", event_names[p]);
	if (ioctl(b->perfs[p], PERF_EVENT_IOC_ENABLE, 0))
		return err_sys(e, "cannot switch '%s' on", event_names[p]);
	return 0;
}

int bpf_attach(struct bpf *b, struct err *e)
{
	struct event ev[EVENT_KINDS] = {0};
	int r = 0;

	for (int p = 0; p < EVENT_NEEDED && !r; p++)
		r = event_find(event_names[p], &ev[p], e);
	for (int p = 0; p < EVENT_NEEDED && !r; p++)
		r = prog_make(b, p, &ev[p], e);
	for (int p = 0; p < EVENT_NEEDED && !r; p++)
		r = prog_attach(b, p, &ev[p], e);
	/* Without this one every SCSI command from outside the block layer is suspicious. */
	for (int p = EVENT_NEEDED; p < EVENT_KINDS && !r; p++)
		if (event_find(event_names[p], &ev[p], NULL) || prog_make(b, p, &ev[p], NULL) ||
		    prog_attach(b, p, &ev[p], NULL)) {
			util_closep(&b->links[p]);
			util_closep(&b->perfs[p]);
			b->links[p] = b->perfs[p] = -1;
		}
	return r;
}

/* ---- pins ---- */

bool bpf_can_pin(const struct bpf *b)
{
	for (int p = 0; p < EVENT_NEEDED; p++)
		if (b->links[p] < 0)
			return false;
	return true;
}

static int pin(int fd, const char *dir, const char *name, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/%s", dir, name);
	union bpf_attr a = {.pathname = (uintptr_t)path, .bpf_fd = (uint32_t)fd};

	if (!path)
		return err_nomem(e);
	return call(BPF_OBJ_PIN, &a) ? err_sys(e, "cannot pin '%s'", path) : 0;
}

int bpf_pin(const struct bpf *b, const char *dir, struct err *e)
{
	int r = 0;

	for (int i = 0; i < BPF_MAPS && !r; i++)
		r = pin(b->maps[i], dir, map_kinds[i].name, e);
	for (int p = 0; p < EVENT_KINDS && !r; p++)
		if (b->links[p] >= 0)
			r = pin(b->links[p], dir, prog_kinds[p].name, e);
	return r;
}

static int pinned(const char *dir, const char *name)
{
	_cleanup_free_ char *path = str_printf("%s/%s", dir, name);
	union bpf_attr a = {.pathname = (uintptr_t)path};
	int fd = path ? call(BPF_OBJ_GET, &a) : -1;

	return fd < 0 ? -errno : fd;
}

int bpf_adopt(struct bpf *b, const char *dir, struct err *e)
{
	int r = 0;

	for (int i = 0; i < BPF_MAPS && !r; i++) {
		b->maps[i] = pinned(dir, map_kinds[i].name);
		r = b->maps[i] < 0 ? -ENOENT : map_memory(b, i, e);
	}
	for (int p = 0; p < EVENT_KINDS && !r; p++) {
		b->links[p] = pinned(dir, prog_kinds[p].name); /* or a negative errno */
		r = b->links[p] < 0 && p < EVENT_NEEDED ? -ENOENT : 0;
	}
	return r;
}

static int link_info(int fd, struct bpf_link_info *ret)
{
	union bpf_attr a = {.info = {.bpf_fd = (uint32_t)fd, .info_len = sizeof(*ret), .info = (uintptr_t)ret}};

	*ret = (struct bpf_link_info){0};
	return fd < 0 || call(BPF_OBJ_GET_INFO_BY_FD, &a) ? -ENOENT : 0;
}

int bpf_alive(const struct bpf *b, const char *dir, struct err *e)
{
	for (int p = 0; p < EVENT_NEEDED; p++) {
		_cleanup_close_ int fd = dir ? pinned(dir, prog_kinds[p].name) : -1;
		struct bpf_link_info ours, theirs;

		if (b->links[p] < 0 && b->perfs[p] < 0)
			return err_set(e, -ESTALE, "the tracker's program '%s' was detached", prog_kinds[p].name);
		if (b->links[p] >= 0 && (link_info(b->links[p], &ours) || !ours.prog_id))
			return err_set(e, -ESTALE, "the tracker's program '%s' was detached", prog_kinds[p].name);
		if (dir && (link_info(fd, &theirs) || theirs.id != ours.id))
			return err_set(e, -ESTALE, "what kept the tracker's program '%s' alive was removed from '%s'",
				       prog_kinds[p].name, dir);
	}
	return 0;
}

void bpf_release(struct bpf *b)
{
	for (int i = 0; i < BPF_MAPS; i++) {
		if (b->mem[i])
			munmap(b->mem[i], b->sizes[i]);
		util_closep(&b->maps[i]);
	}
	for (int p = 0; p < EVENT_KINDS; p++) {
		util_closep(&b->links[p]);
		util_closep(&b->perfs[p]);
		util_closep(&b->progs[p]);
	}
	bpf_init(b);
}

static int unpin(const char *dir, const char *name, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/%s", dir, name);

	if (!path)
		return err_nomem(e);
	return unlink(path) && errno != ENOENT && errno != ENOTDIR ? err_sys(e, "cannot remove '%s'", path) : 0;
}

int bpf_unpin(const char *dir, struct err *e)
{
	int r = 0;

	for (int p = 0; p < EVENT_KINDS && !r; p++)
		r = unpin(dir, prog_kinds[p].name, e);
	for (int i = 0; i < BPF_MAPS && !r; i++)
		r = unpin(dir, map_kinds[i].name, e);
	if (!r && rmdir(dir) && errno != ENOENT && errno != ENOTDIR)
		r = err_sys(e, "cannot remove '%s'", dir);
	return r;
}

static bool on_bpffs(const char *path)
{
	struct statfs fs;

	return !statfs(path, &fs) && fs.f_type == BPF_FS_MAGIC;
}

int bpf_dir(const char *dir, struct err *e)
{
	bool usual = str_starts(dir, BPFFS_USUAL "/");

	if (usual && !on_bpffs(BPFFS_USUAL) &&
	    mount("bpf", BPFFS_USUAL, "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700"))
		return err_set(e, -EOPNOTSUPP, "cannot mount the bpf filesystem on " BPFFS_USUAL " (%s)",
			       strerror(errno));
	if (mkdir(dir, 0700) && errno != EEXIST) {
		int r = io_mkdirs(dir, 0700, e);

		if (r)
			return r;
	}
	return on_bpffs(dir) ? 0 : err_set(e, -EINVAL, "'%s' is not in a bpf filesystem", dir);
}
