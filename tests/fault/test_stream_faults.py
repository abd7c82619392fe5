"""The data plane when things go wrong: nothing wrong is ever committed, and what was acknowledged isn't sent again."""
import os
import random
import signal
import socket
import subprocess
import time

import pytest
import streamrig
from streamrig import BLOCK, image

MIB = 1 << 20
NOISE = {"data": 1, "text": 0, "zeros": 0}


def sent(s):
    done = s.event("done")
    return done.get("totals", done)["bytes_sent"]


@pytest.fixture
def proxied(rig):
    """A receiver that keeps its port over restarts, and a proxy in front."""
    class P:
        def __init__(self):
            self.receiver = rig.receiver()
            self.proxy = streamrig.Proxy(self.receiver.port)
            self.written = 0

        def restart(self):
            self.written += self.receiver.written()
            self.receiver.kill()
            self.receiver = rig.receiver()
            self.proxy.port_to = self.receiver.port
    p = P()
    yield p
    p.proxy.close()
    if p.receiver.proc.poll() is None:
        p.receiver.kill()


def test_kill_sender_again_and_again(rig, tmp_path):
    """Killed at random points until it is through; all it ever sends is little more than the image."""
    size = 96 * MIB
    src = image(tmp_path / "a.img", size, **NOISE)
    rng = random.Random(os.environ.get("REPLANT_SEED", "7"))
    r = rig.receiver()
    p = streamrig.Proxy(r.port)
    kills = 0
    while True:
        s = rig.sender(p.port, [src], "--compress", "0", "--rate", "600")
        goal = p.up + rng.randrange(size // 12, size // 4)
        while s.proc.poll() is None and (p.up < goal or kills >= 8):
            time.sleep(0.005)
        if s.proc.poll() is not None:
            break
        s.kill()
        kills += 1
    assert s.finish() == 0, s.stderr
    assert r.finish() == 0
    rig.check([src])
    assert kills >= 3
    # What a kill costs: what lay in sockets and had not been written, and frames cut in two.
    assert p.up < size + kills * 12 * MIB
    assert r.written() < size + kills * MIB  # nothing that was written was written again


def test_kill_receiver_again_and_again(rig, tmp_path, proxied):
    """The sender stays and connects again; a killed receiver forgets nothing it has written."""
    size = 96 * MIB
    src = image(tmp_path / "a.img", size, **NOISE)
    rng = random.Random(os.environ.get("REPLANT_SEED", "11"))
    s = rig.sender(proxied.proxy.port, [src], "--compress", "0", "--rate", "400")
    for _ in range(5):
        goal = proxied.proxy.up + rng.randrange(size // 12, size // 6)
        while proxied.proxy.up < goal and s.proc.poll() is None:
            time.sleep(0.005)
        proxied.restart()
    assert s.finish() == 0, s.stderr
    assert proxied.receiver.finish() == 0
    rig.check([src])
    assert proxied.proxy.up < size + 5 * 12 * MIB


def test_kill_both(rig, tmp_path):
    src = image(tmp_path / "a.img", 64 * MIB, **NOISE)
    rng = random.Random(os.environ.get("REPLANT_SEED", "13"))
    for _ in range(8):
        r = rig.receiver()
        s = rig.sender(r.port, [src], "--compress", "0", "--rate", "800")
        time.sleep(rng.random() * 0.5)
        for x in rng.sample([s, r], 2):
            x.kill()
    r, s = rig.copy([src])
    rig.check([src])
    assert sent(s) < 63 * MIB


def test_cut_network(rig, tmp_path, proxied):
    size = 96 * MIB
    src = image(tmp_path / "a.img", size, **NOISE)
    s = rig.sender(proxied.proxy.port, [src], "--compress", "0", "--rate", "400")
    for i in range(1, 6):
        while proxied.proxy.up < i * size // 7 and s.proc.poll() is None:
            time.sleep(0.005)
        proxied.proxy.cut()
    assert s.finish() == 0, s.stderr
    assert proxied.receiver.finish() == 0
    rig.check([src])
    assert proxied.proxy.up < size + 5 * 12 * MIB
    assert proxied.receiver.written() < size + MIB


def test_stalled_network_comes_back(rig, tmp_path, proxied):
    src = image(tmp_path / "a.img", 48 * MIB, **NOISE)
    s = rig.sender(proxied.proxy.port, [src], "--compress", "0", "--rate", "200")
    while proxied.proxy.up < 12 * MIB:
        time.sleep(0.005)
    proxied.proxy.stalled = True
    time.sleep(3)
    proxied.proxy.stalled = False
    assert s.finish() == 0, s.stderr
    assert proxied.receiver.finish() == 0
    rig.check([src])


def test_one_connection_falls_silent(rig, tmp_path, proxied):
    """A middlebox forgets one data connection: it is made again, however long it took to notice."""
    src = image(tmp_path / "a.img", 48 * MIB, **NOISE)
    s = rig.sender(proxied.proxy.port, [src], "--compress", "0", "--rate", "100")
    while proxied.proxy.up < 12 * MIB:
        time.sleep(0.005)
    proxied.proxy.silence(2)
    began = time.time()
    assert s.finish() == 0, s.stderr
    assert time.time() - began < 50
    assert proxied.receiver.finish() == 0
    rig.check([src])


def test_stalled_network_can_be_cancelled(rig, tmp_path, proxied):
    src = image(tmp_path / "a.img", 48 * MIB, **NOISE)
    s = rig.sender(proxied.proxy.port, [src], "--compress", "0", "--rate", "200")
    while proxied.proxy.up < 12 * MIB:
        time.sleep(0.005)
    proxied.proxy.stalled = True
    time.sleep(1)
    began = time.time()
    s.proc.send_signal(signal.SIGTERM)
    assert s.finish() == 1
    assert time.time() - began < 2
    assert "cancelled" in s.stderr


@pytest.mark.parametrize("up", [True, False])
def test_flipped_bytes(rig, tmp_path, proxied, up):
    """TLS refuses what was changed on the way; the connection is made again and the copy is right."""
    src = image(tmp_path / "a.img", 48 * MIB, **NOISE)
    rng = random.Random(5)
    flips = []

    def hook(direction, data, total):
        at = 6 * MIB * (len(flips) + 1) if up else 1200 + 60 * len(flips)
        if direction == up and len(flips) < 4 and total > at:
            flips.append(total)
            b = bytearray(data)
            b[rng.randrange(len(b))] ^= 1 << rng.randrange(8)
            return bytes(b)
        return data
    proxied.proxy.hook = hook
    s = rig.sender(proxied.proxy.port, [src], "--compress", "0")
    assert s.finish() == 0, s.stderr
    assert proxied.receiver.finish() == 0
    rig.check([src])
    assert len(flips) == 4 if up else len(flips) >= 1


def test_wrong_key(rig, tmp_path):
    src = image(tmp_path / "a.img", MIB)
    r = rig.receiver()
    other = tmp_path / "other"
    other.write_text("00" * 32)
    began = time.time()
    s = rig.sender(r.port, [src], key=other)
    assert s.finish() == 1
    assert time.time() - began < 5
    assert "handshake" in s.stderr
    assert list(rig.dir.iterdir()) == []
    s = rig.sender(r.port, [src])  # the right one still gets in
    assert s.finish() == 0 and r.finish() == 0


def test_wrong_run(rig, tmp_path):
    src = image(tmp_path / "a.img", MIB)
    r = rig.receiver()
    s = rig.sender(r.port, [src], run="run-ffffffffffffffff")
    assert s.finish() == 1
    assert "handshake" in s.stderr
    assert list(rig.dir.iterdir()) == []
    r.kill()


def test_not_a_receiver(rig, tmp_path):
    """A TLS server with a certificate, and something that isn't TLS at all."""
    src = image(tmp_path / "a.img", MIB)
    cert, pem = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", pem, "-out", cert, "-subj",
                    "/CN=x", "-days", "1"], check=True, capture_output=True)
    with socket.create_server(("127.0.0.1", 0)) as tmp:
        port = tmp.getsockname()[1]
    server = subprocess.Popen(["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", cert, "-key", pem, "-quiet"],
                              stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.5)
    s = rig.sender(port, [src])
    assert s.finish() == 1
    assert "did not prove" in s.stderr
    server.kill()
    server.wait()


