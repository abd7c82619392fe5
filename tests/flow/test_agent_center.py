"""Enrolment and the service against a center that is told how to behave, and against the real receiver."""
import json
import os
import pathlib
import shutil
import signal
import stat
import subprocess
import sys
import time

import pytest

import agentrig
import streamrig
from agentrig import CODE_SECRET, SECRET, SOURCE, Authority, Center, Service, code, enroll, run, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
MIB = 1 << 20


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("pki") / "ca")


@pytest.fixture
def center(ca):
    c = Center(ca.server())
    yield c
    c.close()


# ---- enrolment ----

def test_enroll(tmp_path, center, ca):
    done = enroll(tmp_path, center, code(ca))
    assert SOURCE in done.stdout and SECRET not in done.stdout + done.stderr and CODE_SECRET not in done.stdout
    stored = tmp_path / "config/agent.json"
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    assert json.loads(stored.read_text())["secret"] == SECRET
    assert (tmp_path / "config/ca.pem").read_text() == ca.cert.read_text()
    (request,) = center.requests
    assert request["body"]["hostname"] == os.uname().nodename and request["body"]["inventory"]["disks"] is not None


def test_enroll_again_asks_only_whether_it_is_known(tmp_path, center, ca):
    enroll(tmp_path, center, code(ca))
    assert "already" in enroll(tmp_path, center, code(ca, "used-up-meanwhile")).stdout
    assert [r["path"] for r in center.requests] == ["/v1/agent/enroll", "/v1/agent/sync"]
    center.known = False  # the source was deleted there
    assert "already" not in enroll(tmp_path, center, code(ca)).stdout


@pytest.mark.parametrize("way", ["option", "stdin", "dash"])
def test_ways_to_give_the_code(tmp_path, center, ca, way):
    argv = {"option": ["--code", code(ca)], "stdin": [], "dash": ["--code", "-"]}[way]
    run(agentrig.AGENT, "enroll", "--config", tmp_path / "config", "--no-service", *argv, input=code(ca) + "\n",
        env={**os.environ, "REPLANT_URL": f"https://localhost:{center.port}"})
    assert (tmp_path / "config/agent.json").exists()


def refused(tmp_path, center, the_code, *words, status=1, host="127.0.0.1"):
    done = enroll(tmp_path, center, the_code, check=False, host=host)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith("replant-agent: ") and done.stderr.count("\n") == 1
    for w in words:
        assert w in done.stderr
    assert CODE_SECRET not in done.stderr
    assert not (tmp_path / "config/agent.json").exists()


def test_wrong_code(tmp_path, center, ca):
    refused(tmp_path, center, code(ca, "wrong"), "wrong, used up, expired or revoked")


@pytest.mark.parametrize("bad", ["", "x", "a.b.c", "a.b." + "0" * 63])
def test_no_code_at_all(tmp_path, center, bad):
    refused(tmp_path, center, bad, "activation code")
    assert not center.requests


def test_wrong_fingerprint(tmp_path, center, ca):
    wrong = code(ca)[:-4] + "0000"
    refused(tmp_path, center, wrong, "fingerprint")
    assert not center.requests  # the code's secret was not shown to a stranger


def test_stranger(tmp_path, ca, tmp_path_factory):
    other = Center(Authority(tmp_path_factory.mktemp("pki") / "other").server())
    refused(tmp_path, other, code(ca), "fingerprint")
    assert not other.requests
    other.close()


def test_forged_chain(tmp_path, ca, tmp_path_factory):
    """The real CA's certificate is public: a forger shows it after a leaf of their own."""
    forger = Authority(tmp_path_factory.mktemp("pki") / "forger")
    other = Center(forger.server(chain=ca.cert))
    refused(tmp_path, other, code(ca), "can't prove")
    assert not other.requests
    other.close()


def test_forged_chain_same_name(tmp_path, ca, tmp_path_factory):
    """As above, with an issuer that has the very name of the real CA."""
    forger = Authority(tmp_path_factory.mktemp("pki") / "forger", name="center")
    other = Center(forger.server(chain=ca.cert))
    refused(tmp_path, other, code(ca), "can't prove")
    assert not other.requests
    other.close()


def test_other_name(tmp_path, ca):
    other = Center(ca.server(names="DNS:elsewhere.example,IP:127.0.0.9"))
    refused(tmp_path, other, code(ca), "does not name '127.0.0.1'", "--address")
    refused(tmp_path, other, code(ca), "does not name 'localhost'", host="localhost")
    other.close()


