"""XFS: our used ranges beside xfs_db, partclone and what a mount still finds after everything free became garbage."""

import os
import random
import re

import pytest

from tests.interop import used_map as um

SHAPES = {
    "default": "",
    "v4": "-m crc=0",
    "v4-1k": "-m crc=0 -b size=1024",
    "1k": "-b size=1024",
    "2k-7ags": "-b size=2048 -d agcount=7",
    "16-ags": "-d agcount=16",
    "1-ag": "-d agcount=1",
    "rmapbt": "-m rmapbt=1,reflink=1",
    "no-rmap-reflink": "-m rmapbt=0,reflink=0,finobt=0",
    "inobtcount-bigtime": "-m inobtcount=1,bigtime=1",
    "4k-sectors": "-s size=4096",
    "sunit": "-d su=64k,sw=4 -l size=20m",
    "log-sunit": "-l su=256k,version=2",
    "log-v1": "-m crc=0 -l version=1",
    "512-blocks": "-m crc=0 -b size=512",
}
SIZE = 330 * um.MIB


# With these set mkfs.xfs makes the small filesystems it otherwise refuses: it takes itself for being tested.
ENV = dict(os.environ, TEST_DIR="1", TEST_DEV="1", QA_CHECK_FS="1")


def mkfs(*argv):
    um.sh("mkfs.xfs", "-q", "-f", *argv, env=ENV)


def make(tmp_path, shape, size=SIZE):
    img = um.image(tmp_path / "fs.img", size)
    mkfs(*SHAPES[shape].split(), img)
    return img


