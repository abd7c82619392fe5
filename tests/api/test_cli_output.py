"""What `replant` prints and how it ends, against a scripted center."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from cli_scene import GIB, HOSTILE, fill, finished, ident, job  # noqa: E402
from cli_tools import BUILD, PNG, REPLANT, TOKEN, Cli, FakeCenter, environment, make_ca  # noqa: E402

GOLDEN = pathlib.Path(__file__).parent / "cli_golden"
IMAGE, EXPORT = ident("image", 0), ident("export", 7)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ca")
    return {name: make_ca(folder, name) for name in ("right", "wrong")}


@pytest.fixture
def center(certificates):
    _, cert, key = certificates["right"]
    center = fill(FakeCenter(cert, key))
    yield center
    center.stop()


@pytest.fixture
def cli(center, certificates, tmp_path):
    return Cli(tmp_path, center.url, certificates["right"][0])


def golden(name, text):
    """Compares with a file; REPLANT_GOLDEN=update writes it: look at the diff before it is committed."""
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("REPLANT_GOLDEN") == "update":
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


SCENES = {
    "sources-ls": ["sources", "ls"], "sources-show": ["sources", "show", "web-1"],
    "sources-show-hostile": ["sources", "show", "0000000000000002"],
    "jobs-ls": ["jobs", "ls"], "jobs-show": ["jobs", "show", "db"], "jobs-show-error": ["jobs", "show", "web-1"],
    "images-ls": ["images", "ls"], "images-show": ["images", "show", "web-1"], "images-report": ["images", "report", "web-1"],
    "instances-ls": ["instances", "ls"], "instances-show": ["instances", "show", "web-1"],
    "instances-show-error": ["instances", "show", "old"],
    "codes-ls": ["codes", "ls"], "tokens-ls": ["tokens", "ls"], "regions-ls": ["regions", "ls"],
    "regions-show": ["regions", "show", "local"],
}


@pytest.mark.parametrize("name", SCENES)
def test_looks_as_agreed(cli, name):
    golden(name, cli.out(*SCENES[name]))


@pytest.mark.parametrize("name", SCENES)
@pytest.mark.parametrize("columns", [60, 80, 132])
def test_fits_the_terminal(cli, name, columns):
    code, screen = cli.terminal(*SCENES[name], columns=columns).wait()
    assert code == 0
    if name.endswith("-ls") and columns >= 80:
        assert max(map(len, screen.splitlines())) <= columns
    golden(f"{name}-{columns}", screen)


@pytest.mark.parametrize("name", SCENES)
def test_json_is_the_apis(cli, center, name):
    text = cli.out(*SCENES[name], "--json")
    method, path, _ = center.requests[-1]
    assert method == "GET"
    wanted = {"items": center.items[path.split("/")[2].partition("?")[0]]}
    path = path.partition("?")[0]
    shown = json.loads(text)
    if name.endswith("-ls"):
        assert shown["items"] == wanted["items"] and shown["total"] == len(shown["items"])
    elif "/report" in path:
        assert shown == center.script["GET", path][0][1]
    else:
        assert shown in wanted["items"]


def test_json_bytes_are_unchanged(cli, center):
    body = b'{ "items" : [ {"id":"job-0000000000000001", "x" : 1.50, "name":"\xc2\x9b[2J"} ],\n"total":1 }'
    center.bodies["/v1/jobs"] = body
    assert cli.run("jobs", "ls", "--json", env=cli.env).stdout.encode() == body + b"\n"
    # A terminal would obey the C1 control; escaped it is the same JSON.
    code, screen = cli.terminal("jobs", "ls", "--json").wait()
    assert code == 0 and json.loads(screen) == json.loads(body) and "\\u009b" in screen


@pytest.mark.parametrize("args", [["sources", "ls"], ["sources", "show", "source-0000000000000002"]])
def test_hostile_text_is_harmless(cli, args):
    terminal = cli.terminal(*args, env={"NO_COLOR": "1"})
    code, screen = terminal.wait()
    assert code == 0 and "\u202e" not in screen and "\u009b" not in screen and HOSTILE not in screen
    assert b"\x1b" not in terminal.raw
    assert "mail?[2J" in screen


def test_hostile_errors_are_harmless(cli, center):
    center.script["GET", "/v1/jobs"] = [(409, {"error": {"code": "x", "message": "no\x1b]0;owned\x07\nreplant: all is well"}})]
    done = cli.run("jobs", "ls")
    assert done.returncode == 1 and done.stderr == "replant: no?]0;owned? replant: all is well\n"


def test_colours_only_where_wanted(cli):
    assert "\x1b" not in cli.out("sources", "ls")
    assert b"\x1b[32m" in (t := cli.terminal("sources", "ls"), t.wait())[0].raw
    for env in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        terminal = cli.terminal("sources", "ls", env=env)
        terminal.wait()
        assert b"\x1b" not in terminal.raw


def test_ascii_terminals_get_ascii(cli, center):
    center.items["sources"][0]["name"] = "a" * 100
    terminal = cli.terminal("sources", "ls", columns=80, env={"LANG": "C", "LC_ALL": "C"})
    assert terminal.wait()[0] == 0 and all(b < 128 for b in terminal.raw) and b"~" in terminal.raw


def test_pages_are_put_together(cli, center):
    center.items["jobs"] = [job(i, f"job number {i}", "ready", None) for i in range(25)]
    center.page = 10
    assert len(cli.out("jobs", "ls", "-q").split()) == 25
    assert cli.out("jobs", "show", "job number 24").startswith("job number 24")


# ---- finding things ----
def test_names_and_beginnings_of_ids(cli):
    for word in ("db", "job-0000000000000001", "0000000000000001"):
        assert cli.out("jobs", "show", word).startswith("db  job-0000000000000001\n")


def test_ambiguous_and_unknown(cli, center):
    done = cli.run("jobs", "show", "job-000")
    assert done.returncode == 1 and "3 jobs are meant by 'job-000': job-0000000000000001, " in done.stderr
    done = cli.run("jobs", "show", "nothing")
    assert done.returncode == 1 and "there is no job 'nothing' ('replant jobs ls' lists them)" in done.stderr
    done = cli.run("jobs", "show", "job-ffffffffffffffff")
    assert done.returncode == 1 and "job-ffffffffffffffff" in done.stderr
    center.items["jobs"][1]["name"] = "db"
    assert "2 jobs are meant by 'db'" in cli.run("jobs", "show", "db").stderr


@pytest.mark.parametrize("bad", ["../../v1/tokens", "a/b", "x?y", "", "job 1", "$(reboot)"])
def test_ids_that_are_none_are_not_used(cli, center, bad):
    center.items["jobs"] = [job(1, "evil", "ready", None, id=bad)]
    done = cli.run("jobs", "rm", "evil", "--yes")
    assert done.returncode == 1 and "an id that is none" in done.stderr
    assert [r for r in center.requests if r[0] != "GET"] == []
    assert cli.out("jobs", "ls", "-q") == ""


# ---- changing things ----
def test_create_sends_only_what_was_given(cli, center):
    center.script["POST", "/v1/jobs"] = [(201, center.items["jobs"][2])]
    assert cli.out("jobs", "create", "web-1") == \
        "job 'web-2' created: job-0000000000000003 (start it with 'replant jobs start')\n"
    assert center.requests[-1][2] == {"source": ident("source", 0), "parameters": {}}
    cli.out("jobs", "create", "web-1", "--name", "n", "--image-name", "i", "--compression", 3, "--rate", 200, "--connections", 8,
            "--no-checksum", "--on-read-error", "zero", "--no-test-boot", "--no-image-check", "--region", "local", "--description", "d")
    assert center.requests[-1][2] == {
        "source": ident("source", 0), "name": "n", "image_name": "i", "region": "local", "description": "d", "parameters": {
            "compression": 3, "rate_mbit": 200, "connections": 8, "checksum": False, "on_read_error": "zero", "test_boot": False, "image_check": False}}


@pytest.mark.parametrize("args", [
    ["jobs", "create", "web-1", "--compression", "11"], ["jobs", "create", "web-1", "--checksum", "--no-checksum"],
    ["jobs", "create"], ["jobs", "frobnicate"], ["jobs", "ls", "--nothing"], ["images", "screenshot", "web-1"],
    ["images", "check", "web-1", "--name", "sound"], []])
def test_wrong_usage(cli, center, args):
    assert cli.run(*args).returncode == 2
    assert center.requests == []


def test_half_a_command_says_what_may_follow(cli):
    for args in (["regions"], ["regions", "frobnicate"]):
        done = cli.run(*args)
        assert done.returncode == 2 and done.stderr.startswith("replant: after 'regions' comes one of add, rm, ls, show, ")


def test_refusals_name_the_field(cli, center):
    center.script["POST", "/v1/jobs"] = [(422, {"error": {"code": "invalid", "message": "must be one of fail, zero",
                                                          "field": "on_read_error"}})]
    done = cli.run("jobs", "create", "web-1", "--on-read-error", "perhaps")
    assert (done.returncode, done.stderr) == (1, "replant: 'on_read_error': must be one of fail, zero\n")
    done = cli.run("--json", "jobs", "create", "web-1", "--on-read-error", "perhaps")
    assert done.returncode == 1 and json.loads(done.stdout)["error"]["field"] == "on_read_error"


@pytest.mark.parametrize("odd", ["", "../../x", None])
def test_ids_of_an_answer_that_are_none(cli, center, odd):
    """They would be part of the next request's address."""
    path, body = f"/v1/images/{IMAGE}/check", {"state": "finished", "report": {"verdict": "passed", "items": []}}
    center.script["POST", path] = [(202, {})]
    center.script["GET", path] = [(200, {**body, "image": odd})]
    done = cli.run("images", "check", IMAGE, "--html", "page.html")
    assert (done.returncode, done.stderr) == (1, "replant: the center's check names no image (is it another version?)\n")
    if odd:
        center.script["GET", path] = [(200, {**body, "repaired": odd})]
        done = cli.run("images", "check", IMAGE)
        assert done.returncode == 1 and "names a repaired image that is none" in done.stderr
    one = ident("job", 1)
    center.script["GET", f"/v1/jobs/{one}"] = [(200, {"id": odd, "test": {"verdict": "passed", "picture": True}})]
    done = cli.run("jobs", "report", one, "--html", "page.html")
    assert done.returncode == 1 and "the center's job has no id" in done.stderr


