/* The disks' part of the check: tables, filesystems, and how full they are. */
#include "guest/guest_int.h"

#include <fcntl.h>
#include <string.h>
#include <sys/statvfs.h>

#include "base/err.h"
#include "base/util.h"

#define FULL_PERCENT 99u

static bool disks_seen(struct guest *g)
{
	return g->found != NULL;
}

static int disks_table(struct guest *g, struct guest_finding *f, struct err *e)
{
	json_t *warning;
	size_t i;

	json_array_foreach(json_object_get(g->found, "table_warnings"), i, warning)
	{
		guest_find(f, GUEST_CRITICAL, "%s", json_string_value(warning) ?: "");
		guest_advise(f, "check the partition table on the source, and that the whole disk was copied");
	}
	json_array_foreach(json_object_get(g->found, "other_warnings"), i, warning)
	{
		guest_find(f, GUEST_WARNING, "%s", json_string_value(warning) ?: "");
		guest_advise(f, "see on the source that its volumes are whole, and that all disks were copied");
	}
	guest_find(f, GUEST_PASSED, "the partition tables are valid");
	return 0;
}

static bool disks_has(const struct guest *g, const char *fstype)
{
	for (size_t i = 0; i < g->volumes->n; i++)
		if (strcmp(g->volumes->v[i].fstype, fstype) == 0)
			return true;
	return false;
}

static void disks_groups(struct guest *g, struct guest_finding *f)
{
	const char *said = json_string_value(json_object_get(g->found, "groups_said"));
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(g->found, "missing"), i, o)
	    guest_find(f, GUEST_CRITICAL, "volume group '%s' lacks a disk", json_string_value(o) ?: "?");
	if (said && disks_has(g, "LVM2_member"))
		guest_find(f, GUEST_WARNING, "whether a volume group lacks a disk could not be looked at: %s", said);
}

static int disks_filesystems(struct guest *g, struct guest_finding *f, struct err *e)
{
	_cleanup_(str_release) struct str clean = {0};
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(g->found, "filesystems"), i, o)
	{
		const char *state = json_string_value(json_object_get(o, "state")) ?: "";
		const char *device = json_string_value(json_object_get(o, "device")) ?: "";
		const char *said = json_string_value(json_object_get(o, "said")) ?: "";

		if (strcmp(state, "damaged") == 0)
			guest_find(f, GUEST_CRITICAL, "the filesystem on '%s' is damaged: %s", device, said);
		else if (strcmp(state, "unknown") == 0)
			guest_find(f, GUEST_WARNING, "the filesystem on '%s' could not be checked: %s", device, said);
		if (strcmp(state, "damaged") == 0)
			guest_advise(f, "check it on the source (fsck at its next start) and copy it again");
		else if (strcmp(state, "unknown") == 0)
			guest_advise(f, "check it on the source");
		else
			str_addf(&clean, "%s'%s'", clean.len ? ", " : "", device);
	}
	disks_groups(g, f);
	for (i = 0; i < g->volumes->n; i++)
		if (strcmp(g->volumes->v[i].fstype, "crypto_LUKS") == 0)
			guest_find(
			    f, GUEST_WARNING,
			    "'%s' is encrypted: the boot may ask for a passphrase, and its content isn't checked",
			    g->volumes->v[i].device);
	guest_find(f, GUEST_PASSED, "%s%s",
		   clean.len ? "checked and clean: " : "no filesystem of a kind that is checked",
		   clean.len ? clean.s : "");
	return 0;
}

/* As df(1) counts it: of what everybody may use. */
static unsigned disks_percent(uint64_t all, uint64_t spare, uint64_t available)
{
	double used = (double)(all - MIN(spare, all)), of = used + (double)available;

	return all && of > 0 ? (unsigned)(100 * used / of) : 0;
}

/* Which directories are filesystems of their own. */
static void disks_use(struct guest *g, struct guest_finding *f, bool inodes)
{
	static const char *const dirs[] = {"/", "/boot", "/boot/efi", "/usr", "/var", "/var/lib", "/usr/local", "/opt"};
	unsigned long seen[ARRAY_SIZE(dirs)];
	size_t nseen = 0;

	f->value = json_object();
	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		_cleanup_close_ int fd = guest_openat(g, dirs[i], O_RDONLY | O_DIRECTORY, 0);
		struct statvfs st;
		unsigned percent;
		bool known = false;

		if (fd < 0 || fstatvfs(fd, &st) < 0)
			continue;
		for (size_t k = 0; k < nseen; k++)
			known |= seen[k] == st.f_fsid;
		if (known)
			continue;
		seen[nseen++] = st.f_fsid;
		percent = inodes ? disks_percent(st.f_files, st.f_ffree, st.f_favail)
				 : disks_percent(st.f_blocks, st.f_bfree, st.f_bavail);
		json_object_set_new(f->value, dirs[i], json_integer(percent));
		if (percent >= FULL_PERCENT) {
			guest_find(f, GUEST_WARNING, "%u %% of the %s of '%s' are used", percent,
				   inodes ? "inodes" : "space", dirs[i]);
			guest_advise(f, "remove files there: programs that can't write don't start");
		}
	}
}

static int disks_space(struct guest *g, struct guest_finding *f, struct err *e)
{
	disks_use(g, f, false);
	guest_find(f, GUEST_PASSED, "there is room on the filesystems");
	return 0;
}

static int disks_inodes(struct guest *g, struct guest_finding *f, struct err *e)
{
	disks_use(g, f, true);
	guest_find(f, GUEST_PASSED, "there are inodes left on the filesystems");
	return 0;
}

const struct guest_check guest_checks_disks[] = {
    {"partition_table", "disks", false, disks_seen, disks_table},
    {"filesystems", "disks", false, disks_seen, disks_filesystems},
    {"disk_use", "disks", false, NULL, disks_space},
    {"inode_use", "disks", false, NULL, disks_inodes},
    {0},
};
