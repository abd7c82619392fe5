"""The logs of a job: what an agent sends arrives once, whatever answer is lost; all parts are there; secrets aren't."""

import io
import json
import os
import re
import sys
import tarfile
import threading

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from cli_tools import Cli  # noqa: E402
from harness import wait_for  # noqa: E402

PIECE, PIECES = 192 << 10, 4  # src/center/joblog.c
LOG_MAX = 256 << 10
SCRIPTED = ("receive", "convert", "test_boot")


class Sender:
    """An agent whose job waits for data, and what it logged."""

    def __init__(self, center, **job):
        self.center, self.agent = center, center.agent()
        self.job = center.started_job(self.agent.source, **job)
        self.task = self.agent.wait_task()
        self.run = self.task["run"]

    def say(self, text, at=0, **how):
        """What the center says of the log then."""
        task = self.agent.sync(log={"run": self.run, "at": at, "text": text}, **how)["task"]
        return task and task["log_at"]

    def refused(self, log):
        body = {"agent_version": "0.1.0", "boot_id": self.agent.boot, "log": log}
        got = self.center.post("/v1/agent/sync", body, token=self.agent.secret)
        assert got.status == 400, got
        return got.field

    def texts(self):
        return self.center.ok("GET", f"/v1/jobs/{self.job}/logs")["items"]

    def text(self, part="agent", query=""):
        got = self.center.get(f"/v1/jobs/{self.job}/log?part={part}{query}")
        assert got.status == 200, got
        return got.raw.decode()

    def files(self):
        return sorted(p.name for p in (self.center.state / "logs" / self.job).iterdir())

    def finish(self):
        self.center.commit(self.run)
        self.agent.report(self.run, "done", result={"notes": []})
        self.center.wait_job(self.job)

    def stop(self):
        self.center.ok("POST", f"/v1/jobs/{self.job}/stop", {})


@pytest.fixture
def cli(center):
    return Cli(center.folder, f"https://127.0.0.1:{center.port}", center.state / "ca.pem", center.token)


def say_by_scripts(center, **texts):
    for name, text in texts.items():
        (center.script / f"{name}.log").write_bytes(text)


def test_logs_of_all_parts(center, cli):
    say_by_scripts(center, receive=b"no room\nhalf a", convert=b"\x1b[32mok\x1b[0m booted\r\n\xff\xfe\n\n\x07tab\there\n", test_boot=b"login: ")
    s = Sender(center, name="told")
    assert s.task["log_at"] == 0
    assert s.say("one\ntwo\n") == 8
    s.finish()
    for name in SCRIPTED:
        (center.script / f"{name}.log").unlink()
    assert [(t["run"], t["part"]) for t in s.texts()] == [(1, "agent"), (1, "receiver"), (1, "conversion"), (1, "boot")]
    assert s.text() == "one\ntwo\n"
    line = r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (.*)$"
    receiver = re.findall(line, s.text("receiver"), re.M)
    assert receiver[0] == f"{s.run}: begins" and receiver[-1] == f"{s.run}: complete"
    assert [t for t in receiver if not t.startswith("{")][1:-1] == ["no room", "half a"]
    assert [json.loads(t)["event"] for t in receiver if t.startswith("{")] == ["listening", "committed"]
    conversion = re.findall(line, s.text("conversion"), re.M)
    assert "ok booted" in conversion and "??" in conversion and "tab\there" in conversion
    assert any('"name":"fstab"' in t for t in conversion) and conversion[-1] == "the conversion is complete"
    boot = re.findall(line, s.text("boot"), re.M)
    assert "login: " in boot and boot[-1] == "the test boot passed"
    for part in ("agent", "receiver", "conversion", "boot"):
        assert not re.sub(r"[^\x00-\x08\x0b-\x1f\x7f]", "", s.text(part)), "control characters"
        kept = next(t for t in s.texts() if t["part"] == part)
        assert kept["size"] == kept["end"] == len(s.text(part).encode())
    assert (center.state / "logs").stat().st_mode & 0o777 == 0o700
    assert all(p.stat().st_mode & 0o777 == 0o600 for p in (center.state / "logs" / s.job).iterdir())
    # the same by the command line
    out = cli.out("jobs", "logs", "told")
    assert re.findall(r"^==> (.*), run 1 <==$", out, re.M) == ["agent", "receiver", "conversion", "boot"] and "\ntwo\n" in out
    assert cli.out("jobs", "logs", "told", "--part", "agent") == "one\ntwo\n"
    assert "no such logs" in cli.run("jobs", "logs", "told", "--run", "7").stderr
    assert cli.run("jobs", "logs", "told", "--part", "kernel").returncode == 2
    assert len(json.loads(cli.out("jobs", "logs", "told", "--json"))["items"]) == 4
    # and gone with the job
    cli.out("jobs", "rm", "told", "--yes")
    wait_for("the logs are gone", lambda: not (center.state / "logs" / s.job).exists())


