"""The tracker on Debian's own kernels, judged by what knows nothing of it: device-mapper's log of writes, and the disks
themselves, which the host reads. REPLANT_LONG=N makes the runs N times as long, with every filesystem on every kernel."""

import os

import pytest

from tests.boot import tracking
from tests.lab import logwrites, quick

pytestmark = pytest.mark.xdist_group("kernels")  # those of one group run in one process, one after the other

LONG = int(os.environ.get("REPLANT_LONG", "0"))
ESTALE = 116
MKFS = {"ext4": "mkfs.ext4 -q -F -E nodiscard", "xfs": "mkfs.xfs -q -f -K", "btrfs": "mkfs.btrfs -q -f -K"}
SUITES = ["bookworm", "bullseye", "trixie"]
CASES = ([(suite, kind) for suite in SUITES for kind in MKFS] if LONG
         else [("bookworm", "ext4"), ("bullseye", "xfs"), ("trixie", "btrfs")])
DISKS = ["data", "log", "replica", "slow", "copy", "bad", "left", "right", "hot"]


def dev(name):
    if name == "scsi":
        return "/dev/sda"
    return f"/dev/vd{chr(ord('a') + DISKS.index(name))}"


@pytest.fixture(scope="module")
def machines(tmp_path_factory):
    """A machine of each kernel, once it is asked for."""
    started = {}

    def give(suite):
        if suite not in started:
            disks = [quick.Disk("data", 384), quick.Disk("log", 16384), quick.Disk("replica", 384),
                     quick.Disk("slow", 64, throttle=True), quick.Disk("copy", 512), quick.Disk("bad", 16, bad=12345),
                     quick.Disk("left", 256), quick.Disk("right", 256), quick.Disk("hot", 32), quick.Disk("scsi", 32, bus="scsi")]
            started[suite] = tracking.machine(suite, tmp_path_factory.mktemp(suite), disks).start()
            started[suite].sh("modprobe sd_mod; for i in {1..100}; do [[ -b /dev/sda ]] && exit; sleep 0.05; done; exit 1")
        return started[suite]

    yield give
    for vm in started.values():
        vm.stop()


@pytest.fixture
def tracked(machines):
    """tracked(suite, names of disks) -> machine and tracker, on disks and copies that are all zeroes."""
    running = []

    def give(suite, *names, clear=("copy",)):
        vm = machines(suite)
        vm.sh("\n".join(f"blkdiscard {dev(name)}" for name in (*names, *clear)))
        tracker = tracking.Tracker(vm)
        running.append(tracker)
        tracker.start(*[dev(name) for name in names])
        return vm, tracker

    yield give
    for tracker in running:
        tracker.close()


# -- every write there is, against the log of writes --------------------------------------------------------------------


def scribble(vm, tracker, seconds, seed, trim):
    """Rounds of reading while all kinds of writers write; (what was given, rounds)."""
    given, rounds = set(), 0
    vm.spawn("writers", f"scribble /mnt/w {seconds} {seed} {trim}")
    while not vm.ended("writers"):
        given |= tracker.rounds(dev("replica"), 5, 20)
        rounds += 5
    vm.join("writers")
    return given, rounds


@pytest.mark.parametrize("suite,kind", CASES)
def test_the_marks_are_the_log_of_writes(tracked, suite, kind):
    vm, tracker = tracked(suite, "data", clear=("log", "replica"))
    vm.sh(f"modprobe dm-log-writes\n"
          f"dmsetup create lw --table \"0 $(blockdev --getsz {dev('data')}) log-writes {dev('data')} {dev('log')}\"\n"
          f"dmsetup mknodes; {MKFS[kind]} /dev/mapper/lw; mount /dev/mapper/lw /mnt")
    given, total = {}, 0
    for n in range(1 if LONG or suite == "bookworm" else 2, 3 + 4 * LONG):
        now, rounds = scribble(vm, tracker, 3 if LONG else 2, n, "trim" if n % 2 == 0 else "")
        total += rounds
        # the flush sends what is complete into the log, before the mark
        vm.sh("fsfreeze -f /mnt; sync /dev/mapper/lw")
        tracker.ask("audit", "frozen")
        given[f"interval{n}"] = now | tracker.drain(0, dev("replica"))
        vm.sh(f"dmsetup message lw 0 mark interval{n}")
        assert not tracking.differing(vm.path("data"), vm.path("replica"))
        tracker.ask("settle")
        vm.sh("fsfreeze -u /mnt")
    vm.sh("umount /mnt; dmsetup remove lw")
    written = logwrites.written(vm.path("log"), tracking.BLOCK)
    print(f"{suite} {kind}: {total} rounds, blocks written {[len(written[name]) for name in given]}, {tracker.counts()}")
    for name, blocks in given.items():
        assert len(written[name]) > 100, "the writers wrote next to nothing"
        assert not written[name] - blocks, f"missed in {name}"
        assert not blocks - written[name], f"never written in {name}"


