"""Codes, tokens, roles, enrolment."""

import contextlib
import hashlib
import json
import re
import sqlite3
import ssl
import subprocess
import time

import pytest

from harness import TOP, Agent, wait_for


def enroll(center, code, machine="m-access", **more):
    code_id, secret, _ = code.split(".")
    body = {"code_id": code_id, "code_secret": secret, "hostname": "h", "machine_id": machine, "agent_version": "1", **more}
    return center.post("/v1/agent/enroll", body, token="")


def test_the_code_carries_the_ca(center):
    code = center.new_code(name="n")["code"]
    pem = (center.state / "ca.pem").read_text()
    assert code.split(".")[2] == hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()
    shown = subprocess.run(["openssl", "s_client", "-connect", f"127.0.0.1:{center.port}", "-showcerts"],
                           input="", capture_output=True, text=True).stdout
    assert pem.strip().splitlines()[1] in shown, "the chain holds the CA"


def test_secrets_are_not_kept(center):
    made = center.new_code()
    token = center.ok("POST", "/v1/tokens", {"name": "t", "role": "viewer"})
    agent = center.agent()
    data = b"".join(p.read_bytes() for p in center.state.glob("replant.db*"))
    for secret in (made["code"].split(".")[1], token["token"].split(".")[1], agent.secret.split(".")[1], center.token.split(".")[1]):
        assert secret.encode() not in data
    for path in ("/v1/codes/" + made["id"], "/v1/tokens", "/v1/sources/" + agent.source):
        text = center.get(path).raw.decode()
        assert "hash" not in text and made["code"].split(".")[1] not in text
    assert not any(p.stat().st_mode & 0o077 for p in center.state.glob("*") if p.is_file() and p.name != "url")


def test_wrong_revoked_used_up_and_expired_codes(center):
    made = center.new_code(uses=1)
    code_id, secret, fp = made["code"].split(".")
    wrong = [f"{code_id}.{'0' * 64}.{fp}", f"{'0' * 16}.{secret}.{fp}", f"{code_id}.{secret[:-1]}.{fp}", f"{'x' * 16}.{secret}.{fp}"]
    for code in wrong:
        got = enroll(center, code)
        assert (got.status, got.code) == (403, "code_refused"), code
    assert enroll(center, made["code"], "m-one").status == 201
    assert enroll(center, made["code"], "m-two").code == "code_refused"
    assert center.get(f"/v1/codes/{made['id']}").json["state"] == "used_up"
    revoked = center.new_code()
    assert center.post(f"/v1/codes/{revoked['id']}/revoke").json["state"] == "revoked"
    assert enroll(center, revoked["code"], "m-two").code == "code_refused"
    expired = center.new_code()
    subprocess.run(["sqlite3", center.state / "replant.db", f"UPDATE codes SET expires = 1 WHERE id = '{expired['id']}'"], check=True)
    assert center.get(f"/v1/codes/{expired['id']}").json["state"] == "expired"
    assert enroll(center, expired["code"], "m-two").code == "code_refused"
    assert center.call("DELETE", f"/v1/codes/{expired['id']}").status == 204
    assert center.get(f"/v1/codes/{expired['id']}").status == 404
    assert center.ok("GET", "/v1/sources")["total"] >= 1


def test_enrolling_again(center):
    agent = center.agent()
    code = center.new_code()["code"]
    # Enrolled just now: nobody else takes its place, heard of or not.
    for _ in range(2):
        taken = enroll(center, code, agent.machine)
        assert (taken.status, taken.code, taken.field) == (409, "machine_id_in_use", "machine_id")
        time.sleep(1.6)
    agent.sync()
    assert enroll(center, code, agent.machine).code == "machine_id_in_use"
    job = center.new_job(agent.source)
    time.sleep(1.6)
    taken = enroll(center, code, agent.machine)
    assert taken.code == "machine_id_in_use" and job in taken.raw.decode()
    center.ok("DELETE", f"/v1/jobs/{job}")
    wait_for("gone", lambda: center.get(f"/v1/jobs/{job}").status == 404)
    # Silent and idle: its agent was installed anew.
    again = wait_for("silence", lambda: (lambda a: a.status == 201 and a)(enroll(center, code, agent.machine)))
    assert again.json["source"] == agent.source
    assert center.post("/v1/agent/sync", {"agent_version": "1", "boot_id": "b"}, token=agent.secret).status == 401
    # Deleted: a new source.
    center.ok("DELETE", f"/v1/sources/{agent.source}")
    fresh = enroll(center, code, agent.machine)
    assert fresh.status == 201 and fresh.json["source"] != agent.source


