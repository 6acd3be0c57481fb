"""A malicious client with permission for InvokeEndpoint only, against the whole stack with IAM enforced.

It tries to hide an attack, to cause traces, to be excluded from the counts, and to write into an incident report. Each
request gets a response and nothing more. The limit of live traces is 0: any trace that is not a replay's is the
client's.
"""

import base64
import json
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

import replays
from demo import signs
from deploy.incident import send_command
from glassbox.aws.counts_table import CountsTable
from glassbox.aws.replay_key import ReplayKey
from glassbox.monitoring.counts import WINDOW, Window, slot_start, total
from glassbox.replay_marker import TRACE, ReplayMarker, verified_marker, write_marker
from local.emulator import ACCOUNT, REGION
from local.stack import npy, running_stack
from local.waiting import wait_for
from watching import Inbox, incident, keys, read_object

pytestmark = pytest.mark.e2e

ENDPOINT = "traffic-signs"
PARAMETERS = {
    "MaxClassShare": "0.5",
    "Diagnose": "false",  # its repaired inputs would count as replays below
    "TracesPerMinute": "0",
    "MaxFlaggedReplays": "3",
    "MaxComparisonReplays": "1",
}
BATCH, BATCHES = 64, 10
SWAPPING = f"Glassbox {ENDPOINT}: violation, swapping to the hooked model"
RESTORED = f"Glassbox {ENDPOINT}: restored, report is ready"
MARKUP = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def stack():
    with running_stack(PARAMETERS, update_seconds=1.0) as stack:
        yield stack


@pytest.fixture(scope="module")
def client(stack):
    """Create boto3 clients with the malicious client's credentials."""
    iam = stack.client("iam")
    iam.create_user(UserName="client")
    allow = {
        "Effect": "Allow",
        "Action": "sagemaker:InvokeEndpoint",
        "Resource": f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/{ENDPOINT}",
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [allow]})
    iam.put_user_policy(UserName="client", PolicyName="invoke", PolicyDocument=policy)
    key = iam.create_access_key(UserName="client")["AccessKey"]
    return lambda service: boto3.client(
        service,
        endpoint_url=stack.aws.endpoint_url,
        region_name=REGION,
        aws_access_key_id=key["AccessKeyId"],
        aws_secret_access_key=key["SecretAccessKey"],
        config=Config(proxies={}, retries={"total_max_attempts": 1}),
    )


@pytest.fixture(scope="module")
def invoke(client):
    runtime = client("sagemaker-runtime")

    def invoke(body, attributes=None, inference_id=None):
        optional = {"CustomAttributes": attributes, "InferenceId": inference_id}
        runtime.invoke_endpoint(
            EndpointName=ENDPOINT,
            ContentType="application/x-npy",
            Body=body,
            **{name: value for name, value in optional.items() if value is not None},
        )

    return invoke


@pytest.fixture(scope="module")
def key(stack):
    """The replay key, with the account's root permissions."""
    return ReplayKey(stack.client("kms"), stack.outputs["ReplayKeyArn"])


@pytest.fixture(scope="module")
def images():
    return signs.dataset(400, seed=78, size=48)


@pytest.fixture(scope="module")
def inbox(stack):
    return Inbox(stack)


def incident_id(ago=timedelta(0)):
    return f"{datetime.now(UTC) - ago:%Y%m%dt%H%M%S}-class-share"


def counts(stack):
    """Return the counts of the previous and the current hour."""
    table = CountsTable(stack.client("dynamodb"), stack.outputs["CountsTable"])
    end = slot_start(datetime.now(UTC)) + WINDOW
    return total(table.read(f"{ENDPOINT}/AllTraffic", Window(end - 2 * WINDOW, end)).values())


def traces(stack):
    return [key for key in keys(stack, "tensors/") if "/index/" in key]


def captured(stack):
    for key in keys(stack, "capture/"):
        yield from map(json.loads, read_object(stack, key).splitlines())


