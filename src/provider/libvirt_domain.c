/*
 * Domains. Those that we make carry an element of ours in their metadata, with the instance's id; those that were there
 * get it when they are first used, with what their own disks were. A domain that is there is changed in place: what
 * isn't understood stays as it was.
 */
#include "provider/libvirt_int.h"

#include <errno.h>
#include <string.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/str.h"

#define X(s) ((const xmlChar *)(s))

struct define {
	uint64_t cpus, memory_mib;
	const char *name, *cpu, *firmware, *bus, *network, *mac;
};

int libvirt_domain_doc(virDomainPtr dom, bool defined, bool secrets, xmlDocPtr *ret, struct err *e)
{
	unsigned flags = (defined ? VIR_DOMAIN_XML_INACTIVE : 0u) | (secrets ? VIR_DOMAIN_XML_SECURE : 0u);
	_cleanup_free_ char *text = virDomainGetXMLDesc(dom, flags);

	return text ? libvirt_xml_parse(text, ret, e) : libvirt_fail(e, "the domain's definition can't be read");
}

xmlNodePtr libvirt_domain_mark(xmlNodePtr domain)
{
	xmlNodePtr n = libvirt_xml_first(libvirt_xml_first(domain, "metadata"), "instance");

	while (n && (!n->ns || !xmlStrEqual(n->ns->href, X(LIBVIRT_NAMESPACE))))
		n = libvirt_xml_next(n, "instance");
	return n;
}

xmlNodePtr libvirt_domain_need_mark(xmlNodePtr domain)
{
	xmlNodePtr n = libvirt_domain_mark(domain);

	if (n)
		return n;
	n = libvirt_xml_add(libvirt_xml_need(domain, "metadata"), "instance", NULL, NULL);
	if (n)
		xmlSetNs(n, xmlNewNs(n, X(LIBVIRT_NAMESPACE), X("replant")));
	return n;
}

int libvirt_domain_save_mark(virDomainPtr dom, xmlDocPtr doc, struct err *e)
{
	xmlNodePtr mark = libvirt_domain_mark(xmlDocGetRootElement(doc)), plain;
	unsigned flags = VIR_DOMAIN_AFFECT_CONFIG | (virDomainIsActive(dom) == 1 ? VIR_DOMAIN_AFFECT_LIVE : 0u);
	_cleanup_doc_ xmlDocPtr alone = xmlNewDoc(X("1.0"));
	_cleanup_free_ char *text = NULL;
	int r;

	/* libvirt puts all that is in it into the namespace itself. */
	plain = alone && mark ? libvirt_xml_copy(mark, alone) : NULL;
	if (!plain)
		return err_nomem(e);
	xmlDocSetRootElement(alone, plain);
	r = libvirt_xml_text(alone, &text, e);
	if (r < 0)
		return r;
	if (virDomainSetMetadata(dom, VIR_DOMAIN_METADATA_ELEMENT, text, "replant", LIBVIRT_NAMESPACE, flags) < 0)
		return libvirt_fail(e, "what is known of the domain's disks can't be kept with it");
	return 0;
}

/* ---- disks ---- */

static bool disk_counts(xmlNodePtr disk)
{
	char device[32];

	return !libvirt_xml_attr(disk, "device", device, sizeof(device)) || strcmp(device, "disk") == 0 ||
	       strcmp(device, "lun") == 0;
}

xmlNodePtr libvirt_domain_disk_next(xmlNodePtr disk)
{
	do
		disk = libvirt_xml_next(disk, "disk");
	while (disk && !disk_counts(disk));
	return disk;
}

xmlNodePtr libvirt_domain_disk(xmlNodePtr domain)
{
	xmlNodePtr disk = libvirt_xml_first(libvirt_xml_first(domain, "devices"), "disk");

	return !disk || disk_counts(disk) ? disk : libvirt_domain_disk_next(disk);
}

