"""Incremental jobs: runs one after the other, by schedule and by hand, the images that stay, the cut-over. An hour of a
schedule lasts as long here as the center is told ($HOUR)."""

import time

import pytest

from harness import wait_for


def job_of(center, agent, **parameters):
    return center.started_job(agent.source, name="web", parameters={"incremental": True, "test_boot": False, **parameters})


def one_run(center, agent, job, last=None):
    """Plays one run; the image it gave."""
    task = agent.wait_task(other_than=last)
    agent.report(task["run"], progress={"phase": "full", "bytes_total": 100, "bytes_done": 50})
    center.commit(task["run"])
    agent.report(task["run"], "done", result={"notes": []})
    row = wait_for("the run's end", lambda: (lambda j: j if j["state"] in ("waiting", "finished") and j["run"] == task["run"]
                                             else None)(center.job(job)))
    return task, row


def number(center, run):
    return int((center.script / f"number.{run}").read_text())


def images(center, job):
    return {i["name"]: i["id"] for i in center.ok("GET", f"/v1/images?job={job}")["items"]}


def test_runs_by_hand_and_cut_over(center):
    agent = center.agent()
    job = job_of(center, agent, max_images=2)
    runs, before = [], time.time()
    for i in range(1, 4):
        if i > 1:
            answer = center.post(f"/v1/jobs/{job}/run")
            assert answer.status == 202 and answer.json["state"] == "running" and answer.json["number"] == i
            # The last image is still there to use, and no old figures are shown.
            assert answer.json["image"] == row["image"] and answer.json["next_run"] is None
        task, row = one_run(center, agent, job, runs[-1] if runs else None)
        runs.append(task["run"])
        assert task["parameters"]["max_freeze"] == 1
        assert number(center, task["run"]) == i
        assert (row["state"], row["stage"], row["number"], row["runs_done"], row["error"]) == ("waiting", None, i, i, None)
        assert before + 24 * 3600 - 1 < row["next_run"] < time.time() + 24 * 3600 + 1
        assert center.ok("GET", f"/v1/images/{row['image']}")["name"] == f"web-run{i}"
    assert sorted(images(center, job)) == ["web-run2", "web-run3"]
    listed = center.ok("GET", f"/v1/jobs/{job}/runs")
    assert listed["total"] == 3
    assert [(r["id"], r["number"], r["state"], r["trigger"]) for r in listed["items"]] == [
        (runs[i], i + 1, "done", "manual") for i in (2, 1, 0)]
    assert listed["items"][0]["image"] == row["image"] and listed["items"][0]["ended"]
    assert center.ok("GET", f"/v1/jobs/{job}/runs?limit=1&offset=1")["items"][0]["number"] == 2
    assert center.job(job)["runs"][0]["number"] == 3
    wait_for("layers looked after", lambda: center.calls("trim"))

    # One more, and the end.
    assert center.post(f"/v1/jobs/{job}/cutover", {"sync": 1}).status == 400
    answer = center.post(f"/v1/jobs/{job}/cutover", {"sync": True})
    assert answer.status == 202 and answer.json["state"] == "running" and answer.json["last"] is True
    task, row = one_run(center, agent, job, runs[-1])
    row = center.wait_job(job)
    assert row["runs"][0]["trigger"] == "cut_over" and row["number"] == row["runs_done"] == 4 and row["next_run"] is None
    assert center.ok("GET", f"/v1/images/{row['image']}")["name"] == "web-run4"
    assert [c[1] for c in center.calls("job_remove")] == [job]
    assert center.post(f"/v1/jobs/{job}/run").status == 409
    assert center.ok("GET", f"/v1/sources/{agent.source}")["state"] == "available"


def test_cut_over_without_a_last_run(center):
    agent = center.agent()
    job = job_of(center, agent)
    assert center.post(f"/v1/jobs/{job}/cutover", {"sync": False}).status == 409
    task, row = one_run(center, agent, job)
    calls = len(center.calls("receive"))
    assert center.post(f"/v1/jobs/{job}/cutover", {"sync": False}).status == 202
    done = center.wait_job(job)
    assert done["image"] == row["image"] and done["runs_done"] == 1 and len(center.calls("receive")) == calls


