#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "base/id.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "center/notify.h"
#include "center/pki.h"
#include "store/store.h"

#define NAMES_MAX 64

/* "name:port", "[::1]:port" or either without a port -> the name alone. */
static int host_of(const char *address, char *buf, size_t size, struct err *e)
{
	const char *start = address, *end;

	if (*address == '[') {
		start++;
		end = strchr(start, ']');
	} else {
		end = strchr(start, ':');
		if (end && strchr(end + 1, ':')) /* a bare IPv6 address */
			end = NULL;
	}
	if (!end)
		end = start + strlen(start);
	if (end == start || (size_t)(end - start) >= size ||
	    strspn(start, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:") < (size_t)(end - start))
		return err_set(e, -EINVAL, "'%s' is not the name or address of a host", address);
	snprintf(buf, size, "%.*s", (int)(end - start), start);
	return 0;
}

static int make_certificates(const char *state, const char *const *addresses, size_t n, struct err *e)
{
	const char *names[NAMES_MAX] = {"localhost", "127.0.0.1", "::1"};
	char hosts[NAMES_MAX][256], self[256];
	size_t count = 3;

	if (gethostname(self, sizeof(self)) == 0 && *self && memchr(self, 0, sizeof(self)))
		names[count++] = self;
	if (n > NAMES_MAX - count)
		return err_set(e, -EINVAL, "more than %zu addresses", NAMES_MAX - count);
	for (size_t i = 0; i < n; i++) {
		int r = host_of(addresses[i], hosts[i], sizeof(hosts[i]), e);

		if (r < 0)
			return r;
		names[count++] = hosts[i];
	}
	return pki_init(state, names, count, e);
}

/* The first address, as agents are told it: https://host:port. */
static int write_url(const char *state, const char *address, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/url", state), *url = NULL;
	char host[256];
	const char *port;
	int r = host_of(address, host, sizeof(host), e);

	if (r < 0)
		return r;
	port = *address == '[' ? strstr(address, "]:") : strrchr(address, ':');
	if (port && *address == '[')
		port++;
	if (port && *address != '[' && strchr(address, ':') != port)
		port = NULL;
	url = strchr(host, ':') ? str_printf("https://[%s]:%s\n", host, port ? port + 1 : "8443")
				: str_printf("https://%s:%s\n", host, port ? port + 1 : "8443");
	if (!url || !path)
		return err_nomem(e);
	return io_write_file_atomic(path, url, strlen(url), 0644, e);
}

#define DATABASE_MAX 4096u

/* STATE/database says where it is, else it is STATE/replant.db. *ret is NULL for that one. */
static int read_database(const char *state, char **ret, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/database", state);
	char *text;
	int r;

	if (!path)
		return err_nomem(e);
	*ret = NULL;
	if (access(path, F_OK) < 0)
		return errno == ENOENT ? 0 : err_sys(e, "cannot read '%s'", path);
	r = io_read_file(path, DATABASE_MAX, &text, NULL, e);
	if (r < 0)
		return r;
	text[strcspn(text, "\r\n")] = '\0';
	*ret = text;
	return 0;
}

static int write_database(const char *state, const char *database, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/database", state), *line = str_printf("%s\n", database);

	if (!path || !line)
		return err_nomem(e);
	if (strlen(line) >= DATABASE_MAX || strpbrk(database, "\r\n"))
		return err_set(e, -EINVAL, "what leads to the database must be one line of at most %u bytes",
			       DATABASE_MAX - 2);
	return io_write_file_atomic(path, line, strlen(line), 0600, e);
}

static void forget_database(const char *state)
{
	_cleanup_free_ char *path = str_printf("%s/database", state);

	if (path)
		unlink(path);
}

static int open_database(const char *state, const char *database, struct store **ret, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/replant.db", state);

	if (database)
		return store_open_postgres(database, ret, e);
	return path ? store_open_sqlite(path, ret, e) : err_nomem(e);
}

int center_check(const char *state, struct err *e)
{
	_cleanup_free_ char *file = str_printf("%s/replant.db", state), *line = str_printf("%s/database", state);

	if (!file || !line)
		return err_nomem(e);
	if (access(file, F_OK) < 0 && access(line, F_OK) < 0)
		return err_set(e, -ENOENT, "'%s' holds no center; run 'replantd init --state %s' first", state, state);
	return 0;
}

int center_open_store(const char *state, struct store **ret, struct err *e)
{
	_cleanup_free_ char *database = NULL;
	int r = center_check(state, e);

	if (r == 0)
		r = read_database(state, &database, e);
	return r < 0 ? r : open_database(state, database, ret, e);
}

/* Only once: a database may be there before the directory is. */
static int add_region(struct store *s, struct err *e)
{
	_cleanup_(model_region_release) struct model_region r = {0};
	int k = s->ops->get(s, &model_regions, "local", &r, e);

	if (k == 0)
		return err_set(e, -EEXIST,
			       "the database belongs to a center already; to serve it from this host as well, copy "
			       "that center's state directory");
	if (k != -ENOENT)
		return k;
	r.created = id_now();
	if (model_set(&r.id, "local") < 0 || model_set(&r.name, "local") < 0 || model_set(&r.provider, "local") < 0)
		return err_nomem(e);
	r.settings = json_object();
	return s->ops->put(s, &model_regions, &r, e);
}

static int add_admin(struct store *s, const char *state, char **ret_token, struct err *e)
{
	_cleanup_(model_token_release) struct model_token t = {.role = ROLE_ADMIN, .created = id_now()};
	_cleanup_free_ char *path = str_printf("%s/admin-token", state), *text = NULL, *line = NULL;
	char id[ID_MAX], secret[STORE_SECRET_HEX], hash[STORE_SECRET_HEX];
	int r;

	id_new("token", id);
	store_secret_new(secret, hash);
	text = str_printf("%s.%s", id + strlen("token-"), secret);
	line = text ? str_printf("%s\n", text) : NULL;
	if (!line || !path || model_set(&t.id, id) < 0 || model_set(&t.name, "first admin") < 0 ||
	    model_set(&t.secret_hash, hash) < 0)
		return err_nomem(e);
	r = s->ops->put(s, &model_tokens, &t, e);
	if (r == 0)
		r = io_write_file_atomic(path, line, strlen(line), 0600, e);
	if (r == 0)
		*ret_token = take_ptr(&text);
	return r;
}

static int make_state(const char *state, struct err *e)
{
	_cleanup_free_ char *db = str_printf("%s/replant.db", state), *other = str_printf("%s/database", state);
	int r;

	if (!db || !other)
		return err_nomem(e);
	if (access(db, F_OK) == 0 || access(other, F_OK) == 0)
		return err_set(e, -EEXIST, "'%s' holds a center already; remove it or choose another directory", state);
	r = io_mkdirs(state, 0700, e);
	if (r < 0)
		return r;
	return chmod(state, 0700) < 0 ? err_sys(e, "cannot close '%s' to others", state) : 0;
}

/* In one transaction: a database without an admin would be lost. */
static int fill_store(struct store *s, const char *state, char **ret_token, struct err *e)
{
	int r = s->ops->begin(s, e);

	if (r < 0)
		return r;
	r = add_region(s, e);
	if (r == 0)
		r = add_admin(s, state, ret_token, e);
	if (r < 0) {
		s->ops->rollback(s);
		return r;
	}
	return s->ops->commit(s, e);
}

int center_init(const char *state, const char *database, const char *const *addresses, size_t n, char **ret_token,
		struct err *e)
{
	_cleanup_(store_closep) struct store *s = NULL;
	unsigned char key[PKI_KEY];
	int r = make_state(state, e);

	if (r == 0)
		r = open_database(state, database, &s, e);
	if (r == 0)
		r = make_certificates(state, addresses, n, e);
	if (r == 0)
		r = pki_key(state, "webhook.key", key, e);
	if (r == 0)
		r = pki_key(state, "access.key", key, e);
	if (r == 0 && n)
		r = write_url(state, addresses[0], e);
	/* First how the database is reached: one that was claimed and can't be found again is nobody's. */
	if (r == 0 && database)
		r = write_database(state, database, e);
	if (r == 0)
		r = fill_store(s, state, ret_token, e);
	if (r < 0 && database)
		forget_database(state);
	explicit_bzero(key, sizeof(key));
	return r;
}
