/*
 * Sets of a domain. Which one is in use follows from the files its definition names, and from nothing else; what else
 * is known of sets stands in our element of its metadata:
 *
 *   <replant:instance id="...">
 *     <replant:set name="..." image="..." on="..." disks="2"/>
 *     <replant:original> the <disk> elements that an existing domain had </replant:original>
 *   </replant:instance>
 *
 * A set is exchanged by one definition that changes both, which libvirt does as a whole or not at all.
 */
#include "provider/libvirt_int.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/id.h"
#include "base/jsn.h"
#include "base/str.h"

#define X(s) ((const xmlChar *)(s))

int libvirt_set_check_name(const char *set, struct err *e)
{
	size_t n = strlen(set);

	if (n == 0 || n >= HYPERVISOR_SET_MAX || strspn(set, "abcdefghijklmnopqrstuvwxyz0123456789-_") != n)
		return err_set(e, -EINVAL, "'%.64s' is no name of a set", set);
	if (strcmp(set, LIBVIRT_ORIGINAL) == 0)
		return err_set(e, -EPERM, "the domain's original disks are left alone");
	return 0;
}

/* ---- what is known ---- */

xmlNodePtr libvirt_set_entry(xmlNodePtr mark, const char *set)
{
	for (xmlNodePtr n = libvirt_xml_first(mark, "set"); n; n = libvirt_xml_next(n, "set"))
		if (libvirt_xml_attr_is(n, "name", set))
			return n;
	return NULL;
}

static size_t entry_disks(xmlNodePtr entry)
{
	char text[16];
	uint64_t n = 0;

	if (libvirt_xml_attr(entry, "disks", text, sizeof(text)))
		str_u64(text, 1, LOCAL_DISKS_MAX, &n);
	return n;
}

void libvirt_set_record(xmlNodePtr domain, const char *set, const char *on, const char *image, size_t disks,
			bool pending)
{
	xmlNodePtr mark = libvirt_domain_need_mark(domain), n = libvirt_set_entry(mark, set);
	char number[16];

	if (!n) {
		snprintf(number, sizeof(number), "%zu", disks);
		n = libvirt_xml_add(mark, "set", NULL, "name", set, "disks", number, NULL);
		if (n && on)
			xmlNewProp(n, X("on"), X(on));
		if (n && image)
			xmlNewProp(n, X("image"), X(image));
	}
	xmlUnsetProp(n, X("pending"));
	if (pending)
		xmlNewProp(n, X("pending"), X("yes"));
}

static size_t count_disks(xmlNodePtr domain)
{
	size_t n = 0;

	for (xmlNodePtr d = libvirt_domain_disk(domain); d; d = libvirt_domain_disk_next(d))
		n++;
	return n;
}

static xmlNodePtr originals(xmlNodePtr domain)
{
	return libvirt_xml_first(libvirt_domain_mark(domain), "original");
}

/* Are the disks those that were kept? By what they stand on. */
static bool are_original(xmlNodePtr domain)
{
	xmlNodePtr d = libvirt_domain_disk(domain), kept = libvirt_xml_first(originals(domain), "disk");
	char a[PATH_MAX], b[PATH_MAX];

	if (!originals(domain))
		return d && !libvirt_xml_attr(libvirt_domain_mark(domain), "id", a, sizeof(a));
	for (; d && kept; d = libvirt_domain_disk_next(d), kept = libvirt_xml_next(kept, "disk"))
		if (libvirt_domain_source(d, a, sizeof(a), NULL) < 0 ||
		    libvirt_domain_source(kept, b, sizeof(b), NULL) < 0 || strcmp(a, b) != 0)
			return false;
	return !d && !kept;
}

/* Which of the set's disks it is: libvirt orders them by their names, and one that came later may be before others. */
static size_t disk_number(const char *ref, xmlNodePtr disk, size_t place)
{
	char path[PATH_MAX], set[HYPERVISOR_SET_MAX];
	size_t n;

	return libvirt_domain_source(disk, path, sizeof(path), NULL) == 0 && libvirt_volume_parse(ref, path, set, &n)
		   ? n
		   : place;
}

