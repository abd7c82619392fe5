/* QEMU's command line. */
#include "provider/qemu_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "base/id.h"
#include "base/ip4.h"
#include "base/jsn.h"
#include "base/util.h"

void qemu_args_release(struct qemu_args *a)
{
	for (size_t i = 0; i < a->nopened; i++)
		close(a->opened[i]);
	for (size_t i = 0; i < a->n; i++)
		free(a->v[i]);
}

static void args_take(struct qemu_args *a, char *s)
{
	if (!s || a->n + 1 >= ARRAY_SIZE(a->v)) {
		free(s);
		a->failed = true;
		return;
	}
	a->v[a->n++] = s;
}

static void args_add(struct qemu_args *a, const char *option, const char *value)
{
	args_take(a, strdup(option));
	if (value)
		args_take(a, strdup(value));
}

/* JSON, because a path may hold what QEMU's own option syntax would split. Takes `o`. */
static void args_json(struct qemu_args *a, const char *option, json_t *o)
{
	args_take(a, strdup(option));
	args_take(a, o ? jsn_text(o) : NULL);
	json_decref(o);
}

static int args_open(struct qemu_args *a, const char *path, char *out, size_t size, struct err *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return err_sys(e, "cannot open '%s'", path);
	a->opened[a->nopened++] = fd;
	snprintf(out, size, "/proc/self/fd/%d", fd);
	return 0;
}

/* ---- disks ---- */

#define SATA_PORTS 6

/* q35 has one controller for SATA, ide.0 to ide.5; further ones are ours. */
static void args_controllers(struct qemu_args *a, const struct qemu_settings *s)
{
	if (s->bus == QEMU_SCSI && s->ndisks)
		args_add(a, "-device", "virtio-scsi-pci,id=scsi");
	for (size_t i = 1; s->bus == QEMU_SATA && i * SATA_PORTS < s->ndisks; i++) {
		args_take(a, strdup("-device"));
		args_take(a, str_printf("ich9-ahci,id=sata%zu", i));
	}
}

static json_t *args_device(enum qemu_bus bus, size_t i)
{
	if (bus == QEMU_SCSI)
		return json_pack("{s:s, s:s, s:i}", "driver", "scsi-hd", "bus", "scsi.0", "scsi-id", (int)i);
	if (bus == QEMU_SATA)
		return json_pack("{s:s, s:o}", "driver", "ide-hd", "bus",
				 i < SATA_PORTS ? json_sprintf("ide.%zu", i)
						: json_sprintf("sata%zu.%zu", i / SATA_PORTS, i % SATA_PORTS));
	return json_pack("{s:s}", "driver", "virtio-blk-pci");
}

static int args_disk(struct qemu_args *a, const struct qemu_settings *s, size_t i, struct err *e)
{
	const struct qemu_disk *d = &s->disks[i];
	char node[32], opened[32];
	const char *path = d->readonly ? opened : d->path;
	int r = d->readonly ? args_open(a, d->path, opened, sizeof(opened), e) : 0;
	json_t *device;

	if (r < 0)
		return r;
	snprintf(node, sizeof(node), "disk%zu", i);
	/* What isn't durable is thrown away or synced by the provider afterwards: flushes cost time for nothing. */
	args_json(a, "-blockdev",
		  json_pack("{s:s, s:s, s:b, s:s, s:{s:b}, s:{s:s, s:s, s:{s:b}}}", "node-name", node, "driver",
			    d->format, "read-only", d->readonly, "discard", "unmap", "cache", "no-flush", !s->durable,
			    "file", "driver", "file", "filename", path, "cache", "no-flush", !s->durable));
	device = args_device(s->bus, i);
	json_object_set_new(device, "id", json_string(node));
	json_object_set_new(device, "drive", json_string(node));
	json_object_set_new(device, "serial", json_string(d->serial));
	if (device && d->boot)
		json_object_set_new(device, "bootindex", json_integer(1));
	args_json(a, "-device", device);
	return 0;
}

/* ---- the machine ---- */

static void args_channel(struct qemu_args *a, const char *id, int fd, const char *more)
{
	args_take(a, strdup("-chardev"));
	args_take(a, str_printf("socket,id=%s,fd=%d%s", id, fd, more));
}

static void args_flash(struct qemu_args *a, const char *node, const char *path, bool readonly)
{
	args_json(a, "-blockdev",
		  json_pack("{s:s, s:s, s:b, s:{s:s, s:s}}", "node-name", node, "driver", "raw", "read-only", readonly,
			    "file", "driver", "file", "filename", path));
}

static void args_firmware(struct qemu_args *a, const struct qemu_settings *s)
{
	/* graphics=off: the firmware, and through it GRUB, also write on the serial line. */
	args_take(a, strdup("-machine"));
	args_take(a, str_printf("q35,graphics=off,usb=off,vmport=off%s",
				s->uefi_code ? ",pflash0=uefi-code,pflash1=uefi-vars" : ""));
	if (s->uefi_code) {
		args_flash(a, "uefi-code", s->uefi_code, true);
		args_flash(a, "uefi-vars", s->uefi_vars, false);
	}
}

