"""Bad input, made from docs/openapi.json: every member of every request and every parameter, wrong in every way we know of. A request
that is wrong is answered with 4xx, a code, a sentence and the member to blame, and changes nothing; a right one is accepted. REPLANT_SEED=N
repeats the random part; REPLANT_LOOPS=200 makes it long."""

import copy
import http.client
import json
import os
import random
import socket
import ssl
import time
import urllib.parse

import pytest

jsonschema = pytest.importorskip("jsonschema")

from harness import SLOW, Answer, free_port, wait_for  # noqa: E402
from tests import schema  # noqa: E402

SEED = int(os.environ.get("REPLANT_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
SECONDS = 7 * max(1, int(os.environ.get("REPLANT_LOOPS", "0")) // 4)  # of the random part
NOUNS = ("codes", "tokens", "templates", "workgroups", "sources", "jobs", "images", "exports", "subscriptions", "instances")
STREAM = "streamEvents"
NOT_NOW = ("cutOverJob", "startJob", "bootImage", "checkImage", "startInstance", "stopInstance", "restartInstance", "updateInstance", "createSnapshot", "revertSnapshot")  # may be right in vain
OPEN = {"inventory", "progress", "result"}  # what agents say there is taken as it is
TEXTS = ["$(reboot)", "`id`; rm -rf /", "'; DROP TABLE jobs; --", "../../etc/passwd", "%s%n", "\u202egnp.exe", "日本語", "🦫" * 8, "a\u0301",
         "\ufeffx", "\ud7ff\ue000", "<script>alert(1)</script>", "-rf", "{{7*7}}", "\\u0000", "null", "C:\\nul"]


def deep(n):
    out = []
    for _ in range(n):
        out = [out]
    return out


ODD = [None, True, False, 0, -1, 1.5, 1e308, 1 << 62, -(1 << 63), "", "x", "0", [], {}, [[]], {"a": {}}, deep(40), ["x"], {"id": "x"}]
# As text: what json.dumps() can't say.
RAW = ["1e999", "-", "NaN", "Infinity", "01", "99999999999999999999999", '"\xff"', '"\\ud800"', '"a\\u0000b"', '"\n"', "'x'", "[", "tru",
       '"\\x41"', '"\xc0\x80"', "[" * 3000, '{"a":1,"a":2}']


def resolve(s):
    while "$ref" in s:
        s = schema.DOCUMENT["components"]["schemas"][s["$ref"].rsplit("/", 1)[1]]
    return s


def plain(s):
    """As JSON Schema: with null for what need not be there, and lengths in bytes as far as that matters here."""
    s = resolve(s)
    out = {k: v for k, v in s.items() if k not in ("description", "default", "example")}
    if "properties" in s:
        needed = s.get("required", [])
        out["properties"] = {n: plain(p) if n in needed else {"anyOf": [{"type": "null"}, plain(p)]} if n not in OPEN else {} for n, p in s["properties"].items()}
    if isinstance(s.get("additionalProperties"), dict):
        out["additionalProperties"] = plain(s["additionalProperties"])
    if "items" in s:
        out["items"] = plain(s["items"])
    return out


def operations():
    for path, item in schema.DOCUMENT["paths"].items():
        for method, op in item.items():
            if method != "parameters" and op["x-role"] != "signed":  # those have a language of their own: test_smc.py, fuzz_smc.c
                body = op.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
                query = [p if "name" in p else schema.DOCUMENT["components"]["parameters"][p["$ref"].rsplit("/", 1)[1]] for p in op.get("parameters", [])]
                yield op["operationId"], method.upper(), path, resolve(body) if body else None, [p for p in query if p["in"] == "query"], set(op["responses"])


OPERATIONS = {o[0]: o for o in operations()}


class Wire:
    """Calls on one connection, which is faster than one each."""

    def __init__(self, center):
        self.center, self.conn, self.count = center, None, 0

    def call(self, method, path, raw=None, token=None):
        self.count += 1
        for attempt in (1, 2):
            fresh = self.conn is None
            self.conn = self.conn or self.center.connect()
            try:
                head = {"Authorization": "Bearer " + token} if token else {}
                self.conn.request(method, path, body=raw, headers=head)
                got = self.conn.getresponse()
                return Answer(got.status, got.headers, got.read())
            except (OSError, http.client.HTTPException, ssl.SSLError):
                self.conn.close()
                self.conn = None
                if fresh or attempt == 2:
                    raise
        return None


class Scene:
    """A center with one of everything, and right requests for each operation."""

    def __init__(self, center, dice):
        self.center, self.dice, self.wire, self.n = center, dice, Wire(center), 0
        (center.folder / "replant-agent").write_text("x")
        self.agent = center.agent()  # its job is done
        self.free = center.agent()
        job = center.started_job(self.agent.source)
        self.agent.send_all()
        image = center.wait_job(job)["image"]
        export = center.ok("POST", f"/v1/images/{image}/exports", {"format": "raw"})["id"]
        wait_for("export", lambda: center.ok("GET", f"/v1/exports/{export}")["state"] == "finished")
        ready = center.agent()
        self.ids = {"codes": center.new_code()["id"], "regions": "local", "sources": self.free.source, "images": image, "exports": export,
                    "templates": center.ok("POST", "/v1/templates", {"name": "t", "job": {}})["id"],
                    "workgroups": center.ok("POST", "/v1/workgroups", {"name": "w"})["id"],
                    "tokens": center.ok("POST", "/v1/tokens", {"name": "v", "role": "viewer"})["id"],
                    "jobs": center.new_job(ready.source)}
        # Paused: nobody is told what happens here, but for what a test sends.
        self.hook = f"http://127.0.0.1:{free_port()}/"
        self.ids["subscriptions"] = center.ok("POST", "/v1/subscriptions", {"name": "s", "target": self.hook, "active": False})["id"]
        self.ids["notices"] = center.post(f"/v1/subscriptions/{self.ids['subscriptions']}/test").json["id"]
        self.ids["instances"] = self.make_instance(image)
        self.ids["snapshots"] = center.ok("POST", f"/v1/instances/{self.ids['instances']}/snapshots", {"name": "s"})["id"]
        self.mold = center.ok("POST", "/v1/templates", {"name": "mold", "job": {"parameters": {"connections": 2}}})["id"]
        self.code = center.new_code(uses=1000)

    def make_instance(self, image):
        instance = self.center.ok("POST", "/v1/instances", {"name": "i", "image": image, "start": False})["id"]
        wait_for("it", lambda: self.center.ok("GET", f"/v1/instances/{instance}")["action"] is None)
        return instance

    def domain(self):
        """Something to be imported."""
        ref = f"dom{self.number()}"
        (self.center.script / "world" / f"instance.{ref}").write_text(json.dumps(
            {"settings": {"name": ref}, "state": "off", "set": "base", "addresses": [], "sets": [{"set": "base"}]}))
        return ref

    def number(self):
        self.n += 1
        return self.n

    def token(self, name):
        public = OPERATIONS[name][2].startswith("/v1/agent/enroll") or schema.DOCUMENT["paths"][OPERATIONS[name][2]][OPERATIONS[name][1].lower()].get("security") == []
        return None if public else self.agent.secret if name == "syncAgent" else self.center.token

    def path(self, path):
        return path.replace("{id}", self.ids.get((path.split("/") + [""])[2], ""))

    def text(self, s):
        most, least = s.get("maxLength", 64), s.get("minLength", 0)
        text = self.dice.choice(TEXTS + ["", "x" * most, "x"])
        while len(text.encode()) > most:
            text = text[:-1]
        return text if len(text) >= max(least, 0) else "x" * max(least, 1)

    def value(self, s, name, whole=False):
        """One that the schema allows."""
        s = resolve(s)
        if name in ("address", "gateway", "nameservers"):  # of a job: more is wanted of them than a schema says
            return "dhcp" if name == "address" else ""
        if name in ("inventory", "result", "progress", "task", "error") and "properties" not in s:
            return {}
        if "oneOf" in s:
            return self.value(self.dice.choice(s["oneOf"]), name)
        if "enum" in s:
            return {"execution": "create_only", "license": "none", "network": "public"}.get(name) or self.dice.choice(s["enum"])
        if name == "forwards":
            return [{"host": 1000 + i, "guest": self.dice.randint(1, 65535)} for i in range(self.dice.randint(0, 32))]
        if s["type"] == "array" and "enum" not in s["items"]:
            rows = [self.value(s["items"], name, whole) for _ in range(self.dice.randint(0, min(3, s["maxItems"])))]
            return [dict(row, name=f"{i} {row['name'][:100]}") for i, row in enumerate(rows)]  # none twice
        if s["type"] == "array":
            return self.dice.sample(s["items"]["enum"], self.dice.randint(1, len(s["items"]["enum"])))
        if s["type"] == "integer":
            return self.dice.choice([s.get("minimum", 0), s.get("maximum", 9), self.dice.randint(s.get("minimum", 0), s.get("maximum", 9))])
        if s["type"] == "boolean":
            return self.dice.random() < 0.5
        if s["type"] == "number":
            return self.dice.uniform(0, 100)
        if s["type"] == "string":
            return self.text(s)
        if s["type"] == "array":
            return self.dice.sample(s["items"]["enum"], self.dice.randint(s["minItems"], len(s["items"]["enum"])))
        if isinstance(s.get("additionalProperties"), dict):
            return {f"k{i} é": self.text({"maxLength": 128}) for i in range(self.dice.randint(0, 20))}
        return self.body(s, whole)

    def body(self, s, whole=False):
        """An object with all it needs and some that it may have."""
        return {n: self.value(p, n, whole) for n, p in resolve(s).get("properties", {}).items()
                if whole or n in s.get("required", []) or self.dice.random() < 0.6}

    def right(self, name, whole=False):
        """A body that should be accepted; what the schema can't say is put right here."""
        s = OPERATIONS[name][3]
        body = self.body(s, whole)
        ours = {"source": self.free.source, "template": self.mold, "region": "local", "disk": 0,
                "workgroup": self.dice.choice(["", self.ids["workgroups"]]), "code_id": self.code["code"].split(".")[0],
                "code_secret": self.code["code"].split(".")[1], "machine_id": f"m{self.number()}", "client_token": f"c{self.number()}", "target": self.hook, "active": False,
                "public_address": self.dice.choice(["", "a.example"]), "private_address": self.dice.choice(["", "10.0.0.5"])}
        ours.update({"image": self.ids["images"], "cpu": self.dice.choice(["host", "max", "Skylake-Server_v2"]), "mac": "52:54:00:aB:12:0f",
                     "address": "10.0.2.77"})
        if name == "importInstance":
            ours["ref"] = self.domain()
        if isinstance(body.get("settings"), dict):
            if "network" in body["settings"]:
                body["settings"]["network"] = "user" if body["settings"].get("forwards") else self.dice.choice(["none", "br0"])
        if name == "createRegion":
            body["pool"] = "default-pool"
            ours.update(id=f"r{self.number()}", uri="test:///default", pool="default-pool")
        if name == "updateRegion":  # the center's own has only addresses
            for key in ("uri", "pool", "network", "accelerator"):
                body.pop(key, None)
        if name == "checkImage" and "name" in body:
            body["repair"] = True
        if name == "createJob":
            body.pop("instance", None)
            ours["destination"] = "image"
        for part in (body, body.get("job"), body.get("settings")):
            if isinstance(part, dict):
                part.update({k: v for k, v in ours.items() if k in part})
        body.pop("start_at", None)
        if body.get("role") == "admin":
            body.pop("scope", None)
        if name in ("createTemplate", "updateTemplate", "createWorkgroup", "updateWorkgroup", "createSubscription",
                    "updateSubscription", "createInstance", "importInstance", "updateInstance") and "name" in body:
            body["name"] = f"{self.number()} {body['name']}"[:40]
        if name == "syncAgent":
            body["boot_id"] = "b"
        if name == "syncAgent" and "task" in body:
            body["task"]["run"] = f"run-{self.dice.getrandbits(64):016x}"
        if name == "syncAgent" and "log" in body:
            body["log"]["run"] = f"run-{self.dice.getrandbits(64):016x}"
        return body

    # ---- what there is ----
    def totals(self):
        got = {n: json.loads(self.wire.call("GET", f"/v1/{n}?limit=1", token=self.center.token).raw)["total"] for n in NOUNS}
        # Beside the rows: nothing of a refused request may be in anybody's.
        for noun in ("jobs", "templates", "workgroups", "sources", "images"):
            row = json.loads(self.wire.call("GET", f"/v1/{noun}/{self.ids[noun]}", token=self.center.token).raw)
            got[noun + "'s"] = {k: v for k, v in row.items() if k not in ("last_seen", "state", "boot", "verified")}
        return got

    def ask(self, name, raw, path=None):
        return self.wire.call(OPERATIONS[name][1], path or self.path(OPERATIONS[name][2]), raw, self.token(name))

    def refused(self, name, raw, field=None, why="", path=None):
        got = self.ask(name, raw, path)
        said = (name, why, raw[:200] if raw else path, got)
        assert 400 <= got.status < 500, said
        assert got.json and got.headers["Content-Type"] == "application/json", said
        schema.check_as("Error", got.json)
        assert got.code and len(got.json["error"]["message"]) > 5, said
        assert str(got.status) in OPERATIONS[name][5] or got.status in (404, 405), (said, "a status that the document doesn't name")
        if field is not None and got.code != "bad_json":  # of what is nested too deep, all of it is to blame
            assert got.field == field or (got.field and field.startswith(got.field + ".") and "nested" in got.json["error"]["message"]), said
        return got


@pytest.fixture(scope="module")
def scene(center):
    print(f"REPLANT_SEED={SEED}")
    return Scene(center, random.Random(SEED))


WITH_BODY = [n for n, o in OPERATIONS.items() if o[3]]
WITHOUT = [n for n, o in OPERATIONS.items() if not o[3] and n != STREAM]


def members(s, path=()):
    """Each member of a request with the path to it; not of what is taken as it is."""
    for name, sub in s.get("properties", {}).items():
        sub = resolve(sub)
        yield (*path, name), sub, name in s.get("required", [])
        if name not in OPEN:
            yield from members(sub, (*path, name))


def put(body, path, value, kind="set"):
    """A copy with something else there; None when there's no such place."""
    out = copy.deepcopy(body)
    at = out
    for name in path[:-1]:
        at = at.setdefault(name, {})
    if kind == "drop":
        at.pop(path[-1], None)
    else:
        at[path[-1]] = value
    return out


def as_raw(body, path, text):
    """The JSON text of the body, with that text in place of a value."""
    return json.dumps(put(body, path, "@@here@@")).replace('"@@here@@"', text).encode("latin-1")


def wrong_values(s):
    """Values that don't fit the schema of a member."""
    check = jsonschema.Draft7Validator(plain(s))
    more = []
    if "maximum" in s:
        more += [s["maximum"] + 1, s["minimum"] - 1, str(s["minimum"]), float(s["maximum"]) + 0.5]
    if s.get("type") == "string" and "enum" not in s:
        more += ["x" * (s.get("maxLength", 5000) + 1), "x\u0000y", "é" * (s.get("maxLength", 5000) // 2 + 1)]
        more += ["x" * (s["minLength"] - 1)] if s.get("minLength") else []
        more += ["line\nline"] if "one line" in s.get("description", "") else []
        more += ["\u007f", "\u001b[2J"]
    for word in filter(None, s.get("enum", [])):
        more += [word.upper(), word + " ", word + "\u0000"]
    if isinstance(s.get("additionalProperties"), dict):
        more += [{"": "x"}, {"a=b": "x"}, {"x" * 129: "x"}, {"a": "x" * 129}, {"a": None}, {"a": 1}, {"a\n": "x"}, {"a": "\u0000"},
                 {f"k{i}": "" for i in range(21)}]
    return [v for v in ODD if not check.is_valid(v)] + more


def send_mutants(scene, name):
    s = OPERATIONS[name][3]
    right = scene.right(name, whole=True)
    for path, sub, needed in members(s):
        field = ".".join(path)
        for value in wrong_values(sub):
            if value is not None or needed:
                blamed = None if "properties" in sub and isinstance(value, dict) else field
                scene.refused(name, json.dumps(put(right, path, value)).encode(), blamed, f"{field} = {str(value)[:60]!r}")
        for text in RAW:
            scene.refused(name, as_raw(right, path, text), None, f"{field} = {text[:60]}")
        if needed:
            scene.refused(name, json.dumps(put(right, path, None, "drop")).encode(), field, f"no {field}")
        twice = json.dumps(put(right, path, "@@here@@")).replace('"@@here@@"', f'0,"{path[-1]}":0')
        assert scene.refused(name, twice.encode()).code == "bad_json", field
        strange = (*path[:-1], path[-1] + "2")
        scene.refused(name, json.dumps(put(right, strange, 1)).encode(), ".".join(strange), "unknown member")


def raw_tls(scene, name, rest):
    """The head of a request, as far as it is the same for all, and what comes behind it."""
    s = scene.center.context.wrap_socket(socket.create_connection(("127.0.0.1", scene.center.port)), server_hostname="127.0.0.1")
    s.sendall(f"{OPERATIONS[name][1]} {scene.path(OPERATIONS[name][2])} HTTP/1.1\r\nHost: x\r\n"
              f"Authorization: Bearer {scene.token(name) or ''}\r\n".encode() + rest)
    return s


def send_bad_bodies(scene, name):
    right = json.dumps(scene.right(name)).encode()
    most = (4 << 20) if name == "syncAgent" else 1 << 20
    for raw in (b"[]", b'"x"', b"7", b"null", b"{", right[:-1], right + b"x", right + right, b"\xef\xbb\xbf" + right, b"\xff\xfe{\0}\0",
                b"\0", right.replace(b"{", b"\xff{"), b"[" * 100000, b'{"x":' * 20000, b"{" + b" " * 1000, b"a=b&c=d"):
        scene.refused(name, raw, None, "not a JSON object")
    # Of who is known it is read first, as far as that is reasonable.
    s = raw_tls(scene, name, f"Content-Length: {most + 1}\r\n\r\n".encode() + (b" " * (most + 1) if scene.token(name) else b""))
    assert b" 413 " in s.recv(4096).split(b"\r\n")[0]
    s.close()


@pytest.mark.parametrize("name", WITH_BODY)
def test_members(scene, name):
    before = scene.totals()
    send_mutants(scene, name)
    send_bad_bodies(scene, name)
    assert scene.totals() == before, "a refused request changed something"


@pytest.mark.parametrize("name", WITH_BODY)
def test_right_ones(scene, name):
    """What the document allows is accepted; texts come back as they were."""
    def once(whole):
        if name == "createJob":
            scene.free = scene.center.agent()
        body = scene.right(name, whole)
        got = scene.ask(name, json.dumps(body).encode())
        assert 200 <= got.status < 300 or (name in NOT_NOW and got.status == 409), (name, body, got)
        for key in ("name", "description", "image_name", "tags"):
            if got.json and key in got.json and key in body and name != "checkImage":  # its name is another image's
                assert got.json[key] == body[key], (name, key, body, got)

    for i in range(6):
        once(whole=i == 0)
    scene.free = scene.center.agent()
    scene.ids["sources"] = scene.free.source


@pytest.mark.parametrize("name", WITHOUT)
def test_bodies_where_none_is_described(scene, name):
    before = scene.totals()
    for raw in (b'{"x":1}', b"[]", b"{", b"\xff", b"x" * 200000):
        scene.refused(name, raw, None, "no body belongs here")
    assert scene.totals() == before


STRANGE_IDS = ["x", "-", "..", "%2e%2e%2f", "%00", "%ff", "%c0%80", "a" * 47, "a" * 48, "a" * 5000, "job-", "job-0123456789ABCDEF", "job-0123456789abcdef0",
               "job-0123456789abcde%00", "日本", "%E6%97%A5", "*", "'%20OR%201=1--", "{id}", "%7Bid%7D", "$(id)", " ", "+", "job-0123456789abcdeg",
               "%0d%0aX:%20y", "%", "%zz", ";", "job-0123456789abcdef;x", "job-0123456789abcdef%2f"]


@pytest.mark.parametrize("name", [n for n, o in OPERATIONS.items() if "{id}" in o[2]])
def test_ids(scene, name):
    """Malformed, nobody's, and other nouns': there is nothing there."""
    before = scene.totals()
    path = OPERATIONS[name][2]
    noun = path.split("/")[2]
    right = json.dumps(scene.right(name)).encode() if OPERATIONS[name][3] else None
    others = [i for n, i in scene.ids.items() if n != noun]
    for strange in [*STRANGE_IDS, *others, f"{noun[:-1]}-0123456789abcdef", *(noun[:-1] + i[i.index("-"):] for i in others if "-" in i)]:
        got = scene.ask(name, right, path.replace("{id}", urllib.parse.quote(strange, safe="%/;*'$+{}()-.")))
        assert got.status == 404 and got.code == "not_found", (strange, got)
    got = scene.ask(name, right, path.replace("{id}", "a" * 70000))
    assert 400 <= got.status < 500, got
    assert scene.totals() == before


@pytest.mark.parametrize("name", [n for n in WITH_BODY if n in ("createJob", "updateSource")])
def test_others_objects_in_a_body(scene, name):
    before = scene.totals()
    right = scene.right(name, whole=True)
    for member in {"source", "template", "workgroup", "region"} & set(right):
        for noun, one in scene.ids.items():
            if noun[:-1] != member:
                scene.refused(name, json.dumps(dict(right, **{member: one})).encode(), member, noun)
    assert scene.totals() == before


def bad_queries(op):
    """(query, must it be refused?)"""
    for p in op[4]:
        name, kind = p["name"], p["schema"]
        if kind["type"] == "integer":
            for v in ("", "x", "-1", "1.5", "0x10", "1e3", "+1", " 1", "99999999999999999999", "1;2", "%00", "%ff", "1%00", "１"):
                yield f"{name}={urllib.parse.quote(v, safe='%')}", True
            if "maximum" in kind:
                yield f"{name}={kind['maximum'] + 1}", True
        elif "enum" in kind:
            for v in ("", "x", kind["enum"][0].upper(), kind["enum"][0] + "%20", "%ff", "%00"):
                yield f"{name}={v}", True
        else:
            for v in ("", "x" * 5000, "%E6%97%A5", "'%20OR%201=1--", "%25", "_", "*", "[a-z]", "%F0%9F%A6%AB"):
                yield f"{name}={v}", False
            yield f"{name}=a%00b", True
            yield f"{name}=%ff%fe", True
        yield f"{name}", None if kind["type"] == "string" and "enum" not in kind else True
        if name != "tag":
            yield f"{name}=1&{name}=1", True
    for q in ("colour=red", "limit[]=1", "LIMIT=1", "%6cimit2=1", "%ff=1", "%00=1", "a" * 3000 + "=1", "=1"):
        yield q, True
    yield "&".join(f"tag=k{i}" for i in range(100)), True


@pytest.mark.parametrize("name", [n for n, o in OPERATIONS.items() if o[1] == "GET" and n != "getAgentProgram"])
def test_queries(scene, name):
    for query, wrong in bad_queries(OPERATIONS[name]):
        path = scene.path(OPERATIONS[name][2]) + "?" + query
        if wrong:
            assert scene.refused(name, None, None, query, path).status == 400
        elif name != STREAM:
            got = scene.ask(name, None, path)
            assert got.status in ((200,) if wrong is False else (200, 400)), (query, got)


@pytest.mark.parametrize("name", [n for n in OPERATIONS if n != STREAM])
def test_without_the_right_secret(scene, name):
    if scene.token(name) is None:
        return
    wrong = scene.center.token if name == "syncAgent" else scene.agent.secret
    half = scene.token(name)
    for token in (None, wrong, half[:-1], half + "0", half.upper(), half.replace(".", " "), "é" * 10, "x" * 9000, "0" * 16 + "." + "0" * 64):
        got = scene.wire.call(OPERATIONS[name][1], scene.path(OPERATIONS[name][2]), None, token and token.encode().decode("latin-1"))
        assert got.status == 401 or (token and len(token) > 8000 and got.status == 431), (token, got)


@pytest.mark.parametrize("name", [n for n in WITH_BODY])
def test_cut_bodies(scene, name):
    """Half a request is none."""
    before = scene.totals()
    raw = json.dumps(scene.right(name)).encode()
    for rest in (f"Content-Length: {len(raw)}\r\n\r\n".encode() + raw[:-1], f"Content-Length: {len(raw) + 9}\r\n\r\n".encode() + raw,
                 b"Transfer-Encoding: chunked\r\n\r\n" + f"{len(raw):x}\r\n".encode() + raw + b"\r\n"):
        raw_tls(scene, name, rest).close()
    time.sleep(0.02)
    assert scene.totals() == before


def test_slow_clients_hold_up_nobody(scene):
    """A hundred that send a byte now and then; the center answers others as ever."""
    slow = []
    for i in range(100):
        s = socket.create_connection(("127.0.0.1", scene.center.port))
        if i % 2:
            s = scene.center.context.wrap_socket(s, server_hostname="127.0.0.1")
            s.sendall(b"POST /v1/agent/enroll HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n{")
        slow.append(s)
    end, worst = time.monotonic() + 2, 0.0
    while time.monotonic() < end:
        for s in slow[1::20]:
            s.sendall(b" ")
        begun = time.monotonic()
        assert scene.center.get("/v1/sources").status == 200
        worst = max(worst, time.monotonic() - begun)
    for s in slow:
        s.close()
    assert worst < 1 * SLOW, worst


def scramble(dice, value):
    """Something of it is something else."""
    if isinstance(value, dict) and value and dice.random() < 0.85:
        key, out = dice.choice(list(value)), dict(value)
        kind = dice.random()
        if kind < 0.15:
            del out[key]
        elif kind < 0.25:
            out[dice.choice(TEXTS + ["", key + " "])] = out.pop(key)
        else:
            out[key] = scramble(dice, out[key])
        return out
    return dice.choice(ODD + TEXTS + [dice.getrandbits(70), -dice.getrandbits(60), "x" * dice.randint(0, 5000), {"a" * 200: value}, [value] * 30])


def test_at_random(scene):
    """Any number of things wrong at once. Whether it is right is asked of the document's schema; what is wrong changes nothing."""
    end, sent, right = time.monotonic() + SECONDS, 0, 0
    checks = {n: jsonschema.Draft7Validator(plain(OPERATIONS[n][3])) for n in WITH_BODY}
    before = scene.totals()
    while time.monotonic() < end:
        name = scene.dice.choice(WITH_BODY)
        body = scene.right(name)
        for _ in range(scene.dice.randint(1, 3)):
            body = scramble(scene.dice, body)
        raw = json.dumps(body).encode()
        if scene.dice.random() < 0.2:  # at the level of bytes, too
            cut = scene.dice.randrange(len(raw) + 1)
            raw = raw[:cut] + scene.dice.choice([b"", b"\xff", b"\0", b'"', b"}", b",", b"\\"]) + raw[cut + scene.dice.randint(0, 2):]
            raw = raw or b"{}"  # which is the same
        got = scene.ask(name, raw)
        sent += 1
        assert got.status < 500, (name, raw, got)
        if got.status >= 400:
            schema.check_as("Error", got.json)
            continue
        right += 1
        assert checks[name].is_valid(json.loads(raw)), (name, raw, got, [e.message for e in checks[name].iter_errors(json.loads(raw))])
        if name == "createJob":
            scene.free = scene.center.agent()
        now = scene.totals()
        before = now
    # Whatever was refused since the last accepted one left nothing.
    assert scene.totals() == before
    print(f"{sent} requests, {right} of them right")
    assert sent > 50


def test_the_center_is_well(scene):
    assert scene.center.process.poll() is None, scene.center.tail()
    assert scene.center.get("/v1/version", token="").status == 200
