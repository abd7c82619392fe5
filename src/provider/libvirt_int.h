/* Inside the hypervisor "libvirt": a connection that may be lost, domains as XML, volumes of a pool. */
#pragma once

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>
#include <libxml/tree.h>
#include <pthread.h>

#include "provider/libvirt.h"
#include "provider/local_int.h"

#define LIBVIRT_XML_MAX   (8u << 20)  /* of what a hypervisor says */
#define LIBVIRT_PIC_MAX   (64u << 20) /* bytes of a screenshot */
#define LIBVIRT_ALL_MAX   10000       /* domains of a host */
#define LIBVIRT_NAME_MAX  200u        /* of a volume */
#define LIBVIRT_ORIGINAL  "original"  /* the set of an existing domain's own disks */
#define LIBVIRT_NAMESPACE "urn:replant:instance:1"

struct libvirt_dial;
struct libvirt_console;

struct libvirt {
	struct hypervisor h;
	struct local *files; /* where images lie, and disks on their way */
	char *uri, *pool, *network;
	bool tcg;             /* even where the host says that it has KVM */
	pthread_mutex_t lock; /* of the rest; nothing that waits for a host is called with it */
	virConnectPtr conn;
	struct libvirt_dial *dial; /* a connection that is being made */
	struct libvirt_console *consoles;
};

static inline struct libvirt *libvirt_of(struct hypervisor *h)
{
	return (struct libvirt *)(void *)h;
}

static inline void libvirt_disconnectp(virConnectPtr *c)
{
	if (*c)
		virConnectClose(*c);
}
static inline void libvirt_domain_freep(virDomainPtr *d)
{
	if (*d)
		virDomainFree(*d);
}
static inline void libvirt_pool_freep(virStoragePoolPtr *p)
{
	if (*p)
		virStoragePoolFree(*p);
}
static inline void libvirt_vol_freep(virStorageVolPtr *v)
{
	if (*v)
		virStorageVolFree(*v);
}
static inline void libvirt_stream_freep(virStreamPtr *s)
{
	if (*s)
		virStreamFree(*s);
}
static inline void libvirt_doc_freep(xmlDocPtr *d)
{
	xmlFreeDoc(*d);
}
#define _cleanup_conn_   _cleanup_(libvirt_disconnectp)
#define _cleanup_domain_ _cleanup_(libvirt_domain_freep)
#define _cleanup_pool_   _cleanup_(libvirt_pool_freep)
#define _cleanup_vol_    _cleanup_(libvirt_vol_freep)
#define _cleanup_stream_ _cleanup_(libvirt_stream_freep)
#define _cleanup_doc_    _cleanup_(libvirt_doc_freep)

/* ---- libvirt_link.c ---- */
/* Seconds: that a caller waits for a connection, and after which another is begun; as long as fewer than that many
 * are being made. Tests have less. */
