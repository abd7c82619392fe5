"""Instances and snapshots: every action in every state, killed anywhere, and what is refused. The hypervisor is scripted_vms.c's: a world of
its own, which says what a disk would hold, and complains in `misuse` about what would spoil it."""

import concurrent.futures
import itertools
import json
import os
import random
import time

import pytest

from harness import wait_for
from test_every_write import LOST, SEED, Mortal


def misused(center):
    path = center.script / "misuse"
    return path.read_text() if path.exists() else ""


@pytest.fixture(scope="module")
def center(center, store):
    yield center
    assert not misused(center)


@pytest.fixture
def fresh(fresh, store):
    made = []

    def make(**env):
        made.append(fresh(**env))
        return made[-1]
    yield make
    assert not any(misused(c) for c in made)


def new_image(center):
    agent = center.agent()
    job = center.started_job(agent.source, parameters={"test_boot": False})
    agent.send_all()
    return center.wait_job(job)["image"]


@pytest.fixture(scope="module")
def image(center):
    return new_image(center)


def world(center, ref):
    path = center.script / "world" / f"instance.{ref}"
    return json.loads(path.read_text()) if path.exists() else None


def change_world(center, ref, **what):
    path = center.script / "world" / f"instance.{ref}"
    row = {"settings": {"name": "theirs", "cpus": 3}, "state": "off", "set": "base", "addresses": [],
           "sets": [{"set": "base", "on": None, "image": None, "starts": 5}]}
    row = dict(json.loads(path.read_text()) if path.exists() else row, **what)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(row))


def content(center, ref):
    """What its disks hold: the writes of all that the set in use stands on."""
    row = world(center, ref)
    sets, at, held = {s["set"]: s for s in row["sets"]}, row["set"], []
    while at:
        held.append((sets[at]["image"], sets[at]["starts"]))
        at = sets[at]["on"]
    return [h for h in reversed(held) if h != (None, 0)]


def row(center, instance):
    return center.ok("GET", f"/v1/instances/{instance}")


def idle(center, instance):
    return wait_for("the end of it", lambda: (lambda r: r["action"] is None and r)(row(center, instance)))


count = itertools.count()


def new_instance(center, image, **more):
    body = {"name": f"vm{next(count)}", "image": image, "start": False, **more}
    got = center.post("/v1/instances", body)
    assert got.status == 202, got
    made = idle(center, got.json["id"])
    assert made["error"] is None, made
    return made["id"]


def gone(center, instance):
    return center.get(f"/v1/instances/{instance}").status == 404


def delete(center, instance, query=""):
    got = center.call("DELETE", f"/v1/instances/{instance}{query}")
    assert got.status in (202, 204), got
    wait_for("gone", lambda: gone(center, instance))


def act(center, instance, verb, body=None, status=200):
    got = center.post(f"/v1/instances/{instance}/{verb}", body)
    assert got.status == status, got
    return got.json


def test_a_life(center, image):
    instance = new_instance(center, image, settings={"cpus": 2, "forwards": [{"host": 8080, "guest": 80}]}, tags={"a": "b"}, description="d")
    made = row(center, instance)
    assert (made["state"], made["image"], made["region"], made["ref"], made["tags"]) == ("off", image, "local", instance, {"a": "b"})
    assert made["settings"]["cpus"] == 2 and made["settings"]["memory_mib"] == 512 and made["seen"]["set"] == made["disks"]
    assert "center" not in made["seen"]
    assert act(center, instance, "start")["state"] == "running"
    assert row(center, instance)["seen"]["addresses"] == ["10.0.2.15"]
    got = center.get(f"/v1/instances/{instance}/screenshot")
    assert got.headers["Content-Type"] == "image/png" and got.raw.startswith(b"\x89PNG")
    (center.script / "world" / f"serial.{instance}").write_text("login: ")
    got = center.get(f"/v1/instances/{instance}/serial?since=3")
    assert (got.raw, got.headers["Replant-Log-End"]) == (b"in: ", "7")
    assert act(center, instance, "restart", {"force": True})["state"] == "running"
    assert act(center, instance, "stop", {"seconds": 5})["state"] == "off"
    assert content(center, instance) == [(image, 2)]
    patched = center.ok("PATCH", f"/v1/instances/{instance}", {"settings": {"cpus": 4, "forwards": None}, "name": "better", "tags": {}})
    assert (patched["name"], patched["tags"], patched["settings"]["cpus"], patched["settings"]["forwards"]) == ("better", {}, 4, [])
    assert world(center, instance)["settings"]["name"] == "better"
    assert center.ok("GET", "/v1/instances?name=better&state=off&region=local")["total"] == 1
    assert center.ok("GET", "/v1/instances?name_prefix=bett&tag=a")["total"] == 0
    there = center.ok("GET", "/v1/regions/local/instances")
    assert there["items"][0]["instance"] == instance and there["total"] == 1
    delete(center, instance)
    assert world(center, instance) is None
    assert not list((center.state / "exports").glob("*.png"))


