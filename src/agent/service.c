/* Installs this program as a service of systemd, and takes it away again. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agent/agent_int.h"
#include "base/err.h"
#include "base/io.h"
#include "base/proc.h"
#include "base/str.h"
#include "base/util.h"

#define SERVICE_PROGRAM_MAX (64u << 20)

/*
 * Hardened without a mount namespace and a device policy of its own: the agent has to see every mount as the server
 * sees it, freeze it, and read every disk. KillMode=process: the freeze guard must end by itself, after thawing.
 * What lies below /run is for the next start: what may be frozen still, and what the next run may rely on.
 * Of the capabilities, SYS_PTRACE is for seeing which mount namespaces there are; SETUID, SETGID, and AUDIT_WRITE,
 * without which PAM refuses, are for hooks that become another user, and KILL is for ending those.
 */
static const char service_unit[] = "# Written by 'replant-agent enroll'; removed by 'replant-agent uninstall'.\n"
				   "[Unit]\n"
				   "Description=Replant agent\n"
				   "Documentation=man:replant-agent(8)\n"
				   "Wants=network-online.target\n"
				   "After=network-online.target\n"
				   "StartLimitIntervalSec=0\n"
				   "\n"
				   "[Service]\n"
				   "Type=exec\n"
				   "ExecStart=" AGENT_PROGRAM " run\n"
				   "Restart=on-failure\n"
				   "RestartSec=5\n"
				   "KillMode=process\n"
				   "TimeoutStopSec=30\n"
				   "RuntimeDirectory=replant\n"
				   "RuntimeDirectoryPreserve=yes\n"
				   "UMask=0077\n"
				   "LimitCORE=0\n"
				   "OOMScoreAdjust=-500\n"
				   "IOSchedulingClass=best-effort\n"
				   "IOSchedulingPriority=6\n"
				   "Nice=5\n"
				   "NoNewPrivileges=yes\n"
				   "CapabilityBoundingSet=CAP_SYS_ADMIN CAP_SYS_RAWIO CAP_DAC_READ_SEARCH "
				   "CAP_DAC_OVERRIDE CAP_IPC_LOCK CAP_SYS_RESOURCE "
				   "CAP_SYS_NICE CAP_SYS_PTRACE CAP_SETUID CAP_SETGID CAP_KILL "
				   "CAP_AUDIT_WRITE\n"
				   "LockPersonality=yes\n"
				   "MemoryDenyWriteExecute=yes\n"
				   "RestrictRealtime=yes\n"
				   "RestrictNamespaces=yes\n"
				   "RestrictSUIDSGID=yes\n"
				   "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK\n"
				   "SystemCallArchitectures=native\n"
				   "\n"
				   "[Install]\n"
				   "WantedBy=multi-user.target\n";

bool service_systemd(void)
{
	return access("/run/systemd/system", F_OK) == 0; /* sd_booted(3) */
}

static int service_copy_program(struct err *e)
{
	_cleanup_free_ char *data = NULL;
	struct stat self, there;
	size_t len;
	int r;

	if (stat("/proc/self/exe", &self) < 0)
		return err_sys(e, "cannot find this program");
	if (stat(AGENT_PROGRAM, &there) == 0 && there.st_dev == self.st_dev && there.st_ino == self.st_ino)
		return 0;
	r = io_read_file("/proc/self/exe", SERVICE_PROGRAM_MAX, &data, &len, e);
	if (r < 0)
		return err_prefix(e, "cannot read this program");
	r = io_mkdirs("/usr/local/sbin", 0755, e);
	return r < 0 ? r : io_write_file_atomic(AGENT_PROGRAM, data, len, 0755, e);
}

int service_install(struct err *e)
{
	int r = service_copy_program(e);

	if (r < 0)
		return r;
	if (access("/etc/systemd/system", F_OK) < 0)
		return 0; /* another init: the person is told how to run it */
	r = io_write_file_atomic(AGENT_UNIT_PATH, service_unit, sizeof(service_unit) - 1, 0644, e);
	if (r < 0)
		return r;
	if (!service_systemd()) {
		/* A system that is being set up, not booted: it can still be told to start it then. */
		proc_run((const char *[]){"systemctl", "enable", AGENT_UNIT, NULL}, 65536, NULL, NULL);
		return 0;
	}
	r = proc_run((const char *[]){"systemctl", "daemon-reload", NULL}, 65536, NULL, e);
	if (r == 0)
		r = proc_run((const char *[]){"systemctl", "enable", AGENT_UNIT, NULL}, 65536, NULL, e);
	if (r == 0)
		r = proc_run((const char *[]){"systemctl", "restart", AGENT_UNIT, NULL}, 65536, NULL, e);
	return r;
}

static int service_unlink(const char *path, struct err *e)
{
	if (unlink(path) < 0)
		return errno == ENOENT ? 0 : err_sys(e, "cannot remove '%s'", path);
	printf("removed %s\n", path);
	return 0;
}

static bool service_is_here(void)
{
	return access(AGENT_UNIT_PATH, F_OK) == 0 && service_systemd();
}

int service_stop(struct err *e)
{
	int r;

	if (!service_is_here())
		return 0;
	r = proc_run((const char *[]){"systemctl", "disable", "--now", AGENT_UNIT, NULL}, 65536, NULL, e);
	if (r == 0)
		printf("stopped and disabled %s\n", AGENT_UNIT);
	return r;
}

int service_remove(struct err *e)
{
	bool unit = service_is_here();
	int r = service_unlink(AGENT_UNIT_PATH, e);

	if (r == 0)
		r = service_unlink("/etc/systemd/system/multi-user.target.wants/" AGENT_UNIT, e);
	if (r == 0 && unit)
		r = proc_run((const char *[]){"systemctl", "daemon-reload", NULL}, 65536, NULL, e);
	return r < 0 ? r : service_unlink(AGENT_PROGRAM, e);
}
