"""The conversion's steps, one by one, on plain directories made to look like a copied server.

Nothing is mounted or booted here: tests/boot does that with real disks.
"""

import configparser
import gzip
import hashlib
import json
import os
import pathlib
import subprocess

import pytest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
TOOL = pathlib.Path(os.environ.get("REPLANT_BUILD") or SOURCE / "build") / "tests" / "boot" / "guest_tool"
KERNEL = "6.1.0-9-amd64"
ROOT_UUID = "11111111-1111-4111-8111-111111111111"
BOOT_UUID = "22222222-2222-4222-8222-222222222222"
SWAP_UUID = "33333333-3333-4333-8333-333333333333"
DATA_UUID = "44444444-4444-4444-8444-444444444444"

VOLUMES = {
    "root": "/dev/vdc1",
    "disks": [{"source": "/dev/sda", "aliases": ["/dev/disk/by-id/ata-QEMU_1", "/dev/disk/by-path/pci-0000:00:1f.2-ata-1"],
               "grub": True},
              {"source": "/dev/sdb"}],
    "volumes": [
        {"device": "/dev/vdc", "disk": 0, "part": 0},
        {"device": "/dev/vdc1", "disk": 0, "part": 1, "fstype": "ext4", "uuid": ROOT_UUID, "label": "system"},
        {"device": "/dev/vdc2", "disk": 0, "part": 2, "fstype": "ext4", "uuid": BOOT_UUID, "partuuid": "abcd-02"},
        {"device": "/dev/vdc3", "disk": 0, "part": 3, "fstype": "swap", "uuid": SWAP_UUID},
        {"device": "/dev/vdd1", "disk": 1, "part": 1, "fstype": "xfs", "uuid": DATA_UUID},
        {"device": "/dev/vdd2", "disk": 1, "part": 2, "fstype": "", "partuuid": "abcd-12"},
        {"device": "/dev/mapper/vg--0-my--lv", "mapper": "vg--0-my--lv", "fstype": "ext4",
         "uuid": "55555555-5555-4555-8555-555555555555"},
    ],
}
GRUB_CFG = """set root='hd0,msdos1'
menuentry 'Debian' {
\techo\t'Loading Linux ...'
\tlinux\t/vmlinuz-%s root=/dev/sda1 ro quiet
\tinitrd\t/initrd.img-%s
}
""" % (KERNEL, KERNEL)
ALL_MODULES = ("virtio/virtio_pci", "block/virtio_blk", "scsi/virtio_scsi", "scsi/sd_mod", "fs/ext4", "md/dm-mod")


def cpio(names):
    """A newc archive of empty files."""
    out = b""
    for name in [*names, "TRAILER!!!"]:
        raw = name.encode() + b"\0"
        fields = [0, 0o100644, 0, 0, 1, 0, 0, 0, 0, 0, 0, len(raw), 0]
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + raw
        out += b"\0" * (-len(out) % 4)
    return out + b"\0" * (-len(out) % 512)


