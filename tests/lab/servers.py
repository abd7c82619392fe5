"""The servers the laboratory can build: one recipe each. README.md says how to add one."""

import dataclasses
import uuid

from . import content


@dataclasses.dataclass(frozen=True)
class Part:
    """A partition. kind: bios, lvm, swap, or a filesystem (see MKFS in build.py). size in MiB, 0: the rest."""
    size: int
    kind: str
    mount: str = ""  # for lvm: the volume group


@dataclasses.dataclass(frozen=True)
class Volume:
    """A logical volume; size in MiB."""
    group: str
    name: str
    size: int
    kind: str
    mount: str = ""


@dataclasses.dataclass(frozen=True)
class Disk:
    size: int  # MiB
    table: str  # gpt or dos
    parts: tuple


@dataclasses.dataclass(frozen=True)
class Server:
    name: str
    about: str
    suite: str
    disks: tuple
    updates: bool = True  # with the suite's security updates
    volumes: tuple = ()
    packages: tuple = ()  # besides BASE, and what the layout asks for
    contents: tuple = ()
    network: str = "ifupdown"  # or networkd
    interface: str = "ens3"  # what the machine's network card is called
    fstab: str = "device"  # how partitions are named there: device or uuid
    machine: str = "pc"
    bus: str = "ide"  # disks are /dev/sdX on ide, sata and scsi, /dev/vdX on virtio
    memory: int = 768

    def disk_name(self, index):
        return f"/dev/{'vd' if self.bus == 'virtio' else 'sd'}{chr(ord('a') + index)}"

    def uuid(self, place):
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{place}.{self.name}.lab.invalid"))

    def device(self, place):
        """For a shell below libguestfs's `debug sh`, where /dev/sda may be the disk of its own appliance."""
        return f"$(blkid -U {self.uuid(place)})"


BASE = ("linux-image-cloud-amd64", "grub-pc", "systemd-sysv", "udev", "dbus", "openssh-server", "iproute2", "procps")
NETWORK = {"ifupdown": ("ifupdown", "isc-dhcp-client"), "networkd": ()}
PYTHON = ("python3-minimal", "libpython3-stdlib")  # for content.tools
TOOLS = {"lvm": ("lvm2",), "xfs": ("xfsprogs",), "btrfs": ("btrfs-progs",)}

SERVERS = [
    Server(
        name="debian12-lvm-bios",
        about="an older server: IDE disk, GPT with BIOS GRUB, LVM, XFS data, nginx, and a service that always writes",
        suite="bookworm",
        disks=(Disk(4096, "gpt", (Part(1, "bios"), Part(384, "ext4", "/boot"), Part(0, "lvm", "vg0"))),),
        volumes=(Volume("vg0", "root", 1536, "ext4", "/"),
                 Volume("vg0", "data", 1536, "xfs", "/srv/data"),
                 Volume("vg0", "swap", 256, "swap")),
        packages=("cron", "nginx-light", "curl", "ca-certificates", "iputils-ping", "attr", "acl", "libcap2-bin",
                  *PYTHON),
        contents=(content.tools, content.writer, content.special, content.data(), content.web, content.cron)),
    Server(
        name="debian11-plain",
        about="one ext4 partition, MBR, Debian 11",
        suite="bullseye",
        updates=False,  # its security archive lists packages it no longer has
        disks=(Disk(2048, "dos", (Part(0, "ext4", "/"),)),),
        packages=PYTHON,
        contents=(content.tools, content.writer, content.data("/srv/lab", 16, 16, 200))),
    Server(
        name="debian13-plain",
        about="one ext4 partition, MBR, Debian 13, systemd-networkd",
        suite="trixie",
        disks=(Disk(2048, "dos", (Part(0, "ext4", "/"),)),),
        network="networkd",
        fstab="uuid",
        packages=PYTHON,
        contents=(content.tools, content.writer, content.data("/srv/lab", 16, 16, 200))),
]


def find(name):
    for server in SERVERS:
        if server.name == name:
            return server
    raise KeyError(f"no server '{name}' (there are: {', '.join(server.name for server in SERVERS)})")
