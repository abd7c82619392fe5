"""`replant` against a real center whose provider is scripted and whose agents are played by the test."""

import json
import os
import re
import subprocess
import sys
import threading
import time

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from cli_tools import PNG, REPLANT, Cli, environment  # noqa: E402
from harness import Agent, wait_for  # noqa: E402


def cli_of(center, token=None):
    return Cli(center.folder, f"https://127.0.0.1:{center.port}", center.state / "ca.pem", token or center.token)


@pytest.fixture(scope="module")
def cli(center):
    return cli_of(center)


@pytest.fixture(scope="module")
def agent(cli, center):
    """Enrolled with what `codes create` printed."""
    (center.folder / "replant-agent").write_text("#!/bin/sh\n")
    done = cli.run("codes", "create", "--name", "for the tests", "--uses", 50, "--days", 7)
    assert done.returncode == 0 and "works 50 times and expires in 7 days" in done.stderr
    code = re.match(r"REPLANT_CODE=(\S+) REPLANT_URL=https://127\.0\.0\.1:", done.stdout)[1]
    agent = Agent(center, code=code)
    agent.sync()
    return agent


@pytest.fixture
def image(cli, center, agent):
    """An image from a migration that was made and watched from the command line."""
    found = center.ok("GET", "/v1/images")["items"]
    if found:
        return found[0]["id"]
    (center.script / "screen.png").write_bytes(PNG)
    job = migrate(cli, center, agent, "jobs", "create", agent.source, "--name", "move", "--image-name", "moved", "--watch")
    return center.job(job)["image"]


def migrate(cli, center, agent, *args, code=0):
    """Runs a command that watches, while the agent does its part; the id of the job."""
    sender = threading.Thread(target=agent.send_all)
    sender.start()
    done = cli.run(*args)
    sender.join()
    assert done.returncode == code, (done, center.tail())
    return re.search(r"job-[0-9a-f]{16}", done.stdout)[0]


def source_name(center, agent):
    return center.ok("GET", f"/v1/sources/{agent.source}")["name"]


def test_codes(cli, center, agent):
    text = cli.out("codes", "ls")
    assert re.search(r"^for the tests +active +1 of 50 +in \d days", text, re.M), text
    cli.out("codes", "create", "--name", "to revoke")
    assert "is revoked" in cli.out("codes", "revoke", "to revoke")
    assert re.search(r"^to revoke +revoked", cli.out("codes", "ls"), re.M)
    cli.out("codes", "rm", "to revoke", "--yes")
    assert "to revoke" not in cli.out("codes", "ls")


def test_sources(cli, center, agent):
    name = source_name(center, agent)
    assert re.search(rf"^{name} +available +Debian .*{agent.source}", cli.out("sources", "ls"), re.M)
    assert "/dev/vda  10.0 GiB  1.0 GiB" in cli.out("sources", "show", name)
    cli.out("sources", "rename", name, "shop front")
    assert cli.out("sources", "show", "shop front").startswith(f"shop front  {agent.source}\n")
    cli.out("sources", "rename", "shop front", name)


def test_a_migration(cli, center, agent, image):
    text = cli.out("images", "show", "moved")
    assert text.startswith(f"moved  {image}\n") and "Test boot\n  State              passed\n" in text
    assert re.search(rf"^moved .*passed .*{image}", cli.out("images", "ls"), re.M)
    jobs = cli.out("jobs", "ls")
    assert re.search(r"^move +finished +", jobs, re.M) and source_name(center, agent) in jobs
    shown = cli.out("jobs", "show", "move")
    assert "Frozen             12 ms" in shown and image in shown and re.search(r"^  syncing ", shown, re.M)
    assert cli.out("images", "report", "moved").startswith("Report")


