"""What the scripted center holds: some servers, jobs and an image. Times are in the middle of a unit, so that they
read the same a few seconds later."""

import time

GIB = 1 << 30
MIN, HOUR, DAY = 60, 3600, 86400
SYSTEM = "Debian GNU/Linux 12 (bookworm)"
OS = {"id": "debian", "pretty_name": SYSTEM}
HOSTILE = "mail\x1b[2J\x07\x9b31m\u202egnp.exe\x7f\r\nroot"


def ident(noun, i):
    return f"{noun}-{i:016x}"


def ago(seconds):
    return time.time() - seconds


def source(i, name, state, seen):
    return {"id": ident("source", i), "name": name, "description": "", "state": state, "hostname": "web", "os": OS,
            "agent_version": "0.1.0", "created": ago(3.5 * DAY), "last_seen": ago(seen), "job": None,
            "inventory": {
                "os": OS, "kernel": "6.1.0-18-amd64", "arch": "x86_64", "boot": {"mode": "bios", "loader": "grub"},
                "memory": {"total": 2 * GIB}, "cpu": {"count": 2}, "virtualization": "kvm",
                "warnings": ["disk 'sdb' is unreadable in parts"],
                "disks": [{"name": "sda", "path": "/dev/sda", "size": 20 * GIB, "used": 3 * GIB, "model": "QEMU HARDDISK"},
                          {"name": "sdb", "path": "/dev/sdb", "size": 100 * GIB, "used": None, "model": None}]}}


def progress(percent, **more):
    return {"percent": percent, "bytes_total": 8 * GIB, "bytes_done": int(percent / 100 * 8 * GIB), "bytes_read": 4 * GIB,
            "bytes_sent": GIB, "speed": 112 << 20, "seconds_left": 42.0, "round": 2, "phase": "compare",
            "expected_freeze_seconds": 0.8, **more}


def job(i, name, state, stage, **more):
    return {"id": ident("job", i), "name": name, "description": "", "source": ident("source", i % 2), "region": "local",
            "image_name": name, "state": state, "stage": stage, "step": None, "progress": {}, "stages": [],
            "parameters": {"connections": 4, "compression": 1, "rate_mbit": 0, "checksum": True, "on_read_error": "fail",
                           "test_boot": True},
            "error": None, "image": None, "created": ago(10.5 * MIN), "started": ago(8.5 * MIN), "finished": None,
            "expires": time.time() + 29.8 * DAY, **more}


def finished(i, name):
    return job(i, name, "finished", None, progress=progress(100, freeze_ms=612.4), image=ident("image", 0), stages=[
        {"name": "preparing", "started": ago(8.5 * MIN), "seconds": 2.1},
        {"name": "syncing", "started": ago(8.4 * MIN), "seconds": 400},
        {"name": "processing", "started": ago(1.5 * MIN), "seconds": 61},
        {"name": "cleaning", "started": ago(30), "seconds": 0.06}])


CONVERSION = {
    "system": {"id": "debian", "version": "12", "name": SYSTEM}, "firmware": "bios", "kernels": ["6.1.0-18-amd64"],
    "steps": [
        {"name": "fstab", "state": "done", "summary": "2 devices are now named by UUID",
         "files": [{"path": "/etc/fstab", "action": "changed", "old": "/dev/sda2 / ext4 defaults 0 1\n"}], "notes": []},
        {"name": "crypttab", "state": "skipped", "summary": "not present", "files": [], "notes": []},
        {"name": "net_names", "state": "not_needed", "summary": "nothing to change", "files": [], "notes": []},
        {"name": "initramfs", "state": "failed", "summary": "no room in '/boot'", "files": [], "notes": []}],
    "warnings": ["initramfs: no room in '/boot'"]}