def test_snapshots(center, image):
    instance = new_instance(center, image, start=True)
    shot = center.post(f"/v1/instances/{instance}/snapshots", {"name": "first"})
    assert shot.status == 201 and shot.json["instance"] == instance
    first, held = shot.json["id"], content(center, instance)
    assert row(center, instance)["state"] == "running" and row(center, instance)["disks"] != shot.json["disks"]
    assert center.post(f"/v1/snapshots/{first}/revert").code == "invalid_state"
    act(center, instance, "restart")
    second = center.ok("POST", f"/v1/instances/{instance}/snapshots", {"name": "second"})["id"]
    act(center, instance, "stop")
    assert content(center, instance) == [(image, 1), (None, 1)]
    assert [s["name"] for s in center.ok("GET", f"/v1/instances/{instance}/snapshots")["items"]] == ["second", "first"]
    # Back to the first: what was written since is gone but for what the second keeps.
    before = {s["set"] for s in world(center, instance)["sets"]}
    assert center.post(f"/v1/snapshots/{first}/revert").status == 200
    assert content(center, instance) == held
    assert len(before - {s["set"] for s in world(center, instance)["sets"]}) == 1
    act(center, instance, "start")
    act(center, instance, "stop")
    center.ok("POST", f"/v1/snapshots/{second}/revert", {})
    assert content(center, instance) == [(image, 1), (None, 1)]
    # A snapshot that something stands on is forgotten, and its set goes when it can.
    assert center.call("DELETE", f"/v1/snapshots/{second}").status == 204
    assert center.get(f"/v1/snapshots/{second}").status == 404
    idle(center, instance)
    assert content(center, instance) == [(image, 1), (None, 1)]
    center.ok("POST", f"/v1/snapshots/{first}/revert", {})
    idle(center, instance)
    assert content(center, instance) == held and len(world(center, instance)["sets"]) == 2
    delete(center, instance)
    assert center.get(f"/v1/snapshots/{first}").status == 404 and world(center, instance) is None


def test_imported(center, image):
    change_world(center, "theirs", state="running")
    assert center.ok("GET", "/v1/regions/local/instances")["items"][0]["instance"] is None
    got = center.post("/v1/instances/import", {"ref": "theirs", "name": "imported"})
    assert got.status == 201 and got.json["state"] == "running" and got.json["image"] is None and got.json["disks"] == "base"
    instance = got.json["id"]
    again = center.post("/v1/instances/import", {"ref": "theirs", "name": "another"})
    assert (again.status, again.code, again.field) == (409, "exists", "ref")
    assert center.post("/v1/instances/import", {"ref": "nowhere", "name": "x"}).code == "not_found"
    assert center.call("DELETE", f"/v1/instances/{instance}").code == "imported"
    assert center.call("PATCH", f"/v1/instances/{instance}", {"settings": {"cpus": 1}}).code == "not_possible"
    # Nor does a migration onto it make it ours.
    with center.database() as db:
        db.execute("UPDATE instances SET image = ? WHERE id = ?", (image, instance))
    assert center.call("DELETE", f"/v1/instances/{instance}").code == "imported"
    assert center.call("PATCH", f"/v1/instances/{instance}", {"settings": {"cpus": 1}}).code == "not_possible"
    with center.database() as db:
        db.execute("UPDATE instances SET image = NULL WHERE id = ?", (instance,))
    # A snapshot stands on its own disks; they stay whatever becomes of it.
    shot = center.ok("POST", f"/v1/instances/{instance}/snapshots", {"name": "s"})["id"]
    act(center, instance, "stop")
    center.ok("POST", f"/v1/snapshots/{shot}/revert", {})
    assert center.call("DELETE", f"/v1/snapshots/{shot}").status == 204
    idle(center, instance)
    assert [s["set"] for s in world(center, "theirs")["sets"]][0] == "base"
    assert center.call("DELETE", f"/v1/instances/{instance}?keep=true").status == 204
    assert gone(center, instance) and world(center, "theirs")["state"] == "off"
    instance = center.ok("POST", "/v1/instances/import", {"ref": "theirs", "name": "imported"})["id"]
    act(center, instance, "start")
    delete(center, instance, "?force=true")
    assert world(center, "theirs") is None


