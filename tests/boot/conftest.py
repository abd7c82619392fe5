"""A real server that runs, a center, and the agent on it: made once for all tests of this folder."""

import os
import shutil
import subprocess

import pytest

from tests.lab import build, qemu, servers
from tests.lab.center import Center, open_folder

SERVER = "debian12-lvm-bios"

# Those of one group (a file, or files that share a machine) run in one process, one after the other: the longest begin first.
LONGEST_FIRST = ["test_kills", "test_migrate", "test_image_check", "test_convert_boot", "test_onto_instance", "test_agent_systems",
                 "test_instances", "test_track_machine", "test_testing", "test_play"]


def pytest_collection_modifyitems(items):
    rank = {name: i for i, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def long(instead):
    """A mark for what takes minutes and is asked elsewhere, too: `instead` says where."""
    return pytest.mark.skipif(not int(os.environ.get("REPLANT_LONG", "0")), reason=f"runs with REPLANT_LONG=1; otherwise {instead}")


@pytest.fixture(scope="session")
def center():
    folder = open_folder()
    try:
        with Center(folder / "state") as running:
            yield running
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def source(center, tmp_path_factory):
    """The machine, with `source.id` as the center knows it."""
    server = servers.find(SERVER)
    build.disks(server)
    with build.boot(server, folder=tmp_path_factory.mktemp("source")) as machine:
        machine.wait_ssh(600)
        machine.ssh("systemctl is-system-running --wait || true", timeout=300)
        code = center.cli("codes", "create", "--name", "tests")
        machine.ssh(code["command"], timeout=300)
        machine.id = center.wait_source()["id"]
        yield machine


def guestfish(disk, script, timeout=900):
    """Runs guestfish, which knows nothing of Replant, on a disk of an image without changing it."""
    done = subprocess.run(["guestfish", "--ro", "-a", disk], input=script, env=qemu.guestfs_environment(), capture_output=True, text=True,
                          timeout=timeout, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="session")
def fish():
    return guestfish


def run_again(center, job):
    """One more run of an incremental job; the job as it waits for the next."""
    center.cli("jobs", "run", job)
    now = center.wait_job(job, states=("waiting", "in_error"))
    assert now["state"] == "waiting", f"{now.get('error')}\n{center.tail(40)}"
    return now
