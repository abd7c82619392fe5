"""What every figure needs: disks to migrate, cold caches, a place to run in, processes whose time and memory are known."""
import contextlib
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import threading
import time

TREES = ("/usr/lib", "/usr/share", "/usr/bin", "/usr/sbin", "/etc")
SYSTEM = ("/etc", "/usr/bin", "/usr/share", "/usr/sbin", "/usr/lib/python3")  # of the small disk, until it is full


class Unmeasurable(Exception):
    """This machine can't do it; the table says so."""


def sh(*argv, **kw):
    return subprocess.run([str(a) for a in argv], check=True, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          **kw).stdout


def cold():
    os.sync()
    pathlib.Path("/proc/sys/vm/drop_caches").write_text("3")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


# ---- disks ----
def tree_bytes(folder):
    r = subprocess.run(["du", "-sb", folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return int(r.stdout.split()[0])


def fill(tree, want, folders):
    """Copies of real trees, again and again until there is `want` bytes of them."""
    used = turn = 0
    while used < want:
        for folder in folders:
            size = tree_bytes(folder)
            target = tree / f"{turn}{folder.replace('/', '-')}"
            if used + size <= want:
                subprocess.run(["cp", "-a", "--reflink=never", folder, target], check=False, stderr=subprocess.DEVNULL)
                used += size
                continue
            # What is too big goes in by its parts, as far as they fit.
            target.mkdir()
            for part in sorted(pathlib.Path(folder).iterdir()):
                size = tree_bytes(part)
                if used + size > want:
                    continue
                subprocess.run(["cp", "-a", "--reflink=never", part, target], check=False, stderr=subprocess.DEVNULL)
                used += size
            return
        turn += 1


def make_disk(path, size_mib, files, noise, folders=TREES):
    """An ext4 with real file trees (`files` of its size) and incompressible data (`noise` of it); kept for the next run."""
    if path.exists() and path.stat().st_size == size_mib << 20:
        return path
    print(f"making {path.name}, {size_mib} MiB ...", flush=True)
    tree = path.with_suffix(".tree")
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    fill(tree, int(size_mib * files) << 20, folders)
    with open(tree / "noise", "wb") as f:
        for _ in range(int(size_mib * noise)):
            f.write(os.urandom(1 << 20))
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    sh("truncate", "-s", f"{size_mib}M", fresh)
    sh("mkfs.ext4", "-q", "-F", "-d", tree, fresh)
    shutil.rmtree(tree)
    fresh.rename(path)
    return path


@contextlib.contextmanager
def loop(disk, ro=False):
    """A loop device that reads and writes the file directly, as a disk would."""
    dev = sh("losetup", "--find", "--show", "--direct-io=on", *(["--read-only"] if ro else []), disk).strip()
    try:
        yield dev
    finally:
        for _ in range(50):
            if subprocess.run(["losetup", "--detach", dev], stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.1)


@contextlib.contextmanager
def mounted(dev, where, ro=False):
    where.mkdir(exist_ok=True)
    sh("mount", "-o", "ro,noload" if ro else "rw", dev, where)
    try:
        yield where
    finally:
        for _ in range(100):
            if subprocess.run(["umount", where], stderr=subprocess.DEVNULL).returncode == 0:
                break
            time.sleep(0.1)


def change(mount, fraction, seed):
    """Writes over files that lie anywhere until `fraction` of what is used has changed; the bytes written."""
    st = os.statvfs(mount)
    want = int((st.f_blocks - st.f_bfree) * st.f_frsize * fraction)
    names = []
    for folder, _, files in os.walk(mount):
        names += [os.path.join(folder, f) for f in files]
    names.sort()
    rng = random.Random(seed)
    rng.shuffle(names)
    done = 0
    for name in names:
        if os.path.islink(name) or not os.path.isfile(name):
            continue
        size = min(os.path.getsize(name), 1 << 20, want - done)
        if size <= 0:
            continue
        with open(name, "r+b") as f:
            f.write(rng.randbytes(size))
        done += size
        if done >= want:
            break
    os.sync()
    return done


# ---- the tracker that the agent leaves behind ----
PINS = pathlib.Path("/sys/fs/bpf/replant")


@contextlib.contextmanager
def tracking():
    """What is tracked inside is not tracked afterwards."""
    try:
        yield
    finally:
        untrack()


def untrack():
    shutil.rmtree(PINS, ignore_errors=True)


# ---- places: the plain loopback, or two network namespaces with a shaped link between them ----
class Loopback:
    name = "loopback"
    address = "127.0.0.1"
    mbit = 0
    source = destination = ()

    def sent(self):
        return 0


class Link:
    """Both ends are shaped by a token bucket, so that answers pay as well."""

    address = "10.213.71.2"

    def __init__(self, mbit):
        self.name = f"{mbit} Mbit/s"
        self.mbit = mbit
        self.spaces = [f"replant-bench-{os.getpid()}-{end}" for end in "ab"]
        # Not `ip netns exec`: it hides /sys/fs/bpf, where the tracker is.
        self.source, self.destination = (("nsenter", f"--net=/run/netns/{s}") for s in self.spaces)

    def __enter__(self):
        try:
            self.build()
        except (subprocess.CalledProcessError, OSError) as error:
            self.__exit__()
            raise Unmeasurable(f"no shaped link here ({getattr(error, 'stderr', error)})".strip()) from error
        return self

    def build(self):
        for space in self.spaces:
            sh("ip", "netns", "add", space)
        a, b = self.spaces
        sh("ip", "link", "add", "rb0", "netns", a, "type", "veth", "peer", "name", "rb0", "netns", b)
        for space, address in ((a, "10.213.71.1/24"), (b, f"{self.address}/24")):
            sh("ip", "-n", space, "addr", "add", address, "dev", "rb0")
            sh("ip", "-n", space, "link", "set", "rb0", "up")
            sh("ip", "-n", space, "link", "set", "lo", "up")
            # One frame per segment, as on a real cable: else a counter sees one header for up to 64 KiB.
            sh("ip", "-n", space, "link", "set", "rb0", "gso_max_segs", "1")
            if self.mbit:
                sh("tc", "-n", space, "qdisc", "add", "dev", "rb0", "root", "tbf", "rate", f"{self.mbit}mbit", "burst",
                   f"{max(self.mbit // 4, 64)}kb", "latency", "30ms")

    def sent(self):
        """Bytes that have left the source, as its interface counts them: Ethernet frames."""
        return int(sh("ip", "netns", "exec", self.spaces[0], "cat", "/sys/class/net/rb0/statistics/tx_bytes"))

    def __exit__(self, *_):
        for space in self.spaces:
            subprocess.run(["ip", "netns", "del", space], stderr=subprocess.DEVNULL)


def can_delay():
    """Can this kernel delay packets (netem)?"""
    with Link(0) as link:
        return subprocess.run(["tc", "-n", link.spaces[0], "qdisc", "add", "dev", "rb0", "root", "netem", "delay", "25ms"],
                              stderr=subprocess.DEVNULL).returncode == 0


# ---- processes ----
class Process(subprocess.Popen):
    """One whose peak memory, and that of its children, is known: `peak`, by the name of the program."""

    def watch(self):
        self.peaks = {}
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def _watch(self):
        # Of the memory map after exec(2): what rusage says begins with that of the process which forked.
        while self.returncode is None:
            with contextlib.suppress(OSError, ValueError):
                self._look(self.pid, 0)
            time.sleep(0.05)

    def _look(self, pid, depth):
        status = dict(line.split(":", 1) for line in open(f"/proc/{pid}/status") if ":" in line)
        if "VmHWM" in status:
            self.peaks[depth] = max(self.peaks.get(depth, 0), int(status["VmHWM"].split()[0]) << 10)
        for child in open(f"/proc/{pid}/task/{pid}/children").read().split():
            self._look(int(child), depth + 1)

    @property
    def peak(self):
        return self.peaks.get(0, 0)


def start(argv, place=(), **kw):
    return Process([str(a) for a in (*place, *argv)], **kw).watch()


def stop(p, group=False):
    if p.poll() is None:
        os.killpg(p.pid, signal.SIGTERM) if group else p.terminate()
    p.wait()


def finished(p, what):
    if p.wait():
        raise RuntimeError(f"{what} failed with {p.returncode}")


def listening(place, port, seconds=60):
    """Waits until somebody listens there, without connecting: some servers serve one connection only."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if f":{port} " in sh(*place, "ss", "-Hltn"):
            return
        time.sleep(0.02)
    raise RuntimeError(f"nothing listens on port {port}")
