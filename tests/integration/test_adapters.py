"""The adapters against moto, and the fakes by the same contract."""

import io
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, ParamValidationError
from botocore.response import StreamingBody
from botocore.stub import Stubber
from moto import mock_aws

from fakes import FakeEndpoint, FakeIncidents, FakeObjects
from glassbox.aws.counts_table import CountsTable
from glassbox.aws.endpoint import Runtime, SageMakerEndpoint
from glassbox.aws.events import Events
from glassbox.aws.incidents_table import IncidentsTable, _item
from glassbox.aws.objects import Objects
from glassbox.aws.processing import ProcessingJobs
from glassbox.aws.replay_key import ReplayKey
from glassbox.aws.topic import Topic
from glassbox.errors import BadInputError, ConflictError, RetryableError
from glassbox.incidents.model import (
    FINDINGS_KEPT,
    HEATMAPS_KEPT,
    RELATED_KEPT,
    EndpointState,
    Incident,
    Request,
    State,
)
from glassbox.incidents.notifications import Notice
from glassbox.monitoring.counts import Window
from glassbox.replay_marker import PublicKey
from glassbox.violation import Violation
from simulation.services import INCIDENTS
from simulation.services import Aws as SimulatedAws

AT = datetime(2026, 11, 23, 10, 21, tzinfo=UTC)
CAUSE = Violation("traffic-signs", "class_share", AT, AT + timedelta(hours=1), "Class 14 …", "AllTraffic", 14)
LATE = Violation("traffic-signs", "monitor", AT, AT + timedelta(hours=1), "Class 14 …")
FIRST = Incident(
    "traffic-signs", "20261123t102100-class-share", AT, State.SWAPPING, AT, "plain", "hooked", CAUSE
)
SECOND = replace(FIRST, id="20261123t112100-drift", opened=AT + timedelta(hours=1))


@pytest.fixture
def aws():
    with mock_aws():
        yield


@pytest.fixture(params=["fake", "table", "simulated"])
def incidents(request, aws):
    if request.param == "fake":
        return FakeIncidents()
    if request.param == "simulated":
        return IncidentsTable(SimulatedAws().client("dynamodb"), INCIDENTS)
    client = boto3.client("dynamodb")
    client.create_table(
        TableName="incidents",
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": k, "AttributeType": "S"} for k in ("pk", "sk")],
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}, {"AttributeName": "sk", "KeyType": "RANGE"}],
    )
    return IncidentsTable(client, "incidents")


def test_open_refuses_a_second_incident(incidents):
    assert incidents.current("traffic-signs") is None
    incidents.open(FIRST)
    with pytest.raises(ConflictError):
        incidents.open(SECOND)
    assert incidents.current("traffic-signs") == FIRST
    assert incidents.current("another") is None


def test_saved_incident_is_read_unchanged(incidents):
    incidents.open(FIRST)
    after = replace(
        FIRST,
        state=State.HOOKED,
        since=AT + timedelta(minutes=5),
        deadline=AT + timedelta(minutes=20),
        keep_hooked_until=AT + timedelta(minutes=40),
        last_replay_at=AT + timedelta(minutes=6),
        replay_attempts=2,
        retries=3,
        unanswered=frozenset({"b"}),
        unreported="S3 is away",
        notify_only=True,
        aborted=True,
        requested=True,
        replays=frozenset({"a", "b"}),
        flagged=frozenset({"a"}),
        failure="It failed.\nIt is to be put right.",
        headline="Glassbox traffic-signs: failed",
        sent_notifications=frozenset({"opened"}),
        claims={"cooldown drift": AT + timedelta(minutes=7)},
        report="s3://bucket/incidents/index.html",
        findings=("2 x class 14", "1 x class 3"),
        timeline=("2026-11-23T10:26:00Z HOOKED",),
        revision=1,
    )
    incidents.save(FIRST, after)
    assert incidents.current("traffic-signs") == after
    nothing = replace(after, replays=frozenset(), revision=2)
    incidents.save(after, nothing)
    assert incidents.current("traffic-signs").replays == frozenset()


