"""Finding and mounting the copied system, and writing it back: filesystems on loop devices of this machine."""

import hashlib
import json
import os
import subprocess

import pytest

from tests.guest.test_steps import GRUB_CFG, KERNEL, TOOL, Tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="attaches loop devices and mounts them")


def run(*argv):
    return subprocess.run([str(arg) for arg in argv], check=True, capture_output=True, text=True, timeout=120).stdout.strip()


class Rig:
    """Filesystems in files on a tmpfs, each a partition of the only disk as far as the conversion is told."""

    def __init__(self, folder):
        self.folder = folder
        self.images = folder / "images"
        self.at = folder / "at"
        self.images.mkdir()
        self.at.mkdir()
        run("mount", "-t", "tmpfs", "replant-test", self.images)
        self.volumes = []
        self.loops = []

    def tree(self, name):
        path = self.folder / name
        path.mkdir()
        return Tree(path)

    def add(self, path, uuid, megabytes=32, **more):
        """A filesystem with what lies below `path`; returns its image."""
        image = self.images / f"{len(self.loops)}.img"
        with open(image, "wb") as file:
            file.truncate(megabytes << 20)
        run("mkfs.ext4", "-q", "-U", uuid, "-d", path, image)
        return self.attach(image, uuid, "ext4", **more)

    def attach(self, image, uuid, fstype, **more):
        self.loops.append(run("losetup", "-f", "--show", image))
        where = {} if more.get("mapper") else {"disk": 0, "part": len(self.loops)}
        self.volumes.append({"device": self.loops[-1], "fstype": fstype, "uuid": uuid, **where, **more})
        return image

    def convert(self, how="--mount", **more):
        """(report, or None, and what was said); nothing may stay mounted."""
        volumes = {"disks": [{"source": "/dev/sda", "grub": True}], "volumes": self.volumes, **more}
        script = '"$@"; status=$?; ! grep "$REPLANT_TEST_AT" /proc/self/mounts >&2 && exit $status'
        done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", TOOL, how, self.at, json.dumps(volumes)],
                              env={**os.environ, "REPLANT_TEST_AT": str(self.at)}, capture_output=True, text=True,
                              check=False, timeout=120)
        report = json.loads(done.stdout) if done.stdout else None
        return (report, "") if done.returncode == 0 else (None, done.stderr)

    def look(self, index, path, options="ro"):
        """A file of one of them; unmounted cleanly or it is not read at all."""
        script = 'mount -o "$1" "$2" "$3" && cat "$3/$4"'
        return subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", options, self.loops[index], str(self.at), path],
                              capture_output=True, text=True, check=False, timeout=60).stdout

    def close(self):
        for loop in self.loops:
            subprocess.run(["losetup", "-d", loop], check=False)
        subprocess.run(["umount", self.images], check=False)


@pytest.fixture
def rig(tmp_path):
    made = Rig(tmp_path)
    yield made
    made.close()


def uuid_of(n):
    return f"{n:08x}-1111-4111-8111-111111111111"


def test_what_is_reported_is_on_the_disk(rig):
    tree = rig.tree("root")
    tree.write("/etc/fstab", "/dev/sda1 / ext4 defaults 0 1\n")
    rig.add(tree.path, uuid_of(1))
    report, message = rig.convert()
    assert report, message
    assert rig.look(0, "etc/fstab", "ro,noload") == f"UUID={uuid_of(1)} / ext4 defaults 0 1\n"


def test_write_that_fails_fails_the_conversion(rig):
    """Every step has done its work, into memory; the disk takes none of it."""
    tree = rig.tree("root")
    image = rig.add(tree.path, uuid_of(1), 64)
    room = os.statvfs(rig.images)
    run("mount", "-o", f"remount,size={(room.f_blocks - room.f_bfree) * room.f_frsize + 4096}", rig.images)
    report, message = rig.convert()
    assert report is None
    assert "cannot write" in message and image.exists()


