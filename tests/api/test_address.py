"""The address a job gives to its destination: what is taken for one, what "keep" means, who is told."""

import json
import os
import sys
import time

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from cli_tools import Cli  # noqa: E402

CARDS = [{"name": "lo", "kind": "loopback", "addresses": [{"family": "inet", "address": "127.0.0.1", "prefix": 8}]},
         {"name": "eth0", "kind": "physical", "addresses": [{"family": "inet6", "address": "fe80::1", "prefix": 64},
                                                            {"family": "inet", "address": "10.1.0.7", "prefix": 16}]},
         {"name": "eth1", "kind": "physical", "addresses": [{"family": "inet", "address": "192.0.2.7", "prefix": 24}]}]
NETWORK = {"interfaces": CARDS, "dns": ["127.0.0.53", "10.1.0.53", "fe80::53", "10.1.0.53", "10.1.0.54"], "search": [],
           "default_routes": [{"family": "inet", "gateway": "192.0.2.1", "interface": "eth1", "metric": 200},
                              {"family": "inet6", "gateway": "fe80::2", "interface": "eth1", "metric": 1},
                              {"family": "inet", "gateway": "10.1.0.1", "interface": "eth0", "metric": 100}]}


def inventory(**network):
    return {"os": {"name": "x"}, "disks": [{"path": "/dev/vda", "size": 1, "used": 1}], "network": NETWORK | network}


def finished(center, agent, **body):
    """A whole migration: what the conversion was told, and what stays of it with the image."""
    job = center.started_job(agent.source, **body)
    agent.send_all()
    image = center.wait_job(job)["image"]
    told = json.loads((center.script / "convert.given").read_text()).get("network")
    assert center.ok("GET", f"/v1/images/{image}")["manifest"]["meta"].get("network") == told
    return told


@pytest.mark.parametrize("field, parameters", [
    ("address", {"address": "10.1.0.7"}), ("address", {"address": "10.1.0.7/"}), ("address", {"address": "10.1.0/24"}),
    ("address", {"address": "10.1.0.07/24"}), ("address", {"address": "10.1.0.7/24 "}), ("address", {"address": "auto"}),
    ("address", {"address": "10.1.0.7/31"}), ("address", {"address": "10.1.0.7/7"}), ("address", {"address": "fe80::1/64"}),
    ("address", {"address": "10.1.0.0/24"}), ("address", {"address": "10.1.0.255/24"}), ("address", {"address": ""}),
    ("address", {"address": "127.0.0.2/8"}), ("address", {"address": "224.0.0.5/24"}), ("address", {"address": 7}),
    ("address", {"address": "169.254.1.1/16"}), ("gateway", {"gateway": "10.1.0.1"}), ("nameservers", {"nameservers": "10.1.0.1"}),
    ("gateway", {"address": "10.1.0.7/24", "gateway": "10.1.1.1"}), ("gateway", {"address": "10.1.0.7/24", "gateway": "10.1.0.7"}),
    ("gateway", {"address": "10.1.0.7/24", "gateway": "10.1.0.255"}), ("gateway", {"address": "10.1.0.7/24", "gateway": "router"}),
    ("nameservers", {"address": "10.1.0.7/24", "nameservers": "1.1.1.1,1.1.1.1"}),
    ("nameservers", {"address": "10.1.0.7/24", "nameservers": "1.1.1.1;1.1.1.2"}),
    ("nameservers", {"address": "10.1.0.7/24", "nameservers": ",1.1.1.1"}),
    ("nameservers", {"address": "keep", "nameservers": "1.1.1.1,1.1.1.2,1.1.1.3,1.1.1.4"}),
    ("nameservers", {"address": "10.1.0.7/24", "nameservers": "224.0.0.1"})])
def test_what_is_no_address(center, field, parameters):
    if not hasattr(center, "lasting"):
        center.lasting = center.agent()
    got = center.post("/v1/jobs", {"source": center.lasting.source, "parameters": parameters})
    assert (got.status, got.code, got.field) == (400, "bad_field", f"parameters.{field}"), got
    got = center.post("/v1/templates", {"name": "t", "job": {"parameters": parameters}})
    assert (got.status, got.code, got.field) == (400, "bad_field", f"job.parameters.{field}"), got


def test_dhcp_says_nothing(center):
    assert finished(center, center.agent(inventory=inventory())) is None


def test_a_given_address(center):
    agent = center.agent(inventory=inventory())
    told = finished(center, agent, parameters={"address": "198.51.100.7/25", "gateway": "198.51.100.1",
                                               "nameservers": "9.9.9.9,198.51.100.1"})
    assert told == {"address": "198.51.100.7", "prefix": 25, "gateway": "198.51.100.1",
                    "nameservers": ["9.9.9.9", "198.51.100.1"], "mac": None}


def test_it_may_change_before_the_job_runs(center):
    agent = center.agent(inventory=inventory())
    job = center.new_job(agent.source, parameters={"address": "198.51.100.7/25", "gateway": "198.51.100.1"})
    patch = lambda **p: center.call("PATCH", f"/v1/jobs/{job}", {"parameters": p})
    assert patch(address="198.51.101.7/25").field == "parameters.gateway"
    assert patch(address="198.51.101.7/25", gateway="").status == 200
    assert "gateway" not in center.job(job)["parameters"]
    assert patch(address="dhcp").json["parameters"]["address"] == "dhcp"
    center.ok("DELETE", f"/v1/jobs/{job}")


