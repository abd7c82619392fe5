/*
 * The hypervisor "libvirt": hosts that there are become regions, their domains instances. The rooms behind it: link
 * (the connection), xml, domain (what a definition says, and how it is made), sets, volumes, screen.
 */
#include "provider/libvirt_int.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/id.h"
#include "base/jsn.h"
#include "base/str.h"

static const char *arch_of(xmlNodePtr domain, char *buf, size_t size)
{
	libvirt_xml_attr(libvirt_xml_at(domain, "os/type"), "arch", buf, size);
	return buf;
}

static json_t *disks_json(virDomainPtr dom, xmlNodePtr domain)
{
	json_t *a = json_array();

	for (xmlNodePtr d = libvirt_domain_disk(domain); d; d = libvirt_domain_disk_next(d)) {
		virDomainBlockInfo info = {0};
		char target[32], format[32];

		libvirt_xml_attr(libvirt_xml_first(d, "target"), "dev", target, sizeof(target));
		if (!libvirt_xml_attr(libvirt_xml_first(d, "driver"), "type", format, sizeof(format)))
			snprintf(format, sizeof(format), "raw");
		/* Zeroes when its file is gone. */
		if (virDomainGetBlockInfo(dom, target, &info, 0) < 0)
			info = (virDomainBlockInfo){0};
		json_array_append_new(a, json_pack("{s:I, s:s, s:I}", "size", (json_int_t)info.capacity, "format",
						   format, "allocated", (json_int_t)info.allocation));
	}
	return a;
}

static int describe(struct libvirt *lv, virDomainPtr dom, bool with_boot, json_t **ret, struct err *e)
{
	_cleanup_doc_ xmlDocPtr doc = NULL;
	char ref[VIR_UUID_STRING_BUFLEN], used[HYPERVISOR_SET_MAX], arch[32];
	const char *state;
	xmlNodePtr domain;
	bool active;
	json_t *o;
	int r = libvirt_domain_state(dom, &state, &active, e);

	if (r == 0 && virDomainGetUUIDString(dom, ref) < 0)
		r = libvirt_fail(e, "the domain has no UUID");
	r = r ?: libvirt_domain_doc(dom, !active, false, &doc, e);
	if (r < 0)
		return r;
	domain = xmlDocGetRootElement(doc);
	libvirt_set_in_use(ref, domain, used);
	o = json_pack("{s:s, s:s, s:s, s:s, s:o, s:o, s:o, s:o, s:o, s:o*}", "ref", ref, "name", virDomainGetName(dom),
		      "state", state, "arch", arch_of(domain, arch, sizeof(arch)), "settings",
		      libvirt_domain_settings(domain), "disks", disks_json(dom, domain), "addresses",
		      active ? libvirt_addresses(dom, domain) : json_array(), "set",
		      *used ? json_string(used) : json_null(), "sets",
		      libvirt_sets_json(virDomainGetConnect(dom), lv, ref, domain), "boot",
		      with_boot ? libvirt_boot(lv, dom, ref, active) : NULL);
	if (!o)
		return err_nomem(e);
	*ret = o;
	return 0;
}

static int lv_get(struct hypervisor *h, const char *ref, json_t **ret, struct err *e)
{
	struct libvirt *lv = libvirt_of(h);
	_cleanup_domain_ virDomainPtr dom = NULL;
	int r = libvirt_domain(lv, ref, &dom, e);

	return r ?: describe(lv, dom, true, ret, e);
}

/* One that can't be described doesn't hide the others. */
static json_t *troubled(virDomainPtr dom, const char *why)
{
	char ref[VIR_UUID_STRING_BUFLEN];

	if (virDomainGetUUIDString(dom, ref) < 0)
		return NULL;
	return json_pack("{s:s, s:s, s:s, s:s, s:{}, s:[], s:[], s:n, s:[], s:s}", "ref", ref, "name",
			 virDomainGetName(dom), "state", virDomainIsActive(dom) == 1 ? "running" : "off", "arch",
			 "x86_64", "settings", "disks", "addresses", "set", "sets", "problem", why);
}

static int lv_list(struct hypervisor *h, json_t **ret, struct err *e)
{
	struct libvirt *lv = libvirt_of(h);
	_cleanup_conn_ virConnectPtr conn = NULL;
	_cleanup_json_ json_t *a = json_array();
	virDomainPtr *all = NULL;
	int n, r = libvirt_link(lv, &conn, e);

	if (r < 0)
		return r;
	n = virConnectListAllDomains(conn, &all, 0);
	if (n < 0)
		return libvirt_fail(e, "the host's domains can't be listed");
	for (int i = 0; i < n; i++) {
		struct err why = {0};
		json_t *o = NULL;

		if (r == 0 && i < LIBVIRT_ALL_MAX) {
			int x = describe(lv, all[i], false, &o, &why);

			if (x < 0 && x != -ENOENT && virConnectIsAlive(conn) != 1)
				r = err_set(e, x, "domain '%.64s': %s", virDomainGetName(all[i]), why.msg);
			else if (x == 0 || (x != -ENOENT && (o = troubled(all[i], why.msg))))
				json_array_append_new(a, o);
		}
		virDomainFree(all[i]);
	}
	free(all);
	if (r == 0)
		*ret = take_ptr(&a);
	return r;
}