def test_mounts_behind_links_are_written_back(rig):
    """/var is a link, as the kernel of this machine must not follow it: it would lead to its own /data."""
    tree = rig.tree("root")
    tree.write("/etc/fstab", "/dev/sda1 / ext4 defaults 0 1\n/dev/sda2 /var/lib ext4 defaults 0 0\n")
    tree.write("/replant-test-data/lib/empty", "")
    os.symlink("/replant-test-data", tree.path / "var")
    rig.add(tree.path, uuid_of(1))
    data = rig.folder / "data"
    data.mkdir()
    rig.add(data, uuid_of(2))
    report, message = rig.convert()
    assert report, message
    for loop in rig.loops:
        run("e2fsck", "-fn", loop)


def split_boot(rig):
    """A system without its kernels, and a directory that has them."""
    tree, boot = rig.tree("root"), rig.tree("boot")
    for path in ("boot/grub/grub.cfg", f"boot/vmlinuz-{KERNEL}", f"boot/initrd.img-{KERNEL}"):
        target = boot.path / path.removeprefix("boot/")
        target.parent.mkdir(exist_ok=True)
        (tree.path / path).rename(target)
    return tree, boot


@pytest.mark.parametrize("point", ["/boot", "/boot/", "/boot//"])
def test_boot_of_its_own(rig, point):
    tree, boot = split_boot(rig)
    tree.write("/etc/fstab", f"/dev/sda1 / ext4 defaults 0 1\n/dev/sda2 {point} ext4 defaults 0 2\n")
    rig.add(tree.path, uuid_of(1))
    rig.add(boot.path, uuid_of(2))
    report, message = rig.convert()
    assert report, message
    assert f"root=UUID={uuid_of(1)}" in rig.look(1, "grub/grub.cfg")


def btrfs(rig, subvolumes):
    """{name: directory}; what is default is none of them."""
    image = rig.images / f"{len(rig.loops)}.img"
    with open(image, "wb") as file:
        file.truncate(128 << 20)
    run("mkfs.btrfs", "-q", "-U", uuid_of(9), image)
    rig.attach(image, uuid_of(9), "btrfs")
    script = 'mount "$1" "$2"; btrfs subvolume create "$2/$3"; cp -a "$4/." "$2/$3/"'
    for name, path in subvolumes.items():
        run("unshare", "-m", "sh", "-ec", script, "sh", rig.loops[-1], rig.at, name, path)


@pytest.mark.parametrize("option", ["subvol=@boot", "rw,subvol=/@boot,compress=zstd", "subvolid=257"])
def test_boot_on_a_subvolume(rig, option):
    tree, boot = split_boot(rig)
    tree.write("/etc/fstab", f"/dev/sda1 / btrfs subvol=@ 0 1\n/dev/sda1 /boot btrfs {option} 0 2\n")
    btrfs(rig, {"@": tree.path, "@boot": boot.path})
    report, message = rig.convert()
    assert report, message
    assert f"root=UUID={uuid_of(9)}" in rig.look(0, "grub/grub.cfg", "subvol=@boot")


def inventory(device, uuid=None, point="/", options="rw"):
    """As the agent sends it, with another filesystem before and behind."""
    return {"filesystems": [
        {"device": "/dev/sda9", "uuid": uuid_of(99), "mounts": [{"point": "/srv", "super_options": "rw"}]},
        {"device": device, "uuid": uuid, "mounts": [{"point": "/mnt", "super_options": options},
                                                    {"point": point, "super_options": options}]},
        {"device": "/dev/sdb9", "uuid": None, "mounts": []}]}


class Systems:
    """Several on one set of disks; `converted` says which one was, and sees that no other was touched."""

    def __init__(self, rig):
        self.rig, self.names, self.images = rig, [], []

    def add(self, name, uuid, fstab, grub=None, **more):
        tree = self.rig.tree(name)
        tree.write("/etc/os-release", f'ID=debian\nPRETTY_NAME="{name}"\n')
        tree.write("/etc/fstab", f"{fstab} / ext4 defaults 0 1\n" if fstab else "# nothing\n")
        tree.write("/boot/grub/grub.cfg", GRUB_CFG.replace("/dev/sda1", grub or fstab or "/dev/nowhere"))
        self.names.append(name)
        self.images.append(self.rig.add(tree.path, uuid, **more))

    def converted(self, **more):
        before = [hashlib.sha256(image.read_bytes()).digest() for image in self.images]
        report, message = self.rig.convert(**more)
        assert report, message
        after = [hashlib.sha256(image.read_bytes()).digest() for image in self.images]
        changed = [name for name, old, new in zip(self.names, before, after) if old != new]
        assert changed == [report["system"]["name"]]
        return changed[0], [text for text in report["warnings"] if text.startswith("system: ")]


