"""`replant jobs watch` against a scripted center: in place on a terminal, a line per change elsewhere, through restarts."""

import json
import os
import queue
import re
import signal
import sys
import time

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from cli_scene import fill, finished, ident, job, progress  # noqa: E402
from cli_tools import Cli, FakeCenter, make_ca  # noqa: E402

NAME, ID = "web-1 to hall", ident("job", 9)
PATH = "GET", f"/v1/jobs/{ID}"
FULL = {"round": 1, "phase": "full"}
ERROR = {"code": "no_space", "message": "cannot write the replica: 3.0 GiB are needed"}


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    return make_ca(tmp_path_factory.mktemp("ca"), "right")


@pytest.fixture
def center(certificates):
    center = fill(FakeCenter(*certificates[1:]))
    center.items["jobs"].append(job(9, NAME, "running", "syncing"))
    yield center
    if center.thread.is_alive():
        center.stop()


@pytest.fixture
def cli(center, certificates, tmp_path):
    return Cli(tmp_path, center.url, certificates[0])


def running(percent, **more):
    return 200, job(9, NAME, "running", "syncing", progress=progress(percent, **more))


def story(end=None):
    return [running(2, **FULL), running(4, **FULL), running(43.2, **FULL), running(43.3, **FULL), running(99.7),
            (200, job(9, NAME, "running", "processing", step={"name": "convert", "text": "making the system bootable"})),
            (200, end or finished(9, NAME))]


def lines(text):
    return [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in text.splitlines()]


def test_a_line_per_change(cli, center):
    center.script[PATH] = story()
    done = cli.run("jobs", "watch", NAME)
    assert done.returncode == 0, done.stderr
    more = "112 MiB/s  42 s left  expected freeze 0.8 s"
    assert lines(done.stdout)[:4] == [
        f"{NAME}: syncing, round 1: copying  2 %  164 MiB of 8.0 GiB  {more}",
        f"{NAME}: syncing, round 1: copying  43 %  3.5 GiB of 8.0 GiB  {more}",
        f"{NAME}: syncing, round 2: comparing  100 %  8.0 GiB of 8.0 GiB  {more}",
        f"{NAME}: processing: making the system bootable"]
    assert "Frozen             0.6 s" in done.stdout and ident("image", 0) in done.stdout


def test_in_place_on_a_terminal(cli, center):
    center.script[PATH] = story()
    terminal = cli.terminal("jobs", "watch", NAME, columns=100)
    terminal.until(" 43 %")
    screen = terminal.screen()
    first, bar, freeze = screen.splitlines()
    assert first == f"{NAME}  syncing, round 1: copying"
    assert bar.startswith("  ━━━━") and " 43 %  3.5 GiB of 8.0 GiB  112 MiB/s  42 s left" in bar
    assert 0.38 < bar.count("━") / (bar.count("━") + bar.count("─")) < 0.48
    assert freeze == "  expected freeze 0.8 s"
    code, screen = terminal.wait()
    assert code == 0
    assert screen.splitlines()[0] == f"{NAME}  {ID}", "nothing of the progress is left above the end"
    assert "━" not in screen and "State              finished" in screen


def processing(percent, left):
    """In the stages whose bytes aren't counted the transfer's figures are history."""
    return 200, job(9, NAME, "running", "processing", progress=progress(100), step={
        "name": "convert", "text": "step 3 of 12: resume", "percent": percent, "seconds_left": left})


def test_stages_that_count_no_bytes(cli, center):
    center.script[PATH] = [processing(12.3, 45.0), processing(31, 20.0), processing(97.5, None), (200, finished(9, NAME))]
    done = cli.run("jobs", "watch", NAME)
    where = f"{NAME}: processing: step 3 of 12: resume"
    assert lines(done.stdout)[:3] == [f"{where}  12 %  45 s left", f"{where}  31 %  20 s left",
                                      f"{where}  98 %  takes longer than usual"]
    center.script[PATH] = [processing(12.3, 45.0), (200, finished(9, NAME))]
    terminal = cli.terminal("jobs", "watch", NAME, columns=100)
    terminal.until(" 12 %")
    first, bar = terminal.screen().splitlines()
    assert first == f"{NAME}  processing: step 3 of 12: resume"
    assert bar.startswith("  ━━━") and bar.rstrip().endswith(" 12 %  45 s left")
    assert terminal.wait()[0] == 0


