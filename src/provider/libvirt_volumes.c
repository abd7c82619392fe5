/*
 * Volumes, and how an image gets into them: made stand-alone on this host first, one disk at a time, then sent through
 * libvirt, so that it is the same for this host and for others. A set exists when the domain's metadata says so;
 * volumes without that are half a set, and whoever makes it again begins by removing them.
 */
#include "provider/libvirt_int.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/proc.h"
#include "base/str.h"

#define UPLOAD_CHUNK   (256u << 10)
#define UPLOAD_RESERVE (UINT64_C(256) << 20) /* stays free on this host */

struct upload {
	const struct provider_watch *w;
	double from, to; /* percent that this step goes through */
	double told;
};

/* ---- the pool ---- */

static int pool_check(virStoragePoolPtr pool, const char *name, char *path, size_t size, struct err *e)
{
	static const char *const kinds[] = {"dir", "fs", "netfs"};
	_cleanup_free_ char *text = virStoragePoolGetXMLDesc(pool, 0);
	_cleanup_doc_ xmlDocPtr doc = NULL;
	char type[32];
	bool known = false;
	xmlNodePtr root;
	int r;

	if (!text)
		return libvirt_fail(e, "storage pool '%s'", name);
	r = libvirt_xml_parse(text, &doc, e);
	if (r < 0)
		return r;
	root = xmlDocGetRootElement(doc);
	libvirt_xml_attr(root, "type", type, sizeof(type));
	for (size_t i = 0; i < ARRAY_SIZE(kinds); i++)
		known |= strcmp(type, kinds[i]) == 0;
	if (!known)
		return err_set(e, -ENOTSUP,
			       "storage pool '%s' is of type '%s'; the volumes must be files (dir, fs or netfs)", name,
			       type);
	if (!libvirt_xml_content(libvirt_xml_at(root, "target/path"), path, size) || *path != '/')
		return err_set(e, -EPROTO, "storage pool '%s' has no path", name);
	return 0;
}

int libvirt_pool(const struct libvirt *lv, virConnectPtr conn, virStoragePoolPtr *ret, char *path, size_t size,
		 struct err *e)
{
	_cleanup_pool_ virStoragePoolPtr pool = virStoragePoolLookupByName(conn, lv->pool);
	int r;

	if (!pool)
		return libvirt_fail(e, "storage pool '%s'", lv->pool);
	if (virStoragePoolIsActive(pool) != 1)
		return err_set(e, -ENOTCONN, "storage pool '%s' isn't started (virsh pool-start %s)", lv->pool,
			       lv->pool);
	r = pool_check(pool, lv->pool, path, size, e);
	if (r == 0)
		*ret = take_ptr(&pool);
	return r;
}

void libvirt_volume_name(const char *ref, const char *set, size_t i, char *buf)
{
	snprintf(buf, LIBVIRT_NAME_MAX, "replant-%.36s-%.48s-disk%zu.qcow2", ref, set, i);
}

bool libvirt_volume_parse(const char *ref, const char *path, char *set, size_t *ret_disk)
{
	const char *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path, *end = NULL, *p;
	char prefix[64], number[24];
	uint64_t n;

	snprintf(prefix, sizeof(prefix), "replant-%.36s-", ref);
	if (!str_starts(name, prefix) || !str_ends(name, ".qcow2"))
		return false;
	name += strlen(prefix);
	for (p = name; (p = strstr(p, "-disk")); p++)
		end = p;
	if (!end || end == name || end - name > HYPERVISOR_SET_MAX - 1)
		return false;
	snprintf(number, sizeof(number), "%.*s", (int)MIN(strlen(end + 5) - 6, sizeof(number) - 1), end + 5);
	if (str_u64(number, 0, LOCAL_DISKS_MAX - 1, &n) < 0)
		return false;
	snprintf(set, HYPERVISOR_SET_MAX, "%.*s", (int)(end - name), name);
	*ret_disk = n;
	return true;
}

int libvirt_volume(virStoragePoolPtr pool, const char *name, virStorageVolPtr *ret, struct err *e)
{
	*ret = virStorageVolLookupByName(pool, name);
	/* A snapshot makes files that the pool doesn't know of. */
	if (!*ret && virGetLastErrorCode() == VIR_ERR_NO_STORAGE_VOL && virStoragePoolRefresh(pool, 0) == 0)
		*ret = virStorageVolLookupByName(pool, name);
	return *ret ? 0 : libvirt_fail(e, "volume '%s'", name);
}

