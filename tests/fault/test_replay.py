"""A stranger who recorded everything, and a peer with the key that says things again, out of order or in a wrong name.

The peer is written from docs/protocol.md: TLS by openssl's s_client, frames by hand."""
import ctypes
import os
import select
import socket
import struct
import subprocess
import time

import pytest
import streamrig
from streamrig import BLOCK, RUN, image

MIB = 1 << 20
HELLO, WELCOME, OPEN, OPENED, USED, USED_OK, ASK, DIGESTS, BLOCKS, FLUSH, FLUSHED = range(1, 12)
ERROR = 19
try:
    XXH = ctypes.CDLL("libxxhash.so.0")
    XXH.XXH3_64bits.restype = XXH.XXH3_64bits_withSeed.restype = ctypes.c_uint64
    XXH.XXH3_64bits_withSeed.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint64]
except OSError:
    XXH = None
pytestmark = pytest.mark.skipif(not XXH, reason="needs libxxhash.so")


class Hash128(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


def digest(block):
    XXH.XXH3_128bits.restype = Hash128
    h = XXH.XXH3_128bits(block, ctypes.c_size_t(len(block)))
    return struct.pack(">QQ", h.high, h.low)


def frame(kind, payload, seq):
    head = struct.pack("<IHHIIQ", 0x314c5052, kind, 0, len(payload), 0, seq)
    seed = XXH.XXH3_64bits(head, ctypes.c_size_t(24))
    return head + struct.pack("<Q", XXH.XXH3_64bits_withSeed(payload, len(payload), seed)) + payload


class Peer:
    def __init__(self, rig, port, started):
        self.proc = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-psk", rig.key.read_text().strip(), "-psk_identity", RUN,
             "-tls1_3", "-ciphersuites", "TLS_AES_128_GCM_SHA256", "-quiet"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0)
        started.append(self.proc)
        self.seq, self.patience = 0, 20

    def raw(self, data):
        try:
            while data:
                data = data[self.proc.stdin.write(data):]
        except BrokenPipeError:
            pass

    def say(self, kind, payload):
        self.raw(frame(kind, payload, self.seq))
        self.seq += 1

    def hear(self):
        """(type, payload); None: closed."""
        assert select.select([self.proc.stdout], [], [], self.patience)[0], "neither answered nor closed"
        head = self.read(32)
        if len(head) < 32:
            return None
        _, kind, _, length, _, _ = struct.unpack("<IHHIIQ", head[:24])
        return kind, self.read(length)

    def read(self, n):
        got = b""
        while len(got) < n and (more := self.proc.stdout.read(n - len(got))):
            got += more
        return got

    def hello(self, role, session, index=0):
        self.say(HELLO, struct.pack("<HHBBH", 1, 1, role, index, 0) + session)
        return self.hear()

    def refused(self):
        """The code of the ERROR it gets, 0 when it is only closed."""
        got = self.hear()
        if got is None:
            return 0
        assert got[0] == ERROR, got
        assert self.hear() is None
        return struct.unpack("<H", got[1][:2])[0]


@pytest.fixture
def talk(rig):
    """A session with a disk of 16 blocks, all used, and a maker of more peers."""
    class Talk:
        receiver = rig.receiver()

        def peer(self):
            return Peer(rig, self.receiver.port, rig.started)

        def session(self, name):
            c = self.peer()
            assert c.hello(1, name)[0] == WELCOME
            c.say(OPEN, struct.pack("<BBHI", 1, 1, 0, BLOCK) + struct.pack("<QII", 16 * BLOCK, 512, 0))
            assert c.hear()[0] == OPENED
            c.say(USED, struct.pack("<HHIQ", 0, 1, 16, 0) + b"\xff\xff")
            assert c.hear()[0] == USED_OK
            return c

        def data(self, name, index=0):
            d = self.peer()
            assert d.hello(2, name, index)[0] == WELCOME
            return d

        def disk(self):
            return (rig.dir / "disk0.raw").read_bytes()
    t = Talk()
    yield t
    t.receiver.kill()


def blocks(first, data):
    n = len(data) // BLOCK
    return struct.pack("<HHHBBQ", 0, (1 << n) - 1, 0, 0, 0, first) + \
        b"".join(digest(data[i * BLOCK:(i + 1) * BLOCK]) for i in range(n)) + data


def flushed(d):
    d.say(FLUSH, bytes(8))
    return d.hear() == (FLUSHED, bytes(8))


A, B = os.urandom(16), os.urandom(16)
OLD, NEW = os.urandom(BLOCK), os.urandom(BLOCK)


def test_the_peer_is_understood(talk):
    """Else none of what follows means anything."""
    talk.session(A)
    d = talk.data(A)
    d.say(BLOCKS, blocks(0, OLD))
    assert flushed(d)
    assert talk.disk()[:BLOCK] == OLD


