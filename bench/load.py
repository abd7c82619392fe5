"""How many agents a center bears: simulated ones (agents.c), each with a TLS connection, a hundred of them with a job that reports,
while somebody asks what people ask. Generator and center share the machine. The center is the real one with the tests' provider,
which only pretends to receive: a hundred receivers would measure something else."""
import concurrent.futures
import http.client
import json
import os
import secrets
import shutil
import ssl
import subprocess
import time

import lab

JOBS = 100
AIM_AGENTS, AIM_P99_MS, AIM_MIB = 5000, 50, 500
CODE_USES = 1000
TICK = os.sysconf("SC_CLK_TCK")


class Center:
    def __init__(self, work, build):
        self.dir, self.build = work / "center", build
        shutil.rmtree(self.dir, ignore_errors=True)
        (self.dir / "script").mkdir(parents=True)
        self.state = self.dir / "state"
        self.program = build / "tests/api/replantd-scripted"
        self.env = dict(os.environ, SCRIPT=str(self.dir / "script"), HEARTBEAT="10", BUSY="2", TICK="1", NAP="900", PATIENCE="86400",
                        ABSENCE="86400")
        lab.sh(self.program, "init", self.state, env=self.env)
        self.token = (self.state / "admin-token").read_text().strip()
        self.tls = ssl.create_default_context(cafile=str(self.state / "ca.pem"))
        (self.dir / "script/receiving.bytes").write_text("")
        self.process, self.port = None, 0
        self.secrets, self.sources = [], []

    def start(self):
        self.process = subprocess.Popen([self.program, "serve", self.state, f"127.0.0.1:{self.port}"], env=self.env, text=True,
                                        stdout=subprocess.PIPE, stderr=open(self.dir / "log", "ab"))
        self.port = int(self.process.stdout.readline())

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.process.stdout.close()

    def connect(self):
        return http.client.HTTPSConnection("127.0.0.1", self.port, context=self.tls, timeout=60)

    def ask(self, conn, method, path, body=None, token=True):
        conn.request(method, path, body=json.dumps(body) if body is not None else None,
                     headers={"Authorization": "Bearer " + self.token} if token else {})
        got = conn.getresponse()
        text = got.read()
        if got.status >= 300:
            raise RuntimeError(f"{method} {path}: {got.status} {text[:300]}")
        return json.loads(text)

    def enroll(self, n, inventory):
        """As agents do, with activation codes; the secrets of the new sources."""
        conn, out = self.connect(), []
        while len(out) < n:
            code = self.ask(conn, "POST", "/v1/codes", {"uses": CODE_USES})["code"].split(".")
            for _ in range(min(CODE_USES, n - len(out))):
                machine = secrets.token_hex(16)
                got = self.ask(conn, "POST", "/v1/agent/enroll", {"code_id": code[0], "code_secret": code[1], "hostname": f"h{machine[:8]}",
                                                                  "machine_id": machine, "agent_version": "0.1.0", "inventory": inventory}, token=False)
                out.append(got["secret"])
        conn.close()
        return out

    def grow(self, n, inventory):
        share = -(-(n - len(self.secrets)) // 4)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            for part in pool.map(lambda k: self.enroll(k, inventory), [share] * 4):
                self.secrets += part
        self.secrets = self.secrets[:n]
        conn = self.connect()
        while len(self.sources) < min(JOBS, n):
            source = "source-" + self.secrets[len(self.sources)].split(".")[0]
            self.ask(conn, "POST", "/v1/jobs", {"source": source, "execution": "migrate_now"})
            self.sources.append(source)
        conn.close()

    def memory(self, what="VmRSS"):
        with open(f"/proc/{self.process.pid}/status", encoding="ascii") as f:
            return next(int(line.split()[1]) for line in f if line.startswith(what + ":")) / 1024

    def seconds(self):
        with open(f"/proc/{self.process.pid}/stat", encoding="ascii") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICK


def run(center, n, ramp, seconds, addresses=None, during=None):
    """One number of agents: what the generator says, and what it cost the center."""
    listed = center.dir / "secrets"
    listed.write_text("".join(s + "\n" for s in center.secrets[:n]))
    center.start()
    try:
        p = subprocess.Popen([center.build / "bench/replant-load", str(center.port), center.state / "ca.pem", center.token, listed,
                              center.dir / "inventory.json", str(ramp), str(seconds), *([str(addresses)] if addresses else [])],
                             stdout=subprocess.PIPE, text=True)
        time.sleep(ramp)
        spent, begun = center.seconds(), time.monotonic()
        if during:
            during(center)
        time.sleep(max(0, seconds - 1 - (time.monotonic() - begun)))
        cpu, memory = (center.seconds() - spent) / (time.monotonic() - begun), center.memory()
        text = p.communicate()[0]
        if p.returncode:
            raise RuntimeError(f"replant-load failed with {center.process.poll()}")
        return {**json.loads(text), "cpu": round(cpu, 3), "rss_mib": round(memory, 1), "peak_mib": round(center.memory("VmHWM"), 1),
                "seconds": seconds}
    finally:
        center.stop()


def line(r):
    return (f"  {r['agents']} agents: people p50 {r['people']['p50_ms']} p99 {r['people']['p99_ms']} ms, heartbeats {r['heartbeats']} p50 "
            f"{r['heartbeat']['p50_ms']} p99 {r['heartbeat']['p99_ms']} ms, {r['errors']} errors, {r['closed']} closed, cpu {r['cpu']:.0%}, "
            f"{r['rss_mib']} MiB; sources {r['sources']['p99_ms']}, jobs {r['jobs']['p99_ms']}, source {r['source']['p99_ms']} ms")


def figures(table, work, build, quick, sizes=None):
    center = Center(work, build)
    inventory = json.loads(subprocess.run([build / "src/agent/replant-agent", "discover", "--json"], check=True, capture_output=True).stdout)
    (center.dir / "inventory.json").write_text(json.dumps(inventory))
    results = []
    for n in sizes or ((50,) if quick else (500, 1000, 2000, 5000, 10000)):
        center.start()
        center.grow(n, inventory)
        center.stop()
        r = run(center, n, 2 if quick else max(15, n // 250), 5 if quick else 45)
        results.append(r)
        print(line(r), flush=True)
        if r["connected"] < n or r["people_errors"]:
            print(f"  {n - r['connected']} agents have no connection, {r['people_errors']} requests of people failed", flush=True)
        judged = n == AIM_AGENTS
        table.add(f"API, p99 with {n} agents", "ms", r["people"]["p99_ms"], aim=AIM_P99_MS if judged else None)
        table.add(f"heartbeats, p99 with {n} agents", "ms", r["heartbeat"]["p99_ms"])
        table.add(f"center with {n} agents: memory", "MiB", r["rss_mib"], aim=AIM_MIB if judged else None)
        table.add(f"center with {n} agents: processors", "", r["cpu"])
        (work / "load.json").write_text(json.dumps(results, indent=2) + "\n")
    shutil.rmtree(center.dir, ignore_errors=True)
