#include "fs/fs_int.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/endian.h"
#include "base/err.h"
#include "base/str.h"
#include "base/util.h"
#include "disk/disk.h"

static const struct fs_format *const formats[] = {&fs_ext4, &fs_xfs, &fs_swap};

/*
 * Containers and formats that can lie on the same disk as the remains of one of ours, or look like it. Whoever is
 * found here is never read through.
 */
static const struct {
	const char *type;
	uint64_t offset;
	size_t len;
	const char *magic;
} strangers[] = {
    {"crypto_LUKS", 0, 6, "LUKS\xba\xbe"},
    {"LVM2_member", 0, 8, "LABELONE"},
    {"LVM2_member", 512, 8, "LABELONE"},
    {"LVM2_member", 1024, 8, "LABELONE"},
    {"LVM2_member", 1536, 8, "LABELONE"},
    {"linux_raid_member", 0, 4, "\xfc\x4e\x2b\xa9"},
    {"linux_raid_member", 4096, 4, "\xfc\x4e\x2b\xa9"},
    {"bcache", 4096 + 24, 4, "\xc6\x85\x73\xf6"},
    {"btrfs", 65536 + 64, 8, "_BHRfS_M"},
    {"ntfs", 3, 8, "NTFS    "},
    {"vfat", 82, 5, "FAT32"},
    {"vfat", 54, 4, "FAT1"},
    {"exfat", 3, 8, "EXFAT   "},
    {"swsuspend", 4096 - 10, 9, "S1SUSPEND"},
    {"iso9660", 32769, 5, "CD001"},
    {"squashfs", 0, 4, "hsqs"},
};

int fs_refuse(struct err *e, const char *fmt, ...)
{
	va_list ap;

	if (!e)
		return 1;
	e->code = 0;
	va_start(ap, fmt);
	vsnprintf(e->msg, sizeof(e->msg), fmt, ap);
	va_end(ap);
	return 1;
}

void fs_whole(struct fs_usage *u, const char *fmt, ...)
{
	va_list ap;

	if (u->parts_whole++)
		return;
	va_start(ap, fmt);
	vsnprintf(u->why, sizeof(u->why), fmt, ap);
	va_end(ap);
}

void fs_uuid(const uint8_t *p, char out[40])
{
	static const uint8_t none[16];
	char hex[33];

	out[0] = '\0';
	if (!memcmp(p, none, sizeof(none)))
		return;
	str_hex(p, 16, hex);
	snprintf(out, 40, "%.8s-%.4s-%.4s-%.4s-%.12s", hex, hex + 8, hex + 12, hex + 16, hex + 20);
}

void fs_label(const uint8_t *p, size_t n, char out[64])
{
	size_t i;

	for (i = 0; i < MIN(n, (size_t)63) && p[i]; i++)
		out[i] = (char)(p[i] >= 0x80 || isprint(p[i]) ? p[i] : '?');
	out[i] = '\0';
}

int fs_has_magic(struct disk *d, uint64_t off, const void *magic, size_t len, struct err *e)
{
	uint8_t buf[16];
	int r;

	if (off > d->size || len > d->size - off || len > sizeof(buf))
		return 0;
	r = disk_read(d, buf, len, off, e);
	return r < 0 ? r : !memcmp(buf, magic, len);
}

/* md superblocks 0.90 and 1.0 lie at the end, so that a member's start looks like the array's. */
static int has_raid_at_end(struct disk *d, struct err *e)
{
	static const uint8_t le[4] = {0xfc, 0x4e, 0x2b, 0xa9}, be[4] = {0xa9, 0x2b, 0x4e, 0xfc};
	uint64_t v090, v10;
	int r;

	if (d->size < 128 * KIB)
		return 0;
	v090 = (d->size & ~(64 * KIB - 1)) - 64 * KIB;
	v10 = ((d->size / 512 - 16) & ~UINT64_C(7)) * 512;
	r = fs_has_magic(d, v090, le, 4, e);
	if (!r)
		r = fs_has_magic(d, v090, be, 4, e);
	return r ? r : fs_has_magic(d, v10, le, 4, e);
}

/* The type of a container or another filesystem, NULL in *ret when there is none. */
static int find_stranger(struct disk *d, const char **ret, struct err *e)
{
	int r;

	*ret = NULL;
	for (size_t i = 0; i < ARRAY_SIZE(strangers); i++) {
		r = fs_has_magic(d, strangers[i].offset, strangers[i].magic, strangers[i].len, e);
		if (r > 0)
			*ret = strangers[i].type;
		if (r)
			return r < 0 ? r : 0;
	}
	r = has_raid_at_end(d, e);
	if (r > 0)
		*ret = "linux_raid_member";
	return r < 0 ? r : 0;
}

/* The one format that is on the disk, NULL when none or when it is ambiguous. */
static int find_format(struct disk *d, struct fs_info *ret_info, const struct fs_format **ret, struct err *e)
{
	const char *stranger;
	int r = find_stranger(d, &stranger, e);

	*ret = NULL;
	*ret_info = (struct fs_info){.type = "unknown"};
	if (r < 0)
		return r;
	for (size_t i = 0; i < ARRAY_SIZE(formats); i++) {
		struct fs_info info = {.type = "unknown"};

		r = formats[i]->probe(d, &info, e);
		if (r < 0)
			return r;
		if (r == 0)
			continue;
		if (*ret || stranger) {
			*ret = NULL;
			*ret_info = (struct fs_info){.type = stranger ? stranger : "ambivalent"};
			return 0;
		}
		*ret = formats[i];
		*ret_info = info;
	}
	if (!*ret && stranger)
		ret_info->type = stranger;
	return 0;
}

int fs_probe(struct disk *d, struct fs_info *ret, struct err *e)
{
	const struct fs_format *format;
	struct fs_info info;
	int r = find_format(d, &info, &format, e);

	if (r < 0)
		return r;
	info.readable = format != NULL;
	*ret = info;
	return 0;
}

int fs_used(struct disk *d, unsigned flags, fs_extent_fn fn, void *arg, struct fs_usage *ret, struct err *e)
{
	const struct fs_format *format;
	struct fs_usage usage = {0};
	struct fs_info info;
	int r = find_format(d, &info, &format, e);

	if (r < 0)
		return r;
	if (!format)
		return fs_refuse(e, strcmp(info.type, "unknown") ? "its content (%s) is not read" : "its content is %s",
				 info.type);
	if (info.size > d->size)
		return fs_refuse(e, "the %s filesystem is larger than what it lies on", info.type);
	r = format->used(d, flags, fn, arg, &usage, e);
	if (r)
		return r;
	if (info.size < d->size)
		r = fn(arg, info.size, d->size - info.size);
	if (!r && ret)
		*ret = usage;
	return r;
}
