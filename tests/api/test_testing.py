"""Migration tests: a run that makes no image, what it reports, what it predicts, and what remains of it."""

import base64
import json
import time

import pytest

from cli_tools import Cli
from harness import wait_for

CHECKS = [{"check": "cpu", "result": "ok", "message": "5 % are in use", "remedy": None},
          {"check": "firewall", "result": "warning", "message": "a firewall is active", "remedy": "look at it"}]
PNG = b"\x89PNG\r\n\x1a\n...."
TWO_DISKS = {"hostname": "db", "os": {"name": "Debian"}, "boot": {"mode": "bios"},
             "disks": [{"path": "/dev/vda", "size": 10 << 30, "used": 1 << 30}, {"path": "/dev/vdb", "size": 90 << 30, "used": 9 << 30}]}
TRACKED = {"phase": "done", "freeze_ms": 500, "tracking": "bpf", "churn": 1000.0, "link": 1e8, "converges": True}


def result(checks=CHECKS, left_out=(), live=(1 << 30, 10.0), **totals):
    return {"totals": {"bytes_read": 1 << 30, "bytes_sent": 1 << 29, "bytes_changed": 1 << 30, "freeze_ms": 500, **totals}, "notes": [],
            "zeroed": [], "disks": ["/dev/vda"], "live": {"bytes": live[0], "seconds": live[1]},
            "test": {"checks": checks, "left_out": list(left_out), "time": time.time()}}


def send(center, agent, other_than=None, progress=TRACKED, **more):
    """Plays a transfer. What the agent was told."""
    task = agent.wait_task(other_than)
    agent.report(task["run"], progress=progress)
    center.commit(task["run"])
    agent.report(task["run"], "done", progress=progress, result=result(**more))
    return task


def item(report, name, level=None):
    found = [i for i in report["items"] if i["item"] == name and (level is None or i["level"] == level)]
    assert found, (name, level, report["items"])
    return found[0]


def world(center):
    folder = center.script / "world"
    return sorted(p.name for p in folder.iterdir() if ".tmp-" not in p.name) if folder.exists() else []


def screenshot(center, job):
    return center.get(f"/v1/jobs/{job}/test/screenshot")


def test_a_test_only_is_done_and_over(fresh):
    center = fresh()
    (center.script / "screen.png").write_bytes(PNG)
    agent = center.agent(inventory=TWO_DISKS)
    job = center.new_job(agent.source, execution="test_only")
    row = center.job(job)
    assert row["testing"] == "test_only" and row["state"] == "running" and row["test"]["state"] == "running"
    task = send(center, agent, left_out=["/dev/vdb"])
    assert task["parameters"]["boot_only"] is True
    row = center.wait_job(job, "ready")
    report = row["test"]
    assert row["testing"] is None and row["number"] == row["runs_done"] == 0 and row["image"] is None
    assert report["state"] == "done" and report["verdict"] == "warning" and report["method"] == "test_only"
    assert item(report, "firewall", "warning")["remedy"] == "look at it" and item(report, "cpu", "passed")["group"] == "source"
    for name in "clock", "tracking", "writers", "space", "boot_mode", "disks", "conversion", "boot":
        item(report, name, "passed")
    assert report["counts"]["warning"] == 1 and report["counts"]["critical"] == 0
    assert report["copy"]["left_out"] == ["/dev/vdb"] and not report["copy"]["kept"] and report["copy"]["compression"] == 2
    # Ten times as much is to be sent as was; the line is as it is.
    predicted = report["prediction"]
    assert predicted["bytes"] == 10 << 30 and 100 <= predicted["transfer_seconds"] <= 105 and predicted["freeze_seconds"] == 0.5
    assert predicted["saved_seconds"] == 0 and predicted["total_seconds"] > predicted["transfer_seconds"]
    # Nothing remains but report and picture.
    assert world(center) == [] and ["job_remove", job] in center.calls() and not center.calls("image_create")
    assert not center.calls("test_boot") and screenshot(center, job).raw == PNG
    assert row["runs"][0]["state"] == "done" and row["runs"][0]["number"] == 0
    assert abs(row["runs"][0]["result"]["clock_skew"]) < 5
    assert center.ok("GET", "/v1/jobs")["items"][0]["test"] is None
    # Then the migration, of all disks, and what it took beside what was said.
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    task = send(center, agent, other_than=task["run"])
    assert "boot_only" not in task["parameters"]
    row = center.wait_job(job)
    assert row["number"] == row["runs_done"] == 1 and row["image"] and row["test"]["verdict"] == "warning"
    actual = row["test"]["actual"]
    assert actual["error_percent"] > 100 and actual["transfer_seconds"] < 20 and not actual["interrupted"]
    assert actual["freeze_seconds"] == 0.5
    center.ok("DELETE", f"/v1/jobs/{job}")
    wait_for("no job", lambda: center.get(f"/v1/jobs/{job}").status == 404)
    assert not list((center.state / "tests").glob("*"))


