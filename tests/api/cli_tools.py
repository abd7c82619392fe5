"""For tests of the command line: runs `replant` plainly or on a terminal, and a scripted center to talk to.

The scripted center is for what a real one doesn't do on demand: hostile text, answers that break off, a job that goes
through given states. What the real one does is tested in test_cli_center.py.
"""

import fcntl
import json
import os
import pathlib
import pty
import re
import select
import socket
import ssl
import struct
import subprocess
import termios
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("REPLANT_BUILD", ROOT / "build"))
REPLANT = BUILD / "src" / "cli" / "replant"
TOKEN = "token-00000000000000aa.secret"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40


def make_ca(folder, name, san="DNS:localhost,IP:127.0.0.1"):
    """A CA and a certificate for localhost under it; returns the paths (ca, cert, key)."""
    ca, ca_key, cert, key, csr = (folder / f"{name}{x}" for x in ("-ca.pem", "-ca.key", ".pem", ".key", ".csr"))

    def openssl(*args):
        subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", ca_key, "-out", ca,
            "-days", "2", "-subj", f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign")
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", key, "-out", csr,
            "-subj", f"/CN={name}", "-addext", f"subjectAltName={san}")
    openssl("x509", "-req", "-in", csr, "-CA", ca, "-CAkey", ca_key, "-CAcreateserial", "-out", cert, "-days", "2",
            "-copy_extensions", "copy")
    return ca, cert, key


class FakeCenter:
    """`items[noun]` are the lists; `script[path]` holds answers that are given once each, the last one for ever."""

    def __init__(self, cert, key, port=0):
        self.items = {n: [] for n in ("sources", "jobs", "images", "exports", "codes", "tokens", "regions", "instances")}
        self.script = {}
        self.requests = []
        self.page = 1000
        self.bodies = {}  # path -> bytes
        self.cut = 0      # downloads break off after so many bytes, once
        self.connections = []
        self.events = None  # a queue: what /v1/events sends, None ends it
        center = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def handle_one_request(self):
                try:
                    super().handle_one_request()
                except (ConnectionError, ssl.SSLError, OSError):
                    self.close_connection = True

            def do_any(self):
                length = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(length)
                center.requests.append((self.command, self.path, json.loads(body) if body else None))
                center.answer(self)

            do_GET = do_POST = do_PATCH = do_DELETE = do_any

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_):  # a client that refuses our certificate is no news
                pass

            def process_request(self, request, address):
                center.connections.append(request)
                super().process_request(request, address)

        self.httpd = Server(("127.0.0.1", port), Handler)
        self.httpd.daemon_threads = True
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(cert, key)
        self.httpd.socket = context.wrap_socket(self.httpd.socket, server_side=True, do_handshake_on_connect=False)
        self.port = self.httpd.server_address[1]
        self.thread = threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    @property
    def url(self):
        return f"https://localhost:{self.port}"

    def stop(self):
        self.httpd.shutdown()
        self.httpd.server_close()
        self.thread.join()
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # it is gone already
                pass

    # -- answers
    @staticmethod
    def send(h, status, body, kind="application/json"):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        h.send_response(status)
        h.send_header("Content-Type", kind)
        h.send_header("Content-Length", str(len(data)))
        h.end_headers()
        h.wfile.write(data)

    def send_data(self, h, data):
        start = 0
        wanted = re.match(r"bytes=(\d+)-", h.headers.get("Range") or "")
        if wanted:
            start = int(wanted[1])
        h.send_response(206 if wanted else 200)
        h.send_header("Content-Length", str(len(data) - start))
        if wanted:
            h.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        h.end_headers()
        if self.cut and not wanted:
            h.wfile.write(data[:self.cut])
            h.close_connection = True
            h.connection.close()
            return
        h.wfile.write(data[start:])

    def answer(self, h):
        path, _, query = h.path.partition("?")
        if path == "/v1/version":
            return self.send(h, 200, {"name": "replant", "version": "9.9.9"})
        if h.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.send(h, 401, {"error": {"code": "unauthorized", "message": "the token is not known"}})
        if self.script.get((h.command, path)):
            answers = self.script[(h.command, path)]
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            return self.send(h, status, body)
        if path == "/v1/events" and self.events is not None:
            return self.send_events(h)
        if path in self.bodies:
            return self.send_data(h, self.bodies[path])
        return self.answer_noun(h, path, query)

    def send_events(self, h):
        h.send_response(200)
        h.send_header("Content-Type", "text/event-stream")
        h.send_header("Connection", "close")
        h.end_headers()
        h.wfile.write(b": hello\n\n")
        while (event := self.events.get()) is not None:
            h.wfile.write(f"event: {event[0]}\ndata: {json.dumps(event[1])}\n\n".encode())
        h.close_connection = True

    def answer_noun(self, h, path, query):
        parts = path.split("/")[2:]
        items = self.items.get(parts[0])
        if items is None:
            return self.send(h, 404, {"error": {"code": "not_found", "message": f"there is no '{path}'"}})
        if len(parts) == 1:
            offset = int((re.search(r"offset=(\d+)", query) or [0, 0])[1])
            return self.send(h, 200, {"items": items[offset:offset + self.page], "total": len(items)})
        found = [i for i in items if isinstance(i, dict) and i["id"] == parts[1]]
        if not found:
            return self.send(h, 404, {"error": {"code": "not_found", "message": f"there is no '{parts[1]}'"}})
        if h.command == "DELETE":
            items.remove(found[0])
            h.send_response(204)
            h.end_headers()
            return None
        if h.command == "PATCH":
            found[0].update(self.requests[-1][2])
        return self.send(h, 200, found[0])


