"""A virtual machine that is up in seconds: one of Debian's kernels and a few programs in its memory, no root disk.

For what needs a kernel of its own (device-mapper, tracepoints, disks that come and go) and nothing else of a server.
Commands go through a virtio-serial port to a shell that is process 1; other ports are free for a test's own programs.
"""

import dataclasses
import lzma
import os
import pathlib
import re
import shutil
import socket
import stat
import subprocess
import tarfile
import time

from . import build, cache, qemu, servers

# Where the kernel of each Debian comes from: the appliance's, or that of a server the laboratory makes anyhow.
KERNELS = {"bookworm": None, "bullseye": "debian11-plain", "trixie": "debian13-plain"}

TOOLS = """bash uname uniq cut seq cat chmod cp date dd df dirname echo head ls mkdir mkfifo mknod mv od rm rmdir sleep sort stat sync tail
    touch tr truncate wc grep sed cmp mount umount modprobe rmmod dmesg kill
    blkdiscard blockdev fallocate findmnt flock fsfreeze fstrim losetup partx sfdisk addpart delpart dmsetup mdadm
    mkfs.ext4 mkfs.xfs mkfs.btrfs e2fsck xfs_repair xfs_io btrfs fio sqlite3""".split()
MODULES = """virtio_pci virtio_blk virtio_scsi virtio_console sd_mod ext4 xfs btrfs loop dm-mod dm-log-writes dm-delay
    dm-flakey dm-linear raid0 raid1 null_blk scsi_debug brd acpiphp crc32c_generic crc32c-intel""".split()

INIT = """#!/bin/bash
export PATH=/usr/sbin:/usr/bin HOME=/root LC_ALL=C
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t bpf bpf /sys/fs/bpf; mount -t tracefs tracing /sys/kernel/tracing
# the rest is loaded when it is asked for
modprobe -qa virtio_pci virtio_blk virtio_console virtio_scsi
for port in /sys/class/virtio-ports/*; do
    read -r name <$port/name
    mknod -m 600 /dev/lab.$name c $(tr : ' ' <$port/dev)
done
exec 3<>/dev/lab.shell
echo "0 0 0" >&3
while read -r number length <&3; do
    head -c $length <&3 >/run/script
    bash /run/script >/run/out 2>&1 </dev/null 3>&-
    code=$?
    { echo "$number $code $(stat -c %s /run/out)"; cat /run/out; } >&3
done
echo o >/proc/sysrq-trigger
sleep 60
"""


def _unpack(suite, folder):
    """Boot image and modules of a suite's cloud kernel, from the tar of a server's packages."""
    source = build.system(servers.find(KERNELS[suite]))
    wanted = re.compile(r"\./(usr/)?(lib/modules/|boot/vmlinuz-)")
    with tarfile.open(source) as tar:
        for member in tar:
            if wanted.match(member.name) and (member.isfile() or member.isdir()):
                member.name = re.sub(r"^\./usr/", "./", member.name)
                tar.extract(member, folder)
    version = next(path.name.removeprefix("vmlinuz-") for path in (folder / "boot").glob("vmlinuz-*"))
    (folder / "boot" / f"vmlinuz-{version}").rename(folder / "vmlinuz")
    (folder / "version").write_text(version + "\n")


def kernel(suite):
    """A folder with vmlinuz, version and lib/modules/."""
    if KERNELS[suite] is None:
        return cache.kernel()
    tar = build.system(servers.find(KERNELS[suite]))

    def make(partial):
        partial.mkdir()
        _unpack(suite, partial)

    return cache.made(cache.lab() / f"kernel-{suite}-{cache.key(tar.name)}", make)


def _programs():
    """The host's files that the guest needs: {path in the guest: path on the host}."""
    path = "/usr/sbin:/usr/bin:/sbin:/bin"
    found = {}
    for name in TOOLS:
        where = shutil.which(name, path=path)
        if not where:
            raise qemu.LabError(f"the host has no '{name}' (run tools/deps test)")
        found[f"/usr/bin/{name}"] = os.path.realpath(where)
    said = subprocess.run(["ldd", *sorted(set(found.values()))], check=True, capture_output=True, text=True).stdout
    for library in re.findall(r"(/\S+) \(0x", said):
        found[library] = os.path.realpath(library)
    return found


