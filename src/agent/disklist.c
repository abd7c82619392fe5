/* The disks of this server, from /sys/block. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"

/* The first line of /sys/class/block/<name>/<file>. */
static const char *disklist_read_line(const char *name, const char *file, char *buf, size_t size)
{
	_cleanup_free_ char *path = str_printf("/sys/class/block/%s/%s", name, file);

	buf[0] = '\0';
	return path ? sysinfo_line(path, buf, size) : buf;
}

static uint64_t disklist_number(const char *name, const char *file)
{
	char buf[32];

	return strtoull(disklist_read_line(name, file, buf, sizeof(buf)), NULL, 10);
}

/* SCSI's unit serial number page: four bytes of header, the last the length. */
static void disklist_vpd_serial(const char *name, char *out, size_t size)
{
	_cleanup_free_ char *path = str_printf("/sys/class/block/%s/device/vpd_pg80", name), *data = NULL;
	size_t len, n;

	if (!path || io_read_file(path, 4096, &data, &len, NULL) < 0 || len < 4)
		return;
	n = MIN(MIN((size_t)(uint8_t)data[3], len - 4), size - 1);
	memcpy(out, data + 4, n);
	out[n] = '\0';
}

/* Outside text becomes part of JSON and tables. */
static void disklist_tidy(char *s)
{
	char *first = s + strspn(s, " ");

	memmove(s, first, strlen(first) + 1);
	for (char *p = s; *p; p++)
		if ((unsigned char)*p < 0x20 || (unsigned char)*p > 0x7e)
			*p = '?';
	for (size_t n = strlen(s); n && s[n - 1] == ' ';)
		s[--n] = '\0';
}

static void disklist_fill(const char *name, struct agent_disk *d)
{
	snprintf(d->name, sizeof(d->name), "%s", name);
	snprintf(d->path, sizeof(d->path), "/dev/%s", d->name);
	/* "cciss!c0d0" is /dev/cciss/c0d0 */
	for (char *p = d->path; *p; p++)
		if (*p == '!')
			*p = '/';
	d->size = disklist_number(name, "size") * 512; /* always 512, whatever the sector size */
	d->logical = (uint32_t)disklist_number(name, "queue/logical_block_size");
	d->physical = (uint32_t)disklist_number(name, "queue/physical_block_size");
	d->rotational = disklist_number(name, "queue/rotational") != 0;
	d->removable = disklist_number(name, "removable") != 0;
	d->read_only = disklist_number(name, "ro") != 0;
	disklist_read_line(name, "device/model", d->model, sizeof(d->model));
	if (!*disklist_read_line(name, "serial", d->serial, sizeof(d->serial)) &&
	    !*disklist_read_line(name, "device/serial", d->serial, sizeof(d->serial)))
		disklist_vpd_serial(name, d->serial, sizeof(d->serial));
	disklist_tidy(d->model);
	disklist_tidy(d->serial);
}

/* Devices that are no disk of their own: made from others, from memory, or media one takes out. */
static bool disklist_is_real(const char *name)
{
	static const char *const others[] = {"loop", "ram", "zram",     "sr", "fd",   "dm-",
					     "md",   "nbd", "mtdblock", "zd", "drbd", "bcache"};

	for (size_t i = 0; i < ARRAY_SIZE(others); i++)
		if (str_starts(name, others[i]))
			return false;
	/* The boot and authentication areas of eMMC, and the paths below an NVMe multipath device. */
	if (str_starts(name, "mmcblk") && (strstr(name, "boot") || strstr(name, "rpmb")))
		return false;
	return disklist_number(name, "hidden") == 0;
}

int disklist_read(struct agent_disk **ret, size_t *ret_n, struct err *e)
{
	struct agent_disk *list = NULL;
	struct dirent **names = NULL;
	int n = scandir("/sys/block", &names, NULL, versionsort);
	size_t count = 0;

	if (n < 0)
		return err_sys(e, "cannot list '/sys/block'");
	list = calloc((size_t)n + 1, sizeof(*list));
	for (int i = 0; i < n; i++) {
		const char *name = names[i]->d_name;

		if (list && name[0] != '.' && strlen(name) < sizeof(list->name) && disklist_is_real(name)) {
			disklist_fill(name, &list[count]);
			if (list[count].size && !list[count].removable)
				count++;
			else
				memset(&list[count], 0, sizeof(*list));
		}
		free(names[i]);
	}
	free(names);
	if (!list)
		return err_nomem(e);
	*ret = list;
	*ret_n = count;
	return 0;
}

int disklist_one(const char *path, struct agent_disk *ret, struct err *e)
{
	_cleanup_free_ char *link = NULL;
	struct agent_disk d = {0};
	char target[PATH_MAX];
	struct stat st;
	ssize_t n;

	if (stat(path, &st) < 0)
		return err_sys(e, "no disk '%s'", path);
	if (S_ISREG(st.st_mode)) {
		d.size = (uint64_t)st.st_size;
		d.logical = d.physical = 512;
		snprintf(d.name, sizeof(d.name), "%.60s", path);
	} else if (S_ISBLK(st.st_mode)) {
		link = str_printf("/sys/dev/block/%u:%u", major(st.st_rdev), minor(st.st_rdev));
		n = link ? readlink(link, target, sizeof(target) - 1) : -1;
		if (n < 0)
			return err_sys(e, "the kernel does not know '%s'", path);
		target[n] = '\0';
		disklist_fill(basename(target), &d);
	} else {
		return err_set(e, -ENOTBLK, "'%s' is neither a block device nor a file", path);
	}
	if (strlen(path) >= sizeof(d.path))
		return err_set(e, -ENAMETOOLONG, "the name '%s' is too long", path);
	strcpy(d.path, path);
	*ret = d;
	return 0;
}

int disklist_parts(const struct agent_disk *d, struct disklist_part *out, size_t max, size_t *ret_n)
{
	_cleanup_free_ char *dir = str_printf("/sys/class/block/%s", d->name);
	DIR *dp = dir ? opendir(dir) : NULL;
	size_t n = 0;

	*ret_n = 0;
	if (!dp)
		return 0;
	for (struct dirent *de; n < max && (de = readdir(dp));) {
		_cleanup_free_ char *file = str_printf("%s/partition", de->d_name);
		uint64_t number;

		if (de->d_name[0] == '.' || !str_starts(de->d_name, d->name) ||
		    strlen(de->d_name) >= sizeof(out->name) || !file)
			continue;
		number = disklist_number(d->name, file);
		if (!number)
			continue;
		out[n].number = (unsigned)number;
		snprintf(out[n++].name, sizeof(out->name), "%s", de->d_name);
	}
	closedir(dp);
	*ret_n = n;
	return 0;
}