def test_sweep_that_left_something_fails(cli, center):
    answer = {"dry_run": False, "removed": [], "failed": [], "orphans": []}
    center.script["POST", "/v1/holdings/sweep"] = [(200, answer)]
    assert json.loads(cli.out("center", "sweep", "--json")) == answer
    answer["failed"].append({"path": "kept/x", "message": "stuck"})
    done = cli.run("center", "sweep", "--json")
    assert done.returncode == 1 and json.loads(done.stdout) == answer
    done = cli.run("center", "sweep")
    assert done.returncode == 1 and "'kept/x' can't be removed: stuck" in done.stderr


def test_rename(cli, center):
    assert "is now called 'shop'" in cli.out("sources", "rename", "web-1", "shop")
    assert center.items["sources"][0]["name"] == "shop"


def test_rm_wants_to_be_sure(cli, center):
    done = cli.run("jobs", "rm", "web-2")
    assert done.returncode == 2 and "--yes" in done.stderr and len(center.items["jobs"]) == 3
    code, screen = cli.terminal("jobs", "rm", "web-2", answer=(b"[y/N]", b"n\n")).wait()
    assert code == 1 and "Remove job 'web-2' job-0000000000000003?" in screen and "was kept" in screen
    assert len(center.items["jobs"]) == 3
    code, screen = cli.terminal("jobs", "rm", "web-2", answer=(b"[y/N]", b"y\n")).wait()
    assert code == 0 and len(center.items["jobs"]) == 2
    assert cli.out("jobs", "rm", "db", "web-1", "--yes").count("removed") == 2
    assert center.items["jobs"] == []


