"""Boots that go wrong, each as a machine of a kernel and a few files wrote it down: are they told apart?"""

import json
import os
import pathlib
import subprocess
import time

import pytest

from tests.lab import qemu, quick

BUILD = pathlib.Path(os.environ.get("REPLANT_BUILD", pathlib.Path(__file__).resolve().parents[2] / "build"))
OVMF = pathlib.Path("/usr/share/OVMF")

HANG = "#!/bin/bash\necho Begin: Waiting for root file system ...\nwhile :; do read -t 60 <>/dev/null; done\n"
OFF = "#!/bin/bash\nmount -t proc proc /proc\necho o >/proc/sysrq-trigger\nsleep 60\n"
AGAIN = "#!/bin/bash\nmount -t proc proc /proc\necho b >/proc/sysrq-trigger\nsleep 60\n"


def stage(folder, serial, ended=False):
    """What the provider says of it."""
    path = folder / "serial"
    path.write_bytes(serial)
    said = subprocess.run([BUILD / "tests/boot/provider_tool", folder, folder, BUILD, "-", "stage", path, *(["ended"] if ended else [])],
                          check=True, capture_output=True, text=True).stdout
    return json.loads(said)


def initrd(folder, init):
    """bash, its libraries and what it is to do as /init (or none at all)."""
    tree = folder / "tree"
    for name in ("proc", "dev", "usr/bin"):
        (tree / name).mkdir(parents=True)
    (tree / "bin").symlink_to("usr/bin")
    programs = quick._programs()
    wanted = {"/usr/bin/bash", "/usr/bin/mount", "/usr/bin/sleep"}
    for there, here in programs.items():
        if there in wanted or ".so" in there:
            place = tree / there.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(pathlib.Path(here).read_bytes())
            place.chmod(0o755)
    if init:
        (tree / "init").write_text(init)
        (tree / "init").chmod(0o755)
    path = folder / "initrd"
    path.write_bytes(quick._archive(tree))
    return path


def boot(folder, *arguments, machine="q35,graphics=off", seconds=90, until=b"", reboots=False):
    """(serial line, whether it ended) of a machine that runs until it ends, says `until`, or its time is over."""
    out = folder / "out"
    out.touch()
    command = ["setpriv", "--pdeathsig", "KILL", qemu.QEMU, "-accel", qemu.accelerator()[0], "-cpu", "max", "-m", "512", "-nodefaults", "-machine", machine,
               "-display", "none", "-vga", "std", "-serial", f"file:{out}", *([] if reboots else ["-no-reboot"]), *map(str, arguments)]
    machine = subprocess.Popen(command)
    end = time.monotonic() + seconds
    try:
        while machine.poll() is None and time.monotonic() < end:
            if until and until in out.read_bytes():
                break
            time.sleep(0.2)
        return out.read_bytes(), machine.poll() is not None
    finally:
        machine.kill()
        machine.wait()


def direct(folder, init, append="console=ttyS0", **more):
    kernel = quick.kernel("bookworm") / "vmlinuz"
    return boot(folder, "-kernel", kernel, "-initrd", initrd(folder, init), "-append", append, **more)


def test_an_initramfs_that_hangs(tmp_path):
    serial, ended = direct(tmp_path, HANG, until=b"Begin: Waiting")
    said = stage(tmp_path, serial, ended)
    assert (said["stage"], said["final"]) == ("initramfs_hang", False) and not ended and "'root='" in said["text"]


def test_no_init(tmp_path):
    serial, ended = direct(tmp_path, None, append="console=ttyS0 panic=-1")
    said = stage(tmp_path, serial, ended)
    assert (said["stage"], said["final"], ended) == ("kernel_panic", True, True) and "root" in said["text"], said


def test_an_init_that_ends(tmp_path):
    serial, ended = direct(tmp_path, "#!/bin/bash\necho bye\n", append="console=ttyS0 panic=-1")
    said = stage(tmp_path, serial, ended)
    assert said["stage"] == "kernel_panic" and "the first program ended" in said["text"], said


def test_one_that_powers_itself_off(tmp_path):
    serial, ended = direct(tmp_path, OFF)
    assert ended and stage(tmp_path, serial, ended)["stage"] == "powered_off"


def test_one_that_restarts_again_and_again(tmp_path):
    serial, ended = direct(tmp_path, AGAIN, reboots=True, seconds=60)
    assert serial.count(b"Linux version") >= 3 and not ended
    assert stage(tmp_path, serial, ended)["stage"] == "reboot_loop"


def test_no_serial_console(tmp_path):
    """Only the screen has it: the sentence says so."""
    serial, ended = direct(tmp_path, HANG, append="console=tty0", seconds=15)
    said = stage(tmp_path, serial, ended)
    assert not ended and said["stage"] in ("silent", "firmware") and "picture of the screen" in said["text"], (said, serial)


def test_a_disk_without_a_boot_loader(tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(b"\0" * (1 << 20))
    serial, _ = boot(tmp_path, "-drive", f"file={disk},format=raw,if=virtio", seconds=30, until=b"No bootable device")
    assert stage(tmp_path, serial)["stage"] == "no_boot_loader", serial


@pytest.mark.skipif(not (OVMF / "OVMF_CODE.fd").exists(), reason="OVMF is not installed")
def test_uefi_without_a_boot_loader(tmp_path):
    disk = tmp_path / "disk"
    disk.write_bytes(b"\0" * (1 << 20))
    variables = tmp_path / "vars.fd"
    variables.write_bytes((OVMF / "OVMF_VARS.fd").read_bytes())
    serial, _ = boot(tmp_path, "-drive", f"if=pflash,format=raw,readonly=on,file={OVMF}/OVMF_CODE.fd", "-drive",
                     f"if=pflash,format=raw,file={variables}", "-drive", f"file={disk},format=raw,if=virtio", "-net", "none", seconds=60,
                     until=b"Shell>")
    said = stage(tmp_path, serial)
    assert said["stage"] == "no_boot_loader" and "UEFI" in said["text"], serial