int libvirt_volume_create(virStoragePoolPtr pool, const char *name, uint64_t size, const char *backing,
			  const char *backing_format, virStorageVolPtr *ret, struct err *e)
{
	_cleanup_doc_ xmlDocPtr doc = xmlNewDoc((const xmlChar *)"1.0");
	xmlNodePtr root = doc ? xmlNewDocNode(doc, NULL, (const xmlChar *)"volume", NULL) : NULL, n;
	_cleanup_free_ char *text = NULL;
	char bytes[24];
	int r;

	if (!root)
		return err_nomem(e);
	xmlDocSetRootElement(doc, root);
	libvirt_xml_add(root, "name", name, NULL);
	snprintf(bytes, sizeof(bytes), "%llu", (unsigned long long)size);
	if (size)
		libvirt_xml_add(root, "capacity", bytes, "unit", "bytes", NULL);
	n = libvirt_xml_add(root, "target", NULL, NULL);
	libvirt_xml_add(n, "format", NULL, "type", "qcow2", NULL);
	if (backing) {
		n = libvirt_xml_add(root, "backingStore", NULL, NULL);
		libvirt_xml_add(n, "path", backing, NULL);
		libvirt_xml_add(n, "format", NULL, "type", backing_format, NULL);
	}
	r = libvirt_xml_text(doc, &text, e);
	if (r < 0)
		return r;
	*ret = virStorageVolCreateXML(pool, text, 0);
	return *ret ? 0 : libvirt_fail(e, "volume '%s' can't be made", name);
}

/* ---- what is in use ---- */

static bool text_names(const char *text, const char *ref, const char *set)
{
	char prefix[LIBVIRT_NAME_MAX];

	if (set)
		snprintf(prefix, sizeof(prefix), "/replant-%.36s-%.48s-disk", ref, set);
	else
		snprintf(prefix, sizeof(prefix), "/replant-%.36s-", ref);
	return text && strstr(text, prefix);
}

static int check_domains(virConnectPtr conn, const char *ref, const char *set, struct err *e)
{
	virDomainPtr *all = NULL;
	int n = virConnectListAllDomains(conn, &all, 0), r = 0;

	if (n < 0)
		return libvirt_fail(e, "the host's domains can't be listed");
	for (int i = 0; i < n; i++) {
		_cleanup_free_ char *now = r == 0 ? virDomainGetXMLDesc(all[i], 0) : NULL;
		_cleanup_free_ char *later = r == 0 ? virDomainGetXMLDesc(all[i], VIR_DOMAIN_XML_INACTIVE) : NULL;

		/* One that can't be read has just gone, or can't be judged. */
		if (r == 0 && (!now || !later) && virGetLastErrorCode() != VIR_ERR_NO_DOMAIN)
			r = libvirt_fail(e, "what domain '%s' uses can't be read", virDomainGetName(all[i]));
		if (r == 0 && (text_names(now, ref, set) || text_names(later, ref, set)))
			r = err_set(e, -EBUSY, "domain '%s' uses set '%s'", virDomainGetName(all[i]), set ?: "any");
		virDomainFree(all[i]);
	}
	free(all);
	return r;
}

typedef int (*volume_fn)(virStorageVolPtr vol, bool own, const char *ref, const char *set, struct err *e);

static int check_volume(virStorageVolPtr vol, bool own, const char *ref, const char *set, struct err *e)
{
	_cleanup_free_ char *text = own ? NULL : virStorageVolGetXMLDesc(vol, 0);

	if (!own && !text && virGetLastErrorCode() != VIR_ERR_NO_STORAGE_VOL)
		return libvirt_fail(e, "volume '%s' can't be read", virStorageVolGetName(vol));
	if (text_names(text, ref, set))
		return err_set(e, -EBUSY, "volume '%s' stands on set '%s'", virStorageVolGetName(vol), set ?: "any");
	return 0;
}

static int drop_volume(virStorageVolPtr vol, bool own, const char *ref, const char *set, struct err *e)
{
	if (own && virStorageVolDelete(vol, 0) < 0 && virGetLastErrorCode() != VIR_ERR_NO_STORAGE_VOL)
		return libvirt_fail(e, "volume '%s' can't be deleted", virStorageVolGetName(vol));
	return 0;
}

