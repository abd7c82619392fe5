"""Images broken on purpose, in each way that the check names: found, repaired where it says so, and booted.

Slow: the appliance looks at real servers. They are broken with libguestfs, which knows nothing of Replant.
"""

import json
import os
import pathlib
import shutil
import subprocess
import time

import pytest

from tests.boot.test_convert_boot import USER, Failed, digest, provider  # noqa: F401
from tests.lab import build, qemu, servers

pytestmark = pytest.mark.xdist_group("image_check")

SERVER = "debian11-plain"
WRONG = "deadbeef-dead-4ead-8ead-deadbeefdead"


@pytest.fixture(scope="module")
def image(provider):  # noqa: F811
    """A sound one, and what the check says of it."""
    job, _ = provider.job(build.disks(servers.find(SERVER)))
    provider.call("convert", job, json.dumps({"disks": [{"source": "/dev/sda"}]}))
    name = provider.new_id("image")
    _, manifest = provider.call("image-create", job, name)
    started = time.monotonic()
    _, report = provider.call("check", name)
    print(f"a check takes {time.monotonic() - started:.0f} s")
    return {"image": name, "disk": pathlib.Path(manifest["disks"][0]["path"]), "report": report, "sha256": manifest["disks"][0]["sha256"]}


def levels(items):
    return {item["item"]: item["level"] for item in items}


def bad(items):
    return {name for name, level in levels(items).items() if level != "passed"}


def layer(provider, image):  # noqa: F811
    """Another image on the sound one, to be broken."""
    name = provider.new_id("image")
    folder = provider.folder / "images" / name
    folder.mkdir(mode=0o755)
    disk = folder / "disk0.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", image["disk"], disk], check=True)
    shutil.copy2(image["disk"].parent / "report.json", folder)
    (folder / "manifest.json").write_text(json.dumps({"image": name, "disks": [{"file": "disk0.qcow2", "format": "qcow2"}]}))
    if USER != "-":
        for path in (folder, disk):
            shutil.chown(path, USER)
    return name, disk


def fish(disk, script, options=("-m", "/dev/sda1")):
    """A shell script, run in libguestfs's own machine with the system's root at /sysroot."""
    path = disk.parent / "break.sh"
    path.write_text("set -e\n" + script)
    done = subprocess.run(["guestfish", "--rw", "--format=qcow2", "-a", disk, *options, "upload", path, "/break.sh", ":",
                           "debug", "sh", "sh /sysroot/break.sh", ":", "rm", "/break.sh"], text=True, capture_output=True,
                          env=qemu.guestfs_environment(), timeout=600, check=False)
    path.unlink()
    assert done.returncode == 0, done.stderr
    if USER != "-":
        shutil.chown(disk, USER)
    return done.stdout


def shell(command):
    return command + "\n"


ROOT = "/sysroot"
STATIC = "auto lo\\niface lo inet loopback\\nauto ens3\\niface ens3 inet static\\n address 192.0.2.7/24\\n"
FSTAB = shell(f"sed -i 's/^UUID=[^ \\t]*/UUID={WRONG}/' {ROOT}/etc/fstab; grep -q {WRONG} {ROOT}/etc/fstab")
GRUB_ROOT = shell(f"sed -i 's/root=UUID=[^ ]*/root=UUID={WRONG}/' {ROOT}/boot/grub/grub.cfg; grep -q {WRONG} {ROOT}/boot/grub/grub.cfg")
GRUB_SEARCH = shell(f"sed -i '/search/s/[^ ]*-[0-9a-f]*$/{WRONG}/' {ROOT}/boot/grub/grub.cfg; grep -q {WRONG} {ROOT}/boot/grub/grub.cfg")
NETWORK = shell(f"printf '{STATIC}' >{ROOT}/etc/network/interfaces")
SECTOR = shell("head -c 440 /dev/zero | dd of=/dev/sda conv=notrunc bs=440 count=1 2>/dev/null; sync")

