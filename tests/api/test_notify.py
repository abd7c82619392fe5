"""What the center tells by itself: web hooks at a real HTTPS server, mail at a real SMTP server, both not ours."""

import base64
import contextlib
import email
import email.policy
import hmac
import json
import os
import random
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cli_tools import make_ca
from harness import free_port, wait_for
from test_every_write import Mortal

EVENTS = ["job.finished", "job.failed", "job.expiring", "source.offline", "image.not_verified"]


class Receiver(ThreadingHTTPServer):
    """Keeps what it gets: (path, headers, body). `answers` are given once each, then 200; a closed `gate` lets them wait."""
    daemon_threads = True

    def __init__(self, cert=None, key=None, port=0):
        self.got, self.answers, self.gate = [], [], threading.Event()
        self.gate.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"] or 0))
                receiver.got.append((self.path, self.headers, body))
                receiver.gate.wait(60)
                status, headers = (receiver.answers.pop(0) if receiver.answers else (200, {}))
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST  # what a redirect is followed with

        super().__init__(("127.0.0.1", port), Handler)
        if cert:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(cert, key)
            self.socket = context.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"http{'s' if cert else ''}://127.0.0.1:{self.server_address[1]}/hook?a=b"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def handle_error(self, *_):
        pass

    def stop(self):
        self.gate.set()
        self.shutdown()
        self.server_close()

    def messages(self):
        return [json.loads(body) for _, _, body in self.got]


def check_signature(secret, headers, body):
    assert secret.startswith("whsec_") and headers["Content-Type"] == "application/json"
    key = base64.b64decode(secret[6:], validate=True)
    assert len(key) == 32
    text = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    assert headers["webhook-signature"] == "v1," + base64.b64encode(hmac.digest(key, text, "sha256")).decode()
    assert abs(time.time() - int(headers["webhook-timestamp"])) < 60


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    """(CA, certificate, key): for 127.0.0.1, localhost, and this host's address on its network."""
    own = own_address()
    san = "DNS:localhost,IP:127.0.0.1" + (f",IP:{own}" if own else "")
    return make_ca(tmp_path_factory.mktemp("ca"), "receivers", san)


@pytest.fixture
def receiver(ca):
    made = []

    def make(tls=True, **kw):
        made.append(Receiver(*(ca[1:] if tls else ()), **kw))
        return made[-1]
    yield make
    for r in made:
        r.stop()


def subscribe(center, target, name="ops", **body):
    return center.ok("POST", "/v1/subscriptions", {"name": name, "target": target, **body})


def fail_a_job(center, agent=None):
    """A quick job.failed, without an agent's doing."""
    agent = agent or center.agent()
    center.play("capacity", "fail", "no room")
    job = center.started_job(agent.source)
    center.wait_job(job, "in_error")
    center.unplay("capacity", "fail")
    return job


def notices(center, sub, **where):
    items = center.ok("GET", f"/v1/notices?subscription={sub}")["items"][::-1]
    return [n for n in items if all(n[k] == v for k, v in where.items())]


def edit(center, sql, *values):
    """The database's row, as if time had passed."""
    with contextlib.closing(sqlite3.connect(center.state / "replant.db", timeout=20)) as db:
        db.execute(sql, values)
        db.commit()


# ---- what is told ----

def test_what_is_told(fresh, receiver, ca):
    center, hook = fresh(TRUST=ca[0], HEARTBEAT=0.3, HOUR=12), receiver()
    sub = subscribe(center, hook.url)
    assert sub["events"] == EVENTS and sub["active"] and sub["error"] is None
    web, db = center.agent(), center.agent()
    done = center.started_job(web.source, name="wéb 1")
    web.send_all()
    image = center.wait_job(done)["image"]
    center.play("test_boot", "bad")
    bad = center.started_job(db.source)
    db.send_all()
    failed = center.wait_job(bad, "in_error")
    wait_for("offline", lambda: {m["data"]["id"] for m in hook.messages() if m["type"] == "source.offline"} == {web.source, db.source})
    got = [m for m in hook.messages() if m["type"] != "source.offline"]
    assert [m["type"] for m in got] == ["job.finished", "image.not_verified", "job.failed"], "in the order it happened"
    assert {m["data"]["state"] for m in hook.messages() if m["type"] == "source.offline"} == {"unavailable"}
    finished, unverified, error = (m["data"] for m in got)
    assert (finished["id"], finished["name"], finished["image"], finished["error"]) == (done, "wéb 1", image, None)
    assert (error["id"], error["source"], error["state"]) == (bad, db.source, "in_error") and error["error"] == failed["error"]
    assert unverified["job"] == bad and unverified["problem"] == "no network card"
    assert all(abs(m["time"] - time.time()) < 60 for m in hook.messages())
    # A day before it ends, once; and again when that end is another.
    for rows in (1, 2):
        edit(center, "UPDATE jobs SET expires = ? WHERE id = ?", time.time() + 80000 + rows, bad)
        wait_for("expiring", lambda: [m["type"] for m in hook.messages()].count("job.expiring") == rows)
    time.sleep(1)
    assert [m["type"] for m in hook.messages()].count("job.expiring") == 2
    # A change of a job in error is no new failure.
    center.ok("PATCH", f"/v1/jobs/{bad}", {"name": "other"})
    edit(center, "UPDATE jobs SET expires = ? WHERE id = ?", time.time() + 90000, bad)
    time.sleep(0.5)
    assert [m["type"] for m in hook.messages()].count("job.failed") == 1
    assert [m["type"] for m in hook.messages()].count("job.expiring") == 2
    for path, headers, body in hook.got:
        assert path == "/hook?a=b"
        check_signature(sub["secret"], headers, body)
    rows = wait_for("all written", lambda: len(notices(center, sub["id"], state="delivered")) == len(hook.got) and notices(center, sub["id"]))
    assert sorted(r["id"] for r in rows) == sorted(h["webhook-id"] for _, h, _ in hook.got)
    assert {r["attempts"] for r in rows} == {1} and all(r["ended"] and not r["error"] for r in rows)


