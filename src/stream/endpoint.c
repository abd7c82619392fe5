/* Keys and addresses as users give them. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/io.h"
#include "base/str.h"
#include "base/util.h"
#include "stream/stream_int.h"

int stream_key_read(const char *path, uint8_t psk[STREAM_PSK_SIZE], struct err *e)
{
	_cleanup_close_ int fd = strcmp(path, "-") == 0 ? dup(0) : open(path, O_RDONLY | O_CLOEXEC);
	char text[2 * STREAM_PSK_SIZE + 8];
	ssize_t n;
	int r;

	if (fd < 0)
		return err_sys(e, "cannot open '%s'", path);
	n = io_read_full(fd, text, sizeof(text) - 1);
	if (n < 0) {
		errno = (int)-n;
		return err_sys(e, "cannot read '%s'", path);
	}
	while (n > 0 && strchr(" \t\r\n", text[n - 1]))
		n--;
	text[n] = '\0';
	r = str_unhex(text, psk, STREAM_PSK_SIZE);
	explicit_bzero(text, sizeof(text));
	return r < 0 ? err_set(e, -EINVAL, "'%s' does not hold a key of 64 hex digits", path) : 0;
}

int stream_address_parse(const char *text, char *host, size_t size, uint16_t *ret_port, struct err *e)
{
	const char *colon = strrchr(text, ':'), *name = text;
	uint64_t port;
	size_t n;

	if (!colon || str_u64(colon + 1, 0, 65535, &port) < 0)
		return err_set(e, -EINVAL, "'%s' is not HOST:PORT", text);
	n = (size_t)(colon - text);
	if (n > 1 && text[0] == '[' && text[n - 1] == ']') {
		name++;
		n -= 2;
	}
	if (n == 0 || n >= size)
		return err_set(e, -EINVAL, "'%s' is not HOST:PORT", text);
	memcpy(host, name, n);
	host[n] = '\0';
	*ret_port = (uint16_t)port;
	return 0;
}

bool stream_is_temporary(int code)
{
	return wire_is_network(code) || code == -ENOSPC || code == -EAGAIN;
}

const char *stream_bottleneck_name(enum stream_bottleneck b)
{
	static const char *const names[] = {[STREAM_NOTHING] = "nothing",
					    [STREAM_LINK] = "link",
					    [STREAM_RATE] = "rate limit",
					    [STREAM_DISK] = "disk",
					    [STREAM_CPU] = "cpu"};

	return (size_t)b < ARRAY_SIZE(names) && names[b] ? names[b] : "unknown";
}
