/* What the hypervisor "libvirt" does without a host: addresses, names, pictures, XML. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cmocka.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/proc.h"
#include "base/str.h"
#include "provider/libvirt_int.h"

/* Python's zlib and checksums are the oracle. */
static bool oracle(const char *path, const char *pixels, unsigned width, unsigned height)
{
	static const char program[] =
	    "import struct,sys,zlib\n"
	    "d=open(sys.argv[1],'rb').read();w,h=int(sys.argv[2]),int(sys.argv[3]);at=8;z=b'';kinds=[]\n"
	    "assert d[:8]==b'\\x89PNG\\r\\n\\x1a\\n'\n"
	    "while at<len(d):\n"
	    " n,k=struct.unpack('>I4s',d[at:at+8]);b=d[at+8:at+8+n];kinds.append(k)\n"
	    " assert struct.unpack('>I',d[at+8+n:at+12+n])[0]==zlib.crc32(k+b);at+=12+n\n"
	    " if k==b'IHDR': assert struct.unpack('>IIBBBBB',b)==(w,h,8,2,0,0,0)\n"
	    " if k==b'IDAT': z+=b\n"
	    "raw=zlib.decompress(z);want=open(sys.argv[4],'rb').read();assert kinds==[b'IHDR',b'IDAT',b'IEND']\n"
	    "assert raw==b''.join(b'\\0'+want[y*w*3:(y+1)*w*3] for y in range(h))\n";
	char w[16], h[16];
	const char *const argv[] = {"python3", "-c", program, path, w, h, pixels, NULL};

	snprintf(w, sizeof(w), "%u", width);
	snprintf(h, sizeof(h), "%u", height);
	return proc_run(argv, 65536, NULL, NULL) == 0;
}

static void write_all(const char *path, const void *p, size_t n)
{
	FILE *f = fopen(path, "wb");

	assert_non_null(f);
	assert_int_equal(fwrite(p, 1, n, f), n);
	fclose(f);
}

/* Lines that are alike, noise, and single bytes in long runs of every length. */
static void fill(unsigned char *p, size_t n, unsigned kind)
{
	for (size_t i = 0; i < n; i++)
		p[i] = kind == 0            ? 0
		       : kind == 1          ? (unsigned char)(rand() >> 7)
		       : (i / 257) % 3 == 0 ? 255
					    : (unsigned char)(i / 1000);
}

static void test_pictures(void **state)
{
	static const unsigned sizes[][2] = {{1, 1}, {7, 3}, {720, 400}, {86, 1}, {87, 2}};
	char path[64], pixels[64];

	snprintf(path, sizeof(path), "/tmp/replant-%d.png", (int)getpid());
	snprintf(pixels, sizeof(pixels), "/tmp/replant-%d.rgb", (int)getpid());
	for (unsigned kind = 0; kind < 3; kind++)
		for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
			unsigned w = sizes[i][0], h = sizes[i][1];
			_cleanup_(str_release) struct str ppm = {0}, png = {0};
			_cleanup_free_ unsigned char *p = malloc((size_t)w * h * 3);

			assert_non_null(p);
			fill(p, (size_t)w * h * 3, kind);
			str_addf(&ppm, "P6\n# by a host\n%u %u\n255\n", w, h);
			str_add_mem(&ppm, p, (size_t)w * h * 3);
			assert_int_equal(libvirt_png(ppm.s, ppm.len, &png, NULL), 0);
			write_all(path, png.s, png.len);
			write_all(pixels, p, (size_t)w * h * 3);
			assert_true(oracle(path, pixels, w, h));
			if (kind == 0 && w == 720)
				assert_true(png.len < 20000);
		}
	unlink(path);
	unlink(pixels);
}

