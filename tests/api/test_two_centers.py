"""Two centers on one PostgreSQL: what one carries the other knows, and carries on when it is gone. Each has a script of its own here, so that
it shows who called what, and the storage is the same: what no storage could bear is misuse, and fails."""

import json
import os
import signal
import subprocess
import threading
import time

import pytest

from conftest import new_center
from harness import SLOW, Center, wait_for

LEASE = 5 * SLOW


@pytest.fixture
def pair(tmp_path, postgres):
    env = {"LEASE": LEASE, "HEARTBEAT": 1}
    a = new_center(tmp_path / "a", postgres, DATA_HOST="a.example", **env)
    # The same storage below both.
    (a.script / "world").mkdir(exist_ok=True)
    (tmp_path / "b" / "script").mkdir(parents=True)
    for shared in "world", "made", "misuse":
        (tmp_path / "b" / "script" / shared).symlink_to(a.script / shared)
    b = Center(tmp_path / "b", joins=a, DATABASE=a.env["DATABASE"], DATA_HOST="b.example", **env)
    yield a, b
    for center in a, b:
        if center.process.poll() is None:
            assert center.stop() == 0, center.tail()
    assert not (a.script / "misuse").exists(), (a.script / "misuse").read_text()


def heart(agent, centers):
    """Beats in turns at all centers that are there, as behind a balancer of load, and sends what it is told to send. The runs it was
    given are in .runs, as (host, run)."""
    agent.runs, agent.beating = [], True

    def beat():
        turn = 0
        while agent.beating:
            turn += 1
            agent.center = centers[turn % len(centers)]
            try:
                task = agent.sync()["task"]
                if task and (task["host"], task["run"]) not in agent.runs:
                    agent.runs.append((task["host"], task["run"]))
            except OSError:
                pass
            time.sleep(0.1)
    agent.thread = threading.Thread(target=beat, daemon=True)
    agent.thread.start()


def rest(agent):
    agent.beating = False
    agent.thread.join()


def one_image(center, job):
    images = center.ok("GET", f"/v1/images?job={job}")["items"]
    return [i["id"] for i in images] == [center.job(job)["image"]]


def test_any_center_will_do(pair):
    """The job is A's, its agent and its people talk to B."""
    a, b = pair
    agent = a.agent()
    agent.center = b
    job = a.started_job(agent.source, parameters={"test_boot": False})
    task = agent.wait_task()
    assert (task["job"], task["host"], task["port"], len(task["psk"])) == (job, "a.example", 4711, 64)
    # Both centers offer the same run with the same key.
    agent.center = a
    again = agent.wait_task()
    assert (again["run"], again["psk"], again["host"]) == (task["run"], task["psk"], "a.example")
    agent.center = b
    progress = {"phase": "full", "bytes_total": 100, "bytes_done": 42, "round": 1}
    agent.report(task["run"], progress=progress)
    for center in a, b:
        wait_for("progress", lambda: (center.job(job)["progress"] or {}).get("bytes_done") == 42)
        wait_for("the step", lambda: center.job(job)["step"]["name"] == "full")
    # Parameters that are changed at B reach the run at A, and its agent.
    b.ok("PATCH", f"/v1/jobs/{job}", {"parameters": {"rate_mbit": 7}})
    for center in a, b:
        agent.center = center
        wait_for("the new rate", lambda: agent.sync()["task"]["parameters"]["rate_mbit"] == 7)
    agent.center = b
    # Stopped at B: A ends what it does. Started at B: who can does it.
    b.ok("POST", f"/v1/jobs/{job}/stop", {})
    wait_for("A's end", lambda: agent.sync()["task"] is None)
    assert a.job(job)["state"] == "stopped"
    assert a.job(job)["progress"]["bytes_done"] == 42
    b.ok("POST", f"/v1/jobs/{job}/start", {})
    second = agent.wait_task(other_than=task["run"])
    for center in a, b:
        center.commit(second["run"])
    agent.report(second["run"], "done", progress={"phase": "done", "freeze_ms": 12}, result={"notes": ["a note"]})
    row = b.wait_job(job)
    assert row["runs"][0]["id"] == second["run"] and row["runs"][0]["result"] == {"notes": ["a note"]}
    assert a.job(job)["state"] == "finished" and one_image(a, job)
    # What an agent says at the wrong center is heard, too.
    job = a.started_job(agent.source)
    task = agent.wait_task()
    agent.report(task["run"], "failed", error={"code": "hook_failed", "message": "the hook says no", "temporary": False})
    assert wait_for("the failure", lambda: b.job(job)["error"])["code"] == "hook_failed"
    # Deleted at B while it is A's to retry.
    b.ok("DELETE", f"/v1/jobs/{job}")
    wait_for("no job", lambda: a.get(f"/v1/jobs/{job}").status == 404)
    assert sum(["job_remove", job] in center.calls() for center in pair) == 1