def test_the_log_is_read_right(machines):
    """Known writes, discards and marks: what the log is said to hold is what was done."""
    vm = machines("bookworm")
    vm.sh(f"modprobe dm-log-writes; blkdiscard {dev('log')}\n"
          f"dmsetup create lw --table \"0 $(blockdev --getsz {dev('left')}) log-writes {dev('left')} {dev('log')}\"\n"
          "dmsetup mknodes; d=/dev/mapper/lw\n"
          "put() { dd if=/dev/urandom of=$d bs=4k oflag=direct conv=notrunc \"$@\" 2>/dev/null; }\n"
          "put seek=0 count=1; put seek=47 count=2; put seek=160 count=1; sync $d; dmsetup message lw 0 mark one\n"
          "blkdiscard -o 1M -l 128K $d; put seek=15 count=1; sync $d; dmsetup message lw 0 mark two\n"
          "put seek=800 count=1; dmsetup remove lw")
    written = logwrites.written(vm.path("log"), tracking.BLOCK)
    assert written == {"one": {0, 2, 3, 10}, "two": {16, 17, 0}, "dm-log-writes-end": {50}, "": set()}
    with open(vm.path("log"), "rb") as log, open(vm.path("left"), "rb") as disk:
        for entry in logwrites.entries(vm.path("log")):
            if entry.count and not entry.flags & logwrites.DISCARD and entry.sector >= 8:
                log.seek(entry.data)
                disk.seek(entry.sector * 512)
                if entry.sector != 15 * 8:
                    assert log.read(entry.count * 512) == disk.read(entry.count * 512)


# -- writes in flight when their mark is taken --------------------------------------------------------------------------


def hold_back(vm, tracker, submit, complete, grace):
    """160 blocks, each written once, half a second in flight, while marks are taken every 50 ms. Blocks that differ."""
    tracker.ask("drop", submit, complete)
    tracker.ask("grace", grace)
    vm.hold("slow", 60)
    vm.spawn("slow", f"fio --output=/dev/null --name=w --filename={dev('slow')} --rw=randwrite --bs=64k --direct=1 "
             f"--ioengine=libaio --iodepth=24 --size=10m --randseed={submit + 7 * complete}")
    while not vm.ended("slow"):
        tracker.rounds(dev("copy"), 5, 50)
    vm.join("slow")
    vm.hold("slow", 0)
    tracker.ask("audit", "frozen")
    tracker.collect(0, dev("copy"))
    tracker.collect(0, dev("copy"))
    return tracking.differing(vm.path("slow"), vm.path("copy"))


@pytest.mark.parametrize("suite", SUITES if LONG else ["bookworm"])
@pytest.mark.parametrize("submit,complete", [(0, 0), (0, 1), (1, 0)])
def test_writes_in_flight(tracked, suite, submit, complete):
    """Right with both marks, and with either of them lost, each time."""
    vm, tracker = tracked(suite, "slow")
    try:
        assert not hold_back(vm, tracker, submit, complete, "on")
    except tracking.Refused as told:
        # kernels skip completions that interrupt one of our programs; without submissions that must be noticed
        assert submit and told.number == ESTALE and "missed" in told.text


def test_writes_in_flight_need_the_second_reading(tracked):
    """The same, without it: must go wrong, else the test above could not fail."""
    vm, tracker = tracked("bookworm", "slow")
    assert hold_back(vm, tracker, 0, 1, "off")


