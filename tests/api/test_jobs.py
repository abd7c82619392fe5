"""Jobs from creation to the image, what is refused, and a center that is killed in each stage."""

import json
import time

import pytest

from harness import wait_for


def test_a_job_from_start_to_image(center):
    agent = center.agent()
    assert center.ok("GET", f"/v1/sources/{agent.source}")["state"] == "available"
    job = center.new_job(agent.source, name="move", image_name="moved", parameters={"connections": 8})
    row = center.job(job)
    assert (row["state"], row["stage"], row["parameters"]["connections"]) == ("ready", None, 8)
    assert row["parameters"] == {"connections": 8, "compression": "auto", "rate_mbit": 0, "checksum": True,
                                 "on_read_error": "fail", "test_boot": True, "max_freeze": 1,
                                 "incremental": False, "interval_hours": 24, "max_images": 3, "license": "none", "network": "public", "encryption": "auto",
                                 "transition_cpus": 2, "transition_memory": 1024,
                                 "rollback_on_failure": True, "image_check": True, "diagnostic_logs": True, "address": "dhcp"}
    assert row["tags"] == {} and row["valid_days"] == 30
    assert center.ok("GET", f"/v1/sources/{agent.source}")["state"] == "in_use"
    assert center.ok("GET", f"/v1/sources/{agent.source}")["job"] == job
    assert center.call("POST", f"/v1/jobs/{job}/start", {}).status == 202

    task = agent.wait_task()
    assert task["job"] == job and task["action"] == "send" and task["port"] == 4711 and task["disks"] is None
    assert len(bytes.fromhex(task["psk"])) == 32 and task["parameters"]["connections"] == 8
    agent.report(task["run"], progress={"phase": "full", "bytes_total": 200, "bytes_done": 50, "speed": 1e6,
                                        "seconds_left": 3.5, "nonsense": 1})
    center.play("receiving", "bytes")
    row = wait_for("merged progress", lambda: (lambda j: j if (j["progress"] or {}).get("bytes_written") else None)(center.job(job)))
    center.unplay("receiving", "bytes")
    assert row["progress"]["percent"] == 25 and row["progress"]["speed"] == 1e6 and "nonsense" not in row["progress"]
    wait_for("step", lambda: center.job(job)["step"] == {"name": "full", "text": "copying all used blocks"})
    center.commit(task["run"])
    row = center.wait_job(job)
    # The agent's last word may come late, and more than once.
    for notes in ("one", "two"):
        agent.report(task["run"], "done", progress={"phase": "done", "freeze_ms": 7}, result={"notes": [notes]})
    row = center.job(job)
    assert [s["name"] for s in row["stages"]] == ["preparing", "syncing", "processing", "cleaning"]
    assert all(s["seconds"] >= 0 for s in row["stages"]) and row["error"] is None and row["finished"] >= row["started"]
    assert [(r["id"], r["state"]) for r in row["runs"]] == [(task["run"], "done")]
    assert row["progress"]["freeze_ms"] == 7 and row["progress"]["percent"] == 25
    assert row["runs"][0]["result"] == {"notes": ["one"]}
    image = center.ok("GET", f"/v1/images/{row['image']}")
    assert image["name"] == "moved" and image["source"] == agent.source and image["job"] == job
    assert image["verified"] is True and image["boot"]["state"] == "passed" and image["report"]["test_boot"]["boot_seconds"] == 1.5
    assert center.ok("GET", f"/v1/images/{row['image']}/report")["conversion"] == {"steps": []}
    assert agent.sync()["task"] is None
    assert center.ok("GET", f"/v1/sources/{agent.source}")["state"] == "available"
    assert [c[0] for c in center.calls()] == ["capacity", "receive", "convert", "image_create", "image_check", "test_boot", "job_remove"]


def test_a_second_unfinished_job_is_refused(center):
    agent = center.agent()
    job = center.new_job(agent.source)
    got = center.post("/v1/jobs", {"source": agent.source})
    assert (got.status, got.code, got.field) == (409, "source_in_use", "source") and job in got.raw.decode()
    assert center.call("DELETE", f"/v1/sources/{agent.source}").status == 409
    assert center.call("DELETE", f"/v1/jobs/{job}").status == 202
    wait_for("gone", lambda: center.get(f"/v1/jobs/{job}").status == 404)
    center.ok("DELETE", f"/v1/jobs/{center.new_job(agent.source)}")


def test_stop_and_resume(center):
    agent = center.agent()
    job = center.started_job(agent.source, parameters={"test_boot": False})
    first = agent.wait_task()
    assert center.call("DELETE", f"/v1/jobs/{job}").status == 409
    assert center.post(f"/v1/jobs/{job}/start").status == 409
    assert center.post(f"/v1/jobs/{job}/stop").json["state"] == "stopped"
    assert agent.sync()["task"] is None
    assert center.post(f"/v1/jobs/{job}/stop").status == 409
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    second = agent.wait_task()
    assert second["run"] != first["run"] and second["psk"] != first["psk"]
    agent.report(first["run"], "failed", error={"code": "old", "message": "old news", "temporary": False})
    assert center.job(job)["state"] == "running"
    agent.send_all()
    row = center.wait_job(job)
    assert {r["id"]: r["state"] for r in row["runs"]} == {first["run"]: "cancelled", second["run"]: "done"}
    assert center.post(f"/v1/jobs/{job}/start").status == 409
    assert center.ok("GET", f"/v1/images/{row['image']}")["verified"] is False


