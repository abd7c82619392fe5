"""Going on after bad luck, between two hosts: the copy is right, and what was acknowledged is not sent again. The bytes
are counted at the source's network interface, all attempts together, headers and all. An hour without network is as
long as the patience it outlasts: REPLANT_RECONNECT and REPLANT_STALL shorten that."""
import os
import random
import signal
import time

import pytest
import streamrig
from netrig import CENTER, OTHER, Net
from streamrig import BLOCK, image

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
MIB = 1 << 20
NOISE = {"data": 1, "text": 0, "zeros": 0}
PLAIN = ("--compress", "0", "--connections", "2")
# What a fault may cost, on each of two connections: what the receiver's kernel had taken and the receiver had not
# (about 2 MiB is seen), and a frame cut in two.
COST = 2 * 4 * MIB
LONG = pytest.mark.skipif(int(os.environ.get("REPLANT_LOOPS", "30")) <= 30, reason="runs with REPLANT_LOOPS=200")
SEED = int(os.environ.get("REPLANT_SEED", random.SystemRandom().randrange(1 << 30)))


class Link:
    """A receiver on one host, senders on the other, and what went over the cable between them."""

    def __init__(self, rig, net):
        self.rig, self.net, self.receiver, self.port = rig, net, None, 0
        self.rng = random.Random(SEED)
        self.start = net.source.sent()
        print(f"REPLANT_SEED={SEED}")

    def receive(self, **kw):
        self.receiver = self.rig.receiver(port=self.port, prefix=self.net.center.prefix, listen=self.net.center.address, **kw)
        self.port = self.receiver.port
        return self.receiver

    def send(self, disks, *options, reconnect=30, stall=10, **kw):
        return self.rig.sender(self.port, disks, *PLAIN, *options, prefix=self.net.source.prefix, host=self.net.center.address,
                               env={"REPLANT_RECONNECT": str(reconnect), "REPLANT_STALL": str(stall)}, **kw)

    def known(self):
        """Blocks whose digests the receiver has noted; whatever was acknowledged is one of them."""
        manifest = self.rig.dir / "disk0.manifest"
        data = manifest.read_bytes()[4096:] if manifest.exists() else b""
        return sum(data[i:i + 16] != bytes(16) for i in range(0, len(data), 16))

    def until_sent(self, goal, sender):
        while self.net.source.sent() < goal and sender.proc.poll() is None:
            time.sleep(0.003)
        return sender.proc.poll() is None

    def check(self, src, sent, faults):
        """`sent` in all attempts: the data, 4 % for headers, and what each fault may cost."""
        print(f"{sent / MIB:.1f} MiB sent of {os.path.getsize(src) / MIB:.0f}, {faults} faults")
        self.rig.check([src])
        assert sent < os.path.getsize(src) * 1.04 + faults * COST + MIB


@pytest.fixture(scope="module")
def net():
    n = Net()
    yield n
    n.close()


@pytest.fixture
def link(rig, net):
    yield Link(rig, net)


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """256 MiB that don't pack, and which no test writes to."""
    return image(tmp_path_factory.mktemp("source") / "a.img", 256 * MIB, **NOISE)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return image(tmp_path_factory.mktemp("source") / "b.img", 48 * MIB, **NOISE)


def finish(link, s):
    assert s.finish() == 0, s.stderr
    assert link.receiver.finish() == 0


