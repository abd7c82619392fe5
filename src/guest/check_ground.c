/*
 * What lies on the disks below the system: partition tables, boot code, filesystems. Looked at in the appliance before
 * anything is mounted for good; where no system is found, this says what was found instead.
 */
#include "guest/guest_int.h"

#include <errno.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "base/endian.h"
#include "base/err.h"
#include "base/jsn.h"
#include "base/proc.h"
#include "base/util.h"
#include "disk/disk.h"
#include "layout/layout.h"

#define TYPE_ESP       "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
#define TYPE_BIOS_BOOT "21686148-6449-6e6f-744e-656564454649"
#define TYPE_MSR       "e3c9e316-0b5c-4db8-817d-f92df00215ae"
#define ISO_AT         32769u
#define ZERO_PIECE     (1u << 20)
#define SAID_MAX       65536u
#define WARNINGS_MAX   16u

/* ---- tables ---- */

static bool ground_is_zero(struct disk *d, uint64_t at, size_t n)
{
	_cleanup_free_ uint8_t *p = at < d->size ? malloc(n) : NULL;

	n = (size_t)MIN(n, d->size - MIN(at, d->size));
	if (!p || disk_read(d, p, n, at, NULL) < 0)
		return false;
	for (size_t i = 0; i < n; i++)
		if (p[i])
			return false;
	return true;
}

static bool ground_has(struct disk *d, uint64_t at, const char *bytes)
{
	char p[16];
	size_t n = strlen(bytes);

	return disk_read(d, p, n, at, NULL) == 0 && memcmp(p, bytes, n) == 0;
}

/* GRUB's first stage (boot.img) has the sector of the next one at 0x5c: is anything there? */
static bool ground_has_core(struct disk *d)
{
	uint8_t sector[512];
	uint64_t lba;

	if (disk_read(d, sector, sizeof(sector), 0, NULL) < 0 || !memmem(sector, 440, "GRUB ", 5))
		return false;
	lba = get_le64(sector + 0x5c);
	return lba && lba < d->size / 512 && !ground_is_zero(d, lba * 512, 512);
}

static bool ground_has_grub(struct disk *d)
{
	uint8_t sector[440];

	return disk_read(d, sector, sizeof(sector), 0, NULL) == 0 && memmem(sector, sizeof(sector), "GRUB ", 5);
}

static bool ground_has_code(struct disk *d)
{
	return !ground_is_zero(d, 0, 440) && ground_has(d, 510, "\x55\xaa");
}

static bool ground_has_type(const struct layout *l, size_t disk, const char *a, const char *b)
{
	for (size_t i = 0; i < l->nvolumes; i++) {
		const struct layout_volume *v = &l->volumes[i];

		if (v->kind == LAYOUT_PARTITION && v->disk == disk &&
		    (strcmp(v->type, a) == 0 || (b && strcmp(v->type, b) == 0)))
			return true;
	}
	return false;
}

static json_t *ground_table(const struct layout *l, struct disk *d, size_t i)
{
	bool table = strcmp(l->disks[i].table, "none") != 0;

	return json_pack("{s:i, s:s, s:I, s:b, s:b, s:b, s:b, s:b, s:b, s:b, s:b}", "disk", (int)i, "table",
			 l->disks[i].table, "size", (json_int_t)d->size, "esp", ground_has_type(l, i, TYPE_ESP, "0xef"),
			 "bios_boot", ground_has_type(l, i, TYPE_BIOS_BOOT, NULL), "boot_code", ground_has_code(d),
			 "grub", ground_has_grub(d), "core", ground_has_core(d), "iso", ground_has(d, ISO_AT, "CD001"),
			 "windows", ground_has_type(l, i, TYPE_MSR, NULL), "zero",
			 !table && ground_is_zero(d, 0, ZERO_PIECE) &&
			     ground_is_zero(d, d->size > ZERO_PIECE ? d->size - ZERO_PIECE : 0, ZERO_PIECE));
}

static json_t *ground_text(const char *s)
{
	char text[ERR_MSG_MAX];

	snprintf(text, sizeof(text), "%s", s);
	str_utf8(text);
	return json_string(text);
}

