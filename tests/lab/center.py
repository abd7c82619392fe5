"""A replantd of the build tree with a state directory of its own, and `replant` talking to it."""

import json
import os
import pathlib
import socket
import subprocess
import tempfile
import time
import urllib.request
import ssl

from . import cache, qemu


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def reachable(path):
    """Can any user get through to it? Receivers and virtual machines of a center run as nobody."""
    return all(p.stat().st_mode & 0o001 for p in pathlib.Path(path).resolve().parents)


def center_cache(folder):
    """REPLANT_CACHE for a center: the tests' own, where any user gets through to it (not below /root), else below folder."""
    return str(cache.root() if reachable(cache.root()) else pathlib.Path(folder) / "cache")


def open_folder():
    """A new directory that any user can get through to (pytest's own are closed)."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="replant-test-", dir="/var/tmp"))
    path.chmod(0o711)
    return path


class Center:
    """Use with `with`, or start() and stop(). Guests of the laboratory reach it as https://10.0.2.2:PORT."""

    def __init__(self, state, build=None, port=0, extra=(), orphan=False, listen="0.0.0.0"):
        """orphan: it goes on when this process ends."""
        self.build = pathlib.Path(build or os.environ.get("REPLANT_BUILD") or cache.SOURCE / "build").resolve()
        self.state = pathlib.Path(state).resolve()
        self.port = port or free_port()
        self.extra, self.orphan, self.listen = list(extra), orphan, listen
        self.process = None
        self.log = self.state.parent / (self.state.name + ".log")

    def program(self, name):
        room = {"replantd": "center", "replant": "cli", "replant-agent": "agent",
                "replant-transition": "transition"}[name]
        return str(self.build / "src" / room / name)

    def init(self):
        if not (self.state / "ca.pem").exists():
            subprocess.run([self.program("replantd"), "init", "--state", self.state, "--address", f"10.0.2.2:{self.port}",
                            "--address", "127.0.0.1"], check=True, capture_output=True, text=True)
        return self

    def start(self):
        env = dict(os.environ, REPLANT_CACHE=center_cache(self.state.parent))
        with open(self.log, "a") as log:
            self.process = subprocess.Popen(
                [*([] if self.orphan else ["setpriv", "--pdeathsig", "TERM"]), self.program("replantd"), "serve",
                 "--state", str(self.state), "--listen", f"{self.listen}:{self.port}", *self.extra],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, start_new_session=self.orphan)
        self.wait_up()
        return self

    def wait_up(self, timeout=60):
        context = ssl._create_unverified_context()
        end = time.monotonic() + timeout
        while True:
            if self.process.poll() is not None:
                raise qemu.LabError(f"replantd ended with status {self.process.returncode}:\n{self.tail()}")
            try:
                urllib.request.urlopen(f"https://127.0.0.1:{self.port}/v1/version", context=context, timeout=5).read()
                return
            except OSError:
                if time.monotonic() > end:
                    raise qemu.LabError(f"replantd doesn't answer:\n{self.tail()}") from None
                time.sleep(0.1)

    def tail(self, lines=20):
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def __enter__(self):
        return self.init().start()

    def __exit__(self, *_):
        self.stop()

    @property
    def env(self):
        return {"REPLANT_URL": f"https://127.0.0.1:{self.port}", "REPLANT_CA": str(self.state / "ca.pem"),
                "REPLANT_TOKEN": (self.state / "admin-token").read_text().strip()}

    def cli(self, *words, check=True, timeout=600):
        """What `replant WORDS --json` answers."""
        done = subprocess.run([self.program("replant"), *words, "--json"], env=dict(os.environ, **self.env),
                              capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL)
        if check and done.returncode:
            raise qemu.LabError(f"replant {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        answers = done.stdout.splitlines()  # one for each call: `jobs create --start` makes two
        return json.loads(answers[-1]) if answers else None

    def disk_of(self, image, number=0):
        """The file of an image's disk, in the directory of the region `local`."""
        return str(self.state / "local" / "images" / image["id"] / image["manifest"]["disks"][number]["file"])

    def wait_source(self, hostname=None, timeout=120):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            for source in self.cli("sources", "ls")["items"]:
                if source["state"] == "available" and hostname in (None, source["hostname"]):
                    return source
            time.sleep(1)
        raise qemu.LabError(f"no source became available within {timeout} s")

    def wait_job(self, job, states=("finished", "in_error"), timeout=1800, stage=None):
        """The job, once it is in one of the states (or in the stage)."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            now = self.cli("jobs", "show", job)
            if now["state"] in states or (stage and now["stage"] == stage):
                return now
            time.sleep(0.5)
        raise qemu.LabError(f"job {job} is still {now['state']}/{now['stage']} after {timeout} s: {now.get('step')}")