def test_lost_events_are_noticed(tracked):
    vm, tracker = tracked("bookworm", "slow")
    tracker.ask("drop", 3, 3)
    vm.sh(f"fio --output=/dev/null --name=w --filename={dev('slow')} --rw=randwrite --bs=64k --direct=1 --size=8m")
    with pytest.raises(tracking.Refused) as told:
        tracker.ask("audit", "frozen")
    assert told.value.number == ESTALE and "missed" in told.value.text


# -- disks that do more than write ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES if LONG else ["bullseye"])
@pytest.mark.parametrize("name", ["hot", "scsi"])
def test_discards_zeroes_and_tables(tracked, suite, name):
    vm, tracker = tracked(suite, name)
    d = dev(name)
    for step in (f"dd if=/dev/urandom of={d} bs=1M count=32 oflag=direct", f"blkdiscard -z -o 1M -l 5M {d}",
                 f"blkdiscard -o 9M -l 3M {d}", f"echo ',8M' | sfdisk -q {d}; blockdev --rereadpt {d}",
                 f"dd if=/dev/urandom of={d}1 bs=4k seek=100 count=9; sync {d}1", f"mkfs.ext4 -q -F {d}1",
                 f"dd if=/dev/urandom of={d} bs=512 seek=65535 count=1 oflag=direct", f"blkdiscard -f {d} || blkdiscard {d}",
                 f"blkdiscard -z {d}"):
        before = vm.path(name).read_bytes()
        vm.sh(f"{step} 2>&1; sync {d}")
        try:
            tracker.ask("audit", "frozen")
        except tracking.Refused as told:
            # to read the table anew, newer kernels ask a SCSI disk for its size and more: commands that might write
            assert name == "scsi" and "rereadpt" in step and "passthrough" in told.text, step
            print(f"{suite}: {told}")
            tracker.ask("restart")
            tracker.ask("copy", 0, dev("copy"))
            continue
        given = tracker.drain(0, dev("copy"))
        after = vm.path(name).read_bytes()
        changed = {at // tracking.BLOCK for at in range(0, len(after), tracking.BLOCK)
                   if before[at:at + tracking.BLOCK] != after[at:at + tracking.BLOCK]}
        assert changed <= given, step
        assert after == vm.path("copy").read_bytes()[:len(after)], step
    print(f"{suite} {name}: {tracker.counts()}")


@pytest.mark.parametrize("suite", SUITES if LONG else ["bookworm"])
def test_failed_writes(tracked, suite):
    """A write that fails may leave anything or nothing behind: right all the same, or tainted."""
    vm, tracker = tracked(suite, "bad")
    failed = vm.sh(f"for i in {{0..15}}; do dd if=/dev/urandom of={dev('bad')} bs=1M seek=$i count=1 oflag=direct "
                   "2>/dev/null || echo $i; done")
    assert failed.split() == ["6"]
    try:
        tracker.ask("audit", "frozen")
    except tracking.Refused as told:
        assert told.number == ESTALE
        print(f"{suite}: {told}")
    else:
        tracker.drain(0, dev("copy"))
        assert not tracking.differing(vm.path("bad"), vm.path("copy"))
        print(f"{suite}: right")


@pytest.mark.parametrize("suite", SUITES if LONG else ["bookworm"])
@pytest.mark.parametrize("level", ["0", "1"] if LONG else ["0"])
def test_disks_below_md(tracked, suite, level):
    """md hands a filesystem's own bios down (RAID 0) or copies of them (RAID 1)."""
    vm, tracker = tracked(suite, "left", "right", clear=("replica", "copy"))
    vm.sh(f"modprobe raid{level}; mdadm --create /dev/md0 --level={level} --raid-devices=2 --assume-clean --run "
          f"--metadata=1.2 {dev('left')} {dev('right')} 2>&1; mkfs.ext4 -q -F -E nodiscard /dev/md0; mount /dev/md0 /mnt")
    try:
        vm.spawn("writers", f"scribble /mnt/w 2 {level}")
        while not vm.ended("writers"):
            tracker.rounds(dev("replica"), 3, 20)
            tracker.rounds(dev("copy"), 3, 20, 1)
        vm.join("writers")
        vm.sh("fsfreeze -f /mnt; sleep 0.5")
        tracker.ask("audit", "frozen")
        tracker.collect(0, dev("replica"))
        tracker.collect(1, dev("copy"))
        for name, copy in (("left", "replica"), ("right", "copy")):
            assert not tracking.differing(vm.path(name), vm.path(copy)), name
        print(f"{suite} RAID {level}: {tracker.counts(0)} {tracker.counts(1)}")
    finally:
        vm.run("fsfreeze -u /mnt; umount /mnt; mdadm --stop /dev/md0")