void guest_ground_tables(const struct guest_volumes *v, json_t *out)
{
	_cleanup_(layout_freep) struct layout *l = NULL;
	struct disk *disks[GUEST_DISKS_MAX] = {NULL};
	json_t *tables = json_array(), *warnings = json_array(), *others = json_array();
	struct err e = {0};
	int r = 0;

	for (size_t i = 0; r == 0 && i < v->ndisks; i++)
		r = disk_open(v->disks[i].device, 0, &disks[i], &e);
	r = r ?: layout_read(disks, v->ndisks, &l, &e);
	for (size_t i = 0; r == 0 && i < v->ndisks; i++)
		json_array_append_new(tables, ground_table(l, disks[i], i));
	for (size_t i = 0; r == 0 && i < MIN(l->nwarnings, WARNINGS_MAX); i++)
		json_array_append_new(i < l->ntable_warnings ? warnings : others, ground_text(l->warnings[i]));
	if (r < 0)
		json_array_append_new(others, ground_text(e.msg));
	for (size_t i = 0; i < v->ndisks; i++)
		disk_close(disks[i]);
	json_object_set_new(out, "tables", tables);
	json_object_set_new(out, "table_warnings", warnings);
	json_object_set_new(out, "other_warnings", others);
}

/* ---- filesystems ---- */

/* The last lines a program says and its status; it has half an hour. */
static int ground_run(const char *const words[3], const char *device, char **ret_said, int *ret_status, struct err *e)
{
	const char *const argv[] = {"bash",
				    "-c",
				    "timeout -k 10 1800 \"$@\" 2>&1 | tail -n 4 | cut -c1-300\n"
				    "echo \"status ${PIPESTATUS[0]}\"",
				    "bash",
				    words[0],
				    words[1],
				    words[2],
				    device,
				    NULL};
	_cleanup_free_ char *text = NULL;
	char *status;
	int r = proc_run(argv, SAID_MAX, &text, e);

	if (r < 0)
		return r;
	status = strstr(text, "status ");
	for (char *next = status; next; next = strstr(next + 1, "status "))
		status = next;
	if (!status)
		return err_set(e, -EIO, "'%s' could not be run", words[0]);
	*ret_status = atoi(status + strlen("status "));
	*status = '\0';
	*ret_said = take_ptr(&text);
	return 0;
}

/* The journal of a copy of a running system is full; who only looks would take that for damage. */
static int ground_replay(const struct guest_volume *v, const char *at)
{
	const char *type = str_starts(v->fstype, "ext") ? "ext4" : v->fstype;

	if (mount(v->device, at, type, MS_RDONLY | MS_NOATIME | MS_NODEV | MS_NOEXEC | MS_NOSUID, NULL) < 0)
		return -errno;
	return umount2(at, UMOUNT_NOFOLLOW) < 0 ? -errno : 0;
}

/* Does the program say by its status that it found errors? Others have it for whatever went wrong. */
static bool ground_found_errors(const char *program, int status)
{
	if (strcmp(program, "e2fsck") == 0)
		return status < 64 && status & 4;
	return strcmp(program, "xfs_repair") == 0 && status == 1;
}

static json_t *ground_filesystem(const struct guest_volume *v, const char *at, const char *const words[3])
{
	_cleanup_free_ char *said = NULL;
	struct err e = {0};
	int mounted = ground_replay(v, at), status = 0;
	int r = ground_run(words, v->device, &said, &status, &e);
	bool timed_out = status == 124 || status == 137;
	const char *state = r == 0 && ground_found_errors(words[0], status) ? "damaged"
			    : r < 0 || status || mounted < 0                ? "unknown"
									    : "clean";
	json_t *o = json_pack("{s:s, s:s, s:s, s:s, s:b}", "device", v->mapper[0] ? v->mapper : v->device, "fstype",
			      v->fstype, "uuid", v->uuid, "state", state, "mounts", mounted == 0);

	if (o && strcmp(state, "clean") != 0)
		json_object_set_new(o, "said",
				    ground_text(r < 0           ? e.msg
						: timed_out     ? "it took too long"
						: said && *said ? said
						: mounted < 0   ? strerror(-mounted)
								: "the program that checks it failed"));
	return o;
}

static void ground_filesystems(const struct guest_volumes *v, const char *at, json_t *out)
{
	static const struct {
		const char *type, *words[3];
	} known[] = {{"ext", {"e2fsck", "-f", "-n"}},
		     {"xfs", {"xfs_repair", "-n", "-P"}},
		     {"btrfs", {"btrfs", "check", "--readonly"}}};
	json_t *list = json_array();

	for (size_t i = 0; i < v->n; i++)
		for (size_t k = 0; k < ARRAY_SIZE(known); k++)
			if (str_starts(v->v[i].fstype, known[k].type))
				json_array_append_new(list, ground_filesystem(&v->v[i], at, known[k].words));
	json_object_set_new(out, "filesystems", list);
}