@pytest.mark.parametrize("due", ["after", "meanwhile", "failed", "stopped"])
def test_it_leaves_the_scheduled_start(fresh, due):
    center, at = fresh(HOUR=30), int(time.time()) + 3600  # looks twice a second what is due
    agent = center.agent(inventory=TWO_DISKS)

    def is_due():
        with center.database() as db:
            db.execute("UPDATE jobs SET next_run = ?", (time.time() - 1,))

    job = center.new_job(agent.source, execution="migrate_later", start_at=at)
    center.ok("POST", f"/v1/jobs/{job}/start", {"test": "only"})
    first = agent.wait_task()
    assert center.job(job)["next_run"] == at
    if due == "failed":
        agent.report(first["run"], "failed", error={"code": "read_error", "message": "sector 5", "temporary": False})
        assert center.wait_job(job, "in_error")["next_run"] is None
        return
    if due == "stopped":
        center.ok("POST", f"/v1/jobs/{job}/stop")
        assert center.wait_job(job, "stopped")["next_run"] is None
        return
    if due == "meanwhile":
        is_due()
        time.sleep(1.5)
        row = center.job(job)
        assert (row["state"], row["testing"], row["run"]) == ("running", "test_only", first["run"])
    send(center, agent, left_out=["/dev/vdb"])
    if due == "after":
        row = center.wait_job(job, "ready")
        assert row["next_run"] == at and row["testing"] is None
        is_due()
    second = send(center, agent, other_than=first["run"])
    assert "boot_only" not in second["parameters"]
    row = center.wait_job(job)
    assert row["trigger"] == "schedule" and row["next_run"] is None and row["number"] == 1


def test_and_migrate_compares_with_the_copy(fresh):
    center = fresh()
    agent = center.agent(inventory=TWO_DISKS)
    job = center.new_job(agent.source)
    center.ok("POST", f"/v1/jobs/{job}/start", {"test": "migrate"})
    first = send(center, agent, left_out=["/dev/vdb"])
    second = agent.wait_task(other_than=first["run"])
    row = center.job(job)
    assert row["testing"] is None and row["number"] == 1 and row["test"]["state"] == "done" and row["state"] == "running"
    assert f"copy.{job}" in world(center) and not center.calls("job_remove"), "its copy is what the migration compares with"
    predicted = row["test"]["prediction"]
    assert row["test"]["copy"]["kept"] and predicted["bytes_there"] == 1 << 30
    assert 90 <= predicted["transfer_seconds"] <= 95 and 9 < predicted["saved_seconds"] < 11
    assert "boot_only" not in second["parameters"]
    send(center, agent)
    row = center.wait_job(job)
    assert row["test"]["actual"]["total_seconds"] > 0 and len(center.calls("image_create")) == 1
    assert {r["state"] for r in row["runs"]} == {"done"} and len(row["runs"]) == 2
    assert not (center.script / "misuse").exists()


