"""A running server becomes an image: the whole way once, then everything about the image is asked of programs that know
nothing of Replant."""

import json
import os
import subprocess

import pytest

from tests import schema
from tests.boot.conftest import SERVER, long, run_again
from tests.lab import qemu, servers

pytestmark = pytest.mark.xdist_group("server")  # those of one group run in one process, one after the other

# What the source itself has under these is compared file by file.
TREES = "/ /boot /srv/data"
BOOT = servers.find(SERVER).device("/boot")
# Run in the copy by its test boot: as root, with the web server answering.
CHECK = """#!/bin/bash
set -e
test "$(id -u)" = 0
exec 3<>/dev/tcp/127.0.0.1/80
printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3
head -n 1 <&3 | tee /dev/stderr | grep -q ' 200 '
"""


@pytest.fixture(scope="module")
def migrated(center, source, tmp_path_factory):
    """The finished job, its image, and every file of the source that has not changed since before the job."""
    script = tmp_path_factory.mktemp("checks") / "front-page"
    script.write_text(CHECK)
    began = source.ssh("sync; date +%s").strip()
    job = center.cli("jobs", "create", source.id, "--name", "whole", "--image-name", "whole", "--incremental",
                     "--check", str(script), "--start")
    job = center.wait_job(job["id"], states=("waiting", "in_error"))
    assert job["state"] == "waiting", f"{job.get('error')}\n{center.tail(40)}"
    rows = [json.loads(row) for row in source.ssh(f"lab-check tree {TREES}", timeout=900).splitlines()]
    changed = set(source.ssh(f"find {TREES} -xdev -newerct @{began}", timeout=300).splitlines())
    image = center.cli("images", "show", job["image"])
    return {"job": job, "image": image, "disk": center.disk_of(image),
            "unchanged": {row["path"]: row for row in rows if row["path"] not in changed}}


@pytest.fixture(scope="module")
def looked(migrated, fish):
    """One session of libguestfs on the image, and what its own tools said."""
    script = f"""run
echo ---fsck-root
debug sh "e2fsck -fn /dev/vg0/root; echo status $?"
echo ---fsck-boot
debug sh "e2fsck -fn {BOOT}; echo status $?"
echo ---xfs
debug sh "xfs_repair -n /dev/vg0/data >/tmp/xfs 2>&1; echo status $?; tail -n 5 /tmp/xfs"
mount-ro /dev/vg0/root /
mount-ro /dev/sda2 /boot
mount-ro /dev/vg0/data /srv/data
echo ---writer
sh "/usr/local/bin/lab-check writer /srv/data"
echo ---fstab
cat /etc/fstab
echo ---leftovers
glob echo /etc/replant*
glob echo /etc/systemd/system/*/replant*
echo ---tree
sh "/usr/local/bin/lab-check tree / /boot /srv/data"
"""
    parts, name = {}, None
    for line in fish(migrated["disk"], script).splitlines():
        if line.startswith("---"):
            name = line[3:]
            parts[name] = []
        elif name and line.strip():
            parts[name].append(line)
    return parts


def test_the_answers_are_as_documented(migrated, center):
    schema.check_as("Image", migrated["image"])
    schema.check_as("Job", center.cli("jobs", "show", migrated["job"]["id"]))
    schema.check_as("Source", center.cli("sources", "show", migrated["job"]["source"]))


def test_logs_of_agent_receiver_conversion_and_boot(center, source, migrated, tmp_path):
    def replant(*words):
        return subprocess.run([center.program("replant"), "jobs", *words], env=dict(os.environ, **center.env), text=True,
                              capture_output=True, check=True, timeout=120, stdin=subprocess.DEVNULL).stdout

    job = migrated["job"]["id"]
    said = {part: replant("logs", job, "--run", "1", "--part", part) for part in ("agent", "receiver", "conversion", "boot")}
    for part, words in {"agent": ("begins", "freezing the filesystems", "thawed after", "all was sent"), "receiver": ("begins", "committed", "complete"),
                        "conversion": ("fstab", "the conversion is complete"), "boot": ("Booting from Hard Disk", "the test boot passed")}.items():
        for word in words:
            assert word in said[part], (part, word, said[part][-2000:])
    secrets = {center.env["REPLANT_TOKEN"], json.loads(source.ssh("cat /etc/replant/agent.json"))["secret"]}
    secrets |= {secret.partition(".")[2] for secret in secrets}
    replant("bundle", job, "-o", str(tmp_path / "bundle.tar.gz"))
    unpacked = subprocess.run(["tar", "-xzOf", str(tmp_path / "bundle.tar.gz")], capture_output=True, check=True).stdout.decode()
    names = subprocess.run(["tar", "-tzf", str(tmp_path / "bundle.tar.gz")], capture_output=True, text=True, check=True).stdout
    assert all(f"/logs/1-{part}.log\n" in names for part in said) and source.id in unpacked
    assert not [secret for secret in secrets if len(secret) < 32 or secret in unpacked + "".join(said.values())]