def test_names_are_bounded_and_replays_always_fit(incidents):
    incidents.open(FIRST)
    hooked = replace(
        FIRST,
        state=State.HOOKED,
        replays=frozenset({"asked-1", "asked-2"}),
        unanswered=frozenset({"asked-2"}),
        revision=1,
    )
    incidents.save(FIRST, hooked)
    for n in range(10_000 if isinstance(incidents, FakeIncidents) else HEATMAPS_KEPT + 20):
        incidents.add_heatmap(
            FIRST, f"20261123T101512Z-ip-10-0-161-203.eu-west-1.compute.internal-1-5f0c9a3e-{n:06d}"
        )
    for n in range(2 * RELATED_KEPT):
        incidents.attach(FIRST, replace(LATE, window_start=AT - timedelta(minutes=n)))
    incidents.add_heatmap(FIRST, "asked-1")
    incidents.add_refusal(FIRST, "asked-2")
    current = incidents.current("traffic-signs")
    assert (len(current.heatmaps), len(current.related_violations)) == (HEATMAPS_KEPT + 1, RELATED_KEPT)
    assert ("asked-1" in current.heatmaps, current.refused) == (True, {"asked-2"})
    restoring = replace(current, state=State.RESTORING, unanswered=frozenset(), revision=2)
    incidents.save(current, restoring)
    incidents.save(restoring, replace(restoring, state=State.NORMAL, revision=3))
    assert incidents.current("traffic-signs").state is State.NORMAL
    (past,) = incidents.past("traffic-signs", AT)
    assert len(past.heatmaps) == HEATMAPS_KEPT + 1


def test_largest_incident_fits_into_an_item():
    """Characters of four bytes and the longest names, with the size as DynamoDB computes it (400 KB)."""
    wide = "\U0001f6d1"
    replays = frozenset(f"{n:064d}" for n in range(200))
    violation = replace(CAUSE, endpoint="e" * 63, variant="v" * 63, predicted_class=wide * 64)
    full = replace(
        FIRST,
        endpoint="e" * 63,
        cause=replace(violation, reason=wide * 2000),
        related_violations=frozenset(
            replace(violation, check=f"{n:041d}", reason=wide * 400) for n in range(RELATED_KEPT)
        ),
        replays=replays,
        flagged=replays,
        unanswered=replays,
        refused=replays,
        heatmaps=frozenset(f"{n:0138d}" for n in range(HEATMAPS_KEPT)) | replays,
        failure=wide * 4000,
        findings=(wide * 160,) * FINDINGS_KEPT,
        unreported=wide * 1000,
        timeline=(wide * 262,) * 60,
        sent_notifications=frozenset(f"cooldown {n:041d}" for n in range(100)),
        claims={f"cooldown {n:041d}": AT for n in range(100)},
    )
    size = sum(len(name) + _bytes(value) for name, value in _item(full, "current").items())
    assert 300_000 < size < 409_600


def _bytes(value):
    ((kind, held),) = value.items()
    if kind == "L":
        return 3 + sum(1 + _bytes(one) for one in held)
    return sum(len(one.encode()) for one in (held if kind == "SS" else [str(held)]))


def test_stale_writer_gets_a_conflict(incidents):
    incidents.open(FIRST)
    incidents.save(FIRST, replace(FIRST, requested=True, revision=1))
    with pytest.raises(ConflictError):
        incidents.save(FIRST, replace(FIRST, state=State.FAILED, revision=1))
    assert incidents.current("traffic-signs").state is State.SWAPPING


def test_heatmaps_and_violations_survive_concurrent_saves(incidents):
    incidents.open(FIRST)
    for name in ("a", "b", "a"):
        incidents.add_heatmap(FIRST, name)
    incidents.attach(FIRST, LATE)
    incidents.save(FIRST, replace(FIRST, requested=True, revision=1))
    current = incidents.current("traffic-signs")
    assert (current.heatmaps, current.related_violations, current.requested) == ({"a", "b"}, {LATE}, True)
    incidents.add_heatmap(SECOND, "of another incident")
    assert incidents.current("traffic-signs").heatmaps == {"a", "b"}


