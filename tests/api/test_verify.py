"""Test boots: what the copy says against what the source was, and scripts that are run in it."""

import json

import pytest

from cli_tools import Cli
from harness import wait_for

SURVEY = {"init": "systemd", "hostname": "web", "users": [{"name": "web", "id": 1000}],
          "units": [{"name": "web.service", "state": "running", "enabled": "enabled"}],
          "listening": [{"proto": "tcp", "port": 80, "address": "any", "program": "web", "unit": "web.service"}]}
GOOD = {"name": "front page", "script": "#!/bin/sh\nset -e\n\tcurl -fs http://127.0.0.1/\n", "timeout": 30}
BAD = {"name": "database", "script": "exit 3"}


def says(center, **members):
    center.play("test_boot", "says", json.dumps(members))


def agent_with(center, survey=SURVEY):
    return center.agent(inventory={"os": {"name": "x"}, "failed_units": [], "survey": survey, "disks": [
        {"name": "sda", "path": "/dev/sda", "size": 1, "used": 1}]})


def given(center, what="test_boot"):
    return json.loads((center.script / f"{what}.given").read_text())


def boot_of(center, image):
    return wait_for("the boot", lambda: (lambda b: b["state"] != "running" and b)(center.ok("GET", f"/v1/images/{image}")["boot"]))


@pytest.fixture
def quiet(center):
    says(center)
    yield center
    center.unplay("test_boot", "says")


@pytest.fixture
def cli(center):
    return Cli(center.folder, f"https://127.0.0.1:{center.port}", center.state / "ca.pem", center.token)


def test_the_copy_is_compared_with_the_source(quiet):
    center = quiet
    agent = agent_with(center)
    says(center, survey=SURVEY, failed_units=[])
    job = center.started_job(agent.source)
    agent.send_all()
    image = center.wait_job(job)["image"]
    assert given(center)["expect"] == {"units": ["web.service"], "listening": ["tcp/80"]}
    assert "survey" not in given(center, "convert")["inventory"]
    report = center.ok("GET", f"/v1/images/{image}/report")
    seen = report["test_boot"]["verification"]
    assert report["test_boot"]["verified"] and seen["compared"] and seen["verified"] and seen["differences"] == []
    assert seen["counts"] == {"same": 5, "explained": 0, "flagged": 0, "critical": 0}, seen
    assert "survey" not in report["test_boot"] and "source" not in report["conversion"]
    # The source goes on; the image is held to what it was copied from.
    agent.sync(inventory={"os": {"name": "x"}, "disks": [], "survey": dict(SURVEY, users=[])})
    says(center, survey=dict(SURVEY, users=[], units=[]), failed_units=[])
    center.ok("POST", f"/v1/images/{image}/boot", {})
    boot = boot_of(center, image)
    assert boot["state"] == "failed" and not boot["report"]["verified"]
    assert [p["code"] for p in boot["report"]["problems"]] == ["missing_service", "missing_user"]
    assert {d["what"] for d in boot["report"]["verification"]["differences"] if d["critical"]} == {"web.service", "web"}


def test_a_difference_fails_the_job(quiet):
    center = quiet
    agent = agent_with(center)
    says(center, survey=dict(SURVEY, listening=[]))
    job = center.started_job(agent.source)
    agent.send_all()
    failed = center.wait_job(job, "in_error")
    assert failed["error"]["code"] == "test_boot_failed" and "'tcp/80'" in failed["error"]["message"]
    says(center, survey=SURVEY)
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    assert center.wait_job(job)["state"] == "finished"