def test_offline_is_told_once(fresh, receiver, ca):
    center, hook = fresh(TRUST=ca[0], HEARTBEAT=0.2), receiver()
    agent = center.agent()
    subscribe(center, hook.url)
    for times in (1, 2):
        assert agent.sync()["task"] is None
        wait_for("told", lambda: len(hook.got) == times)
        assert center.ok("GET", f"/v1/sources/{agent.source}")["state"] == "unavailable"
        time.sleep(1)
        assert [m["data"]["id"] for m in hook.messages()] == [agent.source] * times


def test_only_what_is_wanted(fresh, receiver, ca):
    center, hook = fresh(TRUST=ca[0], HEARTBEAT=5), receiver()
    sub = subscribe(center, hook.url, events=["job.finished", "source.offline"])
    other = subscribe(center, hook.url, "other", events=["job.failed"], active=False)
    fail_a_job(center)
    center.ok("PATCH", f"/v1/subscriptions/{other['id']}", {"active": True})
    fail_a_job(center)
    wait_for("one", lambda: len(notices(center, other["id"], state="delivered")) == 1)
    assert not notices(center, sub["id"]) and len(hook.got) == 1
    check_signature(other["secret"], *hook.got[0][1:])
    center.ok("PATCH", f"/v1/subscriptions/{other['id']}", {"events": ["job.finished"]})
    fail_a_job(center)
    time.sleep(0.5)
    assert len(hook.got) == 1


# ---- retries ----

def test_it_is_tried_again(fresh, receiver, ca):
    center, hook = fresh(TRUST=ca[0]), receiver()
    elsewhere = receiver()
    hook.answers += [(500, {}), (302, {"Location": elsewhere.url}), (404, {})]
    sub = subscribe(center, hook.url, events=["job.failed"])
    begun = time.monotonic()
    fail_a_job(center)
    wait_for("a failure", lambda: center.ok("GET", f"/v1/subscriptions/{sub['id']}")["error"] == "it answered with HTTP status 500")
    edit(center, "UPDATE notices SET next_try = next_try - 5.7 WHERE attempts = 3")  # else it is 6 s
    wait_for("told", lambda: notices(center, sub["id"], state="delivered"), 30)
    assert time.monotonic() - begun >= 0.1 + 0.6, "the pauses grow"
    assert len(hook.got) == 4 and len({h["webhook-id"] for _, h, _ in hook.got}) == 1 and len({b for *_, b in hook.got}) == 1
    assert not elsewhere.got, "redirects are not followed"
    for _, headers, body in hook.got:
        check_signature(sub["secret"], headers, body)
    row = notices(center, sub["id"])[0]
    assert row["attempts"] == 4 and row["error"] is None and row["ended"] > row["created"]
    now = center.ok("GET", f"/v1/subscriptions/{sub['id']}")
    assert now["error"] is None and now["delivered"] >= now["failed"] > 0