def test_qemu_img_finds_the_image_sound(migrated):
    done = subprocess.run(["qemu-img", "check", migrated["disk"]], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No errors were found" in done.stdout


def test_filesystems_are_clean(looked):
    assert looked["fsck-root"][-1] == "status 0", looked["fsck-root"]
    assert looked["fsck-boot"][-1] == "status 0", looked["fsck-boot"]
    assert looked["xfs"][0] == "status 0", looked["xfs"]


def test_the_writers_data_is_of_one_moment(looked):
    assert int(looked["writer"][-1]) > 0


def test_fstab_names_no_device_that_may_be_called_otherwise(looked):
    assert not [line for line in looked["fstab"] if line.startswith(("/dev/sd", "/dev/hd"))]


def test_the_agent_is_not_in_the_image(looked):
    assert not [line for line in looked["leftovers"] if "*" not in line and line.strip()]


def test_every_unchanged_file_is_equal(migrated, looked):
    converted = {f["path"] for step in migrated["image"]["report"]["conversion"]["steps"] for f in step.get("files", [])}
    image = {row["path"]: row for row in map(json.loads, looked["tree"])}
    unchanged = migrated["unchanged"]
    assert len(unchanged) > 5000
    wrong, missing = [], []
    for path in unchanged.keys() - converted:
        if path not in image:
            missing.append(path)
        elif image[path] != unchanged[path]:
            wrong.append((unchanged[path], image[path]))
    # A converted file changes its folder's time.
    folders = {os.path.dirname(path) for path in converted}
    assert not [pair for pair in wrong if pair[0]["path"] not in folders], wrong[:5]
    assert not [path for path in missing if "replant" not in path], missing[:20]


def test_virt_inspector_recognises_the_system(migrated):
    xml = subprocess.run(["virt-inspector", "--no-applications", "--no-icon", "-a", migrated["disk"]],
                         env=qemu.guestfs_environment(), capture_output=True, text=True, timeout=900, check=True).stdout
    assert "<distro>debian</distro>" in xml
    assert "<major_version>12</major_version>" in xml
    assert "/srv/data" in xml


def test_the_test_boot_told_the_truth(migrated):
    report = migrated["image"]["report"]["test_boot"]
    assert migrated["image"]["verified"] is True, report
    assert report["failed_units"] == []
    assert {"/", "/boot", "/srv/data"} <= {m["target"] for m in report["mounts"]}
    assert {22, 80} <= set(report["listening"])


def test_the_copy_was_compared_with_the_source(migrated):
    report = migrated["image"]["report"]["test_boot"]
    seen = report["verification"]
    print(json.dumps(seen, indent=1))
    assert seen["compared"] and seen["verified"] and seen["counts"]["critical"] == 0, seen
    assert seen["counts"]["same"] > 150  # packages alone are more
    assert "replant-agent.service" in {d["what"] for d in seen["differences"] if d["level"] == "explained"}
    flagged = [d for d in seen["differences"] if d["level"] == "flagged"]
    assert all(d["kind"] in ("module", "port", "service") for d in flagged), flagged


def test_a_check_was_run_in_the_copy(migrated):
    (check,) = migrated["image"]["report"]["test_boot"]["checks"]
    assert (check["name"], check["passed"], check["status"]) == ("front-page", True, 0) and "200" in check["output"], check


def test_checks_that_fail(center, migrated, tmp_path):
    """One that says no, one that takes too long with a child in the background, and one that is gone through all the same."""
    scripts = {"no": "echo looking\necho 'the table is empty' >&2\nexit 3\n", "slow": "#!/bin/sh\nsleep 300 & sleep 300\n",
               "yes": "test -d /srv/data && ! touch /nothing/there 2>/dev/null\n"}
    words = []
    for name, text in scripts.items():
        (tmp_path / name).write_text(text)
        words += ["--check", str(tmp_path / name)]
    said = subprocess.run([center.program("replant"), "images", "boot", migrated["image"]["id"], *words, "--check-timeout", "5", "--watch"],
                          env=dict(os.environ, **center.env), text=True, capture_output=True, timeout=900, stdin=subprocess.DEVNULL)
    image = center.cli("images", "show", migrated["image"]["id"])
    report = image["boot"]["report"]
    assert said.returncode == 1 and "check 'no' failed with status 3: the table is empty" in said.stdout, said.stdout
    assert image["boot"]["state"] == "failed" and not report["verified"]
    assert [(c["name"], c["passed"], c["timed_out"]) for c in report["checks"]] == [("no", False, False), ("slow", False, True), ("yes", True, False)]
    assert [p["code"] for p in report["problems"]] == ["check_failed"] * 2 and "looking\nthe table" in report["checks"][0]["output"]
    assert report["verification"]["verified"]


def test_the_screen_has_a_picture(center, migrated, tmp_path):
    picture = tmp_path / "screen.png"
    center.cli("images", "screenshot", migrated["image"]["id"], "-o", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 1000


def test_figures_add_up(migrated):
    progress = migrated["job"]["progress"]
    assert 0 < progress["bytes_sent"] < progress["bytes_read"]
    assert progress["bytes_read"] < 2 << 30  # of 4 GiB: free space was not read
    assert progress["mode"] == "tracked" and 0 < progress["freeze_ms"] < 10000
    print(f"freeze: {progress['freeze_ms']:.0f} ms, {progress['expected_freeze_seconds']:.2f} s expected")
    assert {"preparing", "syncing", "processing"} <= {stage["name"] for stage in migrated["job"]["stages"]}


def test_another_machine_boots_it_and_it_serves(migrated, tmp_path):
    """Not our test boot: the laboratory's own machine, reached over ssh, as its users would."""
    disk = qemu.overlay(migrated["disk"], tmp_path / "run.qcow2", base_format=migrated["image"]["manifest"]["disks"][0]["format"])
    with qemu.Machine("copy", drives=[qemu.Drive(disk, "virtio")], machine="q35", mac="52:54:00:aa:bb:cc", nic_slot=7,
                      forwards={22: 0, 80: 0}) as copy:
        copy.wait_ssh(600)
        assert copy.ssh("systemctl is-system-running --wait || true", timeout=400).strip() == "running", \
            copy.ssh("systemctl --failed")
        assert copy.ssh("findmnt -no SOURCE /srv/data").strip() == "/dev/mapper/vg0-data"
        assert copy.ssh("swapon --noheadings --show=NAME").strip()
        assert "200" in copy.ssh("curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1/")
        assert copy.ssh("systemctl is-active lab-writer").strip() == "active"


def test_the_source_was_left_alone(source):
    assert source.ssh("systemctl is-active lab-writer nginx").split() == ["active", "active"]
    assert source.ssh("dmesg | grep -ciE 'I/O error|ext4-fs error|xfs.*corrupt' || true").strip() == "0"


@pytest.mark.parametrize("form", ["raw", "vmdk"])
def test_an_export_is_the_same_disk(center, migrated, tmp_path, form):
    target = tmp_path / f"export.{form}"
    center.cli("images", "export", migrated["image"]["id"], "--format", form, "-o", str(target))
    done = subprocess.run(["qemu-img", "compare", "-F", form, migrated["disk"], str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- the same job, run again: from here on the source has been rebooted, and the first image may be gone ----
def what_the_writer_left(fish, center, image):
    """Its last number; all three filesystems are clean, and its data is of one moment."""
    said = fish(center.disk_of(image), f"""run
debug sh "udevadm settle; e2fsck -fn /dev/vg0/root 2>&1; echo root $?"
debug sh "e2fsck -fn {BOOT} 2>&1; echo boot $?"
debug sh "xfs_repair -n /dev/vg0/data 2>&1; echo data $?"
mount-ro /dev/vg0/root /
mount-ro /dev/vg0/data /srv/data
sh "/usr/local/bin/lab-check writer /srv/data"
""").split("\n")
    assert {"root 0", "boot 0", "data 0"} <= set(said), said
    return int([line for line in said if line.isdigit()][-1])


def test_later_runs_cost_what_changed_and_boot(center, source, migrated, fish):
    """Two more runs: each reads what was written since, gives an image that boots, and leaves the earlier ones alone."""
    whole = migrated["job"]["progress"]
    seen = [what_the_writer_left(fish, center, migrated["image"])]
    for _ in range(2):
        now = run_again(center, migrated["job"]["id"])
        image = center.cli("images", "show", now["image"])
        assert now["progress"]["mode"] == "tracked"
        assert now["progress"]["bytes_read"] < whole["bytes_read"] / 4, now["progress"]
        assert image["verified"] is True, image["boot"]
        seen.append(what_the_writer_left(fish, center, image))
    assert seen == sorted(set(seen)), seen
    assert what_the_writer_left(fish, center, migrated["image"]) == seen[0]
    subprocess.run(["qemu-img", "check", "-q", center.disk_of(image)], check=True)


@long("tests/flow/test_tracked.py")
def test_after_a_reboot_all_is_compared(center, source, migrated, fish):
    """And the cut-over: one more run, then the job is finished and its replica released."""
    before = source.ssh("tail -n 1 /srv/data/writer.log").split()[0]
    source.ssh("systemctl reboot || true")
    source.wait_ssh(600)
    center.cli("jobs", "cutover", migrated["job"]["id"])
    now = center.wait_job(migrated["job"]["id"])
    assert now["state"] == "finished", f"{now.get('error')}\n{center.tail(40)}"
    assert now["progress"]["bytes_read"] > migrated["job"]["progress"]["bytes_read"] * 3 // 4
    assert now["progress"]["bytes_sent"] < migrated["job"]["progress"]["bytes_sent"]
    image = center.cli("images", "show", now["image"])
    assert image["verified"] is True, image["boot"]
    assert what_the_writer_left(fish, center, image) > int(before)
