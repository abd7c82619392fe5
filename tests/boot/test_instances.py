"""Instances on this host's QEMU, by the hypervisor alone (no center).

Most of it with a guest of one sector: it counts up on all its disks, writes a star for each count on the serial line, and
obeys the power button. So what must have reached the disks is known from outside, and a boot takes a second.
"""

import hashlib
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import pytest

from tests.boot.conftest import long
from tests.boot.test_convert_boot import Provider
from tests.lab import build, cache, qemu, servers

pytestmark = pytest.mark.xdist_group("instances")

BUILD = pathlib.Path(os.environ.get("REPLANT_BUILD") or cache.SOURCE / "build")
USER = "nobody" if os.geteuid() == 0 else "-"
MIB = 1 << 20
COUNTER = 8  # the sector that counts

# 0x602 and 0x600: the power button is watched and pressed; 0x604: off
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
	mov $hello, %si
1:	lodsb
	test %al, %al
	jz again
	call putc
	jmp 1b
again:
	mov $0x80, %dl
next:	mov $0x42, %ah
	call disk
	incl 0x8000
	mov $0x4300, %ax
	call disk
	inc %dl
	cmp $0x80 + DISKS, %dl
	jne next
	mov $'*', %al
	call putc
	mov $0x600, %dx
	in %dx, %ax
	test $0x100, %ax
	jz slow
	mov $0x604, %dx
	mov $0x2000, %ax
	out %ax, %dx
slow:	hlt
	jmp again
disk:	mov $packet, %si
	int $0x13
	jc 2f
	ret
2:	mov $'!', %al
	call putc
	hlt
	jmp 2b
putc:	push %dx
	push %ax
	mov $0x3fd, %dx
3:	in %dx, %al
	test $0x20, %al
	jz 3b
	pop %ax
	mov $0x3f8, %dx
	out %al, %dx
	pop %dx
	ret
hello:	.ascii "\\r\\nHELLO \\0"
packet:	.byte 16, 0
	.word 1, 0x8000, 0
	.quad COUNTER
"""

EFI = """
.globl efi_main
efi_main:
	lea hello(%rip), %rsi
1:	mov $0x3fd, %dx
2:	in %dx, %al
	test $0x20, %al
	jz 2b
	lodsb
	test %al, %al
	jz 3f
	mov $0x3f8, %dx
	out %al, %dx
	jmp 1b
3:	hlt
	jmp 3b
hello:	.asciz "\\r\\nuefi login: "
.data
	.quad efi_main
"""


class Failed(Exception):
    pass


class Host:
    def __init__(self, folder):
        self.folder = folder
        self.count = 0
        self.began = {}  # where the serial line of an instance's last boot begins
        folder.chmod(0o755)
        shutil.rmtree(folder / "cache", ignore_errors=True)

    def command(self, *words):
        return [BUILD / "tests/boot/vm_tool", self.folder, self.folder / "cache", USER, *map(str, words)]

    def run(self, *words, env=None):
        return subprocess.run(self.command(*words), capture_output=True, text=True, check=False, timeout=300,
                              env={**os.environ, **(env or {})})

    def call(self, *words):
        if words[0] == "start" and not qemus(self, words[1]):
            self.began[words[1]] = self.call("serial", words[1], 0)["end"]
        done = self.run(*words)
        if done.returncode:
            raise Failed(done.stderr.strip())
        return json.loads(done.stdout) if done.stdout else None

    def provider(self, *words):
        return subprocess.run([BUILD / "tests/boot/provider_tool", self.folder, self.folder / "cache", BUILD, USER, *words],
                              capture_output=True, text=True, check=False, timeout=300)

    def new_id(self, noun):
        self.count += 1
        return f"{noun}-{self.count:016x}"

    def image(self, disks, manifest=None):
        """An image as image_create() leaves it: raw files below, overlays on top, all of them nobody's to write."""
        image = self.new_id("image")
        folder = self.folder / "images" / image
        folder.mkdir(parents=True)
        told = []
        for i, disk in enumerate(disks):
            subprocess.run(["cp", "--sparse=always", disk, folder / f"disk{i}.raw"], check=True)
            overlay = folder / f"disk{i}.qcow2"
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", f"disk{i}.raw", overlay], check=True)
            told.append({"path": str(overlay), "format": "qcow2", "size": (folder / f"disk{i}.raw").stat().st_size})
        (folder / "manifest.json").write_text(json.dumps(manifest or {"image": image}))
        protect(folder)
        return image, told

    def define(self, **settings):
        ref = self.new_id("instance")
        assert self.call("define", ref, json.dumps({"name": ref, **settings})) == {"ref": ref}
        return ref

    def instance(self, disks, **settings):
        """Defined, with the image's disks in use as set-a."""
        ref = self.define(**settings)
        image, told = self.image(disks)
        self.call("set-add", ref, "set-a", image, json.dumps({"disks": told}))
        self.call("set-use", ref, "set-a")
        return ref, image, told

    def path(self, ref, *more):
        return self.folder.joinpath("instances", ref, *more)

    def disk(self, ref, name, i=0):
        return self.path(ref, "sets", name, f"disk{i}.qcow2")

    def stars(self, ref):
        """Counts that were told since the last start of the guest; -1: it doesn't run yet."""
        said = self.call("serial", ref, self.began[ref])["text"]
        return said.partition("HELLO")[2].count("*") if "HELLO" in said else -1

    def wait(self, ref, more_than=3, timeout=60):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.stars(ref) > more_than:
                return
            time.sleep(0.2)
        raise AssertionError(self.call("serial", ref, 0))

    def stop_all(self):
        for one in self.call("list"):
            self.run("stop", one["ref"], 0)


def protect(folder):
    if USER == "-":
        return
    for path in [folder, *folder.iterdir()]:
        shutil.chown(path, group="nogroup")
        path.chmod(0o750 if path.is_dir() else 0o440)