def test_nothing_is_doubled_or_lost(center):
    s = Sender(center)
    assert s.say("one\n") == 4
    # The answer was lost: the same comes again, then more of it, then what goes on.
    assert s.say("one\n") == 4 and s.say("one\ntwo\n") == 8 and s.say("three\n", 8) == 14
    assert s.agent.sync()["task"]["log_at"] == 14
    # An old heartbeat that comes late.
    assert s.say("one\ntwo\n") == 14 and s.text() == "one\ntwo\nthree\n"
    # The source had no room for what was said while nobody listened.
    assert s.say("later\n", 100) == 106
    assert s.text() == "one\ntwo\nthree\n[... 86 bytes are missing here ...]\nlater\n"
    assert s.text(query="&since=100") == "later\n" and s.text(query="&since=8").startswith("three\n[... 86")
    got = center.get(f"/v1/jobs/{s.job}/log?since=106")
    assert got.raw == b"" and got.headers["Replant-Log-End"] == "106"
    # A center that was killed knows what it has, and an agent that was killed begins there.
    center.restart()
    task = s.agent.wait_task(other_than=s.run)
    assert task["log_at"] == 106
    s.run = task["run"]
    assert s.say("after\n", 106) == 112 and s.text(query="&since=106") == "after\n"
    # The last words come when the job is somewhere else already, and the center doesn't think of it.
    s.stop()
    center.restart()
    assert s.say("the end\n", 112) is None and s.text(query="&since=106") == "after\nthe end\n"


def test_many_at_once_are_one(center):
    s = Sender(center)
    lines = "".join(f"line {i:04}\n" for i in range(2000))
    together = threading.Barrier(6)

    def say_all():
        conn = center.connect()
        for n in range(10, 2001, 10):
            body = {"agent_version": "0.1.0", "boot_id": s.agent.boot, "log": {"run": s.run, "at": 0, "text": lines[:10 * n]}}
            together.wait(60)
            conn.request("POST", "/v1/agent/sync", json.dumps(body), {"Authorization": "Bearer " + s.agent.secret})
            assert conn.getresponse().read()
        conn.close()

    senders = [threading.Thread(target=say_all) for _ in range(6)]
    for t in senders:
        t.start()
    for t in senders:
        t.join()
    assert s.text() == lines
    s.stop()


