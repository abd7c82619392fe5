"""An address given to the destination: what the conversion writes for each tool, and what the tool makes of it."""

import configparser
import json
import os
import shutil
import subprocess

import pytest

from tests.guest.test_steps import INTERFACES, TOOL, VOLUMES, Tree

PLAN = {"address": "192.0.2.7", "prefix": 24, "gateway": "192.0.2.1", "nameservers": ["192.0.2.53", "198.51.100.53"],
        "mac": None}
NETWORKD = "/etc/systemd/network/00-replant-static.network"
NETPLAN = "/etc/netplan/99-replant-static.yaml"
MANAGER = "/etc/NetworkManager/system-connections/replant.nmconnection"
MANAGER_UNIT = "/etc/systemd/system/multi-user.target.wants/NetworkManager.service"


def volumes(**plan):
    return VOLUMES | {"network": PLAN | plan}


@pytest.fixture
def tree(tmp_path):
    return Tree(tmp_path)


def networkd(tree):
    """A list of values for each key: systemd's files may repeat one."""
    found, section = {}, None
    for line in tree.read(NETWORKD).splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, value = line.split("=", 1)
            found.setdefault(f"{section}.{key}", []).append(value)
    return found


def assignments(text):
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


EXPECTED = {"Match.Name": ["e*"], "Network.Address": ["192.0.2.7/24"], "Network.Gateway": ["192.0.2.1"],
            "Network.DNS": PLAN["nameservers"]}


def test_ifupdown(tree):
    tree.write("/sbin/ifup", "")
    tree.write("/etc/network/interfaces", INTERFACES)
    tree.write("/etc/resolv.conf", "search example.org\nnameserver 203.0.113.53\noptions rotate\n")
    tree.convert(volumes())
    text = tree.read("/etc/network/interfaces")
    assert text.replace("#replant# ", "") == INTERFACES and "#replant# " in text
    assert networkd(tree) == EXPECTED
    assert not tree.exists("/etc/systemd/network/99-replant-dhcp.network")
    # nothing but this file names the servers to who doesn't ask systemd-resolved
    assert tree.read("/etc/resolv.conf").split("\n") == [
        "search example.org", "options rotate", "nameserver 192.0.2.53", "nameserver 198.51.100.53", ""]
    step = tree.steps["network"]
    assert step["summary"].endswith("the card gets 192.0.2.7/24 (systemd-networkd)")
    (resolv,) = [x for x in step["files"] if x["path"] == "/etc/resolv.conf"]
    assert resolv["old"].startswith("search example.org\nnameserver 203.0.113.53\n")
    # what was fixed before is no loss to be told of
    assert not [note for note in step["notes"] if "fixed addresses" in note]


def test_networkd_goes_before_the_servers_own(tree):
    tree.write("/etc/systemd/network/10-lan.network", "[Match]\nName=en*\n[Network]\nBridge=br0\n")
    tree.convert(volumes())
    assert networkd(tree) == EXPECTED
    assert sorted(os.listdir(tree.path / "etc/systemd/network"))[0] == os.path.basename(NETWORKD)
    assert any("bonds, bridges or VLANs" in note for note in tree.steps["network"]["notes"])


def test_little_is_enough(tree):
    tree.convert(volumes(gateway=None, nameservers=[]))
    assert networkd(tree) == {"Match.Name": ["e*"], "Network.Address": ["192.0.2.7/24"]}
    assert not tree.exists("/etc/resolv.conf")


def test_a_card_by_its_own_address(tree):
    tree.convert(volumes(mac="52:54:00:12:34:56"))
    assert networkd(tree)["Match.MACAddress"] == ["52:54:00:12:34:56"] and "Match.Name" not in networkd(tree)


@pytest.mark.parametrize("there", [False, True])
def test_moved_twice(tree, there):
    """What an earlier move wrote doesn't stand against what this one says."""
    first, second = (None, volumes()) if there else (volumes(), None)
    tree.convert(first)
    tree.convert(second)
    assert tree.exists(NETWORKD) == there and tree.exists("/etc/systemd/network/99-replant-dhcp.network") != there