def test_second_sender_takes_over(rig, tmp_path):
    src = image(tmp_path / "a.img", 64 * MIB, **NOISE)
    r = rig.receiver()
    first = rig.sender(r.port, [src], "--compress", "0", "--rate", "100")
    while r.written() < 4 * MIB:
        time.sleep(0.01)
    second = rig.sender(r.port, [src], "--compress", "0")
    assert second.finish() == 0, second.stderr
    assert first.finish() == 1
    assert "taken this run over" in first.stderr
    assert r.finish() == 0
    rig.check([src])
    assert sent(second) < 61 * MIB


def test_strangers_do_not_keep_anyone_out(rig, tmp_path):
    """Connections that never say who they are don't take the place of the run's, and go after ten seconds."""
    src = image(tmp_path / "a.img", 8 * MIB)
    r = rig.receiver()
    strangers = [socket.create_connection(("127.0.0.1", r.port)) for _ in range(20)]
    s = rig.sender(r.port, [src])
    assert s.finish() == 0, s.stderr
    assert r.finish(30) == 0
    rig.check([src])
    for x in strangers:
        x.settimeout(20)
        assert x.recv(10) == b""
        x.close()


@pytest.fixture
def small(tmp_path):
    if os.geteuid():
        pytest.skip("needs root")
    d = tmp_path / "small"
    d.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(d)], check=True)
    yield d
    subprocess.run(["umount", "-l", str(d)], check=True)


