"""The data plane end to end, nothing going wrong: what arrives is what was read."""
import hashlib
import json
import os
import struct
import subprocess
import time

import pytest
import streamrig
from streamrig import BLOCK, Proxy, image

MIB = 1 << 20


@pytest.mark.parametrize("size", [512, 4096, BLOCK - 512, BLOCK, BLOCK + 512, 16 * BLOCK, 256 * BLOCK, 257 * BLOCK + 1536,
                                  70 * MIB + 5 * 512])
def test_sizes(rig, tmp_path, size):
    src = image(tmp_path / "a.img", size, seed=size)
    rig.copy([src])
    assert rig.check([src])["blocks"] == -(-size // BLOCK)


@pytest.mark.parametrize("level", range(11))
def test_compression(rig, tmp_path, level):
    src = image(tmp_path / "a.img", 24 * MIB, data=0.2, text=0.6)
    _, s = rig.copy([src], "--compress", str(level))
    rig.check([src])
    sent = s.event("done")["totals"]["bytes_sent"] if "totals" in s.event("done") else s.event("done")["bytes_sent"]
    nonzero = sum(1 for b in blocks(src) if b.strip(b"\0")) * BLOCK
    if level == 0:
        assert nonzero < sent < nonzero * 1.02 + 100000
    else:
        assert sent < 0.75 * nonzero


def blocks(path):
    with open(path, "rb") as f:
        while b := f.read(BLOCK):
            yield b


@pytest.mark.parametrize("damaged", [False, True])
def test_without_encryption(rig, tmp_path, damaged):
    """Anybody on the way can read it and nobody can change it."""
    src = image(tmp_path / "a.img", 24 * MIB, data=0, text=1)
    line = next(b for b in blocks(src) if b"replant" in b)[:48]
    seen = {"clear": False, "damaged": 0}

    def look(up, data, total):
        seen["clear"] = seen["clear"] or line in data
        if damaged and up and total > 2 * MIB and not seen["damaged"]:
            seen["damaged"] = 1
            return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]
        return data
    r = rig.receiver(extra=["--no-encryption"])
    proxy = Proxy(r.port, look)
    s = rig.sender(proxy.port, [src], "--no-encryption", "--compress", "0")
    assert s.finish() == 0, s.stderr
    assert r.finish() == 0
    proxy.close()
    rig.check([src])
    assert seen["clear"] and seen["damaged"] == damaged


def test_encryption_is_not_left_out_by_one_side(rig, tmp_path):
    src = image(tmp_path / "a.img", 4 * MIB, data=0, text=1)
    line, seen = next(b for b in blocks(src) if b"replant" in b)[:48], []

    def look(up, data, total):
        seen.append(line in data)
        return data
    for extra, options in ((["--no-encryption"], []), ([], ["--no-encryption"])):
        r = rig.receiver(extra=extra)
        proxy = Proxy(r.port, look)
        s = rig.sender(proxy.port, [src], *options)
        assert s.finish() != 0 and "handshake" in s.stderr, s.stderr
        proxy.close()
        r.kill()
    r = rig.receiver()
    proxy = Proxy(r.port, look)
    s = rig.sender(proxy.port, [src], "--compress", "0")
    assert s.finish() == 0
    proxy.close()
    assert not any(seen)