def test_closed_incident_is_kept_and_the_next_may_open(incidents):
    incidents.open(FIRST)
    incidents.add_heatmap(FIRST, "a")
    current = incidents.current("traffic-signs")
    incidents.save(current, replace(current, state=State.NORMAL, revision=1))
    incidents.open(SECOND, FIRST)
    incidents.attach(FIRST, LATE)
    (past,) = incidents.past("traffic-signs", AT - timedelta(days=1))
    assert (past.id, past.state, past.heatmaps, past.related_violations) == (
        FIRST.id,
        State.NORMAL,
        {"a"},
        {LATE},
    )
    assert incidents.current("traffic-signs").related_violations == frozenset()


def test_past_includes_the_incident_that_was_open_at_that_time(incidents):
    """An operator may extend an incident for days: what joined it last is as recent as its end."""
    last = None
    for days in range(3):
        incident = replace(FIRST, id=f"incident-{days}", opened=AT + timedelta(days=days))
        incidents.open(incident, last)
        incidents.save(incident, replace(incident, state=State.NORMAL, revision=1))
        last = incident
    since = [AT + timedelta(hours=hours) for hours in (-1, 0, 1, 24, 25, 72)]
    found = [[past.id[-1] for past in incidents.past("traffic-signs", at)] for at in since]
    assert found == [["0", "1", "2"], ["0", "1", "2"], ["0", "1", "2"], ["0", "1", "2"], ["1", "2"], ["2"]]


def test_an_incident_that_was_opened_and_closed_meanwhile_is_a_conflict(incidents):
    """The cooldown, the daily cap and duplicates were decided without that incident."""
    incidents.open(FIRST)
    incidents.save(FIRST, replace(FIRST, state=State.NORMAL, revision=1))
    for last in (None, SECOND):
        with pytest.raises(ConflictError):
            incidents.open(SECOND, last)
    incidents.open(SECOND, FIRST)
    assert incidents.current("traffic-signs") == SECOND


def test_a_second_copy_of_a_closed_incident_keeps_what_was_added(incidents):
    """Of two invocations that close an incident, the slower one copies it after the other has closed it."""
    incidents.open(FIRST)
    incidents.attach(FIRST, LATE)
    current = incidents.current("traffic-signs")
    incidents.save(current, replace(current, state=State.NORMAL, revision=1))
    with pytest.raises(ConflictError):
        incidents.save(FIRST, replace(FIRST, state=State.NORMAL, revision=1))
    (past,) = incidents.past("traffic-signs", AT)
    assert past.related_violations == {LATE}


def test_past_reads_all_incidents_over_several_pages(incidents):
    """A query returns pages of 1 MB; an incident on an unread page would not count for the daily cap."""
    last = None
    for hours in range(6):
        large = replace(
            FIRST, id=f"incident-{hours}", opened=AT + timedelta(hours=hours), failure="x" * 300_000
        )
        incidents.open(large, last)
        incidents.save(large, replace(large, state=State.NORMAL, revision=1))
        last = large
    assert [past.id for past in incidents.past("traffic-signs", AT)] == [f"incident-{n}" for n in range(6)]
    assert len(incidents.past("traffic-signs", AT + timedelta(hours=2))) == 5


def test_closed_incident_accepts_writes_and_its_copy_does_not(incidents):
    incidents.open(FIRST)
    closed = replace(FIRST, state=State.NORMAL, revision=1)
    incidents.save(FIRST, closed)
    incidents.save(closed, replace(closed, sent_notifications=frozenset({"cap"}), revision=2))
    assert incidents.current("traffic-signs").sent_notifications == {"cap"}
    (past,) = incidents.past("traffic-signs", AT - timedelta(days=1))
    assert (past.sent_notifications, past.revision) == (frozenset(), 1)


def test_a_reported_config_is_never_claimed_again(incidents):
    incidents.record_report("traffic-signs", "new")
    incidents.record_report("traffic-signs", "new")
    assert not incidents.claim_report("traffic-signs", "new", AT, AT - timedelta(days=9))
    assert not incidents.claim_report("traffic-signs", "new", AT, AT + timedelta(days=9))
    assert incidents.claim_report("traffic-signs", "newer", AT, AT)
    assert incidents.claim_report("another", "new", AT, AT)


