"""The tracker on this machine's kernel: randomised proof, lost events made on purpose, and what it must not trust."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import uuid

import pytest

BUILD = pathlib.Path(os.environ.get("REPLANT_BUILD", "build")).resolve()
TOOL = BUILD / "tests/track/track-tool"
DENIED = [sys.executable, pathlib.Path(__file__).resolve().parent.parent / "denied.py"]
SEED = os.environ.get("REPLANT_SEED")
WAYS = pytest.mark.parametrize("way", [{}, {"ring": 0}], ids=["bpf", "ring"])
RING = {"ring": 0}

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module", autouse=True)
def possible():
    """A kernel without block tracepoints can't run these: said once."""
    r = subprocess.run([TOOL, "drive", "/dev/null"], capture_output=True, text=True, check=False)
    if r.returncode != 2:
        pytest.fail(f"{TOOL} doesn't run: {r.stderr}")


@pytest.fixture(name="disk")
def make_disk(tmp_path, request):
    """A loop device over memory: what is asked here is which events come, not how fast."""
    memory = pathlib.Path("/dev/shm")
    image = (memory if memory.is_dir() else tmp_path) / f"replant-track-{uuid.uuid4().hex[:8]}"
    with open(image, "wb") as f:
        f.truncate((320 if "xfs" in request.node.name else 96) << 20)  # mkfs.xfs refuses less than 300 MiB
    device = None
    try:
        device = subprocess.run(["losetup", "--find", "--show", "--direct-io=on", image], check=True, capture_output=True,
                                text=True).stdout.strip()
        yield device
    finally:
        if device:
            subprocess.run(["losetup", "--detach", device], check=False)
        image.unlink()


@pytest.fixture(name="pin")
def make_pin():
    path = pathlib.Path(f"/sys/fs/bpf/replant-test-{uuid.uuid4().hex[:8]}")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(name="mounted")
def make_mounted(disk, tmp_path, request):
    where = tmp_path / "mnt"
    where.mkdir()
    subprocess.run({"ext4": ["mkfs.ext4", "-q"], "xfs": ["mkfs.xfs", "-q", "-m", "reflink=1"]}[request.param] + [disk],
                   check=True)
    subprocess.run(["mount", "-o", "discard", disk, where], check=True)
    yield where
    subprocess.run(["fsfreeze", "-u", where], check=False, stderr=subprocess.DEVNULL)
    subprocess.run(["umount", where], check=True)


@pytest.fixture(name="instances")
def make_instances(tmp_path):
    """The folder of the tracer's instances."""
    where = tmp_path / "tracing"
    where.mkdir()
    subprocess.run(["mount", "-t", "tracefs", "none", where], check=True)
    try:
        yield where / "instances"
    finally:
        subprocess.run(["umount", "--lazy", where], check=True)


def prove(disk, **options):
    if SEED:
        options.setdefault("seed", SEED)
    argv = [TOOL, "prove", disk] + [f"{k.replace('_', '-')}={v}" for k, v in options.items()]
    r = subprocess.run(argv, capture_output=True, text=True, timeout=600, check=False)
    print(r.stdout, r.stderr)
    assert r.returncode == 0, r.stdout + r.stderr
    words = r.stdout.strip().splitlines()[-1].replace(",", "").replace(";", "").split()
    return {name: int(words[words.index(name) - 1]) for name in ("rounds", "exact", "tainted", "wrong", "cycles")} | {
        "untold": int(words[words.index("with") - 1]), "went_on": int(words[words.index("times") - 1])}


