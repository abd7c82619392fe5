"""`make play`: what it starts answers, and nothing of it is left when it is stopped. What a job does with its source, from the copy to
the boot, is in test_migrate.py with a server that runs."""

import json
import os
import pathlib
import shlex
import subprocess

import pytest

from tests.lab import build, cache, servers
from tests.smc import clients

pytestmark = pytest.mark.xdist_group("play")
BUILD = pathlib.Path(os.environ.get("REPLANT_BUILD") or cache.SOURCE / "build")
PLAY = cache.SOURCE / "build" / "play"


def play(verb):
    return subprocess.run([cache.SOURCE / "tools" / "play", verb], capture_output=True, text=True, timeout=900, stdin=subprocess.DEVNULL)


def in_play(command):
    done = subprocess.run(["bash", "-c", f". {shlex.quote(str(PLAY / 'env'))}; {command}"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def whole_migration(kind):
    """By a client that somebody else wrote: copy, conversion, boot, cut-over."""
    env = dict(line.removeprefix("export ").split("=", 1) for line in (PLAY / "env").read_text().splitlines())
    modules = clients.modules(os.environ.get("REPLANT_CACHE") or cache.SOURCE / "build" / "cache")
    drive = clients.Drive(modules, kind, "web-1", env["SMC_ENDPOINT"], env["SMC_ACCESS_KEY_ID"], env["SMC_ACCESS_KEY_SECRET"],
                          env["NODE_EXTRA_CA_CERTS"])
    told = {step["step"]: step for step in drive.steps()}
    status, said = drive.end()
    assert status == 0, said
    image = json.loads(in_play("replant images show --json image-" + told["finished"]["finished"]["ImageId"].removeprefix("m-")))
    assert image["verified"], image["boot"]


@pytest.mark.skipif(BUILD.resolve() != (cache.SOURCE / "build").resolve(), reason="it starts the programs of build/")
def test_play():
    build.disks(servers.find("debian13-plain"))
    try:
        started = play("start")
        assert started.returncode == 0 and "'web-1' can be migrated" in started.stdout, started
        assert (PLAY / "env").stat().st_mode & 0o077 == 0
        (source,) = json.loads(in_play("replant sources ls --json"))["items"]
        assert source["name"] == "web-1" and source["state"] == "available"
        assert json.loads(in_play('curl -s --cacert $REPLANT_CA -H "Authorization: Bearer $REPLANT_TOKEN" $REPLANT_URL/v1/jobs'))["total"] == 0
        # The copy, which stops before anything is booted.
        job = json.loads(in_play("replant jobs create web-1 --json --start").splitlines()[-1])["id"]
        copied = json.loads(in_play(f"for i in $(seq 600); do replant jobs show {job} --json; sleep 0.2; done "
                                    "| jq -c --unbuffered 'select(.stage == \"processing\" or .state != \"running\")' | head -1"))
        assert copied["error"] is None and copied["progress"]["bytes_read"] > 100 << 20, copied
        if os.environ.get("REPLANT_LONG"):
            in_play(f"replant jobs stop {job} --json || true; for i in $(seq 600); do replant jobs rm -y {job} && break; sleep 1; done")
            for kind in ("pop", "openapi"):
                whole_migration(kind)
        again = play("start")
        assert again.returncode == 0 and json.loads(in_play("replant sources ls --json"))["items"][0]["id"] == source["id"]
    finally:
        pids = [int(path.read_text()) for path in PLAY.glob("*.pid")]
        assert play("stop").returncode == 0
    assert len(pids) == 2 and not PLAY.exists()
    for pid in pids:
        assert not pathlib.Path(f"/proc/{pid}/exe").exists() or "replant" not in os.readlink(f"/proc/{pid}/exe")
