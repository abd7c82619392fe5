"""What the agent's tests share: loop disks, certificates, and a center that does what a test tells it to."""
import hashlib
import http.server
import json
import os
import pathlib
import re
import socket
import ssl
import subprocess
import sys
import threading
import time

import streamrig

AGENT = streamrig.AGENT
SOURCE = "source-0123456789abcdef"
SECRET = "0123456789abcdef.feedface"
CODE_ID, CODE_SECRET = "00112233aabbccdd", "c0de" * 8


def run(*argv, check=True, **kw):
    kw.setdefault("timeout", 120)
    return subprocess.run([str(a) for a in argv], check=check, capture_output=True, text=True, **kw)


class Loops:
    """Loop devices that go away, mounts first, when the test ends."""

    def __init__(self, tmp):
        self.tmp, self.devices, self.mounts = tmp, [], []

    def attach(self, image, *options):
        dev = run("losetup", "-f", "--show", *options, image).stdout.strip()
        self.devices.append(dev)
        return dev

    def new(self, name, size, fstype=None):
        image = self.tmp / name
        with open(image, "wb") as f:
            f.truncate(size)
        if fstype:
            run(f"mkfs.{fstype}", "-q", image)
        return self.attach(image)

    def mount(self, dev, name, *options):
        point = self.tmp / name
        point.mkdir()
        run("mount", *options, dev, point)
        self.mounts.append(point)
        return point

    def close(self):
        for m in reversed(self.mounts):
            subprocess.run(["umount", m], check=False)
        for d in reversed(self.devices):
            subprocess.run(["losetup", "-d", d], check=False)


# A write() whose buffer isn't there yet: a freeze waits for it, in the kernel, and can't be undone before it is over.
HELD = """
import ctypes, fcntl, mmap, os, struct, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.write.argtypes = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
uffd = libc.syscall({"x86_64": 323, "aarch64": 282}[os.uname().machine], os.O_CLOEXEC)
if uffd < 0:
    sys.exit(os.strerror(ctypes.get_errno()))
page = mmap.mmap(-1, mmap.PAGESIZE)
at, size = ctypes.addressof(ctypes.c_char.from_buffer(page)), mmap.PAGESIZE
fcntl.ioctl(uffd, 0xC018AA3F, bytearray(struct.pack("QQQ", 0xAA, 0, 0)))  # UFFDIO_API
fcntl.ioctl(uffd, 0xC020AA00, bytearray(struct.pack("QQQQ", at, size, 1, 0)))  # UFFDIO_REGISTER, of missing pages
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o644)
threading.Thread(target=libc.write, args=(fd, at, size)).start()
os.read(uffd, 32)  # it has begun
print("held", flush=True)
sys.stdin.read()
fcntl.ioctl(uffd, 0xC020AA04, bytearray(struct.pack("QQQq", at, size, 0, 0)))  # UFFDIO_ZEROPAGE
"""


class Held:
    """A write that has begun and doesn't end until release()."""

    def __init__(self, path):
        self.proc = subprocess.Popen([sys.executable, "-c", HELD, str(path)], stdin=subprocess.PIPE,
                                     stdout=subprocess.PIPE, text=True)
        assert self.proc.stdout.readline() == "held\n", "no userfaultfd here"

    def release(self):
        self.proc.stdin.close()
        assert self.proc.wait(20) == 0


class Authority:
    """A certificate authority made by the openssl program, and server certificates of it."""

    def __init__(self, folder, name="center"):
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.key, self.cert = folder / "ca.key", folder / "ca.pem"
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", self.key,
            "-out", self.cert, "-subj", f"/CN={name}", "-days", "30", "-addext", "basicConstraints=critical,CA:TRUE")

    def fingerprint(self):
        der = subprocess.run(["openssl", "x509", "-in", self.cert, "-outform", "DER"], check=True, capture_output=True).stdout
        return hashlib.sha256(der).hexdigest()

    def server(self, names="IP:127.0.0.1,DNS:localhost", days="30", chain=None):
        """PEM of key, leaf and, after it, the CA (or another chain)."""
        leaf = self.folder / f"leaf{len(list(self.folder.iterdir()))}"
        leaf.mkdir()
        run("openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", leaf / "key", "-out",
            leaf / "csr", "-subj", "/CN=server")
        (leaf / "ext").write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n")
        run("openssl", "x509", "-req", "-in", leaf / "csr", "-CA", self.cert, "-CAkey", self.key, "-CAcreateserial", "-days", days,
            "-extfile", leaf / "ext", "-out", leaf / "crt")
        pem = leaf / "pem"
        pem.write_text((leaf / "key").read_text() + (leaf / "crt").read_text() + (chain or self.cert).read_text())
        return pem


