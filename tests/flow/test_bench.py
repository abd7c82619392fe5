"""The benchmark still runs, small and once, and every figure is there; what the figures are is no business of a test."""
import json
import os
import pathlib
import shutil
import subprocess

import pytest

from tests.lab.center import open_folder

TREE = pathlib.Path(__file__).resolve().parents[2]
FIGURES = ["full copy, loopback", "nothing changed, compared", "1 % changed",
           "nothing changed, tracked", "read of the disk for it", "full copy, 1000 Mbit/s", "share of the line", "--rate 100",
           "freeze under a random writer", "random writes", "sequential writes", "peak memory: agent", "peak memory: receiver",
           "peak memory: replantd"]
PEERS = ["nbdcopy", "qemu-img", "rsync", "partclone"]


@pytest.fixture
def work():
    folder = open_folder()  # a center wants a state directory that its unprivileged children reach
    yield folder / "bench"
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: mounts and network namespaces")
def test_quick(work):
    r = subprocess.run([str(TREE / "bench/run"), "--quick", "--build", os.environ.get("REPLANT_BUILD", str(TREE / "build")),
                        "--work", str(work)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)
    assert r.returncode == 0, r.stdout[-4000:]
    rows = json.loads((work / "results.json").read_text())
    for row in rows:
        assert set(row) == {"name", "unit", "ours", "peer", "peer_name", "ratio", "aim", "met", "note"}
        assert (row["ours"] is None) == bool(row["note"]), row
        assert row["ours"] is None or row["ours"] > 0, row
        if row["peer"] is not None:
            assert abs(row["ratio"] - row["ours"] / row["peer"]) < 0.05 * row["ratio"] + 0.01, row
    missing = [f for f in FIGURES if not any(row["name"].startswith(f) and row["ours"] for row in rows)]
    assert not missing
    assert not [p for p in PEERS if not any((row["peer_name"] or "").startswith(p) for row in rows)]
    assert all(row["name"] in (work / "table.md").read_text() for row in rows)
    # Nothing stays: no mount, no loop device.
    assert str(work) not in pathlib.Path("/proc/mounts").read_text()
    assert str(work) not in subprocess.run(["losetup", "-a"], capture_output=True, text=True, check=True).stdout
