"""A server as files: an agent of the build tree on the disk of a server of the laboratory, which isn't running, and on a disk of data."""

import os
import pathlib
import subprocess

from . import build, servers


def data_disk(path, mib):
    """An ext4 filesystem with so much in it that nothing can pack."""
    tree = pathlib.Path(f"{path}.tree")
    tree.mkdir()
    for number in range(max(1, mib // 16)):
        with open(tree / f"file{number}", "wb") as out:
            for _ in range(min(16, mib)):
                out.write(os.urandom(1 << 20))
    with open(path, "wb") as out:
        out.truncate((mib + mib // 4 + 64) << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", "-d", tree, path], check=True, stdin=subprocess.DEVNULL)
    subprocess.run(["rm", "-rf", tree], check=True)
    return path


class Rack:
    """Use with `with`; needs root. `id` is the source's, as the center knows it."""

    def __init__(self, center, folder, server="debian13-plain", data_mib=0):
        self.center, self.folder = center, pathlib.Path(folder)
        (image,) = build.disks(servers.find(server))
        system = self.folder / "system.img"
        subprocess.run(["qemu-img", "convert", "-O", "raw", str(image), str(system)], check=True)
        self.disks = [str(system)] + ([str(data_disk(self.folder / "data.img", data_mib))] if data_mib else [])
        self.process = self.id = None

    def __enter__(self):
        code = self.center.cli("codes", "create", "--name", "rack", "--uses", "1")["code"]
        places = ["--config", str(self.folder / "agent"), "--runtime", str(self.folder / "run")]
        disks = [word for disk in self.disks for word in ("--disk", disk)]
        # Twice the same machine is one source: each is one of its own.
        subprocess.run([self.center.program("replant-agent"), "enroll", "--center", f"https://127.0.0.1:{self.center.port}", *disks,
                        "--no-service", *places], check=True, env=dict(os.environ, REPLANT_CODE=code), stdout=subprocess.DEVNULL)
        with open(self.folder / "agent.log", "ab") as log:
            self.process = subprocess.Popen([self.center.program("replant-agent"), "run", *places], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        self.id = self.center.wait_source()["id"]
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(30)