def test_who_may_say_what(center):
    s, other = Sender(center), center.agent()
    s.say("mine\n")
    for run in (s.run, "run-0000000000000000"):
        other.sync(log={"run": run, "at": 5, "text": "not mine\n"})
    assert s.text() == "mine\n"
    assert s.refused({"run": s.job, "at": 5, "text": "x\n"}) == "log.run"
    assert s.refused({"run": "run-1", "at": 5, "text": "x\n"}) == "log.run"
    assert s.refused({"run": "run-zzzzzzzzzzzzzzzz", "at": 5, "text": "x\n"}) == "log.run"
    assert s.refused({"run": s.run, "at": -1, "text": "x\n"}) == "log.at"
    assert s.refused({"run": s.run, "at": 1 << 53, "text": "x\n"}) == "log.at"
    assert s.refused({"run": s.run, "at": 5, "text": "x" * (LOG_MAX + 1)}) == "log.text"
    assert s.refused({"run": s.run, "at": 5, "text": "\x1b[2Jx\n"}) == "log.text"
    assert s.refused({"run": s.run, "at": 5}) == "log.text"
    assert s.refused({"run": s.run, "at": 5, "text": "x\n", "more": 1}) == "log.more"
    for raw in (b"\\u0000", b"\xff\xfe"):
        body = b'{"agent_version":"0.1.0","boot_id":"b","log":{"run":"%s","at":5,"text":"%s"}}' % (s.run.encode(), raw)
        assert center.call("POST", "/v1/agent/sync", raw=body, token=s.agent.secret).status == 400
    assert s.text() == "mine\n" and s.files() == ["1-agent-0.log", "1-receiver-0.log"]
    for query, field in (("part=kernel", "part"), ("part=../x", "part"), ("run=0", "run"), ("run=x", "run"), ("since=-1", "since")):
        got = center.get(f"/v1/jobs/{s.job}/log?{query}")
        assert (got.status, got.code, got.field) == (400, "bad_parameter", field)
    assert center.get(f"/v1/jobs/{s.job}/log?part=boot").status == 404
    assert center.get(f"/v1/jobs/{s.job}/log?run=9").status == 404
    for path in ("logs", "log", "bundle"):
        assert center.get(f"/v1/jobs/job-0000000000000000/{path}").status == 404
        assert center.get(f"/v1/jobs/{s.job}/{path}", token=s.agent.secret).status == 401
        assert center.get(f"/v1/jobs/{s.job}/{path}", token=center.role_token("viewer")).status == 200
    s.stop()


def test_a_long_log_keeps_beginning_and_end(center):
    s = Sender(center)
    lines = [f"{i:07} {'x' * 91}\n" for i in range(30000)]  # 100 bytes each, 3 MB
    whole, at = "".join(lines), 0
    while at < len(whole):
        at = s.say(whole[at:at + 65500], at)
    got = s.text()
    head, missing, tail = re.fullmatch(r"((?:\d{7} x+\n)+)\[\.\.\. (\d+) bytes are missing here \.\.\.\]\n((?:\d{7} x+\n)+)", got).groups()
    assert whole.startswith(head) and whole.endswith(tail) and len(head) + int(missing) + len(tail) == len(whole)
    assert len(head) >= PIECE and len(tail) >= PIECE and len(head) + len(tail) <= PIECES * (PIECE + 65536)
    kept, = (t for t in s.texts() if t["part"] == "agent")
    assert kept["end"] == len(whole) and kept["size"] == len(head) + len(tail)
    # What is asked for from within the gap is told so, too.
    assert s.text(query=f"&since={len(head) + 10}").startswith(f"[... {int(missing) - 10} bytes")
    # Who skips ahead with every line keeps no more.
    at = len(whole)
    for i in range(100):
        at = s.say("ahead\n", at + 1000)
    assert len([f for f in s.files() if "agent" in f]) == PIECES
    s.stop()


def test_a_console_without_end(center):
    say_by_scripts(center, receive=b"y" * 5000 + b"\n" + b"z\n" * 100000)
    s = Sender(center)
    (center.script / "receive.log").unlink()
    got = s.text("receiver")
    assert all(len(line) < 1100 for line in got.splitlines()) and sum(line.count("y") for line in got.splitlines()[2:7]) > 3000
    assert len(got) < PIECES * (PIECE + 40000) and "bytes are missing" in got
    s.stop()


def test_old_runs_go(fresh):
    center = fresh(HOUR=3600)
    s = Sender(center, parameters={"incremental": True, "test_boot": False})
    for number in range(1, 13):
        assert s.say(f"run {number}\n") == len(f"run {number}\n")
        center.commit(s.run)
        s.agent.report(s.run, "done", result={"notes": []})
        center.wait_job(s.job, "waiting")
        if number < 12:
            center.ok("POST", f"/v1/jobs/{s.job}/run", {})
            s.run = s.agent.wait_task(other_than=s.run)["run"]
    assert sorted({t["run"] for t in s.texts()}) == list(range(3, 13))
    assert s.text() == "run 12\n" and s.text(query="&run=3") == "run 3\n"
    assert center.get(f"/v1/jobs/{s.job}/log?run=2").status == 404


