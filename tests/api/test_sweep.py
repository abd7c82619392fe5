"""What is kept and for whom, what nobody owns any more, and which of it goes by itself."""

import os
import time

import pytest

from conftest import new_center
from harness import Center, wait_for

HOURS = 3 * 3600


def kept(center, name, age=HOURS, text="x" * 10):
    """A thing of the provider's, KIND.OWNER; its path."""
    folder = center.script / "kept"
    folder.mkdir(exist_ok=True)
    return old(folder / name, age, text)


def old(path, age=HOURS, text="x" * 10):
    path.write_text(text)
    os.utime(path, (time.time() - age,) * 2)
    return path


def holdings(center, query=""):
    return {item["path"]: item for item in center.ok("GET", "/v1/holdings" + query)["items"]}


def emptied(center):
    """How often it was given back what was swept: the last that a sweep does, in a task behind the answer."""
    path = center.script / "discarded"
    return path.read_text().count("- empty") if path.exists() else 0


def sweep(center, **body):
    before = emptied(center)
    got = wait_for("no other's sweep", lambda: next((a.json for a in [center.post("/v1/holdings/sweep", body)] if a.status == 200), None))
    assert not got["failed"], got
    if not body.get("dry_run"):
        wait_for("its end", lambda: emptied(center) > before)
    return sorted(item["path"] for item in got["removed"]), sorted(item["path"] for item in got["orphans"])


@pytest.fixture
def clean(center):
    """Nothing kept but what the test makes; nothing but the temporary was ever discarded."""
    (center.script / "kept").mkdir(exist_ok=True)
    wait_for("the start's sweep", lambda: emptied(center))
    yield center
    for path in (center.script / "kept").iterdir():
        path.unlink()
    assert not (center.script / "misuse").exists(), (center.script / "misuse").read_text()


def test_each_thing_has_an_owner(clean):
    agent = clean.agent()
    job = clean.started_job(agent.source)
    task = agent.wait_task()
    assert [i for i in holdings(clean, f"?owner={job}&kind=copy").values()] == [
        {"kind": "copy", "owner": job, "path": f"world/copy.{job}", "bytes": 9, "since": pytest.approx(time.time(), abs=60),
         "orphan": False, "removable": False}]
    clean.commit(task["run"])
    agent.report(task["run"], "done", result={})
    image = clean.wait_job(job)["image"]
    assert f"world/copy.{job}" not in holdings(clean)
    (mine,) = holdings(clean, f"?owner={image}&kind=image").values()
    assert not mine["orphan"]
    # as old as it may get
    old(clean.script / mine["path"])
    assert not holdings(clean)[mine["path"]]["orphan"]
    got = clean.ok("GET", "/v1/holdings?kind=image")
    assert got["bytes"] == sum(i["bytes"] for i in got["items"]) and got["total"] == len(got["items"]) and got["orphans"] == 0


STRANGER = "0123456789abcdef"


@pytest.mark.parametrize("kind, owner", [("image", f"image-{STRANGER}"), ("copy", f"job-{STRANGER}"), ("chain", f"job-{STRANGER}"),
                                         ("instance-set", f"instance-{STRANGER}"), ("image", "none"), ("run", "none"), ("test", f"job-{STRANGER}")])
def test_data_without_a_row_is_told_and_stays(clean, kind, owner):
    """As after a restored backup, which doesn't know yesterday's."""
    path = kept(clean, f"{kind}.{owner}")
    name = f"kept/{path.name}"
    item = holdings(clean)[name]
    assert (item["orphan"], item["removable"], item["kind"]) == (True, False, kind)
    assert sweep(clean) == ([], [name]) and path.exists()
    assert f'replant_orphans {clean.ok("GET", "/v1/holdings")["orphans"]}' in clean.get("/metrics").raw.decode()


@pytest.mark.parametrize("name", [f"image.image-{STRANGER}", f"run.image-{STRANGER}", f"temporary.job-{STRANGER}"])
@pytest.mark.parametrize("age", [0, 3000, -HOURS])
def test_what_changed_of_late_is_no_orphan(clean, name, age):
    """Somebody may be making it; and what is of the future says nothing about its age."""
    path = kept(clean, name, age)
    assert not holdings(clean)[f"kept/{name}"]["orphan"]
    assert sweep(clean) == ([], []) and path.exists()