def test_stopping_and_starting_fast(center):
    agent = center.agent()
    job = center.started_job(agent.source)
    for _ in range(10):
        agent.wait_task()
        center.ok("POST", f"/v1/jobs/{job}/stop", {})
        center.ok("POST", f"/v1/jobs/{job}/start", {})
    agent.send_all()
    center.wait_job(job)


@pytest.mark.parametrize("name,code", [("convert", "convert_failed"), ("image_create", "image_failed"),
                                       ("test_boot", "test_boot_failed"), ("job_remove", "clean_failed")])
def test_a_failure_behind_the_copy_resumes_there(center, name, code):
    agent = center.agent()
    center.play(name, "fail", "the sentence")
    before = len(center.calls("image_create"))
    job = center.started_job(agent.source)
    agent.send_all()
    row = center.wait_job(job, "in_error")
    assert row["error"]["code"] == code and "the sentence" in row["error"]["message"]
    assert row["stage"] in ("processing", "cleaning")
    assert row["runs"][0]["state"] == "failed" and row["runs"][0]["error"]["code"] == code and row["runs"][0]["ended"]
    received = len(center.calls("receive"))
    center.unplay(name, "fail")
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    row = center.wait_job(job)
    assert row["error"] is None and len(center.calls("receive")) == received
    assert [(r["state"], r["error"], r["image"]) for r in row["runs"]] == [("done", None, row["image"])]
    assert {c[1] for c in center.calls("image_create")[before:]} == {row["image"]}


def test_an_image_that_does_not_boot_is_no_success(center):
    agent = center.agent()
    center.play("test_boot", "bad")
    job = center.started_job(agent.source)
    agent.send_all()
    row = center.wait_job(job, "in_error")
    center.unplay("test_boot", "bad")
    assert row["error"]["code"] == "test_boot_failed" and "boot: no network card; see" in row["error"]["message"]
    assert center.ok("GET", f"/v1/images/{row['image']}")["verified"] is False
    made = len(center.calls("image_create"))
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    assert center.wait_job(job)["image"] == row["image"] and len(center.calls("image_create")) == made


def test_no_room_in_the_region(center):
    agent = center.agent()
    center.play("capacity", "free", str(1 << 29))
    job = center.started_job(agent.source)
    row = center.wait_job(job, "in_error")
    center.unplay("capacity", "free")
    assert row["error"]["code"] == "no_space" and row["error"]["temporary"] is True
    assert "512 MiB" in row["error"]["message"] and "1.0 GiB" in row["error"]["message"]
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    agent.send_all()
    center.wait_job(job)


def test_what_is_copied_needs_no_room_again(center):
    """Also when the second attempt wrote nothing before it failed."""
    agent = center.agent(inventory={"disks": [{"path": "/dev/vda", "size": 10 << 30, "used": 65 << 20}]})
    job = center.started_job(agent.source)
    agent.wait_task()
    center.play("receiving", "bytes")
    wait_for("some bytes", lambda: (center.job(job)["progress"] or {}).get("bytes_written", 0) > 5000)
    center.ok("POST", f"/v1/jobs/{job}/stop", {})
    center.unplay("receiving", "bytes")
    written = center.job(job)["progress"]["bytes_written"]
    center.restart()
    agent.sync()
    center.play("capacity", "free", str((64 << 20) + (65 << 20) - written))
    for _ in range(2):
        center.ok("POST", f"/v1/jobs/{job}/start", {})
        agent.wait_task()
        center.ok("POST", f"/v1/jobs/{job}/stop", {})
        assert center.job(job)["progress"]["bytes_written"] == written
    center.unplay("capacity", "free")
    center.ok("DELETE", f"/v1/jobs/{job}")


def test_a_full_disk_while_receiving(center):
    agent = center.agent()
    job = center.started_job(agent.source)
    run = agent.wait_task()["run"]
    center.play("receiving", "error", "no_space")
    row = center.wait_job(job, "in_error")
    center.unplay("receiving", "error")
    assert row["error"]["code"] == "no_space" and row["error"]["temporary"] is True and row["stage"] == "syncing"
    assert row["runs"][0]["id"] == run and row["runs"][0]["state"] == "failed"
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    agent.send_all()
    center.wait_job(job)


def test_what_the_agent_says_it_failed_with(center):
    agent = center.agent()
    job = center.started_job(agent.source)
    run = agent.wait_task()["run"]
    agent.report(run, "failed", error={"code": "read_error", "message": "cannot read '/dev/vda' at 4096", "temporary": False})
    row = center.wait_job(job, "in_error")
    assert row["error"] == {"code": "read_error", "message": "cannot read '/dev/vda' at 4096", "temporary": False}
    center.ok("DELETE", f"/v1/jobs/{job}")