/* Volume groups that lack a disk. */
static void ground_groups(json_t *out)
{
	const char *const argv[] = {"vgs", "--noheadings", "--separator", " ", "-o", "vg_name,vg_missing_pv_count",
				    NULL};
	_cleanup_free_ char *text = NULL;
	json_t *missing = json_array();
	struct guest_span rest, line, name, count;
	struct err e = {0};

	if (proc_run(argv, SAID_MAX, &text, &e) < 0) {
		json_object_set_new(out, "groups_said", ground_text(e.msg));
	} else {
		rest = (struct guest_span){text, strlen(text)};
		while (guest_next_line(&rest, &line))
			if (guest_next_word(&line, &name) && guest_next_word(&line, &count) &&
			    !guest_span_is(count, "0"))
				json_array_append_new(missing, json_stringn(name.s, name.n));
	}
	json_object_set_new(out, "missing", missing);
}

json_t *guest_ground_look(const struct guest_volumes *v, const char *at)
{
	json_t *out = json_object();

	if (!out)
		return NULL;
	guest_ground_tables(v, out);
	ground_groups(out);
	ground_filesystems(v, at, out);
	return out;
}

/* ---- why there is no system ---- */

static bool ground_any(const json_t *ground, const char *list, const char *key)
{
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(ground, list), i, o) if (json_is_true(json_object_get(o, key))) return true;
	return false;
}

static bool ground_all_zero(const json_t *ground)
{
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(ground, "tables"), i,
			   o) if (!json_is_true(json_object_get(o, "zero"))) return false;
	return json_array_size(json_object_get(ground, "tables")) > 0;
}

static bool ground_holds(const struct guest_volumes *v, const char *const *types)
{
	for (size_t i = 0; i < v->n; i++)
		for (const char *const *t = types; *t; t++)
			if (strcmp(v->v[i].fstype, *t) == 0)
				return true;
	return false;
}

static bool ground_is_damaged(const json_t *ground)
{
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(ground, "filesystems"), i,
			   o) if (strcmp(json_string_value(json_object_get(o, "state")) ?: "", "damaged") ==
				  0) return true;
	return json_array_size(json_object_get(ground, "table_warnings")) > 0;
}

const char *guest_ground_kind(const json_t *ground, const struct guest_volumes *v, const char **ret_text,
			      const char **ret_remedy)
{
	static const char *const luks[] = {"crypto_LUKS", NULL}, *const ntfs[] = {"ntfs", "BitLocker", NULL},
				 *const lvm[] = {"LVM2_member", NULL}, *const raid[] = {"linux_raid_member", NULL};
	const struct {
		bool is;
		const char *kind, *text, *remedy;
	} kinds[] = {
	    {ground_any(ground, "tables", "iso"), "iso", "this is a CD or DVD (ISO 9660), not the disk of a system",
	     "install the system from it on a disk, and take that"},
	    {ground_all_zero(ground), "empty", "the disks are empty", "copy the disk that holds the system"},
	    {ground_any(ground, "tables", "windows") || ground_holds(v, ntfs), "windows",
	     "the disks hold Windows, which is not supported", "migrate Linux systems only"},
	    {ground_holds(v, luks), "encrypted",
	     "the system is encrypted: it can't be looked into, and asks for a passphrase at each boot",
	     "decrypt it on the source, or migrate it with its key in the initramfs"},
	    {json_array_size(json_object_get(ground, "missing")) > 0, "incomplete",
	     "a volume group of LVM lacks a disk", "copy all disks of the volume group"},
	    {ground_is_damaged(ground), "broken",
	     "the partition table or a filesystem is damaged, and no system can be read",
	     "check the filesystems on the source and copy it again"},
	    {ground_holds(v, raid), "incomplete", "an array lacks a disk", "copy all disks of the array"},
	    {ground_holds(v, lvm), "incomplete", "the volume groups of LVM hold no system",
	     "copy all disks of the server"},
	    {true, "no_system", "no Linux system is on the disks", "copy the disk that holds the system"},
	};

	for (size_t i = 0;; i++)
		if (kinds[i].is) {
			*ret_text = kinds[i].text;
			*ret_remedy = kinds[i].remedy;
			return kinds[i].kind;
		}
}
