"""What the center answers is what its document says, member by member, with nothing left out."""

import importlib.util
import json
import pathlib
import shutil
import subprocess
import time

import pytest

jsonschema = pytest.importorskip("jsonschema")

from harness import BUILD, TOP, free_port, wait_for  # noqa: E402
from tests import schema  # noqa: E402

AGENT = BUILD / "src" / "agent" / "replant-agent"
RESULT = {"totals": {"phase": "done", "round": 2, "percent": 100.0, "bytes_total": 9, "bytes_done": 9, "bytes_read": 9,
                     "bytes_sent": 9, "bytes_changed": 0, "speed": None, "seconds_left": None,
                     "expected_freeze_seconds": 0.5, "freeze_ms": 12.5},
          "notes": ["a note"], "zeroed": [{"disk": 0, "offset": 0, "length": 512}], "disks": ["/dev/vda"]}


@pytest.fixture(scope="module")
def inventory():
    """Of this machine, by the real agent."""
    return json.loads(subprocess.run([AGENT, "discover", "--json"], check=True, capture_output=True).stdout)


@pytest.fixture(scope="module")
def ids(center, inventory):
    """A center that has something of everything; one id of each noun."""
    shutil.copy2(AGENT, center.folder / "replant-agent")
    (center.script / "screen.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    center.new_code(name="for the cellar")
    found = {"codes": center.ok("GET", "/v1/codes")["items"][0]["id"], "regions": "local"}
    center.role_token("viewer")
    found["templates"] = center.ok("POST", "/v1/templates", {"name": "night", "job": {"parameters": {"rate_mbit": 5}, "tags": {"a": "b"}}})["id"]
    found["workgroups"] = center.ok("POST", "/v1/workgroups", {"name": "wave"})["id"]
    # Nobody is there to be told.
    found["subscriptions"] = center.ok("POST", "/v1/subscriptions", {"name": "ops", "target": f"http://127.0.0.1:{free_port()}/"})["id"]
    agent = center.agent(inventory=dict(inventory, failed_units=["broken.service"]))
    center.ok("PATCH", f"/v1/sources/{agent.source}", {"workgroup": found["workgroups"]})
    lonely = center.agent()
    center.ok("PATCH", f"/v1/sources/{lonely.source}", {"workgroup": found["workgroups"]})
    done = center.new_job(agent.source, image_name="web", description="the first", template=found["templates"], execution="test_and_migrate")
    test = agent.wait_task()
    center.commit(test["run"])
    agent.report(test["run"], "done", progress=RESULT["totals"], result=dict(RESULT, live={"bytes": 9, "seconds": 1.5}, test={
        "checks": [{"check": "cpu", "result": "ok", "message": "idle", "remedy": None}], "left_out": ["/dev/vdb"], "time": time.time()}))
    task = agent.wait_task(other_than=test["run"])
    agent.report(task["run"], progress=RESULT["totals"])
    agent.sync(log={"run": task["run"], "at": 0, "text": "a line\n"})
    center.commit(task["run"])
    agent.report(task["run"], "done", progress=RESULT["totals"], result=RESULT)
    image = center.wait_job(done)["image"]
    export = center.ok("POST", f"/v1/images/{image}/exports", {"format": "qcow2"})["id"]
    wait_for("export", lambda: center.ok("GET", f"/v1/exports/{export}")["state"] == "finished")
    instance = center.ok("POST", "/v1/instances", {"name": "vm", "image": image, "settings": {"forwards": [{"host": 8022, "guest": 22}]}})["id"]
    wait_for("the instance", lambda: center.ok("GET", f"/v1/instances/{instance}")["state"] == "running")
    (center.script / "world" / f"serial.{instance}").write_text("login: ")
    wait_for("its end", lambda: center.ok("GET", f"/v1/instances/{instance}")["action"] is None)
    found["instances"] = instance
    found["snapshots"] = center.ok("POST", f"/v1/instances/{instance}/snapshots", {"name": "before"})["id"]
    assert center.post(f"/v1/instances/{instance}/start").status == 409  # so that it has an error
    # As if it had been the one that the job migrated onto.
    (center.state / "pictures").mkdir(exist_ok=True)
    (center.state / "pictures" / f"{done}.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    # One that failed, one at work in a stage that is timed, one that is sent.
    bad = center.agent()
    center.play("convert", "fail", "no disk has GRUB in its boot sector")
    failed = center.started_job(bad.source)
    bad.send_all()
    center.wait_job(failed, "in_error")
    center.unplay("convert", "fail")
    found["notices"] = wait_for("an attempt", lambda: [n for n in center.ok("GET", "/v1/notices")["items"] if n["error"]])[0]["id"]
    center.play("convert", "hold")
    busy = center.agent()
    timed = center.started_job(busy.source)
    busy.send_all()
    wait_for("processing", lambda: (center.job(timed)["step"] or {}).get("percent") is not None and center.job(timed)["stage"] == "processing")
    sending = center.agent()
    sent = center.started_job(sending.source)
    sending.report(sending.wait_task()["run"], progress=dict(RESULT["totals"], speed=3.5, seconds_left=2))
    yield {**found, "sources": agent.source, "jobs": done, "images": image, "exports": export,
           "all jobs": [done, failed, timed, sent]}
    center.unplay("convert", "hold")
    center.wait_job(timed)
    center.ok("POST", f"/v1/jobs/{sent}/stop", {})


def answer_schema(path):
    (kind, content), = schema.DOCUMENT["paths"][path]["get"]["responses"]["200"]["content"].items()
    return kind, content["schema"]


@pytest.mark.parametrize("path", [path for path, methods in schema.DOCUMENT["paths"].items() if methods.get("get", {}).get("x-role", "signed") != "signed"])
def test_every_answer(center, ids, path):
    kind, wanted = answer_schema(path)
    if kind == "text/event-stream":
        return  # see below
    noun = path.split("/")[2] if path.startswith("/v1/") else None
    got = center.get(path.replace("{id}", ids.get(noun, "")))
    assert got.status == 200 and got.headers["Content-Type"] == kind
    if kind != "application/json" or path == "/v1/openapi.json":
        assert len(got.raw) > 0
        return
    schema.check(wanted, got.json, path)
    if "items" in got.json:
        assert got.json["items"], "a list that has nothing in it proves nothing"


def test_jobs_in_every_state(center, ids):
    for job in ids["all jobs"]:
        schema.check(answer_schema("/v1/jobs/{id}")[1], center.job(job), job)
    assert center.job(ids["jobs"])["runs"][0]["result"] == RESULT


def test_every_event(center, ids):
    known = schema.DOCUMENT["paths"]["/v1/events"]["get"]["x-events"]
    gone = center.agent()
    center.ok("DELETE", f"/v1/sources/{gone.source}")
    # The stream says reset first when the cursor is from another database.
    seen = set()
    for query, last in (("?since=0", "source.deleted"), ("?since=999999", "reset")):
        conn = center.connect()
        conn.request("GET", "/v1/events" + query, headers={"Authorization": "Bearer " + center.token})
        stream, kind = conn.getresponse(), None
        while last not in seen or "job.progress" not in seen:
            line = stream.readline().decode().rstrip("\n")
            if line.startswith("event: "):
                kind = line[7:]
            elif line.startswith("data: "):
                assert kind in known, f"event '{kind}' isn't described"
                schema.check(known[kind], json.loads(line[6:]), kind)
                seen.add(kind)
        conn.close()
    assert {"source.created", "source.updated", "source.deleted", "job.created", "job.updated", "image.created", "image.updated",
            "export.updated", "job.progress", "reset"} <= seen


@pytest.mark.parametrize("method,path,body", [("GET", "/v1/jobs/job-0000000000000000", None), ("POST", "/v1/jobs", {"source": 7}),
                                              ("GET", "/nowhere", None), ("PATCH", "/v1/codes", {})])
def test_refusals(center, method, path, body):
    got = center.call(method, path, body)
    assert got.status >= 400
    schema.check_as("Error", got.json)


def test_the_real_agent_and_the_real_conversion(inventory, tmp_path):
    schema.check_as("Inventory", inventory)
    assert inventory["network"]["interfaces"], "not much of an inventory"
    spec = importlib.util.spec_from_file_location("steps", pathlib.Path(TOP) / "tests" / "guest" / "test_steps.py")
    steps = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(steps)
    tree = steps.Tree(tmp_path)
    tree.write("/etc/fstab", "/dev/sda1 / ext4 defaults 0 1\n")
    report = tree.convert()
    assert any(step["files"] for step in report["steps"])
    schema.check_as("Conversion", report)


def test_the_check_finds_what_is_not_described():
    with pytest.raises(AssertionError, match="colour"):
        schema.check_as("Inventory", {"hostname": "web", "disks": [{"colour": "red"}]})
    with pytest.raises(AssertionError, match="step"):
        schema.check_as("JobTick", {"id": "job-1", "step": 7})