int libvirt_domain_source(xmlNodePtr disk, char *buf, size_t size, struct err *e)
{
	xmlNodePtr source = libvirt_xml_first(disk, "source");
	char target[32];

	if ((libvirt_xml_attr(source, "file", buf, size) || libvirt_xml_attr(source, "dev", buf, size)) && *buf == '/')
		return 0;
	libvirt_xml_attr(libvirt_xml_first(disk, "target"), "dev", target, sizeof(target));
	return err_set(e, -ENOTSUP,
		       "the domain's disk '%s' is neither a file nor a block device of its host; only those can be "
		       "exchanged",
		       target);
}

const char *libvirt_domain_prefix(const char *bus)
{
	return strcmp(bus, "virtio") == 0 ? "vd"
	       : strcmp(bus, "ide") == 0  ? "hd"
	       : strcmp(bus, "fdc") == 0  ? "fd"
					  : "sd";
}

void libvirt_domain_target(const char *bus, size_t i, char *buf, size_t size)
{
	if (i < 26)
		snprintf(buf, size, "%s%c", libvirt_domain_prefix(bus), 'a' + (char)i);
	else
		snprintf(buf, size, "%s%c%c", libvirt_domain_prefix(bus), 'a' + (char)(i / 26 - 1),
			 'a' + (char)(i % 26));
}

void libvirt_domain_bus(xmlNodePtr domain, char *buf, size_t size)
{
	xmlNodePtr disk = libvirt_domain_disk(domain);

	if (libvirt_xml_attr(libvirt_xml_first(disk, "target"), "bus", buf, size) ||
	    libvirt_xml_attr(libvirt_domain_mark(domain), "bus", buf, size))
		return;
	snprintf(buf, size, "virtio");
}

/* ---- what get() says ---- */

static void add_network(xmlNodePtr domain, json_t *o)
{
	xmlNodePtr nic = libvirt_xml_at(domain, "devices/interface"), source = libvirt_xml_first(nic, "source");
	char buf[256], name[300], type[32];

	libvirt_xml_attr(nic, "type", type, sizeof(type));
	snprintf(name, sizeof(name), "%s", nic ? type : "none");
	if (libvirt_xml_attr(source, "network", buf, sizeof(buf)))
		snprintf(name, sizeof(name), "%s", buf);
	else if (libvirt_xml_attr(source, "bridge", buf, sizeof(buf)))
		snprintf(name, sizeof(name), "bridge:%s", buf);
	json_object_set_new(o, "network", json_string(name));
	if (libvirt_xml_attr(libvirt_xml_first(nic, "mac"), "address", buf, sizeof(buf)))
		json_object_set_new(o, "mac", json_string(buf));
}

static void add_cpu(xmlNodePtr domain, json_t *o)
{
	xmlNodePtr cpu = libvirt_xml_first(domain, "cpu");
	char mode[32], model[64];

	libvirt_xml_attr(cpu, "mode", mode, sizeof(mode));
	if (strcmp(mode, "maximum") == 0)
		json_object_set_new(o, "cpu", json_string("max"));
	else if (libvirt_xml_content(libvirt_xml_first(cpu, "model"), model, sizeof(model)) && *model)
		json_object_set_new(o, "cpu", json_string(model));
	else
		json_object_set_new(o, "cpu", json_string("host"));
}

/* libvirt says KiB, whatever it was told. */
static uint64_t kib_of(xmlNodePtr node)
{
	char text[32];
	uint64_t n = 0;

	if (libvirt_xml_content(node, text, sizeof(text)))
		str_u64(text, 0, UINT64_MAX / KIB, &n);
	return n;
}

static bool is_uefi(xmlNodePtr domain)
{
	xmlNodePtr os = libvirt_xml_first(domain, "os");

	return libvirt_xml_attr_is(os, "firmware", "efi") ||
	       libvirt_xml_attr_is(libvirt_xml_first(os, "loader"), "type", "pflash");
}