extern struct libvirt_patience {
	unsigned caller, dial, dials;
} libvirt_patience;
/* What the library last complained about on this thread, behind the text: its code as a negative errno. */
int libvirt_fail(struct err *e, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* The connection, made anew when it was lost; the caller closes. Waits at most for libvirt_patience.caller. */
int libvirt_link(struct libvirt *lv, virConnectPtr *ret, struct err *e);
void libvirt_unlink(struct libvirt *lv);
/* Of the domain that is made for an instance: made twice, it is one. */
void libvirt_uuid_of(const char *id, char out[37]);
/* `ref`: a domain's UUID, or an instance's id for the one made for it. -ENOENT; the caller frees. */
int libvirt_domain(struct libvirt *lv, const char *ref, virDomainPtr *ret, struct err *e);
/* An address that may be connected to: kinds that are known, no secrets, nothing that runs programs here. */
int libvirt_check_uri(const char *uri, struct err *e);
/* What is connected to: ssh doesn't ask anybody. The caller frees; NULL when out of memory. */
char *libvirt_full_uri(const char *uri);

/* ---- libvirt_xml.c: reading and changing XML; nothing of it knows domains ---- */
/* No network, no entities, no document type, LIBVIRT_XML_MAX bytes at most. */
int libvirt_xml_parse(const char *text, xmlDocPtr *ret, struct err *e);
/* The root element as text; the caller frees. */
int libvirt_xml_text(xmlDocPtr doc, char **ret, struct err *e);
xmlNodePtr libvirt_xml_first(xmlNodePtr parent, const char *name); /* NULL when there is none, or no parent */
xmlNodePtr libvirt_xml_next(xmlNodePtr node, const char *name);
/* Along names with '/' between them. */
xmlNodePtr libvirt_xml_at(xmlNodePtr node, const char *path);
/* Copied to `buf`, "" when it isn't there; false when it didn't fit, too. */
bool libvirt_xml_attr(xmlNodePtr node, const char *name, char *buf, size_t size);
bool libvirt_xml_content(xmlNodePtr node, char *buf, size_t size);
bool libvirt_xml_attr_is(xmlNodePtr node, const char *name, const char *value);
/* Adds an element behind the others: with that text (may be NULL), and pairs of attributes, NULL at the end. Out of
 * memory is seen at the end, by libvirt_xml_text(). */
xmlNodePtr libvirt_xml_add(xmlNodePtr parent, const char *name, const char *text, ...) __attribute__((sentinel));
/* The element of that name, added when it isn't there. */
xmlNodePtr libvirt_xml_need(xmlNodePtr parent, const char *name);
void libvirt_xml_set_text(xmlNodePtr node, const char *text);
/* With all that is in it, and without namespaces; NULL when out of memory. */
xmlNodePtr libvirt_xml_copy(xmlNodePtr node, xmlDocPtr doc);
/* All children of that name, or all. */
void libvirt_xml_drop(xmlNodePtr parent, const char *name);

/* ---- libvirt_domain.c: what a domain's XML says, and how it is made ---- */
/* Its XML as it is defined (`defined`) or as it runs; `secrets`: to define it again. */
int libvirt_domain_doc(virDomainPtr dom, bool defined, bool secrets, xmlDocPtr *ret, struct err *e);
/* Our element in its metadata; NULL. */
xmlNodePtr libvirt_domain_mark(xmlNodePtr domain);
xmlNodePtr libvirt_domain_need_mark(xmlNodePtr domain);
/* Writes the element as it is in `doc` into the domain, which may run. */
int libvirt_domain_save_mark(virDomainPtr dom, xmlDocPtr doc, struct err *e);
/* Those of its disks that are no cdroms or floppies: the first, the next. */
xmlNodePtr libvirt_domain_disk(xmlNodePtr domain);
xmlNodePtr libvirt_domain_disk_next(xmlNodePtr disk);
/* The file or device that a disk stands on; -ENOTSUP for others. */
int libvirt_domain_source(xmlNodePtr disk, char *buf, size_t size, struct err *e);
/* "sd", "vd" of a bus. */
const char *libvirt_domain_prefix(const char *bus);
void libvirt_domain_target(const char *bus, size_t i, char *buf, size_t size);
void libvirt_domain_bus(xmlNodePtr domain, char *buf, size_t size);
json_t *libvirt_domain_settings(xmlNodePtr domain);
int libvirt_define(struct hypervisor *h, const char *id, const json_t *settings, char ret_ref[HYPERVISOR_REF_MAX],
		   struct err *e);
/* The state's word; *ret_active. */
int libvirt_domain_state(virDomainPtr dom, const char **ret, bool *ret_active, struct err *e);

/* ---- libvirt_sets.c ---- */
/* Of the domain with that XML: copied to `ret` (HYPERVISOR_SET_MAX), "" when it has none or somebody else's. */
void libvirt_set_in_use(const char *ref, xmlNodePtr domain, char *ret);
/* What get() says of them. New reference. */
json_t *libvirt_sets_json(virConnectPtr conn, const struct libvirt *lv, const char *ref, xmlNodePtr domain);
int libvirt_set_fork(struct hypervisor *h, const char *ref, const char *from, const char *set, struct err *e);
int libvirt_set_snapshot(struct hypervisor *h, const char *ref, const char *set, struct err *e);
int libvirt_set_use(struct hypervisor *h, const char *ref, const char *set, struct err *e);
int libvirt_set_drop(struct hypervisor *h, const char *ref, const char *set, struct err *e);
/* Our element's entry of a set; NULL. */
xmlNodePtr libvirt_set_entry(xmlNodePtr mark, const char *set);
void libvirt_set_record(xmlNodePtr domain, const char *set, const char *on, const char *image, size_t disks,
			bool pending);
int libvirt_set_check_name(const char *set, struct err *e);

/* ---- libvirt_volumes.c ---- */
/* The pool, which is active and whose volumes are files. */
int libvirt_pool(const struct libvirt *lv, virConnectPtr conn, virStoragePoolPtr *ret, char *path, size_t size,
		 struct err *e);
/* "replant-REF-SET-diskN.qcow2" in `buf`, LIBVIRT_NAME_MAX. */
void libvirt_volume_name(const char *ref, const char *set, size_t i, char *buf);
/* Is the file one of the set's of that domain? The set copied to `set` (HYPERVISOR_SET_MAX). */
bool libvirt_volume_parse(const char *ref, const char *path, char *set, size_t *ret_disk);
/* -ENOENT; looks again where somebody else made it. */
int libvirt_volume(virStoragePoolPtr pool, const char *name, virStorageVolPtr *ret, struct err *e);
/* Makes an empty one, or one on a file. */
int libvirt_volume_create(virStoragePoolPtr pool, const char *name, uint64_t size, const char *backing,
			  const char *backing_format, virStorageVolPtr *ret, struct err *e);
/* -EBUSY when a domain of the host, or another volume of the pool, names files of the set (NULL: of any). */
int libvirt_volumes_free(struct libvirt *lv, virConnectPtr conn, const char *ref, const char *set, struct err *e);
/* All of a set (NULL: all of all sets) go, whatever made them; -EBUSY as above, and none. */
int libvirt_volumes_drop(struct libvirt *lv, virConnectPtr conn, const char *ref, const char *set, struct err *e);
int libvirt_set_add(struct hypervisor *h, const char *ref, const char *set, const char *image, const json_t *disks,
		    const json_t *sizes, const struct provider_watch *w, struct err *e);

/* ---- libvirt_screen.c, libvirt_png.c ---- */
int libvirt_screenshot(struct hypervisor *h, const char *ref, const char *path, struct err *e);
int libvirt_serial(struct hypervisor *h, const char *ref, uint64_t since, struct str *ret, uint64_t *ret_end,
		   struct err *e);
/* What the line says from now on is kept; nothing happens when it is already. */
int libvirt_console_open(struct libvirt *lv, virDomainPtr dom, const char *ref, struct err *e);
/* It is about to be started: what came before is of another boot. */
void libvirt_console_begin(struct libvirt *lv, const char *ref);
void libvirt_consoles_close(struct libvirt *lv);
/* How far its boot is, by its serial line: {"stage","failed","text"}, NULL when out of memory. */
json_t *libvirt_boot(struct libvirt *lv, virDomainPtr dom, const char *ref, bool active);
json_t *libvirt_addresses(virDomainPtr dom, xmlNodePtr domain);
/* A picture as QEMU's screendump and libvirt give it (P6) becomes a PNG: added to `ret`. -EPROTO. */
int libvirt_png(const void *ppm, size_t len, struct str *ret, struct err *e);