def test_a_frame_again(talk):
    """An old block, said again after a new one, isn't written: its number is used up."""
    talk.session(A)
    d = talk.data(A)
    old = frame(BLOCKS, blocks(0, OLD), d.seq)
    d.raw(old)
    d.seq += 1
    d.say(BLOCKS, blocks(0, NEW))
    assert flushed(d)
    d.raw(old)
    assert d.refused() in (0, 1)
    assert talk.disk()[:BLOCK] == NEW
    assert flushed(talk.data(A))  # and the run goes on


def test_a_frame_too_early(talk):
    talk.session(A)
    d = talk.data(A)
    d.raw(frame(BLOCKS, blocks(0, OLD), d.seq + 1))
    assert d.refused() in (0, 1)
    assert talk.disk()[:BLOCK] == bytes(BLOCK)


def test_a_frame_of_another_connection(talk):
    """Each connection counts for itself: the third frame of one is not the second of another."""
    talk.session(A)
    d, other = talk.data(A), talk.data(A, 1)
    assert flushed(d)
    d.say(BLOCKS, blocks(0, NEW))
    assert flushed(d)
    other.raw(frame(BLOCKS, blocks(0, OLD), 2))
    assert other.refused() in (0, 1)
    assert talk.disk()[:BLOCK] == NEW


def test_a_block_that_is_not_what_it_says(talk):
    talk.session(A)
    d = talk.data(A)
    d.say(BLOCKS, blocks(0, OLD)[:-BLOCK] + NEW)
    assert d.refused() in (0, 1)
    assert talk.disk()[:BLOCK] == bytes(BLOCK)


def test_data_of_no_session(talk):
    """A session id nobody opened; the session that is open isn't disturbed."""
    talk.session(A)
    d = talk.data(A)
    stranger = talk.peer()
    got = stranger.hello(2, B)
    assert got[0] == ERROR and struct.unpack("<HH", got[1][:4]) == (3, 1)
    assert stranger.hear() is None
    d.say(BLOCKS, blocks(0, NEW))
    assert flushed(d)


def test_a_session_that_was_taken_over(talk):
    """Its connections are closed, and its id opens nothing any more."""
    first = talk.session(A)
    d = talk.data(A)
    talk.session(B)
    assert first.refused() == 9 and d.refused() == 9
    for role in (1, 2):
        late = talk.peer()
        got = late.hello(role, A)
        assert got[0] == ERROR and struct.unpack("<H", got[1][:2])[0] == (9 if role == 1 else 3)
    n = talk.data(B)
    n.say(BLOCKS, blocks(0, NEW))
    assert flushed(n)
    assert talk.disk()[:BLOCK] == NEW


def test_hello_twice(talk):
    c = talk.session(A)
    c.say(HELLO, struct.pack("<HHBBH", 1, 1, 1, 0, 0) + B)
    assert c.refused() in (0, 1)


class Recorder(streamrig.Proxy):
    def __init__(self, port):
        self.heard, self.current = {}, None
        super().__init__(port, self.record)

    def _forward(self, x):
        self.current = x
        super()._forward(x)

    def record(self, up, data, total):
        if up:
            self.heard.setdefault(self.current, []).append(data)
        return data


def test_a_recording(rig, tmp_path):
    """All that a sender ever said, byte for byte, to the same receiver: TLS takes no second helping, and says nothing."""
    src = image(tmp_path / "a.img", 8 * MIB, data=1, text=0, zeros=0)
    r = rig.receiver()
    p = Recorder(r.port)
    s = rig.sender(p.port, [src], "--compress", "0", "--rate", "40")
    while r.written() < 2 * MIB:
        time.sleep(0.01)
    s.kill()
    time.sleep(0.5)
    before = (rig.dir / "disk0.raw").read_bytes(), (rig.dir / "disk0.manifest").read_bytes()
    events = len(r.events)
    assert len(p.heard) >= 3
    for spoken in p.heard.values():
        with socket.create_connection(("127.0.0.1", r.port), timeout=20) as c:
            heard = b""
            try:
                for data in spoken:
                    c.sendall(data)
                c.shutdown(socket.SHUT_WR)
                while more := c.recv(65536):
                    heard += more
            except TimeoutError:
                raise
            except OSError:  # closed while we spoke
                pass
            assert len(heard) < 1000  # a ServerHello and an alert
    assert ((rig.dir / "disk0.raw").read_bytes(), (rig.dir / "disk0.manifest").read_bytes()) == before
    assert [e for e in r.events[events:] if e["event"] != "progress"] == []
    s = rig.sender(r.port, [src], "--compress", "0")
    assert s.finish() == 0 and r.finish() == 0
    rig.check([src])
    p.close()
