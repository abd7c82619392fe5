"""A given address in the booted system: in a network where it works, and where DHCP would give another."""

import json

import pytest

from tests.boot.conftest import long
from tests.boot.test_convert_boot import Provider, provider  # noqa: F401
from tests.lab import build, servers

pytestmark = pytest.mark.xdist_group("address")

PLAN = {"address": "198.51.100.77", "prefix": 26, "gateway": "198.51.100.65", "nameservers": ["198.51.100.70"], "mac": None}


@long("tests/guest/test_address.py has the files it writes")
def test_a_given_address_boots(provider):  # noqa: F811
    job, _ = provider.job(build.disks(servers.find("debian13-plain")))
    provider.call("convert", job, json.dumps({"disks": [{"source": "/dev/sda"}], "network": PLAN}))
    image = provider.new_id("image")
    provider.call("image-create", job, image, json.dumps({"network": PLAN}))
    _, report = provider.call("test-boot", image)
    assert report["verified"], report
    assert [a["address"] for a in report["addresses"] if ":" not in a["address"]] == [PLAN["address"]]

    # The same system in another's place: nothing gives it the address that is asked for.
    _, report = provider.call("test-boot", image, json.dumps({"network": dict(PLAN, address="198.51.100.78")}))
    assert [p["code"] for p in report["problems"]] == ["wrong_address"] and not report["verified"], report