def test_a_temporary_failure_is_tried_again(center):
    agent = center.agent()
    job = center.started_job(agent.source)
    first = agent.wait_task()["run"]
    agent.report(first, "failed", error={"code": "connection", "message": "connection lost", "temporary": True})
    second = agent.wait_task(other_than=first)["run"]
    center.play("receiving", "fail", "killed by signal 9")
    wait_for("a third run", lambda: len(center.calls("receive")) and center.job(job)["run"] != second)
    center.unplay("receiving", "fail")

    def played():
        task = agent.sync()["task"]  # of a run whose receiver is gone, for a moment
        if task:
            center.commit(task["run"])
            agent.report(task["run"], "done")
        return center.job(job)["state"] == "finished"

    wait_for("the end", played)
    row = center.job(job)
    assert [r["state"] for r in row["runs"]].count("done") == 1 and len(row["runs"]) >= 3


@pytest.mark.parametrize("code,ends", [("guard_lost", True), ("busy", True), ("timed_out", False)])
def test_a_source_is_not_frozen_for_ever(center, code, ends):
    """However much each run brings: what stops it is the source, at its freeze."""
    agent = center.agent()
    center.play("receiving", "bytes")
    job = center.started_job(agent.source)
    run = None
    for _ in range(8):
        task = wait_for("a task or the end", lambda: center.job(job)["state"] == "in_error" or
                        ((t := agent.sync()["task"]) and t["run"] != run and t))
        if task is True:
            break
        run = task["run"]
        wait_for("bytes", lambda: (center.job(job)["progress"] or {}).get("bytes_received"))
        agent.report(run, "failed", error={"code": code, "message": "it is like that", "temporary": True})
    center.unplay("receiving", "bytes")
    assert (center.job(job)["state"] == "in_error") == ends
    if ends:
        assert center.job(job)["error"]["code"] == code
        center.ok("DELETE", f"/v1/jobs/{job}")
    else:
        agent.send_all()
        center.wait_job(job)


def test_a_transfer_that_never_works_gives_up(center):
    agent = center.agent()
    center.play("receive", "fail", "the receiver doesn't start")
    job = center.started_job(agent.source)
    row = center.wait_job(job, "in_error")
    center.unplay("receive", "fail")
    assert row["error"]["code"] == "receive_failed" and row["error"]["temporary"] is True
    assert "the receiver doesn't start" in row["error"]["message"]
    center.ok("DELETE", f"/v1/jobs/{job}")


def test_a_silent_source(fresh):
    center = fresh(HEARTBEAT=0.1, PATIENCE=1.5, ABSENCE=1.5)
    agent = center.agent()
    job = center.started_job(agent.source)
    wait_for("waiting", lambda: (center.job(job)["step"] or {}).get("text") == "waiting for the source")
    wait_for("unavailable", lambda: center.ok("GET", f"/v1/sources/{agent.source}")["state"] == "unavailable")
    row = center.wait_job(job, "in_error")
    assert row["error"]["code"] == "source_offline" and row["error"]["temporary"] is True
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    agent.send_all()
    center.wait_job(job)


def test_a_source_that_is_away_for_long(fresh):
    """Longer than one that is there may be silent: the job waits, and goes on when it is back."""
    center = fresh(HEARTBEAT=0.1, PATIENCE=1.5)
    agent = center.agent()
    job = center.started_job(agent.source)
    wait_for("unavailable", lambda: center.ok("GET", f"/v1/sources/{agent.source}")["state"] == "unavailable")
    time.sleep(3)
    assert center.job(job)["state"] == "running"
    agent.send_all()
    center.wait_job(job)


def test_a_source_that_is_there_and_silent(fresh):
    center = fresh(HEARTBEAT=0.1, PATIENCE=1.5)
    agent = center.agent()
    job = center.started_job(agent.source)
    end = time.time() + 20
    while center.job(job)["state"] == "running" and time.time() < end:
        agent.sync()
        time.sleep(0.05)
    assert center.job(job)["error"]["code"] == "source_silent"


def test_a_receiver_that_needs_long_to_begin(fresh):
    """Layers are put together before it listens: the source can't send then, and isn't silent."""
    center = fresh(HEARTBEAT=0.1, PATIENCE=1.5, ABSENCE=1.5)
    agent = center.agent()
    center.play("receive", "hold")
    job = center.started_job(agent.source)
    wait_for("the call", lambda: center.calls("receive"))
    time.sleep(3)
    assert center.job(job)["step"]["text"] == "getting ready to receive" and agent.sync()["task"] is None
    center.unplay("receive", "hold")
    agent.send_all()
    assert len(center.wait_job(job)["runs"]) == 1
    assert len(center.calls("receive")) == 1


def test_why_the_sender_left_is_heard_behind_the_receivers_end(fresh):
    """The receiver of an agent that gave up ends first, as for a broken line; the agent's word says that it is final."""
    center = fresh(WORD=5)
    agent = center.agent()
    job = center.started_job(agent.source)
    task = agent.wait_task()
    center.play("receiving", "fail", "the receiver ended with status 75")
    time.sleep(0.3)
    agent.report(task["run"], "failed", error={"code": "hook_failed", "message": "the hook says no", "temporary": False})
    row = center.wait_job(job, "in_error")
    assert row["error"]["code"] == "hook_failed" and len(center.calls("receive")) == 1
    # One that says nothing is waited for no longer than that.
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    wait_for("another attempt", lambda: len(center.calls("receive")) > 2)
    center.unplay("receiving", "fail")
    center.call("DELETE", f"/v1/jobs/{job}")