/* *ret_own: how many of the set there are. */
static int for_volumes(struct libvirt *lv, virConnectPtr conn, const char *ref, const char *set, volume_fn each,
		       size_t *ret_own, struct err *e)
{
	_cleanup_pool_ virStoragePoolPtr pool = NULL;
	char path[PATH_MAX], of[HYPERVISOR_SET_MAX];
	virStorageVolPtr *all = NULL;
	int n, r = libvirt_pool(lv, conn, &pool, path, sizeof(path), e);
	size_t disk;

	*ret_own = 0;
	if (r < 0)
		return r;
	virStoragePoolRefresh(pool, 0); /* fails while another volume is written; then they are known as they are */
	n = virStoragePoolListAllVolumes(pool, &all, 0);
	if (n < 0)
		return libvirt_fail(e, "the volumes of pool '%s' can't be listed", lv->pool);
	for (int i = 0; i < n; i++) {
		bool own = libvirt_volume_parse(ref, virStorageVolGetName(all[i]), of, &disk) &&
			   (!set || strcmp(of, set) == 0);

		*ret_own += own;
		r = r ?: each(all[i], own, ref, set, e);
		virStorageVolFree(all[i]);
	}
	free(all);
	return r;
}

int libvirt_volumes_free(struct libvirt *lv, virConnectPtr conn, const char *ref, const char *set, struct err *e)
{
	size_t own;
	int r = check_domains(conn, ref, set, e);

	return r ?: for_volumes(lv, conn, ref, set, check_volume, &own, e);
}

static int any_volume(virStorageVolPtr vol, bool own, const char *ref, const char *set, struct err *e)
{
	return 0;
}

int libvirt_volumes_drop(struct libvirt *lv, virConnectPtr conn, const char *ref, const char *set, struct err *e)
{
	size_t own;
	int r = for_volumes(lv, conn, ref, set, any_volume, &own, e);

	if (r < 0 || !own)
		return r;
	r = libvirt_volumes_free(lv, conn, ref, set, e);
	return r ?: for_volumes(lv, conn, ref, set, drop_volume, &own, e);
}

/* ---- an image's disk, stand-alone ---- */

static void upload_percent(struct upload *u, double part)
{
	double percent = u->from + (u->to - u->from) * part;
	_cleanup_json_ json_t *event = NULL;

	if (percent < u->told + 1 && (percent < 100 || u->told >= 100))
		return;
	u->told = percent;
	event = json_pack("{s:s, s:f}", "event", "set", "percent", percent);
	local_tell(u->w, event);
}

static void convert_event(void *arg, const json_t *event)
{
	upload_percent(arg, json_number_value(json_object_get(event, "percent")) / 100);
}

static bool convert_cancelled(void *arg)
{
	return local_cancelled(((struct upload *)arg)->w);
}

/* How big the stand-alone file can become, by qemu-img. */
static int convert_measure(const struct local *l, const char *from, const char *format, uint64_t *ret, struct err *e)
{
	const char *const argv[] = {"qemu-img", "measure", "--output=json", "-f", format, "-O", "qcow2", from, NULL};
	_cleanup_free_ char *text = NULL;
	_cleanup_json_ json_t *o = NULL;
	int r = proc_run_as(argv, l->user, 65536, &text, e);

	r = r ?: jsn_parse(text, strlen(text), 65536, &o, e);
	return r ?: jsn_get_u64(o, "required", true, 0, INT64_MAX, ret, e);
}

static int check_room(const struct local *l, virStoragePoolPtr pool, uint64_t need, struct err *e)
{
	virStoragePoolInfo info;
	struct statvfs fs;
	char a[16], b[16];

	if (statvfs(l->dir, &fs) < 0)
		return err_sys(e, "cannot look at '%s'", l->dir);
	if ((uint64_t)fs.f_bavail * fs.f_frsize < need + UPLOAD_RESERVE)
		return err_set(e, -ENOSPC, "the disk needs up to %s on its way, and '%s' has %s free (make room there)",
			       str_bytes(need, a, sizeof(a)), l->dir,
			       str_bytes((uint64_t)fs.f_bavail * fs.f_frsize, b, sizeof(b)));
	if (virStoragePoolGetInfo(pool, &info) < 0)
		return libvirt_fail(e, "storage pool '%s'", virStoragePoolGetName(pool));
	if (info.available < need)
		return err_set(e, -ENOSPC,
			       "the disk needs up to %s, and storage pool '%s' has %s free (make room there)",
			       str_bytes(need, a, sizeof(a)), virStoragePoolGetName(pool),
			       str_bytes(info.available, b, sizeof(b)));
	return 0;
}

/* As the unprivileged user: the image holds what a stranger wrote. *ret_size: of the disk in it. */
static int convert_disk(const struct local *l, const json_t *disk, const char *dir, const char *to, uint64_t size,
			struct upload *u, uint64_t *ret_size, struct err *e)
{
	const struct provider_watch w = {.arg = u, .event = convert_event, .cancelled = convert_cancelled};
	const char *from = "", *format = "";
	char bytes[24];
	int r = jsn_get_str(disk, "path", true, PATH_MAX - 1, &from, e);