def test_of_an_incremental_job(fresh):
    """Its runs lie elsewhere: the test's copy is of no use to them."""
    center = fresh()
    agent = center.agent(inventory=TWO_DISKS)
    job = center.new_job(agent.source, execution="test_and_migrate", parameters={"incremental": True})
    task = send(center, agent)
    task = agent.wait_task(other_than=task["run"])
    assert ["job_remove", job] in center.calls() and not center.job(job)["test"]["copy"]["kept"]
    send(center, agent)
    row = center.wait_job(job, "waiting")
    assert row["number"] == row["runs_done"] == 1 and row["test"]["actual"]
    got = center.post(f"/v1/jobs/{job}/start", {"test": "only"})
    assert (got.status, got.code) == (409, "invalid_state")


@pytest.mark.parametrize("how", ["check", "boot", "conversion"])
def test_critical_stops_the_migration(fresh, how):
    center = fresh()
    agent = center.agent()
    broken = CHECKS + [{"check": "volumes", "result": "failed", "message": "it is a multipath device", "remedy": "name one path"}]
    if how == "boot":
        center.play("test_boot", "bad")
    if how == "conversion":
        center.play("convert", "fail", "no disk has GRUB in its boot sector")
    job = center.new_job(agent.source, execution="test_and_migrate")
    task = send(center, agent, checks=broken if how == "check" else CHECKS)
    row = center.wait_job(job, "in_error")
    assert row["error"]["code"] == "test_failed" and row["testing"] == "test_and_migrate"
    said = {"check": "multipath", "boot": "no network card", "conversion": "GRUB"}[how]
    assert said in row["error"]["message"] and row["test"]["state"] == "done" and row["test"]["verdict"] == "critical"
    assert world(center) == [] and not center.calls("image_create") and row["number"] == 0
    # Start repeats the test; when it finds nothing more, the migration follows.
    for name, what in (("test_boot", "bad"), ("convert", "fail")):
        if (center.script / f"{name}.{what}").exists():
            center.unplay(name, what)
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    task = send(center, agent, other_than=task["run"])
    assert task["parameters"]["boot_only"]
    send(center, agent, other_than=task["run"])
    assert center.wait_job(job)["test"]["verdict"] == "warning"


def test_critical_of_a_test_only(fresh):
    center = fresh()
    center.play("test_boot", "bad")
    (center.script / "screen.png").write_bytes(PNG)
    agent = center.agent()
    job = center.new_job(agent.source, execution="test_only")
    send(center, agent)
    row = center.wait_job(job, "ready")
    assert row["error"] is None and row["test"]["verdict"] == "critical" and world(center) == []
    assert item(row["test"], "no_address", "critical") and row["test"]["boot"]["verified"] is False
    assert screenshot(center, job).raw == PNG


def test_a_unit_that_fails_without_its_data(fresh):
    center = fresh()
    center.play("copy_boot", "problem", "failed_unit")
    agent = center.agent(inventory=TWO_DISKS)
    job = center.new_job(agent.source, execution="test_only")
    task = send(center, agent, left_out=["/dev/vdb"])
    assert item(center.wait_job(job, "ready")["test"], "failed_unit", "warning")
    center.ok("POST", f"/v1/jobs/{job}/start", {"test": "only"})
    send(center, agent, other_than=task["run"])
    assert wait_for("critical", lambda: center.job(job)["test"].get("verdict") == "critical")


def test_untested_after_all(fresh):
    """Who doesn't want the test any more migrates; and what the test's copy lacks is not missing in the image."""
    center = fresh()
    center.play("test_boot", "bad")
    agent = center.agent()
    job = center.new_job(agent.source, execution="test_and_migrate")
    task = send(center, agent)
    assert center.wait_job(job, "in_error")["stage"] == "cleaning"
    center.unplay("test_boot", "bad")
    center.ok("POST", f"/v1/jobs/{job}/start", {"test": "none"})
    task = send(center, agent, other_than=task["run"])
    assert "boot_only" not in task["parameters"]
    row = center.wait_job(job)
    assert row["image"] and row["number"] == 1 and not (center.script / "misuse").exists()


