"""Checks of images and repairs: what the API promises of them, with a provider that pretends."""

import pytest

from harness import wait_for


@pytest.fixture(autouse=True)
def plain(center):
    yield
    for name in ("image_check", "image_repair"):
        for what in ("bad", "fail", "hold"):
            (center.script / f"{name}.{what}").unlink(missing_ok=True)


@pytest.fixture
def image(center):
    agent = center.agent()
    job = center.started_job(agent.source, parameters={"test_boot": False, "image_check": False})
    agent.send_all()
    return center.wait_job(job)["image"]


def wait_check(center, image, state="finished"):
    return wait_for("check " + state, lambda: (lambda c: c.status == 200 and c.json["state"] == state and c.json)(
        center.get(f"/v1/images/{image}/check")))


def checks(center, image):
    return [line for line in center.calls("image_check") if image in line]


def images(center, of):
    """Those on the first, with it, by id."""
    return {one["id"]: one for one in center.ok("GET", "/v1/images?limit=500")["items"] if of in (one["id"], one["base"])}


def test_a_job_checks_its_image_and_goes_on(center):
    center.play("image_check", "bad")
    agent = center.agent()
    job = center.started_job(agent.source, parameters={"test_boot": False})
    agent.send_all()
    done = center.wait_job(job)
    checked = center.ok("GET", f"/v1/images/{done['image']}/check")
    assert checked["state"] == "finished" and checked["report"]["verdict"] == "critical" and checked["image"] == done["image"]
    assert done["state"] == "finished" and done["error"] is None


def test_a_check_that_fails_does_not_fail_the_job(center):
    center.play("image_check", "fail", "no appliance")
    agent = center.agent()
    job = center.started_job(agent.source, parameters={"test_boot": False})
    agent.send_all()
    done = center.wait_job(job)
    checked = center.ok("GET", f"/v1/images/{done['image']}/check")
    assert checked["state"] == "in_error" and "no appliance" in checked["error"]["message"]
    assert checked["error"]["code"] == "image_check_failed"


def test_off_is_off(center, image):
    assert checks(center, image) == []
    answer = center.get(f"/v1/images/{image}/check")
    assert answer.status == 404 and answer.json["error"]["code"] == "not_found"
    assert center.get(f"/v1/images/{image}/check.html").status == 404


def test_one_at_a_time_and_again_after_a_kill(center, image):
    center.play("image_check", "hold")
    assert center.post(f"/v1/images/{image}/check").json["checked"]["state"] == "running"
    for path in ("check", "boot"):
        assert center.post(f"/v1/images/{image}/{path}").status == 409
    assert center.call("DELETE", f"/v1/images/{image}").status == 409
    wait_for("the call", lambda: checks(center, image))
    center.restart()
    assert center.ok("GET", f"/v1/images/{image}/check")["state"] == "running"
    assert center.call("DELETE", f"/v1/images/{image}").status == 409
    center.unplay("image_check", "hold")
    wait_check(center, image)
    assert len(checks(center, image)) >= 2
    center.ok("DELETE", f"/v1/images/{image}")


