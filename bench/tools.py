"""Replant and its peers: each copies a disk from its file into something below its folder, and can do so again."""
import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import time

import lab

RUN = "run-0123456789abcdef"


class Tool:
    """prepare(): what the first copy finds; copy(): one copy, returns seconds until it is on the disk."""

    again = False  # does a second copy cost less than the first?

    def __init__(self, name, work, place=lab.Loopback):
        self.name, self.place = name, place
        self.dir = work / "".join(c if c.isalnum() else "-" for c in name)

    def prepare(self, disk):
        shutil.rmtree(self.dir, ignore_errors=True)
        self.dir.mkdir(parents=True)

    def clean(self):
        shutil.rmtree(self.dir, ignore_errors=True)

    def copy(self, disk):
        self.before(disk)
        try:
            lab.cold()
            begun = time.monotonic()
            self.transfer(disk)
            return time.monotonic() - begun
        finally:
            self.after()

    def before(self, disk):
        pass

    def transfer(self, disk):
        raise NotImplementedError

    def after(self):
        pass

    def target(self, size):
        path = self.dir / "target.raw"
        path.unlink(missing_ok=True)
        with open(path, "wb") as f:
            f.truncate(size)
        return path


class Replant(Tool):
    """The agent sends the file or device to a receiver: TLS 1.3, a digest for each block, the end is durable."""

    again = True

    def __init__(self, name, work, build, options, place=lab.Loopback):
        super().__init__(name, work, place)
        self.agent = build / "src/agent/replant-agent"
        self.transition = build / "src/transition/replant-transition"
        self.options = options
        self.peak_agent = self.peak_guard = self.peak_receiver = 0
        self.done = {}

    def before(self, disk):
        (self.dir / "replica").mkdir(exist_ok=True)
        self.key = self.dir / "psk"
        self.key.write_text(secrets.token_hex(32))
        self.key.chmod(0o600)
        self.receiver = lab.start([self.transition, "receive", "--dir", self.dir / "replica", "--listen",
                                   f"{self.place.address}:0", "--run", RUN, "--psk-file", self.key], self.place.destination,
                                  stdout=subprocess.PIPE, text=True)
        self.port = json.loads(self.receiver.stdout.readline())["port"]

    def send(self, disk, *options):
        return lab.start([self.agent, "send", "--to", f"{self.place.address}:{self.port}", "--run", RUN, "--psk-file",
                          self.key, "--json", "--disk", disk, *self.options, *options], self.place.source,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def transfer(self, disk):
        self.told(self.send(disk, "--no-freeze"))

    def run(self, device):
        """Of a mounted device, with a freeze, as the caches are; seconds."""
        self.before(None)
        try:
            begun = time.monotonic()
            self.told(self.send(device))
            return time.monotonic() - begun
        finally:
            self.after()

    def told(self, p):
        lines = []
        for line in p.stdout:
            lines.append(line)
        errors, failed = p.stderr.read(), p.wait()
        self.peak_agent = max(self.peak_agent, p.peak)
        self.peak_guard = max(self.peak_guard, p.peaks.get(1, 0))
        if failed:
            raise RuntimeError(f"the agent failed: {errors}")
        self.done = json.loads(lines[-1])

    def interrupt(self, p):
        """Ends a copy in the middle."""
        p.send_signal(signal.SIGINT)
        p.communicate()
        self.receiver.terminate()
        self.after()

    def after(self):
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.receiver.wait(5)
        self.receiver.terminate()
        self.receiver.stdout.read()
        self.receiver.wait()
        self.receiver.stdout.close()
        self.peak_receiver = max(self.peak_receiver, self.receiver.peak)


class Nbdcopy(Tool):
    def before(self, disk):
        self.port = lab.free_port()
        self.server = lab.start(["nbdkit", "-f", "-p", self.port, "-i", self.place.address, "file",
                                 self.target(disk.stat().st_size)], self.place.destination)
        lab.listening(self.place.destination, self.port)

    def transfer(self, disk):
        lab.sh(*self.place.source, "nbdcopy", "--flush", disk, f"nbd://{self.place.address}:{self.port}")

    def after(self):
        lab.stop(self.server)


class QemuImg(Tool):
    def transfer(self, disk):
        lab.sh("qemu-img", "convert", "-T", "none", "-t", "writeback", "-f", "raw", "-O", "qcow2", disk,
               self.dir / "target.qcow2")


class Rsync(Tool):
    """Of the mounted filesystem, into a folder, over ssh with a server of its own."""

    again = True

    def __init__(self, name, work, place=lab.Loopback, options=()):
        super().__init__(name, work, place)
        self.options = options

    def prepare(self, disk):
        super().prepare(disk)
        (self.dir / "tree").mkdir()
        for key in ("host", "user"):
            lab.sh("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.dir / key)
        os.makedirs("/run/sshd", exist_ok=True)

    def before(self, disk):
        self.port = lab.free_port()
        (self.dir / "sshd_config").write_text(
            f"ListenAddress {self.place.address}:{self.port}\nHostKey {self.dir}/host\nPidFile none\nUsePAM no\n"
            f"AuthorizedKeysFile {self.dir}/user.pub\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n")
        self.server = lab.start(["/usr/sbin/sshd", "-D", "-e", "-f", self.dir / "sshd_config"], self.place.destination,
                                stderr=subprocess.DEVNULL)
        lab.listening(self.place.destination, self.port)
        self.stack = contextlib.ExitStack()
        dev = self.stack.enter_context(lab.loop(disk, ro=True))
        self.mount = self.stack.enter_context(lab.mounted(dev, self.dir / "mount", ro=True))

    def transfer(self, disk):
        lab.sh(*self.place.source, "rsync", "-aHAXS", "--delete", "--numeric-ids", *self.options, "-e",
               f"ssh -p {self.port} -i {self.dir}/user -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null "
               "-o LogLevel=ERROR", f"{self.mount}/", f"root@{self.place.address}:{self.dir}/tree/")
        lab.sh("sync", "-f", self.dir / "tree")

    def after(self):
        lab.stop(self.server)
        self.stack.close()


class Partclone(Tool):
    """partclone.ext4 | zstd -1 | TLS | zstd -d | partclone.restore."""

    def prepare(self, disk):
        super().prepare(disk)
        lab.sh("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
               "-subj", "/CN=bench", "-keyout", self.dir / "key", "-out", self.dir / "crt")

    def before(self, disk):
        self.port = lab.free_port()
        target = self.target(disk.stat().st_size)
        self.server = lab.start(
            ["bash", "-o", "pipefail", "-c", f"socat -b 262144 -u OPENSSL-LISTEN:{self.port},bind={self.place.address},cert={self.dir}/crt,"
             f"key={self.dir}/key,verify=0 - | zstd -dc | partclone.restore -C -L /dev/null -s - -O {target} 2>{self.dir}/log"
             f" && sync -f {target}"], self.place.destination, start_new_session=True)
        lab.listening(self.place.destination, self.port)

    def transfer(self, disk):
        lab.sh(*self.place.source, "bash", "-o", "pipefail", "-c",
               f"partclone.ext4 -c -L /dev/null -s {disk} -o - 2>/dev/null | zstd -1 -T2 -qc | "
               f"socat -b 262144 -u - OPENSSL:{self.place.address}:{self.port},cafile={self.dir}/crt,verify=1,commonname=bench")
        lab.finished(self.server, "partclone.restore")

    def after(self):
        lab.stop(self.server, group=True)