	r = r ?: jsn_get_str(disk, "format", true, 16, &format, e);
	if (r == 0 && strcmp(format, "raw") != 0 && strcmp(format, "qcow2") != 0)
		r = err_set(e, -EINVAL, "the image's format '%s' is neither raw nor qcow2", format);
	if (r == 0) {
		const char *const argv[] = {"qemu-img", "convert", "-p", "-f", format, "-O", "qcow2", from, to, NULL};

		r = local_qemu_img(l, argv, -1, "the image's disk could not be made stand-alone", &w, e);
	}
	/* How big it is only decides whether it grows; what counts is looked at when nobody can exchange it any more.
	 */
	r = r ?: local_check_overlay(l, to, "", "", ret_size, e);
	if (r == 0 && size > *ret_size) {
		const char *const argv[] = {"qemu-img", "resize", "-q", "-f", "qcow2", to, bytes, NULL};

		snprintf(bytes, sizeof(bytes), "%llu", (unsigned long long)size);
		r = proc_run_as(argv, l->user, 65536, NULL, e);
	}
	r = r ?: local_take_dir(l, dir, e);
	r = r ?: local_take_file(l, to, e);
	r = r ?: local_check_overlay(l, to, "", "", ret_size, e);
	if (r == 0 && *ret_size < size)
		r = err_set(e, -EIO, "the image's disk didn't grow to %llu bytes", (unsigned long long)size);
	return r;
}

/* ---- sent ---- */

static int send_file(virStreamPtr stream, int fd, uint64_t total, struct upload *u, struct err *e)
{
	_cleanup_free_ char *buf = malloc(UPLOAD_CHUNK);
	uint64_t done = 0;
	ssize_t n;

	if (!buf)
		return err_nomem(e);
	while ((n = io_read_full(fd, buf, UPLOAD_CHUNK)) > 0) {
		if (local_cancelled(u->w))
			return err_set(e, -ECANCELED, "stopped");
		for (ssize_t at = 0, x; at < n; at += x) {
			x = virStreamSend(stream, buf + at, (size_t)(n - at));
			if (x < 0)
				return libvirt_fail(e, "the volume can't be written");
		}
		done += (uint64_t)n;
		upload_percent(u, total ? (double)done / (double)total : 1);
	}
	return n < 0 ? err_set(e, (int)n, "the stand-alone disk can't be read: %s", strerror((int)-n)) : 0;
}

static int send_disk(virConnectPtr conn, virStorageVolPtr vol, const char *path, struct upload *u, struct err *e)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	_cleanup_stream_ virStreamPtr stream = NULL;
	struct stat st;
	int r;

	if (fd < 0 || fstat(fd, &st) < 0)
		return err_sys(e, "cannot read '%s'", path);
	stream = virStreamNew(conn, 0);
	if (!stream || virStorageVolUpload(vol, stream, 0, (unsigned long long)st.st_size, 0) < 0)
		return libvirt_fail(e, "volume '%s' can't be written", virStorageVolGetName(vol));
	r = send_file(stream, fd, (uint64_t)st.st_size, u, e);
	if (r < 0)
		virStreamAbort(stream);
	else if (virStreamFinish(stream) < 0) /* only now it is told what didn't go well */
		r = libvirt_fail(e, "volume '%s' can't be written", virStorageVolGetName(vol));
	return r;
}

/* What arrived has the header of what was sent, and its length. */
static int check_sent(virStorageVolPtr vol, const char *path, uint64_t size, struct err *e)
{
	virStorageVolInfo info, physical;
	struct stat st;

	if (stat(path, &st) < 0)
		return err_sys(e, "cannot look at '%s'", path);
	if (virStorageVolGetInfo(vol, &info) < 0 ||
	    virStorageVolGetInfoFlags(vol, &physical, VIR_STORAGE_VOL_GET_PHYSICAL) < 0)
		return libvirt_fail(e, "volume '%s'", virStorageVolGetName(vol));
	if (info.capacity != size || physical.allocation < (uint64_t)st.st_size)
		return err_set(e, -EIO, "volume '%s' didn't become what was sent: %llu bytes of %llu, a disk of %llu",
			       virStorageVolGetName(vol), physical.allocation, (unsigned long long)st.st_size,
			       info.capacity);
	return 0;
}

