"""A random walk of what people, agents, clocks and crashes do to a center. Whatever comes: each job goes only where the requirements let
it, no source has two unfinished ones, and what the provider holds is what the center knows of; at the end nothing is left.
REPLANT_SEED=N repeats a walk, as far as threads do; REPLANT_STEPS=N its length, REPLANT_LOOPS=200 walks for minutes."""

import contextlib
import http.client
import json
import os
import random
import sqlite3
import ssl
import time

import pytest

from harness import wait_for

LOST = (OSError, http.client.HTTPException, ssl.SSLError)
SEED = int(os.environ.get("REPLANT_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
LOOPS = int(os.environ.get("REPLANT_LOOPS", "0"))
STEPS = int(os.environ.get("REPLANT_STEPS", "0")) or 250
WALKS = max(4, LOOPS // 2)
SOURCES = 4
DAY = 86400
CALLS = ("capacity", "receive", "convert", "image_create", "image_check", "test_boot", "copy_boot", "image_export", "image_remove", "trim", "job_remove")
DELAYS = {"receive": 0.02, "convert": 0.08, "image_create": 0.05, "test_boot": 0.06, "copy_boot": 0.06, "image_export": 0.05, "image_remove": 0.04, "job_remove": 0.04}
OVER = ("finished", "deleting")

# Where a job may go next, and what a person may do to it where it is: the requirements said once more, not what src/job says.
BUSY = {"preparing": {"syncing", "in_error"}, "syncing": {"processing", "stopped", "in_error"},
        "processing": {"cleaning", "waiting", "in_error"}, "cleaning": {"finished", "ready", "preparing", "in_error"}}
REST = {"ready": {"preparing", "expired", "deleting"}, "stopped": {"preparing", "expired", "deleting"},
        "in_error": {"preparing", "processing", "cleaning", "expired", "deleting"}, "finished": {"deleting"},
        "waiting": {"preparing", "cleaning", "stopped", "deleting"}, "expired": {"deleting"}, "deleting": set()}
NEXT = {**BUSY, **REST}
# Where a migration test goes otherwise, and a migration never.
TESTED = {("cleaning", "ready"): "test_only", ("cleaning", "preparing"): "test_and_migrate", ("cleaning", "finished"): None,
          ("processing", "waiting"): None}
MAY = {"start": {"ready", "stopped", "in_error", "waiting"}, "run": {"ready", "stopped", "in_error", "waiting"},
       "stop": {"syncing", "waiting"}, "cutover": {"waiting"}, "delete": set(REST) - {"deleting"}}


def place(row):
    return row["stage"] if row["state"] == "running" else row["state"]


class Jobs:
    """What became of every job, by the events that were written with each change."""

    def __init__(self, center):
        self.path, self.last = center.state / "replant.db", 0
        self.places, self.sources, self.made, self.events, self.testing = {}, {}, [], [], {}
        self.gone, self.images_gone = set(), set()

    def query(self, sql, *values):
        with contextlib.closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True, timeout=20)) as db:
            return db.execute(sql, values).fetchall()

    def read(self):
        for number, kind, data in self.query("SELECT id, type, data FROM events WHERE id > ? ORDER BY id", self.last):
            assert number == self.last + 1, "an event is missing"
            self.last = number
            row = json.loads(data)
            if kind in ("job.created", "job.updated"):
                self.changed(kind, row)
            elif kind == "job.deleted":
                assert self.places.pop(row["id"]) == "deleting", f"{row['id']} went without being deleted"
                self.gone.add(row["id"])
            elif kind == "image.deleted":
                self.images_gone.add(row["id"])

    def changed(self, kind, row):
        job, now, before = row["id"], place(row), self.places.get(row["id"])
        self.events.append((job, now))
        if kind == "job.created":
            assert before is None and now == "ready", (job, before, now)
            self.made.append(job)
        elif now != before:
            assert now in NEXT[before], f"{job} went from {before} to {now}"
            assert TESTED.get((before, now), self.testing[job]) == self.testing[job], f"{job}, {self.testing[job]}, went from {before} to {now}"
        if now in ("waiting", "finished"):
            assert row["runs_done"] == row["number"], row
        assert (row["error"] is not None) == (now == "in_error"), row
        assert now != "waiting" or (row["parameters"]["incremental"] and not row["last"]), f"{job} waits for no run"
        assert now != "finished" or row["number"] > 0, f"{job} has finished and never migrated"
        self.places[job], self.sources[job], self.testing[job] = now, row["source"], row["testing"]
        busy = [j for j, p in self.places.items() if p not in OVER and self.sources[j] == row["source"]]
        assert len(busy) <= 1, f"{row['source']} has {busy}"


class Mind:
    """An agent that is sometimes away, forgetful or wrong."""

    def __init__(self, agent):
        self.agent, self.old, self.away = agent, [], 0.0

    @property
    def source(self):
        return self.agent.source


class Walk:
    def __init__(self, center, dice):
        self.center, self.dice, self.jobs = center, dice, Jobs(center)
        self.minds, self.images, self.exports, self.asked_away, self.used = [], [], [], set(), set()
        self.played, self.deaths, self.log, self.tokens = set(), 0, [], 0

    # ---- calls that may meet a dying center ----
    def again(self, call, *args, **kw):
        while True:
            got = self.once(call, *args, **kw)
            if got is not None:
                return got

    def once(self, call, *args, **kw):
        """None: the center died; nobody knows whether it was done."""
        try:
            return call(*args, **kw)
        except LOST:
            wait_for("the center's death", lambda: self.center.process.poll() is not None)
            assert self.center.process.returncode == -9, (self.center.process.returncode, self.center.tail())
            self.deaths += 1
            self.no_death()
            self.center.process.stdout.close()
            self.center.start()
            return None

    def call(self, method, path, body=None, **kw):
        got = self.once(self.center.call, method, path, body, **kw)
        self.log.append(f"{method} {path} {json.dumps(body)}: {got.status if got else 'died'}")
        if got and got.status >= 500:  # what the provider said to a removal that was waited for
            assert method == "DELETE" and "/images/" in path and "image_remove" in self.played, (got, self.center.tail())
        return got

    def one_of(self, things):
        return self.dice.choice(things) if things else None

    # ---- what people do ----
    def create(self):
        mind = self.one_of(self.minds)
        if not mind:
            return
        incremental = self.dice.random() < 0.5
        parameters = {"incremental": incremental, "max_images": self.dice.randint(1, 3), "interval_hours": self.dice.randint(1, 3),
                      "test_boot": self.dice.random() < 0.7}
        body = {"source": mind.source, "parameters": parameters, "execution": self.dice.choice(["create_only", "migrate_now", "migrate_now", "test_only", "test_and_migrate"])}
        if self.dice.random() < 0.3:
            self.tokens += 1
            body["client_token"] = f"t{self.tokens}"
        got = self.call("POST", "/v1/jobs", body)
        if got is None and "client_token" in body:
            got = self.call("POST", "/v1/jobs", body)
        if got is None or (got.status == 409 and got.code == "source_in_use"):
            return
        gone = got.status == 400 and not self.jobs.query("SELECT 1 FROM sources WHERE id = ?", mind.source)
        assert got.status in (200, 201) or gone, got

    def act(self):
        job, verb = self.one_of(self.jobs.made[-8:]), self.dice.choice(["start", "start", "start", "run", "stop", "cutover", "cutover", "delete"])
        if not job:
            return
        self.jobs.read()
        before, seen = self.jobs.places.get(job), len(self.jobs.events)
        image = self.jobs.query("SELECT i.deleting FROM jobs j LEFT JOIN images i ON i.id = j.image WHERE j.id = ?", job)
        body = {"sync": self.dice.random() < 0.5} if verb == "cutover" else {}
        if verb == "start" and self.dice.random() < 0.4:
            body["test"] = self.dice.choice(["none", "only", "migrate"])
        got = self.call("DELETE", f"/v1/jobs/{job}") if verb == "delete" else self.call("POST", f"/v1/jobs/{job}/{verb}", body)
        if got is None:
            return
        self.jobs.read()
        moved = any(j == job for j, _ in self.jobs.events[seen:])
        if before is None:
            assert got.status == 404, (verb, got)
        elif not moved and job not in self.jobs.gone:
            # Nothing happened, so it must have been refused, and rightly.
            assert got.status == 409, (verb, before, got)
            image_in_the_way = image and image[0][0] != 0 and verb in ("start", "run", "cutover")
            # A test goes before the first migration, or not at all.
            too_late = body.get("test") in ("only", "migrate")
            assert before not in MAY[verb] or image_in_the_way or too_late, f"'{verb}' was refused to a job that is {before}: {got}"
        else:
            assert got.status in (202, 409, 404), got

    def change(self):
        job = self.one_of(self.jobs.made[-8:])
        body = self.dice.choice([
            {"parameters": {"rate_mbit": self.dice.randint(0, 50)}}, {"parameters": {"max_images": self.dice.randint(1, 3)}},
            {"parameters": {"interval_hours": self.dice.randint(1, 5)}}, {"parameters": {"test_boot": self.dice.random() < 0.5}},
            {"name": f"n{self.dice.randint(0, 99)}"}, {"tags": {"a": "b"}}, {"image_name": "web"}, {"valid_days": self.dice.randint(7, 90)}])
        got = job and self.call("PATCH", f"/v1/jobs/{job}", body)
        if got:
            assert got.status in (200, 404) or (got.status == 409 and got.code == "invalid_state"), got
            assert got.status != 404 or job not in self.jobs.places or self.jobs.places[job] == "deleting", got

    def look_for_images(self):
        self.images = [i for i, in self.jobs.query("SELECT id FROM images")]
        self.exports = [x for x, in self.jobs.query("SELECT id FROM exports")]

    def remove_image(self):
        self.look_for_images()
        image = self.one_of(self.images)
        if image:
            self.asked_away.add(image)
            got = self.call("DELETE", f"/v1/images/{image}")
            assert got is None or got.status in (204, 202, 404, 409, 500, 507), got

    def use_image(self):
        self.look_for_images()
        image = self.one_of(self.images)
        if not image:
            return
        self.used.add(image)
        if self.dice.random() < 0.5:
            got = self.call("POST", f"/v1/images/{image}/boot", {})
        else:
            got = self.call("POST", f"/v1/images/{image}/exports", {"format": self.dice.choice(["raw", "qcow2"])})
        assert got is None or got.status in (202, 404, 409), got

    def remove_export(self):
        self.look_for_images()
        export = self.one_of(self.exports)
        got = export and self.call("DELETE", f"/v1/exports/{export}")
        assert not got or got.status in (204, 404), got

    def remove_source(self):
        mind = self.one_of(self.minds)
        if not mind or self.dice.random() < 0.6:
            return
        self.jobs.read()
        got = self.call("DELETE", f"/v1/sources/{mind.source}")
        if got is None:
            return
        assert got.status in (204, 409, 404), got
        if got.status != 409:
            assert not [j for j, p in self.jobs.places.items() if self.jobs.sources[j] == mind.source and p not in OVER], mind.source
            self.minds.remove(mind)

    # ---- what agents do ----
    def enroll(self):
        if len(self.minds) < SOURCES:
            self.minds.append(Mind(self.again(self.center.agent)))

    def sync(self, mind, task=None):
        body = {"agent_version": "0.1.0", "boot_id": mind.agent.boot, **({"task": task} if task else {})}
        got = self.once(self.center.post, "/v1/agent/sync", body, token=mind.agent.secret)
        assert got is None or got.status in (200, 401), got
        if got and got.status == 401:  # deleted with an answer that was lost
            assert mind not in self.minds or not self.jobs.query("SELECT 1 FROM sources WHERE id = ?", mind.source)
            self.minds = [m for m in self.minds if m is not mind]
        return got.json if got and got.status == 200 else None

    def agent(self):
        mind = self.one_of(self.minds)
        if not mind or mind.away > time.monotonic():
            return
        answer = self.sync(mind)
        task = answer and answer["task"]
        if not task:
            return
        run, luck = task["run"], self.dice.random()
        mind.old.append(run)
        if luck < 0.55:
            self.center.commit(run)
            self.sync(mind, {"run": run, "state": "done", "progress": {"phase": "done", "freeze_ms": 5}, "result": {"notes": []}})
        elif luck < 0.75:
            self.sync(mind, {"run": run, "state": "sending", "progress": {"phase": "full", "bytes_total": 100, "bytes_done": self.dice.randint(0, 120)}})
        elif luck < 0.9:
            self.sync(mind, {"run": run, "state": "failed", "error": {"code": "cut", "message": "x", "temporary": self.dice.random() < 0.7}})
        elif luck < 0.95:
            self.center.commit(run)  # and is never heard of with it
        else:
            mind.away = time.monotonic() + self.dice.uniform(0.2, 2)

    def old_news(self):
        mind = self.one_of(self.minds)
        if mind:
            run = self.dice.choice(mind.old + [f"run-{self.dice.getrandbits(64):016x}"])
            self.sync(mind, {"run": run, "state": self.dice.choice(["sending", "done", "failed"]), "result": {"notes": ["late"]}})

    # ---- what goes wrong, and time ----
    def provider(self):
        name, what = self.dice.choice(CALLS + ("image_create", "convert")), self.dice.choice(["fail", "fail", "delay", "hold"])
        if name == "job_remove" or name == "image_remove":
            what = "fail" if self.dice.random() < 0.3 else "delay"
        self.center.play(name, what, {"fail": self.dice.choice(["no_space: full", "broken"]), "hold": ""}.get(what, "0.4"))
        self.played.add(name)
        self.log.append(f"play {name}.{what}")

    def heal(self):
        for name in CALLS:
            for what in ("fail", "hold"):
                with contextlib.suppress(FileNotFoundError):
                    self.center.unplay(name, what)
            self.center.play(name, "delay", str(DELAYS.get(name, 0)))
        self.log.append("heal")

    def crash(self):
        luck = self.dice.random()
        self.no_death()
        if luck < 0.5:
            self.center.play("die", "at", str(self.dice.randint(1, 30)))
        elif luck < 0.8:
            self.center.restart()
            self.deaths += 1
        else:
            self.heal()  # a call that knows of no end is waited for
            assert self.center.stop() in (0, -9), self.center.tail()
            self.center.start()
        self.log.append("crash")

    def no_death(self):
        with contextlib.suppress(FileNotFoundError):
            self.center.unplay("die", "at")

    def time_passes(self):
        """All that could expire does, and what has expired goes."""
        if self.dice.random() < 0.5:
            return
        with contextlib.closing(sqlite3.connect(self.jobs.path, timeout=20)) as db:
            db.execute("UPDATE jobs SET expires = expires - ? WHERE state IN ('ready', 'stopped', 'in_error', 'expired')", (98 * DAY,))
            db.commit()
        self.log.append("98 days pass")

    def wait(self):
        time.sleep(self.dice.uniform(0, 0.3))

    # ---- what always holds ----
    def world(self, kind):
        folder = self.center.script / "world"
        found = folder.iterdir() if folder.exists() else ()
        # Not what a death left of a file that was being written.
        return {p.name.split(".", 1)[1]: p for p in found if p.name.startswith(kind + ".") and ".tmp-" not in p.name}

    def strays(self):
        """What one side has and the other doesn't know: two looks, between which things may have moved."""
        images, copies = self.world("image"), self.world("copy")
        with contextlib.closing(sqlite3.connect(f"file:{self.jobs.path}?mode=ro", uri=True, timeout=20)) as db:
            db.execute("BEGIN")
            rows = {i: deleting for i, deleting in db.execute("SELECT id, deleting FROM images")}
            jobs = list(db.execute("SELECT id, state, image_pending FROM jobs"))
        pending = {p for _, _, p in jobs}
        out = [f"the provider holds {i}, which nobody knows" for i in images if i not in rows and i not in pending]
        out += [f"{i} is listed and not there" for i, deleting in rows.items() if not deleting and i not in images]
        holding = {j for j, state, _ in jobs if state not in ("ready", "finished")}
        return out + [f"the provider holds a copy of {j}, which has no use for it" for j in copies if j not in holding]

    def invariants(self):
        self.jobs.read()
        misuse = self.center.script / "misuse"
        assert not misuse.exists(), misuse.read_text()
        seen = set(self.strays())
        if seen:
            end = time.monotonic() + 20
            while seen and time.monotonic() < end:
                time.sleep(0.02)
                seen &= set(self.strays())
                if self.center.process.poll() is not None:
                    self.again(self.center.get, "/v1/version")
            assert not seen, seen
        for image in self.jobs.images_gone - self.asked_away:
            self.asked_away.add(image)
            assert self.superseded(image), f"{image} went and nobody wanted that"

    def owners(self):
        """Of each image that was ever begun, in that order: its job."""
        made = self.center.script / "made"
        return dict(line.split() for line in made.read_text().splitlines()) if made.exists() else {}

    def superseded(self, image):
        """Images that nobody deleted went for newer ones of the same incremental job, and for no other reason."""
        owners = self.owners()
        return list(owners.values())[list(owners).index(image) + 1:].count(owners[image]) > 0

    # ---- the end ----
    def bring_to_an_end(self):
        """Everybody behaves; half the jobs end well, the rest are deleted where they are."""
        self.heal()
        self.no_death()
        self.jobs.read()
        wanted = {job: self.dice.random() < 0.6 for job in self.jobs.places}

        def turn():
            for mind in list(self.minds):
                self.finish_task(mind)
            self.jobs.read()
            left = [j for j, p in self.jobs.places.items() if p not in ("finished", "expired") and not self.nudge(j, p, wanted.get(j, True))]
            return not left

        wait_for("all jobs' ends", turn, 90)

    def finish_task(self, mind):
        answer = self.sync(mind)
        if answer and answer["task"]:
            run = answer["task"]["run"]
            self.center.commit(run)
            self.sync(mind, {"run": run, "state": "done", "result": {"notes": []}})

    def nudge(self, job, where, well):
        """True when there is nothing to wait for."""
        if where == "deleting" or where in BUSY:
            return False
        if not well:
            self.call("DELETE", f"/v1/jobs/{job}")
        elif where == "waiting":
            self.call("POST", f"/v1/jobs/{job}/cutover", {"sync": True})
        else:
            self.call("POST", f"/v1/jobs/{job}/start", {})
        return False

    def check_finished(self):
        for job, where in self.jobs.places.items():
            if where != "finished":
                continue
            row = self.again(self.center.job, job)
            images = [i["id"] for i in self.again(self.center.ok, "GET", f"/v1/images?job={job}")["items"] if not i["deleting"]]
            mine = [i for i, owner in self.owners().items() if owner == job]
            incremental = row["parameters"]["incremental"]
            assert mine and row["image"] in mine, row
            # Its last image, unless somebody deleted that one; of an incremental job some before it.
            assert row["image"] in images or row["image"] in self.asked_away, (row, images)
            assert set(images) <= set(mine) and (incremental or set(images) <= {row["image"]}), (images, mine)
            assert len(set(images) - self.used) <= (3 if incremental else 1), images  # what is in use is left alone
            done = [r["number"] for r in row["runs"] if r["state"] == "done" and r["number"] > 0]  # 0: tests
            assert len(done) == len(set(done)) and row["number"] in done, row["runs"]

    def delete_everything(self):
        def gone(path):
            got = self.call("DELETE", path)
            return got is not None and self.again(self.center.get, path).status == 404

        self.look_for_images()
        for export in self.exports:
            wait_for(export, lambda: gone(f"/v1/exports/{export}"))
        for noun in ("images", "jobs", "sources"):
            for row, in self.jobs.query(f"SELECT id FROM {noun}"):
                self.asked_away.add(row)
                wait_for(row, lambda: gone(f"/v1/{noun}/{row}"), 40)

    def check_nothing_left(self):
        def left():
            pid = str(self.center.process.pid)
            files = [str(p) for place in ("exports", "tests") for p in (self.center.state / place).glob("*")]
            receivers = [r for r, p in self.world("receiver").items() if p.exists() and p.read_text() == pid]
            return [*self.world("image"), *self.world("copy"), *receivers, *files]

        wait_for("nothing left", lambda: not left() or None, 20)
        for table in ("jobs", "runs", "images", "exports", "sources"):
            assert self.jobs.query(f"SELECT count(*) FROM {table}") == [(0,)], table

    def run(self):
        self.heal()
        ways = [(self.create, 16), (self.act, 22), (self.agent, 40), (self.old_news, 3), (self.change, 6), (self.remove_image, 5),
                (self.use_image, 6), (self.remove_export, 4), (self.remove_source, 3), (self.enroll, 8), (self.provider, 6),
                (self.heal, 8), (self.crash, 4), (self.time_passes, 2), (self.wait, 8)]
        for _ in range(STEPS):
            self.dice.choices([w for w, _ in ways], [n for _, n in ways])[0]()
            self.invariants()
        self.bring_to_an_end()
        self.invariants()
        self.check_finished()
        self.delete_everything()
        self.check_nothing_left()


@pytest.mark.parametrize("number", range(WALKS))
def test_walk(fresh, number):
    seed = SEED + number
    print(f"REPLANT_SEED={seed}")
    walk = Walk(fresh(HEARTBEAT=0.3, HOUR=2), random.Random(seed))
    (walk.center.script / "screen.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    try:
        walk.run()
    except BaseException:
        print("\n".join(walk.log[-60:]), walk.center.tail(), sep="\n")
        raise
    finally:
        walk.heal()
        walk.no_death()
        if walk.center.process.poll() is not None:
            walk.center.start()
    places = [p for _, p in walk.jobs.events]
    print(f"{len(set(j for j, _ in walk.jobs.events))} jobs, {places.count('finished')} finished, {walk.deaths} deaths, "
          f"{len(set(places))} places seen")
    assert len(set(places)) >= 5, "a walk that goes nowhere shows nothing"