def test_one_that_hangs_holds_up_nobody(fresh, receiver, ca):
    center = fresh(TRUST=ca[0], NOTIFY_TIMEOUT=30)
    slow, quick = receiver(), receiver()
    slow.gate.clear()
    stuck = subscribe(center, slow.url, "slow", events=["job.failed"])
    fine = subscribe(center, quick.url, "quick", events=["job.failed"])
    agents = [center.agent() for _ in range(3)]
    jobs = [fail_a_job(center, agent) for agent in agents]
    begun = time.monotonic()
    wait_for("the others", lambda: len(notices(center, fine["id"], state="delivered")) == 3)
    assert time.monotonic() - begun < 10 and len(slow.got) == 1 and len(notices(center, stuck["id"], state="pending")) == 3
    assert notices(center, stuck["id"])[0]["next_try"] > time.time() + 30, "no other center would try it meanwhile"
    slow.gate.set()
    wait_for("the slow one, too", lambda: len(notices(center, stuck["id"], state="delivered")) == 3)
    for hook in (slow, quick):
        assert [m["data"]["id"] for m in hook.messages()] == jobs


def test_paused_and_deleted_meanwhile(fresh, receiver, ca):
    center, hook = fresh(TRUST=ca[0], NOTIFY_TIMEOUT=30), receiver()
    hook.gate.clear()
    sub = subscribe(center, hook.url, events=["job.failed"])["id"]
    for agent in [center.agent() for _ in range(3)]:
        fail_a_job(center, agent)
    wait_for("the first", lambda: hook.got)
    center.ok("PATCH", f"/v1/subscriptions/{sub}", {"active": False})
    hook.gate.set()
    wait_for("its end", lambda: notices(center, sub, state="delivered"))
    time.sleep(0.5)
    assert [n["state"] for n in notices(center, sub)] == ["delivered", "pending", "pending"] and len(hook.got) == 1
    hook.gate.clear()
    center.ok("PATCH", f"/v1/subscriptions/{sub}", {"active": True})
    wait_for("the second", lambda: len(hook.got) == 2)
    center.ok("DELETE", f"/v1/subscriptions/{sub}")
    hook.gate.set()
    time.sleep(0.5)
    assert len(hook.got) == 2 and center.ok("GET", "/v1/notices")["total"] == 0
    other = subscribe(center, hook.url, "other")["id"]
    assert outcome(center, other)["state"] == "delivered"


def test_it_times_out_and_is_given_up(fresh, receiver, ca):
    center, hook = fresh(TRUST=ca[0], NOTIFY_TIMEOUT=0.3, NOTIFY_PAUSE=0.001), receiver()
    hook.gate.clear()
    sub = subscribe(center, hook.url, events=["job.failed"])
    fail_a_job(center)
    wait_for("an attempt", lambda: notices(center, sub["id"], attempts=1))
    edit(center, "UPDATE notices SET created = created + 1000")  # so that it isn't its age that ends it
    row = wait_for("the end", lambda: notices(center, sub["id"], state="given_up"), 30)[0]
    assert row["attempts"] == 6 and "imed out" in row["error"] and row["next_try"] is None
    assert "given up after 6 attempts" in center.tail()
    # What comes then isn't held up by it.
    hook.gate.set()
    fail_a_job(center)
    wait_for("the next", lambda: notices(center, sub["id"], state="delivered"))


def test_what_is_old_gets_one_attempt(fresh, ca):
    """A target that was away for long isn't told for as long as that for each of many notices."""
    center = fresh(TRUST=ca[0], NOTIFY_PAUSE=1000)
    port = free_port()
    sub = subscribe(center, f"http://127.0.0.1:{port}/", events=["job.failed"])
    for _ in range(3):
        fail_a_job(center)
    first = wait_for("an attempt", lambda: notices(center, sub["id"], attempts=1))[0]
    assert first["state"] == "pending" and first["next_try"] - first["created"] >= 1000
    assert [n["attempts"] for n in notices(center, sub["id"])] == [1, 0, 0]
    edit(center, "UPDATE notices SET created = created - 2588000, next_try = 1")
    center.ok("PATCH", f"/v1/subscriptions/{sub['id']}", {"active": True})
    wait_for("the end of all", lambda: [(n["state"], n["attempts"]) for n in notices(center, sub["id"])] ==
             [("given_up", 2), ("given_up", 1), ("given_up", 1)], 40)


def test_500_are_kept(fresh, ca):
    center = fresh(TRUST=ca[0])
    sub = subscribe(center, f"http://127.0.0.1:{free_port()}/")["id"]
    now = time.time()
    with contextlib.closing(sqlite3.connect(center.state / "replant.db", timeout=20)) as db:
        for i in range(560):
            db.execute("INSERT INTO notices VALUES (?, ?, 'job.failed', ?, 0, ?, ?, 0, NULL, '{}')",
                       (f"notice-{i:016x}", sub, "pending" if i % 2 else "delivered", now + i / 1000, now + 3000))
        db.commit()
    center.restart()
    wait_for("trimmed", lambda: center.ok("GET", f"/v1/notices?subscription={sub}")["total"] == 500)
    oldest = center.ok("GET", f"/v1/notices?subscription={sub}&limit=1&offset=499")["items"][0]["id"]
    assert oldest == f"notice-{60:016x}"
    wait_for("the log", lambda: "isn't told 30 notices" in center.tail())


