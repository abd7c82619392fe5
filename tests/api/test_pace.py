"""How far a stage is whose work can't be counted: percent that never falls, time left learnt from jobs before."""

import json
import time

from harness import wait_for


def into_processing(center, agent, **body):
    job = center.started_job(agent.source, **body)
    agent.send_all()
    return job


def steps_until(center, job, text):
    """Every step seen of the stage processing, until its text contains `text`."""
    seen = []

    def check():
        row = center.job(job)
        if row["stage"] == "processing" and row["step"] and "percent" in row["step"]:
            seen.append(row["step"])
        return any(text in (step["text"] or "") for step in seen)
    wait_for(text, check)
    return seen


def test_percent_and_time_left(fresh):
    center = fresh()
    agent = center.agent()
    center.play("convert", "hold")
    center.play("test_boot", "hold")
    job = into_processing(center, agent)
    seen = steps_until(center, job, "step 1 of 12: fstab")
    time.sleep(2.2)
    seen.append(center.job(job)["step"])
    center.unplay("convert", "hold")
    seen += steps_until(center, job, "booting the image")
    time.sleep(1.2)
    seen.append(center.job(job)["step"])
    center.unplay("test_boot", "hold")
    center.wait_job(job)
    percents, left = [s["percent"] for s in seen], [s["seconds_left"] for s in seen]
    assert percents == sorted(percents) and percents[0] < 5 and percents[-1] < 100
    assert percents[-1] > 100 * 60 / 221, "the conversion is a quarter of what is expected of a host nobody knows"
    assert 215 < left[0] <= 221 and left == sorted(left, reverse=True)

    # The second one knows how long the first took, also after a restart.
    learnt = json.loads((center.state / "pace.json").read_text())
    assert 2 < learnt["convert"] < 10 and 1 < learnt["test_boot"] < 10
    center.restart()
    center.play("convert", "hold")
    again = into_processing(center, center.agent())
    first = steps_until(center, again, "fstab")[0]
    assert first["seconds_left"] <= learnt["convert"] + learnt["test_boot"] + 2
    # It takes longer than then: nothing is promised any more, and it isn't done.
    late = wait_for("late", lambda: (lambda s: s if s["seconds_left"] is None else None)(center.job(again)["step"]), 20)
    assert late["percent"] < 100
    assert late["percent"] > first["percent"]
    center.unplay("convert", "hold")
    center.wait_job(again)
    assert center.job(again)["step"] is None


def test_ticks_tell(fresh):
    center = fresh()
    agent = center.agent()
    center.play("convert", "hold")
    job = into_processing(center, agent)
    steps_until(center, job, "fstab")
    conn = center.connect()
    conn.request("GET", "/v1/events", headers={"Authorization": "Bearer " + center.token})
    stream, percents = conn.getresponse(), []
    while len(percents) < 3:
        line = stream.readline()
        if line.startswith(b"data: ") and b'"step"' in line:
            tick = json.loads(line[6:])
            assert tick["id"] == job and tick["stage"] == "processing"
            percents.append(tick["step"]["percent"])
    assert percents == sorted(percents) and percents[-1] > percents[0]
    conn.close()
    center.unplay("convert", "hold")
    center.wait_job(job)


def test_without_test_boot_it_isnt_expected(fresh):
    center = fresh()
    center.play("convert", "hold")
    job = into_processing(center, center.agent(), parameters={"test_boot": False, "image_check": False})
    assert steps_until(center, job, "fstab")[0]["seconds_left"] <= 61
    center.unplay("convert", "hold")
    center.wait_job(job)


def test_preparing_has_a_percentage(fresh):
    center = fresh()
    center.play("capacity", "hold")
    job = center.started_job(center.agent().source)
    step = wait_for("checking", lambda: (lambda j: j["step"] if j["stage"] == "preparing" and (j["step"] or {}).get("name") == "checking" else None)(center.job(job)))
    assert 0 <= step["percent"] < 100
    center.unplay("capacity", "hold")