def test_resolv_conf_of_systemd_stays_a_link(tree):
    (tree.path / "etc").mkdir(exist_ok=True)
    os.symlink("../run/systemd/resolve/stub-resolv.conf", tree.path / "etc/resolv.conf")
    tree.convert(volumes())
    assert os.readlink(tree.path / "etc/resolv.conf") == "../run/systemd/resolve/stub-resolv.conf"
    assert tree.steps["network"]["notes"] == []


def test_resolv_conf_of_somebody_else(tree):
    (tree.path / "etc").mkdir(exist_ok=True)
    tree.write("/usr/lib/other.conf", "nameserver 203.0.113.53\n")
    os.symlink("../usr/lib/other.conf", tree.path / "etc/resolv.conf")
    tree.convert(volumes())
    assert tree.read("/usr/lib/other.conf") == "nameserver 203.0.113.53\n"
    assert "is a link to '../usr/lib/other.conf'" in tree.steps["network"]["notes"][0]


def netplan_tree(tree):
    tree.write("/usr/sbin/netplan", "")
    tree.write("/etc/netplan/50-cloud-init.yaml", "network: {ethernets: {enp0s3: {addresses: [203.0.113.7/24]}}}\n")


def test_netplan(tree):
    netplan_tree(tree)
    tree.convert(volumes())
    assert sorted(os.listdir(tree.path / "etc/netplan")) == ["50-cloud-init.yaml.replant", os.path.basename(NETPLAN)]
    assert (tree.path / NETPLAN[1:]).stat().st_mode & 0o777 == 0o600
    assert tree.steps["network"]["summary"].startswith("the card gets 192.0.2.7/24 (netplan)")


@pytest.mark.skipif(not shutil.which("netplan"), reason="netplan is not installed")
def test_netplan_makes_that_of_it(tree):
    """netplan's own generator."""
    netplan_tree(tree)
    tree.convert(volumes())
    subprocess.run(["netplan", "generate", "--root-dir", tree.path], check=True)
    (made,) = (tree.path / "run/systemd/network").glob("*.network")
    lines = made.read_text().splitlines()
    for line in ("Name=e*", "Address=192.0.2.7/24", "DNS=192.0.2.53", "DNS=198.51.100.53", "Gateway=192.0.2.1"):
        assert line in lines, lines
    assert not [line for line in lines if line.startswith("DHCP=")]


def test_network_manager(tree):
    tree.write(MANAGER_UNIT, "")
    tree.write("/etc/resolv.conf", "# Generated by NetworkManager\nnameserver 203.0.113.53\n")
    tree.convert(volumes())
    assert (tree.path / MANAGER[1:]).stat().st_mode & 0o777 == 0o600
    file = configparser.ConfigParser()
    file.read_string(tree.read(MANAGER))
    assert dict(file["ipv4"]) == {"method": "manual", "address1": "192.0.2.7/24,192.0.2.1",
                                  "dns": "192.0.2.53;198.51.100.53;"}
    assert file["connection"]["type"] == "ethernet" and "interface-name" not in file["connection"]
    assert "203.0.113.53" in tree.read("/etc/resolv.conf"), "that is NetworkManager's to write"
    tree.convert(None)
    assert not tree.exists(MANAGER)


@pytest.mark.skipif(not shutil.which("nmcli"), reason="NetworkManager is not installed")
def test_network_manager_makes_that_of_it(tree):
    """Its own reader of keyfiles."""
    tree.write(MANAGER_UNIT, "")
    tree.convert(volumes(mac="52:54:00:12:34:56"))
    done = subprocess.run(["nmcli", "--offline", "connection", "modify", "connection.id", "replant"],
                          input=tree.read(MANAGER), capture_output=True, text=True, check=True)
    file = configparser.ConfigParser()
    file.read_string(done.stdout)
    assert file["ipv4"]["address1"] == "192.0.2.7/24,192.0.2.1" and file["ipv4"]["method"] == "manual"
    assert file["ipv4"]["dns"] == "192.0.2.53;198.51.100.53;"
    assert file["ethernet"]["mac-address"] == "52:54:00:12:34:56" and file["connection"]["autoconnect-priority"] == "999"