# ---- crashes ----

def test_told_after_a_crash(fresh, receiver, ca):
    center, hook = fresh(TRUST=ca[0], NOTIFY_TIMEOUT=4), receiver()
    hook.gate.clear()
    sub = subscribe(center, hook.url, events=["job.failed"])
    job = fail_a_job(center)
    wait_for("the attempt", lambda: hook.got)
    center.kill()
    hook.gate.set()
    assert len(hook.got) == 1
    center.start()
    wait_for("told again", lambda: notices(center, sub["id"], state="delivered"))
    assert [m["data"]["id"] for m in hook.messages()] == [job, job] and len({h["webhook-id"] for _, h, _ in hook.got}) == 1


def test_killed_at_any_write_it_is_told(fresh, receiver, ca):
    """A job fails; whatever write the center dies at, it is told, and of nothing that didn't happen."""
    whole, at, dice = int(os.environ.get("REPLANT_LOOPS", "0")), 0, random.Random()
    while True:
        at += 1 if whole else dice.randrange(1, 5)
        center, hook = fresh(TRUST=ca[0], HEARTBEAT=30), receiver()
        sub = subscribe(center, hook.url, events=["job.failed"])
        agent = center.agent()
        job = center.new_job(agent.source)
        center.play("capacity", "fail", "no")
        center.play("die", "at", str(at))
        mortal = Mortal(center)

        def fails():
            row = center.job(job)
            if row["state"] == "ready":
                center.post(f"/v1/jobs/{job}/start")
            return row["state"] == "in_error"

        mortal.until("the failure", fails)
        mortal.until("told", lambda: [n["state"] for n in notices(center, sub["id"])] == ["delivered"])
        assert {m["data"]["id"] for m in hook.messages()} == {job}, at
        assert {h["webhook-id"] for _, h, _ in hook.got} == {notices(center, sub["id"])[0]["id"]}
        assert mortal.deaths <= 1
        center.stop()
        if not mortal.deaths:
            break
    assert at > 6, "that has more writes"


# ---- where to, and who may ----

@pytest.mark.parametrize("body, field", [
    ({"target": "https://a.example"}, "name"), ({"name": "x"}, "target"), ({"name": "x", "target": 5}, "target"), ({"name": "", "target": "https://a.example"}, "name"),
    *[({"name": "x", "target": t}, "target") for t in (
        "", "ftp://a.example/", "http://a.example/", "http://10.0.0.1/", "http://127.1/", "http://localhost.example/", "//a.example", "https://", "https:///x", "https://u:p@a.example/",
        "https://u@a.example/", "https://a.example:0/", "https://a.example:65536/", "https://a.example:x/", "https://a b/", "https://a.example/\u00fc", "https://a.example/#x",
        "https://[::1", "https://[::g]/", "https://[::1]x/", "https://a_b\\c/", "HTTPS://a.example/", "https://-a/", "https://a.example/" + "x" * 1010, "https://a.example/\n",
        "mailto:", "mailto:a", "mailto:a@", "mailto:@b", "mailto:a@b,", "mailto:a@b?cc=c@d", "mailto:a@b\r\nBcc: c@d", "mailto:<a@b>", "mailto:a b@c", "mailto:a@b,,c@d",
        "mailto:.a@b", "mailto:" + ",".join(f"a{i}@b" for i in range(21)), "mailto:-a@b", "mailto:" + "a" * 65 + "@b")],
    *[({"name": "x", "target": "https://a.example", "events": e}, "events") for e in
      ([], {}, "job.failed", ["ping"], ["job.failed", "job.failed"], ["job.lost"], [5], [None], [["job.failed"]])],
    ({"name": "x", "target": "https://a.example", "active": "yes"}, "active"), ({"name": "x", "target": "https://a.example", "secret": "y"}, "secret")])
def test_wrong_input(mailing, body, field):
    got = mailing.post("/v1/subscriptions", body)
    assert (got.status, got.code, got.field) == (400, "bad_field", field), got
    made = subscribe(mailing, "https://a.example/", "patched")
    if field != "name" and field in body:
        assert mailing.call("PATCH", f"/v1/subscriptions/{made['id']}", {field: body[field]}).field == field
    mailing.ok("DELETE", f"/v1/subscriptions/{made['id']}")
    assert mailing.ok("GET", "/v1/subscriptions")["total"] == 0


@pytest.mark.parametrize("target", ["https://a.example", "https://A-b.example.:8443/x?y=z&%20", "https://10.0.0.1/", "https://[2001:db8::1]:1/", "http://localhost/", "http://127.9.8.7:80/x",
                                    "http://[::1]/", "mailto:a.b+c@d.example", "mailto:" + ",".join(f"a{i}@b" for i in range(20))])