def test_scripts_of_a_job(quiet):
    center = quiet
    agent = agent_with(center)
    ok = {"name": "front page", "status": 0, "timed_out": False, "seconds": 1.0, "output": "ok"}
    no = {"name": "database", "status": 3, "timed_out": False, "seconds": 1.0, "output": "password=hunter2\nno tables"}
    says(center, survey=SURVEY, checks=[ok, no])
    job = center.started_job(agent.source, parameters={"checks": [GOOD, BAD]})
    agent.send_all()
    failed = center.wait_job(job, "in_error")
    assert failed["error"]["code"] == "test_boot_failed" and "check 'database' failed with status 3: no tables" in failed["error"]["message"]
    assert given(center)["checks"] == [GOOD, BAD] and failed["parameters"]["checks"] == [GOOD, BAD]
    (row,) = [j for j in center.ok("GET", "/v1/jobs")["items"] if j["id"] == job]
    assert row["parameters"]["checks"] == [{"name": "front page", "timeout": 30}, {"name": "database"}]
    report = center.ok("GET", f"/v1/images/{failed['image']}/report")["test_boot"]
    assert [(c["name"], c["passed"]) for c in report["checks"]] == [("front page", True), ("database", False)]
    assert [p["code"] for p in report["problems"]] == ["check_failed"] and "hunter2" not in json.dumps(report)
    # They may be changed, and left out.
    center.ok("PATCH", f"/v1/jobs/{job}", {"parameters": {"checks": [GOOD]}})
    says(center, survey=SURVEY, checks=[ok])
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    image = center.wait_job(job)["image"]
    assert given(center)["checks"] == [GOOD]
    # A boot by hand has the job's, or its own, also when the center is restarted meanwhile.
    center.play("test_boot", "hold")
    boot = center.ok("POST", f"/v1/images/{image}/boot", {"checks": [BAD]})["boot"]
    assert boot["checks"] == [BAD]
    wait_for("the call", lambda: given(center)["checks"] == [BAD])
    (center.script / "test_boot.given").unlink()
    center.restart()
    wait_for("the call", lambda: (center.script / "test_boot.given").exists() and given(center)["checks"] == [BAD])
    says(center, survey=SURVEY, checks=[dict(ok, status=9)])
    center.unplay("test_boot", "hold")
    boot = boot_of(center, image)
    assert boot["state"] == "failed" and "checks" not in boot and "check 'database' failed with status 9" in boot["report"]["problems"][0]["message"]
    says(center, survey=SURVEY, checks=[ok])
    center.ok("POST", f"/v1/images/{image}/boot", {})
    assert boot_of(center, image)["state"] == "passed" and given(center)["checks"] == [GOOD]
    center.ok("POST", f"/v1/images/{image}/boot", {"checks": []})
    assert boot_of(center, image)["state"] == "passed" and "checks" not in given(center)


@pytest.mark.parametrize("checks, word", [
    ({}, "must be a list"), ([7], "a list of objects"), ([{"name": "x"}], "script"), ([{"script": "x"}], "name"),
    ([dict(BAD, other=1)], "has no 'other'"), ([dict(BAD, timeout=0)], "timeout"), ([dict(BAD, timeout=601)], "timeout"),
    ([BAD, BAD], "two checks 'database'"), ([dict(BAD, script="")], "is empty"), ([dict(BAD, name="")], "is empty"),
    ([dict(BAD, name="a\nb")], "control"), ([dict(BAD, script="x" * 65537)], "script"),
    ([dict(BAD, name=f"c{i}") for i in range(17)], "at most 16")])
def test_bad_scripts(center, checks, word):
    agent = center.agent()
    got = center.post("/v1/jobs", {"source": agent.source, "parameters": {"checks": checks}})
    assert got.status == 400 and got.code == "bad_field" and word in got.json["error"]["message"], got.json
    assert got.json["error"]["field"].startswith("parameters")


def test_by_the_command_line(quiet, cli, tmp_path):
    center = quiet
    agent = agent_with(center)
    (tmp_path / "front page.sh").write_text(GOOD["script"])
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "big").write_bytes(b"x" * 65537)
    for bad in ("bytes", "big", "missing"):
        done = cli.run("jobs", "create", agent.source, "--check", tmp_path / bad)
        assert done.returncode == 2 and "--check" in done.stderr and str(tmp_path / bad) in done.stderr, done
    job = json.loads(cli.out("jobs", "create", agent.source, "--check", tmp_path / "front page.sh", "--check-timeout", 30, "--json"))
    assert job["parameters"]["checks"] == [dict(GOOD, name="front page.sh")]
    assert "front page.sh" in cli.out("jobs", "show", job["id"])
    bad = {"status": 7, "timed_out": False, "seconds": 1.0, "output": "\033[31mno\033[0m answer\n"}
    says(center, survey=dict(SURVEY, users=[], hostname="other"), checks=[bad])
    cli.out("jobs", "start", job["id"])
    agent.send_all()
    image = center.wait_job(job["id"], "in_error")["image"]
    said = cli.out("images", "report", image)
    assert "front page.sh: failed" in said and "user web: 1000 -> not there" in said and "hostname hostname: web -> other" in said
    assert "not verified: missing or different in the copy: 1; other differences: 1 flagged" in " ".join(said.split()), said
    assert "\033" not in said and "failed with status 7: " in said
    said = cli.run("images", "boot", image, "--check", tmp_path / "front page.sh", "--watch")
    assert said.returncode == 1 and "user 'web'" in said.stdout