def test_ifcfg(tree):
    scripts = "/etc/sysconfig/network-scripts"
    old = "DEVICE=eth0\nBOOTPROTO=none\nIPADDR=203.0.113.7\nPREFIX=24\n"
    tree.write(f"{scripts}/ifup", "")
    tree.write(f"{scripts}/ifcfg-lo", "DEVICE=lo\n")
    tree.write(f"{scripts}/ifcfg-eth0", old)
    tree.write(f"{scripts}/route-eth0", "10.0.0.0/8 via 203.0.113.1\n")
    tree.convert(volumes())
    assert sorted(os.listdir(tree.path / scripts[1:])) == ["ifcfg-lan0", "ifcfg-lo", "ifup", "replant"]
    assert tree.read(f"{scripts}/replant/ifcfg-eth0") == old
    assert assignments(tree.read(f"{scripts}/ifcfg-lan0")) == {
        "DEVICE": "lan0", "NAME": "lan0", "TYPE": "Ethernet", "ONBOOT": "yes", "BOOTPROTO": "none",
        "IPADDR": "192.0.2.7", "PREFIX": "24", "GATEWAY": "192.0.2.1", "DNS1": "192.0.2.53", "DNS2": "198.51.100.53"}
    # the name it goes by is given by udev
    assert "OriginalName=e*" in tree.read("/etc/systemd/network/00-replant.link")
    tree.convert(None)
    assert assignments(tree.read(f"{scripts}/ifcfg-lan0"))["BOOTPROTO"] == "dhcp"


def test_wicked(tree):
    place = "/etc/sysconfig/network"
    tree.write("/etc/systemd/system/multi-user.target.wants/wicked.service", "")
    tree.write(f"{place}/ifcfg-eth0", "BOOTPROTO='static'\nIPADDR='203.0.113.7/24'\n")
    tree.write(f"{place}/ifcfg-lo", "IPADDR=127.0.0.1\n")
    tree.write(f"{place}/config", 'NETCONFIG_DNS_STATIC_SERVERS=""\nOTHER="x"\n')
    tree.convert(volumes())
    assert sorted(os.listdir(tree.path / place[1:])) == ["config", "ifcfg-lan0", "ifcfg-lo", "ifroute-lan0", "replant"]
    assert assignments(tree.read(f"{place}/ifcfg-lan0")) == {"STARTMODE": "'auto'", "BOOTPROTO": "'static'",
                                                             "IPADDR": "'192.0.2.7/24'"}
    assert tree.read(f"{place}/ifroute-lan0") == "default 192.0.2.1 - -\n"
    assert assignments(tree.read(f"{place}/config")) == {
        "OTHER": '"x"', "NETCONFIG_DNS_STATIC_SERVERS": '"192.0.2.53 198.51.100.53"'}


def test_cloud_init_does_not_undo_it(tree):
    tree.write("/usr/bin/cloud-init", "")
    tree.convert(volumes())
    assert tree.read("/etc/cloud/cloud.cfg.d/99-replant-network.cfg").splitlines()[-1] == "network: {config: disabled}"
    assert tree.exists("/etc/cloud/cloud-init.disabled")
    tree.convert(None)
    assert not tree.exists("/etc/cloud/cloud.cfg.d/99-replant-network.cfg")


@pytest.mark.parametrize("plan, says", [
    ({"address": "192.0.2.7/24"}, "no IPv4 address"), ({"address": "192.0.2.7\nDHCP=yes"}, "no IPv4 address"),
    ({"address": None}, "no IPv4 address"), ({"prefix": 31}, "prefix"), ({"prefix": "24"}, "prefix"),
    ({"address": "192.0.2.0"}, "that of the network"), ({"address": "192.0.2.255"}, "broadcast"),
    ({"gateway": "198.51.100.1"}, "not in the network"), ({"gateway": "192.0.2.7"}, "the server itself"),
    ({"nameservers": ["1.1.1.1"] * 2}, "twice"), ({"nameservers": ["1.1.1.1", "1.1.1.2", "1.1.1.3", "1.1.1.4"]}, "at most 3"),
    ({"nameservers": ["$(reboot)"]}, "no IPv4 address"), ({"mac": "52:54:00:12:34:5"}, "no address of a card"),
    ({"mac": "52:54:00:12:34:56\n"}, "no address of a card"), ({"address": "127.0.0.1"}, "can have")])
def test_nonsense_is_refused_before_anything_changes(tree, plan, says):
    before = tree.snapshot()
    done = subprocess.run([TOOL, tree.path, json.dumps(volumes(**plan))], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and says in done.stderr
    assert tree.snapshot() == before

