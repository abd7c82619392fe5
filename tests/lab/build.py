"""Builds the disks of a server, once, and boots machines on overlays of them.

mmdebstrap makes the tree of packages on the host. Partitions, LVM, filesystems
and GRUB need a kernel with device-mapper and a disk of their own, so they are
made inside a small machine (supermin, from the host's packages) that has the
empty disks, the tree as a tar, and a shell script attached as drives.
"""

import contextlib
import pathlib
import re
import shlex
import subprocess
import tarfile
import tempfile
import time

from . import cache, content, qemu, servers

HERE = pathlib.Path(__file__).parent
# `{uuid}` is known beforehand, so that /etc/fstab can be written with the other files
MKFS = {"ext3": "mkfs.ext3 -q -F -U {uuid} {device}",
        "ext4": "mkfs.ext4 -q -F -U {uuid} {device}",
        "xfs": "mkfs.xfs -q -f -m uuid={uuid} {device}",
        "btrfs": "mkfs.btrfs -q -f -U {uuid} {device}",
        "swap": "mkswap -q -U {uuid} {device}"}
PART_TYPE = {"gpt": {"bios": "21686148-6449-6E6F-744E-656564454649", "lvm": "E6D6D379-F507-44C2-A23C-238F2A3DF928",
                     "swap": "0657FD6D-A4AB-43C4-84E5-0933C84B4F4F", "": "0FC63DAF-8483-4772-8E79-3D69D8477DE4"},
             "dos": {"lvm": "8e", "swap": "82", "": "83"}}

BUILDER_PACKAGES = ["bash", "coreutils", "util-linux", "mount", "fdisk", "tar", "sed", "grep", "kmod", "lvm2",
                    "e2fsprogs", "xfsprogs", "btrfs-progs"]
BUILDER_INIT = """#!/bin/bash
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mount -t tmpfs tmp /run; mount -t tmpfs tmp /tmp
mkdir -p /run/lvm /run/lock /dev/pts; mount -t devpts pts /dev/pts
read -r line </proc/cmdline
script=${line##*lab.script=}
tr -d '\\0' <"${script%% *}" >/tmp/script
bash /tmp/script </dev/null
echo "@@end $?"
sync
echo o >/proc/sysrq-trigger
sleep 60
"""
# No udev in there: LVM makes its device nodes itself.
BUILDER_LVM = """activation { udev_sync = 0 udev_rules = 0 verify_udev_operations = 1 monitoring = 0 }
devices { obtain_device_list_from_udev = 0 external_device_info_source = "none" use_devicesfile = 0 }
"""


def builder():
    """The folder with kernel, initrd and root of the machine that makes disks."""
    kernel = cache.kernel()
    version = (kernel / "version").read_text().strip()
    name = cache.key(version, " ".join(BUILDER_PACKAGES), BUILDER_INIT, BUILDER_LVM)

    def make(partial):
        partial.mkdir()
        prepared = partial / "supermin.d"
        subprocess.run(["supermin", "--prepare", *BUILDER_PACKAGES, "-o", prepared], check=True)
        with tarfile.open(prepared / "init.tar.gz", "w:gz") as tar:
            for path, text, mode in (("init", BUILDER_INIT, 0o755), ("etc/lvm/lvmlocal.conf", BUILDER_LVM, 0o644)):
                with tempfile.NamedTemporaryFile() as file:
                    file.write(text.encode())
                    file.flush()
                    tar.add(file.name, path, filter=lambda info, mode=mode: _as_root(info, mode))
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "SUPERMIN_KERNEL": str(kernel / "vmlinuz"),
                       "SUPERMIN_KERNEL_VERSION": version,
                       "SUPERMIN_MODULES": str(kernel / "lib" / "modules" / version)}
        subprocess.run(["supermin", "--build", prepared, "--copy-kernel", "-f", "ext2", "-o", partial / "d"],
                       check=True, env=environment)

    return cache.made(cache.lab() / f"builder-{name}", make) / "d"


