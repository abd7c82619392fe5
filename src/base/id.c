#include "base/id.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/str.h"
#include "base/util.h"

void id_random(void *p, size_t n)
{
	uint8_t *b = p;

	while (n) {
		ssize_t got = getrandom(b, n, 0);

		if (got < 0) {
			must(errno == EINTR);
			continue;
		}
		b += got;
		n -= (size_t)got;
	}
}

void id_new(const char *noun, char out[ID_MAX])
{
	uint8_t raw[8];
	char hex[17];

	must(strlen(noun) + 18 <= ID_MAX);
	id_random(raw, sizeof(raw));
	str_hex(raw, sizeof(raw), hex);
	snprintf(out, ID_MAX, "%s-%s", noun, hex);
}

bool id_is(const char *noun, const char *s)
{
	size_t n = strlen(noun);

	if (strncmp(s, noun, n) != 0 || s[n] != '-')
		return false;
	s += n + 1;
	return strlen(s) == 16 && strspn(s, "0123456789abcdef") == 16;
}

static double id_clock(clockid_t clock)
{
	struct timespec ts;

	must(clock_gettime(clock, &ts) == 0);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

double id_now_mono(void)
{
	return id_clock(CLOCK_MONOTONIC);
}

double id_now(void)
{
	return id_clock(CLOCK_REALTIME);
}
