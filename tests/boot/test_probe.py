"""The test boot's probe, as a program in a machine of its own: a small one, with a systemd that only says so."""

import json
import os
import pathlib

import pytest

from tests.lab import quick

BUILD = pathlib.Path(os.environ.get("REPLANT_BUILD", pathlib.Path(__file__).resolve().parents[2] / "build"))
PORT = "org.replant.probe.0"

SYSTEMCTL = """#!/bin/bash
case $1 in
    is-system-running) echo running ;;
    is-active) echo inactive ;;
    show) cat /run/units ;;
esac
"""
UNITS = "Id=web.service\\nSubState=%s\\nUnitFileState=enabled\\n"
CHECKS = {"plain": ("echo hello; test $(id) || exit 0\n", 60), "no": ("#!/bin/bash\necho one\necho two >&2\nexit 3\n", 60),
          "slow": ("#!/bin/bash\nsleep 100 &\necho waiting\nsleep 100\n", 2),
          "much": ("#!/bin/bash\nfor ((i = 0; i < 9999; i++)); do echo line $i; done\n", 60), "nobody": ("#!/no/such\n", 60)}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the probe told, line by line. The service that it is to wait for starts late."""
    folder = tmp_path_factory.mktemp("probe")
    files = {"/usr/lib/replant/probe": BUILD / "src/transition/replant-transition", "/usr/bin/sh": "/bin/bash", "/usr/bin/timeout": "/usr/bin/timeout"}
    for i, (script, _) in enumerate(CHECKS.values()):
        (folder / f"check-{i}").write_text(script)
        files[f"/usr/lib/replant/check-{i}"] = folder / f"check-{i}"
    (folder / "systemctl").write_text(SYSTEMCTL)
    files["/usr/bin/systemctl"] = folder / "systemctl"
    asks = {"checks": [{"name": name, "timeout": seconds} for name, (_, seconds) in CHECKS.items()],
            "expect": {"units": ["web.service"], "listening": []}}
    with quick.Quick("bookworm", [], folder / "vm", files=files, ports=(PORT,)) as vm:
        vm.sh(f"mkdir -p /run/systemd/system /etc\nprintf '{UNITS % 'dead'}' >/run/units\n"
              "echo 'root:x:0:0::/root:/bin/bash' >/etc/passwd\n"
              f"cat >/usr/lib/replant/probe.json <<'E'\n{json.dumps(asks)}\nE")
        vm.spawn("probe", "/usr/lib/replant/probe probe")
        vm.spawn("late", f"sleep 8; printf '{UNITS % 'running'}' >/run/units.new; mv /run/units.new /run/units")
        lines = []
        while not lines or lines[-1]["event"] != "report":
            lines.append(json.loads(vm.port(PORT).line(300, "the probe's next word")))
        lines.append(vm.sh("sleep 1; for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline || true; echo; done 2>/dev/null"))
    return lines


def test_its_events(said):
    assert [line["event"] for line in said[:-1]] == ["started", "state", "checking", "report"]


def test_it_waits_for_what_is_expected(said):
    report = said[-2]
    assert report["survey"]["units"] == [{"name": "web.service", "state": "running", "enabled": "enabled"}]
    assert report["survey"]["users"] == [{"name": "root", "id": 0}] and report["survey"]["init"] == "systemd"


def test_its_checks(said):
    checks = {c["name"]: c for c in said[-2]["checks"]}
    assert list(checks) == list(CHECKS)
    assert {name: (c["status"], c["timed_out"]) for name, c in checks.items()} == {
        "plain": (0, False), "no": (3, False), "slow": (137, True), "much": (0, False), "nobody": (127, False)}
    assert checks["plain"]["output"].startswith("hello\n") and checks["no"]["output"] == "one\ntwo\n"
    assert checks["slow"]["output"] == "waiting\n" and 2 <= checks["slow"]["seconds"] < 30
    assert len(checks["much"]["output"]) == 4096 and checks["much"]["output"].endswith("line 9998\n")
    assert "check-4" in checks["nobody"]["output"]
    assert "sleep 100" not in said[-1], "what a check left in the background goes on"
