"""`replant` against a real center whose provider is scripted and whose agents are played by the test."""

import contextlib
import csv
import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from cli_tools import PNG, REPLANT, Cli, environment  # noqa: E402
from harness import Agent, free_port, wait_for  # noqa: E402


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


def test_tags(cli, center, agent, image):
    name = source_name(center, agent)
    assert cli.out("sources", "tag", name, "env=prod", "wave=2", "note=a=b") == f"source {agent.source} has 3 tags\n"
    assert cli.out("sources", "tag", name, "wave-", "none-") == f"source {agent.source} has 2 tags\n"
    assert "Tags               env=prod, note=a=b\n" in cli.out("sources", "show", name)
    assert cli.out("sources", "ls", "--tag", "env=prod", "--name", name[:-1] + "*", "--state", "available", "-q") == agent.source + "\n"
    done = cli.run("sources", "ls", "--tag", "env=test")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "No sources match.\n")
    for noun, item in (("jobs", "move"), ("images", "moved")):
        cli.out(noun, "tag", item, "golden=yes")
        assert json.loads(cli.out(noun, "ls", "-t", "golden", "--json"))["items"][0]["tags"] == {"golden": "yes"}
        assert cli.out(noun, "ls", "-t", "golden", "-t", "golden=no", "-q") == ""
        cli.out(noun, "tag", item, "golden-")
    for bad in ("golden", "=x", "-", "a\x01=b", "k=" + "v" * 129):
        done = cli.run("sources", "tag", name, bad)
        assert done.returncode == 1 and done.stderr.startswith("replant: "), bad
    assert cli.run("sources", "ls", "--state", "asleep").returncode == 1
    cli.out("sources", "tag", name, "env-", "note-", "wave-")
    assert center.ok("GET", f"/v1/sources/{agent.source}")["tags"] == {}


def test_templates_and_workgroups(cli, center):
    web, db = Agent(center), Agent(center)
    assert "created: template-" in cli.out("templates", "create", "night", "--rate", "200", "--incremental", "--interval", "12h",
                                           "--tag", "wave=2", "--description", "for the shop")
    cli.out("templates", "set", "night", "--rate", "300", "--tag", "hall=b")
    shown = cli.out("templates", "show", "night")
    assert "rate mbit          300" in shown and "interval hours     12" in shown and "wave=2, hall=b" in shown and "for the shop" in shown
    assert re.search(r"^night +local +", cli.out("templates", "ls"), re.M)
    assert cli.run("templates", "create", "night").returncode == 1
    assert "created: workgroup-" in cli.out("workgroups", "create", "wave-2", "--description", "the shop")
    cli.out("workgroups", "add", "wave-2", web.source, db.source)
    cli.out("jobs", "create", web.source, "--template", "night", "--rate", "5")
    done = cli.run("workgroups", "start", "wave-2")
    assert done.returncode == 1 and re.search(r"^job job-\S+ started$", done.stdout, re.M)
    assert f"{db.source}: the source has no unfinished job" in done.stderr and "1 of 2 jobs were not started" in done.stderr
    job = center.ok("GET", f"/v1/jobs?source={web.source}")["items"][0]
    assert job["parameters"]["rate_mbit"] == 5 and job["parameters"]["interval_hours"] == 12 and job["tags"] == {"wave": "2", "hall": "b"}
    web.wait_task()
    assert re.search(r"^wave-2 +in progress +2 +1: no job", cli.out("workgroups", "ls"), re.M)
    shown = cli.out("workgroups", "show", "wave-2")
    assert "Warnings           1: no job" in shown and web.source in shown and db.source in shown
    assert "stopped" in cli.run("workgroups", "stop", "wave-2").stdout
    assert cli.run("workgroups", "rm", "wave-2", "--yes").returncode == 1
    cli.out("workgroups", "tag", "wave-2", "hall=b")
    assert cli.out("workgroups", "ls", "-t", "hall=b", "-q") == cli.out("workgroups", "ls", "-n", "wave*", "-q") != ""
    cli.out("workgroups", "remove", web.source, db.source)
    cli.out("workgroups", "rm", "wave-2", "--yes")
    cli.out("templates", "rename", "night", "weekend")
    cli.out("templates", "rm", "weekend", "--yes")
    cli.out("jobs", "rm", job["id"], "--yes")


