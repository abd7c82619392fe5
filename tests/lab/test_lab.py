"""The laboratory's own tests: a few seconds, no server is built.

    python3 -m pytest tests/lab
"""

import os
import pathlib
import signal
import subprocess
import sys
import tarfile
import time

import pytest

from tests.lab import build, cache, content, qemu, servers

GUEST = pathlib.Path(__file__).with_name("guest")


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_trial_guest_really_runs():
    assert qemu.try_accelerator("tcg", "max") is None


def test_the_trial_tells_an_accelerator_that_does_not_exist():
    assert "nonsense" in qemu.try_accelerator("nonsense", "max")


def test_the_trial_gives_up_on_a_guest_that_hangs(monkeypatch):
    monkeypatch.setattr(qemu, "TRIAL_CODE", bytes.fromhex("ebfe"))
    monkeypatch.setattr(qemu, "TRIAL_SECONDS", 1)
    assert "nothing within 1 s" in qemu.try_accelerator("tcg", "max")


def test_a_machine_starts_is_seen_and_is_gone_afterwards(tmp_path):
    with qemu.Machine("empty", forwards={22: 0, 80: 0}) as machine:
        folder, pid = machine.folder, machine.process.pid
        assert len({machine.host_port(22), machine.host_port(80)}) == 2
        machine.screenshot(tmp_path / "screen.png")
        assert (tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG")
    assert not alive(pid)
    assert not folder.exists()


def test_a_machine_that_cannot_start_says_why(tmp_path):
    with pytest.raises(qemu.LabError, match="no-such-disk"):
        qemu.Machine("broken", [qemu.Drive(tmp_path / "no-such-disk")]).start()


def test_a_machine_dies_with_its_owner(tmp_path):
    code = ("from tests.lab import qemu\nimport time\n"
            f"m = qemu.Machine('orphan', nic='', folder={str(tmp_path)!r}).start()\nprint(m.process.pid, flush=True)\ntime.sleep(60)")
    owner = subprocess.Popen([sys.executable, "-c", code], cwd=cache.SOURCE, stdout=subprocess.PIPE)
    pid = int(owner.stdout.readline())
    assert alive(pid)
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    owner.stdout.close()
    end = time.monotonic() + 5
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive(pid)


def test_contents_are_the_same_every_time(tmp_path):
    for name in ("one", "two"):
        tree = content.Tree(tmp_path / name)
        content.data("/srv/x", 8, 8, 10)(tree)
        tree.close()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with tarfile.open(tmp_path / "one") as tar:
        tar.extractall(tmp_path / "out")
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=tmp_path / "out/srv/x", check=True)


@pytest.mark.parametrize("server", servers.SERVERS, ids=lambda server: server.name)
def test_recipes_make_sense(server):
    assert servers.find(server.name) is server
    mounts = [mount for _, _, _, mount in build.places(server)]
    assert mounts.count("/") == 1
    tree_script = build._script(server, ["true"])
    assert subprocess.run(["bash", "-n"], input=tree_script.encode(), check=False).returncode == 0


def write_for(folder, seconds):
    writer = subprocess.Popen([GUEST / "lab-writer", folder, "1000"])
    time.sleep(seconds)
    writer.kill()
    writer.wait()


def check(folder):
    return subprocess.run([GUEST / "lab-check", "writer", folder], capture_output=True, text=True, check=False)


def test_the_writer_goes_on_after_a_kill(tmp_path):
    write_for(tmp_path, 1)
    first = check(tmp_path)
    assert first.returncode == 0, first.stderr
    with open(tmp_path / "writer.log", "ab") as log:
        log.write(b"torn")
    write_for(tmp_path, 1)
    second = check(tmp_path)
    assert second.returncode == 0, second.stderr
    assert int(second.stdout) > int(first.stdout) > 0


def last_block(folder):
    return int((folder / "writer.log").read_text().splitlines()[-1].split()[1])


def test_the_check_sees_a_damaged_block(tmp_path):
    write_for(tmp_path, 1)
    with open(tmp_path / "writer.blocks", "r+b") as blocks:
        blocks.seek(last_block(tmp_path) * 4096 + 100)
        byte = blocks.read(1)[0]
        blocks.seek(-1, os.SEEK_CUR)
        blocks.write(bytes([byte ^ 1]))
    assert "is damaged" in check(tmp_path).stderr


def test_the_check_sees_a_block_older_than_the_log(tmp_path):
    write_for(tmp_path, 1)
    with open(tmp_path / "writer.blocks", "r+b") as blocks:
        blocks.seek(last_block(tmp_path) * 4096)
        blocks.write(bytes(4096))
    assert "is of write 0" in check(tmp_path).stderr


def test_the_check_sees_a_log_older_than_the_blocks(tmp_path):
    write_for(tmp_path, 1)
    lines = (tmp_path / "writer.log").read_bytes().splitlines(keepends=True)
    (tmp_path / "writer.log").write_bytes(b"".join(lines[:-5]))
    assert check(tmp_path).returncode == 1


def test_the_check_sees_a_missing_line(tmp_path):
    write_for(tmp_path, 1)
    lines = (tmp_path / "writer.log").read_bytes().splitlines(keepends=True)
    (tmp_path / "writer.log").write_bytes(b"".join(lines[:3] + lines[4:]))
    assert "after 3" in check(tmp_path).stderr
