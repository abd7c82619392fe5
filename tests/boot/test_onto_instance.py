"""A real server is migrated onto an instance that is there already, on this host's QEMU and on a host of libvirt, with one command each;
and taken back, bit for bit."""

import hashlib
import os
import pathlib
import shutil
import socket
import subprocess
import time

import pytest

from tests.boot.libvirthost import Host, Unusable
from tests.lab.center import Center, open_folder
from tests.lab.rack import Rack

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.xdist_group("onto")]


@pytest.fixture(scope="module")
def rack():
    folder = open_folder()
    try:
        with Center(folder / "center") as center, Rack(center, folder) as rack:
            yield rack
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def image(rack):
    """What the instances have before: any system of ours does."""
    job = rack.center.cli("jobs", "create", rack.id, "--name", "before", "--no-test-boot", "--no-image-check", "--start")["id"]
    row = rack.center.wait_job(job)
    assert row["state"] == "finished", f"{row['error']}\n{rack.center.tail(30)}"
    return row["image"]


@pytest.fixture
def region(request, rack, tmp_path):
    """Its id, and where the disks of an instance lie."""
    center = rack.center
    if request.param == "local":
        yield "local", lambda ref: sorted((center.state / "local" / "instances" / ref / "sets").rglob("*.qcow2"))
        return
    host = Host(tmp_path)
    try:
        try:
            host.start()
        except Unusable as e:
            pytest.skip(str(e))
        done = say(center, "regions", "add", "rack", "--uri", host.uri, "--accelerator", "tcg", "--network", "user", check=False)
        if "built without libvirt" in done:
            pytest.skip("built without libvirt")
        yield "rack", lambda ref: sorted(host.pool.glob(f"replant-{ref}-*.qcow2"))
        center.cli("regions", "rm", "rack", "--yes")
    finally:
        host.stop()


def say(center, *words, check=True, timeout=3000):
    """What a person sees."""
    done = subprocess.run([center.program("replant"), *words], env=dict(os.environ, **center.env), capture_output=True, text=True,
                          timeout=timeout, stdin=subprocess.DEVNULL)
    assert not check or done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-2000:]}\n{center.tail(30)}"
    return done.stdout + done.stderr


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def digests(files):
    return {str(path): hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest() for path in files}


def instance(center, name):
    return center.cli("instances", "show", name)


@pytest.mark.parametrize("region", ["local", "libvirt"], indirect=True)
def test_onto_and_back(rack, image, region, tmp_path):
    center, (where, disks) = rack.center, region
    name = f"shop-{where}"
    # A port of this host leads to its SSH, where that can be.
    port = free_port() if where == "local" else None
    say(center, "instances", "create", image, name, "--region", where, "--memory", "1024", "--no-start",
        *(["--forward", f"{port}:22"] if port else []))
    before = instance(center, name)
    old = digests(disks(before["ref"]))
    assert old and before["state"] == "off"

    said = say(center, "jobs", "create", rack.id, "--name", f"onto-{where}", "--onto", name, "--watch")
    print(said[-1500:])
    job = center.cli("jobs", "show", f"onto-{where}")
    assert job["state"] == "finished" and job["destination"] == "instance", job
    made = center.cli("images", "show", job["image"])
    assert made["verified"] and made["checked"]["state"] == "finished" and made["boot"]["report"]["verified"]
    say(center, "jobs", "screenshot", f"onto-{where}", "--output", str(tmp_path / "new.png"))
    assert (tmp_path / "new.png").read_bytes().startswith(b"\x89PNG")
    now = instance(center, name)
    assert now["state"] == "running" and now["switching"]["step"] == "switched" and now["disks"] != before["disks"]
    assert digests(old) == old, "what it had before is as it was"
    if port:
        with socket.create_connection(("127.0.0.1", port), timeout=120) as sock:
            assert sock.recv(64).startswith(b"SSH-")

    say(center, "instances", "rollback", name)
    end = time.monotonic() + 300
    while (now := instance(center, name))["switching"]:
        assert time.monotonic() < end, now
        time.sleep(1)
    assert (now["state"], now["disks"]) == ("off", before["disks"])
    assert digests(disks(before["ref"])) == old, "bit for bit, and nothing beside it"
    say(center, "instances", "rm", name, "--yes")
    assert not disks(before["ref"])