def asked(center, path=PATH[1]):
    return sum(1 for r in center.requests if r[1] == path)


def test_events_instead_of_asking(cli, center):
    """The job is asked for when an event tells of it, at once and not otherwise; without a stream once a second."""
    center.events = queue.Queue()
    center.script[PATH] = [running(10)]
    process = cli.start("jobs", "watch", NAME)
    assert "10 %" in process.stdout.readline()
    time.sleep(1.5)
    before = asked(center)
    assert before <= 3
    time.sleep(3)
    assert asked(center) == before, "asked although nothing was told"
    center.events.put(("job.progress", {"id": ident("job", 1)}))
    time.sleep(1)
    assert asked(center) == before, "asked because of another job"
    center.script[PATH] = [running(40)]
    center.events.put(("job.progress", {"id": ID}))
    began = time.monotonic()
    assert "40 %" in process.stdout.readline() and time.monotonic() - began < 0.9
    # The stream ends; the next one is tried some seconds later.
    center.events.put(None)
    center.script[PATH] = [running(70)]
    assert "70 %" in process.stdout.readline()
    before = asked(center)
    time.sleep(3)
    assert 2 <= asked(center) - before <= 4
    wait_until(lambda: asked(center, "/v1/events") == 2, 15)
    time.sleep(1.5)
    before = asked(center)
    time.sleep(2.5)
    assert asked(center) == before
    center.script[PATH] = [(200, finished(9, NAME))]
    center.events.put(("job.updated", {"id": ID}))
    out, _ = process.communicate(timeout=10)
    center.events.put(None)
    assert process.returncode == 0 and "finished" in out


def wait_until(check, timeout):
    end = time.monotonic() + timeout
    while not check():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("columns", [20, 40, 60, 80])
def test_narrow_terminals(cli, center, columns):
    center.script[PATH] = [running(43.2), (200, finished(9, NAME))]
    terminal = cli.terminal("jobs", "watch", NAME, columns=columns)
    terminal.until("sync")
    assert all(len(line) < columns for line in terminal.screen().splitlines()), terminal.screen()
    assert terminal.wait()[0] == 0


def test_ascii_bar(cli, center):
    center.script[PATH] = [running(50), (200, finished(9, NAME))]
    terminal = cli.terminal("jobs", "watch", NAME, env={"LANG": "C"})
    assert terminal.wait()[0] == 0 and b"####" in terminal.raw and all(b < 128 for b in terminal.raw)


def test_error_tells_the_remedy(cli, center):
    center.script[PATH] = story(job(9, NAME, "in_error", "syncing", error=ERROR))
    done = cli.run("jobs", "watch", NAME)
    assert done.returncode == 1
    assert "State              in error while syncing\n" in done.stdout
    assert f"Error              {ERROR['message']}\n" in done.stdout and "What to do         Free space" in done.stdout


@pytest.mark.parametrize("code,words", [("source_busy", "--max-freeze"), ("hook_failed", "hooks.d"), ("guard_lost", "memory"),
                                        ("freeze_failed", "kernel log")])
def test_remedies_of_the_freeze(cli, center, code, words):
    error = {"code": code, "message": "it is like that", "temporary": False}
    center.script[PATH] = story(job(9, NAME, "in_error", "syncing", error=error))
    assert words in cli.run("jobs", "watch", NAME).stdout.partition("What to do")[2]


@pytest.mark.parametrize("state", ["stopped", "expired", "deleting", "ready"])
def test_other_ends_are_no_success(cli, center, state):
    center.script[PATH] = [running(1), (200, job(9, NAME, state, None))]
    done = cli.run("jobs", "watch", NAME)
    assert done.returncode == 1 and f"State              {state}" in done.stdout


def test_a_job_that_goes_away(cli, center):
    center.script[PATH] = [running(1), (404, {"error": {"code": "not_found", "message": "no such job"}})]
    done = cli.run("jobs", "watch", NAME)
    assert done.returncode == 1 and f"job '{NAME}' is gone" in done.stderr


def test_a_token_that_is_revoked_ends_it(cli, center):
    center.script[PATH] = [running(1), (401, {"error": {"code": "unauthorized", "message": "the token is not known"}})]
    assert cli.run("jobs", "watch", NAME).returncode == 1