def test_expired(tmp_path, ca):
    refused(tmp_path, Center(ca.server(days="-1")), code(ca), "clock")


def test_nobody_there(tmp_path, center, ca):
    center.close()
    refused(tmp_path, center, code(ca), "cannot connect", status=75)


def test_no_such_name(tmp_path, center, ca):
    refused(tmp_path, center, code(ca), "no-such-name.invalid", status=75, host="no-such-name.invalid")


def test_huge_answer(tmp_path, center, ca):
    center.answers["/v1/agent/enroll"] = lambda r: (200, b'{"x":"' + b"a" * (5 * MIB) + b'"}')
    refused(tmp_path, center, code(ca), "larger than")


@pytest.mark.parametrize("answer", [b"", b"nonsense", b"[]", b'{"source":"../x","secret":"y"}', b'{"source":5,"secret":"y"}',
                                    b'{"source":"source-0123456789abcdef"}', b'{"source":"source-0123456789abcdef","secret":"a b"}',
                                    b'{"source":"source-0123456789abcdef","secret":"' + b"a" * 5000 + b'"}'])
def test_strange_answers(tmp_path, center, ca, answer):
    center.answers["/v1/agent/enroll"] = lambda r: (201, answer)
    refused(tmp_path, center, code(ca))


@pytest.mark.parametrize("status,exit_", [(500, 75), (503, 75), (429, 75), (409, 1), (400, 1)])
def test_refusals(tmp_path, center, ca, status, exit_):
    center.answers["/v1/agent/enroll"] = lambda r: (status, {"error": {"code": "x", "message": "these are\nour reasons"}})
    refused(tmp_path, center, code(ca), "our reasons", status=exit_)


# ---- the service ----

def task(port, run_id=streamrig.RUN, disks=None, **parameters):
    return {"job": "job-0123456789abcdef", "run": run_id, "action": "send", "host": "127.0.0.1", "port": port, "psk": KEY,
            "disks": disks, "parameters": {"connections": 2, "compression": 1, **parameters}}


KEY = "5a" * 32


class Bench:
    def __init__(self, tmp, center, ca, loops):
        self.tmp, self.center, self.loops = tmp, center, loops
        self.key = tmp / "key"
        self.key.write_text(KEY)
        self.disk = loops.new("disk", 256 * MIB, "ext4")
        self.point = loops.mount(self.disk, "mnt")
        (self.point / "noise").write_bytes(os.urandom(60 * MIB))
        enroll(tmp, center, code(ca), "--disk", self.disk)
        self.service = Service(tmp)

    def last_task(self):
        syncs = self.center.syncs()
        return syncs[-1]["body"].get("task") if syncs else None

    def close(self):
        self.service.stop()


@pytest.fixture
def bench(tmp_path, center, ca, loops):
    b = Bench(tmp_path, center, ca, loops)
    yield b
    b.close()


def test_syncs(bench):
    until(lambda: len(bench.center.syncs()) >= 3)
    first, second = bench.center.syncs()[:2]
    assert first["body"]["boot_id"] == pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert [d["path"] for d in first["body"]["inventory"]["disks"]] == [bench.disk]
    assert "inventory" not in second["body"] and "task" not in second["body"]
    s = bench.service.status()
    assert s["running"] and s["connected"] and s["source"] == SOURCE and s["task"] is None
    assert SECRET not in json.dumps(s)
    again = run(agentrig.AGENT, "run", "--config", bench.tmp / "config", "--runtime", bench.tmp / "runtime", check=False)
    assert again.returncode == 1 and "already" in again.stderr
    assert bench.service.stop() == 0
    assert not bench.service.status()["running"]