void libvirt_set_in_use(const char *ref, xmlNodePtr domain, char *ret)
{
	char path[PATH_MAX], set[HYPERVISOR_SET_MAX] = "", first[HYPERVISOR_SET_MAX] = "";
	uint64_t seen = 0, n = 0;
	size_t disk;
	bool whole = true;

	for (xmlNodePtr d = libvirt_domain_disk(domain); d && whole; d = libvirt_domain_disk_next(d), n++) {
		whole = libvirt_domain_source(d, path, sizeof(path), NULL) == 0 &&
			libvirt_volume_parse(ref, path, set, &disk) && (!n || strcmp(set, first) == 0);
		if (whole)
			seen |= UINT64_C(1) << disk;
		snprintf(first, sizeof(first), "%s", set);
	}
	/* All from the first on, each once. */
	whole = whole && n && n <= 64 && seen == (n == 64 ? UINT64_MAX : (UINT64_C(1) << n) - 1);
	snprintf(ret, HYPERVISOR_SET_MAX, "%s", whole ? first : are_original(domain) ? LIBVIRT_ORIGINAL : "");
}

static json_int_t set_allocated(virStoragePoolPtr pool, const char *ref, const char *set, size_t disks)
{
	char name[LIBVIRT_NAME_MAX];
	virStorageVolInfo info;
	json_int_t sum = 0;

	for (size_t i = 0; pool && i < disks; i++) {
		_cleanup_vol_ virStorageVolPtr vol = NULL;

		libvirt_volume_name(ref, set, i, name);
		vol = virStorageVolLookupByName(pool, name);
		if (vol && virStorageVolGetInfo(vol, &info) == 0)
			sum += (json_int_t)info.allocation;
	}
	return sum;
}

static json_t *text_or_null(xmlNodePtr node, const char *name)
{
	char buf[256];

	return libvirt_xml_attr(node, name, buf, sizeof(buf)) ? json_string(buf) : json_null();
}

json_t *libvirt_sets_json(virConnectPtr conn, const struct libvirt *lv, const char *ref, xmlNodePtr domain)
{
	_cleanup_pool_ virStoragePoolPtr pool = virStoragePoolLookupByName(conn, lv->pool);
	char used[HYPERVISOR_SET_MAX], name[HYPERVISOR_SET_MAX];
	json_t *a = json_array();

	libvirt_set_in_use(ref, domain, used);
	if (strcmp(used, LIBVIRT_ORIGINAL) == 0 || originals(domain))
		json_array_append_new(
		    a, json_pack("{s:s, s:n, s:n, s:i}", "set", LIBVIRT_ORIGINAL, "on", "image", "allocated", 0));
	for (xmlNodePtr n = libvirt_xml_first(libvirt_domain_mark(domain), "set"); n; n = libvirt_xml_next(n, "set")) {
		if (!libvirt_xml_attr(n, "name", name, sizeof(name)) ||
		    (libvirt_xml_attr_is(n, "pending", "yes") && strcmp(name, used) != 0))
			continue;
		json_array_append_new(a, json_pack("{s:s, s:o, s:o, s:I}", "set", name, "on", text_or_null(n, "on"),
						   "image", text_or_null(n, "image"), "allocated",
						   set_allocated(pool, ref, name, entry_disks(n))));
	}
	return a;
}

/* ---- what a set's disks are ---- */

struct set_file {
	char path[PATH_MAX];
	char format[16];
};

static int file_of_disk(xmlNodePtr disk, struct set_file *f, struct err *e)
{
	if (!libvirt_xml_attr(libvirt_xml_first(disk, "driver"), "type", f->format, sizeof(f->format)))
		snprintf(f->format, sizeof(f->format), "raw"); /* as libvirt takes it */
	return libvirt_domain_source(disk, f->path, sizeof(f->path), e);
}

static int file_of_volume(virStoragePoolPtr pool, const char *name, struct set_file *f, struct err *e)
{
	_cleanup_vol_ virStorageVolPtr vol = NULL;
	_cleanup_free_ char *path = NULL;
	int r = libvirt_volume(pool, name, &vol, e);

	if (r < 0)
		return r;
	path = virStorageVolGetPath(vol);
	if (!path || strlen(path) >= sizeof(f->path))
		return libvirt_fail(e, "volume '%s' has no path", name);
	snprintf(f->path, sizeof(f->path), "%s", path);
	snprintf(f->format, sizeof(f->format), "qcow2");
	return 0;
}