def test_several(cli, center):
    center.script[PATH] = story()
    center.script["GET", f"/v1/jobs/{ident('job', 1)}"] = [(200, job(1, "db", "running", "syncing", progress=progress(70))),
                                                          (200, job(1, "db", "in_error", "syncing", error=ERROR))]
    terminal = cli.terminal("jobs", "watch", "db", NAME, rows=40)
    terminal.until("70 %")
    terminal.until(" 2 %")
    assert [x for x in terminal.screen().splitlines() if not x.startswith(" ")] == [
        "db  syncing, round 2: comparing", f"{NAME}  syncing, round 1: copying"]
    code, screen = terminal.wait()
    assert code == 1
    assert [x for x in screen.splitlines() if not x.startswith(" ")] == [f"db  {ident('job', 1)}", f"{NAME}  {ID}"]


def test_all_that_run(cli, center):
    center.items["jobs"] = [finished(1, "old")]
    done = cli.run("jobs", "watch")
    assert done.returncode == 0 and "No job is running" in done.stderr


def test_json_lines(cli, center):
    told = story()
    center.script[PATH] = list(told)
    done = cli.run("jobs", "watch", NAME, "--json")
    assert done.returncode == 0
    assert [json.loads(x) for x in done.stdout.splitlines()] == [body for _, body in told]


@pytest.mark.parametrize("tty", [False, True])
def test_restart_of_the_center(cli, center, certificates, tty):
    center.script[PATH] = [running(10)]
    process = cli.terminal("jobs", "watch", NAME) if tty else cli.start("jobs", "watch", NAME)
    if tty:
        process.until("10 %")
    else:
        assert "10 %" in process.stdout.readline()
    center.stop()
    if tty:
        process.until("connection lost")
        assert "━" in process.screen(), "the last figures stay"
    else:
        assert "trying again" in process.stderr.readline()
    again = fill(FakeCenter(*certificates[1:], port=center.port))
    again.script[PATH] = [running(60), (503, {"error": {"code": "starting", "message": "starting"}}), (200, finished(9, NAME))]
    try:
        if tty:
            code, screen = process.wait()
            assert code == 0 and "connection lost" not in screen
        else:
            out, err = process.communicate(timeout=60)
            assert process.returncode == 0, err
            assert "connected again" in err and "60 %" in out
    finally:
        again.stop()


def test_a_connection_that_stays_lost(cli, center):
    center.script[PATH] = [running(10), (503, {"error": {"code": "starting", "message": "the center is starting"}})]
    start = time.monotonic()
    done = cli.run("jobs", "watch", NAME, "--retry", 3)
    assert done.returncode == 75 and "no answer for 3 s" in done.stderr
    assert 3 <= time.monotonic() - start < 10


def test_interrupting_does_nothing_to_the_job(cli, center):
    center.script[PATH] = [running(10)]
    process = cli.start("jobs", "watch", NAME)
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert {r[0] for r in center.requests} == {"GET"}


def test_hostile_job(cli, center):
    evil = job(9, "x\x1b[2J", "running", "syncing\x1b[2J", progress=progress(5, phase="\x9b2J"), step={"name": "\x1b", "text": "\x07"})
    center.script[PATH] = [(200, evil), (200, {**evil, "state": "in_error", "error": {"code": "\x1b", "message": "a\x1b[2Jb"}})]
    terminal = cli.terminal("jobs", "watch", ID, env={"NO_COLOR": "1"})
    code, screen = terminal.wait()
    assert code == 1 and b"\x1b[2J" not in terminal.raw and b"\x9b" not in terminal.raw.replace(b"\xe2\x94\x9b", b"")
    assert "a?[2Jb" in screen


def test_create_and_watch(cli, center):
    center.script["POST", "/v1/jobs"] = [(201, center.items["jobs"][-1])]
    center.script["POST", f"/v1/jobs/{ID}/start"] = [(200, center.items["jobs"][-1])]
    center.script[PATH] = [(200, finished(9, NAME))]
    done = cli.run("jobs", "create", "web-1", "--watch")
    assert done.returncode == 0 and f"job '{NAME}' created: {ID}\n" in done.stdout and "finished" in done.stdout
    center.script["POST", f"/v1/jobs/{ID}/start"] = [(409, {"error": {"code": "conflict", "message": "the source is unavailable"}})]
    done = cli.run("jobs", "create", "web-1", "--start")
    assert done.returncode == 1 and "was created but could not be started: the source is unavailable" in done.stderr
