"""start_monitor as Lambda runs it, and the adapters of counting, against moto and botocore's stubs."""

import json
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError
from botocore.stub import Stubber
from moto import mock_aws

from glassbox.aws.events import Events
from glassbox.aws.objects import Objects
from glassbox.aws.processing import ProcessingJobs
from glassbox.errors import BadInputError, ConflictError, RetryableError
from glassbox.replay_marker import PublicKey

BUCKET = "amzn-s3-demo-bucket"
FOLDER = "capture/traffic-signs/AllTraffic/2026/11/23"
CONTEXT = SimpleNamespace(
    function_name="start_monitor",
    memory_limit_in_mb=512,
    invoked_function_arn="arn:aws:lambda:eu-west-1:111122223333:function:start_monitor",
    aws_request_id="52fdfc07-2182-154f-163f-5f0f9a621d72",
    get_remaining_time_in_millis=lambda: 30_000,
)


@pytest.fixture
def s3(monkeypatch):
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1")
        client.create_bucket(Bucket=BUCKET)
        yield client


@pytest.fixture
def environment(s3, monkeypatch):
    key = boto3.client("kms").create_key(KeySpec="RSA_2048", KeyUsage="SIGN_VERIFY")["KeyMetadata"]["Arn"]
    monkeypatch.setenv("REPLAY_KEY_ARN", key)
    for name, value in {
        "ENDPOINT_NAME": "traffic-signs",
        "CAPTURE_BUCKET": BUCKET,
        "CAPTURE_PREFIX": "capture",
        "BUCKET": BUCKET,
        "MONITOR_IMAGE": "111122223333.dkr.ecr.eu-west-1.amazonaws.com/class-monitor:1",
        "MONITOR_ROLE_ARN": "arn:aws:iam::111122223333:role/monitor",
        "THRESHOLD": "0.5",
    }.items():
        monkeypatch.setenv(name, value)


def test_schedules_message_starts_one_job_for_the_previous_hour(
    s3, environment, load_app, load_event, caplog
):
    s3.put_object(Bucket=BUCKET, Key=f"{FOLDER}/10/x.jsonl", Body=b"{}")
    app = load_app("start_monitor")
    assert app.handler(load_event("sqs-monitor"), CONTEXT) == {"batchItemFailures": []}
    job = boto3.client("sagemaker").describe_processing_job(
        ProcessingJobName="class-monitor-traffic-signs-20261123t1000"
    )
    assert [entry.job for entry in caplog.records if entry.message == "started"] == [job["ProcessingJobName"]]
    pem = s3.get_object(Bucket=BUCKET, Key="monitoring/traffic-signs/replay-key/public.pem")["Body"].read()
    assert PublicKey.from_pem(pem).text


def test_empty_hour_starts_no_job(s3, environment, load_app, load_event, caplog):
    s3.put_object(Bucket=BUCKET, Key=f"{FOLDER}/11/x.jsonl", Body=b"{}")
    assert load_app("start_monitor").handler(load_event("sqs-monitor"), CONTEXT) == {"batchItemFailures": []}
    assert boto3.client("sagemaker").list_processing_jobs()["ProcessingJobSummaries"] == []
    assert "no data" in caplog.messages


def test_message_without_a_time_fails_with_its_reason(s3, environment, load_app, load_event, caplog):
    event = load_event("sqs-monitor")
    record = event["Records"][0] | {"body": json.dumps({"hour": 10})}
    answer = load_app("start_monitor").handler({"Records": [record]}, CONTEXT)
    assert answer == {"batchItemFailures": [{"itemIdentifier": record["messageId"]}]}
    (entry,) = (entry for entry in caplog.records if entry.name == "glassbox" and entry.exc_info)
    assert "time: expected an ISO 8601 timestamp, got none" in str(entry.exc_info[1])


REQUEST = {
    "ProcessingJobName": "class-monitor-x-20261123t1000",
    "ProcessingResources": {
        "ClusterConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 20}
    },
    "AppSpecification": {"ImageUri": "image"},
    "RoleArn": "arn:aws:iam::111122223333:role/monitor",
}


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("ResourceInUse", ConflictError),
        ("ValidationException", BadInputError),
        ("ResourceLimitExceeded", RetryableError),
        ("ThrottlingException", RetryableError),
        ("AccessDeniedException", RetryableError),
    ],
)
def test_errors_of_create_processing_job_are_translated(code, kind):
    client = boto3.client("sagemaker")
    with Stubber(client) as stub:
        stub.add_client_error("create_processing_job", code, expected_params=REQUEST)
        with pytest.raises(kind, match="class-monitor-x-20261123t1000"):
            ProcessingJobs(client).create(REQUEST)


