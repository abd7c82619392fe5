"""The figures: each function measures one group and adds rows to the table."""
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import time

import lab
import tools

MIB = 1 << 20


class Table:
    """Rows as results.json has them. `aim` is for the ratio, or for our own figure where there is no peer."""

    def __init__(self, path):
        self.path = path
        self.rows = []

    def add(self, name, unit, ours, peer=None, peer_name=None, aim=None, at_least=False, within=None):
        ratio = ours / peer if peer else None
        judged = ours if ratio is None else ratio
        met = None if aim is None else (judged >= aim if at_least else judged <= aim)
        if within:
            aim, met = f"1 +- {within}", abs(ratio - 1) <= within
        self.rows.append({"name": name, "unit": unit, "ours": round(ours, 3), "peer": peer and round(peer, 3),
                          "peer_name": peer_name, "ratio": ratio and round(ratio, 3), "aim": aim, "met": met,
                          "note": ""})
        self.path.write_text(json.dumps(self.rows, indent=2) + "\n")

    def skip(self, name, why):
        self.rows.append({"name": name, "unit": "", "ours": None, "peer": None, "peer_name": None, "ratio": None,
                          "aim": None, "met": None, "note": f"not measured: {why}"})
        self.path.write_text(json.dumps(self.rows, indent=2) + "\n")

    def markdown(self):
        def cell(v):
            return "" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v)

        lines = ["| figure | ours | peer | ratio | aim | met |", "| --- | ---: | ---: | ---: | ---: | --- |"]
        for r in self.rows:
            unit = f" {r['unit']}" if r["unit"] else ""
            peer = "" if r["peer"] is None else f"{cell(r['peer'])}{unit} ({r['peer_name']})"
            ours = r["note"] if r["ours"] is None else cell(r["ours"]) + unit
            met = {None: "", True: "yes", False: "no"}[r["met"]]
            lines.append(f"| {r['name']} | {ours} | {peer} | {cell(r['ratio'])} | {cell(r['aim'])} | {met} |")
        return "\n".join(lines)


class Clock:
    """Times of tools that take turns: what disturbs the machine disturbs them all."""

    def __init__(self, title):
        self.title = title
        self.times = {}

    def run(self, tool, disk, label=None):
        label = label or tool.name
        return self.note(label, tool.copy(disk))

    def note(self, label, seconds):
        self.times.setdefault(label, []).append(seconds)
        print(f"  {self.title}: {label}: {seconds:.2f} s", flush=True)
        return seconds

    def median(self, label):
        return statistics.median(self.times[label])


NBD, QEMU, RSYNC, PARTCLONE = "nbdcopy to nbdkit, no TLS", "qemu-img convert", "rsync over ssh", "partclone + zstd -1 + TLS"
OURS, PLAIN, PACKED = "replant", "replant, uncompressed", "replant, zstd 1, SHA-256"


def replants(work, build, place=lab.Loopback):
    return [tools.Replant(OURS, work, build, (), place),
            tools.Replant(PLAIN, work, build, ("--compress", "0"), place),
            tools.Replant(PACKED, work, build, ("--compress", "1", "--checksum"), place)]


def full_and_again(table, work, build, disk, runs, memory):
    """Full copies in turn; then nothing changed and 1 % changed for those that can make use of it."""
    clock = Clock("full")
    ours = replants(work, build)
    peers = [tools.Nbdcopy(NBD, work), tools.QemuImg(QEMU, work), tools.Rsync(RSYNC, work), tools.Partclone(PARTCLONE, work)]
    keep = {OURS, RSYNC}
    for turn in range(runs):
        for tool in [peers[0], *ours, *peers[1:]]:
            tool.prepare(disk)
            clock.run(tool, disk)
            if tool.name not in keep or turn + 1 < runs:
                tool.clean()
    aims = {NBD: 1.0, RSYNC: 0.33, PARTCLONE: 0.33}
    for peer in peers:
        table.add("full copy, loopback", "s", clock.median(OURS), clock.median(peer.name), peer.name, aims.get(peer.name))
    for tool in ours[1:]:
        table.add(f"the same, {tool.name.split(', ', 1)[1]}", "s", clock.median(tool.name), clock.median(NBD), NBD)
    again(table, disk, work, runs, ours[0], peers[2], clock)
    memory["agent, full copy"] = max(t.peak_agent for t in ours)
    memory["receiver, full copy"] = max(t.peak_receiver for t in ours)
    for tool in (*ours, *peers):
        tool.clean()