def test_nothing_is_kept_when_it_is_off(center, cli):
    say_by_scripts(center, receive=b"quiet please\n")
    s = Sender(center, parameters={"diagnostic_logs": False})
    folder = center.state / "logs" / s.job
    assert s.task["log_at"] is None and s.say("x\n") is None and not folder.exists() and s.texts() == []
    # On and off again while it sends.
    cli.out("jobs", "set", s.job, "--diagnostic-logs", "on")
    assert s.agent.sync()["task"]["log_at"] == 0 and s.say("now\n") == 4 and s.text() == "now\n"
    cli.out("jobs", "set", s.job, "--diagnostic-logs", "off")
    assert not folder.exists() and s.say("no more\n", 4) is None
    s.finish()
    s.say("nor at last\n", 4)
    assert not folder.exists() and s.texts() == []
    (center.script / "receive.log").unlink()
    assert center.call("PATCH", f"/v1/jobs/{s.job}", {"parameters": {"diagnostic_logs": True}}).status == 409
    assert cli.run("jobs", "create", s.agent.source, "--diagnostic-logs", "maybe").returncode == 2
    cli.out("jobs", "create", s.agent.source, "--diagnostic-logs", "off", "--name", "silent")
    assert center.ok("GET", "/v1/jobs?name=silent")["items"][0]["parameters"]["diagnostic_logs"] is False


def test_what_no_job_owns_goes(fresh):
    center = fresh()
    stray = center.state / "logs" / "job-00000000000000ff"
    stray.mkdir()
    (stray / "1-agent-0.log").write_text("x\n")
    s = Sender(center)
    s.say("mine\n")
    center.restart()
    assert not stray.exists() and s.text() == "mine\n"


def test_a_full_disk_fails_no_job(fresh):
    center = fresh()
    s = Sender(center)
    folder = center.state / "logs" / s.job
    for f in folder.iterdir():
        f.unlink()
    folder.rmdir()
    folder.write_text("not a folder")
    assert s.say("x\n") == 0  # it will be sent again
    folder.unlink()
    assert s.say("x\n") == 2
    s.finish()


def unpack(raw):
    with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
        assert all(m.isdir() or m.isreg() for m in tar)
        return {m.name.split("/", 1)[1]: tar.extractfile(m).read().decode() for m in tar if m.isreg()}


