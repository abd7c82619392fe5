"""usage: python3 -m tests.lab list | build NAME... | boot NAME [options] | clean"""

import argparse
import shlex
import subprocess
import sys
import time

from . import build, cache, qemu, servers


def allocated(folder):
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def do_list(_):
    for server in servers.SERVERS:
        folder = build.folder_of(server)
        state = f"{allocated(folder) >> 20} MiB" if folder.exists() else "not built"
        print(f"{server.name:20} {state:>9}  {server.about}")


def do_build(options):
    for name in options.names:
        for disk in build.disks(servers.find(name)):
            print(disk)


def do_boot(options):
    server = servers.find(options.name)
    build.disks(server)
    accel, why = qemu.accelerator()
    start = time.monotonic()
    with build.boot(server, memory=options.memory or server.memory, cpus=options.cpus, forwards={22: options.ssh_port},
                    folder=options.folder) as machine:
        print(f"{server.name} is starting ({accel}: {why}); console in {machine.folder}/serial.log", flush=True)
        print("reach it with: " + shlex.join(machine.ssh_command(multiplex=False)), flush=True)
        print("the guest reaches this host as 10.0.2.2; Ctrl-C ends it and forgets what it wrote", flush=True)
        machine.wait_ssh(600)
        print(f"ready after {time.monotonic() - start:.0f} s", flush=True)
        machine.process.wait()
        print("it went down by itself")


def do_clean(_):
    for path in cache.lab().iterdir():
        cache.remove(path)


def main():
    parser = argparse.ArgumentParser(prog="python3 -m tests.lab", description="build and boot servers to migrate")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    verbs.add_parser("list", help="the servers, and whether they are built").set_defaults(do=do_list)
    verb = verbs.add_parser("build", help="build the disks of servers")
    verb.add_argument("names", nargs="+", metavar="NAME")
    verb.set_defaults(do=do_build)
    verb = verbs.add_parser("boot", help="boot a server on a throw-away copy, until Ctrl-C")
    verb.add_argument("name", metavar="NAME")
    verb.add_argument("--ssh-port", type=int, default=0, metavar="PORT", help="port of 127.0.0.1 (default: a free one)")
    verb.add_argument("--memory", type=int, default=0, metavar="MIB")
    verb.add_argument("--cpus", type=int, default=2)
    verb.add_argument("--folder", help="keep the console's log here")
    verb.set_defaults(do=do_boot)
    verbs.add_parser("clean", help="remove everything built").set_defaults(do=do_clean)
    options = parser.parse_args()
    qemu.die_on_sigterm()
    try:
        options.do(options)
    except KeyboardInterrupt:
        pass
    except (qemu.LabError, KeyError) as failure:
        sys.exit(f"lab: {failure.args[0]}")
    except subprocess.CalledProcessError as failure:
        sys.exit(f"lab: {shlex.join(map(str, failure.cmd))} failed ({failure.returncode})")


main()