# ---- refusals ----

BAD_SETTINGS = [("cpus", 0), ("cpus", 65), ("cpus", "2"), ("memory_mib", 127), ("memory_mib", 1 << 23), ("cpu", "-cpu"), ("cpu", "host,+vmx"), ("cpu", ""),
                ("firmware", "efi"), ("bus", "ide"), ("network", "a b"), ("network", "../x"), ("mac", "52:54:00:12:34"), ("mac", "52:54:00:12:34:5g"),
                ("mac", "52-54-00-12-34-56"), ("mac", "53:54:00:12:34:56"), ("address", "10.0.0"), ("address", "10.0.0.256"), ("address", "127.0.0.1"),
                ("address", "::1"), ("address", "224.0.0.1"), ("address", "0.0.0.1"), ("forwards", {}), ("forwards", [1]), ("forwards", [{"host": 1}] * 33),
                ("name", "x"), ("colour", "red"), ("cpus", True)]


@pytest.mark.parametrize("field,value", BAD_SETTINGS)
def test_bad_settings(center, image, field, value):
    before = center.ok("GET", "/v1/instances")["total"]
    got = center.post("/v1/instances", {"name": "x", "image": image, "settings": {field: value}})
    assert (got.status, got.code, got.field) == (400, "bad_field", f"settings.{field}"), got
    assert center.ok("GET", "/v1/instances")["total"] == before


@pytest.mark.parametrize("forward,field", [({"host": 0, "guest": 1}, "host"), ({"host": 1, "guest": 65536}, "guest"), ({"guest": 1}, "host"), ({"host": 1, "guest": 1, "x": 1}, "x")])
def test_bad_forwards(center, image, forward, field):
    got = center.post("/v1/instances", {"name": "x", "image": image, "settings": {"forwards": [{"host": 5, "guest": 5}, forward]}})
    assert (got.status, got.field) == (400, f"settings.forwards.{field}"), got


def test_bad_requests(center, image):
    def bad(body, field, path="/v1/instances", status=400):
        got = center.post(path, body)
        assert (got.status, got.field) == (status, field), got

    bad({"name": "x", "image": "image-0123456789abcdef"}, "image")
    bad({"name": "x", "image": "../x"}, "image")
    bad({"name": "x"}, "image")
    bad({"image": image}, "name")
    bad({"name": "x", "image": image, "region": "moon"}, "region")
    bad({"name": "x", "ref": "r", "region": "moon"}, "region", "/v1/instances/import")
    bad({"name": "x", "ref": "r" * 64}, "ref", "/v1/instances/import")
    bad({"name": "x", "image": image, "settings": {"forwards": [{"host": 5, "guest": 5}, {"host": 5, "guest": 6}]}}, "settings.forwards")
    bad({"name": "x", "image": image, "settings": {"network": "none", "forwards": [{"host": 5, "guest": 5}]}}, "settings.forwards")
    one, other = new_instance(center, image, name="one"), new_instance(center, image, name="other")
    bad({"name": "one", "image": image}, "name", status=409)
    got = center.call("PATCH", f"/v1/instances/{other}", {"name": "one"})
    assert (got.status, got.code, got.field) == (409, "exists", "name")
    bad({"seconds": 0}, "seconds", f"/v1/instances/{one}/stop")
    bad({"seconds": 3601}, "seconds", f"/v1/instances/{one}/restart")
    bad({"name": ""}, "name", f"/v1/instances/{one}/snapshots")
    assert center.call("DELETE", f"/v1/instances/{one}?keep=yes").field == "keep"
    assert center.get(f"/v1/instances/{one}/serial?since=x").field == "since"
    delete(center, one)
    delete(center, other)


