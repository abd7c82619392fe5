"""Finding and mounting the copied system, and writing it back: filesystems on loop devices of this machine."""

import json
import os
import subprocess

import pytest

from tests.guest.test_steps import KERNEL, TOOL, Tree

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

    def add(self, path, uuid, megabytes=32, part=None, **more):
        """A filesystem with what lies below `path`; returns its image."""
        image = self.images / f"{len(self.loops)}.img"
        with open(image, "wb") as file:
            file.truncate(megabytes << 20)
        run("mkfs.ext4", "-q", "-U", uuid, "-d", path, image)
        return self.attach(image, uuid, "ext4", part, **more)

    def attach(self, image, uuid, fstype, part=None, **more):
        self.loops.append(run("losetup", "-f", "--show", image))
        where = {} if more.get("mapper") else {"disk": 0, "part": part or len(self.loops)}
        self.volumes.append({"device": self.loops[-1], "fstype": fstype, "uuid": uuid, **where, **more})
        return image

    def convert(self, **more):
        """(report, or None, and what was said); nothing may stay mounted."""
        volumes = {"disks": [{"source": "/dev/sda", "grub": True}], "volumes": self.volumes, **more}
        script = '"$@"; status=$?; ! grep "$REPLANT_TEST_AT" /proc/self/mounts >&2 && exit $status'
        done = subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", TOOL, "--mount", self.at, json.dumps(volumes)],
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
