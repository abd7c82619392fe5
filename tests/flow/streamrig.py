"""Drives the real sender and receiver on image files, with a proxy between them that can be told to misbehave."""
import json
import os
import pathlib
import random
import selectors
import socket
import subprocess
import threading
import time

TREE = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("REPLANT_BUILD", TREE / "build"))
AGENT = BUILD / "src/agent/replant-agent"
TRANSITION = BUILD / "src/transition/replant-transition"
RUN = "run-0123456789abcdef"
BLOCK = 65536
PATIENCE = float(os.environ.get("REPLANT_TEST_PATIENCE", "120"))


def image(path, size, seed=1, data=0.3, zeros=0.2, text=0.3):
    """An image of holes, zeros written out, text that packs and noise that doesn't."""
    rng = random.Random(seed)
    words = [b"%d replant %x\n" % (rng.randrange(1 << 40), rng.randrange(1 << 60)) for _ in range(400)]
    with open(path, "wb") as f:
        f.truncate(size)
        at = 0
        while at < size:
            n = min(rng.randrange(1, 40) * 16384 + rng.randrange(3) * 512, size - at)
            kind = rng.random()
            f.seek(at)
            if kind < data:
                f.write(rng.randbytes(n))
            elif kind < data + text:
                f.write(b"".join(rng.choice(words) for _ in range(n // 20 + 1))[:n])
            elif kind < data + text + zeros:
                f.write(bytes(n))
            at += n
        f.truncate(size)
    return path


def same(a, b):
    return subprocess.run(["cmp", "-s", str(a), str(b)]).returncode == 0


class Receiver:
    def __init__(self, directory, key, port=0, run=RUN, extra=(), prefix=(), env=None, started=None, listen="127.0.0.1"):
        self.dir = pathlib.Path(directory)
        self.dir.mkdir(exist_ok=True)
        self.events = []
        self.err = open(self.dir.parent / (self.dir.name + ".err"), "ab")
        self.proc = subprocess.Popen(
            [*prefix, str(TRANSITION), "receive", "--dir", str(directory), "--listen", f"{listen}:{port}", "--run", run,
             "--psk-file", str(key), *extra], stdout=subprocess.PIPE, stderr=self.err, env={**os.environ, **(env or {})})
        if started is not None:
            started.append(self.proc)
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()
        self.port = self.wait("listening")["port"]

    def _read(self):
        for line in self.proc.stdout:
            self.events.append(json.loads(line))

    def wait(self, name, seconds=20):
        end = time.time() + seconds
        while time.time() < end:
            for e in list(self.events):
                if e["event"] == name:
                    return e
            if self.proc.poll() is not None and not self.thread.is_alive():
                break
            time.sleep(0.01)
        raise AssertionError(f"no '{name}' among {self.events[-3:]}, exit {self.proc.poll()}")

    def written(self):
        return max([e["bytes_written"] for e in list(self.events) if e["event"] == "progress"], default=0)

    def kill(self):
        self.proc.kill()
        self.proc.wait()
        self.thread.join()

    def finish(self, seconds=PATIENCE):
        code = self.proc.wait(seconds)
        self.thread.join()
        return code


class Sender:
    def __init__(self, port, key, disks, *options, run=RUN, env=None, freeze=False, prefix=(), host="127.0.0.1"):
        self.proc = subprocess.Popen(
            [*prefix, str(AGENT), "send", "--to", f"{host}:{port}", "--run", run, "--psk-file", str(key), "--json",
             *[x for d in disks for x in ("--disk", str(d))], *([] if freeze else ["--no-freeze"]), *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **(env or {})})

    def finish(self, seconds=PATIENCE):
        out, err = self.proc.communicate(timeout=seconds)
        self.events = [json.loads(x) for x in out.splitlines()]
        self.stderr = err.decode()
        return self.proc.returncode

    def kill(self):
        self.proc.kill()
        self.finish()

    def event(self, name):
        return [e for e in self.events if e["event"] == name][-1]


class Proxy:
    """Forwards connections to a port. hook(direction, data, total) returns what goes on; None closes the connection."""

    def __init__(self, port, hook=None):
        self.port_to = port
        self.hook = hook
        self.up = self.down = 0
        self.stalled = False
        self.pairs = {}
        self.silent = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.sel = selectors.DefaultSelector()
        self.sel.register(self.listener, selectors.EVENT_READ)
        self.running = True
        self.lock = threading.Lock()
        threading.Thread(target=self._loop, daemon=True).start()

    def _loop(self):
        while self.running:
            for key, _ in self.sel.select(0.05):
                if self.stalled:
                    time.sleep(0.02)
                    continue
                with self.lock:
                    if key.fileobj is self.listener:
                        self._accept()
                    elif key.fileobj in self.pairs:
                        self._forward(key.fileobj)

    def _accept(self):
        a, _ = self.listener.accept()
        try:
            b = socket.create_connection(("127.0.0.1", self.port_to))
        except OSError:
            a.close()
            return
        for x, y, up in ((a, b, True), (b, a, False)):
            x.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.pairs[x] = (y, up)
            self.sel.register(x, selectors.EVENT_READ)

    def _close(self, x):
        y = self.pairs[x][0]
        for s in (x, y):
            if s in self.pairs:
                self.sel.unregister(s)
                del self.pairs[s]
            s.close()

    def _forward(self, x):
        y, up = self.pairs[x]
        try:
            data = x.recv(262144)
            if data and self.hook:
                data = self.hook(up, data, self.up if up else self.down)
            if not data:
                self._close(x)
                return
            if up:
                self.up += len(data)
            else:
                self.down += len(data)
            y.sendall(data)
        except OSError:
            self._close(x)

    def silence(self, n):
        """Connection n (0: the control connection, then those for data) stays open and carries nothing more."""
        with self.lock:
            x = [x for x, (_, up) in self.pairs.items() if up][n]
            for s in (x, self.pairs[x][0]):
                self.sel.unregister(s)
                self.silent.append(s)
                del self.pairs[s]

    def cut(self):
        """All connections there are; new ones are welcome."""
        with self.lock:
            for x in list(self.pairs):
                if x in self.pairs:
                    self._close(x)

    def close(self):
        self.running = False
        self.listener.close()


class Rig:
    def __init__(self, tmp):
        self.started = []
        self.tmp = pathlib.Path(tmp)
        self.key = self.tmp / "key"
        self.key.write_text(os.urandom(32).hex() + "\n")
        self.dir = self.tmp / "replica"

    def receiver(self, **kw):
        return Receiver(kw.pop("directory", self.dir), kw.pop("key", self.key), started=self.started, **kw)

    def sender(self, port, disks, *options, **kw):
        s = Sender(port, kw.pop("key", self.key), disks, *options, **kw)
        self.started.append(s.proc)
        return s

    def close(self):
        """A test that failed half-way leaves nothing running."""
        for proc in self.started:
            if proc.poll() is None:
                proc.kill()
                proc.wait()

    def copy(self, disks, *options, **kw):
        r = self.receiver()
        s = self.sender(r.port, disks, *options, **kw)
        assert s.finish() == 0, s.stderr
        assert r.finish() == 0
        return r, s

    def verify(self):
        return subprocess.run([str(TRANSITION), "verify", "--dir", str(self.dir)], capture_output=True, text=True)

    def check(self, disks):
        for i, d in enumerate(disks):
            assert same(d, self.dir / f"disk{i}.raw"), f"{d} differs"
        v = self.verify()
        assert v.returncode == 0, v.stderr
        return json.loads(v.stdout)