def test_an_image_that_bears_an_instance_stays(center):
    image = new_image(center)
    one = new_instance(center, image, name="bearer")
    got = center.call("DELETE", f"/v1/images/{image}")
    assert (got.status, got.code) == (409, "in_use") and "'bearer'" in got.json["error"]["message"]
    assert center.ok("GET", f"/v1/images/{image}")["deleting"] is False
    delete(center, one)
    assert center.call("DELETE", f"/v1/images/{image}").status == 204
    # Also one that only a set of an imported instance stands on.
    image = new_image(center)
    change_world(center, "borrower", sets=[{"set": "base", "on": None, "image": image, "starts": 0}])
    borrower = center.ok("POST", "/v1/instances/import", {"ref": "borrower", "name": "borrower"})["id"]
    assert center.call("DELETE", f"/v1/images/{image}").code == "in_use"
    assert center.call("DELETE", f"/v1/instances/{borrower}?keep=true").code == "in_use"
    delete(center, borrower, "?force=true")
    assert center.call("DELETE", f"/v1/images/{image}").status == 204


# ---- every action in every state ----

ACTIONS = {"start": ("POST", "/start", {}), "stop": ("POST", "/stop", {}), "restart": ("POST", "/restart", {}),
           "change": ("PATCH", "", {"settings": {"cpus": 3}}), "rename": ("PATCH", "", {"description": "new"}),
           "snapshot": ("POST", "/snapshots", {"name": "s"}), "revert": ("REVERT", "", {}), "forget a snapshot": ("DROP", "", None),
           "screenshot": ("GET", "/screenshot", None), "serial": ("GET", "/serial", None), "delete": ("DELETE", "", None)}
YES, OFF, BUSY, NO = (200, None), (409, "invalid_state"), (409, "in_use"), (409, "not_possible")
#                 start stop  restart change rename snapshot revert drop screenshot serial delete
STATES = {
    "off":       (YES, OFF, YES, YES, YES, YES, YES, YES, OFF, YES, YES),
    "running":   (OFF, YES, YES, OFF, YES, YES, OFF, YES, YES, YES, OFF),
    "paused":    (OFF, YES, YES, OFF, YES, YES, OFF, YES, YES, YES, OFF),
    "crashed":   (YES, OFF, YES, YES, YES, YES, YES, YES, OFF, YES, OFF),
    "missing":   (OFF, OFF, OFF, OFF, YES, OFF, OFF, OFF, OFF, OFF, YES),
    "imported":  (YES, OFF, YES, NO, YES, YES, YES, YES, OFF, YES, (409, "imported")),
    "switching": (YES, YES, YES, OFF, YES, BUSY, BUSY, BUSY, YES, YES, BUSY),  # one after the other: it runs then
    "busy":      (BUSY, BUSY, BUSY, BUSY, YES, BUSY, BUSY, BUSY, OFF, YES, BUSY),
    "failed":    (OFF, OFF, OFF, OFF, YES, OFF, None, None, OFF, OFF, YES),
    "deleting":  (BUSY, BUSY, BUSY, BUSY, YES, BUSY, BUSY, BUSY, OFF, OFF, BUSY),
}


def bring_into(center, image, state):
    """An instance in that state, and a snapshot of it."""
    if state == "failed":
        center.play("set_add", "fail", "no_space: full")
        instance = center.ok("POST", "/v1/instances", {"name": "failed", "image": image})["id"]
        broken = idle(center, instance)
        center.unplay("set_add", "fail")
        assert broken["error"]["code"] == "no_space" and broken["disks"] is None
        return instance, None
    if state == "imported":
        change_world(center, "foreign")
        instance = center.ok("POST", "/v1/instances/import", {"ref": "foreign", "name": "foreign"})["id"]
    else:
        instance = new_instance(center, image)
    snapshot = center.ok("POST", f"/v1/instances/{instance}/snapshots", {"name": "before"})["id"]
    if state in ("running", "paused", "crashed"):
        change_world(center, instance, state=state)
        wait_for(state, lambda: row(center, instance)["state"] == state)
        wait_for("the round", lambda: center.ok("GET", f"/v1/instances?state={state}&name={row(center, instance)['name']}")["total"])
    if state == "missing":
        (center.script / "world" / f"instance.{instance}").unlink()
        wait_for("the round", lambda: center.ok("GET", f"/v1/instances?state=missing")["total"])
    if state == "switching":
        with center.database() as db:
            db.execute("UPDATE instances SET switching = ? WHERE id = ?", (json.dumps({"step": "done", "to": "set-0000000000000000"}), instance))
    if state == "busy":
        center.play("instance_start", "hold")
        assert center.post(f"/v1/instances/{instance}/start").status == 202
    if state == "deleting":
        center.play("instance_remove", "hold")
        assert center.call("DELETE", f"/v1/instances/{instance}").status == 202
    return instance, snapshot


