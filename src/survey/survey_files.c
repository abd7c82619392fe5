/* What lies in files: accounts, packages, mounts, modules, cron, routes. */
#include "survey/survey_int.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/str.h"

#define TEXT_MAX   (4u << 20)
#define DPKG_MAX   (64u << 20)
#define CRON_MAX   200u
#define NAME_MAX_  160u /* of a package with its version */
#define DIGEST_HEX 65

static void survey_digest(const void *p, size_t n, char out[DIGEST_HEX])
{
	unsigned char sum[32] = {0};

	EVP_Digest(p, n, sum, NULL, EVP_sha256(), NULL);
	str_hex(sum, sizeof(sum), out);
}

/* ---- accounts ---- */

/* "name:x:ID:..." of passwd(5) and group(5); the rest stays where it is. */
void survey_parse_accounts(json_t *survey, const char *list, const char *text)
{
	const char *line;
	size_t n;

	json_object_set_new(survey, list, json_array());
	while ((line = survey_line(&text, &n))) {
		const char *colon = memchr(line, ':', n);
		const char *id = colon ? memchr(colon + 1, ':', (size_t)(line + n - colon - 1)) : NULL;
		unsigned long number;
		char *end;

		if (!id || colon == line || *line == '#' || *line == '+' || *line == '-')
			continue;
		errno = 0;
		number = strtoul(id + 1, &end, 10);
		if (errno || end == id + 1 || number > UINT32_MAX)
			continue;
		survey_append(survey, list,
			      json_pack("{s:o, s:I}", "name", survey_string(line, (size_t)(colon - line)), "id",
					(json_int_t)number),
			      SURVEY_ACCOUNTS_MAX);
	}
}

/* ---- packages ---- */

struct dpkg {
	const char *name, *arch, *version, *status;
	size_t name_len, arch_len, version_len, status_len;
};

static void dpkg_take(struct dpkg *p, const char *line, size_t n)
{
	const struct {
		const char *key;
		const char **value;
		size_t *len;
	} keys[] = {{"Package: ", &p->name, &p->name_len},
		    {"Architecture: ", &p->arch, &p->arch_len},
		    {"Version: ", &p->version, &p->version_len},
		    {"Status: ", &p->status, &p->status_len}};

	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		size_t k = strlen(keys[i].key);

		if (n > k && memcmp(line, keys[i].key, k) == 0) {
			*keys[i].value = line + k;
			*keys[i].len = n - k;
		}
	}
}

struct names {
	char **v;
	size_t n, cap;
};

static void names_add(struct names *l, char *s)
{
	if (s && l->n == l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 256;
		char **v = realloc(l->v, cap * sizeof(*v));

		if (!v) {
			free(s);
			return;
		}
		l->v = v;
		l->cap = cap;
	}
	if (s)
		l->v[l->n++] = s;
}

static void names_release(struct names *l)
{
	for (size_t i = 0; i < l->n; i++)
		free(l->v[i]);
	free(l->v);
}