@pytest.mark.parametrize("noun", ["sources", "jobs", "images", "exports", "codes", "tokens", "regions"])
def test_json_is_the_apis(cli, center, image, noun):
    before, got, after = (f() for f in (lambda: center.get(f"/v1/{noun}?limit=500").raw.decode(),
                                        lambda: cli.out(noun, "ls", "--json"),
                                        lambda: center.get(f"/v1/{noun}?limit=500").raw.decode()))
    assert got.rstrip("\n") in (before.rstrip("\n"), after.rstrip("\n"))
    if noun in ("sources", "jobs", "images", "regions"):
        one = json.loads(got)["items"][0]["id"]
        assert json.loads(cli.out(noun, "show", one, "--json")) == center.ok("GET", f"/v1/{noun}/{one}")


def test_report_json(cli, center, image):
    assert json.loads(cli.out("images", "report", image, "--json")) == center.ok("GET", f"/v1/images/{image}/report")


def test_every_answer_is_shown_without_trouble(cli, center, image):
    """Whatever the center answers, the commands show it on terminals of any width."""
    for args in (["sources", "ls"], ["jobs", "ls"], ["images", "ls"], ["images", "show", image], ["exports", "ls"], ["codes", "ls"],
                 ["tokens", "ls"], ["regions", "ls"], ["regions", "show", "local"], ["version"]):
        for columns in (80, 120):
            code, screen = cli.terminal(*args, columns=columns).wait()
            assert code == 0 and "null" not in screen
            assert args[-1] != "ls" or max(map(len, screen.splitlines())) <= columns


def test_regions(cli):
    assert re.search(r"^local +scripted|^local +local", cli.out("regions", "ls"), re.M)
    assert "1.0 TiB of 2.0 TiB" in cli.out("regions", "ls") and "1.0 TiB of 2.0 TiB" in cli.out("regions", "show", "local")


def test_boot_again(cli, center, image):
    done = cli.run("images", "boot", image, "--watch")
    assert done.returncode == 0 and "passed" in done.stdout
    center.play("test_boot", "bad")
    done = cli.run("images", "boot", image, "--watch")
    center.unplay("test_boot", "bad")
    assert done.returncode == 1 and "State              failed" in done.stdout
    assert cli.run("images", "boot", image, "--watch").returncode == 0