json_t *libvirt_domain_settings(xmlNodePtr domain)
{
	char name[256], bus[32], cpus[16];
	uint64_t n = 0;
	json_t *o = json_object();

	libvirt_xml_content(libvirt_xml_first(domain, "name"), name, sizeof(name));
	if (libvirt_xml_content(libvirt_xml_first(domain, "vcpu"), cpus, sizeof(cpus)))
		str_u64(cpus, 0, 65536, &n);
	libvirt_domain_bus(domain, bus, sizeof(bus));
	json_object_set_new(o, "name", json_string(name));
	json_object_set_new(o, "cpus", json_integer((json_int_t)n));
	json_object_set_new(o, "memory_mib",
			    json_integer((json_int_t)(kib_of(libvirt_xml_first(domain, "memory")) / 1024)));
	add_cpu(domain, o);
	json_object_set_new(o, "firmware", json_string(is_uefi(domain) ? "uefi" : "bios"));
	json_object_set_new(o, "bus", json_string(bus));
	add_network(domain, o);
	return o;
}

int libvirt_domain_state(virDomainPtr dom, const char **ret, bool *ret_active, struct err *e)
{
	int state, reason;

	if (virDomainGetState(dom, &state, &reason, 0) < 0)
		return libvirt_fail(e, "the domain's state can't be read");
	*ret_active = state != VIR_DOMAIN_SHUTOFF && state != VIR_DOMAIN_CRASHED && state != VIR_DOMAIN_NOSTATE;
	/* A domain that is kept as it crashed still has its process. */
	if (state == VIR_DOMAIN_CRASHED)
		*ret_active = virDomainIsActive(dom) == 1;
	switch (state) {
	case VIR_DOMAIN_PAUSED:
	case VIR_DOMAIN_PMSUSPENDED:
		*ret = "paused";
		break;
	case VIR_DOMAIN_CRASHED:
		*ret = "crashed";
		break;
	case VIR_DOMAIN_SHUTOFF:
	case VIR_DOMAIN_NOSTATE:
		*ret = reason == VIR_DOMAIN_SHUTOFF_CRASHED && state == VIR_DOMAIN_SHUTOFF ? "crashed" : "off";
		break;
	default:
		*ret = "running";
	}
	return 0;
}

/* ---- making and changing ---- */

static int read_define(const json_t *settings, struct define *d, struct err *e)
{
	static const struct {
		const char *key;
		size_t offset, max;
	} texts[] = {
	    {"name", offsetof(struct define, name), 128},        {"cpu", offsetof(struct define, cpu), 64},
	    {"firmware", offsetof(struct define, firmware), 16}, {"bus", offsetof(struct define, bus), 16},
	    {"network", offsetof(struct define, network), 128},  {"mac", offsetof(struct define, mac), 17},
	};
	int r = jsn_get_u64(settings, "cpus", false, 1, 512, &d->cpus, e);

	r = r ?: jsn_get_u64(settings, "memory_mib", false, 16, UINT64_C(64) << 20, &d->memory_mib, e);
	for (size_t i = 0; i < ARRAY_SIZE(texts) && r == 0; i++) {
		const char **to = (const char **)(void *)((char *)d + texts[i].offset);

		if (!json_is_null(json_object_get(settings, texts[i].key)))
			r = jsn_get_str(settings, texts[i].key, false, texts[i].max, to, e);
	}
	if (r < 0)
		return r;
	if (d->bus && strcmp(d->bus, "virtio") != 0 && strcmp(d->bus, "scsi") != 0 && strcmp(d->bus, "sata") != 0)
		return err_set(e, -EINVAL, "bus '%s' is not one of virtio, scsi and sata", d->bus);
	if (d->firmware && strcmp(d->firmware, "bios") != 0 && strcmp(d->firmware, "uefi") != 0)
		return err_set(e, -EINVAL, "firmware '%s' is neither bios nor uefi", d->firmware);
	if (json_array_size(json_object_get(settings, "forwards")))
		return err_set(e, -ENOTSUP,
			       "a libvirt host forwards no ports; reach the instance by its own address, or give it a "
			       "network that does");
	return 0;
}

static bool host_has_kvm(virConnectPtr conn)
{
	_cleanup_free_ char *caps = virConnectGetDomainCapabilities(conn, NULL, "x86_64", "q35", "kvm", 0);

	return caps != NULL;
}

