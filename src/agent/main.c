/* replant-agent: the program on the server that is migrated. */
#include <openssl/ssl.h>
#include <signal.h>
#include <stddef.h>

#include "agent/agent_int.h"
#include "base/util.h"
#include "stream/stream.h"

#define AT(field) offsetof(struct agent_options, field)

static const struct opt check_opts[] = {
    {"center", 'c', OPT_STRING, AT(center), "URL", "also try to reach this center"},
    {"json", 0, OPT_FLAG, AT(json), NULL, "print JSON"},
    {0},
};
static const struct opt discover_opts[] = {
    {"json", 0, OPT_FLAG, AT(json), NULL, "print JSON"},
    {0},
};
static const struct opt enroll_opts[] = {
    {"center", 'c', OPT_STRING, AT(center), "URL", "the center, https://NAME-OR-ADDRESS[:PORT] (REPLANT_URL)"},
    {"code", 0, OPT_STRING, AT(code), "CODE", "activation code; - or absent: REPLANT_CODE or standard input"},
    {"disk", 'd', OPT_LIST, AT(disks), "DEVICE", "migrate only this disk; may be given again (all disks)"},
    {"no-service", 0, OPT_FLAG, AT(no_service), NULL, "don't install and start the service"},
    {0},
};
static const struct opt run_opts[] = {
    {"verbose", 'v', OPT_FLAG, AT(verbose), NULL, "log more"},
    {"log-json", 0, OPT_FLAG, AT(log_json), NULL, "log in JSON"},
    {0},
};
static const struct opt status_opts[] = {
    {"json", 0, OPT_FLAG, AT(json), NULL, "print JSON"},
    {0},
};
static const struct opt send_opts[] = {
    {"to", 't', OPT_STRING, AT(to), "HOST:PORT", "the receiver", 0, 0, true},
    {"run", 'r', OPT_STRING, AT(run), "ID", "run id, as the receiver has it", 0, 0, true},
    {"psk-file", 'k', OPT_STRING, AT(psk_file), "FILE", "key of the run, 64 hex digits; - for standard input", 0, 0,
     true},
    {"disk", 'd', OPT_LIST, AT(disks), "DEVICE", "block device or file; may be given again", 0, 0, true},
    {"connections", 'n', OPT_U64, AT(connections), "N", "connections, 1 to 16 (4)", 1, STREAM_CONNECTIONS_MAX},
    {"compress", 'z', OPT_U64, AT(compress), "LEVEL", "zstd level, 0 (none) to 10, or auto (auto)", 0, 10,
     .word = "auto"},
    {"rate", 0, OPT_U64, AT(rate), "MBIT", "limit on the wire in Mbit/s, 0 is none (0)", 0, 1000000},
    {"checksum", 0, OPT_FLAG, AT(checksum), NULL, "SHA-256 digests instead of XXH3"},
    {"no-encryption", 0, OPT_FLAG, AT(clear), NULL, "authenticated but not encrypted; the receiver must want it, too"},
    {"on-read-error", 0, OPT_STRING, AT(on_read_error), "fail|zero", "what to do with unreadable sectors (fail)"},
    {"no-freeze", 0, OPT_FLAG, AT(no_freeze), NULL, "don't freeze mounted filesystems"},
    {"max-freeze", 0, OPT_STRING, AT(max_freeze), "SECONDS", "rounds go on until a freeze would end within this (1)"},
    {"patience", 0, OPT_U64, AT(patience), "SECONDS",
     "so long without getting nearer to it: a freeze of up to 10 s, or an error (1800)", 1, 86400},
    {"no-tracking", 0, OPT_FLAG, AT(no_tracking), NULL, "don't track writes: compare everything while frozen"},
    {"keep-tracking", 0, OPT_FLAG, AT(keep_tracking), NULL, "go on tracking, so that the next run reads only changes"},
    {"json", 0, OPT_FLAG, AT(json), NULL, "print progress and result as JSON lines"},
    {0},
};

static const struct opt_command commands[] = {
    {"check", "[DISK]...", "check whether this server can be migrated",
     "Each finding is ok, a warning, or failed, with a remedy. The exit code is 1 when one failed.", check_opts, 0, 64,
     agent_check},
    {"discover", "[DISK]...", "show what this server consists of",
     "Reads only. With DISKs, only these block devices or image files are looked at.", discover_opts, 0, 64,
     agent_discover},
    {"enroll", "", "make this server a source of a center",
     "The activation code is made at the center. It holds the fingerprint of the center's certificate, so that the "
     "center is\n"
     "known for certain from the first contact on. Enrolling again is harmless.",
     enroll_opts, 0, 0, agent_enroll},
    {"run", "", "be the service (what systemd starts)", NULL, run_opts, 0, 0, agent_run},
    {"status", "", "show what the service does", NULL, status_opts, 0, 0, agent_status},
    {"send", "", "send disks to a receiver, without a center", NULL, send_opts, 0, 0, agent_send},
    {"uninstall", "", "stop the service and remove everything of the agent", NULL, NULL, 0, 0, agent_uninstall},
    {0},
};
static const struct opt common[] = {
    {"config", 0, OPT_STRING, AT(config_dir), "DIR", "configuration (" AGENT_CONFIG_DIR ")"},
    {"runtime", 0, OPT_STRING, AT(runtime_dir), "DIR", "state of the service (" AGENT_RUNTIME_DIR ")"},
    {0},
};

int main(int argc, char **argv)
{
	const struct opt_program program = {"replant-agent", "Shows, checks and sends this server to a Replant center.",
					    commands, common, NULL};
	struct agent_options options = {.config_dir = AGENT_CONFIG_DIR,
					.runtime_dir = AGENT_RUNTIME_DIR,
					.on_read_error = "fail",
					.connections = 4,
					.compress = STREAM_COMPRESSION_AUTO};
	int code;

	/* The configuration of this server's own OpenSSL may ask for modules that a static program can't load. */
	OPENSSL_init_ssl(OPENSSL_INIT_NO_LOAD_CONFIG, NULL);
	signal(SIGPIPE, SIG_IGN);
	code = opt_main(&program, &options, argc, argv);
	free(options.disks.v);
	return code;
}