def test_right_input(mailing, target):
    made = subscribe(mailing, target)
    assert made["target"] == target and (made["secret"] is None) == target.startswith("mailto:")
    mailing.ok("DELETE", f"/v1/subscriptions/{made['id']}")


@pytest.fixture(scope="module")
def mailing(tmp_path_factory, ca):
    """A center with a mail server that isn't there."""
    from harness import Center
    c = Center(tmp_path_factory.mktemp("mailing"), TRUST=ca[0], MAIL_SERVER=f"smtp://127.0.0.1:{free_port()}", MAIL_FROM="replant@example.org")
    yield c
    assert c.stop() == 0, c.tail()


def test_one_name_one_kind(mailing):
    hook, mail = subscribe(mailing, "https://a.example/"), subscribe(mailing, "mailto:a@b.example", "post")
    taken = mailing.post("/v1/subscriptions", {"name": "post", "target": "https://a.example/"})
    assert (taken.status, taken.code, taken.field) == (409, "exists", "name")
    for sub, other in ((hook, "mailto:a@b.example"), (mail, "https://a.example/")):
        got = mailing.call("PATCH", f"/v1/subscriptions/{sub['id']}", {"target": other})
        assert (got.status, got.field) == (400, "target") and "make another" in got.raw.decode()
    changed = mailing.ok("PATCH", f"/v1/subscriptions/{hook['id']}", {"target": "https://c.example/", "name": "hook"})
    assert (changed["target"], changed["name"], changed["active"], changed["events"]) == ("https://c.example/", "hook", True, EVENTS)
    assert mailing.ok("GET", f"/v1/subscriptions/{hook['id']}") == changed
    for sub in (hook, mail):
        assert mailing.call("DELETE", f"/v1/subscriptions/{sub['id']}").status == 204
        assert mailing.get(f"/v1/subscriptions/{sub['id']}").status == 404


def test_there_are_50(mailing):
    made = [subscribe(mailing, "https://a.example/", f"s{i}")["id"] for i in range(50)]
    assert mailing.post("/v1/subscriptions", {"name": "s50", "target": "https://a.example/"}).code == "too_many_subscriptions"
    for sub in made:
        mailing.ok("DELETE", f"/v1/subscriptions/{sub}")


def test_secrets(fresh, receiver, ca):
    center, hook = fresh(TRUST=ca[0]), receiver()
    key = center.state / "webhook.key"
    assert key.stat().st_mode & 0o777 == 0o600 and re.fullmatch("[0-9a-f]{64}\n", key.read_text())
    one, two = subscribe(center, hook.url), subscribe(center, hook.url, "two")
    assert one["secret"] != two["secret"]
    for path in ("/v1/subscriptions", f"/v1/subscriptions/{one['id']}", "/v1/audit"):
        assert "whsec" not in center.get(path).raw.decode() and one["secret"][6:] not in center.get(path).raw.decode()
    center.restart()
    assert center.post(f"/v1/subscriptions/{one['id']}/test").json["state"] == "delivered"
    check_signature(one["secret"], *hook.got[0][1:])
    # Not in the database, in no form; not in the log, and neither is the address.
    center.stop()
    for path in center.state.glob("replant.db*"):
        raw = path.read_bytes()
        for kept in (one["secret"][6:].encode(), base64.b64decode(one["secret"][6:]), base64.b64decode(one["secret"][6:]).hex().encode()):
            assert kept not in raw
    assert "/hook" not in center.tail()
    # Without the key there is a new one.
    key.unlink()
    center.start()
    assert center.post(f"/v1/subscriptions/{one['id']}/test").json["state"] == "delivered"
    with pytest.raises(AssertionError):
        check_signature(one["secret"], *hook.got[-1][1:])
    center.stop()
    key.write_text("nonsense\n")
    with pytest.raises(AssertionError, match="webhook.key' is no key"):
        center.start()
    center.process.wait()
    key.unlink()
    center.start()


def test_admins_alone(center):
    sub = subscribe(center, f"http://127.0.0.1:{free_port()}/")["id"]
    for role in ("viewer", "operator"):
        token = center.role_token(role)
        for method, path in (("GET", "/v1/subscriptions"), ("POST", "/v1/subscriptions"), ("GET", f"/v1/subscriptions/{sub}"), ("PATCH", f"/v1/subscriptions/{sub}"),
                             ("POST", f"/v1/subscriptions/{sub}/test"), ("DELETE", f"/v1/subscriptions/{sub}"), ("GET", "/v1/notices")):
            assert center.call(method, path, {} if method in ("POST", "PATCH") else None, token=token).status == 403
    center.ok("DELETE", f"/v1/subscriptions/{sub}")
    refused = center.post("/v1/subscriptions", {"name": "m", "target": "mailto:a@b.example"})
    assert (refused.status, refused.field) == (400, "target") and "--mail-server" in refused.raw.decode()