def test_cut_over_waits_for_the_removal_of_the_image(center):
    agent = center.agent()
    job = job_of(center, agent)
    task, row = one_run(center, agent, job)
    center.play("image_remove", "hold")
    assert center.call("DELETE", f"/v1/images/{row['image']}").status == 202
    got = center.post(f"/v1/jobs/{job}/cutover", {"sync": False})
    assert got.status == 409 and "being deleted" in got.json["error"]["message"]
    # One that makes a new image needs it not.
    assert center.post(f"/v1/jobs/{job}/cutover", {"sync": True}).status == 202
    center.unplay("image_remove", "hold")
    wait_for("gone", lambda: center.get(f"/v1/images/{row['image']}").status == 404)
    one_run(center, agent, job, task["run"])
    assert center.wait_job(job)["image"] not in (None, row["image"])


def test_cut_over_needs_an_image(center):
    agent = center.agent()
    job = job_of(center, agent)
    task, row = one_run(center, agent, job)
    center.ok("DELETE", f"/v1/images/{row['image']}")
    got = center.post(f"/v1/jobs/{job}/cutover", {"sync": False})
    assert got.status == 409 and "last synchronization" in got.json["error"]["message"]
    assert center.job(job)["state"] == "waiting"
    assert center.post(f"/v1/jobs/{job}/cutover").status == 202
    one_run(center, agent, job, task["run"])
    assert center.wait_job(job)["image"]


def test_the_schedule(fresh):
    center = fresh(HOUR=1)
    agent = center.agent()
    job = job_of(center, agent, interval_hours=2, max_images=1)
    task, row = one_run(center, agent, job)
    ended = row["runs"][0]["ended"]
    assert abs(row["next_run"] - ended - 2) < 0.1
    task, row = one_run(center, agent, job, task["run"])
    second = row["runs"][0]
    assert second["trigger"] == "schedule" and 2 <= second["started"] - ended < 5
    # Stopped, it stays so; started, it runs at once.
    assert center.post(f"/v1/jobs/{job}/stop").json["state"] == "stopped"
    assert center.job(job)["next_run"] is None
    time.sleep(2.5)
    assert center.job(job)["state"] == "stopped" and center.job(job)["number"] == 2
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    task, row = one_run(center, agent, job, task["run"])
    assert row["number"] == 3 and row["runs"][0]["trigger"] == "manual"
    # Another interval counts from the end of the run before.
    changed = center.ok("PATCH", f"/v1/jobs/{job}", {"parameters": {"interval_hours": 168}})
    assert abs(changed["next_run"] - row["runs"][0]["ended"] - 168) < 0.1
    center.restart()
    assert center.job(job)["next_run"] == changed["next_run"]
    center.ok("PATCH", f"/v1/jobs/{job}", {"parameters": {"interval_hours": 1}})
    one_run(center, agent, job, task["run"])
    assert sorted(images(center, job)) == ["web-run4"]


def test_the_schedule_comes_too_late(fresh):
    """A person stopped the job when it was listed as due, and not started yet: the store is held in between."""
    center = fresh(HOUR=1, HEARTBEAT=60)
    agent = center.agent()
    job = job_of(center, agent, interval_hours=2)
    task, row = one_run(center, agent, job)
    time.sleep(max(0, row["next_run"] - time.time() - 0.7))
    with center.database() as db:
        db.begin()
        time.sleep(max(0, row["next_run"] - time.time()) + 1)
        assert db.row("SELECT state FROM jobs WHERE id = ?", (job,)) == ("waiting",)
        db.execute("UPDATE jobs SET state = 'stopped', next_run = 0 WHERE id = ?", (job,))
        db.execute("COMMIT")
    time.sleep(0.5)
    stopped = center.job(job)
    assert (stopped["state"], stopped["number"], stopped["next_run"]) == ("stopped", 1, None)


def test_a_run_that_fails_is_tried_again_next_time(fresh):
    center = fresh(HOUR=1, PATIENCE=1, ABSENCE=1)
    agent = center.agent()
    job = job_of(center, agent, interval_hours=1)
    task, row = one_run(center, agent, job)
    # Nobody sends in the second run.
    failed = center.wait_job(job, "in_error", timeout=30)
    assert failed["error"]["temporary"] and failed["number"] == 2 and failed["runs_done"] == 1 and failed["next_run"]
    task, row = one_run(center, agent, job, failed["run"])
    assert row["number"] == 2 and row["runs_done"] == 2
    assert {r["state"] for r in row["runs"] if r["number"] == 2} == {"failed", "done"}


