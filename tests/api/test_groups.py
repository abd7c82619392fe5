"""Templates, which jobs are made by, and workgroups, whose sources move together."""

import pytest

from harness import wait_for


def template(center, name, **job):
    return center.ok("POST", "/v1/templates", {"name": name, "job": job})["id"]


def test_a_job_takes_what_its_template_says(center):
    agent = center.agent()
    made = template(center, "night", description="in the night", valid_days=60, tags={"wave": "2", "env": "prod"},
                    parameters={"rate_mbit": 200, "compression": 3, "incremental": True})
    got = center.ok("POST", "/v1/jobs", {"source": agent.source, "template": made, "tags": {"env": "test"},
                                         "parameters": {"compression": 5, "rate_mbit": None}})
    assert got["template"] == made and got["description"] == "in the night" and got["valid_days"] == 60
    assert got["tags"] == {"wave": "2", "env": "test"}
    assert {k: got["parameters"][k] for k in ("rate_mbit", "compression", "incremental", "max_images")} == \
        {"rate_mbit": 200, "compression": 5, "incremental": True, "max_images": 3}
    assert [j["id"] for j in center.ok("GET", f"/v1/jobs?template={made}")["items"]] == [got["id"]]
    # What becomes of the template is nothing to the job.
    changed = center.ok("PATCH", f"/v1/templates/{made}", {"name": "weekend", "job": {"parameters": {"rate_mbit": 7}}})
    assert changed["name"] == "weekend" and changed["job"] == {"parameters": {"rate_mbit": 7}}
    assert center.job(got["id"])["parameters"]["rate_mbit"] == 200
    center.ok("DELETE", f"/v1/templates/{made}")
    assert center.job(got["id"])["template"] == made
    center.ok("DELETE", f"/v1/jobs/{got['id']}")
    wait_for("gone", lambda: center.get(f"/v1/jobs/{got['id']}").status == 404)
    gone = center.post("/v1/jobs", {"source": agent.source, "template": made})
    assert (gone.status, gone.field) == (400, "template") and f"no template '{made}'" in gone.raw.decode()


@pytest.mark.parametrize("job, field", [
    ({"source": "source-0123456789abcdef"}, "job.source"), ({"name": "x"}, "job.name"), ({"region": "mars"}, "job.region"),
    ({"parameters": {"rate_mbit": -1}}, "job.parameters.rate_mbit"), ({"parameters": {"nonsense": 1}}, "job.parameters.nonsense"),
    ({"parameters": []}, "job.parameters"), ({"tags": {"a=b": "c"}}, "job.tags"), ({"valid_days": 3}, "job.valid_days"), ([], "job"), (None, "job")])
def test_templates_that_no_job_could_use(center, job, field):
    got = center.post("/v1/templates", {"name": "bad", "job": job})
    assert (got.status, got.code, got.field) == (400, "bad_field", field)
    made = template(center, f"good {field}")
    if job is not None:
        assert center.call("PATCH", f"/v1/templates/{made}", {"job": job}).field == field
    assert center.ok("GET", f"/v1/templates/{made}")["job"] == {}
    center.ok("DELETE", f"/v1/templates/{made}")


@pytest.mark.parametrize("noun, body", [("template", {"job": {}}), ("workgroup", {})])
def test_names_are_nobody_elses(center, noun, body):
    one, two = (center.ok("POST", f"/v1/{noun}s", {"name": f"{noun} {i}", **body})["id"] for i in range(2))
    for got in (center.post(f"/v1/{noun}s", {"name": f"{noun} 0", **body}), center.call("PATCH", f"/v1/{noun}s/{two}", {"name": f"{noun} 0"})):
        assert (got.status, got.code, got.field) == (409, "exists", "name") and f"called '{noun} 0' already" in got.json["error"]["message"]
    assert center.ok("PATCH", f"/v1/{noun}s/{one}", {"name": f"{noun} 0", "description": "same"})["description"] == "same"
    assert [x["id"] for x in center.ok("GET", f"/v1/{noun}s?name_prefix={noun}%201")["items"]] == [two]
    for gone in (one, two):
        assert center.call("DELETE", f"/v1/{noun}s/{gone}").status == 204
        assert center.get(f"/v1/{noun}s/{gone}").status == center.call("DELETE", f"/v1/{noun}s/{gone}").status == 404