def outcome(center, sub):
    """Of a test, once it is known."""
    got = center.post(f"/v1/subscriptions/{sub}/test")
    assert got.status in (200, 202), got
    assert (got.status == 202) == (got.json["state"] == "pending")
    return wait_for("the answer", lambda: (n := center.ok("GET", f"/v1/notices/{got.json['id']}"))["state"] != "pending" and n)


def test_a_test(fresh, receiver, ca):
    center, hook = fresh(TRUST=ca[0], NOTIFY_TIMEOUT=3), receiver()
    sub = subscribe(center, hook.url, active=False)["id"]
    got = center.post(f"/v1/subscriptions/{sub}/test")
    assert got.status == 200 and (got.json["state"], got.json["attempts"], got.json["event"]) == ("delivered", 1, "ping")
    assert hook.messages()[0]["type"] == "ping" and hook.messages()[0]["data"] == {}
    hook.answers.append((503, {}))
    assert (outcome(center, sub)["state"], outcome(center, sub)["state"]) == ("given_up", "delivered"), "tried once"
    hook.gate.clear()
    begun = time.monotonic()
    got = center.post(f"/v1/subscriptions/{sub}/test")
    assert got.status == 202 and time.monotonic() - begun < 3, "it doesn't keep a thread of the API for long"
    row = wait_for("the end", lambda: notices(center, sub, state="given_up")[1:])[0]
    assert row["attempts"] == 1 and "imed out" in row["error"]
    hook.gate.set()
    assert center.post("/v1/subscriptions/subscription-0123456789abcdef/test").status == 404


@pytest.mark.parametrize("target, why", [
    ("https://169.254.169.254/latest/", "link-local"), ("https://[fe80::1]/", "link-local"), ("https://[::ffff:169.254.1.2]/", "link-local"),
    ("https://[::ffff:a9fe:a9fe]/", "link-local"), ("https://2852039166/", "link-local"), ("https://0xa9.254.0xa9fe/", "link-local")])
def test_addresses_that_are_not_called(center, target, why):
    sub = subscribe(center, target)["id"]
    assert why in outcome(center, sub)["error"]
    center.ok("DELETE", f"/v1/subscriptions/{sub}")


def test_certificates(fresh, receiver, ca, tmp_path):
    """Only who has a certificate for that name, by an authority that is trusted, is told anything."""
    center, hook = fresh(), receiver()
    sub = subscribe(center, hook.url)["id"]
    assert "certificate" in outcome(center, sub)["error"]
    center.env["TRUST"] = str(ca[0])
    center.restart()
    assert outcome(center, sub)["state"] == "delivered"
    other = make_ca(tmp_path, "other", "DNS:somebody.example")
    center.env["TRUST"] = str(other[0])
    center.restart()
    wrong = Receiver(*other[1:])
    center.ok("PATCH", f"/v1/subscriptions/{sub}", {"target": wrong.url})
    assert re.search("certificate|alternative", outcome(center, sub)["error"]) and not wrong.got
    wrong.stop()
    plain = receiver(tls=False)
    center.ok("PATCH", f"/v1/subscriptions/{sub}", {"target": plain.url})
    assert outcome(center, sub)["state"] == "delivered", "on this host"
    center.ok("PATCH", f"/v1/subscriptions/{sub}", {"target": plain.url.replace("127.0.0.1", "localhost")})
    assert outcome(center, sub)["state"] == "delivered"


# ---- mail ----

def own_address():
    with contextlib.closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as s:
        try:
            s.connect(("192.0.2.1", 9))
        except OSError:
            return None
        return s.getsockname()[0]


@pytest.fixture
def smtp(ca):
    """aiosmtpd: with a login if it is wanted, STARTTLS or not. Keeps what it gets: (from, to, message, TLS)."""
    controller = pytest.importorskip("aiosmtpd.controller")
    from aiosmtpd.smtp import SMTP, AuthResult
    made = []

    class Box:
        def __init__(self, host, tls, login, refuse=None):
            self.got, self.logins, box = [], [], self

            class Handler:
                async def handle_RCPT(self, server, session, envelope, address, options):
                    if address == refuse:
                        return "550 nobody of that name"
                    envelope.rcpt_tos.append(address)
                    return "250 fine"

                async def handle_DATA(self, server, session, envelope):
                    box.got.append((envelope.mail_from, envelope.rcpt_tos, envelope.content, session.ssl is not None))
                    return "250 kept"

            def authenticate(server, session, envelope, mechanism, data):
                good = (data.login, data.password) == login
                box.logins.append((data.login, good))
                return AuthResult(success=good, handled=False)

            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*ca[1:])

            class Controller(controller.Controller):
                def factory(self):
                    return SMTP(Handler(), tls_context=context if tls else None, authenticator=authenticate,
                                auth_required=bool(login), auth_require_tls=tls, hostname="mail.test")

            self.port = free_port()
            self.controller = Controller(Handler(), hostname=host, port=self.port)
            self.controller.start()

    def make(host="127.0.0.1", tls=True, login=None, **kw):
        made.append(Box(host, tls, login, **kw))
        return made[-1]
    yield make
    for box in made:
        box.controller.stop()