static int lv_capacity(struct hypervisor *h, json_t **ret, struct err *e)
{
	struct libvirt *lv = libvirt_of(h);
	_cleanup_conn_ virConnectPtr conn = NULL;
	_cleanup_pool_ virStoragePoolPtr pool = NULL;
	_cleanup_free_ char *caps = NULL, *name = NULL;
	virStoragePoolInfo info = {0};
	virNodeInfo node;
	char path[PATH_MAX];
	int n, r = libvirt_link(lv, &conn, e);

	r = r ?: libvirt_pool(lv, conn, &pool, path, sizeof(path), e);
	if (r < 0)
		return r;
	n = virConnectNumOfDomains(conn);
	if (virNodeGetInfo(conn, &node) < 0 || n < 0 || virStoragePoolGetInfo(pool, &info) < 0)
		return libvirt_fail(e, "the host doesn't say what it has");
	caps = lv->tcg ? NULL : virConnectGetDomainCapabilities(conn, NULL, "x86_64", "q35", "kvm", 0);
	name = virConnectGetHostname(conn);
	*ret = json_pack("{s:s, s:I, s:I, s:i, s:I, s:I, s:s*}", "accelerator", caps ? "kvm" : "tcg", "memory",
			 (json_int_t)node.memory * 1024, "cpus", (json_int_t)node.cpus, "instances", n, "free",
			 (json_int_t)info.available, "total", (json_int_t)info.capacity, "host", name);
	return *ret ? 0 : err_nomem(e);
}

static int lv_start(struct hypervisor *h, const char *ref, struct err *e)
{
	struct libvirt *lv = libvirt_of(h);
	_cleanup_domain_ virDomainPtr dom = NULL;
	int state, reason, r = libvirt_domain(lv, ref, &dom, e);

	if (r < 0)
		return r;
	if (virDomainGetState(dom, &state, &reason, 0) < 0)
		return libvirt_fail(e, "the domain's state can't be read");
	if (state == VIR_DOMAIN_RUNNING || state == VIR_DOMAIN_BLOCKED)
		return 0;
	/* Its first words are heard when it starts paused. */
	if (virDomainIsActive(dom) != 1) {
		libvirt_console_begin(lv, ref);
		if (virDomainCreateWithFlags(dom, VIR_DOMAIN_START_PAUSED) < 0)
			return libvirt_fail(e, "the domain can't be started");
	}
	libvirt_console_open(lv, dom, ref, NULL); /* not all have a line */
	return virDomainResume(dom) < 0 ? libvirt_fail(e, "the domain can't go on") : 0;
}

/* 1: it is off. */
static int is_off(virDomainPtr dom, struct err *e)
{
	int n = virDomainIsActive(dom);

	return n < 0 ? libvirt_fail(e, "the domain's state can't be read") : !n;
}

/* Again and again: a guest that is just starting doesn't hear it. */
static int press_until_off(virDomainPtr dom, double seconds, const struct provider_watch *w, struct err *e)
{
	double began = id_now_mono(), pressed = 0;
	int r;

	while ((r = is_off(dom, e)) == 0) {
		double now = id_now_mono();

		if (local_cancelled(w))
			return err_set(e, -ECANCELED, "stopped");
		if (now - began > seconds)
			return err_set(e, -ETIMEDOUT,
				       "the instance isn't off %.0f s after its power button was pressed", seconds);
		if (!pressed || now - pressed > 15) {
			if (virDomainShutdownFlags(dom, VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN) < 0 && is_off(dom, e) == 0)
				return libvirt_fail(e, "the power button can't be pressed");
			pressed = now;
		}
		usleep(250000);
	}
	return r < 0 ? r : 0;
}

static int lv_stop(struct hypervisor *h, const char *ref, double seconds, const struct provider_watch *w, struct err *e)
{
	struct libvirt *lv = libvirt_of(h);
	_cleanup_domain_ virDomainPtr dom = NULL;
	int r = libvirt_domain(lv, ref, &dom, e);

	r = r ?: is_off(dom, e);
	if (r != 0)
		return r < 0 ? r : 0;
	if (seconds > 0)
		return press_until_off(dom, seconds, w, e);
	if (virDomainDestroy(dom) < 0 && is_off(dom, e) == 0)
		return libvirt_fail(e, "the domain can't be ended");
	return 0;
}