def edit(center, statement, *values):
    """What else only time could do."""
    with center.database() as db:
        db.execute(statement, values)


def test_a_job_expires_days_after_its_creation(fresh):
    """But what did something lately has a week."""
    center, day = fresh(HOUR=30), 86400
    job = center.new_job(center.agent().source, valid_days=10)
    row = center.job(job)
    assert row["valid_days"] == 10 and abs(row["expires"] - row["created"] - 10 * day) < 1
    row = center.ok("PATCH", f"/v1/jobs/{job}", {"valid_days": 90})
    assert abs(row["expires"] - row["created"] - 90 * day) < 1
    edit(center, "UPDATE jobs SET created = created - ?, expires = created", 88 * day)
    center.play("capacity", "fail", "no")
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    row = center.wait_job(job, "in_error")
    assert abs(row["expires"] - row["updated"] - 7 * day) < 1
    edit(center, "UPDATE jobs SET expires = 1")
    wait_for("its end", lambda: center.job(job)["state"] == "expired")
    assert center.call("PATCH", f"/v1/jobs/{job}", {"valid_days": 90}).code == "invalid_state"
    edit(center, "UPDATE jobs SET expires = expires - ?", 7 * day + 1)
    wait_for("gone", lambda: center.get(f"/v1/jobs/{job}").status == 404)
    for days in (6, 91, -1, "10", 7.5):
        assert center.post("/v1/jobs", {"source": "source-" + "0" * 16, "valid_days": days}).field == "valid_days"


def test_a_job_that_starts_later(fresh):
    center, now = fresh(HOUR=30), int(time.time())  # looks twice a second what is due
    agent = center.agent()
    for body, word in (({"execution": "migrate_later"}, "at least 10 minutes"),
                       ({"execution": "migrate_later", "start_at": now + 590}, "at least 10 minutes"),
                       ({"execution": "migrate_later", "start_at": now + 30 * 86400 + 60}, "at most 30 days"),
                       ({"execution": "migrate_later", "start_at": now + 20 * 86400, "valid_days": 7}, "expires before"),
                       ({"start_at": now + 3600}, "migrate_later"), ({"execution": "migrate_now", "start_at": now + 3600}, "migrate_later")):
        got = center.post("/v1/jobs", {"source": agent.source, **body})
        assert (got.status, got.field) == (400, "start_at") and word in got.json["error"]["message"], got
    assert center.ok("GET", "/v1/jobs")["total"] == 0
    job = center.new_job(agent.source, execution="migrate_later", start_at=now + 3600)
    assert center.job(job)["next_run"] == now + 3600
    assert center.ok("PATCH", f"/v1/jobs/{job}", {"parameters": {"interval_hours": 2}})["next_run"] == now + 3600
    assert center.ok("PATCH", f"/v1/jobs/{job}", {"execution": "create_only"})["next_run"] is None
    assert center.call("PATCH", f"/v1/jobs/{job}", {"execution": "migrate_now"}).field == "execution"
    later = {"execution": "migrate_later", "start_at": now + 7200}
    assert center.ok("PATCH", f"/v1/jobs/{job}", later)["next_run"] == now + 7200
    days = {"execution": "migrate_later", "start_at": now + 20 * 86400}
    assert center.ok("PATCH", f"/v1/jobs/{job}", days)["next_run"] == days["start_at"]
    assert center.call("PATCH", f"/v1/jobs/{job}", {"valid_days": 7}).field == "valid_days"
    assert center.job(job)["valid_days"] == 30
    center.restart()
    edit(center, "UPDATE jobs SET next_run = ?", time.time() - 1)
    agent.send_all()
    row = center.wait_job(job)
    assert row["trigger"] == "schedule" and row["next_run"] is None
    assert center.call("PATCH", f"/v1/jobs/{job}", later).code == "invalid_state"


def test_a_job_that_starts_at_once(center):
    agent = center.agent()
    made = center.post("/v1/jobs", {"source": agent.source, "execution": "migrate_now"})
    assert (made.status, made.json["state"]) == (201, "running")
    agent.send_all()
    assert center.wait_job(made.json["id"])["trigger"] == "manual"


