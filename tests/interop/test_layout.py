"""Partition tables beside sfdisk and sgdisk, LVM beside lvm's own tools; damaged ones stay whole."""

import contextlib
import json
import os
import re
import struct
import zlib

import pytest

from tests.interop import used_map as um

NEEDS_LOOP = pytest.mark.skipif(not um.can_mount(), reason="needs root and loop devices")


def sfdisk(img, script):
    um.sh("sfdisk", "-q", img, input=script)


def oracle(img):
    return json.loads(um.sh("sfdisk", "-J", img))["partitiontable"]


def same_as_sfdisk(img, m, sector=512):
    t = oracle(img)
    assert m["disks"][0]["table"] == t["label"]
    assert m["disks"][0]["uuid"] == t["id"].lower().removeprefix("0x")
    want = {}
    for p in t.get("partitions", []):
        number = int(re.search(r"(\d+)$", p["node"]).group(1))
        kind = p["type"].lower() if t["label"] == "gpt" else f"0x{int(p['type'], 16):02x}"
        want[number] = (p["start"] * sector, p["size"] * sector, kind, p.get("uuid", "").lower())
    got = {}
    for v in m["volumes"]:
        kind = v["part_type"]
        if kind in ("0x05", "0x0f", "0x85"):
            assert not v["linear"] and not v["map"]
            want.pop(v["number"])
            continue
        (_, length, disk, offset), = v["map"]
        assert v["linear"] and disk == 0
        got[v["number"]] = (offset, length, kind, v["uuid"] if t["label"] == "gpt" else "")
        if t["label"] == "dos":
            assert v["uuid"] == f"{m['disks'][0]['uuid']}-{v['number']:02x}"
    assert got == want


@pytest.mark.parametrize("script", [
    "label: dos\n2048,20480,83\n,20480,82,*\n",
    "label: dos\n2048,20480,83\n,60000,5\n,,83\n,10000,83\n,10000,83\n,,82\n",
    "label: dos\n63,10017,83\n,,f\n,4096,83\n,4096,83\n,4096,83\n,4096,83\n,4096,83\n",
    "label: gpt\n2048,2048,21686148-6449-6E6F-744E-656564454649\n,40960,U\n,,L\n",
    "label: gpt\n" + ",2048,L\n" * 60,
    "label: gpt\n",
])
def test_beside_sfdisk(script, tmp_path):
    img = um.image(tmp_path / "d.img", 80 * um.MIB)
    sfdisk(img, script)
    m = um.used_map(img)
    same_as_sfdisk(img, m)
    assert m["disks"][0]["used_blocks"] == 80 * um.MIB // um.BLOCK


def test_beside_sgdisk(tmp_path):
    """A table of another size at another place, holes in the numbers."""
    img = um.image(tmp_path / "d.img", 80 * um.MIB)
    um.sh("sgdisk", "-S", "12", "-n", "3:4096:8191", "-n", "9:10240:+5M", "-t", "9:8e00", img)
    same_as_sfdisk(img, um.used_map(img))


@NEEDS_LOOP
def test_4k_sectors(tmp_path):
    img = um.image(tmp_path / "d.img", 80 * um.MIB)
    for script in ("label: gpt\n,4096,L\n,,U\n", "label: dos\n256,4096,83\n,,5\n,2048,83\n"):
        with um.loop(img, "--sector-size", "4096") as dev:
            sfdisk(dev, script)
            m = um.used_map(dev, direct=True)
            same_as_sfdisk(dev, m, 4096)
            if "gpt" in script:  # the image of such a disk in a file
                assert [v["map"] for v in um.used_map(img)["volumes"]] == [v["map"] for v in m["volumes"]]


def gpt_disk(tmp_path):
    img = um.image(tmp_path / "d.img", 80 * um.MIB)
    sfdisk(img, "label: gpt\n2048,32768,L\n,,L\n")
    part = um.image(tmp_path / "p.img", 16 * um.MIB)
    um.sh("mkfs.ext4", "-q", "-F", part)
    um.sh("dd", f"if={part}", f"of={img}", "bs=1M", "seek=1", "conv=notrunc,sparse")
    return img