def test_the_doctor(cli, center):
    agent = Agent(center)
    job = center.new_job(agent.source, name="ill")
    done = cli.run("jobs", "doctor", "ill")
    assert done.returncode == 1 and "was never started" in done.stdout and "Start it" in done.stdout
    assert f"replant jobs bundle {job}" in " ".join(done.stdout.split())
    agent.sync()
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    task = agent.wait_task()
    assert cli.run("jobs", "doctor", "ill").returncode == 0 and "nothing is wrong" in cli.out("jobs", "doctor", "ill")
    agent.report(task["run"], progress={"phase": "compare", "mode": "tracked", "converges": False, "bottleneck": "link", "expected_freeze_seconds": 12.5})
    wait_for("the news", lambda: "writes faster than is sent" in cli.run("jobs", "doctor", "ill").stdout)
    agent.report(task["run"], "failed", error={"code": "read_error", "message": "sector 5 of \u202e/dev/sda can't be read", "temporary": False})
    center.wait_job(job, "in_error")
    center.play("capacity", "free", str(1 << 20))
    done = cli.run("jobs", "doctor", "ill", "--json")
    center.unplay("capacity", "free")
    found = {f["code"]: f for f in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1 and set(found) == {"read_error", "no_space"} and "zero" in found["read_error"]["remedy"]
    assert "sector 5" in found["read_error"]["text"] and "\u202e" not in found["read_error"]["text"]
    with contextlib.closing(sqlite3.connect(center.state / "replant.db", timeout=20)) as db:
        db.execute("DELETE FROM sources WHERE id = ?", (agent.source,))
        db.commit()
    assert "was removed from the center" in cli.run("jobs", "doctor", "ill").stdout
    cli.out("jobs", "rm", "ill", "--yes")


def test_jobs_from_a_table(cli, center, tmp_path):
    agents = [Agent(center) for _ in range(4)]
    cli.out("templates", "create", "bulk", "--compression", "2")
    table = tmp_path / "wave.csv"

    def write(*rows, **how):
        with open(table, "w", newline="") as f:  # an independent writer of the format
            csv.writer(f, **how).writerows(rows)
        return table

    head = ["source", "name", "tags", "template", "at", "rate_mbit", "incremental", "description"]
    rows = [head, [agents[0].source, 'the "big", one', "wave=2;hall=b", "bulk", "", "200", "yes", "two\nlines"],
            [agents[1].source, "later", "", "", "+2h", "", "no", ""], [agents[2].source, "plain", "", "", "", "", "", ""]]
    assert cli.out("jobs", "import", write(*rows), "--dry-run") == "3 jobs would be made\n"
    said = cli.out("jobs", "import", write(*rows, quoting=csv.QUOTE_ALL), "--start")
    assert said.count("created and started: job-") == 2 and "job 'later' created, it starts by itself: job-" in said
    jobs = {j["name"]: j for j in center.ok("GET", "/v1/jobs?limit=500")["items"]}
    big = jobs['the "big", one']
    assert (big["tags"], big["description"], big["state"]) == ({"wave": "2", "hall": "b"}, "two\nlines", "running")
    assert (big["parameters"]["rate_mbit"], big["parameters"]["incremental"], big["parameters"]["compression"]) == (200, True, 2)
    assert jobs["later"]["state"] == "ready" and abs(jobs["later"]["next_run"] - time.time() - 7200) < 60
    # One that the center refuses doesn't hinder the others; one that makes no sense hinders all.
    done = cli.run("jobs", "import", write(["source"], [agents[0].source], [agents[3].source]))
    assert done.returncode == 1 and done.stdout.count("created: job-") == 1
    assert "line 2: " in done.stderr and "already has job" in done.stderr and "1 of 2 jobs were not made" in done.stderr
    before = center.ok("GET", "/v1/jobs")["total"]
    for text, word in (("name\nx\n", "no column 'source'"), ("", "nothing in it"), ("source,name\nx\n", "line 2: there are 1 cells"),
                       (f"source\n{agents[3].source}\nnobody\n", "line 3: there is no source 'nobody'"), ('source\n"x', "never closed"),
                       (f"source,at\n{agents[3].source},soon\n", "line 2: 'soon' is no time"), ("source,name\n,x\n", "no source is named"),
                       (f"source,tags\n{agents[3].source},x\n", "no tag such as"), ("source\na\0b\n", "NUL")):
        table.write_text(text)
        done = cli.run("jobs", "import", table)
        assert done.returncode == 1 and word in done.stderr, (text, done)
    table.write_text(f"source,nonsense\n{agents[3].source},1\n")
    cli.out("jobs", "rm", center.ok("GET", f"/v1/jobs?source={agents[3].source}")["items"][0]["id"], "--yes")
    wait_for("gone", lambda: center.ok("GET", "/v1/jobs")["total"] < before)
    assert "'nonsense' is not known here" in cli.run("jobs", "import", table).stderr
    assert cli.run("jobs", "import", tmp_path / "none").returncode == 1
    cli.out("jobs", "stop", big["id"], jobs["plain"]["id"])
    cli.out("jobs", "rm", *[j["id"] for j in jobs.values() if j["name"] in ('the "big", one', "later", "plain")], "--yes")


def test_a_job_for_later(cli, center):
    other = Agent(center)
    made = cli.run("jobs", "create", other.source, "--name", "later", "--at", "2001-01-31T03:00+01:00")
    assert made.returncode == 1 and "at least 10 minutes" in made.stderr
    for at in ("tomorrow", "+", "+2w", "2027-13-01T00:00", "never2"):
        done = cli.run("jobs", "create", other.source, "--at", at)
        assert done.returncode == 2 and "is no time such as" in done.stderr, at
    assert cli.run("jobs", "create", other.source, "--at", "+1h", "--start").returncode == 2
    command = ["jobs", "create", other.source, "--name", "later", "--at", time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600)),
               "--tag", "wave=2", "--valid-days", "60", "--client-token", "only-once", "--transition-memory", "2048"]
    assert "(it starts by itself)" in cli.out(*command)
    job = center.job(cli.out("jobs", "ls", "--name", "later", "-q").strip())
    assert abs(job["next_run"] - time.time() - 3600) < 60 and job["tags"] == {"wave": "2"} and job["valid_days"] == 60
    assert json.loads(cli.out(*command, "--json"))["id"] == job["id"]
    shown = cli.out("jobs", "show", "later")
    assert "Starts             in 1 h" in shown.replace("in 59 min", "in 1 h").replace("in 60 min", "in 1 h") and "Tags               wave=2" in shown
    cli.out("jobs", "set", "later", "--at", "never")
    assert center.job(job["id"])["next_run"] is None
    zone = subprocess.run(["date", "-d", "+3 hours", "+%Y-%m-%dT%H:%M"], text=True, capture_output=True, check=True).stdout.strip()
    cli.out("jobs", "set", "later", "--at", zone)
    assert abs(center.job(job["id"])["next_run"] - time.time() - 3 * 3600) < 120
    cli.out("jobs", "rm", "later", "--yes")


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


