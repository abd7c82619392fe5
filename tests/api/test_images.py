"""Images, boots, exports."""

import concurrent.futures
import json
import time

import pytest

from harness import wait_for


@pytest.fixture
def image(center):
    agent = center.agent()
    job = center.started_job(agent.source, parameters={"test_boot": False})
    agent.send_all()
    return center.wait_job(job)["image"]


def wait_boot(center, image, state):
    return wait_for("boot " + state, lambda: (lambda b: b and b["state"] == state and b)(
        center.ok("GET", f"/v1/images/{image}")["boot"]))


def test_boot_again(center, image):
    assert center.get(f"/v1/images/{image}/screenshot").status == 404
    center.play("test_boot", "hold")
    assert center.post(f"/v1/images/{image}/boot").json["boot"]["state"] == "running"
    assert center.post(f"/v1/images/{image}/boot").status == 409
    assert center.call("DELETE", f"/v1/images/{image}").status == 409
    center.restart()
    assert center.ok("GET", f"/v1/images/{image}")["boot"]["state"] == "running"
    (center.script / "screen.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    center.unplay("test_boot", "hold")
    wait_boot(center, image, "passed")
    got = center.get(f"/v1/images/{image}/screenshot")
    assert got.status == 200 and got.headers["Content-Type"] == "image/png" and got.raw.startswith(b"\x89PNG")
    center.play("test_boot", "fail", "no QEMU here")
    center.ok("POST", f"/v1/images/{image}/boot", {})
    assert "no QEMU here" in wait_boot(center, image, "in_error")["error"]["message"]
    center.unplay("test_boot", "fail")


def test_export(center, image):
    center.play("image_export", "hold")
    got = center.post(f"/v1/images/{image}/exports", {"format": "vmdk"})
    assert got.status == 202 and got.json["state"] == "running" and got.json["disk"] == 0
    export = got.json["id"]
    assert wait_for("percent", lambda: center.ok("GET", f"/v1/exports/{export}")["percent"]) == 42
    assert center.get(f"/v1/exports/{export}/data").status == 409
    center.restart()
    center.unplay("image_export", "hold")
    row = wait_for("finished", lambda: (lambda x: x["state"] == "finished" and x)(center.ok("GET", f"/v1/exports/{export}")))
    assert row["size"] == 8 and row["percent"] == 100
    got = center.get(f"/v1/exports/{export}/data")
    assert got.raw == b"EXPORTED" and f"{export}.vmdk" in got.headers["Content-Disposition"]
    part = center.get(f"/v1/exports/{export}/data", headers={"Range": "bytes=3-"})
    assert (part.status, part.raw, part.headers["Content-Range"]) == (206, b"ORTED", "bytes 3-7/8")
    assert center.get(f"/v1/exports/{export}/data", headers={"Range": "bytes=7-"}).raw == b"D"
    for other in ("bytes=1-2", "bytes=-3", "bytes=", "lines=1-", "bytes=1-,3-"):
        whole = center.get(f"/v1/exports/{export}/data", headers={"Range": other})
        assert (whole.status, whole.raw) == (200, b"EXPORTED"), other
    assert center.get(f"/v1/exports/{export}/data", headers={"Range": "bytes=8-"}).status == 416
    assert center.get("/v1/exports?image=" + image).json["total"] == 1
    assert center.call("DELETE", f"/v1/images/{image}").code == "in_use"
    assert center.call("DELETE", f"/v1/exports/{export}").status == 204
    assert not list((center.state / "exports").glob(export + "*"))
    assert center.call("DELETE", f"/v1/images/{image}").status == 204
    assert center.get(f"/v1/images/{image}").status == 404
    assert center.post(f"/v1/images/{image}/exports", {"format": "raw"}).status == 404


def test_failed_and_cancelled_exports(center, image):
    center.play("image_export", "fail", "no_space: the disk is full")
    export = center.ok("POST", f"/v1/images/{image}/exports", {"format": "raw"})["id"]
    row = wait_for("failed", lambda: (lambda x: x["state"] == "in_error" and x)(center.ok("GET", f"/v1/exports/{export}")))
    assert row["error"]["code"] == "no_space"
    center.unplay("image_export", "fail")
    center.play("image_export", "hold")
    running = center.ok("POST", f"/v1/images/{image}/exports", {"format": "raw"})["id"]
    assert center.call("DELETE", f"/v1/exports/{running}").status == 204
    center.unplay("image_export", "hold")
    assert center.post(f"/v1/images/{image}/exports", {"format": "raw", "disk": 1}).field == "disk"
    assert center.post(f"/v1/images/{image}/exports", {"format": "iso"}).field == "format"


def test_an_export_that_is_deleted_leaves_nothing(center, image):
    """The clockwork began it again between its end and that of its row."""
    center.play("image_export", "hold")
    calls = len(center.calls("image_export"))
    export = center.ok("POST", f"/v1/images/{image}/exports", {"format": "raw"})["id"]
    wait_for("the call", lambda: len(center.calls("image_export")) > calls)
    center.play("unlink", "hold", "1")  # the export's own
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        removal = pool.submit(center.call, "DELETE", f"/v1/exports/{export}")
        wait_for("the same again", lambda: len([c for c in center.calls("unlink") if export in c[1]]) == 2, 30)
        center.unplay("unlink", "hold")
        assert removal.result().status == 204
    center.unplay("image_export", "hold")
    assert center.get(f"/v1/exports/{export}").status == 404
    assert center.call("DELETE", f"/v1/images/{image}").status == 204
    assert not list((center.state / "exports").glob(export + "*"))


def failed_at_the_test_boot(center):
    agent = center.agent()
    center.play("test_boot", "bad")
    job = center.started_job(agent.source)
    agent.send_all()
    image = center.wait_job(job, "in_error")["image"]
    center.unplay("test_boot", "bad")
    return agent, job, image


def test_an_image_of_a_failed_job_can_go(center):
    agent, job, image = failed_at_the_test_boot(center)
    assert center.call("DELETE", f"/v1/images/{image}").status == 204
    assert center.job(job)["stage"] is None
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    agent.send_all()  # the copy went with the image
    assert center.wait_job(job)["image"] not in (None, image)


def test_a_job_waits_for_the_removal_of_its_image(center):
    """Else it went on behind files that go, and its row was written under it."""
    agent, job, image = failed_at_the_test_boot(center)
    center.play("image_remove", "hold")
    assert center.call("DELETE", f"/v1/images/{image}").status == 202
    got = center.post(f"/v1/jobs/{job}/start")
    assert (got.status, got.code) == (409, "invalid_state") and "being deleted" in got.json["error"]["message"]
    center.unplay("image_remove", "hold")
    wait_for("gone", lambda: center.get(f"/v1/images/{image}").status == 404)
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    agent.send_all()
    assert center.wait_job(job)["image"] not in (None, image)


def test_an_image_without_a_row_goes_with_its_job(center):
    agent = center.agent()
    center.play("image_create", "fail", "half way")
    job = center.started_job(agent.source)
    agent.send_all()
    center.wait_job(job, "in_error")
    pending = center.calls("image_create")[-1][1]
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    wait_for("the same id again", lambda: [c[1] for c in center.calls("image_create")].count(pending) == 2)
    center.wait_job(job, "in_error")
    center.unplay("image_create", "fail")
    assert center.call("DELETE", f"/v1/jobs/{job}").status == 202
    wait_for("gone", lambda: center.get(f"/v1/jobs/{job}").status == 404)
    assert ["image_remove", pending] in center.calls()


def test_what_the_provider_is_told_of_the_source(center):
    agent = center.agent(inventory={"os": {"name": "x"}, "failed_units": ["old.service"], "disks": [
        {"name": "sda", "path": "/dev/sda", "size": 1, "used": 1, "aliases": ["/dev/disk/by-id/ata-1"]},
        {"name": "sdb", "path": "/dev/disk/by-id/ata-2", "size": 1, "used": 1, "aliases": ["/dev/disk/by-path/p2"]}]})
    center.play("convert", "fail", "not yet")
    job = center.started_job(agent.source)
    task = agent.wait_task()
    center.commit(task["run"])
    center.wait_job(job, "in_error")
    given = lambda what: json.loads((center.script / f"{what}.given").read_text())
    assert given("convert")["disks"] == [
        {"source": "/dev/sda", "aliases": ["/dev/disk/by-id/ata-1"]},
        {"source": "/dev/sdb", "aliases": ["/dev/disk/by-id/ata-2", "/dev/disk/by-path/p2"]}]
    # The agent's last word says what was copied, and in which order.
    agent.report(task["run"], "done", result={"disks": ["/dev/disk/by-id/ata-2", "/dev/vdx"]})
    center.unplay("convert", "fail")
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    image = center.wait_job(job)["image"]
    assert given("convert")["disks"] == [
        {"source": "/dev/sdb", "aliases": ["/dev/disk/by-id/ata-2", "/dev/disk/by-path/p2"]}, {"source": "/dev/vdx", "aliases": []}]
    assert given("convert")["inventory"]["failed_units"] == ["old.service"]
    assert given("test_boot") == {"known_failed_units": ["old.service"]}
    assert "inventory" not in center.ok("GET", f"/v1/images/{image}")["manifest"]["meta"]
    (center.script / "test_boot.given").unlink()
    center.ok("POST", f"/v1/images/{image}/boot", {})
    wait_boot(center, image, "passed")
    assert given("test_boot") == {"known_failed_units": ["old.service"]}
    row = next(i for i in center.ok("GET", "/v1/images")["items"] if i["id"] == image)
    assert "report" not in row["boot"] and row["boot"]["state"] == "passed" and row["manifest"]["meta"]["job"] == job


def test_an_image_is_used_by_one_at_a_time(center, image):
    center.play("test_boot", "hold")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        got = [a.status for a in pool.map(lambda n: center.post(f"/v1/images/{image}/boot"), range(8))]
    assert sorted(got) == [202] + [409] * 7
    assert center.call("DELETE", f"/v1/images/{image}").code == "in_use"
    center.unplay("test_boot", "hold")
    wait_boot(center, image, "passed")
    center.play("image_remove", "hold")
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        removal = pool.submit(center.call, "DELETE", f"/v1/images/{image}")
        wait_for("the removal", lambda: ["image_remove", image] in center.calls())
        assert center.post(f"/v1/images/{image}/boot").status == 409
        assert center.post(f"/v1/images/{image}/exports", {"format": "raw"}).status == 409
        assert center.call("DELETE", f"/v1/images/{image}").status == 409
        assert center.ok("GET", f"/v1/exports?image={image}")["total"] == 0
        center.unplay("image_remove", "hold")
        assert removal.result().status == 204, removal.result()


def test_a_long_removal_holds_nobody_up(fresh):
    center = fresh()
    agent = center.agent()
    job = center.started_job(agent.source)
    agent.send_all()
    image = center.wait_job(job)["image"]
    center.play("image_remove", "hold")
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        removal = pool.submit(center.call, "DELETE", f"/v1/images/{image}")
        got = removal.result(timeout=15)
    assert got.status == 202 and got.json == {"id": image, "state": "deleting"} and time.monotonic() - began < 10
    assert center.call("DELETE", f"/v1/images/{image}").code == "in_use"
    assert center.get(f"/v1/images/{image}").status == 200
    center.unplay("image_remove", "hold")
    wait_for("gone", lambda: center.get(f"/v1/images/{image}").status == 404)
    assert center.call("DELETE", f"/v1/images/{image}").status == 404


def test_a_failed_removal_says_why(center, image):
    """Nobody knows what is left of it: it can only go."""
    center.play("image_remove", "fail", "the disk is on fire")
    got = center.call("DELETE", f"/v1/images/{image}")
    assert got.status == 500 and "on fire" in got.json["error"]["message"]
    assert center.ok("GET", f"/v1/images/{image}")["deleting"] is True
    assert center.post(f"/v1/images/{image}/boot").status == 409
    assert center.post(f"/v1/images/{image}/exports", {"format": "raw"}).status == 409
    assert center.ok("GET", f"/v1/exports?image={image}")["total"] == 0
    center.unplay("image_remove", "fail")
    assert center.call("DELETE", f"/v1/images/{image}").status in (204, 404, 409)
    wait_for("gone", lambda: center.get(f"/v1/images/{image}").status == 404)


def test_a_removal_goes_on_after_a_kill(fresh):
    center = fresh()
    agent = center.agent()
    job = center.started_job(agent.source)
    agent.send_all()
    image = center.wait_job(job)["image"]
    assert center.ok("GET", f"/v1/images/{image}")["deleting"] is False
    center.play("image_remove", "hold")
    assert center.call("DELETE", f"/v1/images/{image}").status == 202
    center.restart()
    assert center.ok("GET", f"/v1/images/{image}")["deleting"] is True
    assert center.post(f"/v1/images/{image}/boot").status == 409
    wait_for("the same again", lambda: center.calls("image_remove") == [["image_remove", image]] * 2)
    center.unplay("image_remove", "hold")
    wait_for("gone", lambda: center.get(f"/v1/images/{image}").status == 404)


def test_rename(center, image):
    got = center.call("PATCH", f"/v1/images/{image}", {"name": "better", "description": "d"})
    assert got.json["name"] == "better" and got.json["description"] == "d"