class Center:
    """Speaks the agent's part of the API. `answers` maps a path to a function of the request that returns (status, body)."""

    def __init__(self, pem, port=0):
        self.sockets = []
        self.requests, self.answers = [], {"/v1/agent/enroll": self.enroll, "/v1/agent/sync": self.sync}
        self.task, self.known = None, True
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = {"path": self.path, "headers": self.headers, "body": json.loads(body or b"null"), "time": time.time()}
                outer.requests.append(request)
                status, answer = outer.answers.get(self.path, lambda r: (404, {}))(request)
                data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST

            def log_message(self, *args):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

            def handle_error(self, request, address):
                pass

            def finish_request(self, request, address):
                request.settimeout(30)
                outer.sockets.append(request)
                tls = outer.context.wrap_socket(request, server_side=True)
                outer.sockets.append(tls)
                super().finish_request(tls, address)

        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(pem)
        self.server = Server(("127.0.0.1", port), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def enroll(self, request):
        b = request["body"]
        if (b["code_id"], b["code_secret"]) != (CODE_ID, CODE_SECRET):
            return 403, {"error": {"code": "code_refused", "message": "the activation code is wrong, used up, expired or revoked"}}
        return 201, {"source": SOURCE, "secret": SECRET}

    def sync(self, request):
        if not self.known or request["headers"]["Authorization"] != f"Bearer {SECRET}":
            return 401, {"error": {"code": "unknown", "message": "unknown"}}
        return 200, {"interval_seconds": 1.0, "task": self.task}

    def syncs(self):
        return [r for r in list(self.requests) if r["path"] == "/v1/agent/sync"]

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        for s in self.sockets:  # connections that were kept open
            try:
                s.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


def code(authority, secret=CODE_SECRET):
    return f"{CODE_ID}.{secret}.{authority.fingerprint()}"


def until(condition, seconds=20, what="it"):
    end = time.time() + seconds * (2 if os.environ.get("REPLANT_TEST_PATIENCE") else 1)
    while time.time() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.05)
    raise AssertionError(f"{what} did not happen within {seconds} s")


class Service:
    """replant-agent run, with its own configuration."""

    def __init__(self, tmp, name="service", under=()):
        self.tmp, self.config, self.runtime = tmp, tmp / "config", tmp / "runtime"
        self.log, self.under = tmp / f"{name}.log", under
        self.proc = subprocess.Popen([*under, str(AGENT), "run", "--config", str(self.config), "--runtime", str(self.runtime)],
                                     stderr=open(self.log, "ab"), stdout=subprocess.DEVNULL)

    def status(self):
        return json.loads(run(AGENT, "status", "--json", "--runtime", self.runtime, check=False).stdout)

    def stop(self):
        if self.proc.poll() is None:
            if self.under:
                run("pkill", "-TERM", "-P", self.proc.pid)
            else:
                self.proc.terminate()
            try:
                self.proc.wait(30)
            except subprocess.TimeoutExpired:
                self.proc.kill()
                self.proc.wait()
        return self.proc.returncode


def confined():
    """What to run a program under so that it may do what the service's unit leaves it."""
    text = (pathlib.Path(__file__).resolve().parents[2] / "src/agent/service.c").read_text()
    unit = "".join(re.findall(r'^\s*"((?:[^"\\]|\\.)*)"', text[text.index("service_unit[]"):text.index("bool service_systemd")], re.M))
    caps = re.search(r"CapabilityBoundingSet=(.*?)\\n", unit)[1].split()
    assert len(caps) > 5 and "NoNewPrivileges=yes" in unit
    return ["setpriv", "--nnp", "--bounding-set", ",".join(["-all", *("+" + c.removeprefix("CAP_").lower() for c in caps)]), "--"]


def enroll(tmp, center, the_code, *options, check=True, host="127.0.0.1"):
    return run(AGENT, "enroll", "--center", f"https://{host}:{center.port}", "--config", tmp / "config", "--runtime",
               tmp / "runtime", "--no-service", *options, check=check, env={**os.environ, "REPLANT_CODE": the_code})