def test_that_of_the_source_is_kept(center):
    """The one on the way out of the lowest metric, with the name servers that are not its own."""
    told = finished(center, center.agent(inventory=inventory()), parameters={"address": "keep"})
    assert told == {"address": "10.1.0.7", "prefix": 16, "gateway": "10.1.0.1", "nameservers": ["10.1.0.53", "10.1.0.54"],
                    "mac": None}


def test_what_is_given_goes_before_what_is_kept(center):
    told = finished(center, center.agent(inventory=inventory()), parameters={
        "address": "keep", "gateway": "10.1.0.254", "nameservers": "9.9.9.9"})
    assert (told["address"], told["gateway"], told["nameservers"]) == ("10.1.0.7", "10.1.0.254", ["9.9.9.9"])


def test_the_only_card_needs_no_route(center):
    told = finished(center, center.agent(inventory=inventory(default_routes=[], interfaces=CARDS[:2])),
                    parameters={"address": "keep"})
    assert (told["address"], told["gateway"]) == ("10.1.0.7", None)


def unknown(center, job):
    """What the job failed with, before anything was sent."""
    failed = center.wait_job(job, "in_error")
    assert (failed["stage"], failed["error"]["code"]) == ("preparing", "address_unknown")
    return failed["error"]["message"]


@pytest.mark.parametrize("network, says", [
    ({"default_routes": []}, "several addresses"), ({"interfaces": CARDS[:1], "default_routes": []}, "no IPv4 address"),
    ({"default_routes": [{"gateway": "10.9.0.1", "interface": "eth0", "metric": 0}]}, "not in the network 10.1.0.0/16"),
    ({"default_routes": [{"gateway": "10.1.0.1", "interface": 7, "metric": 0}, "x"], "interfaces": "none"}, "no IPv4 address")])
def test_a_source_without_one_to_keep(center, network, says):
    agent = center.agent(inventory=inventory(**network))
    job = center.started_job(agent.source, parameters={"address": "keep"})
    assert says in unknown(center, job)
    # and what its message says helps
    center.ok("PATCH", f"/v1/jobs/{job}", {"parameters": {"address": "10.1.0.9/16"}})
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    agent.send_all()
    center.wait_job(job)


def instance(center, settings, seen):
    name, now = f"instance-{time.monotonic_ns():016x}", time.time()
    with center.database() as db:
        db.execute("INSERT INTO instances (id, name, region, state, settings, seen, deleting, created, updated) VALUES "
                   "(?, ?, 'local', 'off', ?, ?, 0, ?, ?)", (name, name, json.dumps(settings), json.dumps(seen), now, now))
    return name


@pytest.mark.parametrize("settings, seen, expected", [
    ({"network": "user"}, {"addresses": ["fe80::1", "10.0.2.15"]}, ("10.0.2.15", 24, "10.0.2.2", ["10.0.2.3"])),
    ({"network": "user", "address": "10.7.0.9"}, {"addresses": []}, ("10.7.0.9", 24, "10.7.0.2", ["10.7.0.3"])),
    ({"network": "user"}, {"addresses": ["10.7.0.2"]}, ("10.7.0.2", 24, "10.7.0.254", ["10.7.0.3"])),
    ({"network": "lan"}, {"addresses": ["10.8.0.9/22"]}, ("10.8.0.9", 22, None, [])),
    ({"network": "lan"}, {"addresses": ["10.8.0.9"]}, "how long the network"),
    ({"network": "lan"}, {"addresses": ["10.8.0.9/x", 7]}, "start it once"), ({}, {}, "start it once")])
def test_that_of_the_instance_is_kept(center, settings, seen, expected):
    agent = center.agent(inventory=inventory())
    job = center.new_job(agent.source, parameters={"address": "keep"})
    with center.database() as db:
        db.execute("UPDATE jobs SET instance = ? WHERE id = ?", (instance(center, settings, seen), job))
    center.ok("POST", f"/v1/jobs/{job}/start", {})
    if isinstance(expected, str):
        assert expected in unknown(center, job)
        return
    agent.send_all()
    center.wait_job(job)
    told = json.loads((center.script / "convert.given").read_text())["network"]
    assert (told["address"], told["prefix"], told["gateway"], told["nameservers"]) == expected


def test_the_command_line(center):
    cli = Cli(center.folder, f"https://127.0.0.1:{center.port}", center.state / "ca.pem", center.token)
    agent = center.agent(inventory=inventory())
    job = cli.out("jobs", "create", agent.source, "--name", "by hand", "--address", "198.51.100.7/25", "--gateway", "198.51.100.1",
                  "--nameserver", "9.9.9.9", "--nameserver", "198.51.100.1")
    (job,) = center.ok("GET", "/v1/jobs?name=by hand".replace(" ", "%20"))["items"]
    assert job["parameters"]["nameservers"] == "9.9.9.9,198.51.100.1"
    assert "198.51.100.7/25, gateway 198.51.100.1, name servers 9.9.9.9,198.51.100.1" in cli.out("jobs", "show", job["id"])
    cli.out("jobs", "set", job["id"], "--address", "keep", "--gateway", "")
    assert center.job(job["id"])["parameters"]["address"] == "keep"
    done = cli.run("jobs", "set", job["id"], "--address", "198.51.100.127/25")
    assert done.returncode == 1 and "broadcast address" in done.stderr
