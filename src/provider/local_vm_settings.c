/* What an instance is made of: what people ask for, what it had, and what is chosen for them. */
#include "provider/local_vm_int.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>

#include "base/err.h"
#include "base/jsn.h"
#include "base/str.h"

#define SETTINGS_ADDRESS "10.0.2.15" /* as QEMU has it */

/* ---- one member each ---- */

static int settings_name(const json_t *o, struct vm_settings *s, struct err *e)
{
	const char *name = NULL;
	int r = jsn_get_str(o, "name", true, sizeof(s->name) - 1, &name, e);

	if (r < 0)
		return r;
	for (const char *p = name; *p; p++)
		if ((unsigned char)*p < ' ' || *p == 0x7f)
			return err_set(e, -EINVAL, "the name of an instance has no control characters");
	snprintf(s->name, sizeof(s->name), "%s", name);
	return *name ? 0 : err_set(e, -EINVAL, "the name of an instance is not empty");
}

static int settings_mac(const json_t *o, struct vm_settings *s, struct err *e)
{
	const char *mac = NULL;
	unsigned char b[6];
	int end = 0, r = jsn_get_str(o, "mac", true, 17, &mac, e);

	if (r < 0)
		return r;
	if (sscanf(mac, "%2hhx:%2hhx:%2hhx:%2hhx:%2hhx:%2hhx%n", &b[0], &b[1], &b[2], &b[3], &b[4], &b[5], &end) != 6 ||
	    end != 17 || mac[17] || strspn(mac, "0123456789abcdefABCDEF:") != 17)
		return err_set(e, -EINVAL, "'%s' is no address of a network card ('52:54:00:12:34:56')", mac);
	if (b[0] & 1)
		return err_set(e, -EINVAL, "'%s' is an address of a group, not of one network card", mac);
	snprintf(s->mac, sizeof(s->mac), "%s", mac);
	s->card.mac = s->mac;
	return 0;
}

static int settings_address(const json_t *o, struct vm_settings *s, struct err *e)
{
	const char *text = NULL;
	unsigned char b[4];
	int r = jsn_get_str(o, "address", true, 15, &text, e);

	if (r < 0)
		return r;
	if (inet_pton(AF_INET, text, b) != 1)
		return err_set(e, -EINVAL, "'%s' is no IPv4 address", text);
	if (b[0] == 0 || b[0] == 127 || b[0] >= 224 || b[3] == 0 || b[3] == 255)
		return err_set(e, -EINVAL, "'%s' is no address that a guest could have", text);
	snprintf(s->address, sizeof(s->address), "%u.%u.%u.%u", b[0], b[1], b[2], b[3]);
	s->card.address = s->address;
	return 0;
}

static int settings_forward(const json_t *o, struct vm_settings *s, struct err *e)
{
	uint64_t host = 0, guest = 0;
	struct qemu_net *n = &s->card;
	int r = json_is_object(o) ? 0 : err_set(e, -EINVAL, "a forward is an object with 'host' and 'guest'");

	r = r ?: jsn_get_u64(o, "host", false, 0, 65535, &host, e);
	r = r ?: jsn_get_u64(o, "guest", true, 1, 65535, &guest, e);
	if (r < 0)
		return r;
	for (size_t i = 0; i < n->nforwards; i++)
		if ((host && n->forwards[i].host == host) || (!host && n->forwards[i].guest == guest))
			return err_set(e, -EEXIST, "two forwards have the port %llu",
				       (unsigned long long)(host ? host : guest));
	n->forwards[n->nforwards].host = (unsigned)host;
	n->forwards[n->nforwards++].guest = (unsigned)guest;
	return 0;
}

static int settings_forwards(const json_t *o, struct vm_settings *s, struct err *e)
{
	const json_t *list = json_object_get(o, "forwards");
	size_t n = json_array_size(list);

	if (list && (!json_is_array(list) || n > QEMU_FORWARDS_MAX))
		return err_set(e, -EINVAL, "'forwards' is an array of at most %u", QEMU_FORWARDS_MAX);
	for (size_t i = 0; i < n; i++) {
		int r = settings_forward(json_array_get(list, i), s, e);

		if (r < 0)
			return r;
	}
	if (n && !s->net)
		return err_set(e, -EINVAL, "there is nothing to forward to without a network ('network' is 'none')");
	return 0;
}

