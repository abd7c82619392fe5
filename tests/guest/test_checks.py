"""What the check of an image says of plain directories: each item good, and bad in its ways."""

import json
import os
import struct
import subprocess

import pytest

from tests.guest.test_steps import ALL_MODULES, BOOT_UUID, DATA_UUID, GRUB_CFG, KERNEL, ROOT_UUID, TOOL, VOLUMES, Tree

KERNEL_IMAGE = bytes(0x202) + b"HdrS" + bytes(64)
MODULES = (*ALL_MODULES, "net/virtio_net", "nvme/host/nvme")


def elf(machine=62, bits=2, data=1):
    return b"\x7fELF" + bytes([bits, data, 1]) + bytes(9) + struct.pack("<HH" if data == 1 else ">HH", 3, machine) + bytes(44)


class Checked(Tree):
    """A server in good order."""

    def __init__(self, path):
        super().__init__(path)
        for folder in ("usr/bin", "usr/sbin", "usr/lib64"):
            (path / folder).mkdir(parents=True)
        for name in ("bin", "sbin", "lib64"):
            (path / name).symlink_to(f"usr/{name}")
        self.write("/usr/bin/sh", elf())
        self.write("/usr/sbin/sshd", elf())
        self.write("/etc/fstab", f"UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1\nUUID={DATA_UUID} /srv xfs defaults 0 2\n")
        self.write("/boot/grub/grub.cfg", GRUB_CFG.replace("/dev/sda1", f"UUID={ROOT_UUID}"))
        self.write(f"/boot/vmlinuz-{KERNEL}", KERNEL_IMAGE)
        self.initramfs(MODULES)
        self.write(f"/lib/modules/{KERNEL}/modules.dep", "".join(f"kernel/drivers/{name}.ko:\n" for name in MODULES))
        self.write("/etc/passwd", "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/usr/sbin/nologin\nann:x:1000:1000::/home/ann:/bin/sh\n")
        self.write("/etc/shadow", "root:$6$x:1::::::\ndaemon:*:1::::::\nann:!:1::::::\n")
        (path / "etc/shadow").chmod(0o640)
        self.write("/etc/group", "root:x:0:\nsudo:x:27:\n")
        self.write("/etc/ssh/ssh_host_ed25519_key", "key")
        self.link("/etc/systemd/system/multi-user.target.wants/ssh.service", "/lib/systemd/system/ssh.service")
        self.link("/etc/systemd/system/multi-user.target.wants/systemd-networkd.service", "/lib/systemd/system/systemd-networkd.service")
        self.write("/lib/systemd/system/ssh.service", "")
        self.write("/etc/systemd/network/50-lan.network", "[Match]\nName=e*\n[Network]\nDHCP=yes\n")
        for name in ("growpart", "cloud-init"):
            self.write(f"/usr/bin/{name}", "")
        self.write("/etc/cloud/cloud-init.disabled", "")
        self.write("/usr/sbin/qemu-ga", "")

    def link(self, path, target):
        at = self.path / path.lstrip("/")
        at.parent.mkdir(parents=True, exist_ok=True)
        at.symlink_to(target)

    def gone(self, path):
        (self.path / path.lstrip("/")).unlink()

    def ask(self, how="--check", **more):
        done = subprocess.run([TOOL, how, self.path, json.dumps({**VOLUMES, **more})], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def bad(self, **more):
        """The items that aren't well, with their levels."""
        before = self.snapshot()
        report = self.ask(**more)
        assert self.snapshot() == before, "a check changes nothing"
        self.items = {item["item"]: item for item in report["items"]}
        found = {name: item["level"] for name, item in self.items.items() if item["level"] != "passed"}
        assert report["verdict"] == max(["passed", *found.values()], key=["passed", "warning", "critical"].index)
        for name in found:
            assert self.items[name].get("remedy") or name in ("old_tools", "platform", "os_version", "accounts", "dhcp"), name
        return found


@pytest.fixture
def tree(tmp_path):
    return Checked(tmp_path)


def test_all_is_well(tree):
    assert tree.bad() == {}
    assert set(tree.items) == {
        "system_image", "platform", "os_version", "architecture", "rtc", "selinux", "bare_metal", "cloud_init", "online_resize",
        "guest_agent", "old_tools", "security_software", "nested_virtualization", "boot_mode", "grub", "kernel_version", "kernel_files",
        "virtio", "nvme", "fstab", "disk_use", "inode_use", "dhcp", "sshd", "firewall", "root_account", "accounts", "lib_links"}
    assert tree.items["architecture"]["value"] == "x86_64" and tree.items["kernel_version"]["value"]["default"] == KERNEL


CFG = GRUB_CFG.replace("/dev/sda1", f"UUID={ROOT_UUID}")
BAD = {
    # name: files (None: removed), what is found, what is repaired
    "another system": ({"/etc/os-release": "ID=plan9\nVERSION_ID=4\n"}, {"platform": "warning"}, ()),
    "no version": ({"/etc/os-release": "ID=debian\n"}, {"os_version": "warning"}, ()),
    "other machine": ({"/usr/bin/sh": elf(183)}, {"architecture": "critical"}, ()),
    "big endian machine": ({"/usr/bin/sh": elf(22, 2, 2)}, {"architecture": "critical"}, ()),
    "32 bits run": ({"/usr/bin/sh": elf(3, 1)}, {}, ()),
    "no program": ({"/usr/bin/sh": b"\x7fEL"}, {"architecture": "critical"}, ()),
    "local time": ({"/etc/adjtime": "0.0 0 0.0\n0\nLOCAL\n"}, {"rtc": "warning"}, ()),
    "UTC": ({"/etc/adjtime": "0.0 0 0.0\n0\nUTC\n"}, {}, ()),
    "selinux": ({"/etc/selinux/config": "# SELINUX=permissive\nSELINUX=enforcing\nSELINUXTYPE=targeted\n"}, {"selinux": "warning"}, ()),
    "selinux is permissive": ({"/etc/selinux/config": "SELINUX=permissive\n"}, {}, ()),
    "cloud-init is on": ({"/etc/cloud/cloud-init.disabled": None}, {"cloud_init": "warning"}, ("cloud_init",)),
    "no growpart": ({"/usr/bin/growpart": None}, {"online_resize": "warning"}, ()),
    "no agent": ({"/usr/sbin/qemu-ga": None}, {"guest_agent": "warning"}, ()),
    "tools": ({"/usr/bin/vmtoolsd": ""}, {"old_tools": "warning"}, ()),
    "security": ({"/opt/CrowdStrike/falcon": ""}, {"security_software": "warning"}, ()),
    "nested": ({"/usr/sbin/libvirtd": ""}, {"nested_virtualization": "warning"}, ()),
    "no kernel": ({f"/boot/vmlinuz-{KERNEL}": None}, {"kernel_version": "critical", "grub": "critical"}, ()),
    "a kernel that is none": ({f"/boot/vmlinuz-{KERNEL}": bytes(1024)}, {"kernel_files": "critical"}, ()),
    "a damaged initramfs": ({f"/boot/initrd.img-{KERNEL}": b"070701nonsense" * 20},
                            {"kernel_files": "critical", "virtio": "critical", "nvme": "warning"}, None),
    "no initramfs": ({f"/boot/initrd.img-{KERNEL}": None},
                     {"grub": "critical", "kernel_files": "warning", "virtio": "critical", "nvme": "warning"}, None),
    "an initramfs that isn't known": ({f"/boot/initrd.img-{KERNEL}": b"another format" * 20},
                                      {"kernel_files": "warning", "virtio": "warning", "nvme": "warning"}, ()),
    "a long grub.cfg": ({"/boot/grub/grub.cfg": CFG + "#" * (1 << 20)}, {"grub": "warning"}, ()),
    "a long shadow": ({"/etc/shadow": "root:$6$x:1::::::\n" + "#" * (1 << 20)}, {"accounts": "warning"}, ()),
    "built in": ({f"/boot/initrd.img-{KERNEL}": None, "/boot/grub/grub.cfg": CFG.replace("\tinitrd", "#").replace("UUID=", "PARTUUID=p"),
                  f"/lib/modules/{KERNEL}/modules.builtin": "".join(f"kernel/{name}.ko\n" for name in MODULES)},
                 {"grub": "critical"}, ()),
    "root elsewhere": ({"/boot/grub/grub.cfg": CFG.replace(ROOT_UUID, "dead-beef")}, {"grub": "critical"}, ("grub",)),
    "root is another's": ({"/boot/grub/grub.cfg": CFG.replace(ROOT_UUID, DATA_UUID)}, {"grub": "critical"}, ()),
    "root by an old name": ({"/boot/grub/grub.cfg": GRUB_CFG}, {"grub": "critical"}, ("grub",)),
    "search elsewhere": ({"/boot/grub/grub.cfg": CFG.replace("\techo", "\tsearch --no-floppy --fs-uuid --set=root dead-beef\n\techo")},
                         {"grub": "critical"}, ("grub",)),
    "search is right": ({"/boot/grub/grub.cfg": CFG.replace("\techo", f"\tsearch --fs-uuid --set=root {BOOT_UUID}\n\techo")}, {}, ()),
    "another kernel": ({"/boot/grub/grub.cfg": CFG.replace(f"vmlinuz-{KERNEL}", "vmlinuz-7")}, {"grub": "critical"}, ()),
    "the second entry is of another system": ({"/boot/grub/grub.cfg": CFG + CFG.replace(ROOT_UUID, "dead-beef")}, {"grub": "warning"}, ("grub",)),
    "no initramfs named": ({"/boot/grub/grub.cfg": CFG.replace("\tinitrd", "\t#nitrd")}, {"grub": "critical"}, ()),
    "no entries": ({"/boot/grub/grub.cfg": "set timeout=5\n"}, {"grub": "critical"}, ()),
    "no grub.cfg": ({"/boot/grub/grub.cfg": None}, {"grub": "critical"}, ()),
    "virtio is missing": (MODULES[2:], {"virtio": "critical"}, None),
    "scsi is missing": ((*MODULES[:2], *MODULES[4:]), {"virtio": "warning"}, None),
    "nvme is missing": (MODULES[:-1], {"nvme": "warning"}, None),
    "fstab by an old name": ({"/etc/fstab": "/dev/sda1 / ext4 defaults 0 1\n"}, {"fstab": "critical"}, ("fstab",)),
    "fstab by a name of virtio": ({"/etc/fstab": "/dev/vda1 / ext4 defaults 0 1\n"}, {"fstab": "critical"}, ("fstab",)),
    "fstab: another root": ({"/etc/fstab": "UUID=dead-beef / ext4 defaults 0 1\n"}, {"fstab": "critical"}, ("fstab",)),
    "fstab: root is another's": ({"/etc/fstab": f"UUID={DATA_UUID} / xfs defaults 0 1\n"}, {"fstab": "critical"}, ()),
    "fstab: a disk is gone": ({"/etc/fstab": "/dev/sdz1 /x ext4 defaults 0 0\n"}, {"fstab": "critical"}, ("fstab",)),
    "fstab: it may be gone": ({"/etc/fstab": "/dev/sdz1 /x ext4 nofail 0 0\n/dev/sr0 /cd auto noauto 0 0\n"}, {}, ()),
    "fstab: of the network": ({"/etc/fstab": "nas:/x /x nfs4 defaults 0 0\n"}, {"fstab": "warning"}, ("fstab",)),
    "fstab: another type": ({"/etc/fstab": f"UUID={DATA_UUID} /srv ext4 defaults 0 2\n"}, {"fstab": "critical"}, ()),
    "fstab: another type, not at boot": ({"/etc/fstab": f"UUID={DATA_UUID} /srv ext4 noauto 0 2\n"}, {"fstab": "warning"}, ()),
    "fstab: one of several types": ({"/etc/fstab": f"UUID={DATA_UUID} /srv ext4,xfs defaults 0 2\nUUID={ROOT_UUID} /a ext2 ro 0 0\n"}, {}, ()),
    "fstab: none of several types": ({"/etc/fstab": f"UUID={DATA_UUID} /srv ext4,vfat defaults 0 2\n"}, {"fstab": "critical"}, ()),
    "fstab: swap is gone": ({"/etc/fstab": "/dev/sdz1 none swap sw 0 0\n"}, {"fstab": "warning"}, ("fstab",)),
    "fstab: half a line": ({"/etc/fstab": f"UUID={ROOT_UUID} /\n"}, {"fstab": "warning"}, ()),
    "fixed, networkd": ({"/etc/systemd/network/50-lan.network": "[Network]\nAddress=192.0.2.7/24\nGateway=192.0.2.1\n"},
                        {"dhcp": "warning"}, ()),
    "fixed, ifupdown": ({"/sbin/ifup": "", "/etc/network/interfaces": "auto lo\niface lo inet loopback\niface ens3 inet static\n\taddress 192.0.2.7/24\n"},
                        {"dhcp": "warning"}, ("dhcp",)),
    "fixed, netplan": ({"/usr/sbin/netplan": "", "/etc/netplan/01.yaml": "network:\n  ethernets:\n    e0:\n      addresses:\n      - 192.0.2.7/24\n      nameservers:\n"
                        "        addresses: [192.0.2.1]\n"}, {"dhcp": "warning"}, ("dhcp",)),
    "netplan by dhcp": ({"/usr/sbin/netplan": "", "/etc/netplan/01.yaml": "network:\n  ethernets:\n    e0:\n      dhcp4: true\n      nameservers:\n        addresses:\n"
                         "        - 192.0.2.1\n"}, {}, ()),
    "nothing": ({"/etc/systemd/network/50-lan.network": None}, {"dhcp": "critical"}, ("dhcp",)),
    "old cards": ({"/etc/udev/rules.d/70-persistent-net.rules": "x"}, {"dhcp": "warning"}, ("dhcp",)),
    "no sshd": ({"/usr/sbin/sshd": None}, {"sshd": "warning"}, ()),
    "sshd is off": ({"/etc/systemd/system/multi-user.target.wants/ssh.service": None}, {"sshd": "warning"}, ()),
    "no host keys": ({"/etc/ssh/ssh_host_ed25519_key": None}, {"sshd": "warning"}, ()),
    "firewall": ({"/etc/ufw/ufw.conf": "ENABLED=yes\n"}, {"firewall": "warning"}, ()),
    "firewall is off": ({"/etc/ufw/ufw.conf": "ENABLED=no\n"}, {}, ()),
    "no root": ({"/etc/passwd": "ann:x:1000:1000::/:/bin/sh\n"}, {"root_account": "critical"}, ()),
    "no shell": ({"/etc/passwd": "root:x:0:0::/:/usr/sbin/nologin\n"}, {"root_account": "warning"}, ()),
    "no password": ({"/etc/shadow": "root::1::::::\ndaemon:*:1::::::\nann:!:1::::::\n"}, {"root_account": "warning"}, ()),
    "locked out": ({"/etc/shadow": "root:*:1::::::\ndaemon:*:1::::::\nann:!:1::::::\n"}, {"root_account": "warning"}, ()),
    "locked, with sudo": ({"/etc/shadow": "root:*:1::::::\ndaemon:*:1::::::\nann:!:1::::::\n", "/etc/group": "sudo:x:27:ann\n"}, {}, ()),
    "locked, with a key": ({"/etc/shadow": "root:*:1::::::\ndaemon:*:1::::::\nann:!:1::::::\n", "/root/.ssh/authorized_keys": "k"}, {}, ()),
    "no shadow": ({"/etc/shadow": None}, {"accounts": "critical"}, ()),
    "a user without a line": ({"/etc/shadow": "root:$6$x:1::::::\ndaemon:*:1::::::\n"}, {"accounts": "warning"}, ()),
    "a broken line": ({"/etc/passwd": "root:x:0:0:root:/root:/bin/bash\nann:x\n"}, {"accounts": "warning"}, ()),
    "two roots": ({"/etc/passwd": "root:x:0:0:root:/root:/bin/bash\nann:x:0:0::/:/bin/sh\n"}, {"accounts": "warning"}, ()),
    "no lib64": ({"/lib64": None}, {"lib_links": "critical"}, ()),
}


@pytest.mark.parametrize("name", BAD)
def test_bad(tree, name):
    change, expected, repaired = BAD[name]
    if isinstance(change, tuple):
        tree.initramfs(change)
        change = {}
    for path, text in change.items():
        if text is None:
            tree.gone(path)
        else:
            tree.write(path, text)
    assert tree.bad() == expected, [item for item in tree.items.values() if item["level"] != "passed"]
    offered = {item for item in expected if tree.items[item]["repairable"]}
    if repaired is None:  # by programs that can't run here
        assert offered == set(expected)
        return
    assert offered == set(repaired)
    report = tree.ask("--repair")
    assert {entry["item"]: entry["repaired"] for entry in report["repaired"]} == dict.fromkeys(repaired, True)
    assert [item["item"] for item in report["before"] if item["level"] != "passed"] == [item for item in tree.items if item in expected]
    assert set(tree.bad()) == set(expected) - set(repaired)


def test_links(tree):
    tree.gone("/bin")
    tree.link("/bin", "/usr/bin")
    assert tree.bad() == {"lib_links": "warning"}
    tree.gone("/bin")
    tree.link("/bin", "nowhere")
    tree.write("/usr/bin/sh", elf())
    assert tree.bad()["lib_links"] == "critical"


def test_shadow_is_for_nobody(tree):
    (tree.path / "etc/shadow").chmod(0o644)
    assert tree.bad() == {"accounts": "warning"}


def test_address_that_was_asked_for(tree):
    network = {"address": "192.0.2.7", "prefix": 24, "gateway": None, "nameservers": [], "mac": None}
    assert tree.bad(network=network) == {"dhcp": "critical"}
    assert tree.items["dhcp"]["repairable"]
    report = tree.ask("--repair", network=network)
    assert [entry["repaired"] for entry in report["repaired"]] == [True]
    assert tree.bad(network=network) == {}
    # what isn't asked for is told of
    assert tree.bad() == {"dhcp": "warning"}


def test_uefi(tree):
    volumes = json.loads(json.dumps(VOLUMES))
    volumes["disks"][0]["grub"] = False
    assert tree.bad(**volumes) == {"boot_mode": "critical", "grub": "critical"}
    tree.write("/boot/efi/EFI/debian/grubx64.efi", b"MZ grub" * 300000)
    tree.write("/boot/efi/EFI/debian/shimx64.efi", b"MZ shim")
    assert tree.bad(**volumes) == {"boot_mode": "critical"}
    report = tree.ask("--repair", **volumes)
    assert [step["name"] for step in report["steps"]] == ["fallback_loader"] and report["verdict"] == "passed"
    assert (tree.path / "boot/efi/EFI/BOOT/BOOTX64.EFI").read_bytes() == b"MZ shim"
    assert (tree.path / "boot/efi/EFI/BOOT/grubx64.efi").read_bytes() == b"MZ grub" * 300000
    assert tree.bad(**volumes) == {}


@pytest.mark.parametrize("said, is_, level", [
    ("ntfs-3g", "ntfs", None), ("ntfs3", "ntfs", None), ("fuse.ntfs-3g", "ntfs", None), ("msdos", "vfat", None), ("auto", "ntfs", None),
    ("vfat", "ntfs", "critical"), ("ntfs", "vfat", "critical"), ("ntf", "ntfs", "critical")])
def test_types_of_one_family(tree, said, is_, level):
    volumes = json.loads(json.dumps(VOLUMES))
    (volume,) = (v for v in volumes["volumes"] if v.get("uuid") == DATA_UUID)
    volume["fstype"] = is_
    tree.write("/etc/fstab", f"UUID={DATA_UUID} /srv {said} defaults 0 2\n")
    assert tree.bad(**volumes) == ({"fstab": level} if level else {})


def test_what_does_not_grow_is_not_said_to(tree):
    assert tree.bad() == {}
    assert "switched off" in tree.items["online_resize"]["message"] and "let the root" not in tree.items["online_resize"]["message"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small filesystem")
def test_full_filesystem_is_not_written(tmp_path):
    (tmp_path / "small").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "replant-test", tmp_path / "small"], check=True)
    try:
        tree = Checked(tmp_path / "small")
        tree.write("/etc/fstab", "/dev/sda1 / ext4 defaults 0 1\n")
        before = tree.snapshot()
        report = tree.ask("--repair")
        assert tree.snapshot() == before
        assert [entry["repaired"] for entry in report["repaired"]] == [False]
        assert [(step["name"], step["state"]) for step in report["steps"]] == [("fstab", "skipped")]
        assert "is full" in report["steps"][0]["summary"]
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)


def test_hostile_files_stop_nothing(tree):
    for path in ("/etc/adjtime", "/etc/shadow", "/etc/fstab", "/etc/passwd", "/usr/bin/sh", "/boot/grub/grub.cfg"):
        (tree.path / path.lstrip("/")).unlink(missing_ok=True)
        os.mkfifo(tree.path / path.lstrip("/"))
    tree.link("/etc/group2", "/etc/group2")
    assert {"fstab", "accounts", "grub", "architecture"} <= set(tree.bad())