def environment(home, **more):
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "LANG": "C.UTF-8", "TERM": "xterm-256color", "TZ": "UTC",
           "ASAN_OPTIONS": "detect_leaks=1"}
    env.update({k: str(v) for k, v in more.items()})
    return env


class Cli:
    """`replant` with the settings of one center."""

    def __init__(self, home, url, ca, token=TOKEN):
        self.home = home
        self.env = environment(home, REPLANT_URL=url, REPLANT_CA=ca, REPLANT_TOKEN=token)

    def run(self, *args, env=None, **kw):
        kw.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run([REPLANT, *map(str, args)], env=self.env if env is None else env, text=True, encoding="utf-8",
                              errors="replace", capture_output=True, timeout=120, **kw)

    def out(self, *args, **kw):
        """stdout of a run that must succeed."""
        done = self.run(*args, **kw)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, *args):
        return subprocess.Popen([REPLANT, *map(str, args)], env=self.env, text=True, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def terminal(self, *args, columns=100, rows=30, env=None, answer=None):
        return Terminal([str(REPLANT), *map(str, args)], {**self.env, **(env or {})}, columns, rows, answer)


class Terminal:
    """A program on a pseudo terminal; `raw` is all it wrote."""

    def __init__(self, argv, env, columns, rows, answer):
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
            os.execve(argv[0], argv, env)
        self.raw = b""
        self.columns = columns
        self.answer = answer

    def pump(self, seconds):
        """Reads for so long; True when the program closed its terminal."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if not select.select([self.fd], [], [], left)[0]:
                continue
            try:
                data = os.read(self.fd, 65536)
            except OSError:
                return True
            if not data:
                return True
            self.raw += data
            if self.answer and self.answer[0] in self.raw:
                os.write(self.fd, self.answer[1])
                self.answer = None
        return False

    def until(self, text, seconds=30):
        """Reads until the screen has the text."""
        end = time.monotonic() + seconds
        while text not in self.screen():
            assert time.monotonic() < end and not self.pump(0.1), f"no '{text}' on the screen:\n{self.screen()}"

    def wait(self, seconds=60):
        """The exit code, and the screen as it is at the end."""
        if not self.pump(seconds):
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
            raise AssertionError(f"still running after {seconds} s: {self.raw[-2000:]!r}")
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        return code, self.screen()

    def screen(self):
        """Obeys the few sequences that replant uses; any other is an error."""
        lines, row, col = [""], 0, 0
        text = re.sub(r"\x1b\[\d*m", "", self.raw.decode("utf-8", "replace"))
        i = 0
        while i < len(text):
            move = re.compile(r"\x1b\[(\d*)([AJK])").match(text, i)
            if move:
                if move[2] == "A":
                    row = max(0, row - int(move[1] or 1))
                elif move[2] == "K":
                    lines[row] = lines[row][:col]
                else:
                    lines[row] = lines[row][:col]
                    del lines[row + 1:]
                i = move.end()
                continue
            c = text[i]
            if c == "\n":
                row += 1
                if row == len(lines):
                    lines.append("")
            elif c == "\r":
                col = 0
            else:
                assert c >= " " and c != "\x7f" and not "\x80" <= c < "\xa0", f"control character {c!r} on the terminal"
                line = lines[row].ljust(col)
                lines[row] = line[:col] + c + line[col + 1:]
                col += 1
            i += 1
        return "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n"