def test_full_destination_is_told_beforehand(rig, tmp_path, small):
    src = image(tmp_path / "a.img", 64 * MIB, **NOISE)
    r = rig.receiver(directory=small)
    s = rig.sender(r.port, [src])
    assert s.finish() == 75
    assert str(small) in s.stderr and str(64 * MIB) in s.stderr
    e = r.wait("error")
    assert e["code"] == "no_space" and e["temporary"] is True and str(small) in e["message"]
    assert (small / "disk0.raw").stat().st_blocks == 0
    subprocess.run(["mount", "-o", "remount,size=100m", str(small)], check=True)
    s = rig.sender(r.port, [src])
    assert s.finish() == 0, s.stderr
    assert r.finish() == 0
    assert streamrig.same(src, small / "disk0.raw")


def test_destination_fills_up_while_writing(rig, tmp_path, small):
    """Somebody else takes the space meanwhile; when it is back the rest is sent, and only that."""
    src = image(tmp_path / "a.img", 32 * MIB, **NOISE)
    r = rig.receiver(directory=small)
    s = rig.sender(r.port, [src], "--compress", "0", "--rate", "200")
    while (small / "disk0.raw").stat().st_blocks * 512 < 6 * MIB if (small / "disk0.raw").exists() else True:
        time.sleep(0.005)
    with open(small / "other", "wb") as f:
        try:
            while True:
                f.write(bytes(BLOCK))
                f.flush()
        except OSError:
            pass
    assert s.finish() == 75
    assert str(small) in s.stderr and "make room" in s.stderr
    e = r.wait("error")
    assert e["code"] == "no_space" and e["temporary"] is True
    assert len([x for x in r.events if x["event"] == "error"]) == 1
    os.unlink(small / "other")
    s = rig.sender(r.port, [src], "--compress", "0")
    assert s.finish() == 0, s.stderr
    assert r.finish() == 0
    assert streamrig.same(src, small / "disk0.raw")
    assert sent(s) < 27 * MIB


def test_min_free(rig, tmp_path, small):
    src = image(tmp_path / "a.img", 16 * MIB, **NOISE)
    r = rig.receiver(directory=small, extra=["--min-free", "30M"])
    s = rig.sender(r.port, [src])
    assert s.finish() == 75
    assert "stay free" in s.stderr
    r.kill()