def test_forged_tokens(center):
    t_id, secret = center.token.split(".")
    agent = center.agent()
    for forged in (f"{t_id}.{'0' * 64}", f"{'0' * 16}.{secret}", secret, center.token + "0", center.token[:-1], "x", agent.secret):
        assert center.get("/v1/jobs", token=forged).status == 401, forged
    for header in ({}, {"Authorization": "Basic " + center.token}, {"Authorization": center.token}):
        got = center.get("/v1/jobs", token="", headers=header)
        assert got.status == 401 and got.headers["WWW-Authenticate"] == "Bearer"
    body = {"agent_version": "1", "boot_id": "b"}
    assert center.post("/v1/agent/sync", body).status == 401, "a person is no agent"
    assert center.post("/v1/agent/sync", body, token=agent.secret[:-2] + "00").status == 401


def test_roles(center):
    viewer, operator = center.role_token("viewer"), center.role_token("operator")
    assert center.get("/v1/jobs", token=viewer).status == 200
    got = center.post("/v1/codes", token=viewer)
    assert (got.status, got.code) == (403, "forbidden")
    assert center.post("/v1/codes", token=operator).status == 201
    assert center.get("/v1/tokens", token=operator).status == 403
    assert center.post("/v1/tokens", {"name": "x", "role": "admin"}, token=operator).status == 403
    items = center.ok("GET", "/v1/tokens")["items"]
    mine = next(t for t in items if t["name"] == "viewer")
    assert center.call("DELETE", f"/v1/tokens/{mine['id']}").status == 204
    assert center.get("/v1/jobs", token=viewer).status == 401
    own = next(t for t in items if t["name"] == "first admin")
    assert center.call("DELETE", f"/v1/tokens/{own['id']}").code == "own_token"


def test_failures_are_counted_by_address(fresh):
    center = fresh(FAILURES=5)
    code = center.new_code()["code"]
    bad = code.split(".")[0] + "." + "0" * 64 + ".x"
    assert [enroll(center, bad).status for _ in range(7)] == [403] * 5 + [429] * 2
    got = enroll(center, code)
    assert got.status == 429 and got.headers["Retry-After"] == "60"
    assert center.call("POST", "/v1/agent/enroll", raw=b"{", token="").status == 429, "before the body is looked at"
    # Who has a right secret isn't locked out by a neighbour.
    assert center.get("/v1/jobs").status == 200
    assert center.get("/v1/jobs", token="wrong").status == 429


def test_the_deleted_source_is_out(center):
    agent = center.agent()
    agent.sync()
    assert center.call("DELETE", f"/v1/sources/{agent.source}").status == 204
    assert center.post("/v1/agent/sync", {"agent_version": "1", "boot_id": "b"}, token=agent.secret).status == 401