static void test_pictures_that_are_none(void **state)
{
	static const char *const bad[] = {"",
					  "P6",
					  "P5 1 1 255\n123",
					  "P6 1 1 255\n12",
					  "P6 1 1 255",
					  "P6 0 1 255\nxxx",
					  "P6 99999 1 255\nxxx",
					  "P6 16384 16384 255\nxxx",
					  "P6 1 1 65535\nxxxxxx",
					  "P6 -1 1 255\nxxx",
					  "P6 #",
					  "P6 1 1 99999999999999999999\nxxx"};

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		_cleanup_(str_release) struct str png = {0};

		assert_int_equal(libvirt_png(bad[i], strlen(bad[i]), &png, NULL), -EPROTO);
		assert_int_equal(png.len, 0);
	}
}

static void test_addresses(void **state)
{
	static const char *const good[] = {
	    "qemu:///system", "qemu+ssh://root@host.example/system", "qemu+tls://[2001:db8::1]/system",
	    "qemu+ssh://u@h:2222/system?keyfile=/root/.ssh/id&mode=direct", "test:///default"};
	static const char *const bad[] = {"",
					  "qemu",
					  "qemu://",
					  "qemu+tcp://host/system",
					  "qemu+ext://host/system?command=/bin/sh",
					  "qemu+ssh://root:secret@host/system",
					  "qemu+ssh://host/system?command=x",
					  "qemu+ssh://host/system?mode=auto&netcat=x",
					  "qemu+ssh://host/system?&command=x",
					  "qemu+ssh://host/system?mode=auto&&command=x",
					  "qemu+ssh://host/system?socke=x",
					  "qemu+ssh://host/system;x",
					  "qemu+ssh://h?command=/x",
					  "qemu+ssh://h?command=/x&socket=/y",
					  "qemu+ssh://h#/system?command=x",
					  "qemu+ssh://h:pw@x?socket=/y",
					  "qemu+ssh://h:pw@x?command=/y",
					  "qemu+ssh://%2Dohost/system",
					  "qemu+ssh://u@%2dohost/system",
					  "qemu+ssh://-ohost/system",
					  "qemu+libssh://host/system?known_hosts_verify=ignore",
					  "test:///x"};
	_cleanup_free_ char *full = libvirt_full_uri("qemu+ssh://h/system"),
			    *more = libvirt_full_uri("qemu+ssh://h/system?mode=direct"),
			    *other = libvirt_full_uri("qemu:///system");

	for (size_t i = 0; i < ARRAY_SIZE(good); i++)
		assert_int_equal(libvirt_check_uri(good[i], NULL), 0);
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(libvirt_check_uri(bad[i], NULL), -EINVAL);
	assert_string_equal(full, "qemu+ssh://h/system?no_tty=1");
	assert_string_equal(more, "qemu+ssh://h/system?mode=direct&no_tty=1");
	assert_string_equal(other, "qemu:///system");
}

#define REF "6212a06c-ac8b-80f7-a9f4-a2667fb81787"

static void test_names_of_volumes(void **state)
{
	static const char *const others[] = {"replant-" REF "-a-disk64.qcow2",
					     "replant-" REF "-a-disk.qcow2",
					     "replant-" REF "--disk0.qcow2",
					     "replant-" REF "-disk0.qcow2",
					     "replant-" REF "-a-disk0.qcow2x",
					     "replant-" REF "-a-disk-1.qcow2",
					     "replant-" REF "-a-disk0x.qcow2",
					     "replant-7212a06c-ac8b-80f7-a9f4-a2667fb81787-a-disk0.qcow2",
					     "replant-" REF
					     "-aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-disk0.qcow2",
					     "/x/y",
					     ""};
	char name[LIBVIRT_NAME_MAX], path[LIBVIRT_NAME_MAX + 8], set[HYPERVISOR_SET_MAX];
	size_t n;

	libvirt_volume_name(REF, "set-disk3-x", 12, name);
	assert_string_equal(name, "replant-" REF "-set-disk3-x-disk12.qcow2");
	snprintf(path, sizeof(path), "/a/b/%s", name);
	assert_true(libvirt_volume_parse(REF, path, set, &n));
	assert_string_equal(set, "set-disk3-x");
	assert_int_equal(n, 12);
	for (size_t i = 0; i < ARRAY_SIZE(others); i++)
		assert_false(libvirt_volume_parse(REF, others[i], set, &n));
}