def test_the_same_request_twice_makes_one_job(center):
    agent, other = center.agent(), center.agent()
    body = {"source": agent.source, "name": "once", "client_token": f"t-{agent.source}", "tags": {"b": "1", "a": "2"}}
    first = center.post("/v1/jobs", body)
    again = center.post("/v1/jobs", dict(reversed(body.items()), tags={"a": "2", "b": "1"}))
    assert (first.status, again.status) == (201, 200) and first.json["id"] == again.json["id"]
    assert "client_token" not in first.json and "client_digest" not in first.json
    got = center.post("/v1/jobs", dict(body, source=other.source))
    assert (got.status, got.code, got.field) == (409, "token_reused", "client_token") and first.json["id"] in got.raw.decode()
    assert center.post("/v1/jobs", dict(body, client_token="x" * 65)).field == "client_token"
    # In two hours from now is another time than before.
    later = center.agent()
    times = [center.post("/v1/jobs", {"source": later.source, "client_token": f"t-{later.source}", "execution": "migrate_later",
                                      "start_at": int(time.time()) + 7200 + i}) for i in range(2)]
    assert [t.status for t in times] == [201, 200] and times[0].json["id"] == times[1].json["id"]
    # A job whose center died before it was started is started when it is asked for again.
    at_once = center.agent()
    now = {"source": at_once.source, "client_token": f"t-{at_once.source}", "execution": "migrate_now"}
    made = center.post("/v1/jobs", now).json["id"]
    at_once.wait_task()
    center.ok("POST", f"/v1/jobs/{made}/stop", {})
    assert center.post("/v1/jobs", now).json["state"] == "stopped"
    edit(center, "UPDATE jobs SET state = 'ready', started = 0 WHERE id = ?", made)
    assert (center.post("/v1/jobs", now).status, center.job(made)["state"]) == (200, "running")
    at_once.wait_task()
    center.ok("POST", f"/v1/jobs/{made}/stop", {})
    # Also when the job has gone on meanwhile; when it is gone, the token is free.
    center.ok("POST", f"/v1/jobs/{first.json['id']}/start", {})
    assert center.post("/v1/jobs", body).json["state"] == "running"
    agent.send_all()
    center.wait_job(first.json["id"])
    center.call("DELETE", f"/v1/jobs/{first.json['id']}")
    wait_for("gone", lambda: center.get(f"/v1/jobs/{first.json['id']}").status == 404)
    assert center.post("/v1/jobs", body).status == 201


def test_licenses(center):
    free, sold = center.agent(), center.agent(inventory={"hostname": "r", "os": {"id": "rhel", "name": "Red Hat"}, "disks": []})
    for source, license, ok in ((free, "none", True), (free, "byol", False), (free, "region", False),
                                (sold, "byol", True), (sold, "region", False), (sold, "none", True)):
        got = center.post("/v1/jobs", {"source": source.source, "parameters": {"license": license}})
        assert got.status == (201 if ok else 400), got
        if ok:
            assert got.json["parameters"]["license"] == license
            patched = center.call("PATCH", f"/v1/jobs/{got.json['id']}", {"parameters": {"license": "region"}})
            assert (patched.status, patched.field) == (400, "parameters.license")
            center.call("DELETE", f"/v1/jobs/{got.json['id']}")
            wait_for("gone", lambda: center.get(f"/v1/jobs/{got.json['id']}").status == 404)
        else:
            assert got.field == "parameters.license"
    job = center.started_job(sold.source, parameters={"license": "byol", "transition_cpus": 4, "transition_memory": 2048})
    sold.send_all()
    image = center.ok("GET", f"/v1/images/{center.wait_job(job)['image']}")
    assert image["manifest"]["meta"]["license"] == "byol"
    assert json.loads((center.script / "convert.given").read_text())["machine"] == {"cpus": 4, "memory_mib": 2048}


def test_tags_and_what_is_found_by_them(fresh):
    center = fresh()
    web, db = center.agent(), center.agent()
    for agent, name, tags in ((web, "web-1", {"env": "prod", "wave": "2"}), (db, "db_1", {"env": "test", "owner": ""})):
        row = center.ok("PATCH", f"/v1/sources/{agent.source}", {"name": name, "tags": tags})
        assert row["tags"] == tags and row["name"] == name

    def found(query, noun="sources"):
        page = center.ok("GET", f"/v1/{noun}?{query}")
        assert page["total"] == len(page["items"])
        return sorted(item["name"] for item in page["items"])

    assert found("tag=env") == ["db_1", "web-1"] and found("tag=env=prod") == ["web-1"] and found("tag=owner=") == ["db_1"]
    assert found("tag=env=prod&tag=wave=2") == ["web-1"] and found("tag=env=prod&tag=wave=3") == []
    assert found("tag=env=PROD") == found("tag=Env=prod") == found("tag=") == found("tag=env%27--") == []
    assert found("name=web-1") == ["web-1"] and found("name=web") == [] and found("name_prefix=web") == ["web-1"]
    assert found("name_prefix=db_1") == ["db_1"] and found("name_prefix=db%251") == [] and found("name_prefix=") == ["db_1", "web-1"]
    assert found("hostname_prefix=host&state=available") == ["db_1", "web-1"]
    for query in ("state=available&state=in_use", "name=a&name=b", "&".join(f"tag=k{i}" for i in range(40))):
        assert center.get(f"/v1/sources?{query}").code == "bad_parameter"
    # A job's are its image's; then each goes its own way.
    job = center.started_job(web.source, name="move", tags={"wave": "2", "\u00fc": "\u20ac\U0001f333"})
    assert found("tag=%C3%BC=%E2%82%AC%F0%9F%8C%B3", "jobs") == ["move"]
    web.send_all()
    image = center.wait_job(job)["image"]
    center.ok("PATCH", f"/v1/jobs/{job}", {"tags": {}})
    assert found("tag=wave=2", "images") == ["move"] and found("tag=wave", "jobs") == []
    center.ok("PATCH", f"/v1/images/{image}", {"tags": {"golden": "yes"}})
    assert center.ok("GET", f"/v1/images/{image}")["tags"] == {"golden": "yes"} and found("tag=wave", "images") == []
    for tags, word in (([], "object"), ({"a": 1}, "string"), ({"a": None}, "string"), ({"": "x"}, "1 to 128"),
                       ({"k" * 129: "x"}, "1 to 128"), ({"k": "v" * 129}, "at most 128"), ({"a=b": "x"}, "'='"),
                       ({"a\n": "x"}, "control"), ({"a": "\x7f"}, "control"),
                       ({f"k{i}": "" for i in range(21)}, "at most 20")):
        got = center.call("PATCH", f"/v1/images/{image}", {"tags": tags})
        assert (got.status, got.field) == (400, "tags") and word in got.json["error"]["message"], (tags, got)
    assert center.ok("GET", f"/v1/images/{image}")["tags"] == {"golden": "yes"}


