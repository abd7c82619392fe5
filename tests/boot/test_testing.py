"""A migration test of a real server: its disk is copied, converted and booted, the disk of data isn't; nothing of it remains. Then the
same with the migration behind it, which sends what the test has left out."""

import os
import shutil
import subprocess

import pytest

from tests import schema
from tests.lab.center import Center, open_folder
from tests.lab.rack import Rack

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), pytest.mark.xdist_group("testing")]


@pytest.fixture(scope="module")
def rack():
    folder = open_folder()
    try:
        with Center(folder / "center") as center, Rack(center, folder, data_mib=64) as rack:
            yield rack
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def held(center):
    """What lies in the region."""
    return sorted(str(p.relative_to(center.state / "local")) for kind in ("jobs", "images", "runs", "chains")
                  for p in (center.state / "local" / kind).iterdir())


def test_migration_test(rack):
    center = rack.center
    job = center.cli("jobs", "create", rack.id, "--name", "tested", "--image-name", "tested", "--test-only")["id"]
    row = center.wait_job(job, states=("ready", "in_error"))
    assert row["state"] == "ready", f"{row['error']}\n{center.tail(30)}"
    report = row["test"]
    schema.check_as("Job", row)
    assert report["counts"]["critical"] == 0 and report["boot"]["verified"], report["items"]
    assert report["copy"]["left_out"] == rack.disks[1:] and report["copy"]["copied_bytes"] < report["copy"]["used_bytes"]
    assert {i["item"] for i in report["items"]} >= {"clock", "tracking", "space", "disks", "conversion", "boot", "kernel", "usage"}
    assert held(center) == []
    picture = subprocess.run(["curl", "-sf", "--cacert", center.env["REPLANT_CA"], "-H", f"Authorization: Bearer {center.env['REPLANT_TOKEN']}",
                              f"{center.env['REPLANT_URL']}/v1/jobs/{job}/test/screenshot"], capture_output=True, check=True).stdout
    assert picture.startswith(b"\x89PNG") and len(picture) > 1000
    # A migration behind its test: the second disk comes now.
    center.cli("jobs", "test", job, "--then-migrate")
    row = center.wait_job(job)
    assert row["state"] == "finished" and row["test"]["copy"]["kept"], f"{row['error']}\n{center.tail(30)}"
    print({key: row["test"][key] for key in ("prediction", "actual")})
    image = center.cli("images", "show", row["image"])
    assert image["verified"] and held(center) == [f"images/{image['id']}"]
    same = subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", rack.disks[1], center.disk_of(image, 1)], capture_output=True, text=True)
    assert same.returncode == 0, same.stdout