static void test_xml_that_is_refused(void **state)
{
	static const char *const bad[] = {"",
					  "<a",
					  "x",
					  "<!DOCTYPE a [<!ENTITY b SYSTEM \"file:///etc/passwd\">]><a>&b;</a>",
					  "<!DOCTYPE a><a/>",
					  "<a>&b;</a>"};
	_cleanup_doc_ xmlDocPtr doc = NULL;

	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		assert_int_equal(libvirt_xml_parse(bad[i], &doc, NULL), -EPROTO);
	assert_null(doc);
}

/* What people name becomes text, whatever it holds. */
static void test_xml_that_is_written(void **state)
{
	_cleanup_doc_ xmlDocPtr doc = NULL;
	_cleanup_free_ char *text = NULL;
	xmlNodePtr root;
	char got[64];

	assert_int_equal(libvirt_xml_parse("<d><!-- c --><x:y xmlns:x='u'>&lt;</x:y></d>", &doc, NULL), 0);
	root = xmlDocGetRootElement(doc);
	libvirt_xml_add(root, "name", "a</name>&amp;<b>", "q", "'\"<&>", NULL);
	assert_int_equal(libvirt_xml_text(doc, &text, NULL), 0);
	assert_string_equal(text, "<d><!-- c --><x:y xmlns:x=\"u\">&lt;</x:y><name "
				  "q=\"'&quot;&lt;&amp;&gt;\">a&lt;/name&gt;&amp;amp;&lt;b&gt;</name></d>");
	assert_true(libvirt_xml_attr(libvirt_xml_first(root, "name"), "q", got, sizeof(got)));
	assert_string_equal(got, "'\"<&>");
	assert_false(libvirt_xml_attr(libvirt_xml_first(root, "name"), "q", got, 3));
	assert_false(libvirt_xml_attr(NULL, "q", got, sizeof(got)));
	assert_string_equal(got, "");
}

/* ---- sets, with the library's driver "test" ---- */

static const char host_settings[] = "{\"uri\": \"test:///default\", \"pool\": \"default-pool\"}";

struct test_host {
	char dir[32];
	virConnectPtr conn;
	struct hypervisor *h;
};

static int begin_host(void **state)
{
	struct test_host *t = calloc(1, sizeof(*t));
	_cleanup_json_ json_t *settings = json_loads(host_settings, 0, NULL);
	struct provider_settings s = {.programs = ""};

	assert_non_null(t);
	snprintf(t->dir, sizeof(t->dir), "/tmp/replant-XXXXXX");
	assert_non_null(mkdtemp(t->dir));
	s.dir = s.cache = t->dir;
	assert_int_equal(libvirt_open(&s, settings, &t->h, NULL), 0);
	t->conn = virConnectOpen("test:///default");
	assert_non_null(t->conn);
	*state = t;
	return 0;
}

static int end_host(void **state)
{
	struct test_host *t = *state;

	virConnectClose(t->conn);
	t->h->ops->close(t->h);
	io_remove_tree(t->dir, NULL);
	free(t);
	return 0;
}

/* Off, on that set; `entries` are those of the mark. */
static virDomainPtr begin_domain(struct test_host *t, const char *used, const char *entries)
{
	_cleanup_free_ char *text = str_printf(
	    "<domain type='test'><name>it</name><uuid>" REF "</uuid><memory>65536</memory>"
	    "<metadata><replant:instance xmlns:replant='" LIBVIRT_NAMESPACE "' id='instance-1'>%s</replant:instance>"
	    "</metadata><os><type>hvm</type></os><devices><disk type='file'><driver type='qcow2'/>"
	    "<source file='/default-pool/replant-" REF
	    "-%s-disk0.qcow2'/><target dev='vda'/></disk></devices></domain>",
	    entries, used);
	_cleanup_pool_ virStoragePoolPtr pool = virStoragePoolLookupByName(t->conn, "default-pool");
	static const char *const sets[] = {"old", "new", "shot"};
	virDomainPtr dom = virDomainDefineXML(t->conn, text);
	char name[LIBVIRT_NAME_MAX];

	assert_non_null(pool);
	assert_non_null(dom);
	for (size_t i = 0; i < ARRAY_SIZE(sets); i++) {
		_cleanup_vol_ virStorageVolPtr vol = NULL;

		libvirt_volume_name(REF, sets[i], 0, name);
		assert_int_equal(libvirt_volume_create(pool, name, 1 << 20, NULL, NULL, &vol, NULL), 0);
	}
	return dom;
}

