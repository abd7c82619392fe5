"""A power cut at each step of a migration onto an instance of this host: everything is killed, the center and QEMU. Afterwards the old
system boots or the new one does, never neither; and what is rolled back is bit for bit what it was.

The guests are one sector each: they say who they are on the serial line, count their boots on their disk, and obey the power button. The
copy is pretended (tests/api/scripted.c), the disks, sets and machines are real. REPLANT_LOOPS=200 takes every step, else some."""

import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "api"))
from harness import Center, wait_for  # noqa: E402
from test_every_write import LOST  # noqa: E402

pytestmark = pytest.mark.xdist_group("rollback")

MIB = 1 << 20
SIZE = 8 * MIB
WHOLE = int(os.environ.get("REPLANT_LOOPS", "0"))
SEED = int(os.environ.get("REPLANT_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
INVENTORY = {"hostname": "shop", "arch": "x86_64", "os": {"id": "debian"}, "boot": {"mode": "bios"}, "memory": {"total": 128 * MIB},
             "disks": [{"path": "/dev/vda", "size": SIZE, "used": MIB}]}

SECTOR = """
.code16
	cli
	xor %ax, %ax
	mov %ax, %ds
	mov %ax, %ss
	mov $0x7c00, %sp
	sti
	mov $0x602, %dx
	mov $0x100, %ax
	out %ax, %dx
	mov $0x80, %dl
	mov $0x42, %ah
	mov $packet, %si
	int $0x13
	incl 0x8000
	mov $0x80, %dl
	mov $0x4300, %ax
	mov $packet, %si
	int $0x13
	mov $hello, %si
1:	lodsb
	test %al, %al
	jz again
	push %ax
	mov $0x3fd, %dx
3:	in %dx, %al
	test $0x20, %al
	jz 3b
	pop %ax
	mov $0x3f8, %dx
	out %al, %dx
	jmp 1b
again:	mov $0x600, %dx
	in %dx, %ax
	test $0x100, %ax
	jz slow
	mov $0x604, %dx
	mov $0x2000, %ax
	out %ax, %dx
slow:	hlt
	jmp again
hello:	.ascii "\\r\\nWHO login: \\0"
packet:	.byte 16, 0
	.word 1, 0x8000, 0
	.quad 8
"""


def make_disk(folder, who):
    """A raw disk whose boot sector says who it is."""
    (folder / "x.s").write_text(SECTOR.replace("WHO", who))
    subprocess.run(["sh", "-ec", "as --32 -o x.o x.s && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -e 0x7c00 -o sector x.o"], cwd=folder,
                   check=True)
    code = (folder / "sector").read_bytes()
    assert len(code) <= 510
    path = folder / f"{who}.raw"
    path.write_bytes((code.ljust(510, b"\0") + b"\x55\xaa").ljust(SIZE, b"\0"))
    return path


class Host:
    """A center with a real hypervisor, and what may be done to both of them."""

    def __init__(self, folder):
        folder.chmod(0o755)
        self.disks = {who: make_disk(folder, who) for who in ("OLD", "NEW")}
        self.center = Center(folder / "center", REAL_HYPERVISOR=1, SWITCH_BOOT=120)
        self.local = self.center.state / "local"
        self.known = set()

    def image(self, agent, who, job):
        """Plays a copy up to its image, which has this disk."""
        center = self.center
        center.play("image_create", "hold")
        task = agent.wait_task()
        center.commit(task["run"])
        agent.report(task["run"], "done", progress={"phase": "done", "freeze_ms": 5}, result={"notes": []})
        pending = wait_for("the image", lambda: {c[1] for c in center.calls("image_create")} - self.known).pop()
        self.known.add(pending)
        folder = self.local / "images" / pending
        folder.mkdir(parents=True)
        (folder / "disk0.raw").write_bytes(self.disks[who].read_bytes())
        center.play("image_create", "disks", json.dumps([{"path": str(folder / "disk0.raw"), "format": "raw", "size": SIZE}]))
        return job

    def instance(self, name):
        center = self.center
        agent = center.agent(inventory=INVENTORY)
        job = self.image(agent, "OLD", center.started_job(agent.source))
        center.unplay("image_create", "hold")
        image = center.wait_job(job)["image"]
        got = center.ok("POST", "/v1/instances", {"name": name, "image": image, "start": True, "settings": {
            "cpus": 1, "memory_mib": 128, "network": "none", "cpu": "max"}})["id"]
        wait_for("the instance", lambda: self.row(got)["action"] is None, 60)
        assert self.row(got)["error"] is None, self.row(got)
        self.wait_up(got, "OLD")
        return got

    def row(self, instance):
        return self.center.ok("GET", f"/v1/instances/{instance}")

    def do(self, instance, verb, body=None):
        self.center.ok("POST", f"/v1/instances/{instance}/{verb}", body or {})
        return wait_for(verb, lambda: (lambda r: r["action"] is None and r)(self.row(instance)), 60)

    def says(self, instance):
        """Who spoke last on the serial line."""
        text = self.center.get(f"/v1/instances/{instance}/serial").raw.decode(errors="replace")
        return max(("OLD", "NEW"), key=lambda who: text.rfind(who + " login:")) if " login:" in text else None

    def wait_up(self, instance, who):
        wait_for(f"{who} up", lambda: self.row(instance)["seen"]["boot"]["stage"] == "up" and self.says(instance) == who, 60)

    def content(self, instance):
        """SHA-256 of each set's disk as a guest sees it, by qemu-img alone."""
        sums = {}
        for folder in sorted((self.local / "instances" / instance / "sets").iterdir()):
            raw = self.center.folder / "content.raw"
            subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", folder / "disk0.qcow2", raw], check=True)
            sums[folder.name] = hashlib.sha256(raw.read_bytes()).hexdigest()
        return sums

    def power_cut(self, instance):
        """What of it runs ends here and now, the center first."""
        if self.center.process.poll() is None:
            self.center.process.send_signal(signal.SIGKILL)
        self.center.process.wait()
        self.center.process.stdout.close()
        for proc in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                line = (proc / "cmdline").read_bytes()
            except OSError:
                continue
            if line.startswith((b"qemu-system", b"/usr/bin/qemu-system")) and instance.encode() in line:
                os.kill(int(proc.name), signal.SIGKILL)

    def start(self):
        self.center.env.pop("REPLANT_FAULT_VM", None)
        (self.center.script / "die.at").unlink(missing_ok=True)
        self.center.start()


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    made = Host(tmp_path_factory.mktemp("rollback"))
    yield made
    for instance in made.center.ok("GET", "/v1/instances")["items"]:
        made.power_cut(instance["id"])
        made.start()
    made.center.stop()


def mortal(host, instance, call, deaths):
    """One call; a center that died of it is found, all else ended as well, and both started again."""
    try:
        return call()
    except LOST:
        wait_for("the center's death", lambda: host.center.process.poll() is not None)
        deaths.append(1)
        host.power_cut(instance)
        host.start()
        return None


def onto(host, instance, arm):
    """A migration, from its image on with the center armed; the number of deaths, and its job when it has ended."""
    center, deaths = host.center, []
    agent = center.agent(inventory=INVENTORY)
    job = host.image(agent, "NEW", center.ok("POST", "/v1/jobs", {
        "source": agent.source, "destination": "instance", "instance": instance, "execution": "migrate_now"})["id"])
    arm()
    center.unplay("image_create", "hold")
    row = wait_for("the job's end", lambda: mortal(host, instance, lambda: (lambda r: r["state"] != "running" and r)(center.job(job)), deaths), 180)
    return len(deaths), row


def back(host, instance):
    """Rolled back if it isn't; then off."""
    if host.row(instance)["switching"]:
        host.center.ok("POST", f"/v1/instances/{instance}/rollback", {})
    wait_for("the old system", lambda: host.row(instance)["switching"] is None and host.row(instance)["action"] is None, 90)


def forget(host, row):
    host.center.call("DELETE", f"/v1/jobs/{row['id']}")
    wait_for("no job", lambda: host.center.get(f"/v1/jobs/{row['id']}").status == 404)


def test_rollback_is_bit_for_bit(host):
    instance = host.instance("plain")
    host.do(instance, "stop", {"seconds": 20})
    before = host.content(instance)
    assert len(before) == 1
    deaths, row = onto(host, instance, lambda: None)
    assert (deaths, row["state"]) == (0, "finished"), row["error"]
    # Both are there, the new one in use and up; the old one wasn't touched.
    host.wait_up(instance, "NEW")
    during = host.content(instance)
    assert len(during) == 2 and before.items() <= during.items()
    assert host.center.get(f"/v1/jobs/{row['id']}/screenshot").raw.startswith(b"\x89PNG")
    back(host, instance)
    assert host.content(instance) == before and host.row(instance)["state"] == "off"
    host.do(instance, "start")
    host.wait_up(instance, "OLD")
    # The other end: confirmed, and nothing of the old one is left.
    forget(host, row)
    deaths, row = onto(host, instance, lambda: None)
    assert row["state"] == "finished", row["error"]
    host.wait_up(instance, "NEW")
    host.center.ok("POST", f"/v1/instances/{instance}/confirm", {})
    wait_for("the end", lambda: host.row(instance)["switching"] is None and host.row(instance)["action"] is None)
    assert len(host.content(instance)) == 1 and not before.keys() & host.content(instance).keys()
    host.wait_up(instance, "NEW")


@pytest.mark.parametrize("kind", ["step of the hypervisor", "write of the center"])
def test_rollback_after_a_power_cut_at_each(host, kind):
    """Killed on the way there; then one system boots. Killed on the way back as well; then it is the old one, bit for bit."""
    instance, dice, at = host.instance("cut-" + kind.split()[0]), random.Random(SEED), 0
    host.do(instance, "stop", {"seconds": 20})
    before = host.content(instance)
    center, seen = host.center, set()
    print(f"REPLANT_SEED={SEED}")

    def arm():
        if kind.startswith("write"):
            center.play("die", "at", str(at))
        center.kill()
        if kind.startswith("step"):
            center.env["REPLANT_FAULT_VM"] = str(at)
        center.start()

    while True:
        at += 1 if WHOLE else dice.randrange(4, 9)
        deaths, row = onto(host, instance, arm)
        died = deaths
        assert row["state"] in ("finished", "in_error"), row
        # Whatever it came to: one of both boots, and it is known which.
        wait_for("rest", lambda: host.row(instance)["action"] is None and (host.row(instance)["switching"] or {}).get("step") in (None, "switched"), 90)
        now = host.row(instance)
        who = "NEW" if now["switching"] else "OLD"
        seen.add(who)
        if who == "OLD":
            assert host.content(instance) == before
        if now["state"] != "running" and now["switching"]:
            host.do(instance, "start")
        if now["switching"]:
            host.wait_up(instance, "NEW")
        assert before.items() <= host.content(instance).items()
        # The way back, with the same bad luck.
        if died:
            arm()
        if now["switching"]:
            deaths = []
            wait_for("the way back", lambda: mortal(host, instance, lambda: center.post(f"/v1/instances/{instance}/rollback").status in (202, 409), deaths))
            wait_for("its end", lambda: mortal(host, instance, lambda: host.row(instance)["switching"] is None and
                                               host.row(instance)["action"] is None, deaths), 90)
            died += len(deaths)
        center.kill()
        host.start()
        assert host.content(instance) == before and host.row(instance)["state"] in ("off", "crashed"), host.row(instance)
        print(f"{kind} {at}: {died} deaths, {who} was in use")
        forget(host, row)
        if not died:
            break
    host.do(instance, "start")
    host.wait_up(instance, "OLD")
    assert "NEW" in seen