/* Of a set that there is. *ret: an array, the caller frees. */
static int set_files(struct libvirt *lv, virConnectPtr conn, const char *ref, xmlNodePtr domain, const char *set,
		     struct set_file **ret, size_t *ret_n, struct err *e)
{
	bool original = strcmp(set, LIBVIRT_ORIGINAL) == 0;
	xmlNodePtr entry = libvirt_set_entry(libvirt_domain_mark(domain), set), kept = originals(domain), disk;
	_cleanup_pool_ virStoragePoolPtr pool = NULL;
	_cleanup_free_ struct set_file *f = NULL;
	size_t n = original ? 0 : entry_disks(entry);
	char name[LIBVIRT_NAME_MAX], path[PATH_MAX];
	int r = 0;

	if (!original && (!n || libvirt_xml_attr_is(entry, "pending", "yes")))
		return err_set(e, -ENOENT, "the domain has no set '%s'", set);
	disk = original ? (kept ? libvirt_xml_first(kept, "disk") : libvirt_domain_disk(domain)) : NULL;
	f = calloc(LOCAL_DISKS_MAX, sizeof(*f));
	if (!f)
		return err_nomem(e);
	for (; disk && r == 0; disk = kept ? libvirt_xml_next(disk, "disk") : libvirt_domain_disk_next(disk)) {
		if (n == LOCAL_DISKS_MAX)
			return err_set(e, -E2BIG, "the domain has more than %d disks", LOCAL_DISKS_MAX);
		r = file_of_disk(disk, &f[n++], e);
	}
	if (r == 0 && !original)
		r = libvirt_pool(lv, conn, &pool, path, sizeof(path), e);
	for (size_t i = 0; !original && i < n && r == 0; i++) {
		libvirt_volume_name(ref, set, i, name);
		r = file_of_volume(pool, name, &f[i], e);
	}
	if (r == 0 && !n)
		r = err_set(e, -ENOENT, "the domain has no disks");
	if (r < 0)
		return r;
	*ret = take_ptr(&f);
	*ret_n = n;
	return 0;
}

static void disk_target(xmlNodePtr disk, char *buf, size_t size)
{
	libvirt_xml_attr(libvirt_xml_first(disk, "target"), "dev", buf, size);
}

/* The cdrom or floppy that comes before it; "" for none. */
static void disk_behind(xmlNodePtr domain, xmlNodePtr disk, char *buf, size_t size)
{
	xmlNodePtr counted = libvirt_domain_disk(domain);

	*buf = '\0';
	for (xmlNodePtr d = libvirt_xml_at(domain, "devices/disk"); d && d != disk; d = libvirt_xml_next(d, "disk"))
		if (d == counted)
			counted = libvirt_domain_disk_next(d);
		else
			disk_target(d, buf, size);
}

/* Before its disks are first exchanged; needs them to be what can be put back. */
static int keep_originals(const char *ref, xmlNodePtr domain, struct err *e)
{
	char used[HYPERVISOR_SET_MAX], path[PATH_MAX], behind[32];
	xmlNodePtr kept, old = originals(domain);
	int r = 0;

	libvirt_set_in_use(ref, domain, used);
	if (strcmp(used, LIBVIRT_ORIGINAL) != 0)
		return 0;
	for (xmlNodePtr d = libvirt_domain_disk(domain); d && r == 0; d = libvirt_domain_disk_next(d))
		r = libvirt_domain_source(d, path, sizeof(path), e);
	if (r < 0)
		return r;
	/* Kept at an earlier exchange: by now they may be of another format or on another bus. */
	if (old) {
		xmlUnlinkNode(old);
		xmlFreeNode(old);
	}
	kept = libvirt_xml_add(libvirt_domain_need_mark(domain), "original", NULL, NULL);
	for (xmlNodePtr d = libvirt_domain_disk(domain); d; d = libvirt_domain_disk_next(d)) {
		xmlNodePtr copy = libvirt_xml_copy(d, domain->doc);

		if (!copy || !kept || !xmlAddChild(kept, copy))
			return err_nomem(e);
		disk_behind(domain, d, behind, sizeof(behind));
		xmlNewProp(copy, X("behind"), X(behind));
	}
	return 0;
}

