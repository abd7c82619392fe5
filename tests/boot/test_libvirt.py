"""The hypervisor "libvirt" on a real libvirtd, with guests of one sector; virsh and qemu-img say whether it is true."""

import fcntl
import hashlib
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import tempfile
import time

import pytest

from tests.boot.libvirthost import Host, Unusable, boot_disk

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="a libvirtd of one's own needs root"), pytest.mark.xdist_group("libvirt")]

EBUSY, ENOENT, ENOSPC, ESTALE, EPERM, ENOTCONN = 16, 2, 28, 116, 1, 107


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    host = Host(tmp_path_factory.mktemp("libvirt"))
    try:
        host.start()
    except Unusable as e:
        host.stop()
        pytest.skip(str(e))
    if "built without libvirt" in subprocess.run(host.command("list"), capture_output=True, text=True, check=False).stdout:
        host.stop()
        pytest.skip("built without libvirt")
    yield host
    host.stop()


@pytest.fixture
def made(host, request):
    """An instance of ours, off, with sets `a` and `b` that boot and say so; `a` is in use."""
    name = re.sub(r"\W+", "-", request.node.name)[:40]
    ref = host.tool("define", "instance-" + hashlib.sha256(name.encode()).hexdigest()[:16], {"name": name, "memory_mib": 64})
    for letter in "ab":
        add(host, ref, letter)
    host.tool("set-use", ref, "a")
    yield ref
    host.tool("remove", ref)
    assert not list(host.pool.glob(f"*{ref}*")) and name not in host.virsh("list", "--all", "--name").stdout.split()


def add(host, ref, letter, **more):
    disk = boot_disk(host.folder / f"{letter}.raw", f"this is {letter}")
    host.tool("set-add", ref, letter, f"image-{letter}", {"disks": [{"path": str(disk), "format": "raw"}], **more})