class Drive:
    """The tracker at the end of a pipe."""

    def __init__(self, disk, pin=None, ring=None, prefix=()):
        options = ([f"pin={pin}"] if pin else []) + ([f"ring={ring}"] if ring is not None else [])
        self.process = subprocess.Popen([*prefix, TOOL, "drive", disk, *options], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)
        self.started = self.answer()

    def answer(self):
        return self.process.stdout.readline().strip()

    def __call__(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.answer()

    def kill(self):
        self.process.kill()
        self.end()

    def end(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def write(disk, block, count=1, how="direct"):
    subprocess.run(["dd", "if=/dev/urandom", f"of={disk}", "bs=64k", f"seek={block}", f"count={count}", f"oflag={how}",
                    "conv=notrunc", "status=none"], check=True)


def ok(*blocks):
    return " ".join(["ok", *map(str, blocks)])


def test_raw_writers(disk, pin):
    """Each block is written once; nothing differs in the end, however the agent is killed in between."""
    r = prove(disk, rounds=12, pin=pin, kills=1)
    assert r["exact"] + r["tainted"] == 12 and r["exact"] > 0 and r["went_on"] > 0
    assert not pin.exists()


@WAYS
def test_without_pins(disk, way):
    assert prove(disk, rounds=4, **way)["exact"] > 0


def test_ring_raw_writers(disk):
    """As above; but what is killed goes on with nothing."""
    r = prove(disk, rounds=4, kills=1, **RING)
    assert r["exact"] + r["tainted"] == 4 and r["exact"] > 0 and r["went_on"] == 0


@pytest.mark.parametrize("mounted", ["ext4", "xfs"], indirect=True)
def test_ring_filesystem_writers(disk, mounted):
    r = prove(disk, rounds=2, mount=mounted, **RING)
    assert r["exact"] + r["tainted"] == 2 and r["exact"] > 0


@pytest.mark.parametrize("mounted", ["ext4", "xfs"], indirect=True)
def test_filesystem_writers(disk, mounted, pin):
    r = prove(disk, rounds=4, mount=mounted, pin=pin)
    assert r["exact"] + r["tainted"] == 4 and r["exact"] > 0


@WAYS
def test_lost_events_taint(disk, way):
    """One event in so many is dropped on purpose, of submissions and of completions: each round knows. Of few, all may
    be of one kind: then the others suffice, and the round is exact."""
    often = prove(disk, rounds=4, drop_submit=20, drop_complete=20, **way)
    assert often["untold"] == 0 and often["tainted"] > 0
    seldom = prove(disk, rounds=4, drop_submit=300, drop_complete=300, **way)
    assert seldom["exact"] + seldom["tainted"] == 4 and seldom["wrong"] == 0


@WAYS
@pytest.mark.parametrize("kind", ["drop_submit", "drop_complete"])
def test_one_kind_suffices(disk, kind, way):
    """As long as all events of the other kind come, none is missed."""
    assert prove(disk, rounds=3, **{kind: 50}, **way)["wrong"] == 0


@WAYS
def test_marks(disk, way):
    with Drive(disk, **way) as t:
        assert t.started == "ok"
        write(disk, 3, 2)
        write(disk, 700)
        assert t("audit") == "ok"
        assert t("pending") == ok(3)
        assert t("collect") == ok(3, 4, 700)
        assert t("collect") == "ok"
        # a discard of more than a region: its ends by the block, what lies between as a whole
        subprocess.run(["blkdiscard", "--offset", str(100 << 16), "--length", str(1100 << 16), disk], check=True)
        assert t("collect") == ok(*range(100, 1200))
        subprocess.run(["blkdiscard", "-z", "--offset", str(9 << 16), "--length", "65536", disk], check=True)
        assert t("collect") == ok(9)
        assert t("audit frozen") == "ok"


@WAYS
def test_buffered_writes_are_marked(disk, way):
    with Drive(disk, **way) as t:
        write(disk, 11, how="sync")
        assert "11" in t("collect").split()


def test_killed_between_collect_and_settle(disk, pin):
    with Drive(disk, pin) as t:
        epoch = t("epoch")
        write(disk, 40)
        assert t("collect") == ok(40)
        t.kill()
    write(disk, 41)  # while nobody is there
    with Drive(disk, pin) as t:
        assert t("epoch") == epoch
        assert t("collect") == ok(40, 41)
        assert t("audit frozen") == "ok"
        assert t("settle") == "ok"
    with Drive(disk, pin) as t:
        assert t("epoch") == epoch
        assert t("collect") == "ok"


def test_two_at_once_are_refused(disk, pin):
    with Drive(disk, pin) as t, Drive(disk, pin) as other:
        assert t.started == "ok"
        assert "another process" in other.started


def test_detached(disk):
    with Drive(disk) as t:
        epoch = t("epoch")
        assert t("detach") == "ok"
        assert "detached" in t("audit")
        assert "detached" in t("audit frozen")
        assert t("restart") == "ok"
        assert t("epoch") != epoch
        assert t("audit frozen") == "ok"


def test_pins_removed(disk, pin):
    with Drive(disk, pin) as t:
        epoch = t("epoch")
        (pin / "submit").unlink()
        assert "removed" in t("audit")
        t.kill()
    with Drive(disk, pin) as t:
        assert t.started == "ok" and t("epoch") != epoch


def test_accounting_switched_off(disk):
    switch = pathlib.Path("/sys/block", disk.removeprefix("/dev/"), "queue/iostats")
    with Drive(disk) as t:
        epoch = t("epoch")
        try:
            switch.write_text("0")
            assert "iostats" in t("audit frozen")
        finally:
            switch.write_text("1")
        assert "iostats" in t("audit"), "a taint stays"
        assert t("restart") == "ok" and t("epoch") != epoch
    switch.write_text("0")
    try:
        with Drive(disk) as t:
            assert "error 95" in t.started and "iostats" in t.started
    finally:
        switch.write_text("1")


@WAYS
def test_accounting_switched_off_for_a_while(disk, way):
    """Nobody looked while it was off; the accounts tell all the same."""
    switch = pathlib.Path("/sys/block", disk.removeprefix("/dev/"), "queue/iostats")
    with Drive(disk, **way) as t:
        switch.write_text("0")
        write(disk, 5, 4)
        switch.write_text("1")
        assert "error 116" in t("audit frozen")


def test_size_changed(disk):
    image = subprocess.run(["losetup", "--noheadings", "--output", "BACK-FILE", disk], check=True, capture_output=True,
                           text=True).stdout.strip()
    with Drive(disk) as t:
        os.truncate(image, 128 << 20)
        subprocess.run(["losetup", "--set-capacity", disk], check=True)
        assert "size" in t("audit")


def test_refused(tmp_path):
    with Drive("/dev/null") as t:
        assert not t.started  # usage
    ram = pathlib.Path("/dev/ram0")
    if ram.exists():
        with Drive(str(ram)) as t:
            assert "error 95" in t.started and "request queue" in t.started


# -- the ring: what may happen to it -------------------------------------------------------------------------------------


def burst(disk, blocks=700):
    subprocess.run(["dd", "if=/dev/zero", f"of={disk}", "bs=4k", f"count={blocks}", "oflag=direct", "conv=notrunc",
                    "status=none"], check=True)


def test_ring_that_is_full_taints(disk):
    """Each time: the reader sleeps while more is written than fits."""
    with Drive(disk, ring=4) as t:
        for _ in range(10):
            write(disk, 5)
            assert t("audit frozen") == "ok"
            t.process.send_signal(signal.SIGSTOP)
            burst(disk)
            t.process.send_signal(signal.SIGCONT)
            assert "error 116 the tracer lost events" in t("audit")
            assert "error 116 the tracer lost events" in t("audit frozen"), "a taint stays"
            assert t("restart") == "ok"


def test_ring_that_is_large_enough(disk):
    """More than that, and all of it fits: it is all read before marks are taken."""
    with Drive(disk, **RING) as t:
        t.process.send_signal(signal.SIGSTOP)
        burst(disk, 8000)
        t.process.send_signal(signal.SIGCONT)
        assert t("collect") == ok(*range(500))
        assert t("audit frozen") == "ok"


SUBMIT, COMPLETE = "events/block/block_bio_queue", "events/block/block_rq_complete"


@pytest.mark.parametrize("meddle,word", [
    ({f"{SUBMIT}/enable": "0"}, "switched off"),
    ({f"{COMPLETE}/enable": "0"}, "switched off"),
    ({"events/block/enable": "0"}, "switched off"),
    ({f"{SUBMIT}/filter": "nr_sector == 1"}, "filter"),
    ({f"{COMPLETE}/filter": "0"}, "filter"),
    ({"tracing_on": "0"}, "switched off"),
    ({"write": "", "trace": ""}, "missed"),  # what nobody had read yet is gone
    ({"events/block/enable": "0", "write": "", f"{SUBMIT}/enable": "1", f"{COMPLETE}/enable": "1",
      "events/block/block_rq_issue/enable": "1"}, "missed"),
    ({"tracing_on": "0", "write": "", "tracing_on ": "1"}, "missed"),
], ids=lambda value: "-".join(name.strip().split("/")[-2 if "/" in name else 0] for name in value)
   if isinstance(value, dict) else "")
def test_ring_that_others_change(disk, instances, meddle, word):
    with Drive(disk, **RING) as t:
        mine = next(instances.glob(f"replant-{t.process.pid}-*"))
        t.process.send_signal(signal.SIGSTOP)
        for name, value in meddle.items():
            if name == "write":
                write(disk, 9)
            else:
                (mine / name.strip()).write_text(value + "\n")
        t.process.send_signal(signal.SIGCONT)
        told = t("audit frozen")
        assert told.startswith("error 116") and word in told
        assert t("restart") == "ok"
        write(disk, 9)
        assert t("collect") == ok(9)
        assert t("audit frozen") == "ok"


def test_ring_instances(disk, instances):
    """One that lives is left alone, that of a dead one goes; and those of others aren't ours."""
    other = instances / f"other-{uuid.uuid4().hex[:8]}"
    other.mkdir()
    try:
        with Drive(disk, **RING) as t, Drive(disk, **RING) as second:
            assert (t.started, second.started) == ("ok", "ok")
            dead, lives = (next(instances.glob(f"replant-{d.process.pid}-*")) for d in (t, second))
            t.kill()
            assert second("remove") == "ok"
            assert not dead.exists() and lives.exists() and other.exists()
            with Drive(disk, **RING) as killed:
                dead = next(instances.glob(f"replant-{killed.process.pid}-*"))
            with Drive(disk) as by_bpf:
                assert by_bpf("mode") == "ok bpf" and not dead.exists() and lives.exists()
            write(disk, 9)
            assert second("collect") == ok(9)
            assert second("audit frozen") == "ok"
            with Drive(disk, **RING) as third:
                assert third.started == "ok"
            assert second("audit frozen") == "ok"
            second.process.stdin.close()
            second.process.wait()
            assert not lives.exists()
    finally:
        other.rmdir()


@pytest.mark.parametrize("code", ["EPERM", "ENOSYS"])
def test_without_bpf_it_is_the_ring(disk, pin, instances, code):
    with Drive(disk, pin, prefix=[*DENIED, "--as", code, "bpf"]) as t:
        assert t.started == "ok"
        assert t("mode").startswith("ok ring the kernel doesn't let us use BPF")
        assert len(list(instances.glob(f"replant-{t.process.pid}-*"))) == 1
        write(disk, 9)
        assert t("collect") == ok(9)
        assert t("audit frozen") == "ok"
        epoch = t("epoch")
        assert t("restart") == "ok" and t("epoch") != epoch and "ring" in t("mode")
    with Drive(disk) as t:
        assert t("mode") == "ok bpf"


def test_without_either(disk):
    with Drive(disk, prefix=[*DENIED, "bpf,mkdirat"]) as t:
        assert t.started.startswith("error 95 the kernel doesn't let us use BPF")
        assert "the kernel's tracer gives us no instance (Operation not permitted)" in t.started