@pytest.mark.parametrize("victims", ["sender", "receiver", "both"])
def test_killed_at_many_points(link, disk, victims):
    """kill -9 every so many chunks, at least twelve times, each at a point of its own."""
    link.receive()
    s = link.send([disk])
    at, step, kills, last = 0, 256 * MIB // 14, 0, None
    while kills < 12:
        at = max(at + step, link.net.source.sent())
        if not link.until_sent(at + link.rng.randrange(step // 2), s):
            break
        kills += 1
        if victims != "receiver":
            s.kill()
        if victims != "sender":
            link.receiver.kill()
            link.receive()
        last = link.known(), link.net.source.sent()
        if victims != "receiver":
            s = link.send([disk])
    finish(link, s)
    sent = link.net.source.sent() - link.start
    link.check(disk, sent, kills)
    assert kills >= 10
    # And to the block: after the last kill no block came that had been noted before it.
    known, then = last
    assert link.net.source.sent() - then < (256 * MIB - known * BLOCK) * 1.04 + COST + MIB


def test_pulled_and_plugged(link, disk):
    """The cable is pulled five times for up to 0.8 s: the connections outlive some of it and are made again after the rest."""
    link.receive()
    s = link.send([disk], "--rate", "1200")
    for i in range(1, 6):
        link.until_sent(link.start + i * 40 * MIB, s)
        link.net.cut()
        time.sleep(link.rng.random() * 0.8)
        link.net.mend()
    finish(link, s)
    link.check(disk, link.net.source.sent() - link.start, 5)


def test_gone_for_longer_than_anyone_waits(link, disk):
    """The source gives up (exit 75), the receiver stays; when the network is back the next attempt sends the rest only."""
    link.receive()
    s = link.send([disk], "--rate", "1200", reconnect=2, stall=2)
    link.until_sent(link.start + 100 * MIB, s)
    link.net.cut()
    began = time.time()
    assert s.finish() == 75
    assert 2 < time.time() - began < 12
    assert "lost the receiver" in s.stderr
    known = link.known()
    link.net.mend()
    before = link.net.source.sent()
    s = link.send([disk])
    finish(link, s)
    link.check(disk, link.net.source.sent() - link.start, 1)
    assert link.net.source.sent() - before < (256 * MIB - known * BLOCK) * 1.04 + MIB


def test_peer_vanishes(link, disk):
    """Half-open connections: packets go nowhere and nothing says so, for longer than an answer may take."""
    link.receive()
    s = link.send([disk], "--rate", "1200", stall=2)
    link.until_sent(link.start + 80 * MIB, s)
    link.net.vanish()
    time.sleep(4)
    link.net.appear()
    finish(link, s)
    link.check(disk, link.net.source.sent() - link.start, 1)


def test_new_sender_does_not_wait_for_the_dead(link, disk):
    """The source's host dies and comes back under another address; for the receiver its connections are still there."""
    link.receive()
    s = link.send([disk], "--rate", "1200")
    link.until_sent(link.start + 80 * MIB, s)
    link.net.vanish()
    s.kill()
    link.net.source.move(OTHER.format(11))
    link.net.appear()
    began = time.time()
    s = link.send([disk])
    finish(link, s)
    assert time.time() - began < 15
    link.check(disk, link.net.source.sent() - link.start, 1)


def test_address_of_the_source_changes(link, disk):
    """Under a sender that runs: it connects from the new address."""
    link.receive()
    s = link.send([disk], "--rate", "1200", stall=2)
    link.until_sent(link.start + 80 * MIB, s)
    link.net.source.move(OTHER.format(12))
    finish(link, s)
    link.check(disk, link.net.source.sent() - link.start, 1)


@LONG
def test_address_of_the_receiver_changes(link, disk):
    """The sender of the old address gives up; told the new one it goes on."""
    link.receive()
    s = link.send([disk], "--rate", "1200", reconnect=2, stall=2)
    link.until_sent(link.start + 80 * MIB, s)
    link.receiver.kill()
    known = link.known()
    link.net.center.move(OTHER.format(22))
    assert s.finish() == 75
    before = link.net.source.sent()
    link.receive()
    finish(link, link.send([disk]))
    assert link.net.source.sent() - before < (256 * MIB - known * BLOCK) * 1.04 + MIB
    link.check(disk, link.net.source.sent() - link.start, 1)
    link.net.center.move(CENTER)


@pytest.mark.parametrize("kind", ["blackhole", pytest.param("prohibit", marks=LONG), pytest.param("unreachable", marks=LONG)])
def test_route_is_taken_away(link, small, kind):
    """What a VPN's kill switch or an administrator does: connecting fails in unusual words, and it is only the network."""
    link.receive()
    s = link.send([small], "--rate", "200", stall=1)
    link.until_sent(link.start + 12 * MIB, s)
    link.net.source.ip("route", "add", kind, link.net.center.address)
    try:
        time.sleep(1.5)
    finally:
        link.net.source.ip("route", "del", kind, link.net.center.address)
    finish(link, s)
    link.check(small, link.net.source.sent() - link.start, 1)


@LONG
def test_slow_link_is_not_a_dead_one(link, small):
    """What lies in the sender's own buffers takes longer to go out than an answer may take."""
    link.receive()
    link.net.shape("100mbit", "1m")
    try:
        s = link.send([small], stall=1)
        finish(link, s)
    finally:
        link.net.unshape()
    link.check(small, link.net.source.sent() - link.start, 0)


def test_receiver_stops_for_a_while(link, disk):
    """SIGSTOP for longer than an answer may take: no connection survives, nothing is lost."""
    link.receive()
    s = link.send([disk], "--rate", "1200", stall=2)
    link.until_sent(link.start + 80 * MIB, s)
    link.receiver.proc.send_signal(signal.SIGSTOP)
    time.sleep(4)
    link.receiver.proc.send_signal(signal.SIGCONT)
    finish(link, s)
    link.check(disk, link.net.source.sent() - link.start, 1)


@LONG
def test_sender_stops_for_a_while(link, disk):
    """A suspended virtual machine, say: the receiver waits."""
    link.receive()
    s = link.send([disk], "--rate", "1200", stall=2)
    link.until_sent(link.start + 80 * MIB, s)
    s.proc.send_signal(signal.SIGSTOP)
    time.sleep(3)
    s.proc.send_signal(signal.SIGCONT)
    finish(link, s)
    link.check(disk, link.net.source.sent() - link.start, 1)


def test_many_senders_at_once(link, disk):
    """Six of one run within a second: the last to arrive has the run, the others are told; nobody writes nonsense."""
    link.receive()
    senders = []
    for _ in range(6):
        senders.append(link.send([disk], "--rate", "800"))
        time.sleep(link.rng.random() * 0.3)
    codes = [s.finish() for s in senders]
    assert codes.count(0) == 1, [s.stderr for s in senders]
    for s in senders:
        if s.proc.returncode:
            assert s.proc.returncode == 1 and "taken this run over" in s.stderr
    assert link.receiver.finish() == 0
    link.check(disk, link.net.source.sent() - link.start, 5)