def test_sends(bench):
    r = streamrig.Receiver(bench.tmp / "replica", bench.key)
    bench.center.task = task(r.port)
    done = until(lambda: (t := bench.last_task()) and t["state"] == "done" and t, 60)
    assert done["run"] == streamrig.RUN and done["progress"]["phase"] == "done"
    assert 0 < done["progress"]["freeze_ms"] < 10000
    assert done["result"]["disks"] == [bench.disk]
    # With the word of its end, and only with that, comes what the server is at that moment.
    told = [s["body"] for s in bench.center.syncs() if s["body"].get("task")]
    (last,) = [body for body in told if "inventory" in body]
    assert last["task"]["state"] == "done" and last["inventory"]["filesystems"] and "survey" not in last["inventory"]  # what runs here isn't on that disk
    # Said until the center takes the task away, then no more.
    n = len(bench.center.syncs())
    until(lambda: len(bench.center.syncs()) > n + 1)
    assert bench.last_task()["state"] == "done"
    bench.center.task = None
    until(lambda: bench.last_task() is None)
    log = bench.service.log.read_text()
    assert "freezing" in log and "thawed" in log
    assert KEY not in log and SECRET not in log
    # Nobody holds it frozen, and the replica is a filesystem in order, with the file.
    (bench.point / "after").write_text("x")
    replica = bench.tmp / "replica/disk0.raw"
    assert run("e2fsck", "-fn", replica, check=False).returncode == 0
    run("debugfs", "-R", f"dump noise {bench.tmp}/noise", replica)
    assert streamrig.same(bench.tmp / "noise", bench.point / "noise")


class Listener:
    """Takes what a task's log says, as a center does that had 500 bytes of it; of the first answers to it every other is lost."""

    def __init__(self, center):
        self.center, self.text, self.run, self.lost = center, b"", None, 0
        center.answers["/v1/agent/sync"] = self.sync

    def want(self, task):
        self.run, self.text = task["run"], b""
        self.center.task = dict(task, log_at=500)

    def sync(self, request):
        log = request["body"].get("log")
        if log:
            at, data = log["at"] - 500, log["text"].encode()
            assert log["run"] == self.run and 0 <= at <= len(self.text) and data.endswith(b"\n")
            self.text = self.text[:at] + data if at + len(data) > len(self.text) else self.text
            if self.center.task:
                self.center.task["log_at"] = 500 + len(self.text)
            self.lost += 1
            if self.lost % 2 and self.lost < 8:
                return 503, {}
        return self.center.sync(request)

    def lines(self):
        return [line.split(" ", 2)[2].strip() for line in self.text.decode().splitlines()]


def test_what_is_logged_of_a_task_comes_once(bench):
    listener = Listener(bench.center)
    r = streamrig.Receiver(bench.tmp / "replica", bench.key)
    listener.want(task(r.port))
    until(lambda: (t := bench.last_task()) and t["state"] == "done", 60)
    until(lambda: "log" not in bench.center.syncs()[-1]["body"])
    lines = listener.lines()
    assert lines[0].endswith("begins") and f"run '{streamrig.RUN}': all was sent" in lines and listener.lost > 1
    for word in ("begins", "freezing the filesystems", "thawed after", "all was sent", "phase full, round 1"):
        assert len([line for line in lines if word in line]) == 1, (word, lines)
    assert KEY not in listener.text.decode() and SECRET not in listener.text.decode()
    # One that is taken away says its last words, too; one whose log nobody wants, none.
    r2 = streamrig.Receiver(bench.tmp / "replica2", bench.key, run="run-00000000000000bb")
    listener.want(task(r2.port, run_id="run-00000000000000bb", rate_mbit=8))
    until(lambda: (t := bench.last_task()) and t["run"] == "run-00000000000000bb" and t["progress"]["bytes_sent"] > 0, 60)
    bench.center.task = None
    until(lambda: "run-00000000000000bb': " in listener.text.decode(), 60)
    assert [line for line in listener.lines() if "no longer wanted" in line]
    r2.kill()
    listener.text = b""
    r3 = streamrig.Receiver(bench.tmp / "replica3", bench.key, run="run-00000000000000cc")
    bench.center.task = task(r3.port, run_id="run-00000000000000cc")
    until(lambda: (t := bench.last_task()) and t["run"] == "run-00000000000000cc" and t["state"] == "done", 60)
    assert not listener.text


@pytest.fixture
def hasty(monkeypatch):
    """An agent that gives a receiver up after five seconds."""
    monkeypatch.setenv("REPLANT_RECONNECT", "5")


def test_failure_is_told(hasty, bench):
    bench.center.task = task(1)
    failed = until(lambda: (t := bench.last_task()) and t["state"] == "failed" and t, 90)
    assert failed["error"]["message"] and failed["error"]["code"] and failed["error"]["temporary"] is True
    # Another run is another try.
    bench.center.task = task(1, run_id="run-00000000000000aa")
    until(lambda: (t := bench.last_task()) and t["run"] == "run-00000000000000aa")


def test_no_such_disk(bench):
    bench.center.task = task(1, disks=["/dev/nothing"])
    failed = until(lambda: (t := bench.last_task()) and t["state"] == "failed" and t, 30)
    assert "/dev/nothing" in failed["error"]["message"] and failed["error"]["temporary"] is False


