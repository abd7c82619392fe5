/* Where is the center, who are we, whom do we trust. The token is never an argument: argv is visible to everybody. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/io.h"
#include "base/util.h"
#include "cli/cli_int.h"

#define SETTINGS_FILE_MAX  65536
#define SETTINGS_STATE_DIR "/var/lib/replant"

static int settings_set(char **field, const char *value, struct err *e)
{
	if (*field || !value || !*value)
		return 0;
	*field = strdup(value);
	return *field ? 0 : err_nomem(e);
}

/* "~/x" -> "/home/me/x": people write it in configuration files, where no shell expands it. */
static int settings_set_path(char **field, const char *value, struct err *e)
{
	const char *home = getenv("HOME");

	if (*field || !home || !str_starts(value, "~/"))
		return settings_set(field, value, e);
	*field = str_printf("%s%s", home, value + 1);
	return *field ? 0 : err_nomem(e);
}

static char *settings_trim(char *s)
{
	size_t n;

	s += strspn(s, " \t\r\n");
	n = strlen(s);
	while (n && strchr(" \t\r\n", s[n - 1]))
		s[--n] = '\0';
	return s;
}

static int settings_token_file(struct cli *c, const char *path, struct err *e)
{
	_cleanup_free_ char *text = NULL;
	const char *token;
	int r;

	if (c->token)
		return 0;
	r = io_read_file(path, 4096, &text, NULL, e);
	if (r < 0)
		return err_prefix(e, "cannot read the token");
	token = settings_trim(text);
	if (!*token)
		return err_set(e, -EINVAL, "the token file '%s' is empty", path);
	return settings_set(&c->token, token, e);
}

static int settings_line(struct cli *c, const char *key, const char *value, struct err *e)
{
	_cleanup_free_ char *path = NULL;
	int r;

	if (strcmp(key, "server") == 0)
		return settings_set(&c->url, value, e);
	if (strcmp(key, "ca") == 0)
		return settings_set_path(&c->ca, value, e);
	if (strcmp(key, "token") == 0)
		return settings_set(&c->token, value, e);
	if (strcmp(key, "token-file") == 0) {
		r = settings_set_path(&path, value, e);
		return r < 0 || !path ? r : settings_token_file(c, path, e);
	}
	return err_set(e, -EINVAL, "unknown key '%s' (known are server, ca, token and token-file)", key);
}

static int settings_lines(struct cli *c, char *text, struct err *e)
{
	unsigned n = 0;
	int r;

	for (char *line; (line = strsep(&text, "\n"));) {
		char *value;

		n++;
		line = settings_trim(line);
		if (!*line || *line == '#')
			continue;
		value = strchr(line, '=');
		if (!value)
			return err_set(e, -EINVAL, "line %u: expected 'key = value'", n);
		*value++ = '\0';
		r = settings_line(c, settings_trim(line), settings_trim(value), e);
		if (r < 0)
			return err_prefix(e, "line %u", n);
	}
	return 0;
}

static size_t settings_url_len(const char *url)
{
	size_t n = strlen(url);

	while (n && url[n - 1] == '/')
		n--;
	return n;
}

static bool settings_same_center(const char *a, const char *b)
{
	const char *const scheme = "https://";

	a += str_starts(a, scheme) ? strlen(scheme) : 0;
	b += str_starts(b, scheme) ? strlen(scheme) : 0;
	return settings_url_len(a) == settings_url_len(b) && strncasecmp(a, b, settings_url_len(a)) == 0;
}

/* What the file says fills what nothing else has; but its token is for its own center, and for no other one that
 * --server or REPLANT_URL names. */
static int settings_merge(struct cli *c, struct cli *file, struct err *e)
{
	bool ours = !c->url || !file->url || settings_same_center(c->url, file->url);
	int r;

	if (!ours && !c->token && file->token)
		return err_set(e, -EACCES,
			       "its token is for '%s' and not for '%s' (give that one's by --token-file or "
			       "REPLANT_TOKEN)",
			       file->url, c->url);
	r = settings_set(&c->url, file->url, e);
	if (r == 0)
		r = settings_set(&c->ca, file->ca, e);
	return r < 0 ? r : settings_set(&c->token, file->token, e);
}