static void args_machine(struct qemu_args *a, const struct qemu_settings *s)
{
	bool kvm = strcmp(s->accel, "kvm") == 0;

	args_add(a, QEMU_PROGRAM, NULL);
	args_add(a, "-nodefaults", NULL);
	args_add(a, "-no-user-config", NULL);
	args_add(a, s->life ? "-no-shutdown" : "-no-reboot", NULL);
	args_firmware(a, s);
	/*
	 * One thread for all processors: QEMU before 8.1 does not lock a page while it translates it, so that a kernel
	 * that patches its own code on one processor (a static key) can crash on another at an int3 long gone.
	 */
	args_add(a, "-accel", kvm ? "kvm" : "tcg,thread=single");
	args_add(a, "-cpu", s->cpu ? s->cpu : kvm ? "host" : "max");
	args_take(a, strdup("-m"));
	args_take(a, str_printf("%u", s->memory_mib));
	args_take(a, strdup("-smp"));
	args_take(a, str_printf("%u", s->cpus));
	args_add(a, "-display", "none");
	args_add(a, "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
	if (s->screen)
		args_add(a, "-device", "VGA");
	if (s->kernel) {
		args_add(a, "-kernel", s->kernel);
		args_add(a, "-initrd", s->initrd);
		args_add(a, "-append", s->append);
	}
}

static void args_channels(struct qemu_args *a, const struct qemu_settings *s, const int child[CH_COUNT])
{
	args_channel(a, "qmp", child[CH_QMP], s->life ? ",server=on,wait=off" : "");
	args_add(a, "-mon", "chardev=qmp,mode=control");
	/* Nobody listens all the time to one that outlives us: QEMU keeps the last of it. */
	if (s->life) {
		args_take(a, strdup("-chardev"));
		args_take(a, str_printf("ringbuf,id=serial,size=%u", QEMU_SERIAL_KEPT));
	} else {
		args_channel(a, "serial", child[CH_SERIAL], "");
	}
	args_add(a, "-device", "isa-serial,chardev=serial");
	if (!s->port)
		return;
	args_add(a, "-device", "virtio-serial-pci");
	args_channel(a, "port", child[CH_PORT], "");
	args_json(a, "-device",
		  json_pack("{s:s, s:s, s:s}", "driver", "virtserialport", "chardev", "port", "name", s->port));
}

/* ---- network ---- */

static void args_card(struct qemu_args *a, const char *mac)
{
	args_take(a, strdup("-device"));
	args_take(a, str_printf("virtio-net-pci,netdev=net,romfile=,mac=%s", mac));
}

/* The host is .2 and the name server .3, as QEMU has them, unless the guest is. */
static void args_net(struct qemu_args *a, const struct qemu_net *net)
{
	const char *dot = strrchr(net->address, '.');
	int prefix = (int)(dot - net->address), last = atoi(dot + 1);
	_cleanup_(str_release) struct str s = {0};

	str_addf(&s, "user,id=net,ipv6=off,net=%.*s.0/24,host=%.*s.%d,dns=%.*s.%d,dhcpstart=%s", prefix, net->address,
		 prefix, net->address, last == 2 ? 254 : 2, prefix, net->address, last == 3 ? 254 : 3, net->address);
	for (size_t i = 0; i < net->nforwards; i++)
		str_addf(&s, ",hostfwd=tcp:127.0.0.1:%u-%s:%u", net->forwards[i].host, net->address,
			 net->forwards[i].guest);
	args_take(a, strdup("-netdev"));
	args_take(a, str_take(&s));
	args_card(a, net->mac);
}

/*
 * The network around an address: its gateway is QEMU, which answers there. What DHCP gives is another address, lest a
 * card that asks for one looks like one that was set up. (In a network of four it is no card's at all.)
 */
static char *args_subnet(const struct ip4_plan *p)
{
	uint32_t net = p->address & ip4_mask(p->prefix), last = net | ~ip4_mask(p->prefix), host = p->gateway, dhcp,
		 dns;
	char n[IP4_TEXT_MAX], h[IP4_TEXT_MAX], d[IP4_TEXT_MAX], s[IP4_TEXT_MAX];

	for (host = host ? host : net + 1; host == p->address; host++)
		;
	for (dns = net + 1; dns == p->address || dns == host; dns++)
		;
	for (dhcp = dns + 1; dhcp == p->address || dhcp == host; dhcp++)
		;
	return str_printf(",net=%s/%u,host=%s,dns=%s,dhcpstart=%s", ip4_format(net, n), p->prefix, ip4_format(host, h),
			  ip4_format(dns, s), ip4_format(dhcp > last ? net : dhcp, d));
}

static void args_closed_net(struct qemu_args *a, const struct ip4_plan *plan)
{
	_cleanup_free_ char *subnet = plan ? args_subnet(plan) : strdup("");
	char mac[18];
	uint8_t id[3];

	id_random(id, sizeof(id));
	snprintf(mac, sizeof(mac), "52:54:00:%02x:%02x:%02x", id[0], id[1], id[2]);
	args_take(a, strdup("-netdev"));
	args_take(a, subnet ? str_printf("user,id=net,restrict=on%s", subnet) : NULL);
	args_card(a, mac);
}

int qemu_args_build(struct qemu_args *a, const struct qemu_settings *s, const int child[CH_COUNT], struct err *e)
{
	int r = 0;

	must(s->ndisks <= QEMU_DISKS_MAX);
	args_machine(a, s);
	if (s->life) {
		args_add(a, "-S", "-pidfile");
		args_take(a, str_printf("%s/pid", s->life->scratch));
	}
	args_channels(a, s, child);
	args_add(a, "-device", "virtio-rng-pci");
	args_controllers(a, s);
	for (size_t i = 0; i < s->ndisks && r == 0; i++)
		r = args_disk(a, s, i, e);
	if (s->net)
		args_net(a, s->net);
	else if (s->network)
		args_closed_net(a, s->plan);
	return r == 0 && a->failed ? err_nomem(e) : r;
}
