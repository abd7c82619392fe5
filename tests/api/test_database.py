"""PostgreSQL as the store: how a center is told of it, and what it does when it is away."""

import subprocess

import pytest

from harness import BUILD, wait_for
from conftest import new_center
from tests.postgres import Server

REPLANTD = BUILD / "src" / "center" / "replantd"


def init(state, *args):
    got = subprocess.run([REPLANTD, "init", "--state", state, *args], capture_output=True, text=True)
    return got.returncode, got.stdout + got.stderr


def test_init(tmp_path, postgres):
    where = postgres.new_database()
    for word in ("password", "sslpassword"):
        status, said = init(tmp_path / "a", "--database", f"{where} {word}=secret")
        assert status == 1 and "--database-file" in said and "secret" not in said
    status, said = init(tmp_path / "a", "--database", "hast=x")
    assert status == 1 and "hast" in said
    status, said = init(tmp_path / "a", "--database", "host=/nowhere dbname=x")
    assert status == 1 and "cannot reach the database" in said
    assert not (tmp_path / "a" / "database").exists()
    (tmp_path / "line").write_text(where + " password=secret\nmore\n")
    assert init(tmp_path / "a", "--database", where, "--database-file", tmp_path / "line")[0] == 1
    status, said = init(tmp_path / "a", "--database-file", tmp_path / "line")
    assert status == 0, said
    kept = tmp_path / "a" / "database"
    assert kept.read_text() == where + " password=secret\n" and kept.stat().st_mode & 0o777 == 0o600
    assert not (tmp_path / "a" / "replant.db").exists()
    status, said = init(tmp_path / "a")
    assert status == 1 and "holds a center already" in said
    status, said = init(tmp_path / "b", "--database", where)
    assert status == 1 and "belongs to a center already" in said


def test_an_encoding_that_loses_names(tmp_path, postgres):
    postgres.run("createdb", "-h", postgres.folder, "-U", "postgres", "-T", "template0", "-E", "SQL_ASCII", "ascii")
    status, said = init(tmp_path / "a", "--database", postgres.where("ascii"))
    assert status == 1 and "UTF8" in said


@pytest.mark.parametrize("how", ["away", "restarted"])
def test_a_database_that_is_away(tmp_path, postgres, how):
    """Requests say so, the job waits, and all goes on when it is back."""
    server = Server()
    try:
        center = new_center(tmp_path / "center", server)
        agent = center.agent()
        job = center.started_job(agent.source, parameters={"test_boot": False})
        run = agent.wait_task()["run"]
        server.stop()
        if how == "away":
            center.commit(run)
            got = center.get("/v1/jobs")
            assert got.status == 500 and "database" in got.json["error"]["message"]
            wait_for("the complaint", lambda: "trying again" in center.tail())
        server.start()
        if how == "restarted":
            center.commit(run)
        wait_for("the job's end", lambda: center.get(f"/v1/jobs/{job}").status == 200 and center.job(job)["state"] == "finished")
        assert len(center.calls("receive")) == 1 and len(center.calls("image_create")) == 1
        assert center.stop() == 0, center.tail()
    finally:
        server.close()