def test_one_invocation_claims_the_report_of_a_config_and_another_takes_over_a_stale_claim(incidents):
    minute = timedelta(minutes=1)
    assert incidents.claim_report("traffic-signs", "new", AT, AT - minute)
    assert not incidents.claim_report("traffic-signs", "new", AT + minute / 2, AT - minute / 2)
    assert incidents.claim_report("traffic-signs", "new", AT + minute, AT)
    assert not incidents.claim_report("traffic-signs", "new", AT + minute, AT)
    incidents.record_report("traffic-signs", "new")
    assert not incidents.claim_report("traffic-signs", "new", AT + 9 * minute, AT + 8 * minute)


def test_the_last_command_decides_about_a_pause(incidents):
    hour, minute = timedelta(hours=1), timedelta(minutes=1)
    assert incidents.paused_until("traffic-signs") is None
    incidents.pause("traffic-signs", AT + hour, AT)
    assert incidents.paused_until("traffic-signs") == AT + hour
    incidents.pause("traffic-signs", AT + minute, AT + minute)  # resumed
    incidents.pause("traffic-signs", AT + hour, AT)  # the first command again
    assert incidents.paused_until("traffic-signs") == AT + minute
    assert incidents.paused_until("another") is None
    assert incidents.current("traffic-signs") is None
    assert list(incidents.past("traffic-signs", AT)) == []


@pytest.fixture(params=["fake", "s3", "simulated"])
def objects(request, aws):
    if request.param == "fake":
        return FakeObjects()
    if request.param == "simulated":
        return Objects(SimulatedAws().client("s3"))
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    return Objects(client)


def test_get_returns_the_written_object(objects):
    objects.put("bucket", "k.json", b"{}", "application/json")
    assert objects.get("bucket", "k.json") == b"{}"


def test_get_raises_bad_input_for_a_missing_object(objects):
    with pytest.raises(BadInputError, match="s3://bucket/gone"):
        objects.get("bucket", "gone")


def test_get_refuses_a_body_beyond_the_bound(aws):
    client = boto3.client("s3", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    client.put_object(Bucket="bucket", Key="big", Body=b"x" * 1001)
    with pytest.raises(BadInputError, match="at most 1000 bytes, got 1001"):
        Objects(client).get("bucket", "big", at_most=1000)


@pytest.mark.parametrize("code", ["SlowDown", "InternalError", "AccessDenied"])
def test_other_errors_of_s3_raise_retryable(code):
    client = boto3.client("s3")
    with Stubber(client) as stub:
        stub.add_client_error("get_object", code)
        with pytest.raises(RetryableError, match="s3://b/k"):
            Objects(client).get("b", "k")


def test_denied_read_names_a_missing_object_as_a_cause():
    client = boto3.client("s3")
    with Stubber(client) as stub:
        stub.add_client_error("get_object", "AccessDenied", "Access Denied")
        with pytest.raises(RetryableError, match="s3://b/k does not exist, or s3:GetObject is not allowed: "):
            Objects(client).get("b", "k")


@pytest.mark.parametrize(
    ("region", "link"),
    [
        ("eu-west-1", "https://s3.console.aws.amazon.com/s3/object/b?region=eu-west-1&prefix=a/b%26c.html"),
        ("cn-north-1", "https://console.amazonaws.cn/s3/object/b?region=cn-north-1&prefix=a/b%26c.html"),
        (
            "us-gov-west-1",
            "https://console.amazonaws-us-gov.com/s3/object/b?region=us-gov-west-1&prefix=a/b%26c.html",
        ),
        ("us-iso-east-1", ""),
    ],
)
def test_the_console_of_the_partition_opens_an_object(region, link):
    assert Objects(boto3.client("s3", region_name=region)).console_link("b", "a/b&c.html") == link


def test_notice_arrives_with_its_attributes(aws):
    sns, sqs = boto3.client("sns"), boto3.client("sqs")
    topic = sns.create_topic(Name="ops")["TopicArn"]
    queue = sqs.create_queue(QueueName="inbox")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn)
    Topic(sns, topic).publish(Notice("swapping", "traffic-signs", "subject", "first line\nsecond"))
    (message,) = sqs.receive_message(QueueUrl=queue)["Messages"]
    body = json.loads(message["Body"])
    assert body["Subject"] == "subject"
    facts = json.loads(body["Message"])  # those of the protocol sqs
    assert (facts["subject"], facts["text"]) == ("subject", "first line\nsecond")
    attributes = {name: attribute["Value"] for name, attribute in body["MessageAttributes"].items()}
    assert attributes == {
        "event": "swapping",
        "severity": "warning",
        "deduplication_key": "traffic-signs.swapping",
        "endpoint": "traffic-signs",
    }