@pytest.mark.parametrize("tool,other", [("curl", "wget"), ("wget", "curl")])
def test_the_command_downloads_checks_and_runs_the_agent(center, tmp_path, tool, other):
    """With only one of the two tools, under dash."""
    agent = center.folder / "replant-agent"
    agent.write_text('#!/bin/sh\necho "args: $*"\necho "code: $REPLANT_CODE"\necho "url: $REPLANT_URL"\n')
    agent.chmod(0o755)
    made = center.new_code()
    assert f"REPLANT_URL=https://127.0.0.1:4443 " in made["command"], "the address of init"
    command = made["command"].replace("127.0.0.1:4443", f"127.0.0.1:{center.port}")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "mktemp", "rm", "sha256sum", "chmod", tool):
        path = subprocess.run(["which", name], capture_output=True, text=True).stdout.strip()
        if not path:
            pytest.skip(f"no {name} here")
        (folder / name).symlink_to(path)
    run = lambda: subprocess.run(["/bin/dash", "-c", command], env={"PATH": str(folder)}, capture_output=True, text=True)
    done = run()
    assert done.returncode == 0, done
    assert done.stdout.splitlines() == ["args: enroll", "code: " + made["code"], f"url: https://127.0.0.1:{center.port}"]
    agent.write_text("#!/bin/sh\necho evil\n")
    done = run()
    assert done.returncode != 0 and "evil" not in done.stdout and "not the agent" in done.stderr
    agent.unlink()
    assert run().returncode != 0
    assert center.new_code()["command"] is None
    import glob
    assert not glob.glob("/var/lib/replant.*"), "nothing is left behind"


def test_init_refuses_to_overwrite(center):
    before = (center.state / "ca.pem").read_bytes()
    done = subprocess.run([center.program, "init", center.state], env=center.env, capture_output=True, text=True)
    assert done.returncode == 1 and "holds a center already" in done.stderr
    assert (center.state / "ca.pem").read_bytes() == before


def test_one_center_per_state(center):
    done = subprocess.run([center.program, "serve", center.state], env=center.env, capture_output=True, text=True)
    assert done.returncode == 1 and "another replantd" in done.stderr


def test_the_database_is_its_centers(fresh):
    """A newer program that finds another at work leaves the older one's tables as they are."""
    center = fresh()
    with contextlib.closing(sqlite3.connect(center.state / "replant.db", timeout=20)) as db:
        last = db.execute("PRAGMA user_version").fetchone()[0]
        # As an older one made it, with what a center can't do without.
        kept = {"tokens": db.execute("SELECT id, name, role, created, secret_hash FROM tokens").fetchall(),
                "regions": db.execute("SELECT * FROM regions").fetchall()}
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'").fetchall():
            db.execute(f"DROP TABLE {name}")
        for schema in ("001", "002"):
            db.executescript((TOP / f"src/store/schema/{schema}.sql").read_text())
        for name, rows in kept.items():
            db.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(rows[0]))})", rows)
        db.execute("PRAGMA user_version = 2")
        db.commit()
        done = subprocess.run([center.program, "serve", center.state], env=center.env, capture_output=True, text=True)
        assert done.returncode == 1 and "another replantd" in done.stderr
        assert db.execute("PRAGMA user_version").fetchone()[0] == 2
    center.restart()
    with contextlib.closing(sqlite3.connect(center.state / "replant.db", timeout=20)) as db:
        assert db.execute("PRAGMA user_version").fetchone()[0] == last
    assert center.get("/v1/images").status == 200
    empty = center.folder / "empty"
    empty.mkdir()
    done = subprocess.run([center.program, "serve", empty], env=center.env, capture_output=True, text=True)
    assert done.returncode == 1 and "holds no center" in done.stderr and not list(empty.iterdir())


def test_the_server_certificate_is_renewed_the_ca_stays(fresh):
    center = fresh()
    center.stop()
    ca = (center.state / "ca.pem").read_bytes()
    # One with a day left, by the center's own CA: openssl is the oracle for both.
    s = center.state
    old = s / "old.pem"
    subprocess.run(f"cd {s} && openssl x509 -in server.pem -signkey server.key -x509toreq -copy_extensions copyall -out r.csr 2>/dev/null && "
                   "openssl x509 -req -in r.csr -CA ca.pem -CAkey ca.key -days 1 -copy_extensions copyall -out old.pem 2>/dev/null && "
                   "cp old.pem server.pem && rm r.csr", shell=True, check=True)
    center.start()
    assert center.get("/v1/jobs").status == 200
    assert (s / "server.pem").read_bytes() != old.read_bytes() and (s / "ca.pem").read_bytes() == ca
    done = subprocess.run(["openssl", "x509", "-in", s / "server.pem", "-noout", "-checkend", str(300 * 86400)])
    assert done.returncode == 0
    assert subprocess.run(["openssl", "verify", "-x509_strict", "-CAfile", s / "ca.pem", s / "server.pem"], capture_output=True).returncode == 0