/* ---- exchange ---- */

/* What a snapshot that was cut off noted: it came about when it is in use, else it never did. True: the mark has
 * changed. Where nobody knows what is in use it stays. */
static bool settle(xmlNodePtr domain, const char *used)
{
	xmlNodePtr n = *used ? libvirt_xml_first(libvirt_domain_mark(domain), "set") : NULL, next;
	bool changed = false;

	for (; n; n = next) {
		next = libvirt_xml_next(n, "set");
		if (!libvirt_xml_attr_is(n, "pending", "yes"))
			continue;
		changed = true;
		if (libvirt_xml_attr_is(n, "name", used)) {
			xmlUnsetProp(n, X("pending"));
		} else {
			xmlUnlinkNode(n);
			xmlFreeNode(n);
		}
	}
	return changed;
}

/* A disk of ours in the place of `like` (NULL: a further one). What says where the guest sees it stays; what says what
 * it stands on is ours. */
static xmlNodePtr make_disk(xmlDocPtr doc, xmlNodePtr like, const struct set_file *f, const char *bus, size_t i)
{
	static const char *const stays[] = {"target", "boot", "serial", "wwn", "iotune", "address"};
	xmlNodePtr d = xmlNewDocNode(doc, NULL, X("disk"), NULL), n;
	char name[16];

	if (!d)
		return NULL;
	xmlNewProp(d, X("type"), X("file"));
	xmlNewProp(d, X("device"), X("disk"));
	libvirt_xml_add(d, "driver", NULL, "name", "qemu", "type", f->format, "discard", "unmap", NULL);
	libvirt_xml_add(d, "source", NULL, "file", f->path, NULL);
	for (size_t k = 0; like && k < ARRAY_SIZE(stays); k++)
		if ((n = libvirt_xml_first(like, stays[k])))
			xmlAddChild(d, libvirt_xml_copy(n, doc));
	if (!like) {
		libvirt_domain_target(bus, i, name, sizeof(name));
		libvirt_xml_add(d, "target", NULL, "dev", name, "bus", bus, NULL);
	}
	return d;
}

/* The highest of these disks on the bus, by name; -1: none. */
static int last_target(xmlNodePtr disk, const char *bus)
{
	const char *prefix = libvirt_domain_prefix(bus);
	char name[16];
	int last = -1;

	for (; disk; disk = libvirt_xml_next(disk, "disk")) {
		int n = 0;

		if (!libvirt_xml_attr(libvirt_xml_first(disk, "target"), "dev", name, sizeof(name)) ||
		    !str_starts(name, prefix))
			continue;
		for (const char *p = name + strlen(prefix); *p >= 'a' && *p <= 'z' && n < 1000; p++)
			n = n * 26 + *p - 'a' + 1;
		last = MAX(last, n - 1);
	}
	return last;
}

/* A further disk comes behind all that the domain has, cdroms and what is put back one day among it: the first is the
 * one that is booted. */
static size_t free_target(xmlNodePtr domain, const char *bus)
{
	return (size_t)(1 + MAX(last_target(libvirt_xml_at(domain, "devices/disk"), bus),
				last_target(libvirt_xml_first(originals(domain), "disk"), bus)));
}

static xmlNodePtr disk_called(xmlNodePtr domain, const char *name)
{
	char target[32];

	for (xmlNodePtr d = libvirt_xml_at(domain, "devices/disk"); d; d = libvirt_xml_next(d, "disk")) {
		disk_target(d, target, sizeof(target));
		if (strcmp(target, name) == 0)
			return d;
	}
	return NULL;
}

/* The present ones go, and the others come where the first was; one that was kept comes behind the cdrom that it was
 * behind, or behind the last one that came there. */
