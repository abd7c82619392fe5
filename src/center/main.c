#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/io.h"
#include "base/log.h"
#include "base/opt.h"
#include "base/util.h"
#include "center/center.h"
#include "store/store.h"

struct options {
	const char *state, *database, *database_file, *listen, *data_host, *user, *cache;
	const char *trust, *mail_server, *mail_from, *mail_user, *mail_password;
	struct opt_list address;
	bool log_json, verbose;
};

static int failed(const struct err *e)
{
	fprintf(stderr, "replantd: %s\n", e->msg);
	return 1;
}

/* What is in argv, every user of the host can read. */
static int take_database(const struct options *o, char **ret, struct err *e)
{
	bool password = false;
	int r;

	if (o->database && o->database_file)
		return err_set(e, -EINVAL, "'--database' and '--database-file' say the same; give one of them");
	if (!o->database && !o->database_file)
		return 0;
	if (o->database_file) {
		r = io_read_file(o->database_file, 4096, ret, NULL, e);
		if (r < 0)
			return r;
		(*ret)[strcspn(*ret, "\r\n")] = '\0';
	} else {
		*ret = strdup(o->database);
		if (!*ret)
			return err_nomem(e);
	}
	r = store_check_postgres(*ret, &password, e);
	if (r == 0 && password && o->database)
		r = err_set(e, -EINVAL,
			    "'--database' would show the password to every user of this host; put the line into a "
			    "file that only you can read, and give that with '--database-file'");
	return r;
}

static int run_init(void *options, int argc, char **argv)
{
	struct options *o = options;
	_cleanup_free_ char *token = NULL, *database = NULL;
	struct err e = {0};

	if (take_database(o, &database, &e) < 0 ||
	    center_init(o->state, database, o->address.v, o->address.n, &token, &e) < 0)
		return failed(&e);
	printf("The center is set up in '%s'.\n\nThe admin's token (also in '%s/admin-token', readable by "
	       "its owner only):\n%s\n\n"
	       "Start it:  replantd serve --state %s\n",
	       o->state, o->state, token, o->state);
	return 0;
}

static int run_serve(void *options, int argc, char **argv)
{
	struct options *o = options;
	const char *cache = getenv("REPLANT_CACHE");
	struct center_settings s = {.state = o->state,
				    .listen = o->listen,
				    .data_host = o->data_host,
				    .user = o->user          ? o->user
					    : geteuid() == 0 ? "nobody"
							     : NULL,
				    .cache = o->cache          ? o->cache
					     : cache && *cache ? cache
							       : NULL,
				    .provider_open = provider_open,
				    .hypervisor_open = hypervisor_open,
				    .trust = o->trust,
				    .mail_server = o->mail_server,
				    .mail_from = o->mail_from,
				    .mail_user = o->mail_user,
				    .mail_password = o->mail_password};
	struct err e = {0};

	log_set(o->verbose ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO, o->log_json);
	return center_serve(&s, &e) < 0 ? failed(&e) : 0;
}

#define STATE                                                                                                          \
	{                                                                                                              \
		"state", 's', OPT_STRING, offsetof(struct options, state), "DIR", "the center's directory",            \
		    .required = true                                                                                   \
	}

static const struct opt init_opts[] = {
    STATE,
    {"address", 'a', OPT_LIST, offsetof(struct options, address), "NAME[:PORT]",
     "name or address agents reach the center by; the first is the one they are told; may be repeated"},
    {"database", 0, OPT_STRING, offsetof(struct options, database), "URL",
     "a database of PostgreSQL instead of a file in the directory"},
    {"database-file", 0, OPT_STRING, offsetof(struct options, database_file), "FILE",
     "the same from the first line of a file, which may hold a password"},
    {0},
};

static const struct opt serve_opts[] = {
    STATE,
    {"listen", 'l', OPT_STRING, offsetof(struct options, listen), "ADDR:PORT", "where to listen (0.0.0.0:8443)"},
    {"data-host", 0, OPT_STRING, offsetof(struct options, data_host), "NAME",
     "where agents reach this center's receivers, when several centers share a database (the host of STATE/url)"},
    {"user", 'u', OPT_STRING, offsetof(struct options, user), "NAME",
     "user of receivers and virtual machines when started as root (nobody)"},
    {"cache", 0, OPT_STRING, offsetof(struct options, cache), "DIR",
     "what can be built again (REPLANT_CACHE, or STATE/cache)"},
    {"mail-server", 0, OPT_STRING, offsetof(struct options, mail_server), "URL",
     "what sends mail for the center: smtp://HOST:587 (with STARTTLS) or smtps://HOST"},
    {"mail-from", 0, OPT_STRING, offsetof(struct options, mail_from), "ADDRESS", "sender of that mail"},
    {"mail-user", 0, OPT_STRING, offsetof(struct options, mail_user), "NAME", "the center's name at the mail server"},
    {"mail-password-file", 0, OPT_STRING, offsetof(struct options, mail_password), "FILE", "its password there"},
    {"trust", 0, OPT_STRING, offsetof(struct options, trust), "FILE",
     "certificates (PEM) that web hooks and mail server may have, beside the system's"},
    {"log-json", 0, OPT_FLAG, offsetof(struct options, log_json), NULL, "log JSON lines"},
    {"verbose", 'v', OPT_FLAG, offsetof(struct options, verbose), NULL, "log more"},
    {0},
};

static const struct opt_command commands[] = {
    {"init", "", "set up a new center",
     "Makes the directory, a certificate authority of its own, a server certificate for the "
     "addresses given,\nlocalhost and this host's name, and the admin's token. A directory that was set up "
     "is left alone.",
     init_opts, 0, 0, run_init},
    {"serve", "", "serve a center", "Ends on SIGTERM. Jobs that were running go on with the next start.", serve_opts, 0,
     0, run_serve},
    {0},
};

int main(int argc, char **argv)
{
	static const struct opt_program program = {
	    "replantd", "The migration center: API, jobs and their state.", commands, NULL,
	    "Example:\n  replantd init --state /var/lib/replant --address center.example.org\n"
	    "  replantd serve --state /var/lib/replant"};
	struct options o = {.listen = "0.0.0.0:8443"};
	int r = opt_main(&program, &o, argc, argv);

	free(o.address.v);
	return r;
}
