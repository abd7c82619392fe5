"""Where the laboratory keeps what is expensive to make, and how it is shared.

Everything lives under $REPLANT_CACHE, or build/cache of the source tree. An
artifact is made under a temporary name and renamed, with a lock held, so two
test runs may use one cache and a killed run leaves nothing half made behind.
"""

import contextlib
import fcntl
import hashlib
import os
import pathlib
import shutil
import subprocess
import time

SOURCE = pathlib.Path(__file__).resolve().parents[2]


def root():
    path = pathlib.Path(os.environ.get("REPLANT_CACHE") or SOURCE / "build" / "cache").resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path


def lab():
    path = root() / "lab"
    path.mkdir(exist_ok=True)
    return path


def key(*parts):
    """Names what was made from exactly these parts (strings, bytes, or files of the source tree)."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, pathlib.Path):
            part = part.read_bytes()
        elif isinstance(part, str):
            part = part.encode()
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def locked(name):
    """Holds the lock of one artifact against other processes."""
    locks = lab() / "locks"
    locks.mkdir(exist_ok=True)
    with open(locks / name, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def made(path, make):
    """Returns path, calling make(temporary path) first when it does not exist yet."""
    with locked(path.name):
        if not path.exists():
            partial = path.with_name(path.name + ".partial")
            remove(partial)
            try:
                make(partial)
                partial.rename(path)
            finally:
                remove(partial)
    return path


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def kernel():
    """The unpacked kernel of the appliance: a folder with vmlinuz, version and lib/modules/."""
    path = root() / "kernel"
    subprocess.run([SOURCE / "tools" / "appliance-kernel", path], check=True)
    return path


def ssh_key():
    """The private key that opens every server of this cache; its public half is beside it (.pub)."""

    def make(partial):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "replant-lab", "-f", partial],
                       check=True, stdin=subprocess.DEVNULL)
        partial.with_name(partial.name + ".pub").rename(lab() / "id_ed25519.pub")

    return made(lab() / "id_ed25519", make)


class Stages:
    """Prints each stage as it ends, with the seconds it took."""

    def __init__(self, title, say=print):
        self.title, self.say = title, say
        self.start = self.last = time.monotonic()
        self.seconds = {}

    def done(self, stage, seconds=None):
        now = time.monotonic()
        self.seconds[stage] = now - self.last if seconds is None else seconds
        self.last = now
        self.say(f"{self.title}: {stage} {self.seconds[stage]:.1f} s", flush=True)

    def end(self):
        self.say(f"{self.title}: ready after {time.monotonic() - self.start:.1f} s", flush=True)
