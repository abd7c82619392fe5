"""A copied disk is converted in the appliance and booted, by the provider alone (no agent, no center).

Slow: whole machines start. What is claimed is checked with libguestfs, which knows nothing of Replant.
"""

import json
import mmap
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time

import pytest

from tests.boot.conftest import long
from tests.lab import build, cache, qemu, servers
from tests.lab.center import center_cache

pytestmark = pytest.mark.xdist_group("convert")

BUILD = pathlib.Path(os.environ.get("REPLANT_BUILD") or cache.SOURCE / "build")
# QEMU gives up root for this user
USER = "nobody" if os.geteuid() == 0 else "-"


class Failed(Exception):
    pass


class Provider:
    def __init__(self, folder, kept=None):
        self.folder, self.kept = folder, kept or center_cache(folder)
        self.folder.chmod(0o755)
        self.count = 0
        # As installed, but closed to the user QEMU runs as, like a checkout below /root.
        self.programs = shutil.copytree(cache.SOURCE / "appliance", folder / "programs/appliance").parent
        shutil.copy2(cache.SOURCE / "tools/appliance-kernel", self.programs / "appliance")
        shutil.copy2(BUILD / "src/transition/replant-transition", self.programs)
        self.programs.chmod(0o700)

    def command(self, *words):
        return [BUILD / "tests/boot/provider_tool", self.folder, self.kept, self.programs, USER, *words]

    def call(self, *words):
        """(events, result)"""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, check=False)
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        if done.returncode:
            raise Failed(done.stderr.strip())
        return [line for line in lines if "event" in line], next((line for line in lines if "event" not in line), None)

    def new_id(self, noun):
        self.count += 1
        return f"{noun}-{self.count:016x}"

    def job(self, disks):
        """What a receiver leaves: the disks, owned by its user."""
        job = self.new_id("job")
        replica = self.folder / "jobs" / job / "replica"
        self._fill(replica, disks)
        return job, replica

    def unconverted_image(self, disks):
        image = self.new_id("image")
        folder = self.folder / "images" / image
        for i, raw in enumerate(self._fill(folder, disks)):
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", raw.name,
                            folder / f"disk{i}.qcow2"], check=True)
            if USER != "-":
                shutil.chown(folder / f"disk{i}.qcow2", USER)
        return image, folder

    def _fill(self, folder, disks):
        folder.mkdir(parents=True, mode=0o700)
        made = []
        for i, disk in enumerate(disks):
            made.append(folder / f"disk{i}.raw")
            subprocess.run(["cp", "--sparse=always", disk, made[-1]], check=True)
        if USER != "-":
            for path in [folder, *made]:
                shutil.chown(path, USER)
        return made


@pytest.fixture(scope="module")
def provider():
    # not below pytest's own directory, which only root may enter
    with tempfile.TemporaryDirectory(prefix="replant-test-", dir="/var/tmp") as folder:
        yield Provider(pathlib.Path(folder))


def fish(disk, commands):
    env = qemu.guestfs_environment()
    done = subprocess.run(["guestfish", "--ro", "--format=qcow2", "-a", disk], input="run\n" + commands, env=env,
                          capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def digest(path):
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]


def patch(disk, old, new):
    """Changes every occurrence in the raw disk; same length, so that the filesystem stays right."""
    assert len(old) == len(new)
    count = 0
    with open(disk, "r+b") as file, mmap.mmap(file.fileno(), 0) as data:
        at = data.find(old)
        while at >= 0:
            data[at:at + len(old)] = new
            count += 1
            at = data.find(old, at + 1)
    assert count


@pytest.fixture(scope="module")
def lvm(provider):
    """An image made of the server with LVM, two filesystems and a device name in its fstab."""
    disks = build.disks(servers.find("debian12-lvm-bios"))
    job, replica = provider.job(disks)
    events, report = provider.call("convert", job, json.dumps({"disks": [{"source": "/dev/sda"}]}))
    image = provider.new_id("image")
    _, manifest = provider.call("image-create", job, image)
    assert not replica.exists()
    return {"image": image, "report": report, "events": events, "manifest": manifest, "job": job,
            "disks": disks, "disk": manifest["disks"][0]["path"]}


