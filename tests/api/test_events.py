"""The event stream."""

import json
import time

from harness import wait_for


class Stream:
    def __init__(self, center, query="", token=None, headers=None):
        self.conn = center.connect(timeout=10)
        self.conn.request("GET", "/v1/events" + query, headers={"Authorization": "Bearer " + (token or center.token), **(headers or {})})
        self.answer = self.conn.getresponse()

    def next(self):
        """The next event as (id, type, data); None at the end."""
        event = {}
        while True:
            line = self.answer.readline()
            if not line:
                return None
            line = line.decode().rstrip("\n")
            if line == "" and "event" in event:
                return int(event["id"]) if "id" in event else None, event["event"], json.loads(event["data"])
            if ": " in line and not line.startswith(":"):
                key, value = line.split(": ", 1)
                event[key] = value

    def until(self, kind, check=lambda data: True):
        while True:
            got = self.next()
            assert got, "the stream ended"
            if got[1] == kind and check(got[2]):
                return got

    def close(self):
        self.conn.close()


def test_a_job_is_told_as_it_goes(center):
    stream = Stream(center)
    assert stream.answer.status == 200 and stream.answer.headers["Content-Type"] == "text/event-stream"
    agent = center.agent()
    stream.until("source.created", lambda d: d["id"] == agent.source)
    job = center.started_job(agent.source)
    stream.until("job.created", lambda d: d["id"] == job)
    stream.until("source.updated", lambda d: d["state"] == "in_use")
    seen = [stream.until("job.updated", lambda d: d["id"] == job)[2]["stage"] for _ in range(2)]
    assert seen == ["preparing", "syncing"]
    task = agent.wait_task()
    agent.report(task["run"], progress={"phase": "full", "bytes_total": 4, "bytes_done": 1})
    tick = stream.until("job.progress", lambda d: (d["progress"] or {}).get("percent") == 25)
    assert tick[0] is None and tick[2]["id"] == job
    agent.send_all()
    stream.until("image.created")
    stream.until("job.updated", lambda d: d["state"] == "finished")
    stream.close()


def test_what_was_missed_comes_again(center):
    stream = Stream(center)
    center.new_code(name="first")
    at = stream.until("code.created", lambda d: d["name"] == "first")[0]
    stream.close()
    center.new_code(name="second")
    center.new_code(name="third")
    for how in ({"query": f"?since={at}"}, {"headers": {"Last-Event-ID": str(at)}}):
        again = Stream(center, **how)
        names = [again.next()[2]["name"] for _ in range(2)]
        assert names == ["second", "third"]
        again.close()
    old = Stream(center, "?since=0")
    assert old.next()[0] == 1
    old.close()
    ahead = Stream(center, "?since=999999999")
    assert ahead.next()[1] == "reset"
    ahead.close()
    assert center.get("/v1/events?since=x").status == 400
    assert center.get("/v1/events", token="").status == 401


def test_events_survive_a_kill(fresh):
    center = fresh()
    stream = Stream(center)
    center.new_code(name="before")
    at = stream.until("code.created")[0]
    center.new_code(name="unseen")
    center.restart()
    center.new_code(name="after")
    again = Stream(center, f"?since={at}")
    assert [again.next()[2]["name"] for _ in range(2)] == ["unseen", "after"]
    again.close()


def test_nothing_secret_in_events(center):
    code = center.new_code(name="secret?")["code"].split(".")[1]
    agent = center.agent()
    agent.sync(inventory={"os": "x", "private": "inventory"})
    job = center.started_job(agent.source)
    psk = agent.wait_task()["psk"]
    agent.send_all()
    center.wait_job(job)
    stream = Stream(center, "?since=0")
    last = False
    while not last:
        _, kind, data = stream.next()
        text = json.dumps(data)
        assert psk not in text and code not in text and "hash" not in text and '"private"' not in text
        last = kind == "job.updated" and data["id"] == job and data["state"] == "finished"
    stream.close()


def test_events_of_sources_are_small_and_few(center):
    agent = center.agent()
    agent.sync()
    center.new_code(name="mark")
    stream = Stream(center, "?since=0")
    at = stream.until("code.created", lambda d: d["name"] == "mark")[0]
    stream.close()
    big = {"os": {"pretty_name": "\u00e9" * 200000, "x": ["y" * 1000000]}, "disks": []}
    for n in range(5):
        agent.sync(inventory=dict(big, time=n, uptime_seconds=n, cpu={"count": 2, "load": [n]}, memory={"total": 1, "available": n}))
    center.new_code(name="end")
    stream = Stream(center, f"?since={at}")
    told = []
    while True:
        _, kind, data = stream.next()
        if kind == "code.created" and data["name"] == "end":
            break
        if kind == "source.updated" and data["id"] == agent.source:
            told.append(data)
    stream.close()
    assert len(told) == 1 and len(json.dumps(told[0])) < 2000, len(told)
    assert told[0]["os"]["pretty_name"] == "\u00e9" * 100
    assert set(told[0]) == {"id", "name", "state", "hostname", "os", "agent_version", "last_seen", "tags"}


def test_many_streams_and_their_limit(fresh):
    center = fresh()
    streams = [Stream(center) for _ in range(64)]
    assert all(s.answer.status == 200 for s in streams)
    assert center.get("/v1/events").status == 503
    center.new_code(name="to all")
    for s in streams:
        assert s.until("code.created")[2]["name"] == "to all"
        s.close()
    def check():
        s = Stream(center)
        ok = s.answer.status == 200
        s.close()
        return ok
    wait_for("room again", check)


def test_a_client_that_does_not_read_stops_nobody(center):
    slow = Stream(center, "?since=0")
    fast = Stream(center)
    start = time.monotonic()
    for n in range(200):
        center.new_code(name=f"flood{n}")
    fast.until("code.created", lambda d: d["name"] == "flood199")
    assert time.monotonic() - start < 60
    slow.close()
    fast.close()


def test_streams_end_with_the_center(fresh):
    center = fresh()
    stream = Stream(center)
    center.new_code()
    stream.until("code.created")
    start = time.monotonic()
    assert center.stop() == 0
    assert stream.next() is None and time.monotonic() - start < 10