def test_bundle_has_no_secrets(center, cli, tmp_path):
    code = center.new_code()["code"]
    secrets = {center.token, center.token.split(".")[1], code, code.split(".")[1], "hunter2", "c2VjcmV0a2V5"}
    key = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0a2V5\n-----END PRIVATE KEY-----\n"
    say_by_scripts(center, receive=f"key {center.token}\n".encode(), convert=f"url https://root:hunter2@host/\n{key}".encode(),
                   test_boot=b"cloud-init: password: hunter2\n")
    s = Sender(center, name="leaky", description="its password=hunter2 is known")
    for name in SCRIPTED:
        (center.script / f"{name}.log").unlink()
    secrets |= {s.agent.secret.split(".")[1], s.task["psk"]}
    s.agent.inventory = dict(s.agent.inventory, hostname="leaky-host", notes={"db_password": ["hunter2"]})
    text = f"enrolled with {code}\npsk={s.task['psk']}\nAuthorization: Bearer {center.token}\n{s.agent.secret}\n{key}plain\n"
    assert s.say(text, inventory=s.agent.inventory) == len(text)
    s.agent.report(s.run, "failed", error={"code": "read_error", "message": "token=hunter2 at sector 5", "temporary": False})
    center.wait_job(s.job, "in_error")
    # not even where they are kept
    for path in (center.state / "logs").rglob("*.log"):
        assert not [x for x in secrets if x in path.read_text()], path
    file = tmp_path / "b.tar.gz"
    cli.out("jobs", "bundle", "leaky", "-o", file)
    found = unpack(file.read_bytes())
    assert set(found) == {"job.json", "runs.json", "images.json", "source.json", "events.json", "versions.json", "summary.txt",
                          "logs/1-agent.log", "logs/1-receiver.log"}
    for name, content in found.items():
        assert not [x for x in secrets if x in content], name
    assert "\nplain\n" in found["logs/1-agent.log"] and "enrolled with " + code[:16] in found["logs/1-agent.log"]
    assert json.loads(found["source.json"])["inventory"]["hostname"] == "leaky-host"
    assert json.loads(found["source.json"])["inventory"]["notes"] == {"db_password": ["***"]}
    assert json.loads(found["job.json"])["description"] == "its password=******* is known"
    assert {e["data"]["id"] for e in json.loads(found["events.json"])} >= {s.job}
    assert json.loads(found["versions.json"])["center"] and "read_error" in found["summary.txt"]
    assert not (center.state / "logs" / ".bundle").exists()
    assert file.stat().st_mode & 0o777 == 0o600
    # a finished one has all parts
    center.ok("POST", f"/v1/jobs/{s.job}/start", {})
    s.run = s.agent.wait_task(other_than=s.run)["run"]
    say_by_scripts(center, convert=f"url https://root:hunter2@host/\n{key}".encode(), test_boot=b"cloud-init: password: hunter2\n")
    s.finish()
    found = unpack(center.get(f"/v1/jobs/{s.job}/bundle").raw)
    assert {"logs/1-conversion.log", "logs/1-boot.log"} <= set(found) and json.loads(found["images.json"])
    for name, content in found.items():
        assert not [x for x in secrets if x in content], name
    for name in ("convert", "test_boot"):
        (center.script / f"{name}.log").unlink()


def test_bundle_of_a_limited_token(center):
    """Who may see the job need not see its source."""
    s = Sender(center, name="shared", tags={"team": "shop"})
    s.finish()
    token = center.ok("POST", "/v1/tokens", {"name": "shop", "role": "viewer", "scope": {"team": "shop"}})["token"]
    whole = unpack(center.get(f"/v1/jobs/{s.job}/bundle").raw)
    part = unpack(center.get(f"/v1/jobs/{s.job}/bundle", token=token).raw)
    assert set(whole) - set(part) == {"source.json"} and len(json.loads(part["images.json"])) == 1
    assert "10737418240" in whole["source.json"] and not [name for name, text in part.items() if "10737418240" in text], "its disks"
    center.ok("PATCH", f"/v1/images/{center.job(s.job)['image']}", {"tags": {"team": "bank"}})
    assert json.loads(unpack(center.get(f"/v1/jobs/{s.job}/bundle", token=token).raw)["images.json"]) == []
    center.ok("PATCH", f"/v1/sources/{s.agent.source}", {"tags": {"team": "shop"}})
    assert "source.json" in unpack(center.get(f"/v1/jobs/{s.job}/bundle", token=token).raw)
    center.ok("PATCH", f"/v1/jobs/{s.job}", {"tags": {}})
    for path in ("logs", "log", "bundle"):
        assert center.get(f"/v1/jobs/{s.job}/{path}", token=token).status == 404


def test_follow(center, cli):
    s = Sender(center, name="followed")
    s.say("one\n")
    follower = cli.start("jobs", "logs", "followed", "--part", "agent", "--follow")
    assert follower.stdout.readline() == "one\n"
    s.say("two\n\u202ethree\n", 4)
    assert follower.stdout.readline() == "two\n" and "\u202e" not in follower.stdout.readline()
    s.say("last\n", 4 + len("two\n\u202ethree\n".encode()))
    s.finish()
    out, err = follower.communicate(timeout=60)
    assert (out, err, follower.returncode) == ("last\n", "", 0)