def test_events_of_the_other(pair):
    a, b = pair
    agent = a.agent()
    conn = b.connect()
    conn.request("GET", "/v1/events", headers={"Authorization": "Bearer " + b.token})
    stream = conn.getresponse()
    heard = []
    reader = threading.Thread(target=lambda: [heard.append(line.decode().strip()) for line in iter(stream.readline, b"")], daemon=True)
    reader.start()
    job = a.started_job(agent.source, parameters={"test_boot": False})
    task = agent.wait_task()
    agent.report(task["run"], progress={"phase": "full", "bytes_total": 100, "bytes_done": 50, "round": 1})
    wait_for("progress", lambda: any(line.startswith("data:") and job in line and '"bytes_done":50' in line for line in heard))
    a.commit(task["run"])
    a.wait_job(job)
    for event in "job.created", "job.updated", "image.created":
        wait_for(event, lambda: f"event: {event}" in heard)
    b.stop()
    reader.join()
    numbers = [int(line[4:]) for line in heard if line.startswith("id: ")]
    assert numbers == sorted(set(numbers))


def test_a_source_that_only_one_hears(pair):
    a, b = pair
    agent = a.agent()
    agent.center = b
    job = a.started_job(agent.source)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        agent.sync()
        for center in pair:
            assert center.ok("GET", f"/v1/sources/{agent.source}")["state"] == "in_use"
        time.sleep(0.2)
    # Silent, it is away for both.
    for center in pair:
        wait_for("its absence", lambda: center.ok("GET", f"/v1/sources/{agent.source}")["state"] == "unavailable")


@pytest.mark.parametrize("stage", ["syncing", "processing"])
def test_a_center_is_killed(pair, stage):
    a, b = pair
    agent = a.agent()
    if stage == "processing":
        a.play("convert", "hold")
    job = a.started_job(agent.source, parameters={"test_boot": False})
    heart(agent, [a, b])
    wait_for("a run", lambda: agent.runs)
    if stage == "processing":
        a.commit(agent.runs[0][1])
        wait_for("the conversion", lambda: a.calls("convert"))
    time.sleep(LEASE * 1.2)
    assert not b.calls("receive") and not b.calls("convert"), "B waits as long as A is there"
    a.kill()
    if stage == "syncing":
        host, run = wait_for("a run of B", lambda: [r for r in agent.runs if r[0] == "b.example"], 4 * LEASE)[0]
        b.commit(run)
    b.wait_job(job, timeout=4 * LEASE)
    rest(agent)
    assert one_image(b, job)
    assert len(b.calls("image_create")) == 1 and not a.calls("image_create")
    assert len(b.calls("receive")) == (stage == "syncing")
    a.start()
    assert one_image(a, job) and a.job(job)["state"] == "finished"


def watcher(center):
    """The process that watches the center."""
    out = subprocess.run(["pgrep", "-P", str(center.process.pid)], capture_output=True, text=True)
    return int(out.stdout.split()[0])


@pytest.mark.parametrize("watched", [True, False], ids=["watched", "unwatched"])
def test_a_center_stands_still(pair, watched):
    """Its watcher kills it; and where that stood still as well (a machine that was suspended), it does nothing when it goes on."""
    a, b = pair
    agent = a.agent()
    a.play("convert", "hold")
    job = a.started_job(agent.source, parameters={"test_boot": False})
    heart(agent, [b])
    run = wait_for("a run", lambda: agent.runs)[0][1]
    a.commit(run)
    wait_for("the conversion", lambda: a.calls("convert"))
    other = watcher(a)
    if not watched:
        os.kill(other, signal.SIGSTOP)
    a.process.send_signal(signal.SIGSTOP)
    b.wait_job(job, timeout=4 * LEASE)
    rest(agent)
    made = b.job(job)
    a.unplay("convert", "hold")  # it would go on at once
    a.process.send_signal(signal.SIGCONT)
    if watched:
        assert a.process.wait(20) == -signal.SIGKILL
        a.process.stdout.close()
        a.start()
    else:
        wait_for("its notice", lambda: "the lease is lost" in a.tail())
    time.sleep(2)
    assert not a.calls("image_create") and len(b.calls("image_create")) == 1
    assert len(a.calls("convert")) == 1
    assert b.job(job) == made and one_image(a, job)
    if not watched:
        # And carries jobs as before.
        os.kill(other, signal.SIGCONT)
        agent.center = a
        second = a.started_job(agent.source, parameters={"test_boot": False})
        task = agent.wait_task()
        for center in pair:
            center.commit(task["run"])
        b.wait_job(second)


def test_a_center_ends(pair):
    """What it had is the other's at once."""
    a, b = pair
    agent = a.agent()
    job = a.started_job(agent.source, parameters={"test_boot": False})
    agent.wait_task()
    started = time.monotonic()
    assert a.stop() == 0, a.tail()
    agent.center = b
    task = wait_for("B's offer", lambda: (lambda t: t if t and t["host"] == "b.example" else None)(agent.sync()["task"]))
    assert time.monotonic() - started < LEASE
    b.commit(task["run"])
    b.wait_job(job)