def test_report(lvm):
    steps = {step["name"]: step for step in lvm["report"]["steps"]}
    assert [step["name"] for step in steps.values() if step["state"] == "failed"] == []
    assert steps["fstab"]["state"] == "done" and "/dev/sda2" in steps["fstab"]["files"][0]["old"]
    assert steps["initramfs"]["state"] == "not_needed"
    assert [event["name"] for event in lvm["events"] if event["event"] == "step"] == list(steps)
    assert lvm["report"]["system"]["id"] == "debian" and lvm["report"]["firmware"] == "bios"
    assert lvm["report"]["seconds"] < 60


def test_replica_below_is_untouched(lvm):
    folder = pathlib.Path(lvm["disk"]).parent
    for i, disk in enumerate(lvm["disks"]):
        subprocess.run(["cmp", disk, folder / f"disk{i}.raw"], check=True)


def test_manifest_tells_the_truth(lvm, provider):
    assert digest(lvm["disk"]) == lvm["manifest"]["disks"][0]["sha256"]
    # again, as after a crash of the center
    assert provider.call("image-create", lvm["job"], lvm["image"])[1] == lvm["manifest"]
    (provider.folder / "images" / lvm["image"] / "manifest.json").unlink()
    again = provider.call("image-create", lvm["job"], lvm["image"])[1]
    for manifest in (again, lvm["manifest"]):
        del manifest["disks"][0]["allocated"]  # the host allocates late
    assert again == lvm["manifest"]


def test_filesystems_are_clean_and_files_are_right(lvm):
    boot = servers.find("debian12-lvm-bios").device("/boot")
    out = fish(lvm["disk"], f"""
debug sh "e2fsck -fn /dev/vg0/root; echo root $?"
debug sh "e2fsck -fn {boot}; echo boot $?"
debug sh "xfs_repair -n /dev/vg0/data >/dev/null 2>&1; echo data $?"
mount-ro /dev/vg0/root /
mount-ro /dev/sda2 /boot
echo FSTAB
cat /etc/fstab
echo UUID
vfs-uuid /dev/sda2
""")
    assert re.findall("^(?:root|boot|data) .*", out, re.M) == ["root 0", "boot 0", "data 0"], out
    fstab, uuid = out.split("FSTAB\n")[1].split("UUID\n")
    assert f"UUID={uuid.strip()} /boot ext4" in fstab and "/dev/sd" not in fstab


@long("test_migrate.py boots the same server")
def test_boot_is_verified(lvm, provider):
    _, report = provider.call("test-boot", lvm["image"])
    assert report["verified"] is True, report
    assert report["state"] == "running" and report["problems"] == [] and report["hostname"] == "debian12-lvm-bios"
    assert {"/", "/boot", "/srv/data"} <= {mount["target"] for mount in report["mounts"]}
    assert {22, 80} <= set(report["listening"]) and report["addresses"]
    assert pathlib.Path(report["screenshot"]).read_bytes().startswith(b"\x89PNG")
    # nothing of the test is left in the image, and nothing of the run on the host
    assert digest(lvm["disk"]) == lvm["manifest"]["disks"][0]["sha256"]
    assert list((provider.folder / "runs").iterdir()) == []


@pytest.mark.parametrize("format", ["qcow2", pytest.param("raw", marks=long("test_migrate.py has it")),
                                    pytest.param("vmdk", marks=long("test_migrate.py has it")), "vhdx"])