def again(table, disk, work, runs, ours, rsync, full):
    clock = Clock("again")
    seed = int(time.time())
    changed = []
    for turn in range(runs):
        for tool in (ours, rsync):
            clock.run(tool, disk, f"nothing: {tool.name}")
        with lab.loop(disk) as dev, lab.mounted(dev, work / "mount") as mount:
            changed.append(lab.change(mount, 0.01, seed + turn))
        for tool in (ours, rsync):
            clock.run(tool, disk, f"1%: {tool.name}")
    table.add("nothing changed, compared without a tracker", "s", clock.median(f"nothing: {OURS}"),
              clock.median(f"nothing: {RSYNC}"), RSYNC)
    table.add(f"1 % changed ({statistics.median(changed) // MIB} MiB), compared without a tracker", "s",
              clock.median(f"1%: {OURS}"), clock.median(f"1%: {RSYNC}"), RSYNC)
    table.add("the same, against a full copy", "s", clock.median(f"1%: {OURS}"), full.median(NBD), NBD)


# ---- shaped links ----
def shaped(table, work, build, disk, runs, mbit, delay):
    try:
        with lab.Link(mbit) as link:
            on_link(table, work, build, disk, runs, link)
    except lab.Unmeasurable as why:
        table.skip(f"full copy, {mbit} Mbit/s", why)
    if not delay:
        table.skip(f"full copy, {mbit} Mbit/s, 50 ms of delay", "this kernel has no netem")
        return
    with lab.Link(mbit) as link:
        for space in link.spaces:
            lab.sh("tc", "-n", space, "qdisc", "replace", "dev", "rb0", "root", "netem", "delay", "25ms", "rate",
                   f"{mbit}mbit", "limit", "10000")
        link.name += ", 50 ms of delay"
        on_link(table, work, build, disk, runs, link)


def on_link(table, work, build, disk, runs, link):
    clock = Clock(link.name)
    ours = replants(work, build, link)[:2]
    peers = [tools.Nbdcopy(NBD, work, link), tools.Rsync(RSYNC, work, link, ("-z", "--compress-choice=zstd", "--compress-level=1")),
             tools.Partclone(PARTCLONE, work, link)]
    lines = []
    packed = []
    for turn in range(runs):
        for tool in (*ours, *peers):
            tool.prepare(disk)
            sent = link.sent()
            seconds = clock.run(tool, disk)
            if tool is ours[0]:
                lines.append((link.sent() - sent) * 8 / seconds / link.mbit / 1e6)
                packed.append(link.sent() - sent)
            tool.clean()
    for peer in peers:
        table.add(f"full copy, {link.name}", "s", clock.median(OURS), clock.median(peer.name), peer.name)
    table.add(f"the same, uncompressed, {link.name}", "s", clock.median(PLAIN), clock.median(NBD), NBD)
    aim = 0.95 if link.mbit <= 100 else None
    table.add(f"share of the line that was used, {link.name}", "", statistics.median(lines), aim=aim, at_least=True)
    line_rate = statistics.median(packed) * 8 / link.mbit / 1e6
    table.add(f"time against compressed size / line rate, {link.name}", "s", clock.median(OURS), line_rate, "the line itself",
              1.05 if link.mbit <= 100 else None)


def limits(table, work, build, disk, quick):
    """--rate against what the interface counts: Ethernet frames, all that the line carries."""
    try:
        with lab.Link(0) as link:
            for mbit in (100,) if quick else (10, 100, 500):
                limit(table, work, build, disk, link, mbit, 2 if quick else 20)
    except lab.Unmeasurable as why:
        table.skip("--rate", why)


def limit(table, work, build, disk, link, mbit, seconds):
    tool = tools.Replant("limit", work, build, ("--compress", "0", "--rate", str(mbit)), link)
    tool.prepare(disk)
    tool.before(disk)
    p = tool.send(disk, "--no-freeze")
    time.sleep(1)
    begun, sent = time.monotonic(), link.sent()
    with contextlib.suppress(subprocess.TimeoutExpired):
        p.wait(seconds)
    took, sent = time.monotonic() - begun, link.sent() - sent
    tool.interrupt(p)
    tool.clean()
    table.add(f"--rate {mbit}, on the wire for {took:.0f} s", "Mbit/s", sent * 8 / took / 1e6, float(mbit), "asked for",
              within=0.05)


