/* One agent per runtime directory, for as long as it holds the lock there. */
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/io.h"
#include "base/str.h"
#include "base/util.h"

#define CLAIM_TRIES 20 /* in a second: who only asks holds it for a moment, a guard that ends for a few */

int claim_take(const char *runtime, int *ret_fd, struct err *e)
{
	_cleanup_free_ char *path = str_printf("%s/agent.lock", runtime);
	_cleanup_close_ int fd = -1;

	if (!path)
		return err_nomem(e);
	if (io_mkdirs(runtime, 0755, e) < 0)
		return e->code;
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return err_sys(e, "cannot open '%s'", path);
	for (int i = 0; flock(fd, LOCK_EX | LOCK_NB) < 0; i++) {
		if (i == CLAIM_TRIES)
			return err_set(e, -EBUSY, "the agent is running already (see 'replant-agent status')");
		nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
	}
	*ret_fd = take_fd(&fd);
	return 0;
}

int claim_look(const char *runtime)
{
	_cleanup_free_ char *path = str_printf("%s/agent.lock", runtime);
	_cleanup_close_ int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;

	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	return flock(fd, LOCK_SH | LOCK_NB) < 0 ? 1 : 0;
}
