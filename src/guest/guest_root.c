/* Files below the root of a system we don't trust: every path is resolved by the kernel inside that root (openat2). */
#include "guest/guest_int.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <openssl/evp.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/util.h"

#define NAMES_MAX 4096

int guest_openat(const struct guest *g, const char *path, int flags, mode_t mode)
{
	struct open_how how = {
	    .flags = (uint64_t)(flags | O_CLOEXEC),
	    .mode = flags & O_CREAT ? mode : 0,
	    .resolve = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
	};
	long fd = syscall(SYS_openat2, g->root, path, &how, sizeof(how));

	return fd < 0 ? -errno : (int)fd;
}

bool guest_exists(const struct guest *g, const char *path)
{
	_cleanup_close_ int fd = guest_openat(g, path, O_PATH, 0);

	return fd >= 0;
}

int guest_fd_path(int fd, char *out, size_t size)
{
	char link[64];
	ssize_t n;

	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	n = readlink(link, out, size);
	if (n < 0)
		return -errno;
	if ((size_t)n >= size)
		return -ENAMETOOLONG;
	out[n] = '\0';
	return 0;
}

/* The directory a path lies in, and its last component. */
static int guest_parent(const struct guest *g, const char *path, const char **ret_base)
{
	char dir[PATH_MAX];
	const char *slash = strrchr(path, '/');
	size_t n = slash ? (size_t)(slash - path) : 0;

	if (n >= sizeof(dir))
		return -ENAMETOOLONG;
	memcpy(dir, path, n);
	dir[n] = '\0';
	*ret_base = slash ? slash + 1 : path;
	return guest_openat(g, n ? dir : "/", O_PATH | O_DIRECTORY, 0);
}

bool guest_link(const struct guest *g, const char *path, char *out, size_t size)
{
	const char *base;
	_cleanup_close_ int dir = guest_parent(g, path, &base);
	ssize_t n = dir < 0 ? -1 : readlinkat(dir, base, out, size - 1);

	if (n < 0)
		return false;
	out[n] = '\0';
	return true;
}

bool guest_unit_is_masked(const struct guest *g, const char *unit)
{
	char path[256], to[PATH_MAX];

	snprintf(path, sizeof(path), "/etc/systemd/system/%s", unit);
	return guest_link(g, path, to, sizeof(to)) && strcmp(to, "/dev/null") == 0;
}

static int guest_sys(struct err *e, int code, const char *what, const char *path)
{
	errno = -code;
	return err_sys(e, "cannot %s '%s' in the copy", what, path);
}

int guest_read(const struct guest *g, const char *path, char **ret, size_t *ret_len, struct err *e)
{
	/* O_NONBLOCK: a FIFO in the way must not stop us. */
	_cleanup_close_ int fd = guest_openat(g, path, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
	_cleanup_free_ char *text = NULL;
	struct stat st;
	ssize_t n;

	if (fd < 0)
		return guest_sys(e, fd, "open", path);
	if (fstat(fd, &st) < 0)
		return guest_sys(e, -errno, "look at", path);
	if (!S_ISREG(st.st_mode))
		return err_set(e, -EINVAL, "'%s' in the copy is not a regular file", path);
	if (st.st_size > GUEST_FILE_MAX)
		return err_set(e, -EFBIG, "'%s' in the copy is larger than the %u bytes allowed for it", path,
			       GUEST_FILE_MAX);
	text = malloc((size_t)st.st_size + 1);
	if (!text)
		return err_nomem(e);
	n = io_read_full(fd, text, (size_t)st.st_size);
	if (n < 0)
		return guest_sys(e, (int)n, "read", path);
	text[n] = '\0';
	*ret = take_ptr(&text);
	if (ret_len)
		*ret_len = (size_t)n;
	return 0;
}

static void guest_sha256(const char *p, size_t n, char out[65])
{
	unsigned char md[EVP_MAX_MD_SIZE];
	unsigned len = 0;

	must(EVP_Digest(p, n, md, &len, EVP_sha256(), NULL) == 1 && len == 32);
	str_hex(md, len, out);
}

static void guest_set_text(json_t *o, const char *key, const char *text, size_t len)
{
	json_t *s = json_stringn(text, len);
	char key64[64];
	char *b64;

	if (s) {
		json_object_set_new(o, key, s);
		return;
	}
	/* Not UTF-8: kept all the same. */
	b64 = malloc(len / 3 * 4 + 5);
	if (!b64)
		return;
	EVP_EncodeBlock((unsigned char *)b64, (const unsigned char *)text, (int)len);
	snprintf(key64, sizeof(key64), "%s_base64", key);
	json_object_set_new(o, key64, json_string(b64));
	free(b64);
}

/* Where a secret's name ends at `at` + its length: "password=", "wpa-psk ", "Secret: " ... 0 when none begins here. */
static size_t guest_secret_name(const char *p, size_t n, size_t at)
{
	static const char *const names[] = {"password", "passwd", "passphrase", "psk",
					    "secret",   "token",  "pass",       "key"};

	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		size_t len = strlen(names[i]), end = at + len;

		if (end >= n || strncasecmp(p + at, names[i], len) != 0)
			continue;
		end += p[end] == '"' || p[end] == '\'';
		while (end < n && (p[end] == ' ' || p[end] == '\t'))
			end++;
		if (end < n && (p[end] == '=' || p[end] == ':'))
			end++;
		else if (p[at + len] != ' ' && p[at + len] != '\t')
			continue;
		while (end < n && (p[end] == ' ' || p[end] == '\t'))
			end++;
		return end - at;
	}
	return 0;
}