# ---- a server that writes ----
@contextlib.contextmanager
def busy_disk(work, size_mib):
    """A mounted ext4 on a loop device, with some files of its own."""
    image = work / "busy.raw"
    image.unlink(missing_ok=True)
    with open(image, "wb") as f:
        f.truncate(size_mib * MIB)
    with lab.loop(image) as dev:
        lab.sh("mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", dev)
        with lab.mounted(dev, work / "busy") as mount:
            with open(mount / "noise", "wb") as f:
                for _ in range(size_mib // 4):
                    f.write(os.urandom(MIB))
            os.sync()
            yield dev, mount
    image.unlink()


def fio(mount, name, *options):
    return lab.start(["fio", "--name", name, "--directory", mount, "--ioengine=psync", "--output-format=json", "--time_based",
                      *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def fio_result(p):
    out = p.communicate()[0]
    job = json.loads(out[out.index("{"):])["jobs"][0]
    return job["write"]["bw_bytes"] / MIB


def freeze(table, work, build, size_mib, mbs, runs, memory):
    """Milliseconds that a filesystem with a random writer stands still at the cut-over."""
    tool = tools.Replant("freeze", work, build, ("--patience", "15"))
    name = f"freeze under a random writer of {mbs} MB/s"
    values, why = [], ""
    with busy_disk(work, size_mib) as (dev, mount):
        for _ in range(runs):
            tool.prepare(None)
            writer = fio(mount, "writer", "--rw=randwrite", "--bs=16k", f"--size={size_mib // 4}m", f"--rate={mbs}m",
                         "--runtime=600")
            try:
                time.sleep(2)
                tool.before(None)
                tool.told(tool.send(dev))
                values.append(tool.done["totals"]["freeze_ms"])
                print(f"  freeze: {mbs} MB/s: {values[-1]:.0f} ms, {tool.done.get('tracking', 'compare')}", flush=True)
            except RuntimeError as error:
                why = str(error).strip()
                print(f"  freeze: {mbs} MB/s: {why}", flush=True)
            finally:
                writer.terminate()
                writer.communicate()
                tool.receiver.terminate()
                tool.after()
    tool.clean()
    if tool.peak_agent:
        memory[f"agent, source that writes {mbs} MB/s"] = tool.peak_agent
        memory["guard"] = max(memory.get("guard", 0), tool.peak_guard)
    if not values:
        table.skip(name, why)
        return
    values.sort()
    table.add(f"{name}, 95th percentile of {len(values)}", "ms", values[min(len(values) - 1, int(0.95 * len(values)))],
              aim=1000 if mbs == 50 else None)


def tracked(table, work, build, disk, runs, mbit=1000):
    """Incremental runs of a mounted disk whose writes are tracked, over a link."""
    tool = tools.Replant("tracked", work, build, ("--keep-tracking", "--runtime", str(work / "runtime")))
    clock, changed, reads = Clock("tracked"), [], []
    seed = int(time.time())
    with lab.tracking(), lab.Link(mbit) as link, lab.loop(disk) as dev, lab.mounted(dev, work / "mount") as mount:
        tool.prepare(disk)
        tool.run(dev)
        tool.place = link
        for turn in range(runs):
            clock.note("nothing", tool.run(dev))
            changed.append(lab.change(mount, 0.01, seed + turn))
            clock.note("1%", tool.run(dev))
            reads.append(tool.done["totals"]["bytes_read"])
            mode = tool.done.get("tracking")
    tool.clean()
    shutil.rmtree(work / "runtime", ignore_errors=True)
    change = statistics.median(changed)
    table.add(f"nothing changed, tracked ({mode}), {mbit} Mbit/s", "s", clock.median("nothing"))
    table.add(f"1 % changed ({int(change) // MIB} MiB), tracked ({mode}), {mbit} Mbit/s", "s", clock.median("1%"),
              1.5 * change * 8 / mbit / 1e6 + 1, "1.5 x changed / line + 1 s", 1.0)
    table.add("read of the disk for it", "MiB", statistics.median(reads) / MIB, disk.stat().st_blocks * 512 / MIB, "all in use")


def cost(table, work, build, size_mib, runs, seconds):
    """What a writer on the source loses while its writes are tracked, no copy going on."""
    patterns = {"random writes of 4 KiB": ("--rw=randwrite", "--bs=4k", "--direct=1"),
                "sequential writes": ("--rw=write", "--bs=1m", "--direct=1")}
    tool = tools.Replant("cost", work, build, ("--keep-tracking", "--runtime", str(work / "runtime")))
    with lab.tracking(), busy_disk(work, size_mib) as (dev, mount):
        for name, options in patterns.items():
            speeds = {False: [], True: []}
            for on in [False, True] * runs:
                if on:
                    tool.prepare(None)
                    tool.run(dev)
                else:
                    lab.untrack()
                p = fio(mount, "cost", *options, f"--size={size_mib // 4}m", f"--runtime={seconds}")
                speeds[on].append(fio_result(p))
                print(f"  cost: {name}, {'' if on else 'not '}tracked: {speeds[on][-1]:.0f} MiB/s", flush=True)
            mode = tool.done.get("tracking")
            table.add(f"{name} on the source, tracked ({mode})", "MiB/s", statistics.median(speeds[True]),
                      statistics.median(speeds[False]), "not tracked", 0.95, at_least=True)
    tool.clean()
    shutil.rmtree(work / "runtime", ignore_errors=True)


# ---- memory ----
def center_memory(work, build, memory):
    state = work / "center"
    port = lab.free_port()
    lab.sh(build / "src/center/replantd", "init", "--state", state, "--address", f"127.0.0.1:{port}")
    p = lab.start([build / "src/center/replantd", "serve", "--state", state, "--listen", f"127.0.0.1:{port}"],
                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lab.listening((), port)
    time.sleep(1)
    lab.stop(p)
    memory["replantd, idle"] = p.peak


def memory_rows(table, memory):
    for name, peak in memory.items():
        table.add(f"peak memory: {name}", "MiB", peak / MIB, aim=64 if name.startswith("agent") else None)
