"""Very many connections: strangers that sit idle take nobody's place, and agents that are known keep theirs."""

import http.client
import resource
import socket
import time

import pytest

from harness import SLOW

FILES = 12000


@pytest.fixture
def files():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    if before[1] != resource.RLIM_INFINITY and before[1] < FILES:
        pytest.skip(f"a process may have {before[1]} files here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def crowd(center, n, addresses):
    out = []
    for i in range(n):
        s = socket.socket()
        s.bind((f"127.2.{i % addresses // 250}.{i % addresses % 250 + 1}", 0))
        s.connect(("127.0.0.1", center.port))
        out.append(s)
    return out


def is_open(s):
    """Has the center not hung up?"""
    s.setblocking(False)
    try:
        return s.recv(1) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def known(center):
    """A connection on which somebody proved who they are."""
    conn = center.connect()
    ask(center, conn)
    return conn


def ask(center, conn):
    conn.request("GET", "/v1/jobs", headers={"Authorization": "Bearer " + center.token})
    got = conn.getresponse()
    assert got.read() and got.status == 200


def test_ten_thousand_idle_connections(fresh, files):
    center = fresh()
    friend = known(center)
    sockets = crowd(center, 10000, 50)
    worst = 0.0
    for _ in range(20):
        begun = time.monotonic()
        assert center.get("/v1/sources").status == 200
        worst = max(worst, time.monotonic() - begun)
    assert worst < 2 * SLOW, worst
    same = friend.sock
    ask(center, friend)
    assert friend.sock is same, "who is known keeps the connection"
    left = sum(is_open(s) for s in sockets)
    assert 1000 < left <= 8192, left
    assert is_open(sockets[-1]) and not is_open(sockets[0]), "the oldest went"
    for s in sockets:
        s.close()
    friend.close()


def test_one_address_has_its_share(fresh, files):
    center = fresh()
    sockets = crowd(center, 1000, 1)
    assert center.get("/v1/sources").status == 200, "from another address"
    time.sleep(0.2)
    assert 200 < sum(is_open(s) for s in sockets) < 300, "some threads let in one each at the same time"
    for s in sockets:
        s.close()


def test_many_known_ones_of_one_address(fresh, files):
    """More agents behind one address than strangers may be."""
    center = fresh()
    agents = [known(center) for _ in range(400)]
    begun = [conn.sock for conn in agents]
    for conn in agents:
        ask(center, conn)
    assert [conn.sock for conn in agents] == begun
    with pytest.raises((OSError, http.client.HTTPException, AssertionError)):
        sockets = crowd(center, 1000, 1)
        time.sleep(0.2)
        assert all(is_open(s) for s in sockets)
    ask(center, agents[0])
    for conn in agents:
        conn.close()
