"""A scripted center (tests/api/scripted.c) with a state directory of its own, people and agents that talk to it."""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import sqlite3
import ssl
import subprocess
import time

TOP = pathlib.Path(__file__).resolve().parent.parent.parent
BUILD = pathlib.Path(os.environ.get("REPLANT_BUILD") or TOP / "build").resolve()
PROGRAM = BUILD / "tests" / "api" / "replantd-scripted"
SLOW = float(os.environ.get("REPLANT_SLOW", "1"))  # sanitizers


def wait_for(what, check, timeout=20):
    """The first true answer of check()."""
    end = time.monotonic() + timeout * SLOW
    while True:
        got = check()
        if got:
            return got
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {timeout} s, last answer {got!r}")
        time.sleep(0.02)


class Answer:
    def __init__(self, status, headers, raw):
        self.status, self.headers, self.raw = status, headers, raw
        kind = headers.get("Content-Type", "")
        self.json = json.loads(raw) if raw and kind == "application/json" else None

    @property
    def code(self):
        return self.json["error"]["code"]

    @property
    def field(self):
        return self.json["error"].get("field")

    def __repr__(self):
        return f"<{self.status} {self.raw[:300]!r}>"


class Database:
    """Either store's, in SQLite's words."""

    def __init__(self, db, is_postgres):
        self.cursor, self.is_postgres = db.cursor(), is_postgres

    def execute(self, statement, values=()):
        self.cursor.execute(statement.replace("?", "%s") if self.is_postgres else statement, values)

    def row(self, statement, values=()):
        self.execute(statement, values)
        return self.cursor.fetchone()

    def begin(self):
        """A transaction that the center waits for."""
        self.execute("BEGIN" if self.is_postgres else "BEGIN IMMEDIATE")
        if self.is_postgres:
            self.execute("SELECT pg_advisory_xact_lock(23192481619340916)")

    def refuse_jobs(self):
        """Until they are allowed again, nothing can be written about jobs."""
        if self.is_postgres:
            self.execute("CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'nothing fits'; END $$")
            self.execute("CREATE TRIGGER no BEFORE INSERT OR UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION no()")
            return
        for what in "INSERT", "UPDATE":
            self.execute(f"CREATE TRIGGER no{what} BEFORE {what} ON jobs BEGIN SELECT RAISE(ABORT, 'nothing fits'); END")

    def allow_jobs(self):
        for trigger in ("no ON jobs",) if self.is_postgres else ("noINSERT", "noUPDATE"):
            self.execute(f"DROP TRIGGER {trigger}")