def try_action(center, instance, snapshot, action):
    method, path, body = ACTIONS[action]
    if method == "REVERT":
        return center.post(f"/v1/snapshots/{snapshot}/revert")
    if method == "DROP":
        return center.call("DELETE", f"/v1/snapshots/{snapshot}")
    return center.call(method, f"/v1/instances/{instance}{path}", body)


@pytest.mark.parametrize("state", STATES)
def test_every_action_in_every_state(fresh, state):
    center = fresh(INSTANCES_TICK=0.1)
    image = new_image(center)
    instance = snapshot = None
    for action, expected in zip(ACTIONS, STATES[state]):
        if expected is None:
            continue
        if instance is None or state not in ("busy", "deleting", "switching"):
            instance, snapshot = bring_into(center, image, state)
        before = world(center, row(center, instance)["ref"] or "") if not gone(center, instance) else None
        got = try_action(center, instance, snapshot, action)
        if expected == YES:
            assert 200 <= got.status < 300, (state, action, got)
        else:
            assert (got.status, got.code) == expected, (state, action, got)
            assert len(got.json["error"]["message"]) > 10
            assert world(center, row(center, instance)["ref"] or "") == before, (state, action)
        if state not in ("busy", "deleting", "switching") and not gone(center, instance):
            idle(center, instance)
            delete(center, instance, "?force=true")
        elif gone(center, instance):
            instance = None
    for held in "instance_start", "instance_remove":
        if (center.script / f"{held}.hold").exists():
            center.unplay(held, "hold")


# ---- what instances do by themselves ----

def test_states_are_seen(fresh):
    center = fresh(INSTANCES_TICK=0.1)
    instance = new_instance(center, new_image(center), start=True)
    conn = center.connect()
    conn.request("GET", "/v1/events", headers={"Authorization": "Bearer " + center.token})
    stream = conn.getresponse()
    stored = lambda: center.ok("GET", "/v1/instances")["items"][0]["state"]
    for state in "crashed", "paused", "off", "running":
        change_world(center, instance, state=state)
        wait_for(state, lambda: stored() == state)
    kept = world(center, instance)
    (center.script / "world" / f"instance.{instance}").unlink()
    wait_for("missing", lambda: stored() == "missing")
    assert row(center, instance)["state"] == "missing" and row(center, instance)["seen"]["set"]
    change_world(center, instance, **kept)
    wait_for("it is back", lambda: stored() == "running")
    told = []
    while len(told) < 6:
        line = stream.readline().decode()
        if line.startswith("data: ") and instance in line:
            told.append(json.loads(line[6:])["state"])
    assert told == ["crashed", "paused", "off", "running", "missing", "running"]
    conn.close()
    # What doesn't change isn't written again and again.
    with center.database() as db:
        last = "SELECT max(id) FROM events WHERE substr(type, 1, 9) = 'instance.'"
        first = db.row(last)[0]
        rounds = len(center.calls("instance_list"))
        wait_for("more rounds", lambda: len(center.calls("instance_list")) > rounds + 5)
        assert db.row(last)[0] == first
    change_world(center, instance, state="off")
    delete(center, instance, "?force=true")


def test_a_hypervisor_that_does_not_answer_holds_nobody_up(fresh):
    center = fresh(INSTANCES_TICK=0.1)
    instance = new_instance(center, new_image(center), start=True)
    for what in "instance_list", "instance_get":
        center.play(what, "hold")
    wait_for("the round", lambda: len(center.calls("instance_list")) > 0)
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(center.get, f"/v1/instances/{instance}") for _ in range(40)]
        began = time.monotonic()
        agent = center.agent()
        job = center.started_job(agent.source)
        agent.send_all()
        center.wait_job(job)
        assert center.get("/v1/instances").json["items"][0]["state"] == "running"
        assert time.monotonic() - began < 10
        assert {a.result().json["state"] for a in asked} == {"running"}
    got = center.get("/v1/regions/local/instances")
    assert (got.status, got.code) == (502, "hypervisor_failed") or got.status in (503, 504), got
    got = center.post(f"/v1/instances/{instance}/stop", {"force": True})
    assert got.status == 202 and got.json["action"] == "stop"
    got = center.post(f"/v1/instances/{instance}/start")
    assert got.code == "in_use" and "being stopped" in got.json["error"]["message"]
    for what in "instance_list", "instance_get":
        center.unplay(what, "hold")
    assert idle(center, instance)["state"] == "off"


