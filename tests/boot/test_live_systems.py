"""Jobs of servers with other kernels, from beginning to end under a steady writer: how long they stand still, what a later
run costs, and that a reboot is no harm. test_migrate.py has Debian 12. Takes half an hour each: REPLANT_LONG=1."""

import os
import pathlib
import time

import pytest

from tests.boot.conftest import run_again
from tests.lab import build, cache, servers

pytestmark = [pytest.mark.xdist_group("server"),  # those of one group run in one process, one after the other
              pytest.mark.skipif(not int(os.environ.get("REPLANT_LONG", "0")), reason="runs with REPLANT_LONG=1")]

BUILD = pathlib.Path(os.environ.get("REPLANT_BUILD") or cache.SOURCE / "build")
FREEZE = 1000  # ms


@pytest.fixture(scope="module", params=["debian11-plain", "debian13-plain"])
def live(request, center, tmp_path_factory):
    """A machine with two writers: one for the proof, one for the load."""
    server = servers.find(request.param)
    build.disks(server)
    with build.boot(server, folder=tmp_path_factory.mktemp("live")) as machine:
        machine.wait_ssh(600)
        machine.ssh("systemctl is-system-running --wait || true", timeout=300)
        machine.put(BUILD / "src" / "agent" / "replant-agent", "/root/replant-agent")
        code = center.cli("codes", "create", "--name", server.name)["code"]
        machine.ssh(f"REPLANT_CODE={code} /root/replant-agent enroll --center https://10.0.2.2:{center.port}", timeout=300)
        machine.ssh("mkdir /srv/load")
        machine.server, machine.id = server, center.wait_source(machine.ssh("hostname").strip())["id"]
        yield machine


def load(machine):
    """Blocks of 4 KiB all over 32 MiB, each made durable, as fast as the machine can."""
    machine.ssh("systemd-run --unit=load lab-writer /srv/load 10000")


def left(fish, center, machine, image):
    """The last numbers of both writers; the filesystem is clean, and what they wrote is of one moment."""
    said = fish(center.disk_of(image), f"""run
debug sh "udevadm settle; e2fsck -fn {machine.server.device('/')} 2>&1; echo root $?"
mount-ro /dev/sda1 /
sh "/usr/local/bin/lab-check writer /srv/data"
sh "/usr/local/bin/lab-check writer /srv/load"
""").split("\n")
    assert "root 0" in said, said
    numbers = [int(line) for line in said if line.isdigit()]
    assert len(numbers) == 2, said
    return numbers


def judge(live, center, fish, now, mode):
    progress, image = now["progress"], center.cli("images", "show", now["image"])
    print(f"{live.server.name}: {mode}, freeze {progress['freeze_ms']:.0f} ms, read {progress['bytes_read'] >> 20} MiB, "
          f"sent {progress['bytes_sent'] >> 20} MiB, rounds {progress.get('round')}")
    assert progress["mode"] == "tracked" and 0 < progress["freeze_ms"] < FREEZE
    assert image["verified"] is True, image
    return left(fish, center, live, image)


def test_three_runs_and_a_reboot(live, center, fish):
    load(live)
    job = center.cli("jobs", "create", live.id, "--name", live.server.name, "--image-name", live.server.name, "--incremental",
                     "--start")["id"]
    first = center.wait_job(job, states=("waiting", "in_error"), timeout=1800)
    assert first["state"] == "waiting", f"{first.get('error')}\n{center.tail(40)}"
    seen = [judge(live, center, fish, first, "first")]
    for _ in range(2):
        now = run_again(center, job)
        assert now["progress"]["bytes_read"] < first["progress"]["bytes_read"] / 2, \
            f"{now['progress']}\n{live.ssh('journalctl -u replant-agent -n 30 --no-pager')}"
        seen.append(judge(live, center, fish, now, "later"))
    print(f"writers: {seen}")
    assert all(a < b for old, new in zip(seen, seen[1:]) for a, b in zip(old, new))

    boot = live.ssh("cat /proc/sys/kernel/random/boot_id")
    live.ssh("systemctl reboot || true")
    end = time.monotonic() + 900
    while live.wait_ssh(600) and live.run("cat /proc/sys/kernel/random/boot_id").stdout.decode() in ("", boot):
        assert time.monotonic() < end, "it does not reboot"
        time.sleep(1)
    load(live)
    now = run_again(center, job)
    assert now["progress"]["bytes_read"] > first["progress"]["bytes_read"] // 2  # all of it is compared
    assert now["progress"]["bytes_sent"] < first["progress"]["bytes_sent"] / 2
    after = judge(live, center, fish, now, "after the reboot")
    assert all(a < b for a, b in zip(seen[-1], after))