def _modules(source, version, target):
    """Copies the modules wanted, and what they need, unpacked; what the kernel has built in isn't there."""
    base = source / "lib" / "modules" / version
    needs, names = {}, {}
    dep = base / "modules.dep"
    if not dep.exists():
        subprocess.run(["depmod", "-b", source, version], check=True)
    for line in dep.read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
        names[pathlib.Path(path).name.split(".ko")[0].replace("-", "_")] = path
    todo = [names[name.replace("-", "_")] for name in MODULES if name.replace("-", "_") in names]
    done = set()
    while todo:
        path = todo.pop()
        if path in done:
            continue
        done.add(path)
        todo += needs[path]
        data = (base / path).read_bytes()
        there = target / "lib" / "modules" / version / path.removesuffix(".xz")
        there.parent.mkdir(parents=True, exist_ok=True)
        there.write_bytes(lzma.decompress(data) if path.endswith(".xz") else data)
    for extra in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        if (base / extra).exists():
            shutil.copy(base / extra, target / "lib" / "modules" / version / extra)
    subprocess.run(["depmod", "-b", target, version], check=True)


def _archive(folder):
    """The files below folder as the kernel unpacks them."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return subprocess.run(["cpio", "-o", "-H", "newc", "-R", "0:0", "--quiet"], cwd=folder, check=True,
                          input="\n".join(names).encode(), stdout=subprocess.PIPE).stdout


def _root(source, folder):
    for name in ("proc", "sys", "dev", "run", "tmp", "mnt", "root", "etc", "usr/bin", "usr/lib", "usr/lib64"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, target in (("bin", "usr/bin"), ("sbin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64"),
                         ("usr/sbin", "bin")):
        (folder / name).symlink_to(target)
    for there, here in _programs().items():
        place = folder / there.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(here, place)
    (folder / "etc" / "mtab").symlink_to("/proc/mounts")
    init = folder / "init"
    init.write_text(INIT)
    init.chmod(0o755)
    _modules(source, (source / "version").read_text().strip(), folder)


def initrd(suite):
    source = kernel(suite)
    stamps = [f"{there} {here} {os.stat(here).st_size} {os.stat(here).st_mtime_ns}"
              for there, here in sorted(_programs().items())]
    name = cache.key((source / "version").read_text(), INIT, " ".join(MODULES), *stamps)

    def make(partial):
        for old in cache.lab().glob(f"quick-{suite}-*"):
            if not old.name.endswith(".partial"):
                cache.remove(old)
        folder = partial.with_name(partial.name + ".d")
        if folder.exists():
            cache.remove(folder)
        folder.mkdir()
        try:
            _root(source, folder)
            partial.write_bytes(_archive(folder))
        finally:
            cache.remove(folder)

    return cache.made(cache.lab() / f"quick-{suite}-{name}", make)


@dataclasses.dataclass
class Disk:
    """A raw file of so many MiB as the guest's disk `name`, made when it isn't there; node and device are called so too."""
    name: str
    size: int = 0
    path: os.PathLike = None
    bus: str = "virtio"  # or scsi, or "" to plug it later
    throttle: bool = False  # writes can be held back: see Quick.hold()
    bad: int = 0  # writes that touch this sector fail
    serial: str = ""


class Port:
    """The host's end of a virtio-serial port."""

    def __init__(self, path):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(path))
        self.data = b""

    def send(self, data):
        self.sock.sendall(data)

    def _more(self, end, what):
        left = end - time.monotonic()
        if left <= 0:
            raise qemu.LabError(f"no answer within the time: {what}")
        self.sock.settimeout(left)
        try:
            got = self.sock.recv(1 << 16)
        except TimeoutError:
            raise qemu.LabError(f"no answer within the time: {what}") from None
        if not got:
            raise qemu.LabError(f"the machine is gone: {what}")
        self.data += got

    def line(self, timeout, what=""):
        end = time.monotonic() + timeout
        while b"\n" not in self.data:
            self._more(end, what)
        line, self.data = self.data.split(b"\n", 1)
        return line.decode()

    def take(self, length, timeout, what=""):
        end = time.monotonic() + timeout
        while len(self.data) < length:
            self._more(end, what)
        taken, self.data = self.data[:length], self.data[length:]
        return taken

    def close(self):
        self.sock.close()