def test_metrics(fresh):
    """Each line is as the format says; figures are those of the API; a viewer may look, others may not."""
    center = fresh()
    agent = center.agent()
    job = center.new_job(agent.source)
    center.get("/v1/jobs/job-0000000000000000")
    assert center.get("/metrics", token="").status == 401
    got = center.get("/metrics", token=center.role_token("viewer"))
    assert got.status == 200 and got.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    text, types, values = got.raw.decode(), {}, {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            assert re.fullmatch(r"# HELP [a-z_]+ \S.*", line), line
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in types and kind in ("gauge", "counter", "histogram")
            types[name] = kind
        else:
            match = re.fullmatch(r'([a-z_]+)(\{[a-z_]+="[^"\\\n]*"\})? (\d+(?:\.\d+)?)', line)
            assert match, line
            name = re.sub(r"_(bucket|sum|count)$", "", match[1]) if "duration" in match[1] else match[1]
            assert name in types, f"{line}: a figure without a type"
            assert types[name] != "counter" or name.endswith("_total")
            values[match[1] + (match[2] or "")] = float(match[3])
    assert values['replant_jobs{state="ready"}'] == 1 and values['replant_jobs{state="finished"}'] == 0
    assert values['replant_sources{state="in_use"}'] == 1 and values["replant_images"] == 0
    assert values['replant_http_answers_total{status="4xx"}'] == 2 and values['replant_http_answers_total{status="2xx"}'] >= 4
    buckets = [v for k, v in values.items() if "_bucket" in k]
    assert buckets == sorted(buckets) and buckets[-1] == values["replant_http_request_duration_seconds_count"] == sum(
        v for k, v in values.items() if "answers_total" in k)
    assert 1e6 < values["process_resident_memory_bytes"] < 1e9 and values['replant_region_free_bytes{region="local"}'] > 0
    center.ok("DELETE", f"/v1/jobs/{job}")


def events_seen(center, token):
    """What the stream tells, until it has nothing more to say."""
    conn = center.connect()
    conn.request("GET", "/v1/events?since=0", headers={"Authorization": "Bearer " + token})
    got, text = conn.getresponse(), ""
    conn.sock.settimeout(1)
    try:
        while True:
            text += got.read1(65536).decode()
    except TimeoutError:
        pass
    conn.close()
    return [json.loads(line[6:])["id"] for line in text.splitlines() if line.startswith("data: ") and '"id"' in line]


def test_a_token_that_is_limited_to_tags(fresh):
    """To it there is nothing without them."""
    center = fresh()
    mine, others = center.agent(), center.agent()
    center.ok("PATCH", f"/v1/sources/{mine.source}", {"tags": {"team": "shop", "env": "prod"}})
    center.ok("PATCH", f"/v1/sources/{others.source}", {"tags": {"team": "bank"}})
    assert center.post("/v1/tokens", {"name": "x", "role": "admin", "scope": {"team": "shop"}}).field == "scope"
    token = center.ok("POST", "/v1/tokens", {"name": "shop", "role": "operator", "scope": {"team": "shop"}})["token"]

    def my(method, path, body=None):
        return center.call(method, path, body, token=token)
    foreign = center.new_job(others.source, tags={"team": "bank"})
    theirs = center.ok("POST", "/v1/workgroups", {"name": "theirs"})["id"]
    center.ok("PATCH", f"/v1/sources/{others.source}", {"workgroup": theirs})
    assert [s["id"] for s in my("GET", "/v1/sources").json["items"]] == [mine.source]
    assert my("GET", "/v1/jobs").json["total"] == 0 and my("GET", "/v1/workgroups").json["total"] == 0
    for method, path in [("GET", f"/v1/sources/{others.source}"), ("PATCH", f"/v1/sources/{others.source}"), ("DELETE", f"/v1/sources/{others.source}"),
                         ("GET", f"/v1/jobs/{foreign}"), ("PATCH", f"/v1/jobs/{foreign}"), ("DELETE", f"/v1/jobs/{foreign}"),
                         ("POST", f"/v1/jobs/{foreign}/start"), ("GET", f"/v1/jobs/{foreign}/runs"), ("GET", f"/v1/jobs/{foreign}/logs"),
                         ("POST", f"/v1/workgroups/{theirs}/start"), ("GET", f"/v1/workgroups/{theirs}")]:
        got = my(method, path, None if method in ("GET", "DELETE") else {})
        assert (got.status, got.code) == (404, "not_found"), (method, path, got)
    assert my("POST", "/v1/jobs", {"source": others.source}).field == "source"
    for method, path in [("POST", "/v1/codes"), ("GET", "/v1/codes"), ("POST", "/v1/templates"), ("GET", "/v1/exports"), ("GET", f"/v1/exports?image=image-{0:016x}"), ("GET", "/metrics"),
                         ("GET", "/v1/tokens"), ("GET", "/v1/audit"), ("GET", "/v1/subscriptions")]:
        assert my(method, path, {} if method == "POST" else None).status == (404 if "image=" in path else 403), path
    for path in ("/v1/regions", "/v1/regions/local", "/v1/templates", "/v1/version"):
        assert my("GET", path).status == 200, path
    # What it makes has the tags, and they stay.
    job = my("POST", "/v1/jobs", {"source": mine.source, "tags": {"wave": "1"}, "client_token": "mine"}).json
    assert job["tags"] == {"wave": "1", "team": "shop"}
    group = my("POST", "/v1/workgroups", {"name": "ours"}).json
    assert group["tags"] == {"team": "shop"}
    for path in (f"/v1/jobs/{job['id']}", f"/v1/sources/{mine.source}", f"/v1/workgroups/{group['id']}"):
        assert my("PATCH", path, {"tags": {"team": "bank"}}).status == 403
        assert my("PATCH", path, {"tags": {}}).field == "tags"
        assert my("PATCH", path, {"tags": {"team": "shop", "more": "x"}}).status == 200
    assert my("PATCH", f"/v1/sources/{mine.source}", {"workgroup": theirs}).field == "workgroup"
    assert my("PATCH", f"/v1/sources/{mine.source}", {"workgroup": group["id"]}).status == 200
    # A source of somebody else's in the same group is neither seen nor started.
    center.ok("PATCH", f"/v1/sources/{others.source}", {"workgroup": group["id"]})
    assert my("GET", f"/v1/workgroups/{group['id']}").json["sources"] == 1
    assert [i["source"] for i in my("POST", f"/v1/workgroups/{group['id']}/start", {}).json["items"]] == [mine.source]
    mine.send_all()
    image = center.wait_job(job["id"])["image"]
    assert [i["id"] for i in my("GET", "/v1/images").json["items"]] == [image]
    assert my("GET", f"/v1/images/{image}").status == 200
    export = my("POST", f"/v1/images/{image}/exports", {"format": "raw"}).json["id"]
    assert my("GET", f"/v1/exports?image={image}").json["total"] == 1
    wait_for("export", lambda: my("GET", f"/v1/exports/{export}").json["state"] == "finished")
    assert my("DELETE", f"/v1/exports/{export}").status == 204
    assert center.job(foreign)["state"] == "ready"
    # A job without the tags, on a source that has them.
    hidden = center.new_job(mine.source)
    assert my("GET", f"/v1/sources/{mine.source}").json["job"] is None
    for got in (my("POST", "/v1/jobs", {"source": mine.source}), my("DELETE", f"/v1/sources/{mine.source}?force=true"),
                my("POST", f"/v1/workgroups/{group['id']}/start", {})):
        assert hidden not in got.raw.decode() and (got.status == 409 or got.json["items"][0]["error"]["code"] == "no_job"), got
    assert center.job(hidden)["state"] == "ready"
    # Nor is it told of.
    told = events_seen(center, token)
    assert {job["id"], image, group["id"]} <= set(told) and not {foreign, others.source} & set(told), told
    assert foreign in events_seen(center, center.token)
    assert center.post("/v1/jobs", {"source": others.source, "client_token": "mine"}, token=token).code == "token_reused"