@pytest.fixture
def systems(rig):
    return Systems(rig)


def test_the_servers_root_is_the_one_it_had_mounted(systems):
    for n, name in enumerate(("old", "middle", "new"), 1):
        systems.add(name, uuid_of(n), f"UUID={uuid_of(n)}")
    assert systems.converted(inventory=inventory("/dev/sda2", uuid_of(2))) == ("middle", [])
    assert systems.converted(inventory=inventory("/dev/sda3", uuid_of(3))) == ("new", [])


def test_snapshot_has_the_uuid_of_the_root(systems):
    for name in ("snap", "root"):
        systems.add(name, uuid_of(1), f"UUID={uuid_of(1)}", mapper=f"vg-{name}")
    assert systems.converted(inventory=inventory("/dev/vg/root", uuid_of(1))) == ("root", [])
    assert systems.converted(inventory=inventory("/dev/mapper/vg-root")) == ("root", [])


def test_unknown_root_is_the_one_fstab_names(systems):
    for name in ("snap", "root"):
        systems.add(name, uuid_of(1), "/dev/mapper/vg-root", "/dev/nowhere", mapper=f"vg-{name}")
    name, (warning,) = systems.converted()
    assert name == "root"
    assert warning == ("system: the copied disks hold several systems: '/dev/mapper/vg-snap' (snap), '/dev/mapper/vg-root' "
                       "(root); converted is the one on '/dev/mapper/vg-root' (root) (see that it is the server's)")


def test_root_of_a_container_is_not_the_servers(systems):
    systems.add("container", uuid_of(1), None, mapper="vg-container")
    systems.add("host", uuid_of(2), "/dev/mapper/vg-host", mapper="vg-host")
    name, warnings = systems.converted()
    assert name == "host" and len(warnings) == 1


def test_old_root_whose_grub_starts_the_new_one(systems):
    systems.add("old", uuid_of(1), "/dev/sda1", "/dev/sda2")
    systems.add("new", uuid_of(2), "/dev/sda2", "/dev/sda2")
    assert systems.converted()[0] == "new"


def test_system_on_the_disk_with_grub(systems):
    systems.add("data", uuid_of(1), f"UUID={uuid_of(1)}", disk=1)
    systems.add("boots", uuid_of(2), f"UUID={uuid_of(2)}", disk=0)
    assert systems.converted(disks=[{"source": "/dev/sda", "grub": True}, {"source": "/dev/sdb"}])[0] == "boots"


def test_test_boot_finds_what_was_converted(systems):
    """It isn't told the server's root, and what fstab says speaks for the other one."""
    systems.add("other", uuid_of(1), f"UUID={uuid_of(1)}")
    systems.add("server", uuid_of(2), None, "/dev/nowhere")
    assert systems.converted(inventory=inventory("/dev/sda2", uuid_of(2)))[0] == "server"
    report, message = systems.rig.convert(converted=True)
    assert report, message
    assert report["system"]["name"] == "server"


def test_systems_that_are_alike_are_told(systems):
    for n, name in enumerate(("one", "two"), 1):
        systems.add(name, uuid_of(n), f"UUID={uuid_of(n)}")
    name, (warning,) = systems.converted()
    assert name == "one" and "partition 1 of '/dev/sda' (one), partition 2 of '/dev/sda' (two)" in warning


