"""The center dies at a write to its database, at each of them in turn: before it, which is also behind the one before. Whoever asked
asks again, as people and programs do, and all ends as if nothing had happened. REPLANT_LOOPS=200 takes every write, else some."""

import http.client
import os
import random
import ssl

import pytest

from harness import wait_for

LOST = (OSError, http.client.HTTPException, ssl.SSLError)
SEED = int(os.environ.get("REPLANT_SEED", "0")) or random.SystemRandom().randrange(1 << 32)


class Mortal:
    """A center that may die with any call; it is started again, and the call repeated."""

    def __init__(self, center):
        self.center, self.deaths = center, 0

    def __call__(self, call, *args, **kw):
        while True:
            try:
                return call(*args, **kw)
            except LOST:
                wait_for("the center's death", lambda: self.center.process.poll() is not None)
                self.deaths += 1
                if (self.center.script / "die.at").exists():
                    self.center.unplay("die", "at")
                self.center.process.stdout.close()
                self.center.start()

    def until(self, what, check):
        """Not wait_for: the first call that comes through after a death may find things as they were."""
        return wait_for(what, lambda: self(check), 40)


def send(mortal, agent, job, runs):
    """Plays the agent until one more run than `runs` is done."""
    center = mortal.center

    def turn():
        row = center.job(job)
        if row["runs_done"] > runs or row["state"] == "finished":
            return True
        assert row["state"] == "running", (row["state"], row["error"], center.tail())
        task = agent.sync()["task"]
        if task:
            center.commit(task["run"])
            agent.report(task["run"], "done", progress={"phase": "done", "freeze_ms": 5}, result={"notes": []})
        return False

    mortal.until("the run's end", turn)


def test(mortal, agent, job):
    """Plays the agent until the migration test is over, of which only a report and a picture are left."""
    center = mortal.center

    def turn():
        row = center.job(job)
        if row["state"] == "ready":
            return True
        assert row["state"] == "running" and row["testing"] == "test_only", (row, center.tail())
        task = agent.sync()["task"]
        if task:
            center.commit(task["run"])
            agent.report(task["run"], "done", progress={"phase": "done"}, result={"notes": [], "test": {"checks": [], "left_out": []}})
        return False

    mortal.until("the test's end", turn)
    row = mortal(center.job, job)
    assert row["test"]["state"] == "done" and row["test"]["counts"]["critical"] == 0 and row["number"] == 0 and row["testing"] is None
    assert mortal(center.get, f"/v1/jobs/{job}/test/screenshot").status == 200
    assert not (center.script / "world" / f"copy.{job}").exists() and not center.calls("image_create")


test.__test__ = False


def event(mortal, job, verb, gone_on):
    """Asks for it until it has happened: the answer may be lost and the deed done."""
    center = mortal.center

    def turn():
        if gone_on(center.job(job)):
            return True
        got = center.post(f"/v1/jobs/{job}/{verb}")
        assert got.status in (202, 409), got
        return False

    mortal.until(verb, turn)


def life(center, kind):
    """A job from its creation until nothing is left of it. The number of deaths."""
    mortal, incremental = Mortal(center), kind == "incremental"
    (center.script / "screen.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    agent = mortal(center.agent)
    parameters = {"incremental": incremental, "max_images": 1} if incremental else {}
    made = mortal(center.ok, "POST", "/v1/jobs", {"source": agent.source, "name": "life", "client_token": agent.source, "tags": {"a": "b"},
                                                   "parameters": parameters,
                                                   **({"execution": kind} if kind.startswith("test") else {})})
    job = made["id"]
    event(mortal, job, "start", lambda row: row["state"] != "ready" or row["test"])
    if kind == "test_only":
        test(mortal, agent, job)
        event(mortal, job, "start", lambda row: row["number"] == 1)
    send(mortal, agent, job, 0)
    if incremental:
        mortal.until("waiting", lambda: center.job(job)["state"] == "waiting")
        event(mortal, job, "run", lambda row: row["number"] == 2)
        send(mortal, agent, job, 1)
        mortal.until("waiting", lambda: center.job(job)["state"] == "waiting")
        event(mortal, job, "cutover", lambda row: row["number"] == 3)
        send(mortal, agent, job, 2)
    mortal.until("the end", lambda: center.job(job)["state"] == "finished")
    row, last = mortal(center.job, job), 3 if incremental else 1
    assert row["runs_done"] == row["number"] == last and row["error"] is None and row["tags"] == {"a": "b"}
    assert {r["state"] for r in row["runs"]} <= {"done", "failed"} and sorted(r["number"] for r in row["runs"] if r["state"] == "done" and r["number"]) == \
        list(range(1, last + 1)), row["runs"]
    # One image, the last; no other was lost on the way, none is left behind.
    mortal.until("one image", lambda: [i["id"] for i in center.ok("GET", f"/v1/images?job={job}")["items"]] == [row["image"]])
    image = mortal(center.ok, "GET", f"/v1/images/{row['image']}")
    assert image["verified"] and image["tags"] == {"a": "b"}
    calls = center.calls()
    assert len({c[1] for c in calls if c[0] == "image_create"}) == last
    assert {c[1] for c in calls if c[0] == "image_remove"} == {c[1] for c in calls if c[0] == "image_create"} - {row["image"]}
    assert ["job_remove", job] in calls
    mortal.until("a free source", lambda: center.ok("GET", f"/v1/sources/{agent.source}")["job"] is None)

    def delete(path):
        return center.call("DELETE", path).status in (202, 204, 404, 409) and center.get(path).status == 404

    mortal.until("no image", lambda: delete(f"/v1/images/{row['image']}"))
    mortal.until("no job", lambda: delete(f"/v1/jobs/{job}"))
    mortal.until("no source", lambda: delete(f"/v1/sources/{agent.source}"))
    assert ["image_remove", row["image"]] in center.calls()
    assert mortal(center.ok, "GET", "/v1/jobs")["total"] == 0
    assert (row["test"] is not None) == kind.startswith("test") and not list((center.state / "tests").glob("*"))
    assert not (center.script / "misuse").exists()
    return mortal.deaths


@pytest.mark.parametrize("kind", ["once", "incremental", "test_only", "test_and_migrate"])
def test_killed_at_every_write(fresh, kind):
    whole, at = int(os.environ.get("REPLANT_LOOPS", "0")), 0
    dice = random.Random(SEED)
    print(f"REPLANT_SEED={SEED}")
    while True:
        at += 1 if whole else dice.randrange(5, 25)
        center = fresh()
        center.play("die", "at", str(at))
        deaths = life(center, kind)
        print(f"write {at}: {deaths} deaths")
        assert deaths <= 1
        center.stop()
        if not deaths:
            break
    assert at > 20, "a life has more writes than that"