/* What follows the name, up to the end of a quotation, an option or a word. */
static size_t guest_secret_value(const char *p, size_t n, size_t at)
{
	char quote = at < n && (p[at] == '"' || p[at] == '\'') ? p[at] : '\0';
	size_t end = at + (quote != '\0');

	while (end < n && p[end] != '\n' && (quote ? p[end] != quote : !strchr(" \t,;}", p[end])))
		end++;
	return end + (quote && end < n && p[end] == quote) - at;
}

static void guest_mask(const char *p, size_t n, struct str *out)
{
	for (size_t i = 0; i < n;) {
		size_t name = guest_secret_name(p, n, i), value = name ? guest_secret_value(p, n, i + name) : 0;

		if (!value) {
			str_add_mem(out, p + i++, 1);
			continue;
		}
		str_add_mem(out, p + i, name);
		str_add(out, "***");
		i += name + value;
	}
}

/* Only what every user of the server may read, and no passwords in it. */
static void guest_set_old(json_t *o, mode_t mode, const char *old, size_t len)
{
	_cleanup_(str_release) struct str text = {0};

	if (!(mode & S_IROTH) || len > GUEST_OLD_MAX)
		return;
	guest_mask(old, len, &text);
	if (str_ok(&text))
		guest_set_text(o, "old", text.s ? text.s : "", text.len);
}

static void guest_record(struct guest_result *r, const char *path, const char *action, mode_t mode, const char *old,
			 size_t old_len, const char *new, size_t new_len)
{
	json_t *o = json_pack("{s:s, s:s}", "path", path, "action", action);
	char hex[65];

	if (!o)
		return;
	if (old) {
		guest_sha256(old, old_len, hex);
		json_object_set_new(o, "sha256_old", json_string(hex));
		guest_set_old(o, mode, old, old_len);
	}
	if (new) {
		guest_sha256(new, new_len, hex);
		json_object_set_new(o, "sha256_new", json_string(hex));
	}
	json_array_append_new(r->files, o);
	if (r->state == GUEST_NOT_NEEDED)
		r->state = GUEST_DONE;
}

int guest_mkdirs(struct guest *g, const char *path, struct err *e)
{
	char copy[PATH_MAX];

	if ((size_t)snprintf(copy, sizeof(copy), "%s", path) >= sizeof(copy))
		return err_set(e, -ENAMETOOLONG, "path '%s' is too long", path);
	for (char *p = copy + 1;; p++) {
		const char *base;
		char c = *p;

		if (c && c != '/')
			continue;
		*p = '\0';
		if (!guest_exists(g, copy)) {
			_cleanup_close_ int dir = guest_parent(g, copy, &base);

			if (dir < 0)
				return guest_sys(e, dir, "open the directory of", copy);
			if (mkdirat(dir, base, 0755) < 0 && errno != EEXIST)
				return guest_sys(e, -errno, "make directory", copy);
		}
		if (!c)
			return 0;
		*p = c;
	}
}

static int guest_mkdirs_of(struct guest *g, const char *path, struct err *e)
{
	char copy[PATH_MAX];
	char *slash;

	if ((size_t)snprintf(copy, sizeof(copy), "%s", path) >= sizeof(copy))
		return err_set(e, -ENAMETOOLONG, "path '%s' is too long", path);
	slash = strrchr(copy, '/');
	if (!slash || slash == copy)
		return 0;
	*slash = '\0';
	return guest_mkdirs(g, copy, e);
}

int guest_write(struct guest *g, struct guest_result *r, const char *path, const char *text, size_t len, mode_t mode,
		struct err *e)
{
	_cleanup_free_ char *old = NULL;
	_cleanup_close_ int fd = -1;
	size_t old_len = 0;
	struct stat st = {0};
	bool is_new = !guest_exists(g, path);
	int rc;