def test_a_file_as_disk(tmp_path, center, ca):
    """An image that was named at enrolment is sent as it lies there. (Paths of the center's are below /dev: unit/agent.)"""
    image, key = tmp_path / "disk.img", tmp_path / "key"
    key.write_text(KEY)
    image.write_bytes(os.urandom(8 * MIB) + bytes(8 * MIB))
    run("mkfs.ext4", "-q", "-F", "-E", f"offset={16 * MIB}", image, "20m")
    enroll(tmp_path, center, code(ca), "--disk", image)
    service = Service(tmp_path)
    try:
        r = streamrig.Receiver(tmp_path / "replica", key)
        center.task = task(r.port)
        done = until(lambda: (t := center.syncs() and center.syncs()[-1]["body"].get("task")) and t["state"] == "done" and t, 60)
        assert done["progress"]["tracking"] == "compare" and "file" in done["progress"]["untracked"]
        r.finish()
        assert streamrig.same(image, tmp_path / "replica/disk0.raw")
    finally:
        service.stop()


def test_limit_changes_while_sending(bench):
    """What the center says counts within seconds, up and down, on the connections there are; bytes as a proxy sees them."""
    r = streamrig.Receiver(bench.tmp / "replica", bench.key)
    proxy = streamrig.Proxy(r.port)

    def measured(seconds):
        begun, before = time.monotonic(), proxy.up
        time.sleep(seconds)
        return (proxy.up - before) * 8 / 1e6 / (time.monotonic() - begun)

    def say(mbit):
        bench.center.task = task(proxy.port, rate_mbit=mbit, compression=0)
        n = len(bench.center.syncs())
        until(lambda: len(bench.center.syncs()) > n + 1)
        time.sleep(1.5)

    for mbit in (8, 40, 16):
        say(mbit)
        if mbit == 8:
            until(lambda: proxy.up > MIB)
        got = measured(4)
        assert mbit * 0.95 < got < mbit * 1.05, (mbit, got)
    connections = len(proxy.pairs)
    say(0)
    assert until(lambda: (t := bench.last_task()) and t["state"] == "done" and t, 60)["result"]
    assert connections == 2 * 3 and r.finish() == 0  # one for control, two for data: none was opened anew


WRITER = """
import mmap, os, random, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_DIRECT)
page = mmap.mmap(-1, 4096)
for i in range(8192):
    os.pwrite(fd, page, i << 12)
while True:
    page[:8] = os.urandom(8)
    os.pwrite(fd, page, random.randrange(8192) << 12)
"""


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace")
def test_longer_freeze_is_allowed(monkeypatch, bench):
    """On a slow disk 32 MiB are always left: too much for a second of frozen reading, and little for a minute of it."""
    pin = f"/sys/fs/bpf/replant-test-{os.getpid()}"  # of its own: what is at stake needs the tracking
    monkeypatch.setenv("REPLANT_PIN", pin)
    bench.service.stop()
    bench.service = Service(bench.tmp, "slow", ["strace", "-f", "-qq", "--seccomp-bpf", "-o", "/dev/null", "-P", bench.disk, "-e",
                                                "trace=pread64", "-e", "inject=pread64:delay_exit=25000"])
    r = streamrig.Receiver(bench.tmp / "replica", bench.key)
    bench.center.task = task(r.port, max_freeze=60, connections=1)
    until(lambda: "writes are tracked" in bench.service.log.read_text(), 60)  # which wants a quiet moment
    writer = subprocess.Popen([sys.executable, "-c", WRITER, bench.point / "busy"])
    try:
        done = until(lambda: (t := bench.last_task()) and t["state"] == "done" and t, 90)
        # Of the one second that is the default it would be half at most.
        assert done["progress"]["mode"] == "tracked", (done["result"]["notes"], done["progress"].get("tracking"), done["progress"].get("untracked"))
        assert done["progress"]["expected_freeze_seconds"] > 0.7
        assert r.finish() == 0
    finally:
        writer.kill()
        writer.wait()
        bench.service.stop()
        run("rm", "-rf", pin)


