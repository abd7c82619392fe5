"""Virtual machines for the tests: start, watch, talk to, and never leave behind.

The accelerator is chosen by trying it, because a /dev/kvm that opens may still
not be able to run a guest. Machines die with the process that started them
(PR_SET_PDEATHSIG), so start them from a thread that lives as long as they shall.
"""

import dataclasses
import functools
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from . import cache

QEMU = "qemu-system-x86_64"

# A boot sector: mov al,0x10 ; mov dx,0xf4 ; out dx,al ; hlt ; jmp $-1. The write
# to isa-debug-exit's port ends QEMU with status (0x10 << 1) | 1.
TRIAL_CODE = bytes.fromhex("b010baf400eef4ebfd")
TRIAL_STATUS = 0x21
TRIAL_SECONDS = 3


class LabError(Exception):
    pass


def try_accelerator(accel, cpu):
    """Why an accelerator cannot be used, or None when a tiny guest ran under it."""
    with tempfile.NamedTemporaryFile(suffix=".img") as image:
        image.write(TRIAL_CODE.ljust(510, b"\0") + b"\x55\xaa")
        image.truncate(65536)
        image.flush()
        command = ["setpriv", "--pdeathsig", "KILL", QEMU, "-machine", "pc", "-accel", accel, "-cpu", cpu,
                   "-nodefaults", "-display", "none", "-m", "32", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
                   "-drive", f"file={image.name},format=raw,if=ide,snapshot=on"]
        try:
            trial = subprocess.run(command, timeout=TRIAL_SECONDS, capture_output=True, text=True, check=False)
        except subprocess.TimeoutExpired:
            return f"a guest under {accel} ran nothing within {TRIAL_SECONDS} s"
    if trial.returncode == TRIAL_STATUS:
        return None
    words = trial.stderr.strip().splitlines()
    return words[0] if words else f"qemu ended with status {trial.returncode}"


@functools.lru_cache(maxsize=1)
def accelerator():
    """("kvm" or "tcg", why). Tried once per boot of the host; $REPLANT_ACCEL overrides."""
    forced = os.environ.get("REPLANT_ACCEL")
    if forced:
        return forced, "set by REPLANT_ACCEL"
    boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    note = cache.lab() / "accelerator.json"
    with cache.locked("accelerator"):
        try:
            known = json.loads(note.read_text())
        except (OSError, ValueError):
            known = {}
        if known.get("boot_id") != boot:
            if os.access("/dev/kvm", os.R_OK | os.W_OK):
                why = try_accelerator("kvm", "host")
            else:
                why = "/dev/kvm cannot be opened"
            known = {"boot_id": boot, "accel": "tcg" if why else "kvm", "why": why or "a guest ran under KVM"}
            note.write_text(json.dumps(known) + "\n")
    return known["accel"], known["why"]


def guestfs_environment():
    """For libguestfs's programs: no libvirt, the accelerator that works, and a kernel although this host may have none."""
    kernel = cache.kernel()
    version = (kernel / "version").read_text().strip()
    env = dict(os.environ, LIBGUESTFS_BACKEND="direct", SUPERMIN_KERNEL=str(kernel / "vmlinuz"),
               SUPERMIN_KERNEL_VERSION=version, SUPERMIN_MODULES=str(kernel / "lib" / "modules" / version))
    if accelerator()[0] != "kvm":
        env["LIBGUESTFS_BACKEND_SETTINGS"] = "force_tcg"
    return env


@dataclasses.dataclass
class Drive:
    """One disk of a machine. bus: ide, sata, virtio, scsi (virtio-scsi)."""
    path: os.PathLike
    bus: str = "virtio"
    format: str = "qcow2"
    readonly: bool = False
    serial: str = ""
    # The guest's flushes are not passed on: the host does not lose power in a test. But QEMU then also keeps qcow2's
    # tables to itself: a disk that shall be used again after kill() needs "writeback".
    cache: str = "unsafe"