def test_long_names_are_cut_between_characters(center):
    """All that quotes them is JSON, which has no halves of a character."""
    long = "x" + "\u00fc" * 63
    agent = center.agent()
    center.ok("PATCH", f"/v1/sources/{agent.source}", {"name": long})
    plain = center.new_job(agent.source)
    assert center.job(plain)["name"] == long[:50]
    center.ok("DELETE", f"/v1/jobs/{plain}")
    wait_for("gone", lambda: center.get(f"/v1/jobs/{plain}").status == 404)
    job = center.started_job(agent.source, name=long, parameters={"test_boot": False, "incremental": True})
    center.play("convert", "step", "xy" + long)
    center.play("convert", "hold")
    center.play("convert", "fail", "x" + "\u00fc" * 600)
    task = agent.wait_task()
    center.commit(task["run"])
    step = wait_for("the step", lambda: (lambda s: s["text"].startswith("step") and s)(center.job(job)["step"]))
    assert step["text"].startswith("step 1 of 12: xyx\u00fc") and center.get("/v1/jobs").status == 200
    center.unplay("convert", "hold")
    error = center.wait_job(job, "in_error")["error"]
    assert error["code"] == "convert_failed" and error["message"].endswith("\u00fc")
    center.play("convert", "fail", "no_space: x" + "\u00fc" * 600)
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    wait_for("again", lambda: len(center.calls("convert")) > 1 and center.job(job)["state"] == "in_error")
    error = center.job(job)["error"]
    assert error["code"] == "no_space" and "\u00fc; free space" in error["message"]
    center.unplay("convert", "fail")
    center.unplay("convert", "step")
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    row = center.wait_job(job, "waiting")
    image = center.ok("GET", f"/v1/images/{row['image']}")
    assert image["name"] == long[:50] + "-run1"
    center.play("image_export", "fail", "x" + "\u00fc" * 600)
    export = center.ok("POST", f"/v1/images/{row['image']}/exports", {"format": "raw"})["id"]
    failed = wait_for("failed", lambda: (lambda x: x["state"] == "in_error" and x)(center.ok("GET", f"/v1/exports/{export}")))
    center.unplay("image_export", "fail")
    assert failed["error"]["message"].endswith("\u00fc")
    # What the agent says is cut, too.
    center.ok("POST", f"/v1/jobs/{job}/run", {})
    run = agent.wait_task(other_than=task["run"])["run"]
    agent.report(run, "failed", error={"code": "x" + "\u00fc" * 30, "message": "x" + "\u00fc" * 1000, "temporary": False})
    error = center.wait_job(job, "in_error")["error"]
    assert error["code"] == "x" + "\u00fc" * 23 and error["message"].endswith("\u00fc")


def test_what_a_source_can_make_the_center_keep(center):
    """Its word is cut, and so is the list of its attempts."""
    agent = center.agent()
    job = center.started_job(agent.source, parameters={"test_boot": False})
    run, first = None, None
    center.play("receiving", "bytes")
    for i in range(25):
        run = agent.wait_task(other_than=run)["run"]
        first = first or run
        result = {"notes": ["n" * 99] * 1000, "disks": ["/dev/vda"], "totals": {"round": 3}, "more": "x" * 500000,
                  "live": {"bytes": 7, "seconds": 1.5, "more": "x" * 100000}}
        if i == 1:
            result["disks"] = ["/dev/" + "d" * 1000] * 100
            result["live"]["bytes"] = "x" * 100000
        agent.report(run, "done", result=result)
        agent.report(run, "failed", error={"code": "connection", "message": "lost", "temporary": True})
        row = center.job(job)
        mine = [r for r in row["runs"] if r["id"] == run]
        assert mine[0]["result"].pop("live") == ({"bytes": 7, "seconds": 1.5} if i != 1 else {"seconds": 1.5})
        assert list(mine[0]["result"]) == ["notes"] if i == 1 else mine[0]["result"] == {
            "notes": ["the agent's report was too long, its notes are not kept"], "disks": ["/dev/vda"], "totals": {"round": 3}}
    center.unplay("receiving", "bytes")
    wait_for("the last attempt", lambda: center.job(job)["run"] != run)
    listed = center.ok("GET", f"/v1/jobs/{job}/runs?limit=100")
    ids = [r["id"] for r in listed["items"]]
    assert listed["total"] == 21 and first not in ids and run in ids and center.job(job)["run"] == ids[0]
    agent.send_all()
    center.wait_job(job)


