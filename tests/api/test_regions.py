"""Regions that are hosts of libvirt, on its driver "test", which is a host that exists in the center's memory alone."""

import concurrent.futures
import socket
import time

import pytest

from tests.api.harness import wait_for

URI = "test:///default"


@pytest.fixture(scope="module", autouse=True)
def built_with_libvirt(center):
    got = center.call("POST", "/v1/regions", {"id": "probe", "provider": "libvirt", "uri": "test:///default", "pool": "none"})
    assert got.status == 400
    if "built without libvirt" in got.json["error"]["message"]:
        pytest.skip("built without libvirt")


@pytest.fixture
def region(center):
    yield center.ok("POST", "/v1/regions", {"id": "rack2", "name": "second rack", "provider": "libvirt", "uri": URI, "pool": "default-pool"})
    assert center.call("DELETE", "/v1/regions/rack2").status in (204, 404)


def refused(center, method, path, body, status, code, field=None):
    got = center.call(method, path, body)
    assert (got.status, got.json["error"]["code"]) == (status, code), got.json
    if field:
        assert got.json["error"]["field"] == field, got.json
    return got.json["error"]["message"]


def test_region_is_made_and_forgotten(center, region):
    assert region["provider"] == "libvirt" and region["uri"] == URI and region["pool"] == "default-pool"
    assert region["network"] is None and region["capacity"]["instances"] == 1 and region["capacity"]["cpus"] > 0
    assert {r["id"] for r in center.ok("GET", "/v1/regions")["items"]} == {"local", "rack2"}
    assert center.ok("GET", "/v1/regions/local")["uri"] is None
    refused(center, "POST", "/v1/regions", {"id": "rack2", "provider": "libvirt", "uri": URI, "pool": "default-pool"}, 409, "exists")
    refused(center, "POST", "/v1/regions", {"id": "local", "provider": "libvirt", "uri": URI, "pool": "default-pool"}, 409, "exists")
    assert center.ok("GET", "/v1/regions/local")["provider"] != "libvirt"
    center.call("DELETE", "/v1/regions/rack2")
    assert center.call("GET", "/v1/regions/rack2").status == 404


def test_hosts_own_words(center):
    said = refused(center, "POST", "/v1/regions", {"id": "far", "provider": "libvirt", "uri": "qemu+unix:///system?socket=/nowhere/sock"},
                   400, "bad_field", "uri")
    assert "No such file" in said and "/nowhere/sock" in said
    said = refused(center, "POST", "/v1/regions", {"id": "far", "provider": "libvirt", "uri": URI, "pool": "lost"}, 400, "bad_field", "uri")
    assert "lost" in said
    assert center.call("GET", "/v1/regions/far").status == 404


@pytest.mark.parametrize("uri", [
    "qemu+ssh://root:secret@host/system", "qemu+ext://host/system?command=/bin/sh", "qemu+ssh://host/system?command=/bin/sh",
    "qemu+ssh://host/system?netcat=/bin/sh", "qemu+tls://host/system?no_verify=1", "qemu+tcp://host/system", "lxc:///", "test:///etc/passwd",
    "qemu+ssh://-oProxyCommand=x/system", "qemu+ssh://x@-oProxyCommand=x/system", "qemu+ssh:// host/system", "host", "qemu:", "qemu+ssh://host/system?a",
    "qemu+ssh://host/system?socket=/x&command=/bin/sh", "qemu+ssh://host/system#?x", "qemu+ssh://h?command=/x",
    "qemu+ssh://h:pw@x?socket=/x", "qemu+ssh://h:pw@x?command=/x", "qemu+ssh://host/\u00e4"])
def test_addresses_that_are_refused(center, uri):
    said = refused(center, "POST", "/v1/regions", {"id": "bad", "provider": "libvirt", "uri": uri}, 400, "bad_field")
    assert "secret" not in said and "cannot connect" not in said


