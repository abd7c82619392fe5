"""kill -9 of each party in each stage of one migration of a real server: it ends in a right image all the same."""

import os
import pathlib
import signal
import time

import pytest

from tests.lab import qemu

pytestmark = pytest.mark.xdist_group("server")  # those of one group run in one process, one after the other


def children(name, state):
    """Processes of that program that work in that state directory."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if command[0].decode(errors="replace").endswith(name) and str(state).encode() in b" ".join(command):
            found.append(int(entry.name))
    return found


def wait_child(name, state, timeout=120):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        found = children(name, state)
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"no process '{name}' appeared within {timeout} s")


def wait_progress(center, job, more_than, timeout=300):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        now = center.cli("jobs", "show", job)
        assert now["state"] == "running", now
        if (now["progress"] or {}).get("bytes_sent", 0) > more_than:
            return now
        time.sleep(0.3)
    raise AssertionError("no progress")


@pytest.fixture(scope="module")
def job(center, source):
    return center.cli("jobs", "create", source.id, "--name", "killed", "--image-name", "killed", "--start")["id"]


def restart(center):
    center.kill()
    center.start()


def test_kills_while_preparing_and_syncing(center, source, job):
    source.ssh("systemctl kill -s KILL replant-agent")
    restart(center)
    seen = wait_progress(center, job, 1 << 20)
    source.ssh("systemctl kill -s KILL replant-agent")
    time.sleep(3)
    seen = wait_progress(center, job, 0)
    for pid in wait_child("replant-transition", center.state):
        os.kill(pid, signal.SIGKILL)
    time.sleep(1)
    wait_progress(center, job, 0)
    restart(center)
    wait_progress(center, job, 0)
    assert seen["state"] == "running"
    # An agent killed inside the freeze: the guard thaws.
    end = time.monotonic() + 600
    while time.monotonic() < end:
        now = center.cli("jobs", "show", job)
        if now["stage"] != "syncing" or (now["progress"] or {}).get("phase") in ("freezing", "frozen"):
            break
        time.sleep(0.1)
    source.ssh("systemctl kill -s KILL replant-agent", timeout=300)
    assert source.ssh("touch /srv/data/thawed /thawed && echo yes", timeout=120).strip() == "yes"


def test_kills_while_processing(center, source, job):
    center.wait_job(job, stage="processing", timeout=900)
    source.ssh("systemctl kill -s KILL replant-agent")  # it has nothing to do any more
    killed = wait_child("qemu-system-x86_64", center.state)
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    # Either the center tries again by itself, or it says what happened and goes on when asked.
    end = time.monotonic() + 120
    while not set(children("qemu-system-x86_64", center.state)) - set(killed):
        assert time.monotonic() < end, "no second virtual machine within 120 s"
        now = center.cli("jobs", "show", job)
        if now["state"] == "in_error":
            assert now["error"]["message"]
            center.cli("jobs", "start", job)
        time.sleep(0.1)
    restart(center)


def test_it_ends_in_a_right_image(center, source, job, fish):
    now = center.wait_job(job, timeout=1200)
    if now["state"] == "in_error":  # an appliance killed from outside may be reported; starting again goes on
        center.cli("jobs", "start", job)
        now = center.wait_job(job, timeout=1200)
    assert now["state"] == "finished", f"{now.get('error')}\n{center.tail(40)}"
    image = center.cli("images", "show", now["image"])
    assert image["verified"] is True, image["boot"]
    said = fish(center.disk_of(image), """run
debug sh "e2fsck -fn /dev/vg0/root >/dev/null 2>&1; echo root $?"
debug sh "xfs_repair -n /dev/vg0/data >/dev/null 2>&1; echo data $?"
mount-ro /dev/vg0/root /
mount-ro /dev/vg0/data /srv/data
sh "/usr/local/bin/lab-check writer /srv/data"
""").split("\n")
    assert "root 0" in said and "data 0" in said, said
    assert any(line.isdigit() and int(line) > 0 for line in said), said


def test_nothing_is_left_behind(center, job):
    image = center.cli("jobs", "show", job)["image"]
    center.cli("images", "rm", image, "--yes")
    center.cli("jobs", "rm", job, "--yes")
    end = time.monotonic() + 30
    while time.monotonic() < end:
        left = [str(p) for p in center.state.rglob("*") if image in str(p) or job in str(p)]
        if not left:
            break
        time.sleep(0.5)
    assert not left
    assert not children("replant-transition", center.state)
    assert not children("qemu-system-x86_64", center.state)