def test_instances(cli, center, image, tmp_path):
    made = cli.out("instances", "create", "moved", "fresh", "--cpus", "2", "--memory", "256", "--forward", "8080:80", "--forward", "8022:22",
                   "--tag", "a=b", "--description", "d", "--firmware", "uefi", "--no-start")
    instance = center.ok("GET", "/v1/instances?name=fresh")["items"][0]
    assert made == f"instance {instance['id']} made\n"
    assert instance["settings"] == {"name": "fresh", "cpus": 2, "memory_mib": 256, "cpu": "host", "firmware": "uefi", "bus": "virtio", "network": "user",
                                    "mac": "52:54:00:00:00:01", "forwards": [{"host": 8080, "guest": 80}, {"host": 8022, "guest": 22}]}
    assert (instance["state"], instance["tags"], instance["description"]) == ("off", {"a": "b"}, "d")
    for bad in (["--cpus", "65"], ["--memory", "1"]):
        assert cli.run("instances", "create", "moved", "x", *bad).returncode == 2
    for bad in (["--forward", "80"], ["--forward", "0:1"], ["--mac", "x"], ["--bus", "ide"], ["--region", "moon"]):
        done = cli.run("instances", "create", "moved", "x", *bad)
        assert done.returncode == 1 and done.stderr.startswith("replant: "), bad
    assert cli.out("instances", "start", "fresh") == f"instance {instance['id']} started, it runs\n"
    assert re.search(r"^fresh +running +10.0.2.15 +local ", cli.out("instances", "ls"), re.M)
    assert "port 8080 of the host to 80" in cli.out("instances", "show", "fresh")
    assert re.search(rf"^fresh +running +\S+ +{instance['id']}$", cli.out("regions", "instances", "local"), re.M)
    cli.out("instances", "screenshot", "fresh", "-o", tmp_path / "now.png")
    assert (tmp_path / "now.png").read_bytes().startswith(b"\x89PNG")
    (center.script / "world" / f"serial.{instance['id']}").write_text("boot\x1b[2J\r\nlogin: ")
    assert cli.run("instances", "serial", "fresh").stdout == "boot\x1b[2J\nlogin: "  # universal newlines
    code, screen = cli.terminal("instances", "serial", "fresh", "--since", "2").wait()
    assert code == 0 and "ot?[2J" in screen and "login:" in screen
    assert "made: snapshot-" in cli.out("instances", "snapshot", "fresh", "first")
    assert re.search(r"^first +", cli.out("instances", "snapshots", "fresh"), re.M)
    done = cli.run("instances", "revert", "fresh", "first")
    assert done.returncode == 1 and "stop it first" in done.stderr
    assert cli.run("instances", "set", "fresh", "--cpus", "4").returncode == 1
    assert cli.out("instances", "restart", "fresh", "--force").endswith("it runs\n")
    # What takes a while is waited for.
    center.play("instance_stop", "delay", "3")
    done = cli.run("instances", "stop", "fresh", "--seconds", "9")
    center.unplay("instance_stop", "delay")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"instance {instance['id']} stopped\n", "stop\n")
    assert cli.out("instances", "revert", "fresh", "first") == f"instance {instance['id']} reverted\n"
    assert cli.out("instances", "set", "fresh", "--cpus", "4", "--firmware", "", "--forward", "none") == f"instance {instance['id']} changed\n"
    now = json.loads(cli.out("instances", "show", "fresh", "--json"))
    assert (now["settings"]["cpus"], now["settings"]["firmware"], now["settings"]["forwards"]) == (4, "bios", [])
    assert cli.run("instances", "set", "fresh").returncode == 2
    # The id of another's snapshot is a mistake.
    cli.out("instances", "create", "moved", "other", "--no-start")
    theirs = re.search(r"snapshot-[0-9a-f]{16}", cli.out("instances", "snapshot", "other", "theirs"))[0]
    for verb in ("revert", "forget"):
        done = cli.run("instances", verb, "fresh", theirs)
        assert done.returncode == 1 and f"there is no snapshot '{theirs}'" in done.stderr, done
    assert "theirs" in cli.out("instances", "snapshots", "other")
    cli.out("instances", "rm", "other", "--yes")
    cli.out("instances", "forget", "fresh", "first")
    assert "No snapshots" in cli.run("instances", "snapshots", "fresh").stderr
    cli.out("instances", "tag", "fresh", "a-", "wave=2")
    cli.out("instances", "rename", "fresh", "stale")
    # What fails behind the answer is said, and is the exit code.
    center.play("set_add", "fail", "no_space: the disk is full")
    done = cli.run("instances", "create", "moved", "broken")
    center.unplay("set_add", "fail")
    assert done.returncode == 1 and "the disk is full" in done.stderr
    cli.out("instances", "rm", "broken", "--yes")
    (center.script / "world" / "instance.theirs").write_text(json.dumps(
        {"settings": {"name": "t"}, "state": "off", "set": "base", "addresses": [], "sets": [{"set": "base"}]}))
    assert "made" in cli.out("instances", "import", "theirs", "guest")
    assert cli.run("instances", "rm", "guest", "--yes").returncode == 1
    assert cli.run("instances", "rm", "guest", "--yes", "--keep", "--force").returncode == 2
    assert "removed" in cli.out("instances", "rm", "guest", "--keep", "--yes")
    assert "removed" in cli.out("instances", "rm", "stale", "--yes")


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