class Qmp:
    """QEMU's control channel over a socket that was opened before QEMU started."""

    def __init__(self, sock):
        sock.settimeout(60)
        self.sock = sock
        self.file = sock.makefile("rw", encoding="utf-8", newline="\n")
        self.events = []
        self._read()  # the greeting
        self.command("qmp_capabilities")

    def _read(self):
        line = self.file.readline()
        if not line:
            raise LabError("qemu closed its control channel")
        return json.loads(line)

    def command(self, name, **arguments):
        self.file.write(json.dumps({"execute": name, "arguments": arguments}) + "\n")
        self.file.flush()
        while True:
            answer = self._read()
            if "return" in answer:
                return answer["return"]
            if "error" in answer:
                raise LabError(f"qmp {name}: {answer['error']['desc']}")
            self.events.append(answer)

    def close(self):
        self.file.close()
        self.sock.close()


@dataclasses.dataclass
class Machine:
    """A machine to start with `with`, or start() and stop().

    forwards maps guest TCP ports to ports of 127.0.0.1 (0: any free one); host_port() tells which.
    The guest reaches the host as 10.0.2.2. folder (kept if given) receives serial.log and qemu.log.
    """
    name: str
    drives: list = dataclasses.field(default_factory=list)
    machine: str = "q35"
    memory: int = 768
    cpus: int = 2
    nic: str = "virtio-net-pci"  # "" for no network
    nic_slot: int = 3
    mac: str = "52:54:00:12:34:56"
    forwards: dict = dataclasses.field(default_factory=lambda: {22: 0})
    kernel: os.PathLike = None
    initrd: os.PathLike = None
    append: str = ""
    vga: str = "std"
    serial_socket: bool = False  # also connectable, at folder/serial.sock
    restrict: bool = False  # cut the guest off from everything but the forwards
    extra: list = dataclasses.field(default_factory=list)
    folder: os.PathLike = None
    key: os.PathLike = None

    def __post_init__(self):
        self.process = self.qmp = self._log = None
        self._own_folder = self.folder is None
        self.ports = {}

    # -- life -------------------------------------------------------------

    def _drive_args(self):
        args, ides, scsis = [], 0, 0
        for i, drive in enumerate(self.drives):
            args += ["-drive", f"if=none,id=d{i},file={str(drive.path).replace(',', ',,')},format={drive.format},"
                     f"cache={drive.cache},discard=unmap,detect-zeroes=unmap,aio=threads,"
                     f"readonly={'on' if drive.readonly else 'off'}"]
            serial = f",serial={drive.serial}" if drive.serial else ""
            if drive.bus == "virtio":
                args += ["-device", f"virtio-blk-pci,drive=d{i}{serial}"]
            elif drive.bus == "scsi":
                args += [] if scsis else ["-device", "virtio-scsi-pci,id=scsi0"]
                args += ["-device", f"scsi-hd,bus=scsi0.0,drive=d{i}{serial}"]
                scsis += 1
            elif drive.bus in ("ide", "sata"):
                # q35's own bus is AHCI, pc's is PIIX3 with two drives on each of two channels
                ahci = self.machine.startswith("q35")
                if (drive.bus == "sata") != ahci:
                    raise LabError(f"'{self.name}': machine '{self.machine}' has no bus '{drive.bus}'")
                place = f"bus=ide.{ides}" if ahci else f"bus=ide.{ides // 2},unit={ides % 2}"
                args += ["-device", f"ide-hd,{place},drive=d{i}{serial}"]
                ides += 1
            else:
                raise LabError(f"'{self.name}': unknown bus '{drive.bus}' (use ide, sata, virtio or scsi)")
        return args

    def _net_args(self):
        if not self.nic:
            return ["-nic", "none"]
        user = "user,id=net0" + (",restrict=on" if self.restrict else "")
        for guest, host in self.forwards.items():
            user += f",hostfwd=tcp:127.0.0.1:{host}-:{guest}"
        return ["-netdev", user, "-device", f"{self.nic},netdev=net0,mac={self.mac},addr={self.nic_slot:#x}"]

    def command(self, qmp_fd):
        accel, _ = accelerator()
        serial = f"file,id=serial,path={self.folder}/serial.log"
        if self.serial_socket:
            serial = (f"socket,id=serial,path={self.folder}/serial.sock,server=on,wait=off,"
                      f"logfile={self.folder}/serial.log")
        # With a thread per processor, QEMU before 8.1 translates code while another processor patches it, and a
        # kernel whose tracepoints are switched on and off then meets an int3 that is no longer there.
        args = [QEMU, "-name", self.name, "-machine", self.machine,
                "-accel", "kvm" if accel == "kvm" else "tcg,thread=single", "-cpu", "host" if accel == "kvm" else "max",
                "-smp", str(self.cpus), "-m", str(self.memory), "-nodefaults", "-no-user-config", "-display", "none",
                "-vga", self.vga, "-chardev", serial, "-serial", "chardev:serial",
                "-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"]
        if self.kernel:
            args += ["-kernel", str(self.kernel), "-append", self.append]
            args += ["-initrd", str(self.initrd)] if self.initrd else []
        return args + self._drive_args() + self._net_args() + [str(word) for word in self.extra]

    def start(self):
        if self._own_folder:
            self.folder = tempfile.mkdtemp(prefix="replant-lab-")
        self.folder = pathlib.Path(self.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        ours, theirs = socket.socketpair()
        command = self.command(theirs.fileno())
        try:
            self._log = open(self.folder / "qemu.log", "w+")
            print(shlex.join(command), file=self._log, flush=True)
            self.process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL,
                                            stdout=self._log, stderr=self._log, pass_fds=[theirs.fileno()])
            theirs.close()
            self.qmp = Qmp(ours)
            self._learn_ports()
        except BaseException as failure:
            ours.close()
            self.kill()
            said = (self.folder / "qemu.log").read_text().split("\n", 1)[-1].strip()
            self._clean()
            if isinstance(failure, (LabError, OSError)):
                raise LabError(f"'{self.name}' did not start: {said or failure}") from failure
            raise
        return self

    def _learn_ports(self):
        if not self.nic or not self.forwards:
            return
        table = self.qmp.command("human-monitor-command", **{"command-line": "info usernet"})
        for line in table.splitlines():
            words = line.split()
            if words and words[0] == "TCP[HOST_FORWARD]":
                self.ports[int(words[5])] = int(words[3])

    def kill(self):
        """Takes the power away (see Drive.cache)."""
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def _clean(self):
        if self._log:
            self._log.close()
            self._log = None
        if self._own_folder and self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    def stop(self):
        """Ends the machine at once, whatever state it is in."""
        self.kill()
        if self.qmp:
            self.qmp.close()
            self.qmp = None
        self._clean()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.stop()

    def running(self):
        return self.process is not None and self.process.poll() is None

    def wait_off(self, timeout=120):
        """Waits for the guest to power itself off."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(f"'{self.name}' is still on after {timeout} s; {self.tail()}") from None

    def shutdown(self, timeout=180):
        """Presses the power button and waits for the guest to go down in order."""
        self.qmp.command("system_powerdown")
        self.wait_off(timeout)

    def reset(self):
        """Presses the reset button; sessions over ssh are lost."""
        self._forget_ssh()
        self.qmp.command("system_reset")

    def screenshot(self, path):
        """Writes the screen as PNG."""
        self.qmp.command("screendump", filename=str(pathlib.Path(path).resolve()), format="png")
        return path

    # -- watching ---------------------------------------------------------

    def serial(self):
        try:
            return (self.folder / "serial.log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def tail(self, lines=15):
        return "the serial console ends with:\n" + "\n".join(self.serial().splitlines()[-lines:])

    def wait_serial(self, pattern, timeout=180):
        """The first match of a regular expression (multi-line) on the serial console."""
        wanted = re.compile(pattern, re.MULTILINE)
        end = time.monotonic() + timeout
        while True:
            alive = self.running()
            found = wanted.search(self.serial())
            if found:
                return found
            if not alive:
                raise LabError(f"'{self.name}' ended before '{pattern}' appeared; {self.tail()}")
            if time.monotonic() > end:
                raise LabError(f"'{self.name}': no '{pattern}' within {timeout} s; {self.tail()}")
            time.sleep(0.2)

    # -- talking ----------------------------------------------------------

    def host_port(self, guest_port=22):
        return self.ports[guest_port]

    def ssh_command(self, *words, multiplex=True):
        # A handshake costs seconds under TCG, so later sessions ride on the first one's connection.
        share = ["-o", "ControlMaster=auto", "-o", f"ControlPath={self.folder}/ssh", "-o", "ControlPersist=600"]
        return ["ssh", "-F", "none", "-i", str(self.key or cache.ssh_key()), "-p", str(self.host_port()),
                "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
                "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20",
                "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=8",
                *(share if multiplex else []), "root@127.0.0.1", *words]

    def _forget_ssh(self):
        if self.ports.get(22):
            subprocess.run([*self.ssh_command()[:-1], "-O", "exit", "root@127.0.0.1"], capture_output=True, check=False)

    def run(self, command, input=None, timeout=120):
        """Runs a shell command as root in the guest; returns the CompletedProcess, output in bytes."""
        if isinstance(input, str):
            input = input.encode()
        source = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        # Files, not pipes: the connection kept for later sessions would hold a pipe open.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                done = subprocess.run(self.ssh_command(command), stdout=out, stderr=err, timeout=timeout, check=False,
                                      **source)
            except subprocess.TimeoutExpired:
                raise LabError(f"'{self.name}': '{command}' took more than {timeout} s; {self.tail()}") from None
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, out.read(), err.read())

    def ssh(self, command, input=None, timeout=120):
        """What a shell command in the guest printed; a failing command raises."""
        done = self.run(command, input, timeout)
        if done.returncode:
            raise LabError(f"'{self.name}': '{command}' failed ({done.returncode}): "
                           f"{(done.stderr or done.stdout).decode(errors='replace').strip()}")
        return done.stdout.decode(errors="replace")

    def put(self, path, target, mode="755"):
        """Copies a file of the host into the guest."""
        quoted = shlex.quote(target)
        self.ssh(f"cat >{quoted}.new && chmod {mode} {quoted}.new && mv {quoted}.new {quoted}",
                 input=pathlib.Path(path).read_bytes(), timeout=300)

    def _ssh_listens(self):
        # QEMU accepts for the guest, so only the greeting tells; a short try does not hang on a guest that reboots
        try:
            with socket.create_connection(("127.0.0.1", self.host_port()), timeout=5) as probe:
                return probe.recv(4) == b"SSH-"
        except OSError:
            return False

    def wait_ssh(self, timeout=300):
        """Waits until a command can be run; returns the seconds it took."""
        start = time.monotonic()
        while time.monotonic() - start < timeout:
            if not self.running():
                raise LabError(f"'{self.name}' ended before it answered by ssh; {self.tail()}")
            try:
                if self._ssh_listens() and self.run("true", timeout=25).returncode == 0:
                    return time.monotonic() - start
            except LabError:
                pass
            time.sleep(1)
        raise LabError(f"'{self.name}' did not answer by ssh within {timeout} s; {self.tail()}")


def overlay(base, path, base_format="raw"):
    """A new qcow2 at path on top of base, which stays as it is."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", base_format,
                    "-b", str(pathlib.Path(base).resolve()), str(path)], check=True)
    return path


def die_on_sigterm():
    """Turns SIGTERM into SystemExit, so that `with Machine(...)` cleans up."""

    def leave(*_):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one shall not cut the cleaning short
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, leave)