def test_task_taken_away(bench):
    r = streamrig.Receiver(bench.tmp / "replica", bench.key)
    bench.center.task = task(r.port, rate_mbit=8)
    until(lambda: (t := bench.last_task()) and t["progress"]["bytes_sent"] > 0)
    bench.center.task = None
    until(lambda: "no longer wanted" in bench.service.log.read_text())
    until(lambda: bench.last_task() is None)
    # And the next one begins without a restart.
    r.kill()
    r2 = streamrig.Receiver(bench.tmp / "replica2", bench.key, run="run-00000000000000bb")
    bench.center.task = task(r2.port, run_id="run-00000000000000bb")
    until(lambda: (t := bench.last_task()) and t["run"] == "run-00000000000000bb" and t["state"] == "done", 60)


def test_center_restarts(bench, ca):
    r = streamrig.Receiver(bench.tmp / "replica", bench.key)
    bench.center.task = task(r.port, rate_mbit=100)
    until(lambda: (t := bench.last_task()) and t["state"] == "sending")
    port, old = bench.center.port, bench.center
    old.close()
    until(lambda: bench.service.status()["error"] if not bench.service.status()["connected"] else None, 30)
    bench.center = Center(ca.server(), port)
    bench.center.task = old.task
    until(lambda: (t := bench.last_task()) and t["state"] == "done", 60)
    bench.center.close()


def test_restart_of_the_agent_goes_on(bench):
    r = streamrig.Receiver(bench.tmp / "replica", bench.key)
    bench.center.task = task(r.port, rate_mbit=160)
    until(lambda: (t := bench.last_task()) and t["progress"]["bytes_sent"] > 10 * MIB, 30)
    bench.service.proc.send_signal(signal.SIGKILL)
    bench.service.proc.wait()
    bench.service = Service(bench.tmp, "second")
    done = until(lambda: (t := bench.last_task()) and t["state"] == "done" and t, 60)
    assert done["progress"]["bytes_sent"] < 58 * MIB  # what was there already was not sent again


def test_strange_tasks(bench):
    for bad in ["x", [], {"action": "format"}, {**task(1), "psk": "00"}, {**task(1), "disks": ["/etc/shadow"]},
                {**task(1), "run": "../../x"}]:
        n = len(bench.center.syncs())
        bench.center.task = bad
        until(lambda: len(bench.center.syncs()) > n + 1, 40)
        assert bench.last_task() is None
        bench.center.task = None
        until(lambda: bench.service.status()["connected"])
    assert bench.service.proc.poll() is None


def test_forgotten_source(bench):
    until(lambda: bench.center.syncs())
    bench.center.known = False
    until(lambda: "enrol it again" in bench.service.log.read_text(), 30)
    bench.center.known = True
    until(lambda: bench.service.status()["connected"], 40)


def test_forger_takes_the_address(bench, ca, tmp_path_factory):
    until(lambda: bench.center.syncs())
    port = bench.center.port
    bench.center.close()
    forger = Center(Authority(tmp_path_factory.mktemp("pki") / "forger").server(chain=ca.cert), port)
    until(lambda: "can't prove" in bench.service.log.read_text(), 40)
    assert not forger.requests  # and so no secret was shown
    forger.close()


def test_quiet_while_frozen(bench):
    """From FIFREEZE to FITHAW no thread of the agent opens a file, writes, or talks with the center."""
    if not shutil.which("strace"):
        pytest.skip("no strace")
    trace = bench.tmp / "trace"
    bench.service.stop()
    bench.service = Service.__new__(Service)
    s = bench.service
    s.tmp, s.config, s.runtime, s.log, s.under = bench.tmp, bench.tmp / "config", bench.tmp / "runtime", bench.tmp / "traced.log", ()
    tracer = subprocess.Popen(["strace", "-f", "-ttt", "-y", "-e", "trace=ioctl,openat,write,sendto,sendmsg,rename,connect,fsync",
                               "-o", str(trace), str(agentrig.AGENT), "run", "--config", str(s.config), "--runtime", str(s.runtime)],
                              stderr=open(s.log, "ab"))
    s.proc = tracer
    r = streamrig.Receiver(bench.tmp / "replica", bench.key)
    bench.center.task = task(r.port)
    until(lambda: (t := bench.last_task()) and t["state"] == "done", 90)
    agent = int(run("pgrep", "-P", str(tracer.pid)).stdout.split()[0])
    os.kill(agent, signal.SIGTERM)
    tracer.wait(30)
    lines = [line.split(None, 2) for line in trace.read_text().splitlines()]
    times = {name: float(t) for _, t, rest in lines for name in ("FIFREEZE", "FITHAW") if name in rest and str(bench.point) in rest}
    assert times["FIFREEZE"] < times["FITHAW"]
    inside = [rest for _, t, rest in lines if times["FIFREEZE"] < float(t) < times["FITHAW"]]
    # The kernel's own filesystems can't be frozen; the tracker reads the disk's accounts there.
    inside = [x for x in inside if not ("O_RDONLY" in x and ("</sys/" in x or '"/sys/' in x or '"/proc/' in x))]
    bad = [x for x in inside if x.startswith(("openat", "rename", "connect", "fsync")) or
           (x.startswith("write") and "eventfd" not in x and "TCP" not in x and "socket" not in x)]
    center = f":{bench.center.port}"
    assert not bad, bad
    assert not [x for x in inside if center in x]