def test_another_system_than_the_servers_is_refused(systems):
    systems.add("other", uuid_of(1), f"UUID={uuid_of(1)}")
    report, message = systems.rig.convert(inventory=inventory("/dev/sdc1", uuid_of(7)))
    assert report is None and f"'/dev/sdc1' (UUID {uuid_of(7)}) is not on the copied disks" in message


def break_superblock(image):
    """As blkid still knows it, but no kernel mounts it."""
    with open(image, "r+b") as file:
        file.seek(1024 + 24)  # s_log_block_size
        file.write(b"\xff\xff\0\0")


def test_root_that_can_not_be_mounted_is_not_replaced(systems):
    systems.add("data", uuid_of(1), f"UUID={uuid_of(1)}")
    systems.add("root", uuid_of(2), f"UUID={uuid_of(2)}")
    systems.add("other", uuid_of(3), f"UUID={uuid_of(3)}")
    for image in systems.images[:2]:
        break_superblock(image)
    report, message = systems.rig.convert(inventory=inventory("/dev/sda2", uuid_of(2)))
    assert report is None and f"cannot mount '{systems.rig.loops[1]}'" in message
    # another than the server's does not matter
    assert systems.converted(inventory=inventory("/dev/sda3", uuid_of(3))) == ("other", [])


def test_another_system_than_the_servers_is_told(systems):
    """The root was on something that is not among the copied disks, by a name that would be the same."""
    systems.add("other", uuid_of(1), f"UUID={uuid_of(1)}")
    name, (warning,) = systems.converted(inventory=inventory("/dev/mapper/crypt"))
    assert name == "other" and "the server's root '/dev/mapper/crypt' is not among the copied disks" in warning


@pytest.mark.parametrize("device", ["/dev/md0", "/dev/root", ""])
def test_name_that_means_nothing_here_is_no_warning(systems, device):
    systems.add("only", uuid_of(1), f"UUID={uuid_of(1)}")
    assert systems.converted(inventory=inventory(device)) == ("only", [])


def test_root_subvolume_is_the_one_it_had_mounted(rig):
    trees = {}
    for name in ("@", "work"):
        trees[name] = rig.tree("root" + name)
        trees[name].write("/etc/os-release", f'ID=debian\nPRETTY_NAME="{name}"\n')
    btrfs(rig, {name: tree.path for name, tree in trees.items()})
    said = inventory("/dev/sda1", uuid_of(9), options="rw,space_cache=v2,subvolid=257,subvol=/work")
    report, message = rig.convert(inventory=said)
    assert report, message
    assert report["system"]["name"] == "work"


def checked(rig, **more):
    report, message = rig.convert("--look", **more)
    assert report, message
    return report, {item["item"]: item for item in report["items"]}


def test_a_system_without_its_boot_is_incomplete(rig):
    """The tables can't be read here (the disk has no device), which isn't taken for empty disks or damage."""
    tree, _ = split_boot(rig)
    tree.write("/etc/fstab", f"UUID={uuid_of(1)} / ext4 defaults 0 1\nUUID={uuid_of(2)} /boot ext4 defaults 0 2\n")
    rig.add(tree.path, uuid_of(1))
    report, items = checked(rig)
    assert report["kind"] == "incomplete" and "'/boot' of '/etc/fstab'" in items["system_image"]["message"]
    tree.write("/etc/fstab", f"UUID={uuid_of(1)} / ext4 defaults 0 1\n")
    rig.volumes.clear()
    data = rig.folder / "data"
    data.mkdir()
    rig.add(data, uuid_of(3))
    report, items = checked(rig)
    assert report["kind"] == "no_system"