static void set_cpu(xmlNodePtr domain, const char *cpu)
{
	bool kvm = libvirt_xml_attr_is(domain, "type", "kvm");
	xmlNodePtr n;

	libvirt_xml_drop(domain, "cpu");
	if (strcmp(cpu, "host") == 0 && kvm)
		libvirt_xml_add(domain, "cpu", NULL, "mode", "host-passthrough", NULL);
	else if (strcmp(cpu, "host") == 0 || strcmp(cpu, "max") == 0)
		libvirt_xml_add(domain, "cpu", NULL, "mode", "maximum", NULL);
	else {
		n = libvirt_xml_add(domain, "cpu", NULL, "mode", "custom", "match", "exact", NULL);
		libvirt_xml_add(n, "model", cpu, "fallback", "forbid", NULL);
	}
}

static void set_firmware(xmlNodePtr domain, const char *firmware)
{
	xmlNodePtr os = libvirt_xml_need(domain, "os"), features;

	if (is_uefi(domain) == (strcmp(firmware, "uefi") == 0))
		return; /* its variables stay what they are */
	xmlUnsetProp(os, X("firmware"));
	libvirt_xml_drop(os, "firmware");
	libvirt_xml_drop(os, "loader");
	libvirt_xml_drop(os, "nvram");
	if (strcmp(firmware, "uefi") != 0)
		return;
	xmlNewProp(os, X("firmware"), X("efi"));
	features = libvirt_xml_add(os, "firmware", NULL, NULL);
	/* What was migrated need not be signed by anybody. */
	libvirt_xml_add(features, "feature", NULL, "enabled", "no", "name", "secure-boot", NULL);
}

static void set_bus(xmlNodePtr domain, const char *bus)
{
	char now[32], name[16];
	size_t i = 0;

	libvirt_domain_bus(domain, now, sizeof(now));
	xmlSetProp(libvirt_domain_need_mark(domain), X("bus"), X(bus));
	if (strcmp(now, bus) == 0)
		return;
	for (xmlNodePtr d = libvirt_domain_disk(domain); d; d = libvirt_domain_disk_next(d)) {
		xmlNodePtr target = libvirt_xml_need(d, "target");

		libvirt_domain_target(bus, i++, name, sizeof(name));
		xmlSetProp(target, X("dev"), X(name));
		xmlSetProp(target, X("bus"), X(bus));
		libvirt_xml_drop(d, "address");
	}
}

/* Only the first card; others are the administrator's. */
static int set_network(virConnectPtr conn, xmlNodePtr domain, const char *network, const char *mac, struct err *e)
{
	xmlNodePtr devices = libvirt_xml_need(domain, "devices"), nic = libvirt_xml_first(devices, "interface");
	char kept[32];
	const char *bridge = str_starts(network, "bridge:") ? network + 7 : NULL;
	bool user = strcmp(network, "user") == 0;
	virNetworkPtr net = NULL;

	libvirt_xml_attr(libvirt_xml_first(nic, "mac"), "address", kept, sizeof(kept));
	if (nic) {
		xmlUnlinkNode(nic);
		xmlFreeNode(nic);
	}
	if (strcmp(network, "none") == 0)
		return 0;
	if (!bridge && !user) {
		net = virNetworkLookupByName(conn, network);
		if (!net)
			return libvirt_fail(e, "the host has no network '%s' (a bridge is 'bridge:NAME')", network);
		virNetworkFree(net);
	}
	nic = libvirt_xml_add(devices, "interface", NULL, "type", bridge ? "bridge" : user ? "user" : "network", NULL);
	if (mac || *kept)
		libvirt_xml_add(nic, "mac", NULL, "address", mac ?: kept, NULL);
	if (!user)
		libvirt_xml_add(nic, "source", NULL, bridge ? "bridge" : "network", bridge ?: network, NULL);
	libvirt_xml_add(nic, "model", NULL, "type", "virtio", NULL);
	return 0;
}

static const char *changed(const json_t *now, const char *key, const char *wanted)
{
	return wanted && strcmp(json_string_value(json_object_get(now, key)) ?: "", wanted) == 0 ? NULL : wanted;
}