static int add_disk(struct libvirt *lv, virConnectPtr conn, virStoragePoolPtr pool, const char *name,
		    const json_t *disk, uint64_t size, const char *dir, struct upload *u, struct err *e)
{
	_cleanup_vol_ virStorageVolPtr vol = NULL;
	char path[PATH_MAX + 32];
	double middle = (u->from + u->to) / 2, end = u->to;
	const char *from = json_string_value(json_object_get(disk, "path")) ?: "";
	uint64_t need = 0;
	int r = convert_measure(lv->files, from, json_string_value(json_object_get(disk, "format")) ?: "", &need, e);

	snprintf(path, sizeof(path), "%s/disk.qcow2", dir);
	r = r ?: check_room(lv->files, pool, need, e);
	/* That of the disk before isn't the user's any more. */
	r = r ?: local_fresh_dir(lv->files, dir, e);
	u->to = middle;
	r = r ?: convert_disk(lv->files, disk, dir, path, size, u, &size, e);
	u->from = middle;
	u->to = end;
	r = r ?: libvirt_volume_create(pool, name, size, NULL, NULL, &vol, e);
	r = r ?: send_disk(conn, vol, path, u, e);
	r = r ?: check_sent(vol, path, size, e);
	unlink(path);
	return r;
}

static int add_disks(struct libvirt *lv, virConnectPtr conn, const char *ref, const char *set, const char *image,
		     const json_t *disks, const json_t *sizes, const struct provider_watch *w, struct err *e)
{
	_cleanup_pool_ virStoragePoolPtr pool = NULL;
	struct local_path dir;
	struct upload u = {.w = w, .told = -1};
	char name[LIBVIRT_NAME_MAX], pool_path[PATH_MAX];
	size_t i, n = json_array_size(disks);
	json_t *disk;
	int r = libvirt_pool(lv, conn, &pool, pool_path, sizeof(pool_path), e);

	r = r ?: libvirt_volumes_drop(lv, conn, ref, set, e);
	/* The name says whose it is: what a crash leaves is swept. */
	r = r ?: local_path(lv->files, &dir, e, "runs/%s-set-%s-%s", image, ref, set);
	if (r < 0)
		return r;
	json_array_foreach(disks, i, disk)
	{
		libvirt_volume_name(ref, set, i, name);
		u.from = 100.0 * (double)i / (double)n;
		u.to = 100.0 * (double)(i + 1) / (double)n;
		r = add_disk(lv, conn, pool, name, disk, (uint64_t)json_integer_value(json_array_get(sizes, i)), dir.s,
			     &u, e);
		if (r < 0) {
			err_prefix(e, "disk %zu", i);
			break;
		}
	}
	io_remove_tree(dir.s, NULL);
	/* What is left of it would only take room; when this fails, the next one begins with it. */
	if (r < 0)
		libvirt_volumes_drop(lv, conn, ref, set, NULL);
	return r;
}

int libvirt_set_add(struct hypervisor *h, const char *ref, const char *set, const char *image, const json_t *disks,
		    const json_t *sizes, const struct provider_watch *w, struct err *e)
{
	struct libvirt *lv = libvirt_of(h);
	_cleanup_domain_ virDomainPtr dom = NULL;
	_cleanup_doc_ xmlDocPtr doc = NULL;
	size_t n = json_array_size(disks);
	char chain[ID_MAX] = "";
	xmlNodePtr domain;
	int r = libvirt_set_check_name(set, e);

	if (r == 0 && (n == 0 || n > LOCAL_DISKS_MAX))
		r = err_set(e, -EINVAL, "an image has 1 to %d disks, not %zu", LOCAL_DISKS_MAX, n);
	r = r ?: libvirt_domain(lv, ref, &dom, e);
	r = r ?: libvirt_domain_doc(dom, true, false, &doc, e);
	if (r < 0)
		return r;
	if (libvirt_set_entry(libvirt_domain_mark(xmlDocGetRootElement(doc)), set))
		return 0;
	/* qemu-img opens what is below the image. */
	r = local_chain_share_image(lv->files, image, chain, w, e);
	if (r < 0)
		return r;
	r = add_disks(lv, virDomainGetConnect(dom), ref, set, image, disks, sizes, w, e);
	local_chain_unshare(lv->files, chain);
	xmlFreeDoc(take_ptr(&doc));
	/* Read again: it took a while. */
	r = r ?: libvirt_domain_doc(dom, true, false, &doc, e);
	if (r < 0)
		return r;
	domain = xmlDocGetRootElement(doc);
	libvirt_set_record(domain, set, NULL, image, n, false);
	return libvirt_domain_save_mark(dom, doc, e);
}