def test_notice_is_escaped_and_shortened_to_the_limits_of_sns(aws):
    requests = []
    client = SimpleNamespace(publish=lambda **request: requests.append(request))
    text = "Class a\x1b[31m\r\nfacts\x00\n" + "\u00e9" * 400_000
    subject = "Glassbox\nBcc: x\x1b " + "é" * 200
    Topic(client, "arn").publish(Notice("swapping", "traffic-signs", subject, text))
    (request,) = requests
    assert len(request["Subject"]) <= 100
    assert request["Subject"].startswith(r"Glassbox\nBcc: x\x1b ")
    assert request["Subject"].isascii()
    assert len(request["Message"].encode()) < 262_144
    assert json.loads(request["Message"])["email"].startswith("Class a\\x1b[31m\\r\nfacts\\x00\né")


def test_unavailable_topic_raises_retryable(aws):
    with pytest.raises(RetryableError, match="subject"):
        Topic(boto3.client("sns"), "arn:aws:sns:eu-west-1:123456789012:gone").publish(
            Notice("swapping", "traffic-signs", "subject", "t")
        )


@pytest.fixture
def sagemaker():
    client = boto3.client("sagemaker")
    with Stubber(client) as stub:
        yield SageMakerEndpoint(client), stub


def test_describe_returns_status_and_config(sagemaker):
    endpoint, stub = sagemaker
    arn = "arn:aws:sagemaker:eu-west-1:111122223333:endpoint/traffic-signs"
    answer = {
        "EndpointName": "traffic-signs",
        "EndpointArn": arn,
        "EndpointConfigName": "plain",
        "EndpointStatus": "InService",
        "CreationTime": 0,
        "LastModifiedTime": 0,
    }
    stub.add_response("describe_endpoint", answer, {"EndpointName": "traffic-signs"})
    assert endpoint.describe("traffic-signs") == EndpointState("InService", "plain", "")
    answer |= {"EndpointStatus": "Failed", "FailureReason": "container\nlog \x1b[31m"}
    stub.add_response("describe_endpoint", answer, {"EndpointName": "traffic-signs"})
    assert endpoint.describe("traffic-signs").failure == r"container\nlog \x1b[31m"


ARN = "arn:aws:sagemaker:eu-west-1:111122223333:endpoint/traffic-signs"
UPDATE = {
    "EndpointName": "traffic-signs",
    "EndpointConfigName": "hooked",
    "RetainAllVariantProperties": True,
}


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        ("ValidationException", f'Cannot update in-progress endpoint "{ARN}".', RetryableError),
        ("ValidationException", f'Could not find endpoint "{ARN}".', BadInputError),
        ("ValidationException", f'Could not find endpoint configuration "{ARN}".', BadInputError),
        ("ResourceLimitExceeded", "The account-level service limit …", RetryableError),
        ("ThrottlingException", "Rate exceeded", RetryableError),
        (
            "AccessDeniedException",
            "User: … is not authorized to perform: sagemaker:UpdateEndpoint",
            BadInputError,
        ),
        ("ValidationException", "User: … is not authorized to perform: kms:CreateGrant on …", BadInputError),
        ("ValidationException", "The KMS key arn:… is disabled", BadInputError),
        ("InternalFailure", "", RetryableError),
    ],
)
def test_errors_of_update_endpoint_are_translated(sagemaker, code, message, kind):
    endpoint, stub = sagemaker
    stub.add_client_error("update_endpoint", code, message, expected_params=UPDATE)
    with pytest.raises(kind, match=message[:20]):
        endpoint.update("traffic-signs", "hooked", guarded=True)