static int settings_config(struct cli *c, struct err *e)
{
	const char *base = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
	_cleanup_free_ char *path = NULL, *text = NULL;
	struct cli file = {.token = c->token}; /* one that is given is not looked for */
	struct stat st;
	int r;

	if (base && *base)
		path = str_printf("%s/replant/config", base);
	else if (home && *home)
		path = str_printf("%s/.config/replant/config", home);
	else
		return 0;
	if (!path)
		return err_nomem(e);
	if (stat(path, &st) < 0)
		return 0;
	r = io_read_file(path, SETTINGS_FILE_MAX, &text, NULL, e);
	if (r < 0)
		return r;
	if ((st.st_mode & 077) && strstr(text, "token") && !strstr(text, "token-file"))
		out_error("warning: others can read the token in '%s' (chmod 600 it)", path);
	r = settings_lines(&file, text, e);
	if (r == 0)
		r = settings_merge(c, &file, e);
	free(file.url);
	free(file.ca);
	if (file.token != c->token)
		free(file.token);
	return r < 0 ? err_prefix(e, "%s", path) : 0;
}

/* The center wrote its own address, certificate and first token here when it was set up. */
static int settings_state(struct cli *c, const char *dir, struct err *e)
{
	_cleanup_free_ char *ca = str_printf("%s/ca.pem", dir), *token = str_printf("%s/admin-token", dir);
	_cleanup_free_ char *url_file = str_printf("%s/url", dir), *url = NULL;
	int r;

	if (!ca || !token || !url_file)
		return err_nomem(e);
	r = settings_token_file(c, token, e);
	if (r < 0)
		return r;
	r = settings_set(&c->ca, ca, e);
	if (r == 0 && !c->url && io_read_file(url_file, 4096, &url, NULL, NULL) == 0)
		r = settings_set(&c->url, settings_trim(url), e);
	return r < 0 ? r : settings_set(&c->url, "https://localhost:8443", e);
}

static int settings_check(struct cli *c, struct err *e)
{
	size_t n;

	if (!c->url)
		return err_set(
		    e, -EINVAL,
		    "no center given (use --server, REPLANT_URL or ~/.config/replant/config; on the center's "
		    "own host run as root)");
	/* "center.example.org:8443" is what people type. */
	if (!strstr(c->url, "://")) {
		char *url = str_printf("https://%s", c->url);

		if (!url)
			return err_nomem(e);
		free(c->url);
		c->url = url;
	}
	if (!str_starts(c->url, "https://"))
		return err_set(e, -EINVAL, "the center's address '%s' must begin with https://", c->url);
	for (n = strlen(c->url); n && c->url[n - 1] == '/'; n--)
		c->url[n - 1] = '\0';
	if (!c->ca)
		return err_set(e, -EINVAL,
			       "no certificate to check the center '%s' against (use --ca or REPLANT_CA; it is ca.pem "
			       "in the center's state directory)",
			       c->url);
	if (access(c->ca, R_OK) < 0)
		return err_sys(e, "cannot read the center's certificate '%s'", c->ca);
	if (c->token && strpbrk(c->token, "\r\n"))
		return err_set(e, -EINVAL, "the token must be a single line");
	return 0;
}

/*
 * The state directory stands in only when nothing else names a center, or when it is asked for: root's admin token is
 * for this host's center, not for another one named by REPLANT_URL.
 */
int cli_settings(struct cli *c, struct err *e)
{
	bool named;
	int r;

	r = settings_set(&c->url, c->server_opt, e);
	if (r == 0)
		r = settings_set(&c->ca, c->ca_opt, e);
	if (r == 0 && c->token_file_opt)
		r = settings_token_file(c, c->token_file_opt, e);
	if (r == 0 && c->state_opt)
		r = settings_state(c, c->state_opt, e);
	if (r < 0)
		return r;
	if (settings_set(&c->url, getenv("REPLANT_URL"), e) < 0 || settings_set(&c->ca, getenv("REPLANT_CA"), e) < 0 ||
	    settings_set(&c->token, getenv("REPLANT_TOKEN"), e) < 0)
		return -ENOMEM;
	named = c->url;
	if (!c->url || !c->token || !c->ca) {
		r = settings_config(c, e);
		if (r < 0)
			return r;
	}
	if (!named && !c->url && access(SETTINGS_STATE_DIR "/admin-token", R_OK) == 0) {
		r = settings_state(c, SETTINGS_STATE_DIR, e);
		if (r < 0)
			return r;
	}
	return settings_check(c, e);
}