def password_file(tmp_path, text="geheim\n"):
    path = tmp_path / "password"
    path.write_text(text)
    path.chmod(0o600)
    return path


def parse(raw):
    return email.message_from_bytes(raw, policy=email.policy.default)


def test_mail_by_starttls(fresh, smtp, ca, tmp_path):
    host = own_address()
    if not host:
        pytest.skip("this host has no address but its own")
    box = smtp(host, login=(b"replant", b"geheim"))
    password = password_file(tmp_path)
    center = fresh(TRUST=ca[0], HEARTBEAT=30, MAIL_SERVER=f"smtp://{host}:{box.port}", MAIL_FROM="replant@example.org", MAIL_USER="replant", MAIL_PASSWORD=password)
    sub = subscribe(center, "mailto:night@example.org,ops@example.org", events=["job.failed"])
    assert sub["secret"] is None
    name = "wéb " + "\u4e16\u754c" * 17 + "=?UTF-8?B?eA==?="
    agent = center.agent()
    center.play("capacity", "fail", "no\u00a0room")
    job = center.started_job(agent.source, name=name)
    center.wait_job(job, "in_error")
    wait_for("mail", lambda: notices(center, sub["id"], state="delivered"))
    (sender, to, raw, tls), = box.got
    assert (sender, to, tls) == ("replant@example.org", ["night@example.org", "ops@example.org"], True) and (b"replant", True) in box.logins
    mail = parse(raw)
    assert not mail.defects and mail["Subject"] == f"[Replant] job '{name}' failed: {center.job(job)['error']['code']}"
    words = re.findall(rb"=\?UTF-8\?B\?([^?]*)\?=", raw)
    assert len(words) > 2 and all(len(word) <= 63 and base64.b64decode(word).decode() for word in words), "each is whole by itself"
    assert mail["From"].addresses[0].addr_spec == "replant@example.org"
    assert [a.addr_spec for a in mail["To"].addresses] == to and mail["Auto-Submitted"] == "auto-generated"
    assert mail["Message-ID"] == f"<{notices(center, sub['id'])[0]['id']}@example.org>"
    assert abs(mail["Date"].datetime.timestamp() - time.time()) < 60
    text = mail.get_content()
    assert f"replant jobs doctor {job}" in text and "no\u00a0room" in text and "geheim" not in text
    assert max(map(len, raw.split(b"\r\n"))) <= 998 and all(b < 128 for b in raw)
    assert "geheim" not in center.tail()
    # A wrong password: not told, and said why.
    password.write_text("falsch\n")
    assert re.search("(?i)login|auth", outcome(center, sub["id"])["error"])
    password.write_text("geheim\n")
    password.chmod(0o644)
    assert "others can read" in outcome(center, sub["id"])["error"]
    password.chmod(0o600)
    assert outcome(center, sub["id"])["state"] == "delivered" and parse(box.got[-1][2])["Subject"] == "[Replant] test message"


def test_mail_says_what_and_what_to_do(fresh, smtp):
    box = smtp(tls=False)
    center = fresh(HEARTBEAT=0.3, HOUR=12, MAIL_SERVER=f"smtp://localhost:{box.port}", MAIL_FROM="replant@example.org")
    subscribe(center, "mailto:ops@example.org")
    web, db = center.agent(), center.agent()
    done = center.started_job(web.source, name="web")
    web.send_all()
    image = center.wait_job(done)["image"]
    center.play("test_boot", "bad")
    bad = center.started_job(db.source, name="=?UTF-8?B?eA==?=", image_name="db-image")
    db.send_all()
    shot = center.wait_job(bad, "in_error")["image"]
    edit(center, "UPDATE jobs SET expires = ? WHERE id = ?", time.time() + 80000, bad)
    wait_for("all", lambda: len(box.got) >= 6, 30)
    said = {m["Subject"].removeprefix("[Replant] "): m.get_content() for m in (parse(raw) for *_, raw, _ in box.got)}
    host = center.ok("GET", f"/v1/sources/{web.source}")["name"]
    assert f"replant images show {image}" in said["job 'web' is finished"]
    assert f"replant images screenshot {shot}" in said["image 'db-image' did not pass its test boot"] and "no network card" in said["image 'db-image' did not pass its test boot"]
    assert f"replant jobs doctor {bad}" in said["job '=?UTF-8?B?eA==?=' failed: test_boot_failed"]
    assert f"replant jobs set {bad} --valid-days" in said["job '=?UTF-8?B?eA==?=' expires within a day"]
    assert "replant-agent status" in said[f"server '{host}' is offline"]