def _as_root(info, mode):
    info.mode, info.uid, info.gid, info.uname, info.gname = mode, 0, 0, "", ""
    return info


def packages(server):
    kinds = {part.kind for disk in server.disks for part in disk.parts} | {volume.kind for volume in server.volumes}
    wanted = [*servers.BASE, *servers.NETWORK[server.network], *server.packages]
    for kind in sorted(kinds):
        wanted += servers.TOOLS.get(kind, ())
    return wanted


def mirror():
    """Where the host takes Debian's packages from."""
    fields = "$(ORIGIN)|$(LABEL)|$(REPO_URI)"
    listed = subprocess.run(["apt-get", "indextargets", "--format", fields, "Created-By: Packages"], check=True,
                            capture_output=True, text=True).stdout
    for line in listed.splitlines():
        origin, label, address = line.split("|", 2)
        if (origin, label) == ("Debian", "Debian"):
            return address
    raise qemu.LabError("apt knows no Debian archive here (run apt-get update, on a Debian system)")


def system(server):
    """The tar of a suite with these packages; servers that agree in both share it."""
    wanted = packages(server)
    # what is not read by a program only makes every later step slower
    exclude = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*"]
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--format=tar", "--include=" + ",".join(wanted)]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in exclude]
    command += [server.suite]

    def make(partial):
        # mmdebstrap adds updates and security by itself when it is not told a source
        source = [] if server.updates else [f"deb {mirror()} {server.suite} main"]
        subprocess.run([*command, partial, *source], check=True, stdin=subprocess.DEVNULL)

    return cache.made(cache.lab() / f"system-{server.suite}-{cache.key(str(server.updates), *command)}.tar", make)


def places(server):
    """(device on the server, device in the builder, kind, mount point) of everything to format, parents first."""
    found = []
    for i, disk in enumerate(server.disks):
        for number, part in enumerate(disk.parts, 1):
            if part.kind in MKFS:
                inside = f"/dev/vd{chr(ord('b') + i)}{number}"
                found.append((f"{server.disk_name(i)}{number}", inside, part.kind, part.mount))
    for volume in server.volumes:
        mapper = f"/dev/mapper/{volume.group.replace('-', '--')}-{volume.name.replace('-', '--')}"
        found.append((mapper, mapper, volume.kind, volume.mount))
    return sorted(found, key=lambda place: place[3])


def _fstab(server):
    lines = ["# <file system> <mount point> <type> <options> <dump> <pass>"]
    for device, _, kind, mount in places(server):
        if server.fstab == "uuid" and not device.startswith("/dev/mapper/"):
            device = "UUID=" + server.uuid(mount or kind)
        if kind == "swap":
            lines.append(f"{device} none swap sw 0 0")
        elif kind == "ext4" and mount == "/":
            lines.append(f"{device} / ext4 errors=remount-ro 0 1")
        else:
            lines.append(f"{device} {mount} {kind} defaults 0 {2 if kind.startswith('ext') else 0}")
    return "\n".join(lines) + "\n"


def _network(server, tree):
    if server.network == "networkd":
        tree.file("/etc/systemd/network/lan.network", f"[Match]\nName={server.interface}\n\n[Network]\nDHCP=ipv4\n")
        tree.link("/etc/systemd/system/multi-user.target.wants/systemd-networkd.service",
                  "/usr/lib/systemd/system/systemd-networkd.service")
    else:
        tree.file("/etc/network/interfaces", "source /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n\n"
                  f"auto {server.interface}\niface {server.interface} inet dhcp\n")


