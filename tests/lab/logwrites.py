"""Reads the log of device-mapper's log-writes target (the kernel's Documentation/admin-guide/device-mapper/log-writes.rst)."""

import dataclasses
import struct

MAGIC = 0x6A736677736872
SUPER = struct.Struct("<QQQI")  # magic, version, entries, sector size
ENTRY = struct.Struct("<QQQQ")  # sector, sectors, flags, length of a mark's text
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8


@dataclasses.dataclass
class Entry:
    sector: int  # of 512 bytes, as the count
    count: int
    flags: int
    mark: str = ""
    data: int = 0  # where the written bytes are in the log

    def blocks(self, size):
        """Numbers of the blocks of so many bytes that it touches."""
        if not self.count:
            return range(0)
        return range(self.sector * 512 // size, ((self.sector + self.count) * 512 - 1) // size + 1)


def entries(path):
    """Every write, discard and mark of the log, in its order."""
    with open(path, "rb") as log:
        magic, version, number, unit = SUPER.unpack(log.read(SUPER.size))
        if magic != MAGIC or version != 1 or unit % 512 or not unit:
            raise ValueError(f"'{path}' is no log of writes (magic {magic:#x}, version {version}, sectors of {unit})")
        at = unit
        for _ in range(number):
            log.seek(at)
            head = log.read(unit)
            sector, count, flags, length = ENTRY.unpack_from(head)
            if flags & MARK and length > unit - ENTRY.size:
                raise ValueError(f"'{path}': a mark of {length} bytes at {at}")
            mark = head[ENTRY.size:ENTRY.size + length].rstrip(b"\0").decode() if flags & MARK else ""
            yield Entry(sector * unit // 512, count * unit // 512, flags, mark, at + unit)
            at += unit + (0 if flags & DISCARD else count * unit)


def written(path, size):
    """{mark: set of blocks written or discarded since the mark before}, in the log's order; "" is what follows the last."""
    found, blocks = {}, set()
    for entry in entries(path):
        blocks.update(entry.blocks(size))
        if entry.flags & MARK:
            if entry.mark in found:
                raise ValueError(f"'{path}' has the mark '{entry.mark}' twice")
            found[entry.mark], blocks = blocks, set()
    found[""] = blocks
    return found
