/*
 * The program replantd: sets a center up, and serves it. The parts are a library so that the tests can serve
 * with a provider of their own.
 */
#pragma once

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "provider/provider.h"

struct err;
struct store;

#define CENTER_PORT 8443

/* Makes the state directory: CA, server certificate for `addresses` ("name", "address", with ":port" or
 * without) and this host, database with region `local`, admin's token. `database`: libpq's string of one, kept in
 * STATE/database; NULL: a file in the directory. Refuses a directory, and a database, that has been set
 * up. *ret_token (the caller frees): the admin's token, also in STATE/admin-token. */
int center_init(const char *state, const char *database, const char *const *addresses, size_t n, char **ret_token,
		struct err *e);
/* -ENOENT when no center was set up in the directory. */
int center_check(const char *state, struct err *e);
/* Its database. */
int center_open_store(const char *state, struct store **ret, struct err *e);

typedef int (*center_provider_fn)(const char *kind, const struct provider_settings *s, struct provider **ret,
				  struct err *e);
typedef int (*center_hypervisor_fn)(const char *kind, const struct provider_settings *s, const json_t *settings,
				    struct hypervisor **ret, struct err *e);

/* Times in seconds; 0 takes the default in brackets. */
struct center_settings {
	const char *state;
	const char *listen; /* "address:port", "[address]:port" */
	const char *user;   /* unprivileged user of receivers and virtual machines; NULL: ours */
	const char *cache;  /* NULL: STATE/cache */
	center_provider_fn provider_open;
	center_hypervisor_fn hypervisor_open; /* NULL: there are no instances */
	double heartbeat;                     /* between syncs of an idle agent [10] */
	double heartbeat_busy;                /* of one that sends [2] */
	double source_patience;               /* until a job gives up a source that is there and sends nothing [900] */
	double source_absence;                /* until it gives up one that isn't heard of: reboots, networks [14400] */
	double retry_pause;                   /* before a failed transfer is tried again [2] */
	double last_word;                     /* how long the agent has to say why its receiver ended [3] */
	double tick;                          /* of the clockwork [1] */
	double hour;                          /* of an incremental job's interval [3600]; tests have shorter ones */
	double switch_boot;                   /* until a system that an instance was switched to must be up [900] */
	double instances_tick;                /* between looks at what instances do [10] */
	double renew_check;    /* between looks whether the server's certificate is to be renewed [86400] */
	double notify_pause;   /* before what couldn't be told is told again; the next are longer [10] */
	double notify_timeout; /* of one attempt [10] */
	double lease;          /* how long others leave to a center that is silent what it had [60] */
	const char *data_host; /* where agents reach our receivers, when the store is shared; NULL: the url's */
	unsigned failures_per_minute;
	const char *trust; /* certificates (PEM) that web hooks and mail servers may have; NULL: the system's only */
	const char *mail_server;   /* smtp://HOST[:PORT] or smtps://...; NULL: no mail */
	const char *mail_from;     /* address */
	const char *mail_user;     /* NULL: no login */
	const char *mail_password; /* file */
	/* Called when the center answers, with the port it got; may be NULL. */
	void (*ready)(uint16_t port);
};

/* Serves until SIGTERM or SIGINT. Logs. */
int center_serve(const struct center_settings *s, struct err *e);
