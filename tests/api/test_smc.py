"""SMC's API: signatures made here by the vendor's description of them, and its own clients driving a whole migration."""

import base64
import datetime
import hashlib
import hmac
import json
import os
import shutil
import urllib.parse
import uuid
import xml.etree.ElementTree

import pytest

from harness import wait_for
from tests.lab import cache
from tests.smc import clients

VERSION = "2019-06-01"


def quote(text):
    return urllib.parse.quote(str(text), safe="-_.~")


def canonical(params):
    return "&".join(f"{quote(k)}={quote(v)}" for k, v in sorted(params.items()))


def stamp(shift=0):
    return (datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(seconds=shift)).strftime("%Y-%m-%dT%H:%M:%SZ")


class Smc:
    """An access key of a role, and requests signed with it."""

    def __init__(self, center, role="operator"):
        self.center = center
        made = center.ok("POST", "/v1/tokens", {"name": f"smc {role}", "role": role})
        self.token, self.key, self.secret = made["id"], made["access_key_id"], made["access_key_secret"]

    def params(self, action, given, **changed):
        return {"Action": action, "Version": VERSION, "Format": "JSON", "AccessKeyId": self.key, "SignatureMethod": "HMAC-SHA1",
                "SignatureVersion": "1.0", "SignatureNonce": uuid.uuid4().hex, "Timestamp": stamp(), **given, **changed}

    def sign(self, method, params):
        text = f"{method}&%2F&{quote(canonical(params))}"
        return base64.b64encode(hmac.new((self.secret + "&").encode(), text.encode(), hashlib.sha1).digest()).decode()

    def send(self, method, params, **kw):
        text = "&".join(f"{quote(k)}={quote(v)}" for k, v in params.items())
        if method == "GET":
            return self.center.call("GET", "/?" + text, token="", **kw)
        kw.setdefault("headers", {"Content-Type": "application/x-www-form-urlencoded"})
        return self.center.call("POST", "/", raw=text.encode(), token="", **kw)

    def call(self, action, method="POST", changed=None, **given):
        params = self.params(action, {k.replace("_", "."): v for k, v in given.items()}, **(changed or {}))
        params["Signature"] = self.sign(method, params)
        return self.send(method, params)

    def ok(self, action, **given):
        got = self.call(action, **given)
        assert got.status == 200, got
        answer = json.loads(got.raw)
        assert uuid.UUID(answer["RequestId"])
        return answer

    def refused(self, action, **given):
        return fault(self.call(action, **given))

    def acs3(self, action, body=b"", query=None, spoil=None, **headers):
        host = f"127.0.0.1:{self.center.port}"
        head = {"host": host, "x-acs-action": action, "x-acs-version": VERSION, "x-acs-date": stamp(),
                "x-acs-signature-nonce": uuid.uuid4().hex, "x-acs-content-sha256": hashlib.sha256(body).hexdigest(), **headers}
        names = sorted(head)
        request = "\n".join(["POST", "/", canonical(query or {}), "".join(f"{n}:{head[n].strip()}\n" for n in names), ";".join(names),
                             head["x-acs-content-sha256"]])
        text = "ACS3-HMAC-SHA256\n" + hashlib.sha256(request.encode()).hexdigest()
        mine = hmac.new(self.secret.encode(), text.encode(), hashlib.sha256).hexdigest()
        head["Authorization"] = f"ACS3-HMAC-SHA256 Credential={self.key},SignedHeaders={';'.join(names)},Signature={mine}"
        if body:
            head["Content-Type"] = "application/x-www-form-urlencoded"
        head.update(spoil or {})
        return self.center.call("POST", "/?" + canonical(query or {}), raw=body, token="", headers=head)


def fault(got):
    answer = json.loads(got.raw)
    assert got.status >= 400 and set(answer) == {"RequestId", "HostId", "Code", "Message"}, got
    return got.status, answer["Code"]


@pytest.fixture(scope="module")
def smc(center):
    return Smc(center)


def their_id(ours):
    noun, _, rest = ours.partition("-")
    return {"source": "s-", "job": "j-", "code": "at-", "workgroup": "w-", "image": "m-"}[noun] + rest


# ---- who asks ----

@pytest.mark.parametrize("method", ["GET", "POST"])
def test_signature_1(smc, method):
    # Characters that each have their own rule in the encoding.
    assert smc.call("DescribeSourceServers", method, Name="a b+c*d~e%f/ü&=").status == 200


def test_signature_acs3(smc):
    assert smc.acs3("DescribeSourceServers", query={"Name": "a b+c*d~e", "PageSize": "5"}).status == 200
    assert smc.acs3("ListAccessTokens", body=b"Name=a+b&Status=expired").status == 200
    assert fault(smc.acs3("ListAccessTokens", spoil={"x-acs-action": "DeleteAccessToken"})) == (400, "SignatureDoesNotMatch")
    assert fault(smc.acs3("ListAccessTokens", body=b"a=b", spoil={"x-acs-content-sha256": "0" * 64}))[1] == "InvalidContentSha256"
    assert fault(smc.acs3("ListAccessTokens", spoil={"Authorization": "ACS3-HMAC-SHA256 Credential=x"}))[1] == "IncompleteSignature"


