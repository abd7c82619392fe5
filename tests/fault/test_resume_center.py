"""A job between two hosts, the real center on one and the agent's service on the other: center, receiver and agent are
killed and the network is gone for longer than the agent tries. It goes on by itself, and little is sent twice."""
import json
import os
import shutil
import signal
import subprocess
import time

import agentrig
import pytest
import streamrig
from agentrig import run, until
from netrig import OTHER, Net

from tests.lab.center import center_cache, open_folder

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
MIB = 1 << 20
PORT = 4443
COST = 4 * 4 * MIB  # of a fault, on four connections


class Hosts:
    def __init__(self, tmp):
        self.tmp, self.net, self.folder = tmp, Net(), open_folder()
        self.state, self.center, self.service = self.folder / "state", None, None
        self.loops = agentrig.Loops(tmp)
        self.url = f"https://{self.net.center.address}:{PORT}"
        run(self.program("center", "replantd"), "init", "--state", self.state, "--address", self.net.center.address)
        self.env = {**os.environ, "REPLANT_CACHE": center_cache(self.folder), "REPLANT_URL": self.url,
                    "REPLANT_CA": str(self.state / "ca.pem"), "REPLANT_TOKEN": (self.state / "admin-token").read_text().strip(),
                    "REPLANT_RECONNECT": "4", "REPLANT_STALL": "3"}
        self.start_center()

    def program(self, room, name):
        return str(streamrig.BUILD / "src" / room / name)

    def start_center(self):
        with open(self.tmp / "center.log", "ab") as log:
            self.center = subprocess.Popen([*self.net.center.prefix, self.program("center", "replantd"), "serve", "--state",
                                            str(self.state), "--listen", f"{self.net.center.address}:{PORT}"],
                                           env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(lambda: self.center.poll() is not None or self.cli("sources", "ls", check=False) is not None, 30, "the center's answer")
        assert self.center.poll() is None, self.logs()

    def start_agent(self):
        with open(self.tmp / "agent.log", "ab") as log:
            self.service = subprocess.Popen([*self.net.source.prefix, self.program("agent", "replant-agent"), "run", "--config",
                                             str(self.tmp / "config"), "--runtime", str(self.tmp / "runtime")],
                                            env=self.env, stdout=subprocess.DEVNULL, stderr=log)

    def cli(self, *words, check=True):
        done = run(*self.net.center.prefix, self.program("cli", "replant"), *words, "--json", env=self.env, check=check)
        return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 and done.stdout else None

    def log_of(self, job, part):
        return run(*self.net.center.prefix, self.program("cli", "replant"), "jobs", "logs", job, "--part", part, env=self.env).stdout

    def receiver(self):
        """Its process id, or 0."""
        for p in os.listdir("/proc"):
            try:
                command = open(f"/proc/{p}/cmdline", "rb").read() if p.isdigit() else b""
            except OSError:
                continue
            if b"replant-transition\0receive" in command and str(self.state).encode() in command:
                return int(p)
        return 0

    def logs(self):
        logs = [self.tmp / f"{x}.log" for x in ("center", "agent")]
        return "".join(log.read_text()[-3000:] for log in logs if log.exists())

    def close(self):
        for p in (self.service, self.center):
            if p and p.poll() is None:
                p.terminate()
                try:
                    p.wait(20)
                except subprocess.TimeoutExpired:
                    p.kill()
                    p.wait()
        self.loops.close()
        self.net.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def hosts(tmp_path):
    h = Hosts(tmp_path)
    yield h
    h.close()


def test_a_job_goes_on_by_itself(hosts):
    size = 320 * MIB
    disk = hosts.loops.new("disk", size)
    streamrig.image(hosts.tmp / "content", size, data=1, text=0, zeros=0)
    run("dd", f"if={hosts.tmp / 'content'}", f"of={disk}", "bs=1M", "oflag=direct")
    code = hosts.cli("codes", "create", "--name", "test")["code"]
    run(*hosts.net.source.prefix, agentrig.AGENT, "enroll", "--center", hosts.url, "--code", code, "--disk", disk, "--no-service",
        "--config", hosts.tmp / "config", "--runtime", hosts.tmp / "runtime", env=hosts.env)
    hosts.start_agent()
    source = hosts.cli("sources", "ls")["items"][0]["id"]
    job = hosts.cli("jobs", "create", source, "--rate", "500", "--start")["id"]
    sent, began = hosts.net.source.sent, hosts.net.source.sent()
    start = time.monotonic()

    def until_sent(mib, patience=90):
        print(f"{time.monotonic() - start:.1f} s: {(sent() - began) / MIB:.0f} MiB")
        until(lambda: sent() - began > mib * MIB, patience, f"{mib} MiB on the cable")

    until_sent(30)
    os.kill(hosts.receiver(), signal.SIGKILL)
    until_sent(70)
    hosts.center.kill()
    hosts.center.wait()
    hosts.start_center()
    until_sent(120)
    hosts.service.kill()
    hosts.service.wait()
    hosts.start_agent()
    until_sent(170)
    # Longer than the agent tries (4 s here, 60 s by default): it fails, can't tell the center, and both come back.
    hosts.net.cut()
    until(lambda: "lost the receiver" in (hosts.tmp / "agent.log").read_text(), 60, "the end of the agent's patience")
    time.sleep(2)
    assert hosts.cli("jobs", "show", job)["state"] == "running"
    hosts.net.mend()
    until_sent(230)
    hosts.net.source.move(OTHER.format(31))
    until(lambda: hosts.cli("jobs", "show", job)["stage"] != "syncing", 90, "the end of the transfer")
    total, show = sent() - began, hosts.cli("jobs", "show", job)
    print(f"{total / MIB:.1f} MiB sent of {size / MIB:.0f}, 5 faults, {len(show['runs'])} runs")
    until(lambda: "all was sent" in hosts.log_of(job, "agent"), 20, "the agent's last word")
    said = {part: hosts.log_of(job, part) for part in ("agent", "receiver")}
    hosts.center.kill()  # before it boots machines
    replica = hosts.state / "local" / "jobs" / job
    (found,) = [p for p in replica.rglob("*") if p.name == "disk0.raw"] or [None]
    assert found and streamrig.same(hosts.tmp / "content", found), list(replica.rglob("*"))
    assert total < size * 1.04 + 5 * COST + 2 * MIB
    # Center, receiver and agent were killed meanwhile, and what they said came once all the same.
    for run_of in show["runs"]:
        for part, word in (("receiver", f"{run_of['id']}: begins"), ("agent", f"run '{run_of['id']}' of '{job}' begins")):
            lines = [line for line in said[part].splitlines() if word in line]
            assert len(set(lines)) == len(lines) and lines, (word, said[part])
    assert "missing" not in said["agent"] + said["receiver"] and said["agent"].count("all was sent") == 1