def test_read_error_that_goes_away(rig, tmp_path):
    src = image(tmp_path / "a.img", 8 * MIB, **NOISE)
    rig.copy([src], env={"REPLANT_FAULT": f"{3 * MIB}:512:2"})
    rig.check([src])


def test_read_error_fails(rig, tmp_path):
    src = image(tmp_path / "a.img", 8 * MIB, **NOISE)
    r = rig.receiver()
    s = rig.sender(r.port, [src], env={"REPLANT_FAULT": f"{3 * MIB + 4096}:512:0"})
    assert s.finish() == 1
    assert str(src) in s.stderr and str(3 * MIB + 4096) in s.stderr
    assert r.proc.poll() is None
    r.kill()
    assert not (rig.dir / "replica.json").exists()


def test_read_error_zeroed(rig, tmp_path):
    src = image(tmp_path / "a.img", 8 * MIB, **NOISE)
    at, n = 3 * MIB + 4096 + 512, 1024
    r, s = rig.copy([src], "--on-read-error", "zero", env={"REPLANT_FAULT": f"{at}:{n}:0"})
    want = bytearray(src.read_bytes())
    want[at:at + n] = bytes(n)
    assert (rig.dir / "disk0.raw").read_bytes() == want
    assert rig.verify().returncode == 0
    zeroed = s.event("done")["zeroed"]
    assert len(zeroed) == 1 and zeroed[0]["offset"] == at and zeroed[0]["length"] == n


def test_source_shrinks(rig, tmp_path):
    """A file that is cut while it is read: an error that names it, nothing committed."""
    src = image(tmp_path / "a.img", 32 * MIB, **NOISE)
    r = rig.receiver()
    s = rig.sender(r.port, [src], "--rate", "100", "--compress", "0")
    while r.written() < MIB:
        time.sleep(0.01)
    os.truncate(src, 2 * MIB)
    assert s.finish() == 75
    assert str(src) in s.stderr and f"has {2 * MIB} now" in s.stderr
    r.kill()
    assert not (rig.dir / "replica.json").exists()


def test_no_receiver(rig, tmp_path):
    """Nobody listens: it is tried again for a while; cancelling is prompt."""
    src = image(tmp_path / "a.img", MIB)
    with socket.create_server(("127.0.0.1", 0)) as tmp:
        port = tmp.getsockname()[1]
    s = rig.sender(port, [src])
    time.sleep(2)
    assert s.proc.poll() is None
    s.proc.send_signal(signal.SIGINT)
    began = time.time()
    s.finish()
    assert time.time() - began < 2


def test_sync_error_is_told_once(rig, tmp_path):
    """After a failed write-back the kernel takes the lost pages for written: the next run must not."""
    src = image(tmp_path / "a.img", 16 * MIB, **NOISE)
    r = rig.receiver(env={"REPLANT_FAULT_SYNC": "1"})
    s = rig.sender(r.port, [src], "--compress", "0")
    assert s.finish() != 0
    assert r.finish(20) != 0
    assert not (rig.dir / "replica.json").exists()
    with open(rig.dir / "disk0.raw", "r+b") as f:  # what was in lost pages
        f.seek(5 * MIB)
        f.write(bytes(3 * BLOCK))
    r, s = rig.copy([src], "--compress", "0")
    rig.check([src])
    assert sent(s) < 2 * MIB  # repaired, not copied again


def test_two_receivers_one_directory(rig):
    a = rig.receiver()
    with pytest.raises(AssertionError):
        rig.receiver()
    a.kill()


def test_once(rig, tmp_path):
    src = image(tmp_path / "a.img", 32 * MIB, **NOISE)
    r = rig.receiver(extra=["--once"])
    s = rig.sender(r.port, [src], "--rate", "50")
    while r.written() < MIB:
        time.sleep(0.01)
    s.kill()
    assert r.finish(20) == 75