def confine(bench):
    bench.service.stop()
    bench.service = Service(bench.tmp, "confined", agentrig.confined())
    bench.service.under = ()  # it execs


def one_run(bench, run_id):
    """The figures of a run to a receiver that goes on with the replica of the one before."""
    r = streamrig.Receiver(bench.tmp / "replica", bench.key, run=run_id)
    bench.center.task = task(r.port, run_id)
    done = until(lambda: (t := bench.last_task()) and t["run"] == run_id and t["state"] == "done" and t, 60)
    r.finish()
    bench.center.task = None
    until(lambda: bench.last_task() is None)
    return done["progress"]


def test_what_cannot_be_pinned_stays_with_the_service(bench):
    """A tracker that ends with the process is kept from run to run; one of a service that was restarted is not believed."""
    denied = [sys.executable, str(pathlib.Path(__file__).resolve().parents[1] / "denied.py"), "bpf"]
    for service in range(2):
        bench.service.stop()
        bench.service = Service(bench.tmp, f"denied{service}", denied)
        bench.service.under = ()  # it execs
        first = one_run(bench, f"run-0123456789abcd{service}0")
        (bench.point / f"more{service}").write_bytes(os.urandom(MIB))
        later = one_run(bench, f"run-0123456789abcd{service}1")
        assert first["tracking"] == later["tracking"] == "ring" and first["mode"] == later["mode"] == "tracked", later
        assert first["bytes_read"] > 60 * MIB and 0 < later["bytes_read"] < 8 * MIB, (first, later)
        bench.service.stop()
        content = (bench.point / f"more{service}").read_bytes()
        run("debugfs", "-R", f"dump more{service} {bench.tmp}/more", bench.tmp / "replica/disk0.raw")
        assert (bench.tmp / "more").read_bytes() == content


def test_mounted_in_another_namespace_only(bench):
    """As a container has it. The service sees it with what its unit leaves it, and freezes it."""
    confine(bench)
    hooks = bench.service.config / "hooks.d"
    hooks.mkdir()
    (hooks / "look").write_text(f"#!/bin/sh\n[ $1 = post-freeze ] && cp {bench.service.runtime}/frozen {bench.tmp}/frozen; exit 0\n")
    (hooks / "look").chmod(0o755)
    container = subprocess.Popen(["unshare", "-m", "--propagation", "private", "sleep", "1000"])
    try:
        until(lambda: os.readlink(f"/proc/{container.pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt"))
        run("umount", bench.point)
        r = streamrig.Receiver(bench.tmp / "replica", bench.key)
        bench.center.task = task(r.port)
        until(lambda: (t := bench.last_task()) and t["state"] == "done" and t, 60)
        assert str(bench.point) in (bench.tmp / "frozen").read_text()
    finally:
        container.kill()
        container.wait()


def test_hook_becomes_another_user(bench):
    """Under what the unit leaves the service; and one that hangs as that user can be ended."""
    confine(bench)
    hooks = bench.service.config / "hooks.d"
    hooks.mkdir()
    (bench.tmp / "uid").mkdir(mode=0o777)
    for p in (bench.tmp, *bench.tmp.parents):
        if not p.stat().st_mode & 1 and str(p).startswith("/tmp/"):
            p.chmod(0o711)
    (bench.tmp / "uid").chmod(0o777)
    (hooks / "user").write_text(f"#!/bin/sh\ncase $1 in pre-freeze) runuser -u nobody -- sh -c 'id -u > {bench.tmp}/uid/is' ;;\n"
                                "post-freeze) exec setpriv --reuid nobody --clear-groups sleep 7310 ;; esac\n")
    (hooks / "user").chmod(0o755)
    r = streamrig.Receiver(bench.tmp / "replica", bench.key)
    bench.center.task = task(r.port)
    failed = until(lambda: (t := bench.last_task()) and t["state"] == "failed" and t, 60)
    assert failed["error"]["code"] == "hook_failed" and "took longer" in failed["error"]["message"], failed
    assert (bench.tmp / "uid/is").read_text() == run("id", "-u", "nobody").stdout
    until(lambda: not run("pgrep", "-fx", "sleep 7310", check=False).stdout)
    r.kill()