def test_a_header_that_counts_must_be_signed(smc):
    """Else it could be exchanged on the way."""
    head = {"host": f"127.0.0.1:{smc.center.port}", "x-acs-action": "ListAccessTokens", "x-acs-version": VERSION, "x-acs-date": stamp(),
            "x-acs-signature-nonce": "n", "x-acs-content-sha256": hashlib.sha256(b"").hexdigest(),
            "Authorization": f"ACS3-HMAC-SHA256 Credential={smc.key},SignedHeaders=host,Signature=00"}
    assert fault(smc.center.call("POST", "/", raw=b"", token="", headers=head)) == (400, "SignatureDoesNotMatch")


def test_what_was_signed_can_not_be_changed(smc):
    params = smc.params("DescribeSourceServers", {"Name": "a"})
    params["Signature"] = smc.sign("POST", params)
    assert fault(smc.send("POST", dict(params, Name="b"))) == (400, "SignatureDoesNotMatch")
    assert fault(smc.send("POST", dict(params, More="b"))) == (400, "SignatureDoesNotMatch")
    assert fault(smc.send("GET", params)) == (400, "SignatureDoesNotMatch")
    assert smc.send("POST", params).status == 200


def test_a_request_serves_once(smc):
    params = smc.params("DescribeSourceServers", {})
    params["Signature"] = smc.sign("POST", params)
    assert smc.send("POST", params).status == 200
    assert fault(smc.send("POST", params)) == (400, "SignatureNonceUsed")


def test_a_nonce_is_remembered_through_a_restart(fresh):
    own_center = fresh()
    smc = Smc(own_center)
    params = smc.params("DescribeSourceServers", {})
    params["Signature"] = smc.sign("POST", params)
    assert smc.send("POST", params).status == 200
    own_center.restart()
    assert fault(smc.send("POST", params)) == (400, "SignatureNonceUsed")
    assert smc.call("DescribeSourceServers").status == 200  # the key is what it was


@pytest.mark.parametrize("changed,status,code", [
    ({"Timestamp": stamp(-3600)}, 400, "InvalidTimeStamp.Expired"),
    ({"Timestamp": stamp(3600)}, 400, "InvalidTimeStamp.Expired"),
    ({"Timestamp": "yesterday"}, 400, "InvalidTimeStamp.Expired"),
    ({"Version": "2014-05-26"}, 400, "InvalidVersion"),
    ({"Action": "DescribeInstances"}, 404, "InvalidAction.NotFound"),
    ({"AccessKeyId": "0" * 16}, 404, "InvalidAccessKeyId.NotFound"),
    ({"AccessKeyId": "../../x"}, 404, "InvalidAccessKeyId.NotFound"),
    ({"SignatureMethod": "none"}, 400, "InvalidParameter.SignatureMethod"),
    ({"SignatureVersion": "2"}, 400, "InvalidParameter.SignatureVersion"),
    ({"SignatureNonce": "n" * 129}, 400, "InvalidParameter.SignatureNonce"),
    ({"Format": "YAML"}, 400, "InvalidParameter"),
    ({"PageSize": "51"}, 400, "InvalidParameter"),
    ({"PageNumber": "0"}, 400, "InvalidParameter"),
    ({"Name": "x\x00y"}, 400, "InvalidParameter"),
])
def test_wrong_requests(smc, changed, status, code):
    assert fault(smc.call("DescribeSourceServers", changed=changed)) == (status, code)


@pytest.mark.parametrize("missing", ["Action", "AccessKeyId", "Signature", "SignatureNonce", "Timestamp", "SignatureMethod"])
def test_missing_parameters(smc, missing):
    params = smc.params("DescribeSourceServers", {})
    params.pop(missing, None)
    if missing != "Signature":
        params["Signature"] = smc.sign("POST", params)
    assert fault(smc.send("POST", params)) == (400, "MissingParameter")