def test_stopped_in_the_middle(fresh):
    center = fresh()
    agent = center.agent()
    job = center.new_job(agent.source, execution="test_only")
    task = agent.wait_task()
    center.ok("POST", f"/v1/jobs/{job}/stop", {})
    row = center.wait_job(job, "stopped")
    assert row["test"]["state"] == "stopped" and row["testing"] == "test_only"
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    send(center, agent, other_than=task["run"])
    assert center.wait_job(job, "ready")["test"]["state"] == "done" and world(center) == []


def test_what_breaks_off_says_nothing(fresh):
    center = fresh()
    agent = center.agent()
    job = center.new_job(agent.source, execution="test_only")
    task = agent.wait_task()
    agent.report(task["run"], "failed", error={"code": "read_error", "message": "cannot read", "temporary": False})
    row = center.wait_job(job, "in_error")
    assert row["error"]["code"] == "read_error" and row["test"]["state"] == "failed" and "verdict" not in row["test"]


def test_parameters_that_change_meanwhile(fresh):
    """The offer stays a test's."""
    center = fresh()
    agent = center.agent()
    job = center.new_job(agent.source, execution="test_only")
    agent.wait_task()
    center.ok("PATCH", f"/v1/jobs/{job}", {"parameters": {"rate_mbit": 7}})
    task = agent.sync()["task"]
    assert task["parameters"]["rate_mbit"] == 7 and task["parameters"]["boot_only"]


def test_set_before_the_start(fresh):
    center = fresh()
    agent = center.agent()
    job = center.new_job(agent.source)
    assert center.ok("PATCH", f"/v1/jobs/{job}", {"execution": "test_only"})["testing"] == "test_only"
    assert center.job(job)["state"] == "ready"
    assert center.ok("PATCH", f"/v1/jobs/{job}", {"execution": "create_only"})["testing"] is None
    center.ok("PATCH", f"/v1/jobs/{job}", {"execution": "test_only"})
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    send(center, agent)
    assert center.wait_job(job, "ready")["test"]
    assert center.post(f"/v1/jobs/{job}/start", {"test": "perhaps"}).status == 400
    assert center.post(f"/v1/jobs/{job}/run", {"test": "only"}).status == 400


def test_an_old_agent(fresh):
    """It knows of no tests: it sends all, and says nothing of the server."""
    center = fresh()
    agent = center.agent()
    job = center.new_job(agent.source, execution="test_only")
    task = agent.wait_task()
    center.commit(task["run"])
    agent.report(task["run"], "done", progress={"phase": "done"}, result={"notes": []})
    report = center.wait_job(job, "ready")["test"]
    assert item(report, "agent", "warning") and report["verdict"] == "warning" and report["prediction"]["total_seconds"] > 0


def test_no_room(fresh):
    center = fresh()
    center.play("capacity", "free", str(100 << 20))
    agent = center.agent()
    job = center.new_job(agent.source, execution="test_and_migrate")
    send(center, agent)
    assert "room" in center.wait_job(job, "in_error")["error"]["message"]


def test_strange_words(fresh):
    """What an agent says is bounded, and is nobody's markup."""
    center = fresh()
    agent = center.agent()
    job = center.new_job(agent.source, execution="test_only")
    checks = [{"check": "c" * 500, "result": "fine", "message": "m" * 3000, "remedy": "r" * 3000}] * 5 + [7, None, {"check": 5}, []]
    send(center, agent, checks=checks, progress={"phase": "done", "tracking": "no such"})
    report = center.wait_job(job, "ready")["test"]
    assert all(len(i["item"]) <= 64 and len(i["message"]) <= 1200 and len(i["remedy"] or "") <= 1000 for i in report["items"])
    assert len(json.dumps(report)) < 40000


def test_killed_in_the_middle(fresh):
    """Each stage is done again; what was found is as if nothing had happened."""
    center = fresh()
    agent = center.agent()
    for name in "receive", "convert", "copy_boot", "job_remove":
        center.play(name, "hold")
    job = center.new_job(agent.source, execution="test_only")
    for name in "receive", "convert", "copy_boot", "job_remove":
        wait_for(name, lambda: center.calls(name))
        center.restart()
        wait_for(f"{name} again", lambda: len(center.calls(name)) > 1)
        center.unplay(name, "hold")
        if name == "receive":
            send(center, agent)
    row = center.wait_job(job, "ready")
    left = [name for name in world(center) if not name.startswith("receiver.")]  # a killed one tells nobody of its end
    assert row["test"]["state"] == "done" and left == [] and row["testing"] is None