def test_two_agents_at_once(center):
    agents = [center.agent(), center.agent()]
    jobs = [center.started_job(a.source) for a in agents]
    tasks = [a.wait_task() for a in agents]
    assert [t["job"] for t in tasks] == jobs and tasks[0]["psk"] != tasks[1]["psk"]
    # A report on somebody else's run changes nothing.
    agents[0].report(tasks[1]["run"], "failed", error={"code": "x", "message": "not mine", "temporary": False})
    agents[0].report(tasks[1]["run"], "done", result={"notes": ["not mine"]})
    assert center.job(jobs[1])["runs"][0]["result"] is None
    for agent in reversed(agents):
        agent.send_all()
    for job in jobs:
        center.wait_job(job)


def test_changes_of_a_job(center):
    agent = center.agent()
    job = center.new_job(agent.source)
    path = f"/v1/jobs/{job}"
    assert center.ok("PATCH", path, {"name": "new", "parameters": {"connections": 2}})["parameters"]["connections"] == 2
    assert center.job(job)["parameters"]["checksum"] is True
    center.ok("POST", path + "/start", {})
    agent.wait_task()
    assert center.call("PATCH", path, {"parameters": {"connections": 3}}).code == "invalid_state"
    center.ok("PATCH", path, {"parameters": {"rate_mbit": 77}})
    assert agent.wait_task()["parameters"]["rate_mbit"] == 77
    for bad in (11, -1, "fast", "", True, 1.5):
        got = center.call("PATCH", path, {"parameters": {"compression": bad}})
        assert (got.status, got.field) == (400, "parameters.compression")
    for good in (3, "auto"):
        center.ok("PATCH", path, {"parameters": {"compression": good}})
        assert agent.wait_task()["parameters"]["compression"] == good
    agent.send_all()
    center.wait_job(job)
    assert center.call("PATCH", path, {"image_name": "x"}).status == 409
    assert center.ok("PATCH", path, {"description": "two\nlines"})["description"] == "two\nlines"


@pytest.mark.parametrize("name", ["capacity", "receive", "syncing", "convert", "image_create", "test_boot", "job_remove"])
def test_killed_center_goes_on(fresh, name):
    """kill -9 while the call hangs; the job ends as if nothing had been."""
    center = fresh()
    agent = center.agent()
    if name != "syncing":
        center.play(name, "hold")
    job = center.started_job(agent.source)
    if name not in ("capacity", "receive"):
        task = agent.wait_task()
        if name != "syncing":
            center.commit(task["run"])
            wait_for("the call", lambda: center.calls(name))
    else:
        wait_for("the call", lambda: center.calls(name))
    center.restart()
    assert center.job(job)["state"] == "running"
    if name != "syncing":
        center.unplay(name, "hold")
    if name in ("capacity", "receive", "syncing"):
        agent.send_all()
    row = center.wait_job(job)
    assert center.ok("GET", f"/v1/images/{row['image']}")["verified"] is True
    assert len({c[1] for c in center.calls("image_create")}) == 1, "the image's id survives"
    assert center.ok("GET", "/v1/images")["total"] == 1
    assert all(r["state"] != "active" for r in row["runs"])


def test_kill_at_random_moments(fresh):
    """Twelve kills while jobs run; nothing is lost, nothing doubled."""
    center = fresh(HEARTBEAT=0.2)
    agents = [center.agent() for _ in range(3)]
    for name in ("convert", "image_create", "test_boot", "job_remove"):
        center.play(name, "delay", "0.15")
    jobs = [center.started_job(a.source) for a in agents]
    for n in range(12):
        for agent in agents:
            task = agent.sync()["task"]
            if task and n % 3:
                center.commit(task["run"])
        center.restart()
    for agent, job in zip(agents, jobs):
        def check(agent=agent, job=job):
            task = agent.sync()["task"]
            if task:
                center.commit(task["run"])
            return center.job(job)["state"] == "finished"
        wait_for("the end", check, 40)
    assert center.ok("GET", "/v1/images")["total"] == 3
    assert center.ok("GET", "/v1/jobs")["total"] == 3


def test_a_store_that_fails_is_waited_for(fresh):
    center = fresh()
    agent = center.agent()
    job = center.started_job(agent.source, parameters={"test_boot": False})
    run = agent.wait_task()["run"]
    with center.database() as db:
        db.refuse_jobs()
        center.commit(run)
        wait_for("the complaint", lambda: "nothing fits; trying again" in center.tail())
        assert center.job(job)["state"] == "running"
        db.allow_jobs()
    center.wait_job(job)