class Tree:
    def __init__(self, path):
        self.path = path
        self.write("/etc/os-release", 'ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
        self.write("/etc/fstab", "")
        self.write(f"/boot/vmlinuz-{KERNEL}", "")
        self.write("/boot/grub/grub.cfg", GRUB_CFG)
        self.write("/etc/default/grub", 'GRUB_CMDLINE_LINUX_DEFAULT="quiet"\nGRUB_CMDLINE_LINUX="root=/dev/sda1"\n')
        self.write(f"/lib/modules/{KERNEL}/modules.builtin", "")
        self.write(f"/lib/modules/{KERNEL}/modules.dep",
                   "".join(f"kernel/drivers/{name}.ko:\n" for name in ALL_MODULES))
        self.initramfs(ALL_MODULES)
        for unit in ("systemd-networkd.service", "systemd-networkd.socket", "systemd-networkd-wait-online.service"):
            self.write(f"/lib/systemd/system/{unit}", "")

    def initramfs(self, modules, wrap=gzip.compress):
        early = cpio(["kernel/x86/microcode/GenuineIntel.bin"])
        main = cpio([f"usr/lib/modules/{KERNEL}/kernel/drivers/{name}.ko" for name in modules])
        self.write(f"/boot/initrd.img-{KERNEL}", early + wrap(main))

    def write(self, path, text):
        target = self.path / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text if isinstance(text, bytes) else text.encode())

    def read(self, path):
        return (self.path / path.lstrip("/")).read_text()

    def exists(self, path):
        return os.path.lexists(self.path / path.lstrip("/"))

    def snapshot(self):
        found = {}
        for path in sorted(self.path.rglob("*")):
            if path.is_symlink():
                found[str(path)] = os.readlink(path)
            elif path.is_file():
                found[str(path)] = (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mode)
        return found

    def convert(self, volumes=None, again=True):
        """The report. A second run must change nothing and say so."""
        report = self._run(volumes)
        if again:
            before = self.snapshot()
            second = self._run(volumes)
            assert self.snapshot() == before
            assert [step["name"] for step in second["steps"] if step["files"]] == []
            assert [step["name"] for step in second["steps"] if step["state"] == "done"] == []
        self.steps = {step["name"]: step for step in report["steps"]}
        return report

    def _run(self, volumes):
        done = subprocess.run([TOOL, self.path, json.dumps(volumes or VOLUMES)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def refused(self, volumes=None):
        before = self.snapshot()
        done = subprocess.run([TOOL, self.path, json.dumps(volumes or VOLUMES)], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert self.snapshot() == before
        return json.loads(done.stdout), done.stderr


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


FSTAB = [
    ("/dev/sda1 / ext4 errors=remount-ro 0 1", f"UUID={ROOT_UUID} / ext4 errors=remount-ro 0 1"),
    ("/dev/sda2\t/boot  ext4\tdefaults 0 2", f"UUID={BOOT_UUID}\t/boot  ext4\tdefaults 0 2"),
    ("/dev/sda3 none swap sw 0 0", f"UUID={SWAP_UUID} none swap sw 0 0"),
    ("/dev/sdb1 /srv xfs defaults", f"UUID={DATA_UUID} /srv xfs defaults"),
    ("/dev/sdb2 /raw auto defaults 0 0", "PARTUUID=abcd-12 /raw auto defaults 0 0"),
    ("/dev/disk/by-id/ata-QEMU_1-part2 /boot ext4 ro 0 0", f"UUID={BOOT_UUID} /boot ext4 ro 0 0"),
    ("/dev/disk/by-path/pci-0000:00:1f.2-ata-1-part2 /boot ext4 ro 0 0", f"UUID={BOOT_UUID} /boot ext4 ro 0 0"),
    # names that stay are left alone
    (f"UUID={DATA_UUID} /srv xfs defaults 0 0", None),
    (f"UUID={DATA_UUID.upper()} /srv xfs defaults 0 0", None),
    ("LABEL=system / ext4 defaults 0 0", None),
    ("PARTUUID=abcd-02 /boot ext4 defaults 0 0", None),
    ("/dev/vg-0/my-lv /lv ext4 defaults 0 0", None),
    ("/dev/mapper/vg--0-my--lv /lv ext4 defaults 0 0", None),
    (f"/dev/disk/by-uuid/{DATA_UUID} /srv xfs defaults 0 0", None),
    ("tmpfs /tmp tmpfs size=1G 0 0", None),
    ("proc /proc proc defaults 0 0", None),
    ("# /dev/sda9 /x ext4 defaults 0 0", None),
    ("/swapfile none swap sw 0 0", None),
    ("", None),
    ("nonsense", None),
    # what is not in this set may be missing
    ("/dev/sdz1 /x ext4 defaults 0 0", "/dev/sdz1 /x ext4 nofail,x-systemd.device-timeout=10s,defaults 0 0"),
    ("UUID=dead-beef /x ext4 ro", "UUID=dead-beef /x ext4 nofail,x-systemd.device-timeout=10s,ro"),
    ("/dev/mapper/gone /x ext4", "/dev/mapper/gone /x ext4 nofail,x-systemd.device-timeout=10s"),
    ("/dev/sdz1 /x ext4 noauto 0 0", None),
    ("/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0", None),
    ("/dev/sdz1 /x ext4 defaults,nofail 0 0", None),
    ("nas:/export /mnt nfs4 defaults 0 0", "nas:/export /mnt nfs4 nofail,defaults 0 0"),
    ("//nas/share /mnt cifs credentials=/root/c 0 0", "//nas/share /mnt cifs nofail,credentials=/root/c 0 0"),
    ("nas:/export /mnt nfs noauto,x-systemd.automount 0 0", None),
]


@pytest.mark.parametrize("line, expected", FSTAB)
def test_fstab_line(tree, line, expected):
    tree.write("/etc/fstab", f"# before\n{line}\n# after")
    tree.convert()
    assert tree.read("/etc/fstab") == f"# before\n{line if expected is None else expected}\n# after"


def test_fstab_root_is_the_one_the_system_was_found_on(tree):
    tree.write("/etc/fstab", "/dev/disk/by-id/never-heard-of / ext4 defaults 0 1\n")
    tree.convert()
    assert tree.read("/etc/fstab") == f"UUID={ROOT_UUID} / ext4 defaults 0 1\n"


def test_fstab_names_of_disks_decide_over_letters(tree):
    """The source called its disks the other way round."""
    volumes = json.loads(json.dumps(VOLUMES))
    volumes["disks"] = [{"source": "/dev/sdb", "grub": True}, {"source": "/dev/sda"}]
    tree.write("/etc/fstab", "/dev/sdb1 / ext4 defaults 0 1\n/dev/sda1 /srv xfs defaults 0 0\n")
    tree.convert(volumes)
    assert tree.read("/etc/fstab") == f"UUID={ROOT_UUID} / ext4 defaults 0 1\nUUID={DATA_UUID} /srv xfs defaults 0 0\n"


def nameless(count):
    volumes = json.loads(json.dumps(VOLUMES))
    volumes["disks"] = [{"grub": True}, {}][:count]
    volumes["volumes"] = [volume for volume in volumes["volumes"] if volume.get("disk", 0) < count]
    return volumes


@pytest.mark.parametrize("name", ["sda2", "hda2", "vda2", "xvda2", "nvme0n1p2"])
def test_only_disk_was_the_first_one(tree, name):
    tree.write("/etc/fstab", f"/dev/{name} /boot ext4 defaults 0 1\n")
    tree.convert(nameless(1))
    assert tree.read("/etc/fstab") == f"UUID={BOOT_UUID} /boot ext4 defaults 0 1\n"


@pytest.mark.parametrize("count, name", [(1, "sdb2"), (1, "nvme1n1p2"), (2, "sda2"), (2, "sdb1"), (2, "vda2")])
def test_kernel_names_are_not_guessed(tree, count, name):
    """Which of several disks was called what, nobody has said."""
    tree.write("/etc/fstab", f"/dev/{name} /srv xfs defaults 0 0\n")
    report = tree.convert(nameless(count))
    assert tree.read("/etc/fstab") == f"/dev/{name} /srv xfs nofail,x-systemd.device-timeout=10s,defaults 0 0\n"
    assert any("/srv" in warning for warning in report["warnings"])


@pytest.mark.parametrize("name", ["sdc1", "sdz1", "sdaa1", "vda1", "nvme0n1p1"])
def test_disk_that_was_not_copied_is_unknown(tree, name):
    tree.write("/etc/fstab", f"/dev/{name} /srv xfs defaults 0 0\n")
    tree.convert()
    assert "nofail" in tree.read("/etc/fstab")


def test_fstab_encrypted_mapping_is_left_to_crypttab(tree):
    tree.write("/etc/crypttab", "safe /dev/sdb1 none luks\n")
    tree.write("/etc/fstab", "/dev/mapper/safe /srv ext4 defaults 0 0\n")
    tree.convert()
    assert tree.read("/etc/fstab") == "/dev/mapper/safe /srv ext4 defaults 0 0\n"
    assert tree.read("/etc/crypttab") == f"safe UUID={DATA_UUID} none luks\n"


def test_report_keeps_old_content_and_digests(tree):
    old = "/dev/sda1 / ext4 defaults 0 1\n"
    tree.write("/etc/fstab", old)
    tree.convert()
    (entry,) = tree.steps["fstab"]["files"]
    assert entry["path"] == "/etc/fstab" and entry["action"] == "changed" and entry["old"] == old
    assert entry["sha256_old"] == hashlib.sha256(old.encode()).hexdigest()
    assert entry["sha256_new"] == hashlib.sha256(tree.read("/etc/fstab").encode()).hexdigest()


def test_content_that_is_no_text_is_kept_too(tree):
    tree.write("/etc/fstab", b"# \xff\xfe\n/dev/sda1 / ext4 defaults 0 1\n")
    tree.convert()
    assert "old_base64" in tree.steps["fstab"]["files"][0]


def test_resume(tree):
    tree.write("/etc/initramfs-tools/conf.d/resume", "RESUME=/dev/sda3\n")
    tree._run(None)
    assert tree.read("/etc/initramfs-tools/conf.d/resume") == f"RESUME=UUID={SWAP_UUID}\n"
    assert f" resume=UUID={SWAP_UUID}" in tree.read("/boot/grub/grub.cfg")
    tree.convert()


def test_resume_device_that_is_gone(tree):
    tree.write("/etc/initramfs-tools/conf.d/resume", "RESUME=UUID=gone\n")
    tree.convert()
    assert tree.read("/etc/initramfs-tools/conf.d/resume") == "RESUME=none\n"
    assert " noresume" in tree.read("/boot/grub/grub.cfg")


def linux_line(tree):
    return next(line for line in tree.read("/boot/grub/grub.cfg").splitlines() if line.startswith("\tlinux"))


def test_grub_root_and_console(tree):
    tree.write("/boot/grub/device.map", "(hd0) /dev/disk/by-id/ata-QEMU_1\n")
    tree.convert()
    assert linux_line(tree) == (f"\tlinux\t/vmlinuz-{KERNEL} root=UUID={ROOT_UUID} ro quiet "
                                "console=tty0 console=ttyS0,115200")
    assert not tree.exists("/boot/grub/device.map")
    assert f'GRUB_CMDLINE_LINUX="root=UUID={ROOT_UUID}"' in tree.read("/etc/default/grub")


def test_line_that_ends_as_on_windows(tree):
    tree.write("/boot/grub/grub.cfg", GRUB_CFG.replace("root=/dev/sda1 ro quiet", "ro root=/dev/sda2\r"))
    tree.convert()
    assert f"root=UUID={BOOT_UUID} " in linux_line(tree)


def with_partuuid():
    volumes = json.loads(json.dumps(VOLUMES))
    volumes["volumes"][1]["partuuid"] = "abcd-01"
    volumes["volumes"][3]["partuuid"] = "abcd-03"
    return volumes


ALONE = "menuentry 'Own kernel' {\n\tlinux\t/vmlinuz-own root=/dev/sda1 resume=/dev/sda3 ro\n}\n"


@pytest.mark.parametrize("order", [1, -1])
def test_kernel_without_initramfs_finds_its_root(tree, order):
    """It knows nothing of filesystems' UUIDs; those that have an initramfs keep to them."""
    tree.write("/boot/grub/grub.cfg", "".join([GRUB_CFG, ALONE][::order]))
    tree.convert(with_partuuid())
    found = {line.split()[1]: line.split()[2:4] for line in tree.read("/boot/grub/grub.cfg").splitlines()
             if line.startswith("\tlinux")}
    assert found == {f"/vmlinuz-{KERNEL}": [f"root=UUID={ROOT_UUID}", "ro"],
                     "/vmlinuz-own": ["root=PARTUUID=abcd-01", "resume=PARTUUID=abcd-03"]}


def test_defaults_suit_a_kernel_without_initramfs(tree):
    tree.write("/boot/vmlinuz-own", "")
    tree.write("/lib/modules/own/modules.builtin", "".join(f"kernel/drivers/{name}.ko\n" for name in ALL_MODULES))
    tree.convert(with_partuuid())
    assert 'GRUB_CMDLINE_LINUX="root=PARTUUID=abcd-01"' in tree.read("/etc/default/grub")


def test_root_that_a_kernel_alone_can_not_find_is_told(tree):
    """No partition's UUID is known: the old name stays, and is named."""
    tree.write("/boot/grub/grub.cfg", ALONE)
    report = tree.convert()
    assert " root=/dev/sda1 " in linux_line(tree)
    assert any("/boot/grub/grub.cfg" in warning for warning in report["warnings"])


@pytest.mark.parametrize("given, expected", [
    ("console=ttyS0,9600", "console=ttyS0,9600"),
    ("console=tty0 console=ttyS1", "console=tty0 console=ttyS1"),
    ("console=hvc0 quiet", "console=ttyS0,115200 console=hvc0 quiet"),
    ("", "console=tty0 console=ttyS0,115200")])
def test_grub_console_that_was_chosen_stays_the_last(tree, given, expected):
    tree.write("/boot/grub/grub.cfg", GRUB_CFG.replace(" quiet", " " + given if given else ""))
    tree.convert()
    assert linux_line(tree).split(" ro ")[1] == expected


def test_next_update_grub_says_the_same(tree):
    """What /etc/default says, the way grub-mkconfig reads it."""
    tree.convert()
    script = f"cd {tree.path}; . etc/default/grub; for f in etc/default/grub.d/*.cfg; do . ./$f; done; echo $GRUB_CMDLINE_LINUX"
    out = subprocess.run(["sh", "-ec", script], capture_output=True, text=True, check=True).stdout.strip()
    assert out == f"root=UUID={ROOT_UUID} console=tty0 console=ttyS0,115200"


def test_comments_in_defaults_stay(tree):
    text = '# GRUB passes "root=UUID=xxx" to the kernel, /dev/sda1 or root=/dev/sda1\nGRUB_TIMEOUT=5\n'
    tree.write("/etc/default/grub", text)
    tree.convert()
    assert tree.read("/etc/default/grub") == text


def test_initramfs_that_has_everything(tree):
    tree.convert()
    assert tree.steps["initramfs"]["state"] == "not_needed"


@pytest.mark.parametrize("wrap", [lambda data: data, gzip.compress, lambda data: subprocess.run(
    ["zstd", "-q"], input=data, capture_output=True, check=True).stdout, lambda data: subprocess.run(
        ["xz", "-q", "--check=crc32"], input=data, capture_output=True, check=True).stdout], ids=["plain", "gzip", "zstd", "xz"])
def test_initramfs_formats(tree, wrap):
    tree.initramfs(ALL_MODULES, wrap)
    tree.convert()
    assert tree.steps["initramfs"]["state"] == "not_needed" and not tree.steps["initramfs"]["notes"]


def test_initramfs_that_lacks_a_driver(tree):
    """Its own programs can't be run on a plain tree: the step must want to, and say that it failed."""
    tree.initramfs([name for name in ALL_MODULES if "virtio_blk" not in name])
    tree._run(None)
    report = tree.convert(again=False)
    assert tree.steps["initramfs"]["state"] == "failed"
    assert "update-initramfs" in tree.steps["initramfs"]["summary"]
    assert "virtio_blk" in tree.read("/etc/initramfs-tools/modules").split()
    assert any("initramfs" in warning for warning in report["warnings"])


def test_drivers_may_be_built_in(tree):
    tree.initramfs(["fs/ext4", "scsi/sd_mod", "scsi/virtio-scsi"])
    tree.write(f"/lib/modules/{KERNEL}/modules.builtin", "kernel/drivers/virtio/virtio_pci.ko\nkernel/drivers/block/virtio_blk.ko\n")
    tree.convert()
    assert tree.steps["initramfs"]["state"] == "not_needed"


def test_kernel_without_virtio(tree):
    tree.initramfs(["fs/ext4"])
    tree.write(f"/lib/modules/{KERNEL}/modules.dep", "kernel/fs/ext4/ext4.ko:\n")
    tree.convert(again=False)
    assert tree.steps["initramfs"]["state"] == "failed"
    assert "virtio_blk" in tree.steps["initramfs"]["summary"]


def test_damaged_initramfs_is_built_anew(tree):
    tree.write(f"/boot/initrd.img-{KERNEL}", b"070701" + b"z" * 200)
    tree.convert(again=False)
    assert tree.steps["initramfs"]["state"] == "failed"
    assert any("damaged" in note for note in tree.steps["initramfs"]["notes"])


def cut(data):
    """In the middle of the last member, behind every driver."""
    return gzip.compress(data[:data.rindex(b"070701") + 50])


@pytest.mark.parametrize("builtin", ["", "".join(f"kernel/drivers/{name}.ko\n" for name in ALL_MODULES)],
                         ids=["modules", "all built in"])
def test_initramfs_damaged_behind_the_drivers_is_built_anew(tree, builtin):
    tree.write(f"/lib/modules/{KERNEL}/modules.builtin", builtin)
    tree.initramfs(ALL_MODULES, cut)
    tree.convert(again=False)
    assert tree.steps["initramfs"]["state"] == "failed"
    assert "update-initramfs" in tree.steps["initramfs"]["summary"]
    assert any("damaged" in note for note in tree.steps["initramfs"]["notes"])
    names = tree.read("/etc/initramfs-tools/modules").split()
    assert names == ([] if builtin else [os.path.basename(name).replace("-", "_") for name in ALL_MODULES if "dm" not in name])


INTERFACES = """# The loopback
auto lo
iface lo inet loopback

source /etc/network/interfaces.d/*

# The office
auto enp0s3
iface enp0s3 inet static
    address 192.0.2.7/24
    gateway 192.0.2.1
    # a remark
    up ip route add 198.51.100.0/24 via 192.0.2.9
"""


def test_ifupdown(tree):
    tree.write("/sbin/ifup", "")
    tree.write("/etc/network/interfaces", INTERFACES)
    tree.write("/etc/network/interfaces.d/eth1", "allow-hotplug eth1\niface eth1 inet dhcp\n")
    tree.convert()
    text = tree.read("/etc/network/interfaces")
    active = [line for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert active == ["auto lo", "iface lo inet loopback", "source /etc/network/interfaces.d/*"]
    assert text.replace("#replant# ", "") == INTERFACES
    assert all(line.startswith("#") for line in tree.read("/etc/network/interfaces.d/eth1").splitlines())
    file = configparser.ConfigParser()
    file.optionxform = str
    file.read_string(tree.read("/etc/systemd/network/99-replant-dhcp.network"))
    # what every systemd understands in the same way, and no veth, tap or bridge
    assert dict(file["Match"]) == {"Name": "e*"} and file["Network"]["DHCP"] == "yes"
    wants = tree.path / "etc/systemd/system/multi-user.target.wants/systemd-networkd.service"
    assert os.readlink(wants) == "/lib/systemd/system/systemd-networkd.service"


def test_networkd_that_was_masked(tree):
    """As those do who go back to ifupdown: it has to start all the same, or there is no network at all."""
    tree.write("/sbin/ifup", "")
    tree.write("/etc/network/interfaces", INTERFACES)
    units = tree.path / "etc/systemd/system"
    units.mkdir(parents=True)
    for unit in ("systemd-networkd.service", "systemd-networkd.socket", "other.service"):
        os.symlink("/dev/null", units / unit)
    tree.convert()
    assert not os.path.lexists(units / "systemd-networkd.service") and os.path.lexists(units / "other.service")
    assert os.readlink(units / "multi-user.target.wants/systemd-networkd.service") == "/lib/systemd/system/systemd-networkd.service"


def test_what_ifupdown_does_not_read_stops_nothing(tree):
    tree.write("/sbin/ifup", "")
    tree.write("/etc/network/interfaces", INTERFACES)
    tree.write("/etc/network/interfaces.d/old/eth0", "auto eth0\niface eth0 inet dhcp\n")
    os.symlink("gone", tree.path / "etc/network/interfaces.d/link")
    tree.write("/etc/network/interfaces.d/zz", "auto eth9\niface eth9 inet dhcp\n")
    tree.convert()
    assert tree.steps["network"]["state"] == "done" and tree.exists("/etc/systemd/network/99-replant-dhcp.network")
    left = [note for note in tree.steps["network"]["notes"] if "was left as it is" in note]
    assert len(left) == 2 and "interfaces.d/link" in left[0] and "interfaces.d/old" in left[1]
    assert all(line.startswith("#") for line in tree.read("/etc/network/interfaces.d/zz").splitlines())


@pytest.mark.parametrize("old, active", [
    ("auto lo eth0\niface lo inet loopback\n", ["auto lo", "iface lo inet loopback"]),
    ("iface lo inet loopback\nallow-hotplug eth0 lo", ["iface lo inet loopback", "allow-hotplug lo"]),
    ("auto lo \\\n  eth0\niface lo inet loopback\n", ["auto lo", "iface lo inet loopback"]),
    ("auto \\\n\tlo\niface lo inet loopback\n", ["auto \\", "\tlo", "iface lo inet loopback"]),
    ("iface eth0 inet dhcp\n  up ip route add \\\n    auto lo\nauto lo", ["auto lo"])])
def test_ifupdown_keeps_the_loopback_alone(tree, old, active):
    """networking.service fails on a card that is named but described nowhere."""
    tree.write("/sbin/ifup", "")
    tree.write("/etc/network/interfaces", old + "# end\niface eth0 inet dhcp\n" if old[-1] == "\n" else old)
    tree.convert()
    text = tree.read("/etc/network/interfaces")
    assert [line for line in text.splitlines() if line and not line.startswith("#")] == active


def test_network_says_what_dhcp_does_not_bring_back(tree):
    tree.write("/sbin/ifup", "")
    tree.write("/etc/network/interfaces", INTERFACES + "auto bond0\niface bond0 inet dhcp\n  bond-slaves eth1 eth2\n")
    tree.write("/etc/resolv.conf", "# by hand\nnameserver 192.0.2.53\n")
    report = tree.convert()
    notes = tree.steps["network"]["notes"]
    assert [note.split(":")[0] for note in notes] == [
        "'/etc/resolv.conf' stays as it is",
        "the fixed addresses of '/etc/network/interfaces' are not used any more",
        "the bonds, bridges or VLANs of '/etc/network/interfaces' are not set up any more"]
    assert ["network: " + note for note in notes] == [x for x in report["warnings"] if x.startswith("network: ")]
    assert tree.read("/etc/resolv.conf") == "# by hand\nnameserver 192.0.2.53\n"


def test_network_has_nothing_to_say_of_dhcp(tree):
    tree.write("/sbin/ifup", "")
    tree.write("/etc/network/interfaces", "# no static bond\nauto eth0\niface eth0 inet dhcp\n")
    (tree.path / "etc").mkdir(exist_ok=True)
    os.symlink("../run/systemd/resolve/stub-resolv.conf", tree.path / "etc/resolv.conf")
    tree.convert()
    assert tree.steps["network"]["state"] == "done" and tree.steps["network"]["notes"] == []


def test_networkd_files_of_the_server_stay(tree):
    tree.write("/etc/systemd/network/lan.network", "[Match]\nName=enp0s3\n")
    tree.convert()
    assert tree.read("/etc/systemd/network/lan.network") == "[Match]\nName=enp0s3\n"
    assert tree.exists("/etc/systemd/network/99-replant-dhcp.network")


def test_netplan(tree):
    old = "network: {ethernets: {enp0s3: {addresses: [192.0.2.7/24]}}}\n"
    tree.write("/usr/sbin/netplan", "")
    tree.write("/etc/netplan/50-cloud-init.yaml", old)
    tree.convert()
    assert sorted(os.listdir(tree.path / "etc/netplan")) == ["50-cloud-init.yaml.replant", "99-replant-dhcp.yaml"]
    assert tree.read("/etc/netplan/50-cloud-init.yaml.replant") == old
    (note,) = tree.steps["network"]["notes"]
    assert note.startswith("the fixed addresses of '/etc/netplan/50-cloud-init.yaml' are not used any more")


def test_network_manager_is_left_alone(tree):
    tree.write("/etc/systemd/system/multi-user.target.wants/NetworkManager.service", "")
    tree.convert()
    assert tree.steps["network"]["state"] == "not_needed"
    assert not tree.exists("/etc/systemd/network/99-replant-dhcp.network")


@pytest.mark.parametrize("path", ["/etc/lvm/devices/system.devices", "/etc/blkid.tab", "/etc/multipath/bindings",
                                  "/etc/udev/rules.d/70-persistent-net.rules"])
def test_files_about_the_old_home_are_removed(tree, path):
    tree.write(path, "old\n")
    report = tree.convert()
    assert not tree.exists(path)
    removed = [entry for step in report["steps"] for entry in step["files"] if entry["path"] == path]
    assert [(entry["action"], entry["old"]) for entry in removed] == [("removed", "old\n")]


def test_the_agent_goes_and_its_secret_is_in_no_report(tree):
    tree.write("/etc/replant/agent.json", '{"secret": "dont-tell"}')
    tree.write("/etc/replant/agent.json.tmp-0123456789abcdef", '{"secret": "dont-tell"}')
    tree.write("/etc/replant/ca.pem", "")
    tree.write("/usr/local/sbin/replant-agent", "")
    tree.write("/etc/systemd/system/replant-agent.service", "")
    report = tree.convert()
    assert not tree.exists("/etc/replant") and not tree.exists("/usr/local/sbin/replant-agent")
    assert not tree.exists("/etc/systemd/system/replant-agent.service")
    assert "dont-tell" not in json.dumps(report)
    assert tree.steps["agent"]["state"] == "done"


@pytest.mark.parametrize("mode, told", [(0o644, True), (0o640, False), (0o600, False)])
def test_private_files_are_in_no_report(tree, mode, told):
    tree.write("/etc/crypttab", "safe /dev/sdb1 none luks\n")
    (tree.path / "etc/crypttab").chmod(mode)
    tree.convert()
    (entry,) = tree.steps["crypttab"]["files"]
    assert ("old" in entry) == told
    assert entry["sha256_old"] == hashlib.sha256(b"safe /dev/sdb1 none luks\n").hexdigest()


def test_secrets_in_public_files_are_masked(tree):
    tree.write("/etc/fstab", "/dev/sda1 / ext4 defaults 0 1\n"
               "//nas/s /mnt cifs username=u,password=hunter1,uid=0 0 0\n# Secret = 'hunter2'\n")
    tree.write("/sbin/ifup", "")
    tree.write("/etc/network/interfaces", "auto wlan0\niface wlan0 inet dhcp\n  wpa-psk \"hunter3\"\n  wireless-key hunter4\n"
               "  wpa-ssid keyboard\n")
    report = tree.convert()
    text = json.dumps(report)
    assert "hunter" not in text and "username=u" in text and "keyboard" in text
    assert "hunter1" in tree.read("/etc/fstab")


def test_netplan_is_in_no_report(tree):
    tree.write("/usr/sbin/netplan", "")
    tree.write("/etc/netplan/50.yaml", "network: {wifis: {w: {access-points: {x: {password: hunter1}}}}}\n")
    report = tree.convert()
    assert "hunter" not in json.dumps(report)
    assert "hunter1" in tree.read("/etc/netplan/50.yaml.replant")


def test_settings_of_others_beside_the_agents_stay(tree):
    tree.write("/etc/replant/agent.json", "{}")
    tree.write("/etc/replant/other", "mine")
    tree.convert()
    assert os.listdir(tree.path / "etc/replant") == ["other"]


def test_cloud_init_is_switched_off(tree):
    """Even with no datasource it would take the copy for a new instance, and lock the password of its default user."""
    tree.write("/usr/bin/cloud-init", "")
    tree.convert()
    assert tree.exists("/etc/cloud/cloud-init.disabled") and not tree.exists("/etc/cloud/cloud.cfg.d")


def test_cloud_init_that_is_off_stays_off(tree):
    tree.write("/usr/bin/cloud-init", "")
    tree.write("/etc/cloud/cloud-init.disabled", "")
    tree.convert()
    assert tree.read("/etc/cloud/cloud-init.disabled") == ""
    assert tree.steps["cloud_init"]["state"] == "not_needed"


def test_guest_tools_are_named(tree):
    tree.write("/usr/sbin/waagent", "")
    report = tree.convert()
    assert any("Azure" in warning for warning in report["warnings"])


def test_leftovers_are_named(tree):
    tree.write("/etc/smartd.conf", "/dev/sda -a\n")
    report = tree.convert()
    assert any("/etc/smartd.conf" in warning for warning in report["warnings"])


def test_other_distribution_is_refused_and_described(tree):
    tree.write("/etc/os-release", 'ID="rocky"\nID_LIKE="rhel centos fedora"\nPRETTY_NAME="Rocky Linux 9.4"\n')
    found, message = tree.refused()
    assert found["system"]["id"] == "rocky" and "Rocky Linux 9.4" in message


def test_overlong_name_of_a_distribution_is_none(tree):
    tree.write("/etc/os-release", f"ID=debian\nID={'d' * 200}\nPRETTY_NAME=Strange\n")
    found, message = tree.refused()
    assert found["system"]["id"] == "" and "'Strange'" in message


def test_uefi_is_refused(tree):
    volumes = json.loads(json.dumps(VOLUMES))
    del volumes["disks"][0]["grub"]
    tree.write("/boot/efi/EFI/debian/grubx64.efi", "")
    found, message = tree.refused(volumes)
    assert found["firmware"] == "uefi" and "UEFI" in message


def test_more_volumes_than_are_looked_at(tree):
    """The root may be any of them; 256 were not enough for a host of many machines."""
    def many(count):
        volumes = json.loads(json.dumps(VOLUMES))
        volumes["volumes"] = [{"part": 9}] * (count - len(VOLUMES["volumes"])) + volumes["volumes"]
        return volumes

    done = subprocess.run([TOOL, tree.path, json.dumps(many(4097))], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "more than 4096" in done.stderr
    tree.write("/etc/fstab", "/dev/sda1 / ext4 defaults 0 1\n")
    assert tree.convert(many(4096))["root"]["uuid"] == ROOT_UUID
    assert tree.read("/etc/fstab") == f"UUID={ROOT_UUID} / ext4 defaults 0 1\n"


def test_no_kernel_is_refused(tree):
    (tree.path / f"boot/vmlinuz-{KERNEL}").unlink()
    assert "no kernel" in tree.refused()[1]


@pytest.mark.parametrize("path", ["/etc/fstab", "/boot/grub/grub.cfg", "/etc/default/grub"])
def test_links_never_lead_out_of_the_copy(tree, tmp_path_factory, path):
    """Absolute and climbing links mean the copy's own root, whatever they point to on this host."""
    outside = tmp_path_factory.mktemp("outside") / "victim"
    outside.write_text("/dev/sda1 / ext4 defaults 0 1\n")
    for target in (str(outside), "../" * 40 + str(outside)[1:]):
        link = tree.path / path.lstrip("/")
        link.unlink()
        link.symlink_to(target)
        subprocess.run([TOOL, tree.path, json.dumps(VOLUMES)], capture_output=True, check=False)
        assert outside.read_text() == "/dev/sda1 / ext4 defaults 0 1\n"


def test_linked_directories_stay_inside(tree, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "70-persistent-net.rules").write_text("mine\n")
    (tree.path / "etc/udev").mkdir()
    (tree.path / "etc/udev/rules.d").symlink_to(outside)
    (tree.path / "etc/systemd").symlink_to(outside)
    subprocess.run([TOOL, tree.path, json.dumps(VOLUMES)], capture_output=True, check=False)
    assert [path.name for path in outside.iterdir()] == ["70-persistent-net.rules"]


def test_file_reached_by_an_inner_link_is_changed(tree):
    tree.write("/etc/real-fstab", "/dev/sda1 / ext4 defaults 0 1\n")
    (tree.path / "etc/fstab").unlink()
    (tree.path / "etc/fstab").symlink_to("/etc/real-fstab")
    tree.convert()
    assert tree.read("/etc/real-fstab").startswith(f"UUID={ROOT_UUID}")


def test_fifo_in_the_way_does_not_stop_it(tree):
    (tree.path / "etc/default/grub").unlink()
    os.mkfifo(tree.path / "etc/default/grub")
    tree.convert(again=False)
    assert tree.steps["grub"]["state"] == "failed" and "not a regular file" in tree.steps["grub"]["summary"]


def test_owner_and_mode_stay(tree):
    tree.write("/etc/fstab", "/dev/sda1 / ext4 defaults 0 1\n")
    (tree.path / "etc/fstab").chmod(0o600)
    inode = (tree.path / "etc/fstab").stat().st_ino
    tree.convert()
    now = (tree.path / "etc/fstab").stat()
    assert (now.st_mode & 0o7777, now.st_ino) == (0o600, inode)
