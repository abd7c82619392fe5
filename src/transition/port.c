#include "transition/port.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/err.h"
#include "base/io.h"
#include "base/jsn.h"
#include "base/str.h"
#include "base/util.h"

#define PORT_DIR "/sys/class/virtio-ports"

static int port_find(const char *name, char *path, size_t size)
{
	DIR *dir = opendir(PORT_DIR);
	struct dirent *d;
	int r = -ENODEV;

	while (dir && r < 0 && (d = readdir(dir))) {
		_cleanup_free_ char *text = NULL;
		char file[400];

		snprintf(file, sizeof(file), PORT_DIR "/%s/name", d->d_name);
		if (d->d_name[0] == '.' || io_read_file(file, 4096, &text, NULL, NULL) < 0)
			continue;
		text[strcspn(text, "\n")] = '\0';
		if (strcmp(text, name) == 0 && (size_t)snprintf(path, size, "/dev/%s", d->d_name) < size)
			r = 0;
	}
	if (dir)
		closedir(dir);
	return r;
}

int port_open(const char *name, int *ret, struct err *e)
{
	char path[300];
	int fd;

	if (port_find(name, path, sizeof(path)) < 0)
		return err_set(e, -ENODEV, "no port '%s' (this command runs inside a machine that the center starts)",
			       name);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return err_sys(e, "cannot open '%s'", path);
	*ret = fd;
	return 0;
}

int port_read(int fd, json_t **ret, struct err *e)
{
	_cleanup_(str_release) struct str line = {0};
	char c;

	for (;;) {
		ssize_t n = io_read_full(fd, &c, 1);

		if (n < 0) {
			errno = (int)-n;
			return err_sys(e, "cannot read the request");
		}
		if (n == 0)
			return err_set(e, -EPIPE, "the center closed the port before its request was complete");
		if (c == '\n')
			break;
		if (line.len >= JSN_MAX_SIZE)
			return err_set(e, -EFBIG, "the request is too long");
		str_add_mem(&line, &c, 1);
	}
	if (!str_ok(&line))
		return err_nomem(e);
	return jsn_parse(line.s ? line.s : "", line.len, JSN_MAX_SIZE, ret, e);
}

int port_write(int fd, const json_t *event, struct err *e)
{
	_cleanup_free_ char *text = jsn_text(event);
	_cleanup_(str_release) struct str line = {0};
	int r;

	if (!text)
		return err_nomem(e);
	str_addf(&line, "%s\n", text);
	if (!str_ok(&line))
		return err_nomem(e);
	r = io_write_full(fd, line.s, line.len);
	if (r < 0) {
		errno = -r;
		return err_sys(e, "cannot write to the center");
	}
	return 0;
}