def test_filesystems_are_checked(rig):
    tree = rig.tree("root")
    tree.write("/etc/fstab", f"UUID={uuid_of(1)} / ext4 defaults 0 1\n")
    rig.add(tree.path, uuid_of(1))
    report, items = checked(rig)
    assert items["filesystems"]["level"] == "passed" and rig.loops[0] in items["filesystems"]["message"]
    assert items["partition_table"]["level"] == "warning"  # nothing says that it is damaged
    # neither a superblock that can't be read nor a program that gives up says "errors found"
    none = rig.images / "none.img"
    none.write_bytes(bytes(8 << 20))
    rig.attach(none, uuid_of(2), "ext4")
    rig.attach(none, uuid_of(3), "btrfs")
    _, items = checked(rig)
    assert items["filesystems"]["level"] == "warning" and "could not be checked" in items["filesystems"]["message"]
    # a directory's block overwritten
    data = rig.folder / "data"
    (data / "folder").mkdir(parents=True)
    (data / "folder" / "file").write_text("x")
    image = rig.add(data, uuid_of(4))
    run("debugfs", "-w", "-R", "clri folder", image)
    _, items = checked(rig)
    assert items["filesystems"]["level"] == "critical" and f"'{rig.loops[3]}' is damaged" in items["filesystems"]["message"]


GRUB_SECTOR = (b"\xeb\x63GRUB ".ljust(0x5c, b"\0") + (1).to_bytes(8, "little")).ljust(440, b"\0")


def test_boot_sectors(rig):
    tree = rig.tree("root")
    tree.write("/etc/fstab", f"UUID={uuid_of(1)} / ext4 defaults 0 1\n")
    tree.write("/boot/grub/grub.cfg", GRUB_CFG.replace("/dev/sda1", f"UUID={uuid_of(1)}"))
    tree.write("/usr/sbin/grub-install", "")
    tree.write("/usr/lib/grub/i386-pc/boot.img", "")
    rig.add(tree.path, uuid_of(1))
    image = rig.images / "disk.img"
    image.write_bytes(bytes(16 << 20))
    disk = run("losetup", "-f", "--show", image)

    def look(code, kind="83", core=b"\1"):
        subprocess.run(["sfdisk", "-q", disk], input=f"label: dos\nstart=2048, size=4096, type={kind}\n", text=True, check=True,
                       capture_output=True)
        with open(disk, "r+b") as file:
            file.write(code.ljust(440, b"\0"))
            file.seek(512)
            file.write(core.ljust(512, b"\0"))
        _, items = checked(rig, disks=[{"source": "/dev/sda", "device": disk}])
        assert items["partition_table"]["level"] == "passed", items
        return items["boot_mode"]["level"], items["grub"]["level"], items["boot_mode"]["value"]["bios"], items["grub"]["repairable"]

    try:
        assert look(GRUB_SECTOR) == ("passed", "passed", True, False)
        assert look(GRUB_SECTOR, core=b"") == ("passed", "critical", True, True)
        assert look(b"") == ("critical", "critical", False, True)
        assert look(b"\xfa\xfc another loader") == ("warning", "warning", False, False)
        assert look(b"", kind="ef") == ("warning", "warning", False, False)
    finally:
        run("losetup", "-d", disk)


def test_only_tables_are_damaged_tables(rig):
    tree = rig.tree("root")
    tree.write("/etc/fstab", f"UUID={uuid_of(1)} / ext4 defaults 0 1\n")
    rig.add(tree.path, uuid_of(1))
    image = rig.images / "disk.img"
    image.write_bytes(bytes(16 << 20))
    subprocess.run(["sfdisk", "-q", image], input="label: dos\nstart=2048, size=8192, type=8e\n", text=True, check=True, capture_output=True)
    with open(image, "r+b") as file:
        file.seek(2049 * 512)  # LVM's label, with a sum that is wrong
        file.write(b"LABELONE" + (1).to_bytes(8, "little") + bytes(4) + (32).to_bytes(4, "little") + b"LVM2 001")
    disk = run("losetup", "-f", "--show", image)
    try:
        _, items = checked(rig, disks=[{"device": disk}])
        assert items["partition_table"]["level"] == "warning" and "LVM" in items["partition_table"]["message"]
    finally:
        run("losetup", "-d", disk)
    os.truncate(image, 3 << 20)
    disk = run("losetup", "-f", "--show", image)
    try:
        _, items = checked(rig, disks=[{"device": disk}])
        assert items["partition_table"]["level"] == "critical" and "beyond the end" in items["partition_table"]["message"]
    finally:
        run("losetup", "-d", disk)
