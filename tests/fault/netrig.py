"""Two hosts in network namespaces with a cable between them, whose bytes are counted and which can be pulled."""
import os
import pathlib
import subprocess
import time

SOURCE, CENTER, OTHER = "10.99.0.1", "10.99.0.2", "10.99.0.{}"
MIB = 1 << 20


def sh(*argv, check=True):
    return subprocess.run([str(a) for a in argv], check=check, capture_output=True, text=True, timeout=30)


class Host:
    def __init__(self, name, address):
        self.name, self.address = name, address
        self.prefix = ["nsenter", f"--net=/run/netns/{name}"]  # not `ip netns exec`: the mounts stay ours
        sh("ip", "netns", "add", name)
        self.holder = subprocess.Popen([*self.prefix, "sleep", "infinity"])
        self.ip("link", "set", "lo", "up")

    def ip(self, *argv, check=True):
        return sh("ip", "-n", self.name, *argv, check=check)

    def tc(self, *argv, check=True):
        return sh(*self.prefix, "tc", *argv, check=check)

    def plug(self):
        self.ip("addr", "add", f"{self.address}/24", "dev", "cable")
        self.ip("link", "set", "cable", "up")

    def move(self, address):
        """The host has another address from now on, and nothing tells its connections."""
        self.ip("addr", "add", f"{address}/24", "dev", "cable")
        self.ip("addr", "del", f"{self.address}/24", "dev", "cable")
        # A second address of the same network is a secondary one, and goes with the first.
        self.ip("addr", "replace", f"{address}/24", "dev", "cable")
        self.address = address

    def sent(self):
        """Bytes this host has put on the cable, headers and all; quick enough to be asked in a loop."""
        for line in pathlib.Path(f"/proc/{self.holder.pid}/net/dev").read_text().splitlines():
            name, _, rest = line.partition(":")
            if name.strip() == "cable":
                return int(rest.split()[8])
        raise AssertionError("no cable")

    def close(self):
        self.holder.kill()
        self.holder.wait()
        sh("ip", "netns", "del", self.name, check=False)


class Net:
    def __init__(self):
        tag = f"rpl{os.getpid()}"
        self.source = self.center = None
        try:
            self.source, self.center = Host(tag + "s", SOURCE), Host(tag + "c", CENTER)
            sh("ip", "link", "add", "cable", "netns", self.source.name, "type", "veth", "peer", "name", "cable",
               "netns", self.center.name)
            self.source.plug()
            self.center.plug()
            end = time.time() + 5  # the namespaces of the holders, and the link, take a moment
            while time.time() < end and "cable" not in pathlib.Path(f"/proc/{self.source.holder.pid}/net/dev").read_text():
                time.sleep(0.01)
        except BaseException:
            self.close()
            raise

    def cut(self):
        self.center.ip("link", "set", "cable", "down")

    def mend(self):
        self.center.ip("link", "set", "cable", "up")

    def vanish(self):
        """What either sends arrives nowhere, and nothing says so: no carrier lost, no reset, no ICMP. What a shaped cable
        still holds is lost, too: else its answers trickle in for seconds."""
        self.gone = [(self.center, self.source.address), (self.source, self.center.address)]
        for host, other in self.gone:
            host.ip("neigh", "replace", other, "lladdr", "02:00:00:00:00:99", "dev", "cable", "nud", "permanent")
            host.tc("qdisc", "del", "dev", "cable", "root", check=False)

    def appear(self):
        for host, other in self.gone:
            host.ip("neigh", "del", other, "dev", "cable", check=False)  # gone with a moved address

    def shape(self, rate, limit="256k"):
        self.source.tc("qdisc", "replace", "dev", "cable", "root", "tbf", "rate", rate, "burst", "64k", "limit", limit)

    def unshape(self):
        self.source.tc("qdisc", "del", "dev", "cable", "root")

    def close(self):
        for h in (self.source, self.center):
            if h:
                h.close()
