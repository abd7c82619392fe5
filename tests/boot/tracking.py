"""The tracker in a quick machine: tests/boot/mark_tool.c driven from here, and what it says compared with the disks."""

import mmap
import os
import pathlib
import time

from tests.lab import cache, qemu, quick

BUILD = pathlib.Path(os.environ.get("REPLANT_BUILD") or cache.SOURCE / "build")
TOOL = BUILD / "tests" / "boot" / "mark_tool"
WRITERS = cache.SOURCE / "tests" / "lab" / "guest" / "scribble"
BLOCK = 65536


class Refused(Exception):
    """The tracker's own error: number and words."""

    def __init__(self, number, text):
        super().__init__(f"{number}: {text}")
        self.number, self.text = number, text


def blocks_of(text):
    value = int.from_bytes(bytes.fromhex(text), "little")
    found = set()
    while value:
        low = value & -value
        found.add(low.bit_length() - 1)
        value ^= low
    return found


class Tracker:
    """One process of mark_tool."""

    def __init__(self, vm, name="tool"):
        self.vm, self.name = vm, name
        self.port = vm.port(name)
        vm.spawn(f"mark-{name}", f"echo $$ >/run/mark-{name}.pid; exec mark_tool <>/dev/lab.{name} >&0")

    def post(self, *words):
        """Asks without waiting; answer() fetches."""
        self.port.send((" ".join(str(word) for word in words) + "\n").encode())
        self.asked = words

    def answer(self, timeout=120):
        try:
            kind, _, rest = self.port.line(timeout, " ".join(map(str, self.asked))).partition(" ")
        except qemu.LabError as e:
            raise qemu.LabError(f"{e}; the tool: {self.vm.ended(f'mark-{self.name}')}") from None
        if kind == "ok":
            return rest.split()
        number, _, text = rest.partition(" ")
        raise Refused(int(number), text)

    def ask(self, *words, timeout=120):
        self.post(*words)
        return self.answer(timeout)

    def start(self, *devices, pin="-"):
        self.ask("start", pin, *devices)
        return self.epoch()

    def epoch(self):
        return self.ask("epoch")[0]

    def collect(self, disk=0, *rest):
        return blocks_of(self.ask("collect", disk, *rest)[1])

    def rounds(self, target, count, ms, disk=0):
        return blocks_of(self.ask("rounds", disk, target, count, ms, timeout=300)[1])

    def counts(self, disk=0):
        return {name: int(value) for name, value in (word.split("=") for word in self.ask("counts", disk))}

    def drain(self, disk=0, target=None):
        """Everything that is left of a disk nobody writes to; the reading again is over after it."""
        rest = [target] if target else []
        found = self.collect(disk, *rest) | self.collect(disk, *rest)
        again = self.collect(disk)
        assert not again, f"a disk that isn't written goes on to have marks: {sorted(again)[:9]}"
        return found

    def kill(self):
        """As an agent dies."""
        self.vm.sh(f"kill -9 $(cat /run/mark-{self.name}.pid)")
        self._gone()

    def close(self):
        self.ask("quit")
        self._gone()

    def _gone(self):
        end = time.monotonic() + 30
        while not self.vm.ended(f"mark-{self.name}"):
            assert time.monotonic() < end, "the tool does not end"
            time.sleep(0.05)


def machine(suite, folder, disks, **settings):
    files = {"/usr/bin/mark_tool": TOOL, "/usr/bin/scribble": WRITERS}
    return quick.Quick(suite, disks, folder, files=files, **settings)


def differing(one, other, size=BLOCK):
    """Numbers of the blocks in which two files of the host differ."""
    found = []
    with open(one, "rb") as a, open(other, "rb") as b:
        length = os.fstat(a.fileno()).st_size
        with mmap.mmap(a.fileno(), length, prot=mmap.PROT_READ) as left, \
                mmap.mmap(b.fileno(), os.fstat(b.fileno()).st_size, prot=mmap.PROT_READ) as right:
            for start in range(0, length, size << 4):
                if left[start:start + (size << 4)] == right[start:start + (size << 4)]:
                    continue
                for at in range(start, min(start + (size << 4), length), size):
                    if left[at:at + size] != right[at:at + size]:
                        found.append(at // size)
    return found