@pytest.mark.parametrize("name", [f"run.image-{STRANGER}", f"run.job-{STRANGER}", "temporary.none", f"temporary.job-{STRANGER}"])
def test_what_is_temporary_goes(clean, name):
    path = kept(clean, name)
    assert sweep(clean, dry_run=True) == ([f"kept/{name}"], []) and path.exists()
    assert sweep(clean) == ([f"kept/{name}"], []) and not path.exists()
    assert sweep(clean) == ([], [])
    assert clean.ok("GET", "/v1/audit?action=sweepHoldings")["items"][0]["status"] == 200


def test_what_somebody_works_with_stays(clean):
    agent = clean.agent()
    clean.play("convert", "hold")
    clean.play("test_boot", "hold")
    job = clean.started_job(agent.source)
    agent.send_all()
    wait_for("the conversion", lambda: clean.calls("convert") and clean.calls("convert")[-1][1] == job)
    run = kept(clean, f"run.{job}")
    with clean.database() as db:
        (pending,) = db.row("SELECT image_pending FROM jobs WHERE id = ?", (job,))
    half, machine = kept(clean, f"image.{pending}"), kept(clean, f"run.{pending}")
    assert sweep(clean) == ([], [])
    clean.unplay("convert", "hold")
    wait_for("the boot", lambda: clean.calls("test_boot") and clean.calls("test_boot")[-1][1] == pending)
    assert sweep(clean) == ([], [])
    clean.unplay("test_boot", "hold")
    clean.wait_job(job)
    # The job has ended, so what its machines left is nobody's; the image is.
    assert sweep(clean) == (sorted([f"kept/{run.name}", f"kept/{machine.name}"]), [])
    assert half.exists()


def test_a_chain_is_its_images_too(clean):
    """It outlives its job as long as an image stands on it."""
    agent = clean.agent()
    job = clean.started_job(agent.source)
    agent.send_all()
    image = clean.wait_job(job)["image"]
    kept(clean, f"chain.job-{STRANGER}")
    assert holdings(clean)[f"kept/chain.job-{STRANGER}"]["orphan"]
    with clean.database() as db:
        db.execute("UPDATE images SET manifest = ? WHERE id = ?", (f'{{"chain":"job-{STRANGER}","run":1}}', image))
    assert not holdings(clean)[f"kept/chain.job-{STRANGER}"]["orphan"]


def test_no_database_no_sweep(clean):
    """What can't be asked for may have an owner."""
    path = kept(clean, f"run.image-{STRANGER}")
    with clean.database() as db:
        db.execute("ALTER TABLE exports RENAME TO exports_away")
        try:
            assert clean.post("/v1/holdings/sweep").status == 500 and clean.get("/v1/holdings").status == 500
        finally:
            db.execute("ALTER TABLE exports_away RENAME TO exports")
    assert path.exists()
    clean.play("holdings", "fail", "the disk is away")
    assert clean.post("/v1/holdings/sweep").status == 500 and path.exists()
    clean.unplay("holdings", "fail")
    assert sweep(clean)[0] == [f"kept/{path.name}"]


def test_one_that_stays_keeps_no_other(clean):
    paths = [kept(clean, f"run.image-{STRANGER}"), kept(clean, f"run.job-{STRANGER}")]
    clean.play("discard", "fail")
    before = emptied(clean)
    got = clean.ok("POST", "/v1/holdings/sweep", {})
    wait_for("its end", lambda: emptied(clean) > before)
    clean.unplay("discard", "fail")
    assert sorted(i["path"] for i in got["failed"]) == [f"kept/{path.name}" for path in paths] and not got["removed"]
    assert {i["message"] for i in got["failed"]} == {"stuck"} and all(path.exists() for path in paths)


def test_a_clock_that_was_set(fresh):
    """By it all is hours old at once; nothing is, until an hour has passed by the clock that nobody sets."""
    center = fresh(HOUR=20)
    path = kept(center, f"run.image-{STRANGER}", 0)
    assert sweep(center) == ([], [])
    began = time.monotonic()
    center.play("clock", "ahead", "90000")
    assert sweep(center) == ([], [])
    wait_for("an hour", lambda: not path.exists(), 90)  # it does it by itself, too
    assert time.monotonic() - began > 15


