#include "transition/transition_int.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "base/id.h"
#include "base/str.h"
#include "base/util.h"
#include "stream/stream.h"

#define EXIT_TEMPORARY     75
#define RECEIVE_LAYERS_MAX 64u

static void receive_event(void *arg, const char *json)
{
	printf("%s\n", json);
	fflush(stdout);
}

/* "5,-,6": a descriptor for each disk that has a layer. */
static int receive_layers(const char *text, int fds[RECEIVE_LAYERS_MAX], size_t *ret_n, struct err *e)
{
	const char *s = text;
	size_t n = 0;

	for (; s && n < RECEIVE_LAYERS_MAX; n++) {
		char *end = (char *)(uintptr_t)s + 1;
		long fd = *s == '-' ? -1 : strtol(s, &end, 10);

		if (end == s || (*end && *end != ',') || fd < -1 || fd > 65535)
			return err_set(e, -EINVAL, "--layers '%s' is not a list of descriptors", text);
		fds[n] = (int)fd;
		s = *end ? end + 1 : NULL;
	}
	if (s)
		return err_set(e, -EINVAL, "--layers names more than %u disks", RECEIVE_LAYERS_MAX);
	*ret_n = n;
	return 0;
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
	p->link.clear = o->clear;
	return r;
}

int transition_receive(void *options, int argc, char **argv)
{
	const struct transition_options *o = options;
	struct stream_receive_params p = {0};
	struct err e = {0};
	int layers[RECEIVE_LAYERS_MAX], r;
	char host[64];

	p.layers = layers;
	signal(SIGPIPE, SIG_IGN);
	r = receive_params(o, &p, host, sizeof(host), &e);
	if (r == 0)
		r = receive_layers(o->layers, layers, &p.nlayers, &e);
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