@pytest.mark.parametrize("raw", [b"a=%zz", b"a=%", b"a=%00", b"a=\xff", b"a=1&a=2", b"&&&", b"=", b"\x00", b"a" * 70000])
def test_bodies_that_are_no_form(smc, raw):
    got = smc.center.call("POST", "/", raw=raw, token="", headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert fault(got)[0] == 400


def test_body_of_another_kind_or_size(smc):
    assert fault(smc.center.call("POST", "/", raw=b"{}", token="", headers={"Content-Type": "application/json"}))[1] == "UnsupportedContentType"
    assert fault(smc.center.call("POST", "/", raw=b"a" * (129 << 10), token=""))[0] == 413


def test_wrong_signatures_are_counted(fresh):
    smc = Smc(fresh(FAILURES=10))
    params = smc.params("DescribeSourceServers", {})
    assert fault(smc.send("POST", {"Action": "DescribeSourceServers"}))[1] == "MissingParameter"  # counts as well
    codes = [fault(smc.send("POST", dict(params, Signature="x")))[1] for _ in range(10)]
    assert codes[0] == "SignatureDoesNotMatch" and codes[-1] == "Throttling"


def test_a_key_may_what_its_token_may(center):
    viewer = Smc(center, "viewer")
    assert viewer.ok("DescribeReplicationJobs")["TotalCount"] >= 0
    assert viewer.refused("CreateAccessToken", Name="no") == (403, "Forbidden.Unauthorized")
    assert center.call("DELETE", f"/v1/tokens/{viewer.token}").status == 204
    assert viewer.refused("DescribeReplicationJobs") == (404, "InvalidAccessKeyId.NotFound")


def test_secrets_are_in_no_file_but_their_key(center, smc):
    for path in center.state.glob("*"):
        if path.is_file():
            assert smc.secret.encode() not in path.read_bytes(), path
    assert (center.state / "access.key").stat().st_mode & 0o077 == 0


def test_what_is_done_is_in_the_audit_log(center, smc):
    made = smc.ok("CreateAccessToken", Name="told")
    record = center.ok("GET", "/v1/audit?limit=1")["items"][0]
    assert record["action"] == "createCode" and record["who"] == smc.token and their_id(record["object"]) == made["AccessTokenId"]


# ---- actions ----

def test_access_tokens(center, smc):
    made = smc.ok("CreateAccessToken", Name="spring", Description="two words", Count="7", TimeToLiveInDays="3")
    assert made["AccessTokenCode"].count(".") == 2
    agent = center.agent(code=made["AccessTokenCode"])
    (one,) = smc.ok("ListAccessTokens", AccessTokenId_1=made["AccessTokenId"])["AccessTokens"]["AccessToken"]
    assert (one["Name"], one["Description"], one["Status"], one["Count"], one["RegisteredCount"], one["TimeToLiveInDays"]) == (
        "spring", "two words", "activated", "7", "1", "3")
    smc.ok("DisableAccessToken", AccessTokenId=made["AccessTokenId"])
    assert smc.ok("ListAccessTokens", Name="spring", Status="activated")["TotalCount"] == 0
    assert smc.ok("ListAccessTokens", Name="spring", Status="unactivated")["TotalCount"] == 1
    assert agent.sync()  # who came before stays
    smc.ok("DeleteAccessToken", AccessTokenId=made["AccessTokenId"])
    assert smc.refused("DeleteAccessToken", AccessTokenId=made["AccessTokenId"]) == (404, "InvalidAccessTokenId.NotFound")
    assert smc.refused("CreateAccessToken", Count="0")[1] == "InvalidParameter"
    assert smc.refused("CreateAccessToken", TimeToLiveInDays="91")[1] == "InvalidParameter"
    assert smc.refused("ListAccessTokens", Status="new")[1] == "InvalidParameter"


INVENTORY = {
    "hostname": "db-1", "arch": "x86_64", "kernel": "6.1", "os": {"id": "debian", "name": "Debian"}, "cpu": {"count": 2},
    "memory": {"total": 8 << 30},
    "network": {"interfaces": [{"addresses": [{"family": "inet", "address": "127.0.0.1"}]},
                               {"addresses": [{"family": "inet", "address": "192.0.2.7"}, {"family": "inet6", "address": "2001:db8::7"}]}]},
    "disks": [
        {"name": "vda", "path": "/dev/vda", "size": 21 << 30, "partitions": [{"path": "/dev/vda1", "start": 1 << 20, "size": 21 << 30}]},
        {"name": "vdb", "path": "/dev/vdb", "size": (40 << 30) + 1, "partitions": [
            {"path": "/dev/vdb1", "start": 1 << 20, "size": 1 << 30}, {"path": "/dev/vdb2", "start": 2 << 30, "size": 39 << 30}]}],
    "filesystems": [
        {"device": "/dev/vda1", "size": 21 << 30, "disks": ["vda"], "mounts": [{"point": "/srv"}]},
        {"device": "/dev/vdb1", "size": 1 << 30, "disks": ["vdb"], "mounts": [{"point": "/boot"}]},
        {"device": "/dev/vdb2", "size": 39 << 30, "disks": ["vdb"], "mounts": [{"point": "/"}]}]}


def test_source_servers(center, smc):
    agent = center.agent(inventory=INVENTORY)
    source = their_id(agent.source)
    smc.ok("ModifySourceServerAttribute", SourceId=source, Name="db one", Description="the big one")
    (one,) = smc.ok("DescribeSourceServers", SourceId_1=source)["SourceServers"]["SourceServer"]
    assert (one["Name"], one["Description"], one["State"], one["Platform"], one["Architecture"]) == (
        "db one", "the big one", "Available", "Debian", "x86_64")
    # The system's disk is the one that "/" is on, whatever its name.
    assert one["SystemDiskSize"] == 41 and [p["Path"] for p in one["SystemDiskParts"]["SystemDiskPart"]] == ["/boot", "/"]
    (data,) = one["DataDisks"]["DataDisk"]
    assert (data["Index"], data["Size"], data["Path"], data["Parts"]["Part"][0]["Device"]) == (1, 21, "/dev/vda", "1_0")
    assert [(p["Path"], p["Type"]) for p in one["Disks"]["System"]["Parts"]["Part"]] == [("/boot", "Boot"), ("/", "System")]
    info = json.loads(one["SystemInfo"])
    assert (info["ipv4"], info["ipv6"], info["cores"], info["memory"]) == ("192.0.2.7", "2001:db8::7", "2", "8.00")
    for filters, found in (({"Name": "db one"}, True), ({"Name": "db"}, False), ({"State": "Available"}, True), ({"State": "Deleting"}, False),
                           ({"RelatedJobType_1": "1"}, False), ({"RelatedJobType_1": "0"}, True), ({"ResourceGroupId": "rg-1"}, False)):
        got = smc.ok("DescribeSourceServers", SourceId_1=source, **filters)
        assert (got["TotalCount"] == 1) == found, filters
    assert smc.ok("DescribeSourceServers", Name="db one")["TotalCount"] == 1
    other = center.agent()
    assert smc.refused("ModifySourceServerAttribute", SourceId=their_id(other.source), Name="db one")[1] == "SourceServerName.Duplicate"
    assert smc.refused("ModifySourceServerAttribute", SourceId="s-" + "0" * 16, Name="x")[1] == "InvalidSourceId.NotFound"
    assert smc.refused("DescribeSourceServers", SourceId_1="j-1")[1] == "InvalidSourceId.NotFound"
    smc.ok("DeleteSourceServer", SourceId=their_id(other.source))
    assert center.get(f"/v1/sources/{other.source}").status == 404


def new_job(smc, agent, **more):
    return smc.ok("CreateReplicationJob", RegionId="cn-hangzhou", SourceId=their_id(agent.source), **more)["JobId"]


def describe(smc, job):
    got = smc.ok("DescribeReplicationJobs", JobId_1=job)["ReplicationJobs"]["ReplicationJob"]
    return got[0] if got else None


def test_a_job_has_what_was_asked_for(center, smc):
    agent = center.agent(inventory=INVENTORY)
    soon = stamp(3600)
    job = new_job(smc, agent, Name="night", Description="to the new one", ImageName="img-night", RunOnce="false", Frequency="12",
                  MaxNumberOfImageToKeep="2", ScheduledStartTime=soon, ValidTime=stamp(8 * 86400), InstanceType="4c2g", ClientToken="once",
                  ReplicationParameters='{"bandwidth_limit":12500,"compress_level":3,"checksum":false}', SystemDiskSize="41",
                  DataDisk_1_Index="1", DataDisk_1_Size="21", DataDisk_1_Part_1_Device="1_0", DataDisk_1_Part_1_Block="true",
                  Tag_1_Key="wave", Tag_1_Value="2")
    ours = center.job("job-" + job[2:])
    p = ours["parameters"]
    assert (p["rate_mbit"], p["compression"], p["checksum"], p["incremental"], p["interval_hours"], p["max_images"]) == (100, 3, False, True, 12, 2)
    assert (p["transition_cpus"], p["transition_memory"]) == (4, 2048)
    assert ours["valid_days"] == 8 and ours["tags"] == {"wave": "2"} and ours["image_name"] == "img-night"
    one = describe(smc, job)
    assert (one["Status"], one["BusinessStatus"], one["Progress"], one["RegionId"], one["RunOnce"], one["Frequency"]) == ("Ready", "", 0, "local", False, 12)
    assert one["ScheduledStartTime"] == soon and one["SystemDiskSize"] == 41 and one["InstanceType"] == "4c2g"
    assert json.loads(one["ReplicationParameters"]) == {"bandwidth_limit": 12500, "compress_level": 3, "checksum": False}
    assert one["Tags"]["Tag"] == [{"Key": "wave", "Value": "2"}]
    # The same once more is the same job; another with its token, its source or its names is none.
    smc.ok("ModifyReplicationJobAttribute", JobId=job, Name="day", Frequency="24")
    assert (describe(smc, job)["Name"], describe(smc, job)["Frequency"]) == ("day", 24)
    assert smc.refused("CreateReplicationJob", RegionId="local", SourceId=their_id(agent.source), ClientToken="once")[1] == "IdempotentParameterMismatch"
    assert smc.refused("CreateReplicationJob", RegionId="local", SourceId=their_id(agent.source))[1] == "SourceServerState.Invalid"
    other = center.agent()
    assert smc.refused("CreateReplicationJob", RegionId="local", SourceId=their_id(other.source), Name="day")[1] == "ReplicationJobName.Duplicate"
    assert smc.refused("CreateReplicationJob", RegionId="local", SourceId=their_id(other.source), ImageName="img-night")[1] == "ImageName.UsedByReplicationJob"
    for filters, found in (({"Status": "Ready"}, 1), ({"Status": "Running"}, 0), ({"BusinessStatus": "Syncing"}, 0), ({"Name": "day"}, 1),
                           ({"RegionId": "local"}, 1), ({"Tag_1_Key": "wave"}, 1), ({"Tag_1_Key": "wave", "Tag_1_Value": "3"}, 0),
                           ({"JobType": "2"}, 0), ({"InstanceId_1": "i-1"}, 0), ({"SourceId_1": their_id(agent.source)}, 1),
                           ({"SourceId_1": their_id(other.source)}, 0)):
        assert smc.ok("DescribeReplicationJobs", JobId_1=job, **filters)["TotalCount"] == found, filters
    assert smc.ok("DescribeReplicationJobs", SourceId_1=their_id(agent.source))["TotalCount"] == 1
    assert smc.ok("DescribeSourceServers", JobId=job)["SourceServers"]["SourceServer"][0]["State"] == "InUse"
    assert smc.refused("DeleteSourceServer", SourceId=their_id(agent.source))[1] == "ReplicationJob.Related"
    smc.ok("DeleteSourceServer", SourceId=their_id(agent.source), Force="true")
    assert center.get(f"/v1/sources/{agent.source}").status == 404
    wait_for("the job gone", lambda: describe(smc, job) is None)


def test_the_same_creation_twice(center, smc):
    agent = center.agent()
    first = new_job(smc, agent, ClientToken="again", Name="again", ImageName="again")
    assert new_job(smc, agent, ClientToken="again", Name="again", ImageName="again") == first
    smc.ok("DeleteReplicationJob", JobId=first)


@pytest.mark.parametrize("given,code", [
    ({"RegionId": ""}, "MissingParameter"),
    ({"RegionId": "No Region!"}, "InvalidRegionId.NotFound"),
    ({"SourceId": "s-" + "0" * 16}, "InvalidSourceId.NotFound"),
    ({"SourceId": "'; drop table sources"}, "InvalidSourceId.NotFound"),
    ({"TargetType": "ContainerImage"}, "InvalidParameter"),
    ({"TargetType": "TargetInstance"}, "MissingParameter"),
    ({"TargetType": "TargetInstance", "InstanceId": "i-1"}, "InvalidInstanceId.NotFound"),
    ({"InstanceId": "i-" + "0" * 16}, "InvalidParameter"),
    ({"JobType": "1"}, "InvalidOsMigrationType.NotMatched"),
    ({"JobType": "2"}, "InvalidParameter"),
    ({"NetMode": "1"}, "InvalidParameter"),
    ({"NetMode": "2"}, "InvalidParameter"),  # the region has no private address
    ({"VpcId": "vpc-1"}, "InvalidParameter"),
    ({"LaunchTemplateId": "lt-1"}, "InvalidParameter"),
    ({"RunOnce": "perhaps"}, "InvalidParameter"),
    ({"RunOnce": "false"}, "MissingParameter"),
    ({"Frequency": "12"}, "InvalidParameter"),
    ({"RunOnce": "false", "Frequency": "169", "MaxNumberOfImageToKeep": "1"}, "InvalidParameter"),
    ({"RunOnce": "false", "Frequency": "1", "MaxNumberOfImageToKeep": "11"}, "InvalidParameter"),
    ({"ScheduledStartTime": stamp(60)}, "InvalidParameter"),
    ({"ScheduledStartTime": stamp(40 * 86400)}, "InvalidParameter"),
    ({"ScheduledStartTime": "soon"}, "InvalidParameter"),
    ({"ValidTime": stamp(86400)}, "InvalidParameter"),
    ({"ValidTime": stamp(100 * 86400)}, "InvalidParameter"),
    ({"ReplicationParameters": "{"}, "InvalidParameter"),
    ({"ReplicationParameters": "[]"}, "InvalidParameter"),
    ({"ReplicationParameters": '{"threads":4}'}, "InvalidParameter"),
    ({"ReplicationParameters": '{"compress_level":11}'}, "InvalidParameter"),
    ({"ReplicationParameters": '{"checksum":"yes"}'}, "InvalidParameter"),
    ({"ReplicationParameters": '{"bandwidth_limit":-1}'}, "InvalidParameter"),
    ({"InstanceType": "ecs.g7.large"}, "InvalidParameter"),
    ({"LicenseType": "MINE"}, "InvalidParameter"),
    ({"LicenseType": "BYOL"}, "InvalidParameter"),
    ({"Name": "n" * 200}, "InvalidParameter"),
    ({"SystemDiskSize": "20"}, "InvalidParameter"),
    ({"DataDisk.1.Index": "2"}, "ReplicationJobDataDiskIndex.Invalid"),
    ({"DataDisk.1.Index": "1", "DataDisk.2.Index": "1"}, "DataDisk.DuplicateIndex"),
    ({"DataDisk.1.Size": "21"}, "MissingParameter"),
    ({"SystemDiskPart.1.Device": "0_9"}, "InvalidParameter"),
    ({"SystemDiskPart.1.Device": "0_0", "SystemDiskPart.1.SizeBytes": "5"}, "InvalidParameter"),
    ({"SystemDiskPart.1.Device": "0_0", "SystemDiskPart.1.Block": "false"}, "InvalidParameter"),
    ({"Disks.System.LVM": "true"}, "InvalidParameter"),
    ({"Disks.System.Part.1.Path": "/nowhere"}, "InvalidParameter"),
    ({"Disks.System.Part.1.Path": "/boot", "Disks.System.Part.1.SizeBytes": "5"}, "InvalidParameter"),
    ({"Disks.System.Part.1.SizeBytes": "5"}, "InvalidParameter"),
    ({"Name": "", "NetMode": "02"}, "InvalidParameter"),  # private, too
    ({"Tag.1.Value": "v"}, "InvalidParameter.TagValue"),
    ({"Tag.1.Key": "acs:x"}, "InvalidParameter.TagKey"),
])
def test_jobs_that_can_not_be(center, smc, given, code):
    if not hasattr(smc, "spare"):
        smc.spare = center.agent(inventory=INVENTORY)
    before = center.ok("GET", "/v1/jobs")["total"]
    params = smc.params("CreateReplicationJob", {"RegionId": "local", "SourceId": their_id(smc.spare.source), **given})
    params["Signature"] = smc.sign("POST", params)
    assert fault(smc.send("POST", params))[1] == code
    assert center.ok("GET", "/v1/jobs")["total"] == before


def test_a_job_from_start_to_end(center, smc):
    agent = center.agent(inventory=INVENTORY)
    job = new_job(smc, agent, ImageName="whole")
    assert smc.refused("StopReplicationJob", JobId=job)[1] == "ReplicationJob.InvalidStatus"
    assert smc.refused("CutOverReplicationJob", JobId=job)[1] == "ReplicationJob.InvalidStatus"
    smc.ok("StartReplicationJob", JobId=job)
    assert smc.refused("StartReplicationJob", JobId=job)[1] == "ReplicationJob.InvalidBusinessStatus"
    assert smc.refused("DeleteReplicationJob", JobId=job)[1] == "ReplicationJob.InvalidBusinessStatus"
    assert smc.refused("DeleteSourceServer", SourceId=their_id(agent.source), Force="true")[1] == "SourceServer.WithRunningReplicationJob"
    task = agent.wait_task()
    agent.report(task["run"], progress={"phase": "full", "percent": 42.5, "bytes_total": 100, "bytes_done": 42, "round": 1})
    now = describe(smc, job)
    assert (now["Status"], now["BusinessStatus"], now["Progress"]) == ("Running", "Syncing", 42) and now["StatusInfo"]
    assert smc.ok("DescribeReplicationJobs", Status="Running", BusinessStatus="Syncing", SourceId_1=their_id(agent.source))["TotalCount"] == 1
    smc.ok("ModifyReplicationJobAttribute", JobId=job, ReplicationParameters='{"bandwidth_limit":1000}')
    assert center.job("job-" + job[2:])["parameters"]["rate_mbit"] == 8
    assert smc.refused("ModifyReplicationJobAttribute", JobId=job, InstanceType="1c1g")[1] == "ReplicationJob.InvalidBusinessStatus"
    smc.ok("StopReplicationJob", JobId=job)
    assert describe(smc, job)["Status"] == "Stopped"
    smc.ok("StartReplicationJob", JobId=job)
    agent.send_all()
    wait_for("finished", lambda: describe(smc, job)["Status"] == "Finished")
    now = describe(smc, job)
    assert now["Progress"] == 100 and now["ImageId"].startswith("m-") and now["EndTime"] >= now["StartTime"] > ""
    assert [run["ImageId"] for run in now["ReplicationJobRuns"]["ReplicationJobRun"] if "ImageId" in run] == [now["ImageId"]]
    assert smc.refused("StartReplicationJob", JobId=job)[1] == "ReplicationJob.InvalidStatus"
    smc.ok("DeleteReplicationJob", JobId=job)
    wait_for("gone", lambda: describe(smc, job) is None)
    assert smc.refused("DeleteReplicationJob", JobId=job) == (404, "InvalidJobId.NotFound")


def test_a_job_that_fails(center, smc):
    agent = center.agent()
    center.play("convert", "fail", "no disk has GRUB in its boot sector")
    job = new_job(smc, agent)
    smc.ok("StartReplicationJob", JobId=job)
    agent.send_all()
    wait_for("in error", lambda: describe(smc, job)["Status"] == "InError")
    center.unplay("convert", "fail")
    assert "GRUB" in describe(smc, job)["StatusInfo"] and describe(smc, job)["ErrorCode"]
    smc.ok("DeleteReplicationJob", JobId=job)


def test_workgroups(center, smc):
    agents = [center.agent() for _ in range(2)]
    ids = {f"SourceId_{i + 1}": their_id(a.source) for i, a in enumerate(agents)}
    group = smc.ok("CreateWorkgroup", Name="first wave", Description="web", Tag_1_Key="k", Tag_1_Value="v")["WorkgroupId"]
    assert smc.refused("CreateWorkgroup", Name="first wave") == (400, "WorkgroupName.Duplicate")
    smc.ok("AssociateSourceServers", WorkgroupId=group, **ids)
    smc.ok("ModifyWorkgroupAttribute", WorkgroupId=group, Name="second wave")
    (one,) = smc.ok("DescribeWorkgroups", WorkgroupId_1=group)["Workgroups"]["Workgroup"]
    assert (one["Name"], one["Description"], one["Status"], one["Tags"]["Tag"]) == ("second wave", "web", "NotStarted", [{"Key": "k", "Value": "v"}])
    (warning,) = one["Warnings"]["Warning"]
    assert warning["WarningType"] == "UnRelated" and sorted(warning["SourceIds"]["SourceId"]) == sorted(ids.values())
    assert smc.ok("DescribeSourceServers", WorkgroupId=group)["TotalCount"] == 2
    assert smc.ok("DescribeWorkgroups", Status="Completed", Name="second wave")["TotalCount"] == 0
    assert smc.refused("DeleteWorkgroup", WorkgroupId=group) == (400, "Workgroup.NotEmpty")
    assert smc.refused("AssociateSourceServers", WorkgroupId=group, SourceId_1="s-" + "0" * 16)[1] == "InvalidSourceId.NotFound"
    assert smc.refused("AssociateSourceServers", WorkgroupId=group)[1] == "MissingParameter"
    second = smc.ok("CreateWorkgroup", Name="another")["WorkgroupId"]
    assert smc.refused("AssociateSourceServers", WorkgroupId=second, **ids)[1] == "SourceServer.WorkgroupMismatch"
    smc.ok("DisassociateSourceServers", WorkgroupId=group, **ids)
    for one in (group, second):
        smc.ok("DeleteWorkgroup", WorkgroupId=one)
    assert smc.refused("DeleteWorkgroup", WorkgroupId=group)[1] == "InvalidWorkgroupId.NotFound"


def test_tags(center, smc):
    source = their_id(center.agent().source)
    what = {"ResourceType": "sourceserver", "ResourceId_1": source}
    smc.ok("TagResources", **what, Tag_1_Key="a", Tag_1_Value="1", Tag_2_Key="b")
    smc.ok("TagResources", **what, Tag_1_Key="a", Tag_1_Value="2")
    got = smc.ok("ListTagResources", **what)["TagResources"]["TagResource"]
    assert sorted((t["TagKey"], t["TagValue"]) for t in got) == [("a", "2"), ("b", "")] and got[0]["ResourceType"] == "ALIYUN::SMC::SOURCESERVER"
    assert source in [t["ResourceId"] for t in smc.ok("ListTagResources", ResourceType="sourceserver", Tag_1_Key="a", Tag_1_Value="2")["TagResources"]["TagResource"]]
    assert smc.ok("DescribeSourceServers", SourceId_1=source, Tag_1_Key="a", Tag_1_Value="1")["TotalCount"] == 0
    smc.ok("UntagResources", **what, TagKey_1="a")
    assert len(smc.ok("ListTagResources", **what)["TagResources"]["TagResource"]) == 1
    smc.ok("UntagResources", **what, All="true")
    assert smc.ok("ListTagResources", **what)["TagResources"]["TagResource"] == []
    many = {f"Tag_{i + 1}_Key": f"k{i}" for i in range(20)}
    smc.ok("TagResources", **what, **many)
    for given, code in (({"ResourceType": ""}, "MissingParameter.ResourceType"), ({"ResourceType": "disk"}, "InvalidResourceType.NotFound"),
                        ({"ResourceId_1": "s-" + "0" * 16}, "InvalidResourceId.NotFound"), ({"ResourceId_1": "x"}, "InvalidResourceId.NotFound"),
                        ({"ResourceId_2": source}, "Duplicate.ResourceId"), ({"Tag_1_Key": "one more"}, "NumberExceed.Tags")):
        assert smc.refused("TagResources", **{**what, "Tag_1_Key": "k0", **given}) == (400, code)
    assert smc.refused("UntagResources", **what)[1] == "MissingParameter"


def test_lists_that_have_nothing(center, smc):
    assert smc.ok("DescribeSourceServers", State="Deleting")["TotalCount"] == 0
    agent = center.agent()
    job = new_job(smc, agent)
    assert smc.ok("DescribeSourceServers", JobId=job)["TotalCount"] == 1
    assert smc.ok("DescribeSourceServers", JobId=job, ResourceGroupId="rg-1")["TotalCount"] == 0
    assert smc.ok("DescribeSourceServers", JobId="j-" + "0" * 16)["TotalCount"] == 0
    both = {"JobId_1": job, "SourceId_1": their_id(agent.source)}
    assert smc.ok("DescribeReplicationJobs", **both)["TotalCount"] == 1
    assert smc.ok("DescribeReplicationJobs", **both, PageNumber="2")["ReplicationJobs"]["ReplicationJob"] == []
    smc.ok("DeleteReplicationJob", JobId=job)


def test_a_source_with_much_to_tell(center, smc):
    """Lists leave its inventory out; it has its disks all the same."""
    agent = center.agent(inventory=dict(INVENTORY, swaps=[{"path": "/x" * 100}] * 300))
    center.ok("PATCH", f"/v1/sources/{agent.source}", {"name": "talker"})
    (one,) = smc.ok("DescribeSourceServers", Name="talker")["SourceServers"]["SourceServer"]
    assert one["SystemDiskSize"] == 41 and one["Platform"] == "Debian"


def test_a_creation_is_repeated_when_the_source_is_away(fresh):
    center = fresh(HEARTBEAT=0.1)
    smc, agent = Smc(center), center.agent()
    first = new_job(smc, agent, ClientToken="t", ValidTime=stamp(9 * 86400))
    wait_for("away", lambda: center.ok("GET", f"/v1/sources/{agent.source}")["state"] == "unavailable")
    assert new_job(smc, agent, ClientToken="t", ValidTime=stamp(9 * 86400)) == first
    assert smc.refused("CreateReplicationJob", RegionId="local", SourceId=their_id(agent.source))[1] == "SourceServerState.Invalid"


def test_no_counterpart(smc):
    assert smc.refused("CreateCrossZoneMigrationJob", RegionId="local") == (400, "UnsupportedOperation")


def test_xml(smc):
    got = smc.call("DescribeSourceServers", changed={"Format": "XML"})
    assert got.status == 200 and got.headers["Content-Type"].startswith("text/xml")
    root = xml.etree.ElementTree.fromstring(got.raw)
    assert root.tag == "DescribeSourceServersResponse" and root.find("SourceServers/SourceServer/SourceId").text.startswith("s-")
    root = xml.etree.ElementTree.fromstring(smc.call("DescribeNothing<&>", changed={"Format": "xml"}).raw)
    assert root.tag == "Error" and root.find("Code").text == "InvalidAction.NotFound" and "<&>" in root.find("Message").text


def test_pages(center, smc):
    for _ in range(3):
        center.agent()
    first = smc.ok("DescribeSourceServers", PageSize="2")
    second = smc.ok("DescribeSourceServers", PageSize="2", PageNumber="2")
    seen = [s["SourceId"] for page in (first, second) for s in page["SourceServers"]["SourceServer"]]
    assert len(set(seen)) == 4 and first["TotalCount"] == second["TotalCount"] >= 4 and (second["PageNumber"], second["PageSize"]) == (2, 2)


# ---- clients that nobody here wrote ----

@pytest.fixture(scope="module")
def node_modules():
    try:
        return clients.modules(os.environ.get("REPLANT_CACHE") or cache.SOURCE / "build" / "cache")
    except clients.NoClients as why:
        pytest.skip(str(why))


@pytest.mark.skipif(not shutil.which("node"), reason="node is not here")
@pytest.mark.parametrize("kind", ["pop", "openapi"])
def test_published_clients(center, smc, node_modules, kind):
    agent = center.agent(inventory=dict(INVENTORY, hostname=f"of {kind}"))
    center.ok("PATCH", f"/v1/sources/{agent.source}", {"name": f"source of {kind}"})
    drive = clients.Drive(node_modules, kind, f"source of {kind}", f"https://127.0.0.1:{center.port}", smc.key, smc.secret, center.state / "ca.pem")
    told = {}
    for step in drive.steps():
        told[step["step"]] = step
        if step["step"] == "code":
            center.agent(code=step["code"])
        if step["step"] == "started":
            agent.send_all()
    status, said = drive.end()
    assert status == 0, said
    assert told["source"]["source"]["SourceId"] == their_id(agent.source)
    seen = told["finished"]["seen"]  # which of the steps it sees is a matter of moments, their order isn't
    after = seen[seen.index("Waiting") + 1:]
    assert seen[0] == "Ready" and after in (["Finished"], ["Running Cleaning", "Finished"]), seen
    assert told["finished"]["finished"]["ImageId"] == told["finished"]["waiting"]["ImageId"]
    assert center.get("/v1/images/image-" + told["finished"]["finished"]["ImageId"][2:]).status == 200
    assert told["gone"]["codes"][0]["RegisteredCount"] == "1" and told["gone"]["disabled"][0]["AccessTokenId"] == told["code"]["id"]
    assert (told["gone"]["again"], told["gone"]["unknown"]) == ("InvalidJobId.NotFound", "InvalidAction.NotFound")