def test_a_wave(center):
    group = center.ok("POST", "/v1/workgroups", {"name": "wave", "tags": {"hall": "b"}})
    path = f"/v1/workgroups/{group['id']}"
    assert (group["status"], group["sources"], group["warnings"], group["tags"]) == ("not_started", 0, [], {"hall": "b"})
    web, db, none = (center.agent() for _ in range(3))
    for agent in (web, db, none):
        assert center.ok("PATCH", f"/v1/sources/{agent.source}", {"workgroup": group["id"]})["workgroup"] == group["id"]
    assert center.ok("GET", f"/v1/sources?workgroup={group['id']}")["total"] == 3
    assert center.call("DELETE", path).code == "in_use"
    bad = center.call("PATCH", f"/v1/sources/{web.source}", {"workgroup": "workgroup-0000000000000000"})
    assert (bad.status, bad.field) == (400, "workgroup")
    first, second = (center.new_job(agent.source, parameters={"test_boot": False}) for agent in (web, db))
    now = center.ok("GET", path)
    assert now["status"] == "not_started" and now["warnings"] == [{"type": "unrelated", "sources": [none.source]}]

    answers = {i["source"]: i for i in center.ok("POST", path + "/start", {})["items"]}
    assert answers[web.source] == {"source": web.source, "job": first, "error": None} and answers[db.source]["error"] is None
    assert answers[none.source]["job"] is None and answers[none.source]["error"]["code"] == "no_job"
    assert center.ok("GET", path)["status"] == "in_progress"
    web.wait_task(), db.wait_task()
    assert {i["error"] and i["error"]["code"] for i in center.ok("POST", path + "/stop", {})["items"]} == {None, "no_job"}
    assert {i["error"] and i["error"]["code"] for i in center.ok("POST", path + "/stop", {})["items"]} == {"invalid_state", "no_job"}
    assert center.job(first)["state"] == center.job(second)["state"] == "stopped"
    center.ok("POST", path + "/start", {})

    center.ok("PATCH", f"/v1/sources/{none.source}", {"workgroup": ""})
    web.send_all()
    center.wait_job(first)
    assert center.ok("GET", path)["status"] == "in_progress"
    task = db.wait_task()
    db.report(task["run"], "failed", error={"code": "read_error", "message": "a disk is broken", "temporary": False})
    center.wait_job(second, "in_error")
    assert center.ok("GET", path)["warnings"] == [{"type": "in_error", "sources": [db.source]}]
    center.ok("POST", f"/v1/jobs/{second}/start", {})
    db.send_all()
    center.wait_job(second)
    listed = {g["id"]: g for g in center.ok("GET", "/v1/workgroups?tag=hall=b")["items"]}
    assert listed == {group["id"]: center.ok("GET", path)} and listed[group["id"]]["status"] == "completed"
    assert listed[group["id"]]["warnings"] == []
    # A source that is deleted is out of it.
    for agent in (web, db):
        center.ok("DELETE", f"/v1/sources/{agent.source}")
    assert center.ok("GET", path)["sources"] == 0
    assert center.call("DELETE", path).status == 204


def test_an_image_that_did_not_boot_is_a_warning_of_its_own(center):
    group = center.ok("POST", "/v1/workgroups", {"name": "careful"})["id"]
    agent = center.agent()
    center.ok("PATCH", f"/v1/sources/{agent.source}", {"workgroup": group})
    center.play("test_boot", "bad")
    job = center.started_job(agent.source)
    agent.send_all()
    center.wait_job(job, "in_error")
    center.unplay("test_boot", "bad")
    assert center.ok("GET", f"/v1/workgroups/{group}")["warnings"] == [{"type": "not_passed", "sources": [agent.source]}]


def test_who_may(center):
    looker = center.role_token("viewer")
    for method, path, body in (("POST", "/v1/templates", {"name": "x", "job": {}}), ("POST", "/v1/workgroups", {"name": "x"})):
        assert center.call(method, path, body, token=looker).status == 403
        assert center.call(method, path, body, token="").status == 401
        assert center.get(path, token=looker).status == 200


def test_the_audit_log(fresh):
    """What was done and what was refused, by whom; no secrets, nothing that only looked, no agent's reports."""
    center = fresh()
    looker = center.ok("POST", "/v1/tokens", {"name": "looker", "role": "viewer"})
    agent = center.agent()
    job = center.new_job(agent.source)
    agent.sync()
    center.get("/v1/jobs")
    center.call("DELETE", f"/v1/jobs/{job}", token=looker["token"])
    center.post("/v1/jobs", {"source": "nonsense"})
    center.post("/v1/jobs", {}, token="wrong")
    center.post("/v1/agent/enroll", {}, token="")  # a stranger can't fill it
    center.call("DELETE", f"/v1/jobs/{job}")
    rows = center.ok("GET", "/v1/audit")["items"][::-1]
    assert [(r["name"], r["action"], r["object"], r["status"], r["code"]) for r in rows] == [
        ("first admin", "createToken", looker["id"], 201, None),
        ("first admin", "createCode", rows[1]["object"], 201, None),
        (None, "enrollAgent", agent.source, 201, None),
        ("first admin", "createJob", job, 201, None),
        ("looker", "deleteJob", job, 403, "forbidden"),
        ("first admin", "createJob", None, 400, "bad_field"),
        ("first admin", "deleteJob", job, 202, None)]
    assert rows[4]["who"] == looker["id"] and rows[4]["role"] == "viewer" and rows[2]["role"] is None and all(r["address"] == "127.0.0.1" for r in rows)
    raw = center.get("/v1/audit").raw.decode()
    assert looker["token"].split(".")[1] not in raw and agent.secret not in raw
    assert center.ok("GET", f"/v1/audit?object={job}&action=createJob")["total"] == 1
    assert center.ok("GET", f"/v1/audit?who={looker['id']}")["total"] == 1
    assert center.get("/v1/audit", token=looker["token"]).status == 403
    # What is told of a token outlives it.
    center.ok("DELETE", f"/v1/tokens/{looker['id']}")
    center.restart()
    assert center.ok("GET", f"/v1/audit?who={looker['id']}")["items"][0]["name"] == "looker"