def _configure(server, tree, public_key):
    """What an installer would have asked for."""
    tree.file("/etc/fstab", _fstab(server))
    tree.file("/etc/hostname", server.name + "\n")
    tree.file("/etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {server.name}\n::1 localhost ip6-localhost ip6-loopback\n")
    tree.file("/etc/resolv.conf", "nameserver 10.0.2.3\n")
    tree.file("/etc/timezone", "Etc/UTC\n")
    tree.file("/etc/default/grub.d/lab.cfg", 'GRUB_TIMEOUT=1\nGRUB_CMDLINE_LINUX_DEFAULT=""\n'
              'GRUB_CMDLINE_LINUX="console=tty0 console=ttyS0,115200"\nGRUB_DISABLE_OS_PROBER=true\n')
    tree.folder("/root", 0o700)
    tree.folder("/root/.ssh", 0o700)
    tree.file("/root/.ssh/authorized_keys", public_key, 0o600)
    _network(server, tree)
    tree.run("echo root:lab | chpasswd")


def _script(server, commands):
    """What the builder runs. Drives: vda its own root, then the disks, the system's tar, the contents' tar."""
    lines = ["set -eu", "stage() { echo \"@@stage $1\"; }"]
    for i, disk in enumerate(server.disks):
        device = f"/dev/vd{chr(ord('b') + i)}"
        table = f"label: {disk.table}\n"
        for part in disk.parts:
            size = f"size={part.size}MiB, " if part.size else ""
            boot = ", bootable" if disk.table == "dos" and part is disk.parts[0] else ""
            table += f"{size}type={PART_TYPE[disk.table].get(part.kind, PART_TYPE[disk.table][''])}{boot}\n"
        lines.append(f"sfdisk -q {device} <<'END'\n{table}END")
        for number, part in enumerate(disk.parts, 1):
            if part.kind == "lvm":
                lines.append(f"pvcreate -q {device}{number}; vgextend -q {part.mount} {device}{number} 2>/dev/null"
                             f" || vgcreate -q {part.mount} {device}{number}")
    for volume in server.volumes:
        lines.append(f"lvcreate -q -y -L {volume.size}m -n {volume.name} {volume.group}")
    for _, device, kind, mount in places(server):
        lines.append(MKFS[kind].format(uuid=server.uuid(mount or kind), device=device))
        # GRUB's scripts look for these links, which udev would make
        lines.append("mkdir -p /dev/disk/by-uuid; "
                     f"ln -s {device} /dev/disk/by-uuid/{server.uuid(mount or kind)}")
        if mount:
            lines.append(f"mkdir -p /sysroot{mount}; mount {device} /sysroot{mount}")
    tars = [f"/dev/vd{chr(ord('b') + len(server.disks) + i)}" for i in range(2)]
    unpack = "tar -C /sysroot -x -p -b 2048 --numeric-owner --xattrs --xattrs-include='*' -f"
    inside = "chroot /sysroot /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8"
    lines += ["stage filesystems", f"{unpack} {tars[0]}", "stage system", f"{unpack} {tars[1]}",
              "for d in dev proc sys run; do mount --rbind /$d /sysroot/$d; done"]
    lines += [f"{inside} sh -c {shlex.quote(command)}" for command in commands]
    lines += ["stage contents", f"{inside} grub-install --target=i386-pc /dev/vdb 2>&1", "stage grub-install",
              f"{inside} update-grub 2>&1", "stage update-grub",
              "for d in dev proc sys run; do umount -l /sysroot/$d; done; sync"]
    lines += [f"umount /sysroot{mount}" for _, _, _, mount in reversed(places(server)) if mount]
    lines += [f"vgchange -q -an {group}" for group in sorted({volume.group for volume in server.volumes})]
    lines += ["sync", "stage unmount"]
    return "\n".join(lines) + "\n"


def _drive_of(path, data):
    """Writes data as a raw drive: whole sectors."""
    path.write_bytes(data + b"\0" * (-len(data) % 512))
    return path