def boot():
    return {"state": "failed", "started": ago(4.5 * MIN), "finished": ago(3.5 * MIN), "report": {
        "state": "degraded", "boot_seconds": 52.2, "kernel": "6.1.0-18-amd64", "hostname": "web", "accelerator": "tcg",
        "verified": False, "problems": [{"code": "failed_unit", "message": "'shop.service' failed"}],
        "failed_units": ["shop.service"], "addresses": [{"interface": "enp0s2", "address": "10.0.2.15"}],
        "serial": "long\ntext"}}


MANIFEST = {
    "disks": [{"path": "disk0.qcow2", "format": "qcow2", "base": "disk0.raw", "size": 20 * GIB, "allocated": 3 * GIB, "sha256": "5e" * 32}],
    "replica": {"format": 1, "run": "run-0000000000000001", "block_size": 65536, "digest": "sha256", "time": 1.0, "disks": [
        {"file": "disk0.raw", "size": 20 * GIB, "used_bytes": 3 * GIB, "statement": "ab" * 32}]}}


def fill(center):
    items = center.items
    items["sources"] += [source(0, "web-1", "available", 3.5 * MIN), source(1, "db-primary.shop.example.org", "in_use", 90 * MIN),
                         source(2, HOSTILE, "unavailable", 3.5 * DAY)]
    items["jobs"] += [
        job(1, "db", "running", "syncing", progress=progress(43.2),
            stages=[{"name": "preparing", "started": ago(8.5 * MIN), "seconds": 2.2}]),
        job(2, "web-1", "in_error", "syncing",
            error={"code": "no_space", "message": "cannot write the replica: 3.0 GiB are needed, 1.2 GiB are free"}),
        job(3, "web-2", "ready", None)]
    items["images"].append({
        "id": ident("image", 0), "name": "web-1", "description": "", "job": ident("job", 2), "source": ident("source", 0),
        "region": "local", "created": ago(5.5 * MIN), "boot": boot(), "manifest": MANIFEST})
    center.script["GET", f"/v1/images/{ident('image', 0)}/report"] = [
        (200, {"image": ident("image", 0), "conversion": CONVERSION, "test_boot": boot()["report"]})]
    settings = {"name": "web-1", "cpus": 2, "memory_mib": 2048, "cpu": "host", "firmware": "bios", "bus": "virtio", "network": "user",
                "mac": "52:54:00:12:34:56", "address": None, "forwards": [{"host": 8080, "guest": 80}]}
    plain = {"description": "", "region": "local", "action": None, "percent": None, "error": None, "job": None, "switching": None, "tags": {}}
    items["instances"] += [
        {**plain, "id": ident("instance", 0), "name": "web-1", "state": "running", "image": ident("image", 0), "disks": "set-1", "tags": {"wave": "2"},
         "settings": settings, "created": ago(90 * MIN), "seen": {"addresses": ["10.0.2.15", "fec0::15"], "set": "set-1", "disks": [
             {"size": 20 * GIB, "format": "qcow2", "allocated": 3 * GIB}]}},
        {**plain, "id": ident("instance", 1), "name": "db", "state": "off", "action": "create", "percent": 42.4, "image": ident("image", 0), "disks": None,
         "settings": {}, "seen": None, "created": ago(3.5 * MIN)},
        {**plain, "id": ident("instance", 2), "name": "old", "state": "crashed", "image": None, "disks": "base", "settings": {"name": "old", "cpus": 1},
         "seen": {"addresses": [], "set": "base"}, "created": ago(3.5 * DAY), "error": {
             "code": "hypervisor_failed", "message": "no memory\x1b[2J for it", "action": "start", "time": ago(60)}}]
    items["codes"].append({"id": ident("code", 0), "name": "shop", "uses": 100, "used": 3, "state": "active",
                           "created": ago(90 * MIN), "expires": time.time() + 29.8 * DAY})
    items["tokens"].append({"id": ident("token", 0), "name": "first", "role": "admin", "created": ago(90 * MIN)})
    items["regions"].append({"id": "local", "name": "this host", "provider": "local", "created": ago(5.5 * DAY),
                             "capacity": {"free": 100 * GIB, "total": 400 * GIB, "accelerator": "kvm"}})
    return center