def test_request_that_botocore_refuses_raises_bad_input():
    with pytest.raises(BadInputError, match="RoleArn"):
        ProcessingJobs(boto3.client("sagemaker")).create({**REQUEST, "RoleArn": 1})


def test_network_error_raises_retryable(monkeypatch):
    sagemaker, events = boto3.client("sagemaker"), boto3.client("events")

    def away(**request):
        raise EndpointConnectionError(endpoint_url="https://eu-west-1.amazonaws.com/")

    monkeypatch.setattr(sagemaker, "create_processing_job", away)
    monkeypatch.setattr(events, "put_events", away)
    with pytest.raises(RetryableError, match="Could not connect"):
        ProcessingJobs(sagemaker).create(REQUEST)
    with pytest.raises(RetryableError, match="Could not connect"):
        Events(events).put("glassbox", "Glassbox Violation", {})


def test_refused_event_raises_retryable():
    """PutEvents returns status 200 with the error of the refused entry."""
    client = boto3.client("events")
    entry = {"Source": "glassbox", "DetailType": "Glassbox Violation", "Detail": '{"n": 1}'}
    with Stubber(client) as stub:
        stub.add_response(
            "put_events", {"FailedEntryCount": 0, "Entries": [{"EventId": "1"}]}, {"Entries": [entry]}
        )
        Events(client).put("glassbox", "Glassbox Violation", {"n": 1})
        refused = {"ErrorCode": "ThrottlingException", "ErrorMessage": "slow down"}
        stub.add_response("put_events", {"FailedEntryCount": 1, "Entries": [refused]})
        with pytest.raises(RetryableError, match="ThrottlingException, slow down"):
            Events(client).put("glassbox", "Glassbox Violation", {"n": 1})
        stub.add_client_error("put_events", "InternalException")
        with pytest.raises(RetryableError, match="InternalException"):
            Events(client).put("glassbox", "Glassbox Violation", {"n": 1})


def test_chunks_raise_retryable_when_the_connection_breaks(s3, monkeypatch):
    body = bytes(range(256)) * 1000
    s3.put_object(Bucket=BUCKET, Key="k", Body=body)
    pieces = list(Objects(s3).chunks(BUCKET, "k"))
    assert len(pieces) > 1
    assert b"".join(pieces) == body
    with pytest.raises(BadInputError, match=f"s3://{BUCKET}/gone"):
        list(Objects(s3).chunks(BUCKET, "gone"))

    class Broken:
        def iter_chunks(self, size):
            yield b"a"
            raise ReadTimeoutError(endpoint_url="https://s3")

    monkeypatch.setattr(s3, "get_object", lambda **request: {"Body": Broken()})
    with pytest.raises(RetryableError, match=f"s3://{BUCKET}/k"):
        list(Objects(s3).chunks(BUCKET, "k"))


def test_folders_follow_all_pages(s3, monkeypatch):
    for name in ("Blue", "Green", "Red"):
        s3.put_object(Bucket=BUCKET, Key=f"capture/x/{name}/2026/11/23/10/a.jsonl", Body=b"")
    s3.put_object(Bucket=BUCKET, Key="capture/x-2/Other/2026/11/23/10/a.jsonl", Body=b"")
    listed = s3.list_objects_v2
    monkeypatch.setattr(s3, "list_objects_v2", lambda **request: listed(**{"MaxKeys": 2, **request}))
    objects = Objects(s3)
    assert objects.folders(BUCKET, "capture/x/") == ["Blue", "Green", "Red"]
    assert objects.folders(BUCKET, "capture/none/") == []
    found = list(objects.listed(BUCKET, "capture/x/"))
    assert [(key.split("/")[2], size) for key, size, _ in found] == [("Blue", 0), ("Green", 0), ("Red", 0)]
    assert all(modified.tzinfo for _, _, modified in found)
    assert list(objects.listed(BUCKET, "capture/none/")) == []
    with pytest.raises(BadInputError, match="s3://gone/capture/"):
        objects.folders("gone", "capture/")


@pytest.mark.parametrize("code", ["AccessDenied", "403"])
def test_denied_read_raises_retryable_and_names_both_causes(code):
    """Without s3:ListBucket, S3 returns 403 for a missing object too."""
    client = boto3.client("s3")
    with Stubber(client) as stub:
        for read in (
            lambda: list(Objects(client).chunks(BUCKET, "k")),
            lambda: Objects(client).get(BUCKET, "k"),
        ):
            stub.add_client_error("get_object", code, "Access Denied", 403)
            with pytest.raises(
                RetryableError, match=f"s3://{BUCKET}/k does not exist, or s3:GetObject is not allowed: "
            ):
                read()