def digest(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def volume(host, ref, name, disk=0):
    return host.pool / f"replant-{ref}-{name}-disk{disk}.qcow2"


def says(host, ref, text):
    got = host.tool("boot", ref, text, "30")
    assert text in got["text"], got
    return got


def info(path):
    return json.loads(subprocess.run(["qemu-img", "info", "-U", "--output=json", path], capture_output=True, check=True).stdout)


def files_of(host, ref):
    return re.findall(r"source file='([^']*)'", host.xml(ref, "--inactive"))


# ---- an instance of ours ----

def test_define_says_what_it_made(host):
    assert host.tool("capacity")["accelerator"] == "tcg"
    ref = host.tool("define", "instance-1", {"name": "first", "cpus": 2, "memory_mib": 96, "bus": "sata", "mac": "52:54:00:01:02:03",
                                             "network": "user", "cpu": "qemu64"})
    assert ref == host.tool("define", "instance-1", {"name": "first"}), "made twice it is one"
    xml = host.xml(ref)
    assert "type='qemu'" in xml and "machine='pc-q35" in xml and "52:54:00:01:02:03" in xml and ">98304</memory>" in xml
    assert 'id="instance-1"' in xml and "urn:replant:instance:1" in xml
    got = host.tool("get", ref)
    assert got["settings"] == {"name": "first", "cpus": 2, "memory_mib": 96, "cpu": "qemu64", "firmware": "bios", "bus": "sata",
                               "network": "user", "mac": "52:54:00:01:02:03"}
    assert (got["state"], got["set"], got["sets"], got["disks"], got["arch"]) == ("off", None, [], [], "x86_64")
    host.tool("define", "instance-1", {"name": "second", "firmware": "uefi", "bus": "scsi", "memory_mib": 128, "network": "none"})
    got = host.tool("get", ref)["settings"]
    assert (got["name"], got["firmware"], got["bus"], got["memory_mib"], got["network"], got["cpus"]) == ("second", "uefi", "scsi", 128, "none", 2)
    host.tool("start", ref)
    assert host.tool("get", ref)["state"] == "running"
    assert "OVMF" in host.xml(ref), "firmware for UEFI"
    host.tool("define", "instance-1", {"cpus": 1}, code=EBUSY)
    host.tool("define", "instance-2", {"name": "second"}, code=5)
    host.tool("remove", ref)
    host.tool("get", ref, code=ENOENT)
    host.tool("remove", ref)


def test_network_that_isnt_there(host):
    assert "lost" in host.tool("define", "instance-3", {"name": "x", "network": "lost"}, code=ENOENT)
    assert "forwards" in host.tool("define", "instance-3", {"name": "x", "forwards": [{"host": 1, "guest": 1}]}, code=95)
    host.tool("get", "instance-3", code=22)


def test_sets_are_exchanged_and_boot(host, made):
    assert says(host, made, "this is a")["text"] == "this is a\r\n"
    host.tool("set-use", made, "b", code=EBUSY)
    host.tool("stop", made, "1", code=110)
    host.tool("stop", made, "0")
    host.tool("stop", made, "0")
    before = digest(volume(host, made, "a"))
    host.tool("set-use", made, "b")
    assert files_of(host, made) == [str(volume(host, made, "b"))]
    says(host, made, "this is b")
    host.tool("stop", made, "0")
    host.tool("set-use", made, "a")
    assert digest(volume(host, made, "a")) == before
    says(host, made, "this is a")
    assert {s["set"]: s["image"] for s in host.tool("get", made)["sets"]} == {"a": "image-a", "b": "image-b"}


def test_a_set_is_stand_alone_and_as_big_as_asked(host, made):
    base = boot_disk(host.folder / "base.raw", "from a layer", payload=os.urandom(100000))
    layer = host.folder / "layer.qcow2"
    subprocess.run(["qemu-img", "create", "-qf", "qcow2", "-F", "raw", "-b", base, layer], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 7 2M 64k", layer], check=True, capture_output=True)
    host.tool("set-add", made, "big", "image-big", {"disks": [{"path": str(layer), "format": "qcow2"}], "sizes": [40 << 20]})
    assert [e["event"] for e in host.events[-1:]] == ["set"] and host.events[-1]["percent"] == 100
    got = info(volume(host, made, "big"))
    assert "backing-filename" not in got and got["virtual-size"] == 40 << 20
    subprocess.run(["qemu-img", "resize", "-q", layer, "40M"], check=True)
    subprocess.run(["qemu-img", "compare", layer, volume(host, made, "big")], check=True, capture_output=True)
    subprocess.run(["qemu-img", "check", "-q", volume(host, made, "big")], check=True)
    assert not list((host.folder / "dir" / "runs").iterdir()), "nothing stays on its way"
    at = volume(host, made, "big").stat().st_mtime_ns
    host.tool("set-add", made, "big", "image-big", {"disks": [{"path": "/nowhere", "format": "raw"}]})
    assert volume(host, made, "big").stat().st_mtime_ns == at, "it is there already"


IMPOSTOR = """#!/bin/sh
/usr/bin/qemu-img "$@"
got=$?
for last; do :; done
case "$1 $last" in "info "*/disk.qcow2) cp {evil} $last.new && mv -f $last.new $last && echo "$last" >> {log} ;; esac 2>> {log}
exit $got
"""


@pytest.fixture
def open_dir():
    """Where somebody without rights may look, too."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield pathlib.Path(folder)


def as_nobody(host, folder, *args, path=os.environ["PATH"]):
    command = host.command(*args)
    done = subprocess.run([command[0], str(folder / "dir"), *command[2:]], capture_output=True, text=True, timeout=120, check=False,
                          env={**os.environ, "TOOL_USER": "nobody", "PATH": path})
    return json.loads(done.stdout.splitlines()[-1])


def test_what_is_sent_is_what_was_checked(host, made, open_dir):
    """The user that qemu-img runs as exchanges the stand-alone disk once it was looked at."""
    disks = [boot_disk(open_dir / f"{i}.raw", f"disk {i}", payload=os.urandom(100000)) for i in range(2)]
    arg = {"disks": [{"path": str(d), "format": "raw"} for d in disks], "sizes": [20 << 20, None]}
    assert as_nobody(host, open_dir, "set-add", made, "plain", "image-0123456789abcdef", arg)["code"] == 0
    subprocess.run(["qemu-img", "resize", "-qf", "raw", disks[0], "20M"], check=True)
    for i, disk in enumerate(disks):
        subprocess.run(["qemu-img", "compare", "-f", "raw", "-F", "qcow2", disk, volume(host, made, "plain", i)], check=True, capture_output=True)
    secret = open_dir / "secret"
    secret.write_bytes(b"s" * 65536)
    subprocess.run(["qemu-img", "create", "-qf", "qcow2", "-F", "raw", "-b", secret, open_dir / "evil.qcow2", "20M"], check=True)
    (open_dir / "bin").mkdir()
    (open_dir / "bin" / "qemu-img").write_text(IMPOSTOR.format(evil=open_dir / "evil.qcow2", log=open_dir / "log"))
    (open_dir / "bin" / "qemu-img").chmod(0o755)
    (open_dir / "log").touch()
    (open_dir / "log").chmod(0o666)
    arg = {"disks": arg["disks"][:1], "sizes": [20 << 20]}
    subprocess.run(["qemu-img", "resize", "-qf", "raw", "--shrink", disks[0], "16M"], check=True)
    got = as_nobody(host, open_dir, "set-add", made, "spoilt", "image-0123456789abcdef", arg, path=f"{open_dir}/bin:{os.environ['PATH']}")
    log = (open_dir / "log").read_text()
    assert "/disk.qcow2" in log, "it was exchanged"
    assert got["code"] < 0 and "spoilt" not in [s["set"] for s in host.tool("get", made)["sets"]], (got, log)
    assert not volume(host, made, "spoilt").exists() and not list((open_dir / "dir" / "runs").iterdir())


def test_a_chain_that_is_rearranged_is_waited_for(host, made):
    disk = boot_disk(host.folder / "chained.raw", "chained")
    image = host.folder / "dir" / "images" / "image-0123456789abcdef"
    image.mkdir(parents=True)
    (image / "manifest.json").write_text(json.dumps({"chain": "job-00000000000000ab", "run": 1}))
    with open(host.folder / "dir" / "locks", "a+b") as locks:
        fcntl.lockf(locks, fcntl.LOCK_EX, 1, 0xab)
        run = subprocess.Popen(host.command("set-add", made, "chained", image.name, {"disks": [{"path": str(disk), "format": "raw"}]}), stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            run.wait(2)
        assert not volume(host, made, "chained").exists()
        fcntl.lockf(locks, fcntl.LOCK_UN, 1, 0xab)
        run.communicate(timeout=60)
    assert run.returncode == 0 and volume(host, made, "chained").exists()


def test_snapshot_of_a_running_and_of_one_that_is_off(host, made):
    says(host, made, "this is a")
    kept = digest(volume(host, made, "a"))
    host.tool("set-snapshot", made, "s1")
    host.tool("set-snapshot", made, "s1")
    got = host.tool("get", made)
    assert got["set"] == "s1" and [(s["set"], s["on"]) for s in got["sets"]] == [("a", None), ("b", None), ("s1", "a")]
    assert str(volume(host, made, "s1")) in host.virsh("domblklist", made).stdout, "the running guest writes there"
    assert info(volume(host, made, "s1"))["full-backing-filename"] == str(volume(host, made, "a"))
    host.tool("stop", made, "0")
    assert host.tool("get", made)["set"] == "s1"
    host.tool("set-snapshot", made, "s2")
    assert [(s["set"], s["on"]) for s in host.tool("get", made)["sets"]][-1] == ("s2", "s1")
    assert "stands on it" in host.tool("set-use", made, "a", code=EBUSY)
    host.tool("set-drop", made, "s1", code=EBUSY)
    host.tool("set-drop", made, "s2", code=EBUSY)
    host.tool("set-fork", made, "a", "again")
    host.tool("set-use", made, "again")
    says(host, made, "this is a")
    host.tool("stop", made, "0")
    for name in ("s2", "s1"):
        host.tool("set-drop", made, name)
        host.tool("set-drop", made, name)
        assert not volume(host, made, name).exists()
    assert digest(volume(host, made, "a")) == kept


def test_drop_sees_others_that_use_it(host, made):
    """A domain and a volume that we know nothing of."""
    subprocess.run(["qemu-img", "create", "-qf", "qcow2", "-F", "qcow2", "-b", volume(host, made, "b"), host.pool / "theirs.qcow2"], check=True)
    assert "theirs.qcow2" in host.tool("set-drop", made, "b", code=EBUSY)
    (host.pool / "theirs.qcow2").unlink()
    host.define(f"""<domain type='qemu'><name>theirs</name><memory>65536</memory><os><type>hvm</type></os>
        <devices><disk type='file'><source file='{volume(host, made, "b")}'/><target dev='sda'/></disk></devices></domain>""")
    assert "theirs" in host.tool("set-drop", made, "b", code=EBUSY)
    host.virsh("undefine", "theirs")
    host.tool("set-drop", made, "b")


def test_memory_that_was_saved_keeps_its_disks(host, made):
    says(host, made, "this is a")
    host.virsh("managedsave", made)
    assert "memory was saved" in host.tool("set-use", made, "b", code=EBUSY)
    host.tool("set-snapshot", made, "s1", code=EBUSY)
    host.virsh("managedsave-remove", made)
    host.tool("set-use", made, "b")


def test_picture_is_the_screen(host, made):
    picture = host.folder / "screen.png"
    assert "off" in host.tool("screenshot", made, str(picture), code=ENOTCONN)
    says(host, made, "this is a")
    time.sleep(1)
    host.tool("screenshot", made, str(picture))
    host.virsh("screenshot", made, str(host.folder / "virsh.ppm"))
    sizes = [struct.unpack(">II", p.read_bytes()[16:24]) for p in (picture, host.folder / "virsh.ppm")]
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and sizes[0] == (720, 400)
    if (host.folder / "virsh.ppm").read_bytes()[1:4] == b"PNG":
        assert sizes[0] == sizes[1]


# ---- a domain that is there ----

ODD = """<domain type='qemu'>
  <name>old-&amp;-odd</name>
  <title>the &lt;old&gt; one</title>
  <metadata>
    <app:deep xmlns:app="urn:some:app"><!-- theirs --><app:a b="&quot;"/> text </app:deep>
    <instance xmlns="urn:not:ours" id="x"/>
  </metadata>
  <memory unit='KiB'>65536</memory>
  <vcpu>1</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type><bootmenu enable='no'/></os>
  <features><acpi/></features>
  <devices>
    <disk type='file' device='cdrom'><target dev='hdc' bus='ide'/><readonly/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='raw' cache='none' io='native'/><source file='{a}'/>
      <target dev='vdc' bus='virtio'/><serial>SYSTEM-1</serial><boot order='1'/></disk>
    <disk type='file' device='floppy'><target dev='fda' bus='fdc'/></disk>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/><source file='{b}'/>
      <target dev='sda' bus='sata'/><iotune><total_iops_sec>500</total_iops_sec></iotune></disk>
    <interface type='user'><mac address='52:54:00:aa:bb:cc'/><model type='e1000'/></interface>
    <serial type='pty'><target port='0'/></serial>
    <video><model type='vga'/></video>
    <watchdog model='i6300esb' action='none'/>
  </devices>
</domain>"""


@pytest.fixture
def odd(host, tmp_path):
    """(its UUID, its two files, its definition)"""
    files = [boot_disk(tmp_path / "sys tem's.raw", "the old one", payload=os.urandom(5000)), tmp_path / "data.qcow2"]
    subprocess.run(["qemu-img", "create", "-qf", "qcow2", files[1], "8M"], check=True)
    subprocess.run(["qemu-io", "-c", "write -P 9 0 1M", files[1]], check=True, capture_output=True)
    host.define(ODD.format(a=str(files[0]).replace("'", "&apos;"), b=files[1]))
    ref = host.virsh("domuuid", "old-&-odd").stdout.strip()
    yield ref, files, host.xml(ref, "--inactive", "--security-info")
    host.virsh("destroy", ref, check=False)
    host.virsh("undefine", ref, "--managed-save", check=False)
    host.tool("remove", ref)


def without_ours(xml):
    return re.sub(r"\s*<replant:instance.*?(</replant:instance>|/>(?=\s*</metadata>))", "", xml, flags=re.S)


def without_disks(xml):
    return re.sub(r"\s*<disk type='file' device='disk'>.*?</disk>", "", without_ours(xml), flags=re.S)


def test_existing_domain_is_an_instance(host, odd):
    ref, files, _ = odd
    got = next(o for o in host.tool("list") if o["ref"] == ref)
    assert got["name"] == "old-&-odd" and got["set"] == "original" and got["state"] == "off"
    assert [(d["format"], d["size"]) for d in got["disks"]] == [("raw", 16 << 20), ("qcow2", 8 << 20)]
    assert got["settings"]["bus"] == "virtio" and got["settings"]["mac"] == "52:54:00:aa:bb:cc"
    assert [s["set"] for s in got["sets"]] == ["original"]
    assert host.tool("define", ref, {**got["settings"], "memory_mib": 96}) == ref
    now = without_ours(host.xml(ref, "--inactive", "--security-info"))
    assert now.replace("98304", "65536") == odd[2], "what isn't changed stays, the card's model too"


def test_disks_that_were_changed_between_two_exchanges(host, odd):
    """What is put back is what was there last, not what was there the first time."""
    ref, _, _ = odd
    disk = boot_disk(host.folder / "new.raw", "the new one")
    host.tool("set-add", ref, "one", "image-1", {"disks": [{"path": str(disk), "format": "raw"}]})
    host.tool("set-use", ref, "one")
    host.tool("set-use", ref, "original")
    xml = host.xml(ref, "--inactive", "--security-info")
    assert "cache='none'" in xml
    host.define(xml.replace("cache='none'", "cache='directsync'"))
    changed = without_ours(host.xml(ref, "--inactive", "--security-info"))
    host.tool("set-use", ref, "one")
    host.tool("set-use", ref, "original")
    assert without_ours(host.xml(ref, "--inactive", "--security-info")) == changed and "cache='directsync'" in changed


def test_what_was_never_made_can_be_removed(host):
    """A definition that failed, or whose answer was lost, is known by the instance's id alone."""
    name = "instance-00000000000000ee"
    host.tool("get", name, code=ENOENT)
    host.tool("remove", name)
    host.tool("define", name, {"name": "lost", "memory_mib": 64})
    assert host.tool("get", name)["state"] == "off"
    host.tool("remove", name)
    assert "lost" not in host.virsh("list", "--all", "--name").stdout.split()


def test_existing_domain_gets_its_own_disks_back_bit_for_bit(host, odd):
    ref, files, xml = odd
    before = [(digest(f), f.stat().st_mtime_ns) for f in files]
    disks = [boot_disk(host.folder / f"new{i}.raw", f"the new one {i}") for i in range(3)]
    host.tool("set-add", ref, "three", "image-3", {"disks": [{"path": str(d), "format": "raw"} for d in disks]})
    host.tool("set-add", ref, "one", "image-1", {"disks": [{"path": str(disks[0]), "format": "raw"}]})
    assert without_ours(host.xml(ref, "--inactive", "--security-info")) == xml
    for name in ("three", "one", "three"):
        host.tool("set-use", ref, name)
        now = host.xml(ref, "--inactive", "--security-info")
        # An address that a disk more needs is libvirt's to give.
        assert without_disks(now).split() == without_disks(xml).split()
        assert host.tool("get", ref)["set"] == name
        says(host, ref, "the new one 0")
        host.tool("stop", ref, "0")
    assert sorted(files_of(host, ref)) == [str(volume(host, ref, "three", i)) for i in range(3)]
    assert "<serial>SYSTEM-1</serial>" in now and "total_iops_sec" in now and 'cache="none"' in now.split("</metadata>")[0]
    host.tool("set-drop", ref, "original", code=EPERM)
    host.tool("remove", ref, code=EBUSY)
    host.tool("set-use", ref, "original")
    assert without_ours(host.xml(ref, "--inactive", "--security-info")) == xml
    assert [(digest(f), f.stat().st_mtime_ns) for f in files] == before
    says(host, ref, "the old one")
    host.tool("stop", ref, "0")
    assert digest(files[0]) == before[0][0]
    host.tool("remove", ref)
    assert host.xml(ref, "--inactive", "--security-info") == xml, "it is left as it was found"
    assert [digest(f) for f in files] == [d for d, _ in before] and not list(host.pool.glob(f"*{ref}*"))


def test_snapshot_of_an_existing_domain_that_runs(host, odd):
    ref, files, xml = odd
    before = [digest(f) for f in files]
    says(host, ref, "the old one")
    host.tool("set-snapshot", ref, "s1")
    assert [info(volume(host, ref, "s1", i))["full-backing-filename"] for i in range(2)] == [str(f) for f in files]
    assert [info(volume(host, ref, "s1", i))["backing-filename-format"] for i in range(2)] == ["raw", "qcow2"]
    host.tool("stop", ref, "0")
    got = host.tool("get", ref)
    assert got["set"] == "s1" and [s["set"] for s in got["sets"]] == ["original", "s1"]
    host.tool("set-use", ref, "original", code=EBUSY)
    host.tool("set-fork", ref, "original", "back")
    host.tool("set-use", ref, "back")
    says(host, ref, "the old one")
    host.tool("stop", ref, "0")
    host.tool("set-drop", ref, "s1")
    assert [digest(f) for f in files] == before
    host.tool("set-drop", ref, "back", code=EBUSY)


def test_what_others_do_behind_our_back(host, odd, tmp_path):
    ref, files, xml = odd
    add(host, ref, "a")
    host.virsh("domrename", ref, "renamed")
    assert host.tool("get", ref)["name"] == "renamed"
    host.tool("set-use", ref, "a")
    boot_disk(tmp_path / "stranger.raw", "a stranger")
    now = host.xml(ref, "--inactive")
    host.define(now.replace(str(volume(host, ref, "a")), str(tmp_path / "stranger.raw")).replace("type='qcow2'", "type='raw'", 1))
    got = host.tool("get", ref)
    assert got["set"] is None
    host.tool("set-use", ref, "original", code=ESTALE)
    host.tool("set-snapshot", ref, "s", code=ESTALE)
    host.define(now)
    host.tool("set-use", ref, "original")
    host.virsh("undefine", ref)
    for verb in ("get", "start"):
        host.tool(verb, ref, code=ENOENT)
    host.tool("set-use", ref, "a", code=ENOENT)
    host.tool("define", ref, {"cpus": 2}, code=ENOENT)
    assert volume(host, ref, "a").exists()
    host.tool("remove", ref)
    assert not list(host.pool.glob(f"*{ref}*")) and files[0].exists() and files[1].exists()


def test_half_a_set_in_use_is_not_deleted(host, made):
    """Somebody took the metadata away: what is known of sets is lost, what is in use stays in use."""
    host.define(without_ours(host.xml(made, "--inactive")))
    kept = digest(volume(host, made, "a"))
    disk = boot_disk(host.folder / "other.raw", "other")
    host.tool("set-add", made, "a", "image-x", {"disks": [{"path": str(disk), "format": "raw"}]}, code=EBUSY)
    assert digest(volume(host, made, "a")) == kept
    host.virsh("undefine", made)


# ---- bad luck ----

def test_pool_without_room(host):
    ref = host.tool("define", "instance-small", {"name": "small"}, pool="small")
    disk = boot_disk(host.folder / "big.raw", "big", size=80 << 20, payload=os.urandom(60 << 20))
    assert "small" in host.tool("set-add", ref, "a", "i", {"disks": [{"path": str(disk), "format": "raw"}]}, pool="small", code=ENOSPC)
    disk = boot_disk(host.folder / "fits.raw", "fits", size=80 << 20, payload=os.urandom(25 << 20))
    arg = {"disks": [{"path": str(disk), "format": "raw"}]}
    run = subprocess.Popen(host.command("set-add", ref, "a", "i", arg, pool="small"), stdout=subprocess.PIPE, text=True)
    assert '"set"' in run.stdout.readline(), "it found room, and begins"
    (host.small_dir / "filler").write_bytes(b"x" * (30 << 20))
    last = json.loads(run.communicate(timeout=60)[0].splitlines()[-1])
    assert last["code"] < 0 and ("No space left" in last["message"] or "no space" in last["message"].lower()), last
    assert [p.name for p in host.small_dir.iterdir()] == ["filler"], "half a set doesn't stay"
    (host.small_dir / "filler").unlink()
    host.tool("set-add", ref, "a", "i", arg, pool="small")
    host.tool("remove", ref, pool="small")
    assert not list(host.small_dir.iterdir())


def killed(host, n, *args):
    """Runs it until its n-th write to anybody; False when it came to its end before."""
    done = subprocess.run(["strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace=write,sendmsg", "-e", f"inject=write,sendmsg:signal=KILL:when={n}",
                           *host.command(*args)], capture_output=True, text=True, timeout=120, check=False)
    return '"code":' not in done.stdout


BEGIN, STEP = (1, 1) if os.environ.get("REPLANT_LOOPS") else (20, 31)  # the first are the connection's


@pytest.mark.parametrize("what", ["use", "add", "fork", "snapshot-off", "snapshot-on", "drop"])
def test_killed_at_each_write(host, odd, what):
    """Afterwards there is the one or the other set in use, the same call finishes, and the originals are untouched."""
    ref, files, _ = odd
    before = [digest(f) for f in files]
    disk = boot_disk(host.folder / "k.raw", "killed", payload=os.urandom(300000))
    image = {"disks": [{"path": str(disk), "format": "raw"}]}
    host.tool("set-add", ref, "base", "i", image)
    n, kills = BEGIN, 0
    while True:
        name = f"n{n}"
        args = {"use": ("set-use", ref, name), "add": ("set-add", ref, name, "i", image), "fork": ("set-fork", ref, "base", name),
                "snapshot-off": ("set-snapshot", ref, name), "snapshot-on": ("set-snapshot", ref, name), "drop": ("set-drop", ref, name)}[what]
        if what in ("use", "drop"):
            host.tool("set-fork", ref, "base", name)
        if what == "snapshot-on":
            host.tool("start", ref)
        was = host.tool("get", ref)["set"]
        ended = not killed(host, n, *args)
        print(what, n, ended)
        kills += not ended
        got = host.tool("get", ref)
        assert got["set"] in ((was, name) if what in ("use", "snapshot-off", "snapshot-on") else (was,)), got
        for entry in got["sets"]:
            if entry["set"] not in ("original", "base"):
                assert volume(host, ref, entry["set"]).exists() or what == "drop", "a set that is listed is whole"
        host.tool(*args)
        got = host.tool("get", ref)
        there = [s["set"] for s in got["sets"]]
        if what in ("use", "snapshot-off", "snapshot-on"):
            assert got["set"] == name and there[-1] == name
            if what != "use":
                assert next(s["on"] for s in got["sets"] if s["set"] == name) == was
            host.tool("stop", ref, "0")
            host.tool("set-fork" if what != "use" else "set-use", ref, "original", *(["back" + name] if what != "use" else []))
            if what != "use":
                host.tool("set-use", ref, "back" + name)
        if what == "add":
            subprocess.run(["qemu-img", "compare", disk, volume(host, ref, name)], check=True, capture_output=True)
        if what == "drop":
            assert name not in there and not volume(host, ref, name).exists()
        else:
            host.tool("set-drop", ref, name)
        assert [digest(f) for f in files] == before
        if ended:
            break
        n += STEP
    assert kills > 1, "it was killed on its way"


def test_daemon_killed_in_the_middle_and_link_made_anew(host, made):
    """What is open when the daemon goes fails, and works again when it is back."""
    poll = subprocess.Popen(host.command("poll", made), stdout=subprocess.PIPE, text=True)
    try:
        assert poll.stdout.readline() == "0 \n"
        disk = boot_disk(host.folder / "long.raw", "long", size=200 << 20, payload=os.urandom(100 << 20))
        arg = {"disks": [{"path": str(disk), "format": "raw"}]}
        run = subprocess.Popen(host.command("set-add", made, "long", "i", arg), stdout=subprocess.PIPE, text=True)
        for line in run.stdout:
            if json.loads(line).get("percent", 0) > 52:
                run.send_signal(signal.SIGSTOP)
                break
        host.kill()
        run.send_signal(signal.SIGCONT)
        last = json.loads(run.stdout.read().splitlines()[-1])
        assert last["code"] < 0
        wait_line(poll, lambda s: not s.startswith("0 "))
        host.start()
        wait_line(poll, lambda s: s == "0 \n")
        assert host.tool("get", made)["set"] == "a" and "long" not in [s["set"] for s in host.tool("get", made)["sets"]]
        host.tool("set-add", made, "long", "i", arg)
        subprocess.run(["qemu-img", "compare", disk, volume(host, made, "long")], check=True, capture_output=True)
    finally:
        poll.kill()
        poll.communicate()
        if host.daemon.poll() is not None:
            host.start()


def test_silent_host_keeps_nobody_waiting(host, made):
    poll = subprocess.Popen(host.command("poll", made), stdout=subprocess.PIPE, text=True)
    try:
        assert poll.stdout.readline() == "0 \n"
        host.daemon.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        wait_line(poll, lambda s: not s.startswith("0 "))
        wait_line(poll, lambda s: "hasn't answered" in s or "cannot connect" in s)
        assert time.monotonic() - began < 60
        host.daemon.send_signal(signal.SIGCONT)
        wait_line(poll, lambda s: s == "0 \n")
    finally:
        host.daemon.send_signal(signal.SIGCONT)
        poll.kill()
        poll.communicate()


def wait_line(run, wanted):
    end = time.monotonic() + 60
    for line in run.stdout:
        if wanted(line):
            return
        assert time.monotonic() < end, line