def test_secrets_are_alone_on_stdout(cli, center):
    center.script["POST", "/v1/codes"] = [(201, {"id": ident("code", 1), "code": "x", "uses": 1, "command": "curl ... | sh",
                                                 "expires": time.time() + 29.8 * 86400})]
    done = cli.run("codes", "create", "--uses", 1, "--name", "n", "--days", 30)
    assert done.stdout == "curl ... | sh\n" and "in 30 days" in done.stderr
    assert center.requests[-1][2] == {"uses": 1, "name": "n", "valid_days": 30}
    center.script["POST", "/v1/tokens"] = [(201, {"id": ident("token", 1), "token": "the-secret"})]
    assert cli.run("tokens", "create", "me", "--role", "viewer").stdout == "the-secret\n"
    assert center.requests[-1][2] == {"name": "me", "role": "viewer"}


# ---- files ----
def test_screenshot(cli, center, tmp_path):
    center.bodies[f"/v1/images/{IMAGE}/screenshot"] = PNG
    cli.out("images", "screenshot", "web-1", "-o", tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes() == PNG
    center.bodies.clear()
    center.script["GET", f"/v1/images/{IMAGE}/screenshot"] = [(404, {"error": {"code": "x", "message": "not booted yet"}})]
    done = cli.run("images", "screenshot", "web-1", "-o", tmp_path / "y.png")
    assert done.returncode == 1 and "not booted yet" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.png"]


def export(center, data, size=None):
    made = {"id": EXPORT, "image": IMAGE, "disk": 0, "format": "raw", "percent": 0, "size": 0}
    done = {**made, "state": "finished", "percent": 100, "size": len(data) if size is None else size}
    center.script["POST", f"/v1/images/{IMAGE}/exports"] = [(202, {**made, "state": "running"})]
    center.script["GET", f"/v1/exports/{EXPORT}"] = [(200, {**made, "state": "running", "percent": 40}), (200, done)]
    center.script["DELETE", f"/v1/exports/{EXPORT}"] = [(200, done)]
    center.bodies[f"/v1/exports/{EXPORT}/data"] = data
    return "images", "export", "web-1", "--format", "raw", "-o"


def test_export(cli, center, tmp_path):
    data = b"\1" * 100000 + bytes(8 << 20) + os.urandom(100001) + bytes(5000)
    done = cli.out(*export(center, data), tmp_path / "disk.raw")
    assert "8.2 MiB" in done
    assert (tmp_path / "disk.raw").read_bytes() == data
    assert (tmp_path / "disk.raw").stat().st_blocks * 512 < 4 << 20, "zeros became holes"
    assert center.requests[-1][0] == "DELETE", "the center's copy is removed"
    cli.out(*export(center, data), tmp_path / "kept.raw", "--keep")
    assert center.requests[-1][0] == "GET"


def test_export_resumes(cli, center, tmp_path):
    data = os.urandom(3 << 20)
    args = export(center, data)
    center.cut = 1 << 20
    cli.out(*args, tmp_path / "disk.raw")
    assert (tmp_path / "disk.raw").read_bytes() == data
    assert sum(r[1].endswith("/data") for r in center.requests) == 2


def test_export_is_for_its_owner(cli, center, tmp_path):
    """It has the server's keys and password hashes."""
    cli.out(*export(center, b"x" * 1000), tmp_path / "disk.raw")
    assert (tmp_path / "disk.raw").stat().st_mode & 0o777 == 0o600


def test_export_interrupted_leaves_nothing(cli, center, tmp_path):
    args = export(center, os.urandom(1 << 20), 2 << 20)
    center.cut = 1 << 19
    p = cli.start(*args, tmp_path / "disk.raw", "--retry", "60")
    end = time.time() + 20
    while not list(tmp_path.glob("*.part-*")) and time.time() < end:
        time.sleep(0.02)
    assert list(tmp_path.glob("*.part-*"))
    p.send_signal(signal.SIGINT)
    assert p.wait(20) == -signal.SIGINT
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [99999, 100001])
def test_export_of_the_wrong_size_leaves_nothing(cli, center, tmp_path, size):
    done = cli.run(*export(center, os.urandom(100000), size), tmp_path / "disk.raw", "--retry", 1)
    assert done.returncode != 0 and EXPORT in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_export_replaces_files_only(cli, center, tmp_path):
    (tmp_path / "old").write_text("x")
    cli.out(*export(center, b"new"), tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"new"
    os.mkfifo(tmp_path / "fifo")
    done = cli.run(*export(center, b"new"), tmp_path / "fifo")
    assert done.returncode == 1 and "no regular file" in done.stderr
    done = cli.run(*export(center, b"x", 1 << 60), tmp_path / "huge")
    assert done.returncode == 1 and "free" in done.stderr


# ---- trust and settings ----
def test_wrong_ca(cli, certificates):
    done = cli.run("sources", "ls", "--ca", certificates["wrong"][0])
    assert done.returncode == 1 and "is not the one whose certificate is in" in done.stderr
    done = cli.run("sources", "ls", "--ca", "/etc/hostname")
    assert done.returncode == 1 and "/etc/hostname" in done.stderr
    assert cli.run("sources", "ls", "--ca", "/nothing").returncode == 1


def test_system_certificates_do_not_count(cli, certificates, tmp_path):
    env = {**cli.env, "REPLANT_CA": str(certificates["wrong"][0]), "SSL_CERT_FILE": str(certificates["right"][0]),
           "CURL_CA_BUNDLE": str(certificates["right"][0])}
    assert cli.run("version", env=env).returncode == 1


def test_wrong_name(cli, tmp_path):
    ca, cert, key = make_ca(tmp_path, "other", "DNS:elsewhere.example.org")
    other = FakeCenter(cert, key)
    done = cli.run("version", "--server", other.url, "--ca", ca)
    other.stop()
    assert done.returncode == 1 and "is not the one" in done.stderr


def test_wrong_and_missing_token(cli, center):
    done = cli.run("sources", "ls", env={**cli.env, "REPLANT_TOKEN": "nonsense"})
    assert done.returncode == 1 and "the token is not known (check the token" in done.stderr
    env = {k: v for k, v in cli.env.items() if k != "REPLANT_TOKEN"}
    done = cli.run("sources", "ls", env=env)
    assert done.returncode == 1 and "--token-file" in done.stderr
    assert "9.9.9" in cli.out("version", env=env), "needs no token"


def test_unreachable(cli):
    done = cli.run("sources", "ls", "--server", "https://localhost:1")
    assert done.returncode == 75 and "cannot reach the center at 'https://localhost:1'" in done.stderr


def test_busy_is_temporary(cli, center):
    center.script["GET", "/v1/jobs"] = [(503, {"error": {"code": "starting", "message": "the center is starting"}})]
    assert cli.run("jobs", "ls").returncode == 75


@pytest.mark.parametrize("url", ["http://localhost:1", "ftp://x", "file:///etc/passwd"])
def test_nothing_but_https(cli, url):
    done = cli.run("version", "--server", url)
    assert done.returncode == 1 and "https://" in done.stderr


def test_something_else_answers(cli, center):
    center.bodies["/v1/jobs"] = b"<html>hello</html>"
    done = cli.run("jobs", "ls")
    assert done.returncode == 1 and "is not a Replant center" in done.stderr
    center.bodies["/v1/jobs"] = b'{"things":[]}'
    assert cli.run("jobs", "ls").returncode == 1


def test_the_files_token_is_for_its_center(cli, center, certificates, tmp_path):
    """Who names another center doesn't send it the token of this one."""
    folder = tmp_path / ".config" / "replant"
    folder.mkdir(parents=True)
    (folder / "config").write_text(f"token = {TOKEN}\nserver = elsewhere.example:8443\nca = {certificates['right'][0]}\n")
    (folder / "config").chmod(0o600)
    bare = environment(tmp_path)
    for argv, env in ((["--server", center.url], bare), ([], {**bare, "REPLANT_URL": center.url})):
        done = cli.run("sources", "ls", *argv, env=env)
        assert done.returncode == 1 and "elsewhere.example" in done.stderr and not center.requests, done.stderr
    assert cli.run("sources", "ls", "--server", center.url, env={**bare, "REPLANT_TOKEN": TOKEN}).returncode == 0
    (folder / "config").write_text(f"token = {TOKEN}\nserver = {center.url}/\nca = {certificates['right'][0]}\n")
    assert cli.run("sources", "ls", "--server", center.url.removeprefix("https://"), env=bare).returncode == 0


def test_configuration_file(cli, center, certificates, tmp_path):
    folder = tmp_path / ".config" / "replant"
    folder.mkdir(parents=True)
    (folder / "token").write_text(TOKEN + "\n")
    (folder / "config").write_text(f"# ours\nserver = localhost:{center.port}/\nca={certificates['right'][0]}\n"
                                   "token-file = ~/.config/replant/token\n")
    assert "web-1" in cli.out("sources", "ls", env=environment(tmp_path))
    (folder / "config").write_text(f"server = {center.url}\nca = {certificates['right'][0]}\ntoken = {TOKEN}\n")
    (folder / "config").chmod(0o644)
    assert "others can read the token" in cli.run("sources", "ls", env=environment(tmp_path)).stderr
    (folder / "config").chmod(0o600)
    assert cli.run("sources", "ls", env=environment(tmp_path)).stderr == ""
    (folder / "config").write_text("servre = x\n")
    done = cli.run("sources", "ls", env=environment(tmp_path))
    assert done.returncode == 1 and "line 1: unknown key 'servre'" in done.stderr
    # The environment is enough; the file isn't even looked at.
    assert cli.run("sources", "ls").returncode == 0


def test_options_go_before_the_environment(cli, center, tmp_path):
    (tmp_path / "token").write_text(TOKEN)
    env = {**cli.env, "REPLANT_TOKEN": "nonsense", "REPLANT_URL": "https://localhost:1"}
    for args in (["--server", center.url, "--token-file", tmp_path / "token", "sources", "ls"],
                 ["sources", "ls", "--server", center.url, "--token-file", tmp_path / "token"]):
        assert cli.run(*args, env=env).returncode == 0


def test_state_directory(cli, center, certificates, tmp_path):
    (tmp_path / "admin-token").write_text(TOKEN)
    (tmp_path / "ca.pem").write_bytes(certificates["right"][0].read_bytes())
    assert "web-1" in cli.out("--state", tmp_path, "--server", center.url, "sources", "ls", env=environment(tmp_path))
    done = cli.run("--state", tmp_path / "none", "sources", "ls", env=environment(tmp_path))
    assert done.returncode == 1 and "admin-token" in done.stderr


def test_the_token_is_nowhere_to_be_seen(cli, center):
    assert TOKEN not in cli.run("sources", "ls", "--server", "https://localhost:1").stderr
    assert TOKEN not in str(cli.run("version"))


def test_closed_output(cli):
    done = subprocess.run(f"{REPLANT} sources ls > /dev/full", shell=True, env=cli.env, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and "cannot write the output" in done.stderr


# ---- events ----
def test_events(cli, center):
    one = {"id": ident("job", 1), "name": "db\x1b[2J", "state": "running", "stage": "syncing", "progress": {"percent": 12}}
    two = {"id": ident("source", 1), "name": "web-1", "state": "available"}
    center.bodies["/v1/events"] = (
        f": hello\n\nid: 41\nevent: job.updated\ndata: {json.dumps(one)}\n\n"
        f"id: 42\r\nevent: source.updated\r\ndata: {json.dumps(two)}\r\n\r\nid: 43\nevent: half").encode()
    done = cli.run("events", "follow", "--retry", 2)
    assert done.returncode == 75
    lines = [re.sub(r"^\d\d:\d\d:\d\d ", "", line) for line in done.stdout.splitlines()]
    assert lines[:2] == ["job.updated      db?[2J  running, syncing 12 %", "source.updated   web-1  available"]
    asked = [r[1] for r in center.requests]
    assert asked[0] == "/v1/events" and asked[1] == "/v1/events?since=42", "goes on behind the last whole event"
    done = cli.run("events", "follow", "--json", "--since", 5, "--retry", 1)
    assert [json.loads(x) for x in done.stdout.splitlines()[:2]] == [one, two]
    assert "/v1/events?since=5" in [r[1] for r in center.requests]


# ---- test boots ----
@pytest.mark.parametrize("end,code", [("passed", 0), ("failed", 1)])
def test_boot_watch(cli, center, end, code):
    image = center.items["images"][0]
    center.script["POST", f"/v1/images/{IMAGE}/boot"] = [(202, image)]
    center.script["GET", f"/v1/images/{IMAGE}"] = [(200, {**image, "boot": {"state": "running"}}),
                                                   (200, {**image, "boot": {"state": end, "seconds": 50}})]
    done = cli.run("images", "boot", "web-1", "--watch")
    assert done.returncode == code and f"test boot running\ntest boot {end}\n" in done.stdout


# ---- completion ----
def complete(cli, line):
    """What bash offers behind the line."""
    script = f"""
        PATH={REPLANT.parent}:$PATH
        source {BUILD}/src/cli/replant.bash
        COMP_WORDS=({line}); [[ "{line}" == *" " ]] && COMP_WORDS+=("")
        COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
        _replant
        printf '%s\\n' "${{COMPREPLY[@]}}" """
    return set(subprocess.run(["bash", "-c", script], env=cli.env, text=True, capture_output=True, check=True).stdout.split())


def test_completion(cli):
    assert complete(cli, "replant ") >= {"sources", "jobs", "version"}
    assert complete(cli, "replant so") == {"sources"}
    assert complete(cli, "replant sources ") == {"ls", "show", "rename", "rm", "tag"}
    assert complete(cli, "replant --server x sources r") == {"rename", "rm"}
    assert complete(cli, "replant sources ls --q") == {"--quiet"}
    assert complete(cli, "replant jobs create --no-") == {"--no-checksum", "--no-image-check", "--no-rollback", "--no-test-boot"}
    assert complete(cli, "replant --v") == {"--version"}
    assert complete(cli, "replant jobs watch ") == {ident("job", i) for i in (1, 2, 3)}
    assert complete(cli, "replant jobs create --name ") == set()


def test_completion_does_not_run_what_the_center_says(cli, center, tmp_path):
    center.items["jobs"] = [job(1, "x", "ready", None, id=f"$(touch {tmp_path}/owned)")]
    complete(cli, "replant jobs watch ")
    assert not (tmp_path / "owned").exists()


def test_big_numbers_and_odd_types(cli, center):
    center.items["jobs"] = [{"id": ident("job", 1)}, {"id": 7, "name": [], "progress": "x"}, {
        "id": ident("job", 2), "name": None, "state": 5, "created": 1e300, "stage": "syncing",
        "progress": {"percent": -1e308, "bytes_total": 1e308, "bytes_done": -5, "speed": 1e308, "seconds_left": 1e308}}, "text", 3]
    assert ident("job", 1) in cli.out("jobs", "ls")
    assert cli.run("jobs", "show", ident("job", 2)).returncode in (0, 1)


def test_finished_jobs_have_their_figures(cli, center):
    center.items["jobs"] = [finished(4, "done")]
    text = cli.out("jobs", "show", "done")
    assert "syncing     8 min ago  6 min 40 s\n" in text and "Frozen             0.6 s" in text
    assert GIB == 1 << 30 and "1.0 GiB" in text