static int names_order(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Removed ones whose settings stayed ("deinstall ok config-files") aren't there. */
static void dpkg_end(struct names *l, struct dpkg *p)
{
	static const char installed[] = " ok installed";
	size_t k = strlen(installed);

	if (p->name_len && p->version_len && p->status_len > k &&
	    memcmp(p->status + p->status_len - k, installed, k) == 0)
		names_add(l, str_printf("%.*s:%.*s=%.*s", (int)MIN(p->name_len, (size_t)NAME_MAX_), p->name,
					(int)MIN(p->arch_len, (size_t)16), p->arch ? p->arch : "",
					(int)MIN(p->version_len, (size_t)NAME_MAX_), p->version));
	*p = (struct dpkg){0};
}

static void survey_packages(json_t *survey, const struct names *l)
{
	_cleanup_(str_release) struct str all = {0};
	json_t *list = json_array();
	char digest[DIGEST_HEX];

	for (size_t i = 0; i < l->n; i++) {
		str_addf(&all, "%s\n", l->v[i]);
		if (i < SURVEY_PACKAGES_MAX)
			json_array_append_new(list, survey_string(l->v[i], MIN(strlen(l->v[i]), (size_t)NAME_MAX_)));
	}
	survey_digest(all.s ? all.s : "", all.len, digest);
	json_object_set_new(survey, "packages",
			    json_pack("{s:s, s:I, s:s, s:o}", "kind", "dpkg", "count", (json_int_t)l->n, "digest",
				      digest, "list", list));
}

void survey_parse_dpkg(json_t *survey, const char *text)
{
	_cleanup_(names_release) struct names l = {0};
	struct dpkg p = {0};
	const char *line;
	size_t n;

	while ((line = survey_line(&text, &n))) {
		if (n == 0)
			dpkg_end(&l, &p);
		else
			dpkg_take(&p, line, n);
	}
	dpkg_end(&l, &p);
	if (l.n)
		qsort(l.v, l.n, sizeof(*l.v), names_order);
	survey_packages(survey, &l);
}

/* ---- mounts ---- */

/* The kernel's own, and what programs make anew at every start. */
static bool mount_is_kept(const char *point, const char *type)
{
	static const char *const types[] = {"proc",    "sysfs",           "devtmpfs",   "devpts",      "cgroup",
					    "cgroup2", "securityfs",      "pstore",     "efivarfs",    "bpf",
					    "tracefs", "debugfs",         "configfs",   "fusectl",     "hugetlbfs",
					    "mqueue",  "autofs",          "rpc_pipefs", "binfmt_misc", "nsfs",
					    "overlay", "squashfs",        "ramfs",      "selinuxfs",   "rootfs",
					    "nfsd",    "fuse.gvfsd-fuse", "fuse.lxcfs", "fuse.portal"};
	static const char *const below[] = {"/proc/",
					    "/sys/",
					    "/dev/",
					    "/run/",
					    "/snap/",
					    "/media/",
					    "/var/lib/docker/",
					    "/var/lib/containers/",
					    "/var/lib/kubelet/"};

	for (size_t i = 0; i < ARRAY_SIZE(types); i++)
		if (strcmp(type, types[i]) == 0)
			return false;
	for (size_t i = 0; i < ARRAY_SIZE(below); i++)
		if (str_starts(point, below[i]))
			return false;
	return strcmp(point, "/run") != 0;
}

/* For a person, or for whoever goes there first. */
static bool mount_waits(char *options)
{
	char *save = NULL;

	for (char *word = strtok_r(options, ",", &save); word; word = strtok_r(NULL, ",", &save))
		if (strcmp(word, "noauto") == 0 || strcmp(word, "x-systemd.automount") == 0)
			return true;
	return false;
}

/* Whether a boot mounts it. Both files write blanks as \040. */
static bool mount_in_fstab(const char *fstab, const char *point)
{
	const char *line;
	size_t n;

	while ((line = survey_line(&fstab, &n))) {
		char copy[2048], where[512], options[1024] = "";

		snprintf(copy, sizeof(copy), "%.*s", (int)MIN(n, sizeof(copy) - 1), line);
		if (copy[strspn(copy, " \t")] == '#' || sscanf(copy, "%*s %511s %*s %1023s", where, options) < 1)
			continue;
		if (strlen(where) > 1 && str_ends(where, "/"))
			where[strlen(where) - 1] = '\0';
		if (strcmp(where, point) == 0)
			return !mount_waits(options);
	}
	return false;
}

/* Those of the mount's options that something may go by. */
static void mount_options(const char *all, char *out, size_t size)
{
	static const char *const words[] = {"ro",       "nosuid",   "nodev",    "noexec",
					    "usrquota", "grpquota", "prjquota", "subvol="};
	_cleanup_free_ char *copy = strdup(all);
	char *save = NULL;

	out[0] = '\0';
	for (char *o = copy ? strtok_r(copy, ",", &save) : NULL; o; o = strtok_r(NULL, ",", &save))
		for (size_t i = 0; i < ARRAY_SIZE(words); i++)
			if (str_ends(words[i], "=") ? str_starts(o, words[i]) : strcmp(o, words[i]) == 0) {
				size_t used = strlen(out);

				snprintf(out + used, size - used, "%s%s", used ? "," : "", o);
			}
}

/* Takes out who logs in, and with what password: "curlftpfs#ftp://user:secret@host/". */
static void mount_strip(char *source, const char *type)
{
	char *scheme = strstr(source, "://"), *at, *start = source;

	if (str_starts(source, "/dev/") || str_starts(type, "nfs"))
		return;
	if (scheme)
		source[strcspn(source, "?")] = '\0';
	at = strrchr(source, '@');
	if (!at)
		return;
	if (scheme && scheme < at)
		start = scheme + 3;
	else if (!memchr(source, ':', (size_t)(at - source)))
		return; /* a name alone */
	memmove(start, at + 1, strlen(at + 1) + 1);
}

void survey_parse_mounts(json_t *survey, const char *mounts, const char *fstab)
{
	const char *line;
	size_t n;

	json_object_set_new(survey, "mounts", json_array());
	while ((line = survey_line(&mounts, &n))) {
		char copy[4096], device[2048], point[512], type[64], options[2048], kept[256];
		json_t *o;

		snprintf(copy, sizeof(copy), "%.*s", (int)MIN(n, sizeof(copy) - 1), line);
		if (sscanf(copy, "%2047s %511s %63s %2047s", device, point, type, options) != 4 ||
		    strlen(device) == sizeof(device) - 1 || !mount_is_kept(point, type))
			continue;
		mount_strip(device, type);
		mount_options(options, kept, sizeof(kept));
		o = json_object();
		json_object_set_new(o, "source", survey_string(device, strlen(device)));
		json_object_set_new(o, "target", survey_string(point, strlen(point)));
		json_object_set_new(o, "type", survey_string(type, strlen(type)));
		json_object_set_new(o, "options", survey_string(kept, strlen(kept)));
		json_object_set_new(o, "fstab", json_boolean(mount_in_fstab(fstab, point)));
		survey_append(survey, "mounts", o, SURVEY_LIST_MAX);
	}
}

/* ---- modules ---- */

/* "kernel/fs/ext4/ext4.ko.xz:" -> "fs"; of drivers a part more, since those of devices and those of the kernel's own
 * inventions (md, net) are different matters. */
static void module_kind(const char *path, size_t n, char *out, size_t size)
{
	const char *end = path + n, *slash;

	if (n > 7 && memcmp(path, "kernel/", 7) == 0)
		path += 7;
	slash = memchr(path, '/', (size_t)(end - path));
	if (slash && (size_t)(slash - path) == 7 && memcmp(path, "drivers", 7) == 0)
		slash = memchr(slash + 1, '/', (size_t)(end - slash - 1)) ?: slash;
	snprintf(out, size, "%.*s", slash ? (int)(slash - path) : 0, path);
}

/* "a-b.ko.xz" and "a_b" are one. */
static bool module_is(const char *file, size_t n, const char *name)
{
	size_t len = strlen(name);

	if (n < len + 3 || memcmp(file + len, ".ko", 3) != 0)
		return false;
	for (size_t i = 0; i < len; i++)
		if (file[i] != name[i] && !(file[i] == '-' && name[i] == '_'))
			return false;
	return true;
}

static void module_find(json_t *list, const char *line, size_t n)
{
	const char *colon = memchr(line, ':', n), *file;
	json_t *o;
	size_t i;

	if (!colon)
		return;
	for (file = colon; file > line && file[-1] != '/'; file--)
		;
	json_array_foreach(list, i, o)
	{
		char kind[64];

		if (!module_is(file, (size_t)(colon - file), json_string_value(json_object_get(o, "name"))))
			continue;
		module_kind(line, (size_t)(file - line), kind, sizeof(kind));
		json_object_set_new(o, "kind", survey_string(kind, strlen(kind)));
		return;
	}
}

void survey_parse_modules(json_t *survey, const char *modules, const char *dep)
{
	const char *line;
	size_t n;

	json_object_set_new(survey, "modules", json_array());
	while ((line = survey_line(&modules, &n))) {
		size_t len = MIN(strcspn(line, " \n"), n);

		if (len)
			survey_append(survey, "modules", json_pack("{s:o}", "name", survey_string(line, len)),
				      SURVEY_LIST_MAX);
	}
	while ((line = survey_line(&dep, &n)))
		module_find(json_object_get(survey, "modules"), line, n);
}

static void survey_modules(json_t *survey, const char *root)
{
	_cleanup_free_ char *release = survey_read(root, "/proc/sys/kernel/osrelease", 4096), *path = NULL;
	_cleanup_free_ char *modules = survey_read(root, "/proc/modules", TEXT_MAX), *dep = NULL;

	if (release) {
		release[strcspn(release, "\n/")] = '\0';
		path = str_printf("/lib/modules/%s/modules.dep", release);
		dep = path ? survey_read(root, path, 16u << 20) : NULL;
	}
	survey_parse_modules(survey, modules, dep);
}

/* ---- routes ---- */

/* Iface Destination Gateway Flags RefCnt Use Metric Mask ..., numbers in hex, host byte order. */
void survey_parse_routes(json_t *survey, const char *text)
{
	const char *line;
	size_t n;

	json_object_set_new(survey, "routes", json_array());
	while ((line = survey_line(&text, &n))) {
		char copy[512], name[16], to[INET_ADDRSTRLEN], via[INET_ADDRSTRLEN];
		unsigned dest, gw, mask;
		_cleanup_free_ char *where = NULL;

		snprintf(copy, sizeof(copy), "%.*s", (int)MIN(n, sizeof(copy) - 1), line);
		if (sscanf(copy, "%15s %8x %8x %*x %*d %*u %*u %8x", name, &dest, &gw, &mask) != 4)
			continue;
		inet_ntop(AF_INET, &(struct in_addr){dest}, to, sizeof(to));
		inet_ntop(AF_INET, &(struct in_addr){gw}, via, sizeof(via));
		where = str_printf("%s/%d", to, __builtin_popcount(mask));
		survey_append(survey, "routes",
			      json_pack("{s:s, s:s, s:o}", "destination", where ? where : "?", "gateway", via,
					"interface", survey_string(name, strlen(name))),
			      SURVEY_LIST_MAX);
	}
}

/* ---- cron ---- */

static void cron_file(json_t *survey, const char *root, const char *path)
{
	_cleanup_free_ char *text = survey_read(root, path, TEXT_MAX);
	char digest[DIGEST_HEX];

	if (!text)
		return;
	survey_digest(text, strlen(text), digest);
	survey_append(survey, "cron",
		      json_pack("{s:o, s:s}", "path", survey_string(path, strlen(path)), "digest", digest), CRON_MAX);
}

static int cron_visible(const struct dirent *d)
{
	return d->d_name[0] != '.';
}

/* Digests only: such a line may hold a password. */
static void survey_cron(json_t *survey, const char *root)
{
	static const char *const folders[] = {"/etc/cron.d",      "/etc/cron.hourly",  "/etc/cron.daily",
					      "/etc/cron.weekly", "/etc/cron.monthly", "/var/spool/cron/crontabs",
					      "/var/spool/cron"};

	json_object_set_new(survey, "cron", json_array());
	cron_file(survey, root, "/etc/crontab");
	for (size_t i = 0; i < ARRAY_SIZE(folders); i++) {
		_cleanup_free_ char *folder = str_printf("%s%s", root, folders[i]);
		struct dirent **names = NULL;
		int n = folder ? scandir(folder, &names, cron_visible, alphasort) : -1;

		for (int k = 0; k < n; k++) {
			_cleanup_free_ char *path = str_printf("%s/%s", folders[i], names[k]->d_name);

			if (path)
				cron_file(survey, root, path);
			free(names[k]);
		}
		free(names);
	}
}

static void survey_swaps(json_t *survey, const char *root)
{
	_cleanup_free_ char *text = survey_read(root, "/proc/swaps", TEXT_MAX);
	const char *p = text;
	json_int_t lines = 0;
	size_t n;

	while (survey_line(&p, &n))
		lines++;
	json_object_set_new(survey, "swaps", json_integer(MAX(lines - 1, (json_int_t)0)));
}

void survey_files(json_t *survey, const char *root)
{
	_cleanup_free_ char *passwd = survey_read(root, "/etc/passwd", TEXT_MAX);
	_cleanup_free_ char *group = survey_read(root, "/etc/group", TEXT_MAX);
	_cleanup_free_ char *dpkg = survey_read(root, "/var/lib/dpkg/status", DPKG_MAX);
	_cleanup_free_ char *mounts = survey_read(root, "/proc/self/mounts", TEXT_MAX);
	_cleanup_free_ char *fstab = survey_read(root, "/etc/fstab", TEXT_MAX);
	_cleanup_free_ char *routes = survey_read(root, "/proc/net/route", TEXT_MAX);

	survey_parse_accounts(survey, "users", passwd);
	survey_parse_accounts(survey, "groups", group);
	if (dpkg)
		survey_parse_dpkg(survey, dpkg);
	survey_parse_mounts(survey, mounts, fstab);
	survey_parse_routes(survey, routes);
	survey_modules(survey, root);
	survey_cron(survey, root);
	survey_swaps(survey, root);
}