/* What is as it is wanted isn't touched: an existing domain may say more of it than we know. */
static struct define only_changes(const json_t *now, const struct define *wanted)
{
	struct define d = *wanted;

	d.cpus = (json_int_t)d.cpus == json_integer_value(json_object_get(now, "cpus")) ? 0 : d.cpus;
	d.memory_mib =
	    (json_int_t)d.memory_mib == json_integer_value(json_object_get(now, "memory_mib")) ? 0 : d.memory_mib;
	d.cpu = changed(now, "cpu", d.cpu);
	d.network = changed(now, "network", d.network);
	d.mac = changed(now, "mac", d.mac);
	return d;
}

/* What is given; the rest stays. */
static int apply_define(virConnectPtr conn, xmlNodePtr domain, const struct define *wanted, struct err *e)
{
	_cleanup_json_ json_t *now = libvirt_domain_settings(domain);
	const struct define only = only_changes(now, wanted), *d = &only;
	const char *network = json_string_value(json_object_get(now, "network")) ?: "none";
	char text[32];
	xmlNodePtr n;

	if (d->cpus) {
		snprintf(text, sizeof(text), "%llu", (unsigned long long)d->cpus);
		n = libvirt_xml_need(domain, "vcpu");
		xmlUnsetProp(n, X("current"));
		libvirt_xml_set_text(n, text);
	}
	if (d->memory_mib) {
		snprintf(text, sizeof(text), "%llu", (unsigned long long)d->memory_mib);
		libvirt_xml_drop(domain, "currentMemory");
		n = libvirt_xml_need(domain, "memory");
		xmlSetProp(n, X("unit"), X("MiB"));
		libvirt_xml_set_text(n, text);
	}
	if (d->cpu || (wanted->cpu && !libvirt_xml_first(domain, "cpu")))
		set_cpu(domain, wanted->cpu);
	if (d->firmware)
		set_firmware(domain, d->firmware);
	if (d->bus)
		set_bus(domain, d->bus);
	return d->network || d->mac ? set_network(conn, domain, d->network ?: network, d->mac, e) : 0;
}

static void add_devices(xmlNodePtr domain)
{
	xmlNodePtr devices = libvirt_xml_add(domain, "devices", NULL, NULL), n;

	libvirt_xml_add(devices, "controller", NULL, "type", "scsi", "index", "0", "model", "virtio-scsi", NULL);
	n = libvirt_xml_add(devices, "serial", NULL, "type", "pty", NULL);
	libvirt_xml_add(n, "target", NULL, "port", "0", NULL);
	n = libvirt_xml_add(devices, "console", NULL, "type", "pty", NULL);
	libvirt_xml_add(n, "target", NULL, "type", "serial", "port", "0", NULL);
	n = libvirt_xml_add(devices, "channel", NULL, "type", "unix", NULL);
	libvirt_xml_add(n, "target", NULL, "type", "virtio", "name", "org.qemu.guest_agent.0", NULL);
	n = libvirt_xml_add(devices, "video", NULL, NULL);
	libvirt_xml_add(n, "model", NULL, "type", "vga", NULL);
	n = libvirt_xml_add(devices, "rng", NULL, "model", "virtio", NULL);
	libvirt_xml_add(n, "backend", "/dev/urandom", "model", "random", NULL);
}

/* What all of ours have. */
static xmlDocPtr new_domain(const char *uuid, const char *id, const char *name, bool kvm)
{
	xmlDocPtr doc = xmlNewDoc(X("1.0"));
	xmlNodePtr domain = doc ? xmlNewDocNode(doc, NULL, X("domain"), NULL) : NULL, n;

	if (!domain) {
		xmlFreeDoc(doc);
		return NULL;
	}
	xmlDocSetRootElement(doc, domain);
	xmlNewProp(domain, X("type"), X(kvm ? "kvm" : "qemu"));
	libvirt_xml_add(domain, "name", name, NULL);
	libvirt_xml_add(domain, "uuid", uuid, NULL);
	xmlNewProp(libvirt_domain_need_mark(domain), X("id"), X(id));
	n = libvirt_xml_add(domain, "os", NULL, NULL);
	libvirt_xml_add(n, "type", "hvm", "arch", "x86_64", "machine", "q35", NULL);
	libvirt_xml_add(n, "boot", NULL, "dev", "hd", NULL);
	n = libvirt_xml_add(domain, "features", NULL, NULL);
	libvirt_xml_add(n, "acpi", NULL, NULL);
	libvirt_xml_add(n, "apic", NULL, NULL);
	libvirt_xml_add(domain, "clock", NULL, "offset", "utc", NULL);
	add_devices(domain);
	return doc;
}

