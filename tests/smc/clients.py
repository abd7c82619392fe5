"""The published clients, fetched once, and a run of one of them."""

import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import tempfile

HERE = pathlib.Path(__file__).resolve().parent


class NoClients(Exception):
    pass


def modules(cache):
    """Their folder, made when it isn't there; its name has the digest of what is in it."""
    digest = hashlib.sha256((HERE / "package-lock.json").read_bytes()).hexdigest()[:16]
    folder = pathlib.Path(cache) / f"smc-clients-{digest}"
    if (folder / "node_modules").exists():
        return folder / "node_modules"
    if not shutil.which("npm"):
        raise NoClients("npm is not here")
    pathlib.Path(cache).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        for name in ("package.json", "package-lock.json"):
            shutil.copy2(HERE / name, work)
        # The lock has the digest of each package; no program of theirs is run to install it.
        done = subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=1",
                               "--fetch-retry-maxtimeout=2000"], cwd=work, capture_output=True, text=True,
                              timeout=300)
        if done.returncode:
            why = [line for line in done.stderr.splitlines() if " code " in line] or done.stderr.split("\n")[-3:] or ["no reason given"]
            raise NoClients(f"npm could not fetch the clients: {why[0]}")
        try:
            os.rename(work, folder)
        except OSError:  # somebody else was first
            pass
        pathlib.Path(work).mkdir(exist_ok=True)
    return folder / "node_modules"


class Drive:
    """drive.js under way: steps() yields what it tells."""

    def __init__(self, node_modules, kind, name, endpoint, key, secret, ca):
        env = dict(os.environ, NODE_MODULES=str(node_modules), NODE_EXTRA_CA_CERTS=str(ca), SMC_ENDPOINT=endpoint, SMC_ACCESS_KEY_ID=key,
                   SMC_ACCESS_KEY_SECRET=secret)
        self.process = subprocess.Popen(["node", HERE / "drive.js", kind, name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                        env=env, stdin=subprocess.DEVNULL)

    def steps(self):
        for line in self.process.stdout:
            yield json.loads(line)

    def end(self):
        self.process.stdout.close()
        said = self.process.stderr.read()
        self.process.stderr.close()
        return self.process.wait(60), said
