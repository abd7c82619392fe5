"""Tracked runs on real filesystems with writers at work, by the kernel's own means. The oracle is a copy of the device
that a hook makes with O_DIRECT while all is frozen."""
import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

import agentrig
import streamrig
from streamrig import BLOCK

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
MIB = 1 << 20
WRITER = """
import os, random, sys
top, seed, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
rng = random.Random(seed)
import time
while True:
    name = f"{top}/w{rng.randrange(40)}"
    what = rng.randrange(8)
    try:
        if what == 0:
            os.unlink(name)
        elif what == 1:
            os.truncate(name, rng.randrange(300000))
        elif what == 2:
            os.rename(name, f"{top}/w{rng.randrange(40)}")
        else:
            fd = os.open(name, os.O_RDWR | os.O_CREAT)
            os.pwrite(fd, rng.randbytes(rng.randrange(1, 100000)), rng.randrange(1000000))
            if what == 3:
                os.posix_fallocate(fd, 0, rng.randrange(1, 2000000))
            if what > 5:
                os.fsync(fd)
            os.close(fd)
    except FileNotFoundError:
        pass
    time.sleep(pause)
"""


class Tracked:
    def __init__(self, rig, tmp, loops):
        self.rig, self.tmp, self.loops = rig, tmp, loops
        self.hooks = tmp / "config/hooks.d"
        self.hooks.mkdir(parents=True)
        self.copy = tmp / "frozen.img"
        self.pin = f"/sys/fs/bpf/replant-test-{os.getpid()}"
        self.env = {"REPLANT_PIN": self.pin}
        self.writers = []

    def disk(self, fstype, size=0, fill=40):
        # Small: copying it has to fit the time of a hook on a busy machine. XFS wants 300 MiB.
        size = size or (320 if fstype == "xfs" or fill > 100 else 192) * MIB
        self.dev = self.loops.new("source.img", size, fstype)
        self.mnt = self.loops.mount(self.dev, "mnt")
        for i in range(fill):
            (self.mnt / f"f{i}").write_bytes(os.urandom(MIB))
        os.sync()
        self.hook("oracle", f"[ $1 = post-freeze ] || exit 0; exec dd if={self.dev} of={self.copy} bs=1M iflag=direct")
        return self.mnt

    def hook(self, name, script):
        path = self.hooks / name
        path.write_text("#!/bin/sh\n" + script + "\n")
        path.chmod(0o755)
        return path

    def write(self, seed, pause=0.002):
        self.writers.append(subprocess.Popen([sys.executable, "-c", WRITER, str(self.mnt), str(seed), str(pause)]))

    def quiet(self):
        for w in self.writers:
            w.kill()
            w.wait()
        self.writers = []

    def sender(self, *options, keep=True, more=(), **kw):
        self.receiver = self.rig.receiver()
        keep = ["--keep-tracking"] if keep else []
        return self.rig.sender(self.receiver.port, [self.dev, *more], "--config", str(self.tmp / "config"), "--runtime",
                               str(self.tmp / "run"), *keep, *options, freeze=True, env=self.env, **kw)

    def send(self, *options, **kw):
        s = self.sender(*options, **kw)
        assert s.finish() == 0, s.stderr
        assert self.receiver.finish() == 0
        self.done = s.event("done")
        return self.done["totals"]

    def check(self):
        """Each block that is used is what it was while frozen; and the filesystem is whole, file by file."""
        raw = self.rig.dir / "disk0.raw"
        with open(self.rig.dir / "disk0.manifest", "rb") as f:
            entries = f.read()[4096:]
        with open(raw, "rb") as a, open(self.copy, "rb") as b:
            for i in range(len(entries) // 16):
                x, y = a.read(BLOCK), b.read(BLOCK)
                if any(entries[16 * i:16 * i + 16]):
                    assert x == y, f"block {i} differs"
        v = self.rig.verify()
        assert v.returncode == 0, v.stderr
        tops = []
        for name, image in (("ours", raw), ("theirs", self.copy)):
            mine = self.tmp / f"{name}.img"
            shutil.copy(image, mine)
            point = self.tmp / name
            point.mkdir(exist_ok=True)
            # For writing: XFS leaves a record in its log that mounting has to replay.
            kind = agentrig.run("blkid", "-o", "value", "-s", "TYPE", mine).stdout.strip()
            options = "nouuid" if kind == "xfs" else "rw"
            if kind == "btrfs":  # two of one identity are one filesystem to the kernel
                agentrig.run("btrfs", "check", "--readonly", mine)
                agentrig.run("btrfstune", "-f", "-u", mine)
            agentrig.run("mount", "-o", f"loop,{options}", mine, point)
            tops.append(point)
        try:
            agentrig.run("diff", "-r", *tops)
        finally:
            for t in tops:
                agentrig.run("umount", t)

    def used(self):
        """Blocks of the first disk."""
        entries = (self.rig.dir / "disk0.manifest").read_bytes()[4096:]
        return sum(any(entries[i:i + 16]) for i in range(0, len(entries), 16))

    def notes(self):
        return " ".join(self.done["notes"])

    def close(self):
        self.quiet()
        subprocess.run(["rm", "-rf", self.pin], check=False)


@pytest.fixture
def tracked(rig, tmp_path):
    loops = agentrig.Loops(tmp_path)
    t = Tracked(rig, tmp_path, loops)
    yield t
    rig.close()
    t.close()
    loops.close()


@pytest.mark.parametrize("fstype", ["ext4", "xfs", "btrfs"])
def test_image_is_the_frozen_disk(tracked, fstype):
    tracked.disk(fstype)
    seed = int(os.environ.get("REPLANT_SEED", time.time()))
    print("seed", seed)
    tracked.write(seed)
    tracked.write(seed + 1)
    totals = tracked.send()
    assert tracked.done["tracking"] == "bpf" and totals["mode"] == "tracked", tracked.done
    tracked.check()
    # Later runs on the same replica, writers at work before, while and after.
    for _ in range(2):
        time.sleep(0.3)
        assert tracked.send()["mode"] == "tracked"
        tracked.check()


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_crashed_filesystem_beside(tracked, fstype):
    """A filesystem nobody mounts, and whose journal alone knows of some of its files: no freeze puts that in order."""
    tracked.disk("ext4")
    before = tracked.loops.new("before.img", 320 * MIB, fstype)
    point = tracked.loops.mount(before, "before")
    for i in range(12):
        with open(point / f"late{i}", "wb") as f:
            f.write(os.urandom(MIB))
            os.fsync(f.fileno())
    crashed = tracked.tmp / "crashed.img"
    agentrig.run("dd", f"if={before}", f"of={crashed}", "bs=1M", "iflag=direct", "conv=sparse")
    (tracked.hooks / "oracle").unlink()
    tracked.send(more=[tracked.loops.attach(crashed)])
    assert tracked.done["totals"]["mode"] == "tracked"
    agentrig.run("cmp", crashed, tracked.rig.dir / "disk1.raw")
    assert "has to be replayed first" in tracked.notes()
    # The one beside it that was frozen is not copied whole for that.
    assert tracked.used() < 100 * MIB // BLOCK


def test_only_changes_are_read(tracked):
    mnt = tracked.disk("ext4", fill=150)
    first = tracked.send()
    assert first["bytes_read"] >= 150 * MIB
    tracked.check()
    # Nothing changed: what mounting and freezing themselves write.
    idle = tracked.send()
    assert idle["bytes_read"] < 2 * MIB and idle["bytes_sent"] < MIB, idle
    tracked.check()
    # About 1 % of the data, in place.
    with open(mnt / "f7", "r+b") as f:
        f.write(os.urandom(MIB))
    with open(mnt / "f90", "r+b") as f:
        f.seek(300_000)
        f.write(os.urandom(MIB // 2))
    some = tracked.send()
    assert 1.5 * MIB <= some["bytes_read"] < 8 * MIB, some
    assert "expected_freeze_seconds" in some and some["freeze_ms"] > 0
    tracked.check()
    # What was written and deleted again is read at most in part, and not sent for long.
    (mnt / "big").write_bytes(os.urandom(60 * MIB))
    os.sync()
    (mnt / "big").unlink()
    os.sync()
    gone = tracked.send()
    assert gone["bytes_read"] < 8 * MIB, gone
    tracked.check()


def test_killed_and_again(tracked):
    mnt = tracked.disk("ext4", fill=100)
    tracked.send()
    for i in range(4):
        tracked.write(i, 0.005)
        for k in range(10 * i, 10 * i + 10):
            (mnt / f"f{k}").write_bytes(os.urandom(MIB))
        os.sync()
        s = tracked.sender("--rate", "100")
        time.sleep(0.3 + 0.25 * i)
        s.kill()
        tracked.receiver.kill()
        tracked.quiet()
        totals = tracked.send()
        tracked.check()
        assert totals["bytes_read"] < 90 * MIB, (i, totals, tracked.notes())


@pytest.mark.parametrize("how", ["cut", "flipped", "gone", "replica"])
def test_baseline_that_does_not_hold(tracked, how):
    mnt = tracked.disk("ext4", fill=30)
    tracked.send()
    base = tracked.tmp / "run/tracking/baseline"
    assert base.stat().st_mode & 0o777 == 0o600
    data = bytearray(base.read_bytes())
    if how == "cut":
        base.write_bytes(data[:-100])
    elif how == "flipped":
        data[len(data) // 2] ^= 4
        base.write_bytes(data)
    elif how == "gone":
        base.unlink()
    else:
        shutil.rmtree(tracked.rig.dir)
    (mnt / "more").write_bytes(os.urandom(MIB))
    totals = tracked.send()
    assert totals["bytes_read"] >= 30 * MIB
    assert ("all is compared" in tracked.notes()) == (how != "gone")
    tracked.check()
    assert tracked.send()["bytes_read"] < 2 * MIB
    tracked.check()


def test_tainted_while_frozen(tracked):
    """Accounting that is switched off for a moment: the audit can't balance, all is compared once more."""
    tracked.disk("ext4", fill=20)
    once = tracked.tmp / "once"
    stats = f"/sys/block/{os.path.basename(tracked.dev)}/queue/iostats"
    tracked.hook("taint", f"[ $1 = post-freeze ] && [ ! -e /dev/shm/{once.name}-{os.getpid()} ] || exit 0\n"
                          f"touch /dev/shm/{once.name}-{os.getpid()}; echo 0 > {stats}")
    tracked.hook("taint-over", f"[ $1 = post-thaw ] && echo 1 > {stats}; exit 0")
    try:
        totals = tracked.send()
    finally:
        os.unlink(f"/dev/shm/{once.name}-{os.getpid()}")
    assert "tracking was interrupted" in tracked.notes(), tracked.done
    assert totals["bytes_read"] >= 40 * MIB
    tracked.check()


def test_without_bpf(tracked):
    """A filter of system calls takes bpf(2) away: then it's the tracer's ring. The next run knows nothing of it."""
    denied = [sys.executable, str(pathlib.Path(__file__).resolve().parent.parent / "denied.py"), "bpf"]
    tracked.disk("ext4")
    tracked.write(1)
    tracked.write(2)
    for _ in range(2):
        totals = tracked.send(prefix=denied)
        assert tracked.done["tracking"] == "ring" and totals["mode"] == "tracked", tracked.done
        assert tracked.done["untracked"].startswith("the kernel doesn't let us use BPF")
        assert totals["bytes_read"] >= 40 * MIB
        tracked.check()
    assert not os.path.exists(tracked.pin) or not os.listdir(tracked.pin)
    # And where it may be used again, nothing is believed that the ring left.
    totals = tracked.send()
    assert tracked.done["tracking"] == "bpf" and totals["bytes_read"] >= 40 * MIB
    tracked.check()


def test_without_tracking(tracked):
    tracked.disk("ext4", fill=10)
    tracked.write(1)
    totals = tracked.send("--no-tracking", keep=False)
    assert (tracked.done["tracking"], tracked.done["untracked"]) == ("compare", "it was not wanted")
    assert totals["mode"] == "compare"
    tracked.check()


# ---- hooks ----

def test_hooks_in_order(tracked):
    tracked.disk("ext4", fill=5)
    log = tracked.tmp / "log"
    for name in ("b", "a"):
        tracked.hook(name, f"echo {name} $1 >> {log}")
    tracked.hook("no.hook", f"echo dot >> {log}")
    tracked.hook("off", f"echo off >> {log}").chmod(0o644)
    tracked.send()
    assert log.read_text().split("\n")[:-1] == [f"{n} {w}" for w in ("pre-freeze", "post-freeze", "post-thaw") for n in "ab"]


@pytest.mark.parametrize("when", ["pre-freeze", "post-freeze"])
def test_failing_hook(tracked, when):
    tracked.disk("ext4", fill=5)
    log = tracked.tmp / "log"
    tracked.hook("a", f"echo $1 >> {log}; [ $1 != {when} ]")
    s = tracked.sender()
    assert s.finish() == 1
    assert str(tracked.hooks / "a") in s.stderr and when in s.stderr
    said = log.read_text().split()
    assert said == {"pre-freeze": ["pre-freeze", "post-thaw"], "post-freeze": ["pre-freeze", "post-freeze", "post-thaw"]}[when]
    (tracked.mnt / "writable").write_text("still")


def test_hook_that_writes_to_what_is_frozen(tracked):
    """It can't be ended before the thaw, which must not wait for its end: half of the limit of 10 seconds, no more."""
    tracked.disk("ext4", fill=5)
    tracked.hook("write", f"[ $1 = post-freeze ] && touch {tracked.tmp}/began && echo x > {tracked.mnt}/file; exit 0")
    s = tracked.sender()
    agentrig.until((tracked.tmp / "began").exists)
    began = time.time()
    (tracked.mnt / "waits").write_text("x")
    assert 1 < time.time() - began < 8
    assert s.finish() == 1 and s.event("error")["code"] == "hook_failed"
    assert not subprocess.run(["pgrep", "-f", str(tracked.hooks / "write")], capture_output=True).stdout


@pytest.mark.parametrize("whose", ["mode", "owner", "folder", "link"])
def test_hook_of_somebody_else(tracked, whose):
    tracked.disk("ext4", fill=5)
    hook = tracked.hook("a", "exit 0")
    if whose == "mode":
        hook.chmod(0o775)
    elif whose == "owner":
        os.chown(hook, 1, 1)
    elif whose == "folder":
        tracked.hooks.chmod(0o777)
    else:
        hook.rename(tracked.tmp / "elsewhere")
        hook.symlink_to(tracked.tmp / "elsewhere")
    s = tracked.sender()
    assert s.finish() == 1
    assert str(tracked.hooks) in s.stderr


def test_hook_that_hangs_in_the_freeze(tracked):
    """It costs a few seconds, and the filesystem is thawed."""
    tracked.disk("ext4", fill=5)
    tracked.hook("hang", "[ $1 = post-freeze ] && exec sleep 60; exit 0")
    began = time.time()
    s = tracked.sender()
    assert s.finish() == 1 and s.event("error")["code"] == "hook_failed"
    assert "took longer" in s.stderr and time.time() - began < 25
    (tracked.mnt / "writable").write_text("still")