# name: how, which items say so, whether they are well again after the repair
BREAKS = {
    "fstab names another root": (FSTAB, {"fstab"}, True),
    "fstab names the disk of the old home": (shell(f"sed -i 's,^UUID=[^ \\t]*,/dev/sda1,' {ROOT}/etc/fstab"), {"fstab"}, True),
    "fstab names a disk that is gone": (shell(f"echo '/dev/sdz1 /data ext4 defaults 0 2' >>{ROOT}/etc/fstab"), {"fstab"}, True),
    "the kernel is told another root": (GRUB_ROOT, {"grub"}, True),
    "grub looks for another filesystem": (GRUB_SEARCH, {"grub"}, True),
    "the boot sector is empty": (SECTOR, {"boot_mode", "grub"}, True),
    "grub's second stage is empty": (shell("dd if=/dev/zero of=/dev/sda bs=512 seek=1 count=62 conv=notrunc,fsync 2>/dev/null"), {"grub"}, True),
    "a fixed address": (NETWORK, {"dhcp"}, True),
    "a rule for the old card": (shell(f"echo x >{ROOT}/etc/udev/rules.d/70-persistent-net.rules"), {"dhcp"}, True),
    "local time, no shadow file, no host keys": (
        shell(f"printf '0 0 0\\n0\\nLOCAL\\n' >{ROOT}/etc/adjtime; rm {ROOT}/etc/shadow {ROOT}/etc/ssh/ssh_host_*"), {"rtc", "accounts", "sshd"}, False),
    "no kernel": (shell(f"rm {ROOT}/boot/vmlinuz-*"), {"grub", "kernel_version", "kernel_files", "virtio", "nvme"}, False),
    "no loader of programs": (shell(f"rm -rf {ROOT}/lib64"), {"lib_links"}, False),
}


def test_a_sound_image_is_found_sound(image):
    report = image["report"]
    assert report["kind"] == "linux" and report["system"]["id"] == "debian"
    # the lab's servers have no agents of clouds
    assert bad(report["items"]) == {"online_resize", "guest_agent"}, report["items"]
    assert report["verdict"] == "warning"
    assert {item["item"] for item in report["items"] if item["high"]} >= {"virtio", "nvme", "fstab", "grub", "dhcp"}
    assert digest(image["disk"]) == image["sha256"]


@pytest.mark.parametrize("name", BREAKS)
def test_break_is_found_and_repaired(provider, image, name):  # noqa: F811
    script, expected, repaired = BREAKS[name]
    broken, disk = layer(provider, image)
    fish(disk, script)
    before = digest(disk)
    other = provider.new_id("image")
    _, report = provider.call("repair", broken, other)
    usual = bad(image["report"]["items"])
    items = levels(report["before"])
    gone = set(levels(image["report"]["items"])) - set(items)
    assert (bad(report["before"]) - usual) | gone == expected, report["before"]
    assert digest(disk) == before, "the image itself is left as it was"
    found = {entry["item"]: entry["repaired"] for entry in report["repaired"]}
    if repaired:
        assert found == dict.fromkeys(expected, True), report
        assert bad(report["items"]) == usual, report["items"]
        assert any(file for step in report["steps"] for file in step["files"]) or "sector" in name or "second" in name
        with pytest.raises(Failed, match=f"{other}.*stands on"):
            provider.call("image-remove", broken)
    else:
        assert found == {} and bad(report["items"]) == bad(report["before"])
    provider.call("image-remove", other)
    provider.call("image-remove", broken)


def test_all_at_once_and_it_boots(provider, image):  # noqa: F811
    broken, disk = layer(provider, image)
    fish(disk, FSTAB + GRUB_ROOT + GRUB_SEARCH + NETWORK + SECTOR)
    other = provider.new_id("image")
    _, report = provider.call("repair", broken, other)
    assert bad(report["before"]) - bad(image["report"]["items"]) == {"fstab", "grub", "dhcp", "boot_mode"}
    assert bad(report["items"]) == bad(image["report"]["items"])
    files = {file["path"]: file for step in report["steps"] for file in step["files"]}
    assert WRONG in files["/etc/fstab"]["old"] and {"/boot/grub/grub.cfg", "/etc/network/interfaces"} <= set(files)
    assert report["manifest"]["base"] == broken and report["manifest"]["disks"][0]["base"] == f"../{broken}/disk0.qcow2"
    with pytest.raises(Failed, match=f"{other}.*stands on"):
        provider.call("image-remove", broken)
    # asked again, as by anybody
    _, again = provider.call("check", other)
    assert levels(again["items"]) == levels(image["report"]["items"])
    _, verdict = provider.call("test-boot", other)
    assert verdict["verified"] is True, verdict


