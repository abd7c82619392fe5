"""The one agent binary on older and newer systems: it runs, and tells the truth about them."""

import json
import os
import pathlib
import subprocess

import pytest

from tests.boot.conftest import long
from tests.lab import build, cache, servers

pytestmark = pytest.mark.xdist_group("systems")

BUILD = pathlib.Path(os.environ.get("REPLANT_BUILD") or cache.SOURCE / "build")
AGENT = BUILD / "src" / "agent" / "replant-agent"


def test_the_agent_is_one_static_file_of_at_most_6_mb(tmp_path):
    stripped = tmp_path / "replant-agent"
    subprocess.run(["strip", "-o", stripped, AGENT], check=True)
    said = subprocess.run(["ldd", stripped], capture_output=True, text=True)
    assert "not a dynamic executable" in said.stdout + said.stderr or "statically linked" in said.stdout
    assert stripped.stat().st_size <= 6_000_000


@pytest.mark.parametrize("name,version", [("debian11-plain", "11"), ("debian13-plain", "13"),
                                          pytest.param("debian12-lvm-bios", "12", marks=long("test_migrate.py has it"))])
def test_check_and_discover(name, version, tmp_path):
    server = servers.find(name)
    build.disks(server)
    with build.boot(server, folder=tmp_path) as machine:
        machine.wait_ssh(600)
        machine.put(AGENT, "/root/replant-agent")
        found = json.loads(machine.ssh("/root/replant-agent discover --json", timeout=300))
        assert found["os"]["version_id"] == version
        disk = found["disks"][0]
        assert disk["size"] == int(machine.ssh(f"blockdev --getsize64 {disk['path']}"))
        assert found["hostname"] == machine.ssh("hostname").strip()
        mounted = set(machine.ssh("findmnt --real -nlo TARGET").split())
        ours = {m["point"] for f in found["filesystems"] for m in f["mounts"]}
        assert mounted <= ours, found["filesystems"]
        checked = machine.run("/root/replant-agent check --json", timeout=300)
        findings = json.loads(checked.stdout)
        assert checked.returncode == 0, findings
        assert machine.ssh("/root/replant-agent check; true", timeout=300).strip()