def test_center_hangs_before_the_freeze(bench):
    """What is waited for isn't waited for between the last round and the freeze."""
    def slow(request):
        if ((request["body"].get("task") or {}).get("progress") or {}).get("phase") == "freezing":
            time.sleep(10)
        return bench.center.sync(request)

    bench.center.answers["/v1/agent/sync"] = slow
    hooks = bench.service.config / "hooks.d"
    hooks.mkdir()
    (hooks / "slow").write_text("#!/bin/sh\n[ $1 = pre-freeze ] && sleep 3; exit 0\n")
    (hooks / "slow").chmod(0o755)
    r = streamrig.Receiver(bench.tmp / "replica", bench.key)
    bench.center.task = task(r.port)
    until(lambda: "freezing the filesystems" in bench.service.log.read_text(), 60)
    began = time.monotonic()
    until(lambda: "thawed after" in bench.service.log.read_text(), 60)
    assert time.monotonic() - began < 4
    until(lambda: (t := bench.last_task()) and t["state"] == "done", 60)
    r.kill()


def test_all_killed_in_the_freeze(bench):
    """The agent and both processes that thaw, at once: nobody is left who could. The next agent thaws."""
    hooks = bench.service.config / "hooks.d"
    hooks.mkdir()
    (hooks / "kill").write_text("""#!/bin/sh
[ $1 = post-freeze ] && [ ! -e %s ] || exit 0
guard=$(pgrep -P $PPID -x replant-guard)
all="$guard $(pgrep -P $guard -x replant-freezer) $PPID" # the agent last: this hook dies with it
kill -STOP $all
touch %s
kill -KILL $all
""" % (bench.tmp / "killed", bench.tmp / "killed"))
    (hooks / "kill").chmod(0o755)
    r = streamrig.Receiver(bench.tmp / "replica", bench.key)
    bench.center.task = task(r.port)
    until(lambda: (bench.tmp / "killed").exists() and bench.service.proc.poll() is not None, 60)
    writer = subprocess.Popen(["touch", str(bench.point / "thawed")])
    with pytest.raises(subprocess.TimeoutExpired):
        writer.wait(2)
    bench.service = agentrig.Service(bench.tmp, "again")
    assert writer.wait(20) == 0
    until(lambda: "it is thawed" in bench.service.log.read_text())
    until(lambda: (t := bench.last_task()) and t["state"] == "done", 90)
    assert not (bench.service.runtime / "frozen").exists()
    r.kill()


def test_status_of_one_that_was_killed(bench):
    """Its number may have become somebody else's."""
    until(lambda: (bench.service.runtime / "agent.json").exists() and bench.service.status()["running"])
    bench.service.proc.kill()
    bench.service.proc.wait()
    state = bench.service.runtime / "agent.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "pid": os.getpid()}))
    assert not bench.service.status()["running"]


def test_uninstall_beside_a_running_agent(bench):
    """It leaves what is the running one's."""
    until(lambda: (bench.service.runtime / "agent.json").exists() and bench.service.status()["connected"])

    def files():  # the agent writes its state anew all the time, beside it first
        return sorted(p for p in bench.service.runtime.iterdir() if ".tmp-" not in p.name)

    before = files()
    done = run(agentrig.AGENT, "uninstall", "--config", bench.tmp / "config", "--runtime", bench.tmp / "runtime", check=False)
    assert done.returncode == 1 and "running" in done.stderr and not done.stdout
    assert (bench.tmp / "config/agent.json").exists() and files() == before
    assert bench.service.status()["running"]


def child(name, parent, *options):
    return int(until(lambda: run("pgrep", *options, "-x", "-P", parent, name, check=False).stdout, 60))


