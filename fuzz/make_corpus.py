#!/usr/bin/python3
"""Makes the corpora of the disk parsers anew with the real tools (root and loop devices for LVM). Format: sparse.h."""

import os
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from tests.interop import test_layout, used_map as um  # noqa: E402

LIMIT = 60 * 1024


def pack(img, ranges, flags=0):
    """The image's non-zero 64-byte pieces within the ranges."""
    out = bytearray(struct.pack("<BQ", flags, os.path.getsize(img)))
    with open(img, "rb") as f:
        for start, length in ranges:
            f.seek(start)
            data = f.read(length)
            at = 0
            while at < len(data):
                if not any(data[at:at + 64]):
                    at += 64
                    continue
                end = at
                while end < len(data) and any(data[end:end + 64]):
                    end += 64
                piece = data[at:end]
                out += struct.pack("<QI", start + at, len(piece)) + piece
                at = end
    return bytes(out)


def save(parser, name, data, damaged=3):
    """The input, and a few with flipped bits."""
    if len(data) > LIMIT:
        print(f"{parser}/{name}: {len(data)} bytes, cut")
        data = data[:LIMIT]
    folder = HERE / "corpus" / parser
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    rng = random.Random(name)
    for i in range(damaged):
        bad = bytearray(data)
        for _ in range(1 + i * 3):
            bad[rng.randrange(9, len(bad))] ^= 1 << rng.randrange(8)
        (folder / f"{name}-bad{i}").write_bytes(bad)


def ext4(tmp):
    for name, args in {
        "1k": "-b 1024 -g 1024", "no-csum": "-b 1024 -g 1024 -O ^metadata_csum,^uninit_bg", "gdt-csum": "-b 1024 -g 2048 -O ^metadata_csum,uninit_bg",
        "bigalloc": "-b 1024 -C 4096 -O bigalloc,^metadata_csum", "meta-bg": "-b 1024 -g 256 -O meta_bg,^resize_inode,^metadata_csum",
        "4k": "-b 4096", "ext2": "-t ext2 -b 1024", "32bit": "-b 1024 -O ^64bit,^metadata_csum,sparse_super2,^resize_inode",
    }.items():
        img = um.image(tmp / "e", 8 * um.MIB)
        um.sh("mkfs.ext4", "-q", "-F", *args.split(), img)
        block = um.dumpe2fs_free(img)[0]
        text = um.sh("dumpe2fs", img)
        bitmaps = sorted({int(n) for n in re.findall(r"Block bitmap at (\d+)", text)})
        gdts = sorted({(int(a), int(b or a)) for a, b in re.findall(r"Group descriptors? at (\d+)(?:-(\d+))?", text)})
        ranges = [(1024, 1024)] + [(a * block, (b - a + 1) * block) for a, b in (gdts if "meta" in name else gdts[:1])]
        save("ext4", name, pack(img, ranges + [(b * block, block) for b in bitmaps]))


def xfs(tmp):
    env = dict(os.environ, TEST_DIR="1", TEST_DEV="1", QA_CHECK_FS="1")
    for name, args in {"v4": "-m crc=0 -l size=10m", "v5": "-l size=10m", "v4-512": "-m crc=0 -b size=512 -l size=10m", "log-v1": "-m crc=0 -l size=10m,version=1"}.items():
        img = um.image(tmp / "x", 128 * um.MIB)
        um.sh("mkfs.xfs", "-q", "-f", "-d", "agcount=2", *args.split(), img, env=env)
        sb = dict(re.findall(r"^(\w+) = (\d+)$", um.sh("xfs_db", "-r", "-c", "sb 0", "-c", "p", img), re.M))
        block, ags = int(sb["blocksize"]), int(sb["agblocks"])
        ranges = [(0, 512)]
        for ag in range(2):
            root = int(re.search(r"= (\d+)", um.sh("xfs_db", "-r", "-c", f"agf {ag}", "-c", "p bnoroot", img)).group(1))
            ranges += [(ag * ags * block + 512, 512), ((ag * ags + root) * block, block)]
        shift = int(sb["agblklog"])
        log = ((int(sb["logstart"]) >> shift) * ags + (int(sb["logstart"]) & ((1 << shift) - 1))) * block
        save("xfs", name, pack(img, ranges + [(log, 4096)]))
        if name != "v5" or not um.can_mount():
            continue
        with um.mounted(img, tmp / "m") as root:
            um.churn(root, random.Random(1), 4, 3000)
            um.sh("fsfreeze", "-f", root)
            tree = int(re.search(r"= (\d+)", um.sh("xfs_db", "-r", "-c", "agf 0", "-c", "p bnoroot", img)).group(1))
            frozen = um.image(tmp / "frozen", 0)
            frozen.write_bytes(img.read_bytes())
            um.sh("fsfreeze", "-u", root)
        with open(frozen, "rb") as f:
            f.seek(log)
            data = f.read(10 * um.MIB)
        # Ahead of its head the kernel clears old blocks with empty records of the lap before.
        heads = [i for i in range(0, len(data), 512) if data[i:i + 8] == b"\xfe\xed\xba\xbe\0\0\0\1"]
        ranges = [(0, 512), (512, 512), (ags * block + 512, 512), (tree * block, block)]
        save("xfs", "frozen", pack(frozen, ranges + [(log + at, 8) for at in range(0, heads[-1], 512)] +
                                    [(log + h, 16384) for h in heads[-2:]]))


def mbr_gpt(tmp):
    for name, script in {
        "dos": "label: dos\n2048,2048,83\n,8192,5\n,1024,83\n,1024,82\n,1024,83\n",
        "gpt": "label: gpt\n2048,2048,L\n,4096,U\n,,L\n",
        "many": "label: gpt\n" + ",64,L\n" * 30,
    }.items():
        img = um.image(tmp / "d", 16 * um.MIB)
        test_layout.sfdisk(img, script)
        for flags in (0, 2):
            save("mbr_gpt", f"{name}-{flags}", pack(img, [(0, 16 * um.MIB)], flags))
    um.sh("truncate", "-s", "0", img)
    img = um.image(tmp / "d", 16 * um.MIB)
    with um.loop(img, "--sector-size", "4096") as dev:
        test_layout.sfdisk(dev, "label: gpt\n,256,L\n,,U\n")
    save("mbr_gpt", "gpt-4k", pack(img, [(0, 16 * um.MIB)], 3))
    save("mbr_gpt", "gpt-4k-as-512", pack(img, [(0, 16 * um.MIB)], 2))


def lvm(tmp):
    with test_layout.lvm_disks(tmp, 1, 64 * um.MIB) as (tool, imgs, devs):
        def keep(name):
            um.sh("blockdev", "--flushbufs", devs[0])
            with open(imgs[0], "rb") as f:
                f.seek(4096 + 40)
                offset, size = struct.unpack("<QQ", f.read(16))
            data = pack(imgs[0], [(0, 8192 - 512), (4096 + offset, size)])
            for flags in (0, 2, 6):
                save("lvm", f"{name}-{flags}", bytes([flags]) + data[1:])
        keep("empty")
        tool.create("a", "vg0", "-L", "8M")
        tool.create("b", "vg0", "-L", "8M")
        tool("lvextend", "-L", "16M", "vg0/a")
        tool("lvremove", "-y", "vg0/b")
        keep("two")


def main():
    with tempfile.TemporaryDirectory() as tmp:
        for make in (ext4, xfs, mbr_gpt, lvm):
            make(pathlib.Path(tmp))


main()