def test_it_is_for_admins(clean):
    operator = clean.role_token("operator")
    assert clean.get("/v1/holdings", token=operator).status == 403
    assert clean.post("/v1/holdings/sweep", token=operator).status == 403
    assert clean.call("POST", "/v1/holdings/sweep", {"dry_run": 1}).field == "dry_run"


def test_it_sweeps_by_itself(fresh):
    """At a start, and every hour; the hour is short here."""
    center = fresh(HOUR=3, TICK=0.1)
    center.kill()
    left = kept(center, f"run.image-{STRANGER}")
    data = kept(center, f"image.image-{STRANGER}")
    center.start()
    wait_for("the start's", lambda: not left.exists())
    left = kept(center, f"run.image-{STRANGER}", 0)
    # Of the state directory: halves of exports, and logs of jobs that are no more.
    half, whole = old(center.state / "exports" / f"export-{STRANGER}.qcow2.partial"), old(center.state / "exports" / f"export-{STRANGER}.qcow2")
    (center.state / "logs" / f"job-{STRANGER}").mkdir(parents=True)
    log = old(center.state / "logs" / f"job-{STRANGER}" / "1-agent-0.log")
    pictures = [center.state / place / f"job-{STRANGER}.png" for place in ("tests", "pictures")]
    for path in pictures:
        path.parent.mkdir(exist_ok=True)
        old(path)
    items = holdings(center, f"?owner=export-{STRANGER}")
    assert {(i["kind"], i["orphan"]) for i in items.values()} == {("temporary", False), ("export", False)}, "made just now"
    assert left.exists() and half.exists() and log.exists() and all(path.exists() for path in pictures)
    assert {(i["kind"], i["orphan"]) for i in holdings(center, f"?owner=job-{STRANGER}").values()} == {
        ("log", False), ("test", False), ("picture", False)}
    wait_for("the hour's", lambda: not any(path.exists() for path in (left, half, log.parent, *pictures)))
    assert data.exists() and whole.exists()
    assert holdings(center)[f"state/exports/{whole.name}"] | {"since": 0, "bytes": 0} == {
        "kind": "export", "owner": f"export-{STRANGER}", "path": f"state/exports/{whole.name}", "orphan": True, "removable": False,
        "since": 0, "bytes": 0}
    wait_for("who is told", lambda: f"nobody owns 'state/exports/{whole.name}'" in center.tail())
    assert f'replant_holdings_bytes{{kind="image"}} {data.stat().st_size}' in center.get("/metrics").raw.decode()


def test_two_centers(tmp_path, postgres):
    """What one works with the other leaves alone, though it may not have heard of it."""
    env = {"LEASE": 5, "HEARTBEAT": 1}
    a = new_center(tmp_path / "a", postgres, **env)
    b = None
    try:
        agent = a.agent()
        a.play("convert", "hold")
        job = a.started_job(agent.source)
        agent.send_all()
        wait_for("the conversion", lambda: a.calls("convert"))
        for shared in "world", "kept":
            (a.script / shared).mkdir(exist_ok=True)
        (tmp_path / "b" / "script").mkdir(parents=True)
        for shared in "world", "made", "misuse", "kept":
            (tmp_path / "b" / "script" / shared).symlink_to(a.script / shared)
        path = kept(a, f"run.{job}")
        b = Center(tmp_path / "b", joins=a, DATABASE=a.env["DATABASE"], **env)
        for _ in range(3):
            assert sweep(b) == ([], []) and path.exists()
        assert sweep(a) == ([], []) and path.exists()
        # One that was killed works with nothing any more.
        a.kill()
        b.play("convert", "hold")
        wait_for("the lease is B's", lambda: b.calls("convert"), 40)
        assert sweep(b) == ([], []), "B converts now"
        b.unplay("convert", "hold")
        b.wait_job(job)
        assert sweep(b) == ([f"kept/run.{job}"], []) and not path.exists()
    finally:
        for center in a, b:
            if center and center.process.poll() is None:
                assert center.stop() == 0, center.tail()
    assert not (a.script / "misuse").exists()