def test_killed_while_freezing(bench):
    """Guard and freezer, while FIFREEZE waits for a write: it completes after the agent has given up. The note of it stays for
    an agent that starts, and nothing frozen."""
    held = agentrig.Held(bench.point / "held")
    r = streamrig.Receiver(bench.tmp / "replica", bench.key)
    note = bench.service.runtime / "frozen"
    try:
        bench.center.task = task(r.port)
        guard = child("replant-guard", bench.service.proc.pid)
        freezer = child("replant-freezer", guard, "-r", "D")
        os.kill(guard, signal.SIGKILL)
        os.kill(freezer, signal.SIGKILL)
        until(lambda: (t := bench.last_task()) and t["state"] in ("failed", "waiting") and t, 40)
        assert note.exists() and pathlib.Path(f"/proc/{freezer}").exists()
        bench.center.task = None
    finally:
        held.release()
    writer = subprocess.Popen(["touch", str(bench.point / "thawed")])
    assert writer.wait(20) == 0
    time.sleep(0.5)
    assert subprocess.run(["touch", str(bench.point / "thawed")], timeout=20).returncode == 0
    bench.service.stop()
    bench.service = agentrig.Service(bench.tmp, "again")
    until(lambda: not note.exists())
    r.kill()


def test_uninstall(bench):
    bench.service.stop()
    # What writes that were cut off have left.
    for folder, name in (("config", "agent.json"), ("config", "ca.pem"), ("runtime", "agent.json")):
        (bench.tmp / folder).mkdir(exist_ok=True)
        (bench.tmp / folder / f"{name}.tmp-0123456789abcdef").write_text("secret")
    done = run(agentrig.AGENT, "uninstall", "--config", bench.tmp / "config", "--runtime", bench.tmp / "runtime")
    assert "agent.json" in done.stdout and not (bench.tmp / "config").exists() and not (bench.tmp / "runtime").exists()
    run(agentrig.AGENT, "uninstall", "--config", bench.tmp / "config", "--runtime", bench.tmp / "runtime")  # nothing left is fine


def test_a_migration_test_leaves_data_out(tmp_path, center, ca, loops):
    """What nothing boots from is sent as if it were empty; the migration behind it sends all of it, also what was written before and
    meanwhile, into the replica that the test has left."""
    key = tmp_path / "key"
    key.write_text(KEY)
    disks = [loops.new(name, 128 * MIB, "ext4") for name in ("system", "data")]
    points = [loops.mount(disk, name) for disk, name in zip(disks, ("mnt0", "mnt1"))]
    for number, point in enumerate(points):
        (point / "before").write_bytes(os.urandom((10 + number) * MIB))
    enroll(tmp_path, center, code(ca), "--disk", disks[0], "--disk", disks[1])
    service = Service(tmp_path)

    def transfer(run_id, **parameters):
        r = streamrig.Receiver(tmp_path / "replica", key, run=run_id)
        center.task = task(r.port, run_id, **parameters)
        done = until(lambda: (t := center.syncs() and center.syncs()[-1]["body"].get("task")) and t["run"] == run_id and
                     t["state"] != "sending" and t, 60)
        assert done["state"] == "done", done
        r.finish()
        center.task = None
        until(lambda: not center.syncs()[-1]["body"].get("task"))
        return done

    try:
        done = transfer(streamrig.RUN, boot_only=True)
        found = done["result"]["test"]
        assert found["left_out"] == [disks[1]] and abs(found["time"] - time.time()) < 10
        assert {c["check"] for c in found["checks"]} >= {"disks", "cpu", "usage", "kernel", "licence"} and \
            not {"center", "root"} & {c["check"] for c in found["checks"]}
        assert done["result"]["live"]["bytes"] >= 10 * MIB and done["result"]["live"]["seconds"] > 0
        assert done["progress"]["bytes_read"] < 40 * MIB
        replica = [tmp_path / f"replica/disk{number}.raw" for number in (0, 1)]
        assert replica[1].stat().st_size == 128 * MIB and replica[1].read_bytes().count(0) == 128 * MIB
        assert run("e2fsck", "-fn", replica[0], check=False).returncode == 0
        # Also while the test was on, of which the tracker's marks tell nothing any more.
        for point in points:
            (point / "between").write_bytes(os.urandom(5 * MIB))
            os.sync()
        done = transfer("run-00000000000000aa")
        assert "test" not in done["result"] and "boot_only" not in done["result"]
        for number, point in enumerate(points):
            assert run("e2fsck", "-fn", replica[number], check=False).returncode == 0
            for name in "before", "between":
                run("debugfs", "-R", f"dump {name} {tmp_path}/{name}", replica[number])
                assert streamrig.same(tmp_path / name, point / name)
    finally:
        service.stop()