def test_export(lvm, provider, tmp_path, format):
    events, _ = provider.call("export", lvm["image"], "0", format, tmp_path / "out")
    compare = subprocess.run(["qemu-img", "compare", "-f", "qcow2", "-F", format, lvm["disk"], tmp_path / "out"],
                             capture_output=True, text=True, check=False)
    assert compare.returncode == 0, compare.stdout + compare.stderr
    assert events[-1]["percent"] == 100
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_killed_conversion_is_done_again(provider):
    """The appliance's QEMU dies in the middle; the second conversion starts from the untouched replica."""
    server = servers.find("debian11-plain")
    disks = build.disks(server)
    job, replica = provider.job(disks)
    process = subprocess.Popen(provider.command("convert", job), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "step" in process.stdout.readline()
    child = subprocess.run(["pgrep", "-P", str(process.pid), "qemu-system"], capture_output=True, text=True, check=True)
    os.kill(int(child.stdout), signal.SIGKILL)
    _, message = process.communicate()
    assert process.returncode == 1 and "ended before it was done" in message
    assert not (replica / "report.json").exists()
    with pytest.raises(Failed, match="has not been converted"):
        provider.call("image-create", job, provider.new_id("image"))
    provider.call("convert", job)
    subprocess.run(["cmp", disks[0], replica / "disk0.raw"], check=True)
    image = provider.new_id("image")
    _, manifest = provider.call("image-create", job, image)
    assert "fsck 0" in fish(manifest["disks"][0]["path"], f'debug sh "e2fsck -fn {server.device("/")}; echo fsck $?"\n')
    _, report = provider.call("test-boot", image)
    assert report["verified"] is True, report
    provider.call("image-remove", image)
    provider.call("job-remove", job)
    assert not (provider.folder / "images" / image).exists() and not (provider.folder / "jobs" / job).exists()


def test_qemu_dies_with_the_center(provider):
    job, _ = provider.job(build.disks(servers.find("debian11-plain")))
    process = subprocess.Popen(provider.command("convert", job), stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    child = int(subprocess.run(["pgrep", "-P", str(process.pid), "qemu-system"], capture_output=True, text=True,
                               check=True).stdout)
    process.kill()
    process.communicate()
    end = time.monotonic() + 10
    while os.path.exists(f"/proc/{child}") and time.monotonic() < end:
        time.sleep(0.1)
    assert not os.path.exists(f"/proc/{child}")


def test_receiver_dies_with_the_center(provider):
    """It gives up root for the user, which makes the kernel forget whose death is its own."""
    process = subprocess.Popen(provider.command("receive", provider.new_id("job"), "run-00000000000000aa", "ab" * 32, "-"),
                               stdout=subprocess.PIPE, text=True)
    assert json.loads(process.stdout.readline())["event"] == "listening"
    child = int(subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout)
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while alive(child) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(child)


def alive(pid):
    """Not counting one that only nobody has asked for its status yet."""
    try:
        return ") Z " not in pathlib.Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_cancel(provider):
    job, _ = provider.job(build.disks(servers.find("debian11-plain")))
    process = subprocess.Popen(provider.command("convert", job), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    time.sleep(2)
    process.terminate()
    _, message = process.communicate(timeout=10)
    assert "stopped" in message
    # Of this job: others, killed on purpose, are cleared when they are run again.
    assert not [path for path in (provider.folder / "runs").iterdir() if job in path.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a filesystem of its own")
def test_full_disk_while_converting(provider):
    """Conversion stops with a sentence, leaves the replica alone, and goes through once there is room."""
    (disk,) = build.disks(servers.find("debian11-plain"))
    with tempfile.TemporaryDirectory(prefix="replant-test-", dir="/var/tmp") as folder:
        room = os.stat(disk).st_blocks * 512 + (8 << 20)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={room}", "replant-test", folder], check=True)
        try:
            small = Provider(pathlib.Path(folder), provider.kept)
            job, replica = small.job([disk])
            left = os.statvfs(folder)
            (replica.parent / "ballast").write_bytes(b"x" * max(0, left.f_bavail * left.f_frsize - (1 << 20)))
            with pytest.raises(Failed, match="the center's disk is full .free some space, then start the job again."):
                small.call("convert", job)
            assert not (replica / "report.json").exists()
            assert not list((small.folder / "runs").iterdir())
            (replica.parent / "ballast").unlink()
            subprocess.run(["mount", "-o", f"remount,size={room + (1 << 30)}", folder], check=True)
            _, report = small.call("convert", job)
            assert [step for step in report["steps"] if step["state"] == "failed"] == []
            subprocess.run(["cmp", disk, replica / "disk0.raw"], check=True)
            subprocess.run(["qemu-img", "check", "-q", replica / "disk0.qcow2"], check=True)
        finally:
            subprocess.run(["umount", folder], check=True)


def test_cancel_while_the_appliance_is_built(provider, tmp_path):
    """The first job of a host waits minutes for it: what is stopped then ends at once, with all it started."""
    (tmp_path / "disk").write_bytes(b"x" * (1 << 20))
    job, _ = provider.job([tmp_path / "disk"])
    programs = tmp_path / "programs"
    (programs / "appliance").mkdir(parents=True)
    script, began = programs / "appliance" / "build.sh", tmp_path / "began"
    script.write_text(f"#!/bin/bash\nsleep 100 & echo $$ $! >{began}.new\nmv {began}.new {began}\nsleep 100\n")
    script.chmod(0o755)
    command = provider.command("convert", job)
    command[3] = programs
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 20
    while not began.exists() and time.monotonic() < end:
        time.sleep(0.05)
    started = [int(pid) for pid in began.read_text().split()]
    process.terminate()
    _, message = process.communicate(timeout=10)
    assert "stopped" in message
    while any(map(alive, started)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(map(alive, started))


def converted(provider, tmp_path):
    """What a conversion leaves, without one."""
    (tmp_path / "disk").write_bytes(b"x" * (1 << 20))
    job, replica = provider.job([tmp_path / "disk"])
    overlay(replica / "disk0.qcow2", "disk0.raw", "raw")
    (replica / "report.json").write_text('{"steps": [], "boot_disk": 0}')
    return job, replica


def overlay(path, backing, backing_format):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", backing_format, "-b", backing, path], check=True)
    if USER != "-":
        shutil.chown(path, USER)


def test_killed_while_the_image_is_made(provider, tmp_path):
    """Each state a kill can leave is gone on from: before the rename, behind it, and behind the manifest."""
    job, replica = converted(provider, tmp_path)
    image = provider.new_id("image")
    request = json.dumps({"image": image, "job": job})
    folder = provider.folder / "images" / image
    with pytest.raises(Failed, match="no copied disks"):
        provider.call("convert", provider.new_id("job"), request)
    replica.rename(folder)
    for _ in range(2):
        assert provider.call("convert", job, request)[1] == {"steps": [], "boot_disk": 0}
        _, manifest = provider.call("image-create", job, image, request)
        assert digest(folder / "disk0.qcow2") == manifest["disks"][0]["sha256"]
        assert json.loads((folder / "manifest.json").read_text())["meta"]["job"] == job
    # the user QEMU runs as reads it and can't change it
    for path in (folder, folder / "disk0.raw", folder / "disk0.qcow2"):
        assert path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 0o027
    provider.call("job-remove", job)
    _, again = provider.call("image-create", job, image, request)
    assert again == manifest


@pytest.mark.parametrize("plant", ["backing", "link", "hardlink"])
def test_files_of_others_never_become_an_image(provider, tmp_path, plant):
    job, replica = converted(provider, tmp_path)
    victim = provider.folder / f"victim-{plant}"
    victim.write_bytes(b"secret" * 1000)
    victim.chmod(0o600)
    (replica / "disk0.qcow2").unlink()
    if plant == "backing":
        victim.chmod(0o644)
        overlay(replica / "disk0.qcow2", victim, "raw")
        victim.chmod(0o600)
    elif plant == "link":
        (replica / "disk0.qcow2").symlink_to(victim)
    else:
        os.link(victim, replica / "disk0.qcow2")
    before = victim.stat()
    with pytest.raises(Failed):
        provider.call("image-create", job, provider.new_id("image"))
    after = victim.stat()
    assert (before.st_mode, before.st_uid, before.st_gid) == (after.st_mode, after.st_uid, after.st_gid)


def test_removal_follows_no_link(provider, tmp_path):
    job, replica = converted(provider, tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("x")
    (replica / "deep" / "er").mkdir(parents=True)
    (replica / "deep" / "er" / "link").symlink_to(tmp_path / "mine")
    (replica / "deep" / "er" / "file").write_text("x")
    provider.call("job-remove", job)
    assert not replica.exists() and (tmp_path / "mine" / "file").exists()


@pytest.mark.parametrize("format", ["qcow2", "raw", "vmdk", "vhdx"])
def test_export_of_a_small_image(provider, tmp_path, format):
    job, _ = converted(provider, tmp_path)
    image = provider.new_id("image")
    _, manifest = provider.call("image-create", job, image)
    provider.call("export", image, "0", format, tmp_path / "out")
    subprocess.run(["qemu-img", "compare", "-f", "qcow2", "-F", format, manifest["disks"][0]["path"], tmp_path / "out"],
                   check=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "out"]


def test_disk_without_a_system(provider, tmp_path):
    (tmp_path / "empty").write_bytes(b"\0" * (8 << 20))
    job, _ = provider.job([tmp_path / "empty"])
    with pytest.raises(Failed, match="-2: no filesystem on the copied disks holds a Linux system"):
        provider.call("convert", job)


@long("test_broken_copies_are_told_apart")
def test_unconverted_copy_is_found_out(provider):
    """The fstab still says /dev/sda2: systemd waits 90 s, then opens its emergency shell."""
    image, _ = provider.unconverted_image(build.disks(servers.find("debian12-lvm-bios")))
    _, report = provider.call("test-boot", image)
    assert report["verified"] is False and report["state"] == "emergency"
    assert {"emergency", "missing_mount"} <= {problem["code"] for problem in report["problems"]}
    assert "/boot" in report["missing_mounts"]


@pytest.mark.parametrize("old, new, state", [
    (b"\tinitrd\t", b"\t#nitrd\t", "kernel_panic"),
    (b"root=UUID=", b"root=UUId=", "initramfs_shell"),
    (None, None, "boot_loader")])
def test_broken_copies_are_told_apart(provider, old, new, state):
    image, folder = provider.unconverted_image(build.disks(servers.find("debian11-plain")))
    if old:
        patch(folder / "disk0.raw", old, new)
    else:
        with open(folder / "disk0.raw", "r+b") as disk:
            disk.seek(512)
            disk.write(b"\0" * 512 * 62)  # GRUB's second stage
    _, report = provider.call("test-boot", image, json.dumps({"timeout": 100}))
    assert report["verified"] is False
    assert [problem["code"] for problem in report["problems"]] == [state], report
    assert pathlib.Path(report["screenshot"]).exists() and report["serial"]


@long("test_image_check.py repairs one with the same step")
def test_initramfs_without_virtio_is_built_anew(provider, tmp_path):
    """Under TCG this takes minutes: the system's own update-initramfs runs in the appliance."""
    job, replica = provider.job(build.disks(servers.find("debian11-plain")))
    env = qemu.guestfs_environment()
    guest = ["guestfish", "--format=raw", "-a", replica / "disk0.raw", "-m", "/dev/sda1"]
    name = subprocess.run([*guest, "--ro", "glob-expand", "/boot/initrd.img-*"], env=env, capture_output=True, text=True,
                          check=True).stdout.strip()
    subprocess.run([*guest, "--ro", "download", name, tmp_path / "initrd"], env=env, check=True)
    (tmp_path / "tree").mkdir()
    subprocess.run(["unmkinitramfs", tmp_path / "initrd", tmp_path / "tree"], check=True)
    gone = [path for path in (tmp_path / "tree").rglob("virtio_blk.ko*")]
    assert gone
    for path in gone:
        path.unlink()
    subprocess.run("find . | cpio -o -H newc --quiet | gzip -1 >../initrd", shell=True, cwd=tmp_path / "tree", check=True)
    subprocess.run([*guest, "--rw", "upload", tmp_path / "initrd", name], env=env, check=True)
    _, report = provider.call("convert", job)
    step = next(step for step in report["steps"] if step["name"] == "initramfs")
    assert step["state"] == "done" and "built anew for virtio_blk" in step["summary"], step
    image = provider.new_id("image")
    provider.call("image-create", job, image)
    _, verdict = provider.call("test-boot", image)
    assert verdict["verified"] is True, verdict
