"""Bad requests of every kind, paging, and clients that misbehave on the wire."""

import json
import socket
import ssl
import time

import pytest

JOB = "/v1/jobs/job-0123456789abcdef"


@pytest.mark.parametrize("raw,code", [
    (b"{", "bad_json"), (b"nonsense", "bad_json"), (b'{"name":"a"', "bad_json"), (b'{"name":"a","name":"b"}', "bad_json"),
    (b'{"name":"\xff\xfe"}', "bad_json"), (b'{"name":"\xc0\x80"}', "bad_json"), (b'{"name":"a"}x', "bad_json"), (b'"text"', "bad_json"),
    (b"[]", "bad_field"), (b'{"name":"a\\u0000b"}', "bad_json"), (b"[" * 5000, "bad_json"), (b'{"x":' * 3000, "bad_json"),
    (b'{"name":5}', "bad_field"), (b'{"name":""}', "bad_field"), (b'{"name":["a"]}', "bad_field"), (b'{"name":"a\\nb"}', "bad_field"),
    (b'{"uses":"5"}', "bad_field"), (b'{"uses":0}', "bad_field"), (b'{"uses":-1}', "bad_field"), (b'{"uses":1001}', "bad_field"),
    (b'{"uses":1.5}', "bad_field"), (b'{"uses":99999999999999999999}', "bad_json"), (b'{"uses":true}', "bad_field"),
    (b'{"valid_days":91}', "bad_field"), (b'{"other":1}', "bad_field"), (b'{"Name":"a"}', "bad_field"),
    (json.dumps({"name": "x" * 129}).encode(), "bad_field"),
])
def test_bad_bodies(center, raw, code):
    got = center.call("POST", "/v1/codes", raw=raw)
    assert (got.status, got.code) == (400, code), got
    assert got.headers["Content-Type"] == "application/json"


def test_the_field_is_named(center):
    agent = center.agent()
    for body, field in [({}, "source"), ({"source": 1}, "source"), ({"source": agent.source, "colour": 1}, "colour"),
                        ({"source": "source-0123456789abcdef"}, "source"), ({"source": "../../etc"}, "source"),
                        ({"source": agent.source, "region": "mars"}, "region"),
                        ({"source": agent.source, "parameters": []}, "parameters"),
                        ({"source": agent.source, "parameters": {"connections": 17}}, "parameters.connections"),
                        ({"source": agent.source, "parameters": {"checksum": 1}}, "parameters.checksum"),
                        ({"source": agent.source, "parameters": {"on_read_error": "ignore"}}, "parameters.on_read_error"),
                        ({"source": agent.source, "parameters": {"speed": 1}}, "parameters.speed")]:
        got = center.post("/v1/jobs", body)
        assert (got.status, got.code, got.field) == (400, "bad_field", field), got
    assert center.get(f"/v1/jobs?source={agent.source}").json["total"] == 0


def test_unknown_things(center):
    for method, path in [("GET", JOB), ("PATCH", JOB), ("DELETE", JOB), ("POST", JOB + "/start"), ("POST", JOB + "/stop"),
                         ("GET", "/v1/jobs/nonsense"), ("GET", "/v1/jobs/job-0123456789ABCDEF"), ("GET", "/v1/jobs/"),
                         ("GET", "/v1/sources/job-0123456789abcdef"), ("GET", "/v1/regions/moon"), ("GET", "/nothing"), ("GET", "/v2/jobs"),
                         ("GET", "/v1/jobs/..%2f..%2fetc"), ("GET", "/agent/windows"), ("GET", "/v1/images/image-0123456789abcdef/report"),
                         ("GET", "/v1/exports/export-0123456789abcdef/data"), ("DELETE", "/v1/images/image-0123456789abcdef")]:
        got = center.call(method, path, {} if method in ("POST", "PATCH") else None)
        assert (got.status, got.code) == (404, "not_found"), (method, path, got)


def test_wrong_methods(center):
    for method, path, allow in [("PUT", JOB, {"GET", "PATCH", "DELETE"}), ("DELETE", "/v1/jobs", {"GET", "POST"}),
                                ("POST", "/v1/version", {"GET"}), ("BREW", "/v1/version", {"GET"})]:
        got = center.call(method, path)
        assert got.status == 405 and set(got.headers["Allow"].split(", ")) == allow, got
    assert center.call("HEAD", "/v1/version").status == 200


def test_bodies_where_none_belongs(center):
    assert center.call("GET", "/v1/jobs", raw=b"{}").code == "unexpected_body"
    assert center.call("POST", "/v1/codes").status == 201, "all members optional"


def test_sizes(center):
    big = b'{"name":"' + b"x" * (1 << 20) + b'"}'
    got = center.call("POST", "/v1/codes", raw=big)
    assert (got.status, got.code) == (413, "too_big")
    agent = center.agent()
    inventory = dict(agent.inventory, filler="x" * (3 << 20))
    assert agent.sync(inventory=inventory)["task"] is None
    assert center.get("/v1/sources").json["items"], "a list stays small"
    assert len(center.get("/v1/sources").raw) < 1 << 20
    assert len(center.get(f"/v1/sources/{agent.source}").raw) > 3 << 20
    raw = json.dumps({"agent_version": "1", "boot_id": "b", "inventory": {"f": "x" * (4 << 20)}}).encode()
    assert center.call("POST", "/v1/agent/sync", raw=raw, token=agent.secret).status == 413
    deep = json.loads("[" * 40 + "]" * 40)
    got = center.post("/v1/agent/sync", {"agent_version": "1", "boot_id": "b", "inventory": {"d": deep}}, token=agent.secret)
    assert (got.status, got.field) == (400, "inventory")
    agent.sync(inventory={})