def test_an_agent_dies(tracked):
    """Marks taken but not settled come again; the epoch stays, until nothing is pinned any more."""
    vm, tracker = tracked("bookworm", "left", clear=("copy",))
    d = dev("left")
    tracker.ask("close")
    epoch = tracker.start(d, pin="/sys/fs/bpf/replant-test")
    vm.sh(f"dd if=/dev/urandom of={d} bs=64k seek=5 count=2 oflag=direct 2>&1")
    tracker.collect(0, dev("copy"))
    tracker.ask("settle")
    vm.sh(f"dd if=/dev/urandom of={d} bs=64k seek=50 count=2 oflag=direct 2>&1")
    assert {50, 51} <= tracker.collect()
    tracker.kill()
    vm.sh(f"dd if=/dev/urandom of={d} bs=64k seek=500 count=2 oflag=direct 2>&1")
    tracker.__init__(vm)
    assert tracker.start(d, pin="/sys/fs/bpf/replant-test") == epoch
    tracker.ask("audit", "frozen")
    assert {50, 51, 500, 501} <= tracker.drain(0, dev("copy"))
    assert not tracking.differing(vm.path("left"), vm.path("copy"))
    tracker.ask("close")
    tracker.ask("remove", "/sys/fs/bpf/replant-test")
    assert tracker.start(d, pin="/sys/fs/bpf/replant-test") != epoch
    tracker.ask("close")
    tracker.ask("remove", "/sys/fs/bpf/replant-test")
    tracker.start(d)


@pytest.mark.parametrize("suite, pin", [("bullseye", "/sys/fs/bpf/replant-test"), ("bookworm", "ring")])
def test_what_cannot_be_pinned_is_left_alone(tracked, suite, pin):
    """Between two runs of one process: as with a pin, until something is wrong with it."""
    vm, tracker = tracked(suite, "left", "right", clear=("copy",))
    d = dev("left")
    tracker.ask("close")
    epoch = tracker.start(d, pin=pin)
    assert vm.run("ls /sys/fs/bpf/replant-test/*")[0], "there are pins after all"
    vm.sh(f"dd if=/dev/urandom of={d} bs=64k seek=5 count=2 oflag=direct 2>&1")
    tracker.collect(0, dev("copy"))
    tracker.ask("settle")
    vm.sh(f"dd if=/dev/urandom of={d} bs=64k seek=50 count=2 oflag=direct 2>&1")
    assert {50, 51} <= tracker.collect()
    vm.sh(f"dd if=/dev/urandom of={d} bs=64k seek=500 count=2 oflag=direct 2>&1")
    tracker.ask("again", d)
    assert tracker.epoch() == epoch
    tracker.ask("audit", "frozen")
    assert {50, 51, 500, 501} <= tracker.drain(0, dev("copy"))
    assert not tracking.differing(vm.path("left"), vm.path("copy"))
    for devices in ((dev("right"),), (d, dev("right"))):
        with pytest.raises(tracking.Refused) as refused:
            tracker.ask("again", *devices)
        assert refused.value.number == ESTALE
    tracker.ask("detach")
    with pytest.raises(tracking.Refused) as refused:
        tracker.ask("again", d)
    assert refused.value.number == ESTALE
    tracker.ask("close")
    tracker.start(d)


