"""The center's wall clock goes wrong by days while it works; the one of the tests doesn't, nor the kernel's timers."""
import mmap
import os
import pathlib
import struct
import sys
import time

import pytest
import streamrig

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "api"))
from harness import Center, wait_for  # noqa: E402

SHIM = streamrig.BUILD / "tests/fault/libclock_shim.so"
DAY = 86400


@pytest.fixture
def clock(tmp_path):
    """clock(seconds) sets how wrong it is from now on."""
    path = tmp_path / "clock"
    path.write_bytes(struct.pack("d", 0))
    with open(path, "r+b") as f:
        shared = mmap.mmap(f.fileno(), 8)

    def wrong(seconds):
        struct.pack_into("d", shared, 0, seconds)
    wrong.path = path
    return wrong


@pytest.fixture
def center(tmp_path, clock):
    # AddressSanitizer wants to be the first library; the shim allocates nothing.
    asan = os.environ.get("ASAN_OPTIONS", "") + ":verify_asan_link_order=0"
    c = Center(tmp_path / "center", LD_PRELOAD=SHIM, CLOCK_SHIM=clock.path, ASAN_OPTIONS=asan, HEARTBEAT=0.2, PATIENCE=20)
    yield c
    if c.process.poll() is None:
        c.stop()


def now(center):
    return center.new_code()["created"]


def test_the_clock_is_wrong(center, clock):
    """Else the rest shows nothing."""
    clock(5 * DAY)
    assert abs(now(center) - time.time() - 5 * DAY) < 60


@pytest.mark.parametrize("days", [-3, 3, 20])
def test_a_job_goes_on(center, clock, days):
    """Token, agent, run, heartbeats, clockwork: all of them go on, whatever time it is said to be."""
    agent = center.agent()
    job = center.started_job(agent.source)
    task = agent.wait_task()
    agent.report(task["run"], progress={"phase": "full", "bytes_total": 100, "bytes_done": 10, "round": 1})
    clock(days * DAY)
    agent.report(task["run"], progress={"phase": "full", "bytes_total": 100, "bytes_done": 60, "round": 1})
    assert center.job(job)["state"] == "running"
    # Nothing is heard for a few heartbeats: noticed in time, and the job waits.
    wait_for("unavailable", lambda: center.ok("GET", f"/v1/sources/{agent.source}")["state"] == "unavailable", 10)
    assert center.job(job)["state"] == "running"
    agent.sync()
    wait_for("in use", lambda: center.ok("GET", f"/v1/sources/{agent.source}")["state"] == "in_use", 10)
    agent.send_all()
    done = center.wait_job(job)
    assert done["image"]
    center.agent()  # a new code works, too


def test_back_again(center, clock):
    """Three days ahead for a moment, as a wrong time server may do: no wait of anybody lasts three days."""
    agent = center.agent()
    clock(3 * DAY)
    job = center.started_job(agent.source)
    wait_for("unavailable", lambda: center.ok("GET", f"/v1/sources/{agent.source}")["state"] == "unavailable", 10)
    clock(0)
    agent.sync()
    wait_for("in use", lambda: center.ok("GET", f"/v1/sources/{agent.source}")["state"] == "in_use", 10)
    wait_for("unavailable", lambda: center.ok("GET", f"/v1/sources/{agent.source}")["state"] == "unavailable", 10)
    agent.send_all()
    center.wait_job(job)
    image = center.job(job)["image"]
    center.ok("DELETE", f"/v1/images/{image}")
    center.ok("DELETE", f"/v1/jobs/{job}")
