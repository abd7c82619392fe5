"""What a provider that was killed leaves on real directories: it is named, what is temporary goes, what is data stays."""

import json
import os
import signal
import subprocess
import time

import pytest

from tests.boot.test_convert_boot import Failed, Provider, converted, provider  # noqa: F401

pytestmark = pytest.mark.xdist_group("leftovers")

PSK = "ab" * 32


def kill_when(provider, words, there):  # noqa: F811
    """Starts it, and kills it when something is there."""
    process = subprocess.Popen(provider.command(*words), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        end = time.monotonic() + 120
        while not there(process):
            assert process.poll() is None and time.monotonic() < end, "it ended before it could be killed"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(0.3)  # what dies with it


def holdings(provider):  # noqa: F811
    return {item["path"]: item for item in provider.call("holdings")[1]}


def sweep(provider):  # noqa: F811
    """As the center does it: what is certainly temporary."""
    for path, item in holdings(provider).items():
        if item["kind"] in ("run", "temporary"):
            provider.call("discard", path)
        else:
            with pytest.raises(Failed, match="not known to be temporary"):
                provider.call("discard", path)
    provider.call("empty")
    return {path: (item["kind"], item["owner"]) for path, item in holdings(provider).items()}


@pytest.fixture
def own(provider, tmp_path_factory):  # noqa: F811
    """With nothing in it."""
    for path, item in holdings(provider).items():
        if item["kind"] == "copy":
            provider.call("job-remove", item["owner"])
        elif item["kind"] == "image":
            provider.call("image-remove", item["owner"])
    assert sweep(provider) == {}
    return provider


def an_image(provider, tmp_path):  # noqa: F811
    job, _ = converted(provider, tmp_path)
    image = provider.new_id("image")
    provider.call("image-create", job, image)
    provider.call("job-remove", job)
    return image


def many_files(folder, n=20000):
    """What takes a while to remove."""
    (folder / "many").mkdir()
    for i in range(n):
        (folder / "many" / str(i)).touch()


def test_leftovers_of_a_kill_at_each_step(own, tmp_path):
    # receiving: a copy is data, whatever became of its job
    job = own.new_id("job")
    kill_when(own, ["receive", job, "run-0123456789abcdef", PSK], lambda p: "listening" in p.stdout.readline())
    assert sweep(own) == {f"jobs/{job}": ("copy", job)}
    own.call("job-remove", job)
    # receiving a run of an incremental job
    job = own.new_id("job")
    kill_when(own, ["receive", job, "run-0123456789abcdef", PSK, "1"], lambda p: "listening" in p.stdout.readline())
    assert sweep(own) == {f"chains/{job}": ("chain", job)}
    own.call("job-remove", job)
    own.call("trim")
    assert sweep(own) == {}
    # converting
    (tmp_path / "empty").write_bytes(b"\0" * (8 << 20))
    job, _ = own.job([tmp_path / "empty"])
    machine = own.folder / "runs" / job / "root.qcow2"
    kill_when(own, ["convert", job], lambda p: machine.exists())
    found = holdings(own)
    assert {(i["kind"], i["owner"]) for i in found.values()} == {("copy", job), ("run", job)}
    assert found[f"runs/{job}"]["bytes"] > 0 and abs(found[f"runs/{job}"]["since"] - time.time()) < 60
    assert sweep(own) == {f"jobs/{job}": ("copy", job)}
    own.call("job-remove", job)
    assert sweep(own) == {}


def test_leftovers_behind_the_image(own, tmp_path):
    # between the copy's move and the manifest: an image that isn't finished is data, too
    job, replica = converted(own, tmp_path)
    image = own.new_id("image")
    replica.rename(own.folder / "images" / image)
    assert sweep(own) == {f"jobs/{job}": ("copy", job), f"images/{image}": ("image", image)}
    own.call("image-create", job, image)
    own.call("job-remove", job)
    assert sweep(own) == {f"images/{image}": ("image", image)}
    # booting
    machine = own.folder / "runs" / f"{image}-probe"
    kill_when(own, ["test-boot", image], lambda p: machine.exists())
    assert {(p, i["kind"], i["owner"]) for p, i in holdings(own).items()} == {
        (f"images/{image}", "image", image), (f"runs/{image}", "run", image), (f"runs/{image}-probe", "run", image)}
    assert sweep(own) == {f"images/{image}": ("image", image)}
    # removing it: half of an image is none
    many_files(own.folder / "images" / image)
    kill_when(own, ["image-remove", image], lambda p: not (own.folder / "images" / image).exists())
    assert {(i["kind"], i["owner"]) for i in holdings(own).values()} == {("run", image)}
    assert sweep(own) == {}
    # removing a job: half of a copy is none
    job, replica = converted(own, tmp_path)
    many_files(replica)
    kill_when(own, ["job-remove", job], lambda p: not replica.exists())
    found = holdings(own)
    assert {(i["kind"], i["owner"]) for i in found.values()} == {("temporary", job)} and list(found)[0].startswith("gone/")
    # a job that was removed is removed again, as the restarted center does it
    own.call("job-remove", job)
    assert holdings(own) == {}


@pytest.mark.parametrize("path", ["images/image-0123456789abcdef", "jobs/job-0123456789abcdef", "chains/x", "runs/", "runs/..", "x",
                                  "../runs/x", "runs/../images/image-0123456789abcdef", "cache/kernel", "gone/../runs/x", "/runs/x",
                                  "cache/../trial-x"])
def test_nothing_else_is_discarded(own, path):
    keep = own.folder / "images" / "image-0123456789abcdef"
    keep.mkdir(exist_ok=True)
    try:
        with pytest.raises(Failed):
            own.call("discard", path)
        assert keep.exists()
    finally:
        keep.rmdir()


def test_strangers_are_told(own):
    """What is nobody's by its name has no owner, and links lead nowhere."""
    folder = own.folder / "images" / "my notes"
    folder.mkdir()
    (own.folder / "runs" / "odd").symlink_to("/etc")
    try:
        found = holdings(own)
        assert found["images/my notes"] | {"bytes": 0, "since": 0} == {
            "kind": "image", "owner": None, "path": "images/my notes", "bytes": 0, "since": 0}
        own.call("discard", "runs/odd")
        own.call("empty")
        assert os.path.exists("/etc/passwd") and list(holdings(own)) == ["images/my notes"]
    finally:
        folder.rmdir()


def test_a_name_that_was_thrown_away_before(own, tmp_path):
    for _ in range(3):
        for name in "x", "y":
            (own.folder / "runs" / name).mkdir()
            (own.folder / "runs" / name / "f").write_text(json.dumps(name))
            own.call("discard", f"runs/{name}")
    assert len(holdings(own)) == 6 and {i["kind"] for i in holdings(own).values()} == {"temporary"}
    own.call("empty")
    assert holdings(own) == {}
