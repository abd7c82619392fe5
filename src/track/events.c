/* The places of a tracepoint's fields differ between kernels; each tells them in tracefs. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "base/err.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "track/track_int.h"

#define FORMAT_MAX      65536
#define EVENT_PLACE_MAX (1u << 20)

/* As in struct event of tracker.bpf.c, from EVENT_BASE on; an array may be longer. */
static const struct {
	const char *name;
	uint32_t at, size;
	bool array;
} fields[EVENT_FIELDS] = {
    [EVENT_SECTOR] = {"sector", 0, 8, false},
    [EVENT_DEV] = {"dev", 8, 4, false},
    [EVENT_NR_SECTOR] = {"nr_sector", 12, 4, false},
    [EVENT_BYTES] = {"bytes", 16, 4, false},
    [EVENT_RWBS] = {"rwbs", 20, 4, true},
    [EVENT_OPCODE] = {"opcode", 24, 4, false},
    [EVENT_CDB] = {"cmnd", 28, 4, false},
};

/* "char rwbs[8];", "__data_loc unsigned char[] cmnd;": the name is what stands last, but for a length. */
static bool names(const char *decl, const char *name)
{
	size_t len = strcspn(decl, ";"), n = strlen(name);

	if (len && decl[len - 1] == ']')
		while (len && decl[len] != '[')
			len--;
	return len > n && !strncmp(decl + len - n, name, n) && decl[len - n - 1] == ' ';
}

static int value(const char *line, const char *key, uint32_t *ret)
{
	const char *p = strstr(line, key), *eol = strchr(line, '\n');
	char *end;
	unsigned long v;

	if (!p || (eol && p > eol))
		return -EINVAL;
	v = strtoul(p + strlen(key), &end, 10);
	if (*end != ';' || v > EVENT_PLACE_MAX)
		return -EINVAL;
	*ret = (uint32_t)v;
	return 0;
}

int event_place(const char *text, const char *name, uint32_t *ret_offset, uint32_t *ret_size)
{
	for (const char *p = strstr(text, "\tfield:"); p; p = strstr(p + 1, "\tfield:")) {
		uint32_t offset, size;

		if (!names(p + strlen("\tfield:"), name))
			continue;
		if (value(p, "offset:", &offset) || value(p, "size:", &size))
			return -EINVAL;
		*ret_offset = offset;
		*ret_size = size;
		return 0;
	}
	return -ENOENT;
}

int event_parse(const char *text, struct event *ret, struct err *e)
{
	struct event ev = {.id = ret->id};

	for (int f = 0; f < EVENT_FIELDS; f++) {
		uint32_t offset, size;
		int r = event_place(text, fields[f].name, &offset, &size);

		if (r == -ENOENT)
			continue;
		/* no further than what a program's instruction can name */
		if (r || offset < 8 || offset > INT16_MAX - sizeof(uint64_t) ||
		    (fields[f].array ? size < fields[f].size : size != fields[f].size || offset % size))
			return err_set(e, -EOPNOTSUPP, "this kernel's tracepoint has an unknown form of '%s'",
				       fields[f].name);
		ev.offset[f] = offset;
	}
	*ret = ev;
	return 0;
}

const char *const event_names[EVENT_KINDS] = {
    [EVENT_SUBMIT] = "block/block_bio_queue",
    [EVENT_COMPLETE] = "block/block_rq_complete",
    [EVENT_ISSUE] = "block/block_rq_issue",
    [EVENT_SCSI] = "scsi/scsi_dispatch_cmd_start",
};

int event_tracefs(bool writable)
{
	static const char *const usual[] = {"/sys/kernel/tracing", "/sys/kernel/debug/tracing"};
	_cleanup_close_ int fs = fsopen("tracefs", FSOPEN_CLOEXEC);
	int fd = -1;

	if (fs >= 0 && !fsconfig(fs, FSCONFIG_CMD_CREATE, NULL, NULL, 0))
		fd = fsmount(fs, FSMOUNT_CLOEXEC, writable ? 0 : MOUNT_ATTR_RDONLY);
	for (size_t i = 0; fd < 0 && i < ARRAY_SIZE(usual); i++) {
		fd = open(usual[i], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (fd >= 0 && faccessat(fd, "events", R_OK, 0)) {
			close(fd);
			fd = -1;
		}
	}
	return fd;
}

static int read_of(int fd, const char *event, const char *file, char **ret, struct err *e)
{
	_cleanup_free_ char *path = str_printf("events/%s/%s", event, file);

	return path ? io_read_file_at(fd, path, FORMAT_MAX, ret, NULL, e) : err_nomem(e);
}

int event_find(const char *name, struct event *ret, struct err *e)
{
	_cleanup_close_ int fd = event_tracefs(false);
	_cleanup_free_ char *id = NULL, *format = NULL;
	struct event ev = {0};
	int r;

	if (fd < 0)
		return err_set(e, -EOPNOTSUPP, "this kernel has no tracefs, or doesn't let us see it");
	r = read_of(fd, name, "id", &id, e);
	if (!r)
		r = read_of(fd, name, "format", &format, e);
	if (r)
		return err_set(e, -EOPNOTSUPP, "this kernel has no tracepoint '%s', or its lockdown hides it", name);
	id[strcspn(id, "\n")] = '\0';
	if (str_u64(id, 1, UINT32_MAX, &ev.id))
		return err_set(e, -EOPNOTSUPP, "tracepoint '%s' has the strange number '%s'", name, id);
	r = event_parse(format, &ev, e);
	if (r)
		return err_prefix(e, "%s", name);
	*ret = ev;
	return 0;
}

int event_patch(const struct event *ev, struct bpf_insn *code, size_t n, struct err *e)
{
	for (size_t i = 0; i < n; i++) {
		uint32_t at = (uint32_t)code[i].off - EVENT_BASE;
		int f = EVENT_FIELDS - 1;

		if (BPF_CLASS(code[i].code) != BPF_LDX || code[i].off < EVENT_BASE)
			continue;
		while (f > 0 && (at < fields[f].at || at >= fields[f].at + fields[f].size))
			f--;
		must(at >= fields[f].at && at < fields[f].at + fields[f].size);
		if (!ev->offset[f])
			return err_set(e, -EOPNOTSUPP, "this kernel's tracepoint has no field '%s'", fields[f].name);
		code[i].off = (int16_t)(ev->offset[f] + at - fields[f].at);
	}
	return 0;
}
