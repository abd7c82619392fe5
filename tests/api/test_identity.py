"""The server's certificate is renewed while the center serves."""

import datetime
import socket
import ssl
import subprocess
import time

from harness import SLOW, wait_for

RENEW_DAYS = 30

CONFIG = """[ca]
default_ca = all
[all]
database = {folder}/index.txt
new_certs_dir = {folder}
rand_serial = yes
default_md = sha256
policy = names
x509_extensions = server
unique_subject = no
[names]
commonName = supplied
[server]
subjectAltName = IP:127.0.0.1
basicConstraints = critical, CA:FALSE
extendedKeyUsage = serverAuth
"""


def sign_until(center, end):
    """A certificate for the server's key that ends at `end`."""
    folder = center.folder / "sign"
    folder.mkdir()
    (folder / "index.txt").write_text("")
    (folder / "conf").write_text(CONFIG.format(folder=folder))
    subprocess.run(["openssl", "req", "-new", "-subj", "/CN=replantd", "-key", center.state / "server.key",
                    "-out", folder / "csr"], check=True)
    subprocess.run(["openssl", "ca", "-batch", "-notext", "-config", folder / "conf", "-cert", center.state / "ca.pem",
                    "-keyfile", center.state / "ca.key", "-in", folder / "csr", "-out", center.state / "server.pem",
                    "-startdate", "20200101000000Z", "-enddate", end.strftime("%Y%m%d%H%M%SZ")], check=True)


def served(center):
    """The end of what a new connection is shown, checked as clients do."""
    with socket.create_connection(("127.0.0.1", center.port)) as s, \
            center.context.wrap_socket(s, server_hostname="127.0.0.1") as tls:
        return ssl.cert_time_to_seconds(tls.getpeercert()["notAfter"])


def test_renewed_while_serving(fresh):
    center = fresh(RENEW_CHECK=0.3)
    assert center.stop() == 0
    seconds = int(4 * SLOW)
    end = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=RENEW_DAYS, seconds=seconds)
    sign_until(center, end)
    center.start()
    assert served(center) == int(end.timestamp()), "it isn't due yet"

    # Two connections of before: one that asks now and then, one that listens.
    conn, events = center.connect(), center.connect()
    head = {"Authorization": "Bearer " + center.token}
    conn.request("GET", "/v1/version")
    assert conn.getresponse().read()
    mine = conn.sock.getsockname()
    events.request("GET", "/v1/events", headers=head)
    stream = events.getresponse()

    wait_for("a new certificate", lambda: served(center) != int(end.timestamp()), seconds + 10)
    assert served(center) > time.time() + 390 * 86400
    conn.request("GET", "/v1/version")
    assert conn.getresponse().read() and conn.sock.getsockname() == mine
    center.new_code()
    assert b"code" in stream.readline() + stream.readline() + stream.readline() + stream.readline()
    again = served(center)
    time.sleep(1)
    assert served(center) == again, "renewed again and again"
    assert center.tail().count("has a new certificate") == 1


def test_broken_renewal_keeps_the_old(fresh):
    center = fresh(RENEW_CHECK=0.2)
    before = served(center)
    (center.state / "server.pem").write_text("not a certificate")
    wait_for("a warning", lambda: "can't be renewed" in center.tail())
    assert served(center) == before
    assert center.get("/v1/version").status == 200