	if (!is_new) {
		rc = guest_read(g, path, &old, &old_len, e);
		if (rc < 0)
			return rc;
		if (old_len == len && memcmp(old, text, len) == 0)
			return 0;
	} else {
		rc = guest_mkdirs_of(g, path, e);
		if (rc < 0)
			return rc;
	}
	fd = guest_openat(g, path, O_WRONLY | O_TRUNC | O_NOCTTY | (is_new ? O_CREAT : 0), mode);
	if (fd < 0)
		return guest_sys(e, fd, "write", path);
	if (fstat(fd, &st) < 0)
		return guest_sys(e, -errno, "look at", path);
	/* openat2() obeys the umask; the mode is what the system's programs expect. */
	if (is_new && fchmod(fd, mode) < 0)
		return guest_sys(e, -errno, "write", path);
	rc = io_write_full(fd, text, len);
	if (rc < 0)
		return guest_sys(e, rc, "write", path);
	guest_record(r, path, is_new ? "created" : "changed", st.st_mode, old, old_len, text, len);
	return 0;
}

static int guest_unlink(struct guest *g, struct guest_result *r, const char *path, bool keep_old, struct err *e)
{
	_cleanup_free_ char *old = NULL;
	_cleanup_close_ int dir = -1;
	const char *base;
	size_t len = 0;
	struct stat st;

	dir = guest_parent(g, path, &base);
	if (dir == -ENOENT || dir == -ENOTDIR)
		return 0;
	if (dir < 0)
		return guest_sys(e, dir, "open the directory of", path);
	if (fstatat(dir, base, &st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno == ENOENT ? 0 : guest_sys(e, -errno, "look at", path);
	/* Only for the report: what can't be read is removed all the same. */
	if (keep_old && S_ISREG(st.st_mode))
		guest_read(g, path, &old, &len, NULL);
	if (unlinkat(dir, base, 0) < 0)
		return guest_sys(e, -errno, "remove", path);
	guest_record(r, path, "removed", st.st_mode, old, len, NULL, 0);
	return 0;
}

int guest_remove(struct guest *g, struct guest_result *r, const char *path, struct err *e)
{
	return guest_unlink(g, r, path, true, e);
}

int guest_discard(struct guest *g, struct guest_result *r, const char *path, struct err *e)
{
	return guest_unlink(g, r, path, false, e);
}

void guest_remove_dir(struct guest *g, const char *path)
{
	const char *base;
	_cleanup_close_ int dir = guest_parent(g, path, &base);

	if (dir >= 0)
		unlinkat(dir, base, AT_REMOVEDIR);
}

int guest_symlink(struct guest *g, struct guest_result *r, const char *target, const char *path, struct err *e)
{
	_cleanup_close_ int dir = -1;
	const char *base;
	char now[PATH_MAX];
	ssize_t n;
	int rc = guest_mkdirs_of(g, path, e);

	if (rc < 0)
		return rc;
	dir = guest_parent(g, path, &base);
	if (dir < 0)
		return guest_sys(e, dir, "open the directory of", path);
	n = readlinkat(dir, base, now, sizeof(now) - 1);
	if (n >= 0)
		return 0; /* enabled in its own way already */
	if (symlinkat(target, dir, base) < 0)
		return guest_sys(e, -errno, "make the link", path);
	guest_record(r, path, "linked", 0, NULL, 0, target, strlen(target));
	return 0;
}

void guest_names_release(struct guest_names *n)
{
	for (size_t i = 0; i < n->n; i++)
		free(n->v[i]);
	free(n->v);
	*n = (struct guest_names){0};
}

static int guest_names_add(struct guest_names *n, const char *name)
{
	char **v = realloc(n->v, (n->n + 1) * sizeof(*v));

	if (!v)
		return -ENOMEM;
	n->v = v;
	v[n->n] = strdup(name);
	if (!v[n->n])
		return -ENOMEM;
	n->n++;
	return 0;
}

static int guest_name_compare(const void *a, const void *b)
{
	return strcmp(*(char *const *)a, *(char *const *)b);
}

int guest_list(const struct guest *g, const char *dir, const char *suffix, struct guest_names *ret, struct err *e)
{
	_cleanup_(guest_names_release) struct guest_names names = {0};
	int fd = guest_openat(g, dir, O_RDONLY | O_DIRECTORY, 0);
	struct dirent *d;
	DIR *handle;
	int r = 0;

	if (fd == -ENOENT || fd == -ENOTDIR) {
		*ret = (struct guest_names){0};
		return 0;
	}
	if (fd < 0)
		return guest_sys(e, fd, "open", dir);
	handle = fdopendir(fd);
	if (!handle) {
		close(fd);
		return err_nomem(e);
	}
	while (r == 0 && names.n < NAMES_MAX && (d = readdir(handle)))
		if (d->d_name[0] != '.' && str_ends(d->d_name, suffix))
			r = guest_names_add(&names, d->d_name);
	closedir(handle);
	if (r < 0)
		return err_nomem(e);
	if (names.n)
		qsort(names.v, names.n, sizeof(*names.v), guest_name_compare);
	*ret = names;
	names = (struct guest_names){0};
	return 0;
}