def test_image_check(cli, center, image, tmp_path):
    done = cli.run("images", "check", image)
    assert done.returncode == 0 and re.search(r"^ *Verdict +passed", done.stdout, re.M), done.stdout
    center.play("image_check", "bad")
    done = cli.run("images", "check", image, "--html", tmp_path / "page.html")
    assert done.returncode == 1 and "critical: '/' is on '<script>'" in done.stdout and "name it & go (or: --repair)" in done.stdout
    assert "&lt;script&gt;" in (tmp_path / "page.html").read_text()
    done = cli.run("images", "check", image, "--json")
    assert done.returncode == 1 and json.loads(done.stdout)["report"]["verdict"] == "critical"
    done = cli.run("images", "check", image, "--repair", "--name", "sound again", "--html", tmp_path / "page.html")
    center.unplay("image_check", "bad")
    assert done.returncode == 0 and re.search(r"^ *repaired +fstab", done.stdout, re.M), done.stdout
    assert "sound again" in cli.out("images", "ls") and "sound again" in (tmp_path / "page.html").read_text()
    assert cli.run("images", "check", image, "--name", "x").returncode == 2
    center.play("image_check", "fail", "no appliance here")
    done = cli.run("images", "check", image)
    center.unplay("image_check", "fail")
    assert done.returncode == 1 and "no appliance here" in done.stdout


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
    center.new_job(agent.source)
    assert cli.run("sources", "rm", agent.source, "--yes").returncode == 1
    cli.out("sources", "rm", agent.source, "--yes", "--force")
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