def test_a_first_run_that_fails_waits_for_a_person(fresh):
    center = fresh(HOUR=0.5, PATIENCE=0.5, ABSENCE=0.5)
    agent = center.agent()
    job = job_of(center, agent, interval_hours=1)
    assert center.wait_job(job, "in_error", timeout=30)["next_run"] is None


def test_images_in_use_stay(center):
    agent = center.agent()
    job = job_of(center, agent, max_images=1)
    task, row = one_run(center, agent, job)
    center.play("image_export", "hold")
    export = center.ok("POST", f"/v1/images/{row['image']}/exports", {"format": "raw"})["id"]
    for i in (2, 3):
        center.ok("POST", f"/v1/jobs/{job}/run", {})
        task, row = one_run(center, agent, job, task["run"])
    # The oldest is in use, so the next oldest went.
    assert sorted(images(center, job)) == ["web-run1", "web-run3"]
    center.unplay("image_export", "hold")
    wait_for("export", lambda: center.ok("GET", f"/v1/exports/{export}")["state"] == "finished")
    center.ok("DELETE", f"/v1/exports/{export}")
    center.ok("POST", f"/v1/jobs/{job}/run", {})
    one_run(center, agent, job, task["run"])
    assert sorted(images(center, job)) == ["web-run4"]


def test_more_images_are_kept_from_now_on(center):
    """Said while the run that would remove one is nearly over."""
    agent = center.agent()
    job = job_of(center, agent, max_images=1)
    task, row = one_run(center, agent, job)
    center.ok("POST", f"/v1/jobs/{job}/run", {})
    calls = len(center.calls("convert"))
    center.play("convert", "hold")
    center.commit(agent.wait_task(other_than=task["run"])["run"])
    wait_for("processing", lambda: len(center.calls("convert")) > calls)
    center.ok("PATCH", f"/v1/jobs/{job}", {"parameters": {"max_images": 2}})
    center.unplay("convert", "hold")
    center.wait_job(job, "waiting")
    assert sorted(images(center, job)) == ["web-run1", "web-run2"]


def test_an_image_that_goes_slowly_counts_no_more(center):
    """Else one too many would go."""
    agent = center.agent()
    job = job_of(center, agent, max_images=2)
    task, row = None, None
    before = len(center.calls("image_remove"))
    center.play("image_remove", "hold")
    for i in range(1, 5):
        if i > 1:
            center.ok("POST", f"/v1/jobs/{job}/run", {})
        task, row = one_run(center, agent, job, task and task["run"])
    there = images(center, job)
    assert sorted(there) == [f"web-run{i}" for i in range(1, 5)]
    assert [c[1] for c in center.calls("image_remove")[before:]] == [there["web-run1"], there["web-run2"]]
    center.unplay("image_remove", "hold")
    wait_for("two", lambda: sorted(images(center, job)) == ["web-run3", "web-run4"])


def test_what_may_change_when(center):
    agent = center.agent()
    job = center.new_job(agent.source, parameters={"incremental": True})
    for field, value in (("interval_hours", 0), ("interval_hours", 169), ("max_images", 0), ("max_images", 11), ("max_freeze", 0),
                         ("incremental", 1)):
        assert center.call("PATCH", f"/v1/jobs/{job}", {"parameters": {field: value}}).status == 400
    center.ok("PATCH", f"/v1/jobs/{job}", {"parameters": {"incremental": False}})
    center.ok("PATCH", f"/v1/jobs/{job}", {"parameters": {"incremental": True, "test_boot": False}})
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    agent.wait_task()
    assert center.call("PATCH", f"/v1/jobs/{job}", {"parameters": {"incremental": False}}).status == 409
    center.ok("PATCH", f"/v1/jobs/{job}", {"parameters": {"interval_hours": 5, "max_images": 9, "rate_mbit": 7}})
    # The agent that is sending hears of the limit with its next sync.
    assert agent.sync()["task"]["parameters"]["rate_mbit"] == 7
    task, row = one_run(center, agent, job)
    center.ok("PATCH", f"/v1/jobs/{job}", {"image_name": "other", "parameters": {"compression": 5, "max_freeze": 3}})
    assert center.call("PATCH", f"/v1/jobs/{job}", {"parameters": {"incremental": False}}).status == 409
    center.ok("POST", f"/v1/jobs/{job}/run", {})
    task, row = one_run(center, agent, job, task["run"])
    assert task["parameters"]["compression"] == 5 and task["parameters"]["max_freeze"] == 3
    assert center.ok("GET", f"/v1/images/{row['image']}")["name"] == "other-run2"


