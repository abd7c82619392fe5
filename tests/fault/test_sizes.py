"""Disks that grow or shrink while they are copied, sources that can't be read: said in words, nothing wrong committed."""
import os
import time

import agentrig
import pytest
from agentrig import run
from streamrig import image

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
MIB = 1 << 20


def resized(rig, loops, size, *options):
    """A run whose disk of 64 MiB gets another size in the middle; the sender, ended."""
    content = image(rig.tmp / "content", 64 * MIB, data=1, text=0, zeros=0)
    disk = loops.attach(content)
    r = rig.receiver()
    s = rig.sender(r.port, [disk], "--compress", "0", "--rate", "200", *options)
    while r.written() < 8 * MIB:
        time.sleep(0.01)
    os.truncate(content, size)
    run("losetup", "-c", disk)
    s.finish()
    assert not (rig.dir / "replica.json").exists()
    return disk, r, s


def test_disk_grows(rig, loops):
    """What is in the new part would be missing: the next attempt has it."""
    disk, r, s = resized(rig, loops, 80 * MIB)
    assert s.proc.returncode == 75
    assert f"'{disk}' had {64 * MIB} bytes" in s.stderr and f"has {80 * MIB} now" in s.stderr
    again = rig.sender(r.port, [disk], "--compress", "0")
    assert again.finish() == 0 and r.finish() == 0
    rig.check([disk])


@pytest.mark.parametrize("options", [(), ("--on-read-error", "zero")], ids=["fail", "zero"])
def test_disk_shrinks(rig, loops, options):
    """Not a lot of bad sectors, whatever is to be done about those."""
    disk, r, s = resized(rig, loops, 32 * MIB, *options)
    assert s.proc.returncode == 75
    assert f"'{disk}' had {64 * MIB} bytes" in s.stderr and f"has {32 * MIB} now" in s.stderr
    again = rig.sender(r.port, [disk], "--compress", "0", *options)
    assert again.finish() == 0 and r.finish() == 0
    assert (rig.dir / "disk0.raw").stat().st_size == 32 * MIB
    rig.check([disk])


def test_disk_goes_away(rig, loops):
    """Hot-unplugged: every read fails from then on, and zeros are no answer to that."""
    content = image(rig.tmp / "content", 64 * MIB, data=1, text=0, zeros=0)
    disk = loops.attach(content)
    r = rig.receiver()
    s = rig.sender(r.port, [disk], "--compress", "0", "--rate", "200", "--on-read-error", "zero")
    while r.written() < 8 * MIB:
        time.sleep(0.01)
    os.truncate(content, 0)
    run("losetup", "-c", disk)
    assert s.finish() in (1, 75)
    assert disk in s.stderr
    assert not (rig.dir / "replica.json").exists()
    r.kill()