static void replace_disks(xmlNodePtr domain, xmlNodePtr *fresh, size_t n)
{
	xmlNodePtr devices = libvirt_xml_need(domain, "devices"), old = libvirt_domain_disk(domain), place = NULL, at;
	char behind[32], last[32] = "";

	/* Before all disks, or where other devices begin. */
	at = old ? xmlAddPrevSibling(old, xmlNewDocText(domain->doc, X(" ")))
		 : xmlAddChild(devices, xmlNewDocText(domain->doc, X(" ")));
	for (; old; old = libvirt_domain_disk(domain)) {
		xmlUnlinkNode(old);
		xmlFreeNode(old);
	}
	for (size_t i = 0; i < n; i++) {
		bool kept = libvirt_xml_attr(fresh[i], "behind", behind, sizeof(behind));

		xmlUnsetProp(fresh[i], X("behind"));
		if (kept && strcmp(behind, last) != 0)
			place = disk_called(domain, behind);
		if (kept)
			snprintf(last, sizeof(last), "%s", behind);
		if (!place)
			place = at;
		if (place)
			xmlAddNextSibling(place, fresh[i]);
		else
			xmlAddChild(devices, fresh[i]);
		place = fresh[i];
	}
}

/* The new ones are modelled on what the domain had first, so that going there and back loses nothing. */
static int exchange(struct libvirt *lv, virConnectPtr conn, const char *ref, xmlNodePtr domain, const char *set,
		    struct err *e)
{
	xmlNodePtr kept = libvirt_xml_first(originals(domain), "disk"), like, fresh[LOCAL_DISKS_MAX] = {0};
	bool original = strcmp(set, LIBVIRT_ORIGINAL) == 0;
	_cleanup_free_ struct set_file *f = NULL;
	size_t n = 0, next;
	char bus[32];
	int r = set_files(lv, conn, ref, domain, set, &f, &n, e);

	if (r < 0)
		return r;
	libvirt_domain_bus(domain, bus, sizeof(bus));
	like = kept ?: libvirt_domain_disk(domain);
	next = free_target(domain, bus);
	for (size_t i = 0; i < n; i++) {
		fresh[i] = original ? libvirt_xml_copy(like, domain->doc)
				    : make_disk(domain->doc, like, &f[i], bus, like ? i : next++);
		if (!fresh[i]) {
			while (i)
				xmlFreeNode(fresh[--i]);
			return err_nomem(e);
		}
		if (like)
			like = kept ? libvirt_xml_next(like, "disk") : libvirt_domain_disk_next(like);
	}
	replace_disks(domain, fresh, n);
	return 0;
}

static int check_exchange(virDomainPtr dom, struct err *e)
{
	if (virDomainIsActive(dom) != 0)
		return err_set(e, -EBUSY, "the instance is running; its disks are exchanged while it is off");
	if (virDomainIsPersistent(dom) != 1)
		return err_set(e, -ENOTSUP, "the domain is transient; it has no definition that could be changed");
	/* What was in memory belongs to the other disks. */
	if (virDomainHasManagedSaveImage(dom, 0) != 0)
		return err_set(e, -EBUSY,
			       "the domain's memory was saved, and belongs to the disks it has; start it and shut it "
			       "down, or drop that ('virsh managedsave-remove')");
	return 0;
}

static int define_doc(virDomainPtr dom, xmlDocPtr doc, struct err *e)
{
	_cleanup_domain_ virDomainPtr fresh = NULL;
	_cleanup_free_ char *text = NULL;
	int r = libvirt_xml_text(doc, &text, e);

	if (r < 0)
		return r;
	fresh = virDomainDefineXML(virDomainGetConnect(dom), text);
	return fresh ? 0 : libvirt_fail(e, "the domain can't be defined with other disks");
}

/* The set that stands on it, "" for none. */
static void find_on_top(xmlNodePtr domain, const char *set, char *ret)
{
	*ret = '\0';
	for (xmlNodePtr n = libvirt_xml_first(libvirt_domain_mark(domain), "set"); n; n = libvirt_xml_next(n, "set"))
		if (libvirt_xml_attr_is(n, "on", set))
			libvirt_xml_attr(n, "name", ret, HYPERVISOR_SET_MAX);
}