def compare(img):
    """What is free for us is free for xfs_db; what only it calls free are the groups' own free lists."""
    block, oracle, flcount = um.xfs_free(img)
    m = um.used_map(img)
    v, = m["volumes"]
    assert v["type"] == "xfs" and "free" in v, v
    assert v["unit"] == block and v["parts_whole"] == 0 and v["clean"]
    ours = um.runs_to_set(v["free"])
    assert not ours - oracle, sorted(ours - oracle)[:5]
    assert len(oracle - ours) == flcount
    per = um.BLOCK // block
    fs_blocks = os.path.getsize(img) // block
    expect = {i for i in {b // per for b in ours}
              if all(b in ours for b in range(i * per, min((i + 1) * per, fs_blocks)))}
    assert set(range((os.path.getsize(img) + um.BLOCK - 1) // um.BLOCK)) - um.used_blocks(m["disks"][0]) == expect
    return m


@pytest.mark.parametrize("shape", SHAPES)
def test_shape(shape, tmp_path):
    img = make(tmp_path, shape)
    compare(img)
    if "crc=0" in SHAPES[shape]:
        return  # see test_filled_by_mkfs
    if not um.can_mount():
        pytest.skip("needs root and loop devices for the second half")
    with um.mounted(img, tmp_path / "mnt") as root:
        um.churn(root, random.Random(shape), 900, 400000)
        before = um.tree_digest(root)
    m = compare(img)
    out = tmp_path / "copy.img"
    um.copy_used(img, out, m["disks"][0])
    um.sh("xfs_repair", "-n", "-o", "force_geometry", out)
    with um.mounted(out, tmp_path / "mnt", "ro,norecovery,nouuid") as root:
        assert um.tree_digest(root) == before


def fragment(root):
    """Many small free extents, so that the tree has more than one level."""
    for i in range(6000):
        with open(root / f"s{i}", "wb") as f:
            f.write(b"x" * 9000)
    os.sync()
    for i in range(0, 6000, 2):
        (root / f"s{i}").unlink()


@pytest.mark.parametrize("shape", ["v4", "v4-1k", "512-blocks", "log-v1", "default"])
def test_filled_by_mkfs(shape, tmp_path):
    """Kernels of today no longer mount version 4; mkfs fills it from a prototype."""
    lines = ["/dev/null", "0 0", "d--755 0 0"]
    rng = random.Random(shape)
    for i in range(300):
        with open(tmp_path / f"f{i}", "wb") as f:
            f.write(rng.randbytes(rng.randrange(200000)))
        lines.append(f"f{i} ---644 0 0 {tmp_path}/f{i}")
    (tmp_path / "proto").write_text("\n".join(lines + ["$"]) + "\n")
    img = um.image(tmp_path / "fs.img", SIZE)
    mkfs(*SHAPES[shape].split(), "-p", tmp_path / "proto", img)
    m = compare(img)
    assert m["volumes"][0]["used_bytes"] > 30 * um.MIB
    out = tmp_path / "copy.img"
    um.copy_used(img, out, m["disks"][0])
    um.sh("xfs_repair", "-n", out)


@pytest.mark.skipif(not um.can_mount(), reason="needs root and loop devices")
@pytest.mark.parametrize("shape", ["1-ag", "1k", "rmapbt"])
def test_deep_tree(shape, tmp_path):
    img = make(tmp_path, shape)
    with um.mounted(img, tmp_path / "mnt") as root:
        fragment(root)
    levels = [int(re.search(r"= (\d+)", um.sh("xfs_db", "-r", "-c", f"agf {ag}", "-c", "p bnolevel", img)).group(1))
              for ag in range(1 if shape == "1-ag" else 4)]
    assert max(levels) > 1
    compare(img)


@pytest.mark.skipif(not um.can_mount(), reason="needs root and loop devices")
@pytest.mark.parametrize("shape", ["default", "1k", "log-sunit", "rmapbt"])
def test_frozen_is_exact(shape, tmp_path):
    img = make(tmp_path, shape)
    root = tmp_path / "mnt"
    with um.loop(img, "--direct-io=on") as dev:
        root.mkdir()
        um.sh("mount", dev, root)
        try:
            um.churn(root, random.Random(3), 300, 400000)
            um.sh("sync", "-f", root)
            um.check_busy(dev)
            frozen = tmp_path / "frozen.img"
            for rounds in range(3):
                um.copy_frozen(dev, img, root, frozen)
                before = um.tree_digest(root)
                if rounds < 2:
                    um.churn(root, random.Random(30 + rounds), 100, 300000)
        finally:
            um.sh("umount", root)
    with um.mounted(frozen, root, "nouuid") as r:
        assert um.tree_digest(r) == before
    um.sh("xfs_repair", "-n", frozen)


def log_of(img):
    sb = dict(re.findall(r"^(\w+) = (\d+)$", um.sh("xfs_db", "-r", "-c", "sb 0", "-c", "p", img), re.M))
    start, shift = int(sb["logstart"]), int(sb["agblklog"])
    return (((start >> shift) * int(sb["agblocks"]) + (start & ((1 << shift) - 1))) * int(sb["blocksize"]),
            int(sb["logblocks"]) * int(sb["blocksize"]))


@pytest.mark.skipif(not um.can_mount(), reason="needs root and loop devices")
@pytest.mark.parametrize("shape", ["default", "rmapbt"])
def test_frozen_by_an_older_kernel(shape, tmp_path):
    """Before 5.12 a freeze logged the superblock once, behind a record with anything: here made of what this kernel leaves."""
    img = make(tmp_path, shape)
    root = tmp_path / "mnt"
    frozen = tmp_path / "frozen.img"
    with um.mounted(img, root):
        um.churn(root, random.Random(6), 40, 20000)
        um.sh("sync", "-f", root)
        (root / "last").write_bytes(b"x" * 50000)
        (root / "d0").rename(root / "e0")
        um.sh("fsfreeze", "-f", root)
        frozen.write_bytes(img.read_bytes())
        um.sh("fsfreeze", "-u", root)
    off, size = log_of(frozen)
    with open(frozen, "r+b") as f:
        f.seek(off)
        log = bytearray(f.read(size))
        heads = [i for i in range(0, size, 512) if log[i:i + 8] == b"\xfe\xed\xba\xbe\0\0\0\1"]
        work, first, second = heads[-3:]  # whatever was last done, and the superblock twice
        log[second:] = bytes(size - second)
        log[first + 24:first + 32] = (1 << 32 | work // 512).to_bytes(8, "big")
        f.seek(off)
        f.write(log)
    v, = um.used_map(frozen)["volumes"]
    assert v.get("parts_whole") == 0 and v["clean"], v
    assert v["used_bytes"] < SIZE // 2
    # An AGF on the disk that isn't what was logged last: the record was not written back.
    hits = 0
    for ag in range(4):
        at = ag * int(um.sh("xfs_db", "-r", "-c", "sb 0", "-c", "p agblocks", img).split()[-1]) * 4096 + 512
        um.flip(frozen, at + 60)  # blocks of the trees: no reader of free space looks at it
        hits += "refused" in um.used_map(frozen)["volumes"][0]
        um.flip(frozen, at + 60)
    assert hits
    with open(frozen, "r+b") as f:  # three records back: too much to be sure of
        f.seek(off + first + 24)
        f.write((1 << 32 | heads[-4] // 512).to_bytes(8, "big"))
    assert "replayed" in um.used_map(frozen)["volumes"][0]["refused"]


@pytest.mark.skipif(not um.can_mount(), reason="needs root and loop devices")
def test_crashed_is_refused(tmp_path):
    """What the log holds is not yet in the trees: a copy of the disk while mounted, as after a power cut."""
    img = make(tmp_path, "default")
    with um.loop(img, "--direct-io=on") as dev:
        root = tmp_path / "mnt"
        root.mkdir()
        um.sh("mount", dev, root)
        try:
            um.churn(root, random.Random(4), 200, 300000)
            um.sh("sync", "-f", root)
            crashed = tmp_path / "crashed.img"
            um.sh("dd", f"if={dev}", f"of={crashed}", "bs=1M", "iflag=direct")
        finally:
            um.sh("umount", root)
    m = um.used_map(crashed)
    assert "replayed" in m["volumes"][0]["refused"] and not m["volumes"][0]["clean"]
    assert m["disks"][0]["used_blocks"] == SIZE // um.BLOCK
    assert any("replayed" in n for n in m["notes"])


@pytest.mark.parametrize("shape", ["default", "v4"])
def test_beside_partclone(shape, tmp_path):
    img = make(tmp_path, shape)
    theirs = um.partclone_used("xfs", img, tmp_path)
    v, = um.used_map(img)["volumes"]
    per = v["unit"] // 512
    free = {s for b in um.runs_to_set(v["free"]) for s in range(b * per, (b + 1) * per)}
    assert not free & theirs


@pytest.mark.parametrize("shape", ["default", "v4", "1k", "rmapbt"])
def test_flipped_bits_never_free(shape, tmp_path):
    img = make(tmp_path, shape)
    block, oracle, _ = um.xfs_free(img)
    sector = int(re.search(r"= (\d+)", um.sh("xfs_db", "-r", "-c", "sb 0", "-c", "p sectsize", img)).group(1))
    agblocks = int(re.search(r"= (\d+)", um.sh("xfs_db", "-r", "-c", "sb 0", "-c", "p agblocks", img)).group(1))
    root = int(re.search(r"= (\d+)", um.sh("xfs_db", "-r", "-c", "agf 1", "-c", "p bnoroot", img)).group(1))
    ag1, tree = agblocks * block, (agblocks + root) * block
    hdr = 16 if shape == "v4" else 56
    spots = [(ag1 + sector + o, "agf") for o in (0, 7, 11, 15, 19, 31, 53, 55)]
    spots += [(tree + o, "tree") for o in (0, 5, 7, hdr, hdr + 2, hdr + 3, hdr + 5, hdr + 7)]
    spots += [(o, "super") for o in (3, 7, 13, 15, 23, 55, 86, 87, 91, 99, 101, 103, 120, 124, 219)]
    named = freed = 0
    for offset, what in spots:
        for bit in (0, 3, 7):
            um.flip(img, offset, bit)
            m = um.used_map(img)
            um.flip(img, offset, bit)
            v = m["volumes"][0]
            if "free" not in v:
                assert m["notes"] or v["type"] == "unknown"
                continue
            ours = {b * v["unit"] // 512 + s for b in um.runs_to_set(v["free"]) for s in range(v["unit"] // 512)}
            theirs = {b * block // 512 + s for b in oracle for s in range(block // 512)}
            assert not ours - theirs, (what, offset, bit)
            freed += 1
            if v["parts_whole"]:
                if what != "super":
                    assert "allocation group 1:" in v["why"]
                assert any("allocation group" in n for n in m["notes"])
                named += 1
            elif shape != "v4":
                assert what == "never", "a checksummed block was changed and nobody noticed"
    assert named and freed


def test_external_log_and_realtime(tmp_path):
    img = um.image(tmp_path / "fs.img", SIZE)
    log = um.image(tmp_path / "log.img", 40 * um.MIB)
    mkfs("-l", f"logdev={log},size=16m", img)
    m = um.used_map(img)
    assert "external log" in m["volumes"][0]["refused"]
    assert m["disks"][0]["used_blocks"] == SIZE // um.BLOCK
    rt = um.image(tmp_path / "rt.img", 400 * um.MIB)
    mkfs("-m", "reflink=0,rmapbt=0", "-r", f"rtdev={rt}", img)
    m = um.used_map(img)
    assert "realtime" in m["volumes"][0]["refused"]
    assert m["disks"][0]["used_blocks"] == SIZE // um.BLOCK