class Center:
    def __init__(self, folder, joins=None, **env):
        """joins: another center, whose database this one shares."""
        self.folder = pathlib.Path(folder)
        self.state, self.script = self.folder / "state", self.folder / "script"
        self.script.mkdir(parents=True, exist_ok=True)
        self.env = dict(os.environ, SCRIPT=str(self.script), **{k: str(v) for k, v in env.items()})
        # Its own folder, so that an agent program can lie beside it.
        self.program = self.folder / "replantd-scripted"
        if not self.program.exists():
            shutil.copy2(PROGRAM, self.program)
        self.log = open(self.folder / "log", "a+b")
        self.process = None
        self.port = 0
        if joins:
            shutil.copytree(joins.state, self.state)
        if not self.state.exists():
            subprocess.run([self.program, "init", self.state], check=True, env=self.env)
        self.token = (self.state / "admin-token").read_text().strip()
        self.context = ssl.create_default_context(cafile=str(self.state / "ca.pem"))
        self.start()

    def start(self):
        # The same port again, as agents expect of a center that was restarted.
        self.process = subprocess.Popen([self.program, "serve", self.state, f"127.0.0.1:{self.port}"], env=self.env,
                                        stdout=subprocess.PIPE, stderr=self.log, stdin=subprocess.DEVNULL)
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"the center didn't start:\n{self.tail()}")
        self.port = int(line)

    def tail(self):
        self.log.flush()
        return (self.folder / "log").read_text(errors="replace")[-4000:]

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()

    def restart(self):
        self.kill()
        self.start()

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(20 * SLOW)
        self.process.stdout.close()
        return status

    def connect(self, timeout=20):
        return http.client.HTTPSConnection("127.0.0.1", self.port, context=self.context, timeout=timeout * SLOW)

    def call(self, method, path, body=None, token=None, raw=None, headers=None):
        """token: None is the admin's, "" is none."""
        conn = self.connect()
        head = dict(headers or {})
        token = self.token if token is None else token
        if token:
            head["Authorization"] = "Bearer " + token
        data = raw if raw is not None else json.dumps(body).encode() if body is not None else None
        try:
            conn.request(method, path, body=data, headers=head)
            got = conn.getresponse()
            return Answer(got.status, got.headers, got.read())
        finally:
            conn.close()

    def get(self, path, **kw):
        return self.call("GET", path, **kw)

    def post(self, path, body=None, **kw):
        return self.call("POST", path, body if body is not None else {}, **kw)

    def ok(self, method, path, body=None, **kw):
        got = self.call(method, path, body, **kw)
        assert 200 <= got.status < 300, got
        return got.json

    # ---- behind the center's back ----
    @contextlib.contextmanager
    def database(self):
        """Its database, each statement a transaction of its own unless said otherwise."""
        where = self.env.get("DATABASE")
        if where:
            import psycopg2
            db = psycopg2.connect(where)
            db.autocommit = True
        else:
            db = sqlite3.connect(self.state / "replant.db", timeout=20, isolation_level=None)
        try:
            yield Database(db, bool(where))
        finally:
            db.close()

    # ---- the script of the provider ----
    def play(self, name, what, text=""):
        (self.script / f"{name}.{what}").write_text(text)

    def unplay(self, name, what):
        (self.script / f"{name}.{what}").unlink()

    def commit(self, run):
        (self.script / f"commit.{run}").write_text("")

    def calls(self, name=None):
        path = self.script / "calls"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        # Layers are looked after behind the jobs' backs.
        return [line for line in lines if (line[0] != "trim" if name is None else line[0] == name)]

    # ---- shorthands ----
    def new_code(self, **body):
        return self.ok("POST", "/v1/codes", body)

    def role_token(self, role):
        return self.ok("POST", "/v1/tokens", {"name": role, "role": role})["token"]

    def job(self, job):
        return self.ok("GET", f"/v1/jobs/{job}")

    def wait_job(self, job, state="finished", stage=None, timeout=20):
        def check():
            now = self.job(job)
            if now["state"] == state and (stage is None or now["stage"] == stage):
                return now
            assert not (now["state"] == "in_error" and state != "in_error"), (now["error"], self.tail())
            return None
        return wait_for(f"job {state} {stage}", check, timeout)

    def new_job(self, source, **body):
        return self.ok("POST", "/v1/jobs", dict(source=source, **body))["id"]

    def started_job(self, source, **body):
        job = self.new_job(source, **body)
        self.ok("POST", f"/v1/jobs/{job}/start", {})
        return job

    def agent(self, **kw):
        return Agent(self, **kw)


class Agent:
    """An agent as the center sees it; enrolled at once."""
    count = 0

    def __init__(self, center, code=None, machine=None, inventory=None):
        Agent.count += 1
        self.center = center
        self.machine = machine or f"{os.getpid():08x}{Agent.count:024x}"
        self.boot = f"boot-{Agent.count}"
        self.inventory = inventory or {"hostname": f"host{Agent.count}", "os": {"name": "Debian"},
                                       "disks": [{"path": "/dev/vda", "size": 10 << 30, "used": 1 << 30}]}
        code_id, secret, _ = (code or center.new_code()["code"]).split(".")
        got = center.post("/v1/agent/enroll", self.enroll_body(code_id, secret), token="")
        assert got.status == 201, got
        self.source, self.secret = got.json["source"], got.json["secret"]

    def enroll_body(self, code_id, secret):
        return {"code_id": code_id, "code_secret": secret, "hostname": f"host{Agent.count}", "machine_id": self.machine,
                "agent_version": "0.1.0", "inventory": self.inventory}

    def sync(self, task=None, **more):
        body = {"agent_version": "0.1.0", "boot_id": self.boot, **more}
        if task:
            body["task"] = task
        got = self.center.post("/v1/agent/sync", body, token=self.secret)
        assert got.status == 200, got
        return got.json

    def wait_task(self, other_than=None, timeout=20):
        """The task, once there is one (of another run)."""
        def check():
            task = self.sync()["task"]
            return task if task and task["run"] != other_than else None
        return wait_for("a task", check, timeout)

    def report(self, run, state="sending", **more):
        return self.sync(task={"run": run, "state": state, **more})

    def send_all(self):
        """Plays one whole transfer; the task it was given."""
        task = self.wait_task()
        self.report(task["run"], progress={"phase": "full", "bytes_total": 100, "bytes_done": 50, "round": 1})
        self.center.commit(task["run"])
        self.report(task["run"], "done", progress={"phase": "done", "freeze_ms": 12}, result={"notes": []})
        return task


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
