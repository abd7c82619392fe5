"""Migrations onto an instance: what is refused, how it goes, and that whatever dies whenever, one of both systems stays and is in use."""

import contextlib
import json
import os
import random
import secrets
import shutil
import subprocess
import time

import pytest

from harness import BUILD, Center, wait_for
from test_every_write import Mortal
from test_smc import Smc, their_id

SEED = int(os.environ.get("REPLANT_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
WHOLE = int(os.environ.get("REPLANT_LOOPS", "0"))
GIB = 1 << 30
OLD = "set-00000000000000aa"
INVENTORY = {"hostname": "shop", "arch": "x86_64", "os": {"id": "debian"}, "boot": {"mode": "bios"}, "memory": {"total": GIB // 2},
             "disks": [{"path": "/dev/vda", "size": GIB, "used": GIB // 4}]}


class Instance:
    """One that is there: in the hypervisor's world and in the center's database."""

    def __init__(self, center, name, state="running", sizes=(GIB,), settings=None):
        self.center, self.name, self.id = center, name, "instance-" + secrets.token_hex(8)
        self.settings = {"name": name, "cpus": 1, "memory_mib": 512, "firmware": "bios", "bus": "virtio", "network": "user",
                         "mac": "52:54:00:00:00:01", "forwards": [], **(settings or {})}
        (center.script / "world").mkdir(exist_ok=True)
        self.write({"settings": self.settings, "state": state, "set": OLD, "sizes": list(sizes), "addresses": [],
                    "sets": [{"set": OLD, "on": None, "image": None, "starts": 3}]})
        with center.database() as db:
            db.execute("INSERT INTO instances (id, name, region, ref, state, settings, disks, deleting, created, updated, tags) "
                       "VALUES (?, ?, 'local', ?, ?, ?, ?, 0, 1, 1, '{}')", (self.id, name, self.id, state, json.dumps(self.settings), OLD))

    @property
    def path(self):
        return self.center.script / "world" / f"instance.{self.id}"

    def world(self):
        return json.loads(self.path.read_text())

    def write(self, world):
        self.path.write_text(json.dumps(world))

    def sets(self):
        return [s["set"] for s in self.world()["sets"]]

    def row(self, *columns):
        with self.center.database() as db:
            return db.row(f"SELECT {', '.join(columns)} FROM instances WHERE id = ?", (self.id,))

    def switching(self):
        text, = self.row("switching")
        return json.loads(text) if text else None

    def step(self):
        return (self.switching() or {}).get("step")

    def wait(self, step, timeout=20):
        return wait_for(f"the step {step}", lambda: self.step() == step, timeout)

    def check_old(self, state="running"):
        """As it was, bit for bit as far as this world has bits, and nothing of the other system is left."""
        world = self.world()
        assert (world["set"], world["state"], self.sets()) == (OLD, state, [OLD]), world
        assert self.row("disks", "job", "image") == (OLD, None, None)
        assert self.switching() is None

    def check_new(self, job, old_too):
        world, new = self.world(), self.world()["set"]
        assert new != OLD and world["state"] == "running" and set(self.sets()) == ({OLD, new} if old_too else {new}), world
        assert self.row("disks", "job") == (new, job)


def misuse(center):
    path = center.script / "misuse"
    return path.read_text() if path.exists() else ""


@pytest.fixture
def agent(center):
    return center.agent(inventory=INVENTORY)


@pytest.fixture
def instance(center, request):
    made = Instance(center, request.node.name[:60] + secrets.token_hex(4))
    yield made
    for path in center.script.iterdir():
        if path.suffix in (".fail", ".failed", ".stage", ".hold", ".delay", ".deaf", ".waits"):
            path.unlink()
    assert misuse(center) == ""


def body(agent, instance, **more):
    return {"source": agent.source, "destination": "instance", "instance": instance.id, "execution": "migrate_now", **more}


def migrated(center, agent, instance, **more):
    job = center.ok("POST", "/v1/jobs", body(agent, instance, **more))["id"]
    agent.send_all()
    return job


def switched(center, agent, instance, **more):
    job = migrated(center, agent, instance, **more)
    center.wait_job(job)
    assert instance.step() == "switched"
    return job


# ---- the way there, and back ----

def test_onto_an_instance_and_back(center, agent, instance):
    (center.script / "screen.png").write_bytes(b"\x89PNG\r\n\x1a\n....")
    job = switched(center, agent, instance)
    row = center.job(job)
    assert (row["destination"], row["instance"]) == ("instance", instance.id)
    instance.check_new(job, old_too=True)
    said = instance.switching()
    assert said["job"] == job and said["image"] == row["image"] and said["from"] == OLD and said["to"] == instance.world()["set"]
    # The old set isn't touched: nothing was started on it since.
    assert [s["starts"] for s in instance.world()["sets"] if s["set"] == OLD] == [3]
    assert json.loads((center.script / "test_boot.given").read_text())["settings"]["firmware"] == "bios"
    picture = center.get(f"/v1/jobs/{job}/screenshot")
    assert picture.status == 200 and b"of an instance" in picture.raw
    assert "Next steps" in center.get(f"/v1/jobs/{job}/log?part=boot").raw.decode()
    # The image under the instance stays.
    assert center.call("DELETE", f"/v1/images/{row['image']}").code == "in_use"
    got = center.post(f"/v1/instances/{instance.id}/rollback")
    assert got.status == 202 and got.json["id"] == instance.id
    wait_for("the old system", lambda: instance.switching() is None)
    instance.check_old()
    assert center.post(f"/v1/instances/{instance.id}/rollback").code == "invalid_state"
    assert center.post(f"/v1/jobs/{job}/rollback").code == "invalid_state"
    center.ok("DELETE", f"/v1/jobs/{job}")
    wait_for("no job", lambda: center.get(f"/v1/jobs/{job}").status == 404)
    assert not list((center.state / "pictures").glob(f"{job}*"))


def replant(center, *words):
    return subprocess.run([BUILD / "src/cli/replant", *words, "--server", f"https://127.0.0.1:{center.port}", "--token-file",
                           center.state / "admin-token", "--ca", center.state / "ca.pem"], capture_output=True, text=True, check=True,
                          stdin=subprocess.DEVNULL, timeout=60)


def test_by_one_command(center, agent, instance):
    """And what a person says at its end, by the instance's name and by the job's."""
    with subprocess.Popen([BUILD / "src/cli/replant", "jobs", "create", agent.source, "--name", "by hand", "--onto", instance.name, "--watch",
                           "--server", f"https://127.0.0.1:{center.port}", "--token-file", center.state / "admin-token", "--ca",
                           center.state / "ca.pem"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as run:
        agent.send_all()
        said = run.communicate(timeout=60)[0]
    assert run.returncode == 0, said
    job = center.ok("GET", f"/v1/jobs?instance={instance.id}")["items"][0]["id"]
    instance.check_new(job, old_too=True)
    assert instance.id in replant(center, "jobs", "show", "by hand").stdout
    picture = center.folder / "picture.png"
    replant(center, "jobs", "screenshot", "by hand", "-o", picture)
    assert b"of an instance" in picture.read_bytes()
    replant(center, "instances", "rollback", instance.name)
    wait_for("the old system", lambda: instance.switching() is None)
    instance.check_old()
    again = center.ok("POST", "/v1/jobs", body(agent, instance, name="once more", parameters={"rollback_on_failure": False}))["id"]
    agent.send_all()
    center.wait_job(again)
    with pytest.raises(subprocess.CalledProcessError):
        replant(center, "jobs", "confirm", "once more")
    replant(center, "jobs", "confirm", "once more", "--yes")
    wait_for("the end", lambda: instance.switching() is None)
    instance.check_new(again, old_too=False)


def test_by_the_other_api(center, agent, instance):
    smc = Smc(center)
    asked = {"RegionId": "local", "SourceId": their_id(agent.source), "TargetType": "TargetInstance", "InstanceId": instance.id.replace("instance-", "i-")}
    job = smc.ok("CreateReplicationJob", **asked)["JobId"]
    one = smc.ok("DescribeReplicationJobs", InstanceId_1=asked["InstanceId"])["ReplicationJobs"]["ReplicationJob"]
    assert [(j["JobId"], j["TargetType"], j["InstanceId"]) for j in one] == [(job, "TargetInstance", asked["InstanceId"])]
    smc.ok("ModifyReplicationJobAttribute", JobId=job, TargetType="TargetInstance", InstanceId=asked["InstanceId"], Name="onto it")
    assert smc.refused("ModifyReplicationJobAttribute", JobId=job, TargetType="Image")[1] == "InvalidParameter"
    other = center.agent(inventory=INVENTORY)
    assert smc.refused("CreateReplicationJob", **dict(asked, SourceId=their_id(other.source)))[1] == "InvalidInstanceId.NotMatched"
    smc.ok("StartReplicationJob", JobId=job)
    agent.send_all()
    center.wait_job("job-" + job[2:])
    instance.check_new("job-" + job[2:], old_too=True)
    center.ok("POST", f"/v1/instances/{instance.id}/rollback", {})
    wait_for("the old system", lambda: instance.switching() is None)


def test_confirmed(center, agent, instance):
    job = switched(center, agent, instance)
    assert center.post(f"/v1/jobs/{job}/confirm").status == 202
    wait_for("the end", lambda: instance.switching() is None)
    instance.check_new(job, old_too=False)
    assert center.post(f"/v1/instances/{instance.id}/confirm").code == "invalid_state"
    assert center.post(f"/v1/instances/{instance.id}/rollback").code == "invalid_state"
    instance.check_new(job, old_too=False)


def test_confirmed_onto_an_imported_one(center, agent, instance):
    """What it had before is no set of ours and stays; the migration ends all the same."""
    world = json.loads(json.dumps(instance.world()).replace(OLD, "original"))
    instance.write(world)
    with center.database() as db:
        db.execute("UPDATE instances SET disks = 'original' WHERE id = ?", (instance.id,))
    job = switched(center, agent, instance)
    center.ok("POST", f"/v1/instances/{instance.id}/confirm", {})
    wait_for("the end", lambda: instance.switching() is None)
    assert instance.row("disks", "job") == (instance.world()["set"], job)
    assert instance.sets() == ["original", instance.world()["set"]]


def test_rolled_back_by_the_job_when_it_is_gone_and_off_before(center, agent):
    instance = Instance(center, "off before", state="off")
    job = switched(center, agent, instance)
    center.ok("DELETE", f"/v1/jobs/{job}")
    wait_for("no job", lambda: center.get(f"/v1/jobs/{job}").status == 404)
    assert center.post(f"/v1/instances/{instance.id}/rollback").status == 202
    wait_for("the old system", lambda: instance.switching() is None)
    instance.check_old(state="off")


@pytest.mark.parametrize("at", ["set_add", "instance_stop", "set_use", "instance_start"])
def test_a_step_that_fails_leads_back(center, agent, instance, at):
    center.play("convert", "hold")
    job = center.ok("POST", "/v1/jobs", body(agent, instance))["id"]
    agent.send_all()
    center.play(at, "fail", "no_space: the disk is full" if at == "set_add" else "the hypervisor is tired")
    center.unplay("convert", "hold")
    if at in ("instance_stop", "instance_start", "set_use"):
        # The way back takes the same call: it waits there, and says why.
        wait_for("trouble", lambda: (instance.switching() or {}).get("trouble"))
        assert instance.step().startswith("back_")
        center.unplay(at, "fail")
        center.restart()
    row = center.wait_job(job, "in_error")
    wait_for("the old system", lambda: instance.switching() is None)
    instance.check_old()
    assert row["error"]["code"] in ("switch_failed", "no_space"), row["error"]
    # Started again, it has its image and goes on with the instance.
    if at == "set_add":
        center.unplay(at, "fail")
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    center.wait_job(job)
    instance.check_new(job, old_too=True)


@pytest.mark.parametrize("how", ["failed", "stage"])
def test_a_system_that_does_not_come_up(center, agent, instance, how):
    center.play("instance_boot", "stage", "kernel")
    center.play("instance_boot", how, "kernel")
    job = migrated(center, agent, instance)
    row = center.wait_job(job, "in_error")
    assert row["error"]["code"] == "switch_failed" and "did" in row["error"]["message"], row["error"]
    instance.check_old()
    assert center.get(f"/v1/jobs/{job}/screenshot").status == 200


def test_a_hypervisor_that_is_silent_for_a_moment(center, agent, instance):
    """Which says nothing about the new system."""
    center.play("instance_start", "hold")
    job = migrated(center, agent, instance)
    wait_for("the call", lambda: ["instance_start", instance.id] in center.calls("instance_start"))
    looks = len(center.calls("instance_get"))
    center.play("instance_get", "fail", "the link is down")
    center.unplay("instance_start", "hold")
    wait_for("looks", lambda: len(center.calls("instance_get")) > looks and instance.step() == "judging")
    center.unplay("instance_get", "fail")
    center.wait_job(job)
    instance.check_new(job, old_too=True)


def test_back_from_a_system_that_waits(center, agent, instance):
    """For room on its host's disk, say: it hears no power button, and can't be asked to go."""
    switched(center, agent, instance)
    instance.write(dict(instance.world(), state="paused"))
    center.play("instance_stop", "waits")
    center.ok("POST", f"/v1/instances/{instance.id}/rollback", {})
    wait_for("the old system", lambda: instance.switching() is None)
    instance.check_old()


def test_a_system_that_stays_although_it_did_not_come_up(center, agent, instance):
    center.play("instance_boot", "failed")
    job = migrated(center, agent, instance, parameters={"rollback_on_failure": False})
    row = center.wait_job(job, "in_error")
    assert row["error"]["code"] == "system_not_up" and instance.step() == "switched"
    new = instance.world()["set"]
    assert new != OLD and set(instance.sets()) == {OLD, new}
    # Somebody helps it, and the job ends well.
    center.unplay("instance_boot", "failed")
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    center.wait_job(job)
    assert instance.world()["set"] == new
    center.ok("POST", f"/v1/instances/{instance.id}/rollback", {})
    wait_for("the old system", lambda: instance.switching() is None)
    instance.check_old()


@pytest.mark.parametrize("at", ["set_add", "instance_stop", "set_use", "instance_start", "instance_get"])
def test_a_person_who_wants_back_in_the_middle(center, agent, instance, at):
    center.play("convert", "hold")
    job = center.ok("POST", "/v1/jobs", body(agent, instance))["id"]
    agent.send_all()
    if at == "instance_get":
        center.play("instance_boot", "stage", "kernel")
        center.unplay("convert", "hold")
        instance.wait("judging")
    else:
        center.play(at, "hold")
        center.unplay("convert", "hold")
        wait_for("the call", lambda: [at, instance.id] in center.calls(at))
    assert center.post(f"/v1/instances/{instance.id}/confirm").code == "invalid_state"
    assert center.post(f"/v1/jobs/{job}/rollback").status == 202
    if at in ("set_use", "instance_start"):
        center.unplay(at, "hold")
    if at == "instance_stop":
        instance.wait("back_stopping")
        center.unplay(at, "hold")
    row = center.wait_job(job, "in_error")
    assert row["error"]["code"] == "rolled_back", row["error"]
    instance.check_old()


def test_an_instance_that_is_deaf(center, agent, instance):
    """It doesn't heed its button; that takes as long as it takes, and then the power goes."""
    job = center.ok("POST", "/v1/jobs", body(agent, instance))["id"]
    center.play("instance_stop", "fail", "x")
    center.unplay("instance_stop", "fail")
    agent.send_all()
    center.wait_job(job)
    instance.check_new(job, old_too=True)


# ---- no space ----

@pytest.fixture
def small_disk(tmp_path):
    """A filesystem of 96 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "none", folder], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder):
    """Not a byte is left."""
    with open(folder / "filler", "ab", buffering=0) as f:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    f.write(b"x" * size)


def test_rolled_back_when_nothing_fits_any_more(small_disk):
    """The hypervisor has no room and the database neither: what was kept for this moment is used."""
    center = Center(small_disk / "center")
    try:
        agent, instance = center.agent(inventory=INVENTORY), Instance(center, "full")
        switched(center, agent, instance)
        assert (center.state / "reserve").stat().st_blocks >= 4 << 11
        # The world that the script pretends is elsewhere.
        center.kill()
        elsewhere = small_disk.parent / "script"
        shutil.copytree(center.script, elsewhere)
        center.script, center.env["SCRIPT"] = elsewhere, str(elsewhere)
        # One that was cut off while it was made is none.
        (center.state / "reserve").write_bytes(b"")
        center.start()
        wait_for("a whole reserve", lambda: (center.state / "reserve").stat().st_blocks >= 4 << 11, 30)
        for name in ("set_add", "set_fork", "set_snapshot"):
            center.play(name, "fail", "no_space: no room")
        fill(small_disk)
        # So that it needs more than what lies in its log already.
        with pytest.raises(AssertionError, match="no_space|full|507"):
            for n in range(300):
                center.ok("POST", "/v1/codes", {"description": "x" * 500})
        assert center.post(f"/v1/instances/{instance.id}/rollback").status == 202, center.tail()
        assert not (center.state / "reserve").exists()
        wait_for("the old system", lambda: instance.switching() is None)
        instance.check_old()
        assert misuse(center) == ""
        (small_disk / "filler").unlink()
        wait_for("another reserve", (center.state / "reserve").exists, 30)
    finally:
        center.kill()


# ---- what is refused ----

def test_onto_an_instance_that_is_not_theirs(center, agent, instance):
    """Who is limited to tags starts nothing over what they don't see, whoever has made the job."""
    token = center.ok("POST", "/v1/tokens", {"name": "web", "role": "operator", "scope": {"team": "web"}})["token"]
    job = center.ok("POST", "/v1/jobs", {**body(agent, instance), "execution": "create_only", "tags": {"team": "web"}})["id"]
    for path in ("start", "run"):
        got = center.post(f"/v1/jobs/{job}/{path}", token=token)
        assert got.status in (404, 409), got
    assert center.post(f"/v1/jobs/{job}/start", token=token).status == 404
    assert center.get(f"/v1/jobs/{job}/screenshot", token=token).status == 404
    assert center.job(job)["state"] == "ready"
    center.ok("PATCH", f"/v1/instances/{instance.id}", {"tags": {"team": "web"}})
    assert center.post(f"/v1/jobs/{job}/start", token=token).status == 202
    agent.send_all()
    center.wait_job(job)
    instance.check_new(job, old_too=True)
    center.ok("POST", f"/v1/instances/{instance.id}/rollback", {})
    wait_for("the old system", lambda: instance.switching() is None)


def refused(center, agent, instance, code, *says, status=409, **more):
    got = center.post("/v1/jobs", body(agent, instance, **more))
    assert (got.status, got.code) == (status, code), got
    for text in says:
        assert text in got.json["error"]["message"], got
    return got


def test_what_does_not_fit(center, instance):
    big = dict(INVENTORY, arch="aarch64", boot={"mode": "uefi"},
               disks=[{"path": "/dev/vda", "size": 2 * GIB, "used": GIB}, {"path": "/dev/vdb", "size": GIB, "used": None}])
    agent = center.agent(inventory=big)
    refused(center, agent, instance, "not_compatible", "'aarch64'", "'uefi'", "make disk 1 of the instance at least 2147483648 bytes big",
            "2 disks, the instance 1")
    assert center.ok("GET", f"/v1/jobs?source={agent.source}")["total"] == 0
    instance.check_old()


def test_missing_paused_and_half_deleted(center, agent, instance):
    world = instance.world()
    instance.write(dict(world, state="paused"))
    refused(center, agent, instance, "not_compatible", "paused")
    instance.path.unlink()
    refused(center, agent, instance, "not_compatible", "no such instance")
    instance.write(world)
    with center.database() as db:
        db.execute("UPDATE instances SET deleting = 1 WHERE id = ?", (instance.id,))
    refused(center, agent, instance, "instance_in_use", "being deleted")


def test_a_silent_host_is_no_reason_to_wait(center, agent, instance):
    center.play("instance_get", "hold")
    began = time.monotonic()
    got = center.post("/v1/jobs", body(agent, instance, execution="create_only"))
    center.unplay("instance_get", "hold")
    assert (got.status, got.code) == (504, "hypervisor_failed") and time.monotonic() - began < 8
    # What isn't told of its host doesn't matter.
    wait_for("who was asked", lambda: center.get(f"/v1/instances/{instance.id}").status == 200)
    center.play("instance_capacity", "hold")
    got = center.post("/v1/jobs", body(agent, instance, execution="create_only"))
    center.unplay("instance_capacity", "hold")
    assert got.status == 201, got


def test_odd_requests(center, agent, instance):
    for change, field in (({"instance": None}, "instance"), ({"instance": "instance-0123456789abcdef"}, "instance"),
                          ({"instance": "x"}, "instance"), ({"destination": "image"}, "instance"), ({"destination": "moon"}, "destination"),
                          ({"parameters": {"incremental": True}}, "parameters.incremental")):
        got = center.post("/v1/jobs", dict(body(agent, instance), **change))
        assert (got.status, got.code, got.field) == (400, "bad_field", field), (change, got)
    job = center.ok("POST", "/v1/jobs", body(agent, instance, execution="create_only"))["id"]
    got = center.call("PATCH", f"/v1/jobs/{job}", {"parameters": {"incremental": True}})
    assert (got.status, got.field) == (400, "parameters.incremental")
    assert center.get(f"/v1/jobs/{job}/screenshot").status == 404


def test_two_jobs_for_one_instance(center, agent, instance):
    other = center.agent(inventory=INVENTORY)
    job = center.ok("POST", "/v1/jobs", body(agent, instance, execution="create_only", client_token="once" + instance.id))["id"]
    refused(center, other, instance, "instance_in_use", job)
    # The database has the rule by itself.
    with center.database() as db:
        second = center.new_job(other.source)
        with pytest.raises(Exception, match="(?i)unique"):
            db.execute("UPDATE jobs SET instance = ? WHERE id = ?", (instance.id, second))
    center.ok("DELETE", f"/v1/jobs/{second}")
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    agent.send_all()
    center.wait_job(job)
    # Finished, but nobody knows yet which of both systems it will be.
    refused(center, other, instance, "instance_in_use", "confirmed or rolled back")
    # Who asks once more for the same gets the same, although the instance is busy now: with that very job.
    got = center.post("/v1/jobs", body(agent, instance, execution="create_only", client_token="once" + instance.id))
    assert got.status == 200 and got.json["id"] == job
    center.ok("POST", f"/v1/instances/{instance.id}/rollback", {})
    wait_for("the old system", lambda: instance.switching() is None)
    assert center.post("/v1/jobs", body(other, instance, execution="create_only")).status == 201


def test_changed_since_the_job_was_made(center, agent, instance):
    center.play("convert", "hold")
    job = center.ok("POST", "/v1/jobs", body(agent, instance))["id"]
    agent.send_all()
    instance.write(dict(instance.world(), sizes=[GIB // 2]))
    center.unplay("convert", "hold")
    row = center.wait_job(job, "in_error")
    assert row["error"]["code"] == "not_compatible" and "make disk 1" in row["error"]["message"]
    assert instance.world()["set"] == OLD and instance.world()["state"] == "running"


# ---- deaths ----

def test_killed_while_the_way_back_waits_for_something_else(center, agent, instance):
    """What was being done ends after the restart, and then the way back is gone."""
    switched(center, agent, instance)
    center.play("instance_stop", "hold")
    assert center.post(f"/v1/instances/{instance.id}/stop", {}).status == 202
    center.ok("POST", f"/v1/instances/{instance.id}/rollback", {})
    assert instance.step() == "back_stopping"
    center.kill()
    center.unplay("instance_stop", "hold")
    center.start()
    wait_for("the old system", lambda: instance.switching() is None)
    instance.check_old()


def test_killed_while_it_is_deleted_in_the_middle_of_the_way_back(center, agent, instance):
    switched(center, agent, instance)
    center.play("instance_stop", "fail", "stuck")
    center.ok("POST", f"/v1/instances/{instance.id}/rollback", {})
    wait_for("nobody at work", lambda: center.ok("GET", f"/v1/instances/{instance.id}")["action"] is None and
             (instance.switching() or {}).get("trouble"))
    center.play("instance_remove", "hold")
    center.unplay("instance_stop", "fail")
    assert center.call("DELETE", f"/v1/instances/{instance.id}?force=true").status == 202
    center.kill()
    center.unplay("instance_remove", "hold")
    center.start()
    wait_for("no instance", lambda: center.get(f"/v1/instances/{instance.id}").status == 404)
    assert not instance.path.exists()


def both_there(instance):
    """At any moment, whatever was killed: what is in use is whole, and the old system stays until somebody has confirmed."""
    world = instance.world()
    whole = [s["set"] for s in world["sets"] if not s.get("half")]
    assert world["set"] in whole, world
    return OLD in whole


class Armed(Mortal):
    """Dies of one script, and is started again without it."""

    def __init__(self, center, script):
        super().__init__(center)
        start = type(center).start

        def start_without():
            (center.script / script).unlink(missing_ok=True)
            start(center)
        center.start = start_without


def life(center, name, end, kill, late=False, script="die.at"):
    """One migration onto an instance and its end; the number of deaths. kill(): from now on (or, late, from the end on) it may die."""
    mortal = Armed(center, script)
    agent, instance = mortal(center.agent, inventory=INVENTORY), Instance(center, name)
    center.play("convert", "hold")
    job = mortal(center.ok, "POST", "/v1/jobs", body(agent, instance, client_token=name))["id"]
    task = agent.wait_task()
    center.commit(task["run"])
    agent.report(task["run"], "done", progress={"phase": "done", "freeze_ms": 5}, result={"notes": []})
    wait_for("the conversion", lambda: ["convert", job] in center.calls("convert"))
    if not late:
        kill()
    center.unplay("convert", "hold")

    def over():
        assert both_there(instance)
        row = center.job(job)
        if end == "middle" and instance.step() == "judging":
            assert center.post(f"/v1/jobs/{job}/rollback").status in (202, 409)
        assert row["state"] in ("running", "finished") or end in ("itself", "middle"), (row["error"], center.tail())
        return row["state"] != "running" and row

    row = mortal.until("switched, or not", over)
    if end in ("itself", "middle"):
        assert (row["state"], row["error"]["code"]) == ("in_error", "switch_failed" if end == "itself" else "rolled_back"), row["error"]
    elif instance.switching():
        instance.check_new(job, old_too=True)
    if late:
        kill()

    def ended():
        if instance.switching() is None:
            return True
        got = center.post(f"/v1/instances/{instance.id}/{end}")
        assert got.status in (202, 409), got
        assert both_there(instance) or end == "confirm"
        return False

    mortal.until(end, ended)
    if end == "confirm":
        instance.check_new(job, old_too=False)
    else:
        instance.check_old()
    assert misuse(center) == "", misuse(center)
    return mortal.deaths


@pytest.mark.parametrize("end", ["rollback", "confirm", "itself", "middle"])
def test_killed_at_every_write_of_a_switch(fresh, end):
    center, dice, at = fresh(SWITCH_BOOT=60), random.Random(SEED), 0
    if end in ("itself", "middle"):
        center.play("instance_boot", "failed" if end == "itself" else "stage", "kernel")
    print(f"REPLANT_SEED={SEED}")
    while True:
        at += 1 if WHOLE else dice.randrange(3, 9)

        def kill():
            center.play("die", "at", str(at))
        deaths = life(center, f"{end}-{at}", end, kill)
        print(f"write {at}: {deaths} deaths")
        # Which statement it is to be is read once in a program's life: it may still come, also when the center is asked to end.
        if not deaths:
            center.unplay("die", "at")
        center.restart()
        if not deaths:
            break
    assert at > 20, "a switch has more writes than that"


THERE = ("instance_get", "set_add", "instance_stop", "set_use", "instance_start", "instance_screenshot")
BACK = {"rollback": ("instance_stop", "set_use", "instance_start", "set_drop"), "confirm": ("set_drop",)}


@pytest.mark.parametrize("when", ["die", "dies"])
@pytest.mark.parametrize("end", ["rollback", "confirm"])
def test_killed_at_every_call_of_a_switch(fresh, end, when):
    """Before the hypervisor has done anything, and when it has done it but nobody knows: on the way there, and on the way back."""
    center = fresh()
    for late, calls in ((False, THERE), (True, BACK[end])):
        for call in calls:
            if when == "dies" and call in ("instance_get", "instance_screenshot"):
                continue  # they do nothing
            deaths = life(center, f"{end}-{call}-{when}-{late}", end, lambda: center.play(call, when), late, f"{call}.{when}")
            assert deaths == 1, (call, late)
