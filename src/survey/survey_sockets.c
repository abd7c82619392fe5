/* Ports that are listened on, and by whom: the kernel's tables have an inode, a process has it among its files. */
#include "survey/survey_int.h"

#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/str.h"

#define TABLE_MAX (16u << 20) /* bytes of a table: 100000 sockets */
#define LINKS_MAX 400000u     /* of all processes' files, in one survey */

enum { REACH_LOOPBACK, REACH_ONE, REACH_ANY };

/* The kernel prints the address' 32-bit words as numbers of its own byte order. */
static unsigned socket_reach(const char *hex, size_t n)
{
	if (strspn(hex, "0") >= n)
		return REACH_ANY;
	if (n == 8)
		return strncmp(hex + 6, "7F", 2) == 0 ? REACH_LOOPBACK : REACH_ONE;
	if (strncmp(hex, "00000000000000000000000001000000", n) == 0)
		return REACH_LOOPBACK;
	if (strncmp(hex, "0000000000000000FFFF0000", 24) == 0)
		return socket_reach(hex + 24, 8);
	return REACH_ONE;
}

/* "  0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 ..." */
static bool socket_parse(const char *line, bool udp, bool v6, struct survey_socket *ret)
{
	char local[33], remote[33];
	unsigned port, remote_port, state;
	unsigned long long inode;
	size_t want = v6 ? 32 : 8;

	if (sscanf(line, "%*u: %32[0-9A-F]:%4x %32[0-9A-F]:%4x %2x %*x:%*x %*x:%*x %*x %*u %*u %llu", local, &port,
		   remote, &remote_port, &state, &inode) != 6 ||
	    strlen(local) != want || !port || port > 65535)
		return false;
	/* 0A: listening. A UDP socket that has no peer takes what comes. */
	if (udp ? (state != 7 || remote_port) : state != 0x0a)
		return false;
	*ret = (struct survey_socket){
	    .inode = inode, .port = (uint16_t)port, .udp = udp, .reach = socket_reach(local, want)};
	return true;
}

/* A port that is listened on by IPv4 and IPv6, or on several addresses, is one. */
static struct survey_socket *socket_find(struct survey_socket *v, size_t n, const struct survey_socket *s)
{
	for (size_t i = 0; i < n; i++)
		if (v[i].port == s->port && v[i].udp == s->udp)
			return &v[i];
	return NULL;
}

size_t survey_parse_sockets(const char *text, bool udp, bool v6, struct survey_socket *v, size_t n, size_t max)
{
	const char *line;
	size_t len;

	while ((line = survey_line(&text, &len))) {
		struct survey_socket s, *have;
		char copy[512];

		snprintf(copy, sizeof(copy), "%.*s", (int)MIN(len, sizeof(copy) - 1), line);
		if (!socket_parse(copy, udp, v6, &s))
			continue;
		have = socket_find(v, n, &s);
		if (have)
			have->reach = MAX(have->reach, s.reach);
		else if (n < max)
			v[n++] = s;
	}
	return n;
}

void survey_parse_cgroup(const char *text, char *out, size_t size)
{
	const char *line;
	size_t n;

	out[0] = '\0';
	while ((line = survey_line(&text, &n))) {
		const char *end = line + n, *p = memchr(line, '/', n);

		while (p && p < end) {
			const char *next = memchr(p + 1, '/', (size_t)(end - p - 1)) ?: end;
			char part[128];

			snprintf(part, sizeof(part), "%.*s", (int)(next - p - 1), p + 1);
			if (str_ends(part, ".service") || str_ends(part, ".scope")) {
				snprintf(out, size, "%s", part);
				return;
			}
			p = next;
		}
	}
}

/* ---- whose they are ---- */

static void socket_owner(struct survey_socket *s, const char *root, const char *pid)
{
	_cleanup_free_ char *comm_path = str_printf("/proc/%s/comm", pid), *group = str_printf("/proc/%s/cgroup", pid);
	_cleanup_free_ char *comm = comm_path ? survey_read(root, comm_path, 4096) : NULL;
	_cleanup_free_ char *text = group ? survey_read(root, group, 65536) : NULL;

	/* With socket activation it is systemd's as well; the service says more. */
	if (!comm || (s->program[0] && strcmp(pid, "1") == 0))
		return;
	snprintf(s->program, sizeof(s->program), "%.*s", (int)strcspn(comm, "\n"), comm);
	survey_parse_cgroup(text ? text : "", s->unit, sizeof(s->unit));
}