def test_missing_endpoint_is_described_as_deleted(sagemaker):
    endpoint, stub = sagemaker
    message = f'Could not find endpoint "{ARN}".'
    stub.add_client_error("describe_endpoint", "ValidationException", message)
    live = endpoint.describe("traffic-signs")
    assert (live.status, live.config) == ("Deleted", "")
    assert message in live.failure
    fake = FakeEndpoint("plain")
    fake.delete()
    assert fake.describe("traffic-signs").status == live.status


def test_denied_describe_is_not_described_as_deleted(sagemaker):
    endpoint, stub = sagemaker
    stub.add_client_error("describe_endpoint", "AccessDeniedException", "not authorized to perform: …")
    with pytest.raises(BadInputError, match="not authorized"):
        endpoint.describe("traffic-signs")


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("ModelError", 400, BadInputError),
        ("ModelError", 499, BadInputError),
        ("ModelError", 500, RetryableError),
        ("ModelError", 503, RetryableError),
        ("ModelError", None, BadInputError),
        ("ValidationError", None, BadInputError),
        ("ServiceUnavailable", None, RetryableError),
        ("ModelNotReadyException", None, RetryableError),
    ],
)
def test_errors_of_invoke_endpoint_are_translated(code, status, kind):
    client = boto3.client("sagemaker-runtime")
    with Stubber(client) as stub:
        fields = {"OriginalStatusCode": status} if status else {}
        stub.add_client_error("invoke_endpoint", code, "message", modeled_fields=fields)
        with pytest.raises(kind, match="message"):
            Runtime(client).invoke("traffic-signs", Request("event-1", "Blue", b"image", "image/png", "a=b"))


# a request that botocore itself refuses, of every adapter: it can never be sent
BAD_REQUESTS = {
    "counts": lambda: CountsTable(boto3.client("dynamodb"), "").read(
        "e", Window(AT, AT + timedelta(hours=1))
    ),
    "replay key": lambda: ReplayKey(boto3.client("kms"), "").public(),
    "events": lambda: Events(boto3.client("events")).put(7, "type", {}),
    "incidents": lambda: IncidentsTable(boto3.client("dynamodb"), "t").current(7),
    "jobs": lambda: ProcessingJobs(boto3.client("sagemaker")).create({"ProcessingJobName": 7}),
    "objects": lambda: Objects(boto3.client("s3")).get("bucket", ""),
    "runtime": lambda: Runtime(boto3.client("sagemaker-runtime")).invoke(
        "e", Request("", "v", b"", "t", "a")
    ),
    "sagemaker": lambda: SageMakerEndpoint(boto3.client("sagemaker")).update("e", 7, guarded=False),
    "topic": lambda: Topic(boto3.client("sns"), 7).publish(Notice("swapping", "e", "s", "t")),
}


