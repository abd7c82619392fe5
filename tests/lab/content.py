"""What is on the servers besides Debian: files made on the host, the same ones every time.

A content is a function that fills a Tree; recipes in servers.py name the ones they want.
"""

import hashlib
import io
import pathlib
import random
import tarfile

GUEST = pathlib.Path(__file__).with_name("guest")
EPOCH = 1700000000  # files are dated from here, so that two builds agree


class Tree:
    """Files to unpack over the new server, and commands to run in it afterwards."""

    def __init__(self, target):
        self.tar = tarfile.open(target, "w", format=tarfile.PAX_FORMAT)
        self.commands = []
        self.made = set()

    def close(self):
        self.tar.close()

    def _add(self, path, kind, mode, data=b"", target="", owner=(0, 0), mtime=EPOCH):
        parent = str(pathlib.PurePosixPath(path).parent).lstrip("/")
        if parent and parent != "." and parent not in self.made:
            self.folder("/" + parent)
        info = tarfile.TarInfo(path.lstrip("/"))
        info.type, info.mode, info.size, info.linkname, info.mtime = kind, mode, len(data), target, mtime
        info.uid, info.gid = owner
        self.tar.addfile(info, io.BytesIO(data))

    def folder(self, path, mode=0o755, owner=(0, 0)):
        self.made.add(path.lstrip("/"))
        self._add(path, tarfile.DIRTYPE, mode, owner=owner)

    def file(self, path, data, mode=0o644, owner=(0, 0), mtime=EPOCH):
        body = data.encode() if isinstance(data, str) else data
        self._add(path, tarfile.REGTYPE, mode, body, owner=owner, mtime=mtime)

    def link(self, path, target):
        self._add(path, tarfile.SYMTYPE, 0o777, target=target)

    def run(self, command):
        """A line of shell to run in the new server (chroot) after everything is unpacked."""
        self.commands.append(command)

    def service(self, name, text):
        self.file(f"/etc/systemd/system/{name}.service", text)
        self.link(f"/etc/systemd/system/multi-user.target.wants/{name}.service", f"/etc/systemd/system/{name}.service")


def tools(tree):
    """lab-check and lab-writer, to be run by hand or by a test (they need python3)."""
    for name in ("lab-check", "lab-writer"):
        tree.file(f"/usr/local/bin/{name}", (GUEST / name).read_bytes(), 0o755)


def writer(tree):
    """Keeps writing to /srv/data from boot to power-off."""
    tree.folder("/srv/data")
    tree.service("lab-writer", """[Unit]
Description=Writes all the time, for consistency checks
RequiresMountsFor=/srv/data

[Service]
ExecStart=/usr/local/bin/lab-writer /srv/data
Restart=always

[Install]
WantedBy=multi-user.target
""")


def special(tree):
    """One of everything a copy tends to lose: on the root filesystem and on /srv/data."""
    tree.file("/root/special.sh", (GUEST / "special.sh").read_bytes())
    tree.run("sh /root/special.sh /var/lib/special")
    tree.run("sh /root/special.sh /srv/data/special")
    tree.run("rm /root/special.sh")


def _text(rng, size):
    words = ["GET", "POST", "/index.html", "/api/v1/orders", "200", "404", "500", "cache", "miss", "hit", "worker"]
    lines, length = [], 0
    while length < size:
        line = f"{EPOCH + len(lines)} host{rng.randrange(9)} " + " ".join(rng.choices(words, k=8))
        lines.append(line)
        length += len(line) + 1
    return "\n".join(lines).encode() + b"\n"


def data(top="/srv/data", random_mib=96, text_mib=96, small=2000):
    """Incompressible, compressible and many small files under top, and top/SHA256SUMS over them all."""

    def fill(tree):
        rng = random.Random(top)
        sums = []

        def add(name, body):
            tree.file(f"{top}/{name}", body, mtime=EPOCH + rng.randrange(10**6))
            sums.append(f"{hashlib.sha256(body).hexdigest()}  {name}\n")

        for i in range(random_mib // 8):
            add(f"random/{i:03}.bin", rng.randbytes((8 << 20) - rng.randrange(5000)))
        sample = _text(rng, 4 << 20)
        for i in range(text_mib // 8):
            add(f"text/{i:03}.log", b"%d\n" % i + 2 * sample)
        for i in range(small):
            add(f"small/{i % 37:02}/{i:05}", rng.randbytes(rng.randrange(6000)))
        tree.file(f"{top}/SHA256SUMS", "".join(sums))

    return fill


def web(tree):
    """Pages for nginx, with its access log growing under /var/log as usual."""
    rng = random.Random("web")
    tree.file("/var/www/html/index.html", "<!doctype html><title>lab</title><h1>It is the lab's server</h1>\n")
    for i in range(60):
        body = _text(rng, rng.randrange(20000))
        tree.file(f"/var/www/html/page{i}.html", b"<!doctype html><pre>" + body + b"</pre>\n")


def cron(tree):
    tree.file("/etc/cron.d/lab", "* * * * * root date >>/var/log/lab-cron.log\n")
