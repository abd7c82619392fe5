#include <stddef.h>
#include <string.h>
#include <sys/stat.h>

#include "base/opt.h"
#include "transition/transition.h"
#include "transition/transition_int.h"

#define AT(member) offsetof(struct transition_options, member)

static const struct opt receive_opts[] = {
    {"dir", 'd', OPT_STRING, AT(dir), "DIR", "directory of the replica", .required = true},
    {"listen", 'l', OPT_STRING, AT(listen), "ADDR:PORT", "numeric address and port (0: any)", .required = true},
    {"run", 'r', OPT_STRING, AT(run), "ID", "id of the run", .required = true},
    {"psk-file", 'k', OPT_STRING, AT(psk_file), "FILE", "key of the run, 64 hex digits; -: standard input",
     .required = true},
    {"user", 'u', OPT_STRING, AT(user), "NAME", "become this user once directory and port are open"},
    {"min-free", 0, OPT_STRING, AT(min_free), "SIZE", "leave so much free in DIR's filesystem (default 0)"},
    {"layers", 0, OPT_STRING, AT(layers), "FD,...", "sockets of NBD servers of DIR's diskN.qcow2, by N; -: none"},
    {"no-encryption", 0, OPT_FLAG, AT(clear), NULL,
     "data that is authenticated but not encrypted; the sender must want it, too"},
    {"once", 0, OPT_FLAG, AT(once), NULL, "end when the sender leaves, even without a commit"},
    {0},
};
static const struct opt verify_opts[] = {
    {"dir", 'd', OPT_STRING, AT(dir), "DIR", "directory of the replica", .required = true},
    {0},
};

static const struct opt_command commands[] = {
    {"receive", "", "receive the disks of one run",
     "Prints events as JSON lines on standard output: listening, progress, committed, error. Exit codes: 0 committed,\n"
     "75 a temporary failure, 1 another one.",
     receive_opts, 0, 0, transition_receive},
    {"verify", "", "read a replica again and check every entry of its manifests", NULL, verify_opts, 0, 0,
     transition_verify},
    {"appliance", "", "serve one request inside the appliance (started there by its init)", NULL, NULL, 0, 0,
     transition_appliance},
    {"probe", "", "report on a test boot from inside the copied system (started there)", NULL, NULL, 0, 0,
     transition_probe},
    {0},
};

static const struct opt_program program = {
    .name = "replant-transition",
    .summary = "The hands of a Replant center: receives disks and makes machines of them.",
    .commands = commands,
};

int main(int argc, char **argv)
{
	struct transition_options o;

	umask(077);
	memset(&o, 0, sizeof(o));
	return opt_main(&program, &o, argc, argv);
}