/* An existing domain isn't ours to remove: it only loses what we know of it, once it has its own disks back. */
static int let_go(virDomainPtr dom, const char *ref, xmlNodePtr domain, struct err *e)
{
	char used[HYPERVISOR_SET_MAX];

	libvirt_set_in_use(ref, domain, used);
	if (strcmp(used, LIBVIRT_ORIGINAL) != 0)
		return err_set(e, -EBUSY, "the domain doesn't have its own disks; put set 'original' in use first");
	if (!libvirt_domain_mark(domain))
		return 0;
	if (virDomainSetMetadata(dom, VIR_DOMAIN_METADATA_ELEMENT, NULL, NULL, LIBVIRT_NAMESPACE,
				 VIR_DOMAIN_AFFECT_CONFIG |
				     (virDomainIsActive(dom) == 1 ? VIR_DOMAIN_AFFECT_LIVE : 0u)) < 0)
		return libvirt_fail(e, "the domain's metadata can't be changed");
	return 0;
}

static int undefine(virDomainPtr dom, struct err *e)
{
	const unsigned all = VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA |
			     VIR_DOMAIN_UNDEFINE_NVRAM | VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA;

	if (virDomainIsActive(dom) == 1 && virDomainDestroy(dom) < 0 && virDomainIsActive(dom) == 1)
		return libvirt_fail(e, "the domain can't be ended");
	if (virDomainUndefineFlags(dom, all) < 0 && virGetLastErrorCode() != VIR_ERR_NO_DOMAIN)
		return libvirt_fail(e, "the domain can't be undefined");
	return 0;
}

static int lv_remove(struct hypervisor *h, const char *ref, struct err *e)
{
	struct libvirt *lv = libvirt_of(h);
	_cleanup_conn_ virConnectPtr conn = NULL;
	_cleanup_domain_ virDomainPtr dom = NULL;
	_cleanup_doc_ xmlDocPtr doc = NULL;
	struct err why = {0};
	xmlNodePtr domain;
	char id[ID_MAX];
	int r = libvirt_link(lv, &conn, e);

	r = r ?: libvirt_domain(lv, ref, &dom, &why);
	if (r < 0 && r != -ENOENT)
		return why.code ? err_set(e, r, "%s", why.msg) : r;
	if (dom) {
		r = libvirt_domain_doc(dom, true, false, &doc, e);
		if (r < 0)
			return r;
		domain = xmlDocGetRootElement(doc);
		if (libvirt_xml_attr(libvirt_domain_mark(domain), "id", id, sizeof(id)))
			r = undefine(dom, e);
		else
			r = let_go(dom, ref, domain, e);
		if (r < 0)
			return r;
	}
	/* Without the domain its volumes are found by their names. */
	return libvirt_volumes_drop(lv, conn, ref, NULL, e);
}

static void lv_close(struct hypervisor *h)
{
	struct libvirt *lv = libvirt_of(h);

	if (!lv)
		return;
	libvirt_consoles_close(lv);
	libvirt_unlink(lv);
	pthread_mutex_destroy(&lv->lock);
	if (lv->files)
		lv->files->p.ops->close(&lv->files->p);
	free(lv->uri);
	free(lv->pool);
	free(lv->network);
	free(lv);
}

static const struct hypervisor_ops libvirt_ops = {
    .kind = "libvirt",
    .capacity = lv_capacity,
    .list = lv_list,
    .get = lv_get,
    .define = libvirt_define,
    .remove = lv_remove,
    .start = lv_start,
    .stop = lv_stop,
    .set_add = libvirt_set_add,
    .set_fork = libvirt_set_fork,
    .set_snapshot = libvirt_set_snapshot,
    .set_use = libvirt_set_use,
    .set_drop = libvirt_set_drop,
    .screenshot = libvirt_screenshot,
    .serial = libvirt_serial,
    .close = lv_close,
};

int libvirt_open(const struct provider_settings *s, const json_t *settings, struct hypervisor **ret, struct err *e)
{
	const char *uri = "", *pool = "default", *network = "default", *accel = "";
	struct provider *files = NULL;
	struct libvirt *lv;
	int r = jsn_get_str(settings, "uri", true, 512, &uri, e);

	r = r ?: jsn_get_str(settings, "pool", false, 128, &pool, e);
	r = r ?: jsn_get_str(settings, "network", false, 128, &network, e);
	r = r ?: jsn_get_str(settings, "accelerator", false, 8, &accel, e);
	r = r ?: libvirt_check_uri(uri, e);
	if (r < 0)
		return r;
	lv = calloc(1, sizeof(*lv));
	if (!lv)
		return err_nomem(e);
	lv->h.ops = &libvirt_ops;
	pthread_mutex_init(&lv->lock, NULL);
	lv->tcg = strcmp(accel, "tcg") == 0;
	lv->uri = strdup(uri);
	lv->pool = strdup(pool);
	lv->network = strdup(network);
	r = lv->uri && lv->pool && lv->network ? local_open(s, &files, e) : err_nomem(e);
	if (r < 0) {
		lv_close(&lv->h);
		return r;
	}
	lv->files = local_of(files);
	*ret = &lv->h;
	return 0;
}