static void end_domain(struct test_host *t, virDomainPtr dom)
{
	_cleanup_pool_ virStoragePoolPtr pool = virStoragePoolLookupByName(t->conn, "default-pool");
	virStorageVolPtr *all = NULL;
	int n;

	assert_int_equal(virDomainUndefine(dom), 0);
	virDomainFree(dom);
	n = virStoragePoolListAllVolumes(pool, &all, 0);
	for (int i = 0; i < n; i++) {
		virStorageVolDelete(all[i], 0);
		virStorageVolFree(all[i]);
	}
	free(all);
}

/* "old new shot": what is in use, then what there is. */
static void assert_sets(struct test_host *t, const char *want)
{
	_cleanup_(str_release) struct str got = {0};
	_cleanup_json_ json_t *o = NULL;
	json_t *set;
	size_t i;

	assert_int_equal(t->h->ops->get(t->h, REF, &o, NULL), 0);
	str_addf(&got, "%s:", json_string_value(json_object_get(o, "set")) ?: "?");
	json_array_foreach(json_object_get(o, "sets"), i, set)
	    str_addf(&got, " %s", json_string_value(json_object_get(set, "set")));
	assert_string_equal(got.s, want);
}

#define OLD_AND_NEW "<replant:set name='old' disks='1'/><replant:set name='new' disks='1'/>"
#define PENDING     "<replant:set name='shot' on='old' disks='1' pending='yes'/>"

/* It was noted, and nothing came of it. */
static void test_snapshot_that_never_was(void **state)
{
	struct test_host *t = *state;
	const struct hypervisor_ops *o = t->h->ops;
	virDomainPtr dom = begin_domain(t, "new", OLD_AND_NEW PENDING);

	assert_sets(t, "new: old new");
	assert_int_equal(o->set_use(t->h, REF, "old", NULL), 0);
	assert_sets(t, "old: old new");
	assert_int_equal(o->set_use(t->h, REF, "shot", NULL), -ENOENT);
	end_domain(t, dom);

	dom = begin_domain(t, "new", OLD_AND_NEW PENDING);
	assert_int_equal(o->set_drop(t->h, REF, "old", NULL), 0);
	assert_sets(t, "new: new");
	end_domain(t, dom);
}

/* It came about, and nobody was left to say so. */
static void test_snapshot_that_was(void **state)
{
	struct test_host *t = *state;
	const struct hypervisor_ops *o = t->h->ops;
	virDomainPtr dom = begin_domain(t, "shot", OLD_AND_NEW PENDING);

	assert_sets(t, "shot: old new shot");
	assert_int_equal(o->set_use(t->h, REF, "old", NULL), -EBUSY);
	assert_int_equal(o->set_drop(t->h, REF, "old", NULL), -EBUSY);
	assert_int_equal(o->set_use(t->h, REF, "new", NULL), 0);
	assert_sets(t, "new: old new shot");
	assert_int_equal(o->set_use(t->h, REF, "old", NULL), -EBUSY);
	assert_int_equal(o->set_use(t->h, REF, "shot", NULL), 0);
	assert_sets(t, "shot: old new shot");
	end_domain(t, dom);
}

static void test_fork_of_what_is_in_use(void **state)
{
	struct test_host *t = *state;
	const struct hypervisor_ops *o = t->h->ops;
	virDomainPtr dom = begin_domain(t, "new", OLD_AND_NEW);

	assert_int_equal(o->set_fork(t->h, REF, "new", "fork", NULL), -EBUSY);
	assert_int_not_equal(o->set_fork(t->h, REF, "old", "fork", NULL), -EBUSY); /* that driver can't */
	assert_sets(t, "new: old new");
	end_domain(t, dom);
}

