"""ext2/3/4: our used ranges beside dumpe2fs, partclone and what a mount still finds after everything free became garbage."""

import os
import random
import re
import subprocess
import time

import pytest

from tests.interop import used_map as um

SHAPES = {
    "default": "",
    "default-4k": "-b 4096",
    "4k-many-groups": "-b 4096 -g 2048",
    "1k-no-64bit": "-b 1024 -O ^64bit",
    "2k": "-b 2048",
    "no-csum": "-b 4096 -O ^metadata_csum,^uninit_bg",
    "gdt-csum": "-b 4096 -g 4096 -O ^metadata_csum,uninit_bg",
    "csum-32bit": "-b 1024 -O metadata_csum,^64bit",
    "csum-seed": "-b 1024 -O metadata_csum,metadata_csum_seed",
    "no-flex-bg": "-b 1024 -O ^flex_bg",
    "no-flex-bg-gdt-csum": "-b 1024 -O ^flex_bg,^metadata_csum,uninit_bg,^resize_inode",
    "meta-bg": "-b 1024 -g 1024 -O meta_bg,^resize_inode",
    "meta-bg-4k": "-b 4096 -g 512 -O meta_bg,^resize_inode,^flex_bg",
    "sparse-super2": "-b 1024 -O sparse_super2,^resize_inode",
    "no-sparse-super": "-b 1024 -O ^sparse_super,^resize_inode",
    "bigalloc": "-b 4096 -C 65536 -O bigalloc",
    "bigalloc-8k": "-b 1024 -C 8192 -O bigalloc",
    "ext2": "-t ext2",
    "ext2-old": "-t ext2 -r 0 -b 1024 -I 128",
    "ext3": "-t ext3",
    "no-journal": "-b 4096 -O ^has_journal",
    "quota-verity": "-b 4096 -O quota,verity,casefold,encrypt,inline_data,ea_inode,large_dir",
    "flex-64": "-b 1024 -G 64",
}


def make(tmp_path, shape, size=200 * um.MIB + 5 * 1024):
    img = um.image(tmp_path / "fs.img", size)
    um.sh("mkfs.ext4", "-q", "-F", *SHAPES[shape].split(), img)
    return img


