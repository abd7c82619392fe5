"""What the tests of layout, filesystem readers and the used map share: images, mounts, the tool, oracles."""

import contextlib
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import subprocess

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("REPLANT_BUILD", TOP / "build"))
BLOCK = 65536
MIB = 1 << 20


def sh(*argv, check=True, **kw):
    r = subprocess.run([str(a) for a in argv], capture_output=True, text=True, **kw)
    if check and r.returncode:
        raise AssertionError(f"{argv}: status {r.returncode}\n{r.stdout}\n{r.stderr}")
    return r.stdout


def used_map(*images, live=False, fs=True, direct=False):
    argv = [BUILD / "tools/used-map", "show"]
    argv += ["--fs"] * fs + ["--live"] * live + ["--direct"] * direct
    return json.loads(sh(*argv, *images))


def image(path, size):
    path.unlink(missing_ok=True)
    with open(path, "wb") as f:
        f.truncate(size)
    return path


def can_mount():
    return os.geteuid() == 0 and os.path.exists("/dev/loop-control")


@contextlib.contextmanager
def mounted(img, where, options=""):
    where.mkdir(exist_ok=True)
    sh("mount", "-o", "loop" + ("," + options if options else ""), img, where)
    try:
        yield where
    finally:
        sh("umount", where)


def copy_frozen(dev, img, root, target):
    """Freezes, reads the exact map past the page cache and copies what it calls used."""
    sh("fsfreeze", "-f", root)
    try:
        m = used_map(dev, direct=True)
        v, = m["volumes"]
        assert v["clean"] and v["parts_whole"] == 0, v
        copy_used(img, target, m["disks"][0])
    finally:
        sh("fsfreeze", "-u", root)


def check_busy(dev):
    """Mounted: refused as an exact answer, good enough as an estimate."""
    v, = used_map(dev, direct=True)["volumes"]
    assert "replayed" in v["refused"] and not v["clean"], v
    v, = used_map(dev, direct=True, live=True)["volumes"]
    assert "free" in v


@contextlib.contextmanager
def loop(img, *options):
    dev = sh("losetup", "--show", "-f", *options, img).strip()
    try:
        yield pathlib.Path(dev)
    finally:
        sh("losetup", "-d", dev)


def churn(root, rng, count, top):
    """Files of many sizes, holes and fragments, a third of them deleted again."""
    names = []
    for i in range(count):
        d = root / f"d{rng.randrange(6)}"
        d.mkdir(exist_ok=True)
        p = d / f"f{i}"
        size = int(rng.paretovariate(0.6) * 500) % top
        with open(p, "wb") as f:
            f.write(rng.randbytes(size))
            if i % 11 == 0:
                f.seek(size + rng.randrange(top))
                f.write(b"behind a hole")
        names.append(p)
    for p in rng.sample(names, count // 3):
        p.unlink()


def tree_digest(root):
    """Every name, type, size and content below root."""
    h = hashlib.sha256()
    for base, dirs, files in os.walk(root):
        dirs.sort()
        for name in sorted(files):
            p = os.path.join(base, name)
            h.update(os.path.relpath(p, root).encode() + b"\0")
            with open(p, "rb") as f:
                h.update(hashlib.sha256(f.read()).digest())
    return h.hexdigest()


def runs_to_set(runs):
    out = set()
    for first, count in runs:
        out.update(range(first, first + count))
    return out


def used_blocks(disk):
    return runs_to_set(disk["runs"])


def copy_used(img, out, disk):
    """What a migration would carry over; all other blocks become garbage, which nobody may miss."""
    shutil.copyfile(img, out)
    used = used_blocks(disk)
    size = os.path.getsize(img)
    garbage = random.Random(1).randbytes(BLOCK)
    with open(out, "r+b") as f:
        for i in range((size + BLOCK - 1) // BLOCK):
            if i not in used:
                f.seek(i * BLOCK)
                f.write(garbage[:min(BLOCK, size - i * BLOCK)])


def flip(img, offset, bit=0):
    with open(img, "r+b") as f:
        f.seek(offset)
        b = f.read(1)[0]
        f.seek(offset)
        f.write(bytes([b ^ (1 << bit)]))


def dumpe2fs_free(img):
    """(block size, cluster ratio, set of free blocks) by e2fsprogs."""
    text = sh("dumpe2fs", img)
    block = int(re.search(r"^Block size:\s+(\d+)", text, re.M).group(1))
    m = re.search(r"^Cluster size:\s+(\d+)", text, re.M)
    ratio = int(m.group(1)) // block if m else 1
    count = int(re.search(r"^Block count:\s+(\d+)", text, re.M).group(1))
    free = set()
    for line in re.findall(r"^  Free blocks: (.*)$", text, re.M):
        for part in filter(None, (p.strip() for p in line.split(","))):
            a, _, b = part.partition("-")
            free.update(range(int(a), min(int(b or a) + ratio, count)))
    return block, ratio, free


def xfs_free(img):
    """(block size, set of free blocks, blocks on the free lists of the groups) by xfs_db; blocks from the start of the disk."""
    fields = dict(re.findall(r"^(\w+) = (\d+)$", sh("xfs_db", "-r", "-c", "sb 0", "-c", "p", img), re.M))
    agblocks, agcount = int(fields["agblocks"]), int(fields["agcount"])
    free = set()
    for line in sh("xfs_db", "-r", "-c", "freesp -d", img).splitlines():
        m = re.match(r"^\s*(\d+)\s+(\d+)\s+(\d+)\s*$", line)
        if m:
            ag, bno, n = map(int, m.groups())
            free.update(range(ag * agblocks + bno, ag * agblocks + bno + n))
    flcount = sum(int(re.search(r"flcount = (\d+)", sh("xfs_db", "-r", "-c", f"agf {ag}", "-c", "p flcount", img)).group(1))
                  for ag in range(agcount))
    return int(fields["blocksize"]), free, flcount


def partclone_used(kind, img, tmp):
    """Set of used 512-byte sectors by partclone."""
    out = tmp / "domain"
    out.unlink(missing_ok=True)
    sh(f"partclone.{kind}", "-D", "-F", "-s", img, "-o", out, "-L", tmp / "partclone.log")
    used = set()
    for a, b in re.findall(r"^(0x[0-9A-F]+)\s+(0x[0-9A-F]+)\s+\+", out.read_text(), re.M):
        used.update(range(int(a, 16) // 512, (int(a, 16) + int(b, 16)) // 512))
    return used