@pytest.mark.parametrize("stage", ["receive", "convert", "image_create", "image_remove"])
def test_killed_in_a_later_run(fresh, stage):
    center = fresh()
    agent = center.agent()
    job = job_of(center, agent, max_images=1)
    task, row = one_run(center, agent, job)
    center.ok("POST", f"/v1/jobs/{job}/run", {})
    center.play(stage, "hold")
    if stage != "receive":
        task = agent.wait_task(other_than=task["run"])
        center.commit(task["run"])
    calls = len(center.calls(stage))
    wait_for(stage, lambda: len(center.calls(stage)) > calls or center.calls(stage)[-1:] and stage == "receive")
    center.kill()
    center.unplay(stage, "hold")
    center.start()
    if stage == "receive":
        task, row = one_run(center, agent, job, task["run"])
    row = center.wait_job(job, "waiting")
    assert row["number"] == row["runs_done"] == 2
    wait_for("one image", lambda: list(images(center, job)) == ["web-run2"])


def test_deleted_while_it_waits(center):
    agent = center.agent()
    job = job_of(center, agent)
    task, row = one_run(center, agent, job)
    center.ok("DELETE", f"/v1/jobs/{job}")
    wait_for("gone", lambda: center.get(f"/v1/jobs/{job}").status == 404)
    assert center.get(f"/v1/jobs/{job}/runs").status == 404
    assert center.ok("GET", f"/v1/images/{row['image']}")["job"] == job
    assert ["job_remove", job] in center.calls()


def test_trimming_that_fails(fresh):
    """It isn't tried again with every turn of the clock, but at once when there is news."""
    center = fresh()
    wait_for("at the start", lambda: center.calls("trim"))
    agent = center.agent()
    job = job_of(center, agent, max_images=1)
    task, row = one_run(center, agent, job)
    center.play("trim", "fail", "no_space: full")
    center.ok("DELETE", f"/v1/images/{row['image']}")
    wait_for("failed", lambda: "full; trying again later" in center.tail())
    before = len(center.calls("trim"))
    time.sleep(25)
    assert len(center.calls("trim")) == before
    center.ok("POST", f"/v1/jobs/{job}/run", {})
    task, row = one_run(center, agent, job, task["run"])
    before = len(center.calls("trim"))
    center.ok("DELETE", f"/v1/images/{row['image']}")
    wait_for("at once", lambda: len(center.calls("trim")) > before, 10)


def test_trimming(fresh):
    """Layers are looked after at the start, behind each removal, and again while something is in use; what an image then
    stands on is told."""
    center = fresh()
    wait_for("at the start", lambda: center.calls("trim"))
    agent = center.agent()
    job = job_of(center, agent, max_images=1)
    task, row = one_run(center, agent, job)
    first = row["image"]
    center.ok("POST", f"/v1/jobs/{job}/run", {})
    before = len(center.calls("trim"))
    task, row = one_run(center, agent, job, task["run"])
    wait_for("behind the removal", lambda: len(center.calls("trim")) > before)
    assert ["image_remove", first] in center.calls()
    center.play("trim", "left")
    center.play("trim", "changed", row["image"])
    before = len(center.calls("trim"))
    center.ok("POST", f"/v1/jobs/{job}/run", {})
    task, row2 = one_run(center, agent, job, task["run"])
    # Twice and more: it goes on asking while something is left.
    wait_for("again", lambda: len(center.calls("trim")) > before + 1, 40)
    center.unplay("trim", "left")
    center.play("trim", "changed", row2["image"])
    wait_for("the image's manifest", lambda: center.ok("GET", f"/v1/images/{row2['image']}")["manifest"]["disks"] ==
             [{"base": "elsewhere", "size": 5}], 40)
    assert center.ok("GET", f"/v1/images/{row2['image']}")["size"] == 5