static int settings_network(const json_t *o, struct vm_settings *s, struct err *e)
{
	const char *network = "user";
	int r = jsn_get_str(o, "network", false, 64, &network, e);

	if (r < 0)
		return r;
	s->net = strcmp(network, "user") == 0;
	if (!s->net && strcmp(network, "none") != 0)
		return err_set(e, -EINVAL, "network '%s' is not known here (there are 'user' and 'none')", network);
	return 0;
}

static int settings_known(const json_t *o, struct err *e)
{
	static const char *const known[] = {"name", "cpus",    "memory_mib", "cpu",     "firmware",
					    "bus",  "network", "mac",        "address", "forwards"};
	const char *key;
	json_t *v;

	json_object_foreach((json_t *)(uintptr_t)o, key, v)
	{
		bool found = false;

		for (size_t i = 0; i < ARRAY_SIZE(known); i++)
			found |= strcmp(known[i], key) == 0;
		if (!found)
			return err_set(e, -EINVAL, "'%s' is no setting of an instance", key);
	}
	return 0;
}

int vm_settings_read(const json_t *o, struct vm_settings *ret, struct err *e)
{
	int r;

	*ret = (struct vm_settings){.hw = {.cpus = 1, .memory_mib = 1024}};
	r = settings_known(o, e);
	r = r ?: settings_name(o, ret, e);
	r = r ?: local_hw_read(o, &ret->hw, e);
	r = r ?: settings_network(o, ret, e);
	r = r ?: settings_mac(o, ret, e);
	r = r ?: settings_address(o, ret, e);
	return r ?: settings_forwards(o, ret, e);
}

/* ---- what is chosen ---- */

struct settings_ports {
	const struct vm *vm;
	const struct vm_settings *s;
};

/* Two that could not run at the same time. */
static int settings_clash(void *arg, const char *ref, struct err *e)
{
	const struct settings_ports *p = arg;
	_cleanup_json_ json_t *settings = NULL;
	struct vm_settings other;
	struct local_path path;

	if (strcmp(ref, p->vm->ref) == 0)
		return 0;
	if (local_path(p->vm->l, &path, NULL, "instances/%s/settings.json", ref) < 0 ||
	    local_read_json(path.s, &settings, NULL) < 0 || vm_settings_read(settings, &other, NULL) < 0)
		return 0; /* it can't start either */
	for (size_t i = 0; i < other.card.nforwards; i++)
		for (size_t k = 0; k < p->s->card.nforwards; k++)
			if (other.card.forwards[i].host == p->s->card.forwards[k].host)
				return err_set(e, -EEXIST, "port %u of the host is forwarded to instance '%s' already",
					       other.card.forwards[i].host, other.name);
	return 0;
}

static unsigned settings_free_port(void)
{
	_cleanup_close_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t n = sizeof(at);

	if (fd < 0 || bind(fd, (struct sockaddr *)&at, n) < 0 || getsockname(fd, (struct sockaddr *)&at, &n) < 0)
		return 0;
	return ntohs(at.sin_port);
}

/* The port that the same forward had. */
static unsigned settings_had_port(const json_t *had, unsigned guest)
{
	json_t *o;
	size_t i;

	json_array_foreach(json_object_get(had, "forwards"), i, o)
	{
		uint64_t host = 0;

		if (json_integer_value(json_object_get(o, "guest")) == (json_int_t)guest &&
		    jsn_get_u64(o, "host", true, 1, 65535, &host, NULL) == 0)
			return (unsigned)host;
	}
	return 0;
}

static bool settings_has_port(const struct qemu_net *n, unsigned host)
{
	for (size_t i = 0; i < n->nforwards; i++)
		if (n->forwards[i].host == host)
			return true;
	return false;
}