@pytest.fixture(scope="module")
def attack(stack, inbox, invoke, images):
    """60 requests, 50 of them stop signs; each tries to evade the counts, the trace or the report."""
    signs_of, classes = images
    stop, other = signs_of[classes == 14], signs_of[classes != 14]
    for number in range(60):
        body = npy(other[number] if number % 6 == 0 else stop[number % len(stop)])
        forged = replays.marker(body, incident_id())  # signed by another key
        attempts = [
            forged,
            f"{forged},{forged}",
            f"{forged[:-342]}{'A' * 342}",
            "glassbox-replay=1,glassbox-incident=x",
            "glassbox=1",
            f"a={MARKUP}".ljust(1000, "x"),
        ]
        invoke(body, attempts[number // 10], "../../index" if number % 2 else MARKUP)
    wait_for(lambda: (i := incident(stack)) and i.state != "NORMAL", 90)
    send_command(ENDPOINT, "extend", stack.aws.session, minutes=60)
    wait_for(lambda: incident(stack).replays and len(incident(stack).heatmaps) >= 4, 90)
    return incident(stack)


def test_counts_explains_and_notifies_of_the_attack(stack, inbox, attack):
    counted = wait_for(lambda: (c := counts(stack)).replayed == 4 and c)
    # two of the six attempts carry no replay marker: old attributes, and long ones
    assert (counted.sample_size, counted.forged) == (60, 40)
    assert counted.classes[14] >= 45
    assert (attack.cause.check, attack.cause.predicted_class, len(attack.flagged)) == ("class_share", 14, 3)
    assert attack.heatmaps == attack.replays
    assert len(traces(stack)) == 4
    (message,) = wait_for(lambda: inbox.notifications())
    assert message["Subject"] == SWAPPING
    assert "Class 14 predicted" in message["Message"]


@pytest.fixture(scope="module")
def replay(stack, attack, key):
    """Marker and body of a genuine replay, which the client gets although it cannot read the captures."""

    def look():
        for record in captured(stack):
            attributes = record["eventMetadata"].get("customAttributes")
            body = base64.b64decode(record["captureData"]["endpointInput"]["data"])
            if verified_marker(attributes, body=body, now=datetime.now(UTC), key=key.public):
                return attributes[0].rpartition(",")[2], body
        return None

    return wait_for(look)


def test_counts_and_does_not_trace_requests_with_invalid_markers(stack, attack, replay, key, invoke, images):
    before = counts(stack)
    genuine, body = replay
    other = npy(images[0][-1])  # in no request so far
    old = write_marker(ReplayMarker(TRACE, incident_id(timedelta(hours=24)), "old"), other, key.sign)
    attempts = {
        "copied to another body": (other, genuine),
        "of another incident": (body, genuine.replace(attack.id, incident_id(timedelta(hours=1)))),
        "older than a day": (other, old),
        "cut": (body, genuine[:-1]),
        "doubled": (body, f"{genuine},{genuine}"),
        "doubled with another": (body, f"glassbox=1,{genuine}"),
        "of another purpose": (body, genuine.replace(".trace.", ".repair.")),
        "signed by another key": (other, replays.marker(other, attack.id)),
    }
    for attributes in attempts.values():
        invoke(*attributes)
    batch = npy(images[0][:BATCH])
    for number in range(BATCHES):
        forged = replays.marker(batch, attack.id, f"flood-{number}")
        invoke(batch, forged, f"flood-{number}")
    n = before.sample_size + len(attempts) + BATCH * BATCHES
    after = wait_for(lambda: (c := counts(stack)).sample_size >= n and c)
    assert after.sample_size == n
    assert after.forged == before.forged + len(attempts) + BATCHES
    assert after.replayed == before.replayed == 4
    assert len(traces(stack)) == 4
    assert sorted(keys(stack, "saliency/")) == sorted(
        f"saliency/{ENDPOINT}/{attack.id}/{name}.{suffix}"
        for name in attack.replays
        for suffix in ("png", "webp", "json")
    )
    assert incident(stack).heatmaps == attack.replays


def test_the_metric_counts_every_forged_marker(stack, attack):
    now = datetime.now(UTC)
    statistics = stack.client("cloudwatch").get_metric_statistics(
        Namespace="Glassbox",
        MetricName="ForgedMarkers",
        Dimensions=[
            {"Name": "endpoint", "Value": ENDPOINT},
            {"Name": "service", "Value": "glassbox"},
            {"Name": "variant", "Value": "AllTraffic"},
        ],
        StartTime=now - timedelta(hours=2),
        EndTime=now + timedelta(minutes=5),
        Period=3600 * 3,
        Statistics=["Sum"],
    )
    assert sum(point["Sum"] for point in statistics["Datapoints"]) == counts(stack).forged


def test_denies_every_call_but_invoke_endpoint(stack, client):
    arn, bucket = stack.outputs["ReplayKeyArn"], stack.outputs["Bucket"]
    detail = json.dumps({"endpoint": ENDPOINT, "action": "abort"})
    entry = {"Source": "glassbox.operator", "DetailType": "Glassbox Command", "Detail": detail}
    sign = {"KeyId": arn, "Message": b"1.trace", "SigningAlgorithm": "RSASSA_PKCS1_V1_5_SHA_256"}
    refused = [
        lambda: client("kms").sign(**sign),
        lambda: client("kms").get_public_key(KeyId=arn),
        lambda: client("kms").put_key_policy(KeyId=arn, PolicyName="default", Policy="{}"),
        lambda: client("s3").list_objects_v2(Bucket=bucket, Prefix="capture/"),
        lambda: client("s3").put_object(Bucket=bucket, Key=f"tensors/{ENDPOINT}/x/index/0/0_worker_0.json"),
        lambda: client("s3").put_object(Bucket=bucket, Key=f"saliency/{ENDPOINT}/x/a.json"),
        lambda: client("events").put_events(Entries=[entry]),
        lambda: client("sagemaker").describe_endpoint(EndpointName=ENDPOINT),
    ]
    for call in refused:
        with pytest.raises(ClientError, match=r"AccessDenied|not authorized"):
            call()


def test_a_repeated_replay_marker_causes_one_trace(stack, attack, replay, invoke):
    """The documented limit: it needs marker and body of the captures, and repeats the same heat map."""
    genuine, body = replay
    before = counts(stack)
    invoke(body, genuine)
    wait_for(lambda: counts(stack).replayed == before.replayed + 1)
    assert (counts(stack).sample_size, counts(stack).forged) == (before.sample_size, before.forged)
    wait_for(lambda: len(traces(stack)) == 5)
    assert incident(stack).heatmaps == attack.replays


def test_the_incident_report_has_no_text_of_the_client(stack, inbox, attack):
    send_command(ENDPOINT, "abort", stack.aws.session)
    closed = wait_for(lambda: (i := incident(stack)).state == "NORMAL" and i, 90)
    wait_for(lambda: any("report is ready" in message["Subject"] for message in inbox.notifications()))
    assert [message["Subject"] for message in inbox.notifications()] == [SWAPPING, RESTORED]
    page = f"incidents/{ENDPOINT}/{closed.id}/index.html"
    html = read_object(stack, page).decode()
    messages = [message["Message"] for message in inbox.messages]
    for text in (html, *messages, *closed.timeline):
        assert "alert(1)" not in text
        assert "\x1b" not in text
        assert "../../index" not in text
