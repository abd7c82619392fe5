#!/usr/bin/python3
"""A PostgreSQL of the tests' own, in a folder that goes away, reached by a socket in it. `postgres.py COMMAND...` runs a command with
one: $REPLANT_TEST_DATABASE says where it is."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

USER = "postgres"


def programs():
    """Debian keeps them beside the PATH, by version."""
    found = sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[4]))
    if found:
        return found[-1].parent
    return pathlib.Path(shutil.which("initdb")).parent if shutil.which("initdb") else None


class Server:
    def __init__(self):
        self.bin = programs()
        # Short: a socket's path has 107 bytes.
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="replant-pg.", dir="/tmp"))
        self.count = 0
        self.log = open(self.folder / "log", "ab")
        # It refuses to run as root.
        self.as_other = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"] if os.geteuid() == 0 else []
        if self.as_other:
            shutil.chown(self.folder, "nobody", "nogroup")
        self.run("initdb", "-D", self.folder / "data", "-U", USER, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync",
                 "--no-instructions")
        self.start()

    def run(self, program, *args):
        subprocess.run([*self.as_other, self.bin / program, *args], check=True, cwd=self.folder, stdin=subprocess.DEVNULL,
                       stdout=self.log, stderr=self.log)

    def start(self):
        # What is killed here are its clients, so nothing has to survive on the disk.
        self.process = subprocess.Popen(
            [*self.as_other, self.bin / "postgres", "-D", self.folder / "data", "-k", self.folder, "-c", "listen_addresses=",
             "-c", "fsync=off", "-c", "max_connections=300", "-c", "shared_buffers=32MB", "-c", "autovacuum_naptime=1h"],
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, start_new_session=True)
        end = time.monotonic() + 60
        while subprocess.run([self.bin / "pg_isready", "-q", "-h", self.folder]).returncode:
            if time.monotonic() > end or self.process.poll() is not None:
                raise AssertionError(f"PostgreSQL didn't start:\n{(self.folder / 'log').read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def where(self, database):
        return f"host={self.folder} user={USER} dbname={database}"

    def new_database(self):
        self.count += 1
        name = f"replant{self.count}"
        self.run("createdb", "-h", self.folder, "-U", USER, "-T", "template0", name)
        return self.where(name)

    def stop(self):
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    def close(self):
        self.stop()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def main():
    if not programs():
        print("PostgreSQL is not installed")
        return 77  # meson: skipped
    server = Server()
    try:
        return subprocess.run(sys.argv[1:], env=dict(os.environ, REPLANT_TEST_DATABASE=server.where("postgres"))).returncode
    finally:
        server.close()


if __name__ == "__main__":
    sys.exit(main())