def test_subscriptions(cli, center):
    target = f"http://127.0.0.1:{free_port()}/hook"
    done = cli.run("subscriptions", "create", "chat", target, "--event", "job.failed", "-e", "source.offline")
    assert done.returncode == 0 and re.fullmatch(r"whsec_[A-Za-z0-9+/]{43}=\n", done.stdout) and "shown only now" in done.stderr
    assert re.search(rf"^chat +new +{re.escape(target)} +job.failed, source.offline ", cli.out("subscriptions", "ls"), re.M)
    done = cli.run("subscriptions", "test", "chat")
    assert done.returncode == 1 and "was not told: " in done.stderr and "connect" in done.stderr
    shown = cli.out("subscriptions", "show", "chat")
    assert re.search(r"^  State +failing$", shown, re.M) and re.search(r"^  Last failed +", shown, re.M) and "whsec" not in shown
    listed = cli.out("subscriptions", "notices", "chat")
    assert re.search(r"^ping .* given up +1 ", listed, re.M)
    assert re.fullmatch(r"notice-[0-9a-f]{16}\n", cli.out("subscriptions", "notices", "chat", "--state", "given_up", "-q"))
    assert cli.out("subscriptions", "notices", "chat", "--state", "pending", "-q") == ""
    assert "changed" in cli.out("subscriptions", "set", "chat", "-e", "job.finished", "--target", target + "/2")
    assert "is paused" in cli.out("subscriptions", "pause", "chat")
    assert re.search(rf"^chat +paused +{re.escape(target)}/2 +job.finished ", cli.out("subscriptions", "ls"), re.M)
    assert "goes on" in cli.out("subscriptions", "resume", "chat")
    cli.out("subscriptions", "rename", "chat", "chat 2")
    with HTTPServer(("127.0.0.1", 0), Told) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        cli.out("subscriptions", "set", "chat 2", "--target", f"http://127.0.0.1:{server.server_address[1]}/")
        assert "was told" in cli.out("subscriptions", "test", "chat 2")
    assert re.search(r"^chat 2 +works ", cli.out("subscriptions", "ls"), re.M)
    cli.out("subscriptions", "rm", "chat 2", "--yes")
    assert cli.out("subscriptions", "ls", "-q") == ""
    done = cli.run("subscriptions", "create", "x", "mailto:a@b.example")
    assert done.returncode == 1 and "no mail server" in done.stderr


class Told(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