@pytest.mark.parametrize("suite", SUITES)
def test_the_ring(tracked, suite):
    """Where BPF can't be used: every kernel's ring is read right, with a CPU that comes and goes meanwhile."""
    vm, tracker = tracked(suite, "left", clear=("replica",))
    d, cpu = dev("left"), "/sys/devices/system/cpu/cpu1/online"
    tracker.ask("close")
    tracker.start(d, pin="ring")
    try:
        vm.sh(f"mkfs.ext4 -q -F -E nodiscard {d}; mount -o discard {d} /mnt; echo 0 >{cpu}")
        tracker.rounds(dev("replica"), 3, 20)
        vm.sh(f"echo 1 >{cpu}")
        vm.spawn("writers", "scribble /mnt/w 2 1")
        while not vm.ended("writers"):
            tracker.rounds(dev("replica"), 3, 20)
        vm.join("writers")
        vm.sh("fsfreeze -f /mnt; sleep 0.5")
        tracker.ask("audit", "frozen")
        tracker.drain(0, dev("replica"))
        assert not tracking.differing(vm.path("left"), vm.path("replica"))
        counts = tracker.counts()
        print(f"{suite}: {counts}")
        assert counts["events"] > 100 and counts["submit_write"] > 1000 and counts["submit_discard"] > 0
    finally:
        vm.run(f"fsfreeze -u /mnt; umount /mnt; echo 1 >{cpu}")
    tracker.ask("close")
    tracker.start(d, pin="ring64")
    tool = "$(cat /run/mark-tool.pid)"
    vm.sh(f"kill -STOP {tool}; fio --output=/dev/null --name=w --filename={d} --rw=randwrite --bs=4k --direct=1 "
          f"--ioengine=libaio --iodepth=32 --size=200m --number_ios=3000; kill -CONT {tool}")
    assert "lost events" in tainted(tracker, "tracer")
    tracker.ask("restart")
    vm.sh(f"dd if=/dev/urandom of={d} bs=64k seek=50 count=2 oflag=direct 2>&1")
    tracker.ask("audit", "frozen")
    assert {50, 51} <= tracker.collect()
    vm.sh("echo 0 >/sys/kernel/tracing/instances/replant-*/events/block/block_rq_complete/enable")
    tainted(tracker, "switched off")


# -- disks that change; these come last, they use the machine up -------------------------------------------------------


def tainted(tracker, word):
    with pytest.raises(tracking.Refused) as told:
        tracker.ask("audit", "frozen")
    assert told.value.number == ESTALE and word in told.value.text
    return told.value.text


def test_accounting_switched_off(tracked):
    vm, tracker = tracked("bookworm", "left")
    queue = f"/sys/block/{dev('left')[5:]}/queue/iostats"
    vm.sh(f"echo 0 >{queue}; dd if=/dev/urandom of={dev('left')} bs=64k count=1 oflag=direct 2>&1")
    tainted(tracker, "accounting")
    vm.sh(f"echo 1 >{queue}")
    tainted(tracker, "accounting")  # it stays so
    epoch = tracker.epoch()
    tracker.ask("restart")
    assert tracker.epoch() != epoch
    tracker.ask("audit", "frozen")


def test_a_disk_grows_and_goes(tracked):
    vm, tracker = tracked("bookworm", "hot")
    vm.grow("hot", 48)
    vm.sh(f"for i in {{1..100}}; do (($(blockdev --getsize64 {dev('hot')}) > 40000000)) && exit; sleep 0.05; done; exit 1")
    vm.sh(f"dd if=/dev/urandom of={dev('hot')} bs=64k seek=600 count=1 oflag=direct 2>&1")
    tainted(tracker, "size")
    tracker.ask("close")
    epoch = tracker.start(dev("hot"))
    vm.sh(f"dd if=/dev/urandom of={dev('hot')} bs=64k seek=600 count=1 oflag=direct 2>&1")
    assert 600 in tracker.collect()
    tracker.ask("audit", "frozen")
    vm.unplug("hot")
    tainted(tracker, "gone")
    vm.plug("hot")
    vm.sh(f"for i in {{1..100}}; do [[ -b {dev('hot')} ]] && exit; sleep 0.05; done; exit 1")
    tainted(tracker, "")
    tracker.ask("restart")
    assert tracker.epoch() != epoch
    vm.sh(f"dd if=/dev/urandom of={dev('hot')} bs=64k seek=7 count=1 oflag=direct 2>&1")
    assert 7 in tracker.collect()


@pytest.mark.skipif(not LONG, reason="a reset takes QEMU longer than the rest (REPLANT_LONG)")
def test_a_reboot_is_another_epoch(machines):
    vm = machines("bookworm")
    tracker = tracking.Tracker(vm)
    epoch = tracker.start(dev("left"), pin="/sys/fs/bpf/replant-test")
    vm.reset()
    tracker = tracking.Tracker(vm)
    assert tracker.start(dev("left"), pin="/sys/fs/bpf/replant-test") != epoch
    assert not tracker.collect()