static void sockets_of(struct survey_socket *v, size_t n, const char *root, const char *pid, unsigned *left)
{
	_cleanup_free_ char *path = str_printf("%s/proc/%s/fd", root, pid);
	DIR *dir = path ? opendir(path) : NULL;
	struct dirent *d;

	while (dir && *left && (d = readdir(dir))) {
		char target[64];
		ssize_t len = readlinkat(dirfd(dir), d->d_name, target, sizeof(target) - 1);
		unsigned long long inode;

		(*left)--;
		target[MAX(len, (ssize_t)0)] = '\0';
		if (sscanf(target, "socket:[%llu]", &inode) != 1)
			continue;
		for (size_t i = 0; i < n; i++)
			if (v[i].inode == inode)
				socket_owner(&v[i], root, pid);
	}
	if (dir)
		closedir(dir);
}

static void sockets_owners(struct survey_socket *v, size_t n, const char *root)
{
	_cleanup_free_ char *path = str_printf("%s/proc", root);
	DIR *dir = path && n ? opendir(path) : NULL;
	unsigned left = LINKS_MAX;
	struct dirent *d;

	while (dir && left && (d = readdir(dir)))
		if (isdigit((unsigned char)d->d_name[0]))
			sockets_of(v, n, root, d->d_name, &left);
	if (dir)
		closedir(dir);
}

static int socket_order(const void *a, const void *b)
{
	const struct survey_socket *x = a, *y = b;

	return x->udp != y->udp ? x->udp - y->udp : x->port - y->port;
}

/* Adds the table's; *ret_cut: it had more. By lines: connections may be very many. */
static size_t sockets_table(const char *path, bool udp, bool v6, struct survey_socket *v, size_t n, size_t max,
			    bool *ret_cut)
{
	struct survey_socket one;
	char line[512];
	struct stat st;
	size_t bytes = 0;
	FILE *f = stat(path, &st) == 0 && S_ISREG(st.st_mode) ? fopen(path, "re") : NULL;

	while (f && fgets(line, sizeof(line), f)) {
		n = survey_parse_sockets(line, udp, v6, v, n, max);
		bytes += strlen(line);
		if (bytes <= TABLE_MAX)
			continue;
		/* Of TCP the kernel lists first those that listen: behind a connection come only more. */
		*ret_cut |= udp || survey_parse_sockets(line, udp, v6, &one, 0, 1) == 1;
		break;
	}
	if (f)
		fclose(f);
	return n;
}

void survey_listening(json_t *survey, const char *root)
{
	static const struct {
		const char *path;
		bool udp, v6;
	} tables[] = {{"/proc/net/tcp", false, false},
		      {"/proc/net/tcp6", false, true},
		      {"/proc/net/udp", true, false},
		      {"/proc/net/udp6", true, true}};
	static const char *const reaches[] = {"loopback", "one", "any"};
	/* With one place more than are told, so that it shows when there are more. */
	_cleanup_free_ struct survey_socket *v = calloc(SURVEY_SOCKETS_MAX + 1, sizeof(*v));
	bool cut = false;
	size_t n = 0;

	for (size_t i = 0; v && i < ARRAY_SIZE(tables); i++) {
		_cleanup_free_ char *path = str_printf("%s%s", root, tables[i].path);

		if (path)
			n = sockets_table(path, tables[i].udp, tables[i].v6, v, n, SURVEY_SOCKETS_MAX + 1, &cut);
	}
	sockets_owners(v, n, root);
	if (n)
		qsort(v, n, sizeof(*v), socket_order);
	json_object_set_new(survey, "listening", json_array());
	if (cut)
		survey_cut(survey, "listening");
	for (size_t i = 0; i < n; i++) {
		json_t *o = json_pack("{s:s, s:i, s:s}", "proto", v[i].udp ? "udp" : "tcp", "port", v[i].port,
				      "address", reaches[v[i].reach]);

		if (v[i].program[0])
			json_object_set_new(o, "program", survey_string(v[i].program, strlen(v[i].program)));
		if (v[i].unit[0])
			json_object_set_new(o, "unit", survey_string(v[i].unit, strlen(v[i].unit)));
		survey_append(survey, "listening", o, SURVEY_SOCKETS_MAX);
	}
}