def test_an_initramfs_that_is_cut_is_built_anew(provider, image):  # noqa: F811
    """Takes minutes: the system's own update-initramfs runs."""
    broken, disk = layer(provider, image)
    fish(disk, shell(f"for f in {ROOT}/boot/initrd.img-*; do truncate -s 1000000 $f; done"))
    other = provider.new_id("image")
    _, report = provider.call("repair", broken, other)
    # nvme is built into Debian's cloud kernel, so it is there all the same.
    assert bad(report["before"]) == bad(image["report"]["items"]) | {"kernel_files", "virtio"}
    assert bad(report["items"]) == bad(image["report"]["items"]), report["items"]
    _, verdict = provider.call("test-boot", other)
    assert verdict["verified"] is True, verdict


# ---- what is no image ----

def disk_file(tmp_path, kind):
    path = tmp_path / "disk.raw"
    if kind == "iso":
        # no more of ECMA-119 than that it is one: the primary volume descriptor, and the end of the set
        sector = b"\1CD001\1\0" + b" " * 32 + b"TEST".ljust(32)
        with open(path, "wb") as file:
            file.truncate(4 << 20)
            file.seek(16 * 2048)
            file.write(sector.ljust(2048, b"\0") + b"\xffCD001\1".ljust(2048, b"\0"))
    elif kind in ("data", "windows", "encrypted"):
        with open(path, "wb") as file:
            file.truncate(16 << 20)
            file.write({"data": os.urandom(4096), "windows": b"\xebR\x90NTFS    \0\x02\x08", "encrypted": b""}[kind])
        if kind == "encrypted":
            subprocess.run(["cryptsetup", "luksFormat", "-q", "--type", "luks1", "--iter-time", "1", path, "-"], input=b"secret",
                           check=True)
        elif kind == "windows":
            subprocess.run(["mkntfs", "-F", "-Q", "-q", path], check=True, capture_output=True)
    else:
        with open(path, "wb") as file:
            file.truncate(64 << 20)
        if kind != "empty":
            subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", path], check=True)
        if kind == "broken":
            with open(path, "r+b") as file:
                file.seek(4096)  # the group descriptors, and what follows
                file.write(os.urandom(1 << 20))
    return path


@pytest.mark.parametrize("kind, tool", [("iso", None), ("empty", None), ("broken", None), ("no_system", None), ("data", None),
                                        ("windows", "mkntfs"), ("encrypted", "cryptsetup")])
def test_what_is_no_image(provider, tmp_path, kind, tool):  # noqa: F811
    if tool and not shutil.which(tool):
        pytest.skip(f"'{tool}' is not installed")
    name, _ = provider.unconverted_image([disk_file(tmp_path, kind)])
    (provider.folder / "images" / name / "manifest.json").write_text("{}")
    _, report = provider.call("check", name)
    (item, *_) = report["items"]
    assert report["verdict"] == item["level"] == "critical" and item["item"] == "system_image"
    assert report["kind"] == {"data": "no_system"}.get(kind, kind), report
    assert item["message"] and item["remedy"]
    # there is nothing to repair, and nothing else is claimed
    assert {entry["item"] for entry in report["items"]} <= {"system_image", "platform"}


def test_a_truncated_disk(provider, tmp_path):  # noqa: F811
    (disk,) = build.disks(servers.find(SERVER))
    subprocess.run(["cp", "--sparse=always", disk, tmp_path / "short"], check=True)
    os.truncate(tmp_path / "short", 256 << 20)
    name, _ = provider.unconverted_image([tmp_path / "short"])
    (provider.folder / "images" / name / "manifest.json").write_text("{}")
    _, report = provider.call("check", name)
    assert report["kind"] == "broken" and report["verdict"] == "critical"
    assert "beyond the end" in json.dumps(report["disks"]["table_warnings"])