@pytest.mark.parametrize("checksum", [False, True])
def test_statement(rig, tmp_path, checksum):
    """The statement both sides sign is what docs/protocol.md says, computed here by other means."""
    src = image(tmp_path / "a.img", 40 * MIB + 512)
    rig.copy([src], *(["--checksum"] if checksum else []))
    rig.check([src])
    told = json.loads((rig.dir / "replica.json").read_text())
    assert told["digest"] == ("sha-256" if checksum else "xxh3-128")
    with open(rig.dir / "disk0.manifest", "rb") as f:
        f.seek(4096)
        entries = f.read()
    size = 32 if checksum else 16
    sums, window = b"", b""
    for i, b in enumerate(blocks(src)):
        if checksum:
            entry = hashlib.sha256(b).digest()
        else:
            entry = entries[i * size:(i + 1) * size]
            if i % 97 == 0:
                assert xxh128(b) in (None, entry)
        assert entries[i * size:(i + 1) * size] == entry
        window += struct.pack("<Q", i) + entry
        if i % 256 == 255:
            sums += hashlib.sha256(window).digest()
            window = b""
    if window:
        sums += hashlib.sha256(window).digest()
    assert told["disks"][0]["statement"] == hashlib.sha256(sums).hexdigest()
    assert told["disks"][0]["used_blocks"] == -(-os.path.getsize(src) // BLOCK)


def xxh128(b):
    """By the xxhsum tool, where there is one."""
    try:
        out = subprocess.run(["xxhsum", "-H2", "-"], input=b, capture_output=True, check=True).stdout
    except FileNotFoundError:
        return None
    return bytes.fromhex(out.split()[0].decode())


def test_several_disks(rig, tmp_path):
    disks = [image(tmp_path / f"{i}.img", (5 + 20 * i) * MIB + 512 * i, seed=i) for i in range(5)]
    rig.copy(disks, "--connections", "7")
    rig.check(disks)


@pytest.mark.parametrize("connections", [1, 2, 16])
def test_connections(rig, tmp_path, connections):
    src = image(tmp_path / "a.img", 60 * MIB)
    rig.copy([src], "--connections", str(connections))
    rig.check([src])


def test_zeros_and_holes_cost_nothing(rig, tmp_path):
    src = tmp_path / "a.img"
    with open(src, "wb") as f:
        f.write(bytes(100 * MIB))
        f.truncate(300 * MIB)
    _, s = rig.copy([src])
    rig.check([src])
    assert (rig.dir / "disk0.raw").stat().st_blocks * 512 < MIB
    assert bytes_sent(s) < 200_000


def bytes_sent(s):
    done = s.event("done")
    return done.get("totals", done)["bytes_sent"]


def test_second_run_sends_only_changes(rig, tmp_path):
    src = image(tmp_path / "a.img", 64 * MIB, data=0.6)
    rig.copy([src])
    _, s = rig.copy([src])
    assert bytes_sent(s) < 60_000
    with open(src, "r+b") as f:
        for at in (0, 5 * MIB + 3, 33 * MIB, 64 * MIB - 1):
            f.seek(at)
            f.write(b"X")
        f.seek(20 * MIB)
        f.write(bytes(MIB))
    r, s = rig.copy([src])
    assert bytes_sent(s) < 6 * BLOCK
    rig.check([src])


def test_other_digest_later(rig, tmp_path):
    """The receiver makes its manifest anew from the replica: nothing is sent again but zeros."""
    src = image(tmp_path / "a.img", 48 * MIB)
    rig.copy([src])
    _, s = rig.copy([src], "--checksum")
    assert bytes_sent(s) < 150_000
    rig.check([src])
    _, s = rig.copy([src])
    assert bytes_sent(s) < 150_000
    rig.check([src])


@pytest.mark.parametrize("sizes", [(20 * MIB, 33 * MIB + 512), (33 * MIB + 512, 20 * MIB + 1024)])
def test_disk_changes_size(rig, tmp_path, sizes):
    src = image(tmp_path / "a.img", sizes[0], seed=3)
    rig.copy([src])
    with open(src, "r+b") as f:
        f.truncate(sizes[1])
    _, s = rig.copy([src])
    rig.check([src])
    assert bytes_sent(s) < MIB


def test_fewer_disks_later(rig, tmp_path):
    disks = [image(tmp_path / f"{i}.img", 4 * MIB, seed=i) for i in range(3)]
    rig.copy(disks)
    rig.copy(disks[:1])
    rig.check(disks[:1])
    assert sorted(p.name for p in rig.dir.iterdir()) == ["disk0.manifest", "disk0.raw", "replica.json"]


def test_rate_limit(rig, tmp_path):
    """Measured outside: bytes through a proxy over time."""
    src = image(tmp_path / "a.img", 30 * MIB, data=1, text=0, zeros=0)
    r = rig.receiver()
    marks = []

    def hook(up, data, total):
        if up:
            marks.append((time.monotonic(), len(data)))
        return data
    p = streamrig.Proxy(r.port, hook)
    s = rig.sender(p.port, [src], "--rate", "48", "--compress", "0")
    assert s.finish() == 0
    assert r.finish() == 0
    rig.check([src])
    first = marks[0][0] + 0.5
    last = marks[-1][0] - 0.3
    rate = sum(n for t, n in marks if first < t <= last) * 8 / 1e6 / (last - first)
    assert 48 * 0.95 < rate < 48 * 1.05, rate


@pytest.mark.parametrize("rate,packed", [("40", True), ("0", False)])
def test_compression_auto(rig, tmp_path, rate, packed):
    """A slow line is worth the work, a fast one next to none of it; noise between the text changes neither."""
    src = image(tmp_path / "a.img", 96 * MIB, data=0.3, text=0.5)
    _, s = rig.copy([src], "--compress", "auto", "--rate", rate)
    rig.check([src])
    sent = s.event("done")["totals"]["bytes_sent"]
    nonzero = sum(1 for b in blocks(src) if b.strip(b"\0")) * BLOCK
    assert sent < 0.7 * nonzero if packed else sent > 0.8 * nonzero, sent / nonzero


def test_memory_is_bounded(rig, tmp_path):
    src = image(tmp_path / "a.img", 400 * MIB, data=0.7)
    r = rig.receiver()
    s = rig.sender(r.port, [src])
    peak = {"s": 0, "r": 0}
    while s.proc.poll() is None:
        for k, pid in (("s", s.proc.pid), ("r", r.proc.pid)):
            try:
                with open(f"/proc/{pid}/status") as f:
                    line = [x for x in f if x.startswith("VmHWM")]
                if line:
                    peak[k] = max(peak[k], int(line[0].split()[1]))
            except OSError:
                pass
        time.sleep(0.02)
    assert s.finish() == 0 and r.finish() == 0
    print(peak)
    limit = 64 * 1024 * (1 if "asan" not in str(streamrig.BUILD) and "tsan" not in str(streamrig.BUILD) else 20)
    assert 0 < peak["s"] < limit and 0 < peak["r"] < limit, peak


def test_verify_finds_damage(rig, tmp_path):
    src = image(tmp_path / "a.img", 8 * MIB, data=1, text=0, zeros=0)
    rig.copy([src])
    rig.check([src])
    with open(rig.dir / "disk0.raw", "r+b") as f:
        f.seek(3 * MIB + 77)
        b = f.read(1)
        f.seek(3 * MIB + 77)
        f.write(bytes([b[0] ^ 4]))
    v = rig.verify()
    assert v.returncode == 1 and f"first at byte {3 * MIB}" in v.stderr


def test_unprivileged_receiver(rig, tmp_path):
    """Started as root it becomes somebody else, and can do with its directory what it needs."""
    if os.geteuid():
        pytest.skip("needs root")
    rig.dir.mkdir()
    os.chown(rig.dir, 65534, 65534)
    src = image(tmp_path / "a.img", 8 * MIB)
    r = rig.receiver(extra=["--user", "nobody"])
    with open(f"/proc/{r.proc.pid}/status") as f:
        status = dict(line.split(":", 1) for line in f)
    assert status["Uid"].split() == ["65534"] * 4 and status["NoNewPrivs"].strip() == "1"
    assert int(status["CapEff"], 16) == 0
    s = rig.sender(r.port, [src])
    assert s.finish() == 0 and r.finish() == 0
    rig.check([src])


def test_4096_sectors(rig, tmp_path):
    if os.geteuid():
        pytest.skip("needs root")
    src = image(tmp_path / "a.img", 20 * MIB + 8192)
    try:
        dev = subprocess.run(["losetup", "-f", "--show", "-b", "4096", str(src)], check=True, capture_output=True,
                             text=True).stdout.strip()
    except subprocess.CalledProcessError:
        pytest.skip("no loop device")
    try:
        rig.copy([dev])
        rig.check([src])
        assert json.loads((rig.dir / "replica.json").read_text())["disks"][0]["sector"] == 4096
    finally:
        subprocess.run(["losetup", "-d", dev], check=True)


def test_qemu_img_agrees(rig, tmp_path):
    src = image(tmp_path / "a.img", 32 * MIB)
    rig.copy([src])
    subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "raw", str(src), str(rig.dir / "disk0.raw")], check=True,
                   stdout=subprocess.DEVNULL)