class Quick:
    """with Quick("bookworm", disks, files={"/usr/bin/x": path}, folder=tmp_path) as vm: vm.sh("uname -r")"""

    def __init__(self, suite, disks, folder, files=(), ports=("tool",), memory=1024, cpus=2, append=""):
        self.suite, self.disks, self.folder = suite, list(disks), pathlib.Path(folder)
        self.files, self.ports, self.memory, self.cpus = dict(files), ("shell", *ports), memory, cpus
        self.append = append
        self.number = 0
        self.machine = self.shell = None
        self.open_ports = {}

    def path(self, name):
        disk = next(disk for disk in self.disks if disk.name == name)
        return pathlib.Path(disk.path or self.folder / f"{name}.raw")

    def _disk_arguments(self):
        args, scsi = [], False
        for disk in self.disks:
            path = self.path(disk.name)
            if not path.exists():
                with open(path, "wb") as raw:
                    raw.truncate(disk.size << 20)
            file = f"{disk.name}-file" if disk.throttle else disk.name
            place = f"file.driver=file,file.filename={path}"
            if disk.bad:
                place = (f"file.driver=blkdebug,file.inject-error.0.event=write_aio,"
                         f"file.inject-error.0.iotype=write,file.inject-error.0.sector={disk.bad},"
                         f"file.image.driver=file,file.image.filename={path}")
            args += ["-blockdev", f"driver=raw,node-name={file},discard=unmap,cache.no-flush=on,{place}"]
            if disk.throttle:
                args += ["-object", f"throttle-group,id={disk.name}-limits,x-iops-write=0",
                         "-blockdev", f"driver=throttle,node-name={disk.name},throttle-group={disk.name}-limits,file={file}"]
            if disk.bus == "scsi" and not scsi:
                args += ["-device", "virtio-scsi-pci,id=scsi0"]
                scsi = True
            kind = {"virtio": "virtio-blk-pci", "scsi": "scsi-hd,bus=scsi0.0"}.get(disk.bus)
            serial = f",serial={disk.serial}" if disk.serial else ""
            args += ["-device", f"{kind},drive={disk.name},id={disk.name}-dev{serial}"] if kind else []
        return args

    def _initrd(self):
        """The cached programs and this machine's own files: the kernel unpacks archives one after the other."""
        own = self.folder / "files"
        for there, here in self.files.items():
            place = own / there.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(here, place)
            place.chmod(place.stat().st_mode | stat.S_IXUSR)
        whole = self.folder / "initrd"
        shutil.copy(initrd(self.suite), whole)
        if self.files:
            with open(whole, "ab") as out:
                out.write(_archive(own))
        return whole

    def start(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        extra = ["-device", "virtio-serial-pci,id=ports"]
        for name in self.ports:
            extra += ["-chardev", f"socket,id=port-{name},path={self.folder}/{name}.port,server=on,wait=off",
                      "-device", f"virtserialport,bus=ports.0,chardev=port-{name},name={name}"]
        source = kernel(self.suite)
        self.machine = qemu.Machine(f"quick-{self.suite}", machine="pc", memory=self.memory, cpus=self.cpus, nic="", vga="none",
                                    kernel=source / "vmlinuz", initrd=self._initrd(), folder=self.folder,
                                    append=f"console=ttyS0 quiet panic=-1 rdinit=/init {self.append}",
                                    extra=[*self._disk_arguments(), *extra])
        self.machine.start()
        try:
            (self.folder / "initrd").unlink()  # QEMU holds it
            self.attach()
        except BaseException:
            self.stop()
            raise
        return self

    def attach(self, timeout=120):
        """Waits for the guest's shell, after power-on and after a reset."""
        self.shell = self.port("shell")
        try:
            while self.shell.line(timeout, "power-on") != "0 0 0":
                pass
        except qemu.LabError as e:
            raise qemu.LabError(f"{e}; {self.machine.tail()}") from None

    def port(self, name):
        if name not in self.open_ports:
            self.open_ports[name] = Port(self.folder / f"{name}.port")
        return self.open_ports[name]

    def stop(self):
        for port in self.open_ports.values():
            port.close()
        self.open_ports = {}
        if self.machine:
            self.machine.stop()
            self.machine = None

    __enter__ = start

    def __exit__(self, *_):
        self.stop()

    # -- talking ------------------------------------------------------------

    def run(self, script, timeout=120):
        """(exit status, what it printed) of a bash script."""
        self.number += 1
        data = script.encode() + b"\n"
        self.shell.send(f"{self.number} {len(data)}\n".encode() + data)
        try:
            number, code, length = map(int, self.shell.line(timeout, script).split())
            if number != self.number:
                raise qemu.LabError(f"the shell answers command {number} instead of {self.number}: {script}")
            return code, self.shell.take(length, timeout, script).decode(errors="replace")
        except qemu.LabError as e:
            raise qemu.LabError(f"{e}; {self.machine.tail()}") from None

    def sh(self, script, timeout=120):
        """What it printed; a failing script raises. It stops at the first failing command."""
        code, text = self.run("set -e\n" + script, timeout)
        if code:
            raise qemu.LabError(f"'{script}' failed ({code}): {text.strip()}")
        return text

    def spawn(self, name, script):
        """Goes on in the background; join() tells how it ended."""
        self.sh(f"rm -f /run/{name}.code\ncat >/run/{name}.sh <<'@@END@@'\n{script}\n@@END@@\n"
                f"( set +e; bash /run/{name}.sh >/run/{name}.out 2>&1; echo $? >/run/{name}.code.new; "
                f"mv /run/{name}.code.new /run/{name}.code ) </dev/null >/dev/null 2>&1 &")

    def ended(self, name):
        """(exit status, output) when it has ended, else None."""
        code, text = self.run(f"[[ -f /run/{name}.code ]] || exit 77; cat /run/{name}.code /run/{name}.out")
        if code == 77:
            return None
        status, _, output = text.partition("\n")
        return int(status), output

    def join(self, name, timeout=120):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            done = self.ended(name)
            if done:
                if done[0]:
                    raise qemu.LabError(f"'{name}' failed ({done[0]}): {done[1][-2000:]}")
                return done[1]
            time.sleep(0.1)
        raise qemu.LabError(f"'{name}' has not ended within {timeout} s")

    # -- disks ----------------------------------------------------------------

    def hold(self, name, writes_per_second):
        """Lets so many writes a second reach a disk made with throttle; reads overtake them. 0: as many as it likes."""
        limits = {"iops-write": writes_per_second}
        self.machine.qmp.command("qom-set", path=f"/objects/{name}-limits", property="limits", value=limits)

    def plug(self, name, timeout=10):
        end = time.monotonic() + timeout
        while True:
            try:
                return self.machine.qmp.command("device_add", driver="virtio-blk-pci", drive=name, id=f"{name}-dev")
            except qemu.LabError as e:
                # QEMU lets a disk's file go a moment after the device
                if "Permission conflict" not in str(e) or time.monotonic() > end:
                    raise
            time.sleep(0.1)

    def unplug(self, name, timeout=30):
        """Takes the disk away and waits until the guest let it go."""
        self.machine.qmp.command("device_del", id=f"{name}-dev")
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            table = self.machine.qmp.command("qom-list", path="/machine/peripheral")
            if not any(entry["name"] == f"{name}-dev" for entry in table):
                return
            time.sleep(0.1)
        raise qemu.LabError(f"the guest did not let disk '{name}' go within {timeout} s")

    def grow(self, name, mebibytes):
        self.machine.qmp.command("block_resize", **{"node-name": name, "size": mebibytes << 20})

    def reset(self):
        self.machine.qmp.command("system_reset")
        self.attach()