def test_one_thing_at_a_time(center, image):
    instance = new_instance(center, image)
    center.play("instance_start", "hold")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = sorted(a.status for a in pool.map(lambda n: center.post(f"/v1/instances/{instance}/start"), range(8)))
    assert got == [202] + [409] * 7
    assert row(center, instance)["action"] == "start"
    center.unplay("instance_start", "hold")
    assert idle(center, instance)["state"] == "running"
    delete(center, instance, "?force=true")


def test_what_fails_is_said(center, image):
    instance = new_instance(center, image)
    center.play("instance_start", "fail", "no memory")
    got = center.post(f"/v1/instances/{instance}/start")
    assert (got.status, got.code) == (502, "hypervisor_failed") and "no memory" in got.json["error"]["message"]
    error = row(center, instance)["error"]
    assert (error["code"], error["action"]) == ("hypervisor_failed", "start") and "no memory" in error["message"]
    center.unplay("instance_start", "fail")
    assert act(center, instance, "start")["error"] is None
    center.play("instance_stop", "deaf")
    got = center.post(f"/v1/instances/{instance}/stop", {"seconds": 1})
    assert (got.status, got.code) == (409, "not_stopped"), got
    assert act(center, instance, "stop", {"force": True})["state"] == "off"
    center.unplay("instance_stop", "deaf")
    # A snapshot that couldn't be made isn't there.
    center.play("set_snapshot", "fail", "no_space: full")
    assert center.post(f"/v1/instances/{instance}/snapshots", {"name": "s"}).code == "no_space"
    assert center.ok("GET", f"/v1/instances/{instance}/snapshots")["total"] == 0
    center.unplay("set_snapshot", "fail")
    shot = center.ok("POST", f"/v1/instances/{instance}/snapshots", {"name": "s"})["id"]
    # A revert that couldn't be done changes nothing, and leaves nothing.
    before = world(center, instance)
    for step in "set_fork", "set_use":
        center.play(step, "fail", "the disk is on fire")
        assert center.post(f"/v1/snapshots/{shot}/revert").code == "hypervisor_failed"
        center.unplay(step, "fail")
        assert world(center, instance) == before
    center.play("instance_remove", "fail", "stuck")
    got = center.call("DELETE", f"/v1/instances/{instance}")
    assert got.code == "hypervisor_failed"
    center.unplay("instance_remove", "fail")
    wait_for("it is tried again", lambda: gone(center, instance), 30)
    assert world(center, instance) is None


def test_a_deletion_that_cannot_be(center, image):
    """What a person has to see to first isn't tried over and over, which would turn it off each time."""
    instance = new_instance(center, image, start=True)
    center.play("instance_remove", "fail", "busy: it has others' disks")
    got = center.call("DELETE", f"/v1/instances/{instance}?force=true")
    assert got.status == 409 and "others' disks" in got.json["error"]["message"], got
    error = row(center, instance)["error"]
    assert error["action"] == "delete" and act(center, instance, "start")["state"] == "running"
    center.unplay("instance_remove", "fail")
    delete(center, instance, "?force=true")


@pytest.mark.parametrize("force", [False, True])
def test_a_deletion_is_tried_again_as_it_was_asked_for(center, image, force):
    instance = new_instance(center, image, start=force)
    center.play("instance_remove", "fail", "stuck")
    assert center.call("DELETE", f"/v1/instances/{instance}?force={str(force).lower()}").code == "hypervisor_failed"
    change_world(center, instance, state="running")
    center.unplay("instance_remove", "fail")
    if force:
        wait_for("it is tried again", lambda: gone(center, instance), 30)
        return
    # Somebody has started it meanwhile: it isn't what was to go.
    kept = wait_for("a refusal", lambda: (lambda r: "is running" in (r["error"] or {}).get("message", "") and r)(row(center, instance)), 30)
    assert kept["state"] == "running" and act(center, instance, "stop")["state"] == "off"
    delete(center, instance)