/* One says more than is read. */
static void test_domain_that_cant_be_described(void **state)
{
	struct test_host *t = *state;
	virDomainPtr good = begin_domain(t, "new", OLD_AND_NEW), bad;
	_cleanup_(str_release) struct str text = {0};
	_cleanup_json_ json_t *list = NULL;
	unsigned found = 0;
	json_t *o;
	size_t i;

	str_addf(&text, "<domain type='test'><name>big</name><memory>65536</memory><description>");
	for (i = 0; i < LIBVIRT_XML_MAX / 64; i++)
		str_addf(&text, "%064d", 0);
	str_addf(&text, "</description><os><type>hvm</type></os></domain>");
	bad = virDomainDefineXML(t->conn, text.s);
	assert_non_null(bad);
	assert_int_equal(t->h->ops->list(t->h, &list, NULL), 0);
	json_array_foreach(list, i, o)
	{
		const char *name = json_string_value(json_object_get(o, "name"));
		const char *problem = json_string_value(json_object_get(o, "problem"));

		found += strcmp(name, "it") == 0 && !problem;
		found += strcmp(name, "big") == 0 && problem && *problem;
	}
	assert_int_equal(found, 2);
	assert_int_equal(virDomainUndefine(bad), 0);
	virDomainFree(bad);
	end_domain(t, good);
}

/* A host that takes connections and says nothing: each attempt is one. */
static void test_host_that_hangs(void **state)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	struct libvirt lv = {.lock = PTHREAD_MUTEX_INITIALIZER};
	struct libvirt_patience before = libvirt_patience;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), got[8], n = 0;
	virConnectPtr conn;

	snprintf(a.sun_path, sizeof(a.sun_path), "/tmp/replant-%d.sock", (int)getpid());
	assert_int_equal(bind(fd, (struct sockaddr *)(void *)&a, sizeof(a)), 0);
	assert_int_equal(listen(fd, 8), 0);
	lv.uri = str_printf("qemu+unix:///system?socket=%s", a.sun_path);
	libvirt_patience = (struct libvirt_patience){.caller = 1, .dial = 0, .dials = 3};
	for (int i = 0; i < 5; i++)
		assert_int_equal(libvirt_link(&lv, &conn, NULL), -ETIMEDOUT);
	while (n < 8 && (got[n] = accept(fd, NULL, NULL)) >= 0)
		n++;
	assert_int_equal(n, 3); /* no more of them at a time */
	close(got[0]);
	sleep(1);
	assert_int_equal(libvirt_link(&lv, &conn, NULL), -ETIMEDOUT);
	assert_true((got[n] = accept(fd, NULL, NULL)) >= 0);
	for (; n > 0; n--)
		close(got[n]);
	libvirt_unlink(&lv);
	libvirt_patience = before;
	free(lv.uri);
	close(fd);
	unlink(a.sun_path);
}

int main(void)
{
	const struct CMUnitTest sets[] = {
	    cmocka_unit_test(test_snapshot_that_never_was),
	    cmocka_unit_test(test_snapshot_that_was),
	    cmocka_unit_test(test_fork_of_what_is_in_use),
	    cmocka_unit_test(test_domain_that_cant_be_described),
	};
	const struct CMUnitTest tests[] = {
	    cmocka_unit_test(test_pictures),
	    cmocka_unit_test(test_pictures_that_are_none),
	    cmocka_unit_test(test_addresses),
	    cmocka_unit_test(test_names_of_volumes),
	    cmocka_unit_test(test_xml_that_is_refused),
	    cmocka_unit_test(test_xml_that_is_written),
	    cmocka_unit_test(test_host_that_hangs),
	};

	return cmocka_run_group_tests(tests, NULL, NULL) + cmocka_run_group_tests(sets, begin_host, end_host);
}