def _make_disks(server, folder, stages):
    """Fills folder with disk0.raw, disk1.raw, ..."""
    public_key = (cache.lab() / "id_ed25519.pub").read_text()
    system_tar = system(server)
    stages.done("mmdebstrap")
    machine_parts = builder()
    stages.done("builder")
    folder.mkdir()
    with tempfile.TemporaryDirectory(prefix="lab-", dir=cache.lab()) as scratch:
        scratch = pathlib.Path(scratch)
        tree = content.Tree(scratch / "contents.tar")
        _configure(server, tree, public_key)
        for fill in server.contents:
            fill(tree)
        tree.close()
        stages.done("files")
        script = _drive_of(scratch / "script", _script(server, tree.commands).encode())
        root = qemu.overlay(machine_parts / "root", scratch / "root.qcow2")
        drives = [qemu.Drive(root)]
        for i, disk in enumerate(server.disks):
            with open(folder / f"disk{i}.raw", "wb") as raw:
                raw.truncate(disk.size << 20)
            drives.append(qemu.Drive(folder / f"disk{i}.raw", format="raw"))
        for path in (system_tar, scratch / "contents.tar", script):
            drives.append(qemu.Drive(path, format="raw", readonly=True))
        append = f"root=/dev/vda console=ttyS0 quiet lab.script=/dev/vd{chr(ord('a') + len(drives) - 1)}"
        with qemu.Machine("builder", drives, memory=1024, nic="", vga="none", kernel=machine_parts / "kernel",
                          initrd=machine_parts / "initrd", append=append) as machine:
            _watch(machine, stages)


def _watch(machine, stages, timeout=900):
    """Reports the script's stages as they pass, until the machine is off."""
    end, seen, on = time.monotonic() + timeout, 0, True
    while on and time.monotonic() < end:
        on = machine.running()  # asked first: what it said last is still reported
        passed = re.findall(r"^@@stage (.*?)\r?$", machine.serial(), re.MULTILINE)
        for stage in passed[seen:]:
            stages.done(stage)
        seen = len(passed)
        time.sleep(0.2)
    if not re.search(r"^@@end 0\r?$", machine.serial(), re.MULTILINE):
        raise qemu.LabError(f"the disks could not be made; {machine.tail(30)}")
    stages.done("power-off")


def recipe_key(server):
    """Changes whenever the disks would turn out differently."""
    sources = [HERE / name for name in ("build.py", "content.py")] + sorted((HERE / "guest").iterdir())
    parts = [part for part in sources if part.is_file()]
    layout = repr((server.suite, server.updates, server.disks, server.volumes, packages(server), server.network,
                   server.interface, server.fstab, server.bus))
    # the arguments of a content are not in its name, but in its closure
    wanted = [repr((fill.__qualname__, [cell.cell_contents for cell in fill.__closure__ or ()]))
              for fill in server.contents]
    return cache.key(server.name, layout, (cache.lab() / "id_ed25519.pub").read_text(), *wanted, *parts)


def folder_of(server):
    cache.ssh_key()
    return cache.lab() / f"disks-{server.name}-{recipe_key(server)}"


def disks(server, say=print):
    """The pristine raw disks of a server, built when they are not in the cache. Never write to them."""
    folder = folder_of(server)

    def make(partial):
        for old in cache.lab().glob(f"disks-{server.name}-*"):
            if re.fullmatch(rf"disks-{re.escape(server.name)}-[0-9a-f]{{16}}", old.name):
                cache.remove(old)
        stages = cache.Stages(server.name, say)
        _make_disks(server, partial, stages)
        stages.end()

    cache.made(folder, make)
    return [folder / f"disk{i}.raw" for i in range(len(server.disks))]


@contextlib.contextmanager
def boot(server, folder=None, drive_cache="unsafe", **settings):
    """A started machine on throw-away overlays of the server's disks; settings are those of qemu.Machine."""
    pristine = disks(server)
    with tempfile.TemporaryDirectory(prefix="replant-lab-disks-") as scratch:
        overlays = [qemu.overlay(disk, pathlib.Path(scratch) / f"disk{i}.qcow2") for i, disk in enumerate(pristine)]
        settings.setdefault("memory", server.memory)
        drives = [qemu.Drive(path, server.bus, serial=f"LAB{i:05}", cache=drive_cache)
                  for i, path in enumerate(overlays)]
        with qemu.Machine(server.name, drives, machine=server.machine, key=cache.ssh_key(), folder=folder,
                          **settings) as machine:
            yield machine