def assemble(source, script, out):
    with tempfile.TemporaryDirectory() as scratch:
        (pathlib.Path(scratch) / "x.s").write_text(source)
        subprocess.run(["sh", "-ec", script, "sh", out], cwd=scratch, check=True)


def counting_disks(folder, n, size=8 * MIB):
    """Raw disks; the first has the guest in its boot sector."""
    sector = folder / "sector"
    assemble(SECTOR.replace("DISKS", str(n)).replace("COUNTER", str(COUNTER)),
             'as --32 -o x.o x.s && ld -m elf_i386 -Ttext 0x7c00 --oformat binary -e 0x7c00 -o "$1" x.o', sector)
    code = sector.read_bytes()
    assert len(code) <= 510
    made = []
    for i in range(n):
        path = folder / f"disk{i}.raw"
        with open(path, "wb") as out:
            if i == 0:
                out.write(code.ljust(510, b"\0") + b"\x55\xaa")
            out.truncate(size)
        made.append(path)
    return made


def counter(path):
    """What the guest has counted to on a disk, read by qemu-img; a QEMU that runs isn't minded."""
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as raw:
        subprocess.run(["qemu-img", "convert", "-U", "-O", "raw", path, raw.name], check=True)
        raw.seek(COUNTER * 512)
        return int.from_bytes(raw.read(4), "little")


def check(path):
    subprocess.run(["qemu-img", "check", "-q", "-U", path], check=True, stdout=subprocess.DEVNULL)


