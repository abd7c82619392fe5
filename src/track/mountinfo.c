/* /proc/self/mountinfo, proc_pid_mountinfo(5): "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root
 * rw,errors=continue" */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "base/err.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "track/track_int.h"

#define MOUNTINFO_MAX    (8u << 20) /* a server with 10,000 mounts has 2 MiB */
#define MOUNTINFO_MOUNTS 65536u

static bool mountinfo_octal(const char *s)
{
	return s[0] >= '0' && s[0] <= '3' && s[1] >= '0' && s[1] <= '7' && s[2] >= '0' && s[2] <= '7';
}

/* A copy of the field with \040 and the like undone. A NUL can't be meant and ends it. */
static char *mountinfo_unescape(const char *s, size_t len)
{
	char *out = malloc(len + 1);
	size_t n = 0;

	if (!out)
		return NULL;
	for (size_t i = 0; i < len; i++) {
		if (s[i] == '\\' && i + 3 < len && mountinfo_octal(s + i + 1)) {
			out[n++] = (char)((s[i + 1] - '0') << 6 | (s[i + 2] - '0') << 3 | (s[i + 3] - '0'));
			i += 3;
		} else {
			out[n++] = s[i];
		}
	}
	out[n] = '\0';
	return out;
}

/* The next field, separated by spaces; false at the end of the line. */
static bool mountinfo_field(const char **p, const char *end, const char **ret, size_t *ret_len)
{
	const char *s = *p;

	while (s < end && *s == ' ')
		s++;
	*ret = s;
	while (s < end && *s != ' ')
		s++;
	*ret_len = (size_t)(s - *ret);
	*p = s;
	return *ret_len > 0;
}

static int mountinfo_number(const char *s, size_t len, unsigned *ret)
{
	char buf[16];
	uint64_t v;

	if (len >= sizeof(buf))
		return -EINVAL;
	memcpy(buf, s, len);
	buf[len] = '\0';
	if (str_u64(buf, 0, UINT32_MAX, &v) < 0)
		return -EINVAL;
	*ret = (unsigned)v;
	return 0;
}

static int mountinfo_dev(const char *s, size_t len, dev_t *ret)
{
	const char *colon = memchr(s, ':', len);
	unsigned major, minor;

	if (!colon || mountinfo_number(s, (size_t)(colon - s), &major) < 0 ||
	    mountinfo_number(colon + 1, len - (size_t)(colon - s) - 1, &minor) < 0)
		return -EINVAL;
	*ret = makedev(major, minor);
	return 0;
}

static void mountinfo_release(struct track_mount *m)
{
	free(m->root);
	free(m->point);
	free(m->options);
	free(m->type);
	free(m->source);
	free(m->super);
	*m = (struct track_mount){0};
}

/* 1: a mount, 0: not understood, negative: out of memory. */
static int mountinfo_line(const char *p, const char *end, struct track_mount *m)
{
	struct {
		const char *s;
		size_t len;
	} f[9];
	size_t n = 0;

	/* Six fixed fields, then optional ones up to "-", then three. */
	while (n < 9 && mountinfo_field(&p, end, &f[n].s, &f[n].len)) {
		if (n == 6 && !(f[n].len == 1 && *f[n].s == '-'))
			continue;
		n++;
		if (n == 7)
			break;
	}
	if (n != 7)
		return 0;
	for (n = 6; n < 9; n++)
		if (!mountinfo_field(&p, end, &f[n].s, &f[n].len))
			break;
	/* An empty source (mount -t x "") leaves two fields. */
	if (n < 8 || mountinfo_number(f[0].s, f[0].len, &m->id) < 0 || mountinfo_dev(f[2].s, f[2].len, &m->dev) < 0)
		return 0;
	if (n == 8) {
		f[8] = f[7];
		f[7].len = 0;
	}
	m->root = mountinfo_unescape(f[3].s, f[3].len);
	m->point = mountinfo_unescape(f[4].s, f[4].len);
	m->options = mountinfo_unescape(f[5].s, f[5].len);
	m->type = mountinfo_unescape(f[6].s, f[6].len);
	m->source = mountinfo_unescape(f[7].s, f[7].len);
	m->super = mountinfo_unescape(f[8].s, f[8].len);
	if (!m->root || !m->point || !m->options || !m->type || !m->source || !m->super) {
		mountinfo_release(m);
		return -ENOMEM;
	}
	m->writable = strncmp(m->super, "rw", 2) == 0 && (m->super[2] == ',' || !m->super[2]);
	return 1;
}

int track_mountinfo_parse(const char *text, size_t len, struct track_mount **ret, size_t *ret_n, struct err *e)
{
	struct track_mount *list = NULL;
	const char *end = text + len;
	size_t n = 0, room = 0;

	for (const char *p = text; p < end;) {
		const char *nl = memchr(p, '\n', (size_t)(end - p));
		const char *stop = nl ? nl : end;
		struct track_mount m = {0}, *more;
		int r = mountinfo_line(p, stop, &m);

		p = stop + 1;
		if (r == 0)
			continue;
		if (r > 0 && n == MOUNTINFO_MOUNTS) {
			mountinfo_release(&m);
			track_mountinfo_free(list, n);
			return err_set(e, -E2BIG, "there are more than %u mounts; unmount what isn't needed",
				       MOUNTINFO_MOUNTS);
		}
		if (r > 0 && n == room) {
			room = room ? 2 * room : 32;
			more = realloc(list, room * sizeof(*list));
			if (more)
				list = more;
			else
				r = -ENOMEM;
		}
		if (r < 0) {
			mountinfo_release(&m);
			track_mountinfo_free(list, n);
			return err_nomem(e);
		}
		list[n++] = m;
	}
	*ret = list;
	*ret_n = n;
	return 0;
}

int track_mountinfo_read(struct track_mount **ret, size_t *ret_n, struct err *e)
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r = io_read_file("/proc/self/mountinfo", MOUNTINFO_MAX, &text, &len, e);

	return r < 0 ? r : track_mountinfo_parse(text, len, ret, ret_n, e);
}

void track_mountinfo_free(struct track_mount *m, size_t n)
{
	for (size_t i = 0; i < n; i++)
		mountinfo_release(&m[i]);
	free(m);
}