def test_bodies_that_would_grow_in_memory(center):
    agent = center.agent()
    for filler in ("[" + "[]," * 60000 + "0]", "[" + "0," * 60000 + "0]", '"x\\\""' + ',"k":[0' + ",0" * 60000 + "]"):
        raw = f'{{"agent_version":"1","boot_id":"b","inventory":{{"f":{filler}}}}}'.encode()
        got = center.call("POST", "/v1/agent/sync", raw=raw, token=agent.secret)
        assert (got.status, got.code) == (400, "too_complex"), got
        assert center.call("POST", "/v1/agent/enroll", raw=raw, token="").code == "too_complex"
    assert agent.sync(inventory={"text": "[{,:" * 60000})["task"] is None, "in a string they are only text"
    s = raw_tls(center)
    s.sendall(b"POST /v1/agent/enroll HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n")
    assert b" 413 " in s.recv(4096).split(b"\r\n")[0]
    s.close()


def test_bad_reports_of_agents(center):
    agent = center.agent()
    base = {"agent_version": "1", "boot_id": "b"}
    run = "run-0123456789abcdef"
    for task in ({}, {"run": run}, {"run": "x", "state": "sending"}, {"run": run, "state": "flying"}, {"run": run, "state": "failed", "error": {}},
                 {"run": run, "state": "failed", "error": "text"}, {"run": run, "state": "sending", "progress": 5}, "text", [],
                 {"run": "run-0123456789abcde/", "state": "sending"}):
        got = center.post("/v1/agent/sync", dict(base, task=task), token=agent.secret)
        assert got.status == 400, (task, got)
    strange = {"bytes_total": -1, "bytes_done": "5", "percent": 1e308, "phase": "x" * 999, "speed": None}
    assert agent.report(run, progress=strange)["task"] is None


def test_paging(center):
    ids = [center.new_code(name=f"c{n}")["id"] for n in range(5)]
    page = center.ok("GET", "/v1/codes?limit=2&offset=1")
    assert len(page["items"]) == 2 and page["total"] >= 5
    assert [c["id"] for c in page["items"]] == [ids[3], ids[2]], "newest first"
    for query in ("limit=0", "limit=501", "limit=x", "offset=-1", "colour=red", "limit=2&state=active"):
        assert center.get("/v1/codes?" + query).status == 400, query
    assert center.get("/v1/jobs?state=flying").status == 400
    assert center.get("/v1/jobs?state=finished'--").status == 400
    assert center.get("/v1/jobs?source=x'%20OR%201").json["total"] == 0


def raw_tls(center):
    return center.context.wrap_socket(socket.create_connection(("127.0.0.1", center.port)), server_hostname="127.0.0.1")


def test_a_cut_body_changes_nothing(center):
    before = center.ok("GET", "/v1/codes")["total"]
    for _ in range(5):
        s = raw_tls(center)
        s.sendall(f"POST /v1/codes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {center.token}\r\nContent-Length: 100\r\n\r\n{{\"na".encode())
        s.close()
    assert center.ok("GET", "/v1/codes")["total"] == before


def test_chunked_bodies(center):
    s = raw_tls(center)
    head = f"POST /v1/codes HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {center.token}\r\nTransfer-Encoding: chunked\r\n\r\n"
    s.sendall(head.encode() + b"2\r\n{}\r\n0\r\n\r\n")
    assert b" 201 " in s.recv(4096)
    s.close()
    s = raw_tls(center)
    s.sendall(head.encode() + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 32 + b"0\r\n\r\n")
    assert b" 413 " in s.recv(4096)
    s.close()
    # What is bigger than anything honest is cut off.
    s = raw_tls(center)
    with pytest.raises((OSError, ssl.SSLError, AssertionError)):
        s.sendall(head.encode() + (b"10000\r\n" + b" " * 65536 + b"\r\n") * 256)
        assert s.recv(4096)
    s.close()
    assert center.get("/v1/version", token="").status == 200


def test_a_big_body_without_a_right_to_send_it(center):
    """Refused by its head; four megabytes are not read first."""
    s = raw_tls(center)
    s.sendall(b"POST /v1/agent/sync HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer x\r\nContent-Length: 4000000\r\n\r\n")
    assert b" 401 " in s.recv(4096).split(b"\r\n")[0]
    s.close()


def test_garbage_on_the_port(center):
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + b"\xff" * 100, b"\0" * 1000):
        with socket.create_connection(("127.0.0.1", center.port)) as s:
            s.sendall(data)
    idle = [socket.create_connection(("127.0.0.1", center.port)) for _ in range(100)]
    start = time.monotonic()
    assert center.get("/v1/version", token="").status == 200
    assert time.monotonic() - start < 10, "idle connections don't hold up others"
    for s in idle:
        s.close()


def test_the_host_header_gets_into_no_shell(fresh):
    center = fresh()
    (center.folder / "replant-agent").write_text("x")
    (center.state / "url").unlink()
    center.restart()
    got = center.post("/v1/codes", headers={"Host": "a.example:99"})
    assert "REPLANT_URL=https://a.example:99 " in got.json["command"]
    got = center.post("/v1/codes", headers={"Host": "a;rm -rf $HOME"})
    assert got.json["command"] is None and "Host" in got.json["command_error"]