def test_images_under_instances_are_not_thinned_out(fresh):
    center = fresh(HOUR=1)
    agent = center.agent()
    job = center.started_job(agent.source, parameters={"incremental": True, "max_images": 1, "interval_hours": 1, "test_boot": False})
    agent.send_all()
    first = wait_for("the first", lambda: center.job(job)["image"])
    center.wait_job(job, "waiting")
    instance = new_instance(center, first)
    for n in 2, 3:
        wait_for("the next run", lambda: center.job(job)["number"] == n)
        agent.send_all()
        wait_for("its end", lambda: center.job(job)["runs_done"] == n)
    wait_for("two images", lambda: center.ok("GET", f"/v1/images?job={job}")["total"] == 2)
    assert first in [i["id"] for i in center.ok("GET", f"/v1/images?job={job}")["items"]]
    delete(center, instance)
    wait_for("one image", lambda: first not in [i["id"] for i in center.ok("GET", f"/v1/images?job={job}")["items"]])
    center.ok("POST", f"/v1/jobs/{job}/stop", {})


def test_a_limited_token(center, image):
    def call(method, path, body=None):
        return center.call(method, path, body, token=token)

    token = center.ok("POST", "/v1/tokens", {"name": "web", "role": "operator", "scope": {"team": "web"}})["token"]
    theirs = new_instance(center, image, name="theirs")
    shot = center.ok("POST", f"/v1/instances/{theirs}/snapshots", {"name": "s"})["id"]
    # An image that it doesn't see is none.
    assert call("POST", "/v1/instances", {"name": "mine", "image": image}).field == "image"
    center.ok("PATCH", f"/v1/images/{image}", {"tags": {"team": "web"}})
    mine = call("POST", "/v1/instances", {"name": "mine", "image": image, "start": False})
    assert mine.status == 202 and mine.json["tags"] == {"team": "web"}
    mine = idle(center, mine.json["id"])["id"]
    assert [i["id"] for i in call("GET", "/v1/instances").json["items"]] == [mine]
    own = call("POST", f"/v1/instances/{mine}/snapshots", {"name": "s"})
    assert own.status == 201 and call("GET", f"/v1/snapshots/{own.json['id']}").status == 200
    assert call("PATCH", f"/v1/instances/{mine}", {"tags": {}}).status == 403
    assert call("POST", "/v1/instances/import", {"ref": theirs, "name": "x"}).status == 403
    assert call("GET", "/v1/regions/local/instances").status == 403
    for method, path, body in [("GET", "", None), ("PATCH", "", {"name": "x"}), ("DELETE", "?force=true", None), ("POST", "/start", {}), ("POST", "/stop", {}),
                               ("POST", "/restart", {}), ("GET", "/screenshot", None), ("GET", "/serial", None), ("POST", "/snapshots", {"name": "x"}), ("GET", "/snapshots", None)]:
        assert call(method, f"/v1/instances/{theirs}{path}", body).status == 404, (method, path)
    for method, path in [("GET", ""), ("DELETE", ""), ("POST", "/revert")]:
        assert call(method, f"/v1/snapshots/{shot}{path}", {} if method == "POST" else None).status == 404
    viewer = center.ok("POST", "/v1/tokens", {"name": "v", "role": "viewer", "scope": {"team": "web"}})["token"]
    assert center.get(f"/v1/instances/{mine}", token=viewer).status == 200
    for path in f"/v1/instances/{mine}/start", f"/v1/snapshots/{own.json['id']}/revert":
        assert center.post(path, token=viewer).status == 403
    assert call("DELETE", f"/v1/instances/{mine}").status == 204
    delete(center, theirs)
    center.ok("PATCH", f"/v1/images/{image}", {"tags": {}})
    told = [(r["action"], r["object"], r["status"]) for r in center.ok("GET", f"/v1/audit?object={mine}")["items"]]
    assert ("deleteInstance", mine, 204) in told and ("createInstance", mine, 202) in told


# ---- killed ----

class Mortal2(Mortal):
    """Also in the middle of the hypervisor's work."""

    def __call__(self, call, *args, **kw):
        def once():
            try:
                return call(*args, **kw)
            except LOST:
                for path in [*self.center.script.glob("*.die"), *self.center.script.glob("*.dies")]:
                    path.unlink()
                raise
        return super().__call__(once)


def settled(mortal, name):
    """The instance of that name when nothing is being done to it, or None."""
    center = mortal.center

    def turn():
        items = center.ok("GET", f"/v1/instances?name={name}")["items"]
        return (items[0] if items else "none") if not items or items[0]["action"] is None else None
    got = mortal.until("the end of what is done", turn)
    return None if got == "none" else got