int libvirt_set_use(struct hypervisor *h, const char *ref, const char *set, struct err *e)
{
	struct libvirt *lv = libvirt_of(h);
	_cleanup_domain_ virDomainPtr dom = NULL;
	_cleanup_doc_ xmlDocPtr doc = NULL;
	char used[HYPERVISOR_SET_MAX], top[HYPERVISOR_SET_MAX];
	xmlNodePtr domain;
	int r = strcmp(set, LIBVIRT_ORIGINAL) == 0 ? 0 : libvirt_set_check_name(set, e);

	r = r ?: libvirt_domain(lv, ref, &dom, e);
	r = r ?: libvirt_domain_doc(dom, true, true, &doc, e);
	if (r < 0)
		return r;
	domain = xmlDocGetRootElement(doc);
	libvirt_set_in_use(ref, domain, used);
	/* Nothing to exchange, so that nothing can be in its way either: a way back ends here. */
	if (strcmp(used, set) == 0)
		return virDomainIsActive(dom) == 1 ? check_exchange(dom, e) : 0;
	r = check_exchange(dom, e);
	if (r < 0)
		return r;
	settle(domain, used);
	find_on_top(domain, set, top);
	if (*top)
		return err_set(e, -EBUSY, "set '%s' doesn't change any more, because '%s' stands on it; use a fork",
			       set, top);
	if (!*used && libvirt_domain_disk(domain))
		return err_set(e, -ESTALE,
			       "the domain's disks were changed by others ('virsh domblklist %s'); put back what was "
			       "there",
			       ref);
	r = keep_originals(ref, domain, e);
	r = r ?: exchange(lv, virDomainGetConnect(dom), ref, domain, set, e);
	r = r ?: define_doc(dom, doc, e);
	if (r == 0 && virDomainIsActive(dom) == 1)
		r = err_set(e, -EBUSY, "the instance was started by others meanwhile; stop it and try again");
	return r;
}

/* ---- forks and snapshots ---- */

static int fork_volumes(struct libvirt *lv, virConnectPtr conn, const char *ref, const struct set_file *f, size_t n,
			const char *set, struct err *e)
{
	_cleanup_pool_ virStoragePoolPtr pool = NULL;
	char name[LIBVIRT_NAME_MAX], path[PATH_MAX];
	int r = libvirt_volumes_drop(lv, conn, ref, set, e);

	r = r ?: libvirt_pool(lv, conn, &pool, path, sizeof(path), e);
	for (size_t i = 0; i < n && r == 0; i++) {
		_cleanup_vol_ virStorageVolPtr vol = NULL;

		libvirt_volume_name(ref, set, i, name);
		r = libvirt_volume_create(pool, name, 0, f[i].path, f[i].format, &vol, e);
	}
	return r;
}

/* A domain that runs must have what it is defined with: only then both are changed as one. */
static int used_now(virDomainPtr dom, const char *ref, xmlDocPtr defined, char *ret, struct err *e)
{
	_cleanup_doc_ xmlDocPtr live = NULL;
	char now[HYPERVISOR_SET_MAX];
	int r = libvirt_domain_doc(dom, false, false, &live, e);

	if (r < 0)
		return r;
	libvirt_set_in_use(ref, xmlDocGetRootElement(defined), ret);
	libvirt_set_in_use(ref, xmlDocGetRootElement(live), now);
	if (strcmp(ret, now) != 0)
		return err_set(e, -ESTALE,
			       "the domain runs with other disks than it is defined with; shut it down first");
	return 0;
}

static bool set_is_there(xmlNodePtr domain, const char *set)
{
	xmlNodePtr n = libvirt_set_entry(libvirt_domain_mark(domain), set);

	return n && !libvirt_xml_attr_is(n, "pending", "yes");
}

int libvirt_set_fork(struct hypervisor *h, const char *ref, const char *from, const char *set, struct err *e)
{
	struct libvirt *lv = libvirt_of(h);
	_cleanup_domain_ virDomainPtr dom = NULL;
	_cleanup_doc_ xmlDocPtr doc = NULL;
	_cleanup_free_ struct set_file *f = NULL;
	char used[HYPERVISOR_SET_MAX];
	xmlNodePtr domain;
	size_t n = 0;
	int r = libvirt_set_check_name(set, e);

	r = r ?: libvirt_domain(lv, ref, &dom, e);
	r = r ?: libvirt_domain_doc(dom, true, false, &doc, e);
	r = r ?: used_now(dom, ref, doc, used, e);
	if (r < 0)
		return r;
	domain = xmlDocGetRootElement(doc);
	settle(domain, used);
	if (set_is_there(domain, set))
		return 0;
	/* One that is off is started again, and would write below the fork. */
	if (strcmp(used, from) == 0)
		return err_set(e, -EBUSY, "set '%s' is in use and changes; make a snapshot", from);
	r = keep_originals(ref, domain, e);
	r = r ?: set_files(lv, virDomainGetConnect(dom), ref, domain, from, &f, &n, e);
	r = r ?: fork_volumes(lv, virDomainGetConnect(dom), ref, f, n, set, e);
	if (r < 0)
		return r;
	libvirt_set_record(domain, set, from, NULL, n, false);
	return libvirt_domain_save_mark(dom, doc, e);
}