def test_frozen_source_that_changes(rig, tmp_path):
    """A mounted ext4 under writers: copied live, frozen for a moment, and the replica is a clean, consistent filesystem."""
    if os.geteuid():
        pytest.skip("needs root")
    src = tmp_path / "a.img"
    with open(src, "wb") as f:
        f.truncate(400 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(src)], check=True)
    mnt = tmp_path / "mnt"
    mnt.mkdir()
    try:
        dev = subprocess.run(["losetup", "-f", "--show", str(src)], check=True, capture_output=True, text=True).stdout.strip()
    except subprocess.CalledProcessError:
        pytest.skip("no loop device")
    try:
        subprocess.run(["mount", dev, str(mnt)], check=True)
        try:
            (mnt / "big").write_bytes(os.urandom(120 * MIB))
            (mnt / "gone").write_bytes(os.urandom(60 * MIB))
            subprocess.run(["sync"], check=True)
            os.unlink(mnt / "gone")
            writer = subprocess.Popen(["/usr/bin/python3", "-c", f"""
import os, time, random
i = 0
while True:
    with open({str(mnt)!r} + '/f%d' % (i % 50), 'wb') as f:
        f.write(b'%020d' % i * random.randrange(1, 20000))
        f.flush()
        os.fsync(f.fileno())
    i += 1
    time.sleep(0.002)
"""])
            time.sleep(1)
            r = rig.receiver()
            s = rig.sender(r.port, [dev], freeze=True)
            code = s.finish()
            writer.kill()
            writer.wait()
            assert code == 0, s.stderr
            assert r.finish() == 0
        finally:
            subprocess.run(["umount", str(mnt)], check=True)
    finally:
        subprocess.run(["losetup", "-d", dev], check=True)
    done = s.event("done")
    print(done)
    assert done.get("totals", done)["freeze_seconds" if "freeze_seconds" in done.get("totals", done) else "freeze_ms"] > 0
    assert rig.verify().returncode == 0
    replica = rig.dir / "disk0.raw"
    assert replica.stat().st_blocks * 512 < 260 * MIB  # what is free was not copied
    # The journal may have to be replayed (a frozen ext4 has none to replay); after that nothing may be wrong.
    out = subprocess.run(["e2fsck", "-fn", str(replica)], capture_output=True, text=True)
    assert out.returncode == 0, out.stdout + out.stderr