def compare(img, tmp_path, seen=None):
    block, _, oracle = um.dumpe2fs_free(img)
    m = seen or um.used_map(img)
    v, = m["volumes"]
    assert v["type"] in ("ext2", "ext3", "ext4") and "free" in v, v
    assert v["unit"] == block
    ours = um.runs_to_set(v["free"])
    assert v["parts_whole"] == 0, v["why"]
    assert not ours - oracle, f"taken as free, used by dumpe2fs: {sorted(ours - oracle)[:5]}"
    assert not oracle - ours, f"free by dumpe2fs, taken as used: {sorted(oracle - ours)[:5]}"
    # The map of 64 KiB blocks: free exactly when all its filesystem blocks are.
    per = um.BLOCK // block
    total = os.path.getsize(img)
    fs_blocks = total // block
    free64 = {b // per for b in ours}
    expect = {i for i in free64 if all(b in ours for b in range(i * per, min((i + 1) * per, fs_blocks)))
              and min((i + 1) * um.BLOCK, total) <= fs_blocks * block}
    blocks = set(range((total + um.BLOCK - 1) // um.BLOCK))
    assert blocks - um.used_blocks(m["disks"][0]) == expect
    return m


@pytest.mark.parametrize("shape", SHAPES)
def test_shape(shape, tmp_path):
    img = make(tmp_path, shape)
    compare(img, tmp_path)
    if not um.can_mount():
        pytest.skip("needs root and loop devices for the second half")
    options = "" if "old" in shape else "discard"
    try:
        with um.mounted(img, tmp_path / "mnt", options) as root:
            um.churn(root, random.Random(shape), 400, 600000)
            if "bigalloc" not in shape:
                with open(root / "large", "wb") as f:
                    f.write(os.urandom(30 * um.MIB))
            before = um.tree_digest(root)
    except AssertionError as e:
        if "unknown filesystem" in str(e) or "wrong fs type" in str(e):
            pytest.skip(f"this kernel doesn't mount {shape}")
        raise
    m = compare(img, tmp_path)
    assert "clean" in m["volumes"][0] and m["volumes"][0]["clean"]
    out = tmp_path / "copy.img"
    um.copy_used(img, out, m["disks"][0])
    um.sh("e2fsck", "-fn", out)
    with um.mounted(out, tmp_path / "mnt", "ro") as root:
        assert um.tree_digest(root) == before


@pytest.mark.parametrize("shape", ["default", "default-4k", "no-csum", "meta-bg"])
def test_beside_partclone(shape, tmp_path):
    img = make(tmp_path, shape, 100 * um.MIB)
    theirs = um.partclone_used("extfs", img, tmp_path)
    v, = um.used_map(img)["volumes"]
    per = v["unit"] // 512
    free = {s for b in um.runs_to_set(v["free"]) for s in range(b * per, (b + 1) * per)}
    assert not free & theirs
    assert free | theirs >= set(range(4096, 100 * um.MIB // 512))


@pytest.mark.skipif(not um.can_mount(), reason="needs root and loop devices")
@pytest.mark.parametrize("shape", ["default-4k", "1k-no-64bit", "ext3"])
def test_frozen_is_exact(shape, tmp_path):
    """Mounted and busy: refused as an exact answer, good enough as an estimate; frozen: exact, read past the page cache."""
    img = make(tmp_path, shape)
    root = tmp_path / "mnt"
    with um.loop(img, "--direct-io=on") as dev:
        root.mkdir()
        um.sh("mount", dev, root)
        try:
            um.churn(root, random.Random(5), 300, 400000)
            um.check_busy(dev)
            frozen = tmp_path / "frozen.img"
            um.copy_frozen(dev, img, root, frozen)
            before = um.tree_digest(root)
        finally:
            um.sh("umount", root)
    um.sh("e2fsck", "-fn", frozen)
    with um.mounted(frozen, root, "ro") as r:
        assert um.tree_digest(r) == before


def test_journal_to_replay(tmp_path):
    img = make(tmp_path, "default-4k")
    um.sh("debugfs", "-w", "-R", "feature needs_recovery", img)
    m = um.used_map(img)
    assert "replayed" in m["volumes"][0]["refused"]
    assert m["disks"][0]["used_blocks"] == (os.path.getsize(img) + um.BLOCK - 1) // um.BLOCK
    assert any("copied whole" in n and "replayed" in n for n in m["notes"])


@pytest.mark.parametrize("shape", ["default-4k", "no-csum", "gdt-csum", "1k-no-64bit", "bigalloc"])
def test_flipped_bits_never_free(shape, tmp_path):
    """A bit flipped in superblock, descriptors or bitmaps: nothing becomes free by it, and what was hit is named."""
    img = make(tmp_path, shape)
    text = um.sh("dumpe2fs", img)
    block, ratio, oracle = um.dumpe2fs_free(img)
    bitmaps = [int(n) for n in re.findall(r"Block bitmap at (\d+)", text)]
    gdt = 2 * 1024 if block == 1024 else block
    desc = int((re.findall(r"^Group descriptor size:\s+(\d+)", text, re.M) or ["32"])[0])
    rng = random.Random(shape)
    spots = [(bitmaps[0] * block + rng.randrange(64), "bitmap") for _ in range(6)]
    spots += [(gdt + rng.randrange(len(bitmaps)) * desc + o, "desc") for o in (0, 1, 8, 12, 13, 18, 30)]
    spots += [(1024 + o, "super") for o in (0x04, 0x18, 0x20, 0x21, 0x28, 0x38, 0x58, 0x60, 0x62, 0x64, 0x66)]
    freed = 0
    for offset, what in spots:
        for bit in (0, 2, 7):
            um.flip(img, offset, bit)
            m = um.used_map(img)
            um.flip(img, offset, bit)
            v = m["volumes"][0]
            if "free" not in v:
                assert m["notes"] or v["type"] == "unknown"
                continue
            unit = v["unit"]
            ours = {s for b in um.runs_to_set(v["free"]) for s in range(b * unit // 1024, (b + 1) * unit // 1024)}
            theirs = {s for b in oracle for s in range(b * block // 1024, (b + 1) * block // 1024)}
            assert not ours - theirs, (what, hex(offset), bit)
            freed += 1
            if what == "bitmap":
                assert v["parts_whole"] == 1 and "block group 0" in v["why"], v
                assert any("1 of" in n and "block group 0" in n for n in m["notes"])
    assert freed


def test_errors_noted_by_the_kernel(tmp_path):
    img = make(tmp_path, "no-csum")
    um.sh("debugfs", "-w", "-R", "set_super_value state 3", img)
    assert "e2fsck" in um.used_map(img)["volumes"][0]["refused"]


def test_larger_than_its_disk(tmp_path):
    img = make(tmp_path, "default-4k")
    os.truncate(img, 100 * um.MIB)
    m = um.used_map(img)
    assert "larger" in m["volumes"][0]["refused"]
    assert m["disks"][0]["used_blocks"] == 100 * um.MIB // um.BLOCK


def test_large_and_sparse(tmp_path):
    """Reading a 4 TiB filesystem's map takes seconds, not minutes: it happens while the source is frozen."""
    img = um.image(tmp_path / "big.img", 4 << 40)
    r = subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", "-E", "lazy_itable_init=1,nodiscard", str(img)])
    if r.returncode:
        pytest.skip("no room for a 4 TiB sparse file here")
    start = time.monotonic()
    m = um.used_map(img, fs=False)
    took = time.monotonic() - start
    assert m["volumes"][0]["parts_whole"] == 0
    total = int(re.search(r"^Free blocks:\s+(\d+)", um.sh("dumpe2fs", "-h", img), re.M).group(1))
    assert m["volumes"][0]["used_bytes"] == (4 << 40) - total * 4096
    assert took < 60
