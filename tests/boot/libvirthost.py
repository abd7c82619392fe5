"""A libvirt of the test's own: its daemon in a mount namespace, so that nothing of the machine's is touched or stays."""

import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import time

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("REPLANT_BUILD") or TOP / "build").resolve()
TOOL = BUILD / "tests" / "boot" / "libvirt_tool"

QEMU_CONF = """stdio_handler = "file"
security_driver = "none"
user = "root"
group = "root"
remember_owner = 0
namespaces = []
cgroup_controllers = []
"""
HIDDEN = {"run": "/run/libvirt", "var": "/var/lib/libvirt", "etc": "/etc/libvirt", "log": "/var/log/libvirt", "cache": "/var/cache/libvirt"}


class Unusable(Exception):
    pass


class Host:
    """`small` is a pool of some MiB that only the daemon sees; `small_dir` is the way there from outside."""

    def __init__(self, folder, small_mib=40):
        self.folder = folder
        self.small_mib = small_mib
        self.pool = folder / "pool"
        self.uri = f"qemu+unix:///system?socket={folder}/sock/libvirt-sock"
        self.daemon = None
        for name in [*HIDDEN, "sock", "pool", "small", "dir", "dir/runs"]:
            (folder / name).mkdir()
        (folder / "etc" / "qemu.conf").write_text(QEMU_CONF)
        (folder / "libvirtd.conf").write_text(f'unix_sock_dir = "{folder}/sock"\nauth_unix_rw = "none"\nauth_unix_ro = "none"\n')

    @property
    def small_dir(self):
        return pathlib.Path(f"/proc/{self.daemon.pid}/root{self.folder}/small")

    def start(self):
        if not shutil.which("libvirtd"):
            raise Unusable("libvirtd is not installed (tools/deps test)")
        script = "set -e; mount --make-rprivate /; " + "".join(
            f"mkdir -p {there}; mount --bind {self.folder}/{name} {there}; " for name, there in HIDDEN.items())
        script += f"mountpoint -q {self.folder}/small || mount -t tmpfs -o size={self.small_mib}m small {self.folder}/small; "
        # Its tmpfs outlives a daemon that is killed.
        enter = ["nsenter", "--mount", "-t", str(self.keeper.pid)] if getattr(self, "keeper", None) else []
        if not enter:
            self.keeper = subprocess.Popen(["unshare", "-m", "sh", "-c", script + "echo up; exec sleep infinity"], stdout=subprocess.PIPE,
                                           stderr=subprocess.PIPE, text=True)
            if self.keeper.stdout.readline() != "up\n":
                raise Unusable(f"no mount namespace of our own here: {self.keeper.communicate()[1].strip()}")
            enter = ["nsenter", "--mount", "-t", str(self.keeper.pid)]
        log = open(self.folder / "daemon.log", "ab")
        self.daemon = subprocess.Popen([*enter, "libvirtd", "-f", f"{self.folder}/libvirtd.conf", "-p", f"{self.folder}/pid"],
                                       stdout=log, stderr=log)
        end = time.monotonic() + 60
        while self.virsh("list", check=False).returncode:
            if time.monotonic() > end or self.daemon.poll() is not None:
                raise Unusable("libvirtd doesn't serve here: " + (self.folder / "daemon.log").read_text()[-300:])
            time.sleep(0.3)
        for name in ("default", "small"):
            if name not in self.virsh("pool-list", "--all", "--name").stdout.split():
                self.virsh("pool-define-as", name, "dir", "--target", str(self.pool if name == "default" else self.folder / name))
            if name not in self.virsh("pool-list", "--name").stdout.split():
                self.virsh("pool-start", name)

    def kill(self):
        self.daemon.kill()
        self.daemon.wait()

    def stop(self):
        if self.daemon and self.daemon.poll() is None:
            self.daemon.send_signal(signal.SIGCONT)
            for name in self.virsh("list", "--name", check=False).stdout.split():
                self.virsh("destroy", name, check=False)
            self.daemon.terminate()
            self.daemon.wait(30)
        for pid in (self.folder / "run" / "qemu").glob("*.pid"):
            try:
                os.kill(int(pid.read_text()), signal.SIGKILL)
            except (OSError, ValueError):
                pass
        if getattr(self, "keeper", None):
            self.keeper.kill()
            self.keeper.wait()

    def virsh(self, *args, check=True, stdin=None):
        done = subprocess.run(["virsh", "-q", "-c", self.uri, *args], capture_output=True, text=True, timeout=120, check=False, input=stdin)
        assert not check or done.returncode == 0, done.stderr
        return done

    def define(self, xml):
        (self.folder / "new.xml").write_text(xml)
        self.virsh("define", str(self.folder / "new.xml"))

    def xml(self, name, *options):
        return self.virsh("dumpxml", name, *options).stdout

    # ---- ours ----
    def command(self, *args, pool="default"):
        settings = {"uri": self.uri, "accelerator": "tcg", "network": "user", "pool": pool}
        return [str(TOOL), str(self.folder / "dir"), json.dumps(settings),
                *(a if isinstance(a, str) else json.dumps(a) for a in args)]

    def tool(self, *args, pool="default", code=0, timeout=120):
        """The result; `code` is the errno it must end with."""
        done = subprocess.run(self.command(*args, pool=pool), capture_output=True, text=True, timeout=timeout, check=False)
        assert done.stdout, done.stderr
        last = json.loads(done.stdout.splitlines()[-1])
        assert last["code"] == -code, last
        self.events = [json.loads(line) for line in done.stdout.splitlines()[:-1]]
        return last.get("result", last["message"]) if not code else last["message"]


def boot_disk(path, text, size=16 << 20, payload=b""):
    """A disk whose boot sector says the text on the serial line, then waits; `payload` further on."""
    code = bytearray([0xFA, 0x31, 0xC0, 0x8E, 0xD8, 0xBE, 0, 0,  # cli; ds = 0; si = text
                      0xAC, 0x84, 0xC0, 0x74, 0x10,  # next: lodsb; end?
                      0x88, 0xC3, 0xBA, 0xFD, 0x03, 0xEC, 0xA8, 0x20, 0x74, 0xFB,  # wait for the line
                      0xBA, 0xF8, 0x03, 0x88, 0xD8, 0xEE, 0xEB, 0xE9,  # say it
                      0xF4, 0xEB, 0xFD])  # hlt, for ever
    code[6:8] = struct.pack("<H", 0x7C00 + len(code))
    code[12] = len(code) - 3 - 13
    sector = (bytes(code) + text.encode() + b"\r\n\0").ljust(510, b"\0") + b"\x55\xaa"
    with open(path, "wb") as f:
        f.write(sector)
        f.seek(1 << 20)
        f.write(payload)
        f.truncate(size)
    return path