def life(center, image, armed):
    """An instance from its creation until nothing is left of it, its center killed somewhere. The number of deaths."""
    mortal = Mortal2(center)
    for name in armed:
        center.play(*name)

    def ensure(what, done, ask):
        """Asks until it is so: the answer may be lost and the deed done."""
        def turn():
            if done():
                return True
            got = ask()
            assert got.status < 300 or got.status in (404, 409), (what, got)
            return False
        mortal.until(what, turn)

    def now():
        return settled(mortal, "life")

    ensure("it is made", now, lambda: center.post("/v1/instances", {"name": "life", "image": image, "tags": {"a": "b"}, "start": True}))
    made = now()
    assert made["error"] is None and made["tags"] == {"a": "b"}, (made, center.tail())
    instance, path = made["id"], f"/v1/instances/{made['id']}"
    wait_for("it runs", lambda: mortal(row, center, instance)["state"] == "running")
    assert content(center, instance) == [(image, 1)]
    shots = lambda: mortal(center.ok, "GET", path + "/snapshots")["items"]

    def shot(name):
        ensure(name, lambda: now() and [s for s in shots() if s["name"] == name], lambda: center.post(path + "/snapshots", {"name": name}))
        return [s["id"] for s in shots() if s["name"] == name]

    first, = shot("first")
    assert now()["disks"] not in [s["disks"] for s in shots()]
    ensure("it is off", lambda: now()["state"] == "off", lambda: center.post(path + "/stop"))
    ensure("it runs", lambda: now()["state"] == "running", lambda: center.post(path + "/start"))
    ensure("it is off", lambda: now()["state"] == "off", lambda: center.post(path + "/stop"))
    assert content(center, instance) == [(image, 1), (None, 1)]
    second, = shot("second")
    disks = now()["disks"]
    ensure("it is reverted", lambda: now()["disks"] != disks, lambda: center.post(f"/v1/snapshots/{first}/revert"))
    assert content(center, instance) == [(image, 1)]
    now()
    ensure("no second snapshot", lambda: mortal(center.get, f"/v1/snapshots/{second}").status == 404, lambda: center.call("DELETE", f"/v1/snapshots/{second}"))
    now()
    there = world(center, instance)
    # What the first snapshot holds, and what is in use on it: nothing else.
    held = {s["disks"] for s in shots()} | {now()["disks"]}
    assert {s["set"] for s in there["sets"]} == held and len(held) == 2 and there["set"] == now()["disks"], (there, held)
    assert content(center, instance) == [(image, 1)]
    ensure("it is gone", lambda: mortal(gone, center, instance), lambda: center.call("DELETE", path))
    left = [p.name for p in (center.script / "world").iterdir() if p.name != f"image.{image}"]
    assert not left, left
    with center.database() as db:
        assert db.row("SELECT count(*) FROM instances")[0] == db.row("SELECT count(*) FROM snapshots")[0] == 0
    return mortal.deaths


def life_of(fresh, armed):
    center = fresh(INSTANCES_TICK=0.2)
    image = new_image(center)
    center.ok("DELETE", f"/v1/jobs/{center.ok('GET', '/v1/jobs')['items'][0]['id']}")
    wait_for("no job", lambda: center.ok("GET", "/v1/jobs")["total"] == 0)
    deaths = life(center, image, armed)
    center.stop()
    return deaths


def test_killed_at_every_write(fresh):
    whole, at = int(os.environ.get("REPLANT_LOOPS", "0")), 0
    dice = random.Random(SEED)
    print(f"REPLANT_SEED={SEED}")
    while True:
        at += 1 if whole else dice.randrange(4, 12)
        deaths = life_of(fresh, [("die", "at", str(at))])
        print(f"write {at}: {deaths} deaths")
        assert deaths <= 1
        if not deaths:
            break
    assert at > 60, "a life has more writes than that"


@pytest.mark.parametrize("when", ["die", "dies"])
@pytest.mark.parametrize("call", ["instance_define", "set_add", "set_use", "instance_start", "set_snapshot", "instance_stop", "set_fork", "set_drop", "instance_remove"])
def test_killed_in_the_hypervisor(fresh, call, when):
    assert life_of(fresh, [(call, when)]) == 1