static int define_new(struct libvirt *lv, virConnectPtr conn, const char *uuid, const char *id, struct define *d,
		      struct err *e)
{
	_cleanup_doc_ xmlDocPtr doc = new_domain(uuid, id, d->name ?: id, !lv->tcg && host_has_kvm(conn));
	_cleanup_domain_ virDomainPtr dom = NULL;
	_cleanup_free_ char *text = NULL;
	int r;

	if (!doc)
		return err_nomem(e);
	d->cpus = d->cpus ?: 1;
	d->memory_mib = d->memory_mib ?: 1024;
	d->cpu = d->cpu ?: "host";
	d->firmware = d->firmware ?: "bios";
	d->bus = d->bus ?: "virtio";
	d->network = d->network ?: lv->network;
	r = apply_define(conn, xmlDocGetRootElement(doc), d, e);
	r = r ?: libvirt_xml_text(doc, &text, e);
	if (r < 0)
		return r;
	dom = virDomainDefineXML(conn, text);
	return dom ? 0 : libvirt_fail(e, "domain '%s' can't be defined", d->name ?: id);
}

static int define_again(virConnectPtr conn, virDomainPtr old, const struct define *d, struct err *e)
{
	_cleanup_domain_ virDomainPtr dom = NULL;
	_cleanup_doc_ xmlDocPtr doc = NULL;
	_cleanup_free_ char *text = NULL;
	int r;

	if (virDomainIsActive(old) != 0)
		return err_set(e, -EBUSY, "the instance is running; its settings are changed while it is off");
	if (d->name && strcmp(d->name, virDomainGetName(old)) != 0 && virDomainRename(old, d->name, 0) < 0)
		return libvirt_fail(e, "the domain can't be renamed");
	r = libvirt_domain_doc(old, true, true, &doc, e);
	r = r ?: apply_define(conn, xmlDocGetRootElement(doc), d, e);
	r = r ?: libvirt_xml_text(doc, &text, e);
	if (r < 0)
		return r;
	dom = virDomainDefineXML(conn, text);
	return dom ? 0 : libvirt_fail(e, "the domain can't be defined anew");
}

int libvirt_define(struct hypervisor *h, const char *id, const json_t *settings, char ret_ref[HYPERVISOR_REF_MAX],
		   struct err *e)
{
	struct libvirt *lv = libvirt_of(h);
	_cleanup_conn_ virConnectPtr conn = NULL;
	_cleanup_domain_ virDomainPtr dom = NULL;
	struct define d = {0};
	bool there = strlen(id) == 36 && strspn(id, "0123456789abcdef-") == 36; /* an existing domain, by its UUID */
	char uuid[37];
	int r = read_define(settings, &d, e);

	r = r ?: libvirt_link(lv, &conn, e);
	if (r < 0)
		return r;
	if (there)
		snprintf(uuid, sizeof(uuid), "%s", id);
	else
		libvirt_uuid_of(id, uuid);
	dom = virDomainLookupByUUIDString(conn, uuid);
	if (dom)
		r = define_again(conn, dom, &d, e);
	else if (there || virGetLastErrorCode() != VIR_ERR_NO_DOMAIN)
		r = libvirt_fail(e, "domain '%s'", uuid);
	else
		r = define_new(lv, conn, uuid, id, &d, e);
	if (r == 0)
		snprintf(ret_ref, HYPERVISOR_REF_MAX, "%s", uuid);
	return r;
}