def test_repair_makes_another_image(center, image):
    center.play("image_check", "bad")
    (center.script / "screen.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    center.ok("POST", f"/v1/images/{image}/check", {"repair": True, "name": "sound"})
    first = wait_check(center, image)
    other = center.ok("GET", f"/v1/images/{first['repaired']}")
    assert other["name"] == "sound" and other["base"] == image and other["checked"]["report"]["verdict"] == "passed"
    assert first["report"]["verdict"] == "critical" and "steps" not in first["report"]
    assert other["checked"]["report"]["steps"][0]["files"][0]["path"] == "/etc/fstab"
    # booted as usual
    wait_for("boot", lambda: center.ok("GET", f"/v1/images/{other['id']}")["boot"]["state"] == "passed")
    refused = center.call("DELETE", f"/v1/images/{image}")
    assert refused.status == 409 and other["id"] in refused.json["error"]["message"]
    center.ok("DELETE", f"/v1/images/{other['id']}")
    center.ok("DELETE", f"/v1/images/{image}")


def test_nothing_to_repair_leaves_nothing(center, image):
    center.ok("POST", f"/v1/images/{image}/check", {"repair": True})
    assert wait_check(center, image)["repaired"] is None
    assert list(images(center, image)) == [image]
    made = [line.split() for line in (center.script / "made").read_text().splitlines() if line.endswith(image)]
    assert len(made) == 1 and not (center.script / "world" / f"image.{made[0][0]}").exists()


def test_a_repair_that_cannot_be_noted_leaves_nothing(center, image):
    """No image without a row; and until it is gone its id isn't forgotten."""
    center.play("image_check", "bad")
    with center.database() as db:
        db.execute("CREATE TRIGGER full BEFORE INSERT ON images WHEN NEW.base IS NOT NULL BEGIN SELECT RAISE(ABORT, 'no room for a row'); END")

    def half():
        made = [line.split() for line in (center.script / "made").read_text().splitlines() if line.endswith(image)]
        return {name for name, _ in made}, [name for name, _ in made if (center.script / "world" / f"image.{name}").exists()]

    center.ok("POST", f"/v1/images/{image}/check", {"repair": True})
    failed = wait_check(center, image, "in_error")
    assert failed["repaired"] is None and "no room for a row" in failed["error"]["message"]
    assert len(half()[0]) == 1 and half()[1] == []
    center.play("image_remove", "fail", "it can't be removed")
    center.ok("POST", f"/v1/images/{image}/check", {"repair": True})
    wait_for("the removal's failure", lambda: "it can't be removed; what failed: " in center.tail())
    running = center.ok("GET", f"/v1/images/{image}/check")
    assert running["state"] == "running" and half()[1] == [running["repaired"]]
    with center.database() as db:
        db.execute("DROP TRIGGER full")
    center.unplay("image_remove", "fail")
    assert wait_check(center, image)["repaired"] == running["repaired"]
    assert set(images(center, image)) == {image, running["repaired"]} and len(half()[0]) == 2


def test_a_repair_that_is_killed_makes_one_image(center, image):
    center.play("image_check", "bad")
    center.play("image_repair", "hold")
    center.ok("POST", f"/v1/images/{image}/check", {"repair": True})
    wait_for("repair", lambda: center.calls("image_repair"))
    center.kill()
    center.start()
    center.unplay("image_repair", "hold")
    other = wait_check(center, image)["repaired"]
    found = images(center, image)
    assert set(found) == {image, other}
    assert found[other]["name"] == found[image]["name"] + "-repaired"


def test_a_repair_that_fails(center, image):
    center.play("image_repair", "fail", "no_space: the disk is full")
    center.ok("POST", f"/v1/images/{image}/check", {"repair": True})
    checked = wait_check(center, image, "in_error")
    assert checked["repaired"] is None and checked["error"]["code"] == "no_space"
    center.ok("DELETE", f"/v1/images/{image}")


@pytest.mark.parametrize("body, field", [({"repair": "yes"}, "repair"), ({"name": "x"}, "name"), ({"repair": True, "name": ""}, "name"),
                                         ({"repair": True, "name": "a\nb"}, "name"), ({"repairs": True}, "repairs")])
def test_bad_requests(center, image, body, field):
    answer = center.post(f"/v1/images/{image}/check", body)
    assert answer.status == 400 and answer.json["error"]["field"] == field


def test_the_page_runs_nothing(center, image):
    center.play("image_check", "bad")
    center.ok("PATCH", f"/v1/images/{image}", {"name": "<img src=x onerror=alert(1)>\"'&"})
    center.ok("POST", f"/v1/images/{image}/check", {"repair": True})
    other = wait_check(center, image)["repaired"]
    for one in (image, other):
        answer = center.get(f"/v1/images/{one}/check.html")
        page = answer.raw.decode()
        assert answer.status == 200 and answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "<script" not in page and "<img" not in page and "onerror=alert(1)&gt;&quot;&#39;&amp;" in page
        assert "Debian &lt;b&gt;12&lt;/b&gt;" in page
    first = center.get(f"/v1/images/{image}/check.html").raw.decode()
    assert "&lt;script&gt;" in first and "name it &amp; go" in first and "can be repaired" in first
    assert "/dev/sda1 / &lt;b&gt;" in page and "What the repair changed" in page