static xmlNodePtr snapshot_disk(xmlNodePtr disks, xmlNodePtr disk, const char *path)
{
	char target[32];
	xmlNodePtr n;

	if (!libvirt_xml_attr(libvirt_xml_first(disk, "target"), "dev", target, sizeof(target)))
		return NULL;
	n = libvirt_xml_add(disks, "disk", NULL, "name", target, "snapshot", path ? "external" : "no", NULL);
	if (n && path) {
		libvirt_xml_add(n, "driver", NULL, "type", "qcow2", NULL);
		libvirt_xml_add(n, "source", NULL, "file", path, NULL);
	}
	return n;
}

/* Files that each of its disks is to go on in; cdroms stay out of it. */
static int snapshot_text(const char *ref, xmlNodePtr domain, const char *set, const char *dir, char **ret,
			 struct err *e)
{
	_cleanup_doc_ xmlDocPtr doc = xmlNewDoc(X("1.0"));
	xmlNodePtr root = doc ? xmlNewDocNode(doc, NULL, X("domainsnapshot"), NULL) : NULL, disks, counted;
	char name[LIBVIRT_NAME_MAX], path[PATH_MAX + LIBVIRT_NAME_MAX];
	size_t i = 0;

	if (!root)
		return err_nomem(e);
	xmlDocSetRootElement(doc, root);
	disks = libvirt_xml_add(root, "disks", NULL, NULL);
	counted = libvirt_domain_disk(domain);
	for (xmlNodePtr d = libvirt_xml_at(domain, "devices/disk"); d; d = libvirt_xml_next(d, "disk")) {
		bool ours = d == counted;

		libvirt_volume_name(ref, set, ours ? disk_number(ref, d, i) : 0, name);
		snprintf(path, sizeof(path), "%s/%s", dir, name);
		if (!snapshot_disk(disks, d, ours ? path : NULL))
			return err_set(e, -EPROTO, "a disk of the domain has no target");
		if (ours) {
			counted = libvirt_domain_disk_next(d);
			i++;
		}
	}
	return libvirt_xml_text(doc, ret, e);
}

static int snapshot_running(struct libvirt *lv, virDomainPtr dom, const char *ref, xmlDocPtr doc, const char *set,
			    struct err *e)
{
	const unsigned flags = VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY | VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC |
			       VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA;
	virConnectPtr conn = virDomainGetConnect(dom);
	_cleanup_pool_ virStoragePoolPtr pool = NULL;
	_cleanup_free_ char *text = NULL;
	virDomainSnapshotPtr snap;
	char dir[PATH_MAX];
	int r = libvirt_pool(lv, conn, &pool, dir, sizeof(dir), e);

	/* Files of one that didn't come about. Those in use can't be among them: the caller looked. */
	r = r ?: libvirt_volumes_drop(lv, conn, ref, set, e);
	r = r ?: snapshot_text(ref, xmlDocGetRootElement(doc), set, dir, &text, e);
	if (r < 0)
		return r;
	snap = virDomainSnapshotCreateXML(dom, text, flags);
	if (!snap)
		return libvirt_fail(e, "the running domain's disks can't be kept as they are");
	virDomainSnapshotFree(snap);
	virStoragePoolRefresh(pool, 0);
	return 0;
}

static int snapshot_off(struct libvirt *lv, virDomainPtr dom, const char *ref, xmlDocPtr doc, const char *used,
			const char *set, struct err *e)
{
	_cleanup_free_ struct set_file *f = NULL;
	xmlNodePtr domain = xmlDocGetRootElement(doc);
	size_t n = 0;
	int r = check_exchange(dom, e);

	r = r ?: set_files(lv, virDomainGetConnect(dom), ref, domain, used, &f, &n, e);
	r = r ?: fork_volumes(lv, virDomainGetConnect(dom), ref, f, n, set, e);
	if (r < 0)
		return r;
	libvirt_set_record(domain, set, used, NULL, n, false);
	r = exchange(lv, virDomainGetConnect(dom), ref, domain, set, e);
	return r ?: define_doc(dom, doc, e);
}