def test_ids(center):
    for bad in ("Rack", "-x", "a b", "../x", "x" * 41, "x"):
        refused(center, "POST", "/v1/regions", {"id": bad, "provider": "libvirt", "uri": URI}, 400, "bad_field", "id")
    refused(center, "POST", "/v1/regions", {"id": "ok", "provider": "local", "uri": URI}, 400, "bad_field", "provider")


def test_changes(center, region):
    got = center.ok("PATCH", "/v1/regions/rack2", {"network": "bridge:br0", "name": "other", "accelerator": "tcg"})
    assert got["network"] == "bridge:br0" and got["name"] == "other" and got["uri"] == URI and got["accelerator"] == "tcg"
    refused(center, "PATCH", "/v1/regions/rack2", {"pool": "lost"}, 400, "bad_field", "uri")
    refused(center, "PATCH", "/v1/regions/rack2", {"accelerator": "kvm"}, 400, "bad_field", "accelerator")
    refused(center, "PATCH", "/v1/regions/rack2", {"public_address": "x.example"}, 400, "bad_field", "public_address")
    refused(center, "PATCH", "/v1/regions/local", {"uri": URI}, 400, "bad_field", "uri")
    assert center.ok("GET", "/v1/regions/rack2")["pool"] == "default-pool"


def test_who_may(center, region):
    for role in ("viewer", "operator"):
        token = center.role_token(role)
        assert center.call("POST", "/v1/regions", {"id": "mine", "provider": "libvirt", "uri": URI}, token=token).status == 403
        assert center.call("DELETE", "/v1/regions/rack2", token=token).status == 403
    refused(center, "DELETE", "/v1/regions/local", None, 409, "in_use")


def test_job_of_a_region_elsewhere(center, region):
    """It is received and converted at the center, where its data goes, and keeps the region from going."""
    agent = center.agent()
    job = center.started_job(agent.source, region="rack2")
    agent.send_all()
    done = center.wait_job(job)
    assert done["region"] == "rack2" and center.ok("GET", f"/v1/images/{done['image']}")["region"] == "rack2"
    for path in (f"/v1/jobs/{job}", f"/v1/images/{done['image']}"):
        assert "jobs" in refused(center, "DELETE", "/v1/regions/rack2", None, 409, "in_use")
        center.call("DELETE", path)
        wait_for(path, lambda: center.get(path).status == 404)


def test_a_silent_host_holds_nobody_up(fresh, tmp_path):
    """The API has no more than four threads on a small machine; here each has somebody who waits for the host."""
    center, path = fresh(), tmp_path / "libvirt.sock"
    far = {"id": "far", "provider": "libvirt", "uri": f"qemu+unix:///system?socket={path}"}
    with center.database() as db:
        db.execute("INSERT INTO regions (id, name, provider, created) VALUES ('slow', 'slow', 'local', 1)")
    viewer = center.role_token("viewer")
    center.play("instance_capacity", "hold")
    with socket.socket(socket.AF_UNIX) as deaf, concurrent.futures.ThreadPoolExecutor(16) as pool:
        deaf.bind(str(path))
        deaf.listen()
        began = time.monotonic()
        seen = [pool.submit(center.get, "/v1/regions/slow", token=viewer) for _ in range(16)]
        assert [s.result().json["capacity"] for s in seen] == [None] * 16 and time.monotonic() - began < 8
        made = [pool.submit(center.post, "/v1/regions", far) for _ in range(8)]
        time.sleep(1)
        began = time.monotonic()
        assert center.get("/v1/regions/local").json["capacity"] and time.monotonic() - began < 2
        got = [(m.result().status, m.result().code) for m in made]
        assert sorted(set(got)) == [(503, "busy"), (504, "hypervisor_failed")] and got.count((504, "hypervisor_failed")) == 2
    center.unplay("instance_capacity", "hold")
    wait_for("its capacity", lambda: center.get("/v1/regions/slow").json["capacity"])
    assert center.get("/v1/regions/far").status == 404