def test_many_jobs(pair):
    """Started at either, each is carried by one; half way one center dies."""
    a, b = pair
    code = a.new_code(uses=12)["code"]
    agents = [a.agent(code=code) for _ in range(12)]
    jobs = [pair[i % 2].started_job(agent.source, parameters={"test_boot": False}) for i, agent in enumerate(agents)]
    for agent in agents:
        heart(agent, [a, b])
    wait_for("all runs", lambda: all(agent.runs for agent in agents))
    assert {agent.runs[0][0] for agent in agents} == {"a.example", "b.example"}
    for agent in agents[:4]:
        for center in pair:
            center.commit(agent.runs[0][1])
    for job in jobs[:4]:
        b.wait_job(job)
    a.kill()

    def send():
        for agent in agents:
            for host, run in list(agent.runs):
                b.commit(run)
        return all(b.job(job)["state"] == "finished" for job in jobs)
    wait_for("all ends", send, 6 * LEASE)
    for agent in agents:
        rest(agent)
    made = [c[1] for center in pair for c in center.calls("image_create")]
    assert len(set(made)) == len(jobs)
    for job in jobs:
        assert one_image(b, job)


def test_an_instance_is_worked_on_by_one_center(pair):
    """Made at A, which dies over it: B goes on. What B runs A leaves alone, and the other way round."""
    a, b = pair
    agent = a.agent()
    job = a.started_job(agent.source, parameters={"test_boot": False})
    agent.send_all()
    image = a.wait_job(job)["image"]

    def row(center, instance):
        return center.ok("GET", f"/v1/instances/{instance}")

    a.play("set_add", "hold")
    instance = a.ok("POST", "/v1/instances", {"name": "vm", "image": image, "start": True})["id"]
    wait_for("the work", lambda: ["set_add", instance] in a.calls())
    assert row(b, instance)["action"] == "create"
    assert b.post(f"/v1/instances/{instance}/start").code == "in_use"
    a.kill()
    a.unplay("set_add", "hold")
    made = wait_for("B made it", lambda: (lambda r: r["action"] is None and r)(row(b, instance)), 60)
    assert (made["state"], made["error"]) == ("running", None) and ["set_add", instance] in b.calls()
    a.start()
    for verb in "start", "stop", "restart":
        got = a.post(f"/v1/instances/{instance}/{verb}")
        assert (got.status, got.code) == (409, "another_host") and "b.example" in got.json["error"]["message"]
    assert a.get(f"/v1/instances/{instance}/screenshot").code == "another_host"
    assert a.get(f"/v1/instances/{instance}").json["state"] == "running"
    # Off it is anybody's.
    b.ok("POST", f"/v1/instances/{instance}/stop", {})
    wait_for("A runs it", lambda: a.post(f"/v1/instances/{instance}/start").status == 200)
    wait_for("B hears of it", lambda: b.post(f"/v1/instances/{instance}/stop").code == "another_host")
    wait_for("A stops it", lambda: a.post(f"/v1/instances/{instance}/stop", {"force": True}).status == 200)
    wait_for("B removes it", lambda: b.call("DELETE", f"/v1/instances/{instance}").status in (202, 204))
    wait_for("gone", lambda: a.get(f"/v1/instances/{instance}").status == 404)


def test_a_way_back_where_the_instance_runs(pair):
    """For the other center it is off, and its disks free to be exchanged."""
    a, b = pair
    agent = a.agent()
    job = a.started_job(agent.source, parameters={"test_boot": False})
    agent.send_all()
    image = a.wait_job(job)["image"]
    instance = a.ok("POST", "/v1/instances", {"name": "switched", "image": image, "start": True})["id"]
    made = wait_for("it", lambda: (lambda r: r["action"] is None and r)(a.ok("GET", f"/v1/instances/{instance}")))
    with a.database() as db:
        db.execute("UPDATE instances SET switching = ? WHERE id = ?",
                   (json.dumps({"job": job, "image": image, "step": "switched", "from": made["disks"], "to": "set-00000000000000bb",
                                "ran": True, "keep_failed": False, "was_image": image}), instance))
    for verb in "rollback", "confirm":
        got = b.post(f"/v1/instances/{instance}/{verb}")
        assert (got.status, got.code) == (409, "another_host") and "a.example" in got.json["error"]["message"], got
    # On the way, where B looks after what nobody carries.
    a.play("instance_stop", "hold")
    a.ok("POST", f"/v1/instances/{instance}/rollback", {})
    wait_for("the work", lambda: ["instance_stop", instance] in a.calls())
    a.kill()
    a.unplay("instance_stop", "hold")
    time.sleep(LEASE)
    assert not [c for c in b.calls() if c[0] in ("instance_stop", "set_use") and c[1] == instance]
    a.start()
    wait_for("the old system", lambda: a.ok("GET", f"/v1/instances/{instance}")["switching"] is None, 60)
    wait_for("A runs it", lambda: b.post(f"/v1/instances/{instance}/stop").code == "another_host")
    wait_for("A stops it", lambda: a.post(f"/v1/instances/{instance}/stop", {"force": True}).status == 200)
    wait_for("A removes it", lambda: a.call("DELETE", f"/v1/instances/{instance}").status in (202, 204))
    wait_for("gone", lambda: a.get(f"/v1/instances/{instance}").status == 404)