int libvirt_set_snapshot(struct hypervisor *h, const char *ref, const char *set, struct err *e)
{
	struct libvirt *lv = libvirt_of(h);
	_cleanup_domain_ virDomainPtr dom = NULL;
	_cleanup_doc_ xmlDocPtr doc = NULL;
	char used[HYPERVISOR_SET_MAX];
	xmlNodePtr domain, entry;
	bool on;
	int r = libvirt_set_check_name(set, e);

	r = r ?: libvirt_domain(lv, ref, &dom, e);
	if (r < 0)
		return r;
	on = virDomainIsActive(dom) == 1;
	r = libvirt_domain_doc(dom, true, !on, &doc, e);
	r = r ?: used_now(dom, ref, doc, used, e);
	if (r < 0)
		return r;
	domain = xmlDocGetRootElement(doc);
	entry = libvirt_set_entry(libvirt_domain_mark(domain), set);
	if (strcmp(used, set) == 0) {
		if (entry && !libvirt_xml_attr_is(entry, "pending", "yes"))
			return 0;
		xmlUnsetProp(entry, X("pending"));
		return entry ? libvirt_domain_save_mark(dom, doc, e) : 0;
	}
	settle(domain, used);
	if (set_is_there(domain, set))
		return err_set(e, -EEXIST, "there is a set '%s' already", set);
	if (!*used)
		return err_set(e, -ESTALE, "the domain has no disks, or others changed them ('virsh domblklist %s')",
			       ref);
	r = keep_originals(ref, domain, e);
	if (r == 0 && !on)
		return snapshot_off(lv, dom, ref, doc, used, set, e);
	/* Said before it is done: what is in use is found again by the files, what it stands on only by this. */
	libvirt_set_record(domain, set, used, NULL, count_disks(domain), true);
	r = r ?: libvirt_domain_save_mark(dom, doc, e);
	r = r ?: snapshot_running(lv, dom, ref, doc, set, e);
	if (r < 0)
		return r;
	libvirt_set_record(domain, set, used, NULL, 0, false);
	return libvirt_domain_save_mark(dom, doc, e);
}

/* ---- dropping ---- */

int libvirt_set_drop(struct hypervisor *h, const char *ref, const char *set, struct err *e)
{
	struct libvirt *lv = libvirt_of(h);
	_cleanup_conn_ virConnectPtr conn = NULL;
	_cleanup_domain_ virDomainPtr dom = NULL;
	_cleanup_doc_ xmlDocPtr doc = NULL;
	char top[HYPERVISOR_SET_MAX] = "", used[HYPERVISOR_SET_MAX];
	xmlNodePtr domain = NULL, entry = NULL;
	bool settled = false;
	struct err why = {0};
	int r = libvirt_set_check_name(set, e);

	r = r ?: libvirt_link(lv, &conn, e);
	if (r < 0)
		return r;
	/* Without the domain only its files are left. */
	r = libvirt_domain(lv, ref, &dom, &why);
	if (r < 0 && r != -ENOENT)
		return err_set(e, r, "%s", why.msg);
	r = dom ? libvirt_domain_doc(dom, virDomainIsActive(dom) != 1, false, &doc, e) : 0;
	if (r == 0 && doc) {
		domain = xmlDocGetRootElement(doc);
		libvirt_set_in_use(ref, domain, used);
		settled = settle(domain, used);
		find_on_top(domain, set, top);
		entry = libvirt_set_entry(libvirt_domain_mark(domain), set);
	}
	if (r == 0 && *top)
		r = err_set(e, -EBUSY, "set '%s' stands on set '%s'", top, set);
	r = r ?: libvirt_volumes_free(lv, conn, ref, set, e);
	if (r == 0 && entry) { /* first: half a set is none */
		xmlUnlinkNode(entry);
		xmlFreeNode(entry);
	}
	if (r == 0 && (entry || settled))
		r = libvirt_domain_save_mark(dom, doc, e);
	return r ?: libvirt_volumes_drop(lv, conn, ref, set, e);
}