def test_sigterm_is_clean_while_jobs_run(fresh):
    center = fresh()
    agent = center.agent()
    job = center.started_job(agent.source)
    agent.wait_task()
    assert center.stop() == 0
    center.start()
    assert center.job(job)["state"] == "running"
    agent.send_all()
    center.wait_job(job)


def test_the_network_of_a_job(center):
    """What the agent is told, and where the receiver listens."""
    agent, private = center.agent(), {"parameters": {"network": "private"}}
    assert center.post("/v1/jobs", {"source": agent.source, **private}).field == "parameters.network"
    for bad in ("10.0.0.5:9000", "[::1]", "a b", "http://x", "x/y", "\u00e4", "x" * 256):
        got = center.call("PATCH", "/v1/regions/local", {"private_address": bad})
        assert (got.status, got.field) == (400, "private_address"), bad
    assert center.call("PATCH", "/v1/regions/local", {"private_address": "x"}, token=center.role_token("operator")).status == 403
    try:
        got = center.ok("PATCH", "/v1/regions/local", {"private_address": "127.0.0.9", "public_address": "front.example"})
        assert (got["private_address"], got["public_address"]) == ("127.0.0.9", "front.example")

        def run(job):
            center.ok("POST", f"/v1/jobs/{job}/start", {})
            task = agent.wait_task()
            listen = (center.script / f"listen.{task['run']}").read_text()
            center.ok("POST", f"/v1/jobs/{job}/stop", {})
            center.wait_job(job, "stopped")
            return task["host"], listen
        job = center.new_job(agent.source, **private)
        assert run(job) == ("127.0.0.9", "127.0.0.9")
        # Of a gateway: it can't be listened on here.
        center.ok("PATCH", "/v1/regions/local", {"private_address": "192.0.2.1"})
        assert run(job) == ("192.0.2.1", "127.0.0.1")
        center.ok("PATCH", f"/v1/jobs/{job}", {"parameters": {"network": "public"}})
        assert run(job) == ("front.example", "127.0.0.1")
    finally:
        center.ok("PATCH", "/v1/regions/local", {"private_address": "", "public_address": ""})
    assert run(job)[0] in (None, "127.0.0.1")  # centers that share a database each tell their own
    center.ok("PATCH", "/v1/regions/local", {"private_address": "fd00::7"})
    center.ok("PATCH", f"/v1/jobs/{job}", private)
    center.ok("PATCH", "/v1/regions/local", {"private_address": ""})
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    assert center.wait_job(job, "in_error")["error"]["code"] == "no_private_address"
    assert center.call("PATCH", f"/v1/jobs/{job}", private).field == "parameters.network"
    center.ok("DELETE", f"/v1/jobs/{job}")


@pytest.mark.parametrize("word", ["auto", "on", "off"])
def test_encryption_of_a_job(center, word):
    """Both ends of the data are told the same."""
    agent = center.agent()
    job = center.started_job(agent.source, parameters={"encryption": word})
    task = agent.wait_task()
    assert task["parameters"]["encryption"] == word
    assert (center.script / f"clear.{task['run']}").exists() == (word == "off")
    center.ok("POST", f"/v1/jobs/{job}/stop", {})
    center.wait_job(job, "stopped")
    center.ok("DELETE", f"/v1/jobs/{job}")


def test_parameters_that_change_while_sending(center):
    agent = center.agent()
    job = center.started_job(agent.source)
    agent.wait_task()
    for name, value in (("rate_mbit", 5), ("compression", 2), ("checksum", False)):
        center.ok("PATCH", f"/v1/jobs/{job}", {"parameters": {name: value}})
        assert agent.sync()["task"]["parameters"][name] == value
    for name, value in (("connections", 2), ("encryption", "off"), ("network", "private"), ("incremental", True)):
        assert center.call("PATCH", f"/v1/jobs/{job}", {"parameters": {name: value}}).status == 409, name
    center.ok("POST", f"/v1/jobs/{job}/stop", {})
    center.wait_job(job, "stopped")
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    assert agent.wait_task()["parameters"]["checksum"] is False
    center.ok("POST", f"/v1/jobs/{job}/stop", {})
    center.wait_job(job, "stopped")
    center.ok("DELETE", f"/v1/jobs/{job}")


def test_what_a_job_holds(center):
    """After a failure its copy stays for a retry, and says what it costs; a job that is removed holds nothing."""
    agent = center.agent()
    job = center.new_job(agent.source)
    assert center.job(job)["holds"] == {"disk": 0, "memory": 0}
    center.play("convert", "hold")
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    agent.send_all()
    center.wait_job(job, "running", "processing")
    assert center.job(job)["holds"] == {"disk": 4096, "memory": 1024 << 20}
    center.play("convert", "fail", "no disk has GRUB in its boot sector")
    center.unplay("convert", "hold")
    assert center.wait_job(job, "in_error")["holds"] == {"disk": 4096, "memory": 0}
    center.unplay("convert", "fail")
    center.ok("DELETE", f"/v1/jobs/{job}")
    wait_for("gone", lambda: center.get(f"/v1/jobs/{job}").status == 404)
    assert not list((center.script / "world").glob(f"copy.{job}"))
