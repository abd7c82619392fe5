"""discover and check beside the system's own tools."""
import hashlib
import json
import os
import pathlib
import platform
import re
import shutil
import socket
import subprocess

import pytest

import agentrig
from agentrig import AGENT, run
from tests import schema

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices")
MIB = 1 << 20


def discover(*disks, prefix=()):
    return json.loads(run(*prefix, AGENT, "discover", "--json", *disks).stdout)


def partitioned(loops, script, size=400 * MIB):
    dev = loops.new("disk", size)
    run("sfdisk", "-q", "--no-reread", dev, input=script)
    return dev


@pytest.mark.parametrize("label,types", [("gpt", ["0FC63DAF-8483-4772-8E79-3D69D8477DE4", "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
                                                   "0657FD6D-A4AB-43C4-84E5-0933C1B6E2BF"]), ("dos", ["83", "c", "82"])])
def test_partitions(loops, label, types):
    dev = partitioned(loops, f"label: {label}\nsize=200M,type={types[0]}\nsize=50M,type={types[1]}\ntype={types[2]}\n")
    theirs = json.loads(run("sfdisk", "-J", dev).stdout)["partitiontable"]
    mine = discover(dev)["disks"][0]
    assert mine["size"] == 400 * MIB and mine["table"] == label
    assert mine["path"] == dev
    assert [(p["start_sector"], p["size"] // 512) for p in mine["partitions"]] == [(p["start"], p["size"])
                                                                                  for p in theirs["partitions"]]
    if label == "gpt":
        assert mine["table_uuid"].lower() == theirs["id"].lower()
        assert [p["uuid"].lower() for p in mine["partitions"]] == [p["uuid"].lower() for p in theirs["partitions"]]
        assert [p["type"].lower() for p in mine["partitions"]] == [p["type"].lower() for p in theirs["partitions"]]
    else:
        assert [int(p["type"], 16) for p in mine["partitions"]] == [int(p["type"], 16) for p in theirs["partitions"]]


@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_filesystem(loops, fstype):
    dev = loops.new("disk", 320 * MIB, fstype)
    theirs = dict(line.split("=", 1) for line in run("blkid", "-p", "-o", "export", dev).stdout.split("\n") if "=" in line)
    (fs,) = [f for f in discover(dev)["filesystems"] if f["device"] == dev]
    assert (fs["type"], fs["uuid"], fs["understood"], fs["mounts"]) == (fstype, theirs["UUID"], True, [])
    assert fs["used"] < 100 * MIB  # by its own metadata
    point = loops.mount(dev, "mnt", "-o", "noatime")
    (point / "fill").write_bytes(os.urandom(40 * MIB))
    os.sync()
    inventory = discover(dev)
    (fs,) = [f for f in inventory["filesystems"] if f["device"] == dev]
    v = os.statvfs(point)
    assert fs["used"] == (v.f_blocks - v.f_bfree) * v.f_frsize
    assert fs["mounts"][0]["point"] == str(point) and "noatime" in fs["mounts"][0]["options"]
    assert fs["used"] <= inventory["disks"][0]["used"] < 320 * MIB


def test_machine():
    mine = discover()
    assert mine["hostname"] == platform.node() and mine["kernel"] == platform.release() and mine["arch"] == platform.machine()
    assert mine["machine_id"] == pathlib.Path("/etc/machine-id").read_text().strip()
    assert mine["boot_id"] == pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert mine["cpu"]["count"] == int(run("getconf", "_NPROCESSORS_ONLN").stdout)
    total = int(re.search(r"MemTotal: +(\d+) kB", pathlib.Path("/proc/meminfo").read_text())[1])
    assert mine["memory"]["total"] == total * 1024
    theirs = platform.freedesktop_os_release()
    assert (mine["os"]["id"], mine["os"]["version_id"]) == (theirs["ID"], theirs["VERSION_ID"])
    assert mine["os"]["pretty_name"] == theirs["PRETTY_NAME"]
    assert mine["boot"]["mode"] == ("uefi" if os.path.exists("/sys/firmware/efi") else "bios")


def test_disks_of_this_server():
    theirs = {d["name"]: d for d in json.loads(run("lsblk", "-J", "-b", "-d", "-o", "NAME,SIZE,TYPE,RM,LOG-SEC,PHY-SEC").stdout)
              ["blockdevices"]}
    mine = {d["name"]: d for d in discover()["disks"]}
    real = {n for n, d in theirs.items() if d["type"] == "disk" and not d["rm"] and not re.match("zram|nbd|ram|fd", n)}
    assert set(mine) == real
    for name, d in mine.items():
        assert (d["size"], d["logical_sector"], d["physical_sector"]) == (theirs[name]["size"], theirs[name]["log-sec"],
                                                                          theirs[name]["phy-sec"])


def test_network():
    theirs = {i["ifname"]: i for i in json.loads(run("ip", "-j", "addr").stdout)}
    mine = discover()["network"]
    assert {i["name"] for i in mine["interfaces"]} == set(theirs)
    for i in mine["interfaces"]:
        t = theirs[i["name"]]
        assert (i["mac"], i["mtu"]) == (t["address"], t["mtu"])
        assert {(a["address"], a["prefix"]) for a in i["addresses"]} == {(a["local"], a["prefixlen"]) for a in t["addr_info"]}
    routes = json.loads(run("ip", "-j", "route", "show", "default").stdout)
    assert {(r["gateway"], r["interface"]) for r in mine["default_routes"] if r["family"] == "inet"} == {
        (r["gateway"], r["dev"]) for r in routes if "gateway" in r}


def test_survey():
    """Ports and their programs, accounts, packages: as ss, getent and dpkg-query tell them."""
    with socket.create_server(("127.0.0.1", 0)) as mine, socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("::", 0))
        theirs = {line.split()[3].rsplit(":", 1)[1] for line in run("ss", "-Hltn").stdout.splitlines()}
        survey = discover()["survey"]
        found = {(s["proto"], s["port"]): s for s in survey["listening"]}
        assert found["tcp", mine.getsockname()[1]]["address"] == "loopback"
        assert found["udp", datagrams.getsockname()[1]]["address"] == "any"
        assert found["tcp", mine.getsockname()[1]]["program"] == pathlib.Path("/proc/self/comm").read_text().strip()
        later = {line.split()[3].rsplit(":", 1)[1] for line in run("ss", "-Hltn").stdout.splitlines()}
    assert theirs & later <= {str(port) for proto, port in found if proto == "tcp"} <= theirs | later
    for name, path in (("users", "/etc/passwd"), ("groups", "/etc/group")):
        rows = [line.split(":") for line in pathlib.Path(path).read_text().splitlines()]
        assert [(u["name"], u["id"]) for u in survey[name]] == [(row[0], int(row[2])) for row in rows]
    said = run("dpkg-query", "-W", "-f", "${Status}\t${Package}:${Architecture}=${Version}\n").stdout.splitlines()
    there = sorted(line.split("\t")[1] for line in said if line.split("\t")[0].endswith(" ok installed"))
    assert survey["packages"]["list"] == there and survey["packages"]["count"] == len(there)
    assert survey["packages"]["digest"] == hashlib.sha256("".join(f"{p}\n" for p in there).encode()).hexdigest()
    schema.check_as("Survey", survey)


