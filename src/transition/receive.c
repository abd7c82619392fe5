#include "transition/transition_int.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "base/err.h"
#include "base/id.h"
#include "base/str.h"
#include "base/util.h"
#include "stream/stream.h"

#define EXIT_TEMPORARY 75

static void receive_event(void *arg, const char *json)
{
	printf("%s\n", json);
	fflush(stdout);
}

static int receive_params(const struct transition_options *o, struct stream_receive_params *p, char *host, size_t size,
			  struct err *e)
{
	int r;

	if (!id_is("run", o->run))
		return err_set(e, -EINVAL, "'%s' is not the id of a run", o->run);
	snprintf(p->link.run, sizeof(p->link.run), "%s", o->run);
	r = stream_key_read(o->psk_file, p->link.psk, e);
	if (r == 0)
		r = stream_address_parse(o->listen, host, size, &p->port, e);
	if (r == 0 && o->min_free && str_size(o->min_free, &p->min_free) < 0)
		r = err_set(e, -EINVAL, "--min-free '%s' is not a size", o->min_free);
	p->listen = host;
	p->dir = o->dir;
	p->user = o->user;
	p->once = o->once;
	return r;
}

int transition_receive(void *options, int argc, char **argv)
{
	const struct transition_options *o = options;
	struct stream_receive_params p = {0};
	struct err e = {0};
	char host[64];
	int r;

	signal(SIGPIPE, SIG_IGN);
	r = receive_params(o, &p, host, sizeof(host), &e);
	if (r == 0)
		r = stream_receive(&p, receive_event, NULL, &e);
	explicit_bzero(p.link.psk, sizeof(p.link.psk));
	if (r == 0)
		return 0;
	fprintf(stderr, "replant-transition: %s\n", e.msg);
	return stream_is_temporary(r) ? EXIT_TEMPORARY : 1;
}

int transition_verify(void *options, int argc, char **argv)
{
	const struct transition_options *o = options;
	struct err e = {0};
	uint64_t blocks;
	int r = stream_verify(o->dir, &blocks, &e);

	if (r < 0) {
		fprintf(stderr, "replant-transition: %s\n", e.msg);
		return 1;
	}
	printf("{\"event\":\"verified\",\"blocks\":%llu}\n", (unsigned long long)blocks);
	return 0;
}