def test_screenshot(cli, center, image, tmp_path):
    cli.out("images", "screenshot", image, "-o", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == PNG


def test_export(cli, center, image, tmp_path):
    center.play("image_export", "delay", "1")
    assert "8 B" in cli.out("images", "export", image, "-f", "qcow2", "-o", tmp_path / "disk.qcow2", "--keep")
    center.unplay("image_export", "delay")
    assert (tmp_path / "disk.qcow2").read_bytes() == b"EXPORTED"
    assert re.search(r"qcow2 +finished +8 B", cli.out("exports", "ls"))
    cli.out("exports", "rm", *cli.out("exports", "ls", "-q").split(), "--yes")
    cli.out("images", "export", image, "-f", "raw", "-o", tmp_path / "disk.raw")
    assert cli.out("exports", "ls", "-q") == ""
    center.play("image_export", "fail", "the disk is full")
    done = cli.run("images", "export", image, "-f", "raw", "-o", tmp_path / "none.raw")
    center.unplay("image_export", "fail")
    assert done.returncode == 1 and "the disk is full" in done.stderr and not (tmp_path / "none.raw").exists()
    for bad in (["--format", "vdi"], ["--format", "raw", "--disk", "5"]):
        assert cli.run("images", "export", image, *bad, "-o", tmp_path / "none").returncode == 1
    for left in cli.out("exports", "ls", "-q").split():
        cli.out("exports", "rm", left, "--yes")


def test_roles(cli, center, image, tmp_path):
    token = cli.out("tokens", "create", "looker", "--role", "viewer").strip()
    looker = cli_of(center, token)
    assert "moved" in looker.out("images", "ls")
    done = looker.run("images", "rm", "moved", "--yes")
    assert done.returncode == 1 and done.stderr.startswith("replant: ")
    assert re.search(r"^looker +viewer", cli.out("tokens", "ls"), re.M)
    code, screen = cli.terminal("tokens", "rm", "looker", answer=(b"[y/N]", b"y\n")).wait()
    assert code == 0 and "Remove token 'looker'" in screen
    done = looker.run("images", "ls")
    assert done.returncode == 1 and "check the token" in done.stderr


@pytest.mark.parametrize("bad", ["job-0000000000000000", "nothing", "job-", "../tokens", "job-00000000000000zz", "%2e%2e"])
def test_bad_ids(cli, bad):
    for verb in (["show"], ["start"], ["stop"], ["watch"], ["rm", "--yes"]):
        done = cli.run("jobs", verb[0], bad, *verb[1:])
        assert done.returncode == 1 and done.stderr.startswith("replant: "), done


def test_refused_parameters_name_the_field(cli, agent):
    done = cli.run("jobs", "create", agent.source, "--on-read-error", "perhaps")
    assert done.returncode == 1 and "on_read_error" in done.stderr and "fail, zero" in done.stderr
    done = cli.run("jobs", "create", agent.source, "--region", "mars")
    assert done.returncode == 1 and "there is no region 'mars'" in done.stderr


def test_state_directory(center):
    env = environment(center.folder)
    assert "for the tests" in cli_of(center).out("--state", center.state, "--server", f"127.0.0.1:{center.port}", "codes", "ls",
                                                 env=env)
    # init was told another port than the one of this test.
    done = subprocess.run([REPLANT, "--state", center.state, "version"], env=env, text=True, capture_output=True, timeout=60)
    assert done.returncode == 75 and "https://127.0.0.1:4443" in done.stderr


def test_wrong_ca(cli, fresh):
    other = fresh()
    done = cli.run("sources", "ls", "--ca", other.state / "ca.pem")
    assert done.returncode == 1 and "is not the one whose certificate is in" in done.stderr


# ---- a center of their own: these are restarted ----
def test_watch_through_the_death_of_the_center(fresh):
    center = fresh()
    cli, agent = cli_of(center), center.agent()
    job = center.started_job(agent.source, name="long")
    task = agent.wait_task()
    agent.report(task["run"], progress={"phase": "full", "round": 1, "bytes_total": 8 << 30, "bytes_done": 2 << 30,
                                        "speed": 50e6, "seconds_left": 90, "expected_freeze_seconds": 0.5})
    terminal, plain = cli.terminal("jobs", "watch", "long", columns=90), cli.start("jobs", "watch", "long")
    assert "25 %" in plain.stdout.readline()
    terminal.until("25 %")
    terminal.until("expected freeze 0.5 s")
    center.kill()
    terminal.until("connection lost")
    center.start()
    second = agent.wait_task()
    agent.report(second["run"], progress={"phase": "compare", "round": 2, "bytes_total": 100, "bytes_done": 50})
    terminal.until("50 %")
    while "50 %" not in (line := plain.stdout.readline()):
        assert line, plain.stderr.read()
    center.commit(second["run"])
    agent.report(second["run"], "done", progress={"phase": "done", "freeze_ms": 321}, result={"notes": []})
    code, screen = terminal.wait()
    assert code == 0 and "State              finished" in screen and "0.3 s" in screen and "━" not in screen
    rest, err = plain.communicate(timeout=60)
    assert plain.returncode == 0 and "trying again" in err and "connected again" in err
    assert "Frozen             0.3 s" in rest
    center.ok("GET", f"/v1/jobs/{job}")


def test_watch_ends_with_the_error(fresh):
    center = fresh()
    cli, agent = cli_of(center), center.agent()
    center.play("convert", "fail", "no_space: the region is full")
    job = migrate(cli, center, agent, "jobs", "create", agent.source, "--watch", code=1)
    done = cli.run("jobs", "watch", job)
    assert done.returncode == 1 and "the region is full" in done.stdout and "start the job again" in done.stdout
    assert "in error" in cli.out("jobs", "show", job)
    center.unplay("convert", "fail")
    assert cli.run("jobs", "start", job, "--watch").returncode == 0


def test_stop_ends_the_watch(fresh):
    center = fresh()
    cli, agent = cli_of(center), center.agent()
    job = center.started_job(agent.source, name="stop me")
    agent.wait_task()
    watch = cli.start("jobs", "watch")
    assert "stop me" in watch.stdout.readline()
    assert "stopped" in cli.out("jobs", "stop", "stop me")
    out, _ = watch.communicate(timeout=60)
    assert watch.returncode == 1 and "State              stopped" in out
    done = cli.run("jobs", "rm", job)
    assert done.returncode == 2
    cli.out("jobs", "rm", job, "--yes")
    wait_for("gone", lambda: cli.out("jobs", "ls", "-q") == "")
    cli.out("sources", "rm", agent.source, "--yes")
    assert cli.out("sources", "ls", "-q") == ""


def test_events_through_a_restart(fresh):
    center = fresh()
    cli, agent = cli_of(center), center.agent()
    name = source_name(center, agent)
    follow = cli.start("events", "follow", "--json", "--retry", "20")
    lines = []
    reader = threading.Thread(target=lambda: lines.extend(follow.stdout), daemon=True)
    reader.start()
    time.sleep(1)
    cli.out("sources", "rename", name, "before")
    wait_for("the first event", lambda: any('"before"' in line for line in lines))
    center.kill()
    center.start()
    cli.out("sources", "rename", "before", "after")
    wait_for("the second event", lambda: any('"after"' in line for line in lines))
    follow.terminate()
    follow.wait(20)
    reader.join(20)
    assert all(json.loads(line) for line in lines)
    assert sum('"before"' in line for line in lines) == len({line for line in lines if '"before"' in line}), "none comes twice"
    plain = cli.start("events", "follow", "--since", "0")
    texts = [plain.stdout.readline() for _ in range(3)]
    plain.terminate()
    plain.communicate(timeout=20)
    assert re.match(r"\d\d:\d\d:\d\d (code|source)\.\w+ ", texts[0]), texts


def test_incremental(cli, center):
    agent = Agent(center)
    done = cli.run("jobs", "create", agent.source, "--name", "again", "--incremental", "--interval", "7d", "--max-images", 2, "--max-freeze",
                   2, "--no-test-boot")
    assert done.returncode == 0, done
    job = re.search(r"job-[0-9a-f]{16}", done.stdout)[0]
    want = {"incremental": True, "interval_hours": 168, "max_images": 2, "max_freeze": 2}
    assert want.items() <= center.job(job)["parameters"].items()
    assert cli.run("jobs", "cutover", "again").returncode == 1
    for i, command in enumerate((("start",), ("run",), ("run",)), 1):
        migrate(cli, center, agent, "jobs", *command, "again", "--watch")
        row = center.job(job)
        assert row["state"] == "waiting" and row["number"] == i
    shown = cli.run("jobs", "show", "again").stdout
    assert "every 168 h, the last 2 images stay" in shown and "Next run" in shown and "Runs" in shown
    lines = cli.run("jobs", "runs", "again").stdout.splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [["3", "done", "manual"], ["2", "done", "manual"], ["1", "done", "manual"]]
    assert row["image"] in lines[1]
    assert [r["number"] for r in json.loads(cli.run("jobs", "runs", "again", "--json").stdout)["items"]] == [3, 2, 1]
    assert cli.run("images", "show", "again-run3").returncode == 0
    assert cli.run("jobs", "set", "again", "--rate", 50, "--interval", 12, "--compression", "auto").returncode == 0
    assert {"rate_mbit": 50, "interval_hours": 12, "compression": "auto"}.items() <= center.job(job)["parameters"].items()
    for words in (("set", "again"), ("set", "again", "--interval", "soon"), ("create", agent.source, "--interval", "-3h")):
        assert cli.run("jobs", *words).returncode == 2, words
    assert cli.run("jobs", "set", "again", "--interval", "9d").returncode == 1
    # A watch says which run it is.
    sender = threading.Thread(target=agent.send_all)
    sender.start()
    done = cli.run("jobs", "cutover", "again", "--watch")
    sender.join()
    assert done.returncode == 0 and "run 4, " in done.stdout, done
    row = center.job(job)
    assert row["state"] == "finished" and row["number"] == 4
