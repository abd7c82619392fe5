"""Runs of an incremental job: the real sender, receiver, qemu-storage-daemon and provider; only the conversion is played.
What each image holds is compared with a copy of the source at its time by qemu-img, which knows nothing of Replant."""
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time

import pytest

import streamrig
from streamrig import BLOCK, BUILD

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
              pytest.mark.skipif(not shutil.which("qemu-storage-daemon"), reason="needs qemu-storage-daemon")]

MIB = 1 << 20
TOOL = BUILD / "tests/boot/provider_tool"
USER = "nobody"
JOB = "job-0123456789abcdef"
KEY = "5a" * 32
SIZE = 96 * MIB + 512 * 9  # the last block is short


def sh(*argv, check=True):
    done = subprocess.run([str(a) for a in argv], capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{argv}\n{done.stdout}{done.stderr}"
    return done


class Bench:
    """A source of image files, and a provider's directory."""

    def __init__(self, folder, sizes=(SIZE,)):
        self.folder = folder
        self.dir, self.saved = folder / "data", folder / "saved"
        self.saved.mkdir()
        self.key = folder / "key"
        self.key.write_text(KEY)
        self.rng = random.Random(7)
        self.disks = [streamrig.image(folder / f"source{i}", s, seed=i + 1) for i, s in enumerate(sizes)]
        self.images = {}  # id -> copies of the source at its time
        self.env = dict(os.environ)

    def tool(self, *words, check=True, env=None):
        argv = [TOOL, self.dir, self.folder / "cache", BUILD / "src/transition", USER, *map(str, words)]
        done = subprocess.run(argv, capture_output=True, text=True, env={**self.env, **(env or {})})
        assert not check or done.returncode == 0, done.stderr + done.stdout
        return done

    def receiver(self, number, run=None):
        return Receiving(self, number, run or f"run-{number:016x}")

    def sync(self, number):
        r = self.receiver(number)
        s = streamrig.Sender(r.port, self.key, self.disks, run=r.run)
        assert s.finish() == 0, s.stderr + str(r.events) + r.stderr()
        assert r.finish() == 0, r.stderr()
        return s

    def change(self, disk=0, blocks=12, zeros=4):
        """Noise over anything, and zeros over data; a hole in the source is as good as zeros."""
        size = self.disks[disk].stat().st_size
        with open(self.disks[disk], "r+b") as f:
            for i in range(blocks + zeros):
                at = self.rng.randrange(size // BLOCK) * BLOCK + self.rng.choice((0, 4096, 60 * 1024))
                f.seek(at)
                f.write(self.rng.randbytes(min(BLOCK, size - at)) if i < blocks else bytes(min(2 * BLOCK, size - at)))

    def image(self, number, name=None):
        """What conversion does, without the machine: overlays that change a little, and a report."""
        image = name or f"image-{number:016x}"
        place = self.dir / "images" / image
        place.mkdir(mode=0o755)
        for i, disk in enumerate(self.disks):
            layer = f"../../chains/{JOB}/{number}/disk{i}." + ("raw" if (self.chain / f"{number}/disk{i}.raw").exists() else "qcow2")
            overlay = place / f"disk{i}.qcow2"
            sh("qemu-img", "create", "-q", "-f", "qcow2", "-F", layer.rsplit(".")[-1], "-b", layer, overlay)
            sh("qemu-io", "-f", "qcow2", "-c", f"write -P {number} 1M 64k", overlay)
        (place / "report.json").write_text("{}")
        manifest = json.loads(self.tool("image-create", JOB, image).stdout.splitlines()[-1])
        assert manifest["run"] == number and manifest["chain"] == JOB
        self.images[image] = copies = []
        for i, disk in enumerate(self.disks):
            copy = self.saved / f"{image}.{i}"
            shutil.copyfile(disk, copy)
            with open(copy, "r+b") as f:
                f.seek(MIB)
                f.write(bytes([number]) * 65536)
            copies.append(copy)
        return image

    def run(self, number):
        self.sync(number)
        return self.image(number)

    def remove(self, image):
        self.tool("image-remove", image)
        for copy in self.images.pop(image):
            copy.unlink()

    def trim(self, **kw):
        return self.tool("trim", **kw)

    def refuse(self, pattern=None, done=False):
        """From now on no layer whose path fits is committed, as without space: not begun, or `done` but for the answer."""
        self.env = dict(os.environ)
        if pattern:
            tools = self.folder / "tools"
            tools.mkdir(exist_ok=True)
            real = shutil.which("qemu-img")
            (tools / "qemu-img").write_text(
                f'#!/bin/sh\nfor last; do :; done\ncase "$1 $last" in\n"commit "{pattern})\n'
                + (f'\t{real} "$@"\n' if done else "") + f'\techo "no space" >&2; exit 1;;\nesac\nexec {real} "$@"\n')
            (tools / "qemu-img").chmod(0o755)
            self.env["PATH"] = f"{tools}:{self.env['PATH']}"

    @property
    def chain(self):
        return self.dir / "chains" / JOB

    def layers(self):
        return {p.name: sorted(f.name for f in p.iterdir() if f.name.startswith("disk") and not f.name.endswith("manifest"))
                for p in self.chain.iterdir() if p.is_dir()} if self.chain.exists() else {}

    def compare(self):
        """Every image equals its copy, whatever was going on."""
        for image, copies in self.images.items():
            for i, copy in enumerate(copies):
                sh("qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", self.dir / "images" / image / f"disk{i}.qcow2", copy)

    def check(self):
        """Every image equals its copy, its manifest tells the truth, and no file of it is damaged."""
        for image, copies in self.images.items():
            place = self.dir / "images" / image
            manifest = json.loads((place / "manifest.json").read_text())
            for i, copy in enumerate(copies):
                overlay = place / f"disk{i}.qcow2"
                sh("qemu-img", "compare", "-f", "qcow2", "-F", "raw", overlay, copy)
                told = manifest["disks"][i]
                assert hashlib.sha256(overlay.read_bytes()).hexdigest() == told["sha256"]
                assert told["size"] == copy.stat().st_size
                info = json.loads(sh("qemu-img", "info", "--output=json", overlay).stdout)
                assert info["backing-filename"] == told["base"]
                assert (overlay.stat().st_uid, overlay.stat().st_mode & 0o777) == (0, 0o440)
        for layer in self.chain.glob("*/disk*.qcow2") if self.chain.exists() else []:
            checked = json.loads(sh("qemu-img", "check", "--output=json", layer, check=False).stdout)
            assert not checked.get("corruptions") and not checked.get("check-errors"), (layer, checked)

    def digests(self):
        return {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in self.chain.glob("*/disk*.*") if p.suffix in (".raw", ".qcow2") and not p.is_symlink()}


class Receiving:
    """The provider's receive, as the center calls it."""

    def __init__(self, bench, number, run):
        self.run, self.events = run, []
        self.err = open(bench.folder / f"{run}.err", "a+")
        self.proc = subprocess.Popen([TOOL, bench.dir, bench.folder / "cache", BUILD / "src/transition", USER, "receive", JOB, run,
                                      KEY, str(number)], stdout=subprocess.PIPE, stderr=self.err, text=True, env=bench.env)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        end = time.time() + 30
        while not (got := [e for e in list(self.events) if e["event"] == "listening"]):
            assert time.time() < end and self.proc.poll() is None, self.stderr()
            time.sleep(0.02)
        self.port = got[0]["port"]

    def _read(self):
        for line in self.proc.stdout:
            self.events.append(json.loads(line))

    def stderr(self):
        self.err.flush()
        return pathlib.Path(self.err.name).read_text()

    def written(self):
        return max([e.get("bytes_written", 0) for e in list(self.events)], default=0)

    def child(self, name):
        return int(sh("pgrep", "-P", self.proc.pid, "-f", name).stdout.split()[0])

    def finish(self):
        code = self.proc.wait(60)
        self.thread.join()
        return code


@pytest.fixture
def folder():
    # Reachable by the unprivileged user, as /var/lib/replant is.
    path = pathlib.Path(tempfile.mkdtemp(prefix="replant-layers-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def bench(folder):
    return Bench(folder)


def test_three_runs(bench):
    bench.run(1)
    base = bench.digests()
    for number in (2, 3):
        bench.change()
        bench.run(number)
    assert bench.layers() == {"1": ["disk0.raw"], "2": ["disk0.qcow2"], "3": ["disk0.qcow2"]}
    bench.check()
    # What earlier images stand on was not touched, nor may anybody but root do so.
    assert {p: d for p, d in bench.digests().items() if p in base} == base
    for layer in bench.digests():
        assert (layer.stat().st_uid, layer.stat().st_mode & 0o777) == (0, 0o440)
    # A run costs what changed: 16 pieces of at most 2 blocks twice over, and qcow2's tables.
    assert (bench.chain / "3/disk0.qcow2").stat().st_blocks * 512 < 5 * MIB


def test_zeros_over_data(bench):
    """A block that became zero reads as zeros, and not as what the layer below has."""
    with open(bench.disks[0], "r+b") as f:
        f.write(b"\xaa" * (8 * MIB))
        f.seek(SIZE // BLOCK * BLOCK)
        f.write(b"\xbb" * (SIZE % BLOCK))
    bench.run(1)
    with open(bench.disks[0], "r+b") as f:
        f.seek(2 * MIB)
        f.write(bytes(MIB))
        f.seek(SIZE // BLOCK * BLOCK)
        f.write(bytes(SIZE % BLOCK))
    image = bench.run(2)
    bench.check()
    overlay = bench.dir / "images" / image / "disk0.qcow2"
    sh("qemu-io", "-r", "-f", "qcow2", "-c", "read -P 0 2M 1M", "-c", "read -P 0xaa 3M 1M", "-c",
       f"read -P 0 {SIZE // BLOCK * BLOCK} {SIZE % BLOCK}", overlay)
    # Also after the layers have become one.
    bench.remove("image-" + "1".zfill(16))
    bench.trim()
    assert bench.layers() == {"2": ["disk0.raw"]}
    bench.check()


def test_trim_oldest(bench):
    """As with at most two images kept: the base takes in one layer after the other."""
    for number in range(1, 6):
        if number > 1:
            bench.change()
        bench.run(number)
        if number > 2:
            bench.remove(f"image-{number - 2:016x}")
            assert json.loads(bench.trim().stdout.splitlines()[-1]) == {"left": False}
        bench.check()
    assert bench.layers() == {"4": ["disk0.raw"], "5": ["disk0.qcow2"]}


def test_trim_middle_and_newest(bench):
    for number in range(1, 6):
        if number > 1:
            bench.change()
        bench.run(number)
    bench.remove(f"image-{3:016x}")
    bench.trim()
    assert bench.layers() == {"1": ["disk0.raw"], "2": ["disk0.qcow2"], "4": ["disk0.qcow2"], "5": ["disk0.qcow2"]}
    bench.check()
    # The newest is what the next run goes on from, image or not.
    bench.remove(f"image-{5:016x}")
    bench.trim()
    assert "5" in bench.layers()
    bench.change()
    bench.run(6)
    bench.trim()
    assert sorted(bench.layers()) == ["1", "2", "4", "6"]
    bench.check()
    # Without the job, only what images need stays; without images, nothing.
    bench.remove(f"image-{6:016x}")
    bench.tool("job-remove", JOB)
    bench.trim()
    assert sorted(bench.layers()) == ["1", "2", "4"]
    bench.check()
    for image in list(bench.images):
        bench.remove(image)
        bench.trim()
        bench.check()
    assert not bench.chain.exists()


SMALL = (4 * MIB, 3 * MIB + 512 * 9, 2 * MIB)


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("then", [1, 2])
def test_merge_below_one_that_is_not_finished(folder, then, done):
    """A merge of all disks but the first, and then what lies below is merged: each disk has its own next layer."""
    bench = Bench(folder, SMALL)
    for number in range(1, 6):
        for disk in range(3 if number > 1 else 0):
            bench.change(disk, blocks=4, zeros=2)
        bench.run(number)
    bench.remove(f"image-{3:016x}")
    bench.refuse("*/4/disk0.qcow2", done)
    assert bench.trim(check=False).returncode == 1
    assert bench.layers()["3"] == ["disk0.qcow2"]
    assert owners(bench.chain / "3") | owners(bench.chain / "4") == {f"disk{i}.qcow2 root 440" for i in range(3)}
    bench.compare()
    bench.remove(f"image-{then:016x}")
    bench.trim(check=False)
    bench.check()
    bench.refuse()
    bench.trim()
    bench.check()
    assert len(bench.layers()) == 3
    bench.change(1)
    bench.run(6)
    bench.check()


def test_merge_not_finished_and_the_run_done_again(folder):
    """Its own run, too, finds the layer below of each disk."""
    bench = Bench(folder, SMALL)
    for number in range(1, 4):
        bench.change(number % 3, blocks=4, zeros=2)
        bench.run(number)
    bench.change(1, blocks=4, zeros=2)
    bench.sync(4)
    bench.remove(f"image-{3:016x}")
    bench.refuse("*/4/disk0.qcow2")
    assert bench.trim(check=False).returncode == 1
    bench.change(2, blocks=4, zeros=2)
    bench.sync(4)
    bench.remove(f"image-{1:016x}")
    bench.trim(check=False)
    bench.image(4)
    bench.check()
    bench.refuse()
    bench.trim()
    bench.check()
    assert sorted(bench.layers()) == ["2", "4"]


def test_half_a_new_name_and_the_run_done_again(folder):
    """The base has its second name in a run's directory, and then that run is done again."""
    bench = Bench(folder, SMALL[:2])
    bench.run(1)
    bench.change(blocks=4, zeros=2)
    bench.sync(2)
    bench.remove(f"image-{1:016x}")
    raw, place = bench.chain / "1/disk1.raw", bench.chain / "2/disk1.raw"
    place.hardlink_to(raw)
    bench.refuse("*.qcow2")
    bench.change(blocks=4, zeros=2)
    (bench.chain / "expects").write_text("image-" + "2".zfill(16))  # nobody trims it
    (bench.dir / "images" / ("image-" + "2".zfill(16))).mkdir()
    bench.sync(2)
    (bench.dir / "images" / ("image-" + "2".zfill(16))).rmdir()
    bench.image(2)
    bench.refuse()
    bench.check()
    bench.trim()
    bench.check()
    assert bench.layers() == {"2": ["disk0.raw", "disk1.raw"]}


@pytest.mark.parametrize("first,then", [(3, 2), (2, 1), (1, 4)])
def test_killed_in_trim_and_another_removed(folder, first, then):
    """SIGKILL at every step of it, and then it has something else to do, too."""
    bench = Bench(folder, SMALL[:2])
    for number in range(1, 6):
        for disk in range(2 if number > 1 else 0):
            bench.change(disk, blocks=4, zeros=2)
        bench.run(number)
    bench.remove(f"image-{first:016x}")
    saved, images = folder / "before", dict(bench.images)
    bench.dir.rename(saved)
    for step in range(1, 100):
        sh("cp", "-a", saved, bench.dir)
        done = bench.trim(check=False, env={"REPLANT_FAULT_TRIM": str(step)})
        bench.compare()
        sh("rm", "-r", bench.dir / "images" / f"image-{then:016x}")
        gone = bench.images.pop(f"image-{then:016x}")
        # It may be killed again wherever that leads.
        for again in (step // 2 + 1, step + 2):
            bench.trim(check=False, env={"REPLANT_FAULT_TRIM": str(again)})
            bench.compare()
        bench.trim()
        bench.check()
        assert len(bench.layers()) == 3
        bench.images = dict(images)
        assert gone == images[f"image-{then:016x}"]
        if done.returncode == 0:
            break
        shutil.rmtree(bench.dir)
    assert step >= 5


@pytest.mark.parametrize("which", [1, 2, 3])
def test_killed_in_trim(bench, which):
    """SIGKILL at every step of it: the images stay right, and it goes on to the same end."""
    for number in range(1, 5):
        if number > 1:
            bench.change(blocks=4, zeros=2)
        bench.run(number)
    bench.remove(f"image-{which:016x}")
    kills = 0
    for step in range(1, 100):
        done = bench.tool("trim", check=False, env={"REPLANT_FAULT_TRIM": str(step)})
        for image, copies in bench.images.items():
            sh("qemu-img", "compare", "-U", "-f", "qcow2", "-F", "raw", bench.dir / "images" / image / "disk0.qcow2", copies[0])
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        kills += 1
    assert kills >= 2
    bench.check()
    assert len(bench.layers()) == 3
    # And the job goes on.
    bench.change()
    bench.run(5)
    bench.check()


@pytest.mark.parametrize("victim", ["replant-transition", "qemu-storage-daemon", "provider_tool"])
def test_killed_in_a_later_run(bench, victim):
    bench.run(1)
    bench.change()
    bench.run(2)
    with open(bench.disks[0], "r+b") as f:
        f.seek(8 * MIB)
        f.write(bench.rng.randbytes(40 * MIB))
    before = bench.digests()
    r = bench.receiver(3)
    s = streamrig.Sender(r.port, bench.key, bench.disks, "--rate", "200", run=r.run)
    end = time.time() + 60
    while r.written() < 10 * MIB:
        assert time.time() < end and r.proc.poll() is None, r.stderr()
        time.sleep(0.02)
    os.kill(r.proc.pid if victim == "provider_tool" else r.child(victim), signal.SIGKILL)
    assert r.finish() != 0
    if victim == "qemu-storage-daemon":
        # The center tries again, and the agent is not told to give up.
        assert "provider_tool: -11: " in r.stderr()
        time.sleep(1)
        assert s.proc.poll() is None
    s.kill()
    kept = r.written()
    assert {p: d for p, d in bench.digests().items() if p in before} == before
    bench.check()
    again = bench.receiver(3, "run-00000000000000ff")
    s = streamrig.Sender(again.port, bench.key, bench.disks, run=again.run)
    assert s.finish() == 0, s.stderr + again.stderr()
    assert again.finish() == 0, again.stderr()
    # What had been acknowledged was not sent again; what was under way on the connections may have been.
    assert again.written() <= 40 * MIB - kept + 6 * MIB
    bench.image(3)
    bench.check()
    assert {p: d for p, d in bench.digests().items() if p in before} == before


def test_power_cut_in_a_later_run(bench):
    """After another boot of the host, a layer that was open is made anew: nothing says that it was written."""
    bench.run(1)
    bench.change()
    r = bench.receiver(2)
    r.proc.kill()
    r.finish()
    assert (bench.chain / "boot").exists()
    (bench.chain / "boot").write_text("another boot")
    (bench.chain / "2/disk0.qcow2").write_bytes(b"QFI\xfb" + bytes(70000))
    bench.sync(2)
    bench.image(2)
    bench.check()


def test_disks_that_change(folder):
    """A disk that grew begins a raw file of its own; another one that came does, too; one that went is left out."""
    bench = Bench(folder, (SIZE, 32 * MIB))
    bench.run(1)
    with open(bench.disks[0], "r+b") as f:
        f.truncate(SIZE + 8 * MIB)
    bench.change()
    bench.run(2)
    assert bench.layers() == {"1": ["disk0.raw", "disk1.raw"], "2": ["disk0.raw", "disk1.qcow2"]}
    bench.disks.append(streamrig.image(folder / "source2", 16 * MIB, seed=9))
    bench.change(1)
    bench.run(3)
    assert bench.layers()["3"] == ["disk0.qcow2", "disk1.qcow2", "disk2.raw"]
    bench.check()
    bench.disks.pop()
    bench.change()
    bench.run(4)
    bench.check()
    for gone in (2, 1, 3):
        bench.remove(f"image-{gone:016x}")
        bench.trim()
        bench.check()
    assert bench.layers() == {"4": ["disk0.raw", "disk1.raw"]}


def test_no_trimming_below_an_image_in_the_making(bench):
    """Between conversion and image: the overlays name their layer, and no manifest says so yet."""
    bench.run(1)
    bench.change()
    bench.sync(2)
    bench.remove("image-" + "1".zfill(16))
    (bench.chain / "expects").write_text("image-" + "2".zfill(16))
    (bench.dir / "images" / ("image-" + "2".zfill(16))).mkdir()
    assert json.loads(bench.trim().stdout.splitlines()[-1]) == {"left": True}
    assert sorted(bench.layers()) == ["1", "2"]
    (bench.dir / "images" / ("image-" + "2".zfill(16))).rmdir()
    bench.image(2)
    assert json.loads(bench.trim().stdout.splitlines()[-1]) == {"left": False}
    assert bench.layers() == {"2": ["disk0.raw"]}
    bench.check()


def spoil(path, how):
    """It is there, and can't be read, or says nothing."""
    path.unlink(missing_ok=True)
    if how == "garbage":
        path.write_text("x\n")
    elif how == "directory":
        path.mkdir()
    else:
        path.symlink_to(path.name)


@pytest.mark.parametrize("what,how", [("complete", "garbage"), ("complete", "directory"), ("complete", "loop"), ("open", "loop"),
                                      ("expects", "directory"), ("manifest", "loop"), ("manifest", "garbage"), ("disk", "loop")])
def test_nothing_is_trimmed_when_something_is_not_known(folder, what, how):
    bench = Bench(folder, SMALL[:2])
    for number in (1, 2, 3):
        bench.change(1, blocks=4, zeros=2)
        bench.run(number)
    bench.remove(f"image-{1:016x}")
    if what == "complete":
        bench.tool("job-remove", JOB)
    before = bench.digests()
    path = bench.dir / "images" / f"image-{3:016x}" / "manifest.json" if what == "manifest" else \
        bench.chain / "2/disk1.raw" if what == "disk" else bench.chain / what
    kept = path.read_bytes() if path.exists() else None
    spoil(path, how)
    assert bench.trim(check=False).returncode == 1
    # What was found before it may have been done.
    assert {p: d for p, d in bench.digests().items() if p.parent.name == "3"} == {p: d for p, d in before.items() if p.parent.name == "3"}
    bench.compare()
    path.rmdir() if how == "directory" else path.unlink()
    if kept is not None:
        path.write_bytes(kept)
    bench.trim()
    bench.check()
    assert len(bench.layers()) == 2


@pytest.fixture
def narrow(folder):
    """The provider's directory in a file system of its own."""
    (folder / "data").mkdir()
    sh("mount", "-t", "tmpfs", "-o", "size=400m,mode=755", "tmpfs", folder / "data")
    yield folder
    sh("umount", "-l", folder / "data")


def test_no_merge_without_space_for_it(narrow):
    """What it may need has to be there before it begins: half a merge gives nothing back."""
    bench = Bench(narrow, (12 * MIB,))
    bench.run(1)
    for number in (2, 3):
        with open(bench.disks[0], "r+b") as f:
            f.seek(number * 3 * MIB)
            f.write(bench.rng.randbytes(3 * MIB))
        bench.run(number)
    bench.remove(f"image-{2:016x}")
    before = bench.digests()
    used = shutil.disk_usage(bench.dir).used
    sh("mount", "-o", f"remount,size={used // 1024 + 2048}k", bench.dir)
    done = bench.trim(check=False)
    assert done.returncode == 1 and "provider_tool: -28: " in done.stderr, done.stderr
    assert bench.digests() == before and shutil.disk_usage(bench.dir).free >= 2 * MIB
    bench.check()
    sh("mount", "-o", "remount,size=400m", bench.dir)
    bench.trim()
    assert sorted(bench.layers()) == ["1", "3"]
    bench.check()


def owners(folder):
    return {f"{p.name} {p.owner()} {p.stat().st_mode & 0o777:o}" for p in folder.iterdir() if p.suffix in (".raw", ".qcow2")}


def test_merge_below_a_run_that_is_being_received(folder):
    """Its layers get to know the new name of the base, and stay the receiver's."""
    bench = Bench(folder, SMALL[:2])
    bench.run(1)
    bench.change()
    bench.run(2)
    r = bench.receiver(3)
    r.proc.terminate()
    assert r.finish() != 0
    bench.remove(f"image-{1:016x}")
    bench.trim()
    assert bench.layers() == {"2": ["disk0.raw", "disk1.raw"], "3": ["disk0.qcow2", "disk1.qcow2"]}
    assert owners(bench.chain / "3") == {f"disk0.qcow2 {USER} 600", f"disk1.qcow2 {USER} 600"}
    bench.change(1)
    bench.run(3)
    bench.check()
    assert owners(bench.chain / "3") == {"disk0.qcow2 root 440", "disk1.qcow2 root 440"}


@pytest.mark.parametrize("taken", [1, 2])
def test_the_end_of_a_run_is_cut_off(folder, taken):
    """Its files were root's, or some of them, and nothing said yet that it is complete."""
    bench = Bench(folder, SMALL[:2])
    bench.run(1)
    bench.change()
    bench.sync(2)
    (bench.chain / "complete").write_text("1\n")
    for i in range(taken, 2):
        os.chmod(bench.chain / f"2/disk{i}.qcow2", 0o600)
        shutil.chown(bench.chain / f"2/disk{i}.qcow2", USER)
    bench.change(1)
    bench.run(2)
    bench.check()
    assert owners(bench.chain / "2") == {"disk0.qcow2 root 440", "disk1.qcow2 root 440"}


def test_a_foreign_file_is_not_given_away(folder):
    """A name planted in the receiver's directory makes nobody the owner of what it leads to."""
    bench = Bench(folder, SMALL[:2])
    bench.run(1)
    r = bench.receiver(2)
    r.proc.terminate()
    assert r.finish() != 0
    theirs = folder / "theirs"
    theirs.write_text("secret")
    theirs.chmod(0o400)
    for plant in (bench.chain / "2/disk1.qcow2").symlink_to, (bench.chain / "2/disk1.qcow2").hardlink_to:
        (bench.chain / "2/disk1.qcow2").unlink()
        plant(theirs)
        with pytest.raises(AssertionError, match="provider_tool"):
            bench.receiver(2, "run-00000000000000ff").proc.kill()
        assert (theirs.stat().st_uid, theirs.stat().st_mode & 0o777) == (0, 0o400)


def test_a_run_without_an_image_is_done_again(bench):
    bench.run(1)
    bench.change()
    bench.sync(2)
    bench.trim()
    bench.change()
    bench.run(2)
    bench.check()
    # One that has an image isn't: it stands on it.
    assert bench.tool("receive", JOB, "run-00000000000000ff", KEY, 2, check=False).returncode == 1
    bench.check()