def digest(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def qemus(host, ref):
    """Processes that are an instance's QEMU."""
    inside = f"{host.path(ref)}/".encode()
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(b"qemu-system") and inside in command:
                found.append(int(entry.name))
    return found


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory(prefix="replant-test-", dir="/var/tmp") as made:
        os.chmod(made, 0o755)
        yield pathlib.Path(made)


@pytest.fixture(scope="module")
def disks(folder):
    (folder / "two").mkdir()
    return counting_disks(folder / "two", 2)


@pytest.fixture(scope="module")
def one_disk(folder):
    (folder / "one").mkdir()
    return counting_disks(folder / "one", 1)


@pytest.fixture(scope="module")
def host(folder):
    (folder / "host").mkdir()
    made = Host(folder / "host")
    try:
        yield made
    finally:
        made.stop_all()


# ---- life ----

def test_an_instance_lives(host, disks):
    ref, _, told = host.instance(disks, cpus=2, memory_mib=128)
    now = host.call("get", ref)
    assert now["state"] == "off" and now["set"] == "set-a" and now["arch"] == "x86_64"
    assert [disk["size"] for disk in now["disks"]] == [disk["size"] for disk in told]
    host.call("start", ref)
    host.wait(ref)
    assert host.call("get", ref)["state"] == "running"
    host.call("start", ref)
    assert len(qemus(host, ref)) == 1  # the second one changed nothing
    pid = qemus(host, ref)[0]
    if USER != "-":
        assert f"Uid:\t{os.stat(host.path(ref, 'scratch')).st_uid}" in pathlib.Path(f"/proc/{pid}/status").read_text()
        assert os.stat(host.path(ref, "scratch")).st_uid != 0 and os.stat(host.path(ref, "run")).st_mode & 0o77 == 0
    # Nobody's child, in a session of its own: it stays when what started it ends, however that ends.
    assert os.getsid(pid) == pid and f"PPid:\t{os.getpid()}" not in pathlib.Path(f"/proc/{pid}/status").read_text()
    stars = host.stars(ref)
    host.call("stop", ref, 30)
    assert host.call("get", ref)["state"] == "off" and not qemus(host, ref)
    for i in range(2):
        check(host.disk(ref, "set-a", i))
        assert counter(host.disk(ref, "set-a", i)) >= stars
    host.call("stop", ref, 1)
    host.call("remove", ref)
    host.call("remove", ref)
    assert not host.path(ref).exists()
    with pytest.raises(Failed, match="-2: .*does not exist"):
        host.call("get", ref)


def test_a_command_line_without_flushes_left_out(host, one_disk):
    """A test boot's disk is thrown away; an instance's is not."""
    ref, _, _ = host.instance(one_disk)
    host.call("start", ref)
    command = pathlib.Path(f"/proc/{qemus(host, ref)[0]}/cmdline").read_text()
    assert '"no-flush":false' in command and '"no-flush":true' not in command
    host.call("stop", ref, 0)
    host.call("remove", ref)


def test_the_guest_turns_itself_off(host, one_disk):
    """Nobody of ours looks while it does; afterwards it is off, not crashed, and its QEMU is gone."""
    ref, _, _ = host.instance(one_disk)
    host.call("start", ref)
    host.wait(ref)
    with socket.socket(socket.AF_UNIX) as qmp:
        qmp.connect(str(host.path(ref, "run/qmp")))
        with qmp.makefile("rw") as file:
            for command in ("qmp_capabilities", "system_powerdown"):
                file.write(json.dumps({"execute": command}) + "\n")
                file.flush()
            end = time.monotonic() + 30
            while '"SHUTDOWN"' not in file.readline():
                assert time.monotonic() < end
    assert qemus(host, ref)
    assert host.call("get", ref)["state"] == "off"
    assert not qemus(host, ref)
    host.call("remove", ref)


def test_a_qemu_that_died_is_told(host, one_disk):
    ref, _, _ = host.instance(one_disk)
    host.call("start", ref)
    host.wait(ref)
    os.kill(qemus(host, ref)[0], signal.SIGKILL)
    end = time.monotonic() + 10
    while qemus(host, ref) and time.monotonic() < end:
        time.sleep(0.05)
    now = host.call("get", ref)
    assert now["state"] == "crashed" and now["boot"]["failed"] and "start it again" in now["problem"]
    host.call("start", ref)
    assert host.call("get", ref)["state"] == "running"
    # The host went down: its boot is another one.
    os.kill(qemus(host, ref)[0], signal.SIGKILL)
    while qemus(host, ref):
        time.sleep(0.05)
    started = host.path(ref, "started.json")
    told = json.loads(started.read_text())
    started.write_text(json.dumps({**told, "boot": "11111111-2222-3333-4444-555555555555"}))
    assert host.call("get", ref)["state"] == "off"
    host.call("remove", ref)


def test_what_does_not_answer(host, one_disk):
    """A QEMU that hangs is still known, and force ends it."""
    ref, _, _ = host.instance(one_disk)
    host.call("start", ref)
    pid = qemus(host, ref)[0]
    os.kill(pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        host.call("stop", ref, 0)
        assert not qemus(host, ref) and time.monotonic() - began < 200
    finally:
        if qemus(host, ref):
            os.kill(pid, signal.SIGKILL)
    assert host.call("get", ref)["state"] == "off"
    host.call("remove", ref)


def test_no_power_button(host, folder):
    """A guest that doesn't hear: the time goes by, and only force helps."""
    deaf = folder / "deaf.raw"
    deaf.write_bytes(b"\xfa\xf4\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa" + bytes(MIB))
    ref, _, _ = host.instance([deaf])
    host.call("start", ref)
    with pytest.raises(Failed, match="-110: .*stop it by force"):
        host.call("stop", ref, 2)
    assert host.call("get", ref)["state"] == "running"
    with pytest.raises(Failed, match="-16: .*is running"):
        host.call("remove", ref)
    with pytest.raises(Failed, match="-16: "):
        host.call("define", ref, '{"cpus":2}')
    host.call("define", ref, json.dumps({"name": ref}))  # nothing new
    host.call("stop", ref, 0)
    host.call("remove", ref)


def test_two_at_once(host, one_disk):
    ref, _, _ = host.instance(one_disk)
    started = [subprocess.Popen(host.command("start", ref)) for _ in range(4)]
    assert [one.wait(60) for one in started] == [0] * 4
    assert len(qemus(host, ref)) == 1
    verbs = [("stop", ref, 0), ("get", ref), ("set-snapshot", ref, "set-b"), ("start", ref), ("get", ref), ("stop", ref, 0)]
    running = [subprocess.Popen(host.command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for words in verbs]
    for one in running:
        one.wait(60)
    assert len(qemus(host, ref)) <= 1
    host.call("stop", ref, 0)
    host.call("start", ref)
    host.wait(ref)
    host.call("stop", ref, 0)
    host.call("remove", ref)


# ---- settings ----

def test_defaults_are_kept(host):
    ref = host.define()
    first = host.call("get", ref)["settings"]
    assert first["bus"] == "virtio" and first["firmware"] == "bios" and first["network"] == "user"
    host.call("define", ref, json.dumps({"cpus": 3, "forwards": [{"guest": 22}, {"host": 0, "guest": 80}]}))
    second = host.call("get", ref)["settings"]
    assert second["mac"] == first["mac"] and second["cpus"] == 3 and second["memory_mib"] == first["memory_mib"]
    ports = {forward["guest"]: forward["host"] for forward in second["forwards"]}
    assert len(set(ports.values())) == 2 and min(ports.values()) > 0
    host.call("define", ref, json.dumps({"forwards": [{"guest": 80}]}))
    assert host.call("get", ref)["settings"]["forwards"] == [{"host": ports[80], "guest": 80}]
    other = host.define()
    with pytest.raises(Failed, match="-17: port .* is forwarded to instance"):
        host.call("define", other, json.dumps({"forwards": [{"host": ports[80], "guest": 1}]}))
    host.call("define", ref, '{"network":"none"}')
    assert host.call("get", ref)["settings"]["forwards"] == [] and host.call("get", ref)["addresses"] == []
    for one in (ref, other):
        host.call("remove", one)


@pytest.mark.parametrize("settings", [
    {"cpus": 0}, {"cpus": 257}, {"cpus": "2"}, {"memory_mib": 127}, {"memory_mib": 1 << 40}, {"cpu": "max,kvm=off"}, {"cpu": ""},
    {"cpu": "-enable-kvm"}, {"firmware": "efi"}, {"bus": "ide"}, {"network": "br0"}, {"mac": "01:00:5e:00:00:01"},
    {"mac": "52:54:00:12:34"}, {"mac": "52:54:00:12:34:5g"}, {"mac": "52:54:00,x:34:56"}, {"address": "10.0.2.0"},
    {"address": "10.0.2.256"}, {"address": "127.0.0.1"}, {"address": "::1"}, {"forwards": [{"host": 70000, "guest": 1}]},
    {"forwards": [{"host": 1}]}, {"forwards": [{"guest": 22}, {"guest": 22}]}, {"forwards": {"host": 1}},
    {"forwards": [{"host": 4001, "guest": 1}, {"host": 4001, "guest": 2}]}, {"network": "none", "forwards": [{"guest": 22}]},
    {"forwards": [{"guest": n} for n in range(1, 34)]}, {"name": ""}, {"name": "a\nb"}, {"name": "x" * 128}, {"disks": []},
])
def test_settings_that_are_refused(host, settings):
    ref = host.new_id("instance")
    with pytest.raises(Failed, match=r"^vm_tool: -(22|17|34): "):
        host.call("define", ref, json.dumps(settings))
    assert not host.path(ref).exists()


def test_the_processor_of_the_host_needs_kvm(host):
    if host.call("capacity")["accelerator"] == "kvm":
        pytest.skip("KVM works here")
    with pytest.raises(Failed, match="-22: .*'host' is only where KVM works"):
        host.define(cpu="host")


@pytest.mark.parametrize("bus", ["virtio", "scsi", "sata"])
def test_buses(host, disks, bus):
    ref, _, _ = host.instance(disks, bus=bus)
    host.call("start", ref)
    host.wait(ref)
    host.call("set-snapshot", ref, "set-b")
    stars = host.stars(ref)
    host.wait(ref, more_than=stars + 2)
    host.call("stop", ref, 30)
    assert counter(host.disk(ref, "set-b", 1)) > stars
    host.call("remove", ref)


def test_seven_disks_on_sata(host, folder):
    (folder / "seven").mkdir()
    ref, _, _ = host.instance(counting_disks(folder / "seven", 7, MIB), bus="sata")
    host.call("start", ref)
    host.wait(ref)
    host.call("stop", ref, 30)
    assert counter(host.disk(ref, "set-a", 6)) > 3
    host.call("remove", ref)


# ---- sets ----

def test_back_bit_for_bit(host, disks):
    ref, image, told = host.instance(disks)
    host.call("start", ref)
    host.wait(ref)
    host.call("stop", ref, 30)
    before = [digest(host.disk(ref, "set-a", i)) for i in range(2)]
    other, more = host.image(disks)
    # An instance may have more disks than the image has.
    host.call("set-add", ref, "set-b", other, json.dumps({"disks": more, "sizes": [16 * MIB, 1, 32 * MIB]}))
    host.call("set-add", ref, "set-b", other, json.dumps({"disks": more, "sizes": [16 * MIB, 1, 32 * MIB]}))
    with pytest.raises(Failed, match="-17: "):
        host.call("set-add", ref, "set-b", image, json.dumps({"disks": told}))
    host.call("set-use", ref, "set-b")
    assert [disk["size"] for disk in host.call("get", ref)["disks"]] == [16 * MIB, 8 * MIB]
    info = json.loads(subprocess.run(["qemu-img", "info", "--output=json", "-U", host.disk(ref, "set-b")], check=True,
                                     capture_output=True).stdout)
    assert info["virtual-size"] == 16 * MIB
    host.call("start", ref)
    host.wait(ref, more_than=10)
    with pytest.raises(Failed, match="-16: "):
        host.call("set-use", ref, "set-a")
    host.call("stop", ref, 30)
    host.call("set-use", ref, "set-a")
    assert [digest(host.disk(ref, "set-a", i)) for i in range(2)] == before
    host.call("start", ref)
    host.wait(ref)
    host.call("stop", ref, 30)
    host.call("set-drop", ref, "set-b")
    host.call("set-drop", ref, "set-b")
    with pytest.raises(Failed, match="-16: set 'set-a' is in use"):
        host.call("set-drop", ref, "set-a")
    host.call("remove", ref)


@pytest.mark.parametrize("running", [False, True])
def test_a_snapshot_stays_as_it_is(host, disks, running):
    ref, _, _ = host.instance(disks)
    host.call("start", ref)
    host.wait(ref)
    if not running:
        host.call("stop", ref, 30)
    stars = host.stars(ref)
    host.call("set-snapshot", ref, "set-b")
    host.call("set-snapshot", ref, "set-b")
    kept = [digest(host.disk(ref, "set-a", i)) for i in range(2)]
    counts = [counter(host.disk(ref, "set-a", i)) for i in range(2)]
    assert counts[0] - counts[1] in (0, 1) and counts[1] >= stars  # one instant for both disks
    if not running:
        host.call("start", ref)
        host.wait(ref)
    host.wait(ref, more_than=host.stars(ref) + 5)
    now = host.call("get", ref)
    assert now["set"] == "set-b" and {one["set"]: one["on"] for one in now["sets"]} == {"set-a": None, "set-b": "set-a"}
    host.call("set-snapshot", ref, "set-c")
    host.call("stop", ref, 30)
    assert [digest(host.disk(ref, "set-a", i)) for i in range(2)] == kept
    assert counter(host.disk(ref, "set-c", 0)) > counts[0]
    # Back: a set on top of it, so that the snapshot stays.
    with pytest.raises(Failed, match="-16: .*stands on it"):
        host.call("set-use", ref, "set-a")
    host.call("set-fork", ref, "set-a", "set-d")
    host.call("set-use", ref, "set-d")
    assert [counter(host.disk(ref, "set-d", i)) for i in range(2)] == counts
    host.call("start", ref)
    host.wait(ref)
    with pytest.raises(Failed, match="-16: .*in use and changes"):
        host.call("set-fork", ref, "set-d", "set-e")
    host.call("stop", ref, 30)
    with pytest.raises(Failed, match="-16: .*stands on it"):
        host.call("set-drop", ref, "set-a")
    for name in ("set-c", "set-b"):
        host.call("set-drop", ref, name)
    assert [digest(host.disk(ref, "set-a", i)) for i in range(2)] == kept
    host.call("remove", ref)


def test_an_image_below_stays(host, one_disk):
    ref, image, told = host.instance(one_disk)
    done = host.provider("image-remove", image)
    assert done.returncode and "-16:" in done.stderr and ref in done.stderr and "set-a" in done.stderr, done.stderr
    assert pathlib.Path(told[0]["path"]).exists()
    host.call("set-snapshot", ref, "set-b")  # and below a snapshot, too
    assert host.provider("image-remove", image).returncode
    host.call("remove", ref)
    assert host.provider("image-remove", image).returncode == 0
    assert not pathlib.Path(told[0]["path"]).exists()


def test_layers_below_stay_while_it_runs(host, one_disk):
    """An image of an incremental job: its chain is not trimmed below a machine that runs, and is afterwards."""
    job, image = host.new_id("job"), host.new_id("image")
    chain, folder = host.folder / "chains" / job, host.folder / "images" / image
    for run, below in ((1, None), (2, "../1/disk0.raw")):
        (chain / str(run)).mkdir(parents=True)
        if not below:
            subprocess.run(["cp", "--sparse=always", one_disk[0], chain / "1/disk0.raw"], check=True)
        else:
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", below, chain / "2/disk0.qcow2"], check=True)
        protect(chain / str(run))
    (chain / "complete").write_text("2\n")
    folder.mkdir()
    base = f"../../chains/{job}/2/disk0.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", base, folder / "disk0.qcow2"], check=True)
    (folder / "manifest.json").write_text(json.dumps({"image": image, "chain": job, "run": 2, "disks": [{"file": "disk0.qcow2"}]}))
    protect(folder)
    ref = host.define()
    disk = {"path": str(folder / "disk0.qcow2"), "format": "qcow2", "size": 8 * MIB}
    host.call("set-add", ref, "set-a", image, json.dumps({"disks": [disk]}))
    host.call("set-use", ref, "set-a")
    host.call("start", ref)
    done = host.provider("trim")
    assert '"left":true' in done.stdout, done.stdout + done.stderr
    assert (chain / "1/disk0.raw").exists()
    host.wait(ref)
    host.call("stop", ref, 30)
    done = host.provider("trim")
    assert '"left":false' in done.stdout, done.stdout + done.stderr
    assert not (chain / "1").exists()
    host.call("start", ref)  # on what it became
    host.wait(ref)
    host.call("stop", ref, 30)
    host.call("remove", ref)


def test_what_is_missing_or_foreign(host, one_disk):
    ref, _, told = host.instance(one_disk)
    disk = host.disk(ref, "set-a")
    disk.rename(disk.with_suffix(".away"))
    with pytest.raises(Failed, match="-2: disk 0 of instance .* is missing"):
        host.call("start", ref)
    # Its header leads elsewhere: what a guest that broke into QEMU could write.
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd", disk], check=True)
    with pytest.raises(Failed, match="-1: disk 0 .* refers to other files"):
        host.call("start", ref)
    # No tool to look at it with: that says nothing of the disk.
    done = host.run("start", ref, env={"PATH": "/nonexistent"})
    assert done.returncode and "-2: disk 0" in done.stderr and "'qemu-img'" in done.stderr, done.stderr
    disk.unlink()
    disk.symlink_to("/etc/passwd")
    with pytest.raises(Failed, match="-2: "):
        host.call("start", ref)
    disk.unlink()
    disk.with_suffix(".away").rename(disk)
    image = pathlib.Path(told[0]["path"])
    image.rename(image.with_suffix(".away"))
    with pytest.raises(Failed, match="-2: what disk 0 .* is missing|-2: cannot find"):
        host.call("start", ref)
    image.with_suffix(".away").rename(image)
    host.call("start", ref)
    host.wait(ref)
    host.call("stop", ref, 0)
    empty = host.define()
    with pytest.raises(Failed, match="-2: .* has no disks yet"):
        host.call("start", empty)
    with pytest.raises(Failed, match="-22: .*not where this host keeps it"):
        host.call("set-add", empty, "set-a", told[0]["path"].split("/")[-2],
                  json.dumps({"disks": [{"path": "/etc/passwd", "format": "raw", "size": 4096}]}))
    for one in (ref, empty):
        host.call("remove", one)


def test_half_a_directory(host, one_disk):
    ref, _, _ = host.instance(one_disk)
    other, _, _ = host.instance(one_disk)
    host.path(ref, "settings.json").unlink()
    listed = {one["ref"]: one for one in host.call("list")}
    assert "lost its settings" in listed[ref]["problem"] and listed[other]["state"] == "off"
    host.call("define", ref, json.dumps({"name": "again"}))
    host.call("start", ref)
    host.call("stop", ref, 0)
    shutil.rmtree(host.path(ref, "scratch"))
    host.path(ref, "sets/set-a/set.json").unlink()
    now = host.call("get", ref)
    assert [one["set"] for one in now["sets"]] == ["set-a"] and "'set-a' can't be read" in now["problem"]
    with pytest.raises(Failed, match="-2: "):
        host.call("start", ref)
    (host.folder / "instances" / f"{other}.gone/sets/set-a").mkdir(parents=True)  # what a killed remove() left
    for one in (ref, other):
        host.call("remove", one)
    assert not [path for path in (host.folder / "instances").iterdir() if path.name.startswith((ref, other))]


def test_a_damaged_set_keeps_no_other_from_its_work(host, one_disk):
    ref, image, _ = host.instance(one_disk)
    _, other, _ = host.instance(one_disk)
    for name in ("set-b", "set-c"):
        host.call("set-snapshot", ref, name)
    host.call("set-fork", ref, "set-a", "set-d")
    host.path(ref, "sets/set-d/set.json").write_text("{")
    now = host.call("get", ref)
    assert "'set-d' can't be read" in now["problem"] and now["state"] == "off"
    assert sorted(one["set"] for one in now["sets"]) == ["set-a", "set-b", "set-c", "set-d"]
    host.call("start", ref)
    host.call("set-snapshot", ref, "set-e")
    host.call("stop", ref, 0)
    with pytest.raises(Failed, match="-22: .*set-d.*not valid JSON"):
        host.call("set-use", ref, "set-d")
    host.call("set-fork", ref, "set-b", "set-f")
    host.call("set-use", ref, "set-f")
    # Nothing that it may stand on goes, and nothing is written to what its disk says that it stands on.
    for name in ("set-e", "set-a"):
        with pytest.raises(Failed, match="-16: "):
            host.call("set-drop", ref, name)
    for one in (image, other):
        done = host.provider("image-remove", one)
        assert done.returncode and "-16:" in done.stderr, done.stderr
    for name in ("set-b", "set-c"):
        host.path(ref, f"sets/{name}/set.json").rename(host.path(ref, f"sets/{name}.kept"))
    with pytest.raises(Failed, match="-16: set 'set-a' stays as it is"):
        host.call("set-use", ref, "set-a")
    for name in ("set-b", "set-c"):
        host.path(ref, f"sets/{name}.kept").rename(host.path(ref, f"sets/{name}/set.json"))
    host.call("set-drop", ref, "set-d")
    assert "problem" not in host.call("get", ref) and not host.path(ref, "sets/set-d").exists()
    host.call("set-drop", ref, "set-e")
    host.call("remove", ref)


@pytest.mark.parametrize("damage", ["nonsense", "[]", "{}", None, "directory"])
def test_a_snapshot_cut_off_whose_set_cannot_be_read(host, one_disk, damage):
    """QEMU may have written to it: whatever keeps it from being read, nothing of it is removed."""
    ref, _, _ = host.instance(one_disk)
    host.call("set-snapshot", ref, "set-b")
    host.path(ref, "use").write_text("set-a\n")
    host.path(ref, "next").write_text(json.dumps({"set": "set-b", "node": "s-1"}))
    told = host.path(ref, "sets/set-b/set.json")
    kept, disk = told.read_text(), digest(host.disk(ref, "set-b"))
    told.unlink()
    if damage == "directory":
        told.mkdir()
    elif damage:
        told.write_text(damage)
    for verb in ("get", "start"):
        with pytest.raises(Failed, match="set 'set-b' can't be read"):
            host.call(verb, ref)
    assert digest(host.disk(ref, "set-b")) == disk and host.path(ref, "next").exists()
    if damage != "[]":
        shutil.rmtree(told) if damage == "directory" else told.unlink(missing_ok=True)
        told.write_text(kept)
        assert host.call("get", ref)["set"] == "set-b" and not host.path(ref, "next").exists()
    host.call("remove", ref)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a filesystem")
def test_a_full_disk(folder, disks):
    """The guest waits, loses nothing, and goes on when there is room; a set that doesn't fit leaves nothing."""
    place = folder / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=755", "tmpfs", place], check=True)
    try:
        host = Host(place)
        ref, image, told = host.instance(disks, memory_mib=128)
        fill = place / "fill"
        with open(fill, "wb", buffering=0) as out:
            with pytest.raises(OSError):
                while True:
                    out.write(bytes(65536))
        with pytest.raises(Failed):
            host.call("set-add", ref, "set-b", image, json.dumps({"disks": told}))
        host.run("start", ref)
        fill.unlink()
        assert [one["set"] for one in host.call("get", ref)["sets"]] == ["set-a"]
        host.call("start", ref)
        host.wait(ref)
        host.call("set-snapshot", ref, "set-b")
        with open(fill, "wb", buffering=0) as out:
            with pytest.raises(OSError):
                while True:
                    out.write(bytes(4096))
        end = time.monotonic() + 30
        host.run("set-snapshot", ref, "set-c")
        fill.unlink()
        while host.call("get", ref)["state"] == "paused" and time.monotonic() < end:
            host.call("start", ref)
            time.sleep(0.2)
        stars = host.stars(ref)
        host.wait(ref, more_than=stars + 2)
        host.call("stop", ref, 30)
        used = host.call("get", ref)["set"]
        check(host.disk(ref, used))
        assert counter(host.disk(ref, used)) > stars
        host.call("remove", ref)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


# ---- killed at each step ----

def drill(host, ref, *words):
    """Runs the verb again and again, killed at the first step, the second ...; yields after each, also after the last, whole."""
    for step in range(1, 100):
        done = host.run(*words, env={"REPLANT_FAULT_VM": str(step)})
        yield step
        if done.returncode != -signal.SIGKILL:
            assert done.returncode == 0, done.stderr
            assert step > 1
            return
    raise AssertionError("no end")


def test_killed_while_a_set_is_made_and_used(host, disks):
    ref, image, told = host.instance(disks)
    kept = [digest(host.disk(ref, "set-a", i)) for i in range(2)]
    for _ in drill(host, ref, "set-add", ref, "set-b", image, json.dumps({"disks": told})):
        now = host.call("get", ref)
        assert now["set"] == "set-a" and now["state"] == "off"
        for one in now["sets"]:
            check(host.disk(ref, one["set"], 1))
        if len(now["sets"]) == 2:
            host.call("set-drop", ref, "set-b")
    host.call("set-add", ref, "set-b", image, json.dumps({"disks": told}))
    for _ in drill(host, ref, "set-use", ref, "set-b"):
        used = host.call("get", ref)["set"]
        assert used in ("set-a", "set-b")
        host.call("start", ref)
        host.wait(ref)
        host.call("stop", ref, 0)
        host.call("set-use", ref, "set-a")
    assert digest(host.disk(ref, "set-a", 1)) != kept[1]  # it ran
    for _ in drill(host, ref, "set-drop", ref, "set-b"):
        assert host.call("get", ref)["set"] == "set-a"
    host.call("set-drop", ref, "set-b")
    assert sorted(path.name for path in host.path(ref, "sets").iterdir()) == ["set-a"]
    host.call("remove", ref)


@pytest.mark.parametrize("dies", [False, True])
def test_killed_while_a_snapshot_of_a_running_one_is_made(host, disks, dies):
    """Nothing that the guest was told is on its disks may be missing, whether QEMU lives on or dies as well."""
    ref, _, _ = host.instance(disks)
    base, apart, step = 0, 0, 0
    host.call("start", ref)
    for step in range(1, 40):
        host.wait(ref)
        name, before = f"set-{step}", host.call("get", ref)["set"]
        done = host.run("set-snapshot", ref, name, env={"REPLANT_FAULT_VM": str(step)})
        time.sleep(0.3)
        if dies:
            os.kill(qemus(host, ref)[0], signal.SIGKILL)
            while qemus(host, ref):
                time.sleep(0.02)
        now = host.call("get", ref)
        assert now["state"] == ("crashed" if dies else "running") and now["set"] in (before, name)
        assert not host.path(ref, "next").exists()
        stars = host.stars(ref)
        host.call("stop", ref, 0)
        now = host.call("get", ref)
        count = [counter(host.disk(ref, now["set"], i)) for i in range(2)]
        # It may end between its two disks, each time anew.
        assert count[1] >= base + stars and count[0] - count[1] - apart in (0, 1)
        check(host.disk(ref, now["set"]))
        base, apart = count[1], count[0] - count[1]
        host.call("start", ref)
        if done.returncode == 0:
            assert now["set"] == name
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert 4 < step < 39
    host.call("stop", ref, 0)
    host.call("remove", ref)


def test_killed_while_it_starts_and_stops(host, one_disk):
    ref, _, _ = host.instance(one_disk)
    for _ in drill(host, ref, "start", ref):
        now = host.call("get", ref)
        assert now["state"] in ("off", "running", "crashed")
        assert len(qemus(host, ref)) == (now["state"] == "running")
        host.call("start", ref)
        host.wait(ref)
        host.call("stop", ref, 0)
        assert not qemus(host, ref)
    host.call("start", ref)
    for _ in drill(host, ref, "stop", ref, 0):
        assert host.call("get", ref)["state"] in ("off", "running", "crashed")
        host.call("start", ref)
        host.wait(ref)
    host.call("stop", ref, 0)
    for _ in drill(host, ref, "set-snapshot", ref, "set-b"):
        assert host.call("get", ref)["set"] in ("set-a", "set-b") and not host.path(ref, "next").exists()
    host.call("start", ref)
    host.wait(ref)
    host.call("stop", ref, 0)
    for _ in drill(host, ref, "remove", ref):
        assert not host.path(ref).exists() or host.call("get", ref)["state"] == "off"
    assert not [path for path in (host.folder / "instances").iterdir() if path.name.startswith(ref)]


# ---- what it tells ----

def test_serial_line_and_screen(host, one_disk, tmp_path):
    ref, _, _ = host.instance(one_disk)
    with pytest.raises(Failed, match="-107: "):
        host.call("screenshot", ref, tmp_path / "off.png")
    host.call("start", ref)
    host.wait(ref)
    first = host.call("serial", ref, 0)
    host.wait(ref, more_than=host.stars(ref) + 3)
    second = host.call("serial", ref, first["end"])
    assert second["text"].strip("*") == "" and len(second["text"]) == second["end"] - first["end"]
    host.call("screenshot", ref, tmp_path / "on.png")
    assert (tmp_path / "on.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    host.call("stop", ref, 0)
    assert host.call("serial", ref, 0)["text"].startswith(first["text"])
    host.call("remove", ref)


def test_a_long_serial_line_is_bounded(host, folder):
    """A guest that never stops talking: what is kept stays small, and the numbers of its bytes stay right."""
    loud = folder / "loud.raw"
    # mov dx,0x3f8; mov al,'x'; out dx,al; jmp
    loud.write_bytes(b"\xba\xf8\x03\xb0x\xee\xeb\xfd".ljust(510, b"\0") + b"\x55\xaa" + bytes(MIB))
    ref, _, _ = host.instance([loud])
    host.call("start", ref)
    end = time.monotonic() + 60
    while (told := host.call("serial", ref, 0))["end"] < 3 * MIB:
        assert time.monotonic() < end, told["end"]
    log = host.path(ref, "serial.log").stat()
    assert told["length"] <= MIB and log.st_size >= 3 * MIB and log.st_blocks * 512 < 2 * MIB + 65536
    host.call("stop", ref, 0)
    host.call("remove", ref)


@pytest.mark.parametrize("says, stage, failed", [
    ("Kernel panic - not syncing: VFS", "kernel_panic", True), ("web login: ", "up", False), ("(initramfs) ", "initramfs_shell", True),
    ("Linux version 6.1", "hang", False), ("grub rescue> ", "boot_loader", True),
])
def test_how_far_a_boot_is(host, folder, says, stage, failed):
    talker = folder / "talker.raw"
    code = bytes.fromhex("31c08ed8be407cac84c07406baf803eeebf5f4ebfd").ljust(0x40, b"\0")
    talker.write_bytes((code + says.encode() + b"\0").ljust(510, b"\0") + b"\x55\xaa" + bytes(MIB))
    ref, _, _ = host.instance([talker])
    host.call("start", ref)
    end = time.monotonic() + 30
    while (boot := host.call("get", ref)["boot"])["stage"] != stage:
        assert time.monotonic() < end, (boot, host.call("serial", ref, 0))
        time.sleep(0.2)
    assert boot["failed"] is failed and boot["text"]
    host.call("stop", ref, 0)
    assert host.call("get", ref)["boot"] == {"stage": "off", "failed": False, "text": "it is off"}
    host.call("remove", ref)


# ---- UEFI ----

@pytest.fixture(scope="module")
def efi_disk(folder):
    """A loader on the fallback path only: no variable says that it is there."""
    loader, disk = folder / "BOOTX64.EFI", folder / "efi.raw"
    assemble(EFI, "as -o x.o x.s && objcopy -O pe-x86-64 x.o y.o && "
             'ld -m i386pep --subsystem 10 -e efi_main --image-base 0 --enable-reloc-section -o "$1" y.o', loader)
    with open(disk, "wb") as out:
        out.truncate(64 * MIB)
    for command in (["mformat", "-i", disk, "-F", "::"], ["mmd", "-i", disk, "::/EFI", "::/EFI/BOOT"],
                    ["mcopy", "-i", disk, loader, "::/EFI/BOOT/BOOTX64.EFI"]):
        subprocess.run(command, check=True)
    return disk


def wait_stage(host, ref, stage, timeout=180):
    end = time.monotonic() + timeout
    while (boot := host.call("get", ref)["boot"])["stage"] != stage:
        assert time.monotonic() < end and not boot["failed"], (boot, host.call("serial", ref, 0))
        time.sleep(0.5)


def test_uefi_and_its_variables_lost(host, efi_disk):
    ref, _, _ = host.instance([efi_disk], firmware="uefi")
    store = host.path(ref, "efivars.fd")
    for damage in (None, "kept", "lost", "cut", "header", "middle"):
        if damage == "lost":
            store.unlink()
        elif damage == "cut":
            os.truncate(store, 1000)
        elif damage:
            data = bytearray(store.read_bytes())
            if damage != "kept":
                at = 16 if damage == "header" else 100
                data[at:at + 4000] = os.urandom(4000)
            store.write_bytes(data)
        host.call("start", ref)
        wait_stage(host, ref, "up")
        host.call("stop", ref, 0)
    host.call("remove", ref)


def test_uefi_variables_are_not_overwritten(host, efi_disk):
    """What was made with another of the host's firmwares is used with that; what is nobody's is put aside."""
    ref, _, _ = host.instance([efi_disk], firmware="uefi")
    store, old = host.path(ref, "efivars.fd"), host.path(ref, "efivars.fd.old")

    def firmware():
        host.call("start", ref)
        command = pathlib.Path(f"/proc/{qemus(host, ref)[0]}/cmdline").read_bytes().decode()
        host.call("stop", ref, 0)
        return [one for one in ("OVMF_CODE_4M.fd", "OVMF_CODE.fd") if f"/{one}" in command]

    assert firmware() == ["OVMF_CODE_4M.fd"] and not old.exists()
    other = pathlib.Path("/usr/share/OVMF/OVMF_VARS.fd").read_bytes()
    store.write_bytes(other)
    assert firmware() == ["OVMF_CODE.fd"] and not old.exists() and store.stat().st_size == len(other)
    nobodys = b"x" * 16 + other[16:]
    for damaged in (nobodys, nobodys[:1000], nobodys * 200):
        store.write_bytes(damaged)
        assert firmware() == ["OVMF_CODE_4M.fd"] and old.read_bytes() == damaged
        assert store.stat().st_size != len(damaged)
    store.rename(store.with_suffix(".away"))
    store.mkdir()
    with pytest.raises(Failed, match="-22: .*efivars.fd' is not a regular file"):
        host.call("start", ref)
    assert store.is_dir() and old.read_bytes() == damaged
    host.call("remove", ref)


def test_a_test_boot_has_the_hardware_of_an_instance(efi_disk):
    """Nothing inside can be asked, but what the firmware says of the disk and what was started are told."""
    with tempfile.TemporaryDirectory(prefix="replant-test-", dir="/var/tmp") as folder:
        provider = Provider(pathlib.Path(folder))
        image, _ = provider.unconverted_image([efi_disk])
        settings = {"firmware": "uefi", "bus": "scsi", "cpus": 1, "memory_mib": 256, "name": "not for a machine"}
        _, report = provider.call("test-boot", image, json.dumps({"timeout": 60, "settings": settings}))
        assert "Scsi(0x0,0x0)" in report["serial"] and "uefi login:" in report["serial"], report
        assert not (provider.folder / "runs" / image).exists()


# ---- a real server ----

@long("test_onto_instance.py has a server behind a forwarded port")
def test_a_server_answers_on_its_forwarded_port(host):
    """As after a migration: its disks are converted, become an image, and the instance stands on that."""
    provider = Provider(host.folder)
    job, _ = provider.job(build.disks(servers.find("debian12-lvm-bios")))
    provider.call("convert", job, json.dumps({"disks": [{"source": "/dev/sda"}]}))
    _, manifest = provider.call("image-create", job, image := host.new_id("image"))
    ref = host.define(cpus=2, memory_mib=1024, forwards=[{"guest": 22}], address="192.168.77.9")
    host.call("set-add", ref, "set-a", image, json.dumps({"disks": manifest["disks"]}))
    host.call("set-use", ref, "set-a")
    port = host.call("get", ref)["settings"]["forwards"][0]["host"]
    host.call("start", ref)
    end, banner = time.monotonic() + 900, b""
    while not banner.startswith(b"SSH-"):
        boot = host.call("get", ref)["boot"]
        assert time.monotonic() < end and not boot["failed"], boot
        with socket.socket() as sock:
            sock.settimeout(5)
            try:
                sock.connect(("127.0.0.1", port))
                banner = sock.recv(64)
            except OSError:
                pass
        time.sleep(1)
    ssh = ["ssh", "-i", cache.lab() / "id_ed25519", "-p", str(port), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
           "-o", "LogLevel=ERROR", "root@127.0.0.1"]
    said = subprocess.run([*ssh, "ip -4 -o addr; cat /proc/cpuinfo | grep -c ^processor"], capture_output=True, text=True, timeout=300,
                          check=True).stdout
    assert "192.168.77.9/24" in said and said.rstrip().endswith("2"), said
    subprocess.run([*ssh, "echo kept >/root/kept && sync"], check=True, timeout=120)
    host.call("set-snapshot", ref, "set-b")
    host.call("stop", ref, 300)
    assert host.call("get", ref)["state"] == "off"
    check(host.disk(ref, "set-b"))
    done = subprocess.run(["guestfish", "--ro", "--format=qcow2", "-a", host.disk(ref, "set-a"), "-i", "cat", "/root/kept"],
                          env=qemu.guestfs_environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.stdout.strip() == "kept", (done.stdout, done.stderr)
    host.call("remove", ref)