def test_filesystem_in_partition(tmp_path):
    img = gpt_disk(tmp_path)
    m = um.used_map(img)
    block, _, free = um.dumpe2fs_free(tmp_path / "p.img")
    assert um.runs_to_set(m["volumes"][0]["free"]) == free
    per = um.BLOCK // block
    expect = {16 + b // per for b in free if all(x in free for x in range(b // per * per, b // per * per + per))}
    assert set(range(80 * 16)) - um.used_blocks(m["disks"][0]) == expect and expect
    assert m["notes"] == [f"partition 2 of '{img}' is copied whole: its content is unknown"]


def test_gpt_falls_back_to_its_copy(tmp_path):
    img = gpt_disk(tmp_path)
    whole = um.used_map(img)
    for offset in (512, 512 + 16, 512 + 40, 512 + 72, 512 + 88, 1024, 1024 + 33, 1024 + 127 * 128):
        um.flip(img, offset, 1)
        m = um.used_map(img)
        um.flip(img, offset, 1)
        assert m["disks"] == whole["disks"] and m["volumes"] == whole["volumes"]
        assert any("copy at the end was used" in n for n in m["notes"])


def test_gpt_both_damaged(tmp_path):
    img = gpt_disk(tmp_path)
    um.flip(img, 512 + 20)
    um.flip(img, 80 * um.MIB - 512 + 30)
    m = um.used_map(img)
    assert not m["volumes"] and m["disks"][0]["used_blocks"] == 80 * 16
    assert any("both copies" in n for n in m["notes"])


def gpt_edit(img, number, first, last):
    """Changes an entry and makes all checksums of the first copy right again."""
    with open(img, "r+b") as f:
        f.seek(1024 + (number - 1) * 128 + 32)
        f.write(struct.pack("<QQ", first, last))
        f.seek(1024)
        table = zlib.crc32(f.read(128 * 128))
        f.seek(512)
        h = bytearray(f.read(92))
        h[88:92] = struct.pack("<I", table)
        h[16:20] = bytes(4)
        h[16:20] = struct.pack("<I", zlib.crc32(h))
        f.seek(512)
        f.write(h)


@pytest.mark.parametrize("first,last,word", [
    (40000, 1 << 40, "beyond the end"), (60000, 50000, "beyond the end"), (2040, 3000, "overlap"),
    (0, 1 << 63, "beyond the end"), (1, 2000, "outside the range"), ((1 << 64) - 1, (1 << 64) - 1, "beyond the end"),
    (163000, 163839, "outside the range"),
])
def test_gpt_impossible_entries(tmp_path, first, last, word):
    img = gpt_disk(tmp_path)
    gpt_edit(img, 2, first, last)
    m = um.used_map(img)
    assert any(word in n for n in m["notes"]), m["notes"]
    assert not m["volumes"][1]["linear"]
    if word == "overlap":
        assert m["disks"][0]["used_blocks"] == 80 * 16


def test_gpt_without_protective_mbr(tmp_path):
    img = gpt_disk(tmp_path)
    with open(img, "r+b") as f:
        f.write(bytes(512))
    m = um.used_map(img)
    assert not m["volumes"] and m["disks"][0]["used_blocks"] == 80 * 16 and "protective" in m["notes"][0]


def logical_disk(tmp_path):
    img = um.image(tmp_path / "d.img", 80 * um.MIB)
    sfdisk(img, "label: dos\n2048,20480,83\n,,5\n,10000,83\n,10000,83\n,10000,83\n")
    ebrs, at = [], None
    with open(img, "rb") as f:
        f.seek(446 + 16 + 8)
        first = struct.unpack("<I", f.read(4))[0]
        at = first
        while at:
            ebrs.append(at)
            f.seek(at * 512 + 446 + 16 + 8)
            rel = struct.unpack("<I", f.read(4))[0]
            at = first + rel if rel else None
    return img, ebrs


@pytest.mark.parametrize("target,word", [("self", "backwards"), ("first", "backwards"), ("far", "outside"),
                                         ("garbage", "no signature")])
def test_logical_chain_broken(tmp_path, target, word):
    img, ebrs = logical_disk(tmp_path)
    assert len(ebrs) == 3
    rel = {"self": ebrs[1] - ebrs[0], "first": 0, "far": 1 << 30, "garbage": ebrs[1] + 8 - ebrs[0]}[target]
    with open(img, "r+b") as f:
        f.seek(ebrs[1] * 512 + 446 + 16 + 8)
        f.write(struct.pack("<I", rel))
        if target == "first":  # relative 0 would be "no next": make it the extended partition's own start
            f.seek(ebrs[1] * 512 + 446 + 16 + 12)
            f.write(struct.pack("<I", 100))
    m = um.used_map(img)
    assert any("chain" in n and word in n for n in m["notes"]), m["notes"]
    assert [v["number"] for v in m["volumes"]] == [1, 2, 5, 6]
    assert m["disks"][0]["used_blocks"] == 80 * 16


def test_table_and_filesystem_on_one_disk(tmp_path):
    """A filesystem over the whole disk with a partition table left in its first sector: neither is believed."""
    img = um.image(tmp_path / "d.img", 80 * um.MIB)
    um.sh("mkfs.ext4", "-q", "-F", img)
    assert um.used_map(img)["disks"][0]["used_blocks"] < 400
    sfdisk(img, "label: dos\n2048,,83\n")
    um.sh("mkfs.ext4", "-q", "-F", "-E", f"offset={1 << 20}", img, "70M")
    with open(img, "r+b") as f:  # sfdisk and mkfs leave byte 1024 on alone; be sure
        f.seek(1024 + 0x38)
        assert f.read(2) == b"\x53\xef"
    m = um.used_map(img)
    assert m["disks"][0]["used_blocks"] == 80 * 16
    assert any("begins like ext" in n for n in m["notes"])


@pytest.mark.parametrize("size", [0, 1, 511, 512, 1024, 4096, 65536, 65537, 100000])
def test_tiny(tmp_path, size):
    m = um.used_map(um.image(tmp_path / "d.img", size))
    assert m["disks"][0]["used_blocks"] == (size + um.BLOCK - 1) // um.BLOCK


def test_containers_are_not_looked_through(tmp_path):
    img = um.image(tmp_path / "d.img", 64 * um.MIB)
    um.sh("mkfs.ext4", "-q", "-F", img)
    for offset, magic, name in ((0, b"LUKS\xba\xbe", "crypto_LUKS"), (4096, b"\xfc\x4e\x2b\xa9", "linux_raid_member"),
                                (64 * um.MIB - 65536, b"\xfc\x4e\x2b\xa9", "linux_raid_member"),
                                (64 * um.MIB - 8192, b"\xfc\x4e\x2b\xa9", "linux_raid_member")):
        with open(img, "r+b") as f:
            f.seek(offset)
            old = f.read(len(magic))
            f.seek(offset)
            f.write(magic)
            f.flush()
            m = um.used_map(img)
            f.seek(offset)
            f.write(old)
        assert m["volumes"][0]["type"] == name and m["disks"][0]["used_blocks"] == 1024
    assert um.used_map(img)["disks"][0]["used_blocks"] < 300


def test_swap(tmp_path):
    img = um.image(tmp_path / "d.img", 64 * um.MIB)
    for page in (4096, 65536):
        um.sh("mkswap", "-p", page, "-L", "tausch", img)
        m = um.used_map(img)
        assert m["volumes"][0]["type"] == "swap" and m["volumes"][0]["label"] == "tausch"
        assert m["disks"][0]["runs"] == [[0, 1]]
        with open(img, "r+b") as f:  # a hibernated machine
            f.seek(page - 10)
            f.write(b"S1SUSPEND\0")
        m = um.used_map(img)
        assert m["disks"][0]["used_blocks"] == 1024
    um.sh("mkswap", img)
    os.truncate(img, 32 * um.MIB)
    assert um.used_map(img)["disks"][0]["used_blocks"] == 512


# ---- LVM ----

class Lvm:
    """lvm's own tools on a few devices of ours and nothing else; they need no device-mapper for metadata."""

    def __init__(self, devices):
        accept = ",".join(f'"a|^{d}$|"' for d in devices)
        self.config = (f'devices {{ use_devicesfile=0 filter=[{accept},"r|.*|"] }} backup {{ backup=0 archive=0 }} '
                       'activation { udev_sync=0 udev_rules=0 monitoring=0 }')

    def __call__(self, *argv):
        return um.sh("lvm", *argv, "--config", self.config, "--driverloaded", "n",
                     env=dict(os.environ, LVM_SUPPRESS_FD_WARNINGS="1"))

    def create(self, name, vg, *argv):
        self("lvcreate", "-an", "-Zn", "-Wn", "-y", "-n", name, *argv, vg)

    def report(self, command, fields, *argv):
        out = self(command, "--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields, *argv)
        return list(json.loads(out)["report"][0].values())[0]


@contextlib.contextmanager
def lvm_disks(tmp_path, n=3, size=128 * um.MIB, args=()):
    imgs = [um.image(tmp_path / f"pv{i}.img", size) for i in range(n)]
    with contextlib.ExitStack() as stack:
        devs = [stack.enter_context(um.loop(i)) for i in imgs]
        lvm = Lvm(devs)
        lvm("pvcreate", "-y", *args, *devs)
        lvm("vgcreate", "-y", "vg0", *devs)
        yield lvm, imgs, devs


def place(lvm, devs, lv, content, imgs):
    """Writes an LV's content to where lvs says it lies. Returns [(disk, offset, length)] in logical order."""
    pvs = {p["pv_name"]: p for p in lvm.report("pvs", "pv_name,pe_start")}
    extent = int(lvm.report("vgs", "vg_extent_size")[0]["vg_extent_size"])
    out, data, at = [], open(content, "rb").read(), 0
    for s in sorted(lvm.report("lvs", "seg_start_pe,seg_size,seg_pe_ranges,stripes,stripe_size,segtype", "--segments",
                               f"vg0/{lv}"), key=lambda s: int(s["seg_start_pe"])):
        ranges = []
        for r in s["seg_pe_ranges"].split():
            dev, a, b = re.match(r"(.*):(\d+)-(\d+)$", r).groups()
            ranges.append((devs.index(um.pathlib.Path(dev)), int(pvs[dev]["pe_start"]) + int(a) * extent,
                           (int(b) - int(a) + 1) * extent))
        step = int(s["stripe_size"]) if len(ranges) > 1 else ranges[0][2]
        for row in range(ranges[0][2] // step):
            out += [(d, off + row * step, step) for d, off, _ in ranges]
    for d, off, n in out:
        with open(imgs[d], "r+b") as f:
            f.seek(off)
            f.write(data[at:at + n])
        at += n
    return out


@NEEDS_LOOP
@pytest.mark.parametrize("args", [(), ("--metadatacopies", "2"), ("--dataalignment", "4m"), ("--bootloaderareasize", "2m")])
def test_lvm_linear_and_striped(tmp_path, args):
    with lvm_disks(tmp_path, args=args) as (lvm, imgs, devs):
        lvm.create("root", "vg0", "-L", "40M")
        lvm.create("str", "vg0", "-i", "3", "-I", "64", "-L", "96M")
        lvm.create("gap", "vg0", "-L", "8M")
        lvm.create("more", "vg0", "-L", "20M")
        lvm("lvextend", "-L", "100M", "vg0/root")
        lvm("lvremove", "-y", "vg0/gap")
        places, frees = {}, {}
        for lv in ("root", "str"):
            size = int(lvm.report("lvs", "lv_size", f"vg0/{lv}")[0]["lv_size"])
            fs = um.image(tmp_path / f"{lv}.fs", size)
            um.sh("mkfs.ext4", "-q", "-F", "-b", "4096", fs)
            places[lv] = place(lvm, devs, lv, fs, imgs)
            frees[lv] = um.dumpe2fs_free(fs)[2]
        free_pes = {}
        for p in lvm.report("pvs", "pv_name,pv_free,pe_start"):
            free_pes[devs.index(um.pathlib.Path(p["pv_name"]))] = int(p["pv_free"])
        for d in devs:
            um.sh("blockdev", "--flushbufs", d)
        # Given in another order than they were made.
        order = [2, 0, 1]
        m = um.used_map(*[imgs[i] for i in order])
        ids = {v["lv_name"]: v["lv_uuid"] for v in lvm.report("lvs", "lv_name,lv_uuid")}
    vols = {v["name"]: v for v in m["volumes"] if v["kind"] == "lv"}
    assert set(vols) == {"vg0/root", "vg0/str", "vg0/more"}
    assert all(v["is_pv"] for v in m["volumes"] if v["kind"] == "whole_disk")
    expect_free = [set() for _ in range(3)]  # 4 KiB units on each disk
    for lv, place_list in places.items():
        v = vols[f"vg0/{lv}"]
        assert v["linear"] and v["type"] == "ext4" and v["uuid"] == ids[lv]
        assert um.runs_to_set(v["free"]) == frees[lv]
        at = 0
        for d, off, n in place_list:
            expect_free[d].update((off // 4096 + k) for k in range(n // 4096) if at // 4096 + k in frees[lv])
            at += n
    for d in range(3):
        got = sum(n for disk, _, n in m["free"] if order[disk] == d)
        assert got == free_pes[d]
    for disk, off, n in m["free"]:
        expect_free[order[disk]].update(range(off // 4096, (off + n) // 4096))
    for k, d in enumerate(order):
        want = {b for b in range(128 * 16) if all(x in expect_free[d] for x in range(b * 16, b * 16 + 16))}
        assert set(range(128 * 16)) - um.used_blocks(m["disks"][k]) == want and want
    # "more" has no filesystem: whole.
    assert any("vg0/more" in n for n in m["notes"])


def all_used(m, *indexes):
    return all(m["disks"][i]["used_blocks"] == m["disks"][i]["size"] // um.BLOCK for i in indexes)


@NEEDS_LOOP
def test_lvm_doubts(tmp_path):
    """A missing, stale, doubled or damaged physical volume: everything of the group is whole, and the note says why."""
    with lvm_disks(tmp_path) as (lvm, imgs, devs):
        lvm.create("root", "vg0", "-L", "40M")
        old = imgs[1].read_bytes()
        lvm.create("other", "vg0", "-L", "8M")
        for d in devs:
            um.sh("blockdev", "--flushbufs", d)
    assert not all_used(um.used_map(*imgs), 0, 1, 2)
    m = um.used_map(imgs[0], imgs[2])
    assert all_used(m, 0, 1) and any("'vg0'" in n and "missing" in n for n in m["notes"])
    m = um.used_map(*imgs, imgs[1])
    assert all_used(m, 0, 1, 2, 3) and any("twice" in n for n in m["notes"])
    new = imgs[1].read_bytes()
    imgs[1].write_bytes(old)
    m = um.used_map(*imgs)
    assert all_used(m, 0, 1, 2) and any("disagree" in n for n in m["notes"])
    imgs[1].write_bytes(new)
    with open(imgs[1], "rb") as f:
        f.seek(4096 + 40)
        text = 4096 + struct.unpack("<Q", f.read(8))[0]
    spots = [512, 512 + 8, 512 + 16, 512 + 20, 512 + 24, 512 + 33, 512 + 66, 512 + 100, 4096, 4096 + 5, 4096 + 20, 4096 + 25,
             4096 + 33, 4096 + 41, 4096 + 49, 4096 + 57, text, text + 100, text + 500]
    for spot in spots:
        um.flip(imgs[1], spot, 3)
        m = um.used_map(*imgs)
        um.flip(imgs[1], spot, 3)
        assert all_used(m, 0, 1, 2), spot
        assert any("vg0" in n or "LVM" in n for n in m["notes"]), spot
    assert not all_used(um.used_map(*imgs), 0, 1, 2)


@NEEDS_LOOP
@pytest.mark.parametrize("at", [65536, 8192])
def test_lvm_on_a_raid(tmp_path, at):
    """md's superblock at the end (0.90, 1.0): the label at the start is the array's, its extents are not where it says."""
    with lvm_disks(tmp_path, 1) as (lvm, imgs, devs):
        lvm.create("root", "vg0", "-L", "40M")
        um.sh("blockdev", "--flushbufs", devs[0])
    assert not all_used(um.used_map(*imgs), 0)
    for magic in (b"\xfc\x4e\x2b\xa9", b"\xa9\x2b\x4e\xfc") if at == 65536 else (b"\xfc\x4e\x2b\xa9",):
        with open(imgs[0], "r+b") as f:
            f.seek(128 * um.MIB - at)
            f.write(magic)
        m = um.used_map(*imgs)
        assert all_used(m, 0) and any("RAID" in n for n in m["notes"]), m["notes"]


@NEEDS_LOOP
def test_lvm_ring_wraps(tmp_path):
    """Many changes carry the text around the end of its ring; ours must keep up with lvm."""
    wrapped = False
    with lvm_disks(tmp_path, 1) as (lvm, imgs, devs):
        lvm.create("a", "vg0", "-L", "8M")
        lvm("vgchange", *[w for i in range(50) for w in ("--addtag", f"t{i}" + "x" * 900)], "vg0")
        for i in range(40):
            lvm("lvchange", "--addtag" if i % 2 == 0 else "--deltag", "t", "vg0/a")
            um.sh("blockdev", "--flushbufs", devs[0])
            with open(imgs[0], "rb") as f:
                f.seek(4096 + 32)
                area, offset, size = struct.unpack("<QQQ", f.read(24))
            wrapped = wrapped or offset + size > area
            m = um.used_map(imgs[0])
            assert not all_used(m, 0) and [v["name"] for v in m["volumes"]] == ["whole disk", "vg0/a"], m["notes"]
    assert wrapped


def segment(kind, count, rest):
    return ("segment_count = 1\nsegment1 {\nstart_extent = 0\nextent_count = %d\ntype = \"%s\"\n%s\n}\n" % (count, kind, rest))


def lv_text(name, n, visible, body):
    status = '"READ", "WRITE"' + (', "VISIBLE"' if visible else "")
    return (f'{name} {{\nid = "AAAAAA-AAAA-AAAA-AAAA-AAAA-AAAA-AAAA{n:02d}"\nstatus = [{status}]\n{body}}}\n')


@NEEDS_LOOP
def test_lvm_other_segment_types(tmp_path):
    """Thin, snapshot and RAID volumes, put there by lvm's own vgcfgrestore: their extents are used, nothing is looked into."""
    with lvm_disks(tmp_path, 2) as (lvm, imgs, devs):
        lvm.create("plain", "vg0", "-l", "4")
        backup = tmp_path / "backup"
        lvm("vgcfgbackup", "-f", backup, "vg0")

        def stripes(pv, at):
            return f'stripe_count = 1\nstripes = ["{pv}", {at}]'
        extra = (
            lv_text("pool", 1, True, segment("thin-pool", 2, 'metadata = "pool_tmeta"\npool = "pool_tdata"\ntransaction_id = 1\nchunk_size = 128\ndiscards = "passdown"\nzero_new_blocks = 1')) +
            lv_text("thin", 2, True, segment("thin", 2, 'thin_pool = "pool"\ntransaction_id = 0\ndevice_id = 1')) +
            lv_text("lvol0_pmspare", 3, False, segment("striped", 1, stripes("pv0", 10))) +
            lv_text("pool_tmeta", 4, False, segment("striped", 1, stripes("pv1", 0))) +
            lv_text("pool_tdata", 5, False, segment("striped", 2, stripes("pv1", 1))) +
            lv_text("orig", 6, True, segment("striped", 2, stripes("pv1", 5))) +
            lv_text("snap", 7, True, segment("striped", 2, stripes("pv1", 7))) +
            lv_text("snapshot0", 8, False, segment("snapshot", 2, 'chunk_size = 8\norigin = "orig"\ncow_store = "snap"')) +
            lv_text("r1", 9, True, segment("raid1", 2, 'device_count = 2\nregion_size = 1024\nraids = ["r1_rmeta_0", "r1_rimage_0", "r1_rmeta_1", "r1_rimage_1"]')) +
            lv_text("r1_rmeta_0", 10, False, segment("striped", 1, stripes("pv0", 20))) +
            lv_text("r1_rimage_0", 11, False, segment("striped", 2, stripes("pv0", 21))) +
            lv_text("r1_rmeta_1", 12, False, segment("striped", 1, stripes("pv1", 20))) +
            lv_text("r1_rimage_1", 13, False, segment("striped", 2, stripes("pv1", 21))))
        text = backup.read_text()
        backup.write_text(re.sub(r"(logical_volumes \{\n)", lambda m: m.group(1) + extra, text))
        lvm("vgcfgrestore", "--force", "-y", "-f", backup, "vg0")
        for d in devs:
            um.sh("blockdev", "--flushbufs", d)
        seen = {r["lv_name"].strip("[]"): r["segtype"] for r in lvm.report("lvs", "lv_name,segtype", "-a", "vg0")}
        free = {r["pv_name"]: int(r["pv_free"]) for r in lvm.report("pvs", "pv_name,pv_free")}
        start = int(lvm.report("pvs", "pe_start")[0]["pe_start"])
    assert {"thin-pool", "thin", "raid1"} <= set(seen.values()), seen
    m = um.used_map(*imgs)
    vols = {v["name"]: v for v in m["volumes"] if v["kind"] == "lv"}
    assert {n for n, v in vols.items() if v["linear"]} == {"vg0/plain"}
    pe = 4 * um.MIB
    used = [[0, 1, 2, 3, 10, 20, 21, 22], [0, 1, 2, 5, 6, 7, 8, 20, 21, 22]]
    for i in range(2):
        want = {n for n in range((128 * um.MIB - start) // pe) if n not in used[i]}
        got = {(off - start) // pe + k for d, off, n in m["free"] if d == i for k in range(n // pe)}
        assert got == want
        assert free[str(devs[i])] == len(want) * pe
    for name in ("thin", "orig", "r1"):
        assert any(f"vg0/{name}'" in n for n in m["notes"])


@NEEDS_LOOP
def test_lvm_in_partitions(tmp_path):
    img = um.image(tmp_path / "d.img", 256 * um.MIB)
    sfdisk(img, "label: gpt\n2048,65536,L\n,262144,V\n")
    with um.loop(img, "-o", str(67584 * 512), "--sizelimit", str(262144 * 512)) as dev:
        lvm = Lvm([dev])
        lvm("pvcreate", "-y", dev)
        lvm("vgcreate", "-y", "vg-x", dev)
        lvm.create("var", "vg-x", "-L", "64M")
        um.sh("blockdev", "--flushbufs", dev)
        free = int(lvm.report("pvs", "pv_free")[0]["pv_free"])
        start = int(lvm.report("pvs", "pe_start")[0]["pe_start"])
    m = um.used_map(img)
    v = m["volumes"][2]
    assert v["name"] == "vg-x/var" and v["map"] == [[0, 64 * um.MIB, 0, 67584 * 512 + start]]
    assert sum(n for _, _, n in m["free"]) == free
    assert 256 * um.MIB - m["disks"][0]["used_blocks"] * um.BLOCK == free