@pytest.mark.parametrize("call", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_request_that_botocore_refuses_raises_bad_input(aws, call):
    with pytest.raises(BadInputError) as error:
        call()
    assert isinstance(error.value.__cause__, ParamValidationError)


def test_update_keeps_the_scaled_instance_counts(sagemaker):
    endpoint, stub = sagemaker
    stub.add_response("update_endpoint", {"EndpointArn": ARN}, UPDATE)
    endpoint.update("traffic-signs", "hooked", guarded=True)
    stub.assert_no_pending_responses()


def test_guarded_update_bakes_under_the_rollback_alarm():
    client = boto3.client("sagemaker")
    with Stubber(client) as stub:  # botocore validates the request against SageMaker's own model
        stub.add_response(
            "update_endpoint",
            {"EndpointArn": ARN},
            UPDATE
            | {
                "DeploymentConfig": {
                    "BlueGreenUpdatePolicy": {
                        "TrafficRoutingConfiguration": {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 120},
                        "TerminationWaitInSeconds": 120,
                    },
                    "AutoRollbackConfiguration": {"Alarms": [{"AlarmName": "traffic-signs-5xx"}]},
                },
            },
        )
        SageMakerEndpoint(client, "traffic-signs-5xx").update("traffic-signs", "hooked", guarded=True)


def test_unguarded_update_has_no_rollback_alarm():
    client = boto3.client("sagemaker")
    with Stubber(client) as stub:
        stub.add_response("update_endpoint", {"EndpointArn": ARN}, UPDATE)
        SageMakerEndpoint(client, "traffic-signs-5xx").update("traffic-signs", "hooked", guarded=False)


def test_invoke_targets_the_variant_of_the_captured_request():
    client = boto3.client("sagemaker-runtime")
    with Stubber(client) as stub:
        wanted = {
            "EndpointName": "traffic-signs",
            "Body": b"image",
            "ContentType": "image/png",
            "InferenceId": "event-1",
            "CustomAttributes": "glassbox=1.trace",
            "TargetVariant": "Blue",
        }
        answer = {"Body": StreamingBody(io.BytesIO(b"[[14]]"), 6), "ContentType": "text/csv"}
        stub.add_response("invoke_endpoint", answer, wanted)
        request = Request("event-1", "Blue", b"image", "image/png", "glassbox=1.trace")
        assert Runtime(client).invoke("traffic-signs", request) == (b"[[14]]", "text/csv")
        stub.assert_no_pending_responses()


def test_network_error_raises_retryable(monkeypatch):
    client = boto3.client("sagemaker")

    def away(**request):
        raise EndpointConnectionError(endpoint_url="https://api.sagemaker.eu-west-1.amazonaws.com/")

    monkeypatch.setattr(client, "describe_endpoint", away)
    with pytest.raises(RetryableError, match="Could not connect"):
        SageMakerEndpoint(client).describe("traffic-signs")


def test_fake_endpoint_refuses_what_sagemaker_refuses():
    fake = FakeEndpoint("plain")
    fake.update("traffic-signs", "hooked", guarded=True)
    with pytest.raises(RetryableError, match="in-progress"):
        fake.update("traffic-signs", "hooked", guarded=True)


def test_missing_table_raises_retryable(aws):
    table = IncidentsTable(boto3.client("dynamodb"), "gone")
    for call in (
        lambda: table.open(FIRST),
        lambda: table.current("x"),
        lambda: table.past("x", AT),
        lambda: table.add_heatmap(FIRST, "a"),
    ):
        with pytest.raises(RetryableError) as error:
            call()
        assert isinstance(error.value.__cause__, ClientError)


@pytest.fixture
def kms(aws):
    return boto3.client("kms")


def test_kms_signature_verifies_with_the_public_key(kms):
    arn = kms.create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
    key = ReplayKey(kms, arn)
    assert key.public().verifies(b"1.trace.x", key.sign(b"1.trace.x"))
    assert not key.public().verifies(b"1.trace.y", key.sign(b"1.trace.x"))


def test_public_key_is_cached_and_a_failure_is_not(kms):
    der = kms.get_public_key(
        KeyId=kms.create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["KeyId"]
    )["PublicKey"]
    client = boto3.client("kms")
    with Stubber(client) as stub:
        stub.add_client_error("get_public_key", "AccessDeniedException", "not allowed")
        stub.add_response("get_public_key", {"PublicKey": der}, {"KeyId": "arn"})
        key = ReplayKey(client, "arn")
        with pytest.raises(RetryableError, match=r"arn: kms get_public_key failed: .*not allowed"):
            key.public()
        assert key.public() == key.public() == PublicKey.from_der(der)


@pytest.mark.parametrize("code", ["AccessDeniedException", "ThrottlingException", "DisabledException"])
def test_refused_signature_raises_retryable(kms, code):
    client = boto3.client("kms")
    with Stubber(client) as stub:
        stub.add_client_error("sign", code)
        with pytest.raises(RetryableError, match="arn: kms sign failed"):
            ReplayKey(client, "arn").sign(b"message")


def test_another_kind_of_key_raises_bad_input(kms):
    arn = kms.create_key(KeySpec="RSA_4096", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
    with pytest.raises(BadInputError, match="expected the SubjectPublicKeyInfo of an RSA_2048 key"):
        ReplayKey(kms, arn).public()