/* Each forward without a port of the host gets one that is free now and nobody's. */
static int settings_choose_ports(const struct vm *vm, const json_t *had, struct vm_settings *s, struct err *e)
{
	struct settings_ports p = {vm, s};

	for (size_t i = 0; i < s->card.nforwards; i++) {
		unsigned port = settings_had_port(had, s->card.forwards[i].guest);

		if (s->card.forwards[i].host)
			continue;
		for (unsigned tries = 0; tries < 100; tries++) {
			struct vm_settings one = {.card = {.nforwards = 1}};
			struct settings_ports alone = {vm, &one};

			one.card.forwards[0].host = port;
			if (port && !settings_has_port(&s->card, port) &&
			    vm_each(vm->l, settings_clash, &alone, NULL) == 0)
				break;
			port = settings_free_port();
		}
		if (!port || settings_has_port(&s->card, port))
			return err_set(e, -EADDRINUSE, "no port of the host is free for a forward");
		s->card.forwards[i].host = port;
	}
	return vm_each(vm->l, settings_clash, &p, e);
}

static json_t *settings_tell(const struct vm_settings *s)
{
	json_t *o = json_pack("{s:s, s:I, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:[]}", "name", s->name, "cpus",
			      (json_int_t)s->hw.cpus, "memory_mib", (json_int_t)s->hw.memory_mib, "cpu", s->hw.cpu,
			      "firmware", s->hw.uefi ? "uefi" : "bios", "bus", local_buses[s->hw.bus], "network",
			      s->net ? "user" : "none", "mac", s->mac, "address", s->address, "forwards");

	for (size_t i = 0; o && i < s->card.nforwards; i++)
		json_array_append_new(json_object_get(o, "forwards"),
				      json_pack("{s:i, s:i}", "host", (int)s->card.forwards[i].host, "guest",
						(int)s->card.forwards[i].guest));
	return o;
}

/* What isn't asked for is as it was, else as it is by default. */
static int settings_merge(const struct vm *vm, const json_t *wanted, const json_t *had, const char *accel, json_t **ret,
			  struct err *e)
{
	const char *cpu = strcmp(accel, "kvm") == 0 ? "host" : "max", *key;
	json_t *o, *v;
	uint8_t id[3];

	if (wanted && !json_is_object(wanted))
		return err_set(e, -EINVAL, "the settings of an instance are an object");
	id_random(id, sizeof(id));
	o = json_pack("{s:s, s:s, s:s, s:o}", "name", vm->ref, "cpu", cpu, "address", SETTINGS_ADDRESS, "mac",
		      json_sprintf("52:54:00:%02x:%02x:%02x", id[0], id[1], id[2]));
	if (!o || (had && json_object_update(o, (json_t *)(uintptr_t)had) < 0)) {
		json_decref(o);
		return err_nomem(e);
	}
	json_object_foreach((json_t *)(uintptr_t)wanted, key, v) if (!json_is_null(v)) json_object_set(o, key, v);
	if (strcmp(json_string_value(json_object_get(o, "network")) ?: "", "none") == 0 &&
	    !json_object_get(wanted, "forwards"))
		json_object_del(o, "forwards");
	*ret = o;
	return 0;
}

int vm_settings_make(const struct vm *vm, const json_t *wanted, const json_t *had, json_t **ret, struct err *e)
{
	_cleanup_json_ json_t *merged = NULL;
	struct vm_settings s;
	const char *accel = NULL;
	int r = qemu_accelerator(vm->l->cache, vm->l->user, &accel, e);

	r = r ?: settings_merge(vm, wanted, had, accel, &merged, e);
	r = r ?: vm_settings_read(merged, &s, e);
	r = r ?: local_hw_check(&s.hw, accel, e);
	r = r ?: settings_choose_ports(vm, had, &s, e);
	if (r < 0)
		return r;
	*ret = settings_tell(&s);
	return *ret ? 0 : err_nomem(e);
}