def test_without_privileges(tmp_path):
    program = tmp_path / "agent"
    shutil.copy(AGENT, program)
    for parent in [tmp_path, *tmp_path.parents][:3]:
        parent.chmod(0o755)
    as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    mine = json.loads(run(*as_nobody, program, "discover", "--json").stdout)
    assert mine["hostname"] == platform.node()
    assert all(d["used"] is None for d in mine["disks"])
    done = run(*as_nobody, program, "check", "--json", check=False)
    found = {c["check"]: c for c in json.loads(done.stdout)["checks"]}
    assert done.returncode == 1 and found["root"]["result"] == "failed" and found["root"]["remedy"]
    done = run(*as_nobody, program, "enroll", "--center", "localhost", "--code", "x", check=False)
    assert done.returncode == 1 and "root" in done.stderr


def test_check_of_a_disk(loops):
    dev = partitioned(loops, "label: gpt\nsize=100M\n")
    done = run(AGENT, "check", "--json", dev, check=False)
    all_ = json.loads(done.stdout)
    assert {c["check"] for c in all_["checks"]} >= {"root", "platform", "system", "boot", "disks", "volumes", "filesystems",
                                                      "freeze", "fstab", "memory", "load", "space", "clock"}
    assert all(c["result"] in ("ok", "warning", "failed") and c["message"] for c in all_["checks"])
    assert done.returncode == (0 if all_["ok"] else 1)
    text = run(AGENT, "check", dev, check=False).stdout
    assert "\033" not in text and all(c["message"] in text for c in all_["checks"] if c["check"] not in ("memory", "load", "cpu"))


def test_check_names_what_it_can_not_read(loops):
    dev = loops.new("disk", 64 * MIB)
    with open(dev, "r+b") as f:
        f.write(b"LUKS\xba\xbe\0\2" + bytes(4096))
    checks = json.loads(run(AGENT, "check", "--json", dev, check=False).stdout)["checks"]
    assert any(c["result"] == "warning" and dev in c["message"] and "LUKS" in c["message"] for c in checks)


def test_missing_disk():
    done = run(AGENT, "discover", "/dev/nothing", check=False)
    assert done.returncode == 1 and "'/dev/nothing'" in done.stderr


@pytest.mark.skipif(os.environ.get("REPLANT_BUILD", "").endswith(("-asan", "-tsan")), reason="a sanitizer is a shared library")
def test_needs_nothing(tmp_path):
    """The program in a root directory that has nothing else."""
    root = tmp_path / "root"
    root.mkdir()
    shutil.copy(AGENT, root / "agent")
    assert "statically linked" in run("file", AGENT).stdout or "not a dynamic" in run("ldd", AGENT, check=False).stderr
    inventory = json.loads(run("chroot", root, "/agent", "discover", "--json").stdout) if os.path.isdir(root) else None
    assert inventory["disks"] == []
    assert run("chroot", root, "/agent", "--version").stdout.startswith("replant-agent ")


def test_size(tmp_path):
    run("strip", "-o", tmp_path / "agent", AGENT)
    size = (tmp_path / "agent").stat().st_size
    print("stripped:", size)
    assert size <= 6_000_000


def test_foreign_openssl_configuration(tmp_path):
    """A server whose OpenSSL asks for a module: the static program must not try to load it."""
    (tmp_path / "openssl.cnf").write_text("openssl_conf = a\n[a]\nproviders = b\n[b]\nfoo = c\n[c]\nmodule = /nonexistent.so\n"
                                          "activate = 1\n")
    done = run(AGENT, "check", "--center", "127.0.0.1:1", check=False,
               env={**os.environ, "OPENSSL_CONF": str(tmp_path / "openssl.cnf")})
    assert "cannot connect" in done.stdout