# ---- on the command line ----

@pytest.fixture
def tested(fresh, tmp_path):
    """A center, somebody at its command line, and a job whose test found something."""
    center = fresh()
    (center.script / "screen.png").write_bytes(PNG)
    cli = Cli(tmp_path, f"https://127.0.0.1:{center.port}", center.state / "ca.pem", center.token)
    agent = center.agent(inventory=TWO_DISKS)
    hostile = CHECKS + [{"check": "fstab", "result": "failed", "message": "<script>alert('1')</script> \x1b[31m & so on", "remedy": "correct it"}]
    job = center.new_job(agent.source, name="web <b>1</b>", execution="test_only")
    task = send(center, agent, checks=hostile, left_out=["/dev/vdb"])
    center.wait_job(job, "ready")
    return center, cli, agent, job, task["run"]


def test_report_for_people(tested):
    center, cli, agent, job, run = tested
    done = cli.run("jobs", "report", job)
    assert done.returncode == 1 and "critical" in done.stdout and "-> correct it" in done.stdout and "\x1b" not in done.stdout
    assert done.stdout.index("critical  fstab") < done.stdout.index("warning   firewall") < done.stdout.index("passed    cpu")
    assert "The migration will take" in done.stdout and "Freeze" in done.stdout
    assert json.loads(cli.run("jobs", "report", job, "--json").stdout) == center.job(job)["test"]
    page = cli.home / "report.html"
    assert cli.run("jobs", "report", job, "--html", page).returncode == 1
    text = page.read_text()
    assert "<script" not in text and "&lt;script&gt;" in text and "web &lt;b&gt;1" in text
    assert base64.b64encode(PNG).decode() in text and "http://" not in text and "https://" not in text
    assert "1 critical" in cli.out("jobs", "show", job)


def test_commands(tested):
    center, cli, agent, job, run = tested
    watch = cli.start("jobs", "test", job, "--watch")
    task = send(center, agent, other_than=run)
    out, err = watch.communicate(timeout=60)
    assert watch.returncode == 0, (out, err)
    assert "0 critical" in out and "Predicted" in out
    watch = cli.start("jobs", "test", job, "--then-migrate", "--watch")
    task = send(center, agent, other_than=task["run"])
    send(center, agent, other_than=task["run"])
    out, err = watch.communicate(timeout=60)
    assert watch.returncode == 0 and "Taken" in out, (out, err)
    assert "It took" in cli.out("jobs", "report", job)
    other = center.agent()
    assert cli.run("jobs", "create", other.source, "--test", "--test-only").returncode == 2
    watch = cli.start("jobs", "create", other.source, "--test-only", "--watch")
    send(center, other)
    out, err = watch.communicate(timeout=60)
    assert watch.returncode == 0 and "it is tested" in out, (out, err)
    mine = center.ok("GET", f"/v1/jobs?source={other.source}")["items"][0]["id"]
    assert center.job(mine)["state"] == "ready"
    assert "job" in cli.out("jobs", "start", mine, "--no-test") and center.job(mine)["testing"] is None
    got = cli.run("jobs", "test", mine)
    assert got.returncode == 1 and "can't change" in got.stderr
    third = center.agent()
    assert "never tested" in cli.run("jobs", "report", center.new_job(third.source)).stderr


def test_from_a_table(fresh, tmp_path):
    center = fresh()
    cli = Cli(tmp_path, f"https://127.0.0.1:{center.port}", center.state / "ca.pem", center.token)
    agent = center.agent()
    (tmp_path / "jobs.csv").write_text(f"source,execution\n{agent.source},test_only\n")
    cli.out("jobs", "import", tmp_path / "jobs.csv")
    assert center.ok("GET", "/v1/jobs")["items"][0]["testing"] == "test_only"