@pytest.mark.parametrize("url", ["smtp", "smtps"])
def test_no_mail_without_tls(fresh, smtp, ca, url):
    host = own_address()
    if not host:
        pytest.skip("this host has no address but its own")
    box = smtp(host, tls=False)
    center = fresh(TRUST=ca[0], MAIL_SERVER=f"{url}://{host}:{box.port}", MAIL_FROM="replant@example.org")
    sub = subscribe(center, "mailto:ops@example.org")["id"]
    assert outcome(center, sub)["state"] == "given_up" and not box.got


def test_no_mail_to_a_stranger(fresh, smtp, ca):
    """STARTTLS with a certificate of an authority that isn't trusted."""
    host = own_address()
    if not host:
        pytest.skip("this host has no address but its own")
    box = smtp(host)
    center = fresh(MAIL_SERVER=f"smtp://{host}:{box.port}", MAIL_FROM="replant@example.org")
    sub = subscribe(center, "mailto:ops@example.org")["id"]
    assert "certificate" in outcome(center, sub)["error"] and not box.got
    center.env["MAIL_SERVER"] = f"smtp://127.0.0.1:{(own := smtp()).port}"
    center.restart()
    assert outcome(center, sub)["state"] == "delivered" and own.got[0][3], "on this host TLS is taken as it is offered"


def test_a_recipient_that_is_refused(fresh, smtp):
    box = smtp(tls=False, refuse="gone@example.org")
    center = fresh(MAIL_SERVER=f"smtp://127.0.0.1:{box.port}", MAIL_FROM="replant@example.org")
    sub = subscribe(center, "mailto:ops@example.org,gone@example.org")["id"]
    assert "550" in outcome(center, sub)["error"] and not box.got
    center.env.pop("MAIL_SERVER"), center.env.pop("MAIL_FROM")
    center.restart()
    assert "no mail server any more" in outcome(center, sub)["error"]


@pytest.mark.parametrize("env, word", [
    ({"MAIL_FROM": "a@b"}, "no mail server"), ({"MAIL_SERVER": "smtp://a.example"}, "--mail-from"), ({"MAIL_SERVER": "smtp://a.example", "MAIL_FROM": "a"}, "sender"),
    ({"MAIL_SERVER": "mail.example", "MAIL_FROM": "a@b"}, "must begin with smtp"), ({"MAIL_SERVER": "smtp://u:p@mail.example", "MAIL_FROM": "a@b"}, "user or password"),
    ({"MAIL_SERVER": "smtp://mail.example/x", "MAIL_FROM": "a@b"}, "nothing belongs behind"), ({"MAIL_SERVER": "smtp://mail.example", "MAIL_FROM": "a@b", "MAIL_USER": "u"}, "belong together"),
    ({"MAIL_SERVER": "smtp://m", "MAIL_FROM": "a@b", "MAIL_USER": "u", "MAIL_PASSWORD": "/nowhere"}, "'/nowhere'"),
    ({"MAIL_SERVER": "smtp://m", "MAIL_FROM": "a@b", "MAIL_USER": "u", "MAIL_PASSWORD": "/etc/hostname"}, "others can read"), ({"TRUST": "/nowhere"}, "'/nowhere'")])
def test_settings_that_can_not_be(center, env, word):
    done = subprocess.run([center.program, "serve", center.state], env={**center.env, **env}, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and word in done.stderr, done.stderr


def test_a_certificate_file_that_is_none(center, tmp_path):
    (tmp_path / "x.pem").write_text("nonsense")
    done = subprocess.run([center.program, "serve", center.state], env={**center.env, "TRUST": str(tmp_path / "x.pem")}, capture_output=True, text=True, timeout=20)
    assert done.returncode == 1 and "has no certificate" in done.stderr


def test_it_ends_while_somebody_hangs(fresh, receiver, ca):
    center, hook = fresh(TRUST=ca[0], NOTIFY_TIMEOUT=60), receiver()
    hook.gate.clear()
    subscribe(center, hook.url, events=["job.failed"])
    fail_a_job(center)
    wait_for("the attempt", lambda: hook.got)
    begun = time.monotonic()
    center.process.send_signal(signal.SIGTERM)
    assert center.process.wait(20) == 0 and time.monotonic() - begun < 10
